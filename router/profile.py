"""The profile: measured curves of each arm over types of queries, as calibration left them.

A profile is one JSON file with a version. Types are ordered by latent difficulty: mean 0 and standard
deviation 1 over the calibration queries, higher is harder; curves are arrays over the types, which
`training.profiles` finds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from isoflop.v1.common_pb2 import Model
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from router.lengths import Array, LengthCurve
from router.scaling import ScalingRecord
from router.strategies import STRATEGIES
from router.strategies.strategy import Search

SCHEMA = 2
"""Number of the form of the file; a profile of another number is refused."""

ROUND_SIZES = (1, 2, 4, 8, 16, 32)
"""Numbers of samples that the planner looks ahead by."""

RUNS = tuple((size, votes) for size in ROUND_SIZES for votes in range(size + 1))
"""So many of so many samples."""

MOST_VOTES = 4096
"""Most samples of a query that the tables below reach to."""

LEAST_BLANKS = 1e-3
"""A share of blanks below this, or above one less this, is taken to be this."""

SAMPLES_WORTH = {"low": 3.0, "medium": 8.0, "high": 20.0, "most": 1000.0}
"""What a right answer is worth at each effort, in samples of the dearest model: at low, one is bought for a
rise of a third, at medium of an eighth, at high of five points."""


class ProfileError(Exception):
    """A profile is not usable; `str(error)` says where and why."""


class LengthRecord(BaseModel):
    """How long an arm's samples are: see `router.lengths.LengthCurve`."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    mean: list[float]
    """Mean natural logarithm of a sample's tokens."""
    within: float = Field(gt=0)
    """Its standard deviation among samples of one query."""
    between: float = Field(gt=0)
    """That of the queries' means among queries of one type."""
    caps: list[int]
    """Caps on a sample's tokens that are worth considering, rising."""


class VerifiedRecord(BaseModel):
    """What a verifier's scores say of an arm's samples: see `Verified`."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    verifier: str
    """The verifier's name."""
    intercept: float
    slope: float = Field(gt=0)
    """Of the log-odds that a chain is right on the logit of its score, beyond what the type says."""
    alike: float = Field(ge=0)
    """How alike scores of one answer are: n of them say as much as n / (1 + (n - 1) alike). Above 1 many say
    less than one: what fools the verifier comes again."""
    right: float
    wrong: float
    """What a right and a wrong sample's score says on average, in log-odds."""
    votes: dict[int, list[float]]
    """Measured accuracy of a vote of n samples that are weighed by their scores, by n."""


class ArmRecord(BaseModel):
    """An arm as the file has it: one model at one temperature. Curves have a value for each type."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    model: str
    """The model's name."""
    temperature: float = Field(ge=0)
    """0: greedy, so that a second sample says nothing new."""
    p_right: list[float]
    """Chance that one sample is right."""
    p_right_error: list[float] | None = None
    """Its standard error; none: not told."""
    p_right_after_greedy: list[float] | None = None
    """The same where the model's greedy sample was wrong; none: as if that said nothing."""
    tokens: list[float]
    """Expected tokens of a sample."""
    length: LengthRecord | None = None
    """How long samples are; none: their length says nothing."""
    concentration: float = Field(gt=0)
    """How alike queries of one type are: p is Beta with mean p_right and so many pseudo-counts."""
    scatter: float | list[float]
    """How rarely wrong answers agree: the parameter of Ewens's sampling formula."""
    votes: dict[int, list[float]]
    """Measured accuracy of a majority vote of n samples, by n, from resampled calibration samples."""
    verified: list[VerifiedRecord] = []
    """What verifiers say of its samples."""
    blanks: float = Field(default=0.0, ge=0, le=1)
    """Share of wrong samples that have no answer."""
    alike: float = Field(default=0.0, ge=0)
    """How alike what it and other models say is, beyond what types tell: see `router.belief.weight`."""
    prompt_tokens_per_byte: float = Field(gt=0)
    """Prompt tokens for each byte of the query."""
    seconds_per_token: float = Field(ge=0)
    """Seconds that a token of a lone sample took when it was measured."""


