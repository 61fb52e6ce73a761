"""The tally: clusters, order, ties, errors, and what takes for ever."""

from __future__ import annotations

import asyncio
import math
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from isoflop.errors import FailedPrecondition, InvalidArgument
from isoflop.v1 import common_pb2 as common
from isoflop.v1.aggregation_pb2 import (
    SELECTION_BEST,
    SELECTION_SUM,
    AggregateRequest,
    AggregateResponse,
    BlankReason,
    Candidate,
    Cluster,
    Selection,
)
from prometheus_client import CollectorRegistry

from services.aggregation.core import Aggregation
from services.aggregation.settings import AggregationSettings
from services.aggregation.stability import stability

NUMBER, EXPRESSION = common.ANSWER_TYPE_NUMBER, common.ANSWER_TYPE_EXPRESSION


def request(
    texts: list[str],
    kind: common.AnswerType.ValueType = NUMBER,
    *,
    weights: list[float] | None = None,
    logprobs: list[float | None] | None = None,
    selection: Selection.ValueType = SELECTION_SUM,
    pattern: str = "",
    clusters: list[Cluster] | None = None,
    first: int = 0,
) -> AggregateRequest:
    return AggregateRequest(
        format=common.AnswerFormat(type=kind, pattern=pattern),
        selection=selection,
        clusters=clusters or [],
        candidates=[
            Candidate(
                id=f"m/{first + i}",
                text=text,
                weight=weights[i] if weights else 1.0,
                logprob=logprobs[i] if logprobs else None,
            )
            for i, text in enumerate(texts)
        ],
    )


def blanks(response: AggregateResponse) -> dict[str, str]:
    """Why each blank is one."""
    return {b.id: BlankReason.Name(b.reason).removeprefix("BLANK_REASON_") for b in response.blanks}


def groups(response: AggregateResponse) -> list[list[str]]:
    return [list(cluster.members) for cluster in response.clusters]


async def test_a_vote(aggregation: Aggregation) -> None:
    response = await aggregation.aggregate(
        request(["answer: 421", "answer: 7", r"\boxed{421.0}", "$421$", "no idea", "1/2", r"\frac12"])
    )
    assert [(c.answer, c.weight) for c in response.clusters] == [("421", 3), ("0.5", 2), ("7", 1)]
    assert groups(response) == [["m/0", "m/2", "m/3"], ["m/5", "m/6"], ["m/1"]]
    assert blanks(response) == {"m/4": "NO_ANSWER"}
    assert not response.tie
    assert response.stability == pytest.approx(stability(3, 2))


async def test_the_request_is_left_as_it_is(aggregation: Aggregation) -> None:
    first = await aggregation.aggregate(request(["1", "2"]))
    asked = request(["1", "3"], clusters=list(first.clusters), first=2)
    before = asked.SerializeToString(deterministic=True)
    response = await aggregation.aggregate(asked)
    assert asked.SerializeToString(deterministic=True) == before
    assert groups(response) == [["m/0", "m/2"], ["m/1"], ["m/3"]]


async def test_nothing(aggregation: Aggregation) -> None:
    assert await aggregation.aggregate(AggregateRequest()) == AggregateResponse()
    response = await aggregation.aggregate(request(["", " ", "hm"]))
    assert blanks(response) == dict.fromkeys(["m/0", "m/1", "m/2"], "NO_ANSWER")
    assert not response.clusters
    assert response.stability == 0.0


async def test_weights_choose_by_sum_or_by_best(aggregation: Aggregation) -> None:
    texts, weights = ["1", "1", "2", "3"], [0.5, 0.5, 0.9, 0.0]
    by_sum = await aggregation.aggregate(request(texts, weights=weights))
    assert [c.answer for c in by_sum.clusters] == ["1", "2", "3"]
    assert by_sum.stability == pytest.approx(stability(1.0, 0.9))
    by_best = await aggregation.aggregate(request(texts, weights=weights, selection=SELECTION_BEST))
    assert [c.answer for c in by_best.clusters] == ["2", "1", "3"]
    assert by_best.stability == pytest.approx(stability(0.9, 1.0))
    assert by_best.clusters[0].best_member == "m/2"
    assert by_best.clusters[2].weight == 0.0


