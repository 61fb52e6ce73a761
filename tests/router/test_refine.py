"""Draft, critique, revision: when it ends, and what it keeps."""

from __future__ import annotations

import pytest
from isoflop.v1.common_pb2 import ANSWER_TYPE_TEXT, AnswerFormat, Model, Revision
from isoflop.v1.router_pb2 import Filters, Growth, SolveRequest
from prometheus_client import CollectorRegistry
from scripted_bench import ScriptedBench, everything, play, texts
from scripted_stages import Said, ScriptedGeneration, listed
from scripted_suite import MakeSuite
from synthetic import make_model

from router.strategies import STRATEGIES
from router.strategies.refine import is_content
from router.strategies.strategy import Search
from services.verification.backends.critic import CriticBackend
from services.verification.catalog import CriticEntry
from services.verification.core import Verification
from services.verification.settings import VerificationSettings

REFINE = STRATEGIES["refine"]
CRITIC = Model(revision=Revision(critique="critique", content="fine", revise="revise"))
SAYS: dict[str, str | list[str]] = {
    "": "a",
    "a\ncritique": "wrong",
    "wrong\nrevise": ["b", "c"],
    "b\ncritique": "wrong",
    "c\ncritique": "fine",
}


def make_bench(scores: dict[str, float], depth: int = 3, **fields: object) -> ScriptedBench:
    says = {after: said if isinstance(said, str) else list(said) for after, said in SAYS.items()}
    return ScriptedBench(
        says=says, model=CRITIC, scores=scores, **{"search": Search(1, depth=depth), **fields}
    )  # type: ignore[arg-type]


async def test_it_goes_on_until_the_critic_is_content() -> None:
    bench = make_bench({"a": 0.1, "b": 0.2, "c": 0.3})
    assert texts(await play(bench, REFINE)) == [["c"]]
    assert bench.heard[-1] == ["c", "critique"]
    # The model sees what it is to revise, and why.
    assert bench.heard[1] == ["a", "critique", "wrong", "revise"]


async def test_a_worse_revision_never_takes_the_place_of_a_better_draft() -> None:
    bench = make_bench({"a": 0.1, "b": 0.2, "c": 0.15})
    assert texts(await play(bench, REFINE)) == [["b"]]
    # It has ended there: more does not pay.
    assert bench.heard[-1] == ["b", "critique", "wrong", "revise"]


async def test_it_is_revised_at_most_as_often_as_it_is_deep() -> None:
    assert texts(await play(make_bench({"a": 0.1, "b": 0.2, "c": 0.3}, depth=1), REFINE)) == [["b"]]
    assert texts(await play(make_bench({}, depth=0), REFINE)) == [["a"]]


async def test_without_scores_the_draft_stays() -> None:
    assert texts(await play(make_bench({}, missing=True), REFINE)) == [["a"]]


async def test_where_nothing_is_left_to_spend_the_best_so_far_is_there() -> None:
    scores = {"a": 0.1, "b": 0.2, "c": 0.3}
    found = [texts(await play(make_bench(scores, steps=steps), REFINE)) for steps in range(6)]
    assert found == [[], [["a"]], [["a"]], [["b"]], [["b"]], [["c"]]]


async def test_drafts_and_what_became_of_them_are_told() -> None:
    bench = make_bench({"a": 0.1, "b": 0.2, "c": 0.15})
    growths = [one for one in await everything(bench, REFINE) if isinstance(one, Growth)]
    assert [[(n.parent, n.text, n.state) for n in growth.nodes] for growth in growths] == [
        [("", "a", 1)],
        [("m/1", "wrong", 1), ("m/2", "b", 1)],
        [("m/3", "wrong", 1), ("m/4", "c", 2)],
        [("m/2", "b", 3)],
    ]


async def test_what_is_said_of_a_draft_is_told_whole() -> None:
    bench = ScriptedBench(
        says={"": "42", "42\ncritique": "42 is fine"}, model=CRITIC, search=Search(1, depth=1)
    )
    growths = [one for one in await everything(bench, REFINE) if isinstance(one, Growth)]
    assert growths[1].nodes[0].text == "42 is fine"


def test_the_last_line_says_whether_the_critic_is_content() -> None:
    assert is_content("1 ok\n2 fine\n\n", "fine")
    assert not is_content("1 fine\n2 wrong", "fine")
    assert not is_content("", "fine")


@pytest.mark.parametrize(
    ("verdicts", "best"), [((3, 8), "The sea is a grey field."), ((8, 3), "The sea is grey.")]
)
async def test_of_open_text_a_critic_decides(
    make_suite: MakeSuite, verdicts: tuple[int, int], best: str
) -> None:
    """Draft and revision are judged by a language model with a rubric, whatever their author says of them."""
    given = iter(verdicts)
    judge = ScriptedGeneration([make_model("judge")], lambda model, index: Said(f"Verdict: {next(given)}"))
    critic = CriticBackend(CriticEntry(name="critic", backend="critic", model="judge"), judge)
    verification = Verification(VerificationSettings(), [critic], CollectorRegistry())
    said = listed(
        Said("The sea is grey."), Said("It is dull."), Said("The sea is a grey field."), Said("It is fine")
    )
    poet = make_model("s", revision=CRITIC.revision)
    suite = make_suite(said, models=[poet], stages={"verification": verification})
    request = SolveRequest(
        prompt="A line about the sea.",
        answer_format=AnswerFormat(type=ANSWER_TYPE_TEXT),
        filters=Filters(strategies=["refine"], verifier="critic"),
    )
    final = await suite.router.solve(request)
    await verification.close()
    assert final.text == best
    # The critic's tokens are on the bill, too.
    lines = {line.model: line for line in final.bill.lines}
    assert lines["critic"].calls == 2
    assert lines["critic"].flops > 0
