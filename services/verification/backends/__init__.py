"""What scores steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from isoflop.v1 import common_pb2, verification_pb2


class Unscorable(Exception):
    """One chain cannot be scored; `str(error)` says why. The others are not affected."""


@dataclass(frozen=True)
class Scored:
    """Scores of one chain, and what they took."""

    steps: list[float]
    """One score in [0, 1] for each step."""
    tokens: int
    """Tokens read."""
    flops: float
    """Floating-point operations."""


class Backend(Protocol):
    """A verifier."""

    description: verification_pb2.Verifier

    def score(self, messages: list[common_pb2.Message], chain: verification_pb2.Chain) -> Scored:
        """Score the steps of a chain that answers `messages`; raises Unscorable."""
        ...
