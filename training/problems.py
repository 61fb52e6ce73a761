"""Integer problems, their written-out solutions, and the split by hash.

A problem is an expression of `+ - *` and parentheses without spaces. Its
difficulty group is its number of operations. A solution does one operation a
line, always the leftmost one that can be done, and carries what remains::

    17*24+13
    17*24=340+68=408;408+13
    408+13=421
    answer: 421

This module imports neither torch nor numpy, so that tests and services can
use it anywhere.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Final, Literal, NamedTuple

Split = Literal["heldout", "calibration", "train"]

VALUE_LIMIT: Final = 9999
"""No intermediate value is larger than this in magnitude."""

TRAINED_OPERATIONS: Final = range(1, 11)
"""Sizes, in operations, that the training stream contains."""

GROUPS: Final = (*TRAINED_OPERATIONS, 12, 14)
"""Sizes that are evaluated; 12 and 14 are never trained, so beyond reach."""

ANSWER_PREFIX: Final = "answer: "

_PRECEDENCE: Final = {"+": 1, "-": 1, "*": 2}
_TOKEN: Final = re.compile(r"\d+|[-+*()]")


class Expression(NamedTuple):
    """A node of an expression tree; a number has the operator `""`."""

    operator: str
    operands: tuple[Expression, ...]
    value: int
    text: str


def number(value: int) -> Expression:
    """The leaf that says `value`."""
    return Expression("", (), value, str(value))


def _needs_parentheses(child: Expression, operator: str, *, is_right: bool) -> bool:
    if not child.operator:
        return False
    inner, outer = _PRECEDENCE[child.operator], _PRECEDENCE[operator]
    return inner <= outer if is_right else inner < outer


def apply(operator: str, left: int, right: int) -> int:
    """`left operator right` for one of the three operators."""
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    raise ValueError(f"unknown operator {operator!r}")


def combine(operator: str, left: Expression, right: Expression) -> Expression:
    """The node `left operator right`, with the parentheses that it needs."""
    before = f"({left.text})" if _needs_parentheses(left, operator, is_right=False) else left.text
    after = f"({right.text})" if _needs_parentheses(right, operator, is_right=True) else right.text
    value = apply(operator, left.value, right.value)
    return Expression(operator, (left, right), value, before + operator + after)


def parse(text: str) -> Expression:
    """Read an expression; a `-` where a number is due is that number's sign.

    Raises:
        ValueError: `text` is no expression.
    """
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != text:
        raise ValueError(f"not an expression: {text!r}")
    position = 0

    def peek() -> str:
        return tokens[position] if position < len(tokens) else ""

    def take() -> str:
        nonlocal position
        token = peek()
        position += 1
        return token

    def factor() -> Expression:
        token = take()
        if token == "(":
            inside = level(1)
            if take() != ")":
                raise ValueError(f"unbalanced parenthesis: {text!r}")
            return inside
        if token == "-" and peek().isdigit():
            return number(-int(take()))
        if token.isdigit():
            return number(int(token))
        raise ValueError(f"not an expression: {text!r}")

    def level(precedence: int) -> Expression:
        if precedence > 2:
            return factor()
        node = level(precedence + 1)
        while _PRECEDENCE.get(peek()) == precedence:
            operator = take()
            node = combine(operator, node, level(precedence + 1))
        return node

    expression = level(1)
    if position != len(tokens):
        raise ValueError(f"not an expression: {text!r}")
    return expression


def operations(expression: Expression) -> int:
    """Number of operations, which is the difficulty group of a problem."""
    if not expression.operator:
        return 0
    return 1 + sum(operations(operand) for operand in expression.operands)


def partial_products(left: int, right: int) -> list[int]:
    """Signed terms whose sum is `left * right`.

    The longer factor is cut into chunks of two digits and the shorter one into
    digits, so that each term is one fact (one digit by two) and a shift.
    """
    sign = -1 if (left < 0) != (right < 0) else 1
    longer, shorter = abs(left), abs(right)
    if len(str(shorter)) > len(str(longer)):
        longer, shorter = shorter, longer
    terms: list[int] = []
    for chunk in (longer // 100 * 100, longer % 100):
        if chunk % 100 == 0 and chunk < 1000:
            terms.append(sign * chunk * shorter)  # one digit and zeros: a fact as it is
        else:
            terms += [sign * chunk * (shorter // 10 * 10), sign * chunk * (shorter % 10)]
    return [term for term in terms if term]


def _signed_sum(terms: list[int]) -> str:
    return str(terms[0]) + "".join(f"{term:+d}" for term in terms[1:])


def operation_text(operator: str, left: int, right: int) -> str:
    """`17*24=340+68=408`: one operation, products by partial products."""
    parts = [f"{left}{operator}{right}"]
    if operator == "*":
        terms = partial_products(left, right)
        while len(terms) > 1:
            parts.append(_signed_sum(terms))
            terms[:2] = [terms[0] + terms[1]]
    parts.append(str(apply(operator, left, right)))
    return "=".join(parts)


def solution_steps(expression: Expression) -> list[str]:
    """One line for each operation, without the line of the answer."""
    lines: list[str] = []

    def reduce(node: Expression, before: str, after: str) -> int:
        """Write the steps of `node`, which stands between two texts."""
        if not node.operator:
            return node.value
        left, right = node.operands
        operator = node.operator
        right_before, right_after = (
            ("(", ")") if _needs_parentheses(right, operator, is_right=True) else ("", "")
        )
        left_before, left_after = (
            ("(", ")") if _needs_parentheses(left, operator, is_right=False) else ("", "")
        )
        # A child's own parentheses vanish with its last operation, so they
        # belong to the texts around its operands only: see `reduce_inside`.
        right_text = right_before + right.text + right_after
        a = reduce_inside(left, before, operator + right_text + after, left_before, left_after)
        b = reduce_inside(right, before + str(a) + operator, after, right_before, right_after)
        pending.append((operator, a, b))
        return node.value

    def reduce_inside(node: Expression, before: str, after: str, opening: str, closing: str) -> int:
        value = reduce(node, before + opening, closing + after)
        if node.operator:
            emit(before, after)
        return value

    def emit(before: str, after: str) -> None:
        operator, a, b = pending.pop()
        done = operation_text(operator, a, b)
        rest = f"{before}{apply(operator, a, b)}{after}" if before or after else ""
        lines.append(f"{done};{rest}" if rest else done)

    pending: list[tuple[str, int, int]] = []
    reduce_inside(expression, "", "", "", "")
    return lines


def solution_text(expression: Expression) -> str:
    """The whole completion: steps, then the answer, no newline at the end."""
    return "\n".join([*solution_steps(expression), f"{ANSWER_PREFIX}{expression.value}"])


def extract_answer(completion: str) -> str | None:
    """What the last `answer:` line says, or None where there is none."""
    for line in reversed(completion.splitlines()):
        if line.startswith(ANSWER_PREFIX.rstrip()):
            return line.split(":", 1)[1].strip() or None
    return None


def judge_step(before: str, line: str) -> bool:
    """Whether `line` is a right next step when `before` remains to be done.

    Right means: every `=` in it holds, and what it carries has the value of
    `before` and one operation fewer. Which of several possible operations it
    does is free.
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


