"""What the router can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from router.breakers import Terms
from services.common.settings import MODELS, ServiceSettings


class RouterSettings(ServiceSettings):
    """Settings of the router, wherever its services are."""

    profile: Path = MODELS / "profile.json"
    """The measured curves that plans are made on: a profile, or a folder of them (`isoflop profile`)."""
    profile_poll_seconds: float = Field(default=5.0, gt=0)
    """How often it is looked at whether the profiles have changed."""
    shadow_waiting: int = Field(default=256, ge=1)
    """Most answered queries that wait for a shadow profile's decision; more are skipped."""
    pin_model: str = ""
    """Plan nothing: queries that name no model, strategy or samples all get this model. Empty: plan."""
    pin_samples: int = Field(default=1, ge=1, le=4096)
    """Samples of `pin_model` for each query; a vote where there is more than one."""
    round_samples: int = Field(default=4, ge=1, le=256)
    """Most samples that are bought before deciding anew."""
    give_up_below: float = Field(default=0.5, ge=0, le=1)
    """A query that stops with less confidence than this is called abandoned."""
    max_prompt_bytes: int = Field(default=64 << 10, ge=1)
    """Longest conversation, in bytes of UTF-8."""
    max_messages: int = Field(default=256, ge=1)
    """Most messages in a conversation."""
    max_samples: int = Field(default=1024, ge=1, le=4096)
    """Most samples that a caller may ask for; of a search, width × expansion."""
    max_depth: int = Field(default=1024, ge=1, le=65536)
    """Most steps of a chain that a caller may have searched."""
    max_nodes: int = Field(default=1024, ge=1, le=65536)
    """Most steps of a tree that a caller may have searched."""
    deadline_margin_seconds: float = Field(default=0.2, ge=0)
    """So long before a call's deadline the best answer so far is returned."""
    abort_seconds: float = Field(default=10.0, gt=0)
    """How long an aborted round may take to tell its bill."""
    core_flops: float = Field(default=5e9, ge=0, allow_inf_nan=False)
    """FLOPs that a second of the router's own work counts as where it is compared with a fixed plan."""
    debt_seconds: float = Field(default=60.0, ge=0)
    """How long it is asked what a round has cost whose connection broke."""
    stage_seconds: float = Field(default=2.0, gt=0)
    """How long an estimate of difficulty or a count of votes may take; then that service is done without."""
    score_seconds: float = Field(default=300.0, gt=0)
    """How long the scores of one request may take; then samples have none."""
    breaker_failures: int = Field(default=3, ge=1)
    """Failures in a row after which a model, a verifier or a service is left alone for a while."""
    breaker_longest_seconds: float = Field(default=4.0, gt=0)
    """How long it is left alone, at most, before it is tried again."""
    retry_share: float = Field(default=0.2, ge=0, le=1)
    """Rounds that may be retries, as a share of all rounds of a model, beyond the first few."""
    budget_flops: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    """FLOPs that all queries of a calendar window may take together; none: there is no budget."""
    budget_window_seconds: float = Field(default=86400.0, ge=1, allow_inf_nan=False)
    """Length of that window; they follow each other from the epoch on, so that days are those of UTC."""
    tenants: Path | None = None
    """File of tenants, with their budgets and limits (examples/tenants.yaml); none: everybody may ask."""
    tenants_poll_seconds: float = Field(default=5.0, gt=0)
    """How often it is looked at whether that file has changed; it counts once it is alike in two looks."""
    # A query mostly waits for models, and holds a few megabytes at most: docs/results/bounds.md.
    max_running: int = Field(default=256, ge=1)
    """Queries that are solved at a time; others wait for their turn."""
    # What 256 places free in the longest wait, where a query takes a few seconds.
    max_waiting: int = Field(default=1024, ge=0)
    """Queries that may wait for their turn; beyond that the least urgent are shed."""
    max_wait_seconds: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """Longest that a query waits for its turn before it is shed."""
    ledger: SecretStr | None = None
    """Where budgets, bills and queries are written down: sqlite:///FILE, or, shared by routers,
    postgresql://USER:PASSWORD@HOST/NAME; none: a file of this router's own that goes with it."""
    ledger_down: Literal["refuse", "go_on"] = "refuse"
    """While the ledger does not answer: buy nothing, or go on and write down later, budget or not."""
    ledger_seconds: float = Field(default=5.0, gt=0)
    """How long the ledger may take to answer."""
    ledger_connections: int = Field(default=8, ge=1, le=256)
    """Most connections to PostgreSQL."""
    lease_seconds: float = Field(default=6.0, ge=1)
    """A router that was not heard of for so long is dead: what it had reserved is charged in full."""
    advertise: str = ""
    """Address at which other routers reach this one; empty: the one that it listens on, if that tells."""
    kept_query_days: float = Field(default=7.0, gt=0)
    """How long an ended query's decisions and result are kept: for retries, and for `isoflop explain`."""
    kept_bill_days: float = Field(default=400.0, gt=0)
    """How long bills are kept."""
    rejoin_seconds: float = Field(default=10.0, ge=0)
    """How long a query with a request id goes on after its last caller has left."""
    feedback: Path | None = None
    """SQLite file of what was decided and what callers say of it, no prompts; none: feedback is refused."""
    kept_feedback_days: float = Field(default=90.0, gt=0)
    """How long after its end feedback to a query is taken and kept."""
    drift_truths: int = Field(default=1000, ge=1)
    """So many of the truths told last are what the metric of drift is of."""
    explore_share: float = Field(default=0.0, ge=0, le=1)
    """Share of queries whose first round is drawn among the best offers, of tenants that let it be."""
    explore_among: int = Field(default=4, ge=2, le=4)
    """Offers among which it is drawn, the planner's own choice included."""

    @property
    def reached_at(self) -> str:
        """Where other routers reach this one; empty: nobody can."""
        host, _, port = self.address.rpartition(":")
        if self.advertise or port == "0" or host in ("0.0.0.0", "[::]"):
            return self.advertise
        return self.address

    @model_validator(mode="after")
    def _one_budget_of_all(self) -> RouterSettings:
        if self.tenants and self.budget_flops:
            raise ValueError("budget_flops is for routers without tenants: their file has budgets of all")
        return self

    @model_validator(mode="after")
    def _explores_to_learn(self) -> RouterSettings:
        if self.explore_share and self.feedback is None:
            raise ValueError("explore_share needs feedback: without it nothing is learnt")
        return self

    @property
    def terms(self) -> Terms:
        """When breakers open."""
        return Terms(self.breaker_failures, self.breaker_longest_seconds, self.retry_share)


