"""The headlines: what more compute at inference time buys, on held-out problems, from stored samples.

    python -m benchmarks.headlines                  # all of it; goes on where it was stopped
    python -m benchmarks.headlines --only-samples   # sample, and no more
    python -m benchmarks.headlines --report         # only from what is stored
    python -m benchmarks.headlines --reduced        # a small one, for CI

Samples come from the generation service's core and scores from verification's, in this machine's processes,
without a router; all are kept under `build/samples/` (see `training/store.py`), where the model card and
calibration find them too. The claims, and what each demands, are in `benchmarks/headlines_claims.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from isoflop.v1.common_pb2 import Model
from isoflop.v1.verification_pb2 import ChainScoring
from rich.console import Console
from rich.table import Table

from benchmarks.headlines_claims import Row, all_rows
from benchmarks.headlines_data import Measured, NotMeasured, Prices, Samples, cell_of, cell_rates, load
from benchmarks.headlines_report import write_page, write_queries, write_rows
from benchmarks.scores import ScoreJob, ScoreShare, score_share, unscored, verifier_sha256
from services.common.catalog import CatalogError
from services.common.settings import MODELS
from services.generation import catalog as models
from services.generation.backends.llamacpp import Header
from services.generation.catalog import LlamaCppEntry
from services.verification import catalog as verifiers
from services.verification import engines
from training.resampling import DRAWS, RESAMPLES
from training.samples import SLOTS, sample
from training.shares import WorkFailed, dealt, keep
from training.splits import FOLDER, Problem, first_of_each_group
from training.store import FOLDER as STORE
from training.store import Lane, read, repair, sha256_of

ROOT: Final = Path(__file__).parents[1]
PACKAGES: Final = ("isoflop-suite", "xllamacpp", "onnxruntime", "numpy", "matplotlib")
VERIFIER: Final = "abacus-prm"
"""Taken where the catalogue has it, else the catalogue's first."""


@dataclass(frozen=True)
class Options:
    """What is measured, and how."""

    models: tuple[str, ...] = ()
    """None: all that the catalogue runs by llama.cpp."""
    samples: int = 256
    """Of each held-out problem at the main temperature."""
    problems: int = 500
    """Held-out problems, equal numbers of each group."""
    temperature: float = 0.7
    """The main one: that of the reference (Wang et al., arXiv 2203.11171)."""
    temperatures: tuple[float, ...] = (0.3, 0.5, 0.7, 1.0, 1.3)
    """Those compared."""
    temperature_samples: int = 64
    """Of each problem, at each of them."""
    temperature_problems: int = 200
    """The first of each group."""
    cell_problems: int = 20
    """Calibration problems of each cell of group and kind, at most."""
    cell_samples: int = 8
    """Of each of them."""
    verifier: str = ""
    """None: VERIFIER, or the catalogue's first."""


REDUCED: Final = Options(
    models=("abacus-s",),
    samples=4,
    problems=20,
    temperatures=(0.7, 1.0),
    temperature_samples=4,
    temperature_problems=10,
    cell_problems=2,
    cell_samples=2,
)


@dataclass(frozen=True)
class Places:
    """Where things are."""

    store: Path = STORE
    results: Path = ROOT / "benchmarks" / "results"
    page: Path = ROOT / "docs" / "results" / "headlines.md"
    catalog: Path = MODELS / "catalog.yaml"
    verifiers: Path = MODELS / "verifiers.yaml"