async def test_ties(aggregation: Aggregation) -> None:
    async def leader(logprobs: list[float | None], **more: list[float]) -> tuple[str, bool]:
        response = await aggregation.aggregate(request(["1", "2"], logprobs=logprobs, **more))  # type: ignore[arg-type]
        return response.clusters[0].answer, response.tie

    assert await leader([None, None]) == ("1", True)
    assert await leader([-2.0, -1.0]) == ("2", True)
    assert await leader([None, -9.0]) == ("2", True)
    assert await leader([-1.0, -2.0]) == ("1", True)
    assert await leader([-1.0, -2.0], weights=[1.0, 1.5]) == ("2", False)
    # Two votes of a half beat one of one.
    response = await aggregation.aggregate(request(["1", "2", "2"], weights=[1.0, 0.5, 0.5]))
    assert response.clusters[0].answer == "2"
    assert not response.tie


async def test_best_member_and_logprob(aggregation: Aggregation) -> None:
    response = await aggregation.aggregate(
        request(["1"] * 4, weights=[0.2, 0.9, 0.9, 0.1], logprobs=[-3.0, None, -5.0, -1.0])
    )
    (cluster,) = response.clusters
    assert (cluster.best_member, cluster.best_weight, cluster.logprob) == ("m/1", 0.9, -1.0)
    assert cluster.weight == pytest.approx(2.1)


async def test_other_types(aggregation: Aggregation) -> None:
    choice = await aggregation.aggregate(request(["(B)", "answer: b", "C."], common.ANSWER_TYPE_CHOICE))
    assert groups(choice) == [["m/0", "m/1"], ["m/2"]]
    text = await aggregation.aggregate(request(["Yes  Sir", "yes sir", "no"], common.ANSWER_TYPE_TEXT))
    assert groups(text) == [["m/0", "m/1"], ["m/2"]]
    code = await aggregation.aggregate(
        request(["```\nx\n```", "so:\n```py\nx  \n```", "x"], common.ANSWER_TYPE_CODE)
    )
    assert groups(code) == [["m/0", "m/1"]]
    assert blanks(code) == {"m/2": "NO_ANSWER"}


async def test_expressions(aggregation: Aggregation) -> None:
    texts = [
        r"\boxed{\frac{\sqrt{3}}{3}}", r"\boxed{\frac{1}{\sqrt3}}", r"\boxed{x+1}", r"answer: $1+x$",
        r"\boxed{\text{Navin}}", r"\boxed{\text{Nivan}}", "0.5", r"\frac12", r"\frac13", r"\boxed{(1,2)}",
        r"\boxed{(2,1)}", r"\boxed{y=2x+3}", r"\boxed{y = 3 + 2x}",
        "x**2 - x**10", r"x^{2} - x^{10}", "9**9", "9", "x=5/7", r"\boxed{\frac57}", "x+y=0", "0",
    ]  # fmt: skip
    response = await aggregation.aggregate(request(texts, EXPRESSION))
    assert sorted(groups(response)) == sorted(
        [["m/0", "m/1"], ["m/2", "m/3"], ["m/4"], ["m/5"], ["m/6", "m/7"], ["m/8"], ["m/9"], ["m/10"],
         ["m/11", "m/12"], ["m/13", "m/14"], ["m/15"], ["m/16"],
         ["m/17", "m/18"], ["m/19"], ["m/20"]]
    )  # fmt: skip
    again = await aggregation.aggregate(
        request(texts, EXPRESSION, clusters=list(response.clusters), first=len(texts))
    )
    assert sorted(c.weight for c in again.clusters) == sorted(2 * c.weight for c in response.clusters)


