"""How requests are made: one function each for both clients and the command."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, TypedDict, TypeVar, get_args

from google.protobuf.timestamp_pb2 import Timestamp

from isoflop.errors import InvalidArgument
from isoflop.v1.common_pb2 import AnswerFormat, AnswerType, Message
from isoflop.v1.router_pb2 import (
    Budget,
    Effort,
    Filters,
    GetBillRequest,
    GetBudgetRequest,
    Objective,
    Search,
    SolveRequest,
    SubmitFeedbackRequest,
)
from isoflop.v1.verification_pb2 import ChainScoring

AnswerTypeName = Literal["number", "expression", "choice", "text", "code", "pattern"]
EffortName = Literal["low", "medium", "high"]
ScoringName = Literal["min", "product", "last", "mean"]
BillKey = Literal["tenant", "tier", "stage", "model", "strategy", "day"]
_V = TypeVar("_V")

TENANT = "isoflop-tenant"
"""Metadata of a call: the name of the tenant that asks. The router takes the caller's word for it."""

ANSWER_TYPES: dict[str, AnswerType.ValueType] = {
    "number": AnswerType.ANSWER_TYPE_NUMBER,
    "expression": AnswerType.ANSWER_TYPE_EXPRESSION,
    "choice": AnswerType.ANSWER_TYPE_CHOICE,
    "text": AnswerType.ANSWER_TYPE_TEXT,
    "code": AnswerType.ANSWER_TYPE_CODE,
    "pattern": AnswerType.ANSWER_TYPE_PATTERN,
}
EFFORTS: dict[str, Effort.ValueType] = {
    "low": Effort.EFFORT_LOW,
    "medium": Effort.EFFORT_MEDIUM,
    "high": Effort.EFFORT_HIGH,
}
SCORINGS: dict[str, ChainScoring.ValueType] = {
    "min": ChainScoring.CHAIN_SCORING_MIN,
    "product": ChainScoring.CHAIN_SCORING_PRODUCT,
    "last": ChainScoring.CHAIN_SCORING_LAST,
    "mean": ChainScoring.CHAIN_SCORING_MEAN,
}
BILL_KEYS: tuple[BillKey, ...] = get_args(BillKey)


class Options(TypedDict, total=False):
    """What `solve`, `stream` and `plan` take beside the query."""

    answer_type: AnswerTypeName
    """How answers are read and compared; "number" where nothing is said."""
    pattern: str
    """Regular expression with one group that finds the answer; with answer_type "pattern"."""
    effort: EffortName | None
    """A place on the frontier, where no objective is given."""
    target_accuracy: float | None
    """Objective: the cheapest way to this probability of being right, in [0, 1)."""
    flops_per_right_answer: float | None
    """Objective: what being right is worth, in FLOPs."""
    most_accurate: bool
    """Objective: as accurate as the budget allows."""
    budget: Budget | None
    """Limits that bind: FLOPs, money in the catalogue's currency, tokens."""
    models: Sequence[str]
    """Only these models."""
    strategies: Sequence[str]
    """Only these strategies."""
    samples: int | None
    """Exactly this many samples, bought at once; None: the planner decides."""
    temperature: float | None
    """Sampling temperature; None: what calibration chose."""
    seed: int | None
    """Seed of the first sample; None: one is drawn and reported."""
    thinking_tokens: int | None
    """For sequential and broad_and_deep the budget of a chain's thinking, which is kept: extended where it
    ends too soon, closed where it runs out. For others the most tokens of a sample. None: what the model's
    context leaves."""
    verifier: str
    """Verifier for strategies that need one; empty: the first that is there."""
    scoring: ScoringName | None
    """From the scores of steps to the score of a chain; None: as the verifier says."""
    search: Search | None
    """How wide and how deep to search; None, and what is 0 in it: as the strategy says.

    beam: chains that are kept (width), continuations of each (expansion), most steps (depth); 4 × 4 × 64.
    dvts: the same, with width beams of one chain each.
    tree: leaves that are continued at a time, and chains that are returned at most (width), continuations of
    each (expansion), most steps of a chain (depth) and in all (nodes); 4 × 4 × 64 × 128.
    sequential, broad_and_deep: chains (width), most extensions of their thinking (depth); 1 × 1 × 4 and
    4 × 1 × 4, or, without thinking_tokens, by effort: none at low, 1 at medium, 3 at high.
    refine: drafts (width), most revisions of each (depth); 1 × 1 × 3.
    """
    request_id: str
    """Makes the call idempotent, and so safe to try again; empty: none."""
    return_candidates: bool
    """Return every candidate."""


