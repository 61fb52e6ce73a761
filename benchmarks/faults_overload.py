"""Goodput and latency when four times as many queries come as can be answered."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import quantiles
from typing import Final

from isoflop import AsyncClient, Options
from isoflop.errors import IsoflopError

from tests.cluster.load import CLIENTS, EASY, Asked, Kind, Load, Problems, ask

QUERY: Final = Kind("vote", EASY, {"models": ["abacus-m"], "strategies": ["majority"], "samples": 8})
"""All are alike, so that what can be answered is a number."""
DEADLINE_SECONDS: Final = 10.0
WAIT_SECONDS: Final = 2.0
"""Longest that a query waits for its turn."""
OPTIONS: Final = (
    *("--max-running", "16", "--max-waiting", "64", "--max-wait-seconds", str(WAIT_SECONDS)),
    *("--rejoin-seconds", "1"),
)
"""Of each router: a queue for what two cores can do."""
MULTIPLES: Final = (1, 4)
"""Of capacity: so much is offered, in turn."""
URGENT: Final = 0.2
"""Share of queries that are of the tenant `urgent`; the others are `nightly`."""


@dataclass(frozen=True)
class Block:
    """Queries that came at a rate, whatever became of those before them."""

    multiple: int
    """Of capacity."""
    seconds: float
    offered: int
    answered: int
    """In time, and within these seconds."""
    outcomes: dict[str, dict[str, int]]
    """By tenant."""
    p50: float
    """Seconds that a query took which was not refused, whatever it came to."""
    p99: float
    told: int
    """Of the refused: those that were told when to come again."""


@dataclass(frozen=True)
class Overload:
    """Blocks at capacity and beyond, in turn."""

    capacity: float
    """Answers a second that 32 clients get, each with one query at a time: as many as have a place."""
    full_p99: float
    """Seconds that their queries take."""
    wait: float
    """Longest that a query waits for its turn, in seconds."""
    blocks: Sequence[Block]


async def measure(address: str, *, seconds: float, pairs: int) -> Overload:
    """Measure capacity, and then offer it, and more, by turns; each block lasts so long."""
    load = Load(address, mix=[QUERY], deadline=DEADLINE_SECONDS)
    async with load.running():
        await asyncio.sleep(seconds)
    answers = [one for one in load.asked if one.well]
    begin, end = answers[len(answers) // 4].ended, answers[-CLIENTS].ended
    capacity = sum(begin < one.ended <= end for one in answers) / (end - begin)
    full_p99 = quantiles([one.ended - one.began for one in answers], n=100)[98]
    blocks = [
        await _block(address, multiple, multiple * capacity, seconds, seed=number)
        for number in range(pairs)
        for multiple in MULTIPLES
    ]
    return Overload(capacity, full_p99, WAIT_SECONDS, blocks)


async def _block(address: str, multiple: int, rate: float, seconds: float, seed: int) -> Block:
    """Queries come as a Poisson process of that rate."""
    draw, problems = Random(seed), Problems()
    asked: list[tuple[str, Asked]] = []

    async def one(tenant: str, client: AsyncClient, number: int) -> None:
        # Without a request id the client tries once: what is offered is what comes.
        options: Options = {**QUERY.options, "seed": number}
        problem = problems.draw(draw, QUERY.groups)
        asked.append((tenant, await ask(client, QUERY, problem, DEADLINE_SECONDS, options)))

    async with (
        AsyncClient(address, "urgent") as urgent,
        AsyncClient(address, "nightly") as nightly,
        asyncio.TaskGroup() as group,
    ):
        begin = at = time.monotonic()
        number = 0
        while at < begin + seconds:
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            who = ("urgent", urgent) if draw.random() < URGENT else ("nightly", nightly)
            group.create_task(one(*who, number))
            at += draw.expovariate(rate)
            number += 1
    queries = [query for _, query in asked]
    admitted = [query.ended - query.began for query in queries if query.response is not None or query.silent]
    cuts = quantiles(admitted, n=100)
    refused = [query.error for query in queries if isinstance(query.error, IsoflopError)]
    return Block(
        multiple=multiple,
        seconds=seconds,
        offered=len(queries),
        answered=sum(query.well and query.ended <= begin + seconds for query in queries),
        outcomes={
            tenant: dict(sorted(Counter(query.outcome for of, query in asked if of == tenant).items()))
            for tenant in ("urgent", "nightly")
        },
        p50=cuts[49],
        p99=cuts[98],
        told=sum(getattr(error, "retry_after", 0.0) > 0 for error in refused),
    )