async def test_bases(aggregation: Aggregation) -> None:
    """A base that is left out is not another one; two bases are two numbers."""
    texts = ["52_8", "52_{8}", "52_9", "42", r"\boxed{52_{\text{eight}}}", "52", "53"]
    response = await aggregation.aggregate(request([f"answer: {text}" for text in texts], EXPRESSION))
    assert groups(response) == [["m/0", "m/1", "m/4", "m/5"], ["m/2"], ["m/3"], ["m/6"]]


def count(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return registry.get_sample_value(f"isoflop_aggregation_{name}_total", labels) or 0.0


@pytest.mark.parametrize("tower", ["9^{9^{9^{9}}}", "9**9**9**9", "9^9^9^9"])
async def test_an_expression_that_takes_for_ever(aggregation: Aggregation, tower: str) -> None:
    response = await aggregation.aggregate(request([rf"\boxed{{{tower}}}", "3", "3"], EXPRESSION))
    assert groups(response) == [["m/1", "m/2"], ["m/0"]]
    # What is no LaTeX, as of powers that are not in braces, is decided: different.
    assert list(response.undecided) == (["m/0"] if "{" in tower else [])
    # The process is replaced, and the next comparison works.
    response = await aggregation.aggregate(request([r"\boxed{a+b}", r"\boxed{b+a}"], EXPRESSION))
    assert groups(response) == [["m/0", "m/1"]]


async def test_the_timed_out_are_counted(aggregation: Aggregation, registry: CollectorRegistry) -> None:
    before = count(registry, "tasks", kind="comparison", outcome="timed_out")
    asked = request([r"\boxed{8^{9^{9^{9}}}}", "3"], EXPRESSION)
    response = await aggregation.aggregate(asked)
    # The comparison, and the reading of the tower.
    assert count(registry, "tasks", kind="comparison", outcome="timed_out") == before + 2
    assert list(response.undecided) == ["m/0"], "the tower is to blame, not what it was compared with"
    # Remembered: the tower is not waited for again, whatever it is compared with.
    await aggregation.aggregate(request([r"\boxed{8^{9^{9^{9}}}}", "5", r"\boxed{a+1}"], EXPRESSION))
    await aggregation.aggregate(asked)
    assert count(registry, "tasks", kind="comparison", outcome="timed_out") == before + 2


async def test_patterns(aggregation: Aggregation, registry: CollectorRegistry) -> None:
    kind = common.ANSWER_TYPE_PATTERN
    response = await aggregation.aggregate(
        request(["v=1 v= 2 ", "v=2", "none", "v=", "v=1"], kind, pattern=r"v=([^v\n]*)")
    )
    assert groups(response) == [["m/0", "m/1"], ["m/4"]]
    assert blanks(response) == {"m/2": "NO_ANSWER", "m/3": "NO_ANSWER"}
    before = count(registry, "tasks", kind="pattern", outcome="timed_out")
    response = await aggregation.aggregate(
        request(["aaa", "a" * 60 + "b", "aa"], kind, pattern=r"^(?:(a+)+)$")
    )
    assert groups(response) == [["m/0"], ["m/2"]]
    assert blanks(response) == {"m/1": "PATTERN_LIMIT"}
    # All at once, then the one that is to blame.
    assert count(registry, "tasks", kind="pattern", outcome="timed_out") == before + 2


async def test_a_request_has_a_time_limit() -> None:
    core = Aggregation(AggregationSettings(task_seconds=600, request_seconds=10), CollectorRegistry())
    try:
        texts = ["a" * 60 + "b"] * 20
        response = await core.aggregate(request(texts, common.ANSWER_TYPE_PATTERN, pattern="^(?:(a+)+)$"))
        assert list(blanks(response).values()) == ["PATTERN_LIMIT"] * 20
    finally:
        await core.close()


async def test_long_texts(registry: CollectorRegistry) -> None:
    core = Aggregation(AggregationSettings(max_text_chars=1 << 20), registry := CollectorRegistry())
    megabyte = "x" * ((1 << 20) - 20)
    response = await core.aggregate(
        request([megabyte + "\nanswer: 5", megabyte * 2, "answer: 5", "\\boxed{" + megabyte])
    )
    assert groups(response) == [["m/0", "m/2"]]
    assert blanks(response) == {"m/1": "TOO_LONG", "m/3": "NO_ANSWER"}
    assert count(registry, "candidates", outcome="too_long") == 1
    assert count(registry, "candidates", outcome="no_answer") == 1
    assert count(registry, "candidates", outcome="voted") == 2


async def test_an_answer_that_is_too_long(registry: CollectorRegistry) -> None:
    core = Aggregation(AggregationSettings(max_answer_chars=10), CollectorRegistry())
    response = await core.aggregate(
        request(["x" * 10, "x" * 11, "x" * 10, "y" * 1_000_000], common.ANSWER_TYPE_TEXT)
    )
    assert groups(response) == [["m/0", "m/2"]]
    assert blanks(response) == {"m/1": "TOO_LONG", "m/3": "TOO_LONG"}
    again = request([], common.ANSWER_TYPE_TEXT, clusters=response.clusters)
    again.clusters[0].answer += "x"
    with pytest.raises(InvalidArgument, match="at most 10 characters"):
        await core.aggregate(again)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    "wrong",
    [{"weight": NAN}, {"weight": INF}, {"weight": -INF}, {"weight": -0.1}, {"weight": 2e9}, {"logprob": NAN},
     {"logprob": INF}],
)  # fmt: skip
async def test_a_weight_that_is_no_number(aggregation: Aggregation, wrong: dict[str, float]) -> None:
    asked = request(["1", "2", "2", "1"], weights=[1.0, 1.0, 1.0, 0.5])
    asked.candidates.insert(1, Candidate(**{"id": "bad", "text": "1", "weight": 1.0} | wrong))  # type: ignore[arg-type]
    response = await aggregation.aggregate(asked)
    assert blanks(response) == {"bad": "BAD_WEIGHT"}
    assert [(c.answer, c.weight, len(c.members)) for c in response.clusters] == [("2", 2.0, 2), ("1", 1.5, 2)]
    assert math.isfinite(response.stability)


