"""The page of `make bench-recorded-search`, from its figures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from benchmarks import sources

NAMED: Final = 8
"""Misses that the page names; the JSON has all."""
INTRO: Final = """# Recorded search

Written by `make bench-recorded-search`; not edited by hand. The numbers are in
`benchmarks/results/recorded_search.json`. Nothing is generated: chains and the scores of their steps are
others'; the suite's own part is what chooses among them, `router.strategies.scoring` and the aggregation
core with the service's own limits (expressions). A blank is no vote; runs of one model and n are averaged
by problem; those that lead together share the problem, as the order of recordings is none of time.

Nothing was tuned. What was looked at before the definitions were written: the fields, the numbers of rows,
blanks and characters of each run, the share of single chains that the recording calls correct, and how many
different scores the first steps of a query have. No choice among chains was seen. The headlines' ways were
fixed by what is published: `last` for the searches, which kept beams by it, `product` for the solutions.
"""
SEARCHES: Final = """## What these searches are

The published code drops all but n // beam width beams after each step, four by default, and keeps all where
that is none: a search of one to three beams drops none. The data have it so: where beams were dropped, all
chains of a query begin alike, with one score of their first step. So the runs of one to three are
independent chains that were scored, and only the others are searches. Beams are copied where fewer than n
ended: copies vote.

Cost is not known. Tokens were not recorded, nor characters of dropped beams, while those of beginnings that
chains share are counted with each. The column is characters of a chain over those of an independent sample,
on the same problems (–: no samples of this model). Scoring is not in it.
"""
CHOICES: Final = """## Choosing among the chains of a search

Right answers in %, by our equivalence with gold, and in brackets by the recording's `correct` of the chain
that gave the answer.
"""
AGAINST: Final = """## Search against independent samples

