"""Roll-outs: labels by counting, nothing sampled in vain, whole files after interruptions."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from isoflop import cli
from isoflop.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from isoflop.v1.common_pb2 import (
    FINISH_REASON_ABORTED,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    Capabilities,
    Model,
    Sample,
    Shape,
    Step,
)
from isoflop.v1.generation_pb2 import (
    DescribeModelsRequest,
    DescribeModelsResponse,
    GenerateRequest,
    GenerateResponse,
    RoundUsage,
    StartRound,
)

from training import rollouts
from training.labels import chains_of
from training.rollouts import Wanted, label

Says = Callable[[str, int], str]
"""What follows a prefix in a sample of this number among the branch's."""
HALF = "1+1=2\n2+"


class ScriptedGeneration:
    """Plays a script, one sample after the other, and obeys aborts."""

    def __init__(self, says: Says, cut: str = "") -> None:
        self.says, self.cut = says, cut
        self.starts: list[StartRound] = []
        self.aborted = 0
        self.refuse: Exception | None = None
        self.can_continue = True

    async def describe(self, request: DescribeModelsRequest) -> DescribeModelsResponse:
        shape = Shape(active_parameters=10, layers=1, heads=1, head_size=1)
        model = Model(name="m", shape=shape, capabilities=Capabilities(prefix=self.can_continue))
        return DescribeModelsResponse(models=[model])

    async def generate(
        self, requests: AsyncIterator[GenerateRequest]
    ) -> AsyncGenerator[GenerateResponse, None]:
        start = (await anext(requests)).start
        self.starts.append(start)
        if self.refuse:
            raise self.refuse
        aborted: set[str] = set()

        async def obey() -> None:
            async for request in requests:
                aborted.update(request.abort.sample_ids)

        obeying = asyncio.create_task(obey())
        index = start.first_sample
        try:
            for number, branch in enumerate(start.branches):
                for i in range(branch.samples):
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                    sample = self._sample(f"m/{index}", number, branch.prefix, i, aborted)
                    index += 1
                    yield GenerateResponse(sample=sample)
        finally:
            obeying.cancel()
            await asyncio.gather(obeying, return_exceptions=True)
        yield GenerateResponse(usage=RoundUsage(completion_tokens=10, prompt_tokens=5, context_tokens=7))

    def _sample(self, name: str, branch: int, prefix: str, i: int, aborted: set[str]) -> Sample:
        if name in aborted:
            self.aborted += 1
            return Sample(id=name, branch=branch, finish_reason=FINISH_REASON_ABORTED)
        text = self.says(prefix, i)
        if text == LOST:
            return Sample(id=name, branch=branch, finish_reason=FINISH_REASON_ABORTED)
        ends = [match.end() for match in re.finditer(r"[^\n]*\n|[^\n]+$", text)]
        reason = FINISH_REASON_LENGTH if text == self.cut else FINISH_REASON_STOP
        return Sample(
            id=name,
            branch=branch,
            text=text,
            finish_reason=reason,
            steps=[Step(end=end, tokens=1) for end in ends],
        )


LOST = "lost"
RIGHT = "1+1=2\n2+2=4\nanswer: 4"
WRONG = "1+1=3\n3+2=5\nanswer: 5"


def says(prefix: str, i: int) -> str:
    """From a right prefix every second completion is right; from a wrong one none is."""
    if not prefix:
        return RIGHT if i % 2 == 0 else WRONG
    return "answer: 4" if prefix in RIGHT and i % 2 == 0 else "answer: 5"


def breaks_off(prefix: str, i: int) -> str:
    """The backend loses a completion of the first step."""
    return says(prefix, i) if prefix != "1+1=2\n" or i else LOST


@pytest.fixture
def generation(monkeypatch: pytest.MonkeyPatch) -> ScriptedGeneration:
    """In the place of the service."""
    scripted = ScriptedGeneration(says)

    @asynccontextmanager
    async def opened(wanted: Wanted) -> AsyncIterator[ScriptedGeneration]:
        yield scripted

    monkeypatch.setattr(rollouts, "open_generation", opened)
    return scripted


