"""A query as the router works on it: what was asked, checked, with its limits and filters."""

from __future__ import annotations

import math
import random
import uuid
from dataclasses import dataclass, replace
from functools import cached_property

from isoflop.errors import InvalidArgument, NotFound
from isoflop.v1.common_pb2 import AnswerFormat, Message
from isoflop.v1.router_pb2 import Budget, Effort, SolveRequest
from isoflop.v1.verification_pb2 import ChainScoring

from router.catalog import Catalog
from router.cost import Cost
from router.strategies import STRATEGIES
from router.strategies.strategy import Search

EXTENSIONS = {"low": 0, "medium": 1, "high": 3}
"""How often thinking is extended at each effort, where no budget of tokens is given."""
EFFORTS = {0: "medium", Effort.EFFORT_LOW: "low", Effort.EFFORT_MEDIUM: "medium", Effort.EFFORT_HIGH: "high"}
"""Names of the efforts, as profiles have them."""


@dataclass(frozen=True)
class Objective:
    """What a round is weighed by."""

    worth: float | None
    """FLOPs that a right answer is worth; none: what the profile says of `effort`."""
    target: float | None
    """Accuracy at which to stop, whatever more is worth."""
    effort: str
    """A place on the frontier: low, medium, high, or most."""


@dataclass(frozen=True)
class Query:
    """What was asked, and what may be spent on it."""

    query_id: str
    messages: tuple[Message, ...]
    format: AnswerFormat
    objective: Objective
    limit: Cost
    """Infinite where there is no limit."""
    deadline: float
    """In the event loop's time; infinite where there is none."""
    models: tuple[str, ...]
    """Names that may be used; none: all."""
    strategies: tuple[str, ...]
    """Names that may be used; none: all that are measured."""
    samples: int
    """A fixed number; 0: the planner decides."""
    max_tokens: int
    """Most tokens of a sample; 0: what the context leaves."""
    temperature: float | None
    seed: int
    verifier: str
    """Empty: the first that is there."""
    scoring: ChainScoring.ValueType
    """From the scores of steps to the score of a chain; 0: as the verifier says."""
    return_candidates: bool
    search: Search | None = None
    """How wide and how deep its strategy goes; None: it makes whole samples."""
    pinned: bool = False
    """Model and samples are the router's own choice, by its settings."""

    @cached_property
    def prompt_bytes(self) -> int:
        """Bytes of all messages: no tokenizer makes more tokens of them."""
        return sum(len(message.content.encode()) for message in self.messages)


@dataclass(frozen=True)
class Bounds:
    """What a request may ask for at most."""

    prompt_bytes: int
    samples: int
    messages: int
    depth: int = 64
    """Steps of a chain."""
    nodes: int = 1024
    """Steps of a tree."""


def admit(request: SolveRequest, catalog: Catalog, bounds: Bounds, deadline: float = math.inf) -> Query:
    """Check a request; raises InvalidArgument with the field named, or NotFound for an unknown model."""
    filters = request.filters
    for name in filters.models:
        catalog.model(name)
    for name in filters.strategies:
        if name not in STRATEGIES:
            raise NotFound(f"there is no strategy {name!r}; there are: {', '.join(STRATEGIES)}")
    asked = [STRATEGIES[name] for name in filters.strategies]
    if len({(strategy.selection, strategy.verifies) for strategy in asked}) > 1:
        raise InvalidArgument(
            "filters.strategies", "votes, best_of_n and weighted weigh differently: ask for one"
        )
    if filters.scoring not in ChainScoring.values():
        raise InvalidArgument("filters.scoring", "must be min, product, last or mean")
    if filters.verifier:
        catalog.verifier(filters.verifier)
    if filters.HasField("samples") and not 1 <= filters.samples <= bounds.samples:
        raise InvalidArgument("filters.samples", f"must be from 1 to {bounds.samples}, or left out")
    if filters.samples > 1 and set(filters.strategies) == {"single"}:
        raise InvalidArgument("filters.samples", "strategy single has one sample")
    if not filters.samples and any(strategy.checked for strategy in asked):
        raise InvalidArgument("filters.samples", "say how many samples you want to check")
    search = _search(request, bounds)
    if filters.HasField("thinking_tokens") and filters.thinking_tokens < 1:
        raise InvalidArgument("filters.thinking_tokens", "must be at least 1, or left out")
    temperature = filters.temperature if filters.HasField("temperature") else None
    if temperature is not None and not (math.isfinite(temperature) and 0 <= temperature <= 10):
        raise InvalidArgument("filters.temperature", "must be from 0 to 10")
    alone = (
        search.width * search.expansion == 1 if search else "single" in (filters.strategies or ("single",))
    )
    if temperature == 0 and (filters.samples > 1 or not alone):
        raise InvalidArgument("filters.temperature", "at 0 all samples are the same: ask for one, of single")
    seed = filters.seed if filters.HasField("seed") else random.getrandbits(31)
    if not 0 <= seed < 1 << 62:
        raise InvalidArgument("filters.seed", "must be from 0 to 2^62")
    return Query(
        query_id=uuid.uuid4().hex,
        messages=_messages(request, bounds),
        format=request.answer_format,
        objective=_objective(request),
        limit=_limit(request.budget, catalog.currency),
        deadline=deadline,
        models=tuple(dict.fromkeys(filters.models)),
        strategies=tuple(dict.fromkeys(filters.strategies)),
        samples=search.width if search else filters.samples,
        max_tokens=filters.thinking_tokens,
        temperature=temperature,
        seed=seed,
        verifier=filters.verifier,
        scoring=filters.scoring,
        return_candidates=request.return_candidates or any(strategy.checked for strategy in asked),
        search=search,
    )


