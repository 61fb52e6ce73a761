"""Labelled queries through the services: samples, graded and scored, written line by line as a recording."""

from __future__ import annotations

import asyncio
import fcntl
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

from isoflop.errors import InvalidArgument, Unavailable
from isoflop.v1.aggregation_pb2 import AggregateRequest, Candidate
from isoflop.v1.common_pb2 import (
    FINISH_REASON_ABORTED,
    AnswerFormat,
    AnswerType,
    Message,
    Model,
    Sample,
)
from isoflop.v1.verification_pb2 import Chain, ScoreRequest, Verifier

from router import cost
from router.cost import TEMPLATE_TOKENS, Allowance, Cost, Meter
from router.decision import UNLIMITED
from router.portions import MOST_BYTES, portions
from router.stages import Stages
from router.strategies.scoring import chain_score
from training.labelled import Labelled
from training.recordings import RecordingError, deep_of, lines
from training.sampling import Round, sample_round

GOLD = "gold"
"""Id of the true answer among the candidates that it is compared with."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is asked of each model for each query."""

    samples: int
    temperature: float
    verifiers: Sequence[Verifier]
    at_a_time: int
    """Queries in flight."""
    max_tokens: int = 0
    """Most of a sample; 0: what the model's context leaves."""
    seed: int = 0

    def scored_by(self, model: Model) -> list[Verifier]:
        """The verifiers that can score samples of a model."""
        return [one for one in self.verifiers if model.capabilities.logprobs or not one.needs_logprobs]


@contextmanager
def opened(path: Path) -> Iterator[FileIO]:
    """A recording to add lines to, for this run alone; a line that was cut off by a kill is dropped.

    Raises RecordingError where another run is at work on it, and OSError.
    """
    if path.suffix == ".gz":
        raise RecordingError(f"{path}: lines are added to a recording that is not packed: name another")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecordingError(f"{path}: another run is at work on it: wait for its end") from None
        _mend(file)
        yield file


def _mend(file: FileIO) -> None:
    """Drop what follows the last line's end; but a line that lacks only its end gets it."""
    file.seek(0)
    whole, last = 0, b""
    with open(file.fileno(), "rb", closefd=False) as reader:
        for last in reader:
            whole += len(last) if last.endswith(b"\n") else 0
    if last.endswith(b"\n") or not last:
        return
    try:
        json.loads(last)
    except ValueError:
        os.ftruncate(file.fileno(), whole)
    else:
        file.write(b"\n")


def append(file: FileIO, row: Row) -> None:
    """Add a line, or nothing: where it does not fit on the disk, what was written of it is taken back."""
    size = os.fstat(file.fileno()).st_size
    rest = memoryview(json.dumps(row, allow_nan=False).encode() + b"\n")
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        os.ftruncate(file.fileno(), size)
        raise


class Capped(Exception):
    """The cap has no room for what would come next."""

    def __init__(self, worst: Cost) -> None:
        super().__init__()
        self.worst = worst
        """What that might have cost."""


@dataclass
class Share(Allowance):
    """What one job holds of the cap: it may come to need more, and is ended, not cut short, where that is
    not there."""

    limit: Cost = UNLIMITED
    cap: Allowance = field(kw_only=True)
    held: Cost = field(kw_only=True)
    """Set aside of the cap."""

    def reserve(self, worst: Cost) -> None:
        """Set aside; raises Capped where the cap has no room."""
        more = (self.spent + self.reserved + worst).beyond(self.held)
        if not more.within(self.cap.left):
            raise Capped(more)
        self.cap.reserve(more)
        self.held += more
        super().reserve(worst)


