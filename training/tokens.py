"""The vocabulary: bytes, the words of the problems, and end-of-text.

A byte-level BPE with GPT-2's pre-tokenizer, as llama.cpp reads it. Its merges are learned from words only, so
that a number is always its digits and a sign always itself. `python -m training.tokens` writes
`tokenizer.json`, which is checked in: all that is trained depends on it.
"""

from __future__ import annotations

import json
import random
import re
from functools import cache
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from training.problems import draw_kind, draw_problem

FILE: Final = Path(__file__).resolve().parent / "tokenizer.json"
END_OF_TEXT: Final = "<|endoftext|>"
_MOST_TOKENS: Final = 1024
_WORDS: Final = re.compile(r" ?[A-Za-z]+")
_MODES: Final = ("steps", "think", "critique", "revise", "answer", "check", " ok", " no", " wrong")


def learn(problems: int = 20_000) -> Tokenizer:
    """Learn the merges from the words of random problems, each word a text of its own."""
    rng = random.Random("isoflop-tokenizer-2")
    words: list[str] = []
    for _ in range(problems):
        words += _WORDS.findall(draw_problem(rng, draw_kind(rng), rng.randint(1, 8)).prompt)
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=_MOST_TOKENS,
        special_tokens=[AddedToken(END_OF_TEXT, special=True)],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*words, *list(_MODES) * problems], trainer)
    return tokenizer


@cache
def tokenizer() -> Tokenizer:
    """The tokenizer that is checked in."""
    return Tokenizer.from_file(str(FILE))


@cache
def end_of_text() -> int:
    """The token that ends a text."""
    return int(tokenizer().token_to_id(END_OF_TEXT))


def encode(text: str) -> list[int]:
    """Token ids of a text."""
    ids: list[int] = tokenizer().encode(text, add_special_tokens=False).ids
    return ids


def encode_lines(lines: list[str]) -> list[list[int]]:
    """Token ids of each line, its newline included.

    Lines may be encoded apart: no token reaches over a newline.
    """
    encodings = tokenizer().encode_batch([f"{line}\n" for line in lines], add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def decode(tokens: list[int]) -> str:
    """The text of tokens; end-of-text is left out."""
    text: str = tokenizer().decode(tokens, skip_special_tokens=True)
    return text


def vocabulary() -> list[str]:
    """The text of each token by its id, as GGUF files list them."""
    by_id = {index: text for text, index in tokenizer().get_vocab(with_added_tokens=True).items()}
    return [by_id[index] for index in range(len(by_id))]


def merges() -> list[str]:
    """The merges in their order, as GGUF files list them."""
    listed = json.loads(FILE.read_text(encoding="utf-8"))["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in listed]


if __name__ == "__main__":
    learn().save(str(FILE))