def _search(request: SolveRequest, bounds: Bounds) -> Search | None:
    """How wide and how deep to go; None where each strategy that was asked for makes whole samples."""
    filters = request.filters
    shapes = {name: shape for name in filters.strategies if (shape := STRATEGIES[name].shape)}
    if not shapes:
        if filters.HasField("search"):
            raise InvalidArgument("filters.search", "goes with a strategy that searches, as beam")
        return None
    name, usual = next(iter(shapes.items()))
    if len(set(filters.strategies)) > 1:
        raise InvalidArgument("filters.strategies", f"{name} cannot be mixed: ask for it alone")
    if filters.HasField("samples"):
        raise InvalidArgument("filters.samples", f"{name} returns as many as filters.search.width says")
    if STRATEGIES[name].thinks and not filters.thinking_tokens:
        usual = replace(usual, depth=EXTENSIONS[EFFORTS.get(request.effort, "medium")])
    asked = filters.search
    for field in ("width", "expansion", "depth", "nodes"):
        if getattr(asked, field) < 0:
            raise InvalidArgument(f"filters.search.{field}", "must be at least 1, or left out")
    if asked.expansion > 1 and usual.expansion == 1:
        raise InvalidArgument("filters.search.expansion", f"{name} tries no other continuations")
    if asked.nodes and not usual.nodes:
        raise InvalidArgument("filters.search.nodes", "goes with a tree")
    search = Search(
        asked.width or usual.width,
        asked.expansion or usual.expansion,
        asked.depth or min(usual.depth, bounds.depth),
        asked.nodes or min(usual.nodes, bounds.nodes),
        filters.thinking_tokens if STRATEGIES[name].thinks else 0,
    )
    if search.width * search.expansion > bounds.samples:
        raise InvalidArgument("filters.search", f"width × expansion is at most {bounds.samples}")
    if search.depth > bounds.depth:
        raise InvalidArgument("filters.search.depth", f"at most {bounds.depth}")
    if usual.nodes and not search.expansion <= search.nodes <= bounds.nodes:
        raise InvalidArgument(
            "filters.search.nodes", f"from expansion, {search.expansion}, to {bounds.nodes}"
        )
    return search


def _messages(request: SolveRequest, bounds: Bounds) -> tuple[Message, ...]:
    if request.prompt and request.messages:
        raise InvalidArgument("messages", "give either these or a prompt")
    field = "messages" if request.messages else "prompt"
    messages = tuple(request.messages) or (Message(role="user", content=request.prompt),)
    if len(messages) > bounds.messages:
        raise InvalidArgument("messages", f"at most {bounds.messages}")
    for message in messages:
        if message.role not in ("system", "user", "assistant"):
            raise InvalidArgument(
                "messages", f"role {message.role[:32]!r} is none of system, user, assistant"
            )
    if messages[-1].role != "user" or not messages[-1].content.strip():
        raise InvalidArgument(field, "must not be empty, and the last message must be the user's")
    if sum(len(message.content.encode()) for message in messages) > bounds.prompt_bytes:
        raise InvalidArgument(field, f"at most {bounds.prompt_bytes} bytes")
    return messages


def _objective(request: SolveRequest) -> Objective:
    effort = EFFORTS.get(request.effort)
    if effort is None:
        raise InvalidArgument("effort", "must be low, medium or high")
    objective = request.objective
    match objective.WhichOneof("kind"):
        case "target_accuracy":
            if not 0 < objective.target_accuracy < 1:
                raise InvalidArgument("objective.target_accuracy", "must be above 0 and below 1")
            return Objective(None, objective.target_accuracy, "most")
        case "flops_per_right_answer":
            worth = objective.flops_per_right_answer
            if not (math.isfinite(worth) and worth > 0):
                raise InvalidArgument("objective.flops_per_right_answer", "must be a positive number")
            return Objective(worth, None, effort)
        case "most_accurate":
            if not (request.budget.flops or request.budget.money or request.budget.tokens):
                raise InvalidArgument("objective.most_accurate", "needs a budget")
            return Objective(None, None, "most")
    return Objective(None, None, effort)


def _limit(budget: Budget, currency: str) -> Cost:
    if budget.currency not in ("", currency):
        raise InvalidArgument("budget.currency", f"must be {currency}, in which models are priced")
    for name in ("flops", "money", "tokens"):
        value = getattr(budget, name)
        if not (math.isfinite(value) and value >= 0):
            raise InvalidArgument(f"budget.{name}", "must not be negative; 0 is no limit")
    return Cost(budget.flops or math.inf, budget.money or math.inf, budget.tokens or math.inf)
