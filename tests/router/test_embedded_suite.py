"""What the embedded suite is put together from: verifiers, critics in the same process, embeddings."""

from __future__ import annotations

from pathlib import Path

import pytest
from isoflop.errors import FailedPrecondition
from isoflop.v1.common_pb2 import STAGE_VERIFICATION, Model, Price
from isoflop.v1.router_pb2 import STATUS_ANSWERED, Filters, SolveRequest
from isoflop.v1.verification_pb2 import CHAIN_SCORING_MEAN, Verifier
from prometheus_client import CollectorRegistry

from router.catalog import Catalog
from router.embedded import open_router
from router.settings import SuiteSettings
from services.common.server import CannotServe

MODEL = "abacus-s"


async def test_a_critic_judges_by_a_model_of_the_same_process_and_is_billed(tmp_path: Path) -> None:
    catalog = tmp_path / "verifiers.yaml"
    catalog.write_text(
        f"verifiers: [{{name: critic, backend: critic, model: {MODEL}, prompt: '1+1', max_tokens: 60}},"
        "{name: logprob, backend: logprob}]"
    )
    registry = CollectorRegistry()
    settings = SuiteSettings(verifiers=catalog)
    async with open_router(settings, registry) as router:
        critic, _ = (await router.models()).verifiers
        assert (critic.name, critic.whole, critic.scoring) == ("critic", True, CHAIN_SCORING_MEAN)
        assert critic.shape.active_parameters > 0
        filters = Filters(models=[MODEL], strategies=["best_of_n"], samples=2, verifier="critic", seed=1)
        result = await router.solve(SolveRequest(prompt="17+4", filters=filters))
    (line,) = [line for line in result.bill.lines if line.stage == STAGE_VERIFICATION]
    assert (line.model, line.calls) == ("critic", 2)
    assert line.completion_tokens > 0
    assert line.flops > 0
    # It came to no verdict, so that votes decide; what it took is counted once as samples, once as scores.
    assert result.status == STATUS_ANSWERED
    sampled = registry.get_sample_value("isoflop_generation_flops_total", {"model": MODEL})
    billed = sum(one.flops for one in result.bill.lines if one.model in (MODEL, "critic"))
    assert sampled == pytest.approx(billed)


async def test_a_catalogue_of_verifiers_that_cannot_be_used_is_said_at_the_start(tmp_path: Path) -> None:
    settings = SuiteSettings(verifiers=tmp_path / "none.yaml")
    with pytest.raises(CannotServe, match=r"none\.yaml: No such file"):
        async with open_router(settings, CollectorRegistry()):
            pass


async def test_an_embedding_that_cannot_be_used_is_said_at_the_start(tmp_path: Path) -> None:
    settings = SuiteSettings(embedding=tmp_path / "none")
    with pytest.raises(CannotServe, match="No such file"):
        async with open_router(settings, CollectorRegistry()):
            pass


def test_verifiers_are_priced_in_the_currency_of_the_models() -> None:
    models = [Model(name="m", price=Price(currency="USD"))]
    for currency in ("", "USD"):
        assert Catalog.of(models, [Verifier(name="prm", price=Price(currency=currency))]).verifier("prm")
    with pytest.raises(FailedPrecondition, match="verifier prm is priced in EUR, models in USD"):
        Catalog.of(models, [Verifier(name="prm", price=Price(currency="EUR"))])
