"""Samples of the embedded models, from the generation service's own core: made once, kept, resumable.

What is measured is what is served. The work is shared by processes, one for each core, each of which runs an
engine of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Final

from isoflop.v1.common_pb2 import ANSWER_TYPE_NUMBER, FINISH_REASON_LENGTH, Sample
from prometheus_client import CollectorRegistry

from router.stages import Generation as GenerationStage
from services.aggregation.answers import extract
from services.aggregation.numbers import canonical_number
from services.common.catalog import CatalogError
from services.common.settings import MODELS
from services.generation import catalog as models
from services.generation.backends.llamacpp import LlamaCppBackend
from services.generation.catalog import LlamaCppEntry
from services.generation.core import Generation
from services.generation.settings import GenerationSettings
from training.sampling import sample_round
from training.shares import Send, WorkFailed, dealt, keep, work_off
from training.splits import Problem
from training.store import FOLDER, Lane, Row, read, repair, seed_of, sha256_of

BLOCK: Final = 32
"""Samples of one problem that are bought together: what a stopped run loses, at most, a process."""
SLOTS: Final = 8
"""Samples side by side in each process: the tiny models are fastest with few."""
CATALOG: Final = MODELS / "catalog.yaml"


@dataclass(frozen=True)
class BlockJob:
    """Samples to be made."""

    lane: Lane
    problem: Problem
    first: int
    count: int


def stored_samples(rows: Iterable[Row]) -> dict[tuple[str, int], tuple[int, dict[int, Row]]]:
    """By query and seed: prompt tokens, and samples by their number."""
    found: dict[tuple[str, int], tuple[int, dict[int, Row]]] = {}
    for row in rows:
        _, samples = found.setdefault((row["query_id"], row["seed"]), (row["prompt_tokens"], {}))
        for index, sample in enumerate(row["samples"], start=row["first"]):
            samples.setdefault(index, sample)
    return found


def stored_of(
    stored: Mapping[tuple[str, int], tuple[int, dict[int, Row]]], problem: Problem
) -> tuple[int, dict[int, Row]]:
    """Prompt tokens and stored samples of a problem, by their number; none where there are none."""
    return stored.get((problem.query_id, seed_of(problem)), (0, {}))


def missing(lane: Lane, problems: Iterable[Problem], count: int, rows: Iterable[Row]) -> Iterator[BlockJob]:
    """The blocks that are not there yet of `count` samples of each problem."""
    found = stored_samples(rows)
    for problem in problems:
        _, there = stored_of(found, problem)
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
        raise WorkFailed(
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


async def sample_share(share: SampleShare, send: Send) -> None:
    """Sample all jobs, one model at a time. Runs in a process of its own."""
    catalog = models.load(share.catalog)
    for name, jobs in groupby(share.jobs, lambda job: job.lane.model):
        entry = next(entry for entry in catalog.models if entry.name == name)
        assert isinstance(entry, LlamaCppEntry)
        backend = LlamaCppBackend(
            entry.model_copy(update={"parallel": share.slots}),
            share.catalog.parent,
            catalog.currency,
            whole=True,
        )
        generation = Generation(GenerationSettings(), [backend], CollectorRegistry())
        try:
            await work_off(jobs, partial(sample_block, generation), send, 1 + share.slots // BLOCK)
        finally:
            await generation.close()


def lane_of(model: str, temperature: float, catalog: Path = CATALOG) -> Lane:
    """Where a model's samples at a temperature are kept. Raises CatalogError and OSError."""
    for entry in models.load(catalog).models:
        if entry.name == model and isinstance(entry, LlamaCppEntry):
            return Lane(model, sha256_of(catalog.parent / entry.path), temperature)
    raise CatalogError(f"{catalog} has no model {model} that llama.cpp runs")


def sample(
    wanted: Iterable[tuple[Lane, Sequence[Problem], int]],
    *,
    catalog: Path = CATALOG,
    folder: Path = FOLDER,
    workers: int = os.cpu_count() or 1,
    slots: int = SLOTS,
) -> tuple[int, float]:
    """Make what is missing of so many samples of each problem, and keep it as it comes.

    Lanes of one model should follow each other, so that it is loaded once. Returns tokens and seconds.
    Raises WorkFailed, CatalogError and OSError.
    """
    jobs: dict[BlockJob, None] = {}
    stored: dict[Lane, list[Row]] = {}
    for lane, problems, count in wanted:
        if lane not in stored:
            stored[lane] = repair(lane.path(folder))
        jobs |= dict.fromkeys(missing(lane, problems, count, stored[lane]))
    shares = [SampleShare(catalog, slots, part) for part in dealt(list(jobs), workers)]
    total = sum(job.count for job in jobs)
    return keep(sample_share, shares, "samples", total, folder, lambda lane: lane.path(folder))


@dataclass(frozen=True)
class Sampled:
    """The first samples of one problem, in the order of their seeds."""

    texts: list[str]
    answers: list[str | None]
    """As aggregation reads them; None where there is none."""
    right: list[bool]
    tokens: list[int]
    prompt_tokens: int


def sampled(lane: Lane, problems: Iterable[Problem], count: int, folder: Path = FOLDER) -> dict[str, Sampled]:
    """The first `count` samples of each problem that has them in the store, by query_id."""
    stored, found = stored_samples(read(lane.path(folder))), {}
    for problem in problems:
        prompt_tokens, samples = stored_of(stored, problem)
        if samples.keys() >= set(range(count)):
            chosen = [samples[index] for index in range(count)]
            texts, answers, right, tokens = (
                [one[name] for one in chosen] for name in ("text", "answer", "right", "tokens")
            )
            found[problem.query_id] = Sampled(texts, answers, right, tokens, prompt_tokens)
    return found
