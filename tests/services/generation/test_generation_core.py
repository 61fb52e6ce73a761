"""Rounds: what a caller sees, and that every token is counted, however a round ends."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator

import pytest
from isoflop.errors import InvalidArgument, NotFound, Unavailable
from isoflop.v1.common_pb2 import (
    FINISH_REASON_ABORTED,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    Message,
    Sampling,
)
from isoflop.v1.generation_pb2 import (
    AbortSamples,
    Branch,
    DescribeModelsRequest,
    GenerateRequest,
    GetRoundUsageRequest,
    RoundUsage,
)
from prometheus_client import CollectorRegistry
from scripted_backend import (
    NAME,
    QUESTION,
    Call,
    ScriptedBackend,
    generate,
    make_core,
    put_two_lines,
    samples,
    start,
    two_lines,
    until_aborted,
)

from services.common.flops import with_attention
from services.generation.backends import NEVER_STARTED, End, Piece, Round

KINDS = ("prompt", "cached", "completion", "aborted")


def tokens(registry: CollectorRegistry, kind: str) -> float:
    return registry.get_sample_value("isoflop_generation_tokens_total", {"model": NAME, "kind": kind}) or 0.0


def running(registry: CollectorRegistry) -> float | None:
    return registry.get_sample_value("isoflop_generation_samples_running", {"model": NAME})


def outcomes(registry: CollectorRegistry, outcome: str) -> float:
    labels = {"model": NAME, "outcome": outcome}
    return registry.get_sample_value("isoflop_generation_samples_total", labels) or 0.0


async def test_a_round_is_its_samples_and_then_its_usage() -> None:
    responses = await Call(make_core(ScriptedBackend(two_lines)), start(branches=[Branch(samples=3)])).rest()
    assert [response.WhichOneof("event") for response in responses] == ["sample"] * 3 + ["usage"]
    sample = responses[0].sample
    assert (sample.id, sample.text, sample.tokens) == (f"{NAME}/0", "one\ntwo", 4)
    assert sample.finish_reason == FINISH_REASON_STOP
    assert sample.logprob == -0.75
    # Three prompt tokens, one of them cached: those at positions 2 to 7 were computed.
    context = 2 + 3 + 4 + 5 + 6 + 7
    assert responses[-1].usage == RoundUsage(
        samples=3, prompt_tokens=6, cached_tokens=3, completion_tokens=12, context_tokens=3 * context
    )


async def test_a_round_without_branches_has_one_sample() -> None:
    made, usage = await generate(make_core(ScriptedBackend(two_lines)), start())
    assert len(made) == usage.samples == 1


async def test_samples_know_their_branch_and_are_numbered_through() -> None:
    backend = ScriptedBackend(two_lines)
    branches = [Branch(prefix="a", samples=2), Branch(prefix="b", samples=1)]
    sampling = Sampling(seed=100)
    made, _ = await generate(
        make_core(backend), start(branches=branches, first_sample=7, query_id="q", sampling=sampling)
    )
    assert [(sample.id, sample.branch) for sample in made] == [
        (f"{NAME}/7", 0),
        (f"{NAME}/8", 0),
        (f"{NAME}/9", 1),
    ]
    jobs = backend.rounds[0].jobs
    assert [(job.prefix, job.seed, job.query_id) for job in jobs] == [
        ("a", 107, "q"),
        ("a", 108, "q"),
        ("b", 109, "q"),
    ]


async def test_samples_that_are_asked_for_again_keep_their_numbers_and_seeds() -> None:
    backend = ScriptedBackend(two_lines)
    branches = [Branch(samples=2), Branch(samples=1)]
    again = start(branches=branches, first_sample=1, indices=[1, 4, 9], sampling=Sampling(seed=100))
    made, _ = await generate(make_core(backend), again)
    assert [(sample.id, sample.branch) for sample in made] == [
        (f"{NAME}/1", 0),
        (f"{NAME}/4", 0),
        (f"{NAME}/9", 1),
    ]
    assert [job.seed for job in backend.rounds[0].jobs] == [101, 104, 109]


@pytest.mark.parametrize("indices", [[1], [1, 2, 3], [1, 1], [1, 1, 2], [-1, 2]])
async def test_indices_are_one_for_each_sample(indices: list[int]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await generate(
            make_core(ScriptedBackend(two_lines)), start(branches=[Branch(samples=2)], indices=indices)
        )
    assert caught.value.field == "indices"


async def test_streamed_text_adds_up_to_the_samples_text() -> None:
    responses = await Call(
        make_core(ScriptedBackend(two_lines)), start(branches=[Branch(samples=3)], stream_text=True)
    ).rest()
    streamed: dict[str, str] = {}
    for response in responses:
        if response.HasField("delta"):
            streamed[response.delta.sample_id] = (
                streamed.get(response.delta.sample_id, "") + response.delta.text
            )
        elif response.HasField("sample"):
            # All of its text came before it.
            assert streamed.pop(response.sample.id) == response.sample.text
    assert not streamed


async def test_text_is_not_streamed_unless_asked() -> None:
    responses = await Call(make_core(ScriptedBackend(two_lines)), start()).rest()
    assert not any(response.HasField("delta") for response in responses)


async def one(request: GenerateRequest | None) -> AsyncIterator[GenerateRequest]:
    if request is not None:
        yield request


@pytest.mark.parametrize(
    "first", [None, GenerateRequest(), GenerateRequest(abort=AbortSamples())], ids=["none", "empty", "abort"]
)
async def test_a_round_begins_with_start(first: GenerateRequest | None) -> None:
    core = make_core(ScriptedBackend(two_lines))
    with pytest.raises(InvalidArgument) as caught:
        await anext(core.generate(one(first)))
    assert caught.value.field == "start"


async def test_an_unknown_model_is_not_found_and_the_known_ones_are_named() -> None:
    with pytest.raises(NotFound, match=rf"'gpt-9'.*{NAME}"):
        await generate(make_core(ScriptedBackend(two_lines)), start(model="gpt-9"))


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("branches", {"branches": [Branch(samples=0)]}),
        ("branches", {"branches": [Branch(samples=-1)]}),
        ("branches", {"branches": [Branch(samples=1), Branch(samples=0)]}),
        ("branches", {"branches": [Branch(samples=1_000_000)]}),
        ("branches", {"branches": [Branch(samples=2**31 - 1)] * 4}),
        ("branches", {"branches": [Branch(samples=1, prefix="x" * 1_000_000)]}),
        ("branches", {"branches": [Branch(samples=1, turns=[Message(content="x" * 1_000_000)])]}),
        ("branches", {"branches": [Branch(samples=1, max_tokens=-1)]}),
        ("first_sample", {"first_sample": -1}),
        ("messages", {"messages": []}),
        ("messages", {"messages": [Message(role="user", content="")]}),
        ("messages", {"messages": [Message(role="user", content="x" * 1_000_000)]}),
        ("messages", {"messages": [Message(role="user", content="ü" * 200_000)]}),
        ("sampling.temperature", {"sampling": Sampling(temperature=math.nan)}),
        ("sampling.temperature", {"sampling": Sampling(temperature=math.inf)}),
        ("sampling.temperature", {"sampling": Sampling(temperature=-0.1)}),
        ("sampling.top_p", {"sampling": Sampling(top_p=math.nan)}),
        ("sampling.top_p", {"sampling": Sampling(top_p=1.1)}),
        ("sampling.max_tokens", {"sampling": Sampling(max_tokens=-1)}),
        ("sampling.stop", {"sampling": Sampling(stop=["\n", ""])}),
        ("sampling.stop", {"sampling": Sampling(stop=["."], one_step=True)}),
        ("sampling.one_step", {"sampling": Sampling(one_step=True)}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_wrong_field_is_named_and_nothing_is_started(field: str, fields: dict[str, object]) -> None:
    registry = CollectorRegistry()
    backend = ScriptedBackend(two_lines)
    with pytest.raises(InvalidArgument) as caught:
        await generate(make_core(backend, registry=registry), start(**fields))
    assert caught.value.field == field
    assert not backend.rounds
    assert not running(registry)


async def test_all_samples_can_be_aborted() -> None:
    registry = CollectorRegistry()
    call = Call(
        make_core(ScriptedBackend(until_aborted), registry=registry),
        start(branches=[Branch(samples=3)], stream_text=True),
    )
    assert (await call.next()).delta.text == "one\n"
    assert running(registry) == 3
    call.abort()
    responses = await call.rest()
    ended = samples(responses)
    assert [sample.finish_reason for sample in ended] == [FINISH_REASON_ABORTED] * 3
    assert [sample.text for sample in ended] == ["one\n"] * 3
    usage = responses[-1].usage
    assert (usage.aborted_tokens, usage.completion_tokens, usage.prompt_tokens) == (9, 0, 9)
    # Of each the fourth to the sixth token: not what its prompt attended to.
    assert (usage.aborted_context_tokens, usage.context_tokens) == (3 * (4 + 5 + 6), 3 * 21)
    assert tokens(registry, "aborted") == 9
    assert outcomes(registry, "aborted") == 3
    assert running(registry) == 0


async def test_one_sample_can_be_aborted_and_the_others_go_on() -> None:
    finish = asyncio.Event()

    async def play(round: Round) -> None:
        await round.until_aborted(f"{NAME}/1")
        round.put(Piece(f"{NAME}/1", "part", 1, end=End(FINISH_REASON_ABORTED, 1)))
        await finish.wait()
        for job in (round.jobs[0], round.jobs[2]):
            assert not round.aborted(job.sample_id)
            put_two_lines(round, job)

    call = Call(make_core(ScriptedBackend(play)), start(branches=[Branch(samples=3)]))
    call.abort(f"{NAME}/1")
    first = await call.next()
    assert (first.sample.id, first.sample.finish_reason) == (f"{NAME}/1", FINISH_REASON_ABORTED)
    finish.set()
    responses = await call.rest()
    assert [sample.finish_reason for sample in samples(responses)] == [FINISH_REASON_STOP] * 2
    usage = responses[-1].usage
    assert (usage.completion_tokens, usage.aborted_tokens) == (8, 1)
    assert usage.aborted_context_tokens == 2


async def test_aborting_an_unknown_sample_changes_nothing() -> None:
    release = asyncio.Event()

    async def play(round: Round) -> None:
        await release.wait()
        assert not round.aborted(f"{NAME}/0")
        await two_lines(round)

    call = Call(make_core(ScriptedBackend(play)), start())
    call.abort("nobody/17", "")
    asyncio.get_running_loop().call_later(0.05, release.set)
    responses = await call.rest()
    assert samples(responses)[0].finish_reason == FINISH_REASON_STOP


async def test_a_sample_that_never_started_has_no_logprob_and_costs_nothing() -> None:
    async def play(round: Round) -> None:
        round.put(Piece(f"{NAME}/0", end=NEVER_STARTED))

    made, usage = await generate(make_core(ScriptedBackend(play)), start())
    assert not made[0].HasField("logprob")
    assert not made[0].steps
    assert usage == RoundUsage(samples=1)


async def nothing_is_left_running(before: set[asyncio.Task[object]]) -> bool:
    """Whether every task that began since then has ended, or soon does."""
    for _ in range(100):
        if asyncio.all_tasks() <= before:
            return True
        await asyncio.sleep(0.01)
    return False


async def test_a_caller_that_goes_away_aborts_the_round_and_its_tokens_are_counted() -> None:
    registry = CollectorRegistry()
    backend = ScriptedBackend(until_aborted)
    before = asyncio.all_tasks()
    call = Call(make_core(backend, registry=registry), start(branches=[Branch(samples=3)], stream_text=True))
    await call.next()
    await call.close()
    assert all(backend.rounds[0].aborted(job.sample_id) for job in backend.rounds[0].jobs)
    assert (tokens(registry, "aborted"), tokens(registry, "prompt")) == (9, 9)
    assert outcomes(registry, "aborted") == 3
    assert running(registry) == 0
    assert backend.running == 0
    assert await nothing_is_left_running(before)


async def test_what_a_round_took_is_told_to_who_knows_its_name_once_it_has_ended() -> None:
    core = make_core(ScriptedBackend(until_aborted))
    call = Call(core, start(branches=[Branch(samples=3)], stream_text=True, round_id="a"))
    await call.next()
    asking = asyncio.create_task(core.usage(GetRoundUsageRequest(round_id="a")))
    await asyncio.sleep(0)
    assert not asking.done()
    await call.close()
    usage = (await asking).usage
    assert (usage.samples, usage.aborted_tokens, usage.prompt_tokens) == (3, 9, 9)
    for unknown in ("b", ""):
        with pytest.raises(NotFound, match="no round"):
            await core.usage(GetRoundUsageRequest(round_id=unknown))


async def test_a_caller_that_goes_away_at_the_last_piece_of_text_is_counted_in_full() -> None:
    registry = CollectorRegistry()
    call = Call(make_core(ScriptedBackend(two_lines), registry=registry), start(stream_text=True))
    await call.next()
    assert (await call.next()).delta.text == "two"
    await call.close()
    assert [tokens(registry, kind) for kind in KINDS] == [2, 1, 4, 0]
    assert outcomes(registry, "stop") == 1
    assert running(registry) == 0


async def test_a_call_that_is_cancelled_aborts_the_round() -> None:
    registry = CollectorRegistry()
    backend = ScriptedBackend(until_aborted)
    before = asyncio.all_tasks()
    task = asyncio.create_task(generate(make_core(backend, registry=registry), start()))
    await asyncio.sleep(0.05)
    assert backend.running == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert tokens(registry, "aborted") == 3
    assert (backend.running, running(registry)) == (0, 0)
    assert await nothing_is_left_running(before)


@pytest.mark.parametrize("error", [Unavailable("the engine is down"), ZeroDivisionError("a bug")])
async def test_a_backend_that_fails_ends_the_round_with_its_error_and_what_came_is_counted(
    error: Exception,
) -> None:
    async def play(round: Round) -> None:
        put_two_lines(round, round.jobs[0])
        round.put(Piece(round.jobs[1].sample_id, "one\n", 2))
        raise error

    registry = CollectorRegistry()
    backend = ScriptedBackend(play)
    before = asyncio.all_tasks()
    call = Call(make_core(backend, registry=registry), start(branches=[Branch(samples=3)]))
    assert (await call.next()).sample.text == "one\ntwo"
    usage = (await call.next()).usage
    assert (usage.samples, usage.completion_tokens, usage.aborted_tokens) == (3, 4, 2)
    with pytest.raises(type(error), match=str(error)):
        await call.next()
    assert (tokens(registry, "completion"), tokens(registry, "aborted")) == (4, 2)
    assert running(registry) == 0
    assert await nothing_is_left_running(before)


async def test_a_backend_that_ignores_aborts_is_given_up_when_the_caller_has_gone() -> None:
    async def play(round: Round) -> None:
        round.put(Piece(round.jobs[0].sample_id, "one\n", 2))
        await asyncio.Event().wait()

    registry = CollectorRegistry()
    backend = ScriptedBackend(play)
    before = asyncio.all_tasks()
    call = Call(make_core(backend, registry=registry, abort_seconds=0.05), start(stream_text=True))
    await call.next()
    async with asyncio.timeout(5):
        await call.close()
    assert tokens(registry, "aborted") == 2
    assert (backend.running, running(registry)) == (0, 0)
    assert await nothing_is_left_running(before)


async def test_the_metrics_are_the_sum_of_all_usages() -> None:
    """Rounds at the same time that finish, are cut, are aborted in part or as a whole."""
    draw = random.Random(7)

    async def play(round: Round) -> None:
        for job in round.jobs:
            for _ in range(draw.randrange(4)):
                round.put(Piece(job.sample_id, "line\n", draw.randrange(9), -1.0))
                await asyncio.sleep(0)
            reason = FINISH_REASON_ABORTED if round.aborted(job.sample_id) else draw.choice(ENDS)
            round.put(
                Piece(
                    job.sample_id,
                    "x",
                    draw.randrange(9),
                    end=End(reason, draw.randrange(50), draw.randrange(50)),
                )
            )

    registry = CollectorRegistry()
    backend = ScriptedBackend(play)
    core = make_core(backend, registry=registry)

    async def round(number: int) -> RoundUsage:
        call = Call(core, start(branches=[Branch(samples=1 + number % 5)]))
        if number % 3 == 0:
            call.abort(*[f"{NAME}/0"] * (number % 2))
        return (await call.rest())[-1].usage

    usages = await asyncio.gather(*map(round, range(40)))
    for kind in KINDS:
        assert tokens(registry, kind) == sum(getattr(usage, f"{kind}_tokens") for usage in usages)
    assert tokens(registry, "aborted") > 0
    total = sum(outcomes(registry, outcome) for outcome in ("stop", "length", "aborted"))
    assert total == sum(usage.samples for usage in usages)
    assert running(registry) == 0
    flops = registry.get_sample_value("isoflop_generation_flops_total", {"model": NAME})
    assert flops == pytest.approx(
        sum(
            with_attention(
                backend.model.shape,
                usage.prompt_tokens + usage.completion_tokens + usage.aborted_tokens,
                usage.context_tokens,
            )
            for usage in usages
        )
    )


ENDS = (FINISH_REASON_STOP, FINISH_REASON_LENGTH)


async def test_models_are_described_in_order() -> None:
    first, second = ScriptedBackend(two_lines), ScriptedBackend(two_lines)
    second.model.name = "another"
    response = await make_core(first, second).describe(DescribeModelsRequest())
    assert [model.name for model in response.models] == [NAME, "another"]


async def test_a_branch_may_have_turns_of_its_own_and_fewer_tokens() -> None:
    backend = ScriptedBackend(two_lines)
    turns = [Message(role="assistant", content="3"), Message(role="user", content="sure?")]
    branches = [
        Branch(samples=1),
        Branch(samples=1, turns=turns, max_tokens=5),
        Branch(samples=1, max_tokens=9),
    ]
    await generate(make_core(backend), start(branches=branches, sampling=Sampling(max_tokens=7, seed=1)))
    jobs = backend.rounds[0].jobs
    assert [list(job.messages) for job in jobs] == [QUESTION, [*QUESTION, *turns], QUESTION]
    assert [job.sampling.max_tokens for job in jobs] == [7, 5, 7]
    assert [job.seed for job in jobs] == [1, 2, 3]


async def test_messages_are_not_changed() -> None:
    begin = start(branches=[Branch(samples=2)])
    await generate(make_core(ScriptedBackend(two_lines)), begin)
    assert begin == start(branches=[Branch(samples=2)])
    assert list(begin.messages) == QUESTION


async def test_a_round_that_is_cut_by_the_services_end_tells_its_usage_and_to_ask_again() -> None:
    core = make_core(ScriptedBackend(until_aborted))
    call = Call(core, start(branches=[Branch(samples=2)], stream_text=True))
    assert (await anext(call.responses)).HasField("delta")
    await core.end()
    told = [await anext(call.responses) for _ in range(4)]
    assert [response.WhichOneof("event") for response in told] == ["delta", "sample", "sample", "usage"]
    assert [response.sample.finish_reason for response in told[1:3]] == [FINISH_REASON_ABORTED] * 2
    assert (told[3].usage.aborted_tokens, told[3].usage.prompt_tokens) == (6, 6)
    with pytest.raises(Unavailable, match="ask again"):
        await anext(call.responses)
