"""The headlines end to end: from scripted samples with known truths, and from a real model."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isoflop.v1.common_pb2 import Model, Shape

from benchmarks.deep_claims import SOURCES
from benchmarks.headlines import REDUCED, Options, Places, Run, main
from benchmarks.headlines_claims import Row, all_rows, chains, dear_chains, self_consistency
from benchmarks.headlines_data import SCORINGS, Measured, NotMeasured, Prices
from router.cost import samples as cost_of_samples
from training.splits import Problem
from training.store import append, digest, read, seed_of

CLAIMS = {
    "self_consistency_40",
    "prm_over_majority",
    "small_matches_large",
    "difficulty",
    "log_fit",
    "temperature",
}
KEYS = {
    "claim", "about", "reference", "measured", "interval", "unit", "holds", "headline", "how", "reason",
    "figures",
}  # fmt: skip
OPTIONS = Options(
    samples=256,
    problems=40,
    temperatures=(0.3, 0.7),
    temperature_problems=20,
    cell_problems=2,
)
ABILITIES = {"abacus-s": 3.0, "abacus-m": 5.0, "abacus-l": 7.0}
"""In operations: there one sample is right half of the time."""


def scripted(run: Run, problem: Problem, model: str, degree: float, count: int) -> tuple[Any, Any]:
    """Samples whose mistakes are spread over many answers, and scores that know right chains from wrong."""
    rng = random.Random(f"{problem.query_id}/{model}/{degree}")
    p = 1 / (1 + math.exp(problem.group - ABILITIES[model]))
    rows, scores = [], {}
    for index in range(count):
        right = rng.random() < p if degree else p > 0.5
        answer = problem.answer if right else str(1000 + rng.randrange(6))
        text = f"{problem.expression}\n{index % 40}\nanswer: {answer}"
        rows.append(
            {
                "text": text,
                "tokens": 10 + problem.group,
                "answer": answer,
                "right": right,
                "steps": [[len(text), 9, -0.5]],
            }
        )
        last = round(min(1.0, max(0.0, rng.gauss(0.8 if right else 0.4, 0.1))), 5)
        scores[digest(text)] = {
            "digest": digest(text), "steps": [0.9, 0.9, last], "tokens": 30, "flops": 1e5, "simple": 9e4,
        }  # fmt: skip
    key = {"query_id": problem.query_id, "seed": seed_of(problem)}
    return (
        {**key, "first": 0, "prompt_tokens": 12, "samples": rows},
        {**key, "scores": list(scores.values())},
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One whose samples and scores are all stored."""
    folder = tmp_path_factory.mktemp("headlines")
    places = Places(store=folder / "store", results=folder / "results", page=folder / "docs" / "headlines.md")
    run = Run(OPTIONS, places, workers=1, slots=1)
    for model in run.models:
        for degree in (0.0, *OPTIONS.temperatures):
            lane = run.lane(model, degree)
            problems, count = (run.few, 64) if degree == 0.3 else (run.heldout, 256 if degree else 1)
            made = [scripted(run, problem, model.name, degree, count) for problem in problems]
            append(lane.path(places.store), [samples for samples, _ in made])
            if degree == OPTIONS.temperature:
                made_too = [scripted(run, one, model.name, degree, 8)[0] for one in run.calibration]
                append(lane.path(places.store), made_too)
                path = lane.scores_path(places.store, run.verifier, run.verifier_hash)
                append(path, [scores for _, scores in made])
    return run


@pytest.fixture(scope="module")
def measured(run: Run) -> list[Measured]:
    return run.measured()


@pytest.fixture(scope="module")
def rows(run: Run) -> list[Row]:
    return run.report()


def test_nothing_more_is_made_where_all_is_stored(run: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.places.store.iterdir()}
    run.sample()
    run.score()
    assert {path: path.stat().st_mtime_ns for path in run.places.store.iterdir()} == before