def wanted(folder: Path, problems: int = 1, **fields: Any) -> Wanted:
    """Problems with the answer 4."""
    path = folder / "problems.jsonl"
    rows = [{"query_id": f"q{i}", "prompt": "1+1+2", "answer": "4.0", "group": 2} for i in range(problems)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    defaults: dict[str, Any] = {"chains": 2, "rollouts": 2, "at_a_time": 1}
    return Wanted(path, "m", folder / "labels.jsonl", **{**defaults, **fields})


def written(to: Wanted) -> list[dict[str, Any]]:
    return [json.loads(line) for line in to.output.read_text().splitlines()]


def estimates(row: dict[str, Any]) -> list[tuple[str, int, float, int]]:
    completions = [step["completions"][0] for step in row["label"]["steps"]]
    return [(one["text"], one["rating"], one["probability"], one["rollouts"]) for one in completions]


async def test_a_step_is_as_good_as_what_follows_from_it(
    generation: ScriptedGeneration, tmp_path: Path
) -> None:
    to = wanted(tmp_path)
    summary = await label(to)
    right, wrong = written(to)
    # Of two completions one is right, and so is the chain's own end.
    assert estimates(right) == [
        ("1+1=2", 1, pytest.approx(2 / 3), 3),
        ("2+2=4", 1, pytest.approx(2 / 3), 3),
        ("answer: 4", 1, 1.0, 1),
    ]
    # Nothing follows from the first step: the second is not asked about.
    assert estimates(wrong) == [("1+1=3", -1, 0.0, 3), ("3+2=5", -1, 0.0, 0), ("answer: 5", -1, 0.0, 0)]
    assert [row["label"]["finish_reason"] for row in (right, wrong)] == ["solution", "found_error"]
    assert [row["question"]["pre_generated_answer"] for row in (right, wrong)] == ["4", "5"]
    assert generation.aborted == 2
    assert (summary.problems, summary.rows, summary.steps, summary.reachable) == (1, 2, 6, 3)


async def test_a_step_whose_completion_was_lost_has_no_label(
    generation: ScriptedGeneration, tmp_path: Path
) -> None:
    generation.says = breaks_off
    to = wanted(tmp_path, chains=1)
    await label(to)
    (row,) = written(to)
    first, second, last = (step["completions"][0] for step in row["label"]["steps"])
    assert (first["rating"], first.get("probability")) == (None, None)
    assert (second["rating"], last["rating"]) == (1, 1)


async def test_all_steps_of_a_chain_are_one_round(generation: ScriptedGeneration, tmp_path: Path) -> None:
    to = wanted(tmp_path)
    await label(to)
    first, right, wrong = generation.starts
    assert [branch.samples for branch in first.branches] == [2]
    assert [branch.prefix for branch in right.branches] == ["1+1=2\n", "1+1=2\n2+2=4\n"]
    assert [branch.prefix for branch in wrong.branches] == ["1+1=3\n", "1+1=3\n3+2=5\n"]
    # No two samples of a query have one number, and so none has another's seed.
    assert [start.first_sample for start in generation.starts] == [0, 2, 6]
    assert len({start.sampling.seed for start in generation.starts}) == 1


async def test_what_was_spent_is_told_and_shared_out(generation: ScriptedGeneration, tmp_path: Path) -> None:
    to = wanted(tmp_path)
    summary = await label(to)
    assert summary.cost.tokens == 3 * 15
    assert summary.cost.flops == 3 * (2 * 10 * 15 + 4 * 7)
    assert sum(row["cost"]["flops"] for row in written(to)) == summary.cost.flops


async def test_chains_that_begin_alike_share_their_completions(
    generation: ScriptedGeneration, tmp_path: Path
) -> None:
    generation.says = lambda prefix, i: says(prefix, 0 if not prefix else i)
    to = wanted(tmp_path)
    await label(to)
    assert len(generation.starts) == 2
    one, other = written(to)
    assert estimates(one) == estimates(other)


async def test_nothing_is_asked_after_a_shared_step_that_leads_nowhere(
    generation: ScriptedGeneration, tmp_path: Path
) -> None:
    chains = ["1+1=3\n3+2=5\nanswer: 5", "1+1=3\n3+2=6\nanswer: 6"]
    generation.says = lambda prefix, i: "answer: 5" if prefix else chains[i]
    to = wanted(tmp_path)
    await label(to)
    assert len(generation.starts) == 2
    assert [one[3] for one in estimates(written(to)[1])] == [3, 0, 0]


async def test_a_chain_that_reached_the_answer_has_no_hopeless_step(
    generation: ScriptedGeneration, tmp_path: Path
) -> None:
    generation.says = lambda prefix, i: "answer: 5" if prefix else RIGHT
    to = wanted(tmp_path, chains=1)
    await label(to)
    assert [one[1:] for one in estimates(written(to)[0])] == [
        (1, pytest.approx(1 / 3), 3),
        (1, pytest.approx(1 / 3), 3),
        (1, 1.0, 1),
    ]
    assert generation.aborted == 0


async def test_a_chain_that_was_cut_short_loses_its_half_step(
    generation: ScriptedGeneration, tmp_path: Path
) -> None:
    generation.says = lambda prefix, i: "answer: 4" if prefix else HALF
    generation.cut = HALF
    to = wanted(tmp_path, chains=1)
    await label(to)
    (row,) = written(to)
    assert estimates(row) == [("1+1=2", 1, pytest.approx(2 / 3), 3)]
    assert row["label"]["finish_reason"] == "found_error"


async def test_a_run_goes_on_where_it_was(generation: ScriptedGeneration, tmp_path: Path) -> None:
    to = wanted(tmp_path, problems=3)
    await label(to)
    whole = written(to)
    lines = to.output.read_text().splitlines(keepends=True)
    # Interrupted in the middle of the third problem's rows.
    to.output.write_text("".join(lines[:4]) + lines[4][:20])
    generation.starts.clear()
    summary = await label(to)
    assert {start.query_id for start in generation.starts} == {"q2"}
    assert (summary.known, summary.problems) == (2, 1)
    assert written(to) == whole
    generation.starts.clear()
    await label(to)
    assert generation.starts == []


async def test_what_is_written_is_read_as_labels(generation: ScriptedGeneration, tmp_path: Path) -> None:
    to = wanted(tmp_path)
    await label(to)
    right, wrong = (chains_of(line)[0] for line in to.output.read_text().splitlines())
    assert (right.reached, right.answer, right.group, right.model) == (True, "4", "2", "m")
    assert [step.target for step in right.steps] == [pytest.approx(2 / 3), pytest.approx(2 / 3), 1.0]
    assert wrong.first_error == 0


async def test_broken_problems_are_left_out_and_named(generation: ScriptedGeneration, tmp_path: Path) -> None:
    to = wanted(tmp_path)
    good = to.problems.read_text()
    to.problems.write_text(f'{good}{good}{{"query_id": "x"}}\nno\n')
    summary = await label(to)
    assert summary.problems == 1
    assert [fault.split(": ", 1)[0][-6:] for fault in summary.faults] == ["line 2", "line 3", "line 4"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no\n{}\n", "problems.jsonl: no problem in it can be read; line 1: Invalid JSON"),
        ("\n", "problems.jsonl: no problem in it can be read\n"),
        (None, "problems.jsonl: No such file or directory\n"),
    ],
)
def test_a_file_without_a_problem_ends_the_command(
    generation: ScriptedGeneration,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    text: str | None,
    said: str,
) -> None:
    monkeypatch.setattr("training.rollouts.log.configure", lambda level, form: None)
    to = wanted(tmp_path)
    to.problems.unlink()
    if text is not None:
        to.problems.write_text(text)
    options = ["--problems", str(to.problems), "--model", "m", "--output", str(to.output)]
    assert cli.main(["label-steps", *options]) == 1
    assert said in capsys.readouterr().err
    assert not to.output.exists()
    assert not generation.starts


