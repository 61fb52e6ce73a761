"""A function that passes your own unit tests, bought from a running router in small steps.

    code_with_tests.py merge              candidates of one problem until one passes: 2, then 4 more, 8, ...
    code_with_tests.py --problems FILE    all problems of a file, --samples candidates each: pass@1, 2, 4, ...

Strategy `repeated` returns every candidate, and the unit tests tell a right one. To stop at the first that
passes spares the rest. pass@k is told from candidates that were all bought and tested, as a share among those
that were bought until one passed would be too high.

A line of the file is {"name": ..., "prompt": ..., "entry_point": name of the function, "tests": Python text
that raises where the function is wrong}. Each program runs in an isolated interpreter of its own, in an empty
folder, with limits of time and memory. That keeps mistakes away from you: endless loops, memory without end,
an exit before the tests. It is no sandbox against malice: a program can read your files, use the network and
deceive its tests. Where you do not trust the model, run all of this in a container or a virtual machine.

Exit codes: 0 a candidate passes (of every problem, where there are several), 3 none does, 1 an error, 2 the
command line is wrong, 130 Ctrl-C. It needs Linux and the client alone (`pip install ./client`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import isoflop
from isoflop.budget import parse_budget
from isoflop.errors import FailedPrecondition, IsoflopError
from isoflop.passes import pass_at
from isoflop.text import Style, clean, counted, file_fault, line, money, si, table

PROBLEMS = Path(__file__).with_name("code_problems.jsonl")
PASSED, FAILED, NONE, INTERRUPTED = 0, 1, 3, 130
ASK = "{prompt}\n\nAnswer with the whole program, imports included, in one Python code block."

HARNESS = """
import json, os, resource, signal, sys, traceback

job = json.load(sys.stdin)
verdict, nowhere = os.dup(1), os.open(os.devnull, os.O_RDWR)
for stream in range(3):
    os.dup2(nowhere, stream)
for name, most in job["limits"].items():
    resource.setrlimit(getattr(resource, name), (most, most))
signal.alarm(job["alarm"])
fault, place = "", ""
try:
    program, tests = {"__name__": "candidate"}, {"__name__": "tests"}
    exec(compile(job["program"], "program", "exec"), program)
    tests[job["entry_point"]] = program[job["entry_point"]]
    exec(compile(job["tests"], "tests", "exec"), tests)
except BaseException as error:
    fault = traceback.format_exception_only(error)[-1].strip()[:200]
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename == "tests":
            place = " in line %d of the tests" % number
os.write(verdict, json.dumps(fault + place).encode())
os._exit(0)
"""
"""Runs a program and its tests, and says what failed, or "": only where it gets to its last lines, so that a
program that ends the process has not passed. What the program itself prints goes nowhere."""


class CannotRead(Exception):
    """The file of problems is wrong; `str(error)` says where and why."""


@dataclass(frozen=True)
class Problem:
    """A function that is wanted, and what tells a right one."""

    name: str
    prompt: str
    entry_point: str
    tests: str

    def __post_init__(self) -> None:
        if not all(isinstance(value, str) for value in vars(self).values()):
            raise TypeError("all its values are texts")


@dataclass(frozen=True)
class Limits:
    """Of one program with its tests."""

    seconds: float
    memory: int
    """Bytes of address space."""


@dataclass(frozen=True)
class Tried:
    """A program, and what came of it."""

    program: str
    candidates: int
    """How many candidates are this program."""
    fault: str
    """Empty: it passed."""


@dataclass
class Bill:
    """All calls together."""

    calls: int = 0
    flops: float = 0.0
    tokens: int = 0
    money: float = 0.0
    currency: str = ""

    def add(self, one: isoflop.Bill) -> None:
        """One call more."""
        self.calls += 1
        self.flops += one.flops
        self.tokens += one.tokens
        self.money += one.money
        self.currency = one.currency

    def left(self, budget: isoflop.Budget) -> isoflop.Budget | None:
        """What may still be spent; None: nothing."""
        left = isoflop.Budget(currency=budget.currency)
        for name in ("flops", "tokens", "money"):
            if most := getattr(budget, name):
                # 0 would be no limit.
                if most <= getattr(self, name):
                    return None
                setattr(left, name, most - getattr(self, name))
        return left


@dataclass
class Result:
    """What was bought for a problem, and what of it was tested."""

    problem: str
    candidates: int = 0
    seed: int | None = None
    """Of the first candidate; the others' follow."""
    tried: list[Tried] = field(default_factory=list)

    @property
    def passed(self) -> int:
        """Candidates that passed."""
        return sum(one.candidates for one in self.tried if not one.fault)

    @property
    def program(self) -> str:
        """The first that passed, or nothing."""
        return next((one.program for one in self.tried if not one.fault), "")


