"""Feedback to finished queries: what is compared, kept and counted, and what is never a truth."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from isoflop.errors import FailedPrecondition, InvalidArgument, NotFound
from isoflop.v1.common_pb2 import (
    ANSWER_TYPE_CHOICE,
    ANSWER_TYPE_EXPRESSION,
    ANSWER_TYPE_PATTERN,
    ANSWER_TYPE_TEXT,
    AnswerFormat,
)
from isoflop.v1.router_pb2 import (
    Budget,
    Effort,
    Filters,
    SolveRequest,
    SolveResponse,
    SubmitFeedbackRequest,
    SubmitFeedbackResponse,
)
from pydantic import ValidationError
from scripted_stages import BLANK, Said, listed, number, same
from scripted_suite import MakeSuite, Suite
from synthetic import EASY, HARD, make_profile

from router.feedback_report import report
from router.settings import RouterSettings
from router.truths import Answered, Truth, read

PROMPT = "What is the answer to the unmistakable question?"
EXPRESSION = AnswerFormat(type=ANSWER_TYPE_EXPRESSION)
PATTERN = AnswerFormat(type=ANSWER_TYPE_PATTERN, pattern=r"=> (.*)")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "feedback.db"


async def solved(suite: Suite, **fields: Any) -> SolveResponse:
    return await suite.router.solve(SolveRequest(prompt=PROMPT, **fields))


async def tell(suite: Suite, query_id: str, **truth: Any) -> SubmitFeedbackResponse:
    return await suite.router.feedback(SubmitFeedbackRequest(query_id=query_id, **truth))


@pytest.mark.parametrize(
    ("said", "form", "truth", "right"),
    [
        ("The answer is 421.", AnswerFormat(), "421", True),
        ("The answer is 421.", AnswerFormat(), "421.0", True),
        ("The answer is 421.", AnswerFormat(), "the answer is 421", True),
        ("The answer is 421.", AnswerFormat(), "422", False),
        (r"The answer is $\frac{1}{2}$", EXPRESSION, "0.5", True),
        (r"The answer is $x(x+1)$", EXPRESSION, "x^2+x", True),
        (r"The answer is $x(x+1)$", EXPRESSION, "x^2+2x", False),
        ("The answer is (B).", AnswerFormat(type=ANSWER_TYPE_CHOICE), "b", True),
        ("Paris", AnswerFormat(type=ANSWER_TYPE_TEXT), " paris", True),
        ("=> one two", PATTERN, "one two ", True),
        ("=> one two", PATTERN, "one", False),
        ("I do not know.", AnswerFormat(), "421", False),
    ],
)
async def test_an_answer_is_compared_as_votes_are(
    make_suite: MakeSuite, path: Path, said: str, form: AnswerFormat, truth: str, right: bool
) -> None:
    suite = make_suite(same(Said(said)), EASY, feedback=path)
    result = await solved(suite, answer_format=form)
    judged = await tell(suite, result.query_id, answer=truth)
    assert (judged.right, judged.returned) == (right, result.answer)
    assert [answered.truth for answered in read(path)] == [Truth(right, truth)]


@pytest.mark.parametrize(
    ("truth", "field"),
    [
        ({}, "truth"),
        ({"answer": ""}, "answer"),
        ({"answer": "no number"}, "answer"),
        ({"answer": "7" * (65 << 10)}, "answer"),
    ],
)
async def test_what_is_no_truth_is_refused_and_loses_nothing(
    make_suite: MakeSuite, path: Path, truth: dict[str, Any], field: str
) -> None:
    suite = make_suite(same(number(421)), EASY, feedback=path)
    result = await solved(suite)
    await tell(suite, result.query_id, right=False)
    with pytest.raises(InvalidArgument) as caught:
        await tell(suite, result.query_id, **truth)
    assert caught.value.field == field
    assert [answered.truth for answered in read(path)] == [Truth(False, None)]


async def test_no_answer_cannot_be_called_right(make_suite: MakeSuite, path: Path) -> None:
    suite = make_suite(same(BLANK), EASY, feedback=path)
    result = await solved(suite)
    assert not result.answer
    with pytest.raises(InvalidArgument, match="right"):
        await tell(suite, result.query_id, right=True)
    assert not (await tell(suite, result.query_id, right=False)).right


async def test_feedback_to_what_is_unknown_runs_or_is_not_kept(make_suite: MakeSuite, path: Path) -> None:
    suite = make_suite(same(number(421, late=True)), EASY, feedback=path)
    with pytest.raises(NotFound, match="nobody"):
        await tell(suite, "nobody", right=True)
    stream = suite.router.stream(SolveRequest(prompt=PROMPT))
    query_id = (await anext(stream)).started.query_id
    with pytest.raises(FailedPrecondition, match="still runs"):
        await tell(suite, query_id, right=True)
    suite.generation.gate.set()
    async for event in stream:
        # As soon as there is a result there can be feedback.
        if event.HasField("final"):
            assert (await tell(suite, query_id, right=True)).right
    without = make_suite(same(number(421)), EASY)
    result = await solved(without)
    with pytest.raises(FailedPrecondition, match="--feedback"):
        await tell(without, result.query_id, right=True)


async def test_a_router_that_was_started_again_takes_feedback(make_suite: MakeSuite, path: Path) -> None:
    result = await solved(make_suite(same(number(421)), EASY, feedback=path))
    assert (await tell(make_suite(same(BLANK), feedback=path), result.query_id, answer="421")).right


async def test_truths_are_counted_once_and_drift_is_of_the_last_word(
    make_suite: MakeSuite, path: Path
) -> None:
    suite = make_suite(same(number(421)), EASY, feedback=path)
    first, second = await solved(suite), await solved(suite)
    assert math.isnan(suite.metric("feedback_drift"))
    for _ in range(3):
        await tell(suite, first.query_id, right=True)
    await tell(suite, second.query_id, right=True)
    assert suite.metric("feedback_total", right="true") == 2
    predicted = first.confidence + second.confidence
    assert suite.metric("feedback_predicted_total") == pytest.approx(predicted)
    assert suite.metric("feedback_drift") == pytest.approx(1 - predicted / 2)
    await tell(suite, second.query_id, right=False)
    assert suite.metric("feedback_total", right="true") == 2
    assert suite.metric("feedback_total", right="false") == 0
    assert suite.metric("feedback_drift") == pytest.approx(0.5 - predicted / 2)


async def test_what_is_kept_is_what_was_decided_and_no_prompt(make_suite: MakeSuite, path: Path) -> None:
    suite = make_suite(listed(number(421), number(7), number(421)), HARD, feedback=path)
    result = await solved(suite, budget=Budget(flops=1e12), effort=Effort.EFFORT_HIGH, request_id="unusual")
    assert result.rounds
    (answered,) = read(path)
    bought = result.rounds[0].action
    assert answered.first.bought.split()[:3] == [bought.model, str(bought.samples), bought.strategy]
    assert answered.first.propensity == 1
    assert {offer.propensity for offer in answered.offers[1:]} == {0}
    assert (answered.query_id, answered.profile) == (result.query_id, "synthetic-1")
    assert (answered.difficulty, answered.rounds) == (HARD, len(result.rounds))
    assert (answered.answer, answered.confidence) == (result.answer, result.confidence)
    assert answered.flops == result.bill.flops
    assert answered.prompt_bytes == len(PROMPT)
    assert answered.asked == SolveRequest(budget=Budget(flops=1e12), effort=Effort.EFFORT_HIGH)
    assert answered.truth is None
    everything = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"unmistakable" not in everything
    assert b"unusual" not in everything


async def test_an_answer_comes_though_it_cannot_be_recorded(make_suite: MakeSuite, path: Path) -> None:
    suite = make_suite(same(number(421)), EASY, feedback=path)
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("begin immediate")
        result = await solved(suite)
        other.execute("rollback")
    assert result.answer == "421"
    assert suite.metric("feedback_unrecorded_total") == 1
    with pytest.raises(FailedPrecondition, match="not recorded"):
        await tell(suite, result.query_id, right=True)


async def test_agreement_is_no_truth(make_suite: MakeSuite, path: Path) -> None:
    """Votes that all agree, as sure as can be, are right only when a caller says so."""
    suite = make_suite(same(number(421)), EASY, feedback=path)
    results = [await solved(suite, filters=Filters(models=["s"], samples=32)) for _ in range(5)]
    assert min(result.confidence for result in results) > 0.99
    for _ in range(2):
        found = report(read(path), make_profile())
        assert (found.queries, found.truths) == (5, 0)
        assert math.isnan(found.accuracy)
        assert math.isnan(found.drift.value)
        assert math.isnan(found.calibration.brier)
        assert not found.corrections
        assert found.off_policy
        assert found.off_policy.queries == 0
        assert suite.metric("feedback_total", right="true") == 0
        assert math.isnan(suite.metric("feedback_drift"))
        # Nor do more of the same make it one.
        await asyncio.gather(*(suite.router.query(result.query_id) for result in results))
    assert not (await tell(suite, results[0].query_id, right=False)).right
    found = report(read(path), make_profile())
    assert (found.truths, found.accuracy) == (1, 0.0)
    assert found.drift.value == pytest.approx(-results[0].confidence)


async def test_an_answer_does_not_wait_for_its_record_beyond_the_deadline(
    make_suite: MakeSuite, path: Path
) -> None:
    suite = make_suite(same(number(421)), EASY, feedback=path)

    class Stalled:
        """A file on a disk that hangs."""

        async def add(self, answered: Answered) -> None:
            await asyncio.Event().wait()

        async def close(self) -> None:
            pass

    feedback = suite.router._feedback
    assert feedback
    await feedback.close()
    feedback._truths = Stalled()  # type: ignore[assignment]
    result = await asyncio.wait_for(suite.router.solve(SolveRequest(prompt=PROMPT), 1.0), 30)
    assert result.answer == "421"
    assert suite.metric("feedback_unrecorded_total") == 1


class TestExploration:
    async def test_it_is_off_by_default(self, make_suite: MakeSuite, path: Path) -> None:
        suite = make_suite(same(number(421)), HARD, feedback=path)
        for _ in range(20):
            assert not any(each.explored for each in (await solved(suite)).rounds)
        assert {answered.taken for answered in read(path)} == {0}

    async def test_a_share_of_queries_begins_otherwise_and_says_so(
        self, make_suite: MakeSuite, path: Path
    ) -> None:
        suite = make_suite(same(number(421)), HARD, feedback=path, explore_share=0.8)
        results = {result.query_id: result for result in [await solved(suite) for _ in range(40)]}
        own = (await suite.router.plan(SolveRequest(prompt=PROMPT))).action
        explored = 0
        for answered in read(path):
            first, *later = results[answered.query_id].rounds
            assert first.explored == (answered.taken > 0)
            assert not any(each.explored for each in later)
            bought = first.action
            assert answered.first.bought.split()[:3] == [bought.model, str(bought.samples), bought.strategy]
            assert answered.first.propensity == pytest.approx(0.2 if first.explored else 0.4)
            if not first.explored:
                assert (bought.model, bought.samples, bought.strategy) == (
                    own.model,
                    own.samples,
                    own.strategy,
                )
            explored += first.explored
        # Of 40 with a chance of .6 each: less than 10 or 40 has one of about 1e-6.
        assert 10 <= explored < 40

    async def test_a_caller_s_own_plan_is_not_explored(self, make_suite: MakeSuite, path: Path) -> None:
        suite = make_suite(same(number(421)), HARD, feedback=path, explore_share=1.0)
        for _ in range(10):
            result = await solved(suite, filters=Filters(models=["m"], samples=3))
            assert [(each.action.model, each.action.samples) for each in result.rounds] == [("m", 3)]
        assert {answered.first.propensity for answered in read(path)} == {1.0}

    def test_without_feedback_nothing_is_explored(self) -> None:
        with pytest.raises(ValidationError, match="explore_share needs feedback"):
            RouterSettings(explore_share=0.1)