class SearchRecord(BaseModel):
    """How wide and how deep a strategy goes: see `router.strategies.strategy.Search`."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    width: int = Field(ge=1)
    """Chains that are gone on with at a time."""
    expansion: int = Field(default=1, ge=1)
    """Continuations of each that are tried."""
    depth: int = Field(default=0, ge=0)
    """Most parts of a chain."""
    nodes: int = Field(default=0, ge=0)
    """Most steps in all; 0: as the others have it."""
    tokens: int = Field(default=0, ge=0)
    """Budget of thinking; 0: none."""


class DeepRecord(BaseModel):
    """A strategy that makes chains in parts, as it was measured with one model. Curves as those of arms."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    model: str
    """The model's name; it has an arm at a temperature, too."""
    temperature: float = Field(gt=0)
    """Of its samples."""
    strategy: str
    """The strategy's name."""
    search: SearchRecord
    """How wide and how deep it goes."""
    verifier: str = ""
    """The verifier that it goes by; empty: none."""
    p_right: list[float]
    """Chance that its best chain is right."""
    p_right_error: list[float] | None = None
    """Its standard error; none: not told."""
    tokens: list[float]
    """Expected tokens of that chain."""
    times: list[float]
    """What it costs in FLOPs, scores included, in samples of the model's arm at a temperature."""
    votes: dict[int, list[float]] = {}
    """Measured accuracy of a vote of n of its chains, by n; none: it is bought once."""


class BaselineRecord(BaseModel):
    """The fixed plan that the planner is compared with at one effort: so many samples of one model.

    It is the cheapest that is at least as often right as the planner was on the same calibration queries;
    where none is, the one that is most often right. Means over these queries; prompts are counted once a
    query and model. `training.baselines` measures both.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    model: str
    """The model's name."""
    temperature: float = Field(ge=0)
    """Of its samples; it has an arm at that."""
    strategy: Literal["single", "majority", "weighted"]
    """The strategy's name."""
    samples: int = Field(ge=1)
    """Of each query."""
    verifier: str = ""
    """That weighs the samples; empty: none."""
    accuracy: float = Field(ge=0, le=1)
    """Share of queries that it is right on."""
    flops: float = Field(gt=0)
    """Of a query, scores included."""
    expected_flops: float | None = Field(default=None, gt=0)
    """What `router.baseline` reckons of it from curves and beliefs, in the mean over the same queries: of
    others it is set right by the ratio. None: it was not measured."""
    money: float = Field(default=0.0, ge=0)
    """Likewise, in the catalogue's currency."""
    policy_accuracy: float = Field(ge=0, le=1)
    """That of the planner, on curves that were fitted without the query."""
    policy_flops: float = Field(ge=0)
    """Likewise; without the estimate of difficulty and the router's own work."""
    queries: int = Field(ge=1)
    """That both were measured on."""

    @property
    def reaches(self) -> bool:
        """Whether it is at least as often right as the planner."""
        return self.accuracy >= self.policy_accuracy


