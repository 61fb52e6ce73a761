"""The headlines as files: rows and queries as JSON, a page for people, three pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np

from benchmarks.headlines_claims import SOURCES, TEMPERATURE_SIZES, Row, heat
from benchmarks.headlines_data import MEDIUM, Measured, NotMeasured
from training.resampling import Floats, interval, resamples

mpl.use("Agg")
mpl.rcParams.update(
    {
        "svg.hashsalt": "isoflop",  # The same picture is the same file.
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
    }
)
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402
from matplotlib.patheffects import withStroke  # noqa: E402

SIZES: Final = (1, 4, 8, 16, 32, 64, 128, 256)
"""Points of the curves; a vote of two is worth one sample."""
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
"""Told apart by the colour-blind (Okabe and Ito)."""
TOP_ANSWERS: Final = 3
"""Answers with most votes that are kept of each query and model."""
PICTURES: Final = ("flops", "thirds", "temperature")
HISTORY: Final = {
    "abacus-prm": "The verifier was not fixed so: it was trained again, on more step labels, after headlines "
    "of an earlier one, up to 64 samples, had been seen. Its labels, epochs and rule come from the train "
    "split; that it was trained again does not ([training](../../training/README.md)). It has abacus-m's "
    "size, so that a score of a chain costs somewhat more than abacus-m's writing it.",
}
"""What of a verifier's making bears on its headlines, by name."""


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """headlines.json: headlines first, else in their order."""
    ordered = sorted(rows, key=lambda row: not row.headline)
    put_claims(path, [asdict(row) for row in ordered])


def put_claims(path: Path, told: Sequence[Mapping[str, Any]]) -> None:
    """Put claims into headlines.json; those of other benchmarks stay, after them."""
    own = {one["claim"] for one in told}
    there = json.loads(path.read_text()) if path.exists() else []
    kept = [one for one in there if one["claim"] not in own]
    path.write_text(json.dumps([*told, *kept], indent=1, ensure_ascii=False) + "\n")


def write_queries(path: Path, models: Sequence[Measured]) -> None:
    """headlines_queries.jsonl: a line for each problem."""
    with path.open("w") as file:
        for at, problem in enumerate(models[0].problems):
            row: dict[str, Any] = {
                "query_id": problem.query_id,
                "group": problem.group,
                "kind": problem.kind,
                "answer": problem.answer,
                "models": {one.name: _query(one, at) for one in models},
            }
            file.write(json.dumps(row, separators=(",", ":")) + "\n")


def _query(one: Measured, at: int) -> dict[str, Any]:
    samples = one.samples[at]
    counts = np.bincount(samples.answers[samples.answers >= 0], minlength=1)
    most = np.argsort(-counts, kind="stable")[:TOP_ANSWERS]
    return {
        "one": round(float(one.one[at]), 4),
        "greedy": int(one.greedy[at]),
        "cell": None if np.isnan(one.rate[at]) else round(float(one.rate[at]), 3),
        "top": [[samples.names[k], int(counts[k])] for k in most if counts[k]],
        "samples": len(samples.answers),
        "answers": int((counts > 0).sum()),
    }


def write_page(
    path: Path, rows: Sequence[Row], models: Sequence[Measured], manifest: dict[str, Any]
) -> list[str]:
    """headlines.md and its pictures beside it; the names of the pictures."""
    drawn = draw(path, models)
    headlines = [row for row in rows if row.headline]
    held = sum(row.holds for row in headlines)
    lines = [
        "# Headlines",
        "",
        "Written by `make bench-headlines`; not edited by hand. The numbers are in",
        "`benchmarks/results/headlines.json`, each query's in `headlines_queries.jsonl`, what they were made",
        "with in `headlines_manifest.json`.",
        "",
        *_made(models, manifest),
        f"**{held} of {len(headlines)} headlines hold.**",
        "",
        *_table(headlines),
        "",
        *_reasons(headlines),
        *_sources(),
    ]
    captions = {
        "flops": "Accuracy against FLOPs of a query (attention, prompt and verifier included): greedy "
        "answer, and votes of 1 to 256 samples. Bands are 95 % intervals over problems.",
        "thirds": "Accuracy against samples, by third of difficulty as told by other problems. Solid: "
        "majority; dashed: weighted vote.",
        "temperature": "Accuracy by temperature and number of samples, in %; the best of a column is framed.",
    }
    for name in drawn:
        lines += [f"![{name}]({path.stem}-{name}.svg)", "", captions[name], ""]
    lines += ["## What was measured of each model", "", *_models(models), ""]
    lines += ["## Chain scores", "", *_scorings(models), ""]
    lines += ["## Why no more", "", *_why(models), ""]
    lines += ["## All rows", "", *_all(rows)]
    lines += ["## How to reproduce", "", *_how(manifest)]
    path.write_text("\n".join(lines) + "\n")
    return drawn


