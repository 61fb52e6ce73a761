"""What the router counts is what it has billed."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing, suppress
from typing import Any

import pytest
from isoflop.errors import IsoflopError, Unavailable
from isoflop.v1.common_pb2 import STAGE_GENERATION, Stage, Usage
from isoflop.v1.generation_pb2 import RoundUsage
from isoflop.v1.router_pb2 import Effort, Filters, Objective, SolveRequest, SolveResponse
from prometheus_client import CollectorRegistry
from scripted_stages import BLANK, HOLD, Said, number, same
from scripted_suite import MakeSuite, Suite
from synthetic import EASY, HARD, IMPOSSIBLE, MIDDLE, make_model, make_profile

from router import solve
from router.cost import Meter
from router.metrics import Metrics
from router.profiles import InForce, Loaded
from services.common.flops import with_attention

DIFFICULTIES = {"easy": EASY, "middle": MIDDLE, "hard": HARD, "impossible": IMPOSSIBLE}
KINDS = ("prompt", "cached", "completion", "aborted", "rejected", "draft")


def script(model: str, index: int) -> Said:
    return BLANK if index % 4 == 3 else number(index % 3)


def request(prompt: str, **filters: object) -> SolveRequest:
    return SolveRequest(prompt=prompt, effort=Effort.EFFORT_HIGH, filters=Filters(**filters))  # type: ignore[arg-type]


REQUESTS = [
    *(request(name) for name in DIFFICULTIES),
    request("easy", strategies=["best_of_n"], samples=3),
    request("hard", models=["s"], samples=16),
    request("middle", strategies=["best_of_n"], models=["m"]),
]


def stage_of(line: Usage) -> str:
    return Stage.Name(line.stage).removeprefix("STAGE_").lower()


def sums(lines: list[Usage]) -> Counter[tuple[str, ...]]:
    """What metrics must say of these lines, by name and labels."""
    found: Counter[Any] = Counter()
    for line in lines:
        labels = (stage_of(line), line.model, line.strategy)
        aborted = ("aborted", *labels[1:])
        found["flops_total", *labels] += line.flops - line.aborted_flops
        found["flops_total", *aborted] += line.aborted_flops
        found["money_total", *labels] += line.money - line.aborted_money
        found["money_total", *aborted] += line.aborted_money
        found["samples_total", *labels] += line.calls
        for kind in KINDS:
            stage = aborted if kind == "aborted" else labels
            found["tokens_total", *stage, kind] += getattr(line, f"{kind}_tokens")
    return found


def check(suite: Suite, lines: list[Usage]) -> None:
    """The metrics are the sums of the lines: tokens and samples exactly, FLOPs and money to 1e-9."""
    for (name, stage, model, strategy, *kind), value in sums(lines).items():
        labels = {"stage": stage, "model": model, "strategy": strategy, "tier": "default"}
        found = suite.metric(name, **labels, **({"kind": kind[0]} if kind else {}))
        exact = name in ("tokens_total", "samples_total")
        assert found == (value if exact else pytest.approx(value, rel=1e-9)), (name, labels, kind)
    for name, total in (
        ("flops_total", sum(line.flops for line in lines)),
        ("money_total", sum(line.money for line in lines)),
    ):
        assert suite.metric(name) == pytest.approx(total, rel=1e-9)


async def test_counters_are_the_sums_of_the_bills(make_suite: MakeSuite) -> None:
    suite = make_suite(script)
    suite.difficulty.by_prompt = DIFFICULTIES
    results: list[SolveResponse] = await asyncio.gather(*(suite.router.solve(one) for one in REQUESTS))
    lines = [line for result in results for line in result.bill.lines]
    assert len(sums(lines)) > 20
    check(suite, lines)
    assert suite.metric("samples_spared_total") == sum(result.savings.samples for result in results)
    flops = suite.metric("flops_total", stage="difficulty", model="scripted-estimator", strategy="")
    assert flops == 120 * len(REQUESTS)


async def test_bills_are_what_is_counted_however_queries_end(
    make_suite: MakeSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many queries that are answered, verified, aborted, failed and cancelled: bills, metrics and what the
    services counted are the same."""
    lives: list[solve.Life] = []

    def noted(life: solve.Life) -> None:
        made(life)
        lives.append(life)

    made = solve.Life.__post_init__
    monkeypatch.setattr(solve.Life, "__post_init__", noted)

    def uneven(model: str, index: int) -> Said | Exception:
        """l is down; s never ends some samples; m has two samples that agree, and does not come to an end."""
        if model == "l":
            return Unavailable("the engine is down")
        if model == "m":
            return number(421) if index < 2 else HOLD
        return HOLD if index == 5 else number(index % 2, tokens=20 + index)

    suite = make_suite(uneven)
    suite.difficulty.by_prompt = DIFFICULTIES | {"decided": 0.6}
    stops = SolveRequest(
        prompt="decided",
        objective=Objective(flops_per_right_answer=3e9),
        filters=Filters(models=["m"], strategies=["majority"]),
    )
    asked = [
        stops,
        request("easy", samples=4, models=["s"]),
        request("middle", samples=3, strategies=["best_of_n"], models=["s"]),
        request("easy", samples=2, models=["l"]),
        request("hard", samples=4, strategies=["weighted"], models=["s"]),
    ]

    async def one(at: int) -> None:
        with suppress(IsoflopError):
            await suite.router.solve(asked[at % len(asked)])

    async def leave() -> None:
        """Its caller leaves with the first sample."""
        async with aclosing(suite.router.stream(request("hard", samples=8, models=["s"]))) as events:
            async for event in events:
                if event.HasField("sample"):
                    return

    await asyncio.gather(*(one(at) for at in range(50)), *(leave() for _ in range(10)))
    await suite.router.close()
    for outcome, queries in (("answered", 40), ("failed_unavailable", 10), ("cancelled", 10)):
        assert suite.metric("queries_total", outcome=outcome) == queries
    assert suite.metric("samples_spared_total") > 0
    assert len(lives) == 60

    bills = [life.meter.bill() for life in lives]
    lines = [line for bill in bills for line in bill.lines]
    check(suite, lines)
    assert suite.metric("flops_total") == pytest.approx(sum(bill.flops for bill in bills), rel=1e-9)
    assert suite.metric("tokens_total", stage="aborted") > 0
    assert suite.metric("tokens_total", stage="verification") == 0  # Log-probabilities take none,
    assert suite.metric("flops_total", stage="verification") > 0  # but a few operations.
    # And what generation counted, to the token.
    counted = suite.generation.counted
    for model, usage in counted.items():
        for kind in ("prompt", "cached", "completion", "aborted"):
            billed = suite.metric("tokens_total", model=model, kind=kind)
            assert billed == getattr(usage, f"{kind}_tokens"), (model, kind)
    aborted = sum(
        with_attention(make_model(name).shape, usage.aborted_tokens, usage.aborted_context_tokens)
        for name, usage in counted.items()
    )
    assert suite.metric("flops_total", stage="aborted") == pytest.approx(aborted, rel=1e-9)
    generated = suite.metric("flops_total", stage="generation") + suite.metric("flops_total", stage="aborted")
    assert generated == pytest.approx(suite.generation.flops(), rel=1e-9)
    assert suite.metric("flops_total", stage="difficulty") == 120 * suite.difficulty.calls
    assert suite.metric("queries_running") == 0
    assert suite.metric("pool_samples_running") == 0


