"""A scripted router, served in this process."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator

import pytest
from scripted_router import ScriptedRouter, serving


@pytest.fixture
async def router() -> AsyncIterator[ScriptedRouter]:
    """The router; a test fails that leaves a part of its script unused."""
    scripted = ScriptedRouter()
    yield scripted
    assert not scripted.unused()


@pytest.fixture
async def address(router: ScriptedRouter) -> AsyncIterator[str]:
    """Where it is served."""
    async with serving(router) as served:
        yield served


@pytest.fixture
def nowhere() -> Iterator[str]:
    """An address at which nobody answers."""
    with socket.socket() as taken:  # Bound and not listening: refused, and nobody else gets the port.
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"
