"""The comparison of verifiers: its figures, its page and its picture, from scores that are made up."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.prm import ARMS, PAGE, RESULTS, Arm, check_apart, draw, page, results, text_of
from services.verification.steps import texts
from training import prm_figures
from training.labels import Chain, Step, row_of
from training.labels import Judged as Label
from training.prm_figures import Scored


def heldout(goodness: float) -> list[Scored]:
    """Solutions by two models; wrong steps score lower the better the verifier is."""
    found = []
    for number in range(24):
        is_wrong = number % 3 == 0
        steps = (
            Step("1+1=2", 1.0, 1.0, True),
            Step("x|y`\n", 0.0, 1.0, not is_wrong, "copy" if is_wrong else ""),
        )
        chain = Chain(
            f"problem {number % 6}",
            steps,
            True,
            not is_wrong,
            "5" if is_wrong else "4",
            f"m{number // 6 % 2}",
            str(number % 2),
        )
        low = 0.8 - goodness - 0.01 * (number % 5)
        found.append(Scored(chain, (0.9, low if is_wrong else 0.85 - 0.01 * (number % 7))))
    return found


def record(models: list[str]) -> dict[str, Any]:
    counts = {"training": 10, "problems": 5, "steps": 30, "right": 0.25}
    calibration = {"calibration_error": 0.042}
    return {
        "models": models, "threshold": 0.5, "counts": counts, "minutes": 1.5, "calibration": calibration,
    }  # fmt: skip


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    arms = [
        Arm(name, record(["m0"]), "min", heldout(goodness), unscorable)
        for (name, goodness, unscorable) in zip(ARMS, (0.4, 0.1, 0.5), (0, 0, 2), strict=True)
    ]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(prm_figures, "RESAMPLES", 20)
        return results(arms)


def test_the_better_verifier_has_the_better_figures(found: dict[str, Any]) -> None:
    arms = found["arms"]
    assert arms["both"]["all"]["first_error"]["f1"] == 1.0
    assert arms["roll-outs"]["all"]["first_error"]["f1"] == 0.0
    assert arms["step labels"]["all"]["auc"]["value"] == 1.0
    assert arms["step labels"]["errors"] == [
        {"kind": "copy", "steps": 8, "found": 1.0, "mean_score": pytest.approx(0.3825), "auc": 1.0}
    ]
    assert set(arms["both"]["models"]) == {"m0", "m1"}
    assert set(arms["both"]["groups"]) == {"0", "1"}


def test_the_page_says_what_the_figures_say(found: dict[str, Any]) -> None:
    text = page(found)
    assert "| step labels | 48 |" in text
    assert "| both: m1 (not trained on) |" in text
    assert "| both: m0 |" in text
    assert "2 held-out chains too long" in text
    assert "| copy | 8 |" in text
    told = found["arms"]["roll-outs"]["all"]["calibration_error"]["value"]
    assert f"calibration error of roll-outs is {told:.3f}: their labels ask something else" in text
    scores = [score for one in heldout(0.1) for score in one.scores]
    assert "Labels are 0.250 in the mean (" in text
    assert f"scores that they teach {sum(scores) / len(scores):.3f}, where 0.833 of the steps here" in text
    # What stands in a table keeps to its cell.
    assert "`x\\|y' ⏎ `" in text
    for table in (block for block in text.split("\n\n") if block.startswith("|")):
        rows = [line.replace("\\|", "").count("|") for line in table.strip().splitlines()]
        assert len(set(rows)) == 1


def test_the_checked_in_page_is_that_of_the_checked_in_figures() -> None:
    assert page(json.loads(RESULTS.read_text())) == PAGE.read_text()


def test_the_picture_is_drawn_and_the_results_are_json(found: dict[str, Any], tmp_path: Path) -> None:
    draw(found, tmp_path / "prm.png")
    assert (tmp_path / "prm.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(json.dumps(found))["trained_on"] == ["m0"]


def test_a_figure_that_is_not_defined_is_a_dash(found: dict[str, Any]) -> None:
    broken = json.loads(json.dumps(found))
    broken["arms"]["both"]["all"]["auc"] = {"value": math.nan, "low": math.nan, "high": math.nan}
    assert "| both | 48 | 0.167 | – |" in page(broken)


def test_a_chain_is_sent_with_its_own_steps() -> None:
    chain = Chain("p", (Step("a"), Step("b\n\n# Answer\n\n4")), True)
    assert list(texts(text_of(chain))) == ["a\n", "b\n\n# Answer\n\n4\n"]


def test_a_problem_on_both_sides_ends_the_run(tmp_path: Path) -> None:
    row = row_of("p", "4", [Label("a", 1)], query_id="q", reached=True, answer="4", model="m")
    (tmp_path / "labels.jsonl").write_text(row)
    check_apart([tmp_path / "labels.jsonl"], [Chain("other", (Step("a"),), True)])
    with pytest.raises(SystemExit, match="1 held-out problems"):
        check_apart([tmp_path / "labels.jsonl"], [Chain("p", (Step("a"),), True)])
