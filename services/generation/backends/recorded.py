"""Recorded generation: samples of real models, played back.

A recording is JSON lines, one query under one model each:
`{"query_id", "model", "prompt"?, "samples": [{"answer"|null, "text"?, "tokens"?, "chars"?}]}`.
A query is found by its prompt, or by its `query_id` sent as the prompt where none is recorded. Sample i
of a query is the recorded sample at place i of a permutation that the seed decides, so each is played
at most once a query. One that is longer than it may be is cut: it has its most tokens, and no text, since its
answer came after them. What a recording says of right and wrong (`correct`, `gold`) is never read, nor a line
with `deep`: that has what a strategy made, and is none of the model's samples.
"""

from __future__ import annotations

import asyncio
import json
import random
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from isoflop.errors import FailedPrecondition, InvalidArgument
from isoflop.v1.common_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    SEED_PROMISE_ALWAYS,
    Capabilities,
    Model,
)

from services.common.catalog import CatalogError
from services.common.texts import open_text
from services.generation.backends import NEVER_STARTED, End, Job, Piece, Round
from services.generation.catalog import RecordedEntry

CHARS_A_TOKEN = 4
"""Where a recording has characters and no tokens, tokens are estimated by this."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One recorded sample."""

    text: str
    tokens: int


class RecordedBackend:
    """Plays one model's recording."""

    def __init__(self, entry: RecordedEntry, folder: Path, currency: str) -> None:
        """Read the recording; raises CatalogError where it is missing or damaged."""
        self._samples = read(folder / entry.path, entry.model or entry.name)
        if not self._samples:
            raise CatalogError(
                f"model {entry.name}: {entry.path} has no samples of {entry.model or entry.name!r}"
            )
        self.model = Model(
            name=entry.name,
            backend="recorded",
            shape=entry.shape.message(),
            price=entry.price.message(currency),
            capabilities=Capabilities(
                seed=SEED_PROMISE_ALWAYS,
                abort_one=True,
                samples=min(len(samples) for samples in self._samples.values()),
            ),
        )

    async def run(self, round: Round) -> None:
        """Play the samples of all jobs, in order; a job that is aborted by then is not played."""
        # All are found before one is played: a round that cannot be played costs nothing.
        found = [self._find(job) for job in round.jobs]
        for job, recorded in zip(round.jobs, found, strict=True):
            if round.aborted(job.sample_id):
                round.put(Piece(job.sample_id, end=NEVER_STARTED))
                continue
            most = job.sampling.max_tokens
            if most and recorded.tokens > most:
                round.put(Piece(job.sample_id, tokens=most, end=End(FINISH_REASON_LENGTH, 0)))
            else:
                end = End(FINISH_REASON_STOP, 0)
                round.put(Piece(job.sample_id, recorded.text, recorded.tokens, end=end))
            # Let the caller read, and say that it has seen enough.
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Nothing to let go of."""

    def _find(self, job: Job) -> Recorded:
        if job.prefix:
            raise InvalidArgument("branches", "a recording cannot continue a prefix")
        prompt = job.messages[-1].content
        samples = self._samples.get(prompt)
        if samples is None:
            raise InvalidArgument("messages", f"{self.model.name} has no recording of this query")
        if job.index >= len(samples):
            raise FailedPrecondition(
                f"{self.model.name} has {len(samples)} recorded samples of this query: ask for no more"
            )
        return samples[order(job.sampling.seed, self.model.name, prompt, len(samples))[job.index]]


@lru_cache(maxsize=1024)
def order(seed: int, model: str, prompt: str, count: int) -> tuple[int, ...]:
    """The places in the recording of a query's `count` samples from a model, in the order of play."""
    places = list(range(count))
    random.Random(f"{seed}/{model}/{prompt}").shuffle(places)
    return tuple(places)


def read(path: Path, model: str) -> dict[str, list[Recorded]]:
    """The samples of `model`, by prompt; raises CatalogError."""
    found: dict[str, list[Recorded]] = {}
    number = 0
    try:
        with open_text(path) as lines:
            for number, line in enumerate(lines, start=1):  # noqa: B007 (the error names it)
                row = json.loads(line)
                if row["model"] == model and row.get("deep") is None:
                    samples = [_sample(sample) for sample in row["samples"]]
                    found.setdefault(row.get("prompt") or row["query_id"], []).extend(samples)
    except OSError as error:
        raise CatalogError(f"recording {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zlib.error) as error:
        raise CatalogError(f"recording {path}: line {number} is not a recorded query ({error!r})") from None
    return found


def _sample(row: dict[str, object]) -> Recorded:
    answer = row.get("answer")
    text = str(row.get("text") or ("" if answer is None else f"\\boxed{{{answer}}}"))
    tokens = row.get("tokens")
    if tokens is None:
        tokens = -(-int(str(row.get("chars") or len(text))) // CHARS_A_TOKEN)
    recorded = Recorded(text, int(str(tokens)))
    if recorded.tokens < 0:
        raise ValueError("negative tokens")
    return recorded
