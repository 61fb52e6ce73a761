"""The command `isoflop`."""

from __future__ import annotations

import argparse
import inspect
import io
import json
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message

from isoflop import drawing, growing, text
from isoflop.budget import parse_budget
from isoflop.errors import InvalidArgument, IsoflopError, Unreachable
from isoflop.jsonform import to_dict
from isoflop.live import Progress
from isoflop.request import ANSWER_TYPES, EFFORTS, SCORINGS, Options
from isoflop.text import Style
from isoflop.v1.router_pb2 import Search, SolveResponse, Status, StreamSolveResponse

if TYPE_CHECKING:
    from isoflop.client import Client

_M = TypeVar("_M", bound=Message)

Run = Callable[[argparse.Namespace], int]
"""What a command does: returns the exit code."""

ANSWERED, FAILED, USAGE, ABANDONED, INTERRUPTED = 0, 1, 2, 3, 130

GROUP = "isoflop.commands"
"""Entry points of this group add commands.

Each names a function `register(parser: argparse.ArgumentParser) -> Run`: it adds the command's
options to its own parser and returns what runs the command. The first line of its docstring is
the command's help. It is loaded only when the command is chosen, or for help.
"""

EXIT_CODES = """\
exit codes:
  0    answered
  1    an error, in one sentence on standard error
  2    the command line is wrong
  3    abandoned: the query was given up as not worth more; the best answer so far is printed
  130  interrupted by Ctrl-C, which cancels the query
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (the process's arguments where it is None); the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        arguments = _parser().parse_args(argv)
        run: Run = arguments.run
        code = run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # Whoever read our output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ANSWERED
    except Unreachable as error:
        return _fail(
            f'{error.target} does not answer: start a router with "isoflop up", or name one with --address'
        )
    except IsoflopError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(text.file_fault(error))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return _fail(f"a bug, please report it: {error!r} at {where.filename}:{where.lineno}")
    return code


def _fail(sentence: str) -> int:
    print(f"isoflop: {text.line(sentence)}", file=sys.stderr)
    return FAILED


class _Parser(argparse.ArgumentParser):
    entry: EntryPoint | None = None
    """What adds this command, where the suite does: loaded when the command is chosen."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        # As in Python 3.14: `-3+5` is a prompt, `-5G` a value, and neither is an option.
        self._negative_number_matcher = re.compile(r"-[\d.(]")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.entry:
            try:
                register = self.entry.load()
            except (ImportError, AttributeError) as error:
                raise IsoflopError(f"the command {self.entry.name} cannot be loaded: {error}") from error
            self.description = inspect.getdoc(register)
            self.set_defaults(run=register(self))
        return super().parse_known_args(args, namespace)


class _Top(_Parser):
    """The parser of the whole command line: its help lists the suite's commands too."""

    def format_help(self) -> str:
        lines = [f"  {entry.name:<20}{_summary(entry)}\n" for entry in _suite()]
        added = "".join(["commands of the suite:\n", *lines, "\n"]) if lines else ""
        self.epilog = added + EXIT_CODES
        return super().format_help()


def _suite() -> list[EntryPoint]:
    return sorted(entry_points(group=GROUP), key=lambda entry: entry.name)


def _summary(entry: EntryPoint) -> str:
    try:
        return (entry.load().__doc__ or "").strip().partition("\n")[0]
    except (ImportError, AttributeError) as error:
        return f"cannot be loaded: {error}"


