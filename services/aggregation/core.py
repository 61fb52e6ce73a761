"""The work of aggregation: an answer out of each text, equal ones together, the leader first."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable

from isoflop.errors import InvalidArgument
from isoflop.v1.aggregation_pb2 import (
    BLANK_REASON_BAD_WEIGHT,
    BLANK_REASON_NO_ANSWER,
    BLANK_REASON_PATTERN_LIMIT,
    BLANK_REASON_TOO_LONG,
    AggregateRequest,
    AggregateResponse,
    Blank,
    BlankReason,
    Candidate,
    Cluster,
    Selection,
)
from isoflop.v1.common_pb2 import ANSWER_TYPE_EXPRESSION, ANSWER_TYPE_PATTERN, AnswerType
from prometheus_client import CollectorRegistry, Counter

from services.aggregation.answers import expression_key, extract
from services.aggregation.equivalence import Equivalence, NoResult, Turn
from services.aggregation.settings import AggregationSettings
from services.aggregation.tally import Tally, is_tie, leader_stability

OUTCOMES = {
    BLANK_REASON_NO_ANSWER: "no_answer",
    BLANK_REASON_TOO_LONG: "too_long",
    BLANK_REASON_PATTERN_LIMIT: "pattern_limit",
    BLANK_REASON_BAD_WEIGHT: "bad_weight",
}
"""How the metric calls the reasons."""
LONG_CHARS = 1 << 16
"""A longer text is read in a thread: the event loop goes on meanwhile."""


class Aggregation:
    """Groups candidates by their answers. Keeps nothing of a request but results of comparisons."""

    def __init__(self, settings: AggregationSettings, registry: CollectorRegistry) -> None:
        self._settings = settings
        self._equivalence = Equivalence(settings, registry)
        candidates = Counter(
            "isoflop_aggregation_candidates_total",
            "Candidates, by outcome (voted; or no vote: no_answer, too_long, pattern_limit, bad_weight).",
            ["outcome"],
            registry=registry,
        )
        self._voted = candidates.labels("voted")
        self._blank = {reason: candidates.labels(name) for reason, name in OUTCOMES.items()}

    async def aggregate(self, request: AggregateRequest) -> AggregateResponse:
        """The clusters of the request with its candidates in them.

        Raises InvalidArgument for a wrong field, Unavailable where a new pattern could not even be checked
        in time, and FailedPrecondition where expressions or patterns
        are asked for and the software for them is not installed. A candidate whose weight is no number,
        whose text is too long, has no answer or takes a pattern too long is a blank; expressions that take
        too long to compare are different, and reported as undecided.
        """
        self._check(request)
        await self._check_format(request)
        kind, selection = request.format.type, request.selection
        expressions = kind == ANSWER_TYPE_EXPRESSION
        tally = Tally(request.clusters, expression_key if expressions else str)
        response = AggregateResponse()
        answers = await self._answers(request)
        undecided: set[str] = set()
        turn = self._equivalence.turn()
        for candidate, answer in zip(request.candidates, answers, strict=True):
            if not isinstance(answer, str):
                self._blank[answer].inc()
                response.blanks.append(Blank(id=candidate.id, reason=answer))
                continue
            cluster = tally.find(answer)
            if cluster is None and expressions:
                cluster, decided = await self._equal(answer, tally.clusters, turn)
                if not decided:
                    undecided.add(candidate.id)
            tally.add(candidate, answer, cluster)
        self._voted.inc(len(request.candidates) - len(response.blanks))
        response.undecided.extend(
            candidate.id
            for candidate, answer in zip(request.candidates, answers, strict=True)
            if candidate.id in undecided or (isinstance(answer, str) and self._equivalence.unworkable(answer))
        )
        ordered = tally.ordered(selection)
        response.clusters.extend(ordered)
        response.tie = is_tie(ordered, selection)
        response.stability = leader_stability(ordered)
        return response

    async def close(self) -> None:
        """End the processes that compare."""
        await self._equivalence.close()

    async def _answers(self, request: AggregateRequest) -> list[str | BlankReason.ValueType]:
        """The answer of each candidate, or why it has none."""
        kind = request.format.type
        refusals = [self._refusal(candidate) for candidate in request.candidates]
        texts = [c.text for c, refusal in zip(request.candidates, refusals, strict=True) if refusal is None]
        if kind == ANSWER_TYPE_PATTERN:
            found = await self._equivalence.search(request.format.pattern, texts)
        else:
            found = [
                await asyncio.to_thread(extract, text, kind)
                if len(text) > LONG_CHARS
                else extract(text, kind)
                for text in texts
            ]
        rest = iter(found)
        return [self._accepted(next(rest)) if refusal is None else refusal for refusal in refusals]

    def _refusal(self, candidate: Candidate) -> BlankReason.ValueType | None:
        """Why a candidate is not even read."""
        # A comparison with NaN is false.
        weighs = 0.0 <= candidate.weight <= self._settings.max_weight
        if not weighs or not _is_logprob(candidate.logprob):
            return BLANK_REASON_BAD_WEIGHT
        return BLANK_REASON_TOO_LONG if len(candidate.text) > self._settings.max_text_chars else None

    def _accepted(self, found: str | NoResult | None) -> str | BlankReason.ValueType:
        if found is None:
            return BLANK_REASON_NO_ANSWER
        if isinstance(found, NoResult):
            return BLANK_REASON_PATTERN_LIMIT
        return found if len(found) <= self._settings.max_answer_chars else BLANK_REASON_TOO_LONG

    async def _equal(
        self, answer: str, clusters: Iterable[Cluster], turn: Turn
    ) -> tuple[Cluster | None, bool]:
        """The first cluster whose representative is mathematically equal to `answer`; and whether that is
        decided, but for representatives that nothing can be compared with."""
        decided = True
        for cluster in clusters:
            equal = await self._equivalence.equal(cluster.answer, answer, turn)
            if equal:
                return cluster, True
            if equal is None and not self._equivalence.unworkable(cluster.answer):
                decided = False
        return None, decided

    def _check(self, request: AggregateRequest) -> None:
        settings = self._settings
        if request.selection not in Selection.values():
            raise InvalidArgument("selection", f"{request.selection} is not a selection")
        if len(request.candidates) > settings.max_candidates:
            raise InvalidArgument("candidates", f"at most {settings.max_candidates} in one request")
        if len(request.clusters) > settings.max_clusters:
            raise InvalidArgument("clusters", f"at most {settings.max_clusters} in one request")
        seen: set[str] = set()
        for index, cluster in enumerate(request.clusters):
            field = f"clusters[{index}]"
            if not cluster.members:
                raise InvalidArgument(f"{field}.members", "a cluster has members")
            if len(cluster.answer) > settings.max_answer_chars:
                raise InvalidArgument(
                    f"{field}.answer", f"at most {settings.max_answer_chars} characters are an answer"
                )
            seen.update(cluster.members)
            _check_weight(f"{field}.weight", cluster.weight, settings.max_weight * len(cluster.members))
            _check_weight(f"{field}.best_weight", cluster.best_weight, settings.max_weight)
            if not _is_logprob(cluster.logprob):
                raise InvalidArgument(f"{field}.logprob", f"{cluster.logprob} is not a log-probability")
        for index, candidate in enumerate(request.candidates):
            field = f"candidates[{index}]"
            if not candidate.id or candidate.id in seen:
                raise InvalidArgument(f"{field}.id", "each candidate needs an id of its own")
            seen.add(candidate.id)

    async def _check_format(self, request: AggregateRequest) -> None:
        kind, pattern = request.format.type, request.format.pattern
        if kind not in AnswerType.values():
            raise InvalidArgument("format.type", f"{kind} is not an answer type")
        if kind != ANSWER_TYPE_PATTERN:
            if pattern:
                raise InvalidArgument("format.pattern", "only with ANSWER_TYPE_PATTERN")
            return
        if not pattern:
            raise InvalidArgument("format.pattern", "ANSWER_TYPE_PATTERN needs a regular expression")
        if len(pattern) > self._settings.max_pattern_chars:
            raise InvalidArgument("format.pattern", f"at most {self._settings.max_pattern_chars} characters")
        await self._equivalence.check_pattern(pattern)


def _check_weight(field: str, weight: float, most: float) -> None:
    # A comparison with NaN is false.
    if not 0.0 <= weight <= most:
        raise InvalidArgument(field, f"{weight} is not a number from 0 to {most:g}")


def _is_logprob(logprob: float) -> bool:
    return not math.isnan(logprob) and logprob != math.inf
