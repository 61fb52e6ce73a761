"""Scaling laws of a calibration: which there are, what they say, and that too few samples make none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from planted import RATES, planted

from router.scaling import ScalingRecord
from training.measured import Array, Measured, Samples
from training.profile_scaling import laws


def judged(rng: np.random.Generator, right: NDArray[np.bool_]) -> Array:
    """Scores that know a good deal."""
    return np.clip(rng.normal(0.35 + 0.3 * right, 0.15), 0.0, 1.0)


def fewer(query: Measured, count: int) -> Measured:
    """It, with the first samples of each model alone."""
    return replace(
        query,
        samples={
            name: Samples(
                one.answers[:count],
                one.right[:count],
                one.tokens[:count],
                scores={verifier: told[:count] for verifier, told in one.scores.items()},
            )
            for name, one in query.samples.items()
        },
    )


def unscored(query: Measured, share: float, rng: np.random.Generator) -> Measured:
    """It, with a share of samples to which the verifier could give no score."""

    def without(scores: Array) -> Array:
        return np.where(rng.random(len(scores)) < share, np.nan, scores)

    return replace(
        query,
        samples={
            name: replace(one, scores={"judge": without(one.scores["judge"])})
            for name, one in query.samples.items()
        },
    )


QUERIES, OF = planted(samples=32, scores=judged)
LAWS = laws(QUERIES, ["a", "b"], 0.7)


def found(model: str, strategy: str) -> list[ScalingRecord]:
    return [law for law in LAWS if (law.model, law.strategy) == (model, strategy)]


def test_each_model_and_strategy_has_a_law_of_all_queries_and_of_three_bins() -> None:
    keys = [(law.model, law.strategy, law.verifier) for law in LAWS]
    ways = [("majority", ""), ("weighted", "judge"), ("best_of_n", "judge")]
    assert keys == [(model, *way) for model in "ab" for way in ways for _ in range(4)]
    for at in range(0, len(LAWS), 4):
        every, *bins = LAWS[at : at + 4]
        assert (every.difficulty, every.queries, every.samples) == (None, len(QUERIES), (1, 32))
        assert every.held_out == "more samples"
        ends = [end for law in bins for end in law.difficulty or ()]
        assert ends == sorted(ends)
        assert {law.samples for law in bins} == {(1, 16)}
        assert every.temperature == 0.7


@pytest.mark.parametrize("model", ["a", "b"])
def test_laws_say_what_was_planted(model: str) -> None:
    rates = RATES[:, "ab".index(model)]
    every, *bins = found(model, "majority")
    assert every.at(1) == pytest.approx(rates.mean(), abs=0.03)
    # The bins are the types, as far as samples tell them apart.
    assert [law.at(1) for law in bins] == pytest.approx(sorted(rates, reverse=True), abs=0.1)
    for law in (every, *bins):
        assert law.interval
        assert law.interval[0] <= law.at(law.samples[1]) <= law.interval[1]
        assert law.ceiling is None or law.ceiling_interval
    # A vote brings queries of which most samples are right to 1, and so has a ceiling there.
    assert bins[0].ceiling == pytest.approx(1.0, abs=0.01)
    # Who knows a good deal finds right answers that a vote does not.
    assert found(model, "weighted")[0].at(32) > every.at(32) + 0.03


def test_what_could_not_be_scored_has_no_weight() -> None:
    rng = np.random.default_rng(0)
    part = laws([unscored(query, 0.1, rng) for query in QUERIES[:90]], ["a"], 0.7)
    assert {law.strategy for law in part} == {"majority", "weighted", "best_of_n"}
    none = laws([unscored(query, 1.0, rng) for query in QUERIES[:90]], ["a"], 0.7)
    assert {law.strategy for law in none} == {"majority"}
    # A verifier that has not seen all queries is not measured.
    bare = replace(
        QUERIES[0], samples={name: replace(one, scores={}) for name, one in QUERIES[0].samples.items()}
    )
    assert {law.strategy for law in laws([bare, *QUERIES[1:90]], ["a"], 0.7)} == {"majority"}


def test_where_samples_are_too_few_there_is_no_law() -> None:
    """Of two the majority is worth one; three are two points of a majority, and three of best of n."""
    told = {n: laws([fewer(query, n) for query in QUERIES[:90]], ["a", "b"], 0.7) for n in (2, 3, 4, 8)}
    assert told[2] == []
    assert {(law.strategy, law.difficulty) for law in told[3]} == {("weighted", None), ("best_of_n", None)}
    assert {(law.strategy, law.difficulty) for law in told[4]} == {
        (strategy, None) for strategy in ("majority", "weighted", "best_of_n")
    }
    assert len(told[8]) == len(LAWS)


def test_few_queries_have_no_bins_and_one_with_few_samples_cuts_all() -> None:
    few = [*QUERIES[:9], fewer(QUERIES[9], 5)]
    told = laws(few, ["a"], 0.7)
    assert [(law.strategy, law.samples, law.difficulty) for law in told] == [
        (strategy, (1, 5), None) for strategy in ("majority", "weighted", "best_of_n")
    ]


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_model_that_is_never_or_always_right_has_laws_too(rate: float) -> None:
    queries, _ = planted(60, 8, rates=np.full((3, 1), rate), tokens=np.full((3, 1), 50.0))
    told = laws(queries, ["a"], 0.7)
    assert told
    for law in told:
        assert law.at(8) == pytest.approx(rate, abs=1e-6)
