"""Estimates: from an estimator's file to beliefs, bounded in time whatever the text."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isoflop.errors import InvalidArgument
from isoflop.v1.common_pb2 import Message
from isoflop.v1.difficulty_pb2 import EstimateRequest, EstimateResponse, Query
from prometheus_client import CollectorRegistry

from services.difficulty.core import Difficulty
from services.difficulty.estimator import UNKNOWN_SD, Estimator, load
from services.difficulty.features import (
    BUCKETS,
    MOST_CHARACTERS,
    NAMES,
    SHARES,
    features,
    hashed_words,
)
from services.difficulty.record import EstimatorError
from services.difficulty.settings import DifficultySettings

CURVES = [
    {"model": "small", "ability": -1.0, "slope": 1.5, "log_tokens": 3.0, "tokens_slope": 0.2},
    {"model": "large", "ability": 1.0, "slope": 1.5, "log_tokens": 4.0, "tokens_slope": 0.1},
]
WIDE = {"low": 0.0, "high": 100.0, "unit": 1.0}


def data(**changes: Any) -> dict[str, Any]:
    """An estimator that only counts operations and knows texts of any kind, unless said otherwise."""
    return {
        "schema": 2,
        "name": "hand",
        "data": "",
        "ranges": dict.fromkeys(NAMES, WIDE),
        "center": {"intercept": -1.0, "terms": [["operations", 0.0, 1.0]]},
        "log_variance": {"intercept": 2 * math.log(0.5), "terms": []},
        "tokens_range": [-4.0, 4.0],
        "curves": CURVES,
    } | changes


def saved(folder: Path, content: object) -> Path:
    path = folder / "difficulty.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def estimator(tmp_path: Path) -> Estimator:
    return load(saved(tmp_path, data()))


def query(text: str) -> Query:
    return Query(messages=[Message(role="system", content="2+2+2+2"), Message(role="user", content=text)])


async def estimate(estimator: Estimator, *texts: str, **options: int) -> EstimateResponse:
    core = Difficulty(DifficultySettings(**options), estimator, CollectorRegistry())
    return await core.estimate(EstimateRequest(queries=map(query, texts)))


async def test_a_batch_has_an_estimate_for_each_query_in_order(estimator: Estimator) -> None:
    texts = ["1+1", "", "1+1+1*4", "hello", "1+1"]
    response = await estimate(estimator, *texts)
    expected = [-1 + math.log1p(operations) for operations in (1, 0, 3, 0, 1)]
    assert [one.mean for one in response.difficulties] == pytest.approx(expected)
    assert [one.sd for one in response.difficulties] == pytest.approx([0.5] * 5)
    assert response.estimator == "hand"
    assert response.flops == 5 * estimator.flops > 0


async def test_each_model_has_its_prospects(estimator: Estimator) -> None:
    (belief,) = (await estimate(estimator, "1+1")).difficulties
    small, large = belief.outlooks
    assert (small.model, large.model) == ("small", "large")
    assert 0 < small.p_right < large.p_right < 1
    # The mean of exp of a normal variable.
    assert small.tokens == pytest.approx(math.exp(3 + 0.2 * belief.mean + 0.02 * belief.sd**2), rel=1e-4)


async def test_harder_queries_are_less_likely_right(estimator: Estimator) -> None:
    """Monotone in the one feature that has weight: each further operation makes it harder."""
    response = await estimate(estimator, *("1" + "+1" * count for count in range(40)))
    means = [one.mean for one in response.difficulties]
    assert means == sorted(set(means))
    for model in range(2):
        chances = [one.outlooks[model].p_right for one in response.difficulties]
        assert chances == sorted(chances, reverse=True)
        assert all(0 < chance < 1 for chance in chances)
        tokens = [one.outlooks[model].tokens for one in response.difficulties]
        assert tokens == sorted(tokens)


def variance(sd: float) -> dict[str, Any]:
    return {"intercept": 2 * math.log(sd), "terms": []}


@pytest.mark.parametrize("slope", [0.5, 1.5, 4.0])
def test_the_chance_is_the_mean_over_the_belief(slope: float, tmp_path: Path) -> None:
    """Against a plain average over a fine grid of the normal distribution."""
    curves = [CURVES[0] | {"slope": slope}]
    for sd in (0.1, 0.5, 1.2):
        told = load(saved(tmp_path, data(log_variance=variance(sd), curves=curves))).estimate("1+1+1+1")
        grid = [-5 + 10 * number / 4000 for number in range(4001)]
        weights = [math.exp(-z * z / 2) for z in grid]
        chances = [1 / (1 + math.exp(-slope * (-1 - told.mean - told.sd * z))) for z in grid]
        mean = sum(w * p for w, p in zip(weights, chances, strict=True)) / sum(weights)
        assert told.outlooks[0].p_right == pytest.approx(mean, abs=2e-3)


def test_the_spread_depends_on_the_query(tmp_path: Path) -> None:
    terms = [["words", 0.0, 0.4], ["mean", -1.0, -0.3]]
    estimator = load(saved(tmp_path, data(log_variance={"intercept": -1.0, "terms": terms})))
    for text in ("1+1", "one and one", "one and one + 4 + 5"):
        found = dict(zip(NAMES, features(text).tolist(), strict=True))
        mean = -1 + found["operations"]
        sd = math.exp((-1.0 + 0.4 * found["words"] - 0.3 * (mean + 1.0)) / 2)
        assert estimator.belief(text) == pytest.approx((mean, sd))


def test_curves_bend_at_their_knots(tmp_path: Path) -> None:
    terms = [["plus", 0.0, 1.0], ["plus", math.log1p(2), -1.0]]
    estimator = load(saved(tmp_path, data(center={"intercept": 0.0, "terms": terms})))
    means = [estimator.belief("1" + "+1" * plus)[0] for plus in range(6)]
    assert means == pytest.approx([math.log1p(min(plus, 2)) for plus in range(6)])


def test_words_add_their_weight(tmp_path: Path) -> None:
    found = hashed_words("how many apples")
    bucket = int(found.argmax())
    estimator = load(saved(tmp_path, data(words={str(bucket): 2.0})))
    assert estimator.belief("how many apples")[0] == pytest.approx(-1 + 2 * found[bucket])


TREES = {
    "roots": [0, 3],
    "feature": [NAMES.index("plus"), 0, 0, 0],
    "threshold": [math.log1p(1.5), 0.0, 0.0, 0.0],
    "left": [1, 1, 2, 3],
    "right": [2, 1, 2, 3],
    "value": [0.0, 0.25, 0.75, 0.5],
    "depth": 1,
}


def test_trees_add_their_leaves(tmp_path: Path) -> None:
    estimator = load(saved(tmp_path, data(trees=TREES, center={"intercept": 0.0, "terms": []})))
    assert [estimator.belief(text)[0] for text in ("1", "1+1", "1+1+1")] == pytest.approx([0.75, 0.75, 1.25])


def test_the_further_from_what_was_seen_the_wider(tmp_path: Path) -> None:
    """To the belief of one who knows nothing: the population's mean, and more than its spread."""
    ranges = data()["ranges"] | {"operations": {"low": 0.0, "high": math.log1p(3), "unit": 1.0}}
    estimator = load(saved(tmp_path, data(ranges=ranges)))
    within, *outside = [estimator.belief("1" + "+1" * count) for count in (3, 4, 10, 100, 800)]
    assert within == pytest.approx((-1 + math.log1p(3), 0.5))
    widths = [within[1], *(sd for _, sd in outside)]
    assert widths == sorted(set(widths))
    assert widths[-1] == pytest.approx(UNKNOWN_SD, abs=0.03)
    assert outside[-1][0] == pytest.approx(0.0, abs=0.02)


