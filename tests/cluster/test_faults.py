"""Each part fails in each way under 32 clients: no query is lost or billed wrongly, and soon all is well."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.faults import RECOVERY_SECONDS, Observed, fail, roll
from tests.cluster.load import Asked
from tests.cluster.parts import Fault, FaultSuite

pytestmark = pytest.mark.cluster

AWAY_SECONDS = 2.0
"""How long a part is killed, slow or without a network."""
SILENT_SECONDS = 6.0
"""How long a part is stopped: longer than any query may take."""
DEADLINE_SECONDS = 5.0
"""Of queries meanwhile."""
OPTIONS = ("--rejoin-seconds", "1", "--deadline-margin-seconds", "1")

EVERY = pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.name.lower())


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultSuite]:
    """One suite for all faults: each leaves it as it was."""
    with FaultSuite(tmp_path_factory.mktemp("faults"), OPTIONS) as suite:
        yield suite


async def provoke(suite: FaultSuite, names: list[str], fault: Fault) -> Observed:
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
    assert not [one for one in seen.ill if one.outcome in ("lost", "INTERNAL")], story(seen.ill)
    assert seen.recovered <= RECOVERY_SECONDS, story(seen.ill)
    assert seen.used <= RECOVERY_SECONDS
    assert not seen.misbilled, "\n".join(seen.misbilled)


def story(ill: list[Asked]) -> str:
    """What became of them, a line each."""
    return "\n" + "\n".join(map(str, ill))


def only(ill: list[Asked], *outcomes: str) -> bool:
    """Whether there are no others."""
    return {one.outcome for one in ill} <= set(outcomes)


@EVERY
async def test_one_of_two_replicas_of_generation_is_missed_by_nobody(
    faults: FaultSuite, fault: Fault
) -> None:
    seen = await provoke(faults, ["generation"], fault)
    assert not seen.ill, story(seen.ill)


@EVERY
async def test_without_generation_queries_are_refused_or_wait(faults: FaultSuite, fault: Fault) -> None:
    seen = await provoke(faults, ["generation", "generation-2"], fault)
    assert only(seen.ill, "UNAVAILABLE", "DEADLINE_EXCEEDED", "abandoned", "degraded")
    assert not any(one.silent for one in seen.ill)


@EVERY
async def test_a_model_whose_server_is_down_leaves_the_frontier(faults: FaultSuite, fault: Fault) -> None:
    seen = await provoke(faults, ["triton"], fault)
    # Who wants that model and no other cannot have an answer.
    others = [one for one in seen.ill if one.kind != "large"]
    if fault is Fault.PAUSE:
        # Nobody knows of a round that has begun whether it will go on: it is waited for until the deadline.
        assert only(others, "abandoned", "degraded"), story(others)
    else:
        assert not others, story(others)
    assert not any(one.silent for one in seen.ill)


@EVERY
async def test_without_verification_the_majority_decides(faults: FaultSuite, fault: Fault) -> None:
    seen = await provoke(faults, ["verification"], fault)
    without(seen, "verif")
    if fault in (Fault.KILL, Fault.RESET):
        assert {one.kind for one in seen.ill} == {"scored", "searched"}


@EVERY
async def test_without_difficulty_the_prior_serves(faults: FaultSuite, fault: Fault) -> None:
    seen = await provoke(faults, ["difficulty"], fault)
    without(seen, "difficulty")
    if fault in (Fault.KILL, Fault.RESET):
        assert seen.ill


@EVERY
async def test_without_aggregation_the_router_does_its_work(faults: FaultSuite, fault: Fault) -> None:
    seen = await provoke(faults, ["aggregation"], fault)
    without(seen, "")


def without(seen: Observed, part: str) -> None:
    """All have answers, and where those are worse than ever they say that it is for want of that part."""
    assert only(seen.ill, "degraded"), story(seen.ill)
    for one in seen.ill:
        assert one.response is not None
        assert one.response.answer, one
        assert one.late or part in one.response.reason, one


@EVERY
async def test_one_of_two_routers_is_missed_by_nobody(faults: FaultSuite, fault: Fault) -> None:
    seen = await provoke(faults, ["router"], fault)
    if fault is Fault.PAUSE:
        # Who waits for one that is stopped hears nothing: the client's own clock ends it.
        assert only(seen.ill, "DEADLINE_EXCEEDED")
    else:
        assert not seen.ill, story(seen.ill)


@EVERY
async def test_without_the_ledger_nothing_is_bought_and_queries_are_refused(
    faults: FaultSuite, fault: Fault
) -> None:
    seen = await provoke(faults, ["postgresql"], fault)
    assert only(seen.ill, "UNAVAILABLE", "degraded", "DEADLINE_EXCEEDED", "abandoned")
    assert not any(one.silent for one in seen.ill)
    if fault is Fault.KILL:
        assert any(one.outcome == "UNAVAILABLE" and "ledger" in str(one.error) for one in seen.ill)


async def test_a_rolling_restart_under_load_fails_no_query(faults: FaultSuite) -> None:
    seen = await roll(faults, ["router", "router-2", "generation", "generation-2"])
    check(seen)
    assert not seen.ill, story(seen.ill)
