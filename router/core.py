"""The work of the router: each request of the contract. Imports no grpc."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial

import structlog
from isoflop.errors import FailedPrecondition, NotFound, Unavailable
from isoflop.v1 import router_pb2 as pb
from isoflop.v1.generation_pb2 import DescribeModelsRequest
from prometheus_client import CollectorRegistry
from threadpoolctl import threadpool_limits

from router import account, frontier
from router.account import Account, in_time
from router.accounts import bill_asked, bill_message, query_message, standing_message
from router.admission import Admission
from router.breakers import Breakers, State
from router.catalog import Catalog, describe
from router.debts import Debts
from router.feedback import Feedback
from router.guarded import guarded
from router.ledger import Entry, Ledger
from router.ledger.journal import Journal
from router.ledger.sql import open_ledger
from router.limits import Limits
from router.metrics import Metrics, failure
from router.once import Once
from router.opening import Opening
from router.pace import Pace
from router.planner import Planner
from router.profile import Profile
from router.profiles import InForce, Loaded
from router.queries import Queries, Running
from router.query import Bounds, Query, admit
from router.settings import RouterSettings
from router.shadow import Shadow
from router.solve import Life
from router.stages import Aggregation, Stages
from router.strategies import STRATEGIES
from router.tenants import Tenant, Tenants
from router.truths import SqliteTruths

log = structlog.get_logger()

Tell = Callable[[str, bool], Awaitable[None]]
"""Takes the name of a part of the service, and whether it is well."""

ROLES = {
    "live": pb.PROFILE_ROLE_LIVE,
    "canary": pb.PROFILE_ROLE_CANARY,
    "shadow": pb.PROFILE_ROLE_SHADOW,
}


class Router:
    """Answers queries with the cheapest plan that is good enough."""

    def __init__(
        self,
        settings: RouterSettings,
        stages: Stages,
        profile: Profile | InForce,
        registry: CollectorRegistry,
        tenants: Tenants | None = None,
        aside: Aggregation | None = None,
    ) -> None:
        """`tenants`: who may ask; None: everybody, as the settings say. `aside` counts votes where
        aggregation is down; None: it is in this process."""
        # A decision is many small products of matrices: threads that wait for each other make it slower.
        threadpool_limits(1, user_api="blas")
        self._settings = settings
        self._metrics = Metrics(registry, settings.core_flops)
        self._breakers = Breakers(settings.terms, self._hear)
        self._stages = guarded(
            stages,
            self._breakers,
            stage_seconds=settings.stage_seconds,
            score_seconds=settings.score_seconds,
            aside=aside,
            fell_back=self._metrics.pools.fallback,
        )
        self._known: Catalog | None = None
        self._planners: dict[Loaded, Planner] = {}
        self._changed = asyncio.Event()
        self._in_force = profile if isinstance(profile, InForce) else InForce(Loaded(profile))
        self._take(self._in_force)
        self._pace = Pace()
        self._metrics.pools.follow(self._pace)
        self._shadow = Shadow(self._metrics.profiles, settings.shadow_waiting)
        self._id = uuid.uuid4().hex
        self._limits = Limits()
        self._admission = Admission(settings.max_running, settings.max_waiting, settings.max_wait_seconds)
        self._tenants = tenants or Tenants.open(settings.budget_flops, settings.budget_window_seconds)
        self.admit(self._tenants)
        self._ledger = Journal(
            self._open_ledger(), self._metrics.ledger, go_on=settings.ledger_down == "go_on"
        )
        self._debts = Debts(self._stages.generation, self._metrics, settings.debt_seconds)
        self._once = Once(self._ledger, self._id)
        self._queries = Queries(settings.rejoin_seconds)
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
            aggregation = self._stages.aggregation
            self._feedback = Feedback(settings, truths, aggregation, self._metrics.profiles)
        if settings.pin_model:
            log.warning("nothing is planned", pin_model=settings.pin_model, pin_samples=settings.pin_samples)

    async def solve(
        self, request: pb.SolveRequest, seconds: float = math.inf, tenant: str = ""
    ) -> pb.SolveResponse:
        """The answer and its bill; `seconds` is the time that the caller gives."""
        final = pb.SolveResponse()
        async with aclosing(self.stream(request, seconds, tenant, streamed=False)) as events:
            async for event in events:
                if event.HasField("final"):
                    final = event.final
        return final

    async def stream(
        self,
        request: pb.SolveRequest,
        seconds: float = math.inf,
        tenant: str = "",
        *,
        streamed: bool = True,
    ) -> AsyncGenerator[pb.StreamSolveResponse, None]:
        """The same, with what happens on the way; the text of a single sample only where it is `streamed`."""
        who = self._tenants.find(tenant)
        running = self._queries.find(who.name, request)
        if running is None:
            deadline = asyncio.get_running_loop().time() + seconds
            play = partial(self._play, request, who, deadline, streamed)
            running = self._queries.begin(who.name, request, play)
        async with aclosing(self._queries.follow(running)) as events:
            async for event in events:
                yield event

    async def _play(
        self, request: pb.SolveRequest, who: Tenant, deadline: float, streamed: bool, running: Running
    ) -> AsyncGenerator[pb.StreamSolveResponse, None]:
        """Admit a query, and solve it: unless an earlier call with its request id does, or has."""
        life, written = None, False
        try:
            life = await self._life(request, deadline, who, streamed=streamed)
            if request.request_id:
                written = True
                # Who only comes back needs no place.
                async with aclosing(self._once.begin(life, request, deadline)) as events:
                    async for event in events:
                        yield event
                        if event.HasField("final"):
                            return
            with self._limits.hold(who):
                async with self._admission.place(who.rank, life.query.deadline):
                    if not written:
                        written = True
                        async with in_time(life.query.deadline):
                            await self._ledger.begin(life.account.entry)
                    running.life = life
                    async with aclosing(life.solve()) as events:
                        async for event in events:
                            yield event
        except BaseException as error:
            if life is None or not life.began:
                ended = failure(error)
                self._metrics.refused(ended, who.tier)
                if life and written:
                    await life.account.close(ended, None)
            raise

    async def plan(
        self, request: pb.SolveRequest, seconds: float = math.inf, tenant: str = ""
    ) -> pb.PlanResponse:
        """What would be done first, and why; nothing is sampled."""
        deadline = asyncio.get_running_loop().time() + seconds
        life = await self._life(request, deadline, self._tenants.find(tenant))
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

    async def query(self, query_id: str, tenant: str = "") -> pb.GetQueryResponse:
        """A running or finished query of the tenant's; raises NotFound."""
        who = self._tenants.find(tenant)
        kept = await self._ledger.get(query_id)
        if kept is None or kept.entry.tenant != who.name:
            raise NotFound(f"there is no query {query_id[:64]!r}, or it is too long ago")
        running = self._queries.get(query_id)
        found = query_message(kept)
        if running and running.life:
            # What runs here is known better than it is written down.
            found.running = not running.answered
            del found.rounds[:]
            found.rounds.extend(running.life.progress.rounds)
            if running.answered:
                found.result.CopyFrom(running.events[-1].final)
        return found

    async def budget(self, request: pb.GetBudgetRequest) -> pb.GetBudgetResponse:
        """What budgets have left."""
        catalog = await self.catalog()
        tenants = self._tenants
        budgets = tenants.find(request.tenant).budgets if request.tenant else tenants.budgets
        standings = await self._ledger.standings(budgets)
        return pb.GetBudgetResponse(
            budgets=[standing_message(standing) for standing in standings], currency=catalog.currency
        )

    async def bill(self, request: pb.GetBillRequest) -> pb.GetBillResponse:
        """What queries have cost."""
        catalog = await self.catalog()
        since, until, by = bill_asked(request, time.time())
        return bill_message(await self._ledger.bill(since, until, by), catalog.currency)

    async def feedback(
        self, request: pb.SubmitFeedbackRequest, tenant: str = ""
    ) -> pb.SubmitFeedbackResponse:
        """The truth about a finished query.

        Raises NotFound for an unknown query, and FailedPrecondition for one that still runs or where feedback
        is not kept.
        """
        if self._feedback is None:
            raise FailedPrecondition("this router keeps no feedback: start it with --feedback FILE")
        answered = await self._feedback.find(request.query_id, self._tenants.find(tenant).name)
        if answered:
            return await self._feedback.take(answered, request)
        try:
            found = await self.query(request.query_id, tenant)
        except NotFound:
            raise NotFound(
                f"there is no query {request.query_id[:64]!r}, or it ended more than "
                f"{self._settings.kept_feedback_days:g} days ago: give the query_id of a result"
            ) from None
        if found.running:
            raise FailedPrecondition("the query still runs: give feedback to it when it has a result")
        raise FailedPrecondition("the query was not recorded when it ended: the router's log says why")

    async def end(self) -> None:
        """Refuse the queries that wait and cancel those that run: their callers are told to ask again, and
        what was taken is counted."""
        self._admission.close()
        await self._queries.close()

    @asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """Tell the ledger that this router lives, while the context lasts; in the end cancel what runs."""
        beating = asyncio.create_task(self._beat(), name="lease")
        try:
            yield
        finally:
            await self.close()
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
            try:
                await self._ledger.gone(self._id)
            except Unavailable as error:
                log.warning("the ledger was not told of the end", reason=str(error))
            await self._once.close()
            await self._ledger.close()

    async def _beat(self) -> None:
        """Renew the lease, for ever."""
        settings = self._settings
        pause = settings.lease_seconds / 3
        while True:
            try:
                await self._ledger.alive(self._id, settings.reached_at, settings.lease_seconds)
            except Unavailable as error:
                log.warning("the ledger does not answer", reason=str(error))
            # What waits in the journal is written down soon after the ledger's return.
            await asyncio.sleep(min(pause, 1.0) if self._ledger.waiting else pause)

    async def close(self) -> None:
        """Cancel what runs."""
        self._admission.close()
        await self._queries.close()
        await self._debts.close()
        if self._feedback:
            await self._feedback.close()
        await self._shadow.close()

    def adopt(self, found: InForce) -> None:
        """Plan by these profiles, from the next query on; as far as they fit the catalogue."""
        if self._known:
            found = found.among(self._known.models, self._in_force)
        self._take(found)

    def admit(self, tenants: Tenants) -> None:
        """These may ask, from the next query on."""
        known, self._tenants = self._tenants.faults, tenants
        self._metrics.ledger.configured(tenants.budgets)
        for rank, tier in enumerate(tenants.tiers):
            self._metrics.waiting(tier, partial(lambda rank: self._admission.waiting[rank], rank))
        for fault in tenants.faults:
            if fault not in known:
                log.error("the tenants' file is not used", reason=fault)
        if tenants.named:
            log.info("tenants in force", tenants=len(tenants.named), budgets=len(tenants.budgets))

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
                for model in catalog.models:
                    self._metrics.pools.pool(model)
            if known is None:
                self._meet(catalog)
            return catalog
        return known

    async def _life(
        self, request: pb.SolveRequest, deadline: float, who: Tenant, *, streamed: bool = False
    ) -> Life:
        """Admit a request; `deadline` is its caller's, in the event loop's time."""
        catalog = await self.catalog(request.filters.verifier)
        settings, in_force = self._settings, self._in_force
        query = admit(request, catalog, self._bounds, deadline - settings.deadline_margin_seconds)
        if settings.pin_model and not (query.models or query.strategies or query.samples):
            query = self._pin(query, catalog)
        query, account = await self._account(request, query, who)
        loaded = in_force.chosen(request.request_id or query.query_id)
        planner, compare = self._planner(loaded, catalog), None
        if in_force.shadow and loaded is in_force.live and not query.samples:
            compare = partial(self._shadow.compare, self._planner(in_force.shadow, catalog))
        return Life(
            query,
            self._stages,
            planner,
            self._metrics,
            account=account,
            opening=Opening(request, planner, self._feedback, compare, who),
            pace=self._pace,
            debts=self._debts,
            breakers=self._breakers,
            streamed=streamed,
            abort_seconds=settings.abort_seconds,
            give_up_below=settings.give_up_below,
        )

    async def _account(self, request: pb.SolveRequest, query: Query, tenant: Tenant) -> tuple[Query, Account]:
        """What a query may spend; one that says nothing of it is planned at the price of its budgets."""
        entry = Entry(
            query_id=query.query_id,
            request_id=request.request_id,
            asked=hashlib.sha256(request.SerializeToString(deterministic=True)).digest(),
            tenant=tenant.name,
            tier=tenant.tier,
            router=self._id,
            began=time.time(),
            seed=query.seed,
        )
        async with in_time(query.deadline):
            standings = await self._ledger.standings(tenant.budgets) if tenant.budgets else []
        account.check(standings)
        said = request.effort or request.objective.WhichOneof("kind") or query.samples
        worth = None if said else account.worth(standings)
        if worth is None:
            return query, Account(query.limit, self._ledger, entry, standings, deadline=query.deadline)
        query = replace(query, objective=replace(query.objective, worth=worth))
        most = account.share(standings, time.time())
        return query, Account(query.limit, self._ledger, entry, standings, most, query.deadline)

    def _hear(self, part: str, state: State) -> None:
        """A part's breaker is in this state now."""
        self._metrics.pools.breaker(part, state)
        if state != "half_open":
            log.warning("a part is down" if state == "open" else "a part is back", part=part)

    def _open_ledger(self) -> Ledger:
        """As the settings say; raises FailedPrecondition where it cannot be used, and Unavailable."""
        settings = self._settings
        return open_ledger(
            settings.ledger.get_secret_value() if settings.ledger else None,
            worth=lambda: self._in_force.live.profile.efforts["medium"],
            timeout_seconds=settings.ledger_seconds,
            connections=settings.ledger_connections,
            kept_query_days=settings.kept_query_days,
            kept_bill_days=settings.kept_bill_days,
            lost=self._metrics.ledger.lost,
        )

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
        self._metrics.profiles.in_force(found, len(new))
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
