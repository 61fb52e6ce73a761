"""The bill adds up, and a round that was reserved surely fits in what is left."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isoflop.errors import FailedPrecondition
from isoflop.v1.common_pb2 import (
    STAGE_DIFFICULTY,
    STAGE_GENERATION,
    STAGE_VERIFICATION,
    Bill,
    Draft,
    Model,
    Price,
    Shape,
    Usage,
)
from isoflop.v1.difficulty_pb2 import Difficulty, EstimateResponse
from isoflop.v1.generation_pb2 import RoundUsage
from isoflop.v1.verification_pb2 import ChainScore, ScoreResponse, Verifier
from synthetic import make_model, relaxed

from router.cost import Allowance, Cost, Meter, longest, samples
from services.common.flops import attended, with_attention, without_attention

UNLIMITED = Cost(math.inf, math.inf, math.inf)
tokens = st.integers(0, 5000)


@st.composite
def usages(draw: st.DrawFn) -> RoundUsage:
    names = [field.name for field in RoundUsage.DESCRIPTOR.fields]
    return RoundUsage(**{name: draw(tokens) for name in names})


@st.composite
def models(draw: st.DrawFn) -> Model:
    shape = Shape(
        active_parameters=draw(st.integers(1, 10**6)),
        layers=draw(st.integers(0, 8)),
        heads=4,
        head_size=draw(st.sampled_from([8, 64])),
        window=draw(st.sampled_from([0, 0, 16, 100])),
    )
    return make_model(draw(st.sampled_from("sml")), shape=shape, context=draw(st.sampled_from([0, 64, 2048])))


@given(st.lists(st.tuples(models(), st.sampled_from(["single", "majority"]), usages()), max_size=6))
def test_a_bill_is_the_sum_of_its_lines_and_of_what_each_round_cost(
    rounds: list[tuple[Model, str, RoundUsage]],
) -> None:
    meter = Meter("USD")
    costs = [meter.generation(model, strategy, usage) for model, strategy, usage in rounds]
    bill = meter.bill()
    assert bill.flops == pytest.approx(math.fsum(cost.flops for cost in costs))
    assert bill.money == pytest.approx(math.fsum(cost.money for cost in costs))
    assert bill.tokens == sum(cost.tokens for cost in costs)
    for name in ("flops", "flops_without_attention", "money"):
        assert getattr(bill, name) == pytest.approx(math.fsum(getattr(line, name) for line in bill.lines))
    assert bill.tokens == sum(u.prompt_tokens + u.completion_tokens + u.aborted_tokens for _, _, u in rounds)
    for name in (
        *("prompt_tokens", "cached_tokens", "completion_tokens", "aborted_tokens", "unseen_tokens"),
        *("rejected_tokens", "draft_tokens"),
    ):
        assert sum(getattr(line, name) for line in bill.lines) == sum(getattr(u, name) for _, _, u in rounds)
    assert sum(line.calls for line in bill.lines) == sum(u.samples for _, _, u in rounds)


def test_a_bill_has_a_line_for_each_stage_model_and_strategy() -> None:
    meter = Meter("USD")
    usage = RoundUsage(samples=2, prompt_tokens=10, completion_tokens=20)
    for name, strategy in (("s", "majority"), ("m", "majority"), ("s", "best_of_n"), ("s", "majority")):
        meter.generation(make_model(name), strategy, usage)
    scores = ScoreResponse(scores=[ChainScore()] * 2, flops=8)
    scored = meter.verification(Verifier(name="logprob"), "best_of_n", scores)
    estimated = meter.difficulty(EstimateResponse(difficulties=[Difficulty()], estimator="linear", flops=90))
    bill = meter.bill()
    assert [(line.stage, line.model, line.strategy, line.calls) for line in bill.lines] == [
        (STAGE_GENERATION, "s", "majority", 4),
        (STAGE_GENERATION, "m", "majority", 2),
        (STAGE_GENERATION, "s", "best_of_n", 2),
        (STAGE_VERIFICATION, "logprob", "best_of_n", 2),
        (STAGE_DIFFICULTY, "linear", "", 1),
    ]
    assert (scored, estimated) == (Cost(flops=8), Cost(flops=90))
    assert bill.currency == "USD"


@st.composite
def billed(draw: st.DrawFn) -> list[Any]:
    """What is added to a meter: rounds, scores and estimates, as calls of its methods."""
    verifier = Verifier(name="logprob", price=Price(per_million_prompt_tokens=0.3))
    scores = st.builds(
        lambda n, tokens: ScoreResponse(scores=[ChainScore()] * n, tokens=tokens), tokens, tokens
    )
    some = st.one_of(
        st.tuples(st.just("generation"), models(), st.sampled_from(["single", "majority"]), usages()),
        st.tuples(st.just("verification"), st.just(verifier), st.just("weighted"), scores),
        st.tuples(
            st.just("difficulty"),
            st.builds(EstimateResponse, estimator=st.just("linear"), flops=st.floats(0, 1e6)),
        ),
    )
    return draw(st.lists(some, max_size=8))


@given(st.lists(billed(), max_size=4))
@relaxed
def test_bills_that_are_added_up_are_the_bill_of_all(bills: list[list[Any]]) -> None:
    whole, merged = Meter("USD"), Meter("USD")
    for calls in bills:
        own = Meter("USD")
        for name, *arguments in calls:
            getattr(whole, name)(*arguments)
            getattr(own, name)(*arguments)
        lines = own.lines
        merged.add(lines)
        # What was added is not held on to.
        merged.add(Usage(stage=line.stage, model=line.model, strategy=line.strategy) for line in lines)
        assert own.lines == lines
    assert len(merged.lines) == len(whole.lines)
    for line, other in zip(merged.lines, whole.lines, strict=True):
        for field, value in other.ListFields():
            expected = pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
            assert getattr(line, field.name) == expected
    assert merged.bill().flops == pytest.approx(whole.bill().flops, rel=1e-12)


def test_what_aborted_samples_generated_is_told_apart() -> None:
    model, meter = make_model(), Meter("USD")
    usage = RoundUsage(
        prompt_tokens=10,
        aborted_tokens=20,
        context_tokens=465,
        aborted_context_tokens=410,
        completion_tokens=0,
    )
    cost = meter.generation(model, "majority", usage)
    (line,) = meter.lines
    assert line.aborted_flops == with_attention(model.shape, 20, 410)
    assert line.aborted_money == pytest.approx(20 * model.price.per_million_completion_tokens / 1e6)
    prompt = Meter("USD").generation(model, "majority", RoundUsage(prompt_tokens=10, context_tokens=55))
    assert cost.flops - line.aborted_flops == pytest.approx(prompt.flops)
    assert cost.money - line.aborted_money == pytest.approx(prompt.money)


def test_an_empty_bill_is_nothing() -> None:
    assert Meter("EUR").bill() == Bill(currency="EUR")


def test_flops_are_two_for_each_parameter_and_token_and_attention() -> None:
    model = make_model(shape=Shape(active_parameters=1000, layers=2, heads=3, head_size=4))
    usage = RoundUsage(samples=1, prompt_tokens=3, completion_tokens=2, context_tokens=15)
    meter = Meter("USD")
    cost = meter.generation(model, "single", usage)
    assert cost.flops == 2 * 1000 * 5 + 4 * 2 * 3 * 4 * 15
    assert meter.bill().flops_without_attention == 2 * 1000 * 5


def test_aborted_tokens_cost_what_completion_tokens_cost() -> None:
    model = make_model()
    completed = Meter("USD").generation(model, "majority", RoundUsage(completion_tokens=90, context_tokens=9))
    aborted = Meter("USD").generation(model, "majority", RoundUsage(aborted_tokens=90, context_tokens=9))
    assert aborted == completed
    assert completed.flops > 0
    assert completed.money > 0


def test_cached_prompt_tokens_cost_their_price_and_no_flops() -> None:
    cost = Meter("USD").generation(make_model(), "majority", RoundUsage(cached_tokens=1_000_000))
    assert cost == Cost(flops=0.0, money=0.01, tokens=0)


def test_unseen_tokens_are_told_and_not_billed() -> None:
    meter = Meter("USD")
    assert meter.generation(make_model(), "majority", RoundUsage(unseen_tokens=50)) == Cost()
    assert meter.lines[0].unseen_tokens == 50


@given(models(), st.integers(1, 40), st.integers(0, 300), st.integers(1, 500))
@relaxed
def test_what_samples_are_expected_to_cost_is_what_they_are_billed(
    model: Model, count: int, prompt: int, completion: int
) -> None:
    usage = RoundUsage(
        samples=count,
        prompt_tokens=count * prompt,
        completion_tokens=count * completion,
        context_tokens=count * attended(1, prompt + completion, model.shape.window),
    )
    expected, billed = samples(model, count, prompt, completion), Meter("USD").generation(model, "", usage)
    assert expected.flops == pytest.approx(billed.flops)
    assert expected.money == pytest.approx(billed.money)
    assert expected.tokens == billed.tokens


@given(
    models(),
    st.integers(1, 64),
    st.integers(0, 300),
    st.sampled_from([0, 1, 7, 100, 10_000]),
    st.sampled_from(["flops", "money", "tokens"]),
    st.floats(0, 3),
)
@relaxed
def test_the_longest_samples_that_fit_do_fit_and_one_token_more_does_not(
    model: Model, count: int, prompt: int, limit: int, respect: str, share: float
) -> None:
    """In whatever respect is tight: `share` of what samples of 100 tokens cost is left."""
    left = Cost(
        **{
            name: getattr(samples(model, count, prompt, 100), name) * share if name == respect else math.inf
            for name in ("flops", "money", "tokens")
        }
    )
    found = longest(model, count, prompt, limit, left)
    room = model.context - prompt if model.context > prompt else model.context or 1_000_000
    most = min(limit or 1_000_000, room)
    assert 0 <= found <= most
    if found:
        assert samples(model, count, prompt, found).within(left)
    if found < most:
        assert not samples(model, count, prompt, found + 1).within(left)


def test_without_a_budget_samples_may_have_what_the_context_leaves() -> None:
    assert longest(make_model(context=1024), 8, 100, 0, UNLIMITED) == 924
    assert longest(make_model(context=1024), 8, 100, 50, UNLIMITED) == 50
    assert longest(make_model(context=0), 8, 100, 0, UNLIMITED) == 1_000_000


def test_nothing_fits_in_nothing() -> None:
    assert longest(make_model(), 1, 10, 0, Cost()) == 0


amounts = st.floats(0, 100)


@given(
    st.tuples(amounts, amounts, amounts),
    st.lists(st.tuples(st.tuples(amounts, amounts, amounts), st.floats(0, 1)), max_size=20),
)
def test_reservations_never_let_more_be_spent_than_the_limit(
    limit: tuple[float, float, float], rounds: list[tuple[tuple[float, float, float], float]]
) -> None:
    """A round costs at most what was reserved for it; one that does not fit is refused, and costs nothing."""
    allowance = Allowance(Cost(*limit))
    spent = Cost()
    for amount, share in rounds:
        worst = Cost(*amount)
        actual = Cost(*(value * share for value in amount))
        left = allowance.left
        try:
            allowance.reserve(worst)
        except FailedPrecondition:
            assert not worst.within(left)
            assert allowance.left == left
            continue
        assert allowance.reserved.flops >= worst.flops - 1e-9
        allowance.settle(worst, actual)
        spent += actual
        assert allowance.spent == spent
        assert allowance.spent.within(allowance.limit + Cost(1e-9, 1e-9, 1e-9))
        assert abs(allowance.reserved.flops) < 1e-9


def test_two_rounds_cannot_reserve_the_same_room() -> None:
    allowance = Allowance(Cost(10.0, math.inf, math.inf))
    allowance.reserve(Cost(6.0))
    with pytest.raises(FailedPrecondition):
        allowance.reserve(Cost(6.0))
    allowance.settle(Cost(6.0), Cost(1.0))
    allowance.reserve(Cost(6.0))


def test_without_a_limit_everything_fits() -> None:
    allowance = Allowance(UNLIMITED)
    allowance.reserve(Cost(1e30, 1e30, 1e30))
    allowance.settle(Cost(1e30, 1e30, 1e30), Cost(1e29, 1e29, 1e29))
    assert allowance.left == UNLIMITED


PRM = Verifier(
    name="prm",
    shape=Shape(active_parameters=500, layers=1, heads=2, head_size=3),
    price=Price(per_million_prompt_tokens=2, per_million_cached_tokens=1, per_million_completion_tokens=5),
    context=64,
    extra_tokens=4,
    completion_tokens=10,
)


def test_scores_are_billed_by_their_tokens_and_the_verifiers_price() -> None:
    meter = Meter("USD")
    response = ScoreResponse(
        scores=[ChainScore()] * 3,
        tokens=1_000_000,
        cached_tokens=500_000,
        completion_tokens=200_000,
        flops=90,
        flops_without_attention=80,
    )
    cost = meter.verification(PRM, "weighted", response)
    (line,) = meter.bill().lines
    assert (line.stage, line.model, line.strategy, line.calls) == (STAGE_VERIFICATION, "prm", "weighted", 3)
    assert (line.prompt_tokens, line.cached_tokens, line.completion_tokens) == (1_000_000, 500_000, 200_000)
    assert (line.flops, line.flops_without_attention) == (90, 80)
    assert cost == Cost(flops=90, money=2 + 0.5 + 1, tokens=1_200_000)
    assert meter.bill().tokens == 1_200_000


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 9))
def test_the_worst_case_of_a_round_holds_its_scores(prompt: int, completion: int, count: int) -> None:
    model = make_model()
    read = min(prompt + completion + 4, 64)
    context = attended(1, read + 10)
    scores = Cost(
        flops=count * (2 * 500 * (read + 10) + 4 * 6 * context),
        money=count * (read * 2 + 10 * 5) / 1e6,
        tokens=count * (read + 10),
    )
    whole, alone = (samples(model, count, prompt, completion, verifier) for verifier in (PRM, None))
    for name in ("flops", "money", "tokens"):
        assert getattr(whole, name) == pytest.approx(getattr(alone, name) + getattr(scores, name))


def test_scores_that_take_no_tokens_take_a_few_operations_for_each_step() -> None:
    free = Verifier(name="logprob")
    whole, alone = (samples(make_model(), 3, 10, 20, verifier) for verifier in (free, None))
    assert whole == Cost(alone.flops + 3 * 2 * 20, alone.money, alone.tokens)


def test_what_is_left_must_hold_the_scores_too() -> None:
    model, left = make_model(context=1024), Cost(math.inf, math.inf, 500.0)
    alone, scored = longest(model, 2, 10, 0, left), longest(model, 2, 10, 0, left, PRM)
    assert alone == 240
    assert samples(model, 2, 10, scored, PRM).within(left)
    assert not samples(model, 2, 10, scored + 1, PRM).within(left)
    assert scored < alone


def test_drafts_are_in_the_line_of_the_model_that_they_are_for() -> None:
    model, draft = make_model("l"), make_model("s")
    plain = RoundUsage(samples=1, prompt_tokens=10, completion_tokens=20, context_tokens=465)
    drafted = RoundUsage(rejected_tokens=3, draft_tokens=45, draft_context_tokens=700)
    drafted.MergeFrom(plain)
    drafted.context_tokens += 60
    without = Meter("USD").generation(model, "single", plain)
    model.draft.CopyFrom(Draft(shape=draft.shape, tokens=4))
    meter = Meter("USD")
    cost = meter.generation(model, "single", drafted)
    more = with_attention(model.shape, 3, 60) + with_attention(draft.shape, 45, 700)
    assert cost.flops == pytest.approx(without.flops + more)
    assert (cost.money, cost.tokens) == (without.money, without.tokens), "they are no text"
    (line,) = meter.lines
    assert (line.rejected_tokens, line.draft_tokens) == (3, 45)
    assert line.flops_without_attention == pytest.approx(
        without_attention(model.shape, 33) + without_attention(draft.shape, 45)
    )


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 8))
def test_a_worst_case_has_room_for_drafts_that_are_all_rejected(
    prompt: int, completion: int, drafts: int
) -> None:
    model = make_model("l")
    model.draft.CopyFrom(Draft(shape=make_model("s").shape, tokens=drafts))
    usage = RoundUsage(samples=1, prompt_tokens=prompt, completion_tokens=completion)
    end = prompt + completion
    usage.context_tokens = usage.draft_context_tokens = attended(1, end)
    usage.draft_tokens = end
    for position in range(prompt + 1, end):
        # No more are drafted than there may be tokens.
        last = min(position + drafts, end)
        usage.rejected_tokens += last - position
        usage.context_tokens += attended(position + 1, last)
        usage.draft_tokens += 2 * (last - position)
        usage.draft_context_tokens += attended(position + 1, last) + attended(position, last - 1)
    cost = Meter("USD").generation(model, "single", usage)
    assert cost.flops <= samples(model, 1, prompt, completion).flops
