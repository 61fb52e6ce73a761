"""What is bought next, and why: promises of the planner on a synthetic profile."""

from __future__ import annotations

import math
import random
import re
import timeit
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isoflop.errors import DeadlineExceeded, FailedPrecondition
from isoflop.v1.common_pb2 import Capabilities, Shape
from isoflop.v1.router_pb2 import Budget, Effort, Filters, Objective
from isoflop.v1.verification_pb2 import CHAIN_SCORING_LAST, CHAIN_SCORING_PRODUCT, Verifier
from synthetic import (
    EASY,
    GRID,
    HARD,
    IMPOSSIBLE,
    MIDDLE,
    arm_record,
    expected_accuracy,
    make_model,
    make_planner,
    make_profile,
    make_query,
    make_state,
    make_votes,
    p_right,
    relaxed,
)

from router.belief import NO_VOTES, Votes, update
from router.catalog import Catalog
from router.cost import Cost, samples
from router.decision import UNLIMITED, Action, Decision, State
from router.planner import Planner
from router.profile import MOST_VOTES, ROUND_SIZES, Arm

EFFORTS = (Effort.EFFORT_LOW, Effort.EFFORT_MEDIUM, Effort.EFFORT_HIGH)

PLANNER = make_planner()
SAMPLED = {arm.model: arm for arm in PLANNER.profile.arms if not arm.greedy}
GREEDY = {arm.model: arm for arm in PLANNER.profile.arms if arm.greedy}


def decide(
    difficulty: float, votes: Votes | None = None, planner: Planner = PLANNER, **fields: Any
) -> Decision:
    state = make_state(planner, difficulty, *([votes] if votes else []))
    return planner.decide(make_query(planner, **fields), state)


def bought(decision: Decision) -> Action:
    assert decision.action is not None, decision.reason
    return decision.action


Speaker = Callable[[Action, int], str | None]
"""The answer of the next sample, by the action and the number of samples so far; None: a blank."""


def sampled(difficulty: float, seed: int) -> Speaker:
    """Right as often as the curve says; wrong answers are one of five."""
    rng = random.Random(seed)

    def say(action: Action, number: int) -> str | None:
        chance = np.interp(difficulty, GRID, action.arm.p_right)
        return "right" if rng.random() < chance else f"wrong {rng.randrange(5)}"

    return say


def play(
    difficulty: float,
    say: Speaker,
    planner: Planner = PLANNER,
    most: int = 200,
    left: Cost = UNLIMITED,
    **fields: Any,
) -> Iterator[tuple[Decision, State]]:
    """A query from its first decision to its end, or till too much was bought."""
    query = make_query(planner, **fields)
    arms: list[Arm] = []
    answers: list[str] = []
    counts: dict[tuple[int, str | None], int] = {}
    had: dict[str, int] = {}
    while True:
        votes = Votes(
            tuple(arms),
            np.array(
                [[counts.get((i, a), 0) for a in answers] for i in range(len(arms))], dtype=float
            ).reshape(len(arms), len(answers)),
            np.array([float(counts.get((i, None), 0)) for i in range(len(arms))]),
        )
        posterior = update(planner.profile.belief(difficulty, 0.3), votes)
        state = State(
            posterior,
            posterior.confidence,
            dict(had),
            frozenset(arm.model for arm in arms if arm.greedy),
            left,
            math.inf,
        )
        decision = planner.decide(query, state)
        yield decision, state
        action = decision.action
        if action is None:
            return
        assert sum(had.values()) < most, f"it does not end: {decision.reason}"
        if action.arm not in arms:
            arms.append(action.arm)
        for _ in range(action.samples):
            answer = say(action, sum(had.values()))
            if answer is not None and answer not in answers:
                answers.append(answer)
            key = (arms.index(action.arm), answer)
            counts[key] = counts.get(key, 0) + 1
            had[action.model.name] = had.get(action.model.name, 0) + 1
        left -= action_cost(action)


def action_cost(action: Action) -> Cost:
    share = action.samples / action.horizon
    return Cost(action.cost.flops * share, action.cost.money * share, action.cost.tokens * share)


def end(steps: Iterator[tuple[Decision, State]]) -> tuple[int, float, State, Decision]:
    """Samples, expected FLOPs, and the last state and decision of a query."""
    count, flops = 0, 0.0
    for decision, state in steps:
        last = (state, decision)
        if decision.action:
            count += decision.action.samples
            flops += action_cost(decision.action).flops
    return count, flops, *last