def _made(models: Sequence[Measured], manifest: dict[str, Any]) -> list[str]:
    """Of what the figures are, and what was fixed before what."""
    options, verifier = manifest["options"], manifest["verifier"]["name"]
    fixed = (
        "Problems were fixed before the models were trained, definitions and demands before any sample was "
        f"seen; a claim that does not hold stays here with the reason found. {HISTORY.get(verifier, '')}"
    )
    return [
        f"{len(models[0].problems)} held-out problems; samples of each: "
        f"{', '.join(f'{one.most} from {one.name}' for one in models)}, at temperature "
        f"{options['temperature']:g}, verifier `{verifier}`. Where a claim is told of each model, its "
        "headline is the middle model's, by size.",
        "",
        fixed.rstrip(),
        "",
        "A model's medium band is the held-out problems of those kinds and numbers of operations of which "
        f"one sample is right in {100 * MEDIUM[0]:.0f} to {100 * MEDIUM[1]:.0f} % on *calibration* problems "
        f"(up to {options['cell_problems']} of each kind and number, {options['cell_samples']} samples of "
        "each). The [model card](../../models/README.md) has another medium band, told by the held-out "
        "samples that it describes: it is not the same problems.",
        "",
    ]


def _sources() -> list[str]:
    """Where the references come from."""
    return ["References:", "", *(f"- `{claim}`: {told}." for claim, told in SOURCES.items()), ""]


def _table(rows: Sequence[Row]) -> list[str]:
    return [
        "| claim | of | reference | measured | 95 % interval | holds |",
        "|---|---|---|---:|---:|---|",
        *(
            f"| `{row.claim}` | {row.about} | {row.reference} | {_value(row)} | {_interval(row)} | "
            f"{_holds(row)} |"
            for row in rows
        ),
    ]


def _value(row: Row) -> str:
    if row.measured is None:
        return "not measured"
    return f"{row.measured:+.2f} {'points' if row.unit == 'points' else 'in temperature'}"


def _holds(row: Row) -> str:
    return "yes" if row.holds else "**no**"


def _interval(row: Row) -> str:
    return f"{row.interval[0]:+.2f} to {row.interval[1]:+.2f}" if row.interval else ""


def _reasons(rows: Sequence[Row]) -> list[str]:
    """How each was told, and why it does not hold; those not measured for one reason, together."""
    lines = []
    for row in rows:
        if row.measured is not None:
            why = f" **Does not hold:** {row.reason}." if row.reason else ""
            lines.append(f"- `{row.claim}`, {row.about}: {row.how}.{why}")
    return [*lines, *_unmeasured(rows, lambda row: f"`{row.claim}`, {row.about}"), ""]


def _unmeasured(rows: Sequence[Row], name: Callable[[Row], str]) -> list[str]:
    """Why the others were not measured, and which those are."""
    found = dict[str, list[str]]()
    for row in rows:
        if row.measured is None:
            found.setdefault(row.reason, []).append(name(row))
    return [f"- {reason}: {'; '.join(names)}" for reason, names in found.items()]


def _all(rows: Sequence[Row]) -> list[str]:
    """A table for each claim; those not measured for one reason, together."""
    lines: list[str] = []
    for claim in dict.fromkeys(row.claim for row in rows):
        mine = [row for row in rows if row.claim == claim]
        lines += [f"### `{claim}`", "", f"Reference: {mine[0].reference}.", ""]
        if any(row.measured is not None for row in mine):
            lines += ["| of | measured | 95 % interval | holds | compared |", "|---|---:|---:|---|---|"]
            lines += [
                f"| {row.about} | {_value(row)} | {_interval(row)} | {_holds(row)} | {row.how} |"
                for row in mine
                if row.measured is not None
            ]
            lines.append("")
        unmeasured = _unmeasured(mine, lambda row: row.about)
        lines += [*unmeasured, ""] if unmeasured else []
    return lines


