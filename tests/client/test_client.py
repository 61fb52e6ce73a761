"""Both clients against a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, closing
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from isoflop import (
    AsyncClient,
    Budget,
    Client,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    IsoflopError,
    Message,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unreachable,
    solve_request,
)
from isoflop.v1.common_pb2 import AnswerType
from isoflop.v1.router_pb2 import (
    Effort,
    GetBillRequest,
    GetBudgetRequest,
    QueryStarted,
    Search,
    StreamSolveResponse,
    SubmitFeedbackRequest,
)
from isoflop.v1.verification_pb2 import ChainScoring
from scripted_answers import BILL, EVENTS, FRONTIER, JUDGED, MODELS, PLANNED, RUNNING, SOLVED, STANDING
from scripted_router import HANG, ScriptedRouter

Call = Callable[..., Awaitable[Any]]


@asynccontextmanager
async def sync_calls(address: str) -> AsyncIterator[Call]:
    with Client(address) as client:

        def call(method: str, *arguments: Any, **options: Any) -> Any:
            found = getattr(client, method)(*arguments, **options)
            return list(found) if method == "stream" else found

        async def in_thread(*arguments: Any, **options: Any) -> Any:
            return await asyncio.to_thread(call, *arguments, **options)

        yield in_thread


@asynccontextmanager
async def async_calls(address: str) -> AsyncIterator[Call]:
    async with AsyncClient(address) as client:

        async def call(method: str, *arguments: Any, **options: Any) -> Any:
            found = getattr(client, method)(*arguments, **options)
            return [event async for event in found] if method == "stream" else await found

        yield call


@pytest.fixture(params=[sync_calls, async_calls], ids=["sync", "async"])
async def call(request: pytest.FixtureRequest, address: str) -> AsyncIterator[Call]:
    async with request.param(address) as made:
        yield made


async def test_every_method(router: ScriptedRouter, call: Call) -> None:
    router.expect("Solve", SOLVED)
    router.expect("Plan", PLANNED)
    router.expect("ListModels", MODELS)
    router.expect("GetFrontier", FRONTIER)
    router.expect("GetQuery", RUNNING)
    router.expect("StreamSolve", *EVENTS)
    router.expect("SubmitFeedback", JUDGED)
    router.expect("GetBudget", STANDING)
    router.expect("GetBill", BILL)
    assert await call("solve", "17*24+13", samples=4, models=["abacus-s"], timeout=60) == SOLVED
    assert await call("plan", "17*24+13", effort="low") == PLANNED
    assert await call("models") == MODELS
    assert await call("frontier") == FRONTIER
    assert await call("query", "q1") == RUNNING
    assert await call("stream", "17*24+13", seed=3) == EVENTS
    assert await call("feedback", "q1", answer="421") == JUDGED
    assert await call("budget", "acme") == STANDING
    since, until = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 2, tzinfo=UTC)
    assert await call("bill", ["tenant", "day"], since, until=until) == BILL
    solve, plan, _, _, query, stream, feedback, budget, bill = router.requests
    assert solve == solve_request("17*24+13", samples=4, models=["abacus-s"])
    assert plan.query == solve_request("17*24+13", effort="low")
    assert query.query_id == "q1"
    assert stream.query == solve_request("17*24+13", seed=3)
    assert feedback == SubmitFeedbackRequest(query_id="q1", answer="421")
    assert budget.tenant == "acme"
    assert bill == GetBillRequest(
        since=Timestamp(seconds=1793491200), until=Timestamp(seconds=1793577600), by=["tenant", "day"]
    )
    assert router.deadlines[0] == pytest.approx(60, abs=5)
    assert router.deadlines[1] is None


async def test_a_bill_of_all_there_is(router: ScriptedRouter, call: Call) -> None:
    router.expect("GetBill", BILL)
    router.expect("GetBudget", STANDING)
    await call("bill")
    await call("budget")
    assert router.requests == [GetBillRequest(), GetBudgetRequest()]


async def test_a_time_without_a_zone_is_utc(router: ScriptedRouter, call: Call) -> None:
    zone = timezone(timedelta(hours=2))
    for _ in range(2):
        router.expect("GetBill", BILL)
    await call(
        "bill", since=datetime(2026, 11, 1, 12, 0, 0, 500), until=datetime(2026, 11, 1, 14, tzinfo=zone)
    )
    asked = router.requests[0]
    assert (asked.since.seconds, asked.since.nanos) == (1793534400, 500_000)
    assert asked.until == Timestamp(seconds=1793534400)
    await call("bill", since=datetime.max)
    assert router.requests[1].since.seconds == 253402300799


async def test_times_and_tenants_that_no_request_could_say(call: Call) -> None:
    ahead = timezone(timedelta(hours=14))
    with pytest.raises(InvalidArgument, match=r"^until: "):
        await call("bill", until=datetime(1, 1, 1, tzinfo=ahead))
    with pytest.raises(InvalidArgument, match=r"^tenant: the text is not valid Unicode"):
        await call("budget", "\ud800")


async def test_a_truth_is_an_answer_or_a_word_of_it_and_never_none(
    router: ScriptedRouter, call: Call
) -> None:
    router.expect("SubmitFeedback", JUDGED)
    await call("feedback", "q1", right=False)
    assert router.requests[0].WhichOneof("truth") == "right"
    assert not router.requests[0].right
    for truth in ({}, {"answer": "421", "right": True}):
        with pytest.raises(InvalidArgument, match="truth"):
            await call("feedback", "q1", **truth)


async def test_feedback_is_tried_again(router: ScriptedRouter, call: Call) -> None:
    router.expect("SubmitFeedback", Unavailable("busy", 0.01))
    router.expect("SubmitFeedback", JUDGED)
    assert await call("feedback", "q1", right=True) == JUDGED


@pytest.mark.parametrize(
    "error",
    [
        InvalidArgument("filters.samples", "is above 1024"),
        NotFound("no model 'x': the models are abacus-s"),
        ResourceExhausted("the quota is used up", 3600.0),
        DeadlineExceeded("it takes 3 s at least"),
        FailedPrecondition("the cheapest plan takes 2 GFLOPs"),
        Internal("abc123"),
        Unavailable("generation is down", 0.01),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_errors_come_back(router: ScriptedRouter, call: Call, error: IsoflopError) -> None:
    router.expect("Solve", error)
    router.expect("StreamSolve", EVENTS[0], error)
    for method in ("solve", "stream"):
        with pytest.raises(type(error)) as caught:
            await call(method, "1+1")
        assert str(caught.value) == str(error)
        assert vars(caught.value) == vars(error)


async def test_unavailable_is_tried_again_after_the_pause_where_that_is_safe(
    router: ScriptedRouter, call: Call
) -> None:
    shed = Unavailable("busy", 0.2)
    for method, answer in (("Solve", SOLVED), ("Plan", PLANNED)):
        router.expect(method, shed)
        router.expect(method, shed)
        router.expect(method, answer)
    begin = time.monotonic()
    assert await call("solve", "1+1", request_id="r1") == SOLVED
    assert time.monotonic() - begin >= 0.4
    assert await call("plan", "1+1") == PLANNED
    assert len(router.requests) == 6
    assert {request.request_id for request in router.requests[:3]} == {"r1"}


async def test_a_call_is_tried_three_times_at_most(router: ScriptedRouter, call: Call) -> None:
    for _ in range(3):
        router.expect("ListModels", Unavailable("busy", 0.0))
    with pytest.raises(Unavailable, match="busy"):
        await call("models")
    assert len(router.requests) == 3


@pytest.mark.parametrize(
    ("pause", "options"),
    [
        (0.0, {}),
        (0.0, {"request_id": ""}),
        (5.0, {"request_id": "r", "timeout": 2}),
        (3600.0, {"request_id": "r"}),
    ],
    ids=["no id", "empty id", "beyond the timeout", "too long"],
)
async def test_no_other_try(
    router: ScriptedRouter, call: Call, pause: float, options: dict[str, Any]
) -> None:
    router.expect("Solve", Unavailable("busy", pause))
    with pytest.raises(Unavailable):
        await call("solve", "1+1", **options)


async def test_tries_share_the_timeout(router: ScriptedRouter, call: Call) -> None:
    router.expect("Solve", Unavailable("busy", 0.5))
    router.expect("Solve", HANG)
    begin = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="allow more time"):
        await call("solve", "1+1", request_id="r", timeout=1)
    assert time.monotonic() - begin < 3
    first, second = router.deadlines
    assert first is not None
    assert second is not None
    assert second <= first - 0.4


@pytest.mark.parametrize("calls", [sync_calls, async_calls], ids=["sync", "async"])
async def test_nobody_answers(nowhere: str, calls: Any) -> None:
    async with calls(nowhere) as call:
        for method in ("solve", "stream"):
            with pytest.raises(Unreachable, match=f"{nowhere} does not answer"):
                await call(method, "1+1")


BROKEN = Unavailable("the connection broke", 0.01)


async def test_a_stream_that_breaks_goes_on_where_it_broke(router: ScriptedRouter, call: Call) -> None:
    router.expect("StreamSolve", *EVENTS[:3], BROKEN)
    router.expect("StreamSolve", *EVENTS[:4], BROKEN)
    router.expect("StreamSolve", *EVENTS)
    assert await call("stream", "17*24+13", request_id="r") == EVENTS
    assert [request.query.request_id for request in router.requests] == ["r", "r", "r"]
    assert len({request.SerializeToString() for request in router.requests}) == 1


async def test_a_stream_that_breaks_after_the_querys_end_has_its_result(
    router: ScriptedRouter, call: Call
) -> None:
    router.expect("StreamSolve", *EVENTS[:3], BROKEN)
    router.expect("StreamSolve", EVENTS[-1])
    assert await call("stream", "17*24+13", request_id="r") == [*EVENTS[:3], EVENTS[-1]]


async def test_where_the_query_had_to_begin_anew_all_of_its_events_are_told(
    router: ScriptedRouter, call: Call
) -> None:
    started = StreamSolveResponse(started=QueryStarted(query_id="another"))
    router.expect("StreamSolve", *EVENTS[:3], BROKEN)
    router.expect("StreamSolve", started, *EVENTS[1:])
    assert await call("stream", "17*24+13", request_id="r") == [*EVENTS[:3], started, *EVENTS[1:]]


async def test_a_stream_is_tried_three_times_at_most_and_without_an_id_once(
    router: ScriptedRouter, call: Call
) -> None:
    for options, tries in (({"request_id": "r"}, 3), ({}, 1)):
        for _ in range(tries):
            router.expect("StreamSolve", *EVENTS[:2], BROKEN)
        with pytest.raises(Unavailable, match="the connection broke"):
            await call("stream", "17*24+13", **options)
        assert not router.unused()


async def test_closing_a_stream_cancels_the_call(router: ScriptedRouter, address: str) -> None:
    router.expect("StreamSolve", *EVENTS[:2], HANG)

    def two_events() -> None:
        with Client(address) as client, closing(client.stream("1+1")) as events:
            assert [next(events), next(events)] == EVENTS[:2]

    await asyncio.to_thread(two_events)
    await asyncio.wait_for(router.cancelled.wait(), 10)


async def test_closing_an_async_stream_cancels_the_call(router: ScriptedRouter, address: str) -> None:
    router.expect("StreamSolve", *EVENTS[:2], HANG)
    async with AsyncClient(address) as client:
        async with aclosing(client.stream("1+1")) as events:
            assert [await anext(events), await anext(events)] == EVENTS[:2]
        await asyncio.wait_for(router.cancelled.wait(), 10)


@pytest.mark.parametrize("method", ["Solve", "StreamSolve"])
async def test_cancelling_a_task_cancels_the_call(router: ScriptedRouter, address: str, method: str) -> None:
    router.expect(method, HANG)
    async with AsyncClient(address) as client:

        async def run() -> None:
            if method == "Solve":
                await client.solve("1+1")
            else:
                async for _ in client.stream("1+1"):
                    pass

        task = asyncio.create_task(run())
        await router.called.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(router.cancelled.wait(), 10)


async def test_the_address_is_the_environments_by_default(
    router: ScriptedRouter, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOFLOP_ADDRESS", address)
    router.expect("ListModels", MODELS)
    async with AsyncClient() as client:
        assert await client.models() == MODELS
    monkeypatch.delenv("ISOFLOP_ADDRESS")
    with Client() as other:
        assert other.address == "localhost:50051"


async def test_every_call_says_which_tenant_asks(
    router: ScriptedRouter, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOFLOP_TENANT", "search")
    for _ in range(3):
        router.expect("Solve", SOLVED)
        router.expect("StreamSolve", *EVENTS)

    def in_thread(tenant: str | None) -> None:
        with Client(address, tenant) as client:
            client.solve("1+1")
            assert list(client.stream("1+1")) == EVENTS

    await asyncio.to_thread(in_thread, None)
    for tenant in ("homework", ""):
        async with AsyncClient(address, tenant=tenant) as client:
            await client.solve("1+1")
            assert [event async for event in client.stream("1+1")] == EVENTS
    assert router.tenants == ["search", "search", "homework", "homework", None, None]
    monkeypatch.delenv("ISOFLOP_TENANT")
    router.expect("ListModels", MODELS)
    async with AsyncClient(address) as client:
        await client.models()
    assert router.tenants[-1] is None


@pytest.mark.parametrize("name", ["Prüfung", "two\nlines"])
def test_what_no_call_can_name_is_no_tenant(name: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidArgument, match="tenant"):
            kind("localhost:1", name)


def test_a_request_says_what_was_asked() -> None:
    conversation = [Message(role="system", content="Be brief."), Message(role="user", content="1+1")]
    request = solve_request(
        conversation,
        answer_type="pattern",
        pattern="(x)",
        target_accuracy=0.0,
        budget=Budget(tokens=9),
        models=["a", "b"],
        strategies=["majority"],
        samples=4,
        temperature=0.0,
        seed=0,
        thinking_tokens=64,
        verifier="logprob",
        scoring="min",
        search=Search(width=2),
        request_id="r",
        return_candidates=True,
    )
    assert list(request.messages) == conversation
    assert not request.prompt
    assert request.answer_format.type == AnswerType.ANSWER_TYPE_PATTERN
    assert request.answer_format.pattern == "(x)"
    assert request.objective.WhichOneof("kind") == "target_accuracy"
    assert request.budget == Budget(tokens=9)
    filters = request.filters
    assert (list(filters.models), list(filters.strategies), filters.samples) == (["a", "b"], ["majority"], 4)
    assert (filters.thinking_tokens, filters.verifier) == (64, "logprob")
    assert filters.scoring == ChainScoring.CHAIN_SCORING_MIN
    assert filters.search == Search(width=2)
    assert filters.HasField("temperature")
    assert filters.HasField("seed")
    assert request.request_id == "r"
    assert request.return_candidates


def test_a_request_of_nothing_but_a_prompt_leaves_the_rest_to_the_router() -> None:
    request = solve_request("1+1")
    assert request.prompt == "1+1"
    assert not request.HasField("objective")
    assert not request.HasField("budget")
    assert request.effort == Effort.EFFORT_UNSPECIFIED
    assert not request.filters.ListFields()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"answer_type": "poem"}, "answer_format.type"),
        ({"effort": "heroic"}, "effort"),
        ({"target_accuracy": 0.9, "most_accurate": True}, "objective"),
        ({"samples": 10**10}, "request"),
        ({"models": ["\udcff"]}, "request"),
    ],
)
def test_what_no_request_could_say(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        solve_request("1+1", **options)
    assert caught.value.field == field


def test_an_unknown_option_is_a_mistake_in_the_program() -> None:
    with Client("localhost:1") as client, pytest.raises(TypeError, match="sample"):
        client.solve("1+1", sample=3)  # type: ignore[call-arg]
