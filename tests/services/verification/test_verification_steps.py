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

BREAKS = "\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
"""Line ends of `str.splitlines` at which no step ends."""

lined = st.lists(st.sampled_from(["a", "bc", " ", "", "é𝄞"]), max_size=12).map("\n".join)


@given(lined | st.text(st.characters(exclude_characters=BREAKS), max_size=60))
def test_a_text_is_cut_as_generation_cuts_it(text: str) -> None:
    growing = Growing(Job("m/0", 0, "q", [], "", Sampling()), 0)
    last = Piece("m/0", text, 5, end=End(FINISH_REASON_STOP, 1))
    growing.add(last)
    assert [step.end for step in cut(text)] == [step.end for step in growing.sample(last).steps]


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
