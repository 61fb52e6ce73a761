"""What can be bought for a query: arms by strategies, with what each costs by type of query. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from isoflop.v1.common_pb2 import Model
from isoflop.v1.verification_pb2 import CHAIN_SCORING_UNSPECIFIED, ChainScoring, Verifier
from numpy.typing import NDArray

from router import cost
from router.accuracy import Stack
from router.catalog import Catalog
from router.decision import UNLIMITED
from router.lengths import Array
from router.profile import MOST_VOTES, ROUND_SIZES, Arm, Deep, Profile, Verified
from router.prompt import prompt_bound
from router.query import Query
from router.strategies import STRATEGIES
from router.strategies.strategy import Search


@dataclass(frozen=True, eq=False)
class Option:
    """One way to get samples."""

    model: Model
    arm: Arm
    strategy: str
    temperature: float
    most: int
    """Samples of the model that a query can get."""
    verifier: Verifier | None = None
    """What scores the samples; None: nothing."""
    scoring: ChainScoring.ValueType = CHAIN_SCORING_UNSPECIFIED
    """From the scores of steps to the score of a chain."""
    verified: Verified | None = None
    """What scores say, where calibration has measured that."""
    search: Search | None = None
    """How wide and how deep it goes; None: it makes whole samples."""
    deep: Deep | None = None
    """What was measured of that; None: nothing."""

    @property
    def times(self) -> Array | int:
        """What one costs in samples: a number, or shape (D,) where it was measured."""
        if self.deep:
            return self.deep.times
        return self.search.expansion if self.search else 1

    def turns(self, tokens: Array, profile: Profile) -> Array:
        """Tokens that follow each other, shape (D,), where its chain has `tokens`.

        Of what was measured, as if it took as long a token as samples do, on all its lanes.
        """
        if not self.deep:
            return tokens
        own = profile.arm(self.model, False, None).tokens
        return np.asarray(np.maximum(tokens, own * self.deep.times / self.lanes(1)))

    @property
    def once(self) -> bool:
        """It is a measured strategy that is bought once."""
        return self.deep is not None and self.deep.once

    def search_for(self, samples: int) -> Search | None:
        """How wide and how deep it goes for so many samples."""
        if self.search and self.deep and not self.once:
            return replace(self.search, width=samples)
        return self.search

    def lanes(self, samples: int) -> int:
        """Samples that run at once for so many."""
        search = self.search_for(samples)
        return search.lanes if search else samples

    @property
    def blind(self) -> bool:
        """It is scored, and what scores say was not measured: nothing tells what more samples bring."""
        return self.verifier is not None and self.verified is None and self.deep is None


@dataclass(frozen=True, eq=False)
class Menu:
    """N options, D types of queries.

    Costs are of one sample, with its score and its prompt; of a search, with all that it tries for it.
    """

    options: tuple[Option, ...]
    flops: Array
    """Shape (N, D)."""
    money: Array
    """Shape (N, D), in the catalogue's currency."""
    tokens: Array
    """Shape (N, D), those of the prompt with them."""
    completion: Array
    """Shape (N, D): tokens of the sample alone."""
    seconds: Array
    """Shape (N, D), by the speed that was measured; 0 where it was not."""
    most: Array
    """Shape (N,): samples of the model that a query can get."""
    greedy: NDArray[np.bool_]
    """Shape (N,): whether it is a model's single sample."""
    room: Array
    """Shape (N,): most tokens that a sample may have, by the caller and the model's context."""
    horizons: Array
    """Shape (H,): ROUND_SIZES, or the number of samples that the caller wants."""
    _stacks: dict[frozenset[str], Stack] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, query: Query, profile: Profile, catalog: Catalog, most: int) -> Menu:
        """What the query's filters and the backends leave; at most `most` samples of a model."""
        options = tuple(_options(query, profile, catalog, most))
        limit = float(query.max_tokens or np.inf)
        completion = [np.minimum(option.arm.tokens, limit) for option in options]
        costs = [
            cost.sample(
                option.model,
                query.prompt_bytes * option.arm.prompt_tokens_per_byte,
                # What was measured of it is in samples of the model's own arm, without scores.
                profile.arm(option.model, False, None).tokens if option.deep else tokens,
                None if option.deep else option.verifier,
            )
            for option, tokens in zip(options, completion, strict=True)
        ]
        shape = (len(options), len(profile.grid))
        times = np.array([np.broadcast_to(option.times, shape[1]) for option in options]).reshape(shape)
        flops, money, tokens = (times * np.array([one[i] for one in costs]).reshape(shape) for i in range(3))
        seconds = [
            option.turns(tokens, profile) * option.arm.seconds_per_token
            for option, tokens in zip(options, completion, strict=True)
        ]
        return cls(
            options,
            flops,
            money,
            tokens,
            np.array(completion).reshape(shape),
            np.array(seconds).reshape(shape),
            np.array([option.most for option in options]),
            np.array([option.strategy == "single" for option in options], dtype=bool),
            np.array(
                [
                    cost.longest(
                        option.model,
                        option.lanes(1),
                        prompt_bound(query, option.model, option.strategy, option.search),
                        query.max_tokens,
                        UNLIMITED,
                        option.verifier,
                    )
                    for option in options
                ]
            ),
            np.array([query.samples] if query.samples else ROUND_SIZES, np.float64),
        )

    @cached_property
    def of_arm(self) -> dict[Arm, list[int]]:
        """By the arm of a measured strategy that is bought once, its option."""
        return {option.arm: [row] for row, option in enumerate(self.options) if option.once}

    @cached_property
    def of_model(self) -> dict[str, NDArray[np.int64]]:
        """By model, its options."""
        names = np.array([option.model.name for option in self.options])
        return {name: np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())}

    @cached_property
    def same_model(self) -> NDArray[np.bool_]:
        """Shape (N, N): whether two options are of one model."""
        names = np.array([option.model.name for option in self.options])
        return np.asarray(names[:, None] == names)

    @cached_property
    def plans(self) -> NDArray[np.bool_]:
        """Shape (N, H): whether there is such a plan: some are bought one by one."""
        alone = self.greedy | np.array([option.once for option in self.options], dtype=bool)
        return np.asarray(~alone[:, None] | (self.horizons == 1))

    @cached_property
    def blind(self) -> NDArray[np.bool_]:
        """Shape (N,): see `Option.blind`."""
        return np.array([option.blind for option in self.options], dtype=bool)

    @cached_property
    def blinds(self) -> bool:
        """Whether there is such an option."""
        return bool(self.blind.any())

    @cached_property
    def probes(self) -> NDArray[np.int64]:
        """Options of which one sample may tell more than it brings: their lengths were measured."""
        lengths = [option.arm.length is not None and option.verifier is None for option in self.options]
        return np.flatnonzero(lengths)

    def stack(self, greedy: frozenset[str]) -> Stack:
        """Their tables, where the greedy samples of these models have been bought."""
        if greedy not in self._stacks:
            arms = (
                option.arm.after_greedy[0]
                if option.arm.after_greedy and option.model.name in greedy
                else option.arm
                for option in self.options
            )
            told = (option.verified for option in self.options)
            self._stacks[greedy] = Stack.of(tuple(zip(arms, told, strict=True)))
        return self._stacks[greedy]


