"""A tenant's rate and concurrency at this router.

The rate is a token bucket, kept as what is owed: each query owes one, debts are paid at the tenant's rate,
and nobody may owe more than the burst. Who owes nothing need not be remembered, whatever the limits are. What
counts against budgets is elsewhere (`router.ledger`), and shared by routers; this is each router's own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from isoflop.errors import ResourceExhausted

from router.tenants import Tenant

FORGET_SECONDS = 600.0
"""So often tenants are forgotten that run nothing and owe nothing."""

FIRST_GUESS = 1.0
"""Seconds that a query takes, before any has ended."""

MEMORY = 1 / 8
"""Weight of the last query in the mean of how long they take."""

SHORTEST, LONGEST = 0.1, 30.0
"""Seconds after which a tenant is told to come back whose queries run: when they end can only be guessed."""

ROUNDING = 1e-6
"""Part of a query that may be owed too much: who comes when it was told to is not refused for it."""


@dataclass
class _Use:
    """What a tenant has of its limits now."""

    tenant: Tenant
    """With the limits under which it asked last."""
    at: float
    """When it asked last, or a query ended."""
    owed: float = 0.0
    """Queries, at that time."""
    running: int = 0
    seconds: float = FIRST_GUESS
    """That a query takes: a mean with an exponential memory."""

    def pay(self, now: float) -> None:
        """What was owed is less by now."""
        if math.isinf(self.tenant.per_second):
            self.owed = 0.0
        else:
            self.owed = max(0.0, self.owed - (now - self.at) * self.tenant.per_second)
        self.at = now


class Limits:
    """What tenants have of their limits. A change of the limits holds from the next query on."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: in seconds, from any time on."""
        self._clock = clock
        self._uses: dict[str, _Use] = {}
        """By tenant."""
        self._forgot = clock()

    @contextmanager
    def hold(self, tenant: Tenant) -> Iterator[None]:
        """While the context lasts, a query of the tenant counts as running.

        Raises ResourceExhausted where its concurrency or rate does not allow it; such a query owes nothing.
        """
        now = self._clock()
        self._forget(now)
        use = self._uses.setdefault(tenant.name, _Use(tenant, now))
        use.pay(now)
        use.tenant = tenant
        if use.running >= tenant.concurrent:
            to_end = use.running - tenant.concurrent + 1
            raise ResourceExhausted(
                f"limit concurrent of tenant {tenant.name}: {use.running} of its queries run or wait at this "
                "router: ask again when one has ended",
                min(max(SHORTEST, use.seconds * to_end / use.running), LONGEST),
            )
        over = use.owed + 1.0 - tenant.burst
        if over > ROUNDING:
            seconds = over / tenant.per_second
            raise ResourceExhausted(
                f"limit rate of tenant {tenant.name}: {tenant.per_second:g} queries a second at this router, "
                f"{tenant.burst:g} at once: ask again in {seconds:.3g} s",
                seconds,
            )
        use.owed += 1.0
        use.running += 1
        try:
            yield
        finally:
            ended = self._clock()
            use.running -= 1
            use.seconds += MEMORY * (ended - now - use.seconds)
            use.pay(ended)

    def _forget(self, now: float) -> None:
        """Now and then: tenants of which nothing need be known."""
        if now - self._forgot < FORGET_SECONDS:
            return
        self._forgot = now
        for use in self._uses.values():
            use.pay(now)
        self._uses = {name: use for name, use in self._uses.items() if use.running or use.owed}