class ProfileRecord(BaseModel):
    """A profile as the file has it."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    form: int = Field(alias="schema")
    """Number of this form."""
    version: str
    """Name of this profile, told in responses and metrics."""
    grid: list[float]
    """Mean latent difficulty of each type of queries, rising."""
    prior: list[float]
    """Share of calibration queries of each type."""
    arms: list[ArmRecord]
    """Measured arms."""
    deep: list[DeepRecord] = []
    """Measured strategies that make chains in parts."""
    efforts: dict[str, float]
    """FLOPs that a right answer is worth at effort low, medium, high, and `most`: as good as no limit."""
    scaling: list[ScalingRecord] = []
    """Scaling laws of models and strategies, over all queries and by bin of difficulty."""
    baselines: dict[str, BaselineRecord] = {}
    """Fixed plans to compare with, by effort; none: it was not measured."""

    @model_validator(mode="after")
    def _consistent(self) -> ProfileRecord:
        if self.form != SCHEMA:
            raise ValueError(f"schema {self.form}, but this router reads {SCHEMA}: calibrate again")
        size = len(self.grid)
        if size < 2 or any(b < a for a, b in zip(self.grid, self.grid[1:], strict=False)):
            raise ValueError("the grid falls")
        if {"low", "medium", "high", "most"} - set(self.efforts) or min(self.efforts.values()) <= 0:
            raise ValueError("efforts low, medium, high and most are needed, each positive")
        if len(self.prior) != size or min(self.prior) < 0 or sum(self.prior) <= 0:
            raise ValueError("the prior is no distribution over the grid")
        if not self.arms:
            raise ValueError("there are no arms")
        for arm in self.arms:
            chances = [arm.p_right, arm.p_right_after_greedy or arm.p_right, *arm.votes.values()]
            chances += [arm.p_right_error or arm.p_right]
            chances += [curve for told in arm.verified for curve in told.votes.values()]
            lengths = [arm.length.mean] if arm.length else []
            if any(len(curve) != size for curve in (arm.tokens, *chances, *lengths)):
                raise ValueError(f"{arm.model}: a curve has not {size} values")
            if any(not 0 <= value <= 1 for curve in chances for value in curve):
                raise ValueError(f"{arm.model}: a probability is not in [0, 1]")
            scatters = arm.scatter if isinstance(arm.scatter, list) else [arm.scatter] * size
            if len(scatters) != size or min(scatters) <= 0:
                raise ValueError(f"{arm.model}: scatter is not positive, or has not {size} values")
            if min(arm.tokens) <= 0:
                raise ValueError(f"{arm.model}: expected tokens are not positive")
            if min(arm.votes, default=1) < 1:
                raise ValueError(f"{arm.model}: votes of {min(arm.votes)} samples")
            if 1 not in arm.votes and arm.temperature > 0:
                raise ValueError(f"{arm.model}: the accuracy of one sample is missing")
        sampled = {arm.model for arm in self.arms if arm.temperature > 0}
        for one in self.deep:
            name = f"{one.model} {one.strategy}"
            chances = [one.p_right, *one.votes.values()]
            if any(len(curve) != size for curve in (*chances, one.tokens, one.times)):
                raise ValueError(f"{name}: a curve has not {size} values")
            if any(not 0 <= value <= 1 for curve in chances for value in curve):
                raise ValueError(f"{name}: a probability is not in [0, 1]")
            if min(*one.tokens, *one.times) <= 0:
                raise ValueError(f"{name}: what it costs is not positive")
            if one.strategy not in STRATEGIES or not (shape := STRATEGIES[one.strategy].shape):
                raise ValueError(f"no strategy {one.strategy!r} makes chains in parts")
            if STRATEGIES[one.strategy].verifies != bool(one.verifier):
                raise ValueError(f"{name}: it needs a verifier, or has one that it does not need")
            if bool(shape.nodes) != (one.search.nodes >= one.search.expansion):
                raise ValueError(f"{name}: a tree has nodes, at least as many as expansion says")
            if one.votes and (min(one.votes) < 1 or one.search.width > 1 or one.verifier):
                raise ValueError(f"{name}: votes are of one chain each, without scores")
            if one.model not in sampled:
                raise ValueError(f"{name}: its model has no arm at a temperature")
        arms = {(arm.model, arm.temperature) for arm in self.arms}
        for effort, plan in self.baselines.items():
            if effort not in self.efforts:
                raise ValueError(f"baseline {effort}: there is no such effort")
            if (plan.model, plan.temperature) not in arms:
                raise ValueError(
                    f"baseline {effort}: {plan.model} has no arm at temperature {plan.temperature:g}"
                )
            if (plan.strategy == "weighted") != bool(plan.verifier):
                raise ValueError(
                    f"baseline {effort}: a verifier goes with strategy weighted, and with no other"
                )
        return self


def together(evidence: float, samples: float, alike: float) -> float:
    """What the scores of so many samples of one answer say, where the sum of what each says is `evidence`."""
    return evidence / (1 + (samples - 1) * alike) if samples > 1 else evidence


@dataclass(frozen=True, eq=False)
class Verified:
    """What a verifier's scores say of an arm's samples."""

    verifier: str
    intercept: float
    slope: float
    alike: float
    """How alike scores of one answer are: a clustered sample's design effect (Kish 1965)."""
    right: float
    wrong: float
    """What a right and a wrong sample's score says on average, in log-odds."""
    votes: Array
    """Shape (len(ROUND_SIZES), D): accuracy of a vote weighed by scores."""

    def evidence(self, score: float) -> float:
        """Logarithm of how much likelier the score of a chain is where its answer is right."""
        score = min(max(score, 0.001), 0.999)
        return self.intercept + self.slope * math.log(score / (1 - score))


