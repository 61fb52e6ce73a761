"""Sentence embeddings: a tiny random model through the export, onnxruntime, and the service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isoflop.errors import InvalidArgument
from isoflop.v1.common_pb2 import Message
from isoflop.v1.difficulty_pb2 import EstimateRequest, Query
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from safetensors.numpy import save
from scipy.special import erf, softmax
from tokenizers import Tokenizer, models, pre_tokenizers

from services.difficulty.core import open_difficulty
from services.difficulty.embedding import Embedding, EmbeddingError
from services.difficulty.features import NAMES
from services.difficulty.record import EstimatorError
from services.difficulty.settings import DifficultySettings
from training.embedding import export

Array = NDArray[np.float32]

LAYERS, HEADS, WIDTH, INNER, VOCABULARY, POSITIONS = 2, 2, 8, 16, 12, 10
WORDS = ["[PAD]", "[UNK]", *"abcdefghij"]


def random_weights() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    shapes = {
        "embeddings.word_embeddings.weight": (VOCABULARY, WIDTH),
        "embeddings.position_embeddings.weight": (POSITIONS, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        "embeddings.LayerNorm.weight": (WIDTH,),
        "embeddings.LayerNorm.bias": (WIDTH,),
    }
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        for part, (out, into) in {
            "attention.self.query": (WIDTH, WIDTH),
            "attention.self.key": (WIDTH, WIDTH),
            "attention.self.value": (WIDTH, WIDTH),
            "attention.output.dense": (WIDTH, WIDTH),
            "intermediate.dense": (INNER, WIDTH),
            "output.dense": (WIDTH, INNER),
        }.items():
            shapes[f"{name}.{part}.weight"] = (out, into)
            shapes[f"{name}.{part}.bias"] = (out,)
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"{name}.{part}.weight"] = shapes[f"{name}.{part}.bias"] = (WIDTH,)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "hidden_size": WIDTH,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": POSITIONS,
}


def parts(**changes: Any) -> dict[str, bytes]:
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return {
        "config.json": json.dumps(CONFIG | changes).encode(),
        "tokenizer.json": tokenizer.to_str().encode(),
        "model.safetensors": save(random_weights()),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("embedding")
    export(parts(), "tiny", out)
    return out


def bert(ids: list[int]) -> Array:
    """The same in plain numpy, for one text."""
    w = random_weights()

    def dense(x: Array, name: str) -> Array:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Array, name: str) -> Array:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        q, k, v = (
            dense(x, f"{name}.attention.self.{part}").reshape(len(ids), HEADS, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        mixed = softmax(q @ k.swapaxes(1, 2) / np.sqrt(WIDTH / HEADS), axis=-1) @ v
        mixed = dense(mixed.swapaxes(0, 1).reshape(len(ids), WIDTH), f"{name}.attention.output.dense")
        x = norm(x + mixed, f"{name}.attention.output.LayerNorm")
        inner = dense(x, f"{name}.intermediate.dense")
        inner = inner * 0.5 * (1 + erf(inner / np.sqrt(2)))
        x = norm(x + dense(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    mean: Array = x.mean(0)
    return mean / np.linalg.norm(mean)


def test_the_exported_graph_is_a_bert(folder: Path) -> None:
    vectors, _ = Embedding(folder).embed(["a b c", "j", "a unknown b c d e f"])
    for vector, ids in zip(vectors, ([2, 3, 4], [11], [2, 1, 3, 4, 5, 6, 7]), strict=True):
        assert vector == pytest.approx(bert(ids), abs=1e-5)


def test_a_text_has_the_same_embedding_in_any_company(folder: Path) -> None:
    """Padding is not attended to, and the order of the texts is kept."""
    texts = ["a", "b c d e f g h i j", "a a", "d e"] * 10
    together, flops = Embedding(folder).embed(texts)
    for text, vector in zip(texts[:4], together, strict=False):
        alone, less = Embedding(folder).embed([text])
        assert alone[0] == pytest.approx(vector, abs=1e-5)
        assert 0 < less < flops


def test_flops_are_those_of_its_tokens(folder: Path) -> None:
    weights = sum(w.size for name, w in random_weights().items() if name.startswith("encoder."))
    for text, tokens in (("a", 1), ("a b c", 3)):
        _, flops = Embedding(folder).embed([text])
        assert flops == 2 * weights * tokens + 4 * LAYERS * WIDTH * tokens * tokens


def test_long_texts_are_cut(folder: Path) -> None:
    whole, flops = Embedding(folder).embed(["a b " * 500])
    cut, same = Embedding(folder).embed(["a b " * (POSITIONS // 2)])
    assert (whole == cut).all()
    assert flops == same
    _, fewer = Embedding(folder, max_tokens=4).embed(["a b " * 500])
    assert fewer < flops


def test_no_and_broken_texts_are_embedded(folder: Path) -> None:
    embedding = Embedding(folder)
    vectors, flops = embedding.embed([])
    assert (vectors.shape, flops) == ((0, WIDTH), 0.0)
    assert np.isfinite(embedding.embed(["a \ud800", "\x00"])[0]).all()


@pytest.mark.parametrize("name", ["embedding.json", "model.onnx", "tokenizer.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff\x00"])
def test_a_broken_folder_is_one_sentence(name: str, content: bytes | None, tmp_path: Path) -> None:
    export(parts(), "tiny", tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(EmbeddingError) as caught:
        Embedding(tmp_path)
    assert str(caught.value).startswith(f"embedding {tmp_path}: ")
    assert "\n" not in str(caught.value)


def test_only_what_is_known_is_exported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only BERT with gelu"):
        export(parts(model_type="mpnet"), "tiny", tmp_path)


def estimator(path: Path, embedding: Embedding | None) -> Path:
    """Difficulty is the embedding's first number."""
    content: dict[str, Any] = {
        "schema": 2,
        "name": "hand",
        "data": "",
        "ranges": {name: {"low": 0.0, "high": 100.0, "unit": 1.0} for name in NAMES},
        "center": {"intercept": 0.0, "terms": []},
        "log_variance": {"intercept": 0.0, "terms": []},
        "tokens_range": [-4.0, 4.0],
        "curves": [],
    }
    if embedding:
        weights = [1.0] + [0.0] * (embedding.dimensions - 1)
        content["sentences"] = {"name": embedding.name, "weights": weights}
    path.write_text(json.dumps(content))
    return path


