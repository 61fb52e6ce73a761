"""Writes a GGUF file with random weights: a model that talks nonsense and never ends by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

LAYERS, HEADS, HEADS_KV, HEAD_SIZE, FEED_FORWARD, CONTEXT = 2, 4, 2, 12, 40, 2048
WIDTH = HEADS * HEAD_SIZE
SAID = b"0123456789+-*=; abcdefgh\n"
"""The bytes that it says, each about as likely."""
TEMPLATE = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MERGED, END_OF_TEXT = 256, 257


def _letters() -> list[str]:
    """How GPT-2 vocabularies write the 256 bytes."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte if byte in visible else 256 + hidden.index(byte)) for byte in range(256)]


def _weights() -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    draw = np.random.default_rng(5)
    vocabulary = END_OF_TEXT + 1

    def matrix(rows: int, columns: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return draw.normal(0, columns**-0.5, (rows, columns)).astype(np.float32)

    embedding, output = matrix(vocabulary, WIDTH) * WIDTH**0.5, matrix(vocabulary, WIDTH)
    # The first element is the same for every token, and every byte that is not said points away from it.
    embedding[:, 0] = 5.0
    output[:, 0] = -30.0
    output[list(SAID), 0] = 0.0
    tensors = {
        "token_embd.weight": embedding,
        "output.weight": output,
        "output_norm.weight": np.ones(WIDTH, np.float32),
    }
    for layer in range(LAYERS):
        block = {
            "attn_norm": np.ones(WIDTH, np.float32),
            "attn_q": matrix(WIDTH, WIDTH),
            "attn_k": matrix(HEADS_KV * HEAD_SIZE, WIDTH),
            "attn_v": matrix(HEADS_KV * HEAD_SIZE, WIDTH),
            "attn_output": matrix(WIDTH, WIDTH),
            "ffn_norm": np.ones(WIDTH, np.float32),
            "ffn_gate": matrix(FEED_FORWARD, WIDTH),
            "ffn_up": matrix(FEED_FORWARD, WIDTH),
            "ffn_down": matrix(WIDTH, FEED_FORWARD),
        }
        block["attn_output"][0] = block["ffn_down"][0] = 0.0
        tensors |= {f"blk.{layer}.{name}.weight": weights for name, weights in block.items()}
    return tensors


def write_random_model(path: Path, architecture: str = "llama") -> int:
    """Write it to `path`; the parameters that compute a token."""
    letters = _letters()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS_KV)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*letters, letters[0] + letters[1], "<|endoftext|>"])
    writer.add_token_types([gguf.TokenType.NORMAL] * END_OF_TEXT + [gguf.TokenType.CONTROL])
    writer.add_token_merges([f"{letters[0]} {letters[1]}"])
    writer.add_eos_token_id(END_OF_TEXT)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    weights = _weights()
    for name, tensor in weights.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    # Embeddings are looked up.
    return sum(tensor.size for name, tensor in weights.items() if name != "token_embd.weight")
