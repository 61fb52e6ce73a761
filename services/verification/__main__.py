"""Start the verification service: `python -m services.verification`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from services.common.catalog import CatalogError
from services.common.server import CannotServe, Face, main
from services.verification.core import Verification
from services.verification.engines import open_backends
from services.verification.servicer import face
from services.verification.settings import VerificationSettings


@asynccontextmanager
async def verification(
    settings: VerificationSettings, registry: CollectorRegistry
) -> AsyncIterator[list[Face]]:
    """The faces of the service."""
    try:
        core = Verification(settings, open_backends(settings.verifiers), registry)
    except CatalogError as error:
        raise CannotServe(str(error)) from None
    try:
        yield [face(core)]
    finally:
        await core.close()


if __name__ == "__main__":
    sys.exit(main(VerificationSettings, verification))
