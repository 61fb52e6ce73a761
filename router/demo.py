"""`isoflop demo`: the suite in one process solves 30 held-out problems, live, beside two fixed plans."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from isoflop.errors import IsoflopError
from isoflop.v1.router_pb2 import Filters, SolveRequest, SolveResponse, Tally
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from router.core import Router
from router.embedded import open_router
from router.settings import SuiteSettings
from services.common import log
from services.common.server import CannotServe

PROBLEMS = Path(__file__).parents[1] / "training" / "problems" / "demo.jsonl"

WIDE = 112
"""Columns of a terminal that has room for the votes; of what is no terminal, too."""

SEED = 1
"""Of the first problem's samples."""

LEVELS = ((2, "trivial"), (4, "easy"), (7, "medium"), (10, "hard"), (99, "beyond reach"))
"""Most operations of each level. Models were trained on up to ten."""


@dataclass(frozen=True)
class Problem:
    """A held-out problem."""

    prompt: str
    answer: str
    level: str


@dataclass(frozen=True)
class Solved:
    """A problem, and what came of it."""

    problem: Problem
    response: SolveResponse

    @property
    def right(self) -> bool:
        """Whether the answer is the true one."""
        return self.response.answer == self.problem.answer

    @property
    def samples(self) -> int:
        """Samples started."""
        return sum(round.action.samples for round in self.response.rounds)

    @property
    def flops(self) -> float:
        """All stages together."""
        return self.response.bill.flops


@dataclass
class Run:
    """Everything solved by one policy."""

    name: str
    filters: Filters = field(default_factory=Filters)
    solved: list[Solved] = field(default_factory=list)

    def accuracy(self, level: str = "") -> float:
        """Share of right answers, of all or of one level."""
        chosen = self.of(level)
        return sum(one.right for one in chosen) / len(chosen)

    def flops(self, level: str = "") -> float:
        """Sum over queries, of all or of one level."""
        return sum(one.flops for one in self.of(level))

    def of(self, level: str) -> list[Solved]:
        """What was solved, of all or of one level."""
        return [one for one in self.solved if level in ("", one.problem.level)]


def read() -> list[Problem]:
    """The demo's problems."""
    rows = [json.loads(line) for line in PROBLEMS.read_text().splitlines()]
    return [
        Problem(row["prompt"], row["answer"], next(name for most, name in LEVELS if row["group"] <= most))
        for row in rows
    ]


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """solve 30 held-out problems live, and compare with fixed plans"""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return lambda arguments: demo(arguments.json)


