"""The decoder-only transformer (Llama's shape), as llama.cpp computes it.

Shapes in the docstrings: B sequences, T tokens each, D width, H heads,
F feed-forward width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """What decides the size of a model."""

    width: int
    layers: int
    heads: int
    feed_forward: int
    vocabulary: int
    context: int = 1024
    """Longest sequence in tokens that the file promises."""
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-5

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def parameters(self) -> int:
        """Number of weights; the embedding serves as output too."""
        block = 4 * self.width**2 + 3 * self.width * self.feed_forward + 2 * self.width
        return self.vocabulary * self.width + self.layers * block + self.width


def rotary_table(shape: Shape, length: int) -> Tensor:
    """Cosine and sine by position and frequency: [2, T, head_size / 2]."""
    exponents = torch.arange(0, shape.head_size, 2) / shape.head_size
    angles = torch.outer(torch.arange(length), shape.rope_base**-exponents)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn neighbouring pairs of [..., T, head_size] by their positions' angles."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cosine, sine = table[0], table[1]
    turned = torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1)
    return turned.flatten(-2)


class Block(nn.Module):
    """Attention and a gated feed-forward, each after a norm and added back.

    Matrices that read the same input are stacked in one parameter, so that
    one product serves them all while the optimizer still sees each alone.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        d, f = shape.width, shape.feed_forward
        self.attention_norm = nn.Parameter(torch.ones(d))
        self.query_key_value = nn.Parameter(torch.randn(3, d, d) * d**-0.5)
        self.attention_output = nn.Parameter(torch.zeros(1, d, d))
        self.feed_forward_norm = nn.Parameter(torch.ones(d))
        self.gate_up = nn.Parameter(torch.randn(2, f, d) * d**-0.5)
        self.down = nn.Parameter(torch.zeros(1, d, f))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """[B, T, D] → [B, T, D], causal; `table` as of `rotary_table`."""
        batch, length, width = x.shape
        shape = self.shape
        normed = functional.rms_norm(x, (width,), self.attention_norm, shape.norm_epsilon)
        stacked = functional.linear(normed, self.query_key_value.flatten(0, 1))
        query, key, value = stacked.view(batch, length, 3, shape.heads, shape.head_size).permute(
            2, 0, 3, 1, 4
        )
        mixed = functional.scaled_dot_product_attention(
            rotate(query, table), rotate(key, table), value, is_causal=True
        )
        mixed = mixed.transpose(1, 2).reshape(batch, length, width)
        x = x + functional.linear(mixed, self.attention_output[0])

        normed = functional.rms_norm(x, (width,), self.feed_forward_norm, shape.norm_epsilon)
        gate, up = functional.linear(normed, self.gate_up.flatten(0, 1)).chunk(2, dim=-1)
        return x + functional.linear(functional.silu(gate) * up, self.down[0])


class Decoder(nn.Module):
    """The language model: tied embedding, blocks, final norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.randn(shape.vocabulary, shape.width) * 0.02)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = nn.Parameter(torch.ones(shape.width))
        self.register_buffer("table", rotary_table(shape, shape.context), persistent=False)
        self.table: Tensor

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T] → features [B, T, D], normed, ready for `logits`."""
        x = functional.embedding(tokens, self.embedding)
        table = self.table[:, : tokens.shape[1]]
        for block in self.blocks:
            x = block(x, table)
        return functional.rms_norm(x, (self.shape.width,), self.output_norm, self.shape.norm_epsilon)

    def logits(self, features: Tensor) -> Tensor:
        """Features [..., D] → logits [..., V]."""
        return functional.linear(features, self.embedding)


@torch.inference_mode()
def complete_greedily(model: Decoder, prompt: list[int], end: int, limit: int) -> list[int]:
    """The most likely tokens after `prompt`, one at a time, up to `end`.

    Recomputes the whole sequence each time: for checks, not for speed.
    """
    tokens = list(prompt)
    while len(tokens) - len(prompt) < limit:
        features = model(torch.tensor([tokens]))[0, -1]
        token = int(model.logits(features).argmax())
        if token == end:
            break
        tokens.append(token)
    return tokens[len(prompt) :]