class Buyer:
    """Buys candidates, and tests them."""

    def __init__(self, client: isoflop.Client, options: argparse.Namespace) -> None:
        self._client, self._options = client, options
        self._limits = Limits(options.seconds, options.memory << 20)
        self.bill = Bill()

    def until_one_passes(self, problem: Problem) -> Result:
        """In steps of 2, 4, 8, ... candidates, up to the most, or as far as the budget goes."""
        result, asked, step = Result(problem.name, seed=self._options.seed), 0, 2
        while not result.passed and asked < self._options.samples:
            count = min(step, self._options.samples - asked)
            response = self._buy(problem, count, None if result.seed is None else result.seed + asked)
            if response is None:
                break
            result.seed = response.seed - asked
            result.candidates += len(response.candidates)
            for tried in self._tested(problem, response):
                result.tried.append(tried)
                if not tried.fault:
                    break
            asked, step = asked + count, 2 * step
        return result

    def all_at_once(self, problem: Problem) -> Result | None:
        """All candidates, each tested; None where the budget is used up."""
        response = self._buy(problem, self._options.samples, self._options.seed)
        if response is None:
            return None
        tried = list(self._tested(problem, response))
        return Result(problem.name, len(response.candidates), response.seed, tried)

    def _buy(self, problem: Problem, samples: int, seed: int | None) -> isoflop.SolveResponse | None:
        """So many candidates; None where the budget has no room for them."""
        budget = self.bill.left(self._options.budget)
        if budget is None:
            return None
        try:
            response = self._client.solve(
                ASK.format(prompt=problem.prompt),
                answer_type="code",
                strategies=["repeated"],
                samples=samples,
                seed=seed,
                models=self._options.model,
                budget=budget,
            )
        except FailedPrecondition:
            if not self.bill.calls:
                raise
            return None
        self.bill.add(response.bill)
        return response

    def _tested(self, problem: Problem, response: isoflop.SolveResponse) -> Iterator[Tried]:
        """Each program once, what most candidates have in common first: the router has counted them."""
        for cluster in response.clusters:
            fault = check(problem, cluster.answer, self._limits)
            yield Tried(cluster.answer, len(cluster.members), fault)
        blank = len(response.candidates) - sum(len(cluster.members) for cluster in response.clusters)
        if blank:
            yield Tried("", blank, "no code block")


def check(problem: Problem, program: str, limits: Limits) -> str:
    """Why a program fails the problem's tests; empty where it passes."""
    seconds = math.ceil(limits.seconds) + 1
    job = {
        "program": program,
        "tests": problem.tests,
        "entry_point": problem.entry_point,
        # Where this process is killed, nobody else ends that one: it does so by itself.
        "alarm": seconds,
        "limits": {
            "RLIMIT_CPU": seconds,
            "RLIMIT_AS": limits.memory,
            "RLIMIT_FSIZE": limits.memory,
            "RLIMIT_CORE": 0,
        },
    }
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        subprocess.Popen(
            [sys.executable, "-I", "-c", HARNESS],
            cwd=folder,
            env={},  # Keys in the environment are none of its business.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process,
    ):
        try:
            said, _ = process.communicate(json.dumps(job).encode(), limits.seconds)
            return str(json.loads(said))
        except subprocess.TimeoutExpired:
            return f"took longer than {limits.seconds:g} s"
        except ValueError:
            return "ended before its tests were through"
        finally:
            # Its whole group, as it may have started others.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def read_problems(path: Path) -> list[Problem]:
    """The problems of a file, in its order; raises CannotRead."""
    problems = []
    try:
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                problems.append(Problem(**json.loads(text)))
            except (TypeError, ValueError) as error:
                raise CannotRead(f"{path}, line {number} is no problem: {error}") from None
    except UnicodeDecodeError:
        raise CannotRead(f"{path} is not UTF-8") from None
    if not problems:
        raise CannotRead(f"{path} has no problems")
    return problems


def named(name: str, problems: Sequence[Problem]) -> Problem:
    """The problem of that name; raises CannotRead."""
    for problem in problems:
        if problem.name == name:
            return problem
    names = ", ".join(problem.name for problem in problems)
    raise CannotRead(f"there is no problem {name!r}; there are: {names}")


