"""Step labels: rows in the form of PRM800K, read into what a verifier is trained on, and written.

A file has one JSON object a line (Lightman et al., arXiv 2305.20050; github.com/openai/prm800k):

    {"question": {"problem": "...", "ground_truth_answer": "421"},
     "label": {"steps": [{"completions": [{"text": "...", "rating": 1}], "chosen_completion": 0,
                          "human_completion": null}],
               "finish_reason": "solution"}}

A row tells of one solution. At each step there are one or more completions, each with a rating (-1 wrong, 0
neutral, 1 right); the solution goes on with the chosen one, or with what a person wrote instead
(`human_completion`). Where neither is there the solution ends, and the first completion is its own last
step. From a row come **chains**: the solution itself, and for each other completion the steps before it and
then it.

What labels mean here:

- A neutral step counts as right, as in the paper: it is no error.
- A step that a person wrote is right, unless its `corrected_rating` says otherwise.
- A rating of null, or a flagged completion (nobody knew how to label it), is no label.
- After the first step that is rated wrong, ratings are no labels: what is right there is for nobody to say.
- The steps before another completion are labelled in the solution itself, and not once more.

A solution that was not labelled to its end goes on, without labels, as `pre_generated_steps` of the question
tell, or `completion`, the whole text. Whether it reached the right answer is said by the answers where both
are known (`ground_truth_answer`, and `pre_generated_answer` or what the whole text gives), else by
`finish_reason`.

What isoflop adds, all of it optional: a completion's `probability` in [0, 1] (the share of roll-outs that
reached the answer, which becomes the target in the rating's place, also after an error) with `rollouts`,
their number, and its `error`, a word for the kind of mistake; the row's `completion`, the `model` that wrote
it, and its `group`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NoReturn

from isoflop.errors import InvalidArgument
from isoflop.v1.common_pb2 import ANSWER_TYPE_EXPRESSION, ANSWER_TYPE_NUMBER
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from services.aggregation.answers import expression_key, extract
from services.aggregation.numbers import canonical_number
from services.verification.steps import cut

CALIBRATION_SHARE = 0.1
"""Share of the problems that no weight is trained on: they say when to stop, and fit what is fitted last."""

MOST_STEPS = 1000
"""Of one row; as long a chain is no service's to score."""
LINE_ENDS = "\r\n"
"""What may end a step, and is no part of its text."""


class LabelsError(InvalidArgument):
    """The labels as a whole are of no use; `str(error)` says why."""

    def __init__(self, description: str) -> None:
        super().__init__("labels", description)


@dataclass(frozen=True)
class Step:
    """One step of a chain."""

    text: str
    """Without the newline that ends it."""
    target: float = 0.0
    """P(the step is right), for training."""
    weight: float = 0.0
    """In the loss; 0: the step has no label."""
    is_right: bool | None = None
    """The label as a yes or no, for figures; None where there is none."""
    error: str = ""
    """Kind of mistake, where the label names it."""


@dataclass(frozen=True)
class Chain:
    """A problem and steps towards its answer."""

    problem: str
    steps: tuple[Step, ...]
    is_sample: bool
    """A whole solution, and no alternative to one of its steps."""
    reached: bool | None = None
    """Whether the solution reached the right answer; None where that is not known."""
    answer: str | None = None
    """The answer that it gives, in the form in which equal answers are equal texts."""
    model: str = ""
    """What wrote it."""
    group: str = ""
    """The kind of problem."""

    @property
    def first_error(self) -> int | None:
        """Index of the first step that is labelled wrong."""
        return next((index for index, step in enumerate(self.steps) if step.is_right is False), None)

    @property
    def is_judged(self) -> bool:
        """Every step has a label, up to the first that is wrong."""
        until = self.first_error
        judged = self.steps if until is None else self.steps[: until + 1]
        return all(step.is_right is not None for step in judged)


@dataclass(frozen=True)
class Fault:
    """A line that could not be read."""

    path: Path
    line: int
    """Its number, from 1."""
    reason: str

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}: {self.reason}"


@dataclass
class Labels:
    """What files of labels hold."""

    chains: list[Chain] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    """Broken lines; the other lines are not affected."""
    rows: int = 0
    """Lines that are not broken."""


