"""isoflop on recordings of real models, beside fixed votes, early stopping, cascades and an oracle.

    python -m benchmarks.replay                          # the three recordings in ../shared
    python -m benchmarks.replay --recordings FILE [FILE ...] [--models A,B] --json OUT

The real suite (router, planner, bill, generation from recordings, aggregation) solves every problem under 50
permutations of its samples at eleven worths of a right answer, with profiles fitted on other problems (see
`replay_suite.py`); baselines and oracle are counted on the same samples (`replay_baselines.py`); figures are
means without first-sample luck and paired bootstraps over problems (`replay_figures.py`). What was solved is
kept in `build/replay/`, so that a run that was stopped goes on. Nothing is tuned on a problem that it is
scored on.

OUT has an object for a data set, or a list of them for several; unless models are named, the same for the
dense models alone is in its `dense`. Beside OUT are written, with its name: `_queries.jsonl`, a row for each
problem; a page; and its picture.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console

from benchmarks import replay_baselines as baselines
from benchmarks.replay_data import Recording, RecordingError, read
from benchmarks.replay_figures import Luck, Plan, Rivals, by_query, hull, rivals, summary
from benchmarks.replay_report import write_page
from benchmarks.replay_suite import STORE, WORTHS, Replay, ReplayFailed, Solved, points
from training.shares import WorkFailed

ROOT: Final = Path(__file__).parents[1]
RECORDINGS: Final = ROOT.parent / "shared" / "data" / "recordings"
DEFAULT: Final = ("math500", "gpqa_diamond", "aime2024")
PERMUTATIONS: Final = 50
ORDERS: Final = 200
"""Permutations that baselines are counted on, the suite's among them."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """All policies on one recording."""

    recording: Recording
    pool: str
    """Which models these are: all of the recording, the dense, or those named."""
    permutations: int
    policy: Sequence[Plan]
    solved: Sequence[Solved]
    """In the order of the worths of `policy`."""
    against: Rivals
    others: dict[str, Sequence[Plan]]
    """The other baselines; a cascade needs two models."""

    def result(self) -> dict[str, Any]:
        """As the JSON has it."""
        told, intervals = summary(self.policy, self.against)
        others = {name: summary(_vertices(plans), self.against) for name, plans in self.others.items()}
        return {
            "dataset": self.recording.dataset,
            "problems": len(self.recording.problems),
            "permutations": self.permutations,
            "pool": self.pool,
            "models": self.recording.models,
            "policy": [
                {**plan.row(), **extra} for plan, extra in zip(self.policy, self._extras(), strict=True)
            ],
            "baselines": [
                plan.row() for plans in (self.against.fixed, *self.others.values()) for plan in plans
            ],
            "oracle": [plan.row() for plan in self.against.oracle],
            "summary": told,
            "summary_intervals": intervals,
            "baseline_summaries": {name: figures for name, (figures, _) in others.items()},
        }

    def plans(self) -> dict[str, Sequence[Plan]]:
        """What the rows by query tell: the policy, and the plans that baselines' hulls are made of."""
        return {
            "policy": self.policy,
            "fixed": _vertices(self.against.fixed),
            **{name: _vertices(plans) for name, plans in self.others.items()},
            "oracle": _vertices(self.against.oracle),
        }

    def _extras(self) -> list[dict[str, Any]]:
        """Of each of the policy's settings: the confidence told, and samples by model, means of a query."""
        each = len(self.solved) // len(self.policy)
        parts = [self.solved[at : at + each] for at in range(0, len(self.solved), each)]
        return [
            {
                "confidence": round(float(np.mean([one.confidence for one in part])), 5),
                "samples": {
                    name: round(float(np.mean([one.samples.get(name, 0) for one in part])), 4)
                    for name in self.recording.models
                },
            }
            for part in parts
        ]


def _vertices(plans: Sequence[Plan]) -> list[Plan]:
    """The plans that the hull is made of."""
    wanted = set(hull((float(plan.flops.mean()), float(plan.right.mean())) for plan in plans))
    return [plan for plan in plans if (float(plan.flops.mean()), float(plan.right.mean())) in wanted]


