"""Measure the models on the calibration problems, and write what the router and difficulty go by.

    python -m training.calibrate [--samples 16] [--problems 360]

Samples come from the generation service's own core and are kept (`store.py`), so that a run that was stopped
goes on where it was. From them are fitted:

- the latent difficulty of each problem: an item-response model over all models (`irt.py`);
- `models/profile.json`: each arm's curves over difficulty (accuracy of one sample and of votes by
  resampling, tokens), smoothed; and how alike problems and wrong answers are, by what makes the
  confidence in a vote truest;
- `models/difficulty.json`: difficulty from text, and each model's curve (`difficulty.py`).

Nothing here sees a held-out problem.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from isoflop.v1.common_pb2 import Model
from isoflop.v1.generation_pb2 import DescribeModelsRequest
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from router import cost
from router.belief import Votes, update
from router.profile import ROUND_SIZES, SCHEMA, parse
from services.common.settings import MODELS
from training import difficulty_answers
from training.difficulty import held_out, text, train
from training.difficulty_figures import figures
from training.samples import Sampled, lane_of, sample, sampled
from training.sampling import open_generation, sample_round
from training.splits import Problem, first_of_each_group
from training.votes import vote_accuracy

Array = NDArray[np.float64]

TEMPERATURE = 0.7
"""Of sampled arms."""
GRID = np.linspace(-3.0, 3.0, 41)
BANDWIDTH = 0.25
"""Width of the kernel that smooths curves over difficulty."""
CONCENTRATIONS = (0.5, 1.0, 2.0, 3.0, 5.0, 8.0)
SCATTERS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Values that are tried for how alike problems of one difficulty are, and how rarely wrong answers agree."""
ANSWERS = Path("build/difficulty/calibration.jsonl")
"""How often each model was right on each problem is kept there, as `isoflop train-difficulty` reads it."""
TIMED_PROBLEMS = 20
"""Whose greedy answers, one at a time, say how fast a model is."""
FOLDS = 5
"""Of the cross-validation that says how good the estimator is."""
PERMUTATIONS = 50
"""Resamplings of stored samples for the accuracy of votes."""
WORTH = {"low": 3.0, "medium": 8.0, "high": 20.0, "most": 1000.0}
"""What a right answer is worth at each effort, in greedy answers of the largest model: at low, its greedy
answer is bought for a rise of a third, at medium of an eighth, at high of five points."""


def answers_of(
    problems: list[Problem], models: list[Model], several: dict[str, list[Sampled]]
) -> Iterator[dict[str, Any]]:
    """Rows of `difficulty_answers`: how often each model was right on each problem."""
    for model in models:
        for problem, stored in zip(problems, several[model.name], strict=True):
            yield {
                "query_id": problem.query_id,
                "prompt": problem.prompt,
                "type": "number",
                "group": problem.group,
                "model": model.name,
                "right": sum(stored.right),
                "samples": len(stored.answers),
                "tokens": float(np.mean(stored.tokens)),
            }


def smooth(difficulty: Array, values: Array, falling: bool = True) -> Array:
    """A curve over GRID through values at difficulties, shape (len(GRID),); monotone where asked."""
    weight = np.exp(-0.5 * ((GRID[:, None] - difficulty[None, :]) / BANDWIDTH) ** 2) + 1e-9
    curve = weight @ values / weight.sum(1)
    if falling:
        curve = IsotonicRegression(increasing=False).fit_transform(GRID, curve, sample_weight=weight.sum(1))
    return np.asarray(curve)


def resampled_accuracy(stored: Sampled, gold: str, size: int, rng: np.random.Generator) -> float:
    """Accuracy of a majority vote of `size` of the stored samples, ties shared out."""
    answers = stored.answers
    if size == 1:
        return sum(answer == gold for answer in answers) / len(answers)
    drawn = (rng.permutation(len(answers))[:size] for _ in range(PERMUTATIONS))
    return sum(vote_accuracy([answers[i] for i in chosen], gold) for chosen in drawn) / PERMUTATIONS


