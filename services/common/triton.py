"""Clients of Triton servers. Needs the extra `triton`: imported only where a catalogue has such an entry."""

from __future__ import annotations

from isoflop.rpc import MAX_MESSAGE_BYTES
from tritonclient.grpc.aio import InferenceServerClient


def make_client(address: str) -> InferenceServerClient:
    """A client for host:port. Its channel belongs to the event loop that it is made in."""
    return InferenceServerClient(
        address,
        channel_args=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.max_reconnect_backoff_ms", 1_000),
        ],
    )
