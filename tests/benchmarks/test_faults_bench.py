"""What the pages of faults and of the soak say of figures that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.faults_claims import Claim, claims
from benchmarks.faults_report import page
from benchmarks.soak_report import slope, verdicts

PARTS = ("generation", "triton", "verification", "difficulty", "aggregation", "router", "postgresql")


def row(part: str, fault: str = "kill -9", **other: Any) -> dict[str, Any]:
    """A fault that nobody noticed."""
    return {
        "parts": [part],
        "fault": fault,
        "deadline": 20.0,
        "away": 5.0,
        "queries": 100,
        "outcomes": {"answered": 100},
        "silent": 0,
        "longest": 1.0,
        "silence": 0.5,
        "recovered": 0.1,
        "used": 1.0,
        "billed_off_counted": {},
        "charged_off_billed": {},
        "told_flops": 1e9,
        "charged_flops": 1e9,
        "unreconciled_flops": 0.0,
        "misbilled": 0,
        "ill": [],
        **other,
    }


def block(multiple: int, answered: int, p99: float = 2.0) -> dict[str, Any]:
    refused = 100 * (multiple - 1)
    return {
        "multiple": multiple,
        "seconds": 10.0,
        "offered": 100 * multiple,
        "answered": answered,
        "outcomes": {"urgent": {"answered": 20}, "nightly": {"answered": 80, "UNAVAILABLE": refused}},
        "p50": 1.0,
        "p99": p99,
        "told": refused,
    }


def figures(**other: Any) -> dict[str, Any]:
    """Of a suite that keeps all that is promised."""
    hangup = {"way": "wires", "each": [{"steps": 2, "milliseconds": 5.0}]}
    return {
        "machine": {"cpu": "c", "cores": 2, "system": "s", "python": "p", "grpc": "g", "load": 0.0},
        "clients": 32,
        "faults": [row(part, fault) for part in PARTS for fault in ("kill -9", "SIGSTOP")],
        "rolling": row("router", "SIGTERM", billed_off_counted=None, charged_off_billed=None),
        "go_on": [row("postgresql")],
        "budgets": {
            "each": 10.0,
            "limit": 500.0,
            "asked": 200,
            "outcomes": {"answered": 45, "RESOURCE_EXHAUSTED": 155},
            "spent": 450.0,
            "reserved": 0.0,
            "told": 450.0,
            "twice": 100,
            "alike": 100,
            "charged_off": {},
        },
        "overload": {
            "capacity": 10.0,
            "full_p99": 3.0,
            "wait": 2.0,
            "blocks": [block(1, 100), block(4, 95)],
        },
        "hangups": [
            {"backend": "llama.cpp", "unseen": None, **hangup},
            {"backend": "Triton", "unseen": 12.0, **hangup},
        ],
        **other,
    }


def broken(told: dict[str, Any]) -> list[Claim]:
    return [claim for claim in claims(told) if not claim.holds]


def test_a_suite_that_keeps_all_promises_breaks_none() -> None:
    assert broken(figures()) == []
    assert "**no**" not in page(figures())


def ill(kind: str, outcome: str, reason: str = "") -> dict[str, Any]:
    one = {"kind": kind, "outcome": outcome, "reason": reason, "queries": 3}
    return {"outcomes": {"answered": 97, outcome: 3}, "ill": [one]}


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (row("difficulty", **ill("easy", "lost")), "No query is lost"),
        (row("router", **ill("easy", "INTERNAL")), "INTERNAL"),
        (row("triton", recovered=5.1), "within 5 s"),
        (row("triton", used=None), "within 5 s"),
        (row("triton", silent=1), "hears nothing"),
        (row("verification", billed_off_counted={"generation aborted": 1.0}), "to the token"),
        (row("generation", billed_off_counted=None, charged_off_billed={"flops": 1.0}), "to the token"),
        (row("aggregation", misbilled=1), "what its bill says"),
        (row("generation", **ill("easy", "UNAVAILABLE")), "missed by nobody"),
        (row("triton", **ill("easy", "UNAVAILABLE")), "leaves the frontier"),
        (row("verification", **ill("scored", "UNAVAILABLE")), "majority"),
        (row("verification", **ill("scored", "degraded", "why not")), "majority"),
        (row("difficulty", **ill("easy", "UNAVAILABLE")), "prior"),
        (row("aggregation", **ill("easy", "UNAVAILABLE")), "its work"),
        (row("router", **ill("easy", "DEADLINE_EXCEEDED")), "routers"),
        (row("postgresql", **ill("easy", "DEADLINE_EXCEEDED")), "refuses"),
    ],
)
def test_each_promise_can_be_broken(bad: dict[str, Any], says: str) -> None:
    told = figures()
    told["faults"].append(bad)
    assert says in " ".join(claim.text for claim in broken(told))
    assert "**no**" in page(told)


def test_what_a_fault_excuses_breaks_nothing() -> None:
    told = figures()
    told["faults"] += [
        row("triton", **ill("large", "UNAVAILABLE", "Triton")),
        row("verification", **ill("scored", "degraded", "the verification service")),
        row("difficulty", **ill("easy", "degraded", "difficulty")),
        row("router", "SIGSTOP", silent=3, **ill("easy", "DEADLINE_EXCEEDED")),
        row("postgresql", **ill("easy", "UNAVAILABLE", "ledger")),
    ]
    assert broken(told) == []


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"spent": 501.0, "told": 501.0}, "overspend"),
        ({"told": 449.0}, "overspend"),
        ({"reserved": 1.0}, "overspend"),
        ({"alike": 99}, "two routers at once"),
        ({"charged_off": {"generation prompt": 1.0}}, "two routers at once"),
    ],
)
def test_budgets_are_judged(bad: dict[str, Any], says: str) -> None:
    told = figures()
    told["budgets"].update(bad)
    assert says in " ".join(claim.text for claim in broken(told))


@pytest.mark.parametrize(
    ("blocks", "says"),
    [
        ([block(1, 100), block(4, 89)], "goodput"),
        ([block(1, 100), block(4, 100, p99=5.1)], "percentile"),
        ([block(1, 100), {**block(4, 100), "told": 0}], "come again"),
        ([block(1, 100), {**block(4, 100), "outcomes": {"urgent": {"UNAVAILABLE": 1}}}], "urgent"),
    ],
)
def test_overload_is_judged(blocks: list[dict[str, Any]], says: str) -> None:
    told = figures()
    told["overload"]["blocks"] = blocks
    assert says in " ".join(claim.text for claim in broken(told))


@given(st.floats(-100, 100), st.floats(10, 1000), st.integers(0, 1000))
def test_the_slope_of_noise_around_a_line_is_the_lines(rise: float, level: float, seed: int) -> None:
    seconds = np.arange(0.0, 3600.0, 10.0)
    noise = np.random.default_rng(seed).normal(size=len(seconds))
    found, half = slope(list(seconds), list(level + rise * seconds / 3600 + noise))
    assert abs(found - rise) <= 3 * half
    assert 0 < half < 2


def test_neighbours_that_are_alike_are_worth_less() -> None:
    seconds = np.arange(0.0, 3600.0, 10.0)
    wander = np.cumsum(np.random.default_rng(1).normal(size=len(seconds)))
    _, half = slope(list(seconds), list(wander))
    _, alone = slope(list(seconds), list(np.random.default_rng(2).permutation(wander)))
    assert half > 3 * alone


def test_a_process_that_grows_and_one_that_leaks_are_told() -> None:
    def looks(process: str, rise: float) -> list[dict[str, Any]]:
        return [
            {
                "process": process,
                "seconds": at,
                "megabytes": 100 + rise * at / 3600,
                "files": 9,
                "tasks": 9,
                "series": 9,
            }
            for at in np.arange(0.0, 600.0, 10.0)
        ]

    def idle(files: int) -> list[dict[str, Any]]:
        one = {"seconds": 0.0, "megabytes": 1.0, "tasks": 5, "series": 9}
        return [{"process": "flat", "files": 9, **one}, {"process": "grows", "files": files, **one}]

    told = verdicts(
        {
            "minutes": 10.0,
            "looks": [*looks("flat", 1.0), *looks("grows", 60.0)],
            "idle_before": idle(9),
            "idle_after": idle(20),
        }
    )
    assert [(one["process"], one["flat"], one["leaks"]) for one in told] == [
        ("flat", True, []),
        ("grows", False, ["files"]),
    ]
