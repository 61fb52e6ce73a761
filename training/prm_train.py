"""Training a verifier on step labels: the loop, and what is fitted after it. Needs torch.

One forward pass gives a logit at each step's last token; the loss is the binary cross-entropy with the step's
target, which may lie between 0 and 1. The language model inside goes on learning how right steps read, as its
likelihood of a step is most of the logit. Matrices are trained with Muon, the rest with AdamW, as the
language models are. A tenth of the problems is kept apart: after each epoch their loss says whether to go on,
and the weights that did best are kept. On them a temperature is fitted (Guo et al., arXiv 1706.04599), and
the threshold and the rule from steps to chains are chosen.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from isoflop.errors import IsoflopError
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor

from training.labels import Chain
from training.model import Shape
from training.optimizer import Muon
from training.prm_data import Encoded, Encoder, batch_of, epoch_of, in_order
from training.prm_figures import Scored
from training.prm_model import StepVerifier, summed_loss

CHECKPOINT_STEPS = 25
"""Steps between two checkpoints."""
PATIENCE = 2
"""Epochs without a better calibration loss after which training ends."""
LANGUAGE_WEIGHT = 0.2
"""Of the language model's loss, in nats a token, beside the verifier's, in nats a step."""
WARM_UP_SHARE = 0.05
"""Of all steps: the learning rate rises."""


class Diverged(IsoflopError):
    """The loss is no number."""


@dataclass(frozen=True)
class Recipe:
    """All that decides a trained verifier; a checkpoint of another recipe is not gone on with."""

    shape: dict[str, Any]
    epochs: int
    chains_per_step: int
    matrix_rate: float
    """Peak learning rate of the matrices (Muon)."""
    vector_rate: float
    """Peak learning rate of embedding, norms and head (AdamW)."""
    seed: int
    chat_template: str
    sha256: dict[str, str]
    """Of labels, tokenizer and initial weights."""


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to. Losses are in nats a step."""

    epoch: int
    training_loss: float
    calibration_loss: float


@dataclass(frozen=True)
class Report:
    """How far the training is."""

    step: int
    steps: int
    loss: float
    """Mean over the last steps, in nats a label."""


@dataclass(frozen=True)
class Trained:
    """A verifier, and how it came about."""

    verifier: StepVerifier
    epochs: list[Epoch]
    best_epoch: int


def learning_rate_factor(step: int, steps: int) -> float:
    """Rise, then fall linearly to zero."""
    return min(1.0, (step + 1) / (WARM_UP_SHARE * steps + 1), 1 - step / steps)


