"""What is compared: ways to get answers out of one backend."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from isoflop import AsyncClient, solve_request
from isoflop.v1.router_pb2 import SolveResponse
from prometheus_client import CollectorRegistry
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient

from benchmarks.fake_triton import ANSWER, QUERY
from benchmarks.overhead_files import MODEL, TEMPERATURE, Files, write_files
from benchmarks.overhead_processes import BenchmarkError, Command, Process, processes
from router.core import Router
from router.embedded import open_router
from router.settings import SuiteSettings
from services.generation.backends.triton import FLAGS

ANY_PORT = ("--address", "127.0.0.1:0")


class System(Protocol):
    """One of what is compared."""

    name: str
    processes: dict[str, int]
    """Process ids of all that belongs to it, by name; `caller` is the one that measures."""
    adaptive: bool
    """It can decide by itself how many samples a query gets."""

    async def solve(self, samples: int) -> int:
        """Answer the query once with so many samples (0: it decides); how many there were.

        Raises BenchmarkError where the answer is wrong, or a sample is missing.
        """
        ...


class Direct:
    """Calls of the backend by its own client, on one stream a query: nothing is read but the text."""

    name = "direct"
    adaptive = False

    def __init__(self, client: Any) -> None:
        self._client = client
        self.processes = {"caller": os.getpid()}

    async def solve(self, samples: int) -> int:
        """All samples on one stream, told apart by their id."""
        stream = self._client.stream_infer(_requests(samples))
        texts = dict.fromkeys(map(str, range(samples)), "")
        async for result, error in stream:
            if error is not None:
                raise BenchmarkError(f"direct: {error}")
            sample = result.get_response().id
            texts[sample] += result.as_numpy("text_output")[0].decode()
        if not all(text.rstrip().endswith(f"answer: {ANSWER}") for text in texts.values()):
            raise BenchmarkError("direct: a sample is missing or wrong")
        return samples


class Embedded:
    """The suite in the caller's own process, without a wire."""

    name = "embedded"
    adaptive = True

    def __init__(self, router: Router) -> None:
        self._router = router
        self.processes = {"caller": os.getpid()}

    async def solve(self, samples: int) -> int:
        """By the router's core."""
        response = await self._router.solve(solve_request(QUERY, samples=samples or None))
        return _completed(self.name, response, samples)


class Remote:
    """The suite in processes of its own, called by its client."""

    adaptive = True

    def __init__(self, name: str, client: AsyncClient, parts: dict[str, int]) -> None:
        self.name = name
        self._client = client
        self.processes = parts

    async def solve(self, samples: int) -> int:
        """By gRPC."""
        response = await self._client.solve(QUERY, samples=samples or None)
        return _completed(self.name, response, samples)


@dataclass(frozen=True)
class Systems:
    """All of them, on one backend."""

    backend: Process
    all: Sequence[System]


@asynccontextmanager
async def open_systems(backend_ms: float, chunks: int) -> AsyncIterator[Systems]:
    """Start the backend and every system; all is stopped at the end, however it comes."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="isoflop-overhead-")))
        fake = Command(
            "benchmarks.fake_triton", (*ANY_PORT, f"--latency-ms={backend_ms}", f"--chunks={chunks}")
        )
        (backend,) = await stack.enter_async_context(processes(fake))
        files = write_files(folder, backend.address)
        remotes = await stack.enter_async_context(_remotes(files))
        client = InferenceServerClient(backend.address)
        stack.push_async_callback(client.close)
        router = await stack.enter_async_context(open_router(_settings(files), CollectorRegistry()))
        yield Systems(backend, [Direct(client), Embedded(router), *remotes])


def _settings(files: Files) -> SuiteSettings:
    return SuiteSettings(catalog=files.catalog, profile=files.profile, estimator=files.estimator)


@asynccontextmanager
async def _remotes(files: Files) -> AsyncIterator[list[System]]:
    """The suite as one process and as five."""
    catalog, profile = f"--catalog={files.catalog}", f"--profile={files.profile}"
    estimator = f"--estimator={files.estimator}"
    commands = {
        "suite": Command("isoflop.cli", ("up", *ANY_PORT, catalog, profile, estimator)),
        "generation": Command("services.generation", (*ANY_PORT, catalog)),
        "verification": Command("services.verification", ANY_PORT),
        "difficulty": Command("services.difficulty", (*ANY_PORT, estimator)),
        "aggregation": Command("services.aggregation", ANY_PORT),
    }
    async with AsyncExitStack() as stack:
        started = await stack.enter_async_context(processes(*commands.values()))
        parts = dict(zip(commands, started, strict=True))
        suite = parts.pop("suite")
        places = [f"--{name}={part.address}" for name, part in parts.items()]
        (router,) = await stack.enter_async_context(
            processes(Command("router", (*ANY_PORT, profile, *places)))
        )
        parts["router"] = router
        embedded = await stack.enter_async_context(AsyncClient(suite.address))
        distributed = await stack.enter_async_context(AsyncClient(router.address))
        yield [
            Remote("embedded_grpc", embedded, {"suite": suite.pid}),
            Remote("distributed", distributed, {name: part.pid for name, part in parts.items()}),
        ]


def _completed(name: str, response: SolveResponse, samples: int) -> int:
    """How many samples an answer is made of."""
    completed = sum(round.completed for round in response.rounds)
    if response.answer != ANSWER:
        raise BenchmarkError(f"{name}: answered {response.answer!r}: {response.reason}")
    if samples and completed != samples:
        raise BenchmarkError(f"{name}: {completed} of {samples} samples were completed")
    return completed


async def _requests(samples: int) -> AsyncIterator[dict[str, Any]]:
    for seed in range(samples):
        parameters = {"temperature": TEMPERATURE, "top_p": 1.0, "max_tokens": 512, "seed": seed}
        values: dict[str, bytes | bool] = {
            "text_input": QUERY.encode(),
            "stream": True,
            "sampling_parameters": json.dumps(parameters).encode(),
            **dict.fromkeys(FLAGS, True),
        }
        inputs = [_tensor(name, value) for name, value in values.items()]
        yield {"model_name": MODEL, "request_id": str(seed), "inputs": inputs}


def _tensor(name: str, value: bytes | bool) -> Any:
    tensor = InferInput(name, [1], "BYTES" if isinstance(value, bytes) else "BOOL")
    tensor.set_data_from_numpy(np.array([value], dtype=object if isinstance(value, bytes) else bool))
    return tensor
