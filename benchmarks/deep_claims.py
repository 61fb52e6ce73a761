"""The claims of `benchmarks.deep`, each with its definition and demand, written before anything was played.

Every comparison is at equal total FLOPs, the verifier's included: a strategy took so many on average, and
its rival, votes or best of n of the same model's samples, has as many samples as those buy (between two
numbers of samples, accuracy is interpolated on the logarithm). Accuracies are in percent, gains in points;
an interval is the middle 95 % of 2,000 resamples of the problems, paired. A claim holds where its interval
lies above 0. Thirds are by the number of operations: 1 to 3, 4 to 6, 7 and more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np

from training.resampling import NO_ANSWER, Floats, bests, interval, permutations, resamples, votes

mpl.use("Agg")
import matplotlib.pyplot as plt

AT: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Samples at which rivals are told."""
RIVALS: Final = ("majority", "weighted", "best_of_n")
THIRDS: Final = {"1 to 3 operations": (1, 3), "4 to 6": (4, 6), "7 and more": (7, 99)}
SNELL: Final = (
    "Snell et al., arXiv 2408.03314: beam search beats best of n at small budgets, and not at large"
)
SOURCES: Final = {
    "beam_over_best_of_n": SNELL,
    "beam_turns": SNELL,
    "dvts": "Beeching et al. 2024: DVTS beats best of n, and beam search at large n",
    "tree": "design: a tree search with a verifier as its value beats best of n",
    "sequential": "s1, arXiv 2501.19393: more thinking, forced, is more often right",
    "broad_and_deep": "Snell et al., arXiv 2408.03314: a mixture of both beats either alone",
    "refine": "Madaan et al., arXiv 2303.17651: revised answers beat drafts; others find that models that "
    "judge themselves gain nothing (Huang et al., arXiv 2310.01798)",
}


@dataclass(frozen=True, eq=False)
class Measured:
    """One model's outcomes, Q problems."""

    model: str
    groups: Floats
    """Shape (Q,): operations."""
    right: Mapping[str, Floats]
    """By plan, shape (Q,)."""
    flops: Mapping[str, Floats]
    verification: Mapping[str, Floats]
    """FLOPs of scores, within `flops`."""
    rivals: Mapping[str, Floats]
    """By way of choosing, shape (Q, len(AT)): accuracy."""
    sample: Mapping[str, float]
    """Likewise: mean FLOPs of a sample."""

    @classmethod
    def of(
        cls,
        model: str,
        groups: Sequence[int],
        played: Mapping[str, tuple[Sequence[bool], Sequence[float], Sequence[float]]],
        truths: Sequence[str],
        answers: Sequence[Sequence[str | None]],
        scores: Sequence[Sequence[float]],
        flops: Sequence[float],
        verification: Sequence[float],
    ) -> Measured:
        """From what was played, and a pool of samples of each problem with the FLOPs of one of them."""
        numbers = np.full((len(answers), len(answers[0])), NO_ANSWER)
        truth = np.full(len(answers), NO_ANSWER)
        for row, (said, right) in enumerate(zip(answers, truths, strict=True)):
            known = {answer: n for n, answer in enumerate(sorted({one for one in said if one is not None}))}
            numbers[row] = [NO_ANSWER if one is None else known[one] for one in said]
            truth[row] = known.get(right, NO_ANSWER)
        weights, orders = np.array(scores, float), permutations(numbers.shape[1])
        ranked = np.where(numbers == NO_ANSWER, -np.inf, weights)
        correct = (numbers == truth[:, None]) & (numbers != NO_ANSWER)
        with_scores, without = float(np.mean(flops)), float(np.mean(flops) - np.mean(verification))
        return cls(
            model,
            np.array(groups, float),
            {plan: np.array(one[0], float) for plan, one in played.items()},
            {plan: np.array(one[1], float) for plan, one in played.items()},
            {plan: np.array(one[2], float) for plan, one in played.items()},
            {
                "majority": votes(numbers, truth, AT, orders),
                "weighted": votes(numbers, truth, AT, orders, weights),
                "best_of_n": bests(ranked, correct, AT),
            },
            {"majority": without, "weighted": with_scores, "best_of_n": with_scores},
        )

    def rival(self, name: str, flops: float) -> tuple[Floats, float]:
        """Accuracy by problem, shape (Q,), of as many samples as FLOPs buy; and that, at most the pool."""
        samples = min(max(flops / self.sample[name], AT[0]), AT[-1])
        place = np.interp(np.log(samples), np.log(AT), np.arange(len(AT)))
        low, share = int(place), float(place % 1)
        high = min(low + 1, len(AT) - 1)
        curve = self.rivals[name]
        return (1 - share) * curve[:, low] + share * curve[:, high], samples


