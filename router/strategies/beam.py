"""Searches over steps that a verifier prunes (Snell et al., arXiv 2408.03314, section 5.2).

At each step every chain of the beam is continued in several ways, all are scored from their beginning, and
only the best are kept; for those that are pruned nothing runs any more. A chain that is kept at its end has
left the beam. How the scores of steps become that of a chain is the verifier's word, or the caller's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Hashable, Iterable

from isoflop.v1.aggregation_pb2 import SELECTION_BEST, Selection
from isoflop.v1.common_pb2 import FINISH_REASON_STEP, Sample, TextDelta

from router.strategies.best_of_n import weighed
from router.strategies.strategy import Bench, Candidate


class Beam:
    """As many chains as the beam is wide, the best of all; the one with the best score wins."""

    selection: Selection.ValueType = SELECTION_BEST
    verifies = True
    searches = True

    async def play(self, bench: Bench) -> AsyncGenerator[list[Candidate] | TextDelta, None]:
        """Chains as they end, those together that end with the same step; at last those that could not."""
        kept: list[Candidate] = []
        beam = [Sample()] * bench.search.width
        for _ in range(bench.search.depth):
            # To go on with the same chain twice brings nothing.
            chains = {self.place(chain): chain for chain in await bench.extend(beam, bench.search.expansion)}
            if not chains:
                break
            kept = self.prune(await weighed(bench, list(chains.values())), len(beam))
            if ended := [chain for chain in kept if chain.sample.finish_reason != FINISH_REASON_STEP]:
                yield ended
            kept = [chain for chain in kept if chain.sample.finish_reason == FINISH_REASON_STEP]
            beam = [chain.sample for chain in kept]
            if not beam:
                break
        if kept:
            yield kept

    def place(self, chain: Sample) -> Hashable:
        """Chains of one place are the same."""
        return chain.text

    def prune(self, chains: Iterable[Candidate], width: int) -> list[Candidate]:
        """Those that are gone on with, the best first."""
        return sorted(chains, key=lambda chain: -chain.weight)[:width]


class Dvts(Beam):
    """Diverse verifier tree search: as many beams of one chain each, so that none crowds out the others.

    Beeching, Tunstall and Rush, "Scaling test-time compute with open models" (Hugging Face, 2024).
    """

    def place(self, chain: Sample) -> Hashable:
        """The same text in two of the beams is two chains."""
        return chain.branch, chain.text

    def prune(self, chains: Iterable[Candidate], width: int) -> list[Candidate]:
        """The best of each beam."""
        ordered = sorted(chains, key=lambda chain: chain.weight)
        best = {chain.sample.branch: chain for chain in ordered}
        return super().prune(best.values(), width)
