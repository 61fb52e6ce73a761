"""A reward model in onnxruntime: scores as reckoned by hand, each fault to its own chain."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from asking import MESSAGES, PROMPT, ask, make_core
from hypothesis import given
from hypothesis import strategies as st
from isoflop.errors import InvalidArgument
from isoflop.v1.common_pb2 import Step
from isoflop.v1.verification_pb2 import CHAIN_SCORING_MIN, CHAIN_SCORING_PRODUCT, Chain, ScoreRequest
from tiny_verifier import CONTEXT, NAN, POISON, SHAPE, expected, tokens, write_verifier

from services.common.catalog import CatalogError
from services.common.flops import attended
from services.verification.backends.onnx import OnnxBackend
from services.verification.catalog import OnnxEntry


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_verifier(tmp_path_factory.mktemp("verifiers") / "tiny").parent


def open_tiny(folder: Path, **fields: Any) -> OnnxBackend:
    return OnnxBackend(OnnxEntry(name="prm", backend="onnx", path=Path("tiny"), **fields), folder, "USD")


@pytest.fixture(scope="session")
async def prm(folder: Path) -> AsyncIterator[OnnxBackend]:
    backend = open_tiny(folder, price={"per_million_prompt_tokens": 3})
    yield backend
    await backend.close()


def flops(count: int) -> float:
    parameters, attention = SHAPE["active_parameters"], SHAPE["layers"] * SHAPE["heads"] * SHAPE["head_size"]
    return 2.0 * parameters * count + 4.0 * attention * attended(1, count)


async def test_each_step_has_the_score_at_its_last_token_and_all_tokens_are_counted(prm: OnnxBackend) -> None:
    chains = ["17+4=21\n\n21 it is\r\nanswer: 21", "no", "one step\n"]
    response = await ask(prm, *chains)
    assert [one.error for one in response.scores] == [""] * 3
    steps = [["17+4=21\n\n", "21 it is\r\n", "answer: 21"], ["no"], ["one step\n"]]
    for one, texts in zip(response.scores, steps, strict=True):
        assert list(one.steps) == pytest.approx(expected(PROMPT, texts), abs=1e-5)
    counts = [
        len(tokens(PROMPT + "\n")) + sum(len(tokens(text.rstrip() + "\n")) for text in texts)
        for texts in steps
    ]
    assert response.tokens == sum(counts)
    assert response.flops == pytest.approx(sum(map(flops, counts)))
    assert response.flops_without_attention == 2.0 * SHAPE["active_parameters"] * sum(counts)


async def test_given_steps_are_taken_as_they_are(prm: OnnxBackend) -> None:
    chain = Chain(id="c", text="éa b", steps=[Step(end=1), Step(end=3), Step(end=4)])
    (scored,) = (await ask(prm, chain)).scores
    assert list(scored.steps) == pytest.approx(expected(PROMPT, ["é", "a ", "b"]), abs=1e-5)


LIMIT = CONTEXT - len(PROMPT) - 2


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (Chain(), "it has no steps"),
        (Chain(text="\n \n"), "it has no steps"),
        (Chain(text="ab", steps=[Step(end=1)]), "last step ends at 1, its text at 2"),
        (Chain(text="ab", steps=[Step(end=2), Step(end=2)]), "step 2 ends at 2, and begins at 2"),
        (Chain(text="ab", steps=[Step(end=-1), Step(end=2)]), "step 1 ends at -1"),
        (Chain(text="x" * (LIMIT + 1)), f"step 1 it has {CONTEXT + 1} tokens; prm reads {CONTEXT}"),
        (Chain(text="x\n" * 800), "prm reads 200"),
        (Chain(text="x\n" * 10_000), "more than 4096 steps"),
        (Chain(text="x" * (1 << 20)), "1048576 characters; prm reads 200 tokens"),
        (Chain(text="x" * (1 << 20) + "x"), "more than 1048576 bytes"),
        (Chain(text=f"one\ntwo {NAN}\nthree"), "score of step 2 is nan"),
        (Chain(text=f"one\n{POISON}"), "prm failed on it"),
    ],
    ids=[
        "empty",
        "blank",
        "short",
        "twice",
        "negative",
        "long",
        "lines",
        "10,000",
        "1 MB",
        "1 MB+",
        "nan",
        "ill",
    ],
)
async def test_a_chain_that_cannot_be_scored_says_why_and_the_others_are_scored(
    prm: OnnxBackend, bad: Chain, said: str
) -> None:
    response = await ask(prm, "good\n", bad, "fine")
    assert said in response.scores[1].error
    assert not response.scores[1].steps
    for one, text in ((response.scores[0], "good\n"), (response.scores[2], "fine")):
        assert list(one.steps) == pytest.approx(expected(PROMPT, [text]), abs=1e-5)


async def test_the_longest_chain_that_fits_is_scored(prm: OnnxBackend) -> None:
    response = await ask(prm, "x" * LIMIT)
    assert response.tokens == CONTEXT
    assert len(response.scores[0].steps) == 1


async def test_what_a_fault_took_is_counted(prm: OnnxBackend) -> None:
    response = await ask(prm, NAN)
    assert response.scores[0].error
    assert response.tokens == len(tokens(f"{PROMPT}\n{NAN}\n"))
    assert response.flops > 0


async def test_a_prompt_longer_than_the_context_leaves_no_chain_scorable(prm: OnnxBackend) -> None:
    request = ScoreRequest(verifier="prm", messages=MESSAGES, chains=[Chain(id="c", text="a")])
    request.messages[-1].content = "x" * CONTEXT
    (scored,) = (await make_core(prm).score(request)).scores
    assert "prm reads 200" in scored.error


async def test_messages_that_the_template_refuses_are_named(prm: OnnxBackend) -> None:
    request = ScoreRequest(verifier="prm", chains=[Chain(id="c", text="a")])
    with pytest.raises(InvalidArgument) as refused:
        await make_core(prm).score(request)
    assert refused.value.field == "messages"


async def test_requests_of_many_queries_get_their_own_scores(folder: Path) -> None:
    backend = open_tiny(folder, max_batch_tokens=64)
    core = make_core(backend)
    texts = [f"{number}\nand {number * number}" for number in range(40)]

    def request(number: int) -> ScoreRequest:
        chains = [Chain(id=text, text=text) for text in texts[number : number + 5]]
        return ScoreRequest(verifier="prm", messages=MESSAGES, chains=chains)

    responses = await asyncio.gather(*(core.score(request(number)) for number in range(36)))
    for number, response in enumerate(responses):
        assert [one.id for one in response.scores] == texts[number : number + 5]
        for one in response.scores:
            steps = one.id.splitlines(keepends=True)
            assert list(one.steps) == pytest.approx(expected(PROMPT, steps), abs=1e-5)
    await core.close()


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """A loop of its own: hypothesis knows no coroutines."""
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(scope="module")
def lent(folder: Path, runner: asyncio.Runner) -> Iterator[OnnxBackend]:
    backend = open_tiny(folder)
    yield backend
    runner.run(backend.close())


@given(
    st.lists(
        st.text(st.characters(exclude_characters=NAN, exclude_categories=["Cs"]), min_size=1, max_size=30),
        max_size=4,
    )
)
def test_a_batch_gives_what_each_chain_gives_alone(
    lent: OnnxBackend, runner: asyncio.Runner, texts: list[str]
) -> None:
    together = runner.run(ask(lent, *texts)).scores
    for one, text in zip(together, texts, strict=True):
        (alone,) = runner.run(ask(lent, text)).scores
        assert list(one.steps) == pytest.approx(list(alone.steps), abs=1e-6)
        assert one.error == alone.error


async def test_it_is_described_by_its_manifest_and_its_entry(prm: OnnxBackend, folder: Path) -> None:
    verifier = await prm.describe()
    assert (verifier.name, verifier.backend, verifier.context) == ("prm", "onnx", CONTEXT)
    assert {name: getattr(verifier.shape, name) for name in SHAPE} == SHAPE
    assert (verifier.price.currency, verifier.price.per_million_prompt_tokens) == ("USD", 3)
    assert verifier.scoring == CHAIN_SCORING_PRODUCT
    assert not verifier.needs_logprobs
    other = open_tiny(folder, scoring="min")
    assert (await other.describe()).scoring == CHAIN_SCORING_MIN
    await other.close()


def damaged(tmp_path: Path, **manifest: Any) -> Path:
    return write_verifier(tmp_path / "tiny", **manifest)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "verifier.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (damaged(tmp_path) / name).unlink()
    with pytest.raises(CatalogError, match=r"verifier prm: .*tiny.*No such file"):
        open_tiny(tmp_path)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_file_that_is_not_the_manifests_is_refused(tmp_path: Path, name: str) -> None:
    with (damaged(tmp_path) / name).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(CatalogError, match=f"{name} is not the file"):
        open_tiny(tmp_path)


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ({"format": 2}, "format: "),
        ({"context": 0}, "context: "),
        ({"scoring": "best"}, "scoring: "),
        ({"shape": {}}, "shape.active_parameters: "),
        ({"chat_template": "{{"}, "chat template"),
        ({"sha256": {}}, "model.onnx is not the file"),
        ({"extra": 1}, "extra: "),
    ],
)
def test_a_wrong_manifest_says_where(tmp_path: Path, manifest: dict[str, Any], said: str) -> None:
    damaged(tmp_path, **manifest)
    with pytest.raises(CatalogError, match=said):
        open_tiny(tmp_path)


def test_a_model_with_other_outputs_is_refused(tmp_path: Path) -> None:
    damaged(tmp_path, output="rewards")
    with pytest.raises(CatalogError, match=r"is not usable \(model.onnx has inputs .* and outputs .*rewards"):
        open_tiny(tmp_path)


def test_what_is_no_model_and_no_manifest_is_refused(tmp_path: Path) -> None:
    (damaged(tmp_path) / "verifier.json").write_text("{")
    with pytest.raises(CatalogError, match="verifier prm"):
        open_tiny(tmp_path)
    shutil.rmtree(tmp_path / "tiny")
    write_verifier(tmp_path / "tiny", sha256={})
