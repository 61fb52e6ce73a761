"""The page and the picture of a soak, and whether anything grows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np

from benchmarks.overhead_report import Machine

mpl.use("Agg")
import matplotlib.pyplot as plt

Figures = dict[str, Any]

GROWTH: Final = 0.05
"""Of its memory in an hour: a process that grows by less is flat."""
HELD: Final = ("files", "tasks")
"""What an idle suite must hold no more of afterwards."""
SPARE: Final = 3
"""So many more are chance: a connection that is being opened again, a timer that has not fired."""
SERIES: Final = 3000


def slope(seconds: Sequence[float], megabytes: Sequence[float]) -> tuple[float, float]:
    """MB in an hour by least squares, and half of its 95 % interval.

    Readings that follow each other are alike: the interval is that of as many as are worth them
    (n (1 − r) / (1 + r), with r the correlation of neighbours' residuals).
    """
    x, y = np.array(seconds) / 3600.0, np.array(megabytes)
    x = x - x.mean()
    rise = float(x @ y / (x @ x))
    rest = y - y.mean() - rise * x
    spread = float(rest @ rest)
    if spread == 0:
        return rise, 0.0
    alike = min(0.99, max(0.0, float(rest[1:] @ rest[:-1]) / spread))
    worth = max(3.0, len(y) * (1 - alike) / (1 + alike))
    error = np.sqrt(spread / (worth - 2) / (x @ x) * len(y) / worth) if worth > 2 else np.inf
    return rise, float(1.96 * error)


def verdicts(figures: Figures) -> list[dict[str, Any]]:
    """For each process what it holds, and whether that grows."""
    told = []
    for name in dict.fromkeys(look["process"] for look in figures["looks"]):
        looks = [look for look in figures["looks"] if look["process"] == name]
        late = [look for look in looks if look["seconds"] >= 30.0 * figures["minutes"]]
        rise, half = slope([look["seconds"] for look in late], [look["megabytes"] for look in late])
        before, after = (
            next(look for look in figures[when] if look["process"] == name)
            for when in ("idle_before", "idle_after")
        )
        told.append(
            {
                "process": name,
                "megabytes": late[-1]["megabytes"],
                "rise": rise,
                "half": half,
                "flat": rise - half <= GROWTH * late[-1]["megabytes"],
                "before": before,
                "after": after,
                "leaks": [what for what in HELD if after[what] > before[what] + SPARE],
                "most": {what: max(look[what] for look in looks) for what in (*HELD, "series")},
            }
        )
    return told


def page(figures: Figures) -> str:
    """In Markdown."""
    told = verdicts(figures)
    asked = sum(count for name, count in figures["outcomes"].items() if name != "feedback")
    flat = [one["process"] for one in told if not one["flat"]]
    leaks = [f"{one['process']} ({', '.join(one['leaks'])})" for one in told if one["leaks"]]
    many = max(one["most"]["series"] for one in told)
    lines = [
        f"# {figures['minutes']:.0f} minutes of mixed load",
        "",
        "Written by `make bench-soak` (`MINUTES=60` for an hour); not edited by hand. Two routers, two",
        "replicas of generation, the other services, a real Triton and a real PostgreSQL behind them;",
        f"{figures['clients']} clients of {figures['tenants']:,} tenants, with pauses: all kinds of queries. "
        "One in ten hangs up,",
        "one in ten has less than a second, one in twenty asks for a model that is not there; every 15 s the",
        "connections of one part are reset; three in ten answers get feedback.",
        f"{asked:,} queries, after a minute of full load. Measured on {Machine(**figures['machine'])}.",
        "",
        "![memory, open files and tasks by process](soak.png)",
        "",
        "| promise | measured | holds |",
        "|---|---|---|",
        _line("Memory is flat", "in all processes" if not flat else "grows: " + ", ".join(flat), not flat),
        _line(
            "No tasks, channels or file handles are left behind",
            "in no process" if not leaks else "more when idle: " + ", ".join(leaks),
            not leaks,
        ),
        _line(f"At most {SERIES:,} metric series in any process", f"{many:,}", many <= SERIES),
        "",
        "Memory: of the second half, by least squares, with a 95 % interval; flat: it may well grow by",
        f"less than {100 * GROWTH:.0f} % in an hour. Files (connections, too) and tasks: at most under load,",
        "and of the idle suite before and after.",
        "",
        "| process | MB at the end | MB an hour | files at most | idle, before → after | tasks at most "
        "| idle, before → after | series |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in told:
        before, after, most = one["before"], one["after"], one["most"]
        lines.append(
            f"| {one['process']} | {one['megabytes']:.0f} | {one['rise']:+.1f} ± {one['half']:.1f} "
            f"| {most['files']} | {before['files']} → {after['files']} "
            f"| {most['tasks']} | {before['tasks']} → {after['tasks']} | {most['series']} |"
        )
    outcomes = ", ".join(f"{count:,} {name}" for name, count in figures["outcomes"].items())
    return "\n".join([*lines, "", f"What became of the queries: {outcomes}.", ""])


def _line(text: str, measured: str, holds: bool) -> str:
    return f"| {text} | {measured} | {'yes' if holds else '**no**'} |"


def draw(figures: Figures, path: Path) -> None:
    """Memory, open files and tasks by process, over time."""
    figure, panels = plt.subplots(3, 1, figsize=(9, 9), layout="constrained", sharex=True)
    names = list(dict.fromkeys(look["process"] for look in figures["looks"]))
    for axes, what in zip(panels, ("megabytes", "files", "tasks"), strict=True):
        for name in names:
            looks = [look for look in figures["looks"] if look["process"] == name]
            axes.plot(
                [look["seconds"] / 60 for look in looks], [look[what] for look in looks], lw=1.2, label=name
            )
        axes.set_ylabel({"megabytes": "resident, MB", "files": "open files"}.get(what, what))
        axes.set_ylim(0)
        axes.grid(alpha=0.3)
    panels[0].legend(ncols=4, fontsize=8)
    panels[-1].set_xlabel("minutes")
    figure.savefig(path, dpi=110)
    plt.close(figure)
