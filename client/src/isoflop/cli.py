"""The command `isoflop`."""

from __future__ import annotations

import argparse
import inspect
import io
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from isoflop import accounts, asking, drawing, text
from isoflop.command import ANSWERED, FAILED, INTERRUPTED, Run, can_encode, connect, show, style
from isoflop.errors import IsoflopError, Unreachable

GROUP = "isoflop.commands"
"""Entry points of this group add commands.

Each names a function `register(parser: argparse.ArgumentParser) -> Run`: it adds the command's
options to its own parser and returns what runs the command. The first line of its docstring is
the command's help. It is loaded only when the command is chosen, or for help.
"""

EXIT_CODES = """\
exit codes:
  0    answered; of other commands than solve: done
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
    for name, register in COMMANDS.items():
        help = inspect.getdoc(register)
        command = commands.add_parser(name, help=help, description=help, parents=[remote])
        command.set_defaults(run=register(command))
    for entry in _suite():
        commands.add_parser(entry.name, formatter_class=argparse.RawDescriptionHelpFormatter).entry = entry
    return parser


def _seconds(word: str) -> float:
    try:
        seconds = float(word)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{word!r} is no number of seconds above 0")
    return seconds


def _models(parser: argparse.ArgumentParser) -> Run:
    """list models, verifiers and strategies"""

    def run(arguments: argparse.Namespace) -> int:
        with connect(arguments) as client:
            return show(client.models(timeout=arguments.timeout), text.listed, arguments.json)

    return run


def _frontier(parser: argparse.ArgumentParser) -> Run:
    """show which plans are worth their price, and what more samples bring"""
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw them there; needs matplotlib")

    def run(arguments: argparse.Namespace) -> int:
        with connect(arguments) as client:
            response = client.frontier(timeout=arguments.timeout)
        if arguments.png:
            drawing.picture(response, arguments.png)
        elif not arguments.json:
            plain = not can_encode(drawing.HEIGHTS)
            print("\n".join([*drawing.terminal(response, style(), plain=plain), ""]))
        return show(response, text.frontier, arguments.json)

    return run


def _query(parser: argparse.ArgumentParser) -> Run:
    """show a running or finished query"""
    parser.add_argument("query_id", metavar="QUERY_ID", help="as solve prints it")

    def run(arguments: argparse.Namespace) -> int:
        with connect(arguments) as client:
            found = client.query(arguments.query_id, timeout=arguments.timeout)
        return show(found, text.queried, arguments.json)

    return run


def _feedback(parser: argparse.ArgumentParser) -> Run:
    """say whether a query was answered right: nothing else is a truth"""
    parser.add_argument("query_id", metavar="QUERY_ID", help="as solve prints it")
    truth = parser.add_mutually_exclusive_group(required=True)
    truth.add_argument("--answer", metavar="X", help="the right answer; the router compares")
    truth.add_argument(
        "--right", action="store_const", const=True, default=None, help="the returned answer is right"
    )
    truth.add_argument(
        "--wrong", action="store_const", const=False, dest="right", help="the returned answer is wrong"
    )

    def run(arguments: argparse.Namespace) -> int:
        with connect(arguments) as client:
            told = client.feedback(
                arguments.query_id, answer=arguments.answer, right=arguments.right, timeout=arguments.timeout
            )
        return show(told, text.judged, arguments.json)

    return run


COMMANDS: dict[str, Callable[[argparse.ArgumentParser], Run]] = {
    "solve": asking.solve,
    "plan": asking.plan,
    "query": _query,
    "explain": accounts.explain,
    "feedback": _feedback,
    "budget": accounts.budget,
    "bill": accounts.bill,
    "models": _models,
    "frontier": _frontier,
}
"""The client's own, each added as the suite's are, by a function such as GROUP describes."""


if __name__ == "__main__":
    sys.exit(main())
