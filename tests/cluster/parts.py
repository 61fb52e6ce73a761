"""A whole suite of real processes whose every part can be made to fail, and every link between them.

Two routers, two replicas of generation, the other services, and a Triton that has the largest of the models:

    clients ─▶ router, router-2 ─▶ generation, generation-2 ─▶ triton
                                ─▶ verification, difficulty, aggregation
                                ─▶ postgresql, where their ledger is, and each other

Each arrow goes through a proxy of the part that it points to.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol

import yaml

from tests.cluster.processes import ROOT, Process, free_ports, run
from tests.cluster.proxy import Proxy
from tests.cluster.triton_server import TritonServer, triton_catalog
from tests.postgres_server import PostgresServer

ON_TRITON: Final = "abacus-l"
"""The model that Triton has; llama.cpp has the others."""
NAMES: Final = {
    "generation": "services.generation",
    "generation-2": "services.generation",
    "verification": "services.verification",
    "difficulty": "services.difficulty",
    "aggregation": "services.aggregation",
    "router": "router",
    "router-2": "router",
}
"""The suite's own processes, and their modules."""
STAGES: Final = ("generation", "verification", "difficulty", "aggregation")
TENANTS: Final[dict[str, Any]] = {
    "tiers": [{"name": "gold"}, {"name": "batch"}],
    # More than is spent: to be paid from, and not to be short of.
    "all": {"budgets": [{"period": "day", "flops": 1e18}]},
    "tenants": [
        {"name": "urgent", "tier": "gold", "budgets": [{"period": "hour", "tokens": 10**12}]},
        {"name": "nightly", "tier": "batch"},
    ],
    "default": {"tier": "gold"},
}
SLOW_SECONDS: Final = 0.25
"""For each chunk in each direction: a network that nobody would want."""


class Fault(enum.Enum):
    """What happens to a part."""

    KILL = "kill -9"
    PAUSE = "SIGSTOP"
    SLOW = "slow"
    RESET = "reset"


class Runs(Protocol):
    """A process, or a group of them."""

    def kill(self) -> None:
        """SIGKILL."""
        ...

    def pause(self) -> None:
        """SIGSTOP."""
        ...

    def resume(self) -> None:
        """SIGCONT."""
        ...

    def restart(self) -> None:
        """After its end, on its ports; returns when it serves."""
        ...


class Postgres:
    """A PostgreSQL server as a part."""

    def __init__(self) -> None:
        """Start it, with a ledger in its own database; raises NoPostgres."""
        self._server = PostgresServer()
        self._server.start()
        self.address = f"127.0.0.1:{self._server.port}"
        """As host:port."""
        done = run("router.ledger", "migrate", "--ledger", self._server.url())
        assert done.returncode == 0, done.stderr

    @property
    def commits(self) -> float:
        """Transactions that were committed."""
        ((commits,),) = self._server.execute("select sum(xact_commit)::float8 from pg_stat_database")
        return float(str(commits))

    def kill(self) -> None:
        """As in Runs."""
        self._server.kill()

    def pause(self) -> None:
        """As in Runs."""
        self._server.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """As in Runs."""
        self._server.signal(signal.SIGCONT)

    def restart(self) -> None:
        """As in Runs."""
        self._server.start()

    def remove(self) -> None:
        """End it, and delete its data."""
        self._server.remove()


@dataclass(frozen=True)
class Part:
    """A part of the suite, and the only way to it."""

    runs: Runs
    link: Proxy

    def fail(self, fault: Fault) -> None:
        """It fails, until `back`."""
        match fault:
            case Fault.KILL:
                self.runs.kill()
            case Fault.PAUSE:
                self.runs.pause()
            case Fault.SLOW:
                self.link.slow(delay_seconds=SLOW_SECONDS)
            case Fault.RESET:
                self.link.reset()

    def back(self, fault: Fault) -> None:
        """It is there again when this returns."""
        match fault:
            case Fault.KILL:
                self.runs.restart()
            case Fault.PAUSE:
                self.runs.resume()
            case Fault.SLOW | Fault.RESET:
                self.link.heal()


