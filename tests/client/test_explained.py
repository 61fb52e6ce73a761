"""What is told of a query's bill, and why it is so."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from isoflop import explained
from isoflop.text import Style, aligned
from isoflop.v1.difficulty_pb2 import ModelOutlook
from isoflop.v1.router_pb2 import GetQueryResponse, Savings, Status
from ran import words
from scripted_answers import ABANDONED, KEPT, LOST_ROUND, ROUND, RUNNING, SOLVED

PLAIN = Style()
NOW = datetime(2026, 11, 2, 14, 5, tzinfo=UTC)


def explain(response: GetQueryResponse, width: float = 100, style: Style = PLAIN) -> list[str]:
    return explained.query(response, "q1", style, NOW, width).splitlines()


def changed(response: GetQueryResponse = KEPT, **fields: object) -> GetQueryResponse:
    """A copy with other values, or, for None, without."""
    made = GetQueryResponse()
    made.CopyFrom(response)
    for field, value in fields.items():
        made.ClearField(field)  # type: ignore[arg-type]
        if value is not None:
            made.MergeFrom(GetQueryResponse(**{field: value}))  # type: ignore[arg-type]
    return made


def fact(lines: list[str], name: str) -> str:
    """What is said under a name, the first time; on how many lines ever."""
    at = next(at for at, line in enumerate(lines) if line.strip().startswith(f"{name} "))
    margin = len(lines[0]) - len(lines[0].removeprefix("query").lstrip())
    told = [lines[at][margin:]]
    for line in lines[at + 1 :]:
        if line[:margin].strip() or not line:
            break
        told.append(line.strip())
    return " ".join(told)


def test_who_asked_what_came_why_and_what_it_cost() -> None:
    lines = explain(KEPT)
    assert [words(line) for line in lines] == [
        "query q1",
        "outcome answered",
        "asked by acme, tier gold",
        "request r1",
        "began 2026-11-02 14:04:54 UTC, took 1.32 s",
        "answer 421, 97% sure",
        "difficulty -0.40 ± 0.80",
        "profile p1",
        "seed 9007199254740993",
        "",
        "round 1 abacus-s × majority × 4, temperature 0.7",
        "why most worth its price",
        "planned 93% right, 250 MFLOPs",
        "came 3 samples to the end, 1 aborted; 40% to 97% sure; 550 MFLOPs, 2.2 times the plan",
        "",
        "round 2 abacus-l × single × 1, greedy",
        "why it is worth more; drawn at random, to learn what it brings: the platform's expense",
        "planned 98% right, 800 MFLOPs",
        "came lost: its router died, and nobody knows what it took. It is charged at the most that it",
        "may have cost, 2.40 GFLOPs, and marked unreconciled",
        "",
        "stopped 3 of 3 agree",
        "spared 1 sample, 50.0 MFLOPs by ending early",
        "",
        "stage model strategy calls prompt cached completion aborted FLOPs money",
        "difficulty features-1 1 0 0 0 0 1.20 k 0 USD",
        "generation abacus-s majority 4 9 27 60 5 550 M 1.5e-06 USD",
        "aborted 5 20.0 M 1e-07 USD",
        "generation abacus-l single 1 0 0 0 512 2.40 G 1.3e-05 USD",
        "aborted 512 2.40 G 1.3e-05 USD",
        "total 586 tokens, 2.95 GFLOPs (2.42 GFLOPs aborted), 1.45e-05 USD",
        "of it unreconciled 2.40 GFLOPs, 1.3e-05 USD",
    ]
    assert max(map(len, lines)) <= 100
    assert not any(line != line.rstrip() for line in lines)


def test_the_bill_adds_up_what_is_of_one_stage_model_and_strategy() -> None:
    twice = changed(charges=[*KEPT.charges[:2], *KEPT.charges[1:2]])
    lines = [words(line) for line in explain(twice)]
    assert "generation abacus-s majority 8 18 54 120 10 1.10 G 3e-06 USD" in lines
    assert "aborted 10 40.0 M 2e-07 USD" in lines
    # What is of the same round is its cost, too.
    assert "1.10 GFLOPs, 4.4 times the plan" in fact(explain(twice), "came")


def test_without_charges_it_is_the_bill_of_the_answer() -> None:
    """As of a router that keeps no ledger."""
    lines = explain(GetQueryResponse(result=SOLVED, rounds=[ROUND]))
    assert fact(lines, "outcome") == "answered"
    assert "210 MFLOPs, 0.84 times the plan" in fact(lines, "came")
    assert lines[-1] == "total  74 tokens, 210 MFLOPs (16.0 MFLOPs aborted), 1.5e-06 USD"
    assert not any(line.startswith(("asked by", "began")) for line in lines)


def test_a_query_that_runs() -> None:
    running = changed(running=True, result=None, ended=None, outcome=None, charges=KEPT.charges[:2])
    lines = explain(running)
    assert fact(lines, "outcome") == "running"
    assert fact(lines, "began") == "2026-11-02 14:04:54 UTC, took 6 s so far"
    assert words(next(line for line in reversed(lines) if "came" in line)) == "came it still runs"
    assert "stopped" not in "\n".join(lines)
    assert explain(RUNNING)[:2] == ["query      q1", "outcome    running"]


@pytest.mark.parametrize(
    ("outcome", "said", "colour"),
    [
        ("answered", "answered", 32),
        ("abandoned", "abandoned", 33),
        ("degraded", "degraded", 33),
        ("cancelled", "cancelled", 31),
        ("failed_resource_exhausted", "failed: resource exhausted", 31),
    ],
)
def test_outcomes(outcome: str, said: str, colour: int) -> None:
    ended = changed(outcome=outcome, result=None)
    assert fact(explain(ended), "outcome") == said
    assert f"\x1b[{colour}m{said}\x1b[0m" in explain(ended, style=Style(colour=True))[1]


def test_a_failed_query_has_its_charges_all_the_same() -> None:
    failed = changed(outcome="failed_unavailable", result=None, rounds=[ROUND, LOST_ROUND])
    failed.charges.pop()
    lines = explain(failed)
    assert (
        words(next(line for line in reversed(lines) if "came" in line)) == "came nothing, and it cost nothing"
    )
    assert lines[-1].startswith("total  74 tokens, 550 MFLOPs")


def test_an_abandoned_query_says_what_giving_up_spared() -> None:
    given_up = changed(result=ABANDONED, outcome="abandoned")
    given_up.result.savings.MergeFrom(Savings(abandoned_flops=3e9))
    spared = "3.00 GFLOPs by giving up, against the fixed plan that is best over all queries"
    assert fact(explain(given_up), "spared") == spared
    assert fact(explain(given_up), "answer") == "7, 0% sure"
    without = changed(result=None, outcome="")
    without.result.status = Status.STATUS_DEGRADED
    assert fact(explain(without), "outcome") == "degraded"
    assert fact(explain(without), "answer") == "(none), 0% sure"


def test_what_was_believed_of_the_models() -> None:
    believed = changed()
    believed.result.difficulty.outlooks.extend(
        [ModelOutlook(model="abacus-s", p_right=0.08), ModelOutlook(model="abacus-l", p_right=0.35)]
    )
    expected = "-0.40 ± 0.80; one sample is right: abacus-s 8%, abacus-l 35%"
    assert fact(explain(believed), "difficulty") == expected


def test_only_what_is_far_from_the_plan_stands_out() -> None:
    style = Style(colour=True)
    assert "\x1b[33m2.2 times the plan\x1b[0m" in "\n".join(explain(KEPT, style=style))
    near = changed(rounds=[ROUND], charges=None)
    assert "\x1b[33m" not in "\n".join(explain(near, style=style))


def test_what_others_wrote_cannot_steer_the_terminal() -> None:
    steering = changed(tenant="a\x1b[2J", request_id="r\n2", outcome="x\x07", tier="\x1b[31mgold")
    steering.result.answer = "4\x1b[2J2" * 40
    steering.rounds[0].reason = "\x1b[2J"
    steering.result.reason = "\x1b[2J"
    text = "\n".join(explain(steering))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert fact(explain(steering), "request") == "r 2"
    assert len(fact(explain(steering), "answer")) < 80


def test_a_clock_that_is_behind() -> None:
    late = changed(running=True, ended=None, began=Timestamp(seconds=1793638294))
    assert fact(explain(late), "began").endswith("took 0 s so far")


@given(st.lists(st.text("abc ", max_size=30)), st.integers(20, 60), st.booleans())
def test_facts_fit_where_words_allow_and_lose_none(texts: list[str], width: int, coloured: bool) -> None:
    style = Style(colour=coloured)
    painted = [" ".join(style.tinted(word, 31) for word in text.split()) for text in texts]
    lines = aligned([("name", text) for text in painted], style, width)
    plain = [line.replace("\x1b[31m", "").replace("\x1b[2m", "").replace("\x1b[0m", "") for line in lines]
    longest = max((len(word) for text in texts for word in text.split()), default=0)
    assert all(len(line) <= max(width, 6 + longest) for line in plain)
    assert " ".join(plain).split() == " ".join(f"name {text}" for text in texts).split()
