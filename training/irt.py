"""Item-response theory: how hard each query is and how able each model, from counts of right answers.

The two-parameter logistic model (Lord 1980): one sample of model m on query q is right with probability

    1 / (1 + exp(-slope[m] * (ability[m] - difficulty[q])))

Difficulties are standard normal over the queries. They are integrated out while abilities and slopes are
fitted (marginal maximum likelihood; Bock & Aitkin 1981, doi 10.1007/BF02293801): few models would bias
difficulties that are fitted beside them. Only numbers go in and out; nothing is read or written.

A unit of difficulty is what calibration queries vary by. In logits it is the geometric mean of the slopes:
divide slopes by it, and multiply difficulties and abilities, for the form whose slopes have mean 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logsumexp

Array = NDArray[np.float64]

NODES = np.linspace(-5.0, 5.0, 161)
"""Difficulties that are summed over. Their distance is well below what a hundred samples can tell apart."""
PRIOR = -0.5 * NODES**2 - logsumexp(-0.5 * NODES**2)
"""Logarithm of the standard normal distribution on NODES."""
ABILITY_PRECISION = 0.01
"""Of a weak normal prior on abilities: a model that is always right has a finite one."""
SLOPE_PRECISION = 1.0
"""Of a normal prior on the logarithms of slopes."""


@dataclass(frozen=True, eq=False)
class Fit:
    """What was fitted. Q queries, M models; difficulties have mean 0 and sd 1, higher is harder."""

    difficulty: Array
    """Shape (Q,): mean of each query's posterior."""
    difficulty_sd: Array
    """Shape (Q,): its standard deviation; 1 where a query has no samples."""
    ability: Array
    """Shape (M,): the difficulty at which half of the samples are right."""
    slope: Array
    """Shape (M,): logits for a unit of difficulty, positive."""
    ability_error: Array
    """Shape (M,): standard error."""
    slope_error: Array
    """Shape (M,): standard error."""


def fit(right: Array, total: Array) -> Fit:
    """Fit counts of right samples and of samples, shape (Q, M) each; a total of 0 is a missing cell.

    Raises ValueError where the counts are none, or a model has no samples at all.
    """
    right, total = np.asarray(right, np.float64), np.asarray(total, np.float64)
    if right.ndim != 2 or right.shape != total.shape or not right.size:
        raise ValueError(f"counts of shapes {right.shape} and {total.shape}")
    if not ((right >= 0) & (right <= total) & np.isfinite(total)).all():
        raise ValueError("there are more right samples than samples, or fewer than none")
    if not total.sum(0).all():
        raise ValueError("a model has no samples")
    models = right.shape[1]

    def loss(x: Array) -> tuple[float, Array]:
        ability, log_slope = x[:models], x[models:]
        logits = np.exp(log_slope)[:, None] * (ability[:, None] - NODES)
        joint = _log_joint(right, total, logits)
        evidence, posterior = _normalised(joint)
        # Expected right samples, less what the curve expects, at each node: shape (M, nodes).
        surprise = right.T @ posterior - total.T @ posterior * expit(logits)
        gradient = np.concatenate(
            [
                np.exp(log_slope) * surprise.sum(1) - ABILITY_PRECISION * ability,
                (surprise * logits).sum(1) - SLOPE_PRECISION * log_slope,
            ]
        )
        penalty = ABILITY_PRECISION * (ability**2).sum() + SLOPE_PRECISION * (log_slope**2).sum()
        return float(0.5 * penalty - evidence.sum()), -gradient

    rate = (right.sum(0) + 0.5) / (total.sum(0) + 1.0)
    start = np.concatenate([np.log(rate / (1 - rate)), np.full(models, 0.5)])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000, "ftol": 1e-10}).x
    ability, slope = found[:models], np.exp(found[models:])
    mean, sd = posteriors(right, total, ability, slope)
    errors = _errors(right, total, ability, slope)
    return Fit(mean, sd, ability, slope, errors[:models], slope * errors[models:])


def posteriors(right: Array, total: Array, ability: Array, slope: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of each query's difficulty, shape (Q,), given the models."""
    joint = _log_joint(right, total, slope[:, None] * (ability[:, None] - NODES))
    posterior = _normalised(joint)[1]
    mean = posterior @ NODES
    return mean, np.sqrt(np.maximum(posterior @ NODES**2 - mean**2, 1e-6))


def _log_joint(right: Array, total: Array, logits: Array) -> Array:
    """Log probability of each query's counts and difficulty, up to a constant; shape (Q, nodes)."""
    joint: Array = right @ log_expit(logits) + (total - right) @ log_expit(-logits) + PRIOR
    return joint


def _normalised(joint: Array) -> tuple[Array, Array]:
    """Logarithm of each row's sum, shape (Q,), and each row as probabilities; `joint` is overwritten."""
    most = joint.max(1, keepdims=True)
    joint -= most
    np.exp(joint, out=joint)
    total = joint.sum(1, keepdims=True)
    joint /= total
    return (most + np.log(total))[:, 0], joint


def _errors(right: Array, total: Array, ability: Array, slope: Array) -> Array:
    """Standard errors of abilities and of log slopes, shape (2 M,): from the cross-products of the scores."""
    logits = slope[:, None] * (ability[:, None] - NODES)
    posterior = _normalised(_log_joint(right, total, logits))[1]
    p = expit(logits)
    by_ability = slope * (right - total * (posterior @ p.T))
    by_log_slope = right * (posterior @ logits.T) - total * (posterior @ (p * logits).T)
    scores = np.hstack([by_ability, by_log_slope])
    precision = np.repeat([ABILITY_PRECISION, SLOPE_PRECISION], len(ability))
    errors: Array = np.sqrt(np.diag(np.linalg.inv(scores.T @ scores + np.diag(precision))))
    return errors
