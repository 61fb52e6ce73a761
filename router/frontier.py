"""The frontier: by difficulty, the measured plans that no other beats in accuracy at its price."""

from __future__ import annotations

from isoflop.v1.router_pb2 import Action, FrontierPoint, GetFrontierResponse

from router import cost
from router.catalog import Catalog
from router.profile import ROUND_SIZES, Profile

EVERY = 5
"""Grid points between those that are told of."""

PROMPT_BYTES = 16
"""Length of the query that costs are reckoned for."""


def measure(profile: Profile, catalog: Catalog) -> GetFrontierResponse:
    """Points by rising difficulty, then FLOPs; models that are not in the catalogue are left out."""
    response = GetFrontierResponse(profile=profile.version)
    for at in range(0, len(profile.grid), EVERY):
        plans = []
        for arm in profile.arms:
            if arm.model not in catalog.models:
                continue
            prompt = PROMPT_BYTES * arm.prompt_tokens_per_byte
            for row, samples in enumerate((1,) if arm.greedy else ROUND_SIZES):
                price = cost.samples(catalog.models[arm.model], samples, prompt, float(arm.tokens[at]))
                plans.append(
                    Action(
                        model=arm.model,
                        strategy="single" if arm.greedy else "majority",
                        samples=samples,
                        temperature=arm.temperature,
                        expected_accuracy=arm.p_right[at] if arm.greedy else arm.votes[row, at],
                        expected_flops=price.flops,
                        expected_money=price.money,
                    )
                )
        best = -1.0
        for plan in sorted(plans, key=lambda plan: (plan.expected_flops, -plan.expected_accuracy)):
            if plan.expected_accuracy > best:
                best = plan.expected_accuracy
                response.points.append(FrontierPoint(difficulty=profile.grid[at], action=plan))
    return response
