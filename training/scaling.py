"""Fits of scaling laws: accuracy over the number of samples, by model, strategy and bin of difficulty.

Accuracy of n samples is that of subsets of the stored ones, ties shared out (`training.resampling`).

**Bins.** A query must not be called hard for the very samples that are then found to be wrong. So samples
are split in halves, the even and the odd ones: an item-response model of one half of all models' samples
(`training.irt`) says into which bin a query belongs, the other half is measured; and the other way round.
Curves of bins reach to half of the stored samples, those of all queries, where nothing is selected, to all.

**Fits** are weighted least squares, weights being one over the squared standard errors of the points. Each
form is a start at n = 1 and an end, both in [0, 1], and a weight that moves from one to the other at a rate;
at a given rate the best start and end have a closed form, and rates are searched. So a fit cannot be stuck,
and a thousand resampled curves are fitted at once.

**The form** is chosen by what it has not seen: fitted up to N/4 samples, where that leaves four points at
least, it is asked for all larger ones; otherwise it is fitted on four fifths of the queries and compared with
the curve of the others, each fifth in turn. It is then fitted to all points. Intervals come from queries
that are resampled, for the chosen form.

**A ceiling** is told where the chosen form has one and the queries tell it: see `_ceiling`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Final, Literal

import numpy as np
from isoflop.passes import pass_at

from router.scaling import FORMS, PARAMETERS, STRATEGIES, Form, ScalingRecord, Strategy
from training import irt
from training.resampling import (
    NO_ANSWER,
    Bools,
    Floats,
    Ints,
    bests,
    interval,
    permutations,
    resamples,
    votes,
)

RESAMPLES: Final = 1000
"""Of queries, for intervals."""
FOLDS: Final = 5
"""Of queries, where the form is chosen by other queries."""
LEAST_POINTS: Final = 4
"""Points up to N/4, that a form is chosen by larger n: one more than it has parameters, at most."""
LEAST_QUERIES: Final = 30
"""Of a bin, on average: where there are fewer, there are fewer bins."""
IDENTIFIED: Final = 0.1
"""Widest 95 % interval of the rise from the last point to a ceiling with which that is told."""
_NEVER_ENDS: Final = 0.999
"""A limit from here on is none: everything becomes right, which no data can tell."""
_RATES: Final = 48
"""First tried, then refined between neighbours."""
_REFINEMENTS: Final = 4
_EXPONENTS: Final = (0.05, 4.0)
"""Least and greatest exponent of a power law."""
_SCALES: Final = (0.25, 4.0)
"""Least n0 of the saturating form, and the greatest as a multiple of the largest n."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What one model's samples said; Q queries, N samples of each."""

    model: str
    temperature: float | None
    answers: Ints
    """Shape (Q, N): equal numbers for equal answers to a query, NO_ANSWER for none."""
    right: Ints
    """Shape (Q,): the number of the right answer; NO_ANSWER: nobody gave it."""
    scores: Floats | None = None
    """Shape (Q, N): of the chains, in [0, 1], by the verifier; none: there is none."""
    verifier: str = ""

    @property
    def is_right(self) -> Bools:
        """Shape (Q, N)."""
        right: Bools = (self.answers == self.right[:, None]) & (self.answers != NO_ANSWER)
        return right

    @property
    def strategies(self) -> tuple[Strategy, ...]:
        """Those that can be measured."""
        return STRATEGIES if self.scores is not None else ("majority", "pass_at_n")

    def half(self, which: int) -> Outcomes:
        """The even samples (0), or the odd ones (1)."""
        answers = self.answers[:, which::2]
        given = (answers == self.right[:, None]).any(1)
        return Outcomes(
            self.model,
            self.temperature,
            answers,
            np.where(given, self.right, NO_ANSWER),
            None if self.scores is None else self.scores[:, which::2],
            self.verifier,
        )


