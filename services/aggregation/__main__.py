"""Start the aggregation service: `python -m services.aggregation`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from services.aggregation.core import Aggregation
from services.aggregation.servicer import face
from services.aggregation.settings import AggregationSettings
from services.common.server import Face, main


@asynccontextmanager
async def aggregation(
    settings: AggregationSettings, registry: CollectorRegistry
) -> AsyncIterator[list[Face]]:
    """The faces of the service."""
    core = Aggregation(settings, registry)
    try:
        yield [face(core)]
    finally:
        await core.close()


if __name__ == "__main__":
    sys.exit(main(AggregationSettings, aggregation))
