"""The benchmark of answers: its own reader, its intervals, and what it counts as a miss."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.answers import ROOT, Compared, half, last_box, reason, report, scored, wilson


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"\boxed{1} or \boxed {2}", "2"),
        (r"\boxed{1} or \boxed{2", "1"),
        (r"\boxed{1} or \boxed{ }", "1"),
        ("none", None),
    ],
)
def test_the_second_reader(text: str, box: str | None) -> None:
    assert last_box(text) == box


@given(st.integers(1, 1000), st.data())
def test_an_interval_holds_its_share(total: int, data: st.DataObject) -> None:
    faults = data.draw(st.integers(0, total))
    low, high = wilson(faults, total)
    assert 0 <= low <= faults / total + 1e-12
    assert faults / total - 1e-12 <= high <= 1


def test_known_interval() -> None:
    assert wilson(0, 100) == pytest.approx((0.0, 0.0370), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_faults_are_counted_as_often_as_they_occur() -> None:
    compared = [
        Compared("q", 1, "1", "1", "equal", True, 5),
        Compared("q", 1, "1", "2", "equal", False, 3),
        Compared("q", 1, "1", "one", "none", True, 2),
        Compared("r", 2, "1", "2", "different", False, 4),
    ]
    found = scored(compared)
    first, second = found["halves"][1], found["halves"][2]
    assert (first["false_equal"], first["false_different"]) == (3, 2)
    assert (first["samples"]["faults"], first["samples"]["of"]) == (5, 10)
    assert (first["pairs"]["faults"], first["pairs"]["of"]) == (2, 3)
    assert second["samples"]["faults"] == 0
    assert [miss["answer"] for miss in found["misses"]] == ["2", "one"]


def test_halves_and_kinds() -> None:
    halves = [half(f"q/{i}") for i in range(1000)]
    assert 400 < halves.count(1) < 600
    assert set(halves) == {1, 2}
    assert reason("52_8", "52_9") == "base"
    assert reason("x=2", "3") == "equation or inequality"
    assert reason("1,2", "3") == "several values"
    assert reason(r"\text{east}", "west") == "words"
    assert reason("1", "2") == "value"


def test_the_checked_in_page_is_that_of_the_checked_in_figures() -> None:
    figures = json.loads((ROOT / "benchmarks" / "results" / "answers.json").read_text())
    page = (ROOT / "docs" / "results" / "answers.md").read_text()
    assert report(figures) == page
    for recording in ("math500", "math500_steps"):
        assert f"- `{recording}`: " in page
