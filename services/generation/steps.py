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
        """Take the next piece. Blank lines belong to the step before them."""
        self.tokens += piece.tokens
        step = self._open
        if not piece.text.strip() and not step.end and self._steps:
            step = self._steps[-1]
        step.tokens += piece.tokens
        if piece.logprob is None:
            self._logprob = None if piece.tokens else self._logprob
        else:
            step.logprob += piece.logprob
            self._logprob = None if self._logprob is None else self._logprob + piece.logprob
        if not piece.text:
            return
        self._texts.append(piece.text)
        self._length += len(piece.text)
        step.end = self._length
        if step is self._open and piece.text.endswith("\n"):
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
