"""Aggregation in the router itself, for when the service is down: the same core, made when it is needed."""

from __future__ import annotations

from isoflop.v1.aggregation_pb2 import AggregateRequest, AggregateResponse
from prometheus_client import CollectorRegistry

from services.aggregation.core import Aggregation
from services.aggregation.settings import AggregationSettings


class Aside:
    """Counts votes in this process.

    Expressions and patterns need the software of the extra `math` here, too: without it they are refused with
    FailedPrecondition.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        """`registry`: where it counts, once it is needed, what the service counts in its own."""
        self._registry = registry
        self._core: Aggregation | None = None

    async def aggregate(self, request: AggregateRequest) -> AggregateResponse:
        """Adds candidates to clusters."""
        if self._core is None:
            self._core = Aggregation(AggregationSettings(), self._registry)
        return await self._core.aggregate(request)

    async def close(self) -> None:
        """End the processes that compare."""
        if self._core:
            await self._core.close()