class Run:
    """One run: what it needs, what is there of it, and what comes of it."""

    def __init__(self, options: Options, places: Places, workers: int, slots: int) -> None:
        """Raises CatalogError, for a model or verifier that is not there too, and OSError."""
        self.options, self.places = options, places
        self._workers, self._slots = workers, slots
        entries = {e.name: e for e in models.load(places.catalog).models if isinstance(e, LlamaCppEntry)}
        if unknown := set(options.models) - set(entries):
            raise CatalogError(f"there is no model {', '.join(sorted(unknown))}")
        chosen = [entries[name] for name in options.models] if options.models else list(entries.values())
        paths = {entry.name: places.catalog.parent / entry.path for entry in chosen}
        self.models = sorted(
            (Model(name=name, shape=Header.read(path).shape) for name, path in paths.items()),
            key=lambda model: model.shape.active_parameters,
        )
        self.hashes = {name: sha256_of(path) for name, path in paths.items()}
        names = [entry.name for entry in verifiers.load(places.verifiers).verifiers]
        self.verifier = options.verifier or (VERIFIER if VERIFIER in names else names[0])
        self.verifier_hash = verifier_sha256(places.verifiers, self.verifier)
        self.heldout = first_of_each_group("heldout.jsonl", options.problems)
        self.few = first_of_each_group("heldout.jsonl", options.temperature_problems)
        self.calibration = first_of_each_cell(options.cell_problems)

    def lane(self, model: Model, temperature: float) -> Lane:
        """A model at a temperature."""
        return Lane(model.name, self.hashes[model.name], temperature)

    def wanted(self) -> list[tuple[Lane, Sequence[Problem], int]]:
        """Which samples are needed, the main ones first; one model's lanes follow each other."""
        options, main = self.options, self.options.temperature
        needed: list[tuple[Lane, Sequence[Problem], int]] = []
        for model in self.models:
            needed += [
                (self.lane(model, 0.0), self.heldout, 1),
                (self.lane(model, main), self.calibration, options.cell_samples),
                (self.lane(model, main), self.heldout, options.samples),
                *(
                    (self.lane(model, degree), self.few, options.temperature_samples)
                    for degree in options.temperatures
                ),
            ]
        return needed

    def sample(self) -> None:
        """Make what is missing, and keep it as it comes."""
        places = self.places
        done = sample(
            self.wanted(),
            catalog=places.catalog,
            folder=places.store,
            workers=self._workers,
            slots=self._slots,
        )
        self._note_speed("samples", *done)

    def score(self) -> None:
        """Score what has no scores, and keep them as they come."""

        def path(lane: Lane) -> Path:
            return lane.scores_path(self.places.store, self.verifier, self.verifier_hash)

        jobs: list[ScoreJob] = []
        for model in self.models:
            lane = self.lane(model, self.options.temperature)
            rows = read(lane.path(self.places.store))
            jobs += unscored(lane, self.heldout, rows, repair(path(lane)))
        total = sum(len(job.texts) for job in jobs)
        places = self.places
        parts = dealt(jobs, self._workers)
        shares = [ScoreShare(places.verifiers, self.verifier, part) for part in parts]
        done = keep(score_share, shares, "scores", total, self.places.store, path)
        self._note_speed("scores", *done)

    def _note_speed(self, what: str, tokens: int, seconds: float) -> None:
        """Beside the store, for the manifest."""
        if not tokens:
            return
        with (self.places.store / "speed.jsonl").open("a") as file:
            told = {"what": what, "tokens": tokens, "seconds": round(seconds, 1), "workers": self._workers}
            file.write(json.dumps(told | {"slots": self._slots, "date": _now()}) + "\n")

    def measured(self) -> list[Measured]:
        """Everything that is stored, as arrays; raises NotMeasured where a problem has no sample."""
        return [self._measured(model) for model in self.models]

    def _measured(self, model: Model) -> Measured:
        options, prices = self.options, Prices(model)
        main = self.lane(model, options.temperature)
        rows = read(main.path(self.places.store))
        scores = read(main.scores_path(self.places.store, self.verifier, self.verifier_hash))
        sampled = load(self.heldout, rows, scores, options.samples, prices)
        greedy_rows = read(self.lane(model, 0.0).path(self.places.store))
        by_temperature: dict[float, list[Samples]] = {}
        for degree in options.temperatures:
            own = rows if degree == main.temperature else read(
                self.lane(model, degree).path(self.places.store)
            )  # fmt: skip
            with suppress(NotMeasured):  # the claims that need it say so
                by_temperature[degree] = load(self.few, own, [], options.temperature_samples, prices)
        return Measured(
            model,
            self.heldout,
            sampled,
            load(self.heldout, greedy_rows, [], 1, prices),
            cell_rates(self.calibration, rows, options.cell_samples),
            self._scoring(),
            by_temperature,
        )

    def _scoring(self) -> str:
        """The verifier's own rule from step scores to a chain's."""
        return _own_scoring(self.places.verifiers, self.verifier)

    def report(self) -> list[Row]:
        """Everything that is written, from what is stored; its rows."""
        measured = self.measured()
        rows = all_rows(measured)
        manifest = self.manifest(measured)
        self.places.results.mkdir(parents=True, exist_ok=True)
        self.places.page.parent.mkdir(parents=True, exist_ok=True)
        write_rows(self.places.results / "headlines.json", rows)
        write_queries(self.places.results / "headlines_queries.jsonl", measured)
        path = self.places.results / "headlines_manifest.json"
        path.write_text(json.dumps(manifest, indent=1) + "\n")
        write_page(self.places.page, rows, measured, manifest)
        return rows

    def manifest(self, measured: Sequence[Measured]) -> dict[str, Any]:
        """What the figures were made with, and nothing that tells of whose machine."""
        every = [
            s
            for one in measured
            for s in (*one.samples, *(t for d in one.by_temperature.values() for t in d))
        ]
        speed = self.places.store / "speed.jsonl"
        return {
            "date": _now(),
            "options": asdict(self.options),
            "models": {one.name: {"sha256": self.hashes[one.name], "samples": one.most} for one in measured},
            "verifier": {
                "name": self.verifier,
                "sha256": self.verifier_hash,
                "scoring": self._scoring(),
                "scored": all(one.verified for one in measured),
            },
            "problems": {
                path.name: sha256_of(path)
                for path in (FOLDER / "heldout.jsonl", FOLDER / "calibration.jsonl")
            },
            "seeds": {
                "samples": "first four bytes of the prompt's SHA-256, halved; sample i adds i",
                "subsets": 0,
                "bootstrap": 0,
            },
            "draws": DRAWS,
            "resamples": RESAMPLES,
            "stored": {"samples": sum(len(s.answers) for s in every), "tokens": sum(s.tokens for s in every)},
            "runs": [json.loads(line) for line in speed.read_text().splitlines()] if speed.exists() else [],
            "versions": {"python": platform.python_version()} | _versions(PACKAGES),
            "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.system()},
        }