GARBAGE = {
    "empty": "",
    "blank": " \n\t" * 50,
    "controls": "\x00\x01\x1b" * 50,
    "megabyte": "7*8+9 " * (10**6 // 6),
    "one run": "x" * 10**6,
    "binary": "".join(map(chr, range(1, 2048))),
    "half a pair": "what is \ud800 and \udfff?",
    "symbols": "#@~&;<>" * 40,
}


@pytest.mark.parametrize("text", GARBAGE.values(), ids=GARBAGE)
def test_garbage_has_a_wide_belief_of_the_estimator_that_is_shipped(text: str) -> None:
    told = load(DifficultySettings().estimator).estimate(text)
    assert told.sd > 1.2
    assert abs(told.mean) < 0.5
    assert all(0 < outlook.p_right < 1 and outlook.tokens > 0 for outlook in told.outlooks)


@pytest.mark.parametrize("text", [*GARBAGE.values(), "+" * 9000, "9" * 9000, "(" * 9000, "\\frac" * 2000])
@pytest.mark.parametrize("weight", [1.0, -1.0, 1e6])
def test_strange_texts_have_finite_estimates(text: str, weight: float, tmp_path: Path) -> None:
    terms = [[name, 0.0, weight] for name in NAMES]
    changes = {
        "center": {"intercept": 0.0, "terms": terms},
        "log_variance": {"intercept": 0.0, "terms": terms},
    }
    belief = load(saved(tmp_path, data(**changes))).estimate(text)
    assert math.isfinite(belief.mean)
    assert 0 < belief.sd < 5
    for outlook in belief.outlooks:
        assert 0 <= outlook.p_right <= 1
        assert math.isfinite(outlook.tokens)
        assert outlook.tokens > 0


ANY_TEXT = st.text(st.characters(), max_size=300) | st.text("0123456789+-*/()=$\\^,. \n?ax", max_size=300)


@given(ANY_TEXT)
def test_features_are_finite_for_any_text(text: str) -> None:
    found = features(text)
    assert found.shape == (len(NAMES),)
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert (found[-len(SHARES) :] <= 1).all()
    words = hashed_words(text)
    assert words.shape == (BUCKETS,)
    assert float(words @ words) == pytest.approx(1.0) or not words.any()


@given(ANY_TEXT)
def test_every_character_is_a_letter_a_blank_a_digit_or_a_symbol(text: str) -> None:
    found = dict(zip(NAMES, features(text).tolist(), strict=True))
    digits = math.expm1(found["digits"]) / max(len(text), 1)
    shares = found["letters"] + found["spaces"] + found["symbols"] + digits
    assert shares == pytest.approx(1.0 if text else 0.0)


def test_features_count_what_they_say() -> None:
    found = dict(zip(NAMES, features("Is ((12*34)) + x = $\\frac{7}{8}$?\nYes, 5.").tolist(), strict=True))
    expected = {
        "words": 2,
        "sentences": 2,
        "lines": 1,
        "numbers": 5,
        "digits": 7,
        "longest_number": 2,
        "variables": 1,
        "plus": 1,
        "times": 1,
        "long_times": 1,
        "divide": 1,
        "operations": 3,
        "equals": 1,
        "parentheses": 2,
        "depth": 2,
        "commas": 1,
        "dollars": 2,
        "latex": 1,
    }
    assert {name: math.expm1(found[name]) for name in expected} == pytest.approx(
        expected | {"words": 3}, abs=1e-9
    )


def test_only_the_beginning_of_a_text_is_looked_at_but_its_length_counts() -> None:
    beginning = "1+1=(x) " * (MOST_CHARACTERS // 8)
    assert len(beginning) == MOST_CHARACTERS
    same, words = features(beginning)[1:], hashed_words(beginning)
    for more in ("1", "(" * 10, "a" * (1 << 20), "\\frac12+" * 100_000):
        longer = features(beginning + more)
        assert (longer[1:] == same).all()
        assert math.expm1(longer[0]) == pytest.approx(len(beginning + more))
        assert (hashed_words(beginning + more) == words).all()
    assert (features(beginning[:-8] + "12345678")[1:] != same).any()


def test_how_much_is_looked_at_is_a_setting(tmp_path: Path) -> None:
    path = saved(tmp_path, data())
    assert load(path, characters=3).belief("1+1+1+1")[0] == load(path).belief("1+1")[0]
    with pytest.raises(ValueError, match="max_characters"):
        DifficultySettings(max_characters=0)


def without(name: str) -> dict[str, Any]:
    whole = data()
    del whole[name]
    return whole


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "17",
        "[" * 100_000,
        *map(
            without, ("schema", "name", "data", "ranges", "center", "log_variance", "tokens_range", "curves")
        ),
        data(schema=1),
        data(name=5),
        data(colour="red"),
        data(ranges=5),
        data(ranges={"length": WIDE}),
        data(ranges=data()["ranges"] | {"colour": WIDE}),
        data(ranges=data()["ranges"] | {"length": WIDE | {"unit": 0.0}}),
        data(ranges=data()["ranges"] | {"length": WIDE | {"low": 101.0}}),
        data(center={"intercept": math.nan, "terms": []}),
        data(center={"intercept": "low", "terms": []}),
        data(center={"intercept": 10**400, "terms": []}),
        data(center={"intercept": 0.0, "terms": [["colour", 0.0, 1.0]]}),
        data(center={"intercept": 0.0, "terms": [["mean", 0.0, 1.0]]}),
        data(center={"intercept": 0.0, "terms": [["length", 0.0]]}),
        data(center={"intercept": 0.0, "terms": [["length", 0.0, math.inf]]}),
        data(log_variance={"intercept": 0.0, "terms": [["colour", 0.0, 1.0]]}),
        data(words={str(BUCKETS): 1.0}),
        data(words={"many": 1.0}),
        data(trees=TREES | {"value": [0.0]}),
        data(trees=TREES | {"left": [9, 1, 2, 3]}),
        data(trees=TREES | {"feature": [len(NAMES), 0, 0, 0]}),
        data(trees=TREES | {"depth": 10**9}),
        data(curves=5),
        data(curves=[5]),
        data(curves=[{}]),
        data(curves=[CURVES[0], CURVES[0]]),
        data(curves=[CURVES[0] | {"colour": "red"}]),
        data(curves=[CURVES[0] | {"model": 5}]),
        data(curves=[CURVES[0] | {"ability": "strong"}]),
        data(curves=[CURVES[0] | {"slope": None}]),
        data(curves=[CURVES[0] | {"log_tokens": math.nan}]),
        data(curves=[CURVES[0] | {"tokens_slope": math.inf}]),
    ],
    ids=lambda content: str(content)[:60],
)
def test_a_broken_estimator_is_one_sentence(content: object, tmp_path: Path) -> None:
    path = saved(tmp_path, content)
    with pytest.raises(EstimatorError) as caught:
        load(path)
    assert str(caught.value).startswith(f"estimator {path}: ")
    assert "\n" not in str(caught.value)


