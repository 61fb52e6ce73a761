"""A reward model on the real CPU Triton: the embedded scores, and each fault where it belongs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from isoflop.errors import Unavailable
from isoflop.v1.common_pb2 import Message
from isoflop.v1.verification_pb2 import Chain, ScoreRequest, ScoreResponse
from prometheus_client import CollectorRegistry

from services.verification.backends import Backend
from services.verification.backends.onnx import OnnxBackend
from services.verification.backends.triton import TritonBackend
from services.verification.catalog import OnnxEntry, TritonEntry
from services.verification.core import Verification
from services.verification.settings import VerificationSettings
from tests.cluster.triton_server import ROOT, TritonServer, TritonServerError
from tests.services.verification.tiny_verifier import (
    CONTEXT,
    NAN,
    POISON,
    SHAPE,
    TEMPLATE,
    expected,
    write_verifier,
)

pytestmark = pytest.mark.cluster

PROMPT = "17+4"

ODD = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        steps = pb_utils.get_input_tensor_by_name(request, "steps").as_numpy()
        text = b"".join(steps).decode()
        if "error" in text:
            error = pb_utils.TritonError("not to my liking\\\\nat all", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        scores = np.full(len(steps), 0.5, np.float32)
        if "short" in text:
            scores = scores[1:]
        if "flat" in text:
            scores = scores[None]
        if "infinite" in text:
            scores[-1] = np.inf
        tokens = np.array([-1 if "negative" in text else 7], np.int32)
        outputs = [pb_utils.Tensor("scores", scores), pb_utils.Tensor("tokens", tokens)]
        return pb_utils.InferenceResponse(outputs[:1] if "untold" in text else outputs)
"""
"""A model that does what its steps ask for."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("triton-verifier")
    write_verifier(made / "tiny-prm")
    odd = made / "odd"
    (odd / "1").mkdir(parents=True)
    (odd / "1" / "model.py").write_text(ODD)
    template = ROOT / "docker" / "triton" / "models" / "onnx" / "config.pbtxt"
    (odd / "config.pbtxt").write_text(template.read_text())
    return made


@pytest.fixture(scope="module")
def triton(folder: Path) -> Iterator[TritonServer]:
    try:
        with TritonServer([folder / "tiny-prm"], folder, [folder / "odd"]) as server:
            yield server
    except TritonServerError as error:
        pytest.fail(str(error), pytrace=False)


def verifier(address: str, model: str = "tiny_prm", **fields: Any) -> TritonBackend:
    entry = {
        "address": address,
        "model": model,
        "shape": SHAPE,
        "context": CONTEXT,
        "chat_template": TEMPLATE,
    }
    return TritonBackend(
        TritonEntry.model_validate({"name": "prm", "backend": "triton", **entry, **fields}), "USD"
    )


@pytest.fixture
async def prm(triton: TritonServer) -> AsyncIterator[TritonBackend]:
    backend = verifier(triton.grpc_address)
    yield backend
    await backend.close()


@pytest.fixture
async def odd(triton: TritonServer) -> AsyncIterator[TritonBackend]:
    backend = verifier(triton.grpc_address, "odd")
    yield backend
    await backend.close()


async def ask(backend: Backend, *texts: str) -> ScoreResponse:
    core = Verification(VerificationSettings(), [backend], CollectorRegistry())
    chains = [Chain(id=str(number), text=text) for number, text in enumerate(texts)]
    messages = [Message(role="user", content=PROMPT)]
    return await core.score(ScoreRequest(verifier="prm", messages=messages, chains=chains))


TEXTS = ["17+4=21\n\n21 it is\r\nanswer: 21", "no", "é𝄞\n" * 20, "one step\n"]


async def test_its_scores_tokens_and_flops_are_those_of_the_embedded_one(
    prm: TritonBackend, folder: Path
) -> None:
    entry = OnnxEntry(name="prm", backend="onnx", path=Path("tiny-prm"))
    embedded = OnnxBackend(entry, folder, "USD")
    here, there = await ask(embedded, *TEXTS), await ask(prm, *TEXTS)
    for one, other in zip(here.scores, there.scores, strict=True):
        assert list(one.steps) == pytest.approx(list(other.steps), abs=1e-5)
        assert one.error == other.error == ""
    assert (here.tokens, here.flops) == (there.tokens, pytest.approx(there.flops))
    assert list(there.scores[1].steps) == pytest.approx(expected(PROMPT, ["no"]), abs=1e-5)
    await embedded.close()


async def test_many_requests_at_once_get_their_own_scores(prm: TritonBackend) -> None:
    texts = [f"{number}\nand {number * number}" for number in range(30)]
    responses = await asyncio.gather(*(ask(prm, text, "no") for text in texts))
    for text, response in zip(texts, responses, strict=True):
        steps = text.splitlines(keepends=True)
        assert list(response.scores[0].steps) == pytest.approx(expected(PROMPT, steps), abs=1e-5)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (f"one\ntwo {NAN}", "score of step 2 is nan"),
        (f"one {POISON}", "the model failed on it"),
        ("x" * CONTEXT, f"and {CONTEXT} can be read"),
        ("x" * (1 << 20), f"longer than {CONTEXT} tokens"),
    ],
    ids=["nan", "ill", "long", "1 MB"],
)
async def test_a_chain_that_cannot_be_scored_says_why_and_the_others_are_scored(
    prm: TritonBackend, bad: str, said: str
) -> None:
    response = await ask(prm, "good\n", bad, "fine")
    assert said in response.scores[1].error
    assert [len(one.steps) for one in response.scores] == [1, 0, 1]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("error", "Triton's model 'odd' refuses it: not to my liking"),
        ("short", "scores is float32 [0], and should be float32 [1]"),
        ("flat", "scores is float32 [1, 1], and should be float32 [1]"),
        ("infinite", "score of step 1 is inf"),
        ("negative", "tokens is -1"),
        ("untold", "tokens"),
    ],
)
async def test_an_answer_that_breaks_the_contract_is_an_error_of_its_chain(
    odd: TritonBackend, bad: str, said: str
) -> None:
    response = await ask(odd, "good", bad, "fine")
    assert said in response.scores[1].error
    assert "\n" not in response.scores[1].error
    assert [list(one.steps) for one in response.scores] == [[0.5], [], [0.5]]


async def test_a_model_that_is_not_there_and_a_server_that_is_gone_are_unavailable(
    triton: TritonServer,
) -> None:
    for backend, said in (
        (verifier(triton.grpc_address, "nobody"), "does not serve 'nobody'"),
        (verifier("127.0.0.1:1"), "Triton at 127.0.0.1:1 does not answer"),
    ):
        with pytest.raises(Unavailable, match=said):
            await ask(backend, "one", "two")
        await backend.close()


async def test_a_server_that_dies_meanwhile_is_unavailable(folder: Path, triton: TritonServer) -> None:
    # The last test here: nobody needs this server any more.
    backend = verifier(triton.grpc_address)
    assert (await ask(backend, "one")).scores[0].steps
    triton.kill()
    with pytest.raises(Unavailable, match="does not answer"):
        await ask(backend, "one")
    await backend.close()
