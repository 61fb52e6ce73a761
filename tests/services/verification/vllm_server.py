"""A strict fake of vLLM's HTTP endpoints for pooling models, over a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

KEY = "key-of-the-test-0123"
MODEL = "org/prm-7b"
SEPARATOR = "<extra_0>"
FIELDS = {"model": str, "input": str, "add_special_tokens": bool}
"""That the endpoints have, and that are used."""

Answer = tuple[int, Any]
"""A status, and a body: bytes, or what is written as JSON."""

HANGS_UP: Answer = (0, b"")
"""No answer: the connection is closed."""


def error(status: int, message: str) -> Answer:
    """As vLLM says it."""
    return status, {"error": {"message": message, "type": "BadRequestError", "code": status}}


def tokens(text: str) -> int:
    """As this server counts: a separator is one, and so is each other character."""
    return len(text.replace(SEPARATOR, "."))


def right(text: str) -> float:
    """The chance that what ends here is right."""
    return (tokens(text) % 97) / 97


def pooled(text: str) -> list[list[float]]:
    """A PRM's classes at each separator: wrong, right."""
    parts = text.split(SEPARATOR)[:-1]
    ends = [SEPARATOR.join(parts[: i + 1]) + SEPARATOR for i in range(len(parts))]
    return [[1 - right(end), right(end)] for end in ends]


@dataclass
class VllmServer:
    """Answers as vLLM does, or as `script` says where that gives an answer."""

    address: str = ""
    script: Callable[[dict[str, Any]], Answer | None] = lambda body: None
    asked: list[dict[str, Any]] = field(default_factory=list)
    hold: asyncio.Event | None = None
    """Where set: no answer before it, and `gone` when the client leaves first."""
    held: bytes = b""
    """Only requests with this in them are held."""
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def answer(self, path: str, headers: dict[str, str], content: bytes) -> Answer:
        """To one request."""
        if headers.get("authorization") != f"Bearer {KEY}":
            return 401, {"error": "Unauthorized"}
        if path not in ("/pooling", "/classify"):
            return 404, {"detail": "Not Found"}
        body = json.loads(content)
        self.asked.append(body)
        if set(body) != set(FIELDS) or any(type(body[name]) is not kind for name, kind in FIELDS.items()):
            return error(400, f"fields {sorted(body)}")
        if body["model"] != MODEL:
            return error(404, f"The model `{body['model']}` does not exist.")
        if (scripted := self.script(body)) is not None:
            return scripted
        text, count = body["input"], tokens(body["input"])
        item: dict[str, Any] = {"index": 0, "object": "pooling", "data": pooled(text)}
        if path == "/classify":
            item = {"index": 0, "label": "LABEL_0", "probs": [right(text)], "num_classes": 1}
        usage = {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0}
        return 200, {"id": "pool-1", "object": "list", "model": MODEL, "data": [item], "usage": usage}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
                headers = {
                    name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
                }
                method, path, _ = first.split()
                content = await reader.readexactly(int(headers.get("content-length", "0")))
                assert method == "POST"
                if self.hold and self.held in content:
                    await self._until_let(reader, self.hold)
                status, body = self.answer(path, headers, content)
                if (status, body) == HANGS_UP:
                    break
                payload = body if isinstance(body, bytes) else json.dumps(body).encode()
                extra = "Retry-After: 7\r\n" if status == 503 else ""
                head = f"HTTP/1.1 {status} Told\r\nContent-Length: {len(payload)}\r\n{extra}\r\n"
                writer.write(head.encode() + payload)
                await writer.drain()
        writer.close()

    async def _until_let(self, reader: asyncio.StreamReader, hold: asyncio.Event) -> None:
        self.waiting.set()
        let, left = asyncio.ensure_future(hold.wait()), asyncio.ensure_future(reader.read(1))
        await asyncio.wait({let, left}, return_when=asyncio.FIRST_COMPLETED)
        if left.done():
            self.gone.set()
        for one in (let, left):
            one.cancel()
        await asyncio.gather(let, left, return_exceptions=True)


@asynccontextmanager
async def vllm() -> AsyncIterator[VllmServer]:
    """A server on a free port."""
    made = VllmServer()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    made.address = f"http://{host}:{port}"
    async with server:
        yield made
