"""Messages as plain text for people: the answer first, then short lines and aligned columns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from unicodedata import east_asian_width

from isoflop.v1.common_pb2 import Bill, Sample, SeedPromise, Stage
from isoflop.v1.difficulty_pb2 import Difficulty
from isoflop.v1.router_pb2 import (
    Action,
    GetFrontierResponse,
    GetQueryResponse,
    ListModelsResponse,
    PlanResponse,
    ProfileInForce,
    ProfileRole,
    Round,
    Savings,
    ScalingInterval,
    ScalingLaw,
    SolveResponse,
    Status,
    SubmitFeedbackResponse,
)


@dataclass(frozen=True)
class Style:
    """How words are made to stand out, or not."""

    colour: bool = False
    """Use the escape sequences of a terminal."""

    def strong(self, text: str) -> str:
        """What is read first."""
        return f"\x1b[1m{text}\x1b[0m" if self.colour and text else text

    def faint(self, text: str) -> str:
        """What names the rest."""
        return f"\x1b[2m{text}\x1b[0m" if self.colour and text else text

    def tinted(self, text: str, colour: int) -> str:
        """In a colour of the terminal's, 31 to 36."""
        return f"\x1b[{colour}m{text}\x1b[0m" if self.colour and text else text


_ESCAPE = re.compile(r"\x1b\[\d*m")
"""What Style adds to words."""


def si(value: float) -> str:
    """Three digits and a prefix, as in `1.23 G`, that `--budget` takes too."""
    if not 1 <= value < 1e21:
        return f"{value:.3g}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    thousands, shift = divmod(int(exponent), 3)
    digits = f"{float(mantissa) * 10**shift:.{2 - shift}f}"
    return f"{digits} {' kMGTPEZ'[thousands]}" if thousands else f"{float(digits):g}"


def in_flops(value: float) -> str:
    """An amount of computing, as in `1.23 GFLOPs` or `0 FLOPs`."""
    amount = si(value)
    return f"{amount}FLOPs" if " " in amount else f"{amount} FLOPs"


def money(value: float, currency: str) -> str:
    """An amount with its currency, and enough digits where it is small."""
    return f"{value:,.2f} {currency}".rstrip() if value >= 1 else f"{value:.3g} {currency}".rstrip()


def file_fault(error: OSError) -> str:
    """The file, where it is told, and what is wrong with it, as in `a.jsonl: No such file or directory`."""
    if error.filename is None:
        return error.strerror or str(error)
    return f"{error.filename}: {error.strerror}"


def counted(number: int, noun: str) -> str:
    """How many of what, as in `1 sample`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def clean(text: str) -> str:
    """Text from a model or a server without what would steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def line(text: str) -> str:
    """`clean` text on one line."""
    return " ".join(clean(text).split())


def columns(words: str) -> int:
    """Columns of a terminal that a `line` takes at most: what adds to the sign before it counts, too."""
    return len(words) + sum(east_asian_width(sign) in "WF" for sign in words)


def cut(words: str, width: int, gap: str = "…") -> str:
    """A `line` in so many columns: its beginning and its end, where answers are, if it has more."""
    if len(words) <= width and columns(words) <= width:
        return words
    room = width - len(gap)
    if room < 0:
        return gap[: max(0, width)]
    end = _beginning(reversed(words), room // 2)[::-1]
    return _beginning(words, room - room // 2) + gap + end


def _beginning(signs: Iterable[str], width: int) -> str:
    fitting = ""
    for sign in signs:
        width -= columns(sign)
        if width < 0:
            break
        fitting += sign
    return fitting


def table(align: str, header: Sequence[str], rows: Iterable[Sequence[str]], style: Style) -> list[str]:
    """Columns under a header, two spaces apart; `align` has an `l` or an `r` for each."""
    cells = [header, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, align, strict=True)
        ).rstrip()
        for row in cells
    ]
    return [style.faint(lines[0]), *lines[1:]]


def aligned(pairs: Iterable[tuple[str, str]], style: Style, width: float = inf) -> list[str]:
    """Names and what they stand for, side by side; in so many columns, where words allow."""
    told = list(pairs)
    margin = max((len(name) for name, _ in told), default=0) + 2
    lines = []
    for name, words in told:
        first, *more = wrapped(words, width - margin)
        lines.append(f"{style.faint(name)}{'':{margin - len(name)}}{first}".rstrip())
        lines += [f"{'':{margin}}{line}" for line in more]
    return lines


