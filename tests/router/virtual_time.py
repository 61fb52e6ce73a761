"""An event loop whose clock jumps to what happens next: hours pass in no time, and always alike."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Jumping(selectors.SelectSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        """Nobody else wakes the loop: where nothing is due, nothing will ever happen."""
        assert timeout is not None, "all tasks wait, and nothing will wake them"
        self.now += timeout
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jumping = _Jumping()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.now


def hold_up(seconds: float) -> None:
    """As something that takes so long and does not let the loop go on."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, _Loop)
    loop.jumping.now += seconds


def run(main: Coroutine[Any, Any, T]) -> T:
    """What it returns; its clock begins at 0."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)
