"""`isoflop calibrate`: labelled queries through the services, and from what comes the profile.

What comes is kept as a recording, line by line, so that a run that was stopped goes on where it was; the
profile can be made from recordings alone, too.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import math
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.errors import IsoflopError
from isoflop.text import counted, money, si
from isoflop.v1.common_pb2 import Model
from isoflop.v1.generation_pb2 import DescribeModelsRequest
from isoflop.v1.verification_pb2 import DescribeVerifiersRequest, Verifier
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from router import profile
from router.cost import Cost
from router.embedded import open_stages
from router.profile import ProfileError
from router.remote import connect
from router.settings import SuiteSettings
from router.stages import Stages
from services.common.channels import Channels
from services.common.server import CannotServe
from services.common.settings import MODELS

if TYPE_CHECKING:
    from training.recordings import Recordings

UNKNOWN_TOKENS = 512.0
"""Expected of a sample of a model of which nothing was measured."""
TIMED = 10
"""Queries whose greedy answers, one at a time, say how fast a model is."""
THIRDS = ("easiest", "middle", "hardest")

INPUT = """\
labelled queries, one a line:
  {"prompt": "What is 6*7?", "answer": "42", "type": "number", "group": "products", "query_id": "q1"}
type is number, expression, choice or text; group and query_id may be left out. Without addresses the
services are the embedded ones. What comes of the queries is kept in --recording, and a run that was stopped
goes on from there; --recordings makes a profile from such files alone.
"""


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """measure models on labelled queries, and write the profile that plans are made on"""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = INPUT
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--queries", type=Path, metavar="FILE", help="labelled queries, JSONL")
    source.add_argument("--recordings", type=Path, nargs="+", metavar="FILE", help="of runs before")
    add("--recording", type=Path, metavar="FILE", help="where what comes is kept (default: beside --output)")
    add("--output", type=Path, default=Path("profile.json"), metavar="FILE", help="default: %(default)s")
    add("--estimator", type=Path, metavar="FILE", help="write an estimator of difficulty, too")
    add("--version-name", metavar="NAME", help="of the profile (default: its date)")
    add("--models", type=_names, default=(), metavar="A,B", help="default: all that are served")
    add("--verifiers", type=_names, metavar="A,B", help="that score the samples (default: all; '': none)")
    add("--samples", type=_count, default=16, help="of each query and model (default: %(default)s)")
    add("--temperature", type=float, default=0.7, help="of the samples (default: %(default)s)")
    add("--at-a-time", type=_count, default=8, help="queries in flight (default: %(default)s)")
    add("--most-flops", type=float, default=math.inf, help="end when the next query might exceed this")
    add("--most-money", type=float, default=math.inf, help="likewise, in the catalogue's currency")
    add("--yes", action="store_true", help="do not ask before it starts")
    add("--json", action="store_true", help="tell what was found as JSON")
    add("--catalog", type=Path, default=MODELS / "catalog.yaml", metavar="FILE", help="of embedded models")
    add("--verifier-catalog", type=Path, default=MODELS / "verifiers.yaml", metavar="FILE", help="likewise")
    for name in ("generation", "verification", "aggregation"):
        add(f"--{name}", metavar="HOST:PORT", help=f"address of a running {name} service")
    return run


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _count(text: str) -> int:
    count = int(text)
    if not 1 <= count <= 1024:
        raise argparse.ArgumentTypeError("from 1 to 1024")
    return count


class _Wrong(Exception):
    """What ends the command; `str(error)` is one sentence."""


def run(arguments: argparse.Namespace) -> int:
    """Measure, fit, write; the exit status. An error is one sentence on standard error."""
    try:
        import scipy  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        return _fail(f"{error.name} is missing: pip install 'isoflop-suite[calibration]'")
    from training.calibration import QueriesError
    from training.recordings import RecordingError

    try:
        return asyncio.run(_calibrate(arguments))
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}")
    except (_Wrong, QueriesError, RecordingError, CannotServe, IsoflopError) as error:
        return _fail(str(error))
    except ExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, ExceptionGroup):
            first = first.exceptions[0]
        if isinstance(first, IsoflopError | QueriesError | OSError):
            return _fail(f"{first}; what came before is kept, and the same command goes on")
        raise


def _fail(sentence: str) -> int:
    print(f"isoflop calibrate: {sentence}", file=sys.stderr)
    return 1


async def _calibrate(arguments: argparse.Namespace) -> int:
    async with _services(arguments, whole=True) as stages:
        models = await _models(stages, arguments.models)
        if arguments.queries:
            paths = [arguments.recording or arguments.output.with_suffix(".recording.jsonl")]
            ended = await _record(arguments, stages, models, paths[0])
        else:
            paths, ended = arguments.recordings, True
    found = _read(paths, arguments.models)
    by_name = {model.name: model for model in models}
    unknown = [name for name in found.models if name not in by_name]
    if unknown:
        raise _Wrong(f"no such model is served: {', '.join(unknown)}; see --catalog")
    served = [model for model in models if model.name in found.models]
    speeds = await _speeds(arguments, served, found) if arguments.queries else {}
    data = _fit(arguments, found, served, speeds)
    files = {arguments.output: json.dumps(data, indent=1) + "\n"}
    if arguments.estimator:
        files[arguments.estimator] = _estimator(arguments, found)
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    if arguments.json:
        print(json.dumps(_summary(data, found)))
    else:
        Console().print(_table(data, found))
        print(f"wrote {' and '.join(map(str, files))}, from {len(found.queries)} queries")
    return 0 if ended else _fail("the cap was reached: allow more, and the same command goes on")


@asynccontextmanager
async def _services(arguments: argparse.Namespace, *, whole: bool) -> AsyncIterator[Stages]:
    """The embedded services, or running ones."""
    addresses = [getattr(arguments, name) for name in ("generation", "verification", "aggregation")]
    if not any(addresses):
        settings = SuiteSettings(catalog=arguments.catalog, verifiers=arguments.verifier_catalog)
        async with open_stages(settings, CollectorRegistry(), whole=whole) as stages:
            yield stages
        return
    if not all(addresses):
        raise _Wrong("--generation, --verification and --aggregation go together")
    channels = Channels()
    try:
        # Difficulty is not asked: it goes by what is measured here.
        yield connect(addresses[0], addresses[1], addresses[0], addresses[2], channels)
    finally:
        await channels.close()


async def _models(stages: Stages, names: Sequence[str]) -> list[Model]:
    models = list((await stages.generation.describe(DescribeModelsRequest())).models)
    known = {model.name for model in models}
    for name in names:
        if name not in known:
            raise _Wrong(f"there is no model {name!r}; there are: {', '.join(sorted(known))}")
    return [model for model in models if not names or model.name in names]


async def _verifiers(stages: Stages, names: Sequence[str] | None) -> list[Verifier]:
    if names == ():
        return []
    found = {v.name: v for v in (await stages.verification.describe(DescribeVerifiersRequest())).verifiers}
    for name in names or ():
        if name not in found:
            raise _Wrong(f"there is no verifier {name!r}; there are: {', '.join(found)}")
    return [verifier for name, verifier in found.items() if names is None or name in names]


async def _record(arguments: argparse.Namespace, stages: Stages, models: Sequence[Model], path: Path) -> bool:
    """Run what the recording lacks; False where the cap ended it."""
    from training.calibration import Plan, foreseen, missing, read_queries, record

    queries = read_queries(arguments.queries)
    plan = Plan(
        arguments.samples,
        arguments.temperature,
        await _verifiers(stages, arguments.verifiers),
        arguments.at_a_time,
    )
    if plan.samples < 2:
        raise _Wrong("a profile needs at least 2 samples of each query: --samples")
    jobs, spent = missing(path, queries, models)
    most = Cost(arguments.most_flops, arguments.most_money)
    if not jobs:
        return True
    expected = foreseen(jobs, plan, _expected_tokens())
    currency = models[0].price.currency
    told = f"{si(expected.flops)}FLOP" + (f" and {money(expected.money, currency)}" if expected.money else "")
    print(
        f"{counted(len(jobs), 'round')} of {plan.samples} samples and a greedy one, about {told}; "
        f"{len(queries) * len(models) - len(jobs)} are in {path} already",
        file=sys.stderr,
    )
    if not arguments.yes and not await asyncio.to_thread(_agreed):
        raise _Wrong("not started")
    bar = Progress(
        TextColumn("{task.completed:.0f} of {task.total:.0f} rounds"),
        BarColumn(),
        TextColumn("{task.fields[spent]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    total = spent
    with bar:
        task = bar.add_task("", total=len(jobs), spent="")

        def done(price: Cost) -> None:
            nonlocal total
            total += price
            bar.update(task, advance=1, spent=f"{si(total.flops)}FLOP")

        return await record(stages, jobs, plan, path, left=most - spent, done=done)


def _agreed() -> bool:
    """Asked where somebody is there to answer."""
    return not sys.stdin.isatty() or input("start? [y/N] ").strip().lower() in ("y", "yes")


def _expected_tokens() -> Callable[[str], float]:
    """Of a sample by model: as the profile in force has it."""
    try:
        known = profile.load(SuiteSettings().profile)
    except ProfileError:
        return lambda model: UNKNOWN_TOKENS
    tokens = {arm.model: float(known.prior @ arm.tokens) for arm in known.arms}
    return lambda model: tokens.get(model, UNKNOWN_TOKENS)


def _read(paths: Sequence[Path], models: Sequence[str]) -> Recordings:
    from training.recordings import read

    found = read(paths, models)
    if found.left_out:
        print(f"left out, as not all models have samples of them: {found.left_out} queries", file=sys.stderr)
    return found


async def _speeds(
    arguments: argparse.Namespace, models: Sequence[Model], found: Recordings
) -> dict[str, float]:
    """Seconds that a token of a lone sample takes, by model, as samples are served."""
    from training.sampling import sample_round

    told = {}
    async with _services(arguments, whole=False) as stages:
        for model in models:
            rounds = [
                await sample_round(stages.generation, model.name, query.prompt)
                for query in found.queries[:TIMED]
            ]
            tokens = sum(sample.tokens for one in rounds for sample in one.samples)
            told[model.name] = sum(one.seconds for one in rounds) / max(tokens, 1)
    return told


def _fit(
    arguments: argparse.Namespace, found: Recordings, models: Sequence[Model], speeds: dict[str, float]
) -> dict[str, Any]:
    """The profile's data, checked."""
    from training.profiles import fit

    version = arguments.version_name or f"{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M}"
    data = fit(found.queries, models, version, temperature=arguments.temperature, seconds_per_token=speeds)
    profile.parse(data)
    return data