@dataclass(frozen=True)
class Job(ABC):
    """What becomes one line of a recording."""

    query: Labelled
    model: Model

    @abstractmethod
    def expected(self, plan: Plan, tokens: float) -> Cost:
        """What it will cost, where a sample of the model is expected to have so many tokens."""

    @abstractmethod
    def at_worst(self, plan: Plan) -> Cost:
        """The most that its beginning can cost."""

    @abstractmethod
    async def measure(self, stages: Stages, plan: Plan, meter: Meter, share: Share) -> Row:
        """The line; the meter hears what it costs. `share` holds the worst case, to be asked for more."""

    def line(self, plan: Plan) -> Row:
        """What each line has."""
        return {
            "query_id": self.query.query_id,
            "model": self.model.name,
            "prompt": self.query.prompt,
            "gold": self.query.answer,
            "type": AnswerType.Name(self.query.type).removeprefix("ANSWER_TYPE_").lower(),
            "group": self.query.group,
            "temperature": plan.temperature,
        }


class Sampled(Job):
    """A model's samples of a query, and a greedy one."""

    def expected(self, plan: Plan, tokens: float) -> Cost:
        """With scores."""
        return with_scores(
            self.model, plan.samples + 1, prompt_tokens(self.query), tokens, plan.scored_by(self.model)
        )

    def at_worst(self, plan: Plan) -> Cost:
        """With scores: all of it."""
        return at_worst(self.query, self.model, plan, plan.samples + 1)

    async def measure(self, stages: Stages, plan: Plan, meter: Meter, share: Share) -> Row:
        """Graded and scored."""
        query, model, rounds = self.query, self.model, []
        for count, temperature in ((plan.samples, plan.temperature), (1, 0.0)):
            one = await sample_round(
                stages.generation,
                model.name,
                query.prompt,
                samples=count,
                temperature=temperature,
                seed=plan.seed,
                query_id=query.query_id,
                max_tokens=plan.max_tokens,
            )
            meter.generation(model, "", one.usage)
            broken = any(sample.finish_reason == FINISH_REASON_ABORTED for sample in one.samples)
            if broken or len(one.samples) != count:
                raise Unavailable(f"{model.name}: samples of query {query.query_id} broke off")
            rounds.append(one)
        several, lone = rounds
        samples = [*several.samples, *lone.samples]
        rows = await graded(stages, query, samples)
        for verifier in plan.scored_by(model):
            await score(stages, query, verifier, samples, rows, meter)
        return self.line(plan) | {
            "prompt_tokens": _prompt_tokens(lone),
            "samples": rows[: len(several.samples)],
            "greedy": rows[-1],
        }


def missing(
    path: Path, queries: Sequence[Labelled], models: Sequence[Model], plan: Plan
) -> tuple[list[Job], Cost]:
    """What a recording lacks, query by query, and what the lines that are there have cost.

    Raises RecordingError, also where what is there of these queries was made otherwise, and OSError.
    """
    asked = {query.query_id: query for query in queries}
    by_name = {model.name: model for model in models}
    there: set[tuple[str, str]] = set()
    spent = Cost()
    for row in lines(path):
        spent += Cost(row.get("flops") or 0.0, row.get("money") or 0.0)
        query, model = asked.get(row["query_id"]), by_name.get(row["model"])
        if query and model and row["samples"] and deep_of(row) is None:
            there.add((query.query_id, model.name))
            refuse(path, query, model, otherwise(row, query, plan) or _other_samples(row, model, plan))
    jobs: list[Job] = [
        Sampled(query, model)
        for query in queries
        for model in models
        if (query.query_id, model.name) not in there
    ]
    return jobs, spent


def refuse(path: Path, query: Labelled, model: Model, fault: str) -> None:
    """Raises RecordingError where a line is otherwise than the plan has it."""
    if fault:
        raise RecordingError(
            f"{path}: query {query.query_id} of {model.name} was recorded with {fault}; "
            "ask for the same, or name another --recording"
        )


def otherwise(row: Row, query: Labelled, plan: Plan) -> str:
    """What of a line's query is not as the plan has it; empty: nothing."""
    if row.get("prompt") not in (None, query.prompt):
        return "another prompt"
    if row.get("gold") is not None and str(row["gold"]) != query.answer:
        return "another true answer"
    if row.get("temperature") not in (None, plan.temperature):
        return f"temperature {row['temperature']:g}"
    return ""


