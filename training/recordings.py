"""Recordings of labelled queries: what models made of them, as calibration writes and reads it.

JSON lines, one query under one model each (`.jsonl`, or `.jsonl.gz`):

    {"query_id", "model", "prompt"?, "gold"?, "type"?, "group"?, "temperature"?, "prompt_tokens"?,
     "samples": [{"answer" | null, "correct", "tokens" | "chars", "scores"?: {verifier: score | null}}],
     "greedy"?: {as one of the samples}, "seconds_per_token"?,
     "deep"?: {"strategy", "search": {"width", "expansion", "depth", "nodes", "tokens"}, "verifier"},
     "flops"?, "money"?}

The `recorded` backend of generation plays them back. Lines of the same query and model are added up; one
may have no samples, and only say how fast its model is. A score of null: the verifier could give none. A line
with `deep` has the best chain of a strategy that makes chains in parts, and is none of the model's samples.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from router.profile import SearchRecord, first_fault
from router.strategies import STRATEGIES
from router.strategies.strategy import Search
from services.common.texts import open_text
from training.measured import Array, Deep, Measured, Played, Samples


class RecordingError(Exception):
    """A recording that cannot be used; `str(error)` says where and why."""


@dataclass(frozen=True)
class Recordings:
    """Labelled queries of which each model has samples."""

    queries: Sequence[Measured]
    models: Sequence[str]
    left_out: int
    """Queries that some model has no two samples of."""
    temperature: float | None = None
    """Of the samples; None: it is not told."""
    seconds_per_token: Mapping[str, float] = field(default_factory=dict)
    """Of a lone sample, by model, where it was measured."""
    incomplete: Mapping[Deep, int] = field(default_factory=dict)
    """Strategies that so many of the queries lack, which therefore have them not at all."""


def read(paths: Iterable[Path], models: Sequence[str] = (), only: Container[str] | None = None) -> Recordings:
    """The queries of which all models have samples: the named ones, or all that are there.

    `only` are the ids of the queries that count; None: all. Raises RecordingError where a line is none,
    samples are of several temperatures, or no query is left, and OSError.
    """
    rows: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    played: dict[Deep, dict[str, list[Mapping[str, Any]]]] = {}
    speeds: dict[str, float] = {}
    temperatures: set[float] = set()
    for path in dict.fromkeys(path.resolve() for path in paths):
        for row in lines(path):
            if row.get("seconds_per_token") is not None:
                speeds[row["model"]] = float(row["seconds_per_token"])
            if not row["samples"] or (only is not None and row["query_id"] not in only):
                continue
            deep = deep_of(row)
            if models and row["model"] not in models:
                if not deep:
                    rows.setdefault(row["query_id"], {})
                continue
            if row.get("temperature") is not None:
                temperatures.add(float(row["temperature"]))
            if deep:
                played.setdefault(deep, {}).setdefault(row["query_id"], []).append(row)
                continue
            rows.setdefault(row["query_id"], {}).setdefault(row["model"], []).append(row)
    if len(temperatures) > 1:
        told = ", ".join(f"{value:g}" for value in sorted(temperatures))
        raise RecordingError(f"samples are of several temperatures ({told}): give the recordings of one")
    found = list(dict.fromkeys(model for by_model in rows.values() for model in by_model))
    for name in models:
        if name not in found:
            there = f"; there are: {', '.join(found)}" if found else ""
            raise RecordingError(f"no samples of model {name!r} are recorded{there}")
    named = list(dict.fromkeys(models)) or found
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
    temperature = min(temperatures, default=None)
    lacking = {
        deep: sum(query.query_id not in by_query for query in queries)
        for deep, by_query in played.items()
        if deep.model in named
    }
    whole = [deep for deep, count in lacking.items() if not count]
    queries = [
        replace(query, deep={deep: _played(played[deep][query.query_id]) for deep in whole})
        for query in queries
    ]
    incomplete = {deep: count for deep, count in lacking.items() if count}
    return Recordings(queries, named, len(rows) - len(queries), temperature, speeds, incomplete)


def deep_of(row: Mapping[str, Any]) -> Deep | None:
    """The strategy whose best chain a line has; None: it has a model's samples. Raises as `samples_of`."""
    told = row.get("deep")
    if told is None:
        return None
    strategy, verifier = told["strategy"], told["verifier"]
    if strategy not in STRATEGIES or not STRATEGIES[strategy].shape:
        raise ValueError(f"no strategy {strategy!r} makes chains in parts")
    if not isinstance(verifier, str):
        raise TypeError("verifier is no text")
    try:
        search = SearchRecord.model_validate(told["search"])
    except ValidationError as error:
        raise ValueError(f"search.{first_fault(error)}") from None
    return Deep(row["model"], strategy, Search(**search.model_dump()), verifier)


