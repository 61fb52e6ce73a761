"""The gate before a new profile goes live: both profiles play the same labelled recordings.

The real router plays them, with the real aggregation, on recorded samples: both profiles see the same
permutation of each query's samples, so that they are compared query by query. At each effort two things
are asked: whether the new profile is right less often, and whether it leaves less worth, a right answer being
worth what the live profile's effort says. Labels are read here alone, when a query has been answered.
"""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from isoflop.errors import FailedPrecondition, InvalidArgument
from isoflop.v1.aggregation_pb2 import AggregateRequest, Candidate
from isoflop.v1.common_pb2 import ANSWER_TYPE_TEXT, AnswerFormat, AnswerType
from isoflop.v1.difficulty_pb2 import Difficulty, EstimateRequest, EstimateResponse
from isoflop.v1.router_pb2 import EFFORT_HIGH, EFFORT_LOW, EFFORT_MEDIUM, Effort, Filters, SolveRequest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StrictBool, ValidationError

from router.core import Router
from router.profiles import Loaded, sha256_of
from router.settings import SuiteSettings
from router.stages import Difficulty as DifficultyStage
from router.stages import Stages
from services.aggregation.core import Aggregation
from services.aggregation.settings import AggregationSettings
from services.common.catalog import CatalogError, ShapeEntry
from services.common.texts import open_text
from services.difficulty.core import open_difficulty
from services.difficulty.embedding import EmbeddingError
from services.difficulty.record import EstimatorError
from services.difficulty.settings import DifficultySettings
from services.generation import catalog as models
from services.generation.backends.recorded import RecordedBackend
from services.generation.catalog import LlamaCppEntry, ModelEntry, RecordedEntry
from services.generation.core import Generation
from services.generation.settings import GenerationSettings
from services.verification.core import Verification
from services.verification.settings import VerificationSettings

EFFORTS = {"low": EFFORT_LOW, "medium": EFFORT_MEDIUM, "high": EFFORT_HIGH}
TOLERANCE = 0.01
"""How much lower a new profile's accuracy may be, and how much less worth it may leave (in right answers)."""
LEAST_QUERIES = 30
"""With fewer nothing can be said."""
RESAMPLES = 2000
BINS = 10
"""Of confidence, for its calibration error."""
AT_A_TIME = 4
"""Queries in flight."""


class RecordedQuery(BaseModel):
    """A line of a recording: one query under one model. Other keys are of no matter here."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    query_id: str
    model: str
    gold: str | None = None
    prompt: str | None = None
    samples: list[dict[str, Any]]
    deep: Any = Field(default=None, exclude=True)
    """Of a strategy whose best chain this is: none of the model's samples."""

    @property
    def sent(self) -> str:
        """What stands for the query in a request: its prompt or, where that is not recorded, its id."""
        return self.prompt or self.query_id


@dataclass(frozen=True)
class Wanted:
    """What is played."""

    recordings: tuple[Path, ...]
    catalog: Path
    estimator: Path
    answer_type: AnswerType.ValueType
    seeds: int
    queries: int
    """At most; 0: all."""
    tolerance: float = TOLERANCE


@dataclass(frozen=True)
class Candidates:
    """The two profiles that are compared."""

    new: Loaded
    new_sha256: str
    against: Loaded
    against_sha256: str


@dataclass(frozen=True)
class Played:
    """Queries of one profile at one effort, in order; shape (queries, seeds)."""

    right: NDArray[np.float64]
    flops: NDArray[np.float64]
    confidence: NDArray[np.float64]


