"""What tests of calibration share. Where torch is not installed, which is everywhere but where models are
trained, its tests are not there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib.util import find_spec

import pytest
from prometheus_client import CollectorRegistry

from services.aggregation.core import Aggregation
from services.aggregation.settings import AggregationSettings

collect_ignore = [] if find_spec("torch") else ["test_torch.py", "test_prm_torch.py"]


@pytest.fixture(scope="module")
async def aggregation() -> AsyncIterator[Aggregation]:
    """The real core."""
    core = Aggregation(AggregationSettings(), CollectorRegistry())
    yield core
    await core.close()