async def test_every_kind_of_bad_candidate_beside_good_ones(aggregation: Aggregation) -> None:
    asked = request(
        ["v=1", "no", "a" * 40 + "b", "v=2", "v=1", "x" * (1 << 20) + "y", "v=1"],
        common.ANSWER_TYPE_PATTERN,
        pattern=r"^(?:a+)+$|v=(\d)",
        weights=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, NAN],
    )
    response = await aggregation.aggregate(asked)
    assert groups(response) == [["m/0", "m/4"], ["m/3"]]
    assert blanks(response) == {
        "m/1": "NO_ANSWER", "m/2": "PATTERN_LIMIT", "m/5": "TOO_LONG", "m/6": "BAD_WEIGHT",
    }  # fmt: skip


async def test_a_hostile_pattern_holds_up_nobody(aggregation: Aggregation) -> None:
    """It would take ten minutes of the only process; the honest ones have their answers meanwhile."""
    kind = common.ANSWER_TYPE_PATTERN
    core = Aggregation(AggregationSettings(task_seconds=0.6, request_seconds=600), CollectorRegistry())
    texts = ["a" * 60 + "b" * i for i in range(1, 1001)]
    hostile = asyncio.create_task(core.aggregate(request(texts, kind, pattern="^(?:(a+)+)$")))
    try:
        for number in range(3):
            response = await core.aggregate(request(["v=1", "v=1", "v=2"], kind, pattern=f"v=({number}|\\d)"))
            assert groups(response) == [["m/0", "m/1"], ["m/2"]]
            assert not hostile.done()
    finally:
        hostile.cancel()
        await asyncio.gather(hostile, return_exceptions=True)
        await core.close()


