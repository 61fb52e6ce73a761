"""Shadow decisions: how queries that have been answered would have begun by another profile.

Nothing is bought by them. They are made when the answer has gone out, one after the other and off the event
loop; where more queries wait than may, the rest are counted as skipped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace

import structlog
from isoflop.errors import IsoflopError
from isoflop.v1.difficulty_pb2 import Difficulty

from router.belief import NO_VOTES, update
from router.decision import Decision, State
from router.metrics_profiles import ProfileMetrics
from router.planner import Planner
from router.query import Query

log = structlog.get_logger()


@dataclass(frozen=True)
class First:
    """A query's first decision, and what was known."""

    query: Query
    difficulty: Difficulty
    state: State
    decision: Decision


class Shadow:
    """Decides again."""

    def __init__(self, metrics: ProfileMetrics, most_waiting: int) -> None:
        self._metrics = metrics
        self._most = most_waiting
        self._waiting: deque[tuple[Planner, First]] = deque()
        self._task: asyncio.Task[None] | None = None

    def compare(self, planner: Planner, first: First) -> None:
        """Decide again by `planner`, later, and count what comes of it."""
        if len(self._waiting) >= self._most:
            self._metrics.shadowed(planner.profile.version, "skipped")
            return
        self._waiting.append((planner, first))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="shadow decisions")

    async def close(self) -> None:
        """Leave what waits."""
        self._waiting.clear()
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while self._waiting:
            planner, first = self._waiting.popleft()
            version = planner.profile.version
            try:
                decision = await asyncio.to_thread(again, planner, first)
            except IsoflopError:
                self._metrics.shadowed(version, "refused")
            except Exception:
                log.exception("a shadow decision failed", version=version)
                self._metrics.shadowed(version, "failed")
            else:
                outcome = "same" if begins(decision) == begins(first.decision) else "otherwise"
                self._metrics.shadowed(version, outcome, expected(decision), expected(first.decision))


def again(planner: Planner, first: First) -> Decision:
    """What `planner` would have begun with; raises what it would have refused the query with."""
    belief = planner.profile.belief(first.difficulty.mean, first.difficulty.sd)
    posterior = update(belief, NO_VOTES)
    state = replace(first.state, posterior=posterior, confidence=posterior.confidence)
    return planner.decide(first.query, state)


def begins(decision: Decision) -> tuple[str, str, int, float] | None:
    """What a decision buys: model, strategy, samples and temperature; None: nothing."""
    if decision.action is None:
        return None
    action = decision.action.message()
    return action.model, action.strategy, action.samples, action.temperature


def expected(decision: Decision) -> float:
    """FLOPs that a decision expects, with all that it looks ahead by."""
    return decision.action.outlook().expected_flops if decision.action else 0.0
