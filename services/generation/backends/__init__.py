"""What samples from a model: one interface for every engine.

The core turns a round into jobs, one for each sample, and starts a backend on them. The backend feeds
pieces of text into the `Round` as they come; each job's last piece says how it ended. An aborted job
ends soon, and its last piece says so: what it took is counted like everything else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from isoflop.v1.common_pb2 import FINISH_REASON_ABORTED, FinishReason, Message, Model, Sampling


@dataclass(frozen=True, slots=True)
class Job:
    """One sample to be made."""

    sample_id: str
    """Unique within the query."""
    index: int
    """Number of the sample among the query's samples from this model, from 0."""
    query_id: str
    """The query that it is for."""
    messages: Sequence[Message]
    """The conversation; the last message is the user's."""
    prefix: str
    """The assistant's text so far, which the sample continues."""
    sampling: Sampling
    """How to sample; its seed is the query's, not the sample's."""

    @property
    def place(self) -> tuple[int, str]:
        """The same for jobs of one round that continue the same text of the same conversation."""
        return id(self.messages), self.prefix

    @property
    def seed(self) -> int | None:
        """The sample's own seed."""
        return self.sampling.seed + self.index if self.sampling.HasField("seed") else None


@dataclass(frozen=True, slots=True)
class Check:
    """Drafted tokens that the model has checked at once."""

    position: int
    """Of the token before them, counted from 1."""
    drafted: int
    """How many they were."""
    taken: int
    """How many of them are in the sample."""


@dataclass(frozen=True, slots=True)
class End:
    """How a sample ended, and what its prompt took."""

    reason: FinishReason.ValueType
    prompt_tokens: int
    """Prompt tokens computed."""
    cached_tokens: int = 0
    """Prompt tokens found in a cache."""
    unseen_tokens: int = 0
    """Tokens that the backend may have computed beyond those that came, at most."""
    checks: Sequence[Check] = ()
    """What was drafted by another model."""


NEVER_STARTED = End(FINISH_REASON_ABORTED, 0)
"""The end of a job that was aborted before it began."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The next piece of a sample. Steps are told apart exactly where none ends inside of a piece."""

    sample_id: str
    text: str = ""
    tokens: int = 0
    logprob: float | None = None
    """Sum of its tokens' log-probabilities, where the backend gives them."""
    end: End | None = None
    """Set on the sample's last piece."""


@dataclass(eq=False)
class Round:
    """The jobs of one round, the pieces that have come, and which jobs are to end early."""

    jobs: Sequence[Job]
    stream_text: bool = False
    """Somebody reads along: pieces are wanted as they come, not a step at a time."""
    _pieces: asyncio.Queue[Piece | Exception] = field(default_factory=asyncio.Queue)
    _running: int = field(init=False)
    _failure: Exception | None = None
    _aborted: dict[str, asyncio.Event] = field(init=False)

    def __post_init__(self) -> None:
        self._running = len(self.jobs)
        self._aborted = {job.sample_id: asyncio.Event() for job in self.jobs}

    def put(self, piece: Piece) -> None:
        """Called by the backend, in the event loop's thread."""
        self._pieces.put_nowait(piece)

    def fail(self, error: Exception) -> None:
        """Called by the backend: the round ends with this error."""
        self._pieces.put_nowait(error)

    def abort(self, sample_ids: Iterable[str] = ()) -> None:
        """End these samples early (all of them where none is named); unknown ids are ignored."""
        for sample_id in list(sample_ids) or self._aborted:
            if sample_id in self._aborted:
                self._aborted[sample_id].set()

    def aborted(self, sample_id: str) -> bool:
        """Whether the sample is to end early; may be asked from any thread."""
        return self._aborted[sample_id].is_set()

    async def until_aborted(self, sample_id: str) -> None:
        """Return when the sample is to end early."""
        await self._aborted[sample_id].wait()

    async def until_all_aborted(self) -> None:
        """Return when every sample is to end early."""
        for event in self._aborted.values():
            await event.wait()

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Pieces until each job has ended; may be taken up again. Raises what the backend failed with."""
        while self._running and not self._failure:
            piece = await self._pieces.get()
            if isinstance(piece, Exception):
                self._failure = piece
                break
            self._running -= piece.end is not None
            yield piece
        if self._failure:
            raise self._failure


class Backend(Protocol):
    """An engine that serves one model."""

    model: Model
    """Name, shape, price and capabilities."""

    async def run(self, round: Round) -> None:
        """Sample all jobs of the round. Ends when each has ended; if cancelled, aborts them first.

        Raises InvalidArgument where a job is not possible, Unavailable where the engine is down.
        """
        ...

    async def close(self) -> None:
        """Let go of the engine."""
        ...
