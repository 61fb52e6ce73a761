"""What becomes of queries when parts fail, too many come, or callers hang up: `python -m benchmarks.faults`.

The whole suite as real processes, a real Triton, a real PostgreSQL, 32 clients: see tests/cluster/parts.py.
Each part is killed, stopped, made slow and cut off in turn. Writes benchmarks/results/faults.json and
docs/results/reliability.md; with --only a part of it, which is printed and written nowhere.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from benchmarks import faults_budgets as budgets
from benchmarks import faults_overload as overload
from benchmarks.faults_hangups import on_llamacpp, on_triton
from benchmarks.faults_report import page
from benchmarks.overhead_report import machine
from services.common import log
from tests.cluster.faults import Observed, fail, roll
from tests.cluster.load import CLIENTS, DEADLINE_SECONDS, Asked
from tests.cluster.parts import Fault, FaultSuite
from tests.cluster.processes import ROOT

JSON: Final = ROOT / "benchmarks" / "results" / "faults.json"
PAGE: Final = ROOT / "docs" / "results" / "reliability.md"

PARTIAL: Final = ROOT / "build" / "faults.partial.json"

AWAY_SECONDS: Final = 5.0
"""How long a part is away."""
SILENT_SECONDS: Final = 10.0
SILENT_DEADLINE: Final = 5.0
"""A part is stopped for longer than a query has: who waits for it must give up in time."""
OPTIONS: Final = ("--rejoin-seconds", "1", "--deadline-margin-seconds", "0.5")
PARTS: Final = (
    ("generation",),
    ("generation", "generation-2"),
    ("triton",),
    ("verification",),
    ("difficulty",),
    ("aggregation",),
    ("router",),
    ("postgresql",),
)
"""What fails together."""
ROLLED: Final = ("router", "router-2", "generation", "generation-2")
HANGUPS: Final = 20
SECTIONS: Final = ("faults", "go_on", "rolling", "budgets", "overload", "hangups")


class _Kept(dict[str, Any]):
    """Figures, each written down as it is there: an hour's work is not lost for the last one's sake."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        PARTIAL.parent.mkdir(exist_ok=True)
        PARTIAL.write_text(json.dumps(self, indent=1), encoding="utf-8")


async def measure(only: Collection[str]) -> dict[str, Any]:
    """The figures of these sections."""
    figures = _Kept({"machine": asdict(machine()), "clients": CLIENTS})
    with tempfile.TemporaryDirectory() as folder, FaultSuite(Path(folder), OPTIONS) as suite:
        if "faults" in only:
            figures["faults"] = [await _fault(suite, parts, fault) for parts in PARTS for fault in Fault]
        if "rolling" in only:
            figures["rolling"] = _row(await roll(suite, ROLLED), ROLLED, "SIGTERM", DEADLINE_SECONDS, suite)
        if "budgets" in only:
            figures["budgets"] = asdict(await budgets.measure(suite))
        if "hangups" in only:
            figures["hangups"] = [asdict(await on_triton(suite, HANGUPS))]
    if "hangups" in only:
        figures["hangups"].insert(0, asdict(await on_llamacpp(HANGUPS)))
    if "overload" in only:
        with tempfile.TemporaryDirectory() as folder, FaultSuite(Path(folder), overload.OPTIONS) as suite:
            figures["overload"] = asdict(await overload.measure(suite.address, seconds=20.0, pairs=4))
    if "go_on" in only:
        options = (*OPTIONS, "--ledger-down", "go_on")
        with tempfile.TemporaryDirectory() as folder, FaultSuite(Path(folder), options) as suite:
            figures["go_on"] = [await _fault(suite, ("postgresql",), fault) for fault in Fault]
    return figures


async def _fault(suite: FaultSuite, parts: Sequence[str], fault: Fault) -> dict[str, Any]:
    stopped = fault is Fault.PAUSE
    deadline = SILENT_DEADLINE if stopped else DEADLINE_SECONDS
    seen = await fail(suite, parts, fault, SILENT_SECONDS if stopped else AWAY_SECONDS, deadline)
    row = _row(seen, parts, fault.value, deadline, suite)
    print(f"{', '.join(parts)}: {fault.value}: {row['outcomes']}", file=sys.stderr, flush=True)
    return row


def _row(
    seen: Observed, parts: Sequence[str], fault: str, deadline: float, suite: FaultSuite
) -> dict[str, Any]:
    """What there is to say of a fault, from its beginning on; times in seconds, none where it never was."""
    outcomes = Counter(seen.during.outcomes) + Counter(seen.after.outcomes)
    spent = seen.spent
    # What a process that has ended had counted is not in its metrics any more.
    ended = set(parts) if fault in (Fault.KILL.value, "SIGTERM") else set()
    billed = spent.billed_off if not ended & {*suite.routers, *suite.counting} else None
    charged = spent.charged_off if not ended & suite.routers.keys() else None
    return {
        "parts": list(parts),
        "fault": fault,
        "deadline": deadline,
        "away": round(seen.seconds, 2),
        "queries": outcomes.total(),
        "outcomes": dict(sorted(outcomes.items())),
        "silent": seen.during.silent + seen.after.silent,
        "longest": round(max(one.ended - one.began for one in seen.asked), 2),
        "silence": _seconds(seen.silence),
        "recovered": _seconds(seen.recovered),
        "used": _seconds(seen.used),
        "billed_off_counted": billed,
        "charged_off_billed": charged,
        "told_flops": seen.told.flops,
        "charged_flops": spent.charged.flops,
        "unreconciled_flops": spent.unreconciled,
        "misbilled": len(seen.misbilled),
        "ill": [
            {"kind": kind, "outcome": outcome, "reason": reason, "queries": queries}
            for (kind, outcome, reason), queries in Counter(map(_ill, seen.ill)).most_common()
        ],
    }


def _ill(one: Asked) -> tuple[str, str, str]:
    """Its kind, its outcome and the reason, without figures and addresses."""
    said = one.response.reason if one.response is not None else str(one.error)
    return one.kind, one.outcome, re.sub(r"\d[\d.:,ipv]*", "#", said)[:160]


def _seconds(value: float) -> float | None:
    return round(value, 2) if math.isfinite(value) else None


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--only", choices=SECTIONS, nargs="+", help="measure this, and write nothing")
    arguments = parser.parse_args()
    log.configure("error", "text")
    figures = asyncio.run(measure(arguments.only or SECTIONS))
    if arguments.only:
        print(json.dumps(figures, indent=1))
        return
    JSON.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