@dataclass(frozen=True, eq=False)
class Points:
    """A measured curve: what a law is drawn beside. S numbers of samples."""

    samples: Ints
    """Shape (S,): rising."""
    accuracy: Floats
    """Shape (S,)."""
    low: Floats
    """Shape (S,): of the 95 % interval, from resampled queries."""
    high: Floats
    """Shape (S,)."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """One form, fitted to R curves."""

    form: Form
    start: Floats
    """Shape (R,): accuracy of one sample."""
    end: Floats
    """Shape (R,): the limit; of `logarithm`, the accuracy at the largest n of the fit."""
    rate: Floats
    """Shape (R,): k, n0, or that largest n."""

    def at(self, n: Sequence[int] | Ints) -> Floats:
        """Shape (R, len(n)). Not cut at 1, beyond which the logarithm goes: that is an error of that form."""
        weight = _weight(self.form, np.asarray(n, np.float64), self.rate[:, None])
        return np.asarray(self.start[:, None] * weight + self.end[:, None] * (1 - weight))

    def parameters(self) -> dict[str, float]:
        """Of the first curve, as `router.scaling` names them."""
        start, end, rate = float(self.start[0]), float(self.end[0]), float(self.rate[0])
        match self.form:
            case "logarithm":
                return {"a": start, "c": (end - start) / float(np.log(rate))}
            case "power":
                return {"e": 1 - end, "b": end - start, "k": rate}
            case "saturating":
                return {"ceiling": end, "b": (end - start) * float(np.exp(1 / rate)), "n0": rate}


@dataclass(frozen=True, eq=False)
class Law:
    """What was found of one curve."""

    fitted: Fitted
    """The chosen form, fitted to all points: the first as measured, then the resamples."""
    ceiling: tuple[float, float, float] | None
    """With its interval."""
    errors: dict[Form, float]
    held_out: Literal["more samples", "other queries"]
    best_n: int
    falls: bool


@dataclass(frozen=True, eq=False)
class Scaling:
    """A record for the profile, and what it was fitted to."""

    record: ScalingRecord
    points: Points
    curves: Floats
    """Shape (1 + RESAMPLES, S): as measured, then of resampled queries."""


def sizes(strategy: Strategy, most: int) -> list[int]:
    """Numbers of samples up to `most` at which a curve is measured: 1, 2, 3, 4, 6, 8, 12, ..., and `most`.

    A majority of two, ties shared out, is worth one sample by construction: it is left out.
    """
    doubled = [2**power for power in range(most.bit_length())]
    found = {n for power in doubled for n in (power, power * 3 // 2) if n <= most} | {most}
    return sorted(found - {2} if strategy == "majority" and most > 2 else found)


def per_query(one: Outcomes, strategy: Strategy, at: Sequence[int]) -> Floats:
    """Expected accuracy of n of the samples for each query and each n of `at`, shape (Q, len(at)).

    Raises ValueError where there are not so many samples, or a strategy needs scores and there are none.
    """
    _, most = one.answers.shape
    if min(at) < 1 or max(at) > most:
        raise ValueError(f"there are {most} samples of a query, and {min(at)} to {max(at)} are asked for")
    if strategy == "pass_at_n":
        # Queries with equally many right samples are alike.
        table = np.array([[pass_at(n, most, right) for n in at] for right in range(most + 1)])
        return np.asarray(table[one.is_right.sum(1)])
    if strategy == "majority":
        return votes(one.answers, one.right, at, permutations(most))
    if one.scores is None:
        raise ValueError(f"{strategy} needs scores, and there are none of {one.model}")
    if strategy == "weighted":
        return votes(one.answers, one.right, at, permutations(most), one.scores)
    return bests(np.where(one.answers == NO_ANSWER, -np.inf, one.scores), one.is_right, at)


def difficulties(models: Sequence[Outcomes]) -> Floats:
    """Latent difficulty of each query, told by the even and by the odd samples of all models; shape (2, Q).

    All models have the same queries, in the same order. Raises ValueError where a model has but one sample.
    """
    if any(one.answers.shape[1] < 2 for one in models):
        raise ValueError("samples are split in halves: two of each query are needed at least")
    told = []
    for which in (0, 1):
        halves = [one.half(which) for one in models]
        right = np.array([half.is_right.sum(1) for half in halves], float).T
        total = np.broadcast_to([float(half.answers.shape[1]) for half in halves], right.shape)
        told.append(irt.fit(right, total).difficulty)
    return np.array(told)


def scaling(one: Outcomes, difficulty: Floats, strategy: Strategy, bins: int = 3) -> list[Scaling]:
    """The law over all queries, then of each bin, easiest first: a bin is a quantile of difficulty.

    `difficulty` is that of `difficulties`, shape (2, Q). Bins have LEAST_QUERIES queries at least, on
    average, or there are fewer; none where one would be left, or where a half has less than three samples.
    Raises ValueError for fewer than two queries or two samples.
    """
    queries, most = one.answers.shape
    if queries < 2 or most < 2:
        raise ValueError(f"{one.model}: {queries} queries with {most} samples; a law needs two of each")
    whole = sizes(strategy, most)
    values = per_query(one, strategy, whole)
    found = [_scaling(one, strategy, None, whole, values[None], np.ones((1, queries), bool))]
    bins = min(bins, queries // LEAST_QUERIES)
    if bins < 2 or most < 6:
        return found
    part = sizes(strategy, most // 2)
    # Where the even samples say how hard a query is, the odd ones are measured.
    values = np.array([per_query(one.half(which), strategy, part) for which in (1, 0)])
    edges = np.quantile(difficulty, np.linspace(0, 1, bins + 1)[1:-1])
    place = np.searchsorted(edges, difficulty, side="right")
    for which in range(bins):
        inside = place == which
        # Where many queries are as hard as each other, a bin may have next to none.
        if inside.any(0).sum() >= FOLDS:
            ends = (float(difficulty[inside].min()), float(difficulty[inside].max()))
            found.append(_scaling(one, strategy, ends, part, values, inside))
    return found


def _scaling(
    one: Outcomes,
    strategy: Strategy,
    difficulty: tuple[float, float] | None,
    at: Sequence[int],
    values: Floats,
    inside: Bools,
) -> Scaling:
    """Of the queries inside; `values` has shape (H, Q, len(at)) and `inside` (H, Q), for H halves."""
    own = inside.any(0)
    values, inside = values[:, own], inside[:, own]
    queries = int(own.sum())

    def curve(weights: Floats) -> Floats:
        """Means over queries with weights, shape (R, Q), as curves, shape (R, S)."""
        means = (
            weights @ np.where(inside[:, :, None], values, 0.0).sum(0) / (weights @ inside.sum(0))[:, None]
        )
        return np.asarray(np.clip(means, 0.0, 1.0))  # A mean of ones may be rounded to more than 1.

    curves = curve(_resamples(queries))
    # Queries are often sorted, by dataset or level: every fifth is of a fold.
    folds = np.arange(queries) % FOLDS == np.arange(min(FOLDS, queries))[:, None]
    told = law(at, curves, curve((~folds).astype(float)), curve(folds.astype(float)))
    low, high = np.quantile(curves[1:], [0.025, 0.975], axis=0)
    ceiling = told.ceiling
    record = ScalingRecord(
        model=one.model,
        temperature=one.temperature,
        strategy=strategy,
        verifier=one.verifier if strategy in ("weighted", "best_of_n") else "",
        difficulty=difficulty and _rounded(difficulty),
        queries=queries,
        samples=(at[0], at[-1]),
        form=told.fitted.form,
        parameters={name: float(f"{value:.6g}") for name, value in told.fitted.parameters().items()},
        interval=_rounded(interval(np.clip(told.fitted.at([at[-1]])[1:, 0], 0.0, 1.0))),
        ceiling=ceiling and round(ceiling[0], 4),
        ceiling_interval=ceiling and _rounded(ceiling[1:]),
        errors={form: round(error, 5) for form, error in told.errors.items()},
        held_out=told.held_out,
        best_n=told.best_n,
        falls=told.falls,
    )
    return Scaling(record, Points(np.array(at), curves[0], low, high), curves)


def _rounded(interval: tuple[float, float]) -> tuple[float, float]:
    return round(interval[0], 4), round(interval[1], 4)


@lru_cache(maxsize=4)
def _resamples(queries: int) -> Floats:
    """Weights of all queries, then of resampled ones; kept, as models and strategies share their bins."""
    return np.vstack([np.full(queries, 1 / queries), resamples(queries, count=RESAMPLES)])


def law(at: Sequence[int], curves: Floats, trained: Floats, tested: Floats) -> Law:
    """The law of one curve at the numbers of samples `at`.

    `curves` has shape (1 + R, S): as measured, then of resampled queries. `trained` and `tested`, shape
    (K, S) each, are the curves of all queries but those of a fold, and of that fold; they choose the form
    where there are too few points for larger n to do so. Raises ValueError for fewer than two points, and
    for what is no accuracy.
    """
    at = list(at)
    _check(at, curves)
    weights = precision(curves)
    fitted_to = sum(4 * n <= at[-1] for n in at)
    seen, asked = at[:fitted_to], at[fitted_to:]
    told, truth = curves[:1, :fitted_to], curves[:1, fitted_to:]
    if fitted_to >= LEAST_POINTS:
        errors = {form: _error(fit(form, seen, told, weights[:fitted_to]), asked, truth) for form in FORMS}
    else:
        errors = {
            form: _error(fit(form, at, trained, weights), at, tested)
            for form in FORMS
            if len(PARAMETERS[form]) <= len(at)
        }
    # Equally good ones, as on a constant curve: the one that tells most of a limit.
    chosen = min(reversed(errors), key=lambda form: round(errors[form], 6))
    fitted = fit(chosen, at, curves, weights)
    best = int(np.argmax(curves[0]))
    falls = _falls(curves, best)
    return Law(
        fitted,
        None if falls else _ceiling(fitted, at, curves),
        errors,
        "more samples" if fitted_to >= LEAST_POINTS else "other queries",
        at[best],
        falls,
    )


def precision(curves: Floats) -> Floats:
    """Weights of the points, shape (S,): one over the squared standard errors, as resamples have them.

    An error is not taken to be less than the resolution of a hundred queries, half of one: where all
    queries are right no resample differs.
    """
    spread = curves[1:].var(0) if len(curves) > 1 else np.zeros(curves.shape[1])
    return np.asarray(1 / (spread + 0.005**2))


def fit(form: Form, at: Sequence[int], curves: Floats, weights: Floats) -> Fitted:
    """A form, fitted to each of the curves, shape (R, S), by least squares with weights of shape (S,).

    Raises ValueError for fewer points than the form has parameters, and for what is no accuracy.
    """
    _check(at, curves)
    if len(at) < len(PARAMETERS[form]):
        raise ValueError(f"{form} has {len(PARAMETERS[form])} parameters, and there are {len(at)} points")
    n, weights = np.array(at, float), weights / weights.sum()
    if form == "logarithm":
        rates = np.full((1, 1), n[-1])
    else:
        least, most = _EXPONENTS if form == "power" else (_SCALES[0], _SCALES[1] * n[-1])
        rates = np.geomspace(least, most, _RATES)[None]
    start, end, rate = _best(form, n, curves, weights, rates)
    if rates.shape[1] > 1:
        step = (most / least) ** (1 / (_RATES - 1))
        for _ in range(_REFINEMENTS):
            near = rate[:, None] * step ** np.linspace(-1, 1, 9)
            start, end, rate = _best(form, n, curves, weights, np.clip(near, least, most))
            step **= 0.25
    return Fitted(form, start, end, rate)


def _check(at: Sequence[int], curves: Floats) -> None:
    if len(at) < 2 or at[0] < 1 or any(b <= a for a, b in pairwise(at)):
        raise ValueError("a law needs two rising numbers of samples at least")
    if curves.ndim != 2 or curves.shape[1] != len(at):
        raise ValueError(f"curves of shape {curves.shape}, and {len(at)} numbers of samples")
    if not ((curves >= 0) & (curves <= 1)).all():
        raise ValueError("an accuracy is not a number in [0, 1]")


def _weight(form: Form, n: Floats, rate: Floats) -> Floats:
    """What of a form's accuracy at n is still its start: 1 at n = 1, and 0 where it has come to its end."""
    match form:
        case "logarithm":
            return np.asarray(1 - np.log(n) / np.log(rate))
        case "power":
            return np.asarray(n**-rate)
        case "saturating":
            return np.asarray(np.exp((1 - n) / rate))


