"""Step labels by the judge: solutions of the models, each line right or wrong, in the form of PRM800K.

    python -m training.judged --models abacus-s,abacus-m --problems 6000 --chains 2 --output labels.jsonl
    python -m training.judged --split heldout --chains 2 --output heldout.jsonl

Problems of split `train` are drawn afresh, with another seed than any model's training, from all groups;
those of `heldout` and `calibration` are the files'. As in PRM800K, a chain's labels end with its first
mistake. A completion carries the kind of mistake as `error` (see `problems.Verdict`). Resumable: solutions
that are in the file are kept.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from isoflop.v1.common_pb2 import Message, Sampling
from isoflop.v1.generation_pb2 import Branch, GenerateRequest, StartRound
from prometheus_client import CollectorRegistry
from rich.progress import Progress

from services.common.settings import MODELS
from services.generation.core import Generation
from services.generation.engines import open_backends
from services.generation.settings import GenerationSettings
from training.problems import GROUPS, Split, draw_from_split, draw_kind, first_wrong, judge_solution
from training.splits import Problem, first_of_each_group

ROUNDS = 3
"""Rounds at a time of each model: enough to keep its slots full."""


def training_problems(count: int, seed: int) -> list[Problem]:
    """Fresh problems of the train split, of all groups alike."""
    rng = random.Random(f"isoflop-judged-2:{seed}")
    drawn = [
        (group, draw_from_split(rng, draw_kind(rng), group, "train"))
        for group in rng.choices(GROUPS, k=count)
    ]
    return [
        Problem(f"abacus-judged-{seed}-{at:05d}", p.prompt, p.answer, group, p.kind, p.expression.text)
        for at, (group, p) in enumerate(drawn)
    ]


def label(problem: Problem, model: str, index: int, text: str) -> dict[str, Any]:
    """The row of one solution."""
    lines = text.split("\n")
    verdicts = judge_solution(problem.answer, lines)
    wrong = first_wrong(verdicts)
    labelled = len(lines) if wrong is None else wrong + 1
    steps = []
    for line, verdict in zip(lines[:labelled], verdicts, strict=False):
        completion: dict[str, Any] = {"text": line, "rating": 1 if verdict.is_right else -1}
        if verdict.error:
            completion["error"] = verdict.error
        steps.append({"completions": [completion], "chosen_completion": 0 if verdict.is_right else None})
    return {
        "model": model,
        "sample": index,
        "group": problem.group,
        "kind": problem.kind,
        "question": {
            "problem": problem.prompt,
            "ground_truth_answer": problem.answer,
            "query_id": problem.query_id,
        },
        "label": {"steps": steps, "finish_reason": "solution" if wrong is None else "found_error"},
        "completion": text,
    }


async def solutions(
    generation: Generation, model: str, problem: Problem, chains: int, temperature: float, seed: int
) -> list[str]:
    """Texts of one round."""

    async def requests() -> AsyncIterator[GenerateRequest]:
        yield GenerateRequest(
            start=StartRound(
                query_id=problem.query_id,
                model=model,
                messages=[Message(role="user", content=problem.prompt)],
                branches=[Branch(samples=chains)],
                sampling=Sampling(temperature=temperature, seed=seed),
            )
        )

    return [r.sample.text async for r in generation.generate(requests()) if r.HasField("sample")]


def labelled(path: Path) -> set[tuple[str, str]]:
    """Model and query_id of the rows that are there already."""
    if not path.exists():
        return set()
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {(row["model"], row["question"]["query_id"]) for row in rows}


async def make(
    models: Sequence[str], problems: Sequence[Problem], chains: int, temperature: float, output: Path
) -> None:
    """Label what is not in `output` yet, and add it there."""
    done = labelled(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    backends = open_backends(MODELS / "catalog.yaml")
    generation = Generation(GenerationSettings(), backends, CollectorRegistry())
    known = {backend.model.name for backend in backends}
    if unknown := set(models) - known:
        raise SystemExit(f"no model {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    try:
        with Progress() as progress, output.open("a", encoding="utf-8") as file:
            bars = {model: progress.add_task(model, total=len(problems)) for model in models}

            async def one(model: str, problem: Problem, turn: asyncio.Semaphore) -> None:
                async with turn:
                    if (model, problem.query_id) not in done:
                        texts = await solutions(generation, model, problem, chains, temperature, 40_000)
                        rows = [label(problem, model, index, text) for index, text in enumerate(texts)]
                        file.write("".join(json.dumps(row) + "\n" for row in rows))
                    progress.advance(bars[model])

            async with asyncio.TaskGroup() as tasks:
                for model in models:
                    turn = asyncio.Semaphore(ROUNDS * max(1, 16 // chains))
                    for problem in problems:
                        tasks.create_task(one(model, problem, turn))
    finally:
        await generation.close()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m training.judged",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", default="abacus-s,abacus-m", help="which models' solutions")
    parser.add_argument("--split", choices=["train", "calibration", "heldout"], default="train")
    parser.add_argument("--problems", type=int, default=1000, help="how many, of all groups alike")
    parser.add_argument("--chains", type=int, default=2, help="solutions of each problem by each model")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1, help="of the problems that are drawn")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    split: Split = arguments.split
    problems = (
        training_problems(arguments.problems, arguments.seed)
        if split == "train"
        else first_of_each_group(f"{split}.jsonl", arguments.problems)
    )
    asyncio.run(
        make(arguments.models.split(","), problems, arguments.chains, arguments.temperature, arguments.output)
    )


if __name__ == "__main__":
    main()
