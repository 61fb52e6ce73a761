"""The frontier: by difficulty, the measured plans that no other beats at its price, nor a mixture of two."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from isoflop.v1.router_pb2 import Action, FrontierPoint, GetFrontierResponse

from router import cost
from router.catalog import Catalog
from router.lengths import Array
from router.profile import ROUND_SIZES, Arm, Profile, Verified

BINS = 9
"""Bins of difficulty that are told of, each of as many queries."""

PROMPT_BYTES = 16
"""Length of the query that costs are reckoned for."""


def measure(profile: Profile, catalog: Catalog) -> GetFrontierResponse:
    """Points by rising difficulty, then FLOPs; models that are not in the catalogue are left out."""
    response = GetFrontierResponse(profile=profile.version)
    for share in bins(profile):
        difficulty = float(share @ profile.grid)
        for plan in _hull(_plans(profile, catalog, share)):
            response.points.append(FrontierPoint(difficulty=difficulty, action=plan))
    return response


def _hull(plans: Iterable[Action]) -> list[Action]:
    """The plans by rising FLOPs, each of which raises accuracy, by ever less for a FLOP."""
    hull: list[Action] = []
    for plan in sorted(plans, key=lambda plan: (plan.expected_flops, -plan.expected_accuracy)):
        if hull and plan.expected_accuracy <= hull[-1].expected_accuracy:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], plan):
            hull.pop()
        hull.append(plan)
    return hull


def _slope(cheaper: Action, dearer: Action) -> float:
    gain = dearer.expected_accuracy - cheaper.expected_accuracy
    return gain / (dearer.expected_flops - cheaper.expected_flops)


def bins(profile: Profile) -> Array:
    """Share of each type in each bin, shape (at most BINS, D); rows sum to 1, difficulties rise."""
    ends = np.concatenate([[0.0], np.cumsum(profile.prior)])
    edges = np.linspace(0.0, 1.0, BINS + 1)
    inside = np.minimum(ends[1:], edges[1:, None]) - np.maximum(ends[:-1], edges[:-1, None])
    inside = np.maximum(inside, 0.0)
    return np.asarray(inside / inside.sum(axis=1, keepdims=True))


def _plans(profile: Profile, catalog: Catalog, share: Array) -> Iterator[Action]:
    for arm in profile.arms:
        if arm.model in catalog.models:
            if arm.greedy:
                yield _plan(catalog, share, arm, 0, "single", None)
                continue
            for row in range(len(ROUND_SIZES)):
                yield _plan(catalog, share, arm, row, "majority", None)
                for told in arm.verified:
                    if row and told.verifier in catalog.verifiers:
                        yield _plan(catalog, share, arm, row, "weighted", told)


def _plan(catalog: Catalog, share: Array, arm: Arm, row: int, strategy: str, told: Verified | None) -> Action:
    """So many samples of an arm, with what was measured of them."""
    verifier = catalog.verifiers[told.verifier] if told else None
    prompt = PROMPT_BYTES * arm.prompt_tokens_per_byte
    flops, money, _ = cost.sample(catalog.models[arm.model], prompt, arm.tokens, verifier)
    samples = ROUND_SIZES[row]
    right = told.votes[row] if told else arm.p_right if arm.greedy else arm.votes[row]
    return Action(
        model=arm.model,
        strategy=strategy,
        samples=samples,
        temperature=arm.temperature,
        verifier=told.verifier if told else "",
        expected_accuracy=float(share @ right),
        expected_flops=samples * float(share @ flops),
        expected_money=samples * float(share @ money),
    )