def _best(
    form: Form, n: Floats, curves: Floats, weights: Floats, rates: Floats
) -> tuple[Floats, Floats, Floats]:
    """Start, end and rate of each curve, of the rates that are tried: shape (R, G), or (1, G), for all."""
    left = _weight(form, n, rates[:, :, None])
    gone = 1 - left
    # The squared error is ss s^2 + 2 se s e + ee e^2 - 2 sy s - 2 ey e, up to a constant: shape (R, G) each.
    pairs = ((left, left), (left, gone), (gone, gone))
    ss, se, ee = (np.broadcast_to((x * y) @ weights, (len(curves), rates.shape[1])) for x, y in pairs)
    sy, ey = ((x @ (weights * curves)[:, :, None])[:, :, 0] for x in (left, gone))
    tiny = 1e-12
    determinant = ss * ee - se**2
    solvable = np.where(determinant > tiny, determinant, 1.0)
    inner = ((sy * ee - ey * se) / solvable, (ey * ss - sy * se) / solvable)
    inside = (determinant > tiny) & (np.minimum(*inner) >= 0) & (np.maximum(*inner) <= 1)
    none, all_ = np.zeros_like(ss), np.ones_like(ss)
    # The error is convex: where it is least out of the box, it is least in the box on one of its edges.
    starts = np.stack(
        [np.where(inside, inner[0], 0.5), none, all_]
        + [np.clip((sy - se * edge) / np.maximum(ss, tiny), 0, 1) for edge in (none, all_)]
    )
    ends = np.stack(
        [np.where(inside, inner[1], 0.5)]
        + [np.clip((ey - se * edge) / np.maximum(ee, tiny), 0, 1) for edge in (none, all_)]
        + [none, all_]
    )
    errors = ss * starts**2 + 2 * se * starts * ends + ee * ends**2 - 2 * sy * starts - 2 * ey * ends
    errors[0] = np.where(inside, errors[0], np.inf)
    # Of shape (5, R, G): the least of each curve.
    flat = np.moveaxis(errors, 1, 0).reshape(len(curves), -1)
    where, rate = np.divmod(flat.argmin(1), rates.shape[1])
    row = np.arange(len(curves))
    return starts[where, row, rate], ends[where, row, rate], np.broadcast_to(rates, ss.shape)[row, rate]


