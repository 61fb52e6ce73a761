"""The ledger: what was promised, spent and answered, in one place for all routers that share it.

A query is written down when it begins; each of its rounds is a reservation at its worst case until it is
settled to what it really cost. Budgets are paid as rounds are: one conditional UPDATE for each, so that no
number of queries together overspends one. A router says regularly that it lives; what one that does not any
more has reserved is charged in full and marked unreconciled, and its queries may be taken over.

This module has the words that routers and ledgers share; `router.ledger.sql` keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from isoflop.v1.common_pb2 import Usage
from isoflop.v1.router_pb2 import Round, SolveResponse

from router import price
from router.cost import Cost
from router.period import Period

ESTIMATE = -1
"""Index of the round that what a query costs before its first one is charged to."""


PLATFORM = "platform"
"""Whom explored rounds are charged to."""


@dataclass(frozen=True)
class Budget:
    """What may be spent in each calendar window."""

    name: str
    """Unique: `tenant/period`, or `all` for that of all tenants."""
    tenant: str
    """Whose it is; empty: everybody's."""
    period: Period
    limit: Cost
    """Infinite where there is no limit."""


@dataclass(frozen=True)
class Standing:
    """A budget in its present window."""

    budget: Budget
    starts: float
    """When the window began, in seconds since the epoch."""
    ends: float
    spent: Cost
    """Settled, or charged because it was lost."""
    reserved: Cost
    """Of rounds that run, at their worst case."""
    pace: price.Pace
    """Of its FLOPs: a guess before the first query; of price 0 where they have no limit."""

    @property
    def left(self) -> Cost:
        """What is neither spent nor reserved; nowhere negative."""
        return self.budget.limit.beyond(self.spent + self.reserved)


class Short(Exception):
    """A reservation has no room in a budget; nothing was written."""

    def __init__(self, standing: Standing) -> None:
        super().__init__(standing.budget.name)
        self.standing = standing
        """Of the budget that has no room."""


class TakenOver(Exception):
    """Another router goes on with the query: this one was not heard of for too long."""


@dataclass(frozen=True)
class Entry:
    """A query as it begins."""

    query_id: str
    request_id: str
    """Empty: none."""
    asked: bytes
    """A hash of the request, by which a retry is told from another query."""
    tenant: str
    tier: str
    router: str
    """Id of the router that solves it."""
    began: float
    """Seconds since the epoch."""
    seed: int
    """Of its first sample."""


@dataclass(frozen=True)
class RoundKept:
    """A round as the ledger has it."""

    index: int
    round: Round
    """What was decided, and once it is settled what came."""
    worst: Cost
    """What was reserved."""
    charges: Sequence[Usage]
    """What it took, by stage and model; of a lost one its worst case, as aborted tokens of its model."""
    settled: bool
    """It was charged; otherwise it runs."""
    unreconciled: bool
    """It was charged in full because its router died."""
    candidates: bytes
    """What came of it, as the router wrote it; empty once the query has ended, or where nobody could take it
    over."""


@dataclass(frozen=True)
class QueryKept:
    """A query as the ledger has it."""

    entry: Entry
    outcome: str
    """As in the metrics; empty: it has not ended."""
    ended: float | None
    """Seconds since the epoch."""
    result: SolveResponse | None
    """None: it has none, or not yet, or it is too long ago."""
    rounds: Sequence[RoundKept]
    """In order; the estimate, where it was charged, is not among them."""
    estimate: Sequence[Usage]
    """What the query cost before its first round."""
    address: str
    """Where its router is reached; empty: it does not live any more."""

    @property
    def running(self) -> bool:
        """Whether a router that lives is at it."""
        return not self.outcome and bool(self.address)


@dataclass(frozen=True)
class BillRow:
    """What queries cost together."""

    keys: tuple[str, ...]
    """Values of what it is by, in that order."""
    queries: int
    """That have something in it."""
    usage: Usage
    """Sums; without stage, model and strategy."""
    unreconciled_flops: float
    """Of the FLOPs: charged in full because a router died."""


BY = ("tenant", "tier", "stage", "model", "strategy", "day")
"""What a bill may be by."""


class Ledger(Protocol):
    """Where routers write. Each method raises Unavailable where the storage does not answer; whether it has
    written is not known then, so that writing the same again must change nothing."""

    async def alive(self, router: str, address: str, lease_seconds: float) -> None:
        """Say that a router lives, and for how long that holds; charge what was reserved by those that do
        not any more."""
        ...

    async def gone(self, router: str) -> None:
        """A router has ended in order: it holds nothing any more."""
        ...

    async def begin(self, entry: Entry) -> QueryKept | None:
        """Write down a query that begins; None: done.

        Where the tenant has one with this request id that runs, might be taken over, or has ended with a
        result, that one instead, and nothing is written. One that has failed gives its request id away.
        """
        ...

    async def take_over(self, query_id: str, dead: str, router: str) -> bool:
        """Go on with a query of a router that does not live any more, whose rounds that run are lost; whether
        it was still that one's."""
        ...

    async def standings(self, budgets: Sequence[Budget]) -> Sequence[Standing]:
        """Budgets as they stand now, in that order."""
        ...

    async def estimated(self, query_id: str, charges: Sequence[Usage], budgets: Sequence[Budget]) -> None:
        """Charge what a query cost before its first round; NotFound where it never began."""
        ...

    async def reserve(
        self, query_id: str, router: str, index: int, round: Round, worst: Cost, budgets: Sequence[Budget]
    ) -> Sequence[Standing]:
        """Reserve a round at its worst case: in all budgets, or Short is raised; TakenOver where the query is
        not this router's any more. The budgets afterwards.

        A second time for the same round: `worst`, finite, is what is reserved in all from now on, in the
        windows of the first time; FailedPrecondition where it was settled, or is another router's.
        """
        ...

    async def settle(
        self,
        query_id: str,
        index: int,
        round: Round,
        charges: Sequence[Usage],
        candidates: bytes,
        budgets: Sequence[Budget],
    ) -> Sequence[Standing]:
        """A round has cost this: charge it, and free the rest of what was reserved. The budgets afterwards.

        One that was charged as lost meanwhile is set right, and one that was never reserved is charged as it
        is. NotFound where the query never began, or was too long ago.
        """
        ...

    async def end(
        self,
        query_id: str,
        router: str,
        outcome: str,
        result: SolveResponse | None,
        budgets: Sequence[Budget],
    ) -> Sequence[Standing]:
        """A query has ended; TakenOver where it is not this router's any more. The budgets afterwards.

        With a result, what it took in all moves each budget's price; without one, it gives its request id
        away. A round that is still reserved is charged as lost. NotFound where it never began.
        """
        ...

    async def get(self, query_id: str) -> QueryKept | None:
        """A query, running or ended; None: there is none, or it is too long ago."""
        ...

    async def bill(self, since: float, until: float, by: Sequence[str]) -> Sequence[BillRow]:
        """What was charged from `since` to `until`, the dearest first; `by` some of BY."""
        ...

    async def close(self) -> None:
        """Let go of the storage."""
        ...
