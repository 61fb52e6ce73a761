"""Server-sent events: however a stream is cut, its events are the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.sse import Events, EventTooLong

LINE_ENDS = [b"\n", b"\r\n", b"\r"]
LINES = [
    b"data: {}",
    b"data:1",
    b"data",
    b"data:  two",
    b": ping",
    b"event: x",
    b"id: 5",
    b"",
    b"\xff:\xfe",
    b":",
]


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    ends = sorted(place % (len(stream) + 1) for place in places)
    return [stream[a:b] for a, b in zip([0, *ends], [*ends, len(stream)], strict=True)]


def events(pieces: list[bytes], most: int = 1000) -> list[bytes]:
    parser = Events(most)
    return [event for piece in pieces for event in parser.feed(piece)]


streams = st.one_of(
    st.lists(st.tuples(st.sampled_from(LINES), st.sampled_from(LINE_ENDS))).map(
        lambda lines: b"".join(line + end for line, end in lines)
    ),
    st.lists(st.sampled_from([b"\r", b"\n", b":", b" ", b"data", b"d", b"\xef\xbb\xbf", b"\xef"])).map(
        b"".join
    ),
    st.binary(max_size=60),
)


@given(streams, st.lists(st.integers(0, 10_000), max_size=20))
def test_any_cut_gives_the_same_events(stream: bytes, places: list[int]) -> None:
    whole = events([stream])
    assert events(cut(stream, places)) == whole
    assert events([stream[i : i + 1] for i in range(len(stream))]) == whole


@given(
    st.lists(st.lists(st.binary(min_size=1).filter(lambda line: not set(b"\r\n") & set(line)), min_size=1))
)
def test_data_comes_back(data: list[list[bytes]]) -> None:
    stream = b"".join(b"".join(b"data: " + line + b"\r\n" for line in lines) + b"\r\n" for lines in data)
    assert events([stream], most=10**6) == [b"\n".join(lines) for lines in data]


def test_the_forms_of_the_standard() -> None:
    stream = b"\xef\xbb\xbfdata:a\ndata: b\n\n: ping\n\nevent: e\ndata: c\r\rdata\n\ndata: lost"
    assert events([stream]) == [b"a\nb", b"c"]


@pytest.mark.parametrize(
    "stream", [b"x" * 101, b"data: " + b"x" * 95, b"data: x\n" * 15, b"data: " + b"x" * 99 + b"\n\n"]
)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_event_that_is_too_long_is_refused(stream: bytes, size: int) -> None:
    with pytest.raises(EventTooLong):
        events([stream[i : i + size] for i in range(0, len(stream), size)], most=100)


def test_many_short_events_are_not_too_long() -> None:
    assert len(events([b"data: 1\n\n" * 1000], most=10)) == 1000
