"""What the router tells of budgets and of the ledger that keeps them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from google.rpc.code_pb2 import Code
from isoflop.errors import IsoflopError
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.cost import UNITS, Cost
from router.ledger import Budget, Short, Standing

MOST_LIMITS = 200
"""Limits of budgets that are told one by one; what is beyond is told together, as `other`."""

LEDGER_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)

MOVES = "as this router last saw it; moves with rounds, and when a window ends."


class LedgerMetrics(Collector):
    """Budgets as this router last saw them, and how the ledger answers."""

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.time) -> None:
        """`clock`: seconds since the epoch."""
        self._clock = clock
        self._standings: dict[str, Standing | None] = {}
        """By the budget's name; None: it was not seen yet."""
        self._operations = Counter(
            "isoflop_router_ledger_operations_total",
            "What was asked of the ledger, by outcome (done; short: a budget had no room; failed; or a "
            "status code); moves when it has answered, or has failed.",
            ("operation", "outcome"),
            registry=registry,
        )
        self._seconds = Histogram(
            "isoflop_router_ledger_seconds",
            "Seconds that the ledger took; moves when it has answered, or has failed.",
            buckets=LEDGER_SECONDS,
            registry=registry,
        )
        self._lost = Counter(
            "isoflop_router_rounds_lost_total",
            "Rounds that were charged in full because their router died; moves when another one finds that.",
            registry=registry,
        )
        registry.register(self)

    def configured(self, budgets: Iterable[Budget]) -> None:
        """These are all the budgets that there are; the first ones are told one by one."""
        self._standings = {budget.name: self._standings.get(budget.name) for budget in budgets}

    def standings(self, found: Iterable[Standing]) -> None:
        """Budgets as they stand now."""
        for standing in found:
            self._standings[standing.budget.name] = standing

    def lost(self, rounds: int) -> None:
        """So many rounds of a router that died were charged in full."""
        self._lost.inc(rounds)

    @contextmanager
    def asked(self, operation: str) -> Iterator[None]:
        """Count and time what is asked of the ledger while the context lasts."""
        began, outcome = time.perf_counter(), "done"
        try:
            yield
        except Short:
            outcome = "short"
            raise
        except IsoflopError as error:
            outcome = Code.Name(error.code).lower()
            raise
        except BaseException:
            outcome = "failed"
            raise
        finally:
            self._operations.labels(operation, outcome).inc()
            self._seconds.observe(time.perf_counter() - began)

    def collect(self) -> Iterator[Metric]:
        """Budgets: told when somebody looks, since a window may have ended meanwhile."""

        def gauge(name: str, help: str, *labels: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"isoflop_router_{name}", help, labels=("budget", *labels))

        limit = gauge(
            "budget_limit", "FLOPs, money or tokens of a budget's window; moves when it is changed.", "unit"
        )
        spent = gauge("budget_spent", f"What is spent of a budget's window, {MOVES}", "unit")
        reserved = gauge("budget_reserved", f"What running rounds may take of it at worst, {MOVES}", "unit")
        left = gauge("budget_left", f"What is neither spent nor reserved of it, {MOVES}", "unit")
        price = gauge(
            "shadow_price",
            "Right answers that one more PFLOP of a budget would buy, as this router last saw it; moves when "
            "a query ends.",
        )
        rows = list(self._rows())
        own, beyond = rows[:MOST_LIMITS], rows[MOST_LIMITS:]
        for unit in UNITS:
            amounts = [row.amounts for row in beyond if row.unit == unit]
            if amounts:
                own.append(
                    _Row("other", unit, [math.fsum(each) for each in zip(*amounts, strict=True)], None)
                )
        for row in own:
            for family, amount in zip((limit, spent, reserved, left), row.amounts, strict=True):
                family.add_metric((row.budget, row.unit), amount)
            if row.price is not None:
                price.add_metric((row.budget,), 1e15 * row.price)
        yield from (limit, spent, reserved, left, price)

    def _rows(self) -> Iterator[_Row]:
        """What is limited, in the order of the budgets."""
        now = self._clock()
        for name, standing in self._standings.items():
            if standing is None:
                continue
            limit, spent, reserved = standing.budget.limit, standing.spent, standing.reserved
            if now >= standing.ends:
                # A new window has begun: this router has not seen that anything was spent of it.
                spent = reserved = Cost()
            costs = limit, spent, reserved, limit.beyond(spent + reserved)
            for unit in UNITS:
                if getattr(limit, unit) < math.inf:
                    price = standing.pace.price if unit == "flops" else None
                    yield _Row(name, unit, [getattr(each, unit) for each in costs], price)


@dataclass(frozen=True)
class _Row:
    """One limit of a budget."""

    budget: str
    unit: str
    amounts: list[float]
    """Limit, spent, reserved, left."""
    price: float | None
    """Right answers that one more FLOP would buy; None: it limits no FLOPs, or there are several budgets."""
