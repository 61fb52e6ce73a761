"""The figures of `make bench-recorded-search`, from recordings that are planted."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from benchmarks.answers import RECORDINGS, ROOT
from benchmarks.recorded_search import (
    NAMES,
    alike,
    areas,
    beam_claims,
    beams,
    chars_ratio,
    disagreements,
    gain,
    independents,
    main,
    resampled,
    rule_claim,
)
from benchmarks.recorded_search_data import (
    ANY,
    MAJORITY,
    ONE,
    RULES,
    VOTE,
    WAYS,
    Judge,
    Query,
    averaged,
    blocks,
    read,
)
from benchmarks.recorded_search_report import report
from benchmarks.replay_data import RecordingError
from router.strategies.scoring import chain_score
from training.prm_figures import auc
from training.resampling import interval

RIGHT = {
    "min": [1.0, 0.0, 0.0, 0.0],
    "product": [1.0, 1.0, 0.0, 0.0],
    "last": [1.0, 1.0, 1.0, 0.0],
    "mean": [0.0, 0.0, 0.0, 0.0],
}
"""By rule, whether each of four problems is right."""


@pytest_asyncio.fixture(scope="session")
async def judge() -> AsyncIterator[Judge]:
    one = Judge()
    yield one
    await one.close()


def sample(
    answer: str | None, scores: Sequence[float | None] | None = None, chars: int = 10
) -> dict[str, Any]:
    """A graded chain; right answers are 7."""
    return {"answer": answer, "correct": answer == "7", "chars": chars, "step_scores": scores}


def row(*samples: dict[str, Any], query_id: str = "q", **more: Any) -> dict[str, Any]:
    told = {
        "dataset": "math500",
        "query_id": query_id,
        "model": "m",
        "gold": "7",
        "prompt": query_id,
        "level": 1,
    }
    return {**told, "n": len(samples), "samples": list(samples), **more}


def query(*samples: dict[str, Any], **more: Any) -> Query:
    return Query.model_validate(row(*samples, **more))


def write(path: Path, *rows: Any) -> Path:
    with gzip.open(path, "wt") as out:
        out.writelines(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in rows)
    return path


async def test_each_rule_chooses_its_own_chain(judge: Judge) -> None:
    asked = query(
        sample("7", [0.7, 0.7]),  # Best by min and by product.
        sample("8", [0.1, 1.0, 0.9]),  # Best by last.
        sample("8", [0.5, 0.92, 0.9, 0.9]),  # Best by mean.
    )
    found = (await judge.answered(asked, WAYS)).ours
    assert {way: value for way, value in found.items() if way.startswith("best")} == {
        "best, min": 1.0,
        "best, product": 1.0,
        # The two with 0.9 have one answer.
        "best, last": 0.0,
        "best, mean": 0.0,
    }
    assert found[MAJORITY] == 0.0
    assert (found["weighted, min"], found["weighted, last"]) == (1.0, 0.0)
    assert (found[ONE], found[ANY]) == (pytest.approx(1 / 3), 1.0)


async def test_blanks_are_no_votes_and_count_as_samples(judge: Judge) -> None:
    found = await judge.answered(query(sample(None, [1.0]), sample(None, [1.0]), sample("7", [0.1])), WAYS)
    assert {found.ours[way] for way in WAYS} == {1.0}
    assert found.ours[ONE] == pytest.approx(1 / 3)
    assert found.right == [False, False, True]
    nothing = await judge.answered(query(sample(None, [1.0])), WAYS)
    assert set(nothing.ours.values()) == set(nothing.labels.values()) == {0.0}


async def test_those_that_lead_together_share(judge: Judge) -> None:
    asked = query(sample("8", [0.5]), sample("7.0", [0.5]), sample("9", [0.4]))
    asked.samples[1].correct = True
    found = await judge.answered(asked, WAYS)
    assert found.ours[MAJORITY] == pytest.approx(1 / 3)
    assert found.ours["best, min"] == found.ours["weighted, last"] == 0.5
    assert found.labels["best, min"] == 0.5


@pytest.mark.parametrize("scores", [None, [], [0.9, None]])
async def test_a_chain_without_all_its_scores_weighs_nothing(
    judge: Judge, scores: Sequence[float | None] | None
) -> None:
    found = await judge.answered(query(sample("8", scores), sample("7", [0.01])), WAYS)
    assert {found.ours[way] for way in WAYS if way != MAJORITY} == {1.0}
    assert found.ours[MAJORITY] == 0.5


async def test_texts_are_read_and_disagreements_named(judge: Judge) -> None:
    solved = query({"text": "so $x=7$.\n\n# Answer\n\n\\boxed{7}", "step_scores": [0.5]})
    assert (await judge.answered(solved, VOTE)).ours[MAJORITY] == 1.0
    asked = [query(sample("14/2"), sample("7"), sample(None)), query(sample("14/2"), query_id="r")]
    asked[1].samples[0].correct = True
    found = await disagreements(judge, asked)
    assert (found["chains"]["faults"], found["chains"]["of"], found["blank"]) == (1, 4, 1)
    assert (found["right by us alone"], found["right by the label alone"]) == (1, 0)
    assert [(miss["query"], miss["answer"]) for miss in found["misses"]] == [("q", "14/2")]


async def test_runs_are_averaged_by_problem(judge: Judge) -> None:
    asked = [
        query(sample("7", chars=20)),
        query(sample("8", chars=40)),
        query(sample("7"), query_id="r", prompt=None, level=5),
        query(sample("8"), prompt=" q\n"),
    ]
    tried = averaged(asked, [await judge.answered(one, VOTE) for one in asked])
    assert tried.problems == ["q", "r"]
    assert tried.ours[MAJORITY].tolist() == [pytest.approx(1 / 3), 1.0]
    assert tried.chars[0] == pytest.approx(70 / 3)
    assert tried.band(4, 5).tolist() == [False, True]
    assert tried.of(["r"]).ours[MAJORITY].tolist() == [1.0]


def test_samples_are_pooled_over_runs() -> None:
    runs = [
        query(sample("1"), sample("2"), sample("3")),
        query(sample("4")),
        query(sample("5"), query_id="r"),
    ]
    told = [(one.query_id, [its.answer for its in one.samples]) for one in blocks(runs, 2)]
    assert told == [("q", ["1", "2"]), ("q", ["3", "4"])]
    assert not list(blocks(runs, 5))


async def test_a_search_is_compared_on_the_same_problems(judge: Judge) -> None:
    names = [f"q{number}" for number in range(20)]
    # On each problem one wrong and one right chain, both of one beginning; the verifier knows.
    searched = [
        query(sample("8", [0.5, 0.1]), sample("7", [0.5, 0.9]), query_id=name, level=1 + at % 5)
        for at, name in enumerate(names)
    ]
    sampled = [query(sample("8", chars=5), sample("7", chars=5), query_id=name) for name in names[:10]]
    (beam,) = await beams(judge, searched)
    other = await independents(judge, sampled, {"m": {1, 2}})
    assert beam.searched
    assert (chars_ratio(beam, other), alike(beam, other)) == (2.0, 4)
    claims = {one.about: one for one in beam_claims(beam, other)}
    told = claims["m, n=2, weighted, last against 2 samples, all levels"]
    assert (told.measured, told.interval, told.holds, told.headline) == (50.0, (50.0, 50.0), True, True)
    assert "100.0 % over 50.0 %, 10 problems" in told.how
    assert "4 problems" in claims["m, n=2, weighted, last against 2 samples, levels 1-2"].how
    majority = claims["m, n=2, majority against 2 samples, all levels"]
    assert (majority.measured, majority.holds) == (0.0, False)
    assert "100.0 %" in majority.reason
    # Nobody has four samples.
    assert not [about for about in claims if "against 4" in about or "against 8" in about]


async def test_one_chain_is_no_search(judge: Judge) -> None:
    (beam,) = await beams(judge, [query(sample("7", [0.5])), query(sample("8", [0.5]), query_id="r")])
    assert (beam.searched, beam.name) == (False, "m, n=1 (no beam was dropped)")
    assert not list(beam_claims(beam, {}))
    assert chars_ratio(beam, {}) is None
    assert {float(values.mean()) for values in beam.tried.ours.values()} == {0.5}
    apart = await independents(judge, [query(sample("7"), query_id="s")], {"m": {1}})
    assert {one.measured for one in beam_claims(beam, apart)} == {None}


async def test_chains_of_their_own_beginnings_are_no_search(judge: Judge) -> None:
    apart = [
        query(sample("7", [0.1]), sample("7", [first]), query_id=f"q{first}")
        for first in (0.1, 0.2, 0.3, 0.4)
    ]
    (beam,) = await beams(judge, apart)
    assert (beam.one_start, beam.searched) == (0.25, False)


async def test_areas_are_of_chains_with_scores(judge: Judge) -> None:
    rng = np.random.default_rng(0)
    asked = [
        query(
            *(sample(str(rng.integers(7, 9)), list(rng.integers(0, 5, 2) / 4)) for _ in range(3)),
            sample("7", None),
            query_id=f"q{number}",
        )
        for number in range(20)
    ]
    found = areas(asked, [await judge.answered(one, VOTE) for one in asked])
    chains = [one for its in asked for one in its.samples if one.steps]
    for name, rule in RULES.items():
        told = auc(
            np.array([float(one.correct or 0) for one in chains]),
            np.array([one.score(rule) for one in chains]),
        )
        assert found[name][0] == pytest.approx(told)
        low, high = interval(found[name][1:])
        assert low < told < high


async def test_without_wrong_chains_there_is_no_area(judge: Judge) -> None:
    right = [query(sample("7", [0.2]))]
    alone = areas(right, [await judge.answered(right[0], VOTE)])
    assert rule_claim("x", alone, "AUC, percent", headline=False).measured is None


def test_a_rule_claim_tells_the_best() -> None:
    by_rule = {rule: resampled(np.array(values)) for rule, values in RIGHT.items()}
    told = rule_claim("x", by_rule, "points", headline=True)
    assert (told.measured, told.holds) == (-25.0, False)
    assert told.reason.startswith("last is best: min 25.0, product 50.0, last 75.0, mean 0.0")


def test_a_gain_is_paired() -> None:
    told = gain(np.array([1.0, 1.0]), np.array([0.5, 0.5]), "one over other", "why")
    assert told.measured == 50.0
    assert set(told.resampled) == {50.0}
    assert told.how == "one over other: 100.0 % over 50.0 %, 2 problems"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([row(sample("7")), "{broken"], "recording x.jsonl.gz, line 2: Invalid JSON"),
        ([{"query_id": "q"}], "recording x.jsonl.gz, line 1: model: Field required"),
        ([row()], "recording x.jsonl.gz has no samples"),
        ([], "recording x.jsonl.gz has no samples"),
    ],
)
def test_a_broken_recording_is_told_in_a_sentence(tmp_path: Path, lines: list[Any], said: str) -> None:
    with pytest.raises(RecordingError, match=said) as caught:
        read(write(tmp_path / "x.jsonl.gz", *lines))
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path), "--json", str(tmp_path / "a"), "--page", str(tmp_path / "b")]) == 2
    assert "cannot be read" in capsys.readouterr().out
    assert not (tmp_path / "a").exists()


def test_the_whole_of_it(tmp_path: Path) -> None:
    chains = [sample("7", [0.5, 0.9]), sample("8", [0.5, 0.2])]
    for name, rows in zip(
        NAMES,
        (
            [row(*chains), row(*chains, query_id="r", level=4), row(chains[0], model="one")],
            [row(sample("7"), sample(None))],
            [row(*({"text": "\\boxed{7}", "step_scores": [0.9]}, {"text": "", "step_scores": [0.1]}))],
        ),
        strict=True,
    ):
        write(tmp_path / f"{name}.jsonl.gz", *rows)
    out, page = tmp_path / "out.json", tmp_path / "page.md"
    assert main(["--data", str(tmp_path), "--json", str(out), "--page", str(page)]) == 0
    figures = json.loads(out.read_text())
    assert {"claim", "reference", "measured", "interval", "holds"} <= set(figures["claims"][0])
    assert {(one["model"], one["n"]) for one in figures["beam"]} == {("m", 2), ("one", 1)}
    assert figures["steps"]["auc"]["min"][0] == 100.0
    assert report(figures) == page.read_text()


@pytest.mark.shared_data
async def test_the_recorded_solutions(judge: Judge) -> None:
    path = RECORDINGS / f"{NAMES[2]}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    asked = read(path)[:40]
    answered = [await judge.answered(one, WAYS) for one in asked]
    tried = averaged(asked, answered)
    assert len(tried.problems) == 40
    for way in WAYS:
        assert (tried.ours[way] <= tried.ours[ANY]).all()
    assert tried.ours[MAJORITY].mean() > 0.5
    for one in asked[0].samples:
        assert one.score(WAYS["best, mean"].rule or 0) == chain_score(one.steps, 0)


def test_the_checked_in_page_is_that_of_the_checked_in_figures() -> None:
    figures = json.loads((ROOT / "benchmarks" / "results" / "recorded_search.json").read_text())
    assert report(figures) == (ROOT / "docs" / "results" / "recorded_search.md").read_text()
