"""Strategies that make chains in parts: the planner chooses them where the profile shows that they pay."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from isoflop.v1.common_pb2 import Capabilities, Thinking
from isoflop.v1.router_pb2 import Filters, SolveRequest
from scripted_stages import Said, listed, number, same
from scripted_suite import MakeSuite
from synthetic import GRID, MIDDLE, make_model, make_planner, make_profile, make_query, make_state, record

from router.planner import Planner
from router.profile import parse
from router.strategies.strategy import Search

ABLE = {
    "capabilities": Capabilities(logprobs=True, prefix=True, steps=True),
    "thinking": Thinking(end="</t>", extend="Wait", close="</t>", answer_tokens=4),
}
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
        ({"strategy": "prayer"}, "there is no strategy 'prayer'"),
        ({"model": "x"}, "x beam: its model has no arm at a temperature"),
        ({"p_right": [0.5]}, "s beam: a curve has not 21 values"),
        ({"p_right": [1.5] * len(GRID)}, "s beam: a probability is not in"),
        ({"times": [0.0] * len(GRID)}, "s beam: what it costs is not positive"),
        ({"times": [float("nan")] * len(GRID)}, "finite number"),
        ({"search": {"width": 0}}, "greater than or equal to 1"),
        ({"surprise": 1}, "Extra inputs"),
        ({"votes": {"4": [0.5] * len(GRID)}}, "votes are of one chain each"),
        ({"votes": {"4": [0.5]}}, "a curve has not 21 values"),
    ],
)
def test_a_wrong_record_is_refused(changes: dict[str, Any], said: str) -> None:
    data = copy.deepcopy(record(deep=[deep() | changes]))
    with pytest.raises(ValueError, match=said):
        parse(data)
