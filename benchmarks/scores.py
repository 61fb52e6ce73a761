"""Scores of stored samples by a verifier, from the verification service's own core: made once, kept."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from isoflop.v1.common_pb2 import Message, Step
from isoflop.v1.verification_pb2 import Chain, ScoreRequest
from prometheus_client import CollectorRegistry

from router.stages import Verification as VerificationStage
from services.common.catalog import CatalogError
from services.verification import catalog as verifiers
from services.verification import engines
from services.verification.core import Verification
from services.verification.settings import VerificationSettings
from training.samples import stored_of, stored_samples
from training.shares import Send, work_off
from training.splits import Problem
from training.store import Lane, Row, digest, seed_of, sha256_of

CHAINS_AT_A_TIME: Final = 256
"""Chains that wait for the verifier together, so that its batches are full."""


@dataclass(frozen=True)
class ScoreJob:
    """Different texts of one problem to be scored, each with its steps as (end, tokens, log-probability)."""

    lane: Lane
    problem: Problem
    texts: dict[str, list[list[Any]]]


def unscored(
    lane: Lane, problems: Iterable[Problem], samples: Iterable[Row], scores: Iterable[Row]
) -> Iterator[ScoreJob]:
    """The texts that have no score yet. Equal texts of a problem have the same."""
    found = stored_samples(samples)
    there = {(row["query_id"], row["seed"], one["digest"]) for row in scores for one in row["scores"]}
    for problem in problems:
        _, mine = stored_of(found, problem)
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


async def score_share(share: ScoreShare, send: Send) -> None:
    """Score all jobs. Runs in a process of its own."""
    backends = engines.open_backends(share.verifiers)
    verification = Verification(VerificationSettings(), backends, CollectorRegistry())
    gate = asyncio.Semaphore(CHAINS_AT_A_TIME)
    try:
        # Several problems at a time: one alone may have too few different texts to fill a batch.
        await work_off(share.jobs, lambda job: score_texts(verification, share.verifier, job, gate), send, 8)
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
