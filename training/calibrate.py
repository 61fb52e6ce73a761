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
from collections.abc import AsyncIterator, Callable, Container, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.errors import IsoflopError
from isoflop.text import counted, file_fault, money, si
from isoflop.v1.common_pb2 import Model
from isoflop.v1.generation_pb2 import DescribeModelsRequest
from isoflop.v1.verification_pb2 import DescribeVerifiersRequest, Verifier
from prometheus_client import CollectorRegistry
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from router import profile
from router.catalog import Catalog
from router.cost import Cost
from router.embedded import open_stages
from router.profile import ProfileError
from router.profiles import write
from router.remote import connected
from router.settings import SuiteSettings
from router.stages import Stages
from services.common.server import CannotServe
from services.common.settings import MODELS

if TYPE_CHECKING:
    from training.calibration import Ended, Job, Plan
    from training.deep import Asked
    from training.difficulty_answers import Answers
    from training.difficulty_figures import Held
    from training.labelled import Labelled
    from training.recordings import Recordings

UNKNOWN_TOKENS = 512.0
"""Expected of a sample of a model of which nothing was measured."""
TEMPERATURE = 0.7
"""Of samples, where nothing else is said."""
PRIOR = (0.0, 1.0)
"""Mean and standard deviation of a query's difficulty where nothing is known of it."""
TIMED = 10
"""Queries whose greedy answers, one at a time, say how fast a model is."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""
TOLD = 5
"""Queries at most that are named where some are left out."""

STRATEGIES = """\
that are measured, too, once a query and model: NAME[:WxExD[xN]][@THINKING-TOKENS] of beam, dvts, tree,
sequential and refine, as beam:4x4x64,sequential@200 (see isoflop solve --help; default: none)"""
INPUT = """\
labelled queries, one a line:
  {"prompt": "What is 6*7?", "answer": "42", "type": "number", "group": "products", "query_id": "q1"}
type is number, expression, choice or text; group and query_id may be left out. Without addresses the
services are the embedded ones. What comes of the queries is kept in --recording, and a run that was stopped
goes on from there; --recordings makes a profile from such files alone. A round of samples begins only where
its worst case has room under --most-flops and --most-money. What --strategies are played with goes into the
profile where all queries were; ahead of time it is reckoned as of the samples that run at once, each scored
once.
"""


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """measure models on labelled queries, and write the profile that plans are made on"""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = INPUT
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--queries", type=Path, metavar="FILE", help="labelled queries, JSONL")
    source.add_argument("--recordings", type=Path, nargs="+", metavar="FILE", help="of runs before")
    add("--first", type=_count, metavar="N", help="so many of the queries: the groups take turns")
    add("--recording", type=Path, metavar="FILE", help="where what comes is kept (default: beside --output)")
    add("--output", type=Path, default=Path("profile.json"), metavar="FILE", help="default: %(default)s")
    add("--estimator", type=Path, metavar="FILE", help="write an estimator of difficulty, too")
    add("--version-name", metavar="NAME", help="of the profile (default: its date)")
    add("--models", type=_names, default=(), metavar="A,B", help="default: all that are served")
    add("--verifiers", type=_names, metavar="A,B", help="that score the samples (default: all; '': none)")
    add("--samples", type=_several, default=16, help="of each query and model (default: %(default)s)")
    add("--strategies", type=_strategies, default=(), metavar="A,B", help=STRATEGIES)
    add("--temperature", type=_positive, help=f"of the samples (default: as recorded, else {TEMPERATURE:g})")
    add("--max-tokens", type=_count, default=0, help="of a sample (default: what the context leaves)")
    add("--at-a-time", type=_count, default=8, help="queries in flight (default: %(default)s)")
    add("--most-flops", type=_positive, default=math.inf, help="of the whole recording; end before it")
    add("--most-money", type=_positive, default=math.inf, help="likewise, in the catalogue's currency")
    add("--yes", action="store_true", help="do not ask before it starts")
    add("--json", action="store_true", help="tell what was found as JSON")
    add("--catalog", type=Path, default=MODELS / "catalog.yaml", metavar="FILE", help="of embedded models")
    add("--verifier-catalog", type=Path, default=MODELS / "verifiers.yaml", metavar="FILE", help="likewise")
    for name in ("generation", "verification", "aggregation"):
        add(f"--{name}", metavar="HOST:PORT", help=f"address of a running {name} service")
    return run


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError("a number from 1")
    return int(text)


def _several(text: str) -> int:
    if not text.isdecimal() or not 2 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError("a number from 2 to 1024")
    return int(text)


def _strategies(text: str) -> tuple[Asked, ...]:
    from training.deep import asked

    try:
        return tuple(dict.fromkeys(asked(word.strip()) for word in text.split(",") if word.strip()))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("a number above 0")
    return value


class _Wrong(Exception):
    """What ends the command; `str(error)` is one sentence."""


@dataclass(frozen=True)
class _Gathered:
    """What a profile is made from."""

    found: Recordings
    models: Sequence[Model]
    verifiers: Sequence[Verifier]
    """That are served."""
    faults: Sequence[str] = ()
    """Of the run, a sentence each; the profile is made from what there is."""


def run(arguments: argparse.Namespace) -> int:
    """Measure, fit, write; the exit status. An error is one sentence on standard error."""
    try:
        import scipy  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        return _fail(f"{error.name} is missing: pip install 'isoflop-suite[calibration]'")
    from training.labelled import QueriesError
    from training.profiles import FitError
    from training.recordings import RecordingError

    try:
        _check_outputs(arguments)
        gathered = asyncio.run(_gather(arguments))
        return _write(arguments, gathered)
    except KeyboardInterrupt:
        _fail("interrupted; whole rounds are kept, and the same command goes on")
        return INTERRUPTED
    except OSError as error:
        return _fail(file_fault(error))
    except (_Wrong, QueriesError, RecordingError, FitError, CannotServe) as error:
        return _fail(str(error))
    except IsoflopError as error:
        return _fail(f"{error}; what came before is kept, and the same command goes on")


def _fail(sentence: str) -> int:
    print(f"isoflop calibrate: {sentence}", file=sys.stderr)
    return 1


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Before anything is spent: what comes can be written. Raises _Wrong and OSError."""
    for path in (arguments.output, arguments.estimator):
        if path and path.is_dir():
            raise _Wrong(f"{path} is a folder: name a file")
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
    if arguments.recording is None:
        arguments.recording = arguments.output.with_name(f"{arguments.output.stem}.recording.jsonl")


