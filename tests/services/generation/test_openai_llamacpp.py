"""The OpenAI backend against llama.cpp's own HTTP server, and beside the embedded llama.cpp.

Our models are trained again now and then, so no test says what an answer is, or how many tokens it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from isoflop.errors import InvalidArgument
from isoflop.v1.common_pb2 import (
    FINISH_REASON_ABORTED,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STEP,
    FINISH_REASON_STOP,
    Message,
    Sample,
    Sampling,
)
from isoflop.v1.generation_pb2 import Branch, StartRound
from scripted_backend import Call, generate, make_core, samples, start

from services.generation.backends.llamacpp import Header, LlamaCppBackend
from services.generation.backends.openai import OpenAIBackend
from services.generation.catalog import OpenAIEntry
from services.generation.core import Generation

QUESTIONS = ["17*24+13", "3+4*5", "99-12", "(2+3)*(4+5)"]
SLOTS, CONTEXT = 4, 512


@contextmanager
def llama_server(path: Path, context: int) -> Iterator[str]:
    """llama.cpp's server on a free port; its address."""
    xllamacpp = pytest.importorskip("xllamacpp")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_parallel = SLOTS
    parameters.n_ctx = context * SLOTS
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    # As the embedded one has it: the same text for the same seed.
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.cache_ram_mib = 0
    parameters.warmup = False
    parameters.verbosity = -1
    parameters.hostnames = ["127.0.0.1"]
    server = xllamacpp.Server(parameters)
    # Freed before its loop runs, it would wait for the loop's end for ever: let it answer once.
    server.handle_completions({"prompt": "", "n_predict": 0}, lambda answer: False)
    yield server.listening_address


@pytest.fixture(scope="module")
def abacus_url(files: Path) -> Iterator[str]:
    with llama_server(files / "abacus.gguf", CONTEXT) as url:
        yield url


@pytest.fixture(scope="module")
def random_url(files: Path) -> Iterator[str]:
    """Of the model that never ends by itself."""
    with llama_server(files / "random.gguf", 2048) as url:
        yield url


Open = Callable[..., Awaitable[Generation]]


@pytest.fixture
async def pool(files: Path) -> AsyncIterator[Open]:
    """Opens a model `pool` on a server, closed in the end."""
    backends: list[OpenAIBackend] = []

    async def open_pool(url: str, api: str = "chat", **fields: Any) -> Generation:
        if api == "completions":
            fields["chat_template"] = Header.read(files / "abacus.gguf").chat_template
        entry = OpenAIEntry.model_validate(
            {
                "name": "pool",
                "backend": "openai",
                "base_url": f"{url}/v1",
                "shape": {"active_parameters": 1e5},
                "api": api,
                "logprobs": True,
                # The model's own distribution, as the embedded one samples from it.
                "extra": {"top_k": 0, "min_p": 0.0},
                **fields,
            }
        )
        backends.append(OpenAIBackend(entry, files, "USD"))
        return make_core(backends[-1])

    yield open_pool
    for backend in backends:
        await backend.close()


def begin(
    model: str, question: str = QUESTIONS[0], count: int = 1, prefix: str = "", **fields: Any
) -> StartRound:
    stream_text = fields.pop("stream_text", False)
    return start(
        model,
        messages=[Message(role="user", content=question)],
        branches=[Branch(samples=count, prefix=prefix)],
        sampling=Sampling(**fields),
        stream_text=stream_text,
    )


async def sample(core: Generation, model: str, question: str = QUESTIONS[0], **fields: Any) -> Sample:
    made, _ = await generate(core, begin(model, question, **fields))
    return made[0]


