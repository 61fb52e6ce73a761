"""Answers of real models, read and compared by aggregation, against gold and against one another.

    python -m benchmarks.answers

Extraction: the texts of `math500_steps` against a second reader of boxes, written here. Equivalence: those
answers against gold, where the reference is math-verify on the whole text; and the answers of `math500`
against their recorded label. Each distinct pair of a problem is compared once and counted as often as it
occurs. Problems are halved by a hash of their id: faults were looked for and mended in the first half.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import hashlib
import itertools
import json
import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.v1.common_pb2 import ANSWER_TYPE_EXPRESSION
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.progress import track

from benchmarks import sources
from services.aggregation import worker
from services.aggregation.answers import based, expression_key, extract
from services.aggregation.equivalence import Equivalence
from services.aggregation.settings import AggregationSettings

ROOT = Path(__file__).parents[1]
RECORDINGS = ROOT.parent / "shared" / "data" / "recordings"
MOST_ANSWERS = 6
"""Distinct answers of a problem that are compared with one another, the most frequent first."""
PATIENT = AggregationSettings(task_seconds=10, request_seconds=3600)
"""Limits that no comparison here should meet; those that do are counted as undecided."""
JUDGED = {
    ("math500/142", r"2\cdot5!\cdot5!=2\cdot120\cdot120=28800"): "label: derivation",
    ("math500/176", "0.0000673"): "label: rounded",
    (
        "math500/431",
        r"\displaystyle\frac{\pi^{2}}{8}\;\le\;f(x)\;\le\;\frac{5\pi^{2}}{4}",
    ): "label: inequality",
    ("math500/431", r"\displaystyle\frac{\pi^{2}}{8}\lef(x)\le\frac{5\pi^{2}}{4}"): "label: inequality",
}
"""Misses of the first half, looked at one by one: whose fault, and why."""
_BOX = re.compile(r"\\boxed\s*\{")
_SEPARATORS = re.compile(r"[,;]")


@dataclass(frozen=True)
class Compared:
    """One distinct answer of one problem against gold."""

    query_id: str
    half: int
    gold: str
    answer: str
    ours: str
    """none, equal, different or undecided."""
    label: bool
    times: int


def half(query_id: str) -> int:
    """1 or 2."""
    return hashlib.sha256(query_id.encode()).digest()[-1] % 2 + 1


def recorded(name: str) -> Iterator[dict[str, Any]]:
    """The rows of a recording."""
    with gzip.open(RECORDINGS / f"{name}.jsonl.gz", "rt") as lines:
        yield from map(json.loads, lines)


def last_box(text: str) -> str | None:
    """What is in the last complete box: the reference, which knows nothing of `services`."""
    last = None
    for box in _BOX.finditer(text):
        depth, end = 1, box.end()
        while end < len(text) and depth:
            depth += (text[end] == "{") - (text[end] == "}")
            end += 1
        if not depth and text[box.end() : end - 1].strip():
            last = text[box.end() : end - 1]
    return last


def wilson(faults: int, total: int) -> tuple[float, float]:
    """95 % interval of a share."""
    z = 1.96
    share, weight = faults / total, z * z / total
    middle = (share + weight / 2) / (1 + weight)
    spread = z / (1 + weight) * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    return max(0.0, middle - spread), min(1.0, middle + spread)


def rate(faults: int, total: int) -> dict[str, Any]:
    """An error rate as it is kept."""
    return {"faults": faults, "of": total, "rate": faults / total, "interval": wilson(faults, total)}


def reason(one: str, other: str) -> str:
    """A rough kind of a miss, by rule."""
    keys = expression_key(one), expression_key(other)
    if any(map(based, keys)):
        return "base"
    if any("\\text" in text or re.search(r"[A-Za-z]{4,}", re.sub(r"\\[A-Za-z]+", "", text)) for text in keys):
        return "words"
    if any("=" in key or "\\le" in key or "\\ge" in key for key in keys):
        return "equation or inequality"
    if any(_SEPARATORS.search(key) for key in keys):
        return "several values"
    return "value"


async def verdict(equivalence: Equivalence, gold: str, answer: str | None) -> str:
    """Ours on an answer, as read out of a box."""
    wanted = extract(f"\\boxed{{{gold}}}", ANSWER_TYPE_EXPRESSION)
    if answer is None or wanted is None:
        return "none"
    if expression_key(wanted) == expression_key(answer):
        return "equal"
    equal = await equivalence.equal(wanted, answer, equivalence.turn())
    return {True: "equal", False: "different", None: "undecided"}[equal]


def extraction() -> dict[str, Any]:
    """Whether every text's answer is found, and none where there is none."""
    misses: list[dict[str, Any]] = []
    totals: Counter[int] = Counter()
    for row in recorded("math500_steps"):
        for number, sample in enumerate(row["samples"]):
            totals[half(row["query_id"])] += 1
            found = extract(sample["text"], ANSWER_TYPE_EXPRESSION)
            box = last_box(sample["text"])
            wanted = None if box is None else extract(f"\\boxed{{{box}}}", ANSWER_TYPE_EXPRESSION)
            if found != wanted:
                misses.append(
                    {"query": row["query_id"], "sample": number, "ours": found, "box": box}
                    | {"half": half(row["query_id"])}
                )
    faults = Counter(miss["half"] for miss in misses)
    return {"halves": {n: rate(faults[n], totals[n]) for n in (1, 2)}, "misses": misses}


