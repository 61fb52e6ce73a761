"""What has come of a query so far: candidates, votes, and what they say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from isoflop.v1.aggregation_pb2 import AggregateResponse, Cluster
from isoflop.v1.common_pb2 import FINISH_REASON_ABORTED, FINISH_REASON_LENGTH, Sample
from isoflop.v1.router_pb2 import Round, Tally

from router.belief import NO_VOTES, Posterior, Votes, update
from router.decision import Action
from router.lengths import UNSEEN, Array, Lengths
from router.profile import Arm, Verified
from router.strategies.strategy import Candidate


class Progress:
    """Candidates, clusters and rounds of one query."""

    def __init__(self, prior: Array) -> None:
        self._prior = prior
        self._arms: dict[str, Arm] = {}
        self._lengths: dict[int, Lengths] = {}
        """By `id` of the arm."""
        self._said: dict[str, tuple[Verified, float]] = {}
        """By id of a sample, what its score says in log-odds, where what scores say was measured."""
        self._cut: set[str] = set()
        """Ids of samples that were cut before they had an answer: no votes, and not wrong for sure."""
        self.samples: dict[str, Sample] = {}
        """Every sample, by id."""
        self.clusters: list[Cluster] = []
        """The leader first."""
        self.blanks: list[str] = []
        """Ids of samples without an answer."""
        self.stability = 0.0
        """Probability that the leader stays the leader."""
        self.rounds: list[Round] = []
        self.bought: dict[str, int] = {}
        """Samples started, by model."""
        self.greedy: set[str] = set()
        """Models whose greedy sample was bought."""
        self.votes = NO_VOTES
        self.posterior: Posterior = update(prior, NO_VOTES)
        """What the votes say."""

    def buy(self, action: Action) -> int:
        """Note that a round begins; the index of its first sample among the model's."""
        first = self.bought.get(action.model.name, 0)
        self.bought[action.model.name] = first + action.samples
        if action.arm.greedy:
            self.greedy.add(action.model.name)
        return first

    def unweigh(self) -> None:
        """Each sample so far has one vote, whatever its score."""
        for cluster in self.clusters:
            cluster.weight, cluster.best_weight = len(cluster.members), 1.0
        self._said.clear()

    def take(
        self,
        action: Action,
        candidates: Sequence[Candidate],
        tally: AggregateResponse,
        blanks: Iterable[str],
        *,
        by_scores: bool,
    ) -> None:
        """Take candidates, the clusters with them in it, and the ids of those that are in none.

        The leader is the tally's where it was chosen `by_scores`.
        """
        for candidate in candidates:
            self.samples[candidate.sample.id] = candidate.sample
            self._arms[candidate.sample.id] = action.arm
            if action.verified and candidate.scores.steps and not by_scores:
                told = action.verified.evidence(candidate.weight)
                self._said[candidate.sample.id] = (action.verified, told)
        blanks = list(blanks)
        self._measure([candidate.sample for candidate in candidates], set(blanks))
        self.clusters = list(tally.clusters)
        self.blanks += blanks
        self.stability = tally.stability
        self.votes = self._votes()
        self.posterior = update(self._prior, self.votes)
        if by_scores:
            # Confidence is by votes all the same: what these scores say of it was not measured.
            self.posterior = replace(self.posterior, chosen=0 if self.clusters else -1)
        elif (leader := self.posterior.leader) > 0:
            # Votes of several models, or scored: the answer most likely right leads, whatever their number.
            self.clusters.insert(0, self.clusters.pop(leader))
            self.votes = self._votes()
            self.posterior = update(self._prior, self.votes)

    @property
    def confidence(self) -> float:
        """Probability that the answer that would be returned now is right."""
        return float(self.posterior.answers[0]) if self.clusters else 0.0

    def tally(self) -> Tally:
        """As the contract has it."""
        return Tally(
            clusters=self.clusters,
            blanks=len(self.blanks),
            confidence=self.confidence,
            stability=self.stability,
        )

    def _measure(self, samples: Iterable[Sample], blanks: set[str]) -> None:
        """Note how long samples are."""
        for sample in samples:
            if sample.finish_reason == FINISH_REASON_ABORTED:
                continue
            arm = self._arms[sample.id]
            cut = sample.finish_reason == FINISH_REASON_LENGTH and sample.id in blanks
            if cut and arm.length:
                self._cut.add(sample.id)
            seen = self._lengths.get(id(arm), UNSEEN)
            self._lengths[id(arm)] = seen.and_one(sample.tokens, cut)

    def _votes(self) -> Votes:
        arms = tuple(dict.fromkeys(self._arms.values()))
        row = {id(arm): number for number, arm in enumerate(arms)}
        counts = np.zeros((len(arms), len(self.clusters)))
        for column, cluster in enumerate(self.clusters):
            for member in cluster.members:
                counts[row[id(self._arms[member])], column] += 1
        blanks = np.zeros(len(arms))
        for sample in self.blanks:
            if sample in self._cut:
                continue
            blanks[row[id(self._arms[sample])]] += 1
        lengths = tuple(self._lengths.get(id(arm), UNSEEN) for arm in arms)
        return Votes(arms, counts, blanks, lengths, self._evidence() if self._said else None)

    def _evidence(self) -> Array:
        """What the scores of each cluster's samples say together, by arm, in log-odds; shape (J,)."""
        evidence = np.zeros(len(self.clusters))
        for column, cluster in enumerate(self.clusters):
            said: dict[int, tuple[Verified, list[float]]] = {}
            for member in cluster.members:
                if member in self._said:
                    verified, told = self._said[member]
                    said.setdefault(id(verified), (verified, []))[1].append(told)
            evidence[column] = sum(verified.together(sum(all), len(all)) for verified, all in said.values())
        return evidence
