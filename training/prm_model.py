"""The verifier: the decoder of the language models, and one number for each position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.model import Block, Decoder, Shape

JUDGING_LAYERS = 2
"""Layers that read what the decoder makes of the text."""


class StepVerifier(nn.Module):
    """Says at each position how likely the step that ends there is right.

    A language model reads the text. Further layers, causal too, read its features and how much each token
    surprised it: a step is rarely wrong where every token was the expected one.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.decoder = Decoder(shape)
        self.surprise = nn.Linear(2, shape.width, bias=False)
        self.judging = nn.ModuleList(Block(shape) for _ in range(JUDGING_LAYERS))
        self.head = nn.Linear(shape.width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def active_parameters(self) -> int:
        """Weights that a token is multiplied by: of the embedding, as the model's output."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def layers(self) -> int:
        """Layers with attention."""
        return len(self.decoder.blocks) + len(self.judging)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T] → logits of P(right) [B, T]."""
        logits, _ = self.judged(tokens)
        return logits

    def judged(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, T] → logits of P(right) [B, T], and each token's log-probability in nats [B, T].

        The first token's is 0: nothing foretold it.
        """
        features = self.decoder(tokens)
        logits = self.decoder.logits(features[:, :-1])
        told = logits.gather(-1, tokens[:, 1:, None]).squeeze(-1)
        total, likeliest = logits.logsumexp(-1), logits.amax(-1)
        logprobs = functional.pad(told - total, (1, 0))
        # Not to be made easy to judge by: the language model learns from its own loss alone.
        signals = torch.stack([logprobs, functional.pad(told - likeliest, (1, 0))], dim=-1).detach()
        x = features + self.surprise(signals)
        table = self.decoder.table[:, : tokens.shape[1]]
        for block in self.judging:
            x = block(x, table)
        shape = self.decoder.shape
        judged: Tensor = self.head(functional.rms_norm(x, (shape.width,), eps=shape.norm_epsilon)).squeeze(-1)
        return judged, logprobs


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
