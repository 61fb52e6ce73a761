"""A router over scripted stages, as the fixture `make_suite` makes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from isoflop.errors import NotFound
from prometheus_client import CollectorRegistry
from scripted_stages import ScriptedDifficulty, ScriptedGeneration

from router.core import Router


@dataclass
class Suite:
    """A router and what it works with."""

    router: Router
    generation: ScriptedGeneration
    difficulty: ScriptedDifficulty
    registry: CollectorRegistry

    async def written(self) -> None:
        """Return when the ledger has done what it was asked before."""
        with suppress(NotFound):
            await self.router.query("")

    async def settled(self) -> None:
        """Let everything happen that can, in the ledger too."""
        for _ in range(10):
            await self.written()
            for _ in range(10):
                await asyncio.sleep(0)

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric of the router; 0 where it has none."""
        return self.registry.get_sample_value(f"isoflop_router_{name}", labels) or 0.0


MakeSuite = Callable[..., Suite]
