"""`isoflop train-prm`: a step-level verifier from anybody's step labels. Imports torch only when it runs."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from isoflop.errors import FailedPrecondition, InvalidArgument

from training.labels import Labels, LabelsError, check_classes, read, split, trimmed, without_duplicates

SIZES: dict[str, dict[str, int]] = {
    "s": {"width": 64, "layers": 3, "heads": 4, "feed_forward": 128},
    "m": {"width": 112, "layers": 4, "heads": 4, "feed_forward": 256},
    "l": {"width": 160, "layers": 6, "heads": 5, "feed_forward": 384},
}
"""Shapes of verifiers that are trained from nothing, as the abacus models have them."""
CONTEXT = 1024
MOST_TOKENS = 2048
"""Vocabulary of a tokenizer that is learned from the labels."""
CHAINS_PER_STEP = 64
FROM_NOTHING = (0.02, 0.005)
FROM_LANGUAGE_MODEL = (0.005, 0.00125)
"""Peak learning rates of matrices and of the rest; weights that know the language change less."""
CHAT_TEMPLATE = "{{ messages[-1].content }}{{ '\\n' }}"
SHOWN_FAULTS = 5
"""Broken lines that are told one by one."""


@dataclass(frozen=True)
class Wanted:
    """What the command line says."""

    labels: tuple[Path, ...]
    output: Path
    tokenizer: Path | None = None
    init: Path | None = None
    size: str = "m"
    epochs: int = 6
    rate: float = 1.0
    seed: int = 1
    chat_template: str = CHAT_TEMPLATE


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """train a step-level verifier on step labels

    FILE has rows in the form of PRM800K: `isoflop label-steps` makes such a file by roll-outs, and
    training/labels.py says what else may stand in it. What is written to FOLDER is served by the
    verification service as it is. A run that was interrupted goes on where it was.
    """
    parser.add_argument("--labels", type=Path, nargs="+", required=True, metavar="FILE", help="step labels")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("verifier"),
        metavar="FOLDER",
        help="where it is written (default ./verifier)",
    )
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json; else one is learned from the labels"
    )
    parser.add_argument(
        "--init",
        type=Path,
        metavar="FILE",
        help="checkpoint of a language model (build/training/NAME.pt) to start from, with --tokenizer; "
        "its shape counts, and --size does not",
    )
    parser.add_argument(
        "--size", choices=SIZES, default=Wanted.size, help=f"its size, from nothing (default {Wanted.size})"
    )
    parser.add_argument(
        "--epochs", type=int, default=Wanted.epochs, metavar="N", help=f"at most (default {Wanted.epochs})"
    )
    parser.add_argument(
        "--rate", type=float, default=Wanted.rate, metavar="X", help="times the usual learning rate"
    )
    parser.add_argument("--seed", type=int, default=Wanted.seed, metavar="N", help="of weights and order")
    parser.add_argument(
        "--chat-template",
        default=CHAT_TEMPLATE,
        metavar="JINJA",
        help="from messages to the text before the first step (default: the last message and a line end)",
    )

    def run(arguments: argparse.Namespace) -> int:
        wanted = Wanted(**{**vars_of(arguments), "labels": tuple(arguments.labels)})
        report = train(wanted)
        print(report)
        return 0

    return run


def vars_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments that are fields of Wanted; others are the whole command's."""
    return {name: value for name, value in vars(arguments).items() if name in Wanted.__dataclass_fields__}


