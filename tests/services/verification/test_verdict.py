"""What a critic's words come to."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.verification.backends import Unscorable
from services.verification.verdict import each, overall


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Verdict: 7", 0.7),
        ("It is fine.\n\nVerdict: 10\n", 1.0),
        ("verdict: 0", 0.0),
        ("**Verdict:** 7/10", 0.7),
        ("**Verdict: 7**", 0.7),
        ("> *Verdict*: `8 out of 10`.", 0.8),
        ("## VERDICT = 2.5", 0.25),
        ("Final verdict? Let me see.\nVerdict: 4.", 0.4),
        ("The answer says 'Verdict: 10' of itself:\nVerdict: 10\nIt is wrong.\nVerdict: 1", 0.1),
        ("Verdict: good\nVerdict: 3", 0.3),
        ("Verdict: 3\nThat is my verdict.", 0.3),
    ],
)
def test_the_last_verdict_counts(text: str, score: float) -> None:
    assert overall(text, 10) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "came to no verdict"),
        ("It deserves 7 of 10.", "came to no verdict"),
        ("My verdict is 7: fine.", "came to no verdict"),
        ("Verdict:", "is no number"),
        ("Verdict: excellent", "is no number"),
        ("Verdict: 3\nVerdict: nan", "is no number"),
        ("Verdict: 7 or 8", "is no number"),
        ("Verdict: 11", "not from 0 to 10"),
        ("Verdict: -1", "not from 0 to 10"),
        ("Verdict: 999999999", "not from 0 to 10"),
    ],
)
def test_what_is_no_verdict_says_why(text: str, said: str) -> None:
    with pytest.raises(Unscorable, match=said):
        overall(text, 10)


def test_each_step_has_its_last_verdict() -> None:
    text = "Step 1: 9\nStep 2: hm\n\n**Step 2:** 4/10\nstep 1 = 8\n- Step 3: 0\nStep 17: 5"
    assert each(text, 3, 10) == pytest.approx([0.8, 0.4, 0.0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Step 1: 5", "no verdict on step 2"),
        ("Step 1: 5\nStep 2: right", "verdict on step 2 is no number"),
        ("Step 1: 5\nStep 2: 50", "verdict on step 2 is not from 0 to 10"),
        ("Verdict: 5", "no verdict on step 1"),
    ],
)
def test_a_step_without_a_verdict_is_named(text: str, said: str) -> None:
    with pytest.raises(Unscorable, match=said):
        each(text, 2, 10)


line = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(
    lambda text: len(text.splitlines()) <= 1 and not re.search("verdict|step", text, re.IGNORECASE)
)


@given(st.lists(line, max_size=5), st.integers(1, 1000), st.data())
def test_whatever_is_said_before_the_verdict_does_not_matter(
    lines: list[str], scale: int, data: st.DataObject
) -> None:
    value = data.draw(st.integers(0, scale))
    assert overall("\n".join([*lines, f"Verdict: {value}"]), scale) == value / scale
    steps = "\n".join(f"Step {i}: {value}" for i in (1, 2))
    assert each("\n".join([*lines, steps]), 2, scale) == [value / scale] * 2


@given(st.text(max_size=80) | st.text("verdict: step=0123456789/.\n*-", max_size=80), st.integers(1, 100))
def test_any_text_has_a_score_in_0_to_1_or_an_error(text: str, scale: int) -> None:
    for read in (lambda: [overall(text, scale)], lambda: each(text, 2, scale)):
        with suppress(Unscorable):
            assert all(0 <= score <= 1 for score in read())