def judge_solution(problem: str, completion: str) -> list[bool]:
    """A verdict for each line of `completion`, the answer line included."""
    lines = completion.split("\n")
    verdicts: list[bool] = []
    remaining = problem
    for line in lines:
        if line.startswith(ANSWER_PREFIX):
            verdicts.append(line[len(ANSWER_PREFIX) :] == remaining)
            continue
        verdicts.append(judge_step(remaining, line))
        done, _, rest = line.partition(";")
        remaining = rest or done.rsplit("=", 1)[-1]
    return verdicts


def draw_expression(rng: random.Random, size: int) -> Expression:
    """A random expression of `size` operations that keeps VALUE_LIMIT."""
    if size == 0:
        # A quarter of the operands have one digit, the rest one or two.
        return number(rng.randint(1, 9 if rng.random() < 0.25 else 99))
    # Half of the nodes are chains (one side a number), half are split anywhere.
    left_size = size - 1 if rng.random() < 0.5 else rng.randrange(size)
    left = draw_expression(rng, left_size)
    right = draw_expression(rng, size - 1 - left_size)
    wish = "*" if rng.random() < 0.3 else "+-"[rng.random() < 0.5]
    for operator in (wish, "+", "-"):
        if abs(apply(operator, left.value, right.value)) <= VALUE_LIMIT:
            return combine(operator, left, right)
    raise AssertionError("a sum or a difference is always within the limit")


def split_of(problem: str) -> Split:
    """The split that a problem belongs to, by the hash of its text alone."""
    bucket = hashlib.sha256(problem.encode("ascii")).digest()[0]
    if bucket < 26:
        return "heldout"
    if bucket < 52:
        return "calibration"
    return "train"


def draw_from_split(rng: random.Random, size: int, split: Split) -> Expression:
    """A random expression of `size` operations out of `split`."""
    while True:
        expression = draw_expression(rng, size)
        if split_of(expression.text) == split:
            return expression


def training_batch(seed: int, step: int, count: int) -> list[Expression]:
    """The problems of one training step: a pure function of its arguments.

    Sizes are drawn with weight 1/sqrt(operations): small problems teach the
    single operations, and long ones already fill most of the tokens.
    """
    rng = random.Random(f"isoflop-training:{seed}:{step}")
    sizes = rng.choices(TRAINED_OPERATIONS, [size**-0.5 for size in TRAINED_OPERATIONS], k=count)
    return [draw_from_split(rng, size, "train") for size in sizes]


def training_stream(seed: int, count: int) -> Iterator[Expression]:
    """Every problem of a training run, step by step."""
    step = 0
    while True:
        yield from training_batch(seed, step, count)
        step += 1


def remaining_expressions(problem: str, steps: list[str]) -> Iterator[tuple[str, str]]:
    """Pairs (what remains before a step, the step)."""
    carried = [problem, *(step.partition(";")[2] for step in steps)]
    for (before, _), step in zip(pairwise([*carried, ""]), steps, strict=False):
        yield before, step
