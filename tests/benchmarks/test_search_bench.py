"""The figures of `make bench-search`, from outcomes that are known."""

from __future__ import annotations

import pytest

from benchmarks.embedded import Outcome
from benchmarks.search import PLANS, gains, page

RIGHT = {"majority": 0.5, "best_of_n": 0.5, "weighted": 0.75, "beam": 1.0, "dvts": 0.25}


def outcomes() -> list[Outcome]:
    """Forty problems; a search costs twice as much."""
    return [
        Outcome(
            f"m {plan}",
            0,
            f"q{number:02}",
            number < 40 * RIGHT[plan],
            2.0 if plan == "beam" else 1.0,
            16,
            0.5,
        )
        for plan in PLANS
        for number in range(40)
    ]


def test_a_search_is_compared_with_samples_problem_by_problem() -> None:
    told = {(one["search"], one["rival"]): one for one in gains(outcomes(), ["m"])}
    assert told["beam", "best_of_n"]["points"] == pytest.approx(50.0)
    assert told["dvts", "weighted"]["points"] == pytest.approx(-50.0)
    low, high = told["beam", "best_of_n"]["interval"]
    assert 30 < low < 50 < high < 70
    assert (told["beam", "weighted"]["flops_ratio"], told["dvts", "weighted"]["flops_ratio"]) == (2.0, 1.0)


def test_the_page_has_each_plan_and_each_difference() -> None:
    made = outcomes()
    plans = [
        {"policy": f"m {plan}", "accuracy": share, "interval": (0.1, 0.9), "flops": 2e9, "samples": 16.0}
        for plan, share in RIGHT.items()
    ]
    text = page({"problems": 40, "plans": plans, "gains": gains(made, ["m"])})
    assert all(f"| m {plan} |" in text for plan in PLANS)
    assert "| m | beam | best_of_n | +50.0 |" in text
