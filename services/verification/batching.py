"""Micro-batching: what several requests want from one engine, a batch at a time.

A lone request runs at once. What comes while a batch is running is for the next one, which begins when that
has ended, or `max_wait` after the first of them came if that is later and there is still room. It has the one
that has waited longest and those most like it in size: little padding, and nobody is forgotten. An item that
the engine fails on fails alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from isoflop.errors import Unavailable

T = TypeVar("T")
R = TypeVar("R")


@dataclass(eq=False)
class _Item(Generic[T, R]):
    item: T
    size: int
    since: float
    """When it came, in the event loop's time."""
    result: asyncio.Future[R | Exception]


class Batcher(Generic[T, R]):
    """Runs items of concurrent callers together, in a thread of its own."""

    def __init__(
        self,
        run: Callable[[Sequence[T]], Sequence[R]],
        size: Callable[[T], int],
        *,
        max_batch: int,
        max_wait: float,
        max_waiting: int,
    ) -> None:
        """`run` is called in a thread, with one batch at a time, and gives a result for each item in order.

        `max_batch` bounds a batch's padded size, its number of items times the largest size among them;
        `max_wait` is in seconds; `max_waiting` is a number of items.
        """
        self._run = run
        self._size = size
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._max_waiting = max_waiting
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._waiting: list[_Item[T, R]] = []
        """The oldest first."""
        self._arrival = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, items: Sequence[T]) -> list[R | Exception]:
        """A result for each item, in order; an exception is that of its item alone.

        Raises Unavailable where too many wait. If cancelled, items that still wait are taken back.
        """
        if len(self._waiting) >= self._max_waiting:
            raise Unavailable(f"{len(self._waiting)} chains are waiting for this verifier: ask again")
        loop = asyncio.get_running_loop()
        if self._worker is None:
            self._worker = loop.create_task(self._work(), name="batches")
        mine = [_Item(item, self._size(item), loop.time(), loop.create_future()) for item in items]
        self._waiting += mine
        self._arrival.set()
        try:
            return [await one.result for one in mine]
        except asyncio.CancelledError:
            gone = set(mine)
            self._waiting = [one for one in self._waiting if one not in gone]
            raise

    async def close(self) -> None:
        """Give up what waits, and wait for the batch that runs."""
        if self._worker:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        for one in self._waiting:
            one.result.cancel()
        await asyncio.to_thread(self._thread.shutdown)

    async def _work(self) -> None:
        while True:
            if not self._waiting:
                self._arrival.clear()
                await self._arrival.wait()
            await self._play(self._next())
            if self._waiting:
                await self._company()

    async def _company(self) -> None:
        """Until there is enough for a batch, or the oldest has waited for long enough."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._waiting[0].since + self._max_wait):
                while sum(one.size for one in self._waiting) < self._max_batch:
                    self._arrival.clear()
                    await self._arrival.wait()

    def _next(self) -> list[_Item[T, R]]:
        """Take the next batch out of what waits; empty where all callers have gone."""
        if not self._waiting:
            return []
        oldest, *others = self._waiting
        batch, largest = [oldest], oldest.size
        for one in sorted(others, key=lambda one: abs(one.size - oldest.size)):
            if max(largest, one.size) * (len(batch) + 1) > self._max_batch:
                break
            batch.append(one)
            largest = max(largest, one.size)
        taken = set(batch)
        self._waiting = [one for one in self._waiting if one not in taken]
        return batch

    async def _play(self, batch: Sequence[_Item[T, R]]) -> None:
        if not batch:
            return
        results = await self._results([one.item for one in batch])
        for one, result in zip(batch, results, strict=True):
            if not one.result.done():  # Else its caller has gone.
                one.result.set_result(result)

    async def _results(self, items: Sequence[T]) -> Sequence[R | Exception]:
        """Run a batch; where that fails, each item alone."""
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, items)
            if len(results) != len(items):
                raise RuntimeError(f"{len(results)} results for {len(items)} items")  # noqa: TRY301
        except Exception as error:
            if len(items) == 1:
                return [error]
            return [(await self._results([item]))[0] for item in items]
        return results
