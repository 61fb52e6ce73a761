"""Samples with the scores of their steps, and the tree that they grow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from isoflop.v1.common_pb2 import FINISH_REASON_STOP, Sample
from isoflop.v1.router_pb2 import Node, NodeState

from router.strategies.scoring import chain_score
from router.strategies.strategy import Bench, Candidate


async def weighed(bench: Bench, samples: Sequence[Sample]) -> list[Candidate]:
    """The samples with their scores; one that cannot be scored has no weight."""
    scores = await bench.score(samples)
    return [
        Candidate(sample, chain_score(its.steps, bench.scoring) if its.steps else 0.0, its)
        for sample, its in zip(samples, scores, strict=True)
    ]


def node(parent: Sample, chain: Candidate, state: NodeState.ValueType) -> Node:
    """What the chain adds to the one that it continues, as the contract has it."""
    sample = chain.sample
    text = sample.text.removeprefix(parent.text)
    return Node(
        id=sample.id,
        parent=parent.id,
        text=text,
        score=chain.weight if chain.scores.steps else None,
        state=state,
    )


def comes_to(chains: Iterable[Candidate]) -> Candidate:
    """The best of those that came to their end, or of all where none has: what a search comes to."""
    found = list(chains)
    ended = [chain for chain in found if chain.sample.finish_reason == FINISH_REASON_STOP]
    return best(ended or found, 1)[0]


def best(chains: Iterable[Candidate], count: int) -> list[Candidate]:
    """So many with the best scores, the best first; among equals the earlier."""
    return sorted(chains, key=lambda chain: -chain.weight)[:count]