def calibration_error(confidence: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """Expected calibration error: mean distance of confidence and accuracy in bins of equal width, by their
    share (Naeini et al. 2015)."""
    bins = np.minimum((confidence.ravel() * BINS).astype(int), BINS - 1)
    gap = np.bincount(bins, confidence.ravel() - right.ravel(), BINS)
    return float(np.abs(gap).sum() / confidence.size)


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of (queries,) values: queries are resampled (Efron 1979)."""
    picks = np.random.default_rng(1).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(values[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def comparison(new: Played, against: Played, worth: float, tolerance: float) -> dict[str, Any]:
    """What the report says of one effort. `worth`: FLOPs that a right answer is worth."""
    rise = (new.right - against.right).mean(axis=1)
    left = rise - (new.flops - against.flops).mean(axis=1) / worth
    return {
        "worth": worth,
        "profile": _figures(new),
        "against": _figures(against),
        "accuracy_difference": _difference(rise),
        "worth_difference": _difference(left),
        "no_worse": bool(rise.mean() >= -tolerance and left.mean() >= -tolerance),
    }


def _figures(played: Played) -> dict[str, float]:
    return {
        "accuracy": float(played.right.mean()),
        "flops": float(played.flops.mean()),
        "confidence": float(played.confidence.mean()),
        "ece": calibration_error(played.confidence, played.right),
    }


def _difference(values: NDArray[np.float64]) -> dict[str, Any]:
    return {"mean": float(values.mean()), "interval": interval(values)}


async def replay(pair: Candidates, wanted: Wanted, advance: Callable[[int], None]) -> dict[str, Any]:
    """Play both profiles; the report. `advance` is told after each query how many are to come.

    Raises InvalidArgument for files that cannot be read, FailedPrecondition where they have too little.
    """
    rows = read(wanted.recordings)
    efforts = {}
    async with opened(rows, wanted, (pair.new, pair.against)) as (stages, queries, left_out):
        left = len(EFFORTS) * 2 * len(queries) * wanted.seeds

        def done() -> None:
            nonlocal left
            left -= 1
            advance(left)

        for name, effort in EFFORTS.items():
            new, against = [
                await play(each, stages, queries, effort, wanted, done) for each in (pair.new, pair.against)
            ]
            efforts[name] = comparison(new, against, pair.against.profile.efforts[name], wanted.tolerance)
    return {
        "schema": 1,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "profile": {"version": pair.new.version, "sha256": pair.new_sha256},
        "against": {"version": pair.against.version, "sha256": pair.against_sha256},
        "recordings": [{"name": path.name, "sha256": sha256_of(path)} for path in wanted.recordings],
        "models_without_recordings": left_out,
        "queries": len(queries),
        "seeds": wanted.seeds,
        "tolerance": wanted.tolerance,
        "efforts": efforts,
        "no_worse": all(each["no_worse"] for each in efforts.values()),
    }


async def play(
    loaded: Loaded,
    stages: Stages,
    queries: Mapping[str, str],
    effort: Effort.ValueType,
    wanted: Wanted,
    done: Callable[[], None],
) -> Played:
    """Play the queries, given with their truths, by one profile at one effort."""
    # As the router is set; but a plan that is pinned there would be compared with itself.
    settings = SuiteSettings().model_copy(update={"pin_model": ""})
    router = Router(settings, stages, loaded.profile, CollectorRegistry())
    room = asyncio.Semaphore(AT_A_TIME)

    async def one(prompt: str, truth: str, seed: int) -> tuple[float, float, float]:
        request = SolveRequest(
            prompt=prompt,
            effort=effort,
            answer_format=AnswerFormat(type=wanted.answer_type),
            filters=Filters(seed=seed),
        )
        async with room:
            response = await router.solve(request)
            right = await _right(stages, wanted.answer_type, response.text, truth)
        done()
        return float(right), response.bill.flops, response.confidence

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(one(*query, seed))
                for query in queries.items()
                for seed in range(wanted.seeds)
            ]
    except* Exception as errors:
        raise errors.exceptions[0] from None
    finally:
        await router.close()
    figures = np.array([task.result() for task in tasks]).reshape(len(queries), wanted.seeds, 3)
    return Played(*np.moveaxis(figures, 2, 0))


async def _right(stages: Stages, kind: AnswerType.ValueType, text: str, truth: str) -> bool:
    """Whether a text gives the right answer."""
    true_text = truth if kind == ANSWER_TYPE_TEXT else f"\\boxed{{{truth}}}"
    request = AggregateRequest(
        format=AnswerFormat(type=kind),
        candidates=[
            Candidate(id="truth", text=true_text, weight=1),
            Candidate(id="text", text=text, weight=1),
        ],
    )
    clusters = (await stages.aggregation.aggregate(request)).clusters
    return any({"truth", "text"} <= set(cluster.members) for cluster in clusters)


def read(paths: Sequence[Path]) -> list[RecordedQuery]:
    """The lines of recordings that have a model's samples; raises InvalidArgument."""
    rows = []
    for path in paths:
        number = 0
        try:
            with open_text(path) as lines:
                for number, line in enumerate(lines, start=1):  # noqa: B007 (the error names it)
                    rows.append(RecordedQuery.model_validate_json(line))
        except OSError as error:
            raise InvalidArgument("recordings", f"{path}: {error.strerror or error}") from None
        except (ValidationError, UnicodeDecodeError, EOFError, zlib.error):
            raise InvalidArgument(
                "recordings", f"{path}: line {max(number, 1)} is no recorded query"
            ) from None
    return [row for row in rows if row.deep is None]


@asynccontextmanager
async def opened(
    rows: Sequence[RecordedQuery], wanted: Wanted, profiles: Collection[Loaded]
) -> AsyncIterator[tuple[Stages, dict[str, str], list[str]]]:
    """The stages over recordings, queries with their truths, and models of profiles that are not recorded.

    Queries are those that all models were recorded on, and whose truth is known. Raises FailedPrecondition,
    and InvalidArgument for files that are no good.
    """
    measured = {arm.model for loaded in profiles for arm in loaded.profile.arms}
    by_model: dict[str, dict[str, list[RecordedQuery]]] = {}
    for row in rows:
        by_model.setdefault(row.model, {}).setdefault(row.sent, []).append(row)
    try:
        catalog = models.load(wanted.catalog)
        entries = [
            entry for entry in catalog.models if entry.name in measured and _recorded_name(entry) in by_model
        ]
        shapes = [shape_of(entry, wanted.catalog.parent) for entry in entries]
    except CatalogError as error:
        raise InvalidArgument("catalog", str(error)) from None
    if not entries:
        raise FailedPrecondition(
            f"no model is in the recordings ({', '.join(by_model)}), in the catalogue {wanted.catalog}, and "
            f"in a profile ({', '.join(sorted(measured))}): name a catalogue with the recorded models"
        )
    names = [_recorded_name(entry) for entry in entries]
    truths = {row.sent: row.gold for row in rows if row.gold is not None}
    prompts = sorted(
        truths.keys() & set[str].intersection(*(set(by_model[name]) for name in names)), key=_shuffled
    )
    prompts = prompts[: wanted.queries or len(prompts)]
    if len(prompts) < LEAST_QUERIES:
        raise FailedPrecondition(
            f"{len(prompts)} queries have a truth (gold) and samples of all of "
            f"{', '.join(names)}: at least {LEAST_QUERIES} are needed"
        )
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="isoflop-replay-")))
        backends: list[RecordedBackend] = []
        for entry, name, shape in zip(entries, names, shapes, strict=True):
            path = folder / f"{len(backends)}.jsonl"
            kept = [row for prompt in prompts for row in by_model[name][prompt]]
            path.write_text("".join(row.model_dump_json(exclude={"gold"}) + "\n" for row in kept))
            recorded = RecordedEntry(
                name=entry.name,
                backend="recorded",
                path=path,
                model=name,
                shape=shape,
                price=entry.price,
            )
            try:
                backends.append(RecordedBackend(recorded, folder, catalog.currency))
            except CatalogError:
                raise InvalidArgument(
                    "recordings", f"{name}: a sample is not as recordings have them"
                ) from None
        registry = CollectorRegistry()
        try:
            estimator = open_difficulty(DifficultySettings(estimator=wanted.estimator), registry)
        except (EstimatorError, EmbeddingError) as error:
            raise InvalidArgument("estimator", str(error)) from None
        generation = Generation(GenerationSettings(), backends, registry)
        stack.push_async_callback(generation.close)
        aggregation = Aggregation(AggregationSettings(), registry)
        stack.push_async_callback(aggregation.close)
        estimates = Estimates(estimator, frozenset(row.sent for row in rows if not row.prompt))
        verification = Verification(VerificationSettings(), [], registry)
        without = sorted(measured - {entry.name for entry in entries})
        stages = Stages(generation, verification, estimates, aggregation)
        yield stages, {prompt: truths[prompt] for prompt in prompts}, without


