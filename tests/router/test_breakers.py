"""Breakers and the budget of retries, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isoflop.errors import InvalidArgument, Unavailable, Unreachable
from synthetic import relaxed

from router.breakers import FIRST_PAUSE, Breaker, Breakers, Call, Retries, Terms


class World:
    """A part that is up or down, its breaker, and a clock."""

    def __init__(self, terms: Terms | None = None, chance: float = 0.0) -> None:
        self.now = 0.0
        self.up = True
        self.told: list[str] = []
        self.asked = 0
        """Calls that reached the part."""
        self.breaker = Breaker(
            "a part",
            terms or Terms(),
            lambda part, state: self.told.append(state),
            lambda: self.now,
            lambda: chance,
        )

    def call(self) -> bool:
        """A call; whether it succeeded."""
        try:
            with self.breaker.call():
                self.asked += 1
                if not self.up:
                    raise Unreachable("the part")
        except Unavailable:
            return False
        return True

    def fail(self, *meanwhile: Callable[[Call], None]) -> None:
        """A call that fails after this has happened."""
        with suppress(Unreachable), self.breaker.call() as call:
            self.asked += 1
            for happens in meanwhile:
                happens(call)
            raise Unreachable("the part")

    def open(self) -> World:
        self.up = False
        for _ in range(3):
            self.call()
        return self


def test_it_opens_after_a_few_failures_in_a_row_and_says_why_and_for_how_long() -> None:
    world = World()
    world.up = False
    for _ in range(2):
        world.call()
    world.up = True
    assert world.call()  # Not in a row.
    world.open()
    assert (world.breaker.state, world.asked) == ("open", 6)
    with pytest.raises(Unavailable, match="the part does not answer") as raised, world.breaker.call():
        raise AssertionError
    assert raised.value.retry_after == world.breaker.seconds == FIRST_PAUSE
    assert world.asked == 6


@pytest.mark.parametrize(
    "error", [InvalidArgument("prompt", "too long"), asyncio.CancelledError(), GeneratorExit(), KeyError()]
)
def test_what_says_nothing_of_the_part_neither_opens_nor_closes_it(error: BaseException) -> None:
    world = World()

    def fail() -> None:
        with pytest.raises(type(error)), world.breaker.call():
            raise error

    for _ in range(10):
        fail()
    assert world.breaker.state == "closed"
    world.open()
    world.now += FIRST_PAUSE
    fail()
    # Whoever comes next may try.
    assert (world.breaker.state, world.breaker.seconds) == ("open", 0.0)
    world.up = True
    assert world.call()
    assert world.breaker.state == "closed"


def test_calls_that_fail_together_are_one_failure() -> None:
    world = World()

    def together(more: int) -> None:
        """So many more calls begin before this one fails."""
        world.fail(lambda call: together(more - 1) if more else None)

    for state in ("closed", "closed", "open"):
        together(32)
        assert world.breaker.state == state


def test_what_ends_well_of_before_the_failures_does_not_close_it() -> None:
    """As a service that drains: it ends what runs, and takes nothing new."""
    world = World()
    with world.breaker.call():
        world.open()
        world.now += FIRST_PAUSE
    assert (world.breaker.state, world.breaker.seconds) == ("open", 0.0)


def test_one_trial_at_a_time_closes_it_or_doubles_the_pause() -> None:
    world = World().open()
    pauses, states, others = list[float](), list[str](), list[bool]()
    for _ in range(6):
        pauses.append(world.breaker.seconds)
        world.now += world.breaker.seconds
        world.fail(lambda call: states.append(world.breaker.state), lambda call: others.append(world.call()))
    assert pauses == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert (states, others) == (["half_open"] * 6, [False] * 6)
    world.now += world.breaker.seconds
    world.up = True
    assert world.call()
    assert world.told == ["open", *["half_open", "open"] * 6, "half_open", "closed"]
    world.open()
    assert world.breaker.seconds == FIRST_PAUSE  # From the beginning.


def test_a_trial_that_is_silent_holds_others_up_for_no_longer_than_a_pause() -> None:
    world = World().open()
    world.now += world.breaker.seconds
    with world.breaker.call() as silent:
        assert world.breaker.seconds == FIRST_PAUSE
        world.now += FIRST_PAUSE
        with world.breaker.call():
            assert not world.call()
        assert world.breaker.state == "closed"
        silent.answered()
    assert world.breaker.state == "closed"


def test_a_trial_that_begins_to_answer_closes_it_before_its_end() -> None:
    world = World().open()
    world.now += world.breaker.seconds
    with world.breaker.call() as trial:
        trial.answered()
        assert world.breaker.state == "closed"
        world.up = True
        assert world.call()


def test_to_begin_to_answer_is_no_success_where_it_is_closed() -> None:
    """Or a backend that always breaks off in the middle would never be left alone."""
    world = World()
    for _ in range(3):
        world.fail(lambda call: call.answered())
    assert world.breaker.state == "open"


@relaxed
@given(
    down=st.lists(st.tuples(st.floats(0, 30), st.floats(0, 30)), min_size=1, max_size=4),
    chance=st.floats(0, 0.999),
    every=st.floats(0.01, 0.3),
    hang=st.floats(0, 3),
    longest=st.floats(0.5, 4),
)
def test_a_part_that_is_back_is_used_again_within_the_longest_pause_and_one_that_is_down_is_left_alone(
    down: list[tuple[float, float]], chance: float, every: float, hang: float, longest: float
) -> None:
    """Whatever the times of up and down; each trial hangs for `hang` before it fails."""
    world = World(Terms(longest_pause=longest), chance)
    for up_seconds, down_seconds in down:
        back = world.now
        while world.now < back + up_seconds:
            if world.call():
                break
            assert world.now <= back + longest + every
            world.now += every
        world.now = max(world.now, back + up_seconds)
        # Down: so many calls come, and few reach it.
        begin, asked = world.now, world.asked
        world.up = False
        while world.now < begin + down_seconds:
            try:
                with world.breaker.call():
                    world.asked += 1
                    world.now += hang
                    raise Unreachable("the part")
            except Unavailable:
                world.now += every
        assert world.asked - asked <= 3 + (world.now - begin) / (min(FIRST_PAUSE, longest) / 2) + 1
        world.up = True
    back = world.now
    while not world.call():
        world.now += every
        assert world.now <= back + longest + every


@relaxed
@given(st.lists(st.booleans(), max_size=300), st.floats(0, 1), st.integers(1, 40))
def test_retries_are_at_most_a_share_of_all_rounds_and_a_few_more(
    wanted: list[bool], share: float, most: int
) -> None:
    retries, rounds, taken = Retries(share, most), 0, 0
    for retry in wanted:
        if retry and not retries.any:
            continue
        rounds += 1
        retries.round()
        if retry:
            retries.take()
            taken += 1
    assert taken <= most + share * rounds + 1e-6
    if not share:
        assert taken == min(sum(wanted), most)


def test_each_part_has_a_breaker_of_its_own() -> None:
    breakers = Breakers()
    assert breakers.model("m") is breakers.model("m")
    names = {breakers.model("m").part, breakers.verifier("m").part, breakers.of("difficulty").part}
    assert names == {"model m", "verifier m", "difficulty"}
