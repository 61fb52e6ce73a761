"""Each stored text is scored once."""

from __future__ import annotations

import asyncio
from pathlib import Path

from isoflop.v1.verification_pb2 import (
    ChainScore,
    DescribeVerifiersRequest,
    DescribeVerifiersResponse,
    ScoreRequest,
    ScoreResponse,
)

from benchmarks.scores import score_texts, unscored
from training.splits import Problem
from training.store import Lane, seed_of

PROBLEM = Problem("q1", "1+1", "2", 1, "expression", "1+1")
OTHER = Problem("q2", "2+3", "5", 1, "expression", "2+3")
LANE = Lane("abacus-s", "0123456789abcdef", 0.7)


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


async def test_each_text_is_scored_once_and_its_cost_kept(tmp_path: Path) -> None:
    texts = [f"1+1\nanswer: {2 + index % 2}" for index in range(6)]
    samples = [{"text": text, "steps": [[4, 4, -0.5], [len(text), 5, None]]} for text in texts]
    key = {"query_id": PROBLEM.query_id, "seed": seed_of(PROBLEM)}
    rows = [{**key, "first": 0, "prompt_tokens": 4, "samples": samples}]
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
