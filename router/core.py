"""The work of the router: each request of the contract. Imports no grpc."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import aclosing
from dataclasses import replace
from functools import partial

import structlog
from isoflop.errors import FailedPrecondition, NotFound
from isoflop.v1 import router_pb2 as pb
from isoflop.v1.generation_pb2 import DescribeModelsRequest
from prometheus_client import CollectorRegistry
from threadpoolctl import threadpool_limits

from router import frontier
from router.breakers import Breakers, State
from router.catalog import Catalog, describe
from router.feedback import Feedback
from router.guarded import guarded
from router.metrics import Metrics
from router.opening import Opening
from router.pace import Pace
from router.period import Period
from router.planner import Planner
from router.price import Window
from router.profile import Profile
from router.profiles import InForce, Loaded
from router.purse import Grant, Purse
from router.queries import Queries
from router.query import Bounds, Query, admit
from router.settings import RouterSettings
from router.shadow import Shadow
from router.solve import Life
from router.stages import Aggregation, Stages
from router.strategies import STRATEGIES
from router.truths import SqliteTruths

log = structlog.get_logger()

Tell = Callable[[str, bool], Awaitable[None]]
"""Takes the name of a part of the service, and whether it is well."""

ROLES = {
    "live": pb.PROFILE_ROLE_LIVE,
    "canary": pb.PROFILE_ROLE_CANARY,
    "shadow": pb.PROFILE_ROLE_SHADOW,
}


def tell(part: str, state: State) -> None:
    """Say that a part is down, or is back."""
    if state != "half_open":
        log.warning("a part is down" if state == "open" else "a part is back", part=part)


class Router:
    """Answers queries with the cheapest plan that is good enough."""

    def __init__(
        self,
        settings: RouterSettings,
        stages: Stages,
        profile: Profile | InForce,
        registry: CollectorRegistry,
        aside: Aggregation | None = None,
    ) -> None:
        """`aside` counts votes where aggregation is down; none: it is in this process."""
        # A decision is many small products of matrices: threads that wait for each other make it slower.
        threadpool_limits(1, user_api="blas")
        self._settings = settings
        self._metrics = Metrics(registry)
        self._breakers = Breakers(settings.terms, tell)
        self._stages = guarded(
            stages,
            self._breakers,
            stage_seconds=settings.stage_seconds,
            score_seconds=settings.score_seconds,
            aside=aside,
        )
        self._known: Catalog | None = None
        self._planners: dict[Loaded, Planner] = {}
        self._changed = asyncio.Event()
        self._in_force = profile if isinstance(profile, InForce) else InForce(Loaded(profile))
        self._take(self._in_force)
        self._pace = Pace()
        self._shadow = Shadow(self._metrics, settings.shadow_waiting)
        self._purse: Purse | None = None
        if settings.budget_flops:
            window = Window(settings.budget_flops, Period.of(settings.budget_window_seconds))
            self._purse = Purse(window, self._in_force.live.profile.efforts["medium"])
            self._metrics.budget(self._purse)
        self._queries = Queries(settings.kept_queries, settings.rejoin_seconds)
        self._bounds = Bounds(
            settings.max_prompt_bytes,
            settings.max_samples,
            settings.max_messages,
            settings.max_depth,
            settings.max_nodes,
        )
        self._feedback: Feedback | None = None
        if settings.feedback:
            truths = SqliteTruths(settings.feedback, settings.kept_feedback_days)
            self._feedback = Feedback(settings, truths, self._stages.aggregation, self._metrics)
        if settings.pin_model:
            log.warning("nothing is planned", pin_model=settings.pin_model, pin_samples=settings.pin_samples)

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
        life = await self._life(request, seconds)
        await life.estimate()
        _, decision = life.plan()
        action = decision.action
        return pb.PlanResponse(
            difficulty=life.difficulty,
            action=action.message() if action else None,
            reason=decision.reason,
            rejected=decision.rejected,
            outlook=action.outlook() if action else None,
            profile=life.planner.profile.version,
        )

    async def models(self) -> pb.ListModelsResponse:
        """What can be asked for."""
        catalog = await self.catalog()
        now = time.time()
        return pb.ListModelsResponse(
            models=catalog.models.values(),
            verifiers=catalog.verifiers.values(),
            strategies=list(STRATEGIES),
            profile=self._in_force.live.version,
            profiles=[
                pb.ProfileInForce(
                    version=loaded.version,
                    role=ROLES[role],
                    share=self._in_force.share if role == "canary" else 0.0,
                    age_seconds=max(0.0, now - loaded.modified),
                )
                for role, loaded in self._in_force.roles.items()
            ],
            profile_faults=self._in_force.faults,
        )

    async def frontier(self) -> pb.GetFrontierResponse:
        """The measured frontier by difficulty."""
        return frontier.measure(self._in_force.live.profile, await self.catalog())

    async def query(self, query_id: str) -> pb.GetQueryResponse:
        """A finished or running query."""
        return self._queries.get(query_id)

    async def budget(self, request: pb.GetBudgetRequest) -> pb.GetBudgetResponse:
        """What budgets have left."""
        raise FailedPrecondition("not yet")

    async def bill(self, request: pb.GetBillRequest) -> pb.GetBillResponse:
        """What queries have cost."""
        raise FailedPrecondition("not yet")

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

    async def end(self) -> None:
        """Cancel the queries that run: their callers are told to ask again, and what they took is counted."""
        await self._queries.close()

    async def close(self) -> None:
        """Cancel what runs."""
        await self._queries.close()
        if self._feedback:
            await self._feedback.close()
        await self._shadow.close()

    def adopt(self, found: InForce) -> None:
        """Plan by these profiles, from the next query on; as far as they fit the catalogue."""
        if self._known:
            found = found.among(self._known.models, self._in_force)
        self._take(found)

    async def check(self, strict: bool) -> None:
        """See that settings fit the models.

        Raises FailedPrecondition where the pinned one is not there or, where `strict`, the live profile has
        measured none of them.
        """
        models = [
            model.name for model in (await self._stages.generation.describe(DescribeModelsRequest())).models
        ]
        pin, live = self._settings.pin_model, self._in_force.live
        if pin and pin not in models:
            raise FailedPrecondition(
                f"setting pin_model: there is no model {pin!r}; there are: {', '.join(models)}"
            )
        if strict and not live.fits(models):
            raise FailedPrecondition(
                f"profile {live.version} has measured {', '.join(live.unknown(models))}, and the "
                f"catalogue has {', '.join(models)}: name a profile of these, or leave the setting out"
            )

    async def well(self, tell: Tell) -> None:
        """Tell health under a name of its own, for ever, whether the profiles' files are good."""
        while True:
            self._changed.clear()
            await tell("isoflop.v1.RouterService.profile", not self._in_force.faults)
            await self._changed.wait()

    async def catalog(self, verifier: str = "") -> Catalog:
        """What the services offer: asked for once they answer, and again for a verifier that is not among it,
        since one that could not be described is left out; and as long as nobody knows which there are."""
        known = self._known
        if known is None or known.unverified or (verifier and verifier not in known.verifiers):
            catalog = await describe(self._stages)
            if catalog != known:
                self._known = catalog
                self._planners.clear()
            if known is None:
                self._meet(catalog)
            return catalog
        return known

    async def _life(self, request: pb.SolveRequest, seconds: float, *, streamed: bool = False) -> Life:
        """Admit a request."""
        catalog = await self.catalog(request.filters.verifier)
        settings, in_force = self._settings, self._in_force
        deadline = asyncio.get_running_loop().time() + seconds - settings.deadline_margin_seconds
        query = admit(request, catalog, self._bounds, deadline)
        if settings.pin_model and not (query.models or query.strategies or query.samples):
            query = self._pin(query, catalog)
        query, allowance = self._grant(request, query)
        loaded = in_force.chosen(request.request_id or query.query_id)
        planner, compare = self._planner(loaded, catalog), None
        if in_force.shadow and loaded is in_force.live and not query.samples:
            compare = partial(self._shadow.compare, self._planner(in_force.shadow, catalog))
        return Life(
            query,
            self._stages,
            planner,
            self._metrics,
            allowance=allowance,
            opening=Opening(request, planner, self._feedback, compare),
            pace=self._pace,
            breakers=self._breakers,
            streamed=streamed,
            abort_seconds=settings.abort_seconds,
            give_up_below=settings.give_up_below,
        )

    def _grant(self, request: pb.SolveRequest, query: Query) -> tuple[Query, Grant]:
        """What a query may spend; one that says nothing of it is planned at the price of the purse."""
        purse = self._purse
        if purse is None:
            return query, Grant(query.limit)
        purse.check()
        if request.effort or request.objective.WhichOneof("kind") or query.samples:
            return query, Grant(query.limit, purse, purse.left)
        objective = replace(query.objective, worth=purse.worth)
        return replace(query, objective=objective), Grant(query.limit, purse, purse.share)

    def _pin(self, query: Query, catalog: Catalog) -> Query:
        """The query with the router's own plan."""
        settings = self._settings
        if settings.pin_model not in catalog.models:
            raise FailedPrecondition(
                f"the router's setting pin_model says {settings.pin_model!r}, which is none of its models: "
                f"{', '.join(catalog.models)}; name a model, or have the setting changed"
            )
        # At temperature 0 all samples are the same.
        samples = 1 if query.temperature == 0 else settings.pin_samples
        return replace(query, models=(settings.pin_model,), samples=samples, pinned=True)

    def _planner(self, loaded: Loaded, catalog: Catalog) -> Planner:
        """Kept, as long as profiles and catalogue stay."""
        if loaded not in self._planners:
            settings = self._settings
            self._planners[loaded] = Planner(
                loaded.profile, catalog, settings.round_samples, settings.max_samples
            )
        return self._planners[loaded]

    def _meet(self, catalog: Catalog) -> None:
        """The catalogue is known now: see whether the profiles fit it."""
        found = self._in_force.among(catalog.models, None)
        if found.faults != self._in_force.faults:
            self._take(found, self._in_force.faults)
        else:
            self._tell_unknown(catalog)

    def _take(self, found: InForce, known_faults: Collection[str] = ()) -> None:
        """Work with these profiles, and say so."""
        self._in_force = found
        self._planners.clear()
        new = [fault for fault in found.faults if fault not in known_faults]
        self._metrics.profiles(found, len(new))
        for fault in new:
            log.error("a profile is not used", reason=fault)
        for role, loaded in found.roles.items():
            hours = round((time.time() - loaded.modified) / 3600, 1)
            more = {"share": found.share} if role == "canary" else {}
            log.info("profile in force", role=role, version=loaded.version, age_hours=hours, **more)
        if self._known:
            self._tell_unknown(self._known)
        self._changed.set()

    def _tell_unknown(self, catalog: Catalog) -> None:
        """Arms of models that are not in the catalogue are no fault: a model may come and go."""
        for loaded in self._in_force.roles.values():
            if names := loaded.unknown(catalog.models):
                log.warning(
                    "the catalogue has not all models of a profile", version=loaded.version, lacks=names
                )
