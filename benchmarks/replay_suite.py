"""isoflop itself on recordings: the real suite in one process, a router for each fold with its own profile.

Problems fall into FOLDS folds. A fold's queries are solved by a router whose profile was fitted on the
samples of all other problems. The suite is given a copy of the recordings without what is right; difficulty
is not told from texts, which most recordings do not have: every query starts from the profile's prior.
Router, planner, belief, bill, generation and aggregation are what `isoflop up` runs.

What was solved is kept, under a name that changes with the recordings and with all code that decides, so that
a run that was stopped goes on.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import multiprocessing
import signal
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from isoflop.v1.common_pb2 import AnswerFormat, AnswerType, Model, Shape
from isoflop.v1.difficulty_pb2 import Difficulty, EstimateRequest, EstimateResponse
from isoflop.v1.router_pb2 import Filters, Objective, SolveRequest, SolveResponse
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.replay_baselines import MOST, Point
from benchmarks.replay_data import SIZES, Recording
from router import profile
from router.core import Router
from router.settings import RouterSettings
from router.stages import Stages
from services.aggregation.core import Aggregation
from services.aggregation.settings import AggregationSettings
from services.generation.backends.recorded import order
from services.generation.core import Generation
from services.generation.engines import open_backends
from services.generation.settings import GenerationSettings
from services.verification.core import Verification
from services.verification.settings import VerificationSettings
from training.measured import Measured, Samples
from training.profiles import fit
from training.resampling import Floats
from training.shares import alone
from training.store import append, repair

ROOT: Final = Path(__file__).parents[1]
STORE: Final = ROOT / "build" / "replay"
FOLDS: Final = 5
WORTHS: Final = tuple(float(worth) for worth in 10.0 ** np.arange(14.5, 17.25, 0.25))
"""FLOPs that a right answer is worth: budgets from 0.3 to 100 PFLOP."""
AT_ONCE: Final = 10
"""Permutations of a problem that a process solves before it tells."""
SETTINGS: Final = RouterSettings(round_samples=1, max_samples=MOST, max_prompt_bytes=1 << 20)
"""One sample a round: recordings take no time, and what was seen counts at once."""
DECIDES: Final = (
    "router/**/*.py",
    "services/generation/**/*.py",
    "services/aggregation/**/*.py",
    "services/common/flops.py",
    "training/alike.py",
    "training/measured.py",
    "training/profiles.py",
    "training/query_types.py",
    "benchmarks/replay_data.py",
    "benchmarks/replay_suite.py",
)
"""The code that a result depends on."""
FACES: Final = ("__main__", "commands", "demo", "metrics", "remote", "servicer")
"""Files in these folders that it does not depend on."""


class ReplayFailed(Exception):
    """A process has failed."""


@dataclass(frozen=True)
class Job:
    """One problem under some permutations."""

    problem: int
    permutations: tuple[int, ...]
    worths: tuple[float, ...]


@dataclass(frozen=True)
class Solved:
    """One problem under one permutation at one worth."""

    problem: int
    permutation: int
    worth: float
    chosen: str
    """The sample whose answer was returned, as "model/i" for the i-th that was played; empty: none."""
    flops: float
    """Of the whole bill."""
    attention: float
    """FLOPs of attention, which the bill does not have."""
    tokens: int
    confidence: float
    samples: dict[str, int]
    """By model."""

    @classmethod
    def of(cls, job: Job, permutation: int, worth: float, response: SolveResponse) -> Solved:
        """From a response with its candidates."""
        lengths: dict[str, list[int]] = {}
        for sample in response.candidates:
            lengths.setdefault(sample.id.rpartition("/")[0], []).append(sample.tokens)
        attention = [SIZES[name].attention(np.array(told, float)).sum() for name, told in lengths.items()]
        return cls(
            job.problem,
            permutation,
            worth,
            response.clusters[0].best_member if response.clusters else "",
            response.bill.flops,
            float(sum(attention)),
            response.bill.tokens,
            round(response.confidence, 5),
            {name: len(told) for name, told in lengths.items()},
        )


@dataclass(frozen=True)
class Folder:
    """What the processes read."""

    catalog: Path
    profiles: tuple[Path, ...]
    """By fold."""
    folds: tuple[int, ...]
    """By problem."""
    problems: tuple[str, ...]
    kind: AnswerType.ValueType


class Prior:
    """Difficulty that is not told: the profile's prior."""

    async def estimate(self, request: EstimateRequest) -> EstimateResponse:
        """Mean 0 and standard deviation 1, for nothing."""
        return EstimateResponse(
            difficulties=[Difficulty(mean=0.0, sd=1.0) for _ in request.queries], estimator="prior"
        )