class DistributedSettings(RouterSettings):
    """Settings of `python -m router`: those of the router, and where its services are."""

    model_config = SettingsConfigDict(env_prefix="ISOFLOP_ROUTER_")

    generation: str = "127.0.0.1:50052"
    """Address of the generation service; several, with commas: replicas, each with queries of its own."""
    verification: str = "127.0.0.1:50053"
    """Address of the verification service."""
    difficulty: str = "127.0.0.1:50054"
    """Address of the difficulty service."""
    aggregation: str = "127.0.0.1:50055"
    """Address of the aggregation service."""


class SuiteSettings(RouterSettings):
    """Settings of `isoflop up`: those of the router, and what its services read."""

    model_config = SettingsConfigDict(env_prefix="ISOFLOP_")

    # Enough to keep the embedded models busy, which make 24 samples at a time: more would wait for each other
    # there, where no tier counts.
    max_running: int = Field(default=32, ge=1)
    """Queries that are solved at a time; others wait for their turn."""
    catalog: Path = MODELS / "catalog.yaml"
    """The catalogue of models."""
    verifiers: Path = MODELS / "verifiers.yaml"
    """The catalogue of verifiers."""
    estimator: Path = MODELS / "difficulty.json"
    """The fitted estimator of difficulty."""
    embedding: Path | None = None
    """Folder of the sentence embedding that the estimator was trained with (python -m training.embedding)."""
