"""A Triton python-backend model that serves a GGUF file by llama.cpp.

It speaks the tensors of Triton's vLLM backend, so that one client serves both
(docker/triton/README.md has the table and the differences). It runs inside Triton's stub
process; nothing of isoflop is imported here.

Order of reading: `TritonPythonModel.execute` queues each request, `Generation.run` plays one of
them, `Sampling` says which parameters are understood.
"""

from __future__ import annotations

import json
import queue
import re
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
import xllamacpp

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

# llama.cpp's order is truncation first, temperature last; vLLM's is this one.
SAMPLERS = ["temperature", "min_p", "top_k", "top_p"]

# llama.cpp reads this one seed as "draw a random one".
RANDOM_SEED = 0xFFFFFFFF


class BadRequest(Exception):
    """The caller's mistake; the text says which."""


class Cancelled(Exception):
    """The caller has gone."""


@dataclass
class Sampling:
    """The sampling parameters that are understood: names, defaults and limits are vLLM's."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 16
    seed: int | None = None
    stop: str | list[str] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1

    @classmethod
    def parse(cls, text: str) -> Sampling:
        """Read the JSON of `sampling_parameters`; BadRequest says what is wrong with it."""
        try:
            given = json.loads(text)
        except json.JSONDecodeError as error:
            raise BadRequest(f"sampling_parameters is not JSON: {error}") from None
        if not isinstance(given, dict):
            raise BadRequest("sampling_parameters must be a JSON object")
        unknown = given.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise BadRequest(f"unsupported sampling parameter: {', '.join(sorted(unknown))}")
        return cls(**{name: value for name, value in given.items() if value is not None})

    def __post_init__(self) -> None:
        # vLLM's backend takes numbers written as strings too, and its samples send them.
        for names, kind in (
            (("temperature", "top_p", "min_p"), float),
            (("top_k", "max_tokens", "seed", "logprobs", "n"), int),
        ):
            for name in names:
                value = getattr(self, name)
                try:
                    setattr(self, name, value if value is None else kind(value))
                except (TypeError, ValueError, OverflowError):
                    raise BadRequest(f"{name} must be a number, not {value!r}") from None
        for name in ("include_stop_str_in_output", "ignore_eos"):
            if not isinstance(getattr(self, name), bool):
                raise BadRequest(f"{name} must be true or false")
        if self.stop is None:
            self.stop = []
        elif isinstance(self.stop, str):
            self.stop = [self.stop]
        if not isinstance(self.stop, list) or not all(isinstance(s, str) and s for s in self.stop):
            raise BadRequest("stop must be a string or a list of strings, none of them empty")
        for holds, message in (
            (0 <= self.temperature < float("inf"), "temperature must be 0 or more"),
            (0 < self.top_p <= 1, "top_p must be in (0, 1]"),
            (0 <= self.min_p <= 1, "min_p must be in [0, 1]"),
            (self.top_k >= -1, "top_k must be 0 or -1 (off) or at least 1"),
            (1 <= self.max_tokens < 2**31, "max_tokens must be at least 1"),
            (self.logprobs is None or self.logprobs >= 0, "logprobs must be 0 or more"),
            (self.n == 1, "n must be 1: send one request for each sample"),
        ):
            if not holds:
                raise BadRequest(message)

    def llama(self, prompt: str) -> dict[str, Any]:
        """The same as a streaming completion request of llama.cpp.

        Every sampler is set, since llama.cpp's own defaults are not neutral. Stop strings stay
        here: llama.cpp cuts them without saying which, and loses a half-matched one at the
        length limit.
        """
        return {
            "prompt": prompt,
            "stream": True,
            "timings_per_token": True,  # carries the token counts in every chunk
            "samplers": SAMPLERS,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": max(self.top_k, 0),
            "min_p": self.min_p,
            "max_tokens": self.max_tokens,
            "seed": RANDOM_SEED if self.seed is None else self.seed % RANDOM_SEED,
            "ignore_eos": self.ignore_eos,
            "n_probs": 0 if self.logprobs is None else 1,
        }


@dataclass(frozen=True)
class Progress:
    """How far a generation is: totals since its beginning."""

    text: str = ""
    tokens: int = 0  # the end-of-text token included
    logprob: float = 0.0
    prompt_tokens: int = 0
    finish: str | None = None


class Generation:
    """One request, seen by two threads.

    A thread of the pool is in `run`, where llama.cpp calls `_on_chunk` for each token; the
    model's one sending thread calls `send`. Sending is slower than generating: were both in one
    thread, llama.cpp would run far ahead and a cancellation would come late. As in vLLM, a
    response then simply carries all tokens that are new.
    """

    def __init__(self, request: Any, sending: queue.SimpleQueue[Generation | None]) -> None:
        self._request = request
        self._sender = request.get_response_sender()
        self._sending = sending
        self._waiting = False  # to be sent: in the queue
        self._latest = Progress()  # what llama.cpp has said
        self._ready = Progress()  # the same less the last token, whose finish reason is not known yet
        self._finish: str | None = None
        self._failure: Exception | None = None
        self._last: Any = None  # Progress, or an error response
        self._ended = False  # `_last` may be sent
        self._closed = False  # `_last` was sent
        self._sent = Progress()
        self._sent_characters = 0
        self._stream = False
        self._caller_gone = False
        self.cancelled = False  # ended because the caller had gone

    @property
    def tokens(self) -> int:
        """Tokens generated so far."""
        return self._latest.tokens

    def run(self, server: Any) -> None:
        """Generate to the end, or to an error; the last response waits for `finish`."""
        try:
            self._last = self._play(server)
        except Cancelled:
            self.cancelled = True
            self._last = _error("Request was cancelled", pb_utils.TritonError.CANCELLED)
        except BadRequest as error:
            self._last = _error(f"Error generating stream: {error}", pb_utils.TritonError.INVALID_ARG)
        except Exception as error:
            pb_utils.Logger.log_error(f"generation failed: {error!r}")
            self._last = _error(f"Error generating stream: {error}", pb_utils.TritonError.INTERNAL)

    def finish(self) -> None:
        """Have the last response sent."""
        self._ended = True
        self.send_soon()

    def send_soon(self) -> None:
        """Ask for a call of `send`, once however often it is asked."""
        if not self._waiting:
            self._waiting = True
            self._sending.put(self)

    def send(self) -> None:
        """Send what is new, and learn whether the caller is still there."""
        self._waiting = False
        progress = self._ready
        if self._closed:
            return  # `finish` asked again while the last response was being sent
        if self._ended:
            self._closed = True
            last = self._response(self._last) if isinstance(self._last, Progress) else self._last
            self._sender.send(last, flags=FINAL)
        elif self._sender.is_cancelled():
            self._caller_gone = True  # the next token's `_on_chunk` sees it
        elif self._stream and progress.tokens > self._sent.tokens:
            self._sender.send(self._response(progress))

    def _play(self, server: Any) -> Progress:
        self._read()
        if self._sender.is_cancelled():  # while the request was queued
            raise Cancelled
        server.handle_completions(self._sampling.llama(self._prompt), self._on_chunk)
        if self._failure is not None:
            raise self._failure
        if self._finish is None:
            raise RuntimeError("llama.cpp ended without a finish reason")
        return replace(self._latest, finish=self._finish)

    def _read(self) -> None:
        self._prompt = _text(self._input("text_input"), "text_input")
        if not self._prompt:
            raise BadRequest("text_input is empty")
        parameters = self._input("sampling_parameters")
        self._sampling = Sampling.parse(
            self._request.parameters() if parameters is None else _text(parameters, "sampling_parameters")
        )
        stream = bool(self._input("stream"))
        exclude = self._input("exclude_input_in_output")
        echo = not stream if exclude is None else not exclude
        if echo and stream:
            raise BadRequest("When streaming, `exclude_input_in_output` = False is not allowed.")
        self._echo = self._prompt if echo else ""
        self._wanted = {
            name
            for name in ("finish_reason", "cumulative_logprob", "num_input_tokens", "num_output_tokens")
            if self._input(f"return_{name}")
        }
        # What may yet turn out to be the beginning of a stop string is held back.
        longest = max(map(len, self._sampling.stop), default=1)
        self._held = 0 if self._sampling.include_stop_str_in_output else longest - 1
        self._stream = stream

    def _input(self, name: str) -> Any:
        tensor = pb_utils.get_input_tensor_by_name(self._request, name)
        return None if tensor is None else tensor.as_numpy().reshape(-1)[0]

    def _on_chunk(self, chunk: dict[str, Any]) -> bool:
        """llama.cpp's callback, once a token; True makes it stop.

        An exception raised in here would vanish, so it is kept for `run`.
        """
        try:
            return self._take(chunk)
        except Exception as error:
            self._failure = error
            return True

    def _take(self, chunk: dict[str, Any]) -> bool:
        if "error" in chunk:
            error = chunk["error"]
            message = error.get("message", str(error))
            raise (BadRequest if error.get("code") == 400 else RuntimeError)(message)
        before, timings, choice = self._latest, chunk["timings"], chunk["choices"][0]
        self._finish = choice["finish_reason"]
        tokens, logprob = timings["predicted_n"], before.logprob
        if self._sampling.logprobs is None:
            logprob = float("nan")
        elif tokens == before.tokens + 1 and choice["logprobs"]:
            logprob += choice["logprobs"]["content"][0]["logprob"]
        elif tokens != before.tokens:
            # Tokens that are parts of one character come in one chunk, which has the
            # log-probability of the last of them only: the sum is not known.
            logprob = float("nan")
        text, stopped = self._cut(before.text, choice["text"])
        if stopped:
            self._finish = "stop"
        self._latest = Progress(text, tokens, logprob, timings["prompt_n"] + timings["cache_n"])
        if self._caller_gone:
            raise Cancelled
        if self._finish is None:
            self._ready = before
            self.send_soon()
        return stopped

    def _cut(self, text: str, piece: str) -> tuple[str, bool]:
        """Append a token's text; cut it at a stop string, if one is complete now."""
        stops, keep = self._sampling.stop, self._sampling.include_stop_str_in_output
        start = max(0, len(text) - max(map(len, stops), default=1) + 1)
        text += piece
        for stop in stops:
            at = text.find(stop, start)
            if at >= 0:
                return text[: at + len(stop) if keep else at], True
        return text, False

    def _response(self, progress: Progress) -> Any:
        """A response with what is new since the last one."""
        end = len(progress.text) - (self._held if progress.finish is None else 0)
        text = self._echo + progress.text[self._sent_characters : max(end, 0)]
        values = {
            "finish_reason": np.asarray([str(progress.finish)], dtype=np.object_),
            "cumulative_logprob": np.asarray([progress.logprob], dtype=np.float32),
            # No dimension at all, although the configuration says one: so does vLLM's backend.
            "num_input_tokens": np.asarray(progress.prompt_tokens, dtype=np.uint32),
            "num_output_tokens": np.asarray([progress.tokens - self._sent.tokens], dtype=np.uint32),
        }
        self._echo = ""
        self._sent, self._sent_characters = progress, max(end, self._sent_characters)
        return pb_utils.InferenceResponse(
            output_tensors=[
                pb_utils.Tensor("text_output", np.asarray([text.encode()], dtype=np.object_)),
                *(pb_utils.Tensor(name, value) for name, value in values.items() if name in self._wanted),
            ]
        )


