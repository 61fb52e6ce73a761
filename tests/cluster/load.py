"""Load on a suite: clients that ask without a pause, and what became of each query."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Final

from google.rpc.code_pb2 import Code
from isoflop import AsyncClient, Options, Search
from isoflop.errors import DeadlineExceeded, IsoflopError
from isoflop.v1.router_pb2 import SolveResponse, Status

from tests.cluster.processes import ROOT

CLIENTS: Final = 32
DEADLINE_SECONDS: Final = 20.0
"""Of each query."""
GRACE_SECONDS: Final = 10.0
"""So long after its deadline a query without an end is lost."""

EASY, MEDIUM, HARD = range(1, 4), range(4, 8), range(8, 13)
"""Groups of the problems: operations that they take."""


@dataclass(frozen=True)
class Problem:
    """One, and its answer."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Kind:
    """One of the sorts of queries that a load is mixed of."""

    name: str
    groups: range
    options: Options
    streamed: bool = False


MIX: Final = (
    Kind("easy", EASY, {"effort": "low"}),
    Kind("medium", MEDIUM, {"effort": "low"}),
    Kind("hard", HARD, {"effort": "low"}),
    Kind("streamed", EASY, {"effort": "low"}, streamed=True),
    Kind("vote", EASY, {"models": ["abacus-s"], "strategies": ["majority"], "samples": 4}),
    Kind("scored", EASY, {"models": ["abacus-m"], "strategies": ["best_of_n"], "samples": 2}),
    Kind("large", EASY, {"models": ["abacus-l"], "strategies": ["majority"], "samples": 2}),
    Kind(
        "searched",
        EASY,
        {"models": ["abacus-s"], "strategies": ["beam"], "search": Search(width=2, expansion=2, depth=8)},
    ),
)
"""What is asked in turn: planned queries, and plans that need each part of a suite."""


@dataclass(frozen=True)
class Asked:
    """One query, and what became of it; times are of `time.monotonic`."""

    kind: str
    request_id: str
    right: str
    """The right answer."""
    began: float
    ended: float
    response: SolveResponse | None = None
    error: BaseException | None = None
    """Neither: it never ended."""

    @property
    def outcome(self) -> str:
        """`answered`, `abandoned`, `degraded`; the name of an error's status; or `lost`."""
        if self.response is not None:
            return Status.Name(self.response.status).removeprefix("STATUS_").lower()
        # An IsoflopError itself stands for a status that is not in the table.
        if isinstance(self.error, IsoflopError) and type(self.error) is not IsoflopError:
            return str(Code.Name(self.error.code))
        return "lost"

    @property
    def late(self) -> bool:
        """Its deadline came before it was done."""
        return self.response is not None and "deadline" in self.response.reason

    @property
    def well(self) -> bool:
        """It has an answer, or was given up as it would be without a fault."""
        return self.outcome == "answered" or (self.outcome == "abandoned" and not self.late)

    @property
    def silent(self) -> bool:
        """Its client gave up at the deadline, and the router had said nothing."""
        return isinstance(self.error, DeadlineExceeded) and "did not answer in time" in str(self.error)

    def __str__(self) -> str:
        said = self.response.reason if self.response is not None else repr(self.error)
        return f"{self.kind} {self.request_id}: {self.outcome} after {self.ended - self.began:.2f} s: {said}"


@dataclass(frozen=True)
class Summary:
    """What became of queries."""

    queries: int
    outcomes: dict[str, int]
    """By `Asked.outcome`."""
    silent: int
    """Of DEADLINE_EXCEEDED: those that only the client's own clock has ended."""
    right: int
    """Of those with an answer: the right one."""

    @property
    def answered(self) -> int:
        """Queries with an answer, degraded or not."""
        return sum(self.outcomes.get(name, 0) for name in ("answered", "abandoned", "degraded"))

    @property
    def lost(self) -> int:
        """Queries with neither an answer nor an error of the table."""
        return self.outcomes.get("lost", 0)


def summary(asked: Sequence[Asked]) -> Summary:
    """What became of them."""
    answers = [one for one in asked if one.response is not None]
    return Summary(
        queries=len(asked),
        outcomes=dict(Counter(one.outcome for one in asked)),
        silent=sum(one.silent for one in asked),
        right=sum(one.response.answer == one.right for one in answers if one.response is not None),
    )


