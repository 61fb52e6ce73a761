"""Learn to tell a query's difficulty from its text: from calibration answers to the file of an estimator.

1. `irt.fit` finds each query's latent difficulty and each model's curve.
2. Some ways (`WAYS`) to predict that difficulty from text are compared by cross-validation by problem; of
   those within a standard error of the best the simplest is taken (Breiman et al. 1984, section 3.4.3).
3. Its errors out of fold, with what the answers leave open of each difficulty, are what the variance of a
   belief is fitted to (a gamma regression), so that it depends on the query.
4. Tokens are a Poisson regression on difficulty: its mean is the mean.

What comes out is plain numbers (`services/difficulty/record.py`). `held_out` repeats all of it in each fold,
so that what it reports of a query was found without the query. Needs scikit-learn and scipy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.linear_model import GammaRegressor, PoissonRegressor, RidgeCV
from threadpoolctl import threadpool_limits

from services.difficulty.estimator import Estimator
from services.difficulty.features import BUCKETS, COUNTS, NAMES, features, hashed_words
from services.difficulty.record import (
    MEAN,
    SCHEMA,
    CurveRecord,
    EstimatorRecord,
    Hinges,
    Range,
    Sentences,
    Trees,
)
from training import irt
from training.difficulty_answers import Answers, AnswersError, folds
from training.difficulty_figures import Held

Array = NDArray[np.float64]

LEAST_QUERIES = 30
"""Fewer teach nothing."""
QUANTILES = (0.25, 0.5, 0.75)
"""Of a feature's values: where its curve may bend."""
PENALTIES = np.logspace(-2, 4, 13)
"""Of ridge regression; chosen among by leaving one out."""
GAMMA_PENALTY = 1.0
INNER_FOLDS = 5
LEAST_UNITS = {name: 0.25 if name in COUNTS else 0.05 for name in NAMES}
"""Of a feature that hardly varied: by so much outside its range a text is strange."""


@dataclass(frozen=True)
class Way:
    """A way to predict difficulty from text; the simplest first."""

    name: str
    bends: bool = False
    """Curves in each feature, where otherwise are lines."""
    words: bool = False
    trees: bool = False
    sentences: bool = False


WAYS = (
    Way("lines"),
    Way("curves", bends=True),
    Way("curves and words", bends=True, words=True),
    Way("boosted trees", trees=True),
)
WITH_SENTENCES = (Way("sentences", sentences=True), Way("curves and sentences", bends=True, sentences=True))
"""Further ways, where embeddings are given."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What texts show. Q queries."""

    features: Array
    """Shape (Q, len(NAMES))."""
    words: Array
    """Shape (Q, BUCKETS)."""
    sentences: Array | None
    """Shape (Q, dimensions): embeddings."""

    def of(self, chosen: NDArray[Any]) -> Seen:
        """Some of the queries."""
        sentences = None if self.sentences is None else self.sentences[chosen]
        return Seen(self.features[chosen], self.words[chosen], sentences)


def look(prompts: list[str], sentences: Array | None = None) -> Seen:
    """What these texts show; `sentences` are their embeddings."""
    shown, words = [features(prompt) for prompt in prompts], [hashed_words(prompt) for prompt in prompts]
    return Seen(np.array(shown), np.array(words).reshape(-1, BUCKETS), sentences)


@dataclass(frozen=True, eq=False)
class Center:
    """A fitted way: parts of an estimator's record."""

    hinges: Hinges
    words: dict[int, float]
    trees: Trees | None
    sentences: Array | None

    def predict(self, seen: Seen) -> Array:
        """The expected difficulty, shape (Q,); features are in their ranges."""
        value = _hinged(seen.features, self.hinges)
        if self.words:
            value += seen.words[:, list(self.words)] @ np.array(list(self.words.values()))
        if self.sentences is not None and seen.sentences is not None:
            value += seen.sentences @ self.sentences
        if self.trees:
            value += _grown(seen.features, self.trees)
        return value


def _hinged(x: Array, hinges: Hinges) -> Array:
    index = {name: at for at, name in enumerate((*NAMES, MEAN))}
    value = np.full(len(x), hinges.intercept)
    for name, knot, weight in hinges.terms:
        value += weight * np.maximum(x[:, index[name]] - knot, 0.0)
    return value


