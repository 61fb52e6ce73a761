"""Recorded chains of steps, and how the suite's own rules and aggregation choose among them.

A query's answers go through the aggregation core as the router sends them: each chain weighs what
`chain_score` makes of its steps, nothing where it has no scores. The core breaks ties by what came first;
recordings are not in an order of time, so here those that lead together share the problem.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Final

import numpy as np
from isoflop.v1.aggregation_pb2 import (
    SELECTION_BEST,
    SELECTION_SUM,
    AggregateRequest,
    Candidate,
    Cluster,
    Selection,
)
from isoflop.v1.common_pb2 import ANSWER_TYPE_EXPRESSION, AnswerFormat
from isoflop.v1.verification_pb2 import (
    CHAIN_SCORING_LAST,
    CHAIN_SCORING_MEAN,
    CHAIN_SCORING_MIN,
    CHAIN_SCORING_PRODUCT,
    ChainScoring,
)
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ValidationError

from benchmarks.answers import verdict
from benchmarks.replay_data import RecordingError
from router.strategies.scoring import chain_score
from services.aggregation.answers import extract
from services.aggregation.core import Aggregation
from services.aggregation.equivalence import Equivalence
from services.aggregation.settings import AggregationSettings
from services.common.texts import open_text
from training.resampling import Bools, Floats, Ints

RULES: Final = {
    "min": CHAIN_SCORING_MIN,
    "product": CHAIN_SCORING_PRODUCT,
    "last": CHAIN_SCORING_LAST,
    "mean": CHAIN_SCORING_MEAN,
}
MAJORITY: Final = "majority"
ONE: Final = "one sample"
ANY: Final = "any right"
"""An oracle's choice: whether any chain is right."""


@dataclass(frozen=True)
class Way:
    """How chains are weighed, and their leader chosen."""

    selection: Selection.ValueType
    rule: ChainScoring.ValueType | None = None
    """None: each has one vote."""


VOTE: Final = {MAJORITY: Way(SELECTION_SUM)}
WAYS: Final = (
    VOTE
    | {f"best, {name}": Way(SELECTION_BEST, rule) for name, rule in RULES.items()}
    | {f"weighted, {name}": Way(SELECTION_SUM, rule) for name, rule in RULES.items()}
)
SETTINGS: Final = AggregationSettings(remembered_comparisons=1_000_000)
"""The service's own limits; only what was compared is not forgotten, as each query is asked in many ways."""


class Sample(BaseModel):
    """One recorded chain."""

    answer: str | None = None
    text: str | None = None
    correct: bool | None = None
    chars: int = 0
    step_scores: list[float | None] | None = None

    @property
    def steps(self) -> list[float]:
        """Scores of its steps; none where any is missing."""
        scores = [score for score in self.step_scores or () if score is not None]
        return scores if len(scores) == len(self.step_scores or ()) else []

    @property
    def said(self) -> str:
        """What aggregation reads: the text; where that was not recorded, the answer in a box."""
        if self.text is not None:
            return self.text
        return f"\\boxed{{{self.answer}}}" if self.answer else ""

    def score(self, rule: ChainScoring.ValueType) -> float:
        """Of the chain, as `router.strategies.scored` has it."""
        return chain_score(self.steps, rule) if self.steps else 0.0


class Query(BaseModel):
    """The chains of one run of a problem."""

    query_id: str
    model: str
    gold: str
    samples: list[Sample]
    prompt: str | None = None
    level: int = 0
    n: int = 0
    run: str = ""

    @property
    def problem(self) -> str:
        """What it is joined by: its text, white space apart, or its id."""
        return " ".join(self.prompt.split()) if self.prompt else self.query_id


def read(path: Path) -> list[Query]:
    """The queries of a recording that have samples; raises RecordingError."""
    found: list[Query] = []
    try:
        with open_text(path) as lines:
            for line in lines:
                found.append(Query.model_validate_json(line))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        told = f"{where}: {first['msg']}" if where else first["msg"]
        raise RecordingError(f"recording {path.name}, line {len(found) + 1}: {told}") from None
    except (OSError, EOFError, ValueError) as error:
        raise RecordingError(f"recording {path.name} cannot be read: {error}") from None
    if not any(query.samples for query in found):
        raise RecordingError(f"recording {path.name} has no samples")
    return [query for query in found if query.samples]


def blocks(queries: Iterable[Query], n: int) -> Iterator[Query]:
    """Independent samples of one model as runs of n: whatever run they came in, and each in one at most."""
    pooled: dict[str, list[Query]] = {}
    for query in queries:
        pooled.setdefault(query.problem, []).append(query)
    for its in pooled.values():
        samples = [sample for query in its for sample in query.samples]
        for first in range(0, len(samples) - n + 1, n):
            yield its[0].model_copy(update={"samples": samples[first : first + n], "n": n})


