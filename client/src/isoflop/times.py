"""Times as people write and read them, in UTC: `2026-11-01`, `2026-11-01T14:30`, `7d`, `24h`, `month`."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

UTC = timezone.utc  # noqa: UP017 (Python 3.10 has no datetime.UTC)

AGO = {"h": timedelta(hours=1), "d": timedelta(days=1)}
"""What a number may be followed by: so many hours or days ago."""

MONTH = "month"
"""The first of the month."""

WAYS = (
    "a date as 2026-11-01, a time as 2026-11-01T14:30 (UTC unless it has a zone), 24h or 7d ago, "
    "or month for its first day"
)
"""To name a time, in words."""


def parse_time(word: str, now: datetime) -> datetime:
    """The time that a word names, seen from `now`; a time without a zone is UTC, as budgets and bills are.

    Raises ValueError, with a sentence that says what to write, for what names none.
    """
    if word == MONTH:
        return now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    if ago := re.fullmatch(r"([0-9]+)([hd])", word):
        try:
            return now - int(ago[1]) * AGO[ago[2]]
        except OverflowError:
            raise ValueError(f"{word!r} is too long ago") from None
    try:
        named = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", word))  # Python 3.10 takes no Z.
    except ValueError:
        raise ValueError(f"{word!r} is no time: write {WAYS}") from None
    return named if named.tzinfo else named.replace(tzinfo=UTC)


def told(moment: datetime) -> str:
    """A time in UTC, no finer than it is: `2026-11-01`, `2026-11-01 14:30` or `2026-11-01 14:30:05`."""
    written = moment.astimezone(UTC).isoformat(" ")[:19]
    return written.removesuffix(":00").removesuffix(" 00:00")


def lasting(seconds: float) -> str:
    """A length of time in two units at most: `1.32 s`, `4 min 10 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"
