"""Beam search: what it goes on with, what it drops, and what a round of it may take."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isoflop.errors import FailedPrecondition
from isoflop.v1.aggregation_pb2 import SELECTION_BEST
from isoflop.v1.common_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STEP,
    FINISH_REASON_STOP,
    Capabilities,
    Sample,
    Step,
)
from isoflop.v1.router_pb2 import Filters
from isoflop.v1.router_pb2 import Search as Asked
from isoflop.v1.verification_pb2 import CHAIN_SCORING_LAST, ChainScore, ChainScoring
from synthetic import MIDDLE, make_model, make_planner, make_query, make_state

from router.bench import joined
from router.strategies import STRATEGIES
from router.strategies.strategy import Candidate, Search, Strategy

BEAM, DVTS = STRATEGIES["beam"], STRATEGIES["dvts"]


@dataclass
class Bench:
    """Steps are letters: `tree` has what may follow each text in turn; a score is that of the last letter.

    A text that ends with a dot is a whole chain.
    """

    tree: dict[str, str]
    scores: dict[str, float] = field(default_factory=dict)
    search: Search = field(default_factory=lambda: Search(2, 2, 8))
    steps: int = 1 << 30
    """So often it can be extended."""
    missing: bool = False
    scoring: ChainScoring.ValueType = CHAIN_SCORING_LAST
    asked: list[tuple[list[str], int]] = field(default_factory=list)
    """What was to be continued, and how often each."""
    made: int = 0

    def sample(self, stream_text: bool = False) -> AsyncGenerator[list[Sample], None]:
        raise NotImplementedError

    async def extend(self, chains: Sequence[Sample], each: int) -> Sequence[Sample]:
        if len(self.asked) == self.steps:
            return []
        self.asked.append(([chain.text for chain in chains], each))
        first = not chains[0].text
        return [
            self._next(chain, branch, branch * each + number if first else number)
            for branch, chain in enumerate(chains)
            for number in range(each)
        ]

    def _next(self, chain: Sample, branch: int, number: int) -> Sample:
        letters = self.tree.get(chain.text, self.tree["*"])
        letter = letters[number % len(letters)]
        reason = FINISH_REASON_STOP if letter == "." else FINISH_REASON_STEP
        self.made += 1
        text = chain.text + letter
        return Sample(id=f"m/{self.made}", branch=branch, text=text, tokens=1, finish_reason=reason)

    async def score(self, samples: Sequence[Sample]) -> Sequence[ChainScore]:
        if self.missing:
            return [ChainScore(id=sample.id, error="the verifier is down") for sample in samples]
        return [
            ChainScore(id=sample.id, steps=[self.scores.get(letter, 0.5) for letter in sample.text])
            for sample in samples
        ]


async def play(bench: Bench, strategy: Strategy = BEAM) -> list[list[Candidate]]:
    return [batch async for batch in strategy.play(bench) if isinstance(batch, list)]


def texts(batches: list[list[Candidate]]) -> list[list[str]]:
    return [[candidate.sample.text for candidate in batch] for batch in batches]


async def test_the_best_are_kept_and_nothing_runs_for_those_that_are_pruned() -> None:
    bench = Bench({"": "abcd", "*": "xy", "bx": ".", "by": ".", "dx": "."}, {"b": 0.9, "d": 0.8, "x": 0.7})
    batches = await play(bench)
    # Four beginnings, of which two are kept, best first; after that two ways to go on with each.
    assert bench.asked == [(["", ""], 2), (["b", "d"], 2), (["bx", "dx"], 2)]
    assert texts(batches) == [["bx.", "dx."]]
    assert [candidate.weight for candidate in batches[0]] == [0.5, 0.5]
    assert all(list(candidate.scores.steps) for candidate in batches[0])
    assert BEAM.selection == SELECTION_BEST


async def test_a_chain_that_has_ended_leaves_the_beam_which_goes_on_with_the_rest() -> None:
    bench = Bench({"": ".a", "*": "b", "ab": "."}, {".": 0.9})
    assert texts(await play(bench)) == [["."], ["ab."]]
    assert bench.asked == [(["", ""], 2), (["a"], 2), (["ab"], 2)]


async def test_a_chain_that_has_ended_is_pruned_as_others_are() -> None:
    bench = Bench({"": ".ab", "*": "."}, {".": 0.1, "a": 0.9, "b": 0.8})
    assert texts(await play(bench)) == [["a.", "b."]]


async def test_the_same_chain_is_gone_on_with_once() -> None:
    bench = Bench({"": "a", "*": "."})
    assert texts(await play(bench)) == [["a."]]
    assert bench.asked == [(["", ""], 2), (["a"], 2)]


@pytest.mark.parametrize(("depth", "steps"), [(3, 99), (99, 3)], ids=["deep enough", "no more to be had"])
async def test_what_has_not_ended_by_the_end_is_there_all_the_same(depth: int, steps: int) -> None:
    bench = Bench({"": "ab", "*": "cd"}, {"a": 0.9, "c": 0.8}, Search(2, 2, depth), steps)
    assert texts(await play(bench)) == [["acc", "bcc"]]
    assert len(bench.asked) == 3


async def test_where_nothing_can_be_had_there_is_nothing() -> None:
    assert await play(Bench({"*": "a"}, steps=0)) == []


async def test_without_scores_the_first_are_gone_on_with() -> None:
    bench = Bench({"": "abcd", "*": "."}, missing=True)
    (batch,) = await play(bench)
    assert [(one.sample.text, one.weight) for one in batch] == [("a.", 0.0), ("b.", 0.0)]


async def test_beams_apart_keep_the_best_of_each_however_good_the_others_are() -> None:
    bench = Bench({"": "abcd", "*": "."}, {"a": 0.9, "b": 0.8, "c": 0.1, "d": 0.2})
    assert texts(await play(bench, DVTS)) == [["a.", "d."]]
    assert bench.asked == [(["", ""], 2), (["a", "d"], 2)]


async def test_beams_apart_may_have_the_same_chain() -> None:
    assert texts(await play(Bench({"": "a", "*": "."}), DVTS)) == [["a.", "a."]]


@given(
    width=st.integers(1, 5),
    expansion=st.integers(1, 4),
    depth=st.integers(1, 6),
    letters=st.text("abcdef.", min_size=1, max_size=8),
    scores=st.dictionaries(st.sampled_from("abcdef."), st.floats(0, 1)),
    strategy=st.sampled_from([BEAM, DVTS]),
)
async def test_a_beam_is_never_wider_or_deeper_than_it_is_told(
    width: int, expansion: int, depth: int, letters: str, scores: dict[str, float], strategy: Strategy
) -> None:
    bench = Bench({"*": letters}, scores, Search(width, expansion, depth))
    found = [candidate for batch in await play(bench, strategy) for candidate in batch]
    assert len(bench.asked) <= depth
    assert all(len(chains) * each <= width * expansion for chains, each in bench.asked)
    assert 1 <= len(found) <= width
    assert strategy is DVTS or len({candidate.sample.text for candidate in found}) == len(found)
    assert all("." not in text for chains, _ in bench.asked for text in chains)


def step(text: str, *, logprob: float | None, reason: int = FINISH_REASON_STEP) -> Sample:
    return Sample(
        id=f"m/{text}",
        text=text,
        tokens=3,
        logprob=logprob,
        finish_reason=reason,  # type: ignore[arg-type]
        steps=[Step(end=len(text), tokens=3, logprob=logprob)],
    )


def test_steps_are_joined_to_a_chain() -> None:
    chain = joined(joined(Sample(), step("1+1\n", logprob=-0.5)), step("=2\n", logprob=-1.0))
    chain = joined(chain, step("2", logprob=-0.25, reason=FINISH_REASON_LENGTH))
    assert (chain.text, chain.tokens, chain.finish_reason) == ("1+1\n=2\n2", 9, FINISH_REASON_LENGTH)
    assert [one.end for one in chain.steps] == [4, 7, 8]
    assert chain.logprob == pytest.approx(-1.75)
    assert math.fsum(one.logprob for one in chain.steps) == pytest.approx(chain.logprob)


def test_a_chain_with_a_step_without_a_log_probability_has_none() -> None:
    chain = joined(joined(Sample(), step("a", logprob=None)), step("b", logprob=-1.0))
    assert not chain.HasField("logprob")
    assert not joined(joined(Sample(), step("a", logprob=-1.0)), step("b", logprob=None)).HasField("logprob")


def test_each_query_gets_the_search_that_it_asks_for_and_pays_for_it() -> None:
    stepwise = make_model("m", capabilities=Capabilities(logprobs=True, prefix=True, steps=True))
    planner = make_planner(None, stepwise)
    found = []
    for asked in (Asked(width=2), Asked(width=2, expansion=3, depth=5), Asked(width=2, depth=9)):
        query = make_query(planner, filters=Filters(strategies=["beam"], search=asked))
        action = planner.decide(query, make_state(planner, MIDDLE)).action
        assert action is not None
        found.append(action)
    assert [action.search for action in found] == [Search(2, 4, 64), Search(2, 3, 5), Search(2, 4, 9)]
    assert [(action.samples, action.lanes) for action in found] == [(2, 8), (2, 6), (2, 8)]
    assert found[0].cost.flops == pytest.approx(found[1].cost.flops * 4 / 3)
    assert found[1].name == "m beam of 2 × 3"


def test_a_model_that_cannot_end_a_sample_after_a_step_is_not_searched() -> None:
    planner = make_planner(None, make_model("m"))
    query = make_query(planner, filters=Filters(strategies=["beam"]))
    with pytest.raises(FailedPrecondition, match="no model can serve"):
        planner.decide(query, make_state(planner, MIDDLE))
