"""Long work shared by processes, one for each core: what they make is kept as it comes."""

from __future__ import annotations

import asyncio
import fcntl
import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from training.store import Lane, Row, Writer

Share = TypeVar("Share")
Job = TypeVar("Job")
Send = Callable[[Lane, Row], None]
Work = Callable[[Share, Send], Coroutine[Any, Any, None]]
"""What a process does with its share: it sends each row as it is made."""


class WorkFailed(Exception):
    """A process has failed; `str(error)` says of what."""


def dealt(jobs: Sequence[Job], workers: int) -> list[Sequence[Job]]:
    """The jobs of each process, in turn, so that all have alike; none for a process that would have none."""
    return [part for worker in range(workers) if (part := jobs[worker::workers])]


async def work_off(
    jobs: Iterable[Job],
    work: Callable[[Job], Any],
    send: Send,
    at_a_time: int,
) -> None:
    """Do all jobs, some at a time, in their order."""
    waiting = iter(jobs)

    async def some() -> None:
        for job in waiting:
            send(job.lane, await work(job))  # type: ignore[attr-defined]

    async with asyncio.TaskGroup() as group:
        # One more than the engine has room for, so that its slots are never idle.
        for _ in range(at_a_time + 1):
            group.create_task(some())


def in_processes(work: Work[Share], shares: Sequence[Share]) -> Generator[tuple[Lane, Row, int], None, None]:
    """What the processes make, as it comes, with its size in bytes: one process for each share.

    Closing it ends them. Raises WorkFailed where one of them fails.
    """
    spawn = multiprocessing.get_context("spawn")
    processes, pipes = [], []
    try:
        for share in shares:
            pipe, other = spawn.Pipe(duplex=False)
            process = spawn.Process(target=_process, args=(work, share, other), daemon=True)
            process.start()
            other.close()
            processes.append(process)
            pipes.append(pipe)
        while pipes:
            for ready in wait(pipes):
                assert isinstance(ready, Connection)
                try:
                    data = ready.recv_bytes()
                except EOFError:
                    raise WorkFailed("a process ended before its work was done") from None
                lane, row, failure = json.loads(data)
                if failure is not None:
                    raise WorkFailed(failure)
                if lane is None:
                    pipes.remove(ready)
                else:
                    yield Lane(**lane), row, len(data)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _process(work: Work[Any], share: Any, pipe: Connection) -> None:
    """Runs in a process of its own: what it makes goes through the pipe; `null` at its end."""
    # Ctrl-C is for the process that writes: it ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def send(lane: Lane | None, row: Row | None, failure: str | None = None) -> None:
        pipe.send_bytes(json.dumps((lane and vars(lane), row, failure)).encode())

    try:
        asyncio.run(work(share, send))
        send(None, None)
    except Exception as error:
        # Whatever it is, the process that waits is told of it.
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        send(None, None, f"{type(error).__name__}: {error}")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """The store is this run's as long as it lasts; raises WorkFailed where it is another's."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkFailed(f"another run is at work on {folder}: wait for its end, or stop it") from None
        yield


def keep(
    work: Work[Share],
    shares: Sequence[Share],
    what: str,
    total: int,
    folder: Path,
    path: Callable[[Lane], Path],
) -> tuple[int, float]:
    """Do the work in processes, write what they make, show how far it is.

    Args:
        work: What a process does with its share.
        shares: One for each process.
        what: The field of a row that lists what was made, each with its `tokens`; the name of the bar, too.
        total: How many will be made.
        folder: The store, for this run alone.
        path: Where in it a lane's rows are kept.

    Returns:
        Tokens that were made, and seconds that it took.

    Raises WorkFailed, also where another run is at work on the store. What was made until then is kept, as it
    is where the work is interrupted.
    """
    if not shares:
        return 0, 0.0
    writer, began, tokens = Writer(), time.monotonic(), 0
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[speed]}"),
    )  # fmt: skip
    with alone(folder), Progress(*columns) as progress, closing(in_processes(work, shares)) as made:
        bar = progress.add_task(what, total=total, speed="")
        try:
            for lane, row, size in made:
                writer.add(path(lane), row, size)
                tokens += sum(item["tokens"] for item in row[what])
                speed = tokens / (time.monotonic() - began)
                about = f"{lane.model} T={lane.temperature:g} {speed:,.0f} tokens/s"
                progress.update(bar, advance=len(row[what]), speed=about)
        finally:
            writer.flush()
    return tokens, time.monotonic() - began