def _grown(x: Array, trees: Trees) -> Array:
    feature, threshold, left, right, leaf = (
        np.array(values) for values in (trees.feature, trees.threshold, trees.left, trees.right, trees.value)
    )
    node = np.tile(np.array(trees.roots), (len(x), 1))
    for _ in range(trees.depth):
        value = np.take_along_axis(x, feature[node], axis=1)
        node = np.where(value <= threshold[node], left[node], right[node])
    total: Array = leaf[node].sum(1)
    return total


def fit_center(way: Way, seen: Seen, difficulty: Array) -> Center:
    """Fit one way."""
    if way.trees:
        return Center(Hinges(intercept=0.0, terms=[]), {}, _boost(seen.features, difficulty), None)
    names, knots, columns = [], [], []
    for at, name in enumerate(NAMES if not way.sentences or way.bends else ()):
        x = seen.features[:, at]
        bends = np.quantile(x, QUANTILES) if way.bends else ()
        for knot in sorted({float(x.min()), *map(float, bends)}):
            column = np.maximum(x - knot, 0.0)
            if column.std() > 1e-9:
                names.append(name)
                knots.append(knot)
                columns.append(column)
    design = np.array(columns).reshape(-1, len(difficulty)).T
    # Each block of columns has, over all of them, a variance of about 1, so that one penalty suits all.
    scale = design.std(0) * np.sqrt(max(len(columns), 1) / 4)
    blocks = [design / scale]
    if way.words:
        blocks.append(seen.words)
    if way.sentences and seen.sentences is not None:
        blocks.append(seen.sentences)
    ridge = RidgeCV(PENALTIES).fit(np.hstack(blocks), difficulty)
    parts = np.split(ridge.coef_, np.cumsum([block.shape[1] for block in blocks])[:-1])
    terms = list(zip(names, knots, (parts[0] / scale).tolist(), strict=True))
    words = dict(enumerate(parts[1].tolist())) if way.words else {}
    hinges = Hinges(intercept=float(ridge.intercept_), terms=terms)
    return Center(hinges, words, None, parts[-1] if way.sentences else None)


def _boost(x: Array, difficulty: Array) -> Trees:
    depth = 3
    model = GradientBoostingRegressor(
        n_estimators=80,
        learning_rate=0.08,
        max_depth=depth,
        min_samples_leaf=8,
        subsample=0.5,
        random_state=0,
    ).fit(x, difficulty)
    start = float(difficulty.mean())
    trees = Trees(roots=[], feature=[], threshold=[], left=[], right=[], value=[], depth=depth)
    for tree in (one.tree_ for one in model.estimators_[:, 0]):
        first = len(trees.value)
        trees.roots.append(first)
        for node in range(tree.node_count):
            leaf = tree.children_left[node] == tree.children_right[node]
            trees.feature.append(0 if leaf else int(tree.feature[node]))
            # scikit-learn compares in single precision.
            trees.threshold.append(0.0 if leaf else float(tree.threshold[node]))
            trees.left.append(first + (node if leaf else int(tree.children_left[node])))
            trees.right.append(first + (node if leaf else int(tree.children_right[node])))
            value = model.learning_rate * float(tree.value[node].item()) + start / len(model.estimators_)
            trees.value.append(value if leaf else 0.0)
    return trees


def compare(
    ways: tuple[Way, ...], seen: Seen, difficulty: Array, fold: NDArray[np.int64]
) -> dict[Way, Array]:
    """Predictions of each way out of fold, shape (Q,) each."""
    found = {way: np.empty(len(difficulty)) for way in ways}
    for number in sorted(set(fold.tolist())):
        train, test = fold != number, fold == number
        known = seen.of(train)
        others = seen.of(test)
        # Cut to the range that was seen, as the service does it.
        others = replace(
            others, features=np.clip(others.features, known.features.min(0), known.features.max(0))
        )
        for way, predicted in found.items():
            predicted[test] = fit_center(way, known, difficulty[train]).predict(others)
    return found


def choose(predicted: dict[Way, Array], difficulty: Array) -> Way:
    """The simplest of those whose squared error is within a standard error of the best's."""
    errors = {way: (values - difficulty) ** 2 for way, values in predicted.items()}
    best = min(errors.values(), key=lambda error: float(error.mean()))
    for way, error in errors.items():
        worse = error - best
        if worse.mean() <= worse.std() / np.sqrt(len(worse)):
            return way
    raise AssertionError("the best is within its own error")


