"""The work of generation: rounds of samples from the model that was asked for, each token counted."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing, suppress
from itertools import count

import structlog
from isoflop.errors import InvalidArgument, NotFound, Unavailable
from isoflop.v1.common_pb2 import FINISH_REASON_ABORTED, FINISH_REASON_STEP, Message, Sampling, TextDelta
from isoflop.v1.generation_pb2 import (
    Branch,
    DescribeModelsRequest,
    DescribeModelsResponse,
    GenerateRequest,
    GenerateResponse,
    GetRoundUsageRequest,
    GetRoundUsageResponse,
    RoundUsage,
    StartRound,
)
from prometheus_client import CollectorRegistry, Counter, Gauge

from services.common.flops import attended, of_round
from services.generation.backends import Backend, Job, Piece, Round
from services.generation.settings import GenerationSettings
from services.generation.steps import Growing

log = structlog.get_logger()

REMEMBERED = 4096
"""Rounds whose usage can be asked for."""

ENDING_SECONDS = 0.1
"""When to ask again a service that shuts down: another replica may be there at once."""


class Metrics:
    """What the service counts; the sum of all bills is what stands here."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.tokens = Counter(
            "isoflop_generation_tokens_total",
            "Tokens by model and kind (prompt, cached, completion, aborted, rejected; draft, by its draft); "
            "moves when a round ends.",
            ["model", "kind"],
            registry=registry,
        )
        self.flops = Counter(
            "isoflop_generation_flops_total",
            "Floating-point operations by model, attention included; moves when a round ends.",
            ["model"],
            registry=registry,
        )
        self.samples = Counter(
            "isoflop_generation_samples_total",
            "Samples by model and outcome (stop, length, aborted, step); moves when a sample ends.",
            ["model", "outcome"],
            registry=registry,
        )
        self.running = Gauge(
            "isoflop_generation_samples_running",
            "Samples running or waiting for a slot, by model.",
            ["model"],
            registry=registry,
        )


