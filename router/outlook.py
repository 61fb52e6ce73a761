"""What can be bought in one state of a query, and what is expected of it. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from router import cost
from router.accuracy import Stack, race
from router.cost import Cost
from router.decision import UNLIMITED, Action, State
from router.lengths import Array
from router.menu import Menu
from router.profile import ROUND_SIZES
from router.prompt import prompt_bound
from router.query import Query

HEADROOM = 1.5
"""A round is only bought where each sample may have this many times its expected tokens."""


@dataclass(frozen=True, eq=False)
class Outlook:
    """All that can be bought in a state, by option (N) and by how far it is looked ahead (H)."""

    query: Query
    state: State
    menu: Menu
    round_samples: int
    """Most samples that are bought at once."""

    @cached_property
    def had(self) -> Array:
        """Shape (N,): samples so far of each option's model."""
        had = np.zeros(len(self.menu.options))
        for model, samples in self.state.bought.items():
            if model in self.menu.of_model:
                had[self.menu.of_model[model]] = samples
        return had

    @cached_property
    def stack(self) -> Stack:
        """Tables of the options."""
        return self.menu.stack(self.state.greedy)

    @cached_property
    def accuracy(self) -> Array:
        """Shape (N, H): expected P(the returned answer is right)."""
        if not self.menu.options:
            return np.zeros((0, len(self.menu.horizons)))
        measured = race(self.state.posterior).accuracies(self.stack, self.had[None])[0]
        if self.query.samples:
            # A vote of any size promises what one of the next smaller of these sizes does.
            row = max(row for row, size in enumerate(ROUND_SIZES) if size <= self.query.samples)
            return np.asarray(measured[:, [row]])
        return np.asarray(measured)

    @cached_property
    def flops(self) -> Array:
        """Shape (N, H): expected."""
        return np.asarray((self.menu.flops @ self.state.posterior.difficulty)[:, None] * self.menu.horizons)

    @cached_property
    def seconds(self) -> Array:
        """Shape (N,): expected until one sample is there."""
        expected = self.menu.seconds @ self.state.posterior.difficulty
        for model, pace in self.state.pace.items():
            if model in self.menu.of_model:
                expected[self.menu.of_model[model]] *= pace
        return np.asarray(expected)

    @cached_property
    def open(self) -> NDArray[np.bool_]:
        """Shape (N, H): whether it can be bought, but for the budget."""
        state, query, menu = self.state, self.query, self.menu
        fits = menu.plans & (self.had[:, None] + menu.horizons <= menu.most[:, None])
        once = query.strategies == ("single",) or query.temperature == 0
        for model in {*state.greedy, *(name for name, had in state.bought.items() if once and had)}:
            if model in menu.of_model:
                rows = menu.of_model[model]
                fits[rows] &= ~menu.greedy[rows, None]
        for arm in state.deep:
            fits[menu.of_arm.get(arm, [])] = False
        if math.isfinite(state.seconds):
            fits &= (self.seconds <= state.seconds)[:, None]
        return np.asarray(fits)

    def actions(self, value: Array) -> Iterator[Action]:
        """The actions that fit the budget, by falling value, shape (N, H)."""
        if not value.size:
            return
        value = np.where(self.open, value, -np.inf).ravel()
        first = int(value.argmax())  # Mostly nobody asks for more than the best.
        if value[first] > -np.inf and (action := self.action(*divmod(first, len(self.menu.horizons)))):
            yield action
        order = np.argsort(-value, kind="stable")[: int(self.open.sum())]
        for at in order.tolist():
            if at != first and (action := self.action(*divmod(at, len(self.menu.horizons)))):
                yield action

    @property
    def any_fits(self) -> bool:
        """Whether anything can be bought."""
        return any(self._fit(*at) for at in np.argwhere(self.open).tolist())

    def _fit(self, row: int, column: int) -> tuple[int, int, Cost] | None:
        """Samples to be bought at once, most tokens of each, and what the whole horizon is expected to cost;
        None where it does not fit the budget."""
        option, horizon = self.menu.options[row], int(self.menu.horizons[column])
        whole = self.query.samples or option.blind
        samples = horizon if whole else min(horizon, self.round_samples)
        max_tokens, belief = self.room(row, samples), self.state.posterior.difficulty
        # Where the model's context is what binds, a sample may have all of it.
        wanted = min(float(self.menu.completion[row] @ belief) * HEADROOM, float(self.menu.room[row]))
        price = Cost(
            float(self.flops[row, column]),
            float(self.menu.money[row] @ belief) * horizon,
            float(self.menu.tokens[row] @ belief) * horizon,
        )
        # What makes chains in parts costs more than what it reserves at first.
        if max_tokens < max(1.0, wanted) or (option.deep and not price.within(self.state.left)):
            return None
        return samples, max_tokens, price

    def action(self, row: int, column: int) -> Action | None:
        """The action, or None where it does not fit the budget."""
        fit = self._fit(row, column)
        if fit is None:
            return None
        option, (samples, max_tokens, price) = self.menu.options[row], fit
        return Action(
            model=option.model,
            arm=option.arm,
            strategy=option.strategy,
            samples=samples,
            horizon=int(self.menu.horizons[column]),
            max_tokens=max_tokens,
            accuracy=float(self.accuracy[row, column]),
            cost=price,
            seconds=float(self.seconds[row]),
            temperature=option.temperature,
            verifier=option.verifier,
            scoring=option.scoring,
            verified=option.verified,
            search=option.search_for(samples),
            deep=option.deep,
            tokens=float(self.menu.completion[row] @ self.state.posterior.difficulty),
        )

    def room(self, row: int, samples: int) -> int:
        """Most tokens that each of so many samples may have so that all surely fit in what is left."""
        option, left = self.menu.options[row], self.state.left
        if left == UNLIMITED:
            return int(self.menu.room[row])
        prompt = prompt_bound(self.query, option.model, option.strategy, option.search_for(samples))
        return cost.longest(
            option.model, option.lanes(samples), prompt, self.query.max_tokens, left, option.verifier
        )
