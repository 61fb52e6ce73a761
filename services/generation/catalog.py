"""The catalogue: which models there are, what serves them, what their tokens cost. A YAML file.

currency: USD
models:
  - name: abacus-s
    backend: llamacpp
    path: abacus-s.gguf            # beside the catalogue; shape and template are read from it
    price: {per_million_prompt_tokens: 0.002, per_million_completion_tokens: 0.01}
  - name: qwen
    backend: triton
    address: triton:8001
    model: qwen_7b                 # its name on that server
    shape: {active_parameters: 7.6e9, layers: 28, heads: 28, head_size: 128}
    context: 32768
    chat_template: "..."           # Jinja; Triton applies none
    price: {per_gpu_second: 0.0011, tokens_per_second: 2600}
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from isoflop.v1 import common_pb2 as pb
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class CatalogError(Exception):
    """The catalogue, or a file that it names, is not usable; `str(error)` says where and why."""


LARGEST = 2**31 - 1
"""Largest number of the contract's counts."""


class Entry(BaseModel):
    """Base of what a catalogue holds: unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class ShapeEntry(Entry):
    """The numbers of a transformer that its FLOPs depend on."""

    active_parameters: float = Field(ge=1, le=1e18)
    """Parameters that take part in computing one token."""
    layers: int = Field(default=0, ge=0, le=LARGEST)
    """Layers with attention; 0 leaves attention out of the FLOPs."""
    heads: int = Field(default=0, ge=0, le=LARGEST)
    """Query heads of a layer."""
    head_size: int = Field(default=0, ge=0, le=LARGEST)
    """Size of a head."""
    window: int = Field(default=0, ge=0, le=LARGEST)
    """Sliding window of attention in tokens; 0: none."""

    def message(self) -> pb.Shape:
        """As the contract has it."""
        return pb.Shape(**{**self.model_dump(), "active_parameters": int(self.active_parameters)})


class PriceEntry(Entry):
    """What tokens cost: by the million, or by the GPU-second at a measured throughput."""

    per_million_prompt_tokens: float = Field(default=0.0, ge=0)
    """Money for a million computed prompt tokens."""
    per_million_cached_tokens: float = Field(default=0.0, ge=0)
    """Money for a million prompt tokens found in a cache."""
    per_million_completion_tokens: float = Field(default=0.0, ge=0)
    """Money for a million generated tokens."""
    per_gpu_second: float = Field(default=0.0, ge=0)
    """Money for a second of all the GPUs of the pool."""
    tokens_per_second: float = Field(default=0.0, ge=0)
    """Tokens that the pool generates in a second when it is busy; with per_gpu_second."""

    @model_validator(mode="after")
    def _throughput_is_given(self) -> PriceEntry:
        if (self.per_gpu_second > 0) != (self.tokens_per_second > 0):
            raise ValueError("per_gpu_second and tokens_per_second go together")
        return self

    def message(self, currency: str) -> pb.Price:
        """As the contract has it."""
        by_second = 1e6 * self.per_gpu_second / self.tokens_per_second if self.tokens_per_second else 0.0
        return pb.Price(
            currency=currency,
            per_million_prompt_tokens=self.per_million_prompt_tokens,
            per_million_cached_tokens=self.per_million_cached_tokens,
            per_million_completion_tokens=self.per_million_completion_tokens + by_second,
        )


class ModelEntry(Entry):
    """What every model has."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """The name by which callers ask for it."""
    price: PriceEntry = PriceEntry()
    """What its tokens cost."""
    chat_template: str = ""
    """Jinja template of the prompt; empty: the model file's own, or the bare text."""


class LlamaCppEntry(ModelEntry):
    """A GGUF file, run in this process by llama.cpp."""

    backend: Literal["llamacpp"]
    path: Path
    """The GGUF file; relative to the catalogue."""
    parallel: int = Field(default=16, ge=1, le=256)
    """Samples that run at a time; more wait."""
    threads: int = Field(default=1, ge=1)
    """Threads; tiny models are fastest with one."""
    context: int = Field(default=0, ge=0, le=LARGEST)
    """Tokens of prompt and sample together, for each of the parallel samples; 0: what the file says. Memory
    for all of them is taken at the start: for a model with a long context, choose."""
    shape: ShapeEntry | None = None
    """What FLOPs depend on; none: read from the file."""


class TritonEntry(ModelEntry):
    """A model on a Triton server, behind the tensors of the vLLM backend."""

    backend: Literal["triton"]
    address: str
    """host:port of Triton's gRPC."""
    model: str = ""
    """The model's name on that server; empty: the same name."""
    shape: ShapeEntry
    """What FLOPs depend on."""
    context: int = Field(default=0, ge=0, le=LARGEST)
    """Tokens of prompt and sample together."""


class RecordedEntry(ModelEntry):
    """Samples of a real model, played back from a recording."""

    backend: Literal["recorded"]
    path: Path
    """The recording: JSON lines, gzip where the name ends in .gz; relative to the catalogue."""
    model: str = ""
    """The model's name in the recording; empty: the same name."""
    shape: ShapeEntry
    """What FLOPs depend on."""


class Catalog(Entry):
    """All models."""

    currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$")
    """ISO 4217 code of all prices."""
    models: list[Annotated[LlamaCppEntry | TritonEntry | RecordedEntry, Field(discriminator="backend")]]
    """The models."""

    @model_validator(mode="after")
    def _names_differ(self) -> Catalog:
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise ValueError("two models have the same name")
        if not names:
            raise ValueError("there are no models")
        return self


def load(path: Path) -> Catalog:
    """Read a catalogue; raises CatalogError."""
    try:
        return Catalog.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise CatalogError(f"catalogue {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CatalogError(f"catalogue {path}: not YAML ({str(error).splitlines()[0]})") from None
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"]) or "as a whole"
        raise CatalogError(f"catalogue {path}: {where}: {fault['msg']}") from None
