"""Scaling laws of stored samples: which form predicts more samples, and where the ceilings are.

    python -m benchmarks.scaling [--store build/samples] [--recordings ../shared/data/recordings]

Reads what `make bench-headlines` has sampled of the embedded models, and recordings of real ones (see
`training/scaling.py` for how); makes no samples itself. What is not there is left out, and the page says so.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.progress import Progress

from benchmarks.headlines import Options, Places, Run
from benchmarks.headlines_data import NotMeasured
from benchmarks.headlines_data import Samples as Stored
from benchmarks.scaling_report import Measured, write_page
from router.scaling import Strategy
from services.aggregation.answers import expression_key
from services.common.catalog import CatalogError
from training.resampling import NO_ANSWER
from training.scaling import Outcomes, difficulties, scaling

ROOT: Final = Path(__file__).resolve().parent.parent
RECORDINGS: Final = {"math500": "MATH-500", "gpqa_diamond": "GPQA diamond", "aime2024": "AIME 2024"}
"""Files, without .jsonl.gz, and what they are of."""
BLANK: Final = "unextractable"
"""What recordings have where no answer could be read."""


@dataclass(frozen=True)
class Queries:
    """A set of queries with the samples of its models."""

    name: str
    title: str
    models: list[Outcomes]


def embedded(store: Path) -> Queries:
    """The embedded models on the held-out problems; raises NotMeasured, CatalogError and OSError."""
    run = Run(Options(), Places(store=store), workers=1, slots=1)
    told = run.measured()
    for one in told:
        if one.most < 2:
            raise NotMeasured(f"one sample of each problem from {one.name} is stored")
    return Queries(
        "abacus",
        f"Abacus, {len(run.heldout)} held-out problems",
        [
            _outcomes(
                one.name,
                run.options.temperature,
                one.samples,
                one.scoring if one.verified else "",
                run.verifier,
            )
            for one in told
        ],
    )


def _outcomes(
    model: str, temperature: float, samples: Sequence[Stored], rule: str, verifier: str
) -> Outcomes:
    return Outcomes(
        model,
        temperature,
        np.array([one.answers for one in samples]),
        np.array([one.right for one in samples]),
        np.array([one.scores[rule] for one in samples]) if rule else None,
        verifier if rule else "",
    )


def recorded(path: Path, title: str) -> Queries:
    """Recorded samples of several models: right as the recording says; wrong answers that are written alike
    but for LaTeX habits are the same. Raises OSError, and ValueError for what is no recording.
    """
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            rows.setdefault(row["model"], {})[row["query_id"]] = row["samples"]
    common = sorted(set.intersection(*(set(told) for told in rows.values())))
    models = []
    for model, told in sorted(rows.items()):
        most = min(len(told[query_id]) for query_id in common)
        numbered = [_numbered(told[query_id][:most]) for query_id in common]
        right = np.array([0 if 0 in answers else NO_ANSWER for answers in numbered])
        models.append(Outcomes(model, None, np.array(numbered), right))
    return Queries(path.name.split(".")[0], f"{title}, {len(common)} queries", models)


def _numbered(samples: Sequence[dict[str, Any]]) -> list[int]:
    """A number for each answer: 0 for right ones."""
    wrong: dict[str, int] = {}
    numbers = []
    for sample in samples:
        answer = sample["answer"]
        if answer is None or answer == BLANK:
            numbers.append(NO_ANSWER)
        elif sample["correct"]:
            numbers.append(0)
        else:
            numbers.append(wrong.setdefault(expression_key(answer), len(wrong) + 1))
    return numbers


def measure(queries: Queries, done: Callable[[], None]) -> Measured:
    """The laws of all models, strategies and bins; `done` is called after each model and strategy."""
    difficulty = difficulties(queries.models)
    laws = []
    for strategy, one in work(queries):
        laws += scaling(one, difficulty, strategy)
        done()
    return Measured(queries.name, queries.title, laws)


def work(queries: Queries) -> list[tuple[Strategy, Outcomes]]:
    """What is measured, strategy by strategy."""
    names = dict.fromkeys(name for one in queries.models for name in one.strategies)
    return [(name, one) for name in names for one in queries.models if name in one.strategies]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--store", type=Path, default=Places().store, help="folder of samples and scores")
    parser.add_argument(
        "--recordings", type=Path, default=ROOT.parent / "shared" / "data" / "recordings", help="their folder"
    )
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results", help="for scaling.json"
    )
    parser.add_argument(
        "--page", type=Path, default=ROOT / "docs" / "results" / "scaling.md", help="pictures beside it"
    )
    given = parser.parse_args(arguments)
    ways: dict[str, Callable[[], Queries]] = {"Abacus": lambda: embedded(given.store)}
    for name, title in RECORDINGS.items():
        path = given.recordings / f"{name}.jsonl.gz"
        ways[title] = lambda path=path, title=title: recorded(path, title)  # type: ignore[misc]
    found, left_out = list[Measured](), dict[str, str]()
    with Progress() as progress:
        for name, read in ways.items():
            try:
                queries = read()
            except OSError as error:
                left_out[name] = f"{error.filename and Path(error.filename).name}: {error.strerror}"
            except (NotMeasured, CatalogError) as error:
                left_out[name] = str(error)
            else:
                task = progress.add_task(name, total=len(work(queries)))
                found.append(measure(queries, lambda task=task: progress.advance(task)))  # type: ignore[misc]
    for name, reason in left_out.items():
        print(f"{name} is left out: {reason}")
    if not found:
        raise SystemExit("bench-scaling: there are no samples: run `make bench-headlines` first")
    write_page(given.page, given.results / "scaling.json", found, left_out)


if __name__ == "__main__":
    main()
