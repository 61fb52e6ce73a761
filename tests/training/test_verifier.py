"""The checked-in verifier tells a right solution from one with a slip, and finds where it is."""

from __future__ import annotations

import pytest
from isoflop.v1.common_pb2 import Message
from isoflop.v1.verification_pb2 import Chain, ScoreRequest
from prometheus_client import CollectorRegistry

from services.common.settings import MODELS
from services.verification.core import Verification
from services.verification.engines import open_backends
from services.verification.settings import VerificationSettings

PROMPT = "Tom has 12 apples. Ann gives him 3 bags of 5 apples. How many apples does Tom have now?"
RIGHT = "12+3*5\n3*5=15;12+15\n12+15=27\nanswer: 27"


@pytest.mark.parametrize(
    ("wrong", "step"),
    [
        ("12*3+5\n12*3=30+6=36;36+5\n36+5=41\nanswer: 41", 0),
        ("12-3*5\n3*5=15;12-15\n12-15=-3\nanswer: -3", 0),
        ("12+3*5\n3*5=25;12+25\n12+25=37\nanswer: 37", 1),
        ("12+3*5\n3*5=15;12+15\n12+15=37\nanswer: 37", 2),
    ],
)
async def test_the_wrong_step_has_a_lower_score_than_the_right_one(wrong: str, step: int) -> None:
    settings = VerificationSettings()
    core = Verification(settings, open_backends(MODELS / "verifiers.yaml"), CollectorRegistry())
    try:
        request = ScoreRequest(
            verifier="abacus-prm",
            messages=[Message(role="user", content=PROMPT)],
            chains=[Chain(id="right", text=RIGHT), Chain(id="wrong", text=wrong)],
        )
        right, other = (await core.score(request)).scores
    finally:
        await core.close()
    assert not right.error
    assert not other.error
    assert min(right.steps) > 0.5
    assert other.steps[step] < right.steps[step] - 0.3
