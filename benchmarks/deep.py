"""What strategies that make chains in parts bring, beside samples at equal FLOPs, in one run.

    python -m benchmarks.deep [--problems 150] [--models abacus-m ...]

Fixed plans on held-out problems through the suite in one process, all stages on the bill, the verifier
included: searches of several sizes, long chains at each effort, drafts with revisions; and beside them a pool
of samples with scores, from which votes and best of n are told at every n. What was played is kept in
`build/bench-deep/`, so that a run that was stopped goes on. The claims are in `benchmarks/deep_claims.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from isoflop.v1.common_pb2 import ANSWER_TYPE_NUMBER, STAGE_VERIFICATION
from isoflop.v1.router_pb2 import EFFORT_HIGH, EFFORT_LOW, EFFORT_MEDIUM, Filters, Search, SolveRequest
from isoflop.v1.verification_pb2 import ChainScoring
from prometheus_client import CollectorRegistry

from benchmarks.deep_claims import Measured, claims, page, picture, plans
from benchmarks.embedded import fingerprint, seed_of, some_at_a_time
from benchmarks.headlines_report import put_claims
from router.core import Router
from router.embedded import open_router
from router.settings import SuiteSettings
from router.strategies.scoring import chain_score
from services.aggregation.answers import extract
from services.common.settings import MODELS
from training import rows
from training.splits import Problem, first_of_each_group

ROOT: Final = Path(__file__).parents[1]
STORE: Final = ROOT / "build" / "bench-deep"
PLAYED: Final = fingerprint(
    *(MODELS / name for name in ("SHA256SUMS", "catalog.yaml", "verifiers.yaml")),
    ROOT / "router" / "bench.py",
    *sorted((ROOT / "router" / "strategies").glob("*.py")),
    *sorted((ROOT / "services" / "generation" / "backends").glob("*.py")),
)
"""What outcomes depend on: models, verifiers and what plays a round."""
POOL: Final = "pool"
SCORING: Final = ChainScoring.CHAIN_SCORING_MIN
"""The verifier's own rule, said so that the pool's chains are scored by it, too."""
SAMPLES: Final = 64
"""Of the pool."""


def deep(strategy: str, effort: int = 0, **search: int) -> SolveRequest:
    """A fixed plan."""
    filters = Filters(strategies=[strategy], scoring=SCORING, search=Search(**search) if search else None)
    return SolveRequest(filters=filters, effort=effort)  # type: ignore[arg-type]


PLANS: Final = {
    POOL: SolveRequest(
        filters=Filters(strategies=["best_of_n"], scoring=SCORING, samples=SAMPLES), return_candidates=True
    ),
    "beam 2 × 2": deep("beam", width=2, expansion=2),
    "beam 4 × 4": deep("beam", width=4, expansion=4),
    "beam 8 × 8": deep("beam", width=8, expansion=8),
    "dvts 2 × 2": deep("dvts", width=2, expansion=2),
    "dvts 4 × 4": deep("dvts", width=4, expansion=4),
    "tree of 32": deep("tree", width=2, expansion=4, nodes=32),
    "tree of 96": deep("tree", width=4, expansion=4, nodes=96),
    "tree of 256": deep("tree", width=4, expansion=4, nodes=256),
    "sequential low": deep("sequential", EFFORT_LOW),
    "sequential medium": deep("sequential", EFFORT_MEDIUM),
    "sequential high": deep("sequential", EFFORT_HIGH),
    "broad_and_deep 4 low": deep("broad_and_deep", EFFORT_LOW, width=4),
    "broad_and_deep 16 low": deep("broad_and_deep", EFFORT_LOW, width=16),
    "broad_and_deep 4 high": deep("broad_and_deep", EFFORT_HIGH, width=4),
    "refine 1": deep("refine", width=1),
    "refine 4": deep("refine", width=4),
}
"""By name; of each model."""


@dataclass(frozen=True)
class Outcome:
    """One plan on one problem."""

    plan: str
    model: str
    query_id: str
    right: bool
    flops: float
    verification: float
    """FLOPs of it that went into scores."""
    samples: int
    """Of the model, steps and critiques counted one by one."""
    answers: list[str | None]
    """Of the pool: each sample's, and the score of its chain."""
    scores: list[float]