class TestHowMuch:
    def test_an_easy_query_gets_one_sample_of_the_smallest_model(self) -> None:
        action = bought(decide(EASY))
        assert (action.model.name, action.samples) == ("s", 1)
        count, *_, last = end(play(EASY, lambda action, number: "right"))
        assert count == 1
        assert last.action is None

    def test_a_middle_query_gets_more_than_an_easy_one(self) -> None:
        def mean(difficulty: float) -> float:
            return float(np.mean([end(play(difficulty, sampled(difficulty, i)))[1] for i in range(8)]))

        assert mean(MIDDLE) > 3 * mean(EASY)

    def test_the_impossible_is_given_up_without_buying(self) -> None:
        for effort in EFFORTS:
            decision = decide(IMPOSSIBLE, effort=effort)
            assert decision.action is None
            assert "is worth" in decision.reason

    @pytest.mark.parametrize("difficulty", [EASY, MIDDLE, HARD])
    @pytest.mark.parametrize("effort", EFFORTS)
    def test_a_query_whose_samples_have_no_answer_is_given_up_after_little(
        self, difficulty: float, effort: Effort.ValueType
    ) -> None:
        """However easy it looked: after so many blanks, it is not."""
        _, _, state, _ = end(play(difficulty, lambda action, number: None, effort=effort, most=150))
        assert state.posterior.confidence == 0

    @pytest.mark.parametrize("difficulty", [EASY, MIDDLE, HARD, IMPOSSIBLE])
    @pytest.mark.parametrize("effort", EFFORTS)
    def test_a_query_whose_samples_all_differ_is_given_up_after_little(
        self, difficulty: float, effort: Effort.ValueType
    ) -> None:
        end(play(difficulty, lambda action, number: str(number), effort=effort, most=150))

    def test_no_more_samples_of_a_model_are_bought_than_the_tables_reach_to(self) -> None:
        """A target without a budget on a query without readable answers goes on for long, but ends."""
        query = make_query(PLANNER, objective=Objective(target_accuracy=0.9))
        for blanks, longest in ((MOST_VOTES - 5, 4), (MOST_VOTES, 0)):
            state = make_state(PLANNER, MIDDLE, make_votes(*((arm, [], blanks) for arm in SAMPLED.values())))
            offers = [o for o in PLANNER.offers(query, state) if not o.arm.greedy]
            assert max((offer.horizon for offer in offers), default=0) == longest

    @pytest.mark.parametrize("difficulty", [EASY, MIDDLE, HARD, IMPOSSIBLE])
    def test_more_effort_never_spends_less(self, difficulty: float) -> None:
        spent = [
            np.mean([end(play(difficulty, sampled(difficulty, i), effort=effort))[1] for i in range(8)])
            for effort in EFFORTS
        ]
        assert spent == sorted(spent)

    @given(st.floats(-2.5, 2.5), st.floats(0.1, 1.0), st.floats(6, 12), st.floats(0, 3))
    @relaxed
    def test_a_higher_worth_never_buys_less_at_first(
        self, difficulty: float, sd: float, magnitude: float, more: float
    ) -> None:
        costs, accuracies = [], []
        for power in (magnitude, magnitude + more):
            objective = Objective(flops_per_right_answer=10**power)
            state = make_state(PLANNER, difficulty, sd=sd)
            action = PLANNER.decide(make_query(PLANNER, objective=objective), state).action
            costs.append(action.cost.flops if action else 0.0)
            accuracies.append(action.accuracy if action else 0.0)
        assert costs[0] <= costs[1] * (1 + 1e-9)
        assert accuracies[0] <= accuracies[1] + 1e-9

    def test_what_is_bought_is_worth_more_than_it_costs(self) -> None:
        for difficulty in (EASY, MIDDLE, HARD):
            for decision, state in play(difficulty, sampled(difficulty, 1)):
                if decision.action:
                    gain = decision.action.accuracy - state.posterior.confidence
                    assert gain * PLANNER.profile.efforts["medium"] > decision.action.cost.flops

    def test_at_most_a_round_is_bought_at_once(self) -> None:
        for size in (1, 3, 4):
            planner = make_planner(round_samples=size)
            for decision, _ in play(HARD, sampled(HARD, 2), planner, effort=Effort.EFFORT_HIGH):
                assert not decision.action or decision.action.samples <= size

    def test_no_more_is_spent_than_a_right_answer_is_worth(self) -> None:
        """Two answers that stay level look worth another round for ever."""
        query, worth = make_query(PLANNER, effort=Effort.EFFORT_HIGH), PLANNER.profile.efforts["high"]
        state = make_state(PLANNER, 0.0)
        assert PLANNER.decide(query, replace(state, spent=0.99 * worth)).action
        decision = PLANNER.decide(query, replace(state, spent=worth))
        assert decision.action is None
        assert "no less than a right answer is worth" in decision.reason


