"""A scripted router, served in this process, and the command that asks it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator

import pytest
from isoflop import cli
from ran import Ended, Run
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


@pytest.fixture
def run(address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in a thread, against the scripted router."""
    monkeypatch.setenv("ISOFLOP_ADDRESS", address)

    async def started(*arguments: str) -> Ended:
        def in_thread() -> int:
            try:
                return cli.main(arguments)
            except SystemExit as usage:
                return int(usage.code or 0)

        code = await asyncio.to_thread(in_thread)
        return Ended(code, *capsys.readouterr())

    return started
