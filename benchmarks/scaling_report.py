"""The scaling laws as files: records as JSON, a page for people, a picture for each set of queries."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np

from router.scaling import FORMS, Form
from training.scaling import IDENTIFIED, Forecast, Scaling, forecast
from training.scaling_picture import BINS, small_multiples

mpl.use("Agg")
mpl.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False})
import matplotlib.pyplot as plt  # noqa: E402

FORMULAS: Final[Mapping[Form, str]] = {
    "logarithm": "a + c·log n",
    "power": "1 - e - b·n^-k",
    "saturating": "ceiling - b·exp(-n/n0)",
}
HEADLINE: Final = ("abacus-m", "majority", 256)
"""Of `log_fit` in docs/results/headlines.md: model, strategy, N."""


@dataclass(frozen=True)
class Measured:
    """The laws of one set of queries."""

    name: str
    title: str
    laws: Sequence[Scaling]

    def of(self, strategy: str) -> list[Scaling]:
        """Those of a strategy."""
        return [one for one in self.laws if one.record.strategy == strategy]

    @property
    def strategies(self) -> list[str]:
        """In their order."""
        return list(dict.fromkeys(one.record.strategy for one in self.laws))


def quarter(one: Scaling) -> Forecast:
    """What each form, fitted up to N/4, says of N; none where the form was not chosen so."""
    most = one.record.samples[1]
    return forecast(one, most // 4, most) if one.record.held_out == "more samples" else {}


def write_page(page: Path, results: Path, found: Sequence[Measured], left_out: Mapping[str, str]) -> None:
    """Everything; the pictures beside the page."""
    for path in (page, results):
        path.parent.mkdir(parents=True, exist_ok=True)
    forecasts = {id(one): quarter(one) for measured in found for one in measured.laws}
    lines = [
        json.dumps(
            {
                "queries": measured.name,
                "record": one.record.model_dump(mode="json"),
                "samples": one.points.samples.tolist(),
                **{
                    name: [round(float(value), 4) for value in getattr(one.points, name)]
                    for name in ("accuracy", "low", "high")
                },
                "quarter": {form: [round(v, 4) for v in said] for form, said in forecasts[id(one)].items()},
            }
        )
        for measured in found
        for one in measured.laws
    ]
    results.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    for measured in found:
        figure = small_multiples(measured.laws, measured.title)
        figure.savefig(
            page.with_name(f"{page.stem}-{measured.name}.png"), dpi=110, metadata={"Software": None}
        )
        plt.close(figure)
    page.write_text(
        "\n".join(
            [*_head(left_out), *_forms(found, forecasts), *_headline(found), *_sets(page, found), *_how()]
        )
        + "\n"
    )


def _head(left_out: Mapping[str, str]) -> list[str]:
    return [
        "# Scaling laws",
        "",
        "Written by `make bench-scaling`; not edited by hand. The records, as a profile has them, with their",
        "points are in `benchmarks/results/scaling.json`.",
        "",
        "How accuracy grows with the number of samples n, by model, strategy and third of latent difficulty.",
        f"The forms are {_and(f'{FORMULAS[form]} ({form})' for form in FORMS)}.",
        "A form is fitted by weighted least squares up to N/4 samples; the one that then errs least on",
        "all larger n is chosen, and fitted again to all. Where a query is in its third by its even",
        "samples, its odd ones are measured, and the other way round: so N of a third is half of the",
        "stored samples, and a query may be in two thirds. Intervals are of 95 %, from resampled queries.",
        "",
        *(f"- **{name}** is left out: {reason}." for name, reason in left_out.items()),
        *([""] if left_out else []),
    ]  # fmt: skip


def _forms(found: Sequence[Measured], forecasts: Mapping[int, Forecast]) -> list[str]:
    lines = [
        "## Which form predicts N from N/4",
        "",
        "`chosen`: curves for which the form erred least on n above N/4. Then the accuracy at N as each",
        "form says it from n up to N/4, less what was measured: mean absolute error and, in brackets, mean",
        "error, in points; what is said is not cut at 100 %. Last, that accuracy stays what it is at N/4.",
        "Curves of one set share queries and samples: these are summaries, not independent trials.",
        "",
        "| queries | strategy | curves | chosen: " + " | ".join(FORMS) + " | at N: " + " | ".join(FORMS)
        + " | stays |",
        "|---|---|---:|" + "---:|" * (2 * len(FORMS) + 1),
    ]  # fmt: skip
    for measured in found:
        for strategy in measured.strategies:
            laws = [one for one in measured.of(strategy) if forecasts[id(one)]]
            if not laws:
                continue
            won = Counter(one.record.form for one in laws)
            errors = [
                [forecasts[id(one)][form][0] - one.points.accuracy[-1] for one in laws] for form in FORMS
            ]
            stays = [_last_seen(one) - one.points.accuracy[-1] for one in laws]
            lines.append(
                f"| {measured.title.split(',')[0]} | {_words(strategy)} | {len(laws)} | "
                + " | ".join(str(won[form]) for form in FORMS)
                + " | "
                + " | ".join(_error(told) for told in (*errors, stays))
                + " |"
            )
    return [*lines, ""]


def _last_seen(one: Scaling) -> float:
    """Accuracy at the largest n up to N/4."""
    seen = 4 * one.points.samples <= one.record.samples[1]
    return float(one.points.accuracy[seen][-1])


def _error(errors: Iterable[float]) -> str:
    told = 100 * np.array(list(errors))
    return f"{np.abs(told).mean():.2f} ({told.mean():+.2f})"


def _headline(found: Sequence[Measured]) -> list[str]:
    """The claim of the headlines that a + c log n predicts best, which failed."""
    model, strategy, most = HEADLINE
    mine = [
        one
        for measured in found
        for one in measured.laws
        if (one.record.model, one.record.strategy, one.record.difficulty) == (model, strategy, None)
        and one.record.samples[1] == most
    ]
    if not mine:
        return []
    (one,) = mine
    truth, low, high = (
        100 * float(told[-1]) for told in (one.points.accuracy, one.points.low, one.points.high)
    )
    lines = [
        "## The headline that failed",
        "",
        f"`log_fit` of the headlines: {model}, {strategy}, all problems, N = {most}: "
        f"{truth:.1f} % ({low:.1f} to {high:.1f}) was measured.",
        "",
        "| fitted up to | " + " | ".join(FORMULAS[form] for form in FORMS) + " |",
        "|---|" + "---:|" * len(FORMS),
    ]
    for upto in (most // 8, most // 4):
        said = forecast(one, upto, most)
        told = (f"{100 * v:.1f} ({100 * low:.1f} to {100 * high:.1f})" for v, low, high in said.values())
        lines.append(f"| {upto} | {' | '.join(told)} |")
    return [*lines, ""]


def _sets(page: Path, found: Sequence[Measured]) -> list[str]:
    lines = []
    for measured in found:
        lines += [
            f"## {measured.title}",
            "",
            f"![{measured.title}]({page.stem}-{measured.name}.png)",
            "",
            "Points with 95 % intervals, the chosen form as a line, ceilings dashed; a triangle is the",
            "best n of a curve that surely falls beyond it.",
            "",
            "| model | strategy | queries | N | n = 1, % | N, % | form | ceiling, % | best n |",
            "|---|---|---|---:|---:|---:|---|---|---|",
            *(_row(one, measured) for one in measured.laws),
            "",
        ]
    return lines


def _row(one: Scaling, measured: Measured) -> str:
    record, points = one.record, one.points
    most = record.samples[1]
    if record.ceiling is not None and record.ceiling_interval is not None:
        low, high = record.ceiling_interval
        ceiling = f"{100 * record.ceiling:.1f} ({100 * low:.1f} to {100 * high:.1f})"
    else:
        ceiling = f"none found within n = {most}"
    last = f"{100 * points.accuracy[-1]:.1f} ({100 * points.low[-1]:.1f} to {100 * points.high[-1]:.1f})"
    best = f"{record.best_n}, falls beyond" if record.falls else str(record.best_n)
    return (
        f"| {record.model} | {_words(record.strategy)} | {_bin(one, measured)} ({record.queries}) | {most} | "
        f"{100 * points.accuracy[0]:.1f} | {last} | {record.form} | {ceiling} | {best} |"
    )


def _bin(one: Scaling, measured: Measured) -> str:
    if not one.record.difficulty:
        return "all"
    beside = sorted(
        other.record.difficulty
        for other in measured.of(one.record.strategy)
        if other.record.model == one.record.model and other.record.difficulty
    )
    return BINS[len(beside)][beside.index(one.record.difficulty)]


def _and(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}"


def _words(strategy: str) -> str:
    return strategy.replace("_", " ")


def _how() -> list[str]:
    return [
        "## What a ceiling is, and is not",
        "",
        "The limit of the chosen form, told only where the rise to it from N is known to within",
        f"{100 * IDENTIFIED:g} points, it is no lower than any point but for noise, the curve does not",
        "surely rise more from N/2 to N than the form does, nor fall, and it is below 100 %. Its interval is",
        "for queries like these, given that form; another form may have another limit. None found says that",
        "these samples do not tell one, not that there is none.",
        "",
        "## How to reproduce",
        "",
        "    make bench-headlines bench-scaling",
    ]
