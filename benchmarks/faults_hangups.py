"""What backends still do for callers who have hung up."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from unittest import mock

import xllamacpp
from isoflop import AsyncClient
from isoflop.v1.router_pb2 import Filters, SolveRequest
from prometheus_client import CollectorRegistry

from router.embedded import open_router
from router.settings import SuiteSettings
from services.generation.backends import llamacpp
from tests.cluster.faults import idle
from tests.cluster.parts import ON_TRITON, FaultSuite

PROMPT: Final = "(43+(26+2)+39-97)%6*(18-(3+1-92+77)-26)-(12+7*(31-25))"
"""Hard, so that samples are long."""
SAMPLES: Final = 8
RUNS_SECONDS: Final = 0.15
"""How long a query runs before its caller hangs up."""
STILL_SECONDS: Final = 0.2
"""Where nothing was decoded for so long, nothing is decoded any more."""
LOOKED_SECONDS: Final = 0.002


@dataclass(frozen=True)
class Hangup:
    """What one backend did after its caller had hung up."""

    steps: int
    """Decode steps, in each of which every running sample gets one token."""
    milliseconds: float
    """From the hang-up to the last of them."""


@dataclass(frozen=True)
class Hangups:
    """Of one backend."""

    backend: str
    way: str
    """From the caller to it."""
    each: Sequence[Hangup]
    unseen: float | None = None
    """Tokens of a sample, on the mean, that were made after generation had closed its stream, and are on no
    bill; None: generation sees all."""


Steps = Callable[[], Awaitable[int]]
"""Decode steps that a backend has made."""


async def on_triton(suite: FaultSuite, count: int) -> Hangups:
    """Callers of a real Triton, by the whole suite."""
    model = ON_TRITON.replace("-", "_")

    async def told(name: str) -> float:
        return (await asyncio.to_thread(suite.triton.metrics, model))[name]

    async def steps() -> int:
        return int(await told("llamacpp_decode_steps_total"))

    async def unbilled() -> float:
        return await told("llamacpp_tokens_total") - await asyncio.to_thread(_counted, suite)

    async with AsyncClient(suite.address) as client:

        async def ask(seed: int) -> object:
            return await client.solve(PROMPT, models=[ON_TRITON], samples=SAMPLES, seed=seed)

        await ask(0)
        before = await unbilled()
        each = [await _hang_up(ask, seed, steps) for seed in range(1, count + 1)]
        await idle(suite)
    unseen = (await unbilled() - before) / (count * SAMPLES)
    return Hangups("Triton", "client, router, generation, Triton: three connections", each, unseen)


def _counted(suite: FaultSuite) -> float:
    """Tokens of the model that generation has counted as generated."""
    return sum(
        process.metrics("isoflop_generation_tokens_total", model=ON_TRITON, kind=kind)
        for process in suite.counting.values()
        for kind in ("completion", "aborted")
    )


async def on_llamacpp(count: int) -> Hangups:
    """Callers of the suite in one process."""
    async with _engine() as (steps, ask):
        await ask(0)
        each = [await _hang_up(ask, seed, steps) for seed in range(1, count + 1)]
    return Hangups("llama.cpp", "in one process", each)


@asynccontextmanager
async def _engine() -> AsyncGenerator[tuple[Steps, Callable[[int], Awaitable[object]]], None]:
    """A router whose engines count their steps, and how one is asked."""
    made: list[Any] = []

    plain, plain_server = llamacpp._parameters, xllamacpp.Server

    def parameters(*arguments: Any) -> Any:
        asked = plain(*arguments)
        asked.endpoint_metrics = True
        return asked

    def server(asked: Any) -> Any:
        made.append(plain_server(asked))
        return made[-1]

    with (
        mock.patch.object(llamacpp, "_parameters", parameters),
        mock.patch.object(xllamacpp, "Server", server),
    ):
        async with open_router(SuiteSettings(), CollectorRegistry()) as router:

            async def steps() -> int:
                pages = [await asyncio.to_thread(one.handle_metrics) for one in made]
                found = [re.search(r"^llamacpp:n_decode_total (\d+)", page, re.M) for page in pages]
                return sum(int(one[1]) for one in found if one)

            async def ask(seed: int) -> object:
                request = SolveRequest(prompt=PROMPT, filters=Filters(models=[ON_TRITON], samples=SAMPLES))
                request.filters.seed = seed
                return await router.solve(request)

            yield steps, ask


async def _hang_up(ask: Callable[[int], Awaitable[object]], seed: int, steps: Steps) -> Hangup:
    before = await steps()
    call = asyncio.ensure_future(ask(seed))
    while await steps() < before + 10:  # noqa: ASYNC110 (another process counts them)
        await asyncio.sleep(LOOKED_SECONDS)
    await asyncio.sleep(RUNS_SECONDS)
    at = await steps()
    begin = last = time.perf_counter()
    call.cancel()
    done = at
    while time.perf_counter() < last + STILL_SECONDS:
        now = await steps()
        if now > done:
            done, last = now, time.perf_counter()
        await asyncio.sleep(LOOKED_SECONDS)
    await asyncio.gather(call, return_exceptions=True)
    return Hangup(done - at, 1e3 * (last - begin))
