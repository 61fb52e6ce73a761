"""What votes say: promises of the posterior, over all the votes that hypothesis can think of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from synthetic import GRID, make_arm, make_profile, make_votes, relaxed

from router import belief
from router.belief import NO_VOTES, Posterior, Votes, update
from router.profile import LEAST_BLANKS, Arm, Array

SIZE = 3
"""Of the grid."""

chances = st.floats(0.001, 0.999)
counts = st.integers(0, 12)


@pytest.fixture(autouse=True, scope="module")
def one_scatter() -> Iterator[None]:
    """Ewens's formula with one parameter: what it is without the mean over several (see test_scatter.py)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(belief, "SCATTERED", ((1.0, 1.0),))
        yield


@st.composite
def priors(draw: st.DrawFn) -> Array:
    weights = np.array(draw(st.lists(st.floats(0.01, 1), min_size=SIZE, max_size=SIZE)))
    return np.asarray(weights / weights.sum())


@st.composite
def arms(draw: st.DrawFn) -> Arm:
    return make_arm(
        p_right=np.array(draw(st.lists(chances, min_size=SIZE, max_size=SIZE))),
        concentration=draw(st.floats(0.2, 50)),
        scatter=draw(st.floats(0.2, 50)),
    )


@st.composite
def ballots(draw: st.DrawFn, most_arms: int = 3, blanks: bool = True) -> Votes:
    """Votes in which each cluster has at least one, as aggregation makes them."""
    drawn = draw(st.lists(arms(), min_size=1, max_size=most_arms))
    voters = [replace(arm, model=f"m{number}") for number, arm in enumerate(drawn)]
    clusters = draw(st.integers(0, 4))
    rows = [draw(st.lists(counts, min_size=clusters, max_size=clusters)) for _ in voters]
    for column in range(clusters):
        if not any(row[column] for row in rows):
            rows[0][column] = 1
    empty = [draw(counts) if blanks else 0 for _ in voters]
    return make_votes(*zip(voters, rows, empty, strict=True))


def after(prior: Array, *rows: tuple[Arm, list[int], int]) -> Posterior:
    return update(prior, make_votes(*rows))


EVEN = np.array([0.5, 0.5])


@given(priors(), ballots())
@relaxed
def test_probabilities_are_not_negative_and_sum_to_one(prior: Array, votes: Votes) -> None:
    posterior = update(prior, votes)
    assert (posterior.joint >= 0).all()
    assert posterior.joint.sum() == pytest.approx(1)
    assert posterior.difficulty.sum() == pytest.approx(1)
    assert posterior.answers.sum() <= 1 + 1e-12


@given(priors())
@relaxed
def test_without_votes_the_posterior_is_the_prior(prior: Array) -> None:
    posterior = update(prior, NO_VOTES)
    assert posterior.difficulty == pytest.approx(prior)
    assert posterior.confidence == 0.0
    assert posterior.leader == -1
    assert np.isnan(posterior.scatter).all()


@given(priors(), ballots(), st.randoms(use_true_random=False))
@relaxed
def test_the_order_of_clusters_and_of_arms_does_not_matter(
    prior: Array, votes: Votes, random: object
) -> None:
    columns = list(range(votes.counts.shape[1]))
    rows = list(range(len(votes.arms)))
    random.shuffle(columns)  # type: ignore[attr-defined]
    random.shuffle(rows)  # type: ignore[attr-defined]
    shuffled = Votes(
        tuple(votes.arms[row] for row in rows), votes.counts[rows][:, columns], votes.blanks[rows]
    )
    plain, other = update(prior, votes), update(prior, shuffled)
    assert other.answers == pytest.approx(plain.answers[columns], abs=1e-9)
    assert other.difficulty == pytest.approx(plain.difficulty, abs=1e-9)


@given(priors(), ballots(most_arms=1), st.data())
@relaxed
def test_a_further_vote_raises_a_cluster_exactly_where_it_was_likelier_with_the_cluster_right(
    prior: Array, votes: Votes, data: st.DataObject
) -> None:
    """The exact condition, for one arm: the vote supports the cluster if and only if
    P(next vote is for it | it is right) is at least P(next vote is for it | it is not)."""
    assume(votes.counts.shape[1])
    arm, sizes, blanks = votes.arms[0], votes.counts[0], votes.blanks[0]
    column = data.draw(st.integers(0, len(sizes) - 1))
    before = update(prior, votes)
    more = votes.counts.copy()
    more[0, column] += 1
    now = update(prior, Votes(votes.arms, more, votes.blanks))

    had = sizes.sum() + blanks
    support = np.empty_like(before.joint)
    for j in range(len(support)):
        right = sizes[j] if j < len(sizes) else 0.0
        if j == column:
            chance = (arm.concentration * arm.p_right + right) / (arm.concentration + had)
        else:
            wrong = (arm.concentration * (1 - arm.p_right) + had - right) / (arm.concentration + had)
            others = sizes.sum() - right
            answered = (1 - LEAST_BLANKS + others) / (1 + others + blanks)
            chance = wrong * answered * sizes[column] / (arm.scatter + others)
        support[j] = chance
    here = before.joint[column] @ support[column] / before.joint[column].sum()
    rest = np.delete(before.joint, column, axis=0)
    elsewhere = (rest * np.delete(support, column, axis=0)).sum() / rest.sum()
    assume(abs(here - elsewhere) > 1e-9)
    rose = now.answers[column] - before.answers[column]
    assert rose * (here - elsewhere) >= -1e-12


