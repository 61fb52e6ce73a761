"""What a calibration has found, told to people and to machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isoflop.text import si
from rich.table import Table

from router.profile import BaselineRecord
from router.profile_commands import plan_name
from router.strategies.strategy import Search
from training.measured import spelt
from training.profiles import thirds
from training.recordings import Recordings

THIRDS = ("easiest", "middle", "hardest")


def summary(data: dict[str, Any], found: Recordings) -> dict[str, Any]:
    """What was found, for machines."""
    return {
        "version": data["version"],
        "queries": len(found.queries),
        "left_out": found.left_out,
        "types": len(data["grid"]),
        "efforts": data["efforts"],
        "arms": [
            {
                "model": arm["model"],
                "temperature": arm["temperature"],
                "right": thirds(data["prior"], arm["p_right"]),
                "tokens": thirds(data["prior"], arm["tokens"]),
                "verifiers": [told["verifier"] for told in arm.get("verified", [])],
            }
            for arm in data["arms"]
        ],
        "deep": [
            {
                **{name: one[name] for name in ("model", "strategy", "search", "verifier", "temperature")},
                "right": thirds(data["prior"], one["p_right"]),
                "tokens": thirds(data["prior"], one["tokens"]),
                "times": thirds(data["prior"], one["times"]),
            }
            for one in data.get("deep", [])
        ],
        "baselines": data.get("baselines", {}),
    }


def tables(data: dict[str, Any], found: Recordings) -> list[Table]:
    """For people."""
    told = summary(data, found)
    title = f"profile {told['version']}: {told['types']} types of queries"
    samples = _table(title, "one sample of", "tokens")
    for arm in told["arms"]:
        name = (
            f"{arm['model']}, greedy"
            if not arm["temperature"]
            else f"{arm['model']} at {arm['temperature']:g}"
        )
        samples.add_row(name, *_cells(arm["right"], [f"{tokens:.0f}" for tokens in arm["tokens"]]))
    shown = [samples]
    if told["deep"]:
        deep = _table("strategies that make chains in parts", "the best chain of", "costs samples")
        for one in told["deep"]:
            name = f"{one['model']} {spelt(one['strategy'], Search(**one['search']))}"
            deep.add_row(name, *_cells(one["right"], [f"{times:.3g}" for times in one["times"]]))
        shown.append(deep)
    if told["baselines"]:
        shown.append(_compared(told["baselines"]))
    return shown


def _compared(plans: Mapping[str, dict[str, Any]]) -> Table:
    """The planner beside the fixed plan for each effort."""
    table = Table(title="the planner, and the cheapest fixed plan as often right", title_justify="left")
    table.add_column("effort")
    table.add_column("plan", overflow="fold")
    for column in ("right", "planner", "FLOPs", "planner"):
        table.add_column(column, justify="right")
    for effort, data in plans.items():
        plan = BaselineRecord.model_validate(data)
        table.add_row(
            effort,
            plan_name(plan),
            *(f"{right:.3f}" for right in (plan.accuracy, plan.policy_accuracy)),
            *(si(flops) for flops in (plan.flops, plan.policy_flops)),
        )
    return table


def _table(title: str, rows: str, beside: str) -> Table:
    """With two columns for each third."""
    table = Table(title=title, title_justify="left")
    table.add_column(rows, overflow="fold")
    for third in THIRDS:
        table.add_column(f"right, {third} third", justify="right")
        table.add_column(beside, justify="right")
    return table


def _cells(right: Sequence[float], beside: Sequence[str]) -> list[str]:
    return [cell for p, other in zip(right, beside, strict=True) for cell in (f"{p:.3f}", other)]
