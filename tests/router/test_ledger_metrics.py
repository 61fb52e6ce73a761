"""What the router tells of budgets, and of the ledger that keeps them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from isoflop.errors import Unavailable
from prometheus_client import CollectorRegistry

from router import price
from router.cost import Cost
from router.ledger import Budget, Short, Standing
from router.metrics_ledger import MOST_LIMITS, LedgerMetrics
from router.period import Period

UNLIMITED = Cost(math.inf, math.inf, math.inf)


def standing(name: str, ends: float = 100.0, worth: float = 1e9, **fields: Any) -> Standing:
    limit = Cost(1000.0, math.inf, math.inf)
    amounts = {"limit": limit, "spent": Cost(300.0), "reserved": Cost(50.0)} | fields
    budget = Budget(name, name.partition("/")[0], Period.of(100.0), amounts["limit"])
    pace = price.Pace(1 / worth, 0.0)
    return Standing(budget, ends - 100.0, ends, amounts["spent"], amounts["reserved"], pace)


class Told:
    """A registry, and what it says of budgets."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self.registry = CollectorRegistry()
        self.metrics = LedgerMetrics(self.registry, lambda: self.now)

    def value(self, name: str, budget: str, unit: str = "flops") -> float | None:
        labels = {"budget": budget, "unit": unit}
        if name == "shadow_price":
            del labels["unit"]
        return self.registry.get_sample_value(f"isoflop_router_{name}", labels)

    def row(self, budget: str, unit: str = "flops") -> list[float | None]:
        """Limit, spent, reserved, left."""
        return [self.value(f"budget_{name}", budget, unit) for name in ("limit", "spent", "reserved", "left")]

    def labels(self) -> set[str]:
        """Budgets that something is said of."""
        return {
            sample.labels["budget"]
            for family in self.registry.collect()
            for sample in family.samples
            if "budget" in sample.labels
        }


def test_a_budget_is_told_as_it_was_last_seen() -> None:
    told = Told()
    told.metrics.standings([standing("a/day", worth=1e9), standing("b/day", worth=1e12)])
    assert told.row("a/day") == [1000.0, 300.0, 50.0, 650.0]
    assert told.value("shadow_price", "a/day") == pytest.approx(1e6)
    told.metrics.standings([standing("a/day", spent=Cost(990.0), reserved=Cost(20.0))])
    assert told.row("a/day") == [1000.0, 990.0, 20.0, 0.0]
    assert told.value("shadow_price", "b/day") == pytest.approx(1e3)


def test_what_a_budget_does_not_limit_is_not_told() -> None:
    told = Told()
    limit, spent, reserved = Cost(math.inf, 5.0, 200.0), Cost(1e9, 2.0, 10.0), Cost(1e6, 1.0, 4.0)
    told.metrics.standings([standing("a/day", limit=limit, spent=spent, reserved=reserved)])
    assert told.row("a/day", "money") == [5.0, 2.0, 1.0, 2.0]
    assert told.row("a/day", "tokens") == [200.0, 10.0, 4.0, 186.0]
    assert told.row("a/day", "flops") == [None] * 4
    assert told.value("shadow_price", "a/day") is None


def test_a_new_window_has_nothing_spent() -> None:
    told = Told(now=99.0)
    told.metrics.standings([standing("a/day")])
    assert told.row("a/day")[1:] == [300.0, 50.0, 650.0]
    told.now = 100.0
    assert told.row("a/day") == [1000.0, 0.0, 0.0, 1000.0]


def test_beyond_so_many_limits_budgets_are_told_together() -> None:
    told = Told()
    names = [f"t{number:03}/day" for number in range(MOST_LIMITS + 50)]
    told.metrics.standings(standing(name) for name in reversed(names))
    told.metrics.configured(standing(name).budget for name in names)
    assert told.labels() == {*names[:MOST_LIMITS], "other"}
    assert told.row("other") == [50 * 1000.0, 50 * 300.0, 50 * 50.0, 50 * 650.0]
    assert told.value("shadow_price", "other") is None


def test_a_budget_that_is_not_configured_any_more_is_forgotten() -> None:
    told = Told()
    told.metrics.standings([standing("a/day"), standing("b/day")])
    told.metrics.configured([standing("b/day").budget, standing("c/day").budget])
    assert told.labels() == {"b/day"}
    told.metrics.standings([standing("c/day")])
    assert told.labels() == {"b/day", "c/day"}


def operations(registry: CollectorRegistry, operation: str, outcome: str) -> float | None:
    labels = {"operation": operation, "outcome": outcome}
    return registry.get_sample_value("isoflop_router_ledger_operations_total", labels)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "done"),
        (Short(standing("a/day")), "short"),
        (Unavailable("gone"), "unavailable"),
        (ValueError("a bug"), "failed"),
    ],
)
def test_what_is_asked_of_the_ledger_is_counted_by_outcome_and_timed(
    error: Exception | None, outcome: str
) -> None:
    told = Told()
    with pytest.raises(type(error)) if error else told.metrics.asked("settle"):
        if error:
            with told.metrics.asked("settle"):
                raise error
    assert operations(told.registry, "settle", outcome) == 1
    assert told.registry.get_sample_value("isoflop_router_ledger_seconds_count") == 1


def test_rounds_that_were_lost_are_counted() -> None:
    told = Told()
    told.metrics.lost(3)
    assert told.registry.get_sample_value("isoflop_router_rounds_lost_total") == 3