def _other_samples(row: Row, model: Model, plan: Plan) -> str:
    """Likewise of its samples."""
    if len(row["samples"]) < plan.samples:
        return f"{len(row['samples'])} samples"
    scores = set.intersection(*(set(sample.get("scores") or ()) for sample in row["samples"]))
    lacking = [verifier.name for verifier in plan.scored_by(model) if verifier.name not in scores]
    return f"no scores of {', '.join(lacking)}" if lacking else ""


async def unreadable(stages: Stages, queries: Sequence[Labelled], at_a_time: int) -> list[Labelled]:
    """The queries whose true answer is no answer of its type: nothing could be compared with it."""
    gate = asyncio.Semaphore(at_a_time)

    async def wrong(query: Labelled) -> bool:
        async with gate:
            return not (await stages.aggregation.aggregate(_compared(query, []))).clusters

    told = await asyncio.gather(*(wrong(query) for query in queries))
    return [query for query, no in zip(queries, told, strict=True) if no]


def foreseen(jobs: Iterable[Job], plan: Plan, tokens: Callable[[str], float]) -> Cost:
    """What the jobs will cost; `tokens` is what a sample of a model is expected to have."""
    return sum((job.expected(plan, tokens(job.model.name)) for job in jobs), Cost())


def prompt_tokens(query: Labelled) -> float:
    """That are expected."""
    return len(query.prompt.encode()) / 4 + TEMPLATE_TOKENS / 4


def at_worst(query: Labelled, model: Model, plan: Plan, count: int) -> Cost:
    """The most that so many samples can cost, with their scores.

    Infinite where nothing says how long a sample may be.
    """
    prompt = len(query.prompt.encode()) + TEMPLATE_TOKENS
    tokens = min(plan.max_tokens or math.inf, model.context or math.inf)
    if tokens == math.inf:
        return Cost(math.inf, math.inf, math.inf)
    return with_scores(model, count, prompt, tokens, plan.scored_by(model))


def with_scores(
    model: Model, count: int, prompt: float, tokens: float, verifiers: Iterable[Verifier]
) -> Cost:
    """What so many samples of so many tokens cost, each scored by each of these."""
    bare = cost.samples(model, count, prompt, tokens)
    return sum((cost.samples(model, count, prompt, tokens, one) - bare for one in verifiers), bare)


@dataclass
class Ended:
    """How a run ended."""

    refused: dict[str, str] = field(default_factory=dict)
    """Queries that a service would not take, by id: what it said."""
    capped: Cost | None = None
    """What the next round might have cost, where the cap had no room for it."""


async def record(
    stages: Stages,
    jobs: Sequence[Job],
    plan: Plan,
    file: FileIO,
    *,
    left: Cost,
    done: Callable[[Cost], None],
) -> Ended:
    """Run the jobs and append their lines to the recording; `done` hears what each has cost.

    A round begins only where its worst case has room in what is `left` beside those in flight. One that comes
    to need more, and does not find it, ends in vain. Where a service or the disk fails, what is in flight
    comes to its end and is kept, and then the first error is raised.
    """
    waiting = iter(jobs)
    allowance, ended, errors = Allowance(Cost(left.flops, left.money, math.inf)), Ended(), list[Exception]()
    settled, running = asyncio.Condition(), 0

    def room(worst: Cost) -> bool:
        return not running or worst.within(allowance.left)

    async def work() -> None:
        nonlocal running
        while not (errors or ended.capped) and (job := next(waiting, None)):
            query, model = job.query, job.model
            worst = job.at_worst(plan) if _is_capped(left) else Cost()
            async with settled:
                await settled.wait_for(partial(room, worst))
            if errors or ended.capped:
                return
            if not worst.within(allowance.left):
                ended.capped = worst
                return
            if query.query_id in ended.refused:
                continue
            allowance.reserve(worst)
            running += 1
            meter, share = Meter(model.price.currency), Share(cap=allowance, held=worst)
            try:
                row = await job.measure(stages, plan, meter, share)
            except Capped as error:
                ended.capped = error.worst
                row = None
            except InvalidArgument as error:
                ended.refused.setdefault(query.query_id, f"{model.name}: {error}")
                row = None
            except Exception as error:
                errors.append(error)
                row = None
            finally:
                running -= 1
                spent = meter.bill()
                price = Cost(spent.flops, spent.money)
                allowance.settle(share.held, price)
                async with settled:
                    settled.notify_all()
            if row is None and not price.flops:
                continue
            # What a round that failed has cost is kept, too, so that the cap holds in the next run.
            row = row or {"query_id": query.query_id, "model": model.name, "samples": []}
            try:
                append(file, {**row, "flops": price.flops, "money": price.money})
            except OSError as error:
                errors.append(error)
                return
            done(price)

    async with asyncio.TaskGroup() as group:
        for _ in range(plan.at_a_time):
            group.create_task(work())
    if errors:
        raise errors[0]
    return ended


