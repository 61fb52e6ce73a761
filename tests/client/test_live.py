"""Events of a query on a terminal, as its screen shows them in the end."""

from __future__ import annotations

import io
import re

import pytest
from isoflop.live import Progress
from isoflop.text import Style
from isoflop.v1.aggregation_pb2 import Cluster
from isoflop.v1.common_pb2 import Sample, TextDelta
from isoflop.v1.router_pb2 import Action, Growth, Node, NodeState, Round, SolveResponse, Stopped, Tally
from isoflop.v1.router_pb2 import StreamSolveResponse as Event

KEPT, PRUNED, ENDED = NodeState.NODE_STATE_KEPT, NodeState.NODE_STATE_PRUNED, NodeState.NODE_STATE_ENDED


class Terminal(io.StringIO):
    """What a terminal is sent."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """What it shows then, all that was scrolled away, too."""
        lines, row, column = [""], 0, 0
        for piece in re.findall(r"\x1b\[\??\d*[A-Za-z]|[\r\n]|[^\r\n\x1b]+", self.getvalue()):
            if piece == "\n":
                row, column = row + 1, 0
                lines += [""] * (row + 1 - len(lines))
            elif piece == "\r":
                column = 0
            elif piece.endswith("A"):
                row -= int(piece[2:-1])
                assert row >= 0
            elif piece == "\x1b[J":
                lines[row:] = [lines[row][:column]]
            elif piece == "\x1b[2K":
                lines[row] = ""
            elif not piece.startswith("\x1b"):
                lines[row] = lines[row][:column].ljust(column) + piece
                column += len(piece)
        return lines


def growth(*nodes: Node) -> Event:
    return Event(growth=Growth(nodes=nodes))


ROUND = Event(round=Round(action=Action(model="m", strategy="beam", samples=2), reason="asked for"))
FIRST = growth(Node(id="m/0", text="1+2*3", score=0.9, state=KEPT))
SECOND = growth(
    Node(id="m/1", parent="m/0", text="2*3=6", score=0.8, state=KEPT),
    Node(id="m/2", parent="m/0", text="2*3=5", score=0.1, state=PRUNED),
)
THIRD = growth(Node(id="m/3", parent="m/1", text="answer: 7", score=0.7, state=ENDED))
CLUSTER = Cluster(answer="7", members=["m/3"], best_member="m/3")
TALLY = Event(tally=Tally(clusters=[CLUSTER], confidence=0.9))
STOPPED = Event(stopped=Stopped(reason="all bought"))
FINAL = Event(final=SolveResponse(answer="7", clusters=[CLUSTER]))
SEARCH = [ROUND, FIRST, SECOND, THIRD, Event(sample=Sample(id="m/3", tokens=9)), TALLY]


def shown(*events: Event, plain: bool = False) -> list[str]:
    out = Terminal()
    progress = Progress(out, Style(), plain=plain)
    for event in events:
        progress.show(event)
    return out.screen()


@pytest.fixture(autouse=True)
def size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")


def test_a_tree_grows_in_its_place() -> None:
    assert shown(*SEARCH) == [
        "round 1: m × beam × 2: asked for",
        "○ 0.90 1+2*3",
        "├ ○ 0.80 2*3=6",
        "│ └ ✓ 0.70 answer: 7",
        "└ ✗ 0.10 2*3=5",
        "○ 2 kept, ✗ 1 pruned, ✓ 1 ended",
        "votes 7 (1); confidence 90%",
    ]


def test_in_the_end_it_stays_with_the_path_of_the_answer_marked() -> None:
    assert shown(*SEARCH, STOPPED, FINAL) == [
        "round 1: m × beam × 2: asked for",
        "stopped: all bought",
        "▸ ○ 0.90 1+2*3",
        "▸ ├ ○ 0.80 2*3=6",
        "▸ │ └ ✓ 0.70 answer: 7",
        "  └ ✗ 0.10 2*3=5",
        "○ 2 kept, ✗ 1 pruned, ✓ 1 ended",
        "",
        "",
    ]


def test_each_round_has_a_tree_of_its_own() -> None:
    again = growth(Node(id="m/9", text="7", state=ENDED))
    lines = shown(ROUND, FIRST, TALLY, ROUND, again, FIRST, STOPPED)
    assert [line[:6] for line in lines] == [
        *("round ", "○ 0.90", "○ 1 ke"),
        *("round ", "stoppe", "✓ 7", "○ 0.90", "○ 1 ke", ""),
    ]


def test_text_leaves_the_tree_where_it_is() -> None:
    lines = shown(ROUND, FIRST, TALLY, Event(text=TextDelta(text="so: 7")), SECOND)
    assert lines[2:4] == ["○ 1 kept", "so: 7"]
    assert lines[4].startswith("○ 0.80")


def test_it_never_has_more_rows_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINES", "4")
    assert shown(*SEARCH)[1:] == [
        "… ○ 0.80 2*3=6",
        "  └ ✓ 0.70 answer: 7",
        "2 left out; ○ 2 kept, ✗ 1 pruned, ✓ 1 ended",
        "votes 7 (1); confidence 90%",
    ]
    monkeypatch.setenv("LINES", "1")
    assert shown(*SEARCH)[1:] == ["votes 7 (1); confidence 90%"]


def test_without_such_characters_it_is_ascii() -> None:
    assert "".join(shown(*SEARCH, FINAL, plain=True)[1:]).isascii()


def test_on_what_is_no_terminal_each_node_is_a_line() -> None:
    out = io.StringIO()
    progress = Progress(out, Style())
    for event in (*SEARCH, STOPPED, FINAL):
        progress.show(event)
    assert out.getvalue().splitlines() == [
        "round 1: m × beam × 2: asked for",
        "○ 0.90 1+2*3",
        "  ○ 0.80 2*3=6",
        "  ✗ 0.10 2*3=5",
        "    ✓ 0.70 answer: 7",
        "sample m/3: 9 tokens",
        "votes 7 (1); confidence 90%",
        "stopped: all bought",
    ]
