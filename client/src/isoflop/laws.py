"""The laws by which accuracy grows with samples, drawn: a small panel for each model and strategy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from isoflop.text import line
from isoflop.v1.router_pb2 import ScalingLaw

ACROSS = 4
"""Models side by side; where there are more, they go on below."""
ROW = 1.9
"""Inches of a row of panels."""
BINS = {2: ("easy half", "hard half"), 3: ("easy third", "middle third", "hard third")}
"""Names of bins, easiest first, by how many there are; else they have numbers."""
DASHES = ((0, (5, 1.5)), (0, (5, 1.2, 1, 1.2)), (0, (1, 1.2)))
"""Of bins, easiest first: colour is the model's, and need not be seen."""
GAP, STEP = 1.7, 1.4
"""From the most samples to the first ceiling, and from one ceiling to the next, as factors."""

Bin = tuple[float, float]
Way = tuple[str, str]
"""A strategy and its verifier."""


def models_and_ways(laws: Sequence[ScalingLaw]) -> tuple[list[str], list[Way]]:
    """Models and strategies in the order in which they come."""
    models = dict.fromkeys(law.model for law in laws)
    return list(models), list(dict.fromkeys((law.strategy, law.verifier) for law in laws))


def rows(laws: Sequence[ScalingLaw]) -> int:
    """Rows of panels that are drawn of them."""
    models, ways = models_and_ways(laws)
    return len(ways) * math.ceil(len(models) / ACROSS)


def draw(figure: Any, laws: Sequence[ScalingLaw], colours: Mapping[str, str], ink: str) -> None:
    """Draw one law at least into a figure: models by column and colour, strategies by row, bins by dashes.

    Bars are 95 % intervals: at a line's end of its accuracy, right of the lines of its ceiling, if it has
    one. A triangle is where accuracy begins to fall.
    """
    models, ways = models_and_ways(laws)
    across = min(len(models), ACROSS)
    grid = figure.subplots(rows(laws), across, sharex=True, sharey=True, squeeze=False)
    most = max(law.points[-1].samples for law in laws)
    empty = set(grid.flat)
    for (at, model), (row, way) in product(enumerate(models), enumerate(ways)):
        block, column = divmod(at, across)
        axes = grid[block * len(ways) + row, column]
        empty.remove(axes)
        own = [law for law in laws if (law.model, law.strategy, law.verifier) == (model, *way)]
        _panel(axes, own, colours.get(model, ink), ink, most)
        if row == 0:
            axes.set_title(line(model), color=ink, fontsize=9)
        if row == len(ways) - 1 and at + across >= len(models):
            axes.tick_params(labelbottom=True)
        if column == 0:
            axes.set_ylabel(_name(way, ways), fontsize=9)
    for axes in empty:
        axes.set_visible(False)
    told = "samples; right of the lines their ceilings, where one was found; bars: 95 % intervals"
    figure.supxlabel(told, fontsize=10)
    _legend(figure, laws, ink)


def _name(way: Way, ways: Sequence[Way]) -> str:
    strategy, verifier = way
    name = strategy.replace("_", " ")
    if [other for other, _ in ways].count(strategy) > 1:
        name += f"\nby {line(verifier)}"
    return f"{name}, %"


def _panel(axes: Any, laws: Sequence[ScalingLaw], colour: str, ink: str, most: int) -> None:
    bins = bins_of(laws)
    for law in laws:
        which = _which(law, bins)
        n, right = [point.samples for point in law.points], [100 * point.accuracy for point in law.points]
        axes.plot(n, right, color=colour, **_look(which))
        if law.HasField("interval"):
            _bar(axes, n[-1], law.interval.low, law.interval.high, colour)
        if law.HasField("ceiling"):
            x, ceiling = most * GAP * STEP ** (0 if which is None else which + 1), 100 * law.ceiling
            axes.plot([n[-1], x], [right[-1], ceiling], color=colour, alpha=0.6, linewidth=0.6)
            axes.plot([x], [ceiling], "_", color=colour, markersize=7)
            _bar(axes, x, law.ceiling_interval.low, law.ceiling_interval.high, colour)
        if law.falls:
            best = min(law.points, key=lambda point: abs(point.samples - law.best_samples))
            axes.plot([law.best_samples], [100 * best.accuracy], "v", color=colour, markersize=5)
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.85, most * GAP * STEP ** (len(BINS[3]) + 1))
    axes.set_xticks([4**power for power in range(most.bit_length()) if 4**power <= most])
    axes.xaxis.set_major_formatter(lambda n, _: f"{n:g}")
    axes.minorticks_off()
    axes.set_ylim(-4, 104)
    axes.set_yticks([0, 50, 100])
    axes.tick_params(which="both", colors=ink, labelsize=8)
    axes.grid(color=ink, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _bar(axes: Any, x: float, low: float, high: float, colour: str) -> None:
    axes.plot([x, x], [100 * low, 100 * high], color=colour, linewidth=1.0)


def bins_of(laws: Sequence[ScalingLaw]) -> list[Bin]:
    """The bins of difficulty among them, easiest first."""
    return sorted({(law.easiest, law.hardest) for law in laws if law.HasField("easiest")})


def _which(law: ScalingLaw, bins: Sequence[Bin]) -> int | None:
    return bins.index((law.easiest, law.hardest)) if law.HasField("easiest") else None


def _look(which: int | None) -> dict[str, Any]:
    """Of a line; None: of all queries."""
    if which is None:
        return {"linestyle": "-", "linewidth": 2.2}
    return {"linestyle": DASHES[which % len(DASHES)], "linewidth": 1.4}


def _legend(figure: Any, laws: Sequence[ScalingLaw], ink: str) -> None:
    from matplotlib.lines import Line2D

    bins = bins_of(laws)
    names = BINS.get(len(bins)) or [f"bin {which + 1} of {len(bins)}" for which in range(len(bins))]
    labels = ["all queries"]
    labels += [f"{name}: {low:+.2f} to {high:+.2f}" for name, (low, high) in zip(names, bins, strict=True)]
    looks = [_look(None), *(_look(which) for which in range(len(bins)))]
    handles = [
        Line2D([], [], color=ink, label=label, **look) for label, look in zip(labels, looks, strict=True)
    ]
    if any(law.falls for law in laws):
        fall = Line2D([], [], color=ink, linestyle="none", marker="v", markersize=5)
        fall.set_label("less from there on")
        handles.append(fall)
    place = "outside upper left"
    figure.legend(handles=handles, frameon=False, labelcolor=ink, loc=place, ncols=2, fontsize=9)
