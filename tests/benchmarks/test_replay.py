"""The replay: baselines against plain counting, figures with known answers, the suite from end to end."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isoflop.v1.common_pb2 import ANSWER_TYPE_CHOICE, ANSWER_TYPE_EXPRESSION, STAGE_GENERATION

from benchmarks import replay, replay_figures, replay_suite
from benchmarks.replay import main
from benchmarks.replay_baselines import (
    Point,
    Running,
    adaptive_consistency,
    cascades,
    early_stopping,
    fixed,
    oracle,
    votes,
)
from benchmarks.replay_data import RIGHT, SIZES, Recording, RecordingError, Track, read
from benchmarks.replay_figures import SUMMARY, Luck, Plan, accuracy_for, flops_for, hull, rivals, summary
from benchmarks.replay_suite import Replay, Suite, difficulty, fit_fold, folds
from router.profile import parse
from services.aggregation.stability import stability
from training.resampling import NO_ANSWER, resamples

SMALL, LARGE = "gpt-oss-20b", "Qwen3-14B"


def row(
    query_id: str, model: str, samples: Sequence[tuple[str | None, int]], gold: str = "7", **fields: Any
) -> dict[str, Any]:
    """A line of a recording, of (answer, tokens)."""
    told = [{"answer": answer, "tokens": n, "correct": answer == gold} for answer, n in samples]
    return {"dataset": "sums", "query_id": query_id, "model": model, "gold": gold, "samples": told, **fields}


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def scripted(tmp_path: Path, problems: int = 20, samples: int = 12) -> Path:
    """Easy problems, and hard ones on which the small model errs and is long; the large one errs on none."""
    rng = np.random.default_rng(2)
    rows = []
    for number in range(problems):
        hard = number % 3 == 0
        for model, p, length in ((SMALL, 0.3 if hard else 0.95, 400 if hard else 100), (LARGE, 0.95, 300)):
            answers = ["7" if rng.random() < p else str(rng.integers(10, 14)) for _ in range(samples)]
            tokens = rng.lognormal(math.log(length), 0.3, samples).astype(int).tolist()
            rows.append(row(f"sums/{number}", model, list(zip(answers, tokens, strict=True))))
    return write(tmp_path / "sums.jsonl", rows)


def track(answers: Sequence[Sequence[int]], tokens: Any = 10.0, model: str = SMALL) -> Track:
    """Of answers by number: one list for each problem."""
    table = np.array(answers)
    texts = [[None if one < 0 else str(one) for one in line] for line in table.tolist()]
    return Track(SIZES[model], texts, table, table == RIGHT, np.full(table.shape, tokens))


def recording(tracks: dict[str, Track]) -> Recording:
    count = len(next(iter(tracks.values())).answers)
    ids = [f"sums/{number}" for number in range(count)]
    names = [[str(number) for number in range(99)]] * count
    return Recording("sums", ids, ids, ANSWER_TYPE_EXPRESSION, names, tracks)


def in_order(answers: Sequence[int], model: str = SMALL) -> Running:
    """The running vote of one problem, played once in this order."""
    return Running.of(track([answers], model=model), np.arange(len(answers))[None, None])


ANSWERS = st.lists(st.integers(NO_ANSWER, 4), min_size=1, max_size=14)


@given(ANSWERS)
def test_the_running_vote_is_the_vote_counted_anew(answers: list[int]) -> None:
    running = in_order(answers)
    for n in range(1, len(answers) + 1):
        counts = Counter(answer for answer in answers[:n] if answer != NO_ANSWER)
        ordered = [*sorted(counts.values(), reverse=True), 0, 0]
        assert (running.led[0, 0, n - 1], running.second[0, 0, n - 1]) == (ordered[0], ordered[1])
        leaders = [answer for answer, count in counts.items() if count == ordered[0]]
        share = (RIGHT in leaders) / len(leaders) if leaders else 0.0
        assert running.share[0, 0, n - 1] == pytest.approx(share)
        same = 0
        for answer in reversed(answers[:n]):
            if answer == NO_ANSWER or answer != answers[n - 1]:
                break
            same += 1
        assert running.repeats[0, 0, n - 1] == same


def one(points: Any, name: str) -> Point:
    found = [point for point in points if point.name == name]
    assert len(found) == 1
    return found[0]


@given(ANSWERS, st.sampled_from([0.8, 0.95, 0.999]))
def test_adaptive_consistency_buys_until_its_leader_is_sure(answers: list[int], confidence: float) -> None:
    bought = len(answers)
    for n in range(1, len(answers) + 1):
        top = [*sorted(Counter(a for a in answers[:n] if a >= 0).values(), reverse=True), 0, 0]
        if stability(top[0], top[1]) >= confidence:
            bought = n
            break
    point = one(
        adaptive_consistency({SMALL: in_order(answers)}),
        f"Adaptive-Consistency {confidence:g} of {SMALL}",
    )
    assert point.tokens[0, 0] == 10 * bought
    assert point.flops[0, 0] == pytest.approx(2 * 3.6e9 * 10 * bought)


@given(ANSWERS, st.sampled_from([2, 3, 5]))
def test_early_stopping_looks_at_whole_windows(answers: list[int], window: int) -> None:
    bought = len(answers)
    for begin in range(0, len(answers) - window + 1, window):
        part = answers[begin : begin + window]
        if len(set(part)) == 1 and part[0] != NO_ANSWER:
            bought = begin + window
            break
    point = one(early_stopping({SMALL: in_order(answers)}), f"ESC {window} of {SMALL}")
    assert point.tokens[0, 0] == 10 * bought


def test_a_cascade_asks_the_dearer_model_where_too_few_agree() -> None:
    def point(answers: list[int]) -> Point:
        both = {SMALL: in_order(answers), LARGE: in_order([RIGHT] * 4, LARGE)}
        return one(cascades(both), f"cascade 3 of 4 of {SMALL}, else {LARGE} × 1")

    small, large = 2 * 3.6e9 * 40, 2 * 14.8e9 * 10
    agreed, split = point([1, 1, 2, 1]), point([1, 1, 2, NO_ANSWER])
    assert (agreed.right[0, 0], agreed.flops[0, 0]) == (0.0, pytest.approx(small))
    assert (split.right[0, 0], split.flops[0, 0]) == (1.0, pytest.approx(small + large))
    assert split.tokens[0, 0] == 50


def test_the_oracle_knows_what_pays_and_what_never_does() -> None:
    """A third each: the cheap model is right, the dear one alone is, none is."""
    small = track([[RIGHT] * 40, [1] * 40, [1] * 40])
    large = track([[RIGHT] * 40, [RIGHT] * 40, [1] * 40], model=LARGE)
    points = [Plan.of(point, None) for point in oracle(recording({SMALL: small, LARGE: large}))]
    best = max(points, key=lambda plan: (round(plan.right.mean(), 9), -plan.flops.mean()))
    assert best.right.tolist() == [1.0, 1.0, 0.0]
    assert best.flops == pytest.approx([2 * 3.6e9 * 10, 2 * 14.8e9 * 10, 0.0])


def test_the_oracle_is_not_scored_on_what_it_knows() -> None:
    """Where it is all luck, choosing by luck gains nothing."""
    rng = np.random.default_rng(0)
    tracks = {
        name: track(rng.integers(0, 2, (150, 40)), model=name) for name in (SMALL, LARGE, "EXAONE-Deep-32B")
    }
    once = [Plan.of(point, None) for point in oracle(recording(tracks))]
    assert max(plan.right.mean() for plan in once) == pytest.approx(0.5, abs=0.03)


POINTS = st.lists(st.tuples(st.floats(0.1, 100), st.floats(0, 1)), min_size=1, max_size=12)


@given(POINTS, st.floats(0, 100))
def test_the_hull_is_what_mixtures_of_two_reach(points: list[tuple[float, float]], flops: float) -> None:
    curve, every = hull(points), [(0.0, 0.0), *points]
    best = max(y for x, y in every if x <= flops)
    for x, y in every:
        for u, v in every:
            if x <= flops < u:
                best = max(best, y + (v - y) * (flops - x) / (u - x))
    assert accuracy_for(curve, flops) == pytest.approx(best, abs=1e-9)
    needed = flops_for(curve, best)
    assert needed <= flops + 1e-6
    assert math.isinf(flops_for(curve, curve[-1][1] + 0.01))


def test_luck_is_taken_out() -> None:
    """One sample is known exactly; a vote of three without bias, and with less noise."""
    rng = np.random.default_rng(1)
    answers = (rng.random((60, 30)) > rng.random((60, 1))).astype(int)
    played = recording({SMALL: track(answers)})
    many = {SMALL: played.orders(SMALL, 0, 2000, 5)}
    truth = Plan.of(one(fixed(votes(played, many)), f"{SMALL} × 3"), None).right.mean()
    plain, clear = [], []
    for number in range(30):
        few = {SMALL: many[SMALL][:, 8 * number : 8 * number + 8]}
        luck, running = Luck(played, few), votes(played, few)
        single = Plan.of(one(fixed(running), f"{SMALL} × 1"), luck).right
        assert single == pytest.approx((answers == RIGHT).mean(axis=1))
        point = one(fixed(running), f"{SMALL} × 3")
        plain.append(Plan.of(point, None).right.mean() - truth)
        clear.append(Plan.of(point, luck).right.mean() - truth)
    assert abs(np.mean(clear)) < 0.003
    assert np.std(clear) < 0.85 * np.std(plain)


def plan(name: str, accuracy: float, flops: float) -> Plan:
    """Alike on 50 problems."""
    return Plan(name, *(np.full(50, value) for value in (accuracy, flops, 0.0, flops)))


def test_the_summary_of_known_curves() -> None:
    votes_of = [plan(f"m × {n}", 0.9 + 0.01 * math.log2(n), 10.0 * n) for n in (1, 2, 4, 8)]
    known = rivals(votes_of, [plan("oracle", 0.9, 2.0), plan("oracle", 0.93, 20.0)])
    assert (known.best_once.name, known.best_most.name) == ("m × 1", "m × 8")
    told, intervals = summary([plan("isoflop", 0.9, 6.0), plan("isoflop", 0.93, 60.0)], known)
    assert list(told) == list(SUMMARY)
    assert told["flops_vs_hull_at_best_model_once"] == 0.6
    assert told["flops_vs_hull_at_hull_max_minus_0_2pt"] == pytest.approx(56.4 / 72, abs=1e-4)
    assert told["flops_vs_best_of_40_within_0_05pt"] == pytest.approx(59.1 / 80, abs=1e-4)
    assert told["share_of_oracle_gap_closed_horizontal"] == pytest.approx((4 / 8 + 20 / 60) / 2, abs=1e-4)
    # At 6 the hull has .54; at 60, half-way from .92 to .93.
    assert told["worst_shortfall_to_hull_pt"] == -0.5
    assert intervals["flops_vs_hull_at_best_model_once"] == [0.6, 0.6]


def test_what_is_never_reached_has_no_figure() -> None:
    votes_of = [plan("m × 1", 0.9, 10.0), plan("m × 2", 0.95, 20.0)]
    told, intervals = summary([plan("isoflop", 0.5, 1.0)], rivals(votes_of, [plan("oracle", 0.95, 5.0)]))
    for name in SUMMARY[:3]:
        assert (told[name], intervals[name]) == (None, None)


def test_problems_are_joined_by_their_text_and_else_by_their_id(tmp_path: Path) -> None:
    samples = [("7", 5), (None, 9), ("\\dfrac12", 4), ("\\frac{1}{2}", 4)]
    first = write(
        tmp_path / "a.jsonl",
        [
            row("a/1", SMALL, samples, prompt="What is\n 3+4?"),
            row("a/2", SMALL, samples),
            row("a/2", SMALL, [("8", 1)], deep={"strategy": "beam"}),  # None of the model's samples.
            row("a/3", SMALL, samples, prompt="Nobody else has it"),
        ],
    )
    other = [row("b/9", LARGE, samples, prompt="What is 3+4?"), row("a/2", LARGE, [*samples, ("8", 1)])]
    second = tmp_path / "b.jsonl.gz"
    second.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in other).encode()))
    (found,) = read([first, second])
    assert found.problems == ["What is 3+4?", "a/2"]
    assert found.query_ids == ["a/1", "a/2"]
    small, large = found.tracks[SMALL], found.tracks[LARGE]
    assert small.answers.tolist() == [[RIGHT, NO_ANSWER, 1, 1]] * 2
    assert large.answers.shape == (2, 4)
    assert small.right.tolist() == [[True, False, False, False]] * 2
    assert small.tokens[0].tolist() == [5, 9, 4, 4]
    assert found.models == [SMALL, LARGE]
    assert list(found.of([LARGE]).tracks) == [LARGE]


def test_letters_are_choices(tmp_path: Path) -> None:
    (found,) = read([write(tmp_path / "r.jsonl", [row("a/1", SMALL, [("B", 3)], gold="B")])])
    assert found.kind == ANSWER_TYPE_CHOICE


@pytest.mark.parametrize(
    ("rows", "models", "told"),
    [
        ([row("a/1", "llama-of-nobody", [("7", 5)])], [], "llama-of-nobody are active is not known"),
        ([row("a/1", SMALL, [("7", 5)])], [LARGE], f"no samples of {LARGE}"),
        ([row("a/1", SMALL, [("7", 5)]), row("a/2", LARGE, [("7", 5)])], [], "no problem has samples of all"),
        ([row("a/1", SMALL, []) | {"samples": [{"answer": "7"}]}], [], "without `correct`"),
    ],
)
def test_recordings_that_cannot_be_compared(
    rows: list[dict[str, Any]], models: list[str], told: str, tmp_path: Path
) -> None:
    with pytest.raises(RecordingError, match=told):
        read([write(tmp_path / "r.jsonl", rows)], models)


def test_a_missing_recording_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--recordings", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err


def test_a_profile_knows_nothing_of_its_own_fold(tmp_path: Path) -> None:
    (found,) = read([scripted(tmp_path)])
    held = [fold == 0 for fold in folds(found)]
    before = fit_fold(found, held, "v")
    for made in found.tracks.values():
        made.right[held] = ~made.right[held]
        made.tokens[held] *= 3
        made.answers[held] = 1
    assert fit_fold(found, held, "v") == before
    assert fit_fold(found, [fold == 1 for fold in folds(found)], "v") != before


def test_an_estimate_that_says_nothing_leaves_the_prior(tmp_path: Path) -> None:
    (found,) = read([scripted(tmp_path)])
    told = parse(fit_fold(found, [False] * 20, "v"))
    assert abs(difficulty(found, range(20))).max() < 3
    assert told.belief(0.0, 1.0) == pytest.approx(told.prior, abs=1e-6)


def test_the_suite_is_not_told_what_is_right(tmp_path: Path) -> None:
    (found,) = read([scripted(tmp_path)])
    files = found.files()
    assert "correct" not in "".join(files.values())
    flipped = {
        name: Track(one.size, one.texts, one.answers, ~one.right, one.tokens)
        for name, one in found.tracks.items()
    }
    assert recording_of(found, flipped).files() == files


def recording_of(found: Recording, tracks: dict[str, Track]) -> Recording:
    return Recording(found.dataset, found.problems, found.query_ids, found.kind, found.names, tracks)


async def test_the_bill_is_active_parameters_times_tokens_and_nothing_else(tmp_path: Path) -> None:
    (found,) = read([scripted(tmp_path)])
    suite = Suite(Replay(found, tmp_path).folder)
    try:
        for problem in (0, 1):
            response = await suite.solve(problem, 3, 1e15)
            spent = sum(
                SIZES[sample.id.rpartition("/")[0]].flops_a_token * sample.tokens
                for sample in response.candidates
            )
            assert response.bill.flops == pytest.approx(spent)
            assert {line.stage for line in response.bill.lines if line.flops} == {STAGE_GENERATION}
            assert response.seed == 3
    finally:
        await suite.close()


@pytest.fixture
def small_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Few worths and resamples, and a store of the test's own."""
    monkeypatch.setattr(replay_figures, "resamples", lambda problems: resamples(problems)[:100])
    monkeypatch.setattr(replay, "WORTHS", (1e12, 1e15))
    monkeypatch.setattr(replay, "STORE", tmp_path / "store")
    return tmp_path / "store"


