"""`isoflop profile` and `isoflop replay`: what they print, change, and refuse in one sentence."""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from isoflop.errors import FailedPrecondition, InvalidArgument, IsoflopError, NotFound
from synthetic import EFFORTS, GRID, PARAMETERS, arm_record, make_catalog, make_profile, record
from test_profiles import put

from router import profile_diff, profiles, replay
from router.profile_commands import profile_command, replay_command
from router.replay import Compared, Played, Report, calibration_error, comparison, verdict

Call = Callable[..., str]


@pytest.fixture(autouse=True)
def logs_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A logger that is configured once writes for ever to the standard error of that test."""
    monkeypatch.setattr("router.profile_commands.log.configure", lambda level, form: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """v1 is live, v2 is there."""
    folder = tmp_path / "profiles"
    folder.mkdir()
    for version in ("v1", "v2"):
        put(folder / f"{version}.json", record(version=version))
    put(folder / "rollout.json", {"schema": 1, "live": "v1"})
    return folder


@pytest.fixture
def call(folder: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs `isoflop profile`; what it prints."""

    def call(name: str, *arguments: object, of: Path = folder) -> str:
        parser = argparse.ArgumentParser()
        run = profile_command(parser)
        assert run(parser.parse_args([name, *map(str, arguments), "--folder", str(of)])) == 0
        return capsys.readouterr().out

    return call


def report(folder: Path, new: str, live: str, *, at: str = "2026-11-24T00:00:00Z", **changes: Any) -> None:
    (folder / "replays").mkdir(exist_ok=True)
    shas = [profiles.sha256_of(folder / f"{version}.json") for version in (new, live)]
    data = {
        "at": at,
        "profile": {"version": new, "sha256": shas[0]},
        "against": {"version": live, "sha256": shas[1]},
        "no_worse": True,
    }
    put(folder / "replays" / f"{at}.json", data | changes)


# Who is what.


def test_a_folder_is_begun_by_add_and_live(call: Call, tmp_path: Path) -> None:
    new = tmp_path / "new" / "folder"
    path = put(tmp_path / "found.json", record(version="v7"))
    assert "v7" in call("add", path, of=new)
    with pytest.raises(IsoflopError, match="no such file: `isoflop profile live VERSION` makes it"):
        call("canary", "v7", of=new)
    assert "v7 is live, the first" in call("live", "v7", of=new)
    assert profiles.Files(new).read().live.version == "v7"


def test_a_version_is_never_another_profile(call: Call, folder: Path, tmp_path: Path) -> None:
    call("add", put(tmp_path / "same.json", record(version="v1")))
    other = put(tmp_path / "other.json", record(version="v1", efforts={**EFFORTS, "low": 1.0}))
    with pytest.raises(FailedPrecondition, match="another profile of this version"):
        call("add", other)
    assert json.loads((folder / "v1.json").read_text())["efforts"]["low"] == EFFORTS["low"]
    for version in ("../v1", "rollout", ".hidden", ""):
        with pytest.raises(InvalidArgument, match="version"):
            call("add", put(tmp_path / "odd.json", record(version=version)))
    with pytest.raises(IsoflopError, match=r"bad\.json: not JSON"):
        call("add", put(tmp_path / "bad.json", "{"))


def test_live_wants_a_replay_of_exactly_these_files(call: Call, folder: Path) -> None:
    with pytest.raises(FailedPrecondition, match="no replay report is of exactly this file"):
        call("live", "v2")
    report(folder, "v2", "v1", no_worse=False)
    with pytest.raises(FailedPrecondition, match="worse in the replay of 2026-11-24"):
        call("live", "v2")
    report(folder, "v2", "v1", at="2026-11-25T00:00:00Z")
    put(folder / "v2.json", record(version="v2", efforts={**EFFORTS, "low": 1.0}))
    with pytest.raises(FailedPrecondition, match="no replay report is of exactly this file"):
        call("live", "v2")
    put(folder / "v2.json", record(version="v2"))
    assert "no worse in the replay of 2026-11-25" in call("live", "v2")
    rollout = profiles.read_rollout(folder)
    assert (rollout.live, rollout.previous) == ("v2", "v1")
    assert "no worse" in rollout.changes[-1].reason
    with pytest.raises(FailedPrecondition, match="v2 is live already"):
        call("live", "v2")


