"""Run a GGUF file by llama.cpp, in-process, as the generation service does.

Kept apart from the service so that training does not depend on it. What is
known about `xllamacpp` and matters here: one thread is fastest for tiny
models; the host cache of prompts is 8 GiB unless switched off; an HTTP
listener always starts, so it is given a unix socket; errors come back as
dictionaries; `usage` counts one choice only, whatever `n` is.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import xllamacpp

PARALLEL: Final = 16
"""Sequences generated side by side."""

PURE_SAMPLING: Final[dict[str, float]] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
"""Sample from the model's own distribution: llama.cpp's defaults cut its tail."""


@dataclass(frozen=True)
class Completion:
    """One sampled text."""

    text: str
    tokens: int
    """Generated tokens, end-of-text included: one a byte."""
    is_finished: bool
    """Whether end-of-text came before the limit."""


class Engine:
    """One loaded model."""

    def __init__(self, path: Path, context: int, parallel: int = PARALLEL) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="isoflop-engine-")
        self.parallel = parallel
        self.context = context
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_parallel = parallel
        params.n_ctx = context * parallel
        params.cpuparams.n_threads = 1
        params.cpuparams_batch.n_threads = 1
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cache_ram_mib = 0
        params.warmup = False
        params.fit_params = False
        params.verbosity = 0
        params.hostnames = [str(Path(self._folder.name) / "llama.sock")]
        self._server: Any = xllamacpp.Server(params)

    def complete(self, prompt: str, *, samples: int, temperature: float, seed: int = 0) -> list[Completion]:
        """`samples` texts after `prompt`, which is taken as it is.

        Raises:
            RuntimeError: llama.cpp refused the request.
        """
        limit = self.context - len(prompt.encode()) - 1
        answer = self._server.handle_completions(
            {
                "prompt": prompt,
                "n": samples,
                "max_tokens": limit,
                "temperature": temperature,
                "seed": seed,
                **PURE_SAMPLING,
            }
        )
        if "error" in answer:
            raise RuntimeError(f"llama.cpp: {answer['error']}")
        completions = []
        for choice in answer["choices"]:
            is_finished = choice["finish_reason"] == "stop"
            tokens = len(choice["text"].encode()) + is_finished
            completions.append(Completion(choice["text"], tokens, is_finished))
        return completions
