"""The report: what the file says, and another profile's first choices by its own planner."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isoflop.errors import FailedPrecondition
from isoflop.v1.router_pb2 import Budget, Effort, Filters, Objective, SolveRequest, SubmitFeedbackRequest
from kept import OTHER, OWN, kept
from scripted_stages import Said, number
from scripted_suite import MakeSuite
from synthetic import EASY, GRID, HARD, MIDDLE, SKILL, arm_record, make_profile, record

from router.explore import bought
from router.feedback_report import command, first_choice, report
from router.planner import Planner
from router.truths import read

DIFFICULTIES = {"easy": EASY, "middle": MIDDLE, "hard": HARD}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"effort": Effort.EFFORT_HIGH},
        {"objective": Objective(target_accuracy=0.9)},
        {"budget": Budget(flops=3e8)},
        {"filters": Filters(models=["l"])},
        {"filters": Filters(strategies=["best_of_n"])},
        {"filters": Filters(samples=7, temperature=0.5)},
    ],
)
async def test_the_same_profile_chooses_the_same(
    make_suite: MakeSuite, tmp_path: Path, fields: dict[str, Any]
) -> None:
    suite = make_suite(lambda model, index: number(421), feedback=tmp_path / "f.db", round_samples=3)
    suite.difficulty.by_prompt = DIFFICULTIES
    for prompt in DIFFICULTIES:
        await suite.router.solve(SolveRequest(prompt=prompt, **fields), 30.0)
    for answered in read(tmp_path / "f.db"):
        action = first_choice(answered, Planner(make_profile(), answered.catalog, 3, 1024))
        assert action
        assert bought(action) == answered.offers[0].bought
        assert action.accuracy == pytest.approx(answered.offers[0].accuracy)


def test_counts_drift_and_corrections() -> None:
    queries = [
        *(kept(f"e{i}", right=i < 8, difficulty=-2.0, confidence=0.9) for i in range(10)),
        *(kept(f"m{i}", right=i < 5, difficulty=0.0, confidence=0.5) for i in range(10)),
        *(kept(f"h{i}", right=i < 1, difficulty=2.0, confidence=0.3, profile="p2") for i in range(8)),
        *(kept(f"o{i}", right=True, difficulty=2.0, confidence=0.8, taken=1) for i in range(2)),
        *(kept(f"u{i}", confidence=1.0) for i in range(100)),
    ]
    found = report(queries)
    assert (found.queries, found.truths, found.explored) == (130, 30, 2)
    assert found.accuracy == pytest.approx(16 / 30)
    assert found.drift.value == pytest.approx((16 - 9 - 5 - 2.4 - 1.6) / 30)
    by_third = {name: each.value for name, each in found.by_difficulty.items()}
    assert by_third == {
        "easy": pytest.approx(-0.1),
        "middle": pytest.approx(0),
        "hard": pytest.approx((3 - 2.4 - 1.6) / 10),
    }
    assert {name: each.truths for name, each in found.by_profile.items()} == {"synthetic-1": 22, "p2": 8}
    assert set(found.corrections) == {OWN.bought, OTHER.bought}
    assert list(found.corrections[OTHER.bought]) == ["hard"]
    assert found.corrections[OTHER.bought]["hard"].value == pytest.approx(0.2)
    assert found.corrections[OWN.bought]["hard"].value == pytest.approx(1 / 8 - 0.3)
    assert found.off_policy is None


def test_what_was_rarely_drawn_counts_for_more() -> None:
    rare = (OWN, OTHER.__class__(OTHER.bought, 0.9, 8e7, 0.05))
    often = (OWN, OTHER.__class__(OTHER.bought, 0.9, 8e7, 0.5))
    found = report(
        [
            kept("rare", right=True, offers=rare, taken=1),
            kept("often", right=False, offers=often, taken=1),
        ]
    )
    (correction,) = found.corrections[OTHER.bought].values()
    assert correction.observed == pytest.approx(20 / 22)


async def test_another_profile_is_estimated_through_what_was_explored(
    make_suite: MakeSuite, tmp_path: Path
) -> None:
    """Where `s` has become worthless a profile that knows it is told to be better, and how much."""
    path, rng = tmp_path / "f.db", random.Random(5)
    turned = make_profile(
        arms=[
            arm_record(model, temperature, **(_worthless() if model == "s" else {}))
            for model in SKILL
            for temperature in (0.8, 0.0)
        ],
        version="turned",
    )

    def script(model: str, index: int) -> Said:
        return number(421) if model != "s" else number(rng.randrange(1_000_000))

    suite = make_suite(script, EASY, feedback=path, explore_share=1.0)
    request = SolveRequest(prompt="1+1", filters=Filters(strategies=["single"]))
    for _ in range(120):
        result = await suite.router.solve(request)
        await suite.router.feedback(SubmitFeedbackRequest(query_id=result.query_id, answer="421"))
    found = report(read(path), turned)
    assert found.off_policy
    other = found.off_policy
    assert (other.profile, other.queries, other.unplanned, other.supported) == ("turned", 120, 0, 1.0)
    began = [answered for answered in read(path) if not answered.first.bought.startswith("s ")]
    assert 0 < len(began) < 120
    assert found.accuracy < 0.9
    assert other.accuracy.weighted.value == 1.0
    assert other.effective < 120
    assert other.accuracy.doubly_robust.low > found.accuracy
    same = report(read(path), make_profile()).off_policy
    assert same
    assert same.accuracy.weighted.value < 0.5


def _worthless() -> dict[str, Any]:
    flat = np.full(len(GRID), 0.01).tolist()
    return {"p_right": flat, "votes": {"1": flat}}


async def test_queries_that_a_profile_has_no_plan_for_are_counted(
    make_suite: MakeSuite, tmp_path: Path
) -> None:
    path = tmp_path / "f.db"
    suite = make_suite(lambda model, index: number(421), EASY, feedback=path)
    result = await suite.router.solve(SolveRequest(prompt="1+1", budget=Budget(flops=3e7)))
    await suite.router.feedback(SubmitFeedbackRequest(query_id=result.query_id, right=True))
    longer = make_profile(
        arms=[arm_record(model, tokens=np.full(len(GRID), 900.0).tolist()) for model in SKILL]
    )
    found = report(read(path), longer).off_policy
    assert found
    assert (found.queries, found.unplanned) == (0, 1)


async def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    parser = argparse.ArgumentParser()
    execute = command(parser)
    assert execute(parser.parse_args(arguments)) == 0
    return capsys.readouterr().out


async def test_the_command(make_suite: MakeSuite, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, profile = tmp_path / "f.db", tmp_path / "profile.json"
    profile.write_text(json.dumps(record(version="candidate")))
    suite = make_suite(lambda model, index: number(421), feedback=path)
    suite.difficulty.by_prompt = DIFFICULTIES
    out = await run(capsys, "--store", str(path))
    assert "0 with a truth" in out
    assert "no caller has said what is right" in out
    for right, prompt in zip([True, True, False], DIFFICULTIES, strict=True):
        result = await suite.router.solve(SolveRequest(prompt=prompt))
        await suite.router.feedback(SubmitFeedbackRequest(query_id=result.query_id, right=right))
    out = await run(capsys, "--store", str(path), "--profile", str(profile))
    for words in ("3 queries, 3 with a truth", "right 66.7%", "profile synthetic-1", "profile candidate"):
        assert words in out
    told = json.loads(await run(capsys, "--store", str(path), "--profile", str(profile), "--json"))
    assert told["truths"] == 3
    assert told["drift"]["observed"] == pytest.approx(2 / 3)
    assert told["by_difficulty"]["easy"]["low"] is None
    assert told["off_policy"]["accuracy"]["weighted"]["value"] == pytest.approx(2 / 3)
    with pytest.raises(FailedPrecondition, match="nowhere"):
        await run(capsys, "--store", str(path), "--profile", str(tmp_path / "nowhere.json"))
