"""What each strategy makes of a round."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import pytest
from isoflop.errors import Unavailable
from isoflop.v1.aggregation_pb2 import SELECTION_BEST, SELECTION_SUM
from isoflop.v1.common_pb2 import Sample, TextDelta
from isoflop.v1.verification_pb2 import ChainScore

from router.strategies import STRATEGIES
from router.strategies.strategy import Candidate

SAMPLES = [Sample(id=f"m/{i}", text=str(i)) for i in range(3)]


@dataclass
class Bench:
    """Two batches, and a score for each sample."""

    scores: dict[str, ChainScore] = field(default_factory=dict)
    failure: Exception | None = None
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


@pytest.mark.parametrize("name", ["majority", "best_of_n"])
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


async def test_best_of_n_weighs_a_sample_by_the_mean_score_of_its_steps() -> None:
    scores = {
        "m/0": ChainScore(id="m/0", steps=[0.2, 0.6]),
        "m/1": ChainScore(id="m/1", steps=[0.9]),
        "m/2": ChainScore(id="m/2", steps=[1.0, 1.0, 0.1]),
    }
    batches = await play("best_of_n", Bench(scores))
    assert [len(batch) for batch in batches] == [2, 1]  # type: ignore[arg-type]
    assert [c.weight for c in candidates(batches)] == pytest.approx([0.4, 0.9, 0.7])
    assert [c.scores for c in candidates(batches)] == list(scores.values())
    assert STRATEGIES["best_of_n"].selection == SELECTION_BEST


async def test_a_sample_that_cannot_be_scored_has_no_weight_and_hinders_no_other() -> None:
    scores = {sample.id: ChainScore(id=sample.id, steps=[0.5]) for sample in SAMPLES}
    scores["m/1"] = ChainScore(id="m/1", error="it has no steps")
    found = candidates(await play("best_of_n", Bench(scores)))
    assert [c.weight for c in found] == [0.5, 0.0, 0.5]
    assert math.isfinite(sum(c.weight for c in found))


@pytest.mark.parametrize("name", list(STRATEGIES))
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
