"""Sample the models on held-out problems through llama.cpp; write the card.

`python -m training.evaluate` samples PROBLEMS_PER_GROUP problems of each
group, keeps every text under build/evaluation/, and writes models/README.md
from those files alone: the card is never edited by hand.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.progress import Progress

from training.engine import PARALLEL, Engine
from training.problems import GROUPS, extract_answer
from training.splits import Row, read_rows

ROOT: Final = Path(__file__).resolve().parent.parent
MODELS: Final = ROOT / "models"
EVALUATION: Final = ROOT / "build" / "evaluation"

SAMPLES: Final = 16
TEMPERATURE: Final = 1.0
PROBLEMS_PER_GROUP: Final = 15
CONTEXT: Final = 1024
_REQUEST_SAMPLES: Final = 8  # half the slots, so that a long sample idles few
_SEED: Final = 1


@dataclass(frozen=True)
class Outcome:
    """What a model did with one problem."""

    group: int
    answer: str
    greedy: str | None
    sampled: list[str | None]
    """The answer of each sample, None where there is none."""
    tokens: list[int]
    """Generated tokens of each sample."""


def sample_problem(engine: Engine, row: Row, temperature: float) -> dict[str, Any]:
    """One greedy and SAMPLES sampled completions of a problem, as one record."""
    prompt = row["prompt"] + "\n"
    greedy = engine.complete(prompt, samples=1, temperature=0.0)[0]
    sampled = []
    for first in range(0, SAMPLES, _REQUEST_SAMPLES):
        sampled += engine.complete(
            prompt, samples=_REQUEST_SAMPLES, temperature=temperature, seed=_SEED + first
        )
    return {
        **row,
        "temperature": temperature,
        "greedy": greedy.text,
        "greedy_tokens": greedy.tokens,
        "samples": [completion.text for completion in sampled],
        "sample_tokens": [completion.tokens for completion in sampled],
        "finished": [completion.is_finished for completion in sampled],
    }


def sample_problems(path: Path, rows: Sequence[Row], temperature: float) -> list[dict[str, Any]]:
    """The records of all rows, in their order, with a progress bar."""
    engine = Engine(path, CONTEXT)
    with Progress() as progress, ThreadPoolExecutor(2 * PARALLEL // _REQUEST_SAMPLES) as pool:
        bar = progress.add_task(path.stem, total=len(rows))
        records = []
        for record in pool.map(lambda row: sample_problem(engine, row, temperature), rows):
            records.append(record)
            progress.advance(bar)
    return records


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write gzipped JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        for record in records:
            stream.write(json.dumps(record) + "\n")


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read gzipped JSON lines."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def outcome_of(record: dict[str, Any]) -> Outcome:
    """The answers of a record."""
    return Outcome(
        group=record["group"],
        answer=record["answer"],
        greedy=extract_answer(record["greedy"]),
        sampled=[extract_answer(text) for text in record["samples"]],
        tokens=record["sample_tokens"],
    )


def majority_accuracy(outcome: Outcome) -> float:
    """Chance that the vote of all samples is right, ties broken by lot."""
    votes = Counter(answer for answer in outcome.sampled if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    leaders = [answer for answer, count in votes.items() if count == most]
    return (outcome.answer in leaders) / len(leaders)


def pass_at(k: int, samples: int, right: int) -> float:
    """Chance that at least one of k out of `samples` samples is right (unbiased)."""
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


@dataclass(frozen=True)
class Summary:
    """Accuracies of one model on one group of problems."""

    problems: int
    greedy: float
    one_sample: float
    majority: float
    pass_4: float
    pass_16: float
    tokens: float


def summarize(outcomes: Sequence[Outcome]) -> Summary:
    """Means over the problems of a group."""

    def mean(values: Iterable[float]) -> float:
        listed = list(values)
        return sum(listed) / len(listed)

    rights = [sum(answer == o.answer for answer in o.sampled) for o in outcomes]
    return Summary(
        problems=len(outcomes),
        greedy=mean(float(o.greedy == o.answer) for o in outcomes),
        one_sample=mean(right / len(o.sampled) for o, right in zip(outcomes, rights, strict=True)),
        majority=mean(majority_accuracy(o) for o in outcomes),
        pass_4=mean(pass_at(4, SAMPLES, right) for right in rights),
        pass_16=mean(pass_at(16, SAMPLES, right) for right in rights),
        tokens=mean(sum(o.tokens) / len(o.tokens) for o in outcomes),
    )


def evaluate(name: str, per_group: int = PROBLEMS_PER_GROUP, temperature: float = TEMPERATURE) -> None:
    """Sample one model and keep its records and speed under build/evaluation/."""
    heldout = read_rows("heldout.jsonl")
    rows = [row for group in GROUPS for row in [row for row in heldout if row["group"] == group][:per_group]]
    began = time.monotonic()
    records = sample_problems(MODELS / f"{name}.gguf", rows, temperature)
    seconds = time.monotonic() - began
    write_records(EVALUATION / f"{name}.jsonl.gz", records)
    tokens = sum(record["greedy_tokens"] + sum(record["sample_tokens"]) for record in records)
    speed = {"seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds}
    (EVALUATION / f"{name}.speed.json").write_text(json.dumps(speed) + "\n")


def evaluate_and_write_card(names: Sequence[str]) -> None:
    """Evaluate `names`, then write the card of every model evaluated so far."""
    from training.card import write_card

    for name in names:
        evaluate(name)
    write_card()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", default="s,m,l", help="which of s,m,l (default: all)")
    parser.add_argument("--per-group", type=int, default=PROBLEMS_PER_GROUP)
    parser.add_argument("--card-only", action="store_true", help="write the card, sample nothing")
    arguments = parser.parse_args()
    if not arguments.card_only:
        for letter in arguments.models.split(","):
            evaluate(f"abacus-{letter}", arguments.per_group)
    from training.card import write_card

    write_card()


if __name__ == "__main__":
    main()
