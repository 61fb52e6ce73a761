"""A search drawn as the tree that it grows: rows for a terminal, lines for what is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, takewhile
from typing import NamedTuple

from isoflop.text import Style, columns, cut, line
from isoflop.v1.router_pb2 import Growth, NodeState

LOW, HIGH = 1 / 3, 2 / 3
"""Scores below the one are red, from the other on green, between them yellow."""
RED, GREEN, YELLOW = 31, 32, 33
"""Colours of a terminal."""
NAMES = {
    NodeState.NODE_STATE_KEPT: "kept",
    NodeState.NODE_STATE_PRUNED: "pruned",
    NodeState.NODE_STATE_ENDED: "ended",
}
"""Of what becomes of a node."""


class Signs(NamedTuple):
    """What a tree is drawn with; branches have two columns each."""

    kept: str
    pruned: str
    ended: str
    way: str
    last_way: str
    past: str
    answer: str
    """Before what led to the answer."""
    gap: str
    """Where something is left out."""


DRAWN = Signs("○", "✗", "✓", "├ ", "└ ", "│ ", "▸ ", "…")
PLAIN = Signs("o", "x", "+", "|-", "`-", "| ", "> ", "..")
"""For terminals without such characters."""


@dataclass(eq=False)
class Part:
    """A node of the search, in its place."""

    id: str
    parent: Part | None
    """None: it begins a chain, or what it continues never came."""
    depth: int
    ways: list[Part] = field(default_factory=list)
    """What continues it, in the order in which it came."""
    words: str = ""
    """Its text on one line."""
    score: float | None = None
    state: NodeState.ValueType = NodeState.NODE_STATE_UNSPECIFIED

    @property
    def pruned(self) -> bool:
        """Nothing runs for it any more."""
        return self.state == NodeState.NODE_STATE_PRUNED

    @property
    def path(self) -> Iterator[Part]:
        """It and all that lead to it."""
        part: Part | None = self
        while part:
            yield part
            part = part.parent


class Growing:
    """The tree of one round's search, as it has grown so far."""

    def __init__(self, style: Style, *, plain: bool = False) -> None:
        """`plain`: in ASCII alone."""
        self._style = style
        self._plain = plain
        self._signs = PLAIN if plain else DRAWN
        self._parts: dict[str, Part] = {}

    def take(self, growth: Growth) -> list[Part]:
        """The nodes that came, in their places. One that comes again keeps its place."""
        came = []
        for node in growth.nodes:
            part = self._parts.get(node.id)
            if part is None:
                # Whoever comes before its parent never gets it, so that nothing leads to itself.
                parent = self._parts.get(node.parent) if node.parent else None
                part = Part(node.id, parent, parent.depth + 1 if parent else 0)
                self._parts[node.id] = part
                if parent:
                    parent.ways.append(part)
            part.state = node.state
            part.words = self._encoded(line(node.text)) or part.words
            part.score = node.score if node.HasField("score") else part.score
            came.append(part)
        return came

    def line(self, part: Part) -> str:
        """A node by itself, indented by its depth."""
        return f"{'  ' * part.depth}{self._sign(part)} {_score(part)}{part.words}".rstrip()

    def rows(self, width: int, most: int, answer: str = "") -> list[str]:
        """At most so many rows of at most so many columns: what of the tree has room, and counts of all.

        `answer` is the id of the node that ends the returned answer, once it is known.
        """
        if not self._parts or most < 1:
            return []
        end = self._parts.get(answer)
        path = set(end.path) if end else set()
        shown = self.chosen(most - 1, end)
        rows = [self._row(stem, part, width, path) for stem, part in self.placed(shown)]
        return [*rows, self._style.faint(self._counts(len(shown), width))]

    def chosen(self, most: int, first: Part | None = None) -> set[Part]:
        """At most so many, each with all that leads to it: `first`, then the newest; pruned ones at last.

        Where not even one path has room, it is its end.
        """
        newest = sorted(self._parts.values(), key=lambda part: not part.pruned)[::-1]
        shown: set[Part] = set()
        for part in [first, *newest] if first else newest:
            room = most - len(shown)
            if room < 1:
                break
            path = list(islice(takewhile(lambda one: one not in shown, part.path), room + 1))
            if len(path) <= room or not shown:
                shown.update(path[:room])
        return shown

    def placed(self, shown: Collection[Part]) -> Iterator[tuple[str, Part]]:
        """These from the top to the bottom, each with the branches before it."""
        signs = self._signs
        tops = [part for part in self._parts.values() if part in shown and part.parent not in shown]
        todo = [(f"{signs.gap} " if part.parent else "", part) for part in reversed(tops)]
        # Branches before what continues a part: where other ways pass by, and where none does any more.
        before = {part: " " * len(stem) for stem, part in todo}
        while todo:
            stem, part = todo.pop()
            yield stem, part
            ways = [way for way in part.ways if way in shown]
            for way in reversed(ways):
                last = way is ways[-1]
                todo.append((before[part] + (signs.last_way if last else signs.way), way))
                before[way] = before[part] + ("  " if last else signs.past)

    def _row(self, stem: str, part: Part, width: int, path: Collection[Part]) -> str:
        style, signs = self._style, self._signs
        if len(stem) > width // 2:  # The branches of a deep tree leave room for its words.
            stem = signs.gap + stem[len(stem) - max(0, width // 2 - len(signs.gap)) :]
        mark = (signs.answer if part in path else " " * len(signs.answer)) if path else ""
        usual = style.faint if part.pruned else str
        pieces: list[tuple[str, Callable[[str], str]]] = [
            (mark, style.strong),
            (stem, style.faint),
            (f"{self._sign(part)} ", usual),
            (_score(part), partial(style.tinted, colour=_colour(part.score or 0.0))),
            (part.words, style.strong if part in path else usual),
        ]
        row = ""
        for words, paint in pieces:
            fitting = cut(words, width, signs.gap)
            width -= columns(fitting)
            row += paint(fitting)
        return row

    def _sign(self, part: Part) -> str:
        name = NAMES.get(part.state)
        return str(getattr(self._signs, name)) if name else "?"

    def _counts(self, shown: int, width: int) -> str:
        """How many nodes there are of each kind, with the names of signs where they have room."""
        counts = Counter(map(self._sign, self._parts.values()))
        left = len(self._parts) - shown
        told = f"{left} left out; " if left else ""
        kinds = [(getattr(self._signs, name), name) for name in NAMES.values()]
        named = told + ", ".join(f"{sign} {counts[sign]} {name}" for sign, name in kinds if counts[sign])
        if columns(named) <= width:
            return named
        return cut(told + " ".join(f"{sign} {counts[sign]}" for sign, _ in kinds), width, self._signs.gap)

    def _encoded(self, words: str) -> str:
        return words.encode("ascii", "backslashreplace").decode() if self._plain else words


def _score(part: Part) -> str:
    return "" if part.score is None else f"{part.score:.2f} "


def _colour(score: float) -> int:
    return GREEN if score >= HIGH else YELLOW if score >= LOW else RED
