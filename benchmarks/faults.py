"""What becomes of queries when parts fail, load is too high, or callers hang up: `python -m benchmarks.faults`.

Real processes, a real Triton, 32 clients: see tests/cluster/parts.py. Each part is killed, stopped, made slow and
cut off in turn. Writes benchmarks/results/faults.json and docs/results/reliability.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.cluster.faults import Observed
from tests.cluster.processes import ROOT

JSON: Final = ROOT / "benchmarks" / "results" / "faults.json"
PAGE: Final = ROOT / "docs" / "results" / "reliability.md"

AWAY_SECONDS: Final = 5.0
"""How long a part is away."""
SILENT_SECONDS: Final = 10.0
SILENT_DEADLINE: Final = 5.0
"""A part is stopped for longer than a query may take: who waits for it must give up in time."""
OPTIONS: Final = ("--rejoin-seconds", "1", "--deadline-margin-seconds", "0.5")
PARTS: Final = (
    ("generation",),
    ("generation", "generation-2"),
    ("triton",),
    ("verification",),
    ("difficulty",),
    ("aggregation",),
    ("router",),
)
"""What fails together."""
ROLLED: Final = ("router", "router-2", "generation", "generation-2")


@dataclass(frozen=True)
class Row:
    """One fault, and what became of the queries from its beginning on."""

    parts: Sequence[str]
    fault: str
    deadline: float
    """Of each query, in seconds."""
    away: float
    """Seconds until the part was back."""
    queries: int
    outcomes: dict[str, int]
    silent: int
    """Of DEADLINE_EXCEEDED: nobody said it; the client's clock did."""
    longest: float
    """Seconds that a query took at most, however it ended."""
    silence: float
    """Seconds in which no query got an answer, at most."""
    recovered: float | None
    """Seconds from the part's return until all are well; None: never."""
    used: float | None
    """Seconds until the part has worked again; None: never."""
    tokens_off: dict[str, float] | None
    """Billed less counted, by stage and kind, where they differ; None: a process that counts was killed."""
    flops_off: float | None
    """Billed less counted, as a share."""


def row(seen: Observed, parts: Sequence[str], fault: str, deadline: float) -> Row:
    """What there is to say of it."""
    both = seen.billed and seen.counted
    outcomes: dict[str, int] = {}
    for one in (seen.during, seen.after):
        for outcome, count in one.outcomes.items():
            outcomes[outcome] = outcomes.get(outcome, 0) + count
    return Row(
        parts=parts,
        fault=fault,
        deadline=deadline,
        away=round(seen.seconds, 2),
        queries=sum(outcomes.values()),
        outcomes=dict(sorted(outcomes.items())),
        silent=seen.during.silent + seen.after.silent,
        longest=round(max(one.ended - one.began for one in seen.asked), 2),
        silence=round(seen.silence, 2),
        recovered=_finite(seen.recovered),
        used=_finite(seen.used),
        tokens_off={kind: off for kind, off in (seen.billed - seen.counted).tokens.items() if off}
        if seen.billed and seen.counted
        else None,
        flops_off=seen.billed.flops / seen.counted.flops - 1 if seen.billed and seen.counted else None,
    )
