"""What isoflop is compared with on the same samples: fixed votes, early stopping, cascades, an oracle.

Every baseline is told as points, one for each of its thresholds or plans, and each point problem by problem
and permutation by permutation. None is tuned: all points are shown, and the hull of a baseline's points is
what a mixture of two of them reaches at best, chosen with the knowledge of what is scored. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.replay_data import RIGHT, Recording, Size, Track
from services.aggregation.stability import stability
from training.resampling import NO_ANSWER, Bools, Floats, Ints

MOST: Final = 40
"""Most samples of a model that any policy may buy for a problem."""
CONFIDENCES: Final = (0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999)
"""Thresholds of Adaptive-Consistency; its authors' own is .95."""
WINDOWS: Final = (2, 3, 4, 5, 6, 8, 10, 20)
"""Windows of early-stopping self-consistency; its authors' own are 4 to 10."""
GATES: Final = ((2, 2), (4, 3), (4, 4), (8, 8))
"""Of a cascade: samples of the cheaper model, and how many of them must agree."""
FALLBACKS: Final = (1, 8, 40)
"""Of a cascade: samples of the dearer model."""
ORACLE_SIZES: Final = (1, 2, 4, 8, 16, 32, 40)
"""Votes that the oracle chooses from."""
ORACLE_WORTHS: Final = tuple(float(worth) for worth in np.geomspace(1e11, 1e19, 65))
"""FLOPs that a right answer is worth to the oracle."""
ORACLE_SPLITS: Final = 10
"""Halvings of the samples; each half is once what is known, and once what is scored."""
ORACLE_ORDERS: Final = 20
"""Orders of a half, over which its expected accuracies are averaged."""


@dataclass(frozen=True, eq=False)
class Point:
    """A plan as it did: shape (Q, P), by problem and permutation."""

    name: str
    right: Floats
    """Chance that the answer is right, where equal leaders draw lots; else 0 or 1."""
    flops: Floats
    """2 x active parameters x completion tokens."""
    attention: Floats
    """FLOPs of attention, which `flops` does not have."""
    tokens: Floats


@dataclass(frozen=True, eq=False)
class Running:
    """The majority vote of one model as its samples come in, shape (Q, P, N) each: after 1 to N of them."""

    size: Size
    share: NDArray[np.float32]
    """Chance that the leader is the right answer, where equal leaders draw lots; 0 without votes."""
    led: NDArray[np.int8]
    """Votes of the leader."""
    second: NDArray[np.int8]
    """Votes of the next answer."""
    repeats: NDArray[np.int8]
    """How many samples in a row, up to the last, had the same answer."""
    tokens: NDArray[np.float32]
    """Of all samples so far."""
    attention: NDArray[np.float32]
    """FLOPs of their attention."""

    @classmethod
    def of(cls, track: Track, places: Ints) -> Running:
        """Of samples in the order of play; `places`, shape (Q, P, N), are their numbers in the recording."""
        problems, draws, most = places.shape
        rows, draw = np.arange(problems)[:, None], np.arange(draws)
        counts = np.zeros((problems, draws, int(track.answers.max()) + 2), np.int8)
        top, second, leaders = (np.zeros((problems, draws), np.int8) for _ in range(3))
        leader, previous = (np.full((problems, draws), NO_ANSWER) for _ in range(2))
        hit, run = np.zeros((problems, draws), bool), np.zeros((problems, draws), np.int8)
        share = np.zeros(places.shape, np.float32)
        led, runner_up, repeats = (np.zeros(places.shape, np.int8) for _ in range(3))
        for n in range(most):
            answer = track.answers[rows, places[:, :, n]]
            blank = answer == NO_ANSWER
            counts[rows, draw, answer] += ~blank
            count = np.where(blank, 0, counts[rows, draw, answer])
            ahead, level = count > top, (count == top) & ~blank
            # Who overtakes leaves behind what led, or comes from the side of it.
            passed = np.where(answer == leader, second, top)
            second = np.where(ahead, passed, np.maximum(second, count))
            hit = np.where(ahead, answer == RIGHT, hit | (level & (answer == RIGHT)))
            leaders = np.where(ahead, 1, leaders + level)
            leader, top = np.where(ahead, answer, leader), np.where(ahead, count, top)
            run = np.where(blank, 0, np.where(answer == previous, run + 1, 1))
            previous = answer
            share[:, :, n] = hit / np.maximum(leaders, 1)
            led[:, :, n], runner_up[:, :, n], repeats[:, :, n] = top, second, run
        tokens = track.tokens[rows[..., None], places]
        return cls(
            track.size,
            share,
            led,
            runner_up,
            repeats,
            np.cumsum(tokens, axis=2, dtype=np.float32),
            np.cumsum(track.size.attention(tokens), axis=2, dtype=np.float32),
        )

    def point(self, name: str, samples: Ints | int) -> Point:
        """The vote of so many samples, or of as many as were bought in each case, shape (Q, P)."""
        at = np.broadcast_to(np.asarray(samples) - 1, self.led.shape[:2])[..., None]
        share, tokens, attention = (
            np.take_along_axis(values, at, axis=2)[..., 0].astype(float)
            for values in (self.share, self.tokens, self.attention)
        )
        return Point(name, share, tokens * self.size.flops_a_token, attention, tokens)

    @cached_property
    def stability(self) -> Floats:
        """Chance that the leader stays ahead of the next answer: see `services.aggregation.stability`."""
        votes = range(self.led.shape[2] + 1)
        return np.array([[stability(one, other) for other in votes] for one in votes])[self.led, self.second]