class Training:
    """One training, from the beginning or from its checkpoint."""

    def __init__(
        self,
        recipe: Recipe,
        initial: dict[str, Tensor] | None,
        training: Sequence[Encoded],
        calibration: Sequence[Encoded],
        checkpoint: Path,
        line_ends: Sequence[int],
    ) -> None:
        """`initial`: weights of a language model; none: from nothing. `line_ends`: tokens that end a step."""
        torch.manual_seed(recipe.seed)
        self._recipe, self._checkpoint = recipe, checkpoint
        self._training, self._calibration = training, calibration
        self._verifier = StepVerifier(Shape(**recipe.shape), line_ends)
        if initial is not None:
            self._verifier.decoder.load_state_dict(initial)
        # On average the right answer: the head need not learn that first.
        mean = mean_target(training)
        torch.nn.init.constant_(self._verifier.head.bias, math.log(mean / (1 - mean)))
        matrices = [p for p in self._verifier.parameters() if p.ndim == 3]
        others = [p for p in self._verifier.parameters() if p.ndim != 3]
        self._others = others
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = [
            (Muon(matrices, lr=recipe.matrix_rate), recipe.matrix_rate),
            (
                torch.optim.AdamW(others, lr=recipe.vector_rate, betas=(0.9, 0.98), weight_decay=0.0),
                recipe.vector_rate,
            ),
        ]
        self._batches_an_epoch = math.ceil(len(training) / recipe.chains_per_step)
        self._steps = self._batches_an_epoch * recipe.epochs
        self._step = 0
        self._loss = math.nan
        self._epoch_loss, self._epoch_weight = 0.0, 0.0
        self._epochs: list[Epoch] = []
        self._best: dict[str, Tensor] = {}
        self._restore()

    def run(self, report: Callable[[Report], None]) -> Trained:
        """Train to the end; what is interrupted goes on from the checkpoint. Raises Diverged."""
        report(Report(self._step, self._steps, self._loss))
        order: list[list[int]] = []
        while self._step < self._steps and not self._is_enough():
            epoch, batch = divmod(self._step, self._batches_an_epoch)
            if not order or batch == 0:
                order = epoch_of(self._training, self._recipe.chains_per_step, f"{self._recipe.seed}/{epoch}")
            self._learn([self._training[index] for index in order[batch]])
            self._step += 1
            if batch + 1 == self._batches_an_epoch:
                self._end_epoch(epoch)
            if self._step % CHECKPOINT_STEPS == 0 or batch + 1 == self._batches_an_epoch:
                self._save()
            report(Report(self._step, self._steps, self._loss))
        self._verifier.load_state_dict(self._best)
        return Trained(self._verifier.eval(), self._epochs, self._best_epoch())

    def _learn(self, chains: Sequence[Encoded]) -> None:
        """One step of the optimizers."""
        total, weight, language = _loss(self._verifier, chains)
        loss = total / weight + LANGUAGE_WEIGHT * language
        if not math.isfinite(loss.item()):
            raise Diverged(
                f"the loss of step {self._step + 1} is no number: train with a lower --rate, or other labels"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._others, 1.0)
        for optimizer, peak in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * learning_rate_factor(self._step, self._steps)
            optimizer.step()
            optimizer.zero_grad()
        self._epoch_loss += total.item()
        self._epoch_weight += weight
        mean = total.item() / weight
        self._loss = mean if math.isnan(self._loss) else 0.95 * self._loss + 0.05 * mean

    def _end_epoch(self, epoch: int) -> None:
        """Look at the calibration problems, and keep the weights if they did best."""
        loss = mean_loss(self._verifier, self._calibration, self._recipe.chains_per_step)
        if not math.isfinite(loss):
            raise Diverged(
                f"the calibration loss of epoch {epoch + 1} is no number: train with a lower --rate"
            )
        self._epochs.append(Epoch(epoch + 1, self._epoch_loss / self._epoch_weight, loss))
        self._epoch_loss = self._epoch_weight = 0.0
        if self._best_epoch() == epoch + 1:
            self._best = {name: value.clone() for name, value in self._verifier.state_dict().items()}

    def _best_epoch(self) -> int:
        return min(self._epochs, key=lambda epoch: epoch.calibration_loss).epoch

    def _is_enough(self) -> bool:
        return bool(self._epochs) and len(self._epochs) - self._best_epoch() >= PATIENCE

    def _save(self) -> None:
        partial = self._checkpoint.with_suffix(".partial")
        torch.save(
            {
                "recipe": asdict(self._recipe),
                "verifier": self._verifier.state_dict(),
                "best": self._best,
                "optimizers": [optimizer.state_dict() for optimizer, _ in self._optimizers],
                "step": self._step,
                "loss": self._loss,
                "epoch_loss": (self._epoch_loss, self._epoch_weight),
                "epochs": [asdict(epoch) for epoch in self._epochs],
            },
            partial,
        )
        partial.replace(self._checkpoint)

    def _restore(self) -> None:
        """Go on from the checkpoint, if there is one of this very recipe."""
        if not self._checkpoint.exists():
            return
        state = torch.load(self._checkpoint, weights_only=True)
        if state["recipe"] != asdict(self._recipe):
            return
        self._verifier.load_state_dict(state["verifier"])
        self._best = state["best"]
        for (optimizer, _), saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._step, self._loss = state["step"], state["loss"]
        self._epoch_loss, self._epoch_weight = state["epoch_loss"]
        self._epochs = [Epoch(**epoch) for epoch in state["epochs"]]


