"""Tree search: where it goes, how it comes back, and when it ends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from isoflop.v1.router_pb2 import Growth
from scripted_bench import ScriptedBench, everything, play, texts

from router.strategies import STRATEGIES
from router.strategies.strategy import Candidate, Search

TREE = STRATEGIES["tree"]


async def test_where_it_is_bad_it_goes_back_and_on_elsewhere() -> None:
    bench = ScriptedBench(
        {"": "ab", "a": "cd", "b": "x.", "*": "ef"},
        {"a": 0.9, "b": 0.5, "c": 0.0, "d": 0.0, ".": 0.7},
        Search(width=1, expansion=2, depth=8, nodes=6),
    )
    assert texts(await play(bench, TREE)) == [["b."]]
    # The better beginning first; as its continuations are bad, the other one.
    assert [chains for chains, _ in bench.asked] == [[""], ["a"], ["b"]]


async def test_leaves_that_are_tried_at_once_differ() -> None:
    search = Search(width=2, expansion=2, depth=8, nodes=6)
    bench = ScriptedBench({"": "ab", "*": "cd"}, search=search, says={"*": "."})
    await play(bench, TREE)
    assert [chains for chains, _ in bench.asked[:2]] == [[""], ["a", "b"]]


async def test_where_steps_run_out_before_a_chain_has_ended_the_best_beginnings_are_finished() -> None:
    tree, scores = {"": "ab", "*": "c"}, {"a": 0.2, "b": 0.9, "c": 0.1, ".": 0.5}
    bench = ScriptedBench(tree, scores, Search(1, 2, 8, 2), says={"b": "cd."})
    growths = [batch for batch in await everything(bench, TREE) if isinstance(batch, Growth)]
    assert [(node.text, node.state) for node in growths[-1].nodes] == [("cd.", 3)]
    bench = ScriptedBench(tree, scores, Search(1, 2, 8, 2), says={"b": "cd."})
    assert texts(await play(bench, TREE)) == [["bcd."]]


async def test_where_nothing_is_left_to_finish_them_the_best_so_far_are_there() -> None:
    bench = ScriptedBench({"": "ab", "*": "c"}, {"a": 0.2, "b": 0.9}, Search(1, 2, 8, 2), steps=1)
    assert texts(await play(bench, TREE)) == [["b"]]


async def test_the_best_chains_of_all_that_ended_are_there() -> None:
    bench = ScriptedBench({"": "ab", "*": "."}, search=Search(2, 2, 8, 64))
    assert texts(await play(bench, TREE)) == [["a.", "b."]]
    # All of it is known now: nothing more is asked for.
    assert len(bench.asked) == 2


async def test_what_it_is_told_is_enough_to_draw_it() -> None:
    bench = ScriptedBench({"": "ab", "*": "."}, search=Search(2, 2, 8, 64))
    growths = [batch for batch in await everything(bench, TREE) if isinstance(batch, Growth)]
    nodes = {node.id: node for growth in growths for node in growth.nodes}
    drawn = {
        (nodes[node.parent].text if node.parent else "", node.text, node.state) for node in nodes.values()
    }
    assert drawn == {("", "a", 1), ("", "b", 1), ("a", ".", 3), ("b", ".", 3)}
    assert all(node.score == 0.5 for node in nodes.values())


async def test_without_scores_it_has_nodes_without_scores() -> None:
    bench = ScriptedBench({"": "ab", "*": "."}, search=Search(2, 2, 8, 64), missing=True)
    (first, *_) = await everything(bench, TREE)
    assert isinstance(first, Growth)
    assert not any(node.HasField("score") for node in first.nodes)


async def test_where_nothing_can_be_had_there_is_nothing() -> None:
    assert await play(ScriptedBench({"*": "a"}, steps=0), TREE) == []


@given(
    width=st.integers(1, 5),
    expansion=st.integers(1, 4),
    depth=st.integers(1, 6),
    nodes=st.integers(4, 40),
    letters=st.text("abcdef.", min_size=1, max_size=8),
    scores=st.dictionaries(st.sampled_from("abcdef."), st.floats(0, 1)),
)
async def test_it_is_never_larger_or_deeper_than_it_is_told(
    width: int, expansion: int, depth: int, nodes: int, letters: str, scores: dict[str, float]
) -> None:
    """A verifier with one score for all, models that never end, chains that come again: it ends."""
    search = Search(width, expansion, depth, nodes)
    bench = ScriptedBench({"*": letters}, scores, search, says={"*": "."})
    found: list[Candidate] = [candidate for batch in await play(bench, TREE) for candidate in batch]
    steps = bench.asked[: len(bench.asked) - len(bench.limits)]
    assert all(len(chains) <= width and each == expansion for chains, each in steps)
    assert all(len(text) < depth and "." not in text for chains, _ in steps for text in chains)
    asked = [text for chains, _ in steps for text in chains]
    assert len(set(asked)) == len(asked)
    # At last the best beginnings are finished, where none has ended.
    finished = [text for chains, _ in bench.asked[len(steps) :] for text in chains]
    assert len(finished) <= width
    assert bench.made <= nodes + len(finished)
    assert 1 <= len(found) <= width
