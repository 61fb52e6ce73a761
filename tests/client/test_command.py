"""The command, by `main([...])` and as a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pty
import re
import shlex
import signal
import sys
from collections.abc import Awaitable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest
from isoflop import Client, cli, command, solve_request, text
from isoflop.client import DEFAULT_ADDRESS
from isoflop.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    IsoflopError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from isoflop.jsonform import to_dict
from isoflop.v1.common_pb2 import Sample
from isoflop.v1.router_pb2 import (
    Budget,
    GetFrontierResponse,
    GetQueryResponse,
    PlanResponse,
    ScalingInterval,
    ScalingLaw,
    ScalingPoint,
    Search,
    SolveResponse,
    StreamSolveResponse,
    SubmitFeedbackResponse,
)
from ran import Ended, Run, words
from scripted_answers import (
    ABANDONED,
    CANDIDATES,
    EVENTS,
    FRONTIER,
    GROWTH,
    JUDGED,
    MODELS,
    PLANNED,
    RUNNING,
    SOLVED,
    TEXT_EVENTS,
)
from scripted_router import HANG, ScriptedRouter, serving

COMMAND = Path(sys.executable).with_name("isoflop")


async def process(
    *arguments: str, stdin: bytes = b"", **environment: str
) -> tuple[asyncio.subprocess.Process, Awaitable[Ended]]:
    """Starts the command as a process."""
    child = await asyncio.create_subprocess_exec(
        COMMAND,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )

    async def ended() -> Ended:
        out, err = await asyncio.wait_for(child.communicate(stdin), 30)
        assert child.returncode is not None
        return Ended(child.returncode, out.decode(), err.decode())

    return child, ended()


async def in_process(*arguments: str, stdin: bytes = b"", **environment: str) -> Ended:
    _, ended = await process(*arguments, stdin=stdin, **environment)
    return await ended


# What is printed.


@pytest.mark.parametrize("before", [True, False])
async def test_the_tenant_is_named_before_or_after_the_command(
    router: ScriptedRouter, run: Run, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOFLOP_TENANT", "search")
    router.expect("ListModels", MODELS)
    router.expect("ListModels", MODELS)
    option = ["--tenant", "homework"]
    await run(*(option if before else []), "models", *([] if before else option))
    await run("models")
    assert router.tenants == ["homework", "search"]


@pytest.mark.parametrize(
    ("option", "field", "value"),
    [
        (["--right"], "right", True),
        (["--wrong"], "right", False),
        (["--answer", "421"], "answer", "421"),
        (["--answer", "-5"], "answer", "-5"),
    ],
)
async def test_feedback_says_what_the_truth_is(
    router: ScriptedRouter, run: Run, option: list[str], field: str, value: object
) -> None:
    router.expect("SubmitFeedback", JUDGED)
    ended = await run("feedback", "q1", *option)
    assert (ended.code, ended.err, words(ended.out)) == (0, "", "right 421")
    asked = router.requests[0]
    assert (asked.query_id, asked.WhichOneof("truth"), getattr(asked, field)) == ("q1", field, value)


async def test_feedback_as_json(router: ScriptedRouter, run: Run) -> None:
    router.expect("SubmitFeedback", SubmitFeedbackResponse(right=False))
    ended = await run("feedback", "q1", "--wrong", "--json")
    assert json.loads(ended.out) == {"right": False, "returned": ""}


@pytest.mark.parametrize("options", [[], ["--right", "--wrong"], ["--right", "--answer", "421"]])
async def test_feedback_takes_one_truth(run: Run, options: list[str]) -> None:
    assert (await run("feedback", "q1", *options)).code == 2


async def test_solve_prints_the_answer_first_then_why_then_the_bill(router: ScriptedRouter, run: Run) -> None:
    router.expect("Solve", SOLVED)
    ended = await run("solve", "17*24+13")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0] == "421"
    assert "confidence  97%" in lines
    assert "answered    3 of 3 agree" in lines
    assert (
        "round 1     abacus-s × majority × 4: most worth its price (40% to 97%, 210 MFLOPs, 1 aborted)"
        in lines
    )
    assert "saved       1 sample, 50.0 MFLOPs by ending early" in lines
    header = next(i for i, line in enumerate(lines) if line.startswith("stage"))
    assert words(lines[header]) == ("stage model strategy calls prompt cached completion aborted FLOPs money")
    assert words(lines[header + 1]) == "generation abacus-s majority 4 9 27 60 5 210 M 1.5e-06 USD"
    assert words(lines[header + 2]) == "aborted 5 16.0 M 0 USD"
    assert lines[-1] == "total  74 tokens, 210 MFLOPs (16.0 MFLOPs aborted), 1.5e-06 USD"
    assert "\x1b" not in ended.out
    assert not any(line != line.rstrip() for line in lines)


async def test_solve_prints_json_for_machines(router: ScriptedRouter, run: Run) -> None:
    router.expect("Solve", SOLVED)
    ended = await run("solve", "17*24+13", "--json")
    assert (ended.code, ended.err) == (0, "")
    solved = json.loads(ended.out)
    assert solved == to_dict(SOLVED)
    assert solved["answer"] == "421"
    assert solved["bill"]["tokens"] == 74
    assert solved["bill"]["flops"] == 210001200.0
    assert solved["rounds"][0]["action"]["expected_flops"] == 2.5e8
    assert solved["seed"] == 9007199254740993


async def test_every_option_of_a_query_reaches_the_router(router: ScriptedRouter, run: Run) -> None:
    router.expect("Solve", SOLVED)
    router.expect("Plan", PLANNED)
    options = shlex.split(
        "--budget 5G,1000tok --budget 0.02usd --effort high --model a --model b --strategy majority "
        "--samples 4 --temperature 0 --seed -3 --answer-type expression --target-accuracy 0.9 --timeout 60 "
        "--verifier prm --scoring product --search 2x3x40x99 --thinking-tokens 512"
    )
    expected = solve_request(
        "1+1",
        budget=Budget(flops=5e9, tokens=1000, money=0.02, currency="USD"),
        effort="high",
        models=["a", "b"],
        strategies=["majority"],
        samples=4,
        temperature=0.0,
        seed=-3,
        answer_type="expression",
        target_accuracy=0.9,
        verifier="prm",
        scoring="product",
        search=Search(width=2, expansion=3, depth=40, nodes=99),
        thinking_tokens=512,
    )
    assert (await run("plan", "1+1", *options)).code == 0
    assert (await run("solve", "1+1", *options, "--candidates", "--request-id", "r1")).code == 0
    plan, solve = router.requests
    assert plan.query == expected
    expected.return_candidates = True
    expected.request_id = "r1"
    assert solve == expected
    assert router.deadlines[1] == pytest.approx(60, abs=10)


async def test_a_search_need_not_say_its_nodes(router: ScriptedRouter, run: Run) -> None:
    router.expect("Solve", SOLVED)
    await run("solve", "1+1", "--search", "2x3x40")
    assert router.requests[0].filters.search == Search(width=2, expansion=3, depth=40)


async def test_a_pattern_implies_its_answer_type(router: ScriptedRouter, run: Run) -> None:
    router.expect("Solve", SOLVED)
    await run("solve", "1+1", "--pattern", "is (.*)")
    assert router.requests == [solve_request("1+1", answer_type="pattern", pattern="is (.*)")]


@pytest.mark.parametrize("prompt", ["-3+5", "-(2)", "", "--", "- 3"])
async def test_a_prompt_may_begin_with_a_minus(router: ScriptedRouter, run: Run, prompt: str) -> None:
    router.expect("Solve", SOLVED)
    words = ["--", prompt] if prompt == "--" else [prompt]
    assert (await run("solve", *words)).code == 0
    assert router.requests[0].prompt == prompt


async def test_candidates_are_printed_when_asked_for(router: ScriptedRouter, run: Run) -> None:
    solved = SolveResponse()
    solved.CopyFrom(SOLVED)
    solved.candidates.extend(CANDIDATES)
    router.expect("Solve", solved)
    ended = await run("solve", "1+1", "--candidates")
    assert "abacus-s/0, 9 tokens\n408+13\n421\n" in ended.out


async def test_an_abandoned_query_prints_its_best_answer_and_exits_with_3(
    router: ScriptedRouter, run: Run
) -> None:
    router.expect("Solve", ABANDONED)
    router.expect("StreamSolve", StreamSolveResponse(final=ABANDONED))
    ended = await run("solve", "hard")
    assert ended.code == 3
    assert ended.out.startswith("7\n")
    assert "abandoned   not worth more" in ended.out
    assert (await run("solve", "hard", "--stream", "--json")).code == 3


async def test_what_a_model_says_cannot_steer_the_terminal(router: ScriptedRouter, run: Run) -> None:
    router.expect("Solve", SolveResponse(answer="\x1b[2J4\r2", candidates=[Sample(text="a\x07\tb\nc")]))
    ended = await run("solve", "1+1")
    assert ended.out.startswith("\\x1b[2J4\\r2\n")
    assert "a\\x07\tb\nc\n" in ended.out


async def test_plan(router: ScriptedRouter, run: Run) -> None:
    router.expect("Plan", PLANNED)
    router.expect("Plan", PLANNED)
    router.expect("Plan", PlanResponse(reason="nothing is worth its price"))
    lines = (await run("plan", "1+1")).out.splitlines()
    assert lines[0] == "abacus-s × majority × 4"
    assert "why          most worth its price" in lines
    assert "whole query  5 samples, 95% right, 300 MFLOPs" in lines
    assert lines[-1].startswith("abacus-l × single × 1")
    assert json.loads((await run("plan", "1+1", "--json")).out) == to_dict(PLANNED)
    assert (await run("plan", "1+1")).out.startswith("buy nothing\n")


async def test_models(router: ScriptedRouter, run: Run) -> None:
    router.expect("ListModels", MODELS)
    router.expect("ListModels", MODELS)
    lines = (await run("models")).out.splitlines()
    assert words(lines[1]).startswith("abacus-s llamacpp 60.0 k ")
    assert "prefix, logprobs, seed alone" in lines[1]
    assert "strategies  single, majority" in lines
    listed = json.loads((await run("models", "--json")).out)
    assert listed == to_dict(MODELS)
    assert listed["models"][0]["shape"]["active_parameters"] == 60_000


async def test_frontier(router: ScriptedRouter, run: Run, tmp_path: Path) -> None:
    for _ in range(4):
        router.expect("GetFrontier", FRONTIER)
    lines = (await run("frontier")).out.splitlines()
    assert words(lines[0]) == "difficulty |1 GFLOPs best"
    assert words(lines[-3]) == "-1.00 abacus-s × majority × 4 93% 250 M 1e-06"
    assert lines[-1] == "profile  p1"
    assert json.loads((await run("frontier", "--json")).out) == to_dict(FRONTIER)
    png = tmp_path / "frontier.png"
    lines = (await run("frontier", "--png", str(png))).out.splitlines()
    assert words(lines[0]) == "difficulty plan right FLOPs money"
    assert png.read_bytes().startswith(b"\x89PNG")
    ended = await run("frontier", "--png", "frontier.svg")
    assert (ended.code, ended.err) == (1, "isoflop: png: frontier.svg: the name must end in .png\n")


async def test_frontier_tells_laws(router: ScriptedRouter, run: Run) -> None:
    every = ScalingLaw(
        model="abacus-s",
        strategy="majority",
        queries=90,
        form="power",
        points=[ScalingPoint(samples=1, accuracy=0.25), ScalingPoint(samples=16, accuracy=0.5)],
        best_samples=6,
        falls=True,
    )
    hard = ScalingLaw(
        model="abacus-s",
        strategy="weighted",
        verifier="prm\x1b[2J",
        easiest=0.5,
        hardest=1.75,
        queries=30,
        form="saturating",
        parameters={"ceiling": 0.6, "b": 0.5, "n0": 2.0},
        points=[ScalingPoint(samples=1, accuracy=0.1), ScalingPoint(samples=8, accuracy=0.58)],
        interval=ScalingInterval(low=0.5, high=0.66),
        ceiling=0.6,
        ceiling_interval=ScalingInterval(low=0.52, high=0.7),
        best_samples=8,
    )
    told = GetFrontierResponse(points=FRONTIER.points, profile="p1", laws=[every, hard])
    for _ in range(2):
        router.expect("GetFrontier", told)
    lines = (await run("frontier")).out.splitlines()
    assert [words(line) for line in lines[-5:-2]] == [
        "model strategy difficulty once at most n law ceiling best n",
        "abacus-s majority all 25% 50% 16 power none found 6, then less",
        "abacus-s weighted by prm\\x1b[2J +0.50 to +1.75 10% 58% (50 to 66) 8 saturating 60% (52 to 70) 8",
    ]
    listed = json.loads((await run("frontier", "--json")).out)
    assert listed == to_dict(told)
    assert listed["laws"][1]["ceiling"] == 0.6
    assert "ceiling" not in listed["laws"][0]


async def test_query(router: ScriptedRouter, run: Run) -> None:
    router.expect("GetQuery", RUNNING)
    router.expect("GetQuery", GetQueryResponse(result=SOLVED))
    router.expect("GetQuery", RUNNING)
    assert (await run("query", "q1")).out.startswith("running\nround 1  abacus-s")
    assert (await run("query", "q1")).out.startswith("421\n")
    assert json.loads((await run("query", "q1", "--json")).out) == to_dict(RUNNING)
    assert router.requests[0].query_id == "q1"


# Streams.


async def test_stream_prints_a_line_for_each_event_and_then_the_result(
    router: ScriptedRouter, run: Run
) -> None:
    router.expect("StreamSolve", *EVENTS)
    ended = await run("solve", "17*24+13", "--stream")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[:8] == [
        "query q1, difficulty -0.40 ± 0.80",
        "round 1: abacus-s × majority × 4: most worth its price",
        "sample abacus-s/0: 20 tokens",
        "scores abacus-s/0: 0.90 0.80",
        "votes 421 (3); confidence 97%",
        "stopped: 3 of 3 agree",
        "421",
        "",
    ]
    assert router.requests[0].query == solve_request("17*24+13")


async def test_stream_prints_text_as_it_comes(router: ScriptedRouter, run: Run) -> None:
    router.expect("StreamSolve", *TEXT_EVENTS, EVENTS[-1])
    ended = await run("solve", "17*24+13", "--stream")
    assert ended.out.startswith("408+13\n421\\x1b[2J\n421\n\nconfidence")


async def test_stream_prints_one_json_object_on_each_line(router: ScriptedRouter, run: Run) -> None:
    router.expect("StreamSolve", *EVENTS)
    ended = await run("solve", "17*24+13", "--stream", "--json")
    assert (ended.code, ended.err) == (0, "")
    events = [json.loads(line) for line in ended.out.splitlines()]
    assert events == [to_dict(event) for event in EVENTS]
    assert [next(iter(event)) for event in events] == (
        ["started", "round", "sample", "scores", "tally", "stopped", "final"]
    )
    assert all(len(event) == 1 for event in events)


async def test_stream_tells_how_a_search_grows(router: ScriptedRouter, run: Run) -> None:
    for _ in range(2):
        router.expect("StreamSolve", GROWTH, EVENTS[-1])
    ended = await run("solve", "17*24+13", "--stream")
    assert ended.out.startswith("○ 0.91 17*24=408\n  ✓ 421\n421\n\nconfidence")
    ended = await run("solve", "17*24+13", "--stream", "--json")
    grown, final = map(json.loads, ended.out.splitlines())
    assert (grown, final) == (to_dict(GROWTH), to_dict(EVENTS[-1]))
    first, second = grown["growth"]["nodes"]
    assert (first["id"], first["state"], second["parent"]) == ("abacus-s/0", "NODE_STATE_KEPT", "abacus-s/0")
    assert (first["score"], "score" in second) == (0.91, False)


async def test_stream_that_ends_too_soon_is_an_error(router: ScriptedRouter, run: Run) -> None:
    router.expect("StreamSolve", *EVENTS[:2])
    router.expect("StreamSolve", *EVENTS[:2], FailedPrecondition("the budget is too small"))
    ended = await run("solve", "1+1", "--stream")
    assert (ended.code, ended.err) == (
        1,
        "isoflop: the router ended the stream without a result: try again\n",
    )
    ended = await run("solve", "1+1", "--stream")
    assert (ended.code, ended.err) == (1, "isoflop: the budget is too small\n")


@pytest.mark.parametrize("no_colour", ["", "1"])
async def test_on_a_terminal_lines_replace_each_other_and_words_stand_out(
    router: ScriptedRouter, address: str, no_colour: str
) -> None:
    router.expect("StreamSolve", *EVENTS)
    ours, theirs = pty.openpty()
    child = await asyncio.create_subprocess_exec(
        COMMAND,
        *("solve", "17*24+13", "--stream", "--address", address),
        stdout=theirs,
        env={**os.environ, "NO_COLOR": no_colour},
    )
    os.close(theirs)

    def read() -> bytes:
        shown = b""
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:  # How Linux says that the other end is closed.
            os.close(ours)
        return shown

    shown = (await asyncio.to_thread(read)).decode()
    assert await child.wait() == 0
    assert ("\x1b[1m421\x1b[0m" in shown) == (not no_colour)
    assert "\r\x1b[2K" in shown
    before, _, after = shown.partition("sample abacus-s/0: 20 tokens")
    assert before.count("\n") == 2
    assert after.removeprefix("\x1b[0m").startswith("\r\x1b[2K")


# Errors, each a sentence.


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (InvalidArgument("prompt", "is empty"), "prompt: is empty"),
        (NotFound("no model 'x': the models are abacus-s"), "no model 'x': the models are abacus-s"),
        (FailedPrecondition("the cheapest plan takes 2 GFLOPs"), "the cheapest plan takes 2 GFLOPs"),
        (ResourceExhausted("the quota is used up until noon", 60), "the quota is used up until noon"),
        (Unavailable("generation\nis down"), "generation is down"),
        (DeadlineExceeded("it takes 3 s at least"), "it takes 3 s at least"),
        (Internal("abc123"), "internal error abc123: the service's log has the details"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, IsoflopError) else "",
)
async def test_an_error_is_one_sentence(
    router: ScriptedRouter, run: Run, error: IsoflopError, sentence: str
) -> None:
    router.expect("Solve", error)
    assert await run("solve", "1+1", "--model", "x") == Ended(1, "", f"isoflop: {sentence}\n")


async def test_unavailable_is_tried_again_with_a_request_id(router: ScriptedRouter, run: Run) -> None:
    router.expect("Solve", Unavailable("busy", 0.1))
    router.expect("Solve", SOLVED)
    assert (await run("solve", "1+1", "--request-id", "r1")).code == 0


async def test_out_of_time(router: ScriptedRouter, run: Run) -> None:
    router.expect("Solve", HANG)
    ended = await run("solve", "1+1", "--timeout", "0.3")
    assert ended.code == 1
    assert ended.err.endswith("did not answer in time: allow more time\n")


@pytest.mark.parametrize("command", [["solve", "1+1"], ["solve", "1+1", "--stream"], ["models"]])
async def test_router_down(nowhere: str, command: list[str]) -> None:
    sentence = f'{nowhere} does not answer: start a router with "isoflop up", or name one with --address'
    expected = Ended(1, "", f"isoflop: {sentence}\n")
    assert await in_process(*command, ISOFLOP_ADDRESS=nowhere) == expected
    assert await in_process(*command, "--address", nowhere) == expected
    assert await in_process("--address", nowhere, *command) == expected


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "COMMAND"),
        (["sovle"], "invalid choice: 'sovle'"),
        (["solve"], "PROMPT"),
        (["solve", "1+1", "--budget", "much"], "'much' is no budget: write FLOPs as 2e9"),
        (["solve", "1+1", "--budget", "-5G"], "'-5G' is not more than 0"),
        (["solve", "1+1", "--budget", "1G", "--budget", "2G"], "second limit on flops"),
        (["solve", "1+1", "--samples", "0"], "'0' is no number of samples"),
        (["solve", "1+1", "--samples", "-1"], "'-1' is no number of samples"),
        (["solve", "1+1", "--samples", "many"], "'many' is no number of samples"),
        (["solve", "1+1", "--thinking-tokens", "0"], "'0' is no number of tokens"),
        (["solve", "1+1", "--search", "4x4"], "'4x4' is no search"),
        (["solve", "1+1", "--search", "4x4x64x256x9"], "'4x4x64x256x9' is no search"),
        (["solve", "1+1", "--search", "4x0x8"], "'4x0x8' is no search"),
        (["solve", "1+1", "--search", "4x4x99999999999"], "each number must fit in 31 bits"),
        (["solve", "1+1", "--timeout", "0"], "'0' is no number of seconds"),
        (["solve", "1+1", "--effort", "heroic"], "invalid choice: 'heroic'"),
        (["solve", "1+1", "--answer-type", "poem"], "invalid choice: 'poem'"),
        (["solve", "1+1", "--temp", "1"], "unrecognized arguments: --temp"),
        (["query"], "QUERY_ID"),
    ],
    ids=" ".join,
)
async def test_a_wrong_command_line_exits_with_2(run: Run, arguments: list[str], complaint: str) -> None:
    ended = await run(*arguments)
    assert ended.code == 2
    assert complaint in ended.err
    assert ended.out == ""


async def test_a_number_too_large_for_the_contract(run: Run) -> None:
    ended = await run("solve", "1+1", "--samples", "99999999999")
    assert (ended.code, ended.err.count("\n")) == (1, 1)


async def test_a_bug_is_one_line_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "listed", lambda *_: 1 / 0)
    monkeypatch.setattr(Client, "models", lambda *_, **__: MODELS)
    ended = await run("models")
    assert ended.code == 1
    assert ended.err.startswith("isoflop: a bug, please report it: ZeroDivisionError")
    assert ended.err.count("\n") == 1


# Processes.


async def test_standard_input(router: ScriptedRouter, address: str) -> None:
    for _ in range(2):
        router.expect("Solve", SOLVED)
    assert (await in_process("solve", "-", "--address", address, stdin="α+1\n".encode())).code == 0
    assert router.requests[0].prompt == "α+1"
    ended = await in_process("solve", "-", "--address", address, stdin=b"\xff\xfe")
    assert ended == Ended(1, "", "isoflop: prompt: standard input is not UTF-8\n")
    # An answer that the terminal's encoding lacks is no reason to fail.
    ended = await in_process("solve", "1+1", "--address", address, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (ended.code, ended.err) == (0, "")


async def test_an_argument_that_is_no_text() -> None:
    ended = await in_process("solve", os.fsdecode(b"\xff"), PYTHONUTF8="1")
    assert ended == Ended(1, "", "isoflop: request: a text is not valid Unicode: send UTF-8\n")


@pytest.fixture
def heard_sigint() -> Iterator[None]:
    """SIGINT as a terminal gives it: jobs in a shell's background ignore it, and so would their children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard_sigint")
