"""Other routers: a retry that comes to this one follows its query where it runs."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator

import grpc
from isoflop.request import TENANT
from isoflop.rpc import from_rpc_error
from isoflop.v1.router_pb2 import SolveRequest, StreamSolveRequest
from isoflop.v1.router_pb2 import StreamSolveResponse as Event
from isoflop.v1.router_pb2_grpc import RouterServiceStub

from services.common.channels import Channels


class Peers:
    """Routers by address, over the wire."""

    def __init__(self) -> None:
        self._channels = Channels()

    async def follow(
        self, address: str, request: SolveRequest, tenant: str, seconds: float
    ) -> AsyncGenerator[Event, None]:
        """The events of a query that runs there, from the first on; closing the generator leaves it.

        `seconds`: the time that the caller gives. Raises the errors of isoflop.errors.
        """
        stub = RouterServiceStub(self._channels.to(address))
        call = stub.StreamSolve(
            StreamSolveRequest(query=request),
            timeout=None if math.isinf(seconds) else seconds,
            metadata=((TENANT, tenant),),
        )
        try:
            async for event in call:
                yield event
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, f"the router at {address}") from None
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close every channel."""
        await self._channels.close()
