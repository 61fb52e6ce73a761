"""JSON for machines: protobuf's form, with numbers for integers."""

from __future__ import annotations

import json
import math

from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from isoflop.jsonform import to_dict
from isoflop.v1.common_pb2 import Usage
from isoflop.v1.router_pb2 import Filters, ScalingLaw, SolveRequest, SolveResponse
from scripted_answers import BILL, KEPT, SOLVED, STANDING

counts = st.integers(-(2**63), 2**63 - 1)


def test_integers_are_numbers_and_defaults_are_there() -> None:
    solved = to_dict(SOLVED)
    assert json.loads(json.dumps(solved)) == solved
    assert solved["seed"] == 9007199254740993
    assert solved["status"] == "STATUS_ANSWERED"
    assert solved["candidates"] == []
    assert solved["bill"]["lines"][1]["strategy"] == ""  # type: ignore[index]
    assert "seed" not in to_dict(Filters())
    assert to_dict(Filters(seed=0))["seed"] == 0
    assert "objective" not in to_dict(SolveRequest())


def test_a_map_is_an_object_in_the_order_of_its_keys() -> None:
    law = ScalingLaw(parameters={"n0": 8.0, "b": 0.5, "ceiling": math.inf})
    written = json.dumps(to_dict(law), allow_nan=False)
    assert '"parameters": {"b": 0.5, "ceiling": "Infinity", "n0": 8.0}' in written
    assert json_format.Parse(written, ScalingLaw()) == law


def test_a_time_is_as_protobuf_writes_it() -> None:
    kept = to_dict(KEPT)
    assert (kept["began"], kept["ended"]) == ("2026-11-02T14:04:54Z", "2026-11-02T14:04:55.320Z")
    assert "round" not in kept["charges"][0]  # type: ignore[index]
    assert kept["charges"][1]["round"] == 0  # type: ignore[index]
    for message in (KEPT, STANDING, BILL):
        assert json_format.Parse(json.dumps(to_dict(message), allow_nan=False), type(message)()) == message


@given(
    st.builds(
        SolveResponse,
        answer=st.text(st.characters(exclude_categories=["Cs"])),
        confidence=st.floats(allow_nan=False),
        status=st.integers(0, 5),
        seed=counts,
        candidates=st.just(SOLVED.candidates),
    ),
    st.builds(Usage, stage=st.integers(0, 3), calls=counts, flops=st.floats(allow_nan=False)),
)
def test_protobuf_reads_it(response: SolveResponse, usage: Usage) -> None:
    response.bill.lines.append(usage)
    written = json.dumps(to_dict(response), allow_nan=False)
    assert json_format.Parse(written, SolveResponse()) == response
