"""The work of verification: each chain to the verifier that was asked for, each fault to its own chain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import structlog
from isoflop.errors import InvalidArgument, IsoflopError, NotFound
from isoflop.v1.common_pb2 import Step
from isoflop.v1.verification_pb2 import (
    Chain,
    ChainScore,
    DescribeVerifiersRequest,
    DescribeVerifiersResponse,
    ScoreRequest,
    ScoreResponse,
)
from prometheus_client import CollectorRegistry, Counter

from services.verification.backends import Backend, Scored, Spent, Unscorable
from services.verification.settings import VerificationSettings
from services.verification.steps import cut

log = structlog.get_logger()


class Verification:
    """Scores the steps of chains."""

    def __init__(
        self, settings: VerificationSettings, backends: Sequence[Backend], registry: CollectorRegistry
    ) -> None:
        self._settings = settings
        self._backends = {backend.name: backend for backend in backends}
        self._chains = Counter(
            "isoflop_verification_chains_total",
            "Chains scored, by verifier and outcome (scored, unscorable).",
            ["verifier", "outcome"],
            registry=registry,
        )
        self._tokens = Counter(
            "isoflop_verification_tokens_total",
            "Tokens by verifier and kind (prompt, cached, completion).",
            ["verifier", "kind"],
            registry=registry,
        )
        self._flops = Counter(
            "isoflop_verification_flops_total",
            "Floating-point operations spent on scores, by verifier.",
            ["verifier"],
            registry=registry,
        )

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """One score in [0, 1] for each step of each chain.

        Raises NotFound for an unknown verifier, InvalidArgument for too many chains or too long messages,
        and Unavailable where the verifier is down or overloaded. A chain that cannot be scored carries its
        own error, and what it took is counted all the same.
        """
        backend = self._backends.get(request.verifier)
        if backend is None:
            raise NotFound(
                f"there is no verifier {request.verifier!r}; there are: {', '.join(self._backends)}"
            )
        if len(request.chains) > self._settings.max_chains:
            raise InvalidArgument("chains", f"at most {self._settings.max_chains} in one request")
        size = sum(len(message.content.encode()) for message in request.messages)
        if size > self._settings.max_prompt_bytes:
            raise InvalidArgument("messages", f"at most {self._settings.max_prompt_bytes} bytes")
        checked = [self._ready(chain, backend.whole) for chain in request.chains]
        ready = [chain for chain in checked if isinstance(chain, Chain)]
        outcomes = iter(await backend.score(request.messages, ready) if ready else ())
        response = ScoreResponse()
        for chain, one in zip(request.chains, checked, strict=True):
            outcome = one if isinstance(one, Unscorable) else _checked(next(outcomes), len(one.steps))
            self._add(response, chain.id, outcome)
        self._count(request.verifier, response)
        return response

    async def describe(self, request: DescribeVerifiersRequest) -> DescribeVerifiersResponse:
        """The verifiers, in the catalogue's order; without those that cannot say now what they are."""
        response = DescribeVerifiersResponse()
        for name, backend in self._backends.items():
            try:
                response.verifiers.append(await backend.describe())
            except IsoflopError as error:
                log.warning("a verifier cannot be described", verifier=name, error=str(error))
        return response

    async def close(self) -> None:
        """Let go of the engines."""
        for backend in self._backends.values():
            await backend.close()

    def _ready(self, chain: Chain, whole: bool) -> Chain | Unscorable:
        """The chain with its steps, or why it cannot be scored."""
        settings = self._settings
        if len(chain.text.encode()) > settings.max_chain_bytes:
            return Unscorable(f"its text has more than {settings.max_chain_bytes} bytes")
        # Counted before it is cut: a megabyte of line ends would take the event loop a second.
        if not whole and (len(chain.steps) or chain.text.count("\n", 0, -1) + 1) > settings.max_steps:
            return Unscorable(f"it has more than {settings.max_steps} steps or lines")
        if whole:
            steps = [Step(end=len(chain.text))] if chain.text.strip() else []
        elif chain.steps:
            steps = list(chain.steps)
        else:
            steps = cut(chain.text) if chain.text.strip() else []
        if not steps:
            return Unscorable("it has no steps")
        return Chain(id=chain.id, text=chain.text, steps=steps)

    @staticmethod
    def _add(response: ScoreResponse, chain_id: str, outcome: Scored | Unscorable) -> None:
        spent = outcome.spent
        response.tokens += spent.tokens
        response.cached_tokens += spent.cached_tokens
        response.completion_tokens += spent.completion_tokens
        response.flops += spent.flops
        response.flops_without_attention += spent.flops_without_attention
        if isinstance(outcome, Scored):
            response.scores.append(ChainScore(id=chain_id, steps=outcome.steps))
        else:
            response.scores.append(ChainScore(id=chain_id, error=str(outcome)))

    def _count(self, verifier: str, response: ScoreResponse) -> None:
        unscorable = sum(bool(one.error) for one in response.scores)
        self._chains.labels(verifier, "scored").inc(len(response.scores) - unscorable)
        self._chains.labels(verifier, "unscorable").inc(unscorable)
        self._tokens.labels(verifier, "prompt").inc(response.tokens)
        self._tokens.labels(verifier, "cached").inc(response.cached_tokens)
        self._tokens.labels(verifier, "completion").inc(response.completion_tokens)
        self._flops.labels(verifier).inc(response.flops)


def _checked(outcome: Scored | Unscorable, steps: int) -> Scored | Unscorable:
    """No verifier is believed: there must be a number in [0, 1] for each step."""
    if isinstance(outcome, Unscorable):
        return outcome
    spent: Spent = outcome.spent
    if len(outcome.steps) != steps:
        return Unscorable(f"the verifier gave {len(outcome.steps)} scores for {steps} steps", spent)
    for number, score in enumerate(outcome.steps, start=1):
        if not (math.isfinite(score) and 0 <= score <= 1):
            return Unscorable(f"the score of step {number} is {score:g}, not a number from 0 to 1", spent)
    return outcome
