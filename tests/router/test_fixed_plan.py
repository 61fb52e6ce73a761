"""The fixed plan of a profile: what it would cost on a query, and which queries are compared with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from isoflop.v1.router_pb2 import Budget, Effort, Filters, Objective
from isoflop.v1.verification_pb2 import Verifier
from pydantic import ValidationError
from synthetic import EASY, HARD, arm_record, make_model, make_planner, make_profile, make_query, record, vote

from router import cost
from router.baseline import Fixed
from router.catalog import Catalog
from router.planner import Planner
from router.profile import load, parse
from services.common.settings import MODELS

PLAN = {
    "model": "m",
    "temperature": 0.8,
    "strategy": "majority",
    "samples": 4,
    "accuracy": 0.7,
    "flops": 3e8,
    "policy_accuracy": 0.65,
    "policy_flops": 2e8,
    "queries": 100,
}


def planner(**changes: Any) -> Planner:
    return make_planner(make_profile(baselines={"medium": PLAN | changes}))


def compared(made: Planner, difficulty: float = HARD, **fields: Any) -> Fixed | None:
    query = make_query(made, **fields)
    return made.baseline(query, made.profile.belief(difficulty, 0.3))


def of(made: Planner, difficulty: float = HARD, **fields: Any) -> Fixed:
    found = compared(made, difficulty, **fields)
    assert found
    return found


def test_a_vote_costs_its_samples_with_the_prompt_once() -> None:
    made = planner()
    found = of(made)
    assert found.samples == 4
    (arm,) = [arm for arm in made.profile.arms if arm.model == "m" and not arm.greedy]
    belief, model, prompt = made.profile.belief(HARD, 0.3), make_model("m"), 8.0
    each = [float(value @ belief) for value in cost.sample(model, prompt, arm.tokens)]
    read = cost.sample(model, prompt, 0.0)
    assert found.cost.flops == pytest.approx(4 * each[0] - 3 * read[0])
    price = model.price
    cheaper = 3 * prompt * (price.per_million_prompt_tokens - price.per_million_cached_tokens) / 1e6
    assert found.cost.money == pytest.approx(4 * each[1] - cheaper)
    assert found.cost.tokens == pytest.approx(4 * each[2] - 3 * prompt)


def test_a_greedy_sample_and_what_is_weighed_by_scores_cost_what_they_do() -> None:
    greedy = of(planner(temperature=0.0, strategy="single", samples=1))
    assert greedy.samples == 1
    votes = {str(n): vote(np.full(21, 0.5), n).tolist() for n in (1, 4)}
    told = {"verifier": "prm", "intercept": 0.0, "slope": 1.0, "alike": 0.5, "right": 1.0, "wrong": -1.0}
    data = record(models=["m"], baselines={"medium": PLAN | {"strategy": "weighted", "verifier": "prm"}})
    data["arms"] = [arm_record("m", verified=[told | {"votes": votes}])]
    verifiers = {name: Verifier(name=name, shape=make_model("l").shape) for name in ("prm", "other")}
    weighted = of(Planner(parse(data), Catalog.of([make_model("m")], [verifiers["prm"]]), 4))
    plain = of(planner())
    assert weighted.cost.flops > plain.cost.flops
    # Where the router has another verifier, that plan is none of its own.
    other = Planner(parse(data), Catalog.of([make_model("m")], [verifiers["other"]]), 4)
    assert compared(other) is None


def test_it_costs_more_on_what_is_harder_and_longer() -> None:
    made = planner()
    easy, hard, longer = of(made, EASY), of(made, HARD), of(made, HARD, prompt="17*24+13" * 50)
    assert easy.cost.flops < hard.cost.flops < longer.cost.flops


def test_it_is_set_right_by_what_was_measured() -> None:
    plain, right = of(planner()), of(planner(expected_flops=6e8))
    assert right.cost.flops == pytest.approx(plain.cost.flops / 2)
    assert right.cost.money == pytest.approx(plain.cost.money / 2)
    assert right.samples == plain.samples


@pytest.mark.parametrize(
    "fields",
    [
        {"filters": Filters(models=["m"])},
        {"filters": Filters(strategies=["majority"])},
        {"filters": Filters(samples=4)},
        {"filters": Filters(thinking_tokens=40)},
        {"filters": Filters(temperature=0.5)},
        {"filters": Filters(verifier="logprob")},
        {"objective": Objective(target_accuracy=0.9)},
        {"objective": Objective(flops_per_right_answer=1e9)},
        {"objective": Objective(most_accurate=True), "budget": Budget(flops=1e12)},
        {"budget": Budget(flops=1e12)},
        {"effort": Effort.EFFORT_HIGH},
    ],
    ids=str,
)
def test_who_asks_for_more_than_an_effort_that_has_a_plan_is_not_compared(fields: dict[str, Any]) -> None:
    made = planner()
    assert compared(made)
    assert compared(made, **fields) is None


def test_without_its_model_there_is_no_plan() -> None:
    made = make_planner(make_profile(baselines={"medium": PLAN}), make_model("s"))
    assert compared(made) is None


def test_a_plan_that_is_less_often_right_than_the_planner_says_so() -> None:
    reaching, below = (
        make_profile(baselines={"low": PLAN | {"accuracy": accuracy}}).baselines["low"]
        for accuracy in (0.65, 0.64)
    )
    assert (reaching.reaches, below.reaches) == (True, False)


@pytest.mark.parametrize(
    ("effort", "changes", "fault"),
    [
        ("utmost", {}, "there is no such effort"),
        ("low", {"model": "x"}, "x has no arm at temperature 0.8"),
        ("low", {"temperature": 0.3}, "m has no arm at temperature 0.3"),
        ("low", {"strategy": "weighted"}, "a verifier goes with strategy weighted"),
        ("low", {"verifier": "prm"}, "a verifier goes with strategy weighted"),
        ("low", {"strategy": "beam"}, "strategy"),
        ("low", {"samples": 0}, "samples"),
        ("low", {"accuracy": 1.5}, "accuracy"),
        ("low", {"flops": 0.0}, "flops"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(effort: str, changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        make_profile(baselines={effort: PLAN | changes})


def test_a_profile_without_plans_is_as_good() -> None:
    assert not parse(record()).baselines


def test_the_embedded_profile_has_a_plan_for_each_effort_and_takes_less() -> None:
    plans = load(MODELS / "profile.json").baselines
    assert list(plans) == ["low", "medium", "high"]
    for plan in plans.values():
        assert plan.reaches
        assert plan.policy_flops < plan.flops
        assert plan.queries == 480
