"""Labelled calibration answers: how often each model was right on each query.

A JSONL file, one query under one model a line:

    {"query_id": "q1", "prompt": "What is 6*7?", "model": "m", "right": 9, "samples": 16, "tokens": 41.5}

`right` of `samples` samples were right; `tokens` is their mean. `type` and `group` may be there, and are for
people. The prompt is needed in one line of each query. Lines of the same query and model are added up.

    python -m training.difficulty_answers OUT FILE...

writes such a file from recordings (`.jsonl` or `.jsonl.gz`), one query under one model a line:

    {"query_id", "model", "prompt"?, "gold"?, "dataset"?, "samples": [{"correct": true, "tokens": 812}, ...]}

and, with `--problems` for the prompts and truths, from the stores of samples of this project
(`store.py`): a block of a query's samples a line; the name of the file says the model. Queries that are not
among the problems are left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.texts import open_text

Array = NDArray[np.float64]


class AnswersError(Exception):
    """Answers that nothing can be learned from; `str(error)` is one sentence."""


@dataclass(frozen=True, eq=False)
class Answers:
    """Q queries under M models."""

    query_ids: list[str]
    prompts: list[str]
    models: list[str]
    right: Array
    """Shape (Q, M): samples that were right."""
    samples: Array
    """Shape (Q, M); 0 where a model was not asked."""
    tokens: Array
    """Shape (Q, M): mean tokens of a sample; NaN where they are not known."""

    def of(self, chosen: NDArray[Any]) -> Answers:
        """Some of the queries, by a mask or by their numbers."""
        at = np.arange(len(self.prompts))[chosen]
        return Answers(
            [self.query_ids[i] for i in at],
            [self.prompts[i] for i in at],
            self.models,
            self.right[at],
            self.samples[at],
            self.tokens[at],
        )

    @property
    def digest(self) -> str:
        """SHA-256 of all that is here."""
        content = [self.query_ids, self.prompts, self.models]
        numbers = [array.tobytes() for array in (self.right, self.samples, np.nan_to_num(self.tokens))]
        return hashlib.sha256(json.dumps(content).encode() + b"".join(numbers)).hexdigest()


@dataclass(frozen=True)
class Read:
    """A file of answers, and what of it could not be used."""

    answers: Answers
    faults: list[str]
    """One sentence for each broken line, with its number."""
    without_prompt: int
    """Queries that are left out since no line has their prompt."""


def read(path: Path) -> Read:
    """Read a file of answers. Raises OSError, and AnswersError where no line of it is of use."""
    cells: dict[tuple[str, str], tuple[float, float, float]] = {}
    prompts: dict[str, str] = {}
    faults = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = _checked(json.loads(line))
            except AnswersError as error:
                faults.append(f"line {number}: {error}")
                continue
            except (ValueError, RecursionError):
                faults.append(f"line {number}: not JSON")
                continue
            key = (row["query_id"], row["model"])
            right, samples, tokens = cells.get(key, (0.0, 0.0, 0.0))
            more = row["samples"]
            mean = row.get("tokens")
            cells[key] = (
                right + row["right"],
                samples + more,
                tokens + (math.nan if mean is None else mean * more),
            )
            if row.get("prompt"):
                prompts.setdefault(row["query_id"], row["prompt"])
    query_ids = list(dict.fromkeys(query_id for query_id, _ in cells))
    known = [query_id for query_id in query_ids if query_id in prompts]
    if not known:
        why = f"; {faults[0]}" if faults else ""
        raise AnswersError(f"{path}: no query with a prompt and an answer{why}")
    rows = {query_id: at for at, query_id in enumerate(known)}
    models = sorted({model for query_id, model in cells if query_id in rows})
    columns = {model: at for at, model in enumerate(models)}
    table = np.zeros((3, len(known), len(models)))
    for (query_id, model), values in cells.items():
        if query_id in rows:
            table[:, rows[query_id], columns[model]] = values
    with np.errstate(invalid="ignore"):
        means = np.where(table[1] > 0, table[2] / table[1], np.nan)
    answers = Answers(known, [prompts[q] for q in known], models, table[0], table[1], means)
    return Read(answers, faults, len(query_ids) - len(known))


def _checked(row: Any) -> dict[str, Any]:
    """The row; raises AnswersError, which names the field."""
    if not isinstance(row, dict):
        raise AnswersError("not an object")
    for name in ("query_id", "model"):
        if not isinstance(row.get(name), str) or not row[name]:
            raise AnswersError(f"{name} is not a text")
    if not isinstance(row.get("prompt", ""), str | None):
        raise AnswersError("prompt is not a text")
    for name in ("right", "samples"):
        value = row.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 10**9:
            raise AnswersError(f"{name} is not a count")
    if row["samples"] < max(1, row["right"]):
        raise AnswersError("samples are none, or fewer than were right")
    tokens = row.get("tokens")
    number = isinstance(tokens, int | float) and not isinstance(tokens, bool)
    if tokens is not None and not (number and 0 <= tokens < 1e12):
        raise AnswersError("tokens is not a number")
    return row


def normalised(prompt: str) -> str:
    """Prompts that differ in blanks and case only are one problem."""
    return " ".join(prompt.split()).casefold()


def folds(prompts: list[str], count: int, seed: int = 0) -> NDArray[np.int64]:
    """The fold of each query, shape (Q,): drawn by problem, so that none is in two folds."""
    problems = {problem: at for at, problem in enumerate(dict.fromkeys(map(normalised, prompts)))}
    drawn = np.random.default_rng(seed).permutation(len(problems)) % count
    return np.array([drawn[problems[normalised(prompt)]] for prompt in prompts], dtype=np.int64)


def convert(paths: Iterable[Path], problems: Path | None = None) -> Iterator[dict[str, Any]]:
    """Rows of the form above, from records; raises ValueError, which names file and line."""
    known = {row["query_id"]: row for row in map(json.loads, problems.open())} if problems else None
    for path in paths:
        model = re.sub(r"-[0-9a-f]{12}-t[\d.]+$", "", path.name.split(".jsonl")[0])
        with open_text(path) as lines:
            for number, line in enumerate(lines, 1):
                try:
                    record = json.loads(line)
                    if record.get("deep") is not None:
                        continue  # What a strategy made is none of the model's samples.
                    if known is None:
                        yield _of_recording(record)
                    elif record["query_id"] in known:
                        yield _of_store(record, known[record["query_id"]], model)
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise ValueError(f"{path}, line {number}: not a record ({error!r})") from None


def _of_recording(record: dict[str, Any]) -> dict[str, Any]:
    samples = record["samples"]
    right = sum(sample["correct"] is True for sample in samples)
    tokens = [sample["tokens"] for sample in samples if sample.get("tokens") is not None]
    row = {"query_id": record["query_id"], "model": record["model"], "right": right, "samples": len(samples)}
    kept = {
        "prompt": record.get("prompt"),
        "group": record.get("level"),
        "tokens": sum(tokens) / len(tokens) if tokens else None,
    }
    return row | {key: value for key, value in kept.items() if value is not None}


def _of_store(record: dict[str, Any], problem: dict[str, Any], model: str) -> dict[str, Any]:
    samples = record["samples"]
    return {
        **{name: problem[name] for name in ("query_id", "prompt", "type", "group")},
        "model": model,
        "right": sum(sample["right"] for sample in samples),
        "samples": len(samples),
        "tokens": sum(sample["tokens"] for sample in samples) / len(samples),
    }


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a file of answers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument(
        "--problems", type=Path, metavar="FILE", help="JSONL: query_id, prompt, answer, type, group"
    )
    arguments = parser.parse_args()
    try:
        write(arguments.out, convert(arguments.files, arguments.problems))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
