"""Simulated queries, of which all that the planner believes is true: what it does can be told from luck.

A query has a type; each model is right on it with a chance that is beta-distributed among the queries of that
type, wrong answers agree as in Ewens's sampling formula, tokens are log-normal, and a verifier's score is
normal in log-odds. That is the model of `router.belief`, so that a profile with the same numbers is exact.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from isoflop.v1.common_pb2 import Message, Model, Price, Shape
from isoflop.v1.router_pb2 import SolveRequest
from isoflop.v1.verification_pb2 import CHAIN_SCORING_PRODUCT, Verifier

from router.belief import NO_VOTES, Posterior, Votes, update
from router.catalog import Catalog
from router.cost import Cost, samples
from router.decision import Action, Decision, State
from router.lengths import UNSEEN, Array, LengthCurve, Lengths
from router.planner import Planner
from router.profile import ROUND_SIZES, Arm, Profile, Verified, together
from router.query import Bounds, Query, admit

BOUNDS = Bounds(prompt_bytes=64 << 10, samples=1024, messages=256)
PROMPT = "17*24+13"
EFFORTS = {"low": 3.0, "medium": 8.0, "high": 20.0, "most": 1000.0}
"""What a right answer is worth, in samples of the dearest model: as `training.profiles` has it."""
SAMPLES = 400
"""Simulated queries of each type for the accuracy of votes."""
PRM = Verifier(
    name="prm",
    backend="simulated",
    scoring=CHAIN_SCORING_PRODUCT,
    shape=Shape(active_parameters=20_000, layers=2, heads=4, head_size=16),
)


@dataclass(frozen=True)
class Talent:
    """A model as it is simulated."""

    name: str
    parameters: int
    p_right: Array
    """Shape (D,)."""
    log_tokens: Array
    """Shape (D,): mean of the logarithm of a sample's tokens."""
    scatter: Array
    """Shape (D,): see `router.profile.Arm`."""
    concentration: float = 6.0
    seconds_per_token: float = 1e-3


def planner_of(
    talents: Sequence[Talent],
    prior: Array,
    *,
    lengths: bool = False,
    telling: float = 0.0,
    round_samples: int = 4,
    seed: int = 1,
) -> Planner:
    """A planner whose profile has the talents' own numbers.

    It knows of `lengths` where told so, and of a verifier whose scores tell right from wrong by twice
    `telling` standard deviations where that is above 0.
    """
    rng = np.random.default_rng(seed)
    arms = tuple(_arm(talent, lengths, telling, rng) for talent in talents)
    grid = np.linspace(-2.5, 2.5, len(prior))
    catalog = Catalog.of([_model(talent) for talent in talents], [PRM] if telling else [])
    dearest = max(talents, key=lambda talent: talent.parameters)
    tokens = float(prior @ np.exp(dearest.log_tokens))
    once = samples(catalog.models[dearest.name], 1, len(PROMPT), tokens).flops
    efforts = {name: worth * once for name, worth in EFFORTS.items()}
    return Planner(Profile("simulated", grid, prior, arms, efforts), catalog, round_samples)


WITHIN, BETWEEN = 0.3, 0.25
"""Spread of the logarithm of tokens among samples of a query, and among queries of a type."""


def _arm(talent: Talent, lengths: bool, telling: float, rng: np.random.Generator) -> Arm:
    tokens = np.exp(talent.log_tokens + 0.5 * (WITHIN**2 + BETWEEN**2))
    # Scores are normal in log-odds with mean ± v and variance 2 v: then they mean what they say.
    told = 2 * telling**2
    scored = Verified(PRM.name, 0.0, 1.0, 0.0, told, -told, _vote_curves(talent, told, rng))
    return Arm(
        model=talent.name,
        temperature=0.7,
        p_right=np.clip(talent.p_right, 1e-4, 1 - 1e-4),
        tokens=tokens,
        concentration=talent.concentration,
        scatter=talent.scatter,
        votes=_vote_curves(talent, 0.0, rng),
        prompt_tokens_per_byte=1.0,
        seconds_per_token=talent.seconds_per_token,
        length=LengthCurve(talent.log_tokens, WITHIN, BETWEEN) if lengths else None,
        caps=tuple(int(np.quantile(tokens, q)) for q in (0.5, 0.95)) if lengths else (),
        verified=(scored,) if telling else (),
    )