class Suite:
    """A router for each fold, over the same services."""

    def __init__(self, folder: Folder) -> None:
        registry = CollectorRegistry()
        settings = GenerationSettings(catalog=folder.catalog)
        self._generation = Generation(settings, open_backends(folder.catalog), registry)
        # As many comparisons as there are in a recording are remembered: permutations share them.
        self._aggregation = Aggregation(AggregationSettings(remembered_comparisons=1_000_000), registry)
        stages = Stages(
            self._generation,
            Verification(VerificationSettings(), [], registry),
            Prior(),
            self._aggregation,
        )
        self._folder = folder
        self._routers = [
            Router(SETTINGS, stages, profile.load(path), CollectorRegistry()) for path in folder.profiles
        ]

    async def solve(self, problem: int, permutation: int, worth: float) -> SolveResponse:
        """One query; the permutation is its seed."""
        router = self._routers[self._folder.folds[problem]]
        return await router.solve(
            SolveRequest(
                prompt=self._folder.problems[problem],
                answer_format=AnswerFormat(type=self._folder.kind),
                objective=Objective(flops_per_right_answer=worth),
                filters=Filters(seed=permutation),
                return_candidates=True,
            )
        )

    async def close(self) -> None:
        """End what it has begun."""
        for router in self._routers:
            await router.close()
        await self._generation.close()
        await self._aggregation.close()


def folds(recording: Recording) -> list[int]:
    """Of each problem, alike in number and by lot."""
    return [int(fold) for fold in np.random.default_rng(5).permutation(len(recording.problems)) % FOLDS]


def fit_fold(recording: Recording, held_out: Sequence[bool], version: str) -> dict[str, Any]:
    """The profile from the problems that are not held out."""
    known = [at for at, out in enumerate(held_out) if not out]
    queries = [
        Measured(
            query_id=recording.query_ids[at],
            prompt=recording.problems[at],
            group="",
            samples={
                name: Samples(
                    [recording.names[at][number] if number >= 0 else None for number in track.answers[at]],
                    track.right[at],
                    track.tokens[at],
                )
                for name, track in recording.tracks.items()
            },
        )
        for at in known
    ]
    models = [
        Model(name=name, shape=Shape(active_parameters=int(1e9 * track.size.active)))
        for name, track in recording.tracks.items()
    ]
    return fit(queries, models, version, difficulty=difficulty(recording, known))


def difficulty(recording: Recording, known: Sequence[int]) -> Floats:
    """Of each known problem: normal scores of how often it is answered wrong, shape (len(known),).

    Their distribution is that under which an estimate that says nothing leaves a profile's prior.
    """
    rates = np.mean([track.right[known].mean(axis=1) for track in recording.tracks.values()], axis=0)
    places = np.argsort(np.argsort(-rates, kind="stable"), kind="stable")
    return np.array([NormalDist().inv_cdf((place + 0.5) / len(places)) for place in places.tolist()])


def code() -> bytes:
    """A digest of the code that decides."""
    paths = sorted(path for pattern in DECIDES for path in ROOT.glob(pattern) if path.stem not in FACES)
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).digest()