def first(stop: Bools) -> Ints:
    """Samples bought, shape (Q, P), where buying stops at the first True; all of them where there is none."""
    return np.asarray(np.where(stop.any(axis=2), stop.argmax(axis=2) + 1, stop.shape[2]))


def votes(recording: Recording, orders: Mapping[str, Ints]) -> dict[str, Running]:
    """By model, on the samples in these orders: see `Recording.orders`."""
    return {name: Running.of(track, orders[name]) for name, track in recording.tracks.items()}


def fixed(votes: Mapping[str, Running]) -> Iterator[Point]:
    """Majority of n of one model, n of 1 to 40."""
    for name, running in votes.items():
        for n in range(1, running.led.shape[2] + 1):
            yield running.point(f"{name} × {n}", n)


def adaptive_consistency(votes: Mapping[str, Running]) -> Iterator[Point]:
    """One sample after another until the leader stays ahead with a given probability.

    Aggarwal et al., arXiv 2305.11860, with their Beta rule.
    """
    for name, running in votes.items():
        for confidence in CONFIDENCES:
            yield running.point(
                f"Adaptive-Consistency {confidence:g} of {name}", first(running.stability >= confidence)
            )


def early_stopping(votes: Mapping[str, Running]) -> Iterator[Point]:
    """Windows of w samples until all of one have the same answer; then the majority of all.

    Li et al., arXiv 2401.10480.
    """
    for name, running in votes.items():
        for window in WINDOWS:
            same = running.repeats >= window
            same[:, :, np.arange(1, same.shape[2] + 1) % window != 0] = False
            yield running.point(f"ESC {window} of {name}", first(same))


def cascades(votes: Mapping[str, Running]) -> Iterator[Point]:
    """Votes of a cheaper model; where too few of them agree, the majority of a dearer model's.

    For each two models, the cheaper first (as in agreement-based cascading, arXiv 2407.02348; Yue et al.,
    arXiv 2310.03094).
    """
    for (cheap, gate), (dear, rest) in combinations(votes.items(), 2):
        for samples, agreed in GATES:
            if samples > gate.led.shape[2]:
                continue
            asked = gate.point("", samples)
            passed = gate.led[:, :, samples - 1] >= agreed
            for more in FALLBACKS:
                if more > rest.led.shape[2]:
                    continue
                then = rest.point("", more)
                yield Point(
                    f"cascade {agreed} of {samples} of {cheap}, else {dear} × {more}",
                    np.where(passed, asked.right, then.right),
                    *(
                        one + np.where(passed, 0.0, other)
                        for one, other in (
                            (asked.flops, then.flops),
                            (asked.attention, then.attention),
                            (asked.tokens, then.tokens),
                        )
                    ),
                )


