"""A whole suite of real processes whose every part can be made to fail, and every link between them.

Two routers, two replicas of generation, the other services, and a Triton that has the largest of the models:

    clients ─▶ router, router-2 ─▶ generation, generation-2 ─▶ triton
                                ─▶ verification, difficulty, aggregation

Each arrow goes through a proxy of the part that it points to.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol

import yaml

from tests.cluster.processes import ROOT, Process
from tests.cluster.proxy import Proxy
from tests.cluster.triton_server import TritonServer, triton_catalog

ON_TRITON: Final = "abacus-l"
"""The model that Triton has; llama.cpp has the others."""
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
        """What a part has done that is not one of `processes`; 0 as long as it cannot be asked."""
        assert name == "triton"
        with suppress(OSError):
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
        self._add("triton", self.triton, self.triton.grpc_address)
        catalog = self._catalog(self.parts["triton"].link.address)
        self._processes(
            {
                "generation": ["services.generation", "--catalog", str(catalog)],
                "generation-2": ["services.generation", "--catalog", str(catalog)],
                "verification": ["services.verification"],
                "difficulty": ["services.difficulty"],
                "aggregation": ["services.aggregation"],
            }
        )
        where = {name: self.parts[name].link.address for name in self.processes}
        router = [
            "router",
            *("--generation", f"{where['generation']},{where['generation-2']}"),
            *(
                word
                for name in ("verification", "difficulty", "aggregation")
                for word in (f"--{name}", where[name])
            ),
            *router_options,
        ]
        self._processes({"router": router, "router-2": router})

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

    def _processes(self, commands: dict[str, list[str]]) -> None:
        """Start them side by side."""

        def start(name: str) -> tuple[str, Process]:
            process = Process(commands[name], self._folder)
            self._stack.callback(process.stop)
            return name, process

        with ThreadPoolExecutor(len(commands)) as threads:
            for name, process in threads.map(start, commands):
                self.processes[name] = process
                self._add(name, process, process.address)

    def _add(self, name: str, runs: Runs, address: str) -> None:
        self.parts[name] = Part(runs, self._stack.enter_context(Proxy(address)))
