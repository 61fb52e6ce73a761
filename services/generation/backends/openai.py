"""Generation by a server with OpenAI's API: vLLM, SGLang, llama-server, Ollama, or a hosted one.

A request for each sample, streamed, with a seed of its own; closing the response aborts the sample, or ends
it after its one step, and the server hears of it by the hang-up. How faults are met:

- Refused for now (429, or 503 with Retry-After): all samples of the model wait, as long as the server says,
  each up to `max_wait_seconds` in all; then Unavailable, with the time to retry.
- Failed before the first piece (5xx, no connection, a reset): sent again, up to `retries` times.
- Failed later, or never begun in time: the sample ends as aborted, with what came, which is billed. It is not
  sent again, as that would be billed twice, and the round's other samples go on. Where every sample of a
  round fails, the round does.
- Refused for good: a key or model name that the server does not take is the fault of the catalogue
  (Unavailable); a conversation that is too long or a setting that it does not take is the caller's
  (InvalidArgument), and ends the round.

What a server said is quoted to the caller who was at fault, and to nobody else: it may quote the prompt.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import structlog
from isoflop.errors import InvalidArgument, IsoflopError, Unavailable
from isoflop.v1.common_pb2 import (
    SEED_PROMISE_ALONE,
    SEED_PROMISE_ALWAYS,
    SEED_PROMISE_NONE,
    Capabilities,
    Message,
    Model,
)

from services.common.catalog import CatalogError
from services.common.http import Key, KeyUnusable, make_client, read_some, retry_after
from services.common.sse import Events, EventTooLong
from services.common.template import ChatTemplate
from services.generation.backends import Job, Round
from services.generation.backends.chunks import Answer, ErrorChunk, Malformed, Prompt
from services.generation.catalog import OpenAIEntry

log = structlog.get_logger()

SEEDS = 1 << 31
"""Seeds that all servers take: llama.cpp has 32 bits, of which the largest asks for a seed of its choice."""
PROMISES = {"none": SEED_PROMISE_NONE, "alone": SEED_PROMISE_ALONE, "always": SEED_PROMISE_ALWAYS}
PATHS = {"chat": "/chat/completions", "completions": "/completions"}
HEADERS = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}
MAX_EVENT_BYTES = 1 << 20
"""Longest event of a stream; a token takes some hundred bytes."""
TAIL_SECONDS = 2.0
"""How long a server may take from a sample's end to its usage, and to the end of the stream."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0
"""Seconds before a request is sent again: up to the first, then up to twice as long each time."""
MISCONFIGURED_SECONDS = 60.0
"""When to try again where somebody has to repair something first."""
CHECK_URL = "check base_url and model"
QUOTED = 300
"""Characters of what a server said that are passed on."""
TOO_LONG = re.compile(r"context.{0,3}(length|size|window)|too long|maximum (allowed )?length", re.I)
"""How servers say that a conversation does not fit."""


class Busy(Exception):
    """The server refuses more requests for now."""

    def __init__(self, after: float | None) -> None:
        super().__init__()
        self.after = after
        """Seconds until it may be asked again, where it says so."""


class Failed(Exception):
    """A request failed before its first piece, and may be sent again; `str(error)` says how."""


class NoStreamOptions(Exception):
    """The server does not know `stream_options`."""


class Gate:
    """Where all requests to a server wait while it wants none."""

    def __init__(self) -> None:
        self._until = 0.0

    def close(self, seconds: float) -> None:
        """Let nobody through for so long."""
        self._until = max(self._until, asyncio.get_running_loop().time() + seconds)

    @property
    def left(self) -> float:
        """Seconds until it is open."""
        return self._until - asyncio.get_running_loop().time()


@dataclass(frozen=True, slots=True)
class Beginning:
    """What samples of one prefix continue."""

    body: dict[str, Any]
    """The part of a request that says it."""
    prompt: Prompt