def _why(models: Sequence[Measured]) -> list[str]:
    """What bounds a vote and a verifier, by model and band."""
    lines = [
        "A vote cannot mend a commonest answer that is wrong, nor a verifier what no sample gets right; a "
        "text that comes again is judged the same. In % of the problems and of the samples; AUC of chains "
        "within a problem, and of steps.",
        "",
        "| model | problems | how many | commonest answer wrong | no sample right | samples that repeat | "
        "AUC of chains | of steps |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for one in models:
        bands = {"all": np.ones(len(one.problems), bool), "its medium band": one.medium}
        bands |= {f"{third} third": band for third, band in one.thirds.items()}
        for name, band in bands.items():
            if not band.any():
                continue
            told = one.figures(band)
            shares = (told[key] for key in ("commonest_wrong", "never_right", "repeated_texts"))
            areas = (told.get(key) for key in ("chain_auc", "step_auc"))
            lines.append(
                f"| {one.name} | {name} | {int(band.sum())} | "
                + " | ".join(f"{100 * share:.0f}" for share in shares)
                + " | "
                + " | ".join("" if area is None else f"{area:.2f}" for area in areas)
                + " |"
            )
    return lines


def _models(models: Sequence[Measured]) -> list[str]:
    lines = [
        "| model | parameters | greedy, % | one sample, % | N | majority of N, % | pass@N, % | "
        "medium problems | MFLOP of a greedy answer | without attention |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in models:
        flops, simple = one.greedy_cost.mean(0) / 1e6
        lines.append(
            f"| {one.name} | {one.model.shape.active_parameters:,} | {100 * one.greedy.mean():.1f} | "
            f"{100 * one.one.mean():.1f} | {one.most} | {100 * one.majority(one.most).mean():.1f} | "
            f"{100 * one.pass_at(one.most).mean():.1f} | {int(one.medium.sum())} | "
            f"{flops:.1f} | {simple:.1f} |"
        )
    return lines


def _scorings(models: Sequence[Measured]) -> list[str]:
    """Every rule from step scores to chain scores, at one N."""
    scored = [one for one in models if one.verified]
    if not scored:
        return ["Not measured: the samples are not scored."]
    n = max(n for n in SIZES if n <= min(64, *(one.most for one in scored)))
    lines = [
        f"Accuracy in % with {n} samples, all problems. The verifier's own rule is {scored[0].scoring}.",
        "",
        "| model | majority | " + " | ".join(f"vote, {r}" for r in _RULES) + " | "
        + " | ".join(f"best, {r}" for r in _RULES) + " |",
        "|---|" + "---:|" * (1 + 2 * len(_RULES)),
    ]  # fmt: skip
    for one in scored:
        told = [one.majority(n), *(one.weighted(n, r) for r in _RULES), *(one.best(n, r) for r in _RULES)]
        lines.append(f"| {one.name} | " + " | ".join(f"{100 * values.mean():.1f}" for values in told) + " |")
    return lines


_RULES: Final = ("min", "product", "last", "mean")


def _how(manifest: dict[str, Any]) -> list[str]:
    return [
        "    make bench-headlines",
        "",
        "Samples and scores are kept under `build/samples/` and reused; a run that was stopped goes on. "
        f"Used were {manifest['stored']['samples']:,} samples with {manifest['stored']['tokens']:,} tokens. "
        "Beside others a sample is the same for the same seed but for rounding in the batch: a run from "
        "nothing gives the same figures within a small part of their intervals, one from the same samples "
        "the same files.",
        "",
        f"{manifest['machine']['cpu']}, {manifest['machine']['cores']} cores, Python "
        f"{manifest['versions']['python']}, {manifest['date']}.",
    ]


def draw(path: Path, models: Sequence[Measured]) -> list[str]:
    """The pictures; those that cannot be drawn from what is stored are left out."""
    drawn = []
    for name, picture in zip(PICTURES, (_flops, _thirds, _temperature), strict=True):
        target = path.with_name(f"{path.stem}-{name}.svg")
        target.unlink(missing_ok=True)
        try:
            figure = picture(models)
        except NotMeasured:
            continue
        figure.savefig(target, metadata={"Date": None})
        plt.close(figure)
        drawn.append(name)
    return drawn


def _percent(values: Floats) -> tuple[float, float, float]:
    """Mean and interval, in %."""
    low, high = interval(resamples(len(values)) @ values)
    return 100 * float(values.mean()), 100 * low, 100 * high


def _panels(count: int) -> tuple[Any, list[Any]]:
    """One for each model, of the same axes."""
    figure, axes = plt.subplots(
        1, count, figsize=(max(3.4 * count, 5), 3.6), sharex=True, sharey=True, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    return figure, list(axes[0])


def _flops(models: Sequence[Measured]) -> Any:
    figure, panels = _panels(len(models))
    for one, axes in zip(models, panels, strict=True):
        sizes = [n for n in SIZES if n <= one.most]
        curves = [("majority", BLUE, "-", one.majority, False, sizes)]
        if one.verified:
            curves += [
                ("weighted vote", ORANGE, "-", one.weighted, True, sizes),
                ("best of N", GREEN, "--", one.best, True, sizes),
            ]
        for label, colour, style, answer, verified, at in curves:
            x = [one.cost(n, verified).mean(0)[0] for n in at]
            mean, low, high = np.array([_percent(answer(n)) for n in at]).T
            axes.plot(x, mean, style, color=colour, lw=1.6, marker="o", ms=2.5, label=label)
            axes.fill_between(x, low, high, color=colour, alpha=0.13, lw=0)
        for other in models:
            x, y = other.greedy_cost.mean(0)[0], 100 * other.greedy.mean()
            axes.plot(
                x, y, "D", color="black" if other is one else GREY, ms=5 if other is one else 4, zorder=5
            )
            axes.annotate(
                f"{other.name.rpartition('-')[2]} greedy" if other is not one else "greedy",
                (x, y), (0, -11), textcoords="offset points", ha="center", fontsize=7.5,
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
                color="black" if other is one else GREY,
            )  # fmt: skip
        axes.set(xscale="log", title=one.name, xlabel="FLOPs of a query")
        axes.grid(alpha=0.25, lw=0.5)
    panels[0].set_ylabel("right answers, %")
    panels[-1].legend(frameon=False, loc="lower right", fontsize=8)
    return figure


def _thirds(models: Sequence[Measured]) -> Any:
    figure, panels = _panels(len(models))
    widest = [n for n in SIZES if n <= max(one.most for one in models)]
    for one, axes in zip(models, panels, strict=True):
        sizes = [n for n in SIZES if n <= one.most]
        labels, ends = list[tuple[str, str]](), list[float]()
        for (name, band), colour in zip(one.thirds.items(), (BLUE, ORANGE, GREEN), strict=True):
            if not band.any():
                continue
            ends.append(100 * float(one.majority(sizes[-1])[band].mean()))
            mean, low, high = np.array([_percent(one.majority(n)[band]) for n in sizes]).T
            axes.plot(sizes, mean, color=colour, lw=1.6, marker="o", ms=2.5)
            axes.fill_between(sizes, low, high, color=colour, alpha=0.13, lw=0)
            if one.verified:
                axes.plot(
                    sizes, [100 * one.weighted(n)[band].mean() for n in sizes], "--", color=colour, lw=1.3
                )
            labels.append((name, colour))
        for (name, colour), y in zip(labels, _apart(ends), strict=True):
            axes.text(sizes[-1] * 1.15, y, name, color=colour, va="center")
        axes.set(title=one.name, xlabel="samples", xlim=(0.9, widest[-1] * 2.2))
        axes.set_xscale("log", base=2)
        axes.set_xticks(widest, [str(n) for n in widest])
        axes.minorticks_off()
        axes.grid(alpha=0.25, lw=0.5)
    panels[0].set_ylabel("right answers, %")
    return figure


def _apart(heights: Sequence[float]) -> list[float]:
    """Heights of labels, in percent, so that none lies on another."""
    placed = dict[int, float]()
    for at in sorted(range(len(heights)), key=lambda at: -heights[at]):
        placed[at] = min([heights[at], *(height - 6 for height in placed.values())])
    return [placed[at] for at in range(len(heights))]


def _temperature(models: Sequence[Measured]) -> Any:
    names = ("majority", "pass@N")
    models = [one for one in models if len(one.by_temperature) > 1]
    if not models:
        raise NotMeasured("needs two temperatures at least")
    figure, grid = plt.subplots(
        len(names), len(models), figsize=(max(3.4 * len(models), 5), 4.6), layout="constrained", squeeze=False
    )
    for at, (name, line) in enumerate(zip(names, grid, strict=True)):
        for one, axes in zip(models, line, strict=True):
            told = heat(one, name)
            degrees = list(told)
            sizes = [n for n in TEMPERATURE_SIZES if n in told[degrees[0]]]
            values = np.array([[100 * told[t][n].mean() for n in sizes] for t in degrees])
            axes.imshow(values, cmap="cividis", aspect="auto", origin="lower")
            middle = (values.min() + values.max()) / 2
            for (row, column), value in np.ndenumerate(values):
                best = value == values[:, column].max()
                axes.text(
                    column, row, f"{value:.0f}", ha="center", va="center", fontsize=8,
                    color="white" if value < middle else "black", weight="bold" if best else "normal",
                )  # fmt: skip
                if best:
                    axes.add_patch(
                        Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fill=False, ec=ORANGE, lw=2)
                    )
            axes.set_xticks(range(len(sizes)), [str(n) for n in sizes])
            axes.set_yticks(range(len(degrees)), [f"{t:g}" for t in degrees])
            axes.set_title(f"{one.name}, {name}")
            for spine in axes.spines.values():
                spine.set_visible(False)
            axes.tick_params(length=0)
            if at == len(names) - 1:
                axes.set_xlabel("samples")
        line[0].set_ylabel("temperature")
    return figure
