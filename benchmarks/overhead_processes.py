"""Processes of a benchmark: started, read for their address, measured, and surely stopped."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
import time
from asyncio.subprocess import Process as Child
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]

START_SECONDS = 120.0
STOP_SECONDS = 15.0

_SERVING = re.compile(rb"serving on (\S+)")


class BenchmarkError(RuntimeError):
    """The benchmark cannot go on; the text says why."""


@dataclass(frozen=True)
class Command:
    """`python -m module` with these arguments."""

    module: str
    arguments: Sequence[str] = ()


@dataclass(frozen=True)
class Process:
    """A process that serves."""

    pid: int
    address: str
    """host:port of its gRPC."""


@asynccontextmanager
async def processes(*commands: Command) -> AsyncIterator[list[Process]]:
    """The commands while the context lasts, started side by side; yields once all of them serve.

    Raises BenchmarkError where one does not.
    """
    with ExitStack() as files:
        errors = [files.enter_context(tempfile.TemporaryFile()) for _ in commands]
        children: list[Child] = []
        try:
            for command, file in zip(commands, errors, strict=True):
                children.append(await _spawn(command, file))
            yield [
                Process(child.pid, await _address(child, command, file))
                for child, command, file in zip(children, commands, errors, strict=True)
            ]
        finally:
            await _stop(children)


async def _spawn(command: Command, errors: IO[bytes]) -> Child:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", command.module, *command.arguments),
        cwd=ROOT,
        # Whatever the caller's environment says of isoflop, every run measures the same.
        env={key: value for key, value in os.environ.items() if not key.startswith("ISOFLOP_")},
        stdout=asyncio.subprocess.PIPE,
        stderr=errors,
        # Ctrl-C is for the benchmark alone, which then stops what it has started.
        start_new_session=True,
    )


async def _address(child: Child, command: Command, errors: IO[bytes]) -> str:
    assert child.stdout is not None
    with suppress(TimeoutError):
        async with asyncio.timeout(START_SECONDS):
            async for line in child.stdout:
                if match := _SERVING.search(line):
                    return match[1].decode()
    errors.seek(0)
    said = errors.read().decode(errors="replace").strip().splitlines()[-5:]
    raise BenchmarkError("\n".join([f"{command.module} did not start:", *said]))


async def _stop(children: Sequence[Child]) -> None:
    """Asked all together, then killed; none is left, even where the task that waits is cancelled."""
    for child in children:
        with suppress(ProcessLookupError):
            child.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await asyncio.gather(*(child.wait() for child in children))
    except TimeoutError:
        pass
    finally:
        for child in children:
            if child.returncode is None:
                child.kill()


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has taken, user and system, all threads; to the nanosecond.

    By what clock_getcpuclockid(3) gives on Linux: the CPU clock of another process.
    """
    return time.clock_gettime((~pid << 3) | 2)