class TestEscalation:
    def test_where_the_small_model_disagrees_with_itself_a_larger_one_is_asked(self) -> None:
        votes = make_votes((SAMPLED["s"], [1, 1, 1], 0))
        assert bought(decide(MIDDLE, votes)).model.name in ("m", "l")

    def test_where_the_small_model_agrees_it_ends(self) -> None:
        votes = make_votes((SAMPLED["s"], [3], 0))
        decision = decide(-0.8, votes)
        assert decision.action is None

    def test_the_greedy_sample_of_a_model_is_bought_once(self) -> None:
        state = make_state(PLANNER, MIDDLE, make_votes((GREEDY["s"], [1], 0)))
        offers = [o for o in PLANNER.offers(make_query(PLANNER), state) if o.model.name == "s"]
        assert offers
        assert all(offer.strategy == "majority" for offer in offers)

    def test_what_was_seen_of_an_arm_lowers_what_more_of_it_promises(self) -> None:
        """Where every sample so far was wrong, the next one is right less often than the curve says."""
        profile = make_profile()
        arm = SAMPLED["m"]
        promised = []
        for blanks in (0, 2, 8, 32):
            state = make_state(PLANNER, MIDDLE, make_votes((arm, [], blanks)) if blanks else NO_VOTES)
            offers = PLANNER.offers(make_query(PLANNER, filters=Filters(models=["m"])), state)
            promised.append(next(o.accuracy for o in offers if o.strategy == "majority" and o.horizon == 1))
        assert promised == sorted(promised, reverse=True)
        most = profile.arms[0].concentration / (profile.arms[0].concentration + 32)
        assert promised[-1] <= most


class TestObjectives:
    def test_a_target_that_is_reached_ends_it(self) -> None:
        votes = make_votes((SAMPLED["m"], [3], 0))
        decision = decide(MIDDLE, votes, objective=Objective(target_accuracy=0.9))
        assert decision.action is None
        assert "has reached the target 0.900" in decision.reason

    @pytest.mark.parametrize("difficulty", [EASY, MIDDLE, HARD])
    def test_a_target_that_can_be_reached_is(self, difficulty: float) -> None:
        objective = Objective(target_accuracy=0.9)
        for seed in range(5):
            *_, state, decision = end(play(difficulty, sampled(difficulty, seed), objective=objective))
            assert state.posterior.confidence >= 0.9, decision.reason

    def test_a_higher_target_never_spends_less(self) -> None:
        spent = []
        for target in (0.5, 0.8, 0.95, 0.99):
            objective = Objective(target_accuracy=target)
            runs = [end(play(MIDDLE, sampled(MIDDLE, seed), objective=objective)) for seed in range(8)]
            spent.append(np.mean([flops for _, flops, *_ in runs]))
        assert spent == sorted(spent)

    def test_a_useless_but_cheap_model_does_not_keep_the_target_from_being_reached(self) -> None:
        """A model that adds next to nothing may well be the cheapest for what it adds."""
        hopeless = {"p_right": [1e-6] * 21, "votes": {"1": [5e-5] * 21}}
        arms = [arm_record("s", **hopeless), arm_record("l")]
        planner = make_planner(
            make_profile(arms=arms),
            make_model("s", shape={"active_parameters": 10}),
            make_model("l"),
        )
        action = bought(decide(HARD, planner=planner, objective=Objective(target_accuracy=0.9)))
        assert action.model.name == "l"

    def test_as_accurate_as_a_budget_allows_takes_the_best_that_fits(self) -> None:
        accuracy = []
        for flops in (4e7, 4e8, 4e9, 4e10):
            budget = Budget(flops=flops)
            query = make_query(PLANNER, objective=Objective(most_accurate=True), budget=budget)
            state = make_state(PLANNER, HARD, left=query.limit)
            action = bought(PLANNER.decide(query, state))
            worst = samples(action.model, action.samples, query.prompt_bytes + 64, action.max_tokens)
            assert worst.flops <= flops
            accuracy.append(action.accuracy)
            assert action.accuracy == pytest.approx(
                max(o.accuracy for o in PLANNER.offers(query, state)), abs=1e-3
            )
        assert accuracy == sorted(accuracy)
        assert accuracy[-1] > accuracy[0] + 0.5


