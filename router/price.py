"""The shadow price of compute: what one more FLOP would buy, in right answers, while a budget lasts.

Each calendar window has a budget of FLOPs. The planner buys whatever is worth its price; the price is the
multiplier of the budget, found by dual mirror descent (Balseiro, Lu & Mirrokni 2020, arXiv 2002.10421): each
query that ends takes a step. Where it took more than the target, the price rises; where less, it falls. Steps
are multiplicative, so that the price stays positive, and of that paper's order: one by the square root of the
queries of a window.

The target is what is left of the budget by the queries that are still to come. How many those are nobody
knows: they are reckoned from past traffic, as where the budgets of advertisements are paced (Agarwal et al.,
KDD 2014, pp. 1613-1619), here by its mean rate with an exponential memory of one window. A wrong rate
corrects itself, since what is left, and for how long, is known. Only queries move the price, time does not:
an idle night does not wind it down. What queries take has a long tail, and the price learns of it when all
is spent: so none may have more than some times the target. Pure functions of small states that can be
written down as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from router.period import Period

MOST_STEP = 0.25
"""Of the price's logarithm, for a query that took twice the target or nothing."""

MOST_RISE = math.log(2)
"""Of the price's logarithm by one query, however much it took."""

SHARES = 8.0
"""Times the target that a query which follows the price may have at most."""

LEAST_WATCHED = 0.01
"""Share of a window that the first queries are taken to have come in: two at once do not foretell a flood."""

RANGE = 1e12
"""A right answer is worth from this part of a window's budget to all of it."""


@dataclass(frozen=True)
class Window:
    """A budget for each calendar window: they follow each other without gaps."""

    flops: float
    """Of each window; positive."""
    period: Period
    """Its length."""

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.period.seconds

    def start(self, now: float) -> float:
        """When the window of that time began, in seconds since the epoch."""
        return self.period.start(now)

    def end(self, now: float) -> float:
        """When it ends."""
        return self.period.end(now)


@dataclass(frozen=True)
class Pace:
    """What is known of spending: a handful of numbers."""

    price: float
    """Right answers that one more FLOP would buy; its inverse is what a right answer is worth in FLOPs."""
    at: float
    """When this was last settled, in seconds since the epoch."""
    spent: float = 0.0
    """FLOPs of the window that `at` is in."""
    queries: float = 0.0
    """That have ended, each counted less by exp(-age / window)."""
    watched: float = 0.0
    """Seconds in which they ended, counted less likewise."""

    @property
    def worth(self) -> float:
        """FLOPs that a right answer is worth."""
        return 1.0 / self.price


def begin(window: Window, worth: float, now: float) -> Pace:
    """The pace before any query, from a first guess of what a right answer is worth in FLOPs."""
    return Pace(_bounded(window, 1.0 / worth), now)


def left(window: Window, pace: Pace, now: float) -> float:
    """FLOPs that the window of that time still has; never negative."""
    same = window.start(now) <= window.start(pace.at)
    return max(0.0, window.flops - (pace.spent if same else 0.0))


def share(window: Window, pace: Pace, now: float) -> float:
    """FLOPs that a query which begins at that time and follows the price may have: all that is left for the
    last one, about SHARES times the target where many are to come."""
    rest = left(window, pace, now)
    to_come = _to_come(window, _with_one(charge(window, pace, 0.0, now)))
    return rest * SHARES / (SHARES + to_come - 1.0)


def charge(window: Window, pace: Pace, flops: float, now: float) -> Pace:
    """Spend, and learn nothing of it: of a query that failed or was cancelled, say. `flops` is not negative.

    What is spent counts in the window in which it is charged. Where `now` lies before the last time, by the
    clock of another router, that time holds.
    """
    now = max(now, pace.at)
    faded = math.exp((pace.at - now) / window.seconds)
    return Pace(
        pace.price,
        now,
        flops + (pace.spent if window.start(now) == window.start(pace.at) else 0.0),
        pace.queries * faded,
        pace.watched * faded + window.seconds * (1.0 - faded),
    )


def settle(window: Window, pace: Pace, flops: float, now: float) -> Pace:
    """A query has come to its end and took so many FLOPs: charge them, and take a step of the price."""
    ended = _with_one(charge(window, pace, flops, now))
    target = left(window, pace, ended.at) / _to_come(window, ended)
    step = min(MOST_STEP, 1.0 / math.sqrt(_rate(window, ended) * window.seconds))
    over = flops / target if target > 0 else math.inf if flops > 0 else 1.0
    rise = min(step * (over - 1.0), MOST_RISE)
    return replace(ended, price=_bounded(window, pace.price * math.exp(rise)))


def _with_one(pace: Pace) -> Pace:
    return replace(pace, queries=pace.queries + 1.0)


def _rate(window: Window, pace: Pace) -> float:
    """Queries a second."""
    return pace.queries / max(pace.watched, LEAST_WATCHED * window.seconds)


def _to_come(window: Window, pace: Pace) -> float:
    """Queries that are expected in the rest of the window; the one that is there is one at least."""
    return max(1.0, _rate(window, pace) * (window.end(pace.at) - pace.at))


def _bounded(window: Window, price: float) -> float:
    return min(max(price, 1.0 / window.flops), RANGE / window.flops)