def claims(one: Measured) -> list[dict[str, Any]]:
    """Every claim about one model."""

    def over(plan: str, rival: str) -> Floats:
        return one.right[plan] - one.rival(rival, float(one.flops[plan].mean()))[0]

    def against(claim: str, plan: str, rival: str = "best_of_n") -> dict[str, Any]:
        flops = float(one.flops[plan].mean())
        _, samples = one.rival(rival, flops)
        most = ", the whole pool, for fewer FLOPs" if flops > samples * one.sample[rival] * 1.01 else ""
        how = f"{plan} against {rival} of {samples:.1f}{most}, {flops / 1e6:.0f} MFLOP a query"
        return _row(claim, one, over(plan, rival), how, _spent(one, plan))

    deeper = one.right["sequential high"] - one.right["sequential low"]
    found = [
        *(against("beam_over_best_of_n", f"beam {size}") for size in ("2 × 2", "4 × 4", "8 × 8")),
        _row(
            "beam_turns",
            one,
            over("beam 2 × 2", "best_of_n") - over("beam 8 × 8", "best_of_n"),
            "the gain of beam 2 × 2 over best_of_n less that of beam 8 × 8",
        ),
        *(against("dvts", f"dvts {size}") for size in ("2 × 2", "4 × 4")),
        *(against("tree", f"tree of {nodes}") for nodes in (32, 96, 256)),
        _row("sequential", one, deeper, "one long chain, effort high against effort low: three extensions"),
        against("sequential", "sequential high", "majority"),
    ]
    for plan in ("broad_and_deep 4 high", "broad_and_deep 16 low"):
        flops = float(one.flops[plan].mean())
        # Depth alone is one long chain, however much more is there: it can take no more.
        alone = {"weighted": one.rival("weighted", flops)[0], "sequential high": one.right["sequential high"]}
        better = max(alone, key=lambda name: float(alone[name].mean()))
        how = f"{plan} against the better of both alone, {better}, {flops / 1e6:.0f} MFLOP a query"
        found.append(_row("broad_and_deep", one, one.right[plan] - alone[better], how, _spent(one, plan)))
    found += [against("refine", plan, "majority") for plan in ("refine 1", "refine 4")]
    for claim in SOURCES:
        next(row for row in found if row["claim"] == claim)["headline"] = True
    return found


def _spent(one: Measured, plan: str) -> str:
    share = float(one.verification[plan].sum() / one.flops[plan].sum())
    return f"{100 * share:.0f} % of its FLOPs are the verifier's" if share else ""


def _row(claim: str, one: Measured, gains: Floats, how: str, why: str = "") -> dict[str, Any]:
    """A claim as `headlines.json` has them, with its thirds."""
    drawn = 100 * resamples(len(gains)) @ gains
    low, high = interval(drawn)
    thirds = {}
    for name, (least, most) in THIRDS.items():
        band = (one.groups >= least) & (one.groups <= most)
        if band.any():
            of_band = 100 * resamples(int(band.sum())) @ gains[band]
            thirds[name] = [
                round(100 * float(gains[band].mean()), 1),
                *(round(v, 1) for v in interval(of_band)),
            ]
    holds = low > 0
    lacking = (
        f"the interval begins at {low:+.1f} points" if high > 0 else f"surely worse, by {-high:.1f} or more"
    )
    return {
        "claim": claim,
        "about": one.model,
        "reference": SOURCES[claim],
        "measured": round(100 * float(gains.mean()), 2),
        "interval": [round(low, 2), round(high, 2)],
        "unit": "points",
        "holds": holds,
        "headline": False,
        "how": how,
        "reason": "" if holds else "; ".join(part for part in (lacking, why) if part),
        "figures": {"thirds": thirds},
    }


def plans(one: Measured) -> list[dict[str, Any]]:
    """Each plan, by rising FLOPs."""
    drawn = resamples(len(one.groups))
    found = [
        {
            "model": one.model,
            "plan": plan,
            "accuracy": round(float(right.mean()), 4),
            "interval": [round(v, 4) for v in interval(drawn @ right)],
            "mflop": round(float(one.flops[plan].mean()) / 1e6, 1),
            "verifier": round(float(one.verification[plan].sum() / one.flops[plan].sum()), 3),
        }
        for plan, right in one.right.items()
    ]
    for name, curve in one.rivals.items():
        for n in (1, 4, 16, 64):
            right = curve[:, AT.index(n)]
            found.append(
                {
                    "model": one.model,
                    "plan": f"{name} of {n}",
                    "accuracy": round(float(right.mean()), 4),
                    "interval": [round(v, 4) for v in interval(drawn @ right)],
                    "mflop": round(n * one.sample[name] / 1e6, 1),
                    "verifier": round(1 - one.sample["majority"] / one.sample[name], 3),
                }
            )
    return sorted(found, key=lambda row: row["mflop"])


