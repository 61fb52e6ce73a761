"""Best of n: a verifier scores each step, and the chain with the best score has the answer.

How the scores of steps become the score of a chain is the verifier's word, or the caller's: see
`router.strategies.scoring` (Lightman et al., arXiv 2305.20050).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from isoflop.v1.aggregation_pb2 import SELECTION_BEST
from isoflop.v1.common_pb2 import TextDelta

from router.strategies.scored import weighed
from router.strategies.strategy import Batch, Bench, Strategy


class BestOfN(Strategy):
    """Samples weighed by a verifier; the best one wins."""

    selection = SELECTION_BEST
    verifies = True

    async def play(self, bench: Bench) -> AsyncGenerator[Batch, None]:
        """The samples with their scores, as they finish; one that cannot be scored has no weight."""
        async with aclosing(bench.sample()) as batches:
            async for batch in batches:
                if not isinstance(batch, TextDelta):
                    yield await weighed(bench, batch)
