"""The example that buys code and tests it, as a process, against the whole suite on a scripted model."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import uuid
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from isoflop.passes import pass_at
from prometheus_client import CollectorRegistry

from examples.code_with_tests import PROBLEMS as OWN
from examples.code_with_tests import Limits, check, read_problems
from router.embedded import suite
from router.settings import SuiteSettings
from services.common.server import serving
from tests.services.generation import openai_server as fake

EXAMPLE = Path(__file__).parents[2] / "examples" / "code_with_tests.py"
SEED = 100
SECONDS = "4"
"""For a program: enough on a busy machine, and an endless one takes them all."""

RIGHT = "def double(x):\n    return 2 * x"
WRONG = "def double(x):\n    return x + 2"
ENDLESS = "while True:\n    pass"
SYNTAX = "def double(x)\n    return 2 * x"
EXIT = f"{RIGHT}\nexit(0)"
HARD_EXIT = f"import os\n{RIGHT}\nos._exit(0)"
GREEDY = f"{RIGHT}\nkept = bytearray(1 << 30)"
TALKATIVE = f"print('\"\"' * 9)\nimport sys\nsys.stderr.write('x' * 99999)\n{RIGHT}"
LEFT = f"import time; time.sleep(600)  # {uuid.uuid4().hex}"
"""A process that a program leaves behind, and no other test's."""
ORPHAN = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', '{LEFT}'])\n{RIGHT}"
PROSE = "I would multiply by two."

NAMES = ("double", "again")
PROBLEMS = [
    {
        "name": name,
        "entry_point": "double",
        "prompt": f"Double, {name}.",
        "tests": "x = 3\nassert double(x) == 6",
    }
    for name in NAMES
]


@asynccontextmanager
async def selling(programs: Sequence[str], folder: Path) -> AsyncIterator[tuple[fake.OpenAIServer, str]]:
    """A suite whose one model says the programs, by seed; the server and the router's address."""

    async def say(exchange: fake.Exchange) -> None:
        program = programs[(exchange.body["seed"] - SEED) % len(programs)]
        text = program if program == PROSE else f"So:\n```python\n{program}\n```\n"
        for piece in text.splitlines(keepends=True):
            await exchange.token(piece)
        await exchange.finish()

    async with fake.serving(say, key="") as server:
        model = {
            "name": "coder",
            "backend": "openai",
            "base_url": server.url,
            "model": fake.MODEL,
            "shape": {"active_parameters": 1e9},
            "context": 4096,
            "price": {"per_million_prompt_tokens": 1, "per_million_completion_tokens": 2},
        }
        catalog = folder / "catalog.yaml"
        catalog.write_text(yaml.safe_dump({"currency": "USD", "models": [model]}))
        (folder / "problems.jsonl").write_text("\n".join(map(json.dumps, PROBLEMS)))
        settings = SuiteSettings(catalog=catalog, address="127.0.0.1:0")
        registry = CollectorRegistry()
        async with suite(settings, registry) as faces, serving(settings, faces, registry) as address:
            yield server, address


async def start(folder: Path, address: str, *words: str) -> Process:
    """The example, on the problems of `folder`."""
    problems = ["--problems", str(folder / "problems.jsonl"), "--seed", str(SEED)]
    command = [sys.executable, str(EXAMPLE), "--address", address, *problems, *words]
    return await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)


async def run(folder: Path, address: str, *words: str) -> tuple[int, str, str]:
    """Exit code, output and errors."""
    process = await start(folder, address, *words)
    said, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode(), errors.decode()


async def told(folder: Path, address: str, *words: str) -> tuple[int, Any]:
    """Exit code and the JSON, where all went well."""
    code, said, errors = await run(folder, address, "--json", "--seconds", SECONDS, *words)
    assert not errors
    return code, json.loads(said)


async def until(held: Callable[[], bool]) -> None:
    """Wait for something of the machine that nobody tells."""
    while not held():  # noqa: ASYNC110
        await asyncio.sleep(0.02)


def children(pid: int) -> list[str]:
    """Ids of the processes that a process has started."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def running(program: str) -> bool:
    """Whether a process runs with this in its command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if program.encode() in path.read_bytes():
                return True
    return False


async def test_it_buys_until_one_passes_and_bills_all_calls(tmp_path: Path) -> None:
    programs = [WRONG, ENDLESS, SYNTAX, EXIT, RIGHT, HARD_EXIT]
    async with selling(programs, tmp_path) as (server, address):
        code, found = await told(tmp_path, address, "double")
        assert (code, found["passed"], found["program"]) == (0, True, RIGHT)
        # Two, then four more, each with a seed of its own.
        seeds = [exchange.body["seed"] for exchange in server.exchanges]
        assert sorted(seeds[:2]) == [SEED, SEED + 1]
        assert sorted(seeds[2:]) == [SEED + 2, SEED + 3, SEED + 4, SEED + 5]
        bill, prompt = found["bill"], fake.PROMPT_TOKENS - fake.CACHED_TOKENS
        sent = sum(exchange.sent for exchange in server.exchanges)
        assert (bill["calls"], bill["currency"]) == (2, "USD")
        assert bill["tokens"] == 6 * prompt + sent
        assert bill["flops"] >= 2e9 * bill["tokens"]
        assert found["not_bought"]["candidates"] == 10
        assert found["not_bought"]["money"] == pytest.approx(bill["money"] * 10 / 6)
        code, said, _ = await run(tmp_path, address, "double", "--seconds", SECONDS)
    assert code == 0
    assert "double: one of 6 candidates passes, seeds from 100" in said
    assert "bill: 2 calls" in said
    assert "spared against 16 at once: 10 candidates" in said
    assert said.endswith(f"\n\n{RIGHT}\n")


