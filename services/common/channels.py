"""One channel to each target for the life of the process: a new one costs over a millisecond a call."""

from __future__ import annotations

import grpc
from isoflop.rpc import CHANNEL_OPTIONS


class Channels:
    """Channels by target; close them all with `await channels.close()`."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}

    def to(self, target: str) -> grpc.aio.Channel:
        """The channel to `target`, as host:port."""
        if target not in self._channels:
            self._channels[target] = grpc.aio.insecure_channel(target, CHANNEL_OPTIONS)
        return self._channels[target]

    async def close(self) -> None:
        """Close every channel."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()
