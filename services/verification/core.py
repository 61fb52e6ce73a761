"""The work of verification: each chain to the verifier that was asked for, each fault to its own chain."""

from __future__ import annotations

from isoflop.errors import InvalidArgument, NotFound
from isoflop.v1.verification_pb2 import (
    Chain,
    ChainScore,
    DescribeVerifiersRequest,
    DescribeVerifiersResponse,
    ScoreRequest,
    ScoreResponse,
)
from prometheus_client import CollectorRegistry, Counter

from services.verification.backends import Backend, Unscorable
from services.verification.backends.logprob import LogprobBackend
from services.verification.settings import VerificationSettings


class Verification:
    """Scores the steps of chains."""

    def __init__(self, settings: VerificationSettings, registry: CollectorRegistry) -> None:
        self._settings = settings
        self._backends: dict[str, Backend] = {b.description.name: b for b in (LogprobBackend(),)}
        self._chains = Counter(
            "isoflop_verification_chains_total",
            "Chains scored, by verifier and outcome (scored, unscorable).",
            ["verifier", "outcome"],
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

        Raises NotFound for an unknown verifier and InvalidArgument for too many chains. A chain that
        cannot be scored carries its own error.
        """
        backend = self._backends.get(request.verifier)
        if backend is None:
            raise NotFound(
                f"there is no verifier {request.verifier!r}; there are: {', '.join(self._backends)}"
            )
        if len(request.chains) > self._settings.max_chains:
            raise InvalidArgument("chains", f"at most {self._settings.max_chains} in one request")
        response = ScoreResponse()
        for chain in request.chains:
            try:
                self._check(chain)
                scored = backend.score(list(request.messages), chain)
            except Unscorable as error:
                response.scores.append(ChainScore(id=chain.id, error=str(error)))
                self._chains.labels(request.verifier, "unscorable").inc()
                continue
            response.scores.append(ChainScore(id=chain.id, steps=scored.steps))
            response.tokens += scored.tokens
            response.flops += scored.flops
            self._chains.labels(request.verifier, "scored").inc()
        self._flops.labels(request.verifier).inc(response.flops)
        return response

    async def describe(self, request: DescribeVerifiersRequest) -> DescribeVerifiersResponse:
        """The verifiers."""
        return DescribeVerifiersResponse(verifiers=[b.description for b in self._backends.values()])

    def _check(self, chain: Chain) -> None:
        if len(chain.text.encode()) > self._settings.max_chain_bytes:
            raise Unscorable(f"its text has more than {self._settings.max_chain_bytes} bytes")
        if len(chain.steps) > self._settings.max_steps:
            raise Unscorable(f"it has more than {self._settings.max_steps} steps")
