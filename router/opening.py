"""How a query begins, for those who learn from it: feedback and a shadow."""

from __future__ import annotations

from collections.abc import Callable

from isoflop.v1.router_pb2 import SolveRequest, SolveResponse

from router.decision import Decision
from router.explore import Draw
from router.feedback import Feedback, answered
from router.planner import Planner
from router.shadow import First
from router.tenants import Tenant


class Opening:
    """One query's first decision. Where nobody learns, it is done as planned, and nothing is kept."""

    def __init__(
        self,
        asked: SolveRequest,
        planner: Planner,
        feedback: Feedback | None,
        compare: Callable[[First], None] | None,
        tenant: Tenant,
    ) -> None:
        """`asked`: what the query was admitted from, by `tenant`; `feedback`: draws the first round and
        records what came of it; `compare`: takes the first decision when the answer has gone out."""
        self._asked = asked
        self._planner = planner
        self._feedback = feedback
        self._compare = compare
        self._tenant = tenant
        self._first: First | None = None
        self._drawn: Draw | None = None

    @property
    def explored(self) -> bool:
        """Whether the query has begun otherwise than planned."""
        return self._drawn is not None and self._drawn.explored

    def draw(self, first: First) -> Decision:
        """What is done first: as it is drawn where it is recorded, else as planned."""
        self._first = first
        if self._feedback is None:
            return first.decision
        self._drawn = self._feedback.draw(first.query.query_id, first.decision, self._tenant)
        return self._drawn.decision

    async def record(self, final: SolveResponse) -> None:
        """Keep what was decided and what came, before the answer goes out: feedback may come at once."""
        if self._feedback and self._first and self._drawn:
            kept = answered(final, self._asked, self._first, self._drawn, self._planner, self._tenant)
            await self._feedback.record(kept, self._first.query.deadline)

    def compare(self) -> None:
        """Have a shadow decide again; the answer has gone out."""
        if self._compare and self._first:
            self._compare(self._first)