@pytest.mark.parametrize("options", [[], ["--stream"], ["--stream", "--json"]], ids=" ".join)
async def test_ctrl_c_cancels_the_query(router: ScriptedRouter, address: str, options: list[str]) -> None:
    router.expect(*(("StreamSolve", EVENTS[0], HANG) if options else ("Solve", HANG)))
    child, ended = await process("solve", "1+1", "--address", address, *options)
    await asyncio.wait_for(router.called.wait(), 30)
    await asyncio.sleep(0.2)
    child.send_signal(signal.SIGINT)
    code, _, err = await ended
    assert (code, err) == (130, "")
    await asyncio.wait_for(router.cancelled.wait(), 10)


async def test_a_router_that_dies_leaves_one_sentence() -> None:
    router = ScriptedRouter()
    router.expect("StreamSolve", EVENTS[0], HANG)
    async with serving(router) as address:
        _, ended = await process("solve", "1+1", "--stream", "--address", address)
        await asyncio.wait_for(router.called.wait(), 30)
    code, _, err = await ended
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith(f"isoflop: {address} does not answer: ")


async def test_a_reader_that_goes_away_is_no_error(router: ScriptedRouter, address: str) -> None:
    router.expect("StreamSolve", *(EVENTS[1:2] * 2000), EVENTS[-1])
    shell = f'"{COMMAND}" solve 1+1 --stream --address {address} | head -n 1'
    child = await asyncio.create_subprocess_exec(
        *("bash", "-o", "pipefail", "-c", shell),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(child.communicate(), 30)
    assert (child.returncode, err) == (0, b"")
    assert out.decode().startswith("round 1")


# Commands that the suite adds.


def register_greet(parser: argparse.ArgumentParser) -> command.Run:
    """Greets somebody.

    More about it.
    """
    parser.add_argument("name")

    def greet(arguments: argparse.Namespace) -> int:
        if arguments.name == "nobody":
            raise NotFound("nobody is there: name somebody")
        if arguments.name == "a file":
            Path("no", "such.jsonl").read_text()
        if arguments.name == "a full disk":
            raise OSError(28, "No space left on device")
        print(f"hello {arguments.name}")
        return 7

    return greet


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite with the commands `greet` and `broken`."""
    module = ModuleType("suite_of_the_test")
    module.register_greet = register_greet  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    entries = [
        EntryPoint("greet", "suite_of_the_test:register_greet", cli.GROUP),
        EntryPoint("broken", "no_such_module:register", cli.GROUP),
    ]
    monkeypatch.setattr(cli, "entry_points", lambda group: entries if group == cli.GROUP else [])


@pytest.mark.usefixtures("suite")
async def test_the_suites_commands(run: Run) -> None:
    assert await run("greet", "you") == Ended(7, "hello you\n", "")
    assert await run("greet", "nobody") == Ended(1, "", "isoflop: nobody is there: name somebody\n")
    told = "isoflop: no/such.jsonl: No such file or directory\n"
    assert await run("greet", "a file") == Ended(1, "", told)
    assert await run("greet", "a full disk") == Ended(1, "", "isoflop: No space left on device\n")
    assert (await run("greet")).code == 2
    ended = await run("broken")
    assert ended == Ended(
        1, "", "isoflop: the command broken cannot be loaded: No module named 'no_such_module'\n"
    )
    ended = await run("greet", "--help")
    assert ended.code == 0
    assert "usage: isoflop greet" in ended.out
    assert "More about it." in ended.out


@pytest.mark.usefixtures("suite")
async def test_help_lists_all_commands_and_exit_codes(run: Run) -> None:
    ended = await run("--help")
    assert ended.code == 0
    for told in ("solve ", "plan ", "Greets somebody.", "exit codes:", "130", DEFAULT_ADDRESS):
        assert told in ended.out
    assert "cannot be loaded" in ended.out
    own, added = ended.out.split("commands of the suite:")
    listed = re.findall(r"^    (\w+) ", own.partition("COMMAND\n")[2], re.MULTILINE)
    assert listed == (
        ["solve", "plan", "query", "explain", "feedback", "budget", "bill", "models", "frontier"]
    )
    assert added.index("broken") < added.index("greet") < added.index("exit codes:")


async def test_other_commands_do_not_load_the_suite(nowhere: str) -> None:
    code = (
        "import sys; from isoflop.cli import main; code = main(['models', '--address', sys.argv[1]]);"
        "sys.exit(10 * ('router' in sys.modules) + code)"
    )
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, nowhere), stderr=asyncio.subprocess.PIPE
    )
    await child.communicate()
    assert child.returncode == 1
