"""From tokens to FLOPs, in one place.

A token costs two floating-point operations for each active parameter, and attention four for each
layer, head and element of a head, times the tokens that it attends to (a product with the keys and
one with the values, each a multiplication and an addition; Kaplan et al., arXiv 2001.08361, table 1).
"""

from __future__ import annotations

from isoflop.v1.common_pb2 import Model, Shape
from isoflop.v1.generation_pb2 import RoundUsage


def attended(first: int, last: int, window: int = 0) -> int:
    """Sum, over the tokens at positions `first` to `last` (counted from 1), of what each attends to.

    A token at position p attends to p tokens, or to `window` of them where attention slides.
    """
    if last < first:
        return 0
    if not window or last <= window:
        return (first + last) * (last - first + 1) // 2
    if first > window:
        return window * (last - first + 1)
    return attended(first, window) + window * (last - window)


def without_attention(shape: Shape, tokens: float) -> float:
    """The simple figure: 2 x active parameters x tokens."""
    return 2.0 * shape.active_parameters * tokens


def with_attention(shape: Shape, tokens: float, context_tokens: float) -> float:
    """FLOPs of computing `tokens` tokens that attended to `context_tokens` tokens in total."""
    return without_attention(shape, tokens) + attention(shape) * context_tokens


def of_round(model: Model, usage: RoundUsage) -> tuple[float, float]:
    """FLOPs of a round of samples, its draft model's included; and the simple figure."""
    computed = usage.prompt_tokens + usage.completion_tokens + usage.aborted_tokens + usage.rejected_tokens
    draft, drafted = model.draft.shape, usage.draft_tokens
    return (
        with_attention(model.shape, computed, usage.context_tokens)
        + with_attention(draft, drafted, usage.draft_context_tokens),
        without_attention(model.shape, computed) + without_attention(draft, drafted),
    )


def of_aborted(model: Model, usage: RoundUsage) -> float:
    """Of the FLOPs of a round, those of the tokens that aborted samples had generated.

    Not their prompts, which others share, nor what a draft model did for them: drafts are not told apart by
    sample.
    """
    return with_attention(model.shape, usage.aborted_tokens, usage.aborted_context_tokens)


def attention(shape: Shape) -> float:
    """FLOPs of a token for each token that it attends to."""
    return 4.0 * shape.layers * shape.heads * shape.head_size