def test_models_come_by_size_and_bands_from_other_problems(measured: list[Measured]) -> None:
    assert [one.name for one in measured] == list(ABILITIES)
    for one in measured:
        assert one.medium.any()
        assert (one.rate[one.medium] >= 0.2).all()
        assert (one.rate[one.medium] <= 0.8).all()
        thirds = np.array(list(one.thirds.values()))
        assert (thirds.sum(0) == 1).all()
        means = [one.one[band].mean() for band in one.thirds.values()]
        assert means == sorted(means, reverse=True)


def test_curves_begin_and_end_where_they_must(measured: list[Measured]) -> None:
    for one in measured:
        assert one.majority(1) == pytest.approx(one.one)
        assert one.pass_at(1) == pytest.approx(one.one)
        assert one.weighted(1) == pytest.approx(one.one)
        assert one.best(1) == pytest.approx(one.one)
        assert (one.pass_at(256) >= one.majority(256)).all()
        assert {rule: one.best(4, rule).shape for rule in SCORINGS} == dict.fromkeys(SCORINGS, (40,))
        with pytest.raises(NotMeasured, match="needs 257"):
            one.majority(257)


def test_a_query_costs_what_the_router_bills(run: Run, measured: list[Measured]) -> None:
    one = measured[0]
    group = one.problems[0].group
    once = cost_of_samples(one.model, 1, 12, 10 + group).flops
    assert one.greedy_cost[0, 0] == pytest.approx(once)
    assert one.cost(1, False)[0, 0] == pytest.approx(once)
    # A further sample finds the prompt in the cache; each has its scores to pay for.
    again = one.cost(2, False)[0] - one.cost(1, False)[0]
    assert 0 < again[0] < once
    assert one.cost(3, True)[0] - one.cost(3, False)[0] == pytest.approx([3e5, 2.7e5])
    assert one.cost(1, False)[0, 1] == 2 * one.model.shape.active_parameters * (12 + 10 + group)


def test_prompts_are_paid_once() -> None:
    prices = Prices(Model(name="m", shape=Shape(active_parameters=100, layers=2, heads=3, head_size=5)))
    assert prices.prompt(4).simple == 800
    assert prices.prompt(4).flops == 800 + 4 * 2 * 3 * 5 * (1 + 2 + 3 + 4)
    assert prices.sample(4, 2).flops == 400 + 4 * 2 * 3 * 5 * (5 + 6)


def test_what_is_true_of_the_scripted_samples_is_found(rows: list[Row]) -> None:
    headlines = {(row.claim, row.about): row for row in rows if row.headline}
    assert {claim for claim, _ in headlines} == CLAIMS
    # Mistakes are spread over six answers: votes gain much in the middle.
    votes = headlines["self_consistency_40", "abacus-m, its medium band"]
    assert votes.holds
    assert votes.measured is not None
    assert votes.measured > 10
    gains = headlines["difficulty", "abacus-m, majority"].figures["gains"]
    assert max(gains, key=lambda third: gains[third]) == "middle"
    # One temperature is as good as the other.
    heat = headlines["temperature", "abacus-m, majority"]
    assert not heat.holds
    assert "of resamples" in heat.reason
    # A vote of few with good scores, for four times the parameters.
    small = headlines["small_matches_large", "abacus-s against abacus-m's greedy answer, all problems"]
    ratios = [one["ratio"] for one in small.figures["by_ratio"]]
    assert ratios == sorted(ratios)
    assert small.holds == small.figures["by_ratio"][0]["matches"]
    budget = small.figures["by_ratio"][0]["flops"]
    assert budget <= small.figures["by_ratio"][-1]["flops"]


