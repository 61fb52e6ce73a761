"""Any sequence of what routers do, beside a model: budgets hold, and each round is charged once."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from isoflop.errors import FailedPrecondition
from ledger_parts import DAY, LEASE, WORTH, Clock, answer, budget, entry, round, usage
from sqlalchemy import delete, select

from router.cost import Cost
from router.ledger import Short, TakenOver
from router.ledger.migrate import prepare
from router.ledger.schema import charges, metadata
from router.ledger.sql import SqlLedger
from router.ledger.storage import Storage

T = TypeVar("T")

BUDGETS = [budget("t/day", flops=50, tokens=8), budget("all/week", "week", tokens=20, money=3)]
ROUTERS = ["a", "b", "c"]

routers = st.sampled_from(ROUTERS)
amounts = st.builds(
    lambda flops, money, tokens: Cost(flops * 8.0, money / 8, tokens),
    st.integers(0, 5),
    st.integers(0, 5),
    st.integers(0, 5),
)
"""Exact as doubles."""


@dataclass
class ModelRound:
    """A round as it should be."""

    router: str
    windows: list[tuple[str, float]]
    state: str
    amount: Cost
    """Reserved as long as it runs, charged from then on."""


@dataclass
class ModelQuery:
    """A query as it should be."""

    router: str
    ended: bool = False
    rounds: dict[int, ModelRound] = field(default_factory=dict)


class Routers(RuleBasedStateMachine):
    """Three routers, two of which share what they know."""

    def __init__(self, storage: Storage, runner: asyncio.Runner) -> None:
        super().__init__()
        self.storage, self.runner, self.clock = storage, runner, Clock()
        kept = {"kept_query_days": 1e4, "kept_bill_days": 1e4}
        one, other = (SqlLedger(storage, lambda: WORTH, clock=self.clock, **kept) for _ in range(2))
        self.ledgers = {"a": one, "b": one, "c": other}
        self.queries: list[ModelQuery] = []
        self.leases: dict[str, float] = {}
        self.run(storage.run(_empty))

    def run(self, what: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await what

        return self.runner.run(awaited())

    # What routers do.

    @rule(seconds=st.sampled_from([1.0, LEASE / 2, LEASE / 2, LEASE + 1, LEASE + 1, DAY]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(router=routers)
    def alive(self, router: str) -> None:
        self.run(self.ledgers[router].alive(router, f"host:{router}", LEASE))
        self.leases[router] = self.clock.now + LEASE
        self._bury()

    @rule(router=routers)
    def gone(self, router: str) -> None:
        self.run(self.ledgers[router].gone(router))
        self.leases.pop(router, None)
        self._bury()

    @precondition(lambda self: len(self.queries) < 3)
    @rule(router=routers)
    def begin(self, router: str) -> None:
        query_id = f"q{len(self.queries)}"
        assert self.run(self.ledgers[router].begin(entry(query_id, router=router))) is None
        self.queries.append(ModelQuery(router))

    @precondition(lambda self: self.queries)
    @rule(data=st.data(), index=st.integers(0, 1), worst=amounts, own=st.integers(0, 5))
    def reserve(self, data: Any, index: int, worst: Cost, own: int) -> None:
        number, query = self._query(data)
        router = query.router if own else data.draw(routers)
        call = self.ledgers[router].reserve(f"q{number}", router, index, round(index), worst, BUDGETS)
        if query.router != router or query.ended:
            self._raises(TakenOver, call)
            return
        before = query.rounds.get(index)
        if before and (before.state == "settled" or before.router != router):
            self._raises(FailedPrecondition, call)
            return
        windows = (
            before.windows if before else [(one.name, one.period.start(self.clock.now)) for one in BUDGETS]
        )
        after = ModelRound(router, windows, "reserved", worst)
        query.rounds[index] = after
        if self._within(windows, worst, before):
            self.run(call)
            return
        short: Short = self._raises(Short, call)
        if before:
            query.rounds[index] = before
        else:
            del query.rounds[index]
        assert short.standing.budget in BUDGETS

    @precondition(lambda self: self.queries)
    @rule(data=st.data(), router=routers, index=st.integers(0, 1), cost=amounts)
    def settle(self, data: Any, router: str, index: int, cost: Cost) -> None:
        number, query = self._query(data)
        line = usage(int(cost.tokens), cost.flops, cost.money)
        self.run(self.ledgers[router].settle(f"q{number}", index, round(index), [line], b"x", BUDGETS))
        now = [(one.name, one.period.start(self.clock.now)) for one in BUDGETS]
        windows = query.rounds[index].windows if index in query.rounds else now
        by = query.rounds[index].router if index in query.rounds else query.router
        query.rounds[index] = ModelRound(by, windows, "settled", cost)

    @precondition(lambda self: self.queries)
    @rule(data=st.data(), router=routers)
    def take_over(self, data: Any, router: str) -> None:
        number, query = self._query(data)
        taken = self.run(self.ledgers[router].take_over(f"q{number}", query.router, router))
        assert taken == (not query.ended and not self._lives(query.router))
        if taken:
            query.router = router
            self._lose(query)

    @precondition(lambda self: self.queries)
    @rule(data=st.data(), router=routers, answered=st.booleans())
    def end(self, data: Any, router: str, answered: bool) -> None:
        number, query = self._query(data)
        result = answer(f"q{number}") if answered else None
        call = self.ledgers[router].end(f"q{number}", router, "some", result, BUDGETS)
        if query.router != router:
            self._raises(TakenOver, call)
            return
        self.run(call)
        if not query.ended:
            query.ended = True
            self._lose(query)

    # What holds at any time.

    @invariant()
    def windows_are_as_in_the_model(self) -> None:
        spent, reserved = self._windows()
        for standing in self.run(self.ledgers["a"].standings(BUDGETS)):
            window = standing.budget.name, standing.starts
            assert standing.spent == spent[window]
            assert standing.reserved == reserved[window]

    @invariant()
    def each_round_is_charged_once(self) -> None:
        rows = self.run(self.storage.run(_charged))
        found = {(row["query_id"], row["index"]): row for row in rows}
        assert len(found) == len(rows)
        for number, query in enumerate(self.queries):
            for index, model in query.rounds.items():
                row = found.pop((f"q{number}", index), None)
                assert (row is None) == (model.state == "reserved")
                if row:
                    tokens = row["completion_tokens"] + row["aborted_tokens"]
                    assert Cost(row["flops"], row["money"], tokens) == model.amount
                    assert bool(row["unreconciled"]) == (model.state == "lost")
        assert not found

    # The model.

    def _query(self, data: Any) -> tuple[int, ModelQuery]:
        number = data.draw(st.integers(0, len(self.queries) - 1))
        return number, self.queries[number]

    def _raises(self, kind: type[Exception], call: Awaitable[object]) -> Any:
        with pytest.raises(kind) as raised:
            self.run(call)
        return raised.value

    def _lives(self, router: str) -> bool:
        return self.leases.get(router, 0.0) >= self.clock.now

    def _bury(self) -> None:
        for query in self.queries:
            self._lose(query, lambda one: not self._lives(one.router))

    def _lose(self, query: ModelQuery, which: Callable[[ModelRound], bool] = lambda _: True) -> None:
        for one in query.rounds.values():
            if one.state == "reserved" and which(one):
                one.state = "lost"

    def _windows(self) -> tuple[dict[tuple[str, float], Cost], dict[tuple[str, float], Cost]]:
        """What is spent, and what is reserved, in each."""
        sums = {state: defaultdict(Cost) for state in ("spent", "reserved")}
        for query in self.queries:
            for one in query.rounds.values():
                for window in one.windows:
                    sums["reserved" if one.state == "reserved" else "spent"][window] += one.amount
        return sums["spent"], sums["reserved"]

    def _within(self, windows: list[tuple[str, float]], worst: Cost, before: ModelRound | None) -> bool:
        """Whether what is reserved now has room: what is not more than before has."""
        spent, reserved = self._windows()
        running = before is not None and before.state == "reserved"
        more = worst - (before.amount if before and running else Cost())
        for one, window in zip(BUDGETS, windows, strict=True):
            total = spent[window] + reserved[window]
            for unit in ("flops", "money", "tokens"):
                if getattr(more, unit) > 0 and getattr(total, unit) > getattr(one.limit, unit):
                    return False
        return True


def _empty(transaction: Any) -> None:
    for table in metadata.sorted_tables:
        transaction.write(delete(table), {})


def _charged(transaction: Any) -> Any:
    return transaction.rows(select(charges), {})


def check(url: str | None, examples: int) -> None:
    storage = Storage(url, 1, 60.0)
    prepare(storage, migrates=True)
    with asyncio.Runner() as runner:
        run_state_machine_as_test(
            partial(Routers, storage, runner),
            settings=settings(max_examples=examples, stateful_step_count=50),
        )
        runner.run(storage.close())


def test_any_sequence_in_a_temporary_file() -> None:
    check(None, 60)


def test_any_sequence_on_postgresql(postgres_url: str) -> None:
    check(postgres_url, 10)