async def idle(url: str) -> None:
    """Return when no slot of the server works."""
    async with httpx.AsyncClient() as client, asyncio.timeout(30):
        while any(slot["is_processing"] for slot in (await client.get(f"{url}/slots")).json()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("api", ["chat", "completions"])
async def test_greedy_text_is_the_embedded_models(
    api: str, abacus: LlamaCppBackend, abacus_url: str, pool: Open
) -> None:
    embedded, remote = make_core(abacus), await pool(abacus_url, api)
    for question in QUESTIONS:
        here = await sample(embedded, "abacus", question, max_tokens=200)
        there = await sample(remote, "pool", question, max_tokens=200)
        assert there.text
        assert (there.text, there.tokens, there.finish_reason) == (here.text, here.tokens, here.finish_reason)
        assert [step.end for step in there.steps] == [step.end for step in here.steps]
        assert there.logprob == pytest.approx(here.logprob, abs=0.05)
        for one, other in zip(there.steps, here.steps, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=0.05)


@pytest.mark.parametrize("api", ["chat", "completions"])
async def test_a_prefix_is_continued(api: str, abacus_url: str, pool: Open) -> None:
    core = await pool(abacus_url, api, **({"continues": "last_message"} if api == "chat" else {}))
    whole = await sample(core, "pool", max_tokens=200)
    prefix = whole.text[: whole.steps[0].end]
    rest = await sample(core, "pool", prefix=prefix, max_tokens=200)
    assert prefix + rest.text == whole.text


@pytest.mark.parametrize("api", ["chat", "completions"])
async def test_a_chain_made_step_by_step_is_the_one_that_is_made_at_once(
    api: str, abacus_url: str, pool: Open
) -> None:
    continues = {"continues": "last_message"} if api == "chat" else {}
    extra = {"top_k": 0, "min_p": 0.0, "timings_per_token": True}
    core = await pool(abacus_url, api, extra=extra, **continues)
    full = await sample(core, "pool", max_tokens=200)
    text, tokens, reasons = "", 0, []
    while not reasons or reasons[-1] == FINISH_REASON_STEP:
        (step,), usage = await generate(core, begin("pool", prefix=text, max_tokens=200, one_step=True))
        assert usage.prompt_tokens + usage.cached_tokens > 0
        text, tokens = text + step.text, tokens + step.tokens
        reasons.append(step.finish_reason)
    assert text == full.text
    assert tokens == full.tokens, "no token of our models reaches over a line end"
    assert len(reasons) == len(full.steps) > 1
    assert reasons[-1] == FINISH_REASON_STOP
    await idle(abacus_url)


async def test_a_seed_gives_the_same_text_to_a_sample_that_runs_alone(abacus_url: str, pool: Open) -> None:
    core = await pool(abacus_url)
    for seed in (0, 7, 2**40, -1):
        hot = {"temperature": 1.5, "seed": seed, "max_tokens": 60}
        assert (await sample(core, "pool", **hot)).text == (await sample(core, "pool", **hot)).text


async def test_samples_of_a_round_have_seeds_of_their_own(random_url: str, pool: Open) -> None:
    core = await pool(random_url)
    made, _ = await generate(core, begin("pool", count=4, temperature=1.0, seed=3, max_tokens=40))
    assert len({one.text for one in made}) == 4
    assert [one.finish_reason for one in made] == [FINISH_REASON_LENGTH] * 4


@pytest.mark.parametrize("options", [True, False])
async def test_the_bill_is_the_embedded_models(
    options: bool, abacus: LlamaCppBackend, abacus_url: str, pool: Open
) -> None:
    """Also where the server is not asked for its usage: its timings say it."""
    extra = {"top_k": 0, "min_p": 0.0} | ({} if options else {"stream_options": None})
    embedded, remote = make_core(abacus), await pool(abacus_url, extra=extra, logprobs=False)
    _, here = await generate(embedded, begin("abacus", max_tokens=200))
    _, there = await generate(remote, begin("pool", max_tokens=200))
    assert there.completion_tokens == here.completion_tokens
    assert there.prompt_tokens + there.cached_tokens == here.prompt_tokens + here.cached_tokens


async def test_a_prompt_that_is_cached_is_billed_as_such(abacus_url: str, pool: Open) -> None:
    core = await pool(abacus_url)
    _, first = await generate(core, begin("pool", "1+2+3+4+5+6+7", max_tokens=5))
    _, again = await generate(core, begin("pool", "1+2+3+4+5+6+7", max_tokens=5))
    assert again.cached_tokens > 0
    assert again.cached_tokens + again.prompt_tokens == first.cached_tokens + first.prompt_tokens


async def test_an_abort_reaches_the_server_and_frees_its_slot(random_url: str, pool: Open) -> None:
    core = await pool(random_url, extra={"timings_per_token": True})
    call = Call(core, begin("pool", count=SLOTS, temperature=1.0, max_tokens=2000, stream_text=True))
    begun: set[str] = set()
    while len(begun) < SLOTS:
        begun.add((await call.next()).delta.sample_id)
    call.abort()
    responses = await call.rest()
    made, usage = samples(responses), responses[-1].usage
    assert [one.finish_reason for one in made] == [FINISH_REASON_ABORTED] * SLOTS
    assert all(0 < one.tokens < 2000 for one in made)
    assert usage.aborted_tokens == sum(one.tokens for one in made)
    # Told with each token: known also where a sample does not end.
    assert usage.prompt_tokens + usage.cached_tokens > 0
    await idle(random_url)


async def test_one_of_several_samples_can_be_aborted(random_url: str, pool: Open) -> None:
    core = await pool(random_url)
    call = Call(core, begin("pool", count=2, temperature=1.0, max_tokens=300, stream_text=True))
    while (await call.next()).delta.sample_id != "pool/1":
        pass
    call.abort("pool/1")
    kept, aborted = samples(await call.rest())
    assert aborted.finish_reason == FINISH_REASON_ABORTED
    assert (kept.finish_reason, kept.tokens) == (FINISH_REASON_LENGTH, 300)
    await idle(random_url)


async def test_a_caller_that_goes_frees_the_slots(random_url: str, pool: Open) -> None:
    core = await pool(random_url)
    call = Call(core, begin("pool", count=8, temperature=1.0, max_tokens=2000, stream_text=True))
    await call.next()
    await call.close()
    await idle(random_url)


async def test_eight_rounds_at_a_time(abacus: LlamaCppBackend, abacus_url: str, pool: Open) -> None:
    core = await pool(abacus_url)
    rounds = [
        begin("pool", QUESTIONS[number % len(QUESTIONS)], 4, temperature=0.8, seed=number, max_tokens=64)
        for number in range(8)
    ]
    ended = await asyncio.gather(*(generate(core, one) for one in rounds))
    for made, usage in ended:
        assert len(made) == 4
        assert all(0 < one.tokens <= 64 for one in made)
        assert usage.completion_tokens == sum(one.tokens for one in made)
        assert usage.prompt_tokens + usage.cached_tokens > 0
    await idle(abacus_url)


@pytest.mark.parametrize("api", ["chat", "completions"])
async def test_a_conversation_that_is_too_long_is_the_callers_fault(
    api: str, abacus_url: str, pool: Open
) -> None:
    core = await pool(abacus_url, api)
    with pytest.raises(InvalidArgument, match="messages: too long for pool") as caught:
        await generate(core, begin("pool", "1+" * 2000 + "1", max_tokens=5))
    assert caught.value.field == "messages"


async def test_a_stop_text_ends_a_sample(abacus_url: str, pool: Open) -> None:
    core = await pool(abacus_url)
    whole = await sample(core, "pool", max_tokens=200)
    stop = whole.text[3:5]
    short = await sample(core, "pool", max_tokens=200, stop=[stop])
    assert short.text == whole.text[: whole.text.index(stop)]
    assert short.HasField("logprob")
