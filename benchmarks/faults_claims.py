"""What is promised of faults, overload and hang-ups, and whether the figures keep it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, Final

from services.generation.backends.triton import UNSEEN_TOKENS

RECOVERY_SECONDS: Final = 5.0
GOODPUT: Final = 0.9
"""Beyond capacity, of that at it."""
STEPS: Final = 5
"""A few."""

Figures = dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """One promise."""

    text: str
    measured: str
    holds: bool


def claims(figures: Figures) -> list[Claim]:
    """All of them, in the order of the page."""
    faults, rolling = figures["faults"], figures["rolling"]
    every = [*faults, *figures["go_on"], rolling]
    return [
        _none("No query is lost: each has an answer, or an error of the table", every, _outcome("lost")),
        _none("No fault shows a bug (INTERNAL)", every, _outcome("INTERNAL")),
        _recovered(every),
        _none(
            "Nobody hears nothing until its own deadline, unless its router is the one that is stopped",
            [row for row in every if row["parts"] != ["router"]],
            lambda row: int(row["silent"]),
        ),
        _books(every),
        _none(
            "The ledger has charged for each answer what its bill says, whatever was killed",
            every,
            lambda row: int(row["misbilled"]),
            "answers",
        ),
        _none("One of two replicas of generation is missed by nobody", _of(faults, "generation"), _ill),
        _none(
            "A model whose server is down leaves the frontier: only those who want no other have no answer",
            _of(faults, "triton"),
            lambda row: sum(one["queries"] for one in row["ill"] if one["kind"] != "large"),
        ),
        _none(
            "Without verification the majority decides, degraded, and the answer says why",
            _of(faults, "verification"),
            _but_degraded("verif"),
            "others",
        ),
        _none(
            "Without difficulty the prior serves, degraded, and the answer says why",
            _of(faults, "difficulty"),
            _but_degraded("difficulty"),
            "others",
        ),
        _none("Without aggregation the router does its work", _of(faults, "aggregation"), _ill),
        _none(
            "One of two routers is missed by nobody who is not waiting for it while it is stopped",
            _of(faults, "router"),
            lambda row: _ill(row) - (row["silent"] if row["fault"] == "SIGSTOP" else 0),
        ),
        _none(
            "Without its ledger a router refuses, and nothing is bought that is not written down",
            _of(faults, "postgresql"),
            lambda row: sum(
                one["queries"] for one in row["ill"] if one["outcome"] not in ("UNAVAILABLE", "degraded")
            ),
            "others",
        ),
        _none(
            "Where it is to go on, queries are answered, and the ledger is told later", figures["go_on"], _ill
        ),
        _none("A rolling restart under load fails no query", [rolling], _ill),
        *_budgets(figures["budgets"]),
        *_overload(figures["overload"]),
        *_hangups(figures["hangups"]),
    ]


def _of(faults: Sequence[Figures], *parts: str) -> list[Figures]:
    return [row for row in faults if row["parts"] == list(parts)]


def _outcome(name: str) -> Callable[[Figures], int]:
    return lambda row: int(row["outcomes"].get(name, 0))


def _ill(row: Figures) -> int:
    return sum(one["queries"] for one in row["ill"])


def _but_degraded(why: str) -> Callable[[Figures], int]:
    """Those without a plain answer that are not degraded for that reason."""
    return lambda row: sum(
        one["queries"] for one in row["ill"] if one["outcome"] != "degraded" or why not in one["reason"]
    )


def _none(
    text: str, rows: Sequence[Figures], count: Callable[[Figures], int], what: str = "queries"
) -> Claim:
    """That there are none of them."""
    found, queries = sum(map(count, rows)), sum(row["queries"] for row in rows)
    return Claim(text, f"{found} {what} of {queries:,}", found == 0)


def _recovered(rows: Sequence[Figures]) -> Claim:
    worst = max(rows, key=lambda row: _longest(row["recovered"], row["used"]))
    seconds = _longest(worst["recovered"], worst["used"])
    return Claim(
        f"All is well within {RECOVERY_SECONDS:.0f} s of a part's return",
        f"at most {seconds:.1f} s ({', '.join(worst['parts'])}, {worst['fault']})",
        seconds <= RECOVERY_SECONDS,
    )


def _longest(*seconds: float | None) -> float:
    return max(math.inf if one is None else one for one in seconds)


def _books(rows: Sequence[Figures]) -> Claim:
    kept = [row for row in rows if row["billed_off_counted"] is not None]
    off = [row for row in kept if row["billed_off_counted"] or row["charged_off_billed"]]
    off += [row for row in rows if row["billed_off_counted"] is None and row["charged_off_billed"]]
    where = "; ".join(f"{', '.join(row['parts'])}, {row['fault']}" for row in off)
    return Claim(
        "Ledger = routers' metrics = what services counted, to the token, FLOPs to a billionth, "
        "unless who counts was killed",
        f"{len(off)} of {len(rows)} faults differ{': ' + where if where else ''}",
        not off,
    )


def _budgets(figures: Figures) -> Iterable[Claim]:
    spent, limit = figures["spent"], figures["limit"]
    yield Claim(
        f"{figures['asked']} queries at once do not overspend a budget for 50 by one token, and all that was "
        "reserved is free again",
        f"{spent:,.0f} of {limit:,.0f} tokens spent, {figures['told']:,.0f} by the answers' bills, "
        f"{figures['reserved']:,.0f} reserved",
        0 < spent <= limit and spent == figures["told"] and figures["reserved"] == 0,
    )
    yield Claim(
        "A query that is asked of two routers at once is one query, with one bill",
        f"{figures['alike']} of {figures['twice']} pairs have the same answer; "
        f"{len(figures['charged_off'])} figures of the ledger differ from one bill each",
        figures["alike"] == figures["twice"] and not figures["charged_off"],
    )


def _overload(figures: Figures) -> Iterable[Claim]:
    at, beyond = by_multiple(figures)
    ratios = [two["answered"] / one["answered"] for one, two in zip(at, beyond, strict=True)]
    yield Claim(
        "At 4 times capacity goodput stays within 10 % of that at capacity",
        f"{100 * fmean(ratios):.0f} % ({', '.join(f'{100 * ratio:.0f}' for ratio in ratios)})",
        fmean(ratios) >= GOODPUT,
    )
    full, wait, p99 = figures["full_p99"], figures["wait"], max(block["p99"] for block in beyond)
    yield Claim(
        "and the 99th percentile of the admitted is at most the longest wait for a turn, and what queries "
        "take where all places are full",
        f"{p99:.1f} s, of {wait:.1f} + {full:.1f}; at capacity {median(block['p99'] for block in at):.1f}",
        p99 <= wait + full,
    )
    urgent = [block["outcomes"]["urgent"] for block in beyond]
    served, came = sum(one.get("answered", 0) for one in urgent), sum(sum(one.values()) for one in urgent)
    yield Claim(
        "Who is urgent is served: the urgent are fewer than can be answered",
        f"{served:,} of {came:,} answered",
        served == came,
    )
    refused = sum(one.get("UNAVAILABLE", 0) for block in beyond for one in block["outcomes"].values())
    told = sum(block["told"] for block in beyond)
    text = "Who is shed is told when to come again"
    yield Claim(text, f"{told:,} of {refused:,}", told >= refused > 0)


def by_multiple(figures: Figures) -> tuple[list[Figures], list[Figures]]:
    """The blocks at capacity, and those beyond."""
    blocks = figures["blocks"]
    return [one for one in blocks if one["multiple"] == 1], [one for one in blocks if one["multiple"] > 1]


def _hangups(figures: Sequence[Figures]) -> Iterable[Claim]:
    for one in figures:
        steps = [each["steps"] for each in one["each"]]
        if one["unseen"] is None:
            yield Claim(
                f"A caller that hangs up ends the work in {one['backend']} within a few decode steps",
                f"at most {max(steps)} steps, median {median(steps):.0f}",
                max(steps) <= STEPS,
            )
        else:
            yield Claim(
                f"and in {one['backend']}: a sample gets no more tokens after its stream was closed than are "
                "told as unseen",
                f"{one['unseen']:.1f} tokens on the mean, of {UNSEEN_TOKENS}; from the hang-up on median "
                f"{median(steps):.0f} steps in {median(each['milliseconds'] for each in one['each']):.0f} ms",
                one["unseen"] <= UNSEEN_TOKENS,
            )
