"""A strict fake of a server with OpenAI's API: it refuses what the API does not have, and fails as told.

It speaks HTTP/1.1 over a real socket, so that hang-ups, resets and any cutting of bytes can be tried.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

KEY = "sk-strict-0123456789"
MODEL = "org/strict-1b"
PROMPT_TOKENS, CACHED_TOKENS = 7, 2
WORDS = ["17", "*", "24", "\n", "=", " 408", "\n", "\n", "408"]
"""What it says, a token each."""
LOGPROB = -0.125

COMMON = {
    "model": str,
    "stream": bool,
    "temperature": (int, float),
    "top_p": (int, float),
    "max_tokens": int,
    "max_completion_tokens": int,
    "stop": list,
    "seed": int,
    "stream_options": dict,
    "top_k": int,
}
FIELDS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        **COMMON,
        "messages": list,
        "logprobs": bool,
        "top_logprobs": int,
        "continue_final_message": bool,
        "add_generation_prompt": bool,
    },
    "/v1/completions": {**COMMON, "prompt": str, "logprobs": int},
}


class HungUp(Exception):
    """The client has gone."""


@dataclass
class Exchange:
    """One request, and what is answered to it."""

    number: int
    """Of the server's requests, from 0."""
    path: str
    body: dict[str, Any]
    writer: asyncio.StreamWriter
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """The client has closed the connection."""
    sent: int = 0
    """Tokens sent."""
    started: bool = False
    ended: bool = False

    @property
    def chat(self) -> bool:
        return self.path.endswith("/chat/completions")

    @property
    def most(self) -> int:
        return self.body.get("max_tokens") or self.body.get("max_completion_tokens") or 10**9

    @property
    def options(self) -> dict[str, Any]:
        return self.body.get("stream_options") or {}

    async def begin(self, kind: str = "text/event-stream; charset=utf-8") -> None:
        """Status 200 and headers."""
        self.started = True
        await self._write(
            f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )

    async def raw(self, data: bytes) -> None:
        """Bytes of the stream of events."""
        if not self.started:
            await self.begin()
        await self._write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def event(self, chunk: dict[str, Any] | str) -> None:
        """One event."""
        data = chunk if isinstance(chunk, str) else json.dumps(chunk)
        await self.raw(f"data: {data}\n\n".encode())

    async def token(
        self, *texts: str, logprob: float = LOGPROB, reason: str | None = None, **more: Any
    ) -> None:
        """A chunk with one token, or with several; a `reason` ends the sample with it."""
        self.sent += len(texts)
        logprobs: Any = None
        if self.body.get("logprobs"):
            logprobs = {"content": [{"token": text, "logprob": logprob} for text in texts]}
            if not self.chat:
                logprobs = {"tokens": texts, "token_logprobs": [logprob] * len(texts)}
        text = "".join(texts)
        said = {"delta": {"content": text}} if self.chat else {"text": text}
        chunk = {"choices": [{"index": 0, **said, "logprobs": logprobs, "finish_reason": reason}], **more}
        if self.options.get("continuous_usage_stats"):
            chunk["usage"] = self.usage()
        await self.event(chunk)

    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": self.sent,
            "prompt_tokens_details": {"cached_tokens": CACHED_TOKENS},
        }

    async def finish(self, reason: str = "stop", usage: bool = True) -> None:
        """The end of a sample: its reason, and what follows."""
        said = {"delta": {}} if self.chat else {"text": ""}
        await self.event({"choices": [{"index": 0, **said, "finish_reason": reason}], "usage": None})
        await self.close(usage)

    async def close(self, usage: bool = True) -> None:
        """What follows the end of a sample: usage if asked, and no more."""
        if usage and self.options.get("include_usage"):
            await self.event({"choices": [], "usage": self.usage()})
        await self.event("[DONE]")
        await self.end()

    async def end(self) -> None:
        """End the answer; the connection stays."""
        self.ended = True
        await self._write(b"0\r\n\r\n")

    async def refuse(self, status: int, error: Any, **headers: str) -> None:
        """An answer that is an error."""
        self.started = self.ended = True
        body = error if isinstance(error, bytes) else json.dumps(error).encode()
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        head = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *lines, "", ""]
        await self._write("\r\n".join(head).encode() + body)

    def reset(self) -> None:
        """Break the connection."""
        self.ended = True
        self.writer.transport.abort()

    async def _write(self, data: bytes) -> None:
        if self.writer.is_closing():
            raise HungUp
        self.writer.write(data)
        try:
            await self.writer.drain()
        except ConnectionError:
            raise HungUp from None


Play = Callable[[Exchange], Awaitable[None]]


