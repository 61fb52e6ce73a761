"""Whether the suite holds on to anything: `python -m benchmarks.soak [--minutes 60]`.

The whole suite as real processes (tests/cluster/parts.py) under constant mixed load of many tenants: queries
of all kinds, callers that hang up, deadlines that are too short, requests that are wrong, connections that
break, feedback. Every ten seconds each process's resident memory, open files, tasks and metric series are
read. Writes benchmarks/results/soak.json, docs/results/soak.md and a picture.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from isoflop import AsyncClient, Options
from isoflop.errors import IsoflopError

from benchmarks.overhead_report import machine
from benchmarks.soak_report import draw, page
from services.common import log
from tests.cluster.faults import idle
from tests.cluster.load import MIX, Asked, Load, Problems, ask
from tests.cluster.parts import FaultSuite
from tests.cluster.processes import ROOT, Process

JSON: Final = ROOT / "benchmarks" / "results" / "soak.json"
PAGE: Final = ROOT / "docs" / "results" / "soak.md"
PICTURE: Final = ROOT / "docs" / "results" / "soak.png"

OPTIONS: Final = ("--rejoin-seconds", "1")
CLIENTS: Final = 16
TENANTS: Final = 1000
"""Names by which callers call themselves; the suite knows a few of them."""
PAUSE_SECONDS: Final = 0.3
"""Of a client, on the mean, before it asks again: a load that does not fill the machine."""
DEADLINE_SECONDS: Final = 20.0
LOOK_SECONDS: Final = 10.0
CUT_SECONDS: Final = 15.0
"""So often the connections of one part, chosen by chance, are reset."""
WARM_SECONDS: Final = 60.0
"""Of full load before what an idle suite holds is read for the first time: caches fill once."""


@dataclass(frozen=True)
class Look:
    """What a process holds at a moment."""

    process: str
    seconds: float
    """Since the load began."""
    megabytes: float
    """Resident."""
    files: int
    """Open handles: files, sockets, pipes."""
    tasks: int
    """Of asyncio, that have not ended."""
    series: int
    """Lines of its metrics page that have a value."""


def look(name: str, process: Process, seconds: float) -> Look:
    """At one process, now."""
    folder = Path(f"/proc/{process.pid}")
    pages = int((folder / "statm").read_text().split()[1])
    return Look(
        name,
        round(seconds, 1),
        round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 2),
        len(list((folder / "fd").iterdir())),
        int(process.metrics("isoflop_process_tasks")),
        process.series(),
    )


class Soak:
    """Clients that ask, hang up, are wrong, hurry, and tell the truth afterwards."""

    def __init__(self, suite: FaultSuite) -> None:
        self.outcomes: Counter[str] = Counter()
        """What became of what was asked."""
        self._suite = suite
        self._random = Random(0)
        self._problems = Problems()
        self._number = 0

    async def run(self, seconds: float) -> list[Look]:
        """Load for so long, and what was seen meanwhile."""
        begin, over = time.monotonic(), asyncio.Event()
        looks: list[Look] = []
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self._client(over))
            group.create_task(self._cut(over))
            while (now := time.monotonic() - begin) < seconds:
                looks += await self.look(now)
                await asyncio.sleep(LOOK_SECONDS)
            over.set()
        return looks

    async def look(self, seconds: float) -> list[Look]:
        """At all processes."""
        return [
            await asyncio.to_thread(look, name, process, seconds)
            for name, process in self._suite.processes.items()
        ]

    async def _client(self, over: asyncio.Event) -> None:
        draw = self._random
        while not over.is_set():
            # A client of its own each time: channels come and go as callers do.
            async with AsyncClient(self._suite.address, f"tenant-{draw.randrange(TENANTS)}") as client:
                for _ in range(draw.randrange(1, 20)):
                    await self._one(client)
                    await asyncio.sleep(draw.expovariate(1 / PAUSE_SECONDS))
                    if over.is_set():
                        break

    async def _one(self, client: AsyncClient) -> None:
        """One query, in one of the ways in which callers behave."""
        draw = self._random
        self._number += 1
        kind = draw.choice(MIX)
        problem = self._problems.draw(draw, kind.groups)
        options: Options = {"seed": self._number, **kind.options}
        if draw.random() < 0.5:
            options["request_id"] = f"soak-{self._number}"
        way = draw.random()
        if way < 0.1:
            asked = asyncio.ensure_future(ask(client, kind, problem, DEADLINE_SECONDS, options))
            await asyncio.wait({asked}, timeout=draw.uniform(0.0, 0.5))
            asked.cancel()
            with suppress(asyncio.CancelledError):
                await asked
            self.outcomes["hung up" if asked.cancelled() else asked.result().outcome] += 1
        elif way < 0.2:
            self._note(await ask(client, kind, problem, draw.uniform(0.2, 1.0), options))
        elif way < 0.25:
            self._note(await ask(client, kind, problem, DEADLINE_SECONDS, {**options, "models": ["nobody"]}))
        else:
            one = await ask(client, kind, problem, DEADLINE_SECONDS, options)
            self._note(one)
            if one.response is not None and draw.random() < 0.3:
                with suppress(IsoflopError):
                    await client.feedback(one.response.query_id, answer=problem.answer)
                    self.outcomes["feedback"] += 1

    def _note(self, one: Asked) -> None:
        self.outcomes[one.outcome] += 1

    async def _cut(self, over: asyncio.Event) -> None:
        while not over.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), CUT_SECONDS)
            self._suite.parts[self._random.choice(sorted(self._suite.parts))].link.cut()


async def measure(minutes: float) -> dict[str, Any]:
    """The figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with FaultSuite(folder, (*OPTIONS, "--feedback", str(folder / "feedback.sqlite"))) as suite:
            async with Load(suite.address).running():
                await asyncio.sleep(WARM_SECONDS)
            await idle(suite)
            soak = Soak(suite)
            before = await soak.look(0.0)
            looks = await soak.run(60.0 * minutes)
            await idle(suite)
            after = await soak.look(60.0 * minutes)
    return {
        "machine": asdict(machine()),
        "minutes": minutes,
        "clients": CLIENTS,
        "tenants": TENANTS,
        "outcomes": dict(soak.outcomes.most_common()),
        "looks": list(map(asdict, looks)),
        "idle_before": list(map(asdict, before)),
        "idle_after": list(map(asdict, after)),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    arguments = parser.parse_args()
    log.configure("error", "text")
    figures = asyncio.run(measure(arguments.minutes))
    JSON.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    draw(figures, PICTURE)
    PAGE.write_text(page(figures), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
