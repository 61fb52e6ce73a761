"""One sample, greedy or at a temperature. Its text streams as it comes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from isoflop.v1.common_pb2 import TextDelta

from router.strategies.strategy import Batch, Bench, Candidate, Strategy


class Single(Strategy):
    """One sample."""

    async def play(self, bench: Bench) -> AsyncGenerator[Batch, None]:
        """The sample, and its text before it."""
        async with aclosing(bench.sample(stream_text=True)) as batches:
            async for batch in batches:
                yield batch if isinstance(batch, TextDelta) else [Candidate(sample) for sample in batch]
