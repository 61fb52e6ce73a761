"""Batches across requests: what shares one, what waits, and what fails alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isoflop.errors import Unavailable

from services.verification.batching import Batcher

FOR_EVER = 1e6
"""Seconds that no test takes."""


class Engine:
    """Items are their own sizes and results; each batch waits for its leave."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun: asyncio.Queue[list[int]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._leave = threading.Semaphore(0)

    def run(self, batch: Sequence[int]) -> list[int]:
        self.batches.append(list(batch))
        self._loop.call_soon_threadsafe(self.begun.put_nowait, list(batch))
        self._leave.acquire()
        if 13 in batch:
            raise ZeroDivisionError
        return [-item for item in batch]

    def let(self, batches: int) -> None:
        """So many batches may end."""
        self._leave.release(batches)


Make = Callable[..., Batcher[int, int]]


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    made = Engine()
    yield made
    made.let(1000)


@pytest.fixture
async def batcher(engine: Engine) -> AsyncIterator[Make]:
    made: list[Batcher[int, int]] = []

    def make(**options: Any) -> Batcher[int, int]:
        limits: dict[str, Any] = {"max_batch": 100, "max_wait": 0.0, "max_waiting": 100, **options}
        made.append(Batcher(engine.run, int, **limits))
        return made[-1]

    yield make
    engine.let(1000)
    for one in made:
        await one.close()


def submit(batcher: Batcher[int, int], *items: int) -> asyncio.Task[Any]:
    return asyncio.create_task(batcher.submit(items))


async def settle() -> None:
    """Let what can run run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_lone_request_runs_at_once(engine: Engine, batcher: Make) -> None:
    lone = submit(batcher(max_wait=FOR_EVER), 3, 4)
    engine.let(1)
    assert await lone == [-3, -4]
    assert engine.batches == [[3, 4]]


async def test_what_comes_while_a_batch_runs_shares_the_next_one(engine: Engine, batcher: Make) -> None:
    at = batcher()
    first = submit(at, 1)
    await engine.begun.get()
    others = [submit(at, 5, 6), submit(at, 7), submit(at, 8)]
    await settle()
    engine.let(2)
    assert await first == [-1]
    assert await asyncio.gather(*others) == [[-5, -6], [-7], [-8]]
    assert engine.batches == [[1], [5, 6, 7, 8]]


async def test_a_full_batch_does_not_wait_for_more(engine: Engine, batcher: Make) -> None:
    at = batcher(max_wait=FOR_EVER, max_batch=10)
    first = submit(at, 1)
    await engine.begun.get()
    early = submit(at, 5)
    await settle()
    engine.let(1)
    await first
    await settle()
    assert engine.batches == [[1]]  # It waits for company.
    late = submit(at, 5)
    engine.let(2)
    assert await asyncio.gather(early, late) == [[-5], [-5]]


async def test_who_has_waited_long_enough_goes_without_company(engine: Engine, batcher: Make) -> None:
    at = batcher(max_wait=0.001)
    first = submit(at, 1)
    await engine.begun.get()
    second = submit(at, 2)
    engine.let(2)
    assert await asyncio.gather(first, second) == [[-1], [-2]]


async def test_a_batch_has_the_oldest_and_those_most_like_it(engine: Engine, batcher: Make) -> None:
    at = batcher(max_batch=60)
    first = submit(at, 1)
    await engine.begun.get()
    rest = submit(at, 20, 50, 19, 3, 21, 2)
    await settle()
    engine.let(10)
    await asyncio.gather(first, rest)
    assert rest.result() == [-20, -50, -19, -3, -21, -2]
    assert engine.batches == [[1], [20, 19], [50], [3, 2], [21]]


async def test_an_item_larger_than_a_batch_runs_alone(engine: Engine, batcher: Make) -> None:
    engine.let(3)
    assert await submit(batcher(), 500, 2, 3) == [-500, -2, -3]
    assert engine.batches == [[500], [2, 3]]


async def test_an_item_that_the_engine_fails_on_fails_alone(engine: Engine, batcher: Make) -> None:
    engine.let(10)
    one, bad, other = await submit(batcher(), 12, 13, 14)
    assert (one, other) == (-12, -14)
    assert isinstance(bad, ZeroDivisionError)


async def test_a_wrong_number_of_results_is_an_error_of_each(batcher: Make) -> None:
    at: Batcher[int, int] = Batcher(lambda batch: [], int, max_batch=9, max_wait=0, max_waiting=9)
    results = await at.submit([1, 2])
    assert [str(result) for result in results] == ["0 results for 1 items"] * 2
    await at.close()


async def test_where_too_many_wait_a_request_is_refused(engine: Engine, batcher: Make) -> None:
    at = batcher(max_waiting=2)
    first = submit(at, 1)
    await engine.begun.get()
    waiting = submit(at, 2, 3)
    await settle()
    with pytest.raises(Unavailable, match="2 chains are waiting") as refused:
        await at.submit([4])
    assert refused.value.retry_after > 0
    engine.let(2)
    assert await asyncio.gather(first, waiting) == [[-1], [-2, -3]]


async def test_who_leaves_takes_back_what_waits_and_hinders_nobody(engine: Engine, batcher: Make) -> None:
    at = batcher()
    running = submit(at, 1, 2)
    await engine.begun.get()
    leaving, staying = submit(at, 5, 6), submit(at, 7)
    await settle()
    for task in (running, leaving):
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    engine.let(5)
    assert await staying == [-7]
    assert engine.batches == [[1, 2], [7]]


async def test_after_all_have_left_it_goes_on(engine: Engine, batcher: Make) -> None:
    at = batcher(max_wait=0.001)
    running = submit(at, 1)
    await engine.begun.get()
    leaving = submit(at, 5)
    await settle()
    leaving.cancel()
    engine.let(5)
    await asyncio.gather(running, leaving, return_exceptions=True)
    assert await submit(at, 9) == [-9]
    assert engine.batches == [[1], [9]]


async def test_closing_gives_up_what_waits(engine: Engine, batcher: Make) -> None:
    at = batcher()
    running = submit(at, 1)
    await engine.begun.get()
    waiting = submit(at, 2)
    await settle()
    engine.let(1)
    await at.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    running.cancel()
    assert engine.batches == [[1]]


async def test_no_items_have_no_results(batcher: Make) -> None:
    assert await batcher().submit([]) == []


@given(st.lists(st.lists(st.integers(1, 60), max_size=8), max_size=6), st.integers(1, 80))
def test_everybody_gets_the_own_results_and_batches_keep_their_bound(
    requests: list[list[int]], most: int
) -> None:
    batches: list[list[int]] = []

    def run(batch: Sequence[int]) -> list[int]:
        batches.append(list(batch))
        return [-item for item in batch]

    async def play() -> None:
        at: Batcher[int, int] = Batcher(run, int, max_batch=most, max_wait=0.0, max_waiting=1000)
        results = await asyncio.gather(*(at.submit(items) for items in requests))
        assert results == [[-item for item in items] for items in requests]
        await at.close()

    asyncio.run(play())
    assert sorted(chain.from_iterable(batches)) == sorted(chain.from_iterable(requests))
    for batch in batches:
        assert len(batch) == 1 or max(batch) * len(batch) <= most