class Generation:
    """Samples from language models."""

    def __init__(
        self, settings: GenerationSettings, backends: Sequence[Backend], registry: CollectorRegistry
    ) -> None:
        self._settings = settings
        self._backends = {backend.model.name: backend for backend in backends}
        self._metrics = Metrics(registry)
        self._rounds: set[Round] = set()
        """Those that run."""
        self._cut: set[Round] = set()
        """Those that were ended because the service is."""
        self._usages: OrderedDict[str, asyncio.Future[RoundUsage]] = OrderedDict()
        """What the last rounds took, by their names; of those that run it is told when they have ended."""

    async def describe(self, request: DescribeModelsRequest) -> DescribeModelsResponse:
        """The models, in the catalogue's order."""
        return DescribeModelsResponse(models=[backend.model for backend in self._backends.values()])

    async def end(self) -> None:
        """End the rounds that run: each tells its usage, and that it is to be asked for again."""
        self._cut |= self._rounds
        for round in self._rounds:
            round.abort()

    async def close(self) -> None:
        """Let go of the engines."""
        for backend in self._backends.values():
            await backend.close()

    async def generate(
        self, requests: AsyncIterator[GenerateRequest]
    ) -> AsyncGenerator[GenerateResponse, None]:
        """One round: samples as they finish, then its usage.

        If the caller goes away, the round is aborted, and still counted. Raises NotFound,
        InvalidArgument, and what the backend raises.
        """
        start = await self._start(requests)
        backend = self._backends[start.model]
        branches, jobs = _jobs(start)
        metrics = self._metrics
        round = Round(jobs, start.stream_text)
        self._rounds.add(round)
        growing = {job.sample_id: Growing(job, branch) for job, branch in zip(jobs, branches, strict=True)}
        usage = RoundUsage(samples=len(jobs))
        metrics.running.labels(start.model).inc(len(jobs))
        running = asyncio.create_task(_run(backend, round), name=f"round of {start.model}")
        aborts = asyncio.create_task(_obey(requests, round), name="aborts")
        told = self._remember(start.round_id)
        failure: Exception | None = None
        whole = False
        """A sample has run to its end."""
        try:
            async with aclosing(round.pieces()) as pieces:
                async for piece in pieces:
                    sample = growing[piece.sample_id]
                    sample.add(piece)
                    if piece.end is not None:
                        # Before anything is said: the caller may go away at that.
                        self._count(backend, usage, growing.pop(piece.sample_id), piece)
                        whole = whole or piece.end.reason != FINISH_REASON_ABORTED
                    if start.stream_text and piece.text:
                        yield GenerateResponse(delta=TextDelta(sample_id=piece.sample_id, text=piece.text))
                    if piece.end is not None:
                        yield GenerateResponse(sample=sample.sample(piece))
            if not whole:
                # Each sample has ended early: the backend may say why.
                failure = await running
            if round in self._cut:
                failure = Unavailable("generation is shutting down: ask again", ENDING_SECONDS)
        except Exception as error:
            failure = error
        finally:
            self._rounds.discard(round)
            aborts.cancel()
            if growing:
                await self._give_up(backend, round, running, growing, usage)
            self._settle(backend, usage)
            told.set_result(usage)
            await asyncio.gather(running, aborts, return_exceptions=True)
        # A round that failed says what it cost, too.
        yield GenerateResponse(usage=usage)
        if failure:
            raise failure

    def untold(self, round_id: str) -> bool:
        """A round tells its usage itself, however it ends."""
        return False

    async def usage(self, request: GetRoundUsageRequest) -> GetRoundUsageResponse:
        """What a round took, once it has ended; raises NotFound where it is not known, or not any more."""
        told = self._usages.get(request.round_id)
        if told is None:
            raise NotFound(f"there is no round {request.round_id[:64]!r}, or it is too long ago")
        return GetRoundUsageResponse(usage=await asyncio.shield(told))

    def _remember(self, round_id: str) -> asyncio.Future[RoundUsage]:
        """Where to tell what a round took."""
        told: asyncio.Future[RoundUsage] = asyncio.get_running_loop().create_future()
        if round_id:
            self._usages[round_id] = told
            if len(self._usages) > REMEMBERED:
                self._usages.popitem(last=False)
        return told

    async def _start(self, requests: AsyncIterator[GenerateRequest]) -> StartRound:
        first = await anext(requests, None)
        if first is None or not first.HasField("start"):
            raise InvalidArgument("start", "a round begins with it")
        start = first.start
        if start.model not in self._backends:
            raise NotFound(f"there is no model {start.model!r}; there are: {', '.join(self._backends)}")
        wanted = sum(branch.samples for branch in start.branches) if start.branches else 1
        if wanted > self._settings.max_samples or any(branch.samples < 1 for branch in start.branches):
            raise InvalidArgument("branches", f"1 to {self._settings.max_samples} samples in all")
        if start.first_sample < 0:
            raise InvalidArgument("first_sample", "must not be negative")
        indices = set(start.indices) or set(range(wanted))
        if len(indices) != wanted or len(start.indices) not in (0, wanted) or min(indices) < 0:
            raise InvalidArgument("indices", "one for each sample, all different, none negative")
        if not start.messages or not any(message.content for message in start.messages):
            raise InvalidArgument("messages", "must not be empty")
        most, size = self._settings.max_prompt_bytes, _bytes(start.messages)
        if size > most:
            raise InvalidArgument("messages", f"at most {most} bytes")
        if any(len(b.prefix.encode()) > most or size + _bytes(b.turns) > most for b in start.branches):
            raise InvalidArgument("branches", f"a prefix has at most {most} bytes, and so has a conversation")
        if any(branch.max_tokens < 0 for branch in start.branches):
            raise InvalidArgument("branches", "max_tokens must not be negative")
        sampling = start.sampling
        if not (math.isfinite(sampling.temperature) and 0 <= sampling.temperature <= 10):
            raise InvalidArgument("sampling.temperature", "must be from 0 to 10")
        if not (math.isfinite(sampling.top_p) and 0 <= sampling.top_p <= 1):
            raise InvalidArgument("sampling.top_p", "must be from 0 to 1")
        if sampling.max_tokens < 0:
            raise InvalidArgument("sampling.max_tokens", "must not be negative")
        if not all(sampling.stop):
            raise InvalidArgument("sampling.stop", "must not be empty texts")
        if sampling.one_step and sampling.stop:
            raise InvalidArgument("sampling.stop", "one step ends with its line, and with nothing else")
        if sampling.one_step and not self._backends[start.model].model.capabilities.steps:
            raise InvalidArgument("sampling.one_step", f"{start.model} cannot end a sample after a step")
        return start

    def _count(self, backend: Backend, usage: RoundUsage, sample: Growing, last: Piece) -> None:
        """Add an ended sample to the round's usage."""
        end = last.end
        assert end is not None
        usage.prompt_tokens += end.prompt_tokens
        usage.cached_tokens += end.cached_tokens
        usage.unseen_tokens += end.unseen_tokens
        model, prompt = backend.model, end.cached_tokens + end.prompt_tokens
        length = prompt + sample.tokens
        if end.reason == FINISH_REASON_ABORTED:
            usage.aborted_tokens += sample.tokens
            usage.aborted_context_tokens += attended(prompt + 1, length, model.shape.window)
        else:
            usage.completion_tokens += sample.tokens
        usage.context_tokens += attended(end.cached_tokens + 1, length, model.shape.window)
        if model.HasField("draft"):
            # It reads all that the model reads.
            window = model.draft.shape.window
            usage.draft_tokens += end.prompt_tokens + sample.tokens
            usage.draft_context_tokens += attended(end.cached_tokens + 1, length, window)
            for check in end.checks:
                rejected = check.position + check.taken + 1, check.position + check.drafted
                usage.rejected_tokens += check.drafted - check.taken
                usage.context_tokens += attended(*rejected, model.shape.window)
                usage.draft_tokens += check.drafted - check.taken + check.drafted
                usage.draft_context_tokens += attended(*rejected, window)
                # Each follows from the one before it.
                usage.draft_context_tokens += attended(check.position, rejected[1] - 1, window)
        name = model.name
        self._metrics.samples.labels(name, OUTCOMES.get(end.reason, "stop")).inc()
        self._metrics.running.labels(name).dec()

    async def _give_up(
        self,
        backend: Backend,
        round: Round,
        running: asyncio.Task[Exception | None],
        growing: dict[str, Growing],
        usage: RoundUsage,
    ) -> None:
        """Abort what still runs, and count what it took: the caller has gone, or the backend has failed."""
        round.abort()
        with suppress(Exception, asyncio.TimeoutError):
            async with asyncio.timeout(self._settings.abort_seconds):
                async for piece in round.pieces():
                    growing[piece.sample_id].add(piece)
                    if piece.end is not None:
                        self._count(backend, usage, growing.pop(piece.sample_id), piece)
        running.cancel()
        for sample in growing.values():
            # The backend failed: bill what came.
            usage.aborted_tokens += sample.tokens
            self._metrics.running.labels(backend.model.name).dec()

    def _settle(self, backend: Backend, usage: RoundUsage) -> None:
        name, metrics = backend.model.name, self._metrics
        metrics.tokens.labels(name, "prompt").inc(usage.prompt_tokens)
        metrics.tokens.labels(name, "cached").inc(usage.cached_tokens)
        metrics.tokens.labels(name, "completion").inc(usage.completion_tokens)
        metrics.tokens.labels(name, "aborted").inc(usage.aborted_tokens)
        metrics.tokens.labels(name, "rejected").inc(usage.rejected_tokens)
        metrics.tokens.labels(name, "draft").inc(usage.draft_tokens)
        metrics.flops.labels(name).inc(of_round(backend.model, usage)[0])


