"""The folder of a verifier: model.onnx, tokenizer.json, verifier.json, the card. Needs torch to write.

The form is the one that `services/verification/backends/onnx.py` reads.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from isoflop.errors import IsoflopError
from tokenizers import Tokenizer
from torch.onnx import register_custom_op_symbolic, symbolic_helper

from training.prm_model import Calibrated
from training.prm_train import Epoch, Recipe, shuffled
from training.store import sha256_of

OPSET = 17
TOLERANCE = 1e-4
"""Largest difference between a score by torch and by onnxruntime."""


class WrongExport(IsoflopError):
    """onnxruntime computes other scores than torch: nothing is to be served from such a file."""


def _rms_norm(graph: Any, x: Any, shape: Any, weight: Any, epsilon: Any) -> Any:
    """x / sqrt(mean of squares + epsilon) * weight; opset 17 has no operator for it."""
    small = graph.op("Constant", value_t=torch.tensor(symbolic_helper._maybe_get_const(epsilon, "f")))
    mean = graph.op("ReduceMean", graph.op("Mul", x, x), axes_i=[-1], keepdims_i=1)
    return graph.op("Mul", graph.op("Div", x, graph.op("Sqrt", graph.op("Add", mean, small))), weight)


def write_onnx(model: Calibrated, path: Path) -> None:
    """Write the model, and compare it with torch; raises WrongExport.

    By the exporter that traces: the one by torch.export needs onnxscript, which nothing else here does.
    """
    register_custom_op_symbolic("aten::rms_norm", _rms_norm, OPSET)
    shape = model.verifier.decoder.shape
    axes = {0: "batch", 1: "length"}
    with warnings.catch_warnings():
        # It warns of its own age, and of a tuple of three that is always one of three.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(),
            (torch.from_numpy(shuffled(shape.vocabulary, 16, 2, seed=1)),),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=["tokens"],
            output_names=["scores"],
            dynamic_axes={"tokens": axes, "scores": axes},
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for rows, length in ((1, 1), (3, 40), (2, shape.context)):
        tokens = shuffled(shape.vocabulary, length, rows, seed=2)
        with torch.inference_mode():
            expected = model(torch.from_numpy(tokens)).numpy()
        (scores,) = session.run(["scores"], {"tokens": tokens})
        difference = float(np.abs(scores - expected).max())
        # Not a number is no small difference.
        if not difference <= TOLERANCE:
            raise WrongExport(f"{path}: scores by onnxruntime and by torch differ by {difference:g}")


def write_folder(
    folder: Path,
    model: Calibrated,
    tokenizer: Tokenizer,
    *,
    chat_template: str,
    scoring: str,
    record: dict[str, Any],
) -> None:
    """Write all files; verifier.json, which vouches for the others, is the last that a service reads.

    Args:
        folder: Where; it is there.
        model: The verifier.
        tokenizer: Its tokenizer.
        chat_template: From messages to the prompt.
        scoring: From step scores to a chain's score.
        record: How it was made, for training.json and the card.
    """
    write_onnx(model, folder / "model.onnx")
    tokenizer.save(str(folder / "tokenizer.json"))
    shape = model.verifier.decoder.shape
    manifest = {
        "format": 1,
        "name": folder.resolve().name,
        "shape": {
            "active_parameters": model.verifier.active_parameters,
            "layers": shape.layers,
            "heads": shape.heads,
            "head_size": shape.head_size,
            "window": 0,
        },
        "context": shape.context,
        "chat_template": chat_template,
        "scoring": scoring,
        "sha256": {name: sha256_of(folder / name) for name in ("model.onnx", "tokenizer.json")},
    }
    (folder / "README.md").write_text(card(manifest, record), encoding="utf-8")
    (folder / "verifier.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _table(rows: Sequence[Sequence[str]]) -> str:
    header, *body = rows
    lines = [header, ["---:"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def card(manifest: dict[str, Any], record: dict[str, Any]) -> str:
    """README.md of the folder."""
    recipe = Recipe(**record["recipe"])
    epochs = [Epoch(**epoch) for epoch in record["epochs"]]
    counts, figures = record["counts"], record["calibration"]
    hashes = "".join(f"- {name}: `{value}`\n" for name, value in recipe.sha256.items())
    losses = _table(
        [
            ["epoch", "training loss", "calibration loss"],
            *([str(one.epoch), f"{one.training_loss:.4f}", f"{one.calibration_loss:.4f}"] for one in epochs),
        ]
    )
    rules = ", ".join(f"{name} {value:.3f}" for name, value in figures["best_of_n"].items())
    chosen = (
        f"by the accuracy of the best chain of a problem: {rules}"
        if rules
        else "no problem has several solutions of which some are right: the default"
    )
    models = ", ".join(record["models"]) or "no named model"
    start = "from nothing" if "init" not in recipe.sha256 else "from a language model's weights"
    return f"""\
# {manifest["name"]}: a step-level verifier

*Written by `isoflop train-prm`; do not edit by hand.*

At the last token of each step it gives the chance that the step is right. One forward pass scores all steps
of a chain. `verifier.json` says how it is read; `isoflop`'s verification service serves the folder as it is.

## Data

{counts["rows"]} solutions of {counts["problems"]} problems, by {models}.

| chains to train on | to calibrate on | labelled steps | share right | duplicates | too long | broken |
|---:|---:|---:|---:|---:|---:|---:|
| {counts["training"]} | {counts["calibration"]} | {counts["steps"]} \
| {counts["right"]:.3f} \
| {counts["duplicates"]} | {counts["too_long"]} | {counts["faults"]} |

Calibration problems are a tenth, by the hash of the problem's text; no weight was trained on them.
SHA-256:

{hashes}
## Training

A decoder of {recipe.shape["layers"]} layers, width {recipe.shape["width"]}, \
{recipe.shape["heads"]} heads, vocabulary {recipe.shape["vocabulary"]}, \
context {recipe.shape["context"]}; {start}; {recipe.chains_per_step} chains a step, seed {recipe.seed}, \
{record["minutes"]:.1f} minutes in its last run. Losses are in nats a step; \
the weights of epoch {record["best_epoch"]} are kept.

{losses}

## On the calibration problems

These figures chose the values below: on other problems they are a little worse.

| steps | AUC | calibration error | Brier score | first error, F1 |
|---:|---:|---:|---:|---:|
| {figures["steps"]} | {figures["auc"]:.3f} | {figures["calibration_error"]:.3f} \
| {figures["brier"]:.3f} \
| {figures["first_error_f1"]:.3f} |

- Temperature {record["temperature"]:.3f}, already in the scores.
- A step with a score below {record["threshold"]:.2f} is taken for wrong.
- Chains are scored by `{manifest["scoring"]}` ({chosen}).
"""