def test_an_estimator_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(EstimatorError, match=rf"estimator {path}: \w+"):
            load(path)
    path = tmp_path / "bytes.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EstimatorError, match=f"estimator {path}: "):
        load(path)


async def test_too_many_queries_are_refused_and_named(estimator: Estimator) -> None:
    assert len((await estimate(estimator, "1", "2", max_queries=2)).difficulties) == 2
    with pytest.raises(InvalidArgument, match="at most 2") as caught:
        await estimate(estimator, "1", "2", "3", max_queries=2)
    assert caught.value.field == "queries"


async def test_a_query_without_messages_is_refused_and_nothing_is_counted(estimator: Estimator) -> None:
    registry = CollectorRegistry()
    core = Difficulty(DifficultySettings(), estimator, registry)
    with pytest.raises(InvalidArgument) as caught:
        await core.estimate(EstimateRequest(queries=[query("1+1"), Query()]))
    assert caught.value.field == "queries"
    assert registry.get_sample_value("isoflop_difficulty_queries_total") == 0
    await core.estimate(EstimateRequest(queries=[query("1+1")] * 3))
    assert registry.get_sample_value("isoflop_difficulty_queries_total") == 3


async def test_no_queries_have_no_estimates(estimator: Estimator) -> None:
    response = await estimate(estimator)
    assert (len(response.difficulties), response.flops) == (0, 0.0)
