"""What a profile's fixed plan would cost on a query that the planner has decided for itself. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from router import cost
from router.cost import Cost
from router.decision import UNLIMITED
from router.lengths import Array
from router.menu import Menu
from router.profile import BaselineRecord
from router.query import Query


@dataclass(frozen=True)
class Fixed:
    """A fixed plan for a query."""

    samples: int
    cost: Cost
    """Expected."""


def is_free(query: Query) -> bool:
    """Whether it says nothing of how it is to be answered but an effort."""
    filters = query.models or query.strategies or query.samples or query.max_tokens or query.verifier
    objective = query.objective
    return not (
        filters
        or query.scoring
        or query.temperature is not None
        or objective.worth is not None
        or objective.target is not None
        or query.limit != UNLIMITED
    )


def expected(plan: BaselineRecord, query: Query, menu: Menu, difficulty: Array) -> Fixed | None:
    """The plan on a query of whose type that is believed, shape (D,); None where it is not on the menu.

    Its prompt is counted once, as if it were cached from then on. Over queries like those of calibration the
    sum is right.
    """
    for row, option in enumerate(menu.options):
        verifier = option.verifier.name if option.verifier else ""
        its = option.model.name, option.temperature, verifier
        if option.search is None and its == (plan.model, plan.temperature, plan.verifier):
            prompt = query.prompt_bytes * option.arm.prompt_tokens_per_byte
            once = Cost(*(float(one[row] @ difficulty) for one in (menu.flops, menu.money, menu.tokens)))
            again = Cost(*cost.cached(option.model, prompt), prompt).times(plan.samples - 1)
            right = plan.flops / (plan.expected_flops or plan.flops)
            return Fixed(plan.samples, (once.times(plan.samples) - again).times(right))
    return None
