"""The life of a query, in six steps: admit, estimate, plan, act, update, finish."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import KW_ONLY, dataclass, field, replace

from google.rpc.code_pb2 import Code
from isoflop.errors import FailedPrecondition, IsoflopError
from isoflop.v1.aggregation_pb2 import SELECTION_SUM, AggregateRequest, AggregateResponse
from isoflop.v1.aggregation_pb2 import Candidate as CandidateMessage
from isoflop.v1.common_pb2 import ANSWER_TYPE_PATTERN, FINISH_REASON_ABORTED, TextDelta
from isoflop.v1.difficulty_pb2 import Difficulty, EstimateRequest
from isoflop.v1.difficulty_pb2 import Query as QueryMessage
from isoflop.v1.router_pb2 import (
    STATUS_ABANDONED,
    STATUS_ANSWERED,
    STATUS_DEGRADED,
    PlanResponse,
    QueryStarted,
    Round,
    Savings,
    SolveRequest,
    SolveResponse,
    Stopped,
)
from isoflop.v1.router_pb2 import StreamSolveResponse as Event

from router import cost
from router.bench import RoundBench
from router.cost import TEMPLATE_TOKENS, Allowance, Cost, Meter
from router.decision import Action, Decision, State
from router.explore import Draw
from router.feedback import Feedback, answered
from router.metrics import Metrics, outcome
from router.pace import Pace
from router.planner import Planner
from router.portions import MOST_BYTES, portions
from router.progress import Progress
from router.purse import Purse
from router.query import Query
from router.shadow import First
from router.stages import Stages
from router.strategies import STRATEGIES
from router.strategies.strategy import Candidate


@dataclass
class Life:
    """One query from admission to its end."""

    query: Query
    """Admitted: see `router.query.admit`."""
    stages: Stages
    planner: Planner
    metrics: Metrics
    _: KW_ONLY
    streamed: bool
    """Somebody reads along: the text of a single sample is wanted as it comes, and each vote."""
    abort_seconds: float
    """How long an aborted round may take to tell its bill."""
    give_up_below: float
    """A query that stops with less confidence than this was abandoned."""
    purse: Purse | None = None
    """What all queries are paid from; none: each has its own limit alone."""
    most: float = math.inf
    """FLOPs of it that this one may have, as long as they pay for anything."""
    asked: SolveRequest = field(default_factory=SolveRequest)
    """What `query` was admitted from."""
    feedback: Feedback | None = None
    """Draws the first round, and records what came; None: neither is done."""
    drawn: Draw | None = None
    """The first decision as it was drawn, where it is recorded."""
    pinned: bool = False
    """The plan is the router's own, by its settings."""
    afterwards: Callable[[First], None] | None = None
    """Takes the first decision when the answer has gone out."""
    first: First | None = None
    pace: Pace = field(default_factory=Pace)
    """How long samples take now; that of all queries of a router."""
    difficulty: Difficulty = field(default_factory=Difficulty)
    saved: Savings = field(default_factory=Savings)
    waited: float = 0.0
    """Seconds spent waiting for models and verifiers."""
    missing: str = ""
    """Why samples have no scores, where verification has become unavailable."""
    late: list[asyncio.Task[None]] = field(default_factory=list)
    """Scores that nobody waits for any more: see `RoundBench.late`."""

    def __post_init__(self) -> None:
        self.meter = Meter(self.planner.catalog.currency)
        limit = self.query.limit
        self.allowance = Allowance(replace(limit, flops=min(limit.flops, self.most)))
        self.progress = Progress(self.planner.profile.prior)

    async def solve(self) -> AsyncGenerator[Event, None]:
        """What happens, as it happens; the last event is `final`. Closing it ends all that runs."""
        begin, ended, final = time.perf_counter(), "cancelled", None
        self.metrics.began()
        try:
            await self.estimate()
            yield Event(started=QueryStarted(query_id=self.query.query_id, difficulty=self.difficulty))
            while (decision := self.explore(self.plan())).action:
                async with aclosing(self.act(decision.action, decision.reason)) as events:
                    async for event in events:
                        yield event
            final = self.finish(decision)
            await self.record(final)
            ended = outcome(final)
            yield Event(stopped=Stopped(reason=final.reason, abandoned=final.status == STATUS_ABANDONED))
            yield Event(final=final)
            if self.afterwards and self.first:
                self.afterwards(self.first)
        except IsoflopError as error:
            ended = f"failed_{Code.Name(error.code).lower()}"
            raise
        except Exception:
            ended = "failed_internal"
            raise
        finally:
            try:
                await self.bills()
            finally:
                overhead = time.perf_counter() - begin - self.waited
                self.metrics.ended(ended, self.meter.lines, overhead, self.saved.samples)
                version, flops = self.planner.profile.version, self.meter.bill().flops
                self.metrics.decided(version, ended, flops, self.progress.confidence)
                if self.purse:
                    self.purse.settle(flops, finished=final is not None)

    async def estimate(self) -> None:
        """A belief about the query's latent difficulty."""
        response = await self.stages.difficulty.estimate(
            EstimateRequest(queries=[QueryMessage(messages=self.query.messages)])
        )
        self.difficulty = response.difficulties[0]
        self.allowance.spent += self.meter.difficulty(response)
        belief = self.planner.profile.belief(self.difficulty.mean, self.difficulty.sd)
        self.progress = Progress(belief)
        if self.query.format.type == ANSWER_TYPE_PATTERN:
            # A pattern that cannot be searched is refused before it costs.
            await self.stages.aggregation.aggregate(AggregateRequest(format=self.query.format))

    def plan(self) -> Decision:
        """The most worthwhile next round, or stop, given all that is known so far."""
        seconds = self.query.deadline - asyncio.get_running_loop().time()
        state = self.state(self.allowance.left, seconds)
        try:
            decision = self.planner.decide(self.query, state)
        except FailedPrecondition:
            if self.purse is None:
                raise
            state, decision = self.plan_with_all_of(self.purse, seconds)
        if self.pinned and decision.action:
            decision = replace(decision, reason=f"{decision.action.name}: pinned by the router's settings")
        if self.first is None:
            # What was bought is counted on in the same dictionary.
            state = replace(state, bought=dict(state.bought))
            self.first = First(self.query, self.difficulty, state, decision)
        return decision

    def plan_with_all_of(self, purse: Purse, seconds: float) -> tuple[State, Decision]:
        """Its share pays for no plan: all that is left may, if the price says that it is worth it.

        Raises ResourceExhausted where that is too little, but the caller's own limit is not.
        """
        own = self.query.limit
        self.allowance.limit = replace(own, flops=min(own.flops, purse.left))
        state = self.state(self.allowance.left, seconds)
        try:
            return state, self.planner.decide(self.query, state)
        except FailedPrecondition:
            self.planner.decide(self.query, self.state(own - self.allowance.spent, seconds))
            raise purse.exhausted("no plan fits in what is left of this window's budget") from None

    def explore(self, decision: Decision) -> Decision:
        """The first decision as it is drawn; later ones, and all where nothing is recorded, as they are."""
        if self.feedback is None or self.drawn:
            return decision
        self.drawn = self.feedback.draw(self.query.query_id, decision)
        return self.drawn.decision

    def state(self, left: Cost, seconds: float) -> State:
        """All that is known, with so much money and time left."""
        progress = self.progress
        return State(
            progress.posterior,
            progress.confidence,
            progress.bought,
            frozenset(progress.greedy),
            left,
            seconds,
            self.allowance.spent.flops,
            progress.votes,
            self.pace.at(time.monotonic()) if math.isfinite(seconds) else {},
        )

    async def act(self, action: Action, reason: str) -> AsyncGenerator[Event, None]:
        """Reserve the round's worst case, buy it, settle it to what it really cost."""
        query, progress = self.query, self.progress
        round = Round(
            index=len(progress.rounds),
            action=action.message(),
            reason=reason,
            confidence_before=progress.confidence,
            explored=self.drawn is not None and self.drawn.explored and not progress.rounds,
        )
        yield Event(round=round)
        prompt_most = query.prompt_bytes + TEMPLATE_TOKENS
        worst = cost.samples(action.model, action.samples, prompt_most, action.max_tokens, action.verifier)
        self.allowance.reserve(worst)
        progress.rounds.append(round)
        first = progress.buy(action)
        bench = RoundBench(
            query,
            action,
            first,
            self.stages,
            self.meter,
            streamed=self.streamed,
            abort_seconds=self.abort_seconds,
        )
        try:
            async with aclosing(STRATEGIES[action.strategy].play(bench)) as batches:
                # A fixed plan that nobody watches is tallied once.
                async for batch in together(batches) if query.samples and not self.streamed else batches:
                    if isinstance(batch, TextDelta):
                        yield Event(text=batch)
                        continue
                    for candidate in batch:
                        yield Event(sample=candidate.sample)
                        if candidate.scores.id:
                            yield Event(scores=candidate.scores)
                    self.missing = self.missing or bench.missing
                    await self.update(action, batch)
                    yield Event(tally=progress.tally())
                    round.completed += len(batch)
                    if round.completed < action.samples and self.enough(action, round):
                        break
        finally:
            self.allowance.settle(worst, bench.spent)
            self.waited += bench.waited
            self.pace.observe(action.model.name, bench.slowness, time.monotonic())
            if bench.late:
                self.late.append(bench.late)
            round.aborted = action.samples - round.completed
            round.flops = bench.spent.flops
            round.confidence_after = progress.confidence
            self.save(action, round)

    async def update(self, action: Action, candidates: list[Candidate]) -> None:
        """Tally the answers, update the belief."""
        progress, strategy = self.progress, STRATEGIES[action.strategy]
        by_scores = strategy.verifies and action.verified is None and not self.missing
        if self.missing:
            progress.unweigh()
            if not self.query.strategies:
                # What the planner chooses is scored no more.
                self.query = replace(self.query, strategies=("single", "majority"))
        votes = [
            CandidateMessage(
                id=candidate.sample.id,
                text=candidate.sample.text,
                weight=1.0 if self.missing else candidate.weight,
                logprob=candidate.sample.logprob if candidate.sample.HasField("logprob") else None,
            )
            for candidate in candidates
            if candidate.sample.finish_reason != FINISH_REASON_ABORTED
        ]
        tally = AggregateResponse(clusters=progress.clusters, stability=progress.stability)
        parts, large = portions(votes, MOST_BYTES - tally.ByteSize())
        blanks = [vote.id for vote in large]
        for part in parts:
            tally = await self.stages.aggregation.aggregate(
                AggregateRequest(
                    format=self.query.format,
                    selection=SELECTION_SUM if self.missing else strategy.selection,
                    clusters=tally.clusters,
                    candidates=part,
                )
            )
            blanks += [blank.id for blank in tally.blanks]
        progress.take(action, candidates, tally, blanks, by_scores=by_scores)

    def enough(self, action: Action, round: Round) -> bool:
        """Whether what still runs of the round is not worth its price any more.

        That is asked as if it were still to be bought: what it has reserved and been counted for is free
        again, and it may run until the deadline itself.
        """
        if self.query.samples:
            return False
        state = self.state(self.allowance.limit - self.allowance.spent, math.inf)
        runs = action.samples - round.completed
        had = {**state.bought, action.model.name: state.bought[action.model.name] - runs}
        return self.planner.decide(self.query, replace(state, bought=had)).action is None

    def save(self, action: Action, round: Round) -> None:
        """Note the samples that were not run to their end, and how much less than expected the round cost."""
        expected = action.message().expected_flops
        if round.aborted:
            self.saved.samples += round.aborted
            self.saved.flops += max(0.0, expected - round.flops)

    def finish(self, decision: Decision) -> SolveResponse:
        """The answer with a confidence, and the bill."""
        progress, query = self.progress, self.query
        leader = progress.clusters[0] if progress.clusters else None
        given_up = not query.samples and progress.confidence < self.give_up_below
        late = query.deadline <= asyncio.get_running_loop().time()
        status = STATUS_DEGRADED if self.missing else STATUS_ANSWERED
        if leader is None or given_up:
            status = STATUS_ABANDONED
            fixed = self.planner.fixed_flops(query, self.state(self.allowance.left, math.inf))
            self.saved.abandoned_flops = max(0.0, fixed - self.allowance.spent.flops)
        reason = "the deadline is near: the best answer so far" if late else decision.reason
        return SolveResponse(
            query_id=query.query_id,
            status=status,
            reason=f"{reason}; samples without scores: {self.missing}" if self.missing else reason,
            answer=leader.answer if leader else "",
            text=progress.samples[leader.best_member].text if leader else "",
            confidence=progress.confidence,
            difficulty=self.difficulty,
            rounds=progress.rounds,
            clusters=progress.clusters,
            candidates=progress.samples.values() if query.return_candidates else (),
            bill=self.meter.bill(),
            savings=self.saved,
            seed=query.seed,
            profile=self.planner.profile.version,
        )

    async def record(self, final: SolveResponse) -> None:
        """Keep what was decided and what came, before the answer goes out: feedback may come at once."""
        if self.feedback is None or self.drawn is None or self.first is None:
            return
        kept = answered(final, self.asked, self.first, self.drawn, self.planner)
        await self.feedback.record(kept, self.query.deadline)

    async def bills(self) -> None:
        """Wait until it is told what late scores took. The answer has gone out, and does not have it."""
        begin = time.perf_counter()
        try:
            if self.late:
                await asyncio.wait(self.late)
        finally:
            self.waited += time.perf_counter() - begin

    async def dry_run(self) -> PlanResponse:
        """What would be done first, and why; nothing is sampled."""
        await self.estimate()
        decision = self.plan()
        action = decision.action
        return PlanResponse(
            difficulty=self.difficulty,
            action=action.message() if action else None,
            reason=decision.reason,
            rejected=decision.rejected,
            outlook=action.outlook() if action else None,
            profile=self.planner.profile.version,
        )


async def together(
    batches: AsyncIterator[list[Candidate] | TextDelta],
) -> AsyncGenerator[list[Candidate] | TextDelta, None]:
    """The same candidates in one batch, when the last has come."""
    candidates: list[Candidate] = []
    async for batch in batches:
        if isinstance(batch, TextDelta):
            yield batch
        else:
            candidates += batch
    if candidates:
        yield candidates
