"""How two profiles differ: arms, curves by thirds of difficulty, ceilings, efforts, what they would decide.

Latent difficulty is of each profile's own calibration queries, so thirds are of their prior: the easiest
third of the queries, the middle, the hardest. Pure functions.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from isoflop.v1.common_pb2 import Model
from isoflop.v1.router_pb2 import EFFORT_HIGH, EFFORT_LOW, EFFORT_MEDIUM, SolveRequest

from router.belief import NO_VOTES, Votes, update
from router.catalog import Catalog
from router.decision import UNLIMITED, State
from router.lengths import Array
from router.planner import Planner
from router.profile import MOST_VOTES, Arm, Profile
from router.query import Bounds, admit
from router.shadow import begins

PROMPT = "x" * 100
"""Stands for the query of a reference state: only its length counts."""
ROUND_SAMPLES = 4
SD = 0.5
"""Of the estimate of difficulty in reference states."""
BALLOTS = ((1,), (2,), (1, 1))
"""Votes by answer in reference states, of each model: one; two that agree; two that do not."""


@dataclass(frozen=True)
class Curves:
    """An arm in three thirds of difficulty, the easiest first."""

    model: str
    temperature: float
    accuracy: tuple[float, ...]
    """P(one sample is right)."""
    tokens: tuple[float, ...]
    """Expected, of a sample."""


@dataclass(frozen=True)
class Limit:
    """A ceiling of accuracy with its 95 % interval."""

    ceiling: float
    low: float
    high: float


@dataclass(frozen=True)
class Ceiling:
    """That of one model and strategy on all queries, or those of a bin, where both profiles have a law."""

    model: str
    temperature: float | None
    strategy: str
    verifier: str
    bin: tuple[int, int] | None
    """Which of how many, the easiest is 1; none: all queries."""
    before: Limit | None
    """None: there was none within what was measured; likewise after."""
    after: Limit | None

    @property
    def is_certain(self) -> bool:
        """Whether it came or went, or the intervals are apart."""
        if self.before is None or self.after is None:
            return True
        return self.before.high < self.after.low or self.after.high < self.before.low


@dataclass(frozen=True)
class Difference:
    """From profile `a` to `b`."""

    added: tuple[Curves, ...]
    gone: tuple[Curves, ...]
    both: tuple[tuple[Curves, Curves], ...]
    efforts: dict[str, tuple[float, float]]
    """FLOPs that a right answer is worth, by effort."""
    ceilings: tuple[Ceiling, ...]
    """Those that changed."""
    states: int
    """Reference states that both have decided; 0: the catalogue has no model that both have measured."""
    otherwise: int
    """Those of them in which the two would do something else."""


def curves(profile: Profile) -> list[Curves]:
    """Each arm in thirds."""
    weights = profile.bins(3)
    return [_curves(arm, weights) for arm in profile.arms]


def _curves(arm: Arm, weights: Array) -> Curves:
    return Curves(
        arm.model,
        arm.temperature,
        tuple(float(value) for value in weights @ arm.p_right),
        tuple(float(value) for value in weights @ arm.tokens),
    )


def difference(a: Profile, b: Profile, catalog: Catalog) -> Difference:
    """How they differ, over a catalogue of models."""
    before, after = ({(arm.model, arm.temperature): arm for arm in curves(one)} for one in (a, b))
    limits, later = _limits(a), _limits(b)
    states, otherwise = decided_otherwise(a, b, catalog)
    return Difference(
        added=tuple(arm for key, arm in after.items() if key not in before),
        gone=tuple(arm for key, arm in before.items() if key not in after),
        both=tuple((arm, after[key]) for key, arm in before.items() if key in after),
        efforts={name: (a.efforts[name], b.efforts[name]) for name in a.efforts if name in b.efforts},
        ceilings=tuple(
            Ceiling(*key, limit, later[key])
            for key, limit in limits.items()
            if key in later and limit != later[key]
        ),
        states=states,
        otherwise=otherwise,
    )


Key = tuple[str, float | None, str, str, tuple[int, int] | None]


def _limits(profile: Profile) -> dict[Key, Limit | None]:
    """The ceiling of each law; bins go by their order, as difficulties are of each profile's own queries."""
    bins: dict[tuple[str, float | None, str, str], list[tuple[float, float]]] = defaultdict(list)
    for law in profile.scaling:
        if law.difficulty:
            bins[law.model, law.temperature, law.strategy, law.verifier].append(law.difficulty)
    found: dict[Key, Limit | None] = {}
    for law in profile.scaling:
        key = (law.model, law.temperature, law.strategy, law.verifier)
        place = (sorted(bins[key]).index(law.difficulty) + 1, len(bins[key])) if law.difficulty else None
        limit = None
        if law.ceiling is not None and law.ceiling_interval:
            limit = Limit(law.ceiling, *law.ceiling_interval)
        found[*key, place] = limit
    return found


def decided_otherwise(a: Profile, b: Profile, catalog: Catalog) -> tuple[int, int]:
    """How many reference states there are, and in how many the two would buy something else.

    States are efforts × estimates of difficulty (the means of the thirds) × votes: none,
    and BALLOTS of each model that both have measured.
    """
    models = [
        model
        for name, model in catalog.models.items()
        if all(any(arm.model == name for arm in one.arms) for one in (a, b))
    ]
    if not models:
        return 0, 0
    decisions = [list(_decisions(one, catalog, models)) for one in (a, b)]
    return len(decisions[0]), sum(one != other for one, other in zip(*decisions, strict=True))


def _decisions(profile: Profile, catalog: Catalog, models: Sequence[Model]) -> Iterator[object]:
    planner = Planner(profile, catalog, ROUND_SAMPLES)
    bounds = Bounds(len(PROMPT), MOST_VOTES, 1)
    ballots = [(None, ()), *itertools.product(models, BALLOTS)]
    for effort in (EFFORT_LOW, EFFORT_MEDIUM, EFFORT_HIGH):
        query = admit(SolveRequest(prompt=PROMPT, effort=effort), catalog, bounds)
        for mean in profile.bins(3) @ profile.grid:
            belief = profile.belief(float(mean), SD)
            for model, ballot in ballots:
                votes, bought = NO_VOTES, {}
                if model:
                    arm = profile.arm(model, greedy=False, temperature=None)
                    votes = Votes((arm,), np.array([ballot], dtype=float), np.zeros(1))
                    bought = {model.name: sum(ballot)}
                posterior = update(belief, votes)
                state = State(
                    posterior=posterior,
                    confidence=posterior.confidence,
                    bought=bought,
                    greedy=frozenset(),
                    left=UNLIMITED,
                    seconds=math.inf,
                    votes=votes,
                )
                yield begins(planner.decide(query, state))