Samples of a model are pooled over runs and taken in blocks of n, each sample once at most; the run of 256
is left out, which is of other weights, on 10 problems. Those of runs of more than one have no scores, so
against a search, which had a reward model, stands the majority: part of what is gained is the reward
model's. Of 100 problems more than one sample was recorded. Four times the samples show how much dearer than
the chains that stayed a search may be, and still pay.
"""


def report(figures: dict[str, Any]) -> str:
    """For people."""
    claims = figures["claims"]
    headlines = [one for one in claims if one["headline"]]
    others = [one for one in claims if not one["headline"]]
    ways = list(figures["beam"][0]["ours"])
    disagree = figures["disagreements"]
    return "\n".join(
        [
            INTRO,
            *sources.told("math500_llama_beam_search", "math500_llama_independent", "math500_steps"),
            "",
            f"**{sum(one['holds'] for one in headlines)} of {len(headlines)} headlines hold.**",
            "",
            *_claims(headlines),
            "",
            *(
                f"- `{one['claim']}`, {one['about']}: {one['how']}."
                + ("" if one["holds"] else f" **Does not hold:** {one['reason']}.")
                for one in headlines
            ),
            "",
            SEARCHES,
            "| model | n | problems | runs of each | all chains begin alike, % | characters, ratio |",
            "|---|---:|---:|---:|---:|---:|",
            *(
                f"| {one['model']} | {one['n']} | {one['problems']} | {one['runs']:.1f} "
                f"| {_alike(one)} | {_ratio(one['chars'])} |"
                for one in figures["beam"]
            ),
            "",
            CHOICES,
            f"| model | n | {' | '.join(ways)} |",
            f"|---|---:|{'---:|' * len(ways)}",
            *(_accuracies(one, ways) for one in figures["beam"]),
            "",
            "95 % intervals, by our equivalence:",
            "",
            f"| model | n | {' | '.join(ways)} |",
            f"|---|---:|{'---:|' * len(ways)}",
            *(
                f"| {one['model']} | {one['n']} "
                f"| {' | '.join('{1:.1f} to {2:.1f}'.format(*one['ours'][way]) for way in ways)} |"
                for one in figures["beam"]
            ),
            "",
            "Where a chain is right by us or by `correct`, and not by both:",
            "",
            "| recording | chains | blank | unlike | % | right by us alone | right by the label alone |",
            "|---|---:|---:|---:|---:|---:|---:|",
            *(
                f"| {name} | {one['chains']['of']} | {one['blank']} | {one['chains']['faults']} "
                f"| {100 * one['chains']['rate']:.2f} | {one['right by us alone']} "
                f"| {one['right by the label alone']} |"
                for name, one in disagree.items()
            ),
            "",
            f"The most frequent of them; {figures['undecided']} answers were not decided in time.",
            "",
            "| recording | problem | gold | answer | right by | chains |",
            "|---|---|---|---|---|---:|",
            *(
                f"| {name} | {miss['query']} | {_code(miss['gold'])} | {_code(miss['answer'])} "
                f"| {'us' if miss['right by us'] else 'the label'} | {miss['times']} |"
                for name, one in disagree.items()
                for miss in one["misses"][:NAMED]
            ),
            "",
            AGAINST,
            "| model | n | problems | one sample | majority | some sample right |",
            "|---|---:|---:|---:|---:|---:|",
            *(
                f"| {one['model']} | {one['n']} | {one['problems']} "
                + "".join(f"| {_share(one['ours'][way])} " for way in ("one sample", "majority", "any right"))
                + "|"
                for one in figures["independent"]
            ),
            "",
            "Paired on the same problems:",
            "",
            *_claims(one for one in others if one["claim"] == "beam_over_independent"),
            "",
            "## Four solutions with their steps",
            "",
            f"{figures['steps']['problems']} problems; answers are read out of the whole texts.",
            "",
            "| way | right, % | 95 % interval |",
            "|---|---:|---:|",
            *(
                f"| {way} | {values[0]:.1f} | {values[1]:.1f} to {values[2]:.1f} |"
                for way, values in figures["steps"]["ours"].items()
            ),
            "",
            "| rule | AUC of a chain's score for a right chain, % | 95 % interval |",
            "|---|---:|---:|",
            *(
                f"| {rule} | {values[0]:.1f} | {values[1]:.1f} to {values[2]:.1f} |"
                for rule, values in figures["steps"]["auc"].items()
            ),
            "",
            "## The other claims",
            "",
            *_claims(
                one for one in claims if one["claim"] != "beam_over_independent" and not one["headline"]
            ),
            "",
            "A claim holds where its interval lies above 0. Of many rows some do by luck.",
            "",
        ]
    )


def _claims(claims: Iterable[dict[str, Any]]) -> list[str]:
    return [
        "| claim | of | reference | measured | 95 % interval | holds |",
        "|---|---|---|---:|---:|---|",
        *(
            f"| `{one['claim']}` | {one['about']} | {one['reference']} | {_measured(one)} "
            f"| {_interval(one)} | {'yes' if one['holds'] else '**no**'} |"
            for one in claims
        ),
    ]


def _measured(claim: dict[str, Any]) -> str:
    return "not measured" if claim["measured"] is None else f"{claim['measured']:+.1f} {claim['unit']}"


def _interval(claim: dict[str, Any]) -> str:
    return "–" if claim["interval"] is None else "{:+.1f} to {:+.1f}".format(*claim["interval"])


def _accuracies(one: dict[str, Any], ways: Iterable[str]) -> str:
    cells = " | ".join(f"{one['ours'][way][0]:.1f} ({one['labels'][way]:.1f})" for way in ways)
    return f"| {one['model']} | {one['n']} | {cells} |"


def _share(values: Iterable[float]) -> str:
    return "{:.1f} ({:.1f} to {:.1f})".format(*values)


def _alike(one: dict[str, Any]) -> str:
    return "–" if one["n"] < 2 else f"{100 * one['all begin alike']:.0f}"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _code(text: str) -> str:
    return "`" + text[:80].replace("|", "\\|").replace("\n", " ") + "`" if text else "none"
