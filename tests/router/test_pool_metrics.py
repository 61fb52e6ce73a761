"""What the router tells of pools, breakers, and what stands in for parts."""

from __future__ import annotations

import time

import pytest
from prometheus_client import CollectorRegistry

from router.metrics_pools import FALLBACKS, PoolMetrics
from router.pace import Pace


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> PoolMetrics:
    return PoolMetrics(registry)


def told(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"isoflop_router_{name}", labels)


def test_a_breaker_opens_once_however_often_it_is_told(
    registry: CollectorRegistry, metrics: PoolMetrics
) -> None:
    openings = []
    for state in ("closed", "open", "open", "half_open", "open", "closed"):
        metrics.breaker("verification", state)
        openings.append(told(registry, "breaker_openings_total", part="verification"))
    assert openings == [None, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(("state", "value", "up"), [("closed", 0, 1), ("half_open", 1, 0), ("open", 2, 0)])
def test_a_models_pool_is_up_where_its_breaker_is_closed(
    registry: CollectorRegistry, metrics: PoolMetrics, state: str, value: float, up: float
) -> None:
    metrics.breaker("generation/m", state, model="m")
    metrics.breaker("aggregation", state)
    assert told(registry, "breaker_state", part="generation/m") == value
    assert told(registry, "breaker_state", part="aggregation") == value
    assert told(registry, "pool_up", model="m") == up
    assert told(registry, "pool_up", model="aggregation") is None


def test_pace_is_as_it_has_faded_when_somebody_looks(
    registry: CollectorRegistry, metrics: PoolMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told(registry, "pool_pace", model="m") is None
    pace, now = Pace(), time.monotonic()
    metrics.follow(pace)
    for _ in range(5):
        pace.observe("m", 4.0, now)
    seen = []
    for later in (0.0, 60.0, 3600.0):
        monkeypatch.setattr("router.metrics_pools.time.monotonic", lambda later=later: now + later)
        seen.append(told(registry, "pool_pace", model="m"))
    assert seen == [pytest.approx(pace.at(now + later)["m"]) for later in (0.0, 60.0, 3600.0)]
    assert seen[0] is not None
    assert seen[0] > 2.5


def test_every_fallback_is_there_before_it_is_needed(
    registry: CollectorRegistry, metrics: PoolMetrics
) -> None:
    metrics.fallback("difficulty")
    assert {part: told(registry, "fallbacks_total", part=part) for part in FALLBACKS} == {
        "difficulty": 1, "aggregation": 0, "verification": 0, "ledger": 0
    }  # fmt: skip
