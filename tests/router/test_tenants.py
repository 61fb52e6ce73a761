"""Tenants: what the file may say, whom a name finds, and what becomes of a file that is no good."""

from __future__ import annotations

import asyncio
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from isoflop.errors import PermissionDenied, Unauthenticated
from synthetic import relaxed

from router.cost import Cost
from router.following import following
from router.ledger import Budget
from router.period import Period
from router.settings import RouterSettings
from router.tenants import MOST_BUDGETS, Contents, File, Tenant, Tenants, TenantsError, load

EXAMPLE = Path(__file__).parents[2] / "examples" / "tenants.yaml"
INF = math.inf


def contents(**fields: Any) -> dict[str, Any]:
    """One tenant of one tier, and what is given."""
    return {"tiers": [{"name": "gold"}], "tenants": [{"name": "search", "tier": "gold"}], **fields}


def one(**limits: Any) -> dict[str, Any]:
    return contents(tenants=[{"name": "search", "tier": "gold", **limits}])


def put(path: Path, data: dict[str, Any] | str) -> Path:
    """As the README says: beside its place, and renamed."""
    beside = path.with_suffix(".new")
    beside.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return beside.replace(path)


def look_twice(file: File) -> Tenants | None:
    """The second look finds the file as the first did."""
    assert file.look() is None
    return file.look()


# What a file says.


def test_the_example_says_what_its_comments_say() -> None:
    found = load(EXAMPLE)
    everybodys = Budget("all/day", "", Period("day"), Cost(1e18, INF, INF))
    assert found.tiers == ("gold", "silver", "batch")
    assert found.find("search") == Tenant(
        "search",
        "gold",
        0,
        (
            Budget("search/hour", "search", Period("hour"), Cost(INF, INF, 2e6)),
            Budget("search/day", "search", Period("day"), Cost(1e15, INF, INF)),
            Budget("search/month", "search", Period("month"), Cost(INF, 500.0, INF)),
            everybodys,
        ),
        per_second=20.0,
        burst=40.0,
        concurrent=64,
    )
    homework = found.find("homework")
    assert (homework.rank, homework.explore, homework.per_second) == (1, True, INF)
    assert homework.budgets[0].limit == Cost(2e14, INF, 5e7)
    assert found.find("nightly") == Tenant("nightly", "batch", 2, (everybodys,), concurrent=16)
    stranger = found.find("whoever")
    assert (stranger.name, stranger.tier, stranger.rank, stranger.per_second) == ("default", "batch", 2, 1)
    assert found.find("") is stranger
    assert [budget.name for budget in found.budgets] == [
        "all/day",
        "search/hour",
        "search/day",
        "search/month",
        "homework/day",
    ]


def test_what_readme_shows_is_a_tenants_file(tmp_path: Path) -> None:
    (shown,) = re.findall(
        r"```yaml\n(tiers:.*?)```", (EXAMPLE.parents[1] / "README.md").read_text(), re.DOTALL
    )
    found = load(put(tmp_path / "tenants.yaml", shown))
    assert found.find("search").budgets[0].limit == Cost(1e15, INF, 5e7)
    assert found.find("stranger").concurrent == 4


def test_without_a_file_everybody_is_one_tenant_without_limits() -> None:
    found = Tenants.open()
    assert found.find("") == found.find("search") == Tenant("default", "default", 0, explore=True)
    assert found.tiers == ("default",)
    assert not found.budgets


def test_without_a_file_there_may_be_a_budget_of_all() -> None:
    found = Tenants.open(1e15, 3600.0)
    assert found.budgets == (Budget("all", "", Period("3600.0"), Cost(1e15, INF, INF)),)
    assert found.find("search").budgets == found.budgets


def test_without_a_default_strangers_are_refused() -> None:
    found = Tenants.of(Contents.model_validate(contents()))
    assert found.find("search").name == "search"
    with pytest.raises(Unauthenticated, match="isoflop-tenant"):
        found.find("")
    with pytest.raises(PermissionDenied, match="'default'"):
        found.find("default")
    with pytest.raises(PermissionDenied) as caught:
        found.find("x" * 1000)
    assert "x" * 64 in str(caught.value)
    assert "x" * 65 not in str(caught.value)


