"""A request id has one query, whichever routers its calls come to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from isoflop.errors import Unreachable
from isoflop.v1.router_pb2 import SolveRequest
from isoflop.v1.router_pb2 import StreamSolveResponse as Event

from router.account import in_time
from router.ledger import Entry, Ledger, QueryKept
from router.peers import Peers
from router.queries import other_query
from router.solve import Life

LOOK_AGAIN_SECONDS = 0.2
"""How often it is looked whether a router that does not answer is dead."""


class Once:
    """Begins queries in the ledger, those that have not begun elsewhere."""

    def __init__(self, ledger: Ledger, router: str) -> None:
        """`router`: id of this one."""
        self._ledger = ledger
        self._router = router
        self._peers = Peers()

    async def begin(self, life: Life, request: SolveRequest, deadline: float) -> AsyncGenerator[Event, None]:
        """Write down that a query begins, which is to be solved then: nothing is yielded.

        Where an earlier call with its request id began it, its events: of one that runs elsewhere as they
        come, of one that has ended its result. Without a result at the end it is to be solved all the same:
        the earlier one has failed, or its router has died, and the life goes on with what is left of it.
        `deadline`: of the caller, in the event loop's time. Raises InvalidArgument where that call asked for
        something else.
        """
        entry = life.account.entry
        while kept := await self._begin(entry, life.query.deadline):
            if kept.entry.asked != entry.asked:
                raise other_query()
            if kept.result:
                yield Event(final=kept.result)
                return
            owner = kept.entry.router
            if owner == self._router:
                pass  # It is being cancelled: soon it has ended.
            elif kept.address:
                left = deadline - asyncio.get_running_loop().time()
                try:
                    there = self._peers.follow(kept.address, request, entry.tenant, left)
                    async with aclosing(there) as events:
                        async for event in events:
                            yield event
                except Unreachable:
                    pass  # Until its lease is over, nobody knows whether it is dead.
                else:
                    return
            elif await self._ledger.take_over(kept.entry.query_id, owner, self._router):
                life.take_over(await self._ledger.get(kept.entry.query_id) or kept)
                return
            await asyncio.sleep(LOOK_AGAIN_SECONDS)

    async def _begin(self, entry: Entry, deadline: float) -> QueryKept | None:
        async with in_time(deadline):
            return await self._ledger.begin(entry)

    async def close(self) -> None:
        """Let go of the other routers."""
        await self._peers.close()
