"""Samples of models and their scores, stored, reused and resumable: what the headlines are computed from.

    STORE/abacus-s-1f2e3d4c5b6a-t0.7.jsonl.gz                       samples at temperature 0.7; t0: greedy
    STORE/abacus-s-1f2e3d4c5b6a-t0.7-abacus-prm-0a1b2c3d4e5f.jsonl.gz   scores of their steps

The names carry the SHA-256 of the model's and the verifier's files, so that a new model never meets old
samples; the seeds come from the prompts, so that neither does a new prompt. A line holds a block of samples
of one problem, or the scores of some of its texts. Files grow by whole gzip members, written by one process
alone; what a crash cuts short is dropped before more is added.

The work is shared by processes, one for each core, each of which runs an engine of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import multiprocessing
import os
import signal
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final, TypeVar

from isoflop.v1.common_pb2 import ANSWER_TYPE_NUMBER, FINISH_REASON_LENGTH, Message, Sample, Step
from isoflop.v1.verification_pb2 import Chain, ScoreRequest
from prometheus_client import CollectorRegistry

from router.stages import Generation as GenerationStage
from router.stages import Verification as VerificationStage
from services.aggregation.answers import extract
from services.aggregation.numbers import canonical_number
from services.common.catalog import CatalogError
from services.generation import catalog as models
from services.generation.backends.llamacpp import LlamaCppBackend
from services.generation.catalog import LlamaCppEntry
from services.generation.core import Generation
from services.generation.settings import GenerationSettings
from services.verification import catalog as verifiers
from services.verification import engines
from services.verification.core import Verification
from services.verification.settings import VerificationSettings
from training.sampling import sample_round
from training.splits import Problem

BLOCK: Final = 32
"""Samples of one problem that are bought together: what a stopped run loses, at most, a process."""
MEMBER_BYTES: Final = 1 << 20
"""Lines are collected up to so many bytes before they are written as one gzip member."""
CHAINS_AT_A_TIME: Final = 256
"""Chains that wait for the verifier together, so that its batches are full."""

Row = dict[str, Any]
Job = TypeVar("Job")


class SamplingFailed(Exception):
    """A process that samples or scores has failed; `str(error)` says of what."""


@dataclass(frozen=True)
class Lane:
    """A model at a temperature; 0 is greedy."""

    model: str
    sha256: str
    temperature: float

    def path(self, store: Path) -> Path:
        """The file of its samples."""
        return store / f"{self.model}-{self.sha256[:12]}-t{self.temperature:g}.jsonl.gz"

    def scores_path(self, store: Path, verifier: str, sha256: str) -> Path:
        """The file of its samples' scores by a verifier."""
        stem = self.path(store).name.removesuffix(".jsonl.gz")
        return store / f"{stem}-{verifier}-{sha256[:12]}.jsonl.gz"


@dataclass(frozen=True)
class BlockJob:
    """Samples to be made."""

    lane: Lane
    problem: Problem
    first: int
    count: int


@dataclass(frozen=True)
class ScoreJob:
    """Different texts of one problem to be scored, each with its steps as (end, tokens, log-probability)."""

    lane: Lane
    problem: Problem
    texts: dict[str, list[list[Any]]]


def sha256_of(*paths: Path) -> str:
    """One hash of the content of these files."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def seed_of(problem: Problem) -> int:
    """Seed of a problem's first sample; it changes with the prompt."""
    return int.from_bytes(hashlib.sha256(problem.prompt.encode()).digest()[:4], "big") >> 1


def digest(text: str) -> str:
    """A text's name among the texts of its problem."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# Files


def read(path: Path) -> list[Row]:
    """The lines of a file, without what was cut short; none where there is no file."""
    return _read(path)[0]


def repair(path: Path) -> list[Row]:
    """The lines of a file; what was cut short is removed, so that more can be added."""
    rows, whole = _read(path)
    if path.exists() and whole < path.stat().st_size:
        os.truncate(path, whole)
    return rows


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add lines as one gzip member."""
    text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    packer = zlib.compressobj(wbits=31)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        file.write(packer.compress(text.encode()) + packer.flush())


def _read(path: Path) -> tuple[list[Row], int]:
    """The lines of the whole members, and where the last of these ends."""
    data = path.read_bytes() if path.exists() else b""
    rows: list[Row] = []
    at = 0
    while at < len(data):
        unpacker = zlib.decompressobj(wbits=31)
        try:
            text = unpacker.decompress(data[at:])
        except zlib.error:
            break
        if not unpacker.eof:
            break
        rows += map(json.loads, text.decode().splitlines())
        at = len(data) - len(unpacker.unused_data)
    return rows, at


