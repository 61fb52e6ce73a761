"""What goes over the wire beside the messages: channel options, and statuses as errors."""

from __future__ import annotations

import grpc
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from isoflop.errors import DeadlineExceeded, IsoflopError, Unreachable, from_status

STATUS_DETAILS = "grpc-status-details-bin"
"""The trailing metadata that carries a google.rpc.Status."""

MAX_MESSAGE_BYTES = 16 << 20
"""Largest message either side takes: 256 candidates of 32 KiB, with room."""

CHANNEL_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.lb_policy_name", "round_robin"),
    # Hard queries take minutes: ping a silent connection, so that a dead one is noticed.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # What counts for a ping that is not answered (grpc 1.85); and its third ping would come too late.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A part that comes back is found again within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]


BROKEN = (Code.UNAVAILABLE, Code.INTERNAL, Code.UNKNOWN, Code.CANCELLED, Code.ABORTED)
"""Codes that no service of ours says without details: they are grpc's own, of a connection that broke or of a
server that ended."""


def from_rpc_error(error: grpc.RpcError, target: str) -> IsoflopError:
    """The error behind a failed call to `target` (an address, for the message)."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_DETAILS:
            return from_status(Status.FromString(value if isinstance(value, bytes) else value.encode()))
    code = Code.Value(error.code().name)
    if code in BROKEN:
        return Unreachable(target)
    if code == Code.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"{target} did not answer in time: allow more time")
    return from_status(Status(code=code, message=f"{target}: {error.details()}"))
