"""Step labels: PRM800K's form with its oddities, broken lines, duplicates, splits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.labels import (
    CALIBRATION_SHARE,
    MOST_STEPS,
    Chain,
    Judged,
    LabelsError,
    Step,
    chains_of,
    check_classes,
    place_of,
    read,
    row_of,
    split,
    steps_of,
    trimmed,
    without_duplicates,
)


def completion(text: str, rating: int | None = 1, **more: Any) -> dict[str, Any]:
    return {"text": text, "rating": rating, "flagged": None, **more}


def step(
    *completions: dict[str, Any], chosen: int | None = 0, human: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"completions": list(completions), "chosen_completion": chosen, "human_completion": human}


def row(*steps: dict[str, Any], finish: str = "found_error", **more: Any) -> dict[str, Any]:
    question = {"problem": "17*24+13", "ground_truth_answer": "421", **more.pop("question", {})}
    return {"question": question, "label": {"steps": list(steps), "finish_reason": finish}, **more}


def chains(row: dict[str, Any]) -> list[Chain]:
    return chains_of(json.dumps(row))


def labels(chain: Chain) -> list[tuple[str, float | None]]:
    """Text and target of each step, None where it has no label."""
    return [(step.text, step.target if step.weight else None) for step in chain.steps]


def test_ratings_become_targets_and_neutral_counts_as_right() -> None:
    (chain,) = chains(
        row(step(completion("a\n")), step(completion("b", 0)), step(completion("c", -1), chosen=None))
    )
    assert labels(chain) == [("a", 1.0), ("b", 1.0), ("c", 0.0)]
    assert chain.first_error == 2
    assert chain.is_judged
    assert chain.reached is False


def test_every_other_completion_is_a_chain_whose_beginning_has_no_label() -> None:
    found = chains(
        row(
            step(completion("a"), completion("x", -1)),
            step(completion("b", -1), completion("y", 0), chosen=None),
        )
    )
    assert [labels(chain) for chain in found] == [
        [("a", 1.0), ("b", 0.0)],
        [("x", 0.0)],
        [("a", None), ("y", 1.0)],
    ]
    assert [chain.is_sample for chain in found] == [True, False, False]


def test_what_a_person_wrote_is_right_and_goes_on() -> None:
    human = {"text": "h", "rating": None, "source": "human", "flagged": False, "corrected_rating": None}
    found = chains(row(step(completion("x", -1), chosen=None, human=human), step(completion("b"))))
    assert [labels(chain) for chain in found] == [[("h", 1.0), ("b", 1.0)], [("x", 0.0)]]
    human["corrected_rating"] = -1
    assert labels(chains(row(step(chosen=None, human=human)))[0]) == [("h", 0.0)]


@pytest.mark.parametrize("unsure", [completion("b", None), completion("b", -1, flagged=True)])
def test_what_nobody_could_rate_has_no_label(unsure: dict[str, Any]) -> None:
    (chain,) = chains(row(step(completion("a")), step(unsure), step(completion("c"))))
    assert labels(chain) == [("a", 1.0), ("b", None), ("c", 1.0)]
    assert not chain.is_judged


def test_ratings_after_the_first_error_are_no_labels_but_probabilities_are() -> None:
    (rated,) = chains(row(step(completion("a", -1)), step(completion("b", 1), completion("other", 1))))
    assert labels(rated) == [("a", 0.0), ("b", None)]
    (rolled,) = chains(
        row(
            step(completion("a", 1, probability=0.25, rollouts=4)),
            step(completion("b", -1, probability=0.0, rollouts=4)),
            step(completion("c", -1, probability=0.0, rollouts=0)),
        )
    )
    assert labels(rolled) == [("a", 0.25), ("b", 0.0), ("c", 0.0)]
    assert [step.is_right for step in rolled.steps] == [True, False, False]


def test_a_solution_goes_on_without_labels_after_its_error() -> None:
    text = "17*24=407;407+13\n407+13=420\nanswer: 420"
    wrong = step(completion("17*24=407;407+13", -1, error="arithmetic"), chosen=None)
    (chain,) = chains(row(wrong, completion=text, model="m", group=2))
    assert labels(chain) == [("17*24=407;407+13", 0.0), ("407+13=420", None), ("answer: 420", None)]
    assert (chain.answer, chain.reached, chain.model, chain.group) == ("420", False, "m", "2")
    assert chain.steps[0].error == "arithmetic"
    assert labels(trimmed(chain)) == [("17*24=407;407+13", 0.0)]
    (generated,) = chains(
        row(
            step(completion("a", -1), chosen=None),
            question={"pre_generated_steps": ["a", "b\n\n# Answer\n\n7"]},
        )
    )
    assert labels(generated) == [("a", 0.0), ("b\n\n# Answer\n\n7", None)]


@pytest.mark.parametrize(
    ("finish", "question", "completion_text", "reached"),
    [
        ("solution", {}, None, True),
        ("give_up", {}, None, None),
        ("found_error", {"pre_generated_answer": "421.0"}, None, True),
        ("found_error", {"pre_generated_answer": "420"}, None, False),
        ("found_error", {}, "a\nanswer: 421", True),
        ("solution", {}, "a\nno end", False),
        ("solution", {"ground_truth_answer": None}, None, True),
        ("found_error", {"ground_truth_answer": "\\frac12", "pre_generated_answer": "0.5"}, None, True),
    ],
)
def test_whether_the_answer_was_reached(
    finish: str, question: dict[str, Any], completion_text: str | None, reached: bool | None
) -> None:
    found = chains(row(step(completion("a")), finish=finish, question=question, completion=completion_text))
    assert found[0].reached is reached


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "the row"),
        ('{"question": {}}', "question.problem"),
        (json.dumps(row()), "no step has a completion"),
        (json.dumps(row(step(completion("a"), chosen=3))), "step 1: completion 3 is chosen"),
        (json.dumps(row(step(completion("a", 2)))), "rating"),
        (json.dumps(row(step(completion(" \n")))), "a step without text"),
        (json.dumps(row(step(completion("a", 1, probability=1.5)))), "probability"),
        (json.dumps(row(step(completion("a", 1, probability=math.nan)))), "NaN is no number"),
        ("[" * 100_000, "nested too deeply"),
        (json.dumps(row(step(completion("a\ud800")))), "half of a surrogate pair"),
        (json.dumps(row(*[step(completion("a"), chosen=0)] * (MOST_STEPS + 1))), "1001 steps; at most 1000"),
        ("\udc80", "not UTF-8"),
    ],
)
def test_a_broken_line_is_named_and_the_rest_goes_on(tmp_path: Path, line: str, reason: str) -> None:
    good = json.dumps(row(step(completion("a"))))
    path = tmp_path / "labels.jsonl"
    path.write_bytes(f"{good}\n\n{line}\n{good}\n".encode("utf-8", "surrogateescape"))
    found = read([path])
    assert (found.rows, len(found.chains)) == (2, 2)
    (fault,) = found.faults
    assert (fault.path, fault.line) == (path, 3)
    assert reason in str(fault)


def test_duplicates_are_dropped_and_other_labels_are_none() -> None:
    twice = row(step(completion("a")), step(completion("b", -1)))
    other = row(step(completion("a")), step(completion("b", 1)))
    unrated = row(step(completion("a", None)))
    found = [chain for one in (twice, twice, other, unrated) for chain in chains(one)]
    assert [labels(chain) for chain in without_duplicates(found)] == [
        [("a", 1.0), ("b", 0.0)],
        [("a", 1.0), ("b", 1.0)],
    ]


def test_splits_go_by_problem() -> None:
    made = [Chain(f"problem {number}", (Step("a"),), True) for number in range(2000)] * 2
    training, calibration = split(made)
    assert not {chain.problem for chain in training} & {chain.problem for chain in calibration}
    assert len(training) + len(calibration) == len(made)
    assert abs(len(calibration) / len(made) - CALIBRATION_SHARE) < 0.03
    assert all(0 <= place_of(chain.problem) < 1 for chain in made)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ((), "no labelled step"),
        ((Step("a", 1.0, 1.0, True), Step("b", 1.0, 1.0, True)), "no wrong step"),
        ((Step("a", 0.0, 1.0, False),), "no right step"),
    ],
)
def test_one_class_is_refused(steps: tuple[Step, ...], reason: str) -> None:
    with pytest.raises(LabelsError, match=reason):
        check_classes([Chain("p", steps, True)], "they")


def test_two_classes_are_taken() -> None:
    check_classes([Chain("p", (Step("a", 0.4, 1.0, True), Step("b", 0.2, 1.0, True)), True)], "they")


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text.strip())
judged = st.builds(
    Judged,
    texts,
    st.sampled_from([-1, 0, 1, None]),
    st.none() | st.floats(0, 1),
    st.none() | st.integers(0, 64),
    st.sampled_from(["", "copy"]),
)


@given(texts, texts, st.lists(judged, min_size=1, max_size=5), st.booleans())
def test_what_is_written_is_read(problem: str, truth: str, steps: list[Judged], reached: bool) -> None:
    line = row_of(problem, truth, steps, query_id="q", reached=reached, answer=None, model="m", group=3)
    assert line.count("\n") == 1
    (chain,) = chains_of(line)
    assert (chain.problem, chain.model, chain.group, chain.reached) == (problem, "m", "3", reached)
    assert [step.text for step in chain.steps] == [step.text.rstrip("\r\n") for step in steps]
    for written, step in zip(steps, chain.steps, strict=True):
        assert step.error == written.error
        if written.probability is not None:
            assert (step.target, step.weight) == (written.probability, 1.0)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.sampled_from(["question", "label", "steps", "completions", "text", "model"]), json_values)
def test_whatever_stands_in_a_row_it_is_read_or_is_a_value_error(key: str, value: Any) -> None:
    made = row(step(completion("a")), step(completion("b", -1)))

    def replaced(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: value if name == key else replaced(inner) for name, inner in node.items()}
        return [replaced(inner) for inner in node] if isinstance(node, list) else node

    try:
        found = chains_of(json.dumps(replaced(made)))
    except ValueError as error:
        assert str(error)  # noqa: PT017 - either is right
    else:
        assert all(chain.steps for chain in found)


def test_a_text_is_cut_as_the_services_cut_it() -> None:
    assert steps_of("a\n\nb\r\nc") == ["a", "b", "c"]
    assert steps_of("") == []