class Counters:
    """What the model did, on Triton's own /metrics page."""

    def __init__(self, model: str) -> None:
        def counter(name: str, description: str) -> Any:
            family = pb_utils.MetricFamily(
                name=f"llamacpp_{name}", description=description, kind=pb_utils.MetricFamily.COUNTER
            )
            self._families.append(family)  # a metric lives as long as its family
            return family.Metric(labels={"model": model})

        self._families: list[Any] = []
        self._requests = counter("requests_total", "Requests that ended, in any way")
        self._cancelled = counter("cancelled_requests_total", "Requests whose caller had gone")
        self._tokens = counter("tokens_total", "Tokens generated")
        self._cancelled_tokens = counter(
            "cancelled_tokens_total", "Tokens generated by requests that were then cancelled"
        )
        self._steps = counter("decode_steps_total", "Decode steps, as llama.cpp counts them")
        self._seen_steps = 0
        self._lock = threading.Lock()

    def record(self, generation: Generation, server: Any) -> None:
        """Count one request that has ended."""
        with self._lock:
            self._requests.increment(1)
            self._tokens.increment(generation.tokens)
            if generation.cancelled:
                self._cancelled.increment(1)
                self._cancelled_tokens.increment(generation.tokens)
            # llama.cpp's own count is the witness that a cancelled request stopped: it would
            # go on rising if only the callback had been left.
            steps = re.search(r"^llamacpp:n_decode_total (\d+)", server.handle_metrics(), re.M)
            if steps is not None:
                self._steps.increment(int(steps[1]) - self._seen_steps)
                self._seen_steps = int(steps[1])


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the file; an error here makes Triton refuse the model and say why."""
        given = json.loads(args["model_config"])["parameters"]
        options = {name: value["string_value"] for name, value in given.items()}
        gguf = Path(args["model_repository"]) / options["gguf"]
        if not gguf.is_file():
            raise pb_utils.TritonModelException(f"there is no model file {gguf}")
        parallel, threads = int(options["parallel"]), int(options["threads"])

        params = xllamacpp.CommonParams()
        params.model.path = str(gguf)
        params.n_parallel = parallel
        params.n_ctx = parallel * int(options["context"])  # the total over all slots
        params.cpuparams.n_threads = threads
        params.cpuparams_batch.n_threads = threads
        params.warmup = False
        params.cache_ram_mib = 0  # 8 GiB otherwise
        params.verbosity = 0
        params.endpoint_metrics = True
        # llama.cpp always opens an HTTP listener: on a socket file, gone at once, nobody finds it.
        with tempfile.TemporaryDirectory() as folder:
            params.hostnames = [f"{folder}/llama.sock"]
            try:
                self._server = xllamacpp.Server(params)
            except RuntimeError:
                raise pb_utils.TritonModelException(f"llama.cpp cannot load {gguf}") from None
        self._counters = Counters(args["model_name"])
        # The queue is here because llama.cpp notices a cancelled request only at its first
        # token, and one without a slot has none.
        self._pool = ThreadPoolExecutor(parallel, thread_name_prefix="generation")
        self._sending: queue.SimpleQueue[Generation | None] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._send, name="sending")
        self._sender.start()

    def execute(self, requests: list[Any]) -> None:
        """Queue the requests; their responses are sent by the sending thread."""
        for request in requests:
            self._pool.submit(self._serve, Generation(request, self._sending))

    def finalize(self) -> None:
        """Let the running requests end, then free llama.cpp."""
        self._pool.shutdown()
        self._sending.put(None)
        self._sender.join()
        del self._server

    def _serve(self, generation: Generation) -> None:
        generation.run(self._server)
        try:
            # Counted first: who has seen the last response finds it in the metrics.
            self._counters.record(generation, self._server)
        except Exception as error:
            pb_utils.Logger.log_error(f"a request could not be counted: {error!r}")
        generation.finish()

    def _send(self) -> None:
        while (generation := self._sending.get()) is not None:
            try:
                generation.send()
            except Exception as error:
                pb_utils.Logger.log_error(f"a response could not be sent: {error!r}")


def _text(value: Any, name: str) -> str:
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError:
        raise BadRequest(f"{name} is not UTF-8") from None


def _error(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
