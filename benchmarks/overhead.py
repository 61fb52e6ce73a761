"""What the suite adds to direct calls of the same backend: `python -m benchmarks.overhead`.

A fake Triton answers in no time; it is called directly, and by the suite embedded, as one process, and
as five. One client first, then many at a time. Writes benchmarks/results/overhead.json and
docs/results/overhead.md; with --json only the file that it names, and with --quick alone nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import uvloop
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.fake_triton import SOLUTION
from benchmarks.overhead_measure import Row, Scenario, measure
from benchmarks.overhead_processes import ROOT, BenchmarkError
from benchmarks.overhead_report import machine, show, write_json, write_page
from benchmarks.overhead_systems import open_systems
from services.common import log

JSON = ROOT / "benchmarks" / "results" / "overhead.json"
PAGE = ROOT / "docs" / "results" / "overhead.md"
BLOCK = 10
"""Queries of one system before the next has its turn, where there is one client."""
INTERRUPTED = 130


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    queries: int = 200
    """Of each system by one client, in each scenario."""
    clients: int = 32
    each: int = 8
    """Queries of each of many clients, in each round."""
    load_rounds: int = 3
    warm_up: int = 30


QUICK = Size(queries=20, clients=8, each=2, load_rounds=1, warm_up=3)


def scenarios(size: Size) -> list[Scenario]:
    """One client with 1 sample, 16, and as many as the planner wants; then many clients with 1 and 16."""
    rounds = max(1, size.queries // BLOCK)
    alone = [Scenario(n, 1, size.queries, rounds, size.warm_up) for n in (1, 16, 0)]
    load = size.clients * size.each * size.load_rounds
    return [*alone, *(Scenario(n, size.clients, load, size.load_rounds, size.warm_up) for n in (1, 16))]


async def run(size: Size, backends_ms: Sequence[float], chunks: int, progress: Progress) -> list[Row]:
    """Every scenario on every backend."""
    plan, rows = scenarios(size), []
    for backend_ms in backends_ms:
        task = progress.add_task("starting", total=None)
        advance = partial(progress.advance, task)
        async with open_systems(backend_ms, chunks) as systems:
            for scenario in plan:
                able = sum(bool(scenario.samples) or system.adaptive for system in systems.all)
                progress.reset(
                    task,
                    description=scenario.name,
                    total=able * (scenario.queries + scenario.warm_up),
                )
                rows += await measure(systems, scenario, backend_ms, advance)
        progress.remove_task(task)
    return rows


async def _until_stopped(size: Size, options: argparse.Namespace) -> list[Row]:
    """Run; a signal cancels, and what was started is stopped."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        return await run(size, options.backend_ms, options.chunks, progress)


def main() -> int:
    """The command line."""
    options = _options()
    log.configure("warning", "text")
    size = QUICK if options.quick else Size(queries=options.queries)
    on = machine()
    try:
        rows = uvloop.run(_until_stopped(size, options))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return INTERRUPTED
    except BenchmarkError as error:
        print(f"benchmarks.overhead: {error}", file=sys.stderr)
        return 1
    show(rows)
    if options.json:
        write_json(options.json, on, options.chunks, rows)
    elif not options.quick:
        write_json(JSON, on, options.chunks, rows)
        write_page(PAGE, on, options.chunks, len(SOLUTION), rows)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("--queries", type=int, default=200, help="of each system by one client (200)")
    parser.add_argument("--quick", action="store_true", help="few queries: to see that it works")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers here, and no page")
    parser.add_argument(
        "--backend-ms", type=float, nargs="+", default=[0.0], help="time that a sample takes (0)"
    )
    parser.add_argument("--chunks", type=int, default=1, help="responses in which a sample comes (1)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