def _options(query: Query, profile: Profile, catalog: Catalog, most: int) -> Iterator[Option]:
    for model in models(query, profile, catalog):
        for strategy in query.strategies or ("single", "majority", "weighted"):
            single, verifies = strategy == "single", STRATEGIES[strategy].verifies
            if (query.samples > 1 and single) or not STRATEGIES[strategy].serves(model):
                continue
            if query.temperature == 0 and not single and not query.search:
                continue
            if verifies and not query.strategies and not catalog.verifiers:
                continue
            greedy = not query.temperature if single else query.temperature == 0
            arm = profile.arm(model, greedy, query.temperature)
            verifier = catalog.verifier(query.verifier) if verifies else None
            verified, scoring = None, query.scoring
            if verifier:
                if verifier.needs_logprobs and not model.capabilities.logprobs:
                    continue
                # What was measured is a weighted vote by the verifier's own rule, not a plan of the caller's.
                if strategy == "weighted" and not query.samples and scoring in (0, verifier.scoring):
                    verified = arm.verified_by(verifier.name)
                scoring = scoring or verifier.scoring
                if not query.strategies and not verified:
                    continue
            yield Option(
                model,
                arm,
                strategy,
                arm.temperature if query.temperature is None else query.temperature,
                min(model.capabilities.samples or MOST_VOTES, most),
                verifier,
                scoring,
                verified,
                query.search,
            )
        yield from _deep_options(model, query, profile, catalog)


def _deep_options(model: Model, query: Query, profile: Profile, catalog: Catalog) -> Iterator[Option]:
    """Strategies that were measured with the model, where the caller leaves all to the planner."""
    if query.strategies or query.samples or query.max_tokens or query.temperature is not None:
        return
    for deep in profile.deep:
        if deep.arm.model != model.name or not STRATEGIES[deep.strategy].serves(model):
            continue
        verifier = catalog.verifiers.get(deep.verifier)
        if deep.verifier:
            # What was measured is that verifier's word, by its own rule.
            other = query.verifier not in ("", deep.verifier) or query.scoring
            if verifier is None or other or (verifier.needs_logprobs and not model.capabilities.logprobs):
                continue
        yield Option(
            model,
            deep.arm,
            deep.strategy,
            deep.arm.temperature,
            most=MOST_VOTES,
            verifier=verifier,
            scoring=verifier.scoring if verifier else CHAIN_SCORING_UNSPECIFIED,
            search=deep.search,
            deep=deep,
        )


def models(query: Query, profile: Profile, catalog: Catalog) -> list[Model]:
    """Those that are named; else those that were measured; else all."""
    if query.models:
        return [model for model in catalog.models.values() if model.name in query.models]
    measured = {arm.model for arm in profile.arms}
    return [model for model in catalog.models.values() if model.name in measured] or list(
        catalog.models.values()
    )
