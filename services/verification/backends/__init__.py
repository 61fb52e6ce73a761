"""What scores steps: one interface for every verifier."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from isoflop.errors import IsoflopError
from isoflop.v1.common_pb2 import Message, Shape
from isoflop.v1.verification_pb2 import Chain, Verifier

from services.common.flops import attended, with_attention, without_attention


@dataclass(frozen=True)
class Spent:
    """What a chain's scores took."""

    tokens: int = 0
    """Tokens of prompt and chain that were computed."""
    cached_tokens: int = 0
    """Tokens that were found in an engine's cache."""
    completion_tokens: int = 0
    """Tokens that were generated."""
    flops: float = 0.0
    """Floating-point operations, attention included."""
    flops_without_attention: float = 0.0
    """The simple figure beside it."""

    @classmethod
    def reading(cls, shape: Shape, tokens: int) -> Spent:
        """One forward pass over so many tokens."""
        context = attended(1, tokens, shape.window)
        return cls(
            tokens=tokens,
            flops=with_attention(shape, tokens, context),
            flops_without_attention=without_attention(shape, tokens),
        )


NOTHING = Spent()


class Unscorable(Exception):
    """One chain cannot be scored; `str(error)` says why. The others are not affected."""

    def __init__(self, reason: str, spent: Spent = NOTHING) -> None:
        super().__init__(reason)
        self.spent = spent
        """What it took nevertheless."""


@dataclass(frozen=True)
class Scored:
    """Scores of one chain, and what they took. That they are numbers in [0, 1] is for the core to check."""

    steps: Sequence[float]
    """One score for each step; one in all where the verifier judges whole texts."""
    spent: Spent


async def score_each(
    score: Callable[[Chain], Coroutine[Any, Any, Scored | Unscorable]], chains: Sequence[Chain]
) -> Sequence[Scored | Unscorable]:
    """The outcome of `score` for each chain, all at the same time, in order.

    What it raises becomes the error of its chain: the others have their scores, and what they took is told.
    Where it raises for all of them, that is no chain's fault, and the first error is raised.
    """

    async def outcome(chain: Chain) -> Scored | Unscorable | IsoflopError:
        try:
            return await score(chain)
        except IsoflopError as error:
            return error

    async with asyncio.TaskGroup() as group:
        scoring = [group.create_task(outcome(chain)) for chain in chains]
    outcomes = [one.result() for one in scoring]
    errors = [one for one in outcomes if isinstance(one, IsoflopError)]
    if errors and len(errors) == len(outcomes):
        raise errors[0]
    return [Unscorable(str(one)) if isinstance(one, IsoflopError) else one for one in outcomes]


class Backend(Protocol):
    """A verifier."""

    name: str
    """By which it is asked for."""
    whole: bool
    """It judges texts as a whole."""

    async def describe(self) -> Verifier:
        """What it is; raises Unavailable or NotFound where it must ask, and nobody answers or knows."""
        ...

    async def score(
        self, messages: Sequence[Message], chains: Sequence[Chain]
    ) -> Sequence[Scored | Unscorable]:
        """Score chains that answer `messages`, each cut into steps: an outcome for each, in order.

        Raises what concerns them all: InvalidArgument for messages that the template refuses, Unavailable
        where the engine is down or overloaded for each of them. If cancelled, what waits or runs is given up.
        """
        ...

    async def close(self) -> None:
        """Let go of the engine."""
        ...
