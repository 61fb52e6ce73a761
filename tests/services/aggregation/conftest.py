"""One service for all tests: its processes take a second to start."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry

from services.aggregation.core import Aggregation
from services.aggregation.settings import AggregationSettings


@pytest.fixture(scope="session")
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture(scope="session")
async def aggregation(registry: CollectorRegistry) -> AsyncIterator[Aggregation]:
    settings = AggregationSettings(task_seconds=0.5, request_seconds=600.0)
    core = Aggregation(settings, registry)
    yield core
    await core.close()
