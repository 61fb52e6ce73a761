"""The same cases in one process, in five, and with a real Triton: answers, bills, errors, cancellation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from isoflop import AsyncClient, Options, Search
from isoflop.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    IsoflopError,
    NotFound,
)
from isoflop.v1.common_pb2 import STAGE_DIFFICULTY, STAGE_GENERATION, STAGE_VERIFICATION
from isoflop.v1.router_pb2 import STATUS_ANSWERED, Budget, SolveResponse

from tests.cluster.conftest import Suite

pytestmark = pytest.mark.cluster

PROBLEM = "17+24*3"
HARD = "(43+(26+2)+39-97)%6*(18-(3+1-92+77)-26)-(12+7*(31-25))"
TOKEN_KINDS = ("prompt", "cached", "completion", "aborted")


async def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until it holds; fails when it does not."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it has not come true"
        await asyncio.sleep(0.02)


def counted(suite: Suite) -> dict[str, float]:
    """What generation has counted, by kind of token."""
    return {
        kind: suite.generation.metrics("isoflop_generation_tokens_total", kind=kind) for kind in TOKEN_KINDS
    }


def billed(suite: Suite) -> dict[str, float]:
    """What the router has billed for generation, by kind of token."""
    stages = {kind: "aborted" if kind == "aborted" else "generation" for kind in TOKEN_KINDS}
    return {
        kind: suite.router.metrics("isoflop_router_tokens_total", kind=kind, stage=stage)
        for kind, stage in stages.items()
    }


def tokens(response: SolveResponse) -> dict[str, float]:
    """The generation tokens of one bill, by kind."""
    lines = [line for line in response.bill.lines if line.stage == STAGE_GENERATION]
    return {kind: sum(getattr(line, f"{kind}_tokens") for line in lines) for kind in TOKEN_KINDS}


async def test_a_query_gets_an_answer_and_its_bill(client: AsyncClient) -> None:
    response = await client.solve(PROBLEM, effort="high", seed=1)
    assert response.answer == "89"
    assert response.status == STATUS_ANSWERED
    assert response.rounds
    assert response.rounds[0].reason
    assert response.confidence > 0.5
    assert response.bill.currency == "USD"
    assert response.bill.money > 0
    assert response.bill.flops > response.bill.flops_without_attention > 0
    assert {line.stage for line in response.bill.lines} == {STAGE_GENERATION, STAGE_DIFFICULTY}
    assert sum(line.flops for line in response.bill.lines) == pytest.approx(response.bill.flops, rel=1e-9)


async def test_a_fixed_plan_buys_exactly_its_samples(client: AsyncClient) -> None:
    response = await client.solve(
        PROBLEM, models=["abacus-m"], strategies=["majority"], samples=8, seed=5, return_candidates=True
    )
    assert [(r.action.model, r.action.samples, r.completed, r.aborted) for r in response.rounds] == [
        ("abacus-m", 8, 8, 0)
    ]
    assert len(response.candidates) == 8
    assert sum(len(cluster.members) for cluster in response.clusters) <= 8
    assert tokens(response)["completion"] == sum(sample.tokens for sample in response.candidates)
    assert all(sample.steps[-1].end == len(sample.text) for sample in response.candidates if sample.text)


async def test_best_of_n_scores_steps_and_bills_the_verifier(client: AsyncClient) -> None:
    events = [
        event
        async for event in client.stream(
            PROBLEM, models=["abacus-m"], strategies=["best_of_n"], samples=4, seed=2
        )
    ]
    scores = [event.scores for event in events if event.HasField("scores")]
    assert len(scores) == 4
    assert all(0 <= score <= 1 for one in scores for score in one.steps)
    lines = {line.stage: line for line in events[-1].final.bill.lines}
    assert lines[STAGE_VERIFICATION].calls == 4
    assert lines[STAGE_VERIFICATION].flops > 0


@pytest.mark.parametrize("strategy", ["beam", "dvts"])
async def test_steps_are_searched_within_a_budget_and_billed_to_the_token(
    suite: Suite, client: AsyncClient, strategy: str
) -> None:
    before = counted(suite)
    beam: Options = {"models": ["abacus-m"], "strategies": [strategy], "seed": 3, "return_candidates": True}
    response = await client.solve(PROBLEM, search=Search(width=2, expansion=3), **beam)
    assert response.status == STATUS_ANSWERED
    (round,) = response.rounds
    assert (round.action.strategy, round.action.samples, round.aborted) == (strategy, 2, 0)
    assert 1 <= len(response.candidates) == round.completed <= 2
    for chain in response.candidates:
        assert [step.end for step in chain.steps][-1] == len(chain.text)
        assert sum(step.tokens for step in chain.steps) <= chain.tokens
    moved = {kind: counted(suite)[kind] - before[kind] for kind in TOKEN_KINDS}
    assert moved == {kind: tokens(response)[kind] for kind in TOKEN_KINDS}
    # Steps of chains that were pruned are on the bill, and nothing that ran on.
    assert moved["completion"] > sum(chain.tokens for chain in response.candidates)
    assert moved["aborted"] == 0
    lines = {line.stage: line for line in response.bill.lines}
    assert lines[STAGE_VERIFICATION].calls >= sum(len(chain.steps) for chain in response.candidates) / 2
    # What a beam begins with is in the engine's cache when it goes on. Triton does not tell of its cache.
    if suite.kind != "triton":
        assert lines[STAGE_GENERATION].cached_tokens > lines[STAGE_GENERATION].prompt_tokens
    tight = Budget(flops=7e9)
    less = await client.solve(PROBLEM, search=Search(width=2, expansion=3), budget=tight, **beam)
    assert less.bill.flops <= tight.flops


async def test_a_tree_is_told_as_it_grows_and_has_no_more_nodes_than_it_may(client: AsyncClient) -> None:
    tree: Options = {"models": ["abacus-m"], "strategies": ["tree"], "seed": 3}
    small = Search(width=2, expansion=3, nodes=24)
    events = [event async for event in client.stream(PROBLEM, search=small, **tree)]
    nodes = [node for event in events for node in event.growth.nodes]
    assert 3 <= len(nodes) <= 24
    assert nodes[0].parent == ""
    known = {"", *(node.id for node in nodes)}
    assert {node.parent for node in nodes} <= known
    final = events[-1].final
    assert final.status == STATUS_ANSWERED
    chain, at = "", next(n for n in nodes if n.id == final.clusters[0].best_member)
    while True:
        chain = at.text + chain
        if not at.parent:
            break
        at = next(node for node in nodes if node.id == at.parent)
    assert chain == final.text


async def test_thinking_is_kept_to_its_budget(client: AsyncClient) -> None:
    deep: Options = {"models": ["abacus-m"], "seed": 3, "return_candidates": True}
    short, long = [
        await client.solve(PROBLEM, strategies=["sequential"], thinking_tokens=tokens, **deep)
        for tokens in (20, 200)
    ]
    assert short.answer
    (chain,) = short.candidates
    # Closed where it ran out, and answered.
    assert 20 <= chain.tokens <= 28
    assert "answer: " in chain.text
    (chain,) = long.candidates
    # Extended where it ended too soon: what was taken back is on the bill.
    assert tokens(long)["completion"] > tokens(short)["completion"]
    assert tokens(long)["completion"] == chain.tokens


async def test_a_draft_is_judged_and_a_few_long_chains_are_scored(client: AsyncClient) -> None:
    for strategy, chains in (("refine", 1), ("broad_and_deep", 3)):
        response = await client.solve(
            PROBLEM, models=["abacus-m"], strategies=[strategy], search=Search(width=chains), seed=2
        )
        assert response.status == STATUS_ANSWERED
        lines = {line.stage: line for line in response.bill.lines}
        assert lines[STAGE_VERIFICATION].calls >= chains
        assert lines[STAGE_GENERATION].calls > chains
        assert [round.completed for round in response.rounds] == [chains]


async def test_events_tell_the_life_of_a_query_in_order(client: AsyncClient) -> None:
    events = [event async for event in client.stream(PROBLEM, samples=4, strategies=["majority"])]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[:2] == ["started", "round"]
    assert kinds[-3:] == ["tally", "stopped", "final"]
    assert kinds.count("sample") == 4
    assert kinds.count("final") == 1


async def test_the_text_of_a_single_sample_streams(client: AsyncClient) -> None:
    events = [event async for event in client.stream(PROBLEM, models=["abacus-l"], strategies=["single"])]
    text = "".join(event.text.text for event in events if event.HasField("text"))
    assert text
    assert text == events[-1].final.text


async def test_a_greedy_sample_is_the_same_again(client: AsyncClient) -> None:
    texts = {(await client.solve(PROBLEM, models=["abacus-m"], strategies=["single"])).text for _ in range(2)}
    assert len(texts) == 1


async def test_bills_are_what_generation_counted_to_the_token(suite: Suite, client: AsyncClient) -> None:
    before, billed_before = counted(suite), billed(suite)
    responses = await asyncio.gather(
        *(client.solve(f"{a}*7+{a}", effort="high", seed=a) for a in range(11, 19)),
        client.solve(HARD, models=["abacus-s"], samples=24, seed=3),
        client.solve(PROBLEM, models=["abacus-m"], strategies=["best_of_n"], samples=6, seed=4),
    )
    leaving = asyncio.ensure_future(client.solve(HARD, models=["abacus-l"], samples=48, seed=9))
    await until(lambda: suite.generation.metrics("isoflop_generation_samples_running") > 0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await until(lambda: suite.router.metrics("isoflop_router_queries_running") == 0)
    after, billed_after = counted(suite), billed(suite)
    moved = {kind: after[kind] - before[kind] for kind in TOKEN_KINDS}
    assert moved == {kind: billed_after[kind] - billed_before[kind] for kind in TOKEN_KINDS}
    told = {kind: sum(tokens(response)[kind] for response in responses) for kind in TOKEN_KINDS}
    # The query whose caller left is in the metrics, and in no response.
    assert moved["completion"] + moved["aborted"] >= told["completion"] + told["aborted"]
    assert all(moved[kind] >= told[kind] for kind in TOKEN_KINDS)


async def test_a_caller_that_leaves_ends_the_work(suite: Suite, client: AsyncClient) -> None:
    aborted = counted(suite)["aborted"]
    cancelled = suite.router.metrics("isoflop_router_queries_total", outcome="cancelled")
    call = asyncio.ensure_future(client.solve(HARD, models=["abacus-l"], samples=64, seed=9))
    await until(lambda: suite.generation.metrics("isoflop_generation_samples_running") > 0)
    await asyncio.sleep(0.3)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await until(lambda: suite.generation.metrics("isoflop_generation_samples_running") == 0)
    await until(
        lambda: suite.router.metrics("isoflop_router_queries_total", outcome="cancelled") == cancelled + 1
    )
    assert counted(suite)["aborted"] > aborted


async def test_stopping_early_aborts_and_bills_what_ran(suite: Suite, client: AsyncClient) -> None:
    """With rounds of 16 some samples are still running when the answer is decided."""
    responses = [
        await client.solve(
            f"{a}*3-{a}+5", models=["abacus-m"], strategies=["majority"], effort="high", seed=a
        )
        for a in range(21, 33)
    ]
    stopped = [response for response in responses if response.savings.samples]
    assert stopped
    for response in stopped:
        assert sum(round.aborted for round in response.rounds) == response.savings.samples
        # What was aborted in vain, as it ended by itself before it heard, is billed as completed.
        bought = sum(round.action.samples for round in response.rounds)
        calls = sum(line.calls for line in response.bill.lines if line.stage == STAGE_GENERATION)
        assert calls == bought


async def test_planning_spends_no_tokens(suite: Suite, client: AsyncClient) -> None:
    before = counted(suite)
    plan = await client.plan(PROBLEM)
    assert plan.action.model
    assert plan.reason
    assert len(plan.rejected) == 3
    assert all(one.reason for one in plan.rejected)
    assert counted(suite) == before


async def test_effort_buys_more(client: AsyncClient) -> None:
    # Where it is hard: low does not try, or not with the largest model.
    problems = [HARD, "48-(39-(97+65-45+96)+(8*8-(9+13)))*2+5", "(92-(7+(69+4))+44-17)*26-(4+13+5*7)"]
    spent = {
        effort: sum([(await client.solve(p, effort=effort, seed=1)).bill.flops for p in problems])
        for effort in ("low", "high")
    }
    assert spent["low"] < spent["high"]


@pytest.mark.parametrize("budget", [Budget(tokens=600), Budget(flops=4e8), Budget(money=1e-5)])
async def test_a_budget_binds(client: AsyncClient, budget: Budget) -> None:
    response = await client.solve(HARD, effort="high", budget=budget, seed=1)
    bill = response.bill
    assert bill.tokens <= (budget.tokens or bill.tokens)
    assert bill.flops <= (budget.flops or bill.flops)
    assert bill.money <= (budget.money or bill.money)


async def test_a_retry_gets_the_same_result_and_no_second_bill(suite: Suite, client: AsyncClient) -> None:
    first, joined = await asyncio.gather(
        *(client.solve(PROBLEM, samples=4, request_id=f"{suite.kind}-1") for _ in range(2))
    )
    before = counted(suite)
    again = await client.solve(PROBLEM, samples=4, request_id=f"{suite.kind}-1")
    assert first == joined == again
    assert counted(suite) == before
    with pytest.raises(InvalidArgument, match="request_id"):
        await client.solve("1+1", samples=4, request_id=f"{suite.kind}-1")


async def test_a_query_can_be_asked_for_later(client: AsyncClient) -> None:
    response = await client.solve(PROBLEM, samples=2)
    found = await client.query(response.query_id)
    assert not found.running
    assert found.result == response
    with pytest.raises(NotFound, match="no query"):
        await client.query("nonsense")


async def test_models_and_frontier_are_told(client: AsyncClient) -> None:
    models = await client.models()
    assert [model.name for model in models.models] == ["abacus-s", "abacus-m", "abacus-l"]
    assert all(model.shape.active_parameters > 10_000 for model in models.models)
    frontier = await client.frontier()
    assert {point.action.model for point in frontier.points} <= {model.name for model in models.models}


ERRORS: list[tuple[str, type[IsoflopError], str, Callable[[AsyncClient], Awaitable[SolveResponse]]]] = [
    ("empty", InvalidArgument, "prompt", lambda c: c.solve("")),
    ("blank", InvalidArgument, "prompt", lambda c: c.solve(" \n ")),
    ("1 MB", InvalidArgument, "prompt", lambda c: c.solve("7+" * 500_000)),
    ("unknown model", NotFound, "abacus-xl", lambda c: c.solve(PROBLEM, models=["abacus-xl"])),
    ("unknown strategy", NotFound, "guess", lambda c: c.solve(PROBLEM, strategies=["guess"])),
    (
        "a beam without end",
        InvalidArgument,
        "filters.search.depth",
        lambda c: c.solve(PROBLEM, strategies=["beam"], search=Search(depth=1 << 30)),
    ),
    ("no samples", InvalidArgument, "filters.samples", lambda c: c.solve(PROBLEM, samples=0)),
    ("a million samples", InvalidArgument, "filters.samples", lambda c: c.solve(PROBLEM, samples=1_000_000)),
    ("negative budget", InvalidArgument, "budget.flops", lambda c: c.solve(PROBLEM, budget=Budget(flops=-1))),
    ("target 1.2", InvalidArgument, "target_accuracy", lambda c: c.solve(PROBLEM, target_accuracy=1.2)),
    ("tiny budget", FailedPrecondition, "cheapest", lambda c: c.solve(PROBLEM, budget=Budget(flops=10))),
    (
        "long for its context",
        InvalidArgument,
        "context",
        lambda c: c.solve("7+" * 4000 + "1", models=["abacus-s"], samples=1),
    ),
    (
        "bad pattern",
        InvalidArgument,
        "pattern",
        lambda c: c.solve(PROBLEM, answer_type="pattern", pattern="(", samples=1),
    ),
]


@pytest.mark.parametrize(("kind", "says", "call"), [e[1:] for e in ERRORS], ids=[e[0] for e in ERRORS])
async def test_bad_input_is_refused_in_one_sentence(
    client: AsyncClient,
    kind: type[IsoflopError],
    says: str,
    call: Callable[[AsyncClient], Awaitable[SolveResponse]],
) -> None:
    with pytest.raises(kind, match=says) as caught:
        await call(client)
    assert "\n" not in str(caught.value)


async def test_what_cannot_end_in_time_is_refused_before_it_costs(suite: Suite, client: AsyncClient) -> None:
    before = counted(suite)
    with pytest.raises(DeadlineExceeded):
        await client.solve(PROBLEM, timeout=0.501)
    assert counted(suite) == before


async def test_near_the_deadline_the_best_so_far_is_returned(client: AsyncClient) -> None:
    response = await client.solve(HARD, models=["abacus-l"], samples=64, seed=1, timeout=2.0)
    assert "deadline" in response.reason
    assert sum(round.aborted for round in response.rounds) > 0


async def test_each_process_tells_its_health_contract_and_metrics(suite: Suite) -> None:
    for name, process in suite.processes.items():
        async with grpc.aio.insecure_channel(process.address) as channel:
            health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            asked = reflection_pb2.ServerReflectionRequest(list_services="")
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            async for answer in stub.ServerReflectionInfo(iter([asked])):
                services = {service.name for service in answer.list_services_response.service}
                assert f"isoflop.v1.{name.capitalize()}Service" in services
        assert process.metrics("isoflop_rpc_calls_total") > 0
        assert process.metrics("isoflop_process_tasks") > 0


async def test_no_prompt_is_logged(suite: Suite, client: AsyncClient) -> None:
    await client.solve("90210+4", samples=1, strategies=["single"])
    with pytest.raises(InvalidArgument):
        await client.solve("90210+4", samples=0)
    assert all("90210" not in process.log() for process in suite.processes.values())
