"""Against recordings of real models: answers found in texts, and decisions of equality."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from isoflop.v1 import common_pb2 as common
from isoflop.v1.aggregation_pb2 import AggregateRequest, Candidate

from services.aggregation.core import Aggregation

RECORDINGS = Path(__file__).resolve().parents[4] / "shared" / "data" / "recordings"


def recorded(name: str) -> Iterator[dict[str, Any]]:
    path = RECORDINGS / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with gzip.open(path, "rt") as lines:
        yield from map(json.loads, lines)


async def equal(aggregation: Aggregation, gold: str, text: str) -> bool | None:
    """Whether the answer in a text is the gold one; None where there is none."""
    response = await aggregation.aggregate(
        AggregateRequest(
            format=common.AnswerFormat(type=common.ANSWER_TYPE_EXPRESSION),
            candidates=[
                Candidate(id="gold", text=f"\\boxed{{{gold}}}", weight=1),
                Candidate(id="text", text=text, weight=1),
            ],
        )
    )
    return None if any(blank.id == "text" for blank in response.blanks) else len(response.clusters) == 1


@pytest.mark.shared_data
async def test_answers_are_found_in_texts(aggregation: Aggregation) -> None:
    """Every text with a complete box has an answer, and no other has one; wrong texts are not found right."""
    found = boxed = right = total = 0
    for query in list(recorded("math500_steps.jsonl.gz"))[::10]:
        for sample in query["samples"]:
            verdict = await equal(aggregation, query["gold"], sample["text"])
            total += 1
            boxed += "\\boxed{" in sample["text"]
            found += verdict is not None
            right += verdict is True
    assert total == 200
    assert found == boxed
    # 74.6 % of all 2000 are right, by us and by math-verify on the whole text alike.
    assert right / total > 0.6


@pytest.mark.shared_data
async def test_equality_is_decided_as_it_was_graded(aggregation: Aggregation) -> None:
    """On 200 pairs of gold and answer: `correct` was graded with math-verify on the whole answer."""
    pairs: dict[tuple[str, str], bool] = {}
    for query in recorded("math500.jsonl.gz"):
        for sample in query["samples"]:
            if sample["answer"]:
                pairs[query["gold"], sample["answer"]] = sample["correct"]
    chosen = sorted(pairs.items())[:: len(pairs) // 200]
    differ = [
        (gold, answer, correct)
        for (gold, answer), correct in chosen
        if bool(await equal(aggregation, gold, f"\\boxed{{{answer}}}")) != correct
    ]
    assert len(differ) <= len(chosen) // 50, differ
