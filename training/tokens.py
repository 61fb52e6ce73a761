"""The vocabulary: one token a byte, one dummy merge, and end-of-text.

A byte-level vocabulary needs no trained tokenizer, and llama.cpp reads it as
a `gpt2` tokenizer. That tokenizer wants at least one merge, so there is one
of two control bytes, which no text of ours contains.
"""

from __future__ import annotations

from typing import Final

MERGED_TOKEN: Final = 256
END_OF_TEXT: Final = 257
VOCABULARY_SIZE: Final = 258


def _printable(byte: int) -> str:
    """The character by which GPT-2 vocabularies write a byte."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if byte in visible:
        return chr(byte)
    hidden = [other for other in range(256) if other not in visible]
    return chr(256 + hidden.index(byte))


def token_texts() -> list[str]:
    """The text of each token, by its id, as a GGUF file lists them."""
    letters = [_printable(byte) for byte in range(256)]
    return [*letters, letters[0] + letters[1], "<|endoftext|>"]


def merges() -> list[str]:
    """The one merge, of bytes 0 and 1."""
    return [f"{_printable(0)} {_printable(1)}"]


def encode(text: str) -> list[int]:
    """Token ids of a text: its UTF-8 bytes."""
    return list(text.encode("utf-8"))


def decode(tokens: list[int]) -> str:
    """The text of byte tokens; the two others are left out."""
    return bytes(token for token in tokens if token < 256).decode("utf-8", errors="replace")
