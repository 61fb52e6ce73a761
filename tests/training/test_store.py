"""Stored samples: read back, torn lines cut off."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from training.rows import mend
from training.store import Sampled, read_store, store_of

ONE = Sampled(["answer: 3"], ["3"], [5], 7, 0.5)


def test_what_is_stored_is_read_back_and_a_torn_line_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    assert read_store(path) == {}
    mend(path)
    line = json.dumps({"query_id": "a", **asdict(ONE)}) + "\n"
    path.write_text(line + line[:20])
    assert read_store(path) == {"a": ONE}
    mend(path)
    assert path.read_text() == line


def test_another_model_file_has_another_store(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"1")
    first = store_of(model, 0.7, 8)
    model.write_bytes(b"2")
    assert store_of(model, 0.7, 8) != first
    assert first.name.startswith("m-")