def need(*packages: str) -> None:
    """Raise FailedPrecondition, and say what to install, where one of these is not there."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise FailedPrecondition(
            f"{', '.join(missing)} not installed, which training needs: pip install 'isoflop-suite[training]'"
        )


def check(wanted: Wanted) -> None:
    """Raise InvalidArgument for what is wrong by itself."""
    if wanted.epochs < 1:
        raise InvalidArgument("epochs", "1 or more")
    if not (math.isfinite(wanted.rate) and wanted.rate > 0):
        raise InvalidArgument("rate", "a number above 0")
    if wanted.init is not None and wanted.tokenizer is None:
        raise InvalidArgument(
            "tokenizer", "weights of a language model need its own tokenizer: give --tokenizer"
        )


def hash_of(paths: Sequence[Path]) -> str:
    """SHA-256 of the contents of files, one after the other. Raises OSError."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def tell_faults(labels: Labels) -> None:
    """Say on standard error which lines were left out."""
    for fault in labels.faults[:SHOWN_FAULTS]:
        print(f"left out: {fault}", file=sys.stderr)
    if len(labels.faults) > SHOWN_FAULTS:
        print(f"left out: {len(labels.faults) - SHOWN_FAULTS} more lines", file=sys.stderr)


def train(wanted: Wanted) -> str:
    """Train, fit, export; what to print.

    Raises InvalidArgument (LabelsError for labels that nothing can be learned from), FailedPrecondition where
    a package is missing, OSError for files, and IsoflopError where training or export fail.
    """
    need("torch", "tokenizers", "onnxruntime", "scipy", "sklearn")
    check(wanted)
    labels = read(wanted.labels)
    tell_faults(labels)
    if not labels.rows:
        raise LabelsError("no line of the files could be read")
    return _train(wanted, labels)


def _train(wanted: Wanted, labels: Labels) -> str:
    from training.labels import place_of
    from training.model import Shape
    from training.prm_data import Encoder, learn_tokenizer, line_ends
    from training.prm_export import write_folder
    from training.prm_figures import (
        auc,
        best_scoring,
        best_threshold,
        brier,
        calibration_error,
        first_error,
        steps_of,
    )
    from training.prm_model import Calibrated, language_model
    from training.prm_train import Recipe, Training, calibrated

    distinct = without_duplicates(labels.chains)
    training, calibration = split(distinct)
    check_classes(training, "the problems to train on")
    check_classes(calibration, "the calibration problems")

    tokenizer = _tokenizer(wanted.tokenizer) if wanted.tokenizer else learn_tokenizer(training, MOST_TOKENS)
    initial = None
    shape = {**SIZES[wanted.size], "vocabulary": tokenizer.get_vocab_size(), "context": CONTEXT}
    if wanted.init is not None:
        try:
            found, initial = language_model(wanted.init)
        except ValueError as error:
            raise InvalidArgument("init", str(error)) from None
        shape = asdict(found)
        if found.vocabulary < tokenizer.get_vocab_size():
            raise InvalidArgument(
                "tokenizer", f"it has {tokenizer.get_vocab_size()} tokens, the model {found.vocabulary}"
            )
    try:
        encoder = Encoder(tokenizer, wanted.chat_template, shape["context"])
    except ValueError as error:
        raise InvalidArgument("chat_template", str(error)) from None

    encoded = [[encoder.encode(trimmed(chain)) for chain in part] for part in (training, calibration)]
    to_train, to_calibrate = ([one for one in part if one is not None] for part in encoded)
    if not to_train or not to_calibrate:
        raise LabelsError(f"almost all chains are longer than the context of {shape['context']} tokens")
    matrix_rate, vector_rate = FROM_NOTHING if initial is None else FROM_LANGUAGE_MODEL
    sha256 = {"labels": hash_of(wanted.labels)}
    sha256["tokenizer"] = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
    if wanted.init is not None:
        sha256["init"] = hash_of([wanted.init])
    recipe = Recipe(
        shape=asdict(Shape(**shape)),
        epochs=wanted.epochs,
        chains_per_step=CHAINS_PER_STEP,
        matrix_rate=matrix_rate * wanted.rate,
        vector_rate=vector_rate * wanted.rate,
        seed=wanted.seed,
        chat_template=wanted.chat_template,
        sha256=sha256,
    )
    if is_made(wanted.output, asdict(recipe)):
        return f"{wanted.output} is made of these labels in this way already: nothing to do"
    wanted.output.mkdir(parents=True, exist_ok=True)
    checkpoint = wanted.output / "checkpoint.pt"

    began = time.monotonic()
    trained = _run(Training(recipe, initial, to_train, to_calibrate, checkpoint, line_ends(tokenizer)))
    # Whole solutions with all their steps, and other completions: what is fitted sees what will be scored.
    part = [chain for chain in split(labels.chains)[1] if any(step.weight for step in chain.steps)]
    temperature, scored = calibrated(trained.verifier, encoder, part, CHAINS_PER_STEP)
    threshold = best_threshold(scored)
    scoring, rules = best_scoring(scored)
    steps = steps_of(scored)
    labelled = [step for chain in distinct for step in chain.steps if step.weight]
    record = {
        "recipe": asdict(recipe),
        "models": sorted({chain.model for chain in labels.chains if chain.model}),
        "counts": {
            "rows": labels.rows,
            "problems": len({place_of(chain.problem) for chain in distinct}),
            "training": len(to_train),
            "calibration": len(to_calibrate),
            "steps": len(labelled),
            "right": sum(step.target for step in labelled) / len(labelled),
            "duplicates": sum(any(step.weight for step in chain.steps) for chain in labels.chains)
            - len(distinct),
            "too_long": len(distinct) - len(to_train) - len(to_calibrate),
            "faults": len(labels.faults),
        },
        "minutes": (time.monotonic() - began) / 60,
        "epochs": [asdict(epoch) for epoch in trained.epochs],
        "best_epoch": trained.best_epoch,
        "temperature": temperature,
        "threshold": threshold,
        "calibration": {
            "steps": len(steps.scores),
            "auc": auc(steps.right, steps.scores),
            "calibration_error": calibration_error(steps.right, steps.scores),
            "brier": brier(steps.right, steps.scores),
            "first_error_f1": first_error(scored, threshold).f1,
            "best_of_n": rules,
        },
    }
    write_folder(
        wanted.output,
        Calibrated(trained.verifier, temperature),
        tokenizer,
        chat_template=wanted.chat_template,
        scoring=scoring,
        record=record,
    )
    checkpoint.unlink(missing_ok=True)
    return told(wanted.output, record, scoring)


