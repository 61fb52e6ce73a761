"""The OpenAI backend against a strict fake: what it asks, what it bills, and what it makes of every fault."""

from __future__ import annotations

import asyncio
import email.utils
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import openai_server as fake
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from isoflop.errors import InvalidArgument, Unavailable
from isoflop.v1.common_pb2 import (
    FINISH_REASON_ABORTED,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STEP,
    FINISH_REASON_STOP,
    SEED_PROMISE_NONE,
    Message,
    Sampling,
)
from isoflop.v1.generation_pb2 import Branch, GenerateResponse, RoundUsage, StartRound
from openai_server import KEY, LOGPROB, MODEL, PROMPT_TOKENS, WORDS, Exchange, OpenAIServer, Play
from scripted_backend import QUESTION, Call, generate, make_core, samples, start

from services.common.catalog import CatalogError
from services.generation.backends import chunks, openai
from services.generation.backends.openai import OpenAIBackend
from services.generation.catalog import OpenAIEntry
from services.generation.core import Generation

TEXT = "".join(WORDS)
SERVICES = Path(openai.__file__).parents[2]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRICT_KEY", KEY)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "FIRST_PAUSE", 0.001)


@asynccontextmanager
async def served(
    play: Play = fake.speak, folder: Path = Path(), **fields: Any
) -> AsyncIterator[tuple[Generation, OpenAIServer]]:
    """A core with one model, `strict`, on a fake server."""
    async with fake.serving(play) as server, backend_of(server, folder, **fields) as backend:
        yield make_core(backend), server


@asynccontextmanager
async def backend_of(
    server: OpenAIServer, folder: Path = Path(), **fields: Any
) -> AsyncIterator[OpenAIBackend]:
    entry = OpenAIEntry.model_validate(
        {
            "name": "strict",
            "backend": "openai",
            "base_url": server.url,
            "model": MODEL,
            "shape": {"active_parameters": 1e9},
            **({} if "key_file" in fields else {"key_env": "STRICT_KEY"}),
            **fields,
        }
    )
    backend = OpenAIBackend(entry, folder, "USD")
    try:
        yield backend
    finally:
        await backend.close()
    ours = [task for task in asyncio.all_tasks() if _code(task).startswith(str(SERVICES))]
    assert not ours, "tasks that nobody has awaited"


def _code(task: asyncio.Task[Any]) -> str:
    """The file of what a task runs."""
    return getattr(getattr(task.get_coro(), "cr_code", None), "co_filename", "")


def begin(count: int = 1, prefix: str = "", **fields: Any) -> StartRound:
    sampling = fields.pop("sampling", None) or Sampling(max_tokens=100)
    branches = [Branch(samples=count, prefix=prefix)]
    return start("strict", **{"branches": branches, "sampling": sampling, **fields})


async def fails(core: Generation, begun: StartRound) -> tuple[Exception, RoundUsage]:
    """The error of a round, and what it cost."""
    call = Call(core, begun)
    usage = RoundUsage()
    try:
        async with aclosing(call.responses) as responses:
            async for response in responses:
                if response.HasField("usage"):
                    usage = response.usage
    except Exception as error:
        return error, usage
    pytest.fail("the round did not fail")


# What is asked, and what comes of it.


@pytest.mark.parametrize("api", ["chat", "completions"])
@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize("continuous", [False, True])
async def test_samples_come_with_text_steps_and_an_exact_bill(
    api: str, logprobs: bool, continuous: bool
) -> None:
    async with served(api=api, logprobs=logprobs, continuous_usage=continuous) as (core, server):
        made, usage = await generate(core, begin(3))
    assert [one.text for one in made] == [TEXT] * 3
    assert [one.finish_reason for one in made] == [FINISH_REASON_STOP] * 3
    assert [one.tokens for one in made] == [len(WORDS)] * 3
    assert usage.completion_tokens == sum(one.sent for one in server.exchanges)
    assert (usage.prompt_tokens, usage.cached_tokens) == (3 * (PROMPT_TOKENS - 2), 3 * 2)
    assert usage.unseen_tokens == usage.aborted_tokens == 0
    for one in made:
        assert "".join(_steps(one)) == TEXT
        assert sum(step.tokens for step in one.steps) == len(WORDS)
        assert one.HasField("logprob") == logprobs
        if logprobs:
            assert one.logprob == LOGPROB * len(WORDS)
            assert [step.logprob for step in one.steps] == [LOGPROB * step.tokens for step in one.steps]


def _steps(sample: Any) -> list[str]:
    ends = itertools.pairwise([0, *(step.end for step in sample.steps)])
    return [sample.text[begin:end] for begin, end in ends]


async def test_steps_are_cut_exactly_where_tokens_are_counted() -> None:
    async with served(logprobs=True) as (core, _):
        (one,), _ = await generate(core, begin())
    assert _steps(one) == ["17*24\n", "= 408\n\n", "408"]
    assert [step.tokens for step in one.steps] == [4, 4, 1]


