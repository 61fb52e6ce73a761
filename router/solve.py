"""The life of a query, in six steps: admit, estimate, plan, act, update, finish.

It begins admitted: see `router.core` and `router.query.admit`. What is none of the steps is elsewhere:
`account` knows what a query may spend, and has it written down; `opening` who learns from its first decision;
`buying` plays a round, and `bench` meters it; `recourse` knows which models may be asked; `tally` counts
votes, and `progress` keeps what has come.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import KW_ONLY, dataclass, replace

from isoflop.errors import Unavailable
from isoflop.v1.aggregation_pb2 import SELECTION_SUM, AggregateRequest, AggregateResponse
from isoflop.v1.common_pb2 import ANSWER_TYPE_PATTERN
from isoflop.v1.difficulty_pb2 import Difficulty, EstimateRequest
from isoflop.v1.difficulty_pb2 import Query as QueryMessage
from isoflop.v1.router_pb2 import (
    STATUS_ABANDONED,
    STATUS_ANSWERED,
    STATUS_DEGRADED,
    QueryStarted,
    RoundCandidates,
    SolveResponse,
    Stopped,
)
from isoflop.v1.router_pb2 import StreamSolveResponse as Event

from router.account import Account
from router.bench import late_bills
from router.breakers import Breakers
from router.buying import Buying, told
from router.cost import Cost, Meter
from router.deadline import LATE_SECONDS, until
from router.debts import Debts
from router.decision import Action, Decision, State
from router.ledger import QueryKept, Short
from router.metrics import Metrics, failure, outcome
from router.opening import Opening
from router.pace import Pace
from router.planner import Planner
from router.progress import Progress
from router.query import Query
from router.recourse import Recourse
from router.shadow import First
from router.stages import Stages
from router.strategies import STRATEGIES
from router.strategies.strategy import Candidate
from router.tally import count

UNKNOWN = Difficulty(mean=0.0, sd=1.0)
"""Of a query that was not estimated: by the profile's prior."""

UNSCORED = ("single", "majority")
"""What the planner chooses among where samples cannot be scored."""