def _parser() -> argparse.ArgumentParser:
    parser = _Top(
        prog="isoflop",
        description="Answers each query with the cheapest plan that is good enough, and bills every FLOP.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = "host:port of the router; by default the environment's ISOFLOP_ADDRESS, or localhost:50051"
    who = "name of the tenant that asks; by default the environment's ISOFLOP_TENANT, or nobody in particular"
    parser.add_argument("--address", help=where)
    parser.add_argument("--tenant", metavar="NAME", help=who)
    remote = _Parser(add_help=False)
    remote.add_argument("--address", default=argparse.SUPPRESS, help=where)
    remote.add_argument("--tenant", default=argparse.SUPPRESS, metavar="NAME", help=who)
    remote.add_argument("--json", action="store_true", help="print JSON for machines")
    remote.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS", help="time budget, which the router plans by"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, run: Run, help: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help, description=help, parents=[remote])
        made.set_defaults(run=run)
        return made

    solve = command("solve", _solve, "answer a query, and say what it cost")
    _add_query(solve)
    solve.add_argument(
        "--stream", action="store_true", help="show what happens as it happens; a search as it grows"
    )
    solve.add_argument("--candidates", action="store_true", help="return every candidate")
    solve.add_argument(
        "--request-id",
        default="",
        metavar="ID",
        help="any text: a second call with it gets the first one's result, and is not billed again",
    )
    _add_query(command("plan", _plan, "say what solve would do first, and why; spends nothing"))
    command("models", _models, "list models, verifiers and strategies")
    frontier = command(
        "frontier", _frontier, "show which plans are worth their price, and what more samples bring"
    )
    frontier.add_argument("--png", type=Path, metavar="FILE", help="draw them there; needs matplotlib")
    query = command("query", _query, "show a running or finished query")
    query.add_argument("query_id", metavar="QUERY_ID", help="as solve prints it")
    feedback = command(
        "feedback", _feedback, "say whether a query was answered right: nothing else is a truth"
    )
    feedback.add_argument("query_id", metavar="QUERY_ID", help="as solve prints it")
    truth = feedback.add_mutually_exclusive_group(required=True)
    truth.add_argument("--answer", metavar="X", help="the right answer; the router compares")
    truth.add_argument(
        "--right", action="store_const", const=True, default=None, help="the returned answer is right"
    )
    truth.add_argument(
        "--wrong", action="store_const", const=False, dest="right", help="the returned answer is wrong"
    )
    for entry in _suite():
        commands.add_parser(entry.name, formatter_class=argparse.RawDescriptionHelpFormatter).entry = entry
    return parser


def _add_query(parser: argparse.ArgumentParser) -> None:
    """What `solve` and `plan` take."""
    parser.add_argument("prompt", metavar="PROMPT", help="the query; - reads it from standard input")
    parser.add_argument(
        "--budget",
        action=_Limits,
        metavar="LIMIT",
        help="limit on the cost, more than one with commas or given again: "
        "FLOPs as 2e9, 5G, 3T or 1P, tokens as 1000tok, money as 0.02usd",
    )
    parser.add_argument(
        "--effort", choices=EFFORTS, help="a place on the frontier; medium where none is given"
    )
    parser.add_argument(
        "--target-accuracy", type=float, metavar="P", help="the cheapest way to this chance of being right"
    )
    parser.add_argument(
        "--model", action="append", default=[], metavar="NAME", help="only this model; may be given again"
    )
    parser.add_argument(
        "--strategy",
        action="append",
        default=[],
        metavar="NAME",
        help="only this strategy; may be given again",
    )
    parser.add_argument(
        "--samples",
        type=partial(_count, noun="samples"),
        metavar="N",
        help="exactly so many samples; else as many as it takes",
    )
    parser.add_argument(
        "--thinking-tokens",
        type=partial(_count, noun="tokens"),
        metavar="N",
        help="for sequential and broad_and_deep the budget of thinking, which is kept: extended where it "
        "ends too soon, closed where it runs out; for others the most tokens of a sample",
    )
    parser.add_argument("--temperature", type=float, metavar="T", help="sampling temperature; 0 is greedy")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the first sample")
    parser.add_argument(
        "--verifier", default="", metavar="NAME", help="what scores samples, where the strategy needs scores"
    )
    parser.add_argument(
        "--scoring",
        choices=SCORINGS,
        help="from the scores of steps to that of a sample; as the verifier says where none is given",
    )
    parser.add_argument(
        "--search",
        type=_search,
        metavar="WxExD[xN]",
        help="how wide and how deep to search. beam: chains that are kept, continuations of each, most steps "
        "(usually 4x4x64); dvts: the same, each chain for itself; tree: leaves that are continued at a time, "
        "continuations of each, most steps of a chain and in all (4x4x64x128); sequential, broad_and_deep: "
        "chains, 1, most extensions of their thinking (1x1x4, 4x1x4; without --thinking-tokens as the effort "
        "says); refine: drafts, 1, most revisions (1x1x3)",
    )
    parser.add_argument(
        "--answer-type",
        choices=ANSWER_TYPES,
        help="how answers are read and compared; number where none is given",
    )
    parser.add_argument(
        "--pattern",
        default="",
        metavar="REGEX",
        help="the answer is its one group; implies --answer-type pattern",
    )


class _Limits(argparse.Action):
    """Adds to the budget."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        namespace.limits = [*getattr(namespace, "limits", []), values]
        try:
            namespace.budget = parse_budget(namespace.limits)
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from None


def _count(word: str, noun: str) -> int:
    if not word.isdecimal() or not int(word):
        raise argparse.ArgumentTypeError(f"{word!r} is no number of {noun}: give 1 or more")
    return int(word)


def _search(word: str) -> Search:
    numbers = word.split("x")
    if len(numbers) not in (3, 4) or not all(number.isdecimal() and int(number) for number in numbers):
        raise argparse.ArgumentTypeError(
            f"{word!r} is no search: give width, expansion and depth, as 4x4x64, and of a tree its nodes"
        )
    try:
        return Search(**dict(zip(("width", "expansion", "depth", "nodes"), map(int, numbers), strict=False)))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is too much: each number must fit in 31 bits") from None


def _seconds(word: str) -> float:
    try:
        seconds = float(word)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{word!r} is no number of seconds above 0")
    return seconds


def _client(arguments: argparse.Namespace) -> Client:
    # grpc reads this when it is imported, here: users get one sentence, and not its log.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from isoflop.client import Client

    return Client(arguments.address, arguments.tenant)


def _prompt(arguments: argparse.Namespace) -> str:
    if arguments.prompt != "-":
        return str(arguments.prompt)
    try:
        return sys.stdin.buffer.read().decode().rstrip("\n")
    except UnicodeDecodeError:
        raise InvalidArgument("prompt", "standard input is not UTF-8") from None


def _options(arguments: argparse.Namespace) -> Options:
    return Options(
        answer_type=arguments.answer_type or ("pattern" if arguments.pattern else "number"),
        pattern=arguments.pattern,
        effort=arguments.effort,
        target_accuracy=arguments.target_accuracy,
        budget=arguments.budget,
        models=arguments.model,
        strategies=arguments.strategy,
        samples=arguments.samples,
        temperature=arguments.temperature,
        seed=arguments.seed,
        thinking_tokens=arguments.thinking_tokens,
        verifier=arguments.verifier,
        scoring=arguments.scoring,
        search=arguments.search,
    )


def _solve(arguments: argparse.Namespace) -> int:
    options = _options(arguments)
    options["request_id"] = arguments.request_id
    options["return_candidates"] = arguments.candidates
    with _client(arguments) as client:
        if arguments.stream:
            events = client.stream(_prompt(arguments), timeout=arguments.timeout, **options)
            response = _watch(events, arguments.json)
        else:
            response = client.solve(_prompt(arguments), timeout=arguments.timeout, **options)
    if not (arguments.stream and arguments.json):
        _show(response, text.solved, arguments.json)
    return ABANDONED if response.status == Status.STATUS_ABANDONED else ANSWERED


def _watch(events: Generator[StreamSolveResponse, None, None], as_json: bool) -> SolveResponse:
    """Show events as they come; the result."""
    result = None
    progress = Progress(sys.stdout, _style(), plain=not _can_encode("".join(growing.DRAWN)))
    with closing(events):
        try:
            for event in events:
                if as_json:
                    print(json.dumps(to_dict(event)), flush=True)
                else:
                    progress.show(event)
                if event.HasField("final"):
                    result = event.final
        finally:
            progress.end()
    if result is None:
        raise IsoflopError("the router ended the stream without a result: try again")
    return result


def _plan(arguments: argparse.Namespace) -> int:
    with _client(arguments) as client:
        plan = client.plan(_prompt(arguments), timeout=arguments.timeout, **_options(arguments))
    return _show(plan, text.planned, arguments.json)


def _models(arguments: argparse.Namespace) -> int:
    with _client(arguments) as client:
        return _show(client.models(timeout=arguments.timeout), text.listed, arguments.json)


def _frontier(arguments: argparse.Namespace) -> int:
    with _client(arguments) as client:
        response = client.frontier(timeout=arguments.timeout)
    if arguments.png:
        drawing.picture(response, arguments.png)
    elif not arguments.json:
        plain = not _can_encode(drawing.HEIGHTS)
        print("\n".join([*drawing.terminal(response, _style(), plain=plain), ""]))
    return _show(response, text.frontier, arguments.json)


def _can_encode(text: str) -> bool:
    """Whether standard output takes these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _query(arguments: argparse.Namespace) -> int:
    with _client(arguments) as client:
        found = client.query(arguments.query_id, timeout=arguments.timeout)
    return _show(found, text.queried, arguments.json)


def _feedback(arguments: argparse.Namespace) -> int:
    with _client(arguments) as client:
        told = client.feedback(
            arguments.query_id, answer=arguments.answer, right=arguments.right, timeout=arguments.timeout
        )
    return _show(told, text.judged, arguments.json)


def _show(response: _M, as_text: Callable[[_M, Style], str], as_json: bool) -> int:
    print(json.dumps(to_dict(response), indent=2) if as_json else as_text(response, _style()))
    return ANSWERED


def _style() -> Style:
    return Style(colour=sys.stdout.isatty() and not os.environ.get("NO_COLOR"))


if __name__ == "__main__":
    sys.exit(main())
