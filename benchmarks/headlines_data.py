"""What the claims are computed from: a model's stored samples and scores as arrays, problem by problem."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Final

import numpy as np
from isoflop.passes import pass_at
from isoflop.v1.common_pb2 import Model
from isoflop.v1.generation_pb2 import RoundUsage
from isoflop.v1.verification_pb2 import ChainScoring

from router.cost import Meter
from router.strategies.scoring import RULES
from services.aggregation.numbers import canonical_number
from services.common.flops import attended
from training.prm_figures import auc
from training.problems import first_wrong, judge_solution
from training.resampling import NO_ANSWER, Bools, Floats, Ints, best_of, permutations, vote
from training.samples import stored_of, stored_samples
from training.splits import Problem
from training.store import Row, digest, seed_of

MEDIUM: Final = (0.2, 0.8)
"""One-sample rates of calibration cells that are the medium band, both included."""
SCORINGS: Final = {
    ChainScoring.Name(rule).removeprefix("CHAIN_SCORING_").lower(): chain_score
    for rule, chain_score in RULES.items()
}
"""From the scores of steps to that of a chain, by name: min, product, last, mean."""
STEPS_JUDGED: Final = 8
"""Different texts of each problem whose steps are judged, for the AUC of step scores."""

Cell = tuple[int, str]
"""A group (operations) and a kind (story, expression, equation)."""


class NotMeasured(Exception):
    """A claim cannot be told from what is stored; `str(error)` says why."""


@dataclass(frozen=True)
class Flops:
    """With attention, and the simple figure beside it: 2 x active parameters x tokens."""

    flops: float
    simple: float


class Prices:
    """FLOPs of a model's prompts and samples, by the router's own meter."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.prompt = cache(self._prompt)
        self.sample = cache(self._sample)

    def _prompt(self, tokens: int) -> Flops:
        """Of a prompt, which is computed once for all samples of a query."""
        window = self._model.shape.window
        return self._bill(RoundUsage(prompt_tokens=tokens, context_tokens=attended(1, tokens, window)))

    def _sample(self, prompt: int, tokens: int) -> Flops:
        """Of a sample after a prompt that is in the cache."""
        context = attended(prompt + 1, prompt + tokens, self._model.shape.window)
        return self._bill(RoundUsage(cached_tokens=prompt, completion_tokens=tokens, context_tokens=context))

    def _bill(self, usage: RoundUsage) -> Flops:
        meter = Meter("USD")
        cost = meter.generation(self._model, "", usage)
        return Flops(cost.flops, meter.lines[0].flops_without_attention)


@dataclass(frozen=True)
class Samples:
    """The samples of one problem from one model at one temperature, in the order of their seeds."""

    answers: Ints
    """Equal numbers for equal answers, NO_ANSWER for none."""
    names: Sequence[str]
    """The answer with each number."""
    right: int
    """The number of the right answer; NO_ANSWER: nobody gave it."""
    cost: Floats
    """Mean of a sample: FLOPs, and the simple figure; without the prompt."""
    prompt_cost: Floats
    """Of the prompt, likewise."""
    scores_cost: Floats
    """Mean of the scores of a sample, likewise."""
    scores: Mapping[str, Floats]
    """Of the chains, by scoring rule; 0 where a chain has no score; empty where there is no verifier."""
    repeated: float
    """Share of samples whose text another one before has."""
    tokens: int
    """Generated in all."""
    steps: Floats
    """Scores of judged steps."""
    steps_right: Bools
    """Whether each of these is right, up to the first wrong one of its chain."""

    @property
    def is_right(self) -> Bools:
        """Of each sample."""
        right: Bools = (self.answers == self.right) & (self.answers != NO_ANSWER)
        return right

    def first(self, n: int) -> Samples:
        """The first n of the samples, as votes."""
        return Samples(
            **{
                **vars(self),
                "answers": self.answers[:n],
                "right": self.right if (self.answers[:n] == self.right).any() else NO_ANSWER,
                "scores": {rule: values[:n] for rule, values in self.scores.items()},
            }
        )


