"""One round's access to the services, metered: what a strategy works with."""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

from isoflop.errors import InvalidArgument, Unavailable
from isoflop.v1.common_pb2 import FINISH_REASON_ABORTED, Message, Sample, Sampling, Step, TextDelta, Usage
from isoflop.v1.generation_pb2 import AbortSamples, Branch, GenerateRequest, RoundUsage, StartRound
from isoflop.v1.verification_pb2 import Chain, ChainScore, ChainScoring, ScoreRequest, Verifier

from router import cost
from router.cost import TEMPLATE_TOKENS, Allowance, Cost, Meter
from router.deadline import LATE_SECONDS, until
from router.decision import Action
from router.ledger import Short
from router.portions import MOST_BYTES, portions
from router.prompt import prompt_bound
from router.query import Query
from router.stages import Stages
from router.strategies import STRATEGIES
from router.strategies.strategy import Search
from services.common.flops import attended
from services.common.usage import less

T = TypeVar("T")


@dataclass
class Told:
    """What a round with generation has told of its usage."""

    usage: RoundUsage = field(default_factory=RoundUsage)
    """Of the samples that have come; the round's own, once it is told."""
    billed: RoundUsage = field(default_factory=RoundUsage)
    """What of it has been billed."""
    whole: bool = False
    """It is told: the round is over."""
    paced: bool = True
    """How long its samples take says how loaded the model is: not where they wait for each other."""


