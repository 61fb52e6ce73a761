"""Calendar windows follow each other without gaps."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.period import NAMES, Period

periods = st.builds(Period.of, st.floats(1.0, 1e6)) | st.builds(Period, st.sampled_from(NAMES))
# To the year 2200.
times = st.integers(0, 7_258_118_400)


@given(periods, times)
def test_a_time_lies_in_its_window_and_the_next_begins_where_it_ends(period: Period, now: int) -> None:
    start, end = period.start(now), period.end(now)
    assert start <= now < end + 1e-3
    assert period.start(end + 1e-2) == pytest.approx(end)
    assert 0.9 * period.seconds < end - start < 1.1 * period.seconds


@pytest.mark.parametrize(
    ("name", "start", "end"),
    [
        ("hour", "2026-11-28T09:00", "2026-11-28T10:00"),
        ("day", "2026-11-28T00:00", "2026-11-29T00:00"),
        ("week", "2026-11-23T00:00", "2026-11-30T00:00"),
        ("month", "2026-11-01T00:00", "2026-12-01T00:00"),
    ],
)
def test_windows_are_those_of_the_calendar(name: str, start: str, end: str) -> None:
    now = datetime(2026, 11, 28, 9, 53, tzinfo=UTC).timestamp()
    period = Period(name)
    assert datetime.fromtimestamp(period.start(now), UTC) == datetime.fromisoformat(f"{start}Z")
    assert datetime.fromtimestamp(period.end(now), UTC) == datetime.fromisoformat(f"{end}Z")