def samples_of(
    problem: Problem, prompt_tokens: int, rows: Sequence[Row], scores: Mapping[str, Row], prices: Prices
) -> Samples:
    """From lines of the store; `scores` by the digest of the text."""
    right = canonical_number(problem.answer)
    names = list(dict.fromkeys(row["answer"] for row in rows if row["answer"] is not None))
    numbers = {name: number for number, name in enumerate(names)}
    texts = Counter(row["text"] for row in rows)
    by_text = {text: scores[name] for text in texts if (name := digest(text)) in scores}
    judged = _judged(problem, by_text)
    bills = [prices.sample(prompt_tokens, row["tokens"]) for row in rows]
    prompt = prices.prompt(prompt_tokens)
    scored = [by_text[row["text"]] for row in rows if row["text"] in by_text]
    return Samples(
        answers=np.array([numbers.get(row["answer"], NO_ANSWER) for row in rows], np.int64),
        names=names,
        right=numbers.get(right, NO_ANSWER),
        cost=np.array([[bill.flops, bill.simple] for bill in bills]).mean(0),
        prompt_cost=np.array([prompt.flops, prompt.simple]),
        scores_cost=np.array([[one["flops"], one["simple"]] for one in scored] or [[0.0, 0.0]]).mean(0),
        scores={
            name: np.array([_chain(by_text[row["text"]]["steps"], rule) for row in rows])
            for name, rule in SCORINGS.items()
        }
        if len(scored) == len(rows)
        else {},
        repeated=1 - len(texts) / len(rows),
        tokens=sum(row["tokens"] for row in rows),
        steps=np.array([score for score, _ in judged]),
        steps_right=np.array([is_right for _, is_right in judged], bool),
    )


def _chain(steps: Sequence[float], rule: Callable[[Sequence[float]], float]) -> float:
    return rule(steps) if steps else 0.0


def _judged(problem: Problem, by_text: Mapping[str, Row]) -> list[tuple[float, bool]]:
    """Scores of steps with what the judge says of them; steps after the first wrong one are not judged."""
    found = []
    for text, score in list(by_text.items())[:STEPS_JUDGED]:
        lines = text.splitlines()
        if len(lines) != len(score["steps"]):
            continue
        wrong = first_wrong(judge_solution(problem.answer, lines))
        upto = len(lines) if wrong is None else wrong + 1
        found += [(score["steps"][at], at != wrong) for at in range(upto)]
    return found


def cell_of(problem: Problem) -> Cell:
    """The cell that a problem's one-sample rate is told by."""
    return problem.group, problem.kind


def cell_rates(problems: Sequence[Problem], rows: Sequence[Row], samples: int) -> dict[Cell, float]:
    """Share of right samples in each cell of the calibration problems, the first samples of each."""
    found = stored_samples(rows)
    right: dict[Cell, list[float]] = {}
    for problem in problems:
        _, mine = stored_of(found, problem)
        told = [mine[index]["right"] for index in range(samples) if index in mine]
        if told:
            right.setdefault(cell_of(problem), []).append(float(np.mean(told)))
    return {cell: float(np.mean(rates)) for cell, rates in right.items()}


def load(
    problems: Sequence[Problem], rows: Sequence[Row], scores: Sequence[Row], count: int, prices: Prices
) -> list[Samples]:
    """The same number of samples of each problem: the first, as many as all have, and `count` at most.

    Raises NotMeasured where a problem has none.
    """
    found = stored_samples(rows)
    told: dict[tuple[str, int], dict[str, Row]] = {}
    for row in scores:
        told.setdefault((row["query_id"], row["seed"]), {}).update(
            {one["digest"]: one for one in row["scores"]}
        )
    for problem in problems:
        _, mine = stored_of(found, problem)
        count = next((index for index in range(count) if index not in mine), count)
        if not count:
            raise NotMeasured(f"no sample of {problem.query_id} is stored: sample first")
    loaded = []
    for problem in problems:
        key = (problem.query_id, seed_of(problem))
        prompt, mine = stored_of(found, problem)
        chosen = [mine[index] for index in range(count)]
        loaded.append(samples_of(problem, prompt, chosen, told.get(key, {}), prices))
    return loaded


