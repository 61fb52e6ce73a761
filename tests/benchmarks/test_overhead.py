"""The overhead benchmark runs end to end, and leaves nothing running."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from rich.progress import Progress
from tritonclient.grpc.aio import InferenceServerClient

from benchmarks.fake_triton import SOLUTION, responses
from benchmarks.overhead import Size, run
from benchmarks.overhead_measure import Scenario
from benchmarks.overhead_processes import BenchmarkError, Command, Process, processes
from benchmarks.overhead_report import machine, write_json, write_page
from benchmarks.overhead_systems import ANY_PORT, Direct

SYSTEMS = {"direct", "embedded", "embedded_grpc", "distributed"}
KEYS = {
    "system",
    "n",
    "clients",
    "backend_ms",
    "adaptive",
    "p50_ms",
    "p95_ms",
    "p99_ms",
    "requests_per_s",
    "cpu_ms_per_query",
}
TINY = Size(queries=2, clients=2, each=1, load_rounds=1, warm_up=1)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.cluster
async def test_every_system_answers_and_is_measured(tmp_path: Path) -> None:
    # A wrong answer, or a missing sample, ends a run with BenchmarkError.
    rows = await run(TINY, [0.0], 6, Progress(disable=True))

    path = tmp_path / "overhead.json"
    write_json(path, machine(), 1, rows)
    written: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    assert {
        (row["system"], row["n"], row["clients"], row["adaptive"])
        for row in written
        if row["system"] != "direct"
    } == {
        (system, n, clients, not n)
        for system in SYSTEMS - {"direct"}
        for n, clients in ((1, 1), (16, 1), (0, 1), (1, 2), (16, 2))
    }
    assert {row["system"] for row in written} == SYSTEMS
    for row in written:
        assert row.keys() >= KEYS
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["requests_per_s"] > 0
        assert row["cpu_ms_per_query"] > 0
        assert row["queries"] == 2
        assert row["mean_samples"] == row["n"] or row["adaptive"]

    page = tmp_path / "overhead.md"
    write_page(page, machine(), 1, len(SOLUTION), rows)
    assert page.read_text().count("| distributed | ") == 1 + 5
    assert str(Path.home()) not in page.read_text()


async def test_nothing_is_left_where_a_run_is_interrupted() -> None:
    started: asyncio.Queue[Process] = asyncio.Queue()

    async def forever() -> None:
        fake = Command("benchmarks.fake_triton", (*ANY_PORT, "--latency-ms=20", "--chunks=3"))
        async with processes(fake, fake) as both:
            async with InferenceServerClient(both[0].address) as client:
                # Samples that come late and in pieces are put together.
                assert await Direct(client).solve(16) == 16
            for process in both:
                started.put_nowait(process)
            await asyncio.Event().wait()

    running = asyncio.create_task(forever())
    pids = [(await started.get()).pid for _ in range(2)]
    assert all(map(alive, pids))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not any(map(alive, pids))


async def test_a_process_that_does_not_start_says_why() -> None:
    with pytest.raises(BenchmarkError, match=r"services\.verification did not start:\n(.|\n)*--no-such"):
        async with processes(Command("services.verification", ("--no-such",))):
            pass


@pytest.mark.parametrize(("chunks", "expected"), [(1, 1), (4, 4), (6, 6), (100, 6)])
def test_the_fake_cuts_its_solution_at_line_ends(chunks: int, expected: int) -> None:
    made = [response.infer_response for response in responses(SOLUTION, chunks)]
    assert len(made) == expected
    texts = [response.raw_output_contents[0][4:].decode() for response in made]
    assert "".join(texts) == SOLUTION
    assert all(text.endswith("\n") for text in texts)
    assert [response.raw_output_contents[1][4:] for response in made] == [b"None"] * (expected - 1) + [
        b"stop"
    ]


def test_blocks_share_the_queries_out() -> None:
    scenario = Scenario(samples=1, clients=1, queries=205, rounds=20, warm_up=0)
    assert sum(scenario.blocks()) == 205
    assert set(scenario.blocks()) == {10, 11}
