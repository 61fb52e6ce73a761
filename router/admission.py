"""A bounded queue in front of solving: what becomes of queries when more are asked than can be solved.

So many are solved at a time, and so many more may wait: the most urgent tier first, and within a tier who
came first. Where nobody else may wait, the least urgent is shed that came last, which may be the newcomer.
Who cannot come to its turn before its deadline is refused at once, and who waits for too long is shed, each
with the time after which it is worth to ask again; nothing was spent on either.

Priority is strict: as long as urgent tiers fill all places, the others are shed, all of them after the
longest wait at most. A share for each tier would have them wait less, and the urgent ones more; who wants
a tier never to starve gives the tenants of the others a limit, of concurrency or rate.
"""

from __future__ import annotations

import asyncio
import math
import random
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

from isoflop.errors import DeadlineExceeded, Unavailable

SOONEST, LATEST = 0.1, 30.0
"""Seconds after which who is shed is told to ask again."""

JITTER = 0.5
"""So much later at most, as a share of that time: those who are shed together do not come back together."""

FIRST_GUESS = 1.0
"""Seconds that a query takes, before any has ended."""

MEMORY = 32
"""Queries over which the mean of how long they take is."""


class Shed(Unavailable):
    """More is asked than can be solved; nothing was spent on this query."""


@dataclass(order=True)
class _Waiter:
    """A query that waits. They are ordered by who is next."""

    rank: int
    number: int
    """In which they came."""
    until: float = field(compare=False)
    """When it is refused; by the loop's clock."""
    late: bool = field(compare=False)
    """That is its deadline, and not the longest wait."""
    turn: asyncio.Future[None] = field(compare=False)
    """Done when it is its turn, or refused, or its caller has left."""

    def refuse(self, error: Shed | DeadlineExceeded) -> None:
        """Its turn does not come; nothing happens where its caller has just left."""
        if not self.turn.done():
            self.turn.set_exception(error)


class Admission:
    """The places in which queries are solved, and the queue for them."""

    def __init__(
        self,
        max_running: int,
        max_waiting: int,
        max_wait_seconds: float,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`chance`: uniform in [0, 1)."""
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._max_wait_seconds = max_wait_seconds
        self._chance = chance
        self._running = 0
        self._queue: list[_Waiter] = []
        """In order. One whose caller has just left may still be in it."""
        self._numbers = count()
        self._seconds = FIRST_GUESS
        """That a place was held, in the mean."""
        self._ended = 0
        """Places over which that mean is."""
        self._closed = False

    @property
    def running(self) -> int:
        """Queries that have a place."""
        return self._running

    @property
    def waiting(self) -> Counter[int]:
        """Queries that wait, by rank of their tier."""
        return Counter(waiter.rank for waiter in self._queue if not waiter.turn.done())

    @asynccontextmanager
    async def place(self, rank: int, deadline: float = math.inf) -> AsyncIterator[None]:
        """Wait for a place, and hold it while the context lasts.

        `rank`: of the tier, 0 is served first; `deadline`: of the query, by the clock of the event loop.
        Raises Shed where there is no room, where a more urgent query takes it, and after the longest wait;
        DeadlineExceeded where its turn would not come before the deadline, or has not come.
        """
        await self._enter(rank, deadline)
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            yield
        finally:
            self._ended = min(self._ended + 1, MEMORY)
            self._seconds += (loop.time() - began - self._seconds) / self._ended
            self._hand_over()

    def close(self) -> None:
        """Shed all who wait, and who comes from now on; who has a place keeps it."""
        self._closed = True
        for waiter in self._queue:
            waiter.refuse(self._ending())
        self._queue.clear()

    async def _enter(self, rank: int, deadline: float) -> None:
        """Wait for a place, and take it."""
        if self._closed:
            raise self._ending()
        if self._running < self._max_running:  # Then nobody waits.
            self._running += 1
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        until = min(deadline, now + self._max_wait_seconds)
        waiter = _Waiter(rank, next(self._numbers), until, deadline <= until, loop.create_future())
        expected = self._expected(bisect_left(self._queue, waiter))
        if now + expected > deadline:
            raise DeadlineExceeded(
                f"it would wait {expected:.3g} s for its turn, and its deadline is in "
                f"{max(0.0, deadline - now):.3g} s: allow more time"
            )
        self._make_room(rank)
        insort(self._queue, waiter)
        timer = loop.call_at(until, self._give_up, waiter)
        try:
            await waiter.turn
        except asyncio.CancelledError:
            if waiter.turn.cancelled():
                self._remove(waiter)
            elif waiter.turn.exception() is None:  # Its turn came just before.
                self._hand_over()
            raise
        finally:
            timer.cancel()

    def _make_room(self, rank: int) -> None:
        """See that a query of that rank may wait, or raise Shed."""
        if len(self._queue) < self._max_waiting:
            return
        if not self._queue or self._queue[-1].rank <= rank:
            raise self._shed(f"{len(self._queue)} queries wait, and no more may")
        self._queue.pop().refuse(self._shed("a more urgent query took its place in the queue"))

    def _hand_over(self) -> None:
        """A place is free: the next one takes it."""
        now = asyncio.get_running_loop().time()
        while self._queue:
            waiter = self._queue.pop(0)
            if waiter.until <= now:
                self._give_up(waiter)
            elif not waiter.turn.done():
                waiter.turn.set_result(None)
                return
        self._running -= 1

    def _give_up(self, waiter: _Waiter) -> None:
        """It has waited for too long."""
        self._remove(waiter)
        if waiter.late:
            error: Shed | DeadlineExceeded = DeadlineExceeded(
                "its turn has not come before its deadline: allow more time"
            )
        else:
            error = self._shed(f"it waited {self._max_wait_seconds:g} s and its turn has not come")
        waiter.refuse(error)

    def _remove(self, waiter: _Waiter) -> None:
        """From the queue, where it is still in it."""
        at = bisect_left(self._queue, waiter)
        if at < len(self._queue) and self._queue[at] is waiter:
            del self._queue[at]

    def _expected(self, ahead: int) -> float:
        """Seconds until the turn of one comes that has so many before it, at the pace of the last ones."""
        return (ahead + 1) * self._seconds / self._max_running

    def _ending(self) -> Shed:
        return self._shed("this router is ending, and begins no more queries")

    def _shed(self, why: str) -> Shed:
        """The error, which says to come back when those who wait now have had their turn."""
        seconds = max(SOONEST, min(self._expected(len(self._queue)), LATEST / (1.0 + JITTER)))
        seconds *= 1.0 + JITTER * self._chance()
        return Shed(f"{why}: ask again in {seconds:.3g} s", seconds)
