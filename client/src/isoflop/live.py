"""The events of a query as they come, for people."""

from __future__ import annotations

import shutil
from typing import TextIO

from isoflop import text
from isoflop.text import Style
from isoflop.v1.router_pb2 import StreamSolveResponse, Tally


class Progress:
    """Shows events on a stream: one line each, or, on a terminal, lines that the next one replaces.

    `final` ends the progress and shows nothing: the caller has the result.
    """

    def __init__(self, out: TextIO, style: Style) -> None:
        self._out = out
        self._style = style
        self._terminal = out.isatty()
        self._passing = False  # The cursor's line is to be replaced.
        self._midline = False  # The cursor's line is text of the answer, to be kept.

    def show(self, event: StreamSolveResponse) -> None:
        """Show one event."""
        match event.WhichOneof("event"):
            case "started":
                belief = text.difficulty(event.started.difficulty)
                self._line(f"query {text.line(event.started.query_id)}, difficulty {belief}")
            case "round":
                self._line(f"round {event.round.index + 1}: {text.decided(event.round)}")
            case "text":
                self._text(text.clean(event.text.text))
            case "sample":
                tokens = text.counted(event.sample.tokens, "token")
                self._passing_line(f"sample {text.line(event.sample.id)}: {tokens}")
            case "scores":
                scores = " ".join(f"{score:.2f}" for score in event.scores.steps)
                self._passing_line(f"scores {text.line(event.scores.id)}: {scores or event.scores.error}")
            case "tally":
                self._passing_line(votes(event.tally))
            case "stopped":
                word = "gave up" if event.stopped.abandoned else "stopped"
                self._line(f"{word}: {text.line(event.stopped.reason)}")
            case "final":
                self.end()
        self._out.flush()

    def end(self) -> None:
        """Leave the cursor at the beginning of an empty line."""
        self._out.write("\r\x1b[2K" if self._passing else "\n" if self._midline else "")
        self._passing = self._midline = False

    def _line(self, words: str) -> None:
        self.end()
        self._out.write(f"{self._style.faint(words)}\n")

    def _passing_line(self, words: str) -> None:
        if not self._terminal:
            self._line(words)
            return
        self.end()
        self._out.write(self._style.faint(words[: shutil.get_terminal_size().columns - 1]))
        self._passing = True

    def _text(self, words: str) -> None:
        if self._passing:
            self.end()
        self._out.write(words)
        self._midline = not words.endswith("\n") if words else self._midline


def votes(tally: Tally) -> str:
    """The answers and their votes, the leader first, and how sure it is."""
    counts = [f"{text.line(cluster.answer)} ({len(cluster.members)})" for cluster in tally.clusters[:5]]
    if tally.blanks:
        counts.append(f"no answer ({tally.blanks})")
    return f"votes {', '.join(counts) or 'none'}; confidence {tally.confidence:.0%}"