class FaultSuite:
    """The suite; a context manager."""

    def __init__(self, folder: Path, router_options: Sequence[str] = ()) -> None:
        """Start it; `folder` receives its files and logs."""
        self._folder = folder
        self._stack = ExitStack()
        self.processes: dict[str, Process] = {}
        self.parts: dict[str, Part] = {}
        try:
            self._start(router_options)
        except BaseException:
            self._stack.close()
            raise

    @property
    def address(self) -> str:
        """Both routers, for a client that takes one after the other."""
        return f"ipv4:{self.parts['router'].link.address},{self.parts['router-2'].link.address}"

    @property
    def routers(self) -> dict[str, Process]:
        """Both."""
        return self._named("router")

    @property
    def counting(self) -> dict[str, Process]:
        """Services that count tokens."""
        return self._named("generation", "verification")

    def work(self, name: str) -> float:
        """What a part has done, as a figure that grows; 0 as long as it cannot be asked."""
        with suppress(OSError):
            if name in self.processes:
                return self.processes[name].metrics("isoflop_rpc_calls_total", code="OK")
            if name == "postgresql":
                return self._postgres.commits
            return self.triton.metrics(ON_TRITON.replace("-", "_")).get("llamacpp_tokens_total", 0.0)
        return 0.0

    def __enter__(self) -> FaultSuite:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self, router_options: Sequence[str]) -> None:
        self.triton = TritonServer([ROOT / "models" / f"{ON_TRITON}.gguf"], self._folder)
        self._stack.callback(self.triton.stop)
        self.triton.start()
        self._postgres = Postgres()
        self._stack.callback(self._postgres.remove)
        links = {
            "triton": self._link(self.triton.grpc_address),
            "postgresql": self._link(self._postgres.address),
            **{
                name: self._link(f"127.0.0.1:{port}")
                for name, port in zip(NAMES, free_ports(len(NAMES)), strict=True)
            },
        }
        generation = ["--catalog", str(self._catalog(links["triton"].address))]
        self.tenants = self._folder / "tenants.yaml"
        self.tenants.write_text(yaml.safe_dump(TENANTS))
        ledger = f"postgresql://postgres@{links['postgresql'].address}/postgres"
        router = ["--ledger", ledger, "--tenants", str(self.tenants), *router_options]
        for stage in STAGES:
            router += [
                f"--{stage}",
                ",".join(link.address for name, link in links.items() if name.startswith(stage)),
            ]
        options = {"generation": generation, "router": router}
        commands = {
            name: [
                module,
                *options.get(name.removesuffix("-2"), []),
                "--address",
                links[name].target,
                *(["--advertise", links[name].address] if module == "router" else []),
            ]
            for name, module in NAMES.items()
        }

        def start(name: str) -> Process:
            process = Process(commands[name], self._folder)
            self._stack.callback(process.stop)
            return process

        with ThreadPoolExecutor(len(NAMES)) as threads:
            self.processes.update(zip(commands, threads.map(start, commands), strict=True))
        runs: dict[str, Runs] = {"triton": self.triton, "postgresql": self._postgres, **self.processes}
        self.parts.update({name: Part(runs[name], link) for name, link in links.items()})

    def _link(self, target: str) -> Proxy:
        return self._stack.enter_context(Proxy(target))

    def _named(self, *prefixes: str) -> dict[str, Process]:
        return {name: process for name, process in self.processes.items() if name.startswith(prefixes)}

    def _catalog(self, triton: str) -> Path:
        """The embedded models, with one of them on Triton."""
        embedded = yaml.safe_load((ROOT / "models" / "catalog.yaml").read_text())
        there = {one["name"]: one for one in triton_catalog(triton)["models"]}
        models = [
            there[one["name"]]
            if one["name"] == ON_TRITON
            else {**one, "path": str(ROOT / "models" / one["path"])}
            for one in embedded["models"]
        ]
        path = self._folder / "catalog.yaml"
        path.write_text(yaml.safe_dump({**embedded, "models": models}))
        return path