async def steps(equivalence: Equivalence) -> list[Compared]:
    """Answers in texts against gold; the label is math-verify's on the whole text."""
    compared = []
    for row in track(list(recorded("math500_steps")), "math500_steps"):
        cases: Counter[tuple[str | None, str | None]] = Counter()
        texts: dict[tuple[str | None, str | None], str] = {}
        for sample in row["samples"]:
            case = extract(sample["text"], ANSWER_TYPE_EXPRESSION), last_box(sample["text"])
            cases[case] += 1
            texts.setdefault(case, sample["text"])
        for case, times in cases.items():
            ours = await verdict(equivalence, row["gold"], case[0])
            label = await asyncio.to_thread(graded, row["gold"], texts[case])
            compared.append(
                Compared(
                    row["query_id"], half(row["query_id"]), row["gold"], case[0] or "", ours, label, times
                )
            )
    return compared


def graded(gold: str, text: str) -> bool:
    """math-verify's own verdict on a whole text, as graders use it."""
    import math_verify

    read = [
        math_verify.parse(part, parsing_timeout=None) for part in (f"${gold}$", text[text.rfind("\\boxed") :])
    ]
    return bool(math_verify.verify(*read, timeout_seconds=None))


async def answers(equivalence: Equivalence) -> tuple[list[Compared], dict[str, Counter[str]]]:
    """Recorded answers against gold and the recorded label; and the answers of each problem."""
    cases: Counter[tuple[str, str, str, bool]] = Counter()
    for row in recorded("math500"):
        for sample in row["samples"]:
            if sample["answer"]:
                cases[row["query_id"], row["gold"], sample["answer"], sample["correct"]] += 1
    compared, by_problem = [], dict[str, Counter[str]]()
    for (query_id, gold, answer, label), times in track(cases.items(), "math500"):
        read = extract(f"\\boxed{{{answer}}}", ANSWER_TYPE_EXPRESSION)
        ours = await verdict(equivalence, gold, read)
        compared.append(Compared(query_id, half(query_id), gold, answer, ours, label, times))
        if read is not None:
            by_problem.setdefault(query_id, Counter())[read] += times
    return compared, by_problem


