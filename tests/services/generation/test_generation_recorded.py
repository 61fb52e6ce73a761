"""Recordings, played back: each sample at most once a query, and nothing read of right and wrong."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from isoflop.errors import FailedPrecondition, InvalidArgument
from isoflop.v1.common_pb2 import (
    FINISH_REASON_ABORTED,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    SEED_PROMISE_ALWAYS,
    Message,
    Sample,
    Sampling,
)
from isoflop.v1.generation_pb2 import Branch, RoundUsage
from prometheus_client import CollectorRegistry
from scripted_backend import Call, generate, make_core, samples, start

from services.common.catalog import CatalogError
from services.generation.backends.recorded import RecordedBackend, order
from services.generation.catalog import RecordedEntry

RECORDINGS = Path(__file__).resolve().parents[4] / "shared" / "data" / "recordings"
COUNT = 10


def row(prompt: str | None = "What is 1+1?", model: str = "big", **fields: Any) -> dict[str, Any]:
    """One recorded query; its samples are told apart by their texts and tokens."""
    return {
        "query_id": "set/1",
        "model": model,
        **({} if prompt is None else {"prompt": prompt}),
        "samples": [
            {"answer": str(number), "text": f"text {number}", "tokens": 100 + number}
            for number in range(COUNT)
        ],
        **fields,
    }


def write(path: Path, *rows: object) -> Path:
    """JSON lines; a row that is a text is written as it is."""
    lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
    text = "".join(f"{line}\n" for line in lines)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def open_recording(path: Path, model: str = "big") -> RecordedBackend:
    entry = RecordedEntry.model_validate(
        {
            "name": "played",
            "backend": "recorded",
            "path": path.name,
            "model": model,
            "shape": {"active_parameters": 3.6e9},
        }
    )
    return RecordedBackend(entry, path.parent, "USD")


async def play(
    backend: RecordedBackend,
    prompt: str = "What is 1+1?",
    *,
    first: int = 0,
    count: int = 1,
    seed: int = 0,
    max_tokens: int = 0,
) -> tuple[list[Sample], RoundUsage]:
    return await generate(
        make_core(backend),
        start(
            "played",
            messages=[Message(role="user", content=prompt)],
            branches=[Branch(samples=count)],
            first_sample=first,
            sampling=Sampling(seed=seed, max_tokens=max_tokens),
        ),
    )


@pytest.fixture(params=["plain.jsonl", "packed.jsonl.gz"])
def recording(request: pytest.FixtureRequest, tmp_path: Path) -> RecordedBackend:
    """A query with a prompt and one without, under two models; plain and packed."""
    path = write(
        tmp_path / request.param,
        row(),
        row(prompt=None, query_id="set/2"),
        row(model="small", samples=[{"answer": "never"}]),
    )
    return open_recording(path)


async def test_a_query_is_found_by_its_prompt(recording: RecordedBackend) -> None:
    made, usage = await play(recording, count=COUNT)
    assert {one.text for one in made} == {f"text {number}" for number in range(COUNT)}
    assert usage == RoundUsage(
        samples=COUNT,
        completion_tokens=sum(100 + number for number in range(COUNT)),
        context_tokens=usage.context_tokens,
    )


async def test_a_query_without_a_recorded_prompt_is_found_by_its_id(recording: RecordedBackend) -> None:
    made, _ = await play(recording, "set/2")
    assert made[0].text.startswith("text ")
    with pytest.raises(InvalidArgument):
        await play(recording, "set/1")


async def test_an_unknown_query_is_an_invalid_argument(recording: RecordedBackend) -> None:
    with pytest.raises(InvalidArgument, match="played has no recording of this query") as caught:
        await play(recording, "What is 2+2?")
    assert caught.value.field == "messages"


async def test_each_sample_is_played_once_over_all_rounds(recording: RecordedBackend) -> None:
    rounds = [(0, 1), (1, 4), (5, 2), (7, 3)]
    texts = [
        one.text for first, count in rounds for one in (await play(recording, first=first, count=count))[0]
    ]
    assert Counter(texts) == Counter(f"text {number}" for number in range(COUNT))


async def test_a_seed_decides_the_order(recording: RecordedBackend) -> None:
    def texts(made: tuple[list[Sample], RoundUsage]) -> list[str]:
        return [one.text for one in made[0]]

    first = texts(await play(recording, count=COUNT, seed=1))
    assert first == texts(await play(recording, count=COUNT, seed=1))
    assert first != texts(await play(recording, count=COUNT, seed=2))
    # And not the order of the rounds.
    assert first[6:8] == texts(await play(recording, first=6, count=2, seed=1))


async def test_the_order_of_play_can_be_told(recording: RecordedBackend) -> None:
    made, _ = await play(recording, count=COUNT, seed=1)
    places = order(1, "played", "What is 1+1?", COUNT)
    assert sorted(places) == list(range(COUNT))
    assert [one.text for one in made] == [f"text {place}" for place in places]


async def test_a_sample_longer_than_it_may_be_is_cut(recording: RecordedBackend) -> None:
    """It costs what it may have, and its answer was not reached; the others are whole."""
    most = 104
    made, usage = await play(recording, count=COUNT, max_tokens=most)
    whole, _ = await play(recording, count=COUNT)
    for cut, one in zip(made, whole, strict=True):
        if one.tokens <= most:
            assert cut == one
            assert cut.finish_reason == FINISH_REASON_STOP
        else:
            assert (cut.text, cut.tokens, cut.finish_reason) == ("", most, FINISH_REASON_LENGTH)
    assert usage.completion_tokens == sum(min(one.tokens, most) for one in whole)


async def test_a_round_of_more_samples_than_are_left_plays_none(recording: RecordedBackend) -> None:
    registry = CollectorRegistry()
    begin = start(
        "played",
        messages=[Message(role="user", content="What is 1+1?")],
        branches=[Branch(samples=3)],
        first_sample=COUNT - 2,
    )
    with pytest.raises(FailedPrecondition, match=f"played has {COUNT} recorded samples"):
        await generate(make_core(recording, registry=registry), begin)
    labels = {"model": "played", "kind": "completion"}
    assert not registry.get_sample_value("isoflop_generation_tokens_total", labels)


async def test_a_prefix_cannot_be_continued(recording: RecordedBackend) -> None:
    assert not recording.model.capabilities.prefix
    begin = start(
        "played",
        messages=[Message(role="user", content="What is 1+1?")],
        branches=[Branch(samples=1, prefix="so")],
    )
    with pytest.raises(InvalidArgument, match="prefix"):
        await generate(make_core(recording), begin)


async def test_samples_aborted_before_their_turn_are_not_played(recording: RecordedBackend) -> None:
    call = Call(
        make_core(recording),
        start(
            "played",
            messages=[Message(role="user", content="What is 1+1?")],
            branches=[Branch(samples=COUNT)],
        ),
    )
    call.abort()
    responses = await call.rest()
    ended = samples(responses)
    assert len(ended) == COUNT
    aborted = [one for one in ended if one.finish_reason == FINISH_REASON_ABORTED]
    assert aborted
    assert all((one.text, one.tokens) == ("", 0) for one in aborted)
    assert responses[-1].usage.aborted_tokens == 0


def test_what_it_can_do_is_said(recording: RecordedBackend) -> None:
    capabilities = recording.model.capabilities
    assert (capabilities.seed, capabilities.samples) == (SEED_PROMISE_ALWAYS, COUNT)
    assert capabilities.abort_one
    assert not capabilities.logprobs
    assert recording.model.shape.active_parameters == 3_600_000_000


def test_a_query_has_as_many_samples_as_the_least_recorded_one(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", row("a"), row("b", samples=[{"answer": "1"}, {"answer": "2"}]))
    assert open_recording(path).model.capabilities.samples == 2


def test_what_a_strategy_made_is_none_of_the_samples(tmp_path: Path) -> None:
    deep = row(deep={"strategy": "beam"}, samples=[{"answer": "x", "tokens": 1}])
    path = write(tmp_path / "r.jsonl", row(), deep, deep | {"prompt": "Another?"})
    assert open_recording(path).model.capabilities.samples == COUNT


async def test_rows_of_the_same_query_are_joined(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", row(run=1), row(run=2))
    made, _ = await play(open_recording(path), count=2 * COUNT)
    assert Counter(one.text for one in made) == Counter({f"text {number}": 2 for number in range(COUNT)})


@pytest.mark.parametrize(
    ("sample", "text", "tokens"),
    [
        ({"answer": "\\frac12", "tokens": 7}, "\\boxed{\\frac12}", 7),
        ({"answer": "5", "text": "so it is 5", "tokens": 7}, "so it is 5", 7),
        ({"answer": None, "tokens": 9}, "", 9),
        ({"answer": None, "text": "I give up", "tokens": 9}, "I give up", 9),
        ({"answer": "5", "text": "so it is 5", "chars": 401}, "so it is 5", 101),
        ({"answer": "5", "text": "so it is 5"}, "so it is 5", 3),
        ({"answer": None}, "", 0),
        ({"answer": "5", "text": "one\ntwo\n", "tokens": 6}, "one\ntwo\n", 6),
    ],
    ids=["answer", "text", "blank", "blank text", "chars", "length", "nothing", "lines"],
)
async def test_a_sample_is_its_text_or_else_its_answer_with_its_tokens(
    sample: dict[str, object], text: str, tokens: int, tmp_path: Path
) -> None:
    made, usage = await play(open_recording(write(tmp_path / "r.jsonl", row(samples=[sample]))))
    assert (made[0].text, made[0].tokens) == (text, tokens)
    assert usage.completion_tokens == tokens
    assert not made[0].HasField("logprob")


async def test_right_and_wrong_are_never_read(tmp_path: Path) -> None:
    """Whatever stands there, or nothing: the same is played."""

    def poisoned(poison: dict[str, object]) -> RecordedBackend:
        clean = row()
        rows = row(
            samples=[{**one, **({"correct": poison} if poison else {})} for one in clean["samples"]],
            **({"gold": poison} if poison else {}),
        )
        return open_recording(write(tmp_path / "r.jsonl", rows))

    with_poison = await play(poisoned({"poison": [[], {}]}), count=COUNT, seed=3)
    assert with_poison == await play(poisoned({}), count=COUNT, seed=3)


@pytest.mark.parametrize(
    "broken",
    [
        "{",
        "",
        "[]",
        "17",
        "null",
        '"text"',
        "\x00",
        {"model": "big"},
        {"model": "big", "query_id": "q"},
        {"query_id": "q", "samples": []},
        {"model": "big", "prompt": "p", "samples": 5},
        {"model": "big", "prompt": "p", "samples": ["5"]},
        {"model": "big", "prompt": ["p"], "samples": []},
        row(samples=[{"answer": "5", "tokens": "many"}]),
        row(samples=[{"answer": "5", "tokens": -3}]),
        row(samples=[{"answer": "5", "chars": [1]}]),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz"])
def test_a_broken_line_is_named(broken: object, name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, row(), broken, row())
    with pytest.raises(CatalogError, match=rf"recording {path}: line 2 is not a recorded query") as caught:
        open_recording(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[:-20],
        lambda packed: packed[:15] + bytes(30) + packed[45:],
        lambda packed: b"not gzip at all",
        lambda packed: packed[:-8] + bytes(8),
    ],
    ids=["cut", "overwritten", "not gzip", "checksum"],
)
def test_a_damaged_archive_is_one_sentence(damage: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl.gz", *[row(f"prompt {number}") for number in range(50)])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CatalogError, match=f"recording {path}: ") as caught:
        open_recording(path)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"model": "\xff\xfe"}\n')
    with pytest.raises(CatalogError, match=f"recording {path}: "):
        open_recording(path)


def test_a_missing_recording_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"recording .*missing.jsonl: No such file"):
        open_recording(tmp_path / "missing.jsonl")


def test_a_model_that_is_not_in_the_recording_is_one_sentence(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", row())
    with pytest.raises(CatalogError, match=r"model played: r.jsonl has no samples of 'huge'"):
        open_recording(path, "huge")


@pytest.mark.shared_data
async def test_recordings_of_real_models_are_played() -> None:
    path = RECORDINGS / "math500.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with gzip.open(path, "rt") as lines:
        recorded = next(one for one in map(json.loads, lines) if one["model"] == "gpt-oss-20b")
    backend = open_recording(path, "gpt-oss-20b")
    count = backend.model.capabilities.samples
    assert count >= 80
    made, usage = await play(backend, recorded["prompt"], count=count)
    boxed = Counter(
        "" if one["answer"] is None else f"\\boxed{{{one['answer']}}}" for one in recorded["samples"]
    )
    assert Counter(one.text for one in made) <= boxed
    assert usage.completion_tokens <= sum(one["tokens"] for one in recorded["samples"])
    assert usage.completion_tokens == sum(one.tokens for one in made)