async def test_hostile_expressions_hold_up_nobody() -> None:
    core = Aggregation(AggregationSettings(task_seconds=5, request_seconds=600), CollectorRegistry())
    towers = [rf"\boxed{{9^{{9^{{9^{{{i}}}}}}}+x}}" for i in range(9, 209)]
    hostile = asyncio.create_task(core.aggregate(request(["3", *towers], EXPRESSION)))
    try:
        response = await core.aggregate(request([r"\boxed{a+b}", r"\boxed{b+a}"], EXPRESSION))
        assert groups(response) == [["m/0", "m/1"]]
        assert not hostile.done()
    finally:
        hostile.cancel()
        await asyncio.gather(hostile, return_exceptions=True)
        await core.close()


async def test_a_pattern_that_takes_for_ever_to_compile(aggregation: Aggregation) -> None:
    """Forty seconds, and once in the event loop. It is known the second time."""
    slow = "(?i)(" + "[^\u0100-\ufff0]" * 140 + ")"
    for _ in range(2):
        with pytest.raises(InvalidArgument, match="too long to be compiled") as caught:
            await aggregation.aggregate(request(["1"], common.ANSWER_TYPE_PATTERN, pattern=slow))
        assert caught.value.field == "format.pattern"


CLUSTER = {"answer": "1", "members": ["m/9"], "weight": 1.0, "best_weight": 1.0, "best_member": "m/9"}


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (request(["1"], common.ANSWER_TYPE_PATTERN), "format.pattern"),
        (request(["1"], common.ANSWER_TYPE_PATTERN, pattern="("), "format.pattern"),
        (request(["1"], common.ANSWER_TYPE_PATTERN, pattern="a"), "format.pattern"),
        (request(["1"], common.ANSWER_TYPE_PATTERN, pattern="(a)(b)"), "format.pattern"),
        (request(["1"], common.ANSWER_TYPE_PATTERN, pattern="(" * 900), "format.pattern"),
        (request(["1"], common.ANSWER_TYPE_PATTERN, pattern="(a)" + "b" * 2000), "format.pattern"),
        (request(["1"], NUMBER, pattern="(a)"), "format.pattern"),
        (request(["1"], 99), "format.type"),  # type: ignore[arg-type]
        (request(["1"], selection=99), "selection"),  # type: ignore[arg-type]
        (request(["1"] * 1025), "candidates"),
        (request(["1"], clusters=[Cluster(**CLUSTER)] * 4097), "clusters"),  # type: ignore[arg-type]
        (request(["1"], clusters=[Cluster(**CLUSTER | {"weight": NAN})]), "clusters[0].weight"),  # type: ignore[arg-type]
        (request(["1"], clusters=[Cluster(**CLUSTER | {"logprob": NAN})]), "clusters[0].logprob"),  # type: ignore[arg-type]
        (request(["1"], clusters=[Cluster(**CLUSTER | {"members": []})]), "clusters[0].members"),  # type: ignore[arg-type]
        (request(["1"], clusters=[Cluster(**CLUSTER)], first=9), "candidates[0].id"),  # type: ignore[arg-type]
        (AggregateRequest(candidates=[Candidate(text="1", weight=1.0)]), "candidates[0].id"),
    ],
)  # fmt: skip
async def test_bad_requests(aggregation: Aggregation, asked: AggregateRequest, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await aggregation.aggregate(asked)
    assert caught.value.field == field


async def test_without_the_extra() -> None:
    core = Aggregation(AggregationSettings(), CollectorRegistry())
    with patch("services.aggregation.equivalence.find_spec", return_value=None):
        with pytest.raises(FailedPrecondition, match=r"install isoflop-suite\[math\]"):
            await core.aggregate(request([r"\boxed{x+1}", r"\boxed{1+x}"], EXPRESSION))
        # What needs no mathematics works.
        assert len((await core.aggregate(request(["1/2", "0.5"], EXPRESSION))).clusters) == 1
    await core.close()


VOTES = st.lists(
    st.tuples(
        st.sampled_from(["answer: 1", "answer: 1.0", "1/2", "0.5", r"\boxed{7}", "7", "no", "", "3 apples"]),
        st.floats(0, 1),
    ),
    max_size=30,
)
QUICK = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
CORE = Aggregation(AggregationSettings(), CollectorRegistry())


def tallied(asked: AggregateRequest) -> AggregateResponse:
    """By a loop of its own: hypothesis knows no asyncio, and numbers need no process."""
    return asyncio.run(CORE.aggregate(asked))


def summary(response: AggregateResponse) -> dict[str, tuple[set[str], float, float]]:
    return {c.answer: (set(c.members), round(c.weight, 9), c.best_weight) for c in response.clusters}


@QUICK
@given(VOTES, st.integers(0, 30))
def test_in_parts_as_at_once(votes: list[tuple[str, float]], cut: int) -> None:
    texts, weights = [t for t, _ in votes], [w for _, w in votes]
    once = tallied(request(texts, weights=weights))
    part = tallied(request(texts[:cut], weights=weights[:cut]))
    rest = tallied(
        request(texts[cut:], weights=weights[cut:], clusters=list(part.clusters), first=len(texts[:cut]))
    )
    assert summary(rest) == summary(once)
    assert blanks(part) | blanks(rest) == blanks(once)
    assert rest.tie == once.tie
    assert rest.stability == pytest.approx(once.stability)
    if once.clusters and not once.tie:
        assert rest.clusters[0].answer == once.clusters[0].answer


@QUICK
@given(VOTES, st.lists(st.integers(1, 8), max_size=8), st.randoms())
def test_in_any_order_and_any_parts(votes: list[tuple[str, float]], sizes: list[int], random: object) -> None:
    asked = request([t for t, _ in votes], weights=[w for _, w in votes])
    once = tallied(asked)
    candidates = list(asked.candidates)
    random.shuffle(candidates)  # type: ignore[attr-defined]
    refused: dict[str, str] = {}
    clusters: list[Cluster] = []
    for size in [*sizes, len(candidates)]:
        part = AggregateRequest(format=asked.format, clusters=clusters, candidates=candidates[:size])
        candidates = candidates[size:]
        response = tallied(part)
        refused |= blanks(response)
        clusters = list(response.clusters)
    assert summary(response) == summary(once)
    assert refused == blanks(once)
    assert sum(c.weight for c in clusters) == pytest.approx(
        sum(w for i, (_, w) in enumerate(votes) if f"m/{i}" not in refused)
    )


@QUICK
@given(VOTES, st.randoms())
def test_order_of_candidates_does_not_matter(votes: list[tuple[str, float]], random: object) -> None:
    asked = request([t for t, _ in votes], weights=[w for _, w in votes])
    mixed = AggregateRequest(format=asked.format)
    candidates = list(asked.candidates)
    random.shuffle(candidates)  # type: ignore[attr-defined]
    mixed.candidates.extend(candidates)
    one, other = tallied(asked), tallied(mixed)
    assert summary(one) == summary(other)
    assert blanks(one) == blanks(other)
    # Sums of floats differ in the last digit with their order.
    assert one.stability == pytest.approx(other.stability)


@QUICK
@given(VOTES, st.sampled_from([SELECTION_SUM, SELECTION_BEST]))
def test_each_candidate_is_somewhere_once(
    votes: list[tuple[str, float]], selection: Selection.ValueType
) -> None:
    asked = request([t for t, _ in votes], weights=[w for _, w in votes], selection=selection)
    response = tallied(asked)
    somewhere = [*blanks(response), *(member for c in response.clusters for member in c.members)]
    assert sorted(somewhere) == sorted(c.id for c in asked.candidates)
    weights = {c.id: c.weight for c in asked.candidates}
    for cluster in response.clusters:
        assert cluster.weight == pytest.approx(sum(weights[m] for m in cluster.members))
        assert cluster.best_weight == max(weights[m] for m in cluster.members) == weights[cluster.best_member]
    ranks = [
        (c.best_weight if selection == SELECTION_BEST else c.weight, len(c.members))
        for c in response.clusters
    ]
    assert ranks == sorted(ranks, reverse=True)
    assert response.tie == (len(ranks) > 1 and ranks[0] == ranks[1])
    assert 0.0 <= response.stability <= 1.0