async def _gather(arguments: argparse.Namespace) -> _Gathered:
    async with _services(arguments, whole=True) as stages:
        models = await _models(stages, arguments.models)
        if arguments.queries:
            return await _recorded(arguments, stages, models)
        verifiers = await _verifiers(stages, None)
    if arguments.strategies:
        raise _Wrong("--strategies are played on --queries")
    found = _read(arguments.recordings, arguments.models)
    by_name = {model.name: model for model in models}
    unknown = [name for name in found.models if name not in by_name]
    if unknown:
        raise _Wrong(
            f"no such model is served: {', '.join(unknown)}; see --catalog, or leave out by --models"
        )
    if arguments.temperature and found.temperature not in (None, arguments.temperature):
        raise _Wrong(f"the samples were recorded at temperature {found.temperature:g}")
    return _Gathered(found, [by_name[name] for name in found.models], verifiers)


def _write(arguments: argparse.Namespace, gathered: _Gathered) -> int:
    """The files and what is said; the exit status."""
    from training.calibrate_report import summary, tables

    found, estimated, wrong = gathered.found, None, None
    if arguments.estimator:
        try:
            estimated = _estimated(found)
        except _Wrong as error:
            # A profile is there all the same.
            wrong = error
    data = _fit(arguments, gathered, estimated)
    files = [arguments.output]
    write(arguments.output, (json.dumps(data, indent=1) + "\n").encode())
    if wrong:
        raise wrong
    if estimated:
        write(arguments.estimator, _estimator(arguments.estimator.stem, estimated).encode())
        files.append(arguments.estimator)
    if arguments.json:
        print(json.dumps(summary(data, found) | {"faults": gathered.faults, "files": list(map(str, files))}))
    else:
        Console().print(*tables(data, found), sep="\n")
        print(f"wrote {' and '.join(map(str, files))}, from {len(found.queries)} queries")
    for fault in gathered.faults:
        _fail(fault)
    return 1 if gathered.faults else 0


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
    # Difficulty is not asked: it goes by what is measured here.
    async with connected(addresses[0], addresses[1], addresses[0], addresses[2]) as stages:
        yield stages


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


