"""A sample as it grows: its text, cut into steps at line ends."""

from __future__ import annotations

from dataclasses import dataclass

from isoflop.v1.common_pb2 import Sample, Step

from services.common.lines import lines
from services.generation.backends import Job, Piece


@dataclass
class Stretch:
    """A stretch of a sample: its tokens, and their log-probability where none of them lacks it."""

    end: int = 0
    tokens: int = 0
    blank: bool = True
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

    def join(self, after: Stretch) -> None:
        """Add the stretch that comes after this one."""
        self.end = after.end or self.end
        self.tokens += after.tokens
        self._logprob += after._logprob
        self._told = self._told or after._told
        self._lacking = self._lacking or after._lacking

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
        told, length = 0, 0
        for line in lines(piece.text) or [""]:
            length += len(line)
            share = length / len(piece.text) if piece.text else 1.0
            tokens = round(piece.tokens * share) - told
            told += tokens
            part = len(line) / len(piece.text) if piece.text else 1.0
            self._line(line, tokens, None if piece.logprob is None else piece.logprob * part)
        self._whole.take(piece.tokens, piece.logprob)

    def _line(self, text: str, tokens: int, logprob: float | None) -> None:
        """A stretch in which no step ends but at its end."""
        self._open.take(tokens, logprob)
        if text:
            self._texts.append(text)
            self._length += len(text)
            self._open.end = self._length
            self._open.blank = self._open.blank and text.isspace()
        if text.endswith("\n"):
            self._close()

    def _close(self, last: bool = False) -> None:
        """End the open step. Blank lines, and tokens without text, belong to the step before them."""
        if self._open.blank and self._steps:
            self._steps[-1].join(self._open)
        elif self._open.blank and self._job.prefix and not last:
            # The step before them is the prefix's: they are a part of the one that follows.
            return
        elif self._open.end:
            self._steps.append(self._open)
        self._open = Stretch()

    def sample(self, last: Piece) -> Sample:
        """The finished sample."""
        assert last.end is not None
        self._close(last=True)
        return Sample(
            id=self._job.sample_id,
            branch=self._branch,
            text="".join(self._texts),
            tokens=self.tokens,
            finish_reason=last.end.reason,
            logprob=self._whole.logprob,
            steps=[step.step() for step in self._steps],
        )
