"""Who asks, and how much each may: tenants with their tier, budgets and limits, as a YAML file says.

    tiers:                      # by urgency: the first is served first
      - name: gold
      - name: batch
    all:                        # budgets of everybody together
      budgets: [{period: day, flops: 1e18}]
    tenants:
      - name: search
        tier: gold
        budgets:
          - {period: day, flops: 1e15}
          - {period: month, money: 500}
        rate: {per_second: 20, burst: 40}
        concurrent: 64
        explore: true
    default: {tier: batch}      # who names no tenant, or an unknown one; without it they are refused

Budgets hold for all routers that share a ledger; rate and concurrency are each router's own. The file may
change while the router runs; what is no good in it changes nothing. Who says that it is a tenant is taken to
be it: callers bring no proof yet.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from isoflop.errors import PermissionDenied, Unauthenticated
from isoflop.request import TENANT
from pydantic import AfterValidator, Field, model_validator

from router.cost import Cost
from router.following import Mark, mark
from router.ledger import Budget
from router.period import DAY, NAMES, Period
from services.common.catalog import LARGEST, CatalogError, Entry, read

MOST_TIERS = 8
MOST_BUDGETS = 200
"""Of all tenants together: each is a label of metrics."""
MOST_TOKENS = 2.0**53
"""In a budget: so many are counted exactly."""

DEFAULT = "default"
"""Name of the tenant that callers are who name none, or an unknown one."""
ALL = "all"
"""What budgets of everybody are named after."""


class TenantsError(Exception):
    """The tenants' file is not usable; `str(error)` says where and why."""


Name = Annotated[str, Field(pattern=r"^[a-z0-9._-]{1,64}$")]


def _period(name: str) -> str:
    if name not in NAMES:
        raise ValueError(f"is none of {', '.join(NAMES)}")
    return name


class BudgetEntry(Entry):
    """What may be spent in each calendar window; at least one of the three."""

    period: Annotated[str, AfterValidator(_period)]
    """hour, day, week (from Monday) or month, in UTC."""
    flops: float | None = Field(default=None, ge=1)
    """FLOPs."""
    money: float | None = Field(default=None, gt=0)
    """In the catalogue's currency."""
    tokens: float | None = Field(default=None, ge=1, le=MOST_TOKENS)
    """Prompt and generated tokens."""

    @model_validator(mode="after")
    def _limits_something(self) -> BudgetEntry:
        if self.flops is self.money is self.tokens is None:
            raise ValueError("give flops, money or tokens")
        return self

    def budget(self, tenant: str) -> Budget:
        """As the ledger has it; an empty tenant is everybody."""
        limits = (math.inf if limit is None else limit for limit in (self.flops, self.money, self.tokens))
        return Budget(f"{tenant or ALL}/{self.period}", tenant, Period(self.period), Cost(*limits))


def _once_each(budgets: tuple[BudgetEntry, ...]) -> tuple[BudgetEntry, ...]:
    if twice := _twice(budget.period for budget in budgets):
        raise ValueError(f"two are of a {twice}: make them one, with flops, money and tokens")
    return budgets


Budgets = Annotated[tuple[BudgetEntry, ...], AfterValidator(_once_each)]


class RateEntry(Entry):
    """How fast queries may come, at each router."""

    per_second: float = Field(gt=0)
    """Queries a second, for as long as they come."""
    burst: float = Field(ge=1)
    """Queries at once, after a pause that was long enough."""


class LimitsEntry(Entry):
    """How much a tenant may ask."""

    tier: Name
    """One of the tiers."""
    budgets: Budgets = ()
    """All of them bind, and those of all."""
    rate: RateEntry | None = None
    """None: there is no limit."""
    concurrent: int | None = Field(default=None, ge=1, le=LARGEST)
    """Queries that may run or wait at the same time, at each router; None: there is no limit."""
    explore: bool = False
    """Its queries may be explored: see `router.explore`."""


class TenantEntry(LimitsEntry):
    """One tenant."""

    name: Name
    """What callers say."""


class TierEntry(Entry):
    """Tenants that are equally urgent."""

    name: Name
    """A label of metrics."""


class AllEntry(Entry):
    """What holds for everybody together."""

    budgets: Budgets = ()
    """Of all tenants."""


class Contents(Entry):
    """What the file says."""

    tiers: tuple[TierEntry, ...] = Field(min_length=1, max_length=MOST_TIERS)
    """By urgency: the first is served first."""
    all: AllEntry = AllEntry()
    """Budgets of everybody together."""
    tenants: tuple[TenantEntry, ...]
    """Who may ask."""
    default: LimitsEntry | None = None
    """Callers who name no tenant, or an unknown one, together; None: they are refused."""

    @model_validator(mode="after")
    def _hangs_together(self) -> Contents:
        tiers = [tier.name for tier in self.tiers]
        if twice := _twice(tiers):
            raise ValueError(f"tiers: two are called {twice}")
        if twice := _twice(tenant.name for tenant in self.tenants):
            raise ValueError(f"tenants: two are called {twice}")
        named = {tenant.name: tenant for tenant in self.tenants}
        for name in (DEFAULT, ALL):
            if name in named:
                raise ValueError(f"tenants: none can be called {name}: that is an entry of its own")
        for name, limits in [*named.items(), *([(DEFAULT, self.default)] if self.default else [])]:
            if limits.tier not in tiers:
                raise ValueError(f"{name}: there is no tier {limits.tier}; there are {', '.join(tiers)}")
        count = len(self.all.budgets) + sum(len(one.budgets) for one in (*self.tenants, self.default) if one)
        if count > MOST_BUDGETS:
            raise ValueError(f"{count} budgets: {MOST_BUDGETS} can be told apart")
        return self


