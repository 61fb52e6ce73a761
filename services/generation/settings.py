"""What the generation service can be told."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.settings import MODELS, ServiceSettings


class GenerationSettings(ServiceSettings):
    """Settings of `python -m services.generation`."""

    model_config = SettingsConfigDict(env_prefix="ISOFLOP_GENERATION_")

    address: str = "127.0.0.1:50052"
    """Address to listen on for gRPC, as host:port; port 0 takes a free one."""
    catalog: Path = MODELS / "catalog.yaml"
    """The catalogue of models."""
    max_samples: int = Field(default=1024, ge=1)
    """Most samples in one round."""
    max_prompt_bytes: int = Field(default=256 << 10, ge=1)
    """Longest conversation, in bytes of UTF-8."""
    abort_seconds: float = Field(default=10.0, gt=0)
    """How long a round whose caller has gone may take to end before its samples are given up."""
