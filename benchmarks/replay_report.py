"""The replay as a page for people and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

from benchmarks.replay_figures import SUMMARY, accuracy_for, hull

mpl.use("Agg")
mpl.rcParams.update({"svg.hashsalt": "isoflop", "svg.fonttype": "none", "font.size": 9})
import matplotlib.pyplot as plt  # noqa: E402

COLOURS: Final = {
    "fixed": "#777777",
    "isoflop": "#D55E00",
    "Adaptive-Consistency": "#0072B2",
    "ESC": "#56B4E9",
    "agreement cascade": "#009E73",
    "oracle": "#CC79A7",
}
"""Told apart by the colour-blind (Okabe and Ito)."""
GOALS: Final = {
    "math500": {
        "flops_vs_hull_at_best_model_once": 0.75,
        "flops_vs_hull_at_hull_max_minus_0_2pt": 0.33,
        "flops_vs_best_of_40_within_0_05pt": 0.07,
        "share_of_oracle_gap_closed_horizontal": 0.35,
    },
    "gpqa_diamond": {"worst_shortfall_to_hull_pt": 1.0},
}
"""Set before it was built, for all models; the share is to be at least that, the others at most."""
WORDS: Final = {
    "flops_vs_hull_at_best_model_once": "FLOPs against the hull, at the accuracy of the best single sample",
    "flops_vs_hull_at_hull_max_minus_0_2pt": "FLOPs against the hull, at its best less .2 points",
    "flops_vs_best_of_40_within_0_05pt": "FLOPs against the best model's vote of 40, at its less .05 points",
    "share_of_oracle_gap_closed_horizontal": "share of the gap from hull to oracle closed, in FLOPs",
    "worst_shortfall_to_hull_pt": "most points below the hull at equal FLOPs",
}
NOTES: Final = (
    "## How it was counted",
    "",
    "- Right: as the recording says of the sample whose answer was returned. For baselines right answers",
    "  are one answer, as labelled, and wrong ones are alike where they are written alike; the suite",
    "  compares answers by its own aggregation, and pays for its mistakes.",
    "- All policies are played the same permutations of the samples (baselines some more), at most 40",
    "  samples of a model. Equal leaders of a baseline's vote share.",
    "- Means are without first-sample luck: how often the first sample and the first four of each model",
    "  are right, and how long they are, is known over all permutations, and is regressed out.",
    "- Intervals are of 2,000 resamples of problems, policies paired; hulls are found anew in each.",
    "- The hull is of every fixed vote and of buying nothing, two of them mixed at random. isoflop's own",
    "  settings are mixed likewise; so are those of the other baselines, all thresholds and models, of which",
    "  the hull chooses with the knowledge of what is scored: their figures flatter them.",
    "- The share averages over isoflop's settings. Above the hull's best accuracy the hull has its best's",
    "  FLOPs; settings at which the oracle spares less than a twentieth of them are left out.",
    "- The oracle knows of each problem what half of its samples say, and is scored on the other half; it",
    "  can play the fixed votes, too.",
    "- Difficulty is not told from text: most recordings have no prompts.",
    "- AIME has 30 problems and GPQA 99: see the intervals.",
)


def write_page(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """The page, and the picture beside it; `results` as the JSON has them, one for each pool."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(path.with_suffix(".svg"), results)
    lines = [
        "# Recordings, replayed",
        "",
        "Written by `make bench-replay`; not edited by hand. The real suite (router, planner, aggregation,",
        "bill) solves recorded queries; every token is charged, 2 x active parameters x completion tokens",
        "(prompts are not recorded; the second column adds attention, where shapes are public). Profiles are",
        "fitted on other problems: five folds. No number was tuned on a problem that it was scored on; but",
        "forms of belief and planner were chosen after seeing these data sets, as that samples of a weaker",
        "model after a better one promise nothing, and may be too good for them.",
        "",
        f"![accuracy against FLOPs]({path.stem}.svg)",
        "",
    ]
    for one in results:
        lines += [f"## {_title(one)}", "", *_summary(one), *_policy(one), *_ceiling(one)]
    path.write_text("\n".join([*lines, *NOTES]) + "\n")


def _summary(one: dict[str, Any]) -> list[str]:
    others, goals = one["baseline_summaries"], GOALS.get(one["dataset"], {}) if one["pool"] == "all" else {}
    lines = [
        f"{one['problems']} problems, {one['permutations']} permutations each: {', '.join(one['models'])}.",
        "",
        f"| | isoflop | 95 % interval | {' | '.join(others)} | goal |",
        f"|---|---:|---:|{'---:|' * len(others)}---|",
    ]
    for name in SUMMARY:
        told, interval = one["summary"][name], one["summary_intervals"][name]
        between = f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "–"
        rest = " | ".join(_number(figures[name]) for figures in others.values())
        lines.append(
            f"| {WORDS[name]} | {_number(told)} | {between} | {rest} | {_goal(name, told, goals.get(name))} |"
        )
    return [*lines, ""]


