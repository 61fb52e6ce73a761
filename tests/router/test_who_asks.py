"""Who asks, over the wire: tenants have their own queries, and strangers are refused."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest
from isoflop import AsyncClient, NotFound, PermissionDenied, Unauthenticated
from prometheus_client import CollectorRegistry
from scripted_stages import number, same
from scripted_suite import MakeSuite

from router.servicer import face
from router.tenants import Contents, Tenants
from services.common.server import serving
from services.common.settings import ServiceSettings

As = Callable[[str], AsyncClient]
"""A client of that tenant."""

TENANTS = Tenants.of(
    Contents.model_validate(
        {
            "tiers": [{"name": "gold"}],
            "tenants": [{"name": "search", "tier": "gold"}, {"name": "homework", "tier": "gold"}],
        }
    )
)


@pytest.fixture
async def client_of(make_suite: MakeSuite) -> AsyncIterator[As]:
    suite = make_suite(same(number(421)))
    suite.router.admit(TENANTS)
    async with AsyncExitStack() as stack:
        settings = ServiceSettings(address="127.0.0.1:0")
        address = await stack.enter_async_context(
            serving(settings, [face(suite.router)], CollectorRegistry())
        )
        made = {name: AsyncClient(address, name) for name in ("search", "homework", "stranger", "")}
        for client in made.values():
            stack.push_async_callback(client.close)
        yield made.__getitem__


async def test_a_tenants_queries_are_its_own(client_of: As) -> None:
    result = await client_of("search").solve("17*24+13", request_id="r")
    assert (await client_of("search").query(result.query_id)).tenant == "search"
    with pytest.raises(NotFound):
        await client_of("homework").query(result.query_id)
    assert (await client_of("search").solve("17*24+13", request_id="r")).query_id == result.query_id
    assert (await client_of("homework").solve("17*24+13", request_id="r")).query_id != result.query_id


@pytest.mark.parametrize(("name", "error"), [("", Unauthenticated), ("stranger", PermissionDenied)])
async def test_who_is_no_tenant_is_refused(client_of: As, name: str, error: type[Exception]) -> None:
    client = client_of(name)
    for call in (client.solve("1+1"), client.plan("1+1")):
        with pytest.raises(error):
            await call
    with pytest.raises(error):
        async for _ in client.stream("1+1"):
            pass
