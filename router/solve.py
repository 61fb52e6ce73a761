"""The life of a query, in six steps: admit, estimate, plan, act, update, finish.

It begins admitted: see `router.admission`. What is none of the steps is elsewhere: `account` knows what a
query may spend, and has it written down; `opening` who learns from its first decision; `bench` buys a round
and bills it; `tally` counts votes, and `progress` keeps what has come.
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
from isoflop.v1.common_pb2 import ANSWER_TYPE_PATTERN, TextDelta
from isoflop.v1.difficulty_pb2 import Difficulty, EstimateRequest
from isoflop.v1.difficulty_pb2 import Query as QueryMessage
from isoflop.v1.router_pb2 import (
    STATUS_ABANDONED,
    STATUS_ANSWERED,
    STATUS_DEGRADED,
    Growth,
    QueryStarted,
    Round,
    RoundCandidates,
    SolveResponse,
    Stopped,
)
from isoflop.v1.router_pb2 import StreamSolveResponse as Event

from router.account import Account
from router.bench import RoundBench, late_bills
from router.cost import Cost, Meter
from router.decision import Action, Decision, State
from router.ledger import QueryKept, Short
from router.metrics import Metrics, failure, outcome
from router.opening import Opening
from router.pace import Pace
from router.planner import Planner
from router.progress import Progress
from router.query import Query
from router.shadow import First
from router.stages import Stages
from router.strategies import STRATEGIES
from router.strategies.scored import comes_to
from router.strategies.strategy import Candidate, together
from router.tally import count


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
    streamed: bool
    """Somebody reads along: the text of a single sample is wanted as it comes, and each vote."""
    abort_seconds: float
    """How long an aborted round may take to tell its bill."""
    give_up_below: float
    """A query that stops with less confidence than this was abandoned."""

    def __post_init__(self) -> None:
        self.difficulty = Difficulty()
        self.progress = Progress(self.planner.profile.prior)
        self.before = Meter(self.planner.catalog.currency)
        """What it cost before its first round here."""
        self.benches: list[RoundBench] = []
        self.uncharged: list[tuple[Round, RoundBench, list[Candidate]]] = []
        """Rounds whose scores are late: they are charged at the query's end."""
        self.earlier: QueryKept | None = None
        """What another router did of it before it died."""
        self.began = False
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
        begin, ended, final, self.began = time.perf_counter(), "cancelled", None, True
        self.metrics.began()
        try:
            await self.estimate()
            await self.resume()
            yield Event(started=QueryStarted(query_id=self.query.query_id, difficulty=self.difficulty))
            decision = self.opening.draw(First(self.query, self.difficulty, *self.plan()))
            while decision.action:
                async with aclosing(self.act(decision.action, decision.reason)) as events:
                    try:
                        async for event in events:
                            yield event
                    except Short:
                        pass  # Other queries have it; what is left is known now.
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
                await self.close(ended, overhead, final)

    async def estimate(self) -> None:
        """A belief about the query's latent difficulty."""
        response = await self.stages.difficulty.estimate(
            EstimateRequest(queries=[QueryMessage(messages=self.query.messages)])
        )
        self.difficulty = response.difficulties[0]
        if not self.earlier or not self.earlier.estimate:
            cost = self.before.difficulty(response)
            self.account.estimated(self.before.lines, cost)
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
            if not kept.settled or action is None:
                self.progress.rounds.append(kept.round)
                continue
            self.progress.begin(kept.round, action)
            await self.update(action, candidates_of(kept.candidates))
        bill = self.before.bill()
        self.account.spent += Cost(bill.flops, bill.money, bill.tokens)

    def plan(self) -> tuple[State, Decision]:
        """All that is known so far; given that, the most worthwhile next round, or stop."""
        seconds = self.query.deadline - asyncio.get_running_loop().time()

        def plan(left: Cost) -> tuple[State, Decision]:
            state = self.state(left, seconds)
            return state, self.planner.decide(self.query, state)

        state, decision = self.account.afford(plan)
        if self.halted:
            decision = Decision(None, self.halted)
        if self.query.pinned and decision.action:
            decision = replace(decision, reason=f"{decision.action.name}: pinned by the router's settings")
        return state, decision

    def state(self, left: Cost, seconds: float) -> State:
        """All that is known, with so much money and time left."""
        pace = self.pace.at(time.monotonic()) if math.isfinite(seconds) else {}
        return self.progress.state(left, seconds, self.account.spent.flops, pace)

    async def act(self, action: Action, reason: str) -> AsyncGenerator[Event, None]:
        """Reserve the round's worst case, buy it, settle it to what it really cost."""
        query, progress = self.query, self.progress
        round = progress.round(action, reason, explored=self.opening.explored and not progress.rounds)
        came: list[Candidate] = []
        bench = RoundBench(
            query,
            action,
            progress.numbered.get(action.model.name, 0),
            self.stages,
            Meter(self.planner.catalog.currency),
            self.account,
            streamed=self.streamed,
            abort_seconds=self.abort_seconds,
            hold=partial(self.account.hold, round),
        )
        try:
            await self.account.hold(round, bench.worst)
            progress.begin(round, action)
            self.benches.append(bench)
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
                    came += batch
                    await self.update(action, batch)
                    yield Event(tally=progress.tally())
                    round.completed += len(batch)
                    if round.completed < action.samples and self.enough(action, round):
                        break
        except Unavailable as error:
            if bench in self.benches or not progress.rounds:
                raise
            self.halted = f"nothing more could be bought: {error}"
        finally:
            bench.settle()
            if bench in self.benches:
                self.pace.observe(action.model.name, bench.slowness, time.monotonic())
                progress.end(round, action, bench.spent.flops, bench.next_sample)
            if bench.late:
                self.uncharged.append((round, bench, came))
            elif self.account.holds:
                await self.account.charge(round, bench.meter.lines, came)

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
                self.query = replace(self.query, strategies=("single", "majority"))
        before = AggregateResponse(clusters=progress.clusters, stability=progress.stability)
        tally, blanks = await count(self.stages.aggregation, self.query.format, selection, before, candidates)
        progress.take(action, candidates, tally, blanks, by_scores=by_scores)

    @property
    def missing(self) -> str:
        """Why samples have no scores, where verification has become unavailable."""
        return next((bench.missing for bench in self.benches if bench.missing), "")

    def enough(self, action: Action, round: Round) -> bool:
        """Whether what still runs of the round is not worth its price any more.

        That is asked as if it were still to be bought: what it has reserved and been counted for is free
        again, and it may run until the deadline itself.
        """
        if self.query.samples:
            return False
        state = self.state(self.account.unspent, math.inf)
        runs = action.samples - round.completed
        had = {**state.bought, action.model.name: state.bought[action.model.name] - runs}
        return self.planner.decide(self.query, replace(state, bought=had)).action is None

    def finish(self, decision: Decision) -> SolveResponse:
        """The answer with a confidence, and the bill."""
        progress, query, savings = self.progress, self.query, self.progress.savings()
        leader = progress.clusters[0] if progress.clusters else None
        given_up = not query.samples and progress.confidence < self.give_up_below
        late = query.deadline <= asyncio.get_running_loop().time()
        status = STATUS_DEGRADED if self.missing or self.halted else STATUS_ANSWERED
        if leader is None or given_up:
            status = STATUS_ABANDONED
            fixed = self.planner.fixed_flops(query, self.state(self.account.left, math.inf))
            savings.abandoned_flops = max(0.0, fixed - self.account.spent.flops)
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
            savings=savings,
            seed=query.seed,
            profile=self.planner.profile.version,
        )

    @property
    def meter(self) -> Meter:
        """What it has cost so far."""
        meter = Meter(self.planner.catalog.currency)
        for part in (self.before, *(bench.meter for bench in self.benches)):
            meter.add(part.lines)
        return meter

    async def close(self, ended: str, overhead: float, final: SolveResponse | None) -> None:
        """Count how it has ended, and pay for it."""
        meter, progress = self.meter, self.progress
        self.metrics.ended(ended, meter.lines, overhead, progress.savings().samples)
        self.metrics.decided(self.planner.profile.version, ended, meter.bill().flops, progress.confidence)
        for round, bench, came in self.uncharged:
            await self.account.charge(round, bench.meter.lines, came)
        await self.account.close(ended, final)


def candidates_of(kept: bytes) -> list[Candidate]:
    """A round's candidates, as `account` has kept them."""
    found = RoundCandidates.FromString(kept)
    parts = zip(found.samples, found.weights, found.scores, strict=True)
    return [Candidate(sample, weight, scores) for sample, weight, scores in parts]
