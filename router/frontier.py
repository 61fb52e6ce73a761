"""The frontier: by difficulty, the measured plans that no other beats at its price, nor a mixture of two.

With it the scaling laws that calibration has fitted: how far more samples lead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from isoflop.v1.router_pb2 import (
    Action,
    FrontierPoint,
    GetFrontierResponse,
    ScalingInterval,
    ScalingLaw,
    ScalingPoint,
)

from router import cost
from router.catalog import Catalog
from router.lengths import Array
from router.profile import ROUND_SIZES, Arm, Deep, Profile, Verified
from router.scaling import ScalingRecord

T = TypeVar("T")

BINS = 9
"""Bins of difficulty that are told of, each of as many queries."""

PROMPT_BYTES = 16
"""Length of the query that costs are reckoned for."""


def measure(profile: Profile, catalog: Catalog) -> GetFrontierResponse:
    """Points by rising difficulty, then FLOPs, and laws; models and verifiers that are not in the catalogue
    are left out."""
    response = GetFrontierResponse(profile=profile.version)
    for share in profile.bins(BINS):
        difficulty = float(share @ profile.grid)
        for plan in hull(_plans(profile, catalog, share), _price):
            response.points.append(FrontierPoint(difficulty=difficulty, action=plan))
    response.laws.extend(
        _law(record)
        for record in profile.scaling
        if record.model in catalog.models and (not record.verifier or record.verifier in catalog.verifiers)
    )
    return response


def _law(record: ScalingRecord) -> ScalingLaw:
    least, most = record.samples
    doubled = [2**power for power in range(most.bit_length())]
    between = {n for power in doubled for n in (power, power * 3 // 2) if least < n < most}
    easiest, hardest = record.difficulty or (None, None)
    return ScalingLaw(
        model=record.model,
        temperature=record.temperature,
        strategy=record.strategy,
        verifier=record.verifier,
        easiest=easiest,
        hardest=hardest,
        queries=record.queries,
        form=record.form,
        parameters=record.parameters,
        points=[ScalingPoint(samples=n, accuracy=record.at(n)) for n in sorted({least, most} | between)],
        interval=_interval(record.interval),
        ceiling=record.ceiling,
        ceiling_interval=_interval(record.ceiling_interval),
        best_samples=record.best_n,
        falls=record.falls,
    )


def _interval(ends: tuple[float, float] | None) -> ScalingInterval | None:
    return ScalingInterval(low=ends[0], high=ends[1]) if ends else None


def hull(points: Iterable[T], at: Callable[[T], tuple[float, float]]) -> list[T]:
    """Those by rising FLOPs each of which raises accuracy, by ever less for a FLOP; `at` tells the two."""
    found: list[T] = []
    for point in sorted(points, key=lambda point: (at(point)[0], -at(point)[1])):
        if found and at(point)[1] <= at(found[-1])[1]:
            continue
        while len(found) > 1 and _slope(at(found[-2]), at(found[-1])) <= _slope(at(found[-1]), at(point)):
            found.pop()
        found.append(point)
    return found


def _slope(cheaper: tuple[float, float], dearer: tuple[float, float]) -> float:
    return (dearer[1] - cheaper[1]) / (dearer[0] - cheaper[0])


def _price(plan: Action) -> tuple[float, float]:
    return plan.expected_flops, plan.expected_accuracy


def _plans(profile: Profile, catalog: Catalog, share: Array) -> Iterator[Action]:
    for deep in profile.deep:
        if deep.arm.model in catalog.models and (not deep.verifier or deep.verifier in catalog.verifiers):
            for row in range(1 if deep.once else len(ROUND_SIZES)):
                yield _deep_plan(catalog, profile, share, deep, row)
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


def _deep_plan(catalog: Catalog, profile: Profile, share: Array, deep: Deep, row: int) -> Action:
    """A measured strategy, so often."""
    model = catalog.models[deep.arm.model]
    own = profile.arm(model, False, None)
    flops, money, _ = cost.sample(model, PROMPT_BYTES * own.prompt_tokens_per_byte, own.tokens)
    return Action(
        model=model.name,
        strategy=deep.strategy,
        samples=ROUND_SIZES[row],
        temperature=deep.arm.temperature,
        verifier=deep.verifier,
        expected_accuracy=float(share @ (deep.arm.votes[row] if row else deep.arm.p_right)),
        expected_flops=ROUND_SIZES[row] * float(share @ (deep.times * flops)),
        expected_money=ROUND_SIZES[row] * float(share @ (deep.times * money)),
    )


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
