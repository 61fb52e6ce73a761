"""One query's account: what it may spend, and what the ledger knows of it.

Its caller's limit binds, and so does what budgets have left. Each round is reserved in the ledger before it
is bought, and settled there to what it cost.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import structlog
from isoflop.errors import FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from isoflop.v1.common_pb2 import Usage
from isoflop.v1.router_pb2 import Round, RoundCandidates, SolveResponse

from router import price
from router.cost import UNITS, Allowance, Cost
from router.deadline import until
from router.ledger import Budget, Entry, Ledger, Short, Standing, TakenOver
from router.price import Window
from router.strategies.strategy import Candidate

log = structlog.get_logger()

T = TypeVar("T")

LATE = "the ledger has not answered before the query's deadline"
"""Why a query is refused, or ends."""

HELD_SECONDS = 1.0
"""When to try again where running queries hold a budget's rest: they may free some of it."""


@asynccontextmanager
async def in_time(deadline: float) -> AsyncIterator[None]:
    """Raises Unavailable where the ledger does not answer before the deadline, in the event loop's time."""
    try:
        async with until(deadline):
            yield
    except TimeoutError:
        raise Unavailable(LATE) from None


def worth(standings: Iterable[Standing]) -> float | None:
    """FLOPs that a right answer is worth at the scarcest budget's price; None: none has a limit of FLOPs."""
    return min((standing.pace.worth for standing in standings if _priced(standing.budget)), default=None)


def share(standings: Iterable[Standing], now: float) -> float:
    """FLOPs that a query which follows the price may have: the least share of any budget."""
    return min((price.share(*_paced(one), now) for one in standings if _priced(one.budget)), default=math.inf)


def check(standings: Iterable[Standing]) -> None:
    """Raises ResourceExhausted where a budget is spent."""
    for standing in standings:
        spent, limit = standing.spent, standing.budget.limit
        if any(getattr(spent, unit) >= getattr(limit, unit) for unit in UNITS):
            raise _exhausted(standing, "is spent")


