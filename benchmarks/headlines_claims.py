"""The claims, each with its definition, its demand and, where it does not hold, the reason found.

Definitions and demands were written before any sample of the models was seen; what references are of, and
how reasons are worded, was made clearer afterwards. Accuracies are in percent, gains in points.
An interval is the middle 95 % of 2,000 resamples of the problems, paired between what is compared. Unless
its definition says otherwise a claim holds where its interval lies above 0.

Where a claim is told of each model, its headline is the middle model's, by size: neither the best looking
nor the worst. Verifier scores become a chain's by the verifier's own rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any, Final

import numpy as np
from isoflop.passes import pass_at

from benchmarks.curves import fits
from benchmarks.headlines_data import Measured, NotMeasured, Samples
from training.resampling import Bools, Floats, interval, permutations, resamples, vote

VOTES: Final = 40
"""Of self-consistency, as Wang et al. have it (arXiv 2203.11171)."""
SIZES: Final = (4, 8, 16, 32, 64, 128, 256)
"""Samples with which a verifier is compared with the majority."""
DEEP: Final = 64
"""Samples of "more compute" for the thirds and for temperatures."""
FITTED: Final = (1, 4, 8, 16, 24, 32)
"""Without 2: a vote of two, ties broken by lot, is worth one sample by construction."""
ASKED: Final = (64, 128, 256)
RATIOS: Final = (1, 2, 4, 8, 16, 32, 64)
"""Budgets for the smaller model, as multiples of the larger one's greedy answer."""
MARGIN: Final = 2.0
"""Points: a model matches another where it is as good as measured, and surely not worse by more."""
TEMPERATURE_SIZES: Final = (1, 2, 4, 8, 16, 32, 64)
OVER_GREEDY: Final = "+17.9 over a greedy answer (GSM8K, PaLM-540B)"
OVER_MAJORITY: Final = "+8.6 over majority, +5.8 over an outcome reward model (MATH)"
SMALL_AS_LARGE: Final = "7B = 34B at equal FLOPs (MATH, Llemma)"
SOURCES: Final = {
    "self_consistency_40": "Wang et al., arXiv 2203.11171: PaLM-540B on GSM8K, 56.5 % by one greedy chain of "
    "thought and 74.4 % by the majority of 40. What is like it here is the row *over its greedy answer*; the "
    "headline is over one sample of the same temperature",
    "prm_over_majority": "Lightman et al., arXiv 2305.20050: best of 1860 on MATH, 78.2 % by the process "
    "reward model, 72.4 % by an outcome reward model, 69.6 % by majority. The +5.8 that is often told is "
    "over the outcome reward model; over the majority, as is measured here, it is +8.6",
    "small_matches_large": "Wu et al., arXiv 2408.00724: Llemma-7B with a tree search that a reward model "
    "guides is as good as Llemma-34B with votes. Here there is no tree search, and the larger model has one "
    "greedy answer, which is cheaper than votes",
}
"""Where the references of the claims come from, and how what is measured here is like them."""


@dataclass(frozen=True)
class Row:
    """One claim about one model and some of the problems."""

    claim: str
    about: str
    reference: str
    """What was reported by others, or what the claim says."""
    measured: float | None
    """None where it could not be measured."""
    interval: tuple[float, float] | None
    unit: str
    holds: bool
    headline: bool
    how: str
    """Its definition, with what was compared."""
    reason: str = ""
    """Why it does not hold, in figures."""
    figures: dict[str, Any] = field(default_factory=dict)
    """What else was found."""


@dataclass(frozen=True)
class Told:
    """What a claim's function says."""

    measured: float
    resampled: Floats
    how: str
    holds: bool | None = None
    """None: where the interval lies above 0."""
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


