"""A Triton python-backend model that scores the steps of a chain by a reward model in ONNX form.

docker/triton/README.md has the tensors. A request is one chain: its prompt, as it is, and the text of
each step; scores for the steps come back, and the number of tokens that were read. It runs inside
Triton's stub process; nothing of isoflop is imported here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import tokenizers
import triton_python_backend_utils as pb_utils


class BadRequest(Exception):
    """The caller's mistake; the text says which."""


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the files; an error here makes Triton refuse the model and say why."""
        given = json.loads(args["model_config"])["parameters"]
        options = {name: value["string_value"] for name, value in given.items()}
        folder = Path(args["model_repository"]) / options["folder"]
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = int(options["threads"])
        settings.inter_op_num_threads = 1
        # Threads that wait by spinning take the processors from everybody else.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._context = int(json.loads((folder / "verifier.json").read_text())["context"])
            self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._session = onnxruntime.InferenceSession(str(folder / "model.onnx"), settings)
        except Exception as error:
            raise pb_utils.TritonModelException(f"{folder} is no usable verifier: {error}") from None
        # No text of more bytes than this can fit; a tokenizer might take minutes to say so.
        self._most_bytes = self._context * max(len(token.encode()) for token in self._tokenizer.get_vocab())

    def execute(self, requests: list[Any]) -> list[Any]:
        """A response for each request; one that fails does so alone."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            tokens, ends = self._encode(_texts(request, "prompt"), _texts(request, "steps"))
            (scores,) = self._session.run(["scores"], {"tokens": tokens[None, :]})
            outputs = {
                "scores": scores[0, ends].astype(np.float32),
                "tokens": np.array([len(tokens)], np.int32),
            }
        except BadRequest as error:
            return _error(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:
            pb_utils.Logger.log_error(f"scoring failed: {error!r}"[:500])
            return _error("the model failed on it", pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in outputs.items()])

    def _encode(self, prompts: list[str], steps: list[str]) -> tuple[Any, list[int]]:
        """Tokens of prompt and steps, and the index of each step's last token."""
        if len(prompts) != 1 or not steps:
            raise BadRequest("prompt must have one element, and steps at least one")
        if sum(len(text.encode()) for text in (*prompts, *steps)) > self._most_bytes:
            raise BadRequest(f"it is longer than {self._context} tokens")
        tokens = self._ids(prompts[0])
        ends = []
        for step in steps:
            tokens += self._ids(step.rstrip("\r\n") + "\n")
            ends.append(len(tokens) - 1)
        if len(tokens) > self._context:
            raise BadRequest(f"it has {len(tokens)} tokens, and {self._context} can be read")
        return np.array(tokens, np.int64), ends

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _texts(request: Any, name: str) -> list[str]:
    values = pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1)
    try:
        return [bytes(value).decode() for value in values]
    except UnicodeDecodeError:
        raise BadRequest(f"{name} is not UTF-8") from None


def _error(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
