"""Strategies that make chains in parts, played on labelled queries as the router plays them.

Each is played once a query and model, on a bench of the router's own; its best chain is graded, and becomes a
line of the recording beside the model's samples.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from isoflop.errors import InvalidArgument, Unavailable
from isoflop.v1.common_pb2 import AnswerFormat, Model
from isoflop.v1.router_pb2 import Filters, SolveRequest
from isoflop.v1.router_pb2 import Search as SearchMessage
from isoflop.v1.verification_pb2 import Verifier

from router.bench import RoundBench
from router.catalog import Catalog
from router.cost import Cost, Meter
from router.decision import UNLIMITED, Action
from router.planner import Planner
from router.profile import SAMPLES_WORTH, Profile
from router.progress import Progress
from router.query import Bounds, Query, admit
from router.stages import Stages
from router.strategies import STRATEGIES
from router.strategies.scored import comes_to
from router.strategies.strategy import Candidate, Search
from training.calibration import (
    Job,
    Plan,
    Row,
    Share,
    at_worst,
    graded,
    otherwise,
    prompt_tokens,
    refuse,
    with_scores,
)
from training.labelled import Labelled
from training.measured import Deep, spelt
from training.recordings import deep_of, lines

SPELT = re.compile(r"(?P<name>\w+)(:(?P<shape>[1-9]\d*(x[1-9]\d*){0,3}))?(@(?P<tokens>[1-9]\d*))?", re.ASCII)
BOUNDS = Bounds(prompt_bytes=1 << 20, samples=1024, messages=1, depth=1024, nodes=1024)
"""As the router's settings have them, but for prompts."""
NOTHING = Profile("", np.array([0.0, 0.0]), np.array([0.5, 0.5]), (), SAMPLES_WORTH)
"""No curves: what is played is said, and not planned."""
CHAINS = 8
"""Of a strategy that makes single chains: so many are played at once, and voted on."""
ABORT_SECONDS = 10.0
"""How long what is interrupted may take to tell its bill."""


@dataclass(frozen=True)
class Asked:
    """A strategy that is to be played."""

    strategy: str
    search: Search

    def __str__(self) -> str:
        return spelt(self.strategy, self.search)

    def filters(self) -> Filters:
        """As a caller asks for it."""
        search = self.search
        return Filters(
            strategies=[self.strategy],
            search=SearchMessage(
                width=search.width, expansion=search.expansion, depth=search.depth, nodes=search.nodes
            ),
            thinking_tokens=search.tokens or None,
        )


def asked(text: str) -> Asked:
    """The strategy of `NAME[:WxExDxN][@TOKENS]`; raises ValueError, which says in one sentence what is wrong.

    What is left out of its shape is as it usually is.
    """
    found = SPELT.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no strategy with its shape, as beam:4x4x64 or sequential@200")
    name, usual = found["name"], {name: one.shape for name, one in STRATEGIES.items() if one.shape}
    if name == "broad_and_deep":
        raise ValueError(
            "broad_and_deep is not measured: the planner splits breadth and depth itself, by votes over long "
            "chains"
        )
    if name not in usual:
        possible = ", ".join(one for one in usual if one != "broad_and_deep")
        raise ValueError(f"{name} makes no chains in parts; these do: {possible}")
    if found["tokens"] and not STRATEGIES[name].thinks:
        raise ValueError(f"{name} does not think: it has no budget for that")
    parts = map(int, (found["shape"] or "").split("x")) if found["shape"] else ()
    shape = dict(zip(("width", "expansion", "depth", "nodes"), parts, strict=False))
    one = Asked(name, replace(usual[name], **shape, tokens=int(found["tokens"] or 0)))
    try:
        admit(SolveRequest(prompt="?", filters=one.filters()), Catalog({}, {}), BOUNDS)
    except InvalidArgument as error:
        raise ValueError(f"{text}: {error}") from None
    except ValueError:
        raise ValueError(f"{text} is too much: each number must fit in 31 bits") from None
    return one


