"""Mathematics and callers' patterns, each in a process of its own with a time limit."""

from __future__ import annotations

import asyncio
import multiprocessing
import re
from collections import OrderedDict
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

from isoflop.errors import FailedPrecondition
from prometheus_client import CollectorRegistry, Counter

from services.aggregation import worker
from services.aggregation.answers import expression_key
from services.aggregation.numbers import canonical_number
from services.aggregation.settings import AggregationSettings

if TYPE_CHECKING:
    from pebble import ProcessPool

T = TypeVar("T")

_WORDS = re.compile(r"[A-Za-z]{4,}(?: [A-Za-z]+)*")
_ASSIGNMENT = re.compile(r"\\?[A-Za-z][A-Za-z0-9_{}'(),]*=[^=]*")


class Killable:
    """A process that runs one task after another, and is killed and replaced where one takes too long.

    It starts with the first task.
    """

    def __init__(self, settings: AggregationSettings, tasks: Counter, *, mathematics: bool) -> None:
        self._settings = settings
        self._kind = "comparison" if mathematics else "pattern"
        self._mathematics = mathematics
        self._tasks = tasks
        self._pool: ProcessPool | None = None
        self._starting = asyncio.Lock()

    async def run(self, function: Callable[..., T], *arguments: str, deadline: float) -> T | None:
        """The result of a function of `worker.py`, or None where there is none in time.

        `deadline`, on the loop's clock, bounds the wait for a turn; the task itself may take
        `task_seconds`. Raises FailedPrecondition where the software that it needs is not installed.
        """
        outcome, result = await self._run(function, arguments, deadline)
        self._tasks.labels(self._kind, outcome).inc()
        return result

    async def _run(
        self, function: Callable[..., T], arguments: tuple[str, ...], deadline: float
    ) -> tuple[str, T | None]:
        if asyncio.get_running_loop().time() >= deadline:
            return "left_out", None
        # A pool whose processes do not even start gives itself up.
        pool = self._pool if self._pool and self._pool.active else await self._start()
        future = pool.schedule(function, args=arguments, timeout=self._settings.task_seconds)
        try:
            async with asyncio.timeout_at(deadline):
                return "done", await asyncio.wrap_future(future)
        except TimeoutError:
            # Of the task, or of the request: then the task is cancelled, and killed where it runs.
            return "timed_out", None
        except Exception:
            # The process died or ran out of memory, or mathematics had no word for it.
            return "failed", None

    async def _start(self) -> ProcessPool:
        needed = ("pebble", "math_verify") if self._mathematics else ("pebble",)
        if any(find_spec(name) is None for name in needed):
            raise FailedPrecondition(
                f"this server cannot do a {self._kind}: install isoflop-suite[math] there"
            )
        async with self._starting:
            if self._pool is None or not self._pool.active:
                # A process takes tens of milliseconds to start, so not in the event loop.
                self._pool = await asyncio.to_thread(self._open)
        return self._pool

    def _open(self) -> ProcessPool:
        from pebble import ProcessPool

        pool = ProcessPool(
            max_workers=1,
            initializer=worker.start,
            initargs=(self._settings.worker_memory_bytes, self._mathematics),
            # A fork of a process with threads and grpc can hang.
            context=multiprocessing.get_context("spawn"),
        )
        assert pool.active  # starts it
        return pool

    async def close(self) -> None:
        """End the process, whatever it is doing."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.stop()  # type: ignore[no-untyped-call]
            await asyncio.to_thread(pool.join)


class Equivalence:
    """Says whether two expressions are equal, and searches for patterns; never blocks the event loop."""

    def __init__(self, settings: AggregationSettings, registry: CollectorRegistry) -> None:
        tasks = Counter(
            "isoflop_aggregation_tasks_total",
            "Tasks of the processes that can be killed, by kind (comparison, pattern) and outcome "
            "(done, timed_out, failed, left_out: the request's time was used up).",
            ["kind", "outcome"],
            registry=registry,
        )
        self._settings = settings
        self._comparisons = Killable(settings, tasks, mathematics=True)
        self._patterns = Killable(settings, tasks, mathematics=False)
        self._remembered: OrderedDict[tuple[str, str], bool] = OrderedDict()

    def deadline(self) -> float:
        """When, on the loop's clock, a request that starts now has used up its time."""
        return asyncio.get_running_loop().time() + self._settings.request_seconds

    async def equal(self, one: str, other: str, deadline: float) -> bool:
        """Whether two expressions are equal; what is not decided in time is not equal."""
        if self._plainly_different(one, other):
            return False
        pair = (one, other)
        if pair in self._remembered:
            self._remembered.move_to_end(pair)
            return self._remembered[pair]
        result = await self._comparisons.run(worker.equivalent, one, other, deadline=deadline)
        # A comparison that took too long will do so again; one that the request had no time for may not.
        if result is not None or asyncio.get_running_loop().time() < deadline:
            self._remembered[pair] = bool(result)
            while len(self._remembered) > self._settings.remembered_comparisons:
                self._remembered.popitem(last=False)
        return bool(result)

    async def search(self, pattern: str, texts: list[str]) -> list[str | None]:
        """For each text the first group of the last match of `pattern`, or None."""
        deadline = self.deadline()
        searches = (self._patterns.run(worker.search, pattern, text, deadline=deadline) for text in texts)
        return list(await asyncio.gather(*searches))

    async def close(self) -> None:
        """End both processes."""
        await asyncio.gather(self._comparisons.close(), self._patterns.close())

    def _plainly_different(self, one: str, other: str) -> bool:
        """Whether two expressions with different keys need no mathematics to be told apart."""
        if max(len(one), len(other)) > self._settings.max_compared_chars:
            return True
        keys = expression_key(one), expression_key(other)
        if all(canonical_number(key) is not None for key in keys):
            return True
        # Mathematics takes what an equation ends with for its value: 2(a+b)=40 answers 40. But x+y-4=0 is an
        # equation, and does not answer 0.
        if any(key.endswith("=0") and not _ASSIGNMENT.fullmatch(key) for key in keys) and "0" in keys:
            return True
        # Mathematics takes a word for a product of letters, and finds anagrams equal.
        return any(_WORDS.fullmatch(key) for key in keys)
