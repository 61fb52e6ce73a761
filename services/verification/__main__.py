"""Start the verification service: `python -m services.verification`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from services.common.server import Face, main
from services.verification.core import Verification
from services.verification.servicer import face
from services.verification.settings import VerificationSettings


@asynccontextmanager
async def verification(
    settings: VerificationSettings, registry: CollectorRegistry
) -> AsyncIterator[list[Face]]:
    """The faces of the service."""
    yield [face(Verification(settings, registry))]


if __name__ == "__main__":
    sys.exit(main(VerificationSettings, verification))