def silence(asked: Sequence[Asked], since: float) -> float:
    """The longest time in seconds in which no query got an answer, as long as anything new was asked."""
    until = max((one.began for one in asked), default=since)
    ends = sorted(one.ended for one in asked if one.response is not None and since <= one.ended <= until)
    return max(after - before for before, after in pairwise([since, *ends, until]))


def recovery(asked: Iterable[Asked], returned: float) -> float:
    """Seconds from a part's return to the first query from which on all are well; infinite: there is none.

    Queries count by when they began, so that it is no matter how long a busy machine takes to answer them.
    """
    since = sorted((one for one in asked if one.began >= returned), key=lambda one: one.began)
    steady = float("inf")
    for one in reversed(since):
        if not one.well:
            break
        steady = one.began - returned
    return steady


class Load:
    """Clients of a suite, each with one query at a time, as long as its context lasts."""

    def __init__(
        self,
        address: str,
        *,
        clients: int = CLIENTS,
        mix: Sequence[Kind] = MIX,
        deadline: float = DEADLINE_SECONDS,
        seed: int = 0,
    ) -> None:
        """`address`: as of `AsyncClient`; `deadline`: seconds of each query."""
        self.address = address
        self.asked: list[Asked] = []
        """Those that have ended, by their end."""
        self._clients = clients
        self._mix = mix
        self._deadline = deadline
        self._random = Random(seed)
        self._run = uuid.uuid4().hex[:8]
        self._number = 0
        self._over = asyncio.Event()
        self._more = asyncio.Event()
        """Another query has ended."""
        self._problems = Problems()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Load, None]:
        """Ask; at the context's end nothing new is asked, and what runs is waited for."""
        async with AsyncClient(self.address) as client:
            tasks = [asyncio.create_task(self._client(client)) for _ in range(self._clients)]
            try:
                yield self
            finally:
                self._over.set()
                await asyncio.gather(*tasks)

    async def until(self, queries: int) -> None:
        """Return when so many more have ended."""
        wanted = len(self.asked) + queries
        while len(self.asked) < wanted:
            self._more.clear()
            await self._more.wait()

    def summary(self) -> Summary:
        """What became of all that have ended."""
        return summary(self.asked)

    async def _client(self, client: AsyncClient) -> None:
        while not self._over.is_set():
            kind = self._mix[self._number % len(self._mix)]
            self._number += 1
            number = self._number
            options: Options = {"seed": number, "request_id": f"{self._run}-{number}", **kind.options}
            problem = self._problems.draw(self._random, kind.groups)
            self.asked.append(await ask(client, kind, problem, self._deadline, options))
            self._more.set()


async def ask(client: AsyncClient, kind: Kind, problem: Problem, deadline: float, options: Options) -> Asked:
    """Ask one query, and see what becomes of it."""
    began = time.monotonic()
    response: SolveResponse | None = None
    error: BaseException | None = None
    try:
        async with asyncio.timeout(deadline + GRACE_SECONDS):
            response = await _answer(client, kind, problem.prompt, deadline, options)
    except TimeoutError:
        pass
    except Exception as raised:
        error = raised
    request_id = options.get("request_id", "")
    return Asked(kind.name, request_id, problem.answer, began, time.monotonic(), response, error)


async def _answer(
    client: AsyncClient, kind: Kind, prompt: str, deadline: float, options: Options
) -> SolveResponse:
    if not kind.streamed:
        return await client.solve(prompt, timeout=deadline, **options)
    async with aclosing(client.stream(prompt, timeout=deadline, **options)) as events:
        async for event in events:
            if event.HasField("final"):
                return event.final
    raise AssertionError("a stream ended without its final event")


class Problems:
    """What can be asked, by group."""

    def __init__(self) -> None:
        """Those that calibration has, too."""
        self._groups: dict[int, list[Problem]] = {}
        path = ROOT / "training" / "problems" / "calibration.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines():
            one = json.loads(line)
            self._groups.setdefault(one["group"], []).append(Problem(one["prompt"], one["answer"]))

    def draw(self, random: Random, groups: range) -> Problem:
        """Any of these groups."""
        return random.choice(
            self._groups[random.choice([group for group in groups if group in self._groups])]
        )
