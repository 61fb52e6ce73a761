"""What the catalogues of models and verifiers share: shapes, prices, servers, and how a file is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

import yaml
from isoflop.v1 import common_pb2 as pb
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator


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


def _server_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("http://host or https://host, and a path where the server has one")
    if parts.username is not None or parts.password is not None:
        raise ValueError("holds a password: use key_env or key_file")
    if parts.query or parts.fragment:
        raise ValueError("is an address without a query or fragment")
    return url.rstrip("/")


class HttpEntry(Entry):
    """An HTTP server that others run."""

    base_url: Annotated[str, AfterValidator(_server_url)]
    """Where the server is; endpoints are below it."""
    key_env: str = ""
    """Environment variable with the server's API key, read at the start."""
    key_file: Path | None = None
    """File with the server's API key, read again when it changes; relative to the catalogue. With neither, no
    key is sent."""
    connect_seconds: float = Field(default=5.0, gt=0)
    """How long a connection may take to be made."""

    @model_validator(mode="after")
    def _one_key(self) -> HttpEntry:
        if self.key_env and self.key_file:
            raise ValueError("key_env or key_file, not both")
        return self


Form = TypeVar("Form", bound=Entry)


def read(path: Path, form: type[Form], what: str) -> Form:
    """The YAML file at `path` as `form`; raises CatalogError, which calls the file `what`."""
    try:
        return form.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise CatalogError(f"{what} {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CatalogError(f"{what} {path}: not YAML ({str(error).splitlines()[0]})") from None
    except RecursionError:
        raise CatalogError(f"{what} {path}: nested too deep") from None
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"]) or "as a whole"
        raise CatalogError(f"{what} {path}: {where}: {fault['msg']}") from None
