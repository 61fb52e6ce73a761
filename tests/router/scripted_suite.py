"""A router over scripted stages, as the fixture `make_suite` makes it."""

from __future__ import annotations

import asyncio
import math
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
        """The sum of a metric of the router over all that have these labels; 0 where none has."""
        return math.fsum(
            sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == f"isoflop_router_{name}" and labels.items() <= sample.labels.items()
        )


MakeSuite = Callable[..., Suite]
