"""From tokens to FLOPs to money: the bill of a query, and what a round may cost at most."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from isoflop.errors import FailedPrecondition
from isoflop.usage import NUMBERS
from isoflop.v1.common_pb2 import (
    STAGE_DIFFICULTY,
    STAGE_GENERATION,
    STAGE_VERIFICATION,
    Bill,
    Model,
    Price,
    Shape,
    Stage,
    Usage,
)
from isoflop.v1.difficulty_pb2 import EstimateResponse
from isoflop.v1.generation_pb2 import RoundUsage
from isoflop.v1.verification_pb2 import ScoreResponse, Verifier
from numpy.typing import NDArray

from services.common.flops import attention, of_aborted, of_round

Number = TypeVar("Number", float, NDArray[np.float64])
"""One, or one for each type of query."""

TEMPLATE_TOKENS = 64
"""Tokens that a chat template may add to a prompt, at most, where a worst case is reckoned."""

UNITS = ("flops", "money", "tokens")
"""What costs and limits are in: fields of Cost."""

FLOPS_A_STEP = 2.0
"""Of a verifier that computes no tokens: a division and an exponential."""


@dataclass(frozen=True)
class Cost:
    """What something costs, or may cost."""

    flops: float = 0.0
    money: float = 0.0
    tokens: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.money + other.money, self.tokens + other.tokens)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.flops - other.flops, self.money - other.money, self.tokens - other.tokens)

    def times(self, share: float) -> Cost:
        """So many times as much."""
        return Cost(self.flops * share, self.money * share, self.tokens * share)

    def beyond(self, other: Cost) -> Cost:
        """So much it is more than the other, in each respect; 0 where it is not."""
        more = self - other
        return Cost(max(0.0, more.flops), max(0.0, more.money), max(0.0, more.tokens))

    def least(self, other: Cost) -> Cost:
        """The smaller of both in each respect."""
        return Cost(
            min(self.flops, other.flops), min(self.money, other.money), min(self.tokens, other.tokens)
        )

    def within(self, other: Cost) -> bool:
        """Whether it is at most the other in every respect."""
        return self.flops <= other.flops and self.money <= other.money and self.tokens <= other.tokens


def samples(
    model: Model, count: float, prompt: float, completion: float, verifier: Verifier | None = None
) -> Cost:
    """Cost of `count` samples of `completion` tokens each, none of their `prompt` tokens cached.

    With that of their scores, where there is a verifier: as if its tokenizer made as many tokens of them.
    Where another model drafts, as if none of what it drafts were taken.
    """
    rejected = float(model.draft.tokens)
    return Cost(*(count * one for one in sample(model, prompt, completion, verifier, rejected)))


def sample(
    model: Model,
    prompt: float,
    completion: Number,
    verifier: Verifier | None = None,
    rejected: float = 0.0,
) -> tuple[Number, Number, Number]:
    """FLOPs, money and tokens of one sample, for a number of tokens or an array of them.

    `rejected`: drafted tokens that are not taken, for each token.
    """
    flops, money, tokens = _run(model.shape, model.price, prompt, completion)
    if model.HasField("draft"):
        flops = flops + _drafts(model, prompt, completion, rejected)
    if verifier is None:
        return flops, money, tokens
    if not verifier.HasField("shape"):
        # It computes no tokens, only a few operations for each step; a step has a token at least.
        return flops + FLOPS_A_STEP * completion, money, tokens
    read = completion + (prompt + verifier.extra_tokens)
    if verifier.context:
        read = read - (read - verifier.context) * (read > verifier.context)
    more = _run(verifier.shape, verifier.price, read, verifier.completion_tokens + 0.0 * completion)
    return flops + more[0], money + more[1], tokens + more[2]


def cached(model: Model, prompt: float) -> tuple[float, float]:
    """FLOPs and money that a sample costs less where its prompt is in the engine's cache."""
    flops, money, _ = sample(model, prompt, 0.0)
    return flops, money - prompt * model.price.per_million_cached_tokens / 1e6


def _run(
    shape: Shape, price: Price, prompt: float | Number, completion: Number
) -> tuple[Number, Number, Number]:
    """FLOPs, money and tokens of computing so many tokens of a prompt and generating so many."""
    end = completion + prompt
    context = end * (end + 1) / 2
    if shape.window:
        # A token beyond the window attends to as many fewer as it is beyond it.
        beyond = (end - shape.window) * (end > shape.window)
        context = context - beyond * (beyond + 1) / 2
    flops = 2.0 * shape.active_parameters * end + attention(shape) * context
    money = completion * (price.per_million_completion_tokens / 1e6)
    return flops, money + prompt * (price.per_million_prompt_tokens / 1e6), end


def _drafts(model: Model, prompt: float, completion: Number, rejected: float) -> Number:
    """FLOPs of drafting, at most: as if each token came last. Its model reads all that the model does."""
    end, more = completion + prompt, rejected * completion
    draft = model.draft.shape
    drafted = (end + completion + 2 * more) * (2.0 * draft.active_parameters + attention(draft) * end)
    return more * (2.0 * model.shape.active_parameters + attention(model.shape) * end) + drafted


