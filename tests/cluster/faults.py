"""A fault under load: what became of the queries, how soon all was well again, and whether bills add up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from isoflop import AsyncClient

from tests.cluster.books import Books, Counts, books, misbilled, told
from tests.cluster.load import DEADLINE_SECONDS, Asked, Load, Summary, recovery, silence, summary
from tests.cluster.parts import Fault, FaultSuite

RECOVERY_SECONDS: Final = 5.0
"""So soon after a part's return all must be well."""
ENOUGH: Final = 48
"""So many queries make sure that all is well: before a fault, and in a row after the part's return."""
WATCHED_SECONDS: Final = 3 * RECOVERY_SECONDS
"""How long that is waited for."""
IDLE_SECONDS: Final = 30.0
"""How long what still runs without a caller may take to end."""
RUNNING: Final = ("isoflop_router_queries_running", "isoflop_generation_samples_running")


@dataclass(frozen=True)
class Observed:
    """What a fault has done."""

    seconds: float
    """From the fault to the part's return."""
    before: Summary
    during: Summary
    """Of the queries that ran while the part was away."""
    after: Summary
    """Of those that began after its return."""
    silence: float
    """The longest time in seconds without an answer, since the fault."""
    asked: Sequence[Asked]
    recovered: float
    """Seconds from the part's return until all queries are well; infinite: they never were."""
    used: float
    """Seconds from the part's return until it has ended some work; infinite: it never had."""
    spent: Books
    """Without what those had counted before that were killed."""
    told: Counts
    """By the bills of answers."""
    misbilled: Sequence[str]
    """Answers whose bill is not what the ledger has charged for them, and how they differ."""

    @property
    def ill(self) -> list[Asked]:
        """Queries without an answer as good as ever."""
        return [one for one in self.asked if not one.well]


async def fail(
    suite: FaultSuite, names: Sequence[str], fault: Fault, seconds: float, deadline: float = DEADLINE_SECONDS
) -> Observed:
    """Let these parts fail for so long; queries have so much time each."""
    parts = [suite.parts[name] for name in names]

    async def act() -> None:
        try:
            await _threads(*(partial(part.fail, fault) for part in parts))
            await asyncio.sleep(seconds)
        finally:
            await _threads(*(partial(part.back, fault) for part in parts))

    return await observe(suite, act, names, deadline)


async def roll(suite: FaultSuite, names: Sequence[str]) -> Observed:
    """Stop each of these processes in order (SIGTERM) and start it again, one after the other."""

    async def act() -> None:
        for name in names:
            process = suite.processes[name]
            assert await asyncio.to_thread(process.stop) == 0
            await asyncio.to_thread(process.restart)

    return await observe(suite, act, names, DEADLINE_SECONDS)


async def observe(
    suite: FaultSuite, act: Callable[[], Awaitable[None]], names: Sequence[str], deadline: float
) -> Observed:
    """Do something to these parts while clients ask, and wait until all is well and nothing runs any more."""
    load = Load(suite.address, deadline=deadline)
    async with AsyncClient(suite.address) as client:
        before = await books(suite, client)
        async with load.running():
            await load.until(ENOUGH)
            failed = time.monotonic()
            await act()
            returned = time.monotonic()
            used, _ = await asyncio.gather(_used(suite, names, returned), _well(load, returned))
        await idle(suite)
        spent = await books(suite, client) - before
        wrong = await misbilled(client, load.asked)
    asked = load.asked
    return Observed(
        seconds=returned - failed,
        before=summary([one for one in asked if one.ended < failed]),
        during=summary([one for one in asked if one.ended >= failed and one.began < returned]),
        after=summary([one for one in asked if one.began >= returned]),
        silence=silence(asked, failed),
        asked=asked,
        recovered=recovery(asked, returned),
        used=used,
        spent=spent,
        told=told(asked),
        misbilled=wrong,
    )


async def _used(suite: FaultSuite, names: Sequence[str], returned: float) -> float:
    """Seconds until each of the parts has ended some work."""

    for name in names:
        before = await asyncio.to_thread(suite.work, name)
        while await asyncio.to_thread(suite.work, name) == before:
            if time.monotonic() > returned + WATCHED_SECONDS:
                return float("inf")
            await asyncio.sleep(0.1)
    return time.monotonic() - returned


async def _well(load: Load, returned: float) -> None:
    """Return when enough queries in a row are well, or it takes too long."""
    while time.monotonic() < returned + WATCHED_SECONDS:
        await load.until(1)
        since = sorted((one for one in load.asked if one.began >= returned), key=lambda one: one.began)
        if len(since) >= ENOUGH and all(one.well for one in since[-ENOUGH:]):
            return


async def idle(suite: FaultSuite) -> None:
    """Wait until nothing runs any more."""

    def running() -> float:
        return sum(process.metrics(name) for process in suite.processes.values() for name in RUNNING)

    deadline = time.monotonic() + IDLE_SECONDS
    while left := await asyncio.to_thread(running):
        assert time.monotonic() < deadline, f"{left:.0f} queries and samples run on without a caller"
        await asyncio.sleep(0.1)


async def _threads(*calls: Callable[[], None]) -> None:
    await asyncio.gather(*(asyncio.to_thread(call) for call in calls))