names = st.from_regex(r"[a-z0-9._-]{1,64}", fullmatch=True).filter(
    lambda name: name not in ("default", "all")
)
amounts = st.floats(1.0, 2.0**53)
budgets = st.lists(
    st.dictionaries(st.sampled_from(("flops", "money", "tokens")), amounts, min_size=1), max_size=4
).map(
    lambda limits: [
        {"period": period, **limit}
        for period, limit in zip(("hour", "day", "week", "month"), limits, strict=False)
    ]
)


@relaxed
@given(
    st.lists(names, min_size=1, max_size=8, unique=True), st.dictionaries(names, budgets), budgets, st.data()
)
def test_every_tenant_is_found_with_its_tier_its_own_budgets_and_those_of_all(
    tiers: list[str],
    tenants: dict[str, list[dict[str, Any]]],
    everybodys: list[dict[str, Any]],
    data: st.DataObject,
) -> None:
    tier_of = {name: data.draw(st.sampled_from(tiers)) for name in tenants}
    found = Tenants.of(
        Contents.model_validate(
            {
                "tiers": [{"name": tier} for tier in tiers],
                "all": {"budgets": everybodys},
                "tenants": [
                    {"name": name, "tier": tier_of[name], "budgets": own} for name, own in tenants.items()
                ],
            }
        )
    )
    assert found.tiers == tuple(tiers)
    for name, own in tenants.items():
        tenant = found.find(name)
        assert (tenant.name, tiers[tenant.rank]) == (name, tier_of[name])
        assert len(tenant.budgets) == len(own) + len(everybodys)
        assert {budget.tenant for budget in tenant.budgets[: len(own)]} <= {name}
        assert {budget.tenant for budget in tenant.budgets[len(own) :]} <= {""}
        assert set(tenant.budgets) <= set(found.budgets)
    all_names = [budget.name for budget in found.budgets]
    assert len(set(all_names)) == len(all_names) == len(everybodys) + sum(map(len, tenants.values()))


DAILY = {"period": "day", "flops": 1e15}

NOT_GOOD: dict[str, tuple[dict[str, Any] | str, str]] = {
    "empty": ("", "as a whole"),
    "not YAML": ("tenants: [", "not YAML"),
    "not UTF-8": ("\udcff", "not YAML"),
    "nested without end": ("[" * 10_000, "nested too deep"),
    "no tiers": (contents(tiers=[]), "tiers"),
    "too many tiers": (contents(tiers=[{"name": f"t{i}"} for i in range(9)]), "tiers"),
    "a tier twice": (contents(tiers=[{"name": "gold"}] * 2), "two are called gold"),
    "a tier without a place": (one(tier="golden"), "search: there is no tier golden; there are gold"),
    "the default's tier without a place": (contents(default={"tier": "lead"}), "default: there is no tier"),
    "a tenant twice": (contents(tenants=[{"name": "a", "tier": "gold"}] * 2), "two are called a"),
    "a tenant called default": (contents(tenants=[{"name": "default", "tier": "gold"}]), "called default"),
    "a tenant called all": (contents(tenants=[{"name": "all", "tier": "gold"}]), "called all"),
    "a name in capitals": (contents(tenants=[{"name": "Search", "tier": "gold"}]), "tenants.0.name"),
    "a name of two lines": (contents(tenants=[{"name": "a\n", "tier": "gold"}]), "tenants.0.name"),
    "a name that is a number": (contents(tenants=[{"name": 7, "tier": "gold"}]), "tenants.0.name"),
    "a name that is too long": (contents(tenants=[{"name": "a" * 65, "tier": "gold"}]), "tenants.0.name"),
    "an unknown key": (one(colour="red"), "tenants.0.colour"),
    "no tenants": ({"tiers": [{"name": "gold"}]}, "tenants"),
    "a budget of nothing": (one(budgets=[{"period": "day"}]), "give flops, money or tokens"),
    "a budget of a year": (one(budgets=[{"period": "year", "flops": 1e15}]), "hour, day, week, month"),
    "two budgets of a day": (one(budgets=[DAILY, {"period": "day", "money": 5}]), "two are of a day"),
    "two budgets of all for a day": (contents(all={"budgets": [DAILY, DAILY]}), "all.budgets"),
    "negative FLOPs": (one(budgets=[{"period": "day", "flops": -1}]), "tenants.0.budgets.0.flops"),
    "no money": (one(budgets=[{"period": "day", "money": 0}]), "tenants.0.budgets.0.money"),
    "infinite tokens": (one(budgets=[{"period": "day", "tokens": INF}]), "tenants.0.budgets.0.tokens"),
    "tokens without number": (one(budgets=[{"period": "day", "tokens": math.nan}]), "budgets.0.tokens"),
    "a rate of nothing": (one(rate={"per_second": 0, "burst": 1}), "tenants.0.rate.per_second"),
    "an infinite rate": (one(rate={"per_second": INF, "burst": 1}), "tenants.0.rate.per_second"),
    "a burst of nothing": (one(rate={"per_second": 1, "burst": 0.5}), "tenants.0.rate.burst"),
    "a rate without a burst": (one(rate={"per_second": 1}), "tenants.0.rate.burst"),
    "nothing concurrent": (one(concurrent=0), "tenants.0.concurrent"),
    "too many budgets": (
        contents(
            tenants=[{"name": f"t{i}", "tier": "gold", "budgets": [DAILY]} for i in range(MOST_BUDGETS + 1)]
        ),
        "201 budgets: 200",
    ),
}


