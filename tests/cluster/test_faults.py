"""Each part fails in each way under 32 clients: no query is lost or billed wrongly, and soon all is well."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from tests.cluster.faults import RECOVERY_SECONDS, Observed, fail
from tests.cluster.load import Asked
from tests.cluster.parts import Fault, FaultSuite

pytestmark = pytest.mark.cluster

AWAY_SECONDS = 2.0
"""How long a part is killed, slow or without a network."""
SILENT_SECONDS = 7.0
"""How long a part is stopped: longer than queries may take, and than the lease of a router."""
DEADLINE_SECONDS = 6.0
"""Of queries meanwhile."""
OPTIONS = ("--rejoin-seconds", "1", "--deadline-margin-seconds", "1.5")

GENERATION = ("generation", "generation-2")
HELPERS = ("difficulty", "aggregation")

BROKEN = pytest.mark.parametrize(
    "fault", [Fault.KILL, Fault.SLOW, Fault.RESET], ids=lambda one: one.name.lower()
)


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultSuite]:
    """One suite for all faults: each leaves it as it was."""
    with FaultSuite(tmp_path_factory.mktemp("faults"), OPTIONS) as suite:
        yield suite


async def provoke(suite: FaultSuite, names: Sequence[str], fault: Fault) -> Observed:
    """Let the parts fail, and see that what holds for every fault has held."""
    if fault is Fault.PAUSE:
        seen = await fail(suite, names, fault, SILENT_SECONDS, DEADLINE_SECONDS)
    else:
        seen = await fail(suite, names, fault, AWAY_SECONDS)
    check(seen)
    # Who is killed has forgotten what it counted and billed before.
    killed = set(names) if fault is Fault.KILL else set()
    if not killed & suite.routers.keys():
        assert seen.spent.charged_off == {}
        if not killed & suite.counting.keys():
            assert seen.spent.billed_off == {}
    return seen


def check(seen: Observed) -> None:
    """No query is lost, none is billed wrongly, and soon all is well."""
    only(seen.ill, "degraded", "abandoned", "UNAVAILABLE", "DEADLINE_EXCEEDED")
    assert seen.recovered <= RECOVERY_SECONDS, story(seen.ill)
    assert seen.used <= RECOVERY_SECONDS
    assert not seen.misbilled, "\n".join(seen.misbilled)


def only(ill: Sequence[Asked], *outcomes: str) -> None:
    """There are no others."""
    others = [one for one in ill if one.outcome not in outcomes]
    assert not others, story(others)


def story(asked: Sequence[Asked]) -> str:
    """What became of them, a line each."""
    return "\n" + "\n".join(map(str, asked))


@BROKEN
async def test_one_of_two_replicas_of_generation_is_missed_by_nobody(
    faults: FaultSuite, fault: Fault
) -> None:
    seen = await provoke(faults, ["generation"], fault)
    only(seen.ill)


@BROKEN
async def test_without_generation_queries_are_refused_until_it_is_back(
    faults: FaultSuite, fault: Fault
) -> None:
    seen = await provoke(faults, GENERATION, fault)
    only(seen.ill, "UNAVAILABLE", "degraded")
    if fault is Fault.KILL:
        assert seen.during.outcomes["UNAVAILABLE"] > 0


@BROKEN
async def test_a_model_whose_server_is_down_leaves_the_frontier(faults: FaultSuite, fault: Fault) -> None:
    seen = await provoke(faults, ["triton"], fault)
    # Who wants that model and no other cannot have an answer.
    only([one for one in seen.ill if one.kind != "large"])
    only(seen.ill, "UNAVAILABLE")
    if fault is Fault.KILL:
        assert seen.ill


@BROKEN
async def test_without_verification_the_majority_decides(faults: FaultSuite, fault: Fault) -> None:
    seen = await provoke(faults, ["verification"], fault)
    without(seen, "verif")
    if fault is not Fault.SLOW:
        assert {one.kind for one in seen.ill} == {"scored", "searched"}


@BROKEN
async def test_without_difficulty_and_aggregation_prior_and_router_serve(
    faults: FaultSuite, fault: Fault
) -> None:
    seen = await provoke(faults, HELPERS, fault)
    without(seen, "difficulty")
    if fault is not Fault.SLOW:
        assert seen.ill


def without(seen: Observed, part: str) -> None:
    """All have answers, and who has a worse one is told that it is for want of that part."""
    only(seen.ill, "degraded")
    for one in seen.ill:
        assert one.response is not None
        assert one.response.answer, one
        assert part in one.response.reason, one


@BROKEN
async def test_one_of_two_routers_is_missed_by_nobody(faults: FaultSuite, fault: Fault) -> None:
    seen = await provoke(faults, ["router"], fault)
    only(seen.ill)


@BROKEN
async def test_without_the_ledger_nothing_is_bought_and_queries_are_refused(
    faults: FaultSuite, fault: Fault
) -> None:
    seen = await provoke(faults, ["postgresql"], fault)
    only(seen.ill, "UNAVAILABLE", "degraded")
    if fault is Fault.KILL:
        assert any(one.outcome == "UNAVAILABLE" and "ledger" in str(one.error) for one in seen.ill)


# Generation, PostgreSQL and a router are stopped, and all are restarted in turn, by `make bench-faults`.
@pytest.mark.parametrize("parts", [("triton",), ("verification",), HELPERS], ids=" and ".join)
async def test_who_waits_for_a_part_that_is_stopped_hears_of_it_in_time(
    faults: FaultSuite, parts: Sequence[str]
) -> None:
    seen = await provoke(faults, parts, Fault.PAUSE)
    assert not seen.during.silent, story([one for one in seen.ill if one.silent])
