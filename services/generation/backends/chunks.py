"""From the chunks of OpenAI's API to the pieces of a sample: text, counts, and where to stop reading.

What is billed, best first:

- what the server's usage says: exact, also of a sample that was aborted where it comes with every chunk;
- one token for each log-probability: exact, but for an end-of-text token that is not shown;
- one token for each chunk with text: an estimate, as servers may put several into one.

Prompt tokens that no usage tells (an aborted sample's, mostly) are those of another sample of the same
prompt, or estimated by its length.

One step ends with its line, and with the blank lines that came in the same chunk, as they are often one
token with it; blank lines before it are a part of it. No stop text is used for it: servers tell one no
differently from the model's own end. So the server is hung up on, as for an abort, and what it may have made
by then is unseen. What the chunk has beyond the step is no part of the text; its tokens, and their
log-probabilities, count, as they were computed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from isoflop.rpc import MAX_MESSAGE_BYTES
from isoflop.v1.common_pb2 import (
    FINISH_REASON_ABORTED,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STEP,
    FINISH_REASON_STOP,
    FinishReason,
)

from services.common.catalog import LARGEST
from services.generation.backends import NEVER_STARTED, End, Job, Piece, Round

BYTES_A_TOKEN = 4
"""Where a prompt's tokens are not told, they are estimated by this: about right for English text."""
CHUNKS_A_TOKEN = 4
"""Most chunks that a token may be spread over, on average, where tokens are not counted: a server that sends
more has not heard of max_tokens."""
UNSEEN_TOKENS = 64
"""Tokens that a server may have made and not told of when a stream is closed, at most; as for Triton."""
MAX_TEXT_BYTES = MAX_MESSAGE_BYTES // 2
"""Longest text of a sample: a longer one could not be sent on."""
LINE_END = re.compile(r"\n(?:\s*\n)?")
"""The end of a line, and the blank lines after it."""
THINKING, THOUGHT = "<think>\n", "\n</think>\n"
"""Around what a server tells apart as reasoning: joined to the text as models themselves write it."""


class Malformed(Exception):
    """A chunk is none; `str(error)` says why, and quotes nothing."""


class ErrorChunk(Exception):
    """The server says in the stream that it failed."""

    def __init__(self, error: Any) -> None:
        super().__init__()
        code = error.get("code") if isinstance(error, dict) else None
        self.status = code if isinstance(code, int) and 400 <= code < 600 else 500
        """As an HTTP status."""
        self.body = {"error": error}