def test_what_scored_chains_cost_is_among_the_reasons(rows: list[Row], measured: list[Measured]) -> None:
    small, large = measured[:2]
    told = [row for row in rows if row.claim == "small_matches_large" and row.about.startswith("abacus-s")]
    everything, _, unscored = (row.figures["chain_flops"] for row in told)
    each = (small.cost(2, True) - small.cost(1, True)).mean(0)[0]
    assert everything == pytest.approx(each, abs=1)
    assert everything - unscored == pytest.approx(1e5, abs=2)
    cost = chains(small, np.ones(40, bool), True)
    assert cost.within(cost.prompt + 3 * cost.each) == 3
    assert cost.within(0.0) == 0
    own, other = (float(one.greedy_cost.mean(0)[0]) for one in (small, large))
    said = dear_chains(cost, "s", own, "l", cost.prompt + 1.5 * cost.each)
    assert f"a scored chain of s costs {each / own:.1f} times its own greedy answer" in said
    assert said.endswith(" that of l: equal FLOPs buy 1, and to choose takes two; ")
    assert dear_chains(cost, "s", own, "l", other).endswith(f": equal FLOPs buy {cost.within(other)}; ")
    assert "equal FLOPs buy none, and" in dear_chains(cost, "s", own, "l", own / 2)


def test_the_page_says_what_was_seen_before_and_where_references_come_from(run: Run, rows: list[Row]) -> None:
    page = run.places.page.read_text()
    assert "trained again, on more step labels, after headlines of an earlier one" in page
    assert "of which one sample is right in 20 to 80 % on *calibration* problems (up to 2 of" in page
    for claim in ("self_consistency_40", "prm_over_majority", "small_matches_large"):
        assert f"- `{claim}`: " in page.partition("References:")[2]


def test_the_checked_in_page_has_the_checked_in_rows() -> None:
    page, deep = Places().page.read_text(), Places().page.with_name("deep.md").read_text()
    for told in json.loads((Places().results / "headlines.json").read_text()):
        if told["claim"] in SOURCES:
            # Of `benchmarks.deep`, which has a page of its own.
            assert told["how"] in deep
            assert f"{told['measured']:+.1f}" in deep
            continue
        assert told["how"] in page
        if told["headline"]:
            assert f"| {told['about']} | {told['reference']} |" in page
            assert told["holds"] or f"**Does not hold:** {told['reason']}." in page


def test_good_scores_beat_the_majority_where_it_is_in_doubt(rows: list[Row]) -> None:
    by_about = {row.about: row for row in rows if row.claim == "prm_over_majority"}
    few = by_about["abacus-m, its medium band, weighted vote, N=4"]
    assert few.holds
    assert few.interval is not None
    assert few.interval[0] > 0
    assert few.figures["chain_auc"] > 0.9
    equal = by_about["abacus-m, all problems, equal FLOPs"]
    assert "equal FLOPs with the verifier's" in equal.how


def test_everything_is_written_and_nothing_tells_whose_machine_it_was(run: Run, rows: list[Row]) -> None:
    check_files(run.places.results, run.places.page, {"abacus-s", "abacus-m", "abacus-l"}, 40)
    for name in ("flops", "thirds", "temperature"):
        picture = run.places.page.with_name(f"headlines-{name}.svg")
        ElementTree.parse(picture)
        assert picture.stat().st_size < 300_000
        assert f"](headlines-{name}.svg)" in run.places.page.read_text()
    manifest = json.loads((run.places.results / "headlines_manifest.json").read_text())
    assert manifest["models"]["abacus-m"]["sha256"] == run.hashes["abacus-m"]
    # Of temperature 0.7 the first 64 are told twice: the same samples serve both.
    assert manifest["stored"]["samples"] == 3 * (40 * 256 + 2 * 20 * 64)


def test_a_report_is_the_same_again(run: Run, rows: list[Row]) -> None:
    fresh = run.measured()[0]
    told = [row for row in rows if row.claim == "self_consistency_40" and fresh.name in row.about]
    assert list(self_consistency(fresh, False)) == told


def test_what_cannot_be_measured_stays_in_the_table(run: Run) -> None:
    fewer = Run(replace(OPTIONS, samples=32, temperatures=()), run.places, 1, 1)
    told = all_rows(fewer.measured())
    assert {row.claim for row in told} == CLAIMS
    votes = next(row for row in told if row.claim == "self_consistency_40")
    assert (votes.measured, votes.interval, votes.holds) == (None, None, False)
    assert votes.reason == "not measured: needs 40 samples of each problem, and 32 are stored"


