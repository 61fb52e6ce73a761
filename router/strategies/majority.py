"""Samples without scores: a vote among them, or the caller's own choice."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from isoflop.v1.common_pb2 import TextDelta

from router.strategies.strategy import Batch, Bench, Candidate, Strategy


class Majority(Strategy):
    """Self-consistency: samples with one vote each (Wang et al., arXiv 2203.11171)."""

    async def play(self, bench: Bench) -> AsyncGenerator[Batch, None]:
        """The samples, as they finish."""
        async with aclosing(bench.sample()) as batches:
            async for batch in batches:
                if not isinstance(batch, TextDelta):
                    yield [Candidate(sample) for sample in batch]


class Repeated(Majority):
    """Samples for a caller who can tell a right one, by unit tests say (Brown et al., arXiv 2407.21787).

    What is answered by itself is the vote's leader all the same.
    """

    checked = True
