"""What runs in a process that can be killed: a caller's pattern, and mathematics.

Both can take for ever and hold the interpreter while they do. This module is all that such a process
imports of ours, so it imports little.
"""

from __future__ import annotations

import logging
import re
import resource
import signal
from functools import lru_cache
from typing import Any

_POWER = re.compile(r"\*\*\s*([-+]?(?:[0-9.]+|[A-Za-z]))")

_math: Any = None


def start(memory_bytes: int, mathematics: bool) -> None:
    """Prepare a new process: what may kill it, its memory, and what it needs."""
    # At once, even within a long computation: the pool's own handler would wait for its end.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or memory_bytes < hard:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, hard))
    if mathematics:
        global _math
        import math_verify

        # It warns that its own time limits are off: they are because this process has one.
        logging.getLogger("math_verify").setLevel(logging.CRITICAL)
        _math = math_verify


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


def search(pattern: str, text: str) -> str | None:
    """The first group of the last match of `pattern` in `text`, without white space around it."""
    last = None
    for match in re.finditer(pattern, text):
        if match[1] and not match[1].isspace():
            last = match[1]
    return last.strip() if last else None
