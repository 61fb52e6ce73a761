"""Labelled queries through the services: samples, graded and scored, written line by line as a recording."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.v1.aggregation_pb2 import AggregateRequest, Candidate
from isoflop.v1.common_pb2 import AnswerFormat, AnswerType, Message, Model, Sample
from isoflop.v1.verification_pb2 import Chain, ScoreRequest, Verifier

from router import cost
from router.cost import TEMPLATE_TOKENS, Cost, Meter
from router.portions import MOST_BYTES, portions
from router.stages import Stages
from router.strategies.scoring import chain_score
from training.recordings import lines
from training.sampling import Round, sample_round

GOLD = "gold"
"""Id of the true answer among the candidates that it is compared with."""

Row = dict[str, Any]


class QueriesError(Exception):
    """Labelled queries that cannot be used; `str(error)` says where and why."""


@dataclass(frozen=True)
class Labelled:
    """A query and its true answer."""

    query_id: str
    prompt: str
    answer: str
    type: AnswerType.ValueType
    group: str


@dataclass(frozen=True)
class Plan:
    """What is asked of each model for each query."""

    samples: int
    temperature: float
    verifiers: Sequence[Verifier]
    at_a_time: int
    """Queries in flight."""
    seed: int = 0


def read_queries(path: Path) -> list[Labelled]:
    """The queries of a JSONL file: prompt, answer, and query_id, type, group where they are there.

    Raises QueriesError, which names the line, and OSError.
    """
    queries: dict[str, Labelled] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            kind = AnswerType.Value(f"ANSWER_TYPE_{str(row.get('type', 'text')).upper()}")
            query = Labelled(
                str(row.get("query_id") or f"line-{number}"),
                row["prompt"],
                str(row["answer"]),
                kind,
                str(row.get("group", "")),
            )
            empty = not query.prompt.strip() or not query.answer.strip()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise QueriesError(f"{path}, line {number}: not a labelled query ({error!r})") from None
        if empty:
            raise QueriesError(f"{path}, line {number}: an empty prompt or answer")
        if query.query_id in queries:
            raise QueriesError(f"{path}, line {number}: query_id {query.query_id!r} is there twice")
        queries[query.query_id] = query
    if not queries:
        raise QueriesError(f"{path}: no queries")
    return list(queries.values())


def missing(
    path: Path, queries: Sequence[Labelled], models: Sequence[Model]
) -> tuple[list[tuple[Labelled, Model]], Cost]:
    """What a recording lacks, query by query, and what the lines that are there have cost.

    A line that was cut off, by a run that was killed, is dropped. Raises RecordingError and OSError.
    """
    there: set[tuple[str, str]] = set()
    spent = Cost()
    if path.exists():
        whole, _, cut = path.read_text(encoding="utf-8").rpartition("\n")
        if cut:
            path.write_text(f"{whole}\n" if whole else "", encoding="utf-8")
        for row in lines(path):
            there.add((row["query_id"], row["model"]))
            spent += Cost(row.get("flops", 0.0), row.get("money", 0.0))
    jobs = [
        (query, model) for query in queries for model in models if (query.query_id, model.name) not in there
    ]
    return jobs, spent


def foreseen(jobs: Iterable[tuple[Labelled, Model]], plan: Plan, tokens: Callable[[str], float]) -> Cost:
    """What the jobs will cost; `tokens` is what a sample of a model is expected to have."""
    total = Cost()
    for query, model in jobs:
        prompt, count = len(query.prompt.encode()) / 4 + TEMPLATE_TOKENS / 4, plan.samples + 1
        total += cost.samples(model, count, prompt, tokens(model.name))
        for verifier in plan.verifiers:
            scored = cost.samples(model, count, prompt, tokens(model.name), verifier)
            total += scored - cost.samples(model, count, prompt, tokens(model.name))
    return total


async def record(
    stages: Stages,
    jobs: Sequence[tuple[Labelled, Model]],
    plan: Plan,
    path: Path,
    *,
    left: Cost,
    done: Callable[[Cost], None],
) -> bool:
    """Run the jobs and append their lines to the recording; `done` hears what each has cost.

    False where it ended since no more was `left`: what is there stays, and a later run goes on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting: Iterator[tuple[Labelled, Model]] = iter(jobs)
    spent, most = Cost(), 0.0

    async def work(out: Any) -> None:
        nonlocal spent, most
        for query, model in waiting:
            if spent.flops + most * plan.at_a_time > left.flops or spent.money > left.money:
                return
            row, price = await measure(stages, query, model, plan)
            spent, most = spent + price, max(most, price.flops)
            out.write(json.dumps(row) + "\n")
            out.flush()
            done(price)

    with path.open("a", encoding="utf-8") as out:
        async with asyncio.TaskGroup() as group:
            for _ in range(plan.at_a_time):
                group.create_task(work(out))
    return next(waiting, None) is None


