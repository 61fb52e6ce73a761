"""Steps: whatever pieces a sample came in, they tile its text and share its tokens."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isoflop.v1.common_pb2 import FINISH_REASON_STOP, Message, Sample, Sampling

from services.generation.backends import End, Job, Piece
from services.generation.steps import Growing

END = End(FINISH_REASON_STOP, 0)
JOB = Job("m/0", 0, "q", [Message(role="user", content="1+1")], "", Sampling())

texts = st.text(st.sampled_from("a7 \n\r\t\x0b\u2028é🦉"), max_size=8)
lines = st.one_of(
    st.just(""),
    st.text(st.sampled_from("a7 \té🦉"), max_size=6),
    st.text(st.sampled_from("a7 \té🦉"), max_size=6).map(lambda line: line + "\n"),
)
logprobs = st.floats(-50, 0)


def pieces(
    text: st.SearchStrategy[str], logprob: st.SearchStrategy[float | None]
) -> st.SearchStrategy[list[Piece]]:
    return st.lists(
        st.builds(Piece, st.just("m/0"), text, st.integers(0, 9), logprob), min_size=1, max_size=12
    )


def grown(parts: list[Piece], job: Job = JOB) -> Sample:
    growing = Growing(job, 0)
    for part in parts:
        growing.add(part)
    return growing.sample(Piece("m/0", end=END))


def cut(sample: Sample) -> list[str]:
    """The texts of its steps."""
    ends = [0, *(step.end for step in sample.steps)]
    return [sample.text[begin:end] for begin, end in pairwise(ends)]


@given(pieces(texts, st.none() | logprobs))
def test_steps_tile_the_text_and_share_its_tokens(parts: list[Piece]) -> None:
    sample = grown(parts)
    assert sample.text == "".join(part.text for part in parts)
    assert sample.tokens == sum(part.tokens for part in parts)
    assert "".join(cut(sample)) == sample.text
    assert all(cut(sample)), "no step is empty"
    if sample.text:
        assert sum(step.tokens for step in sample.steps) == sample.tokens
        assert all(step.tokens >= 0 for step in sample.steps)


@given(pieces(texts, logprobs))
def test_log_probabilities_add_up(parts: list[Piece]) -> None:
    sample = grown(parts)
    total = sum(part.logprob or 0.0 for part in parts)
    assert sample.logprob == pytest.approx(total)
    if sample.text:
        assert sum(step.logprob for step in sample.steps) == pytest.approx(total)


@given(pieces(texts, st.none() | logprobs))
def test_a_log_probability_is_there_only_where_no_token_lacks_it(parts: list[Piece]) -> None:
    lacking = any(part.logprob is None and part.tokens for part in parts)
    given_at_all = any(part.logprob is not None for part in parts)
    assert grown(parts).HasField("logprob") == (given_at_all and not lacking)


@given(pieces(lines, st.none() | logprobs))
def test_the_same_holds_for_each_step(parts: list[Piece]) -> None:
    """A step that lacks the log-probability of one token would look more likely than it is."""
    sample = grown(parts)
    if not sample.text:
        return
    lacking = sum(part.tokens for part in parts if part.logprob is None)
    told = sum(step.tokens for step in sample.steps if step.HasField("logprob"))
    assert told <= sample.tokens - lacking


@given(pieces(texts, st.none()))
def test_a_step_ends_where_a_line_ends_and_its_blank_lines_with_it(parts: list[Piece]) -> None:
    steps = cut(grown(parts))
    assert all("\n" in step for step in steps[:-1])
    assert all(not step.partition("\n")[2].strip() for step in steps)
    # No step but the first is blank.
    assert all(step.strip() for step in steps[1:])


def test_blank_lines_belong_to_the_step_before_them() -> None:
    sample = grown([Piece("m/0", text, 1) for text in ("one\n", "\n", " \n", "two", "\n", "\n", "three")])
    assert cut(sample) == ["one\n\n \n", "two\n\n", "three"]
    assert [step.tokens for step in sample.steps] == [3, 3, 1]


def test_blank_lines_at_the_beginning_are_a_step_of_their_own() -> None:
    assert cut(grown([Piece("m/0", "\n", 1), Piece("m/0", "one", 1)])) == ["\n", "one"]


@pytest.mark.parametrize(("text", "steps"), [("\n \none\ntwo", ["\n \none\n", "two"]), ("\n\n", ["\n\n"])])
def test_blank_lines_at_the_beginning_of_a_continuation_belong_to_its_first_step(
    text: str, steps: list[str]
) -> None:
    sample = grown([Piece("m/0", part, 1, -0.5) for part in text], replace(JOB, prefix="zero\n"))
    assert cut(sample) == steps
    assert [step.tokens for step in sample.steps] == [len(step) for step in steps]
    assert [step.logprob for step in sample.steps] == [-0.5 * len(step) for step in steps]


def test_several_lines_in_one_piece_share_its_tokens_by_length() -> None:
    sample = grown([Piece("m/0", "12345678\n1\n", 11, -1.1)])
    assert cut(sample) == ["12345678\n", "1\n"]
    assert [step.tokens for step in sample.steps] == [9, 2]
    assert [step.logprob for step in sample.steps] == pytest.approx([-0.9, -0.2])


def test_ends_are_counted_in_code_points() -> None:
    assert [step.end for step in grown([Piece("m/0", "🦉é\n", 3), Piece("m/0", "x", 1)]).steps] == [3, 4]


def test_a_sample_without_text_has_no_steps() -> None:
    sample = grown([Piece("m/0", tokens=1, logprob=-0.5)])
    assert (sample.text, sample.tokens, list(sample.steps)) == ("", 1, [])