def test_from_end_to_end(tmp_path: Path, small_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = scripted(tmp_path), tmp_path / "out" / "r.json"
    asked = ["--recordings", str(path), "--permutations", "2", "--workers", "1", "--json", str(out)]
    assert main(asked) == 0
    told = json.loads(out.read_text())
    assert told["dataset"] == "sums"
    assert set(told["summary"]) == set(SUMMARY)
    assert len(told["policy"]) == 2
    for line in (*told["policy"], *told["baselines"], *told["oracle"]):
        assert {"name", "accuracy", "interval", "pflop", "kilotokens"} <= set(line)
        assert line["pflop_with_attention"] >= line["pflop"]
    assert [one["name"] for one in told["baselines"]][:2] == [f"{SMALL} × 1", f"{SMALL} × 2"]
    assert told["models"] == [SMALL, LARGE]
    assert told["dense"]["models"] == [LARGE]
    # Worth little, hardly anything is bought; worth much, it does as well as the better model.
    poor, rich = told["policy"]
    assert poor["pflop"] < rich["pflop"]
    assert rich["accuracy"] > 0.9
    rows = [json.loads(line) for line in (tmp_path / "out" / "r_queries.jsonl").read_text().splitlines()]
    assert [(one["pool"], one["query_id"]) for one in rows[19:21]] == [
        ("all", "sums/19"),
        ("dense", "sums/0"),
    ]
    kept = [one["policy"][rich["name"]][0] for one in rows if one["pool"] == "all"]
    assert np.mean(kept) == pytest.approx(rich["accuracy"], abs=1e-4)
    page = (tmp_path / "out" / "r.md").read_text()
    assert "sums, all models" in page
    assert f"{100 * rich['accuracy']:.2f}" in page
    assert (tmp_path / "out" / "r.svg").exists()
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["pool"] for one in printed] == ["all", "dense"]


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = read([scripted(tmp_path, problems=15)])
    first = Replay(found, tmp_path).run(2, [1e13], 1)
    stored = Replay(found, tmp_path).path / "solved.jsonl.gz"
    assert len(first) == 30
    whole = stored.read_bytes()
    stored.write_bytes(whole[:-20])
    played: list[replay_suite.Job] = []
    really = replay_suite._played

    def counted(folder: Any, jobs: Sequence[replay_suite.Job], workers: int) -> Any:
        played.extend(jobs)
        return really(folder, jobs, workers)

    monkeypatch.setattr(replay_suite, "_played", counted)
    assert Replay(found, tmp_path).run(2, [1e13], 1) == first
    assert [one.permutations for one in played] == [(0, 1)]
    played.clear()
    assert Replay(found, tmp_path).run(1, [1e13], 1) == [one for one in first if not one.permutation]
    assert played == []
    assert len(Replay(found, tmp_path).run(2, [1e12, 1e13], 1)) == 60
    assert {one.worths for one in played} == {(1e12,)}


def test_a_process_that_fails_is_told(tmp_path: Path) -> None:
    (found,) = read([scripted(tmp_path, problems=15)])
    made = Replay(found, tmp_path)
    (made.path / "profile-0.json").write_text("{}")
    with pytest.raises(replay_suite.ReplayFailed):
        made.run(1, [1e13], 2)


def test_answers_are_judged_as_recorded(tmp_path: Path) -> None:
    """Not by whether they look like the gold answer: here all that are right say so of another answer."""
    (found,) = read([scripted(tmp_path, problems=15)])
    solved = Replay(found, tmp_path).run(1, [1e15], 1)
    (point,) = replay_suite.points(found, solved, 1, [1e15])
    flipped = {
        name: Track(one.size, one.texts, one.answers, ~one.right, one.tokens)
        for name, one in found.tracks.items()
    }
    (other,) = replay_suite.points(recording_of(found, flipped), solved, 1, [1e15])
    assert point.right.sum() > 5
    assert (point.right + other.right == 1).all()
