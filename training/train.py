"""Train the abacus models from nothing, with fixed seeds and step counts.

`python -m training.train` makes everything: problems, checkpoints, GGUF
files, hashes, evaluation and model card. Each stage can be run alone:

    python -m training.train --models s,m --stages train,export

Training is checkpointed under build/training/ and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from queue import Queue
from typing import Any, Final

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from torch import Tensor
from torch.nn import functional

from training.model import Decoder, Shape
from training.optimizer import Muon
from training.problems import Example, training_batch
from training.tokens import encode, encode_lines, end_of_text

ROOT: Final = Path(__file__).resolve().parent.parent
CHECKPOINTS: Final = ROOT / "build" / "training"
STAGES: Final = ("problems", "train", "export", "evaluate")
_IGNORED: Final = -100  # a target that does not count in the loss
_CHECKPOINT_EVERY: Final = 100


@dataclass(frozen=True)
class Recipe:
    """All that decides a trained model."""

    name: str
    shape: Shape
    steps: int
    warmup_steps: int
    examples_per_step: int
    matrix_rate: float
    """Peak learning rate of the matrices (Muon)."""
    vector_rate: float
    """Peak learning rate of embedding and norms (AdamW)."""
    seed: int
    micro_batches: int = 8
    """Parts of a step, each of problems of like length, so that little is padded."""


_VOCABULARY: Final = 730

RECIPES: Final = {
    recipe.name: recipe
    for recipe in (
        Recipe("abacus-s", Shape(64, 3, 4, 128, _VOCABULARY), 4000, 64, 32, 0.02, 0.005, seed=201),
        Recipe("abacus-m", Shape(112, 4, 4, 256, _VOCABULARY), 2800, 64, 32, 0.02, 0.005, seed=202),
        Recipe("abacus-l", Shape(160, 6, 5, 384, _VOCABULARY), 3600, 48, 32, 0.02, 0.005, seed=203),
    )
}


def learning_rate_factor(recipe: Recipe, step: int) -> float:
    """Rise during the warm-up, hold until 40% of the steps, then fall linearly to zero."""
    rising = (step + 1) / recipe.warmup_steps
    falling = (1 - step / recipe.steps) / 0.6
    return min(rising, 1.0, falling)


@dataclass(frozen=True)
class Tokens:
    """Tokens of an example, and which of them the model is trained to write."""

    tokens: list[int]
    is_target: list[bool]


def sequence_of(example: Example) -> Tokens:
    """Prompt, lines and end-of-text. The prompt is no target: models learn to answer, not to ask."""
    tokens = encode(example.prompt)
    is_target = [False] * len(tokens)
    lines = encode_lines([line.text for line in example.lines])
    lines[-1][-1] = end_of_text()  # in the place of the last newline
    for line, ids in zip(example.lines, lines, strict=True):
        tokens += ids
        is_target += [line.is_target] * len(ids)
    return Tokens(tokens, is_target)


def padded(sequences: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
    """Inputs and targets, both [B, T]; what is no target is _IGNORED."""
    length = max(len(sequence.tokens) for sequence in sequences) - 1
    inputs = torch.zeros(len(sequences), length, dtype=torch.long)
    targets = torch.full((len(sequences), length), _IGNORED)
    for row, sequence in enumerate(sequences):
        count = len(sequence.tokens) - 1
        inputs[row, :count] = torch.tensor(sequence.tokens[:-1])
        targets[row, :count] = torch.where(
            torch.tensor(sequence.is_target[1:]), torch.tensor(sequence.tokens[1:]), _IGNORED
        )
    return inputs, targets


def batches(recipe: Recipe, step: int) -> list[tuple[Tensor, Tensor]]:
    """The micro-batches of one step, each of examples of like length."""
    sequences = [
        sequence_of(example) for example in training_batch(recipe.seed, step, recipe.examples_per_step)
    ]
    sequences.sort(key=lambda sequence: len(sequence.tokens))
    # Equal shares of tokens rather than of examples keep the memory even.
    total = sum(len(sequence.tokens) for sequence in sequences)
    parts: list[list[Tokens]] = [[] for _ in range(recipe.micro_batches)]
    before = 0
    for sequence in sequences:
        parts[before * recipe.micro_batches // total].append(sequence)
        before += len(sequence.tokens)
    return [padded(part) for part in parts if part]


def summed_loss(model: Decoder, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats, summed over the tokens that count."""
    counts = targets != _IGNORED
    logits = model.logits(model(inputs)[counts])
    return functional.cross_entropy(logits, targets[counts], reduction="sum")


@dataclass(frozen=True)
class Report:
    """How far the training of a model is."""

    name: str
    step: int
    steps: int
    loss: float
    """Mean over the last steps, in nats a token."""


