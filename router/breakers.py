"""Breakers: a part that is down is left alone, and tried now and then until it is back. Clocks are given.

A part is the backend of one model, one verifier, or a service. Its breaker is closed while the part answers.
A few failures in a row open it; then nobody asks, for a pause that doubles from one trial to the next, with
some chance in it, so that not all routers come at once. After the pause one call is let through: the breaker
is half open, and that call closes it or opens it again.

What counts as a failure is `Unavailable` alone: a wrong request, a caller that leaves and a deadline that
comes say nothing of the part. Nor does a call that began before the last failure: what ran when a part went
down fails all at once, which is one failure, and what it still ends well does not mean that it takes new
calls.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from isoflop.errors import Unavailable

FIRST_PAUSE = 0.5
"""Seconds that a breaker is open at first, at most; at least half of that."""

RETRIES_AT_ONCE = 32
"""Retries of a part that may come together: as many rounds may run on it when it goes down."""

State = Literal["closed", "open", "half_open"]
Tell = Callable[[str, State], None]
"""Takes the name of a part, and the state that its breaker has now."""


def tell_nobody(part: str, state: State) -> None:
    """Where nobody wants to know."""


@dataclass(frozen=True)
class Terms:
    """When breakers open, and how often what failed is tried again."""

    failures: int = 3
    """In a row that open a breaker; and of one query on one model, after which it asks that model no more."""
    longest_pause: float = 4.0
    """Seconds that a breaker is open, at most: a part that is back is asked again within them."""
    retry_share: float = 0.2
    """Retries for each round, beyond the first few."""


@dataclass(frozen=True)
class Call:
    """A call to a part that was let through."""

    _breaker: Breaker
    number: int

    def answered(self) -> None:
        """The part has begun to answer: a breaker that was open for it is closed, before the call's end."""
        self._breaker.answered(self)


class Breaker:
    """That of one part."""

    def __init__(
        self,
        part: str,
        terms: Terms = Terms(),
        tell: Tell = tell_nobody,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`clock`: seconds of any kind that never go back; `chance`: uniform in [0, 1)."""
        self.part = part
        self.retries = Retries(terms.retry_share)
        """The budget of retries of this part."""
        self._terms, self._tell, self._clock, self._chance = terms, tell, clock, chance
        self._state: State = "closed"
        self._failures = 0
        """In a row."""
        self._pause = 0.0
        """The last one, without chance."""
        self._until = 0.0
        """When the next call may begin; only where the breaker is not closed."""
        self._calls = 0
        self._since = 0
        """Calls from this number on began after the last failure."""
        self._trial = Call(self, -1)
        """The last one that was let through to try, and when that was."""
        self._tried = 0.0
        self._why = ""

    @property
    def state(self) -> State:
        """As it is told."""
        return self._state

    @property
    def seconds(self) -> float:
        """Until a call may begin; 0: now."""
        return 0.0 if self._state == "closed" else max(0.0, self._until - self._clock())

    @property
    def refusal(self) -> Unavailable | None:
        """Why no call may begin now, and when one may; None: one may."""
        return Unavailable(self._why, self.seconds) if self.seconds else None

    @contextmanager
    def call(self) -> Iterator[Call]:
        """Within it the part is called; raises Unavailable, at once, where it is not to be."""
        call = self._begin()
        try:
            yield call
        except Unavailable as error:
            self._fail(call, str(error))
            raise
        except BaseException:
            self._leave(call)
            raise
        else:
            self._succeed(call)

    def answered(self, call: Call) -> None:
        """See `Call.answered`."""
        if self._state != "closed":
            self._succeed(call)

    def _begin(self) -> Call:
        if refusal := self.refusal:
            raise refusal
        call = Call(self, self._calls)
        self._calls += 1
        if self._state != "closed":
            # One that says nothing holds the place no longer than a pause.
            self._trial, self._tried = call, self._clock()
            self._until = self._tried + self._pause
            self._become("half_open")
        return call

    def _succeed(self, call: Call) -> None:
        if call.number >= self._since:
            self._failures = 0
            self._become("closed")

    def _fail(self, call: Call, why: str) -> None:
        if call.number < self._since or (self._state != "closed" and call != self._trial):
            return
        self._since, self._why = self._calls, why
        begin = self._clock()
        if self._state == "closed":
            self._failures += 1
            if self._failures < self._terms.failures:
                return
            self._pause = min(FIRST_PAUSE, self._terms.longest_pause)
        else:
            # Counted from the trial's beginning: it may have hung for as long.
            begin = self._tried
            self._pause = min(2 * self._pause, self._terms.longest_pause)
        self._until = begin + self._pause * (1 - self._chance() / 2)
        self._become("open")

    def _leave(self, call: Call) -> None:
        """It says nothing of the part: if it was to try, the next one may."""
        if self._state == "half_open" and call == self._trial:
            self._until = self._clock()
            self._become("open")

    def _become(self, state: State) -> None:
        if state != self._state:
            self._state = state
            self._tell(self.part, state)


class Retries:
    """A budget of retries: a share of all rounds, and a few that may come at once."""

    def __init__(self, share: float, most: float = RETRIES_AT_ONCE) -> None:
        self._share, self._most = share, most
        self._left = most

    def round(self) -> None:
        """A round begins."""
        self._left = min(self._most, self._left + self._share)

    @property
    def any(self) -> bool:
        """Whether there is one left."""
        return self._left >= 1

    def take(self) -> None:
        """One of the rounds is a retry."""
        self._left -= 1


class Breakers:
    """Those of all parts that a router asks; each is made when it is asked for first."""

    def __init__(
        self,
        terms: Terms = Terms(),
        tell: Tell = tell_nobody,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.terms = terms
        self._tell, self._clock, self._chance = tell, clock, chance
        self._parts: dict[str, Breaker] = {}

    def model(self, name: str) -> Breaker:
        """Of the backend of a model."""
        return self.of(f"model {name}")

    def verifier(self, name: str) -> Breaker:
        """Of a verifier."""
        return self.of(f"verifier {name}")

    def of(self, part: str) -> Breaker:
        """Of a part by its name: a service."""
        if part not in self._parts:
            self._parts[part] = Breaker(part, self.terms, self._tell, self._clock, self._chance)
        return self._parts[part]
