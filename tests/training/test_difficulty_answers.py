"""Labelled answers: broken lines cost themselves only; problems are never in two folds."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.difficulty_answers import AnswersError, convert, folds, main, read
from training.store import Lane, append

ROW = {"query_id": "q1", "prompt": "What is 6*7?", "model": "m", "right": 3, "samples": 4, "tokens": 10.0}


def written(folder: Path, *rows: Any) -> Path:
    path = folder / "answers.jsonl"
    path.write_bytes(b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows))
    return path


def test_answers_are_a_table(tmp_path: Path) -> None:
    rows = [
        ROW,
        ROW | {"model": "a", "right": 0},
        {"query_id": "q2", "model": "m", "right": 1, "samples": 2},
        {"query_id": "q2", "model": "m", "prompt": "and 2*3?", "right": 2, "samples": 2},
        ROW | {"right": 1, "samples": 12, "tokens": 50},
        {"query_id": "q3", "model": "m", "right": 1, "samples": 2},
    ]
    found = read(written(tmp_path, *rows))
    answers = found.answers
    assert (answers.query_ids, answers.models) == (["q1", "q2"], ["a", "m"])
    assert answers.prompts == ["What is 6*7?", "and 2*3?"]
    assert answers.right.tolist() == [[0, 4], [0, 3]]
    assert answers.samples.tolist() == [[4, 16], [0, 4]]
    assert answers.tokens[0].tolist() == [10, 40]
    assert np.isnan(answers.tokens[1]).all()
    assert (found.faults, found.without_prompt) == ([], 1)
    assert answers.of(np.array([1])).prompts == ["and 2*3?"]


BROKEN = {
    "not JSON": b"{",
    "not JSON ": b"\xff\xfe",
    "not JSON  ": b"[" * 100_000,
    "not an object": b"[]",
    "query_id is not a text": ROW | {"query_id": 5},
    "query_id is not a text ": ROW | {"query_id": ""},
    "model is not a text": ROW | {"model": None},
    "prompt is not a text": ROW | {"prompt": 5},
    "right is not a count": ROW | {"right": -1},
    "right is not a count ": ROW | {"right": True},
    "samples is not a count": ROW | {"samples": 2.5},
    "samples is not a count ": {name: value for name, value in ROW.items() if name != "samples"},
    "samples are none, or fewer": ROW | {"samples": 0, "right": 0},
    "samples are none, or fewer ": ROW | {"samples": 2},
    "tokens is not a number": ROW | {"tokens": "many"},
    "tokens is not a number ": ROW | {"tokens": -1},
    "tokens is not a number  ": ROW | {"tokens": math.nan},
}


@pytest.mark.parametrize(("said", "row"), BROKEN.items(), ids=range(len(BROKEN)))
def test_a_broken_line_is_named_and_the_rest_goes_on(said: str, row: Any, tmp_path: Path) -> None:
    found = read(written(tmp_path, ROW, b"", row, ROW | {"query_id": "q2"}))
    assert len(found.faults) == 1
    assert found.faults[0].startswith(f"line 3: {said.strip()}")
    assert found.answers.query_ids == ["q1", "q2"]


def test_a_file_of_no_use_is_an_error_with_the_first_reason(tmp_path: Path) -> None:
    with pytest.raises(AnswersError, match="no query with a prompt and an answer; line 1: not JSON"):
        read(written(tmp_path, b"{", ROW | {"prompt": None}))
    with pytest.raises(AnswersError, match="no query"):
        read(written(tmp_path))
    with pytest.raises(OSError, match="missing"):
        read(tmp_path / "missing.jsonl")


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_any_bytes_are_read_or_named(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    path = written(tmp_path_factory.mktemp("any"), ROW, *(line.replace(b"\n", b"") for line in lines))
    assert read(path).answers.query_ids == ["q1"]


@given(
    prompts=st.lists(st.sampled_from(["a b", "A  b ", "c", "d", "e\n", "e", "f", "g"]), max_size=30),
    count=st.integers(2, 5),
)
def test_no_problem_is_in_two_folds(prompts: list[str], count: int) -> None:
    drawn = folds(prompts, count)
    assert drawn.shape == (len(prompts),)
    of: dict[str, set[int]] = {}
    for prompt, fold in zip(prompts, drawn.tolist(), strict=True):
        of.setdefault(" ".join(prompt.lower().split()), set()).add(fold)
        assert 0 <= fold < count
    assert all(len(found) == 1 for found in of.values())


RECORD = {
    "dataset": "math",
    "query_id": "math/0",
    "model": "m",
    "gold": "4",
    "prompt": "2+2?",
    "level": 3,
    "samples": [
        {"answer": "4", "correct": True, "tokens": 10},
        {"answer": None, "correct": False, "tokens": 30},
    ],
}


def test_recordings_are_converted(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl.gz"
    with gzip.open(path, "wt") as out:
        out.write(json.dumps(RECORD) + "\n")
        # What a strategy made is none of the model's samples.
        out.write(json.dumps(RECORD | {"deep": {"strategy": "beam"}}) + "\n")
    expected = {"query_id": "math/0", "model": "m", "prompt": "2+2?", "group": 3}
    assert list(convert([path])) == [expected | {"right": 1, "samples": 2, "tokens": 20.0}]


def test_stored_samples_are_converted_with_their_problems(tmp_path: Path) -> None:
    problem = {"query_id": "p1", "prompt": "2+2?", "answer": "4", "type": "number", "group": 1}
    (tmp_path / "problems.jsonl").write_text(json.dumps(problem) + "\n")
    path = Lane("abacus-s", "0123456789abcdef", 0.7).path(tmp_path)
    samples = [{"right": right, "tokens": tokens} for right, tokens in ((True, 1), (False, 2), (False, 6))]
    stored = {"query_id": "p1", "samples": samples}
    append(path, [stored])
    append(path, [stored | {"query_id": "other"}])
    (row,) = convert([path], tmp_path / "problems.jsonl")
    assert row == {
        **{name: problem[name] for name in ("query_id", "prompt", "type", "group")},
        "model": "abacus-s",
        "right": 1,
        "samples": 3,
        "tokens": 3.0,
    }


def test_the_converter_says_which_line_is_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad, out = tmp_path / "good.jsonl", tmp_path / "bad.jsonl", tmp_path / "out.jsonl"
    good.write_text(json.dumps(RECORD) + "\n")
    bad.write_text(json.dumps(RECORD) + '\n{"query_id": "q"}\n')
    monkeypatch.setattr("sys.argv", ["", str(out), str(good)])
    assert main() == 0
    assert read(out).answers.right.tolist() == [[1]]
    monkeypatch.setattr("sys.argv", ["", str(out), str(bad)])
    assert main() == 1
    assert f"{bad}, line 2: not a record" in capsys.readouterr().err
