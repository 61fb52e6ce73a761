"""The frontier drawn: on a terminal in characters and, where matplotlib is installed, as a PNG."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import groupby, pairwise
from operator import mul
from pathlib import Path
from typing import Any

from isoflop import laws
from isoflop.errors import FailedPrecondition, InvalidArgument
from isoflop.text import Style, line, si
from isoflop.v1.router_pb2 import FrontierPoint, GetFrontierResponse

HEIGHTS = "▁▂▃▄▅▆▇█"
"""Accuracy of 0 to 1 in eighths."""
WIDTH = 56
"""Columns of the terminal's drawing."""
MOST_ROWS = 9
MOST_LINES = 6
"""Difficulties in each of the two."""
INK = "#7d7d7d"
"""Legible on white and on black."""
COLOURS = ("#3d8fd1", "#e07b28", "#2fa37c", "#c65d9a", "#8f7fd6", "#b3932a", "#d1574f", "#4fa7b5")
"""Of models; each legible on white and on black."""
MARKERS = "osD^vPX*"
"""Of models, too, for those who tell few colours apart."""
APART = 4.5
"""Points of P(right) between the labels of two lines."""
WIDE, HIGH = 7.6, 4.6
"""Inches of the picture of the frontier."""
ANSI = (34, 33, 32, 35, 36, 31)
"""Colours of a terminal."""


Line = tuple[float, list[FrontierPoint]]
"""A difficulty, and its points by rising FLOPs."""


def by_difficulty(response: GetFrontierResponse, most: int) -> list[Line]:
    """The lines of at most so many difficulties, evenly spread by how much is in reach there."""
    lines = [
        (difficulty, list(points))
        for difficulty, points in groupby(response.points, key=lambda point: point.difficulty)
    ]
    if len(lines) <= most:
        return lines
    end = max(map(_price, response.points))
    reach = [_reach(points, end) for _, points in lines]
    low, high = min(reach), max(reach)
    wanted = [high + (low - high) * i / (most - 1) for i in range(most)]
    nearest = {min(range(len(lines)), key=lambda at: abs(reach[at] - want)) for want in wanted}
    return [lines[at] for at in sorted(nearest)]


def _reach(points: Sequence[FrontierPoint], end: float) -> float:
    """The mean of P(right) over the logarithm of FLOPs, from the first to `end`."""
    edges = [*map(_price, points), end]
    steps = [after - before for before, after in pairwise(edges)]
    right = [point.action.expected_accuracy for point in points]
    return sum(map(mul, right, steps)) / sum(steps) if sum(steps) else right[-1]


def models_of(response: GetFrontierResponse) -> list[str]:
    """Models on the frontier, those that come in at fewer FLOPs first."""
    first: dict[str, float] = {}
    for point in response.points:
        name, flops = point.action.model, point.action.expected_flops
        first[name] = min(first.get(name, math.inf), flops)
    return sorted(first, key=lambda name: first[name])