def test_force_is_recorded_with_its_reason(call: Call, folder: Path) -> None:
    with pytest.raises(InvalidArgument, match="say why"):
        call("live", "v2", "--force", "  ")
    call("live", "v2", "--force", "the old one is of last year's models")
    assert profiles.read_rollout(folder).changes[-1].reason == "forced: the old one is of last year's models"
    assert "forced: the old one" in call("list")


def test_rollback_is_one_command(call: Call, folder: Path) -> None:
    call("live", "v2", "--force", "a trial")
    put(folder / "v3.json", record(version="v3"))
    call("canary", "v3", "--share", "0.2")
    said = call("rollback")
    assert "v1 is live again instead of v2" in said
    assert "v3 is no canary" in said
    assert profiles.read_rollout(folder).canary is None
    with pytest.raises(FailedPrecondition, match="nothing to go back to"):
        call("rollback")


def test_rollback_to_a_damaged_file_changes_nothing(call: Call, folder: Path) -> None:
    call("live", "v2", "--force", "a trial")
    put(folder / "v1.json", "{")
    with pytest.raises(IsoflopError, match=r"v1\.json"):
        call("rollback")
    assert profiles.read_rollout(folder).live == "v2"


def test_trials_begin_and_end(call: Call, folder: Path) -> None:
    call("shadow", "v2")
    call("canary", "v2", "--share", "0.5")
    rollout = profiles.read_rollout(folder)
    assert (rollout.shadow, rollout.canary) == ("v2", profiles.Canary(version="v2", share=0.5))
    listed = call("list")
    assert "canary 0.5, shadow" in listed
    call("shadow", "--off")
    call("canary", "--off")
    rollout = profiles.read_rollout(folder)
    assert (rollout.shadow, rollout.canary) == (None, None)
    for arguments in ((), ("v2", "--off")):
        with pytest.raises(InvalidArgument, match="name one, or give --off"):
            call("shadow", *arguments)
    with pytest.raises(NotFound, match="which has v1, v2"):
        call("canary", "v9")
    for share in ("0", "1.2", "nan", "half"):
        with pytest.raises(SystemExit):
            call("canary", "v2", "--share", share)


def test_one_file_is_told_how_to_become_a_folder(call: Call, tmp_path: Path) -> None:
    single = put(tmp_path / "profile.json", record(version="v1"))
    assert json.loads(call("list", "--json", of=single))["profiles"][0]["roles"] == ["live"]
    with pytest.raises(FailedPrecondition, match="isoflop profile add"):
        call("shadow", "v1", of=single)


def test_list_tells_of_files_that_are_no_good(call: Call, folder: Path) -> None:
    put(folder / "v2.json", "{")
    put(folder / "rollout.json", "{")
    told = json.loads(call("list", "--json"))
    assert [bool(one["fault"]) for one in told["profiles"]] == [False, True]
    assert "rollout.json" in told["fault"]
    assert "rollout.json" in call("list")


def test_show_is_of_the_live_one_by_default(call: Call, folder: Path) -> None:
    told = json.loads(call("show", "--json"))
    assert (told["version"], told["roles"]) == ("v1", ["live"])
    assert told["sha256"] == profiles.sha256_of(folder / "v1.json")
    easy, middle, hard = told["arms"][0]["accuracy"]
    assert 1 > easy > middle > hard > 0
    shown = call("show", "v2")
    assert "v2" in shown
    assert "right: easy" in shown
    assert "fixed plan" not in shown
    assert told["baselines"] == {}


def test_show_tells_what_the_planner_is_compared_with(call: Call, folder: Path) -> None:
    plan = {
        "model": "m",
        "temperature": 0.0,
        "strategy": "single",
        "samples": 1,
        "accuracy": 0.7,
        "flops": 3e8,
        "policy_accuracy": 0.65,
        "policy_flops": 2e8,
        "queries": 100,
    }
    vote = plan | {"temperature": 0.8, "strategy": "majority", "samples": 4}
    put(folder / "v3.json", record(version="v3", baselines={"low": plan, "high": vote}))
    assert json.loads(call("show", "v3", "--json"))["baselines"]["low"]["flops"] == 3e8
    rows = [" ".join(line.split()) for line in call("show", "v3").splitlines()]
    assert "low m × single × 1, greedy 70.0% 65.0% 300 M 200 M" in rows
    assert "high m × majority × 4 70.0% 65.0% 300 M 200 M" in rows


# How they differ.


