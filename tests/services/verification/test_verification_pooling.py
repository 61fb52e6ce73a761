"""A reward model behind vLLM's endpoints: what is asked, what is taken, and what each fault is of."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from asking import PROMPT, ask
from isoflop.errors import Unavailable
from isoflop.v1.verification_pb2 import CHAIN_SCORING_MEAN, CHAIN_SCORING_MIN
from pydantic import ValidationError
from vllm_server import HANGS_UP, KEY, MODEL, SEPARATOR, VllmServer, error, right, tokens, vllm

from services.common.catalog import CatalogError
from services.common.flops import attended
from services.verification.backends.pooling import PoolingBackend
from services.verification.catalog import PoolingEntry

START = f"<user>{PROMPT}<assistant>"


@pytest.fixture
async def server() -> AsyncIterator[VllmServer]:
    async with vllm() as made:
        yield made


@pytest.fixture
async def prm(server: VllmServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PoolingBackend]:
    monkeypatch.setenv("TEST_KEY", KEY)
    backend = open_prm(server.address)
    yield backend
    await backend.close()


def open_prm(address: str, **fields: Any) -> PoolingBackend:
    entry = {
        "name": "prm",
        "backend": "pooling",
        "base_url": address,
        "model": MODEL,
        "step_separator": SEPARATOR,
        "chat_template": "<user>{{ messages[-1].content }}<assistant>",
        "shape": {"active_parameters": 1000, "layers": 2, "heads": 3, "head_size": 4},
        "context": 512,
        "key_env": "TEST_KEY",
        **fields,
    }
    return PoolingBackend(PoolingEntry.model_validate(entry), Path(), "USD")


async def test_each_step_is_followed_by_the_separator_and_has_the_chance_of_its_being_right(
    server: VllmServer, prm: PoolingBackend
) -> None:
    response = await ask(prm, "one\n\ntwo\r\n", "three")
    texts = [f"{START}one{SEPARATOR}two{SEPARATOR}", f"{START}three{SEPARATOR}"]
    assert sorted(body["input"] for body in server.asked) == sorted(texts)
    assert [one.error for one in response.scores] == ["", ""]
    first = [right(f"{START}one{SEPARATOR}"), right(texts[0])]
    assert [list(one.steps) for one in response.scores] == [first, [right(texts[1])]]
    counts = [tokens(text) for text in texts]
    assert response.tokens == sum(counts)
    assert response.flops == sum(2000.0 * count + 96.0 * attended(1, count) for count in counts)


async def test_a_model_of_whole_texts_is_asked_for_a_class(server: VllmServer, prm: PoolingBackend) -> None:
    whole = open_prm(server.address, task="sequence", step_separator="")
    response = await ask(whole, "one\ntwo")
    assert list(response.scores[0].steps) == [right(f"{START}one\ntwo")]
    verifier = await whole.describe()
    assert (verifier.whole, verifier.scoring) == (True, CHAIN_SCORING_MEAN)
    await whole.close()


async def test_it_is_described_by_its_entry(prm: PoolingBackend) -> None:
    verifier = await prm.describe()
    assert (verifier.name, verifier.backend, verifier.context) == ("prm", "pooling", 512)
    assert (verifier.whole, verifier.scoring) == (False, CHAIN_SCORING_MIN)
    assert verifier.shape.active_parameters == 1000


USAGE = {"prompt_tokens": 9}


def data(*rows: Any) -> dict[str, Any]:
    return {"data": [{"index": 0, "data": list(rows)}], "usage": USAGE}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((200, data()), "gave 0 values for 1 steps"),
        ((200, data([0.5, 0.5], [0.5, 0.5])), "gave 2 values for 1 steps: does vLLM pool by step?"),
        ((200, data([0.5, math.nan])), "score of step 1 is nan"),
        ((200, data([0.5, 1.5])), "score of step 1 is 1.5"),
        ((200, data([0.5, None])), "not of vLLM's form"),
        ((200, data([])), "not of vLLM's form"),
        ((200, data(0.5)), "not of vLLM's form"),
        ((200, data([0.5, True])), "not of vLLM's form"),
        ((200, {"data": [], "usage": USAGE}), "not of vLLM's form"),
        ((200, {"data": [{"data": [[0.5, 0.5]]}], "usage": {}}), "not of vLLM's form"),
        ((200, {"data": [{"data": [[0.5, 0.5]]}], "usage": {"prompt_tokens": -1}}), "not of vLLM's form"),
        ((200, {"data": [{"data": [[0.5, 0.5]]}]}), "not of vLLM's form"),
        ((200, []), "not of vLLM's form"),
        ((200, b"<html>"), "not of vLLM's form"),
        (error(400, f"maximum context length is 8 tokens\n({KEY})"), r"context length is 8 tokens (\[key\])"),
        ((413, b""), "prm refuses it: no reason given"),
        ((422, [1]), "prm refuses it: no reason given"),
    ],
)
async def test_a_fault_is_of_its_own_chain(
    server: VllmServer, prm: PoolingBackend, answer: Any, said: str
) -> None:
    server.script = lambda body: answer if "bad" in body["input"] else None
    response = await ask(prm, "good", "bad", "fine")
    assert said.replace("\\", "") in response.scores[1].error
    assert [len(one.steps) for one in response.scores] == [1, 0, 1]


async def test_a_text_with_the_separator_is_not_sent(server: VllmServer, prm: PoolingBackend) -> None:
    response = await ask(prm, f"one{SEPARATOR}\ntwo", "fine")
    assert "its text holds <extra_0>" in response.scores[0].error
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((503, {"error": {"message": "loading"}}), "answers 503: loading"),
        ((429, b""), "answers 429: no reason given"),
        ((500, {"error": {"message": f"broken {KEY}"}}), r"answers 500: broken \[key\]"),
        ((404, {"detail": "Not Found"}), "answers 404"),
        ((302, b""), "answers 302"),
    ],
)
async def test_a_server_that_does_not_serve_is_unavailable(
    server: VllmServer, prm: PoolingBackend, answer: Any, said: str
) -> None:
    server.script = lambda body: answer
    with pytest.raises(Unavailable, match=said) as raised:
        await ask(prm, "one", "two")
    assert raised.value.retry_after == (7.0 if answer[0] == 503 else 1.0)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((503, {"error": {"message": "loading"}}), "answers 503: loading"),
        ((500, {"error": {"message": f"broken {KEY}"}}), "answers 500: broken [key]"),
        (HANGS_UP, "does not answer (RemoteProtocolError)"),
    ],
)
async def test_what_a_server_fails_on_alone_is_an_error_of_its_chain(
    server: VllmServer, prm: PoolingBackend, answer: Any, said: str
) -> None:
    server.script = lambda body: answer if "bad" in body["input"] else None
    response = await ask(prm, "good", "bad", "fine")
    assert said in response.scores[1].error
    assert [len(one.steps) for one in response.scores] == [1, 0, 1]
    assert response.tokens == tokens(f"{START}good{SEPARATOR}{START}fine{SEPARATOR}")


async def test_what_a_server_is_too_slow_with_is_an_error_of_its_chain(
    server: VllmServer, prm: PoolingBackend
) -> None:
    slow = open_prm(server.address, timeout_seconds=0.5)
    server.hold, server.held = asyncio.Event(), b"bad"
    response = await ask(slow, "good", "bad", "fine")
    assert "did not score within 0.5 seconds" in response.scores[1].error
    assert [len(one.steps) for one in response.scores] == [1, 0, 1]
    await slow.close()


async def test_a_wrong_key_and_an_unknown_model_are_said(
    server: VllmServer, prm: PoolingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = open_prm(server.address, model="org/other")
    with pytest.raises(Unavailable, match="org/other` does not exist"):
        await ask(other, "one")
    monkeypatch.setenv("TEST_KEY", "another-key")
    stranger = open_prm(server.address)
    with pytest.raises(Unavailable, match="answers 401"):
        await ask(stranger, "one")
    for backend in (other, stranger):
        await backend.close()


async def test_nobody_there_and_nobody_answering_is_unavailable(
    server: VllmServer, prm: PoolingBackend
) -> None:
    gone = open_prm("http://127.0.0.1:1")
    with pytest.raises(Unavailable, match=r"does not answer \(ConnectError\)"):
        await ask(gone, "one")
    server.hold = asyncio.Event()
    slow = open_prm(server.address, timeout_seconds=0.05)
    with pytest.raises(Unavailable, match=r"did not score within 0\.05 seconds"):
        await ask(slow, "one")
    for backend in (gone, slow):
        await backend.close()


async def test_who_leaves_closes_the_connection(server: VllmServer, prm: PoolingBackend) -> None:
    server.hold = asyncio.Event()
    asking = asyncio.create_task(ask(prm, "one"))
    await server.waiting.wait()
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking
    await server.gone.wait()


def test_a_missing_key_is_said_at_the_start() -> None:
    with pytest.raises(CatalogError, match="verifier prm: environment variable NO_SUCH_KEY: there is no key"):
        open_prm("http://127.0.0.1:1", key_env="NO_SUCH_KEY")


@pytest.mark.parametrize("fields", [{"step_separator": ""}, {"task": "sequence"}])
def test_steps_need_a_separator_and_whole_texts_have_none(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="step_separator goes with task steps"):
        open_prm("http://127.0.0.1:1", key_env="", **fields)
