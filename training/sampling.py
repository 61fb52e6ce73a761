"""Samples of the models, from the generation service's own core: what is measured is what is served."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from isoflop.v1.common_pb2 import Message, Sample, Sampling
from isoflop.v1.generation_pb2 import Branch, GenerateRequest, RoundUsage, StartRound
from prometheus_client import CollectorRegistry

from router.stages import Generation as GenerationStage
from services.common.settings import MODELS
from services.generation.backends import Backend
from services.generation.backends.llamacpp import LlamaCppBackend
from services.generation.catalog import LlamaCppEntry
from services.generation.core import Generation
from services.generation.engines import open_backends
from services.generation.settings import GenerationSettings


@asynccontextmanager
async def open_generation(
    catalog: Path = MODELS / "catalog.yaml", *, whole: bool = False
) -> AsyncIterator[Generation]:
    """The models of a catalogue, `whole` where no sample is to be aborted; raises CatalogError."""
    async with _serving(open_backends(catalog, whole=whole)) as generation:
        yield generation


@asynccontextmanager
async def open_file(path: Path, parallel: int = 16) -> AsyncIterator[Generation]:
    """One GGUF file; the model has the name of the file."""
    entry = LlamaCppEntry(name=path.stem, backend="llamacpp", path=Path(path.name), parallel=parallel)
    async with _serving([LlamaCppBackend(entry, path.parent, "USD")]) as generation:
        yield generation


@asynccontextmanager
async def _serving(backends: Sequence[Backend]) -> AsyncIterator[Generation]:
    generation = Generation(GenerationSettings(), list(backends), CollectorRegistry())
    try:
        yield generation
    finally:
        await generation.close()


@dataclass(frozen=True)
class Round:
    """Samples of one prompt, in the order of their seeds, and what they took."""

    samples: list[Sample]
    usage: RoundUsage
    seconds: float


async def sample_round(
    generation: GenerationStage,
    model: str,
    prompt: str | Sequence[Message],
    *,
    samples: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
    first_sample: int = 0,
    query_id: str = "training",
    max_tokens: int = 0,
) -> Round:
    """`samples` samples of a prompt, or of a conversation, at a temperature; sample i has seed `seed` + i.

    Each has at most `max_tokens`; 0: what the model's context leaves.
    """
    messages = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt

    async def requests() -> AsyncIterator[GenerateRequest]:
        yield GenerateRequest(
            start=StartRound(
                query_id=query_id,
                model=model,
                messages=messages,
                branches=[Branch(samples=samples)],
                first_sample=first_sample,
                sampling=Sampling(temperature=temperature, seed=seed, max_tokens=max_tokens),
            )
        )

    begin, finished, usage = time.perf_counter(), [], RoundUsage()
    async with aclosing(generation.generate(requests())) as responses:
        async for response in responses:
            if response.HasField("sample"):
                finished.append(response.sample)
            elif response.HasField("usage"):
                usage = response.usage
    finished.sort(key=lambda sample: int(sample.id.rpartition("/")[2]))
    return Round(finished, usage, time.perf_counter() - begin)