def test_thirds_are_of_the_queries() -> None:
    profile = make_profile()
    weights = profile.bins(3)
    assert weights.sum(axis=1) == pytest.approx(1)
    assert weights.sum(axis=0) / 3 == pytest.approx(profile.prior)
    means = weights @ profile.grid
    assert means == pytest.approx([-means[2], 0, means[2]], abs=1e-9)
    assert means[2] > 0.8


def test_a_profile_decides_as_itself_and_otherwise_by_other_efforts() -> None:
    profile, catalog = make_profile(), make_catalog()
    states, otherwise = profile_diff.decided_otherwise(profile, profile, catalog)
    assert (states, otherwise) == (3 * 3 * (1 + 3 * 3), 0)
    cheap = make_profile(efforts={name: worth / 1000 for name, worth in EFFORTS.items()})
    states, otherwise = profile_diff.decided_otherwise(profile, cheap, catalog)
    assert 0 < otherwise < states
    assert profile_diff.decided_otherwise(profile, make_profile(["l"]), make_catalog())[0] == 3 * 3 * 4


def write_catalog(path: Path, models: dict[str, int]) -> Path:
    entries = [
        {"name": name, "backend": "recorded", "path": "none", "shape": {"active_parameters": size}}
        for name, size in models.items()
    ]
    path.write_text(yaml.safe_dump({"models": entries}))
    return path


def test_diff_in_words_and_for_machines(call: Call, folder: Path, tmp_path: Path) -> None:
    better = arm_record("m", p_right=[1.0] * len(GRID), tokens=[10.0] * len(GRID))
    arms = [arm_record("s"), better, arm_record("l", 0.3)]
    other = put(tmp_path / "b.json", record(version="b", arms=arms, efforts={**EFFORTS, "low": 6e7}))
    catalog = write_catalog(tmp_path / "catalog.yaml", PARAMETERS)
    told = json.loads(call("diff", "v1", other, "--json", "--catalog", catalog))
    assert [(arm["model"], arm["temperature"]) for arm in told["added"]] == [("l", 0.3)]
    assert {(arm["model"], arm["temperature"]) for arm in told["gone"]} == {
        ("s", 0.0), ("m", 0.0), ("l", 0.0), ("l", 0.8)
    }  # fmt: skip
    before, after = next(pair for pair in told["both"] if pair[0]["model"] == "m")
    assert after["accuracy"] == pytest.approx([1.0] * 3, abs=1e-3)
    assert before["accuracy"][2] < 0.5
    assert told["efforts"]["low"] == [3e7, 6e7]
    assert told["otherwise"] > 0
    words = call("diff", "v1", other, "--catalog", catalog)
    assert "effort low: a right answer is worth 30.0 MFLOPs, then 60.0 MFLOPs (+100%)" in words
    assert f"decided otherwise: {told['otherwise']} of {told['states']} reference states" in words
    none = write_catalog(tmp_path / "other.yaml", {"x": 5})
    assert "decisions are not compared" in call("diff", "v1", other, "--catalog", none)
    with pytest.raises(InvalidArgument, match="catalog: "):
        call("diff", "v1", other, "--catalog", tmp_path / "none.yaml")


def law(ceiling: tuple[float, float, float] | None, **changes: Any) -> dict[str, Any]:
    told = {} if ceiling is None else {"ceiling": ceiling[0], "ceiling_interval": ceiling[1:]}
    return {
        "model": "s",
        "strategy": "majority",
        "queries": 100,
        "samples": [1, 32],
        "form": "logarithm",
        "parameters": {"a": 0.3, "c": 0.1},
        "errors": {"logarithm": 0.0},
        "held_out": "more samples",
        "best_n": 32,
        "falls": False,
        **told,
        **changes,
    }