def wrapped(words: str, width: float) -> list[str]:
    """Lines of so many columns, where words allow, not counting what colours them: one at least."""
    lines = [""]
    for word in words.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and columns(_ESCAPE.sub("", longer)) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def solved(response: SolveResponse, style: Style) -> str:
    """The answer, how it came about, and the bill."""
    status = Status.Name(response.status).removeprefix("STATUS_").lower()
    facts = [
        ("confidence", f"{response.confidence:.0%}"),
        (status, line(response.reason)),
        *rounds(response.rounds),
    ]
    if response.savings.samples:
        facts.append(("saved", spared(response.savings)))
    if response.HasField("difficulty"):
        facts.append(("difficulty", difficulty(response.difficulty)))
    facts += [("seed", str(response.seed)), ("query", line(response.query_id))]
    lines = [style.strong(clean(response.answer)) or "(no answer)", "", *aligned(facts, style), ""]
    for sample in response.candidates:
        lines += [*candidate(sample, style), ""]
    return "\n".join([*lines, *bill(response.bill, style)])


def spared(savings: Savings) -> str:
    """Samples that were not run to their end, and what they would have cost."""
    return f"{counted(savings.samples, 'sample')}, {in_flops(savings.flops)} by ending early"


def rounds(bought: Iterable[Round]) -> list[tuple[str, str]]:
    """Name and story of each round."""
    return [(f"round {each.index + 1}", decided(each)) for each in bought]


def decided(each: Round) -> str:
    """What a round bought, why, and, once it is over, what came of it."""
    story = f"{action(each.action)}: {line(each.reason)}"
    if not each.completed and not each.aborted:
        return story
    came = [f"{each.confidence_before:.0%} to {each.confidence_after:.0%}", in_flops(each.flops)]
    if each.aborted:
        came.append(f"{each.aborted} aborted")
    return f"{story} ({', '.join(came)})"


def action(each: Action) -> str:
    """Model, strategy and samples."""
    parts = [line(each.model), line(each.strategy), str(each.samples)]
    if each.verifier:
        parts.append(line(each.verifier))
    return " × ".join(parts)


def difficulty(belief: Difficulty) -> str:
    """A belief about latent difficulty: mean and standard deviation."""
    return f"{belief.mean:+.2f} ± {belief.sd:.2f}"


def candidate(sample: Sample, style: Style) -> list[str]:
    """A candidate's name and its text."""
    return [style.faint(f"{line(sample.id)}, {counted(sample.tokens, 'token')}"), clean(sample.text).rstrip()]


def bill(bought: Bill, style: Style) -> list[str]:
    """A table by stage, model and strategy, what was aborted of each apart, and the total."""
    rows: list[tuple[str, ...]] = []
    for usage in bought.lines:
        rows.append(
            (
                Stage.Name(usage.stage).removeprefix("STAGE_").lower(),
                line(usage.model),
                line(usage.strategy),
                str(usage.calls),
                str(usage.prompt_tokens),
                str(usage.cached_tokens),
                str(usage.completion_tokens),
                str(usage.aborted_tokens),
                si(usage.flops),
                money(usage.money, bought.currency),
            )
        )
        if usage.aborted_flops:
            of_it = si(usage.aborted_flops), money(usage.aborted_money, bought.currency)
            rows.append(("  aborted", *[""] * 6, str(usage.aborted_tokens), *of_it))
    header = ("stage", "model", "strategy", "calls", "prompt", "cached", "completion", "aborted", "FLOPs")
    lines = table("lllrrrrrrr", (*header, "money"), rows, style)
    aborted = sum(usage.aborted_flops for usage in bought.lines)
    told = in_flops(bought.flops) + (f" ({in_flops(aborted)} aborted)" if aborted else "")
    total = f"{counted(bought.tokens, 'token')}, {told}, {money(bought.money, bought.currency)}"
    if bought.incomplete:
        total += "; a round has not told all of it: isoflop explain will"
    return [*lines, f"{style.faint('total')}  {style.strong(total)}"]


def planned(response: PlanResponse, style: Style) -> str:
    """What would be bought first, why, and what was rejected."""
    chosen = action(response.action) if response.HasField("action") else "buy nothing"
    facts = [("why", line(response.reason))]
    if response.HasField("action"):
        facts.append(("this round", expected(response.action)))
    if response.HasField("outlook"):
        facts.append(
            ("whole query", f"{counted(response.outlook.samples, 'sample')}, {expected(response.outlook)}")
        )
    if response.HasField("difficulty"):
        facts.append(("difficulty", difficulty(response.difficulty)))
    facts.append(("profile", line(response.profile)))
    lines = [style.strong(chosen), "", *aligned(facts, style)]
    if response.rejected:
        rows = [
            (
                action(each.action),
                f"{each.action.expected_accuracy:.0%}",
                si(each.action.expected_flops),
                line(each.reason),
            )
            for each in response.rejected
        ]
        lines += ["", *table("lrrl", ("rejected", "right", "FLOPs", "why"), rows, style)]
    return "\n".join(lines)


