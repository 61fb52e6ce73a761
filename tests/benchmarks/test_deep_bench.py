"""The figures of `make bench-deep`, from outcomes that are known."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.deep_claims import AT, SOURCES, Measured, claims, page, picture, plans

PLANS = {
    **{f"beam {size}": 0.5 for size in ("2 × 2", "4 × 4", "8 × 8")},
    **{f"dvts {size}": 0.5 for size in ("2 × 2", "4 × 4")},
    **{f"tree of {nodes}": 1.0 for nodes in (32, 96, 256)},
    **{f"sequential {effort}": 0.5 for effort in ("low", "medium")},
    "sequential high": 0.75,
    **{f"broad_and_deep {name}": 0.5 for name in ("4 low", "16 low", "4 high")},
    **{f"refine {width}": 0.0 for width in (1, 4)},
}
"""Share of the problems that each has right; all cost what four samples with scores cost."""


def measured() -> Measured:
    """Sixty problems. Of each 32 of 64 samples are right, and scored best; wrong ones all differ."""
    answers = [[*["7"] * 32, *(f"wrong {n}" for n in range(31)), None] for _ in range(60)]
    played = {
        plan: ([number < 60 * share for number in range(60)], [40.0] * 60, [8.0] * 60)
        for plan, share in PLANS.items()
    }
    return Measured.of(
        "m",
        [1 + number % 9 for number in range(60)],
        played,
        ["7"] * 60,
        answers,
        [[0.9] * 32 + [0.1] * 31 + [0.95]] * 60,
        [10.0] * 60,
        [6.0] * 60,
    )


def test_a_rival_has_as_many_samples_as_the_flops_buy() -> None:
    one = measured()
    assert one.sample == {"majority": 4.0, "weighted": 10.0, "best_of_n": 10.0}
    right, samples = one.rival("best_of_n", 40.0)
    assert samples == 4
    # Any of four right: the best scored of them that has an answer.
    assert right.mean() == pytest.approx(1 - math.comb(32, 4) / math.comb(64, 4), abs=0.01)
    assert one.rival("majority", 4.0)[0].mean() == pytest.approx(0.5)
    between, samples = one.rival("best_of_n", 10 * math.sqrt(AT[3] * AT[4]))
    curve = one.rivals["best_of_n"].mean(0)
    assert samples == pytest.approx(math.sqrt(24))
    assert curve[3] < between.mean() < curve[4]
    assert one.rival("majority", 1e9)[1] == 64
    assert one.rival("majority", 0.1)[1] == 1


def test_each_claim_is_told_with_its_interval_and_thirds_and_stays_where_it_fails() -> None:
    told = claims(measured())
    by_name = {(one["claim"], one["how"].split(" against")[0]): one for one in told}
    beam = by_name["beam_over_best_of_n", "beam 4 × 4"]
    assert beam["measured"] == pytest.approx(50 - 100 * (1 - math.comb(32, 4) / math.comb(64, 4)), abs=1)
    assert not beam["holds"]
    assert "20 % of its FLOPs are the verifier's" in beam["reason"]
    assert set(beam["figures"]["thirds"]) == {"1 to 3 operations", "4 to 6", "7 and more"}
    assert [one["claim"] for one in told if one["headline"]] == list(SOURCES)
    tree = by_name["tree", "tree of 96"]
    assert tree["holds"]
    assert tree["interval"][0] > 0
    assert not tree["reason"]
    assert by_name["sequential", "one long chain, effort high"]["measured"] == 25.0
    assert not by_name["refine", "refine 4"]["holds"]
    assert all(one["interval"][0] <= one["measured"] <= one["interval"][1] for one in told)


def test_plans_are_told_by_rising_flops() -> None:
    rows = plans(measured())
    assert {row["plan"] for row in rows} == {
        *PLANS,
        *(f"{r} of {n}" for r in measured().rivals for n in (1, 4, 16, 64)),
    }
    assert [row["mflop"] for row in rows] == sorted(row["mflop"] for row in rows)
    (tree,) = [row for row in rows if row["plan"] == "tree of 32"]
    assert (tree["accuracy"], tree["verifier"]) == (1.0, 0.2)


def test_page_and_picture_have_it_all(tmp_path: Path) -> None:
    one = measured()
    text = page({"problems": 60, "plans": plans(one), "claims": claims(one)}, "deep.png")
    assert all(f"| {plan} |" in text for plan in PLANS)
    assert "![accuracy against FLOPs](deep.png)" in text
    picture([one], tmp_path / "deep.png")
    assert (tmp_path / "deep.png").read_bytes().startswith(b"\x89PNG")
