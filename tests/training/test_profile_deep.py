"""What strategies that make chains in parts brought is found again, and the planner goes by it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from isoflop.v1.common_pb2 import Capabilities, Model
from isoflop.v1.router_pb2 import SolveRequest
from isoflop.v1.verification_pb2 import Verifier
from planted import BEAM, MODELS, RATES, planted, searched

from router import profile
from router.belief import NO_VOTES, update
from router.catalog import Catalog
from router.decision import UNLIMITED, State
from router.planner import Planner
from router.query import Bounds, admit
from router.strategies.strategy import Search
from training.measured import Deep, Measured, Played, Samples
from training.profile_deep import shifted
from training.profiles import fit, thirds

BOUNDS = Bounds(prompt_bytes=1000, samples=64, messages=1)
RIGHT, TIMES = (0.99, 0.9, 0.3), (2.0, 3.0, 5.0)


@pytest.fixture(scope="module")
def plain() -> tuple[list[Measured], np.ndarray]:
    return planted(300)


@pytest.fixture(scope="module")
def plain_profile(plain: tuple[list[Measured], np.ndarray]) -> dict[str, Any]:
    return fit(plain[0], MODELS, "v1")


def test_planted_curves_are_found_again(
    plain: tuple[list[Measured], np.ndarray], plain_profile: dict[str, Any]
) -> None:
    data = fit(searched(*plain, RIGHT, TIMES), MODELS, "v1")
    (one,) = data.pop("deep")
    assert data == plain_profile
    assert (one["model"], one["strategy"], one["temperature"], one["verifier"]) == ("a", "beam", 0.7, "judge")
    assert one["search"] == {"width": 4, "expansion": 4, "depth": 64, "nodes": 0, "tokens": 0}
    assert thirds(data["prior"], one["p_right"]) == pytest.approx(RIGHT, abs=0.08)
    assert thirds(data["prior"], one["times"]) == pytest.approx(TIMES, rel=0.15)
    assert one["tokens"] == pytest.approx([100.0] * len(data["prior"]), rel=0.15)
    assert 0 < min(one["p_right_error"]) <= max(one["p_right_error"]) < 0.25
    (read,) = profile.parse(data | {"deep": [json.loads(json.dumps(one))]}).deep
    assert read.search == BEAM.search


def test_a_type_with_few_queries_is_drawn_to_what_all_say_and_not_to_samples() -> None:
    curve, share = np.array([0.9, 0.5, 0.1]), np.full(3, 1 / 3)
    better = shifted(curve, share, np.array([1.0] * 80 + [0.0] * 20))
    assert share @ better == pytest.approx(0.8, abs=0.01)
    assert (np.diff(better) < 0).all()
    assert better[1] - curve[1] > better[0] - curve[0]
    as_samples = shifted(curve, share, np.array([1.0, 0.0] * 50))
    assert as_samples == pytest.approx(curve, abs=1e-3)


def test_what_some_queries_lack_is_left_out(plain: tuple[list[Measured], np.ndarray]) -> None:
    queries = searched(*plain, RIGHT, TIMES)[:40]
    assert "deep" not in fit([*queries[:-1], replace(queries[-1], deep={})], MODELS, "v1")


@pytest.mark.parametrize(
    "played", [Played(1, 0, 0), Played(0, 0, 0), Played(1, 1e6, 1e20), Played(0.5, 3, 1)]
)
@pytest.mark.filterwarnings("error")
def test_odd_outcomes_give_a_sane_profile(played: Played) -> None:
    queries = [replace(query, deep={BEAM: played}) for query in planted(12, 4)[0]]
    (deep,) = profile.parse(json.loads(json.dumps(fit(queries, MODELS, "v1"), allow_nan=False))).deep
    for curve in (deep.arm.p_right, deep.arm.tokens, deep.times):
        assert np.isfinite(curve).all()
    assert deep.arm.p_right.mean() == pytest.approx(played.right, abs=0.2)


def chosen(data: dict[str, Any]) -> set[str]:
    """What is bought first, at whatever effort, and by whatever is believed of the query."""
    able = Capabilities(prefix=True, steps=True, logprobs=True)
    models = []
    for model in MODELS:
        models.append(Model())
        models[-1].CopyFrom(model)
        models[-1].capabilities.CopyFrom(able)
    catalog = Catalog.of(models, [Verifier(name="judge")])
    planner = Planner(profile.parse(data), catalog, round_samples=4)
    found = set()
    for effort in (1, 2, 3):
        query = admit(SolveRequest(prompt="What is 6*7?", effort=effort), catalog, BOUNDS)  # type: ignore[arg-type]
        for mean in (-1.0, 0.0, 1.0):
            posterior = update(planner.profile.belief(mean, 0.5), NO_VOTES)
            state = State(posterior, posterior.confidence, {}, frozenset(), UNLIMITED, np.inf)
            action = planner.decide(query, state).action
            found.add(action.strategy if action else "nothing")
    return found


@pytest.mark.parametrize(
    ("right", "times", "pays"),
    [
        ((0.99, 0.97, 0.95), (1.5, 1.5, 1.5), True),
        (tuple(RATES[:, 0]), (4.0, 4.0, 4.0), False),
        ((0.99, 0.97, 0.95), (1e5, 1e5, 1e5), False),
        ((0.0, 0.0, 0.0), (0.1, 0.1, 0.1), False),
    ],
)
def test_the_planner_chooses_what_pays_and_never_what_does_not(
    plain: tuple[list[Measured], np.ndarray],
    right: tuple[float, ...],
    times: tuple[float, ...],
    pays: bool,
) -> None:
    deep = replace(BEAM, verifier="judge")
    data = fit(searched(*plain, right, times, deep=deep), MODELS, "v1")
    assert ("beam" in chosen(data)) == pays


def test_single_chains_are_voted_on(plain: tuple[list[Measured], np.ndarray]) -> None:
    """Of eight chains most say the truth, others each something else: a vote of four is surer than one."""
    rng = np.random.default_rng(3)
    single = Deep("a", "sequential", Search(width=1, depth=1))
    queries = []
    for query in plain[0][:60]:
        right = rng.random(8) < 0.7
        answers = ["truth" if one else f"wrong {n}" for n, one in enumerate(right)]
        chains = Samples(answers, right, np.full(8, 100.0))
        played = Played(float(right.mean()), 100.0, 1e9, chains)
        queries.append(replace(query, deep={single: played}))
    (record,) = fit(queries, MODELS, "v1")["deep"]
    assert set(record["votes"]) == {"1", "2", "4"}
    assert record["votes"]["1"] == record["p_right"]
    assert np.mean(record["votes"]["4"]) > np.mean(record["p_right"]) + 0.1
    (deep,) = profile.parse(fit(queries, MODELS, "v1")).deep
    assert not deep.once
