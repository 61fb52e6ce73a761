"""A Triton python-backend model that serves a GGUF file by llama.cpp.

It speaks the tensors of Triton's vLLM backend, so that one client serves both
(docker/triton/README.md has the table and the differences). It runs inside Triton's stub
process; nothing of isoflop is imported here.

Order of reading: `Model.execute` queues each request, `Generation.run` plays one of them,
`Sampling` says which parameters are understood.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
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
        """Read the JSON of `sampling_parameters`; ValueError says what is wrong with it."""
        try:
            given = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"sampling_parameters is not JSON: {error}") from None
        if not isinstance(given, dict):
            raise ValueError("sampling_parameters must be a JSON object")
        unknown = given.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unsupported sampling parameter: {', '.join(sorted(unknown))}")
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
                    raise ValueError(f"{name} must be a number, not {value!r}") from None
        for name in ("include_stop_str_in_output", "ignore_eos"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false")
        if self.stop is None:
            self.stop = []
        elif isinstance(self.stop, str):
            self.stop = [self.stop]
        if not isinstance(self.stop, list) or not all(isinstance(s, str) and s for s in self.stop):
            raise ValueError("stop must be a string or a list of strings, none of them empty")
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
                raise ValueError(message)

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


class Text:
    """The text so far, given out as it becomes certain, and ended by a stop string."""

    def __init__(self, stop: list[str], include_stop: bool) -> None:
        self._stop = stop
        self._include_stop = include_stop
        self._all = ""
        self._sent = 0
        # What may yet turn out to be the beginning of a stop string is held back.
        self._held = 0 if include_stop else max(map(len, stop), default=1) - 1

    def add(self, piece: str) -> bool:
        """Append a token's text; True when a stop string is now complete."""
        start = max(0, len(self._all) - max(map(len, self._stop), default=1) + 1)
        self._all += piece
        for stop in self._stop:
            at = self._all.find(stop, start)
            if at >= 0:
                self._all = self._all[: at + len(stop) if self._include_stop else at]
                return True
        return False

    def take(self, finished: bool) -> str:
        """The text that is new since the last call."""
        end = len(self._all) if finished else max(self._sent, len(self._all) - self._held)
        new, self._sent = self._all[self._sent : end], end
        return new


class Cancelled(Exception):
    """The caller has gone."""


