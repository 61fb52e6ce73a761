"""Beam search: what it goes on with, what it drops, and what a round of it may take."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isoflop.errors import FailedPrecondition
from isoflop.v1.aggregation_pb2 import SELECTION_BEST
from isoflop.v1.common_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STEP,
    Capabilities,
    Sample,
    Step,
)
from isoflop.v1.router_pb2 import Filters
from isoflop.v1.router_pb2 import Search as Asked
from scripted_bench import ScriptedBench, play, texts
from synthetic import MIDDLE, make_model, make_planner, make_query, make_state

from router.bench import joined
from router.strategies import STRATEGIES
from router.strategies.strategy import Search, Strategy

BEAM, DVTS = STRATEGIES["beam"], STRATEGIES["dvts"]


async def test_the_best_are_kept_and_nothing_runs_for_those_that_are_pruned() -> None:
    bench = ScriptedBench(
        {"": "abcd", "*": "xy", "bx": ".", "by": ".", "dx": "."}, {"b": 0.9, "d": 0.8, "x": 0.7}
    )
    batches = await play(bench, BEAM)
    # Four beginnings, of which two are kept, best first; after that two ways to go on with each.
    assert bench.asked == [(["", ""], 2), (["b", "d"], 2), (["bx", "dx"], 2)]
    assert texts(batches) == [["bx.", "dx."]]
    assert [candidate.weight for candidate in batches[0]] == [0.5, 0.5]
    assert all(list(candidate.scores.steps) for candidate in batches[0])
    assert BEAM.selection == SELECTION_BEST


async def test_a_chain_that_has_ended_leaves_the_beam_which_goes_on_with_the_rest() -> None:
    bench = ScriptedBench({"": ".a", "*": "b", "ab": "."}, {".": 0.9})
    assert texts(await play(bench, BEAM)) == [["."], ["ab."]]
    assert bench.asked == [(["", ""], 2), (["a"], 2), (["ab"], 2)]


async def test_a_chain_that_has_ended_is_pruned_as_others_are() -> None:
    bench = ScriptedBench({"": ".ab", "*": "."}, {".": 0.1, "a": 0.9, "b": 0.8})
    assert texts(await play(bench, BEAM)) == [["a.", "b."]]


async def test_the_same_chain_is_gone_on_with_once() -> None:
    bench = ScriptedBench({"": "a", "*": "."})
    assert texts(await play(bench, BEAM)) == [["a."]]
    assert bench.asked == [(["", ""], 2), (["a"], 2)]


@pytest.mark.parametrize(("depth", "steps"), [(3, 99), (99, 3)], ids=["deep enough", "no more to be had"])
async def test_what_has_not_ended_by_the_end_is_there_all_the_same(depth: int, steps: int) -> None:
    bench = ScriptedBench({"": "ab", "*": "cd"}, {"a": 0.9, "c": 0.8}, Search(2, 2, depth), steps=steps)
    assert texts(await play(bench, BEAM)) == [["acc", "bcc"]]
    assert len(bench.asked) == 3


async def test_where_nothing_can_be_had_there_is_nothing() -> None:
    assert await play(ScriptedBench({"*": "a"}, steps=0), BEAM) == []


async def test_without_scores_the_first_are_gone_on_with() -> None:
    bench = ScriptedBench({"": "abcd", "*": "."}, missing=True)
    (batch,) = await play(bench, BEAM)
    assert [(one.sample.text, one.weight) for one in batch] == [("a.", 0.0), ("b.", 0.0)]


async def test_beams_apart_keep_the_best_of_each_however_good_the_others_are() -> None:
    bench = ScriptedBench({"": "abcd", "*": "."}, {"a": 0.9, "b": 0.8, "c": 0.1, "d": 0.2})
    assert texts(await play(bench, DVTS)) == [["a.", "d."]]
    assert bench.asked == [(["", ""], 2), (["a", "d"], 2)]


async def test_beams_apart_may_have_the_same_chain() -> None:
    assert texts(await play(ScriptedBench({"": "a", "*": "."}), DVTS)) == [["a.", "a."]]


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
    bench = ScriptedBench({"*": letters}, scores, Search(width, expansion, depth))
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
    chain = joined(joined(Sample(), step("1+1\n", logprob=-0.5), 0), step("=2\n", logprob=-1.0), 0)
    chain = joined(chain, step("2", logprob=-0.25, reason=FINISH_REASON_LENGTH), 3)
    assert chain.branch == 3
    assert (chain.text, chain.tokens, chain.finish_reason) == ("1+1\n=2\n2", 9, FINISH_REASON_LENGTH)
    assert [one.end for one in chain.steps] == [4, 7, 8]
    assert chain.logprob == pytest.approx(-1.75)
    assert math.fsum(one.logprob for one in chain.steps) == pytest.approx(chain.logprob)


def test_a_chain_with_a_step_without_a_log_probability_has_none() -> None:
    chain = joined(joined(Sample(), step("a", logprob=None), 0), step("b", logprob=-1.0), 0)
    assert not chain.HasField("logprob")
    chain = joined(joined(Sample(), step("a", logprob=-1.0), 0), step("b", logprob=None), 0)
    assert not chain.HasField("logprob")


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
