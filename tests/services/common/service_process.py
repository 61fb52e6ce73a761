"""Where services are started as processes, and what starts them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

ROOT = Path(__file__).resolve().parents[3]

Service: TypeAlias = Callable[..., "subprocess.Popen[str]"]
"""`service(module, *arguments, **environment)`: the process."""