async def _recorded(arguments: argparse.Namespace, stages: Stages, models: Sequence[Model]) -> _Gathered:
    """Run what the recording lacks, and read it."""
    from training import calibration, deep
    from training.labelled import in_turn, read_queries
    from training.recordings import RecordingError

    path = arguments.recording
    queries = read_queries(arguments.queries)
    if arguments.first:
        queries = in_turn(queries, arguments.first)
    plan = calibration.Plan(
        arguments.samples,
        arguments.temperature or TEMPERATURE,
        await _verifiers(stages, arguments.verifiers),
        arguments.at_a_time,
        arguments.max_tokens,
    )
    most = Cost(arguments.most_flops, arguments.most_money, math.inf)
    if min(most.flops, most.money) < math.inf and not plan.max_tokens:
        endless = [model.name for model in models if not model.context]
        if endless:
            raise _Wrong(f"of {', '.join(endless)} no context is known: a cap needs --max-tokens")
    faults = []
    unreadable = await calibration.unreadable(stages, queries, plan.at_a_time)
    if unreadable:
        faults.append(_left_out({one.query_id: "its answer is none of its type" for one in unreadable}))
        queries = [query for query in queries if query not in unreadable]
    with calibration.opened(path) as file:
        jobs, spent = calibration.missing(path, queries, models, plan)
        played = deep.missing(path, queries, models, plan, arguments.strategies)
        for sentence in deep.unserved(arguments.strategies, models, plan):
            print(sentence, file=sys.stderr)
        if jobs := [*jobs, *played]:
            asked = len(models) + len(deep.served(arguments.strategies, models, plan))
            await _agree(arguments, jobs, plan, len(queries) * asked - len(jobs))
            ended = await _run(stages, jobs, plan, file, most, spent, models)
            if ended.refused:
                faults.append(_left_out(ended.refused))
            if ended.capped:
                told = f"the cap has no room for the next round, at worst {_told(ended.capped, models)}"
                faults.append(f"{told}: allow more, and the same command goes on")
        try:
            found = _read([path], [model.name for model in models], {query.query_id for query in queries})
        except RecordingError as error:
            raise _Wrong("; ".join(faults) or str(error)) from None
        timed = await _time(arguments, found, queries, models, plan, file, most)
    served = await _verifiers(stages, None)
    return _Gathered(replace(found, seconds_per_token=timed), models, served, faults)


def _left_out(reasons: Mapping[str, str]) -> str:
    """Queries with what is wrong with them, the first few by name."""
    some = "; ".join(f"{query_id} ({reason})" for query_id, reason in list(reasons.items())[:TOLD])
    more = f"; and {len(reasons) - TOLD} more" if len(reasons) > TOLD else ""
    return f"left out {'a query' if len(reasons) == 1 else f'{len(reasons)} queries'}: {some}{more}"


def _told(price: Cost, models: Sequence[Model]) -> str:
    spent = f"{si(price.flops)}FLOP"
    return f"{spent} and {money(price.money, models[0].price.currency)}" if price.money else spent


async def _agree(arguments: argparse.Namespace, jobs: Sequence[Job], plan: Plan, there: int) -> None:
    """Tell what is to be run and what it costs, and ask; raises _Wrong where the answer is no."""
    from training.calibration import Sampled, foreseen

    expected = _told(foreseen(jobs, plan, _expected_tokens()), [job.model for job in jobs])
    sampled = sum(isinstance(job, Sampled) for job in jobs)
    parts = [f"{counted(sampled, 'round')} of {plan.samples} samples and a greedy one"] if sampled else []
    if played := len(jobs) - sampled:
        parts.append(f"{counted(played, 'play')} of strategies")
    print(
        f"{' and '.join(parts)}, about {expected}; {there} are in {arguments.recording} already",
        file=sys.stderr,
    )
    if not arguments.yes and not await _agreed():
        raise _Wrong("not started")


async def _run(
    stages: Stages,
    jobs: Sequence[Job],
    plan: Plan,
    file: FileIO,
    most: Cost,
    spent: Cost,
    models: Sequence[Model],
) -> Ended:
    """Run the jobs behind a progress bar."""
    from training.calibration import record

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
            bar.update(task, advance=1, spent=_told(total, models))

        return await record(stages, jobs, plan, file, left=most - spent, done=done)


