"""A router whose aggregation and verification are the real ones, in this process; the rest is scripted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from scripted_stages import Script, ScriptedDifficulty, ScriptedGeneration
from scripted_suite import MakeSuite, Suite
from synthetic import MIDDLE, make_model, make_profile

from router.core import Router
from router.settings import RouterSettings
from router.stages import Stages
from services.aggregation.core import Aggregation
from services.aggregation.settings import AggregationSettings
from services.verification.backends.logprob import LogprobBackend
from services.verification.catalog import LogprobEntry
from services.verification.core import Verification
from services.verification.settings import VerificationSettings


@pytest.fixture(scope="session")
async def aggregation() -> AsyncIterator[Aggregation]:
    core = Aggregation(AggregationSettings(), CollectorRegistry())
    yield core
    await core.close()


@pytest.fixture(scope="session")
def verification() -> Verification:
    backend = LogprobBackend(LogprobEntry(name="logprob"))
    return Verification(VerificationSettings(), [backend], CollectorRegistry())


@pytest.fixture
async def make_suite(aggregation: Aggregation, verification: Verification) -> AsyncIterator[MakeSuite]:
    """Makes routers over scripts; closes them, and sees that no round is left running."""
    made: list[Suite] = []

    def make(
        script: Script,
        difficulty: float = MIDDLE,
        *,
        profile: Any = None,
        models: Any = None,
        stages: dict[str, Any] | None = None,
        generation: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Suite:
        scripted = ScriptedGeneration(
            models or [make_model(name) for name in ("s", "m", "l")], script, **(generation or {})
        )
        estimates = ScriptedDifficulty(difficulty)
        registry = CollectorRegistry()
        all_stages = replace(Stages(scripted, verification, estimates, aggregation), **(stages or {}))
        router = Router(
            RouterSettings(**{"abort_seconds": 2.0, **settings}),
            all_stages,
            profile or make_profile(),
            registry,
        )
        suite = Suite(router, scripted, estimates, registry)
        made.append(suite)
        return suite

    yield make
    for suite in made:
        await suite.router.close()
        assert not suite.generation.running
