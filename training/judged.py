"""Step labels by the judge: solutions of the models, each line right or wrong, in the form of PRM800K.

    python -m training.judged --models abacus-s,abacus-m --problems 6000 --chains 2 --output labels.jsonl
    python -m training.judged --split heldout --chains 2 --output heldout.jsonl
    python -m training.judged --models draft --problems 20000 --output drafts.jsonl
    python -m training.judged --models none --problems 3000 --output problems.jsonl

Problems of split `train` are drawn afresh, with another seed than any model's training, from all groups;
those of `heldout` and `calibration` are the files'. As in PRM800K, a chain's labels end with its first
mistake. A completion carries the kind of mistake as `error` (see `problems.Verdict`). Resumable: solutions
that are in the file are kept. `draft` is no model: solutions with made-up mistakes, as those that critiques
are taught on, and quickly made anew each time. `none` writes the problems alone, for `isoflop label-steps`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.progress import Progress

from services.common.settings import MODELS
from training import rows
from training.expressions import parse
from training.labels import Judged, row_of
from training.problems import (
    GROUPS,
    Split,
    draw_from_split,
    draw_kind,
    extract_answer,
    first_wrong,
    judge_solution,
)
from training.sampling import open_generation, sample_round
from training.solutions import draft
from training.splits import Problem, first_of_each_group

SAMPLES_AT_A_TIME = 48
"""Of each model: enough to keep its slots full."""
SEED = 40_000
"""Of the first solution of each problem."""


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


def label(problem: Problem, model: str, index: int, text: str) -> str:
    """The row of one solution, its newline included."""
    lines = text.split("\n")
    verdicts = judge_solution(problem.answer, lines)
    wrong = first_wrong(verdicts)
    end = len(lines) if wrong is None else wrong + 1
    answer = extract_answer(text)
    return row_of(
        problem.prompt,
        problem.answer,
        [
            Judged(line, 1 if verdict.is_right else -1, error=verdict.error)
            for line, verdict in zip(lines[:end], verdicts[:end], strict=True)
        ],
        query_id=problem.query_id,
        reached=answer == problem.answer,
        answer=answer,
        model=model,
        sample=index,
        group=problem.group,
        kind=problem.kind,
        completion=text,
    )


def labelled(path: Path) -> set[tuple[str, str]]:
    """Model and query_id of the rows that are there already."""
    return {(row["model"], row["question"]["query_id"]) for row in rows.read(path)}


def drafted(count: int, seed: int, output: Path) -> None:
    """Label `count` drafts with made-up mistakes: a model seldom errs on what is easy, so its own solutions
    teach a verifier which problems are hard sooner than which lines are wrong."""
    rng = random.Random(f"isoflop-drafted-2:{seed}")
    with output.open("w", encoding="utf-8") as file:
        for problem in training_problems(count, seed + 1_000_000):
            lines, _ = draft(rng, parse(problem.expression), restate=problem.kind != "expression")
            file.write(label(problem, "draft", 0, "\n".join(lines)))


async def make(
    catalog: Path,
    models: Sequence[str],
    problems: Sequence[Problem],
    chains: int,
    temperature: float,
    output: Path,
) -> None:
    """Label what is not in `output` yet, and add it there."""
    rows.mend(output)
    done = labelled(output)
    async with open_generation(catalog, whole=True) as generation:
        with Progress() as progress, output.open("a", encoding="utf-8") as file:
            bars = {model: progress.add_task(model, total=len(problems)) for model in models}

            async def one(model: str, problem: Problem, turn: asyncio.Semaphore) -> None:
                async with turn:
                    if (model, problem.query_id) not in done:
                        round = await sample_round(
                            generation,
                            model,
                            problem.prompt,
                            samples=chains,
                            temperature=temperature,
                            seed=SEED,
                        )
                        labels = (label(problem, model, at, s.text) for at, s in enumerate(round.samples))
                        file.write("".join(labels))
                    progress.advance(bars[model])

            async with asyncio.TaskGroup() as tasks:
                for model in models:
                    turn = asyncio.Semaphore(max(2, SAMPLES_AT_A_TIME // chains))
                    for problem in problems:
                        tasks.create_task(one(model, problem, turn))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m training.judged",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--catalog", type=Path, default=MODELS / "catalog.yaml", help="where they are listed")
    parser.add_argument("--models", default="abacus-s,abacus-m", help="which models' solutions")
    parser.add_argument("--split", choices=["train", "calibration", "heldout"], default="train")
    parser.add_argument("--problems", type=int, default=1000, help="how many, of all groups alike")
    parser.add_argument("--chains", type=int, default=2, help="solutions of each problem by each model")
    parser.add_argument("--temperature", type=float, default=0.8, help="of the solutions")
    parser.add_argument("--seed", type=int, default=1, help="of the problems that are drawn")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    if arguments.models == "draft":
        drafted(arguments.problems, arguments.seed, arguments.output)
        return
    split: Split = arguments.split
    problems = (
        training_problems(arguments.problems, arguments.seed)
        if split == "train"
        else first_of_each_group(f"{split}.jsonl", arguments.problems)
    )
    if arguments.models == "none":
        arguments.output.write_text("".join(json.dumps(asdict(problem)) + "\n" for problem in problems))
        return
    asyncio.run(
        make(
            arguments.catalog,
            arguments.models.split(","),
            problems,
            arguments.chains,
            arguments.temperature,
            arguments.output,
        )
    )


if __name__ == "__main__":
    main()
