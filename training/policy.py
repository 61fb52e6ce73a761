"""The planner on recorded queries: what it buys of their samples, whether that is right, and what it costs.

No service takes part. Samples of a query come in an order that a seed decides, whole rounds at a time, so
that what the router spares by aborting a round is not in it; a query has as many samples of a model as the
planner is told that there are. Each prompt is counted once a query and model, as if it were cached from then
on.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from isoflop.v1.aggregation_pb2 import AggregateResponse, Cluster
from isoflop.v1.common_pb2 import FINISH_REASON_LENGTH, FINISH_REASON_STOP, Sample
from isoflop.v1.router_pb2 import EFFORT_HIGH, EFFORT_LOW, EFFORT_MEDIUM, SolveRequest
from isoflop.v1.verification_pb2 import ChainScore

from router import cost
from router.cost import Cost
from router.decision import UNLIMITED, Action
from router.planner import Planner
from router.progress import Progress
from router.query import Bounds, Query, admit
from router.strategies.strategy import Candidate
from training.measured import Array, Measured, Samples

BOUNDS = Bounds(prompt_bytes=1 << 24, samples=1, messages=1)
EFFORTS = {"low": EFFORT_LOW, "medium": EFFORT_MEDIUM, "high": EFFORT_HIGH}
"""By the names that profiles have for them."""
RIGHT = "right"
"""Stands for the answer of all samples that are."""


@dataclass(frozen=True)
class Solved:
    """A query as it was played."""

    right: bool
    cost: Cost
    query: Query
    """As it was admitted."""
    difficulty: Array
    """What was believed of its type at the end, shape (D,)."""


def play(planner: Planner, asked: Measured, effort: str, belief: tuple[float, float], seed: int) -> Solved:
    """One query at one effort; `belief`: mean and standard deviation of an estimate of its difficulty."""
    request = SolveRequest(prompt=asked.prompt or asked.query_id, effort=EFFORTS[effort])
    query = admit(request, planner.catalog, BOUNDS)
    progress, recorded, spent = Progress(planner.profile.belief(*belief)), Recorded(asked, seed), Cost()
    while action := planner.decide(query, progress.state(UNLIMITED, math.inf, spent.flops, {})).action:
        _, first = progress.numbers(action)
        progress.begin(progress.round(action, "", explored=False), action)
        candidates, price = recorded.buy(action, first)
        blanks = [one.sample.id for one in candidates if not one.sample.text]
        progress.take(action, candidates, recorded.tally, blanks, by_scores=False)
        spent += price
    right = bool(progress.clusters) and progress.clusters[0].answer == RIGHT
    return Solved(right, spent, query, progress.posterior.difficulty)


class Recorded:
    """The samples of one query, as they are bought."""

    def __init__(self, asked: Measured, seed: int) -> None:
        self._asked = asked
        self._rng = np.random.default_rng(seed)
        self._orders: dict[str, Sequence[int]] = {}
        self._read: set[str] = set()
        """Models that have read the prompt."""
        self._members: dict[str, list[str]] = defaultdict(list)
        """By answer, the ids of its samples."""

    @property
    def tally(self) -> AggregateResponse:
        """What was bought, by answer: the one with most votes first."""
        order = sorted(self._members.items(), key=lambda item: -len(item[1]))
        return AggregateResponse(
            clusters=[Cluster(answer=answer, members=ids, weight=len(ids)) for answer, ids in order]
        )

    def buy(self, action: Action, first: int) -> tuple[list[Candidate], Cost]:
        """The round's samples, from number `first` of the model's on, and what they cost."""
        candidates, price = [], Cost()
        for number, (samples, place) in enumerate(self._drawn(action, first), start=first):
            candidate, tokens = _candidate(action, f"{action.model.name}/{number}", samples, place)
            candidates.append(candidate)
            if candidate.sample.text:
                self._members[candidate.sample.text].append(candidate.sample.id)
            price += self._price(action, samples.prompt_tokens, tokens)
        return candidates, price

    def _drawn(self, action: Action, first: int) -> list[tuple[Samples, int]]:
        """For each sample of a round where it is: among which, and the place."""
        name = action.model.name
        if action.temperature == 0:
            return [(self._asked.greedy[name], 0)]
        samples = self._asked.samples[name]
        if name not in self._orders:
            self._orders[name] = self._rng.permutation(len(samples.answers)).tolist()
        return [(samples, place) for place in self._orders[name][first : first + action.samples]]

    def _price(self, action: Action, prompt: int, tokens: float) -> Cost:
        model = action.model
        price = Cost(*cost.sample(model, prompt, tokens, action.verifier))
        if model.name in self._read:
            price -= Cost(*cost.cached(model, prompt), prompt)
        self._read.add(model.name)
        return price


def _candidate(action: Action, name: str, samples: Samples, place: int) -> tuple[Candidate, float]:
    """A sample with its score, cut where it is longer than it may be; and its tokens."""
    tokens = min(float(samples.tokens[place]), action.max_tokens)
    whole = tokens == samples.tokens[place]
    answer = RIGHT if samples.right[place] else samples.answers[place]
    sample = Sample(
        id=name,
        text=answer if whole and answer else "",
        tokens=int(tokens),
        finish_reason=FINISH_REASON_STOP if whole else FINISH_REASON_LENGTH,
    )
    if action.verifier is None:
        return Candidate(sample), tokens
    score = float(samples.scores[action.verifier.name][place])
    if math.isnan(score):
        return Candidate(sample, 0.0), tokens
    return Candidate(sample, score, ChainScore(id=name, steps=[score])), tokens
