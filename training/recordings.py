"""Recordings of labelled queries: what models made of them, as calibration writes and reads it.

JSON lines, one query under one model each (`.jsonl`, or `.jsonl.gz`):

    {"query_id", "model", "prompt"?, "gold"?, "type"?, "group"?, "prompt_tokens"?,
     "samples": [{"answer" | null, "correct", "tokens", "scores"?: {verifier: score}}],
     "greedy"?: {as one of the samples}}

The `recorded` backend of generation plays them back. Lines of the same query and model are added up.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from training.profiles import Array, Measured, Samples


class RecordingError(Exception):
    """A recording that cannot be used; `str(error)` says where and why."""


@dataclass(frozen=True)
class Recordings:
    """Labelled queries of which each model has samples."""

    queries: Sequence[Measured]
    models: Sequence[str]
    left_out: int
    """Queries that some model has no two samples of."""


def read(paths: Iterable[Path], models: Sequence[str] = ()) -> Recordings:
    """The queries of which all models have samples: the named ones, or all that are there.

    Raises RecordingError where a line is none, or no query is left, and OSError.
    """
    rows: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for path in paths:
        for row in lines(path):
            rows.setdefault(row["query_id"], {}).setdefault(row["model"], []).append(row)
    found = list(dict.fromkeys(model for by_model in rows.values() for model in by_model))
    for name in models:
        if name not in found:
            raise RecordingError(f"there is no model {name!r} in it; there are: {', '.join(found)}")
    named = list(models) or found
    queries = []
    for query_id, by_model in rows.items():
        samples = {name: samples_of(by_model[name]) for name in named if name in by_model}
        if len(samples) < len(named) or any(len(one.answers) < 2 for one in samples.values()):
            continue
        first = [row for name in named for row in by_model[name]]
        greedy = {
            row["model"]: samples_of([{**row, "samples": [row["greedy"]]}])
            for row in first
            if row.get("greedy")
        }
        prompt = next((row["prompt"] for row in first if row.get("prompt")), "")
        group = next((row["group"] for row in first if row.get("group") is not None), "")
        queries.append(Measured(query_id, prompt, str(group), samples, greedy))
    if not queries:
        raise RecordingError("there is no query of which all models have two samples")
    return Recordings(queries, named, len(rows) - len(queries))


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The checked lines of a file; raises RecordingError, which names the line, and OSError."""
    opened = partial(gzip.open, mode="rt") if path.suffix == ".gz" else open
    number = 1
    try:
        with opened(path, encoding="utf-8") as text:
            for line in text:
                if line.strip():
                    yield _checked(json.loads(line))
                number += 1
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zlib.error) as error:
        raise RecordingError(f"{path}, line {number}: not a recorded query ({error!r})") from None


def _checked(row: Any) -> dict[str, Any]:
    """The row; raises what a wrong one does."""
    samples_of([row])
    if not (row["query_id"].strip() and row["model"].strip()):
        raise ValueError("query_id or model is empty")
    return dict(row)


def samples_of(rows: Sequence[Mapping[str, Any]]) -> Samples:
    """The samples of one query from one model; raises KeyError, TypeError and ValueError."""
    samples = [sample for row in rows for sample in row["samples"]]
    tokens = np.array([float(_tokens(sample)) for sample in samples])
    if not np.isfinite(tokens).all() or (tokens < 0).any():
        raise ValueError("tokens are no counts")
    verifiers = (
        set.intersection(*(set(sample.get("scores") or ()) for sample in samples)) if samples else set()
    )
    return Samples(
        [None if sample["answer"] in (None, "") else str(sample["answer"]) for sample in samples],
        np.array([sample["correct"] is True for sample in samples], dtype=bool),
        tokens,
        int(rows[0].get("prompt_tokens") or 0),
        {name: np.array([float(sample["scores"][name]) for sample in samples]) for name in verifiers},
    )


def _tokens(sample: Mapping[str, Any]) -> float:
    """Its tokens; about four characters each where they were not counted."""
    tokens = sample.get("tokens")
    return float(sample["chars"]) / 4 if tokens is None else float(tokens)


def counts(queries: Sequence[Measured], models: Sequence[str]) -> tuple[Array, Array, Array]:
    """Right samples, samples, and mean tokens of a sample, by query and model: shape (Q, M) each."""
    cells = [[query.samples[name] for name in models] for query in queries]
    right = np.array([[one.right.sum() for one in row] for row in cells], float)
    samples = np.array([[len(one.right) for one in row] for row in cells], float)
    return right, samples, np.array([[one.tokens.mean() for one in row] for row in cells])