def listed(response: ListModelsResponse, style: Style) -> str:
    """The models in columns, then verifiers, strategies and the profile."""
    rows = [
        (
            line(model.name),
            line(model.backend),
            si(model.shape.active_parameters),
            str(model.context or "?"),
            f"{model.price.per_million_prompt_tokens:g}",
            f"{model.price.per_million_completion_tokens:g} {line(model.price.currency)}".rstrip(),
            _capabilities(model.capabilities.prefix, model.capabilities.logprobs, model.capabilities.seed),
        )
        for model in response.models
    ]
    header = ("model", "backend", "parameters", "context", "prompt/M", "completion/M", "can")
    facts = [
        ("verifiers", ", ".join(line(verifier.name) for verifier in response.verifiers) or "none"),
        ("strategies", ", ".join(map(line, response.strategies)) or "none"),
        ("profile", line(response.profile)),
    ]
    facts += [(role(each), in_force(each)) for each in response.profiles]
    facts += [("fault", line(fault)) for fault in response.profile_faults]
    return "\n".join([*table("llrrrrl", header, rows, style), "", *aligned(facts, style)])


def role(profile: ProfileInForce) -> str:
    """What a profile does."""
    return ProfileRole.Name(profile.role).removeprefix("PROFILE_ROLE_").lower()


def in_force(profile: ProfileInForce) -> str:
    """A profile's version, its share of queries, and its age."""
    days = profile.age_seconds / 86400
    age = f"{days:.0f} days old" if days >= 2 else f"{24 * days:.1f} hours old"
    share = f" for {profile.share:.3g} of queries" if profile.share else ""
    return f"{line(profile.version)}{share}, {age}"


def frontier(response: GetFrontierResponse, style: Style) -> str:
    """The frontier in columns."""
    rows = [
        (
            f"{point.difficulty:+.2f}",
            action(point.action),
            f"{point.action.expected_accuracy:.0%}",
            si(point.action.expected_flops),
            f"{point.action.expected_money:.3g}",
        )
        for point in response.points
    ]
    lines = table("rlrrr", ("difficulty", "plan", "right", "FLOPs", "money"), rows, style)
    if response.laws:
        lines += ["", *laws(response.laws, style)]
    return "\n".join([*lines, "", *aligned([("profile", line(response.profile))], style)])


def laws(told: Iterable[ScalingLaw], style: Style) -> list[str]:
    """How accuracy grows with samples, in columns: with the intervals, of 95 %."""
    rows = []
    for law in told:
        least, most = law.points[0], law.points[-1]
        rows.append(
            (
                line(law.model),
                line(f"{law.strategy} by {law.verifier}" if law.verifier else law.strategy),
                f"{law.easiest:+.2f} to {law.hardest:+.2f}" if law.HasField("easiest") else "all",
                f"{least.accuracy:.0%}",
                _within(most.accuracy, law.interval if law.HasField("interval") else None),
                str(most.samples),
                law.form,
                _within(law.ceiling, law.ceiling_interval) if law.HasField("ceiling") else "none found",
                f"{law.best_samples}, then less" if law.falls else str(law.best_samples),
            )
        )
    header = ("model", "strategy", "difficulty", "once", "at most", "n", "law", "ceiling", "best n")
    return table("lllrrrlrl", header, rows, style)


def _within(accuracy: float, interval: ScalingInterval | None) -> str:
    if interval is None:
        return f"{accuracy:.0%}"
    return f"{accuracy:.0%} ({100 * interval.low:.0f} to {100 * interval.high:.0f})"


def queried(response: GetQueryResponse, style: Style) -> str:
    """A finished query's result, or the rounds so far of one that runs."""
    if response.HasField("result"):
        return solved(response.result, style)
    state = "running" if response.running else "ended without a result"
    return "\n".join([style.strong(state), *aligned(rounds(response.rounds), style)])


def judged(response: SubmitFeedbackResponse, style: Style) -> str:
    """Whether the returned answer was right."""
    verdict = style.strong("right" if response.right else "wrong")
    return f"{verdict}  {clean(response.returned) or '(no answer)'}"


def expected(each: Action) -> str:
    """What comes of it, and what it costs."""
    return f"{each.expected_accuracy:.0%} right, {in_flops(each.expected_flops)}"


def _capabilities(prefix: bool, logprobs: bool, seed: SeedPromise.ValueType) -> str:
    can = ["prefix"] if prefix else []
    can += ["logprobs"] if logprobs else []
    if seed in (SeedPromise.SEED_PROMISE_ALONE, SeedPromise.SEED_PROMISE_ALWAYS):
        can.append(f"seed {SeedPromise.Name(seed).removeprefix('SEED_PROMISE_').lower()}")
    return ", ".join(can)
