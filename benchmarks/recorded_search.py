"""Aggregation and scores of steps on searches of real models that others recorded, against samples.

    python -m benchmarks.recorded_search [--data ../shared/data/recordings] [--json OUT] [--page PAGE]

Nothing is generated and nothing is tuned: recorded chains are weighed by `router.strategies.scoring`, voted
on by the aggregation core, and compared with gold. Intervals are the middle 95 % of 2,000 resamples of the
problems, paired where two ways are compared. Which way is a claim's headline was fixed by what is published:
`last` for the searches, which kept beams by it, and `product` for the solutions (Lightman et al.).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import numpy as np
from isoflop.v1.common_pb2 import ANSWER_TYPE_EXPRESSION
from rich.console import Console
from rich.progress import track

from benchmarks.answers import RECORDINGS, ROOT, rate
from benchmarks.headlines_claims import OVER_MAJORITY, Row, Told, row
from benchmarks.headlines_data import NotMeasured
from benchmarks.recorded_search_data import (
    ANY,
    MAJORITY,
    RULES,
    VOTE,
    WAYS,
    Answered,
    Judge,
    Query,
    Tried,
    averaged,
    blocks,
    read,
)
from benchmarks.recorded_search_report import report
from benchmarks.replay_data import RecordingError
from services.aggregation.answers import extract
from training.resampling import Floats, interval, resamples

NAMES: Final = ("math500_llama_beam_search", "math500_llama_independent", "math500_steps")
OTHER_WEIGHTS: Final = "bon_completions.jsonl"
"""A run of the 3B model that is not quantised, of 10 problems: not of the model that searched."""
LEVELS: Final = {"all levels": (0, 5), "levels 1-2": (1, 2), "level 3": (3, 3), "levels 4-5": (4, 5)}
SEARCHED: Final = 0.5
"""Of the queries, the share whose chains all begin alike where beams were dropped; far more or far less."""
MORE: Final = 4
"""As many times the samples: a search may be so much dearer than the chains that stayed."""
SNELL: Final = "beam search is better at small budgets (Snell et al., arXiv 2408.03314)"
RULE: Final = "product or min (Lightman et al., arXiv 2305.20050); others take last (arXiv 2408.03314)"
WEIGHTED: Final = "above majority (Li et al., arXiv 2206.02336; Snell et al., arXiv 2408.03314)"


@dataclass(frozen=True, eq=False)
class Beam:
    """The recorded searches of one model and n."""

    model: str
    n: int
    queries: list[Query]
    answered: list[Answered]
    tried: Tried

    @property
    def one_start(self) -> float:
        """Share of the queries whose chains all have the same score of their first step."""
        starts = [{tuple(one.steps[:1]) for one in query.samples} for query in self.queries]
        return fmean(len(one) == 1 for one in starts) if self.n > 1 else 0.0

    @property
    def name(self) -> str:
        """In claims."""
        return f"{self.model}, n={self.n}" + ("" if self.searched else " (no beam was dropped)")

    @property
    def searched(self) -> bool:
        """Whether beams were dropped: those that stay then begin alike."""
        return self.one_start >= SEARCHED


async def beams(judge: Judge, queries: Iterable[Query]) -> list[Beam]:
    """By model and n, in all ways."""
    groups: dict[tuple[str, int], list[Query]] = {}
    for query in queries:
        groups.setdefault((query.model, query.n), []).append(query)
    found = []
    for (model, n), its in sorted(groups.items()):
        answered = [await judge.answered(query, WAYS) for query in track(its, f"{model}, n={n}")]
        found.append(Beam(model, n, its, answered, averaged(its, answered)))
    return found


async def independents(
    judge: Judge, queries: Sequence[Query], wanted: Mapping[str, set[int]]
) -> dict[tuple[str, int], Tried]:
    """By model and n, votes of so many samples, where enough are recorded."""
    found = {}
    for model, sizes in wanted.items():
        its = [query for query in queries if query.model == model and query.run != OTHER_WEIGHTS]
        for n in sorted(sizes):
            if made := list(blocks(its, n)):
                answered = [
                    await judge.answered(one, VOTE) for one in track(made, f"{model}, {n} independent")
                ]
                found[model, n] = averaged(made, answered)
    return found


def gain(one: Floats, other: Floats, about: str, reason: str) -> Told:
    """Points between two ways to answer the same problems."""
    if not len(one):
        raise NotMeasured("no problem has both")
    points = 100 * (one - other)
    return Told(
        float(points.mean()),
        resamples(len(points)) @ points,
        f"{about}: {100 * one.mean():.1f} % over {100 * other.mean():.1f} %, {len(points)} problems",
        reason=reason,
    )


def beam_claims(beam: Beam, independent: Mapping[tuple[str, int], Tried]) -> Iterator[Row]:
    """A model's searches against its independent samples."""
    equal, preferred, everything = alike(beam, independent), "weighted, last", "all levels"
    asked = [(preferred, beam.n, band, "") for band in LEVELS]
    if beam.n > 1:
        asked += [(way, beam.n, everything, "") for way in ("best, last", MAJORITY)]
    if equal != beam.n:
        asked.append((preferred, equal, everything, " (equal characters)"))
    asked.append((preferred, MORE * beam.n, everything, ""))
    for way, n, band, note in asked:
        other = independent.get((beam.model, n))
        if other is not None:
            yield _over_independent(beam, other, way, n, band, note)


