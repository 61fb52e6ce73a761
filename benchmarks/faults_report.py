"""The page of the faults benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Final

from benchmarks.faults_claims import Claim, Figures, by_multiple, claims
from benchmarks.overhead_report import Machine

INTRODUCTION: Final = """\
# What becomes of queries when parts fail

Written by `make bench-faults`; not edited by hand. The numbers behind it are in
`benchmarks/results/faults.json`.

Real processes: two routers, two replicas of generation, verification, difficulty, aggregation; a real Triton
has abacus-l; a real PostgreSQL has the ledger. Every connection goes through a proxy. {clients} clients of
both routers ask without a pause, planned queries and plans that need each part, each with a request id and
{deadline:.0f} s of time; they try again only as `isoflop.AsyncClient` does. Measured on {machine}.

- **kill -9**: the process is killed, and started again on its port.
- **SIGSTOP**: it is stopped for {stopped:.0f} s, and goes on. Queries have {short:.0f} s meanwhile.
- **slow**: every chunk that goes to it or comes from it takes a quarter of a second more.
- **reset**: its connections are reset (RST), and new ones as they come.

## What is promised, and what came out

"""
FAULTS: Final = """
## Each fault

Queries from the fault on until all was well again. *Errors* are those of the table. *Silent*: of those, how
many only the client's own clock has ended. *Silence*: the longest time in which no query got an answer.
*Well*: seconds from the part's return to the first query from which on all are answered as ever, by when they
began. *Works*: seconds until the part has done some work. *Off*: tokens by which ledger, routers' metrics and
services differ; a process that was killed has forgotten what it counted. *Unreconciled*: FLOPs that are
charged at the worst case because a router died, of all.

"""
COLUMNS: Final = (
    *("part", "fault", "away s", "queries", "answered", "degraded", "errors", "lost", "silent"),
    *("silence s", "well s", "works s", "off", "unreconciled, %"),
)
ROLLING: Final = """
## A rolling restart

SIGTERM to both routers and both replicas of generation, one after the other; each is started again once it
has ended.

"""
GO_ON: Final = """
## Without a ledger, going on

The same with `--ledger-down go_on`: rounds are bought while PostgreSQL is away, and written down when it is
back.

"""
BUDGETS: Final = """
## Budgets

A tenant's budget is written into the tenants' file while routers run: {limit:,.0f} tokens, what 50 queries
take ({each:.0f} each). Then {asked} are asked at once of two routers; each reserves its worst case before it
begins, and who finds no room is refused: {outcomes}. Afterwards {spent:,.0f} tokens are spent.
{twice} other queries are asked of both routers at once, with one request id each.
"""
OVERLOAD: Final = """
## Too many queries

All are the same plan (8 samples of abacus-m, a vote). {capacity:.1f} answers a second are what {clients}
clients get that wait for each. Then queries come as a Poisson process at that rate and at four times that, in
turn, {seconds:.0f} s each, whatever becomes of those before them; who is refused does not try again. A fifth
are of a more urgent tier. *In time*: answered within these seconds.

"""
HANGUPS: Final = """
## Callers that hang up

8 samples of a hard problem run, and their caller hangs up. Decode steps are the backend's own count; one of
these tiny models takes a fraction of a millisecond, so that on the way from the caller to Triton many go by.

