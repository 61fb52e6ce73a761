"""The generation service in other processes, as its callers see it.

Where it has several replicas that are named one by one, all rounds of a query go to the same one, so that
what they continue is in its engine's cache: the replica whose hash with the query's id is greatest
(rendezvous hashing: Thaler and Ravishankar 1998). Where that one is down, or is shutting down, and nothing
was sampled yet, the round goes to the next.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import grpc
from isoflop.errors import DeadlineExceeded, NotFound, Unavailable, Unreachable
from isoflop.rpc import from_rpc_error
from isoflop.v1.generation_pb2 import (
    DescribeModelsRequest,
    DescribeModelsResponse,
    GenerateRequest,
    GenerateResponse,
    GetRoundUsageRequest,
    GetRoundUsageResponse,
)
from isoflop.v1.generation_pb2_grpc import GenerationServiceStub

from services.common.channels import Channels

REMEMBERED = 4096
"""Rounds of which it is known which replica had them."""

USAGE_SECONDS = 2.0
"""How long a replica may take to say what a round took."""


class RemoteGeneration:
    """Calls the service; raises the errors of isoflop.errors."""

    def __init__(self, targets: str, channels: Channels) -> None:
        """`targets`: host:port, or several with commas between them."""
        self._channels = {target: channels.to(target) for target in targets.split(",")}
        self._rounds: OrderedDict[str, str] = OrderedDict()

    async def generate(
        self, requests: AsyncIterator[GenerateRequest]
    ) -> AsyncGenerator[GenerateResponse, None]:
        """One round; closing the generator cancels the call."""
        first = await anext(requests, GenerateRequest())  # Without one the service says what is missing.
        targets = self._order(first.start.query_id)
        shared = _Shared(requests) if len(targets) > 1 else None
        begun = False
        try:
            for target in targets:
                last, held = target == targets[-1], None
                rest = resumed(first, shared.next() if shared else requests)
                try:
                    async with aclosing(self._call(target, rest, first.start.round_id)) as responses:
                        async for response in responses:
                            if not (last or begun) and _is_nothing(response):
                                held = response
                                continue
                            begun = True
                            yield response
                except Unavailable:
                    if last or begun:
                        raise
                else:
                    if held:
                        yield held
                    break
        finally:
            if shared:
                shared.close()

    async def describe(self, request: DescribeModelsRequest) -> DescribeModelsResponse:
        """The models: each replica has the same."""
        *others, last = self._order("")
        for target in others:
            try:
                return await self._describe(target, request)
            except Unavailable:
                continue
        return await self._describe(last, request)

    async def usage(self, request: GetRoundUsageRequest) -> GetRoundUsageResponse:
        """What a round took whose stream broke, by the replica that had it."""
        target = self._rounds.get(request.round_id)
        if target is None:
            raise NotFound(f"there was no round {request.round_id[:64]!r}, or it is too long ago")
        try:
            call = self._stub(target).GetRoundUsage(request, timeout=USAGE_SECONDS)
            response: GetRoundUsageResponse = await call
        except grpc.aio.AioRpcError as error:
            failure = from_rpc_error(error, _named(target))
            if isinstance(failure, DeadlineExceeded):
                raise Unreachable(_named(target)) from None
            raise failure from None
        return response

    async def _call(
        self, target: str, requests: AsyncIterator[GenerateRequest], round_id: str
    ) -> AsyncGenerator[GenerateResponse, None]:
        """One round of one replica."""
        self._rounds[round_id] = target
        if len(self._rounds) > REMEMBERED:
            self._rounds.popitem(last=False)
        call = self._stub(target).Generate(requests)
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, _named(target)) from None
        finally:
            call.cancel()

    async def _describe(self, target: str, request: DescribeModelsRequest) -> DescribeModelsResponse:
        try:
            response: DescribeModelsResponse = await self._stub(target).DescribeModels(request)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, _named(target)) from None
        return response

    def _order(self, query_id: str) -> Sequence[str]:
        """The replicas in the order in which a query asks them: those that are known to be down come last."""

        def place(target: str) -> tuple[bool, bytes]:
            state = self._channels[target].get_state(try_to_connect=True)
            down = state == grpc.ChannelConnectivity.TRANSIENT_FAILURE
            return not down, _hash(f"{target} {query_id}")

        return sorted(self._channels, key=place, reverse=True)

    def _stub(self, target: str) -> Any:
        return GenerationServiceStub(self._channels[target])


class _Shared:
    """A round's requests for several calls, one after the other: each hears all of them."""

    def __init__(self, requests: AsyncIterator[GenerateRequest]) -> None:
        self._came: list[GenerateRequest | None] = []
        """At last None, where no more come."""
        self._queue: asyncio.Queue[GenerateRequest | None] = asyncio.Queue()
        self._taking = asyncio.create_task(self._take(requests), name="requests of a round")

    def next(self) -> AsyncIterator[GenerateRequest]:
        """For the next call: what has come and comes. The one before hears no more."""
        self._queue.put_nowait(None)
        self._queue = asyncio.Queue()
        for request in self._came:
            self._queue.put_nowait(request)
        return _until_none(self._queue)

    def close(self) -> None:
        """The round is over."""
        self._taking.cancel()
        self._queue.put_nowait(None)

    async def _take(self, requests: AsyncIterator[GenerateRequest]) -> None:
        async for request in requests:
            self._put(request)
        self._put(None)

    def _put(self, request: GenerateRequest | None) -> None:
        self._came.append(request)
        self._queue.put_nowait(request)


async def _until_none(queue: asyncio.Queue[GenerateRequest | None]) -> AsyncIterator[GenerateRequest]:
    while (request := await queue.get()) is not None:
        yield request


def _is_nothing(response: GenerateResponse) -> bool:
    """Whether it is the usage of a round that took nothing."""
    usage = response.usage
    tokens = usage.prompt_tokens + usage.completion_tokens + usage.aborted_tokens
    return response.HasField("usage") and not tokens


def _named(target: str) -> str:
    return f"the generation service at {target}"


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


async def resumed(
    first: GenerateRequest, rest: AsyncIterator[GenerateRequest]
) -> AsyncIterator[GenerateRequest]:
    """A round's requests, of which the first has been taken already."""
    yield first
    async for request in rest:
        yield request
