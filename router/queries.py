"""Queries that run or have ended: several callers can follow one, and a retry joins it.

A query runs in a task of its own and keeps its events. It is cancelled when its last follower leaves;
one with a request id is given some seconds first, so that a caller whose connection broke can rejoin.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing

from isoflop.errors import InvalidArgument, NotFound, Unavailable
from isoflop.v1.router_pb2 import GetQueryResponse, SolveRequest
from isoflop.v1.router_pb2 import StreamSolveResponse as Event

from router.solve import Life


class Running:
    """One query and its events."""

    def __init__(self, life: Life, request: SolveRequest) -> None:
        self.life = life
        self.request = request
        self.events: list[Event] = []
        self.followers = 0
        self.leaving: asyncio.TimerHandle | None = None
        """Cancels the query when its last follower has been gone for long enough."""
        self._more = asyncio.Event()
        self.task = asyncio.create_task(self._run(), name=f"query {life.query.query_id}")
        self.task.add_done_callback(lambda _: self._wake())

    async def _run(self) -> None:
        async with aclosing(self.life.solve()) as events:
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

    def shrink(self) -> None:
        """Keep the result and the rounds alone, once nobody follows any more."""
        if self.task.done() and not self.followers:
            del self.events[:-1]
            self.life.progress.samples.clear()


class Queries:
    """All queries of this router."""

    def __init__(self, keep: int, rejoin_seconds: float) -> None:
        self._keep = keep
        self._rejoin_seconds = rejoin_seconds
        self._queries: OrderedDict[str, Running] = OrderedDict()
        self._by_request: dict[str, str] = {}

    def find(self, request: SolveRequest) -> Running | None:
        """The query that an earlier call with the same request id began.

        Raises InvalidArgument where that call asked for something else.
        """
        query_id = self._by_request.get(request.request_id) if request.request_id else None
        running = self._queries.get(query_id or "")
        if running is not None and running.ending:
            return None  # Nobody was there any more: this is a new call.
        if running is not None and running.request != request:
            raise InvalidArgument("request_id", "an earlier call with this id asked for something else")
        return running

    def begin(self, life: Life, request: SolveRequest) -> Running:
        """Run a query."""
        running = Running(life, request)
        query_id = life.query.query_id
        self._queries[query_id] = running
        if request.request_id:
            self._by_request[request.request_id] = query_id
        running.task.add_done_callback(lambda task: self._ended(running, task))
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
            running.shrink()
            if not running.followers and not running.task.done():
                wait = self._rejoin_seconds if running.request.request_id else 0.0
                running.leaving = asyncio.get_running_loop().call_later(wait, running.cancel)

    def get(self, query_id: str) -> GetQueryResponse:
        """A query by its id; raises NotFound."""
        running = self._queries.get(query_id)
        if running is None:
            raise NotFound(f"there is no query {query_id[:64]!r}, or it is too long ago")
        final = next((event.final for event in running.events if event.HasField("final")), None)
        rounds = running.life.progress.rounds
        runs = final is None and not running.task.done()
        return GetQueryResponse(running=runs, rounds=rounds, result=final)

    async def close(self) -> None:
        """Cancel what runs, and wait for it."""
        ending = [running for running in self._queries.values() if not running.task.done()]
        for running in ending:
            running.cancel()
        await asyncio.gather(*(running.task for running in ending), return_exceptions=True)

    def _ended(self, running: Running, task: asyncio.Task[None]) -> None:
        """Forget what failed, so that a retry begins anew, and of what did not what ended long ago."""
        running.shrink()
        if task.cancelled() or task.exception():
            self._forget(running)
            return
        self._queries.move_to_end(running.life.query.query_id)
        ended = [one for one in self._queries.values() if one.task.done()]
        for oldest in ended[: max(0, len(ended) - self._keep)]:
            self._forget(oldest)

    def _forget(self, running: Running) -> None:
        query_id, request_id = running.life.query.query_id, running.request.request_id
        self._queries.pop(query_id, None)
        if self._by_request.get(request_id) == query_id:
            del self._by_request[request_id]