async def test_nothing_passes_but_what_passes_its_tests(tmp_path: Path) -> None:
    faults = {
        WRONG: "AssertionError in line 2 of the tests",
        SYNTAX: "SyntaxError: expected ':'",
        EXIT: "SystemExit: 0",
        HARD_EXIT: "ended before its tests were through",
        ENDLESS: "took longer than 4 s",
        GREEDY: "MemoryError",
        "answer = 42": "KeyError: 'double'",
        "": "no code block",
        RIGHT: "",
        TALKATIVE: "",
        ORPHAN: "",
    }
    programs = [*(program or PROSE for program in faults), RIGHT]
    async with selling(programs, tmp_path) as (_, address):
        code, found = await told(tmp_path, address, "--samples", "12")
        assert code == 0
        for name, problem in zip(NAMES, found["problems"], strict=True):
            assert (problem["problem"], problem["candidates"], problem["passed"]) == (name, 12, 4)
            assert {one["program"]: one["fault"] for one in problem["tried"]} == faults
            # What two candidates have in common is tested once, and first.
            assert (problem["tried"][0]["program"], problem["tried"][0]["candidates"]) == (RIGHT, 2)
        await until(lambda: not running(LEFT))
        assert found["pass_at"] == {str(k): pytest.approx(pass_at(k, 12, 4)) for k in (1, 2, 4, 8, 12)}
        code, said, _ = await run(tmp_path, address, "--samples", "4", "--seconds", SECONDS)
    assert code == 3
    table, means, bill = said.split("\n\n")
    assert [row.split() for row in table.splitlines()] == [
        ["problem", "passed", "of"],
        *([n, "0", "4"] for n in NAMES),
    ]
    assert [row.split() for row in means.splitlines()[1:]] == [["1", "0.0%"], ["2", "0.0%"], ["4", "0.0%"]]
    assert bill.startswith("bill: 2 calls")


async def test_it_stops_at_the_most_candidates_and_at_the_budget(tmp_path: Path) -> None:
    async with selling([WRONG], tmp_path) as (server, address):
        code, found = await told(tmp_path, address, "double", "--samples", "5")
        assert (code, found["candidates"], found["bill"]["calls"]) == (3, 5, 2)
        assert found["not_bought"]["candidates"] == 0
        server.exchanges.clear()
        # There is room for the worst case of two, and not of four.
        code, said, _ = await run(tmp_path, address, "double", "--budget", "2500tok")
        assert (code, len(server.exchanges)) == (3, 2)
        assert "none of 2 candidates passes" in said
        assert "the budget has no room for more of the 16 candidates" in said


@pytest.fixture
def heard_sigint() -> Iterator[None]:
    """SIGINT as a terminal gives it: jobs in a shell's background ignore it, and so would their children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard_sigint")
async def test_ctrl_c_leaves_no_process(tmp_path: Path) -> None:
    async with selling([ENDLESS], tmp_path) as (_, address):
        process = await start(tmp_path, address, "double", "--seconds", "600")
        await until(lambda: bool(children(process.pid)))
        (child,) = children(process.pid)
        process.send_signal(signal.SIGINT)
        _, errors = await process.communicate()
    assert (process.returncode, errors) == (130, b"")
    await until(lambda: not Path("/proc", child).exists())


SOLUTIONS = {
    "runs": """
import itertools

def runs(text):
    return [(character, len(list(run))) for character, run in itertools.groupby(text)]
""",
    "merge": """
def merge(spans):
    merged = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return merged
""",
    "roman": """
VALUES = (1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1)
LETTERS = "M CM D CD C XC L XL X IX V IV I".split()

def roman(number):
    if not 1 <= number <= 3999:
        raise ValueError(number)
    text = ""
    for value, letters in zip(VALUES, LETTERS):
        text, number = text + number // value * letters, number % value
    return text
""",
    "order": """
from graphlib import CycleError, TopologicalSorter

def order(needs):
    try:
        return list(TopologicalSorter(needs).static_order())
    except CycleError as error:
        raise ValueError("a circle") from error
""",
}


def test_the_problems_take_a_right_function_and_no_other() -> None:
    limits = Limits(seconds=60, memory=1 << 29)
    for problem in read_problems(OWN):
        assert check(problem, SOLUTIONS[problem.name], limits) == ""
        for wrong in ("None", "[]", "argument", "1 / 0"):
            program = f"def {problem.entry_point}(argument):\n    return {wrong}"
            assert "in line" in check(problem, program, limits)


@pytest.mark.parametrize(
    ("text", "words", "error"),
    [
        ("{}", [], "line 1 is no problem"),
        ('{"name": "a", "prompt": 1, "entry_point": "a", "tests": ""}', [], "all its values are texts"),
        ("", [], "has no problems"),
        (None, [], "No such file"),
        (json.dumps(PROBLEMS[0]), ["other"], "there is no problem 'other'; there are: double"),
        (json.dumps(PROBLEMS[0]), ["double"], "127.0.0.1:1 does not answer: is it running?"),
    ],
)
async def test_errors_are_one_sentence(
    text: str | None, words: list[str], error: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "problems.jsonl").write_text(text)
    code, said, errors = await run(tmp_path, "127.0.0.1:1", *words)
    assert (code, said) == (1, "")
    assert error in errors
    assert errors.count("\n") == 1
