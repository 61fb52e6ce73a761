"""What was planned, bought and charged for a query, and why: so that a bill is understood."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from math import fsum

from isoflop import text
from isoflop.text import Style, aligned, counted, in_flops, line, money
from isoflop.times import UTC, lasting, told
from isoflop.usage import summed
from isoflop.v1.common_pb2 import Bill, Usage
from isoflop.v1.difficulty_pb2 import Difficulty
from isoflop.v1.router_pb2 import Charge, GetQueryResponse, Round, Savings, Status

GREEN, YELLOW, RED, CYAN = 32, 33, 31, 36
"""Of outcomes: answered; abandoned or degraded; anything else; none yet."""

COLOURS = {"answered": GREEN, "abandoned": YELLOW, "degraded": YELLOW, "running": CYAN}

OFF = 2.0
"""A round that took so many times what was expected, or more, is shown in colour."""

GAP = ("", "")
"""An empty line among facts."""

LOST = (
    "lost: its router died, and nobody knows what it took. It is charged at the most that it may have cost, "
    "{}, and marked unreconciled"
)


def query(response: GetQueryResponse, query_id: str, style: Style, now: datetime, width: float) -> str:
    """Who asked and what came of it; each round as planned and as it came; why it stopped; the bill."""
    facts = [("query", line(response.result.query_id or query_id)), *_asked(response, style, now)]
    result = response.result
    if response.HasField("result"):
        answer = text.cut(line(result.answer), 60)
        facts.append(("answer", f"{style.strong(answer) or '(none)'}, {result.confidence:.0%} sure"))
        if result.HasField("difficulty"):
            facts.append(("difficulty", _difficulty(result.difficulty)))
        facts += [("profile", line(result.profile)), ("seed", str(result.seed))]
    for each in response.rounds:
        charges = [charge for charge in response.charges if _is_of(charge, each)]
        facts += [GAP, *_round(each, charges, response.running, style)]
    if response.HasField("result"):
        facts += [GAP, *_end(result.reason, result.savings)]
    return "\n".join([*aligned(facts, style, width), "", *_bill(response, style)])


def _asked(response: GetQueryResponse, style: Style, now: datetime) -> list[tuple[str, str]]:
    """Who, when, for how long, and how it ended."""
    outcome = response.outcome or ("running" if response.running else "ended without a result")
    if response.HasField("result") and not response.outcome:
        outcome = Status.Name(response.result.status).removeprefix("STATUS_").lower()
    facts = [
        (
            "outcome",
            style.tinted(
                line(outcome.replace("failed_", "failed: ").replace("_", " ")), COLOURS.get(outcome, RED)
            ),
        )
    ]
    if response.tenant:
        tier = f", tier {line(response.tier)}" if response.tier else ""
        facts.append(("asked by", line(response.tenant) + tier))
    if response.request_id:
        facts.append(("request", line(response.request_id)))
    if response.HasField("began"):
        began = response.began.ToDatetime(UTC)
        ended = response.ended.ToDatetime(UTC) if response.HasField("ended") else now
        seconds = max(0.0, (ended - began).total_seconds())
        so_far = "" if response.HasField("ended") else " so far"
        facts.append(("began", f"{told(began)} UTC, took {lasting(seconds)}{so_far}"))
    return facts


def _difficulty(belief: Difficulty) -> str:
    each = [f"{line(model.model)} {model.p_right:.0%}" for model in belief.outlooks]
    return f"{text.difficulty(belief)}{'; one sample is right: ' if each else ''}{', '.join(each)}"


def _is_of(charge: Charge, each: Round) -> bool:
    return charge.HasField("round") and charge.round == each.index


def _round(each: Round, charges: Sequence[Charge], running: bool, style: Style) -> list[tuple[str, str]]:
    """What was planned and why, and what came."""
    planned = each.action
    at = f", temperature {planned.temperature:g}" if planned.temperature else ", greedy"
    why = line(each.reason)
    if each.explored:
        why += "; drawn at random, to learn what it brings: the platform's expense"
    return [
        (f"round {each.index + 1}", style.strong(text.action(planned)) + at),
        ("  why", why),
        ("  planned", text.expected(planned)),
        ("  came", _came(each, charges, running, style)),
    ]


def _came(each: Round, charges: Sequence[Charge], running: bool, style: Style) -> str:
    flops = fsum(charge.usage.flops for charge in charges) or each.flops
    if any(charge.unreconciled for charge in charges):
        return style.tinted(LOST.format(in_flops(flops)), RED)
    if not (each.completed or each.aborted or flops):
        return "it still runs" if running else "nothing, and it cost nothing"
    samples = f"{counted(each.completed, 'sample')} to the end"
    if each.aborted:
        samples += f", {each.aborted} aborted"
    sure = f"{each.confidence_before:.0%} to {each.confidence_after:.0%} sure"
    return f"{samples}; {sure}; {_against(flops, each, style)}"


def _against(flops: float, each: Round, style: Style) -> str:
    """What it took against what was expected."""
    expected = each.action.expected_flops
    if not expected:
        return in_flops(flops)
    times = f"{flops / expected:.3g} times the plan"
    return f"{in_flops(flops)}, {style.tinted(times, YELLOW) if flops >= OFF * expected else times}"


def _end(reason: str, savings: Savings) -> list[tuple[str, str]]:
    """Why there was no further round, and what that spared."""
    facts = [("stopped", line(reason))]
    if savings.samples:
        facts.append(("spared", text.spared(savings)))
    if savings.abandoned_flops:
        against = "by giving up, against the fixed plan that is best over all queries"
        facts.append(("spared", f"{in_flops(savings.abandoned_flops)} {against}"))
    return facts


def _bill(response: GetQueryResponse, style: Style) -> list[str]:
    """By stage, what was charged; where no charges are told, what the result says."""
    currency = response.result.bill.currency
    if not response.charges:
        return text.bill(response.result.bill, style)
    lines = text.bill(_together([charge.usage for charge in response.charges], currency), style)
    if lost := [charge.usage for charge in response.charges if charge.unreconciled]:
        flops, cost = fsum(usage.flops for usage in lost), fsum(usage.money for usage in lost)
        lines.append(f"of it unreconciled  {in_flops(flops)}, {money(cost, currency)}")
    return lines


def _together(usages: Sequence[Usage], currency: str) -> Bill:
    """A bill of these, with one line for each stage, model and strategy."""
    lines: dict[tuple[int, str, str], list[Usage]] = {}
    for usage in usages:
        lines.setdefault((usage.stage, usage.model, usage.strategy), []).append(usage)
    all_in_all = summed(usages)
    bill = Bill(
        flops=all_in_all.flops,
        flops_without_attention=all_in_all.flops_without_attention,
        tokens=all_in_all.prompt_tokens + all_in_all.completion_tokens + all_in_all.aborted_tokens,
        money=all_in_all.money,
        currency=currency,
    )
    for each in lines.values():
        bill.lines.add(stage=each[0].stage, model=each[0].model, strategy=each[0].strategy).MergeFrom(
            summed(each)
        )
    return bill
