"""The work of the router: each request of the contract. Imports no grpc."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing

from isoflop.errors import FailedPrecondition, NotFound
from isoflop.v1 import router_pb2 as pb
from prometheus_client import CollectorRegistry

from router import frontier
from router.catalog import describe
from router.feedback import Feedback
from router.metrics import Metrics
from router.planner import Planner
from router.profile import Profile
from router.queries import Queries
from router.query import Bounds, admit
from router.settings import RouterSettings
from router.solve import Life
from router.stages import Stages
from router.strategies import STRATEGIES
from router.truths import SqliteTruths


class Router:
    """Answers queries with the cheapest plan that is good enough."""

    def __init__(
        self, settings: RouterSettings, stages: Stages, profile: Profile, registry: CollectorRegistry
    ) -> None:
        self._settings = settings
        self._stages = stages
        self._profile = profile
        self._metrics = Metrics(registry)
        self._metrics.profile(profile.version)
        self._queries = Queries(settings.kept_queries, settings.rejoin_seconds)
        self._bounds = Bounds(settings.max_prompt_bytes, settings.max_samples, settings.max_messages)
        self._known: Planner | None = None
        self._feedback: Feedback | None = None
        if settings.feedback:
            truths = SqliteTruths(settings.feedback, settings.kept_feedback_days)
            self._feedback = Feedback(settings, truths, stages.aggregation, self._metrics)

    async def solve(self, request: pb.SolveRequest, seconds: float = math.inf) -> pb.SolveResponse:
        """The answer and its bill; `seconds` is the time that the caller gives."""
        final = pb.SolveResponse()
        async with aclosing(self.stream(request, seconds, streamed=False)) as events:
            async for event in events:
                if event.HasField("final"):
                    final = event.final
        return final

    async def stream(
        self, request: pb.SolveRequest, seconds: float = math.inf, *, streamed: bool = True
    ) -> AsyncGenerator[pb.StreamSolveResponse, None]:
        """The same, with what happens on the way; the text of a single sample only where it is `streamed`."""
        running = self._queries.find(request)
        if running is None:
            life = await self._life(request, seconds, streamed=streamed)
            # Another call with this id may have come in meanwhile.
            running = self._queries.find(request) or self._queries.begin(life, request)
        async with aclosing(self._queries.follow(running)) as events:
            async for event in events:
                yield event

    async def plan(self, request: pb.SolveRequest, seconds: float = math.inf) -> pb.PlanResponse:
        """What would be done first, and why; nothing is sampled."""
        return await (await self._life(request, seconds)).dry_run()

    async def models(self) -> pb.ListModelsResponse:
        """What can be asked for."""
        catalog = (await self._planner()).catalog
        return pb.ListModelsResponse(
            models=catalog.models.values(),
            verifiers=catalog.verifiers.values(),
            strategies=list(STRATEGIES),
            profile=self._profile.version,
        )

    async def frontier(self) -> pb.GetFrontierResponse:
        """The measured frontier by difficulty."""
        return frontier.measure(self._profile, (await self._planner()).catalog)

    async def query(self, query_id: str) -> pb.GetQueryResponse:
        """A finished or running query."""
        return self._queries.get(query_id)

    async def feedback(self, request: pb.SubmitFeedbackRequest) -> pb.SubmitFeedbackResponse:
        """The truth about a finished query.

        Raises NotFound for an unknown query, and FailedPrecondition for one that still runs or where feedback
        is not kept.
        """
        if self._feedback is None:
            raise FailedPrecondition("this router keeps no feedback: start it with --feedback FILE")
        answered = await self._feedback.find(request.query_id)
        if answered:
            return await self._feedback.take(answered, request)
        try:
            running = self._queries.get(request.query_id).running
        except NotFound:
            raise NotFound(
                f"there is no query {request.query_id[:64]!r}, or it ended more than "
                f"{self._settings.kept_feedback_days:g} days ago: give the query_id of a result"
            ) from None
        if running:
            raise FailedPrecondition("the query still runs: give feedback to it when it has a result")
        raise FailedPrecondition("the query was not recorded when it ended: the router's log says why")

    async def close(self) -> None:
        """Cancel what runs."""
        await self._queries.close()
        if self._feedback:
            await self._feedback.close()

    async def _life(self, request: pb.SolveRequest, seconds: float, *, streamed: bool = False) -> Life:
        """Admit a request."""
        planner = await self._planner(request.filters.verifier)
        margin = self._settings.deadline_margin_seconds
        deadline = asyncio.get_running_loop().time() + seconds - margin
        query = admit(request, planner.catalog, self._bounds, deadline)
        settings = self._settings
        return Life(
            query,
            self._stages,
            planner,
            self._metrics,
            streamed=streamed,
            abort_seconds=settings.abort_seconds,
            give_up_below=settings.give_up_below,
            asked=request,
            feedback=self._feedback,
        )

    async def _planner(self, verifier: str = "") -> Planner:
        """The planner over what the services offer: asked for once they answer, and again for a verifier that
        is not among it, since one that could not be described is left out."""
        if self._known is None or (verifier and verifier not in self._known.catalog.verifiers):
            catalog = await describe(self._stages)
            self._known = Planner(
                self._profile, catalog, self._settings.round_samples, self._settings.max_samples
            )
        return self._known
