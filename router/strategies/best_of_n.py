"""Best of n: a verifier scores each step, and the chain with the best score has the answer.

The score of a chain is the mean of its steps' scores, which suits the log-probability verifier; minimum,
product and last (Lightman et al., arXiv 2305.20050) come with verifiers that judge whether a step is right.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from statistics import fmean

from isoflop.v1.aggregation_pb2 import SELECTION_BEST
from isoflop.v1.common_pb2 import TextDelta

from router.strategies.strategy import Bench, Candidate


class BestOfN:
    """Samples weighed by a verifier; the best one wins."""

    selection = SELECTION_BEST
    verifies = True
    needs_logprobs = True

    async def play(self, bench: Bench) -> AsyncGenerator[list[Candidate] | TextDelta, None]:
        """The samples with their scores, as they finish; one that cannot be scored has no weight."""
        async with aclosing(bench.sample()) as batches:
            async for batch in batches:
                if not isinstance(batch, TextDelta):
                    scores = await bench.score(batch)
                    yield [
                        Candidate(sample, fmean(its.steps) if its.steps else 0.0, its)
                        for sample, its in zip(batch, scores, strict=True)
                    ]
