"""The router with several profiles: who decides, what is compared, what is told; and a pinned plan."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from isoflop.errors import FailedPrecondition
from isoflop.v1.router_pb2 import (
    PROFILE_ROLE_CANARY,
    PROFILE_ROLE_LIVE,
    PROFILE_ROLE_SHADOW,
    Effort,
    Filters,
    SolveRequest,
)
from prometheus_client import CollectorRegistry
from scripted_stages import number, same
from scripted_suite import MakeSuite, Suite
from synthetic import EASY, EFFORTS, HARD, make_model, make_profile
from test_profiles import put, record

from router.embedded import open_router
from router.profiles import InForce, Loaded
from router.settings import SuiteSettings


def loaded(version: str, *models: str, **changes: Any) -> Loaded:
    return Loaded(make_profile(models or ("s", "m", "l"), version=version, **changes))


async def solve(suite: Suite, **fields: Any) -> Any:
    return await suite.router.solve(SolveRequest(**{"prompt": "17*24+13", **fields}))


async def shadowed(suite: Suite, count: float, **labels: str) -> None:
    """Until so many shadow decisions are counted."""
    for _ in range(2000):
        if suite.metric("shadow_decisions_total", **labels) >= count:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(labels)


async def test_a_share_of_queries_is_decided_by_the_canary_and_a_retry_by_the_same(
    make_suite: MakeSuite,
) -> None:
    both = InForce(loaded("v1"), loaded("v2"), 0.4)
    suite = make_suite(same(number(421)), EASY, profile=both)
    by = {f"r{i}": (await solve(suite, request_id=f"r{i}")).profile for i in range(40)}
    assert by == {key: both.chosen(key).version for key in by}
    assert set(by.values()) == {"v1", "v2"}
    planned = await suite.router.plan(SolveRequest(prompt="1+1", request_id="r3"))
    assert planned.profile == by["r3"]
    # Another router, or this one after its kept results are gone, decides the same.
    other = make_suite(same(number(421)), EASY, profile=both)
    assert (await solve(other, request_id="r7")).profile == by["r7"]
    for version, count in Counter(by.values()).items():
        assert suite.metric("profile_queries_total", version=version, outcome="answered") == count
        assert suite.metric("profile_flops_total", version=version) > 0
        assert suite.metric("profile_confidence_total", version=version) == pytest.approx(count, rel=0.1)
    assert suite.metric("profile_canary_share") == 0.4


async def test_queries_without_an_id_are_shared_out_too(make_suite: MakeSuite) -> None:
    suite = make_suite(same(number(421)), EASY, profile=InForce(loaded("v1"), loaded("v2"), 0.5))
    assert {(await solve(suite)).profile for _ in range(30)} == {"v1", "v2"}


async def test_a_shadow_buys_nothing_and_is_compared(make_suite: MakeSuite) -> None:
    # Of a right answer a thousandth of its worth: it would buy less.
    cheap = loaded("v2", efforts={name: worth / 1000 for name, worth in EFFORTS.items()})
    alone = make_suite(same(number(421)), HARD)
    suite = make_suite(same(number(421)), HARD, profile=InForce(loaded("v1"), shadow=cheap))
    filters = Filters(seed=1)
    effort = Effort.EFFORT_HIGH
    result, other = [await solve(one, effort=effort, filters=filters) for one in (suite, alone)]
    assert result.profile == "v1"
    assert result.bill.flops == other.bill.flops
    assert suite.difficulty.calls == 1
    await shadowed(suite, 1, version="v2", outcome="otherwise")
    first = result.rounds[0].action.expected_flops
    assert suite.metric("shadow_expected_flops_total", version="v2", role="live") >= first
    assert suite.metric("shadow_expected_flops_total", version="v2", role="shadow") < first


async def test_a_shadow_that_is_the_same_would_do_the_same(make_suite: MakeSuite) -> None:
    suite = make_suite(same(number(421)), EASY, profile=InForce(loaded("v1"), shadow=loaded("v2")))
    for _ in range(3):
        await solve(suite)
    await shadowed(suite, 3, version="v2", outcome="same")
    live, shadow = (
        suite.metric("shadow_expected_flops_total", version="v2", role=role) for role in ("live", "shadow")
    )
    assert live == shadow > 0


async def test_a_callers_own_plan_is_not_compared(make_suite: MakeSuite) -> None:
    suite = make_suite(same(number(421)), EASY, profile=InForce(loaded("v1"), shadow=loaded("v2")))
    await solve(suite, filters=Filters(samples=2))
    await solve(suite)
    await shadowed(suite, 1, version="v2", outcome="same")
    assert suite.metric("shadow_decisions_total", version="v2", outcome="same") == 1


async def test_a_shadow_that_is_slow_skips(make_suite: MakeSuite, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = make_suite(
        same(number(421)), EASY, profile=InForce(loaded("v1"), shadow=loaded("v2")), shadow_waiting=1
    )

    async def never(*arguments: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("router.shadow.asyncio.to_thread", never)
    for _ in range(4):
        await solve(suite)
    await shadowed(suite, 2, version="v2", outcome="skipped")  # One is being decided, one waits.
    assert suite.metric("shadow_decisions_total", version="v2", outcome="skipped") == 2


async def test_profiles_are_told_with_their_age_and_faults(make_suite: MakeSuite) -> None:
    suite = make_suite(same(number(421)), EASY)
    assert [one.version for one in (await suite.router.models()).profiles] == ["synthetic-1"]
    old = Loaded(make_profile(version="v3"), modified=1000.0)
    suite.router.adopt(InForce(loaded("v1"), loaded("v2"), 0.5, old, ("v4.json is not JSON",)))
    told = await suite.router.models()
    assert [(one.version, one.role, one.share) for one in told.profiles] == [
        ("v1", PROFILE_ROLE_LIVE, 0),
        ("v2", PROFILE_ROLE_CANARY, 0.5),
        ("v3", PROFILE_ROLE_SHADOW, 0),
    ]
    assert told.profiles[0].age_seconds < 600 < 1e9 < told.profiles[2].age_seconds
    assert list(told.profile_faults) == ["v4.json is not JSON"]
    assert told.profile == "v1"
    assert suite.metric("profile_info", role="shadow", version="v3") == 1
    assert suite.metric("profile_modified_timestamp_seconds", role="shadow", version="v3") == 1000
    assert suite.metric("profile_faults") == suite.metric("profile_errors_total") == 1
    suite.router.adopt(InForce(loaded("v1")))
    assert suite.metric("profile_faults") == 0
    assert suite.metric("profile_errors_total") == 1
    assert (
        suite.registry.get_sample_value("isoflop_router_profile_info", {"role": "shadow", "version": "v3"})
        is None
    )


async def test_a_reload_decides_from_the_next_query_on(make_suite: MakeSuite) -> None:
    suite = make_suite(same(number(421)), EASY, profile=InForce(loaded("v1")))
    assert (await solve(suite)).profile == "v1"
    suite.router.adopt(InForce(loaded("v2", "m")))
    result = await solve(suite)
    assert (result.profile, result.rounds[0].action.model) == ("v2", "m")
    assert (await suite.router.frontier()).profile == "v2"


async def test_a_profile_of_other_models_is_refused_when_it_comes(make_suite: MakeSuite) -> None:
    models = [make_model("s"), make_model("x")]
    suite = make_suite(same(number(421)), EASY, profile=InForce(loaded("v1")), models=models)
    await solve(suite)
    suite.router.adopt(InForce(loaded("v2", "m", "l")))
    assert (await solve(suite)).profile == "v1"
    assert "v2: none of its models (l, m)" in (await suite.router.models()).profile_faults[0]


async def test_one_of_other_models_from_the_start_is_told_once_they_are_known(make_suite: MakeSuite) -> None:
    suite = make_suite(same(number(421)), EASY, models=[make_model("x")])
    assert suite.metric("profile_faults") == 0
    result = await solve(suite)
    assert result.rounds[0].action.model == "x"  # By curves of ignorance.
    assert suite.metric("profile_faults") == 1


async def test_health_tells_of_the_files(make_suite: MakeSuite) -> None:
    suite = make_suite(same(number(421)), EASY)
    told: asyncio.Queue[tuple[str, bool]] = asyncio.Queue()

    async def tell(name: str, well: bool) -> None:
        told.put_nowait((name, well))

    task = asyncio.create_task(suite.router.well(tell))
    name = "isoflop.v1.RouterService.profile"
    assert await told.get() == (name, True)
    suite.router.adopt(InForce(loaded("v1"), faults=("wrong",)))
    assert await told.get() == (name, False)
    suite.router.adopt(InForce(loaded("v1")))
    assert await told.get() == (name, True)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# A pinned plan.


async def test_a_pinned_plan_is_what_all_queries_get_that_name_none(make_suite: MakeSuite) -> None:
    suite = make_suite(same(number(421)), EASY, pin_model="l", pin_samples=3)
    (round,) = (await solve(suite)).rounds
    assert (round.action.model, round.action.samples, round.completed) == ("l", 3, 3)
    assert round.reason.endswith("pinned by the router's settings")
    (round,) = (await solve(suite, filters=Filters(temperature=0))).rounds
    assert (round.action.model, round.action.samples) == ("l", 1)
    for filters in (Filters(models=["s"]), Filters(samples=1, models=["s"]), Filters(strategies=["single"])):
        rounds = (await solve(suite, filters=filters)).rounds
        assert {round.action.model for round in rounds} == {"s"}
        assert "pinned" not in rounds[0].reason


async def test_a_pinned_model_that_is_not_there_is_said(make_suite: MakeSuite) -> None:
    suite = make_suite(same(number(421)), EASY, pin_model="nobody")
    with pytest.raises(FailedPrecondition, match=r"pin_model says 'nobody'.*s, m, l"):
        await solve(suite)
    assert (await solve(suite, filters=Filters(models=["s"]))).answer == "421"
    with pytest.raises(FailedPrecondition, match="pin_model: there is no model 'nobody'"):
        await suite.router.check(strict=False)


# The suite in one process.


async def test_the_embedded_router_follows_its_file(tmp_path: Path) -> None:
    named = {"s": "abacus-s", "m": "abacus-m", "l": "abacus-l"}
    data = record(version="v1")
    for arm in data["arms"]:
        arm["model"] = named[arm["model"]]
    path = put(tmp_path / "profile.json", data)
    settings = SuiteSettings(profile=path, profile_poll_seconds=0.02)
    async with open_router(settings, CollectorRegistry()) as router:

        async def told(version: str, *, good: bool) -> bool:
            for _ in range(1000):
                models = await router.models()
                if models.profile == version and bool(models.profile_faults) != good:
                    return True
                await asyncio.sleep(0.02)
            return False

        assert await told("v1", good=True)
        put(path, "{")
        assert await told("v1", good=False)
        put(path, {**data, "version": "v2"})
        assert await told("v2", good=True)


async def test_a_profile_of_other_models_that_was_named_is_an_error_at_the_start(tmp_path: Path) -> None:
    settings = SuiteSettings(profile=put(tmp_path / "profile.json", record(version="v1")))
    with pytest.raises(
        FailedPrecondition, match="profile v1 has measured l, m, s, and the catalogue has abacus"
    ):
        async with open_router(settings, CollectorRegistry()):
            pass
