"""How long a decision takes: `python -m benchmarks.planner`.

States are drawn from simulated queries of 34 models, each of which may be sampled 1 to 32 times: 204 actions,
41 types of queries. Kinds of states and repeats take turns, so that noise comes to all alike.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from isoflop.v1.router_pb2 import Effort, Filters, SolveRequest

from benchmarks.overhead_report import machine
from benchmarks.simulated import Play, Truth, ask, many_talents, planner_of
from router.belief import update
from router.decision import State
from router.menu import Menu
from router.planner import Planner
from router.query import Query

ARMS, TYPES, POOL = 34, 41, 7
GOAL_US = 200.0
"""Of a decision among ARMS × 6 actions, 99 of 100."""

KINDS = {"no votes": 0, "one vote": 1, "several samples of a model": 1, "several models": 4}
"""Most models that were sampled."""

PAGE = """\
# How long the planner takes

Written by `make bench-planner`; the numbers behind it are in `benchmarks/results/planner.json`.

A decision chooses among {actions} actions ({arms} models, of which 1, 2, 4, 8, 16 or 32 samples are looked
ahead by) with {types} types of queries. States are of simulated queries of which nothing, one sample, 2 to 8
samples of a model, or 1 to 4 samples each of 2 to 4 models are known, as many of each kind, {states} in all;
each has a deadline, so that no kept first decision answers. A decision with probes is one in which a sample
may be bought for what it tells: every arm's lengths are known, the samples so far are fewer than three.

{repeats} repeats of everything take turns. Figures are percentiles over states, of each of which the median
over repeats counts; `single` is over all single decisions on the processor's clock, with what other work does
to them (caches, interrupts). The machine is shared and was busy (load {load:.1f} on {cores} cores), hence two
clocks: the processor time of the thread, and what passed on the wall, where waiting for a core that others
have counts as well. One thread, nice {nice}.
{machine}.

{table}
Goal: {goal:.0f} µs at p99 for a decision among about 200 actions, 41 types. Processor time:
{measured:.0f} µs, **{verdict}**; at p50 {median:.0f} µs.
"""


@dataclass(frozen=True)
class Case:
    """Something that is timed for each of some states."""

    name: str
    run: Callable[[Query, State], object]
    states: Sequence[tuple[Query, State]]


@dataclass(frozen=True)
class Row:
    """Microseconds: percentiles over states, of each of which the median over repeats counts."""

    name: str
    states: int
    cpu_p50: float
    cpu_p99: float
    wall_p50: float
    wall_p99: float
    single_p99: float
    """Of single decisions on the processor's clock, without medians."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=int, default=600, help="of each kind")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/planner.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/results/planner.md"))
    args = parser.parse_args()
    load = os.getloadavg()[0]
    cases = list(_cases(args.states))
    rows = measure(cases, args.repeats)
    told = {
        "machine": str(machine()),
        "load": load,
        "cores": os.cpu_count(),
        "nice": os.nice(0),
        "actions": ARMS * 6,
        "types": TYPES,
        "repeats": args.repeats,
        "goal_us": GOAL_US,
        "rows": [vars(row) for row in rows],
    }
    args.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    args.page.write_text(page(rows, told), encoding="utf-8")
    print(args.page.read_text(encoding="utf-8"))


def page(rows: Sequence[Row], told: dict[str, object]) -> str:
    """The page of the results."""
    lines = ["| what | states | CPU p50 µs | CPU p99 µs | wall p50 µs | wall p99 µs | single p99 µs |"]
    lines.append("| --- | --: | --: | --: | --: | --: | --: |")
    for row in rows:
        figures = (row.cpu_p50, row.cpu_p99, row.wall_p50, row.wall_p99, row.single_p99)
        lines.append(f"| {row.name} | {row.states} | " + " | ".join(f"{x:.0f}" for x in figures) + " |")
    whole = rows[0]
    return PAGE.format(
        **told,
        arms=ARMS,
        states=whole.states,
        table="\n".join(lines) + "\n",
        goal=GOAL_US,
        measured=whole.cpu_p99,
        median=whole.cpu_p50,
        verdict="reached" if whole.cpu_p99 < GOAL_US else "not reached",
    )


