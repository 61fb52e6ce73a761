"""A backend that plays a script, and a caller that drives one round."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from isoflop.v1.common_pb2 import FINISH_REASON_ABORTED, FINISH_REASON_STOP, Message, Model, Sample, Shape
from isoflop.v1.generation_pb2 import (
    AbortSamples,
    GenerateRequest,
    GenerateResponse,
    RoundUsage,
    StartRound,
)
from prometheus_client import CollectorRegistry

from services.generation.backends import End, Job, Piece, Round
from services.generation.core import Generation
from services.generation.settings import GenerationSettings

NAME = "scripted"
QUESTION = [Message(role="user", content="1+1")]


class ScriptedBackend:
    """Runs `play` for each round, and keeps what it was given."""

    def __init__(self, play: Callable[[Round], Awaitable[None]]) -> None:
        self.model = Model(
            name=NAME, shape=Shape(active_parameters=1000, layers=2, heads=3, head_size=4, window=8)
        )
        self.rounds: list[Round] = []
        self.running = 0
        self.play = play

    async def run(self, round: Round) -> None:
        self.rounds.append(round)
        self.running += 1
        try:
            await self.play(round)
        finally:
            self.running -= 1

    async def close(self) -> None:
        pass


async def two_lines(round: Round) -> None:
    """Each sample has two lines of two tokens, after a prompt of three tokens of which one was cached."""
    for job in round.jobs:
        put_two_lines(round, job)
        await asyncio.sleep(0)


def put_two_lines(round: Round, job: Job) -> None:
    round.put(Piece(job.sample_id, "one\n", 2, -0.5))
    round.put(Piece(job.sample_id, "two", 2, -0.25, End(FINISH_REASON_STOP, 2, 1)))


async def until_aborted(round: Round) -> None:
    """Each sample has one line of two tokens, and then waits for its abort."""

    async def sample(job: Job) -> None:
        round.put(Piece(job.sample_id, "one\n", 2, -0.5))
        await round.until_aborted(job.sample_id)
        round.put(Piece(job.sample_id, tokens=1, logprob=-1.0, end=End(FINISH_REASON_ABORTED, 3)))

    async with asyncio.TaskGroup() as group:
        for job in round.jobs:
            group.create_task(sample(job))


class Call:
    """One round as a caller drives it."""

    def __init__(self, core: Generation, start: StartRound) -> None:
        self._requests: asyncio.Queue[GenerateRequest | None] = asyncio.Queue()
        self._requests.put_nowait(GenerateRequest(start=start))
        self.responses = core.generate(self._said())

    async def _said(self) -> AsyncIterator[GenerateRequest]:
        while (request := await self._requests.get()) is not None:
            yield request

    def abort(self, *sample_ids: str) -> None:
        """Seen enough of these samples, or of all."""
        self._requests.put_nowait(GenerateRequest(abort=AbortSamples(sample_ids=sample_ids)))

    async def next(self) -> GenerateResponse:
        return await anext(self.responses)

    async def rest(self) -> list[GenerateResponse]:
        return [response async for response in self.responses]

    async def close(self) -> None:
        """Go away."""
        await self.responses.aclose()


def make_core(*backends: Any, registry: CollectorRegistry | None = None, **settings: float) -> Generation:
    return Generation(GenerationSettings(**settings), backends, registry or CollectorRegistry())


def start(model: str = NAME, **fields: Any) -> StartRound:
    """A round of one sample for a short question, unless said otherwise."""
    return StartRound(model=model, **{"messages": QUESTION, **fields})


async def generate(core: Generation, begin: StartRound) -> tuple[list[Sample], RoundUsage]:
    """A whole round: its samples in order, and its usage."""
    responses = await Call(core, begin).rest()
    return samples(responses), responses[-1].usage


def samples(responses: Sequence[GenerateResponse]) -> list[Sample]:
    """The samples, in the order of their numbers."""
    ended = [response.sample for response in responses if response.HasField("sample")]
    return sorted(ended, key=lambda sample: int(sample.id.rpartition("/")[2]))