class Measured:
    """One model on the held-out problems. Arrays are over the problems; costs have the columns of Flops."""

    def __init__(
        self,
        model: Model,
        problems: Sequence[Problem],
        samples: Sequence[Samples],
        greedy: Sequence[Samples],
        cells: Mapping[Cell, float],
        scoring: str,
        by_temperature: Mapping[float, Sequence[Samples]],
    ) -> None:
        """`by_temperature` has samples of the first problems of each group, shorter ones perhaps."""
        self.name = model.name
        self.model = model
        self.problems = problems
        self.samples = samples
        self.scoring = scoring
        """The verifier's own rule."""
        self.by_temperature = by_temperature
        self.most = min(len(one.answers) for one in samples)
        """Samples of each problem."""
        self.greedy = np.array([float(one.is_right[0]) for one in greedy])
        self.one = np.array([one.is_right.mean() for one in samples])
        self.rate = np.array([cells.get(cell_of(problem), math.nan) for problem in problems])
        """One-sample rate of the problem's cell among the calibration problems."""
        self.verified = all(one.scores for one in samples)
        self._prompt = np.array([one.prompt_cost for one in samples])
        self._sample = np.array([one.cost for one in samples])
        self._scores = np.array([one.scores_cost for one in samples])
        self.greedy_cost = np.array([one.prompt_cost + one.cost for one in greedy])
        """Of a greedy answer, prompt included."""
        self.majority = cache(self._majority)
        self.weighted = cache(self._weighted)
        self.best = cache(self._best)
        self.pass_at = cache(self._pass_at)
        self._explained: dict[bytes, dict[str, float]] = {}

    @cached_property
    def orders(self) -> Ints:
        """The same for all problems and models with so many samples."""
        return permutations(self.most)

    def cost(self, n: int, verified: bool) -> Floats:
        """Mean FLOPs of n samples, the prompt once, with the scores of all or without."""
        return self._prompt + n * (self._sample + (self._scores if verified else 0.0))

    @cached_property
    def medium(self) -> Bools:
        """Which problems are in the medium band, as told by other problems."""
        return np.logical_and(self.rate >= MEDIUM[0], self.rate <= MEDIUM[1])

    @cached_property
    def thirds(self) -> dict[str, Bools]:
        """Easy, middle and hard third, by the rate of the problem's cell; a cell is never divided."""
        low, high = np.nanquantile(self.rate, [1 / 3, 2 / 3])
        known = ~np.isnan(self.rate)
        hard = known & (self.rate <= low)
        easy = known & (self.rate >= high) & ~hard
        return {"easy": easy, "middle": known & ~easy & ~hard, "hard": hard}

    def _enough(self, n: int) -> None:
        if n > self.most:
            raise NotMeasured(f"needs {n} samples of each problem, and {self.most} are stored")

    def _scored(self, n: int, rule: str) -> list[tuple[Samples, Floats]]:
        self._enough(n)
        if not self.verified:
            raise NotMeasured(f"not all samples of {self.name} are scored: score first")
        return [(one, one.scores[rule or self.scoring]) for one in self.samples]

    def _majority(self, n: int) -> Floats:
        """Accuracy of a vote of n."""
        self._enough(n)
        return np.array([vote(one.answers, one.right, n, self.orders) for one in self.samples])

    def _weighted(self, n: int, rule: str = "") -> Floats:
        """Accuracy of a vote of n that is weighted by chain scores."""
        scored = self._scored(n, rule)
        return np.array([vote(one.answers, one.right, n, self.orders, scores) for one, scores in scored])

    def _best(self, n: int, rule: str = "") -> Floats:
        """Accuracy of the best scored of n."""
        scored = self._scored(n, rule)
        return np.array(
            [
                best_of(np.where(one.answers == NO_ANSWER, -np.inf, scores), one.is_right, n)
                for one, scores in scored
            ]
        )

    def _pass_at(self, n: int) -> Floats:
        """Whether one at least of n is right."""
        self._enough(n)
        return np.array([pass_at(n, len(one.answers), int(one.is_right.sum())) for one in self.samples])

    def figures(self, band: Bools) -> dict[str, float]:
        """What explains gains and their absence on these problems; an AUC only where there are scores."""
        key = band.tobytes()
        if key not in self._explained:
            chosen = [one for one, inside in zip(self.samples, band, strict=True) if inside]
            self._explained[key] = self._explain(chosen)
        return self._explained[key]

    def _explain(self, chosen: Sequence[Samples]) -> dict[str, float]:
        counts = [
            (int(one.is_right.sum()), np.bincount(one.answers[one.answers >= 0], minlength=1))
            for one in chosen
        ]
        found = {
            "commonest_wrong": float(np.mean([right < told.max() or not right for right, told in counts])),
            "never_right": float(np.mean([not right for right, _ in counts])),
            "repeated_texts": float(np.mean([one.repeated for one in chosen])),
        }
        if self.verified:
            chains = [auc(one.is_right.astype(float), one.scores[self.scoring]) for one in chosen]
            steps = auc(
                np.concatenate([one.steps_right for one in chosen]).astype(float),
                np.concatenate([one.steps for one in chosen]),
            )
            told = [value for value in chains if not math.isnan(value)]
            found |= {"chain_auc": float(np.mean(told))} if told else {}
            found |= {} if math.isnan(steps) else {"step_auc": steps}
        return found
