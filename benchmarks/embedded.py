"""Accuracy against FLOPs on held-out problems: isoflop's efforts beside fixed plans, in one run.

    python -m benchmarks.embedded [--problems 504] [--seeds 3]

Every policy goes through the same suite in one process and is billed by it, all stages included. Each
(seed, policy, problem) is kept in `build/bench-embedded/`, so that a run that was stopped goes on. Smaller
votes are counted on the first samples of the largest, and billed by their own tokens.
Intervals are 95 % bootstrap over problems, seeds averaged within each. Nothing was tuned on these problems.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import platform
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from isoflop.v1.common_pb2 import ANSWER_TYPE_NUMBER, Model
from isoflop.v1.router_pb2 import (
    EFFORT_HIGH,
    EFFORT_LOW,
    EFFORT_MEDIUM,
    Filters,
    SolveRequest,
    SolveResponse,
)
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from router import cost, profile
from router.core import Router
from router.embedded import open_router
from router.settings import SuiteSettings
from services.aggregation.answers import extract
from services.common.settings import MODELS
from services.difficulty import estimator
from services.generation.backends.llamacpp import Header
from training.splits import Problem, first_of_each_group, read_rows

mpl.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
STORE = ROOT / "build" / "bench-embedded"
EFFORTS = {"low": EFFORT_LOW, "medium": EFFORT_MEDIUM, "high": EFFORT_HIGH}
VOTES = (16, 8, 4)
"""Most votes of each model, the smallest first; fewer are counted on the first of them."""
AT_A_TIME = 4
"""Queries in flight."""
RESAMPLES = 2000


def fingerprint(*paths: Path) -> str:
    """Eight digits that change with the content of these files."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:8]


MEASURED = fingerprint(MODELS / "SHA256SUMS", MODELS / "catalog.yaml")
"""What fixed plans depend on."""
PLANNED = fingerprint(
    *(MODELS / name for name in ("SHA256SUMS", "catalog.yaml", "profile.json", "difficulty.json")),
    *(
        ROOT / "router" / f"{name}.py"
        for name in (
            *("accuracy", "belief", "cost", "decision", "lengths", "lookahead", "menu", "outlook", "planner"),
            *("profile", "progress", "solve"),
        )
    ),
)
"""What isoflop's own depend on: models, profile and what decides."""

Play = Callable[[Router, Problem, Any, int, int], Awaitable[list["Outcome"]]]
"""Plays a policy: router, problem, effort or model, seed, and the seed of the first sample."""


@dataclass(frozen=True)
class Outcome:
    """One policy on one problem under one seed."""

    policy: str
    seed: int
    query_id: str
    right: bool
    flops: float
    samples: int
    confidence: float


@dataclass(frozen=True)
class Row:
    """One policy over all problems. FLOPs and samples are means of a query."""

    policy: str
    accuracy: float
    interval: tuple[float, float]
    flops: float
    samples: float
    nothing: float
    """Share of queries for which nothing was bought."""
    abandoned: float
    """Share of queries that ended with less than even confidence: isoflop says so."""


def seed_of(problem: Problem, seed: int, number: int) -> int:
    """Seed of the first sample: no two problems of a run share one."""
    return seed * 1_000_000 + number * 100


async def adaptive(router: Router, problem: Problem, effort: str, seed: int, first: int) -> list[Outcome]:
    """isoflop at one effort."""
    request = SolveRequest(prompt=problem.prompt, effort=EFFORTS[effort], filters=Filters(seed=first))
    response = await router.solve(request)
    samples = sum(round.action.samples for round in response.rounds)
    return [_outcome(f"isoflop {effort}", seed, problem, response, samples)]


async def once(router: Router, problem: Problem, model: Model, seed: int, first: int) -> list[Outcome]:
    """One greedy sample; the same under each seed."""
    filters = Filters(models=[model.name], strategies=["single"], samples=1, temperature=0, seed=first)
    response = await router.solve(SolveRequest(prompt=problem.prompt, filters=filters))
    return [_outcome(f"{model.name} greedy", seed, problem, response, 1)]


async def votes(
    router: Router, problem: Problem, what: tuple[Model, int], seed: int, first: int
) -> list[Outcome]:
    """Majority votes of 1, 4, 8, ... samples, as many as are given with the model."""
    model, most = what
    filters = Filters(models=[model.name], strategies=["majority"], samples=most, seed=first)
    response = await router.solve(
        SolveRequest(prompt=problem.prompt, filters=filters, return_candidates=True)
    )
    samples = sorted(response.candidates, key=lambda sample: int(sample.id.rpartition("/")[2]))
    prompt = len(problem.prompt.encode()) + 1
    outcomes = []
    for n in [2**k for k in range(most.bit_length()) if k != 1]:
        answers = [extract(sample.text, ANSWER_TYPE_NUMBER) for sample in samples[:n]]
        counts = Counter(answer for answer in answers if answer is not None)
        answer = counts.most_common(1)[0][0] if counts else ""
        flops = sum(cost.samples(model, 1, prompt, sample.tokens).flops for sample in samples[:n])
        outcomes.append(
            Outcome(
                f"{model.name} × {n}",
                seed,
                problem.query_id,
                answer == problem.answer,
                flops,
                n,
                response.confidence,
            )
        )
    return outcomes


