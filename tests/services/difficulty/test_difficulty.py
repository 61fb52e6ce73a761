"""Estimates: from an estimator's file to beliefs, bounded in time whatever the text."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isoflop.errors import InvalidArgument
from isoflop.v1.common_pb2 import Message
from isoflop.v1.difficulty_pb2 import EstimateRequest, EstimateResponse, Query
from prometheus_client import CollectorRegistry

from services.difficulty.core import Difficulty
from services.difficulty.estimator import Estimator, EstimatorError, load
from services.difficulty.features import LOOKED_AT, NAMES, features
from services.difficulty.settings import DifficultySettings

CURVES = [
    {"model": "small", "ability": -1.0, "slope": 1.5, "log_tokens": 3.0, "tokens_slope": 0.2},
    {"model": "large", "ability": 1.0, "slope": 1.5, "log_tokens": 4.0, "tokens_slope": 0.1},
]


def data(**changes: Any) -> dict[str, Any]:
    """An estimator that only counts operations, unless said otherwise."""
    weights = dict.fromkeys(NAMES, 0.0) | {"operations": 1.0}
    return {"name": "hand", "weights": weights, "intercept": -1.0, "sd": 0.5, "curves": CURVES} | changes


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
    assert {one.sd for one in response.difficulties} == {0.5}
    assert response.estimator == "hand"
    assert response.flops == 5 * estimator.flops > 0


async def test_each_model_has_its_prospects(estimator: Estimator) -> None:
    (belief,) = (await estimate(estimator, "1+1")).difficulties
    small, large = belief.outlooks
    assert (small.model, large.model) == ("small", "large")
    assert 0 < small.p_right < large.p_right < 1
    assert small.tokens == pytest.approx(math.exp(3 + 0.2 * belief.mean))


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


def test_the_chance_is_the_mean_over_the_belief(tmp_path: Path) -> None:
    """Against a plain average over many draws of the normal distribution."""
    sure = load(saved(tmp_path, data(sd=1e-9))).estimate("1+1+1+1+1+1")
    unsure = load(saved(tmp_path, data(sd=1.0))).estimate("1+1+1+1+1+1")
    curve = load(saved(tmp_path, data())).curves[0]
    grid = [-4 + 8 * number / 2000 for number in range(2001)]
    weights = [math.exp(-z * z / 2) for z in grid]
    mean = sum(w * curve.p_right(unsure.mean + z) for w, z in zip(weights, grid, strict=True)) / sum(weights)
    assert unsure.outlooks[0].p_right == pytest.approx(mean, abs=0.01)
    assert sure.outlooks[0].p_right == pytest.approx(curve.p_right(sure.mean))


@pytest.mark.parametrize(
    "text",
    ["+" * LOOKED_AT, "9" * LOOKED_AT, "(" * LOOKED_AT, "*" * 10**6, "\\frac" * 2000, "\x00" * 9000],
    ids=["plus", "nine", "parenthesis", "megabyte", "latex", "zero"],
)
@pytest.mark.parametrize("weight", [1.0, -1.0])
def test_strange_texts_have_finite_estimates(text: str, weight: float, tmp_path: Path) -> None:
    weights = dict.fromkeys(NAMES, weight)
    belief = load(saved(tmp_path, data(weights=weights))).estimate(text)
    assert math.isfinite(belief.mean)
    for outlook in belief.outlooks:
        assert 0 <= outlook.p_right <= 1
        assert math.isfinite(outlook.tokens)
        assert outlook.tokens > 0


@settings(max_examples=50)
@given(st.text(max_size=300))
def test_features_are_finite_for_any_text(text: str) -> None:
    found = features(text)
    assert found.shape == (len(NAMES),)
    assert all(map(math.isfinite, found))


def test_only_the_beginning_of_a_text_is_looked_at() -> None:
    beginning = "1+1=(x) " * (LOOKED_AT // 8)
    assert len(beginning) == LOOKED_AT
    same = features(beginning)
    for more in ("1", "(" * 10, "a" * (1 << 20), "\\frac12+" * 100_000):
        assert (features(beginning + more) == same).all()
    assert (features(beginning[:-8] + "12345678") != same).any()


def test_one_estimate_takes_far_less_than_a_millisecond(estimator: Estimator) -> None:
    """Printed, not asserted: machines differ."""
    for name, text in (("short", "17*24+13"), ("1 MB", "17*24+13 " * 110_000)):
        begin = time.perf_counter()
        for _ in range(50):
            estimator.estimate(text)
        print(f"{name}: {(time.perf_counter() - begin) / 50 * 1e6:.0f} microseconds")


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
        *map(without, ("name", "weights", "intercept", "sd", "curves")),
        data(name=5),
        data(weights=[1.0] * len(NAMES)),
        data(weights={"length": 1.0}),
        data(weights=data()["weights"] | {"length": "heavy"}),
        data(weights=data()["weights"] | {"length": None}),
        data(weights=data()["weights"] | {"length": math.nan}),
        data(weights=data()["weights"] | {"length": math.inf}),
        data(intercept=math.nan),
        data(intercept="low"),
        data(intercept=10**400),
        data(sd=0),
        data(sd=-1),
        data(sd=math.nan),
        data(sd=math.inf),
        data(curves=5),
        data(curves=[5]),
        data(curves=[{}]),
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
    with pytest.raises(EstimatorError, match=f"estimator {path}: not an estimator"):
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