def test_diff_tells_how_ceilings_changed(call: Call, tmp_path: Path) -> None:
    """Bins go by their order: their difficulties are of each profile's own queries."""
    bins = [{"difficulty": [-2.0, 0.0]}, {"difficulty": [0.1, 2.0]}]
    scored = {"strategy": "weighted", "verifier": "v"}
    before = [
        law((0.5, 0.45, 0.55)), law((0.9, 0.85, 0.95), **bins[0]), law(None, **bins[1]),
        law((0.6, 0.5, 0.7), **scored), law((0.7, 0.6, 0.8), model="gone"), law(None, model="m"),
    ]  # fmt: skip
    moved = [{"difficulty": [-1.0, 0.5]}, {"difficulty": [0.6, 1.0]}]
    after = [
        law((0.6, 0.56, 0.65)), law((0.92, 0.86, 0.97), **moved[0]), law((0.3, 0.2, 0.4), **moved[1]),
        law((0.6, 0.5, 0.7), **scored), law(None, model="m"), law((0.1, 0.0, 0.2), model="new"),
    ]  # fmt: skip
    a, b = (
        put(tmp_path / f"{v}.json", record(version=v, scaling=x)) for v, x in (("a", before), ("b", after))
    )
    catalog = write_catalog(tmp_path / "catalog.yaml", PARAMETERS)
    told = json.loads(call("diff", a, b, "--json", "--catalog", catalog))["ceilings"]
    assert [(one["model"], one["strategy"], one["bin"]) for one in told] == [
        ("s", "majority", None), ("s", "majority", [1, 2]), ("s", "majority", [2, 2])
    ]  # fmt: skip
    assert told[0]["before"] == {"ceiling": 0.5, "low": 0.45, "high": 0.55}
    assert (told[2]["before"], told[2]["after"]["ceiling"]) == (None, 0.3)
    lines = [" ".join(line.split()) for line in call("diff", a, b, "--catalog", catalog).splitlines()]
    assert "s majority all 50.0% (45.0 to 55.0) 60.0% (56.0 to 65.0)" in lines
    assert "s majority bin 2 of 2 none found 30.0% (20.0 to 40.0)" in lines
    assert "ceilings that moved within their intervals: 1" in lines
    assert "ceiling" not in call("diff", a, a, "--catalog", catalog)


# The gate's figures.


def played(right: list[float], flops: float, confidence: float = 0.5) -> Played:
    values = np.array(right)[:, None]
    return Played(values, np.full_like(values, flops), np.full_like(values, confidence))


def test_calibration_error_is_the_gap_between_said_and_true() -> None:
    confidence = np.array([[0.9] * 10 + [0.3] * 10]).T
    right = np.array([[1.0] * 9 + [0.0] + [1.0] * 8 + [0.0] * 2]).T
    assert calibration_error(confidence, right) == pytest.approx(0.25)
    assert calibration_error(right, right) == 0


@pytest.mark.parametrize(
    ("right", "flops", "no_worse"),
    [
        ([1.0] * 90 + [0.0] * 10, 10.0, True),
        ([1.0] * 89 + [0.0] * 11, 10.0, True),
        ([1.0] * 88 + [0.0] * 12, 10.0, False),  # Less accurate.
        ([1.0] * 88 + [0.0] * 12, 0.0, False),  # However cheap.
        ([1.0] * 90 + [0.0] * 10, 10.9, True),
        ([1.0] * 90 + [0.0] * 10, 11.1, False),  # As accurate, for more than its tolerance is worth.
        ([1.0] * 92 + [0.0] * 8, 11.1, True),
    ],
)
def test_worse_is_less_accurate_or_less_worth(right: list[float], flops: float, no_worse: bool) -> None:
    against = played([1.0] * 90 + [0.0] * 10, 10.0)
    found = comparison(played(right, flops), against, worth=100.0, tolerance=0.01 + 1e-9)
    assert found["no_worse"] is no_worse
    low, high = found["accuracy_difference"]["interval"]
    assert low <= found["accuracy_difference"]["mean"] <= high


def test_only_the_latest_report_of_both_files_counts() -> None:
    def one(day: int, new: str, live: str, no_worse: bool) -> Report:
        return Report(
            at=f"2026-11-{day}T00:00:00Z",  # type: ignore[arg-type]
            profile=Compared(version="n", sha256=new),
            against=Compared(version="l", sha256=live),
            no_worse=no_worse,
        )

    reports = [one(12, "a", "b", True), one(11, "a", "b", False), one(13, "a", "c", False)]
    assert verdict(reports, "a", "b")[0]
    assert not verdict([*reports, one(14, "a", "b", False)], "a", "b")[0]
    assert not verdict(reports, "b", "a")[0]
    assert not verdict([], "a", "b")[0]


def test_what_is_no_report_is_passed_over(folder: Path) -> None:
    report(folder, "v2", "v1")
    for name, content in {"a": "{", "b": "[]", "c": '{"no_worse": "yes"}'}.items():
        put(folder / "replays" / f"{name}.json", content)
    assert len(replay.read_reports(folder / "replays")) == 1


# The gate itself.


