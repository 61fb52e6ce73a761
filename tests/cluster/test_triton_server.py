"""The CPU Triton speaks the tensors of Triton's vLLM backend, and stops when it is told to."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio as grpcclient

from tests.cluster.triton_server import ROOT, TritonServer, TritonServerError
from training.tokens import encode

pytestmark = pytest.mark.cluster

PROMPT = "17+24*3\nsteps:\n"
MODEL = "abacus_l"
SLOTS = 16
LATE = 250


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    files = [ROOT / "models" / f"abacus-{size}.gguf" for size in "sml"]
    try:
        with TritonServer(files, tmp_path_factory.mktemp("triton")) as server:
            yield server
    except TritonServerError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
async def client(triton: TritonServer) -> AsyncIterator[grpcclient.InferenceServerClient]:
    async with grpcclient.InferenceServerClient(triton.grpc_address) as client:
        yield client


@dataclass
class Sample:
    """What came back for one request."""

    texts: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    tokens: int = 0
    final: bool = False

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def add(self, result: grpcclient.InferResult) -> None:
        assert not self.final
        self.texts.append(result.as_numpy("text_output")[0].decode())
        self.reasons.append(result.as_numpy("finish_reason")[0].decode())
        self.logprobs.append(float(result.as_numpy("cumulative_logprob")[0]))
        self.prompt_tokens = int(result.as_numpy("num_input_tokens").item())
        self.tokens += int(result.as_numpy("num_output_tokens")[0])
        self.final = result.get_response().parameters["triton_final_response"].bool_param


def request(
    prompt: str = PROMPT, *, model: str = MODEL, id: str = "1", stream: bool = True, **sampling: Any
) -> dict[str, Any]:
    """The arguments of one request; `raw` stands for the whole of the sampling parameters."""
    parameters = sampling.pop("raw", None) or json.dumps(sampling)
    inputs = [
        tensor("text_input", prompt.encode()),
        tensor("sampling_parameters", parameters.encode()),
        tensor("stream", stream),
        tensor("exclude_input_in_output", True),
        tensor("return_finish_reason", True),
        tensor("return_cumulative_logprob", True),
        tensor("return_num_input_tokens", True),
        tensor("return_num_output_tokens", True),
    ]
    return {"model_name": model, "inputs": inputs, "request_id": id}


def tensor(name: str, value: bytes | bool) -> grpcclient.InferInput:
    made = grpcclient.InferInput(name, [1], "BYTES" if isinstance(value, bytes) else "BOOL")
    made.set_data_from_numpy(np.array([value], dtype=np.object_ if isinstance(value, bytes) else np.bool_))
    return made


async def send(requests: list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    for one in requests:
        yield one


async def collect(client: grpcclient.InferenceServerClient, *requests: dict[str, Any]) -> dict[str, Sample]:
    """All samples of the requests, which share one stream."""
    samples: dict[str, Sample] = defaultdict(Sample)
    async for result, error in client.stream_infer(send(list(requests))):
        assert error is None, error
        samples[result.get_response().id].add(result)
    return samples


async def error_of(client: grpcclient.InferenceServerClient, one: dict[str, Any]) -> str:
    """The error that comes in the stream instead of a response."""
    errors = [error async for _, error in client.stream_infer(send([one]))]
    assert len(errors) == 1
    return str(errors[0])


async def test_streams_a_completion(client: grpcclient.InferenceServerClient) -> None:
    sample = (await collect(client, request(temperature=0, max_tokens=64, ignore_eos=True, logprobs=0)))["1"]
    assert len(sample.texts) > 1
    assert sample.final
    assert set(sample.reasons[:-1]) == {"None"}
    assert sample.reasons[-1] == "length"
    assert sample.prompt_tokens == len(encode(PROMPT))
    assert sample.tokens == 64
    # The log-probability is the sum so far, so it only falls.
    assert sample.logprobs == sorted(sample.logprobs, reverse=True)
    assert sample.logprobs[-1] < 0


async def test_whole_completion_equals_the_streamed_one(client: grpcclient.InferenceServerClient) -> None:
    streamed = (await collect(client, request(temperature=0, max_tokens=64)))["1"]
    whole = (await collect(client, request(temperature=0, max_tokens=64, stream=False)))["1"]
    assert whole.texts == [streamed.text]
    assert whole.tokens == streamed.tokens


async def test_logprob_is_unknown_where_not_asked_for(client: grpcclient.InferenceServerClient) -> None:
    sample = (await collect(client, request(temperature=0, max_tokens=4)))["1"]
    assert all(math.isnan(logprob) for logprob in sample.logprobs)


async def test_stop_string_ends_the_text(client: grpcclient.InferenceServerClient) -> None:
    whole = (await collect(client, request(temperature=0, max_tokens=32)))["1"]
    stop = whole.text[3:6]
    assert len(stop) == 3
    before = whole.text[: whole.text.index(stop)]

    cut = (await collect(client, request(temperature=0, max_tokens=32, stop=stop)))["1"]
    assert cut.text == before
    assert cut.reasons[-1] == "stop"
    assert cut.tokens < whole.tokens
    kept = (
        await collect(
            client,
            request(temperature=0, max_tokens=32, stop=["nowhere", stop], include_stop_str_in_output=True),
        )
    )["1"]
    assert kept.text == before + stop


async def test_sixteen_seeds_on_one_stream(
    client: grpcclient.InferenceServerClient, triton: TritonServer
) -> None:
    before = triton.metrics(MODEL)
    samples = await collect(
        client,
        *(request(id=f"seed-{seed}", seed=seed, temperature=2.0, max_tokens=40) for seed in range(SLOTS)),
    )
    after = triton.metrics(MODEL)
    assert samples.keys() == {f"seed-{seed}" for seed in range(SLOTS)}
    assert all(sample.final for sample in samples.values())
    assert len({sample.text for sample in samples.values()}) > 1
    received = sum(sample.tokens for sample in samples.values())
    assert after["llamacpp_tokens_total"] - before["llamacpp_tokens_total"] == received
    # Together, not one after the other: a decode step serves all that are running.
    steps = after["llamacpp_decode_steps_total"] - before["llamacpp_decode_steps_total"]
    assert steps < received / 2


async def test_a_seed_alone_is_reproduced(client: grpcclient.InferenceServerClient) -> None:
    one = request(seed=7, temperature=1.0, max_tokens=40)
    assert (await collect(client, one))["1"].text == (await collect(client, one))["1"].text


async def test_closing_the_stream_stops_generation(
    client: grpcclient.InferenceServerClient, triton: TritonServer
) -> None:
    """Of twice as many requests as there are slots, half are running and half are waiting."""
    before = triton.metrics(MODEL)
    received = 0
    stream = client.stream_infer(
        send(
            [
                request(id=str(seed), seed=seed, max_tokens=10_000, ignore_eos=True, temperature=1.0)
                for seed in range(2 * SLOTS)
            ]
        )
    )
    running: set[str] = set()
    async for result, error in stream:
        assert error is None, error
        received += int(result.as_numpy("num_output_tokens")[0])
        running.add(result.get_response().id)
        if len(running) == SLOTS:
            break
    assert stream.cancel()

    change = await settled(triton, before)
    # Requests that were still on their way when the stream closed may never arrive.
    assert SLOTS <= change["llamacpp_requests_total"] <= 2 * SLOTS
    assert change["llamacpp_cancelled_requests_total"] == change["llamacpp_requests_total"]
    # Triton hears of it within some milliseconds, and llama.cpp at the next token: about 20 tokens a request
    # were late on an idle machine. On one that is busy with other things our word itself is slow, by
    # a few hundred milliseconds; a request that went on would make a thousand.
    late = change["llamacpp_cancelled_tokens_total"] - received
    assert 0 <= late <= LATE * SLOTS
    # llama.cpp's own count agrees that nothing else was generated: had a request gone on behind
    # our back, it would have decoded to the end of its context.
    assert change["llamacpp_decode_steps_total"] <= change["llamacpp_cancelled_tokens_total"] / SLOTS + LATE
    await asyncio.sleep(0.5)
    await collect(client, request(max_tokens=1))
    later = (await settled(triton, before))["llamacpp_decode_steps_total"]
    assert later - change["llamacpp_decode_steps_total"] <= 4


async def settled(triton: TritonServer, before: dict[str, float]) -> dict[str, float]:
    """By how much each counter has risen, once requests have ended and no more end."""
    deadline = time.monotonic() + 10
    last = before
    while True:
        await asyncio.sleep(0.25)
        now = triton.metrics(MODEL)
        ended = "llamacpp_requests_total"
        if before[ended] < now[ended] == last[ended]:
            return {name: value - before[name] for name, value in now.items()}
        assert time.monotonic() < deadline, "no requests have ended, or they go on ending"
        last = now


async def test_an_error_leaves_the_stream_open(client: grpcclient.InferenceServerClient) -> None:
    errors, final = [], set()
    requests = [request(id="good"), request(id="bad", n=2), request(id="later")]
    async for result, error in client.stream_infer(send(requests)):
        if error is not None:
            errors.append(str(error))
        elif result.get_response().parameters["triton_final_response"].bool_param:
            final.add(result.get_response().id)
    assert len(errors) == 1
    assert final == {"good", "later"}


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (request(raw="{not JSON"), "sampling_parameters is not JSON"),
        (request(raw="[]"), "must be a JSON object"),
        (request(max_tokens=0), "max_tokens must be at least 1"),
        (request(temperature="hot"), "temperature must be a number"),
        (request(n=2), "n must be 1"),
        (request(tempurature=1.0), "unsupported sampling parameter: tempurature"),
        (request(prompt=""), "text_input is empty"),
        (request(prompt="1+" * 10_000), "exceeds the available context size"),
        (request(model="abacus_xxl"), "'abacus_xxl' is not found"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_an_error_comes_in_the_stream(
    client: grpcclient.InferenceServerClient, one: dict[str, Any], message: str
) -> None:
    assert message in await error_of(client, one)


def test_a_corrupt_file_is_a_clear_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and nothing more")
    with pytest.raises(TritonServerError, match=r"llama\.cpp cannot load .*broken\.gguf"):
        TritonServer([broken], tmp_path).start()


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(TritonServerError, match=r"there is no model file .*missing\.gguf"):
        TritonServer([tmp_path / "missing.gguf"], tmp_path).start()
