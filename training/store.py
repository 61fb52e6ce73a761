"""Samples are taken once and kept: a file under `build/samples/` for each model, temperature and number."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from isoflop.v1.common_pb2 import ANSWER_TYPE_NUMBER
from rich.progress import Progress

from services.aggregation.answers import extract
from services.generation.core import Generation
from training import rows
from training.sampling import sample_round
from training.splits import Problem

FOLDER: Final = Path(__file__).resolve().parent.parent / "build" / "samples"
SEED: Final = 20_000
"""Of the first sample of each problem."""


@dataclass(frozen=True)
class Sampled:
    """The samples of one problem."""

    texts: list[str]
    answers: list[str | None]
    """As aggregation reads them; None where there is none."""
    tokens: list[int]
    prompt_tokens: int
    seconds: float
    """Of the whole round."""

    def right(self, problem: Problem) -> list[bool]:
        """Which samples have the problem's answer."""
        return [answer == problem.answer for answer in self.answers]


def store_of(model_file: Path, temperature: float, samples: int) -> Path:
    """The file for samples of a model; another content of the model's file is another model."""
    digest = hashlib.sha256(model_file.read_bytes()).hexdigest()[:12]
    return FOLDER / f"{model_file.stem}-{digest}-t{temperature:g}-n{samples}.jsonl"


def read_store(path: Path) -> dict[str, Sampled]:
    """What is stored, by query_id."""
    stored = {}
    for row in rows.read(path):
        query_id = row.pop("query_id")
        stored[query_id] = Sampled(**row)
    return stored


async def collect(
    generation: Generation,
    model_file: Path,
    problems: Sequence[Problem],
    temperature: float,
    samples: int,
    progress: Progress,
    at_a_time: int = 1,
) -> list[Sampled]:
    """Samples of all problems in their order, from the store where it has them.

    Rounds are played `at_a_time`; only where that is 1 do their `seconds` say how fast the model is.
    """
    path = store_of(model_file, temperature, samples)
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = read_store(path)
    rows.mend(path)
    task = progress.add_task(f"{model_file.stem} T={temperature:g} × {samples}", total=len(problems))
    turn = asyncio.Semaphore(at_a_time)
    with path.open("a", buffering=1, encoding="utf-8") as file:

        async def one(problem: Problem) -> None:
            async with turn:
                if problem.query_id not in stored:
                    done = await sample_round(
                        generation,
                        model_file.stem,
                        problem.prompt,
                        samples=samples,
                        temperature=temperature,
                        seed=SEED,
                    )
                    sampled = Sampled(
                        texts=[sample.text for sample in done.samples],
                        answers=[extract(sample.text, ANSWER_TYPE_NUMBER) for sample in done.samples],
                        tokens=[sample.tokens for sample in done.samples],
                        prompt_tokens=(done.usage.prompt_tokens + done.usage.cached_tokens) // samples,
                        seconds=done.seconds,
                    )
                    stored[problem.query_id] = sampled
                    file.write(json.dumps({"query_id": problem.query_id, **asdict(sampled)}) + "\n")
                progress.advance(task)

        async with asyncio.TaskGroup() as tasks:
            for problem in problems:
                tasks.create_task(one(problem))
    return [stored[problem.query_id] for problem in problems]