@dataclass(frozen=True)
class Answered:
    """Chance that a query is answered right, by what chooses among its chains."""

    ours: dict[str, float]
    """By our equivalence with gold."""
    labels: dict[str, float]
    """By the recording's `correct` of the chain that gave the answer."""
    right: list[bool]
    """Of each chain, by our equivalence."""


class Judge:
    """Asks the aggregation core, and compares what leads with gold."""

    def __init__(self) -> None:
        self._aggregation = Aggregation(SETTINGS, CollectorRegistry())
        self._equivalence = Equivalence(SETTINGS, CollectorRegistry())
        self._verdicts: dict[tuple[str, str], str] = {}

    @property
    def undecided(self) -> int:
        """Distinct answers of which it was not found in time whether they are gold."""
        return list(self._verdicts.values()).count("undecided")

    async def right(self, gold: str, answer: str | None) -> bool:
        """Whether an answer, as it was read, is the gold one."""
        if answer is None:
            return False
        if (gold, answer) not in self._verdicts:
            self._verdicts[gold, answer] = await verdict(self._equivalence, gold, answer)
        return self._verdicts[gold, answer] == "equal"

    async def answered(self, query: Query, ways: Mapping[str, Way]) -> Answered:
        """A query, in each of the ways, by one sample and by an oracle."""
        right = [
            await self.right(query.gold, extract(sample.said, ANSWER_TYPE_EXPRESSION))
            for sample in query.samples
        ]
        labels = [bool(sample.correct) for sample in query.samples]
        found = Answered({ONE: fmean(right), ANY: any(right)}, {ONE: fmean(labels), ANY: any(labels)}, right)
        for name, way in ways.items():
            leaders = await self._leaders(query, way)
            chosen = [
                int(one.best_member if way.selection == SELECTION_BEST else one.members[0]) for one in leaders
            ]
            ours = [await self.right(query.gold, one.answer) for one in leaders]
            found.ours[name] = fmean(ours) if leaders else 0.0
            found.labels[name] = fmean(labels[at] for at in chosen) if leaders else 0.0
        return found

    async def close(self) -> None:
        """End the processes that compare."""
        await self._aggregation.close()
        await self._equivalence.close()

    async def _leaders(self, query: Query, way: Way) -> list[Cluster]:
        """The first cluster, and those that only came later."""
        response = await self._aggregation.aggregate(
            AggregateRequest(
                format=AnswerFormat(type=ANSWER_TYPE_EXPRESSION),
                selection=way.selection,
                candidates=[
                    Candidate(
                        id=str(at), text=one.said, weight=1.0 if way.rule is None else one.score(way.rule)
                    )
                    for at, one in enumerate(query.samples)
                ],
            )
        )

        def rank(cluster: Cluster) -> tuple[float, int]:
            best = way.selection == SELECTION_BEST
            return cluster.best_weight if best else cluster.weight, len(cluster.members)

        return [one for one in response.clusters if rank(one) == rank(response.clusters[0])]


@dataclass(frozen=True, eq=False)
class Tried:
    """Runs of one model and n, averaged by problem."""

    problems: list[str]
    levels: Ints
    chars: Floats
    """Of a run's chains together."""
    ours: dict[str, Floats]
    """By way, the chance of a right answer of each problem."""
    labels: dict[str, Floats]
    """The same by the recording's own `correct`."""

    def of(self, problems: Iterable[str]) -> Tried:
        """These of its problems, in this order."""
        at = [self.problems.index(problem) for problem in problems]
        return Tried(
            [self.problems[one] for one in at],
            self.levels[at],
            self.chars[at],
            {way: values[at] for way, values in self.ours.items()},
            {way: values[at] for way, values in self.labels.items()},
        )

    def band(self, least: int, most: int) -> Bools:
        """Which problems are of these levels."""
        return (least <= self.levels) & (self.levels <= most)


def averaged(queries: Sequence[Query], answered: Sequence[Answered]) -> Tried:
    """By problem, the mean of its runs."""
    rows: dict[str, list[int]] = {}
    for at, query in enumerate(queries):
        rows.setdefault(query.problem, []).append(at)

    def means(told: Sequence[Mapping[str, float]]) -> dict[str, Floats]:
        return {
            way: np.array([fmean(told[at][way] for at in its) for its in rows.values()]) for way in told[0]
        }

    chars = [sum(sample.chars for sample in query.samples) for query in queries]
    return Tried(
        list(rows),
        np.array([queries[its[0]].level for its in rows.values()]),
        np.array([fmean(chars[at] for at in its) for its in rows.values()]),
        means([one.ours for one in answered]),
        means([one.labels for one in answered]),
    )
