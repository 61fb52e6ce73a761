"""The work of the router: each request of the contract. Imports no grpc."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from isoflop.v1 import router_pb2 as pb
from prometheus_client import CollectorRegistry

from router import frontier
from router.catalog import describe
from router.metrics import Metrics
from router.planner import Planner
from router.price import Window
from router.profile import Profile
from router.purse import Purse
from router.queries import Queries
from router.query import Bounds, admit
from router.settings import RouterSettings
from router.solve import Life
from router.stages import Stages
from router.strategies import STRATEGIES


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
        self._purse: Purse | None = None
        if settings.budget_flops:
            window = Window(settings.budget_flops, settings.budget_window_seconds)
            self._purse = Purse(window, profile.efforts["medium"])
            self._metrics.budget(self._purse)
        self._queries = Queries(settings.kept_queries, settings.rejoin_seconds)
        self._bounds = Bounds(settings.max_prompt_bytes, settings.max_samples, settings.max_messages)
        self._known: Planner | None = None

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

    async def close(self) -> None:
        """Cancel what runs."""
        await self._queries.close()

    async def _life(self, request: pb.SolveRequest, seconds: float, *, streamed: bool = False) -> Life:
        """Admit a request."""
        planner = await self._planner(request.filters.verifier)
        margin = self._settings.deadline_margin_seconds
        deadline = asyncio.get_running_loop().time() + seconds - margin
        query = admit(request, planner.catalog, self._bounds, deadline)
        most = math.inf
        if self._purse:
            self._purse.check()
            most = self._purse.left
            if not request.effort and not request.objective.WhichOneof("kind"):
                most = self._purse.share
                query = replace(query, objective=replace(query.objective, worth=self._purse.worth))
        settings = self._settings
        return Life(
            query,
            self._stages,
            planner,
            self._metrics,
            streamed=streamed,
            abort_seconds=settings.abort_seconds,
            give_up_below=settings.give_up_below,
            purse=self._purse,
            most=most,
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
