"""Deadlines in the event loop's time; infinite where there is none."""

from __future__ import annotations

import asyncio
import math

LATE_SECONDS = 0.1
"""How long after a query's deadline, which lies before its caller's, what ends it may still take."""


def until(deadline: float) -> asyncio.Timeout:
    """Within it what is awaited raises TimeoutError at the deadline."""
    return asyncio.timeout_at(None if math.isinf(deadline) else deadline)
