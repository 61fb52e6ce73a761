"""Recordings as arrays: which answers are the same, which are right, what each sample took.

Problems are joined by their text where it was recorded (white space apart), else by their id, whatever file
they are in. Right answers are one answer, as the recording's `correct` has it; wrong ones are the same where
they are written the same but for LaTeX habits. So baselines never split a right vote, which the suite's own
aggregation may. A sample without an answer is blank: no vote, and its tokens count.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from isoflop.v1.common_pb2 import ANSWER_TYPE_CHOICE, ANSWER_TYPE_EXPRESSION, AnswerType

from services.aggregation.answers import expression_key
from services.common.texts import open_text
from services.generation.backends.recorded import CHARS_A_TOKEN, order
from training.resampling import NO_ANSWER, Bools, Floats, Ints

RIGHT: Final = 0
"""The number of the right answer."""
_LETTER: Final = re.compile(r"[A-Z]")


class RecordingError(Exception):
    """Recordings that cannot be compared; `str(error)` says why and what to do."""


@dataclass(frozen=True)
class Size:
    """What FLOPs depend on, as published with the model."""

    active: float
    """Parameters that take part in computing a token, in billions."""
    layers: int
    """Layers with full attention; sliding windows are left out."""
    heads: int
    head_size: int
    dense: bool = True
    """Every parameter takes part in every token."""

    @property
    def flops_a_token(self) -> float:
        """Without attention."""
        return 2e9 * self.active

    def attention(self, tokens: Floats) -> Floats:
        """FLOPs of attention of samples of so many tokens, their prompts left out: they are not recorded."""
        return 4.0 * self.layers * self.heads * self.head_size * tokens * (tokens + 1) / 2


SIZES: Final = {
    "gpt-oss-20b": Size(3.6, 12, 64, 64, dense=False),
    "Qwen3-30B-A3B-Thinking-2507": Size(3.3, 48, 32, 128, dense=False),
    "Qwen3-4B": Size(4.0, 36, 32, 128),
    "NVIDIA-Nemotron-Nano-9B-v2": Size(8.9, 4, 40, 128),
    "Phi-4-reasoning": Size(14.7, 40, 40, 128),
    "Qwen3-14B": Size(14.8, 40, 40, 128),
    "Datarus-R1-14B-preview": Size(14.8, 48, 40, 128),
    "EXAONE-Deep-32B": Size(32.0, 64, 40, 128),
    "MetaStone-S1-32B": Size(32.8, 64, 40, 128),
    "AM-Thinking-v1": Size(32.8, 64, 40, 128),
    "LIMO-v2": Size(32.8, 64, 40, 128),
}
"""Every other layer of gpt-oss has a window of 128 tokens; 4 of 56 layers of Nemotron have attention."""


@dataclass(frozen=True, eq=False)
class Track:
    """One model's samples of Q problems, S of each."""

    size: Size
    texts: list[list[str | None]]
    """Answers as recorded; None: blank."""
    answers: Ints
    """Shape (Q, S): RIGHT, NO_ANSWER, or a number for each wrong answer of the problem, the same for all."""
    right: Bools
    """Shape (Q, S): as recorded."""
    tokens: Floats
    """Shape (Q, S)."""

    @property
    def flops(self) -> Floats:
        """Shape (Q, S): 2 x active parameters x tokens."""
        return self.tokens * self.size.flops_a_token


