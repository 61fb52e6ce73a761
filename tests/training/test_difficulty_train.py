"""Training: what is in the text is found, what is not is not; and the command."""

from __future__ import annotations

import argparse
import builtins
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from services.difficulty.estimator import Estimator, load
from training import difficulty
from training.difficulty import LEAST_QUERIES, WITH_SENTENCES, Way, choose, fit_center, held_out, look, train
from training.difficulty_answers import Answers, AnswersError, read
from training.difficulty_command import command
from training.difficulty_figures import Held, chances, coverage, figures, spearman

ABILITY, SLOPE = np.array([-0.8, 0.2, 1.0]), np.array([2.0, 2.5, 3.0])


def simulated(queries: int = 240, seed: int = 0, seen: float = 0.8) -> Answers:
    """Long sums are hard; so is, by the share that is not `seen`, what no text shows."""
    rng = np.random.default_rng(seed)
    terms = rng.integers(2, 30, queries)
    prompts = ["+".join(map(str, rng.integers(1, 99, count))) for count in terms]
    shown = np.log(terms)
    shown = (shown - shown.mean()) / shown.std()
    latent = seen * shown + np.sqrt(1 - seen**2) * rng.normal(size=queries)
    samples = np.full((queries, 3), 16.0)
    right = rng.binomial(16, expit(SLOPE * (ABILITY - latent[:, None]))).astype(float)
    tokens = np.exp(3 + 0.5 * latent)[:, None] * np.array([1.0, 1.5, 2.0])
    ids = [f"q{number}" for number in range(queries)]
    return Answers(ids, prompts, ["small", "middle", "large"], right, samples, tokens)


def test_difficulty_is_told_from_text_and_the_belief_is_true() -> None:
    answers = simulated(400)
    held, ways = held_out(answers, 3)
    assert len(ways) == 3
    told: dict[str, Any] = figures(held, answers.models, answers.right, answers.samples)
    assert 0.65 < told["spearman"] < 0.9
    assert told["ece"] < 0.05
    assert told["brier_skill"] > 0.2
    assert told["auc"] > 0.75
    for level, share in told["coverage"].items():
        assert share == pytest.approx(float(level) / 100, abs=0.09)
    assert set(told["models"]) == set(answers.models)
    assert held.tokens.sum() / answers.tokens.sum() == pytest.approx(1.0, abs=0.1)


def test_where_text_tells_nothing_the_belief_is_the_population() -> None:
    answers = simulated(300, seen=0.0)
    held, _ = held_out(answers, 3)
    assert abs(spearman(held.mean, held.difficulty)) < 0.2
    assert float(np.abs(held.mean).mean()) < 0.3
    assert float(held.sd.mean()) == pytest.approx(1.0, abs=0.15)


def test_the_spread_is_wider_where_errors_are() -> None:
    rng = np.random.default_rng(0)
    x = look(["1+1"] * 150 + ["one and one make"] * 150)
    center = rng.normal(size=300)
    variance = np.where(np.arange(300) < 150, 0.1, 1.0) * rng.chisquare(1, 300)
    spread = difficulty.fit_spread(x, center, variance)
    names = [name for name, *_ in spread.terms]
    assert "words" in names
    record = train(simulated(60), "x").record.model_copy(update={"log_variance": spread})
    ranges = {name: one.model_copy(update={"low": -1e9, "high": 1e9}) for name, one in record.ranges.items()}
    estimator = Estimator(record.model_copy(update={"ranges": ranges}))
    narrow, wide = estimator.belief("1+1")[1], estimator.belief("one and one make")[1]
    assert wide > 1.8 * narrow


