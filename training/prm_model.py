"""The verifier: the decoder of the language models, and one number for each position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.model import Decoder, Shape


class StepVerifier(nn.Module):
    """Says at each position how likely the step that ends there is right.

    A language model of right steps reads the text: how likely it finds the tokens of a step says most of
    whether the step is right, its features the rest, as that many right steps might have come next.
    """

    def __init__(self, shape: Shape, line_ends: Sequence[int]) -> None:
        """`line_ends`: tokens that end a line, and so a step."""
        super().__init__()
        self.decoder = Decoder(shape)
        self.head = nn.Linear(shape.width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.trust = nn.Parameter(torch.ones(1))
        ends = torch.zeros(shape.vocabulary, dtype=torch.bool)
        ends[list(line_ends)] = True
        self.register_buffer("line_ends", ends)
        self.line_ends: Tensor

    @property
    def active_parameters(self) -> int:
        """Weights that a token is multiplied by; those of the embedding as the model's output."""
        return sum(parameter.numel() for parameter in self.parameters())

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
        logprobs = functional.pad(told - logits.logsumexp(-1), (1, 0))
        # Of each token's step, the tokens up to it: those after as many line ends.
        ended = functional.pad(self.line_ends[tokens[:, :-1]].long().cumsum(-1), (1, 0))
        place = torch.arange(tokens.shape[1])
        same = (ended[:, :, None] == ended[:, None, :]) & (place[:, None] >= place[None, :])
        likely = (same * logprobs[:, None, :]).sum(-1)
        judged: Tensor = self.head(features).squeeze(-1) + self.trust * likely
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
