"""What a text shows of its difficulty, in microseconds: counts, nothing learned.

Counts are on a log scale, shares between 0 and 1. Some tell hard from easy; others (`odd`, `symbols`,
`longest_run`) mostly tell a query from what is none.
"""

from __future__ import annotations

import math
import re
import zlib
from itertools import islice

import numpy as np
from numpy.typing import NDArray

MOST_CHARACTERS = 1024
"""Unless set otherwise, only so many characters are looked at, so that the time is bounded."""
MOST_WORDS = 256
"""Only so many words are hashed, for the same reason."""
BUCKETS = 512
"""Words and pairs of words fall into so many buckets."""

_NUMBER = re.compile(r"\d+")
_LETTERS = re.compile(r"[^\W\d_]+")
_LATEX = re.compile(r"\\[A-Za-z]+")
_PARENTHESIS = re.compile(r"[()]")
_LONG_PRODUCT = re.compile(r"\d\d\*\d\d|\)\*|\*\(")
_SENTENCE = re.compile(r"[.?!](?!\S)")
_ODD = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffd]")
_TOKEN = re.compile(r"\\?[^\W\d_]+|\d+|[^\w\s]")

COUNTS = (
    "length",
    "words",
    "word_length",
    "longest_word",
    "longest_run",
    "sentences",
    "lines",
    "numbers",
    "digits",
    "longest_number",
    "variables",
    "plus",
    "minus",
    "times",
    "long_times",
    "divide",
    "power",
    "equals",
    "operations",
    "parentheses",
    "depth",
    "commas",
    "dollars",
    "latex",
)
SHARES = ("letters", "spaces", "symbols", "odd")
NAMES = COUNTS + SHARES
"""Names of the features, in order."""


def features(text: str, most: int = MOST_CHARACTERS) -> NDArray[np.float64]:
    """The features of a query's text, shape (len(NAMES),), float64, finite."""
    whole, text = len(text), text[:most]
    size = max(len(text), 1)
    numbers = [len(number) for number in _NUMBER.findall(text)]
    letters = [len(run) for run in _LETTERS.findall(text)]
    words = [length for length in letters if length > 1]
    runs = [len(run) for run in text.split()]
    depth = deepest = 0
    for parenthesis in _PARENTHESIS.findall(text):
        depth += 1 if parenthesis == "(" else -1
        deepest = max(deepest, depth)
    plus, minus = text.count("+"), text.count("-")
    times = text.count("*") + text.count("\\times") + text.count("\\cdot")
    divide, power = text.count("/") + text.count("\\frac"), text.count("^")
    counts = (
        whole,
        len(words),
        sum(words) / max(len(words), 1),
        max(words, default=0),
        max(runs, default=0),
        len(_SENTENCE.findall(text)),
        text.count("\n"),
        len(numbers),
        sum(numbers),
        max(numbers, default=0),
        len(letters) - len(words),
        plus,
        minus,
        times,
        len(_LONG_PRODUCT.findall(text)),
        divide,
        power,
        text.count("="),
        plus + minus + times + divide + power,
        text.count("("),
        deepest,
        text.count(","),
        text.count("$"),
        len(_LATEX.findall(text)),
    )
    shares = (sum(letters), len(text) - sum(runs), sum(runs) - sum(letters) - sum(numbers), _odd(text))
    return np.array([*map(math.log1p, counts), *(share / size for share in shares)], dtype=np.float64)


def hashed_words(text: str, most: int = MOST_CHARACTERS) -> NDArray[np.float64]:
    """How often words and pairs of neighbours occur, by bucket, shape (BUCKETS,): length 1, or all zero."""
    counts = [0] * BUCKETS
    before = b""
    for match in islice(_TOKEN.finditer(text[:most].lower()), MOST_WORDS):
        word = match[0].encode("utf-8", "replace")
        counts[zlib.crc32(word) % BUCKETS] += 1
        counts[zlib.crc32(before + b" " + word) % BUCKETS] += 1
        before = word
    found = np.log1p(np.array(counts, dtype=np.float64))
    length = math.sqrt(float(found @ found))
    return found / length if length else found


def _odd(text: str) -> int:
    """Characters that no writing has: controls, halves of pairs, replacements."""
    return 0 if text.isprintable() else len(_ODD.findall(text))
