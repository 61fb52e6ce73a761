"""The commands `isoflop profile` and `isoflop replay`: what is in force, what differs, and who goes live."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from isoflop.errors import FailedPrecondition, InvalidArgument, IsoflopError, NotFound
from isoflop.request import ANSWER_TYPES
from isoflop.text import Style, line, si, table
from isoflop.v1.common_pb2 import Model
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from router import profile_diff, profiles, replay
from router.catalog import Catalog
from router.profile import BaselineRecord, ProfileError
from router.profiles import REPLAYS, ROLLOUT, Loaded, Rollout
from services.common import log
from services.common.catalog import CatalogError
from services.common.settings import MODELS
from services.generation import catalog as models

Run = Callable[[argparse.Namespace], int]

PLAIN = Style()

TYPES = ("number", "expression", "choice", "text")
"""Of answers that a recording can hold the truth of."""


def profile_command(parser: argparse.ArgumentParser) -> Run:
    """list, compare and change the profiles that the router plans on

    FOLDER is what the router's setting `profile` names; it follows changes without a restart. VERSION is a
    profile of the folder; for show and diff the path of a file will do.
    """
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument(
        "--folder", type=Path, default=_folder(), metavar="FOLDER", help=f"default: {_folder()}"
    )
    json_too = argparse.ArgumentParser(add_help=False)
    json_too.add_argument("--json", action="store_true", help="print JSON for machines")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, do: Run, help: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = commands.add_parser(
            name, help=help, description=help, parents=[where, *parents]
        )
        made.set_defaults(do=do)
        return made

    def version(made: argparse.ArgumentParser, name: str = "version", **more: Any) -> None:
        made.add_argument(name, metavar=name.upper(), **more)

    command("list", _list, "the profiles of the folder, and what each does", json_too)
    version(command("show", _show, "one profile (default: the live one)", json_too), nargs="?")
    diff = command("diff", _diff, "how two profiles differ, and what would be decided otherwise", json_too)
    version(diff, "a")
    version(diff, "b")
    _catalog_option(diff)
    add = command("add", _add, "put a profile file into the folder, under its version")
    add.add_argument("file", type=Path, metavar="FILE")
    shadow = command("shadow", _shadow, "decide nothing by a profile, and count what it would do otherwise")
    _or_off(shadow)
    canary = command("canary", _canary, "plan a share of the queries on a profile")
    _or_off(canary)
    canary.add_argument("--share", type=_share, default=0.05, help="of queries, above 0 (default 0.05)")
    live = command("live", _live, "plan all queries on a profile that a replay has found to be no worse")
    version(live)
    live.add_argument("--force", metavar="REASON", help="without a replay; the reason is recorded")
    command("rollback", _rollback, "make the profile live again that was live before, at once")

    def run(arguments: argparse.Namespace) -> int:
        do: Run = arguments.do
        try:
            return do(arguments)
        except ProfileError as error:
            raise IsoflopError(str(error)) from None

    return run


def replay_command(parser: argparse.ArgumentParser) -> Run:
    """play a new profile and the live one over labelled recordings: exit code 0 where it is no worse

    Recordings are JSON lines, one query under one model each: {"query_id", "model", "gold", "prompt"?,
    "samples": [{"answer" or "text", "tokens"}]}. A profile is worse where at some effort its accuracy is
    lower by more than the tolerance, or what its right answers are worth, less its FLOPs.
    """
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--profile", required=True, metavar="P", help="the new one: a version of the folder, or a file")
    add("--against", metavar="P", help="the one to compare with (default: the folder's live one)")
    add("--recordings", type=Path, nargs="+", required=True, metavar="FILE", help="gzip where it ends in .gz")
    add("--folder", type=Path, default=_folder(), metavar="FOLDER", help=f"of profiles; default: {_folder()}")
    _catalog_option(parser)
    add(
        "--estimator",
        type=Path,
        default=MODELS / "difficulty.json",
        metavar="FILE",
        help="of difficulty, as the router's; a query whose text is not recorded is estimated as average",
    )
    add(
        "--answer-type",
        choices=ANSWER_TYPES,
        default="expression",
        help="of all queries (default expression)",
    )
    add("--queries", type=_whole, default=0, metavar="N", help="at most (default: all)")
    add("--seeds", type=_whole, default=2, metavar="N", help="orders of each query's samples (default 2)")
    add(
        "--tolerance",
        type=_tolerance,
        default=replay.TOLERANCE,
        metavar="X",
        help=f"how much less is no worse, in right answers a query (default {replay.TOLERANCE:g})",
    )
    add(
        "--report",
        type=Path,
        metavar="FILE",
        help=f"default: FOLDER/{REPLAYS}/..., where `live` looks for it",
    )
    add("--json", action="store_true", help="print the report for machines")
    return _replay


def _replay(arguments: argparse.Namespace) -> int:
    log.configure("warning", "text")
    if not arguments.seeds:
        raise InvalidArgument("seeds", "1 or more")
    folder: Path = arguments.folder
    try:
        new = find(folder, arguments.profile)
        against = find(folder, arguments.against) if arguments.against else _live_path(folder)
        pair = replay.Candidates(
            profiles.load(new), profiles.sha256_of(new), profiles.load(against), profiles.sha256_of(against)
        )
    except ProfileError as error:
        raise IsoflopError(str(error)) from None
    report_path: Path | None = arguments.report
    if report_path is None and folder.is_dir():
        report_path = folder / REPLAYS / f"{pair.new.version}-against-{pair.against.version}.json"
    wanted = replay.Wanted(
        tuple(arguments.recordings),
        arguments.catalog,
        arguments.estimator,
        ANSWER_TYPES[arguments.answer_type],
        arguments.seeds,
        arguments.queries,
        arguments.tolerance,
    )
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("queries played", total=None)

        def advance(left: int) -> None:
            done = progress.tasks[task].completed + 1
            progress.update(task, completed=done, total=done + left)

        report = asyncio.run(replay.replay(pair, wanted, advance))
    if report_path:
        report_path.parent.mkdir(parents=True, exist_ok=True)
        profiles.write(report_path, json.dumps(report, indent=1).encode() + b"\n")
    print(json.dumps(report, indent=2) if arguments.json else _told(report))
    if report_path and not arguments.json:
        print(f"report: {report_path}")
    return 0 if report["no_worse"] else 1


def _told(report: dict[str, Any]) -> str:
    """The report for people."""
    rows = []
    for effort, each in report["efforts"].items():
        for role in ("profile", "against"):
            figures = each[role]
            rows.append(
                (
                    effort if role == "profile" else "",
                    line(report[role]["version"]),
                    f"{figures['accuracy']:.2%}",
                    si(figures["flops"]),
                    f"{figures['confidence']:.2%}",
                    f"{figures['ece']:.3f}",
                    *(
                        (_points(each[f"{what}_difference"]) for what in ("accuracy", "worth"))
                        if role == "profile"
                        else ("", "")
                    ),
                )
            )
    header = ("effort", "profile", "right", "FLOPs", "confidence", "ECE", "accuracy, points", "worth, points")
    lines = table("llrrrrrr", header, rows, PLAIN)
    if report["models_without_recordings"]:
        lines.append(f"planned without, as not recorded: {', '.join(report['models_without_recordings'])}")
    verdict = "no worse" if report["no_worse"] else "worse"
    within = (
        f"within {100 * report['tolerance']:g} points; {report['queries']} queries, {report['seeds']} seeds"
    )
    return "\n".join([*lines, f"{line(report['profile']['version'])} is {verdict} ({within})"])


def _points(difference: dict[str, Any]) -> str:
    low, high = difference["interval"]
    return f"{100 * difference['mean']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"


def _list(arguments: argparse.Namespace) -> int:
    folder: Path = arguments.folder
    rollout, fault = _rollout(folder)
    found = []
    for path in profiles.versions(folder) if folder.is_dir() else [folder]:
        try:
            loaded = profiles.load(path, versioned=folder.is_dir())
            name, wrong, roles = loaded.version, "", _roles(rollout, loaded.version)
            if not folder.is_dir():
                roles = ["live"]
        except ProfileError as error:
            name, wrong, roles = path.stem, str(error), _roles(rollout, path.stem)
        found.append(
            {
                "version": name,
                "roles": roles,
                "modified": _written(path),
                "sha256": profiles.sha256_of(path) if path.is_file() else "",
                "fault": wrong,
            }
        )
    if arguments.json:
        changes = [change.model_dump() for change in rollout.changes] if rollout else []
        print(json.dumps({"profiles": found, "changes": changes, "fault": fault}, indent=2))
        return 0
    rows = [
        (
            line(str(one["version"])),
            ", ".join(one["roles"]),
            str(one["modified"]),
            str(one["sha256"])[:12],
            line(str(one["fault"])),
        )
        for one in found
    ]
    print("\n".join(table("lllll", ("version", "role", "written", "sha256", "fault"), rows, PLAIN)))
    for change in rollout.changes[-5:] if rollout else ():
        said = f": {line(change.reason)}" if change.reason else ""
        print(f"{change.at}  {change.what} {change.version or 'off'}{said}")
    if fault:
        print(line(fault))
    return 0


def _show(arguments: argparse.Namespace) -> int:
    folder: Path = arguments.folder
    path = find(folder, arguments.version) if arguments.version else _live_path(folder)
    loaded = profiles.load(path)
    rollout, _ = _rollout(folder)
    arms = profile_diff.curves(loaded.profile)
    roles = _roles(rollout, loaded.version) if path.parent == folder else []
    written, sha256 = _written(path), profiles.sha256_of(path)
    if arguments.json:
        facts = {
            "version": loaded.version,
            "roles": roles,
            "modified": written,
            "sha256": sha256,
            "efforts": loaded.profile.efforts,
            "arms": [asdict(arm) for arm in arms],
            "baselines": {effort: plan.model_dump() for effort, plan in loaded.profile.baselines.items()},
        }
        print(json.dumps(facts, indent=2))
        return 0
    does = f" ({', '.join(roles)})" if roles else ""
    print(f"{line(loaded.version)}{does}, written {written}\nsha256 {sha256}\n")
    print("\n".join(_arms(arms)))
    worth = ", ".join(f"{name} {si(flops)}FLOPs" for name, flops in loaded.profile.efforts.items())
    print(f"\na right answer is worth: {worth}")
    if loaded.profile.baselines:
        print("\n".join(["", *_baselines(loaded.profile.baselines)]))
    return 0


def _baselines(plans: Mapping[str, BaselineRecord]) -> list[str]:
    """What the planner is compared with; where a plan is less often right, it is the best that there is."""
    rows = [
        (
            effort,
            plan_name(plan),
            f"{plan.accuracy:.1%}",
            f"{plan.policy_accuracy:.1%}",
            si(plan.flops),
            si(plan.policy_flops),
        )
        for effort, plan in plans.items()
    ]
    header = ("effort", "fixed plan", "right", "planner", "FLOPs", "planner")
    return table("llrrrr", header, rows, PLAIN)


def plan_name(plan: BaselineRecord) -> str:
    """A fixed plan in words."""
    name = f"{line(plan.model)} × {plan.strategy} × {plan.samples}"
    return f"{name}, greedy" if plan.temperature == 0 else name


def _arms(arms: Sequence[profile_diff.Curves]) -> list[str]:
    rows = [
        (
            line(arm.model),
            f"{arm.temperature:g}",
            *(f"{value:.1%}" for value in arm.accuracy),
            *(f"{value:.0f}" for value in arm.tokens),
        )
        for arm in arms
    ]
    header = ("model", "T", "right: easy", "middle", "hard", "tokens: easy", "middle", "hard")
    return table("lrrrrrrr", header, rows, PLAIN)


def _diff(arguments: argparse.Namespace) -> int:
    folder: Path = arguments.folder
    a, b = (profiles.load(find(folder, name)) for name in (arguments.a, arguments.b))
    found = profile_diff.difference(a.profile, b.profile, catalog_of(arguments.catalog))
    if arguments.json:
        print(json.dumps({"a": a.version, "b": b.version, **asdict(found)}, indent=2))
        return 0
    print(f"from {line(a.version)} to {line(b.version)}\n")
    for word, arms in (("added", found.added), ("gone", found.gone)):
        if arms:
            print("\n".join([f"{word}:", *_arms(arms), ""]))
    rows = [
        (
            line(old.model),
            f"{old.temperature:g}",
            *(f"{100 * (y - x):+.1f}" for x, y in zip(old.accuracy, new.accuracy, strict=True)),
            *(f"{y / x - 1:+.0%}" for x, y in zip(old.tokens, new.tokens, strict=True)),
        )
        for old, new in found.both
    ]
    if rows:
        header = ("model", "T", "points: easy", "middle", "hard", "tokens: easy", "middle", "hard")
        print("\n".join([*table("lrrrrrrr", header, rows, PLAIN), ""]))
    if found.ceilings:
        print("\n".join([*_ceilings(found.ceilings), ""]))
    for name, (x, y) in found.efforts.items():
        if x != y:
            print(
                f"effort {name}: a right answer is worth {si(x)}FLOPs, then {si(y)}FLOPs ({y / x - 1:+.0%})"
            )
    if found.states:
        print(f"decided otherwise: {found.otherwise} of {found.states} reference states")
    else:
        print("the catalogue has no model that both have measured: decisions are not compared")
    return 0


def _ceilings(changed: Sequence[profile_diff.Ceiling]) -> list[str]:
    """Those that surely changed, and how many others did."""
    rows = [
        (
            line(one.model),
            line(f"{one.strategy} by {one.verifier}" if one.verifier else one.strategy),
            "all" if one.bin is None else f"bin {one.bin[0]} of {one.bin[1]}",
            _limit(one.before),
            _limit(one.after),
        )
        for one in changed
        if one.is_certain
    ]
    lines = table("lllrr", ("model", "strategy", "queries", "ceiling", "then"), rows, PLAIN) if rows else []
    within = len(changed) - len(rows)
    return [*lines, f"ceilings that moved within their intervals: {within}"] if within else lines


def _limit(limit: profile_diff.Limit | None) -> str:
    if limit is None:
        return "none found"
    return f"{limit.ceiling:.1%} ({100 * limit.low:.1f} to {100 * limit.high:.1f})"


def _add(arguments: argparse.Namespace) -> int:
    folder, path = _writable(arguments.folder, make=True), arguments.file
    loaded = profiles.load(path)
    try:
        TypeAdapter(profiles.Version).validate_python(loaded.version)
    except ValidationError:
        name = loaded.version[:100]
        raise InvalidArgument("file", f"its version {name!r} cannot be the name of a file") from None
    place = profiles.file_of(folder, loaded.version)
    if place.name == ROLLOUT:
        raise InvalidArgument("file", f"its version {loaded.version!r} is the name of another file")
    with profiles.changing(folder):
        if not place.exists():
            profiles.write(place, path.read_bytes())
        elif profiles.sha256_of(place) != profiles.sha256_of(path):
            raise FailedPrecondition(
                f"{place} is another profile of this version: give the new one a version of its own"
            )
    print(f"{loaded.version} is in {folder}")
    return 0


def _shadow(arguments: argparse.Namespace) -> int:
    version = _trial(arguments)
    _change(arguments.folder, lambda rollout: rollout.with_shadow(version, _now()))
    print(f"{version} is shadow" if version else "there is no shadow")
    return 0


def _canary(arguments: argparse.Namespace) -> int:
    version, share = _trial(arguments), arguments.share
    canary = profiles.Canary(version=version, share=share) if version else None
    _change(arguments.folder, lambda rollout: rollout.with_canary(canary, _now()))
    print(f"{version} is canary: {share:g} of queries" if version else "there is no canary")
    return 0


def _live(arguments: argparse.Namespace) -> int:
    folder = _writable(arguments.folder)
    version, reason = _own(folder, arguments.version).version, arguments.force
    if reason is not None and not reason.strip():
        raise InvalidArgument("force", "say why: it is recorded")
    with profiles.changing(folder) as write:
        if not (folder / ROLLOUT).exists():
            first = profiles.Change(at=_now(), what="live", version=version, reason="the first")
            write(Rollout(live=version, changes=(first,)))
            print(f"{version} is live, the first of this folder")
            return 0
        rollout = profiles.read_rollout(folder)
        if rollout.live == version:
            raise FailedPrecondition(f"{version} is live already")
        if reason is None:
            shas = [profiles.sha256_of(profiles.file_of(folder, one)) for one in (version, rollout.live)]
            may, why = replay.verdict(replay.read_reports(folder / REPLAYS), *shas)
            if not may:
                raise FailedPrecondition(
                    f"{version} does not go live: {why}. `isoflop replay --profile {version} --folder "
                    f"{folder} --recordings FILE...` makes one; --force REASON goes without"
                )
        else:
            why = f"forced: {reason.strip()}"
        write(rollout.made_live(version, _now(), why))
    print(f"{version} is live instead of {rollout.live} ({why}); `isoflop profile rollback` undoes it")
    return 0


def _rollback(arguments: argparse.Namespace) -> int:
    folder = _writable(arguments.folder)

    def change(rollout: Rollout) -> Rollout:
        after = rollout.rolled_back(_now())
        _own(folder, after.live)  # Where it is damaged, better said here than by the router.
        return after

    before, after = _change(folder, change)
    ended = f"; {before.canary.version} is no canary any more" if before.canary else ""
    print(f"{after.live} is live again instead of {before.live}{ended}")
    return 0


def _change(folder: Path, change: Callable[[Rollout], Rollout]) -> tuple[Rollout, Rollout]:
    """Change rollout.json; what it was and is."""
    with profiles.changing(folder) as write:
        before = profiles.read_rollout(folder)
        after = change(before)
        write(after)
    return before, after


def find(folder: Path, name: str) -> Path:
    """The file of a version of the folder, or the file of that path; raises NotFound."""
    place = profiles.file_of(folder, name)
    if place.parent == folder and place.is_file():
        return place
    if Path(name).is_file():
        return Path(name)
    there = ", ".join(path.stem for path in profiles.versions(folder)) if folder.is_dir() else ""
    raise NotFound(f"there is no profile {name!r} in {folder}{f', which has {there}' if there else ''}")


def _own(folder: Path, version: str) -> Loaded:
    """A good profile of the folder, by its version; raises NotFound or ProfileError."""
    path = find(folder, version)
    if path.parent != folder:
        raise NotFound(
            f"{path} is not in the folder: `isoflop profile add {path} --folder {folder}` puts it there"
        )
    return profiles.load(path, versioned=True)


def _trial(arguments: argparse.Namespace) -> str | None:
    """The version that a command names; None: --off."""
    if arguments.off == (arguments.version is not None):
        raise InvalidArgument("version", "name one, or give --off")
    folder = _writable(arguments.folder)
    return None if arguments.off else _own(folder, arguments.version).version


def _live_path(folder: Path) -> Path:
    if not folder.is_dir():
        return folder
    return profiles.file_of(folder, profiles.read_rollout(folder).live)


def _rollout(folder: Path) -> tuple[Rollout | None, str]:
    """What is in force, or why it cannot be told."""
    if not folder.is_dir():
        return None, ""
    try:
        return profiles.read_rollout(folder), ""
    except ProfileError as error:
        return None, str(error)


def _roles(rollout: Rollout | None, version: str) -> list[str]:
    if rollout is None:
        return []
    canary = rollout.canary
    roles = {
        "live": rollout.live == version,
        "previous": rollout.previous == version,
        f"canary {canary.share:g}" if canary else "canary": bool(canary and canary.version == version),
        "shadow": rollout.shadow == version,
    }
    return [role for role, has in roles.items() if has]


def _writable(folder: Path, *, make: bool = False) -> Path:
    """A folder of profiles; raises FailedPrecondition where it is one file."""
    if folder.is_file():
        raise FailedPrecondition(
            f"{folder} is one profile, and live: for more, make a folder of it with `isoflop profile add "
            f"{folder} --folder FOLDER` and `isoflop profile live VERSION --folder FOLDER`, and have the "
            "router's setting profile name the folder"
        )
    if make:
        folder.mkdir(parents=True, exist_ok=True)
    if not folder.is_dir():
        raise NotFound(f"there is no folder {folder}: `isoflop profile add FILE --folder {folder}` makes it")
    return folder


def catalog_of(path: Path) -> Catalog:
    """The models of a catalogue as far as plans depend on them, none started. Raises InvalidArgument."""
    try:
        read = models.load(path)
        return Catalog.of(
            [
                Model(
                    name=entry.name,
                    shape=replay.shape_of(entry, path.parent).message(),
                    context=getattr(entry, "context", 0),
                    price=entry.price.message(read.currency),
                )
                for entry in read.models
            ],
            [],
        )
    except CatalogError as error:
        raise InvalidArgument("catalog", str(error)) from None


def _folder() -> Path:
    return Path(os.environ.get("ISOFLOP_PROFILE") or MODELS / "profile.json")


def _catalog_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--catalog",
        type=Path,
        default=Path(os.environ.get("ISOFLOP_CATALOG") or MODELS / "catalog.yaml"),
        metavar="FILE",
        help="of models, whose shapes and prices count (default: ISOFLOP_CATALOG, or the embedded models)",
    )


def _or_off(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("version", metavar="VERSION", nargs="?")
    parser.add_argument("--off", action="store_true", help="end it")


def _number(word: str, low: float, high: float, what: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = high + 1
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{word!r} is no {what}")
    return value


def _share(word: str) -> float:
    return _number(word, sys.float_info.min, 1.0, "share of queries: above 0, at most 1")


def _tolerance(word: str) -> float:
    return _number(word, 0.0, 1.0, "share of right answers: from 0 to 1")


def _whole(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r} is no whole number")
    return int(word)


def _written(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
