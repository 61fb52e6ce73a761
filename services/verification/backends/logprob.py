"""The simplest verifier: how likely the model itself found the step.

The score of a step is the geometric mean of its tokens' probabilities, exp(log-probability / tokens),
which lies in [0, 1] and does not punish length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from isoflop.v1.common_pb2 import Message
from isoflop.v1.verification_pb2 import Chain, ChainScoring, Verifier

from services.verification.backends import Scored, Spent, Unscorable
from services.verification.catalog import LogprobEntry

FLOPS_A_STEP = 2.0
"""A division and an exponential."""


class LogprobBackend:
    """Scores steps by the mean log-probability of their tokens."""

    whole = False

    def __init__(self, entry: LogprobEntry) -> None:
        self.name = entry.name
        self._scoring: ChainScoring.ValueType = entry.scoring_or("mean")

    async def describe(self) -> Verifier:
        """It has no shape: it computes no tokens."""
        return Verifier(name=self.name, backend="logprob", needs_logprobs=True, scoring=self._scoring)

    async def score(
        self, messages: Sequence[Message], chains: Sequence[Chain]
    ) -> Sequence[Scored | Unscorable]:
        """An error where log-probabilities are missing or not finite."""
        return [_outcome(chain) for chain in chains]

    async def close(self) -> None:
        """Nothing to let go of."""


def _outcome(chain: Chain) -> Scored | Unscorable:
    scores = []
    for number, step in enumerate(chain.steps, start=1):
        if not step.HasField("logprob") or step.tokens < 1:
            return Unscorable(f"step {number} has no log-probability")
        if not math.isfinite(step.logprob):
            return Unscorable(f"the log-probability of step {number} is not a finite number")
        scores.append(math.exp(min(0.0, step.logprob / step.tokens)))
    flops = FLOPS_A_STEP * len(scores)
    return Scored(scores, Spent(flops=flops, flops_without_attention=flops))
