"""Records of scaling laws: what they say at n, and which are refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from synthetic import record as profile_record

from router.profile import parse
from router.scaling import FORMS, PARAMETERS, Form, ScalingRecord, accuracy

SATURATING: dict[str, Any] = {
    "model": "m",
    "strategy": "majority",
    "queries": 100,
    "samples": [1, 64],
    "form": "saturating",
    "parameters": {"ceiling": 0.7, "b": 0.4, "n0": 8.0},
    "ceiling": 0.7,
    "ceiling_interval": [0.65, 0.75],
    "errors": {"logarithm": 0.05, "saturating": 0.01},
    "held_out": "more samples",
    "best_n": 64,
    "falls": False,
}


@pytest.mark.parametrize(
    ("form", "parameters", "truth"),
    [
        ("logarithm", {"a": 0.3, "c": 0.1}, 0.3 + 0.1 * math.log(16)),
        ("power", {"e": 0.2, "b": 0.5, "k": 0.5}, 1 - 0.2 - 0.5 / 4),
        ("saturating", {"ceiling": 0.7, "b": 0.4, "n0": 8.0}, 0.7 - 0.4 * math.exp(-2)),
    ],
)
def test_forms_are_their_formulas(form: Form, parameters: dict[str, float], truth: float) -> None:
    assert accuracy(form, parameters, [16, 16]) == pytest.approx([truth, truth])
    record = ScalingRecord.model_validate(
        SATURATING | {"form": form, "parameters": parameters, "errors": {form: 0.0}}
    )
    assert record.at(16) == pytest.approx(truth)


triples = st.lists(st.floats(-2, 2), min_size=3, max_size=3)


@given(st.sampled_from(FORMS), triples, st.floats(1, 1e6))
def test_an_accuracy_is_one_whatever_the_parameters(form: Form, drawn: list[float], n: float) -> None:
    parameters = dict(zip(PARAMETERS[form], drawn, strict=False))
    if form != "logarithm":
        parameters[PARAMETERS[form][-1]] = abs(drawn[2]) + 0.05
    assert 0 <= float(accuracy(form, parameters, n)) <= 1


@pytest.mark.parametrize("n", [0, 0.5, -1, math.nan])
def test_less_than_a_sample_has_no_accuracy(n: float) -> None:
    with pytest.raises(ValueError, match="one sample at least"):
        ScalingRecord.model_validate(SATURATING).at(n)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"parameters": {"ceiling": 0.7, "b": 0.4}}, "saturating has the parameters ceiling, b, n0"),
        ({"parameters": {"ceiling": math.nan, "b": 0.4, "n0": 8.0}}, "finite"),
        ({"ceiling": math.nan}, "finite|less than|greater than"),
        ({"ceiling": 1.2}, "less than or equal to 1"),
        ({"ceiling": None}, "come together"),
        ({"ceiling_interval": [0.8, 0.6]}, "interval falls"),
        ({"difficulty": [1.0, 0.0]}, "interval falls"),
        ({"interval": [0.8, 0.6]}, "interval falls"),
        ({"errors": {"logarithm": 0.1}}, "held-out error"),
        ({"best_n": 65}, "best number"),
        ({"samples": [64, 1]}, "samples fall"),
        ({"form": "cubic"}, "logarithm"),
        ({"strategy": "guess"}, "majority"),
        ({"more": 1}, "Extra"),
    ],
)
def test_records_that_cannot_be_are_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        ScalingRecord.model_validate(SATURATING | change)


def test_a_profile_has_them_or_none() -> None:
    data = profile_record()
    assert parse(data).scaling == ()
    (record,) = parse(data | {"scaling": [SATURATING]}).scaling
    assert record == ScalingRecord.model_validate_json(record.model_dump_json())
    assert record.at(1) < record.at(64) < 0.7 == record.ceiling
    assert np.isclose(record.at(1e9), 0.7)
