"""Recordings are read, checked line by line, and what cannot be used is said."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.strategies.strategy import Search
from training.measured import Deep, Played
from training.recordings import RecordingError, counts, lines, read, samples_of

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "recordings"


def row(query_id: str = "q1", model: str = "a", **fields: Any) -> dict[str, Any]:
    samples = [
        {"answer": "4", "correct": True, "tokens": 10},
        {"answer": "5", "correct": False, "tokens": 20},
    ]
    return {"query_id": query_id, "model": model, "prompt": "2+2", "samples": samples} | fields


def kept(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def test_queries_of_which_a_model_lacks_samples_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [row(), row(model="b"), row("q2"), row("q3"), row("q3", "b", samples=row()["samples"][:1])]
    found = read([kept(tmp_path / "r.jsonl", *rows)])
    assert ([query.query_id for query in found.queries], found.models, found.left_out) == (
        ["q1"],
        ["a", "b"],
        2,
    )
    alone = read([tmp_path / "r.jsonl"], ["a"])
    assert ([query.query_id for query in alone.queries], alone.left_out) == (["q1", "q2", "q3"], 0)
    right, samples, tokens = counts(alone.queries, ["a"])
    assert (right[0, 0], samples[0, 0], tokens[0, 0]) == (1, 2, 15)


def test_lines_of_a_query_and_model_are_added_up_but_a_file_counts_once(tmp_path: Path) -> None:
    path = kept(tmp_path / "r.jsonl", row(), row(greedy=row()["samples"][0], group=3))
    (query,) = read([path, path]).queries
    assert query.samples["a"].right.tolist() == [True, False, True, False]
    assert (query.group, query.greedy["a"].tokens.tolist()) == ("3", [10.0])


def test_a_line_without_samples_tells_how_fast_a_model_is(tmp_path: Path) -> None:
    path = kept(
        tmp_path / "r.jsonl", row(temperature=0.7), row(samples=[], seconds_per_token=0.25, flops=3.0)
    )
    found = read([path])
    assert (found.seconds_per_token, found.temperature) == ({"a": 0.25}, 0.7)
    assert len(found.queries[0].samples["a"].right) == 2


DEEP = {
    "strategy": "beam",
    "search": {"width": 2, "expansion": 2, "depth": 8, "nodes": 0, "tokens": 0},
    "verifier": "judge",
}
BEAM = Deep("a", "beam", Search(2, 2, 8), "judge")


def best(query_id: str = "q1", model: str = "a", *, right: bool = True, **fields: Any) -> dict[str, Any]:
    """A line with a strategy's best chain."""
    chain = {"answer": "4", "correct": right, "tokens": 30}
    return row(query_id, model, samples=[chain], deep=DEEP, flops=100.0) | fields


def test_what_strategies_made_is_told_apart_from_samples(tmp_path: Path) -> None:
    rows = [best(), row(), row("q2"), best("q2", right=False), best("q3"), best("q2", flops=300.0)]
    found = read([kept(tmp_path / "r.jsonl", *rows)])
    assert [query.query_id for query in found.queries] == ["q1", "q2"]
    assert [query.deep for query in found.queries] == [
        {BEAM: Played(1.0, 30.0, 100.0)},
        {BEAM: Played(0.5, 30.0, 200.0)},
    ]
    assert [len(query.samples["a"].right) for query in found.queries] == [2, 2]
    assert (found.left_out, found.incomplete) == (0, {})


def test_a_strategy_that_a_query_lacks_is_left_out_and_told(tmp_path: Path) -> None:
    other = {**DEEP, "search": {"width": 4}}
    rows = [row(), row("q2"), row("q3"), best(), *(best(one, deep=other) for one in ("q1", "q2", "q3"))]
    path = kept(tmp_path / "r.jsonl", *rows)
    found = read([path])
    assert {deep.search.width for query in found.queries for deep in query.deep} == {4}
    assert found.incomplete == {BEAM: 2}
    assert str(BEAM) == "a beam:2x2x8"
    # Queries and models that do not count are not missed.
    assert set(read([path], only={"q1"}).queries[0].deep) > {BEAM}
    kept(path, *rows, *(row(one, "b") for one in ("q1", "q2", "q3")))
    alone = read([path], ["b"])
    assert ([query.deep for query in alone.queries], alone.incomplete) == ([{}] * 3, {})


def test_strategies_of_another_temperature_are_not_mixed_with_samples(tmp_path: Path) -> None:
    path = kept(tmp_path / "r.jsonl", row(temperature=0.7), best(temperature=1.0))
    with pytest.raises(RecordingError, match="several temperatures"):
        read([path])


def test_only_some_queries_may_be_asked_for(tmp_path: Path) -> None:
    path = kept(tmp_path / "r.jsonl", row(), row("q2"))
    found = read([path], only={"q2"})
    assert ([query.query_id for query in found.queries], found.left_out) == (["q2"], 0)


def test_packed_recordings_are_read(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "r.jsonl.gz", "wt") as file:
        file.write(json.dumps(row()) + "\n")
    assert len(read([tmp_path / "r.jsonl.gz"]).queries) == 1


def test_scores_that_a_verifier_could_not_give_are_nan() -> None:
    samples = [
        dict(one, scores={"judge": score}) for one, score in zip(row()["samples"], (0.7, None), strict=True)
    ]
    assert samples_of([row(samples=samples)]).scores["judge"] == pytest.approx([0.7, np.nan], nan_ok=True)