async def consistency(equivalence: Equivalence, by_problem: dict[str, Counter[str]]) -> dict[str, Any]:
    """Whether "equal" is symmetric and transitive among the most frequent answers of each problem."""
    pairs = asymmetric = triples = intransitive = undecided = 0
    listed = []
    for query_id, counted in track(by_problem.items(), "consistency"):
        distinct: dict[str, str] = {}
        for answer, _ in counted.most_common():
            distinct.setdefault(expression_key(answer), answer)
        chosen = list(distinct.values())[:MOST_ANSWERS]
        equal: dict[tuple[str, str], bool] = {}
        for one, other in itertools.permutations(chosen, 2):
            told = await equivalence.equal(one, other, equivalence.turn())
            undecided += told is None
            equal[one, other] = bool(told)
        for one, other in itertools.combinations(chosen, 2):
            pairs += 1
            asymmetric += equal[one, other] != equal[other, one]
        for one, middle, other in itertools.permutations(chosen, 3):
            if one < other:
                triples += 1
                if equal[one, middle] and equal[middle, other] and not equal[one, other]:
                    intransitive += 1
                    listed.append({"query": query_id, "answers": [one[:80], middle[:80], other[:80]]})
    return {
        "pairs": pairs,
        "asymmetric": asymmetric,
        "triples": triples,
        "intransitive": intransitive,
        "undecided": undecided,
        "misses": listed,
    }


