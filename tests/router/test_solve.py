"""The life of a query, from what was asked to the answer and its bill, with real votes and real scores."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import Counter
from typing import Any

import pytest
from isoflop.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from isoflop.rpc import MAX_MESSAGE_BYTES
from isoflop.v1.aggregation_pb2 import AggregateRequest, AggregateResponse
from isoflop.v1.common_pb2 import (
    ANSWER_TYPE_PATTERN,
    STAGE_DIFFICULTY,
    STAGE_GENERATION,
    STAGE_VERIFICATION,
    AnswerFormat,
    Capabilities,
    Message,
)
from isoflop.v1.router_pb2 import (
    STATUS_ABANDONED,
    STATUS_ANSWERED,
    STATUS_DEGRADED,
    Budget,
    Effort,
    Filters,
    Objective,
    SolveRequest,
    SolveResponse,
)
from isoflop.v1.router_pb2 import StreamSolveResponse as Event
from isoflop.v1.verification_pb2 import (
    DescribeVerifiersRequest,
    DescribeVerifiersResponse,
    ScoreRequest,
    ScoreResponse,
    Verifier,
)
from scripted_stages import (
    BLANK,
    ESTIMATE_FLOPS,
    HOLD,
    Said,
    by_model,
    listed,
    number,
    same,
)
from scripted_suite import MakeSuite, Suite
from synthetic import EASY, HARD, IMPOSSIBLE, MIDDLE, arm_record, make_model, make_profile

from router.profile import Profile
from router.strategies import STRATEGIES
from services.aggregation.core import Aggregation
from services.verification.core import Verification


def ask(**fields: Any) -> SolveRequest:
    return SolveRequest(**{"prompt": "17*24+13", **fields})


async def events(suite: Suite, request: SolveRequest, seconds: float = math.inf) -> list[Event]:
    return [event async for event in suite.router.stream(request, seconds)]


def kinds(found: list[Event]) -> list[str]:
    return [event.WhichOneof("event") for event in found]


def check_bill(suite: Suite, result: SolveResponse) -> None:
    """What is billed is what generation counted, exactly, and the rest is the estimate and the scores."""
    lines = [line for line in result.bill.lines if line.stage == STAGE_GENERATION]
    for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "aborted_tokens"):
        counted = {model: getattr(usage, name) for model, usage in suite.generation.counted.items()}
        billed: Counter[str] = Counter()
        for line in lines:
            billed[line.model] += getattr(line, name)
        assert billed == Counter(counted), name
    assert sum(line.calls for line in lines) == sum(u.samples for u in suite.generation.counted.values())
    assert math.fsum(line.flops for line in lines) == pytest.approx(suite.generation.flops())
    assert [line.flops for line in result.bill.lines if line.stage == STAGE_DIFFICULTY] == [ESTIMATE_FLOPS]
    assert result.bill.flops == pytest.approx(math.fsum(line.flops for line in result.bill.lines))
    assert math.fsum(round.flops for round in result.rounds) + ESTIMATE_FLOPS == pytest.approx(
        result.bill.flops
    )


class TestAnswers:
    async def test_an_easy_query_is_answered_by_one_sample_of_the_smallest_model(
        self, make_suite: MakeSuite
    ) -> None:
        suite = make_suite(same(number(421)), EASY)
        result = await suite.router.solve(ask())
        assert (result.answer, result.status) == ("421", STATUS_ANSWERED)
        assert result.text == "The answer is 421."
        assert result.confidence > 0.95
        assert [(r.action.model, r.action.strategy, r.completed) for r in result.rounds] == [
            ("s", "single", 1)
        ]
        assert (result.profile, result.bill.currency) == ("synthetic-1", "USD")
        check_bill(suite, result)

    async def test_events_come_in_the_order_of_the_life(self, make_suite: MakeSuite) -> None:
        suite = make_suite(same(number(421)), EASY)
        found = await events(suite, ask())
        text = ["text"] * 4
        assert kinds(found) == ["started", "round", *text, "sample", "tally", "stopped", "final"]
        assert found[0].started.query_id == found[-1].final.query_id
        assert found[0].started.difficulty.mean == EASY
        assert found[1].round.index == 0
        assert found[1].round.reason
        assert found[-3].tally.clusters[0].answer == "421"
        assert found[-2].stopped.reason == found[-1].final.reason

    async def test_rounds_follow_each_other_until_it_stops(self, make_suite: MakeSuite) -> None:
        suite = make_suite(listed(number(1), number(2), number(3), number(4), number(421)), HARD)
        found = await events(suite, ask(effort=Effort.EFFORT_HIGH, filters=Filters(models=["m", "l"])))
        text = " ".join(kinds(found))
        assert re.fullmatch(r"started (round (text )*((sample )+tally )+)+stopped final", text)
        result = found[-1].final
        assert len(result.rounds) == text.count("round")
        assert [r.index for r in result.rounds] == list(range(len(result.rounds)))
        for before, after in zip(result.rounds, result.rounds[1:], strict=False):
            assert after.confidence_before == pytest.approx(before.confidence_after)
        assert result.rounds[0].confidence_before == 0
        assert result.confidence == pytest.approx(result.rounds[-1].confidence_after)
        check_bill(suite, result)

    async def test_where_the_small_model_is_unsure_a_larger_one_is_asked_and_believed(
        self, make_suite: MakeSuite
    ) -> None:
        script = by_model(s=listed(number(5), number(6), number(7)), m=same(number(421)), l=same(number(421)))
        suite = make_suite(script, -1.0)
        result = await suite.router.solve(ask(objective=Objective(flops_per_right_answer=5e8)))
        assert result.answer == "421"
        models = [round.action.model for round in result.rounds]
        assert models == sorted(models, key="sml".index)
        assert set(models) >= {"s", "m"}
        assert result.clusters[0].answer == "421"

    async def test_equivalent_answers_are_one(self, make_suite: MakeSuite) -> None:
        suite = make_suite(listed(number("0.5"), number("1/2"), number(7)), MIDDLE)
        result = await suite.router.solve(ask(filters=Filters(samples=3, models=["m"])))
        assert [len(cluster.members) for cluster in result.clusters] == [2, 1]

    async def test_the_impossible_is_abandoned_and_costs_the_estimate(self, make_suite: MakeSuite) -> None:
        suite = make_suite(same(number(1)), IMPOSSIBLE)
        found = await events(suite, ask(effort=Effort.EFFORT_LOW))
        assert kinds(found) == ["started", "stopped", "final"]
        assert found[1].stopped.abandoned
        result = found[-1].final
        assert (result.status, result.answer, result.confidence) == (STATUS_ABANDONED, "", 0)
        assert result.bill.flops == ESTIMATE_FLOPS
        assert not suite.generation.starts

    async def test_a_query_without_readable_answers_is_abandoned(self, make_suite: MakeSuite) -> None:
        suite = make_suite(same(BLANK), EASY)
        found = await events(suite, ask())
        result = found[-1].final
        assert (result.status, result.answer) == (STATUS_ABANDONED, "")
        assert [event.tally.blanks for event in found if event.HasField("tally")][-1] == sum(
            round.completed for round in result.rounds
        )
        assert sum(round.completed for round in result.rounds) < 60
        check_bill(suite, result)

    async def test_an_answer_in_little_confidence_is_told_as_abandoned(self, make_suite: MakeSuite) -> None:
        suite = make_suite(listed(*(number(i) for i in range(100))), HARD, give_up_below=0.9)
        result = await suite.router.solve(ask())
        assert result.status == STATUS_ABANDONED
        assert result.answer

    async def test_a_fixed_plan_is_answered_whatever_its_confidence(self, make_suite: MakeSuite) -> None:
        suite = make_suite(listed(number(1), number(2), number(3)), IMPOSSIBLE)
        result = await suite.router.solve(ask(filters=Filters(samples=3, models=["s"])))
        assert (result.status, result.confidence < 0.5) == (STATUS_ANSWERED, True)

    async def test_candidates_are_returned_where_asked_for(self, make_suite: MakeSuite) -> None:
        suite = make_suite(listed(number(1), number(2), BLANK, number(1)))
        request = ask(filters=Filters(samples=4, models=["m"]), return_candidates=True)
        result = await suite.router.solve(request)
        assert [candidate.id for candidate in result.candidates] == ["m/0", "m/1", "m/2", "m/3"]
        assert result.candidates[2].text == BLANK.text
        plain = await suite.router.solve(ask(filters=Filters(samples=4, models=["m"])))
        assert not plain.candidates

    async def test_the_seed_is_passed_on_and_reported(self, make_suite: MakeSuite) -> None:
        suite = make_suite(same(number(1)), EASY)
        result = await suite.router.solve(ask(filters=Filters(seed=99)))
        assert result.seed == 99
        assert {start.sampling.seed for start in suite.generation.starts} == {99}

    async def test_samples_of_a_model_are_numbered_through_the_rounds(self, make_suite: MakeSuite) -> None:
        suite = make_suite(listed(*(number(i) for i in range(100))), HARD)
        request = ask(effort=Effort.EFFORT_HIGH, filters=Filters(models=["m"]), return_candidates=True)
        result = await suite.router.solve(request)
        assert len(result.rounds) > 1
        assert [c.id for c in result.candidates] == [f"m/{i}" for i in range(len(result.candidates))]

    async def test_a_conversation_reaches_the_model_whole(self, make_suite: MakeSuite) -> None:
        suite = make_suite(same(number(2)), EASY)
        messages = [Message(role="system", content="Be brief."), Message(role="user", content="1+1")]
        await suite.router.solve(SolveRequest(messages=messages))
        assert list(suite.generation.starts[0].messages) == messages


class TestBestOfN:
    async def test_the_best_scored_answer_wins_against_more_votes(self, make_suite: MakeSuite) -> None:
        poor, good = (-40.0,), (-0.4,)
        script = listed(number(5, logprobs=poor), number(5, logprobs=poor), number(421, logprobs=good))
        suite = make_suite(script)
        found = await events(suite, ask(filters=Filters(samples=3, models=["m"], strategies=["best_of_n"])))
        result = found[-1].final
        assert result.answer == "421"
        scores = [event.scores for event in found if event.HasField("scores")]
        assert [score.id for score in scores] == ["m/0", "m/1", "m/2"]
        assert [score.steps[0] for score in scores] == pytest.approx(
            [math.exp(-1), math.exp(-1), math.exp(-0.01)]
        )
        (line,) = [line for line in result.bill.lines if line.stage == STAGE_VERIFICATION]
        assert (line.model, line.strategy, line.calls, line.flops) == ("logprob", "best_of_n", 3, 6.0)
        check_bill(suite, result)

    async def test_the_answer_with_most_score_wins_a_weighted_vote(self, make_suite: MakeSuite) -> None:
        said = [(5, -20.0), (5, -20.0), (421, -0.4), (7, -160.0), (7, -160.0), (7, -160.0)]
        script = listed(*(number(answer, logprobs=(logprob,)) for answer, logprob in said))
        answers = {}
        for strategy in ("majority", "best_of_n", "weighted"):
            filters = Filters(samples=6, models=["m"], strategies=[strategy])
            result = await make_suite(script).router.solve(ask(filters=filters))
            answers[strategy] = result.answer
        assert answers == {"majority": "7", "best_of_n": "421", "weighted": "5"}
        assert result.clusters[0].weight == pytest.approx(2 * math.exp(-0.5))
        # Confidence is by votes: scores have chosen, and say nothing of it yet.
        assert result.confidence < 0.5

    async def test_a_sample_without_log_probabilities_has_no_weight(self, make_suite: MakeSuite) -> None:
        script = listed(number(5, logprobs=()), number(5, logprobs=()), number(421))
        suite = make_suite(script)
        result = await suite.router.solve(
            ask(filters=Filters(samples=3, models=["m"], strategies=["best_of_n"]))
        )
        assert result.answer == "421"
        assert [cluster.weight for cluster in result.clusters] == pytest.approx([math.exp(-0.1), 0.0])


class Asked:
    """The real aggregation, which notes what it was asked."""

    def __init__(self, core: Aggregation) -> None:
        self.core = core
        self.requests: list[AggregateRequest] = []

    async def aggregate(self, request: AggregateRequest) -> AggregateResponse:
        self.requests.append(request)
        return await self.core.aggregate(request)


class TestLongSamples:
    async def test_more_than_fit_in_a_message_are_tallied_and_one_that_never_fits_is_a_blank(
        self, make_suite: MakeSuite, aggregation: Aggregation
    ) -> None:
        def long(model: str, index: int) -> Said:
            size = (16 << 20) if index == 3 else 1_000_000
            return Said("x" * size + f"\nThe answer is {index % 2}.")

        asked = Asked(aggregation)
        suite = make_suite(long, stages={"aggregation": asked}, generation={"batch": 18})
        found = await events(suite, ask(filters=Filters(samples=18, models=["m"]), return_candidates=True))
        result = found[-1].final
        assert [len(cluster.members) for cluster in result.clusters] == [9, 8]
        assert [event.tally.blanks for event in found if event.HasField("tally")][-1] == 1
        assert all(request.ByteSize() < MAX_MESSAGE_BYTES for request in asked.requests)
        assert [len(request.candidates) for request in asked.requests] == [15, 2]
        assert len(result.candidates) == 18


class Growing:
    """Verification that has its critic only after a while."""

    def __init__(self, core: Verification) -> None:
        self.score = core.score
        self.names = ["logprob"]
        self.asked = 0

    async def describe(self, request: DescribeVerifiersRequest) -> DescribeVerifiersResponse:
        self.asked += 1
        return DescribeVerifiersResponse(verifiers=[Verifier(name=name) for name in self.names])


class TestVerifiers:
    async def test_one_that_was_not_there_is_asked_for_again_by_those_who_name_it_alone(
        self, make_suite: MakeSuite, verification: Verification
    ) -> None:
        growing = Growing(verification)
        suite = make_suite(same(number(421)), stages={"verification": growing})

        def by(verifier: str) -> SolveRequest:
            filters = Filters(samples=2, models=["m"], strategies=["best_of_n"], verifier=verifier)
            return ask(filters=filters)

        for _ in range(2):
            assert (await suite.router.solve(by("logprob"))).answer == "421"
        assert growing.asked == 1
        with pytest.raises(NotFound, match="there is no verifier 'critic'; there are: logprob"):
            await suite.router.plan(by("critic"))
        growing.names.append("critic")
        for _ in range(2):
            plan = await suite.router.plan(by("critic"))
            assert plan.action.verifier == "critic"
        assert growing.asked == 3


class TestStoppingEarly:
    def make(self, make_suite: MakeSuite, script: Any, **fields: Any) -> Suite:
        """The middle model alone buys four samples, and has enough where the first two agree."""
        return make_suite(script, 0.6, **fields)

    MAJORITY = Filters(models=["m"], strategies=["majority"])
    REQUEST = ask(objective=Objective(flops_per_right_answer=3e9), filters=MAJORITY)

    async def test_what_runs_is_aborted_where_the_answer_is_decided(self, make_suite: MakeSuite) -> None:
        suite = self.make(make_suite, listed(number(421), number(421), HOLD))
        result = await asyncio.wait_for(suite.router.solve(self.REQUEST), 5)
        assert result.answer == "421"
        first = result.rounds[0]
        assert first.action.samples == 4
        assert (first.completed, first.aborted) == (2, 2)
        assert suite.generation.aborts == 1
        assert sum(line.aborted_tokens for line in result.bill.lines) > 0
        check_bill(suite, result)

    async def test_an_abandoned_query_tells_what_the_best_fixed_plan_would_have_spent_beyond_it(
        self, make_suite: MakeSuite
    ) -> None:
        suite = make_suite(same(number(421)), IMPOSSIBLE)
        result = await suite.router.solve(ask(effort=Effort.EFFORT_HIGH))
        assert result.status == STATUS_ABANDONED
        assert result.savings.abandoned_flops > 10 * result.bill.flops
        answered = await make_suite(same(number(421)), EASY).router.solve(ask())
        assert answered.savings.abandoned_flops == 0

    async def test_a_round_tells_the_pace_of_its_model(self, make_suite: MakeSuite) -> None:
        suite = make_suite(same(number(421)), EASY)
        await suite.router.solve(ask(filters=Filters(models=["m"], samples=4)))
        assert set(suite.router._pace.at(time.monotonic())) == {"m"}

    async def test_the_savings_are_what_was_spared_of_the_round(self, make_suite: MakeSuite) -> None:
        suite = self.make(make_suite, listed(number(421), number(421), HOLD))
        result = await asyncio.wait_for(suite.router.solve(self.REQUEST), 5)
        assert result.savings.samples == sum(round.aborted for round in result.rounds) == 2
        spared = [r.action.expected_flops - r.flops for r in result.rounds if r.aborted]
        assert result.savings.flops == pytest.approx(sum(max(0.0, flops) for flops in spared))
        assert suite.metric("samples_spared_total") == 2

    async def test_nothing_is_spared_where_a_round_runs_to_its_end(self, make_suite: MakeSuite) -> None:
        suite = self.make(make_suite, same(number(421)), generation={"batch": 4})
        result = await suite.router.solve(self.REQUEST)
        assert (result.savings.samples, result.savings.flops) == (0, 0)

    async def test_a_round_that_takes_all_that_is_left_of_the_budget_is_not_aborted_for_that(
        self, make_suite: MakeSuite
    ) -> None:
        """Its samples are paid for: that no other round has room beside them is no reason to end them."""
        suite = self.make(make_suite, listed(*(number(i) for i in range(9))))
        request = ask(
            objective=Objective(most_accurate=True),
            budget=Budget(flops=5e8),
            filters=self.MAJORITY,
        )
        result = await suite.router.solve(request)
        assert result.bill.flops <= 5e8
        assert result.rounds[0].action.samples > 1
        assert (result.rounds[0].completed, result.rounds[0].aborted) == (result.rounds[0].action.samples, 0)

    async def test_the_last_samples_of_a_backend_are_not_aborted_for_that(
        self, make_suite: MakeSuite
    ) -> None:
        model = make_model("m", capabilities=Capabilities(samples=4))
        suite = self.make(make_suite, listed(*(number(i) for i in range(4))), models=[model])
        result = await suite.router.solve(self.REQUEST)
        assert sum(round.completed for round in result.rounds) == 4
        assert sum(round.aborted for round in result.rounds) == 0

    async def test_samples_that_run_near_the_deadline_may_finish(self, make_suite: MakeSuite) -> None:
        """A new sample would not end in time; those that run may."""
        profile = make_slow_profile()
        suite = self.make(make_suite, listed(*(number(i, late=i > 1) for i in range(9))), profile=profile)
        solving = asyncio.create_task(suite.router.solve(self.REQUEST, 1.0))
        await asyncio.sleep(0.3)
        suite.generation.gate.set()
        result = await solving
        assert (result.rounds[0].completed, result.rounds[0].aborted) == (4, 0)

    async def test_a_fixed_plan_is_never_ended_early(self, make_suite: MakeSuite) -> None:
        suite = self.make(make_suite, same(number(421)))
        result = await suite.router.solve(ask(filters=Filters(samples=8, models=["m"])))
        assert (result.rounds[0].completed, result.rounds[0].aborted) == (8, 0)
        assert len(result.rounds) == 1

    async def test_a_fixed_plan_of_300_works(self, make_suite: MakeSuite) -> None:
        suite = make_suite(lambda model, index: number(index % 7), generation={"batch": 10})
        result = await suite.router.solve(ask(filters=Filters(samples=300, models=["s"])))
        assert result.rounds[0].completed == 300
        assert [len(cluster.members) for cluster in result.clusters] == [43] * 6 + [42]
        check_bill(suite, result)


def make_slow_profile() -> Profile:
    """A sample takes about 0.7 s."""
    return make_profile(arms=[arm_record(name, seconds_per_token=0.01) for name in ("s", "m", "l")])


class TestLimits:
    async def test_the_deadline_gives_the_best_answer_so_far(self, make_suite: MakeSuite) -> None:
        suite = make_suite(listed(number(421), HOLD), HARD)
        request = ask(filters=Filters(samples=4, models=["m"]))
        result = await suite.router.solve(request, 0.4)
        assert result.answer == "421"
        assert "deadline" in result.reason
        assert (result.rounds[0].completed, result.rounds[0].aborted) == (1, 3)
        check_bill(suite, result)

    async def test_a_deadline_too_short_spends_no_sample(self, make_suite: MakeSuite) -> None:
        suite = make_suite(same(number(421)), EASY)
        with pytest.raises(DeadlineExceeded, match="allow more time"):
            await suite.router.solve(ask(), 0.01)
        assert not suite.generation.starts
        assert suite.metric("queries_total", outcome="failed_deadline_exceeded") == 1

    async def test_a_budget_too_small_spends_no_sample_and_the_one_it_names_is_enough(
        self, make_suite: MakeSuite
    ) -> None:
        """End to end: the estimate has its part of the budget."""
        suite = make_suite(same(number(421)), EASY)
        with pytest.raises(FailedPrecondition) as raised:
            await suite.router.solve(ask(budget=Budget(tokens=1)))
        assert not suite.generation.starts
        assert suite.metric("queries_total", outcome="failed_failed_precondition") == 1
        needs = re.search(r"needs (\S+) FLOPs, (\d+) tokens and (\S+) USD", str(raised.value))
        assert needs
        flops, tokens, money = needs.groups()
        budget = Budget(flops=float(flops), tokens=int(tokens), money=float(money))
        result = await suite.router.solve(ask(budget=budget, objective=Objective(most_accurate=True)))
        assert result.answer == "421"
        assert result.bill.flops <= budget.flops
        assert result.bill.tokens <= budget.tokens
        assert result.bill.money <= budget.money

    @pytest.mark.parametrize("flops", [1e8, 5e8, 2e9, 1e10])
    async def test_a_query_costs_at_most_its_budget(self, make_suite: MakeSuite, flops: float) -> None:
        """Whatever the samples take: each is as long as it may be."""
        suite = make_suite(same(BLANK), HARD)

        def longest(model: str, index: int) -> Said:
            return Said(str(index), tokens=suite.generation.starts[-1].sampling.max_tokens)

        suite.generation.script = longest
        request = ask(budget=Budget(flops=flops), objective=Objective(most_accurate=True))
        result = await suite.router.solve(request)
        assert suite.generation.starts
        assert result.bill.flops <= flops
        check_bill(suite, result)


class Broken:
    """A stage that fails in each call but the descriptions."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.calls = 0

    async def aggregate(self, request: AggregateRequest) -> AggregateResponse:
        raise self.error

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        self.calls += 1
        raise self.error

    async def describe(self, request: DescribeVerifiersRequest) -> DescribeVerifiersResponse:
        return DescribeVerifiersResponse(verifiers=[Verifier(name="logprob", backend="logprob")])


