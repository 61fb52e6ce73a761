"""A sample as it grows: its text, cut into steps at line ends."""

from __future__ import annotations

from isoflop.v1.common_pb2 import Sample, Step

from services.generation.backends import Job, Piece


class Growing:
    """Collects the pieces of one sample."""

    def __init__(self, job: Job, branch: int) -> None:
        self._job = job
        self._branch = branch
        self._texts: list[str] = []
        self._length = 0
        self._steps: list[Step] = []
        self._open = Step()
        self.tokens = 0
        """Tokens so far."""
        self._logprob: float | None = 0.0

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
        self.tokens += piece.tokens
        if piece.logprob is None:
            self._logprob = None if piece.tokens else self._logprob
        elif self._logprob is not None:
            self._logprob += piece.logprob

    def _line(self, text: str, tokens: int, logprob: float | None) -> None:
        """A stretch in which no step ends but at its end. Blank lines belong to the step before them."""
        step = self._open
        if not text.strip() and not step.end and self._steps:
            step = self._steps[-1]
        step.tokens += tokens
        if logprob is not None:
            step.logprob += logprob
        if not text:
            return
        self._texts.append(text)
        self._length += len(text)
        step.end = self._length
        if step is self._open and text.endswith("\n"):
            self._steps.append(step)
            self._open = Step()

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
            logprob=self._logprob,
            steps=steps,
        )