class _Form(BaseModel):
    """Base of the parts of a row. Keys that nobody here knows are no mistakes."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class _Completion(_Form):
    text: str
    rating: Literal[-1, 0, 1] | None = None
    flagged: bool | None = None
    probability: float | None = Field(default=None, ge=0, le=1)
    error: str | None = None

    @field_validator("text")
    @classmethod
    def _says_something(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("a step without text")
        return text

    def step(self, *, after_error: bool = False) -> Step:
        """What it is for training; `after_error`: a step before it is rated wrong."""
        text, error = self.text.rstrip(LINE_ENDS), self.error or ""
        is_right = None if self.rating is None else self.rating >= 0
        if self.flagged:
            return Step(text, error=error)
        if self.probability is not None:
            hard = self.probability > 0 if is_right is None else is_right
            return Step(text, self.probability, 1.0, hard, error)
        if is_right is None or after_error:
            return Step(text, error=error)
        return Step(text, float(is_right), 1.0, is_right, error)


class _Human(_Form):
    text: str
    corrected_rating: Literal[-1, 0, 1] | None = None

    def completion(self) -> _Completion:
        rating = 1 if self.corrected_rating is None else self.corrected_rating
        return _Completion(text=self.text, rating=rating)


class _StepOfRow(_Form):
    completions: list[_Completion] | None = None
    chosen_completion: int | None = Field(default=None, ge=0)
    human_completion: _Human | None = None


class _Label(_Form):
    steps: list[_StepOfRow]
    finish_reason: str | None = None


class _Question(_Form):
    problem: str = Field(min_length=1)
    ground_truth_answer: str | None = None
    pre_generated_answer: str | None = None
    pre_generated_steps: list[str] | None = None


class _Row(_Form):
    question: _Question
    label: _Label
    completion: str | None = None
    model: str | None = None
    group: str | int | None = None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def chains_of(line: str) -> list[Chain]:
    """The chains of one line, the solution first; raises ValueError where the line is broken."""
    try:
        told = json.loads(line, parse_constant=_no_constant)
        if "\\ud" in line.lower():
            json.dumps(told, ensure_ascii=False).encode()  # Half a pair is no text, and ends training later.
        row = _Row.model_validate(told)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"]) or "the row"
        raise ValueError(f"{where}: {fault['msg']}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    question, label = row.question, row.label
    if len(label.steps) > MOST_STEPS:
        raise ValueError(f"{len(label.steps)} steps; at most {MOST_STEPS} are read")
    alternatives: list[tuple[Step, ...]] = []
    steps: list[Step] = []
    after_error = False
    for number, step in enumerate(label.steps, start=1):
        completions = step.completions or []
        chosen, others, goes_on = _chosen(step, completions, number)
        if chosen is None:
            break
        labelled = () if after_error else [one for other in others if (one := other.step()).weight]
        if labelled:
            context = tuple(Step(before.text) for before in steps)
            alternatives += [(*context, one) for one in labelled]
        steps.append(chosen.step(after_error=after_error))
        after_error = after_error or (chosen.rating == -1 and not chosen.flagged)
        if not goes_on:
            break
    if not steps:
        raise ValueError("no step has a completion")
    whole = _whole(row)
    if [step.text for step in steps] == whole[: len(steps)]:
        steps += [Step(text) for text in whole[len(steps) :]]
    answer, reached = _outcome(row)
    common: dict[str, Any] = {
        "problem": question.problem,
        "model": row.model or "",
        "group": "" if row.group is None else str(row.group),
    }
    solution = Chain(steps=tuple(steps), is_sample=True, reached=reached, answer=answer, **common)
    return [solution, *(Chain(steps=other, is_sample=False, **common) for other in alternatives)]


def _whole(row: _Row) -> list[str]:
    """The steps of the whole solution, where the row has it."""
    if row.completion is not None:
        return steps_of(row.completion)
    return [text.rstrip(LINE_ENDS) for text in row.question.pre_generated_steps or []]


def _outcome(row: _Row) -> tuple[str | None, bool | None]:
    """The answer that the solution gives, and whether it is the right one."""
    question, text = row.question, row.completion
    said = {"solution": True, "found_error": False}.get(row.label.finish_reason or "")
    if question.ground_truth_answer is None:
        return question.pre_generated_answer, said
    truth = f"\\boxed{{{question.ground_truth_answer}}}"
    kind = ANSWER_TYPE_NUMBER if extract(truth, ANSWER_TYPE_NUMBER) else ANSWER_TYPE_EXPRESSION
    if question.pre_generated_answer is not None:
        text = f"\\boxed{{{question.pre_generated_answer}}}"
    if text is None:
        return None, said
    answer = extract(text, kind)
    # Who says `solution` may know that two answers are equal that are written differently.
    return answer, answer is not None and (said is True or _key(answer) == _key(extract(truth, kind) or ""))


def _key(answer: str) -> str:
    return canonical_number(answer) or expression_key(answer)


def steps_of(text: str) -> list[str]:
    """The steps of a text, cut as the services cut it, each without the line ends that end it."""
    ends = [0, *(step.end for step in cut(text))]
    return [text[begin:end].rstrip(LINE_ENDS) for begin, end in pairwise(ends)]


def _chosen(
    step: _StepOfRow, completions: list[_Completion], number: int
) -> tuple[_Completion | None, list[_Completion], bool]:
    """The solution's own completion of a step, the others, and whether the solution goes on after it."""
    index = step.chosen_completion
    if index is not None:
        if index >= len(completions):
            raise ValueError(f"step {number}: completion {index} is chosen, and there is no such")
        return completions[index], completions[:index] + completions[index + 1 :], True
    if step.human_completion is not None:
        return step.human_completion.completion(), completions, True
    if completions:
        return completions[0], completions[1:], False
    return None, [], False