@given(priors(), ballots(most_arms=1, blanks=False), st.data())
@relaxed
def test_a_further_vote_never_lowers_a_cluster_where_wrong_answers_scatter_enough(
    prior: Array, votes: Votes, data: st.DataObject
) -> None:
    """Of one arm without blanks it is enough that scatter >= concentration x (1 - 2 x its least p_right):
    then it is right more often than chance agreement explains."""
    assume(votes.counts.shape[1])
    arm = votes.arms[0]
    least = arm.concentration * (1 - 2 * arm.p_right.min())
    arm = make_arm(p_right=arm.p_right, concentration=arm.concentration, scatter=max(arm.scatter, least))
    row = [int(count) for count in votes.counts[0]]
    column = data.draw(st.integers(0, len(row) - 1))
    before = after(prior, (arm, row, 0))
    row[column] += 1
    assert after(prior, (arm, row, 0)).answers[column] >= before.answers[column] - 1e-9


def test_what_blanks_say_matches_brute_force() -> None:
    """The stated model, drawn many times: right or not, blank by a habit of the query's own, or an answer."""
    arm = make_arm(p_right=np.array([0.8, 0.3]), concentration=4.0, scatter=2.0, blanks=0.4)
    rng = np.random.default_rng(3)
    right: dict[tuple[int, ...], list[bool]] = {}
    for _ in range(60_000):
        mean = arm.p_right[rng.integers(2)]
        p, habit = rng.beta(4 * mean, 4 * (1 - mean)), rng.beta(0.4, 0.6)
        said: list[int] = []
        for _ in range(6):
            wrong = [answer for answer in said if answer > 0]
            if rng.random() < p:
                said.append(0)
            elif rng.random() < habit:
                said.append(-1)
            elif rng.random() < len(wrong) / (2.0 + len(wrong)):
                said.append(wrong[rng.integers(len(wrong))])
            else:
                said.append(max(said, default=0) + 1 if max(said, default=0) > 0 else 1)
        votes = sorted((said.count(answer) for answer in set(said) - {-1}), reverse=True)
        # Of clusters with equally many votes neither is the largest.
        if votes and votes.count(votes[0]) == 1:
            right.setdefault((*votes, -said.count(-1)), []).append(said.count(0) == votes[0])
    common = sorted(right, key=lambda key: -len(right[key]))[:12]
    assert {key[-1] for key in common} >= {0, -1, -2}
    for key in common:
        posterior = after(EVEN, (arm, list(key[:-1]), -key[-1]))
        error = 3 * (0.25 / len(right[key])) ** 0.5
        assert posterior.answers[0] == pytest.approx(np.mean(right[key]), abs=0.005 + error)


def test_blanks_of_an_arm_that_has_them_are_no_reason_to_believe_in_the_answer_of_few() -> None:
    """Of two explanations of many blanks that with most samples wrong is not the cheaper one."""
    arm = make_arm(p_right=np.array([0.97, 0.1]), concentration=30.0, scatter=1.0, blanks=0.4)
    believed = [after(np.array([0.9, 0.1]), (arm, [27, 1], blanks)) for blanks in (0, 2, 4)]
    assert all(posterior.answers[0] > 0.9 for posterior in believed)


def test_agreement_of_a_good_arm_gives_confidence_and_grows_with_it() -> None:
    by_votes = [after(EVEN, (make_arm(), [k], 0)).confidence for k in (1, 2, 4, 8)]
    assert by_votes[0] == pytest.approx(0.7, abs=1e-3)  # One vote is worth the arm's chance to be right.
    assert by_votes == sorted(by_votes)
    assert by_votes[2] > 0.97
    assert by_votes[3] > 0.995


def test_different_answers_give_little_confidence() -> None:
    by_answers = [after(EVEN, (make_arm(), [1] * k, 0)).confidence for k in (1, 2, 4, 8)]
    assert by_answers == sorted(by_answers, reverse=True)
    assert by_answers[-1] < 0.15