def terminal(response: GetFrontierResponse, style: Style, *, plain: bool = False) -> list[str]:
    """Rows of difficulty: how right the best plan is at each price, and which model's it is.

    `plain`: in digits, tenths of accuracy, for terminals without block characters.
    """
    rows = by_difficulty(response, MOST_ROWS)
    if not rows:
        return ["no model of the catalogue was measured: there is no frontier"]
    names = models_of(response)
    letters = dict(zip(names, "abcdefghijklmnopqrstuvwxyz" * (1 + len(names) // 26), strict=False))
    prices = [_price(point) for point in response.points]
    low, high = min(prices), max(prices)
    step = (high - low or 1.0) / WIDTH

    def paint(name: str, text: str) -> str:
        return style.tinted(text, ANSI[names.index(name) % len(ANSI)])

    lines = [style.faint("difficulty".ljust(12) + _ticks(low, step) + "  best")]
    for difficulty, points in rows:
        heights, models = "", ""
        for column in range(WIDTH):
            # The last column holds the dearest plan of all.
            price = low + (column + 1) * step + 1e-9
            best = [point for point in points if _price(point) <= price][-1:]
            if not best:
                heights, models = heights + " ", models + " "
                continue
            action = best[0].action
            heights += paint(action.model, _height(action.expected_accuracy, plain))
            models += paint(action.model, letters[action.model])
        lines.append(f"{difficulty:+10.2f}  {heights}  {points[-1].action.expected_accuracy:4.0%}")
        lines.append(f"{'':12}{models}".rstrip())
    legend = ", ".join(paint(name, f"{letters[name]} {line(name)}") for name in names)
    height = "digit: tenths of P(right)" if plain else "height: P(right)"
    return [*lines, "", f"{height} of the best plan at that many FLOPs or fewer; its model: {legend}"]


def _price(point: FrontierPoint) -> float:
    """The logarithm of its FLOPs, to the base of ten."""
    return math.log10(max(point.action.expected_flops, 1.0))


def _height(accuracy: float, plain: bool) -> str:
    if plain:
        return str(min(9, int(10 * accuracy)))
    return HEIGHTS[min(len(HEIGHTS) - 1, int(len(HEIGHTS) * accuracy))]


def _ticks(low: float, step: float) -> str:
    """Powers of ten over the columns."""
    text = ""
    for power in range(math.ceil(low - 1e-9), math.ceil(low + WIDTH * step)):
        at = int((power - low) / step)
        label = f"|{re.sub(r'[.]0+ ', ' ', si(10.0**power))}FLOPs"
        if at >= len(text) and at + len(label) <= WIDTH:
            text = text.ljust(at) + label
    return text.ljust(WIDTH)


def picture(response: GetFrontierResponse, path: Path) -> None:
    """Write a PNG: accuracy against FLOPs, a line for each of some difficulties, models by colour and marker;
    below it, where they were fitted, the laws by which accuracy grows with samples (`isoflop.laws`).

    Its ground is transparent, and its ink legible on light and dark. Raises FailedPrecondition where
    matplotlib is not installed or there is no frontier, InvalidArgument for a name without .png, and OSError.
    """
    if path.suffix.lower() != ".png":
        raise InvalidArgument("png", f"{path}: the name must end in .png")
    lines = by_difficulty(response, MOST_LINES)
    if not lines:
        raise FailedPrecondition("no model of the catalogue was measured: there is no frontier to draw")
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise FailedPrecondition(
            "matplotlib is not installed, which --png needs: pip install 'isoflop[picture]'"
        ) from None
    with pyplot.rc_context(
        {"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK}
    ):
        names = models_of(response)
        rows = laws.rows(response.laws)
        figure: Any = pyplot.figure(figsize=(WIDE, HIGH + rows * laws.ROW), layout="constrained")
        upper = figure
        if rows:
            upper, lower = figure.subfigures(2, 1, height_ratios=(HIGH, rows * laws.ROW), hspace=0.03)
            looks = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
            laws.draw(lower, response.laws, looks, INK)
        _draw(upper.subplots(), lines, names, line(response.profile))
        figure.savefig(path, dpi=160, transparent=True)
        pyplot.close(figure)


def _draw(axes: Any, lines: Sequence[Line], names: Sequence[str], profile: str) -> None:
    actions = [[point.action for point in points] for _, points in lines]
    end = 2 * max(each[-1].expected_flops for each in actions)
    tops = [100 * each[-1].expected_accuracy for each in actions]
    for (difficulty, _), each, top, label in zip(lines, actions, tops, _apart(tops), strict=True):
        flops = [action.expected_flops for action in each]
        right = [100 * action.expected_accuracy for action in each]
        # What is best at a price stays so until the next plan is affordable.
        axes.step([*flops, end], [*right, top], where="post", color=INK, linewidth=1.1)
        axes.annotate(
            f"{difficulty:+.2f}",
            (end, top),
            xytext=(1.25 * end, label),
            va="center",
            arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.6},
        )
    for number, name in enumerate(names):
        own = [action for each in actions for action in each if action.model == name]
        axes.plot(
            [action.expected_flops for action in own],
            [100 * action.expected_accuracy for action in own],
            linestyle="none",
            marker=MARKERS[number % len(MARKERS)],
            color=COLOURS[number % len(COLOURS)],
            markersize=5.5,
            label=name,
            zorder=3,
        )
    axes.set_xscale("log")
    axes.set_xlim(right=2.1 * end)
    axes.set_ylim(-3, 103)
    axes.set_xlabel(f"expected FLOPs of a query; at each line its latent difficulty; profile {profile}")
    axes.set_ylabel("P(right), %")
    axes.tick_params(which="both", colors=INK)
    axes.grid(color=INK, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.figure.legend(frameon=False, labelcolor=INK, loc="outside upper left", ncols=4)


def _apart(tops: Sequence[float]) -> list[float]:
    """Heights of labels near these, in the same order, none nearer to another than APART."""
    order = sorted(range(len(tops)), key=lambda at: (-tops[at], at))
    heights = list(tops)
    for above, at in pairwise(order):
        heights[at] = min(heights[at], heights[above] - APART)
    # Those that were pushed off the bottom go up again.
    least = 0.0
    for at in reversed(order):
        heights[at] = max(heights[at], least)
        least = heights[at] + APART
    return heights
