"""What the router counts: cost by stage, model and strategy, how queries end, and its own overhead."""

from __future__ import annotations

from collections.abc import Iterable

from isoflop.v1.common_pb2 import Stage, Usage
from isoflop.v1.router_pb2 import SolveResponse, Status
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from router.purse import Purse

LABELS = ("stage", "model", "strategy")

OVERHEAD = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Seconds: from a tenth of a millisecond to a second."""


class Metrics:
    """The router's metrics in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

        def counter(name: str, help: str, labels: Iterable[str] = ()) -> Counter:
            return Counter(f"isoflop_router_{name}", help, labels, registry=registry)

        self._flops = counter(
            "flops_total", "Floating-point operations billed; moves when a query ends.", LABELS
        )
        self._tokens = counter(
            "tokens_total",
            "Tokens billed, by kind (prompt, cached, completion, aborted); moves when a query ends.",
            (*LABELS, "kind"),
        )
        self._money = counter(
            "money_total", "Money billed, in the catalogue's currency; moves when a query ends.", LABELS
        )
        self._samples = counter("samples_total", "Samples bought; moves when a query ends.", LABELS)
        self._queries = counter(
            "queries_total",
            "Queries by outcome (answered, abandoned, degraded, cancelled, or failed_ and a status code).",
            ("outcome",),
        )
        self._running = Gauge("isoflop_router_queries_running", "Queries being solved.", registry=registry)
        self._overhead = Histogram(
            "isoflop_router_overhead_seconds",
            "Seconds of a query that were not spent waiting for models and verifiers.",
            buckets=OVERHEAD,
            registry=registry,
        )
        self._spared = counter("samples_spared_total", "Samples that stopping early has aborted.")
        self._profile = Gauge(
            "isoflop_router_profile_info", "The profile in force.", ("version",), registry=registry
        )

    def began(self) -> None:
        """A query has been admitted."""
        self._running.inc()

    def ended(self, outcome: str, lines: Iterable[Usage], overhead: float, spared: int) -> None:
        """A query has ended, however; `overhead` in seconds, `spared` in samples."""
        self._running.dec()
        self._queries.labels(outcome).inc()
        self._overhead.observe(overhead)
        self._spared.inc(spared)
        for line in lines:
            labels = (Stage.Name(line.stage).removeprefix("STAGE_").lower(), line.model, line.strategy)
            self._flops.labels(*labels).inc(line.flops)
            self._money.labels(*labels).inc(line.money)
            self._samples.labels(*labels).inc(line.calls)
            for kind in ("prompt", "cached", "completion", "aborted"):
                count = getattr(line, f"{kind}_tokens")
                if count:
                    self._tokens.labels(*labels, kind).inc(count)

    def profile(self, version: str) -> None:
        """This profile is in force."""
        self._profile.clear()
        self._profile.labels(version).set(1)

    def budget(self, purse: Purse) -> None:
        """Queries are paid from this budget."""
        registry = self._registry
        Gauge(
            "isoflop_router_shadow_price",
            "Right answers that one more PFLOP would buy; moves when a query ends.",
            registry=registry,
        ).set_function(lambda: 1e15 * purse.price)
        Gauge(
            "isoflop_router_budget_left_flops",
            "FLOPs that the window's budget still has; moves when a query ends, and with the window.",
            registry=registry,
        ).set_function(lambda: purse.left)
        Gauge(
            "isoflop_router_budget_window_end_timestamp_seconds",
            "When the budget's window ends, in seconds since the epoch; moves with the window.",
            registry=registry,
        ).set_function(lambda: purse.end)


def outcome(response: SolveResponse) -> str:
    """How a query ended, as a label."""
    return Status.Name(response.status).removeprefix("STATUS_").lower()
