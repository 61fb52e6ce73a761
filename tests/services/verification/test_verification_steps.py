"""Steps of a text."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isoflop.v1.common_pb2 import FINISH_REASON_STOP, Sampling, Step
from isoflop.v1.verification_pb2 import Chain

from services.generation.backends import End, Job, Piece
from services.generation.steps import Growing
from services.verification.backends import Unscorable
from services.verification.steps import cut, texts

lined = st.lists(st.sampled_from(["a", "bc", " ", "", "é𝄞"]), max_size=12).map("\n".join)


@given(lined | st.text(max_size=60), st.lists(st.integers(0, 60), max_size=6))
def test_a_text_is_cut_as_generation_cuts_it_in_whatever_pieces_it_came(text: str, at: list[int]) -> None:
    growing = Growing(Job("m/0", 0, "q", [], "", Sampling()), 0)
    bounds = sorted({0, len(text), *(end for end in at if end < len(text))})
    for begin, end in pairwise(bounds):
        growing.add(Piece("m/0", text[begin:end], 5, -1.0))
    last = Piece("m/0", "", 1, end=End(FINISH_REASON_STOP, 1))
    growing.add(last)
    sample = growing.sample(last)
    assert [step.end for step in cut(text)] == [step.end for step in sample.steps]
    if text:
        assert sum(step.tokens for step in sample.steps) == sample.tokens


@given(lined | st.text(max_size=60))
def test_the_steps_are_the_whole_text(text: str) -> None:
    assert "".join(texts(Chain(text=text, steps=cut(text)))) == text


@given(lined, st.lists(st.integers(-3, 40), max_size=6))
def test_ends_that_divide_the_text_are_taken_and_others_are_not(text: str, ends: list[int]) -> None:
    chain = Chain(text=text, steps=[Step(end=end) for end in ends])
    bounds = [0, *ends]
    if all(a < b for a, b in pairwise(bounds)) and bounds[-1] == len(text):
        assert texts(chain) == [text[a:b] for a, b in pairwise(bounds)]
    else:
        with pytest.raises(Unscorable, match="ends at"):
            texts(chain)