async def _agreed() -> bool:
    """Asked where somebody is there to answer."""
    if not sys.stdin.isatty():
        return True
    print("start? [y/N] ", end="", file=sys.stderr, flush=True)
    loop, answered = asyncio.get_running_loop(), asyncio.Event()
    # No thread that waits: Ctrl-C would have to wait for it.
    loop.add_reader(sys.stdin, answered.set)
    try:
        await answered.wait()
    finally:
        loop.remove_reader(sys.stdin)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _expected_tokens() -> Callable[[str], float]:
    """Of a sample by model: as the profile in force has it."""
    try:
        known = profile.load(SuiteSettings().profile)
    except ProfileError:
        return lambda model: UNKNOWN_TOKENS
    tokens = {arm.model: float(known.prior @ arm.tokens) for arm in known.arms}
    return lambda model: tokens.get(model, UNKNOWN_TOKENS)


def _read(paths: Sequence[Path], models: Sequence[str], only: Container[str] | None = None) -> Recordings:
    from training.recordings import read

    found = read(paths, models, only)
    if found.left_out:
        print(f"queries without samples of all models, left out: {found.left_out}", file=sys.stderr)
    if found.incomplete:
        told = ", ".join(f"{deep} (of {count})" for deep, count in found.incomplete.items())
        print(f"strategies that were not played on all queries, left out: {told}", file=sys.stderr)
    return found


async def _time(
    arguments: argparse.Namespace,
    found: Recordings,
    queries: Sequence[Labelled],
    models: Sequence[Model],
    plan: Plan,
    file: FileIO,
    most: Cost,
) -> dict[str, float]:
    """Seconds that a token of a lone sample takes, by model, as samples are served; once a recording."""
    from training.calibration import append, missing, timed

    told = dict(found.seconds_per_token)
    lacking = [model for model in models if model.name not in told]
    if not lacking:
        return told
    measured = {query.query_id for query in found.queries}
    some = [query for query in queries if query.query_id in measured][:TIMED]
    _, spent = missing(arguments.recording, queries, models, plan)
    async with _services(arguments, whole=False) as stages:
        for model in lacking:
            row = await timed(stages, model, some, plan, most - spent)
            if row:
                append(file, row)
                spent += Cost(row["flops"], row["money"])
                told[model.name] = row["seconds_per_token"]
    return told


def _fit(
    arguments: argparse.Namespace, gathered: _Gathered, estimated: tuple[Answers, Held] | None
) -> dict[str, Any]:
    """The profile's data, checked. `estimated` are estimates of difficulty, made without each query."""
    from training.baselines import FOLDS, baselines
    from training.difficulty_answers import folds
    from training.profile_scaling import laws
    from training.profiles import fit

    found, models = gathered.found, gathered.models
    version = arguments.version_name or f"{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M}"
    temperature = found.temperature
    if temperature is None:
        temperature = arguments.temperature or TEMPERATURE
    fitted = partial(
        fit,
        models=models,
        version=version,
        temperature=temperature,
        seconds_per_token=found.seconds_per_token,
    )
    data = fitted(found.queries)
    data["scaling"] = [
        law.model_dump(mode="json", exclude_defaults=True)
        for law in laws(found.queries, found.models, temperature)
    ]
    try:
        read = profile.parse(data)
    except ValidationError as error:
        fault = error.errors()[0]
        raise _Wrong(f"the samples make no profile: {fault['loc']}: {fault['msg']}") from None
    beliefs = dict.fromkeys((query.query_id for query in found.queries), PRIOR)
    if estimated:
        answers, held = estimated
        beliefs |= zip(answers.query_ids, zip(held.mean.tolist(), held.sd.tolist(), strict=True), strict=True)
    compared = baselines(
        found.queries,
        Catalog.of(models, gathered.verifiers),
        read,
        folds([query.prompt or query.query_id for query in found.queries], FOLDS),
        partial(fitted, likeness=data["arms"][0]["alike"]),
        list(beliefs.values()),
    )
    return data | ({"baselines": compared} if compared else {})


def _estimated(found: Recordings) -> tuple[Answers, Held]:
    """What an estimator of difficulty is trained on, and what it says of each query where it is not."""
    from training import difficulty
    from training.baselines import FOLDS
    from training.difficulty_answers import Answers, AnswersError
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
    return answers, difficulty.held_out(answers, FOLDS)[0]


def _estimator(name: str, estimated: tuple[Answers, Held]) -> str:
    """The file of an estimator of difficulty, with what it is worth held out."""
    from training import difficulty
    from training.difficulty_figures import figures

    answers, held = estimated
    told = figures(held, answers.models, answers.right, answers.samples)
    trained = difficulty.train(answers, name)
    return difficulty.text(trained.record.model_copy(update={"figures": told})) + "\n"