@pytest.mark.parametrize("way", [*difficulty.WAYS, *WITH_SENTENCES], ids=lambda way: way.name)
def test_the_service_says_what_the_fit_says(way: Way) -> None:
    """Each way, exported as plain numbers, through the file, against scikit-learn's own prediction."""
    answers = simulated(120)
    sentences = np.random.default_rng(1).normal(size=(120, 5))
    trained = train(answers, "x", ("tiny", sentences), (way,))
    record = type(trained.record).model_validate_json(difficulty.text(trained.record))
    estimator = Estimator(record)
    seen = look(answers.prompts, sentences)
    expected = fit_center(way, seen, trained.fit.difficulty).predict(seen)
    needed = sentences if way.sentences else [None] * 120
    told = [estimator.belief(*pair) for pair in zip(answers.prompts, needed, strict=True)]
    assert [mean for mean, _ in told] == pytest.approx(expected.tolist(), abs=2e-3)
    assert trained.way == way.name
    assert (estimator.embedding == "tiny") == way.sentences


def test_exported_trees_are_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []

    class Kept(difficulty.GradientBoostingRegressor):  # type: ignore[misc]
        def fit(self, x: Any, y: Any) -> Any:
            kept.append(super().fit(x, y))
            return kept[-1]

    monkeypatch.setattr(difficulty, "GradientBoostingRegressor", Kept)
    seen = look(simulated(150).prompts)
    target = np.sin(seen.features[:, 0] * 3) + seen.features[:, 7]
    center = fit_center(Way("boosted trees", trees=True), seen, target)
    assert center.predict(seen) == pytest.approx(kept[0].predict(seen.features))


def test_the_simplest_way_that_is_as_good_is_taken() -> None:
    rng = np.random.default_rng(0)
    target = rng.normal(size=200)
    simple, good, costly = Way("simple"), Way("good"), Way("costly")
    near = target + 0.3 * rng.normal(size=200)
    found = {simple: np.zeros(200), good: near, costly: near + 0.001 * rng.normal(size=200)}
    assert choose(found, target) == good
    found[simple] = target + 0.3 * rng.normal(size=200)
    assert choose(found, target) == simple


def test_chances_are_judged_by_hand_counts() -> None:
    told = chances(np.array([0.25, 0.75]), np.array([1.0, 4.0]), np.array([4.0, 4.0]))
    assert told["right"] == 5 / 8
    assert told["ece"] == pytest.approx((0 + 0.25) / 2)
    brier = (0.75**2 + 3 * 0.25**2 + 4 * 0.25**2) / 8
    assert told["brier_skill"] == pytest.approx(1 - brier / (5 / 8 * 3 / 8))
    # Of 15 pairs of a right and a wrong sample: 12 in order, 3 in the same cell.
    assert told["auc"] == pytest.approx((12 + 1.5) / 15)
    assert np.isnan(chances(np.array([0.5]), np.array([2.0]), np.array([2.0]))["auc"])


def test_coverage_is_that_of_the_normal_distribution() -> None:
    one, few = np.ones(400), np.zeros((400, 0))
    drawn = np.random.default_rng(0).normal(size=400)
    right_width = coverage(Held(0 * one, one, few, few, drawn, 0.01 * one))
    too_narrow = coverage(Held(0 * one, one / 3, few, few, drawn, 0.01 * one))
    assert right_width["80"] == pytest.approx(0.8, abs=0.06)
    assert too_narrow["80"] < 0.5


def test_ranks_are_compared_with_ties_and_constants() -> None:
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 9.0])) == pytest.approx(1.0)
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([5.0, 5.0, 1.0])) == pytest.approx(-0.866, abs=1e-3)
    assert np.isnan(spearman(np.ones(3), np.arange(3.0)))


