"""The queue in front of solving: who is next, who is shed, and what is left of it under too much load."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isoflop.errors import DeadlineExceeded, to_status
from synthetic import relaxed
from virtual_time import hold_up, run

from router.admission import JITTER, LATEST, SOONEST, Admission, Shed

GOLD, SILVER, BATCH = 0, 1, 2
ADMITTED, SHED, LATE, LEFT = "admitted", "shed", "late", "left"


@dataclass(eq=False)
class Caller:
    """One query, and what becomes of it."""

    rank: int = GOLD
    at: float = 0.0
    """When it is asked."""
    seconds: float = 1.0
    """That it takes, once it has its turn."""
    deadline: float = math.inf
    leaves: float = math.inf
    """When its caller leaves, waiting or not."""
    outcome: str = ""
    ended: float = math.inf
    """When its waiting ended, one way or other."""
    error: Any = None
    """What it was refused with."""

    async def ask(self, admission: Admission, begins: Callable[[Caller], None] = lambda _: None) -> Caller:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self.at - loop.time())
        self.at = loop.time()
        leaves = self.leaves if math.isfinite(self.leaves) else None
        try:
            async with asyncio.timeout_at(leaves), admission.place(self.rank, self.deadline):
                self.end(ADMITTED)
                begins(self)
                await asyncio.sleep(self.seconds)
        except TimeoutError:
            if not self.outcome:
                self.end(LEFT)
        except Shed as error:
            self.end(SHED)
            self.error = error
        except DeadlineExceeded as error:
            self.end(LATE)
            self.error = error
        return self

    def end(self, outcome: str) -> None:
        assert not self.outcome
        self.outcome = outcome
        self.ended = asyncio.get_running_loop().time()

    @property
    def waited(self) -> float:
        return self.ended - self.at


async def together(admission: Admission, *callers: Caller) -> None:
    await asyncio.gather(*(caller.ask(admission) for caller in callers))
    assert admission.running == 0
    assert not admission.waiting


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_urgent_ones_are_first_and_of_one_tier_who_came_first() -> None:
    async def main() -> None:
        admission = Admission(1, 100, 100.0)
        callers = [Caller(rank, at=0.01 * number) for number, rank in enumerate((2, 2, 1, 0, 2, 0, 1))]
        await together(admission, *callers)
        order = sorted(callers, key=lambda caller: caller.ended)
        # The first of all had its place before the others came.
        assert [callers.index(caller) for caller in order] == [0, 3, 5, 2, 6, 1, 4]

    run(main())


def test_where_the_queue_is_full_the_least_urgent_that_came_last_is_shed() -> None:
    async def main() -> None:
        admission = Admission(1, 2, 100.0)
        first, batch, silver, late_batch, gold, gold_too, gold_late = callers = [
            Caller(rank, at=0.01 * number)
            for number, rank in enumerate((GOLD, BATCH, SILVER, BATCH, GOLD, GOLD, GOLD))
        ]
        await together(admission, *callers)
        outcomes = {ADMITTED: [first, gold, gold_too], SHED: [batch, silver, late_batch, gold_late]}
        for outcome, those in outcomes.items():
            assert {caller.outcome for caller in those} == {outcome}
        assert "more urgent" in str(batch.error)
        assert "2 queries wait, and no more may" in str(late_batch.error)

    run(main())


def test_without_a_queue_who_finds_no_place_is_shed() -> None:
    async def main() -> None:
        callers = [Caller(), Caller(), Caller(at=2.0)]
        await together(Admission(1, 0, 100.0), *callers)
        assert [caller.outcome for caller in callers] == [ADMITTED, SHED, ADMITTED]

    run(main())


def test_who_waits_too_long_is_shed_and_what_it_is_told_is_a_status_with_a_delay() -> None:
    async def main() -> None:
        callers = [Caller(seconds=60.0), Caller(at=1.0), Caller(GOLD, at=51.0)]
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            admission = Admission(1, 10, 10.0)
            for caller in callers:
                group.create_task(caller.ask(admission))
            await asyncio.sleep(11.5)
            assert callers[1].outcome == SHED
            assert loop.time() == 11.5
        assert callers[2].outcome == ADMITTED
        assert callers[2].waited == pytest.approx(9.0)
        error = callers[1].error
        assert error
        assert "waited 10 s" in str(error)
        status = to_status(error)
        assert status.code == 14
        assert len(status.details) == 1

    run(main())


def test_who_cannot_have_its_turn_before_its_deadline_is_refused_at_once() -> None:
    async def main() -> None:
        admission = Admission(2, 100, 100.0)
        # Of places that are held for 4 s each, one in 2 s is free; the third waiter's turn comes after 6.
        await together(admission, *[Caller(seconds=4.0) for _ in range(10)])
        begin = asyncio.get_running_loop().time()
        busy = [Caller(SILVER, at=begin, seconds=4.0) for _ in range(4)]
        late, in_time = (
            Caller(SILVER, at=begin + 0.01, deadline=begin + 0.01 + allowed, seconds=0.0)
            for allowed in (5.9, 8.1)
        )
        urgent = Caller(GOLD, at=begin + 0.02, deadline=begin + 4.1, seconds=0.0)
        seen: list[float] = []

        async def when_refused() -> None:
            await late.ask(admission)
            seen.append(asyncio.get_running_loop().time())

        await asyncio.gather(when_refused(), *(one.ask(admission) for one in (*busy, in_time, urgent)))
        assert (late.outcome, in_time.outcome, urgent.outcome) == (LATE, ADMITTED, ADMITTED)
        assert "deadline is in 5.9 s" in str(late.error)
        assert seen == [pytest.approx(begin + 0.01)]

    run(main())


def test_a_deadline_that_comes_while_it_waits_ends_that() -> None:
    async def main() -> None:
        admission = Admission(1, 100, 100.0)
        callers = [Caller(seconds=50.0), Caller(at=1.0, deadline=9.0), Caller(at=1.0, deadline=60.0)]
        await together(admission, *callers)
        assert [caller.outcome for caller in callers] == [ADMITTED, LATE, ADMITTED]
        assert callers[2].ended == 50.0

    run(main())


def test_a_caller_that_leaves_leaves_no_trace() -> None:
    async def main() -> None:
        admission = Admission(1, 1, 100.0)
        holder = asyncio.create_task(Caller(seconds=10.0).ask(admission))
        await settle()
        for _ in range(3):
            waiter = asyncio.create_task(Caller().ask(admission))
            await settle()
            assert admission.waiting == {GOLD: 1}
            waiter.cancel()
            # It has not even been woken, and already somebody else may wait.
            assert not admission.waiting
            with pytest.raises(asyncio.CancelledError):
                await waiter
        last = Caller(at=1.0)
        await asyncio.gather(holder, last.ask(admission))
        assert last.ended == 10.0
        assert (admission.running, admission.waiting) == (0, {})

    run(main())


@pytest.mark.parametrize("leaver", range(3))
def test_where_one_has_left_or_was_late_another_one_may_wait(leaver: int) -> None:
    async def main() -> None:
        for fate in ({"leaves": 1.0}, {"deadline": 1.0}):
            admission = Admission(1, 3, 100.0)
            await together(admission, Caller(seconds=0.01))
            start = asyncio.get_running_loop().time()
            waiting = [Caller(at=start) for _ in range(3)]
            for name, seconds in fate.items():
                setattr(waiting[leaver], name, start + seconds)
            callers = [
                Caller(at=start, seconds=5.0),
                *waiting,
                Caller(at=start + 2.0),
                Caller(at=start + 3.0),
            ]
            await together(admission, *callers)
            outcomes = Counter(caller.outcome for caller in callers)
            assert outcomes == {ADMITTED: 4, LEFT if "leaves" in fate else LATE: 1, SHED: 1}
            assert callers[-1].outcome == SHED

    run(main())


@pytest.mark.parametrize("closes", [False, True])
def test_who_has_left_and_was_not_woken_yet_is_no_waiter(closes: bool) -> None:
    async def main() -> None:
        admission = Admission(1, 1, 100.0)
        async with admission.place(GOLD):
            waiter = asyncio.create_task(Caller().ask(admission))
            await settle()
            waiter.cancel()
            if closes:
                admission.close()
        assert (admission.running, admission.waiting) == (0, {})
        with pytest.raises(asyncio.CancelledError):
            await waiter

    run(main())


def test_who_has_left_and_was_not_woken_yet_takes_no_room_from_a_more_urgent_one() -> None:
    async def main() -> None:
        admission = Admission(1, 1, 100.0)
        async with asyncio.TaskGroup() as group:
            group.create_task(Caller(seconds=5.0).ask(admission))
            waiter = asyncio.create_task(Caller(BATCH).ask(admission))
            await settle()
            waiter.cancel()
            async with admission.place(GOLD):
                assert asyncio.get_running_loop().time() == 5.0
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert (admission.running, admission.waiting) == (0, {})

    run(main())


@pytest.mark.parametrize(("deadline", "outcome"), [(math.inf, SHED), (4.5, LATE)])
def test_a_turn_that_comes_too_late_because_the_loop_was_held_up_is_the_next_ones(
    deadline: float, outcome: str
) -> None:
    async def main() -> None:
        admission = Admission(1, 10, 5.0)
        early, next_one = Caller(deadline=deadline), Caller(at=4.0)
        async with asyncio.TaskGroup() as group, admission.place(GOLD):
            for caller in (early, next_one):
                group.create_task(caller.ask(admission))
            await asyncio.sleep(4.1)
            hold_up(1.0)
        assert (early.outcome, next_one.outcome) == (outcome, ADMITTED)
        assert next_one.ended == 5.1

    run(main())


def test_a_turn_that_comes_to_who_has_just_left_is_the_next_ones() -> None:
    async def main() -> None:
        admission = Admission(1, 10, 100.0)
        async with admission.place(GOLD):
            leaving, next_one = (asyncio.create_task(Caller().ask(admission)) for _ in range(2))
            await settle()
        # It is the first one's turn, and it does not know yet.
        leaving.cancel()
        assert (await next_one).outcome == ADMITTED
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert (admission.running, admission.waiting) == (0, {})

    run(main())


def test_who_is_shed_and_leaves_at_once_takes_nothing_with_it() -> None:
    async def main() -> None:
        admission = Admission(1, 10, 100.0)
        async with admission.place(GOLD):
            waiter = asyncio.create_task(Caller().ask(admission))
            await settle()
            admission.close()
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
            assert (admission.running, admission.waiting) == (1, {})

    run(main())


def test_when_it_closes_who_waits_and_who_comes_is_shed_and_who_runs_is_not() -> None:
    async def main() -> None:
        admission = Admission(1, 10, 100.0)
        callers = [Caller(seconds=5.0), Caller(), Caller(BATCH), Caller(at=2.0), Caller(at=6.0)]
        asyncio.get_running_loop().call_at(1.0, admission.close)
        await together(admission, *callers)
        assert [caller.outcome for caller in callers] == [ADMITTED, SHED, SHED, SHED, SHED]
        assert "this router is ending" in str(callers[1].error)

    run(main())


@pytest.mark.parametrize(
    ("seconds", "waiting", "expected"), [(4.0, 5, 12.0), (0.001, 5, 0.1), (600.0, 50, 20)]
)
def test_when_to_come_back_goes_by_the_queue_and_how_fast_it_moves(
    seconds: float, waiting: int, expected: float
) -> None:
    async def told(chance: float) -> float:
        admission = Admission(2, waiting, 1e6, chance=lambda: chance)
        for _ in range(32):
            now = asyncio.get_running_loop().time()
            await together(admission, *(Caller(at=now, seconds=seconds) for _ in range(2)))
        now = asyncio.get_running_loop().time()
        full = [Caller(at=now, seconds=1.0) for _ in range(2 + waiting)]
        one_more = Caller(at=now + 0.0001)
        await together(admission, *full, one_more)
        assert isinstance(one_more.error, Shed)
        return one_more.error.retry_after

    assert run(told(0.0)) == pytest.approx(expected)
    assert run(told(0.999)) == pytest.approx(expected * (1 + JITTER), rel=0.01)
    assert SOONEST <= run(told(0.0)) <= run(told(0.999)) <= LATEST


moments = st.floats(0.0, 20.0) | st.integers(0, 20).map(float)
maybe = moments | st.just(math.inf)
some_callers = st.lists(
    st.builds(
        lambda rank, at, seconds, deadline, leaves: Caller(rank, at, seconds, at + deadline, at + leaves),
        st.integers(0, 3),
        moments,
        st.floats(0.0, 10.0) | st.integers(0, 10).map(float),
        maybe,
        maybe,
    ),
    max_size=40,
)


@settings(relaxed, max_examples=200)
@given(some_callers, st.integers(1, 4), st.integers(0, 6), st.floats(0.5, 20.0), maybe)
def test_whatever_happens(
    callers: list[Caller], max_running: int, max_waiting: int, max_wait: float, closes: float
) -> None:
    """None runs beyond the limit, none waits beside a free place or for too long, and nobody overtakes."""

    async def main() -> None:
        admission = Admission(max_running, max_waiting, max_wait)
        if math.isfinite(closes):
            asyncio.get_running_loop().call_at(closes, admission.close)

        def begins(caller: Caller) -> None:
            assert admission.running <= max_running
            assert caller.waited < max_wait or caller.waited == 0
            assert caller.ended < caller.deadline or caller.waited == 0

        async def watch() -> None:
            while True:
                waiting = sum(admission.waiting.values())
                assert waiting <= max_waiting
                assert not waiting or admission.running == max_running
                await asyncio.sleep(0.5)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(caller.ask(admission, begins) for caller in callers))
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching
        assert (admission.running, admission.waiting) == (0, {})

    run(main())
    for caller in callers:
        assert caller.outcome in (ADMITTED, SHED, LATE, LEFT)
        assert caller.outcome != SHED or SOONEST <= caller.error.retry_after <= LATEST
    for one, other in itertools.permutations(callers, 2):
        if one.outcome == ADMITTED and (other.rank, other.at) < (one.rank, one.at):
            # Events of the same moment may come in any order.
            assert not other.at < one.ended < other.ended, "it was before the one that had its turn"


PLACES, MAX_WAIT = 16, 5.0


@dataclass
class Load:
    """What came of so much load, over so many seconds."""

    callers: list[Caller]
    seconds: float

    def goodput(self) -> float:
        """Queries a second that were solved in that time, and before their deadline."""
        ends = ((one, one.ended + one.seconds) for one in self.callers if one.outcome == ADMITTED)
        return sum(end < min(one.deadline, self.seconds) for one, end in ends) / self.seconds

    def waits(self, *ranks: int) -> list[float]:
        """Of those who had their turn, the shortest first."""
        return sorted(
            caller.waited for caller in self.callers if caller.rank in ranks and caller.outcome == ADMITTED
        )

    def outcomes(self, rank: int) -> Counter[str]:
        return Counter(caller.outcome for caller in self.callers if caller.rank == rank)


def load(times: float, seconds: float = 200.0) -> Load:
    """So many times what 16 places can do, of which gold asks for a half of what they can: random arrivals,
    2 s a query in the mean, callers with 30 s who come back up to twice when they are told to."""
    rng = random.Random(times)
    capacity = PLACES / 2.0

    async def main() -> list[Caller]:
        admission = Admission(PLACES, 64, MAX_WAIT, chance=rng.random)
        done: list[Caller] = []

        async def ask(rank: int) -> None:
            loop = asyncio.get_running_loop()
            deadline, takes = loop.time() + 30.0, rng.expovariate(0.5)
            for _ in range(3):
                caller = Caller(rank, loop.time(), takes, deadline)
                done.append(await caller.ask(admission))
                if not isinstance(caller.error, Shed):
                    return
                await asyncio.sleep(caller.error.retry_after)

        async with asyncio.TaskGroup() as group:
            now, rate = 0.0, times * capacity
            while now < seconds:
                gap = rng.expovariate(rate)
                now += gap
                await asyncio.sleep(gap)
                rank = GOLD if rng.random() < 0.5 / times else rng.choice((SILVER, BATCH))
                group.create_task(ask(rank))
        return done

    return Load(run(main()), seconds)


def test_at_four_times_capacity_as_much_is_solved_as_at_capacity() -> None:
    at_capacity, beyond = load(1.0), load(4.0)
    assert at_capacity.goodput() > 0.85 * PLACES / 2.0
    assert beyond.goodput() >= 0.9 * at_capacity.goodput()
    for found in (at_capacity, beyond):
        assert found.waits(GOLD, SILVER, BATCH)[-1] <= MAX_WAIT
    # Who is urgent, and does not ask for more than there is, hardly notices.
    assert set(beyond.outcomes(GOLD)) == {ADMITTED}
    assert beyond.waits(GOLD)[int(0.99 * len(beyond.waits(GOLD)))] < MAX_WAIT / 2
    for rank in (SILVER, BATCH):
        outcomes = beyond.outcomes(rank)
        assert outcomes[SHED] + outcomes[LATE] > 0.7 * outcomes.total()
