"""`isoflop label-steps`: step labels without a judge, by roll-outs through the generation service.

As in Math-Shepherd (Wang et al., arXiv 2312.08935): a step is as good as the chance to reach the right
answer from it. Chains are sampled, and cut into steps where the generation service cuts them; from the end of
each step some completions are sampled, and their answers compared with the right one by the aggregation
service. The label's `probability` is the share that reaches it (the paper's soft estimation), its `rating` is
1 where any does and else -1 (its hard estimation). What differs from the paper, each to spend less on the
same labels:

- The chain's own end is one more completion of each of its steps: it was sampled from there, too.
- The last step of a finished chain is as right as the chain's answer: there is nothing to sample.
- After a step from which nothing reached the answer, steps are taken for wrong (`rollouts` 0), and what still
  runs of their completions is aborted. A chain that reached the answer itself is never cut short so.
- Chains of a problem that begin alike share the completions.

All steps of a chain are one round. Each problem's rows are appended at once, so that what is interrupted
leaves a whole file, and goes on with the problems that it lacks. Seeds follow from `--seed` and the problem.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

from isoflop.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable, Unreachable
from isoflop.v1.aggregation_pb2 import AggregateRequest, Candidate
from isoflop.v1.common_pb2 import (
    ANSWER_TYPE_CHOICE,
    ANSWER_TYPE_EXPRESSION,
    ANSWER_TYPE_NUMBER,
    ANSWER_TYPE_TEXT,
    FINISH_REASON_ABORTED,
    FINISH_REASON_STOP,
    AnswerFormat,
    Message,
    Model,
    Sample,
    Sampling,
)
from isoflop.v1.generation_pb2 import (
    AbortSamples,
    Branch,
    DescribeModelsRequest,
    GenerateRequest,
    RoundUsage,
    StartRound,
)
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.progress import Progress

from router.stages import Aggregation as AggregationStage
from router.stages import Generation as GenerationStage
from services.aggregation.core import Aggregation
from services.aggregation.settings import AggregationSettings
from services.common import log
from services.common.catalog import CatalogError
from services.common.channels import Channels
from services.common.flops import with_attention
from services.common.settings import MODELS
from services.generation.remote import RemoteGeneration
from training import sampling
from training.labels import Fault, Judged, row_of
from training.rows import mend

KINDS = {
    "number": ANSWER_TYPE_NUMBER,
    "expression": ANSWER_TYPE_EXPRESSION,
    "choice": ANSWER_TYPE_CHOICE,
    "text": ANSWER_TYPE_TEXT,
}


@dataclass(frozen=True)
class Wanted:
    """What the command line says."""

    problems: Path
    model: str
    output: Path
    catalog: Path = MODELS / "catalog.yaml"
    generation: str = ""
    chains: int = 4
    rollouts: int = 4
    temperature: float = 1.0
    max_tokens: int = 0
    at_a_time: int = 4
    seed: int = 1


class Problem(BaseModel):
    """A row of the file of problems; other keys are of no matter here."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    query_id: str = Field(min_length=1)
    prompt: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    type: Literal["number", "expression", "choice", "text"] = "number"
    group: str | int | None = None

    @property
    def truth(self) -> str:
        """A text that gives the right answer."""
        return self.answer if self.type == "text" else f"\\boxed{{{self.answer}}}"


@dataclass
class Cost:
    """What was spent."""

    tokens: float = 0.0
    """Prompt tokens that were computed, completion and aborted tokens."""
    flops: float = 0.0
    """Attention included."""

    def add(self, other: Cost, share: float = 1.0) -> None:
        """Add a share of another cost."""
        self.tokens += other.tokens * share
        self.flops += other.flops * share


@dataclass
class Tally:
    """Completions of one prefix."""

    right: int = 0
    total: int = 0


