"""Samples are made in blocks: those that are missing, and no more."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
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

from services.common.catalog import CatalogError
from training.samples import BLOCK, BlockJob, lane_of, missing, sample, sample_block, sampled, stored_samples
from training.shares import WorkFailed
from training.splits import Problem, first_of_each_group
from training.store import Lane, append, read, seed_of

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

    with pytest.raises(WorkFailed, match="0 of 2"):
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


def test_samples_of_a_real_model_are_made_once(tmp_path: Path) -> None:
    problems = first_of_each_group("heldout.jsonl", 2)
    lane = lane_of("abacus-s", 0.7)
    tokens, _ = sample([(lane, problems, 3), (lane, problems[:1], 4)], folder=tmp_path, workers=1, slots=2)
    first = sampled(lane, problems, 3, tmp_path)
    assert list(first) == [problem.query_id for problem in problems]
    for problem in problems:
        one = first[problem.query_id]
        assert one.right == [answer == problem.answer for answer in one.answers]
        assert len(one.texts) == len(one.tokens) == 3
    assert tokens >= sum(sum(one.tokens) for one in first.values())
    assert list(sampled(lane, problems, 4, tmp_path)) == [problems[0].query_id]
    assert sample([(lane, problems, 3)], folder=tmp_path, workers=1)[0] == 0


def test_a_model_that_is_not_there_is_told() -> None:
    with pytest.raises(CatalogError, match="no model abacus-x"):
        lane_of("abacus-x", 0.7)
