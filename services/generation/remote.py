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
from isoflop.errors import NotFound, Unavailable, Unreachable
from isoflop.rpc import from_rpc_error
from isoflop.v1.generation_pb2 import (
    DescribeModelsRequest,
    DescribeModelsResponse,
    GenerateRequest,
    GenerateResponse,
    GetRoundUsageRequest,
    GetRoundUsageResponse,
    RoundUsage,
)
from isoflop.v1.generation_pb2_grpc import GenerationServiceStub

from services.common.channels import Channels
from services.common.usage import add

REMEMBERED = 4096
"""Rounds of which it is known who has not told their usage."""

USAGE_SECONDS = 2.0
"""How long a replica may take to say what a round took."""


class RemoteGeneration:
    """Calls the service; raises the errors of isoflop.errors."""

    def __init__(self, targets: str, channels: Channels) -> None:
        """`targets`: host:port, or several with commas between them."""
        self._channels = {target: channels.to(target) for target in targets.split(",")}
        self._untold: OrderedDict[str, list[str]] = OrderedDict()
        """By the names of rounds: replicas that have not told what theirs took."""

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

    def untold(self, round_id: str) -> bool:
        """Whether a replica had the round, or may have had it, and has not told what it took."""
        return round_id in self._untold

    async def usage(self, request: GetRoundUsageRequest) -> GetRoundUsageResponse:
        """What a round took of which replicas have not told; raises NotFound where none knows it."""
        total = RoundUsage()
        known = False
        for target in self._untold.get(request.round_id, ()):
            try:
                call = self._stub(target).GetRoundUsage(request, timeout=USAGE_SECONDS)
                usage = (await call).usage
            except grpc.aio.AioRpcError as error:
                failure = from_rpc_error(error, _named(target))
                if isinstance(failure, NotFound):
                    continue
                raise Unreachable(_named(target)) from None
            known = True
            add(total, usage)
        if not known:
            raise NotFound(f"there was no round {request.round_id[:64]!r}, or it is too long ago")
        return GetRoundUsageResponse(usage=total)

    async def _call(
        self, target: str, requests: AsyncIterator[GenerateRequest], round_id: str
    ) -> AsyncGenerator[GenerateResponse, None]:
        """One round of one replica."""
        call, told = self._stub(target).Generate(requests), False
        try:
            async for response in call:
                told = told or response.HasField("usage")
                yield response
        except grpc.aio.AioRpcError as error:
            failure = from_rpc_error(error, _named(target))
            # What the service itself says comes after the usage.
            told = told or not isinstance(failure, Unreachable)
            raise failure from None
        finally:
            call.cancel()
            if not told:
                self._untold.setdefault(round_id, []).append(target)
                if len(self._untold) > REMEMBERED:
                    self._untold.popitem(last=False)

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