class Account(Allowance):
    """What one query may spend, and what it has spent."""

    def __init__(
        self,
        own: Cost,
        ledger: Ledger,
        entry: Entry,
        standings: Sequence[Standing] = (),
        most: float = math.inf,
        deadline: float = math.inf,
    ) -> None:
        """`own`: the caller's limit; `standings`: of the budgets that pay for the query; `most`: FLOPs that
        it may have of them, as long as those pay for anything; `deadline`: in the event loop's time, after
        which nobody waits for the ledger."""
        super().__init__(replace(own, flops=min(own.flops, most)))
        self.entry = entry
        self._own = own
        self._ledger = ledger
        self._standings = standings
        self._budgets: Sequence[Budget] = [standing.budget for standing in standings]
        self._held: Cost | None = None
        """What the ledger has reserved for the round that runs."""
        self._deadline = deadline
        self._writing: asyncio.Task[None] | None = None
        """What is being written down, or was last."""
        self._estimate: Sequence[Usage] = ()
        """What is not charged yet of what it cost before its first round."""

    @property
    def unspent(self) -> Cost:
        """What is not spent, reserved or not: of the limit, and of the budgets."""
        unspent = super().unspent
        for standing in self._standings:
            unspent = unspent.least(standing.left + (self._held or Cost()))
        return unspent

    def afford(self, plan: Callable[[Cost], T]) -> T:
        """What `plan` makes of what is left; it raises FailedPrecondition where that pays for nothing.

        Where what was given of the budgets pays for nothing, all that they have may, if the price says
        that it is worth it. Raises ResourceExhausted where that is too little, but the caller's limit is not.
        """
        try:
            return plan(self.left)
        except FailedPrecondition:
            if not self._standings:
                raise
        self.limit = self._own
        try:
            return plan(self.left)
        except FailedPrecondition:
            plan(self._own - self.spent)
            raise _exhausted(self._scarcest(), "has no room for any plan") from None

    def estimated(self, charges: Sequence[Usage], spent: Cost) -> None:
        """The query has cost this before its first round."""
        self._estimate = charges
        self.spent += spent

    @property
    def holds(self) -> bool:
        """Whether a round is reserved, or may be."""
        return self._held is not None

    async def hold(self, round: Round, worst: Cost) -> None:
        """Reserve a round in the ledger, or more of the same one: `worst` is what it may cost at most in all.

        Raises Short where a budget has no room for it any more: what is left is known then. Unavailable where
        the ledger does not answer in time; whether the round is reserved is not known then.
        """
        if not await self._write(self._hold(round, worst)):
            raise Unavailable(LATE)

    async def charge(self, round: Round, charges: Sequence[Usage], candidates: Sequence[Candidate]) -> None:
        """The reserved round is over: it has cost and brought this. Waits no longer than the deadline."""
        await self._write(self._charge(round, charges, candidates))

    async def correct(self, round: Round, charges: Sequence[Usage]) -> None:
        """A round that was charged has cost this, as is known now; its query has ended."""
        await self._ledger.settle(self.entry.query_id, round.index, round, charges, b"", self._paying(round))

    async def close(self, outcome: str, result: SolveResponse | None) -> None:
        """The query has ended, as the metrics call it; its caller waits no more."""
        self._deadline = math.inf
        await self._write(self._close(outcome, result))

    async def _write(self, write: Coroutine[Any, Any, None]) -> bool:
        """Have it written down after what was before, whatever becomes of the caller: else what is reserved
        would stay so. Whether that is done before the deadline."""
        before = self._writing

        async def in_turn() -> None:
            if before:
                await asyncio.wait({before})
            await write

        writing = self._writing = asyncio.create_task(in_turn(), name="account")
        writing.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            async with until(self._deadline):
                await asyncio.shield(writing)
        except TimeoutError:
            return False
        except asyncio.CancelledError:
            await asyncio.wait({writing})
            raise
        return True

    async def _hold(self, round: Round, worst: Cost) -> None:
        entry, held = self.entry, self._held
        await self._charge_estimate()
        # From now on it may be reserved.
        self._held = worst
        try:
            told = await self._ledger.reserve(
                entry.query_id, entry.router, round.index, round, worst, self._paying(round)
            )
        except Short as short:
            self._held = held
            self._take([short.standing])
            raise
        except TakenOver:
            self._held = held
            raise Unavailable(
                "another router has taken the query over: ask again with the same request_id"
            ) from None
        self._take(told)

    async def _charge(self, round: Round, charges: Sequence[Usage], candidates: Sequence[Candidate]) -> None:
        kept = b""
        if self.entry.request_id:
            # Where its router dies, another one can go on with these.
            kept = RoundCandidates(
                samples=[one.sample for one in candidates],
                scores=[one.scores for one in candidates],
                weights=[one.weight for one in candidates],
            ).SerializeToString()
        told = await self._ledger.settle(
            self.entry.query_id, round.index, round, charges, kept, self._paying(round)
        )
        self._held = None
        self._take(told)

    async def _close(self, outcome: str, result: SolveResponse | None) -> None:
        await self._charge_estimate()
        if result and not self.entry.request_id:
            # Nobody can ask for them again.
            kept = SolveResponse()
            kept.CopyFrom(result)
            kept.ClearField("candidates")
            result = kept
        entry = self.entry
        try:
            self._take(await self._ledger.end(entry.query_id, entry.router, outcome, result, self._budgets))
        except TakenOver:
            log.warning("another router has taken a query over", query=entry.query_id)
        except NotFound:
            pass  # It was never written down.

    async def _charge_estimate(self) -> None:
        if self._estimate:
            charges, self._estimate = self._estimate, ()
            await self._ledger.estimated(self.entry.query_id, charges, self._budgets)

    def _paying(self, round: Round) -> Sequence[Budget]:
        """The budgets that pay for a round: one that is explored is the platform's expense."""
        return [budget for budget in self._budgets if not (round.explored and budget.tenant)]

    def _take(self, told: Sequence[Standing]) -> None:
        """Budgets stand so now; as before where nothing is told: a ledger may be down."""
        now = {standing.budget.name: standing for standing in told}
        self._standings = [now.get(one.budget.name, one) for one in self._standings]

    def _scarcest(self) -> Standing:
        """The budget that has least left of its limit."""

        def share_left(standing: Standing) -> float:
            left, limit = standing.left, standing.budget.limit
            limited = [unit for unit in UNITS if math.isfinite(getattr(limit, unit))]
            return min((getattr(left, unit) / getattr(limit, unit) for unit in limited), default=1.0)

        return min(self._standings, key=share_left)


def _priced(budget: Budget) -> bool:
    return math.isfinite(budget.limit.flops)


def _paced(standing: Standing) -> tuple[Window, price.Pace]:
    budget = standing.budget
    return Window(budget.limit.flops, budget.period), replace(standing.pace, spent=standing.spent.flops)


def _exhausted(standing: Standing, why: str) -> ResourceExhausted:
    """The error, with the seconds until there is more."""
    seconds = max(0.0, standing.ends - time.time())
    said = f"budget {standing.budget.name} {why}: its next window begins in {seconds:.0f} s"
    if standing.reserved != Cost():
        return ResourceExhausted(
            f"{said}, and what running queries hold of it may be free sooner", HELD_SECONDS
        )
    return ResourceExhausted(said, seconds)
