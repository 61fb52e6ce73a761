"""abacus-prm: trained on a judge's step labels, on roll-outs, and on both, compared on held-out problems.

    python -m benchmarks.prm --labels JUDGED.jsonl ROLLOUTS.jsonl --heldout HELDOUT.jsonl [--init ... ]

Each of the three verifiers is trained by `isoflop train-prm` with the same options, and its scores of the
held-out solutions, by the verification service's own backend, are kept in `build/bench-prm/`: a run that was
stopped goes on where it was. Intervals are 95 % bootstrap over problems. Threshold, temperature and rule were
chosen on calibration problems out of the training labels; nothing was chosen on the held-out ones.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from isoflop.v1.common_pb2 import Message, Step
from isoflop.v1.verification_pb2 import Chain as ChainMessage
from rich.console import Console
from rich.progress import Progress

from services.verification.backends import Scored as ScoredMessage
from services.verification.backends.onnx import OnnxBackend
from services.verification.catalog import OnnxEntry
from training.labels import Chain, read
from training.prm import CHAT_TEMPLATE, SIZES, Wanted, hash_of, tell_faults, train
from training.prm_figures import (
    Estimate,
    Scored,
    auc,
    best_scoring,
    brier,
    by,
    by_error,
    calibration_error,
    confident_mistakes,
    estimate,
    first_error,
    plans,
    reliability,
    solved,
    steps_of,
    wrong_precision,
)

mpl.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
STORE = ROOT / "build" / "bench-prm"
RESULTS = ROOT / "benchmarks" / "results" / "prm.json"
PAGE = ROOT / "docs" / "results" / "prm.md"
PICTURE = PAGE.with_suffix(".png")
ROLLOUTS = "roll-outs"
ARMS = {"step labels": (0,), ROLLOUTS: (1,), "both": (0, 1)}
"""Which of the two files of labels each verifier learns from."""
CHAINS_A_REQUEST = 256
MISTAKES = 8
"""Shown of each kind."""


@dataclass(frozen=True)
class Arm:
    """A verifier, and the held-out solutions with its scores."""

    name: str
    record: dict[str, Any]
    """training.json of its folder."""
    scoring: str
    scored: list[Scored]
    unscorable: int


def text_of(chain: Chain) -> ChainMessage:
    """A chain as the verification service takes it."""
    texts = [f"{step.text}\n" for step in chain.steps]
    ends = [sum(map(len, texts[: number + 1])) for number in range(len(texts))]
    return ChainMessage(text="".join(texts), steps=[Step(end=end) for end in ends])


async def score(folder: Path, chains: Sequence[Chain], progress: Progress) -> list[list[float] | None]:
    """Scores by the service's backend; None where a chain cannot be scored."""
    backend = OnnxBackend(OnnxEntry(name="prm", backend="onnx", path=folder), Path(), "USD")
    by_problem: dict[str, list[int]] = {}
    for index, chain in enumerate(chains):
        by_problem.setdefault(chain.problem, []).append(index)
    scores: list[list[float] | None] = [None] * len(chains)
    bar = progress.add_task(f"scores of {folder.name}", total=len(chains))
    try:
        for problem, indexes in by_problem.items():
            for first in range(0, len(indexes), CHAINS_A_REQUEST):
                part = indexes[first : first + CHAINS_A_REQUEST]
                results = await backend.score(
                    [Message(role="user", content=problem)], [text_of(chains[index]) for index in part]
                )
                for index, result in zip(part, results, strict=True):
                    scores[index] = list(result.steps) if isinstance(result, ScoredMessage) else None
                progress.advance(bar, len(part))
    finally:
        await backend.close()
    return scores


def scores_of(folder: Path, heldout: Path, chains: Sequence[Chain]) -> list[list[float] | None]:
    """The scores of the held-out chains, from the store where it has them."""
    manifest = json.loads((folder / "verifier.json").read_text(encoding="utf-8"))
    key = {"model": manifest["sha256"], "heldout": hash_of([heldout])}
    store = folder / "heldout.json"
    if store.exists():
        stored: dict[str, Any] = json.loads(store.read_text(encoding="utf-8"))
        if stored["key"] == key:
            found: list[list[float] | None] = stored["scores"]
            return found
    with Progress() as progress:
        scores = asyncio.run(score(folder, chains, progress))
    partial = store.with_suffix(".partial")
    partial.write_text(json.dumps({"key": key, "scores": scores}), encoding="utf-8")
    partial.replace(store)
    return scores


