"""Files of JSON lines that grow while long work is done, and may be stopped at any time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def mend(path: Path) -> None:
    """Cut a line off that a stopped run has left unfinished, so that what follows is not joined to it."""
    if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        path.write_bytes(content[: content.rfind(b"\n") + 1])


def read(path: Path) -> Iterator[Any]:
    """The whole rows of a file; none where there is no file."""
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)
