"""`isoflop train-difficulty`: an estimator of difficulty from one's own labelled answers."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from isoflop.text import file_fault
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from services.difficulty.embedding import Embedding, EmbeddingError

if TYPE_CHECKING:
    from training.difficulty_answers import Read

SHOWN_FAULTS = 5
"""Broken lines that are told one by one."""

INPUT = """\
answers, one query under one model a line:
  {"query_id": "q1", "prompt": "What is 6*7?", "model": "m", "right": 9, "samples": 16, "tokens": 41.5}
`right` of `samples` samples were right, and took `tokens` tokens in the mean; the prompt is needed in one
line of each query. `python -m training.difficulty_answers` writes them from recordings.
The estimator that is written is for the difficulty service: isoflop up --estimator FILE
"""


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """train the difficulty estimator on one's own answers"""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = INPUT
    parser.add_argument("--answers", type=Path, required=True, metavar="FILE", help="labelled answers, JSONL")
    parser.add_argument(
        "--output", type=Path, default=Path("difficulty.json"), metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument(
        "--embedding",
        type=Path,
        metavar="FOLDER",
        help="sentence embeddings, from python -m training.embedding",
    )
    parser.add_argument(
        "--folds", type=_folds, default=5, help="of the cross-validation by problem (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return run


def _folds(text: str) -> int:
    count = int(text)
    if not 2 <= count <= 100:
        raise argparse.ArgumentTypeError("from 2 to 100")
    return count


def run(arguments: argparse.Namespace) -> int:
    """Train, tell, write; the exit status. An error is one sentence on standard error."""
    try:
        import scipy  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        return _fail(f"{error.name} is missing: pip install 'isoflop-suite[training]'")
    from training.difficulty_answers import AnswersError, read

    try:
        found = read(arguments.answers)
        _tell(found, arguments.answers)
        record, figures = _train(found, arguments)
    except OSError as error:
        return _fail(file_fault(error))
    except (AnswersError, EmbeddingError) as error:
        return _fail(str(error))
    try:
        arguments.output.write_text(record + "\n", encoding="utf-8")
    except OSError as error:
        return _fail(file_fault(error))
    if arguments.json:
        print(json.dumps(figures, indent=1))
    else:
        Console().print(_table(figures))
        print(f"wrote {arguments.output}")
    return 0


def _fail(sentence: str) -> int:
    print(f"isoflop train-difficulty: {sentence}", file=sys.stderr)
    return 1


def _tell(found: Read, path: Path) -> None:
    """What of the file is left out, on standard error."""
    for fault in found.faults[:SHOWN_FAULTS]:
        print(f"{path}, {fault}", file=sys.stderr)
    if found.faults:
        print(f"{path}: lines that are broken and left out: {len(found.faults)}", file=sys.stderr)
    if found.without_prompt:
        print(
            f"{path}: queries that have no prompt and are left out: {found.without_prompt}", file=sys.stderr
        )


def _train(found: Read, arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The estimator's file, and the figures within it."""
    from training import difficulty
    from training.difficulty_figures import figures

    answers, sentences = found.answers, None
    difficulty.check(answers)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        if arguments.embedding:
            embedding = Embedding(arguments.embedding)
            vectors = [
                embedding.embed([prompt])[0]
                for prompt in progress.track(answers.prompts, description="embedding")
            ]
            sentences = (embedding.name, np.concatenate(vectors))
        task = progress.add_task("training", total=arguments.folds + 1)
        held, ways = difficulty.held_out(
            answers, arguments.folds, sentences, done=lambda: progress.advance(task)
        )
        trained = difficulty.train(answers, arguments.output.stem, sentences)
        progress.advance(task)
    told = {
        "folds": arguments.folds,
        **figures(held, answers.models, answers.right, answers.samples),
        "way": trained.way,
        "way_of_each_fold": ways,
        "rmse": trained.errors,
        "broken_lines": len(found.faults),
        "without_prompt": found.without_prompt,
    }
    record = trained.record.model_copy(update={"figures": told})
    return difficulty.text(record), difficulty.plain(told)


def _table(figures: dict[str, Any]) -> Table:
    """For people."""
    cover = ", ".join(f"{level} %: {100 * share:.0f} %" for level, share in figures["coverage"].items())
    title = (
        f"{figures['queries']} queries held out in {figures['folds']} folds; difficulty from text "
        f"({figures['way']}): rank correlation {figures['spearman'] or math.nan:.2f}; intervals hold {cover}"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("P(one sample is right)")
    for name in ("right", "predicted", "ECE", "Brier skill", "AUC"):
        table.add_column(name, justify="right")
    for name, row in [*figures["models"].items(), ("all", figures)]:
        values = [row[key] for key in ("right", "predicted", "ece", "brier_skill", "auc")]
        table.add_row(name, *("-" if value is None else f"{value:.3f}" for value in values))
    return table
