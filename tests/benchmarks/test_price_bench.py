"""The benchmark of the shadow price: streams in their order and time, and budgets that end."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.curves import NO_ANSWER
from benchmarks.price import timed
from benchmarks.price_recordings import BILLIONS, FILES, SAMPLES, TYPES, Recorded, asked, fit, load, models
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


def problem(right: float, tokens: int, seed: int) -> Recorded:
    rng = np.random.default_rng(seed)
    return Recorded(
        "math500",
        {model: np.where(rng.random(SAMPLES) < right, RIGHT, NO_ANSWER) for model in BILLIONS},
        {model: (tokens * rng.lognormal(0, 0.2, SAMPLES)).astype(np.int64) for model in BILLIONS},
    )


def test_a_profile_of_recordings_knows_what_is_easy_and_short() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(200)
    problems = [problem(1 - 0.9 * h, int(1000 * 10**h), seed) for seed, h in enumerate(hard)]
    profile = fit(problems)
    assert len(profile.grid) == TYPES
    for arm in profile.arms:
        assert arm.p_right[0] > 0.85 > 0.3 > arm.p_right[-1]
        assert arm.tokens[0] < 2000 < 5000 < arm.tokens[-1]
        assert arm.concentration > 10
    planner = Planner(profile, Catalog.of(models(), []), 4, SAMPLES)
    easy = [asked(problem(0.99, 1000, 1000 + seed), profile, seed) for seed in range(10)]
    played = constant(planner, easy, profile.efforts["low"])
    assert sum(one.right for one in played) >= 9


def test_recordings_are_read(tmp_path: Path) -> None:
    samples = [{"answer": "7", "tokens": 10, "correct": True}, {"answer": "8", "tokens": 20}]
    samples += [{"answer": None, "tokens": 30}] * (SAMPLES - 2)
    for name in FILES:
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as file:
            for model in [*BILLIONS, "another"]:
                file.write(json.dumps({"query_id": "1", "model": model, "samples": samples}) + "\n")
            file.write(
                json.dumps({"query_id": "2", "model": next(iter(BILLIONS)), "samples": samples}) + "\n"
            )
    found = load(tmp_path)
    assert [one.dataset for one in found] == list(FILES)
    for model in BILLIONS:
        assert found[0].answers[model][:3].tolist() == [RIGHT, 1, NO_ANSWER]
        assert found[0].tokens[model][:3].tolist() == [10, 20, 30]
    with pytest.raises(OSError, match="math500"):
        load(tmp_path / "absent")
