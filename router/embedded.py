"""The suite in one process: the cores of all services behind the router, without a wire between them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from prometheus_client import CollectorRegistry

from router.core import Router
from router.servicer import face
from router.settings import SuiteSettings
from router.stages import Stages
from router.start import started
from services.aggregation.core import Aggregation
from services.aggregation.settings import AggregationSettings
from services.common.catalog import CatalogError
from services.common.server import CannotServe, Face
from services.difficulty.core import open_difficulty
from services.difficulty.embedding import EmbeddingError
from services.difficulty.record import EstimatorError
from services.difficulty.settings import DifficultySettings
from services.generation.core import Generation
from services.generation.engines import open_backends
from services.generation.settings import GenerationSettings
from services.verification import engines as verifiers
from services.verification.core import Verification
from services.verification.settings import VerificationSettings


@asynccontextmanager
async def open_stages(
    settings: SuiteSettings, registry: CollectorRegistry, *, whole: bool = False
) -> AsyncIterator[Stages]:
    """The four services; raises CannotServe where a file is missing or wrong.

    `whole`: samples of llama.cpp come when they are complete, which is faster where none is to be aborted.
    """
    async with AsyncExitStack() as stack:
        try:
            difficulty = open_difficulty(
                DifficultySettings(estimator=settings.estimator, embedding=settings.embedding), registry
            )
            backends = open_backends(settings.catalog, whole=whole)
        except (CatalogError, EmbeddingError, EstimatorError) as error:
            raise CannotServe(str(error)) from None
        generation = Generation(GenerationSettings(catalog=settings.catalog), backends, registry)
        stack.push_async_callback(generation.close)
        try:
            scorers = verifiers.open_backends(settings.verifiers, generation)
        except CatalogError as error:
            raise CannotServe(str(error)) from None
        verification = Verification(VerificationSettings(verifiers=settings.verifiers), scorers, registry)
        stack.push_async_callback(verification.close)
        aggregation = Aggregation(AggregationSettings(), registry)
        stack.push_async_callback(aggregation.close)
        yield Stages(generation, verification, difficulty, aggregation)


@asynccontextmanager
async def open_router(settings: SuiteSettings, registry: CollectorRegistry) -> AsyncIterator[Router]:
    """A router with everything that it needs; raises CannotServe where a file is missing or wrong."""
    async with started(settings, open_stages(settings, registry), registry) as router:
        await router.check("profile" in settings.model_fields_set)
        yield router


@asynccontextmanager
async def suite(settings: SuiteSettings, registry: CollectorRegistry) -> AsyncIterator[list[Face]]:
    """The face of the embedded suite, for `services.common.server`."""
    async with open_router(settings, registry) as router:
        yield [face(router)]