@dataclass
class Life:
    """One query from admission to its end."""

    query: Query
    """Admitted: see `router.query.admit`."""
    stages: Stages
    planner: Planner
    metrics: Metrics
    _: KW_ONLY
    account: Account
    """What it may spend, and has spent."""
    opening: Opening
    """Who learns from its first decision."""
    pace: Pace
    """How long samples take now; that of all queries of a router."""
    debts: Debts
    """What is still owed for rounds; of all queries of a router."""
    breakers: Breakers
    """Which parts are down; those of all queries of a router."""
    streamed: bool
    """Somebody reads along: the text of a single sample is wanted as it comes, and each vote."""
    abort_seconds: float
    """How long an aborted round may take to tell its bill."""
    give_up_below: float
    """A query that stops with less confidence than this was abandoned."""

    def __post_init__(self) -> None:
        self.began = 0.0
        """When; 0: it has not."""
        self.difficulty = Difficulty()
        self.progress = Progress(self.planner.profile.prior)
        self.before = Meter(self.planner.catalog.currency)
        """What it cost before its first round here."""
        self.bought: list[Buying] = []
        self.earlier: QueryKept | None = None
        """What another router did of it before it died."""
        self.asked = self.query
        """As the planner was asked last: without the models that are down."""
        self.recourse = Recourse(self.breakers)
        self.lacks: list[str] = []
        """What was missing on the way, in words."""
        self.unverified = ""
        """Why the planner may not have samples scored."""
        self.halted = ""
        """Why nothing more can be bought."""

    def take_over(self, earlier: QueryKept) -> None:
        """Go on with what another router has begun."""
        kept = earlier.entry
        self.query = replace(self.query, query_id=kept.query_id, seed=kept.seed)
        self.account.entry = replace(self.account.entry, query_id=kept.query_id)
        self.earlier = earlier

    async def solve(self) -> AsyncGenerator[Event, None]:
        """What happens, as it happens; the last event is `final`. Closing it ends all that runs."""
        self.began, ended, final = time.perf_counter(), "cancelled", None
        self.metrics.began(self.account.entry.tier)
        try:
            await self.estimate()
            await self.resume()
            yield Event(started=QueryStarted(query_id=self.query.query_id, difficulty=self.difficulty))
            planned = self.plan()
            decision = self.opening.draw(First(self.asked, self.difficulty, *planned))
            while decision.action:
                async with aclosing(self.act(decision.action, decision.reason)) as events:
                    async for event in events:
                        yield event
                _, decision = self.plan()
            final = self.finish(decision)
            await self.opening.record(final)
            ended = outcome(final)
            yield Event(stopped=Stopped(reason=final.reason, abandoned=final.status == STATUS_ABANDONED))
            yield Event(final=final)
            self.opening.compare()
        except Exception as error:
            ended = failure(error)
            raise
        finally:
            benches = [buying.bench for buying in self.bought]
            overhead = time.perf_counter() - self.began - sum(bench.waited for bench in benches)
            try:
                # The answer has gone out, and does not have them.
                await late_bills(benches)
            finally:
                await self.close(ended, overhead, final)

    async def estimate(self) -> None:
        """A belief about the query's latent difficulty; the profile's prior where none is to be had.

        Raises as `plan` does where the query cannot be done, however easy it is, before that costs anything.
        """
        seconds, models = self.seconds, self.planner.models(self.query)
        if models and not self.recourse.among(models):
            raise self.recourse.error(models)
        self.account.afford(lambda left: self.planner.check(self.query, self.state(left, seconds)))
        request = EstimateRequest(queries=[QueryMessage(messages=self.query.messages)])
        try:
            async with until(self.query.deadline):
                response = await self.stages.difficulty.estimate(request)
            self.difficulty = response.difficulties[0]
            if not self.earlier or not self.earlier.estimate:
                cost = self.before.difficulty(response)
                self.account.estimated(self.before.lines, cost)
        except (Unavailable, TimeoutError) as error:
            self.metrics.pools.fallback("difficulty")
            self.difficulty = UNKNOWN
            why = str(error) or "there was no time for it"
            self.lacks.append(f"its difficulty was not estimated: {why}")
        self.progress = Progress(self.planner.profile.belief(self.difficulty.mean, self.difficulty.sd))
        if self.query.format.type == ANSWER_TYPE_PATTERN:
            # A pattern that cannot be searched is refused before it costs.
            await self.stages.aggregation.aggregate(AggregateRequest(format=self.query.format))

    async def resume(self) -> None:
        """Go on where a router that died has left it: what it has bought is bought."""
        if self.earlier is None:
            return
        self.before.add(self.earlier.estimate)
        for kept in self.earlier.rounds:
            self.before.add(kept.charges)
            action = self.planner.recall(self.query, kept.round.action)
            if not kept.settled or kept.unreconciled or action is None:
                self.progress.rounds.append(kept.round)
                continue
            self.progress.begin(kept.round, action)
            await self.update(action, candidates_of(kept.candidates))
        bill = self.before.bill()
        self.account.spent += Cost(bill.flops, bill.money, bill.tokens)

    def plan(self) -> tuple[State, Decision]:
        """All that is known so far; given that, the most worthwhile next round, or stop."""
        seconds, models = self.seconds, self.planner.models(self.query)
        up = self.recourse.among(models)
        self.asked = replace(self.query, models=tuple(up)) if 0 < len(up) < len(models) else self.query

        def plan(left: Cost) -> tuple[State, Decision]:
            state = self.state(left, seconds)
            return state, self.planner.decide(self.asked, state)

        state, decision = self.account.afford(plan)
        if self.halted:
            return state, Decision(None, self.halted, cut_short=True)
        if decision.action and not up:
            error = self.recourse.error(models)
            if not self.progress.clusters:
                raise error
            return state, Decision(
                None, f"no model is left to ask: the best answer so far; {error}", cut_short=True
            )
        verifier = decision.action.verifier if decision.action else None
        if verifier and not (self.query.strategies or self.progress.rounds):
            down = self.recourse.refusal(verifier)
            if down:
                self.unverified = str(down)
                self.query = replace(self.query, strategies=UNSCORED)
                return self.plan()
        if self.query.pinned and decision.action:
            decision = replace(decision, reason=f"{decision.action.name}: pinned by the router's settings")
        return state, decision

    @property
    def seconds(self) -> float:
        """Time left; infinite where there is no deadline."""
        return self.query.deadline - asyncio.get_running_loop().time()

    def state(self, left: Cost, seconds: float) -> State:
        """All that is known, with so much money and time left."""
        pace = self.pace.at(time.monotonic()) if math.isfinite(seconds) else {}
        return self.progress.state(left, seconds, self.account.spent.flops, pace)

    async def act(self, action: Action, reason: str) -> AsyncGenerator[Event, None]:
        """Reserve the round's worst case, buy it, settle it to what it really cost."""
        explored = self.opening.explored and not self.progress.rounds
        buying = Buying(self, action, reason, explored=explored)
        try:
            await buying.begin()
            self.bought.append(buying)
            yield Event(round=buying.round)
            # A fixed plan that nobody watches is tallied once.
            at_once = bool(self.query.samples and not self.streamed)
            async with aclosing(buying.batches(at_once=at_once)) as batches:
                async for batch in batches:
                    if not isinstance(batch, list):
                        yield told(batch)
                        continue
                    if not self.progress.samples:
                        self.metrics.first_sample(time.perf_counter() - self.began)
                    for candidate in batch:
                        yield Event(sample=candidate.sample)
                        if candidate.scores.id:
                            yield Event(scores=candidate.scores)
                    votes = buying.votes(batch)
                    await self.update(buying.action, votes)
                    yield Event(tally=self.progress.tally())
                    if buying.note(votes) and self.enough(buying):
                        break
        except Short:
            pass  # Other queries have what was left; what is left now is known.
        except Unavailable as error:
            if buying.begun:
                buying.failed(error)
            elif not self.progress.rounds:
                raise
            else:
                self.halted = f"nothing more could be bought: {error}"
        finally:
            await buying.end()

    async def update(self, action: Action, candidates: list[Candidate]) -> None:
        """Tally the answers, update the belief."""
        progress, strategy = self.progress, STRATEGIES[action.strategy]
        selection, by_scores = strategy.selection, strategy.verifies and not (action.verified or action.deep)
        if self.missing:
            selection, by_scores = SELECTION_SUM, False
            candidates = [Candidate(candidate.sample) for candidate in candidates]
            progress.unweigh()
            if not self.query.strategies:
                # What the planner chooses is scored no more.
                self.query = replace(self.query, strategies=UNSCORED)
        before = AggregateResponse(clusters=progress.clusters, stability=progress.stability)
        try:
            async with until(self.query.deadline + LATE_SECONDS):
                tally, blanks = await count(
                    self.stages.aggregation, self.query.format, selection, before, candidates
                )
        except TimeoutError:
            self.lacks.append(f"{len(candidates)} samples were not counted before the deadline")
            return
        progress.take(action, candidates, tally, blanks, by_scores=by_scores)

    @property
    def missing(self) -> str:
        """Why samples have no scores, where verification has become unavailable."""
        missing = (buying.bench.missing for buying in self.bought)
        return next((why for why in missing if why), self.unverified)

    def enough(self, buying: Buying) -> bool:
        """Whether what still runs of the round is not worth its price any more.

        That is asked as if it were still to be bought: what it has reserved and been counted for is free
        again, and it may run until the deadline itself.
        """
        if self.query.samples:
            return False
        state, name = self.state(self.account.unspent, math.inf), buying.action.model.name
        runs = buying.action.samples - buying.round.completed
        had = {**state.bought, name: state.bought[name] - runs}
        return self.planner.decide(self.query, replace(state, bought=had)).action is None

    def finish(self, decision: Decision) -> SolveResponse:
        """The answer with a confidence, and the bill."""
        progress, query, savings = self.progress, self.query, self.progress.savings()
        leader = progress.clusters[0] if progress.clusters else None
        late = self.seconds <= 0
        cut_short = late or decision.cut_short
        given_up = not (query.samples or cut_short) and progress.confidence < self.give_up_below
        lacks = [*self.lacks, *([f"samples without scores: {self.missing}"] if self.missing else [])]
        status = STATUS_DEGRADED if lacks or cut_short else STATUS_ANSWERED
        if leader is None or given_up:
            status = STATUS_ABANDONED
            fixed = self.planner.fixed_flops(query, self.state(self.account.left, math.inf))
            savings.abandoned_flops = max(0.0, fixed - self.account.spent.flops)
        bill = self.meter.bill()
        bill.incomplete = any(buying.bench.owed or buying.bench.late for buying in self.bought)
        if self.missing:
            self.metrics.pools.fallback("verification")
        reason = "the deadline is near: the best answer so far" if late else decision.reason
        return SolveResponse(
            query_id=query.query_id,
            status=status,
            reason="; ".join([reason, *lacks]),
            answer=leader.answer if leader else "",
            text=progress.samples[leader.best_member].text if leader else "",
            confidence=progress.confidence,
            difficulty=self.difficulty,
            rounds=progress.rounds,
            clusters=progress.clusters,
            candidates=progress.samples.values() if query.return_candidates else (),
            bill=bill,
            savings=savings,
            seed=query.seed,
            profile=self.planner.profile.version,
        )

    @property
    def meter(self) -> Meter:
        """What it has cost so far."""
        meter = Meter(self.planner.catalog.currency)
        for part in (self.before, *(buying.bench.meter for buying in self.bought)):
            meter.add(part.lines)
        return meter

    async def close(self, ended: str, overhead: float, final: SolveResponse | None) -> None:
        """Count how it has ended, and pay for it."""
        meter, progress, planner, tier = self.meter, self.progress, self.planner, self.account.entry.tier
        fixed = planner.baseline(self.query, progress.posterior.difficulty) if final else None
        self.metrics.ended(ended, tier, meter.lines, overhead, progress.savings().samples, fixed)
        flops, confidence = meter.bill().flops, progress.confidence
        self.metrics.profiles.decided(planner.profile.version, ended, flops, confidence)
        for buying in self.bought:
            await buying.charge()
        await self.account.close(ended, final)
        for buying in self.bought:
            self.debts.collect(buying, self.account)


def candidates_of(kept: bytes) -> list[Candidate]:
    """A round's candidates, as `account` has kept them."""
    found = RoundCandidates.FromString(kept)
    parts = zip(found.samples, found.weights, found.scores, strict=True)
    return [Candidate(sample, weight, scores) for sample, weight, scores in parts]
