"""Write models/README.md, the model card, from checkpoints and stored samples."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
import torch

from services.common.settings import MODELS
from training.evaluate import SAMPLES, Outcome, Summary, outcomes, summarize
from training.expressions import parse
from training.model import Shape
from training.modes import held, in_words, worth
from training.problems import GROUPS, TRAINED_OPERATIONS, Problem, example
from training.splits import first_of_each_group, read_rows
from training.store import sha256_of
from training.train import CHECKPOINTS, RECIPES

mpl.use("Agg")
import matplotlib.pyplot as plt

mpl.rcParams["svg.hashsalt"] = "abacus"  # the same picture has the same bytes

PICTURE: Final = "temperature.svg"
SHOWN: Final = 0.7
"""Temperature of the tables by group."""
BAND: Final = (0.2, 0.8)
"""One-sample rates of the medium band."""

_HEADER: Final = """\
# abacus: three small models that calculate step by step

*Written by `python -m training.evaluate`; do not edit by hand.*

Decoder-only language models (Llama's architecture, GGUF, single precision) that solve small problems of
arithmetic, given as expressions, equations or stories in plain English, one operation a line, answer last:

```
{example}
```

They are the test bench of isoflop: a spectrum of difficulty from almost always right to never, and a larger
model is better at one sample. They are of no other use. The chat template in each file takes a problem from
the user; with a system message `think` every line is checked and written again where the check fails; after
an answer the user may say `critique`, and after that `revise`. What came of these modes is told
[below](#the-other-modes). Licence: Apache-2.0. How the models are made, and on what:
[training/README.md](../training/README.md).
"""
_ACCURACY: Final = f"""\
Sampled through llama.cpp from the models' own distribution (no top-k, top-p, min-p), {SAMPLES} samples \
a problem; by group at temperature {SHOWN:g}. One sample: the mean over all samples. Majority: most \
frequent answer, ties by lot. pass@k: unbiased estimate. A share of n problems is known to about ±1/√n. \
Medium bands are told by these samples themselves, and describe them; the \
[headlines](../docs/results/headlines.md) compare on bands that are told by calibration problems, and are \
not the same.
"""
_MODES: Final = f"""\
One solution of each problem at temperature {SHOWN:g}: in steps; with checks (`think`); and in steps, \
replaced by its greedy revision where its own greedy critique finds a wrong line. All as shares.
"""


def _example() -> str:
    row = next(row for row in read_rows("heldout.jsonl") if row["kind"] == "story" and row["group"] == 3)
    problem = Problem(row["kind"], row["prompt"], parse(row["expression"]))
    written = example(random.Random(0), problem, "steps")
    return written.prompt + "\n".join(line.text for line in written.lines)


def _table(rows: list[list[str]]) -> str:
    header, *body = rows
    lines = [header, ["---:"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _making(names: Sequence[str]) -> str:
    rows = [["model", "parameters", "width × layers × heads, feed-forward", "steps", "training tokens",
             "minutes", "seed", "final loss", "SHA-256"]]  # fmt: skip
    for name in names:
        state = torch.load(CHECKPOINTS / f"{name}.pt", weights_only=True)
        shape = Shape(**state["recipe"]["shape"])
        digest = sha256_of(MODELS / f"{name}.gguf")
        rows.append(
            [
                name,
                f"{shape.parameters:,}",
                f"{shape.width} × {shape.layers} × {shape.heads}, {shape.feed_forward}",
                str(state["step"]),
                f"{state['tokens'] / 1e6:.1f}M",
                f"{state['seconds'] / 60:.1f}",
                str(state["recipe"]["seed"]),
                f"{state['loss']:.4f}",
                f"`{digest[:16]}…`",
            ]
        )
    return _table(rows)


def _row(label: str, summary: Summary) -> list[str]:
    return [label, str(summary.problems),
            *(f"{value:.2f}" for value in (summary.greedy, summary.one_sample, summary.majority,
                                           summary.pass_4, summary.pass_16)),
            f"{summary.tokens:.0f}"]  # fmt: skip


_COLUMNS: Final = ["problems", "greedy", "one sample", f"majority of {SAMPLES}", "pass@4", f"pass@{SAMPLES}",
                   "tokens a sample"]  # fmt: skip


def _by_group(found: Sequence[Outcome]) -> str:
    rows = [["operations", *_COLUMNS]]
    for group in GROUPS:
        if members := [outcome for outcome in found if outcome.problem.group == group]:
            untrained = "" if group in TRAINED_OPERATIONS else " (never trained)"
            rows.append(_row(f"{group}{untrained}", summarize(members)))
    for kind in ("story", "expression", "equation"):
        if members := [outcome for outcome in found if outcome.problem.kind == kind]:
            rows.append(_row(kind, summarize(members)))
    rows.append(_row("all", summarize(found)))
    return _table(rows)


def _compared(found: Mapping[float, Sequence[Outcome]]) -> dict[float, Summary]:
    """A model at each temperature, on the problems that were sampled at all of them."""
    common = set.intersection(*({one.problem.query_id for one in told} for told in found.values()))
    return {
        degree: summarize([one for one in told if one.problem.query_id in common])
        for degree, told in found.items()
    }


def _by_temperature(found: Mapping[float, Sequence[Outcome]]) -> str:
    rows = [["temperature", *_COLUMNS]]
    rows += [_row(f"{degree:g}", summary) for degree, summary in _compared(found).items()]
    return _table(rows)


def _band(found: Sequence[Outcome]) -> str:
    """Where one sample is right in 20 to 80 % of the cases, by kind and number of operations."""
    cells: dict[str, list[Outcome]] = {}
    for outcome in found:
        cells.setdefault(f"{outcome.problem.kind} of {outcome.problem.group}", []).append(outcome)
    medium = [cell for cell, members in cells.items()
              if BAND[0] <= summarize(members).one_sample <= BAND[1] and len(members) >= 4]  # fmt: skip
    inside = [outcome for cell in medium for outcome in cells[cell]]
    if not inside:
        return "No kind and number of operations has a one-sample rate of 20 to 80 %."
    summary = summarize(inside)
    return (
        f"Medium band (kinds × operations where one sample is right in 20 to 80 %; {len(inside)} problems): "
        f"one sample {summary.one_sample:.2f}, majority of {SAMPLES} {summary.majority:.2f}, greedy "
        f"{summary.greedy:.2f}, pass@{SAMPLES} {summary.pass_16:.2f}. It is: {', '.join(sorted(medium))}."
    )


def _modes(names: Sequence[str]) -> str:
    """What the other modes are worth, model by model, and in words."""
    rows = [["model", "problems", "steps", "think", "after critique and revision",
             "critique: alarm at a sound solution", "at a faulty one", "at its first wrong line",
             "tokens: steps, think, with revision"]]  # fmt: skip
    problems = {p.query_id: p for p in first_of_each_group("heldout.jsonl", 100 * len(GROUPS))}
    every = []
    for name in names:
        if there := held(name):
            found = worth([(problems[query_id], one) for query_id, one in there.items()])
            every.append(found)
            shares = (
                found.steps, found.think, found.revised, found.false_alarms, found.found, found.found_first,
            )  # fmt: skip
            tokens = ", ".join(f"{count:.0f}" for count in found.tokens)
            rows.append(
                [name, str(found.problems), *("" if x is None else f"{x:.2f}" for x in shares), tokens]
            )
    return f"{_table(rows)}\n\n{in_words(every)}".rstrip() if every else "Not measured."


def draw_picture(models: Mapping[str, Mapping[float, Sequence[Outcome]]], path: Path) -> None:
    """Accuracy against temperature: one sample, majority and pass@n of each model."""
    figure, axes = plt.subplots(1, len(models), figsize=(3.2 * len(models), 3.0), sharey=True, squeeze=False)
    for axis, (name, found) in zip(axes[0], models.items(), strict=True):
        curves = list(_compared(found).items())
        xs = [temperature for temperature, _ in curves]
        for attribute, label, colour in (
            ("pass_16", f"pass@{SAMPLES}", "#009E73"),
            ("majority", f"majority of {SAMPLES}", "#0072B2"),
            ("one_sample", "one sample", "#D55E00"),
        ):
            ys = [getattr(summary, attribute) for _, summary in curves]
            axis.plot(xs, ys, "o-", color=colour, label=label, markersize=4)
        axis.axhline(curves[0][1].greedy, color="grey", linestyle=":", label="greedy")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("temperature")
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("share of problems right")
    axes[0][0].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def card_text(models: Mapping[str, Mapping[float, Sequence[Outcome]]]) -> str:
    """The whole card, of each model's outcomes by temperature."""
    parts = [
        _HEADER.format(example=_example()),
        "## Making\n\n"
        + _making(list(models))
        + "\n\nMinutes are wall-clock on one thread of a two-core machine, beside other work. "
        "Full hashes: `SHA256SUMS`.\n",
        f"## Accuracy on held-out problems\n\n{_ACCURACY}\n![accuracy against temperature]({PICTURE})\n",
    ]
    for name, found in models.items():
        shown = found[SHOWN]
        parts.append(f"### {name}\n\n{_by_group(shown)}\n\n{_by_temperature(found)}\n\n{_band(shown)}\n")
    parts.append(f"## The other modes\n\n{_MODES}\n{_modes(list(models))}\n")
    return "\n".join(parts)


def write_card(folder: Path = MODELS) -> None:
    """Write card and picture, for the models that have a file and samples."""
    stored = {name: outcomes(name) for name in RECIPES if (folder / f"{name}.gguf").exists()}
    models = {name: found for name, found in stored.items() if SHOWN in found}
    draw_picture(models, folder / PICTURE)
    (folder / "README.md").write_text(card_text(models), encoding="utf-8")
