"""What wide and deep plans hold: memory and tasks of 256 samples and of trees of 1,000 nodes, in one run.

    python -m benchmarks.bounds [--model abacus-m]

Each plan is played through the suite in one process; while it runs, the process's resident memory and
asyncio's tasks are looked at every few milliseconds. Then the largest tree is played once more: what is held
then beyond what was held before does not end with a query.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from isoflop.v1.router_pb2 import Filters, Search, SolveRequest
from prometheus_client import CollectorRegistry

from router.core import Router
from router.embedded import open_router
from router.settings import SuiteSettings

ROOT: Final = Path(__file__).parents[1]
PROMPT: Final = "(43+(26+2)+39-97)%6*(18-(3+1-92+77)-26)-(12+7*(31-25))"
"""Hard, so that chains are long and differ."""
PLANS: Final = {
    "majority of 16": Filters(strategies=["majority"], samples=16),
    "majority of 256": Filters(strategies=["majority"], samples=256),
    "best_of_n of 256": Filters(strategies=["best_of_n"], samples=256),
    "beam 8 × 8": Filters(strategies=["beam"], search=Search(width=8, expansion=8)),
    "tree of 1000": Filters(strategies=["tree"], search=Search(width=8, expansion=4, nodes=1000)),
    "broad_and_deep of 64": Filters(strategies=["broad_and_deep"], search=Search(width=64)),
}
AGAIN: Final = "tree of 1000"
LOOK_SECONDS: Final = 0.005


@dataclass(frozen=True)
class Held:
    """What a plan held at most."""

    plan: str
    queries: int
    """At once."""
    calls: int
    """Of the model, by all of them: samples or steps."""
    tasks: int
    """Of asyncio at most, beyond those of an idle suite."""
    tasks_after: int
    """When it was over."""
    megabytes: float
    """Resident, beyond what was before it."""


def resident() -> float:
    """The process's resident memory in megabytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Watch:
    """Looks at memory and tasks from a thread of its own, until it is closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.megabytes, self.tasks = resident(), 0
        self._loop, self._over = loop, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            self.megabytes = max(self.megabytes, resident())
            try:
                self.tasks = max(self.tasks, len(asyncio.all_tasks(self._loop)))
            except RuntimeError:  # The set of tasks changed while it was read.
                continue

    def close(self) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join()


async def held(router: Router, model: str, plan: str, queries: int) -> Held:
    """Play a plan so many times at once."""

    async def play(seed: int) -> int:
        request = SolveRequest(prompt=PROMPT, filters=PLANS[plan])
        request.filters.models.append(model)
        request.filters.seed = seed
        final = await router.solve(request)
        return sum(line.calls for line in final.bill.lines if line.model == model)

    idle, before = len(asyncio.all_tasks()), resident()
    watch = Watch(asyncio.get_running_loop())
    try:
        calls = await asyncio.gather(*(play(1000 * number) for number in range(queries)))
    finally:
        watch.close()
    after = len(asyncio.all_tasks()) - idle
    return Held(plan, queries, sum(calls), watch.tasks - idle, after, round(watch.megabytes - before, 1))


async def measure(model: str) -> dict[str, Any]:
    """All plans, and what stays after them."""
    async with open_router(SuiteSettings(), CollectorRegistry()) as router:
        first = next(iter(PLANS))
        await held(router, model, first, 1)
        idle = resident()
        rows = [await held(router, model, plan, 1) for plan in PLANS]
        before = resident()
        again = [await held(router, model, AGAIN, 1)]
        after = resident()
    return {
        "model": model,
        "idle_megabytes": round(idle, 1),
        "rows": [asdict(row) for row in rows],
        "again": [asdict(row) for row in again],
        "stays_after_all": round(before - idle, 1),
        "stays_after_all_again": round(after - before, 1),
    }


def page(figures: dict[str, Any]) -> str:
    """For people."""
    rows = [*figures["rows"], *figures["again"]]
    model, idle = figures["model"], figures["idle_megabytes"]
    stays, again = figures["stays_after_all"], figures["stays_after_all_again"]
    lines = [
        "# What wide and deep plans hold",
        "",
        f"Written by `make bench-bounds`; not edited by hand. The suite in one process, model {model}:",
        f"resident memory is {idle:.0f} MB before. What is told is beyond that, and beyond the tasks of an",
        "idle suite. The last row is one of them once more.",
        "",
        "| plan | queries at once | steps or samples | tasks at most | tasks after | MB at most |",
        "|---|---:|---:|---:|---:|---:|",
        *(
            f"| {row['plan']} | {row['queries']} | {row['calls']} | {row['tasks']} | {row['tasks_after']} "
            f"| {row['megabytes']:.1f} |"
            for row in rows
        ),
        "",
        f"After all of them {stays:.1f} MB more are held than before (caches, kept queries, and what the",
        f"allocator keeps); after the last row another {again:.1f} MB.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="abacus-m")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "bounds.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "bounds.md")
    arguments = parser.parse_args()
    figures = asyncio.run(measure(arguments.model))
    for path in (arguments.json, arguments.page):
        path.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    arguments.page.write_text(page(figures))
    print(arguments.page.read_text())


if __name__ == "__main__":
    main()
