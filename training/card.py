"""Write models/README.md, the model card, from checkpoints and evaluations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import torch

from training.engine import PURE_SAMPLING
from training.evaluate import (
    EVALUATION,
    MODELS,
    SAMPLES,
    TEMPERATURE,
    Summary,
    outcome_of,
    read_records,
    summarize,
)
from training.export import sha256_of
from training.model import Shape
from training.problems import GROUPS, TRAINED_OPERATIONS
from training.train import CHECKPOINTS, RECIPES

_HEADER: Final = """\
# abacus: three small models that calculate step by step

*Written by `python -m training.evaluate`; do not edit by hand.*

Decoder-only language models (Llama's architecture, GGUF, single precision)
that solve integer problems of `+ - *` and parentheses, one operation a line,
answer last:

```
{example}
```

They are the test bench of isoflop: a spectrum of difficulty from always right
to almost never, and a larger model is better at one sample. They are of no
other use. Tokens are bytes. The chat template in each file takes the last
message without blanks, `=` and `?`, and adds a newline. Licence: Apache-2.0.
How they are made, and on what: [training/README.md](../training/README.md).
"""


def summaries(name: str) -> dict[int, Summary]:
    """The summary of each group, from the stored samples of a model."""
    outcomes = [outcome_of(record) for record in read_records(EVALUATION / f"{name}.jsonl.gz")]
    return {
        group: summarize(members)
        for group in GROUPS
        if (members := [outcome for outcome in outcomes if outcome.group == group])
    }


def _example() -> str:
    from training.problems import parse, solution_text

    problem = "17*24+13"
    return f"{problem}\n{solution_text(parse(problem))}"


def _table(rows: list[list[str]]) -> str:
    header, *body = rows
    lines = [header, ["---:"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _making(names: list[str]) -> str:
    rows = [
        [
            "model",
            "parameters",
            "width × layers × heads, feed-forward",
            "steps",
            "training tokens",
            "minutes",
            "seed",
            "final loss",
            "SHA-256",
        ]
    ]
    for name in names:
        state = torch.load(CHECKPOINTS / f"{name}.pt", weights_only=True)
        shape = Shape(**state["recipe"]["shape"])
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
                f"`{sha256_of(MODELS / f'{name}.gguf')[:16]}…`",
            ]
        )
    return _table(rows)


def _accuracy(groups: dict[int, Summary]) -> str:
    rows = [
        [
            "operations",
            "problems",
            "greedy",
            "one sample",
            f"majority of {SAMPLES}",
            "pass@4",
            f"pass@{SAMPLES}",
            "tokens a sample",
        ]
    ]
    for group, summary in groups.items():
        untrained = "" if group in TRAINED_OPERATIONS else " (never trained)"
        rows.append(
            [
                f"{group}{untrained}",
                str(summary.problems),
                f"{summary.greedy:.2f}",
                f"{summary.one_sample:.2f}",
                f"{summary.majority:.2f}",
                f"{summary.pass_4:.2f}",
                f"{summary.pass_16:.2f}",
                f"{summary.tokens:.0f}",
            ]
        )
    return _table(rows)


def card_text() -> str:
    """The whole card, for the models that have a file and an evaluation."""
    names = [
        name
        for name in RECIPES
        if (MODELS / f"{name}.gguf").exists() and (EVALUATION / f"{name}.jsonl.gz").exists()
    ]
    sampling = ", ".join(f"{key} {value:g}" for key, value in PURE_SAMPLING.items())
    parts = [
        _HEADER.format(example=_example()),
        "## Making\n\n"
        + _making(names)
        + "\n\nMinutes are wall-clock on one or two threads of a two-core machine, beside other work. "
        "Full hashes: `SHA256SUMS`.\n",
        "## Accuracy on held-out problems\n\n"
        f"By number of operations. Sampled at temperature {TEMPERATURE:g} ({sampling}), "
        f"{SAMPLES} samples a problem, through llama.cpp. One sample: the mean over all samples. "
        "Majority: most frequent answer, ties by lot. pass@k: unbiased estimate.\n",
    ]
    for name in names:
        speed = json.loads((EVALUATION / f"{name}.speed.json").read_text())
        parts.append(
            f"### {name}\n\n{_accuracy(summaries(name))}\n\n"
            f"{speed['tokens_per_second']:,.0f} tokens a second on one thread, beside other work.\n"
        )
    return "\n".join(parts)


def write_card(path: Path = MODELS / "README.md") -> None:
    """Write the card."""
    path.write_text(card_text(), encoding="utf-8")
