"""What a ledger could not take while it was down is written down when it is back, once and in order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from isoflop.errors import Unavailable
from ledger_parts import answer, budget, entry, round, usage
from prometheus_client import CollectorRegistry

from router.cost import Cost
from router.ledger.journal import Journal
from router.ledger.sql import SqlLedger
from router.metrics_ledger import LedgerMetrics

DAILY = budget(tokens=100)


class Outage:
    """A ledger that may be down; where it is `deaf`, it does what it is told and cannot say so."""

    def __init__(self, ledger: SqlLedger) -> None:
        self._ledger = ledger
        self.down = self.deaf = False

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        work = getattr(self._ledger, name)

        async def call(*arguments: Any) -> Any:
            if self.down:
                raise Unavailable("down")
            done = await work(*arguments)
            if self.deaf:
                raise Unavailable("down")
            return done

        return call


def journal(ledger: SqlLedger, *, go_on: bool = False) -> tuple[Journal, Outage]:
    outage = Outage(ledger)
    metrics = LedgerMetrics(CollectorRegistry())
    return Journal(outage, metrics, go_on=go_on), outage  # type: ignore[arg-type]


async def reserve(to: Journal, index: int = 0, tokens: int = 40) -> Any:
    return await to.reserve("q", "r", index, round(index), Cost(tokens=tokens), [DAILY])


async def settle(to: Journal, index: int = 0, tokens: int = 30) -> Any:
    return await to.settle("q", index, round(index), [usage(tokens)], b"", [DAILY])


async def tokens(ledger: SqlLedger) -> tuple[float, float]:
    """Spent and reserved."""
    (standing,) = await ledger.standings([DAILY])
    return standing.spent.tokens, standing.reserved.tokens


@pytest.mark.parametrize("way", ["down", "deaf"])
async def test_what_runs_is_settled_later_and_once(ledger: SqlLedger, way: str) -> None:
    to, outage = journal(ledger)
    await to.alive("r", "host:1", 10.0)
    assert await to.begin(entry()) is None
    await reserve(to)
    setattr(outage, way, True)
    # As it was told last.
    (before,) = await settle(to)
    assert (before.spent.tokens, before.reserved.tokens) == (0, 40)
    await to.end("q", "r", "answered", answer(), [DAILY])
    with pytest.raises(Unavailable):
        await to.replay()
    assert to.waiting == 2
    setattr(outage, way, False)
    await to.alive("r", "host:1", 10.0)
    assert to.waiting == 0
    assert await tokens(ledger) == (30, 0)
    kept = await ledger.get("q")
    assert kept is not None
    assert (kept.outcome, [one.unreconciled for one in kept.rounds]) == ("answered", [False])
    # Nothing waits: what comes now is done at once.
    await to.close()


async def test_nothing_is_bought_while_it_is_down(ledger: SqlLedger) -> None:
    to, outage = journal(ledger)
    await to.begin(entry())
    outage.down = True
    with pytest.raises(Unavailable, match="nothing is bought"):
        await reserve(to)
    with pytest.raises(Unavailable):
        await to.begin(entry("other"))
    with pytest.raises(Unavailable):
        await to.standings([DAILY])
    assert to.waiting == 0


async def test_a_reservation_of_which_nobody_knows_is_free_once_it_is_settled(ledger: SqlLedger) -> None:
    to, outage = journal(ledger)
    await to.begin(entry())
    outage.deaf = True
    with pytest.raises(Unavailable):
        await reserve(to)
    await to.settle("q", 0, round(0), [], b"", [DAILY])
    outage.deaf = False
    await to.replay()
    assert await tokens(ledger) == (0, 0)


async def test_a_retry_that_was_not_known_as_one_is_on_the_bill_all_the_same(ledger: SqlLedger) -> None:
    to, outage = journal(ledger, go_on=True)
    assert await to.begin(entry(request_id="same")) is None
    outage.down = True
    assert await to.begin(entry("again", request_id="same")) is None
    await to.reserve("again", "r", 0, round(), Cost(tokens=40), [DAILY])
    await to.settle("again", 0, round(), [usage(30)], b"", [DAILY])
    await to.end("again", "r", "answered", answer("again"), [DAILY])
    outage.down = False
    await to.replay()
    kept = await ledger.get("again")
    assert kept is not None
    assert (kept.outcome, kept.entry.request_id) == ("answered", "")
    first = await ledger.get("q")
    assert first is not None
    assert first.entry.request_id == "same"
    assert await tokens(ledger) == (30, 0)


async def test_by_setting_queries_go_on_and_are_written_down_budget_or_not(ledger: SqlLedger) -> None:
    to, outage = journal(ledger, go_on=True)
    await to.standings([DAILY])
    outage.down = True
    assert (await to.standings([DAILY]))[0].budget == DAILY
    assert await to.begin(entry()) is None
    await to.estimated("q", [usage(1)], [DAILY])
    for index in range(4):
        await reserve(to, index)
        await settle(to, index, 40)
    await to.end("q", "r", "answered", answer(), [DAILY])
    outage.down = False
    await to.replay()
    assert await tokens(ledger) == (161, 0)
    kept = await ledger.get("q")
    assert kept is not None
    assert [one.settled for one in kept.rounds] == [True] * 4
