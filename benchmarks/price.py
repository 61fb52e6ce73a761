"""A budget that must last while difficulty shifts: the shadow price against even splits.

    python -m benchmarks.price [--streams 2] [--queries 160] [--recordings FOLDER]

Streams are of two kinds: drawn from the curves of the embedded models' profile, and recorded samples of
MATH-500, AIME and GPQA (left out where they are not there), with profiles fitted on other problems. No text
is read, and no model runs: the router's planner plays stored samples, under each policy the same ones.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
from isoflop.v1.generation_pb2 import DescribeModelsRequest

from benchmarks import price_recordings
from benchmarks.streams import DRAWN, Asked, Played, constant, draw, limited, priced, rolled, within
from router import profile
from router.catalog import Catalog
from router.planner import Planner
from services.common.settings import MODELS
from training.measured import Measured
from training.resampling import Floats, interval, resamples
from training.sampling import open_generation

mpl.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
BUDGETS: Final = (0.3, 1.0)
"""Of a stream, in what it takes at medium effort where nothing binds."""
WORTHS: Final = tuple(np.geomspace(0.01, 4.0, 8).tolist())
"""In that of medium effort: constants that are tried with hindsight."""
LIMITS: Final = (0.5, 1.0, 2.0, 4.0, 8.0)
"""In mean FLOPs at medium effort: equal limits that are tried with hindsight."""
SHIFTS: Final = {
    "drawn": ("easy", "hard", "middling", "hopeless"),
    "recorded": ("MATH-500", "AIME", "MATH-500", "GPQA"),
}
"""What each quarter of a stream is of."""
DIFFICULTIES: Final = (-1.5, 0.8, -0.3, 2.2)
DATASETS: Final = ("math500", "aime2024", "math500", "gpqa_diamond")
POLICIES: Final = (
    "shadow price",
    "even split",
    "even split, rest goes on",
    "best equal limit in hindsight",
    "best constant price in hindsight",
)


@dataclass(frozen=True, eq=False)
class Stream:
    """Queries, and who plays them."""

    kind: str
    order: str
    planner: Planner
    queries: Sequence[Asked]


@dataclass(frozen=True)
class Row:
    """A policy on all streams of a kind, an order and a budget."""

    kind: str
    order: str
    budget: float
    policy: str
    accuracy: float
    phases: list[float]
    """Accuracy in each."""
    spent: float
    """Share of the budget."""
    refused: float
    """Share of queries."""
    behind: tuple[float, float, float]
    """How much more accurate the shadow price is: difference, and its 95 % interval."""


def drawn(planner: Planner, queries: int, seed: int) -> list[Asked]:
    """Queries from the profile's own curves, a quarter of each difficulty."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(queries):
        phase = number * len(DIFFICULTIES) // queries
        difficulty = DIFFICULTIES[phase] + 0.4 * rng.standard_normal()
        nearest = int(np.abs(planner.profile.grid - difficulty).argmin())
        found.append(replace(draw(planner.profile, nearest, seed * queries + number), phase=phase))
    return found