def first_of_each_cell(most: int) -> list[Problem]:
    """The first calibration problems of each cell of group and kind."""
    cells: dict[tuple[int, str], list[Problem]] = {}
    for problem in first_of_each_group("calibration.jsonl", 1_000_000):
        cells.setdefault(cell_of(problem), []).append(problem)
    return [problem for cell in cells.values() for problem in cell[:most]]


def _own_scoring(path: Path, name: str) -> str:
    async def ask() -> str:
        backends = engines.open_backends(path)
        try:
            told = [await backend.describe() for backend in backends if backend.name == name]
        finally:
            for backend in backends:
                await backend.close()
        rule = told[0].scoring
        return ChainScoring.Name(rule).removeprefix("CHAIN_SCORING_").lower() if rule else "mean"

    return asyncio.run(ask())


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _versions(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*: (.+)", path.read_text()) if path.exists() else None
    return match[1] if match else platform.processor() or platform.machine()


def show(rows: Iterable[Row]) -> None:
    """The headlines on the terminal."""
    table = Table("claim", "of", "reference", "measured", "95 %", "holds")
    for row in rows:
        if row.headline:
            measured = "not measured" if row.measured is None else f"{row.measured:+.2f}"
            told = f"{row.interval[0]:+.2f} to {row.interval[1]:+.2f}" if row.interval else ""
            table.add_row(row.claim, row.about, row.reference, measured, told, "yes" if row.holds else "no")
    Console().print(table)


def _temperatures(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.headlines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    full, places = Options(), Places()
    parser.add_argument("--models", default="", help="names, with commas (default: all of the catalogue)")
    parser.add_argument("--samples", type=int, help=f"of each problem (default {full.samples})")
    parser.add_argument("--problems", type=int, help=f"held-out problems (default {full.problems})")
    parser.add_argument("--temperature", type=float, help=f"the main one (default {full.temperature:g})")
    compared = ",".join(f"{degree:g}" for degree in full.temperatures)
    parser.add_argument("--temperatures", type=_temperatures, help=f"those compared (default {compared})")
    parser.add_argument("--verifier", default="", help=f"its name (default {VERIFIER}, or the first)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--only-samples", action="store_true", help="sample, and neither score nor report")
    what.add_argument("--report", action="store_true", help="report from what is stored; nothing is made")
    parser.add_argument("--reduced", action="store_true", help="one model, few problems, 4 samples")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: cores)")
    parser.add_argument("--slots", type=int, default=SLOTS, help=f"samples side by side (default {SLOTS})")
    parser.add_argument("--store", type=Path, default=places.store, help="folder of samples and scores")
    parser.add_argument("--results", type=Path, help="folder for headlines*.json (default: checked-in)")
    parser.add_argument("--page", type=Path, help="headlines.md; pictures beside it (default: checked-in)")
    given = parser.parse_args(arguments)
    if given.reduced and not (given.results and given.page):
        parser.error("--reduced does not replace the checked-in results: name --results and --page")
    options = REDUCED if given.reduced else full
    for name in ("samples", "problems", "temperature", "temperatures"):
        if getattr(given, name) is not None:
            options = replace(options, **{name: getattr(given, name)})
    options = replace(
        options,
        temperature_samples=min(options.temperature_samples, options.samples),
        temperature_problems=min(options.temperature_problems, options.problems),
    )
    if given.models:
        options = replace(options, models=tuple(given.models.split(",")))
    options = replace(options, verifier=given.verifier)
    places = replace(
        places, store=given.store, results=given.results or places.results, page=given.page or places.page
    )
    try:
        run = Run(options, places, given.workers, given.slots)
        if not given.report:
            run.sample()
        if not given.report and not given.only_samples:
            run.score()
        if not given.only_samples:
            show(run.report())
    except (CatalogError, NotMeasured, WorkFailed, OSError) as error:
        raise SystemExit(f"bench-headlines: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("stopped; what was made is kept, and the same command goes on") from None


if __name__ == "__main__":
    main()
