"""What the aggregation service can be told."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.settings import ServiceSettings


class AggregationSettings(ServiceSettings):
    """Settings of `python -m services.aggregation`."""

    model_config = SettingsConfigDict(env_prefix="ISOFLOP_AGGREGATION_")

    address: str = "127.0.0.1:50055"
    """Address to listen on for gRPC, as host:port; port 0 takes a free one."""
    max_candidates: int = Field(default=1024, ge=1)
    """Most candidates in one request."""
    max_clusters: int = Field(default=4096, ge=1)
    """Most clusters in one request."""
    max_text_chars: int = Field(default=1 << 20, ge=1)
    """Longest text of a candidate, in characters; a longer one is no vote."""
    max_answer_chars: int = Field(default=1 << 16, ge=1)
    """Longest answer, in characters; a longer one is no vote."""
    max_pattern_chars: int = Field(default=1000, ge=1)
    """Longest pattern of a caller, in characters."""
    max_compared_chars: int = Field(default=1000, ge=1)
    """Longest expression that is compared as mathematics, in characters; a longer one is compared as text."""
    max_weight: float = Field(default=1e9, gt=0)
    """Largest weight of a candidate."""
    task_seconds: float = Field(default=1.0, gt=0)
    """Seconds of processor time for one comparison of two expressions, or for one search of a pattern in a
    text; a request that takes longer once goes on in a process for such requests, beside the others."""
    request_seconds: float = Field(default=10.0, gt=0)
    """Seconds that all comparisons and searches of one request may take together; the rest are left out."""
    worker_memory_bytes: int = Field(default=2 << 30, ge=1 << 28)
    """Memory that each of the four processes (for comparisons and for patterns, two of each) may take."""
    remembered_comparisons: int = Field(default=10_000, ge=0)
    """Results of comparisons that are kept, so that the same two expressions are compared once; and as many
    patterns and expressions of which it is known that they take too long."""