def test_what_cannot_be_learned_from_is_refused() -> None:
    answers = simulated(LEAST_QUERIES)
    train(answers, "just enough")
    with pytest.raises(AnswersError, match=f"{LEAST_QUERIES - 1} queries .* at least {LEAST_QUERIES}"):
        train(answers.of(np.arange(LEAST_QUERIES - 1)), "x")
    seldom = answers.samples.copy()
    seldom[1:, 0] = 0
    with pytest.raises(AnswersError, match=f"answers of {answers.models[0]} to fewer than {LEAST_QUERIES}"):
        train(replace(answers, right=np.minimum(answers.right, seldom), samples=seldom), "x")
    # As few are cross-validated, too, though each fold has fewer.
    held_out(answers, 5)
    cells = (answers.right[:, :1], answers.samples[:, :1], answers.tokens[:, :1])
    with pytest.raises(AnswersError, match="small alone"):
        train(Answers(answers.query_ids, answers.prompts, ["small"], *cells), "x")
    for right in (answers.samples, 0 * answers.samples):
        with pytest.raises(AnswersError, match="no query is harder"):
            train(replace(answers, right=right), "x")


def rows(answers: Answers) -> list[dict[str, Any]]:
    return [
        {
            "query_id": query_id,
            "prompt": prompt,
            "model": model,
            "right": int(answers.right[q, m]),
            "samples": int(answers.samples[q, m]),
            "tokens": float(answers.tokens[q, m]),
        }
        for q, (query_id, prompt) in enumerate(zip(answers.query_ids, answers.prompts, strict=True))
        for m, model in enumerate(answers.models)
    ]


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    start = command(parser)
    return start(parser.parse_args([str(argument) for argument in arguments]))


def saved(folder: Path, answers: Answers, *more: str) -> Path:
    path = folder / "answers.jsonl"
    path.write_text("\n".join([*map(json.dumps, rows(answers)), *more]) + "\n")
    return path


def test_the_command_writes_an_estimator_with_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers, out = simulated(90), tmp_path / "mine.json"
    lost = json.dumps({"query_id": "lost", "model": "small", "right": 1, "samples": 2})
    path = saved(tmp_path, answers, "{", lost)
    assert run("--answers", path, "--output", out, "--folds", 2, "--json") == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert (told["queries"], told["folds"], told["broken_lines"], told["without_prompt"]) == (90, 2, 1, 1)
    assert f"{path}, line 271: not JSON" in printed.err
    assert "lines that are broken and left out: 1" in printed.err
    assert "queries that have no prompt and are left out: 1" in printed.err
    content = json.loads(out.read_text())
    assert content["figures"] == told
    assert content["data"] == read(path).answers.digest
    estimator = load(out)
    assert estimator.name == "mine"
    short, long = estimator.estimate("12+7"), estimator.estimate("+".join(["12"] * 25))
    assert short.mean < long.mean
    assert [outlook.model for outlook in short.outlooks] == ["small", "middle", "large"]
    assert run("--answers", path, "--output", out, "--folds", 2) == 0
    assert "Brier skill" in capsys.readouterr().out


def test_the_command_says_in_one_sentence_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few, out = saved(tmp_path, simulated(5)), tmp_path / "mine.json"
    enough = tmp_path / "enough"
    enough.mkdir()
    path = saved(enough, simulated(60))
    for arguments, said in (
        (("--answers", few), "5 queries with a prompt; at least 30 are needed"),
        (("--answers", tmp_path / "missing.jsonl"), "missing.jsonl: No such file"),
        (("--answers", path, "--embedding", tmp_path / "nowhere"), "embedding "),
        (("--answers", path, "--folds", 2, "--output", tmp_path / "no" / "such.json"), "No such file"),
    ):
        assert run("--output", out, *arguments) == 1
        error = capsys.readouterr().err.strip().splitlines()
        assert error[-1].startswith("isoflop train-difficulty: ")
        assert said in error[-1]
        assert not out.exists()
    for folds in ("1", "many"):
        with pytest.raises(SystemExit):
            run("--answers", path, "--folds", folds)


def test_without_scikit_learn_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = builtins.__import__

    def lacks(name: str, *rest: Any) -> Any:
        if name == "sklearn":
            raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", lacks)
    assert run("--answers", tmp_path / "answers.jsonl") == 1
    assert "sklearn is missing: pip install 'isoflop-suite[training]'" in capsys.readouterr().err
