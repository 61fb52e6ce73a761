"""The life of a query, in six steps: admit, estimate, plan, act, update, finish.

It begins admitted: see `router.query.admit`. What is none of the steps is elsewhere: `purse` knows what a
query may spend, `opening` who learns from its first decision; `bench` buys a round and bills it; `tally`
counts votes, and `progress` keeps what has come.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial

from isoflop.errors import Unavailable
from isoflop.v1.aggregation_pb2 import SELECTION_SUM, AggregateRequest, AggregateResponse
from isoflop.v1.common_pb2 import ANSWER_TYPE_PATTERN, FINISH_REASON_ABORTED, TextDelta
from isoflop.v1.difficulty_pb2 import Difficulty, EstimateRequest
from isoflop.v1.difficulty_pb2 import Query as QueryMessage
from isoflop.v1.router_pb2 import (
    STATUS_ABANDONED,
    STATUS_ANSWERED,
    STATUS_DEGRADED,
    Growth,
    QueryStarted,
    Round,
    SolveResponse,
    Stopped,
)
from isoflop.v1.router_pb2 import StreamSolveResponse as Event

from router.bench import RoundBench, late_bills, number_of
from router.breakers import Breakers
from router.cost import Cost, Meter
from router.decision import Action, Decision, State
from router.feedback import LATE_SECONDS
from router.metrics import Metrics, failure, outcome
from router.opening import Opening
from router.pace import Pace
from router.planner import Planner
from router.progress import Progress
from router.purse import Grant
from router.query import Query
from router.recourse import Recourse
from router.shadow import First
from router.stages import Stages
from router.strategies import STRATEGIES
from router.strategies.scored import comes_to
from router.strategies.strategy import Candidate, together
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
    allowance: Grant
    """What it may spend."""
    opening: Opening
    """Who learns from its first decision."""
    pace: Pace
    """How long samples take now; that of all queries of a router."""
    breakers: Breakers
    """Which parts are down; those of all queries of a router."""
    streamed: bool
    """Somebody reads along: the text of a single sample is wanted as it comes, and each vote."""
    abort_seconds: float
    """How long an aborted round may take to tell its bill."""
    give_up_below: float
    """A query that stops with less confidence than this was abandoned."""

    def __post_init__(self) -> None:
        self.difficulty = Difficulty()
        self.progress = Progress(self.planner.profile.prior)
        self.meter = Meter(self.planner.catalog.currency)
        self.benches: list[RoundBench] = []
        self.asked = self.query
        """As the planner was asked last: without the models that are down."""
        self.recourse = Recourse(self.breakers)
        self.lacks: list[str] = []
        """What was missing on the way, in words."""
        self.unverified = ""
        """Why the planner may not have samples scored."""

    async def solve(self) -> AsyncGenerator[Event, None]:
        """What happens, as it happens; the last event is `final`. Closing it ends all that runs."""
        begin, ended, final = time.perf_counter(), "cancelled", None
        self.metrics.began()
        try:
            await self.estimate()
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
            overhead = time.perf_counter() - begin - sum(bench.waited for bench in self.benches)
            try:
                # The answer has gone out, and does not have them.
                await late_bills(self.benches)
            finally:
                self.settle(ended, overhead, finished=final is not None)

    async def estimate(self) -> None:
        """A belief about the query's latent difficulty; the profile's prior where none is to be had.

        Raises as `plan` does where the query cannot be done, however easy it is, before that costs anything.
        """
        seconds, models = self.seconds, self.planner.models(self.query)
        if models and not self.recourse.among(models):
            raise self.recourse.error(models)
        self.allowance.afford(lambda left: self.planner.check(self.query, self.state(left, seconds)))
        request = EstimateRequest(queries=[QueryMessage(messages=self.query.messages)])
        try:
            async with asyncio.timeout_at(self.query.deadline if math.isfinite(seconds) else None):
                response = await self.stages.difficulty.estimate(request)
            self.difficulty = response.difficulties[0]
            self.allowance.spent += self.meter.difficulty(response)
        except (Unavailable, TimeoutError) as error:
            self.difficulty = UNKNOWN
            why = str(error) or "there was no time for it"
            self.lacks.append(f"its difficulty was not estimated: {why}")
        self.progress = Progress(self.planner.profile.belief(self.difficulty.mean, self.difficulty.sd))
        if self.query.format.type == ANSWER_TYPE_PATTERN:
            # A pattern that cannot be searched is refused before it costs.
            await self.stages.aggregation.aggregate(AggregateRequest(format=self.query.format))

    def plan(self) -> tuple[State, Decision]:
        """All that is known so far; given that, the most worthwhile next round, or stop."""
        seconds, models = self.seconds, self.planner.models(self.query)
        up = self.recourse.among(models)
        self.asked = replace(self.query, models=tuple(up)) if 0 < len(up) < len(models) else self.query

        def plan(left: Cost) -> tuple[State, Decision]:
            state = self.state(left, seconds)
            return state, self.planner.decide(self.asked, state)

        state, decision = self.allowance.afford(plan)
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
        return self.progress.state(left, seconds, self.allowance.spent.flops, pace)

    async def act(self, action: Action, reason: str) -> AsyncGenerator[Event, None]:
        """Reserve the round's worst case, buy it, settle it to what it really cost.

        Where the model's backend fails, what has come counts, and the rest is as if it was not bought.
        """
        query, progress, model = self.query, self.progress, action.model.name
        round = progress.begin(action, reason, explored=self.opening.explored and not progress.rounds)
        again, first = progress.buy(action)
        bench = RoundBench(
            query,
            action,
            first,
            self.stages,
            self.meter,
            self.allowance,
            streamed=self.streamed,
            abort_seconds=self.abort_seconds,
            again=again,
            retry=partial(self.recourse.again, model),
        )
        self.benches.append(bench)
        self.recourse.begin(model)
        awaited = {*again, *range(first, first + action.samples - len(again))}
        lost = list[int]()
        try:
            yield Event(round=round)
            async with aclosing(STRATEGIES[action.strategy].play(bench)) as batches:
                # A fixed plan that nobody watches is tallied once, and so is what counts as one sample.
                one = action.deep and action.deep.once
                at_once = one or (query.samples and not self.streamed)
                async for batch in together(batches) if at_once else batches:
                    if isinstance(batch, TextDelta):
                        yield Event(text=batch)
                        continue
                    if isinstance(batch, Growth):
                        yield Event(growth=batch)
                        continue
                    for candidate in batch:
                        yield Event(sample=candidate.sample)
                        if candidate.scores.id:
                            yield Event(scores=candidate.scores)
                    if one:
                        batch = [Candidate(comes_to(batch).sample)]
                        if bench.missing:
                            # Unscored it is worth no more than another sample.
                            own = self.planner.profile.arm(action.model, False, action.temperature)
                            action = replace(action, arm=own)
                    await self.update(action, batch)
                    yield Event(tally=progress.tally())
                    for candidate in batch:
                        number = number_of(candidate.sample)
                        if candidate.sample.finish_reason == FINISH_REASON_ABORTED:
                            lost.append(number)
                            continue
                        awaited.discard(number)
                        round.completed += 1
                    if round.completed + len(lost) < action.samples and self.enough(action, round):
                        break
            if lost:
                round.failure = f"{len(lost)} of {action.samples} samples broke off"
        except Unavailable as error:
            if error is not bench.failure:
                raise
            round.failure = str(error)
            # A search is what it has come to.
            lost = [] if action.search and round.completed else sorted(awaited)
        finally:
            bench.settle()
            self.pace.observe(model, bench.slowness, time.monotonic())
            progress.end(round, action, bench.spent.flops, bench.next_sample, len(lost))
        if round.failure:
            self.recourse.failed(model, bench.failure or Unavailable(f"{model}: {round.failure}"))
            progress.lose(action, lost)

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
        latest = self.query.deadline + LATE_SECONDS
        try:
            async with asyncio.timeout_at(latest if math.isfinite(latest) else None):
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
        return next((bench.missing for bench in self.benches if bench.missing), self.unverified)

    def enough(self, action: Action, round: Round) -> bool:
        """Whether what still runs of the round is not worth its price any more.

        That is asked as if it were still to be bought: what it has reserved and been counted for is free
        again, and it may run until the deadline itself.
        """
        if self.query.samples:
            return False
        state = self.state(self.allowance.unspent, math.inf)
        runs = action.samples - round.completed
        had = {**state.bought, action.model.name: state.bought[action.model.name] - runs}
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
            fixed = self.planner.fixed_flops(query, self.state(self.allowance.left, math.inf))
            savings.abandoned_flops = max(0.0, fixed - self.allowance.spent.flops)
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
            bill=self.meter.bill(),
            savings=savings,
            seed=query.seed,
            profile=self.planner.profile.version,
        )

    def settle(self, ended: str, overhead: float, *, finished: bool) -> None:
        """Count how it has ended, and pay for it."""
        flops, progress = self.meter.bill().flops, self.progress
        self.metrics.ended(ended, self.meter.lines, overhead, progress.savings().samples)
        self.metrics.decided(self.planner.profile.version, ended, flops, progress.confidence)
        self.allowance.close(flops, finished=finished)