@dataclass
class Summary:
    """What a run came to."""

    problems: int = 0
    """Labelled in this run."""
    known: int = 0
    """Labelled in the file before."""
    rows: int = 0
    steps: int = 0
    reachable: int = 0
    """Steps from which the answer was reached."""
    cost: Cost = field(default_factory=Cost)
    faults: list[str] = field(default_factory=list)


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """label the steps of a model's solutions by roll-outs

    FILE has one problem a line: {"query_id": ..., "prompt": ..., "answer": ..., "type": "number"}, type
    being number, expression, choice or text. Labels are written in the form of PRM800K, for `train-prm`.
    A run that was interrupted goes on with the problems that the output lacks.
    """
    add = parser.add_argument
    add("--problems", type=Path, required=True, metavar="FILE", help="problems with their answers")
    add("--model", required=True, metavar="NAME", help="the model whose steps are labelled")
    add("--output", type=Path, required=True, metavar="FILE", help="labels; what is in it is kept")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--catalog",
        type=Path,
        default=Wanted.catalog,
        metavar="FILE",
        help="catalogue of models to run in this process (default: the embedded models)",
    )
    where.add_argument(
        "--generation", default="", metavar="HOST:PORT", help="a generation service that has the model"
    )
    add("--chains", type=int, default=Wanted.chains, metavar="N", help="solutions a problem (default 4)")
    add("--rollouts", type=int, default=Wanted.rollouts, metavar="N", help="completions a step (default 4)")
    add("--temperature", type=float, default=Wanted.temperature, metavar="T", help="of all (default 1)")
    add("--max-tokens", type=int, default=0, metavar="N", help="of a sample (default: what fits)")
    add("--at-a-time", type=int, default=Wanted.at_a_time, metavar="N", help="problems (default 4)")
    add("--seed", type=int, default=Wanted.seed, metavar="N", help="of all samples (default 1)")

    def run(arguments: argparse.Namespace) -> int:
        log.configure("warning", "text")
        fields = {key: value for key, value in vars(arguments).items() if key in Wanted.__dataclass_fields__}
        try:
            summary = asyncio.run(label(Wanted(**fields)))
        except Unreachable as error:
            # The command `isoflop` takes it for the router, which is not asked here.
            raise Unavailable(str(error)) from None
        for fault in summary.faults:
            print(f"left out: {fault}", file=sys.stderr)
        print(told(summary))
        return 0 if summary.problems or summary.known else 1

    return run


def told(summary: Summary) -> str:
    """What the command prints at the end."""
    before = f", {summary.known} were there before" if summary.known else ""
    share = f", {summary.reachable / summary.steps:.3f} of them right" if summary.steps else ""
    return (
        f"{summary.problems} problems labelled{before}: {summary.rows} solutions, "
        f"{summary.steps} steps{share}; {summary.cost.tokens:.4g} tokens, {summary.cost.flops:.3g} FLOPs"
    )


def check(wanted: Wanted) -> None:
    """Raise InvalidArgument for what is wrong by itself."""
    for name in ("chains", "rollouts", "at_a_time"):
        if getattr(wanted, name) < 1:
            raise InvalidArgument(name, "1 or more")
    if not (math.isfinite(wanted.temperature) and wanted.temperature > 0):
        raise InvalidArgument("temperature", "above 0: greedy completions would be all alike")


def read_problems(path: Path) -> tuple[list[Problem], list[Fault]]:
    """The problems of a file, and its broken lines. Raises OSError."""
    problems: dict[str, Problem] = {}
    faults = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                problem = Problem.model_validate_json(line)
            except ValidationError as error:
                fault = error.errors()[0]
                where = ".".join(str(part) for part in fault["loc"])
                faults.append(Fault(path, number, f"{where}: {fault['msg']}" if where else fault["msg"]))
                continue
            if problem.query_id in problems:
                faults.append(Fault(path, number, "its query_id is another problem's"))
            problems.setdefault(problem.query_id, problem)
    return list(problems.values()), faults


def known(path: Path, model: str) -> set[str]:
    """The query_ids that have rows of this model; a last line that was torn off is cut away."""
    mend(path)
    if not path.exists():
        return set()
    found = set()
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
            if row["model"] == model:
                found.add(row["question"]["query_id"])
        except (ValueError, KeyError, TypeError):
            continue
    return found


@asynccontextmanager
async def open_generation(wanted: Wanted) -> AsyncIterator[GenerationStage]:
    """The generation service: of another process, or in this one. Raises FailedPrecondition."""
    async with AsyncExitStack() as stack:
        if wanted.generation:
            channels = Channels()
            stack.push_async_callback(channels.close)
            yield RemoteGeneration(wanted.generation, channels)
            return
        try:
            core = await stack.enter_async_context(sampling.open_generation(wanted.catalog))
        except CatalogError as error:
            raise FailedPrecondition(str(error)) from None
        yield core


