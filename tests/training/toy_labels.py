"""Step labels of a toy task: sums of small numbers, one addition a line, some of them wrong."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from training.labels import Judged, row_of


def toy_row(rng: random.Random, problem: str, model: str, share_wrong: float, **more: Any) -> str:
    """A solution of `1+2+3`; after a mistake the rest follows from it, and is not labelled."""
    numbers = [int(word) for word in problem.split("+")]
    total, steps, is_wrong = numbers[0], [], False
    for number in numbers[1:]:
        said = total + number
        error = ""
        if not is_wrong and rng.random() < share_wrong:
            error = rng.choice(("carry", "digit"))
            said += 10 if error == "carry" else rng.choice((-1, 1))
        text = f"{total}+{number}={said}"
        if is_wrong:
            steps.append(Judged(text))
        else:
            steps.append(Judged(text, -1 if error else 1, error=error))
        is_wrong = is_wrong or bool(error)
        total = said
    steps.append(Judged(f"answer: {total}", None if is_wrong else 1))
    truth = str(sum(numbers))
    return row_of(
        problem,
        truth,
        steps,
        query_id=problem,
        reached=str(total) == truth,
        answer=str(total),
        model=model,
        group=len(numbers) - 1,
        **more,
    )


def toy_problem(rng: random.Random) -> str:
    """A sum of two to five numbers below 40."""
    return "+".join(str(rng.randrange(1, 40)) for _ in range(rng.randint(2, 5)))


def write_toy(
    path: Path, *, problems: int, chains: int, seed: int, models: tuple[str, ...] = ("toy-a", "toy-b")
) -> None:
    """Labels of `chains` solutions of each of `problems` problems by each model."""
    rng = random.Random(seed)
    rows = [
        toy_row(rng, problem, model, 0.15)
        for problem in (toy_problem(rng) for _ in range(problems))
        for model in models
        for _ in range(chains)
    ]
    path.write_text("".join(rows), encoding="utf-8")