async def test_a_problem_that_is_refused_is_left_out(generation: ScriptedGeneration, tmp_path: Path) -> None:
    generation.refuse = InvalidArgument("messages", "too long")
    to = wanted(tmp_path, problems=2)
    summary = await label(to)
    assert summary.faults == ["problem q0: messages: too long", "problem q1: messages: too long"]
    assert written(to) == []


def test_a_run_that_labels_nothing_has_failed(
    generation: ScriptedGeneration,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("training.rollouts.log.configure", lambda level, form: None)
    to = wanted(tmp_path)
    command = ["label-steps", "--problems", str(to.problems), "--model", "m", "--output", str(to.output)]
    generation.refuse = InvalidArgument("messages", "too long")
    assert cli.main(command) == 1
    assert "left out: problem q0: messages: too long\n" in capsys.readouterr().err
    generation.refuse = None
    assert [cli.main(command), cli.main(command)] == [0, 0]
    assert "1 were there before" in capsys.readouterr().out


async def test_a_service_that_is_down_ends_the_run(generation: ScriptedGeneration, tmp_path: Path) -> None:
    generation.refuse = Unavailable("busy")
    with pytest.raises(Unavailable, match="busy"):
        await label(wanted(tmp_path, problems=3, at_a_time=2))


@pytest.mark.parametrize(
    "fields",
    [{"chains": 0}, {"rollouts": 0}, {"at_a_time": 0}, {"temperature": 0.0}, {"temperature": float("nan")}],
)
async def test_wrong_options_are_named(
    generation: ScriptedGeneration, tmp_path: Path, fields: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(fields))):
        await label(wanted(tmp_path, **fields))


async def test_models_that_cannot_serve_are_named(generation: ScriptedGeneration, tmp_path: Path) -> None:
    to = wanted(tmp_path)
    with pytest.raises(NotFound, match="there are: m"):
        await label(Wanted(to.problems, "other", to.output))
    generation.can_continue = False
    with pytest.raises(FailedPrecondition, match="cannot continue a prefix"):
        await label(to)
