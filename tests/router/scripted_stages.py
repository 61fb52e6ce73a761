"""The outer edge, scripted: a generation stage that plays a script and counts each token, and estimates."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import accumulate, count

from isoflop.errors import NotFound, Unavailable
from isoflop.v1.common_pb2 import (
    FINISH_REASON_ABORTED,
    FINISH_REASON_STEP,
    FINISH_REASON_STOP,
    Model,
    Sample,
    Step,
    TextDelta,
)
from isoflop.v1.difficulty_pb2 import Difficulty, EstimateRequest, EstimateResponse
from isoflop.v1.generation_pb2 import (
    DescribeModelsRequest,
    DescribeModelsResponse,
    GenerateRequest,
    GenerateResponse,
    GetRoundUsageRequest,
    GetRoundUsageResponse,
    RoundUsage,
    StartRound,
)

from services.common.flops import attended, with_attention

PROMPT_TOKENS, CACHED_TOKENS = 7, 3
"""Of each sample."""
ABORTED_TOKENS = 2
"""Of each sample that is aborted."""
ESTIMATE_FLOPS = 120.0


@dataclass(frozen=True)
class Said:
    """What a sample comes to."""

    text: str
    tokens: int = 40
    logprobs: tuple[float, ...] = (-4.0,)
    """Of its steps: as many as there are lines of text, or none where the backend gives none."""
    hold: bool = False
    """It never ends by itself."""
    late: bool = False
    """It comes when the test opens `gate`."""
    broken: bool = False
    """It breaks off, by its backend's fault."""


def number(answer: object, **fields: object) -> Said:
    """A sample with this answer."""
    return Said(f"The answer is {answer}.", **fields)  # type: ignore[arg-type]


HOLD = Said("", hold=True)
BLANK = Said("I do not know.")

Script = Callable[[str, int], Said | Exception]
"""What sample i of a model comes to; an exception ends the round there."""


def same(said: Said | Exception) -> Script:
    """Every sample the same."""
    return lambda model, index: said


def listed(*said: Said | Exception) -> Script:
    """The samples in turn, of whatever model; the last one for all that follow."""
    return lambda model, index: said[min(index, len(said) - 1)]


def failing(script: Script, *calls: int, error: Exception | None = None) -> Script:
    """The samples that are played as these, counted from 0, fail instead."""
    played = count()

    def said(model: str, index: int) -> Said | Exception:
        failed = next(played) in calls
        return (error or Unavailable("the engine is down")) if failed else script(model, index)

    return said


def by_model(**scripts: Script) -> Script:
    """A script for each model."""
    return lambda model, index: scripts[model](model, index)


