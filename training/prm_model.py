"""The verifier: the decoder of the language models, and one number for each position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.model import Decoder, Shape


class StepVerifier(nn.Module):
    """Says at each position how likely the step that ends there is right."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.decoder = Decoder(shape)
        self.head = nn.Linear(shape.width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T] → logits of P(right) [B, T]."""
        logits: Tensor = self.head(self.decoder(tokens)).squeeze(-1)
        return logits


class Calibrated(nn.Module):
    """A verifier that gives probabilities, its logits divided by a temperature."""

    def __init__(self, verifier: StepVerifier, temperature: float) -> None:
        super().__init__()
        self.verifier = verifier
        self.temperature = temperature

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T] → P(right) [B, T]."""
        return torch.sigmoid(self.verifier(tokens) / self.temperature)


def summed_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy in nats with targets in [0, 1], weighted and summed over the steps [S]."""
    return functional.binary_cross_entropy_with_logits(logits, targets, weights, reduction="sum")


def language_model(path: Any) -> tuple[Shape, dict[str, Tensor]]:
    """Shape and weights of a language model's checkpoint; raises ValueError where it is none."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        return Shape(**state["recipe"]["shape"]), state["model"]
    except OSError:
        raise
    except Exception as error:
        # Of classes that only torch and pickle know.
        reason = str(error).splitlines()[0][:200]
        raise ValueError(f"{path} is no checkpoint of a language model ({reason})") from None