class RoundBench:
    """Buys one action for one query, once."""

    def __init__(
        self,
        query: Query,
        action: Action,
        first_sample: int,
        stages: Stages,
        meter: Meter,
        allowance: Allowance,
        *,
        streamed: bool,
        abort_seconds: float,
        hold: Callable[[Cost], Awaitable[None]] | None = None,
        again: Sequence[int] = (),
        retry: Callable[[Unavailable], bool] = lambda error: False,
    ) -> None:
        """What it costs at most is set aside of the allowance, until `settle` takes what it did cost.

        `hold`: is told what it may cost at most in all, before more than at first is bought; raises Short
        where that is not there. `again`: numbers of samples that did not come when they were bought first:
        they come before those from `first_sample` on. `retry`: whether a part of a chain that failed is to be
        asked for again.
        """
        self._query = query
        self._action = action
        self.next_sample = first_sample
        """Number of the next one, among the model's."""
        self._again = list(again)
        self._retry = retry
        self._stages = stages
        self.meter = meter
        self._allowance = allowance
        self._hold = hold
        self._deadline = query.deadline
        self._streamed = streamed
        self._abort_seconds = abort_seconds
        self.scoring: ChainScoring.ValueType = action.scoring
        """From the scores of steps to the score of a chain."""
        self.model = action.model
        """The model that samples."""
        self.search = action.search or Search(action.samples)
        """How wide and how deep to go."""
        self._messages: Sequence[Message] = query.messages
        self._whole = action.max_tokens
        """Most tokens of a chain; of one that thinks, before its answer."""
        if STRATEGIES[action.strategy].thinks:
            self._messages = asked_to_think(query.messages, action.model.thinking.system)
            self._whole = max(1, self._whole - action.model.thinking.answer_tokens)
        self._prompt = prompt_bound(query, action.model, action.strategy, action.search)
        self.worst = cost.samples(
            action.model, action.lanes, self._prompt, action.max_tokens, action.verifier
        )
        """What is set aside: a search adds to it as it goes on."""
        allowance.reserve(self.worst)
        self.spent = Cost()
        """What has been billed; generation is, when its round has ended."""
        self.waited = 0.0
        """Seconds spent waiting for models and verifiers."""
        self.missing = ""
        """Why samples have no scores, where verification has become unavailable."""
        self.failure: Unavailable | None = None
        """What the model's backend has failed with last."""
        self.owed: list[tuple[str, Told]] = []
        """Names of rounds that could not tell their usage, and what is known of it."""
        self.late: list[asyncio.Task[None]] = []
        """What nobody waits for any more, and bills what comes of it within `abort_seconds`."""
        self._scored = False
        """Scores have come."""
        self._seconds = self._tokens = 0.0
        """Of samples that ended by themselves, each for itself."""

    async def sample(self, stream_text: bool = False) -> AsyncGenerator[list[Sample] | TextDelta, None]:
        """The round's samples as they finish, those together that are there together.

        Ends at the query's deadline. However it ends, samples that still run are aborted, and their bill
        is waited for.
        """
        count = self._action.samples
        start = self._start([Branch(samples=count)], self._action.max_tokens, self._numbers(count))
        start.stream_text = stream_text and self._streamed
        async with aclosing(self._play(start)) as items:
            async for item in items:
                yield item

    async def extend(self, chains: Sequence[Sample], each: int) -> Sequence[Sample]:
        """So many continuations of each chain by one step, as chains from their beginning.

        `branch` of each is the index of the chain that it continues.
        None where nothing is left to spend on them, and fewer at the query's deadline.
        """
        return await self._continue(chains, each, (), one_step=True)

    async def finish(self, chains: Sequence[Sample], most: Sequence[int] = ()) -> Sequence[Sample]:
        """Each chain continued to its end, by at most so many tokens (0: what is left of a sample's).

        Otherwise as `extend`.
        """
        return await self._continue(chains, 1, most, one_step=False)

    async def ask(self, conversations: Sequence[Sequence[Message]], said: Sequence[int]) -> Sequence[Sample]:
        """What the model says where the query is followed by each of these, as `extend` otherwise.

        `said`: tokens of each that are the model's own.
        """
        branches = [Branch(samples=1, turns=turns) for turns in conversations]
        sizes = [
            tokens
            + sum(TEMPLATE_TOKENS + len(turn.content.encode()) * (turn.role == "user") for turn in turns)
            for turns, tokens in zip(conversations, said, strict=True)
        ]
        return await self._buy(branches, max(sizes), self._action.max_tokens, one_step=False)

    async def _continue(
        self, chains: Sequence[Sample], each: int, most: Sequence[int], *, one_step: bool
    ) -> Sequence[Sample]:
        """So many continuations of each chain, as chains from their beginning."""
        whole = self._whole
        limits = {
            number: limit or whole - chain.tokens
            for number, (chain, limit) in enumerate(zip(chains, most or [0] * len(chains), strict=True))
            if limit or chain.tokens < whole
        }
        if not limits:
            return []
        branches = [
            Branch(prefix=chains[number].text, samples=each, max_tokens=limit)
            for number, limit in limits.items()
        ]
        longest = max(chains[number].tokens for number in limits)
        steps = await self._buy(branches, longest, max(limits.values()), one_step=one_step)
        numbers = list(limits)
        return [joined(chains[numbers[step.branch]], step, numbers[step.branch]) for step in steps]

    async def _buy(
        self, branches: Sequence[Branch], before: int, limit: int, *, one_step: bool
    ) -> list[Sample]:
        """Samples of these branches, of at most `limit` tokens each, after up to `before` tokens.

        Where the model's backend fails, those that have come are kept, and the others are asked for again.
        """
        samples, numbers = list[Sample](), list[int]()
        places = [place for place, branch in enumerate(branches) for _ in range(branch.samples)]
        asked, lacking = branches, places
        while True:
            came = list[Sample]()
            try:
                await self._try(asked, before, limit, numbers, came, one_step=one_step)
            except Unavailable as error:
                there = {number_of(one) for one in came}
                left = [pair for pair in zip(lacking, numbers, strict=False) if pair[1] not in there]
                if error is not self.failure or (left and not self._retry(error)):
                    raise
            else:
                left = []
            for one in came:
                one.branch = list(dict.fromkeys(lacking))[one.branch]
            samples += came
            if not left:
                return samples
            lacking, numbers = [place for place, _ in left], [number for _, number in left]
            asked = [_narrowed(branches[place], count) for place, count in Counter(lacking).items()]

    async def _try(
        self,
        branches: Sequence[Branch],
        before: int,
        limit: int,
        numbers: list[int],
        samples: list[Sample],
        *,
        one_step: bool,
    ) -> None:
        """As `_buy`, once; what comes is put into `samples`.

        What they cost at most is set aside beyond what is; none where it is not there. `numbers` are those
        of the samples; the next ones are put there where it is empty.
        """
        action, count = self._action, sum(branch.samples for branch in branches)
        if asyncio.get_running_loop().time() >= self._deadline:
            return
        prompt = self._prompt + before
        left = self.worst - self.spent + self._allowance.left
        room = cost.longest(action.model, count, prompt, limit, left, action.verifier)
        if room < 1 or sum(branch.ByteSize() for branch in branches) > MOST_BYTES:
            return
        # What is before them is read again, and so it is for their scores.
        most = self.spent + cost.samples(action.model, count, prompt, room, action.verifier)
        more = most.beyond(self.worst)
        self._allowance.reserve(more)
        self.worst += more
        try:
            if self._hold:
                await self._hold(self.worst)
        except (Short, Unavailable):
            # Other queries have it, or the ledger is down: the chains are what they have come to.
            self.worst -= more
            self._allowance.settle(more, Cost())
            return
        numbers += [] if numbers else self._numbers(count)
        start = self._start(branches, room, numbers)
        start.sampling.one_step = one_step
        begun = self.spent.flops > 0
        try:
            async with aclosing(self._play(start)) as items:
                async for item in items:
                    if not isinstance(item, TextDelta):
                        samples += [one for one in item if one.finish_reason != FINISH_REASON_ABORTED]
        except InvalidArgument:
            # What the query itself is refused for is its caller's fault. Later it is that chains, or what was
            # said of them, have become too long: there is no more of them.
            if not begun:
                raise

    def settle(self) -> None:
        """The round is over: what it has spent is spent, and the rest of what was set aside is free."""
        self._allowance.settle(self.worst, self.spent)

    @property
    def slowness(self) -> float:
        """How many times as long as measured a token took; 0 where that is not known."""
        measured = self._tokens * self._action.arm.seconds_per_token
        return self._seconds / measured if measured > 0 else 0.0

    def _numbers(self, count: int) -> list[int]:
        """Numbers for so many samples: those that are asked for again, then the next ones."""
        again, self._again = self._again[:count], self._again[count:]
        first = self.next_sample
        self.next_sample += count - len(again)
        return [*again, *range(first, self.next_sample)]

    def _start(self, branches: Sequence[Branch], max_tokens: int, numbers: Sequence[int]) -> StartRound:
        """What generation is asked for."""
        action, first = self._action, numbers[0]
        follow = list(numbers) == list(range(first, first + len(numbers)))
        return StartRound(
            query_id=self._query.query_id,
            round_id=uuid.uuid4().hex,
            model=action.model.name,
            messages=self._messages,
            branches=branches,
            first_sample=first,
            indices=() if follow else numbers,
            sampling=Sampling(temperature=action.temperature, max_tokens=max_tokens, seed=self._query.seed),
        )

    async def _play(self, start: StartRound) -> AsyncGenerator[list[Sample] | TextDelta, None]:
        """What comes of it until the query's deadline, and then its bill."""
        enough = asyncio.Event()
        ready: asyncio.Queue[Sample | TextDelta | None] = asyncio.Queue()
        told = Told(paced=not start.sampling.one_step)
        # A task of its own: if this one is cancelled, the round still ends with its bill.
        round = asyncio.create_task(self._round(start, ready, enough, told), name=self._action.name)
        try:
            while True:
                begin = time.perf_counter()
                try:
                    async with until(self._deadline):
                        first = await ready.get()
                except TimeoutError:
                    break
                finally:
                    self.waited += time.perf_counter() - begin
                batch, done = [], False
                for item in (first, *_rest(ready)):
                    if isinstance(item, TextDelta):
                        yield item
                    elif item is None:
                        done = True
                    else:
                        batch.append(item)
                if batch:
                    yield batch
                if done:
                    break
        finally:
            enough.set()
            begin = time.perf_counter()
            patience = self._patience
            await asyncio.wait({round}, timeout=patience)
            self.waited += time.perf_counter() - begin
            self._bill(told)
            if not round.done() and patience < self._abort_seconds:
                rest = self._await_bill(start.round_id, round, told, self._abort_seconds - patience)
                self.late.append(asyncio.create_task(rest, name="late bill"))
            elif round.cancel() or self._stages.generation.untold(start.round_id):
                self.owed.append((start.round_id, told))
            if round.done() and not round.cancelled():
                round.exception()  # Raised below, where the caller is still there.
        if round.done():
            failed = round.exception()
            self.failure = failed if isinstance(failed, Unavailable) else None
            round.result()

    @property
    def _patience(self) -> float:
        """Seconds that the answer waits for the bill of a round that is aborted."""
        left = self._deadline - asyncio.get_running_loop().time()
        return min(self._abort_seconds, max(0.0, left) + LATE_SECONDS)

    def _bill(self, told: Told) -> None:
        """Bill what is known by now, beyond what has been billed."""
        usage = less(told.usage, told.billed)
        told.billed.CopyFrom(told.usage)
        self.spent += self.meter.generation(self._action.model, self._action.strategy, usage)

    def pay(self, told: Told, usage: RoundUsage) -> list[Usage]:
        """Bill what a round took that could not say so at its end; lines of the difference."""
        # Where it was whole, another replica has told its own.
        more = usage if told.whole else less(usage, told.billed)
        lines = Meter(self.meter.currency)
        self.spent += lines.generation(self._action.model, self._action.strategy, more)
        self.meter.add(lines.lines)
        return lines.lines

    async def _await_bill(self, round_id: str, round: asyncio.Task[None], told: Told, seconds: float) -> None:
        """Wait for the rest of the bill: the answer does not."""
        await asyncio.wait({round}, timeout=seconds)
        if not round.cancel():
            round.exception()
        self._bill(told)
        if not told.whole or self._stages.generation.untold(round_id):
            self.owed.append((round_id, told))

    async def _round(
        self,
        start: StartRound,
        ready: asyncio.Queue[Sample | TextDelta | None],
        enough: asyncio.Event,
        told: Told,
    ) -> None:
        """Play the round to its end, whatever becomes of the caller."""
        began = time.perf_counter()
        try:
            async with aclosing(
                self._stages.generation.generate(_requests(start, enough, told))
            ) as responses:
                async for response in responses:
                    if response.HasField("sample"):
                        ready.put_nowait(response.sample)
                        self._note(response.sample, time.perf_counter() - began, told)
                    elif response.HasField("delta"):
                        ready.put_nowait(response.delta)
                    else:
                        told.usage, told.whole = response.usage, True
        finally:
            ready.put_nowait(None)
        if not told.whole:
            raise Unavailable(f"{self._action.model.name} ended a round without its usage: ask again")

    def _note(self, sample: Sample, seconds: float, told: Told) -> None:
        """What is billed of a sample where the round never tells its usage; and how long it took."""
        usage = told.usage
        usage.samples += 1
        context = attended(1, sample.tokens, self._action.model.shape.window)
        if sample.finish_reason == FINISH_REASON_ABORTED:
            usage.aborted_tokens += sample.tokens
            usage.aborted_context_tokens += context
        else:
            self._seconds += seconds * told.paced
            self._tokens += sample.tokens * told.paced
            usage.completion_tokens += sample.tokens
        usage.context_tokens += context

    async def score(self, samples: Sequence[Sample]) -> Sequence[ChainScore]:
        """Scores of the samples' steps, in order.

        Where verification is unavailable, or silent until the query's deadline, none: each has that as its
        error, here and for the rest of the round, and the samples are still worth an answer.
        """
        verifier = self._action.verifier
        assert verifier is not None
        scores: dict[str, ChainScore] = {}
        if asyncio.get_running_loop().time() >= self._deadline:
            return [ChainScore(id=sample.id, error="the deadline has passed") for sample in samples]
        if samples and not self.missing:
            begin = time.perf_counter()
            # A task of its own: scores cannot be aborted, and only at their end is it told what they took.
            scoring = asyncio.create_task(self._score(verifier, samples, scores), name=verifier.name)
            try:
                async with until(self._deadline):
                    await asyncio.shield(scoring)
            except Unavailable as error:
                self.missing = str(error)
            except TimeoutError:
                late = f"verifier {verifier.name} was not done before the deadline"
                if self._scored:
                    # What was scored before is still worth its scores.
                    return [ChainScore(id=sample.id, error=late) for sample in samples]
                self.missing = late
            finally:
                self.waited += time.perf_counter() - begin
                if not scoring.done():
                    self.late.append(scoring)
                    asyncio.get_running_loop().call_later(self._abort_seconds, scoring.cancel)
        return [scores.get(sample.id) or ChainScore(id=sample.id, error=self.missing) for sample in samples]

    async def _score(
        self, verifier: Verifier, samples: Sequence[Sample], scores: dict[str, ChainScore]
    ) -> None:
        """Put what comes into `scores`, and bill it as it comes; ask for no more where nobody waits."""
        request = ScoreRequest(verifier=verifier.name, messages=self._query.messages)
        chains = [Chain(id=sample.id, text=sample.text, steps=sample.steps) for sample in samples]
        parts, large = portions(chains, MOST_BYTES - request.ByteSize())
        for chain in large:
            scores[chain.id] = ChainScore(id=chain.id, error=f"its {chain.ByteSize()} bytes fit no request")
        for part in parts:
            if self.late:
                break
            response = await self._stages.verification.score(
                ScoreRequest(verifier=request.verifier, messages=request.messages, chains=part)
            )
            self.spent += self.meter.verification(verifier, self._action.strategy, response)
            self._scored = True
            scores.update((one.id, one) for one in response.scores)


