"""Sentence embeddings, by onnxruntime: an option, since they cost a thousand times what the features do.

The folder is what `python -m training.embedding` writes. Needs the extra `onnx`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from isoflop.v1.common_pb2 import Shape
from numpy.typing import NDArray

from services.common.flops import with_attention

AT_ONCE = 16
"""Texts in one run of the model: more would only wait for memory."""


class EmbeddingError(Exception):
    """An embedding cannot be loaded; `str(error)` says where and why."""


class Embedding:
    """A sentence-embedding model. Its methods block: call them in a thread."""

    def __init__(self, folder: Path, max_tokens: int = 0, threads: int = 1) -> None:
        """Load a folder; `max_tokens` 0 takes what the model was trained with.

        Raises EmbeddingError, also where the extra is not installed.
        """
        try:
            import onnxruntime
            from tokenizers import Tokenizer
        except ImportError as error:
            extra = "pip install 'isoflop-suite[onnx]'"
            raise EmbeddingError(f"embedding {folder}: {error.name} is missing: {extra}") from None
        try:
            about = json.loads((folder / "embedding.json").read_text(encoding="utf-8"))
            self.name = str(about["name"])
            self.dimensions = int(about["dimensions"])
            self._shape = Shape(
                active_parameters=about["active_parameters"],
                layers=about["layers"],
                heads=about["heads"],
                head_size=self.dimensions // about["heads"],
            )
            most = int(about["max_tokens"])
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._tokenizer.enable_truncation(min(max_tokens or most, most))
            self._tokenizer.enable_padding()
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.log_severity_level = 4
            self._session = onnxruntime.InferenceSession(
                str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
            )
        except OSError as error:
            raise EmbeddingError(f"embedding {folder}: {error.filename}: {error.strerror}") from None
        # onnxruntime and tokenizers raise classes of their own, straight below Exception.
        except Exception as error:
            reason = str(error).splitlines()[0][:200]
            raise EmbeddingError(f"embedding {folder}: not an embedding ({reason})") from None

    def embed(self, texts: Sequence[str]) -> tuple[NDArray[np.float64], float]:
        """The embeddings, shape (texts, dimensions), each of length 1; and the FLOPs that they took."""
        found, flops = np.empty((len(texts), self.dimensions)), 0.0
        # Texts of like length go together: shorter ones are padded to the longest, and padding is computed.
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
        for first in range(0, len(order), AT_ONCE):
            chosen = order[first : first + AT_ONCE]
            # Halves of pairs are no text, and the tokenizer refuses them.
            clean = [texts[at].encode("utf-8", "replace").decode("utf-8") for at in chosen]
            encoded = self._tokenizer.encode_batch(clean)
            given = {
                "input_ids": np.array([one.ids for one in encoded], dtype=np.int64),
                "attention_mask": np.array([one.attention_mask for one in encoded], dtype=np.int64),
            }
            (found[chosen],) = self._session.run(["embedding"], given)
            count, tokens = given["input_ids"].shape
            flops += count * with_attention(self._shape, tokens, tokens * tokens)
        return found, flops
