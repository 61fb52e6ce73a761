"""Embedded generation: a GGUF file, run in this process by llama.cpp (xllamacpp).

What is known of the engine, and dealt with here:

- A completion blocks, so each runs in a thread; a sample waits for its slot outside of the engine,
  where waiting can be aborted at once.
- Each slot has a cache of its own, and the engine looks for a slot when a completion begins, whatever will
  be asked next. Which slot it is to be is said with each completion (`slots.py`).
- A callback that returns True cancels the completion within a few decode steps.
- Errors come back as messages, not as exceptions.
- Counts are taken from each chunk's timings, so that an aborted sample is billed exactly.
- An HTTP listener always starts: it gets a socket file in a private folder.
- Log-probabilities are those of the model at temperature 1.
- A stop text vanishes from the text, and ends a sample as the end of text does: its last token tells which.
- Where a small model drafts, no log-probabilities come, and so no word of which token was the last. Chunks of
  tokens that were checked together tell the counts after all of them. What the small model computed is not
  told: it reads all that the large one computes, and computes once more each token that it drafts.
- A chunk for each token, each of which wakes every thread that waits, takes a third of the time of a tiny
  model. Where nobody reads along or aborts, as in bulk sampling, samples may come whole.
"""

from __future__ import annotations

import asyncio
import json
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.errors import InvalidArgument, IsoflopError, Unavailable
from isoflop.v1.common_pb2 import (
    FINISH_REASON_ABORTED,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STEP,
    FINISH_REASON_STOP,
    SEED_PROMISE_ALONE,
    Capabilities,
    Draft,
    Model,
    Shape,
)

from services.common.catalog import CatalogError
from services.common.template import ChatTemplate
from services.generation.backends import NEVER_STARTED, Check, End, Job, Piece, Round
from services.generation.backends.slots import Slots
from services.generation.catalog import LlamaCppEntry

DRAFTS = Capabilities(prefix=True, seed=SEED_PROMISE_ALONE, abort_one=True)
"""Of a model for which another one drafts."""
CAPABILITIES = Capabilities(prefix=True, seed=SEED_PROMISE_ALONE, logprobs=True, abort_one=True, steps=True)