def _saved(path: Path, recipe: Recipe) -> dict[str, Any] | None:
    """The checkpoint of this very recipe, if there is one."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state if state["recipe"] == asdict(recipe) else None


def train(recipe: Recipe, checkpoint: Path, report: Callable[[Report], None]) -> None:
    """Train one model, or go on from `checkpoint`, which is kept up to date."""
    torch.manual_seed(recipe.seed)
    model = Decoder(recipe.shape)
    matrices = [p for p in model.parameters() if p.ndim == 3]
    others = [p for p in model.parameters() if p.ndim != 3]
    optimizers: list[tuple[torch.optim.Optimizer, float]] = [
        (Muon(matrices, lr=recipe.matrix_rate), recipe.matrix_rate),
        (
            torch.optim.AdamW(others, lr=recipe.vector_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
            recipe.vector_rate,
        ),
    ]
    first_step, seconds, tokens_seen = 0, 0.0, 0
    if state := _saved(checkpoint, recipe):
        model.load_state_dict(state["model"])
        for (optimizer, _), saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first_step, seconds, tokens_seen = state["step"], state["seconds"], state["tokens"]

    began = time.monotonic() - seconds
    mean_loss = math.nan
    for step in range(first_step, recipe.steps):
        parts = batches(recipe, step)
        counted = sum(int((targets != _IGNORED).sum()) for _, targets in parts)
        total = 0.0
        for inputs, targets in parts:
            loss = summed_loss(model, inputs, targets) / counted
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * learning_rate_factor(recipe, step)
            optimizer.step()
            optimizer.zero_grad()
        tokens_seen += counted
        mean_loss = total if math.isnan(mean_loss) else 0.98 * mean_loss + 0.02 * total
        report(Report(recipe.name, step + 1, recipe.steps, mean_loss))
        if (step + 1) % _CHECKPOINT_EVERY == 0 or step + 1 == recipe.steps:
            partial = checkpoint.with_suffix(".partial")
            torch.save(
                {
                    "recipe": asdict(recipe),
                    "model": model.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer, _ in optimizers],
                    "step": step + 1,
                    "seconds": time.monotonic() - began,
                    "tokens": tokens_seen,
                    "loss": mean_loss,
                },
                partial,
            )
            partial.replace(checkpoint)


def _train_in_process(recipe: Recipe, threads: int, reports: Queue[Report]) -> None:
    """One model in a process of its own."""
    torch.set_num_threads(threads)
    train(recipe, CHECKPOINTS / f"{recipe.name}.pt", reports.put)


def train_all(recipes: Sequence[Recipe], processes: int, threads: int) -> None:
    """Train side by side, the largest first, with a bar for each model.

    Models this small gain little from a second thread, so each has one by default.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
    )
    context = get_context("spawn")
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(processes, mp_context=context) as pool,
        Progress(*columns) as progress,
    ):
        reports: Queue[Report] = manager.Queue()
        bars = {
            recipe.name: progress.add_task(recipe.name, total=recipe.steps, loss=math.nan)
            for recipe in recipes
        }
        largest_first = sorted(recipes, key=lambda recipe: -recipe.shape.parameters)
        running = {pool.submit(_train_in_process, recipe, threads, reports) for recipe in largest_first}
        while running:
            done, running = wait(running, timeout=0.5)
            while not reports.empty():
                said = reports.get()
                progress.update(bars[said.name], completed=said.step, loss=said.loss)
                if said.step % _CHECKPOINT_EVERY == 0:
                    progress.console.print(
                        f"{said.name} step {said.step} of {said.steps} loss {said.loss:.4f}"
                    )
            for future in done:
                future.result()


def chosen_recipes(letters: str, steps: int | None) -> list[Recipe]:
    """The recipes named by `s,m,l`, perhaps with another number of steps."""
    recipes = []
    for letter in letters.split(","):
        if f"abacus-{letter}" not in RECIPES:
            raise SystemExit(f"unknown model {letter!r}: choose from s,m,l")
        recipe = RECIPES[f"abacus-{letter}"]
        recipes.append(replace(recipe, steps=steps) if steps else recipe)
    return recipes


def main() -> None:
    """The command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m training.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", default="s,m,l", help="which of s,m,l (default: all)")
    parser.add_argument("--stages", default=",".join(STAGES), help=f"of {','.join(STAGES)}")
    parser.add_argument("--steps", type=int, help="another number of steps, for a quick try")
    parser.add_argument("--processes", type=int, default=2, help="models trained side by side (default 2)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each of them (default 1)")
    arguments = parser.parse_args()
    stages = arguments.stages.split(",")
    if unknown := set(stages) - set(STAGES):
        parser.error(f"unknown stage: {', '.join(sorted(unknown))}")
    recipes = chosen_recipes(arguments.models, arguments.steps)

    if "problems" in stages:
        from training.splits import write_splits

        write_splits()
    CHECKPOINTS.mkdir(parents=True, exist_ok=True)
    if "train" in stages:
        train_all(recipes, arguments.processes, arguments.threads)
    if "export" in stages:
        from training.export import export_checkpoint, write_hashes

        for recipe in recipes:
            export_checkpoint(CHECKPOINTS / f"{recipe.name}.pt")
        write_hashes()
    if "evaluate" in stages:
        from training.card import write_card
        from training.evaluate import evaluate

        evaluate([recipe.name for recipe in recipes])
        write_card()


if __name__ == "__main__":
    main()
