"""Calendar windows, in UTC: each begins where the one before it ends. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime

HOUR = 3600.0
DAY = 24 * HOUR
WEEK = 7 * DAY
MONTH = "month"

LENGTHS = {"hour": HOUR, "day": DAY, "week": WEEK}
"""Seconds of each period that is always as long."""

NAMES = (*LENGTHS, MONTH)
"""Of all periods that have one."""

MONDAY = 4 * DAY
"""The epoch was a Thursday."""


@dataclass(frozen=True)
class Period:
    """How calendar windows follow each other: hours, days, weeks from Monday, months, or so many seconds."""

    name: str
    """One of NAMES, or a number of seconds from the epoch on."""

    @classmethod
    def of(cls, seconds: float) -> Period:
        """Windows of so many seconds; positive."""
        return cls(repr(float(seconds)))

    @property
    def seconds(self) -> float:
        """How long a window is; of a month the mean."""
        return 365.2425 / 12 * DAY if self.name == MONTH else LENGTHS.get(self.name) or float(self.name)

    def start(self, now: float) -> float:
        """When the window of that time began, in seconds since the epoch."""
        if self.name == MONTH:
            return _first(*_month(now))
        first = MONDAY if self.name == "week" else 0.0
        return first + math.floor((now - first) / self.seconds) * self.seconds

    def end(self, now: float) -> float:
        """When it ends."""
        if self.name == MONTH:
            year, month = _month(now)
            return _first(year + month // 12, month % 12 + 1)
        return self.start(now) + self.seconds


def _month(now: float) -> tuple[int, int]:
    date = datetime.fromtimestamp(now, UTC)
    return date.year, date.month


def _first(year: int, month: int) -> float:
    return datetime(year, month, 1, tzinfo=UTC).timestamp()
