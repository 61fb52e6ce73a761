"""How well difficulty is told from text: on held-out abacus problems, and on MATH-500.

    python -m benchmarks.difficulty [--calibration FILE] [--heldout FILE] [--shared FOLDER]
        [--embedding FOLDER]

(a) An estimator is trained on the calibration answers of the embedded models and judged on held-out ones.
Both files are of the form of `training/difficulty_answers.py`: the first is made of the recording that
`isoflop calibrate` leaves, and the second of stored samples, by

    python -m training.difficulty_answers build/difficulty/calibration.jsonl build/calibration.recording.jsonl
    python -m training.difficulty_answers build/difficulty/heldout.jsonl build/samples/*-t0.7.jsonl.gz \\
        --problems training/problems/heldout.jsonl

(b) MATH-500 under seven recorded models, in five folds by problem, with and without sentence embeddings.
Its levels are joined on the normalised text of the problem. A part whose files are not there is left out,
and the page says so. Intervals are 95 % bootstrap over problems. Baselines are judged by the same models'
curves: beliefs of another mean and sd.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from benchmarks import sources
from services.difficulty.embedding import Embedding, EmbeddingError
from services.difficulty.estimator import Estimator
from training import difficulty, irt
from training.difficulty_answers import Answers, AnswersError, convert, folds, normalised, read, write
from training.difficulty_figures import LEVELS, Held, chances, coverage, spearman

mpl.use("Agg")
import matplotlib.pyplot as plt

Array = NDArray[np.float64]

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "difficulty"
FOLDS = 5
RESAMPLES = 1000
TIMED = 200
"""Estimates that are timed."""
SAID = ("spearman", "ece", "brier_skill", "auc")
NAMES = {"spearman": "rank correlation", "ece": "ECE", "brier_skill": "Brier skill", "auc": "AUC"}

Baseline = Callable[[Answers], Array]
"""One number for each query, shape (Q,): a single feature that difficulty is regressed on."""


def summary(held: Held, answers: Answers) -> dict[str, Any]:
    """The figures, with intervals over problems, and for each model."""

    def one(part: Held, right: Array, samples: Array) -> list[float]:
        told = chances(part.p_right, right, samples)
        rank = spearman(part.mean, part.difficulty)
        return [rank, *(told[name] for name in SAID[1:]), *coverage(part).values()]

    rng = np.random.default_rng(0)
    count = len(held.mean)
    values = one(held, answers.right, answers.samples)
    again = np.array(
        [
            one(held.of(at), answers.right[at], answers.samples[at])
            for at in rng.integers(0, count, (RESAMPLES, count))
        ]
    )
    # Where a resample has no say (a constant has no rank), none of the interval has.
    low, high = np.quantile(again, [0.025, 0.975], axis=0)
    names = [*SAID, *(f"coverage_{100 * level:g}" for level in LEVELS)]
    return {
        "queries": count,
        **{
            name: {"value": value, "low": a, "high": b}
            for name, value, a, b in zip(names, values, low.tolist(), high.tolist(), strict=True)
        },
        "models": {
            model: chances(held.p_right[:, [m]], answers.right[:, [m]], answers.samples[:, [m]])
            for m, model in enumerate(answers.models)
        },
    }


def rank_gain(with_it: Held, without: Held) -> dict[str, float]:
    """Rank correlation that something adds, paired over problems, with its interval."""
    rng = np.random.default_rng(1)
    count = len(without.mean)

    def gain(at: NDArray[np.int64]) -> float:
        parts = [held.of(at) for held in (with_it, without)]
        first, second = (spearman(part.mean, part.difficulty) for part in parts)
        return first - second

    again = [gain(at) for at in rng.integers(0, count, (RESAMPLES, count))]
    low, high = np.quantile(again, [0.025, 0.975])
    return {"value": gain(np.arange(count)), "low": float(low), "high": float(high)}


def baseline(train: Answers, test: Answers, feature: Baseline | None) -> Held:
    """Difficulty by one feature alone: a normal belief around a line, of one sd; none: the mean of all."""
    fit = irt.fit(train.right, train.samples)
    line = np.zeros(2)
    if feature:
        line = np.polyfit(feature(train), fit.difficulty, 1)
    else:
        line[1] = fit.difficulty.mean()
    own = np.zeros(len(train.prompts)) if feature is None else feature(train)
    other = np.zeros(len(test.prompts)) if feature is None else feature(test)
    variance = ((fit.difficulty - np.polyval(line, own)) ** 2 + fit.difficulty_sd**2).mean()
    mean: Array = np.polyval(line, other).astype(np.float64)
    sd = np.full(len(other), float(np.sqrt(variance)))
    nodes, weights = np.polynomial.hermite_e.hermegauss(31)
    spread = mean[:, None, None] + sd[:, None, None] * nodes
    chance = 1 / (1 + np.exp(-fit.slope[:, None] * (fit.ability[:, None] - spread)))
    p_right = chance @ (weights / weights.sum())
    after = irt.posteriors(test.right, test.samples, fit.ability, fit.slope)
    return Held(mean, sd, p_right, np.full_like(p_right, np.nan), *after)


def in_folds(answers: Answers, judge: Callable[[Answers, Answers], Held]) -> Held:
    """Each query as judged by what the other folds teach."""
    fold = folds(answers.prompts, FOLDS)
    ats = [np.flatnonzero(fold == number) for number in range(FOLDS)]
    parts = [judge(answers.of(fold != number), answers.of(at)) for number, at in enumerate(ats)]
    order = np.argsort(np.concatenate(ats))
    joined = zip(*(vars(part).values() for part in parts), strict=True)
    return Held(*(np.concatenate(values)[order] for values in joined))


def length(answers: Answers) -> Array:
    """Of the prompt, on a log scale."""
    return np.log1p([float(len(prompt)) for prompt in answers.prompts])


def abacus(calibration: Path, heldout: Path, progress: Progress) -> dict[str, Any]:
    """Part (a); raises AnswersError or OSError."""
    train, test = read(calibration).answers, read(heldout).answers
    if train.models != test.models:
        raise AnswersError(f"{heldout}: answers of {test.models}, but {calibration} of {train.models}")
    task = progress.add_task("abacus", total=4)
    trained = difficulty.train(train, "benchmark")
    progress.advance(task)
    held = {"estimator": difficulty.judged(trained, test)}
    progress.advance(task)
    held["length of the prompt"] = baseline(train, test, length)
    held["mean of all"] = baseline(train, test, None)
    progress.advance(task)
    rows = {name: summary(one, test) for name, one in held.items()}
    progress.advance(task)
    return {
        "title": "Abacus, held out",
        "trained_on": len(train.prompts),
        "way": trained.way,
        "rmse": trained.errors,
        "rows": rows,
        "reliability": reliability(held["estimator"], test),
        "tokens": tokens_told(held["estimator"], test),
        "cost": cost(Estimator(trained.record), test.prompts),
    }


def math500(shared: Path, embedding: Embedding | None, progress: Progress) -> dict[str, Any]:
    """Part (b); raises AnswersError or OSError."""
    path = BUILD / "math500.jsonl"
    write(path, convert([shared / "recordings" / "math500.jsonl.gz"]))
    answers = read(path).answers
    lines = (shared / "queries" / "math500.jsonl").read_text(encoding="utf-8").splitlines()
    levels = {
        normalised(row["problem"]): float(row["level"].removeprefix("Level "))
        for row in map(json.loads, lines)
    }
    known = np.array([normalised(prompt) in levels for prompt in answers.prompts])
    answers = answers.of(known)
    task = progress.add_task("MATH-500", total=(3 if embedding else 1) * FOLDS + 3)

    def step() -> None:
        progress.advance(task)

    estimated, ways = difficulty.held_out(answers, FOLDS, done=step)
    held = {"estimator": estimated}
    made: dict[str, Any] = {}
    if embedding:
        vectors, made = embedded(answers.prompts, embedding, progress)
        given = (embedding.name, vectors)
        held["estimator, embeddings may be taken"], ways_too = difficulty.held_out(
            answers, FOLDS, given, done=step
        )
        held["estimator, embeddings must be taken"], _ = difficulty.held_out(
            answers, FOLDS, given, difficulty.WITH_SENTENCES, step
        )
        made["ways"] = ways_too
        made["gain"] = rank_gain(held["estimator, embeddings may be taken"], estimated)
        made["gain_where_taken"] = rank_gain(held["estimator, embeddings must be taken"], estimated)
    step()
    features: dict[str, Baseline | None] = {
        "length of the prompt": length,
        "level by the problem's authors": lambda some: np.array(
            [levels[normalised(p)] for p in some.prompts]
        ),
        "mean of all": None,
    }
    for name, feature in features.items():
        held[name] = in_folds(answers, partial(baseline, feature=feature))
    step()
    rows = {name: summary(one, answers) for name, one in held.items()}
    step()
    trained = difficulty.train(answers, "benchmark")
    return {
        "title": "MATH-500, seven recorded models, five folds",
        "recordings": ["math500"],
        "joined": int(known.sum()),
        "way": ", ".join(ways),
        "rmse": trained.errors,
        "rows": rows,
        "reliability": reliability(estimated, answers),
        "tokens": tokens_told(estimated, answers),
        "cost": cost(Estimator(trained.record), answers.prompts),
        "embedding": made,
    }


def embedded(prompts: list[str], embedding: Embedding, progress: Progress) -> tuple[Array, dict[str, Any]]:
    """The embeddings, from the store where it has them, and what one costs."""
    digest = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:8]
    path = BUILD / f"{embedding.name}-{digest}.npy"
    if path.exists():
        vectors = np.load(path)
    else:
        parts = [embedding.embed([p])[0] for p in progress.track(prompts, description="embedding")]
        vectors = np.concatenate(parts)
        np.save(path, vectors)
    begin, flops = time.process_time(), 0.0
    some = prompts[:: max(1, len(prompts) // 30)]
    for prompt in some:
        flops += embedding.embed([prompt])[1]
    seconds = time.process_time() - begin
    return vectors, {
        "name": embedding.name,
        "cpu_ms_per_query": 1000 * seconds / len(some),
        "flops_per_query": flops / len(some),
    }


def cost(estimator: Estimator, prompts: list[str]) -> dict[str, float]:
    """CPU time and FLOPs of one estimate, features included, embedding not; and of a prompt of 1 MB."""
    times = []
    for at in range(TIMED):
        begin = time.process_time_ns()
        estimator.estimate(prompts[at % len(prompts)])
        times.append((time.process_time_ns() - begin) / 1e6)
    long = (" ".join(prompts[:50]) + " ") * (10**6 // len(" ".join(prompts[:50])) + 1)
    begin = time.process_time_ns()
    for _ in range(20):
        estimator.estimate(long)
    return {
        "cpu_ms_mean": float(np.mean(times)),
        "cpu_ms_median": float(np.median(times)),
        "cpu_ms_p95": float(np.quantile(times, 0.95)),
        "cpu_ms_1_mb": (time.process_time_ns() - begin) / 20e6,
        "flops": estimator.flops,
    }


def reliability(held: Held, answers: Answers) -> list[dict[str, float]]:
    """Tenths of the samples by rising chance: what was said, what came true, with its interval."""
    p, right, samples = held.p_right.ravel(), answers.right.ravel(), answers.samples.ravel()
    order = np.argsort(p, kind="stable")
    problem = np.repeat(np.arange(len(held.mean)), len(answers.models))
    share = (np.cumsum(samples[order]) - samples[order] / 2) / samples.sum()
    rng = np.random.default_rng(2)
    found = []
    for tenth in range(10):
        at = order[(share >= tenth / 10) & (share < (tenth + 1) / 10)]
        if not samples[at].sum():
            continue
        problems = np.unique(problem[at])
        hits = np.bincount(problem[at], right[at], len(held.mean))
        asked = np.bincount(problem[at], samples[at], len(held.mean))
        drawn = problems[rng.integers(0, len(problems), (RESAMPLES, len(problems)))]
        again = hits[drawn].sum(1) / np.maximum(asked[drawn].sum(1), 1)
        low, high = np.quantile(again, [0.025, 0.975])
        found.append(
            {
                "said": float((p[at] * samples[at]).sum() / samples[at].sum()),
                "right": float(right[at].sum() / samples[at].sum()),
                "low": float(low),
                "high": float(high),
            }
        )
    return found


def tokens_told(held: Held, answers: Answers) -> dict[str, float]:
    """Expected tokens against those of the samples: sum over sum, and rank correlation."""
    known = (answers.samples > 0) & np.isfinite(answers.tokens)
    told, were = held.tokens[known], answers.tokens[known]
    return {"told_over_were": float(told.sum() / were.sum()), "spearman": spearman(told, were)}


def draw(parts: list[dict[str, Any]], path: Path) -> None:
    """Calibration plots, side by side."""
    figure, axes = plt.subplots(1, len(parts), figsize=(4.4 * len(parts), 4.2), layout="constrained")
    for part, ax in zip(parts, np.atleast_1d(axes), strict=True):
        bins = part["reliability"]
        said, right = ([one[name] for one in bins] for name in ("said", "right"))
        spread = [[max(0.0, one["right"] - one["low"]) for one in bins]]
        spread.append([max(0.0, one["high"] - one["right"]) for one in bins])
        ax.plot([0, 1], [0, 1], lw=1, color="gray")
        ax.errorbar(said, right, spread, marker="o", ms=5, capsize=2)
        least = max(0.0, min(*said, *right) - 0.05) if min(said) > 0.5 else 0.0
        ax.set(
            title=part["title"],
            xlabel="said: P(one sample is right)",
            ylabel="samples that were right",
            xlim=(least, 1.01),
            ylim=(least, 1.01),
        )
        ax.title.set_fontsize(10)
        ax.grid(alpha=0.3)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def report(parts: list[dict[str, Any]], left_out: list[str], about: str) -> str:
    """The page for people."""
    lines = [
        "# Difficulty from text",
        "",
        f"Written by `python -m benchmarks.difficulty`; not edited by hand. {about}",
        "",
        "![said against came true](difficulty.png)",
        "",
        "Dots are tenths of the samples; bars are 95 % intervals over problems, as in the tables.",
    ]
    if recorded := [name for part in parts for name in part.get("recordings", ())]:
        lines += ["", *sources.told(*recorded), "", "Problems and levels are MATH-500's own (MIT)."]
    lines += [f"\n**Left out**: {one}" for one in left_out]
    for part in parts:
        lines += _section(part)
    lines += [
        "",
        "*Rank correlation*: Spearman's, of the expected difficulty with that which the answers show",
        "(2PL, fitted without the query). *ECE* (ten bins), *Brier skill* (over the share that was right in",
        "the same samples) and *AUC* are of P(one sample is right), over all samples of all models.",
        "*Coverage*: how much of the posterior difficulty lies in the belief's 50, 80 and 95 % intervals.",
        "*Level* was given by people who had the solution: a reference, not a rival.",
    ]
    return "\n".join(lines) + "\n"


def _section(part: dict[str, Any]) -> list[str]:
    said = part["cost"]
    lines = [
        "",
        f"## {part['title']}",
        "",
        f"{part['rows']['estimator']['queries']} problems. Way taken: {part['way']}.",
        f"One estimate takes {said['cpu_ms_mean']:.3f} ms of CPU (median {said['cpu_ms_median']:.3f}, 95th",
        f"percentile {said['cpu_ms_p95']:.3f}; a prompt of 1 MB {said['cpu_ms_1_mb']:.3f}), and",
        f"{said['flops']:.0f} FLOPs. "
        f"Expected tokens are {part['tokens']['told_over_were']:.2f} of the true ones,",
        f"rank correlation {part['tokens']['spearman']:.2f}.",
        "",
        f"| | {' | '.join(NAMES.values())} | coverage 50 / 80 / 95 % |",
        f"|---|{'---:|' * (len(NAMES) + 1)}",
    ]
    for name, row in part["rows"].items():
        cells = [_cell(row[key]) for key in NAMES]
        cover = " / ".join(f"{100 * row[f'coverage_{100 * level:g}']['value']:.0f}" for level in LEVELS)
        lines.append(f"| {name} | {' | '.join(cells)} | {cover} |")
    lines += [
        "",
        "| the estimator, for each model | right | said | ECE | Brier skill | AUC |",
        "|---|" + "---:|" * 5,
    ]
    for model, row in part["rows"]["estimator"]["models"].items():
        values = (row[key] for key in ("right", "predicted", "ece", "brier_skill", "auc"))
        lines.append(f"| {model} | {' | '.join(f'{value:.3f}' for value in values)} |")
    errors = ", ".join(f"{name} {value:.3f}" for name, value in part["rmse"].items())
    lines += ["", f"Root mean squared error of the ways that were compared, out of fold: {errors}."]
    if made := part.get("embedding"):
        gain, taken = (made[key] for key in ("gain", "gain_where_taken"))
        lines += [
            "",
            f"Embeddings ({made['name']}) change the rank correlation by {_signed(gain)} where they may be",
            f"taken (ways: {', '.join(made['ways'])}), and by {_signed(taken)} where they must be;",
            f"they take {made['cpu_ms_per_query']:.1f} ms of CPU and "
            f"{made['flops_per_query'] / 1e9:.2f} GFLOP a query.",
        ]
    return lines


def _cell(value: dict[str, float]) -> str:
    if not np.isfinite(value["value"]):
        return "-"
    return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def _signed(value: dict[str, float]) -> str:
    return f"{value['value']:+.3f} ({value['low']:+.3f} to {value['high']:+.3f})"


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--calibration", type=Path, default=BUILD / "calibration.jsonl")
    parser.add_argument("--heldout", type=Path, default=BUILD / "heldout.jsonl")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "data", help="for MATH-500")
    parser.add_argument("--embedding", type=Path, default=ROOT / "build" / "minilm", help="if it is there")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "difficulty.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "difficulty.md")
    arguments = parser.parse_args()
    parts: list[dict[str, Any]] = []
    left_out = []
    BUILD.mkdir(parents=True, exist_ok=True)
    with Progress(console=Console(stderr=True)) as progress:
        try:
            if arguments.calibration.exists() and arguments.heldout.exists():
                parts.append(abacus(arguments.calibration, arguments.heldout, progress))
            else:
                left_out.append("abacus: its files of answers were not there.")
            if arguments.shared.exists():
                embedding = Embedding(arguments.embedding) if arguments.embedding.exists() else None
                if embedding is None:
                    left_out.append("embeddings: run `python -m training.embedding` before.")
                parts.append(math500(arguments.shared, embedding, progress))
            else:
                left_out.append("MATH-500: the recordings were not there.")
        except (OSError, ValueError, AnswersError, EmbeddingError) as error:
            print(f"benchmarks.difficulty: {error}", file=sys.stderr)
            return 1
    if not parts:
        print(f"benchmarks.difficulty: {' '.join(left_out)}", file=sys.stderr)
        return 1
    for path in (arguments.json, arguments.page):
        path.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(
        json.dumps(difficulty.plain({"parts": parts, "left_out": left_out}), indent=1) + "\n"
    )
    draw(parts, arguments.page.with_suffix(".png"))
    about = f"{platform.machine()}, Python {platform.python_version()}, {RESAMPLES} resamples."
    text = report(parts, left_out, about)
    arguments.page.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
