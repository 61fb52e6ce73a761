"""Draw `docs/demo.svg`, a real run of the demo as a terminal shows it: `python docs/picture.py`."""

from __future__ import annotations

import asyncio
import io
import re
from pathlib import Path

from rich.console import Console

from router.demo import WIDE, solve_all, summary
from services.common import log

if __name__ == "__main__":
    log.configure("warning", "text")
    screen = Console(width=WIDE, record=True, file=io.StringIO(), force_terminal=False)
    screen.print("\n", summary(asyncio.run(solve_all(screen))))
    drawn = screen.export_svg(title="make demo")
    # The reader's own monospace font: nothing is fetched to look at a picture.
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)
    Path(__file__).with_name("demo.svg").write_text(drawn)