class TestFilters:
    @pytest.mark.parametrize("model", ["s", "m", "l"])
    def test_only_the_models_that_are_named_are_used(self, model: str) -> None:
        for decision, _ in play(MIDDLE, sampled(MIDDLE, 1), filters=Filters(models=[model])):
            assert not decision.action or decision.action.model.name == model
            assert {rejected.action.model for rejected in decision.rejected} <= {model}

    @pytest.mark.parametrize("strategy", ["single", "majority", "best_of_n", "weighted"])
    def test_only_the_strategies_that_are_named_are_used(self, strategy: str) -> None:
        for decision, _ in play(MIDDLE, sampled(MIDDLE, 1), filters=Filters(strategies=[strategy])):
            assert not decision.action or decision.action.strategy == strategy
            assert {rejected.action.strategy for rejected in decision.rejected} <= {strategy}

    def test_single_alone_is_one_sample_of_a_model_at_any_temperature(self) -> None:
        for temperature in (None, 0.9):
            filters = Filters(strategies=["single"], temperature=temperature, models=["m"])
            count, *_ = end(play(MIDDLE, sampled(MIDDLE, 1), filters=filters, effort=Effort.EFFORT_HIGH))
            assert count == 1

    def test_a_temperature_that_was_asked_for_is_used(self) -> None:
        query = make_query(PLANNER, filters=Filters(temperature=0.6))
        temperatures = {offer.temperature for offer in PLANNER.offers(query, make_state(PLANNER, MIDDLE))}
        assert temperatures == {0.6}

    def test_at_temperature_0_nothing_is_sampled_at_another(self) -> None:
        query = make_query(PLANNER, filters=Filters(temperature=0))
        offers = list(PLANNER.offers(query, make_state(PLANNER, MIDDLE)))
        assert {(offer.strategy, offer.temperature) for offer in offers} == {("single", 0.0)}

    def test_a_sample_has_at_most_the_thinking_tokens_that_were_asked_for(self) -> None:
        query = make_query(PLANNER, filters=Filters(thinking_tokens=30))
        for offer in PLANNER.offers(query, make_state(PLANNER, MIDDLE)):
            assert offer.max_tokens <= 30
            assert offer.cost.tokens <= offer.horizon * (30 + query.prompt_bytes)

    def test_a_strategy_that_needs_log_probabilities_is_offered_where_there_are_some(self) -> None:
        models = [make_model("s", capabilities=Capabilities(logprobs=False)), make_model("m")]
        planner = make_planner(None, *models)
        query = make_query(planner, filters=Filters(strategies=["best_of_n"]))
        offers = list(planner.offers(query, make_state(planner, MIDDLE)))
        assert {offer.model.name for offer in offers} == {"m"}
        assert {offer.message().verifier for offer in offers} == {"logprob"}

    def test_a_verifier_that_reads_texts_needs_no_log_probabilities_and_its_reading_is_reckoned(self) -> None:
        model = make_model("s", capabilities=Capabilities(logprobs=False))
        # As large as the model: reading all that it has written doubles the cost.
        prm = Verifier(name="prm", shape=model.shape, scoring=CHAIN_SCORING_PRODUCT)
        planner = replace(make_planner(None, model), catalog=Catalog.of([model], [prm]))
        for asked, scoring in ((0, CHAIN_SCORING_PRODUCT), (CHAIN_SCORING_LAST, CHAIN_SCORING_LAST)):
            scored, alone = (
                decide(
                    MIDDLE,
                    planner=planner,
                    filters=Filters(strategies=[strategy], samples=4, scoring=asked),  # type: ignore[arg-type]
                ).action
                for strategy in ("weighted", "majority")
            )
            assert scored
            assert alone
            assert (scored.verifier, scored.scoring, scored.message().verifier) == (prm, scoring, "prm")
            assert (alone.verifier, alone.message().verifier) == (None, "")
            assert scored.cost.flops == pytest.approx(2 * alone.cost.flops)

    def test_a_plan_that_no_backend_can_serve_is_refused(self) -> None:
        planner = make_planner(None, make_model("s", capabilities=Capabilities(logprobs=False)))
        with pytest.raises(FailedPrecondition, match="no model can serve"):
            decide(MIDDLE, planner=planner, filters=Filters(strategies=["best_of_n"]))

    def test_a_backend_with_a_limit_on_samples_is_asked_for_no_more(self) -> None:
        planner = make_planner(None, make_model("m", capabilities=Capabilities(samples=5)))
        count, *_, last = end(
            play(HARD, lambda action, n: str(n), planner, objective=Objective(flops_per_right_answer=1e13))
        )
        assert count == 5
        assert last.action is None

    def test_a_model_that_was_never_measured_is_used_only_where_it_is_named(self) -> None:
        planner = make_planner(None, *(make_model(name) for name in ("s", "m", "l", "new")))
        offered = planner.offers(make_query(planner), make_state(planner, MIDDLE))
        assert {offer.model.name for offer in offered} == {"s", "m", "l"}
        query = make_query(planner, filters=Filters(models=["new"]))
        assert {o.model.name for o in planner.offers(query, make_state(planner, MIDDLE))} == {"new"}
        assert bought(planner.decide(query, make_state(planner, MIDDLE))).model.name == "new"

    def test_where_no_model_was_measured_all_are_used(self) -> None:
        planner = make_planner(None, make_model("a"), make_model("b"))
        offers = planner.offers(make_query(planner), make_state(planner, MIDDLE))
        assert {offer.model.name for offer in offers} == {"a", "b"}

    def test_a_model_measured_at_one_temperature_is_not_guessed_at_another(self) -> None:
        """Its greedy sample was never measured, but its samples were: it is no better than they say."""
        planner = make_planner(make_profile(arms=[arm_record("s", 0.8)]), make_model("s"))
        offers = planner.offers(make_query(planner), make_state(planner, HARD))
        assert {round(o.accuracy, 2) for o in offers if o.horizon == 1} == {
            round(float(planner.profile.belief(HARD, 0.3) @ p_right("s")), 2)
        }


