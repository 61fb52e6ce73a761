"""A router over scripted stages, as the fixture `make_suite` makes it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

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

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric of the router over all that have these labels; 0 where none has."""
        return math.fsum(
            sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == f"isoflop_router_{name}" and labels.items() <= sample.labels.items()
        )


MakeSuite = Callable[..., Suite]