def test_different_answers_speak_for_difficulty_and_agreement_against_it() -> None:
    profile = make_profile(["m"])
    arm = profile.arms[0]
    mean = [
        update(profile.prior, make_votes((arm, row, 0))).difficulty @ GRID
        for row in ([6], [2, 2, 2], [1] * 6)
    ]
    assert mean == sorted(mean)
    assert mean[0] < profile.prior @ GRID < mean[2]


def test_a_vote_of_a_better_arm_outweighs_one_of_a_worse_arm() -> None:
    good, bad = make_arm(p_right=np.full(2, 0.8)), make_arm(model="bad", p_right=np.full(2, 0.3))
    posterior = after(EVEN, (bad, [1, 0], 0), (good, [0, 1], 0))
    assert posterior.leader == 1
    assert posterior.answers[1] > 3 * posterior.answers[0]


def test_votes_of_a_bad_arm_can_outweigh_one_of_a_good_arm() -> None:
    good, bad = make_arm(p_right=np.full(2, 0.8)), make_arm(model="bad", p_right=np.full(2, 0.3))
    assert after(EVEN, (bad, [5, 0], 0), (good, [0, 1], 0)).leader == 0


def test_the_answer_of_an_arm_that_is_never_right_is_not_believed() -> None:
    arm = make_arm(p_right=np.full(2, 0.001), scatter=0.5)
    assert after(EVEN, (arm, [8, 1], 0)).confidence < 0.05


@pytest.mark.parametrize("row", [[4096], [2000, 2000], [1500, 900, 3, 1], [1] * 300], ids=str)
def test_thousands_of_votes_stay_finite(row: list[int]) -> None:
    blanks = 4096 - sum(row)
    posterior = after(EVEN, (make_arm(p_right=np.array([0.0001, 0.9999])), row, blanks))
    assert np.isfinite(posterior.joint).all()
    assert posterior.joint.sum() == pytest.approx(1)


def test_thousands_of_answers_of_several_models_stay_finite() -> None:
    each, several = 2000, [make_arm(model=name) for name in "abc"]
    rows = [[0] * (each * at) + [1] * each + [0] * (each * (2 - at)) for at in range(3)]
    posterior = after(EVEN, *((arm, row, 0) for arm, row in zip(several, rows, strict=True)))
    assert np.isfinite(posterior.joint).all()
    assert posterior.joint.sum() == pytest.approx(1)


def test_an_estimate_beyond_the_grid_is_as_hard_as_the_grid_knows() -> None:
    profile = make_profile()
    hardest = profile.belief(float(profile.grid[-1]), 0.3)
    assert np.array_equal(profile.belief(1000.0, 0.3), hardest)
    assert profile.belief(1000.0, 0.3) @ profile.grid > 2


def test_what_a_greedy_sample_says_of_the_others_matches_brute_force() -> None:
    """The stated model, drawn many times: greedy right or not, then samples by what that makes of them."""
    grid = np.array([-1.0, 0.0, 1.0])
    greedy, sampled, after = np.array([0.9, 0.6, 0.2]), np.array([0.8, 0.5, 0.15]), np.array([0.3, 0.2, 0.05])
    common = {"tokens": [50.0] * 3, "prompt_tokens_per_byte": 1.0, "seconds_per_token": 0.0}
    arms = [
        {"temperature": 0.0, "p_right": greedy.tolist(), "votes": {}},
        {
            "temperature": 1.0,
            "p_right": sampled.tolist(),
            "p_right_after_greedy": after.tolist(),
            "votes": {"1": sampled.tolist()},
        },
    ]
    shared = {"model": "s", "concentration": 4.0, "scatter": 3.0, **common}
    profile = make_profile(grid=grid.tolist(), prior=[1.0] * 3, arms=[shared | arm for arm in arms])
    rng = np.random.default_rng(5)
    agreed, right = 0, 0
    for _ in range(40_000):
        d = rng.integers(3)
        g = rng.random() < greedy[d]
        mean = (sampled[d] - (1 - greedy[d]) * after[d]) / greedy[d] if g else after[d]
        p = rng.beta(4 * mean, 4 * (1 - mean))
        answers = ["right" if g else "wrong 0"]
        wrong = [] if g else ["wrong 0"]
        for number in range(2):
            if rng.random() < p:
                answers.append("right")
                continue
            known = rng.random() < len(wrong) / (3.0 + len(wrong))
            wrong.append(wrong[rng.integers(len(wrong))] if known else f"wrong {number + 1}")
            answers.append(wrong[-1])
        if len(set(answers)) == 1:
            agreed += 1
            right += answers[0] == "right"
    counts = np.array([[1.0], [2.0]])
    posterior = update(profile.prior, Votes(profile.arms, counts, np.zeros(2)))
    assert posterior.confidence == pytest.approx(right / agreed, abs=0.01)