def test_what_aborted_samples_generated_is_a_stage_of_its_own() -> None:
    registry, meter, model = CollectorRegistry(), Meter("USD"), make_model("m")
    whole = RoundUsage(samples=1, prompt_tokens=9, completion_tokens=30, context_tokens=780)
    cut = RoundUsage(
        samples=3, cached_tokens=27, aborted_tokens=12, context_tokens=138, aborted_context_tokens=138
    )
    drafted = RoundUsage(rejected_tokens=4, draft_tokens=50)
    for usage in (whole, cut, drafted):
        meter.generation(model, "majority", usage)
    metrics = Metrics(registry)
    metrics.began("gold")
    metrics.ended("answered", "gold", meter.lines, 0.001, 3)
    (line,) = meter.lines
    labels = {"model": "m", "strategy": "majority", "tier": "gold"}

    def told(name: str, stage: str, **more: str) -> float | None:
        return registry.get_sample_value(f"isoflop_router_{name}", {"stage": stage, **labels, **more})

    assert told("flops_total", "aborted") == line.aborted_flops > 0
    assert told("flops_total", "generation") == line.flops - line.aborted_flops > 0
    assert told("money_total", "aborted") == line.aborted_money > 0
    assert told("tokens_total", "aborted", kind="aborted") == 12
    tokens = {kind: told("tokens_total", "generation", kind=kind) for kind in KINDS}
    assert tokens == {
        "prompt": 9, "cached": 27, "completion": 30, "aborted": None, "rejected": 4, "draft": 50
    }  # fmt: skip


