"""A command that was run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Awaitable[Ended]]
"""Runs a command line."""


def words(line: str) -> str:
    """A line without its alignment."""
    return " ".join(line.split())
