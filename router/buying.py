"""One round of a query, from its reservation to its bill."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from isoflop.errors import Unavailable
from isoflop.v1.common_pb2 import FINISH_REASON_ABORTED, TextDelta
from isoflop.v1.router_pb2 import Growth
from isoflop.v1.router_pb2 import StreamSolveResponse as Event

from router.bench import RoundBench, number_of
from router.cost import Meter
from router.decision import Action
from router.strategies import STRATEGIES
from router.strategies.scored import comes_to
from router.strategies.strategy import Batch, Candidate, together

if TYPE_CHECKING:
    from router.solve import Life


class Buying:
    """A round that is bought. Where its model's backend fails, what has come counts, and the rest is as if it
    was not bought: it may be asked for again."""

    def __init__(self, life: Life, action: Action, reason: str, *, explored: bool) -> None:
        """Nothing is reserved yet. `explored`: the planner would have done otherwise."""
        self.action = action
        self.round = life.progress.round(action, reason, explored=explored)
        self._life = life
        again, first = life.progress.numbers(action)
        self._awaited = {*again, *range(first, first + action.samples - len(again))}
        """Numbers of the samples that have not come."""
        self._lost: list[int] = []
        """Of those that broke off."""
        self._came: list[Candidate] = []
        self.bench = RoundBench(
            life.query,
            action,
            first,
            life.stages,
            Meter(life.planner.catalog.currency),
            life.account,
            streamed=life.streamed,
            abort_seconds=life.abort_seconds,
            hold=partial(life.account.hold, self.round),
            again=again,
            retry=partial(life.recourse.again, action.model.name),
        )
        self.begun = False
        self._charged = False

    async def begin(self) -> None:
        """Reserve its worst case. Raises Short where other queries have that by now, and Unavailable where
        the ledger is down."""
        await self._life.account.hold(self.round, self.bench.worst)
        self.begun = True
        self._life.progress.begin(self.round, self.action)
        self._life.recourse.begin(self.action.model.name)
        self._life.metrics.planned(self.action)

    async def batches(self, *, at_once: bool) -> AsyncGenerator[Batch, None]:
        """What comes of it; all together where it is to be tallied `at_once`."""
        async with aclosing(STRATEGIES[self.action.strategy].play(self.bench)) as batches:
            async for batch in together(batches) if at_once or self._one else batches:
                yield batch

    @property
    def _one(self) -> bool:
        """It counts as one sample, whatever it is made of."""
        return bool(self.action.deep and self.action.deep.once)

    def votes(self, batch: list[Candidate]) -> list[Candidate]:
        """What counts of it."""
        if self._one:
            batch = [Candidate(comes_to(batch).sample)]
            if self.bench.missing:
                # Unscored it is worth no more than another sample.
                own = self._life.planner.profile.arm(self.action.model, False, self.action.temperature)
                self.action = replace(self.action, arm=own)
        self._came += batch
        return batch

    def note(self, votes: list[Candidate]) -> bool:
        """These have been counted; whether more are to come."""
        for vote in votes:
            number = number_of(vote.sample)
            if vote.sample.finish_reason == FINISH_REASON_ABORTED:
                self._lost.append(number)
            else:
                self._awaited.discard(number)
                self.round.completed += 1
        return self.round.completed + len(self._lost) < self.action.samples

    def failed(self, error: Unavailable) -> None:
        """It broke off; raises what is not its model's failure."""
        if error is not self.bench.failure:
            raise error
        self.round.failure = str(error)
        # A search is what it has come to.
        self._lost = [] if self.action.search and self.round.completed else sorted(self._awaited)

    async def end(self) -> None:
        """Settle it to what it cost; where scores are late, that is `charge`d when they have come."""
        bench, model, progress = self.bench, self.action.model.name, self._life.progress
        bench.settle()
        if self.begun:
            if self._lost and not self.round.failure:
                self.round.failure = f"{len(self._lost)} of {self.action.samples} samples broke off"
            self._life.metrics.played(self.action)
            self._life.pace.observe(model, bench.slowness, time.monotonic())
            progress.end(self.round, self.action, bench.spent.flops, bench.next_sample, len(self._lost))
        if not bench.late:
            await self.charge()
        if self.round.failure:
            why = bench.failure or Unavailable(f"{model}: {self.round.failure}")
            self._life.recourse.failed(model, why)
            progress.lose(self.action, self._lost)

    async def charge(self) -> None:
        """Have written down what it cost, once."""
        if self._life.account.holds and not self._charged:
            self._charged = True
            await self._life.account.charge(self.round, self.bench.meter.lines, self._came)


def told(batch: TextDelta | Growth) -> Event:
    """What is no candidate, as an event."""
    return Event(text=batch) if isinstance(batch, TextDelta) else Event(growth=batch)