class TestFixedPlans:
    @pytest.mark.parametrize("count", [1, 2, 5, 16, 300])
    def test_exactly_the_samples_that_were_asked_for_are_bought_at_once(self, count: int) -> None:
        decisions = list(play(HARD, sampled(HARD, 1), most=400, filters=Filters(samples=count, models=["s"])))
        actions = [decision.action for decision, _ in decisions]
        assert [action and action.samples for action in actions] == [count, None]
        first = bought(decisions[0][0])
        assert first.strategy == ("single" if count == 1 else "majority")
        assert first.name == f"s × {count} {first.strategy}"
        assert f"{count} samples" in decisions[1][0].reason

    def test_a_fixed_plan_is_bought_whatever_it_is_worth(self) -> None:
        action = bought(decide(IMPOSSIBLE, filters=Filters(samples=8), effort=Effort.EFFORT_LOW))
        assert action.samples == 8

    def test_a_fixed_plan_costs_what_its_samples_cost(self) -> None:
        for count in (3, 300):
            query = make_query(PLANNER, filters=Filters(samples=count, models=["m"], thinking_tokens=20))
            action = bought(PLANNER.decide(query, make_state(PLANNER, MIDDLE)))
            assert action.cost.flops == pytest.approx(
                samples(action.model, count, query.prompt_bytes, 20).flops
            )

    def test_a_fixed_plan_promises_what_a_vote_of_its_size_promises(self) -> None:
        query = make_query(PLANNER, filters=Filters(samples=20, models=["m"]), effort=Effort.EFFORT_LOW)
        state = make_state(PLANNER, MIDDLE)
        action = bought(PLANNER.decide(query, state))
        assert action.accuracy == pytest.approx(expected_accuracy(state.posterior, SAMPLED["m"], 16))

    def test_several_samples_are_never_of_strategy_single(self) -> None:
        action = bought(decide(MIDDLE, filters=Filters(samples=8, strategies=["single", "majority"])))
        assert (action.strategy, action.samples) == ("majority", 8)

    def test_a_backend_with_too_few_samples_is_not_asked_for_them(self) -> None:
        few = make_model("s", capabilities=Capabilities(samples=8))
        planner = make_planner(None, few, make_model("m"))
        assert bought(decide(EASY, planner=planner, filters=Filters(samples=8))).model.name == "s"
        assert bought(decide(EASY, planner=planner, filters=Filters(samples=16))).model.name == "m"
        with pytest.raises(FailedPrecondition, match="no model can serve"):
            decide(EASY, planner=planner, filters=Filters(samples=16, models=["s"]))


