"""`isoflop feedback-report`: what callers' truths say of confidences, and of another profile."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from isoflop.errors import FailedPrecondition, IsoflopError
from isoflop.text import Style, line, si, table
from isoflop.v1.router_pb2 import SolveRequest

from router import profile as profiles
from router.decision import Action
from router.drift import Calibration, Drift, calibration, drift, thirds
from router.explore import STOP, bought
from router.lengths import Array
from router.off_policy import Estimate, Follows, Interval, estimate
from router.planner import Planner
from router.profile import Profile, ProfileError
from router.progress import Progress
from router.query import Bounds, admit
from router.truths import Answered, read

THIRDS = ("easy", "middle", "hard")
"""Names of the thirds of difficulty."""


@dataclass(frozen=True)
class OffPolicy:
    """What another profile's first choices would have brought."""

    profile: str
    """Its version."""
    queries: int
    """Those with a truth for which it has a first choice."""
    unplanned: int
    """Those for which it has none: it says that nothing fits what was asked for."""
    supported: float
    """Share of them whose choice had a chance: of the others only its own prediction is known."""
    effective: float
    """Effective sample size of those that began with its choice."""
    accuracy: Estimate
    flops: Estimate


@dataclass(frozen=True)
class Report:
    """What a file of feedback says. A query without a caller's truth counts in `queries` alone."""

    queries: int
    truths: int
    explored: int
    """Queries with a truth that began with another than the planner's own choice."""
    accuracy: float
    """Share of right answers."""
    flops: float
    """Mean of a query with a truth."""
    calibration: Calibration
    drift: Drift
    by_difficulty: dict[str, Drift]
    by_profile: dict[str, Drift]
    corrections: dict[str, dict[str, Drift]]
    """By first round and third of difficulty, weighted as if all queries had begun with it."""
    off_policy: OffPolicy | None


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """tell how right answers were, by callers' truths, and what another profile would have brought

    FILE is what the router has as --feedback. Only answers that a caller has called right or wrong count; who
    gives feedback may not be everybody. Drift is observed less predicted accuracy, in points. What another
    profile's first choices would have brought is told by the queries that began with them: explore_share lets
    more of them do so.
    """
    parser.add_argument("--store", type=Path, required=True, metavar="FILE", help="the router's feedback")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="another profile, to be estimated")
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    return _run


def _run(arguments: argparse.Namespace) -> int:
    try:
        profile = profiles.load(arguments.profile) if arguments.profile else None
    except ProfileError as error:
        raise FailedPrecondition(str(error)) from None
    found = report(read(arguments.store), profile)
    if arguments.json:
        print(json.dumps(_plain(asdict(found)), indent=2))
    else:
        print("\n".join(told(found, Style(colour=sys.stdout.isatty()))))
    return 0


def report(kept: Sequence[Answered], profile: Profile | None = None) -> Report:
    """What finished queries and truths say, and of another profile where one is given."""
    judged = [answered for answered in kept if answered.truth is not None]
    right = np.array([answered.truth.right for answered in judged if answered.truth], dtype=float)
    confidence = np.array([answered.confidence for answered in judged])
    flops = np.array([answered.flops for answered in judged])
    third = thirds(np.array([answered.difficulty for answered in judged]))
    weights = np.array([1 / answered.first.propensity for answered in judged])

    def of(chosen: Array, by: Array | None = None) -> Drift:
        return drift(right[chosen], confidence[chosen], None if by is None else by[chosen])

    version = np.array([answered.profile for answered in judged])
    first = np.array([answered.first.bought for answered in judged])
    return Report(
        queries=len(kept),
        truths=len(judged),
        explored=sum(answered.taken > 0 for answered in judged),
        accuracy=float(right.mean()) if judged else math.nan,
        flops=float(flops.mean()) if judged else math.nan,
        calibration=calibration(right, confidence),
        drift=drift(right, confidence),
        by_difficulty={name: of(third == number) for number, name in enumerate(THIRDS)},
        by_profile={str(name): of(version == name) for name in dict.fromkeys(version)},
        corrections={
            str(name): {
                THIRDS[number]: of((first == name) & (third == number), weights)
                for number in sorted(set(third[first == name]))
            }
            for name in sorted(set(first))
        },
        off_policy=_off_policy(judged, right, flops, profile) if profile else None,
    )


