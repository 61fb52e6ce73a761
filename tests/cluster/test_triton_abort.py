"""An aborted query over the wire: Triton's counters show that generation stopped, and the bill says so."""

from __future__ import annotations

import asyncio

import pytest
from isoflop import AsyncClient

from services.generation.backends.triton import UNSEEN_TOKENS
from tests.cluster.conftest import Suite
from tests.cluster.test_suite import HARD, billed, counted, until
from tests.cluster.triton_server import TritonServer

pytestmark = pytest.mark.cluster

SAMPLES = 8


async def still(triton: TritonServer) -> dict[str, float]:
    """The counters, once four readings a fifth of a second apart agree: a busy machine may hold it up."""
    last, same = triton.metrics("abacus_l"), 0
    for _ in range(100):
        await asyncio.sleep(0.2)
        now = triton.metrics("abacus_l")
        same = same + 1 if now == last else 0
        if same == 3:
            return now
        last = now
    raise AssertionError("Triton goes on")


async def test_generation_stops_and_the_aborted_tokens_are_billed(triton_suite: Suite) -> None:
    triton = triton_suite.triton
    assert triton is not None
    before, counted_before, billed_before = (
        triton.metrics("abacus_l"),
        counted(triton_suite),
        billed(triton_suite),
    )
    async with AsyncClient(triton_suite.address) as client:
        call = asyncio.ensure_future(client.solve(HARD, models=["abacus-l"], samples=SAMPLES, seed=1))
        running = "isoflop_generation_samples_running"
        await until(lambda: triton_suite.generation.metrics(running) > 0)
        await asyncio.sleep(0.15)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await until(lambda: triton_suite.generation.metrics(running) == 0)
        await until(lambda: triton_suite.router.metrics("isoflop_router_queries_running") == 0)

    # Triton stops within the decode step that it is at; then nothing moves any more.
    settled = await still(triton)
    await asyncio.sleep(0.5)
    after = triton.metrics("abacus_l")
    assert after["llamacpp_decode_steps_total"] == settled["llamacpp_decode_steps_total"]

    moved = {name: after[name] - before.get(name, 0.0) for name in after}
    aborted = counted(triton_suite)["aborted"] - counted_before["aborted"]
    assert moved["llamacpp_cancelled_requests_total"] > 0
    assert aborted > 0
    # What the backend did beyond what was billed is a few decode steps of each request.
    done = counted(triton_suite)["completion"] - counted_before["completion"] + aborted
    assert (
        0
        <= moved["llamacpp_tokens_total"] - done
        <= UNSEEN_TOKENS * moved["llamacpp_cancelled_requests_total"]
    )
    assert billed(triton_suite)["aborted"] - billed_before["aborted"] == aborted
