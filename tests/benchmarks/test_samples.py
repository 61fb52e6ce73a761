"""The store keeps whole blocks, drops what was cut short, and asks for what is missing and no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from isoflop.v1.common_pb2 import FINISH_REASON_LENGTH, FINISH_REASON_STOP, Sample, Step
from isoflop.v1.generation_pb2 import (
    DescribeModelsRequest,
    DescribeModelsResponse,
    GenerateRequest,
    GenerateResponse,
    RoundUsage,
    StartRound,
)
from isoflop.v1.verification_pb2 import (
    ChainScore,
    DescribeVerifiersRequest,
    DescribeVerifiersResponse,
    ScoreRequest,
    ScoreResponse,
)

from benchmarks.samples import (
    BLOCK,
    BlockJob,
    Lane,
    SamplingFailed,
    Writer,
    append,
    in_processes,
    missing,
    read,
    repair,
    sample_block,
    score_texts,
    seed_of,
    stored_samples,
    unscored,
)
from training.splits import Problem

PROBLEM = Problem("q1", "1+1", "2", 1, "expression", "1+1")
OTHER = Problem("q2", "2+3", "5", 1, "expression", "2+3")
LANE = Lane("abacus-s", "0123456789abcdef", 0.7)


class ScriptedGeneration:
    """Sample i says 1+1 = 2 + i mod 2, and comes last to first."""

    def __init__(self) -> None:
        self.rounds: list[StartRound] = []

    async def generate(
        self, requests: AsyncIterator[GenerateRequest]
    ) -> AsyncGenerator[GenerateResponse, None]:
        start = (await anext(requests)).start
        self.rounds.append(start)
        count = start.branches[0].samples
        for index in reversed(range(start.first_sample, start.first_sample + count)):
            text = f"1+1\nanswer: {2 + index % 2}"
            yield GenerateResponse(
                sample=Sample(
                    id=f"{start.model}/{index}",
                    text=text,
                    tokens=9,
                    finish_reason=FINISH_REASON_LENGTH if index == 3 else FINISH_REASON_STOP,
                    logprob=-1.5,
                    steps=[Step(end=4, tokens=4, logprob=-0.5), Step(end=len(text), tokens=5)],
                )
            )
        yield GenerateResponse(usage=RoundUsage(samples=count, prompt_tokens=4, cached_tokens=4 * count - 4))

    async def describe(self, request: DescribeModelsRequest) -> DescribeModelsResponse:
        raise NotImplementedError


class ScriptedVerification:
    """A step's score is a tenth of its number; a text with `3` has no score."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        (chain,) = request.chains
        self.asked.append(chain.text)
        assert request.verifier == "v"
        assert [step.end for step in chain.steps] == [4, len(chain.text)]
        assert not chain.steps[1].HasField("logprob")
        score = (
            ChainScore(id="1", error="why")
            if "3" in chain.text
            else ChainScore(id="1", steps=[0.1234567, 0.2])
        )
        return ScoreResponse(scores=[score], tokens=13, flops=130.0, flops_without_attention=100.0)

    async def describe(self, request: DescribeVerifiersRequest) -> DescribeVerifiersResponse:
        raise NotImplementedError


async def block(first: int, count: int) -> dict[str, Any]:
    return await sample_block(ScriptedGeneration(), BlockJob(LANE, PROBLEM, first, count))


async def test_a_block_has_answers_steps_and_what_the_prompt_takes() -> None:
    generation = ScriptedGeneration()
    row = await sample_block(generation, BlockJob(LANE, PROBLEM, 2, 3))

    (start,) = generation.rounds
    assert (start.query_id, start.model, start.first_sample) == ("q1", "abacus-s", 2)
    assert (start.sampling.temperature, start.sampling.seed) == (0.7, seed_of(PROBLEM))
    assert (row["query_id"], row["seed"], row["first"]) == ("q1", seed_of(PROBLEM), 2)
    assert row["prompt_tokens"] == 4
    assert [sample["answer"] for sample in row["samples"]] == ["2", "3", "2"]
    assert [sample["right"] for sample in row["samples"]] == [True, False, True]
    assert ["cut" in sample for sample in row["samples"]] == [False, True, False]
    assert row["samples"][0]["steps"] == [[4, 4, -0.5], [13, 5, None]]
    assert row["samples"][0]["logprob"] == -1.5


async def test_a_round_that_lacks_samples_is_no_block() -> None:
    class Short(ScriptedGeneration):
        async def generate(
            self, requests: AsyncIterator[GenerateRequest]
        ) -> AsyncGenerator[GenerateResponse, None]:
            yield GenerateResponse(usage=RoundUsage(samples=2))

    with pytest.raises(SamplingFailed, match="0 of 2"):
        await sample_block(Short(), BlockJob(LANE, PROBLEM, 0, 2))