async def play(router: Router, model: str, plan: str, problem: Problem, number: int) -> Outcome:
    """One plan on one problem, at a temperature that calibration chose."""
    request = SolveRequest(prompt=problem.prompt)
    request.MergeFrom(PLANS[plan])
    request.filters.models.append(model)
    request.filters.seed = seed_of(problem, 5, number)
    scored: dict[str, float] = {}
    async with aclosing(router.stream(request, streamed=False)) as events:
        async for event in events:
            if plan == POOL and event.scores.steps:
                scored[event.scores.id] = chain_score(event.scores.steps, request.filters.scoring)
    final = event.final
    lines = {line.stage: line for line in final.bill.lines}
    return Outcome(
        plan,
        model,
        problem.query_id,
        final.answer == problem.answer,
        final.bill.flops,
        lines[STAGE_VERIFICATION].flops if STAGE_VERIFICATION in lines else 0.0,
        sum(line.calls for line in final.bill.lines if line.model == model),
        [extract(one.text, ANSWER_TYPE_NUMBER) for one in final.candidates] if plan == POOL else [],
        [scored.get(one.id, 0.0) for one in final.candidates] if plan == POOL else [],
    )


async def collect(problems: Sequence[Problem], models: Sequence[str], store: Path) -> list[Outcome]:
    """All outcomes, from the store where it has them."""
    path = store / f"{PLAYED}.jsonl"
    rows.mend(path)
    found = [Outcome(**row) for row in rows.read(path)]
    known = {(one.plan, one.model, one.query_id) for one in found}
    jobs = [
        (model, plan, problem, number)
        for number, problem in enumerate(problems)
        for model in models
        # In an order of each problem's own: a machine that gets slower or warmer favours none.
        for plan in random.Random(f"{number}/{model}").sample(list(PLANS), len(PLANS))
        if (plan, model, problem.query_id) not in known
    ]
    async with open_router(SuiteSettings(), CollectorRegistry()) as router:
        with path.open("a", buffering=1) as kept:

            async def one(model: str, plan: str, problem: Problem, number: int) -> None:
                outcome = await play(router, model, plan, problem, number)
                found.append(outcome)
                kept.write(json.dumps(asdict(outcome)) + "\n")

            about = f"{len(problems)} problems × {len(models)} models × {len(PLANS)} plans"
            await some_at_a_time([partial(one, *job) for job in jobs], about)
    wanted = {problem.query_id for problem in problems}
    return [one for one in found if one.query_id in wanted and one.model in models and one.plan in PLANS]


def measured(outcomes: Sequence[Outcome], problems: Sequence[Problem], model: str) -> Measured:
    """What was played of one model, problem by problem."""
    mine = {(one.plan, one.query_id): one for one in outcomes if one.model == model}
    groups = [problem.group for problem in problems]
    played = {plan: [mine[plan, problem.query_id] for problem in problems] for plan in PLANS}
    pool = played.pop(POOL)
    return Measured.of(
        model,
        groups,
        {
            plan: (
                [one.right for one in ones],
                [one.flops for one in ones],
                [one.verification for one in ones],
            )
            for plan, ones in played.items()
        },
        [problem.answer for problem in problems],
        [one.answers for one in pool],
        [one.scores for one in pool],
        [one.flops / SAMPLES for one in pool],
        [one.verification / SAMPLES for one in pool],
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--problems", type=int, default=150, help="equal numbers of each group")
    parser.add_argument("--models", nargs="+", default=["abacus-m"], metavar="NAME")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "deep.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "deep.md")
    parser.add_argument("--headlines", type=Path, default=ROOT / "benchmarks" / "results" / "headlines.json")
    parser.add_argument("--store", type=Path, default=STORE, help="where what was played is kept")
    arguments = parser.parse_args()
    problems = first_of_each_group("heldout.jsonl", arguments.problems)
    arguments.store.mkdir(parents=True, exist_ok=True)
    outcomes = asyncio.run(collect(problems, arguments.models, arguments.store))
    every = [measured(outcomes, problems, model) for model in arguments.models]
    told: list[dict[str, Any]] = [claim for one in every for claim in claims(one)]
    figures = {
        "problems": len(problems),
        "played": PLAYED,
        "plans": [row for one in every for row in plans(one)],
        "claims": told,
    }
    for path in (arguments.json, arguments.page):
        path.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    put_claims(arguments.headlines, told)
    picture(every, arguments.page.with_suffix(".png"))
    arguments.page.write_text(page(figures, arguments.page.with_suffix(".png").name))
    print(arguments.page.read_text())


if __name__ == "__main__":
    main()
