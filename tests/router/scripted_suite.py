"""A router over scripted stages, as the fixture `make_suite` makes it."""

from __future__ import annotations

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
        """The value of a metric of the router; 0 where it has none."""
        return self.registry.get_sample_value(f"isoflop_router_{name}", labels) or 0.0


MakeSuite = Callable[..., Suite]
