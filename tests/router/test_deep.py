"""Strategies that make chains in parts: the planner chooses them where the profile shows that they pay."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from isoflop.errors import Unavailable
from isoflop.v1.common_pb2 import Capabilities, Thinking
from isoflop.v1.router_pb2 import Budget, Filters, SolveRequest
from isoflop.v1.verification_pb2 import (
    CHAIN_SCORING_LAST,
    DescribeVerifiersRequest,
    DescribeVerifiersResponse,
    ScoreRequest,
    ScoreResponse,
    Verifier,
)
from scripted_stages import Said, listed, number, same
from scripted_suite import MakeSuite
from synthetic import GRID, MIDDLE, make_model, make_planner, make_profile, make_query, make_state, record

from router.explore import bought
from router.planner import Planner
from router.profile import parse
from router.strategies.strategy import Search

ABLE = {
    "capabilities": Capabilities(logprobs=True, prefix=True, steps=True),
    "thinking": Thinking(end="</t>", extend="Wait", close="</t>", answer_tokens=4),
}
LOGPROB = Verifier(name="logprob", backend="logprob", needs_logprobs=True)
MODELS = [make_model(name, **ABLE) for name in ("s", "m", "l")]


def deep(strategy: str = "beam", right: float = 0.97, times: float = 1.2, **changes: Any) -> dict[str, Any]:
    """A strategy with one chance of being right, whatever the difficulty."""
    search = {"width": 2, "expansion": 2, "depth": 8} if strategy == "beam" else {"width": 1}
    return {
        "model": "s",
        "temperature": 0.8,
        "strategy": strategy,
        "search": search,
        "verifier": "logprob" if strategy == "beam" else "",
        "p_right": [right] * len(GRID),
        "tokens": [50.0] * len(GRID),
        "times": [times] * len(GRID),
    } | changes


def planner(*records: dict[str, Any]) -> Planner:
    return make_planner(make_profile(deep=list(records)), *MODELS)


def first(of: Planner, **fields: Any) -> str:
    action = of.decide(make_query(of, **fields), make_state(of, MIDDLE)).action
    return action.strategy if action else "nothing"


@pytest.mark.parametrize("strategy", ["beam", "sequential"])
def test_what_pays_is_chosen_and_what_does_not_is_not(strategy: str) -> None:
    assert first(planner(deep(strategy))) == strategy
    assert first(planner(deep(strategy, right=0.1))) not in (strategy, "nothing")
    assert first(planner(deep(strategy, times=10_000.0))) not in (strategy, "nothing")


def test_what_a_model_or_the_catalogue_cannot_do_is_not_offered() -> None:
    profile = make_profile(deep=[deep("beam"), deep("sequential")])
    assert first(make_planner(profile)) not in ("beam", "sequential")
    assert first(planner(deep(verifier="unknown"))) != "beam"


@pytest.mark.parametrize(
    "filters",
    [
        Filters(strategies=["majority"]),
        Filters(samples=4),
        Filters(thinking_tokens=512),
        Filters(temperature=0.5),
        Filters(models=["m", "l"]),
    ],
)
def test_filters_restrict_it_as_everything_else(filters: Filters) -> None:
    assert first(planner(deep()), filters=filters) != "beam"


def test_its_cost_is_that_of_so_many_samples_of_its_model() -> None:
    one = planner(deep(times=3.0))
    query, state = make_query(one), make_state(one, MIDDLE)
    offers = {(offer.model.name, offer.strategy, offer.horizon): offer for offer in one.offers(query, state)}
    beam, sample = offers["s", "beam", 1], offers["s", "majority", 1]
    assert beam.cost.flops == pytest.approx(3 * sample.cost.flops)
    assert beam.cost.money == pytest.approx(3 * sample.cost.money)
    assert beam.lanes == 4
    assert beam.name == "s beam of 2 × 2"
    assert ("s", "beam", 2) not in offers


def said(answer: int, logprob: float) -> Said:
    return number(answer, logprobs=(logprob,))


async def test_its_best_chain_is_one_vote_and_it_is_bought_once(make_suite: MakeSuite) -> None:
    # The beam's four chains come first; what follows disagrees with it.
    script = listed(
        said(1, -9.0), said(421, -0.1), said(2, -9.0), said(3, -9.0), said(5, -4.0), said(6, -4.0)
    )
    suite = make_suite(script, profile=make_profile(deep=[deep(right=0.8)]), models=MODELS)
    final = await suite.router.solve(SolveRequest(prompt="1+1", filters=Filters(models=["s"]), effort=3))
    assert final.rounds[0].action.strategy == "beam"
    assert final.rounds[0].action.verifier == "logprob"
    assert [round.action.strategy for round in final.rounds].count("beam") == 1
    votes = {cluster.answer: len(cluster.members) for cluster in final.clusters}
    assert votes["421"] == 1
    assert not {"1", "2", "3"} & set(votes)
    # What it is worth was measured: confidence is by that, not by the number of its chains.
    assert final.rounds[0].confidence_after == pytest.approx(0.8, abs=0.05)


async def test_samples_after_it_have_numbers_of_their_own(make_suite: MakeSuite) -> None:
    script = listed(*(said(n, -1.0) for n in range(400)))
    suite = make_suite(script, profile=make_profile(deep=[deep(right=0.6)]), models=MODELS)
    request = SolveRequest(prompt="1+1", filters=Filters(models=["s"]), effort=3, return_candidates=True)
    final = await suite.router.solve(request)
    assert len(final.rounds) > 1
    starts = [
        (start.first_sample, sum(b.samples for b in start.branches)) for start in suite.generation.starts
    ]
    ends = [first + samples for first, samples in starts]
    assert [first for first, _ in starts[1:]] == ends[:-1]


def test_long_chains_may_be_voted_on_as_far_as_that_pays() -> None:
    voted = planner(deep("sequential", right=0.7, votes={"1": [0.7] * len(GRID), "8": [0.98] * len(GRID)}))
    offers = {(o.strategy, o.horizon): o for o in voted.offers(make_query(voted), make_state(voted, MIDDLE))}
    many = offers["sequential", 8]
    assert many.accuracy > offers["sequential", 1].accuracy + 0.1
    assert many.cost.flops == pytest.approx(8 * offers["sequential", 1].cost.flops)
    # A few are bought at a time: as many chains, as wide.
    assert (many.samples, many.lanes, many.search) == (4, 4, Search(width=4))
    once = planner(deep("sequential", right=0.7))
    assert ("sequential", 8) not in {
        (o.strategy, o.horizon) for o in once.offers(make_query(once), make_state(once, MIDDLE))
    }


async def test_each_of_several_long_chains_has_a_vote(make_suite: MakeSuite) -> None:
    curve = {"1": [0.6] * len(GRID), "8": [0.98] * len(GRID)}
    record = deep("sequential", right=0.6, votes=curve)
    script = listed(*(number(answer) for answer in (421, 421, 7, 421)))
    suite = make_suite(script, profile=make_profile(deep=[record]), models=MODELS)
    final = await suite.router.solve(SolveRequest(prompt="1+1", filters=Filters(models=["s"]), effort=3))
    assert final.rounds[0].action.strategy == "sequential"
    votes = {cluster.answer: len(cluster.members) for cluster in final.clusters}
    assert votes["421"] >= 2
    assert sum(votes.values()) == sum(round.completed for round in final.rounds)


async def test_it_is_on_the_frontier_where_nothing_beats_it(make_suite: MakeSuite) -> None:
    suite = make_suite(same(number(421)), profile=make_profile(deep=[deep()]), models=MODELS)
    points = (await suite.router.frontier()).points
    assert "beam" in {point.action.strategy for point in points}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strategy": "prayer"}, "no strategy 'prayer' makes chains in parts"),
        ({"model": "x"}, "x beam: its model has no arm at a temperature"),
        ({"p_right": [0.5]}, "s beam: a curve has not 21 values"),
        ({"p_right": [1.5] * len(GRID)}, "s beam: a probability is not in"),
        ({"times": [0.0] * len(GRID)}, "s beam: what it costs is not positive"),
        ({"times": [float("nan")] * len(GRID)}, "finite number"),
        ({"search": {"width": 0}}, "greater than or equal to 1"),
        ({"surprise": 1}, "Extra inputs"),
        ({"verifier": ""}, "s beam: it needs a verifier"),
        ({"strategy": "tree"}, "s tree: a tree has nodes"),
        ({"votes": {"4": [0.5] * len(GRID)}}, "votes are of one chain each"),
        ({"votes": {"4": [0.5]}}, "a curve has not 21 values"),
    ],
)
def test_a_wrong_record_is_refused(changes: dict[str, Any], said: str) -> None:
    data = copy.deepcopy(record(deep=[deep() | changes]))
    with pytest.raises(ValueError, match=said):
        parse(data)


@pytest.mark.parametrize("tokens", [200, 300, 500, 1025])
async def test_a_budget_that_binds_has_room_for_what_is_put_between(
    make_suite: MakeSuite, tokens: int
) -> None:
    voted = deep("sequential", right=0.9, times=3.0)
    script = listed(*(number(answer) for answer in (1, 2, 3, 4, 5, 6)))
    asked = Filters(models=["s"], strategies=["sequential"])
    for filters, profile in ((Filters(models=["s"]), make_profile(deep=[voted])), (asked, make_profile())):
        suite = make_suite(script, profile=profile, models=MODELS)
        request = SolveRequest(prompt="1+1", budget=Budget(tokens=tokens), filters=filters, effort=3)
        final = await suite.router.solve(request)
        assert final.rounds
        assert final.bill.tokens <= tokens


def test_what_is_expected_to_cost_more_than_is_left_is_not_offered() -> None:
    one = planner(deep("sequential", times=5.0))
    query = make_query(one, budget=Budget(flops=3e7), effort=3)
    state = make_state(one, MIDDLE, left=query.limit)
    assert all(offer.cost.within(query.limit) for offer in one.offers(query, state) if offer.deep)
    assert "sequential" not in {
        offer.strategy for offer in one.offers(query, state) if offer.model.name == "s"
    }


def test_what_is_done_one_after_the_other_takes_its_time() -> None:
    slow = planner(deep("sequential", times=9.0))
    offers = {
        (o.model.name, o.strategy, o.horizon): o
        for o in slow.offers(make_query(slow), make_state(slow, MIDDLE))
    }
    assert offers["s", "sequential", 1].seconds == pytest.approx(
        9 * offers["s", "majority", 1].seconds, rel=0.01
    )


async def test_a_chain_that_has_not_ended_is_no_vote_where_another_has(make_suite: MakeSuite) -> None:
    record = deep(right=0.8, search={"width": 2, "expansion": 1, "depth": 1})
    script = listed(Said("First, we\n", logprobs=(-0.1,)), said(421, -2.0), said(7, -1.0))
    suite = make_suite(script, profile=make_profile(deep=[record]), models=MODELS)
    final = await suite.router.solve(SolveRequest(prompt="1+1", filters=Filters(models=["s"]), effort=1))
    assert final.rounds[0].action.strategy == "beam"
    assert final.answer == "421"


async def test_where_the_verifier_is_away_a_search_is_worth_no_more_than_a_sample(
    make_suite: MakeSuite,
) -> None:
    class Away:
        async def describe(self, request: DescribeVerifiersRequest) -> DescribeVerifiersResponse:
            return DescribeVerifiersResponse(verifiers=[LOGPROB])

        async def score(self, request: ScoreRequest) -> ScoreResponse:
            raise Unavailable("it is down")

    script = listed(*(number(421 + n, logprobs=()) for n in range(40)))
    profile = make_profile(deep=[deep(right=0.95)])
    suite = make_suite(script, profile=profile, models=MODELS, stages={"verification": Away()})
    final = await suite.router.solve(SolveRequest(prompt="1+1", filters=Filters(models=["s"])))
    assert final.rounds[0].action.strategy == "beam"
    assert final.rounds[0].confidence_after < 0.9
    assert "without scores: it is down" in final.reason


def test_scores_that_a_model_cannot_have_are_not_gone_by() -> None:
    bare = [make_model(n, **{**ABLE, "capabilities": Capabilities(prefix=True, steps=True)}) for n in "sml"]
    assert first(make_planner(make_profile(deep=[deep()]), *bare)) != "beam"
    assert first(planner(deep()), filters=Filters(scoring=CHAIN_SCORING_LAST)) != "beam"


def test_searches_of_other_shapes_are_other_choices_where_one_explores() -> None:
    one = planner(
        deep("sequential"), deep("sequential", search={"width": 1, "depth": 4, "tokens": 400}, times=9.0)
    )
    offers = [o for o in one.offers(make_query(one), make_state(one, MIDDLE)) if o.strategy == "sequential"]
    assert len({bought(offer) for offer in offers}) == len(offers) == 2
