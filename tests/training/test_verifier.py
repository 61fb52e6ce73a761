"""The checked-in verifier finds right lines of a model's solutions likelier than the first wrong one."""

from __future__ import annotations

from statistics import fmean

from isoflop.v1.common_pb2 import Message
from isoflop.v1.verification_pb2 import Chain, ScoreRequest
from prometheus_client import CollectorRegistry

from services.common.settings import MODELS
from services.verification.core import Verification
from services.verification.engines import open_backends
from services.verification.settings import VerificationSettings
from training.problems import first_wrong, judge_solution
from training.sampling import open_file, sample_round
from training.splits import first_of_each_group

EACH = 4
GROUPS = (2, 3, 4, 5)


async def test_right_lines_have_higher_scores_than_the_first_wrong_one() -> None:
    problems = [p for p in first_of_each_group("heldout.jsonl", 60) if p.group in GROUPS]
    core = Verification(VerificationSettings(), open_backends(MODELS / "verifiers.yaml"), CollectorRegistry())
    right: list[float] = []
    wrong: list[float] = []
    async with open_file(MODELS / "abacus-s.gguf") as generation:
        for problem in problems:
            solved = await sample_round(
                generation, "abacus-s", problem.prompt, samples=EACH, temperature=0.8, seed=1
            )
            chains = [Chain(id=sample.id, text=sample.text) for sample in solved.samples]
            messages = [Message(role="user", content=problem.prompt)]
            scored = await core.score(ScoreRequest(verifier="abacus-prm", messages=messages, chains=chains))
            for sample, scores in zip(solved.samples, scored.scores, strict=True):
                assert not scores.error
                lines = sample.text.split("\n")
                assert len(scores.steps) == len(lines)
                end = first_wrong(judge_solution(problem.answer, lines))
                right += scores.steps[:end]
                if end is not None:
                    wrong.append(scores.steps[end])
    await core.close()
    assert len(wrong) > 10
    assert fmean(right) > fmean(wrong) + 0.2