def fit_confidence(
    profile: dict[str, Any],
    problems: list[Problem],
    greedy: dict[str, list[Sampled]],
    several: dict[str, list[Sampled]],
    beliefs: list[tuple[float, float]],
) -> tuple[float, float]:
    """The concentration and scatter with which confidence is best, by its log-likelihood.

    Votes are drawn from the stored samples as rounds would buy them: greedy ones, several of one model, and
    mixtures; `beliefs` are mean and sd of each problem's difficulty, cross-validated.
    """
    rng = np.random.default_rng(11)
    names = list(several)
    plans = [{name: n} for name in names for n in (2, 4, 8)]
    plans += [{f"{name} greedy": 1, name: n} for name in names for n in (1, 4)]
    plans += [{f"{a} greedy": 1, f"{b} greedy": 1, b: 2} for a, b in pairwise(names)]
    drawn = []
    for at, problem in enumerate(problems):
        for plan in plans:
            votes: dict[str, list[str | None]] = {}
            for key, n in plan.items():
                name = key.removesuffix(" greedy")
                stored = (greedy if key != name else several)[name][at].answers
                votes[key] = [stored[i] for i in rng.permutation(len(stored))[:n]]
            drawn.append((beliefs[at], problem.answer, votes))

    def loss(concentration: float, scatter: float) -> float:
        for arm in profile["arms"]:
            arm["concentration"], arm["scatter"] = concentration, scatter
        curves = parse(profile)
        arms = {f"{arm.model} greedy" if arm.greedy else arm.model: arm for arm in curves.arms}
        total = 0.0
        for (mean, sd), gold, votes in drawn:
            answers = list(dict.fromkeys(a for given in votes.values() for a in given if a is not None))
            if answers:
                counts = np.array([[float(given.count(a)) for a in answers] for given in votes.values()])
                blanks = np.array([float(given.count(None)) for given in votes.values()])
                tally = Votes(tuple(arms[key] for key in votes), counts, blanks)
                posterior = update(curves.belief(mean, sd), tally)
                p = min(max(posterior.confidence, 1e-6), 1 - 1e-6)
                total -= math.log(p if answers[posterior.leader] == gold else 1 - p)
        return total / len(drawn)

    losses = {(k, s): loss(k, s) for k in CONCENTRATIONS for s in SCATTERS}
    best = min(losses, key=lambda pair: losses[pair])
    print(f"confidence: concentration {best[0]:g}, scatter {best[1]:g}, log loss {losses[best]:.4f}")
    return best