def _twice(names: Iterable[str]) -> str:
    return next((name for name, count in Counter(names).items() if count > 1), "")


@dataclass(frozen=True)
class Tenant:
    """Who asks, and how much it may."""

    name: str
    tier: str
    rank: int
    """Of the tier: 0 is served first."""
    budgets: tuple[Budget, ...] = ()
    """That its queries are paid from: its own, and those of all."""
    per_second: float = math.inf
    """Queries a second at one router, for as long as they come; infinite where there is no limit."""
    burst: float = math.inf
    """Queries at once at one router, after a pause; infinite where there is no limit."""
    concurrent: float = math.inf
    """Queries at the same time at one router; infinite where there is no limit."""
    explore: bool = False
    """Its queries may be explored."""


@dataclass(frozen=True)
class Tenants:
    """Everybody who may ask."""

    tiers: tuple[str, ...]
    """Names by rank."""
    named: Mapping[str, Tenant]
    """By name."""
    default: Tenant | None
    """Who names none of them; None: they are refused."""
    budgets: tuple[Budget, ...] = ()
    """All that there are, those of everybody first."""
    faults: tuple[str, ...] = field(default=(), kw_only=True)
    """What is wrong with the file now, each a sentence; what was good before is in force in spite of it."""

    @classmethod
    def open(cls, flops: float | None = None, seconds: float = DAY) -> Tenants:
        """Without a file: everybody is one tenant, and explored as the router's setting says. No limits, but
        so many FLOPs of all queries in each window of so many seconds, where that is given."""
        limit = Cost(flops or math.inf, math.inf, math.inf)
        budgets = (Budget(ALL, "", Period.of(seconds), limit),) if flops else ()
        return cls((DEFAULT,), {}, Tenant(DEFAULT, DEFAULT, 0, budgets, explore=True), budgets)

    @classmethod
    def of(cls, contents: Contents) -> Tenants:
        """As a file says."""
        tiers = tuple(tier.name for tier in contents.tiers)
        everybodys = tuple(entry.budget("") for entry in contents.all.budgets)

        def tenant(name: str, limits: LimitsEntry) -> Tenant:
            own = tuple(entry.budget(name) for entry in limits.budgets)
            made = Tenant(name, limits.tier, tiers.index(limits.tier), (*own, *everybodys))
            if limits.rate:
                made = replace(made, per_second=limits.rate.per_second, burst=limits.rate.burst)
            return replace(made, concurrent=limits.concurrent or math.inf, explore=limits.explore)

        named = {entry.name: tenant(entry.name, entry) for entry in contents.tenants}
        default = tenant(DEFAULT, contents.default) if contents.default else None
        with_default = (*named.values(), *([default] if default else []))
        budgets = dict.fromkeys([*everybodys, *(budget for one in with_default for budget in one.budgets)])
        return cls(tiers, named, default, tuple(budgets))

    def find(self, name: str) -> Tenant:
        """Who says that name, or none where it is empty.

        Raises Unauthenticated for none and PermissionDenied for an unknown one, where there is no default.
        """
        found = self.named.get(name) or self.default
        if found:
            return found
        if not name:
            raise Unauthenticated(f"say which tenant asks: --tenant, ISOFLOP_TENANT, or metadata {TENANT}")
        raise PermissionDenied(f"there is no tenant {name[:64]!r}: have it added to the router's tenants")


def load(path: Path) -> Tenants:
    """Read a tenants' file; raises TenantsError."""
    try:
        return Tenants.of(read(path, Contents, "tenants"))
    except CatalogError as error:
        raise TenantsError(str(error)) from None


class File:
    """The tenants in a file that may change; for `router.following`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last: Tenants | None = None
        self._mark: Mark = None
        """Of the file as it was before it was read last."""
        self._seen: Mark = None
        """As it was at the last look."""

    def read(self) -> Tenants:
        """The tenants at the start; raises TenantsError."""
        self._mark = self._seen = mark(self.path)
        self._last = load(self.path)
        return self._last

    def look(self) -> Tenants | None:
        """The tenants now; None where nothing has changed since the last look.

        Where the file is no good any more, the last good ones, and `faults` tells.
        """
        before, self._seen = self._seen, mark(self.path)
        # Half of a YAML file may be one of fewer tenants: it is read when it does not change any more.
        if self._seen == self._mark or self._seen != before:
            return None
        try:
            return self.read()
        except TenantsError as error:
            if self._last is None:
                raise
            self._last = replace(self._last, faults=(str(error),))
            return self._last
