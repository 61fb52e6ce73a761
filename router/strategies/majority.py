"""Self-consistency: many samples, one vote each (Wang et al., arXiv 2203.11171)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from isoflop.v1.aggregation_pb2 import SELECTION_SUM
from isoflop.v1.common_pb2 import TextDelta

from router.strategies.strategy import Bench, Candidate


class Majority:
    """Samples with one vote each."""

    selection = SELECTION_SUM
    verifies = False
    searches = False

    async def play(self, bench: Bench) -> AsyncGenerator[list[Candidate] | TextDelta, None]:
        """The samples, as they finish."""
        async with aclosing(bench.sample()) as batches:
            async for batch in batches:
                if not isinstance(batch, TextDelta):
                    yield [Candidate(sample) for sample in batch]