def first_choice(answered: Answered, planner: Planner) -> Action | None:
    """What a planner would have begun a query with; None: nothing.

    Raises the planner's errors where no round fits what was asked for.
    """
    # Of the text only its length is known, and only that counts.
    request = SolveRequest()
    request.CopyFrom(answered.asked)
    request.prompt = "x" * answered.prompt_bytes
    # Whatever its router's bounds of searches were: it was admitted.
    bounds = Bounds(answered.prompt_bytes, answered.max_samples, 1, depth=1 << 30, nodes=1 << 30)
    query = admit(request, answered.catalog, bounds)
    progress = Progress(planner.profile.belief(answered.difficulty, answered.difficulty_sd))
    return planner.decide(query, progress.state(query.limit, answered.seconds, 0.0, {})).action


def _off_policy(judged: Sequence[Answered], right: Array, flops: Array, profile: Profile) -> OffPolicy:
    planned, rows = [], []
    planners: dict[tuple[int, int, int], Planner] = {}
    for number, answered in enumerate(judged):
        catalog, sizes = answered.catalog, (answered.round_samples, answered.max_samples)
        planner = planners.setdefault((id(catalog), *sizes), Planner(profile, catalog, *sizes))
        try:
            action = first_choice(answered, planner)
        except IsoflopError:
            continue
        name = bought(action) if action else STOP.bought
        propensity = next((offer.propensity for offer in answered.offers if offer.bought == name), 0.0)
        planned.append(number)
        rows.append(
            (
                answered.first.bought == name,
                propensity,
                action.accuracy if action else 0.0,
                action.cost.flops if action else 0.0,
            )
        )
    took, chances, accuracy, price = np.array(rows, dtype=float).reshape(-1, 4).T
    follows = Follows(took, chances)
    return OffPolicy(
        profile=profile.version,
        queries=len(planned),
        unplanned=len(judged) - len(planned),
        supported=follows.supported,
        effective=follows.effective,
        accuracy=estimate(follows, right[planned], accuracy),
        flops=estimate(follows, flops[planned], price),
    )


def told(found: Report, style: Style) -> list[str]:
    """In lines for people."""
    lines = [
        f"{found.queries} queries, {found.truths} with a truth, {found.explored} of these explored",
    ]
    if not found.truths:
        return [*lines, "no caller has said what is right: nothing can be told of accuracy"]
    quality = found.calibration
    lines += [
        f"right {found.accuracy:.1%} for {si(found.flops)}FLOPs a query",
        f"confidence: ECE {quality.ece:.3f}, Brier {quality.brier:.3f}, skill {_number(quality.skill)}",
        "",
    ]
    rows = [("all", found.drift)]
    rows += [(name, each) for name, each in found.by_difficulty.items() if each.truths]
    rows += [(f"profile {line(name)}", each) for name, each in found.by_profile.items()]
    rows += [
        (f"{line(name)}, {third}", each)
        for name, by_third in found.corrections.items()
        for third, each in by_third.items()
    ]
    header = ("which", "truths", "observed", "predicted", "drift", "95 % interval")
    lines += table("lrrrrr", header, [(name, *_drift(each)) for name, each in rows], style)
    if other := found.off_policy:
        lines += [
            "",
            f"first choices of profile {line(other.profile)}, {other.queries} queries "
            f"({other.unplanned} more that it has no plan for): {other.supported:.0%} had a chance, "
            f"effective sample size {other.effective:.0f}",
            *table(
                "lrrrr",
                ("estimate", "right", "95 % interval", "FLOPs", "95 % interval"),
                [
                    (
                        name,
                        *_interval(accuracy, lambda value: f"{value:.1%}"),
                        *_interval(flops, si),
                    )
                    for name, accuracy, flops in (
                        ("weighted", other.accuracy.weighted, other.flops.weighted),
                        ("doubly robust", other.accuracy.doubly_robust, other.flops.doubly_robust),
                    )
                ],
                style,
            ),
        ]
    return lines


def _drift(each: Drift) -> tuple[str, ...]:
    return (
        str(each.truths),
        f"{each.observed:.1%}",
        f"{each.predicted:.1%}",
        f"{100 * each.value:+.1f}",
        f"{_number(100 * each.low, '+.1f')} to {_number(100 * each.high, '+.1f')}",
    )


def _interval(each: Interval, write: Callable[[float], str]) -> tuple[str, str]:
    def wrote(value: float) -> str:
        return "?" if math.isnan(value) else write(value)

    return wrote(each.value), f"{wrote(each.low)} to {wrote(each.high)}"


def _number(value: float, form: str = ".3f") -> str:
    return "?" if math.isnan(value) else format(value, form)


def _plain(value: Any) -> Any:
    """With null for what is not a number."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
