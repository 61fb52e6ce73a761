"""Mathematics and callers' patterns, each in processes of their own with a time limit."""

from __future__ import annotations

import asyncio
import multiprocessing
import re
import signal
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from isoflop.errors import FailedPrecondition, InvalidArgument, Unavailable
from prometheus_client import CollectorRegistry, Counter

from services.aggregation import worker
from services.aggregation.answers import based, expression_key, value
from services.aggregation.numbers import canonical_number
from services.aggregation.settings import AggregationSettings

if TYPE_CHECKING:
    from pebble import ProcessPool

T = TypeVar("T")

_WORDS = re.compile(r"[A-Za-z]{4,}(?: [A-Za-z]+)*")
_ASSIGNMENT = re.compile(r"\\?[A-Za-z][A-Za-z0-9_{}'(),]*=[^=]*")


class NoResult(Exception):
    """A task took too long, or too much memory, or its turn did not come in time."""


@dataclass
class Turn:
    """What the tasks of one request have left."""

    deadline: float
    """On the loop's clock."""
    slow: bool = False
    """Something of it took too long: the rest is done beside the other requests."""


class Killable:
    """A process that runs one task after another, and is killed and replaced where one takes too long.

    It starts with the first task. Tasks wait for their turn in the order in which they came.
    """

    def __init__(self, settings: AggregationSettings, tasks: Counter, *, mathematics: bool) -> None:
        self._settings = settings
        self._kind = "comparison" if mathematics else "pattern"
        self._mathematics = mathematics
        self._tasks = tasks
        self._pool: ProcessPool | None = None
        self._free = asyncio.Lock()
        self._opening = threading.Lock()

    async def run(self, function: Callable[..., T], *arguments: Any, deadline: float) -> T:
        """The result of a function of `worker.py`.

        `deadline`, on the loop's clock, bounds the wait for a turn; the task itself may take
        `task_seconds`. Raises NoResult where there is none in time, and FailedPrecondition where the
        software that it needs is not installed.
        """
        outcome = "left_out"
        try:
            async with asyncio.timeout_at(deadline), self._free:
                await asyncio.sleep(0)  # A deadline that has passed is heard here.
                outcome = "timed_out"
                if self._pool is None or not self._pool.active:
                    # A pool whose processes do not even start gives itself up. A process takes tens of
                    # milliseconds to start, so not in the event loop.
                    self._check_installed()
                    await asyncio.to_thread(self._open)
                assert self._pool is not None
                limited = (self._settings.task_seconds, function, *arguments)
                future = self._pool.schedule(worker.limited, args=limited)
                # Where the request has no more time the task is cancelled, and killed.
                result: T = await asyncio.wrap_future(future)
        except FailedPrecondition:
            raise
        except TimeoutError as error:
            self._tasks.labels(self._kind, outcome).inc()
            raise NoResult from error
        except Exception as error:
            # The process died or ran out of memory, or mathematics had no word for it.
            late = getattr(error, "exitcode", None) == -signal.SIGPROF
            self._tasks.labels(self._kind, "timed_out" if late else "failed").inc()
            raise NoResult from error
        self._tasks.labels(self._kind, "done").inc()
        return result

    def _check_installed(self) -> None:
        needed = ("pebble", "math_verify") if self._mathematics else ("pebble",)
        if any(find_spec(name) is None for name in needed):
            raise FailedPrecondition(
                f"this server cannot do a {self._kind}: install isoflop-suite[math] there"
            )

    def _open(self) -> None:
        from pebble import ProcessPool

        # A request that is cancelled meanwhile leaves this thread behind: the next one finds its pool.
        with self._opening:
            if self._pool is not None and self._pool.active:
                return
            self._pool = ProcessPool(
                max_workers=1,
                initializer=worker.start,
                initargs=(self._settings.worker_memory_bytes, self._mathematics),
                # A fork of a process with threads and grpc can hang.
                context=multiprocessing.get_context("spawn"),
            )
            assert self._pool.active  # starts it

    def _close(self) -> None:
        with self._opening:
            pool, self._pool = self._pool, None
            if pool is not None:
                pool.stop()  # type: ignore[no-untyped-call]
                pool.join()

    async def close(self) -> None:
        """End the process, whatever it is doing."""
        await asyncio.to_thread(self._close)


class Lanes:
    """Two processes: one for all requests, and one for those of which something took too long.

    So a request that takes for ever holds up the others for `task_seconds` once, and then only its like.
    """

    def __init__(self, settings: AggregationSettings, tasks: Counter, *, mathematics: bool) -> None:
        self._quick = Killable(settings, tasks, mathematics=mathematics)
        self._slow = Killable(settings, tasks, mathematics=mathematics)

    async def run(self, turn: Turn, function: Callable[..., T], *arguments: Any) -> T:
        """As `Killable.run`, in the process that the request has deserved."""
        try:
            lane = self._slow if turn.slow else self._quick
            return await lane.run(function, *arguments, deadline=turn.deadline)
        except NoResult:
            turn.slow = True
            raise

    async def close(self) -> None:
        """End both processes."""
        await asyncio.gather(self._quick.close(), self._slow.close())


