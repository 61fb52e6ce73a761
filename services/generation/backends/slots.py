"""Which slot of an engine a sample runs in: one that holds the beginning of its prompt, where there is one.

A slot's cache holds the text that ran in it last; what a prompt has in common with it is not computed again.
A search's step continues texts that slots still hold, each in several ways. So each goes where the least of
its prompt is to be computed, and the continuations of one text follow each other in the slot that holds it:
side by side, each slot would compute the text for itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(eq=False, frozen=True)
class Wait:
    """A sample that waits for its slot."""

    prompt: str
    follows: bool
    """It rather waits than runs beside another sample of the same prompt."""
    slot: asyncio.Future[int]


class Slots:
    """An engine's slots, what each holds, and who waits for one: of rounds, the one that asked first."""

    def __init__(self, count: int) -> None:
        self._held = [""] * count
        """What is in each slot's cache, as far as is known; the prompt, while a sample runs there."""
        self._free = list(range(count))
        """The one that was given back first is the first."""
        self._waiting: dict[Hashable, list[Wait]] = {}
        self._due = False
        """Slots will be given out."""

    @property
    def free(self) -> int:
        """How many are free."""
        return len(self._free)

    def ask(self, round: Hashable, prompt: str, *, follows: bool) -> asyncio.Future[int]:
        """The slot, when there is one. Who does not want it any more cancels this, or gives the slot back."""
        slot: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(round, []).append(Wait(prompt, follows, slot))
        self._give_out_soon()
        return slot

    def give_back(self, slot: int, text: str) -> None:
        """`text`: what it holds now."""
        self._held[slot] = text
        self._free.append(slot)
        self._give_out_soon()

    def _give_out_soon(self) -> None:
        """When all samples of a round have asked: those that have the least to compute come first."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._give_out)

    def _give_out(self) -> None:
        self._due = False
        running = {text for slot, text in enumerate(self._held) if slot not in self._free}
        for round, waits in list(self._waiting.items()):
            if not self._free:
                break
            self._serve([wait for wait in waits if not wait.slot.done()], running)
            self._waiting[round] = [wait for wait in waits if not wait.slot.done()]
            if not self._waiting[round]:
                del self._waiting[round]

    def _serve(self, waits: list[Wait], running: set[str]) -> None:
        """Give free slots to samples of a round; `running`: the prompts of those that have one."""
        alike: dict[str, list[Wait]] = {}
        for wait in waits:
            alike.setdefault(wait.prompt, []).append(wait)
        # Of slots that are as good, the first: what was in it is the oldest.
        pairs = [(prompt, slot) for prompt in alike for slot in self._free]
        pairs.sort(key=lambda pair: len(pair[0]) - common(pair[0], self._held[pair[1]]))
        for prompt, slot in pairs:
            if slot not in self._free or not alike[prompt]:
                continue
            if prompt in running and alike[prompt][0].follows:
                continue
            self._free.remove(slot)
            self._held[slot] = prompt
            running.add(prompt)
            alike[prompt].pop(0).slot.set_result(slot)


def common(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    same, different = 0, min(len(one), len(other)) + 1
    while different - same > 1:
        middle = (same + different) // 2
        if one[same:middle] == other[same:middle]:
            same = middle
        else:
            different = middle
    return same
