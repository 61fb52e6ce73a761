"""The store of samples: a model's samples at a temperature, and their scores, made once and kept.

    build/samples/abacus-s-1f2e3d4c5b6a-t0.7.jsonl.gz                           samples; t0: greedy
    build/samples/abacus-s-1f2e3d4c5b6a-t0.7-abacus-prm-0a1b2c3d4e5f.jsonl.gz   scores of their steps

The names carry the SHA-256 of the model's and the verifier's files, so that a new model never meets old
samples; the seeds come from the prompts, so that neither does a new prompt. A line holds a block of samples
of one problem, or the scores of some of its texts. Files grow by whole gzip members, written by one process
alone; what a crash cuts short is dropped before more is added.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from training.splits import Problem

FOLDER: Final = Path(__file__).resolve().parent.parent / "build" / "samples"
MEMBER_BYTES: Final = 1 << 20
"""Lines are collected up to so many bytes before they are written as one gzip member."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Lane:
    """A model at a temperature; 0 is greedy."""

    model: str
    sha256: str
    temperature: float

    def path(self, store: Path) -> Path:
        """The file of its samples."""
        return store / f"{self.model}-{self.sha256[:12]}-t{self.temperature:g}.jsonl.gz"

    def scores_path(self, store: Path, verifier: str, sha256: str) -> Path:
        """The file of its samples' scores by a verifier."""
        stem = self.path(store).name.removesuffix(".jsonl.gz")
        return store / f"{stem}-{verifier}-{sha256[:12]}.jsonl.gz"


def sha256_of(*paths: Path) -> str:
    """One hash of the content of these files."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def seed_of(problem: Problem) -> int:
    """Seed of a problem's first sample; it changes with the prompt."""
    return int.from_bytes(hashlib.sha256(problem.prompt.encode()).digest()[:4], "big") >> 1


def digest(text: str) -> str:
    """A text's name among the texts of its problem."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read(path: Path) -> list[Row]:
    """The lines of a file, without what was cut short; none where there is no file."""
    return _read(path)[0]


def repair(path: Path) -> list[Row]:
    """The lines of a file; what was cut short is removed, so that more can be added."""
    rows, whole = _read(path)
    if path.exists() and whole < path.stat().st_size:
        os.truncate(path, whole)
    return rows


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add lines as one gzip member."""
    text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    packer = zlib.compressobj(wbits=31)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        file.write(packer.compress(text.encode()) + packer.flush())


def _read(path: Path) -> tuple[list[Row], int]:
    """The lines of the whole members, and where the last of these ends."""
    data = path.read_bytes() if path.exists() else b""
    rows: list[Row] = []
    at = 0
    while at < len(data):
        unpacker = zlib.decompressobj(wbits=31)
        try:
            text = unpacker.decompress(data[at:])
        except zlib.error:
            break
        if not unpacker.eof:
            break
        rows += map(json.loads, text.decode().splitlines())
        at = len(data) - len(unpacker.unused_data)
    return rows, at


class Writer:
    """Collects lines for several files, and writes them a member at a time; closing writes the rest."""

    def __init__(self) -> None:
        self._rows: dict[Path, list[Row]] = {}
        self._bytes = 0

    def add(self, path: Path, row: Row, size: int) -> None:
        """Take a line of about so many bytes."""
        self._rows.setdefault(path, []).append(row)
        self._bytes += size
        if self._bytes > MEMBER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what has been collected."""
        for path, rows in self._rows.items():
            append(path, rows)
        self._rows, self._bytes = {}, 0