def _error(fitted: Fitted, at: Sequence[int], truth: Floats) -> float:
    return float(np.sqrt(((fitted.at(at) - truth) ** 2).mean()))


def _falls(curves: Floats, best: int) -> bool:
    """Whether the last point is surely below the best: by a one-sided test at 2.5 %, on the same queries.

    The best of several points is best by luck, too: the level is shared out among those that might be.
    """
    if best == curves.shape[1] - 1:
        return False
    drop = curves[1:, best] - curves[1:, -1]
    return bool(np.quantile(drop, 0.025 / (curves.shape[1] - 1)) > 0)


def _ceiling(fitted: Fitted, at: Sequence[int], curves: Floats) -> tuple[float, float, float] | None:
    """The limit and its interval, where it is a ceiling and the queries tell it.

    The rise to it from the last point must be known to within IDENTIFIED (how hard the queries are moves
    both, and does not matter). It must be no lower than any point, but for noise; nor may the curve surely
    rise more over the last doubling than the form does, which then has not seen it level off. And where not
    all queries are right already, it must be less than 1.
    """
    if fitted.form == "logarithm":
        return None
    limit, last = fitted.end, curves[:, -1]
    low, high = interval((limit - last)[1:])
    # Of many points one may lie above by luck: the level of the test is shared out among them.
    below = any(np.quantile((limit - point)[1:], 1 - 0.025 / len(at)) < 0 for point in curves.T)
    middle = max(place for place, n in enumerate(at) if n <= max(at[0], at[-1] / 2))
    said = fitted.at([at[middle], at[-1]])
    more = (last - curves[:, middle]) - (said[:, 1] - said[:, 0])
    rises = np.quantile(more[1:], 0.025) > 0
    never_ends = limit[0] > _NEVER_ENDS and last[0] < _NEVER_ENDS
    if high - low > IDENTIFIED or below or rises or never_ends:
        return None
    least, most = interval(limit[1:])
    return float(limit[0]), min(least, float(limit[0])), max(most, float(limit[0]))


Forecast = dict[Form, tuple[float, float, float]]
"""Accuracy that each form says, not cut at 1, with its 95 % interval from resampled queries."""


def forecast(one: Scaling, most: int, asked: int) -> Forecast:
    """What each form, fitted up to `most` samples, says of `asked`; none where it has too few points."""
    at = one.points.samples[one.points.samples <= most].tolist()
    curves = one.curves[:, : len(at)]
    told: Forecast = {}
    for form in FORMS:
        if len(at) > len(PARAMETERS[form]):
            said = fit(form, at, curves, precision(curves)).at([asked])[:, 0]
            told[form] = (float(said[0]), *interval(said[1:]))
    return told
