"""A chain's text cut into steps. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from isoflop.v1.common_pb2 import Step
from isoflop.v1.verification_pb2 import Chain

from services.common.lines import lines
from services.verification.backends import Unscorable


def cut(text: str) -> list[Step]:
    """Steps that end at line ends, as generation cuts them: a blank line belongs to the step before it."""
    ends: list[int] = []
    at = 0
    for line in lines(text):
        at += len(line)
        if ends and not line.strip():
            ends[-1] = at
        else:
            ends.append(at)
    return [Step(end=end) for end in ends]


def texts(chain: Chain) -> Sequence[str]:
    """The text of each step; raises Unscorable where the steps do not divide the whole text."""
    begin, found = 0, []
    for number, step in enumerate(chain.steps, start=1):
        if step.end <= begin:
            raise Unscorable(f"step {number} ends at {step.end}, and begins at {begin}")
        found.append(chain.text[begin : step.end])
        begin = step.end
    if begin != len(chain.text):
        raise Unscorable(f"its last step ends at {begin}, its text at {len(chain.text)}")
    return found