def _over_independent(beam: Beam, other: Tried, way: str, n: int, band_name: str, note: str) -> Row:
    both = [problem for problem in beam.tried.problems if problem in set(other.problems)]
    mine, theirs = beam.tried.of(both), other.of(both)
    band = mine.band(*LEVELS[band_name])

    def tell() -> Told:
        oracle = [100 * tried.ours[ANY][band].mean() for tried in (mine, theirs)] if band.any() else [0, 0]
        return gain(
            mine.ours[way][band],
            theirs.ours[MAJORITY][band],
            f"{way} of {beam.n} chains over the majority of {n} samples",
            f"some chain is right on {oracle[0]:.1f} % of the problems, some sample on {oracle[1]:.1f} %; "
            f"on {100 * beam.one_start:.0f} % of the queries all chains begin alike",
        )

    return row(
        "beam_over_independent",
        f"{beam.name}, {way} against {n} samples{note}, {band_name}",
        SNELL,
        tell,
        headline=beam.searched and way == "weighted, last" and n == beam.n and band_name == "all levels",
    )


def alike(beam: Beam, independent: Mapping[tuple[str, int], Tried]) -> int:
    """How many samples have as many characters as the chains that stayed; n where that cannot be told."""
    ratio = chars_ratio(beam, independent)
    return beam.n if ratio is None else max(1, round(ratio * beam.n))


def chars_ratio(beam: Beam, independent: Mapping[tuple[str, int], Tried]) -> float | None:
    """Characters of a chain over those of a sample, on the same problems."""
    other = independent.get((beam.model, 1))
    both = [problem for problem in beam.tried.problems if other and problem in set(other.problems)]
    if other is None or not both:
        return None
    sampled = float(other.of(both).chars.mean())
    return float(beam.tried.of(both).chars.mean()) / beam.n / sampled if sampled else None


def vote_claims(about: str, tried: Tried, preferred: str, headline: bool) -> Iterator[Row]:
    """The weighted vote and best of n over the majority, by every rule."""
    oracle = f"some chain is right on {100 * tried.ours[ANY].mean():.1f} % of the problems"
    for claim, kind, reference in (
        ("weighted_over_majority", "weighted", WEIGHTED),
        ("prm_over_majority", "best", OVER_MAJORITY),
    ):
        for rule in RULES:
            way = f"{kind}, {rule}"
            same = float((tried.ours[way] == tried.ours[MAJORITY]).mean())
            yield row(
                claim,
                f"{about}, {way}",
                reference,
                lambda way=way, same=same: gain(  # type: ignore[misc]
                    tried.ours[way],
                    tried.ours[MAJORITY],
                    f"{way} over majority",
                    f"on {100 * same:.0f} % of the problems both are as good; {oracle}",
                ),
                headline=headline and rule == preferred,
            )


