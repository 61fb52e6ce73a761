"""What the router counts of queries: what they cost, how they end, how long they take, and what the profile's
fixed plan would have cost.

Only what is configured or built in is a label: never a tenant, a query or a text.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from google.rpc.code_pb2 import Code
from isoflop.errors import IsoflopError
from isoflop.v1.common_pb2 import STAGE_GENERATION, Stage, Usage
from isoflop.v1.router_pb2 import SolveResponse, Status
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from router.admission import Shed
from router.baseline import Fixed
from router.decision import Action
from router.metrics_ledger import LedgerMetrics
from router.metrics_pools import PoolMetrics
from router.metrics_profiles import ProfileMetrics

TIER = ("tier",)
COST = ("stage", "model", "strategy", *TIER)

STAGES = {stage: name.removeprefix("STAGE_").lower() for name, stage in Stage.items()}
"""As labels."""

KINDS = {kind: f"{kind}_tokens" for kind in ("prompt", "cached", "completion", "rejected", "draft")}
"""Of tokens that are billed, with their fields; those of aborted samples are a stage of their own."""

OVERHEAD = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Seconds: from a tenth of a millisecond to a second."""

FIRST_SAMPLE = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Seconds."""

SIZES = (1, 2, 4, 8, 16, 64)
SIZE_NAMES = ("1", "2", "3-4", "5-8", "9-16", "17-64", "65+")
"""Of numbers of samples up to those, as labels, and of more."""


class Metrics:
    """The router's metrics in one registry."""

    def __init__(self, registry: CollectorRegistry, core_flops: float = 5e9) -> None:
        """`core_flops`: FLOPs that a second of the router's own work counts as."""
        self.ledger = LedgerMetrics(registry)
        self.pools = PoolMetrics(registry)
        self.profiles = ProfileMetrics(registry)
        self._core_flops = core_flops
        self._children: dict[Hashable, Any] = {}
        """By metric and labels: finding them anew for each line of each bill takes longer than counting."""

        def counter(name: str, help: str, labels: Iterable[str] = ()) -> Counter:
            return Counter(f"isoflop_router_{name}", help, labels, registry=registry)

        def gauge(name: str, help: str, labels: Iterable[str] = ()) -> Gauge:
            return Gauge(f"isoflop_router_{name}", help, labels, registry=registry)

        self._flops = counter(
            "flops_total",
            "Floating-point operations billed, by stage (generation, verification, difficulty; aborted: what "
            "aborted samples had generated); moves when a query ends.",
            COST,
        )
        self._tokens = counter(
            "tokens_total",
            "Tokens billed, by stage as FLOPs are, and kind (prompt, cached, completion, aborted; rejected "
            "and draft: of drafts, and no text); moves when a query ends.",
            (*COST, "kind"),
        )
        self._money = counter(
            "money_total",
            "Money billed, in the catalogue's currency, by stage as FLOPs are; moves when a query ends.",
            COST,
        )
        self._samples = counter(
            "samples_total",
            "Samples bought, chains scored, queries estimated, by stage; moves when a query ends.",
            COST,
        )
        self._queries = counter(
            "queries_total",
            "Queries by outcome (answered, abandoned, degraded, shed, cancelled, or failed_ and a status "
            "code) and tier; moves when a query ends or is turned away.",
            ("outcome", *TIER),
        )
        self._running = gauge(
            "queries_running", "Queries being solved, by tier; moves when one begins or ends.", TIER
        )
        self._waiting = gauge(
            "queries_waiting", "Queries that wait for their turn, by tier; moves as they come and go.", TIER
        )
        self._overhead = Histogram(
            "isoflop_router_overhead_seconds",
            "Seconds of a query that were not spent waiting for models and verifiers; moves when it ends.",
            buckets=OVERHEAD,
            registry=registry,
        )
        self._first_sample = Histogram(
            "isoflop_router_first_sample_seconds",
            "Seconds from a query's beginning to its first sample; moves when that has come.",
            buckets=FIRST_SAMPLE,
            registry=registry,
        )
        self._plans = counter(
            "plans_total",
            "Rounds bought, by model, strategy and the samples that they are the beginning of (1, 2, 3-4, "
            "5-8, 9-16, 17-64, 65+); moves when a round begins.",
            ("model", "strategy", "samples"),
        )
        self._spared = counter(
            "samples_spared_total", "Samples that stopping early has aborted; moves when a query ends."
        )
        compared = (
            "of queries that are compared with a fixed plan: those that the planner decided for itself, at "
            "an effort for which the profile has such a plan, and that neither failed nor were cancelled; "
            "moves when one ends."
        )
        self._compared = counter("compared_queries_total", f"Number {compared}", TIER)
        self._own = [
            counter(
                "compared_flops_total",
                "FLOPs (estimates, scores, aborted work and the router's overhead, at setting core_flops a "
                f"second, with them) {compared}",
                TIER,
            ),
            counter("compared_money_total", f"Money, in the catalogue's currency, {compared}", TIER),
            counter("compared_samples_total", f"Samples bought {compared}", TIER),
        ]
        fixed = (
            "that the same queries would have taken by the profile's fixed plan for their effort: the "
            "cheapest that is calibrated to be right as often as the planner. Expected by what a query had "
            "shown of its difficulty at its end, its prompt counted once. What is spared is the difference; "
            "moves with isoflop_router_compared_queries_total."
        )
        self._fixed = [
            counter("baseline_flops_total", f"FLOPs {fixed}", TIER),
            counter("baseline_money_total", f"Money, in the catalogue's currency, {fixed}", TIER),
            counter("baseline_samples_total", f"Samples {fixed}", TIER),
        ]

    def waiting(self, tier: str, queries: Callable[[], float]) -> None:
        """So many queries of a tier wait for their turn, whenever somebody looks."""
        self._waiting.labels(tier).set_function(queries)

    def refused(self, outcome: str, tier: str) -> None:
        """A query was turned away before it began: `shed`, or as `failure` names its error."""
        self._queries.labels(outcome, tier).inc()

    def began(self, tier: str) -> None:
        """A query has been admitted."""
        self._running.labels(tier).inc()

    def planned(self, action: Action) -> None:
        """A round begins."""
        name = action.model.name
        self._add(self._plans, 1, name, action.strategy, SIZE_NAMES[bisect_left(SIZES, action.horizon)])
        self.pools.running(name, action.lanes)

    def played(self, action: Action) -> None:
        """A round that began has ended."""
        self.pools.running(action.model.name, -action.lanes)

    def first_sample(self, seconds: float) -> None:
        """A query's first sample has come, so long after its beginning."""
        self._first_sample.observe(seconds)

    def ended(
        self,
        outcome: str,
        tier: str,
        lines: Iterable[Usage],
        overhead: float,
        spared: int,
        fixed: Fixed | None = None,
    ) -> None:
        """A query has ended, however.

        `overhead` in seconds, `spared` in samples; `fixed`: what the profile's fixed plan would have taken,
        where the two are to be compared.
        """
        self._running.labels(tier).dec()
        self._add(self._queries, 1, outcome, tier)
        self._overhead.observe(overhead)
        self._spared.inc(spared)
        flops = money = samples = 0.0
        for line in lines:
            self._line(line, tier)
            flops, money = flops + line.flops, money + line.money
            samples += line.calls if line.stage == STAGE_GENERATION else 0
        if fixed:
            flops += max(0.0, overhead) * self._core_flops
            self._compared.labels(tier).inc()
            for counter, own in zip(self._own, (flops, money, samples), strict=True):
                self._add(counter, own, tier)
            cost = fixed.cost
            for counter, other in zip(self._fixed, (cost.flops, cost.money, fixed.samples), strict=True):
                self._add(counter, other, tier)

    def late(self, lines: Iterable[Usage], tier: str) -> None:
        """Queries that have ended had cost this, too."""
        for line in lines:
            self._line(line, tier)

    def _line(self, line: Usage, tier: str) -> None:
        """Count a line of a bill."""
        labels = STAGES[line.stage], line.model, line.strategy, tier
        # Rounding must not make a difference negative.
        self._add(self._flops, max(0.0, line.flops - line.aborted_flops), *labels)
        self._add(self._money, max(0.0, line.money - line.aborted_money), *labels)
        self._add(self._samples, line.calls, *labels)
        for kind, field in KINDS.items():
            self._add(self._tokens, getattr(line, field), *labels, kind)
        if line.aborted_tokens:
            labels = "aborted", line.model, line.strategy, tier
            self._add(self._flops, line.aborted_flops, *labels)
            self._add(self._money, line.aborted_money, *labels)
            self._add(self._tokens, line.aborted_tokens, *labels, "aborted")

    def _add(self, counter: Counter, value: float, *labels: str) -> None:
        """Add to the counter with these labels; of nothing there is no series."""
        if value:
            key = counter, labels
            if key not in self._children:
                self._children[key] = counter.labels(*labels)
            self._children[key].inc(value)


def outcome(response: SolveResponse) -> str:
    """How a query ended, as a label."""
    return Status.Name(response.status).removeprefix("STATUS_").lower()


def failure(error: BaseException) -> str:
    """How a query failed, as a label; what is none of `isoflop.errors` is a bug."""
    if isinstance(error, Shed):
        return "shed"
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "cancelled"
    return f"failed_{Code.Name(error.code).lower() if isinstance(error, IsoflopError) else 'internal'}"