async def test_the_service_adds_the_embedding_and_bills_it(folder: Path, tmp_path: Path) -> None:
    embedding = Embedding(folder)
    settings = DifficultySettings(
        estimator=estimator(tmp_path / "difficulty.json", embedding), embedding=folder, max_queries=3
    )
    core = open_difficulty(settings, CollectorRegistry())
    texts = ["a b", "c", "d e f"]
    queries = [Query(messages=[Message(role="user", content=text)]) for text in texts]
    response = await core.estimate(EstimateRequest(queries=queries))
    vectors, flops = embedding.embed(texts)
    assert [told.mean for told in response.difficulties] == pytest.approx(vectors[:, 0].tolist())
    plain = open_difficulty(
        DifficultySettings(estimator=estimator(tmp_path / "plain.json", None)), CollectorRegistry()
    )
    without = await plain.estimate(EstimateRequest(queries=queries))
    assert response.flops - without.flops == pytest.approx(flops + 3 * 2 * WIDTH)
    with pytest.raises(InvalidArgument):
        await core.estimate(EstimateRequest(queries=queries * 2))


def test_estimator_and_embedding_must_fit(folder: Path, tmp_path: Path) -> None:
    embedding = Embedding(folder)
    needs = estimator(tmp_path / "needs.json", embedding)
    plain = estimator(tmp_path / "plain.json", None)
    other = tmp_path / "other"
    export(parts(layer_norm_eps=1e-6), "tiny", other)
    for error, said, settings in (
        (EstimatorError, f"needs the embedding {embedding.name}", {"estimator": needs}),
        (EmbeddingError, "trained without an embedding", {"estimator": plain, "embedding": folder}),
        (EmbeddingError, f"trained with {embedding.name}", {"estimator": needs, "embedding": other}),
    ):
        with pytest.raises(error, match=said):
            open_difficulty(DifficultySettings(**settings), CollectorRegistry())