def _model(talent: Talent) -> Model:
    return Model(
        name=talent.name,
        backend="simulated",
        shape=Shape(active_parameters=talent.parameters, layers=3, heads=4, head_size=16),
        context=1 << 16,
        price=Price(currency="USD", per_million_completion_tokens=talent.parameters / 1e6),
    )


def _vote_curves(talent: Talent, told: float, rng: np.random.Generator) -> Array:
    """Accuracy of votes, shape (len(ROUND_SIZES), D); weighed by scores where `told` is above 0."""
    types, most = len(talent.p_right), max(ROUND_SIZES)
    a, b = talent.concentration * talent.p_right, talent.concentration * (1 - talent.p_right)
    chance = rng.beta(np.maximum(a, 1e-6), np.maximum(b, 1e-6), (SAMPLES, types)).T.ravel()
    scatter, rows = np.repeat(talent.scatter, SAMPLES), np.arange(types * SAMPLES)
    wrong = np.zeros(len(rows), int)  # Wrong samples so far, and different wrong answers.
    answers = np.zeros(len(rows), int)
    earlier = np.zeros((len(rows), most), int)
    votes = np.zeros((len(rows), most + 1))  # The first column: right.
    curves = []
    for place in range(most):
        right = rng.random(len(rows)) < chance
        pick = rng.random(len(rows)) * (scatter + wrong)
        repeats = pick < wrong
        answer = np.where(repeats, earlier[rows, np.minimum(pick.astype(int), most - 1)], answers + 1)
        earlier[rows[~right], wrong[~right]] = answer[~right]
        wrong, answers = wrong + ~right, answers + (~right & ~repeats)
        noise = rng.normal(0.0, math.sqrt(2 * told), len(rows)) if told else 0.0
        votes[rows, np.where(right, 0, answer)] += 1.0 + (
            np.where(right, told, -told) + noise if told else 0.0
        )
        if place + 1 in ROUND_SIZES:
            best = votes.max(axis=1, keepdims=True)
            leads = votes >= best - 1e-9
            curves.append(((votes[:, 0] >= best[:, 0] - 1e-9) / leads.sum(axis=1)).reshape(types, -1).mean(1))
    return np.array(curves)


@dataclass
class Truth:
    """A query of a type: what its samples are."""

    planner: Planner
    talents: dict[str, Talent]
    type: int
    rng: random.Random
    telling: float = 0.0
    _chance: dict[str, float] = field(default_factory=dict)
    _long: dict[str, float] = field(default_factory=dict)
    _wrong: list[int] = field(default_factory=list)
    """Wrong answers so far, by number from 1."""

    def sample(self, model: str) -> tuple[int, int, float]:
        """The next one's answer (0 is right), its tokens, and what its score says in log-odds."""
        talent, rng = self.talents[model], self.rng
        if model not in self._chance:
            p = min(max(float(talent.p_right[self.type]), 1e-6), 1 - 1e-6)
            self._chance[model] = rng.betavariate(talent.concentration * p, talent.concentration * (1 - p))
            self._long[model] = talent.log_tokens[self.type] + BETWEEN * rng.gauss(0, 1)
        tokens = math.exp(self._long[model] + WITHIN * rng.gauss(0, 1))
        right, told = rng.random() < self._chance[model], 2 * self.telling**2
        said = (told if right else -told) + math.sqrt(2 * told) * rng.gauss(0, 1)
        if right:
            return 0, max(1, round(tokens)), said
        pick = rng.random() * (talent.scatter[self.type] + len(self._wrong))
        repeats = pick < len(self._wrong)
        answer = self._wrong[int(pick)] if repeats else max(self._wrong, default=0) + 1
        self._wrong.append(answer)
        return answer, max(1, round(tokens)), said


