"""The events of a query as they come, for people."""

from __future__ import annotations

import shutil
from typing import TextIO

from isoflop import text
from isoflop.growing import Growing
from isoflop.text import Style
from isoflop.v1.router_pb2 import Growth, SolveResponse, StreamSolveResponse, Tally


class Progress:
    """Shows events on a stream: one line each, or, on a terminal, lines that the next one replaces.

    On a terminal a search is drawn as the tree that it grows, below the other lines of its round. `final`
    ends the progress and marks what led to the answer, and shows nothing more: the caller has the result.
    """

    def __init__(self, out: TextIO, style: Style, *, plain: bool = False) -> None:
        """`plain`: a tree is drawn in ASCII."""
        self._out = out
        self._style = style
        self._plain = plain
        self._terminal = out.isatty()
        self._passing = False  # The cursor's line is to be replaced.
        self._midline = False  # The cursor's line is text of the answer, to be kept.
        self._tree = Growing(style, plain=plain)
        self._rows = 0  # Above the cursor's line, of the tree.

    def show(self, event: StreamSolveResponse) -> None:
        """Show one event."""
        match event.WhichOneof("event"):
            case "started":
                belief = text.difficulty(event.started.difficulty)
                self._line(f"query {text.line(event.started.query_id)}, difficulty {belief}")
            case "round":
                self._leave_tree()
                self._line(f"round {event.round.index + 1}: {text.decided(event.round)}")
            case "text":
                self._text(text.clean(event.text.text))
            case "sample":
                tokens = text.counted(event.sample.tokens, "token")
                self._passing_line(f"sample {text.line(event.sample.id)}: {tokens}")
            case "scores":
                scores = " ".join(f"{score:.2f}" for score in event.scores.steps)
                told = scores or text.line(event.scores.error)
                self._passing_line(f"scores {text.line(event.scores.id)}: {told}")
            case "tally":
                self._passing_line(votes(event.tally))
            case "growth":
                self._grow(event.growth)
            case "stopped":
                word = "gave up" if event.stopped.abandoned else "stopped"
                self._line(f"{word}: {text.line(event.stopped.reason)}")
            case "final":
                self._finish(event.final)
        self._out.flush()

    def end(self) -> None:
        """Leave the cursor at the beginning of an empty line."""
        self._out.write("\r\x1b[2K" if self._passing else "\n" if self._midline else "")
        self._passing = self._midline = False

    def _line(self, words: str) -> None:
        self._lift_tree()
        self._out.write(f"{self._style.faint(words)}\n")
        self._draw_tree()

    def _passing_line(self, words: str) -> None:
        if not self._terminal:
            self._line(words)
            return
        self.end()
        self._out.write(self._style.faint(text.cut(words, shutil.get_terminal_size().columns - 1)))
        self._passing = True

    def _text(self, words: str) -> None:
        if self._passing:
            self.end()
        self._leave_tree()
        self._out.write(words)
        self._midline = not words.endswith("\n") if words else self._midline

    def _grow(self, growth: Growth) -> None:
        self._lift_tree()
        came = self._tree.take(growth)
        if not self._terminal:
            self._out.writelines(f"{self._tree.line(part)}\n" for part in came)
        self._draw_tree()

    def _finish(self, result: SolveResponse) -> None:
        self._lift_tree()
        self._draw_tree(result.clusters[0].best_member if result.clusters else "")
        self._out.write("\n" if self._rows else "")
        self._leave_tree()

    def _lift_tree(self) -> None:
        """Take it off the terminal."""
        self.end()
        if self._rows:
            self._out.write(f"\x1b[{self._rows}A\x1b[J")
        self._rows = 0

    def _draw_tree(self, answer: str = "") -> None:
        """Draw it, with the path to this node marked, so high that it can be taken off again."""
        if not self._terminal:
            return
        size = shutil.get_terminal_size()
        rows = self._tree.rows(size.columns - 1, size.lines - 1, answer)
        if rows:
            # A row that a terminal takes to be wider than we do must not become two.
            self._out.write("\x1b[?7l" + "\n".join(rows) + "\x1b[?7h\n")
        self._rows = len(rows)

    def _leave_tree(self) -> None:
        """Let it stay where it is: the next search has a tree of its own."""
        self._tree = Growing(self._style, plain=self._plain)
        self._rows = 0


def votes(tally: Tally) -> str:
    """The answers and their votes, the leader first, and how sure it is."""
    counts = [f"{text.line(cluster.answer)} ({len(cluster.members)})" for cluster in tally.clusters[:5]]
    if tally.blanks:
        counts.append(f"no answer ({tally.blanks})")
    return f"votes {', '.join(counts) or 'none'}; confidence {tally.confidence:.0%}"