FLOPS_OF_M = {"stage": "generation", "model": "m"}


class TestFailures:
    async def test_an_error_of_generation_ends_the_query_with_it(self, make_suite: MakeSuite) -> None:
        suite = make_suite(listed(number(1), NotFound("the model has gone")))
        with pytest.raises(NotFound, match="the model has gone"):
            await suite.router.solve(ask(filters=Filters(samples=4, models=["m"])))
        assert suite.metric("queries_total", outcome="failed_not_found") == 1
        assert suite.metric("tokens_total", **FLOPS_OF_M, strategy="majority", kind="completion") == 40

    @pytest.mark.parametrize("stage", ["verification", "aggregation"])
    async def test_an_error_of_another_stage_ends_the_query_and_what_was_generated_counts(
        self, make_suite: MakeSuite, stage: str
    ) -> None:
        error = NotFound("it is not there")
        suite = make_suite(listed(number(1), HOLD), stages={stage: Broken(error)})
        # Watched, so that the first sample is scored and tallied while others still run.
        events = suite.router.stream(ask(filters=Filters(samples=4, models=["m"], strategies=["best_of_n"])))
        with pytest.raises(NotFound, match="it is not there"):
            [event async for event in events]
        assert suite.generation.aborts == 1
        assert suite.metric("queries_total", outcome="failed_not_found") == 1
        flops = {
            stage: suite.metric("flops_total", model="m", strategy="best_of_n", stage=stage)
            for stage in ("generation", "aborted")
        }
        assert sum(flops.values()) == pytest.approx(suite.generation.flops())
        assert min(flops.values()) > 0
        assert suite.metric("queries_running") == 0

    @pytest.mark.parametrize("strategy", ["best_of_n", "weighted"])
    async def test_without_verification_the_votes_decide_and_the_answer_is_degraded(
        self, make_suite: MakeSuite, strategy: str
    ) -> None:
        broken = Broken(Unavailable("the verifier is down"))
        said = [number(answer, logprobs=(-9.0,)) for answer in (7, 421, 421)]
        suite = make_suite(listed(*said), stages={"verification": broken})
        asked = ask(filters=Filters(samples=3, models=["m"], strategies=[strategy]))
        found = [event async for event in suite.router.stream(asked)]
        final = found[-1].final
        assert final.status == STATUS_DEGRADED
        assert "samples without scores: the verifier is down" in final.reason
        assert final.answer == "421"
        scores = [event.scores for event in found if event.HasField("scores")]
        assert [one.error for one in scores] == ["the verifier is down"] * 3
        assert {line.stage for line in final.bill.lines} == {STAGE_GENERATION, STAGE_DIFFICULTY}
        assert broken.calls == 1
        assert suite.metric("queries_total", outcome="degraded") == 1

    @pytest.mark.parametrize("streamed", [True, False])
    @pytest.mark.parametrize("strategy", ["best_of_n", "weighted"])
    async def test_where_some_scores_are_missing_they_do_not_decide(
        self, make_suite: MakeSuite, verification: Verification, strategy: str, streamed: bool
    ) -> None:
        """Neither a good score nor a bad one, where most samples have none."""

        class Tiring(Broken):
            async def score(self, request: ScoreRequest) -> ScoreResponse:
                self.calls += 1
                if self.calls > 2:
                    raise self.error
                return await verification.score(request)

        tiring = Tiring(Unavailable("the verifier is down"))
        said = [number(7, logprobs=(-0.4,)), *(number(421, logprobs=(-160.0,)) for _ in range(4))]
        suite = make_suite(listed(*said, number(5)), stages={"verification": tiring})
        asked = ask(filters=Filters(samples=6, models=["m"], strategies=[strategy]))
        final = (await events(suite, asked))[-1].final if streamed else await suite.router.solve(asked)
        assert (final.answer, final.status) == ("421", STATUS_DEGRADED)
        votes = [(c.answer, len(c.members), c.weight) for c in final.clusters]
        assert votes == [("421", 4, 4.0), ("7", 1, 1.0), ("5", 1, 1.0)]
        voted = await make_suite(listed(*said, number(5))).router.solve(
            ask(filters=Filters(samples=6, models=["m"], strategies=["majority"]))
        )
        assert final.confidence == pytest.approx(voted.confidence)

    async def test_scores_say_nothing_where_the_rest_of_their_batch_has_none(
        self, make_suite: MakeSuite, verification: Verification, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Tiring(Broken):
            async def score(self, request: ScoreRequest) -> ScoreResponse:
                self.calls += 1
                if self.calls > 1:
                    raise self.error
                return await verification.score(request)

        # So that the samples of a batch are scored one by one.
        monkeypatch.setattr("router.bench.MOST_BYTES", 100)
        tiring = Tiring(Unavailable("the verifier is down"))
        told = {
            "verifier": "logprob",
            "intercept": 0.0,
            "slope": 4.0,
            "alike": 0.0,
            "right": 2.0,
            "wrong": -2.0,
        }
        arms = [arm_record("m", verified=[{**told, "votes": {"1": [0.9] * 21, "4": [0.99] * 21}}])]
        suite = make_suite(
            same(number(421, logprobs=(-160.0,))),
            profile=make_profile(arms=arms),
            stages={"verification": tiring},
            generation={"batch": 4},
        )
        filters = Filters(models=["m"], strategies=["weighted"])
        found = await events(suite, ask(effort=Effort.EFFORT_HIGH, filters=filters))
        assert [bool(event.scores.steps) for event in found if event.HasField("scores")] == [True] + [
            False
        ] * 3
        plain = make_suite(same(number(421)), profile=make_profile(arms=arms), generation={"batch": 4})
        voted = await plain.router.solve(
            ask(filters=Filters(models=["m"], samples=4, strategies=["majority"]))
        )
        assert found[-1].final.status == STATUS_DEGRADED
        assert found[-1].final.confidence == pytest.approx(voted.confidence)

    async def test_a_verifier_that_is_silent_is_waited_for_until_the_deadline(
        self, make_suite: MakeSuite
    ) -> None:
        class Silent(Broken):
            async def score(self, request: ScoreRequest) -> ScoreResponse:
                await asyncio.Event().wait()
                raise AssertionError

        silent = Silent(ZeroDivisionError())
        suite = make_suite(
            same(number(421)),
            stages={"verification": silent},
            deadline_margin_seconds=0.0,
            abort_seconds=0.1,
        )
        asked = ask(filters=Filters(samples=3, models=["m"], strategies=["best_of_n"]))
        final = await suite.router.solve(asked, 0.5)
        assert (final.status, final.answer) == (STATUS_DEGRADED, "421")
        assert "verifier logprob was not done before the deadline" in final.reason

    async def test_a_bug_is_counted_as_one(self, make_suite: MakeSuite) -> None:
        suite = make_suite(same(number(1)), stages={"aggregation": Broken(ZeroDivisionError())})
        with pytest.raises(ZeroDivisionError):
            await suite.router.solve(ask(filters=Filters(samples=2)))
        assert suite.metric("queries_total", outcome="failed_internal") == 1

    async def test_a_wrong_pattern_is_the_callers_fault(self, make_suite: MakeSuite) -> None:
        suite = make_suite(same(number(1)), EASY)
        answer = AnswerFormat(type=ANSWER_TYPE_PATTERN, pattern="(")
        with pytest.raises(InvalidArgument, match="not a regular expression"):
            await suite.router.solve(ask(answer_format=answer))

    @pytest.mark.parametrize(
        ("request_", "error"),
        [
            (ask(prompt=""), InvalidArgument),
            (ask(filters=Filters(models=["gpt"])), NotFound),
            (ask(filters=Filters(samples=5000)), InvalidArgument),
        ],
    )
    async def test_a_request_that_is_not_admitted_reaches_no_stage(
        self, make_suite: MakeSuite, request_: SolveRequest, error: type[Exception]
    ) -> None:
        suite = make_suite(same(number(1)))
        with pytest.raises(error):
            await suite.router.solve(request_)
        with pytest.raises(error):
            await suite.router.plan(request_)
        assert suite.difficulty.calls == 0
        assert not suite.generation.starts


class TestPlan:
    async def test_a_plan_is_what_would_be_done_first_unsampled(self, make_suite: MakeSuite) -> None:
        suite = make_suite(same(number(421)), MIDDLE)
        plan = await suite.router.plan(ask())
        assert not suite.generation.starts
        assert plan.difficulty.mean == MIDDLE
        assert plan.profile == "synthetic-1"
        assert len(plan.rejected) == 3
        assert re.search(r"\d", plan.reason)
        assert plan.outlook.samples >= plan.action.samples
        assert plan.outlook.expected_flops >= plan.action.expected_flops
        result = await suite.router.solve(ask())
        assert result.rounds[0].action == plan.action
        assert result.rounds[0].reason == plan.reason

    async def test_where_nothing_is_worth_its_price_there_is_no_action(self, make_suite: MakeSuite) -> None:
        plan = await make_suite(same(number(1)), IMPOSSIBLE).router.plan(ask(effort=Effort.EFFORT_LOW))
        assert not plan.HasField("action")
        assert not plan.HasField("outlook")
        assert "is worth" in plan.reason

    async def test_a_plan_that_does_not_fit_is_refused_like_the_query(self, make_suite: MakeSuite) -> None:
        suite = make_suite(same(number(1)))
        with pytest.raises(FailedPrecondition, match="no plan fits the budget"):
            await suite.router.plan(ask(budget=Budget(flops=10)))
        with pytest.raises(DeadlineExceeded):
            await suite.router.plan(ask(), 0.0)


class TestModels:
    async def test_models_verifiers_strategies_and_profile_are_listed(self, make_suite: MakeSuite) -> None:
        listing = await make_suite(same(number(1))).router.models()
        assert [model.name for model in listing.models] == ["s", "m", "l"]
        assert [verifier.name for verifier in listing.verifiers] == ["logprob"]
        assert list(listing.strategies) == list(STRATEGIES)
        assert listing.profile == "synthetic-1"
