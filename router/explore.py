"""Exploration: a query may begin with another than the planner's own choice, drawn by known chances.

What a profile thinks of an offer that it never buys cannot be checked. Of the share that is explored the
first round is drawn from the best few offers, all equally likely, the planner's own among them; of the others
it is the planner's own (epsilon-greedy). The chances are logged, so that queries that began otherwise can
stand for those that did not: see `router.off_policy`. Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from router.decision import Action, Decision


@dataclass(frozen=True)
class Offer:
    """A first round that could be bought."""

    bought: str
    """What it buys: see `bought`."""
    accuracy: float
    """P(the returned answer is right) that the profile expects of it."""
    flops: float
    """Expected, of all that is looked ahead by."""
    propensity: float
    """Chance with which the query began with it."""


STOP = Offer("nothing", 0.0, 0.0, 1.0)
"""To stop before the first round."""


@dataclass(frozen=True)
class Draw:
    """The first decision of a query."""

    decision: Decision
    """What is done."""
    offers: tuple[Offer, ...]
    """Distinct offers, the planner's own choice first; their propensities sum to 1."""
    taken: int
    """Index of the one that is done."""

    @property
    def explored(self) -> bool:
        """Whether the planner would have done otherwise."""
        return self.taken > 0


def bought(action: Action) -> str:
    """What a round buys, in words. Offers that buy the same, and look ahead differently, are one choice."""
    words = [action.model.name, str(action.samples), action.strategy, f"at {action.temperature:g}"]
    if action.search:
        words.append(f"of {action.search}, {action.search.depth} deep")
    if action.verifier:
        words.append(action.verifier.name)
    if action.probe:
        words.append(f"within {action.max_tokens}")
    return " ".join(words)


def draw(decision: Decision, share: float, among: int, chance: float) -> Draw:
    """The first decision of a query of which a `share` in [0, 1] is explored `among` the best few offers.

    `chance` is uniform in [0, 1). Every offer is within the query's limits; to stop is not explored.
    """
    own = decision.action
    if own is None:
        return Draw(decision, (STOP,), 0)
    choices = _distinct([own, *decision.others])[:among]
    size = len(choices)
    propensities = [share / size + (1 - share) * (action is own) for action in choices]
    taken, below = 0, propensities[0]
    while chance >= below and taken < size - 1:
        taken += 1
        below += propensities[taken]
    offers = tuple(
        Offer(bought(action), action.accuracy, action.cost.flops, propensity)
        for action, propensity in zip(choices, propensities, strict=True)
    )
    if not taken:
        return Draw(decision, offers, 0)
    drawn = choices[taken]
    reason = f"{drawn.name}: drawn at random, to learn what it brings; the planner's own: {decision.reason}"
    return Draw(replace(decision, action=drawn, reason=reason), offers, taken)


def _distinct(actions: Sequence[Action]) -> list[Action]:
    """The first of those that buy the same."""
    found: dict[str, Action] = {}
    for action in actions:
        found.setdefault(bought(action), action)
    return list(found.values())