def _policy(one: dict[str, Any]) -> list[str]:
    ceiling = _hull(_fixed(one))
    lines = [
        "| isoflop: a right answer's worth, FLOPs | right, % | 95 % interval | said, % | TFLOP a query "
        "| with attention | kilotokens | the hull at these FLOPs, % | samples |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in one["policy"]:
        low, high = (100 * end for end in row["interval"])
        samples = ", ".join(f"{name} {count:.2f}" for name, count in row["samples"].items() if count >= 0.005)
        worth = row["name"].removeprefix("isoflop at ").removesuffix(" FLOPs a right answer")
        lines.append(
            f"| {worth} | {100 * row['accuracy']:.2f} | {low:.2f} to {high:.2f} "
            f"| {100 * row['confidence']:.2f} | {_tera(row['pflop'])} | {_tera(row['pflop_with_attention'])} "
            f"| {row['kilotokens']:.2f} | {100 * accuracy_for(ceiling, row['pflop']):.2f} | {samples} |"
        )
    return [*lines, ""]


def _ceiling(one: dict[str, Any]) -> list[str]:
    """What the hull of the fixed votes is made of."""
    rows = _fixed(one)
    vertices = set(_hull(rows))
    return [
        "| the hull's votes | right, % | TFLOP a query | with attention | kilotokens |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {row['name']} | {100 * row['accuracy']:.2f} | {_tera(row['pflop'])} "
            f"| {_tera(row['pflop_with_attention'])} | {row['kilotokens']:.2f} |"
            for row in sorted(rows, key=lambda row: float(row["pflop"]))
            if (row["pflop"], row["accuracy"]) in vertices
        ),
        "",
    ]


def draw(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Accuracy against FLOPs, one panel for each data set and pool."""
    size = (7.5, 4.0 * len(results))
    figure, axes = plt.subplots(len(results), 1, figsize=size, layout="constrained", squeeze=False)
    for panel, one in zip(axes[:, 0], results, strict=True):
        families: dict[str, list[dict[str, Any]]] = {name: [] for name in COLOURS}
        for row in (*one["baselines"], *one["policy"], *one["oracle"]):
            families[_family(row["name"])].append(row)
        for name, rows in families.items():
            # isoflop's settings as they are; of the others the best.
            own = sorted((row["pflop"], row["accuracy"]) for row in rows)
            curve = own if name == "isoflop" else _hull(rows)[1:]
            panel.plot(
                [1e3 * x for x, _ in curve],
                [100 * y for _, y in curve],
                "o-" if name == "isoflop" else "--" if name == "oracle" else "-",
                color=COLOURS[name],
                label="hull of fixed votes" if name == "fixed" else name,
                markersize=4,
            )
        ceiling = _hull(families["fixed"])
        least, most = ceiling[1][1], ceiling[-1][1]
        panel.set_ylim(100 * max(0.0, 1.5 * least - 0.5 * most - 0.005), None)
        panel.set_xlim(1e3 * ceiling[1][0] / 4, None)
        panel.set(xscale="log", xlabel="TFLOP a query", ylabel="right, %", title=_title(one))
        panel.legend(loc="lower right", frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _fixed(one: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in one["baselines"] if _family(row["name"]) == "fixed"]


def _family(name: str) -> str:
    """Whose a row is, by its name."""
    for start in ("isoflop", "Adaptive-Consistency", "ESC", "oracle"):
        if name.startswith(f"{start} "):
            return start
    return "agreement cascade" if name.startswith("cascade ") else "fixed"


def _hull(rows: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """Of (PFLOP, accuracy)."""
    return hull((row["pflop"], row["accuracy"]) for row in rows)


def _title(one: dict[str, Any]) -> str:
    return f"{one['dataset']}, {one['pool']} models"


def _tera(peta: float) -> str:
    return f"{1e3 * peta:.1f}"


def _number(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f}"


def _goal(name: str, told: float | None, goal: float | None) -> str:
    if goal is None:
        return ""
    least = name == "share_of_oracle_gap_closed_horizontal"
    reached = told is not None and (told >= goal if least else told <= goal)
    return f"{'≥' if least else '≤'} {goal:.2f}: {'reached' if reached else '**not reached**'}"