def fit_arm(
    model: Model,
    temperature: float,
    problems: list[Problem],
    samples: list[Sampled],
    greedy_right: NDArray[np.bool_],
    difficulty: Array,
    seconds_per_token: float,
) -> dict[str, Any]:
    """One arm of the profile; concentration and scatter are fitted when all arms are there."""
    rng = np.random.default_rng(7)
    right = np.array([sum(stored.right) for stored in samples], float)
    total = np.array([len(s.answers) for s in samples], float)
    p_right = smooth(difficulty, right / total)
    sizes = [n for n in ROUND_SIZES if n <= int(total.min()) * 2 // 3 or n == 1] if temperature else []
    votes = {
        n: smooth(
            difficulty,
            np.array(
                [resampled_accuracy(s, p.answer, n, rng) for p, s in zip(problems, samples, strict=True)]
            ),
        )
        for n in sizes
    }
    prompt = sum(s.prompt_tokens for s in samples) / sum(len(p.prompt.encode()) for p in problems)
    wrong = ~greedy_right
    after = smooth(difficulty[wrong], (right / total)[wrong]) if temperature else None
    return {
        "model": model.name,
        "temperature": temperature,
        "p_right": rounded(p_right),
        "p_right_after_greedy": None if after is None else rounded(np.minimum(after, p_right)),
        "tokens": rounded(
            smooth(difficulty, np.array([np.mean(s.tokens) for s in samples]), falling=False), 1
        ),
        "concentration": 1.0,
        "scatter": 1.0,
        "votes": {str(n): rounded(curve) for n, curve in votes.items()},
        "prompt_tokens_per_byte": round(prompt, 4),
        "seconds_per_token": round(seconds_per_token, 7),
    }


def rounded(values: Array, digits: int = 4) -> list[float]:
    """For the file."""
    return [round(float(value), digits) for value in values]


async def speeds(problems: Sequence[Problem]) -> tuple[list[Model], list[float]]:
    """The models, and their seconds a token for one sample alone."""
    async with open_generation() as generation:
        models = list((await generation.describe(DescribeModelsRequest())).models)
        told = []
        for model in models:
            rounds = [
                await sample_round(generation, model.name, problem.prompt)
                for problem in problems[:TIMED_PROBLEMS]
            ]
            tokens = sum(sample.tokens for round in rounds for sample in round.samples)
            told.append(sum(round.seconds for round in rounds) / tokens)
    return models, told


def calibrate(most: int, samples: int, out: Path) -> None:
    """Sample, fit, write."""
    problems = first_of_each_group("calibration.jsonl", most)
    models, seconds_per_token = asyncio.run(speeds(problems))

    def stored(name: str, temperature: float, count: int) -> list[Sampled]:
        found = sampled(lane_of(name, temperature), problems, count)
        return [found[problem.query_id] for problem in problems]

    counts = {0.0: 1, TEMPERATURE: samples}
    sample(
        (lane_of(model.name, degree), problems, count) for model in models for degree, count in counts.items()
    )
    greedy = {model.name: stored(model.name, 0.0, 1) for model in models}
    several = {model.name: stored(model.name, TEMPERATURE, samples) for model in models}

    difficulty_answers.write(ANSWERS, answers_of(problems, models, several))
    answers = difficulty_answers.read(ANSWERS).answers
    version = f"abacus-{datetime.datetime.now(datetime.UTC):%Y%m%d}"
    trained = train(answers, f"text-{version}")
    difficulty = trained.fit.difficulty
    arms = []
    for model, speed in zip(models, seconds_per_token, strict=True):
        lone = greedy[model.name]
        greedy_right = np.array([one.right[0] for one in lone])
        for temperature, found in ((0.0, lone), (TEMPERATURE, several[model.name])):
            arms.append(fit_arm(model, temperature, problems, found, greedy_right, difficulty, speed))
    largest = max(models, key=lambda model: model.shape.active_parameters)
    tokens = float(np.mean([np.mean(s.tokens) for s in greedy[largest.name]]))
    once = cost.samples(largest, 1, 16, tokens).flops
    weight = np.exp(-0.5 * ((GRID[:, None] - difficulty[None, :]) / BANDWIDTH) ** 2).sum(1)
    profile = {
        "schema": SCHEMA,
        "version": version,
        "grid": rounded(GRID),
        "prior": rounded(weight / weight.sum(), 6),
        "arms": arms,
        "efforts": {name: float(f"{worth * once:.4g}") for name, worth in WORTH.items()},
    }
    beliefs = list(zip(*(values.tolist() for values in trained.beliefs), strict=True))
    concentration, scatter = fit_confidence(profile, problems, greedy, several, beliefs)
    for arm in arms:
        arm["concentration"], arm["scatter"] = concentration, scatter
    parse(profile)
    write(out / "profile.json", profile)
    held, _ = held_out(answers, FOLDS)
    told = figures(held, answers.models, answers.right, answers.samples)
    (out / "difficulty.json").write_text(text(trained.record.model_copy(update={"figures": told})) + "\n")
    print(f"wrote {out / 'difficulty.json'}")
    print(f"difficulty from text ({trained.way}), held out: rank correlation {told['spearman']:.3f}")
    for m, name in enumerate(answers.models):
        rate = answers.right[:, m].sum() / answers.samples[:, m].sum()
        ability, slope = trained.fit.ability[m], trained.fit.slope[m]
        print(f"{name}: ability {ability:.2f}, slope {slope:.2f}, right {rate:.3f}")


def write(path: Path, data: object) -> None:
    """As JSON, a line for each short list."""
    path.write_text(json.dumps(data, indent=1) + "\n")
    print(f"wrote {path}")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--problems", type=int, default=360, help="calibration problems that are used")
    parser.add_argument("--samples", type=int, default=16, help="samples of each")
    parser.add_argument("--out", type=Path, default=MODELS, help="folder to write to")
    arguments = parser.parse_args()
    calibrate(arguments.problems, arguments.samples, arguments.out)


if __name__ == "__main__":
    main()