@pytest.mark.parametrize("name", NOT_GOOD)
def test_a_file_that_is_no_good_is_one_line_that_says_where(tmp_path: Path, name: str) -> None:
    data, where = NOT_GOOD[name]
    path = tmp_path / "tenants.yaml"
    text = data if isinstance(data, str) else yaml.safe_dump(data)
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(TenantsError, match=where) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TenantsError, match=r"none\.yaml: No such file"):
        File(tmp_path / "none.yaml").read()


def test_the_file_is_where_the_setting_says_and_then_says_the_budget_of_all() -> None:
    assert RouterSettings(tenants=EXAMPLE).tenants == EXAMPLE
    with pytest.raises(ValueError, match="budget_flops is for routers without tenants"):
        RouterSettings(tenants=EXAMPLE, budget_flops=1e12)


# A file that changes.


def test_who_is_removed_is_refused_and_who_is_added_is_found(tmp_path: Path) -> None:
    file = File(put(tmp_path / "tenants.yaml", contents()))
    assert file.read().find("search")
    assert file.look() is None
    put(file.path, contents(tenants=[{"name": "find", "tier": "gold"}]))
    found = look_twice(file)
    assert found
    assert found.find("find").tier == "gold"
    with pytest.raises(PermissionDenied):
        found.find("search")
    assert file.look() is None


def test_what_is_no_good_changes_nothing_and_is_told_once(tmp_path: Path) -> None:
    file = File(put(tmp_path / "tenants.yaml", contents()))
    good = file.read()
    for number in (1, 2):
        put(file.path, one(tier=f"no-{number}"))
        found = look_twice(file)
        assert found
        assert found.named is good.named
        (fault,) = found.faults
        assert f"no-{number}" in fault
        assert file.look() is None
    file.path.unlink()
    found = look_twice(file)
    assert found
    assert found.find("search")
    assert "No such file" in found.faults[0]
    put(file.path, contents())
    found = look_twice(file)
    assert found
    assert not found.faults


def test_a_file_that_is_being_written_is_not_read_yet(tmp_path: Path) -> None:
    path = put(tmp_path / "tenants.yaml", contents())
    file = File(path)
    file.read()
    whole = yaml.safe_dump(contents(default={"tier": "gold"}))
    # Each half is one of its own: without the default, strangers would be refused.
    for end in (len(whole) // 2, len(whole)):
        path.write_text(whole[:end])
        os.utime(path, ns=(end, end))
        assert file.look() is None
    found = file.look()
    assert found
    assert found.find("stranger").name == "default"


async def test_a_file_is_followed(tmp_path: Path) -> None:
    file = File(put(tmp_path / "tenants.yaml", contents()))
    file.read()
    seen: asyncio.Queue[Tenants] = asyncio.Queue()
    async with following(file, 0.01, seen.put_nowait):
        put(file.path, "tenants: [")
        assert (await asyncio.wait_for(seen.get(), 10)).faults
        put(file.path, contents(default={"tier": "gold"}))
        assert (await asyncio.wait_for(seen.get(), 10)).find("").name == "default"
