"""One channel to each target for the life of the process: a new one costs over a millisecond a call.

Between the suite's own parts a silent connection is pinged often: a part that hangs, or whose machine has
gone, is noticed within about ten seconds. `services.common.server` lets such pings in.
"""

from __future__ import annotations

import grpc
from isoflop.rpc import CHANNEL_OPTIONS

OPTIONS = dict(CHANNEL_OPTIONS) | {
    "grpc.keepalive_time_ms": 5_000,
    "grpc.keepalive_timeout_ms": 5_000,
    "grpc.http2.ping_timeout_ms": 5_000,
    # A part that is back is found again soon, and one that does not even greet is given up as soon.
    "grpc.max_reconnect_backoff_ms": 500,
    "grpc.min_reconnect_backoff_ms": 2_000,
}


class Channels:
    """Channels by target; close them all with `await channels.close()`."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}

    def to(self, target: str) -> grpc.aio.Channel:
        """The channel to `target`, as host:port."""
        if target not in self._channels:
            self._channels[target] = grpc.aio.insecure_channel(target, list(OPTIONS.items()))
        return self._channels[target]

    async def close(self) -> None:
        """Close every channel."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()
