"""The suite as it runs: in one process, in five, and in five with generation on a real Triton."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from isoflop import AsyncClient

from tests.cluster.processes import ROOT, Process
from tests.cluster.triton_server import SIZES, TritonServer, TritonServerError, triton_catalog

# Rounds large enough that stopping early has something to abort.
ROUTER_OPTIONS = ("--round-samples", "16", "--rejoin-seconds", "1", "--deadline-margin-seconds", "0.5")


@dataclass
class Suite:
    """A running suite."""

    kind: str
    address: str
    router: Process
    generation: Process
    """The process that counts tokens: the router's own in one process."""
    processes: dict[str, Process]
    triton: TritonServer | None = None


def start_services(stack: ExitStack, folder: Path, catalog: Path) -> dict[str, Process]:
    """The four services, each in a process; generation with that catalogue."""
    processes = {}
    for name in ("generation", "verification", "difficulty", "aggregation"):
        options = ["--catalog", str(catalog)] if name == "generation" else []
        processes[name] = Process([f"services.{name}", *options], folder)
        stack.callback(processes[name].stop)
    return processes


def distributed(stack: ExitStack, folder: Path, catalog: Path) -> Suite:
    """Five processes."""
    processes = start_services(stack, folder, catalog)
    where = [word for name, one in processes.items() for word in (f"--{name}", one.address)]
    router = Process(["router", *where, *ROUTER_OPTIONS], folder)
    stack.callback(router.stop)
    return Suite(
        "distributed", router.address, router, processes["generation"], {**processes, "router": router}
    )


@pytest.fixture(scope="session")
def embedded_suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """`isoflop up`."""
    with ExitStack() as stack:
        process = Process(["isoflop", "up", *ROUTER_OPTIONS], tmp_path_factory.mktemp("embedded"))
        stack.callback(process.stop)
        yield Suite("embedded", process.address, process, process, {"router": process})


@pytest.fixture(scope="session")
def distributed_suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """Five processes with the embedded models."""
    with ExitStack() as stack:
        yield distributed(stack, tmp_path_factory.mktemp("distributed"), ROOT / "models" / "catalog.yaml")


@pytest.fixture(scope="session")
def triton_suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """Five processes, and the models on a real Triton."""
    folder = tmp_path_factory.mktemp("triton-suite")
    files = [ROOT / "models" / f"abacus-{size}.gguf" for size in SIZES]
    with ExitStack() as stack:
        try:
            triton = stack.enter_context(TritonServer(files, folder))
        except TritonServerError as error:
            pytest.fail(str(error), pytrace=False)
        catalog = folder / "catalog.yaml"
        catalog.write_text(yaml.safe_dump(triton_catalog(triton.grpc_address)))
        suite = distributed(stack, folder, catalog)
        suite.kind, suite.triton = "triton", triton
        yield suite


@pytest.fixture(scope="session", params=["embedded", "distributed", "triton"])
def suite(request: pytest.FixtureRequest) -> Suite:
    """Each of the three in turn."""
    found: Suite = request.getfixturevalue(f"{request.param}_suite")
    return found


@pytest.fixture
async def client(suite: Suite) -> AsyncIterator[AsyncClient]:
    """A caller of the suite."""
    async with AsyncClient(suite.address) as client:
        yield client
