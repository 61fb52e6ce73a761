"""What all queries of this router may spend together in a calendar window, where a budget is set.

It is kept in memory: a restart forgets what was spent, and queries that run at the same time each see the
same FLOPs left. Reserving them, across routers, is for a ledger; what it has to keep is a `Pace`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from isoflop.errors import ResourceExhausted

from router import price
from router.price import Window


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
