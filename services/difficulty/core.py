"""The work of difficulty: an estimate for each query."""

from __future__ import annotations

from isoflop.errors import InvalidArgument
from isoflop.v1.difficulty_pb2 import EstimateRequest, EstimateResponse
from prometheus_client import CollectorRegistry, Counter

from services.difficulty.estimator import Estimator
from services.difficulty.settings import DifficultySettings


class Difficulty:
    """Estimates how hard queries are."""

    def __init__(
        self, settings: DifficultySettings, estimator: Estimator, registry: CollectorRegistry
    ) -> None:
        self._settings = settings
        self._estimator = estimator
        self._queries = Counter("isoflop_difficulty_queries_total", "Queries estimated.", registry=registry)

    async def estimate(self, request: EstimateRequest) -> EstimateResponse:
        """One estimate for each query; raises InvalidArgument for too many, or one without messages."""
        if len(request.queries) > self._settings.max_queries:
            raise InvalidArgument("queries", f"at most {self._settings.max_queries} in one request")
        if any(not query.messages for query in request.queries):
            raise InvalidArgument("queries", "each needs a message")
        self._queries.inc(len(request.queries))
        return EstimateResponse(
            difficulties=[self._estimator.estimate(query.messages[-1].content) for query in request.queries],
            estimator=self._estimator.name,
            flops=self._estimator.flops * len(request.queries),
        )