@dataclass
class ScriptedGeneration:
    """Plays `script`, one sample after the other."""

    models: list[Model]
    script: Script
    batch: int = 1
    """So many samples are sent without a pause between them."""
    tells_usage: bool = True
    tells_failed: bool = False
    """Of a round that fails it tells the usage, too."""
    unseen: int = 0
    """Tokens that it says may be unseen."""
    deaf: bool = False
    """It does not react to an abort."""
    starts: list[StartRound] = field(default_factory=list)
    """Rounds that were begun."""
    aborts: int = 0
    """Rounds that were aborted while something ran."""
    running: int = 0
    """Rounds that run."""
    counted: dict[str, RoundUsage] = field(default_factory=dict)
    """What was computed, by model: what bills must come to."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    ending: asyncio.Event | None = None
    """Where set: usage is told only after this."""

    broken: set[str] = field(default_factory=set)
    """Names of rounds that ended without their usage."""
    usages: dict[str, RoundUsage] = field(default_factory=dict)
    """What is told of rounds that broke, by name."""

    def untold(self, round_id: str) -> bool:
        return round_id in self.broken

    async def usage(self, request: GetRoundUsageRequest) -> GetRoundUsageResponse:
        if request.round_id not in self.usages:
            raise NotFound("there was no such round")
        return GetRoundUsageResponse(usage=self.usages[request.round_id])

    async def describe(self, request: DescribeModelsRequest) -> DescribeModelsResponse:
        return DescribeModelsResponse(models=self.models)

    async def generate(
        self, requests: AsyncIterator[GenerateRequest]
    ) -> AsyncGenerator[GenerateResponse, None]:
        start = (await anext(requests)).start
        self.starts.append(start)
        self.running += 1
        aborted = asyncio.Event()
        listening = asyncio.create_task(_listen(requests, aborted))
        usage = RoundUsage(unseen_tokens=self.unseen)
        failure: Exception | None = None
        try:
            async for response in self._samples(start, usage, aborted):
                yield response
            if self.ending:
                await self.ending.wait()
        except Exception as error:
            failure = error
        finally:
            self.running -= 1
            self._count(start.model, usage)
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening
        if self.tells_failed if failure else self.tells_usage:
            yield GenerateResponse(usage=usage)
        elif failure:
            self.broken.add(start.round_id)
        if failure:
            raise failure

    async def _samples(
        self, start: StartRound, usage: RoundUsage, aborted: asyncio.Event
    ) -> AsyncGenerator[GenerateResponse, None]:
        ends = list(accumulate(branch.samples for branch in start.branches)) or [1]
        total = ends[-1]
        usage.samples = total
        for number in range(total):
            if number % self.batch == 0:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            index = start.indices[number] if start.indices else start.first_sample + number
            name = f"{start.model}/{index}"
            said = self.script(start.model, index)
            if isinstance(said, Exception):
                raise said
            if said.late and not aborted.is_set():
                await _first(self.gate, aborted)
            if said.hold and not aborted.is_set():
                await aborted.wait()
            if aborted.is_set() or said.broken:
                if self.deaf:
                    await asyncio.Event().wait()
                self.aborts += aborted.is_set() and not usage.aborted_tokens
                _add(usage, 0, ABORTED_TOKENS)
                yield GenerateResponse(
                    sample=Sample(id=name, tokens=ABORTED_TOKENS, finish_reason=FINISH_REASON_ABORTED)
                )
                continue
            if start.stream_text:
                for word in said.text.split(" "):
                    yield GenerateResponse(delta=TextDelta(sample_id=name, text=word))
            most = start.sampling.max_tokens or said.tokens
            said = replace(said, tokens=min(said.tokens, most))
            _add(usage, said.tokens, 0)
            sample = _sample(name, said)
            sample.branch = bisect_right(ends, number)
            if start.sampling.one_step and said.text.endswith("\n"):
                sample.finish_reason = FINISH_REASON_STEP
            yield GenerateResponse(sample=sample)

    def _count(self, model: str, usage: RoundUsage) -> None:
        total = self.counted.setdefault(model, RoundUsage())
        for name in RoundUsage.DESCRIPTOR.fields_by_name:
            setattr(total, name, getattr(total, name) + getattr(usage, name))

    def flops(self) -> float:
        """Of all that was computed."""
        shapes = {model.name: model.shape for model in self.models}
        return sum(
            with_attention(
                shapes[name],
                usage.prompt_tokens + usage.completion_tokens + usage.aborted_tokens,
                usage.context_tokens,
            )
            for name, usage in self.counted.items()
        )


def _add(usage: RoundUsage, completion: int, aborted: int) -> None:
    usage.prompt_tokens += PROMPT_TOKENS
    usage.cached_tokens += CACHED_TOKENS
    usage.completion_tokens += completion
    usage.aborted_tokens += aborted
    prompt = PROMPT_TOKENS + CACHED_TOKENS
    usage.aborted_context_tokens += attended(prompt + 1, prompt + aborted)
    usage.context_tokens += attended(CACHED_TOKENS + 1, prompt + completion + aborted)


def _sample(name: str, said: Said) -> Sample:
    steps = []
    if said.logprobs:
        size = len(said.logprobs)
        each = said.tokens // size
        steps = [
            Step(end=len(said.text) * (i + 1) // size, tokens=each, logprob=logprob)
            for i, logprob in enumerate(said.logprobs)
        ]
    return Sample(
        id=name,
        text=said.text,
        tokens=said.tokens,
        finish_reason=FINISH_REASON_STOP,
        logprob=sum(said.logprobs) if said.logprobs else None,
        steps=steps,
    )


async def _listen(requests: AsyncIterator[GenerateRequest], aborted: asyncio.Event) -> None:
    async for request in requests:
        if request.HasField("abort"):
            aborted.set()


async def _first(*events: asyncio.Event) -> None:
    """Wait for one of them."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


@dataclass
class ScriptedDifficulty:
    """Estimates every query the same, or by its text."""

    mean: float
    sd: float = 0.3
    by_prompt: dict[str, float] = field(default_factory=dict)
    flops: float = ESTIMATE_FLOPS
    calls: int = 0

    async def estimate(self, request: EstimateRequest) -> EstimateResponse:
        self.calls += 1
        means: Iterable[float] = (
            self.by_prompt.get(query.messages[-1].content, self.mean) for query in request.queries
        )
        return EstimateResponse(
            difficulties=[Difficulty(mean=mean, sd=self.sd) for mean in means],
            estimator="scripted-estimator",
            flops=self.flops * len(request.queries),
        )