NEEDS = re.compile(r"the cheapest, (\S+) × (\d+) (\w+), needs (\S+) FLOPs, (\d+) tokens and (\S+) USD")


class TestLimits:
    @given(
        st.floats(-2.5, 2.5),
        st.floats(0.2, 1.0),
        st.sampled_from([(), ("s",), ("m", "l"), ("l",)]),
        st.sampled_from([(), ("single",), ("majority",)]),
        st.sampled_from([0, 1, 7, 40]),
        st.sampled_from([None, 3, 60]),
        st.text("ab1+", min_size=1, max_size=300),
        st.sampled_from(["flops", "money", "tokens"]),
    )
    @relaxed
    def test_a_budget_too_small_names_one_that_is_enough(
        self,
        difficulty: float,
        sd: float,
        models: tuple[str, ...],
        strategies: tuple[str, ...],
        count: int,
        thinking: int | None,
        prompt: str,
        tight: str,
    ) -> None:
        if count > 1 and strategies == ("single",):
            count = 1
        filters = Filters(
            models=models, strategies=strategies, samples=count or None, thinking_tokens=thinking
        )
        value: Any = 1 if tight == "tokens" else 1e-9
        query = make_query(PLANNER, prompt=prompt, filters=filters, budget=Budget(**{tight: value}))
        with pytest.raises(FailedPrecondition, match="no plan fits the budget") as raised:
            PLANNER.decide(query, make_state(PLANNER, difficulty, sd=sd, left=query.limit))
        named = NEEDS.search(str(raised.value))
        assert named, str(raised.value)
        model, named_count, strategy, flops, tokens, money = named.groups()
        assert model in (models or ("s", "m", "l"))
        assert strategy in (strategies or ("single", "majority"))
        assert int(named_count) == (count or 1)
        budget = Budget(flops=float(flops), tokens=int(tokens), money=float(money))
        again = make_query(PLANNER, prompt=prompt, filters=filters, budget=budget)
        state = make_state(PLANNER, difficulty, sd=sd, left=again.limit)
        assert list(PLANNER.offers(again, state))
        PLANNER.decide(again, state)

    @given(
        st.floats(-2.5, 2.5),
        st.sampled_from(["flops", "money", "tokens"]),
        st.floats(1, 300),
        st.sampled_from([0, 5]),
    )
    @relaxed
    def test_whatever_is_offered_surely_fits_the_budget(
        self, difficulty: float, tight: str, size: float, count: int
    ) -> None:
        """The budget is that of `size` tokens of the middle model, in one respect."""
        price = samples(make_model("m"), 1, 0, size)
        budget = Budget(**{tight: max(1, int(price.tokens)) if tight == "tokens" else getattr(price, tight)})
        query = make_query(PLANNER, filters=Filters(samples=count or None), budget=budget)
        state = make_state(PLANNER, difficulty, left=query.limit)
        for offer in PLANNER.offers(query, state):
            worst = samples(offer.model, offer.samples, query.prompt_bytes + 64, offer.max_tokens)
            assert worst.within(query.limit)
            assert offer.max_tokens >= 1

    def test_what_is_left_binds_and_ends_the_query(self) -> None:
        budget = Budget(flops=4e8)
        query = make_query(PLANNER, budget=budget, objective=Objective(most_accurate=True))
        steps = list(
            play(
                HARD,
                lambda a, n: str(n),
                left=query.limit,
                budget=budget,
                objective=Objective(most_accurate=True),
            )
        )
        assert sum(action_cost(d.action).flops for d, _ in steps if d.action) <= 4e8
        assert steps[-1][0].action is None
        spent = make_state(PLANNER, HARD, left=Cost(1.0, 1.0, 1.0), bought={"s": 1})
        assert "no further round fits" in PLANNER.decide(query, spent).reason

    @pytest.mark.parametrize("seconds", [1e-6, 0.0, -3.0])
    def test_a_deadline_too_short_is_told_before_anything_is_spent(self, seconds: float) -> None:
        state = make_state(PLANNER, EASY, seconds=seconds)
        with pytest.raises(DeadlineExceeded, match=r"the quickest plan, s × 1 single, takes about \d"):
            PLANNER.decide(make_query(PLANNER), state)

    def test_a_plan_that_cannot_end_in_time_is_not_offered(self) -> None:
        seconds = 60e-5  # One sample of s takes about 40 ten-thousandths of a second, of l forty times that.
        offers = PLANNER.offers(make_query(PLANNER), make_state(PLANNER, EASY, seconds=seconds))
        assert {offer.model.name for offer in offers} == {"s"}

    def test_the_budget_that_is_named_is_of_a_plan_that_ends_in_time(self) -> None:
        """The small model is cheap and slow, the large one quick and beyond the budget."""
        arms = [arm_record("s", seconds_per_token=1.0), arm_record("l", seconds_per_token=1e-6)]
        planner = make_planner(make_profile(arms=arms), make_model("s"), make_model("l"))
        query = make_query(planner, budget=Budget(flops=3e7))
        state = make_state(planner, EASY, seconds=5.0, left=query.limit)
        with pytest.raises(FailedPrecondition, match="the cheapest, l × 1"):
            planner.decide(query, state)

    def test_after_something_was_bought_no_room_is_the_end_and_no_error(self) -> None:
        state = make_state(PLANNER, MIDDLE, make_votes((SAMPLED["s"], [1], 0)), left=Cost(1.0, 1.0, 1.0))
        decision = PLANNER.decide(make_query(PLANNER), state)
        assert decision.action is None
        assert "no further round fits in what is left of the budget" in decision.reason
        assert not decision.cut_short

    def test_where_time_is_what_is_lacking_the_answer_is_cut_short(self) -> None:
        votes = make_votes((SAMPLED["s"], [1], 0))
        decision = PLANNER.decide(make_query(PLANNER), make_state(PLANNER, MIDDLE, votes, seconds=1e-6))
        assert decision.action is None
        assert decision.reason == "no further round fits in the time that is left"
        assert decision.cut_short

    @pytest.mark.parametrize("limits", [{"seconds": 1e-6}, {"left": Cost(1.0, 1.0, 1.0)}])
    def test_what_no_query_could_do_is_refused_by_a_check_and_what_an_easy_one_could_is_not(
        self, limits: dict[str, Any]
    ) -> None:
        query, prior = make_query(PLANNER), make_state(PLANNER, 0.0, sd=1.0, **limits)
        with pytest.raises((DeadlineExceeded, FailedPrecondition)) as refused:
            PLANNER.check(query, prior)
        with pytest.raises(type(refused.value), match=re.escape(str(refused.value))):
            PLANNER.decide(query, prior)
        PLANNER.check(query, replace(prior, left=UNLIMITED, seconds=math.inf))
        # Too little for a query of which nothing is known, and enough for an easy one: it may be one.
        for hard in (
            make_state(PLANNER, 0.0, sd=1.0, seconds=58e-5),
            make_state(PLANNER, EASY, seconds=58e-5),
        ):
            PLANNER.check(query, hard)


