"""What runs in a process that can be killed: a caller's pattern, and mathematics.

Both can take for ever and hold the interpreter while they do. This module is all that such a process
imports of ours, so it imports little.
"""

from __future__ import annotations

import logging
import re
import resource
import signal
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

T = TypeVar("T")

_POWER = re.compile(r"\*\*\s*([-+]?(?:[0-9.]+|[A-Za-z]))")

_math: Any = None


def start(memory_bytes: int, mathematics: bool) -> None:
    """Prepare a new process: what may kill it, its memory, and what it needs."""
    # At once, even within a long computation: the pool's own handler would wait for its end.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or memory_bytes < hard:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, hard))
    if mathematics:
        global _math
        import math_verify

        # It warns that its own time limits are off: they are because this process has one.
        logging.getLogger("math_verify").setLevel(logging.CRITICAL)
        _math = math_verify
        # What it makes when it is first used is not counted for the first task.
        equivalent("x + 1", "1 + x")


def limited(seconds: float, function: Callable[..., T], *arguments: Any) -> T:
    """The result of a function; the process is killed by SIGPROF after seconds of processor time.

    So it does not matter how busy the machine is, nor what holds the interpreter.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        return function(*arguments)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def equivalent(one: str, other: str) -> bool:
    """Whether two expressions in LaTeX or plain notation are equal, as math-verify has it.

    Its `verify` is not symmetric (x = 5 answers 5): equal either way is equal.
    """
    first, second = _parsed(one), _parsed(other)
    return any(_math.verify(*pair, timeout_seconds=None) for pair in ((first, second), (second, first)))


@lru_cache(maxsize=4096)
def _parsed(expression: str) -> Any:
    # As LaTeX 9**9 would be read as 9.
    latex = _POWER.sub(r"^{\1}", expression).replace("**", "^")
    return _math.parse(f"${latex}$", parsing_timeout=None)


def workable(expression: str) -> bool:
    """True, unless mathematics takes for ever over an expression, as over 9^9^9^9, whatever the other is."""
    equivalent(expression, "0.123")
    return True


def pattern_fault(pattern: str) -> str:
    """What is wrong with a pattern; empty where nothing is. Some take a minute to be compiled."""
    try:
        groups = re.compile(pattern).groups
    except (re.error, RecursionError, OverflowError) as error:
        return f"not a regular expression of Python: {error}"
    return "" if groups == 1 else f"exactly one group marks the answer; it has {groups}"


def search(pattern: str, texts: list[str]) -> list[str | None]:
    """For each text the first group of the last match of `pattern`, without white space around it."""
    return [_last_match(pattern, text) for text in texts]


def _last_match(pattern: str, text: str) -> str | None:
    last = None
    for match in re.finditer(pattern, text):
        if match[1] and not match[1].isspace():
            last = match[1]
    return last.strip() if last else None
