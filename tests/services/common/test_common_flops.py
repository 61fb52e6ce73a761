"""FLOPs: the closed form of attention against a plain sum, and their bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isoflop.v1.common_pb2 import Draft, Model, Shape
from isoflop.v1.generation_pb2 import RoundUsage

from services.common.flops import attended, of_aborted, of_round, with_attention, without_attention

positions = st.integers(1, 300)
windows = st.integers(0, 320)
shapes = st.builds(
    Shape,
    active_parameters=st.integers(1, 10**12),
    layers=st.integers(0, 100),
    heads=st.integers(0, 128),
    head_size=st.integers(0, 256),
)
counts = st.integers(0, 10**6)


@given(positions, positions, windows)
def test_attended_is_the_sum_over_positions(first: int, last: int, window: int) -> None:
    each = [min(position, window) if window else position for position in range(first, last + 1)]
    assert attended(first, last, window) == sum(each)


@given(positions, positions, positions, windows)
def test_attended_adds_up_over_pieces(first: int, middle: int, last: int, window: int) -> None:
    first, middle, last = sorted((first, middle, last))
    assert attended(first, middle, window) + attended(middle + 1, last, window) == attended(
        first, last, window
    )


@given(st.integers(1, 2**40), windows)
def test_attended_is_exact_for_any_length(last: int, window: int) -> None:
    assert isinstance(attended(1, last, window), int)
    assert attended(1, last) == last * (last + 1) // 2


@given(positions, positions, st.integers(1, 320))
def test_a_window_never_adds(first: int, last: int, window: int) -> None:
    assert attended(first, last, window) <= attended(first, last)
    assert attended(first, last, window) <= attended(first, last, window + 1)


def test_nothing_attends_to_nothing() -> None:
    assert attended(8, 7) == attended(1, 0) == attended(8, 7, 3) == 0


@given(shapes, counts, counts, counts, counts)
def test_more_tokens_or_more_context_is_never_cheaper(
    shape: Shape, tokens: int, context: int, more_tokens: int, more_context: int
) -> None:
    less = with_attention(shape, tokens, context)
    assert with_attention(shape, tokens + more_tokens, context + more_context) >= less
    assert less >= without_attention(shape, tokens) >= 0


def test_a_known_model_costs_what_the_table_says() -> None:
    """2 x parameters a token, and 4 x layers x heads x head size for each token attended to."""
    shape = Shape(active_parameters=7_000_000_000, layers=32, heads=32, head_size=128)
    assert without_attention(shape, 10) == 1.4e11
    assert with_attention(shape, 1, 1000) - without_attention(shape, 1) == pytest.approx(4 * 32 * 4096 * 1000)


@given(shapes, shapes, st.builds(RoundUsage, prompt_tokens=counts, completion_tokens=counts), counts, counts)
def test_aborted_flops_are_what_a_round_would_not_have_taken_without_them(
    shape: Shape, draft: Shape, usage: RoundUsage, tokens: int, context: int
) -> None:
    """As long as no draft model reads them."""
    model = Model(shape=shape, draft=Draft(shape=draft, tokens=4))
    usage.rejected_tokens, usage.draft_tokens, usage.context_tokens = 3, 50, 7 * usage.prompt_tokens
    without = of_round(model, usage)[0]
    usage.aborted_tokens, usage.aborted_context_tokens = tokens, context
    usage.context_tokens += context
    assert without + of_aborted(model, usage) == pytest.approx(of_round(model, usage)[0])