def _tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer

    text = path.read_text(encoding="utf-8")
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # It has no class of its own.
        raise InvalidArgument("tokenizer", f"{path} is no tokenizer.json ({str(error)[:200]})") from None


def is_made(folder: Path, recipe: dict[str, Any]) -> bool:
    """Whether the folder holds the verifier of this recipe."""
    try:
        record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        return bool(record["recipe"] == recipe) and (folder / "verifier.json").exists()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _run(training: Any) -> Any:
    """Train with a bar."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
    )
    with Progress(*columns) as progress:
        bar = progress.add_task("steps", total=None, loss=math.nan)
        return training.run(
            lambda report: progress.update(bar, completed=report.step, total=report.steps, loss=report.loss)
        )


def told(folder: Path, record: dict[str, Any], scoring: str) -> str:
    """What the command prints at the end."""
    counts, figures = record["counts"], record["calibration"]
    dropped = [
        f"{counts[key]} {name}"
        for key, name in (("duplicates", "duplicates"), ("too_long", "too long"), ("faults", "broken lines"))
        if counts[key]
    ]
    left_out = f", left out: {', '.join(dropped)}" if dropped else ""
    return (
        f"{folder}: trained on {counts['training']} chains, epoch {record['best_epoch']} "
        f"of {len(record['epochs'])} kept{left_out}\n"
        f"on {counts['calibration']} calibration chains: AUC {figures['auc']:.3f}, "
        f"calibration error {figures['calibration_error']:.3f}, "
        f"first error F1 {figures['first_error_f1']:.3f}, scoring {scoring}"
    )