def compare(
    recording: Recording,
    pool: str,
    permutations: int,
    worths: Sequence[float],
    workers: int,
    store: Path,
) -> Comparison:
    """Play the policy and all baselines."""
    solved = Replay(recording, store).run(permutations, worths, workers)
    played = {
        name: recording.orders(name, permutations, max(0, ORDERS - permutations), baselines.MOST)
        for name in recording.models
    }
    own = Luck(recording, {name: order[:, :permutations] for name, order in played.items()})
    policy = [Plan.of(point, own) for point in points(recording, solved, permutations, worths)]
    luck, votes = Luck(recording, played), baselines.votes(recording, played)
    fixed = [Plan.of(point, luck) for point in baselines.fixed(votes)]
    others = {
        "Adaptive-Consistency": baselines.adaptive_consistency,
        "ESC": baselines.early_stopping,
        "agreement cascade": baselines.cascades,
    }
    told = {name: [Plan.of(point, luck) for point in made(votes)] for name, made in others.items()}
    return Comparison(
        recording,
        pool,
        permutations,
        policy,
        solved,
        rivals(fixed, [Plan.of(point, None) for point in baselines.oracle(recording)]),
        {name: plans for name, plans in told.items() if plans},
    )


def pools(recording: Recording) -> dict[str, Recording]:
    """All models, and the dense ones alone where there are any and others."""
    dense = [name for name, track in recording.tracks.items() if track.size.dense]
    both = {"all": recording, "dense": recording.of(dense)}
    return both if 0 < len(dense) < len(recording.tracks) else {"all": recording}


def text(value: Any) -> str:
    """JSON with a line for each row."""
    if isinstance(value, dict) and any(isinstance(one, (dict, list)) for one in value.values()):
        return "{\n" + ",\n".join(f"{json.dumps(name)}: {text(one)}" for name, one in value.items()) + "\n}"
    if isinstance(value, list) and any(isinstance(one, dict) for one in value):
        return "[\n" + ",\n".join(text(one) if "policy" in one else json.dumps(one) for one in value) + "\n]"
    return json.dumps(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, write, and print the summaries; 2 where the recordings cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.replay", description="isoflop on recordings, beside baselines"
    )
    parser.add_argument("--recordings", nargs="+", type=Path, metavar="FILE", help="JSON lines, plain or .gz")
    parser.add_argument("--models", default="", metavar="A,B", help="these alone; all in the recordings")
    parser.add_argument("--permutations", type=int, default=PERMUTATIONS, help="of each problem's samples")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--json", type=Path, metavar="OUT", help="where figures go")
    asked = parser.parse_args(arguments)
    if asked.permutations < 1 or asked.workers < 1:
        parser.error("--permutations and --workers are at least 1")
    models = [name for name in asked.models.split(",") if name]
    console = Console(stderr=True)
    out = asked.json or ROOT / "benchmarks" / "results" / "replay.json"
    page = out.with_suffix(".md") if asked.json else ROOT / "docs" / "results" / "replay.md"
    try:
        paths = asked.recordings or [RECORDINGS / f"{name}.jsonl.gz" for name in DEFAULT]
        compared = [
            [
                compare(recording, pool, asked.permutations, WORTHS, asked.workers, STORE)
                for pool, recording in ({"named": one} if models else pools(one)).items()
            ]
            for one in read(paths, models)
        ]
    except (RecordingError, ReplayFailed, WorkFailed) as error:
        console.print(f"{error}", style="red", markup=False)
        return 2
    results = [[one.result() for one in group] for group in compared]
    joined = [full | ({"dense": dense[0]} if dense else {}) for full, *dense in results]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text(joined[0] if len(joined) == 1 else joined) + "\n")
    with out.with_name(f"{out.stem}_queries.jsonl").open("w") as file:
        for made in (made for group in compared for made in group):
            for row in by_query(made.recording, made.pool, made.plans()):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    told = [one for group in results for one in group]
    write_page(page, told)
    for one in told:
        print(json.dumps({"dataset": one["dataset"], "pool": one["pool"], **one["summary"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
