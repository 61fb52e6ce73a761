"""Queries that several callers follow, that are retried, left, asked about, and forgotten."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
from isoflop.errors import InvalidArgument, NotFound, Unavailable
from isoflop.v1.router_pb2 import STATUS_DEGRADED, Filters, SolveRequest, SolveResponse
from isoflop.v1.router_pb2 import StreamSolveResponse as Event
from isoflop.v1.verification_pb2 import ScoreRequest, ScoreResponse
from scripted_stages import ABORTED_TOKENS, HOLD, listed, number, same
from scripted_suite import MakeSuite, Suite

from services.verification.core import Verification

LATE = number(421, late=True)


def ask(request_id: str = "", prompt: str = "17*24+13", **filters: Any) -> SolveRequest:
    """Four votes of the middle model."""
    wanted = Filters(**{"samples": 4, "models": ["m"], **filters})
    return SolveRequest(prompt=prompt, request_id=request_id, filters=wanted)


async def begin(suite: Suite, request: SolveRequest) -> asyncio.Task[SolveResponse]:
    """A call that is under way: its first sample has come, or is waited for."""
    task = asyncio.create_task(suite.router.solve(request))
    await suite.settled()
    assert suite.generation.running
    return task


async def leave(*tasks: asyncio.Task[SolveResponse]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def first_id(suite: Suite, request: SolveRequest) -> tuple[str, Any]:
    """The id of a query that has begun, and its stream."""
    stream = suite.router.stream(request)
    event = await anext(stream)
    return event.started.query_id, stream


class Late:
    """The real verification, which scores when `gate` opens."""

    def __init__(self, core: Verification) -> None:
        self.core = core
        self.describe = core.describe
        self.begun, self.gate = asyncio.Event(), asyncio.Event()

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        self.begun.set()
        await self.gate.wait()
        return await self.core.score(request)


COUNTED = {"stage": "verification", "model": "logprob", "strategy": "best_of_n"}


class TestLateScores:
    """Scores that nobody waits for any more are counted when they come."""

    ASKED = ask(strategies=["best_of_n"])

    async def test_the_answer_at_the_deadline_does_not_wait_for_them(
        self, make_suite: MakeSuite, verification: Verification
    ) -> None:
        late = Late(verification)
        suite = make_suite(same(number(421)), stages={"verification": late}, generation={"batch": 4})
        result = await suite.router.solve(self.ASKED, 1.5)
        assert (result.answer, result.status) == ("421", STATUS_DEGRADED)
        found = await suite.router.query(result.query_id)
        assert (found.running, found.result.answer) == (False, "421")
        await suite.settled()
        assert suite.metric("samples_total", **COUNTED) == 0
        late.gate.set()
        await suite.settled()
        assert suite.metric("samples_total", **COUNTED) == 4
        assert suite.metric("flops_total", **COUNTED) == 8
        assert suite.metric("queries_total", outcome="degraded") == 1
        assert (await suite.router.query(result.query_id)).result == result

    async def test_a_caller_that_leaves_does_not_take_their_bill_away(
        self, make_suite: MakeSuite, verification: Verification
    ) -> None:
        late = Late(verification)
        suite = make_suite(same(number(421)), stages={"verification": late})
        task = asyncio.create_task(suite.router.solve(self.ASKED))
        await late.begun.wait()
        await leave(task)
        late.gate.set()
        await suite.settled()
        assert suite.metric("flops_total", **COUNTED) > 0
        assert suite.metric("queries_total", outcome="cancelled") == 1
        assert suite.metric("queries_running") == 0

    async def test_a_router_that_ends_waits_for_them_as_long_as_for_an_abort(
        self, make_suite: MakeSuite, verification: Verification
    ) -> None:
        suite = make_suite(same(number(421)), stages={"verification": Late(verification)}, abort_seconds=0.1)
        await suite.router.solve(self.ASKED, 1.5)
        await asyncio.wait_for(suite.router.close(), 1)
        assert suite.metric("queries_total", outcome="degraded") == 1
        assert suite.metric("queries_running") == 0


class TestLeaving:
    async def test_a_caller_that_leaves_cancels_the_query_and_its_samples(
        self, make_suite: MakeSuite
    ) -> None:
        suite = make_suite(listed(number(1), HOLD))
        await leave(await begin(suite, ask()))
        await suite.settled()
        assert suite.generation.running == 0
        assert suite.generation.aborts == 1
        assert suite.metric("queries_total", outcome="cancelled") == 1
        assert suite.metric("queries_running") == 0
        labels = {"model": "m", "strategy": "majority"}
        assert suite.metric("tokens_total", **labels, kind="aborted") == 3 * ABORTED_TOKENS
        assert suite.metric("flops_total", **labels) == pytest.approx(suite.generation.flops())

    async def test_closing_a_stream_is_leaving(self, make_suite: MakeSuite) -> None:
        suite = make_suite(listed(number(1), HOLD))
        async with aclosing(suite.router.stream(ask())) as events:
            async for event in events:
                if event.HasField("sample"):
                    break
        await suite.settled()
        assert suite.generation.running == 0
        assert suite.metric("queries_total", outcome="cancelled") == 1

    async def test_one_of_two_callers_may_leave(self, make_suite: MakeSuite) -> None:
        suite = make_suite(same(LATE), rejoin_seconds=0.0)
        first = await begin(suite, ask("a"))
        second = await begin(suite, ask("a"))
        await leave(first)
        await suite.settled()
        suite.generation.gate.set()
        assert (await second).answer == "421"
        assert suite.metric("queries_total", outcome="answered") == 1

    async def test_with_a_request_id_it_goes_on_for_a_while(self, make_suite: MakeSuite) -> None:
        suite = make_suite(same(LATE), rejoin_seconds=0.15)
        await leave(await begin(suite, ask("a")))
        await asyncio.sleep(0.05)
        assert suite.generation.running == 1
        await asyncio.sleep(0.2)
        assert suite.generation.running == 0
        assert suite.metric("queries_total", outcome="cancelled") == 1

    async def test_a_caller_that_comes_back_in_time_gets_it(self, make_suite: MakeSuite) -> None:
        suite = make_suite(same(LATE), rejoin_seconds=0.15)
        await leave(await begin(suite, ask("a")))
        back = await begin(suite, ask("a"))
        await asyncio.sleep(0.25)
        suite.generation.gate.set()
        assert (await back).answer == "421"
        assert len(suite.generation.starts) == 1

    async def test_a_caller_that_leaves_again_has_the_whole_while_again(self, make_suite: MakeSuite) -> None:
        suite = make_suite(same(LATE), rejoin_seconds=0.3)
        await leave(await begin(suite, ask("a")))
        await asyncio.sleep(0.2)
        await leave(await begin(suite, ask("a")))
        await asyncio.sleep(0.2)
        assert suite.generation.running == 1
        await asyncio.sleep(0.25)
        assert suite.generation.running == 0


class TestJoining:
    async def test_a_second_call_joins_the_first(self, make_suite: MakeSuite) -> None:
        suite = make_suite(same(LATE))
        first = await begin(suite, ask("a"))
        second = await begin(suite, ask("a"))
        suite.generation.gate.set()
        one, other = await first, await second
        assert one == other
        assert len(suite.generation.starts) == 1
        assert suite.difficulty.calls == 1
        assert suite.metric("queries_total", outcome="answered") == 1

    async def test_two_calls_at_the_same_time_are_one_query(self, make_suite: MakeSuite) -> None:
        suite = make_suite(same(number(421)))
        results = await asyncio.gather(*(suite.router.solve(ask("a")) for _ in range(5)))
        assert len({result.query_id for result in results}) == 1
        assert len(suite.generation.starts) == 1

    async def test_who_joins_late_gets_all_events_from_the_first(self, make_suite: MakeSuite) -> None:
        suite = make_suite(listed(number(1), LATE))
        stream = suite.router.stream(ask("a"))
        seen: list[Event] = [await anext(stream)]
        while not seen[-1].HasField("sample"):
            seen.append(await anext(stream))
        joined = asyncio.create_task(collect(suite, ask("a")))
        await suite.settled()
        suite.generation.gate.set()
        seen += [event async for event in stream]
        assert await joined == seen

    async def test_a_retry_after_the_end_gets_the_same_result_unbilled(self, make_suite: MakeSuite) -> None:
        suite = make_suite(same(number(421)))
        first = await suite.router.solve(ask("a"))
        flops = suite.metric("flops_total", stage="generation", model="m", strategy="majority")
        assert await suite.router.solve(ask("a")) == first
        assert len(suite.generation.starts) == 1
        assert suite.metric("flops_total", stage="generation", model="m", strategy="majority") == flops

    async def test_without_a_request_id_each_call_is_a_query(self, make_suite: MakeSuite) -> None:
        suite = make_suite(same(number(421)))
        first, second = await suite.router.solve(ask()), await suite.router.solve(ask())
        assert first.query_id != second.query_id
        assert len(suite.generation.starts) == 2

    async def test_another_question_with_the_same_id_is_refused(self, make_suite: MakeSuite) -> None:
        suite = make_suite(same(number(421)))
        await suite.router.solve(ask("a"))
        for other in (ask("a", prompt="1+1"), ask("a", samples=5)):
            with pytest.raises(InvalidArgument) as raised:
                await suite.router.solve(other)
            assert raised.value.field == "request_id"
        assert len(suite.generation.starts) == 1

    async def test_a_retry_of_what_failed_begins_anew(self, make_suite: MakeSuite) -> None:
        suite = make_suite(same(Unavailable("down")))
        with pytest.raises(Unavailable) as failed:
            await suite.router.solve(ask("a"))
        await asyncio.sleep(failed.value.retry_after)
        suite.generation.script = same(number(421))
        assert (await suite.router.solve(ask("a"))).answer == "421"

    async def test_a_failure_reaches_all_who_follow(self, make_suite: MakeSuite) -> None:
        suite = make_suite(listed(LATE, NotFound("the model has gone")))
        calls = [await begin(suite, ask("a")), await begin(suite, ask("a"))]
        suite.generation.gate.set()
        for failed in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(failed, NotFound)

    async def test_a_retry_while_the_query_is_cancelled_begins_anew(self, make_suite: MakeSuite) -> None:
        """An abort may take seconds: whoever comes in that time has not been cancelled."""
        slow = {"ending": asyncio.Event()}
        suite = make_suite(listed(number(1), HOLD), rejoin_seconds=0.0, generation=slow)
        await leave(await begin(suite, ask("a")))
        await suite.settled()
        assert suite.generation.running == 1
        suite.generation.script = same(number(421))
        retry = asyncio.create_task(suite.router.solve(ask("a")))
        await suite.settled()
        assert suite.generation.ending
        suite.generation.ending.set()
        assert (await retry).answer == "421"
        assert len(suite.generation.starts) == 2
        # And it can be joined itself, though the other one has ended meanwhile.
        assert (await suite.router.solve(ask("a"))).query_id == (await retry).query_id


async def collect(suite: Suite, request: SolveRequest) -> list[Event]:
    return [event async for event in suite.router.stream(request)]


class TestAsking:
    async def test_a_query_can_be_asked_about_while_it_runs_and_after(self, make_suite: MakeSuite) -> None:
        suite = make_suite(listed(number(421), LATE))
        query_id, stream = await first_id(suite, ask())
        await suite.settled()
        running = await suite.router.query(query_id)
        assert running.running
        assert not running.HasField("result")
        assert [round.action.model for round in running.rounds] == ["m"]
        suite.generation.gate.set()
        async with aclosing(stream):
            final = [event async for event in stream][-1].final
        ended = await suite.router.query(query_id)
        assert not ended.running
        assert ended.result == final
        assert list(ended.rounds) == list(final.rounds)
        assert ended.rounds[0].completed == 4

    @pytest.mark.parametrize("query_id", ["", "nothing", "x" * 1000])
    async def test_an_unknown_query_is_not_found(self, make_suite: MakeSuite, query_id: str) -> None:
        suite = make_suite(same(number(1)))
        with pytest.raises(NotFound) as raised:
            await suite.router.query(query_id)
        assert len(str(raised.value)) < 150

    async def test_of_a_query_that_failed_it_is_kept_how(self, make_suite: MakeSuite) -> None:
        suite = make_suite(listed(number(1), NotFound("the model has gone")))
        query_id, stream = await first_id(suite, ask())
        with pytest.raises(NotFound):
            _ = [event async for event in stream]
        await suite.settled()
        found = await suite.router.query(query_id)
        assert (found.running, found.outcome) == (False, "failed_not_found")
        assert len(found.rounds) == 1
        assert not found.HasField("result")

    async def test_events_are_kept_no_longer_than_somebody_follows(self, make_suite: MakeSuite) -> None:
        suite = make_suite(same(number(421)))
        await suite.router.solve(ask("a"))
        await suite.settled()
        assert [event.WhichOneof("event") for event in await collect(suite, ask("a"))] == ["final"]


class TestClosing:
    async def test_closing_cancels_what_runs_and_tells_who_follows(self, make_suite: MakeSuite) -> None:
        suite = make_suite(listed(number(1), HOLD))
        calls = [await begin(suite, ask()), await begin(suite, ask("a"))]
        await suite.router.close()
        assert suite.generation.running == 0
        assert suite.metric("queries_total", outcome="cancelled") == 2
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, Unavailable)

    async def test_closing_waits_for_the_bill_of_a_query_that_was_left(self, make_suite: MakeSuite) -> None:
        suite = make_suite(listed(number(1), HOLD), generation={"ending": asyncio.Event()})
        await leave(await begin(suite, ask()))
        await suite.settled()
        closing = asyncio.create_task(suite.router.close())
        await suite.settled()
        assert not closing.done()
        assert suite.generation.ending
        suite.generation.ending.set()
        await closing
        labels = {"model": "m", "strategy": "majority"}
        assert suite.metric("tokens_total", **labels, kind="aborted") == 3 * ABORTED_TOKENS

    async def test_at_the_end_of_a_drain_who_runs_and_who_waits_is_told(self, make_suite: MakeSuite) -> None:
        suite = make_suite(listed(number(1), HOLD), max_running=1)
        running = await begin(suite, ask("a"))
        waiting = asyncio.create_task(suite.router.solve(ask("b")))
        await suite.settled()
        await suite.router.end()
        for outcome in await asyncio.gather(running, waiting, return_exceptions=True):
            assert isinstance(outcome, Unavailable)
        assert len(suite.generation.starts) == 1
        assert suite.generation.counted["m"].aborted_tokens

    async def test_closing_what_is_idle_is_nothing(self, make_suite: MakeSuite) -> None:
        suite = make_suite(same(number(1)))
        await suite.router.close()
        await suite.router.close()

    async def test_no_task_is_left_over(self, make_suite: MakeSuite) -> None:
        before = asyncio.all_tasks()
        suite = make_suite(listed(number(1), HOLD), rejoin_seconds=0.0)
        await leave(await begin(suite, ask()), await begin(suite, ask("a")))
        await suite.settled()
        await suite.router.close()
        await suite.settled()
        assert asyncio.all_tasks() <= before
