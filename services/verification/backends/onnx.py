"""Embedded verification: a process reward model in ONNX form, run in this process by onnxruntime.

A verifier is a folder:

    model.onnx       input `tokens` int64 [batch, length], padded on the right with anything (the model is
                     causal); output `scores` float32 [batch, length]: at each position the chance that the
                     step that ends with this token is right
    tokenizer.json   a Hugging Face `tokenizers` file
    verifier.json    what `Manifest` says below

The prompt is encoded apart from the steps, and each step apart from the others (its text without trailing
line ends, and one line end), so that positions are known. One forward pass scores every step of a batch of
chains; chains of concurrent requests share batches. A chain is billed its own tokens; padding is nobody's.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import structlog
from isoflop.v1.common_pb2 import Message
from isoflop.v1.verification_pb2 import Chain, Verifier
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from services.common.catalog import LARGEST, CatalogError, Entry, ShapeEntry
from services.common.template import ChatTemplate
from services.verification.backends import Scored, Spent, Unscorable
from services.verification.batching import Batcher
from services.verification.catalog import OnnxEntry, ScoringName
from services.verification.steps import texts

log = structlog.get_logger()

MODEL, TOKENIZER, MANIFEST = "model.onnx", "tokenizer.json", "verifier.json"
"""Files of a verifier's folder."""


class Manifest(Entry):
    """verifier.json."""

    format: Literal[1]
    """Number of this form."""
    name: str
    """The name that it was made under."""
    shape: ShapeEntry
    """What FLOPs depend on."""
    context: int = Field(ge=1, le=LARGEST)
    """Most tokens of prompt and chain together."""
    chat_template: str
    """Jinja template of the prompt; empty: the bare text of the last message."""
    scoring: ScoringName
    """From the scores of steps to the score of a chain: the rule that served best on calibration labels."""
    sha256: dict[str, str]
    """Hashes of the other files, by name."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """A chain as the model reads it."""

    tokens: NDArray[np.int64]
    """Of prompt and steps."""
    ends: NDArray[np.intp]
    """Index of each step's last token."""


