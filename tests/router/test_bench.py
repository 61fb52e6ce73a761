"""One round: samples as they finish, and its bill however it ends."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
from isoflop.errors import InvalidArgument, NotFound, Unavailable
from isoflop.rpc import MAX_MESSAGE_BYTES
from isoflop.v1.common_pb2 import (
    FINISH_REASON_STEP,
    FINISH_REASON_STOP,
    STAGE_GENERATION,
    STAGE_VERIFICATION,
    Capabilities,
    Message,
    Sample,
    TextDelta,
    Usage,
)
from isoflop.v1.router_pb2 import Budget, Filters, Search
from isoflop.v1.verification_pb2 import (
    ChainScore,
    DescribeVerifiersRequest,
    DescribeVerifiersResponse,
    ScoreRequest,
    ScoreResponse,
)
from prometheus_client import CollectorRegistry
from scripted_stages import (
    ABORTED_TOKENS,
    CACHED_TOKENS,
    HOLD,
    PROMPT_TOKENS,
    Said,
    Script,
    ScriptedDifficulty,
    ScriptedGeneration,
    listed,
    number,
    same,
)
from synthetic import MIDDLE, make_model, make_planner, make_query, make_state

from router.bench import RoundBench, asked_to_think
from router.cost import Allowance, Cost, Meter
from router.remote import RemoteVerification
from router.stages import Stages
from router.stages import Verification as VerificationStage
from services.aggregation.core import Aggregation
from services.common.channels import Channels
from services.common.flops import with_attention
from services.common.server import serving
from services.verification.core import Verification
from services.verification.servicer import face
from services.verification.settings import VerificationSettings

Item = list[Sample] | TextDelta


class Table:
    """A bench with its script and its meter."""

    def __init__(
        self,
        script: Script,
        verification: VerificationStage,
        aggregation: Aggregation,
        samples: int = 4,
        seconds: float = math.inf,
        abort_seconds: float = 2.0,
        first_sample: int = 0,
        strategy: str = "majority",
        search: Search | None = None,
        budget: Budget | None = None,
        **generation: Any,
    ) -> None:
        stepwise = Capabilities(logprobs=True, prefix=True, steps=True)
        planner = make_planner(None, make_model("m", capabilities=stepwise))
        filters = Filters(samples=samples, strategies=[strategy], seed=11)
        if search:
            filters = Filters(search=search, strategies=["beam"], seed=11)
        query = replace(
            make_query(planner, filters=filters, budget=budget),
            deadline=asyncio.get_running_loop().time() + seconds,
        )
        action = planner.decide(query, make_state(planner, MIDDLE, left=query.limit)).action
        assert action is not None
        self.generation = ScriptedGeneration([make_model("m")], script, **generation)
        self.meter = Meter("USD")
        stages = Stages(self.generation, verification, ScriptedDifficulty(MIDDLE), aggregation)
        self.action, self.query = action, query
        self.allowance = Allowance(query.limit)
        self.bench = RoundBench(
            query,
            action,
            first_sample,
            stages,
            self.meter,
            self.allowance,
            streamed=True,
            abort_seconds=abort_seconds,
        )

    async def all(self, stream_text: bool = False) -> list[Item]:
        async with aclosing(self.bench.sample(stream_text)) as items:
            return [item async for item in items]

    def billed(self) -> Usage:
        """The line of generation; the bench has spent what it says."""
        lines = [line for line in self.meter.lines if line.stage == STAGE_GENERATION]
        line = lines[0] if lines else Usage()
        assert self.bench.spent.flops == pytest.approx(self.meter.bill().flops)
        return line

    def check(self) -> Usage:
        """The bill is what generation counted, exactly."""
        line, counted = self.billed(), self.generation.counted["m"]
        assert line.calls == counted.samples
        for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "aborted_tokens"):
            assert getattr(line, name) == getattr(counted, name)
        assert line.flops == pytest.approx(self.generation.flops())
        shape = self.action.model.shape
        aborted = with_attention(shape, counted.aborted_tokens, counted.aborted_context_tokens)
        assert line.aborted_flops == aborted
        return line


MakeTable = Callable[..., Table]


@pytest.fixture
async def table(verification: Verification, aggregation: Aggregation) -> AsyncIterator[MakeTable]:
    """Makes benches; afterwards no task is left over."""
    before = asyncio.all_tasks()
    yield lambda script, **fields: Table(
        script, **{"verification": verification, "aggregation": aggregation, **fields}
    )
    await asyncio.sleep(0)
    left = {task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()}
    assert not left


@contextmanager
def taking_at_most(seconds: float) -> Iterator[None]:
    begin = asyncio.get_running_loop().time()
    yield
    assert asyncio.get_running_loop().time() - begin < seconds


async def test_samples_come_as_they_finish_and_together_where_they_are_there_together(
    table: MakeTable,
) -> None:
    one_by_one = await table(same(number(421))).all()
    assert [len(batch) for batch in one_by_one] == [1, 1, 1, 1]
    together = await table(same(number(421)), samples=5, batch=5).all()
    assert [len(batch) for batch in together] == [5]


async def test_a_whole_round_is_billed_as_it_was_counted(table: MakeTable) -> None:
    at = table(listed(number(1, tokens=10), number(2, tokens=20), number(3, tokens=30)), samples=3)
    await at.all()
    line = at.check()
    assert (line.calls, line.completion_tokens, line.aborted_tokens) == (3, 60, 0)
    assert (line.prompt_tokens, line.cached_tokens) == (3 * PROMPT_TOKENS, 3 * CACHED_TOKENS)
    assert at.bench.spent.tokens == 3 * PROMPT_TOKENS + 60


async def test_generation_is_told_what_the_action_says(table: MakeTable) -> None:
    at = table(same(number(1)), samples=3, first_sample=8)
    await at.all()
    (start,) = at.generation.starts
    assert start.query_id == at.query.query_id
    assert list(start.messages) == list(at.query.messages)
    assert [branch.samples for branch in start.branches] == [3]
    assert start.first_sample == 8
    assert (start.sampling.seed, start.sampling.temperature) == (11, 0.8)
    assert start.sampling.max_tokens == at.action.max_tokens
    assert not start.stream_text


async def test_text_streams_where_it_is_asked_for(table: MakeTable) -> None:
    at = table(same(number(421)), samples=1, strategy="single")
    items = await at.all(stream_text=True)
    deltas = [item.text for item in items if isinstance(item, TextDelta)]
    assert deltas == ["The", "answer", "is", "421."]
    assert isinstance(items[-1], list)


async def test_closing_early_aborts_what_runs_and_bills_it(table: MakeTable) -> None:
    at = table(listed(number(421), HOLD))
    async with aclosing(at.bench.sample()) as batches:
        async for _ in batches:
            break
    assert at.generation.aborts == 1
    line = at.check()
    assert (line.completion_tokens, line.aborted_tokens) == (40, 3 * ABORTED_TOKENS)
    assert 0 < line.aborted_flops < line.flops


async def test_closing_early_waits_for_the_usage(table: MakeTable) -> None:
    at = table(listed(number(421), HOLD), ending=asyncio.Event())
    batches = at.bench.sample()
    await anext(batches)
    closing = asyncio.create_task(batches.aclose())
    await asyncio.sleep(0.05)
    assert not closing.done()
    at.generation.ending.set()  # type: ignore[union-attr]
    await closing
    at.check()
    assert at.bench.waited >= 0.04


async def test_a_caller_that_is_cancelled_is_billed_all_the_same(table: MakeTable) -> None:
    at = table(listed(number(421), HOLD))
    task = asyncio.create_task(at.all())
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert at.generation.aborts == 1
    assert at.check().aborted_tokens == 3 * ABORTED_TOKENS


async def test_a_caller_that_is_cancelled_before_the_first_sample_is_billed_the_prompts(
    table: MakeTable,
) -> None:
    at = table(same(HOLD))
    task = asyncio.create_task(at.all())
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert at.check().prompt_tokens == 4 * PROMPT_TOKENS


async def test_the_deadline_ends_the_round_and_aborts(table: MakeTable) -> None:
    at = table(listed(number(1), number(2), HOLD), seconds=1.0)
    with taking_at_most(10.0):
        batches = await at.all()
    await asyncio.gather(*at.bench.late)
    assert [sample.id for batch in batches for sample in batch] == ["m/0", "m/1"]
    assert at.generation.aborts == 1
    assert at.check().aborted_tokens == 2 * ABORTED_TOKENS


async def test_an_error_of_generation_is_raised_and_what_came_is_billed(table: MakeTable) -> None:
    at = table(listed(number(1), number(2), Unavailable("the engine is down")))
    with pytest.raises(Unavailable, match="the engine is down"):
        await at.all()
    line = at.billed()
    assert (line.calls, line.completion_tokens) == (2, 80)
    assert line.flops >= 2 * at.action.model.shape.active_parameters * 80


async def test_an_error_before_any_sample_is_raised_and_nothing_is_billed(table: MakeTable) -> None:
    at = table(same(NotFound("there is no model")))
    with pytest.raises(NotFound):
        await at.all()
    assert at.billed() == Usage() or at.billed().flops == 0
    assert at.bench.spent == Cost()


async def test_a_round_that_never_tells_its_usage_is_unavailable_and_what_came_is_billed(
    table: MakeTable,
) -> None:
    at = table(same(number(1)), tells_usage=False)
    with pytest.raises(Unavailable, match="without its usage"):
        await at.all()
    assert at.billed().completion_tokens == 160


async def test_of_aborted_samples_too_what_came_is_billed_apart(table: MakeTable) -> None:
    at = table(listed(number(1), HOLD), seconds=0.1, tells_usage=False)
    with suppress(Unavailable):
        await at.all()
    line, context = at.billed(), sum(range(1, ABORTED_TOKENS + 1))
    assert (line.completion_tokens, line.aborted_tokens) == (40, 3 * ABORTED_TOKENS)
    shape = at.action.model.shape
    assert line.aborted_flops == with_attention(shape, 3 * ABORTED_TOKENS, 3 * context)


async def test_a_generation_that_hangs_after_abort_is_given_up_and_what_came_is_billed(
    table: MakeTable,
) -> None:
    at = table(listed(number(421), HOLD), deaf=True, abort_seconds=0.1)
    with taking_at_most(1.0):
        async with aclosing(at.bench.sample()) as batches:
            async for _ in batches:
                break
    await asyncio.sleep(0.01)
    assert at.generation.running == 0
    assert (at.billed().calls, at.billed().completion_tokens) == (1, 40)


async def test_a_deadline_on_a_generation_that_hangs_ends_all_the_same(table: MakeTable) -> None:
    at = table(listed(number(421), HOLD), deaf=True, abort_seconds=0.1, seconds=0.1)
    with taking_at_most(1.0):
        batches = await at.all()
    assert len(batches) == 1
    await asyncio.sleep(0.01)
    assert at.generation.running == 0


async def test_scores_are_those_of_the_verifier_and_are_billed(table: MakeTable) -> None:
    at = table(
        same(Said("a\nb", tokens=40, logprobs=(-2.0, -20.0))), samples=2, batch=2, strategy="best_of_n"
    )
    async with aclosing(at.bench.sample()) as batches:
        async for batch in batches:
            scores = await at.bench.score(batch)  # type: ignore[arg-type]
    assert [score.id for score in scores] == ["m/0", "m/1"]
    assert list(scores[0].steps) == pytest.approx([math.exp(-0.1), math.exp(-1.0)])
    (line,) = [line for line in at.meter.lines if line.stage == STAGE_VERIFICATION]
    assert (line.model, line.strategy, line.calls, line.flops) == ("logprob", "best_of_n", 2, 8.0)
    assert at.bench.spent.flops == pytest.approx(at.meter.bill().flops)


class Asked:
    """The real verification, which notes what it was asked; `answers` ends before it is unavailable."""

    def __init__(self, core: Verification, answers: float = math.inf) -> None:
        self.core, self.answers = core, answers
        self.requests: list[ScoreRequest] = []

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        self.requests.append(request)
        if len(self.requests) > self.answers:
            raise Unavailable("the verifier is down")
        return await self.core.score(request)

    async def describe(self, request: DescribeVerifiersRequest) -> DescribeVerifiersResponse:
        return await self.core.describe(request)


class Late(Asked):
    """Scores when `gate` opens."""

    def __init__(self, core: Verification) -> None:
        super().__init__(core)
        self.begun, self.gate = asyncio.Event(), asyncio.Event()

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        self.begun.set()
        await self.gate.wait()
        return await super().score(request)


MEGABYTE = Said("x" * 1_000_000)


async def scores_of(at: Table) -> Sequence[ChainScore]:
    """Of all samples, which come at once."""
    async with aclosing(at.bench.sample()) as batches:
        return [score async for batch in batches for score in await at.bench.score(batch)]  # type: ignore[arg-type]


@pytest.fixture
async def wire(verification: Verification) -> AsyncIterator[RemoteVerification]:
    """The same over a socket."""
    settings = VerificationSettings(address="127.0.0.1:0", drain_seconds=0)
    channels = Channels()
    async with serving(settings, [face(verification)], CollectorRegistry()) as address:
        yield RemoteVerification(address, channels)
        await channels.close()


async def test_more_samples_than_fit_in_a_message_are_scored_over_the_wire(
    wire: RemoteVerification, aggregation: Aggregation
) -> None:
    at = Table(same(MEGABYTE), wire, aggregation, samples=17, batch=17, strategy="best_of_n")
    scores = await scores_of(at)
    assert [len(score.steps) for score in scores] == [1] * 17
    (line,) = [line for line in at.meter.lines if line.stage == STAGE_VERIFICATION]
    assert (line.calls, line.flops) == (17, 34.0)


async def test_a_sample_too_large_for_a_message_has_no_score_and_the_rest_goes_on(
    verification: Verification, table: MakeTable
) -> None:
    script = listed(number(1), Said("x" * (16 << 20)), number(2))
    asked = Asked(verification)
    at = table(script, samples=3, batch=3, strategy="best_of_n", verification=asked)
    scores = await scores_of(at)
    assert [score.id for score in scores] == ["m/0", "m/1", "m/2"]
    assert [len(score.steps) for score in scores] == [1, 0, 1]
    assert "16777" in scores[1].error
    assert "bytes" in scores[1].error
    assert not at.bench.missing
    assert [request.ByteSize() < MAX_MESSAGE_BYTES for request in asked.requests] == [True]


async def test_scores_that_came_before_verification_went_down_are_kept_and_billed(
    verification: Verification, table: MakeTable
) -> None:
    asked = Asked(verification, answers=1)
    at = table(same(MEGABYTE), samples=17, batch=17, strategy="best_of_n", verification=asked)
    scores = await scores_of(at)
    assert [score.error for score in scores] == [""] * 15 + ["the verifier is down"] * 2
    assert at.bench.missing == "the verifier is down"
    (line,) = [line for line in at.meter.lines if line.stage == STAGE_VERIFICATION]
    assert line.calls == 15
    at.check()


async def late_bill(at: Table) -> int:
    """Calls that scores are billed for which nobody waits for any more."""
    assert at.bench.late
    await asyncio.wait(at.bench.late)
    lines = [line for line in at.meter.lines if line.stage == STAGE_VERIFICATION]
    at.check()
    return sum(line.calls for line in lines)


async def test_scores_that_a_cancelled_caller_does_not_wait_for_are_billed(
    verification: Verification, table: MakeTable
) -> None:
    late = Late(verification)
    at = table(same(number(1)), samples=2, batch=2, strategy="best_of_n", verification=late)
    scoring = asyncio.create_task(scores_of(at))
    await late.begun.wait()
    scoring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scoring
    late.gate.set()
    assert await late_bill(at) == 2


async def test_scores_that_come_after_the_deadline_do_not_count_but_are_billed(
    verification: Verification, table: MakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = Late(verification)
    at = table(same(MEGABYTE), samples=17, batch=17, strategy="best_of_n", verification=late)
    async with aclosing(at.bench.sample()) as batches:
        samples = [sample async for batch in batches for sample in batch]
    # Only now, however long so many bytes took: scoring begins in time.
    monkeypatch.setattr(at.bench, "_deadline", asyncio.get_running_loop().time() + 0.05)
    scores = await at.bench.score(samples)  # type: ignore[arg-type]
    assert {score.error for score in scores} == {"verifier logprob was not done before the deadline"}
    late.gate.set()
    # Of the two requests that so many bytes take the second was not begun.
    assert await late_bill(at) == 15


async def test_scores_that_never_come_are_given_up_as_an_abort_is(
    verification: Verification, table: MakeTable
) -> None:
    late = Late(verification)
    script = same(number(1))
    at = table(script, strategy="best_of_n", seconds=0.1, abort_seconds=0.1, verification=late)
    with taking_at_most(1.0):
        await scores_of(at)
        assert await late_bill(at) == 0


async def test_an_unseen_remainder_is_reported(table: MakeTable) -> None:
    at = table(same(number(1)))
    at.generation.unseen = 9
    await at.all()
    assert at.billed().unseen_tokens == 9
    assert at.bench.spent.tokens == at.meter.bill().tokens == 4 * (PROMPT_TOKENS + 40)


def lines(*texts: str, tokens: int = 5) -> Script:
    """Steps in turn; the last one for all that follow."""
    return listed(*(Said(text, tokens) for text in texts))


async def test_chains_are_continued_by_a_step_each_and_billed_as_they_were_counted(table: MakeTable) -> None:
    at = table(lines("a\n", "b\n", "c\n", "d"), search=Search(width=1, expansion=2))
    begun = await at.bench.extend([Sample()], 2)
    assert [(chain.text, chain.finish_reason) for chain in begun] == [
        ("a\n", FINISH_REASON_STEP),
        ("b\n", FINISH_REASON_STEP),
    ]
    chains = await at.bench.extend([begun[1], begun[0]], 1)
    assert [(chain.text, chain.tokens) for chain in chains] == [("b\nc\n", 10), ("a\nd", 10)]
    assert chains[1].finish_reason == FINISH_REASON_STOP
    # No two samples of a query have the same number, and so the same seed.
    assert [start.first_sample for start in at.generation.starts] == [0, 2]
    assert [[branch.prefix for branch in start.branches] for start in at.generation.starts] == [
        [""],
        ["b\n", "a\n"],
    ]
    assert all(start.sampling.one_step and not start.stream_text for start in at.generation.starts)
    at.check()


async def test_chains_together_never_have_more_tokens_than_the_round_may_take(table: MakeTable) -> None:
    at = table(lines("a\n", tokens=40), search=Search(width=2, expansion=2), budget=Budget(tokens=2000))
    chains: Sequence[Sample] = [Sample()]
    for _ in range(64):
        if not (longer := await at.bench.extend(chains, 4 // len(chains))):
            break
        chains = longer
    assert 1 < len(at.generation.starts) < 64
    assert all(start.sampling.max_tokens >= 1 for start in at.generation.starts)
    assert at.bench.spent.within(at.allowance.reserved)
    assert at.meter.bill().tokens <= 2000
    at.check()


async def test_where_nothing_limits_it_chains_go_on_however_often_they_are_read_again(
    table: MakeTable,
) -> None:
    at = table(lines("a\n", tokens=10), search=Search(width=1, expansion=2, depth=64))
    first = at.allowance.reserved
    chains: Sequence[Sample] = [Sample()]
    for _ in range(60):
        (chain, _) = await at.bench.extend(chains, 2)
        chains = [chain]
    assert chains[0].tokens == 600
    # More was set aside as it was needed, and it is free again when the round is over.
    assert first.within(at.allowance.reserved)
    assert at.bench.spent.within(at.allowance.reserved)
    at.bench.settle()
    assert at.allowance.reserved == Cost()
    assert at.allowance.spent == at.bench.spent
    at.check()


async def test_chains_are_finished_within_what_each_may_have(table: MakeTable) -> None:
    at = table(lines("a\n", "b", tokens=5), search=Search(width=2, expansion=1))
    begun = [Sample(id="m/x", text="x\n", tokens=3), Sample()]
    chains = await at.bench.finish(begun, [4, 0])
    assert [(chain.branch, chain.text, chain.tokens) for chain in chains] == [(0, "x\na\n", 8), (1, "b", 5)]
    (start,) = at.generation.starts
    whole = at.action.max_tokens
    assert [(branch.prefix, branch.max_tokens) for branch in start.branches] == [("x\n", 4), ("", whole)]
    assert not start.sampling.one_step
    at.check()


async def test_a_chain_that_has_all_its_tokens_is_not_gone_on_with_and_others_are(table: MakeTable) -> None:
    at = table(lines("a\n"), search=Search(width=2, expansion=1))
    full = Sample(text="x\n", tokens=at.action.max_tokens)
    (chain,) = await at.bench.extend([full, Sample()], 1)
    assert (chain.branch, chain.text) == (1, "a\n")
    assert await at.bench.extend([full, full], 1) == []
    assert len(at.generation.starts) == 1


async def test_chains_that_have_become_too_long_are_not_gone_on_with(table: MakeTable) -> None:
    at = table(
        listed(Said("a\n"), InvalidArgument("messages", "too long")), search=Search(width=1, expansion=1)
    )
    chains = await at.bench.extend([Sample()], 1)
    assert await at.bench.extend(chains, 1) == []
    assert at.billed().completion_tokens == 40


async def test_what_is_refused_from_the_first_is_the_callers_fault(table: MakeTable) -> None:
    at = table(same(InvalidArgument("messages", "too long")), search=Search(width=1, expansion=1))
    with pytest.raises(InvalidArgument, match="too long"):
        await at.bench.extend([Sample()], 1)


async def test_what_follows_the_query_is_asked_as_turns(table: MakeTable) -> None:
    at = table(lines("1 ok", "1 wrong"), search=Search(width=2, expansion=1))
    turns = [[Message(role="user", content="critique")], [Message(role="user", content="sure?")]]
    said = await at.bench.ask(turns, [3, 5])
    assert [(one.branch, one.text) for one in said] == [(0, "1 ok"), (1, "1 wrong")]
    (start,) = at.generation.starts
    assert [list(branch.turns) for branch in start.branches] == turns
    assert list(start.messages) == list(at.query.messages)
    at.check()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], [("system", "think"), ("user", "1+1")]),
        ([Message(role="system", content="Be brief.")], [("system", "Be brief.\nthink"), ("user", "1+1")]),
    ],
)
def test_thinking_is_asked_for_by_the_system(before: list[Message], after: list[tuple[str, str]]) -> None:
    messages = [*before, Message(role="user", content="1+1")]
    assert [(one.role, one.content) for one in asked_to_think(messages, "think")] == after
    assert asked_to_think(messages, "") == messages


async def test_where_the_deadline_has_passed_nothing_is_scored_and_what_was_keeps_its_scores(
    table: MakeTable,
) -> None:
    at = table(lines("a\n"), search=Search(width=1, expansion=1), seconds=2.0)
    (chain,) = await at.bench.extend([Sample()], 1)
    (scored,) = await at.bench.score([chain])
    assert scored.steps
    await asyncio.sleep(2.05)
    (late,) = await at.bench.score([chain])
    assert "deadline" in late.error
    # Scores that came before still count.
    assert not at.bench.missing


async def test_steps_that_wait_for_each_other_say_nothing_of_the_load(table: MakeTable) -> None:
    at = table(lines("a\n"), search=Search(width=1, expansion=2))
    await at.bench.extend([Sample()], 2)
    assert at.bench.slowness == 0


async def test_what_fits_no_request_is_not_gone_on_with(table: MakeTable) -> None:
    at = table(lines("a\n"), search=Search(width=4, expansion=1))
    huge = Sample(text="x" * (MAX_MESSAGE_BYTES // 3), tokens=10)
    assert await at.bench.extend([huge] * 4, 1) == []
    assert not at.generation.starts


async def test_at_the_deadline_no_chain_goes_on(table: MakeTable) -> None:
    at = table(same(HOLD), search=Search(width=1, expansion=2), seconds=0.05)
    with taking_at_most(2.0):
        assert await at.bench.extend([Sample()], 2) == []
    assert at.generation.aborts == 1
    assert at.check().aborted_tokens == 2 * ABORTED_TOKENS
