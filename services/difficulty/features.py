"""What a text shows of its difficulty, in microseconds: counts, nothing learned."""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

_NUMBER = re.compile(r"\d+")
_WORD = re.compile(r"[A-Za-z]{2,}")
_LATEX = re.compile(r"\\[A-Za-z]+")

NAMES = (
    "length",
    "numbers",
    "digits",
    "longest_number",
    "plus",
    "minus",
    "times",
    "long_times",
    "divide",
    "power",
    "parentheses",
    "depth",
    "words",
    "longest_word",
    "latex",
    "equals",
    "operations",
    "operations_squared",
)
"""Names of the features, in order."""

LOOKED_AT = 8192
"""Only so many characters are looked at: the time is bounded whatever comes."""


def features(text: str) -> NDArray[np.float64]:
    """The features of a query's text, shape (len(NAMES),), float64."""
    text = text[:LOOKED_AT]
    numbers = _NUMBER.findall(text)
    words = _WORD.findall(text)
    depth = deepest = 0
    for character in text:
        if character == "(":
            depth += 1
            deepest = max(deepest, depth)
        elif character == ")":
            depth -= 1
    plus, minus, times = text.count("+"), text.count("-"), text.count("*") + text.count("\\times")
    operations = plus + minus + times
    return np.array(
        [
            math.log1p(len(text)),
            math.log1p(len(numbers)),
            sum(map(len, numbers)),
            max(map(len, numbers), default=0),
            plus,
            minus,
            times,
            len(re.findall(r"\d\d\*\d\d|\)\*|\*\(", text)),
            text.count("/") + text.count("\\frac"),
            text.count("^"),
            text.count("("),
            deepest,
            math.log1p(len(words)),
            max(map(len, words), default=0),
            math.log1p(len(_LATEX.findall(text))),
            text.count("="),
            math.log1p(operations),
            operations * operations / 100,
        ],
        dtype=np.float64,
    )
