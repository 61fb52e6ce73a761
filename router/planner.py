"""The planner: given all that is known so far, the most worthwhile next round, or stop, with the reason.

An action is worth the rise in P(the returned answer is right) that it is expected to bring, times what a
right answer is worth in FLOPs, less its expected FLOPs. It looks ahead by up to 32 samples and buys the
first few of them: how many a query gets in the end is an outcome, not an input. As long as little is known of
a query, one sample may be bought for what it tells, cut where it gets long: a probe (`router.lookahead`).
Pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TypeVar

import numpy as np
from isoflop.errors import DeadlineExceeded, FailedPrecondition
from isoflop.v1.router_pb2 import Action as ActionMessage
from isoflop.v1.router_pb2 import Rejected

from router import cost
from router.baseline import Fixed, expected, is_free
from router.belief import NO_VOTES, update
from router.catalog import Catalog
from router.cost import Cost
from router.decision import UNLIMITED, Action, Decision, Later, State
from router.lengths import Array
from router.lookahead import best_probe
from router.menu import Menu, models
from router.outlook import HEADROOM, Outlook
from router.profile import MOST_VOTES, SAMPLES_WORTH, Profile
from router.prompt import prompt_bound
from router.query import Query

T = TypeVar("T")

LEAST_GAIN = 1e-4
"""A rise in P(right) below this is nothing."""

PROBED = 3
"""Samples of a query after which none is bought any more for what it tells."""

KEPT = 256
"""Menus, and first decisions, that are kept for queries that are alike."""


@dataclass(frozen=True)
class Planner:
    """Decides on the curves of a profile."""

    profile: Profile
    catalog: Catalog
    round_samples: int
    """Most samples that are bought before deciding anew."""
    max_samples: int = MOST_VOTES
    """Most samples of a model that a query can get."""
    _menus: dict[object, Menu] = field(default_factory=dict, repr=False)
    _first: dict[object, Decision] = field(default_factory=dict, repr=False)
    """Decisions before anything was bought, without limits: queries of which nothing is known are alike."""

    def decide(self, query: Query, state: State) -> Decision:
        """The most worthwhile next round, or stop.

        Before anything is spent, raises FailedPrecondition where no action fits the budget and
        DeadlineExceeded where none can end in time.
        """
        if state.bought or state.left != UNLIMITED or math.isfinite(state.seconds):
            return self._decide(query, state)
        key = (_key(query), query.objective, state.posterior.joint.tobytes(), state.spent)
        if key not in self._first:
            _keep(self._first, key, self._decide(query, state))
        return self._first[key]

    def _decide(self, query: Query, state: State) -> Decision:
        outlook, confidence, target = self.outlook(query, state), state.confidence, query.objective.target
        if query.samples:
            return self._fixed(outlook)
        if state.bought and outlook.menu.blinds:
            return Decision(None, "scored samples are bought in one round: what more bring is not measured")
        if target is not None and confidence >= target:
            return Decision(None, f"P(right) {confidence:.3f} has reached the target {target:.3f}")
        worth = self.worth(outlook)
        value = self._value(outlook, worth)
        actions = outlook.actions(value)
        best = next(actions, None)
        if best is None:
            return self._nothing_fits(outlook)
        if target is None and state.spent >= worth:
            # Where two answers stay level each further round looks worth its price, and none ever is.
            return Decision(None, f"{_si(state.spent)}FLOP spent: no less than a right answer is worth")
        gain = best.accuracy - confidence
        if target is None and len(outlook.menu.probes) and state.votes.samples + state.votes.cut < PROBED:
            least = max(0.0, gain * worth - best.cost.flops)
            probe, told = self._probe(outlook, worth)
            if probe and told > least:
                reason = (
                    f"{probe.name}: what it tells leaves {_si(told)}FLOP of worth, "
                    f"{best.name if least else 'to stop'} {_si(least)}FLOP"
                )
                others = Later(lambda: [best, *islice(actions, 2)])
                return Decision(probe, reason, others, _rejected(others, probe, told, outlook, worth))
        others = Later(lambda: list(islice(actions, 3)))
        left = gain * worth - best.cost.flops
        rejected = _rejected(others, best, left, outlook, worth)
        if gain < LEAST_GAIN or (target is None and left <= 0):
            return Decision(None, _stop_reason(best, confidence, worth), others, rejected)
        reason = (
            f"{best.name}: P(right) {confidence:.3f} → {best.accuracy:.3f} for {_si(best.cost.flops)}FLOP, "
            f"worth {_si(gain * worth)}FLOP"
        )
        return Decision(best, reason, others, rejected)

    def outlook(self, query: Query, state: State) -> Outlook:
        """All that can be bought."""
        return Outlook(query, state, self.menu(query), self.round_samples)

    def menu(self, query: Query) -> Menu:
        """What there is, whatever is known of the query; kept for queries that are alike."""
        key = _key(query)
        menu = self._menus.get(key)
        if menu is None:
            menu = Menu.of(query, self.profile, self.catalog, self.max_samples)
            _keep(self._menus, key, menu)
        return menu

    def models(self, query: Query) -> tuple[str, ...]:
        """Names of the models that a query may be given."""
        return tuple(model.name for model in models(query, self.profile, self.catalog))

    def offers(self, query: Query, state: State) -> Iterator[Action]:
        """Actions that the filters, the backends, the budget and the deadline leave, the cheapest first."""
        outlook = self.outlook(query, state)
        return outlook.actions(-outlook.flops)

    def recall(self, query: Query, bought: ActionMessage) -> Action | None:
        """An action that another router has bought, as it would be offered now; None: it is not."""
        posterior = update(self.profile.prior, NO_VOTES)
        nothing = State(posterior, 0.0, {}, frozenset(), UNLIMITED, math.inf)
        for asked in (query, replace(query, strategies=(bought.strategy,))):
            outlook = self.outlook(asked, nothing)
            for row, option in enumerate(outlook.menu.options):
                its = option.model.name, option.strategy, option.temperature
                verifier = option.verifier.name if option.verifier else ""
                if (*its, verifier) != (bought.model, bought.strategy, bought.temperature, bought.verifier):
                    continue
                if action := outlook.action(row, 0):
                    search = option.search_for(bought.samples)
                    return replace(action, samples=bought.samples, horizon=bought.samples, search=search)
        return None

    def fixed_flops(self, query: Query, state: State) -> float:
        """Expected FLOPs of the best fixed plan on this query, by all that is known of it now.

        The best is by the mean over the profile's queries, as one would set it up without a planner. 0 where
        effort says nothing of what a right answer is worth.
        """
        if query.objective.effort == "most":
            return 0.0
        posterior = update(self.profile.prior, NO_VOTES)
        nothing = State(posterior, 0.0, {}, frozenset(), UNLIMITED, math.inf)
        outlook = self.outlook(query, nothing)
        if not outlook.open.any():
            return 0.0
        value = np.where(outlook.open, self._value(outlook, self.worth(outlook)), -np.inf)
        row, column = divmod(int(value.argmax()), value.shape[1])
        return float(outlook.menu.flops[row] @ state.posterior.difficulty * outlook.menu.horizons[column])

    def baseline(self, query: Query, difficulty: Array) -> Fixed | None:
        """What the profile's fixed plan for the query's effort is expected to cost on it.

        `difficulty` is what is believed of its type, shape (D,), when it has ended. None where the query asks
        for more than an effort, the profile has no such plan, or the catalogue lacks its model.
        """
        plan = self.profile.baselines.get(query.objective.effort)
        if plan is None or not is_free(query):
            return None
        return expected(plan, query, self.menu(query), difficulty)

    def worth(self, outlook: Outlook) -> float:
        """FLOPs that a right answer is worth to this query.

        The profile's efforts are places on its own models' frontier. Where none of the models on offer was
        measured they say nothing, and effort is reckoned in samples of the dearest of them.
        """
        objective = outlook.query.objective
        if objective.worth:
            return objective.worth
        if any(option.arm.measured for option in outlook.menu.options) or not outlook.menu.options:
            return self.profile.efforts[objective.effort]
        return SAMPLES_WORTH[objective.effort] * float((outlook.flops / outlook.menu.horizons).max())

    @staticmethod
    def _value(outlook: Outlook, worth: float) -> Array:
        """Shape (N, H): FLOPs left of the worth of what is gained, or the gain for a FLOP up to a target."""
        gain, target = outlook.accuracy - outlook.state.confidence, outlook.query.objective.target
        if target is None:
            return np.asarray(gain * worth - outlook.flops)
        # The cheapest way to the target: what is gained beyond it does not count, nor what is no gain.
        useful = np.minimum(gain, target - outlook.state.confidence) / outlook.flops
        return np.where(gain >= LEAST_GAIN, useful, 0.0)

    def _probe(self, outlook: Outlook, worth: float) -> tuple[Action | None, float]:
        """The sample that is worth most for what it tells, and its worth in FLOPs beyond stopping at once."""
        probe = best_probe(outlook, worth)
        action = outlook.action(probe.row, 0) if probe else None
        if probe is None or action is None:
            return None, 0.0
        price = action.cost.times(probe.share)
        return replace(action, probe=True, max_tokens=probe.cap, cost=price), probe.worth

    def _fixed(self, outlook: Outlook) -> Decision:
        """The caller's own plan: all samples at once, of the model that is worth most; and what of them did
        not come, once more. What a search has brought before it failed is what there is of it."""
        query, bought = outlook.query, sum(outlook.state.bought.values())
        if bought >= query.samples or (bought and query.search):
            return Decision(None, f"the {query.samples} samples that were asked for have been bought")
        strategies = query.strategies or (("majority",) if query.samples > 1 else ("single",))
        strategy = next(name for name in strategies if name != "single" or query.samples == 1)
        if bought or query.strategies != (strategy,):
            query = replace(query, strategies=(strategy,), samples=query.samples - bought)
            outlook = self.outlook(query, outlook.state)
        best = next(outlook.actions(outlook.accuracy * self.worth(outlook) - outlook.flops), None)
        if best is None:
            return self._nothing_fits(outlook)
        return Decision(best, f"{best.name}: the caller's own plan")

    def check(self, query: Query, state: State) -> None:
        """Raises as `decide` does where no action fits, before anything was spent: however easy it may be."""
        outlook = self.outlook(query, state)
        if outlook.menu.options and state.left == UNLIMITED and math.isinf(state.seconds):
            return
        if not outlook.any_fits and not any(
            replace(outlook, state=replace(state, posterior=update(belief, NO_VOTES))).any_fits
            for belief in self.profile.certain
        ):
            self._nothing_fits(outlook)

    def _nothing_fits(self, outlook: Outlook) -> Decision:
        """To stop, and why there is no offer. Raises where nothing has been bought yet."""
        query, state = outlook.query, outlook.state
        if state.bought:
            late = (
                math.isfinite(state.seconds)
                and replace(outlook, state=replace(state, seconds=math.inf)).any_fits
            )
            if late:
                return Decision(None, "no further round fits in the time that is left", cut_short=True)
            return Decision(None, "no further round fits in what is left of the budget")
        offers = list(self.offers(query, replace(state, left=UNLIMITED, seconds=math.inf)))
        if not offers:
            raise FailedPrecondition(
                "no model can serve what was asked for: see `isoflop models` for what each backend can do"
            )
        soonest = min(offers, key=lambda offer: offer.seconds)
        if soonest.seconds > state.seconds:
            raise DeadlineExceeded(
                f"the quickest plan, {soonest.name}, takes about "
                f"{math.ceil(10 * soonest.seconds + 1) / 10:.1f} s: allow more time"
            )
        cheapest = next(offer for offer in offers if offer.seconds <= state.seconds)
        least = self._least(query, cheapest)
        raise FailedPrecondition(
            f"no plan fits the budget; the cheapest, {cheapest.name}, needs {_enough(least.flops)} FLOPs, "
            f"{math.ceil(least.tokens)} tokens and {_enough(least.money)} {self.catalog.currency}"
        )

    def _least(self, query: Query, offer: Action) -> Cost:
        """The budget with which an action would be offered."""
        return cost.samples(
            offer.model,
            offer.lanes,
            prompt_bound(query, offer.model, offer.strategy, offer.search),
            math.ceil(max(1.0, offer.tokens * HEADROOM)) + 1,
            offer.verifier,
        )


def _key(query: Query) -> object:
    """What a menu depends on."""
    return (
        query.prompt_bytes,
        query.models,
        query.strategies,
        query.samples,
        query.max_tokens,
        query.temperature,
        query.verifier,
        query.scoring,
        query.search,
    )


def _keep(kept: dict[object, T], key: object, value: T) -> None:
    """Keep it, and let the oldest go where there are KEPT."""
    if len(kept) >= KEPT:
        del kept[next(iter(kept))]
    kept[key] = value


def _rejected(
    others: Sequence[Action], best: Action, left: float, outlook: Outlook, worth: float
) -> Sequence[Rejected]:
    """The others with what speaks against each; `left` is what the best one leaves of its worth."""
    return Later(
        lambda: [
            Rejected(action=other.outlook(), reason=_why_not(other, best, left, outlook, worth))
            for other in others
        ]
    )


def _why_not(other: Action, best: Action, left: float, outlook: Outlook, worth: float) -> str:
    gain, flops = other.accuracy - outlook.state.confidence, other.cost.flops
    if gain < LEAST_GAIN:
        return "it would change nothing"
    if outlook.query.objective.target is not None:
        return f"it brings {100 * gain:.1f} points towards the target for {_si(flops)}FLOP, fewer for each"
    if gain * worth <= flops:
        return f"it costs {_si(flops)}FLOP and is worth {_si(gain * worth)}FLOP"
    return f"it leaves {_si(gain * worth - flops)}FLOP of worth, {best.name} {_si(left)}FLOP"


def _stop_reason(best: Action, confidence: float, worth: float) -> str:
    gain = best.accuracy - confidence
    if gain < LEAST_GAIN:
        return f"P(right) {confidence:.3f}, and no further round would change the answer"
    return (
        f"P(right) {confidence:.3f}; the best further round, {best.name}, would add {gain:.3f} for "
        f"{_si(best.cost.flops)}FLOP, and is worth {_si(gain * worth)}FLOP"
    )


def _enough(value: float) -> str:
    """Three digits, rounded up: who allows so much allows the value."""
    step = 10.0 ** (math.floor(math.log10(value)) - 2) if value > 0 else 1.0
    return f"{math.ceil(value / step) * step:.3g}"


def _si(value: float) -> str:
    """With an SI prefix, three digits."""
    for limit, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g} {prefix}"
    return f"{value:.3g} "
