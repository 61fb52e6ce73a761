"""Long chains: extended where they end too soon, closed where they run out."""

from __future__ import annotations

import pytest
from isoflop.v1.common_pb2 import FINISH_REASON_LENGTH, FINISH_REASON_STOP, Model, Sample, Step, Thinking
from isoflop.v1.router_pb2 import Growth
from scripted_bench import ScriptedBench, everything, play, texts

from router.strategies import STRATEGIES
from router.strategies.sequential import closed, resumed
from router.strategies.strategy import Search

SEQUENTIAL, BROAD = STRATEGIES["sequential"], STRATEGIES["broad_and_deep"]
THINKER = Model(thinking=Thinking(end="</t>", extend="Wait", close="</t>", answer_tokens=2))
SAYS: dict[str, str | list[str]] = {"": "abc</t>1", "abcWait": "de</t>2", "abcWaitdeWait": "fghijk</t>3"}


def make_bench(
    says: dict[str, str | list[str]] = SAYS, *, depth: int = 4, tokens: int = 0, **fields: object
) -> ScriptedBench:
    search = Search(1, depth=depth, tokens=tokens)
    return ScriptedBench(says=dict(says), model=THINKER, **{"search": search, **fields})  # type: ignore[arg-type]


async def test_an_end_that_comes_too_soon_is_taken_back_as_often_as_it_is_deep() -> None:
    bench = make_bench(depth=2)
    assert texts(await play(bench, SEQUENTIAL)) == [["abcWaitdeWaitfghijk</t>3"]]
    assert [chains for chains, _ in bench.asked] == [[""], ["abcWait"], ["abcWaitdeWait"]]
    assert texts(await play(make_bench(depth=0), SEQUENTIAL)) == [["abc</t>1"]]


async def test_thinking_that_has_had_its_budget_is_not_extended() -> None:
    bench = make_bench(SAYS | {"abcWaitde</t>": "2"}, tokens=10)
    assert texts(await play(bench, SEQUENTIAL)) == [["abcWaitde</t>2"]]
    # Tokens that were made count, whether or not they were taken back.
    assert bench.limits == [[10], [2], [2]]


async def test_thinking_that_runs_out_is_closed_and_answers_within_what_an_answer_has() -> None:
    bench = make_bench({"": "abcdefgh</t>1", "abcde</t>": "123"}, tokens=5)
    (batch,) = await play(bench, SEQUENTIAL)
    assert texts([batch]) == [["abcde</t>12"]]
    assert bench.limits == [[5], [2]]
    assert batch[0].sample.tokens == 7


async def test_an_answer_that_the_budget_of_thinking_cuts_is_ended_all_the_same() -> None:
    bench = make_bench({"": "abcdef</t>421", "abcdef</t>4": "21"}, tokens=11)
    assert texts(await play(bench, SEQUENTIAL)) == [["abcdef</t>421"]]
    assert bench.limits == [[11], [2]]


async def test_where_a_chain_ends_its_thinking_twice_the_first_time_counts() -> None:
    says: dict[str, str | list[str]] = {"": "a</t>b</t>1", "aWait": "cdefghijklmno", "aWaitcdefghij</t>": "9"}
    assert texts(await play(make_bench(says, tokens=19), SEQUENTIAL)) == [["aWaitcdefghij</t>9"]]


async def test_a_chain_with_nothing_to_add_keeps_its_answer() -> None:
    bench = make_bench({"": "abc</t>1", "abcWait": ""})
    assert texts(await play(bench, SEQUENTIAL)) == [["abc</t>1"]]
    assert len(bench.asked) == 2


@pytest.mark.parametrize("steps", [0, 1, 2])
async def test_where_nothing_is_left_to_spend_what_there_is_is_returned(steps: int) -> None:
    found = texts(await play(make_bench(steps=steps), SEQUENTIAL))
    assert found == [[], [["abc</t>1"]], [["abcWaitde</t>2"]]][steps]


async def test_several_chains_are_scored_as_they_end() -> None:
    says: dict[str, str | list[str]] = {"": ["ab</t>1", "abc</t>2"], "abWait": "", "abcWait": "d</t>3"}
    bench = make_bench(says, depth=1, search=Search(2, depth=1), scores={"1": 0.25, "3": 0.75})
    batches = await play(bench, BROAD)
    assert texts(batches) == [["ab</t>1", "abcWaitd</t>3"]]
    assert [candidate.weight for candidate in batches[0]] == [0.25, 0.75]


async def test_how_it_grows_is_told() -> None:
    growths = [one for one in await everything(make_bench(depth=1), SEQUENTIAL) if isinstance(one, Growth)]
    assert [[(n.parent, n.text, n.state) for n in growth.nodes] for growth in growths] == [
        [("", "abc</t>1", 1)],
        [("m/1", "de</t>2", 3)],
    ]


def test_steps_before_the_place_are_kept() -> None:
    text = "one\ntwo</t>3"
    chain = Sample(id="m/1", text=text, tokens=9, steps=[Step(end=4), Step(end=12)])
    again = resumed(Sample(), chain, THINKER.thinking)
    assert (again.text, again.tokens, [step.end for step in again.steps]) == ("one\ntwoWait", 9, [4])
    cut = closed(chain, THINKER.thinking)
    assert (cut.text, [step.end for step in cut.steps]) == (f"{text}</t>", [4, 12])


def test_a_chain_without_a_mark_is_gone_on_with_at_its_end() -> None:
    for reason in (FINISH_REASON_STOP, FINISH_REASON_LENGTH):
        chain = Sample(text="no mark", finish_reason=reason)
        assert resumed(Sample(), chain, THINKER.thinking).text == "no markWait"