"""


def page(figures: Figures) -> str:
    """In Markdown."""
    faults, overload = figures["faults"], figures["overload"]
    stopped = next(row for row in faults if row["fault"] == "SIGSTOP")
    told = INTRODUCTION.format(
        clients=figures["clients"],
        deadline=next(row for row in faults if row["fault"] != "SIGSTOP")["deadline"],
        machine=Machine(**figures["machine"]),
        stopped=stopped["away"],
        short=stopped["deadline"],
    )
    told += _table(("promise", "measured", "holds"), map(_claim, claims(figures)), "lll")
    told += FAULTS + _faults(faults)
    told += ROLLING + _faults([figures["rolling"]])
    told += GO_ON + _faults(figures["go_on"])
    budgets = figures["budgets"]
    told += BUDGETS.format(**{**budgets, "outcomes": _counts(budgets["outcomes"])})
    at, beyond = by_multiple(overload)
    told += OVERLOAD.format(
        capacity=overload["capacity"], clients=figures["clients"], seconds=overload["blocks"][0]["seconds"]
    )
    told += _table(
        ("times capacity", "offered/s", "in time/s", "urgent", "others", "p50 s", "p99 s"),
        (_block(block) for block in [*at, *beyond]),
        "rrrllrr",
    )
    told += HANGUPS + _table(
        ("backend", "from the caller to it", "hang-ups", "steps, median (most)", "ms, median (most)"),
        map(_hangups, figures["hangups"]),
        "llrrr",
    )
    return told


def _claim(claim: Claim) -> list[str]:
    return [claim.text, claim.measured, "yes" if claim.holds else "**no**"]


def _faults(rows: Sequence[Figures]) -> str:
    told = _table(COLUMNS, map(_fault, rows), "llrrrrlrrrrrrr")
    said = [f"- {', '.join(row['parts'])}, {row['fault']}: {_said(row)}" for row in rows if row["ill"]]
    return told + (
        "\nWhat those without a plain answer were told:\n\n" + "\n".join(said) + "\n" if said else ""
    )


def _fault(row: Figures) -> list[str]:
    outcomes = dict(row["outcomes"])
    answered = sum(outcomes.pop(name, 0) for name in ("answered", "abandoned"))
    degraded, lost = outcomes.pop("degraded", 0), outcomes.pop("lost", 0)
    return [
        " + ".join(row["parts"]),
        row["fault"],
        f"{row['away']:.1f}",
        str(row["queries"]),
        str(answered),
        str(degraded),
        _counts(outcomes),
        str(lost),
        str(row["silent"]),
        *("never" if row[name] is None else f"{row[name]:.1f}" for name in ("silence", "recovered", "used")),
        _off(row),
        f"{100 * row['unreconciled_flops'] / row['charged_flops']:.1f}",
    ]


def _off(row: Figures) -> str:
    """Tokens by which who counts differs."""
    known = [row[name] for name in ("billed_off_counted", "charged_off_billed") if row[name] is not None]
    if not known:
        return "–"
    return f"{sum(abs(off) for one in known for kind, off in one.items() if kind != 'flops'):,.0f}"


def _said(row: Figures) -> str:
    reasons: dict[tuple[str, str], int] = {}
    for one in row["ill"]:
        key = one["outcome"], one["reason"]
        reasons[key] = reasons.get(key, 0) + one["queries"]
    return "; ".join(f"{count} × {outcome} “{reason}”" for (outcome, reason), count in reasons.items())


def _block(block: Figures) -> list[str]:
    return [
        str(block["multiple"]),
        f"{block['offered'] / block['seconds']:.1f}",
        f"{block['answered'] / block['seconds']:.1f}",
        *(_counts(outcomes) for outcomes in block["outcomes"].values()),
        f"{block['p50']:.2f}",
        f"{block['p99']:.2f}",
    ]


def _counts(outcomes: Figures) -> str:
    return ", ".join(f"{count} {name}" for name, count in outcomes.items())


def _hangups(one: Figures) -> list[str]:
    steps = [each["steps"] for each in one["each"]]
    ms = [each["milliseconds"] for each in one["each"]]
    return [
        one["backend"],
        one["way"],
        str(len(steps)),
        f"{median(steps):.0f} ({max(steps)})",
        f"{median(ms):.0f} ({max(ms):.0f})",
    ]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], aligned: str) -> str:
    ruler = ["---" if side == "l" else "--:" for side in aligned]
    return "".join(f"| {' | '.join(line)} |\n" for line in (columns, ruler, *rows))
