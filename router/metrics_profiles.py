"""What the router tells of profiles: which are in force, what comes of their decisions, how right it is."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge

from router.profiles import InForce

IN_FORCE = ("role", "version")


class ProfileMetrics:
    """Profiles, and the truth that callers tell about answers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, help: str, labels: Iterable[str] = ()) -> Counter:
            return Counter(f"isoflop_router_{name}", help, labels, registry=registry)

        def gauge(name: str, help: str, labels: Iterable[str] = ()) -> Gauge:
            return Gauge(f"isoflop_router_{name}", help, labels, registry=registry)

        self._profile = gauge(
            "profile_info",
            "1 for each profile in force (live, canary, shadow); moves when profiles change.",
            IN_FORCE,
        )
        self._modified = gauge(
            "profile_modified_timestamp_seconds",
            "When the profile's file was written, in seconds since the epoch; moves when profiles change.",
            IN_FORCE,
        )
        self._age = gauge(
            "profile_age_seconds", "Seconds since the profile's file was written; moves with time.", IN_FORCE
        )
        self._baselines = gauge(
            "profile_baselines",
            "Efforts at which the profile knows the fixed plan that queries are compared with; 0: none is "
            "compared. Moves when profiles change.",
            IN_FORCE,
        )
        self._share = gauge(
            "profile_canary_share",
            "Share of queries that are planned on the canary; moves when it is changed.",
        )
        self._faults = gauge(
            "profile_faults",
            "What is wrong with the profiles' files now; what was good before stays in force. Moves when "
            "files change.",
        )
        self._errors = counter(
            "profile_errors_total",
            "Faults found in the profiles' files; moves once for each when files change.",
        )
        self._decided = counter(
            "profile_queries_total",
            "Queries by the profile that decided, and outcome; moves when a query ends.",
            ("version", "outcome"),
        )
        self._decided_flops = counter(
            "profile_flops_total",
            "FLOPs billed, by the profile that decided; moves when a query ends.",
            ("version",),
        )
        self._decided_confidence = counter(
            "profile_confidence_total",
            "Sum of the confidences of answers, by the profile; moves when a query ends.",
            ("version",),
        )
        self._shadowed = counter(
            "shadow_decisions_total",
            "First decisions by the shadow, against the live profile's (same, otherwise, refused, failed; "
            "skipped: too many waited); moves after a query's end.",
            ("version", "outcome"),
        )
        self._shadow_flops = counter(
            "shadow_expected_flops_total",
            "FLOPs that first decisions of the same queries expected, by the live profile and the shadow; "
            "moves after a query's end.",
            ("version", "role"),
        )
        self._feedback = counter(
            "feedback_total",
            "Queries that a caller has told the truth about, by what was said first: right is true or false; "
            "moves when it is told.",
            ("right",),
        )
        self._predicted = counter(
            "feedback_predicted_total",
            "Sum of their confidences: so many right answers were predicted. Observed are those of "
            "isoflop_router_feedback_total with right=true; the difference for each of all is drift. "
            "Moves with it.",
        )
        self._drift = gauge(
            "feedback_drift",
            "Share of right answers less mean confidence, over the truths told last; NaN without any. Moves "
            "when a truth is told.",
        )
        self._drift.set(math.nan)
        self._unrecorded = counter(
            "feedback_unrecorded_total",
            "Queries whose record could not be kept: feedback to them is refused. Moves when a query ends.",
        )
        for right in ("true", "false"):
            self._feedback.labels(right)

    def in_force(self, found: InForce, new_faults: int) -> None:
        """These profiles are in force; of their faults so many have not been counted yet."""
        for each in (self._profile, self._modified, self._age, self._baselines):
            each.clear()
        for role, loaded in found.roles.items():
            labels = role, loaded.version
            self._profile.labels(*labels).set(1)
            self._modified.labels(*labels).set(loaded.modified)
            self._age.labels(*labels).set_function(partial(_since, loaded.modified))
            self._baselines.labels(*labels).set(len(loaded.profile.baselines))
        self._share.set(found.share if found.canary else 0.0)
        self._faults.set(len(found.faults))
        self._errors.inc(new_faults)

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


def _since(then: float) -> float:
    return time.time() - then
