"""Profiles: read whole or refused with one sentence, and the tables that the planner reads from them."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import GRID, arm_record, make_arm, make_model, make_profile, p_right, record, relaxed, vote

from router.profile import ROUND_SIZES, RUNS, ProfileError, load, parse

Change = Callable[[dict[str, Any]], Any]


def write(path: Path, data: dict[str, Any] | str) -> Path:
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def test_a_profile_is_read(tmp_path: Path) -> None:
    profile = load(write(tmp_path / "profile.json", record()))
    assert profile.version == "synthetic-1"
    assert profile.grid == pytest.approx(GRID)
    assert profile.prior.sum() == pytest.approx(1)
    assert [(arm.model, arm.greedy) for arm in profile.arms] == [
        (model, greedy) for model in ("s", "m", "l") for greedy in (False, True)
    ]
    arm = profile.arms[0]
    assert arm.p_right == pytest.approx(np.clip(p_right("s"), 1e-4, 1 - 1e-4))
    assert arm.votes.shape == (len(ROUND_SIZES), len(GRID))
    assert profile.efforts["medium"] == 5e8


def test_a_prior_need_not_sum_to_one() -> None:
    assert parse(record(prior=[3.0] * len(GRID))).prior == pytest.approx([1 / len(GRID)] * len(GRID))


def set_arm(**changes: Any) -> Change:
    """Change the first arm."""
    return lambda data: data["arms"][0].update(changes)


def put(**changes: Any) -> Change:
    return lambda data: data.update(changes)


def spoil(name: str, value: float) -> Change:
    """Put a value into a curve of the first arm."""
    return lambda data: data["arms"][0][name].__setitem__(3, value)


REFUSED: list[tuple[str, Change, str]] = [
    ("another schema number", put(schema=9), "schema 9, but this router reads 2"),
    ("a schema that is text", put(schema="one"), "schema"),
    ("no version", lambda data: data.pop("version"), "version"),
    ("an unknown key", put(colour="red"), "colour"),
    ("NaN in a curve", spoil("p_right", math.nan), "p_right.3"),
    ("infinity in a curve", spoil("tokens", math.inf), "tokens.3"),
    ("NaN in the grid", lambda data: data["grid"].__setitem__(0, math.nan), "grid.0"),
    ("infinite effort", lambda data: data["efforts"].update(most=math.inf), "efforts.most"),
    ("a probability of 1.2", spoil("p_right", 1.2), "probability is not in [0, 1]"),
    ("a negative probability", spoil("p_right", -0.1), "probability is not in [0, 1]"),
    ("a vote of 1.2", lambda data: data["arms"][0]["votes"]["4"].__setitem__(0, 1.2), "in [0, 1]"),
    ("a curve that is too short", lambda data: data["arms"][0]["p_right"].pop(), "a curve has not 21"),
    ("a curve that is too long", lambda data: data["arms"][0]["tokens"].append(1.0), "a curve has not 21"),
    ("votes of a wrong length", lambda data: data["arms"][0]["votes"]["16"].pop(), "a curve has not 21"),
    ("negative tokens", spoil("tokens", -5.0), "tokens"),
    ("a vote of no samples", lambda data: data["arms"][0]["votes"].update({"0": [0.5] * 21}), "votes"),
    ("a grid that falls", lambda data: data["grid"].reverse(), "the grid falls"),
    ("no grid", put(grid=[], prior=[]), "the grid falls"),
    ("a prior of a wrong length", lambda data: data["prior"].pop(), "the prior is no distribution"),
    ("a negative prior", lambda data: data["prior"].__setitem__(0, -0.1), "the prior is no distribution"),
    ("a prior of nothing", put(prior=[0.0] * 21), "the prior is no distribution"),
    ("no arms", put(arms=[]), "there are no arms"),
    ("no efforts", put(efforts={}), "efforts low, medium, high and most are needed"),
    ("a missing effort", lambda data: data["efforts"].pop("most"), "efforts low, medium, high and most"),
    ("an effort of 0", lambda data: data["efforts"].update(low=0.0), "efforts low, medium, high and most"),
    ("no accuracy of one sample", lambda data: data["arms"][0]["votes"].pop("1"), "one sample is missing"),
    ("no concentration", set_arm(concentration=0.0), "concentration"),
    ("no scatter", set_arm(scatter=0.0), "scatter"),
    ("a negative temperature", set_arm(temperature=-1.0), "temperature"),
    ("a curve of words", set_arm(p_right=["often"] * 21), "p_right.0"),
]


@pytest.mark.parametrize(
    ("change", "text"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_a_wrong_profile_is_refused_with_one_sentence(tmp_path: Path, change: Change, text: str) -> None:
    data = record()
    change(data)
    path = write(tmp_path / "profile.json", data)
    with pytest.raises(ProfileError) as raised:
        load(path)
    assert text in str(raised.value)
    assert str(raised.value).startswith(f"profile {path}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    ["", "{", json.dumps(record())[:-40], "[]", "null", "\x00", '{"schema": 1}'],
    ids=["empty", "a brace", "truncated", "a list", "null", "binary", "little"],
)
def test_a_file_that_is_no_profile_is_refused_with_one_sentence(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "profile.json", text)
    with pytest.raises(ProfileError) as raised:
        load(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(ProfileError, match="not JSON"):
        load(path)


def test_a_missing_profile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="No such file"):
        load(tmp_path / "profile.json")


@given(
    st.lists(st.floats(0.0002, 0.9998), min_size=2, max_size=2),
    st.floats(0.1, 100),
    st.sampled_from(ROUND_SIZES),
)
@relaxed
def test_the_table_of_right_samples_is_the_beta_binomial_sum(
    chances: list[float], concentration: float, samples: int
) -> None:
    arm = make_arm(p_right=np.array(chances), concentration=concentration)
    for point, chance in enumerate(chances):
        a, b = concentration * chance, concentration * (1 - chance)
        mass = [
            math.exp(
                math.log(math.comb(samples, k))
                + math.lgamma(a + k) - math.lgamma(a)
                + math.lgamma(b + samples - k) - math.lgamma(b)
                - math.lgamma(a + b + samples) + math.lgamma(a + b)
            )
            for k in range(samples + 1)
        ]  # fmt: skip
        at = [RUNS.index((samples, k)) for k in range(samples + 1)]
        ways = [math.comb(samples, k) for k in range(samples + 1)]
        assert arm.runs[at, point] * ways == pytest.approx(mass, rel=1e-6, abs=1e-9)


def test_one_sample_is_right_as_often_as_the_curve_says() -> None:
    arm = make_profile().arms[0]
    assert arm.runs[RUNS.index((1, 1))] == pytest.approx(arm.p_right)


def test_votes_between_those_measured_are_interpolated_in_the_logarithm() -> None:
    profile = make_profile(["m"])
    curves = {n: vote(p_right("m"), n) for n in (1, 4, 16)}
    votes = dict(zip(ROUND_SIZES, profile.arms[0].votes, strict=True))
    for n, curve in curves.items():
        assert votes[n] == pytest.approx(curve)
    assert votes[2] == pytest.approx((curves[1] + curves[4]) / 2)
    assert votes[8] == pytest.approx((curves[4] + curves[16]) / 2)
    assert votes[32] == pytest.approx(curves[16])  # Nothing is promised beyond what was measured.


def test_an_arm_of_which_one_sample_was_measured_promises_no_more_of_many() -> None:
    data = record(arms=[arm_record("s", votes={"1": p_right("s").tolist()})])
    assert parse(data).arms[0].votes == pytest.approx(np.tile(p_right("s"), (len(ROUND_SIZES), 1)))


def test_a_belief_is_a_distribution_around_the_estimate() -> None:
    profile = make_profile()
    for mean, sd in itertools.product((-2.0, 0.0, 1.5), (0.2, 0.7)):
        belief = profile.belief(mean, sd)
        assert belief.sum() == pytest.approx(1)
        assert (belief > 0).all()
        assert belief @ GRID == pytest.approx(mean, abs=0.25)


@pytest.mark.parametrize(("mean", "sd"), [(-40.0, 0.1), (40.0, 0.1), (0.05, 1e-6)])
def test_a_belief_far_off_the_grid_or_between_its_points_stays_a_distribution(mean: float, sd: float) -> None:
    belief = make_profile().belief(mean, sd)
    assert np.isfinite(belief).all()
    assert belief.sum() == pytest.approx(1)


def test_the_arm_nearest_in_temperature_is_taken() -> None:
    arms = [arm_record("s", temperature) for temperature in (0.0, 0.6, 1.0)]
    profile = make_profile(arms=arms)
    model = make_model("s")
    assert profile.arm(model, greedy=False, temperature=None).temperature == 0.6
    assert profile.arm(model, greedy=False, temperature=0.9).temperature == 1.0
    assert profile.arm(model, greedy=True, temperature=None).temperature == 0.0


def test_a_model_that_was_never_measured_has_curves_of_ignorance() -> None:
    profile = make_profile()
    arm = profile.arm(make_model("other"), greedy=False, temperature=None)
    assert not arm.measured
    # The same one each time: its tables take milliseconds, and votes are counted by arm.
    assert profile.arm(make_model("other"), greedy=False, temperature=0.3) is arm
    assert arm.p_right[len(GRID) // 2] == pytest.approx(0.5)
    assert (np.diff(arm.p_right) < 0).all()
