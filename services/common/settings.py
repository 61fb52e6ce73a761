"""What every service can be told: from the command line, or from the environment.

A setting `metrics_port` of the router is `--metrics-port` on its command line and
`ISOFLOP_ROUTER_METRICS_PORT` in its environment.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict

MODELS = Path(__file__).parents[2] / "models"
"""The embedded models, and what was measured about them."""

S = TypeVar("S", bound="ServiceSettings")


class ServiceSettings(BaseSettings):
    """Settings that all services have."""

    model_config = SettingsConfigDict(
        use_attribute_docstrings=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
    )

    @classmethod
    def module(cls) -> str:
        """What `python -m` runs with these settings."""
        return cls.__module__.removesuffix(".settings")

    address: str = "127.0.0.1:50051"
    """Address to listen on for gRPC, as host:port; port 0 takes a free one."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port for Prometheus (/metrics) on the same host; 0: none."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe messages that are logged."""
    log_format: Literal["text", "json"] = "text"
    """How log lines are written."""
    drain_notice_seconds: float = Field(default=0.0, ge=0)
    """On SIGTERM: how long new calls are still taken, so that load balancers hear of it first."""
    drain_seconds: float = Field(default=5.0, ge=0)
    """On SIGTERM, after that: how long calls that are running may take to end."""
    reflection: bool = True
    """Serve the description of the contract to tools such as grpcurl."""

    @field_validator("address")
    @classmethod
    def _has_a_port(cls, address: str) -> str:
        host, _, port = address.rpartition(":")
        # grpc would take the port modulo 65536, and another one for none.
        if not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError("host:port, with a port from 0 to 65535")
        return address


def options(kind: type[S], parser: ArgumentParser) -> CliSettingsSource[Any]:
    """Add an option for each setting of `kind` to a parser; `load` takes what it has parsed."""
    return CliSettingsSource(kind, root_parser=parser)


def load(kind: type[S], source: CliSettingsSource[Any], arguments: Namespace) -> S:
    """Settings from the command line, the environment and the defaults.

    Exits with status 2 and one line for each setting that is wrong.
    """
    try:
        return kind(_cli_settings_source=source(parsed_args=arguments))  # type: ignore[call-arg]
    except ValidationError as error:
        for fault in error.errors():
            name = ".".join(str(part) for part in fault["loc"])
            print(f"setting {name}: {fault['msg']} (given: {str(fault['input'])[:80]!r})", file=sys.stderr)
        raise SystemExit(2) from None
