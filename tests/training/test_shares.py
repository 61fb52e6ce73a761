"""Work in processes: what they make comes back, and what fails is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.shares import WorkFailed, alone, in_processes, keep
from training.store import Lane, read

LANE = Lane("abacus-s", "0123456789abcdef", 0.7)


async def two_rows(share: int, send: Callable[[Lane, dict[str, Any]], None]) -> None:
    """Work of a process."""
    for index in range(2):
        send(LANE, {"of": share, "index": index})


async def breaks(share: int, send: Callable[[Lane, dict[str, Any]], None]) -> None:
    """Work of a process that fails."""

    async def fail() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.to_thread(int, "x"))

    await fail()


def test_processes_send_what_they_make() -> None:
    made = list(in_processes(two_rows, [1, 2]))
    assert sorted((row["of"], row["index"]) for _, row, _ in made) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert all(lane == LANE and size > 10 for lane, _, size in made)
    assert not list(in_processes(two_rows, []))


def test_a_process_that_fails_is_told_of() -> None:
    with pytest.raises(WorkFailed, match="ValueError: invalid literal"):
        list(in_processes(breaks, [1]))


async def makes(share: int, send: Callable[[Lane, dict[str, Any]], None]) -> None:
    """Work of a process that makes things of some tokens each."""
    send(LANE, {"things": [{"tokens": share}, {"tokens": 1}]})


def test_what_is_made_is_kept_and_counted(tmp_path: Path) -> None:
    tokens, seconds = keep(makes, [3, 5], "things", 4, tmp_path, lambda lane: lane.path(tmp_path))
    assert (tokens, seconds > 0) == (10, True)
    rows = read(LANE.path(tmp_path))
    assert sorted(row["things"][0]["tokens"] for row in rows) == [3, 5]


def test_two_runs_do_not_write_one_store(tmp_path: Path) -> None:
    with (
        alone(tmp_path / "store"),
        pytest.raises(WorkFailed, match="another run is at work"),
        alone(tmp_path / "store"),
    ):
        pass
    with alone(tmp_path / "store"):
        pass