class LlamaCppBackend:
    """Serves one GGUF file."""

    def __init__(self, entry: LlamaCppEntry, folder: Path, currency: str, *, whole: bool = False) -> None:
        """Load the model; raises CatalogError where the file is missing or damaged.

        Args:
            entry: The model's entry in the catalogue.
            folder: Where its path begins.
            currency: Of its price.
            whole: A sample comes when it is complete, and runs on to its end where it is aborted; for bulk
                sampling, 1.6 times as fast. Not where another model drafts.
        """
        path = folder / entry.path
        draft = folder / entry.draft.path if entry.draft else None
        for file in (path, draft):
            if file and not file.is_file():
                raise CatalogError(f"model {entry.name}: there is no file {file}")
        try:
            import xllamacpp
        except ImportError:
            raise CatalogError(
                f"model {entry.name}: llama.cpp is not installed; pip install 'isoflop-suite[llamacpp]'"
            ) from None
        try:
            header = Header.read(file := path)
            self._template = ChatTemplate(
                entry.chat_template or header.chat_template, header.bos_token, header.eos_token
            )
            drafts = Header.read(file := draft) if draft else None
        except (ValueError, KeyError, IndexError, OverflowError, struct.error, OSError) as error:
            raise CatalogError(f"model {entry.name}: {file} is not a usable GGUF file ({error})") from None
        if drafts and drafts.vocabulary != header.vocabulary:
            # The engine would say nothing, and go without.
            raise CatalogError(
                f"model {entry.name}: {draft} has another vocabulary; take a draft of the same tokens"
            )
        context = entry.context or header.context
        self.model = Model(
            name=entry.name,
            backend="llamacpp",
            shape=entry.shape.message() if entry.shape else header.shape,
            context=context,
            price=entry.price.message(currency),
            capabilities=DRAFTS if drafts else CAPABILITIES,
        )
        if entry.draft and drafts:
            self.model.draft.CopyFrom(Draft(shape=drafts.shape, tokens=entry.draft.tokens))
            # Only as it is made can be told what was checked together.
            whole = False
        if whole:
            self.model.capabilities.abort_one = False
        self._whole = whole
        self._ends = header.ends
        self._sockets = tempfile.TemporaryDirectory(prefix="isoflop-")
        try:
            self._server: Any = xllamacpp.Server(
                _parameters(xllamacpp, entry, path, draft, context, f"{self._sockets.name}/llama.sock")
            )
        except RuntimeError as error:
            raise CatalogError(f"model {entry.name}: llama.cpp cannot load {path} ({error})") from None
        # Freed before its loop runs, the engine would wait for the loop's end for ever: let it answer once.
        self._server.handle_completions({"prompt": "", "n_predict": 0}, lambda answer: False)
        self._slots = Slots(entry.parallel)
        self._threads = ThreadPoolExecutor(entry.parallel, thread_name_prefix=entry.name)

    async def run(self, round: Round) -> None:
        """Sample all jobs, as many at a time as there are slots.

        A job that is too long for the context ends unbegun, and the others go on; raises InvalidArgument
        where all of them are.
        """
        try:
            async with asyncio.TaskGroup() as group:
                samples = [
                    group.create_task(self._sample(round, job), name=job.sample_id) for job in round.jobs
                ]
        except* IsoflopError as errors:
            raise errors.exceptions[0] from None
        refusals = [refusal for sample in samples if (refusal := sample.result())]
        if len(refusals) == len(samples):
            raise refusals[0]

    async def close(self) -> None:
        """Free the model."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._server = None
        self._sockets.cleanup()

    async def _sample(self, round: Round, job: Job) -> InvalidArgument | None:
        """One sample to its end; why it could not begin, where the engine refuses it."""
        request = self._request(job)
        slot = await self._slot(round, job, request["prompt"])
        if slot is None:
            round.put(Piece(job.sample_id, end=NEVER_STARTED))
            return None
        completion = Completion(round, job, self._ends, asyncio.get_running_loop())
        thread = asyncio.get_running_loop().run_in_executor(
            self._threads, completion.run, self._server.handle_completions, request | {"id_slot": slot}
        )
        try:
            await asyncio.shield(thread)
        except asyncio.CancelledError:
            round.abort([job.sample_id])
            await thread
            raise
        except InvalidArgument as refusal:
            round.put(Piece(job.sample_id, end=NEVER_STARTED))
            return refusal
        finally:
            self._slots.give_back(slot, request["prompt"] + completion.text)
        return None

    async def _slot(self, round: Round, job: Job, prompt: str) -> int | None:
        """Wait for a slot; None where the job is aborted first."""
        if round.aborted(job.sample_id):
            return None
        # Only a step is short enough to be waited for.
        slot = self._slots.ask(id(round), prompt, follows=job.sampling.one_step and job.prefix != "")
        abort = asyncio.ensure_future(round.until_aborted(job.sample_id))
        taken = False
        try:
            await asyncio.wait((slot, abort), return_when=asyncio.FIRST_COMPLETED)
            taken = slot.done() and not round.aborted(job.sample_id)
        finally:
            abort.cancel()
            # A slot that came when nobody waits any more, as where the round has failed, is given back.
            if not slot.cancel() and not taken:
                self._slots.give_back(slot.result(), "")
        return slot.result() if taken else None

    def _request(self, job: Job) -> dict[str, Any]:
        sampling = job.sampling
        request: dict[str, Any] = {
            "prompt": self._template.render(job.messages, job.prefix),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p or 1.0,
            # The model's own distribution: none of the engine's other samplers, which also take their time.
            "samplers": ["top_p", "temperature"],
            "n_predict": sampling.max_tokens or -1,
            "stop": ["\n"] if sampling.one_step else list(sampling.stop),
            "stream": not self._whole,
            "cache_prompt": True,
            "n_probs": int(self.model.capabilities.logprobs),
            "timings_per_token": True,
        }
        if job.seed is not None:
            # The largest number asks the engine for a seed of its own choice.
            request["seed"] = job.seed % ((1 << 32) - 1)
        return request


class Completion:
    """One completion in its thread: collects chunks into pieces, a step at a time unless text is streamed."""

    def __init__(self, round: Round, job: Job, ends: frozenset[int], loop: asyncio.AbstractEventLoop) -> None:
        """`ends`: the tokens with which the model ends a text."""
        self._round = round
        self._job = job
        self._ends = ends
        self._loop = loop
        self._token = -1
        """The last that came."""
        self._text = ""
        self._before: list[str] = []
        """What was put into pieces."""
        self._logprob: float | None = None
        """None until one is told: bytes that are no character yet come without."""
        self._counted = 0
        """Tokens that were put into pieces."""
        self._timings: dict[str, Any] = {}
        self._checked: list[dict[str, Any]] = []
        """Of tokens that were checked together, what was told with the first."""
        self._error: IsoflopError | None = None
        self._reason = FINISH_REASON_ABORTED

    def run(self, complete: Callable[..., Any], request: dict[str, Any]) -> None:
        """Blocks until the completion has ended; raises IsoflopError."""
        complete(request, self._chunk if request["stream"] else self._answer)
        if self._error:
            raise self._error
        self._flush(self._end())

    @property
    def text(self) -> str:
        """All that has come."""
        return "".join(self._before) + self._text

    def _chunk(self, chunk: dict[str, Any]) -> bool:
        """Called by the engine for each chunk; True cancels. Must not raise: the engine would swallow it."""
        if "error" in chunk:
            self._error = _error(chunk["error"])
            return True
        choice = chunk["choices"][0]
        text: str = choice["text"]
        before, line_end, after = text.rpartition("\n")
        if line_end and after:
            # A line end that was held back, as a stop text might have begun with it: the step ends there.
            self._text += before + line_end
            self._flush(None)
            text = after
        if timings := chunk.get("timings"):
            if timings.get("draft_n", 0) > self._timings.get("draft_n", 0):
                self._checked.append(timings)
            self._timings = timings
        for token in (choice.get("logprobs") or {}).get("content") or ():
            self._logprob = (self._logprob or 0.0) + token["logprob"]
            self._token = token["id"]
        self._text += text
        if choice.get("finish_reason"):
            self._reason = FINISH_REASON_LENGTH if choice["finish_reason"] == "length" else FINISH_REASON_STOP
            if self._reason == FINISH_REASON_STOP and self._job.sampling.one_step:
                self._end_of_step()
        elif self._text.endswith("\n") or (self._text and self._round.stream_text):
            self._flush(None)
        return self._round.aborted(self._job.sample_id)

    def _answer(self, answer: dict[str, Any]) -> bool:
        """Called by the engine once, with the whole sample."""
        for chunk in [answer] if "error" in answer else as_streamed(answer):
            self._chunk(chunk)
        return False

    def _end_of_step(self) -> None:
        """The engine has stopped at a line end, or the model has ended its text."""
        if self._token not in self._ends:
            self._reason = FINISH_REASON_STEP
            self._text += "\n"

    def _flush(self, end: End | None) -> None:
        self._before.append(self._text)
        generated = int(self._timings.get("predicted_n", self._counted))
        piece = Piece(self._job.sample_id, self._text, generated - self._counted, self._logprob, end)
        self._counted, self._text, self._logprob = generated, "", None
        self._loop.call_soon_threadsafe(self._round.put, piece)

    def _end(self) -> End:
        return End(
            self._reason,
            prompt_tokens=int(self._timings.get("prompt_n", 0)),
            cached_tokens=int(self._timings.get("cache_n", 0)),
            checks=checks(self._checked, int(self._timings.get("predicted_n", 0))),
        )


def checks(told: Sequence[dict[str, Any]], tokens: int) -> list[Check]:
    """What was drafted for a sample of so many tokens, by what was told with each check's first token."""
    made, drafted, passed = [], 0, 0
    ends = [*(timings["predicted_n"] - 1 for timings in told[1:]), tokens]
    for timings, end in zip(told, ends, strict=False):
        first = timings["predicted_n"]
        made.append(
            Check(
                position=timings["cache_n"] + timings["prompt_n"] + first - 1,
                drafted=timings["draft_n"] - drafted,
                # The first that came passed, or is the model's own; what passed beyond the end is not taken.
                taken=min(timings["draft_n_accepted"] - passed, end - first),
            )
        )
        drafted, passed = timings["draft_n"], timings["draft_n_accepted"]
    return made