def fit_spread(seen: Seen, center: Array, variance: Array) -> Hinges:
    """The logarithm of the variance around the center, from squared errors; shape (Q,) each."""
    knots = np.quantile(center, (0.0, *QUANTILES))
    names = [*NAMES, *[MEAN] * len(knots)]
    bends = [*seen.features.min(0).tolist(), *knots.tolist()]
    columns = np.hstack([seen.features, np.tile(center[:, None], len(knots))])
    design = np.maximum(columns - np.array(bends), 0.0)
    scale = np.where(design.std(0) > 1e-9, design.std(0), np.inf)
    middle = design.mean(0)
    # Errors of nearly 0 would be answers to no question; none is known better than this.
    target = np.maximum(variance, 1e-4)
    gamma = GammaRegressor(alpha=GAMMA_PENALTY, max_iter=1000).fit((design - middle) / scale, target)
    weights = gamma.coef_ / scale
    terms = [
        (name, bend, float(weight))
        for name, bend, weight in zip(names, bends, weights, strict=True)
        if weight != 0.0
    ]
    return Hinges(intercept=float(gamma.intercept_ - weights @ middle), terms=terms)


@dataclass(frozen=True, eq=False)
class Trained:
    """An estimator's record, and what it came from."""

    record: EstimatorRecord
    fit: irt.Fit
    way: str
    """Name of the way that was taken."""
    beliefs: tuple[Array, Array]
    """Mean and sd of each query's difficulty, from its text, by a center that was fitted without it."""
    errors: dict[str, float]
    """Root mean squared error of each way that was compared, out of fold."""


def train(
    answers: Answers,
    name: str,
    sentences: tuple[str, Array] | None = None,
    ways: tuple[Way, ...] = (),
) -> Trained:
    """Fit all of it; `sentences` are an embedding's name and the prompts' embeddings.

    `ways` are those that are compared, the simplest first; none: all that what is given allows.

    Raises AnswersError for too few queries, fewer than two models, or models that always or never are right.
    """
    check(answers)
    return _trained(answers, name, sentences, ways)


def _trained(
    answers: Answers, name: str, sentences: tuple[str, Array] | None, ways: tuple[Way, ...]
) -> Trained:
    seen = look(answers.prompts, sentences[1] if sentences else None)
    # A thread for each core costs more than it brings with matrices as small as these.
    with threadpool_limits(1):
        ways = ways or (*WAYS, *(WITH_SENTENCES if sentences else ()))
        return _train(answers, name, seen, sentences[0] if sentences else None, ways)


def check(answers: Answers) -> None:
    """Whether something can be learned from them; raises AnswersError."""
    if len(answers.prompts) < LEAST_QUERIES:
        raise AnswersError(
            f"{len(answers.prompts)} queries with a prompt; at least {LEAST_QUERIES} are needed"
        )
    if len(answers.models) < 2:
        raise AnswersError(
            f"answers of {answers.models[0]} alone: what is hard cannot be told from what it cannot do; "
            "at least two models are needed"
        )
    few = (answers.samples > 0).sum(0) < LEAST_QUERIES
    if few.any():
        names = ", ".join(model for model, is_few in zip(answers.models, few, strict=True) if is_few)
        raise AnswersError(
            f"answers of {names} to fewer than {LEAST_QUERIES} queries: leave it out, or ask more"
        )
    total = answers.right.sum()
    if total in (0, answers.samples.sum()):
        raise AnswersError("all samples are right, or none is: no query is harder than another")


def _train(answers: Answers, name: str, seen: Seen, embedding: str | None, ways: tuple[Way, ...]) -> Trained:
    fit = irt.fit(answers.right, answers.samples)
    fold = folds(answers.prompts, INNER_FOLDS, seed=1)
    predicted = compare(ways, seen, fit.difficulty, fold)
    way = choose(predicted, fit.difficulty)
    out_of_fold = np.clip(predicted[way], -5.0, 5.0)
    variance = (fit.difficulty - out_of_fold) ** 2 + fit.difficulty_sd**2
    spread = fit_spread(seen, out_of_fold, variance)
    center = fit_center(way, seen, fit.difficulty)
    low, high = seen.features.min(0), seen.features.max(0)
    unit = np.maximum(seen.features.std(0), [LEAST_UNITS[one] for one in NAMES])
    slowest, quickest = float(fit.difficulty.max()), float(fit.difficulty.min())
    record = EstimatorRecord(
        schema=SCHEMA,
        name=name,
        data=answers.digest,
        ranges={
            one: Range(low=float(a), high=float(b), unit=float(c))
            for one, a, b, c in zip(NAMES, low, high, unit, strict=True)
        },
        center=center.hinges,
        words=center.words,
        trees=center.trees,
        sentences=None
        if center.sentences is None or embedding is None
        else Sentences(name=embedding, weights=center.sentences.tolist()),
        log_variance=spread,
        tokens_range=(quickest, slowest),
        curves=_curves(answers, fit),
    )
    sd = np.exp(0.5 * _hinged(np.column_stack([seen.features, out_of_fold]), spread))
    errors = {
        one.name: float(np.sqrt(((values - fit.difficulty) ** 2).mean())) for one, values in predicted.items()
    }
    return Trained(record, fit, way.name, (out_of_fold, sd), errors)


