"""Labelled queries through services: resumable, within the cap, and nothing that was bought is lost."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isoflop.errors import InvalidArgument, Unavailable
from isoflop.v1.common_pb2 import ANSWER_TYPE_NUMBER, ANSWER_TYPE_TEXT, Capabilities, Model, Shape
from isoflop.v1.generation_pb2 import GenerateRequest, GenerateResponse
from isoflop.v1.verification_pb2 import DescribeVerifiersRequest
from prometheus_client import CollectorRegistry

from router.cost import Cost
from router.stages import Stages
from services.aggregation.core import Aggregation
from services.verification.backends.logprob import LogprobBackend
from services.verification.catalog import LogprobEntry
from services.verification.core import Verification
from services.verification.settings import VerificationSettings
from tests.router.scripted_stages import Said, ScriptedGeneration, number
from training import calibration
from training.calibration import (
    Plan,
    append,
    at_worst,
    foreseen,
    missing,
    opened,
    record,
    timed,
    unreadable,
)
from training.labelled import Labelled, QueriesError, in_turn, read_queries
from training.recordings import RecordingError, lines, read

FREE = Cost(math.inf, math.inf, math.inf)
MODELS = [
    Model(
        name=name,
        shape=Shape(active_parameters=size, layers=2, heads=2, head_size=8),
        context=128,
        capabilities=Capabilities(logprobs=True),
    )
    for name, size in (("s", 1000), ("l", 8000))
]
QUERIES = [Labelled(f"q{n}", f"What is {n}+1?", str(n + 1), ANSWER_TYPE_NUMBER, str(n % 2)) for n in range(6)]


def said(model: str, index: int) -> Said:
    """Every second answer is 1, which is right of q0 alone."""
    return number(1 if index % 2 == 0 else 2)


@pytest.fixture
async def stages(aggregation: Aggregation) -> Stages:
    verifier = LogprobBackend(LogprobEntry(name="logprob"))
    verification = Verification(VerificationSettings(), [verifier], CollectorRegistry())
    generation = ScriptedGeneration(MODELS, said)
    return Stages(generation, verification, generation, aggregation)  # type: ignore[arg-type]


@pytest.fixture
async def plan(stages: Stages) -> Plan:
    verifiers = (await stages.verification.describe(DescribeVerifiersRequest())).verifiers
    return Plan(samples=4, temperature=0.7, verifiers=list(verifiers), at_a_time=3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "r.jsonl"


async def run(
    stages: Stages, plan: Plan, path: Path, left: Cost = FREE, queries: list[Labelled] = QUERIES
) -> calibration.Ended:
    with opened(path) as file:
        jobs, spent = missing(path, queries, MODELS, plan)
        return await record(stages, jobs, plan, file, left=left - spent, done=lambda price: None)


def generation(stages: Stages) -> ScriptedGeneration:
    assert isinstance(stages.generation, ScriptedGeneration)
    return stages.generation


async def test_each_query_and_model_is_sampled_graded_scored_and_billed(
    stages: Stages, plan: Plan, path: Path
) -> None:
    ended = await run(stages, plan, path)
    assert (ended.refused, ended.capped) == ({}, None)
    rows = list(lines(path))
    assert {(row["query_id"], row["model"]) for row in rows} == {
        (query.query_id, model.name) for query in QUERIES for model in MODELS
    }
    (first,) = [row for row in rows if (row["query_id"], row["model"]) == ("q0", "s")]
    assert [sample["answer"] for sample in first["samples"]] == ["1", "2", "1", "2"]
    assert [sample["correct"] for sample in first["samples"]] == [True, False, True, False]
    assert all(0 < sample["scores"]["logprob"] < 1 for sample in [*first["samples"], first["greedy"]])
    assert (first["gold"], first["type"], first["temperature"]) == ("1", "number", 0.7)
    scored = 2.0 * 5 * len(rows)
    assert math.fsum(row["flops"] for row in rows) == pytest.approx(generation(stages).flops() + scored)
    found = read([path])
    assert len(found.queries) == len(QUERIES)
    assert all(set(query.greedy) == {"s", "l"} for query in found.queries)


async def test_a_second_run_buys_nothing_and_one_that_was_stopped_goes_on(
    stages: Stages, plan: Plan, path: Path
) -> None:
    await run(stages, plan, path, queries=QUERIES[:2])
    begun = len(generation(stages).starts)
    await run(stages, plan, path, queries=QUERIES[:2])
    assert len(generation(stages).starts) == begun
    await run(stages, plan, path)
    assert len(generation(stages).starts) == len(QUERIES) * len(MODELS) * 2
    rows = [(row["query_id"], row["model"]) for row in lines(path)]
    assert len(rows) == len(set(rows)) == len(QUERIES) * len(MODELS)


@pytest.mark.parametrize("share", [0.05, 0.9, 1.6])
async def test_a_cap_is_never_exceeded_and_more_goes_on(
    stages: Stages, plan: Plan, path: Path, share: float
) -> None:
    worst = at_worst(QUERIES[0], MODELS[1], plan, plan.samples + 1)
    ended = await run(stages, plan, path, left=Cost(share * worst.flops, math.inf, math.inf))
    assert generation(stages).flops() <= share * worst.flops
    assert ended.capped
    bought = {row["model"] for row in lines(path)}
    first = at_worst(QUERIES[0], MODELS[0], plan, plan.samples + 1)
    assert ("s" in bought) == (first.flops <= share * worst.flops)
    assert ("l" in bought) == (share > 1)
    ended = await run(stages, plan, path, left=Cost(50 * worst.flops, math.inf, math.inf))
    assert ended.capped is None
    assert len(list(lines(path))) == len(QUERIES) * len(MODELS)


async def test_where_nothing_says_how_long_a_sample_may_be_no_cap_has_room(plan: Plan) -> None:
    endless = Model(name="e", shape=Shape(active_parameters=10))
    assert at_worst(QUERIES[0], endless, plan, 1).flops == math.inf
    told = Plan(4, 0.7, [], 1, max_tokens=10)
    assert at_worst(QUERIES[0], endless, told, 1).flops < at_worst(QUERIES[0], MODELS[0], plan, 1).flops


async def test_what_is_expected_is_what_it_comes_to(stages: Stages, plan: Plan, path: Path) -> None:
    with opened(path):
        jobs, _ = missing(path, QUERIES, MODELS, plan)
    expected = foreseen(jobs, plan, lambda model: 40.0)
    await run(stages, plan, path)
    assert expected.flops == pytest.approx(generation(stages).flops(), rel=0.5)


async def test_where_a_service_fails_what_is_in_flight_is_kept_and_the_error_told(
    stages: Stages, plan: Plan, path: Path
) -> None:
    def script(model: str, index: int) -> Said | Exception:
        return (
            Unavailable("away") if len(generation(stages).starts) > 7 and model == "l" else said(model, index)
        )

    generation(stages).script = script
    with pytest.raises(Unavailable, match="away"):
        await run(stages, plan, path)
    done = [row for row in lines(path) if row["samples"]]
    assert 2 <= len(done) < len(QUERIES) * len(MODELS)
    assert generation(stages).running == 0
    generation(stages).script = said
    await run(stages, plan, path)
    assert len([row for row in lines(path) if row["samples"]]) == len(QUERIES) * len(MODELS)


async def test_what_a_round_that_failed_has_cost_is_kept_for_the_cap(
    stages: Stages, plan: Plan, path: Path
) -> None:
    class Broken:
        async def score(self, request: Any) -> Any:
            raise Unavailable("no verifier")

    broken = Stages(stages.generation, Broken(), stages.difficulty, stages.aggregation)  # type: ignore[arg-type]
    with pytest.raises(Unavailable):
        await run(broken, plan, path)
    _, spent = missing(path, QUERIES, MODELS, plan)
    assert spent.flops == pytest.approx(generation(stages).flops())
    assert len(missing(path, QUERIES, MODELS, plan)[0]) == len(QUERIES) * len(MODELS)


async def test_samples_that_broke_off_are_not_taken_for_wrong(stages: Stages, plan: Plan, path: Path) -> None:
    class Broken(ScriptedGeneration):
        async def generate(self, requests: AsyncIterator[GenerateRequest]) -> Any:
            async for response in super().generate(requests):
                if not response.HasField("sample"):
                    yield response

    stages = Stages(Broken(MODELS, said), stages.verification, stages.difficulty, stages.aggregation)
    with pytest.raises(Unavailable, match="broke off"):
        await run(stages, plan, path)
    assert not any(row["samples"] for row in lines(path))


async def test_a_query_that_a_service_does_not_take_is_left_out_and_the_others_go_on(
    stages: Stages, plan: Plan, path: Path
) -> None:
    inner = stages.generation

    class Picky:
        async def generate(self, requests: AsyncIterator[GenerateRequest]) -> AsyncIterator[GenerateResponse]:
            first = await anext(requests)
            if first.start.query_id == "q2":
                raise InvalidArgument("messages", "too long")

            async def again() -> AsyncIterator[GenerateRequest]:
                yield first

            async for response in inner.generate(again()):
                yield response

    picky = Stages(Picky(), stages.verification, stages.difficulty, stages.aggregation)  # type: ignore[arg-type]
    ended = await run(picky, plan, path)
    assert list(ended.refused) == ["q2"]
    assert "too long" in ended.refused["q2"]
    assert {row["query_id"] for row in lines(path)} == {query.query_id for query in QUERIES} - {"q2"}


async def test_true_answers_that_cannot_be_read_are_found_before_anything_is_bought(stages: Stages) -> None:
    no = Labelled("no", "What?", "who knows", ANSWER_TYPE_NUMBER, "")
    word = Labelled("word", "What?", "who knows", ANSWER_TYPE_TEXT, "")
    assert await unreadable(stages, [*QUERIES, no, word], 2) == [no]
    assert not generation(stages).starts


async def test_how_fast_a_model_is_is_measured_within_the_cap(stages: Stages, plan: Plan) -> None:
    row = await timed(stages, MODELS[0], QUERIES, plan, FREE)
    assert row
    assert row["flops"] == pytest.approx(generation(stages).flops())
    assert row["samples"] == []
    assert row["seconds_per_token"] > 0
    assert await timed(stages, MODELS[0], QUERIES, plan, Cost(row["flops"] / 1e3, math.inf, math.inf)) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"temperature": 1.0}, "temperature 0.7"),
        ({"samples": 5}, "4 samples"),
    ],
)
async def test_a_recording_that_was_made_otherwise_is_not_gone_on_with(
    stages: Stages, plan: Plan, path: Path, changes: dict[str, Any], said: str
) -> None:
    await run(stages, plan, path)
    with pytest.raises(RecordingError, match=f"recorded with {said}"):
        missing(path, QUERIES, MODELS, Plan(**(vars(plan) | changes)))
    other = Labelled("q1", "What is 8+8?", "16", ANSWER_TYPE_NUMBER, "")
    with pytest.raises(RecordingError, match="another prompt"):
        missing(path, [other], MODELS, plan)
    mended = Labelled("q1", QUERIES[1].prompt, "16", ANSWER_TYPE_NUMBER, "")
    with pytest.raises(RecordingError, match="another true answer"):
        missing(path, [mended], MODELS, plan)


async def test_scores_that_are_asked_for_later_are_missed(stages: Stages, plan: Plan, path: Path) -> None:
    await run(stages, Plan(**(vars(plan) | {"verifiers": []})), path)
    with pytest.raises(RecordingError, match="no scores of logprob"):
        missing(path, QUERIES, MODELS, plan)


async def test_one_run_at_a_time(path: Path) -> None:
    with opened(path), pytest.raises(RecordingError, match="another run is at work"), opened(path):
        pass
    with opened(path):
        pass


async def test_a_run_that_is_cancelled_leaves_whole_lines(stages: Stages, plan: Plan, path: Path) -> None:
    generation(stages).script = lambda model, index: number(1, late=len(generation(stages).starts) > 12)
    task = asyncio.create_task(run(stages, plan, path))
    while len(generation(stages).starts) <= 12:  # noqa: ASYNC110 (the script has no event)
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert generation(stages).running == 0
    before = len(list(lines(path)))
    generation(stages).gate.set()
    await run(stages, plan, path)
    assert 0 < before < len(list(lines(path))) == len(QUERIES) * len(MODELS)


LINE = json.dumps({"query_id": "q0", "model": "s", "samples": []}).encode() + b"\n"


@given(cut=st.integers(0, len(LINE)))
def test_a_line_that_was_cut_off_is_dropped_and_the_others_stay(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.jsonl"
    path.write_bytes(LINE + LINE[:cut])
    with opened(path) as file:
        append(file, {"query_id": "q1", "model": "s", "samples": []})
    # A line that lacks only its end is whole.
    whole = cut >= len(LINE) - 1
    assert [row["query_id"] for row in lines(path)] == ["q0"] * (1 + whole) + ["q1"]


def test_what_does_not_fit_on_the_disk_is_taken_back(tmp_path: Path) -> None:
    class Full(FileIO):
        def write(self, data: Any) -> int:
            if len(data) > 40:
                return super().write(data[:40])
            raise OSError(28, "No space left on device")

    path = tmp_path / "r.jsonl"
    path.write_bytes(LINE)
    with Full(path, "ab") as file, pytest.raises(OSError, match="No space"):
        append(file, {"query_id": "q1", "model": "s", "samples": [], "prompt": "x" * 100})
    assert path.read_bytes() == LINE


def test_lines_are_not_added_to_a_packed_recording(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="not packed"), opened(tmp_path / "r.jsonl.gz"):
        pass


def test_groups_take_turns() -> None:
    queries = [Labelled(f"{g}{n}", "?", "1", ANSWER_TYPE_NUMBER, g) for g in "ab" for n in range(3)]
    queries += [Labelled("c0", "?", "1", ANSWER_TYPE_NUMBER, "c")]
    assert [one.query_id for one in in_turn(queries, 5)] == ["a0", "b0", "c0", "a1", "b1"]
    assert len(in_turn(queries)) == 7
    assert [one.query_id for one in in_turn(queries, 100)][-2:] == ["a2", "b2"]


def test_labelled_queries_are_read(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    rows = [
        {"prompt": "2+2\u2028?", "answer": 4, "type": "NUMBER", "group": 1, "query_id": "x"},
        {"prompt": "Who?", "answer": "Ann"},
    ]
    path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    assert read_queries(path) == [
        Labelled("x", "2+2\u2028?", "4", ANSWER_TYPE_NUMBER, "1"),
        Labelled("line-3", "Who?", "Ann", ANSWER_TYPE_TEXT, ""),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "line 2: not a labelled query"),
        (b"7", "line 2: .*a line is an object"),
        (b"\xff", "line 2: not a labelled query"),
        (b"[" * 100_000, "line 2: not a labelled query"),
        (b'{"prompt": " ", "answer": "1"}', "line 2: .*prompt is no text, or empty"),
        (b'{"prompt": "?", "answer": null}', "line 2: .*answer is no text or number"),
        (b'{"prompt": "?", "answer": true}', "line 2: .*answer is no text or number"),
        (b'{"prompt": "?"}', "line 2: .*answer is no text or number"),
        (b'{"prompt": "?", "answer": "1", "type": "code"}', "type 'code' is none of number"),
        (b'{"prompt": "?", "answer": "1", "type": ["number"]}', "type .* is none of"),
        (b'{"prompt": "?", "answer": "1", "group": {}}', "group is no text"),
        (b'{"prompt": "?", "answer": "1", "query_id": "line-1"}', "'line-1' is there twice"),
    ],
)
def test_what_is_wrong_with_a_query_is_said_with_its_line(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'{"prompt": "2+2", "answer": "4"}\n' + line + b"\n")
    with pytest.raises(QueriesError, match=said):
        read_queries(path)


def test_a_file_without_queries_is_said(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("\n")
    with pytest.raises(QueriesError, match="no queries"):
        read_queries(tmp_path / "q.jsonl")


@given(
    row=st.dictionaries(
        st.sampled_from(["prompt", "answer", "type", "group", "query_id"]),
        st.none()
        | st.text(max_size=6)
        | st.integers()
        | st.floats()
        | st.booleans()
        | st.lists(st.integers()),
    )
)
def test_any_query_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, row: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "any-query.jsonl"
    path.write_text(json.dumps(row) + "\n")
    try:
        (query,) = read_queries(path)
    except QueriesError:
        pass
    else:
        assert query.prompt.strip()
        assert query.answer.strip()
        assert query.query_id