def solve_request(
    query: str | Sequence[Message],
    *,
    answer_type: AnswerTypeName = "number",
    pattern: str = "",
    effort: EffortName | None = None,
    target_accuracy: float | None = None,
    flops_per_right_answer: float | None = None,
    most_accurate: bool = False,
    budget: Budget | None = None,
    models: Sequence[str] = (),
    strategies: Sequence[str] = (),
    samples: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    thinking_tokens: int | None = None,
    verifier: str = "",
    scoring: ScoringName | None = None,
    search: Search | None = None,
    request_id: str = "",
    return_candidates: bool = False,
) -> SolveRequest:
    """The request for a query: one text, or a conversation that ends with the user's message.

    `Options` says what each option means. Whether it makes sense, the router judges; here
    InvalidArgument is raised only for what no request could say: an unknown name, two
    objectives, a number that does not fit its field, text that is not Unicode.
    """
    objective = _objective(target_accuracy, flops_per_right_answer, most_accurate)
    try:
        return SolveRequest(
            request_id=request_id,
            prompt=query if isinstance(query, str) else "",
            messages=() if isinstance(query, str) else query,
            answer_format=AnswerFormat(
                type=_named("answer_format.type", answer_type, ANSWER_TYPES), pattern=pattern
            ),
            objective=objective,
            budget=budget,
            effort=_named("effort", effort, EFFORTS) if effort else Effort.EFFORT_UNSPECIFIED,
            filters=Filters(
                models=models,
                strategies=strategies,
                samples=samples,
                thinking_tokens=thinking_tokens,
                temperature=temperature,
                seed=seed,
                verifier=verifier,
                scoring=_named("filters.scoring", scoring, SCORINGS)
                if scoring
                else ChainScoring.CHAIN_SCORING_UNSPECIFIED,
                search=search,
            ),
            return_candidates=return_candidates,
        )
    except UnicodeEncodeError:
        raise InvalidArgument("request", "a text is not valid Unicode: send UTF-8") from None
    except ValueError as error:  # What protobuf says of a number too large for its field.
        raise InvalidArgument("request", str(error)) from None


def feedback_request(query_id: str, answer: str | None, right: bool | None) -> SubmitFeedbackRequest:
    """The truth about a query: the right answer, or whether the returned one is right.

    Raises InvalidArgument where neither is given, or both are.
    """
    if (answer is None) == (right is None):
        raise InvalidArgument("truth", "give the right answer, or whether the returned one is right")
    try:
        if answer is not None:
            return SubmitFeedbackRequest(query_id=query_id, answer=answer)
        return SubmitFeedbackRequest(query_id=query_id, right=bool(right))
    except UnicodeEncodeError:
        raise InvalidArgument("answer", "the text is not valid Unicode: send UTF-8") from None


def budget_request(tenant: str) -> GetBudgetRequest:
    """Whose budgets: a tenant's; empty: everybody's. Raises InvalidArgument for what is not Unicode."""
    try:
        return GetBudgetRequest(tenant=tenant)
    except UnicodeEncodeError:
        raise InvalidArgument("tenant", "the text is not valid Unicode: send UTF-8") from None


def bill_request(by: Sequence[BillKey], since: datetime | None, until: datetime | None) -> GetBillRequest:
    """What was charged from a time on and before another; a time without a zone is UTC.

    Raises InvalidArgument for a time that is no instant of the calendar's.
    """
    return GetBillRequest(by=by, since=_instant("since", since), until=_instant("until", until))


def _instant(field: str, moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    instant = Timestamp()
    try:
        instant.FromDatetime(moment)
    except (OverflowError, ValueError) as error:  # A zone that leads out of the years 1 to 9999.
        raise InvalidArgument(field, str(error)) from None
    return instant


def _objective(
    target_accuracy: float | None, flops_per_right_answer: float | None, most_accurate: bool
) -> Objective | None:
    given: list[Objective] = []
    if target_accuracy is not None:
        given.append(Objective(target_accuracy=target_accuracy))
    if flops_per_right_answer is not None:
        given.append(Objective(flops_per_right_answer=flops_per_right_answer))
    if most_accurate:
        given.append(Objective(most_accurate=True))
    if len(given) > 1:
        names = " and ".join(str(objective.WhichOneof("kind")) for objective in given)
        raise InvalidArgument("objective", f"{names} exclude each other: give one")
    return given[0] if given else None


def _named(field: str, name: str, values: dict[str, _V]) -> _V:
    try:
        return values[name]
    except KeyError:
        raise InvalidArgument(field, f"{name!r} is none of {', '.join(values)}") from None