def arm(name: str, options: Wanted, heldout: Path, chains: Sequence[Chain]) -> Arm:
    """Train one verifier, and score the held-out chains."""
    print(f"--- {name}")
    print(train(options))
    scores = scores_of(options.output, heldout, chains)
    pairs = list(zip(chains, scores, strict=True))
    record = json.loads((options.output / "training.json").read_text(encoding="utf-8"))
    manifest = json.loads((options.output / "verifier.json").read_text(encoding="utf-8"))
    scored = [Scored(chain, tuple(found)) for chain, found in pairs if found is not None]
    if any(math.isnan(one) for chain in scored for one in chain.scores):
        raise SystemExit(f"{options.output} gives scores that are no numbers")
    return Arm(name, record, manifest["scoring"], scored, len(pairs) - len(scored))


def figures(arm: Arm, chains: Sequence[Scored]) -> dict[str, Any]:
    """All figures of one verifier on some chains."""
    steps = steps_of(chains)
    errors = first_error(chains, arm.record["threshold"])
    return {
        "chains": len(chains),
        "steps": len(steps.scores),
        "share_wrong": float(1 - steps.right.mean()) if len(steps.right) else math.nan,
        "auc": asdict(estimate(auc, steps)),
        "wrong_precision": asdict(estimate(wrong_precision, steps)),
        "calibration_error": asdict(estimate(calibration_error, steps)),
        "brier": asdict(estimate(brier, steps)),
        "first_error": {**asdict(errors), "f1": errors.f1},
        "plans": [asdict(one) for one in plans(chains, arm.scoring)],
    }


def results(arms: Sequence[Arm]) -> dict[str, Any]:
    """Everything that is reported."""
    trained_on = sorted({model for arm in arms for model in arm.record["models"]})
    out: dict[str, Any] = {"machine": platform.machine(), "trained_on": trained_on, "arms": {}}
    for arm in arms:
        steps = steps_of(arm.scored)
        wrong, right = confident_mistakes(arm.scored, MISTAKES)
        _, rules = best_scoring(arm.scored)
        out["arms"][arm.name] = {
            "training": arm.record,
            "scoring": arm.scoring,
            "unscorable": arm.unscorable,
            "all": figures(arm, arm.scored),
            "models": {
                model or "not named": figures(arm, part)
                for model, part in sorted(by(arm.scored, lambda one: one.chain.model).items())
            },
            "groups": {
                group: figures(arm, part)
                for group, part in sorted(by(arm.scored, lambda one: one.chain.group).items(), key=_by_number)
                if group
            },
            "errors": [asdict(kind) for kind in by_error(arm.scored, arm.record["threshold"])],
            "errors_by_model": {
                model or "not named": [asdict(kind) for kind in by_error(part, arm.record["threshold"])]
                for model, part in sorted(by(arm.scored, lambda one: one.chain.model).items())
            },
            "reliability": reliability(steps.right, steps.scores),
            "rules": rules,
            "undecided_problems": sum(
                len({one.chain.reached for one in group}) > 1 for group in solved(arm.scored)
            ),
            "wrong_taken_for_right": [asdict(mistake) for mistake in wrong],
            "right_taken_for_wrong": [asdict(mistake) for mistake in right],
        }
    return out


def _by_number(item: tuple[str, Any]) -> tuple[float, str]:
    return (float(item[0]) if item[0].isdecimal() else math.inf, item[0])


def _told(figure: dict[str, float]) -> str:
    """`.912 (.904-.920)`."""
    one = Estimate(**figure)
    if math.isnan(one.value):
        return "–"
    return f"{one.value:.3f}" + ("" if math.isnan(one.low) else f" ({one.low:.3f} to {one.high:.3f})")


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _row(name: str, own: dict[str, Any]) -> list[str]:
    errors = own["first_error"]
    return [
        name,
        f"{own['steps']}",
        _share(own["share_wrong"]),
        _told(own["auc"]),
        _told(own["wrong_precision"]),
        _share(errors["wrong"]),
        _share(errors["right"]),
        _share(errors["f1"]),
        _told(own["calibration_error"]),
        _told(own["brier"]),
    ]


