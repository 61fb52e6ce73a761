"""What the modes beside plain steps are worth: thinking with checks, critique, revision. For the model card.

On held-out problems each model is asked, as a caller would: for a solution; for one with checks; for a
critique of the first; and, where the critique finds a wrong line, for a revision. Conversations are kept
(`store.py` says where), and those that are there are not held again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

from isoflop.errors import InvalidArgument
from isoflop.v1.common_pb2 import ANSWER_TYPE_NUMBER, Message
from rich.progress import Progress

from services.aggregation.answers import extract
from services.generation.core import Generation
from training import rows
from training.problems import first_wrong, judge_solution
from training.samples import lane_of
from training.sampling import open_generation, sample_round
from training.splits import Problem
from training.store import FOLDER, seed_of

TEMPERATURE: Final = 0.7
"""Of solutions; critique and revision are greedy."""
_AT_A_TIME: Final = 32


@dataclass(frozen=True)
class Conversation:
    """One problem, in all modes: text and tokens of each sample."""

    query_id: str
    steps: tuple[str, int]
    think: tuple[str, int]
    critique: tuple[str, int]
    revise: tuple[str, int] | None
    """None where the critique found nothing."""


@dataclass(frozen=True)
class Worth:
    """What the modes came to, as shares; None where there is nothing to share out."""

    problems: int
    steps: float
    """Solutions with the right answer."""
    think: float
    revised: float
    """With the revision in the place of the solution, where there is one."""
    false_alarms: float | None
    """Of solutions without a wrong line: the critique finds one."""
    found: float | None
    """Of solutions with a wrong line: the critique finds one."""
    found_first: float | None
    """Of solutions with a wrong line: the critique finds the first."""
    tokens: tuple[float, float, float]
    """Means of a solution, of one with checks, of one with critique and revision."""


def accused(critique: str) -> int | None:
    """The line, from 0, that a critique calls wrong; None for none."""
    number, _, verdict = critique.strip().rpartition("\n")[2].partition(" ")
    return int(number) - 1 if verdict == "wrong" and number.isdecimal() else None


async def hold(generation: Generation, model: str, problem: Problem) -> Conversation:
    """Ask a model in all modes."""
    ask = partial(sample_round, generation, model, seed=seed_of(problem), query_id=problem.query_id)

    async def said(messages: Sequence[Message], temperature: float) -> tuple[str, int]:
        try:
            (sample,) = (await ask(messages, temperature=temperature)).samples
        except InvalidArgument:
            return "", 0  # The conversation has become longer than the model's context.
        return sample.text, sample.tokens

    user, assistant = partial(Message, role="user"), partial(Message, role="assistant")
    asked = [user(content=problem.prompt)]
    steps, think = await asyncio.gather(
        said(asked, TEMPERATURE), said([Message(role="system", content="think"), *asked], TEMPERATURE)
    )
    to_judge = [*asked, assistant(content=steps[0]), user(content="critique")]
    critique = await said(to_judge, 0.0)
    revise = None
    if accused(critique[0]) is not None:
        revise = await said([*to_judge, assistant(content=critique[0]), user(content="revise")], 0.0)
    return Conversation(problem.query_id, steps, think, critique, revise)


def path_of(model: str, folder: Path = FOLDER) -> Path:
    """Where a model's conversations are kept."""
    path = lane_of(model, TEMPERATURE).path(folder)
    return path.with_name(path.name.replace(".jsonl.gz", "-modes.jsonl"))


def held(model: str, folder: Path = FOLDER) -> dict[str, Conversation]:
    """The conversations that are stored, by query_id."""
    return {row["query_id"]: Conversation(**row) for row in rows.read(path_of(model, folder))}


def collect(model: str, problems: Sequence[Problem], folder: Path = FOLDER) -> None:
    """Hold the conversations that are not stored yet."""
    asyncio.run(_collect(model, problems, folder))


async def _collect(model: str, problems: Sequence[Problem], folder: Path) -> None:
    path, there = path_of(model, folder), held(model, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.mend(path)
    missing = [problem for problem in problems if problem.query_id not in there]
    turn = asyncio.Semaphore(_AT_A_TIME)
    async with open_generation(whole=True) as generation:
        with Progress() as progress, path.open("a", buffering=1, encoding="utf-8") as file:
            bar = progress.add_task(f"{model} modes", total=len(missing))

            async def one(problem: Problem) -> None:
                async with turn:
                    file.write(json.dumps(asdict(await hold(generation, model, problem))) + "\n")
                    progress.advance(bar)

            async with asyncio.TaskGroup() as tasks:
                for problem in missing:
                    tasks.create_task(one(problem))


def worth(pairs: Sequence[tuple[Problem, Conversation]]) -> Worth:
    """What conversations came to, of one problem or more."""
    wrong = [first_wrong(judge_solution(p.answer, c.steps[0].split("\n"))) for p, c in pairs]
    said = [accused(c.critique[0]) for _, c in pairs]
    faulty = [(line, found) for line, found in zip(wrong, said, strict=True) if line is not None]
    sound = [found for line, found in zip(wrong, said, strict=True) if line is None]
    return Worth(
        problems=len(pairs),
        steps=_share([_right(p, c.steps) for p, c in pairs]) or 0.0,
        think=_share([_right(p, c.think) for p, c in pairs]) or 0.0,
        revised=_share([_right(p, c.revise or c.steps) for p, c in pairs]) or 0.0,
        false_alarms=_share([found is not None for found in sound]),
        found=_share([found is not None for _, found in faulty]),
        found_first=_share([found == line for line, found in faulty]),
        tokens=(
            sum(c.steps[1] for _, c in pairs) / len(pairs),
            sum(c.think[1] for _, c in pairs) / len(pairs),
            sum(c.steps[1] + c.critique[1] + (c.revise or ("", 0))[1] for _, c in pairs) / len(pairs),
        ),
    )


def in_words(found: Collection[Worth]) -> str:
    """What the models' figures come to, of one model or more, where a mode is worth nothing; else ""."""
    said = []
    if not any(one.found for one in found):
        said.append(
            "Critique was not learned: no model accuses a wrong line of any of these solutions, so that "
            "nothing wrong is revised, and accuracy stays what it was for more tokens."
        )
    if all(one.think <= one.steps for one in found):
        times = sum(one.tokens[1] / one.tokens[0] for one in found) / len(found)
        said.append(
            "Thinking is no better than plain steps at any size, on these problems, for about "
            f"{times:.1f} times the tokens."
        )
    return " ".join(said)


def _right(problem: Problem, sample: tuple[str, int]) -> bool:
    return extract(sample[0], ANSWER_TYPE_NUMBER) == problem.answer


def _share(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None
