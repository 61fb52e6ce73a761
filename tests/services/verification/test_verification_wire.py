"""Verification over a real server: what is wrong with one chain is its own, also there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from asking import MESSAGES, PROMPT
from isoflop.errors import IsoflopError, NotFound
from isoflop.rpc import CHANNEL_OPTIONS, from_rpc_error
from isoflop.v1.verification_pb2 import Chain, DescribeVerifiersRequest, ScoreRequest
from isoflop.v1.verification_pb2_grpc import VerificationServiceStub
from prometheus_client import CollectorRegistry
from tiny_verifier import NAN, expected, write_verifier

from services.common.server import CannotServe, serving
from services.verification.__main__ import verification
from services.verification.settings import VerificationSettings


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[VerificationServiceStub]:
    write_verifier(tmp_path / "tiny")
    catalog = tmp_path / "verifiers.yaml"
    catalog.write_text(
        "verifiers: [{name: tiny, backend: onnx, path: tiny}, {name: logprob, backend: logprob}]"
    )
    settings = VerificationSettings(address="127.0.0.1:0", drain_seconds=0, verifiers=catalog)
    registry = CollectorRegistry()
    async with (
        verification(settings, registry) as faces,
        serving(settings, faces, registry) as address,
        grpc.aio.insecure_channel(address, CHANNEL_OPTIONS) as channel,
    ):
        yield VerificationServiceStub(channel)


async def test_bad_chains_have_their_errors_and_the_rest_goes_on(stub: VerificationServiceStub) -> None:
    bad = {"": "no steps", "x\n" * 10_000: "4096 steps", "x" * (1 << 20): "characters", NAN: "nan"}
    texts = ["good", *bad, "fine"]
    chains = [Chain(id=str(number), text=text) for number, text in enumerate(texts)]
    response = await stub.Score(ScoreRequest(verifier="tiny", messages=MESSAGES, chains=chains))
    assert [one.id for one in response.scores] == [chain.id for chain in chains]
    for one, text in zip(response.scores, texts, strict=True):
        if text in bad:
            assert bad[text] in one.error
            assert not one.steps
        else:
            assert list(one.steps) == pytest.approx(expected(PROMPT, [text]), abs=1e-5)
    assert response.flops > 0


async def test_an_unknown_verifier_is_not_found(stub: VerificationServiceStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.Score(ScoreRequest(verifier="oracle", chains=[Chain(id="c", text="a")]))
    error: IsoflopError = from_rpc_error(raised.value, "verification")
    assert isinstance(error, NotFound)
    assert "there are: tiny, logprob" in str(error)


async def test_the_verifiers_are_described_in_the_catalogues_order(stub: VerificationServiceStub) -> None:
    verifiers = (await stub.DescribeVerifiers(DescribeVerifiersRequest())).verifiers
    assert [(one.name, one.backend) for one in verifiers] == [("tiny", "onnx"), ("logprob", "logprob")]


async def test_a_catalogue_that_cannot_be_used_is_said_at_the_start(tmp_path: Path) -> None:
    settings = VerificationSettings(verifiers=tmp_path / "none.yaml")
    with pytest.raises(CannotServe, match=r"none\.yaml: No such file"):
        async with verification(settings, CollectorRegistry()):
            pass
