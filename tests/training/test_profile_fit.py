"""Planted types of queries are found again, and what is odd gives a sane profile or a clear error."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from planted import MODELS, RATES, TOKENS, clustered_scores, counts_of, planted, single_scores

from router import profile
from training import profiles, query_types
from training.measured import Measured, Samples, numbered
from training.profiles import (
    FitError,
    fit,
    fit_verified,
    scatter_of,
    thirds,
    vote_accuracies,
)
from training.query_types import find_types, in_order


@pytest.fixture(scope="module")
def found() -> tuple[query_types.Types, np.ndarray]:
    queries, of = planted(240, concentration=300.0)
    counts = counts_of(queries)
    types, _ = in_order(find_types(counts), -counts.right.sum(axis=1))
    return types, of


def checked(data: dict[str, Any]) -> profile.Profile:
    """The profile, as it comes out of its file; all its curves are within their bounds."""
    read = profile.parse(json.loads(json.dumps(data, allow_nan=False)))
    for arm in read.arms:
        for curve in (arm.p_right, arm.votes, *(told.votes for told in arm.verified)):
            assert np.isfinite(curve).all()
            assert ((curve >= 0) & (curve <= 1)).all()
        assert np.isfinite(arm.tokens).all()
    assert read.prior.sum() == pytest.approx(1)
    return read


def test_planted_types_are_found_again(found: tuple[query_types.Types, np.ndarray]) -> None:
    types, of = found
    # Each query has the curves of its own type, whatever number of types they are shared by.
    for kind in range(3):
        mine = types.of[of == kind].mean(axis=0)
        assert mine @ types.right == pytest.approx(RATES[kind], abs=0.05)
        assert np.exp(mine @ types.log_tokens) == pytest.approx(TOKENS[kind], rel=0.1)
        assert mine @ types.error == pytest.approx(np.zeros(2), abs=0.05)
    assert types.of.sum(axis=1) == pytest.approx(np.ones(len(of)))
    assert types.within == pytest.approx([0.3, 0.3], rel=0.1)


def test_no_more_types_than_the_queries_speak_for(found: tuple[query_types.Types, np.ndarray]) -> None:
    """Three types of 80: the least number that is tried does, and queries of different types stay apart."""
    types, of = found
    assert 3 <= len(types.right) <= min(query_types.TYPES)
    together = np.array([types.of[of == kind].sum(axis=0) for kind in range(3)])
    assert (together.max(axis=0) / together.sum(axis=0)).min() > 0.95


def test_types_are_in_order_of_difficulty(found: tuple[query_types.Types, np.ndarray]) -> None:
    types, _ = found
    assert (np.diff(types.right.mean(axis=1)) < 0.05).all()


@pytest.mark.parametrize(("planted_at", "low", "high"), [(2.0, 1, 4), (400.0, 64, 512)])
def test_how_much_queries_of_a_type_differ_is_found_on_other_queries(
    planted_at: float, low: float, high: float
) -> None:
    rates = np.full((1, 2), 0.5)
    queries, _ = planted(300, rates=rates, tokens=np.full((1, 2), 60.0), concentration=planted_at)
    counts = counts_of(queries)
    # Of one type alone: with more, how right a query is makes types of its own.
    parts = [
        (query_types._mixture(counts.of(np.arange(300) % 2 == f), 1), counts.of(np.arange(300) % 2 != f))
        for f in range(2)
    ]
    _, concentration, between = query_types._differences(parts)
    assert ((low <= concentration) & (concentration <= high)).all()
    assert set(between.tolist()) <= {0.05, 0.1}  # Of normal lengths Student's spread is the smaller.


def test_a_type_that_is_always_right_is_not_doubted() -> None:
    queries, _ = planted(100, rates=np.array([[1.0, 1.0], [0.3, 0.6]]), tokens=TOKENS[:2])
    types = find_types(counts_of(queries))
    assert types.right.max(axis=0) == pytest.approx([1, 1], abs=0.002)


def trapped(share: int = 5) -> list[Measured]:
    """Every fifth query is one on which all models agree on the same wrong answer; else they do not."""
    queries, _ = planted(300, rates=np.array([[0.9, 0.95]]), tokens=TOKENS[:1], wrong=50, concentration=40)
    for number in range(0, 300, share):
        query = queries[number]
        samples = {
            name: replace(one, answers=["trap"] * len(one.right), right=np.zeros(len(one.right), bool))
            for name, one in query.samples.items()
        }
        greedy = {
            name: replace(one, answers=["trap"], right=np.array([False]))
            for name, one in query.greedy.items()
        }
        queries[number] = replace(query, samples=samples, greedy=greedy)
    return queries


def test_queries_on_which_all_agree_on_a_wrong_answer_are_a_type_and_keep_confidence_honest() -> None:
    read = checked(fit(trapped(), MODELS, "v1"))
    arm = read.arm(MODELS[1], greedy=False, temperature=None)
    trap = arm.p_right < 0.05
    assert read.prior[trap].sum() == pytest.approx(0.2, abs=0.03)
    scatter = np.broadcast_to(arm.scatter, trap.shape)
    assert scatter[trap].max() < 0.5 < 1 < np.average(scatter[~trap], weights=read.prior[~trap])
    # A vote of many does not help where all are wrong together.
    assert arm.votes[-1] @ read.prior == pytest.approx(0.8, abs=0.03)
    # All of eight agree, and the belief says how often that is right: the share of queries without a trap.
    agreed = read.prior * arm.runs[profile.RUNS.index((8, 8))]
    wrong = read.prior * arm.runs[profile.RUNS.index((8, 0))]
    assert 0.1 < wrong.sum() / (agreed + wrong).sum() < 0.4


def test_wrong_answers_that_scatter_and_such_that_agree_are_told_apart() -> None:
    alone, _ = planted(100, rates=np.array([[0.2, 0.2]]), tokens=TOKENS[:1], wrong=100_000)
    alike, _ = planted(100, rates=np.array([[0.2, 0.2]]), tokens=TOKENS[:1], wrong=1)
    scatters = []
    for queries in (alone, alike):
        types = query_types._mixture(counts_of(queries), 2)
        scatters.append(scatter_of(numbered([query.samples["a"] for query in queries]), types))
    assert scatters[0].min() > 20
    assert scatters[1].max() < 0.5


def test_answers_become_numbers() -> None:
    first = Samples(["7", None, "8", "9", "8"], np.array([True, False, False, False, False]), np.ones(5))
    second = Samples(["x", "y", "x"], np.zeros(3, bool), np.ones(3))
    assert numbered([first, second]).tolist() == [[0, -1, 1], [1, 2, 1]]


def test_votes_of_single_samples_are_their_mean_and_levels_share() -> None:
    answers = np.array([[0, 0, 1, 1], [0, 0, 0, 1], [-1, -1, -1, -1], [1, 1, 2, 0]])
    accuracies = vote_accuracies(answers, [1, 4])
    assert accuracies[4] == pytest.approx([0.5, 1.0, 0.0, 0.0])
    assert accuracies[1] == pytest.approx([0.5, 0.75, 0.0, 0.25], abs=0.2)
    weighed = vote_accuracies(answers, [4], np.array([[0.9, 0.9, 0.1, 0.1]] * 4))
    assert weighed[4] == pytest.approx([1.0, 1.0, 0.0, 0.0])


@pytest.mark.parametrize("slope", [0.5, 2.0])
def test_a_planted_slope_of_scores_is_found_again(slope: float) -> None:
    queries, of = planted(300, rates=np.array([[0.5, 0.5], [0.2, 0.7]]), scores=single_scores(slope))
    samples = [query.samples["a"] for query in queries]
    told = fit_verified(samples, "judge", np.array([0.5, 0.2])[of])
    assert told
    assert told["slope"] == pytest.approx(slope, rel=0.15)
    assert told["intercept"] == pytest.approx(0, abs=0.15)
    assert told["wrong"] < 0 < told["right"]


def test_scores_that_all_samples_of_an_answer_share_are_found_to_be_alike() -> None:
    told = {}
    for name, scores in (("single", single_scores(1.0)), ("clustered", clustered_scores)):
        queries, _ = planted(300, rates=np.full((1, 2), 0.5), tokens=TOKENS[:1], scores=scores)
        one = fit_verified([query.samples["a"] for query in queries], "judge", np.full(300, 0.5))
        assert one
        told[name] = one["alike"]
    assert told["clustered"] > 0.1 > told["single"]


def constant(value: float) -> Any:
    return lambda rng, right: np.full(len(right), value)


@pytest.mark.parametrize("value", [np.nan, 0.5, 0.0, 1.0])
def test_a_verifier_that_never_scored_or_says_the_same_of_all_says_nothing(value: float) -> None:
    data = fit(planted(60, 4, scores=constant(value))[0], MODELS, "v1")
    checked(data)
    assert [arm.get("verified", []) for arm in data["arms"]] == [[]] * 4


def test_scores_that_mislead_are_not_believed() -> None:
    def upside_down(rng: np.random.Generator, right: np.ndarray) -> np.ndarray:
        return 1 - single_scores(2.0)(rng, right)

    data = fit(planted(60, 8, scores=upside_down)[0], MODELS, "v1")
    assert not any(arm.get("verified") for arm in data["arms"])


def test_a_sample_without_a_score_has_no_weight_in_votes_and_says_nothing() -> None:
    def some(rng: np.random.Generator, right: np.ndarray) -> np.ndarray:
        scores = single_scores(2.0)(rng, right)
        scores[::2] = np.nan
        return scores

    data = fit(planted(120, 8, scores=some)[0], MODELS, "v1")
    (told,) = data["arms"][1]["verified"]
    checked(data)
    assert 1 < told["slope"] < 2.2  # A normal prior draws it to 0.


def test_a_verifier_that_scored_some_queries_only_is_left_out() -> None:
    queries = planted(60, 8, scores=single_scores(2.0))[0]
    queries[7] = replace(
        queries[7], samples={n: replace(s, scores={}) for n, s in queries[7].samples.items()}
    )
    assert not any(arm.get("verified") for arm in fit(queries, MODELS, "v1")["arms"])


def test_what_the_greedy_sample_tells() -> None:
    queries = planted(300)[0]
    data = fit(queries, MODELS, "v1", seconds_per_token={"a": 0.002})
    read = checked(data)
    greedy, sampled = data["arms"][:2]
    assert (greedy["temperature"], sampled["temperature"]) == (0.0, 0.7)
    assert (np.array(sampled["p_right_after_greedy"]) <= np.array(sampled["p_right"])).all()
    assert [arm["seconds_per_token"] for arm in data["arms"]] == [0.002, 0.002, 0.0, 0.0]
    assert greedy["prompt_tokens_per_byte"] == pytest.approx(12 / len(queries[50].prompt), rel=0.1)
    assert read.efforts["low"] < read.efforts["medium"] < read.efforts["high"]


def flat(rate: float) -> list[Measured]:
    return planted(40, rates=np.full((1, 2), rate), tokens=TOKENS[:1])[0]


def changed(queries: list[Measured], **fields: Any) -> list[Measured]:
    """With other samples."""

    def each(one: Samples) -> Samples:
        return replace(one, **{name: value(one) for name, value in fields.items()})

    return [
        replace(query, samples={name: each(one) for name, one in query.samples.items()}) for query in queries
    ]


ODD = {
    "all right": flat(1.0),
    "all wrong": flat(0.0),
    "all blank": changed(flat(0.0), answers=lambda one: [None] * len(one.right)),
    "two samples": planted(30, 2)[0],
    "one token": changed(planted(30, 4)[0], tokens=lambda one: np.ones(len(one.right))),
    "no tokens": changed(planted(30, 4)[0], tokens=lambda one: np.zeros(len(one.right))),
    "all alike": [replace(planted(1, 4)[0][0], query_id=str(number)) for number in range(30)],
    "as few as may be": planted(profiles.FEWEST_QUERIES, 4)[0],
    "no prompts": [replace(query, prompt="") for query in planted(30, 4)[0]],
    "no greedy": [replace(query, greedy={}) for query in planted(30, 4)[0]],
    "some greedy": [
        replace(query, greedy={}) if at % 2 else query for at, query in enumerate(planted(30)[0])
    ],
    "ragged": [planted(30, 2 + at % 9, scores=single_scores(2.0))[0][at] for at in range(30)],
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("models", [1, 2])
@pytest.mark.filterwarnings("error")
def test_odd_samples_give_a_sane_profile(name: str, models: int) -> None:
    read = checked(fit(ODD[name], MODELS[:models], "v1"))
    rates = np.array([query.samples["a"].right.mean() for query in ODD[name]])
    arm = read.arm(MODELS[0], greedy=False, temperature=None)
    assert arm.p_right @ read.prior == pytest.approx(rates.mean(), abs=0.06)


def test_too_few_queries_are_said() -> None:
    with pytest.raises(FitError, match="needs 10 queries at least, and there are 9"):
        fit(planted(9)[0], MODELS, "v1")
    with pytest.raises(FitError, match="there are 0"):
        fit([], MODELS, "v1")


def test_many_queries_are_clustered_by_some_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, of = planted(300)
    monkeypatch.setattr(query_types, "CLUSTERED", 60)
    types = query_types._mixture(counts_of(queries), 8)
    for kind in range(3):
        assert types.of[of == kind].mean(axis=0) @ types.right == pytest.approx(RATES[kind], abs=0.07)


@settings(max_examples=10, phases=[Phase.generate])  # One failure is enough: fits are slow to shrink by.
@given(data=st.data())
def test_whatever_was_measured_the_profile_can_be_read(data: st.DataObject) -> None:
    queries = []
    for number in range(data.draw(st.integers(10, 14))):
        count = data.draw(st.integers(2, 4))
        answers = data.draw(st.lists(st.sampled_from(["1", "2", None]), min_size=count, max_size=count))
        tokens = data.draw(st.lists(st.integers(0, 100_000), min_size=count, max_size=count))
        scores = data.draw(st.lists(st.floats(0, 1) | st.just(float("nan")), min_size=count, max_size=count))
        right = np.array([answer == "1" for answer in answers])
        one = Samples(answers, right, np.array(tokens, float), 3, {"judge": np.array(scores)})
        queries.append(Measured(str(number), "?", "", {"a": one}, {}))
    checked(fit(queries, MODELS[:1], "v1"))


def test_thirds_are_means_over_shares_of_the_queries() -> None:
    assert thirds([0.5, 0.5], [1.0, 0.0]) == [1.0, 0.5, 0.0]
    assert thirds([1, 1, 2], [0.9, 0.6, 0.3]) == pytest.approx([0.825, 0.45, 0.3])