def rule_claim(about: str, by_rule: Mapping[str, Floats], unit: str, headline: bool) -> Row:
    """Product or min, the better, over last or mean, the better; `by_rule`: measured, then resampled."""

    def tell() -> Told:
        measured = {rule: float(values[0]) for rule, values in by_rule.items()}
        if not all(map(np.isfinite, measured.values())):
            raise NotMeasured("all chains are right, or all are wrong")
        over = np.maximum(by_rule["product"], by_rule["min"]) - np.maximum(by_rule["last"], by_rule["mean"])
        told = ", ".join(f"{rule} {100 * value:.1f}" for rule, value in measured.items())
        return Told(
            float(100 * over[0]),
            100 * over[1:][np.isfinite(over[1:])],
            f"the better of product and min less the better of last and mean: {told}",
            reason=f"{max(measured, key=lambda rule: measured[rule])} is best: {told}",
        )

    return row("prm_rule", about, RULE, tell, headline=headline, unit=unit)


def resampled(values: Floats) -> Floats:
    """The mean over problems, then those of resamples of them."""
    return np.concatenate([[values.mean()], resamples(len(values)) @ values])


def areas(queries: Sequence[Query], answered: Sequence[Answered]) -> dict[str, Floats]:
    """By rule, the chance that a right chain scores higher than a wrong one; then those of resamples.

    NaN where there are no two kinds.
    """
    chains = [
        (at, sample, right)
        for at, (query, its) in enumerate(zip(queries, answered, strict=True))
        for sample, right in zip(query.samples, its.right, strict=True)
        if sample.steps
    ]
    problem = np.array([at for at, _, _ in chains], int)
    truth = np.array([right for _, _, right in chains], bool)
    count = len(queries)
    weights = np.vstack([np.full(count, 1 / count), resamples(count)])
    rights, wrongs = (weights @ np.bincount(problem[of], minlength=count) for of in (truth, ~truth))
    found = {}
    for name, rule in RULES.items():
        scores = np.array([sample.score(rule) for _, sample, _ in chains])
        right, wrong = scores[truth][:, None], scores[~truth]
        # A resample of problems weighs pairs of chains by their two problems alone.
        pairs = np.zeros((count, count))
        np.add.at(pairs, (problem[truth][:, None], problem[~truth]), (right > wrong) + (right == wrong) / 2)
        with np.errstate(invalid="ignore"):
            found[name] = ((weights @ pairs) * weights).sum(1) / (rights * wrongs)
    return found


def told(values: Floats) -> list[float]:
    """A share in percent with its interval, from what was measured and its resamples."""
    kept = values[1:][np.isfinite(values[1:])]
    return [
        round(100 * float(value), 2) for value in (values[0], *(interval(kept) if len(kept) else (0.0, 1.0)))
    ]


async def disagreements(judge: Judge, queries: Iterable[Query]) -> dict[str, Any]:
    """Where a chain is right by us or by the recording's `correct`, and not by both."""
    total = blank = 0
    misses: Counter[tuple[str, str, str, bool]] = Counter()
    for query in queries:
        for sample in query.samples:
            total += 1
            blank += not sample.answer
            if not sample.answer and not sample.correct:
                continue
            ours = await judge.right(query.gold, extract(sample.said, ANSWER_TYPE_EXPRESSION))
            if ours != bool(sample.correct):
                misses[query.query_id, query.gold, sample.answer or "", ours] += 1
    false_equal = sum(times for (*_, ours), times in misses.items() if ours)
    return {
        "chains": rate(sum(misses.values()), total),
        "blank": blank,
        "right by us alone": false_equal,
        "right by the label alone": sum(misses.values()) - false_equal,
        "misses": [
            {"query": query_id, "gold": gold, "answer": answer, "right by us": ours, "times": times}
            for (query_id, gold, answer, ours), times in misses.most_common()
        ],
    }


