"""Feedback: what was decided is recorded as a query ends; a caller's truth about it is compared and kept."""

from __future__ import annotations

import random
import time

import structlog
from isoflop.errors import FailedPrecondition, InvalidArgument, Unavailable
from isoflop.v1.aggregation_pb2 import AggregateRequest, Candidate, Cluster
from isoflop.v1.common_pb2 import ANSWER_TYPE_PATTERN
from isoflop.v1.router_pb2 import (
    SolveRequest,
    SolveResponse,
    SubmitFeedbackRequest,
    SubmitFeedbackResponse,
)

from router.deadline import LATE_SECONDS, until
from router.decision import Decision
from router.explore import Draw, draw
from router.metrics_profiles import ProfileMetrics
from router.planner import Planner
from router.settings import RouterSettings
from router.shadow import First
from router.stages import Aggregation
from router.tenants import Tenant
from router.truths import Answered, Truth, Truths, without_text

log = structlog.get_logger()


def answered(
    final: SolveResponse, asked: SolveRequest, first: First, drawn: Draw, planner: Planner, tenant: Tenant
) -> Answered:
    """What is kept of a finished query: what was asked, how it began, and what came."""
    return Answered(
        query_id=final.query_id,
        ended=time.time(),
        profile=final.profile,
        tenant=tenant.name,
        asked=without_text(asked),
        prompt_bytes=first.query.prompt_bytes,
        seconds=first.state.seconds,
        difficulty=first.difficulty.mean,
        difficulty_sd=first.difficulty.sd,
        round_samples=planner.round_samples,
        max_samples=planner.max_samples,
        offers=drawn.offers,
        taken=drawn.taken,
        rounds=len(final.rounds),
        flops=final.bill.flops,
        answer=final.answer,
        confidence=final.confidence,
        catalog=planner.catalog,
    )


class Feedback:
    """Draws first rounds, records what came, and takes the truth."""

    def __init__(
        self, settings: RouterSettings, truths: Truths, aggregation: Aggregation, metrics: ProfileMetrics
    ) -> None:
        self._settings = settings
        self._truths = truths
        self._aggregation = aggregation
        self._metrics = metrics

    def draw(self, query_id: str, decision: Decision, tenant: Tenant) -> Draw:
        """The first decision of a query, explored where its tenant lets it be. It follows from the query's
        id, which is random."""
        settings = self._settings
        chance = random.Random(query_id).random()
        share = settings.explore_share if tenant.explore else 0.0
        return draw(decision, share, settings.explore_among, chance)

    async def record(self, answered: Answered, deadline: float) -> None:
        """Keep a finished query. Where that fails, or takes until the deadline, in the event loop's time, its
        caller gets the answer all the same."""
        try:
            async with until(deadline + LATE_SECONDS):
                await self._truths.add(answered)
        except (Unavailable, TimeoutError) as error:
            self._metrics.unrecorded()
            log.warning("a query was not recorded", query=answered.query_id, error=str(error))

    async def find(self, query_id: str, tenant: str) -> Answered | None:
        """A finished query of the tenant's, which it can give feedback to."""
        found = await self._truths.get(query_id)
        return found if found and found.tenant == tenant else None

    async def take(self, answered: Answered, request: SubmitFeedbackRequest) -> SubmitFeedbackResponse:
        """Keep the truth about a query; raises InvalidArgument where there is none in the request."""
        match request.WhichOneof("truth"):
            case "answer":
                truth = Truth(await self._is_right(answered, request.answer), request.answer)
            case "right":
                if request.right and not answered.answer:
                    raise InvalidArgument("right", "no answer was returned, which cannot be right")
                truth = Truth(request.right, None)
            case _:
                raise InvalidArgument("truth", "give the right answer, or whether the returned one is right")
        if await self._truths.tell(answered.query_id, truth):
            self._metrics.told(truth.right, answered.confidence)
        await self.measure_drift()
        return SubmitFeedbackResponse(right=truth.right, returned=answered.answer)

    async def measure_drift(self) -> None:
        """Tell the metrics how the truths told last differ from what was predicted."""
        self._metrics.drift(await self._truths.drift(self._settings.drift_truths))

    async def close(self) -> None:
        """Wait for what is being written."""
        await self._truths.close()

    async def _is_right(self, answered: Answered, answer: str) -> bool:
        """Whether the returned answer is the same as the right one, as votes are compared."""
        if not answer.strip():
            raise InvalidArgument("answer", "must not be empty")
        most = self._settings.max_prompt_bytes
        if len(answer.encode()) > most:
            raise InvalidArgument("answer", f"at most {most} bytes")
        wanted = answered.asked.answer_format
        if wanted.type == ANSWER_TYPE_PATTERN:
            return answer.strip() == answered.answer
        returned = Cluster(
            answer=answered.answer, members=["returned"], weight=1, best_weight=1, best_member="returned"
        )
        tally = await self._aggregation.aggregate(
            AggregateRequest(
                format=wanted,
                clusters=[returned] if answered.answer else [],
                candidates=[Candidate(id="truth", text=answer, weight=1)],
            )
        )
        if tally.blanks:
            raise InvalidArgument("answer", "it holds no answer of the type that the query asked for")
        together = any(len(cluster.members) > 1 for cluster in tally.clusters)
        if answered.answer and tally.undecided and not together:
            raise FailedPrecondition(
                "the two answers take too long to compare: say whether the returned one is right"
            )
        return together
