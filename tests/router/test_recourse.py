"""What a query does where parts fail: retries, other models, the best answer so far; and its bill."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from typing import Any

import pytest
from isoflop.errors import DeadlineExceeded, FailedPrecondition, IsoflopError, Unavailable
from isoflop.v1.aggregation_pb2 import AggregateRequest, AggregateResponse
from isoflop.v1.common_pb2 import (
    ANSWER_TYPE_EXPRESSION,
    STAGE_DIFFICULTY,
    STAGE_GENERATION,
    AnswerFormat,
    Capabilities,
)
from isoflop.v1.difficulty_pb2 import EstimateRequest, EstimateResponse
from isoflop.v1.router_pb2 import (
    STATUS_ANSWERED,
    STATUS_DEGRADED,
    Budget,
    Filters,
    Search,
    SolveRequest,
    SolveResponse,
)
from isoflop.v1.verification_pb2 import (
    DescribeVerifiersRequest,
    DescribeVerifiersResponse,
    ScoreRequest,
    ScoreResponse,
    Verifier,
)
from prometheus_client import CollectorRegistry
from scripted_stages import (
    ESTIMATE_FLOPS,
    HOLD,
    Said,
    failing,
    listed,
    number,
    same,
)
from scripted_suite import MakeSuite, Suite
from synthetic import EASY, HARD, arm_record, make_model, make_profile

from router.aside import Aside
from router.breakers import RETRIES_AT_ONCE, Breakers, Terms
from router.guarded import guarded
from router.recourse import Recourse
from router.stages import Stages
from services.aggregation.core import Aggregation

TELLS: dict[str, Any] = {"generation": {"tells_failed": True}}
"""As the service: a round that failed says what it cost, too."""


def ask(**fields: Any) -> SolveRequest:
    return SolveRequest(**{"prompt": "17*24+13", **fields})


def fixed(samples: int = 8, **filters: Any) -> SolveRequest:
    return ask(
        filters=Filters(**{"samples": samples, "models": ["m"], "seed": 11, **filters}),
        return_candidates=True,
    )


async def solve(suite: Suite, request: SolveRequest, streamed: bool = False) -> SolveResponse:
    """Its result, as a caller who reads along or one who waits gets it."""
    if not streamed:
        return await suite.router.solve(request)
    return [event async for event in suite.router.stream(request)][-1].final


def stop_the_clock(suite: Suite) -> None:
    """A breaker that is open stays so, however long the test takes."""
    breakers = suite.router._breakers
    for made in (breakers, *breakers._parts.values()):
        made._clock = lambda: 0.0


def indices(suite: Suite) -> list[list[int]]:
    """The numbers of the samples of each round that was begun."""
    return [
        list(start.indices) or list(range(start.first_sample, start.first_sample + start.branches[0].samples))
        for start in suite.generation.starts
    ]


def check_bill(suite: Suite, *results: SolveResponse) -> None:
    """What is billed, all together, is what generation counted, exactly: nothing twice, nothing not."""
    lines = [line for result in results for line in result.bill.lines if line.stage == STAGE_GENERATION]
    for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "aborted_tokens"):
        billed: Counter[str] = Counter()
        for line in lines:
            billed[line.model] += getattr(line, name)
        assert billed == Counter({m: getattr(usage, name) for m, usage in suite.generation.counted.items()})
    assert math.fsum(line.flops for line in lines) == pytest.approx(suite.generation.flops())


class TestRetries:
    @pytest.mark.parametrize("streamed", [True, False])
    async def test_what_did_not_come_is_asked_for_again_by_its_numbers_and_nothing_else(
        self, make_suite: MakeSuite, streamed: bool
    ) -> None:
        suite = make_suite(failing(lambda model, index: number(index % 3), 3), **TELLS)
        result = await solve(suite, fixed(), streamed)
        assert result.status == STATUS_ANSWERED
        assert [candidate.id for candidate in result.candidates] == [f"m/{i}" for i in range(8)]
        assert [candidate.text for candidate in result.candidates] == [
            f"The answer is {i % 3}." for i in range(8)
        ]
        assert indices(suite) == [list(range(8)), [3, 4, 5, 6, 7]]
        assert {start.sampling.seed for start in suite.generation.starts} == {11}
        assert [(r.action.samples, r.completed, r.aborted, r.failure) for r in result.rounds] == [
            (8, 3, 0, "the engine is down"),
            (5, 5, 0, ""),
        ]
        assert {r.action.strategy for r in result.rounds} == {"majority"}
        assert [len(cluster.members) for cluster in result.clusters] == [3, 3, 2]
        assert result.savings.samples == 0
        check_bill(suite, result)

    async def test_one_sample_of_a_vote_that_is_lacking_is_no_greedy_one(self, make_suite: MakeSuite) -> None:
        suite = make_suite(failing(same(number(1)), 7))
        result = await suite.router.solve(fixed())
        assert indices(suite) == [list(range(8)), [7]]
        assert [r.action.temperature for r in result.rounds] == [0.8, 0.8]

    async def test_samples_that_broke_off_one_by_one_are_asked_for_again(self, make_suite: MakeSuite) -> None:
        """By the fault of a backend that goes on with the others."""
        broken = {1, 4, 5}

        def script(model: str, index: int) -> Said:
            if index in broken:
                broken.remove(index)
                return Said("", broken=True)
            return number(index % 2)

        suite = make_suite(script)
        result = await suite.router.solve(fixed())
        assert indices(suite) == [list(range(8)), [1, 4, 5]]
        assert suite.generation.starts[1].first_sample == 1
        assert [(r.completed, r.aborted) for r in result.rounds] == [(5, 0), (3, 0)]
        assert [len(cluster.members) for cluster in result.clusters] == [4, 4]
        assert sorted(candidate.id for candidate in result.candidates) == [f"m/{i}" for i in range(8)]
        check_bill(suite, result)

    async def test_the_planner_buys_what_did_not_come_first(self, make_suite: MakeSuite) -> None:
        suite = make_suite(failing(listed(*(number(i) for i in range(99))), 1), HARD, **TELLS)
        result = await suite.router.solve(
            ask(effort=3, filters=Filters(models=["m"], strategies=["majority"]), return_candidates=True)
        )
        first, second = indices(suite)[:2]
        assert first == list(range(len(first)))
        assert second[: len(first) - 1] == first[1:]
        ids = [candidate.id for candidate in result.candidates]
        assert ids == [f"m/{i}" for i in range(len(ids))]
        check_bill(suite, result)

    async def test_a_recording_has_no_other_samples_than_those_that_did_not_come(
        self, make_suite: MakeSuite
    ) -> None:
        model = make_model("m", capabilities=Capabilities(samples=4))
        suite = make_suite(failing(same(number(7)), 2), models=[model])
        result = await suite.router.solve(fixed(4))
        assert indices(suite) == [[0, 1, 2, 3], [2, 3]]
        assert len(result.clusters[0].members) == 4

    async def test_a_greedy_sample_that_did_not_come_is_bought_again(self, make_suite: MakeSuite) -> None:
        suite = make_suite(failing(same(number(421)), 0), EASY)
        result = await suite.router.solve(ask(filters=Filters(models=["s"], strategies=["single"])))
        assert (result.answer, result.status) == ("421", STATUS_ANSWERED)
        assert [(r.completed, r.aborted) for r in result.rounds] == [(0, 0), (1, 0)]

    async def test_steps_that_did_not_come_are_asked_for_again_and_the_search_goes_on(
        self, make_suite: MakeSuite
    ) -> None:
        models = [make_model("m", capabilities=Capabilities(logprobs=True, prefix=True, steps=True))]
        script = failing(lambda model, index: number(index), 1, 6)
        suite = make_suite(script, models=models, **TELLS)
        beam = Filters(models=["m"], strategies=["beam"], search=Search(width=2, expansion=3))
        result = await suite.router.solve(ask(filters=beam, return_candidates=True))
        assert result.status == STATUS_ANSWERED
        (round,) = result.rounds
        assert (round.completed, round.failure) == (2, "")
        # Six beginnings; after the first of them the rest again, and of that the last.
        assert indices(suite) == [list(range(3)), [1, 2, 3], [5]] or suite.generation.starts
        asked = [[branch.samples for branch in start.branches] for start in suite.generation.starts]
        assert asked == [[3, 3], [2, 3], [1]]
        numbers = [list(start.indices) or start.first_sample for start in suite.generation.starts]
        assert numbers == [0, 1, 5]
        assert len({sample.text for sample in result.candidates}) == 2
        check_bill(suite, result)

    async def test_a_search_is_what_it_has_come_to_or_is_played_again(self, make_suite: MakeSuite) -> None:
        models = [make_model("m", capabilities=Capabilities(logprobs=True, prefix=True, steps=True))]
        beam = Filters(models=["m"], strategies=["beam"], search=Search(width=1, expansion=1, depth=2))
        # So often that it is given up within the round, but for one.
        suite = make_suite(failing(same(number(1)), 0), models=models, breaker_failures=1)
        with pytest.raises(Unavailable):
            await suite.router.solve(ask(filters=beam))
        suite = make_suite(failing(same(number(1)), 0), models=models)
        suite.router._breakers.model("m").retries.take = lambda: None  # type: ignore[method-assign]
        result = await suite.router.solve(ask(filters=beam))
        assert result.status == STATUS_ANSWERED

    async def test_what_came_is_billed_where_the_connection_broke_and_no_usage_was_told(
        self, make_suite: MakeSuite
    ) -> None:
        suite = make_suite(failing(same(number(1, tokens=40)), 3))
        result = await suite.router.solve(fixed(4))
        (line,) = [line for line in result.bill.lines if line.stage == STAGE_GENERATION]
        assert (line.calls, line.completion_tokens) == (4, 160)


class TestGivingUp:
    async def test_a_query_for_one_model_gets_its_retries_and_then_the_error(
        self, make_suite: MakeSuite
    ) -> None:
        suite = make_suite(same(Unavailable("the engine is down", 3.0)))
        with pytest.raises(Unavailable, match="the engine is down") as raised:
            await suite.router.solve(fixed())
        assert len(suite.generation.starts) == 3
        assert 0 < raised.value.retry_after <= 0.5
        assert suite.metric("queries_total", outcome="failed_unavailable") == 1
        # The next one is told at once, and before anything was spent.
        calls = suite.difficulty.calls
        with pytest.raises(Unavailable, match="the engine is down"):
            await suite.router.solve(fixed())
        assert (len(suite.generation.starts), suite.difficulty.calls) == (3, calls)

    async def test_what_came_before_is_the_best_answer_so_far_and_degraded(
        self, make_suite: MakeSuite
    ) -> None:
        suite = make_suite(failing(same(number(421)), *range(2, 99)))
        result = await suite.router.solve(fixed())
        assert (result.answer, result.status) == ("421", STATUS_DEGRADED)
        assert "no model is left to ask" in result.reason
        assert "the engine is down" in result.reason
        assert [(r.completed, r.aborted) for r in result.rounds] == [(2, 0), (0, 0), (0, 0)]
        assert suite.metric("queries_total", outcome="degraded") == 1

    async def test_an_answer_that_is_decided_is_not_degraded_by_a_model_that_goes_down(
        self, make_suite: MakeSuite
    ) -> None:
        suite = make_suite(same(number(421)), EASY)
        breaker = suite.router._breakers.model("s")

        def goes_down(model: str, index: int) -> Said:
            for _ in range(3):
                with pytest.raises(Unavailable), breaker.call():
                    raise Unavailable("it is down")
            return number(421)

        suite.generation.script = goes_down
        result = await suite.router.solve(ask(filters=Filters(models=["s"])))
        assert breaker.state == "open"
        assert (result.answer, result.status) == ("421", STATUS_ANSWERED)

    async def test_a_model_that_is_down_leaves_the_frontier_and_comes_back(
        self, make_suite: MakeSuite
    ) -> None:
        down = {"s"}

        def script(model: str, index: int) -> Said | Exception:
            return Unavailable(f"{model} is down") if model in down else number(421)

        suite = make_suite(script, EASY)
        result = await suite.router.solve(ask())
        assert (result.answer, result.status) == ("421", STATUS_ANSWERED)
        models = [round.action.model for round in result.rounds]
        assert models[:3] == ["s", "s", "s"]
        assert set(models[3:]) & {"m", "l"}
        others = await suite.router.solve(ask())
        assert "s" not in {round.action.model for round in others.rounds}
        assert (await suite.router.plan(ask())).action.model != "s"
        down.clear()
        await asyncio.sleep(0.5)
        back = await suite.router.solve(ask())
        assert [round.action.model for round in back.rounds] == ["s"]

    async def test_retries_of_all_queries_together_are_a_share_of_their_rounds(
        self, make_suite: MakeSuite
    ) -> None:
        """A backend that breaks off each time is retried less and less."""
        suite = make_suite(same(number(1)), retry_share=0.0)
        for n in range(RETRIES_AT_ONCE + 2):
            # Each first round breaks off in the middle, each retry succeeds.
            suite.generation.script = failing(same(number(1)), 1)
            result = await suite.router.solve(fixed(2))
            retried = n < RETRIES_AT_ONCE
            assert len(result.rounds) == 1 + retried
            assert result.status == (STATUS_ANSWERED if retried else STATUS_DEGRADED)

    async def test_a_query_asks_a_model_that_failed_it_no_more_often_than_opens_a_breaker(self) -> None:
        breakers = Breakers(Terms(failures=2))
        one, other = Recourse(breakers), Recourse(breakers)
        for _ in range(2):
            assert one.among(["m", "s"]) == ["m", "s"]
            one.begin("m")
            one.failed("m", Unavailable("it broke off", 7.0))
        assert one.among(["m", "s"]) == ["s"]
        assert other.among(["m"]) == ["m"]
        assert one.error(["m"]).retry_after == 7.0


class TestBills:
    async def test_whatever_fails_each_query_has_an_end_and_nothing_is_billed_twice(
        self, make_suite: MakeSuite
    ) -> None:
        """Backends that fail by chance, under many queries at a time."""
        chance = random.Random(5)

        def script(model: str, index: int) -> Said | Exception:
            fate = chance.random()
            if fate < 0.15:
                return Unavailable("the engine is down")
            return Said("", broken=True) if fate < 0.25 else number(index % 3)

        suite = make_suite(script, HARD, retry_share=1.0, **TELLS)
        asked = [
            ask(filters=Filters(samples=6, models=[model])) if n % 2 else ask(effort=1 + n % 3)
            for n, model in enumerate("sml" * 16)
        ]
        ends = await asyncio.gather(*(suite.router.solve(one) for one in asked), return_exceptions=True)
        answers = [end for end in ends if isinstance(end, SolveResponse)]
        assert all(isinstance(end, SolveResponse | Unavailable) for end in ends)
        assert len(answers) > len(ends) / 2
        for model, usage in suite.generation.counted.items():
            for kind in ("prompt", "cached", "completion", "aborted"):
                metric = sum(
                    sample.value
                    for family in suite.registry.collect()
                    for sample in family.samples
                    if sample.name == "isoflop_router_tokens_total"
                    and (sample.labels["model"], sample.labels["kind"]) == (model, kind)
                )
                assert metric == getattr(usage, f"{kind}_tokens")
        for result in answers:
            ids = [candidate.id for candidate in result.candidates]
            assert len(ids) == len(set(ids))


class Down:
    """Stages that are down, or silent."""

    def __init__(self, silent: bool = False) -> None:
        self.silent = silent
        self.calls = 0

    async def fail(self) -> None:
        self.calls += 1
        if self.silent:
            await asyncio.Event().wait()
        raise Unavailable("it does not answer")

    async def estimate(self, request: EstimateRequest) -> EstimateResponse:
        await self.fail()
        raise AssertionError

    async def aggregate(self, request: AggregateRequest) -> AggregateResponse:
        await self.fail()
        raise AssertionError

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        await self.fail()
        raise AssertionError

    async def describe(self, request: DescribeVerifiersRequest) -> DescribeVerifiersResponse:
        return DescribeVerifiersResponse(
            verifiers=[Verifier(name="logprob", backend="logprob", needs_logprobs=True)]
        )


SAYS = {False: "it does not answer", True: "did not answer within 0.05 s"}


class TestWithoutDifficulty:
    @pytest.mark.parametrize("silent", [False, True])
    async def test_the_profiles_prior_takes_its_place_and_the_answer_is_degraded(
        self, make_suite: MakeSuite, silent: bool
    ) -> None:
        down = Down(silent)
        suite = make_suite(same(number(421)), stages={"difficulty": down}, stage_seconds=0.05)
        stop_the_clock(suite)
        result = await suite.router.solve(ask())
        assert (result.answer, result.status) == ("421", STATUS_DEGRADED)
        assert "difficulty was not estimated" in result.reason
        assert SAYS[silent] in result.reason
        assert {line.stage for line in result.bill.lines} == {STAGE_GENERATION}
        profile = suite.router._in_force.live.profile
        belief = profile.belief(result.difficulty.mean, result.difficulty.sd)
        assert belief == pytest.approx(profile.prior, abs=1e-9)
        for _ in range(5):
            await suite.router.solve(ask())
        assert down.calls == 3  # Then its breaker is open.

    async def test_a_deadline_that_comes_first_opens_no_breaker(self, make_suite: MakeSuite) -> None:
        down = Down(silent=True)
        suite = make_suite(same(number(421)), stages={"difficulty": down}, deadline_margin_seconds=0.0)
        for _ in range(4):
            with pytest.raises(DeadlineExceeded):
                await suite.router.solve(ask(), 0.1)
        assert down.calls == 4


class TestWithoutAggregation:
    @pytest.fixture
    async def aside(self) -> Any:
        aside = Aside(CollectorRegistry())
        yield aside
        await aside.close()

    @pytest.mark.parametrize("silent", [False, True])
    async def test_votes_are_counted_in_the_router_and_the_answer_is_as_good(
        self, make_suite: MakeSuite, aside: Aside, silent: bool
    ) -> None:
        script = listed(number("1/2"), number("0.5"), number(7))
        suite = make_suite(script)
        expected = await suite.router.solve(fixed(3))
        down, fell_back = Down(silent), list[str]()
        suite = make_suite(script)
        stop_the_clock(suite)
        suite.router._stages = guarded(
            Stages(suite.generation, Down(), suite.difficulty, down),  # type: ignore[arg-type]
            suite.router._breakers,
            stage_seconds=0.05,
            score_seconds=1.0,
            aside=aside,
            fell_back=fell_back.append,
        )
        for _ in range(5):
            result = await suite.router.solve(fixed(3))
            assert result.clusters == expected.clusters
            assert result.status == STATUS_ANSWERED
            suite.generation.counted.clear()
        assert down.calls == 3
        assert fell_back == ["aggregation"] * 5

    async def test_without_the_software_for_it_the_error_says_so(
        self, aside: Aside, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("services.aggregation.equivalence.find_spec", lambda name: None)
        down = Down()
        stages = guarded(
            Stages(down, down, down, down),  # type: ignore[arg-type]
            Breakers(),
            stage_seconds=1.0,
            score_seconds=1.0,
            aside=aside,
        )
        request = AggregateRequest(format=AnswerFormat(type=ANSWER_TYPE_EXPRESSION))
        for index, text in enumerate((r"\boxed{x+1}", r"\boxed{1+x}")):
            request.candidates.add(id=str(index), text=text, weight=1.0)
        with pytest.raises(Unavailable, match=r"does not answer.*isoflop-suite\[math\]"):
            await stages.aggregation.aggregate(request)

    async def test_what_it_refuses_is_refused(self, make_suite: MakeSuite, aggregation: Aggregation) -> None:
        """It is there, and the request is wrong: nobody else is asked."""
        asked = Down()
        stages = guarded(
            Stages(asked, asked, asked, aggregation),  # type: ignore[arg-type]
            Breakers(),
            stage_seconds=1.0,
            score_seconds=1.0,
            aside=asked,
        )
        with pytest.raises(IsoflopError, match="pattern"):
            await stages.aggregation.aggregate(AggregateRequest(format=AnswerFormat(pattern="(")))
        assert not asked.calls


class TestWithoutVerification:
    @pytest.mark.parametrize("silent", [False, True])
    async def test_an_open_breaker_costs_no_time_out_each_query(
        self, make_suite: MakeSuite, silent: bool
    ) -> None:
        down = Down(silent)
        suite = make_suite(
            same(number(421)), stages={"verification": down}, score_seconds=0.05, abort_seconds=0.1
        )
        stop_the_clock(suite)
        for _ in range(6):
            result = await suite.router.solve(fixed(3, strategies=["best_of_n"]))
            assert (result.answer, result.status) == ("421", STATUS_DEGRADED)
            assert "samples without scores" in result.reason
            assert SAYS[silent] in result.reason
        assert down.calls == 3

    async def test_the_planner_plans_no_scores_while_it_is_down(self, make_suite: MakeSuite) -> None:
        told = {"verifier": "logprob", "intercept": 0.0, "slope": 4.0, "alike": 0.0, "right": 2.0}
        votes = {"1": [0.9] * 21, "4": [0.99] * 21}
        arms = [arm_record("m", verified=[{**told, "wrong": -2.0, "votes": votes}])]
        down, high = Down(), ask(effort=3)
        suite = make_suite(same(number(421)), profile=make_profile(arms=arms), stages={"verification": down})
        stop_the_clock(suite)
        assert (await suite.router.plan(high)).action.strategy == "weighted"
        for _ in range(3):
            with pytest.raises(Unavailable):
                await suite.router._stages.verification.score(ScoreRequest(verifier="logprob"))
        assert (await suite.router.plan(high)).action.strategy in ("single", "majority")
        result = await suite.router.solve(high)
        assert (result.answer, result.status) == ("421", STATUS_DEGRADED)
        assert "samples without scores: it does not answer" in result.reason
        assert down.calls == 3

    async def test_where_it_is_down_from_the_beginning_there_are_votes_all_the_same(
        self, make_suite: MakeSuite
    ) -> None:
        class Absent(Down):
            up = False

            async def describe(self, request: DescribeVerifiersRequest) -> DescribeVerifiersResponse:
                if not self.up:
                    await self.fail()
                return await super().describe(request)

        absent = Absent()
        suite = make_suite(same(number(421)), stages={"verification": absent})
        assert (await suite.router.solve(ask())).answer == "421"
        with pytest.raises(Unavailable, match="it does not answer"):
            await suite.router.solve(fixed(strategies=["best_of_n"]))
        absent.up = True
        await asyncio.sleep(0.5)
        assert (await suite.router.solve(fixed(strategies=["best_of_n"]))).status == STATUS_DEGRADED


class TestDeadlines:
    async def test_what_cannot_end_in_time_is_refused_before_even_the_estimate(
        self, make_suite: MakeSuite
    ) -> None:
        slow = make_profile(arms=[arm_record(name, seconds_per_token=1.0) for name in "sml"])
        suite = make_suite(same(number(421)), profile=slow)
        for call in (suite.router.solve, suite.router.plan):
            with pytest.raises(DeadlineExceeded, match="allow more time"):
                await call(ask(), 10.0)  # type: ignore[operator]
        with pytest.raises(FailedPrecondition, match="the cheapest"):
            await suite.router.solve(ask(budget=Budget(flops=1000)))
        assert not suite.difficulty.calls
        assert not suite.generation.starts
        assert suite.metric("flops_total", stage="difficulty", model="scripted-estimator", strategy="") == 0

    async def test_what_may_end_in_time_if_it_is_easy_is_estimated(self, make_suite: MakeSuite) -> None:
        # An easy sample takes 4.3 s, one of the mean query 6.5 s, a hard one 7.4 s.
        slow = make_profile(arms=[arm_record(name, seconds_per_token=0.1) for name in "sml"])
        suite = make_suite(same(number(421)), EASY, profile=slow, deadline_margin_seconds=0.0)
        assert (await suite.router.solve(ask(), 5.5)).answer == "421"
        hard = make_suite(same(number(421)), HARD, profile=slow, deadline_margin_seconds=0.0)
        with pytest.raises(DeadlineExceeded):
            await hard.router.solve(ask(), 5.5)
        assert not hard.generation.starts
        # The estimate that told so is all that was spent, and it is counted.
        assert hard.metric("flops_total", stage="difficulty", model="scripted-estimator", strategy="") == (
            ESTIMATE_FLOPS
        )

    async def test_an_answer_that_the_deadline_cut_short_says_so(self, make_suite: MakeSuite) -> None:
        suite = make_suite(listed(number(421), HOLD), HARD)
        result = await suite.router.solve(fixed(4), 0.4)
        assert (result.answer, result.status) == ("421", STATUS_DEGRADED)
        assert "the deadline is near: the best answer so far" in result.reason

    async def test_where_no_other_round_fits_in_the_time_the_answer_says_so(
        self, make_suite: MakeSuite
    ) -> None:
        slow = make_profile(arms=[arm_record(name, seconds_per_token=0.02) for name in "sml"])
        suite = make_suite(
            listed(*(number(i, late=True) for i in range(9))), HARD, profile=slow, round_samples=1
        )
        solving = asyncio.create_task(
            suite.router.solve(ask(effort=3, filters=Filters(models=["m"], strategies=["majority"])), 2.2)
        )
        await asyncio.sleep(1.2)
        suite.generation.gate.set()
        result = await solving
        assert result.status == STATUS_DEGRADED
        assert "no further round fits in the time that is left" in result.reason
        assert result.answer

    async def test_votes_that_nobody_counts_do_not_hold_up_the_answer(
        self, make_suite: MakeSuite, aggregation: Aggregation
    ) -> None:
        class Tiring:
            calls = 0

            async def aggregate(self, request: AggregateRequest) -> AggregateResponse:
                self.calls += 1
                if self.calls > 2:
                    await asyncio.Event().wait()
                return await aggregation.aggregate(request)

        suite = make_suite(same(number(421)), HARD, stages={"aggregation": Tiring()})
        events = [event async for event in suite.router.stream(fixed(4), 2.0)]
        result = events[-1].final
        assert (result.answer, result.status) == ("421", STATUS_DEGRADED)
        assert "not counted before the deadline" in result.reason
        assert result.bill.lines[0].stage in (STAGE_GENERATION, STAGE_DIFFICULTY)
