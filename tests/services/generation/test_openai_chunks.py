"""Chunks of OpenAI's API: whatever a server sends, it is taken, or refused with one of two errors."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from isoflop.v1.common_pb2 import Sampling
from scripted_backend import QUESTION

from services.generation.backends import Job, Piece, Round
from services.generation.backends.chunks import Answer, ErrorChunk, Malformed, Prompt
from services.generation.steps import Growing

KEYS = [
    *[
        "choices",
        "delta",
        "content",
        "text",
        "index",
        "finish_reason",
        "logprobs",
        "token_logprobs",
        "logprob",
    ],
    *["usage", "prompt_tokens", "completion_tokens", "prompt_tokens_details", "cached_tokens", "timings"],
    *["prompt_n", "cache_n", "predicted_n", "error", "code", "reasoning_content"],
]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, 2**31, -1, 0, 1]),
    st.floats(),
    st.sampled_from(["stop", "length", "abort", "a\nb", "\ud835", ""]),
    st.text(max_size=5),
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


def right(text: str, logprobs: Any, usage: Any, reason: Any) -> dict[str, Any]:
    """A chunk that is nearly right."""
    choice = {
        "index": 0,
        "delta": {"content": text},
        "logprobs": {"content": logprobs},
        "finish_reason": reason,
    }
    return {"choices": [choice], "usage": usage}


nearly = st.builds(
    right,
    st.text(max_size=3),
    st.lists(st.fixed_dictionaries({"logprob": scalars}), max_size=2) | anything,
    st.none() | st.fixed_dictionaries({"prompt_tokens": scalars, "completion_tokens": scalars}) | anything,
    st.none() | scalars,
)


@given(st.lists(nearly | anything, max_size=6), st.integers(0, 5), st.booleans(), st.booleans())
def test_whatever_comes_is_taken_or_refused(
    chunks: list[Any], most: int, stream_text: bool, one_step: bool
) -> None:
    job = Job("m/0", 0, "q", QUESTION, "", Sampling(max_tokens=most, one_step=one_step))
    round = Round([job], stream_text)
    answer = Answer(round, job, Prompt(8))
    answer.asked = True
    for chunk in chunks:
        with suppress(Malformed, ErrorChunk):
            answer.take(json.dumps(chunk).encode())
        if answer.cut:
            break
    answer.close()
    growing, pieces = Growing(job, 0), _pieces(round)
    for piece in pieces:
        growing.add(piece)
        assert piece.tokens >= 0
    end = pieces[-1].end
    assert end is not None
    assert min(end.prompt_tokens, end.cached_tokens, end.unseen_tokens) >= 0
    # All of it fits into the contract's messages.
    sample = growing.sample(pieces[-1])
    assert sample.SerializeToString()
    assert not most or sample.tokens <= most


@given(st.lists(st.text(st.sampled_from("a \t\n\r\x0b\u2028é"), min_size=1, max_size=4), max_size=8))
def test_however_a_text_is_cut_into_chunks_a_step_is_its_first_line_that_is_not_blank(
    parts: list[str],
) -> None:
    round = Round([Job("m/0", 0, "q", QUESTION, "", Sampling(one_step=True))])
    answer = Answer(round, round.jobs[0], Prompt(8))
    for part in parts:
        answer.take(json.dumps(right(part, None, None, None)).encode())
        if answer.cut:
            break
    answer.close()
    whole, text = "".join(parts), "".join(piece.text for piece in _pieces(round))
    line = re.match(r"\s*\S[^\n]*\n", whole)
    assert answer.cut == answer.finished == bool(line)
    if line:
        assert whole.startswith(text)
        # Blank lines that came with its end are a part of it.
        assert text.endswith("\n")
        assert not text.removeprefix(line[0]).strip()
        assert text.startswith(line[0])
    else:
        assert text == whole


def _pieces(round: Round) -> list[Piece]:
    pieces = []
    while not round._pieces.empty():
        piece = round._pieces.get_nowait()
        assert isinstance(piece, Piece)
        pieces.append(piece)
    return pieces
