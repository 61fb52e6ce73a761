"""How good the scores of steps are. Pure functions over scored chains.

A step counts where it has a label: up to the first that is wrong. "Found wrong" means that its score is below
the verifier's threshold, which was chosen on calibration labels.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from isoflop.v1.verification_pb2 import (
    CHAIN_SCORING_LAST,
    CHAIN_SCORING_MEAN,
    CHAIN_SCORING_MIN,
    CHAIN_SCORING_PRODUCT,
)
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from router.strategies.scoring import chain_score
from training.labels import Chain

Array = NDArray[np.float64]
K = TypeVar("K", bound=Hashable)

SCORINGS = {
    "min": CHAIN_SCORING_MIN,
    "product": CHAIN_SCORING_PRODUCT,
    "last": CHAIN_SCORING_LAST,
    "mean": CHAIN_SCORING_MEAN,
}
"""Rules from step scores to a chain's score, by the names of verifier.json."""
BINS = 10
"""Of equal width, for the calibration error."""
RESAMPLES = 500
"""Bootstrap samples of the problems, for 95 % intervals."""
DRAWS = 20
"""Random subsets of the chains of a problem, where a plan takes fewer than there are."""


@dataclass(frozen=True)
class Scored:
    """A chain and the verifier's scores of its steps, each in [0, 1]."""

    chain: Chain
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Steps:
    """The labelled steps of many chains, side by side."""

    scores: Array
    right: Array
    """1 where the step is right, else 0."""
    problem: NDArray[np.int64]
    """Number of the step's problem."""
    problems: int


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % bootstrap interval over problems; NaN where it is not defined."""

    value: float
    low: float
    high: float


def steps_of(chains: Iterable[Scored]) -> Steps:
    """The steps that have a label."""
    numbers: dict[str, int] = {}
    rows = [
        (score, float(step.is_right), numbers.setdefault(one.chain.problem, len(numbers)))
        for one in chains
        for step, score in zip(one.chain.steps, one.scores, strict=True)
        if step.is_right is not None and step.weight
    ]
    scores, right, problem = zip(*rows, strict=True) if rows else ((), (), ())
    return Steps(np.array(scores), np.array(right), np.array(problem, np.int64), len(numbers))


def auc(right: Array, scores: Array, weights: Array | None = None) -> float:
    """Chance that a right step scores higher than a wrong one; NaN where there are no two classes."""
    if not _two_classes(right, weights):
        return math.nan
    return float(roc_auc_score(right, scores, sample_weight=weights))


def wrong_precision(right: Array, scores: Array, weights: Array | None = None) -> float:
    """Average precision of finding wrong steps by low scores; chance gets the share of wrong steps."""
    if not _two_classes(right, weights):
        return math.nan
    return float(average_precision_score(1 - right, -scores, sample_weight=weights))


def _two_classes(right: Array, weights: Array | None) -> bool:
    counted = right if weights is None else right[weights > 0]
    return len(np.unique(counted)) == 2


def reliability(
    right: Array, scores: Array, weights: Array | None = None
) -> list[tuple[float, float, float]]:
    """For each bin that is not empty: mean score, share of right steps, and steps."""
    counts = np.ones_like(scores) if weights is None else weights
    number = np.minimum((scores * BINS).astype(int), BINS - 1)
    total, said, was = (np.bincount(number, of, BINS) for of in (counts, counts * scores, counts * right))
    return [
        (said[bin] / total[bin], was[bin] / total[bin], total[bin]) for bin in range(BINS) if total[bin] > 0
    ]


def calibration_error(right: Array, scores: Array, weights: Array | None = None) -> float:
    """Expected calibration error: mean distance between score and share of right steps, over bins."""
    bins = reliability(right, scores, weights)
    total = sum(count for _, _, count in bins)
    return sum(abs(said - was) * count for said, was, count in bins) / total if total else math.nan


def brier(right: Array, scores: Array, weights: Array | None = None) -> float:
    """Mean squared distance between score and label."""
    if not len(scores) or (weights is not None and not weights.sum()):
        return math.nan
    return float(np.average((scores - right) ** 2, weights=weights))


def estimate(figure: Callable[[Array, Array, Array | None], float], steps: Steps, seed: int = 0) -> Estimate:
    """A figure of steps, with its interval: problems are drawn with replacement, with all their steps."""
    value = figure(steps.right, steps.scores, None)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(RESAMPLES if steps.problems else 0):
        counts = np.bincount(rng.integers(0, steps.problems, steps.problems), minlength=steps.problems)
        drawn.append(figure(steps.right, steps.scores, counts[steps.problem].astype(float)))
    kept = [one for one in drawn if not math.isnan(one)]
    if math.isnan(value) or not kept:
        return Estimate(value, math.nan, math.nan)
    low, high = np.quantile(kept, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


@dataclass(frozen=True)
class FirstError:
    """Whether the first error is found, as ProcessBench counts (arXiv 2412.06559)."""

    wrong: float
    """Of the chains with an error, the share in which the first step found wrong is the first error."""
    right: float
    """Of the chains without one, the share in which no step is found wrong."""
    wrong_chains: int
    right_chains: int

    @property
    def f1(self) -> float:
        """Harmonic mean of both; NaN where there are no chains of one kind."""
        if math.isnan(self.wrong + self.right):
            return math.nan
        return 2 * self.wrong * self.right / (self.wrong + self.right) if self.wrong + self.right else 0.0


def first_error(chains: Iterable[Scored], threshold: float) -> FirstError:
    """Over whole solutions that are judged up to their first error."""
    hits: tuple[list[bool], list[bool]] = ([], [])
    for one in chains:
        if not (one.chain.is_sample and one.chain.is_judged):
            continue
        truth = one.chain.first_error
        found = next((index for index, score in enumerate(one.scores) if score < threshold), None)
        hits[truth is None].append(found == truth)
    wrong, right = hits
    return FirstError(
        sum(wrong) / len(wrong) if wrong else math.nan,
        sum(right) / len(right) if right else math.nan,
        len(wrong),
        len(right),
    )


def best_threshold(chains: Sequence[Scored]) -> float:
    """The threshold, of percents, with the best first-error F1; one half where labels do not say."""
    percents = [percent / 100 for percent in range(1, 100)]
    return max(percents, key=lambda at: (_number(first_error(chains, at).f1), -abs(at - 0.5)))


def _number(value: float) -> float:
    return -1.0 if math.isnan(value) else value


@dataclass(frozen=True)
class Plans:
    """Accuracy of plans that choose among n given chains of a problem."""

    n: int
    best: float
    """The answer of the chain with the best score."""
    weighted: float
    """The answer with the largest sum of scores."""
    majority: float
    """The most frequent answer, ties by lot."""
    reachable: float
    """A chain with the right answer is among them."""


def solved(chains: Iterable[Scored]) -> list[list[Scored]]:
    """Whole solutions by problem and model, where it is known of each whether it reached the answer."""
    groups = by(
        (one for one in chains if one.chain.is_sample), lambda one: (one.chain.problem, one.chain.model)
    )
    return [group for group in groups.values() if all(one.chain.reached is not None for one in group)]


def plans(chains: Iterable[Scored], scoring: str, seed: int = 0) -> list[Plans]:
    """For n = 1, 2, 4, ... up to what half of the problems have; means over problems and models.

    Problems with fewer solutions are left out.
    """
    groups = solved(chains)
    most = int(np.median([len(group) for group in groups])) if groups else 0
    groups = [group for group in groups if len(group) >= most]
    sizes = [2**power for power in range(most.bit_length()) if 2**power <= most]
    if most and most not in sizes:
        sizes.append(most)
    rng = np.random.default_rng(seed)
    results = []
    for n in sizes:
        rows = [
            np.mean(
                [_choose([group[i] for i in drawn], scoring) for drawn in _subsets(len(group), n, rng)], 0
            )
            for group in groups
        ]
        results.append(Plans(n, *(float(mean) for mean in np.mean(rows, 0))))
    return results


def _subsets(total: int, n: int, rng: np.random.Generator) -> list[list[int]]:
    if n == total:
        return [list(range(total))]
    if n == 1:
        return [[index] for index in range(total)]
    return [rng.permutation(total)[:n].tolist() for _ in range(DRAWS)]


def _choose(chains: Sequence[Scored], scoring: str) -> tuple[float, float, float, float]:
    """The chance of each plan to be right on these chains."""
    scores = [chain_score(one.scores, SCORINGS[scoring]) for one in chains]
    votes: Counter[str] = Counter()
    weights: defaultdict[str, float] = defaultdict(float)
    is_right: dict[str, bool] = {}
    for one, score in zip(chains, scores, strict=True):
        if one.chain.answer is not None:
            votes[one.chain.answer] += 1
            weights[one.chain.answer] += score
            is_right[one.chain.answer] = bool(one.chain.reached)
    best = [
        bool(one.chain.reached) for one, score in zip(chains, scores, strict=True) if score == max(scores)
    ]
    return (
        sum(best) / len(best),
        _share_right(weights, is_right),
        _share_right(votes, is_right),
        float(any(one.chain.reached for one in chains)),
    )


def _share_right(weights: Mapping[str, float], is_right: Mapping[str, bool]) -> float:
    """Chance that the leader is right, ties by lot; 0 where there is no answer."""
    most = max(weights.values(), default=0.0)
    leaders = [is_right[answer] for answer, weight in weights.items() if weight == most]
    return sum(leaders) / len(leaders) if leaders else 0.0


def best_scoring(chains: Sequence[Scored]) -> tuple[str, dict[str, float]]:
    """The rule that chooses best among the chains of a problem, and the accuracy of each rule.

    `min` where no problem has several chains that are not all alike, and where rules are equal.
    """
    groups = [group for group in solved(chains) if len({one.chain.reached for one in group}) == 2]
    if not groups:
        return "min", {}
    accuracy = {
        scoring: float(np.mean([_choose(group, scoring)[0] for group in groups])) for scoring in SCORINGS
    }
    return max(accuracy, key=lambda scoring: accuracy[scoring]), accuracy


def by(chains: Iterable[Scored], key: Callable[[Scored], K]) -> dict[K, list[Scored]]:
    """Chains by a key, in the order in which keys come."""
    groups: dict[K, list[Scored]] = {}
    for one in chains:
        groups.setdefault(key(one), []).append(one)
    return groups


@dataclass(frozen=True)
class ErrorKind:
    """First errors of one kind."""

    kind: str
    steps: int
    found: float
    """Share with a score below the threshold."""
    mean_score: float
    auc: float
    """Against all right steps."""


def by_error(chains: Sequence[Scored], threshold: float) -> list[ErrorKind]:
    """Where it is fooled: by kind of error, the most frequent first."""
    steps = steps_of(chains)
    right = steps.scores[steps.right == 1]
    wrong: defaultdict[str, list[float]] = defaultdict(list)
    for one in chains:
        for step, score in zip(one.chain.steps, one.scores, strict=True):
            if step.is_right is False and step.weight:
                wrong[step.error or "not told"].append(score)
    kinds = []
    for kind, scores in sorted(wrong.items(), key=lambda item: -len(item[1])):
        labels = np.concatenate([np.ones(len(right)), np.zeros(len(scores))])
        kinds.append(
            ErrorKind(
                kind,
                len(scores),
                float(np.mean(np.array(scores) < threshold)),
                float(np.mean(scores)),
                auc(labels, np.concatenate([right, scores])),
            )
        )
    return kinds


@dataclass(frozen=True)
class Mistake:
    """A step that the verifier is sure of, and wrongly."""

    problem: str
    before: tuple[str, ...]
    """The steps before it."""
    step: str
    score: float
    error: str
    model: str


def confident_mistakes(chains: Iterable[Scored], most: int) -> tuple[list[Mistake], list[Mistake]]:
    """Wrong steps with the highest scores, and right steps with the lowest; one of each problem."""
    mistakes: dict[tuple[bool, str], Mistake] = {}
    for one in chains:
        for index, (step, score) in enumerate(zip(one.chain.steps, one.scores, strict=True)):
            if step.is_right is None or not step.weight:
                continue
            key = (step.is_right, one.chain.problem)
            worse = score < mistakes[key].score if key in mistakes else False
            if key not in mistakes or worse == step.is_right:
                before = tuple(step.text for step in one.chain.steps[:index])
                mistakes[key] = Mistake(
                    one.chain.problem, before, step.text, score, step.error, one.chain.model
                )
    wrong = [mistake for (is_right, _), mistake in mistakes.items() if not is_right]
    right = [mistake for (is_right, _), mistake in mistakes.items() if is_right]
    return (
        sorted(wrong, key=lambda mistake: -mistake.score)[:most],
        sorted(right, key=lambda mistake: mistake.score)[:most],
    )