@dataclass(frozen=True, eq=False)
class Arm:
    """One model at one temperature, with the tables that the planner reads. D is the number of types."""

    model: str
    temperature: float
    p_right: Array
    """Shape (D,): chance that one sample is right, kept off 0 and 1."""
    tokens: Array
    """Shape (D,)."""
    concentration: float
    scatter: Array | float
    """Shape (D,), or the same for all types."""
    votes: Array
    """Shape (len(ROUND_SIZES), D): accuracy of a majority vote."""
    prompt_tokens_per_byte: float
    seconds_per_token: float
    blanks: float = 0.0
    """Share of wrong samples that have no answer."""
    alike: float = 0.0
    """How alike what it and other models say is, beyond what types tell: see `router.belief.weight`."""
    measured: bool = True
    """False for a model that was never calibrated: curves of ignorance."""
    length: LengthCurve | None = None
    """How long its samples are; none: not known."""
    caps: tuple[int, ...] = ()
    """Caps on a sample's tokens that are worth considering, rising."""
    verified: tuple[Verified, ...] = ()
    """What verifiers say of its samples."""
    after_greedy: tuple[Arm, Arm] | None = None
    """The same arm where the model's greedy sample was wrong, and where it was right; none: not known."""

    @property
    def greedy(self) -> bool:
        """Whether a second sample says nothing new."""
        return self.temperature == 0

    def verified_by(self, verifier: str) -> Verified | None:
        """What a verifier's scores say; None: it was not measured."""
        return next((told for told in self.verified if told.verifier == verifier), None)

    @cached_property
    def rising(self) -> tuple[Array, Array, Array]:
        """Sums of logarithms, shape (MOST_VOTES + 1, D) twice and (MOST_VOTES + 1,).

        For k right and m wrong of n samples the beta-binomial likelihood is
        exp(right[k] + wrong[m] - total[n]).
        """
        counts = np.arange(MOST_VOTES)[:, None]
        zero = np.zeros((1, len(self.p_right)))
        right = np.log(self.concentration * self.p_right + counts)
        wrong = np.log(self.concentration * (1 - self.p_right) + counts)
        total = np.log(self.concentration + counts[:, 0])
        return (
            np.vstack([zero, np.cumsum(right, axis=0)]),
            np.vstack([zero, np.cumsum(wrong, axis=0)]),
            np.concatenate([[0.0], np.cumsum(total)]),
        )

    def log_blanks(self, answered: NDArray[np.int64], blanks: int) -> Array:
        """Logarithm of the chance that of wrong samples in an order so many are blank, others `answered`.

        Beta-binomial with mean `blanks` and one pseudo-count, as queries differ much. Shape as `answered`.
        """
        none, some, total = self._blank
        return np.asarray(none[blanks] + some[answered] - total[answered + blanks])

    @cached_property
    def _blank(self) -> tuple[Array, Array, Array]:
        """Sums of logarithms, shape (MOST_VOTES + 1,) each, as `rising` has them."""
        share = min(max(self.blanks, LEAST_BLANKS), 1 - LEAST_BLANKS)
        counts = np.arange(MOST_VOTES)
        none, some, total = (np.cumsum(np.log(mean + counts)) for mean in (share, 1 - share, 1.0))
        return np.insert(none, 0, 0.0), np.insert(some, 0, 0.0), np.insert(total, 0, 0.0)

    @cached_property
    def runs(self) -> Array:
        """Shape (len(RUNS), D): chance of one sequence of so many samples of which so many are right."""
        right, wrong, total = self.rising
        return np.exp([right[v] + wrong[n - v] - total[n] for n, v in RUNS])


