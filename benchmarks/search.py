"""What a search over steps brings: beam and dvts beside scored samples of the same number, in one run.

    python -m benchmarks.search [--problems 252] [--models abacus-m ...]

Fixed plans on held-out problems through the suite in one process, all stages on the bill: 16 samples with a
majority, best of n and weighted vote, and searches of 4 × 4. What was solved is kept in
`build/bench-search/`, so that a run that was stopped goes on. Intervals are 95 % bootstrap over problems,
differences paired.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from isoflop.v1.router_pb2 import Filters, Search, SolveRequest
from prometheus_client import CollectorRegistry

from benchmarks.embedded import (
    RESAMPLES,
    Outcome,
    by_problem,
    fingerprint,
    rows,
    seed_of,
    some_at_a_time,
    stored,
)
from router.embedded import open_router
from router.settings import SuiteSettings
from services.common.settings import MODELS
from training.splits import Problem, first_of_each_group

ROOT: Final = Path(__file__).parents[1]
STORE: Final = ROOT / "build" / "bench-search"
PLAYED: Final = fingerprint(
    *(MODELS / name for name in ("SHA256SUMS", "catalog.yaml", "verifiers.yaml")),
    ROOT / "router" / "bench.py",
    *sorted((ROOT / "router" / "strategies").glob("*.py")),
)
"""What outcomes depend on: models, verifiers and what plays a round."""
WIDTH, EXPANSION = 4, 4
PLANS: Final = {
    "majority": Filters(strategies=["majority"], samples=WIDTH * EXPANSION),
    "best_of_n": Filters(strategies=["best_of_n"], samples=WIDTH * EXPANSION),
    "weighted": Filters(strategies=["weighted"], samples=WIDTH * EXPANSION),
    "beam": Filters(strategies=["beam"], search=Search(width=WIDTH, expansion=EXPANSION)),
    "dvts": Filters(strategies=["dvts"], search=Search(width=WIDTH, expansion=EXPANSION)),
}
RIVALS: Final = ("best_of_n", "weighted")


async def collect(problems: Sequence[Problem], models: Sequence[str]) -> list[Outcome]:
    """All outcomes, from the store where it has them."""
    STORE.mkdir(parents=True, exist_ok=True)
    path = STORE / f"{PLAYED}.jsonl"
    found = stored(path)
    known = {(one.policy, one.query_id) for one in found}
    jobs = [
        (model, plan, problem, number)
        for number, problem in enumerate(problems)
        for model in models
        for plan in random.Random(f"{number}/{model}").sample(list(PLANS), len(PLANS))
        if (f"{model} {plan}", problem.query_id) not in known
    ]
    async with open_router(SuiteSettings(), CollectorRegistry()) as router:
        with path.open("a", buffering=1) as kept:

            async def play(model: str, plan: str, problem: Problem, number: int) -> None:
                filters = Filters(models=[model], seed=seed_of(problem, 3, number))
                filters.MergeFrom(PLANS[plan])
                response = await router.solve(SolveRequest(prompt=problem.prompt, filters=filters))
                outcome = Outcome(
                    f"{model} {plan}",
                    0,
                    problem.query_id,
                    response.answer == problem.answer,
                    response.bill.flops,
                    sum(round.completed for round in response.rounds),
                    response.confidence,
                )
                found.append(outcome)
                kept.write(json.dumps(asdict(outcome)) + "\n")

            about = f"{len(problems)} problems × {len(models)} models × {len(PLANS)} plans"
            await some_at_a_time([partial(play, *job) for job in jobs], about)
    wanted = {problem.query_id for problem in problems}
    names = {f"{model} {plan}" for model in models for plan in PLANS}
    return [one for one in found if one.query_id in wanted and one.policy in names]


def gains(outcomes: Sequence[Outcome], models: Sequence[str]) -> list[dict[str, Any]]:
    """Points that each search is above each rival of the same model, paired, and the ratio of their FLOPs."""
    rng = np.random.default_rng(1)
    told = []
    for model in models:
        right, flops = (
            {plan: by_problem(outcomes, f"{model} {plan}", what) for plan in PLANS}
            for what in (lambda one: one.right, lambda one: one.flops)
        )
        for search in ("beam", "dvts"):
            for rival in RIVALS:
                gain = 100 * (right[search] - right[rival])
                again = gain[rng.integers(0, len(gain), (RESAMPLES, len(gain)))].mean(1)
                told.append(
                    {
                        "model": model,
                        "search": search,
                        "rival": rival,
                        "points": round(float(gain.mean()), 2),
                        "interval": [round(float(v), 2) for v in np.quantile(again, [0.025, 0.975])],
                        "flops_ratio": round(float(flops[search].mean() / flops[rival].mean()), 3),
                    }
                )
    return told


def page(figures: dict[str, Any]) -> str:
    """For people."""
    lines = [
        "# Search over steps",
        "",
        "Written by `make bench-search`; not edited by hand. Fixed plans through the real suite on",
        f"{figures['problems']} held-out problems, one seed, all stages on the bill: "
        f"{WIDTH * EXPANSION} samples,",
        f"or a search of {WIDTH} × {EXPANSION}.",
        "",
        "| plan | right, % | 95 % interval | MFLOP a query | answers that came |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {one['policy']} | {100 * one['accuracy']:.1f} | {100 * one['interval'][0]:.1f} to "
            f"{100 * one['interval'][1]:.1f} | {one['flops'] / 1e6:.0f} | {one['samples']:.1f} |"
            for one in figures["plans"]
        ),
        "",
        "| model | search | over | points | 95 % interval | FLOPs, ratio |",
        "|---|---|---|---:|---:|---:|",
        *(
            f"| {one['model']} | {one['search']} | {one['rival']} | {one['points']:+.1f} "
            f"| {one['interval'][0]:+.1f} to {one['interval'][1]:+.1f} | {one['flops_ratio']:.2f} |"
            for one in figures["gains"]
        ),
        "",
        "The verifier reads a chain anew at each step, and the engine computes again what its slots have",
        "not in their caches: both are on the bill.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--problems", type=int, default=252, help="equal numbers of each group")
    parser.add_argument("--models", nargs="+", default=["abacus-m"], metavar="NAME")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "search.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "search.md")
    arguments = parser.parse_args()
    problems = first_of_each_group("heldout.jsonl", arguments.problems)
    outcomes = asyncio.run(collect(problems, arguments.models))
    figures = {
        "problems": len(problems),
        "played": PLAYED,
        "plans": [asdict(row) for row in rows(outcomes)],
        "gains": gains(outcomes, arguments.models),
    }
    for path in (arguments.json, arguments.page):
        path.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    arguments.page.write_text(page(figures))
    print(arguments.page.read_text())


if __name__ == "__main__":
    main()