def all_rows(models: Sequence[Measured]) -> list[Row]:
    """Every claim about every model, the models by rising size."""
    middle = models[len(models) // 2]
    return [
        *(row for one in models for row in self_consistency(one, one is middle)),
        *(row for one in models for row in verifier_over_majority(one, one is middle)),
        *(row for small, large in pairwise(models) for row in small_matches_large(small, large)),
        *(row for one in models for row in difficulty(one, one is middle)),
        *(row for one in models for row in growth(one, one is middle)),
        *(row for one in models for row in temperature(one, one is middle)),
    ]


def row(
    claim: str,
    about: str,
    reference: str,
    tell: Callable[[], Told],
    *,
    headline: bool = False,
    unit: str = "points",
) -> Row:
    """What `tell` finds, with its interval; a row that says so where it cannot be measured."""
    try:
        told = tell()
    except NotMeasured as error:
        return Row(claim, about, reference, None, None, unit, False, headline, "", f"not measured: {error}")
    low, high = interval(told.resampled)
    holds = low > 0 if told.holds is None else told.holds
    return Row(
        claim,
        about,
        reference,
        round(told.measured, 3),
        (round(low, 3), round(high, 3)),
        unit,
        holds,
        headline,
        told.how,
        "" if holds else told.reason,
        told.figures,
    )


def gain(one: Measured, band: Bools, much: Floats, little: Floats, how: str) -> Told:
    """Points between two ways to answer the problems of a band."""
    if not band.any():
        raise NotMeasured("there are no problems in this band")
    points = 100 * (much - little)[band]
    return Told(
        float(points.mean()),
        resamples(len(points)) @ points,
        f"{how}: {100 * much[band].mean():.1f} % over {100 * little[band].mean():.1f} %, "
        f"{len(points)} problems",
        reason=explain(one, band),
        figures={"problems": len(points)} | one.figures(band),
    )


def explain(one: Measured, band: Bools) -> str:
    """A sentence from figures on why more samples or a verifier gain so much and no more."""
    told = one.figures(band)
    parts = [
        f"the commonest answer is wrong on {100 * told['commonest_wrong']:.0f} % of these problems",
        f"no sample is right on {100 * told['never_right']:.0f} %",
        f"{100 * told['repeated_texts']:.0f} % of the samples repeat a text",
    ]
    if "chain_auc" in told:
        parts.append(f"the verifier tells right chains from wrong with an AUC of {told['chain_auc']:.2f}")
    if "step_auc" in told:
        parts.append(f"right steps from wrong with {told['step_auc']:.2f}")
    return "; ".join(parts)


def everything(one: Measured) -> Bools:
    """All problems."""
    return np.ones(len(one.problems), bool)


def self_consistency(one: Measured, headline: bool) -> Iterator[Row]:
    """Majority of 40 over one sample of the same temperature; over greedy; and how the gain falls off."""
    claim, about = "self_consistency_40", f"{one.name}, its medium band"
    yield row(
        claim,
        about,
        OVER_GREEDY,
        lambda: gain(one, one.medium, one.majority(VOTES), one.one, f"majority of {VOTES} over one sample"),
        headline=headline,
    )
    yield row(
        claim,
        f"{about}, over its greedy answer",
        OVER_GREEDY,
        lambda: gain(one, one.medium, one.majority(VOTES), one.greedy, f"majority of {VOTES} over greedy"),
    )

    def falls_off() -> Told:
        first = one.majority(4) - one.one
        last = one.majority(40) - one.majority(20)
        return gain(one, one.medium, first, last, "the gain from 1 to 4 samples over that from 20 to 40")

    yield row(claim, f"{about}, 1→4 against 20→40", "more at first", falls_off)


def verifier_over_majority(one: Measured, headline: bool) -> Iterator[Row]:
    """The weighted vote and the best of N over the majority at equal N, and at equal FLOPs."""
    claim, reference = "prm_over_majority", OVER_MAJORITY
    for band_name, band in (("all problems", everything(one)), ("its medium band", one.medium)):
        for name, answer in (("weighted vote", one.weighted), ("best of N", one.best)):
            for n in SIZES:
                yield row(
                    claim,
                    f"{one.name}, {band_name}, {name}, N={n}",
                    reference,
                    lambda answer=answer, name=name, n=n, band=band: gain(  # type: ignore[misc]
                        one, band, answer(n), one.majority(n), f"{name} over majority, both of {n}"
                    ),
                    headline=headline
                    and band_name == "all problems"
                    and name == "weighted vote"
                    and n == 256,
                )

    def equal_flops() -> Told:
        """At the largest N whose FLOPs, verifier included, a majority of the stored samples can spend."""
        band = everything(one)
        prompt, sample = one.cost(0, False).mean(0)[0], one.cost(1, False).mean(0)[0]
        for n in reversed(SIZES):
            if n > one.most:
                continue
            other = round((one.cost(n, True).mean(0)[0] - prompt) / (sample - prompt))
            if other <= one.most:
                how = f"weighted vote of {n} over a majority of {other}, equal FLOPs with the verifier's"
                return gain(one, band, one.weighted(n), one.majority(other), how)
        raise NotMeasured("no majority of the stored samples spends as much")

    yield row(claim, f"{one.name}, all problems, equal FLOPs", reference, equal_flops)


@dataclass(frozen=True)
class Plan:
    """What the smaller model does with a budget."""

    name: str
    flops: float
    """Mean of a query."""
    answers: Floats


@dataclass(frozen=True)
class Chains:
    """Mean FLOPs of a band's queries."""

    prompt: float
    """Paid once."""
    each: float
    """Of a chain, with its scores where it has them."""

    def within(self, budget: float) -> int:
        """How many of them fit in a budget."""
        return max(0, int((budget - self.prompt) / self.each + 1e-9))


def chains(one: Measured, band: Bools, verified: bool) -> Chains:
    """What the chains of a model cost on some problems."""
    none, once = (float(one.cost(n, verified)[band].mean(0)[0]) for n in (0, 1))
    return Chains(none, once - none)


def plan_within(small: Measured, band: Bools, budget: float, verified: bool) -> Plan:
    """The most samples whose mean FLOPs fit, verifier included; greedy where there are not two."""
    cost = chains(small, band, verified)
    n = cost.within(budget)
    if n >= 2:
        if n > small.most:
            raise NotMeasured(f"needs {n} samples of each problem, and {small.most} are stored")
        answers = small.weighted(n) if verified else small.majority(n)
        return Plan(
            f"{'weighted vote' if verified else 'majority'} of {n}", cost.prompt + n * cost.each, answers
        )
    flops = float(small.greedy_cost[band].mean(0)[0])
    if flops > budget:
        raise NotMeasured("not even a greedy answer fits in the budget")
    return Plan("greedy answer, unscored", flops, small.greedy)


def dear_chains(cost: Chains, small: str, own: float, large: str, budget: float) -> str:
    """What a scored chain costs beside the greedy answers, of `own` and `budget` FLOPs, of two models."""
    fit = cost.within(budget)
    bought = f"equal FLOPs buy {fit or 'none'}"
    return (
        f"a scored chain of {small} costs {cost.each / own:.1f} times its own greedy answer, and "
        f"{cost.each / budget:.1f} times that of {large}: {bought}"
        f"{', and to choose takes two' if fit < 2 else ''}; "
    )


def small_matches_large(small: Measured, large: Measured) -> Iterator[Row]:
    """The smaller model with what it can buy for the larger one's greedy answer, and how much it needs."""

    def tell(band: Bools, verified: bool) -> Told:
        if not band.any():
            raise NotMeasured("there are no problems in this band")
        budget = float(large.greedy_cost[band].mean(0)[0])
        weights = resamples(int(band.sum()))
        compared: list[dict[str, Any]] = []
        first: tuple[Floats, Plan] | None = None
        for ratio in RATIOS:
            try:
                plan = plan_within(small, band, ratio * budget, verified)
            except NotMeasured:
                if ratio == 1:
                    raise
                break
            points = 100 * (plan.answers - large.greedy)[band]
            low, high = interval(weights @ points)
            compared.append(
                {
                    "ratio": ratio,
                    "plan": plan.name,
                    "flops": plan.flops,
                    "points": round(float(points.mean()), 3),
                    "interval": [round(low, 3), round(high, 3)],
                    "matches": bool(points.mean() >= 0 and low > -MARGIN),
                }
            )
            first = first or (points, plan)
        assert first is not None
        points, plan = first
        at = next((one["ratio"] for one in compared if one["matches"]), None)
        ends = compared[-1]
        found = (
            f"it matches at {at} times the FLOPs ({next(o['plan'] for o in compared if o['matches'])})"
            if at
            else f"nor at {ends['ratio']} times the FLOPs ({ends['plan']}: {ends['points']:+.1f} points)"
        )
        cost = chains(small, band, verified)
        own = float(small.greedy_cost[band].mean(0)[0])
        dear = dear_chains(cost, small.name, own, large.name, budget) if verified else ""
        return Told(
            float(points.mean()),
            weights @ points,
            f"{plan.name} ({plan.flops:.3g} FLOPs, {100 * plan.answers[band].mean():.1f} %) over the larger "
            f"model's greedy answer ({budget:.3g} FLOPs, {100 * large.greedy[band].mean():.1f} %), "
            f"{int(band.sum())} problems; holds where it is measured to be as good and surely no more than "
            f"{MARGIN:g} points worse",
            holds=compared[0]["matches"],
            reason=f"{dear}{found}; {explain(small, band)}",
            figures={"by_ratio": compared, "matches_at": at, "chain_flops": round(cost.each)},
        )

    pair = f"{small.name} against {large.name}'s greedy answer"
    for about, band, verified in (
        (f"{pair}, all problems", everything(small), True),
        (f"{pair}, {small.name}'s medium band", small.medium, True),
        (f"{pair}, all problems, majority without verifier", everything(small), False),
    ):
        yield row(
            "small_matches_large",
            about,
            SMALL_AS_LARGE,
            lambda band=band, verified=verified: tell(band, verified),  # type: ignore[misc]
            headline=about.endswith("all problems"),
        )


def difficulty(one: Measured, headline: bool) -> Iterator[Row]:
    """The gain from 1 to 64 samples in the middle third over the larger one of both ends."""

    def tell(answer: Callable[[int], Floats], name: str) -> Told:
        points = 100 * (answer(DEEP) - one.one)
        if not all(band.any() for band in one.thirds.values()):
            raise NotMeasured("a third has no problems: their rates are all alike")
        resampled = {
            third: resamples(int(band.sum()), seed) @ points[band]
            for seed, (third, band) in enumerate(one.thirds.items())
        }
        means = {third: float(points[band].mean()) for third, band in one.thirds.items()}
        most = max(means, key=lambda third: means[third])
        told = ", ".join(
            f"{third} {mean:+.1f} ({int(one.thirds[third].sum())} problems)" for third, mean in means.items()
        )
        return Told(
            means["middle"] - max(means["easy"], means["hard"]),
            resampled["middle"] - np.maximum(resampled["easy"], resampled["hard"]),
            f"gain of the middle third over the larger gain of the ends, {name} of {DEEP} over one sample: "
            f"{told}",
            reason=f"the {most} third gains most; there {explain(one, one.thirds[most])}",
            figures={"gains": means},
        )

    claim, reference = "difficulty", "little, most, little"
    yield row(
        claim, f"{one.name}, majority", reference, lambda: tell(one.majority, "majority"), headline=headline
    )
    yield row(claim, f"{one.name}, weighted vote", reference, lambda: tell(one.weighted, "weighted vote"))


def growth(one: Measured, headline: bool) -> Iterator[Row]:
    """Which form, fitted up to 32 samples, predicts 64, 128 and 256 with the least error."""

    def tell(answer: Callable[[int], Floats], band: Bools) -> Told:
        if not band.any():
            raise NotMeasured("there are no problems in this band")
        curves = {n: answer(n)[band] for n in (*FITTED, *ASKED)}
        weights = np.vstack([np.full(int(band.sum()), 1 / band.sum()), resamples(int(band.sum()))])
        told = {n: weights @ curve for n, curve in curves.items()}
        fitted = np.column_stack([told[n] for n in FITTED])
        truth = np.column_stack([told[n] for n in ASKED])
        found = fits(fitted, FITTED, ASKED)
        errors = {fit.name: 100 * np.sqrt(((fit.predicted - truth) ** 2).mean(1)) for fit in found}
        logarithm, *others = errors.values()
        advantage = np.minimum.reduce(others) - logarithm
        best = min(errors, key=lambda name: errors[name][0])
        ceiling = 100 * found[-1].ceiling
        low, high = interval(ceiling[1:])
        said = ", ".join(f"{name} {error[0]:.2f}" for name, error in errors.items())
        wins = {
            name: float(np.mean(error[1:] == np.minimum.reduce([*errors.values()])[1:]))
            for name, error in errors.items()
        }
        return Told(
            float(advantage[0]),
            advantage[1:],
            f"error of the better other form less that of a + c·log n, at N = {', '.join(map(str, ASKED))}, "
            f"all fitted up to {FITTED[-1]}; errors in points: {said}; ceiling of a - d·n^-c: "
            f"{ceiling[0]:.1f} % ({low:.1f} to {high:.1f}); {int(band.sum())} problems",
            reason=f"{best} predicts best, in {100 * wins[best]:.0f} % of resamples: at N = {ASKED[-1]} "
            f"{100 * truth[0, -1]:.1f} % was measured, and a + c·log n says "
            f"{100 * found[0].predicted[0, -1]:.1f} %",
            figures={
                "best": best,
                "errors": {name: round(float(error[0]), 3) for name, error in errors.items()},
                "wins": {name: round(share, 3) for name, share in wins.items()},
                "ceiling": [round(float(value), 2) for value in (ceiling[0], low, high)],
            },
        )

    bands = {"all problems": everything(one), "its medium band": one.medium}
    bands |= {f"{third} third": band for third, band in one.thirds.items()}
    for name, answer in (("majority", one.majority), ("pass@N", one.pass_at)):
        for band_name, band in bands.items():
            yield row(
                "log_fit",
                f"{one.name}, {band_name}, {name}",
                "a + c·log n predicts best",
                lambda answer=answer, band=band: tell(answer, band),  # type: ignore[misc]
                headline=headline and name == "majority" and band_name == "all problems",
            )


def temperature(one: Measured, headline: bool) -> Iterator[Row]:
    """The best temperature for 64 samples less that for one; and what choosing it for N is worth."""
    for name in ("majority", "pass@N"):
        yield row(
            "temperature",
            f"{one.name}, {name}",
            "rises with N",
            lambda name=name: _best_temperatures(one, name),  # type: ignore[misc]
            headline=headline and name == "majority",
            unit="temperature",
        )
        yield row(
            "temperature",
            f"{one.name}, {name}, what choosing for N={DEEP} is worth on the other half",
            "rises with N",
            lambda name=name: _worth_of_choice(one, name),  # type: ignore[misc]
        )


@cache
def heat(one: Measured, name: str) -> dict[float, dict[int, Floats]]:
    """Accuracy by temperature and N, for each of the problems that were sampled at all temperatures."""
    if len(one.by_temperature) < 2:
        raise NotMeasured("needs two temperatures at least")
    most = min(len(sample.answers) for told in one.by_temperature.values() for sample in told)
    orders = permutations(most)

    def accuracy(sample: Samples, n: int) -> float:
        if name == "majority":
            return vote(sample.answers, sample.right, n, orders)
        return pass_at(n, most, int(sample.is_right.sum()))

    return {
        degree: {
            n: np.array([accuracy(sample.first(most), n) for sample in told])
            for n in TEMPERATURE_SIZES
            if n <= most
        }
        for degree, told in sorted(one.by_temperature.items())
    }


def _best_temperatures(one: Measured, name: str) -> Told:
    by_temperature = heat(one, name)
    degrees = np.array(list(by_temperature))
    sizes = list(next(iter(by_temperature.values())))
    if DEEP not in sizes:
        raise NotMeasured(f"needs {DEEP} samples at each temperature, and {max(sizes)} are stored")
    problems = len(by_temperature[degrees[0]][1])
    weights = np.vstack([np.full(problems, 1 / problems), resamples(problems)])
    best = {n: degrees[np.argmax([weights @ by_temperature[t][n] for t in degrees], axis=0)] for n in sizes}
    said = ", ".join(f"N={n}: {best[n][0]:g}" for n in sizes)
    rise = best[DEEP] - best[1]
    same = float(np.mean(rise[1:] == 0))
    fall = float(np.mean(rise[1:] < 0))
    return Told(
        float(rise[0]),
        rise[1:],
        f"best temperature for {DEEP} samples less that for one, {name}, {problems} problems; best: {said}",
        reason=f"in {100 * same:.0f} % of resamples the best temperature is the same for 1 and {DEEP}, "
        f"in {100 * fall:.0f} % it falls",
        figures={"best": {str(n): float(best[n][0]) for n in sizes}},
    )


def _worth_of_choice(one: Measured, name: str) -> Told:
    by_temperature = heat(one, name)
    degrees = list(by_temperature)
    if DEEP not in by_temperature[degrees[0]]:
        raise NotMeasured(f"needs {DEEP} samples at each temperature")
    problems = len(by_temperature[degrees[0]][1])
    half = np.arange(problems) % 2 == 0
    points = np.zeros(problems)
    chosen = []
    for chosen_on in (half, ~half):
        many, few = (
            max(degrees, key=lambda t: float(by_temperature[t][n][chosen_on].mean())) for n in (DEEP, 1)
        )
        shown = ~chosen_on
        points[shown] = 100 * (by_temperature[many][DEEP] - by_temperature[few][DEEP])[shown]
        chosen.append(f"{many:g} against {few:g}")
    return Told(
        float(points.mean()),
        resamples(problems) @ points,
        f"{name} of {DEEP} at the temperature chosen for {DEEP} over that chosen for 1, chosen on one half "
        f"of the problems and shown on the other, both ways ({' and '.join(chosen)}), {problems} problems",
        reason="the temperatures chosen for 1 and for many samples are the same, or as good as each other",
    )
