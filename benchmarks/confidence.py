"""How right confidence is: what isoflop says of its answers, on problems that nothing was made from.

    python -m benchmarks.confidence [--problems 2520]

The held-out problems, and those of the calibration file that the embedded profile was not made from, each
once at each effort through the suite in one process. What came is kept in `build/bench-confidence/`, so that
a run that was stopped goes on. Intervals are 95 % bootstrap over problems.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from prometheus_client import CollectorRegistry

from benchmarks.embedded import EFFORTS, PLANNED, Outcome, adaptive, seed_of, some_at_a_time, stored
from router.embedded import open_router
from router.settings import SuiteSettings
from training.difficulty_figures import BINS, chances
from training.prm_figures import reliability
from training.resampling import interval, resamples
from training.splits import Problem, first_of_each_group

mpl.use("Agg")
import matplotlib.pyplot as plt

ROOT: Final = Path(__file__).parents[1]
STORE: Final = ROOT / "build" / "bench-confidence"
CALIBRATED: Final = 480
"""Of the calibration file, the first of each group in turn: the embedded profile's queries (`make train`)."""
GOAL: Final = 0.05
"""Expected calibration error that is asked for."""


def unseen(most: int) -> list[Problem]:
    """So many problems at most, of which the profile and the estimator know nothing."""
    calibration = first_of_each_group("calibration.jsonl", 1 << 20)
    known = {problem.query_id for problem in first_of_each_group("calibration.jsonl", CALIBRATED)}
    rest = [problem for problem in calibration if problem.query_id not in known]
    return [*first_of_each_group("heldout.jsonl", 1 << 20), *rest][:most]


async def collect(problems: Sequence[Problem]) -> tuple[list[Outcome], str]:
    """All outcomes, from the store where it has them, and the profile's version."""
    STORE.mkdir(parents=True, exist_ok=True)
    path = STORE / f"{PLANNED}.jsonl"
    outcomes = stored(path)
    known = {(one.policy, one.query_id) for one in outcomes}
    jobs = [
        (effort, problem, number)
        for number, problem in enumerate(problems)
        for effort in EFFORTS
        if (f"isoflop {effort}", problem.query_id) not in known
    ]
    async with open_router(SuiteSettings(), CollectorRegistry()) as router:
        with path.open("a", buffering=1) as kept:

            async def play(effort: str, problem: Problem, number: int) -> None:
                (outcome,) = await adaptive(router, problem, effort, 0, seed_of(problem, 7, number))
                outcomes.append(outcome)
                kept.write(json.dumps(asdict(outcome)) + "\n")

            about = f"{len(problems)} problems × {len(EFFORTS)} efforts"
            await some_at_a_time([partial(play, *job) for job in jobs], about)
        version = (await router.models()).profile
    wanted = {problem.query_id for problem in problems}
    return [one for one in outcomes if one.query_id in wanted], version


def figures(outcomes: Sequence[Outcome], effort: str) -> dict[str, Any]:
    """Of one effort: scores with intervals, and by bin how many, what was said, and what was right."""
    mine = sorted((one for one in outcomes if one.policy == f"isoflop {effort}"), key=lambda o: o.query_id)
    confidence = np.array([one.confidence for one in mine])
    right = np.array([one.right for one in mine], np.float64)
    told = chances(confidence, right, np.ones(len(mine)))
    again = [chances(confidence, right * weights, weights) for weights in resamples(len(mine))]
    intervals = {
        name: [round(v, 4) for v in interval(np.array([one[name] for one in again]))]
        for name in ("ece", "brier_skill")
    }
    return {
        "effort": effort,
        "queries": len(mine),
        "right": round(told["right"], 4),
        "confidence": round(told["predicted"], 4),
        "mflop": round(float(np.mean([one.flops for one in mine])) / 1e6, 1),
        "ece": round(told["ece"], 4),
        "ece_interval": intervals["ece"],
        "brier_skill": round(told["brier_skill"], 4),
        "brier_skill_interval": intervals["brier_skill"],
        "bins": [
            {"queries": int(count), "confidence": round(float(said), 4), "right": round(float(was), 4)}
            for said, was, count in reliability(right, confidence)
        ],
    }


def draw(told: Sequence[dict[str, Any]], path: Path) -> None:
    """What was right against what was said, an area for how many queries."""
    figure, panels = plt.subplots(1, len(told), figsize=(10, 3.6), layout="constrained", sharey=True)
    for axes, one in zip(panels, told, strict=True):
        said, right, many = (
            np.array([b[k] for b in one["bins"]]) for k in ("confidence", "right", "queries")
        )
        spread = 1.96 * np.sqrt(np.maximum(right * (1 - right), 1e-4) / many)
        axes.plot([0, 1], [0, 1], color="0.6", lw=1, ls="--")
        axes.errorbar(said, right, spread, lw=1.2, color="C0", capsize=2)
        axes.scatter(said, right, 400 * many / many.sum(), color="C0", alpha=0.5)
        axes.set(
            title=f"{one['effort']}: ECE {one['ece']:.3f}", xlabel="confidence", xlim=(0, 1), ylim=(0, 1)
        )
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("share that is right")
    figure.savefig(path, dpi=140)
    plt.close(figure)


def page(told: Sequence[dict[str, Any]], version: str) -> str:
    """For people."""
    lines = [
        "# Confidence of the embedded suite",
        "",
        "Written by `make bench-confidence`; not edited by hand. Each query was solved once at each effort",
        f"through the real suite, with profile `{version}`. Problems: all held-out ones, and those of the",
        "calibration file that neither the profile nor the estimator of difficulty was made from. ECE:",
        f"{BINS} bins of equal width; Brier skill: over always saying the base rate. 95 % intervals over",
        "problems.",
        "",
        "![right against said](confidence.png)",
        "",
        f"| effort | queries | right, % | said, % | MFLOP | ECE | | ≤ {GOAL} | Brier skill | |",
        "|---|---:|---:|---:|---:|---:|---|---|---:|---|",
    ]
    for one in told:
        (low, high), (least, most) = one["ece_interval"], one["brier_skill_interval"]
        lines.append(
            f"| {one['effort']} | {one['queries']} | {100 * one['right']:.1f} "
            f"| {100 * one['confidence']:.1f} | {one['mflop']:.0f} "
            f"| {one['ece']:.3f} | {low:.3f} to {high:.3f} "
            f"| {'yes' if one['ece'] <= GOAL else 'no'} | {one['brier_skill']:.3f} "
            f"| {least:.3f} to {most:.3f} |"
        )
    lines += ["", "By bin: queries, said, right, in %:", "", "| effort | | | | | | | | | | |"]
    lines += ["|---|" + "---|" * BINS]
    for one in told:
        bins = one["bins"]
        cells = [f"{b['queries']}: {100 * b['confidence']:.0f} → {100 * b['right']:.0f}" for b in bins]
        lines.append(f"| {one['effort']} | " + " | ".join([*cells, *[""] * (BINS - len(cells))]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--problems", type=int, default=2520, help="so many of them")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "confidence.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "confidence.md")
    arguments = parser.parse_args()
    outcomes, version = asyncio.run(collect(unseen(arguments.problems)))
    told = [figures(outcomes, effort) for effort in EFFORTS]
    for path in (arguments.json, arguments.page):
        path.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(
        json.dumps({"profile": version, "router": PLANNED, "efforts": told}, indent=1) + "\n"
    )
    draw(told, arguments.page.with_suffix(".png"))
    arguments.page.write_text(page(told, version))
    for one in told:
        print(json.dumps({name: value for name, value in one.items() if name != "bins"}))


if __name__ == "__main__":
    main()