def one_problem(buyer: Buyer, problem: Problem, options: argparse.Namespace) -> int:
    """Buy until one passes, and say what it took."""
    result, bill = buyer.until_one_passes(problem), buyer.bill
    rest = options.samples - result.candidates
    # Candidates of a prompt cost about the same.
    share = rest / result.candidates if result.candidates else 0.0
    unbought = {"candidates": rest, "flops": share * bill.flops, "money": share * bill.money}
    if options.json:
        told = {**asdict(result), "passed": bool(result.passed), "program": result.program}
        print(json.dumps({**told, "bill": asdict(bill), "not_bought": unbought}, indent=2))
        return PASSED if result.passed else NONE
    bought = counted(result.candidates, "candidate")
    ended = f"one of {bought} passes" if result.passed else f"none of {bought} passes"
    lines = [f"{result.problem}: {ended}, seeds from {result.seed}", *faults(result), told_bill(bill)]
    if rest and result.passed:
        rough = f"{si(unbought['flops'])}FLOPs, {money(unbought['money'], bill.currency)}"
        lines.append(f"spared against {options.samples} at once: {counted(rest, 'candidate')}, about {rough}")
    elif rest:
        lines.append(f"the budget has no room for more of the {options.samples} candidates")
    print("\n".join([*lines, *(["", clean(result.program)] if result.passed else [])]))
    return PASSED if result.passed else NONE


def all_problems(buyer: Buyer, problems: Sequence[Problem], options: argparse.Namespace) -> int:
    """Buy and test all, and say how many passed, with pass@k."""
    results = []
    for problem in problems:
        result = buyer.all_at_once(problem)
        if result is None:
            break
        results.append(result)
    means = pass_means(results)
    if options.json:
        told = [{**asdict(one), "passed": one.passed} for one in results]
        print(json.dumps({"problems": told, "pass_at": means, "bill": asdict(buyer.bill)}, indent=2))
    else:
        rows = [(line(one.problem), str(one.passed), str(one.candidates)) for one in results]
        lines = [*table("lrr", ("problem", "passed", "of"), rows, Style()), ""]
        lines += table("rr", ("k", "pass@k"), [(str(k), f"{mean:.1%}") for k, mean in means.items()], Style())
        lines += ["", told_bill(buyer.bill)]
        if len(results) < len(problems):
            lines.append(f"the budget has no room for more than {len(results)} of the problems")
        print("\n".join(lines))
    return PASSED if len(results) == len(problems) and all(one.passed for one in results) else NONE


def pass_means(results: Sequence[Result]) -> dict[int, float]:
    """pass@1, 2, 4, ... and of all candidates: means over the problems."""
    most = min(one.candidates for one in results)
    ks = sorted({*(1 << i for i in range(most.bit_length())), most} - {0})
    return {k: sum(pass_at(k, one.candidates, one.passed) for one in results) / len(results) for k in ks}


def faults(result: Result) -> list[str]:
    """What failed, a line for each program."""
    return [f"  {one.candidates} × {line(one.fault)}" for one in result.tried if one.fault]


def told_bill(bill: Bill) -> str:
    """The sum of all calls, in words."""
    parts = [counted(bill.tokens, "token"), f"{si(bill.flops)}FLOPs", money(bill.money, bill.currency)]
    return f"bill: {counted(bill.calls, 'call')}, {', '.join(parts)}"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("name", nargs="?", metavar="PROBLEM", help="buy for this one until one passes")
    parser.add_argument("--problems", type=Path, default=PROBLEMS, metavar="FILE", help="JSON lines")
    parser.add_argument("--address", help="host:port of the router; else ISOFLOP_ADDRESS, or localhost:50051")
    parser.add_argument("--model", action="append", default=[], metavar="NAME", help="may be given again")
    parser.add_argument("--samples", type=int, default=16, metavar="N", help="most candidates of a problem")
    parser.add_argument(
        "--budget", action="append", default=[], metavar="LIMIT", help="of all calls: 5T, 0.02usd, 9000tok"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of the first candidate")
    parser.add_argument("--seconds", type=float, default=5.0, help="a program with its tests may take")
    parser.add_argument("--memory", type=int, default=512, metavar="MIB", help="that a program may take")
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    options = parser.parse_args(argv)
    if options.samples < 1 or not 0 < options.seconds < 86400 or not 32 <= options.memory < 1 << 20:
        parser.error("--samples must be at least 1, --seconds above 0, --memory at least 32")
    try:
        options.budget = parse_budget(options.budget)
    except ValueError as error:
        parser.error(str(error))
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; the exit code."""
    options = parse(argv)
    # grpc, which comes with the client, would add its log to our one sentence.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        problems = read_problems(options.problems)
        with isoflop.Client(options.address) as client:
            buyer = Buyer(client, options)
            if options.name is None:
                return all_problems(buyer, problems, options)
            return one_problem(buyer, named(options.name, problems), options)
    except (IsoflopError, CannotRead) as error:
        fault = str(error)
    except OSError as error:
        fault = file_fault(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    print(f"code_with_tests: {line(fault)}", file=sys.stderr)
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
