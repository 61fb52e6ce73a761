"""What the planner goes by, and what it decides. Plain data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar, overload

from isoflop.v1.common_pb2 import Model
from isoflop.v1.router_pb2 import Action as ActionMessage
from isoflop.v1.router_pb2 import Rejected
from isoflop.v1.verification_pb2 import CHAIN_SCORING_UNSPECIFIED, ChainScoring, Verifier

from router.belief import NO_VOTES, Posterior, Votes
from router.cost import Cost
from router.profile import Arm, Deep, Verified
from router.strategies.strategy import Search

T = TypeVar("T")

UNLIMITED = Cost(math.inf, math.inf, math.inf)


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
    verified: Verified | None = None
    """What scores say, where that was measured; None: they choose the answer by themselves."""
    probe: bool = False
    """One sample, for what it tells."""
    search: Search | None = None
    """How wide and how deep it goes for the samples; None: it makes whole ones."""
    deep: Deep | None = None
    """What was measured of that: its best chain is one sample. None: nothing, and each chain is one."""
    tokens: float = 0.0
    """Expected of a sample."""

    @property
    def lanes(self) -> int:
        """Samples that run at once."""
        return self.search.lanes if self.search else self.samples

    @property
    def name(self) -> str:
        """In words."""
        if self.probe:
            return f"{self.model.name} × 1 within {self.max_tokens} tokens"
        if self.search:
            return f"{self.model.name} {self.strategy} of {self.search}"
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


class Later(Sequence[T]):
    """A sequence that is worked out when somebody looks at it: most decisions are only carried out."""

    def __init__(self, find: Callable[[], Sequence[T]]) -> None:
        self._find = find

    @cached_property
    def _found(self) -> Sequence[T]:
        return self._find()

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[T]: ...
    def __getitem__(self, at: int | slice) -> T | Sequence[T]:
        return self._found[at]

    def __len__(self) -> int:
        return len(self._found)


@dataclass(frozen=True)
class Decision:
    """What to do next, and why."""

    action: Action | None
    """None: stop."""
    reason: str
    others: Sequence[Action] = ()
    """The best three others."""
    rejected: Sequence[Rejected] = ()
    """The same, with what speaks against each."""
    cut_short: bool = False
    """It stops for want of time, or of a model to ask, and not because more would not be worth its price."""


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
    pace: dict[str, float] = field(default_factory=dict)
    """By model: how many times as long as measured a sample takes now, under the present load."""
    deep: frozenset[Arm] = frozenset()
    """Measured strategies that have been bought: once is enough."""