class Replay:
    """isoflop's solves of one recording, in a folder of their own."""

    def __init__(self, recording: Recording, store: Path = STORE) -> None:
        """Writes what the suite reads, where it is not there."""
        self._recording, fold = recording, folds(recording)
        files = recording.files()
        digest = hashlib.sha256(code() + "".join(files.values()).encode())
        for track in recording.tracks.values():
            digest.update(track.right.tobytes())
        key = digest.hexdigest()[:12]
        self.path = store / f"{recording.dataset}-{len(recording.tracks)}-{key}"
        self.path.mkdir(parents=True, exist_ok=True)
        self._solves = self.path / "solved.jsonl.gz"
        profiles = tuple(self.path / f"profile-{number}.json" for number in range(FOLDS))
        for name, text in files.items():
            (self.path / name).write_text(text)
        for number, path in enumerate(profiles):
            if not path.exists():
                told = fit_fold(recording, [one == number for one in fold], f"{key}-{number}")
                path.write_text(json.dumps(told))
        self.folder = Folder(
            self.path / "catalog.yaml", profiles, tuple(fold), tuple(recording.problems), recording.kind
        )

    def run(self, permutations: int, worths: Sequence[float], workers: int) -> list[Solved]:
        """All solves by worth, problem and permutation; what the folder has is not solved again.

        Raises ReplayFailed, and WorkFailed where another run is at work.
        """
        stored = [Solved(**row) for row in repair(self._solves)]
        solved = {(one.problem, one.permutation, one.worth): one for one in stored}
        jobs = []
        for begin in range(0, permutations, AT_ONCE):
            several = range(begin, min(begin + AT_ONCE, permutations))
            for problem in range(len(self._recording.problems)):
                left = tuple(
                    worth for worth in worths if any((problem, one, worth) not in solved for one in several)
                )
                if left:
                    jobs.append(Job(problem, tuple(several), left))
        if jobs:
            name = f"{self._recording.dataset}, {len(self._recording.tracks)} models"
            with alone(self.path), closing(_played(self.folder, jobs, workers)) as played:
                for told in _shown(played, jobs, name):
                    append(self._solves, [asdict(one) for one in told])
                    solved |= {(one.problem, one.permutation, one.worth): one for one in told}
        return [
            solved[problem, one, worth]
            for worth in worths
            for problem in range(len(self._recording.problems))
            for one in range(permutations)
        ]


def points(
    recording: Recording, solved: Sequence[Solved], permutations: int, worths: Sequence[float]
) -> list[Point]:
    """A point for each worth; `solved` as `Replay.run` has it."""
    values = np.array(
        [(_right(recording, one), one.flops, one.attention, one.tokens) for one in solved], float
    )
    table = values.reshape(len(worths), len(recording.problems), permutations, 4)
    return [
        Point(f"isoflop at {worth:.3g} FLOPs a right answer", *np.moveaxis(told, 2, 0))
        for worth, told in zip(worths, table, strict=True)
    ]


def _right(recording: Recording, one: Solved) -> bool:
    """Whether the sample whose answer was returned is right, as recorded."""
    if not one.chosen:
        return False
    model, _, index = one.chosen.rpartition("/")
    right = recording.tracks[model].right[one.problem]
    return bool(right[order(one.permutation, model, recording.problems[one.problem], len(right))[int(index)]])


def _shown(told: Iterator[list[Solved]], jobs: Sequence[Job], name: str) -> Iterator[list[Solved]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    total = sum(len(job.permutations) * len(job.worths) for job in jobs)
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(name, total=total)
        for some in told:
            yield some
            progress.advance(bar, len(some))


def _played(folder: Folder, jobs: Sequence[Job], workers: int) -> Generator[list[Solved], None, None]:
    """What each job has come to, as they end, in processes that end with this iterator.

    A problem is always the same process's, which so remembers what its answers came to when compared. Raises
    ReplayFailed where one fails.
    """
    spawn = multiprocessing.get_context("spawn")
    running: dict[Connection, SpawnProcess] = {}
    try:
        for worker in range(workers):
            if share := [job for job in jobs if job.problem % workers == worker]:
                pipe, other = spawn.Pipe(duplex=False)
                # No daemon: comparisons have processes of their own.
                running[pipe] = spawn.Process(target=_work, args=(folder, share, other))
                running[pipe].start()
                other.close()
        while running:
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                try:
                    yield ready.recv()
                except EOFError:
                    process = running.pop(ready)
                    process.join()
                    if process.exitcode:
                        raise ReplayFailed("a process has failed: see above") from None
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()


def _work(folder: Folder, share: Sequence[Job], pipe: Connection) -> None:
    """Runs in a process of its own; ends, too, where nobody reads any more."""
    # Ctrl-C is for the process that writes: it ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    async def work() -> None:
        suite = Suite(folder)
        try:
            for job in share:
                pipe.send(await play(suite, job))
        finally:
            await suite.close()

    with suppress(BrokenPipeError):
        asyncio.run(work())


async def play(suite: Suite, job: Job) -> list[Solved]:
    """Solve a job's queries."""
    return [
        Solved.of(job, permutation, worth, await suite.solve(job.problem, permutation, worth))
        for permutation in job.permutations
        for worth in job.worths
    ]
