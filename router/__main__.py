"""Start the router: `python -m router`, beside the four services."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from router.core import Router
from router.following import following
from router.profile import ProfileError
from router.profiles import Files
from router.remote import connect
from router.servicer import face
from router.settings import DistributedSettings
from services.common.channels import Channels
from services.common.server import CannotServe, Face, main


@asynccontextmanager
async def router(settings: DistributedSettings, registry: CollectorRegistry) -> AsyncIterator[list[Face]]:
    """The faces of the router."""
    files = Files(settings.profile)
    try:
        profiles = files.read()
    except ProfileError as error:
        raise CannotServe(str(error)) from None
    channels = Channels()
    stages = connect(
        settings.generation, settings.verification, settings.difficulty, settings.aggregation, channels
    )
    try:
        core = Router(settings, stages, profiles, registry)
        async with core.living(), following(files, settings.profile_poll_seconds, core.adopt):
            yield [face(core)]
    finally:
        await channels.close()


if __name__ == "__main__":
    sys.exit(main(DistributedSettings, router))
