"""What the router counts: cost by stage, model and strategy, how queries end, and its own overhead."""

from __future__ import annotations

import math
from collections.abc import Iterable

from google.rpc.code_pb2 import Code
from isoflop.errors import IsoflopError
from isoflop.v1.common_pb2 import Stage, Usage
from isoflop.v1.router_pb2 import SolveResponse, Status
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from router.profiles import InForce

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
        self._feedback = counter(
            "feedback_total",
            "Queries that a caller has told the truth about, by what was said first: right is true or false.",
            ("right",),
        )
        self._predicted = counter(
            "feedback_predicted_total",
            "Sum of their confidences: so many right answers were predicted. Observed are those of "
            "isoflop_router_feedback_total with right=true; the difference for each of all is drift.",
        )
        self._drift = Gauge(
            "isoflop_router_feedback_drift",
            "Share of right answers less mean confidence, over the truths told last; NaN without any.",
            registry=registry,
        )
        self._drift.set(math.nan)
        self._unrecorded = counter(
            "feedback_unrecorded_total",
            "Queries whose record could not be kept: feedback to them is refused.",
        )
        for right in ("true", "false"):
            self._feedback.labels(right)

        def gauge(name: str, help: str, labels: Iterable[str] = ()) -> Gauge:
            return Gauge(f"isoflop_router_{name}", help, labels, registry=registry)

        in_force = ("role", "version")
        self._profile = gauge("profile_info", "The profiles in force: live, canary, shadow.", in_force)
        self._modified = gauge(
            "profile_modified_timestamp_seconds", "When the profile's file was written.", in_force
        )
        self._share = gauge("profile_canary_share", "Share of queries that are planned on the canary.")
        self._faults = gauge(
            "profile_faults",
            "What is wrong with the profiles' files now; what was good before stays in force.",
        )
        self._errors = counter("profile_errors_total", "Faults found in the profiles' files, once a change.")
        self._decided = counter(
            "profile_queries_total",
            "Queries by the profile that decided, and outcome.",
            ("version", "outcome"),
        )
        self._decided_flops = counter(
            "profile_flops_total", "FLOPs billed, by the profile that decided.", ("version",)
        )
        self._decided_confidence = counter(
            "profile_confidence_total", "Sum of the confidences of answers, by the profile.", ("version",)
        )
        self._shadowed = counter(
            "shadow_decisions_total",
            "First decisions by the shadow, against the live profile's (same, otherwise, refused, failed; "
            "skipped: too many waited).",
            ("version", "outcome"),
        )
        self._shadow_flops = counter(
            "shadow_expected_flops_total",
            "FLOPs that first decisions of the same queries expected, by the live profile and the shadow.",
            ("version", "role"),
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

    def told(self, right: bool, confidence: float) -> None:
        """A caller has told the truth about a query for the first time."""
        self._feedback.labels(str(right).lower()).inc()
        self._predicted.inc(confidence)

    def drift(self, value: float) -> None:
        """Observed less predicted accuracy, now."""
        self._drift.set(value)

    def unrecorded(self) -> None:
        """A query's record could not be kept."""
        self._unrecorded.inc()

    def decided(self, version: str, outcome: str, flops: float, confidence: float) -> None:
        """A query has ended that was planned on this profile; its bill, and the confidence in its answer."""
        self._decided.labels(version, outcome).inc()
        self._decided_flops.labels(version).inc(flops)
        self._decided_confidence.labels(version).inc(confidence)

    def shadowed(self, version: str, outcome: str, flops: float = 0.0, live_flops: float = 0.0) -> None:
        """A shadow has decided, expecting so many FLOPs, the live profile so many."""
        self._shadowed.labels(version, outcome).inc()
        self._shadow_flops.labels(version, "shadow").inc(flops)
        self._shadow_flops.labels(version, "live").inc(live_flops)

    def profiles(self, found: InForce, new_faults: int) -> None:
        """These profiles are in force; of their faults so many have not been counted yet."""
        self._profile.clear()
        self._modified.clear()
        for role, loaded in found.roles.items():
            self._profile.labels(role, loaded.version).set(1)
            self._modified.labels(role, loaded.version).set(loaded.modified)
        self._share.set(found.share if found.canary else 0.0)
        self._faults.set(len(found.faults))
        self._errors.inc(new_faults)


def outcome(response: SolveResponse) -> str:
    """How a query ended, as a label."""
    return Status.Name(response.status).removeprefix("STATUS_").lower()


def failure(error: Exception) -> str:
    """How a query failed, as a label; what is none of `isoflop.errors` is a bug."""
    return f"failed_{Code.Name(error.code).lower() if isinstance(error, IsoflopError) else 'internal'}"