@dataclass(frozen=True)
class Play(Job):
    """A strategy on a query."""

    deep: Deep
    planner: Planner
    """Of nothing that was measured."""

    @property
    def verifiers(self) -> list[Verifier]:
        """What it goes by."""
        return [self.planner.catalog.verifiers[self.deep.verifier]] if self.deep.verifier else []

    def expected(self, plan: Plan, tokens: float) -> Cost:
        """As of so many samples as it runs at once, each scored once: what more it does is not known."""
        lanes = self.wide.lanes
        return with_scores(self.model, lanes, prompt_tokens(self.query), tokens, self.verifiers)

    def at_worst(self, plan: Plan) -> Cost:
        """Of what runs at once; each later step asks for its own worst case."""
        scored = replace(plan, verifiers=self.verifiers)
        return at_worst(self.query, self.model, scored, self.wide.lanes)

    @property
    def wide(self) -> Search:
        """As wide as it is played."""
        return replace(self.deep.search, width=CHAINS) if self.deep.single else self.deep.search

    async def measure(self, stages: Stages, plan: Plan, meter: Meter, share: Share) -> Row:
        """Its best chain, or several single ones, graded; none is a wrong one."""
        query, action = self.round(plan)
        bench = RoundBench(
            query, action, 0, stages, meter, share, streamed=False, abort_seconds=ABORT_SECONDS
        )
        chains: list[Candidate] = []
        try:
            async with aclosing(STRATEGIES[self.deep.strategy].play(bench)) as batches:
                async for batch in batches:
                    chains += batch if isinstance(batch, list) else []
        finally:
            bench.settle()
        if bench.missing:
            raise Unavailable(bench.missing)
        if any(line.aborted_tokens for line in meter.lines):
            raise Unavailable(f"{self.deep}: chains of query {self.query.query_id} broke off")
        kept = chains if self.deep.single or not chains else [comes_to(chains)]
        rows = await graded(stages, self.query, [chain.sample for chain in kept])
        return self.line(plan) | {
            "deep": {
                "strategy": self.deep.strategy,
                "search": asdict(self.deep.search),
                "verifier": self.deep.verifier,
            },
            "samples": rows or [{"answer": None, "correct": False, "tokens": 0}],
        }

    def round(self, plan: Plan) -> tuple[Query, Action]:
        """The query, and what is bought for it: as the router has them where its planner has chosen this."""
        filters = Asked(self.deep.strategy, self.deep.search).filters()
        filters.models.append(self.model.name)
        filters.verifier, filters.temperature, filters.seed = self.deep.verifier, plan.temperature, plan.seed
        format = AnswerFormat(type=self.query.type)
        request = SolveRequest(prompt=self.query.prompt, answer_format=format, filters=filters)
        query = admit(request, self.planner.catalog, BOUNDS)
        # A budget of thinking is no limit of a chain: it has its answer after that.
        query = replace(query, search=self.wide, samples=self.wide.width, max_tokens=plan.max_tokens)
        state = Progress(self.planner.profile.prior).state(UNLIMITED, math.inf, 0.0, {})
        action = self.planner.decide(query, state).action
        assert action is not None
        return query, action


def served(strategies: Sequence[Asked], models: Sequence[Model], plan: Plan) -> dict[Deep, Model]:
    """The strategies with each model that can serve them, by the first verifier that can score it."""
    found = {}
    for one in strategies:
        strategy = STRATEGIES[one.strategy]
        for model in models:
            scorers = plan.scored_by(model)
            if strategy.serves(model) and (scorers or not strategy.verifies):
                verifier = scorers[0].name if strategy.verifies else ""
                found[Deep(model.name, one.strategy, one.search, verifier)] = model
    return found


def unserved(strategies: Sequence[Asked], models: Sequence[Model], plan: Plan) -> list[str]:
    """Which strategies are not played with which models, a sentence each."""
    told = []
    for one in strategies:
        able = {deep.model for deep in served([one], models, plan)}
        if names := [model.name for model in models if model.name not in able]:
            why = ", or no verifier scores its steps" if STRATEGIES[one.strategy].verifies else ""
            told.append(f"{one} is not played with {', '.join(names)}: the model cannot serve it{why}")
    return told


def missing(
    path: Path,
    queries: Sequence[Labelled],
    models: Sequence[Model],
    plan: Plan,
    strategies: Sequence[Asked],
) -> list[Job]:
    """What a recording lacks: one strategy after the other, so that under a cap the first ones are whole.

    Raises RecordingError, also where what is there of these queries was made otherwise, and OSError.
    """
    wanted, there = served(strategies, models, plan), set()
    by_id = {query.query_id: query for query in queries}
    for row in lines(path):
        deep, query = deep_of(row), by_id.get(row["query_id"])
        if query and deep in wanted:
            refuse(path, query, wanted[deep], otherwise(row, query, plan))
            there.add((deep, query.query_id))
    planner = Planner(NOTHING, Catalog.of(models, plan.verifiers), round_samples=1)
    return [
        Play(query, model, deep, planner)
        for deep, model in wanted.items()
        for query in queries
        if (deep, query.query_id) not in there
    ]