async def test_every_query_is_counted_by_its_outcome_and_its_overhead(make_suite: MakeSuite) -> None:
    suite = make_suite(script)
    suite.difficulty.by_prompt = DIFFICULTIES
    await suite.router.solve(request("easy"))
    await suite.router.solve(request("impossible"))
    suite.generation.script = lambda model, index: HOLD
    running = asyncio.create_task(suite.router.solve(request("easy", models=["m"], samples=2)))
    await asyncio.sleep(0.02)
    assert suite.metric("queries_running", tier="default") == 1
    assert suite.metric("pool_samples_running", model="m") == 2
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await asyncio.sleep(0.02)
    suite.generation.script = lambda model, index: Unavailable("down")
    with pytest.raises(Unavailable):
        await suite.router.solve(request("easy"))
    for outcome in ("answered", "abandoned", "cancelled", "failed_unavailable"):
        assert suite.metric("queries_total", outcome=outcome, tier="default") == 1
    assert suite.metric("overhead_seconds_count") == 4
    assert suite.metric("queries_running") == suite.metric("pool_samples_running") == 0


async def test_overhead_leaves_out_the_time_of_the_models_and_the_first_sample_has_it(
    make_suite: MakeSuite,
) -> None:
    suite = make_suite(lambda model, index: number(1, late=True))
    solving = asyncio.create_task(suite.router.solve(request("easy", samples=2)))
    await asyncio.sleep(0.3)
    suite.generation.gate.set()
    await solving
    assert suite.metric("overhead_seconds_sum") < 0.2
    assert suite.metric("first_sample_seconds_count") == 1
    assert suite.metric("first_sample_seconds_sum") > 0.25


async def test_a_query_without_a_sample_has_no_time_to_its_first(make_suite: MakeSuite) -> None:
    suite = make_suite(same(Unavailable("down")))
    with pytest.raises(Unavailable):
        await suite.router.solve(request("easy"))
    assert suite.metric("first_sample_seconds_count") == 0
    assert suite.metric("overhead_seconds_count") == 1


async def test_rounds_are_counted_by_what_was_planned(make_suite: MakeSuite) -> None:
    suite = make_suite(script)
    for samples, strategy in ((1, "single"), (3, "majority"), (16, "majority"), (4, "best_of_n")):
        await suite.router.solve(request("easy", models=["s"], samples=samples, strategies=[strategy]))
    await suite.router.solve(request("easy", models=["m"], samples=65))
    for strategy, samples in (
        ("single", "1"),
        ("majority", "3-4"),
        ("majority", "9-16"),
        ("best_of_n", "3-4"),
    ):
        assert suite.metric("plans_total", model="s", strategy=strategy, samples=samples) == 1
    assert suite.metric("plans_total", model="m", strategy="majority", samples="65+") == 1
    assert suite.metric("plans_total") == 5


async def test_a_plan_counts_no_query(make_suite: MakeSuite) -> None:
    suite = make_suite(script)
    await suite.router.plan(request("easy"))
    assert suite.metric("overhead_seconds_count") == 0
    assert suite.metric("queries_running") == 0
    assert suite.metric("plans_total") == 0


def test_queries_that_wait_or_are_turned_away_are_counted_by_tier() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    waiting = [1, 2]
    metrics.waiting("gold", lambda: len(waiting))
    waiting.pop()
    metrics.refused("shed", "gold")
    assert registry.get_sample_value("isoflop_router_queries_waiting", {"tier": "gold"}) == 1
    labels = {"outcome": "shed", "tier": "gold"}
    assert registry.get_sample_value("isoflop_router_queries_total", labels) == 1


PLAN = {
    "model": "m", "temperature": 0.8, "strategy": "majority", "samples": 4, "accuracy": 0.7, "flops": 3e8,
    "policy_accuracy": 0.65, "policy_flops": 2e8, "queries": 100,
}  # fmt: skip


