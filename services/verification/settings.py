"""What the verification service can be told."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.settings import MODELS, ServiceSettings


class VerificationSettings(ServiceSettings):
    """Settings of `python -m services.verification`."""

    model_config = SettingsConfigDict(env_prefix="ISOFLOP_VERIFICATION_")

    address: str = "127.0.0.1:50053"
    """Address to listen on for gRPC, as host:port; port 0 takes a free one."""
    verifiers: Path = MODELS / "verifiers.yaml"
    """The catalogue of verifiers."""
    max_chains: int = Field(default=1024, ge=1)
    """Most chains in one request."""
    max_chain_bytes: int = Field(default=1 << 20, ge=1)
    """Longest text of a chain, in bytes of UTF-8; a longer one gets an error of its own."""
    max_steps: int = Field(default=4096, ge=1)
    """Most steps of a chain, or lines of one that comes without; one with more gets an error of its own."""
    max_prompt_bytes: int = Field(default=256 << 10, ge=1)
    """Longest conversation that chains answer, in bytes of UTF-8."""