def ratios(compared: list[Compared]) -> dict[str, float]:
    """Processor time of one comparison over that of `==` on the same two texts, medians."""
    worker.start(PATIENT.worker_memory_bytes, mathematics=True)
    chosen = [one for one in compared if one.answer and len(one.answer) < 200][
        :: max(1, len(compared) // 150)
    ]
    plain = _median(chosen, lambda gold, answer: gold == answer, 1000)
    expression_key.cache_clear()
    key = _median(chosen, _by_key, 1)
    return {"by key": key / plain, "by mathematics": _median(chosen, worker.equivalent, 1) / plain}


def _by_key(gold: str, answer: str) -> bool:
    expression_key.cache_clear()
    return expression_key(gold) == expression_key(answer)


def _median(chosen: list[Compared], compare: Any, repeats: int) -> float:
    times = []
    for one in chosen:
        begin = time.process_time_ns()
        for _ in range(repeats):
            compare(one.gold, one.answer)
        times.append((time.process_time_ns() - begin) / repeats)
    return statistics.median(times)


def scored(compared: list[Compared]) -> dict[str, Any]:
    """Error rates by half, and the misses."""
    found: dict[str, Any] = {"halves": {}, "misses": []}
    for number in (1, 2):
        mine = [one for one in compared if one.half == number]
        false_equal = sum(one.times for one in mine if one.ours == "equal" and not one.label)
        false_different = sum(one.times for one in mine if one.ours != "equal" and one.label)
        wrong_pairs = [one for one in mine if (one.ours == "equal") != one.label]
        found["halves"][number] = {
            "samples": rate(false_equal + false_different, sum(one.times for one in mine)),
            "pairs": rate(len(wrong_pairs), len(mine)),
            "false_equal": false_equal,
            "false_different": false_different,
            "undecided": sum(one.times for one in mine if one.ours == "undecided"),
        }
        found["misses"] += [
            {
                "query": one.query_id,
                "half": number,
                "ours": one.ours,
                "answer": one.answer[:120],
                "gold": one.gold[:120],
                "times": one.times,
                "kind": reason(one.gold, one.answer),
                "judged": JUDGED.get((one.query_id, one.answer), ""),
            }
            for one in wrong_pairs
        ]
    return found


def _percent(told: dict[str, Any]) -> str:
    low, high = told["interval"]
    return (
        f"{told['faults']} of {told['of']} = {100 * told['rate']:.2f} % ({100 * low:.2f} to {100 * high:.2f})"
    )


def report(figures: dict[str, Any]) -> str:
    """The page for people."""
    lines = [
        "# Answers: read and compared",
        "",
        "Written by `make bench-answers`; not edited by hand. Intervals are Wilson's, 95 %; samples of one",
        "problem are not independent, so those of samples are too narrow; those of pairs are nearer.",
        "",
        "Problems are halved by a hash of their id. Misses were looked at in the first half only, and these",
        "faults mended: `\\,` between a digit and a digit was dropped (`5\\,2^{7/4}` was `52^{7/4}`); a",
        "derivation was not taken for what it ends with; two bases were one number. So the first half's",
        "figures are in-sample. The second half is not quite untouched: how often a base is left out, and",
        "what the labels say of it, was counted on all of `math500`; and the two recordings have the same",
        "problems under different ids, so one that was seen in one may be in the other's second half.",
        "",
        *sources.told("math500_steps", "math500"),
        "",
        "## Extraction",
        "",
        "`math500_steps`, all texts, against a second reader of complete boxes; texts without one have no",
        "answer (those of the first half were looked at: all were cut short).",
        "",
        "| half | misses |",
        "|---|---:|",
        *(f"| {n} | {_percent(one)} |" for n, one in figures["extraction"]["halves"].items()),
        "",
        "## Equivalence with gold",
        "",
        "| recording | half | samples unlike the label | distinct pairs | false equal | false different |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name in ("math500_steps", "math500"):
        for n, one in figures[name]["halves"].items():
            lines.append(
                f"| {name} | {n} | {_percent(one['samples'])} | {_percent(one['pairs'])} "
                f"| {one['false_equal']} | {one['false_different']} |"
            )
    misses = [(name, miss) for name in ("math500_steps", "math500") for miss in figures[name]["misses"]]
    at_fault = sum(miss["judged"].startswith("label") for _, miss in misses)
    lines += [
        "",
        "The label of `math500_steps` is math-verify on the end of the text; that of `math500` was recorded,",
        "and made by math-verify too, which our expressions ask: faults that it shares with us are not seen.",
        f"Every miss, the first half's judged one by one ({at_fault} are the label's fault):",
        "",
        "| recording | half | problem | ours | answer | gold | samples | kind | judged |",
        "|---|---|---|---|---|---|---:|---|---|",
        *(
            f"| {name} | {m['half']} | {m['query']} | {m['ours']} | {_cell(m['answer'])} "
            f"| {_cell(m['gold'])} | {m['times']} | {m['kind']} | {m['judged']} |"
            for name, m in misses
        ),
    ]
    told = figures["consistency"]
    lines += [
        "",
        "A number without a base equals the same digits with one (`52` and `52_8`): who is asked for base 8",
        "often leaves it out, and the labels have it so. Two bases differ.",
        "",
        "## Is it an equivalence?",
        "",
        f"Among the {MOST_ANSWERS} most frequent distinct answers of each `math500` problem:",
        f"{told['asymmetric']} of {told['pairs']} pairs are not symmetric,",
        f"{told['intransitive']} of {told['triples']} chains not transitive,",
        f"{told['undecided']} comparisons undecided.",
        "",
        *(f"- {m['query']}: {' ; '.join(map(_cell, m['answers']))}" for m in told["misses"]),
        "",
        "## Time",
        "",
        "Processor time of one comparison over that of `==` on the same two texts, medians:",
        *(f"{name} × {value:.0f};" for name, value in figures["time_ratio"].items()),
        "what was compared once is remembered.",
    ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return "`" + text.replace("|", "\\|").replace("\n", " ") + "`" if text else ""


async def measure() -> dict[str, Any]:
    """All figures."""
    equivalence = Equivalence(PATIENT, CollectorRegistry())
    try:
        texts = await steps(equivalence)
        compared, by_problem = await answers(equivalence)
        consistent = await consistency(equivalence, by_problem)
    finally:
        await equivalence.close()
    return {
        "extraction": extraction(),
        "math500_steps": scored(texts),
        "math500": scored(compared),
        "consistency": consistent,
        "time_ratio": ratios(compared),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "answers.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "answers.md")
    arguments = parser.parse_args()
    figures = asyncio.run(measure())
    for path in (arguments.json, arguments.page):
        path.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    page = report(figures)
    arguments.page.write_text(page)
    Console().print(page, markup=False)


if __name__ == "__main__":
    main()
