"""Systems measured side by side: in rounds, each system a block a round, so that noise comes to all alike."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.overhead_processes import cpu_seconds
from benchmarks.overhead_systems import System, Systems


@dataclass(frozen=True)
class Scenario:
    """What every system is asked to do."""

    samples: int
    """Of each query; 0: each system decides (those that cannot are left out)."""
    clients: int
    """Queries at a time."""
    queries: int
    """Of each system, in all rounds together."""
    rounds: int
    warm_up: int
    """Queries of each system that come before and are not measured."""

    @property
    def name(self) -> str:
        """In words."""
        samples = f"N={self.samples}" if self.samples else "adaptive"
        return f"{samples}, {self.clients} client{'s' * (self.clients > 1)}"

    def blocks(self) -> list[int]:
        """Queries of one system in each round."""
        return [
            self.queries * (i + 1) // self.rounds - self.queries * i // self.rounds
            for i in range(self.rounds)
        ]


@dataclass
class Measured:
    """One system in one scenario."""

    latencies: list[float] = field(default_factory=list)
    """Seconds of each query."""
    samples: int = 0
    """Completed, of all queries together."""
    seconds: float = 0.0
    """Of all blocks together."""
    cpu: dict[str, float] = field(default_factory=dict)
    """CPU seconds by process: the system's, the backend and the caller."""


@dataclass(frozen=True)
class Row:
    """One line of the result."""

    system: str
    n: int
    """Samples of each query; 0 where the system decided."""
    clients: int
    backend_ms: float
    adaptive: bool
    p50_ms: float
    p95_ms: float
    p99_ms: float
    requests_per_s: float
    cpu_ms_per_query: float
    """Of the system's own processes: the backend is left out, and so is the caller of one that is remote."""
    queries: int
    mean_samples: float
    """Completed, of a query."""
    cpu_ms_by_process: dict[str, float]
    """Of a query; of the backend and the caller too."""


async def measure(
    systems: Systems, scenario: Scenario, backend_ms: float, advance: Callable[[int], None]
) -> list[Row]:
    """A row for each system that can do it; `advance` hears how many queries are done."""
    able = [system for system in systems.all if scenario.samples or system.adaptive]
    measured = {system.name: Measured() for system in able}
    for system in able:
        await _block(system, scenario, scenario.warm_up, Measured(), systems.backend.pid)
        advance(scenario.warm_up)
    order = random.Random(0)
    for queries in scenario.blocks():
        for system in order.sample(able, len(able)):
            await _block(system, scenario, queries, measured[system.name], systems.backend.pid)
            advance(queries)
    return [_row(system, scenario, backend_ms, measured[system.name]) for system in able]


async def _block(system: System, scenario: Scenario, queries: int, to: Measured, backend: int) -> None:
    """So many queries, by as many clients as the scenario has."""
    pids = {"backend": backend, "caller": os.getpid(), **system.processes}
    left = iter(range(queries))
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    begin = time.perf_counter()
    async with asyncio.TaskGroup() as clients:
        for _ in range(min(scenario.clients, queries)):
            clients.create_task(_client(system, scenario.samples, left, to))
    to.seconds += time.perf_counter() - begin
    for name, pid in pids.items():
        to.cpu[name] = to.cpu.get(name, 0.0) + cpu_seconds(pid) - before[name]


async def _client(system: System, samples: int, left: Iterator[int], to: Measured) -> None:
    """One query after another, while there are any left."""
    for _ in left:
        begin = time.perf_counter()
        completed = await system.solve(samples)
        to.samples += completed
        to.latencies.append(time.perf_counter() - begin)


def _row(system: System, scenario: Scenario, backend_ms: float, measured: Measured) -> Row:
    queries = len(measured.latencies)
    p50, p95, p99 = _percentiles(measured.latencies)
    cpu = {name: 1e3 * seconds / queries for name, seconds in measured.cpu.items()}
    return Row(
        system=system.name,
        n=scenario.samples,
        clients=scenario.clients,
        backend_ms=backend_ms,
        adaptive=not scenario.samples,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        requests_per_s=queries / measured.seconds,
        cpu_ms_per_query=sum(cpu[name] for name in system.processes),
        queries=queries,
        mean_samples=measured.samples / queries,
        cpu_ms_by_process=cpu,
    )


def _percentiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """The 50th, 95th and 99th, in milliseconds."""
    p50, p95, p99 = (1e3 * float(value) for value in np.percentile(seconds, [50, 95, 99]))
    return p50, p95, p99
