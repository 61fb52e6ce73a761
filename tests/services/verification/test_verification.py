"""Scores by log-probability: in [0, 1], and each fault to its own chain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isoflop.errors import InvalidArgument, NotFound
from isoflop.v1.common_pb2 import Message, Step
from isoflop.v1.verification_pb2 import (
    CHAIN_SCORING_MEAN,
    Chain,
    ChainScore,
    DescribeVerifiersRequest,
    ScoreRequest,
    ScoreResponse,
    Verifier,
)
from prometheus_client import CollectorRegistry

from services.verification.backends import Scored, Spent, Unscorable
from services.verification.backends.logprob import LogprobBackend
from services.verification.catalog import LogprobEntry
from services.verification.core import Verification
from services.verification.settings import VerificationSettings

GOOD = Chain(
    id="good",
    text="one\ntwo",
    steps=[Step(end=4, tokens=4, logprob=-2.0), Step(end=7, tokens=3, logprob=-0.3)],
)
GOOD_SCORE = ChainScore(id="good", steps=[math.exp(-0.5), math.exp(-0.1)])


def verification(registry: CollectorRegistry | None = None, **settings: Any) -> Verification:
    backend = LogprobBackend(LogprobEntry(name="logprob"))
    return Verification(VerificationSettings(**settings), [backend], registry or CollectorRegistry())


async def score(*chains: Chain, **settings: Any) -> ScoreResponse:
    request = ScoreRequest(verifier="logprob", messages=[Message(role="user", content="1+1")], chains=chains)
    return await verification(**settings).score(request)


async def test_a_steps_score_is_the_mean_probability_of_its_tokens() -> None:
    response = await score(GOOD)
    (scored,) = response.scores
    assert (scored.id, scored.error) == ("good", "")
    assert list(scored.steps) == pytest.approx(list(GOOD_SCORE.steps))
    assert response.tokens == 0
    assert response.flops == response.flops_without_attention > 0


steps = st.builds(
    Step,
    end=st.integers(0, 2**31 - 1),
    tokens=st.integers(-5, 2**31 - 1),
    logprob=st.none() | st.floats(),
)


@given(st.lists(steps, max_size=6))
def test_every_chain_has_all_its_scores_in_0_to_1_or_an_error(parts: list[Step]) -> None:
    coroutine = verification().score(ScoreRequest(verifier="logprob", chains=[Chain(id="c", steps=parts)]))
    with pytest.raises(StopIteration) as ended:
        coroutine.send(None)  # It awaits nothing.
    (scored,) = ended.value.value.scores
    if scored.error:
        assert not scored.steps
        assert "\n" not in scored.error
    else:
        assert len(scored.steps) == len(parts) > 0
        assert all(0 <= step <= 1 for step in scored.steps)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (Chain(), "it has no steps"),
        (Chain(text=" \n\n"), "it has no steps"),
        (Chain(text="not cut\n"), "step 1 has no log-probability"),
        (Chain(text="line\n" * 10_000), "more than 4096 steps"),
        (Chain(steps=[Step(tokens=1, logprob=math.nan)]), "step 1 is not a finite number"),
        (Chain(steps=[Step(tokens=1, logprob=-math.inf)]), "step 1 is not a finite number"),
        (Chain(steps=[Step(tokens=1, logprob=-1), Step(tokens=1)]), "step 2 has no log-probability"),
        (Chain(steps=[Step(tokens=0, logprob=-1)]), "step 1 has no log-probability"),
        (Chain(steps=[Step(tokens=-1, logprob=-1)]), "step 1 has no log-probability"),
        (Chain(steps=[Step(tokens=1, logprob=-1)] * 10_000), "more than 4096 steps"),
        (Chain(text="x" * (1 << 20) + "x", steps=[Step(tokens=1, logprob=-1)]), "more than 1048576 bytes"),
        (Chain(text="é" * 600_000, steps=[Step(tokens=1, logprob=-1)]), "more than 1048576 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_chain_that_cannot_be_scored_says_why_and_the_others_are_scored(
    bad: Chain, said: str
) -> None:
    bad.id = "bad"
    last = Chain(id="last")
    last.MergeFrom(Chain(steps=GOOD.steps))
    response = await score(GOOD, bad, last)
    assert [one.id for one in response.scores] == ["good", "bad", "last"]
    assert said in response.scores[1].error
    assert not response.scores[1].steps
    for other in (response.scores[0], response.scores[2]):
        assert list(other.steps) == pytest.approx(list(GOOD_SCORE.steps))
        assert not other.error
    assert response.flops == 8


async def test_a_text_of_too_many_lines_is_not_even_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four megabytes of line ends would take the event loop seconds."""
    cutting: list[str] = []
    monkeypatch.setattr("services.verification.core.cut", cutting.append)
    response = await score(*[Chain(id=str(number), text="a\n" * 500_000) for number in range(4)])
    assert all("more than 4096 steps" in one.error for one in response.scores)
    assert not cutting


@pytest.mark.parametrize(
    ("text", "scored"), [("a\n" * 8, True), ("a\n" * 8 + "a", False), ("a\n" * 9, False)]
)
async def test_a_text_may_have_as_many_lines_as_a_chain_has_steps(text: str, scored: bool) -> None:
    backend = Odd(Scored([0.5] * 8, SPENT))
    core = Verification(VerificationSettings(max_steps=8), [backend], CollectorRegistry())
    (one,) = (await core.score(ScoreRequest(verifier="odd", chains=[Chain(id="a", text=text)]))).scores
    assert bool(one.steps) == scored == (not one.error)


async def test_a_text_and_steps_up_to_the_limits_are_scored() -> None:
    long = Chain(id="long", text="x" * (1 << 20), steps=[Step(tokens=1, logprob=-1)] * 4096)
    (scored,) = (await score(long)).scores
    assert len(scored.steps) == 4096


