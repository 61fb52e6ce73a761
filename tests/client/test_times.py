"""Times as people write and read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isoflop.times import lasting, parse_time, told

NOW = datetime(2026, 11, 28, 10, 4, 54, 321, tzinfo=UTC)
MIDDLE_EUROPE = timezone(timedelta(hours=1))


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T14:30", datetime(2026, 11, 1, 14, 30, tzinfo=UTC)),
        ("2026-11-01 14:30:05", datetime(2026, 11, 1, 14, 30, 5, tzinfo=UTC)),
        ("2026-11-01T14:30:00Z", datetime(2026, 11, 1, 14, 30, tzinfo=UTC)),
        ("2026-11-01T14:30+01:00", datetime(2026, 11, 1, 13, 30, tzinfo=UTC)),
        ("24h", datetime(2026, 11, 27, 10, 4, 54, 321, tzinfo=UTC)),
        ("7d", datetime(2026, 11, 21, 10, 4, 54, 321, tzinfo=UTC)),
        ("0d", NOW),
        ("month", datetime(2026, 11, 1, tzinfo=UTC)),
    ],
)
def test_times(word: str, named: datetime) -> None:
    assert parse_time(word, NOW) == named


def test_the_month_is_that_of_utc() -> None:
    late = datetime(2026, 12, 1, 0, 30, tzinfo=MIDDLE_EUROPE)
    assert parse_time("month", late) == datetime(2026, 11, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "word", ["", "yesterday", "7", "7w", "-7d", "7.5d", "d", "2026-13-01", "2026-11-31", "months", "²d", "٣d"]
)
def test_what_is_no_time_is_told_what_is(word: str) -> None:
    with pytest.raises(
        ValueError, match=r"is no time: write a date as 2026-11-01, .* or month for its first day$"
    ):
        parse_time(word, NOW)


@pytest.mark.parametrize("word", ["9999999999d", "99999999999999999999h", "800000d"])
def test_too_long_ago(word: str) -> None:
    with pytest.raises(ValueError, match="is too long ago"):
        parse_time(word, NOW)


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_time_that_is_told_is_read_as_the_same(moment: datetime) -> None:
    assert parse_time(told(moment), NOW) == moment.replace(microsecond=0)


def test_a_time_is_told_no_finer_than_it_is() -> None:
    assert told(datetime(2026, 11, 1, tzinfo=UTC)) == "2026-11-01"
    assert told(datetime(2026, 11, 1, 14, 30, tzinfo=MIDDLE_EUROPE)) == "2026-11-01 13:30"
    assert told(NOW) == "2026-11-28 10:04:54"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0 s"),
        (0.01234, "0.0123 s"),
        (1.318, "1.32 s"),
        (59.99, "60 s"),
        (60.0, "1 min 0 s"),
        (3599.6, "1 h 0 min"),
        (7500.0, "2 h 5 min"),
        (86399.9, "1 d 0 h"),
        (273600.0, "3 d 4 h"),
    ],
)
def test_lengths_of_time(seconds: float, words: str) -> None:
    assert lasting(seconds) == words
