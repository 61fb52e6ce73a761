"""Searches over steps that a verifier prunes (Snell et al., arXiv 2408.03314, section 5.2).

At each step every chain of the beam is continued in several ways, all are scored from their beginning, and
only the best are kept; for those that are pruned nothing runs any more. A chain that is kept at its end has
left the beam. How the scores of steps become that of a chain is the verifier's word, or the caller's.

With a language model as the verifier this is the breadth-first search of a tree of thoughts (Yao et al.,
arXiv 2305.10601).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Hashable, Iterable

from isoflop.v1.aggregation_pb2 import SELECTION_BEST
from isoflop.v1.common_pb2 import FINISH_REASON_STEP, Model, Sample
from isoflop.v1.router_pb2 import NODE_STATE_ENDED, NODE_STATE_KEPT, NODE_STATE_PRUNED, Growth

from router.strategies.scored import best, node, weighed
from router.strategies.strategy import Batch, Bench, Candidate, Search, Strategy


class Stepwise(Strategy):
    """A search over steps; the chain with the best score wins."""

    selection = SELECTION_BEST
    verifies = True

    def serves(self, model: Model) -> bool:
        """It goes on with a chain, step by step."""
        return model.capabilities.prefix and model.capabilities.steps


class Beam(Stepwise):
    """As many chains as the beam is wide, the best of all."""

    shape = Search(width=4, expansion=4, depth=64)

    async def play(self, bench: Bench) -> AsyncGenerator[Batch, None]:
        """Chains as they end, those together that end with the same step; at last those that could not."""
        kept: list[Candidate] = []
        beam = [Sample()] * bench.search.width
        for _ in range(bench.search.depth):
            # To go on with the same chain twice brings nothing.
            chains = {self.place(chain): chain for chain in await bench.extend(beam, bench.search.expansion)}
            if not chains:
                break
            scored = await weighed(bench, list(chains.values()))
            kept = self.prune(scored, len(beam))
            ended = [chain for chain in kept if chain.sample.finish_reason != FINISH_REASON_STEP]
            yield grown(beam, scored, kept, ended)
            if ended:
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
        return best(chains, width)


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
        return best({chain.sample.branch: chain for chain in ordered}.values(), width)


def grown(
    beam: list[Sample], scored: list[Candidate], kept: list[Candidate], ended: list[Candidate]
) -> Growth:
    """What a step has made of the beam."""
    states = {id(chain): NODE_STATE_KEPT for chain in kept} | {id(chain): NODE_STATE_ENDED for chain in ended}
    return Growth(
        nodes=[
            node(beam[chain.sample.branch], chain, states.get(id(chain), NODE_STATE_PRUNED))
            for chain in scored
        ]
    )
