"""What all queries of this router may spend together in a calendar window, where a budget is set; and of it
what one of them may.

The purse is kept in memory: a restart forgets what was spent, and queries that run at the same time each see
the same FLOPs left. Reserving them, across routers, is for a ledger; what it has to keep is a `Pace`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from isoflop.errors import FailedPrecondition, ResourceExhausted

from router import price
from router.cost import Allowance, Cost
from router.decision import UNLIMITED
from router.ledger import Budget, Standing
from router.price import Window

T = TypeVar("T")


class Purse:
    """The budget of a window, and the price at which it lasts."""

    def __init__(self, window: Window, worth: float, clock: Callable[[], float] = time.time) -> None:
        """`worth`: a first guess of a right answer's, in FLOPs; `clock`: seconds since the epoch."""
        self._window = window
        self._clock = clock
        self._pace = price.begin(window, worth, clock())

    @property
    def price(self) -> float:
        """Right answers that one more FLOP would buy."""
        return self._pace.price

    @property
    def worth(self) -> float:
        """FLOPs that a right answer is worth."""
        return self._pace.worth

    @property
    def left(self) -> float:
        """FLOPs that this window still has."""
        return price.left(self._window, self._pace, self._clock())

    @property
    def share(self) -> float:
        """FLOPs that a query may have which follows the price."""
        return price.share(self._window, self._pace, self._clock())

    @property
    def end(self) -> float:
        """When this window ends, in seconds since the epoch."""
        return self._window.end(self._clock())

    @property
    def standing(self) -> Standing:
        """The budget as it stands now."""
        now, limit = self._clock(), replace(UNLIMITED, flops=self._window.flops)
        spent = Cost(flops=self._window.flops - self.left)
        budget = Budget("all", "", self._window.period, limit)
        return Standing(budget, self._window.start(now), self.end, spent, Cost(), self._pace)

    def check(self) -> None:
        """Raises ResourceExhausted where nothing is left."""
        if not self.left:
            raise self.exhausted("this window's budget is spent")

    def exhausted(self, why: str) -> ResourceExhausted:
        """The error, with the seconds until there is more."""
        seconds = self.end - self._clock()
        return ResourceExhausted(f"{why}: the next window begins in {seconds:.0f} s", seconds)

    def settle(self, flops: float, *, finished: bool) -> None:
        """A query took so many FLOPs; only one that `finished` by itself says something of the price."""
        spend = price.settle if finished else price.charge
        self._pace = spend(self._window, self._pace, flops, self._clock())


class Grant(Allowance):
    """What one query may spend: what its caller allows, and no more than it is given of a purse."""

    def __init__(self, own: Cost, purse: Purse | None = None, most: float = math.inf) -> None:
        """`own`: the caller's limit; `most`: FLOPs of the purse, as long as they pay for anything."""
        super().__init__(_within(own, most))
        self._own = own
        self._purse = purse

    def afford(self, plan: Callable[[Cost], T]) -> T:
        """What `plan` makes of what is left; it raises FailedPrecondition where that pays for nothing.

        Where what was given of the purse pays for nothing, all that the purse has may, if the price says that
        it is worth it. Raises ResourceExhausted where that is too little, but the caller's own limit is not.
        """
        try:
            return plan(self.left)
        except FailedPrecondition:
            if self._purse is None:
                raise
        self.limit = _within(self._own, self._purse.left)
        try:
            return plan(self.left)
        except FailedPrecondition:
            plan(self._own - self.spent)
            raise self._purse.exhausted("no plan fits in what is left of this window's budget") from None

    def close(self, flops: float, *, finished: bool) -> None:
        """The query took so many FLOPs in all, and has `finished` by itself or not: the purse pays."""
        if self._purse:
            self._purse.settle(flops, finished=finished)


def _within(limit: Cost, flops: float) -> Cost:
    return replace(limit, flops=min(limit.flops, flops))