@dataclass
class Play:
    """One query: what was bought, and what came."""

    planner: Planner
    query: Query
    truth: Truth
    prior: Array
    """Shape (D,): the belief about its type before anything was bought."""
    seconds: float = math.inf
    pace: dict[str, float] = field(default_factory=dict)
    arms: list[Arm] = field(default_factory=list)
    lengths: list[Lengths] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    """Distinct ones, as they came."""
    votes: dict[tuple[int, int], list[float | None]] = field(default_factory=dict)
    """By arm and answer: what each score says; None: it has none."""
    bought: dict[str, int] = field(default_factory=dict)
    spent: Cost = field(default_factory=Cost)

    def state(self) -> State:
        """All that is known."""
        votes = self._votes() if self.arms else NO_VOTES
        posterior = update(self.prior, votes)
        return State(
            posterior,
            posterior.confidence,
            dict(self.bought),
            frozenset(),
            self.query.limit - self.spent,
            self.seconds,
            self.spent.flops,
            votes,
            self.pace,
        )

    def steps(self) -> Iterator[tuple[State, Decision]]:
        """Decide, buy and see, till it stops."""
        while True:
            state = self.state()
            decision = self.planner.decide(self.query, state)
            yield state, decision
            if decision.action is None:
                return
            self.buy(decision.action)

    def buy(self, action: Action) -> None:
        """A round: it is charged what it really took."""
        model, row = action.model.name, self._row(action.arm)
        for _ in range(action.samples):
            answer, tokens, said = self.truth.sample(model)
            cut = tokens > action.max_tokens
            tokens = min(tokens, action.max_tokens)
            self.lengths[row] = self.lengths[row].and_one(tokens, cut)
            self.spent += samples(action.model, 1, self.query.prompt_bytes, tokens, action.verifier)
            self.bought[model] = self.bought.get(model, 0) + 1
            if cut:
                continue
            if answer not in self.answers:
                self.answers.append(answer)
            self.votes.setdefault((row, answer), []).append(said if action.verified else None)

    def right(self, posterior: Posterior) -> bool:
        """Whether the answer that would be returned is right."""
        return posterior.leader >= 0 and self.answers[posterior.leader] == 0

    def _row(self, arm: Arm) -> int:
        if arm not in self.arms:
            self.arms.append(arm)
            self.lengths.append(UNSEEN)
        return self.arms.index(arm)

    def _votes(self) -> Votes:
        counts = np.zeros((len(self.arms), len(self.answers)))
        evidence = np.zeros(len(self.answers))
        for (row, answer), said in self.votes.items():
            column = self.answers.index(answer)
            counts[row, column] = len(said)
            told = [one for one in said if one is not None]
            if told:
                evidence[column] += together(sum(told), len(told), self.arms[row].verified[0].alike)
        blanks = np.zeros(len(self.arms))
        return Votes(
            tuple(self.arms), counts, blanks, tuple(self.lengths), evidence if evidence.any() else None
        )


def ask(planner: Planner, request: SolveRequest | None = None) -> Query:
    """A query as it was admitted."""
    asked = SolveRequest()
    asked.CopyFrom(request or SolveRequest())
    asked.ClearField("prompt")
    asked.messages.append(Message(role="user", content=PROMPT))
    return admit(asked, planner.catalog, BOUNDS)


def many_talents(number: int, types: int, seed: int = 1) -> tuple[list[Talent], Array]:
    """So many models of all sizes, with the shares of so many types."""
    rng = np.random.default_rng(seed)
    grid = np.linspace(-2.5, 2.5, types)
    talents = []
    for index, skill in enumerate(np.linspace(-1.0, 1.8, number)):
        slope = rng.uniform(1.5, 4.0)
        p = 0.98 / (1 + np.exp(slope * (grid - skill - rng.normal(0, 0.2))))
        log_tokens = math.log(200) + 0.35 * grid + rng.normal(0, 0.2)
        scatter = np.where(np.arange(types) % 8 == 7, 0.3, rng.uniform(1.5, 5.0))
        parameters = round(50_000 * 100 ** (index / max(number - 1, 1)))
        talents.append(Talent(f"m{index}", parameters, p, log_tokens, scatter))
    prior = np.exp(-0.5 * grid**2)
    return talents, prior / prior.sum()
