"""A sample as it grows: its text, cut into steps at line ends."""

from __future__ import annotations

from dataclasses import dataclass

from isoflop.v1.common_pb2 import Sample, Step

from services.generation.backends import Job, Piece


@dataclass
class Stretch:
    """A stretch of a sample: its tokens, and their log-probability where none of them lacks it."""

    end: int = 0
    tokens: int = 0
    _logprob: float = 0.0
    _told: bool = False
    _lacking: bool = False

    def take(self, tokens: int, logprob: float | None) -> None:
        """Add tokens."""
        self.tokens += tokens
        if logprob is not None:
            self._told = True
            self._logprob += logprob
        elif tokens:
            self._lacking = True

    @property
    def logprob(self) -> float | None:
        """Sum of the tokens' log-probabilities; None where one is lacking, or none was told."""
        return self._logprob if self._told and not self._lacking else None

    def step(self) -> Step:
        """As the contract has it."""
        return Step(end=self.end, tokens=self.tokens, logprob=self.logprob)


class Growing:
    """Collects the pieces of one sample."""

    def __init__(self, job: Job, branch: int) -> None:
        self._job = job
        self._branch = branch
        self._texts: list[str] = []
        self._length = 0
        self._steps: list[Stretch] = []
        self._open = Stretch()
        self._whole = Stretch()

    @property
    def tokens(self) -> int:
        """Tokens so far."""
        return self._whole.tokens

    def add(self, piece: Piece) -> None:
        """Take the next piece. One of several lines is shared out to their steps by length."""
        lines = piece.text.splitlines(keepends=True) or [""]
        told, length = 0, 0
        for line in lines:
            length += len(line)
            share = length / len(piece.text) if piece.text else 1.0
            tokens = round(piece.tokens * share) - told
            told += tokens
            part = len(line) / len(piece.text) if piece.text else 1.0
            self._line(line, tokens, None if piece.logprob is None else piece.logprob * part)
        self._whole.take(piece.tokens, piece.logprob)

    def _line(self, text: str, tokens: int, logprob: float | None) -> None:
        """A stretch in which no step ends but at its end. Blank lines belong to the step before them."""
        step = self._open
        if not text.strip() and not step.end and self._steps:
            step = self._steps[-1]
        step.take(tokens, logprob)
        if not text:
            return
        self._texts.append(text)
        self._length += len(text)
        step.end = self._length
        if step is self._open and text.endswith("\n"):
            self._steps.append(step)
            self._open = Stretch()

    def sample(self, last: Piece) -> Sample:
        """The finished sample."""
        assert last.end is not None
        steps = [*self._steps, self._open] if self._open.end else self._steps
        return Sample(
            id=self._job.sample_id,
            branch=self._branch,
            text="".join(self._texts),
            tokens=self.tokens,
            finish_reason=last.end.reason,
            logprob=self._whole.logprob,
            steps=[step.step() for step in steps],
        )