def _estimator(arguments: argparse.Namespace, found: Recordings) -> str:
    """The file of an estimator of difficulty, with what it is worth held out."""
    from training import difficulty
    from training.difficulty_answers import Answers, AnswersError
    from training.difficulty_figures import figures
    from training.recordings import counts

    known = [query for query in found.queries if query.prompt]
    if not known:
        raise _Wrong("an estimator needs the prompts, and the recordings have none")
    right, samples, tokens = counts(known, found.models)
    ids, prompts = [query.query_id for query in known], [query.prompt for query in known]
    answers = Answers(ids, prompts, list(found.models), right, samples, tokens)
    try:
        difficulty.check(answers)
    except AnswersError as error:
        raise _Wrong(str(error)) from None
    trained = difficulty.train(answers, arguments.estimator.stem)
    held, _ = difficulty.held_out(answers, 5)
    told = figures(held, answers.models, answers.right, answers.samples)
    return difficulty.text(trained.record.model_copy(update={"figures": told})) + "\n"


def _summary(data: dict[str, Any], found: Recordings) -> dict[str, Any]:
    """What was found, for machines."""
    from training.profiles import thirds

    return {
        "version": data["version"],
        "queries": len(found.queries),
        "types": len(data["grid"]),
        "efforts": data["efforts"],
        "arms": [
            {
                "model": arm["model"],
                "temperature": arm["temperature"],
                "right": thirds(data["prior"], arm["p_right"]),
                "tokens": thirds(data["prior"], arm["tokens"]),
                "verifiers": [told["verifier"] for told in arm.get("verified", [])],
            }
            for arm in data["arms"]
        ],
    }


def _table(data: dict[str, Any], found: Recordings) -> Table:
    """For people."""
    summary = _summary(data, found)
    table = Table(
        title=f"profile {summary['version']}: {summary['types']} types of queries", title_justify="left"
    )
    table.add_column("one sample of")
    for third in THIRDS:
        table.add_column(f"right, {third} third", justify="right")
        table.add_column("tokens", justify="right")
    for arm in summary["arms"]:
        name = (
            f"{arm['model']}, greedy"
            if not arm["temperature"]
            else f"{arm['model']} at {arm['temperature']:g}"
        )
        cells = [
            cell
            for right, tokens in zip(arm["right"], arm["tokens"], strict=True)
            for cell in (f"{right:.3f}", f"{tokens:.0f}")
        ]
        table.add_row(name, *cells)
    return table