class TestReasons:
    @pytest.mark.parametrize("difficulty", [EASY, MIDDLE, HARD, IMPOSSIBLE])
    @pytest.mark.parametrize("objective", [None, Objective(target_accuracy=0.8)], ids=["effort", "target"])
    def test_a_decision_has_a_reason_and_three_rejected_in_words_and_numbers(
        self, difficulty: float, objective: Objective | None
    ) -> None:
        decision = decide(difficulty, objective=objective)
        assert re.search(r"P\(right\) 0\.000", decision.reason)
        assert len(decision.rejected) == 3
        for rejected in decision.rejected:
            assert rejected.action.model in ("s", "m", "l")
            assert rejected.action.samples >= 1
            assert rejected.action.expected_flops > 0
            assert rejected.reason
            assert re.search(r"\d|nothing", rejected.reason)

    def test_the_rejected_are_others_than_the_chosen(self) -> None:
        decision = decide(MIDDLE)
        chosen = bought(decision).outlook()
        assert chosen not in [rejected.action for rejected in decision.rejected]

    def test_an_action_is_told_with_the_share_that_is_bought_now(self) -> None:
        state = make_state(PLANNER, MIDDLE)
        offers = [o for o in PLANNER.offers(make_query(PLANNER), state) if o.horizon == 16]
        assert offers
        for offer in offers:
            assert offer.message().samples == 4
            assert offer.outlook().samples == 16
            assert offer.message().expected_flops == pytest.approx(offer.outlook().expected_flops / 4)


