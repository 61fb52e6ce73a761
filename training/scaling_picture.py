"""Scaling laws as a picture: points with intervals, the chosen form, the ceiling. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import matplotlib as mpl
import numpy as np

from router.scaling import ScalingRecord, accuracy
from training.scaling import Points, Scaling

BINS: Final = {1: ("",), 2: ("easy half", "hard half"), 3: ("easy third", "middle third", "hard third")}
"""Names of bins, easiest first, by how many there are; where there are more they have numbers."""
_ALL: Final = "#444444"


def draw(axes: Any, records: Sequence[ScalingRecord], points: Sequence[Points] = ()) -> None:
    """One panel: accuracy in % over samples, of one model and strategy.

    `records` are laws of different bins of difficulty, whose colours go from light (easy) to dark (hard);
    that of all queries is grey. `points`, where there are any, are the measured curves in the same order.
    A dashed line is a ceiling, and ends at the right edge; a triangle, the best n where accuracy falls
    beyond it.
    """
    bins = sorted(record.difficulty for record in records if record.difficulty)
    shades = mpl.colormaps["viridis_r"](np.linspace(0.2, 1.0, max(len(bins), 1)))
    most = max(record.samples[1] for record in records)
    for at, record in enumerate(records):
        colour = shades[bins.index(record.difficulty)] if record.difficulty else _ALL
        least, last = record.samples
        n = np.geomspace(least, last, 100)
        law = 100 * accuracy(record.form, record.parameters, n)
        axes.plot(n, law, color=colour, lw=1.4, label=_name(record, bins), zorder=3)
        if record.ceiling is not None:
            axes.plot([last, most * 2], [100 * record.ceiling] * 2, "--", color=colour, lw=1, zorder=2)
        if points:
            told = points[at]
            reach = 100 * np.array([told.accuracy - told.low, told.high - told.accuracy])
            axes.errorbar(
                told.samples, 100 * told.accuracy, np.maximum(reach, 0), fmt="o", ms=2.2, lw=0.6,
                color=colour, alpha=0.8,
            )  # fmt: skip
        if record.falls:
            best = 100 * record.at(record.best_n)
            if points:
                best = 100 * points[at].accuracy[points[at].samples.tolist().index(record.best_n)]
            axes.plot(record.best_n, best, "v", color=colour, ms=6, mec="white", mew=0.7, zorder=4)
    axes.set_xscale("log", base=4)
    axes.xaxis.set_major_formatter(lambda n, _: f"{n:g}")
    axes.minorticks_off()
    axes.set_xlim(0.85, most * 2)
    axes.grid(alpha=0.25, lw=0.5)


def small_multiples(laws: Sequence[Scaling], title: str) -> Any:
    """A figure: models by column, strategies by row, bins as colours."""
    from matplotlib import pyplot as plt

    models = list(dict.fromkeys(one.record.model for one in laws))
    strategies = list(dict.fromkeys(one.record.strategy for one in laws))
    figure, grid = plt.subplots(
        len(strategies), len(models), figsize=(max(2.1 * len(models) + 0.8, 6), 2.2 * len(strategies) + 0.9),
        sharex="col", sharey="row", squeeze=False, layout="constrained",
    )  # fmt: skip
    for line, strategy in zip(grid, strategies, strict=True):
        for axes, model in zip(line, models, strict=True):
            chosen = [one for one in laws if (one.record.model, one.record.strategy) == (model, strategy)]
            draw(axes, [one.record for one in chosen], [one.points for one in chosen])
        line[0].set_ylabel(f"{strategy.replace('_', ' ')}, %")
    for axes, model in zip(grid[0], models, strict=True):
        axes.set_title(model, fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("samples")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def _name(record: ScalingRecord, bins: Sequence[tuple[float, float]]) -> str:
    if not record.difficulty:
        return "all queries"
    which = bins.index(record.difficulty)
    return BINS[len(bins)][which] if len(bins) in BINS else f"bin {which + 1} of {len(bins)}"
