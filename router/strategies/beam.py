"""Beam search over steps: a verifier prunes (Snell et al., arXiv 2408.03314, section 5.2).

At each step every chain of the beam is continued in several ways, all are scored from their beginning, and
only the best are kept; for those that are pruned nothing runs any more. A chain that is kept at its end has
left the beam. How the scores of steps become that of a chain is the verifier's word, or the caller's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from isoflop.v1.aggregation_pb2 import SELECTION_BEST, Selection
from isoflop.v1.common_pb2 import FINISH_REASON_STEP, Sample, TextDelta

from router.strategies.best_of_n import weighed
from router.strategies.strategy import Bench, Candidate


class Beam:
    """As many chains as the beam is wide; the one with the best score wins."""

    selection: Selection.ValueType = SELECTION_BEST
    verifies = True
    searches = True

    async def play(self, bench: Bench) -> AsyncGenerator[list[Candidate] | TextDelta, None]:
        """Chains as they end, those together that end with the same step; at last those that could not."""
        search = bench.search
        kept: list[Candidate] = []
        beam, width, each = [Sample()], search.width, search.width * search.expansion
        for _ in range(search.depth):
            chains = distinct(await bench.extend(beam, each))
            if not chains:
                break
            kept = sorted(await weighed(bench, chains), key=lambda chain: -chain.weight)[:width]
            if ended := [chain for chain in kept if chain.sample.finish_reason != FINISH_REASON_STEP]:
                yield ended
            kept = [chain for chain in kept if chain.sample.finish_reason == FINISH_REASON_STEP]
            beam, width, each = [chain.sample for chain in kept], len(kept), search.expansion
            if not beam:
                break
        if kept:
            yield kept


def distinct(chains: Sequence[Sample]) -> list[Sample]:
    """One of each text: to go on with the same chain twice brings nothing."""
    return list({chain.text: chain for chain in reversed(chains)}.values())[::-1]
