"""A small profile and the models that it speaks of, as calibration might have left them.

Three models on one grid of latent difficulty: `s` is cheap and good at what is easy, `m` and `l` cost about
7 and 40 times as much a token and can do more. Beyond difficulty 2 nobody is right.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from hypothesis import settings
from isoflop.v1.common_pb2 import Capabilities, Message, Model, Price, Shape
from isoflop.v1.router_pb2 import SolveRequest
from isoflop.v1.verification_pb2 import Verifier

from router.accuracy import Stack, race
from router.belief import NO_VOTES, Posterior, Votes, update
from router.catalog import Catalog
from router.decision import UNLIMITED, State
from router.planner import Planner
from router.profile import ROUND_SIZES, SCHEMA, Arm, Array, Profile, parse
from router.query import Bounds, Query, admit

relaxed = settings(deadline=None, max_examples=60)
"""Of property tests, on a machine that does something else at the same time."""

GRID = np.linspace(-2.5, 2.5, 21)
EASY, MIDDLE, HARD, IMPOSSIBLE = -2.2, -0.3, 0.9, 2.5

SKILL = {"s": -0.3, "m": 0.6, "l": 1.6}
"""Difficulty at which half of a model's samples are right."""
PARAMETERS = {"s": 60_000, "m": 400_000, "l": 2_500_000}
VOTES = (1, 4, 16)
"""Sizes of votes that were measured."""
EFFORTS = {"low": 3e7, "medium": 5e8, "high": 5e9, "most": 1e15}
BOUNDS = Bounds(prompt_bytes=64 << 10, samples=1024, messages=256)
MESSAGES = (Message(role="user", content="17*24+13"),)


def p_right(model: str) -> Array:
    return np.asarray(1 / (1 + np.exp(4 * (GRID - SKILL[model]))))


def vote(p: Array, samples: int) -> Array:
    """Accuracy of a vote: it makes sure what is right often, and helps little where it is rare."""
    x = np.minimum(1, 1.4 * p)
    ceiling = x**2 * (3 - 2 * x)
    return np.asarray(np.minimum(1, p + (np.maximum(ceiling, p) - p) * (1 - samples**-0.6)))


def arm_record(model: str, temperature: float = 0.8, **changes: Any) -> dict[str, Any]:
    """An arm as the file has it."""
    p = p_right(model)
    return {
        "model": model,
        "temperature": temperature,
        "p_right": p.tolist(),
        "tokens": (40 + 10 * (GRID + 2.5)).tolist(),
        "concentration": 3.0,
        "scatter": 3.0,
        "votes": {str(n): vote(p, n).tolist() for n in VOTES} if temperature else {},
        "prompt_tokens_per_byte": 1.0,
        "seconds_per_token": 1e-5 * PARAMETERS[model] / 60_000,
    } | changes


def record(models: Iterable[str] = ("s", "m", "l"), **changes: Any) -> dict[str, Any]:
    """A profile as the file has it: each model greedy, and at a temperature."""
    prior = np.exp(-0.5 * GRID**2)
    return {
        "schema": SCHEMA,
        "version": "synthetic-1",
        "grid": GRID.tolist(),
        "prior": (prior / prior.sum()).tolist(),
        "arms": [arm_record(model, temperature) for model in models for temperature in (0.8, 0.0)],
        "efforts": dict(EFFORTS),
    } | changes


def make_profile(models: Iterable[str] = ("s", "m", "l"), **changes: Any) -> Profile:
    return parse(record(models, **changes))


def make_arm(**changes: Any) -> Arm:
    """One arm; by default right with 0.7 whatever the difficulty, on a grid of two."""
    flat = np.full(2, 0.7)
    fields: dict[str, Any] = {
        "model": "s",
        "temperature": 0.8,
        "p_right": flat,
        "tokens": np.full(2, 50.0),
        "concentration": 5.0,
        "scatter": 5.0,
        "votes": np.tile(flat, (6, 1)),
        "prompt_tokens_per_byte": 1.0,
        "seconds_per_token": 0.0,
    }
    return Arm(**(fields | changes))


def make_model(name: str = "s", **changes: Any) -> Model:
    fields: dict[str, Any] = {
        "name": name,
        "backend": "scripted",
        "shape": Shape(active_parameters=PARAMETERS.get(name, 100_000), layers=3, heads=4, head_size=16),
        "context": 1024,
        "price": Price(
            currency="USD",
            per_million_prompt_tokens=0.1 * PARAMETERS.get(name, 100_000) / 60_000,
            per_million_cached_tokens=0.01,
            per_million_completion_tokens=0.4 * PARAMETERS.get(name, 100_000) / 60_000,
        ),
        "capabilities": Capabilities(logprobs=True),
    }
    return Model(**(fields | changes))


def make_catalog(*models: Model) -> Catalog:
    verifier = Verifier(name="logprob", backend="logprob", needs_logprobs=True)
    return Catalog.of(models or [make_model(name) for name in ("l", "s", "m")], [verifier])


def make_planner(profile: Profile | None = None, *models: Model, round_samples: int = 4) -> Planner:
    return Planner(profile or make_profile(), make_catalog(*models), round_samples)


def make_query(planner: Planner, **fields: Any) -> Query:
    """A query as it was admitted; `fields` are those of SolveRequest."""
    request = SolveRequest(**{"prompt": MESSAGES[0].content, **fields})
    return admit(request, planner.catalog, BOUNDS)


def make_state(
    planner: Planner,
    difficulty: float,
    votes: Votes = NO_VOTES,
    sd: float = 0.3,
    **changes: Any,
) -> State:
    """What is known of a query of some difficulty after votes."""
    bought: dict[str, int] = {}
    for arm, counts, blanks in zip(votes.arms, votes.counts, votes.blanks, strict=True):
        bought[arm.model] = bought.get(arm.model, 0) + int(counts.sum() + blanks)
    posterior: Posterior = update(planner.profile.belief(difficulty, sd), votes)
    fields: dict[str, Any] = {
        "posterior": posterior,
        "confidence": posterior.confidence,
        "votes": votes,
        "bought": bought,
        "greedy": frozenset(arm.model for arm in votes.arms if arm.greedy),
        "left": UNLIMITED,
        "seconds": math.inf,
    }
    return State(**(fields | changes))


def make_votes(*rows: tuple[Arm, list[int], int]) -> Votes:
    """For each arm its votes by cluster, and its blanks."""
    counts = np.array([counts for _, counts, _ in rows], dtype=float).reshape(len(rows), -1)
    return Votes(tuple(arm for arm, _, _ in rows), counts, np.array([float(b) for _, _, b in rows]))


def expected_accuracy(posterior: Posterior, arm: Arm, samples: int, had: int = 0) -> float:
    """Expected P(the returned answer is right) after so many more samples of one arm (one of ROUND_SIZES)."""
    stack = Stack.of(((arm, None),))
    return float(race(posterior).accuracies(stack, np.array([[had]]))[0, 0, ROUND_SIZES.index(samples)])
