"""The catalogue of verifiers: what is right is read, and what is wrong is one sentence that says where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from isoflop.v1.verification_pb2 import CHAIN_SCORING_LAST, CHAIN_SCORING_MEAN, CHAIN_SCORING_MIN
from tiny_verifier import write_verifier

from services.common.catalog import CatalogError
from services.common.settings import MODELS
from services.verification.catalog import (
    CriticEntry,
    LogprobEntry,
    OnnxEntry,
    PoolingEntry,
    TritonEntry,
    load,
)
from services.verification.engines import open_backends

Write = Callable[[str], Path]

SHAPE = "shape: {active_parameters: 7.1e9}"
PRM = f"name: prm, backend: triton, address: 'triton:8001', {SHAPE}"
POOLING = f"name: qwen, backend: pooling, base_url: 'http://vllm:8000', step_separator: '<s>', {SHAPE}"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def made(text: str) -> Path:
        path = tmp_path / "verifiers.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return made


def entry(text: str) -> str:
    return f"verifiers: [{{{text}}}]"


async def test_every_kind_is_opened_by_its_entry(tmp_path: Path, write: Write) -> None:
    write_verifier(tmp_path / "tiny")
    path = write(
        f"""
        currency: EUR
        verifiers:
          - {{name: logprob, backend: logprob, scoring: last}}
          - {{name: tiny, backend: onnx, path: tiny, threads: 2}}
          - {{{PRM}, context: 4096, price: {{per_million_prompt_tokens: 3}}}}
          - {{{POOLING}}}
          - {{name: critic, backend: critic, model: big, generation: 'generation:50052'}}
        """
    )
    kinds = [LogprobEntry, OnnxEntry, TritonEntry, PoolingEntry, CriticEntry]
    assert [type(one) for one in load(path).verifiers] == kinds
    backends = open_backends(path)
    assert [backend.name for backend in backends] == ["logprob", "tiny", "prm", "qwen", "critic"]
    logprob, tiny, prm, qwen = [await backend.describe() for backend in backends[:4]]
    assert logprob.scoring == CHAIN_SCORING_LAST
    assert (tiny.backend, prm.backend, qwen.backend) == ("onnx", "triton", "pooling")
    assert (prm.context, prm.price.currency, prm.price.per_million_prompt_tokens) == (4096, "EUR", 3)
    assert (prm.scoring, qwen.scoring) == (CHAIN_SCORING_MIN, CHAIN_SCORING_MIN)
    assert prm.shape.active_parameters == 7_100_000_000
    for backend in backends:
        await backend.close()


async def test_the_embedded_verifiers_are_a_reward_model_and_the_models_own_probabilities() -> None:
    backends = open_backends(MODELS / "verifiers.yaml")
    described = [await backend.describe() for backend in backends]
    assert [(one.name, one.backend) for one in described] == [("abacus-prm", "onnx"), ("logprob", "logprob")]
    assert described[1].scoring == CHAIN_SCORING_MEAN
    for backend in backends:
        await backend.close()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("verifiers: [", "not YAML"),
        ("", "valid dictionary"),
        ("verifiers: []", "there are no verifiers"),
        (entry("name: x"), "verifiers.0: "),
        (entry("name: x, backend: oracle"), "verifiers.0: .*oracle"),
        (entry("name: x y, backend: logprob"), "verifiers.0.logprob.name: "),
        (entry("name: x, backend: logprob, price: {}"), "price: Extra inputs"),
        (entry("name: x, backend: logprob, scoring: best"), "scoring: "),
        (entry("name: x, backend: onnx"), "verifiers.0.onnx.path: Field required"),
        (entry("name: x, backend: onnx, path: x, threads: 0"), "threads: "),
        (entry("name: x, backend: triton, address: a"), "shape: Field required"),
        (entry(POOLING + ", timeout_seconds: .nan"), "timeout_seconds: "),
        (entry(PRM + ", timeout_seconds: 0"), "timeout_seconds: "),
        (entry(POOLING + ", task: sequence"), "step_separator goes with task steps"),
        (entry("name: x, backend: critic, model: m, scale: 0"), "scale: "),
        (f"verifiers: [{{{PRM}}}, {{{PRM}}}]", "two verifiers have the same name"),
        ("currency: euro\n" + entry(PRM), "currency: "),
    ],
)
def test_what_is_wrong_is_one_sentence(write: Write, text: str, said: str) -> None:
    with pytest.raises(CatalogError, match=f"verifiers .*verifiers.yaml: .*{said}") as refused:
        load(write(text))
    assert "\n" not in str(refused.value)


def test_a_missing_file_and_a_wrong_template_are_said(tmp_path: Path, write: Write) -> None:
    with pytest.raises(CatalogError, match="No such file"):
        load(tmp_path / "none.yaml")
    for one in (PRM, POOLING):
        with pytest.raises(CatalogError, match="chat template"):
            open_backends(write(entry(one + ", chat_template: '{{'")))
    with pytest.raises(CatalogError, match="verifier x: generation: needs the address"):
        open_backends(write(entry("name: x, backend: critic, model: big")))
