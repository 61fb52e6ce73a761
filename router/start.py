"""Start a router on its services: its files are read and followed, and the ledger hears that it lives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from prometheus_client import CollectorRegistry

from router.core import Router
from router.following import following
from router.profile import ProfileError
from router.profiles import Files
from router.settings import RouterSettings
from router.stages import Aggregation, Stages
from router.tenants import File, TenantsError
from services.common.server import CannotServe


@asynccontextmanager
async def started(
    settings: RouterSettings,
    services: AbstractAsyncContextManager[Stages],
    registry: CollectorRegistry,
    aside: Aggregation | None = None,
) -> AsyncIterator[Router]:
    """A router, as long as the context lasts; raises CannotServe where a file is missing or wrong.

    `aside`: see Router.
    """
    profiles = Files(settings.profile)
    tenants = File(settings.tenants) if settings.tenants else None
    try:
        in_force, known = profiles.read(), tenants.read() if tenants else None
    except (ProfileError, TenantsError) as error:
        raise CannotServe(str(error)) from None
    async with AsyncExitStack() as stack:
        stages = await stack.enter_async_context(services)
        router = Router(settings, stages, in_force, registry, known, aside)
        await stack.enter_async_context(router.living())
        await stack.enter_async_context(following(profiles, settings.profile_poll_seconds, router.adopt))
        if tenants:
            await stack.enter_async_context(following(tenants, settings.tenants_poll_seconds, router.admit))
        yield router
