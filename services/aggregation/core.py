"""The work of aggregation: an answer out of each text, equal ones together, the leader first."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterable
from functools import lru_cache

from isoflop.errors import InvalidArgument
from isoflop.v1.aggregation_pb2 import AggregateRequest, AggregateResponse, Cluster, Selection
from isoflop.v1.common_pb2 import ANSWER_TYPE_EXPRESSION, ANSWER_TYPE_PATTERN, AnswerType
from prometheus_client import CollectorRegistry, Counter

from services.aggregation.answers import expression_key, extract
from services.aggregation.equivalence import Equivalence
from services.aggregation.settings import AggregationSettings
from services.aggregation.tally import Tally, is_tie, leader_stability

LONG_CHARS = 1 << 16
"""A longer text is read in a thread: the event loop goes on meanwhile."""


class Aggregation:
    """Groups candidates by their answers. Keeps nothing of a request but results of comparisons."""

    def __init__(self, settings: AggregationSettings, registry: CollectorRegistry) -> None:
        self._settings = settings
        self._equivalence = Equivalence(settings, registry)
        candidates = Counter(
            "isoflop_aggregation_candidates_total",
            "Candidates, by outcome (voted, blank: no answer found, too_long: not read).",
            ["outcome"],
            registry=registry,
        )
        self._voted, self._blank, self._too_long = map(candidates.labels, ("voted", "blank", "too_long"))

    async def aggregate(self, request: AggregateRequest) -> AggregateResponse:
        """The clusters of the request with its candidates in them.

        Raises InvalidArgument for a wrong field, and FailedPrecondition where expressions or patterns
        are asked for and the software for them is not installed. A text that is too long, has no answer
        or takes a pattern too long is a blank; expressions that take too long to compare are different.
        """
        self._check(request)
        kind, selection = request.format.type, request.selection
        expressions = kind == ANSWER_TYPE_EXPRESSION
        tally = Tally(request.clusters, expression_key if expressions else str)
        response = AggregateResponse()
        answers = await self._answers(request)
        deadline = self._equivalence.deadline()
        for candidate, answer in zip(request.candidates, answers, strict=True):
            if answer is None:
                response.blanks.append(candidate.id)
                continue
            cluster = tally.find(answer)
            if cluster is None and expressions:
                cluster = await self._equal(answer, tally.clusters, deadline)
            tally.add(candidate, answer, cluster)
        self._voted.inc(len(request.candidates) - len(response.blanks))
        ordered = tally.ordered(selection)
        response.clusters.extend(ordered)
        response.tie = is_tie(ordered, selection)
        response.stability = leader_stability(ordered)
        return response

    async def close(self) -> None:
        """End the processes that compare."""
        await self._equivalence.close()

    async def _answers(self, request: AggregateRequest) -> list[str | None]:
        """The answer of each candidate."""
        texts = [candidate.text for candidate in request.candidates]
        readable = [len(text) <= self._settings.max_text_chars for text in texts]
        if request.format.type == ANSWER_TYPE_PATTERN:
            searched = [text for text, fits in zip(texts, readable, strict=True) if fits]
            found = iter(await self._equivalence.search(request.format.pattern, searched))
            answers = [next(found) if fits else None for fits in readable]
        else:
            answers = []
            for text, fits in zip(texts, readable, strict=True):
                if not fits:
                    answers.append(None)
                elif len(text) > LONG_CHARS:
                    answers.append(await asyncio.to_thread(extract, text, request.format.type))
                else:
                    answers.append(extract(text, request.format.type))
        too_long = readable.count(False)
        self._too_long.inc(too_long)
        self._blank.inc(answers.count(None) - too_long)
        return answers

    async def _equal(self, answer: str, clusters: Iterable[Cluster], deadline: float) -> Cluster | None:
        """The first cluster whose representative is mathematically equal to `answer`."""
        for cluster in clusters:
            if await self._equivalence.equal(cluster.answer, answer, deadline):
                return cluster
        return None

    def _check(self, request: AggregateRequest) -> None:
        settings = self._settings
        self._check_format(request)
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
            seen.update(cluster.members)
            _check_weight(f"{field}.weight", cluster.weight, settings.max_weight * len(cluster.members))
            _check_weight(f"{field}.best_weight", cluster.best_weight, settings.max_weight)
            _check_logprob(f"{field}.logprob", cluster.logprob)
        for index, candidate in enumerate(request.candidates):
            field = f"candidates[{index}]"
            if not candidate.id or candidate.id in seen:
                raise InvalidArgument(f"{field}.id", "each candidate needs an id of its own")
            seen.add(candidate.id)
            _check_weight(f"{field}.weight", candidate.weight, settings.max_weight)
            _check_logprob(f"{field}.logprob", candidate.logprob)

    def _check_format(self, request: AggregateRequest) -> None:
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
        fault = _pattern_fault(pattern)
        if fault:
            raise InvalidArgument("format.pattern", fault)


def _check_weight(field: str, weight: float, most: float) -> None:
    # A comparison with NaN is false.
    if not 0.0 <= weight <= most:
        raise InvalidArgument(field, f"{weight} is not a number from 0 to {most:g}")


def _check_logprob(field: str, logprob: float) -> None:
    if math.isnan(logprob) or logprob == math.inf:
        raise InvalidArgument(field, f"{logprob} is not a log-probability")


@lru_cache(maxsize=1024)
def _pattern_fault(pattern: str) -> str:
    """What is wrong with a pattern; empty where nothing is."""
    try:
        groups = re.compile(pattern).groups
    except (re.error, RecursionError, OverflowError) as error:
        return f"not a regular expression of Python: {error}"
    return "" if groups == 1 else f"exactly one group marks the answer; it has {groups}"
