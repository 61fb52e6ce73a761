"""Sample the models on held-out problems, as they are served, and write the model card.

    python -m training.evaluate [--models s,m,l] [--per-group 20]

A greedy answer and SAMPLES samples at each of TEMPERATURES for the first problems of each group, and one
conversation with each in the other modes (`modes.py`). Samples are kept (`store.py`), and models/README.md is
written from them alone: the card is never edited by hand.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from isoflop.passes import pass_at

from training import modes
from training.problems import GROUPS
from training.samples import Sampled, lane_of, sample, sampled
from training.splits import Problem, first_of_each_group
from training.votes import vote_accuracy

SAMPLES: Final = 16
TEMPERATURES: Final = (0.3, 0.5, 0.7, 1.0, 1.3)
PROBLEMS_PER_GROUP: Final = 20


@dataclass(frozen=True)
class Outcome:
    """What a model did with one problem at one temperature."""

    problem: Problem
    greedy: Sampled
    sampled: Sampled

    @property
    def right(self) -> int:
        """How many samples are right."""
        return sum(self.sampled.right)


@dataclass(frozen=True)
class Summary:
    """Accuracies of one model on some problems."""

    problems: int
    greedy: float
    one_sample: float
    majority: float
    pass_4: float
    pass_16: float
    tokens: float


def summarize(outcomes: Sequence[Outcome]) -> Summary:
    """Means over problems."""

    def mean(values: Iterable[float]) -> float:
        listed = list(values)
        return sum(listed) / len(listed)

    return Summary(
        problems=len(outcomes),
        greedy=mean(float(o.greedy.right[0]) for o in outcomes),
        one_sample=mean(o.right / SAMPLES for o in outcomes),
        majority=mean(vote_accuracy(o.sampled.answers, o.problem.answer) for o in outcomes),
        pass_4=mean(pass_at(4, SAMPLES, o.right) for o in outcomes),
        pass_16=mean(pass_at(16, SAMPLES, o.right) for o in outcomes),
        tokens=mean(sum(o.sampled.tokens) / SAMPLES for o in outcomes),
    )


def outcomes(name: str) -> dict[float, list[Outcome]]:
    """What is stored of a model at each temperature that it was sampled at.

    Of the held-out problems that have both a greedy answer and samples.
    """
    problems = first_of_each_group("heldout.jsonl", 100 * len(GROUPS))
    greedy = sampled(lane_of(name, 0.0), problems, 1)
    found = {}
    for degree in TEMPERATURES:
        several = sampled(lane_of(name, degree), problems, SAMPLES)
        found[degree] = [
            Outcome(problem, greedy[problem.query_id], several[problem.query_id])
            for problem in problems
            if problem.query_id in greedy and problem.query_id in several
        ]
    return {degree: told for degree, told in found.items() if told}


def evaluate(names: Sequence[str], per_group: int = PROBLEMS_PER_GROUP) -> None:
    """Sample models. Raises WorkFailed, CatalogError and OSError."""
    problems = first_of_each_group("heldout.jsonl", per_group * len(GROUPS))
    counts = {0.0: 1} | dict.fromkeys(TEMPERATURES, SAMPLES)
    sample((lane_of(name, degree), problems, count) for name in names for degree, count in counts.items())
    for name in names:
        modes.collect(name, problems)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", default="s,m,l", help="which of s,m,l (default: all)")
    parser.add_argument("--per-group", type=int, default=PROBLEMS_PER_GROUP)
    parser.add_argument("--card-only", action="store_true", help="write the card, sample nothing")
    arguments = parser.parse_args()
    if not arguments.card_only:
        evaluate([f"abacus-{letter}" for letter in arguments.models.split(",")], arguments.per_group)
    from training.card import write_card  # reads checkpoints, so needs torch

    write_card()


if __name__ == "__main__":
    main()