@dataclass(frozen=True, eq=False)
class Recording:
    """Q problems under several models."""

    dataset: str
    problems: list[str]
    """What each is asked by: its text, or its id where that was not recorded."""
    query_ids: list[str]
    kind: AnswerType.ValueType
    names: list[list[str]]
    """Of each problem, its answers by their number; RIGHT is as the first right sample has it."""
    tracks: dict[str, Track]
    """By model, that with the cheapest sample first."""

    @property
    def models(self) -> list[str]:
        """Names."""
        return list(self.tracks)

    def of(self, models: Sequence[str]) -> Recording:
        """Some of the models alone."""
        tracks = {name: track for name, track in self.tracks.items() if name in models}
        return Recording(self.dataset, self.problems, self.query_ids, self.kind, self.names, tracks)

    def orders(self, model: str, played: int, more: int, most: int) -> Ints:
        """The first `most` samples of each problem under many permutations, (Q, played + more, most).

        The first `played` are those in which the suite is played them with seeds 0, 1, ...
        """
        count = self.tracks[model].answers.shape[1]
        rng = np.random.default_rng(3)
        own = [
            [order(seed, model, problem, count)[:most] for seed in range(played)] for problem in self.problems
        ]
        others = rng.permuted(np.tile(np.arange(count), (len(own), more, 1)), axis=2)[:, :, :most]
        return np.concatenate([np.array(own, int).reshape(len(own), played, others.shape[2]), others], axis=1)

    def files(self) -> dict[str, str]:
        """By name, a catalogue and what it plays: these samples, without what is right."""
        rows = [
            {
                "query_id": problem,
                "model": name,
                "samples": [
                    {"answer": text, "tokens": int(tokens)}
                    for text, tokens in zip(track.texts[at], track.tokens[at], strict=True)
                ],
            }
            for at, problem in enumerate(self.problems)
            for name, track in self.tracks.items()
        ]
        models = [
            {
                "name": name,
                "backend": "recorded",
                "path": "recording.jsonl",
                "shape": {"active_parameters": 1e9 * track.size.active},
            }
            for name, track in self.tracks.items()
        ]
        return {
            "catalog.yaml": yaml.safe_dump({"models": models}),
            "recording.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        }


def read(paths: Iterable[Path], models: Sequence[str] = ()) -> list[Recording]:
    """A recording for each data set in the files; raises RecordingError.

    Of the models named, or all of them; of the problems that each of these has samples of. Samples of a
    search, which are not independent, are left out.
    """
    found: dict[str, dict[str, dict[str, list[dict[str, Any]]]]] = {}
    ids: dict[tuple[str, str], str] = {}
    for path in paths:
        for row in _rows(path):
            searched = row.get("strategy") not in (None, "independent") or row.get("deep") is not None
            if searched or (models and row["model"] not in models):
                continue
            problem = " ".join(row["prompt"].split()) if row.get("prompt") else row["query_id"]
            ids.setdefault((row["dataset"], problem), row["query_id"])
            by_model = found.setdefault(row["dataset"], {}).setdefault(problem, {})
            by_model.setdefault(row["model"], []).extend(
                {**one, "gold": row["gold"]} for one in row["samples"]
            )
    if not found:
        raise RecordingError(f"no samples of {', '.join(models) or 'any model'}: name other recordings")
    return [_recording(dataset, problems, ids, models) for dataset, problems in found.items()]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with open_text(path) as lines:
            yield from map(json.loads, lines)
    except (OSError, EOFError, ValueError) as error:
        raise RecordingError(f"recording {path}: {error}") from None


def _recording(
    dataset: str,
    problems: dict[str, dict[str, list[dict[str, Any]]]],
    ids: dict[tuple[str, str], str],
    models: Sequence[str],
) -> Recording:
    names = list(models) or sorted({model for rows in problems.values() for model in rows})
    if unknown := sorted(set(names) - set(SIZES)):
        raise RecordingError(
            f"{dataset}: how many parameters of {', '.join(unknown)} are active is not known; "
            f"leave it out by --models, or add it to SIZES of {__name__}"
        )
    if any(
        "correct" not in sample
        for rows in problems.values()
        for name in names
        for sample in rows.get(name, ())
    ):
        raise RecordingError(f"{dataset}: samples without `correct` cannot be scored: name other recordings")
    problems = {text: rows for text, rows in problems.items() if all(name in rows for name in names)}
    if not problems:
        raise RecordingError(
            f"{dataset}: no problem has samples of all of {', '.join(names)}: name fewer models"
        )
    golds = [next(iter(rows.values()))[0]["gold"] for rows in problems.values()]
    kind = ANSWER_TYPE_CHOICE if all(_LETTER.fullmatch(gold) for gold in golds) else ANSWER_TYPE_EXPRESSION
    numbers: list[dict[str, int]] = [{gold: RIGHT} for gold in golds]
    tracks = {name: _track(name, list(problems.values()), numbers) for name in names}
    ordered = sorted(tracks, key=lambda name: float(tracks[name].flops.mean()))
    return Recording(
        dataset,
        list(problems),
        [ids[dataset, text] for text in problems],
        kind,
        [list(told) for told in numbers],
        {name: tracks[name] for name in ordered},
    )


def _track(
    name: str, problems: Sequence[dict[str, list[dict[str, Any]]]], numbers: Sequence[dict[str, int]]
) -> Track:
    """A model's samples; wrong answers that are new get the next of the problem's numbers."""
    # Of queries with more samples than others, the first count.
    count = min(len(rows[name]) for rows in problems)
    shape = (len(problems), count)
    answers, right, tokens = np.full(shape, NO_ANSWER), np.zeros(shape, bool), np.zeros(shape)
    texts: list[list[str | None]] = []
    for at, rows in enumerate(problems):
        samples = rows[name][:count]
        texts.append([sample["answer"] or None for sample in samples])
        for number, sample in enumerate(samples):
            answer = sample["answer"]
            tokens[at, number] = sample.get("tokens") or -(-sample.get("chars", 0) // CHARS_A_TOKEN)
            right[at, number] = bool(sample["correct"])
            if right[at, number]:
                answers[at, number] = RIGHT
            elif answer:
                told = numbers[at]
                answers[at, number] = told.setdefault(f"not: {expression_key(answer)}", len(told))
    return Track(SIZES[name], texts, answers, right, tokens)
