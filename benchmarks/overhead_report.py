"""The overhead benchmark's result: as JSON, as a page, and on the terminal."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean

import grpc
from rich.console import Console
from rich.table import Table

from benchmarks.overhead_measure import Row

COLUMNS = ("system", "p50 ms", "p95 ms", "p99 ms", "requests/s", "CPU ms", "÷ direct")

PAGE = """\
# What the suite adds to direct calls

Written by `make bench-overhead`; the numbers behind it are in `benchmarks/results/overhead.json`.

All systems call the same fake Triton, in another process. It answers each sample with the same short
solution ({chunks} of {tokens} tokens), {latency}. So what a query takes beyond a direct call is the
suite's own.

| system | what it is |
|---|---|
| direct | Triton's own client in the calling process, one stream a query; the texts are only read |
| embedded | the suite in the calling process, without a wire |
| embedded_grpc | the suite as one process (`isoflop up`), called by `isoflop.AsyncClient` |
| distributed | the suite as five processes, called by `isoflop.AsyncClient` |

A query through the suite includes admission, the difficulty estimate, planning, generation by the Triton
backend, reading and clustering the answers, the bill, and all metrics. Verification runs, but a vote
needs none.

With N given, N samples are bought and all are completed: a fixed plan, no early stop. Adaptive, the
planner decides on a synthetic profile, and ends rounds early. Systems take turns in rounds, in random
order, so that noise comes to all alike: trust ratios rather than milliseconds. Every answer was checked.
`÷ direct` compares the p50. CPU is that of a query in the system's own processes: not in the backend, nor
in the caller of a system that is remote.

Measured on {machine}.

{tables}
## CPU by process

CPU milliseconds of a query by process. `caller` is the process that measures, where the direct client
and the embedded suite run too; `backend` is the fake Triton.

{processes}
"""


@dataclass(frozen=True)
class Machine:
    """What it was measured on."""

    cpu: str
    cores: int
    system: str
    python: str
    grpc: str
    load: float
    """Processes that ran or waited, over the minute before: above 0, others were at work too."""

    def __str__(self) -> str:
        return (
            f"{self.cpu}, {self.cores} cores, {self.system}, Python {self.python}, gRPC {self.grpc}; "
            f"load {self.load:.1f} in the minute before, by other work"
        )


def machine() -> Machine:
    """This one, as it is now."""
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        system=f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        python=platform.python_version(),
        grpc=grpc.__version__,
        load=os.getloadavg()[0],
    )


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def write_json(path: Path, on: Machine, chunks: int, rows: Sequence[Row]) -> None:
    """The rows, and what they were measured on."""
    data = {"machine": asdict(on), "chunks": chunks, "rows": [_rounded(asdict(row)) for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def write_page(path: Path, on: Machine, chunks: int, tokens: int, rows: Sequence[Row]) -> None:
    """The page, in Markdown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = PAGE.format(
        chunks=f"in {chunks} responses" if chunks > 1 else "in one response",
        tokens=tokens,
        latency=" or ".join(
            f"{ms:g} ms after it came" if ms else "at once" for ms in sorted({r.backend_ms for r in rows})
        ),
        machine=on,
        tables="\n".join(f"## {title}\n\n{_markdown(COLUMNS, lines)}\n" for title, lines in tables(rows)),
        processes=_markdown(*_by_process(rows)),
    )
    path.write_text(text, encoding="utf-8")


def show(rows: Sequence[Row]) -> None:
    """On the terminal."""
    console = Console()
    for title, lines in tables(rows):
        table = Table(*COLUMNS, title=title, title_justify="left")
        table.columns[0].no_wrap = True
        for column in table.columns[1:]:
            column.justify = "right"
        for line in lines:
            table.add_row(*line)
        console.print(table)


def tables(rows: Sequence[Row]) -> Iterator[tuple[str, list[list[str]]]]:
    """For each scenario its title, and a line for each system."""
    for title, group in groupby(rows, title_of):
        members = list(group)
        if members[0].adaptive:
            title += f" ({fmean(row.mean_samples for row in members):.1f} samples a query)"
        direct = next((row.p50_ms for row in members if row.system == "direct"), None)
        yield title, [_line(row, direct) for row in members]


def title_of(row: Row) -> str:
    """The scenario of a row, in words."""
    samples = "Adaptive" if row.adaptive else f"N = {row.n}"
    clients = "one client" if row.clients == 1 else f"{row.clients} clients"
    backend = f", backend {row.backend_ms:g} ms" if row.backend_ms else ""
    return f"{samples}, {clients}{backend}"


def _line(row: Row, direct: float | None) -> list[str]:
    numbers = (row.p50_ms, row.p95_ms, row.p99_ms, row.requests_per_s, row.cpu_ms_per_query)
    return [row.system, *map(_number, numbers), f"{row.p50_ms / direct:.1f}" if direct else "–"]


def _by_process(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    names = list(dict.fromkeys(name for row in rows for name in row.cpu_ms_by_process))
    lines = [
        [f"{row.system}, {title_of(row)}", *(_number(row.cpu_ms_by_process.get(name)) for name in names)]
        for row in rows
    ]
    return ["", *names], lines


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _markdown(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    ruler = ["---", *["--:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, ruler, *lines))


def _rounded(row: dict[str, object]) -> dict[str, object]:
    """Floats to a tenth of a microsecond: more is noise."""
    return {
        key: round(value, 4)
        if isinstance(value, float)
        else _rounded(value)
        if isinstance(value, dict)
        else value
        for key, value in row.items()
    }
