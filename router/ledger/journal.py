"""What a ledger could not take while it was down, written down when it is back.

A query that runs when the ledger goes away has cost what it has cost: its settlements wait in memory, in
order, and are replayed. Whether a round may begin without a reservation is a setting: by default it may not.
Where it may, it is reserved afterwards, budget or not.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial

import structlog
from isoflop.errors import IsoflopError, Unavailable
from isoflop.v1.common_pb2 import Usage
from isoflop.v1.router_pb2 import Round, SolveResponse

from router.cost import Cost
from router.decision import UNLIMITED
from router.ledger import BillRow, Budget, Entry, Ledger, QueryKept, Short, Standing, TakenOver
from router.metrics_ledger import LedgerMetrics

log = structlog.get_logger()

Write = Callable[[], Awaitable[object]]

MOST = 100_000
"""Writes that wait at most; what comes then is refused, or lost and logged."""


class Journal:
    """A `Ledger` in front of another one."""

    def __init__(self, ledger: Ledger, metrics: LedgerMetrics, *, go_on: bool) -> None:
        """`go_on`: rounds may begin while the ledger is down."""
        self._ledger = ledger
        self._metrics = metrics
        self._go_on = go_on
        self._waiting: deque[tuple[str, Write]] = deque()
        self._behind: Counter[str] = Counter()
        """Writes that wait, by query: what comes after them waits, too."""
        self._known: dict[str, Standing] = {}
        """Budgets as they were told last."""
        self._replaying = asyncio.Lock()

    @property
    def waiting(self) -> int:
        """Writes that wait for the ledger."""
        return len(self._waiting)

    async def replay(self) -> None:
        """Write down what waits, as far as the ledger takes it; raises Unavailable where it does not."""
        async with self._replaying:
            while self._waiting:
                query_id, write = self._waiting[0]
                try:
                    await write()
                except Unavailable:
                    raise
                except (IsoflopError, Short, TakenOver) as error:
                    log.warning("a write of the journal is void", query=query_id, reason=repr(error))
                self._waiting.popleft()
                self._behind -= Counter([query_id])

    async def alive(self, router: str, address: str, lease_seconds: float) -> None:
        """As in Ledger; what waits is written down first, so that no round of this router's is lost."""
        await self.replay()
        with self._metrics.asked("alive"):
            await self._ledger.alive(router, address, lease_seconds)

    async def gone(self, router: str) -> None:
        """As in Ledger."""
        await self.replay()
        await self._ledger.gone(router)

    async def begin(self, entry: Entry) -> QueryKept | None:
        """As in Ledger; where that is down and queries go on, a retry is not known as one."""
        try:
            with self._metrics.asked("begin"):
                return await self._ledger.begin(entry)
        except Unavailable:
            self._or_refuse()
            self._later(entry.query_id, partial(self._begin_late, entry))
            return None

    async def take_over(self, query_id: str, dead: str, router: str) -> bool:
        """As in Ledger."""
        with self._metrics.asked("take_over"):
            return await self._ledger.take_over(query_id, dead, router)

    async def standings(self, budgets: Sequence[Budget]) -> Sequence[Standing]:
        """As in Ledger; where that is down and queries go on, as they were told last."""
        try:
            with self._metrics.asked("standings"):
                return self._told(await self._ledger.standings(budgets))
        except Unavailable:
            known = self._last(budgets)
            if not (self._go_on and known):
                raise
            return known

    async def estimated(self, query_id: str, charges: Sequence[Usage], budgets: Sequence[Budget]) -> None:
        """As in Ledger."""
        write = partial(self._ledger.estimated, query_id, charges, budgets)
        if not self._behind[query_id]:
            try:
                with self._metrics.asked("estimated"):
                    await write()
            except Unavailable:
                pass
            else:
                return
        self._later(query_id, write)

    async def reserve(
        self, query_id: str, router: str, index: int, round: Round, worst: Cost, budgets: Sequence[Budget]
    ) -> Sequence[Standing]:
        """As in Ledger."""
        if not self._behind[query_id]:
            try:
                with self._metrics.asked("reserve"):
                    return self._told(
                        await self._ledger.reserve(query_id, router, index, round, worst, budgets)
                    )
            except Unavailable:
                pass
        self._or_refuse()
        free = [replace(budget, limit=UNLIMITED) for budget in budgets]
        kept = Round.FromString(round.SerializeToString())
        self._later(query_id, partial(self._ledger.reserve, query_id, router, index, kept, worst, free))
        return self._last(budgets)

    async def settle(
        self,
        query_id: str,
        index: int,
        round: Round,
        charges: Sequence[Usage],
        candidates: bytes,
        budgets: Sequence[Budget],
    ) -> Sequence[Standing]:
        """As in Ledger."""
        kept = Round.FromString(round.SerializeToString())
        write = partial(self._ledger.settle, query_id, index, kept, list(charges), candidates, budgets)
        return await self._write("settle", query_id, write, budgets)

    async def end(
        self,
        query_id: str,
        router: str,
        outcome: str,
        result: SolveResponse | None,
        budgets: Sequence[Budget],
    ) -> Sequence[Standing]:
        """As in Ledger."""
        write = partial(self._ledger.end, query_id, router, outcome, result, budgets)
        return await self._write("end", query_id, write, budgets)

    async def get(self, query_id: str) -> QueryKept | None:
        """As in Ledger."""
        with self._metrics.asked("get"):
            return await self._ledger.get(query_id)

    async def bill(self, since: float, until: float, by: Sequence[str]) -> Sequence[BillRow]:
        """As in Ledger."""
        with self._metrics.asked("bill"):
            return await self._ledger.bill(since, until, by)

    async def close(self) -> None:
        """As in Ledger; what waits even now is lost, and logged."""
        try:
            await self.replay()
        except Unavailable as error:
            log.warning("writes of the journal are lost", writes=self.waiting, reason=str(error))
        await self._ledger.close()

    async def _begin_late(self, entry: Entry) -> None:
        """Write down a query that has begun unknown; an earlier call with its request id keeps that."""
        if await self._ledger.begin(entry):
            await self._ledger.begin(replace(entry, request_id=""))

    async def _write(
        self,
        operation: str,
        query_id: str,
        write: Callable[[], Awaitable[Sequence[Standing]]],
        budgets: Sequence[Budget],
    ) -> Sequence[Standing]:
        """What has happened is written down, now or later."""
        if not self._behind[query_id]:
            try:
                with self._metrics.asked(operation):
                    return self._told(await write())
            except Unavailable:
                pass
        self._later(query_id, write)
        return self._last(budgets)

    def _or_refuse(self) -> None:
        """Raises Unavailable where nothing may begin while the ledger is down."""
        if not self._go_on or self.waiting >= MOST:
            raise Unavailable("the ledger does not answer, and nothing is bought that is not written down")

    def _later(self, query_id: str, write: Write) -> None:
        if self.waiting >= MOST:
            log.error("a write of the journal is lost", query=query_id, reason=f"{MOST} wait already")
            return
        self._waiting.append((query_id, write))
        self._behind[query_id] += 1

    def _told(self, standings: Sequence[Standing]) -> Sequence[Standing]:
        self._known.update((standing.budget.name, standing) for standing in standings)
        self._metrics.standings(standings)
        return standings

    def _last(self, budgets: Sequence[Budget]) -> Sequence[Standing]:
        """As they were told last; none where that was never."""
        if any(budget.name not in self._known for budget in budgets):
            return []
        return [self._known[budget.name] for budget in budgets]