class OpenAIBackend:
    """Serves one model of an OpenAI-compatible server."""

    def __init__(self, entry: OpenAIEntry, folder: Path, currency: str) -> None:
        """Raises CatalogError where the key cannot be read; the server is first asked by a round."""
        try:
            self._key = Key(entry.key_env, folder / entry.key_file if entry.key_file else None)
            self._template = ChatTemplate(entry.chat_template)
        except (KeyUnusable, ValueError) as error:
            raise CatalogError(f"model {entry.name}: {error}") from None
        prefix = entry.api == "completions" or entry.continues != "no"
        self._client = make_client(entry.base_url, self._key, entry.parallel, entry.connect_seconds)
        self._entry = entry
        self._name = entry.model or entry.name
        self._stream_options = True
        self._slots = asyncio.Semaphore(entry.parallel)
        self._gate = Gate()
        self.model = Model(
            name=entry.name,
            backend="openai",
            shape=entry.shape.message(),
            context=entry.context,
            price=entry.price.message(currency),
            capabilities=Capabilities(
                prefix=prefix,
                seed=PROMISES[entry.seed],
                logprobs=entry.logprobs,
                abort_one=True,
                # One could be cut off anywhere, but is of no use where it cannot be continued.
                steps=prefix,
            ),
        )

    async def run(self, round: Round) -> None:
        """Sample all jobs, as many at a time as the server is to be asked for."""
        beginnings: dict[tuple[int, str], Beginning] = {}
        for job in round.jobs:
            if job.place not in beginnings:
                beginnings[job.place] = self._beginning(job.messages, job.prefix)
        try:
            async with asyncio.TaskGroup() as group:
                samples = [
                    group.create_task(self._sample(round, job, beginnings[job.place]), name=job.sample_id)
                    for job in round.jobs
                ]
        except* IsoflopError as errors:
            raise errors.exceptions[0] from None
        failures = [failure for sample in samples if (failure := sample.result())]
        if failures:
            log.warning(
                "samples failed",
                model=self.model.name,
                failed=len(failures),
                samples=len(samples),
                error=str(failures[0]),
            )
            if len(failures) == len(samples):
                raise failures[0]

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _sample(self, round: Round, job: Job, beginning: Beginning) -> Unavailable | None:
        """One sample to its end, of whatever kind; its failure, if it failed by itself."""
        answer = Answer(round, job, beginning.prompt)
        if round.aborted(job.sample_id):
            answer.close()
            return None
        asking = asyncio.create_task(self._ask(job, beginning, answer), name=f"asking for {job.sample_id}")
        aborted = asyncio.create_task(round.until_aborted(job.sample_id))
        try:
            await asyncio.wait({asking, aborted}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            aborted.cancel()
            # Closes the response, where there is one: the server hears of it.
            asking.cancel()
            await asyncio.gather(asking, aborted, return_exceptions=True)
            answer.close()
        failure = None if asking.cancelled() else asking.exception()
        if failure is None or (isinstance(failure, IsoflopError) and round.aborted(job.sample_id)):
            return None
        if isinstance(failure, Unavailable):
            return failure
        raise failure

    async def _ask(self, job: Job, beginning: Beginning, answer: Answer) -> None:
        """Read the sample from the server. Raises Unavailable, InvalidArgument."""
        async with self._slots:
            waited, refused, failed = 0.0, 0, 0
            while True:
                waited += await self._pass(self._entry.max_wait_seconds - waited)
                try:
                    await self._read(self._body(job, beginning), answer)
                except NoStreamOptions:
                    self._stream_options = False
                except Busy as busy:
                    self._gate.close(max(busy.after or 0.0, _pause(refused)))
                    refused += 1
                except Failed as failure:
                    if failed >= self._entry.retries:
                        raise Unavailable(f"{self._where} {failure}") from None
                    await asyncio.sleep(_pause(failed))
                    failed += 1
                else:
                    return

    async def _pass(self, most: float) -> float:
        """Wait for the gate, up to `most` seconds; how long that took."""
        waited = 0.0
        while (left := self._gate.left) > 0:
            if waited + left > most:
                raise Unavailable(f"{self._where} takes no more requests for now", retry_after=left)
            await asyncio.sleep(left)
            waited += left
        return waited

    async def _read(self, body: dict[str, Any], answer: Answer) -> None:
        """Send one request, and read what comes of it."""
        entry, clock = self._entry, asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(entry.first_token_seconds) as limit:
                answer.asked = True
                async with self._client.stream(
                    "POST", PATHS[entry.api], json=body, headers=HEADERS
                ) as response:
                    if response.status_code != 200:
                        answer.asked = False
                        said = await read_some(response)
                        raise self._refusal(response.status_code, said, retry_after(response), body)
                    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
                    if kind != "text/event-stream":
                        raise self._misconfigured(f"answers without a stream of events: {CHECK_URL}")
                    events = Events(MAX_EVENT_BYTES)
                    async for data in response.aiter_bytes():
                        for event in events.feed(data):
                            finished = answer.finished
                            came = answer.take(event)
                            if answer.cut:
                                return
                            if answer.done and not answer.finished:
                                raise self._broken(answer)
                            if answer.finished:
                                if not finished:
                                    limit.reschedule(clock() + TAIL_SECONDS)
                            elif came:
                                limit.reschedule(clock() + entry.next_token_seconds)
        except TimeoutError:
            if not answer.finished:
                late = f"sent nothing for {entry.next_token_seconds:g} seconds"
                if not answer.begun:
                    late = f"did not begin within {entry.first_token_seconds:g} seconds"
                raise Unavailable(f"{self._where} {late}") from None
        except (Malformed, EventTooLong) as error:
            if not answer.finished:
                why = "an event without end" if isinstance(error, EventTooLong) else str(error)
                raise Unavailable(f"{self._where} sent {why}") from None
        except ErrorChunk as error:
            if not answer.finished:
                if answer.begun:
                    raise Unavailable(f"{self._where} failed in the middle of a sample") from None
                said = json.dumps(error.body).encode()
                raise self._refusal(error.status, said, None, body) from None
        except (httpx.ConnectError, httpx.ConnectTimeout):
            answer.asked = False
            raise Failed("does not answer: is it running?") from None
        except (httpx.HTTPError, httpx.StreamError):
            if not answer.finished:
                raise self._broken(answer) from None
        else:
            if not answer.finished:
                raise self._broken(answer)

    def _broken(self, answer: Answer) -> Exception:
        if answer.begun:
            return Unavailable(f"{self._where} broke off in the middle of a sample")
        return Failed("broke off before a sample began")

    def _beginning(self, messages: Sequence[Message], prefix: str) -> Beginning:
        entry = self._entry
        if entry.api == "completions":
            prompt = self._template.render(messages, prefix)
            return Beginning({"prompt": prompt}, Prompt(len(prompt.encode())))
        turns = [{"role": message.role, "content": message.content} for message in messages]
        body: dict[str, Any] = {"messages": turns}
        if prefix:
            if entry.continues == "no":
                raise InvalidArgument("branches", f"{entry.name} cannot continue a prefix")
            turns.append({"role": "assistant", "content": prefix})
            if entry.continues == "continue_final_message":
                body |= {"continue_final_message": True, "add_generation_prompt": False}
        return Beginning(body, Prompt(sum(len(turn["content"].encode()) for turn in turns)))

    def _body(self, job: Job, beginning: Beginning) -> dict[str, Any]:
        """The request of one sample."""
        entry, sampling = self._entry, job.sampling
        body: dict[str, Any] = {
            "model": self._name,
            **beginning.body,
            "stream": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p or 1.0,
        }
        most = sampling.max_tokens
        if not most and entry.api == "completions":
            # Left out, it would be 16. A token has at least a byte.
            most = max(0, entry.context - beginning.prompt.size)
        if most:
            body[entry.max_tokens_field] = most
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if job.seed is not None and entry.seed != "none":
            body["seed"] = job.seed % SEEDS
        if entry.logprobs:
            # One, as llama.cpp's server takes 0 for none at all.
            body |= {"logprobs": True, "top_logprobs": 1} if entry.api == "chat" else {"logprobs": 1}
        if self._stream_options:
            body["stream_options"] = {"include_usage": True}
            if entry.continuous_usage:
                body["stream_options"]["continuous_usage_stats"] = True
        return body | entry.extra

    def _refusal(self, status: int, said: bytes, after: float | None, body: dict[str, Any]) -> Exception:
        """What a status other than 200 means: the table of faults."""
        message, code = _error(said)
        message = self._key.hide(message)[:QUOTED]
        match status:
            case 400 | 422 if (
                "stream_options" in message and "stream_options" in body.keys() - self._entry.extra
            ):
                return NoStreamOptions()
            case 400 | 413 | 422 if status == 413 or TOO_LONG.search(f"{code} {message}"):
                return InvalidArgument("messages", f"too long for {self.model.name}: {message}")
            case 400 | 422:
                return InvalidArgument("sampling", f"{self.model.name}'s server refuses it: {message}")
            case 401 | 403:
                return self._misconfigured(f"refuses the key ({status}): check key_env or key_file")
            case 404 | 405 | 410:
                return self._misconfigured(f"has no model {self._name!r} there ({status}): {CHECK_URL}")
            case 402:
                return self._misconfigured("wants to be paid first (402)")
            case 429 if "insufficient_quota" in code:
                return self._misconfigured("has no quota left for the key (429)")
            case 429:
                return Busy(after)
            case 503 if after is not None:
                return Busy(after)
            case 408 | 409 | 425:
                return Failed(f"failed ({status})")
            case _ if status >= 500:
                return Failed(f"failed ({status})")
            case _:
                return self._misconfigured(f"answers with status {status}: {CHECK_URL}")

    @property
    def _where(self) -> str:
        return f"the server of {self.model.name} at {self._entry.base_url}"

    def _misconfigured(self, what: str) -> Unavailable:
        return Unavailable(f"{self._where} {what}", MISCONFIGURED_SECONDS)


def _error(said: bytes) -> tuple[str, str]:
    """Message, and code and type, of an error as servers write it: OpenAI's, FastAPI's, a bare text."""
    text = said.decode("utf-8", "replace")
    try:
        error = json.loads(text)
    except (ValueError, RecursionError):
        error = text
    code = ""
    for name in ("error", "detail", "message"):
        if isinstance(error, dict):
            code += f" {error.get('code')} {error.get('type')}"
            error = error.get(name) or error
    return " ".join((error if isinstance(error, str) else text).split()), code


def _pause(tries: int) -> float:
    """Seconds before another try: at least half of a time that doubles, so that not all come at once."""
    longest = min(FIRST_PAUSE * 2.0**tries, LONGEST_PAUSE)
    return random.uniform(longest / 2, longest)
