"""What each strategy makes of a round."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isoflop.errors import Unavailable
from isoflop.v1.aggregation_pb2 import SELECTION_BEST, SELECTION_SUM
from isoflop.v1.common_pb2 import Sample, TextDelta
from isoflop.v1.verification_pb2 import (
    CHAIN_SCORING_LAST,
    CHAIN_SCORING_MEAN,
    CHAIN_SCORING_MIN,
    CHAIN_SCORING_PRODUCT,
    CHAIN_SCORING_UNSPECIFIED,
    ChainScore,
    ChainScoring,
)

from router.strategies import STRATEGIES
from router.strategies.scoring import chain_score
from router.strategies.strategy import Candidate

SAMPLES = [Sample(id=f"m/{i}", text=str(i)) for i in range(3)]


@dataclass
class Bench:
    """Two batches, and a score for each sample."""

    scores: dict[str, ChainScore] = field(default_factory=dict)
    failure: Exception | None = None
    scoring: ChainScoring.ValueType = CHAIN_SCORING_MEAN
    streamed: bool | None = None
    closed: bool = False

    async def sample(self, stream_text: bool = False) -> AsyncGenerator[list[Sample] | TextDelta, None]:
        self.streamed = stream_text
        try:
            if stream_text:
                yield TextDelta(sample_id="m/0", text="0")
            yield SAMPLES[:2]
            yield SAMPLES[2:]
        finally:
            self.closed = True

    async def score(self, samples: Sequence[Sample]) -> Sequence[ChainScore]:
        if self.failure:
            raise self.failure
        return [self.scores[sample.id] for sample in samples]


async def play(name: str, bench: Bench) -> list[list[Candidate] | TextDelta]:
    return [batch async for batch in STRATEGIES[name].play(bench)]


def candidates(batches: list[list[Candidate] | TextDelta]) -> list[Candidate]:
    return [candidate for batch in batches if not isinstance(batch, TextDelta) for candidate in batch]


async def test_single_streams_its_text_and_then_yields_the_sample() -> None:
    bench = Bench()
    first, *rest = await play("single", bench)
    assert first == TextDelta(sample_id="m/0", text="0")
    assert [c.sample for c in candidates(rest)] == SAMPLES


@pytest.mark.parametrize("name", ["majority", "best_of_n", "weighted"])
async def test_where_the_text_cannot_be_known_before_the_end_it_does_not_stream(name: str) -> None:
    bench = Bench({sample.id: ChainScore(id=sample.id, steps=[0.5]) for sample in SAMPLES})
    await play(name, bench)
    assert bench.streamed is False


@pytest.mark.parametrize("name", ["single", "majority"])
async def test_each_sample_has_one_vote(name: str) -> None:
    found = candidates(await play(name, Bench()))
    assert [candidate.weight for candidate in found] == [1.0, 1.0, 1.0]
    assert not any(candidate.scores.id for candidate in found)
    assert STRATEGIES[name].selection == SELECTION_SUM


SCORED = ("best_of_n", "weighted")


@pytest.mark.parametrize("name", SCORED)
@pytest.mark.parametrize(
    ("scoring", "weights"),
    [
        (CHAIN_SCORING_UNSPECIFIED, [0.4, 0.9, 0.7]),
        (CHAIN_SCORING_MEAN, [0.4, 0.9, 0.7]),
        (CHAIN_SCORING_MIN, [0.2, 0.9, 0.1]),
        (CHAIN_SCORING_PRODUCT, [0.12, 0.9, 0.1]),
        (CHAIN_SCORING_LAST, [0.6, 0.9, 0.1]),
    ],
)
async def test_a_sample_weighs_what_the_rule_makes_of_its_steps(
    name: str, scoring: ChainScoring.ValueType, weights: list[float]
) -> None:
    scores = {
        "m/0": ChainScore(id="m/0", steps=[0.2, 0.6]),
        "m/1": ChainScore(id="m/1", steps=[0.9]),
        "m/2": ChainScore(id="m/2", steps=[1.0, 1.0, 0.1]),
    }
    batches = await play(name, Bench(scores, scoring=scoring))
    assert [len(batch) for batch in batches] == [2, 1]  # type: ignore[arg-type]
    assert [c.weight for c in candidates(batches)] == pytest.approx(weights)
    assert [c.scores for c in candidates(batches)] == list(scores.values())


def test_the_best_one_wins_or_the_most_weight_in_all() -> None:
    assert [STRATEGIES[name].selection for name in SCORED] == [SELECTION_BEST, SELECTION_SUM]
    assert all(STRATEGIES[name].verifies for name in SCORED)


steps = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@given(steps)
def test_chain_scores_are_in_0_to_1_and_in_order(found: list[float]) -> None:
    rules = (CHAIN_SCORING_PRODUCT, CHAIN_SCORING_MIN, CHAIN_SCORING_MEAN)
    product, least, mean = (chain_score(found, rule) for rule in rules)
    assert 0 <= product <= least <= mean * (1 + 1e-12)
    assert mean <= 1
    assert least <= chain_score(found, CHAIN_SCORING_LAST) <= 1
    assert chain_score(found, CHAIN_SCORING_UNSPECIFIED) == mean


@given(steps, st.data())
def test_a_better_step_never_makes_a_worse_chain(found: list[float], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(found) - 1))
    better = [*found[:at], data.draw(st.floats(found[at], 1)), *found[at + 1 :]]
    for rule in ChainScoring.values():
        assert chain_score(better, rule) >= chain_score(found, rule) * (1 - 1e-12)


@pytest.mark.parametrize("rule", ChainScoring.values())
def test_one_step_is_the_chain_and_none_is_an_error(rule: ChainScoring.ValueType) -> None:
    assert chain_score([0.375], rule) == 0.375
    with pytest.raises(ValueError, match="without steps"):
        chain_score([], rule)


@pytest.mark.parametrize("name", SCORED)
async def test_a_sample_that_cannot_be_scored_has_no_weight_and_hinders_no_other(name: str) -> None:
    scores = {sample.id: ChainScore(id=sample.id, steps=[0.5]) for sample in SAMPLES}
    scores["m/1"] = ChainScore(id="m/1", error="it has no steps")
    found = candidates(await play(name, Bench(scores)))
    assert [c.weight for c in found] == [0.5, 0.0, 0.5]
    assert found[1].scores.error == "it has no steps"
    assert math.isfinite(sum(c.weight for c in found))


@pytest.mark.parametrize("name", [name for name, one in STRATEGIES.items() if not one.shape])
async def test_closing_a_strategy_closes_its_round(name: str) -> None:
    bench = Bench({sample.id: ChainScore(id=sample.id, steps=[0.5]) for sample in SAMPLES})
    playing = STRATEGIES[name].play(bench)
    await anext(playing)
    assert not bench.closed
    await playing.aclose()
    assert bench.closed


async def test_a_verifier_that_fails_closes_the_round_and_is_raised() -> None:
    bench = Bench(failure=Unavailable("the verifier is down"))
    with pytest.raises(Unavailable, match="the verifier is down"):
        await play("best_of_n", bench)
    assert bench.closed
