"""Chains to score, and a core to score them."""

from __future__ import annotations

from typing import Any

from isoflop.v1.common_pb2 import Message
from isoflop.v1.verification_pb2 import Chain, ScoreRequest, ScoreResponse
from prometheus_client import CollectorRegistry

from services.verification.backends import Backend
from services.verification.core import Verification
from services.verification.settings import VerificationSettings

PROMPT = "17+4"
MESSAGES = [Message(role="user", content=PROMPT)]


def make_core(*backends: Backend, registry: CollectorRegistry | None = None, **settings: Any) -> Verification:
    """A service with these verifiers."""
    return Verification(VerificationSettings(**settings), backends, registry or CollectorRegistry())


async def ask(backend: Backend, *chains: Chain | str, **settings: Any) -> ScoreResponse:
    """Scores of chains; a text is a chain that is cut into its lines."""
    made = [Chain(id=str(i), text=one) if isinstance(one, str) else one for i, one in enumerate(chains)]
    request = ScoreRequest(verifier=backend.name, messages=MESSAGES, chains=made)
    return await make_core(backend, **settings).score(request)
