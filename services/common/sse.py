"""Server-sent events, from bytes as they come (the WHATWG's HTML standard, section 9.2.6)."""

from __future__ import annotations

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventTooLong(Exception):
    """An event has more bytes than it may have."""


class Events:
    """Cuts a stream into events. Their names and ids, comments and unknown fields are left out."""

    def __init__(self, most: int) -> None:
        """`most`: bytes that an event may have."""
        self._most = most
        self._begun = False
        self._after_return = False
        """The last byte was a carriage return: a line feed that follows belongs to it."""
        self._line = bytearray()
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The data of the events that end in the next bytes; empty data are no event.

        However a stream is cut into `data`, its events are the same. Raises EventTooLong.
        """
        if self._after_return and data:
            data, self._after_return = data.removeprefix(b"\n"), False
        if data.endswith(b"\r"):
            self._after_return = True
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._line += data
        events: list[bytes] = []
        if b"\n" in data:
            *lines, rest = bytes(self._line).split(b"\n")
            self._line = bytearray(rest)
            for line in lines:
                if not self._begun:
                    line, self._begun = line.removeprefix(BYTE_ORDER_MARK), True
                if line:
                    self._take(line)
                elif self._data:
                    events.append(b"\n".join(self._data))
                    self._data, self._size = [], 0
        if len(self._line) + self._size > self._most:
            raise EventTooLong
        return [event for event in events if event]

    def _take(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        if field == b"data":
            self._size += len(line)
            if self._size > self._most:
                raise EventTooLong
            self._data.append(value.removeprefix(b" "))