async def _requests(start: StartRound, enough: asyncio.Event, told: Told) -> AsyncIterator[GenerateRequest]:
    yield GenerateRequest(start=start)
    await enough.wait()
    if not told.whole:
        yield GenerateRequest(abort=AbortSamples())


def asked_to_think(messages: Sequence[Message], words: str) -> Sequence[Message]:
    """The conversation with these words in its system message."""
    if not words:
        return messages
    if messages[0].role == "system":
        return [Message(role="system", content=f"{messages[0].content}\n{words}"), *messages[1:]]
    return [Message(role="system", content=words), *messages]


def joined(chain: Sample, step: Sample, branch: int) -> Sample:
    """The chain, number `branch` of those that are continued, with one more step."""
    begins = len(chain.text)
    steps = [Step(end=begins + one.end, tokens=one.tokens, logprob=_logprob(one)) for one in step.steps]
    logprobs = (_logprob(chain) if chain.text else 0.0), _logprob(step)
    return Sample(
        id=step.id,
        branch=branch,
        text=chain.text + step.text,
        tokens=chain.tokens + step.tokens,
        finish_reason=step.finish_reason,
        logprob=None if None in logprobs else math.fsum(one or 0.0 for one in logprobs),
        steps=[*chain.steps, *steps],
    )


def number_of(sample: Sample) -> int:
    """Its number among its model's samples."""
    return int(sample.id.rpartition("/")[2])


def _narrowed(branch: Branch, samples: int) -> Branch:
    """The branch with so many samples."""
    if branch.samples == samples:
        return branch
    fewer = Branch()
    fewer.CopyFrom(branch)
    fewer.samples = samples
    return fewer


def _logprob(of: Sample | Step) -> float | None:
    return of.logprob if of.HasField("logprob") else None


async def late_bills(benches: Iterable[RoundBench]) -> None:
    """Wait until it is told what all took that nobody waits for any more."""
    if late := [task for bench in benches for task in bench.late]:
        await asyncio.wait(late)


def _rest(queue: asyncio.Queue[T]) -> Iterator[T]:
    """What is in the queue already."""
    while not queue.empty():
        yield queue.get_nowait()
