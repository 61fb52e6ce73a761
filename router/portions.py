"""Requests in portions: over the wire a message has a limit (`isoflop.rpc`), and samples may be long."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import Message

M = TypeVar("M", bound=Message)

MOST_BYTES = 15 << 20
"""Of one request to a stage: under the limit of 16 MiB, with room for what frames its items."""


def portions(items: Iterable[M], room: int) -> tuple[list[list[M]], list[M]]:
    """The items in turn, as many together as have at most `room` bytes; and those that have more alone."""
    parts: list[list[M]] = []
    large: list[M] = []
    left = 0
    for item in items:
        size = item.ByteSize()
        if size > room:
            large.append(item)
            continue
        if not parts or size > left:
            parts.append([])
            left = room
        parts[-1].append(item)
        left -= size
    return parts, large