class TestCompared:
    """With the profile's fixed plan."""

    def make(self, make_suite: MakeSuite, **settings: Any) -> Suite:
        profile = make_profile(baselines={"high": PLAN, "low": PLAN | {"model": "l", "samples": 1}})
        suite = make_suite(script, profile=profile, **settings)
        suite.difficulty.by_prompt = DIFFICULTIES
        return suite

    async def test_both_sides_are_of_the_same_queries(self, make_suite: MakeSuite) -> None:
        suite = self.make(make_suite, core_flops=0.0)
        results = [await suite.router.solve(request(name)) for name in DIFFICULTIES]
        assert suite.metric("compared_queries_total", tier="default") == len(DIFFICULTIES)
        assert suite.metric("compared_flops_total") == pytest.approx(sum(r.bill.flops for r in results))
        assert suite.metric("compared_money_total") == pytest.approx(sum(r.bill.money for r in results))
        bought = [line.calls for r in results for line in r.bill.lines if line.stage == STAGE_GENERATION]
        assert suite.metric("compared_samples_total") == sum(bought)
        assert suite.metric("baseline_samples_total") == 4 * len(DIFFICULTIES)
        assert suite.metric("baseline_flops_total") > 0
        assert suite.metric("baseline_money_total") > 0
        low = SolveRequest(prompt="easy", effort=Effort.EFFORT_LOW)
        before = suite.metric("baseline_samples_total")
        await suite.router.solve(low)
        assert suite.metric("baseline_samples_total") == before + 1

    async def test_the_routers_own_work_is_on_its_side(self, make_suite: MakeSuite) -> None:
        suite = self.make(make_suite, core_flops=1e12)
        result = await suite.router.solve(request("easy"))
        own = 1e12 * suite.metric("overhead_seconds_sum")
        assert own > 0
        assert suite.metric("compared_flops_total") == pytest.approx(result.bill.flops + own)

    async def test_queries_that_ask_for_something_else_are_not_compared(self, make_suite: MakeSuite) -> None:
        suite = self.make(make_suite)
        await suite.router.solve(request("easy", models=["s"]))
        await suite.router.solve(request("easy", samples=2))
        await suite.router.solve(SolveRequest(prompt="easy"))  # Of medium effort there is no plan.
        assert suite.metric("queries_total") == 3
        assert suite.metric("compared_queries_total") == 0
        assert suite.metric("baseline_flops_total") == suite.metric("compared_flops_total") == 0

    async def test_queries_that_fail_or_are_cancelled_are_not_compared(self, make_suite: MakeSuite) -> None:
        suite = self.make(make_suite)
        suite.generation.script = lambda model, index: Unavailable("down")
        with pytest.raises(Unavailable):
            await suite.router.solve(request("easy"))
        suite.generation.script = lambda model, index: HOLD
        running = asyncio.create_task(suite.router.solve(request("easy")))
        await asyncio.sleep(0.02)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await suite.router.close()
        assert suite.metric("queries_total") == 2
        assert suite.metric("compared_queries_total") == 0

    async def test_a_profile_that_knows_no_plan_says_so(self, make_suite: MakeSuite) -> None:
        suite = make_suite(script)
        assert suite.metric("profile_baselines", role="live") == 0
        await suite.router.solve(request("easy"))
        assert suite.metric("compared_queries_total") == 0
        assert self.make(make_suite).metric("profile_baselines", role="live") == 2


async def test_the_profile_in_force_is_told(make_suite: MakeSuite) -> None:
    suite = make_suite(script)
    assert suite.metric("profile_info", role="live", version="synthetic-1") == 1


def test_of_two_profiles_the_last_is_in_force() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for version in ("one", "two"):
        metrics.profiles.in_force(InForce(Loaded(make_profile(version=version), modified=77.0)), 0)
    for version, value in (("one", None), ("two", 1)):
        labels = {"role": "live", "version": version}
        assert registry.get_sample_value("isoflop_router_profile_info", labels) == value
    written = registry.get_sample_value("isoflop_router_profile_modified_timestamp_seconds", labels)
    assert written == 77.0


def test_a_profiles_age_is_that_of_when_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.profiles.in_force(InForce(Loaded(make_profile(), modified=1000.0)), 0)
    for now in (1000.0, 1060.0):
        monkeypatch.setattr("router.metrics_profiles.time.time", lambda now=now: now)
        labels = {"role": "live", "version": "synthetic-1"}
        assert registry.get_sample_value("isoflop_router_profile_age_seconds", labels) == now - 1000.0
