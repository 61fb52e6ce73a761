"""What rounds took, added and subtracted number by number."""

from __future__ import annotations

from isoflop.v1.generation_pb2 import RoundUsage

NUMBERS = tuple(field.name for field in RoundUsage.DESCRIPTOR.fields)
"""All of its fields."""


def add(total: RoundUsage, usage: RoundUsage) -> None:
    """Add a round's usage to the total."""
    for name in NUMBERS:
        setattr(total, name, getattr(total, name) + getattr(usage, name))


def less(usage: RoundUsage, other: RoundUsage) -> RoundUsage:
    """The difference."""
    return RoundUsage(**{name: getattr(usage, name) - getattr(other, name) for name in NUMBERS})
