"""Goodput and latency when four times as many queries come as can be answered."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean, quantiles
from typing import Final

from isoflop import AsyncClient, Options
from isoflop.errors import IsoflopError

from tests.cluster.load import EASY, Asked, Kind, Load, Problems, ask

QUERY: Final = Kind("vote", EASY, {"models": ["abacus-m"], "strategies": ["majority"], "samples": 8})
"""All are alike, so that what can be answered is a number."""
DEADLINE_SECONDS: Final = 10.0
MULTIPLES: Final = (1, 4)
"""Of capacity: so much is offered, in turn."""


@dataclass(frozen=True)
class Block:
    """Queries that came at a rate, whatever became of those before them."""

    multiple: int
    """Of capacity."""
    seconds: float
    offered: int
    answered: int
    """In time, and within these seconds."""
    outcomes: dict[str, int]
    p50: float
    """Seconds that a query took which was not refused; it may have ended at its deadline without an answer."""
    p99: float
    told: int
    """Of the refused: those that were told when to come again."""

    @property
    def goodput(self) -> float:
        """Answers a second."""
        return self.answered / self.seconds


@dataclass(frozen=True)
class Overload:
    """Blocks at capacity and beyond, in turn."""

    capacity: float
    """Answers a second that 32 clients get, each with one query at a time."""
    blocks: Sequence[Block]

    def of(self, multiple: int) -> list[Block]:
        """Blocks at that load."""
        return [block for block in self.blocks if block.multiple == multiple]

    @property
    def ratios(self) -> list[float]:
        """Goodput beyond capacity over that at it, of blocks that followed each other."""
        at, beyond = (self.of(multiple) for multiple in MULTIPLES)
        return [two.goodput / one.goodput for one, two in zip(at, beyond, strict=True)]


async def overload(address: str, *, seconds: float, pairs: int) -> Overload:
    """Measure capacity, and then offer it, and more, by turns; each block lasts so long."""
    load = Load(address, mix=[QUERY], deadline=DEADLINE_SECONDS)
    async with load.running():
        await asyncio.sleep(seconds)
        answers = [one.ended for one in load.asked if one.well]
    begin, end = answers[len(answers) // 4], answers[-1]
    capacity = sum(begin < at <= end for at in answers) / (end - begin)
    blocks = [
        await _block(address, multiple, multiple * capacity, seconds, seed=number)
        for number in range(pairs)
        for multiple in MULTIPLES
    ]
    return Overload(capacity, blocks)


async def _block(address: str, multiple: int, rate: float, seconds: float, seed: int) -> Block:
    """Queries come as a Poisson process of that rate."""
    draw, problems = Random(seed), Problems()
    asked: list[Asked] = []

    async def one(client: AsyncClient, number: int) -> None:
        # Without a request id the client tries once: what is offered is what comes.
        options: Options = {**QUERY.options, "seed": number}
        asked.append(await ask(client, QUERY, problems.draw(draw, QUERY.groups), DEADLINE_SECONDS, options))

    async with AsyncClient(address) as client, asyncio.TaskGroup() as group:
        begin = at = time.monotonic()
        number = 0
        while at < begin + seconds:
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            group.create_task(one(client, number))
            at += draw.expovariate(rate)
            number += 1
    answers = [query for query in asked if query.well]
    admitted = [query.ended - query.began for query in asked if query.response is not None or query.silent]
    cuts = quantiles(admitted, n=100)
    refused = [query.error for query in asked if isinstance(query.error, IsoflopError)]
    return Block(
        multiple=multiple,
        seconds=seconds,
        offered=len(asked),
        answered=sum(query.ended <= begin + seconds for query in answers),
        outcomes=dict(sorted(Counter(query.outcome for query in asked).items())),
        p50=cuts[49],
        p99=cuts[98],
        told=sum(getattr(error, "retry_after", 0.0) > 0 for error in refused),
    )


def mean_ratio(found: Overload) -> float:
    """Of all pairs."""
    return fmean(found.ratios)
