"""Problems, the split by hash, the training stream, and the judge of a step.

A problem is a prompt (an expression, an equation, or a story in plain English) and the expression that
answers it. Its **group** is the number of operations of that expression, its **kind** how it is put. This
module imports neither torch nor numpy, so that tests and benchmarks can use it anywhere.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from training.expressions import (
    Expression,
    canonical,
    combine,
    divisors,
    draw,
    number,
    operations,
    parse,
    unknown,
    within_limits,
)
from training.solutions import (
    ANSWER_PREFIX,
    CHECK_PREFIX,
    NO,
    OK,
    Line,
    critique,
    draft,
    solution,
    thinking,
)
from training.wordings import Story, draw_story

Split = Literal["heldout", "calibration", "train"]
Kind = Literal["expression", "equation", "story"]
Mode = Literal["steps", "think", "critique", "revise"]

TRAINED_OPERATIONS: Final = range(1, 9)
"""Sizes, in operations, that the training stream contains."""

GROUPS: Final = (*TRAINED_OPERATIONS, 10, 12)
"""Sizes that are evaluated; 10 and 12 are never trained, so that the bench has something beyond reach."""

_KINDS: Final[dict[Kind, int]] = {"expression": 35, "equation": 15, "story": 50}
_MODES: Final[dict[Mode, int]] = {"steps": 60, "think": 22, "critique": 10, "revise": 8}

_WRITTEN: Final = re.compile(r"[-+*/%()=\d]+")

_ASKED: Final = ("{e}", "What is {e}?", "Compute {e}.", "Work out {e}", "{e} = ?", "How much is {e}?")
_EQUATIONS: Final = ("Solve {l}={r} for x.", "{l}={r} What is x?", "Find x: {l}={r}", "{l}={r} x = ?")


class Problem(NamedTuple):
    """A problem and what answers it."""

    kind: Kind
    prompt: str
    expression: Expression

    @property
    def answer(self) -> str:
        """The right answer."""
        return str(self.expression.value)

    @property
    def restates(self) -> bool:
        """Its expression is not in the prompt as it stands."""
        return self.kind != "expression"


def draw_equation(rng: random.Random, size: int) -> Story:
    """An equation in x with `size` operations around it, and the expression that undoes them."""
    while True:
        x = rng.randint(2, 60)
        left = unknown("x", x)
        steps: list[tuple[str, int]] = []
        for _ in range(size):
            wish = rng.choice("++--**/")
            if wish == "*":
                operand = rng.randint(2, 12)
            elif wish == "/":
                choices = divisors(left.value)
                if not choices:
                    wish, operand = "+", rng.randint(2, 60)
                else:
                    operand = rng.choice(choices)
            else:
                operand = rng.randint(2, 60)
            known = number(operand)
            front = wish in "+*" and rng.random() < 0.5
            left = combine(wish, known, left) if front else combine(wish, left, known)
            steps.append((wish, operand))
        if not within_limits(left):
            continue
        inverse = number(left.value)
        for operator, operand in reversed(steps):
            undone = {"+": "-", "-": "+", "*": "/", "/": "*"}[operator]
            inverse = combine(undone, inverse, number(operand))
        return Story(rng.choice(_EQUATIONS).format(l=left.text, r=left.value), inverse)


def draw_problem(rng: random.Random, kind: Kind, size: int) -> Problem:
    """A random problem of a kind, of `size` operations."""
    if kind == "expression":
        expression = draw(rng, size)
        return Problem(kind, rng.choice(_ASKED).format(e=expression.text), expression)
    story = draw_equation(rng, size) if kind == "equation" else draw_story(rng, size)
    return Problem(kind, story.text, story.expression)


def split_of(expression: Expression) -> Split:
    """The split of every problem with this expression, however it is put and in whatever order its sums are.

    So nothing that is asked of the models in evaluation was trained in other words.
    """
    bucket = hashlib.sha256(canonical(expression).encode("ascii")).digest()[0]
    if bucket < 26:
        return "heldout"
    if bucket < 52:
        return "calibration"
    return "train"


def draw_from_split(rng: random.Random, kind: Kind, size: int, split: Split) -> Problem:
    """A random problem out of `split`."""
    while True:
        problem = draw_problem(rng, kind, size)
        if split_of(problem.expression) == split:
            return problem


def draw_kind(rng: random.Random) -> Kind:
    """A kind, by the shares that all splits have."""
    return rng.choices(list(_KINDS), list(_KINDS.values()))[0]


def prompt_text(prompt: str, mode: Mode = "steps") -> str:
    """What the models read before they write: the problem, then what is wanted of them."""
    return f"{prompt}\n{mode}:\n"


@dataclass(frozen=True)
class Example:
    """What a model is trained on."""

    mode: Mode
    prompt: str
    lines: list[Line]


def example(rng: random.Random, problem: Problem, mode: Mode) -> Example:
    """A training example: the problem in one of the modes."""
    restate = problem.restates
    if mode == "steps":
        return Example(mode, prompt_text(problem.prompt), solution(rng, problem.expression, restate=restate))
    if mode == "think":
        lines = thinking(rng, problem.expression, restate=restate)
        return Example(mode, prompt_text(problem.prompt, "think"), lines)
    drafted, first_wrong = draft(rng, problem.expression, restate=restate)
    verdicts = critique(drafted, first_wrong)
    before = prompt_text(problem.prompt) + "\n".join(drafted) + "\ncritique:\n"
    if mode == "critique":
        return Example(mode, before, [Line(verdict) for verdict in verdicts])
    before += "\n".join(verdicts) + "\nrevise:\n"
    if first_wrong is None:
        return Example(mode, before, [Line(text) for text in drafted])
    return Example(mode, before, solution(rng, problem.expression, restate=restate))


def training_batch(seed: int, step: int, count: int) -> list[Example]:
    """The examples of one training step: a pure function of its arguments.

    Sizes are drawn with weight 1/sqrt(operations): small problems teach the single operations, and long ones
    already fill most of the tokens.
    """
    rng = random.Random(f"isoflop-training-2:{seed}:{step}")
    sizes = rng.choices(TRAINED_OPERATIONS, [size**-0.5 for size in TRAINED_OPERATIONS], k=count)
    modes = rng.choices(list(_MODES), list(_MODES.values()), k=count)
    return [
        example(rng, draw_from_split(rng, draw_kind(rng), size, "train"), mode)
        for size, mode in zip(sizes, modes, strict=True)
    ]


def extract_answer(completion: str) -> str | None:
    """What the last `answer:` line says, or None where there is none."""
    for line in reversed(completion.splitlines()):
        if line.startswith(ANSWER_PREFIX.rstrip()):
            return line.split(":", 1)[1].strip() or None
    return None


def judge_operation(before: str, line: str) -> bool:
    """Whether `line` is a right next step when `before` remains to be done.

    Right means: every `=` in it holds, and what it carries has the value of `before` and one operation fewer.
    Which of several possible operations it does is free.
    """
    done, _, rest = line.partition(";")
    try:
        remaining = parse(before)
        sides = [parse(side) for side in done.split("=")]
        carried = parse(rest) if rest else sides[-1]
    except ValueError:
        return False
    return (
        len(sides) >= 2
        and operations(sides[0]) == 1
        and operations(sides[-1]) == 0
        and len({side.value for side in sides}) == 1
        and carried.value == remaining.value
        and operations(carried) == operations(remaining) - 1
    )


def judge_check(said: str, line: str) -> bool:
    """Whether a check of what was `said` last is itself right: its equations hold and its verdict is true."""
    text = line[len(CHECK_PREFIX) :]
    verdict = text.endswith(OK)
    if not verdict and not text.endswith(NO):
        return False
    try:
        sides = [parse(side) for side in text[: -len(OK if verdict else NO)].split("=")]
        numbers = [parse(side).value for side in said.partition(";")[0].split("=")]
    except ValueError:
        return False
    return len({side.value for side in sides}) == 1 and verdict == (len(set(numbers)) == 1)


@dataclass(frozen=True)
class Verdict:
    """What is right or wrong with a line, and what kind of mistake it is."""

    is_right: bool
    error: str = ""
    """statement, arithmetic, copy, answer, check or format; empty where it is right."""


def judge_solution(answer: str, lines: Sequence[str]) -> list[Verdict]:
    """A verdict for each line of a solution of a problem with that answer, in mode `steps` or `think`.

    A line is judged by what the one before it carried, so that after a first mistake a line may be right in
    itself: `first_wrong` cuts there.
    """
    verdicts: list[Verdict] = []
    carried: list[str] = []  # what remains, before and after each line that counts
    said = ""
    for line in lines:
        if line.startswith(ANSWER_PREFIX):
            is_right = bool(carried) and line[len(ANSWER_PREFIX) :] == carried[-1]
            verdicts.append(Verdict(is_right, "" if is_right else "answer"))
        elif line.startswith(CHECK_PREFIX):
            is_right = judge_check(said, line) if len(carried) > 1 else _judge_restatement(carried, line)
            verdicts.append(Verdict(is_right, "" if is_right else "check"))
            if line.endswith(NO) and carried:
                carried.pop()
        elif not carried:
            verdicts.append(_judge_statement(answer, line))
            carried.append(line)
        else:
            verdicts.append(_judge_step(carried[-1], line))
            done, _, rest = line.partition(";")
            carried.append(rest or done.rsplit("=", 1)[-1])
        said = line
    return verdicts


def _judge_statement(answer: str, line: str) -> Verdict:
    try:
        is_right = str(parse(line).value) == answer
    except ValueError:  # no expression at all, or one that has no value, such as 7/2
        return Verdict(False, "statement" if _WRITTEN.fullmatch(line) else "format")
    return Verdict(is_right, "" if is_right else "statement")


def _judge_restatement(carried: Sequence[str], line: str) -> bool:
    """A check of the expression itself: the same value and `ok`, or another and `no`."""
    text = line[len(CHECK_PREFIX) :]
    try:
        again = parse(text.removesuffix(OK).removesuffix(NO)).value
        return bool(carried) and (parse(carried[-1]).value == again) == text.endswith(OK)
    except ValueError:
        return False


def _judge_step(before: str, line: str) -> Verdict:
    if judge_operation(before, line):
        return Verdict(True)
    done, _, _ = line.partition(";")
    try:
        sides = {parse(side).value for side in done.split("=")}
    except ValueError:
        return Verdict(False, "arithmetic" if _WRITTEN.fullmatch(done) else "format")
    return Verdict(False, "arithmetic" if len(sides) > 1 else "copy")


def first_wrong(verdicts: Sequence[Verdict]) -> int | None:
    """Index of the first wrong line, or None."""
    return next((index for index, verdict in enumerate(verdicts) if not verdict.is_right), None)
