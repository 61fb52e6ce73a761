"""What the router counts is what it has billed."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from isoflop.errors import Unavailable
from isoflop.v1.common_pb2 import Stage
from isoflop.v1.router_pb2 import Effort, Filters, SolveRequest, SolveResponse
from prometheus_client import CollectorRegistry
from scripted_stages import BLANK, HOLD, Said, number
from scripted_suite import MakeSuite
from synthetic import EASY, HARD, IMPOSSIBLE, MIDDLE, make_profile

from router.metrics import Metrics
from router.profiles import InForce, Loaded

DIFFICULTIES = {"easy": EASY, "middle": MIDDLE, "hard": HARD, "impossible": IMPOSSIBLE}


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


async def test_counters_are_the_sums_of_the_bills(make_suite: MakeSuite) -> None:
    suite = make_suite(script)
    suite.difficulty.by_prompt = DIFFICULTIES
    results: list[SolveResponse] = await asyncio.gather(*(suite.router.solve(one) for one in REQUESTS))
    sums: Counter[tuple[str, ...]] = Counter()
    for result in results:
        for line in result.bill.lines:
            labels = (Stage.Name(line.stage).removeprefix("STAGE_").lower(), line.model, line.strategy)
            sums[("flops_total", *labels)] += line.flops  # type: ignore[assignment]
            sums[("money_total", *labels)] += line.money  # type: ignore[assignment]
            sums[("samples_total", *labels)] += line.calls
            for kind in ("prompt", "cached", "completion", "aborted"):
                sums[("tokens_total", *labels, kind)] += getattr(line, f"{kind}_tokens")
    assert len(sums) > 20
    for (name, stage, model, strategy, *kind), value in sums.items():
        labels = {"stage": stage, "model": model, "strategy": strategy}
        found = suite.metric(name, **labels, **({"kind": kind[0]} if kind else {}))
        assert found == pytest.approx(value), (name, labels, kind)
    assert suite.metric("samples_spared_total") == sum(result.savings.samples for result in results)
    flops = suite.metric("flops_total", stage="difficulty", model="scripted-estimator", strategy="")
    assert flops == 120 * len(REQUESTS)


async def test_every_query_is_counted_by_its_outcome_and_its_overhead(make_suite: MakeSuite) -> None:
    suite = make_suite(script)
    suite.difficulty.by_prompt = DIFFICULTIES
    await suite.router.solve(request("easy"))
    await suite.router.solve(request("impossible"))
    suite.generation.script = lambda model, index: HOLD
    running = asyncio.create_task(suite.router.solve(request("easy")))
    await asyncio.sleep(0.02)
    assert suite.metric("queries_running") == 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await asyncio.sleep(0.02)
    suite.generation.script = lambda model, index: Unavailable("down")
    with pytest.raises(Unavailable):
        await suite.router.solve(request("easy"))
    for outcome in ("answered", "abandoned", "cancelled", "failed_unavailable"):
        assert suite.metric("queries_total", outcome=outcome) == 1
    assert suite.metric("overhead_seconds_count") == 4
    assert suite.metric("queries_running") == 0


async def test_overhead_leaves_out_the_time_of_the_models(make_suite: MakeSuite) -> None:
    suite = make_suite(lambda model, index: number(1, late=True))
    solving = asyncio.create_task(suite.router.solve(request("easy", samples=2)))
    await asyncio.sleep(0.3)
    suite.generation.gate.set()
    await solving
    assert suite.metric("overhead_seconds_sum") < 0.2


async def test_a_plan_counts_no_query(make_suite: MakeSuite) -> None:
    suite = make_suite(script)
    await suite.router.plan(request("easy"))
    assert suite.metric("overhead_seconds_count") == 0
    assert suite.metric("queries_running") == 0


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