async def test_a_request_says_how_to_sample() -> None:
    sampling = Sampling(temperature=0.7, top_p=0.9, max_tokens=4, stop=["\n", "END"], seed=2**31 - 1)
    async with served(extra={"top_k": 40}) as (core, server):
        made, _ = await generate(core, begin(2, sampling=sampling))
    assert [one.finish_reason for one in made] == [FINISH_REASON_LENGTH] * 2
    first, second = sorted((one.body for one in server.exchanges), key=lambda body: -body["seed"])
    assert first == {
        "model": MODEL,
        "messages": [{"role": "user", "content": QUESTION[0].content}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 4,
        "stop": ["\n", "END"],
        "seed": 2**31 - 1,
        "top_k": 40,
    }
    assert second["seed"] == 0


async def test_no_seed_is_sent_where_none_is_given_or_the_server_has_none() -> None:
    async with served(seed="none") as (core, server):
        await generate(core, begin(sampling=Sampling(seed=3)))
        assert (await core.describe(None)).models[0].capabilities.seed == SEED_PROMISE_NONE  # type: ignore[arg-type]
    async with served() as (core, other):
        await generate(core, begin())
    assert "seed" not in server.exchanges[0].body
    assert "seed" not in other.exchanges[0].body


async def test_the_name_for_the_most_tokens_can_be_chosen() -> None:
    async with served(max_tokens_field="max_completion_tokens") as (core, server):
        await generate(core, begin(sampling=Sampling(max_tokens=5)))
    assert server.exchanges[0].body["max_completion_tokens"] == 5
    assert "max_tokens" not in server.exchanges[0].body


async def test_completions_apply_the_template_of_the_catalogue() -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    async with served(api="completions", chat_template=template, context=1000) as (core, server):
        await generate(core, begin(prefix="so far", sampling=Sampling()))
    prompt = f"<user>{QUESTION[0].content}<assistant>so far"
    assert server.exchanges[0].body["prompt"] == prompt
    # Left out, it would be 16.
    assert server.exchanges[0].body["max_tokens"] == 1000 - len(prompt)


@pytest.mark.parametrize("continues", ["last_message", "continue_final_message"])
async def test_chat_continues_a_prefix_as_the_server_can(continues: str) -> None:
    async with served(continues=continues) as (core, server):
        assert (await core.describe(None)).models[0].capabilities.prefix  # type: ignore[arg-type]
        await generate(core, begin(prefix="so far"))
    body = server.exchanges[0].body
    assert body["messages"][-1] == {"role": "assistant", "content": "so far"}
    flags = {key: body[key] for key in ("continue_final_message", "add_generation_prompt") if key in body}
    expected = {"continue_final_message": True, "add_generation_prompt": False}
    assert flags == (expected if continues == "continue_final_message" else {})


async def test_chat_that_cannot_continue_says_so_and_asks_nothing() -> None:
    async with served() as (core, server):
        assert not (await core.describe(None)).models[0].capabilities.prefix  # type: ignore[arg-type]
        error, usage = await fails(core, begin(prefix="so far"))
    assert isinstance(error, InvalidArgument)
    assert error.field == "branches"
    assert not server.exchanges
    assert usage.prompt_tokens == 0


async def test_text_is_streamed_as_it_comes() -> None:
    async with served(logprobs=True) as (core, _):
        responses = await Call(core, begin(stream_text=True)).rest()
    assert [one.delta.text for one in responses if one.HasField("delta")] == WORDS
    assert samples(responses)[0].tokens == len(WORDS)


async def test_streamed_text_without_counts_is_billed_by_the_usage_at_the_end() -> None:
    async with served() as (core, _):
        responses = await Call(core, begin(stream_text=True)).rest()
    assert [one.delta.text for one in responses if one.HasField("delta")] == WORDS
    assert responses[-1].usage.completion_tokens == len(WORDS)


async def test_no_more_samples_run_at_a_time_than_the_entry_says_and_connections_are_kept() -> None:
    running = most = 0

    async def play(exchange: Exchange) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        await exchange.token("x")
        running -= 1
        await exchange.finish()

    async with served(play, parallel=3) as (core, server):
        made, _ = await generate(core, begin(12))
    assert len(made) == 12
    assert most <= 3
    assert server.connections <= 3


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
async def test_reasoning_is_joined_to_the_text_and_billed(name: str) -> None:
    async def play(exchange: Exchange) -> None:
        for said in ({name: "hmm, "}, {name: "17*24"}, {"content": "408"}):
            exchange.sent += 1
            await exchange.event({"choices": [{"index": 0, "delta": said, "finish_reason": None}]})
        await exchange.finish()

    async with served(play) as (core, _):
        (one,), usage = await generate(core, begin())
    assert one.text == "<think>\nhmm, 17*24\n</think>\n408"
    assert usage.completion_tokens == 3


# Usage that is left out.


@pytest.mark.parametrize("logprobs", [False, True])
async def test_tokens_are_counted_where_the_usage_is_left_out(logprobs: bool) -> None:
    async def play(exchange: Exchange) -> None:
        for word in WORDS:
            await exchange.token(word)
        await exchange.finish(usage=False)

    async with served(play, logprobs=logprobs) as (core, server):
        (one,), usage = await generate(core, begin())
    assert usage.completion_tokens == one.tokens == server.exchanges[0].sent
    # Nobody tells the prompt's: estimated.
    assert usage.prompt_tokens == 1


async def test_a_server_without_stream_options_is_asked_without_from_then_on() -> None:
    async def play(exchange: Exchange) -> None:
        if exchange.options:
            await exchange.refuse(400, {"error": {"message": "Unrecognized argument: stream_options"}})
        else:
            await fake.speak(exchange)

    async with served(play) as (core, server):
        made, usage = await generate(core, begin(4))
        asked = len(server.exchanges)
        await generate(core, begin(4))
    assert [one.text for one in made] == [TEXT] * 4
    assert usage.completion_tokens == 4 * len(WORDS)
    assert asked <= 8
    assert len(server.exchanges) == asked + 4


async def test_a_count_of_zero_is_none() -> None:
    async def play(exchange: Exchange) -> None:
        zeros = {"prompt_tokens": 0, "completion_tokens": 0}
        await exchange.token("a", usage=zeros)
        await exchange.token("b", usage=zeros)
        await exchange.finish(usage=False)

    async with served(play) as (core, _):
        (one,), _ = await generate(core, begin())
    assert one.tokens == 2


@pytest.mark.parametrize("stops", [False, True])
async def test_an_end_of_text_that_is_counted_and_not_shown_keeps_the_logprobs(stops: bool) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.token("a\n")
        await exchange.token("b")
        exchange.sent += 3 if stops else 1
        await exchange.finish()

    sampling = Sampling(max_tokens=10, stop=["###"] if stops else [])
    async with served(play, logprobs=True) as (core, _):
        (one,), _ = await generate(core, begin(sampling=sampling))
    assert one.tokens == (5 if stops else 3)
    assert one.logprob == 2 * LOGPROB


async def test_a_logprob_that_is_no_number_is_lacking_and_the_rest_is_there() -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.token("a\n")
        await exchange.token("b\n", logprob=float("nan"))
        await exchange.token("c")
        await exchange.finish()

    async with served(play, logprobs=True) as (core, _):
        (one,), _ = await generate(core, begin())
    assert not one.HasField("logprob")
    assert [step.HasField("logprob") for step in one.steps] == [True, False, True]
    assert one.tokens == 3


@settings(max_examples=50)
@given(st.data())
async def test_the_bill_is_what_the_server_says_it_has_sent(data: st.DataObject) -> None:
    """Whatever it tells of its counts, and wherever it is cut off."""
    api = data.draw(st.sampled_from(["chat", "completions"]))
    logprobs, continuous = data.draw(st.booleans()), data.draw(st.booleans())
    texts = st.lists(st.text(st.sampled_from("ab1 \né𝔘"), min_size=1, max_size=3), max_size=8)
    scripts = data.draw(st.lists(st.tuples(texts, st.booleans(), st.booleans()), min_size=1, max_size=4))
    most = data.draw(st.sampled_from([0, 8, 100]))

    async def play(exchange: Exchange) -> None:
        said, usage, breaks = scripts[exchange.body["seed"]]
        for text in said:
            await exchange.token(text)
        if breaks:
            exchange.reset()
        else:
            await exchange.finish(usage=usage)

    stream_text = data.draw(st.booleans())
    begun = begin(len(scripts), sampling=Sampling(seed=0, max_tokens=most), stream_text=stream_text)
    fields = {"api": api, "logprobs": logprobs, "continuous_usage": continuous, "retries": 0}
    async with served(play, **fields) as (core, _):
        responses, failure = [], None
        try:
            async for response in Call(core, begun).responses:
                responses.append(response)
        except Unavailable as error:
            failure = error
        made, usage = samples(responses), responses[-1].usage
        assert usage.completion_tokens + usage.aborted_tokens == sum(one.tokens for one in made)
        for one, (said, _, breaks) in zip(made, scripts, strict=True):
            if breaks:
                # What had not come when the connection broke cannot be billed.
                assert one.finish_reason == FINISH_REASON_ABORTED
                assert "".join(said).startswith(one.text)
                assert one.tokens <= len(said)
            else:
                assert one.finish_reason == FINISH_REASON_STOP
                assert one.text == "".join(said)
                assert one.tokens == len(said)
        assert (failure is not None) == all(breaks for _, _, breaks in scripts)


# Aborts.


async def hold(exchange: Exchange) -> None:
    """Two tokens, and no more until the client hangs up."""
    await exchange.token("one\n")
    await exchange.token("two")
    await exchange.gone.wait()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (sockets tell nobody)
            await asyncio.sleep(0.005)


async def streamed(call: Call, deltas: int) -> None:
    """Read so many pieces of text."""
    for _ in range(deltas):
        assert (await call.next()).HasField("delta")


@pytest.mark.parametrize("continuous", [False, True])
async def test_an_aborted_sample_is_hung_up_on_and_billed_for_what_came(continuous: bool) -> None:
    async with served(hold, continuous_usage=continuous) as (core, server):
        call = Call(core, begin(3, stream_text=True))
        await streamed(call, 6)
        call.abort("strict/1")
        aborted = (await call.next()).sample
        await until(lambda: server.hung_up)
        assert len(server.hung_up) == 1
        call.abort()
        responses = await call.rest()
        await until(lambda: len(server.hung_up) == 3)
    assert (aborted.id, aborted.text, aborted.tokens) == ("strict/1", "one\ntwo", 2)
    assert aborted.finish_reason == FINISH_REASON_ABORTED
    usage = responses[-1].usage
    assert usage.aborted_tokens == sum(one.sent for one in server.exchanges) == 6
    assert usage.unseen_tokens == 3 * chunks.UNSEEN_TOKENS
    if continuous:
        assert usage.prompt_tokens + usage.cached_tokens == 3 * PROMPT_TOKENS
    else:
        assert usage.prompt_tokens == 3 * 1


async def test_the_prompt_of_an_aborted_sample_is_known_from_another_one() -> None:
    async def play(exchange: Exchange) -> None:
        await (hold if exchange.body["seed"] else fake.speak)(exchange)

    async with served(play) as (core, _):
        call = Call(core, begin(2, sampling=Sampling(seed=0, max_tokens=100), stream_text=True))
        awaited = {"two", "strict/0"}
        while awaited:
            response = await call.next()
            awaited -= {response.delta.text, response.sample.id}
        call.abort()
        usage = (await call.rest())[-1].usage
    assert usage.prompt_tokens + usage.cached_tokens == 2 * PROMPT_TOKENS


async def test_a_caller_that_goes_hangs_up_on_all() -> None:
    async with served(hold) as (core, server):
        call = Call(core, begin(3, stream_text=True))
        await streamed(call, 1)
        await call.close()
        await until(lambda: len(server.hung_up) == len(server.exchanges))


async def test_samples_that_wait_are_aborted_before_they_begin_and_cost_nothing() -> None:
    async with served(hold, parallel=1) as (core, server):
        call = Call(core, begin(3, stream_text=True))
        await streamed(call, 2)
        call.abort()
        responses = await call.rest()
    assert len(server.exchanges) == 1
    assert responses[-1].usage.aborted_tokens == 2
    assert sorted(one.tokens for one in samples(responses)) == [0, 0, 2]


# One step.

ONE_STEP = Sampling(max_tokens=100, one_step=True)


def saying(*tokens: str | tuple[str, ...]) -> Play:
    """Says so many chunks, and no more until the client hangs up."""

    async def play(exchange: Exchange) -> None:
        for texts in tokens:
            await exchange.token(*([texts] if isinstance(texts, str) else texts))
        await exchange.gone.wait()

    return play


@asynccontextmanager
async def stepping(play: Play, **fields: Any) -> AsyncIterator[tuple[Generation, OpenAIServer]]:
    """A core whose model continues a prefix."""
    async with served(play, **{"continues": "last_message", **fields}) as (core, server):
        yield core, server


@pytest.mark.parametrize("fields", [{"api": "completions"}, {"continues": "last_message"}, {}])
async def test_a_model_that_continues_a_prefix_can_end_a_sample_after_a_step(fields: dict[str, Any]) -> None:
    async with served(**fields) as (core, server):
        (model,) = (await core.describe(None)).models  # type: ignore[arg-type]
        assert model.capabilities.steps == model.capabilities.prefix == bool(fields)
        if not fields:
            error, _ = await fails(core, begin(sampling=ONE_STEP))
            assert isinstance(error, InvalidArgument)
            assert not server.exchanges


@pytest.mark.parametrize("api", ["chat", "completions"])
@pytest.mark.parametrize("stream_text", [False, True])
async def test_one_step_ends_with_its_line_and_the_server_is_hung_up_on(api: str, stream_text: bool) -> None:
    fields = {"api": api, "continues": "last_message" if api == "chat" else "no"}
    async with stepping(saying("17", "*24", "\n"), logprobs=True, **fields) as (core, server):
        responses = await Call(core, begin(2, sampling=ONE_STEP, stream_text=stream_text)).rest()
        await until(lambda: len(server.hung_up) == 2)
    made, usage = samples(responses), responses[-1].usage
    assert [(one.text, one.tokens) for one in made] == [("17*24\n", 3)] * 2
    assert [one.finish_reason for one in made] == [FINISH_REASON_STEP] * 2
    assert [[(step.end, step.tokens) for step in one.steps] for one in made] == [[(6, 3)]] * 2
    assert [one.logprob for one in made] == [3 * LOGPROB] * 2
    assert (usage.completion_tokens, usage.aborted_tokens) == (6, 0)
    assert usage.unseen_tokens == 2 * chunks.UNSEEN_TOKENS
    # A stop text would leave it open whether the model has ended.
    assert all("stop" not in one.body for one in server.exchanges)


@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("stream_text", [False, True])
async def test_what_a_chunk_has_beyond_the_step_is_no_text_and_is_billed(
    logprobs: bool, continuous: bool, stream_text: bool
) -> None:
    play = saying("17", ("*", "24", "\n", "=", " 408", "\n408"))
    async with stepping(play, logprobs=logprobs, continuous_usage=continuous) as (core, server):
        responses = await Call(core, begin(sampling=ONE_STEP, stream_text=stream_text)).rest()
        await until(lambda: server.hung_up)
    (one,), usage = samples(responses), responses[-1].usage
    assert (one.text, one.finish_reason) == ("17*24\n", FINISH_REASON_STEP)
    assert "".join(response.delta.text for response in responses) == ("17*24\n" if stream_text else "")
    # Where nothing counts them, the tokens are as many as the chunks.
    assert usage.completion_tokens == one.tokens == (7 if logprobs or continuous else 2)
    assert _steps(one) == ["17*24\n"]
    assert usage.unseen_tokens == chunks.UNSEEN_TOKENS
    if continuous:
        assert usage.prompt_tokens + usage.cached_tokens == PROMPT_TOKENS
    if logprobs:
        assert one.logprob == one.steps[0].logprob == 7 * LOGPROB


async def test_no_more_tokens_are_unseen_than_were_left() -> None:
    async with stepping(saying("a", "\n"), logprobs=True) as (core, _):
        _, usage = await generate(core, begin(sampling=Sampling(max_tokens=5, one_step=True)))
    assert (usage.completion_tokens, usage.unseen_tokens) == (2, 3)


async def test_blank_lines_in_the_chunk_of_a_line_end_belong_to_the_step() -> None:
    async with stepping(saying("17*24", ".\n \n  = 408")) as (core, _):
        (one,), _ = await generate(core, begin(sampling=ONE_STEP))
    assert (one.text, _steps(one)) == ("17*24.\n \n", ["17*24.\n \n"])


async def test_blank_lines_at_the_beginning_are_no_step() -> None:
    play = saying("\n", " ", "\n", "\n =", " 408", "\n")
    async with stepping(play) as (core, server):
        (one,), _ = await generate(core, begin(prefix="17*24\n", sampling=ONE_STEP))
        await until(lambda: server.hung_up)
    assert (one.text, one.finish_reason) == ("\n \n\n = 408\n", FINISH_REASON_STEP)
    assert _steps(one) == [one.text]
    assert one.tokens == 6


@pytest.mark.parametrize(
    ("said", "text"),
    [(["40", "8"], "408"), ([], ""), (["\n", "\n"], "\n\n"), (["\n", "408"], "\n408")],
)
async def test_a_model_that_ends_its_text_before_a_line_end_has_ended_the_chain(
    said: list[str], text: str
) -> None:
    async def play(exchange: Exchange) -> None:
        for word in said:
            await exchange.token(word)
        exchange.sent += 1
        await exchange.finish()

    async with stepping(play) as (core, server):
        (one,), usage = await generate(core, begin(sampling=ONE_STEP))
    assert (one.text, one.finish_reason) == (text, FINISH_REASON_STOP)
    assert usage.completion_tokens == one.tokens == len(said) + 1
    assert usage.prompt_tokens + usage.cached_tokens == PROMPT_TOKENS
    assert usage.unseen_tokens == 0
    assert not server.hung_up


@pytest.mark.parametrize(
    ("texts", "reason", "finish"),
    [
        (("408", "\n"), "stop", FINISH_REASON_STOP),
        (("408", "\n", "!"), "stop", FINISH_REASON_STEP),
        (("408", "\n"), "length", FINISH_REASON_STEP),
        (("40", "8"), "length", FINISH_REASON_LENGTH),
    ],
)
async def test_a_chunk_that_ends_both_line_and_sample_is_told_apart_and_the_usage_read(
    texts: tuple[str, ...], reason: str, finish: int
) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.token(*texts, reason=reason)
        exchange.sent += reason == "stop"
        await exchange.close()

    async with stepping(play, logprobs=True) as (core, server):
        (one,), usage = await generate(core, begin(sampling=ONE_STEP))
    assert (one.text, one.finish_reason) == ("".join(texts).removesuffix("!"), finish)
    assert usage.completion_tokens == one.tokens == server.exchanges[0].sent
    assert usage.unseen_tokens == 0
    assert one.logprob == len(texts) * LOGPROB


async def test_a_step_that_reaches_the_most_tokens_is_cut_as_ever() -> None:
    async def play(exchange: Exchange) -> None:
        for _ in range(exchange.most):
            await exchange.token("x")
        await exchange.finish("length")

    async with stepping(play) as (core, _):
        (one,), usage = await generate(core, begin(sampling=Sampling(max_tokens=3, one_step=True)))
    assert (one.text, one.finish_reason) == ("xxx", FINISH_REASON_LENGTH)
    assert (usage.completion_tokens, usage.unseen_tokens) == (3, 0)


async def test_a_step_that_is_aborted_is_billed_for_what_came() -> None:
    async with stepping(saying("17", "*")) as (core, server):
        call = Call(core, begin(sampling=ONE_STEP, stream_text=True))
        await streamed(call, 2)
        call.abort()
        responses = await call.rest()
        await until(lambda: server.hung_up)
    (one,), usage = samples(responses), responses[-1].usage
    assert (one.text, one.finish_reason) == ("17*", FINISH_REASON_ABORTED)
    assert (usage.aborted_tokens, usage.unseen_tokens) == (2, chunks.UNSEEN_TOKENS)


async def test_the_marks_around_reasoning_end_no_step() -> None:
    async def play(exchange: Exchange) -> None:
        for said in ({"reasoning": "hmm"}, {"content": "17*24"}, {"content": "\n"}):
            await exchange.event({"choices": [{"index": 0, "delta": said, "finish_reason": None}]})
        await exchange.gone.wait()

    async with stepping(play) as (core, _):
        (one,), _ = await generate(core, begin(sampling=ONE_STEP))
    assert (one.text, one.finish_reason) == ("<think>\nhmm\n</think>\n17*24\n", FINISH_REASON_STEP)


# Faults before the first piece.


def failing(times: int, fault: Callable[[Exchange], Any]) -> Play:
    """The first `times` requests fail."""

    async def play(exchange: Exchange) -> None:
        if exchange.number < times:
            result = fault(exchange)
            if result is not None:
                await result
        else:
            await fake.speak(exchange)

    return play


async def empty(exchange: Exchange) -> None:
    await exchange.begin()
    await exchange.end()


async def role_only(exchange: Exchange) -> None:
    await exchange.event({"choices": [{"index": 0, "delta": {"role": "assistant"}}]})
    exchange.reset()


TRANSIENT: dict[str, Callable[[Exchange], Any]] = {
    "500": lambda exchange: exchange.refuse(500, {"error": {"message": "CUDA"}}),
    "502": lambda exchange: exchange.refuse(502, b"<html>Bad gateway</html>"),
    "503": lambda exchange: exchange.refuse(503, b""),
    "reset": lambda exchange: exchange.reset(),
    "closed": lambda exchange: None,
    "empty": empty,
    "role": role_only,
    "error event": lambda exchange: exchange.event({"error": {"message": "overloaded", "code": 500}}),
}


@pytest.mark.parametrize("fault", TRANSIENT)
async def test_what_fails_before_the_first_piece_is_asked_again_and_billed_once(fault: str) -> None:
    async with served(failing(2, TRANSIENT[fault])) as (core, server):
        (one,), usage = await generate(core, begin())
    assert one.text == TEXT
    assert len(server.exchanges) == 3
    assert usage.completion_tokens == len(WORDS)
    assert usage.prompt_tokens + usage.cached_tokens == PROMPT_TOKENS


@pytest.mark.parametrize("fault", TRANSIENT)
async def test_what_keeps_failing_is_given_up(fault: str) -> None:
    async with served(failing(99, TRANSIENT[fault]), retries=2) as (core, server):
        error, usage = await fails(core, begin())
    assert isinstance(error, Unavailable)
    assert "the server of strict at http://127.0.0.1" in str(error)
    assert len(server.exchanges) == 3
    assert usage.prompt_tokens == usage.aborted_tokens == usage.completion_tokens == 0


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    async with fake.serving() as server:
        pass
    async with backend_of(server, retries=1) as backend:
        error, usage = await fails(make_core(backend), begin(2))
    assert isinstance(error, Unavailable)
    assert "does not answer: is it running?" in str(error)
    assert usage.unseen_tokens == 0


async def test_a_server_that_never_begins_is_given_up() -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.raw(b": patience\n\n")
        await exchange.gone.wait()

    async with served(play, first_token_seconds=0.05) as (core, server):
        error, _ = await fails(core, begin())
        await until(lambda: server.hung_up)
    assert isinstance(error, Unavailable)
    assert "did not begin within 0.05 seconds" in str(error)
    assert len(server.exchanges) == 1


# Faults after the first piece: the sample's, not the round's.


async def stalls(exchange: Exchange) -> None:
    await exchange.gone.wait()


async def drips(exchange: Exchange) -> None:
    while True:
        await exchange.raw(b": still here\n\n")
        await exchange.event({"choices": [{"index": 0, "delta": {}}]})
        await asyncio.sleep(0.02)


BREAKS: dict[str, tuple[Callable[[Exchange], Any], str]] = {
    "reset": (lambda exchange: exchange.reset(), "broke off"),
    "closed": (lambda exchange: None, "broke off"),
    "ended": (lambda exchange: exchange.end(), "broke off"),
    "done": (lambda exchange: exchange.event("[DONE]"), "broke off"),
    "stalls": (stalls, "sent nothing for 2 seconds"),
    "drips": (drips, "sent nothing for 2 seconds"),
    "error": (lambda exchange: exchange.event({"error": {"message": "secret"}}), "failed in the middle"),
    "garbage": (lambda exchange: exchange.event("{secret"), "no JSON"),
    "utf-8": (lambda exchange: exchange.raw(b'data: {"choices": "\xff\xfe"}\n\n'), "no JSON"),
    "nested": (lambda exchange: exchange.event("[" * 100_000), "no JSON"),
    "list": (lambda exchange: exchange.event("[1]"), "no object"),
    "no choices": (lambda exchange: exchange.event({"id": "secret"}), "without choices"),
    "choices": (lambda exchange: exchange.event({"choices": {"0": "secret"}}), "without choices"),
    "choice": (lambda exchange: exchange.event({"choices": ["secret"]}), "choice that is no object"),
    "index": (lambda exchange: exchange.event({"choices": [{"index": 1, "delta": {}}]}), "nobody asked for"),
    "text": (lambda exchange: exchange.event({"choices": [{"delta": {"content": 5}}]}), "no text"),
    "delta": (lambda exchange: exchange.event({"choices": [{"delta": "secret"}]}), "no object"),
    "usage": (lambda exchange: exchange.event({"usage": {"prompt_tokens": -1}}), "no count"),
    "huge usage": (lambda exchange: exchange.event({"usage": {"completion_tokens": 10**30}}), "no count"),
    "reason": (lambda exchange: exchange.event({"choices": [{"finish_reason": 5}]}), "no text"),
    "given up": (lambda exchange: exchange.event({"choices": [{"finish_reason": "abort"}]}), "given up"),
    "huge line": (
        lambda exchange: exchange.raw(b"data: " + b"x" * (openai.MAX_EVENT_BYTES + 1)),
        "without end",
    ),
    "bad chunk": (lambda exchange: exchange._write(b"not a chunk\r\n"), "broke off"),
}


class Breaking:
    """Some of a round's samples break off, after their two tokens have been heard."""

    def __init__(self, fault: str, seeds: range) -> None:
        self._how, self.said = BREAKS[fault]
        self._seeds = seeds
        self._heard = asyncio.Event()
        # Only what is to be waited for is waited for shortly: the machine may be slow.
        self.seconds = 2 if self.said.endswith("seconds") else 100

    async def play(self, exchange: Exchange) -> None:
        if exchange.body["seed"] not in self._seeds:
            await fake.speak(exchange)
            return
        await exchange.token("one\n")
        await exchange.token("two")
        await self._heard.wait()
        result = self._how(exchange)
        if result is not None:
            await result
            await exchange.gone.wait()

    async def round(self, core: Generation, count: int) -> tuple[list[GenerateResponse], Exception | None]:
        """What comes of a round of so many samples, and its error."""
        seeded = begin(count, sampling=Sampling(max_tokens=100, seed=0), stream_text=True)
        responses: list[GenerateResponse] = []
        heard = 0
        try:
            async for response in Call(core, seeded).responses:
                responses.append(response)
                heard += response.delta.text in ("one\n", "two")
                if heard == 2 * len(self._seeds):
                    self._heard.set()
        except Exception as error:
            return responses, error
        return responses, None


@pytest.mark.parametrize("fault", BREAKS)
async def test_a_sample_that_breaks_off_keeps_what_came_and_the_others_go_on(fault: str) -> None:
    breaking = Breaking(fault, range(1, 2))
    async with served(breaking.play, next_token_seconds=breaking.seconds) as (core, server):
        responses, error = await breaking.round(core, 3)
    made, usage = samples(responses), responses[-1].usage
    assert error is None
    assert [one.text for one in made] == [TEXT, "one\ntwo", TEXT]
    reasons = [one.finish_reason for one in made]
    assert reasons == [FINISH_REASON_STOP, FINISH_REASON_ABORTED, FINISH_REASON_STOP]
    assert usage.completion_tokens + usage.aborted_tokens == sum(one.sent for one in server.exchanges)
    assert usage.aborted_tokens == 2
    assert len(server.exchanges) == 3


@pytest.mark.parametrize("fault", BREAKS)
async def test_where_all_samples_break_off_the_round_fails_and_says_what_it_cost(fault: str) -> None:
    breaking = Breaking(fault, range(2))
    with structlog.testing.capture_logs() as logs:
        async with served(breaking.play, next_token_seconds=breaking.seconds) as (core, server):
            responses, error = await breaking.round(core, 2)
    assert isinstance(error, Unavailable)
    assert breaking.said in str(error)
    assert responses[-1].usage.aborted_tokens == 4
    assert responses[-1].usage.prompt_tokens > 0
    assert len(server.exchanges) == 2
    assert "secret" not in str(error) + str(logs)


@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize("stream_text", [False, True])
async def test_a_server_that_does_not_stop_is_cut_and_billed_for_what_was_asked(
    logprobs: bool, stream_text: bool
) -> None:
    async def play(exchange: Exchange) -> None:
        while True:
            await exchange.token("x")

    async with served(play, logprobs=logprobs) as (core, server):
        responses = await Call(core, begin(sampling=Sampling(max_tokens=5), stream_text=stream_text)).rest()
        await until(lambda: server.hung_up)
    (one,) = samples(responses)
    assert one.finish_reason == FINISH_REASON_LENGTH
    assert responses[-1].usage.completion_tokens == one.tokens == 5
    assert len(one.text) <= 5 * (1 if logprobs else chunks.CHUNKS_A_TOKEN)


async def test_a_text_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "MAX_TEXT_BYTES", 1000)

    async def play(exchange: Exchange) -> None:
        while True:
            await exchange.token("é" * 10)

    async with served(play) as (core, server):
        (one,), _ = await generate(core, begin(sampling=Sampling()))
        await until(lambda: server.hung_up)
    assert (one.finish_reason, len(one.text.encode())) == (FINISH_REASON_LENGTH, 1000)


