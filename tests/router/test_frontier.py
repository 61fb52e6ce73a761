"""The measured frontier: what no other plan beats at its price."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest
from isoflop.v1.router_pb2 import FrontierPoint, GetFrontierResponse
from synthetic import GRID, arm_record, make_catalog, make_model, make_profile, p_right

from router import frontier
from router.frontier import BINS


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


def test_a_model_that_another_beats_at_its_price_vanishes() -> None:
    """`m` costs 7 times as much as `s`, and can do as much."""
    arms = [arm_record("s"), arm_record("m", p_right=p_right("s").tolist(), votes=arm_record("s")["votes"])]
    response = frontier.measure(make_profile(arms=arms), make_catalog())
    assert {point.action.model for point in response.points} == {"s"}
