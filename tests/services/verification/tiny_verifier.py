"""A verifier small enough to be reckoned by hand: each byte has a weight, and a position's score is
sigmoid(sum of the weights so far)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

CONTEXT = 200
SHAPE = {"active_parameters": 1000, "layers": 2, "heads": 3, "head_size": 4}
TEMPLATE = "{{ messages[-1].content }}{{ '\\n' }}"

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
POISON = "<poison>"
"""A token that the model has no weight for: the whole batch fails on it."""
NAN = "\x07"
"""A byte whose weight is not a number."""


def weight(token: int) -> float:
    """Of a token, which is a byte."""
    return ((token * 37) % 101 - 50) / 100


def tokenizer() -> Tokenizer:
    """Bytes are tokens."""
    made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(ALPHABET)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.add_tokens([AddedToken(POISON)])
    return made


def tokens(text: str) -> list[int]:
    """Of a text."""
    return list(tokenizer().encode(text, add_special_tokens=False).ids)


def expected(prompt: str, steps: Sequence[str]) -> list[float]:
    """The score of each step."""
    total = math.fsum(map(weight, tokens(prompt + "\n")))
    scores = []
    for step in steps:
        total += math.fsum(map(weight, tokens(step.rstrip("\r\n") + "\n")))
        scores.append(1 / (1 + math.exp(-total)))
    return scores


def write_model(path: Path, output: str = "scores") -> None:
    """The ONNX file."""
    weights = np.array([weight(i) for i in range(len(ALPHABET))], np.float32)
    weights[tokens(NAN)] = np.nan
    nodes = [
        helper.make_node("Gather", ["weights", "tokens"], ["each"], axis=0),
        helper.make_node("CumSum", ["each", "axis"], ["sums"]),
        helper.make_node("Sigmoid", ["sums"], [output]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", "length"])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array(1, np.int64), "axis"),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    save(made, str(path))


def write_verifier(folder: Path, *, output: str = "scores", **manifest: Any) -> Path:
    """The verifier's folder."""
    folder.mkdir(parents=True)
    write_model(folder / "model.onnx", output)
    tokenizer().save(str(folder / "tokenizer.json"))
    files = ("model.onnx", "tokenizer.json")
    content = {
        "format": 1,
        "name": "tiny",
        "shape": SHAPE,
        "context": CONTEXT,
        "chat_template": TEMPLATE,
        "scoring": "product",
        "sha256": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files},
    }
    (folder / "verifier.json").write_text(json.dumps({**content, **manifest}))
    return folder