class Remembered(Generic[T]):
    """Values by name; the one that was not asked for the longest is forgotten first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[object, T] = OrderedDict()

    def get(self, name: object) -> T | None:
        """The value of `name`, or None."""
        if name in self._values:
            self._values.move_to_end(name)
        return self._values.get(name)

    def put(self, name: object, value: T) -> None:
        """Remember a value."""
        self._values[name] = value
        while len(self._values) > self._most:
            self._values.popitem(last=False)


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
        self._comparisons = Lanes(settings, tasks, mathematics=True)
        self._patterns = Lanes(settings, tasks, mathematics=False)
        kept = settings.remembered_comparisons
        self._verdicts: Remembered[bool] = Remembered(kept)
        self._unworkable: Remembered[bool] = Remembered(kept)
        self._faults: Remembered[str] = Remembered(kept)
        self._slow_patterns: Remembered[bool] = Remembered(kept)

    def turn(self) -> Turn:
        """Of a request that starts now."""
        return Turn(asyncio.get_running_loop().time() + self._settings.request_seconds)

    async def equal(self, one: str, other: str, turn: Turn) -> bool | None:
        """Whether two expressions are equal; None where that was not decided in time."""
        verdict = self._plain_verdict(one, other)
        if verdict is not None:
            return verdict
        if self.unworkable(one) or self.unworkable(other):
            return None
        pair = (one, other)
        verdict = self._verdicts.get(pair)
        if verdict is None:
            try:
                verdict = await self._comparisons.run(turn, worker.equivalent, value(one), value(other))
            except NoResult:
                await self._find_unworkable(pair, turn)
                return None
            self._verdicts.put(pair, verdict)
        return verdict

    def unworkable(self, expression: str) -> bool:
        """Whether it is known that mathematics takes too long over an expression, whatever the other is."""
        return self._unworkable.get(expression) is not None

    async def check_pattern(self, pattern: str) -> None:
        """Raise InvalidArgument where a pattern is none, or takes too long to be compiled."""
        fault = self._faults.get(pattern)
        if fault is None:
            turn = self.turn()
            try:
                fault = await self._patterns.run(turn, worker.pattern_fault, pattern)
            except NoResult:
                fault = "takes too long to be compiled"
                if asyncio.get_running_loop().time() >= turn.deadline:
                    # That may be the fault of others.
                    raise Unavailable("patterns wait too long for their turn: try again") from None
            self._faults.put(pattern, fault)
        if fault:
            raise InvalidArgument("format.pattern", fault)

    async def search(self, pattern: str, texts: list[str]) -> Sequence[str | NoResult | None]:
        """For each text the first group of the last match of `pattern`, or None, or that it took too long."""
        turn = self.turn()
        turn.slow = self._slow_patterns.get(pattern) is not None
        if not turn.slow:
            try:
                return await self._patterns.run(turn, worker.search, pattern, texts)
            except NoResult:
                self._slow_patterns.put(pattern, True)
        found: list[str | NoResult | None] = []
        for text in texts:
            try:
                found += await self._patterns.run(turn, worker.search, pattern, [text])
            except NoResult as error:
                found.append(error)
        return found

    async def close(self) -> None:
        """End all processes."""
        await asyncio.gather(self._comparisons.close(), self._patterns.close())

    async def _find_unworkable(self, expressions: tuple[str, str], turn: Turn) -> None:
        """Find out which of two expressions is to blame, so that the others are not held up by it again."""
        for expression in expressions:
            try:
                await self._comparisons.run(turn, worker.workable, value(expression))
            except NoResult:
                if asyncio.get_running_loop().time() < turn.deadline:
                    self._unworkable.put(expression, True)

    def _plain_verdict(self, one: str, other: str) -> bool | None:
        """Whether two expressions with different keys are equal, where that needs no mathematics."""
        if max(len(one), len(other)) > self._settings.max_compared_chars:
            return False
        keys = expression_key(one), expression_key(other)
        numbers = [canonical_number(key) is not None for key in keys]
        if all(numbers):
            return False
        bases = based(keys[0]), based(keys[1])
        if all(bases):
            # Mathematics takes 52_8 and 52_9 for 52.
            return False
        if (numbers[0] and bases[1]) or (numbers[1] and bases[0]):
            # Who is asked for a number to base 8 often leaves the base out.
            digits = [based_[0] if based_ else key for key, based_ in zip(keys, bases, strict=True)]
            return digits[0] == digits[1]
        # Mathematics takes what an equation ends with for its value: 2(a+b)=40 answers 40. But x+y-4=0 is an
        # equation, and does not answer 0.
        if any(key.endswith("=0") and not _ASSIGNMENT.fullmatch(key) for key in keys) and "0" in keys:
            return False
        # Mathematics takes a word for a product of letters, and finds anagrams equal.
        return False if any(_WORDS.fullmatch(key) for key in keys) else None