def read(paths: Iterable[Path]) -> Labels:
    """Everything that the files hold; a broken line is a fault of its own. Raises OSError."""
    labels = Labels()
    for path in paths:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    labels.chains += chains_of(line.decode("utf-8"))
                    labels.rows += 1
                except ValueError as error:
                    labels.faults.append(Fault(path, number, _short(error)))
    return labels


def _short(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    if isinstance(error, UnicodeEncodeError):
        return "half of a surrogate pair, which is no character"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg} at column {error.colno})"
    return str(error)


def without_duplicates(chains: Iterable[Chain]) -> list[Chain]:
    """The chains that differ in problem, steps or labels, each once; those without a label are left out."""
    kept: dict[tuple[str, tuple[Step, ...]], Chain] = {}
    for chain in chains:
        if any(step.weight for step in chain.steps):
            kept.setdefault((chain.problem, chain.steps), chain)
    return list(kept.values())


def trimmed(chain: Chain) -> Chain:
    """The chain up to its last label: what comes after it is nothing to train on."""
    last = max(index for index, step in enumerate(chain.steps) if step.weight)
    return replace(chain, steps=chain.steps[: last + 1])


def place_of(problem: str) -> float:
    """A number in [0, 1) that is a problem's own: splits go by it, so that no problem is on both sides."""
    return int.from_bytes(hashlib.sha256(problem.encode()).digest()[:6]) / 2**48


def split(chains: Iterable[Chain]) -> tuple[list[Chain], list[Chain]]:
    """The chains to train on, and those of the calibration problems."""
    parts: tuple[list[Chain], list[Chain]] = ([], [])
    for chain in chains:
        parts[place_of(chain.problem) < CALIBRATION_SHARE].append(chain)
    return parts


@dataclass(frozen=True)
class Judged:
    """A step and what somebody or something says of it, to be written."""

    text: str
    rating: Literal[-1, 0, 1] | None = None
    probability: float | None = None
    """Share of the roll-outs that reached the answer."""
    rollouts: int | None = None
    """How many there were; 0: none, because a step before it had none that reached the answer."""
    error: str = ""

    def completion(self) -> dict[str, Any]:
        """As it stands in the row."""
        if self.probability is not None and not 0 <= self.probability <= 1:
            raise ValueError(f"{self.probability} is no probability")
        fields = {
            "text": self.text.rstrip(LINE_ENDS),
            "rating": self.rating,
            "flagged": None,
            "probability": self.probability,
            "rollouts": self.rollouts,
            "error": self.error or None,
        }
        always = ("text", "rating", "flagged")
        return {key: value for key, value in fields.items() if key in always or value is not None}


def row_of(
    problem: str,
    truth: str,
    steps: Sequence[Judged],
    *,
    query_id: str,
    reached: bool,
    answer: str | None,
    model: str,
    **more: Any,
) -> str:
    """One line for a solution, its newline included.

    Args:
        problem: The prompt.
        truth: The right answer.
        steps: The solution's steps with their labels.
        query_id: The problem's own name.
        reached: Whether the solution's answer is the right one.
        answer: The answer that it gives, canonical (`services.aggregation.answers.extract`).
        model: What wrote it.
        more: Further keys of the row, such as `group`.
    """
    if not steps:
        raise ValueError("a solution has steps")
    row = {
        "question": {
            "problem": problem,
            "ground_truth_answer": truth,
            "pre_generated_answer": answer,
            "query_id": query_id,
        },
        "label": {
            "steps": [
                {"completions": [step.completion()], "human_completion": None, "chosen_completion": 0}
                for step in steps
            ],
            "finish_reason": "solution" if reached else "found_error",
        },
        "model": model,
        **more,
    }
    return json.dumps(row, allow_nan=False) + "\n"


def check_classes(chains: Iterable[Chain], what: str) -> None:
    """Raise LabelsError unless there are labels of right and of wrong steps; `what` names the chains."""
    targets = [step.target for chain in chains for step in chain.steps if step.weight]
    if not targets:
        raise LabelsError(f"{what} have no labelled step")
    # Soft labels may never be 0 or 1: what differs can be learned.
    if math.isclose(min(targets), max(targets)):
        kind = "wrong" if min(targets) >= 0.5 else "right"
        raise LabelsError(f"{what} have no {kind} step: a verifier learns from both")
