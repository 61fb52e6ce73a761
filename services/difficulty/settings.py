"""What the difficulty service can be told."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.settings import MODELS, ServiceSettings
from services.difficulty.features import MOST_CHARACTERS


class DifficultySettings(ServiceSettings):
    """Settings of `python -m services.difficulty`."""

    model_config = SettingsConfigDict(env_prefix="ISOFLOP_DIFFICULTY_")

    address: str = "127.0.0.1:50054"
    """Address to listen on for gRPC, as host:port; port 0 takes a free one."""
    estimator: Path = MODELS / "difficulty.json"
    """The fitted estimator."""
    max_queries: int = Field(default=1024, ge=1)
    """Most queries in one request."""
    max_characters: int = Field(default=MOST_CHARACTERS, ge=1)
    """So many characters of a query are looked at; best as it was when the estimator was trained."""
    embedding: Path | None = None
    """Folder of the sentence embedding that the estimator was trained with (python -m training.embedding)."""
    embedding_max_tokens: int = Field(default=0, ge=0)
    """Most tokens of a query that are embedded; 0: as many as the embedding was trained with."""
    embedding_threads: int = Field(default=1, ge=1)
    """Threads that compute one batch of embeddings."""
