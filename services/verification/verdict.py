"""What a critic's words come to. Pure functions.

Only the critic's own text is read, never the judged one. The last verdict counts: a critic thinks aloud, and
may quote what it judges.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from services.verification.backends import Unscorable

NUMBER = re.compile(r"(?P<value>[+-]?\d{1,9}(?:\.\d{1,9})?)(?:\s*(?:/|out of)\s*\d{1,9}(?:\.\d{1,9})?)?")
"""A verdict's number, with or without `/10` or `out of 10` behind it."""

VERDICT = re.compile(r"[\W_]*verdict[\W_]*?[:=][^\S\n]*(?P<said>.*)", re.IGNORECASE)
STEP = re.compile(r"[\W_]*step[^\S\n]*(?P<step>\d{1,9})[\W_]*?[:=][^\S\n]*(?P<said>.*)", re.IGNORECASE)
"""Lines with a verdict, whatever marks are around it."""


def overall(text: str, scale: int) -> float:
    """The score in [0, 1] of the last line `Verdict: N`, N from 0 to `scale`.

    Raises Unscorable where there is none, or where it is no such number.
    """
    lines = [found["said"] for line in text.splitlines() if (found := VERDICT.fullmatch(line))]
    if not lines:
        raise Unscorable("the critic came to no verdict")
    return _score("the critic's verdict", lines[-1], scale)


def each(text: str, steps: int, scale: int) -> Sequence[float]:
    """The scores in [0, 1] of the last line `Step i: N` for each of the steps 1, 2, ...

    Raises Unscorable where one is missing, or is no such number.
    """
    said: dict[int, str] = {}
    for line in text.splitlines():
        if found := STEP.fullmatch(line):
            said[int(found["step"])] = found["said"]
    missing = next((step for step in range(1, steps + 1) if step not in said), 0)
    if missing:
        raise Unscorable(f"the critic came to no verdict on step {missing}")
    return [_score(f"the critic's verdict on step {i}", said[i], scale) for i in range(1, steps + 1)]


def _score(what: str, said: str, scale: int) -> float:
    found = NUMBER.fullmatch(said.strip(" \t*_`.[]()"))
    if found is None:
        raise Unscorable(f"{what} is no number")
    value = float(found["value"])
    if not 0 <= value <= scale:
        raise Unscorable(f"{what} is not from 0 to {scale}")
    return value / scale
