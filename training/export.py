"""Write a checkpoint as a GGUF file that llama.cpp reads, and the hashes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import gguf
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from training.model import Decoder, Shape
from training.store import sha256_of
from training.tokens import end_of_text, merges, vocabulary

ROOT: Final = Path(__file__).resolve().parent.parent
MODELS: Final = ROOT / "models"

CHAT_TEMPLATE: Final = """\
{%- set mode = namespace(name='steps') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' and message['content'] | trim == 'think' -%}
{%- set mode.name = 'think' -%}
{%- elif message['role'] == 'user' and loop.index0 < 2 -%}
{{- message['content'] | replace('\\n', ' ') | trim + '\\n' + mode.name + ':\\n' -}}
{%- elif message['role'] == 'user' -%}
{{- message['content'] | trim + ':\\n' -}}
{%- elif message['role'] == 'assistant' -%}
{{- message['content'] | trim + '\\n' -}}
{%- endif -%}
{%- endfor -%}
"""
"""From a conversation to the modes of training/README.md: the user's problem is answered in steps, or with
checks where the system says `think`; after an answer the user may say `critique`, and then `revise`."""


def load_checkpoint(path: Path) -> tuple[Decoder, dict[str, object]]:
    """The model of a checkpoint, and the checkpoint itself."""
    state = torch.load(path, weights_only=True)
    model = Decoder(Shape(**state["recipe"]["shape"]))
    model.load_state_dict(state["model"])
    return model.eval(), state


HEAD_STEP: Final = 32
"""Heads are padded with zeros to a multiple of this: llama.cpp's kernels take so many numbers at once, and
the rest one by one, which made the attention of heads of 28 the larger half of all time."""


def padded_head(shape: Shape) -> int:
    """Width of a head in the file."""
    return -(-shape.head_size // HEAD_STEP) * HEAD_STEP


def named_tensors(model: Decoder) -> dict[str, Tensor]:
    """The weights by the names of llama.cpp; its matrices are [out, in] too.

    Rotary pairs are neighbours here as there, so nothing is permuted. Without an `output.weight` llama.cpp
    uses the embedding for the output. Padding a head changes no product; the queries are scaled as llama.cpp
    divides them by the root of the padded width.
    """
    heads, size, padded = model.shape.heads, model.shape.head_size, padded_head(model.shape)

    def rows(weight: Tensor) -> Tensor:
        """Zeros below each head: [heads * size, D] → [heads * padded, D]."""
        return functional.pad(weight.view(heads, size, -1), (0, 0, 0, padded - size)).flatten(0, 1)

    def columns(weight: Tensor) -> Tensor:
        """Zeros beside each head: [D, heads * size] → [D, heads * padded]."""
        return functional.pad(weight.view(-1, heads, size), (0, padded - size)).flatten(1)

    tensors: dict[str, Tensor] = {"token_embd.weight": model.embedding}
    for index, block in enumerate(model.blocks):
        state = block.state_dict()
        query, key, value = state["query_key_value"]
        gate, up = state["gate_up"]
        weights = {
            "attn_norm": state["attention_norm"],
            "attn_q": rows(query) * math.sqrt(padded / size),
            "attn_k": rows(key),
            "attn_v": rows(value),
            "attn_output": columns(state["attention_output"][0]),
            "ffn_norm": state["feed_forward_norm"],
            "ffn_gate": gate,
            "ffn_up": up,
            "ffn_down": state["down"][0],
        }
        tensors |= {f"blk.{index}.{name}.weight": weight for name, weight in weights.items()}
    tensors["output_norm.weight"] = model.output_norm
    return tensors


def write_gguf(model: Decoder, name: str, path: Path) -> None:
    """Write `model` in single precision, which keeps closest to torch."""
    shape, texts = model.shape, vocabulary()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_description("Solves small problems of arithmetic, one step a line, answer last.")
    writer.add_license("apache-2.0")
    writer.add_vocab_size(len(texts))
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    # Frequency i is base ^ (-2 i / width): with this base the first pairs turn as they were trained to.
    padded = padded_head(shape)
    writer.add_key_length(padded)
    writer.add_value_length(padded)
    writer.add_rope_dimension_count(padded)
    writer.add_rope_freq_base(shape.rope_base ** (padded / shape.head_size))
    # FLOPs are those of the model, not of the padding.
    writer.add_uint64("isoflop.active_parameters", shape.parameters)
    writer.add_uint32("isoflop.head_size", shape.head_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(texts)
    types = [gguf.TokenType.NORMAL] * len(texts)
    types[end_of_text()] = gguf.TokenType.CONTROL
    writer.add_token_types(types)
    writer.add_token_merges(merges())
    writer.add_eos_token_id(end_of_text())
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)

    for tensor_name, tensor in named_tensors(model).items():
        array = np.ascontiguousarray(tensor.detach().numpy().astype(np.float32))
        writer.add_tensor(tensor_name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def export_checkpoint(checkpoint: Path) -> Path:
    """Write models/NAME.gguf from a checkpoint named NAME.pt."""
    model, _ = load_checkpoint(checkpoint)
    MODELS.mkdir(exist_ok=True)
    path = MODELS / f"{checkpoint.stem}.gguf"
    write_gguf(model, checkpoint.stem, path)
    return path


def write_hashes() -> None:
    """Write models/SHA256SUMS for the GGUF files that are there."""
    lines = [f"{sha256_of(path)}  {path.name}\n" for path in sorted(MODELS.glob("*.gguf"))]
    (MODELS / "SHA256SUMS").write_text("".join(lines))