async def test_only_what_is_missing_is_asked_for(tmp_path: Path) -> None:
    path = LANE.path(tmp_path)
    assert [job.first for job in missing(LANE, [PROBLEM], 70, read(path))] == [0, BLOCK, 2 * BLOCK]
    append(path, [await block(0, 4)])
    append(path, [await block(BLOCK, BLOCK)])

    jobs = list(missing(LANE, [PROBLEM, OTHER], 70, read(path)))
    # The first block has 4 of its samples only: it is made as a whole.
    assert [(job.problem.query_id, job.first, job.count) for job in jobs] == [
        ("q1", 0, 32),
        ("q1", 64, 6),
        ("q2", 0, 32),
        ("q2", 32, 32),
        ("q2", 64, 6),
    ]
    assert not list(missing(LANE, [PROBLEM], 4, read(path)))
    # Another prompt under the same name has other seeds: what is stored is not its.
    assert list(missing(LANE, [replace(PROBLEM, prompt="1+2")], 4, read(path)))

    prompt, samples = stored_samples(read(path))["q1", seed_of(PROBLEM)]
    assert prompt == 4
    assert sorted(samples) == [*range(4), *range(BLOCK, 2 * BLOCK)]


@pytest.mark.parametrize("lost", [1, 7, 30])
def test_what_was_cut_short_is_dropped_and_the_file_goes_on(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "a.jsonl.gz"
    append(path, [{"a": 1}, {"a": 2}])
    whole = path.stat().st_size
    append(path, [{"a": 3, "more": "text of some length"}])
    path.write_bytes(path.read_bytes()[:-lost])

    assert [row["a"] for row in read(path)] == [1, 2]
    assert [row["a"] for row in repair(path)] == [1, 2]
    assert path.stat().st_size == whole
    append(path, [{"a": 4}])
    assert [row["a"] for row in read(path)] == [1, 2, 4]


def test_files_tell_models_apart_by_their_hash(tmp_path: Path) -> None:
    other = replace(LANE, sha256="fedcba9876543210")
    assert LANE.path(tmp_path) != other.path(tmp_path)
    assert LANE.path(tmp_path) != replace(LANE, temperature=1.0).path(tmp_path)
    assert LANE.scores_path(tmp_path, "v", "0" * 64) != LANE.scores_path(tmp_path, "v", "1" * 64)


async def test_each_text_is_scored_once_and_its_cost_kept(tmp_path: Path) -> None:
    rows = [await block(0, 6)]
    (job,) = unscored(LANE, [PROBLEM, OTHER], rows, [])
    assert len(job.texts) == 2

    verification = ScriptedVerification()
    row = await score_texts(verification, "v", job, asyncio.Semaphore(1))
    assert sorted(verification.asked) == ["1+1\nanswer: 2", "1+1\nanswer: 3"]
    good, bad = row["scores"]
    assert (good["steps"], good["tokens"], good["flops"], good["simple"]) == (
        [0.12346, 0.2],
        13,
        130.0,
        100.0,
    )
    assert (bad["steps"], bad["error"], bad["flops"]) == ([], "why", 130.0)
    assert not list(unscored(LANE, [PROBLEM, OTHER], rows, [row]))


def two_rows(share: int, send: Callable[[Lane, dict[str, Any]], None]) -> None:
    """Work of a process."""
    for index in range(2):
        send(LANE, {"of": share, "index": index})


def breaks(share: int, send: Callable[[Lane, dict[str, Any]], None]) -> None:
    """Work of a process that fails."""

    async def fail() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.to_thread(int, "x"))

    asyncio.run(fail())


def test_processes_send_what_they_make() -> None:
    made = list(in_processes(two_rows, [1, 2]))
    assert sorted((row["of"], row["index"]) for _, row, _ in made) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert all(lane == LANE and size > 10 for lane, _, size in made)
    assert not list(in_processes(two_rows, []))


def test_a_process_that_fails_is_told_of() -> None:
    with pytest.raises(SamplingFailed, match="ValueError: invalid literal"):
        list(in_processes(breaks, [1]))


def test_a_writer_writes_all_in_few_members(tmp_path: Path) -> None:
    writer = Writer()
    for index in range(5):
        writer.add(tmp_path / "a", {"i": index}, 400_000)
        writer.add(tmp_path / "b", {"i": index}, 1)
    writer.flush()
    assert [row["i"] for row in read(tmp_path / "a")] == list(range(5))
    assert [row["i"] for row in read(tmp_path / "b")] == list(range(5))
