"""The fixed plan that the planner is compared with: the cheapest as often right, on the same queries."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isoflop.v1.verification_pb2 import Verifier
from planted import MODELS, planted, single_scores

from router.catalog import Catalog
from router.cost import sample
from router.profile import Profile, parse
from training import baselines as module
from training.baselines import LEAST_QUERIES, Plan, baselines, cheapest
from training.measured import Measured
from training.policy import EFFORTS
from training.profiles import fit

JUDGE = Verifier(name="judge")
FIT = partial(fit, models=MODELS, version="v", likeness=0.5)
QUERIES, _ = planted(90, scores=single_scores(2.0), seed=4)
FOLD = np.arange(len(QUERIES)) % 3
PRIOR = [(0.0, 1.0)] * len(QUERIES)


def plan(accuracy: float, flops: float) -> Plan:
    return Plan("a", 0.7, "majority", 4, "", accuracy, flops, 0.0)


@given(
    st.lists(st.builds(plan, st.floats(0, 1), st.floats(1, 1e9)), min_size=1),
    st.floats(0, 1),
)
def test_no_plan_that_is_as_often_right_is_cheaper(plans: list[Plan], accuracy: float) -> None:
    found = cheapest(plans, accuracy)
    if found.accuracy >= accuracy:
        assert all(one.flops >= found.flops for one in plans if one.accuracy >= accuracy)
    else:
        assert max(one.accuracy for one in plans) == found.accuracy


@pytest.fixture(scope="module")
def profile() -> Profile:
    return parse(FIT(QUERIES))


@pytest.fixture(scope="module")
def found(profile: Profile) -> dict[str, dict[str, Any]]:
    return baselines(QUERIES, Catalog.of(MODELS, [JUDGE]), profile, FOLD, FIT, PRIOR)


def test_each_effort_has_a_plan_that_the_profile_can_keep(
    profile: Profile, found: dict[str, dict[str, Any]]
) -> None:
    assert list(found) == list(EFFORTS)
    kept = parse(FIT(QUERIES) | {"baselines": found}).baselines
    assert {effort: one.model_dump(exclude_defaults=True) for effort, one in kept.items()} == found
    for one in kept.values():
        assert one.queries == len(QUERIES)
        assert one.reaches
        assert one.policy_flops > 0
        # What the planner reckons of it is near what it was.
        assert one.expected_flops == pytest.approx(one.flops, rel=0.1)
    assert found["low"]["policy_accuracy"] <= found["high"]["policy_accuracy"]


def test_a_plans_figures_are_those_of_the_recorded_samples(profile: Profile) -> None:
    plans = list(module._plans(QUERIES, Catalog.of(MODELS, [JUDGE]), profile))
    by_name = {(one.model, one.temperature, one.strategy, one.samples): one for one in plans}
    # A greedy sample; 1 to 16, voted on; 2 to 16, weighed.
    assert len(plans) == len(by_name) == 2 * (1 + 16 + 15)
    greedy = by_name["b", 0.0, "single", 1]
    assert greedy.accuracy == pytest.approx(np.mean([query.greedy["b"].right[0] for query in QUERIES]))
    once = by_name["a", 0.7, "single", 1]
    right = np.mean([query.samples["a"].right.mean() for query in QUERIES])
    assert once.accuracy == pytest.approx(right, abs=0.02)
    flops = [sample(MODELS[0], 12, query.samples["a"].tokens)[0].mean() for query in QUERIES]
    assert once.flops == pytest.approx(np.mean(flops))
    eight, read = by_name["a", 0.7, "majority", 8], sample(MODELS[0], 12, 0.0)[0]
    assert eight.flops == pytest.approx(8 * np.mean(flops) - 7 * read)
    assert eight.accuracy > once.accuracy
    assert by_name["a", 0.7, "weighted", 8].flops > eight.flops
    assert by_name["a", 0.7, "weighted", 8].accuracy > eight.accuracy


def test_no_query_is_played_on_curves_that_it_was_fitted_on(profile: Profile) -> None:
    seen: list[set[str]] = []

    def noted(queries: Sequence[Measured]) -> dict[str, Any]:
        seen.append({query.query_id for query in queries})
        return FIT(queries)

    baselines(QUERIES, Catalog.of(MODELS, []), profile, FOLD, noted, PRIOR)
    everything = {query.query_id for query in QUERIES}
    held_out = [everything - known for known in seen]
    assert len(held_out) == 3
    assert set.union(*held_out) == everything
    assert sum(map(len, held_out)) == len(everything)


def test_of_too_few_queries_nothing_is_said(profile: Profile) -> None:
    few = LEAST_QUERIES - 1
    catalog = Catalog.of(MODELS, [])
    assert baselines(QUERIES[:few], catalog, profile, FOLD[:few], FIT, PRIOR[:few]) == {}
