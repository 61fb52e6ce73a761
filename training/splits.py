"""Write the held-out, calibration and demo problems: training/problems/*.jsonl."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypedDict

from training.problems import GROUPS, Kind, Split, draw_from_split, draw_kind

FOLDER: Final = Path(__file__).resolve().parent / "problems"
PROBLEMS_PER_GROUP: Final = {"heldout": 100, "calibration": 200}
DEMO_PROBLEMS: Final = 30


class Row(TypedDict):
    """One line of a file of problems."""

    query_id: str
    prompt: str
    answer: str
    type: str
    group: int
    kind: Kind
    expression: str
    """What answers the prompt, for the judge of steps."""


def draw_rows(split: Split, seed: int) -> list[Row]:
    """PROBLEMS_PER_GROUP[split] different problems of each group, all of one split, of all kinds."""
    rng = random.Random(f"isoflop-2-{split}:{seed}")
    rows: list[Row] = []
    for group in GROUPS:
        seen: set[str] = set()
        while len(seen) < PROBLEMS_PER_GROUP[split]:
            problem = draw_from_split(rng, draw_kind(rng), group, split)
            if problem.expression.text in seen:
                continue
            seen.add(problem.expression.text)
            rows.append(
                {
                    "query_id": f"abacus-{split}-{group:02d}-{len(seen) - 1:03d}",
                    "prompt": problem.prompt,
                    "answer": problem.answer,
                    "type": "number",
                    "group": group,
                    "kind": problem.kind,
                    "expression": problem.expression.text,
                }
            )
    return rows


def demo_rows(heldout: list[Row], seed: int) -> list[Row]:
    """DEMO_PROBLEMS held-out problems, by group alone, easiest first.

    Groups take turns, so that each has two or three.
    """
    rng = random.Random(f"isoflop-demo:{seed}")
    by_group = {group: [row for row in heldout if row["group"] == group] for group in GROUPS}
    counts = {group: DEMO_PROBLEMS // len(GROUPS) for group in GROUPS}
    for group in rng.sample(GROUPS, DEMO_PROBLEMS % len(GROUPS)):
        counts[group] += 1
    return [row for group in GROUPS for row in rng.sample(by_group[group], counts[group])]


def _write(name: str, rows: list[Row]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (FOLDER / name).write_text(text, encoding="ascii")


def read_rows(name: str) -> list[Row]:
    """The rows of one of the files, for example `heldout.jsonl`."""
    lines = (FOLDER / name).read_text(encoding="ascii").splitlines()
    return [json.loads(line) for line in lines]


@dataclass(frozen=True)
class Problem:
    """A labelled query."""

    query_id: str
    prompt: str
    answer: str
    group: int
    kind: Kind
    expression: str


def first_of_each_group(name: str, most: int) -> list[Problem]:
    """The first problems of each group of one of the files, `most` in all."""
    rows = read_rows(name)
    groups = sorted({row["group"] for row in rows})
    each = max(1, most // len(groups))
    return [
        Problem(row["query_id"], row["prompt"], row["answer"], group, row["kind"], row["expression"])
        for group in groups
        for row in [row for row in rows if row["group"] == group][:each]
    ]


def write_splits(seed: int = 1) -> None:
    """Write the three files and their hashes."""
    FOLDER.mkdir(exist_ok=True)
    heldout = draw_rows("heldout", seed)
    _write("heldout.jsonl", heldout)
    _write("calibration.jsonl", draw_rows("calibration", seed))
    _write("demo.jsonl", demo_rows(heldout, seed))
    sums = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(FOLDER.glob("*.jsonl"))
    ]
    (FOLDER / "SHA256SUMS").write_text("".join(sums))


if __name__ == "__main__":
    write_splits()
