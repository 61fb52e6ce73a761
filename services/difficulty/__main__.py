"""Start the difficulty service: `python -m services.difficulty`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from services.common.server import CannotServe, Face, main
from services.difficulty.core import open_difficulty
from services.difficulty.embedding import EmbeddingError
from services.difficulty.record import EstimatorError
from services.difficulty.servicer import face
from services.difficulty.settings import DifficultySettings


@asynccontextmanager
async def difficulty(settings: DifficultySettings, registry: CollectorRegistry) -> AsyncIterator[list[Face]]:
    """The faces of the service."""
    try:
        core = open_difficulty(settings, registry)
    except (EstimatorError, EmbeddingError) as error:
        raise CannotServe(str(error)) from None
    yield [face(core)]


if __name__ == "__main__":
    sys.exit(main(DifficultySettings, difficulty))
