"""Clusters of candidates with one answer, and their order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from isoflop.v1.aggregation_pb2 import SELECTION_BEST, Candidate, Cluster, Selection

from services.aggregation.stability import stability


class Tally:
    """Clusters so far, and candidates that join them. Clusters that it is given are copied."""

    def __init__(self, clusters: Iterable[Cluster], key: Callable[[str], str]) -> None:
        """`key` gives equal texts for answers that are surely equal."""
        self._key = key
        self.clusters: list[Cluster] = []
        """In the order in which they came."""
        self._by_key: dict[str, Cluster] = {}
        for cluster in clusters:
            copy = Cluster()
            copy.CopyFrom(cluster)
            self.clusters.append(copy)
            self._by_key.setdefault(key(copy.answer), copy)

    def find(self, answer: str) -> Cluster | None:
        """The cluster of an answer, by its key."""
        return self._by_key.get(self._key(answer))

    def add(self, candidate: Candidate, answer: str, cluster: Cluster | None) -> None:
        """Put a candidate into a cluster, or into a new one with its answer."""
        if cluster is None:
            cluster = Cluster(answer=answer, best_weight=candidate.weight, best_member=candidate.id)
            self.clusters.append(cluster)
        self._by_key.setdefault(self._key(answer), cluster)
        cluster.members.append(candidate.id)
        cluster.weight += candidate.weight
        if candidate.weight > cluster.best_weight:
            cluster.best_weight, cluster.best_member = candidate.weight, candidate.id
        if candidate.HasField("logprob"):
            cluster.logprob = max(_logprob(cluster), candidate.logprob)

    def ordered(self, selection: Selection.ValueType) -> list[Cluster]:
        """The leader first: by weight (or best weight), votes, log-probability, then as they came."""
        return sorted(self.clusters, key=lambda c: (*_rank(c, selection), _logprob(c)), reverse=True)


def is_tie(ordered: list[Cluster], selection: Selection.ValueType) -> bool:
    """Whether neither weight nor votes say which of the first two leads."""
    return len(ordered) > 1 and _rank(ordered[0], selection) == _rank(ordered[1], selection)


def leader_stability(ordered: list[Cluster]) -> float:
    """Probability that the first cluster stays ahead of the heaviest other one; 0 without clusters.

    A statement about the vote, also where the best candidate was selected: it is then below one half
    where the vote is for another answer.
    """
    if not ordered:
        return 0.0
    return stability(ordered[0].weight, max((c.weight for c in ordered[1:]), default=0.0))


def _rank(cluster: Cluster, selection: Selection.ValueType) -> tuple[float, int]:
    value = cluster.best_weight if selection == SELECTION_BEST else cluster.weight
    return value, len(cluster.members)


def _logprob(cluster: Cluster) -> float:
    return cluster.logprob if cluster.HasField("logprob") else -math.inf
