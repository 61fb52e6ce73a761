"""A fault under load: what became of the queries, how soon all was well again, and whether bills add up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from isoflop.v1.common_pb2 import STAGE_GENERATION

from tests.cluster.load import DEADLINE_SECONDS, Asked, Load, Summary, recovery, summary
from tests.cluster.parts import Fault, FaultSuite, Part

RECOVERY_SECONDS: Final = 5.0
"""So soon after a part's return all must be well."""
WELL_AFTER: Final = 64
"""So many queries in a row that began after the part's return tell that all is well."""
WATCHED_SECONDS: Final = 3 * RECOVERY_SECONDS
"""How long that is waited for."""
IDLE_SECONDS: Final = 30.0
"""How long what still runs without a caller may take to end."""
TOKEN_KINDS: Final = ("prompt", "cached", "completion", "aborted")


@dataclass(frozen=True)
class Counts:
    """Tokens of generation by kind, and FLOPs of all stages that count them."""

    tokens: Mapping[str, float]
    flops: float

    def less(self, before: Counts) -> Counts:
        """What has been added."""
        tokens = {kind: count - before.tokens[kind] for kind, count in self.tokens.items()}
        return Counts(tokens, self.flops - before.flops)


@dataclass(frozen=True)
class Played:
    """What a fault has done."""

    part: str
    fault: Fault
    seconds: float
    """From the fault to the part's return."""
    before: Summary
    during: Summary
    """Of the queries that ran while the part was away, or began then."""
    after: Summary
    """Of those that began after its return."""
    asked: Sequence[Asked]
    recovered: float
    """Seconds from the part's return until all queries are well; infinite: they never were."""
    used: float
    """Seconds from the part's return until it has work again; infinite: it never had."""
    billed: Counts | None
    """By the routers' metrics; None where one was killed."""
    counted: Counts | None
    """By the services' metrics; None where one was killed."""
    told: Counts
    """By the responses."""


async def play(
    suite: FaultSuite, names: Sequence[str], fault: Fault, *, seconds: float, seed: int = 0, deadline: float = DEADLINE_SECONDS
) -> Played:
    """Let parts fail for so long while clients ask, and see what comes."""
    parts = [suite.parts[name] for name in names]
    began = counts(suite)
    load = Load(suite.address, seed=seed, deadline=deadline)
    async with load.running():
        await load.until(WELL_AFTER)
        failed = time.monotonic()
        for part in parts:
            await asyncio.to_thread(part.fail, fault)
        try:
            await asyncio.sleep(seconds)
        finally:
            await asyncio.gather(*(asyncio.to_thread(part.back, fault) for part in parts))
        returned = time.monotonic()
        used, _ = await asyncio.gather(_in_use(suite, names, returned), _well(load, returned))
    await _idle(suite)
    ended = counts(suite)
    killed = fault is Fault.KILL
    return Played(
        part=", ".join(names),
        fault=fault,
        seconds=returned - failed,
        before=summary([one for one in load.asked if one.ended < failed]),
        during=summary([one for one in load.asked if one.ended >= failed and one.began < returned]),
        after=summary([one for one in load.asked if one.began >= returned]),
        asked=load.asked,
        recovered=recovery(load.asked, returned),
        used=used,
        billed=None if killed and "router" in names[0] else ended[0].less(began[0]),
        counted=None
        if killed and names[0] not in ("triton", "difficulty", "aggregation")
        else ended[1].less(began[1]),
        told=told(load.asked),
    )


def counts(suite: FaultSuite) -> tuple[Counts, Counts]:
    """What routers have billed so far, and what services have counted."""
    billed = Counts(
        {
            kind: sum(
                one.metrics("isoflop_router_tokens_total", kind=kind, stage="generation")
                for one in suite.routers
            )
            for kind in TOKEN_KINDS
        },
        sum(
            one.metrics("isoflop_router_flops_total", stage=stage)
            for one in suite.routers
            for stage in ("generation", "verification")
        ),
    )
    counted = Counts(
        {
            kind: sum(one.metrics("isoflop_generation_tokens_total", kind=kind) for one in suite.generations)
            for kind in TOKEN_KINDS
        },
        sum(one.metrics("isoflop_generation_flops_total") for one in suite.generations)
        + suite.processes["verification"].metrics("isoflop_verification_flops_total"),
    )
    return billed, counted


def told(asked: Sequence[Asked]) -> Counts:
    """What the responses' bills say."""
    bills = [one.response.bill for one in asked if one.response is not None]
    lines = [line for bill in bills for line in bill.lines]
    return Counts(
        {
            kind: sum(getattr(line, f"{kind}_tokens") for line in lines if line.stage == STAGE_GENERATION)
            for kind in TOKEN_KINDS
        },
        sum(bill.flops for bill in bills),
    )


async def _in_use(suite: FaultSuite, names: Sequence[str], returned: float) -> float:
    """Seconds until each of the parts has ended another call well."""
    for name in names:
        work = _work(suite, name)
        before = await asyncio.to_thread(work)
        while await asyncio.to_thread(work) == before:
            if time.monotonic() > returned + WATCHED_SECONDS:
                return float("inf")
            await asyncio.sleep(0.1)
    return time.monotonic() - returned


def _work(suite: FaultSuite, name: str) -> Callable[[], float]:
    """What counts the work of a part."""
    if name == "triton":
        return lambda: suite.triton.metrics("abacus_l").get("llamacpp_tokens_total", 0.0)
    return partial(suite.processes[name].metrics, "isoflop_rpc_calls_total", code="OK")


async def _well(load: Load, returned: float) -> None:
    """Return when enough queries in a row are well, or it takes too long."""
    while time.monotonic() < returned + WATCHED_SECONDS:
        await load.until(1)
        since = sorted((one for one in load.asked if one.began >= returned), key=lambda one: one.began)
        if len(since) >= WELL_AFTER and all(one.well for one in since[-WELL_AFTER:]):
            return


async def _idle(suite: FaultSuite) -> None:
    """Wait until nothing runs any more."""

    def running() -> float:
        return sum(one.metrics("isoflop_router_queries_running") for one in suite.routers) + sum(
            one.metrics("isoflop_generation_samples_running") for one in suite.generations
        )

    deadline = time.monotonic() + IDLE_SECONDS
    while left := await asyncio.to_thread(running):
        if time.monotonic() > deadline:
            raise AssertionError(f"{left:.0f} queries and samples run on without a caller")
        await asyncio.sleep(0.1)