def test_tokens_that_were_not_counted_are_reckoned_from_characters() -> None:
    assert samples_of([row(samples=[{"answer": "", "correct": False, "chars": 80}])]).tokens == [20]


SAMPLE = row()["samples"][0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: not a recorded query"),
        ("[]", "line 2: .*a line is an object"),
        (row(query_id=7), "line 2: .*query_id is no text"),
        ({"model": "a", "samples": []}, "line 2: it has no 'query_id'"),
        (row(samples=[{"answer": "4", "tokens": 1}]), "line 2: it has no 'correct'"),
        (row(samples=[{"answer": "4", "correct": True}]), "line 2: .*neither tokens nor chars"),
        (row(samples=[SAMPLE | {"tokens": float("nan")}]), "line 2: .*tokens are no counts"),
        (row(samples=[SAMPLE | {"tokens": 10**400}]), "line 2: not a recorded query"),
        (row(samples=[SAMPLE | {"tokens": -1}]), "line 2: .*tokens are no counts"),
        (row(samples=[SAMPLE | {"scores": {"judge": float("nan")}}]), "line 2: .*score is not from 0 to 1"),
        (row(samples=[SAMPLE | {"scores": {"judge": 1.5}}]), "line 2: .*score is not from 0 to 1"),
        (row(samples=7), "line 2: not a recorded query"),
        (row(greedy={"answer": "4"}), "line 2"),
        (row(flops=-1), "line 2: .*flops is no amount"),
        (row(prompt_tokens=float("inf")), "line 2"),
        (row(prompt=["2+2"]), "line 2: .*prompt is no text"),
        (row(deep=DEEP, flops=1.0), "line 2: .*made is its best chain"),
        (row(deep=DEEP, samples=[SAMPLE]), "line 2: it has no 'flops'"),
        (best(flops=None), "line 2: .*with the flops"),
        (best(deep={}), "line 2: it has no 'strategy'"),
        (best(deep=[]), "line 2: not a recorded query"),
        (
            best(deep=DEEP | {"strategy": "majority"}),
            "line 2: .*no strategy 'majority' makes chains in parts",
        ),
        (best(deep=DEEP | {"strategy": []}), "line 2: not a recorded query"),
        (best(deep=DEEP | {"verifier": 7}), "line 2: .*verifier is no text"),
        (best(deep=DEEP | {"search": {"width": 0}}), "line 2: .*search.width: "),
        (best(deep=DEEP | {"search": {"width": 1, "luck": 1}}), "line 2: .*search.luck: "),
        ("[" * 100_000, "line 2: not a recorded query"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, line: Any, said: str) -> None:
    text = line if isinstance(line, str) else json.dumps(line)
    (tmp_path / "r.jsonl").write_text(json.dumps(row()) + "\n" + text + "\n")
    with pytest.raises(RecordingError, match=rf"r\.jsonl, {said}"):
        read([tmp_path / "r.jsonl"])


def test_files_that_are_none_are_said(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl.gz").write_text("plain")
    with pytest.raises(RecordingError, match="Not a gzipped file"):
        read([tmp_path / "r.jsonl.gz"])
    packed = gzip.compress(json.dumps(row()).encode() * 50)
    (tmp_path / "r.jsonl.gz").write_bytes(packed[:-20])
    with pytest.raises(RecordingError, match="line 1"):
        read([tmp_path / "r.jsonl.gz"])
    (tmp_path / "r.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(RecordingError, match="line 1"):
        read([tmp_path / "r.jsonl"])
    with pytest.raises(RecordingError, match="no query of which all models have two samples"):
        read([kept(tmp_path / "r.jsonl")])
    with pytest.raises(RecordingError, match="no samples of model 'z' are recorded; there are: a"):
        read([kept(tmp_path / "r.jsonl", row())], ["a", "z"])


def test_samples_of_several_temperatures_are_not_mixed(tmp_path: Path) -> None:
    path = kept(tmp_path / "r.jsonl", row(temperature=0.7), row("q2", temperature=1.0))
    with pytest.raises(RecordingError, match=r"several temperatures \(0.7, 1\)"):
        read([path])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(
    [
        "query_id",
        "model",
        "prompt",
        "group",
        "samples",
        "greedy",
        "temperature",
        "flops",
        "prompt_tokens",
        "deep",
    ]
)


@given(
    changes=st.dictionaries(names, json_values),
    sample=st.dictionaries(st.sampled_from(list(SAMPLE)), json_values),
)
def test_any_line_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any], sample: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    kept(path, row(samples=[SAMPLE | sample, SAMPLE]) | changes)
    try:
        read_back = list(lines(path))
        for query in read([path]).queries:
            assert all(np.isfinite(one.tokens).all() for one in query.samples.values())
    except RecordingError:
        pass
    else:
        assert len(read_back) == 1


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["math500", "aime2024", "gpqa_diamond"])
def test_recordings_of_real_models_are_read(name: str) -> None:
    path = SHARED / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    found = read([path], ["gpt-oss-20b"])
    assert len(found.queries) >= 30
    assert all(len(query.samples["gpt-oss-20b"].answers) >= 80 for query in found.queries)
