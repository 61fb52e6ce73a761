"""Requests are checked before anything is done: each fault names its field."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isoflop.errors import InvalidArgument, NotFound
from isoflop.v1.common_pb2 import Message
from isoflop.v1.router_pb2 import Budget, Filters, Objective, Search, SolveRequest
from synthetic import BOUNDS, make_catalog, relaxed

from router.cost import Cost
from router.query import Query, admit

USER = Message(role="user", content="1+1")
ASSISTANT = Message(role="assistant", content="2")


def admitted(**fields: Any) -> Query:
    prompt = {} if "messages" in fields else {"prompt": "1+1"}
    return admit(SolveRequest(**{**prompt, **fields}), make_catalog(), BOUNDS)


NODES = "filters.search.nodes"

BAD: list[tuple[str, dict[str, Any], str]] = [
    ("empty prompt", {"prompt": ""}, "prompt"),
    ("white space", {"prompt": " \n\t\u3000 "}, "prompt"),
    ("a megabyte", {"prompt": "7" * (1 << 20)}, "prompt"),
    ("one byte too long", {"prompt": "7" * (BOUNDS.prompt_bytes + 1)}, "prompt"),
    ("too long in bytes, not in characters", {"prompt": "é" * (BOUNDS.prompt_bytes // 2 + 1)}, "prompt"),
    ("both prompt and messages", {"prompt": "1+1", "messages": [USER]}, "messages"),
    ("last message not the user's", {"messages": [USER, ASSISTANT]}, "messages"),
    ("last message empty", {"messages": [USER, ASSISTANT, Message(role="user")]}, "messages"),
    ("a role that is none", {"messages": [Message(role="root", content="1"), USER]}, "messages"),
    ("no role", {"messages": [Message(content="1"), USER]}, "messages"),
    ("too many messages", {"messages": [USER] * (BOUNDS.messages + 1)}, "messages"),
    (
        "messages too long together",
        {"messages": [Message(role="user", content="7" * (BOUNDS.prompt_bytes // 2))] * 3},
        "messages",
    ),
    ("samples 0", {"filters": Filters(samples=0)}, "filters.samples"),
    ("samples -1", {"filters": Filters(samples=-1)}, "filters.samples"),
    ("a million samples", {"filters": Filters(samples=1_000_000)}, "filters.samples"),
    ("one sample too many", {"filters": Filters(samples=BOUNDS.samples + 1)}, "filters.samples"),
    ("several of single", {"filters": Filters(samples=2, strategies=["single"])}, "filters.samples"),
    ("thinking tokens 0", {"filters": Filters(thinking_tokens=0)}, "filters.thinking_tokens"),
    ("thinking tokens -5", {"filters": Filters(thinking_tokens=-5)}, "filters.thinking_tokens"),
    ("temperature -1", {"filters": Filters(temperature=-1)}, "filters.temperature"),
    ("temperature NaN", {"filters": Filters(temperature=math.nan)}, "filters.temperature"),
    ("temperature infinite", {"filters": Filters(temperature=math.inf)}, "filters.temperature"),
    ("temperature 11", {"filters": Filters(temperature=11)}, "filters.temperature"),
    ("many greedy samples", {"filters": Filters(temperature=0, samples=4)}, "filters.temperature"),
    (
        "a vote of greedy samples",
        {"filters": Filters(temperature=0, strategies=["majority"])},
        "filters.temperature",
    ),
    ("scoring 9", {"filters": Filters(scoring=9)}, "filters.scoring"),  # type: ignore[arg-type]
    ("votes, weighted", {"filters": Filters(strategies=["majority", "weighted"])}, "filters.strategies"),
    ("best, weighted", {"filters": Filters(strategies=["best_of_n", "weighted"])}, "filters.strategies"),
    ("beam and votes", {"filters": Filters(strategies=["beam", "majority"])}, "filters.strategies"),
    ("beam and best", {"filters": Filters(strategies=["best_of_n", "beam"])}, "filters.strategies"),
    ("samples of a beam", {"filters": Filters(strategies=["beam"], samples=4)}, "filters.samples"),
    ("greedy beam", {"filters": Filters(strategies=["beam"], temperature=0)}, "filters.temperature"),
    ("a search of votes", {"filters": Filters(strategies=["majority"], search=Search())}, "filters.search"),
    ("a search of nothing", {"filters": Filters(search=Search(width=2))}, "filters.search"),
    *(
        (f"{name} -1", {"filters": Filters(strategies=["beam"], search=Search(**{name: -1}))}, field)
        for name in ("width", "expansion", "depth", "nodes")
        for field in [f"filters.search.{name}"]
    ),
    (
        "a beam that is too wide",
        {"filters": Filters(strategies=["beam"], search=Search(width=BOUNDS.samples, expansion=2))},
        "filters.search",
    ),
    (
        "a beam that is too deep",
        {"filters": Filters(strategies=["beam"], search=Search(depth=BOUNDS.depth + 1))},
        "filters.search.depth",
    ),
    ("a tree of no nodes", {"filters": Filters(strategies=["tree"], search=Search(nodes=3))}, NODES),
    (
        "a tree that is too large",
        {"filters": Filters(strategies=["tree"], search=Search(nodes=BOUNDS.nodes + 1))},
        NODES,
    ),
    ("nodes of a beam", {"filters": Filters(strategies=["beam"], search=Search(nodes=64))}, NODES),
    (
        "expansions of one long chain",
        {"filters": Filters(strategies=["sequential"], search=Search(expansion=2))},
        "filters.search.expansion",
    ),
    (
        "greedy long chains",
        {"filters": Filters(strategies=["broad_and_deep"], temperature=0)},
        "filters.temperature",
    ),
    ("repeated how often?", {"filters": Filters(strategies=["repeated"])}, "filters.samples"),
    ("seed -1", {"filters": Filters(seed=-1)}, "filters.seed"),
    ("seed 2^62", {"filters": Filters(seed=1 << 62)}, "filters.seed"),
    ("another currency", {"budget": Budget(money=1, currency="EUR")}, "budget.currency"),
    ("target 1.0", {"objective": Objective(target_accuracy=1.0)}, "objective.target_accuracy"),
    ("target 1.2", {"objective": Objective(target_accuracy=1.2)}, "objective.target_accuracy"),
    ("target NaN", {"objective": Objective(target_accuracy=math.nan)}, "objective.target_accuracy"),
    ("target -0.1", {"objective": Objective(target_accuracy=-0.1)}, "objective.target_accuracy"),
    ("price 0", {"objective": Objective(flops_per_right_answer=0)}, "objective.flops_per_right_answer"),
    ("price -1", {"objective": Objective(flops_per_right_answer=-1)}, "objective.flops_per_right_answer"),
    (
        "price NaN",
        {"objective": Objective(flops_per_right_answer=math.nan)},
        "objective.flops_per_right_answer",
    ),
    (
        "price infinite",
        {"objective": Objective(flops_per_right_answer=math.inf)},
        "objective.flops_per_right_answer",
    ),
    ("most accurate, no budget", {"objective": Objective(most_accurate=True)}, "objective.most_accurate"),
    ("effort 9", {"effort": 9}, "effort"),
    *(
        (f"budget {name} {value}", {"budget": Budget(**{name: value})}, f"budget.{name}")
        for name in ("flops", "money")
        for value in (-1.0, math.nan, math.inf, -math.inf)
    ),
    ("budget tokens -1", {"budget": Budget(tokens=-1)}, "budget.tokens"),
]


@pytest.mark.parametrize(("fields", "field"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_fault_names_its_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        admitted(**fields)
    assert raised.value.field == field
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    ("filters", "known"),
    [
        (Filters(models=["s", "gpt"]), "s, m, l"),
        (Filters(strategies=["majority", "prayer"]), "single, repeated, majority, best_of_n, weighted"),
        (Filters(verifier="oracle"), "logprob"),
    ],
    ids=["model", "strategy", "verifier"],
)
def test_an_unknown_name_is_not_found_and_the_known_ones_are_listed(filters: Filters, known: str) -> None:
    with pytest.raises(NotFound, match=known):
        admitted(filters=filters)


def test_a_plain_prompt_is_a_query_at_medium_effort_without_limits() -> None:
    query = admitted()
    assert query.messages == (USER,)
    assert (query.objective.effort, query.objective.worth, query.objective.target) == ("medium", None, None)
    assert query.limit == Cost(math.inf, math.inf, math.inf)
    assert (query.samples, query.max_tokens, query.temperature) == (0, 0, None)
    assert query.prompt_bytes == 3


def test_a_conversation_is_a_query() -> None:
    messages = [Message(role="system", content="Be brief."), USER, ASSISTANT, USER]
    query = admitted(messages=messages)
    assert list(query.messages) == messages
    assert query.prompt_bytes == 16


def test_the_bounds_themselves_are_allowed() -> None:
    admitted(prompt="7" * BOUNDS.prompt_bytes)
    admitted(messages=[USER] * BOUNDS.messages)
    admitted(filters=Filters(samples=BOUNDS.samples, temperature=10, seed=(1 << 62) - 1, thinking_tokens=1))
    admitted(filters=Filters(samples=1, temperature=0, seed=0))
    admitted(objective=Objective(target_accuracy=0.999), budget=Budget(currency="USD"))


def test_a_name_given_twice_is_one() -> None:
    query = admitted(filters=Filters(models=["s", "s"], strategies=["single", "single"]))
    assert (query.models, query.strategies) == (("s",), ("single",))


def test_each_objective_is_what_was_asked() -> None:
    assert admitted(objective=Objective(target_accuracy=0.9)).objective.target == 0.9
    assert admitted(objective=Objective(flops_per_right_answer=1e9)).objective.worth == 1e9
    accurate = admitted(objective=Objective(most_accurate=True), budget=Budget(tokens=10))
    assert accurate.objective.effort == "most"
    assert accurate.limit == Cost(math.inf, math.inf, 10)


def test_a_seed_is_drawn_where_none_is_given() -> None:
    assert admitted(filters=Filters(seed=7)).seed == 7
    assert len({admitted().seed for _ in range(5)}) > 1


@given(st.text(max_size=50))
@relaxed
def test_any_text_is_admitted_or_refused_by_name(prompt: str) -> None:
    try:
        query = admitted(prompt=prompt)
    except InvalidArgument as error:
        refused = error.field
    else:
        assert query.messages[0].content == prompt
        return
    assert refused == "prompt"


def test_effort_says_how_often_thinking_is_extended_where_no_budget_of_tokens_is_given() -> None:
    def depth(**fields: Any) -> int:
        search = admitted(**fields).search
        assert search is not None
        return search.depth

    plain = Filters(strategies=["sequential"])
    assert [depth(filters=plain, effort=effort) for effort in (0, 1, 2, 3)] == [1, 0, 1, 3]
    assert depth(filters=Filters(strategies=["sequential"], thinking_tokens=100), effort=1) == 4
    assert depth(filters=Filters(strategies=["broad_and_deep"], search=Search(depth=2)), effort=1) == 2


def test_one_long_chain_may_be_greedy() -> None:
    assert admitted(filters=Filters(strategies=["sequential"], temperature=0)).temperature == 0


def test_who_checks_candidates_gets_them() -> None:
    query = admitted(filters=Filters(strategies=["repeated"], samples=8))
    assert (query.samples, query.return_candidates) == (8, True)