@dataclass(frozen=True, eq=False)
class Deep:
    """A strategy that makes chains in parts, as it was measured with one model."""

    arm: Arm
    """The curves of its best chain; otherwise as the model's samples."""
    strategy: str
    search: Search
    verifier: str
    """Empty: none."""
    times: Array
    """Shape (D,): what it costs in samples of the model's."""
    once: bool = True
    """It is bought once, and its best chain is one vote; else as often as pays, each chain with a vote."""


@dataclass(frozen=True, eq=False)
class Profile:
    """Measured curves."""

    version: str
    grid: Array
    """Shape (D,): latent difficulty of each type."""
    prior: Array
    """Shape (D,): share of calibration queries of each type, sums to 1."""
    arms: tuple[Arm, ...]
    efforts: dict[str, float]
    scaling: tuple[ScalingRecord, ...] = ()
    """Scaling laws, as calibration fitted them."""
    deep: tuple[Deep, ...] = ()
    """Strategies that make chains in parts."""
    baselines: Mapping[str, BaselineRecord] = field(default_factory=dict)
    """Fixed plans to compare with, by effort."""

    def belief(self, mean: float, sd: float) -> Array:
        """The belief over the types of queries that an estimate of difficulty leaves, shape (D,), sums to 1.

        The estimate is a posterior under a standard normal prior, which the shares of the types stand for:
        each has its share, times how much likelier the estimate makes its difficulty than that prior did.
        """
        # An estimate beyond the types is as hard, or as easy, as the types know.
        mean = min(max(mean, float(self.grid[0])), float(self.grid[-1]))
        likelier = 0.5 * np.minimum(self.grid**2, 9.0) - 0.5 * ((self.grid - mean) / min(sd, 1.0)) ** 2
        weight = self.prior * np.exp(likelier - likelier.max()) + 1e-12
        return np.asarray(weight / weight.sum())

    @cached_property
    def certain(self) -> Array:
        """Shape (D, D): by type, the belief that a query is of it, as good as for sure."""
        return np.asarray(np.eye(len(self.grid)) * (1 - 1e-9) + 1e-9 / len(self.grid))

    def bins(self, count: int) -> Array:
        """Share of each type in each of `count` bins of equally many queries: see `equal_bins`."""
        return equal_bins(self.prior, count)

    def arm(self, model: Model, greedy: bool, temperature: float | None) -> Arm:
        """The arm of a model that is nearest to a temperature; curves of ignorance where it has none."""
        own = [arm for arm in self.arms if arm.model == model.name and arm.greedy == greedy]
        if not own and greedy:
            # Its greedy sample was never measured: one at a temperature is what is known.
            own = [arm for arm in self.arms if arm.model == model.name]
        if not own:
            return _ignorance(self, model.name, model.context, 0.0 if greedy else 0.8)
        if temperature is None:
            return own[0]
        return min(own, key=lambda arm: abs(arm.temperature - temperature))


def equal_bins(share: Array, count: int) -> Array:
    """Share of each type in each of `count` bins of equally many queries, in the order of the types.

    `share`, shape (D,), is that of the queries of each type; shape (count, D), and rows sum to 1.
    """
    ends = np.concatenate([[0.0], np.cumsum(share / share.sum())])
    edges = np.linspace(0.0, 1.0, count + 1)
    inside = np.minimum(ends[1:], edges[1:, None]) - np.maximum(ends[:-1], edges[:-1, None])
    inside = np.maximum(inside, 0.0)
    return np.asarray(inside / inside.sum(axis=1, keepdims=True))


@lru_cache(maxsize=256)
def _ignorance(profile: Profile, model: str, context: int, temperature: float) -> Arm:
    """An arm for a model that was never measured: right as often as difficulty says, no better."""
    p_right = 1 / (1 + np.exp(profile.grid))
    return Arm(
        model=model,
        temperature=temperature,
        p_right=p_right,
        tokens=np.full(len(profile.grid), min(512.0, (context or 2048) / 4)),
        concentration=2.0,
        scatter=2.0,
        votes=np.tile(p_right, (len(ROUND_SIZES), 1)),
        prompt_tokens_per_byte=1.0,
        seconds_per_token=0.0,
        measured=False,
    )


