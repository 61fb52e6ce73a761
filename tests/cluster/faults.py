"""A fault under load: what became of the queries, how soon all was well again, and whether bills add up."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from isoflop.v1.common_pb2 import STAGE_GENERATION, STAGE_VERIFICATION

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
KINDS: Final = ("prompt", "cached", "completion", "aborted")
STAGES: Final = {"generation": STAGE_GENERATION, "verification": STAGE_VERIFICATION}
"""That count tokens."""
RUNNING: Final = ("isoflop_router_queries_running", "isoflop_generation_samples_running")


@dataclass(frozen=True)
class Counts:
    """What was spent in the stages that count tokens."""

    tokens: Mapping[str, float]
    """By stage and kind, as in `generation aborted`."""
    flops: float

    @staticmethod
    def of(tokens: Callable[[str, str], float], flops: Callable[[str], float]) -> Counts:
        """Asks for the tokens of each stage and kind, and the FLOPs of each stage."""
        counts = {f"{stage} {kind}": tokens(stage, kind) for stage in STAGES for kind in KINDS}
        return Counts(counts, sum(map(flops, STAGES)))

    def __sub__(self, before: Counts) -> Counts:
        """What has been added."""
        tokens = {kind: count - before.tokens[kind] for kind, count in self.tokens.items()}
        return Counts(tokens, self.flops - before.flops)


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
    billed: Counts | None
    """By the routers' metrics; None where one of them was killed."""
    counted: Counts | None
    """By the services' metrics; None where one of them was killed."""
    told: Counts
    """By the responses."""

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

    return await observe(suite, act, names, names if fault is Fault.KILL else (), deadline)


async def roll(suite: FaultSuite, names: Sequence[str]) -> Observed:
    """Stop each of these processes in order (SIGTERM) and start it again, one after the other."""

    async def act() -> None:
        for name in names:
            process = suite.processes[name]
            assert await asyncio.to_thread(process.stop) == 0
            await asyncio.to_thread(process.restart)

    return await observe(suite, act, names, names, DEADLINE_SECONDS)


async def observe(
    suite: FaultSuite,
    act: Callable[[], Awaitable[None]],
    names: Sequence[str],
    ended: Sequence[str],
    deadline: float,
) -> Observed:
    """Do something to these parts while clients ask; those that `ended` have forgotten their counts."""
    began = await _both(suite)
    load = Load(suite.address, deadline=deadline)
    async with load.running():
        await load.until(ENOUGH)
        failed = time.monotonic()
        await act()
        returned = time.monotonic()
        used, _ = await asyncio.gather(_used(suite, names, returned), _well(load, returned))
    await idle(suite)
    billed, counted = (after - before for before, after in zip(began, await _both(suite), strict=True))
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
        billed=None if set(ended) & suite.routers.keys() else billed,
        counted=None if set(ended) & suite.counting.keys() else counted,
        told=told(asked),
    )


def told(asked: Sequence[Asked]) -> Counts:
    """What the responses' bills say."""
    lines = [line for one in asked if one.response is not None for line in one.response.bill.lines]

    def total(name: str, stage: str) -> float:
        return math.fsum(getattr(line, name) for line in lines if line.stage == STAGES[stage])

    return Counts.of(lambda stage, kind: total(f"{kind}_tokens", stage), partial(total, "flops"))


def _billed(suite: FaultSuite) -> Counts:
    """What the routers that run have billed since they were started."""

    def total(name: str, **labels: str) -> float:
        return math.fsum(
            one.metrics(f"isoflop_router_{name}_total", **labels) for one in suite.routers.values()
        )

    return Counts.of(
        lambda stage, kind: total("tokens", stage=stage, kind=kind), lambda stage: total("flops", stage=stage)
    )


def _counted(suite: FaultSuite) -> Counts:
    """What the services that run have counted since they were started."""

    def total(stage: str, name: str, **labels: str) -> float:
        return math.fsum(
            one.metrics(f"isoflop_{stage}_{name}_total", **labels) for one in suite.counting.values()
        )

    return Counts.of(
        lambda stage, kind: total(stage, "tokens", kind=kind), lambda stage: total(stage, "flops")
    )


async def _used(suite: FaultSuite, names: Sequence[str], returned: float) -> float:
    """Seconds until each of the parts has ended some work."""

    def work(name: str) -> float:
        if name in suite.processes:
            return suite.processes[name].metrics("isoflop_rpc_calls_total", code="OK")
        return suite.work(name)

    for name in names:
        before = await asyncio.to_thread(work, name)
        while await asyncio.to_thread(work, name) == before:
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


async def _both(suite: FaultSuite) -> tuple[Counts, Counts]:
    return await asyncio.to_thread(_billed, suite), await asyncio.to_thread(_counted, suite)
