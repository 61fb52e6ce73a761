"""The planner: given all that is known so far, the most worthwhile next round, or stop, with the reason.

An action is worth the rise in P(the returned answer is right) that it is expected to bring, times what a
right answer is worth in FLOPs, less its expected FLOPs. It looks ahead by up to 32 samples and buys the
first few of them: how many a query gets in the end is an outcome, not an input. As long as little is known of
a query, one sample may be bought for what it tells, cut where it gets long: a probe (`router.lookahead`).
Pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from isoflop.errors import DeadlineExceeded, FailedPrecondition
from isoflop.v1.common_pb2 import Model
from isoflop.v1.router_pb2 import Action as ActionMessage
from isoflop.v1.router_pb2 import Rejected
from isoflop.v1.verification_pb2 import CHAIN_SCORING_UNSPECIFIED, ChainScoring, Verifier

from router import cost
from router.accuracy import Races, expected_accuracy
from router.belief import NO_VOTES, Posterior, Votes
from router.catalog import Catalog
from router.cost import TEMPLATE_TOKENS, Cost
from router.lengths import Array
from router.lookahead import Outcome, outcomes, so_far
from router.profile import MOST_VOTES, ROUND_SIZES, Arm, Profile
from router.query import Query
from router.strategies import STRATEGIES

LEAST_GAIN = 1e-4
"""A rise in P(right) below this is nothing."""

SAMPLES_WORTH = {"low": 3.0, "medium": 8.0, "high": 20.0, "most": 1000.0}
"""What a right answer is worth at each effort, in samples, where no model was measured."""

HEADROOM = 1.5
"""A round is only bought where each sample may have this many times its expected tokens."""

PROBED = 3
"""Samples of a query after which none is bought any more for what it tells."""

LEAST_TYPE = 1e-3
"""Types of queries that are less likely than this, by the likeliest, do not count in what a probe tells."""

AFTER_PROBE = 4
"""Most samples that are looked ahead by after a probe."""

PLANNED = ("single", "majority")
"""Strategies that profiles have measured; others are offered to callers who name them."""


@dataclass(frozen=True)
class Action:
    """A round that can be bought, and what is expected of it."""

    model: Model
    arm: Arm
    strategy: str
    samples: int
    """To be bought now."""
    horizon: int
    """Looked ahead by: the round is the beginning of so many."""
    max_tokens: int
    """Most tokens that each sample may have, so that the round surely fits in the budget."""
    accuracy: float
    """Expected P(the returned answer is right) after the horizon."""
    cost: Cost
    """Expected, of the whole horizon."""
    seconds: float
    """Expected, by the speed that was measured; 0 where it was not."""
    temperature: float
    verifier: Verifier | None = None
    """What scores the samples; None: nothing."""
    scoring: ChainScoring.ValueType = CHAIN_SCORING_UNSPECIFIED
    """From the scores of steps to the score of a chain."""
    probe: bool = False
    """One sample, for what it tells."""

    @property
    def name(self) -> str:
        """In words."""
        if self.probe:
            return f"{self.model.name} × 1 within {self.max_tokens} tokens"
        return f"{self.model.name} × {self.horizon} {self.strategy}"

    def message(self) -> ActionMessage:
        """As the contract has it: the samples bought now, and their share of the cost."""
        share = self.samples / self.horizon
        return ActionMessage(
            model=self.model.name,
            strategy=self.strategy,
            samples=self.samples,
            temperature=self.temperature,
            verifier=self.verifier.name if self.verifier else "",
            expected_accuracy=self.accuracy,
            expected_flops=self.cost.flops * share,
            expected_money=self.cost.money * share,
        )

    def outlook(self) -> ActionMessage:
        """As the contract has it, for the whole horizon."""
        return replace(self, samples=self.horizon).message()


@dataclass(frozen=True)
class Decision:
    """What to do next, and why."""

    action: Action | None
    """None: stop."""
    reason: str
    rejected: Sequence[Rejected] = ()
    """The best three others."""
    others: Sequence[Action] = ()
    """The other offers, best first."""


@dataclass(frozen=True)
class State:
    """All that is known of a query."""

    posterior: Posterior
    confidence: float
    """P(the answer that would be returned now is right)."""
    bought: dict[str, int]
    """Samples so far, by model."""
    greedy: frozenset[str]
    """Models whose greedy sample has been bought."""
    left: Cost
    """What may still be spent."""
    seconds: float
    """Time left; infinite where there is no deadline."""
    spent: float = 0.0
    """FLOPs so far."""
    votes: Votes = NO_VOTES
    """What the belief rests on."""


@dataclass(frozen=True)
class Planner:
    """Decides on the curves of a profile."""

    profile: Profile
    catalog: Catalog
    round_samples: int
    """Most samples that are bought before deciding anew."""
    max_samples: int = MOST_VOTES
    """Most samples of a model that a query can get."""

    def decide(self, query: Query, state: State) -> Decision:
        """The most worthwhile next round, or stop.

        Before anything is spent, raises FailedPrecondition where no action fits the budget and
        DeadlineExceeded where none can end in time.
        """
        confidence = state.confidence
        target = query.objective.target
        if query.samples:
            return self._fixed(query, state)
        if state.bought and any(STRATEGIES[name].verifies for name in query.strategies):
            return Decision(None, "scored samples are bought in one round: what more bring is not measured")
        if target is not None and confidence >= target:
            return Decision(None, f"P(right) {confidence:.3f} has reached the target {target:.3f}")
        offers = list(self.offers(query, state))
        if not offers:
            return Decision(None, self._nothing_fits(query, state))
        worth = self.worth(query, offers)
        if target is None and state.spent >= worth:
            # Where two answers stay level each further round looks worth its price, and none ever is.
            return Decision(None, f"{_si(state.spent)}FLOP spent: no less than a right answer is worth")
        ranked = sorted(offers, key=lambda offer: self._value(offer, confidence, worth, target), reverse=True)
        best = ranked[0]
        gain = best.accuracy - confidence
        if target is None and state.votes.samples + state.votes.cut < PROBED:
            least = max(0.0, self._value(best, confidence, worth, None))
            probe, value = self._probe(state, offers, worth)
            if probe and value > least:
                return Decision(
                    probe,
                    f"{probe.name}: what it tells leaves {_si(value)}FLOP of worth, "
                    f"{best.name if least else 'to stop'} {_si(least)}FLOP",
                    others=ranked,
                )
        rejected = [
            Rejected(action=other.outlook(), reason=_why_not(other, best, confidence, worth, target))
            for other in ranked[1:4]
        ]
        if gain < LEAST_GAIN or (target is None and gain * worth <= best.cost.flops):
            return Decision(None, _stop_reason(best, confidence, worth), rejected)
        reason = (
            f"{best.name}: P(right) {confidence:.3f} → {best.accuracy:.3f} for {_si(best.cost.flops)}FLOP, "
            f"worth {_si(gain * worth)}FLOP"
        )
        return Decision(best, reason, rejected, ranked[1:])

    def worth(self, query: Query, offers: Sequence[Action]) -> float:
        """FLOPs that a right answer is worth to this query.

        The profile's efforts are places on its own models' frontier. Where none of the models on offer was
        measured they say nothing, and effort is reckoned in samples of the dearest of them.
        """
        if query.objective.worth:
            return query.objective.worth
        if any(offer.arm.measured for offer in offers):
            return self.profile.efforts[query.objective.effort]
        return SAMPLES_WORTH[query.objective.effort] * max(o.cost.flops / o.horizon for o in offers)

    def offers(self, query: Query, state: State) -> Iterable[Action]:
        """Actions that the filters, the backends, the budget and the deadline leave."""
        strategies = query.strategies or PLANNED
        horizons = [n for n in ROUND_SIZES if n <= (query.samples or max(ROUND_SIZES))]
        if query.samples:
            horizons = horizons[-1:]
        for model in self._models(query):
            had = state.bought.get(model.name, 0)
            most = min(model.capabilities.samples or MOST_VOTES, self.max_samples) - had
            for strategy in strategies:
                verifier = self._verifier(query, strategy)
                single = strategy == "single"
                greedy = single and not query.temperature
                once = query.strategies == ("single",) or query.temperature == 0
                if single and (model.name in state.greedy or (once and had)):
                    continue
                if not single and query.temperature == 0:
                    continue
                if verifier and verifier.needs_logprobs and not model.capabilities.logprobs:
                    continue
                arm = self.profile.arm(model, greedy, query.temperature)
                for horizon in (1,) if single else horizons:
                    if (query.samples or horizon) <= most:
                        offer = self._offer(query, state, model, arm, strategy, horizon)
                        if offer:
                            yield offer

    def _verifier(self, query: Query, strategy: str) -> Verifier | None:
        return self.catalog.verifier(query.verifier) if STRATEGIES[strategy].verifies else None

    def _models(self, query: Query) -> list[Model]:
        measured = {arm.model for arm in self.profile.arms}
        if query.models:
            return [model for model in self.catalog.models.values() if model.name in query.models]
        return [model for model in self.catalog.models.values() if model.name in measured] or list(
            self.catalog.models.values()
        )

    def _offer(
        self, query: Query, state: State, model: Model, arm: Arm, strategy: str, horizon: int
    ) -> Action | None:
        """The action with its worth, or None where it does not fit."""
        verifier = self._verifier(query, strategy)
        samples = query.samples or (horizon if verifier else min(horizon, self.round_samples))
        tokens = float(state.posterior.difficulty @ arm.tokens)
        if query.max_tokens:
            tokens = min(tokens, query.max_tokens)
        seconds = tokens * arm.seconds_per_token
        had = state.bought.get(model.name, 0)
        ahead = query.samples or horizon
        prompt_most = query.prompt_bytes + TEMPLATE_TOKENS
        max_tokens = cost.longest(model, samples, prompt_most, query.max_tokens, state.left, verifier)
        # Where the model's context is what binds, a sample may have all of it.
        room = cost.longest(model, samples, prompt_most, query.max_tokens, UNLIMITED, verifier)
        wanted = min(tokens * HEADROOM, room)
        if max_tokens < max(1.0, wanted) or seconds > state.seconds:
            return None
        prompt = query.prompt_bytes * arm.prompt_tokens_per_byte
        return Action(
            model=model,
            arm=arm,
            strategy=strategy,
            samples=samples,
            horizon=ahead,
            max_tokens=max_tokens,
            accuracy=expected_accuracy(state.posterior, arm, horizon, had, model.name in state.greedy),
            cost=cost.samples(model, ahead, prompt, tokens, verifier),
            seconds=seconds,
            temperature=arm.temperature if query.temperature is None else query.temperature,
            verifier=verifier,
            scoring=query.scoring or (verifier.scoring if verifier else CHAIN_SCORING_UNSPECIFIED),
        )

    def _value(self, offer: Action, confidence: float, worth: float, target: float | None) -> float:
        gain = offer.accuracy - confidence
        if target is None:
            return gain * worth - offer.cost.flops
        # The cheapest way to the target: what is gained beyond it does not count, nor what is no gain.
        return min(gain, target - confidence) / offer.cost.flops if gain >= LEAST_GAIN else 0.0

    def _probe(self, state: State, offers: Sequence[Action], worth: float) -> tuple[Action | None, float]:
        """The sample that is worth most for what it tells, and its worth in FLOPs beyond stopping at once."""
        plans = [offer for offer in offers if offer.horizon <= AFTER_PROBE and not offer.verifier]
        probes: list[Action] = []
        found: dict[int, list[tuple[int, Outcome]]] = {}
        for offer in plans:
            # Without curves of length little is told that buying does not tell as well.
            if offer.horizon == 1 and offer.arm.length:
                caps = [cap for cap in offer.arm.caps if cap < offer.max_tokens]
                for cap in (*caps, offer.max_tokens):
                    for outcome in outcomes(state.posterior, state.votes, offer.arm, cap):
                        found.setdefault(len(outcome.posterior.sizes), []).append((len(probes), outcome))
                    probes.append(self._cut(state, offer, cap))
        if not probes:
            return None, 0.0
        values = np.array([-probe.cost.flops for probe in probes])
        for group in found.values():
            numbers = [number for number, _ in group]
            after = self._best_after(state, group, [probes[number] for number in numbers], plans, worth)
            after = (after - state.confidence * worth) * [outcome.chance for _, outcome in group]
            values += np.bincount(numbers, after, len(probes))
        best = int(values.argmax())
        return probes[best], float(values[best])

    def _cut(self, state: State, offer: Action, cap: int) -> Action:
        """The offer of one sample, cut at a cap."""
        length = offer.arm.length
        assert length
        *_, seen = so_far(state.posterior, state.votes, offer.arm)
        types = state.posterior.difficulty
        share = float(types @ length.expected(seen, cap)) / float(types @ length.expected(seen, math.inf))
        return replace(offer, probe=True, max_tokens=cap, cost=offer.cost.times(min(share, 1.0)))

    def _best_after(
        self,
        state: State,
        group: Sequence[tuple[int, Outcome]],
        probes: Sequence[Action],
        plans: Sequence[Action],
        worth: float,
    ) -> Array:
        """What is had in FLOPs after each outcome of the probe that led to it: by stopping, or by a plan."""
        now = state.posterior.difficulty
        types = np.flatnonzero(now > LEAST_TYPE * now.max())
        races = Races.of([outcome.posterior for _, outcome in group], types)
        best = races.confidence * worth
        for plan in plans:
            model = plan.model.name
            if plan.arm.greedy and model in state.greedy:
                continue
            own = np.array([probe.model.name == model for probe in probes])
            tokens = plan.arm.tokens[types]
            price = plan.cost.flops * (races.difficulty @ tokens) / float(now @ plan.arm.tokens)
            had = state.bought.get(model, 0) + own
            accuracy = races.accuracies(plan.arm, plan.horizon, had, model in state.greedy)
            best = np.maximum(best, accuracy * worth - price)
        return best

    def _fixed(self, query: Query, state: State) -> Decision:
        """The caller's own plan: all samples at once, of the model that is worth most."""
        if sum(state.bought.values()):
            return Decision(None, f"the {query.samples} samples that were asked for have been bought")
        strategies = query.strategies or (("majority",) if query.samples > 1 else ("single",))
        strategy = next(name for name in strategies if name != "single" or query.samples == 1)
        planned = replace(query, strategies=(strategy,))
        offers = list(self.offers(planned, state))
        if not offers:
            return Decision(None, self._nothing_fits(planned, state))
        worth = self.worth(query, offers)
        best = max(offers, key=lambda offer: offer.accuracy * worth - offer.cost.flops)
        return Decision(best, f"{best.name}: the caller's own plan")

    def _nothing_fits(self, query: Query, state: State) -> str:
        """Why there is no offer. Raises where nothing has been spent yet."""
        if state.bought:
            return "no further round fits in what is left of the budget and the time"
        free = replace(state, left=UNLIMITED, seconds=math.inf)
        offers = list(self.offers(query, free))
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
        in_time = (offer for offer in offers if offer.seconds <= state.seconds)
        cheapest = min(in_time, key=lambda offer: offer.cost.flops)
        least = self._least(query, cheapest)
        raise FailedPrecondition(
            f"no plan fits the budget; the cheapest, {cheapest.name}, needs {_enough(least.flops)} FLOPs, "
            f"{math.ceil(least.tokens)} tokens and {_enough(least.money)} {self.catalog.currency}"
        )

    def _least(self, query: Query, offer: Action) -> Cost:
        """The budget with which an action would be offered."""
        tokens = offer.cost.tokens / offer.horizon - query.prompt_bytes * offer.arm.prompt_tokens_per_byte
        return cost.samples(
            offer.model,
            offer.samples,
            query.prompt_bytes + TEMPLATE_TOKENS,
            math.ceil(max(1.0, tokens * HEADROOM)) + 1,
            offer.verifier,
        )


UNLIMITED = Cost(math.inf, math.inf, math.inf)


def _why_not(other: Action, best: Action, confidence: float, worth: float, target: float | None) -> str:
    gain, flops = other.accuracy - confidence, other.cost.flops
    if gain < LEAST_GAIN:
        return "it would change nothing"
    if target is not None:
        return f"it brings {100 * gain:.1f} points towards the target for {_si(flops)}FLOP, fewer for each"
    if gain * worth <= flops:
        return f"it costs {_si(flops)}FLOP and is worth {_si(gain * worth)}FLOP"
    return (
        f"it leaves {_si(gain * worth - flops)}FLOP of worth, "
        f"{best.name} {_si((best.accuracy - confidence) * worth - best.cost.flops)}FLOP"
    )


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