OUTCOMES = {1: "stop", 2: "length", FINISH_REASON_ABORTED: "aborted", FINISH_REASON_STEP: "step"}


def _bytes(messages: Iterable[Message]) -> int:
    return sum(len(message.content.encode()) for message in messages)


def _jobs(start: StartRound) -> tuple[list[int], list[Job]]:
    """The branch of each sample, and its job."""
    branches = list(start.branches) or [Branch(samples=1)]
    messages = [[*start.messages, *branch.turns] for branch in branches]
    samplings = [_sampling(start.sampling, branch.max_tokens) for branch in branches]
    numbers = [number for number, branch in enumerate(branches) for _ in range(branch.samples)]
    indices = start.indices or count(start.first_sample)
    jobs = [
        Job(
            sample_id=f"{start.model}/{index}",
            index=index,
            query_id=start.query_id,
            messages=messages[branch],
            prefix=branches[branch].prefix,
            sampling=samplings[branch],
        )
        for index, branch in zip(indices, numbers, strict=False)
    ]
    return numbers, jobs


def _sampling(sampling: Sampling, most: int) -> Sampling:
    """The round's, with fewer tokens where a branch has fewer."""
    if not most or 0 < sampling.max_tokens <= most:
        return sampling
    own = Sampling()
    own.CopyFrom(sampling)
    own.max_tokens = most
    return own


async def _run(backend: Backend, round: Round) -> Exception | None:
    """Run the backend; its failure becomes the round's."""
    try:
        await backend.run(round)
    except asyncio.CancelledError:
        pass
    except Exception as error:
        round.fail(error)
        return error
    return None


async def _obey(requests: AsyncIterator[GenerateRequest], round: Round) -> None:
    """Abort what the caller has seen enough of."""
    async for request in requests:
        if request.HasField("abort"):
            round.abort(request.abort.sample_ids)