def picture(every: Sequence[Measured], path: Path) -> None:
    """Accuracy against FLOPs: curves of samples, and a mark for each plan."""
    figure, axes = plt.subplots(
        1, len(every), figsize=(7.6 * len(every), 5.2), squeeze=False, layout="constrained"
    )
    marks: Mapping[str, str] = {
        "beam": "s",
        "dvts": "D",
        "tree": "^",
        "sequential": "o",
        "broad": "P",
        "refine": "X",
    }
    for one, ax in zip(every, axes[0], strict=True):
        for name, curve in one.rivals.items():
            ax.plot(
                np.array(AT) * one.sample[name] / 1e6, 100 * curve.mean(0), label=f"{name} of 1 to {AT[-1]}"
            )
        for kind, mark in marks.items():
            own = [plan for plan in one.right if plan.startswith(kind)]
            x = [float(one.flops[plan].mean()) / 1e6 for plan in own]
            y = [100 * float(one.right[plan].mean()) for plan in own]
            ax.plot(x, y, mark, label=own[0].split(" ")[0], markersize=7)
            for plan, at, height in zip(own, x, y, strict=True):
                ax.annotate(
                    plan.partition(" ")[2],
                    (at, height),
                    textcoords="offset points",
                    xytext=(6, 4),
                    fontsize=7,
                )
        ax.set(xscale="log", xlabel="MFLOP a query, verifier included", ylabel="right, %", title=one.model)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def page(figures: Mapping[str, Any], image: str) -> str:
    """For people."""

    def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
        return [
            f"| {' | '.join(head)} |",
            f"|{'---|' * len(head)}",
            *(f"| {' | '.join(row)} |" for row in rows),
        ]

    def span(values: Sequence[float], form: Callable[[float], str]) -> str:
        return f"{form(values[0])} to {form(values[1])}"

    names = list(THIRDS)
    return (
        "\n".join(
            [
                "# Strategies that make chains in parts",
                "",
                f"Written by `make bench-deep`; not edited by hand. Fixed plans through the real suite on "
                f"{figures['problems']} held-out",
                "problems, one seed, all stages on the bill. Claims are what others report; they were",
                "written down before anything was played, and stay where they do not hold. One thing was",
                "changed after a first look at these problems: a tree whose steps run out before a chain has",
                "ended finishes its best beginnings, where before it had no answer (trees of 32, 96 and 256",
                "steps were then right on 29.3, 39.3 and 51.3 %).",
                "",
                f"![accuracy against FLOPs]({image})",
                "",
                "## Claims, at equal total FLOPs",
                "",
                *table(
                    ["claim", "of", "compared", "points", "95 % interval", "holds", *names],
                    [
                        [
                            one["claim"],
                            one["about"],
                            one["how"],
                            f"{one['measured']:+.1f}",
                            span(one["interval"], lambda v: f"{v:+.1f}"),
                            "yes" if one["holds"] else f"no: {one['reason']}",
                            *(
                                "{:+.1f} ({:+.1f} to {:+.1f})".format(*one["figures"]["thirds"][n])
                                if n in one["figures"]["thirds"]
                                else ""
                                for n in names
                            ),
                        ]
                        for one in figures["claims"]
                    ],
                ),
                "",
                "References:",
                "",
                *(f"- {claim}: {source}." for claim, source in SOURCES.items()),
                "",
                "## Plans, by rising FLOPs",
                "",
                *table(
                    ["model", "plan", "right, %", "95 % interval", "MFLOP a query", "of that the verifier's"],
                    [
                        [
                            one["model"],
                            one["plan"],
                            f"{100 * one['accuracy']:.1f}",
                            span(one["interval"], lambda v: f"{100 * v:.1f}"),
                            f"{one['mflop']:.0f}",
                            f"{100 * one['verifier']:.0f} %",
                        ]
                        for one in figures["plans"]
                    ],
                ),
                "",
                "The verifier reads a chain anew at each step: that is on the bill. What the engine has",
                "in its cache is not computed again, and costs nothing.",
            ]
        )
        + "\n"
    )