def mean_target(chains: Sequence[Encoded]) -> float:
    """Mean target of the labelled steps."""
    labels = [
        (target * weight, weight)
        for chain in chains
        for target, weight in zip(chain.targets, chain.weights, strict=True)
    ]
    return sum(label for label, _ in labels) / sum(weight for _, weight in labels)


def _loss(verifier: StepVerifier, chains: Sequence[Encoded]) -> tuple[Tensor, float, Tensor]:
    """The summed loss of chains, the sum of their weights, and the mean loss of the language model."""
    batch = batch_of(chains)
    logits, logprobs = verifier.judged(torch.from_numpy(batch.tokens))
    logits = logits.flatten()[torch.from_numpy(batch.positions)]
    loss = summed_loss(logits, torch.from_numpy(batch.targets), torch.from_numpy(batch.weights))
    likely = torch.from_numpy(batch.likely)
    language = -(logprobs * likely).sum() / likely.sum().clamp(min=1.0)
    return loss, float(batch.weights.sum()), language


@torch.inference_mode()
def mean_loss(verifier: StepVerifier, chains: Sequence[Encoded], size: int) -> float:
    """Mean loss in nats a step."""
    parts = [_loss(verifier, [chains[index] for index in part]) for part in in_order(chains, size)]
    return sum(loss.item() for loss, _, _ in parts) / sum(weight for _, weight, _ in parts)


@torch.inference_mode()
def step_logits(verifier: StepVerifier, chains: Sequence[Encoded], size: int) -> list[NDArray[np.float64]]:
    """The logits of every step of each chain."""
    logits: list[NDArray[np.float64]] = [np.empty(0)] * len(chains)
    for part in in_order(chains, size):
        tokens = np.zeros((len(part), max(len(chains[index].tokens) for index in part)), np.int64)
        for row, index in zip(tokens, part, strict=True):
            row[: len(chains[index].tokens)] = chains[index].tokens
        found = verifier(torch.from_numpy(tokens)).double().numpy()
        for row, index in zip(found, part, strict=True):
            logits[index] = row[chains[index].ends]
    return logits


def fit_temperature(
    logits: NDArray[np.float64], targets: NDArray[np.float64], weights: NDArray[np.float64]
) -> float:
    """The temperature from 1/20 to 20 with the least cross-entropy of sigmoid(logits / temperature)."""

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        # log(1 + e^x) - target * x, in nats, without overflow.
        return float(np.average(np.logaddexp(0.0, scaled) - targets * scaled, weights=weights))

    found = minimize_scalar(loss, bounds=(-math.log(20), math.log(20)), method="bounded")
    return math.exp(float(found.x))


def calibrated(
    verifier: StepVerifier, encoder: Encoder, chains: Sequence[Chain], size: int
) -> tuple[float, list[Scored]]:
    """The temperature that fits the labels of `chains`, and the chains with their scores at it."""
    pairs = [(chain, encoded) for chain in chains if (encoded := encoder.encode(chain)) is not None]
    found = step_logits(verifier, [encoded for _, encoded in pairs], size)
    logits, targets, weights = (
        np.concatenate(parts)
        for parts in (
            found,
            [np.array(encoded.targets) for _, encoded in pairs],
            [np.array(encoded.weights) for _, encoded in pairs],
        )
    )
    temperature = fit_temperature(logits[weights > 0], targets[weights > 0], weights[weights > 0])
    scored = [
        Scored(chain, tuple((1 / (1 + np.exp(-logits / temperature))).tolist()))
        for (chain, _), logits in zip(pairs, found, strict=True)
    ]
    return temperature, scored


def shuffled(tokens: int, length: int, rows: int, seed: int) -> NDArray[np.int64]:
    """Random tokens [rows, length], to compare two forms of a model by."""
    rng = random.Random(seed)
    return np.array([[rng.randrange(tokens) for _ in range(length)] for _ in range(rows)], np.int64)
