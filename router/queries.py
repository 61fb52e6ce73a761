"""Queries that run here: several callers can follow one, and a retry joins it.

A query runs in a task of its own and keeps its events. It is cancelled when its last follower leaves;
one with a request id is given some seconds first, so that a caller whose connection broke can rejoin.
What has ended is in the ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from isoflop.errors import InvalidArgument, Unavailable
from isoflop.v1.router_pb2 import SolveRequest
from isoflop.v1.router_pb2 import StreamSolveResponse as Event

from router.solve import Life


class Running:
    """One query and its events."""

    def __init__(self, request: SolveRequest, play: Callable[[Running], AsyncGenerator[Event, None]]) -> None:
        self.request = request
        self.life: Life | None = None
        """Where it is solved here, once it is admitted."""
        self.events: list[Event] = []
        self.followers = 0
        self.leaving: asyncio.TimerHandle | None = None
        """Cancels the query when its last follower has been gone for long enough."""
        self._more = asyncio.Event()
        self.task = asyncio.create_task(self._run(play), name="query")
        self.task.add_done_callback(lambda _: self._wake())

    async def _run(self, play: Callable[[Running], AsyncGenerator[Event, None]]) -> None:
        async with aclosing(play(self)) as events:
            async for event in events:
                self.events.append(event)
                self._wake()

    def _wake(self) -> None:
        self._more.set()
        self._more = asyncio.Event()

    async def follow(self) -> AsyncGenerator[Event, None]:
        """All events from the first on; raises what the query failed with."""
        at = 0
        while True:
            while at < len(self.events):
                yield self.events[at]
                at += 1
            if self.task.cancelled():
                raise Unavailable("the query was cancelled before its end: ask again")
            if self.task.done():
                self.task.result()
                return
            if self.answered:
                return
            await self._more.wait()

    def cancel(self) -> None:
        """End it early; a second time, or after the answer, would take its bill away, and does nothing."""
        if not self.task.done() and not self.task.cancelling() and not self.answered:
            self.task.cancel()

    @property
    def answered(self) -> bool:
        """Whether the answer is there; what still runs is waited for because of its bill."""
        return bool(self.events) and self.events[-1].HasField("final")

    @property
    def ending(self) -> bool:
        """Whether it is being cancelled, which may take as long as an abort."""
        return not self.task.done() and self.task.cancelling() > 0


class Queries:
    """All queries that run in this router."""

    def __init__(self, rejoin_seconds: float) -> None:
        self._rejoin_seconds = rejoin_seconds
        self._running: set[Running] = set()
        self._by_request: dict[tuple[str, str], Running] = {}

    def find(self, tenant: str, request: SolveRequest) -> Running | None:
        """The query that an earlier call of the tenant with the same request id began.

        Raises InvalidArgument where that call asked for something else.
        """
        running = self._by_request.get((tenant, request.request_id)) if request.request_id else None
        if running is not None and running.ending:
            return None  # Nobody was there any more: this is a new call.
        if running is not None and running.request != request:
            raise other_query()
        return running

    def begin(
        self,
        tenant: str,
        request: SolveRequest,
        play: Callable[[Running], AsyncGenerator[Event, None]],
    ) -> Running:
        """Run a query: `play` makes its events."""
        running = Running(request, play)
        self._running.add(running)
        key = tenant, request.request_id
        if request.request_id:
            self._by_request[key] = running

        def ended(task: asyncio.Task[None]) -> None:
            self._running.discard(running)
            if self._by_request.get(key) is running:
                del self._by_request[key]
            if not task.cancelled():
                task.exception()  # Its followers raise it; where there are none, nobody need hear of it.

        running.task.add_done_callback(ended)
        return running

    async def follow(self, running: Running) -> AsyncGenerator[Event, None]:
        """Its events; when the last follower leaves before the end, the query is cancelled."""
        running.followers += 1
        if running.leaving:
            running.leaving.cancel()
        try:
            async with aclosing(running.follow()) as events:
                async for event in events:
                    yield event
        finally:
            running.followers -= 1
            if not running.followers and not running.task.done():
                wait = self._rejoin_seconds if running.request.request_id else 0.0
                running.leaving = asyncio.get_running_loop().call_later(wait, running.cancel)

    def get(self, query_id: str) -> Running | None:
        """The query of that id, if it is solved here and now."""
        return next((one for one in self._running if one.life and one.life.query.query_id == query_id), None)

    async def close(self) -> None:
        """Cancel what runs, and wait for it."""
        ending = [running for running in self._running if not running.task.done()]
        for running in ending:
            running.cancel()
        await asyncio.gather(*(running.task for running in ending), return_exceptions=True)


def other_query() -> InvalidArgument:
    """A request id was given to two queries."""
    return InvalidArgument("request_id", "an earlier call with this id asked for something else")