class Generation:
    """One request: its inputs, what llama.cpp has said so far, and its responses."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self._sender = request.get_response_sender()
        self.tokens = 0  # generated so far, the end-of-text token included
        self.cancelled = False
        self._reported = 0
        self._prompt_tokens = 0
        self._logprob = 0.0
        self._finish: str | None = None
        self._failure: Exception | None = None

    def run(self, server: Any) -> Any:
        """Generate and send all responses but the last, which is returned."""
        try:
            self._read()
            self._check_caller()  # it may have gone while the request was queued
            server.handle_completions(self._sampling.llama(self._prompt), self._on_chunk)
            if self._failure is not None:
                raise self._failure
            if self.tokens == 0:
                raise RuntimeError("llama.cpp generated nothing")
            return self._response(self._finish)
        except Cancelled:
            self.cancelled = True
            return _error("Request was cancelled", pb_utils.TritonError.CANCELLED)
        except ValueError as error:
            return _error(f"Error generating stream: {error}", pb_utils.TritonError.INVALID_ARG)
        except Exception as error:
            pb_utils.Logger.log_error(f"generation failed: {error!r}")
            return _error(f"Error generating stream: {error}", pb_utils.TritonError.INTERNAL)

    def finish(self, response: Any) -> None:
        """Send the last response."""
        self._sender.send(response, flags=FINAL)

    def _read(self) -> None:
        self._prompt = _text(self._input("text_input"), "text_input")
        if not self._prompt:
            raise ValueError("text_input is empty")
        parameters = self._input("sampling_parameters")
        self._sampling = Sampling.parse(
            self._request.parameters()
            if parameters is None
            else _text(parameters, "sampling_parameters")
        )
        self._stream = bool(self._input("stream"))
        exclude = self._input("exclude_input_in_output")
        echo = not self._stream if exclude is None else not exclude
        if echo and self._stream:
            raise ValueError("When streaming, `exclude_input_in_output` = False is not allowed.")
        self._echo = self._prompt if echo else ""
        self._wants = {
            name
            for name in (
                "finish_reason",
                "cumulative_logprob",
                "num_input_tokens",
                "num_output_tokens",
            )
            if self._input(f"return_{name}")
        }
        self._text = Text(self._sampling.stop, self._sampling.include_stop_str_in_output)

    def _input(self, name: str) -> Any:
        tensor = pb_utils.get_input_tensor_by_name(self._request, name)
        return None if tensor is None else tensor.as_numpy().reshape(-1)[0]

    def _check_caller(self) -> None:
        if self._sender.is_cancelled():
            raise Cancelled

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
            raise (ValueError if error.get("code") == 400 else RuntimeError)(message)
        choice = chunk["choices"][0]
        if choice["finish_reason"] is not None:
            self._finish = choice["finish_reason"]
            return False
        # The last token's response also says why it was the last, so each is sent when the
        # next token arrives.
        if self._stream and self.tokens:
            self._sender.send(self._response(None))
        timings = chunk["timings"]
        new = timings["predicted_n"] - self.tokens
        self.tokens = timings["predicted_n"]
        self._prompt_tokens = timings["prompt_n"] + timings["cache_n"]
        if self._sampling.logprobs is None:
            self._logprob = float("nan")
        elif new == 1:
            self._logprob += choice["logprobs"]["content"][0]["logprob"]
        else:
            # Tokens that are parts of one character come in one chunk, which has the
            # log-probability of the last of them only: the sum is not known.
            self._logprob = float("nan")
        self._check_caller()
        if self._text.add(choice["text"]):
            self._finish = "stop"
            return True
        return False

    def _response(self, finish: str | None) -> Any:
        """A response with what is new since the last one."""
        text = self._echo + self._text.take(finished=finish is not None)
        self._echo = ""
        new, self._reported = self.tokens - self._reported, self.tokens
        values = {
            "finish_reason": np.asarray([str(finish)], dtype=np.object_),
            "cumulative_logprob": np.asarray([self._logprob], dtype=np.float32),
            "num_input_tokens": np.asarray(self._prompt_tokens, dtype=np.uint32),
            "num_output_tokens": np.asarray([new], dtype=np.uint32),
        }
        tensors = [
            pb_utils.Tensor("text_output", np.asarray([text.encode()], dtype=np.object_)),
            *(pb_utils.Tensor(name, values[name]) for name in values if name in self._wants),
        ]
        return pb_utils.InferenceResponse(output_tensors=tensors)


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
        self._folder = tempfile.mkdtemp(prefix="triton-gguf-")

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
        # llama.cpp always opens an HTTP listener; on a socket file it takes no port.
        params.hostnames = [f"{self._folder}/llama.sock"]
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError:
            raise pb_utils.TritonModelException(f"llama.cpp cannot load {gguf}") from None
        self._counters = Counters(args["model_name"])
        # The queue is here because llama.cpp notices a cancelled request only at its first
        # token, and one without a slot has none.
        self._pool = ThreadPoolExecutor(parallel, thread_name_prefix="generation")

    def execute(self, requests: list[Any]) -> None:
        """Queue the requests; their responses are sent from the pool."""
        for request in requests:
            self._pool.submit(self._serve, Generation(request))

    def finalize(self) -> None:
        """Let the running requests end, then free llama.cpp."""
        self._pool.shutdown()
        del self._server
        shutil.rmtree(self._folder, ignore_errors=True)

    def _serve(self, generation: Generation) -> None:
        try:
            last = generation.run(self._server)
            # Counted first: who has seen the last response finds it in the metrics.
            self._counters.record(generation, self._server)
            generation.finish(last)
        except Exception as error:
            pb_utils.Logger.log_error(f"a response could not be sent: {error!r}")


def _text(value: Any, name: str) -> str:
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8") from None


def _error(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
