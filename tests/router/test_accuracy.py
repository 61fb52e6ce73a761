"""What is foreseen of more samples is what comes of them, if queries are as the belief has it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from synthetic import MIDDLE, make_planner, make_votes

from router import belief
from router.accuracy import Stack, race
from router.belief import NO_VOTES, Posterior, Votes, update
from router.profile import ROUND_SIZES, Arm, Verified, together

PLANNER = make_planner()
PRIOR = PLANNER.profile.belief(MIDDLE, 0.6)
S, M = (next(a for a in PLANNER.profile.arms if a.model == name and not a.greedy) for name in "sm")
SIMULATIONS = 1500


@pytest.fixture(autouse=True, scope="module")
def one_scatter() -> Iterator[None]:
    """Ewens's formula with one parameter: what it is without the mean over several (see test_scatter.py)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(belief, "SCATTERED", ((1.0, 1.0),))
        yield


def played(votes: Votes, arm: Arm, samples: int, rng: np.random.Generator) -> float:
    """Confidence after more samples of an arm, of a query that was drawn from the belief."""
    posterior = update(PRIOR, votes)
    joint = posterior.joint.ravel()
    truth, kind = divmod(int(rng.choice(len(joint), p=joint / joint.sum())), len(PRIOR))
    arms = (*votes.arms, arm) if arm not in votes.arms else votes.arms
    row = arms.index(arm)
    counts = np.zeros((len(arms), votes.counts.shape[1] + samples))
    counts[: len(votes.arms), : votes.counts.shape[1]] = votes.counts
    answers = votes.counts.shape[1]
    if truth == answers:
        truth = -1  # Nobody has said it yet.
    right = counts[row, truth] if truth >= 0 else 0.0
    p = rng.beta(
        arm.concentration * arm.p_right[kind] + right,
        arm.concentration * (1 - arm.p_right[kind]) + counts[row].sum() - right,
    )
    for _ in range(samples):
        said = truth
        if rng.random() >= p:
            # One of its own wrong answers again, or else one of another model's, or a new one.
            own, others = counts[row, :answers].copy(), (counts[:, :answers] > 0).sum(axis=0) * 1.0
            if truth >= 0:
                own[truth] = others[truth] = 0.0
            weights = np.append(own, np.broadcast_to(arm.scatter, PRIOR.shape)[kind])
            said = int(rng.choice(len(weights), p=weights / weights.sum()))
            if said == answers:
                weights = np.append(np.where(own > 0, 0.0, others), 1.0)
                said = int(rng.choice(len(weights), p=weights / weights.sum()))
        elif truth < 0:
            truth = said = answers
        answers = max(answers, said + 1)
        counts[row, said] += 1
    return update(PRIOR, Votes(arms, counts[:, :answers], np.zeros(len(arms)))).confidence


def foreseen(posterior: Posterior, arm: Arm, samples: int, had: float, told: Verified | None = None) -> float:
    accuracies = race(posterior).accuracies(Stack.of(((arm, told),)), np.array([[had]]))
    return float(accuracies[0, 0, ROUND_SIZES.index(samples)])


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("arm", [S, M], ids="sm")
@pytest.mark.parametrize("row", [[1], [1, 1], [2, 1], [3], [2, 2, 1]], ids=str)
def test_it_is_what_a_simulation_finds(row: list[int], arm: Arm, samples: int) -> None:
    """Within five points: another model's wrong answers are foreseen as if they were of the same one."""
    votes, rng = make_votes((S, row, 0)), np.random.default_rng(1)
    posterior = update(PRIOR, votes)
    wanted = np.array([played(votes, arm, samples, rng) for _ in range(SIMULATIONS)])
    error = wanted.std() / np.sqrt(SIMULATIONS)
    had = sum(row) if arm is S else 0
    assert foreseen(posterior, arm, samples, had) == pytest.approx(wanted.mean(), abs=0.05 + 3 * error)


def test_scores_that_tell_right_from_wrong_bring_more() -> None:
    posterior = update(PRIOR, make_votes((S, [1, 1], 0)))
    brought = [
        foreseen(posterior, S, 4, 2, told)
        for told in (None, *(Verified("v", 0.0, 1.0, 0.3, say, -say, S.votes) for say in (0.5, 2.0)))
    ]
    assert brought == sorted(brought)
    assert brought[2] > brought[0] + 0.02


def test_scores_of_a_cluster_change_which_answer_leads() -> None:
    votes = make_votes((S, [2, 1], 0))
    assert update(PRIOR, votes).leader == 0
    told = Votes(votes.arms, votes.counts, votes.blanks, (), np.array([-2.0, 2.0]))
    posterior = update(PRIOR, told)
    assert posterior.leader == 1
    assert posterior.joint.sum() == pytest.approx(1)


def test_without_votes_it_is_what_was_measured_scored_or_not() -> None:
    posterior, better = update(PRIOR, NO_VOTES), np.minimum(S.votes + 0.1, 1.0)
    told = Verified("v", 0.0, 1.0, 0.3, 1.0, -1.0, better)
    assert foreseen(posterior, S, 4, 0) == pytest.approx(float(PRIOR @ S.votes[2]))
    assert foreseen(posterior, S, 4, 0, told) == pytest.approx(float(PRIOR @ better[2]))


def test_scores_that_are_alike_say_less_together() -> None:
    one = Verified("v", 0.0, 1.0, 0.5, 1.0, -1.0, S.votes)
    assert one.evidence(0.5) == pytest.approx(0.0)
    assert one.evidence(0.9) > 0 > one.evidence(0.1)
    assert together(4.0, 4, 1.0) == pytest.approx(1.0)
    assert together(4.0, 4, 1.0) < together(4.0, 4, 0.5) < together(4.0, 4, 0.0) == pytest.approx(4.0)


def test_models_that_are_alike_are_foreseen_to_bring_less_after_each_other() -> None:
    posterior = update(PRIOR, make_votes((S, [2, 1], 0)))
    brought = []
    for alike in (0.0, 0.5, 1.0):
        stack = Stack.of(tuple((replace(arm, alike=alike), None) for arm in (S, M)))
        row = race(posterior).accuracies(stack, np.array([[3.0, 0.0]]))[0]
        brought.append(row[:, ROUND_SIZES.index(8)] - posterior.confidence)
    same, other = np.array(brought).T
    assert same == pytest.approx(same[0])  # Of a model with its own samples alone all counts.
    assert other[0] > other[1] > other[2] > 0
