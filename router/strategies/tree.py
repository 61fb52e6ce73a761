"""Monte-Carlo tree search over steps, with a verifier's scores as values (Kocsis and Szepesvári, ECML 2006).

From the root the child is followed that is worth most by its mean value and by how seldom it was tried
(UCT), down to a chain that nothing continues yet. It is continued in several ways, each is scored from its
beginning, and the scores are added to all that lead there: where they are bad, the search goes back and on
elsewhere. A score takes the place of a roll-out, as in later work (Silver et al., Nature 550, 2017).
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field

from isoflop.v1.common_pb2 import FINISH_REASON_STEP, Sample
from isoflop.v1.router_pb2 import NODE_STATE_ENDED, NODE_STATE_KEPT, Growth

from router.strategies.beam import Stepwise
from router.strategies.scored import best, node, weighed
from router.strategies.strategy import Batch, Bench, Candidate, Search

CURIOSITY = math.sqrt(2)
"""Weight of how seldom a way was tried, where values are in [0, 1] (Kocsis and Szepesvári)."""


@dataclass(eq=False)
class Place:
    """A chain in the tree, and what is known of those that begin with it."""

    chain: Candidate
    before: Place | None = None
    depth: int = 0
    ways: list[Place] = field(default_factory=list)
    open: bool = True
    """Something in it may still be continued."""
    tries: int = 0
    value: float = 0.0
    """Sum over its tries."""

    @property
    def path(self) -> Iterator[Place]:
        """It and all that lead to it."""
        place: Place | None = self
        while place:
            yield place
            place = place.before

    def add(self, value: float) -> None:
        """One more try of it came to this."""
        for place in self.path:
            place.tries += 1
            place.value += value

    def close(self) -> None:
        """Nothing in it is to be continued any more; nor in what leads to it, where no other way is open."""
        for place in self.path:
            place.open = any(way.open for way in place.ways)
            if place.open:
                break

    def promise(self) -> float:
        """How much it is worth to try: UCT."""
        assert self.before is not None
        if not self.tries:
            return math.inf
        return self.value / self.tries + CURIOSITY * math.sqrt(math.log(self.before.tries) / self.tries)

    def leaf(self) -> Place:
        """The open end that is worth most to try."""
        place = self
        while place.ways:
            place = max((way for way in place.ways if way.open), key=Place.promise)
        return place


class Tree(Stepwise):
    """As many leaves at a time, and chains at last, as it is wide."""

    shape = Search(width=4, expansion=4, depth=64, nodes=128)

    async def play(self, bench: Bench) -> AsyncGenerator[Batch, None]:
        """How the tree grows; at last the best chains."""
        search, root = bench.search, Place(Candidate(Sample()))
        places: list[Place] = []
        left = search.nodes
        while root.open and left >= search.expansion:
            leaves = chosen(root, min(search.width, left // search.expansion))
            left -= len(leaves) * search.expansion
            chains = await bench.extend([leaf.chain.sample for leaf in leaves], search.expansion)
            if not chains:
                break
            made: dict[tuple[int, str], Sample] = {(chain.branch, chain.text): chain for chain in chains}
            grown = [
                Place(chain, leaves[chain.sample.branch], leaves[chain.sample.branch].depth + 1)
                for chain in await weighed(bench, list(made.values()))
            ]
            if not any(place.chain.scores.steps for place in grown):
                break  # Without scores there is nothing to go by.
            for place in grown:
                assert place.before is not None
                place.before.ways.append(place)
            for place in grown:
                place.add(place.chain.weight)
                if ended(place) or place.depth >= search.depth:
                    place.close()
            for leaf in leaves:
                if not leaf.ways:
                    leaf.close()
            places += grown
            yield Growth(
                nodes=[
                    node(
                        place.before.chain.sample,
                        place.chain,
                        NODE_STATE_ENDED if ended(place) else NODE_STATE_KEPT,
                    )
                    for place in grown
                    if place.before
                ]
            )
        whole = [place.chain for place in places if ended(place)]
        if not whole:
            # Its steps have run out before a chain had ended: the best beginnings are finished in one go.
            begun = best((place.chain for place in places if not place.ways), search.width)
            whole = begun and await weighed(bench, await bench.finish([chain.sample for chain in begun]))
            yield Growth(
                nodes=[node(begun[chain.sample.branch].sample, chain, NODE_STATE_ENDED) for chain in whole]
            )
            whole = whole or begun
        if whole:
            yield best(whole, search.width)


def ended(place: Place) -> bool:
    """Whether it is a chain's last step."""
    return place.chain.sample.finish_reason != FINISH_REASON_STEP


def chosen(root: Place, most: int) -> list[Place]:
    """Up to so many leaves at once: each is taken to fail until its score is there, so that they differ."""
    leaves: list[Place] = []
    while len(leaves) < most and root.open:
        leaf = root.leaf()
        leaves.append(leaf)
        for place in leaf.path:
            place.tries += 1
        leaf.close()
    for leaf in leaves:
        for place in leaf.path:
            place.tries -= 1
            place.open = True
    return leaves
