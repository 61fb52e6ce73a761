"""Labelled queries: what calibration asks, and what is right."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

from isoflop.v1.common_pb2 import (
    ANSWER_TYPE_CHOICE,
    ANSWER_TYPE_EXPRESSION,
    ANSWER_TYPE_NUMBER,
    ANSWER_TYPE_TEXT,
    AnswerType,
)

TYPES = {
    "number": ANSWER_TYPE_NUMBER,
    "expression": ANSWER_TYPE_EXPRESSION,
    "choice": ANSWER_TYPE_CHOICE,
    "text": ANSWER_TYPE_TEXT,
}


class QueriesError(Exception):
    """Labelled queries that cannot be used; `str(error)` says where and why."""


@dataclass(frozen=True)
class Labelled:
    """A query and its true answer."""

    query_id: str
    prompt: str
    answer: str
    type: AnswerType.ValueType
    group: str


def read_queries(path: Path) -> list[Labelled]:
    """The queries of a JSONL file: prompt, answer, and query_id, type, group where they are there.

    Raises QueriesError, which names the line, and OSError.
    """
    queries: dict[str, Labelled] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                query = _labelled(json.loads(line), number)
            except (ValueError, TypeError, RecursionError) as error:
                raise QueriesError(f"{path}, line {number}: not a labelled query: {error}") from None
            if query.query_id in queries:
                raise QueriesError(f"{path}, line {number}: query_id {query.query_id!r} is there twice")
            queries[query.query_id] = query
    if not queries:
        raise QueriesError(f"{path}: no queries")
    return list(queries.values())


def _labelled(row: Any, number: int) -> Labelled:
    """The query of a line; raises ValueError and TypeError."""
    if not isinstance(row, dict):
        raise TypeError("a line is an object")
    prompt, answer = row.get("prompt"), row.get("answer")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("prompt is no text, or empty")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
        raise ValueError("answer is no text or number, or empty")
    query_id, group = row.get("query_id"), row.get("group")
    for name, value in (("query_id", query_id), ("group", group)):
        if not isinstance(value, str | int | None):
            raise TypeError(f"{name} is no text")
    kind = row.get("type") or "text"
    if not isinstance(kind, str) or kind.lower() not in TYPES:
        raise ValueError(f"type {kind!r} is none of {', '.join(TYPES)}")
    return Labelled(
        f"line-{number}" if query_id in (None, "") else str(query_id),
        prompt,
        str(answer),
        TYPES[kind.lower()],
        "" if group is None else str(group),
    )


def in_turn(queries: Iterable[Labelled], most: int | None = None) -> list[Labelled]:
    """The first of each group, then the second of each, and so on; `most` of them."""
    groups: dict[str, list[Labelled]] = defaultdict(list)
    for query in queries:
        groups[query.group].append(query)
    turns = chain.from_iterable(zip_longest(*groups.values()))
    return list(islice((query for query in turns if query), most))