def oracle(recording: Recording) -> Iterator[Point]:
    """Buys for each problem the vote that is worth most by what half of the problem's samples say of it.

    It knows, from one half of each model's samples of the problem, the expected accuracy of every vote of
    ORACLE_SIZES (over ORACLE_ORDERS orders of the half, and one more sample's worth of what the vote does on
    average over problems: what is always right in a half is not so in all) and the mean tokens of a sample.
    At each price it buys the (model, n) with the greatest worth x accuracy - FLOPs, or nothing where that is
    below zero; and gets what the other half says of the accuracy and FLOPs of this choice. Each half is once
    the known one; shape (Q, 2 x ORACLE_SPLITS).
    """
    rng = np.random.default_rng(11)
    told: list[tuple[Floats, ...]] = []
    for _ in range(ORACLE_SPLITS):
        halves = [_plans(recording, half) for half in _halves(recording, rng)]
        for known, scored in (halves, halves[::-1]):
            told.append((_expected(known[0], recording), known[1], *scored))
    known_right, known_flops, right, flops, attention, tokens = (
        np.stack(values, axis=1) for values in zip(*told, strict=True)
    )
    for worth in ORACLE_WORTHS:
        value = worth * known_right - known_flops
        best = value.argmax(axis=2)[..., None]
        buys = np.take_along_axis(value, best, axis=2)[..., 0] > 0
        yield Point(
            f"oracle at {worth:.3g} FLOPs a right answer",
            *(
                np.where(buys, np.take_along_axis(values, best, axis=2)[..., 0], 0.0)
                for values in (right, flops, attention, tokens)
            ),
        )


def _expected(right: Floats, recording: Recording) -> Floats:
    """Accuracy that is expected of plans after so much was seen in half of the samples, shape (Q, plans)."""
    seen = min(track.answers.shape[1] for track in recording.tracks.values()) // 2
    return np.asarray((right * seen + right.mean(axis=0)) / (seen + 1))


def _halves(recording: Recording, rng: np.random.Generator) -> Iterator[dict[str, Ints]]:
    """Orders of one half of each model's samples, and then of the other, shape (Q, ORACLE_ORDERS, S / 2)."""
    whole = {
        name: rng.permuted(np.tile(np.arange(track.answers.shape[1]), (len(track.answers), 1)), axis=1)
        for name, track in recording.tracks.items()
    }
    for part in (slice(0, None, 2), slice(1, None, 2)):
        yield {
            name: rng.permuted(np.repeat(places[:, None, part], ORACLE_ORDERS, axis=1), axis=2)
            for name, places in whole.items()
        }


def _plans(recording: Recording, half: Mapping[str, Ints]) -> tuple[Floats, ...]:
    """Expected right, FLOPs, attention, tokens of each plan on a half, shape (Q, plans) each."""
    columns: list[tuple[Floats, ...]] = []
    for name, places in half.items():
        track = recording.tracks[name]
        running = Running.of(track, places[:, :, : max(ORACLE_SIZES)])
        tokens = track.tokens[np.arange(len(places))[:, None], places[:, 0]]
        flops, attention = tokens * track.size.flops_a_token, track.size.attention(tokens)
        means = [values.mean(axis=1) for values in (flops, attention, tokens)]
        for n in ORACLE_SIZES:
            if n <= running.led.shape[2]:
                right = running.share[:, :, n - 1].mean(axis=1, dtype=float)
                columns.append((right, *(n * mean for mean in means)))
    return tuple(np.stack(values, axis=1) for values in zip(*columns, strict=True))
