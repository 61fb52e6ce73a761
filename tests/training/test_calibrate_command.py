"""`isoflop calibrate`, as it is called: over recordings that are played back, and over an embedded model."""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from router import profile
from training import calibrate
from training.splits import FOLDER as PROBLEMS

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "recordings"
QUERIES = 12


def played(folder: Path, models: tuple[str, ...] = ("a", "b"), count: int = QUERIES) -> list[str]:
    """Options for a catalogue whose models play recorded samples of so many queries, in two groups."""
    rng = random.Random(1)
    rows, queries = [], []
    for number in range(count):
        prompt, answer = f"What is {number}+1? (no. {number})", str(number + 1)
        queries.append(
            {
                "query_id": f"q{number}",
                "prompt": prompt,
                "answer": answer,
                "type": "number",
                "group": number % 2,
            }
        )
        for at, model in enumerate(models):
            samples = [
                {
                    "answer": answer if rng.random() < (0.5 + 0.3 * at) else str(rng.randint(100, 103)),
                    "tokens": 20,
                }
                for _ in range(8)
            ]
            rows.append({"query_id": f"q{number}", "model": model, "prompt": prompt, "samples": samples})
    (folder / "played.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    entry = "  - {{name: {}, backend: recorded, path: played.jsonl, shape: {{active_parameters: {}}}}}"
    entries = [entry.format(name, 10 ** (6 + at)) for at, name in enumerate(models)]
    (folder / "catalog.yaml").write_text("\n".join(["currency: USD", "models:", *entries]) + "\n")
    (folder / "verifiers.yaml").write_text("verifiers: [{name: logprob, backend: logprob}]\n")
    catalogs = [
        "--catalog",
        str(folder / "catalog.yaml"),
        "--verifier-catalog",
        str(folder / "verifiers.yaml"),
    ]
    return [*catalogs, "--output", str(folder / "p.json"), "--samples", "4", "--yes", "--json"]


def command(*options: str | Path) -> int:
    parser = argparse.ArgumentParser()
    run = calibrate.command(parser)
    return run(parser.parse_args(list(map(str, options))))


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    return played(tmp_path)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_queries_become_a_profile_and_a_second_run_buys_nothing(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--queries", str(tmp_path / "queries.jsonl"), *options]
    assert command(*options, "--version-name", "first") == 0
    out, err = capsys.readouterr()
    assert f"{QUERIES * 2} rounds of 4 samples and a greedy one, about" in err
    told = json.loads(out)
    assert (told["version"], told["queries"], told["faults"]) == ("first", QUERIES, [])
    assert [arm["model"] for arm in told["arms"]] == ["a", "a", "b", "b"]
    read = profile.load(tmp_path / "p.json")
    assert {arm.model for arm in read.arms} == {"a", "b"}
    laws = [(law.model, law.strategy, law.temperature, law.queries, law.samples) for law in read.scaling]
    assert laws == [(model, "majority", 0.7, QUERIES, (1, 4)) for model in ("a", "b")]
    kept = tmp_path / "p.recording.jsonl"
    before = kept.read_bytes()
    assert len([row for row in rows(kept) if row["samples"]]) == QUERIES * 2
    # How fast a model is is kept, too.
    assert sorted(row["model"] for row in rows(kept) if not row["samples"]) == ["a", "b"]
    assert command(*options, "--version-name", "second") == 0
    assert kept.read_bytes() == before
    assert "rounds" not in capsys.readouterr().err
    first, second = read, profile.load(tmp_path / "p.json")
    assert (first.version, second.version) == ("first", "second")
    assert [arm.p_right.tolist() for arm in first.arms] == [arm.p_right.tolist() for arm in second.arms]
    assert [arm.seconds_per_token for arm in first.arms] == [arm.seconds_per_token for arm in second.arms]


def test_a_recording_alone_makes_the_same_profile(options: list[str], tmp_path: Path) -> None:
    command("--queries", tmp_path / "queries.jsonl", *options, "--temperature", "0.9", "--version-name", "v")
    made = json.loads((tmp_path / "p.json").read_text())
    assert {arm["temperature"] for arm in made["arms"]} == {0.0, 0.9}
    assert {law["temperature"] for law in made["scaling"]} == {0.9}
    again = ["--recordings", tmp_path / "p.recording.jsonl", *options, "--output", tmp_path / "again.json"]
    assert command(*again, "--version-name", "v") == 0
    assert json.loads((tmp_path / "again.json").read_text()) == made


def test_the_planner_is_compared_with_fixed_plans_where_queries_are_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*played(tmp_path, count=40), "--queries", str(tmp_path / "queries.jsonl")]
    told = {}
    for name, more in (("plain", []), ("estimated", ["--estimator", str(tmp_path / "e.json")])):
        output = tmp_path / f"{name}.json"
        recording = ["--recording", str(tmp_path / "r.jsonl"), "--version-name", "v"]
        assert command(*options, *recording, "--output", output, *more) == 0
        told[name] = json.loads(capsys.readouterr().out)["baselines"]
        read = profile.load(output)
        assert list(read.baselines) == ["low", "medium", "high"]
        for effort, plan in read.baselines.items():
            assert plan.model_dump(exclude_defaults=True) == told[name][effort]
            assert (plan.queries, plan.model in ("a", "b")) == (40, True)
    # All else is the same, with an estimator or without.
    plain, estimated = (json.loads((tmp_path / f"{name}.json").read_text()) for name in told)
    assert plain | {"baselines": {}} == estimated | {"baselines": {}}
    table = [*options, "--recording", str(tmp_path / "r.jsonl")]
    table.remove("--json")
    assert command(*table) == 0
    assert "the cheapest fixed plan" in capsys.readouterr().out
    assert command(*options, "--first", "20", "--recording", tmp_path / "few.jsonl") == 0
    assert json.loads(capsys.readouterr().out)["baselines"] == {}


def test_the_first_of_the_queries_take_turns_by_group(options: list[str], tmp_path: Path) -> None:
    command("--queries", tmp_path / "queries.jsonl", *options, "--first", "10", "--at-a-time", "1")
    ids = list(dict.fromkeys(row["query_id"] for row in rows(tmp_path / "p.recording.jsonl")))
    assert ids == [f"q{number}" for number in range(10)]


def test_a_cap_ends_a_run_and_more_goes_on(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--queries", str(tmp_path / "queries.jsonl"), *options]
    assert command(*options, "--most-flops", "1e9") == 1
    assert "no context is known: a cap needs --max-tokens" in capsys.readouterr().err
    assert command(*options, "--max-tokens", "20", "--most-flops", "1e9") == 1
    assert "isoflop calibrate: the cap has no room for the next round, at worst" in capsys.readouterr().err
    assert not (tmp_path / "p.json").exists()
    assert command(*options, "--max-tokens", "20", "--most-flops", "3.3e10") == 1
    out, err = capsys.readouterr()
    assert "the cap has no room for the next round" in err
    assert 10 <= json.loads(out)["queries"] < QUERIES
    assert sum(row["flops"] for row in rows(tmp_path / "p.recording.jsonl")) <= 3.3e10
    assert command(*options, "--max-tokens", "20", "--most-flops", "1e12") == 0
    assert json.loads(capsys.readouterr().out)["queries"] == QUERIES


def test_queries_that_cannot_be_used_are_left_out_and_told_at_the_end(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "queries.jsonl"
    with path.open("a") as file:
        file.write('{"query_id": "odd", "prompt": "Who?", "answer": "Ann", "type": "number"}\n')
        file.write('{"query_id": "new", "prompt": "Not recorded", "answer": "1", "type": "number"}\n')
    assert command("--queries", path, *options) == 1
    out, err = capsys.readouterr()
    assert "left out a query: odd (its answer is none of its type)" in err
    assert "left out a query: new (a: messages: a has no recording of this query)" in err
    told = json.loads(out)
    assert (told["queries"], len(told["faults"])) == (QUERIES, 2)
    assert profile.load(tmp_path / "p.json")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--models", "z"], "there is no model 'z'; there are: a, b"),
        (["--verifiers", "z"], "there is no verifier 'z'"),
        (["--generation", "localhost:1"], "--generation, --verification and --aggregation go together"),
        (["--queries", "none.jsonl"], "none.jsonl: No such file"),
        (["--output", "."], r"\. is a folder"),
        (["--recording", "r.jsonl.gz"], "not packed"),
        (["--catalog", "none.yaml"], "none.yaml"),
        (
            ["--samples", "9"],
            "a has 8 recorded samples of this query: ask for no more; what came before is kept",
        ),
        (["--strategies", "beam", "--recordings", "r.jsonl"], "--strategies are played on --queries"),
        (["--first", "3"], "needs 10 queries at least, and there are 3"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    options: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    queries = (
        [] if {"--queries", "--recordings"} & set(more) else ["--queries", str(tmp_path / "queries.jsonl")]
    )
    assert command(*queries, *options, *more) == 1
    err = capsys.readouterr().err
    assert "isoflop calibrate: " in err
    assert "Traceback" not in err
    assert re.search(said, err)
    assert not (tmp_path / "p.json").exists()


@pytest.mark.parametrize(
    "more",
    [
        ["--samples", "1"],
        ["--temperature", "0"],
        ["--most-flops", "nan"],
        ["--most-money", "-1"],
        ["--first", "x"],
        ["--strategies", "beam,prayer"],
        ["--strategies", "broad_and_deep"],
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: list[str], more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command("--queries", "q.jsonl", *options, *more)
    assert more[0] in capsys.readouterr().err


def test_an_estimator_that_cannot_be_made_does_not_take_the_profile_with_it(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--queries", tmp_path / "queries.jsonl", *options, "--estimator", tmp_path / "e.json") == 1
    assert "isoflop calibrate: " in capsys.readouterr().err
    assert profile.load(tmp_path / "p.json")
    assert not (tmp_path / "e.json").exists()


def test_ctrl_c_is_told_and_what_came_is_kept(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrate, "_fit", interrupted)
    assert command("--queries", tmp_path / "queries.jsonl", *options) == 130
    assert "interrupted" in capsys.readouterr().err
    assert len(rows(tmp_path / "p.recording.jsonl")) == QUERIES * 2 + 2


def test_an_embedded_model_is_measured_live(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--queries", PROBLEMS / "calibration.jsonl", "--first", "10", "--models", "abacus-s"]
    options += ["--samples", "2", "--verifiers", "logprob", "--output", tmp_path / "p.json"]
    assert command(*options) == 0
    assert "from 10 queries" in capsys.readouterr().out
    read = profile.load(tmp_path / "p.json")
    (greedy, sampled) = read.arms
    assert read.scaling == ()  # Two samples are too few for a law.
    assert (greedy.temperature, sampled.temperature, sampled.model) == (0.0, 0.7, "abacus-s")
    assert 0 < sampled.seconds_per_token < 1
    assert sampled.tokens.min() > 5
    # Of problems of one operation to twelve the small model solves some.
    assert 0.1 < sampled.p_right.mean() < 0.9
    kept = rows(tmp_path / "p.recording.jsonl")
    assert all(0 <= sample["scores"]["logprob"] <= 1 for row in kept for sample in row["samples"])


def test_a_strategy_that_no_model_serves_is_told_once_and_the_profile_is_as_without(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--queries", str(tmp_path / "queries.jsonl"), *options, "--version-name", "v"]
    assert command(*options) == 0
    before = (tmp_path / "p.json").read_bytes()
    capsys.readouterr()
    assert command(*options, "--strategies", "sequential,refine") == 0
    out, err = capsys.readouterr()
    assert err.count("is not played with a, b: the model cannot serve it") == 2
    assert json.loads(out)["deep"] == []
    assert (tmp_path / "p.json").read_bytes() == before


def test_strategies_are_played_on_an_embedded_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--queries", PROBLEMS / "calibration.jsonl", "--first", "10", "--models", "abacus-s"]
    options += ["--samples", "2", "--verifiers", "logprob", "--output", tmp_path / "p.json"]
    options += ["--version-name", "v"]
    assert command(*options, "--strategies", "beam:2x2x12,sequential@60,refine:1x1x1") == 0
    out, err = capsys.readouterr()
    assert "10 rounds of 2 samples and a greedy one and 30 plays of strategies, about" in err
    assert "strategies that make chains in parts" in out
    made = json.loads((tmp_path / "p.json").read_text())
    assert [one["strategy"] for one in made["deep"]] == ["beam", "sequential", "refine"]
    assert [one["verifier"] for one in made["deep"]] == ["logprob", "", "logprob"]
    read = profile.load(tmp_path / "p.json")
    beam, sequential, _ = read.deep
    # A beam that is pruned by likelihood solves some; four chains at a time cost more than one.
    assert 0.1 < beam.arm.p_right @ read.prior < 0.95
    assert beam.times.min() > 1.5
    assert sequential.arm.tokens.max() < 100
    # The recording has it all; a strategy that was played on some of the queries is left out.
    kept = rows(tmp_path / "p.recording.jsonl")
    assert len([row for row in kept if "deep" in row]) == 30
    assert command(*options, "--json") == 0
    out, err = capsys.readouterr()
    assert "rounds" not in err
    assert "plays" not in err
    told = json.loads(out)["deep"]
    assert [(one["strategy"], one["search"]["width"]) for one in told] == [
        ("beam", 2), ("sequential", 1), ("refine", 1)
    ]  # fmt: skip
    assert all(len(one["right"]) == len(one["times"]) == 3 for one in told)
    some = tmp_path / "some.jsonl"
    some.write_text("".join(json.dumps(row) + "\n" for row in kept[:-2]))
    assert command("--recordings", some, *options[4:], "--output", tmp_path / "again.json") == 0
    assert "left out: abacus-s refine:1x1x1 (of 1)" in capsys.readouterr().err
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["deep"] == made["deep"][:2]


@pytest.mark.shared_data
def test_recordings_of_real_models_make_a_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = SHARED / "aime2024.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    names = {"gpt-oss-20b": 3.6e9, "Qwen3-4B": 4.0e9}
    entries = [
        f"  - {{name: {name}, backend: recorded, path: '{path}', shape: {{active_parameters: {size:.0f}}}}}"
        for name, size in names.items()
    ]
    options = played(tmp_path)
    (tmp_path / "catalog.yaml").write_text("\n".join(["currency: USD", "models:", *entries]) + "\n")
    assert command("--recordings", path, *options, "--models", ",".join(names)) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["queries"], [arm["model"] for arm in told["arms"]]) == (30, list(names))
    read = profile.load(tmp_path / "p.json")
    # The README of the data: gpt-oss once solves three quarters of AIME.
    (arm,) = [arm for arm in read.arms if arm.model == "gpt-oss-20b"]
    assert arm.p_right @ read.prior == pytest.approx(0.758, abs=0.05)
    # No more than 30 problems: no bins.
    assert [(law.model, law.strategy, law.difficulty) for law in read.scaling] == [
        (name, "majority", None) for name in names
    ]
    assert read.scaling[0].at(1) == pytest.approx(0.758, abs=0.05)