def test_as_many_are_told_as_every_problem_has(run: Run, tmp_path: Path) -> None:
    """A run that was stopped, or a model that was sampled less, is reported with what it has."""
    store = tmp_path / "store"
    shutil.copytree(run.places.store, store)
    fewer = Run(OPTIONS, replace(run.places, store=store), 1, 1)
    model = fewer.models[0]
    path = fewer.lane(model, OPTIONS.temperature).path(store)
    lines = read(path)
    lines[7]["samples"] = lines[7]["samples"][:96]
    path.unlink()
    append(path, lines)
    fewer.lane(model, 0.3).path(store).unlink()
    one, *others = fewer.measured()
    assert (one.most, {other.most for other in others}) == (96, {256})
    assert (set(one.by_temperature), set(others[0].by_temperature)) == ({0.7}, {0.3, 0.7})


def test_a_report_without_samples_says_what_to_do(run: Run, tmp_path: Path) -> None:
    empty = Run(OPTIONS, replace(run.places, store=tmp_path), 1, 1)
    with pytest.raises(NotMeasured, match="sample first"):
        empty.measured()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--models", "none", "--report"], "there is no model none"),
        (["--verifier", "none", "--report"], "there is no verifier 'none'"),
    ],
)
def test_unknown_names_are_told(arguments: list[str], said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        main(arguments)


def test_a_reduced_run_never_replaces_the_checked_in_results(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--reduced"])
    assert "name --results and --page" in capsys.readouterr().err


def check_files(results: Path, page: Path, models: set[str], problems: int) -> None:
    """The schema of all that is written."""
    written = json.loads((results / "headlines.json").read_text())
    assert {row["claim"] for row in written} >= CLAIMS - {"small_matches_large"}
    for row in written:
        assert row.keys() == KEYS
        assert isinstance(row["holds"], bool)
        assert (row["measured"] is None) == (row["interval"] is None)
        if row["measured"] is not None:
            low, high = row["interval"]
            assert low <= high
            assert row["how"]
        assert row["holds"] or row["reason"]
    queries = [json.loads(line) for line in (results / "headlines_queries.jsonl").read_text().splitlines()]
    assert len({row["query_id"] for row in queries}) == len(queries) == problems
    for row in queries:
        assert row["models"].keys() == models
        for told in row["models"].values():
            assert 0 <= told["one"] <= 1
            assert told["greedy"] in (0, 1)
            assert sum(votes for _, votes in told["top"]) <= told["samples"]
    manifest = json.loads((results / "headlines_manifest.json").read_text())
    assert manifest["models"].keys() == models
    assert set(manifest) >= {"date", "options", "verifier", "problems", "seeds", "versions", "machine"}
    for path in (results / "headlines_manifest.json", page):
        text = path.read_text()
        assert str(Path.home()) not in text or str(Path.home()) == "/"
        assert os.uname().nodename not in text


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_the_reduced_run_from_nothing_and_again(tmp_path: Path) -> None:
    arguments = ["--reduced", "--workers", "1", "--store", str(tmp_path / "store")]
    arguments += ["--results", str(tmp_path / "results"), "--page", str(tmp_path / "page" / "headlines.md")]
    main(arguments)
    check_files(tmp_path / "results", tmp_path / "page" / "headlines.md", {"abacus-s"}, REDUCED.problems)
    queries = (tmp_path / "results" / "headlines_queries.jsonl").read_text()
    stored = {path: path.read_bytes() for path in (tmp_path / "store").iterdir()}
    main(arguments)
    assert {path: path.read_bytes() for path in (tmp_path / "store").iterdir()} == stored
    assert (tmp_path / "results" / "headlines_queries.jsonl").read_text() == queries
