"""Best of n: a verifier scores each step, and the chain with the best score has the answer.

How the scores of steps become the score of a chain is the verifier's word, or the caller's: see
`router.strategies.scoring` (Lightman et al., arXiv 2305.20050).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from isoflop.v1.aggregation_pb2 import SELECTION_BEST, Selection
from isoflop.v1.common_pb2 import Sample, TextDelta

from router.strategies.scoring import chain_score
from router.strategies.strategy import Bench, Candidate


class BestOfN:
    """Samples weighed by a verifier; the best one wins."""

    selection: Selection.ValueType = SELECTION_BEST
    verifies = True
    searches = False

    async def play(self, bench: Bench) -> AsyncGenerator[list[Candidate] | TextDelta, None]:
        """The samples with their scores, as they finish; one that cannot be scored has no weight."""
        async with aclosing(bench.sample()) as batches:
            async for batch in batches:
                if not isinstance(batch, TextDelta):
                    yield await weighed(bench, batch)


async def weighed(bench: Bench, samples: Sequence[Sample]) -> list[Candidate]:
    """The samples with their scores; one that cannot be scored has no weight."""
    scores = await bench.score(samples)
    return [
        Candidate(sample, chain_score(its.steps, bench.scoring) if its.steps else 0.0, its)
        for sample, its in zip(samples, scores, strict=True)
    ]
