"""The store keeps whole blocks, and drops what was cut short."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from training.rows import mend
from training.store import Lane, Writer, append, read, repair

LANE = Lane("abacus-s", "0123456789abcdef", 0.7)


@pytest.mark.parametrize("lost", [1, 7, 30])
def test_what_was_cut_short_is_dropped_and_the_file_goes_on(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "a.jsonl.gz"
    append(path, [{"a": 1}, {"a": 2}])
    whole = path.stat().st_size
    append(path, [{"a": 3, "more": "text of some length"}])
    path.write_bytes(path.read_bytes()[:-lost])

    assert [row["a"] for row in read(path)] == [1, 2]
    assert [row["a"] for row in repair(path)] == [1, 2]
    assert path.stat().st_size == whole
    append(path, [{"a": 4}])
    assert [row["a"] for row in read(path)] == [1, 2, 4]


def test_files_tell_models_apart_by_their_hash(tmp_path: Path) -> None:
    other = replace(LANE, sha256="fedcba9876543210")
    assert LANE.path(tmp_path) != other.path(tmp_path)
    assert LANE.path(tmp_path) != replace(LANE, temperature=1.0).path(tmp_path)
    assert LANE.scores_path(tmp_path, "v", "0" * 64) != LANE.scores_path(tmp_path, "v", "1" * 64)


def test_a_writer_writes_all_in_few_members(tmp_path: Path) -> None:
    writer = Writer()
    for index in range(5):
        writer.add(tmp_path / "a", {"i": index}, 400_000)
        writer.add(tmp_path / "b", {"i": index}, 1)
    writer.flush()
    assert [row["i"] for row in read(tmp_path / "a")] == list(range(5))
    assert [row["i"] for row in read(tmp_path / "b")] == list(range(5))


def test_a_torn_line_of_a_plain_file_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    mend(path)
    path.write_text('{"a": 1}\n{"a"')
    mend(path)
    assert path.read_text() == '{"a": 1}\n'