def as_streamed(answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The chunks that a whole answer would have come in: one for each token, and one for its end."""
    choice, timings = answer["choices"][0], answer["timings"]
    rest, held = choice["text"], b""
    for count, token in enumerate((choice.get("logprobs") or {}).get("content") or (), start=1):
        held += bytes(token["bytes"])
        try:
            # Bytes that are no character yet wait for the next token's; of a stop text, no more than came.
            text, held = held.decode()[: len(rest)], b""
        except UnicodeDecodeError:
            text = ""
        rest = rest[len(text) :]
        told = {"text": text, "logprobs": {"content": [token]}}
        yield {"choices": [told], "timings": timings | {"predicted_n": count}}
    yield {"choices": [choice | {"text": rest, "logprobs": None}], "timings": timings}


def _error(error: dict[str, Any]) -> IsoflopError:
    if error.get("type") == "exceed_context_size_error":
        return InvalidArgument(
            "messages", f"{error['n_prompt_tokens']} tokens, but the model's context has {error['n_ctx']}"
        )
    return Unavailable(f"llama.cpp: {error.get('message', json.dumps(error))}")


def _parameters(
    xllamacpp: Any, entry: LlamaCppEntry, path: Path, draft: Path | None, context: int, socket: str
) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_parallel = entry.parallel
    parameters.n_ctx = context * entry.parallel
    parameters.cpuparams.n_threads = entry.threads
    parameters.cpuparams_batch.n_threads = entry.threads
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_AUTO
    parameters.cache_ram_mib = 0
    parameters.warmup = False
    parameters.verbosity = -1
    parameters.hostnames = [socket]
    if entry.draft:
        speculative = parameters.speculative
        speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        speculative.draft.mparams.path = str(draft)
        speculative.draft.n_max = entry.draft.tokens
        # Each token that it computes is one that it drafts.
        speculative.draft.p_min = 0.0
        speculative.draft.cpuparams.n_threads = entry.threads
        speculative.draft.cpuparams_batch.n_threads = entry.threads
    return parameters


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of its model."""

    shape: Shape
    """Of its tensors; where heads are padded for the kernels, `isoflop.active_parameters` and
    `isoflop.head_size` tell what they were without."""
    context: int
    """Tokens of prompt and sample together."""
    chat_template: str
    vocabulary: Sequence[str]
    """All tokens."""
    bos_token: str
    eos_token: str
    ends: frozenset[int]
    """Tokens with which the model ends a text, or its turn."""

    @classmethod
    def read(cls, path: Path) -> Header:
        """Read it; raises ValueError, KeyError or struct.error where the file is damaged."""
        import gguf

        reader = gguf.GGUFReader(path)

        def value(key: str, default: Any = None) -> Any:
            field = reader.get_field(key)
            if field is None:
                if default is None:
                    raise KeyError(f"it does not say {key}")
                return default
            return field.contents()

        def token(key: str) -> str:
            number = value(f"tokenizer.ggml.{key}_token_id", -1)
            return str(vocabulary[number]) if number >= 0 else ""

        vocabulary = value("tokenizer.ggml.tokens")
        family = value("general.architecture")
        heads = value(f"{family}.attention.head_count")
        heads = max(heads) if isinstance(heads, list) else heads
        experts = value(f"{family}.expert_count", 0)
        share = value(f"{family}.expert_used_count", 0) / experts if experts else 1.0
        sizes = {tensor.name: int(tensor.n_elements) for tensor in reader.tensors}
        active = sum(size * (share if "_exps" in name else 1.0) for name, size in sizes.items())
        if "output.weight" in sizes:
            # Embeddings that are not tied are looked up, not multiplied.
            active -= sizes["token_embd.weight"]
        width = value(f"{family}.attention.key_length", value(f"{family}.embedding_length") // heads)
        return cls(
            Shape(
                active_parameters=value("isoflop.active_parameters", int(active)),
                layers=value(f"{family}.block_count"),
                heads=heads,
                head_size=value("isoflop.head_size", width),
                window=value(f"{family}.attention.sliding_window", 0),
            ),
            context=value(f"{family}.context_length"),
            chat_template=value("tokenizer.chat_template", "") or "",
            vocabulary=vocabulary,
            bos_token=token("bos"),
            eos_token=token("eos"),
            ends=frozenset(value(f"tokenizer.ggml.{key}_token_id", -1) for key in ("eos", "eot", "eom")),
        )
