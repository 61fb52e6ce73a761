"""Chunks of OpenAI's API: whatever a server sends, it is taken, or refused with one of two errors."""

from __future__ import annotations

import json
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


@given(st.lists(nearly | anything, max_size=6), st.integers(0, 5), st.booleans())
def test_whatever_comes_is_taken_or_refused(chunks: list[Any], most: int, stream_text: bool) -> None:
    job = Job("m/0", 0, "q", QUESTION, "", Sampling(max_tokens=most))
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


def _pieces(round: Round) -> list[Piece]:
    pieces = []
    while not round._pieces.empty():
        piece = round._pieces.get_nowait()
        assert isinstance(piece, Piece)
        pieces.append(piece)
    return pieces