async def measure(data: Path) -> dict[str, Any]:
    """All figures; raises RecordingError."""
    searched, sampled, solved = (read(data / f"{name}.jsonl.gz") for name in NAMES)
    judge = Judge()
    try:
        found = await beams(judge, searched)
        ones = await independents(judge, sampled, {beam.model: {1} for beam in found})
        wanted: dict[str, set[int]] = {}
        for beam in found:
            wanted.setdefault(beam.model, {4, 16}).update((beam.n, MORE * beam.n, alike(beam, ones)))
        wanted = {model: sizes - {1} for model, sizes in wanted.items()}
        independent = ones | await independents(judge, sampled, wanted)
        answered = [await judge.answered(query, WAYS) for query in track(solved, "math500_steps")]
        disagree = {
            name: await disagreements(judge, its)
            for name, its in zip(NAMES, (searched, sampled), strict=False)
        }
    finally:
        await judge.close()
    steps, area = averaged(solved, answered), areas(solved, answered)
    several = [beam for beam in found if beam.n > 1]
    claims = [
        *(one for beam in found for one in beam_claims(beam, independent)),
        rule_claim(
            "math500_steps, best of 4",
            {rule: resampled(steps.ours[f"best, {rule}"]) for rule in RULES},
            "points",
            headline=True,
        ),
        rule_claim("math500_steps, AUC of a chain's score", area, "AUC, percent", headline=False),
        *(
            rule_claim(
                f"{beam.name}, best chain",
                {rule: resampled(beam.tried.ours[f"best, {rule}"]) for rule in RULES},
                "points",
                headline=False,
            )
            for beam in several
        ),
        *vote_claims("math500_steps", steps, "product", headline=True),
        *(one for beam in several for one in vote_claims(beam.name, beam.tried, "last", beam.searched)),
    ]
    return {
        "claims": [asdict(one) for one in sorted(claims, key=lambda one: not one.headline)],
        "beam": [
            {
                "model": beam.model,
                "n": beam.n,
                "problems": len(beam.tried.problems),
                "runs": len(beam.queries) / len(beam.tried.problems),
                "all begin alike": round(beam.one_start, 3),
                "chars": chars_ratio(beam, independent),
                "ours": {way: told(resampled(values)) for way, values in beam.tried.ours.items()},
                "labels": {way: round(100 * float(v.mean()), 2) for way, v in beam.tried.labels.items()},
            }
            for beam in found
        ],
        "independent": [
            {
                "model": model,
                "n": n,
                "problems": len(tried.problems),
                "ours": {way: told(resampled(values)) for way, values in tried.ours.items()},
                "labels": {way: round(100 * float(v.mean()), 2) for way, v in tried.labels.items()},
            }
            for (model, n), tried in independent.items()
        ],
        "steps": {
            "problems": len(steps.problems),
            "ours": {way: told(resampled(values)) for way, values in steps.ours.items()},
            "auc": {rule: told(values) for rule, values in area.items()},
        },
        "disagreements": disagree,
        "undecided": judge.undecided,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write and print the page; 2 where the recordings cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=RECORDINGS, help="folder of the recordings")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "recorded_search.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "recorded_search.md")
    asked = parser.parse_args(arguments)
    console = Console()
    try:
        figures = asyncio.run(measure(asked.data))
    except RecordingError as error:
        console.print(f"{error}", style="red", markup=False, soft_wrap=True)
        return 2
    for path in (asked.json, asked.page):
        path.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    page = report(figures)
    asked.page.write_text(page)
    console.print(page, markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