class TestExpectedAccuracy:
    @given(
        st.floats(-2.5, 2.5),
        st.sampled_from("sml"),
        st.lists(st.integers(1, 8), max_size=4),
        st.integers(0, 3),
        st.sampled_from("sml"),
    )
    @relaxed
    def test_it_is_a_probability_and_not_below_confidence(
        self, difficulty: float, voter: str, row: list[int], blanks: int, model: str
    ) -> None:
        votes = make_votes((SAMPLED[voter], row, blanks))
        posterior = make_state(PLANNER, difficulty, votes).posterior
        values = [expected_accuracy(posterior, SAMPLED[model], n) for n in ROUND_SIZES]
        assert all(0 <= value <= 1 for value in values)
        if row:
            assert all(value >= posterior.confidence - 1e-9 for value in values)

    def test_before_any_vote_it_is_what_calibration_measured(self) -> None:
        profile = PLANNER.profile
        posterior = make_state(PLANNER, MIDDLE).posterior
        belief = profile.belief(MIDDLE, 0.3)
        for row, count in enumerate(ROUND_SIZES):
            wanted = belief @ SAMPLED["m"].votes[row]
            assert expected_accuracy(posterior, SAMPLED["m"], count) == pytest.approx(wanted)


def test_time_to_decide_and_to_update_is_small(capsys: pytest.CaptureFixture[str]) -> None:
    """Printed, so that it can be looked at; the limits are those of a mistake."""
    query = make_query(PLANNER)
    cases: list[tuple[str, Votes | None]] = [
        ("no votes", None),
        ("4 votes, 2 answers", make_votes((SAMPLED["s"], [3, 1], 0))),
        ("3 arms, 6 answers", make_votes(*((SAMPLED[m], [3, 2, 1, 1, 1, 1], 1) for m in "sml"))),
        ("1000 votes, 500 answers", make_votes((SAMPLED["m"], [501] + [1] * 499, 0))),
    ]
    lines = []
    for name, votes in cases:
        state = make_state(PLANNER, MIDDLE, *([votes] if votes else []))
        for what, call in (
            ("decide", lambda state=state: PLANNER.decide(query, state)),
            ("update", lambda votes=votes: make_state(PLANNER, MIDDLE, *([votes] if votes else []))),
        ):
            call()
            spent = min(timeit.repeat(call, number=1, repeat=20))
            lines.append(f"{what}, {name}: {spent * 1e3:.2f} ms")
            assert spent < 0.5
    with capsys.disabled():
        print("\n" + "\n".join(lines))


class TestBestOfN:
    def test_is_bought_in_one_round_and_not_without_end(self) -> None:
        query = make_query(PLANNER, filters=Filters(strategies=["best_of_n"]))
        first = PLANNER.decide(query, make_state(PLANNER, HARD)).action
        assert first is not None
        assert first.samples == first.horizon
        again = PLANNER.decide(query, make_state(PLANNER, HARD, bought={"m": first.samples}))
        assert again.action is None
        assert "one round" in again.reason


class TestUnmeasuredModels:
    @pytest.mark.parametrize("parameters", [10**5, 7 * 10**9, 4 * 10**11])
    def test_one_of_any_size_is_asked_at_least_once(self, parameters: int) -> None:
        shape = Shape(active_parameters=parameters, layers=32, heads=32, head_size=128)
        planner = make_planner(make_profile(), make_model("own", shape=shape))
        for effort in (Effort.EFFORT_LOW, Effort.EFFORT_MEDIUM, Effort.EFFORT_HIGH):
            query = make_query(planner, effort=effort)
            assert planner.decide(query, make_state(planner, MIDDLE)).action is not None
