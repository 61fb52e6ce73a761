"""A folder of profiles under a running suite: it follows changes, and says over the wire what is wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from isoflop import AsyncClient
from isoflop.v1.router_pb2 import ListModelsResponse

from tests.cluster.processes import ROOT, Process, run

pytestmark = pytest.mark.cluster

PART = "isoflop.v1.RouterService.profile"


def put(folder: Path, version: str) -> None:
    data = json.loads((ROOT / "models" / "profile.json").read_text())
    (folder / f"{version}.json").write_text(json.dumps({**data, "version": version}))


async def until(client: AsyncClient, done: Callable[[ListModelsResponse], bool]) -> ListModelsResponse:
    for _ in range(600):
        models = await client.models()
        if done(models):
            return models
        await asyncio.sleep(0.05)
    raise AssertionError(models)


async def test_a_folder_is_followed_while_the_suite_runs(tmp_path: Path) -> None:
    folder = tmp_path / "profiles"
    folder.mkdir()
    for version in ("one", "two"):
        put(folder, version)
    rollout = folder / "rollout.json"
    rollout.write_text(json.dumps({"schema": 1, "live": "one", "shadow": "two"}))
    process = Process(["isoflop", "up", "--profile", str(folder), "--profile-poll-seconds", "0.1"], tmp_path)
    try:
        async with AsyncClient(process.address) as client, grpc.aio.insecure_channel(process.address) as wire:
            health: Callable[..., Awaitable[health_pb2.HealthCheckResponse]]
            health = health_pb2_grpc.HealthStub(wire).Check  # type: ignore[no-untyped-call]

            async def well(name: str) -> bool:
                response = await health(health_pb2.HealthCheckRequest(service=name))
                return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

            assert (await client.solve("17+24*3")).profile == "one"
            rollout.write_text(
                json.dumps({"schema": 1, "live": "one", "canary": {"version": "two", "share": 1.0}})
            )
            await until(client, lambda models: len(models.profiles) == 2 and models.profiles[1].share == 1)
            assert (await client.solve("17+24*3")).profile == "two"

            assert await well(PART)
            rollout.write_text('{"schema": 1, "live": "three"}')
            models = await until(client, lambda models: bool(models.profile_faults))
            assert "three.json" in models.profile_faults[0]
            assert models.profile == "one"
            assert (await well(""), await well(PART)) == (True, False)
            assert (await client.solve("17+24*3")).profile == "two"
            shown = run("isoflop", "models", "--address", process.address).stdout
            assert "three.json" in shown

            put(folder, "three")
            await until(client, lambda models: models.profile == "three" and not models.profile_faults)
            assert await well(PART)
        assert process.metrics("isoflop_router_profile_errors_total") == 1
        assert process.metrics("isoflop_router_profile_info", role="live", version="three") == 1
        assert process.metrics("isoflop_router_shadow_decisions_total", version="two", outcome="same") == 1
        assert process.log().count("three.json") == 1
    finally:
        process.stop()


@pytest.mark.parametrize("module", ["router", "isoflop"])
def test_a_folder_without_a_good_live_one_is_one_line(module: str, tmp_path: Path) -> None:
    command = [module, *(["up"] if module == "isoflop" else []), "--address", "127.0.0.1:0"]
    for content in (None, '{"schema": 1, "live": "none"}', "{"):
        if content:
            (tmp_path / "rollout.json").write_text(content)
        done = run(*command, "--profile", str(tmp_path))
        assert done.returncode == 1
        (line,) = done.stderr.strip().splitlines()
        assert str(tmp_path) in line


def test_a_pinned_model_that_is_not_there_is_one_line() -> None:
    done = run("isoflop", "up", "--pin-model", "nobody", "--address", "127.0.0.1:0")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("isoflop up:")]
    assert "nobody" in line
    assert "abacus-s" in line
