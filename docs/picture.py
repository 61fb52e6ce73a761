"""Draw `docs/demo.svg`: a real run of the demo, as a terminal shows it.

python docs/picture.py
"""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

from rich.console import Console

from router.demo import WIDE, solve_all, summary
from services.common import log

if __name__ == "__main__":
    log.configure("warning", "text")
    runs = asyncio.run(solve_all(screen := Console(width=WIDE, record=True, file=io.StringIO())))
    screen.print("\n", summary(runs))
    screen.save_svg(str(Path(__file__).with_name("demo.svg")), title="isoflop demo")