def measure(cases: Sequence[Case], repeats: int) -> list[Row]:
    """Every case once in each repeat, a few states of one after a few of another."""
    turns = [(case, at) for case in range(len(cases)) for at in range(0, len(cases[case].states), 20)]
    taken = [np.zeros((repeats, len(case.states), 2)) for case in cases]
    for repeat in range(-1, repeats):  # The first one fills caches, and is overwritten.
        random.Random(repeat).shuffle(turns)
        for number, at in turns:
            case = cases[number]
            for place, (query, state) in enumerate(case.states[at : at + 20], at):
                cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
                case.run(query, state)
                wall, cpu = time.perf_counter_ns() - wall, time.thread_time_ns() - cpu
                taken[number][max(repeat, 0), place] = cpu / 1e3, wall / 1e3
    found = []
    for times in taken:
        figures = np.percentile(np.median(times, axis=0), [50, 99], axis=0).T.ravel()
        found.append([*figures.tolist(), float(np.percentile(times[..., 0], 99))])
    return [Row(case.name, len(case.states), *figures) for case, figures in zip(cases, found, strict=True)]


def _cases(count: int) -> list[Case]:
    planner, by_kind = _states(ARMS, count, lengths=False)
    every = [one for states in by_kind.values() for one in states]
    found = [Case("a decision", planner.decide, every)]
    found += [Case(f"… {kind}", planner.decide, states) for kind, states in by_kind.items()]
    found.append(Case("a belief after votes", _updates(planner), [one for one in every if one[1].bought]))
    found.append(Case("a menu, once for queries that are alike", _builds(planner), every[:40]))
    for arms in (POOL, ARMS):
        planner, by_kind = _states(arms, min(count, 100), lengths=True)
        every = [one for states in by_kind.values() for one in states if one[1].votes.samples < 3]
        found.append(Case(f"a decision with probes, {arms} models", planner.decide, every))
    return found


def _updates(planner: Planner) -> Callable[[Query, State], object]:
    return lambda query, state: update(planner.profile.prior, state.votes)


def _builds(planner: Planner) -> Callable[[Query, State], object]:
    def build(query: Query, state: State) -> object:
        menu = Menu.of(query, planner.profile, planner.catalog, planner.max_samples)
        return menu.stack(state.greedy)

    return build


def _states(arms: int, count: int, *, lengths: bool) -> tuple[Planner, dict[str, list[tuple[Query, State]]]]:
    """So many states of each kind that simulated queries come to."""
    talents, prior = many_talents(arms, TYPES)
    planner = planner_of(talents, prior, lengths=lengths)
    by_name = {talent.name: talent for talent in talents}
    rng = random.Random(2)
    found: dict[str, list[tuple[Query, State]]] = {kind: [] for kind in KINDS}
    efforts = (Effort.EFFORT_LOW, Effort.EFFORT_MEDIUM, Effort.EFFORT_HIGH)
    for kind, models in KINDS.items():
        while len(found[kind]) < count:
            request = SolveRequest(effort=rng.choice(efforts), filters=Filters(strategies=["majority"]))
            query, type = ask(planner, request), rng.choices(range(TYPES), prior.tolist())[0]
            belief = planner.profile.belief(float(planner.profile.grid[type]) + rng.gauss(0, 0.8), 0.8)
            play = Play(planner, query, Truth(planner, by_name, type, rng), belief, seconds=3600.0)
            offers = planner.outlook(query, play.state())
            for row in rng.sample(range(arms), rng.randint(min(models, 2), models)):
                most = {"one vote": (1, 1), "several models": (1, 4)}.get(kind, (2, 8))
                if action := offers.action(row, 0):
                    play.buy(replace(action, samples=rng.randint(*most)))
            found[kind].append((query, play.state()))
    return planner, found


if __name__ == "__main__":
    main()