async def measure(stages: Stages, query: Labelled, model: Model, plan: Plan) -> tuple[Row, Cost]:
    """One query under one model: its line of the recording, and what it cost."""
    several = await sample_round(
        stages.generation,
        model.name,
        query.prompt,
        samples=plan.samples,
        temperature=plan.temperature,
        seed=plan.seed,
        query_id=query.query_id,
    )
    lone = await sample_round(stages.generation, model.name, query.prompt, query_id=query.query_id)
    meter = Meter(model.price.currency)
    price = meter.generation(model, "", several.usage) + meter.generation(model, "", lone.usage)
    samples = [*several.samples, *lone.samples]
    rows = await graded(stages, query, samples)
    for verifier in plan.verifiers:
        if not verifier.needs_logprobs or model.capabilities.logprobs:
            price += await score(stages, query, verifier, samples, rows, meter)
    return {
        "query_id": query.query_id,
        "model": model.name,
        "prompt": query.prompt,
        "gold": query.answer,
        "type": AnswerType.Name(query.type).removeprefix("ANSWER_TYPE_").lower(),
        "group": query.group,
        "temperature": plan.temperature,
        "prompt_tokens": _prompt_tokens(lone),
        "flops": price.flops,
        "money": price.money,
        "samples": rows[: len(several.samples)],
        "greedy": rows[-1],
    }, price


def _prompt_tokens(round: Round) -> int:
    return (round.usage.prompt_tokens + round.usage.cached_tokens) // max(1, len(round.samples))


async def graded(stages: Stages, query: Labelled, samples: Sequence[Sample]) -> list[Row]:
    """Of each sample its answer, as aggregation reads it, its tokens, and whether it is the true one."""
    numbered = [
        Candidate(id=str(number), text=sample.text, weight=1.0) for number, sample in enumerate(samples)
    ]
    gold = Candidate(id=GOLD, text=f"\\boxed{{{query.answer}}}", weight=1.0)
    response = await stages.aggregation.aggregate(
        AggregateRequest(format=AnswerFormat(type=query.type), candidates=[gold, *numbered])
    )
    rows: list[Row] = [{"answer": None, "correct": False, "tokens": sample.tokens} for sample in samples]
    true = False
    for cluster in response.clusters:
        correct = GOLD in cluster.members
        true = true or correct
        for member in cluster.members:
            if member != GOLD:
                rows[int(member)] |= {"answer": cluster.answer, "correct": correct}
    if not true:
        raise QueriesError(f"query {query.query_id}: {query.answer!r} is no answer of its type")
    return rows


async def score(
    stages: Stages,
    query: Labelled,
    verifier: Verifier,
    samples: Sequence[Sample],
    rows: Sequence[Row],
    meter: Meter,
) -> Cost:
    """Put a verifier's score of each chain into its row; what that cost. One without a score has 0.5."""
    request = ScoreRequest(verifier=verifier.name, messages=[Message(role="user", content=query.prompt)])
    chains = [Chain(id=str(n), text=one.text, steps=one.steps) for n, one in enumerate(samples)]
    parts, _ = portions(chains, MOST_BYTES - request.ByteSize())
    price = Cost()
    for row in rows:
        row.setdefault("scores", {})[verifier.name] = 0.5
    for part in parts:
        response = await stages.verification.score(
            ScoreRequest(verifier=request.verifier, messages=request.messages, chains=part)
        )
        price += meter.verification(verifier, "", response)
        for scored in response.scores:
            if scored.steps and math.isfinite(sum(scored.steps)):
                rows[int(scored.id)]["scores"][verifier.name] = round(
                    chain_score(scored.steps, verifier.scoring), 5
                )
    return price