def longest(
    model: Model, count: int, prompt: int, limit: int, left: Cost, verifier: Verifier | None = None
) -> int:
    """Most tokens that each of `count` samples may have so that all of them surely fit in what is left.

    With their scores, where there is a verifier. At most `limit` (0: what the context leaves; where even
    that is unknown, a million). 0: none fits.
    """

    def fits(tokens: int) -> bool:
        return samples(model, count, prompt, tokens, verifier).within(left)

    most = min(
        limit or 1_000_000, model.context - prompt if model.context > prompt else model.context or 1_000_000
    )
    if fits(most):
        return most
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@dataclass
class Allowance:
    """What a query may still spend. A round is reserved at its worst case and settled at its cost."""

    limit: Cost
    """Infinite where there is no limit."""
    spent: Cost = Cost()
    reserved: Cost = Cost()

    @property
    def left(self) -> Cost:
        """What is neither spent nor reserved."""
        return self.unspent - self.reserved

    @property
    def unspent(self) -> Cost:
        """What is not spent, reserved or not."""
        return self.limit - self.spent

    def reserve(self, worst: Cost) -> None:
        """Set aside; raises FailedPrecondition where it does not fit."""
        if not worst.within(self.left):
            raise FailedPrecondition("the budget has no room for this round: allow more")
        self.reserved += worst

    def settle(self, worst: Cost, actual: Cost) -> None:
        """Replace a reservation by what was really spent."""
        self.reserved -= worst
        self.spent += actual


@dataclass
class Meter:
    """Adds up what a query uses."""

    currency: str
    _lines: dict[tuple[Stage.ValueType, str, str], Usage] = field(default_factory=dict)

    def generation(self, model: Model, strategy: str, usage: RoundUsage) -> Cost:
        """Add a round of samples; what it cost."""
        line = self._line(STAGE_GENERATION, model.name, strategy)
        generated = usage.completion_tokens + usage.aborted_tokens
        computed = usage.prompt_tokens + generated
        price = model.price
        flops, without_attention = of_round(model, usage)
        cost = Cost(
            flops=flops,
            money=(
                usage.prompt_tokens * price.per_million_prompt_tokens
                + usage.cached_tokens * price.per_million_cached_tokens
                + generated * price.per_million_completion_tokens
            )
            / 1e6,
            tokens=computed,
        )
        line.calls += usage.samples
        line.prompt_tokens += usage.prompt_tokens
        line.cached_tokens += usage.cached_tokens
        line.completion_tokens += usage.completion_tokens
        line.aborted_tokens += usage.aborted_tokens
        line.unseen_tokens += usage.unseen_tokens
        line.rejected_tokens += usage.rejected_tokens
        line.draft_tokens += usage.draft_tokens
        line.flops_without_attention += without_attention
        line.aborted_flops += of_aborted(model, usage)
        line.aborted_money += usage.aborted_tokens * price.per_million_completion_tokens / 1e6
        return self._add(line, cost)

    def verification(self, verifier: Verifier, strategy: str, response: ScoreResponse) -> Cost:
        """Add scores; what they cost."""
        line = self._line(STAGE_VERIFICATION, verifier.name, strategy)
        price = verifier.price
        line.calls += len(response.scores)
        line.prompt_tokens += response.tokens
        line.cached_tokens += response.cached_tokens
        line.completion_tokens += response.completion_tokens
        line.flops_without_attention += response.flops_without_attention
        cost = Cost(
            flops=response.flops,
            money=(
                response.tokens * price.per_million_prompt_tokens
                + response.cached_tokens * price.per_million_cached_tokens
                + response.completion_tokens * price.per_million_completion_tokens
            )
            / 1e6,
            tokens=response.tokens + response.completion_tokens,
        )
        return self._add(line, cost)

    def difficulty(self, response: EstimateResponse) -> Cost:
        """Add an estimate; what it cost."""
        line = self._line(STAGE_DIFFICULTY, response.estimator, "")
        line.calls += len(response.difficulties)
        line.flops_without_attention += response.flops
        return self._add(line, Cost(flops=response.flops))

    def add(self, lines: Iterable[Usage]) -> None:
        """Add the lines of another bill, in the same currency."""
        for other in lines:
            line = self._line(other.stage, other.model, other.strategy)
            for name in NUMBERS:
                setattr(line, name, getattr(line, name) + getattr(other, name))

    @property
    def lines(self) -> list[Usage]:
        """The lines so far."""
        return list(self._lines.values())

    def bill(self) -> Bill:
        """The lines and their sums."""
        lines = self.lines
        return Bill(
            lines=lines,
            flops=math.fsum(line.flops for line in lines),
            flops_without_attention=math.fsum(line.flops_without_attention for line in lines),
            tokens=sum(line.prompt_tokens + line.completion_tokens + line.aborted_tokens for line in lines),
            money=math.fsum(line.money for line in lines),
            currency=self.currency,
        )

    def _line(self, stage: Stage.ValueType, model: str, strategy: str) -> Usage:
        key = (stage, model, strategy)
        if key not in self._lines:
            self._lines[key] = Usage(stage=stage, model=model, strategy=strategy)
        return self._lines[key]

    @staticmethod
    def _add(line: Usage, cost: Cost) -> Cost:
        line.flops += cost.flops
        line.money += cost.money
        return cost