async def label(wanted: Wanted) -> Summary:
    """Label what the output lacks.

    Raises InvalidArgument, also where the file has no problem, NotFound for an unknown model,
    FailedPrecondition for one that cannot continue a prefix, OSError, and what the generation service raises.
    A problem that it refuses is left out.
    """
    check(wanted)
    problems, faults = read_problems(wanted.problems)
    if not problems:
        why = f"; line {faults[0].line}: {faults[0].reason}" if faults else ""
        raise InvalidArgument("problems", f"{wanted.problems}: no problem in it can be read{why}")
    done = known(wanted.output, wanted.model)
    to_do = [problem for problem in problems if problem.query_id not in done]
    summary = Summary(known=len(problems) - len(to_do), faults=[str(fault) for fault in faults])
    wanted.output.parent.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        generation = await stack.enter_async_context(open_generation(wanted))
        aggregation = Aggregation(AggregationSettings(), CollectorRegistry())
        stack.push_async_callback(aggregation.close)
        labeller = Labeller(wanted, generation, aggregation, await described(generation, wanted.model))
        file = stack.enter_context(wanted.output.open("a", encoding="utf-8"))
        progress = stack.enter_context(Progress())
        bar = progress.add_task(wanted.model, total=len(problems), completed=summary.known)
        turns = iter(to_do)

        async def work() -> None:
            for problem in turns:
                try:
                    rows = await labeller.rows(problem)
                except InvalidArgument as error:
                    summary.faults.append(f"problem {problem.query_id}: {error}")
                else:
                    file.write("".join(rows))
                    file.flush()
                    summary.problems += 1
                    summary.rows += len(rows)
                progress.advance(bar)

        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(wanted.at_a_time):
                    tasks.create_task(work())
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        summary.steps, summary.reachable, summary.cost = labeller.steps, labeller.reachable, labeller.cost
    return summary


async def described(generation: GenerationStage, name: str) -> Model:
    """The model; raises NotFound, and FailedPrecondition where it cannot continue a prefix."""
    models = (await generation.describe(DescribeModelsRequest())).models
    model = next((model for model in models if model.name == name), None)
    if model is None:
        raise NotFound(f"there is no model {name!r}; there are: {', '.join(model.name for model in models)}")
    if not model.capabilities.prefix:
        raise FailedPrecondition(f"{name} cannot continue a prefix, which roll-outs need")
    return model


@dataclass(frozen=True)
class Solution:
    """A chain that was sampled."""

    prefixes: list[str]
    """The text up to the end of each step."""
    finished: bool
    """The model ended it; else it was cut short."""
    answer: str | None
    reached: bool
    """Its answer is the right one."""

    @property
    def open_prefixes(self) -> list[str]:
        """Those from which there is something to sample."""
        return self.prefixes[:-1] if self.finished else self.prefixes


