"""What a probe tells, against the same sums done one by one; and plans against plain loops."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from isoflop.v1.router_pb2 import Budget, Filters, SolveRequest
from synthetic import expected_accuracy

from benchmarks.simulated import Play, Truth, ask, many_talents, planner_of
from router import lookahead
from router.accuracy import LEAST_RIVAL, MOST_RIVALS
from router.belief import Posterior
from router.decision import State
from router.lengths import UNSEEN, Array, below
from router.lookahead import AFTER, LEAST_CHANCE, THIRDS, best_probe
from router.outlook import Outlook
from router.planner import Planner
from router.profile import ROUND_SIZES, Arm
from router.query import Query

TYPES = 9


def situations(
    count: int, seed: int, telling: float = 0.0, **fields: Any
) -> Iterator[tuple[Planner, Query, State]]:
    """Planner, query and state along simulated queries: no votes, one, several answers, several arms."""
    talents, prior = many_talents(4, TYPES)
    planner = planner_of(talents, prior, lengths=True, telling=telling)
    rng, found = random.Random(seed), 0
    while True:
        query = ask(planner, SolveRequest(effort=rng.choice([1, 2, 3]), **fields))
        kind = rng.choices(range(TYPES), prior)[0]
        truth = Truth(planner, {talent.name: talent for talent in talents}, kind, rng, telling)
        belief = planner.profile.belief(float(planner.profile.grid[kind]) + rng.gauss(0, 0.8), 0.8)
        for state, _ in Play(planner, query, truth, belief).steps():
            yield planner, query, state
            found += 1
            if found == count:
                return


def plain_accuracy(posterior: Posterior, arm: Arm, samples: int, had: int) -> float:
    """`router.accuracy` by its words, one rival, number of votes and type after the other."""
    sizes = posterior.sizes
    if not len(sizes):
        doubt = arm.concentration / (arm.concentration + had)
        return float(posterior.difficulty @ arm.votes[ROUND_SIZES.index(samples)]) * doubt
    types, leader = range(len(arm.p_right)), posterior.leader
    others = sorted((j for j in range(len(sizes)) if j != leader), key=lambda j: -posterior.answers[j])
    others = [j for j in others[:MOST_RIVALS] if posterior.answers[j] > LEAST_RIVAL]
    led, total = sizes[leader], sizes.sum()
    lead = posterior.joint[leader]
    scatter = posterior.scatter @ lead / lead.sum()

    def run(votes: int, size: int, d: int) -> float:
        right, wrong, sums = arm.rising
        return math.exp(right[votes, d] + wrong[size - votes, d] - sums[size])

    best = 0.0
    for size in [size for size in ROUND_SIZES if size <= samples]:
        risen = 0.0
        for rival in [*others, -1]:
            joint = posterior.joint[rival]
            own = sizes[rival] if rival >= 0 else 0.0
            its = posterior.scatter @ joint / max(joint.sum(), 1e-300)
            for votes in range(1, size + 1):
                leaders = round(led / (scatter + total) * (size - votes))
                rises = holds = 0.0
                for d in types:
                    weight = arm.concentration * arm.p_right[d]
                    doubt = min(1.0, (weight + own) / (weight + had * arm.p_right[d]))
                    rises += run(votes, size, d) * joint[d] * doubt
                    holds += run(leaders, size, d) * lead[d]
                falls = 1.0
                for k in range(votes):
                    falls *= (own + k or scatter) / (scatter + total - led + k)
                shift = (led / (its + total - own)) ** leaders / falls
                risen += math.comb(size, votes) * max(0.0, rises - holds / shift)
        best = max(best, risen)
    return min(posterior.confidence + best, 1.0)


def plain_kept(posterior: Posterior, arms: Sequence[Arm], had: Sequence[float], row: int) -> float:
    """What counts of a promised rise."""
    if not len(posterior.sizes):
        return 1.0
    chances = [float(posterior.difficulty @ arm.p_right) for arm in arms]
    voted = [at for at, samples in enumerate(had) if samples]
    if any(chances[at] > chances[row] for at in voted):
        return 0.0
    told = {arms[at].model: had[at] / (had[at] + arms[at].concentration) for at in voted}
    return 1 / (1 + arms[row].alike * sum(told[model] for model in told if model != arms[row].model))


def test_accuracies_are_what_plain_loops_find() -> None:
    compared = 0
    for planner, query, state in situations(60, 3):
        outlook = planner.outlook(query, state)
        arms, confidence = [option.arm for option in outlook.menu.options], state.confidence
        for row, option in enumerate(outlook.menu.options):
            kept = plain_kept(state.posterior, arms, outlook.had.tolist(), row)
            for column, size in enumerate(ROUND_SIZES):
                if size > (4 if row else 32):
                    continue
                arm = option.arm
                plain = plain_accuracy(state.posterior, arm, size, int(outlook.had[row]))
                if len(state.posterior.sizes):
                    plain = confidence + (plain - confidence) * kept
                assert outlook.accuracy[row, column] == pytest.approx(plain, abs=3e-6)
                compared += len(state.posterior.sizes) > 1
    assert compared > 100


def parts(arm: Arm, state: State, cap: float) -> tuple[list[Array], Array]:
    """Chances that the length falls in each part, and that it is cut."""
    assert arm.length
    mean, sd = arm.length.foreseen(seen_of(arm, state))
    belief = state.posterior.difficulty
    middle = float(belief @ mean)
    spread = math.sqrt(float(belief @ (mean - middle) ** 2) + sd**2)
    edges = [middle + spread * third for third in THIRDS]
    edges = [*(edge for edge in edges if edge < math.log(cap)), math.log(cap)]
    shorter = [np.zeros(len(mean)), *(below((edge - mean) / sd) for edge in edges)]
    return [high - low for low, high in pairwise(shorter)], 1.0 - shorter[-1]


def seen_of(arm: Arm, state: State) -> Any:
    return state.votes.lengths[state.votes.arms.index(arm)] if arm in state.votes.arms else UNSEEN


def plain_outcomes(arm: Arm, state: State, cap: float) -> Iterator[tuple[float, Posterior]]:
    """Chance of each outcome of one more sample, and what is believed then."""
    posterior, votes = state.posterior, state.votes
    sizes, scatter = posterior.sizes, arm.scatter
    agreed = np.zeros(len(sizes) + 1)
    if arm in votes.arms:
        agreed[:-1] = votes.counts[votes.arms.index(arm)]
    weight = arm.concentration * arm.p_right
    right = (weight + agreed[:, None]) / (arm.concentration + agreed.sum())
    wrong = np.append(sizes.sum() - sizes, sizes.sum())[:, None]
    lengths, cut = parts(arm, state, cap)

    def outcome(joint: Array, scatter: Any, sizes: Array) -> Iterator[tuple[float, Posterior]]:
        if (chance := float(joint.sum())) > LEAST_CHANCE:
            yield chance, Posterior(joint / chance, scatter, sizes)

    for part in lengths:
        for answer in range(len(sizes)):
            repeats = (1 - right) * sizes[answer] / (scatter + wrong)
            repeats[answer] = right[answer]
            grown = sizes + (np.arange(len(sizes)) == answer)
            yield from outcome(posterior.joint * part * repeats, scatter, grown)
        new = posterior.joint * part * (1 - right) * scatter / (scatter + wrong)
        found = posterior.joint[-1] * part * right[-1]
        yield from outcome(np.vstack([new[:-1], found, new[-1]]), scatter, np.append(sizes, 1.0))
    yield from outcome(posterior.joint * cut, posterior.scatter, sizes)


def plain_worth(outlook: Outlook, row: int, cap: float, worth: float) -> float:
    """FLOPs that a probe leaves beyond stopping at once."""
    menu, state = outlook.menu, outlook.state
    arm, belief = menu.options[row].arm, state.posterior.difficulty
    assert arm.length
    whole = belief @ arm.length.expected(seen_of(arm, state), math.inf)
    share = min(1.0, float(belief @ arm.length.expected(seen_of(arm, state), cap) / whole))
    left = -share * float(outlook.flops[row, 0])
    for chance, after in plain_outcomes(arm, state, cap):
        values = [after.confidence * worth]
        bought = [
            had + (option.model.name == arm.model)
            for had, option in zip(outlook.had.tolist(), menu.options, strict=True)
        ]
        for other, option in enumerate(menu.options):
            kept = plain_kept(after, [option.arm for option in menu.options], bought, other)
            for column, size in enumerate(ROUND_SIZES[:AFTER]):
                spent = state.left.flops - share * float(menu.flops[row] @ belief)
                price = size * float(menu.flops[other] @ after.difficulty)
                if outlook.open[other, column] and price <= spent:
                    gain = expected_accuracy(after, option.arm, size, int(bought[other])) - after.confidence
                    values.append((after.confidence + kept * gain) * worth - price)
        left += chance * (max(values) - state.confidence * worth)
    return left


@pytest.mark.parametrize("limit", [None, 4e9])
def test_the_best_probe_is_what_its_outcomes_are_worth_one_by_one(
    limit: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookahead, "LEAST_TYPE", 0.0)
    fields: dict[str, Any] = {"budget": Budget(flops=limit)} if limit else {}
    fields["filters"] = Filters(strategies=["majority"])
    compared = 0
    for planner, query, state in situations(12, 5, **fields):
        outlook = planner.outlook(query, state)
        worth = planner.worth(outlook)
        plain = [
            (plain_worth(outlook, row, cap, worth), row, cap)
            for row, option in enumerate(outlook.menu.options)
            if outlook.open[row, 0]
            for room in [outlook.room(row, 1)]
            for cap in [*(cap for cap in option.arm.caps if cap < room), room]
            if cap > 0
        ]
        probe = best_probe(outlook, worth)
        assert probe
        told = {(row, cap): value for value, row, cap in plain}
        assert probe.worth == pytest.approx(told[probe.row, probe.cap], abs=1e-5 * worth)
        assert probe.worth == pytest.approx(max(plain)[0], abs=1e-5 * worth)
        compared += len(state.posterior.sizes) > 0
    assert compared > 3
