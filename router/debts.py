"""What rounds have cost whose streams broke before they could say so: asked for until generation tells."""

from __future__ import annotations

import asyncio

import structlog
from isoflop.errors import NotFound, Unavailable
from isoflop.v1.generation_pb2 import GetRoundUsageRequest, GetRoundUsageResponse

from router.account import Account
from router.buying import Buying
from router.metrics import Metrics
from router.stages import Generation

log = structlog.get_logger()

PAUSE_SECONDS = 0.3
"""How often a replica that does not answer is asked."""


class Debts:
    """Of all queries of a router: their answers, and their ends, do not wait for them."""

    def __init__(self, generation: Generation, metrics: Metrics, patience_seconds: float) -> None:
        """`patience_seconds`: how long generation may be away; what it counted then is billed to nobody."""
        self._generation = generation
        self._metrics = metrics
        self._patience_seconds = patience_seconds
        self._asking: set[asyncio.Task[None]] = set()

    def collect(self, buying: Buying, account: Account) -> None:
        """The rest of a round's bill, once its query has ended."""
        if buying.bench.owed:
            asking = asyncio.create_task(self._collect(buying, account), name="debts")
            self._asking.add(asking)
            asking.add_done_callback(self._asking.discard)

    async def close(self) -> None:
        """Ask no more."""
        for asking in self._asking:
            asking.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)

    async def _collect(self, buying: Buying, account: Account) -> None:
        bench, paid = buying.bench, False
        for round_id, told in bench.owed:
            try:
                async with asyncio.timeout(self._patience_seconds):
                    usage = await self._ask(round_id)
            except (NotFound, TimeoutError) as error:
                # Its process has ended, and with it what it had counted.
                log.info("a round's usage is not known", query=account.entry.query_id, reason=repr(error))
                continue
            lines = bench.pay(told, usage.usage)
            self._metrics.late(lines, account.entry.tier)
            paid = True
        if paid:
            await account.correct(buying.round, bench.meter.lines)

    async def _ask(self, round_id: str) -> GetRoundUsageResponse:
        while True:
            try:
                return await self._generation.usage(GetRoundUsageRequest(round_id=round_id))
            except Unavailable:
                await asyncio.sleep(PAUSE_SECONDS)