async def speak(exchange: Exchange) -> None:
    """Say WORDS, as many as are asked for."""
    if exchange.chat:
        await exchange.event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]})
    for word in WORDS[: exchange.most]:
        await exchange.token(word)
    await exchange.finish("length" if exchange.most < len(WORDS) else "stop")


@dataclass
class OpenAIServer:
    """The fake; `play` answers each request that is as the API has it."""

    play: Play = speak
    key: str = KEY
    url: str = ""
    exchanges: list[Exchange] = field(default_factory=list)
    hung_up: list[int] = field(default_factory=list)
    """Numbers of the requests whose client went before their end."""
    connections: int = 0
    faults: list[str] = field(default_factory=list)
    """What was wrong with requests; empty after a test that expects none."""

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, request after request."""
        self.connections += 1
        first = b""
        try:
            while head := await _head(reader, first):
                first = await self._answer(head, reader, writer)
        except (HungUp, ConnectionError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """Answer a request; the first byte of the next one, where it has been read already."""
        first, *lines = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        exchange = Exchange(len(self.exchanges), first.split()[1], body, writer)
        self.exchanges.append(exchange)
        if self.key and headers.get("authorization") != f"Bearer {self.key}":
            said = headers.get("authorization", "none")
            await exchange.refuse(
                401, {"error": {"message": f"wrong key: {said}", "code": "invalid_api_key"}}
            )
            return b""
        fault = wrong(first, exchange)
        if fault:
            self.faults.append(fault)
            await exchange.refuse(400, {"error": {"message": fault, "type": "invalid_request_error"}})
            return b""
        playing = asyncio.ensure_future(self.play(exchange))
        listening = asyncio.ensure_future(_listen(reader))
        try:
            await asyncio.wait({playing, listening}, return_when=asyncio.FIRST_COMPLETED)
            if listening.done() and not listening.result() and not exchange.ended:
                self.hung_up.append(exchange.number)
                exchange.gone.set()
                await asyncio.wait({playing}, timeout=0.1)
                raise HungUp
            await asyncio.wait({playing})
            if isinstance(playing.exception(), HungUp):
                self.hung_up.append(exchange.number)
                raise HungUp
            playing.result()
            if not exchange.ended:
                # The play has left it unfinished: it closes.
                raise HungUp
            return listening.result() if listening.done() else b""
        finally:
            playing.cancel()
            listening.cancel()
            await asyncio.gather(playing, listening, return_exceptions=True)


async def _listen(reader: asyncio.StreamReader) -> bytes:
    """Nothing when the client has closed the connection; or the first byte of what it says next."""
    try:
        return await reader.read(1)
    except ConnectionError:
        return b""


def wrong(first: str, exchange: Exchange) -> str:
    """What is wrong with a request, if anything."""
    body = exchange.body
    fields = FIELDS.get(exchange.path)
    if fields is None or first != f"POST {exchange.path} HTTP/1.1":
        return f"there is no {first}"
    for name, value in body.items():
        if name not in fields:
            return f"unknown field {name}"
        if not isinstance(value, fields[name]) or (fields[name] is int and isinstance(value, bool)):
            return f"{name} is of the wrong type"
    if body.get("model") != MODEL or body.get("stream") is not True:
        return "model and stream are wanted"
    if not 0 <= body.get("temperature", 1) <= 2 or not 0 < body.get("top_p", 1) <= 1:
        return "temperature or top_p is out of range"
    if min(body.get("max_tokens", 1), body.get("max_completion_tokens", 1)) < 1:
        return "max_tokens must be at least 1"
    if not 0 <= body.get("seed", 0) < 2**31:
        return "seed is out of range"
    if exchange.options.keys() - {"include_usage", "continuous_usage_stats"}:
        return "unknown field in stream_options"
    for turn in body.get("messages", []):
        if turn.keys() != {"role", "content"} or turn["role"] not in ("system", "user", "assistant"):
            return "a message is wrong"
    return ""


async def _head(reader: asyncio.StreamReader, first: bytes) -> str:
    """A request's first line and headers, of which `first` has been read; empty where the client has gone."""
    try:
        return (first + await reader.readuntil(b"\r\n\r\n")).decode("ascii").removesuffix("\r\n\r\n")
    except asyncio.IncompleteReadError:
        return ""


@asynccontextmanager
async def serving(play: Play = speak, key: str = KEY) -> AsyncIterator[OpenAIServer]:
    """A fake on a free port. At the end, nothing of it runs any more, and nothing was wrong with requests."""
    fake = OpenAIServer(play, key)
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(fake.connection(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield fake
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        failed = [
            one for one in await asyncio.gather(*tasks, return_exceptions=True) if isinstance(one, Exception)
        ]
        await server.wait_closed()
    assert not failed, failed
    assert not fake.faults, fake.faults
