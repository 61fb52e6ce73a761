"""A tenant's rate and concurrency: never more than that, never less, and when to come back."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isoflop.errors import ResourceExhausted
from synthetic import relaxed

from router.limits import FORGET_SECONDS, LONGEST, SHORTEST, Limits
from router.tenants import Tenant


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limits(clock: Clock) -> Limits:
    return Limits(clock)


FREE = Tenant("search", "gold", 0)
SLOW = replace(FREE, per_second=0.5, burst=3.0)
NARROW = replace(FREE, concurrent=2)


def ask(limits: Limits, tenant: Tenant) -> float:
    """A query that ends at once: 0, or the seconds after which it might be asked again."""
    try:
        with limits.hold(tenant):
            return 0.0
    except ResourceExhausted as error:
        return error.retry_after


def test_without_limits_everything_goes(limits: Limits) -> None:
    with ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(limits.hold(FREE))


def test_a_burst_and_then_the_rate(limits: Limits, clock: Clock) -> None:
    assert [ask(limits, SLOW) for _ in range(5)] == [0, 0, 0, 2, 2]
    clock.now += 1.5
    assert ask(limits, SLOW) == 0.5
    clock.now += 0.5
    assert [ask(limits, SLOW) for _ in range(2)] == [0, 2]
    clock.now += 100.0
    assert [ask(limits, SLOW) for _ in range(4)] == [0, 0, 0, 2]


def test_so_many_at_a_time_and_no_token_for_who_is_refused(limits: Limits, clock: Clock) -> None:
    narrow = replace(NARROW, per_second=0.001, burst=3.0)
    with limits.hold(narrow):
        with limits.hold(narrow):
            for _ in range(10):
                with pytest.raises(ResourceExhausted, match="limit concurrent of tenant search: 2"):
                    limits.hold(narrow).__enter__()
        assert ask(limits, narrow) == 0
        with pytest.raises(ResourceExhausted, match=r"limit rate of tenant search: 0\.001 queries a second"):
            limits.hold(narrow).__enter__()


def test_who_runs_too_many_is_told_when_one_is_likely_to_end(limits: Limits, clock: Clock) -> None:
    for _ in range(60):
        with limits.hold(NARROW):
            clock.now += 8.0
    with limits.hold(NARROW), limits.hold(NARROW):
        assert ask(limits, NARROW) == pytest.approx(4.0, rel=0.01)
        assert ask(limits, replace(NARROW, concurrent=1)) == pytest.approx(8.0, rel=0.01)
    for seconds, told in ((0.0, SHORTEST), (1e6, LONGEST)):
        with limits.hold(NARROW):
            for _ in range(60):
                with limits.hold(NARROW):
                    clock.now += seconds
            with limits.hold(NARROW):
                assert ask(limits, NARROW) == told


def test_a_query_that_fails_ends_too(limits: Limits) -> None:
    for _ in range(10):
        with pytest.raises(KeyError), limits.hold(NARROW):
            raise KeyError
    assert ask(limits, NARROW) == 0


def test_tenants_do_not_share_limits(limits: Limits) -> None:
    other = replace(SLOW, name="other")
    assert [ask(limits, SLOW) for _ in range(4)] == [0, 0, 0, 2]
    assert [ask(limits, other) for _ in range(4)] == [0, 0, 0, 2]


def test_new_limits_hold_at_once(limits: Limits, clock: Clock) -> None:
    assert [ask(limits, SLOW) for _ in range(4)] == [0, 0, 0, 2]
    # What was earned so far was earned at the old rate; what is missing comes at the new one.
    clock.now += 1.0
    assert ask(limits, replace(SLOW, per_second=5.0)) == 0.1
    assert ask(limits, replace(SLOW, burst=4.0)) == 0
    assert ask(limits, replace(SLOW, burst=1.0)) == pytest.approx(7.0)
    assert ask(limits, FREE) == 0
    with limits.hold(FREE), limits.hold(FREE):
        assert ask(limits, NARROW) > 0
    assert ask(limits, NARROW) == 0


def test_who_runs_for_long_has_paid_meanwhile(limits: Limits, clock: Clock) -> None:
    with limits.hold(SLOW):
        clock.now += 2.0
    assert [ask(limits, SLOW) for _ in range(4)] == [0, 0, 0, 2]


def test_tenants_that_ask_no_more_are_forgotten_but_not_what_they_owe_or_run(
    limits: Limits, clock: Clock
) -> None:
    owing, at_it = replace(SLOW, name="owing", per_second=1e-5), replace(NARROW, name="at it", concurrent=1)
    with limits.hold(at_it):
        assert [ask(limits, owing) > 0 for _ in range(4)] == [False, False, False, True]
        for number in range(1000):
            ask(limits, replace(SLOW, name=f"tenant-{number}"))
        clock.now += FORGET_SECONDS
        ask(limits, FREE)
        assert set(limits._uses) == {"at it", "owing", "search"}
        assert ask(limits, at_it) > 0
        assert ask(limits, owing) > 0
    clock.now += 1e6
    ask(limits, FREE)
    ask(limits, replace(FREE, name="other"))
    assert set(limits._uses) == {"search", "other"}


@relaxed
@given(
    st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(0.0, 5.0)), max_size=60),
    st.floats(0.1, 10.0),
    st.floats(1.0, 5.0),
    st.integers(1, 4),
)
def test_never_more_than_the_limits_and_who_comes_when_told_is_not_refused_for_the_rate(
    calls: list[tuple[float, float]], per_second: float, burst: float, concurrent: int
) -> None:
    """Calls so long after each other, that run so long."""
    clock = Clock()
    limits = Limits(clock)
    tenant = replace(FREE, per_second=per_second, burst=burst, concurrent=concurrent)
    running: list[tuple[float, ExitStack]] = []
    began: list[float] = []

    def advance(to: float) -> None:
        running.sort(key=lambda one: one[0])
        while running and running[0][0] <= to:
            end, stack = running.pop(0)
            clock.now = end
            stack.close()
        clock.now = to

    for gap, seconds in calls:
        advance(clock.now + gap)
        stack = ExitStack()
        try:
            stack.enter_context(limits.hold(tenant))
        except ResourceExhausted as error:
            if len(running) == concurrent:
                continue
            advance(clock.now + error.retry_after)
            stack.enter_context(limits.hold(tenant))
        began.append(clock.now)
        running.append((clock.now + seconds, stack))
        assert len(running) <= concurrent
    for first, start in enumerate(began):
        for last, end in enumerate(began[first:], first):
            assert last - first + 1 <= burst + (end - start) * per_second + 1e-3