def recording(path: Path, models: tuple[str, ...] = ("s", "l"), queries: int = 40) -> Path:
    """`s` is right on the first half of the queries, `l` on all; two wrong answers are never alike."""
    rows = [
        {
            "query_id": f"q{query}",
            "model": model,
            "gold": str(1000 + query),
            "samples": [
                {
                    "answer": str(1000 + query if model == "l" or query < queries / 2 else 5000 + i),
                    "tokens": 50,
                }
                for i in range(8)
            ],
        }
        for query in range(queries)
        for model in models
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def gate(folder: Path, new: str, *recordings: Path, **options: object) -> int:
    parser = argparse.ArgumentParser()
    run = replay_command(parser)
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    fixed = ["--profile", new, "--folder", str(folder), "--seeds", "1", "--answer-type", "number"]
    return run(parser.parse_args([*fixed, *words, "--recordings", *map(str, recordings)]))


def test_a_replay_lets_the_same_go_live_and_no_worse_one(
    call: Call, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = write_catalog(tmp_path / "catalog.yaml", PARAMETERS)
    parts = [recording(tmp_path / "s.jsonl", ("s",)), recording(tmp_path / "l.jsonl.gz", ("l",))]
    assert gate(folder, "v2", *parts, catalog=catalog) == 0
    words = capsys.readouterr().out
    assert "v2 is no worse" in words
    assert "planned without, as not recorded: m" in words
    written = json.loads((folder / "replays" / "v2-against-v1.json").read_text())
    assert written["queries"] == 40
    for each in written["efforts"].values():
        # The same curves: the same queries, samples and costs.
        assert each["accuracy_difference"] == {"mean": 0, "interval": [0, 0]}
        assert each["profile"] == each["against"]
    assert written["efforts"]["high"]["profile"]["accuracy"] >= 0.5
    assert written["efforts"]["high"]["profile"]["flops"] > 0
    assert call("live", "v2")

    # One that takes a right answer to be worth nothing buys nothing, and answers nothing.
    put(folder / "v3.json", record(version="v3", efforts=dict.fromkeys(EFFORTS, 1.0)))
    assert gate(folder, "v3", *parts, catalog=catalog) == 1
    assert "v3 is worse" in capsys.readouterr().out
    with pytest.raises(FailedPrecondition, match="worse in the replay"):
        call("live", "v3")


def test_a_replay_says_what_it_lacks(folder: Path, tmp_path: Path) -> None:
    catalog = write_catalog(tmp_path / "catalog.yaml", PARAMETERS)
    few = recording(tmp_path / "few.jsonl", queries=5)
    with pytest.raises(FailedPrecondition, match="5 queries have a truth"):
        gate(folder, "v2", few, catalog=catalog)
    with pytest.raises(FailedPrecondition, match=r"no model is in the recordings \(x\)"):
        gate(folder, "v2", recording(tmp_path / "x.jsonl", ("x",)), catalog=catalog)
    for content in ("{", "[]", '{"query_id": 7}'):
        with pytest.raises(InvalidArgument, match=r"bad\.jsonl: line 1 is no recorded query"):
            gate(folder, "v2", put(tmp_path / "bad.jsonl", content), catalog=catalog)
    good = recording(tmp_path / "good.jsonl")
    with pytest.raises(InvalidArgument, match="estimator: "):
        gate(folder, "v2", good, catalog=catalog, estimator=tmp_path / "none.json")
    odd = put(tmp_path / "odd.jsonl", good.read_text().replace('"tokens": 50', '"tokens": "many"'))
    with pytest.raises(InvalidArgument, match="a sample is not as recordings have them"):
        gate(folder, "v2", odd, catalog=catalog)
    with pytest.raises(InvalidArgument, match="No such file"):
        gate(folder, "v2", tmp_path / "none.jsonl", catalog=catalog)
    torn = recording(tmp_path / "torn.jsonl.gz")
    torn.write_bytes(torn.read_bytes()[:-20])
    with pytest.raises(InvalidArgument, match=r"torn\.jsonl\.gz"):
        gate(folder, "v2", torn, catalog=catalog)
    assert not (folder / "replays").exists()


def test_what_a_strategy_made_is_not_played_again(tmp_path: Path) -> None:
    line = {"query_id": "q1", "model": "a", "samples": [{"answer": "4", "tokens": 3}]}
    rows = [line, line | {"deep": {"strategy": "beam"}}]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (kept,) = replay.read([tmp_path / "r.jsonl"])
    assert "deep" not in kept.model_dump()