def parse(data: Any) -> Profile:
    """A profile from decoded JSON; raises ValidationError."""
    record = ProfileRecord.model_validate(data)
    prior = np.array(record.prior)
    arms = []
    for arm in record.arms:
        p_right = np.clip(np.array(arm.p_right), 1e-4, 1 - 1e-4)
        votes = _by_size(arm.votes, arm.p_right)
        arms.append(
            Arm(
                model=arm.model,
                temperature=arm.temperature,
                p_right=p_right,
                tokens=np.array(arm.tokens),
                concentration=arm.concentration,
                scatter=np.broadcast_to(arm.scatter, prior.shape),
                votes=votes,
                blanks=arm.blanks,
                alike=arm.alike,
                prompt_tokens_per_byte=arm.prompt_tokens_per_byte,
                seconds_per_token=arm.seconds_per_token,
                length=_length(arm.length) if arm.length else None,
                caps=tuple(arm.length.caps) if arm.length else (),
                verified=tuple(
                    Verified(**{**dict(told), "votes": _by_size(told.votes, arm.p_right)})
                    for told in arm.verified
                ),
            )
        )
        if arm.p_right_after_greedy:
            greedy = next(
                (other for other in record.arms if other.model == arm.model and not other.temperature), arm
            )
            arms[-1] = _after_greedy(arms[-1], np.array(greedy.p_right), np.array(arm.p_right_after_greedy))
    return Profile(
        record.version,
        np.array(record.grid),
        prior / prior.sum(),
        tuple(arms),
        record.efforts,
        tuple(record.scaling),
        tuple(_deep(one, arms) for one in record.deep),
        record.baselines,
    )


def _deep(record: DeepRecord, arms: Sequence[Arm]) -> Deep:
    """The strategy's curves, beside what its model's samples are like."""
    own = next(arm for arm in arms if arm.model == record.model and not arm.greedy)
    p_right = np.clip(np.array(record.p_right), 1e-4, 1 - 1e-4)
    arm = replace(
        own,
        temperature=record.temperature,
        p_right=p_right,
        tokens=np.array(record.tokens),
        votes=_by_size(record.votes, record.p_right),
        length=None,
        caps=(),
        verified=(),
        after_greedy=None,
    )
    search = Search(**record.search.model_dump())
    return Deep(arm, record.strategy, search, record.verifier, np.array(record.times), not record.votes)


def _by_size(votes: dict[int, list[float]], once: list[float]) -> Array:
    """Shape (len(ROUND_SIZES), D): accuracy of votes, between and beyond those that were measured, too."""
    known = sorted(votes) or [1]
    curves = np.array([votes.get(n, once) for n in known])
    at, sizes = np.log(known), np.log(ROUND_SIZES)
    return np.array([np.interp(sizes, at, column) for column in curves.T]).T


def _length(record: LengthRecord) -> LengthCurve:
    return LengthCurve(np.array(record.mean), record.within, record.between)


def _after_greedy(arm: Arm, greedy: Array, wrong: Array) -> Arm:
    """The arm with what it is after a greedy sample.

    `greedy` is the chance that that is right, `wrong` that of a sample where it was not; where it was
    right follows, since the mean of the two is the arm's own curve.
    """
    right = (arm.p_right - (1 - greedy) * wrong) / np.maximum(greedy, 1e-4)
    return replace(
        arm,
        after_greedy=(
            replace(arm, p_right=np.clip(np.minimum(wrong, arm.p_right), 1e-4, 1 - 1e-4)),
            replace(arm, p_right=np.clip(np.maximum(right, arm.p_right), 1e-4, 1 - 1e-4)),
        ),
    )


def first_fault(error: ValidationError) -> str:
    """Where the first fault of a file is, and what."""
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"]) or "it"
    return f"{where}: {fault['msg']}"


def load(path: Path) -> Profile:
    """Read a profile; raises ProfileError."""
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ProfileError(f"profile {path}: {error.strerror}") from None
    except ValidationError as error:
        raise ProfileError(f"profile {path}: {first_fault(error)}") from None
    except ValueError as error:
        raise ProfileError(f"profile {path}: not JSON ({error})") from None
