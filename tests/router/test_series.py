"""However many queries and tenants there are, there are only so many series; and each says what it is."""

from __future__ import annotations

import math
import random

import grpc
import pytest
from isoflop.v1.common_pb2 import STAGE_DIFFICULTY, STAGE_GENERATION, STAGE_VERIFICATION, Usage
from isoflop.v1.router_pb2 import SolveResponse, Status
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from synthetic import make_arm, make_model, make_profile

from router import price
from router.baseline import Fixed
from router.cost import Cost
from router.decision import Action
from router.ledger import Budget, Standing
from router.metrics import Metrics, outcome
from router.metrics_pools import STATES
from router.pace import Pace
from router.period import Period
from router.profiles import InForce, Loaded
from router.strategies import STRATEGIES

MOST = 3000
TENANTS, QUERIES, BUDGETS = 1000, 10_000, 250
MODELS, VERIFIERS, TIERS = ("s", "m", "l"), ("logprob", "prm"), ("gold", "silver", "default")
OUTCOMES = [
    *(outcome(SolveResponse(status=value)) for value in Status.values()[1:]),
    "cancelled",
    *(f"failed_{code.name.lower()}" for code in grpc.StatusCode if code is not grpc.StatusCode.OK),
]
OPERATIONS = ("begin", "take_over", "standings", "estimated", "reserve", "settle", "end", "get", "bill")


@pytest.fixture(scope="module")
def page() -> str:
    """The metrics page of a router that has seen all sorts of queries."""
    registry, draw = CollectorRegistry(), random.Random(1)
    metrics, pace = Metrics(registry), Pace()
    metrics.pools.follow(pace)
    loaded = [Loaded(make_profile(version=f"v{number}")) for number in range(3)]
    metrics.profiles.in_force(InForce(loaded[0], loaded[1], 0.5, loaded[2]), 1)
    budgets = [
        Budget(f"tenant-{number}/day", f"tenant-{number}", Period.of(86400.0), Cost(1e15, math.inf, math.inf))
        for number in range(BUDGETS)
    ]
    for number in range(QUERIES):
        tenant, tier = number % TENANTS, draw.choice(TIERS)
        if draw.random() < 0.1:
            metrics.refused(draw.choice(["shed", *OUTCOMES]), tier)
            continue
        metrics.began(tier)
        metrics.waiting(tier, lambda: 9.0)
        lines = [Usage(stage=STAGE_DIFFICULTY, model="estimator", calls=1, flops=1e3)]
        for _ in range(draw.randint(1, 3)):
            model, strategy = draw.choice(MODELS), draw.choice(list(STRATEGIES))
            samples = draw.choice((1, 2, 3, 7, 12, 50, 100))
            action = Action(
                make_model(model), make_arm(), strategy, samples, samples, 100, 0.5, Cost(1e9), 0.1, 0.8
            )  # fmt: skip
            metrics.planned(action)
            metrics.played(action)
            pace.observe(model, draw.uniform(0.5, 2), number)
            lines.append(usage(draw, STAGE_GENERATION, model, strategy))
            if STRATEGIES[strategy].verifies:
                lines.append(usage(draw, STAGE_VERIFICATION, draw.choice(VERIFIERS), strategy))
        metrics.first_sample(draw.expovariate(1))
        ended, version = draw.choice(OUTCOMES), draw.choice(loaded).version
        metrics.ended(ended, tier, lines, draw.expovariate(100), 1, Fixed(4, Cost(1e9, 0.1, 9.0)))
        metrics.profiles.decided(version, ended, 1e9, 0.5)
        metrics.profiles.shadowed("v2", draw.choice(("same", "otherwise", "refused", "failed", "skipped")))
        budget = budgets[tenant % BUDGETS]
        with metrics.ledger.asked(draw.choice(OPERATIONS)):
            spent = Cost(draw.uniform(0, 1e15))
            metrics.ledger.standings([Standing(budget, 0, 1e12, spent, Cost(), price.Pace(1e-9, 0.0))])
        metrics.pools.breaker(f"generation/{model}", draw.choice(list(STATES)), model)
        metrics.pools.breaker(draw.choice(("verification", "aggregation")), draw.choice(list(STATES)))
    return generate_latest(registry).decode()


def usage(draw: random.Random, stage: int, model: str, strategy: str) -> Usage:
    tokens = {
        f"{kind}_tokens": draw.randint(1, 99)
        for kind in ("prompt", "cached", "completion", "aborted", "rejected", "draft")
        if stage == STAGE_GENERATION or kind in ("prompt", "cached", "completion")
    }
    aborted = {"aborted_flops": 1e6, "aborted_money": 0.01} if stage == STAGE_GENERATION else {}
    return Usage(
        stage=stage, model=model, strategy=strategy, calls=4, flops=1e9, money=0.1, **tokens, **aborted  # type: ignore[arg-type]
    )  # fmt: skip


def test_there_are_only_so_many_series(page: str) -> None:
    series = [
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    ]
    assert len(series) == len(set(series))
    assert MOST / 2 < len(series) <= MOST, len(series)


def test_a_page_of_so_many_queries_names_no_more_budgets_than_are_told(page: str) -> None:
    budgets = {
        sample.labels["budget"]
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if "budget" in sample.labels
    }
    assert len(budgets) == 201
    assert "other" in budgets


def test_every_metric_says_when_it_moves(page: str) -> None:
    for family in text_string_to_metric_families(page):
        assert family.name.startswith("isoflop_router_")
        assert "moves" in family.documentation.lower(), family.name