class Labeller:
    """Labels one problem after another, and counts."""

    def __init__(
        self, wanted: Wanted, generation: GenerationStage, aggregation: AggregationStage, model: Model
    ) -> None:
        self._wanted, self._generation, self._aggregation = wanted, generation, aggregation
        self._model = model
        self.cost = Cost()
        self.steps = 0
        self.reachable = 0

    async def rows(self, problem: Problem) -> list[str]:
        """The rows of a problem: one for each of its chains that has a whole step."""
        wanted = self._wanted
        samples: list[Sample] = []

        async def keep(sample: Sample) -> list[str]:
            samples.append(sample)
            return []

        sampling = await self._play(problem, [Branch(samples=wanted.chains)], 0, keep)
        samples.sort(key=lambda sample: int(sample.id.rpartition("/")[2]))
        tallies: dict[str, Tally] = {}
        first = wanted.chains
        rows = []
        for index, sample in enumerate(samples):
            solution = await self._solution(problem, sample)
            if not solution.prefixes:
                continue
            cost = Cost()
            cost.add(sampling, 1 / len(samples))
            if new := unknown(solution, tallies):
                cost.add(await self._roll_out(problem, solution, new, tallies, first))
                first += len(new) * wanted.rollouts
            judged = list(labels_of(solution, tallies, wanted.rollouts))
            self.steps += len(judged)
            self.reachable += sum(step.rating == 1 for step in judged)
            more = {} if problem.group is None else {"group": problem.group}
            rows.append(
                row_of(
                    problem.prompt,
                    problem.answer,
                    judged,
                    query_id=problem.query_id,
                    reached=solution.reached,
                    answer=solution.answer,
                    model=wanted.model,
                    sample=index,
                    cost={"tokens": round(cost.tokens), "flops": cost.flops},
                    **more,
                )
            )
        return rows

    async def _solution(self, problem: Problem, sample: Sample) -> Solution:
        finished = sample.finish_reason == FINISH_REASON_STOP
        prefixes = [sample.text[: step.end] for step in sample.steps]
        prefixes = [prefix for prefix in prefixes if prefix.strip()]
        if not finished and prefixes and not prefixes[-1].endswith("\n"):
            prefixes.pop()  # Half a step.
        answer, reached = await self._answer(problem, sample.text)
        return Solution(prefixes, finished, answer, reached)

    async def _answer(self, problem: Problem, text: str) -> tuple[str | None, bool]:
        """The answer that a text gives, canonical, and whether it is the right one."""
        request = AggregateRequest(
            format=AnswerFormat(type=KINDS[problem.type]),
            candidates=[
                Candidate(id="truth", text=problem.truth, weight=1),
                Candidate(id="text", text=text, weight=1),
            ],
        )
        clusters = (await self._aggregation.aggregate(request)).clusters
        found = next((cluster for cluster in clusters if "text" in cluster.members), None)
        return (None, False) if found is None else (found.answer, "truth" in found.members)

    async def _roll_out(
        self, problem: Problem, solution: Solution, new: Sequence[str], tallies: dict[str, Tally], first: int
    ) -> Cost:
        """Sample from the prefixes `new`, in one round, and add those that are known in full to `tallies`."""
        count = self._wanted.rollouts
        begun = [Tally() for _ in new]
        running = [
            {f"{self._model.name}/{first + branch * count + i}" for i in range(count)}
            for branch in range(len(new))
        ]

        async def count_in(sample: Sample) -> Iterable[str]:
            """Count a completion; the ids of those that need not run on."""
            branch = sample.branch
            running[branch].discard(sample.id)
            if sample.finish_reason == FINISH_REASON_ABORTED:
                return []
            _, reached = await self._answer(problem, new[branch] + sample.text)
            begun[branch].right += reached
            begun[branch].total += 1
            if solution.reached or begun[branch].right or begun[branch].total < count:
                return []
            return [name for later in running[branch + 1 :] for name in later]

        branches = [Branch(prefix=prefix, samples=count) for prefix in new]
        cost = await self._play(problem, branches, first, count_in)
        for prefix, tally in zip(new, begun, strict=True):
            if tally.total == count:
                tallies[prefix] = tally
        return cost

    async def _play(
        self,
        problem: Problem,
        branches: Sequence[Branch],
        first: int,
        ended: Callable[[Sample], Awaitable[Iterable[str]]],
    ) -> Cost:
        """One round; `ended` is told of each sample, and says which others to abort."""
        said: asyncio.Queue[GenerateRequest] = asyncio.Queue()
        said.put_nowait(GenerateRequest(start=self._start(problem, branches, first)))

        async def requests() -> AsyncIterator[GenerateRequest]:
            while True:
                yield await said.get()

        usage = RoundUsage()
        async with aclosing(self._generation.generate(requests())) as responses:
            async for response in responses:
                if response.HasField("usage"):
                    usage = response.usage
                elif response.HasField("sample") and (ids := list(await ended(response.sample))):
                    said.put_nowait(GenerateRequest(abort=AbortSamples(sample_ids=ids)))
        tokens = usage.prompt_tokens + usage.completion_tokens + usage.aborted_tokens
        cost = Cost(tokens, with_attention(self._model.shape, tokens, usage.context_tokens))
        self.cost.add(cost)
        return cost

    def _start(self, problem: Problem, branches: Sequence[Branch], first: int) -> StartRound:
        digest = hashlib.sha256(f"{self._wanted.seed}/{problem.query_id}".encode()).digest()
        return StartRound(
            query_id=problem.query_id,
            model=self._model.name,
            messages=[Message(role="user", content=problem.prompt)],
            branches=branches,
            first_sample=first,
            sampling=Sampling(
                temperature=self._wanted.temperature,
                max_tokens=self._wanted.max_tokens,
                # The sum of seed and number must be one, too.
                seed=int.from_bytes(digest[:4]) >> 1,
            ),
        )


def unknown(solution: Solution, tallies: dict[str, Tally]) -> list[str]:
    """The prefixes of a chain that completions are needed of."""
    new = []
    for prefix in solution.open_prefixes:
        if prefix not in tallies:
            new.append(prefix)
        elif not tallies[prefix].right and not solution.reached:
            break
    return new


def labels_of(solution: Solution, tallies: dict[str, Tally], count: int) -> Iterator[Judged]:
    """The labels of a chain's steps, from the completions of its prefixes, `count` of each."""
    hopeless = False
    for begin, prefix in pairwise(["", *solution.prefixes]):
        text = prefix[len(begin) :]
        if hopeless:
            yield Judged(text, -1, 0.0, 0)
        elif solution.finished and prefix == solution.prefixes[-1]:
            yield Judged(text, 1 if solution.reached else -1, float(solution.reached), 1)
        elif (tally := tallies.get(prefix)) is None:
            yield Judged(text)  # A completion of it was lost: there is nothing to say.
        else:
            right = tally.right + solution.reached
            yield Judged(text, 1 if right else -1, right / (count + 1), count + 1)
            hopeless = not right