async def test_impossible_log_probabilities_score_at_most_1() -> None:
    (scored,) = (
        await score(Chain(steps=[Step(tokens=2, logprob=3.0), Step(tokens=1, logprob=-1e300)]))
    ).scores
    assert list(scored.steps) == [1.0, 0.0]


async def test_an_unknown_verifier_is_not_found_and_the_known_ones_are_named() -> None:
    for name in ("oracle", ""):
        with pytest.raises(NotFound, match=rf"'{name}'.*logprob"):
            await verification().score(ScoreRequest(verifier=name, chains=[GOOD]))


async def test_too_many_chains_are_refused_and_named() -> None:
    assert len((await score(GOOD, GOOD, max_chains=2)).scores) == 2
    with pytest.raises(InvalidArgument, match="at most 2") as caught:
        await score(GOOD, GOOD, GOOD, max_chains=2)
    assert caught.value.field == "chains"


async def test_no_chains_have_no_scores() -> None:
    assert await score() == ScoreResponse()


async def test_chains_and_flops_are_counted() -> None:
    registry = CollectorRegistry()
    core = verification(registry)
    flops = 0.0
    for _ in range(2):
        chains = [GOOD, Chain(id="bad"), GOOD]
        flops += (await core.score(ScoreRequest(verifier="logprob", chains=chains))).flops

    def counted(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"isoflop_verification_{name}", {"verifier": "logprob", **labels})

    assert counted("chains_total", outcome="scored") == 4
    assert counted("chains_total", outcome="unscorable") == 2
    assert counted("flops_total") == flops > 0


async def test_a_request_is_not_changed() -> None:
    request = ScoreRequest(verifier="logprob", chains=[GOOD, Chain(id="bad")])
    before = request.SerializeToString(deterministic=True)
    await verification().score(request)
    assert request.SerializeToString(deterministic=True) == before


async def test_verifiers_are_described() -> None:
    (verifier,) = (await verification().describe(DescribeVerifiersRequest())).verifiers
    assert (verifier.name, verifier.backend, verifier.needs_logprobs) == ("logprob", "logprob", True)
    assert verifier.scoring == CHAIN_SCORING_MEAN
    assert not verifier.HasField("shape")


SPENT = Spent(tokens=5, cached_tokens=3, completion_tokens=2, flops=70.0, flops_without_attention=60.0)


class Odd:
    """Says what it was told to."""

    name, whole = "odd", False

    def __init__(self, *outcomes: Scored | Unscorable) -> None:
        self.outcomes = outcomes
        self.asked: list[Chain] = []

    async def describe(self) -> Verifier:
        return Verifier(name=self.name)

    async def score(
        self, messages: Sequence[Message], chains: Sequence[Chain]
    ) -> Sequence[Scored | Unscorable]:
        self.asked += chains
        return self.outcomes

    async def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([0.5, math.nan], "score of step 2 is nan"),
        ([math.inf, 0.5], "score of step 1 is inf"),
        ([0.5, 1.0001], "step 2 is 1.0001, not a number from 0 to 1"),
        ([-1e-9, 0.5], "step 1 is -1e-09"),
        ([0.5], "gave 1 scores for 2 steps"),
        ([0.5] * 3, "gave 3 scores for 2 steps"),
        ([], "gave 0 scores for 2 steps"),
    ],
)
async def test_a_verifiers_word_is_checked_and_what_it_took_counts(scores: list[float], said: str) -> None:
    good = Scored([0.25, 0.75], SPENT)
    backend = Odd(Scored(scores, SPENT), good, Unscorable("too hard", SPENT), good)
    registry = CollectorRegistry()
    core = Verification(VerificationSettings(), [backend], registry)
    chains = [Chain(id=name, text="one\ntwo") for name in "abcd"]
    response = await core.score(ScoreRequest(verifier="odd", chains=chains))
    assert [one.id for one in response.scores] == list("abcd")
    assert said in response.scores[0].error
    assert response.scores[2].error == "too hard"
    for bad in (0, 2):
        assert not response.scores[bad].steps
    for fine in (1, 3):
        assert list(response.scores[fine].steps) == [0.25, 0.75]
    assert (response.tokens, response.cached_tokens, response.completion_tokens) == (20, 12, 8)
    assert (response.flops, response.flops_without_attention) == (280.0, 240.0)
    for kind, count in (("prompt", 20), ("cached", 12), ("completion", 8)):
        labels = {"verifier": "odd", "kind": kind}
        assert registry.get_sample_value("isoflop_verification_tokens_total", labels) == count


async def test_a_chain_without_steps_is_cut_into_lines_and_a_whole_text_is_one() -> None:
    backend = Odd(Scored([0.5, 0.5], SPENT))
    core = Verification(VerificationSettings(), [backend], CollectorRegistry())
    request = ScoreRequest(verifier="odd", chains=[Chain(id="a", text="one\n\ntwo")])
    assert list((await core.score(request)).scores[0].steps) == [0.5, 0.5]
    backend.whole, backend.outcomes = True, (Scored([0.5], SPENT),)
    assert list((await core.score(request)).scores[0].steps) == [0.5]
    assert [[step.end for step in chain.steps] for chain in backend.asked] == [[5, 8], [8]]


async def test_too_long_messages_are_refused_and_named() -> None:
    messages = [Message(role="user", content="x" * 6), Message(role="user", content="x" * 5)]
    with pytest.raises(InvalidArgument, match="at most 10 bytes") as caught:
        await verification(max_prompt_bytes=10).score(ScoreRequest(verifier="logprob", messages=messages))
    assert caught.value.field == "messages"