HEADER = [
    "",
    "steps",
    "wrong",
    "AUC",
    "precision",
    "first error found",
    "right chains passed",
    "F1",
    "calibration error",
    "Brier",
]


def table(rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    header, *body = rows
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    """A text in a table."""
    return "`" + text.replace("|", "\\|").replace("`", "'").replace("\n", " ⏎ ") + "`"


def page(found: dict[str, Any]) -> str:
    """docs/results/prm.md."""
    arms: dict[str, Any] = found["arms"]
    trained_on = found["trained_on"]
    parts = [
        "# abacus-prm: a step-level verifier, by what it was trained on",
        "*Written by `python -m benchmarks.prm`; do not edit by hand.*",
        "Three verifiers of one size, trained by `isoflop train-prm` on a judge's step labels, on roll-outs "
        "(Math-Shepherd, arXiv 2312.08935), and on both; scored as the service scores, on held-out "
        f"problems. Trained on solutions of {', '.join(trained_on) or 'no named model'}. A step counts up to "
        "the first that the judge calls wrong. AUC: the chance that a right step scores above a wrong one. "
        "Precision: average precision of finding wrong steps (chance gets their share). First errors as in "
        "ProcessBench (arXiv 2412.06559): found at its very place, and right chains passed, at a threshold "
        "chosen on calibration problems; F1 is their harmonic mean. Intervals: 95 % bootstrap over problems. "
        "Roll-outs take samples for every label and the judge takes none, so there are far fewer of them: "
        "this compares what the labels give that either source makes at its price, not label for label.",
        f"![Figures of the three verifiers]({PICTURE.name})",
        table([HEADER, *(_row(name, own["all"]) for name, own in arms.items())]),
        "Trained on: "
        + "; ".join(
            f"{name}: {own['training']['counts']['training']} chains of "
            f"{own['training']['counts']['problems']} problems, {own['training']['counts']['steps']} labels, "
            f"{own['training']['minutes']:.0f} min, scored by `{own['scoring']}`"
            + (f", {own['unscorable']} held-out chains too long" if own["unscorable"] else "")
            for name, own in arms.items()
        )
        + ".",
        *(_why_rollouts_are_off(own) for name, own in arms.items() if name == ROLLOUTS),
        "## By the model that wrote the solutions",
        table(
            [
                HEADER,
                *(
                    _row(f"{name}: {model}" + ("" if model in trained_on else " (not trained on)"), part)
                    for name, own in arms.items()
                    for model, part in own["models"].items()
                ),
            ]
        ),
        "## Choosing among n given solutions",
        "Problems with fewer solutions than half of them have are left out. Accuracy: the solution with the "
        "best score; the answer with most score in all; the most frequent answer; whether any solution is "
        "right. Means over problems and models.",
        *(
            f"### {name}\n\n"
            + table(
                [
                    ["n", "best of n", "weighted vote", "majority", "any right"],
                    *(
                        [
                            str(one["n"]),
                            *(f"{one[key]:.3f}" for key in ("best", "weighted", "majority", "reachable")),
                        ]
                        for one in own["all"]["plans"]
                    ),
                ]
            )
            + (
                f"\n\nOn the {own['undecided_problems']} in which some are right, best of all by rule: "
                + ", ".join(f"{rule} {value:.3f}" for rule, value in own["rules"].items())
                + f" (chosen before: {own['scoring']})."
                if own["rules"]
                else ""
            )
            for name, own in arms.items()
        ),
        "## Where it is fooled",
        *_fooled(arms),
    ]
    return "\n\n".join(parts) + "\n"


def _why_rollouts_are_off(own: dict[str, Any]) -> str:
    """Why the scores of the verifier of roll-outs are no chances by the judge."""
    told, training = own["all"], own["training"]
    steps = sum(count for _, _, count in own["reliability"])
    said = sum(score * count for score, _, count in own["reliability"]) / steps
    models = " or ".join(training["models"])
    return (
        f"Why the calibration error of roll-outs is {told['calibration_error']['value']:.3f}: their labels "
        f"ask something else. A label is the share of the completions of {models} from the end of the step "
        "that end right; after a step from which none does, all are 0. So it says whether the problem can "
        "still be solved from there by that model, and the judge says whether the step itself is right: a "
        f"right step from which {models} mostly fails later has a low label. Labels are "
        f"{training['counts']['right']:.3f} in the mean (of all steps, those after a mistake too), and the "
        f"scores that they teach {said:.3f}, where {1 - told['share_wrong']:.3f} of the steps here are right "
        "by the judge. Against their own question, whether any completion ends right, the error on "
        f"calibration problems is {training['calibration']['calibration_error']:.3f}. AUC and the best of n "
        "go by the order of the scores, and first errors by a threshold that was chosen for them."
    )


def _fooled(arms: dict[str, Any]) -> list[str]:
    """By kind of error, by group, and the surest mistakes of the verifier of both."""
    kinds = [kind["kind"] for kind in next(iter(arms.values()))["errors"]]
    groups = list(next(iter(arms.values()))["groups"])
    found = {(name, kind["kind"]): kind for name, own in arms.items() for kind in own["errors"]}
    rows = []
    for kind in kinds:
        own = [found.get((name, kind)) for name in arms]
        cells = [f"{one['found']:.3f} / {_share(one['auc'])}" if one else "–" for one in own]
        rows.append([kind, str(own[0]["steps"]) if own[0] else "", *cells])
    parts = [
        "First errors by kind: share that scores below the threshold / AUC against all right steps.",
        table([["kind", "steps", *arms], *rows]),
    ]
    if groups:
        parts += [
            "By group of problems: AUC / first-error F1.",
            table(
                [
                    ["group", *arms],
                    *(
                        [
                            group,
                            *(
                                f"{_share(own['groups'][group]['auc']['value'])} / "
                                f"{_share(own['groups'][group]['first_error']['f1'])}"
                                if group in own["groups"]
                                else "–"
                                for own in arms.values()
                            ),
                        ]
                        for group in groups
                    ),
                ]
            ),
        ]
    last, own = list(arms.items())[-1]
    for key, title in (
        ("wrong_taken_for_right", "Wrong steps with the highest scores"),
        ("right_taken_for_wrong", "Right steps with the lowest scores"),
    ):
        parts += [
            f"### {title} ({last})",
            table(
                [
                    ["problem", "the step before", "step", "score", "error", "model"],
                    *(
                        [
                            _cell(one["problem"]),
                            _cell(one["before"][-1]) if one["before"] else "",
                            _cell(one["step"]),
                            f"{one['score']:.3f}",
                            one["error"],
                            one["model"],
                        ]
                        for one in own[key]
                    ),
                ]
            ),
        ]
    return parts


def draw(found: dict[str, Any], path: Path) -> None:
    """Four pictures: AUC by model, reliability, best of n, and errors that are found."""
    arms: dict[str, Any] = found["arms"]
    figure, ((by_model, calibrated), (chosen, fooled)) = plt.subplots(
        2, 2, figsize=(11, 8), layout="constrained"
    )
    width = 0.8 / len(arms)
    models = list(next(iter(arms.values()))["models"])
    kinds = [kind["kind"] for kind in next(iter(arms.values()))["errors"]]
    for number, (name, own) in enumerate(arms.items()):
        at = [index + number * width for index in range(len(models))]
        aucs = [Estimate(**own["models"][model]["auc"]) for model in models]
        bars = [[one.value - one.low for one in aucs], [one.high - one.value for one in aucs]]
        by_model.bar(at, [one.value for one in aucs], width, yerr=bars, label=name, capsize=2)
        calibrated.plot(
            [said for said, _, _ in own["reliability"]],
            [was for _, was, _ in own["reliability"]],
            "o-",
            label=name,
        )
        plans = own["all"]["plans"]
        chosen.plot([one["n"] for one in plans], [one["best"] for one in plans], "o-", label=name)
        found_by_kind = {kind["kind"]: kind["found"] for kind in own["errors"]}
        fooled.bar(
            [index + number * width for index in range(len(kinds))],
            [found_by_kind.get(kind, 0.0) for kind in kinds],
            width,
            label=name,
        )
    trained_on = set(found["trained_on"])
    middle = width * (len(arms) - 1) / 2
    by_model.set_xticks(
        [index + middle for index in range(len(models))],
        [model if model in trained_on else f"{model}\n(not trained on)" for model in models],
    )
    lowest = min(own["models"][model]["auc"]["low"] for own in arms.values() for model in models)
    # What is worse than chance is to be seen, too; a comparison with NaN is false.
    bottom = lowest - 0.05 if lowest < 0.5 else 0.5
    by_model.set(title="Step AUC by the model that wrote the solutions", ylim=(bottom, 1))
    calibrated.plot([0, 1], [0, 1], "k:", lw=1)
    calibrated.set(title="Calibration", xlabel="score of the step", ylabel="share of right steps")
    plans = next(iter(arms.values()))["all"]["plans"]
    if plans:
        sizes = [one["n"] for one in plans]
        chosen.plot(sizes, [one["majority"] for one in plans], "k--", label="majority")
        chosen.plot(sizes, [one["reachable"] for one in plans], "k:", label="any right")
        chosen.set_xscale("log", base=2)
        chosen.set_xticks(sizes, [str(size) for size in sizes])
    chosen.set(title="Best of n given solutions", xlabel="n", ylabel="accuracy")
    fooled.set_xticks([index + middle for index in range(len(kinds))], kinds)
    fooled.set(title="First errors found, by kind", ylim=(0, 1))
    for axes in (by_model, calibrated, chosen, fooled):
        axes.grid(alpha=0.3)
    # One for all, beside the bars and not on them.
    figure.legend(*chosen.get_legend_handles_labels(), loc="outside lower center", ncols=len(arms) + 2)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def summary(found: dict[str, Any]) -> None:
    """The main table, on the terminal."""
    console = Console()
    for name, own in found["arms"].items():
        errors = own["all"]["first_error"]
        console.print(
            f"{name}: AUC {_told(own['all']['auc'])}, first error F1 {_share(errors['f1'])}, "
            f"calibration error {_told(own['all']['calibration_error'])}"
        )


def check_apart(options: Sequence[Path], heldout: Sequence[Chain]) -> None:
    """Exit where a held-out problem is among the training labels."""
    problems = {chain.problem for chain in heldout}
    if shared := problems & {chain.problem for chain in read(options).chains}:
        raise SystemExit(
            f"{len(shared)} held-out problems are in the training labels: nothing is held out so"
        )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--labels", type=Path, nargs=2, required=True, metavar=("JUDGED", "ROLLOUTS"), help="training labels")
    add("--heldout", type=Path, required=True, help="labelled solutions of held-out problems")
    add("--tokenizer", type=Path, help="as for train-prm")
    add("--init", type=Path, help="as for train-prm")
    add("--size", choices=SIZES, default=Wanted.size, help="as for train-prm")
    add("--epochs", type=int, default=Wanted.epochs, help="as for train-prm")
    add("--rate", type=float, default=Wanted.rate, help="as for train-prm")
    add("--chat-template", default=CHAT_TEMPLATE, help="as for train-prm")
    add("--store", type=Path, default=STORE, help="verifiers and scores (default build/bench-prm)")
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, score, and reckon."""
    labels = read([arguments.heldout])
    tell_faults(labels)
    if not labels.chains:
        raise SystemExit(f"{arguments.heldout} has no labelled solution")
    check_apart(arguments.labels, labels.chains)
    arms = [
        arm(
            name,
            Wanted(
                labels=tuple(arguments.labels[index] for index in which),
                output=arguments.store / name.replace(" ", "-"),
                tokenizer=arguments.tokenizer,
                init=arguments.init,
                size=arguments.size,
                epochs=arguments.epochs,
                rate=arguments.rate,
                chat_template=arguments.chat_template,
            ),
            arguments.heldout,
            labels.chains,
        )
        for name, which in ARMS.items()
    ]
    return results(arms)


def main() -> None:
    """Write the results, the page and the picture."""
    found = run(parse())
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(found), encoding="utf-8")
    draw(found, PICTURE)
    summary(found)


if __name__ == "__main__":
    main()