def demo(out: Path | None) -> int:
    """Run it; the exit status. An error is one line on standard error."""
    log.configure("warning", "text")
    try:
        console = Console() if sys.stdout.isatty() else Console(width=WIDE)
        runs = asyncio.run(solve_all(console))
    except (CannotServe, IsoflopError) as error:
        print(f"isoflop demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    console.print("\n", summary(runs))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(figures(runs), indent=1) + "\n")
        console.print(f"figures: {out}", style="dim")
    return 0


async def solve_all(console: Console) -> list[Run]:
    """Solve all problems by isoflop and by the fixed plans, in turn."""
    async with open_router(SuiteSettings(), CollectorRegistry()) as router:
        models = list((await router.models()).models)
        runs = [
            Run("isoflop"),
            Run("largest model once", Filters(models=[models[-1].name], strategies=["single"], samples=1)),
            Run(
                "smallest model, 16 votes",
                Filters(models=[models[0].name], strategies=["majority"], samples=16),
            ),
        ]
        begin = time.perf_counter()
        problems = read()
        rows: list[Sequence[Text | str]] = []
        with Live(console=console, refresh_per_second=12) as live:
            for number, problem in enumerate(problems):

                def show(row: Sequence[Text | str], at: int = number) -> None:
                    rows[at:] = [row]
                    seconds = time.perf_counter() - begin
                    live.update(board(rows, at + 1, len(problems), seconds, console.width >= WIDE))

                for run in runs:
                    run.filters.seed = SEED + 1000 * number
                # At once: neither finds the prompt in the engine's cache because of the other.
                solved, _ = await asyncio.gather(
                    watch(router, problem, runs[0].filters, show), fixed(router, problem, runs[1:])
                )
                runs[0].solved.append(solved)
        return runs


async def fixed(router: Router, problem: Problem, runs: Sequence[Run]) -> None:
    """Solve one problem by the fixed plans, which run side by side."""
    requests = [SolveRequest(prompt=problem.prompt, filters=run.filters) for run in runs]
    responses = await asyncio.gather(*(router.solve(request) for request in requests))
    for run, response in zip(runs, responses, strict=True):
        run.solved.append(Solved(problem, response))


async def watch(
    router: Router, problem: Problem, filters: Filters, show: Callable[[Sequence[Text | str]], None]
) -> Solved:
    """Solve one problem, and show what happens as it happens."""
    difficulty, tally, result = 0.0, Tally(), SolveResponse()
    bought: dict[str, int] = {}
    async with aclosing(router.stream(SolveRequest(prompt=problem.prompt, filters=filters))) as events:
        async for event in events:
            match event.WhichOneof("event"):
                case "started":
                    difficulty = event.started.difficulty.mean
                case "round":
                    action = event.round.action
                    bought[action.model] = bought.get(action.model, 0) + action.samples
                case "tally":
                    tally = event.tally
                case "final":
                    result = event.final
            votes = " ".join(f"{cluster.answer}:{len(cluster.members)}" for cluster in tally.clusters[:3])
            plan = " → ".join(f"{model}×{count}" for model, count in bought.items())
            begun = [problem.prompt, f"{difficulty:+.1f}", plan, votes]
            show([*begun, "…", "", "", ""])
    solved = Solved(problem, result)
    if solved.right:
        verdict = Text("right", "green")
    else:
        said = "wrong" if result.answer else "given up"
        verdict = Text(f"{said}, {problem.answer}", "red" if result.answer else "yellow")
    answer, sure = result.answer or "none", f"{result.confidence:.0%}"
    show([*begun, answer, verdict, sure, f"{solved.flops / 1e6:.1f}"])
    return solved


def board(rows: Sequence[Sequence[Text | str]], number: int, of: int, seconds: float, wide: bool) -> Table:
    """What is shown while it runs; in a narrow terminal, without the votes."""
    title = f"isoflop: {number} of {of} held-out problems, {seconds:.0f} s"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    columns = ("problem", "hard", "model × samples", "votes", "answer", "", "sure", "MFLOP")
    for name in columns:
        if wide or name != "votes":
            right = name in ("hard", "answer", "sure", "MFLOP")
            most = {"problem": 26 if wide else 18, "votes": 22}.get(name)
            table.add_column(name, "", justify="right" if right else "left", no_wrap=True, max_width=most)
    for row in rows:
        table.add_row(*(cell for name, cell in zip(columns, row, strict=True) if wide or name != "votes"))
    return table


def summary(runs: Sequence[Run]) -> Table:
    """By difficulty: accuracy, samples and FLOPs, beside the fixed plans."""
    first = runs[0]
    title = "right, and MFLOP a query (all stages), by difficulty"
    table = Table(title=title, title_justify="left", show_edge=False)
    table.add_column("difficulty")
    table.add_column("queries", justify="right")
    table.add_column("samples", justify="right")
    for run in runs:
        table.add_column(run.name.replace(" ", "\n", 1), justify="right")
    for level in [*(name for _, name in LEVELS if first.of(name)), ""]:
        solved = first.of(level)
        if not level:
            table.add_section()
        mean_samples = sum(one.samples for one in solved) / len(solved)
        cells = [f"{run.accuracy(level):4.0%} {run.flops(level) / len(solved) / 1e6:7.1f}" for run in runs]
        table.add_row(level or "all", str(len(solved)), f"{mean_samples:.1f}", *cells)
    return table


def figures(runs: Sequence[Run]) -> dict[str, object]:
    """For machines. FLOPs are sums over the queries."""
    first = runs[0]
    levels = [name for _, name in LEVELS if first.of(name)]
    return {
        "by_difficulty": [
            {
                "difficulty": level,
                "queries": len(first.of(level)),
                "accuracy": first.accuracy(level),
                "mean_samples": sum(one.samples for one in first.of(level)) / len(first.of(level)),
                "flops": first.flops(level),
            }
            for level in levels
        ],
        "baselines": [
            {"name": run.name, "accuracy": run.accuracy(), "flops": run.flops()} for run in runs[1:]
        ],
        "total": {"accuracy": first.accuracy(), "flops": first.flops()},
    }
