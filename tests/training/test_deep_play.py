"""Strategies on labelled queries: played as the router plays them, once each, within the cap."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from isoflop.errors import InvalidArgument, Unavailable
from isoflop.v1.common_pb2 import ANSWER_TYPE_NUMBER, Capabilities, Model, Revision, Shape, Thinking
from isoflop.v1.router_pb2 import SolveRequest
from isoflop.v1.verification_pb2 import DescribeVerifiersRequest
from prometheus_client import CollectorRegistry

from router.catalog import Catalog
from router.cost import Cost
from router.planner import Planner
from router.query import admit
from router.stages import Stages
from services.aggregation.core import Aggregation
from services.verification.backends.logprob import LogprobBackend
from services.verification.catalog import LogprobEntry
from services.verification.core import Verification
from services.verification.settings import VerificationSettings
from tests.router.scripted_stages import HOLD, Said, ScriptedGeneration, number
from tests.router.synthetic import GRID, MIDDLE, make_profile, make_state
from training import calibration
from training.calibration import Ended, Job, Plan, foreseen, opened, record
from training.deep import BOUNDS, CHAINS, Play, asked, missing, served, unserved
from training.labelled import Labelled
from training.measured import Deep
from training.recordings import RecordingError, deep_of, lines, read

FREE = Cost(math.inf, math.inf, math.inf)
ABLE: dict[str, Any] = {
    "shape": Shape(active_parameters=1000, layers=2, heads=2, head_size=8),
    "context": 256,
    "capabilities": Capabilities(logprobs=True, prefix=True, steps=True),
    "thinking": Thinking(end="</t>", extend="Wait", close="</t>", answer_tokens=4),
    "revision": Revision(critique="critique", content="ok", revise="revise"),
}
ABLE_ONE, OTHER = Model(name="s", **ABLE), Model(name="o", shape=Shape(active_parameters=10), context=256)
QUERIES = [Labelled(f"q{n}", f"What is {n}+1?", str(n + 1), ANSWER_TYPE_NUMBER, "") for n in range(4)]
BEAM = asked("beam:2x2x8")


def said(model: str, index: int) -> Said:
    """Of four chains the second is likeliest, and says 1, which is right of q0 alone."""
    return number(1 if index % 4 == 1 else 7, logprobs=(-0.1 if index % 4 == 1 else -9.0,))


@pytest.fixture
async def stages(aggregation: Aggregation) -> Stages:
    verifier = LogprobBackend(LogprobEntry(name="logprob"))
    verification = Verification(VerificationSettings(), [verifier], CollectorRegistry())
    generation = ScriptedGeneration([ABLE_ONE, OTHER], said)
    return Stages(generation, verification, generation, aggregation)  # type: ignore[arg-type]


@pytest.fixture
async def plan(stages: Stages) -> Plan:
    verifiers = (await stages.verification.describe(DescribeVerifiersRequest())).verifiers
    return Plan(samples=4, temperature=0.8, verifiers=list(verifiers), at_a_time=2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "r.jsonl").touch()
    return tmp_path / "r.jsonl"


def generation(stages: Stages) -> ScriptedGeneration:
    assert isinstance(stages.generation, ScriptedGeneration)
    return stages.generation


def lacking(path: Path, plan: Plan, queries: list[Labelled], *strategies: str) -> list[Job]:
    return missing(path, queries, [ABLE_ONE, OTHER], plan, [asked(text) for text in strategies])


async def run(
    stages: Stages,
    plan: Plan,
    path: Path,
    *strategies: str,
    queries: list[Labelled] = QUERIES,
    left: Cost = FREE,
) -> Ended:
    with opened(path) as file:
        _, spent = calibration.missing(path, queries, [ABLE_ONE, OTHER], plan)
        jobs = lacking(path, plan, queries, *strategies or ("beam:2x2x8",))
        return await record(stages, jobs, plan, file, left=left - spent, done=lambda price: None)


async def test_its_best_chain_is_graded_kept_and_billed(stages: Stages, plan: Plan, path: Path) -> None:
    await run(stages, plan, path)
    rows = list(lines(path))
    deep = Deep("s", "beam", BEAM.search, "logprob")
    assert [(row["query_id"], deep_of(row)) for row in rows] == [(one.query_id, deep) for one in QUERIES]
    assert [[one["answer"] for one in row["samples"]] for row in rows] == [["1"]] * len(QUERIES)
    assert [row["samples"][0]["correct"] for row in rows] == [True, False, False, False]
    assert (rows[0]["gold"], rows[0]["type"], rows[0]["temperature"]) == ("1", "number", 0.8)
    scored = 2.0 * 2 * len(rows)  # Of four chains three are the same.
    assert math.fsum(row["flops"] for row in rows) == pytest.approx(generation(stages).flops() + scored)
    assert all(row["flops"] > 3 * 2 * 1000 * 40 for row in rows)


@pytest.mark.parametrize("text", ["beam:2x2x8", "tree:2x2x8x12", "sequential@60", "refine"])
async def test_a_round_is_as_the_planner_has_it_where_it_chooses_that(plan: Plan, text: str) -> None:
    models, one = [ABLE_ONE], asked(text)
    ((deep, model),) = served([one], models, plan).items()
    told = {
        "model": "s",
        "temperature": plan.temperature,
        "strategy": one.strategy,
        "search": {**vars(one.search)},
        "verifier": deep.verifier,
        **{name: [0.99] * len(GRID) for name in ("p_right", "tokens", "times")},
    }
    catalog = Catalog.of(models, plan.verifiers)
    planner = Planner(make_profile(["s"], deep=[told]), catalog, round_samples=4)
    query = admit(SolveRequest(prompt=QUERIES[0].prompt), catalog, BOUNDS)
    chosen = planner.decide(query, make_state(planner, MIDDLE)).action
    assert chosen
    assert chosen.deep
    played, action = Play(QUERIES[0], model, deep, Planner(make_profile(), catalog, 1)).round(plan)
    for name in ("strategy", "max_tokens", "temperature", "verifier", "scoring"):
        assert getattr(action, name) == getattr(chosen, name)
    # Of single chains several are played at once, to be voted on.
    assert chosen.search
    assert action.search == (replace(chosen.search, width=CHAINS) if deep.single else chosen.search)
    assert (played.messages, played.prompt_bytes) == (query.messages, query.prompt_bytes)


async def test_each_strategy_comes_to_an_outcome(stages: Stages, plan: Plan, path: Path) -> None:
    texts = ("beam:2x2x8", "dvts:2x2x8", "tree:2x2x8x12", "sequential:1x1x2", "sequential@60", "refine:1x1x1")
    await run(stages, plan, path, *texts, queries=QUERIES[:1])
    rows = {str(deep_of(row)): row["samples"] for row in lines(path)}
    assert set(rows) == {f"s {asked(text)}" for text in texts}
    assert all(samples[0]["tokens"] >= 40 for samples in rows.values())
    assert {name: len(samples) for name, samples in rows.items() if len(samples) > 1} == {
        f"s {asked(text)}": CHAINS for text in texts if text.startswith("sequential")
    }


async def test_a_second_run_plays_nothing_and_one_that_was_stopped_goes_on(
    stages: Stages, plan: Plan, path: Path
) -> None:
    await run(stages, plan, path, queries=QUERIES[:2])
    begun = len(generation(stages).starts)
    await run(stages, plan, path, queries=QUERIES[:2])
    assert len(generation(stages).starts) == begun
    await run(stages, plan, path, "beam:2x2x8", "dvts:2x2x8")
    keys = [(row["query_id"], deep_of(row)) for row in lines(path)]
    assert len(keys) == len(set(keys)) == 2 * len(QUERIES)


async def test_it_is_none_of_the_models_samples(stages: Stages, plan: Plan, path: Path) -> None:
    await run(stages, plan, path)
    jobs, spent = calibration.missing(path, QUERIES, [ABLE_ONE], plan)
    assert len(jobs) == len(QUERIES)
    assert spent.flops > generation(stages).flops()
    with opened(path) as file:
        await record(stages, jobs, plan, file, left=FREE, done=lambda price: None)
    found = read([path])
    assert all(len(query.samples["s"].right) == plan.samples for query in found.queries)
    (deep,) = found.queries[0].deep
    assert [query.deep[deep].right for query in found.queries] == [1, 0, 0, 0]
    assert not found.incomplete


def grows(model: str, index: int) -> Said:
    """A chain that never comes to an end by itself."""
    return Said(f"step {index}\n", logprobs=(-1.0,), tokens=20)


@pytest.mark.parametrize("share", [0.5, 1.05, 1.2])
async def test_a_cap_is_never_exceeded_and_more_goes_on(
    stages: Stages, plan: Plan, path: Path, share: float
) -> None:
    generation(stages).script = grows
    (first, *_) = lacking(path, plan, QUERIES, "beam:2x2x8")
    most = share * first.at_worst(plan).flops
    ended = await run(stages, plan, path, left=Cost(most, math.inf, math.inf))
    assert ended.capped
    assert generation(stages).flops() <= most
    assert (generation(stages).flops() > 0) == (share > 1)
    # What ended for want of room is no outcome, but was paid for.
    outcomes = [row for row in lines(path) if row["samples"]]
    assert len(outcomes) < len(QUERIES)
    paid = math.fsum(row["flops"] for row in lines(path))
    assert generation(stages).flops() <= paid <= most
    assert (await run(stages, plan, path)).capped is None
    assert len([row for row in lines(path) if row["samples"]]) == len(QUERIES)


async def test_what_comes_under_a_cap_is_what_comes_without(
    stages: Stages, plan: Plan, path: Path, tmp_path: Path
) -> None:
    generation(stages).script = grows
    await run(stages, plan, path)
    paid = math.fsum(row["flops"] for row in lines(path))
    alone = replace(plan, at_a_time=1)
    await run(stages, alone, tmp_path / "capped.jsonl", left=Cost(3 * paid, math.inf, math.inf))
    there = {row["query_id"]: row for row in lines(path)}
    capped = [row for row in lines(tmp_path / "capped.jsonl") if row["samples"]]
    assert capped
    assert all(row == there[row["query_id"]] for row in capped)


async def test_what_is_expected_is_told_as_of_what_runs_at_once(
    stages: Stages, plan: Plan, path: Path
) -> None:
    expected = foreseen(lacking(path, plan, QUERIES, "beam:2x2x8"), plan, lambda model: 40.0)
    await run(stages, plan, path)  # Chains of one step.
    assert expected.flops == pytest.approx(generation(stages).flops(), rel=0.5)


def test_models_that_cannot_serve_a_strategy_are_told_once_and_left_out(plan: Plan) -> None:
    models, strategies = [ABLE_ONE, OTHER], [BEAM, asked("sequential")]
    assert {deep.model for deep in served(strategies, models, plan)} == {"s"}
    assert unserved(strategies, models, plan) == [
        "beam:2x2x8 is not played with o: the model cannot serve it, or no verifier scores its steps",
        "sequential:1x1x4 is not played with o: the model cannot serve it",
    ]
    unscored = replace(plan, verifiers=[])
    assert [deep.strategy for deep in served(strategies, models, unscored)] == ["sequential"]


async def test_where_scores_are_away_there_is_no_outcome(stages: Stages, plan: Plan, path: Path) -> None:
    class Broken:
        async def score(self, request: Any) -> Any:
            raise Unavailable("no verifier")

    broken = Stages(stages.generation, Broken(), stages.difficulty, stages.aggregation)  # type: ignore[arg-type]
    with pytest.raises(Unavailable, match="no verifier"):
        await run(broken, plan, path)
    assert not any(row["samples"] for row in lines(path))
    _, spent = calibration.missing(path, QUERIES, [ABLE_ONE], plan)
    assert spent.flops == pytest.approx(generation(stages).flops())


async def test_where_nothing_comes_of_it_it_was_wrong(stages: Stages, plan: Plan, path: Path) -> None:
    generation(stages).script = lambda model, index: Said("I do not know.")
    await run(stages, plan, path, queries=QUERIES[:1])
    (row,) = lines(path)
    assert row["samples"] == [{"answer": None, "correct": False, "tokens": 40}]


async def test_what_outgrows_the_model_midway_was_wrong_and_what_never_begins_is_refused(
    stages: Stages, plan: Plan, path: Path
) -> None:
    def script(model: str, index: int) -> Said | Exception:
        return (
            said(model, index) if len(generation(stages).starts) == 1 else InvalidArgument("messages", "long")
        )

    generation(stages).script = script
    ended = await run(stages, replace(plan, at_a_time=1), path, "refine", queries=QUERIES[:2])
    (row,) = lines(path)
    assert (row["query_id"], row["samples"][0]["correct"]) == ("q0", False)
    assert row["flops"] > 0
    assert list(ended.refused) == ["q1"]


async def test_what_is_interrupted_leaves_no_outcome(stages: Stages, plan: Plan, path: Path) -> None:
    generation(stages).script = lambda model, index: HOLD
    with opened(path) as file:
        jobs = lacking(path, plan, QUERIES, "beam:2x2x8")
        task = asyncio.create_task(record(stages, jobs, plan, file, left=FREE, done=lambda price: None))
        while not generation(stages).running:  # noqa: ASYNC110 (the script has no event)
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert generation(stages).running == 0
    assert list(lines(path)) == []


async def test_what_was_played_otherwise_is_not_gone_on_with(stages: Stages, plan: Plan, path: Path) -> None:
    await run(stages, plan, path)
    with pytest.raises(RecordingError, match=r"recorded with temperature 0\.8"):
        lacking(path, replace(plan, temperature=1.0), QUERIES, "beam:2x2x8")
    with pytest.raises(RecordingError, match="another prompt"):
        lacking(path, plan, [replace(QUERIES[0], prompt="What is 8+8?")], "beam:2x2x8")


@pytest.mark.parametrize(
    ("text", "spelt"),
    [
        ("beam", "beam:4x4x64"),
        ("dvts:2", "dvts:2x4x64"),
        ("tree:2x3", "tree:2x3x64x128"),
        ("sequential", "sequential:1x1x4"),
        ("sequential@200", "sequential:1x1x4@200"),
        ("refine:2x1x1", "refine:2x1x1"),
    ],
)
def test_what_is_left_out_of_a_shape_is_the_strategys_own(text: str, spelt: str) -> None:
    assert str(asked(text)) == spelt
    assert asked(spelt) == asked(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("broad_and_deep", "the planner splits breadth and depth itself"),
        ("majority", "majority makes no chains in parts; these do: beam, dvts, tree, sequential, refine"),
        ("prayer", "prayer makes no chains in parts"),
        ("beam@64", "beam does not think"),
        ("beam:0x4", "is no strategy with its shape"),
        ("beam:4x4x4x4x4", "is no strategy with its shape"),
        ("beam:4x4x4x4", "goes with a tree"),
        ("beam:64x64", "at most 1024"),
        ("sequential:1x2", "tries no other continuations"),
        ("sequential@99999999999", "too much: each number must fit in 31 bits"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_sentence(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        asked(text)
    assert "\n" not in str(error.value)
