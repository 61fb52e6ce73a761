"""The catalogue: what is right is read, and what is wrong is one sentence that says where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from services.common.catalog import CatalogError
from services.generation.catalog import LlamaCppEntry, RecordedEntry, TritonEntry, load
from services.generation.engines import open_backends

OPENAI = "name: m, backend: openai, shape: {active_parameters: 1}, base_url: 'http://h/v1'"
RECORDED = "name: played, backend: recorded, path: r.jsonl, shape: {active_parameters: 3.6e9}"
Catalogue = Callable[[str], Path]


def test_a_catalogue_is_read(catalogue: Catalogue) -> None:
    catalog = load(
        catalogue(
            """
            currency: EUR
            models:
              - {name: tiny, backend: llamacpp, path: tiny.gguf}
              - name: qwen
                backend: triton
                address: triton:8001
                shape: {active_parameters: 7.6e9, layers: 28, heads: 28, head_size: 128}
                price: {per_gpu_second: 0.0011, tokens_per_second: 2200}
              - {name: played, backend: recorded, path: r.jsonl, shape: {active_parameters: 3.6e9}}
            """
        )
    )
    assert [type(model) for model in catalog.models] == [LlamaCppEntry, TritonEntry, RecordedEntry]
    assert catalog.models[1].price.message(catalog.currency).per_million_completion_tokens == pytest.approx(
        0.5
    )
    assert catalog.models[1].price.message(catalog.currency).currency == "EUR"


def model(entry: str) -> str:
    return f"models: [{{{entry}}}]"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: [", "not YAML"),
        ("models: \x01", "not YAML"),
        ("", "valid dictionary"),
        ("just a text", "valid dictionary"),
        ("[]", "valid dictionary"),
        ("currency: USD", "models: Field required"),
        ("models: 5", "models: Input should be a valid list"),
        ("models: []", "there are no models"),
        ("models: [5]", "models.0: "),
        ("currency: dollars\n" + model(RECORDED), "currency: "),
        ("modles: []\nmodels: []", "modles: Extra inputs are not permitted"),
        (model(RECORDED + ", thinking: {close: so}"), "close has no '</think>' in it"),
        (model(RECORDED + ", thinking: {answer_tokens: 0}"), "thinking.answer_tokens: "),
        (model(RECORDED + ", revision: {content: ''}"), "revision.content: "),
        (model(RECORDED + ", pth: x"), "models.0.recorded.pth: Extra inputs are not permitted"),
        (model(RECORDED + ", price: {per_token: 1}"), "price.per_token: Extra inputs"),
        (f"models: [{{{RECORDED}}}, {{{RECORDED}}}]", "two models have the same name"),
        (
            model("name: m, backend: vllm, path: x"),
            "models.0: .*'vllm'.*'llamacpp', 'triton', 'openai', 'recorded'",
        ),
        (model("name: m, path: x"), "models.0: .*'backend'"),
        (model("name: m, backend: llamacpp"), "models.0.llamacpp.path: Field required"),
        (model("name: m, backend: recorded, path: x"), "models.0.recorded.shape: Field required"),
        (model("name: '', backend: llamacpp, path: x"), "models.0.llamacpp.name: "),
        (model("name: a/b, backend: llamacpp, path: x"), "models.0.llamacpp.name: "),
        (model(RECORDED + ", price: {per_gpu_second: 1}"), "go together"),
        (model(RECORDED + ", price: {tokens_per_second: 1}"), "go together"),
        (model(RECORDED + ", price: {per_million_prompt_tokens: -1}"), "per_million_prompt_tokens: "),
        (model(RECORDED + ", price: {per_million_prompt_tokens: .nan}"), "per_million_prompt_tokens: "),
        (model(RECORDED + ", price: {per_million_prompt_tokens: .inf}"), "per_million_prompt_tokens: "),
        (model("name: m, backend: llamacpp, path: x, parallel: 0"), "parallel: "),
        (model("name: m, backend: llamacpp, path: x, threads: many"), "threads: "),
        (model("name: m, backend: llamacpp, path: x, context: -1"), "context: "),
        (model("name: m, backend: llamacpp, path: x, context: 9999999999"), "context: "),
        (model(OPENAI + ", key_env: A, key_file: b"), "models.0.openai: .*key_env or key_file, not both"),
        (model(OPENAI + ", api: responses"), "models.0.openai.api: "),
        (model(OPENAI + ", parallel: 0"), "parallel: "),
        (model(OPENAI + ", extra: {x: .nan}"), "extra"),
        (model(OPENAI + ", next_token_seconds: 0"), "next_token_seconds: "),
        (model(OPENAI + ", chat_template: x"), "chat_template goes with api completions"),
        (model(OPENAI + ", api: completions, continues: last_message"), "continues goes with api chat"),
        *[
            (model(OPENAI.replace("http://h/v1", url)), f"models.0.openai.base_url: .*{said}")
            for url, said in [
                ("ftp://h", "http://host or https://host"),
                ("h:80", "http://host or https://host"),
                ("http://", "http://host or https://host"),
                ("http://[::1", "Invalid IPv6"),
                ("https://someone:pass@h", "holds a password: use key_env"),
                ("http://h/v1?key=1", "without a query"),
            ]
        ],
        *[
            (model(f"name: m, backend: recorded, path: x, shape: {{{shape}}}"), f"shape.{field}: ")
            for shape, field in [
                ("active_parameters: 0", "active_parameters"),
                ("active_parameters: .inf", "active_parameters"),
                ("active_parameters: 1e30", "active_parameters"),
                ("active_parameters: 1, layers: 9999999999", "layers"),
                ("active_parameters: 1, window: 9999999999", "window"),
            ]
        ],
    ],
)
def test_a_wrong_catalogue_is_one_sentence_that_says_where(
    text: str, said: str, catalogue: Catalogue
) -> None:
    path = catalogue(text)
    with pytest.raises(CatalogError, match=said) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"catalogue {path}: ")
    assert "\n" not in message
    assert ": :" not in message


def test_bytes_that_are_no_text_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "catalog.yaml"
    path.write_bytes(b"models: \xff\xfe")
    with pytest.raises(CatalogError, match="not YAML"):
        load(path)


def test_a_catalogue_holds_no_python_objects(catalogue: Catalogue) -> None:
    with pytest.raises(CatalogError, match="not YAML"):
        load(catalogue("models: !!python/object/apply:os.getcwd []"))


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_catalogue_that_cannot_be_read_is_one_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"catalogue \S+: \w+") as caught:
        load(tmp_path / name)
    assert "\n" not in str(caught.value)


async def test_how_a_model_thinks_and_revises_is_told_with_it(catalogue: Catalogue) -> None:
    far = "name: far, backend: triton, address: 'localhost:1', shape: {active_parameters: 1}"
    entry = far + ", thinking: {system: think, answer_tokens: 8}, revision: {content: ok}"
    (backend,) = open_backends(catalogue(model(entry)))
    thinking, revision = backend.model.thinking, backend.model.revision
    assert (thinking.system, thinking.end, thinking.extend, thinking.answer_tokens) == (
        "think",
        "</think>",
        "Wait",
        8,
    )
    assert thinking.end in thinking.close
    assert revision.content == "ok"
    assert revision.critique
    assert revision.revise
    await backend.close()
    (plain,) = open_backends(catalogue(model(far)))
    assert not plain.model.HasField("thinking")
    assert not plain.model.HasField("revision")
    await plain.close()


def test_a_broken_template_of_an_entry_is_one_sentence(catalogue: Catalogue) -> None:
    entry = (
        "name: far, backend: triton, address: 'localhost:1', shape: {active_parameters: 1}, "
        "chat_template: '{% if %}'"
    )
    with pytest.raises(CatalogError, match="model far: chat template: ") as caught:
        open_backends(catalogue(model(entry)))
    assert "\n" not in str(caught.value)


async def test_a_server_of_the_openai_api_that_is_down_is_no_reason_not_to_start(
    catalogue: Catalogue,
) -> None:
    (backend,) = open_backends(catalogue(model(OPENAI)))
    assert (backend.model.name, backend.model.backend) == ("m", "openai")
    await backend.close()


async def test_a_triton_that_is_down_is_no_reason_not_to_start(catalogue: Catalogue) -> None:
    entry = "name: far, backend: triton, address: 'localhost:1', shape: {active_parameters: 1}"
    (backend,) = open_backends(catalogue(model(entry)))
    assert backend.model.name == "far"
    await backend.close()