def _played(rows: Sequence[Mapping[str, Any]]) -> Played:
    chains = samples_of(rows)
    flops = sum(float(row["flops"]) for row in rows)
    deep, count = deep_of(rows[0]), len(chains.right)
    several = chains if deep and deep.single else None
    return Played(float(chains.right.mean()), float(chains.tokens.mean()), flops / count, several)


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The checked lines of a file; raises RecordingError, which names the line, and OSError."""
    number = 1
    try:
        with open_text(path) as text:
            for line in text:
                if line.strip():
                    yield _checked(json.loads(line))
                number += 1
    except KeyError as error:
        raise RecordingError(f"{path}, line {number}: it has no {error}") from None
    except gzip.BadGzipFile as error:
        raise RecordingError(f"{path}: {error}") from None
    except (
        ValueError, TypeError, AttributeError, OverflowError, RecursionError, EOFError, zlib.error
    ) as error:  # fmt: skip
        raise RecordingError(f"{path}, line {number}: not a recorded query ({error})") from None


def _checked(row: Any) -> dict[str, Any]:
    """The row; raises what a wrong one does."""
    if not isinstance(row, dict):
        raise TypeError("a line is an object")
    for name in ("query_id", "model"):
        if not isinstance(row[name], str) or not row[name].strip():
            raise ValueError(f"{name} is no text, or empty")
    for name in ("prompt", "group"):
        if not isinstance(row.get(name), str | int | None):
            raise TypeError(f"{name} is no text")
    for name in ("temperature", "seconds_per_token", "flops", "money"):
        value = row.get(name)
        if value is not None and not 0 <= float(value) < math.inf:
            raise ValueError(f"{name} is no amount")
    deep = deep_of(row)
    if deep and ((len(row["samples"]) != 1 and not deep.single) or row["flops"] is None):
        raise ValueError("what a strategy made is its best chain, or several single ones, with the flops")
    samples_of([row])
    if row.get("greedy"):
        samples_of([{**row, "samples": [row["greedy"]]}])
    return row


def samples_of(rows: Sequence[Mapping[str, Any]]) -> Samples:
    """The samples of one query from one model; raises KeyError, TypeError, ValueError and OverflowError."""
    samples = [sample for row in rows for sample in row["samples"]]
    tokens = np.array([_tokens(sample) for sample in samples], float)
    if not np.isfinite(tokens).all() or (tokens < 0).any():
        raise ValueError("tokens are no counts")
    verifiers = (
        set.intersection(*(set(sample.get("scores") or ()) for sample in samples)) if samples else set()
    )
    scores = {name: np.array([_score(sample["scores"][name]) for sample in samples]) for name in verifiers}
    return Samples(
        [None if sample["answer"] in (None, "") else str(sample["answer"]) for sample in samples],
        np.array([sample["correct"] is True for sample in samples], dtype=bool),
        tokens,
        max(int(row.get("prompt_tokens") or 0) for row in rows),
        scores,
    )


def _score(value: Any) -> float:
    """It; NaN where there is none."""
    if value is None:
        return math.nan
    if not 0 <= float(value) <= 1:
        raise ValueError("a score is not from 0 to 1")
    return float(value)


def _tokens(sample: Mapping[str, Any]) -> float:
    """Its tokens; about four characters each where they were not counted."""
    tokens = sample.get("tokens")
    if tokens is None and sample.get("chars") is None:
        raise ValueError("a sample has neither tokens nor chars")
    return float(sample["chars"]) / 4 if tokens is None else float(tokens)


def counts(queries: Sequence[Measured], models: Sequence[str]) -> tuple[Array, Array, Array]:
    """Right samples, samples, and mean tokens of a sample, by query and model: shape (Q, M) each."""
    cells = [[query.samples[name] for name in models] for query in queries]
    right = np.array([[one.right.sum() for one in row] for row in cells], float)
    samples = np.array([[len(one.right) for one in row] for row in cells], float)
    return right, samples, np.array([[one.tokens.mean() for one in row] for row in cells])
