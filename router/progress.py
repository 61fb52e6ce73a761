"""What has come of a query so far: candidates, votes, and what they say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from isoflop.v1.aggregation_pb2 import AggregateResponse, Cluster
from isoflop.v1.common_pb2 import FINISH_REASON_ABORTED, FINISH_REASON_LENGTH, Sample
from isoflop.v1.router_pb2 import Round, Savings, Tally

from router.belief import NO_VOTES, Posterior, Votes, update
from router.cost import Cost
from router.decision import Action, State
from router.lengths import UNSEEN, Array, Lengths
from router.profile import Arm, Verified, together
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
        self.lost: dict[str, list[int]] = {}
        """Numbers of samples that were bought and did not come, by model: they are asked for again first."""
        self.numbered: dict[str, int] = {}
        """Samples that ran, by model: those of a search that it did not return, too."""
        self.deep: set[Arm] = set()
        """Measured strategies that were bought."""
        self.greedy: set[str] = set()
        """Models whose greedy sample was bought."""
        self.votes = NO_VOTES
        self.posterior: Posterior = update(prior, NO_VOTES)
        """What the votes say."""

    def round(self, action: Action, reason: str, *, explored: bool) -> Round:
        """The next round, as it is planned; `explored`: otherwise than the planner would."""
        return Round(
            index=len(self.rounds),
            action=action.message(),
            reason=reason,
            confidence_before=self.confidence,
            explored=explored,
        )

    def numbers(self, action: Action) -> tuple[list[int], int]:
        """Numbers of its samples that are asked for again, and the first of the others, among the model's."""
        lost = [] if action.search else self.lost.get(action.model.name, [])
        return lost[: action.samples], self.numbered.get(action.model.name, 0)

    def begin(self, round: Round, action: Action) -> None:
        """A round begins: its samples are bought."""
        self.rounds.append(round)
        name, (again, first) = action.model.name, self.numbers(action)
        if again:
            self.lost[name] = self.lost[name][len(again) :]
        self.bought[name] = self.bought.get(name, 0) + action.samples
        self.numbered[name] = first + action.samples - len(again)
        if action.arm.greedy:
            self.greedy.add(name)
        if action.deep and action.deep.once:
            self.deep.add(action.arm)

    def end(self, round: Round, action: Action, flops: float, numbered: int, lost: int = 0) -> None:
        """A round has ended, and took so many FLOPs; what has not come of it and was not `lost` was aborted.

        But for a search: where its chains are the same, it has fewer. The model's next sample is number
        `numbered`.
        """
        self.numbered[action.model.name] = numbered
        round.aborted = 0 if action.search else action.samples - round.completed - lost
        round.flops = flops
        round.confidence_after = self.confidence

    def lose(self, action: Action, numbers: Sequence[int]) -> None:
        """Samples that were bought did not come, as their backend failed: as if they were not bought."""
        name = action.model.name
        self.bought[name] -= len(numbers)
        if not self.bought[name]:
            del self.bought[name]
        if action.arm.greedy:
            self.greedy.discard(name)
        if action.search:
            self.deep.discard(action.arm)
        else:
            self.lost[name] = sorted([*self.lost.get(name, ()), *numbers])

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

    def state(self, left: Cost, seconds: float, spent: float, pace: dict[str, float]) -> State:
        """All that is known, with so much money and time left, and so many FLOPs spent."""
        return State(
            self.posterior,
            self.confidence,
            dict(self.bought),
            frozenset(self.greedy),
            left,
            seconds,
            spent,
            self.votes,
            pace,
            frozenset(self.deep),
        )

    def savings(self) -> Savings:
        """Samples that were not run to their end, and how much less than expected their rounds took."""
        cut = [round for round in self.rounds if round.aborted]
        return Savings(
            samples=sum(round.aborted for round in cut),
            flops=sum(max(0.0, round.action.expected_flops - round.flops) for round in cut),
        )

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
        """What the scores of each cluster's samples say together, in log-odds; shape (J,).

        What fools a verifier in one model's solution fools it in another's: all count as alike.
        """
        evidence = np.zeros(len(self.clusters))
        for column, cluster in enumerate(self.clusters):
            said = [self._said[member] for member in cluster.members if member in self._said]
            if said:
                alike = sum(verified.alike for verified, _ in said) / len(said)
                evidence[column] = together(sum(told for _, told in said), len(said), alike)
        return evidence
