"""The measured frontier: what no other plan beats at its price."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from isoflop.v1.router_pb2 import FrontierPoint, GetFrontierResponse
from synthetic import GRID, arm_record, make_catalog, make_model, make_profile, p_right

from router import frontier
from router.frontier import BINS
from router.scaling import ScalingRecord


def by_difficulty(response: GetFrontierResponse) -> dict[float, list[FrontierPoint]]:
    found: dict[float, list[FrontierPoint]] = defaultdict(list)
    for point in response.points:
        found[point.difficulty].append(point)
    return found


FRONTIER = frontier.measure(make_profile(), make_catalog())


def test_difficulties_rise_and_are_the_means_of_bins_with_as_many_queries_each() -> None:
    profile = make_profile()
    share = profile.bins(BINS)
    assert share.shape == (BINS, len(GRID))
    assert share.sum(axis=1) == pytest.approx(np.ones(BINS))
    assert share.mean(axis=0) == pytest.approx(profile.prior)
    assert list(by_difficulty(FRONTIER)) == pytest.approx(list(share @ GRID))
    assert [point.difficulty for point in FRONTIER.points] == sorted(p.difficulty for p in FRONTIER.points)
    assert FRONTIER.profile == "synthetic-1"


def test_at_each_difficulty_more_flops_are_more_accuracy() -> None:
    for points in by_difficulty(FRONTIER).values():
        for cheaper, dearer in pairwise(points):
            assert cheaper.action.expected_flops < dearer.action.expected_flops
            assert cheaper.action.expected_accuracy < dearer.action.expected_accuracy
        gains = [
            (b.action.expected_accuracy - a.action.expected_accuracy)
            / (b.action.expected_flops - a.action.expected_flops)
            for a, b in pairwise(points)
        ]
        assert gains == sorted(gains, reverse=True)  # Nor does a mixture of two others beat it.


def test_what_is_easy_takes_small_models_and_what_is_hard_large_ones() -> None:
    points = list(by_difficulty(FRONTIER).values())
    assert points[0][0].action.model == "s"
    assert points[0][0].action.samples == 1
    assert points[-2][-1].action.model == "l"
    assert points[-2][-1].action.samples > 1


def test_each_point_is_a_plan_with_its_price() -> None:
    for point in FRONTIER.points:
        action = point.action
        assert action.strategy == ("single" if action.temperature == 0 else "majority")
        assert 0 <= action.expected_accuracy <= 1
        assert action.expected_flops > 0
        assert action.expected_money > 0


def test_models_that_are_not_in_the_catalogue_are_left_out() -> None:
    response = frontier.measure(make_profile(), make_catalog(make_model("s"), make_model("unmeasured")))
    assert {point.action.model for point in response.points} == {"s"}


def test_where_no_model_was_measured_there_is_no_frontier() -> None:
    response = frontier.measure(make_profile(), make_catalog(make_model("unmeasured")))
    assert not response.points


LAW: dict[str, Any] = {
    "model": "s",
    "temperature": 0.7,
    "strategy": "majority",
    "difficulty": [-2.0, -0.5],
    "queries": 100,
    "samples": [1, 24],
    "form": "saturating",
    "parameters": {"ceiling": 0.7, "b": 0.4, "n0": 8.0},
    "interval": [0.6, 0.72],
    "ceiling": 0.7,
    "ceiling_interval": [0.65, 0.75],
    "errors": {"saturating": 0.01},
    "held_out": "more samples",
    "best_n": 16,
    "falls": False,
}


def test_laws_of_what_is_in_the_catalogue_are_told() -> None:
    weighted = LAW | {"strategy": "weighted", "verifier": "logprob"}
    bare = {key: value for key, value in LAW.items() if key not in ("temperature", "difficulty", "interval")}
    bare |= {"ceiling": None, "ceiling_interval": None, "falls": True}
    elsewhere = [LAW | {"model": "gone"}, weighted | {"verifier": "gone"}]
    profile = make_profile(scaling=[bare, LAW, weighted, *elsewhere])
    first, told, scored = frontier.measure(profile, make_catalog()).laws
    assert (told.model, told.strategy, told.form, told.queries) == ("s", "majority", "saturating", 100)
    assert (told.temperature, told.easiest, told.hardest) == (0.7, -2.0, -0.5)
    assert [point.samples for point in told.points] == [1, 2, 3, 4, 6, 8, 12, 16, 24]
    record = ScalingRecord.model_validate(LAW)
    assert [point.accuracy for point in told.points] == [record.at(n.samples) for n in told.points]
    assert dict(told.parameters) == LAW["parameters"]
    assert (told.ceiling, told.ceiling_interval.low, told.ceiling_interval.high) == (0.7, 0.65, 0.75)
    assert (told.interval.low, told.interval.high) == (0.6, 0.72)
    assert (told.best_samples, told.falls) == (16, False)
    for field in ("temperature", "easiest", "hardest", "ceiling", "ceiling_interval", "interval"):
        assert not first.HasField(field)
    assert first.falls
    assert (scored.strategy, scored.verifier) == ("weighted", "logprob")


def test_a_profile_without_laws_tells_none() -> None:
    assert not FRONTIER.laws


def test_a_model_that_another_beats_at_its_price_vanishes() -> None:
    """`m` costs 7 times as much as `s`, and can do as much."""
    arms = [arm_record("s"), arm_record("m", p_right=p_right("s").tolist(), votes=arm_record("s")["votes"])]
    response = frontier.measure(make_profile(arms=arms), make_catalog())
    assert {point.action.model for point in response.points} == {"s"}
