"""Start the generation service: `python -m services.generation`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from services.common.catalog import CatalogError
from services.common.server import CannotServe, Face, main
from services.generation.core import Generation
from services.generation.engines import open_backends
from services.generation.servicer import face
from services.generation.settings import GenerationSettings


@asynccontextmanager
async def generation(settings: GenerationSettings, registry: CollectorRegistry) -> AsyncIterator[list[Face]]:
    """The faces of the service."""
    try:
        core = Generation(settings, open_backends(settings.catalog), registry)
    except CatalogError as error:
        raise CannotServe(str(error)) from None
    try:
        yield [face(core)]
    finally:
        await core.close()


if __name__ == "__main__":
    sys.exit(main(GenerationSettings, generation))