def _outcome(policy: str, seed: int, problem: Problem, response: SolveResponse, samples: int) -> Outcome:
    right = response.answer == problem.answer
    return Outcome(policy, seed, problem.query_id, right, response.bill.flops, samples, response.confidence)


def stored(path: Path) -> list[Outcome]:
    """What a store has; nothing where there is none."""
    return [Outcome(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


async def some_at_a_time(jobs: Sequence[Callable[[], Awaitable[None]]], about: str) -> None:
    """Do all jobs, AT_A_TIME of them at once, with a progress bar that says what they are about."""
    gate = asyncio.Semaphore(AT_A_TIME)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(about, total=len(jobs))

        async def one(job: Callable[[], Awaitable[None]]) -> None:
            async with gate:
                await job()
            progress.advance(task)

        for at in range(0, len(jobs), 64):
            await asyncio.gather(*(one(job) for job in jobs[at : at + 64]))


async def collect(problems: list[Problem], seeds: int) -> tuple[list[Outcome], str]:
    """All outcomes, from the store where it has them, and the profile's version."""
    STORE.mkdir(parents=True, exist_ok=True)
    async with open_router(SuiteSettings(), CollectorRegistry()) as router:
        listed = await router.models()
        paths = {True: STORE / f"isoflop-{PLANNED}.jsonl", False: STORE / f"fixed-{MEASURED}.jsonl"}
        found = [one for path in paths.values() for one in stored(path)]
        known = {(one.policy, one.seed, one.query_id) for one in found}
        plans: list[tuple[str, Play, Any]] = [
            *((f"isoflop {effort}", adaptive, effort) for effort in EFFORTS),
            *((f"{model.name} greedy", once, model) for model in listed.models),
            *(
                (f"{model.name} × {most}", votes, (model, most))
                for model, most in zip(listed.models, VOTES, strict=True)
            ),
        ]
        # Interleaved: each problem by every policy before the next problem, in an order of its own, since
        # later ones may find the prompt in the engine's cache.
        jobs = [
            (play, what, problem, seed, number)
            for seed in range(seeds)
            for number, problem in enumerate(problems)
            for name, play, what in random.Random(f"{seed}/{number}").sample(plans, len(plans))
            if (name, seed, problem.query_id) not in known
        ]
        with paths[True].open("a", buffering=1) as planned, paths[False].open("a", buffering=1) as fixed:

            async def play_one(play: Play, what: Any, problem: Problem, seed: int, number: int) -> None:
                outcomes = await play(router, problem, what, seed, seed_of(problem, seed, number))
                found.extend(outcomes)
                (planned if play is adaptive else fixed).writelines(
                    json.dumps(asdict(one)) + "\n" for one in outcomes
                )

            about = f"{len(problems)} problems × {seeds} seeds"
            await some_at_a_time([partial(play_one, *job) for job in jobs], about)
    wanted = {problem.query_id for problem in problems}
    return [one for one in found if one.query_id in wanted and one.seed < seeds], listed.profile


def by_problem(
    outcomes: Iterable[Outcome], policy: str, what: Callable[[Outcome], float]
) -> NDArray[np.float64]:
    """Mean over seeds for each problem, shape (problems,)."""
    values: dict[str, list[float]] = {}
    for one in outcomes:
        if one.policy == policy:
            values.setdefault(one.query_id, []).append(what(one))
    return np.array([np.mean(values[query_id]) for query_id in sorted(values)])


def rows(outcomes: list[Outcome]) -> list[Row]:
    """A row for each policy, by rising FLOPs."""
    rng = np.random.default_rng(0)
    found = []
    for policy in dict.fromkeys(one.policy for one in outcomes):
        right = by_problem(outcomes, policy, lambda one: one.right)
        again = right[rng.integers(0, len(right), (RESAMPLES, len(right)))].mean(1)
        low, high = np.quantile(again, [0.025, 0.975])
        found.append(
            Row(
                policy,
                float(right.mean()),
                (float(low), float(high)),
                float(by_problem(outcomes, policy, lambda one: one.flops).mean()),
                float(by_problem(outcomes, policy, lambda one: one.samples).mean()),
                float(by_problem(outcomes, policy, lambda one: one.samples == 0).mean()),
                float(by_problem(outcomes, policy, lambda one: one.confidence < 0.5).mean()),
            )
        )
    return sorted(found, key=lambda row: row.flops)


def against_hull(outcomes: list[Outcome], table: list[Row]) -> list[dict[str, Any]]:
    """Each effort, and each length rule, against the hull of the fixed plans at equal FLOPs.

    The hull is what the fixed plans and mixtures of two of them reach, buying nothing included; it is found
    anew in each resample of problems, so that its choice is within the interval.
    """
    rng = np.random.default_rng(1)
    fixed = [row.policy for row in table if row.policy.split(" ")[0] not in ("isoflop", "length")]
    right = {row.policy: by_problem(outcomes, row.policy, lambda one: one.right) for row in table}
    flops = {row.policy: by_problem(outcomes, row.policy, lambda one: one.flops) for row in table}
    problems = len(right[fixed[0]])
    samples = [np.arange(problems), *rng.integers(0, problems, (RESAMPLES, problems))]
    gains: dict[str, list[float]] = {row.policy: [] for row in table if row.policy not in fixed}
    for at in samples:
        points = [(0.0, 0.0), *((flops[name][at].mean(), right[name][at].mean()) for name in fixed)]
        for name, told in gains.items():
            told.append(float(right[name][at].mean()) - hull_at(points, float(flops[name][at].mean())))
    return [
        {
            "policy": name,
            "points_over_hull_at_equal_flops": 100 * told[0],
            "interval": [100 * float(v) for v in np.quantile(told[1:], [0.025, 0.975])],
        }
        for name, told in gains.items()
    ]


def hull_at(points: list[tuple[float, float]], flops: float) -> float:
    """Accuracy of the upper hull of (FLOPs, accuracy) points at some FLOPs."""
    best = max(accuracy for cost, accuracy in points if cost <= flops)
    for x, y in points:
        for u, v in points:
            if x <= flops < u:
                best = max(best, y + (v - y) * (flops - x) / (u - x))
    return best


def length_rules(problems: list[Problem], outcomes: list[Outcome]) -> list[Outcome]:
    """The trivial rival: the largest model's greedy sample for short prompts, nothing for long ones.

    Its threshold at each effort is the one that the profile expects to be worth most on the calibration
    problems; it buys what the fixed plan "largest model greedy" bought.
    """
    curves, weights = profile.load(MODELS / "profile.json"), estimator.load(MODELS / "difficulty.json")
    largest = max(weights.curves, key=lambda curve: curve.ability).model
    arm = next(arm for arm in curves.arms if arm.model == largest and arm.greedy)
    shape = Header.read(MODELS / f"{largest}.gguf").shape
    rows = read_rows("calibration.jsonl")
    beliefs = [(weights.estimate(row["prompt"]), row["prompt"]) for row in rows]
    gains = []
    for told, prompt in beliefs:
        belief = curves.belief(told.mean, told.sd)
        tokens = float(belief @ arm.tokens)
        price = cost.samples(Model(shape=shape), 1, len(prompt) + 1, tokens).flops
        gains.append((len(prompt), float(belief @ arm.p_right), price))
    prompts = {problem.query_id: problem.prompt for problem in problems}
    made = []
    for effort in EFFORTS:
        worth = curves.efforts[effort]
        most = max(
            {length for length, _, _ in gains},
            key=lambda limit: sum(p * worth - price for length, p, price in gains if length <= limit),
        )
        made += [
            one
            if len(prompts[one.query_id]) <= most
            else replace(one, right=False, flops=0.0, samples=0, confidence=0.0)
            for one in outcomes
            if one.policy == f"{largest} greedy"
            for one in [replace(one, policy=f"length ≤ {most} ({effort})")]
        ]
    return made


def calibration(outcomes: list[Outcome], policy: str) -> dict[str, float]:
    """Expected calibration error (10 equal-width bins) and Brier skill over the base rate."""
    chosen = [one for one in outcomes if one.policy == policy]
    p = np.array([one.confidence for one in chosen])
    right = np.array([one.right for one in chosen], float)
    bins = np.minimum((p * 10).astype(int), 9)
    ece = sum(abs(p[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in set(bins))
    base = right.mean()
    skill = 1 - ((p - right) ** 2).mean() / max(base * (1 - base), 1e-9)
    return {"ece": float(ece), "brier_skill": float(skill), "queries": len(chosen)}


def draw(table: list[Row], path: Path) -> None:
    """Accuracy against FLOPs, log axis."""
    figure, axes = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    families = dict.fromkeys(row.policy.split(" ")[0] for row in table)
    for family in families:
        mine = [row for row in table if row.policy.split(" ")[0] == family]
        x, y = [row.flops for row in mine], [100 * row.accuracy for row in mine]
        spread = np.array(
            [[100 * (r.accuracy - r.interval[0]), 100 * (r.interval[1] - r.accuracy)] for r in mine]
        )
        own = family == "isoflop"
        axes.errorbar(
            x, y, spread.T, marker="o", ms=7 if own else 4, lw=2 if own else 1, capsize=2, label=family
        )
        for row in mine:
            label = row.policy.removeprefix(family).strip()
            axes.annotate(
                label, (row.flops, 100 * row.accuracy), (3, -11), textcoords="offset points", fontsize=7
            )
    axes.set(xscale="log", xlabel="FLOPs a query, all stages", ylabel="right answers, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=140)


def report(
    table: list[Row], pairs: list[dict[str, Any]], sure: dict[str, dict[str, float]], about: str
) -> str:
    """The page for people."""
    lines = [
        "# Held-out problems, embedded models",
        "",
        f"Written by `make bench-embedded`; not edited by hand. {about}",
        "",
        "![accuracy against FLOPs](embedded.png)",
        "",
        "| policy | right, % | 95 % interval | MFLOP a query | samples | bought nothing, % | unsure, % |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {r.policy} | {100 * r.accuracy:.1f} | {100 * r.interval[0]:.1f} to {100 * r.interval[1]:.1f} "
            f"| {r.flops / 1e6:.1f} | {r.samples:.2f} | {100 * r.nothing:.0f} | {100 * r.abandoned:.0f} |"
            for r in table
        ),
        "",
        "*Bought nothing*: given up by the estimate alone. *Unsure*: ended with a confidence below one",
        "half, which isoflop reports as abandoned. *length*: the trivial rival, the largest model's greedy",
        "sample where the prompt has at most so many characters and nothing otherwise; its threshold is",
        "chosen on the calibration problems by the same profile.",
        "",
        "Accuracy over the hull of the fixed plans (mixtures of two, and buying nothing, included) at equal",
        "FLOPs, in points; the hull is found anew in each resample:",
        "",
        "| policy | points | 95 % interval |",
        "|---|---:|---:|",
        *(
            f"| {pair['policy']} | {pair['points_over_hull_at_equal_flops']:+.1f} "
            f"| {pair['interval'][0]:+.1f} to {pair['interval'][1]:+.1f} |"
            for pair in pairs
        ),
        "",
        "What to know before quoting this: a greedy sample of these models is worth about four votes, so",
        "what isoflop gains is first the choice of the model and of what not to try; a cascade or a vote",
        "that does not pay is not bought. Votes are at the temperature that was calibrated. Prompts may be",
        "found in the engine's cache (no FLOPs) by greedy and isoflop's samples, and are reckoned as not",
        "cached for votes: up to 6 % of a bill. Greedy samples are the same under each seed.",
    ]
    lines += ["", "Confidence (ECE in ten bins; Brier skill over the base rate):", ""]
    lines += ["| policy | queries | ECE | Brier skill |", "|---|---:|---:|---:|"]
    lines += [
        f"| {name} | {one['queries']:.0f} | {one['ece']:.3f} | {one['brier_skill']:.3f} |"
        for name, one in sure.items()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--problems", type=int, default=504, help="held-out problems, equal numbers of each group"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "embedded.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "embedded.md")
    arguments = parser.parse_args()
    problems = first_of_each_group("heldout.jsonl", arguments.problems)
    outcomes, version = asyncio.run(collect(problems, arguments.seeds))
    outcomes += length_rules(problems, outcomes)
    table = rows(outcomes)
    pairs = against_hull(outcomes, table)
    sure = {name: calibration(outcomes, name) for name in (f"isoflop {effort}" for effort in EFFORTS)}
    about = (
        f"{len(problems)} problems, {arguments.seeds} seeds, profile `{version}` ({PLANNED}), "
        f"{platform.machine()}, Python {platform.python_version()}."
    )
    for path in (arguments.json, arguments.page):
        path.parent.mkdir(parents=True, exist_ok=True)
    figures = {
        "problems": len(problems),
        "seeds": arguments.seeds,
        "profile": version,
        "router": PLANNED,
        "policies": [asdict(row) for row in table],
        "against_hull": pairs,
        "confidence": sure,
    }
    arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    draw(table, arguments.page.with_suffix(".png"))
    arguments.page.write_text(report(table, pairs, sure, about))
    shown = Table("policy", "right, %", "95 %", "MFLOP", "samples")
    for row in table:
        low, high = row.interval
        shown.add_row(
            row.policy,
            f"{100 * row.accuracy:.1f}",
            f"{100 * low:.1f}-{100 * high:.1f}",
            f"{row.flops / 1e6:.1f}",
            f"{row.samples:.1f}",
        )
    Console().print(shown)


if __name__ == "__main__":
    main()
