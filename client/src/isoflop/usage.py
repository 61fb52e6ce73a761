"""Lines of bills, added up."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum

from isoflop.v1.common_pb2 import Usage

NUMBERS = tuple(
    field.name for field in Usage.DESCRIPTOR.fields if field.name not in ("stage", "model", "strategy")
)
"""Fields of Usage that are added up."""


def summed(usages: Sequence[Usage]) -> Usage:
    """The sums of their numbers; without stage, model and strategy."""
    total = Usage()
    for number in NUMBERS:
        add = fsum if isinstance(getattr(total, number), float) else sum
        setattr(total, number, add(getattr(usage, number) for usage in usages))
    return total
