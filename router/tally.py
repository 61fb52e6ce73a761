"""Candidates as votes: what aggregation makes of them."""

from __future__ import annotations

from collections.abc import Sequence

from isoflop.v1.aggregation_pb2 import AggregateRequest, AggregateResponse, Selection
from isoflop.v1.aggregation_pb2 import Candidate as Vote
from isoflop.v1.common_pb2 import FINISH_REASON_ABORTED, AnswerFormat

from router.portions import MOST_BYTES, portions
from router.stages import Aggregation
from router.strategies.strategy import Candidate


async def count(
    aggregation: Aggregation,
    format: AnswerFormat,
    selection: Selection.ValueType,
    tally: AggregateResponse,
    candidates: Sequence[Candidate],
) -> tuple[AggregateResponse, list[str]]:
    """The tally so far with these candidates in its clusters, and the ids of those that are in none.

    One that fits in no request is in none; an aborted one is left out.
    """
    votes = [_vote(one) for one in candidates if one.sample.finish_reason != FINISH_REASON_ABORTED]
    parts, large = portions(votes, MOST_BYTES - tally.ByteSize())
    blanks = [vote.id for vote in large]
    for part in parts:
        tally = await aggregation.aggregate(
            AggregateRequest(format=format, selection=selection, clusters=tally.clusters, candidates=part)
        )
        blanks += [blank.id for blank in tally.blanks]
    return tally, blanks


def _vote(candidate: Candidate) -> Vote:
    sample = candidate.sample
    return Vote(
        id=sample.id,
        text=sample.text,
        weight=candidate.weight,
        logprob=sample.logprob if sample.HasField("logprob") else None,
    )
