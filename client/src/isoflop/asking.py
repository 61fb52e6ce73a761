"""The commands that ask: `isoflop solve` and `isoflop plan`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Generator
from contextlib import closing
from functools import partial
from typing import Any

from isoflop import growing, text
from isoflop.budget import parse_budget
from isoflop.command import ABANDONED, ANSWERED, Run, can_encode, connect, show, style
from isoflop.errors import InvalidArgument, IsoflopError
from isoflop.jsonform import to_dict
from isoflop.live import Progress
from isoflop.request import ANSWER_TYPES, EFFORTS, SCORINGS, Options
from isoflop.v1.router_pb2 import Search, SolveResponse, Status, StreamSolveResponse


def solve(parser: argparse.ArgumentParser) -> Run:
    """answer a query, and say what it cost"""
    _add_query(parser)
    parser.add_argument(
        "--stream", action="store_true", help="show what happens as it happens; a search as it grows"
    )
    parser.add_argument("--candidates", action="store_true", help="return every candidate")
    parser.add_argument(
        "--request-id",
        default="",
        metavar="ID",
        help="any text: a second call with it gets the first one's result, and is not billed again",
    )
    return _solve


def plan(parser: argparse.ArgumentParser) -> Run:
    """say what solve would do first, and why; spends nothing"""
    _add_query(parser)
    return _plan


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
    with connect(arguments) as client:
        if arguments.stream:
            events = client.stream(_prompt(arguments), timeout=arguments.timeout, **options)
            response = _watch(events, arguments.json)
        else:
            response = client.solve(_prompt(arguments), timeout=arguments.timeout, **options)
    if not (arguments.stream and arguments.json):
        show(response, text.solved, arguments.json)
    return ABANDONED if response.status == Status.STATUS_ABANDONED else ANSWERED


def _watch(events: Generator[StreamSolveResponse, None, None], as_json: bool) -> SolveResponse:
    """Show events as they come; the result."""
    result = None
    progress = Progress(sys.stdout, style(), plain=not can_encode("".join(growing.DRAWN)))
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
    with connect(arguments) as client:
        plan = client.plan(_prompt(arguments), timeout=arguments.timeout, **_options(arguments))
    return show(plan, text.planned, arguments.json)
