"""Labelled chains as tokens: what the verifier reads, and where it is asked.

As the verification service does it (`services/verification/backends/onnx.py`): the prompt is encoded apart
from the steps, and each step, with one line end, apart from the others.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from isoflop.v1.common_pb2 import Message
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits
from tokenizers.pre_tokenizers import Sequence as Both
from tokenizers.trainers import BpeTrainer

from services.common.template import ChatTemplate
from training.labels import Chain

END_OF_TEXT = "<|endoftext|>"
SORTED_BATCHES = 50
"""Chains of so many batches are sorted by length together, so that little is padded."""


@dataclass(frozen=True)
class Encoded:
    """A chain as the verifier reads it."""

    tokens: list[int]
    """Of prompt and steps."""
    begin: int
    """Tokens of the prompt."""
    ends: list[int]
    """Position of each step's last token."""
    targets: list[float]
    """P(right) of each step."""
    weights: list[float]
    """Of each step in the loss."""


@dataclass(frozen=True)
class Batch:
    """Chains of like length, B of them of at most T tokens, with S steps that have a label in all."""

    tokens: NDArray[np.int64]
    """[B, T], padded on the right."""
    positions: NDArray[np.int64]
    """[S], of each step's last token in the flattened [B x T]."""
    targets: NDArray[np.float32]
    """[S]."""
    weights: NDArray[np.float32]
    """[S]."""
    likely: NDArray[np.float32]
    """[B, T]: how far a right solution goes on with this token; 0 where nobody says."""


def learn_tokenizer(chains: Iterable[Chain], most_tokens: int) -> Tokenizer:
    """A byte-level BPE with GPT-2's pre-tokenizer, learned from the chains; a number is its digits."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Both([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=most_tokens,
        special_tokens=[AddedToken(END_OF_TEXT, special=True)],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for chain in chains for text in (chain.problem, *(step.text for step in chain.steps)))
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def line_ends(tokenizer: Tokenizer) -> list[int]:
    """The tokens whose text ends a line."""
    return [token for token in range(tokenizer.get_vocab_size()) if tokenizer.decode([token]).endswith("\n")]


class Encoder:
    """From chains to tokens."""

    def __init__(self, tokenizer: Tokenizer, chat_template: str, context: int) -> None:
        """Raises ValueError where the template is none."""
        self._tokenizer = tokenizer
        self._template = ChatTemplate(chat_template)
        self._context = context

    def encode(self, chain: Chain) -> Encoded | None:
        """The chain's tokens; None where they are more than the context."""
        prompt = self._template.render([Message(role="user", content=chain.problem)])
        tokens, ends = list(self._ids(prompt)), []
        begin = len(tokens)
        for step in chain.steps:
            tokens += self._ids(f"{step.text}\n")
            ends.append(len(tokens) - 1)
            if len(tokens) > self._context:
                return None
        return Encoded(
            tokens, begin, ends, [step.target for step in chain.steps], [step.weight for step in chain.steps]
        )

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def batch_of(chains: Sequence[Encoded]) -> Batch:
    """Chains side by side."""
    length = max(len(chain.tokens) for chain in chains)
    tokens = np.zeros((len(chains), length), np.int64)
    likely = np.zeros((len(chains), length), np.float32)
    labelled: list[tuple[int, float, float]] = []
    for row, chain in enumerate(chains):
        tokens[row, : len(chain.tokens)] = chain.tokens
        labelled += [
            (row * length + end, target, weight)
            for end, target, weight in zip(chain.ends, chain.targets, chain.weights, strict=True)
            if weight
        ]
        begins = [chain.begin, *(end + 1 for end in chain.ends)]
        for begin, end, target, weight in zip(begins, chain.ends, chain.targets, chain.weights, strict=False):
            likely[row, begin : end + 1] = target * weight
    positions, targets, weights = zip(*labelled, strict=True)
    return Batch(
        tokens,
        np.array(positions, np.int64),
        np.array(targets, np.float32),
        np.array(weights, np.float32),
        likely,
    )


def epoch_of(chains: Sequence[Encoded], size: int, seed: str) -> list[list[int]]:
    """All chains once, in batches of `size` of like length, in an order that is the seed's: their indexes."""
    rng = random.Random(seed)
    order = list(range(len(chains)))
    rng.shuffle(order)
    batches: list[list[int]] = []
    for first in range(0, len(order), size * SORTED_BATCHES):
        part = sorted(
            order[first : first + size * SORTED_BATCHES], key=lambda index: len(chains[index].tokens)
        )
        batches += [part[at : at + size] for at in range(0, len(part), size)]
    rng.shuffle(batches)
    return batches


def in_order(chains: Sequence[Encoded], size: int) -> Iterator[list[int]]:
    """All chains once, the shortest first: their indexes."""
    order = sorted(range(len(chains)), key=lambda index: len(chains[index].tokens))
    for first in range(0, len(order), size):
        yield order[first : first + size]
