"""The tree of a search, without a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isoflop.growing import DRAWN, PLAIN, Growing
from isoflop.text import Style, columns
from isoflop.v1.router_pb2 import Growth, Node, NodeState

KEPT, PRUNED, ENDED = NodeState.NODE_STATE_KEPT, NodeState.NODE_STATE_PRUNED, NodeState.NODE_STATE_ENDED

STEPS = [
    Node(id="a", text="48-(39-17)*2+5\n", score=0.98, state=KEPT),
    Node(id="b", parent="a", text="39-17=22\n", score=0.97, state=KEPT),
    Node(id="c", parent="a", text="39-17=21\n", score=0.16, state=PRUNED),
    Node(id="d", parent="b", text="answer: 9", score=0.5, state=ENDED),
]

ids = st.integers(0, 12).map(str)
nodes = st.builds(
    Node,
    id=ids,
    parent=ids | st.just(""),
    text=st.text(st.characters(exclude_categories=["Cs"])),
    score=st.none() | st.floats(),
    state=st.integers(0, 4),
)


def grown(nodes: Sequence[Node], style: Style = Style(), *, plain: bool = False) -> Growing:  # noqa: B008
    tree = Growing(style, plain=plain)
    for node in nodes:
        tree.take(Growth(nodes=[node]))
    return tree


def chain(length: int) -> list[Node]:
    return [
        Node(id=str(number), parent=str(number - 1), text=f"step {number}", state=KEPT)
        for number in range(length)
    ]


def test_a_node_is_a_row_with_its_state_and_score_below_what_it_continues() -> None:
    assert grown(STEPS).rows(80, 24) == [
        "○ 0.98 48-(39-17)*2+5",
        "├ ○ 0.97 39-17=22",
        "│ └ ✓ 0.50 answer: 9",
        "└ ✗ 0.16 39-17=21",
        "○ 2 kept, ✗ 1 pruned, ✓ 1 ended",
    ]
    assert grown(STEPS, plain=True).rows(80, 24) == [
        "o 0.98 48-(39-17)*2+5",
        "|-o 0.97 39-17=22",
        "| `-+ 0.50 answer: 9",
        "`-x 0.16 39-17=21",
        "o 2 kept, x 1 pruned, + 1 ended",
    ]


def test_the_path_to_the_answer_is_marked() -> None:
    rows = grown(STEPS).rows(80, 24, answer="d")
    assert [row.startswith(DRAWN.answer) for row in rows] == [True, True, True, False, False]
    assert rows[3] == "  └ ✗ 0.16 39-17=21"
    # An answer that is none of its nodes is from elsewhere.
    assert grown(STEPS).rows(80, 24, answer="z") == grown(STEPS).rows(80, 24)


def test_scores_have_colours_where_the_terminal_has() -> None:
    rows = grown(STEPS, Style(colour=True)).rows(80, 24)
    for row, colour in zip(rows, (32, 32, 33, 31), strict=False):
        assert re.search(rf"\x1b\[{colour}m0\.\d\d \x1b", row)
    assert "\x1b" not in "".join(grown(STEPS).rows(80, 24))


def test_a_node_without_a_score_has_none_and_of_an_unknown_state_is_in_doubt() -> None:
    assert grown([Node(id="a", text="thought", state=9)]).rows(80, 24)[0] == "? thought"


def test_a_node_that_comes_again_changes_in_its_place() -> None:
    tree = grown(STEPS)
    tree.take(Growth(nodes=[Node(id="b", parent="d", state=PRUNED)]))
    assert tree.rows(80, 24)[1:3] == ["├ ✗ 0.97 39-17=22", "│ └ ✓ 0.50 answer: 9"]


@pytest.mark.parametrize(
    "bad",
    [
        [Node(id="a", parent="a"), Node(id="b", parent="a")],
        [Node(id="b", parent="a"), Node(id="a", parent="b")],
        [Node(), Node(id="a")],
    ],
    ids=["its own parent", "each other's parent", "no id"],
)
def test_what_cannot_be_begins_a_chain(bad: list[Node]) -> None:
    assert len(grown(bad).rows(80, 24)) == 3
    assert grown([Node(id="b", parent="a", text="x", state=KEPT)]).rows(80, 24)[0] == "○ x"


def test_where_room_is_short_pruned_nodes_go_first_then_old_ones() -> None:
    rows = grown(STEPS).rows(80, 4)
    assert rows[:3] == ["○ 0.98 48-(39-17)*2+5", "└ ○ 0.97 39-17=22", "  └ ✓ 0.50 answer: 9"]
    assert rows[3] == "1 left out; ○ 2 kept, ✗ 1 pruned, ✓ 1 ended"
    assert grown(STEPS).rows(40, 4)[3] == "1 left out; ○ 2 ✗ 1 ✓ 1"
    three = [Node(id=str(number), text=f"chain {number}", state=KEPT) for number in range(3)]
    assert [row[2:] for row in grown(three).rows(80, 3)[:2]] == ["chain 1", "chain 2"]
    # The answer's path comes before what is newer.
    assert [row[4:] for row in grown(three).rows(80, 2, answer="0")[:1]] == ["chain 0"]


def test_of_a_path_that_has_no_room_its_end_is_shown() -> None:
    rows = grown(chain(9)).rows(80, 4)
    assert rows == ["… ○ step 6", "  └ ○ step 7", "    └ ○ step 8", "6 left out; ○ 9 kept"]


def test_branches_of_a_deep_tree_leave_room_for_words() -> None:
    assert grown(chain(30)).rows(20, 40)[29] == "…       └ ○ step 29"


def test_a_text_too_long_shows_its_beginning_and_its_end() -> None:
    long = [Node(id="a", text=f"first{' and' * 99} last", state=KEPT)]
    assert grown(long).rows(20, 9)[0] == "○ first and…and last"
    assert grown(long, plain=True).rows(20, 9)[0] == "o first an..and last"
    wide = [Node(id="a", text="数学" * 99, state=KEPT)]
    assert columns(grown(wide).rows(20, 9)[0]) in (19, 20)


def test_what_a_node_says_cannot_steer_the_terminal() -> None:
    evil = [Node(id="a", text="\x1b[2J\r\n\x07é\u2028", state=KEPT)]
    assert grown(evil).rows(80, 9)[0] == "○ \\x1b[2J\\r \\x07é\\u2028"
    assert "".join(grown(evil, plain=True).rows(80, 9)).isascii()


def test_lines_are_indented_by_depth() -> None:
    tree = Growing(Style())
    assert [tree.line(part) for part in tree.take(Growth(nodes=STEPS))] == [
        "○ 0.98 48-(39-17)*2+5",
        "  ○ 0.97 39-17=22",
        "  ✗ 0.16 39-17=21",
        "    ✓ 0.50 answer: 9",
    ]


def test_a_large_tree_has_every_node_once() -> None:
    deep = [*chain(1000), *(Node(id=f"leaf {n}", parent=str(n), state=ENDED) for n in range(1000))]
    tree = grown(deep)
    assert len(tree.rows(80, 2001)) == 2001
    for _ in range(100):
        assert len(tree.rows(80, 24)) == 24


@given(
    st.lists(nodes, max_size=30),
    st.integers(-1, 60),
    st.integers(-1, 40),
    st.booleans(),
    st.booleans(),
    ids,
)
def test_rows_have_room_whatever_comes(
    nodes: list[Node], width: int, most: int, colour: bool, plain: bool, answer: str
) -> None:
    tree = grown(nodes, Style(colour=colour), plain=plain)
    rows = tree.rows(width, most, answer)
    assert len(rows) <= max(0, most)
    for row in rows:
        shown = re.sub(r"\x1b\[\d+m", "", row)
        assert columns(shown) <= max(0, width)
        assert shown.isprintable()
        assert shown.isascii() or not plain
    if nodes and most > len({node.id for node in nodes}):
        assert "left out" not in tree.rows(200, most)[-1]


@given(st.lists(nodes, max_size=30), st.integers(-1, 40))
def test_each_node_is_placed_at_most_once_and_below_what_it_continues(nodes: list[Node], most: int) -> None:
    tree = grown(nodes)
    shown = tree.chosen(most)
    placed = [part for _, part in tree.placed(shown)]
    assert len(placed) == len(shown) == max(0, min(most, len({node.id for node in nodes})))
    assert len(set(placed)) == len(placed)
    at = {part: number for number, part in enumerate(placed)}
    for part in placed:
        assert part.parent not in at or at[part.parent] < at[part]


def test_signs_take_as_many_columns_each() -> None:
    for signs in (DRAWN, PLAIN):
        assert {columns(sign) for sign in (signs.kept, signs.pruned, signs.ended)} == {1}
        assert {len(branch) for branch in (signs.way, signs.last_way, signs.past, signs.answer)} == {2}
    assert "".join(PLAIN).isascii()