class Writer:
    """Collects lines for several files, and writes them a member at a time; closing writes the rest."""

    def __init__(self) -> None:
        self._rows: dict[Path, list[Row]] = {}
        self._bytes = 0

    def add(self, path: Path, row: Row, size: int) -> None:
        """Take a line of about so many bytes."""
        self._rows.setdefault(path, []).append(row)
        self._bytes += size
        if self._bytes > MEMBER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what has been collected."""
        for path, rows in self._rows.items():
            append(path, rows)
        self._rows, self._bytes = {}, 0


# Samples


def stored_samples(rows: Iterable[Row]) -> dict[tuple[str, int], tuple[int, dict[int, Row]]]:
    """By query and seed: prompt tokens, and samples by their number."""
    found: dict[tuple[str, int], tuple[int, dict[int, Row]]] = {}
    for row in rows:
        _, samples = found.setdefault((row["query_id"], row["seed"]), (row["prompt_tokens"], {}))
        for index, sample in enumerate(row["samples"], start=row["first"]):
            samples.setdefault(index, sample)
    return found


def missing(lane: Lane, problems: Iterable[Problem], count: int, rows: Iterable[Row]) -> Iterator[BlockJob]:
    """The blocks that are not there yet of `count` samples of each problem."""
    found = stored_samples(rows)
    for problem in problems:
        _, there = found.get((problem.query_id, seed_of(problem)), (0, {}))
        for first in range(0, count, BLOCK):
            wanted = range(first, min(first + BLOCK, count))
            if not there.keys() >= set(wanted):
                yield BlockJob(lane, problem, first, len(wanted))


async def sample_block(generation: GenerationStage, job: BlockJob) -> Row:
    """One round of the generation service, as a line of the store."""
    problem, seed = job.problem, seed_of(job.problem)
    done = await sample_round(
        generation,
        job.lane.model,
        problem.prompt,
        samples=job.count,
        temperature=job.lane.temperature,
        seed=seed,
        first_sample=job.first,
        query_id=problem.query_id,
    )
    if len(done.samples) != job.count:
        raise SamplingFailed(
            f"{job.lane.model}: {len(done.samples)} of {job.count} samples of {problem.query_id}"
        )
    return {
        "query_id": problem.query_id,
        "seed": seed,
        "first": job.first,
        "prompt_tokens": (done.usage.prompt_tokens + done.usage.cached_tokens) // job.count,
        "samples": [_sample_row(sample, canonical_number(problem.answer)) for sample in done.samples],
    }


def _sample_row(sample: Sample, right: str | None) -> Row:
    answer = extract(sample.text, ANSWER_TYPE_NUMBER)
    row: Row = {
        "text": sample.text,
        "tokens": sample.tokens,
        "answer": answer,
        "right": answer is not None and answer == right,
        "steps": [
            [step.end, step.tokens, round(step.logprob, 4) if step.HasField("logprob") else None]
            for step in sample.steps
        ],
    }
    if sample.HasField("logprob"):
        row["logprob"] = round(sample.logprob, 4)
    if sample.finish_reason == FINISH_REASON_LENGTH:
        row["cut"] = True
    return row


@dataclass(frozen=True)
class SampleShare:
    """What one process samples: jobs of one lane follow each other."""

    catalog: Path
    slots: int
    jobs: Sequence[BlockJob]


def sample_share(share: SampleShare, send: Callable[[Lane, Row], None]) -> None:
    """Sample all jobs, one model at a time. Runs in a process of its own."""
    asyncio.run(_sample_share(share, send))


async def _sample_share(share: SampleShare, send: Callable[[Lane, Row], None]) -> None:
    catalog = models.load(share.catalog)
    for name, jobs in groupby(share.jobs, lambda job: job.lane.model):
        entry = next(entry for entry in catalog.models if entry.name == name)
        assert isinstance(entry, LlamaCppEntry)
        backend = LlamaCppBackend(
            entry.model_copy(update={"parallel": share.slots}), share.catalog.parent, catalog.currency
        )
        generation = Generation(GenerationSettings(), [backend], CollectorRegistry())
        try:
            await _all(jobs, partial(sample_block, generation), send, 1 + share.slots // BLOCK)
        finally:
            await generation.close()


async def _all(
    jobs: Iterable[Job],
    work: Callable[[Job], Any],
    send: Callable[[Lane, Row], None],
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


# Scores


def unscored(
    lane: Lane, problems: Iterable[Problem], samples: Iterable[Row], scores: Iterable[Row]
) -> Iterator[ScoreJob]:
    """The texts that have no score yet. Equal texts of a problem have the same."""
    found = stored_samples(samples)
    there = {(row["query_id"], row["seed"], one["digest"]) for row in scores for one in row["scores"]}
    for problem in problems:
        _, mine = found.get((problem.query_id, seed_of(problem)), (0, {}))
        texts = {sample["text"]: sample["steps"] for sample in mine.values()}
        key = (problem.query_id, seed_of(problem))
        if left := {text: steps for text, steps in texts.items() if (*key, digest(text)) not in there}:
            yield ScoreJob(lane, problem, left)


async def score_texts(
    verification: VerificationStage, verifier: str, job: ScoreJob, gate: asyncio.Semaphore
) -> Row:
    """Scores of the texts of a problem, as a line of the store. Each is asked alone: so its cost is told."""

    async def score(text: str, steps: list[list[Any]]) -> Row:
        told = [Step(end=end, tokens=tokens, logprob=logprob) for end, tokens, logprob in steps]
        async with gate:
            response = await verification.score(
                ScoreRequest(
                    verifier=verifier,
                    messages=[Message(role="user", content=job.problem.prompt)],
                    chains=[Chain(id="1", text=text, steps=told)],
                )
            )
        (one,) = response.scores
        row: Row = {
            "digest": digest(text),
            "steps": [round(score, 5) for score in one.steps],
            "tokens": response.tokens + response.completion_tokens,
            "flops": response.flops,
            "simple": response.flops_without_attention,
        }
        return row | ({"error": one.error} if one.error else {})

    return {
        "query_id": job.problem.query_id,
        "seed": seed_of(job.problem),
        "scores": await asyncio.gather(*(score(text, steps) for text, steps in job.texts.items())),
    }


@dataclass(frozen=True)
class ScoreShare:
    """What one process scores."""

    verifiers: Path
    verifier: str
    jobs: Sequence[ScoreJob]


def score_share(share: ScoreShare, send: Callable[[Lane, Row], None]) -> None:
    """Score all jobs. Runs in a process of its own."""
    asyncio.run(_score_share(share, send))


async def _score_share(share: ScoreShare, send: Callable[[Lane, Row], None]) -> None:
    backends = engines.open_backends(share.verifiers)
    verification = Verification(VerificationSettings(), backends, CollectorRegistry())
    gate = asyncio.Semaphore(CHAINS_AT_A_TIME)
    try:
        # Several problems at a time: one alone may have too few different texts to fill a batch.
        await _all(share.jobs, lambda job: score_texts(verification, share.verifier, job, gate), send, 8)
    finally:
        await verification.close()


def verifier_sha256(path: Path, name: str) -> str:
    """Hash of a verifier's files, or of its entry where it has none; raises CatalogError."""
    entries = {entry.name: entry for entry in verifiers.load(path).verifiers}
    if name not in entries:
        raise CatalogError(f"there is no verifier {name!r}; there are: {', '.join(entries)}")
    entry = entries[name]
    files = [path.parent / entry.path] if isinstance(entry, verifiers.OnnxEntry) else []
    if not files:
        return hashlib.sha256(entry.model_dump_json().encode()).hexdigest()
    return sha256_of(*sorted(files[0].glob("*.onnx")), *sorted(files[0].glob("*.json")))


# Processes


Share = TypeVar("Share")


def in_processes(
    work: Callable[[Share, Callable[[Lane, Row], None]], None], shares: Sequence[Share]
) -> Generator[tuple[Lane, Row, int], None, None]:
    """What the processes make, as it comes, with its size in bytes: one process for each share.

    Closing it ends them. Raises SamplingFailed where one of them fails.
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
                    raise SamplingFailed("a process ended before its work was done") from None
                lane, row, failure = json.loads(data)
                if failure is not None:
                    raise SamplingFailed(failure)
                if lane is None:
                    pipes.remove(ready)
                else:
                    yield Lane(**lane), row, len(data)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _process(work: Callable[[Any, Callable[[Lane, Row], None]], None], share: Any, pipe: Connection) -> None:
    """Runs in a process of its own: what it makes goes through the pipe; `null` at its end."""
    # Ctrl-C is for the process that writes: it ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def send(lane: Lane | None, row: Row | None, failure: str | None = None) -> None:
        pipe.send_bytes(json.dumps((lane and vars(lane), row, failure)).encode())

    try:
        work(share, send)
        send(None, None)
    except Exception as error:
        # Whatever it is, the process that waits is told of it.
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        send(None, None, f"{type(error).__name__}: {error}")
