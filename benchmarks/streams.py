"""Streams of queries with stored samples, played by the real planner without services.

A query of a stream has all the samples that it can get: every policy that plays it sees the same ones.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from isoflop.errors import FailedPrecondition
from isoflop.v1.aggregation_pb2 import AggregateResponse, Cluster
from isoflop.v1.common_pb2 import FINISH_REASON_LENGTH, FINISH_REASON_STOP, Sample
from isoflop.v1.router_pb2 import SolveRequest

from router import cost, price
from router.decision import UNLIMITED, State
from router.period import Period
from router.planner import Planner
from router.price import Window
from router.profile import Profile
from router.progress import Progress
from router.query import Bounds, Objective, admit
from router.strategies.strategy import Candidate
from training.resampling import NO_ANSWER, Floats, Ints

RIGHT: Final = 0
"""The number of a right answer; wrong ones have others."""
BOUNDS: Final = Bounds(prompt_bytes=1 << 16, samples=1024, messages=4)
DRAWN: Final = 1024
"""Samples of each arm that a drawn query has, and different wrong answers that it has at most."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A query of a stream."""

    belief: Floats
    """Shape (D,): what is believed of its type before any sample."""
    answers: dict[tuple[str, bool], Ints]
    """By model, greedy or not: the answers of its samples, NO_ANSWER for none."""
    tokens: dict[tuple[str, bool], Ints]
    """Likewise: how long they are."""
    at: float = 0.0
    """When it comes, in windows of the budget."""
    phase: int = 0
    """Which part of the stream it is in."""


@dataclass(frozen=True)
class Played:
    """What came of a query."""

    right: bool
    flops: float
    worth: float = math.nan
    """FLOPs that a right answer was worth, where there was a price."""
    refused: bool = False
    """No plan fitted in what it was given."""


def play(planner: Planner, asked: Asked, objective: Objective, flops: float = math.inf) -> Played:
    """Solve one query within so many FLOPs."""
    query = replace(admit(SolveRequest(prompt="?"), planner.catalog, BOUNDS), objective=objective)
    progress, spent = Progress(asked.belief), 0.0
    clusters: dict[int, Cluster] = {}
    had: Counter[tuple[str, bool]] = Counter()
    while action := planner.decide(query, _state(progress, flops - spent, spent)).action:
        progress.begin(progress.round(action, "", explored=False), action)
        key = (action.model.name, action.arm.greedy)
        found, blanks = [], []
        for _ in range(action.samples):
            answer, tokens = int(asked.answers[key][had[key]]), int(asked.tokens[key][had[key]])
            cut = tokens > action.max_tokens
            sample = Sample(
                id=f"{action.model.name}/{action.arm.greedy}/{had[key]}",
                tokens=min(tokens, action.max_tokens),
                finish_reason=FINISH_REASON_LENGTH if cut else FINISH_REASON_STOP,
            )
            had[key] += 1
            prompt = query.prompt_bytes * action.arm.prompt_tokens_per_byte
            spent += cost.samples(action.model, 1, prompt, sample.tokens).flops
            found.append(Candidate(sample))
            if cut or answer == NO_ANSWER:
                blanks.append(sample.id)
            else:
                clusters.setdefault(answer, Cluster(answer=str(answer))).members.append(sample.id)
        progress.take(action, found, AggregateResponse(clusters=clusters.values()), blanks, by_scores=False)
    right = bool(progress.clusters) and progress.clusters[0].answer == str(RIGHT)
    return Played(right, spent)


def _state(progress: Progress, left: float, spent: float) -> State:
    return progress.state(replace(UNLIMITED, flops=left), math.inf, spent, {})


def draw(profile: Profile, at: int, seed: int, sd: float = 0.5) -> Asked:
    """A query of one type, as the curves of a profile have it; what is believed beforehand errs by `sd`.

    Its samples are right with a chance of its own, drawn from the type's Beta; wrong answers fall into
    clusters as in Ewens's formula (broken sticks).
    """
    rng = np.random.default_rng((seed, at))
    answers: dict[tuple[str, bool], Ints] = {}
    tokens: dict[tuple[str, bool], Ints] = {}
    chances: dict[str, float] = {}
    for arm in profile.arms:
        if arm.model not in chances:
            p = float(arm.p_right[at])
            chances[arm.model] = rng.beta(arm.concentration * p, arm.concentration * (1 - p))
        broken = rng.beta(1.0, np.broadcast_to(arm.scatter, profile.grid.shape)[at], DRAWN)
        shares = broken * np.cumprod(np.concatenate([[1.0], 1 - broken[:-1]]))
        wrong = 1 + np.random.default_rng((seed, at, 1)).permutation(DRAWN)
        key = (arm.model, arm.greedy)
        right = rng.random(DRAWN) < chances[arm.model]
        answers[key] = np.where(right, RIGHT, rng.choice(wrong, DRAWN, p=shares / shares.sum()))
        tokens[key] = np.maximum(1, arm.tokens[at] * rng.lognormal(-0.02, 0.2, DRAWN)).astype(np.int64)
    mean = float(profile.grid[at] + sd * rng.standard_normal())
    return Asked(profile.belief(mean, sd), answers, tokens)


def priced(planner: Planner, stream: Sequence[Asked], flops: float) -> list[Played]:
    """Dual ascent: each query at the worth that the price says, within its share of the window."""
    window = Window(flops, Period.of(1.0))
    pace = price.begin(window, planner.profile.efforts["medium"], stream[0].at)
    out = []
    for asked in stream:
        worth = pace.worth
        share, left = price.share(window, pace, asked.at), price.left(window, pace, asked.at)
        objective = Objective(worth, None, "medium")
        # As in `router.purse`: where its share pays for no plan, all that is left may.
        played = attempt(planner, asked, objective, share) or attempt(planner, asked, objective, left)
        if played:
            pace = price.settle(window, pace, played.flops, asked.at)
        out.append(replace(played or NOTHING, worth=worth))
    return out


def constant(planner: Planner, stream: Sequence[Asked], worth: float) -> list[Played]:
    """Each query at the same worth, whatever that comes to."""
    objective = Objective(worth, None, "medium")
    return [replace(play(planner, asked, objective), worth=worth) for asked in stream]


def limited(planner: Planner, stream: Sequence[Asked], flops: float) -> list[Played]:
    """Each query has the same limit, and whatever raises accuracy within it."""
    return [attempt(planner, asked, MOST_ACCURATE, flops) or NOTHING for asked in stream]


def rolled(planner: Planner, stream: Sequence[Asked], flops: float) -> list[Played]:
    """Each query has its share of what is left, so that what one leaves goes on to the next ones."""
    out: list[Played] = []
    for number, asked in enumerate(stream):
        share = flops / (len(stream) - number)
        out.append(attempt(planner, asked, MOST_ACCURATE, share) or NOTHING)
        flops -= out[-1].flops
    return out


def within(played: Sequence[Played], flops: float) -> list[Played]:
    """The same until the budget is spent; who comes then is refused."""
    spent = np.cumsum([one.flops for one in played])
    return [one if total <= flops else NOTHING for one, total in zip(played, spent, strict=True)]


def attempt(planner: Planner, asked: Asked, objective: Objective, flops: float) -> Played | None:
    """Solve one query; None where no plan fits."""
    try:
        return play(planner, asked, objective, flops)
    except FailedPrecondition:
        return None


MOST_ACCURATE: Final = Objective(None, None, "most")
NOTHING: Final = Played(False, 0.0, refused=True)
