"""Samples run where the least of their prompts is to be computed."""

from __future__ import annotations

import asyncio

import pytest

from services.generation.backends.slots import Slots, common


async def given(*asked: asyncio.Future[int]) -> list[int | None]:
    """The slots that have been given out by now."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return [slot.result() if slot.done() and not slot.cancelled() else None for slot in asked]


async def holding(*texts: str) -> Slots:
    """Slots that are free, and hold these texts; the first has been free for the longest time."""
    slots = Slots(len(texts))
    for slot, text in enumerate(texts):
        assert await given(slots.ask("before", text, follows=False)) == [slot]
    for slot, text in enumerate(texts):
        slots.give_back(slot, text)
    return slots


async def test_a_sample_gets_the_slot_that_holds_most_of_its_prompt() -> None:
    slots = await holding("1+1\n2", "1+1\n3\n4", "7")
    asked = [slots.ask("round", prompt, follows=True) for prompt in ("1+1\n3\n", "7\n", "1+1\n2\n")]
    assert await given(*asked) == [1, 2, 0]


async def test_who_asks_first_does_not_take_what_another_needs_more() -> None:
    slots = await holding("question, step", "else")
    asked = [slots.ask("round", prompt, follows=False) for prompt in ("question, no", "question, step")]
    assert await given(*asked) == [1, 0]


async def test_of_slots_that_are_as_good_the_one_comes_that_was_free_for_the_longest_time() -> None:
    slots = await holding("a", "b", "c")
    (first,) = await given(slots.ask("round", "new", follows=False))
    assert first == 0
    slots.give_back(0, "new")
    assert await given(slots.ask("round", "newer", follows=False)) == [0]
    assert await given(slots.ask("round", "other", follows=False)) == [1]


async def test_continuations_of_one_text_follow_each_other_and_samples_run_side_by_side() -> None:
    slots = await holding("", "", "")
    steps = [slots.ask("round", "chain", follows=True) for _ in range(2)]
    samples = [slots.ask("later", "question", follows=False) for _ in range(2)]
    assert await given(*steps, *samples) == [0, None, 1, 2]
    slots.give_back(2, "question, answer")
    assert await given(steps[1]) == [None], "a free slot is no reason to compute the chain twice"
    slots.give_back(0, "chain\nstep")
    assert await given(steps[1]) == [0]


async def test_the_round_that_asked_first_is_served_first() -> None:
    slots = await holding("theirs")
    mine = [slots.ask("mine", "mine", follows=False) for _ in range(2)]
    theirs = slots.ask("theirs", "theirs", follows=False)
    assert await given(*mine, theirs) == [0, None, None]
    slots.give_back(0, "theirs")
    assert await given(*mine, theirs) == [0, 0, None]
    slots.give_back(0, "mine")
    assert await given(theirs) == [0]


async def test_who_does_not_wait_any_more_gets_nothing() -> None:
    slots = await holding("")
    taken, gone, next = [slots.ask("round", "prompt", follows=False) for _ in range(3)]
    assert await given(taken) == [0]
    gone.cancel()
    slots.give_back(0, "prompt")
    assert await given(next) == [0]
    slots.give_back(0, "prompt")
    assert slots.free == 1


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("", "", 0), ("", "a", 0), ("a", "b", 0), ("ab", "ab", 2), ("abc", "abd", 2), ("abc", "ab", 2)],
)
def test_what_two_texts_have_in_common(one: str, other: str, same: int) -> None:
    assert common(one, other) == common(other, one) == same