@dataclass(frozen=True)
class Estimates:
    """Difficulty of queries whose text is recorded; of the others nothing is known."""

    estimator: DifficultyStage
    without_text: frozenset[str]

    async def estimate(self, request: EstimateRequest) -> EstimateResponse:
        """One estimate for each query: where there is no text, the prior, which is standard normal."""
        response = await self.estimator.estimate(request)
        for query, difficulty in zip(request.queries, response.difficulties, strict=True):
            if query.messages[-1].content in self.without_text:
                difficulty.CopyFrom(Difficulty(mean=0.0, sd=1.0))
        return response


def _recorded_name(entry: ModelEntry) -> str:
    return (entry.model if isinstance(entry, RecordedEntry) else "") or entry.name


def shape_of(entry: Any, folder: Path) -> ShapeEntry:
    """The shape that a model's FLOPs depend on; raises CatalogError."""
    if entry.shape is not None:
        return ShapeEntry.model_validate(entry.shape)
    assert isinstance(entry, LlamaCppEntry)
    from services.generation.backends.llamacpp import Header

    try:
        shape = Header.read(folder / entry.path).shape
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CatalogError(f"model {entry.name}: {entry.path}: {error}") from None
    return ShapeEntry(**{name: getattr(shape, name) for name in ShapeEntry.model_fields})


def _shuffled(prompt: str) -> str:
    """An order that says nothing of the queries: the first so many of it are a fair sample."""
    return hashlib.sha256(prompt.encode()).hexdigest()


class Compared(BaseModel):
    """One profile of a report."""

    version: str
    sha256: str


class Report(BaseModel):
    """What the gate reads of a report; other keys are for people."""

    at: AwareDatetime
    profile: Compared
    against: Compared
    no_worse: StrictBool


def read_reports(folder: Path) -> list[Report]:
    """The replay reports of a folder; what is no report is passed over."""
    found = []
    for path in folder.glob("*.json"):
        with suppress(OSError, ValidationError):
            found.append(Report.model_validate_json(path.read_bytes()))
    return found


def verdict(reports: Sequence[Report], new_sha256: str, live_sha256: str) -> tuple[bool, str]:
    """Whether a file may go live instead of another, and why: the latest report of just these two counts."""
    wanted = (new_sha256, live_sha256)
    of_these = [one for one in reports if (one.profile.sha256, one.against.sha256) == wanted]
    if not of_these:
        return False, "no replay report is of exactly this file against the live one"
    latest = max(of_these, key=lambda report: report.at)
    said = "no worse" if latest.no_worse else "worse"
    return latest.no_worse, f"{said} in the replay of {latest.at.isoformat()}"
