"""The benchmark of the shadow price: streams in their order and time, and budgets that end."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.price import timed
from benchmarks.price_recordings import BILLIONS, SAMPLES, asked, fitted, load, models
from benchmarks.streams import NOTHING, RIGHT, Asked, Played, constant, within
from router.catalog import Catalog
from router.planner import Planner


def test_who_comes_when_the_budget_is_spent_is_refused() -> None:
    played = [Played(True, 3.0), Played(True, 3.0), Played(True, 3.0)]
    assert within(played, 6.0) == [*played[:2], NOTHING]
    assert within(played, 9.0) == played


def test_queries_come_evenly_backwards_or_late() -> None:
    queries = [Asked(np.ones(1), {}, {}, phase=number * 4 // 100) for number in range(100)]
    even, back, late = (timed(queries, order) for order in ("in turn", "backwards", "busy late"))
    assert [one.phase for one in back] == [one.phase for one in even][::-1]
    for stream, first_half in ((even, 50), (back, 50), (late, 20)):
        at = np.array([one.at for one in stream])
        assert (np.diff(at) > 0).all()
        assert 0 < at[0] < at[-1] < 1
        assert (at < 0.5).sum() == first_half


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Files of forty problems each: the harder, the longer and the rarer right."""
    rng = np.random.default_rng(0)
    for name in ("math500", "aime2024"):
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as file:
            for number in range(40):
                for model in BILLIONS:
                    hard = number / 40
                    samples = [
                        {"answer": "7", "correct": True, "tokens": int(1000 * 10**hard)}
                        if rng.random() > 0.9 * hard
                        else {
                            "answer": str(rng.choice(["8", "9"])),
                            "correct": False,
                            "tokens": int(2000 * 10**hard),
                        }
                        for _ in range(SAMPLES + 1)
                    ]
                    row = {"query_id": f"{name}/{number}", "model": model, "samples": samples}
                    file.write(json.dumps(row) + "\n")
    return tmp_path


def test_recorded_problems_are_planned_by_a_profile_of_others(recordings: Path) -> None:
    found = load(recordings, ("math500", "aime2024", "math500"))
    assert {name: len(problems) for name, problems in found.items()} == {"math500": 40, "aime2024": 40}
    profile = fitted(found["math500"])
    planner = Planner(profile, Catalog.of(models(), []), 4, SAMPLES)
    easy = [asked(problem, profile, seed) for seed, problem in enumerate(found["aime2024"][:10])]
    played = constant(planner, easy, profile.efforts["low"])
    assert sum(one.right for one in played) >= 9
    assert all(one.flops > 0 for one in played)


def test_models_that_agree_on_what_is_wrong_are_seen_to(recordings: Path) -> None:
    found = load(recordings, ("math500",))["math500"][-1]
    query = asked(found, fitted(load(recordings, ("aime2024",))["aime2024"]), seed=0)
    told = [set(answers.tolist()) for answers in query.answers.values()]
    assert told == [{RIGHT, 1, 2}] * len(BILLIONS)
    for model, answers in query.answers.items():
        right = answers == RIGHT
        assert right.sum() == found.samples[model[0]].right[:SAMPLES].sum()
        assert query.tokens[model][right].max() < query.tokens[model][~right].min()


def test_recordings_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="math500"):
        load(tmp_path, ("math500",))
