"""Start the router: `python -m router`, beside the four services."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from router.aside import Aside
from router.remote import connected
from router.servicer import face
from router.settings import DistributedSettings
from router.start import started
from services.common.server import Face, main


@asynccontextmanager
async def router(settings: DistributedSettings, registry: CollectorRegistry) -> AsyncIterator[list[Face]]:
    """The faces of the router."""
    services = connected(
        settings.generation, settings.verification, settings.difficulty, settings.aggregation
    )
    # Queries need the services until they have ended.
    aside = Aside(registry)
    try:
        async with started(settings, services, registry, aside) as core:
            yield [face(core)]
    finally:
        await aside.close()


if __name__ == "__main__":
    sys.exit(main(DistributedSettings, router))
