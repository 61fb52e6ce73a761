"""What the router tells of the parts that it works with: pools of models, breakers, and what stands in."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.pace import Pace

STATES = {"closed": 0, "half_open": 1, "open": 2}
"""Of a breaker."""

FALLBACKS = ("difficulty", "aggregation", "verification", "ledger")
"""Parts that a query goes on without."""


class PoolMetrics(Collector):
    """Models' pools, breakers and fallbacks."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._pace: Pace | None = None
        self._states: dict[str, str] = {}
        self._running = Gauge(
            "isoflop_router_pool_samples_running",
            "Samples of rounds that run, by model; moves when a round begins or ends.",
            ("model",),
            registry=registry,
        )
        self._up = Gauge(
            "isoflop_router_pool_up",
            "1 where the breaker of a model's pool is closed, else 0; moves when its breaker does.",
            ("model",),
            registry=registry,
        )
        self._breaker = Gauge(
            "isoflop_router_breaker_state",
            "State of a part's breaker: 0 closed, 1 half-open, 2 open; moves when it changes.",
            ("part",),
            registry=registry,
        )
        self._openings = Counter(
            "isoflop_router_breaker_openings_total",
            "How often a part's breaker has opened; moves when it opens.",
            ("part",),
            registry=registry,
        )
        self._fallbacks = Counter(
            "isoflop_router_fallbacks_total",
            "Times that a query went on without a part (difficulty: by the prior; aggregation: in the "
            "router; verification: by majority; ledger: to be reconciled); moves when it does.",
            ("part",),
            registry=registry,
        )
        for part in FALLBACKS:
            self._fallbacks.labels(part)
        registry.register(self)

    def follow(self, pace: Pace) -> None:
        """Tell this pace whenever somebody looks: it fades with time."""
        self._pace = pace

    def running(self, model: str, samples: int) -> None:
        """So many more samples of a model run, or fewer."""
        self._running.labels(model).inc(samples)

    def pool(self, model: str) -> None:
        """There is a pool of this model."""
        self._running.labels(model)
        if f"model {model}" not in self._states:
            self._up.labels(model).set(1)

    def breaker(self, part: str, state: str, model: str = "") -> None:
        """The breaker of a part is in one of STATES; `model`: the part is this model's pool."""
        if state == "open" and self._states.get(part) != state:
            self._openings.labels(part).inc()
        self._states[part] = state
        self._breaker.labels(part).set(STATES[state])
        if model:
            self._up.labels(model).set(state == "closed")

    def fallback(self, part: str) -> None:
        """A query goes on without this part, one of FALLBACKS."""
        self._fallbacks.labels(part).inc()

    def collect(self) -> Iterator[Metric]:
        """How long samples take now."""
        family = GaugeMetricFamily(
            "isoflop_router_pool_pace",
            "How many times as long as measured a token of a model takes now; moves when a round ends, and "
            "back to 1 with time.",
            labels=("model",),
        )
        for model, pace in self._pace.at(time.monotonic()).items() if self._pace else ():
            family.add_metric((model,), pace)
        yield family
