"""Budgets as people write them: `2e9`, `5G`, `3T FLOPs`, `1000tok`, `0.02usd`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from decimal import Decimal

from isoflop.v1.router_pb2 import Budget

PREFIXES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
"""What a number may be followed by."""

UNITS = {
    "": "flops",
    "flop": "flops",
    "flops": "flops",
    "tok": "tokens",
    "token": "tokens",
    "tokens": "tokens",
    "usd": "money",
}
"""The field of Budget that each unit limits, whatever its case."""

_LIMIT = re.compile(
    r"(?P<number>[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?)\s*(?P<prefix>[kKMGTPE]?)\s*(?P<unit>(?i:{}))".format(
        "|".join(sorted(UNITS, reverse=True))
    )
)
_EXAMPLES = "write FLOPs as 2e9, 5G or 3T, tokens as 1000tok, money as 0.02usd"


def parse_budget(texts: Iterable[str]) -> Budget:
    """The limits that some texts name, each text one limit or several with commas between.

    A limit is a number, a prefix (k, M, G, T, P, E: powers of a thousand) and a unit: none or
    `flops` for floating-point operations, `tok` for prompt and generated tokens, `usd` for money.

    Raises ValueError, with a sentence that says what to write, for a limit that cannot be
    read, is not more than 0, is too large, or is given twice.
    """
    budget = Budget()
    for text in texts:
        for limit in text.split(","):
            field, amount = _parse_limit(limit.strip())
            if getattr(budget, field):
                raise ValueError(f"{text!r}: a second limit on {field}: give one")
            setattr(budget, field, amount)
            if field == "money":
                budget.currency = "USD"
    return budget


def _parse_limit(text: str) -> tuple[str, int | float]:
    match = _LIMIT.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is no budget: {_EXAMPLES}")
    field = UNITS[match["unit"].lower()]
    prefix = PREFIXES[match["prefix"]]
    amount = float(match["number"]) * prefix
    if not math.isfinite(amount):
        raise ValueError(f"{text!r} is too large")
    if amount <= 0:
        raise ValueError(f"{text!r} is not more than 0: leave the budget out for no limit")
    exact = Decimal(match["number"]) * prefix
    if field != "tokens":
        return field, float(exact)
    if exact != exact.to_integral_value():
        raise ValueError(f"{text!r} is no whole number of tokens")
    if exact >= 2**63:
        raise ValueError(f"{text!r} is too large")
    return field, int(exact)