def text(record: EstimatorRecord) -> str:
    """The file of an estimator: JSON, plain."""
    data = plain(record.model_dump(by_alias=True, exclude_none=True, exclude_defaults=True))
    written = json.dumps(data, indent=1)
    # A list without lists in it on one line.
    return re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), written)


def plain(value: Any) -> Any:
    """What JSON can hold: floats to six digits, so that changes can be read, and null for NaN."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def _curves(answers: Answers, fit: irt.Fit) -> list[CurveRecord]:
    """Each model's curve; the least able first."""
    curves = []
    for m in np.argsort(fit.ability):
        known = np.isfinite(answers.tokens[:, m])
        intercept, slope = 0.0, 0.0
        if known.any():
            trend = PoissonRegressor(alpha=1e-9, max_iter=1000).fit(
                fit.difficulty[known, None],
                np.maximum(answers.tokens[known, m], 1e-3),
                answers.samples[known, m],
            )
            intercept, slope = float(trend.intercept_), float(trend.coef_[0])
        curves.append(
            CurveRecord(
                model=answers.models[m],
                ability=float(fit.ability[m]),
                slope=float(fit.slope[m]),
                log_tokens=intercept,
                tokens_slope=slope,
            )
        )
    return curves


def estimate(
    estimator: Estimator, answers: Answers, sentences: Array | None
) -> tuple[Array, Array, Array, Array]:
    """Mean, sd (Q,), chances and tokens (Q, M) by the service's own code; NaN for a model without a curve."""
    column = {model: at for at, model in enumerate(answers.models)}
    mean, sd = np.empty(len(answers.prompts)), np.empty(len(answers.prompts))
    p_right, tokens = np.full((2, len(answers.prompts), len(answers.models)), np.nan)
    for at, prompt in enumerate(answers.prompts):
        needed = sentences[at] if sentences is not None and estimator.embedding else None
        told = estimator.estimate(prompt, needed)
        mean[at], sd[at] = told.mean, told.sd
        for outlook in told.outlooks:
            if outlook.model in column:
                p_right[at, column[outlook.model]] = outlook.p_right
                tokens[at, column[outlook.model]] = outlook.tokens
    return mean, sd, p_right, tokens


def held_out(
    answers: Answers,
    count: int,
    sentences: tuple[str, Array] | None = None,
    ways: tuple[Way, ...] = (),
    done: Callable[[], object] = lambda: None,
) -> tuple[Held, list[str]]:
    """Each query as an estimator sees it that was trained on the other folds, and the way of each fold.

    `done` is called after each of `count` folds. Raises AnswersError, as `train` does.
    """
    check(answers)
    fold = folds(answers.prompts, count)
    parts: list[tuple[NDArray[np.intp], Held]] = []
    taken = []
    for number in range(count):
        train_part = answers.of(fold != number)
        chosen = (sentences[0], sentences[1][fold != number]) if sentences else None
        trained = _trained(train_part, "fold", chosen, ways)
        at = np.flatnonzero(fold == number)
        parts.append((at, judged(trained, answers.of(at), sentences[1][at] if sentences else None)))
        taken.append(trained.way)
        done()
    order = np.argsort(np.concatenate([at for at, _ in parts]))
    every = [
        np.concatenate(columns)[order] for columns in zip(*(vars(h).values() for _, h in parts), strict=True)
    ]
    return Held(*every), taken


def judged(trained: Trained, answers: Answers, sentences: Array | None = None) -> Held:
    """Other queries, of the same models, as the trained estimator sees them, and what came of them."""
    told = estimate(Estimator(trained.record), answers, sentences)
    after = irt.posteriors(answers.right, answers.samples, trained.fit.ability, trained.fit.slope)
    return Held(*told, *after)
