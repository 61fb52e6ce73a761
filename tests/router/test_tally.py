"""Candidates that become votes, and those that do not."""

from __future__ import annotations

import pytest
from isoflop.v1.aggregation_pb2 import (
    SELECTION_BEST,
    AggregateRequest,
    AggregateResponse,
    Blank,
    Cluster,
)
from isoflop.v1.common_pb2 import ANSWER_TYPE_NUMBER, FINISH_REASON_ABORTED, AnswerFormat, Sample

from router.strategies.strategy import Candidate
from router.tally import count

FORMAT = AnswerFormat(type=ANSWER_TYPE_NUMBER)


class Scripted:
    """Aggregation that finds no answer, and adds a cluster each time."""

    def __init__(self) -> None:
        self.requests: list[AggregateRequest] = []

    async def aggregate(self, request: AggregateRequest) -> AggregateResponse:
        self.requests.append(request)
        return AggregateResponse(
            clusters=[*request.clusters, Cluster(answer=str(len(self.requests)))],
            blanks=[Blank(id=one.id) for one in request.candidates],
            stability=0.5,
        )


async def test_all_that_ran_to_its_end_is_a_vote_with_its_weight() -> None:
    scripted = Scripted()
    candidates = [
        Candidate(Sample(id="m/0", text="4", logprob=0.0), 0.25),
        Candidate(Sample(id="m/1", finish_reason=FINISH_REASON_ABORTED)),
        Candidate(Sample(id="m/2", text="5")),
    ]
    before = AggregateResponse(clusters=[Cluster(answer="7")], stability=0.75)
    tally, blanks = await count(scripted, FORMAT, SELECTION_BEST, before, candidates)
    (request,) = scripted.requests
    assert (request.format, request.selection) == (FORMAT, SELECTION_BEST)
    assert [(vote.id, vote.text, vote.weight) for vote in request.candidates] == [
        ("m/0", "4", 0.25),
        ("m/2", "5", 1.0),
    ]
    assert [vote.HasField("logprob") for vote in request.candidates] == [True, False]
    assert [cluster.answer for cluster in tally.clusters] == ["7", "1"]
    assert (tally.stability, blanks) == (0.5, ["m/0", "m/2"])


async def test_each_portion_is_added_to_what_the_last_one_came_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.tally.MOST_BYTES", 60)
    scripted = Scripted()
    candidates = [Candidate(Sample(id=f"m/{i}", text="x" * size)) for i, size in enumerate((30, 100, 30))]
    tally, blanks = await count(scripted, FORMAT, SELECTION_BEST, AggregateResponse(), candidates)
    assert [[vote.id for vote in request.candidates] for request in scripted.requests] == [["m/0"], ["m/2"]]
    assert [cluster.answer for cluster in tally.clusters] == ["1", "2"]
    assert blanks == ["m/1", "m/0", "m/2"]


async def test_without_a_vote_nothing_changes() -> None:
    scripted, before = Scripted(), AggregateResponse(clusters=[Cluster(answer="7")], stability=0.75)
    aborted = Candidate(Sample(id="m/0", finish_reason=FINISH_REASON_ABORTED))
    assert await count(scripted, FORMAT, SELECTION_BEST, before, [aborted]) == (before, [])
    assert not scripted.requests