@pytest.mark.parametrize("tail", [stalls, lambda exchange: None, lambda exchange: exchange.event("{garbage")])
async def test_what_goes_wrong_after_the_end_of_a_sample_does_not_matter(
    tail: Callable[[Exchange], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai, "TAIL_SECONDS", 0.05)

    async def play(exchange: Exchange) -> None:
        await exchange.token("408")
        await exchange.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        if (result := tail(exchange)) is not None:
            await result
            await exchange.gone.wait()

    async with served(play) as (core, _):
        (one,), usage = await generate(core, begin())
    assert (one.text, one.finish_reason) == ("408", FINISH_REASON_STOP)
    assert (usage.completion_tokens, usage.unseen_tokens) == (1, 0)


async def test_halves_of_characters_are_no_text() -> None:
    async def play(exchange: Exchange) -> None:
        exchange.sent += 1
        await exchange.event('{"choices": [{"delta": {"content": "a\\ud835b"}}]}')
        await exchange.finish()

    async with served(play) as (core, _):
        (one,), _ = await generate(core, begin())
    assert one.text == "a�b"


# Refused for now.


async def test_a_rate_limit_is_waited_for_by_the_whole_pool() -> None:
    """The first answer of all says so; nobody else asks until then."""
    refused_at = 0.0

    async def play(exchange: Exchange) -> None:
        nonlocal refused_at
        loop = asyncio.get_running_loop()
        if exchange.number == 0:
            refused_at = loop.time()
            await exchange.refuse(429, {"error": {"message": "slow down"}}, Retry_After="0.3")
            return
        # Never too early by the loop's own clock, however slow the machine is.
        assert loop.time() >= refused_at + 0.3
        await fake.speak(exchange)

    async with served(play, parallel=1) as (core, server):
        made, usage = await generate(core, begin(5))
    assert [one.text for one in made] == [TEXT] * 5
    assert len(server.exchanges) == 6
    assert usage.completion_tokens == 5 * len(WORDS)


@pytest.mark.parametrize("form", ["seconds", "date"])
@pytest.mark.parametrize("status", [429, 503])
async def test_a_rate_limit_that_is_too_long_fails_at_once_and_says_when_to_retry(
    form: str, status: int
) -> None:
    after = "3600" if form == "seconds" else email.utils.formatdate(time.time() + 3600, usegmt=True)

    async def play(exchange: Exchange) -> None:
        await exchange.refuse(status, {"error": "slow down"}, Retry_After=after)

    async with served(play, parallel=2) as (core, server):
        error, usage = await fails(core, begin(6))
        asked = len(server.exchanges)
        again, _ = await fails(core, begin(6))
    for one in (error, again):
        assert isinstance(one, Unavailable)
        assert 3000 < one.retry_after <= 3600
        assert "takes no more requests for now" in str(one)
    assert asked <= 2
    # The pool knows: nobody has asked since.
    assert len(server.exchanges) == asked
    assert usage.prompt_tokens == usage.unseen_tokens == 0


@pytest.mark.parametrize(
    "headers", [{}, {"Retry_After": "soon"}, {"Retry_After": "0"}, {"Retry_After": "-5"}]
)
async def test_a_rate_limit_without_a_time_is_waited_for_in_growing_pauses(headers: dict[str, str]) -> None:
    play = failing(3, lambda exchange: exchange.refuse(429, {"error": {"message": "slow"}}, **headers))
    async with served(play) as (core, server):
        (one,), _ = await generate(core, begin())
    assert one.text == TEXT
    assert len(server.exchanges) == 4


async def test_a_server_that_refuses_for_ever_is_given_up() -> None:
    play = failing(10**6, lambda exchange: exchange.refuse(429, b"", Retry_After="0.01"))
    async with served(play, max_wait_seconds=0.05) as (core, server):
        error, _ = await fails(core, begin())
    assert isinstance(error, Unavailable)
    assert 2 <= len(server.exchanges) <= 6


async def test_an_abort_ends_the_wait_for_a_rate_limit() -> None:
    play = failing(10**6, lambda exchange: exchange.refuse(429, b"", Retry_After="3000"))
    async with served(play, max_wait_seconds=4000) as (core, server):
        call = Call(core, begin(3))
        reading = asyncio.ensure_future(call.rest())
        await until(lambda: server.exchanges)
        call.abort()
        responses = await reading
    assert [one.finish_reason for one in samples(responses)] == [FINISH_REASON_ABORTED] * 3
    assert responses[-1].usage.unseen_tokens == 0


# Refused for good.


REFUSALS = [
    (401, {"error": {"message": "no"}}, Unavailable, r"refuses the key \(401\): check key_env or key_file"),
    (403, {"detail": "no"}, Unavailable, r"refuses the key \(403\)"),
    (404, {"error": {"message": "secret"}}, Unavailable, "has no model 'org/strict-1b' there"),
    (402, b"", Unavailable, "paid"),
    (429, {"error": {"message": "secret", "code": "insufficient_quota"}}, Unavailable, "no quota left"),
    (301, b"", Unavailable, "status 301: check base_url"),
    (418, b"secret", Unavailable, "status 418"),
    (
        400,
        {"error": {"message": "maximum context length is 5 tokens"}},
        InvalidArgument,
        "messages: .*length is 5",
    ),
    (
        400,
        {"error": {"code": 400, "type": "exceed_context_size_error", "message": "x"}},
        InvalidArgument,
        "messages",
    ),
    (400, {"error": {"code": "context_length_exceeded", "message": "x"}}, InvalidArgument, "messages: "),
    (413, b"", InvalidArgument, "messages: "),
    (400, {"error": {"message": "top_k is not known"}}, InvalidArgument, "sampling: .*top_k is not known"),
    (422, {"detail": [{"loc": ["body", "seed"], "msg": "bad"}]}, InvalidArgument, "sampling: .*seed"),
    (400, {"error": "bare"}, InvalidArgument, "bare"),
    (400, {"object": "error", "message": "older vLLM"}, InvalidArgument, "older vLLM"),
    (400, b"\xff" * 100_000, InvalidArgument, "sampling"),
    (400, b"[" * 100_000, InvalidArgument, "sampling"),
]


@pytest.mark.parametrize(("status", "body", "kind", "said"), REFUSALS)
async def test_each_refusal_is_an_error_of_its_kind(status: int, body: Any, kind: type, said: str) -> None:
    with structlog.testing.capture_logs() as logs:
        async with served(failing(10**6, lambda exchange: exchange.refuse(status, body))) as (core, server):
            error, usage = await fails(core, begin(2))
    assert type(error) is kind
    with pytest.raises(kind, match=said):
        raise error
    assert len(server.exchanges) <= 2
    assert len(str(error)) < 500
    assert usage.prompt_tokens == usage.completion_tokens == usage.aborted_tokens == 0
    assert "secret" not in str(error) + str(logs)


async def test_an_answer_that_is_no_stream_is_a_wrong_address() -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.begin("text/html")
        await exchange.raw(b"<html>")
        await exchange.end()

    async with served(play) as (core, _):
        error, _ = await fails(core, begin())
    assert isinstance(error, Unavailable)
    assert "without a stream of events: check base_url" in str(error)


async def test_a_field_that_the_server_does_not_have_is_named() -> None:
    async with fake.serving() as server, backend_of(server, extra={"tok_k": 5}) as backend:
        error, _ = await fails(make_core(backend), begin())
        assert server.faults == ["unknown field tok_k"]
        server.faults.clear()
    assert isinstance(error, InvalidArgument)
    assert "unknown field tok_k" in str(error)


# Keys.


async def test_a_key_is_read_again_when_its_file_changes(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-old\n")
    async with served(folder=tmp_path, key_file="key") as (core, _):
        error, _ = await fails(core, begin())
        assert isinstance(error, Unavailable)
        (tmp_path / "key").write_text(f"{KEY}\n")
        (one,), _ = await generate(core, begin())
    assert one.text == TEXT


async def test_no_key_is_sent_where_none_is_given() -> None:
    async with fake.serving(key="") as server, backend_of(server, key_env="") as backend:
        (one,), _ = await generate(make_core(backend), begin())
    assert one.text == TEXT


async def test_a_key_that_a_server_repeats_is_hidden() -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.refuse(400, {"error": {"message": f"your key {KEY} is fine, your request is not"}})

    with structlog.testing.capture_logs() as logs:
        async with fake.serving(play) as server, backend_of(server) as backend:
            error, _ = await fails(make_core(backend), begin())
            shown = [repr(one) for one in (backend._key, backend._entry, backend._client, backend.model)]
    assert "your key [key] is fine" in str(error)
    assert KEY not in json.dumps([str(error), *shown, str(logs)])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"key_env": "NO_SUCH_KEY"}, "model strict: environment variable NO_SUCH_KEY: there is no key"),
        ({"key_file": "none"}, "model strict: key file .*none: No such file"),
        ({"api": "completions", "chat_template": "{% if %}"}, "model strict: chat template"),
    ],
)
async def test_what_is_wrong_with_an_entry_is_said_at_the_start(
    fields: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(CatalogError, match=said):
        async with served(folder=tmp_path, **fields):
            pass


async def test_system_and_assistant_turns_are_passed_on() -> None:
    turns = [("system", "be brief"), ("user", "1+1"), ("assistant", "2"), ("user", "and 1?")]
    async with served() as (core, server):
        await generate(core, begin(messages=[Message(role=role, content=said) for role, said in turns]))
    assert [(turn["role"], turn["content"]) for turn in server.exchanges[0].body["messages"]] == turns


async def test_a_branch_with_turns_of_its_own_is_another_conversation() -> None:
    turns = [Message(role="assistant", content="2"), Message(role="user", content="sure?")]
    async with served() as (core, server):
        await generate(core, begin(branches=[Branch(samples=1), Branch(samples=1, turns=turns)]))
    asked = sorted([m["content"] for m in exchange.body["messages"]] for exchange in server.exchanges)
    question = QUESTION[0].content
    assert asked == sorted([[question], [question, "2", "sure?"]])
