"""What the difficulty service can be told."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.settings import MODELS, ServiceSettings


class DifficultySettings(ServiceSettings):
    """Settings of `python -m services.difficulty`."""

    model_config = SettingsConfigDict(env_prefix="ISOFLOP_DIFFICULTY_")

    address: str = "127.0.0.1:50054"
    """Address to listen on for gRPC, as host:port; port 0 takes a free one."""
    estimator: Path = MODELS / "difficulty.json"
    """The fitted estimator."""
    max_queries: int = Field(default=1024, ge=1)
    """Most queries in one request."""