def _is_capped(left: Cost) -> bool:
    return min(left.flops, left.money) < math.inf


async def timed(
    stages: Stages, model: Model, queries: Sequence[Labelled], plan: Plan, left: Cost
) -> Row | None:
    """A line that says how long a token of a lone sample takes; None where there is no room for it."""
    meter, tokens, seconds = Meter(model.price.currency), 0, 0.0
    for query in queries:
        worst, spent = at_worst(query, model, plan, 1), meter.bill()
        if _is_capped(left) and not (worst + Cost(spent.flops, spent.money)).within(left):
            break
        one = await sample_round(stages.generation, model.name, query.prompt, max_tokens=plan.max_tokens)
        meter.generation(model, "", one.usage)
        tokens += sum(sample.tokens for sample in one.samples)
        seconds += one.seconds
    if not tokens:
        return None
    bill = meter.bill()
    return {
        "query_id": queries[0].query_id,
        "model": model.name,
        "samples": [],
        "seconds_per_token": seconds / tokens,
        "flops": bill.flops,
        "money": bill.money,
    }


def _prompt_tokens(round: Round) -> int:
    return (round.usage.prompt_tokens + round.usage.cached_tokens) // max(1, len(round.samples))


def _compared(query: Labelled, samples: Sequence[Sample]) -> AggregateRequest:
    """The true answer and samples, to be grouped."""
    gold = Candidate(id=GOLD, text=f"\\boxed{{{query.answer}}}", weight=1.0)
    numbered = [Candidate(id=str(n), text=sample.text, weight=1.0) for n, sample in enumerate(samples)]
    return AggregateRequest(format=AnswerFormat(type=query.type), candidates=[gold, *numbered])


async def graded(stages: Stages, query: Labelled, samples: Sequence[Sample]) -> list[Row]:
    """Of each sample its answer, as aggregation reads it, its tokens, and whether it is the true one."""
    response = await stages.aggregation.aggregate(_compared(query, samples))
    rows: list[Row] = [{"answer": None, "correct": False, "tokens": sample.tokens} for sample in samples]
    for cluster in response.clusters:
        correct = GOLD in cluster.members
        for member in cluster.members:
            if member != GOLD:
                rows[int(member)] |= {"answer": cluster.answer, "correct": correct}
    return rows


async def score(
    stages: Stages,
    query: Labelled,
    verifier: Verifier,
    samples: Sequence[Sample],
    rows: Sequence[Row],
    meter: Meter,
) -> None:
    """Put a verifier's score of each chain into its row, None where it can give none."""
    request = ScoreRequest(verifier=verifier.name, messages=[Message(role="user", content=query.prompt)])
    chains = [Chain(id=str(n), text=one.text, steps=one.steps) for n, one in enumerate(samples)]
    parts, _ = portions(chains, MOST_BYTES - request.ByteSize())
    for row in rows:
        row.setdefault("scores", {})[verifier.name] = None
    for part in parts:
        response = await stages.verification.score(
            ScoreRequest(verifier=request.verifier, messages=request.messages, chains=part)
        )
        meter.verification(verifier, "", response)
        for scored in response.scores:
            if scored.steps and math.isfinite(sum(scored.steps)):
                rows[int(scored.id)]["scores"][verifier.name] = round(
                    chain_score(scored.steps, verifier.scoring), 5
                )