class OnnxBackend:
    """Scores steps by one ONNX model."""

    whole = False

    def __init__(self, entry: OnnxEntry, folder: Path, currency: str) -> None:
        """Load the model; raises CatalogError where a file is missing, damaged or not of this form."""
        self.name = entry.name
        where = folder / entry.path
        try:
            import onnxruntime
            import tokenizers
        except ImportError:
            raise CatalogError(
                f"verifier {entry.name}: onnxruntime is not installed; pip install 'isoflop-suite[onnx]'"
            ) from None
        try:
            manifest = _manifest(where)
            self._template = ChatTemplate(manifest.chat_template)
        except ValueError as error:
            raise CatalogError(f"verifier {entry.name}: {where}: {error}") from None
        except OSError as error:
            raise CatalogError(f"verifier {entry.name}: {where}: {error.strerror}") from None
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(where / TOKENIZER))
            self._session: Any = _session(onnxruntime, where / MODEL, entry.threads)
        except Exception as error:  # Of classes that only the two libraries know.
            reason = str(error).splitlines()[0][:200]
            raise CatalogError(f"verifier {entry.name}: {where} is not usable ({reason})") from None
        self._context = manifest.context
        # No text of more bytes than this can fit; a tokenizer might take minutes to say so.
        self._most_bytes = self._context * max(len(token.encode()) for token in self._tokenizer.get_vocab())
        self._verifier = Verifier(
            name=entry.name,
            backend="onnx",
            shape=manifest.shape.message(),
            context=manifest.context,
            price=entry.price.message(currency),
            scoring=entry.scoring_or(manifest.scoring),
            extra_tokens=1,  # The line end of the last step.
        )
        self._batcher: Batcher[Encoded, list[float]] = Batcher(
            self._forward,
            lambda encoded: len(encoded.tokens),
            max_batch=entry.max_batch_tokens,
            max_wait=entry.max_wait_ms / 1e3,
            max_waiting=entry.max_waiting,
        )

    async def describe(self) -> Verifier:
        """As its manifest and its entry say."""
        return self._verifier

    async def score(
        self, messages: Sequence[Message], chains: Sequence[Chain]
    ) -> Sequence[Scored | Unscorable]:
        """Chains go through the model in batches with those of others; too long ones have an error."""
        # A megabyte takes a tokenizer long: the event loop goes on meanwhile.
        encoded = await asyncio.to_thread(self._encode, self._template.render(messages), chains)
        ready = [one for one in encoded if isinstance(one, Encoded)]
        results = iter(await self._batcher.submit(ready))
        return [one if isinstance(one, Unscorable) else self._outcome(one, next(results)) for one in encoded]

    async def close(self) -> None:
        """Free the model."""
        await self._batcher.close()
        self._session = None

    def _encode(self, prompt: str, chains: Sequence[Chain]) -> list[Encoded | Unscorable]:
        """Each chain's tokens. Called in a thread."""
        encode = partial(self._tokenizer.encode, add_special_tokens=False)
        begin = encode(prompt).ids
        encoded: list[Encoded | Unscorable] = []
        for chain in chains:
            try:
                tokens, ends = list(begin), []
                steps = texts(chain)
                if len(chain.text.encode()) > self._most_bytes:
                    raise Unscorable(  # noqa: TRY301
                        f"it has {len(chain.text)} characters; {self.name} reads {self._context} tokens"
                    )
                for number, text in enumerate(steps, start=1):
                    tokens += encode(text.rstrip("\r\n") + "\n").ids
                    ends.append(len(tokens) - 1)
                    if len(tokens) > self._context:
                        raise Unscorable(  # noqa: TRY301
                            f"with its step {number} it has {len(tokens)} tokens; "
                            f"{self.name} reads {self._context}"
                        )
                encoded.append(Encoded(np.array(tokens, np.int64), np.array(ends, np.intp)))
            except Unscorable as error:
                encoded.append(error)
        return encoded

    def _forward(self, batch: Sequence[Encoded]) -> list[list[float]]:
        """The scores of each chain's steps. Called in a thread."""
        tokens = np.zeros((len(batch), max(len(one.tokens) for one in batch)), np.int64)
        for row, one in zip(tokens, batch, strict=True):
            row[: len(one.tokens)] = one.tokens
        (scores,) = self._session.run(["scores"], {"tokens": tokens})
        if scores.shape != tokens.shape:
            raise RuntimeError(f"the model's scores have shape {scores.shape}, its tokens {tokens.shape}")
        return [row[one.ends].tolist() for row, one in zip(scores, batch, strict=True)]

    def _outcome(self, encoded: Encoded, result: list[float] | Exception) -> Scored | Unscorable:
        if isinstance(result, Exception):
            log.warning("a forward pass failed", verifier=self.name, error=repr(result)[:500])
            return Unscorable(f"{self.name} failed on it: the service's log has the details")
        return Scored(result, Spent.reading(self._verifier.shape, len(encoded.tokens)))


def _manifest(folder: Path) -> Manifest:
    """Read verifier.json and compare the hashes; raises ValueError, or OSError where a file is not there."""
    try:
        manifest = Manifest.model_validate(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"]) or "as a whole"
        raise ValueError(f"{MANIFEST}: {where}: {fault['msg']}") from None
    for name in (MODEL, TOKENIZER):
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != manifest.sha256.get(name):
                raise ValueError(f"{name} is not the file that {MANIFEST} was written for")
    return manifest


def _session(onnxruntime: Any, path: Path, threads: int) -> Any:
    """The model, ready to run; raises ValueError where its inputs and outputs are others."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that wait by spinning take the processors from everybody else.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = [(one.name, one.type, len(one.shape)) for one in session.get_inputs()]
    outputs = [(one.name, one.type) for one in session.get_outputs()]
    if inputs != [("tokens", "tensor(int64)", 2)] or ("scores", "tensor(float)") not in outputs:
        raise ValueError(f"{MODEL} has inputs {inputs} and outputs {outputs}")
    return session