@dataclass
class Prompt:
    """What is known of a prompt's tokens, by all samples of a round that have it."""

    size: int
    """Bytes of UTF-8."""
    told: int | None = None

    @property
    def tokens(self) -> int:
        """As told, or estimated."""
        return -(-self.size // BYTES_A_TOKEN) if self.told is None else self.told


class Answer:
    """One sample as it comes: takes chunks, and puts pieces into the round."""

    def __init__(self, round: Round, job: Job, prompt: Prompt) -> None:
        self._round = round
        self._job = job
        self._prompt = prompt
        self._most = job.sampling.max_tokens
        self._text = ""
        self._bytes = 0
        self._thinking = False
        self._blank = True
        """Nothing has been said yet but blank lines."""
        self._stepped = False
        """The one step that was asked for is complete."""
        self._beyond = False
        """The model has gone on after it."""
        self._logprob = 0.0
        self._told = 0
        """Log-probabilities of what is not put yet."""
        self._lacking = False
        """One of them is lacking."""
        self._tokens = 0
        """Tokens that have come, as far as is known."""
        self._put = 0
        """Tokens that were put into pieces."""
        self._counted = False
        """Tokens are counted as they come, not estimated."""
        self._with_logprobs = False
        self._prompt_tokens: int | None = None
        self._cached_tokens = 0
        self._reason: FinishReason.ValueType | None = None
        self.asked = False
        """A server may be working on it."""
        self.done = False
        """The server says that nothing more comes."""
        self.cut = False
        """There is enough of it, and the server goes on: hang up."""

    @property
    def begun(self) -> bool:
        """Whether something of it has come."""
        return self._tokens > 0

    @property
    def finished(self) -> bool:
        """Whether the server has said why it ended, or has been cut."""
        return self._reason is not None

    def take(self, data: bytes) -> bool:
        """Take an event's data; whether it brought text or the end. Raises Malformed, ErrorChunk."""
        if data.strip() == b"[DONE]":
            self.done = True
            return False
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            raise Malformed("an event that is no JSON") from None
        if not isinstance(chunk, dict):
            raise Malformed("an event that is no object")
        if chunk.get("error") is not None:
            raise ErrorChunk(chunk["error"])
        before = self._tokens
        usage = self._usage(chunk)
        choices = chunk.get("choices")
        if choices is None and usage:
            choices = []
        if not isinstance(choices, list):
            raise Malformed("a chunk without choices")
        came = False
        for choice in choices:
            came = self._choice(choice, before) or came
        return came

    def close(self) -> None:
        """Put the last piece: how the sample ended, and what it took."""
        if not self.asked and not self.begun:
            self._round.put(Piece(self._job.sample_id, end=NEVER_STARTED))
            return
        tokens = min(self._tokens, self._most) if self._most else self._tokens
        tokens = max(tokens, self._put)
        unseen = 0
        if self._reason is None or (self._reason == FINISH_REASON_STEP and self.cut):
            unseen = min(UNSEEN_TOKENS, self._most - tokens) if self._most else UNSEEN_TOKENS
        prompt = self._prompt.tokens if self._prompt_tokens is None else self._prompt_tokens
        if not self.begun and self._reason is None and self._prompt_tokens is None:
            # It may not have got to the prompt yet.
            prompt, unseen = 0, unseen + prompt
        cached = min(self._cached_tokens, prompt)
        reason = FINISH_REASON_ABORTED if self._reason is None else self._reason
        self._flush(tokens, End(reason, prompt - cached, cached, unseen))

    def _usage(self, chunk: dict[str, Any]) -> bool:
        """Take what the chunk says of the usage, if it does. Zeros are not told."""
        usage, timings = chunk.get("usage"), chunk.get("timings")
        if isinstance(usage, dict):
            details = usage.get("prompt_tokens_details") or {}
            if not isinstance(details, dict):
                raise Malformed("a usage that is none")
            prompt, cached = _count(usage, "prompt_tokens"), _count(details, "cached_tokens")
            completion = _count(usage, "completion_tokens")
        elif isinstance(timings, dict):
            # llama.cpp's server: always at the end, and with each token if asked by `timings_per_token`.
            cached = _count(timings, "cache_n")
            prompt, completion = _count(timings, "prompt_n") + cached, _count(timings, "predicted_n")
        elif usage is None:
            return False
        else:
            raise Malformed("a usage that is none")
        if prompt:
            self._prompt_tokens = self._prompt.told = prompt
            self._cached_tokens = cached
        if completion:
            self._tokens = completion
        return True

    def _choice(self, choice: Any, before: int) -> bool:
        """Take a choice; whether it brought text or the end. `before`: tokens before this chunk."""
        if not isinstance(choice, dict):
            raise Malformed("a choice that is no object")
        if choice.get("index", 0) != 0:
            raise Malformed("a choice that nobody asked for")
        text, reason = self._said(choice), choice.get("finish_reason")
        if reason is not None and not isinstance(reason, str):
            raise Malformed("a finish reason that is no text")
        logprobs = _logprobs(choice.get("logprobs"))
        if self._reason is None and (text or logprobs):
            if self._too_much(text, logprobs, before):
                self.cut, self._reason = True, FINISH_REASON_LENGTH
                return True
            self._add(text, logprobs, before)
        if self._reason is None:
            self._reason = self._ended(reason)
            self.cut = self._reason is not None and reason is None
        return bool(text or logprobs or reason)

    def _ended(self, reason: str | None) -> FinishReason.ValueType | None:
        """Why the sample has ended, by the server's `reason` or as its step is complete; None: it goes on."""
        if reason in ("abort", "error"):
            raise Malformed("a sample that it has given up")
        if self._stepped and (self._beyond or reason in (None, "length")):
            return FINISH_REASON_STEP
        if reason is None:
            return None
        return FINISH_REASON_LENGTH if reason == "length" else FINISH_REASON_STOP

    def _too_much(self, text: str, logprobs: list[float | None], before: int) -> bool:
        """Whether this is beyond all that was asked for."""
        self._bytes += len(text.encode())
        if self._bytes > MAX_TEXT_BYTES:
            return True
        if not self._most:
            return False
        if logprobs or self._tokens > before:
            return max(self._tokens, before + len(logprobs)) > self._most
        return before >= self._most * (1 if self._counted else CHUNKS_A_TOKEN)

    def _add(self, text: str, logprobs: list[float | None], before: int) -> None:
        by_usage = self._tokens > before
        if logprobs or by_usage:
            self._counted = True
        if not by_usage:
            self._tokens = before + max(len(logprobs), 1 if text else 0)
        if logprobs:
            self._with_logprobs = True
            self._told += len(logprobs)
            self._logprob += sum(one for one in logprobs if one is not None)
        self._lacking = self._lacking or not logprobs or None in logprobs
        self._text += text
        if self._round.stream_text or (self._counted and "\n" in text):
            # Estimates wait for the end, and are shared out then.
            self._flush(self._tokens if self._counted else self._put, None)

    def _flush(self, tokens: int, end: End | None) -> None:
        """Put a piece with what has come since the last one, up to `tokens` in all."""
        more = max(0, tokens - self._put)
        logprob = None
        if self._with_logprobs and not self._lacking and more - self._told <= self._not_shown(end):
            logprob = self._logprob
        self._round.put(Piece(self._job.sample_id, self._text, more, logprob, end))
        self._put, self._text, self._logprob = self._put + more, "", 0.0
        self._told, self._lacking = 0, False

    def _not_shown(self, end: End | None) -> int:
        """Tokens that a server counts and does not show, at most: the end of text, or a stop text."""
        if end is None or end.reason not in (FINISH_REASON_STOP, FINISH_REASON_STEP):
            return 0
        return LARGEST if self._job.sampling.stop else 1

    def _said(self, choice: dict[str, Any]) -> str:
        """The choice's text, reasoning included, as far as it is asked for."""
        delta = choice.get("delta")
        if delta is None:
            return self._within_step(_text(choice, "text"))
        if not isinstance(delta, dict):
            raise Malformed("a delta that is no object")
        said = self._within_step(_text(delta, "reasoning_content") or _text(delta, "reasoning"))
        if said and not self._thinking:
            said, self._thinking = THINKING + said, True
        content = self._within_step(_text(delta, "content"))
        if content and self._thinking:
            content, self._thinking = THOUGHT + content, False
        return said + content

    def _within_step(self, text: str) -> str:
        """What of the model's next text belongs to the one step, where one was asked for."""
        if not self._job.sampling.one_step or not text:
            return text
        if self._stepped:
            self._beyond = True
            return ""
        begin = len(text) - len(text.lstrip()) if self._blank else 0
        self._blank = self._blank and begin == len(text)
        line_end = LINE_END.search(text, begin)
        if line_end is None:
            return text
        self._stepped, self._beyond = True, line_end.end() < len(text)
        return text[: line_end.end()]


def _text(values: dict[str, Any], name: str) -> str:
    text = values.get(name)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise Malformed(f"a {name} that is no text")
    try:
        text.encode()
    except UnicodeEncodeError:
        # Halves of surrogate pairs are no characters.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _count(values: dict[str, Any], name: str) -> int:
    count = values.get(name)
    if count is None:
        return 0
    if not isinstance(count, int) or not 0 <= count <= LARGEST:
        raise Malformed(f"{name} that are no count")
    return count


def _logprobs(logprobs: Any) -> list[float | None]:
    """The tokens' log-probabilities, in either of the API's forms; None for one that is no number."""
    if not isinstance(logprobs, dict):
        return []
    told = logprobs.get("content")
    if isinstance(told, list):
        told = [token.get("logprob") if isinstance(token, dict) else None for token in told]
    else:
        told = logprobs.get("token_logprobs")
    if not isinstance(told, list):
        return []
    return [_number(one) for one in told]


def _number(value: Any) -> float | None:
    """A number that a log-probability can be, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # An int may be too large for a float.
    return float(value) if -LARGEST < value < LARGEST else None