def recorded(
    planner: Planner, problems: dict[str, Sequence[Measured]], queries: int, seed: int
) -> list[Asked]:
    """Problems that the profile was not fitted on, a quarter of each dataset, with replacement."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(queries):
        phase = number * len(DATASETS) // queries
        own = problems[DATASETS[phase]]
        problem = own[int(rng.integers(len(own)))]
        asked = price_recordings.asked(problem, planner.profile, seed * queries + number)
        found.append(replace(asked, phase=phase))
    return found


def timed(queries: Sequence[Asked], order: str) -> list[Asked]:
    """The queries as they come: evenly in turn, backwards, or four in five of them in the second half."""
    count = len(queries)
    if order == "backwards":
        queries = queries[::-1]
    at = (np.arange(count) + 0.5) / count
    if order == "busy late":
        at = np.where(at < 0.2, at * 2.5, 0.5 + (at - 0.2) / 1.6)
    return [replace(asked, at=float(when)) for asked, when in zip(queries, at, strict=True)]


def play_all(stream: Stream, free: dict[str, list[list[Played]]], flops: float) -> dict[str, list[Played]]:
    """Each policy on a stream; `free` has what does not depend on the budget, in the order of the stream."""

    def best(of: str) -> list[Played]:
        return max((within(played, flops) for played in free[of]), key=accuracy)

    planner, queries = stream.planner, stream.queries
    return {
        "shadow price": priced(planner, queries, flops),
        "even split": limited(planner, queries, flops / len(queries)),
        "even split, rest goes on": rolled(planner, queries, flops),
        "best equal limit in hindsight": best("limits"),
        "best constant price in hindsight": best("worths"),
    }


def accuracy(played: Sequence[Played]) -> float:
    """Share of right answers; who was refused has none."""
    return float(np.mean([one.right for one in played]))


def compare(
    kind: str, streams: list[tuple[Planner, list[Asked]]], orders: Sequence[str], told: Callable[[str], None]
) -> tuple[list[Row], tuple[Stream, float, dict[str, list[Played]]]]:
    """All policies, orders and budgets; and one stream as it was played, for the picture."""
    results: dict[tuple[str, float], list[tuple[Stream, float, dict[str, list[Played]]]]] = {}
    for number, (planner, queries) in enumerate(streams):
        medium = planner.profile.efforts["medium"]
        worths = [constant(planner, queries, medium * times) for times in WORTHS]
        mean = flops_of(constant(planner, queries, medium)) / len(queries)
        limits = [limited(planner, queries, mean * times) for times in LIMITS]
        told(f"{kind} stream {number + 1} of {len(streams)}: constants played")
        for order in orders:
            turn = slice(None, None, -1 if order == "backwards" else 1)
            free = {"worths": [one[turn] for one in worths], "limits": [one[turn] for one in limits]}
            stream = Stream(kind, order, planner, timed(queries, order))
            for share in BUDGETS if order == orders[0] else BUDGETS[:1]:
                flops = share * mean * len(queries)
                results.setdefault((order, share), []).append((stream, flops, play_all(stream, free, flops)))
                told(f"{kind} stream {number + 1}: {order}, budget {share:g}")
    rows = [
        row_of(kind, order, share, policy, found)
        for (order, share), found in results.items()
        for policy in POLICIES
    ]
    return rows, results[orders[0], BUDGETS[0]][0]


def flops_of(played: Sequence[Played]) -> float:
    """What all of them took."""
    return sum(one.flops for one in played)


def row_of(
    kind: str,
    order: str,
    share: float,
    policy: str,
    found: list[tuple[Stream, float, dict[str, list[Played]]]],
) -> Row:
    """One policy over all streams."""
    own = [one for _, _, played in found for one in played[policy]]
    price = [one for _, _, played in found for one in played["shadow price"]]
    phase = np.array([asked.phase for stream, _, _ in found for asked in stream.queries])
    right = np.array([one.right for one in own], float)
    gain: Floats = np.array([one.right for one in price], float) - right
    low, high = interval(resamples(len(gain)) @ gain)
    return Row(
        kind,
        order,
        share,
        policy,
        float(right.mean()),
        [float(right[phase == number].mean()) for number in range(4)],
        sum(flops_of(played[policy]) for _, _, played in found) / sum(flops for _, flops, _ in found),
        float(np.mean([one.refused for one in own])),
        (float(gain.mean()), low, high),
    )


def draw_picture(parts: list[tuple[Stream, float, dict[str, list[Played]]]], path: Path) -> None:
    """For each kind: the price, what was spent, and accuracy by phase."""
    figure, axes = plt.subplots(
        3, len(parts), figsize=(6.2 * len(parts), 9.0), layout="constrained", squeeze=False
    )
    colours = dict(zip(POLICIES, ("C0", "C1", "C4", "C2", "C3"), strict=True))
    for (stream, flops, played), column in zip(parts, axes.T, strict=True):
        at = np.array([asked.at for asked in stream.queries])
        names = SHIFTS[stream.kind]
        top, middle, bottom = column
        top.plot(at, [1e15 / one.worth for one in played["shadow price"]], color="C0", label="shadow price")
        best = "best constant price in hindsight"
        worth = next(one.worth for one in played[best] if not one.refused)
        top.axhline(1e15 / worth, color=colours[best], lw=1, label=best)
        top.set(yscale="log", ylabel="right answers by one more PFLOP", title=f"{stream.kind} stream")
        top.legend(fontsize=8, loc="upper left")
        middle.plot([0, 1], [0, 1], color="gray", lw=1, ls="--", label="the even line")
        for policy in POLICIES:
            spent = np.cumsum([one.flops for one in played[policy]]) / flops
            middle.plot(at, spent, color=colours[policy], lw=2 if policy == POLICIES[0] else 1, label=policy)
        middle.set(ylabel="share of the budget spent", xlabel="time, in windows")
        middle.legend(fontsize=7, loc="upper left")
        for axis in (top, middle):
            for phase in range(1, 4):
                axis.axvline(phase / 4, color="gray", lw=0.5)
            for phase, name in enumerate(names):
                axis.annotate(
                    name,
                    ((phase + 0.5) / 4, 0.02),
                    xycoords=("data", "axes fraction"),
                    ha="center",
                    fontsize=8,
                )
        phases = np.array([asked.phase for asked in stream.queries])
        for number, policy in enumerate(POLICIES):
            right = np.array([one.right for one in played[policy]])
            heights = [100 * right[phases == phase].mean() for phase in range(4)] + [100 * right.mean()]
            bottom.bar(np.arange(5) + 0.16 * (number - 2), heights, 0.15, color=colours[policy], label=policy)
        bottom.set_xticks(range(5), [f"{name}\n{n + 1}" for n, name in enumerate(names)] + ["all"])
        bottom.set(ylabel="right answers, %")
        bottom.grid(alpha=0.3, axis="y")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def report(rows: list[Row], left_out: list[str], about: str) -> str:
    """The page for people."""
    lines = [
        "# A budget that lasts",
        "",
        f"Written by `make bench-price`; not edited by hand. {about}",
        "",
        "![price, spending and accuracy](price.png)",
        "",
        f"One stream of each kind, at {BUDGETS[0]:g} of what medium effort takes without a budget.",
        *(f"\n**Left out**: {one}" for one in left_out),
    ]
    for kind, order, share in dict.fromkeys((row.kind, row.order, row.budget) for row in rows):
        names = SHIFTS[kind][:: -1 if order == "backwards" else 1]
        lines += [
            "",
            f"## {kind}, {order}, budget {share:g} of medium effort",
            "",
            f"In turn: {', '.join(names)}. Accuracy by phase is in that order.",
            "",
            "| policy | right, % | by phase, % | spent, % | refused, % | price over it, points (95 %) |",
            "|---|---:|---|---:|---:|---|",
        ]
        for row in rows:
            if (row.kind, row.order, row.budget) == (kind, order, share):
                phases = row.phases[:: -1 if order == "backwards" else 1]
                gain, low, high = (100 * value for value in row.behind)
                lines.append(
                    f"| {row.policy} | {100 * row.accuracy:.1f} "
                    f"| {' / '.join(f'{100 * value:.0f}' for value in phases)} "
                    f"| {100 * row.spent:.0f} | {100 * row.refused:.1f} "
                    f"| {'' if row.policy == POLICIES[0] else f'{gain:+.1f} ({low:+.1f} to {high:+.1f})'} |"
                )
    lines += [
        "",
        "*Shadow price*: `router/price.py`; begins at the profile's medium effort, and knows the window but",
        "not how many queries come. *Even split*: each query may spend the budget by the number of queries,",
        "known beforehand, on whatever raises accuracy; a round must fit in it at its worst case, so that",
        "part of the share is never spent. So it is followed by two that waste less: what a query leaves",
        "*goes on* to the next ones; and the *best equal limit in hindsight*, the same for all queries, of",
        f"{len(LIMITS)} that were tried. *Best constant price in hindsight*: of {len(WORTHS)}; what could be",
        "had by who knew all queries. Both end where the budget does. *Refused*: no plan fitted in what the",
        "query was given; counted as wrong. Differences are paired by query; intervals take queries as",
        "independent, which those of one stream are not quite. Eight shares as most that a query may have",
        "were chosen on other streams, of the same problems.",
    ]
    return "\n".join(lines) + "\n"


async def embedded() -> Catalog:
    """The embedded models: their shapes are what matters here."""
    async with open_generation() as generation:
        return Catalog.of((await generation.describe(DescribeModelsRequest())).models, [])


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--streams", type=int, default=2, help="of each kind")
    parser.add_argument("--queries", type=int, default=160, help="of a stream")
    parser.add_argument(
        "--recordings", type=Path, default=ROOT.parent / "shared" / "data" / "recordings", help="a folder"
    )
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "price.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "price.md")
    arguments = parser.parse_args()
    begin = time.perf_counter()

    def told(what: str) -> None:
        print(f"{time.perf_counter() - begin:6.0f} s  {what}", file=sys.stderr, flush=True)

    count, seeds = arguments.queries, range(arguments.streams)
    curves = profile.load(MODELS / "profile.json")
    planner = Planner(curves, asyncio.run(embedded()), 4, DRAWN)
    streams = [(planner, drawn(planner, count, seed)) for seed in seeds]
    rows, picture = compare("drawn", streams, ("in turn", "backwards", "busy late"), told)
    pictures, left_out = [picture], []
    try:
        problems = price_recordings.load(arguments.recordings, DATASETS)
        halves = [{name: found[half::2] for name, found in problems.items()} for half in (0, 1)]
        catalog = Catalog.of(price_recordings.models(), [])
        planners = [
            Planner(price_recordings.fitted([*chain(*half.values())]), catalog, 4, price_recordings.SAMPLES)
            for half in halves
        ]
        streams = [
            (planners[seed % 2], recorded(planners[seed % 2], halves[1 - seed % 2], count, seed))
            for seed in seeds
        ]
        found, picture = compare("recorded", streams, ("in turn", "backwards"), told)
        rows += found
        pictures.append(picture)
    except OSError as error:
        left_out.append(f"recorded samples: {error.strerror}.")
    for path in (arguments.json, arguments.page):
        path.parent.mkdir(parents=True, exist_ok=True)
    figures = {
        "streams": len(seeds),
        "queries": count,
        "rows": [asdict(row) for row in rows],
        "left_out": left_out,
    }
    arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    draw_picture(pictures, arguments.page.with_suffix(".png"))
    about = (
        f"{len(seeds)} streams of each kind, {count} queries each; "
        f"profile `{curves.version}`; Python {platform.python_version()}."
    )
    text = report(rows, left_out, about)
    arguments.page.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
