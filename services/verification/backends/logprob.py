"""The simplest verifier: how likely the model itself found the step.

The score of a step is the geometric mean of its tokens' probabilities, exp(log-probability / tokens),
which lies in [0, 1] and does not punish length.
"""

from __future__ import annotations

import math

from isoflop.v1 import common_pb2, verification_pb2

from services.verification.backends import Scored, Unscorable

FLOPS_A_STEP = 2.0
"""A division and an exponential."""


class LogprobBackend:
    """Scores steps by the mean log-probability of their tokens."""

    description = verification_pb2.Verifier(name="logprob", backend="logprob", needs_logprobs=True)

    def score(self, messages: list[common_pb2.Message], chain: verification_pb2.Chain) -> Scored:
        """Score the steps of a chain; raises Unscorable where log-probabilities are missing or not finite."""
        if not chain.steps:
            raise Unscorable("it has no steps")
        scores = []
        for number, step in enumerate(chain.steps, start=1):
            if not step.HasField("logprob") or step.tokens < 1:
                raise Unscorable(f"step {number} has no log-probability")
            if not math.isfinite(step.logprob):
                raise Unscorable(f"the log-probability of step {number} is not a finite number")
            scores.append(math.exp(min(0.0, step.logprob / step.tokens)))
        return Scored(scores, sum(step.tokens for step in chain.steps), FLOPS_A_STEP * len(scores))
