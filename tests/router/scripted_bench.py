"""A bench whose models are scripts: steps are letters, and longer texts are looked up."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from isoflop.v1.common_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STEP,
    FINISH_REASON_STOP,
    Message,
    Model,
    Sample,
)
from isoflop.v1.router_pb2 import Growth
from isoflop.v1.verification_pb2 import CHAIN_SCORING_LAST, ChainScore, ChainScoring

from router.bench import joined
from router.strategies.strategy import Batch, Candidate, Search, Strategy


@dataclass
class ScriptedBench:
    """Steps are letters: `tree` has what may follow each text in turn; a score is that of the last letter.

    A text that ends with a dot is a whole chain. `says` has what follows each text to its end, a token a
    letter, and what is said after the last turn of a conversation; where that is a list, in turn. "*" is
    for all others.
    """

    tree: dict[str, str] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    search: Search = field(default_factory=lambda: Search(2, 2, 8))
    says: dict[str, str | list[str]] = field(default_factory=dict)
    model: Model = field(default_factory=Model)
    steps: int = 1 << 30
    """So often it can be extended."""
    missing: bool = False
    scoring: ChainScoring.ValueType = CHAIN_SCORING_LAST
    asked: list[tuple[list[str], int]] = field(default_factory=list)
    """What was to be continued, and how often each."""
    limits: list[list[int]] = field(default_factory=list)
    """Most tokens of each continuation to its end."""
    heard: list[list[str]] = field(default_factory=list)
    """Conversations."""
    made: int = 0

    def sample(self, stream_text: bool = False) -> AsyncGenerator[list[Sample], None]:
        raise NotImplementedError

    async def extend(self, chains: Sequence[Sample], each: int) -> Sequence[Sample]:
        if len(self.asked) == self.steps:
            return []
        self.asked.append(([chain.text for chain in chains], each))
        first = not chains[0].text
        return [
            self._next(chain, branch, branch * each + number if first else number)
            for branch, chain in enumerate(chains)
            for number in range(each)
        ]

    def _next(self, chain: Sample, branch: int, number: int) -> Sample:
        letters = self.tree.get(chain.text, self.tree["*"])
        letter = letters[number % len(letters)]
        reason = FINISH_REASON_STOP if letter == "." else FINISH_REASON_STEP
        self.made += 1
        text = chain.text + letter
        return Sample(id=f"m/{self.made}", branch=branch, text=text, tokens=1, finish_reason=reason)

    async def finish(self, chains: Sequence[Sample], most: Sequence[int] = ()) -> Sequence[Sample]:
        if len(self.asked) == self.steps:
            return []
        self.asked.append(([chain.text for chain in chains], 1))
        limits = most or [0] * len(chains)
        self.limits.append(list(limits))
        return [
            joined(chain, self._said(self._next_text(chain.text), limit), number)
            for number, (chain, limit) in enumerate(zip(chains, limits, strict=True))
        ]

    async def ask(self, conversations: Sequence[Sequence[Message]], said: Sequence[int]) -> Sequence[Sample]:
        if len(self.asked) == self.steps:
            return []
        self.asked.append(([turns[-1].content for turns in conversations], 1))
        self.heard += [[turn.content for turn in turns] for turns in conversations]
        last = ["\n".join(turn.content for turn in turns[-2:]) for turns in conversations]
        made = [self._said(self._next_text(after), 0) for after in last]
        for number, sample in enumerate(made):
            sample.branch = number
        return made

    def _next_text(self, after: str) -> str:
        text = self.says[after if after in self.says else "*"]
        return text if isinstance(text, str) else text.pop(0)

    def _said(self, text: str, limit: int) -> Sample:
        self.made += 1
        cut = bool(limit) and len(text) > limit
        text = text[:limit] if cut else text
        reason = FINISH_REASON_LENGTH if cut else FINISH_REASON_STOP
        return Sample(id=f"m/{self.made}", text=text, tokens=len(text), finish_reason=reason)

    async def score(self, samples: Sequence[Sample]) -> Sequence[ChainScore]:
        if self.missing:
            return [ChainScore(id=sample.id, error="the verifier is down") for sample in samples]
        return [
            ChainScore(id=sample.id, steps=[self.scores.get(letter, 0.5) for letter in sample.text])
            for sample in samples
        ]


async def play(bench: ScriptedBench, strategy: Strategy) -> list[list[Candidate]]:
    """The candidates."""
    return [batch for batch in await everything(bench, strategy) if isinstance(batch, list)]


async def everything(bench: ScriptedBench, strategy: Strategy) -> list[Batch]:
    """All that a strategy yields; no node comes before its parent, and none twice otherwise."""
    batches = [batch async for batch in strategy.play(bench)]
    seen = {"": ("", "")}
    for batch in batches:
        for node in batch.nodes if isinstance(batch, Growth) else ():
            assert node.parent in seen
            # One comes again where its fate is decided later.
            assert seen.setdefault(node.id, (node.parent, node.text)) == (node.parent, node.text)
            assert node.state
    return batches


def texts(batches: list[list[Candidate]]) -> list[list[str]]:
    """Of the candidates."""
    return [[candidate.sample.text for candidate in batch] for batch in batches]
