"""The checked-in models answer the examples, and every line of theirs is right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from isoflop.v1.common_pb2 import Message

from training.problems import extract_answer, judge_solution
from training.sampling import open_file, sample_round
from training.tokens import encode

MODELS = Path(__file__).resolve().parents[2] / "models"
EXPRESSION = ("What is 17+24*3?", "89")
STORY = ("Tom has 12 apples. Ann gives him 3 bags of 5 apples. How many apples does Tom have now?", "27")


@pytest.mark.parametrize("name", ["abacus-m", "abacus-l"])
@pytest.mark.parametrize(("prompt", "answer"), [EXPRESSION, STORY])
async def test_examples_are_answered_and_every_line_is_right(name: str, prompt: str, answer: str) -> None:
    async with open_file(MODELS / f"{name}.gguf") as generation:
        greedy = (await sample_round(generation, name, prompt)).samples[0]
        assert extract_answer(greedy.text) == answer
        assert all(verdict.is_right for verdict in judge_solution(answer, greedy.text.split("\n")))
        assert greedy.tokens == len(encode(greedy.text)) + 1
        sampled = (await sample_round(generation, name, prompt, samples=8, temperature=0.7, seed=1)).samples
        assert sum(extract_answer(sample.text) == answer for sample in sampled) >= 4


async def test_modes_are_chosen_by_the_conversation() -> None:
    prompt, answer = EXPRESSION
    asked = Message(role="user", content=prompt)
    async with open_file(MODELS / "abacus-m.gguf") as generation:
        thinking = [Message(role="system", content="think"), asked]
        thought = (await sample_round(generation, "abacus-m", thinking)).samples[0].text
        assert "\ncheck: " in thought
        assert extract_answer(thought) == answer
        draft = "17+24*3\n24*3=72;17+72\n17+72=99\nanswer: 99"
        critique = [asked, Message(role="assistant", content=draft), Message(role="user", content="critique")]
        said = (await sample_round(generation, "abacus-m", critique)).samples[0].text
        assert re.fullmatch(r"(\d ok\n)*\d (ok|wrong)", said)
        revise = [
            *critique,
            Message(role="assistant", content=said),
            Message(role="user", content="revise"),
        ]
        revised = (await sample_round(generation, "abacus-m", revise)).samples[0].text
        assert extract_answer(revised) is not None
