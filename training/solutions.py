"""Written-out solutions: the expression first, then one operation a line, then the answer.

    17*24+13
    17*24=340+68=408;408+13
    408+13=421
    answer: 421

A line has an operation and its result, then `;` and what remains. Products are split by the digits of one
factor and quotients by their own digits, so that each term is one small fact. There are many right ways:
which of the operations that are ready comes first, and which factor is split, is drawn, so that a model
trained on such solutions has several ways to an answer, and a vote over them means something.

With **thinking**, each line is followed by one that checks it, by the inverse operation, by the same product
split otherwise, or by writing the expression down once more; after `no` the line is written again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, NamedTuple

from training.expressions import Expression, apply, combine, needs_parentheses, number, operations, reworded

ANSWER_PREFIX: Final = "answer: "
CHECK_PREFIX: Final = "check: "
OK: Final = " ok"
NO: Final = " no"


class Line(NamedTuple):
    """A line of a training text."""

    text: str
    is_target: bool = True
    """Whether a model is trained to write it. Mistakes that it must notice are given, not taught."""


def _signed_sum(terms: Sequence[int]) -> str:
    return str(terms[0]) + "".join(f"{term:+d}" for term in terms[1:])


def _digit_terms(value: int) -> list[int]:
    """340 → [300, 40]: the value's digits with their zeros, no zero among them."""
    sign, digits = (-1 if value < 0 else 1), str(abs(value))
    return [
        sign * int(digit) * 10 ** (len(digits) - 1 - place)
        for place, digit in enumerate(digits)
        if digit != "0"
    ]


def _partial_results(rng: random.Random, operator: str, left: int, right: int) -> list[int]:
    """Terms whose sum is the result; one term: the result itself."""
    if operator == "*":
        one, other = (left, right) if rng.random() < 0.5 else (right, left)
        if len(_digit_terms(one)) < 2:
            one, other = other, one
        terms = _digit_terms(one)
        # A factor of one digit needs no splitting, and may still have it.
        if len(terms) < 2 or (abs(one) < 20 and abs(other) < 10 and rng.random() < 0.5):
            return [left * right]
        return [term * other for term in terms if other]
    if operator == "/":
        return _digit_terms(left // right)
    return []


def operation_text(rng: random.Random, operator: str, left: int, right: int) -> str:
    """`17*24=340+68=408`: one operation with its terms."""
    result = apply(operator, left, right)
    parts = [f"{left}{operator}{right}"]
    if operator == "%" and left >= right:
        parts.append(f"{left}-{left - result}")
    terms = _partial_results(rng, operator, left, right)
    while len(terms) > 1:
        parts.append(_signed_sum(terms))
        terms[:2] = [terms[0] + terms[1]]
    return "=".join([*parts, str(result)])


class Ready(NamedTuple):
    """An operation that can be done: its numbers, the text around it, and where it is in the tree."""

    operator: str
    left: int
    right: int
    before: str
    after: str
    path: tuple[int, ...]
    """Which operand to follow from the root: 0 left, 1 right."""

    @property
    def result(self) -> int:
        """What it gives."""
        return apply(self.operator, self.left, self.right)

    def rest(self, result: int) -> str:
        """What remains with `result` in its place; empty when nothing does."""
        return f"{self.before}{result}{self.after}" if self.before or self.after else ""


def ready_operations(expression: Expression) -> list[Ready]:
    """The operations of two numbers, from the left. A number's parentheses go with its last operation."""
    found: list[Ready] = []

    def visit(node: Expression, before: str, after: str, path: tuple[int, ...], *, wrapped: bool) -> None:
        if not node.operator:
            return
        left, right = node.operands
        if not left.operator and not right.operator:
            found.append(Ready(node.operator, left.value, right.value, before, after, path))
            return
        left_wrapped = needs_parentheses(left, node.operator, is_right=False)
        right_wrapped = needs_parentheses(right, node.operator, is_right=True)
        left_text = f"({left.text})" if left_wrapped else left.text
        right_text = f"({right.text})" if right_wrapped else right.text
        if wrapped:
            before, after = before + "(", ")" + after
        visit(left, before, node.operator + right_text + after, (*path, 0), wrapped=left_wrapped)
        visit(right, before + left_text + node.operator, after, (*path, 1), wrapped=right_wrapped)

    visit(expression, "", "", (), wrapped=False)
    return found


def reduced(expression: Expression, done: Ready, result: int) -> Expression:
    """`expression` with that operation replaced by `result`; raises ValueError where that cannot be."""

    def visit(node: Expression, path: tuple[int, ...]) -> Expression:
        if not path:
            return number(result)
        left, right = node.operands
        if path[0] == 0:
            return combine(node.operator, visit(left, path[1:]), right)
        return combine(node.operator, left, visit(right, path[1:]))

    return visit(expression, done.path)


def _choose(rng: random.Random, ready: list[Ready]) -> Ready:
    """The leftmost in half of the cases, else any."""
    return ready[0] if rng.random() < 0.5 else rng.choice(ready)


def _operation_line(rng: random.Random, done: Ready) -> str:
    text = operation_text(rng, done.operator, done.left, done.right)
    rest = done.rest(done.result)
    return f"{text};{rest}" if rest else text


def slip(rng: random.Random, value: int) -> int:
    """A wrong number such as people write for `value`: a digit off, a carry forgotten, two exchanged."""
    digits = str(abs(value))
    wrong = value
    while wrong == value:
        kind = rng.randrange(4)
        if kind == 0:
            wrong = value + rng.choice((-1, 1))
        elif kind == 1:
            wrong = value + rng.choice((-10, 10))
        elif kind == 2:
            place = rng.randrange(len(digits))
            changed = digits[:place] + str(rng.randrange(10)) + digits[place + 1 :]
            wrong = int(changed) * (-1 if value < 0 else 1)
        else:
            wrong = value + rng.choice((-100, -20, -2, 2, 20, 100))
    return wrong


def mistaken(rng: random.Random, expression: Expression) -> Expression:
    """The expression with one misreading: an operator or a number is another, or two operands are exchanged.

    Raises:
        ValueError: this draw gives no expression that can be worked out; draw again.
    """
    if not expression.operator:
        return number(slip(rng, expression.value))
    left, right = expression.operands
    choice = rng.random()
    if choice < 0.4:
        other = rng.choice([o for o in "+-*" if o != expression.operator])
        return combine(other, left, right)
    if choice < 0.5 and expression.operator in "-/":
        return combine(expression.operator, right, left)
    if rng.random() < 0.5:
        return combine(expression.operator, mistaken(rng, left), right)
    return combine(expression.operator, left, mistaken(rng, right))


def check_text(rng: random.Random, done: Ready, said: int) -> str:
    """The check of an operation that was said to give `said`, with its verdict."""
    left, right = done.left, done.right
    match done.operator:
        case "+":
            text, agrees = f"{said}-{right}={said - right}", said - right == left
        case "-":
            text, agrees = f"{said}+{right}={said + right}", said + right == left
        case "*":
            text, agrees = operation_text(rng, "*", right, left), said == left * right
        case "/":
            text, agrees = operation_text(rng, "*", said, right), said * right == left
        case _:
            multiple = left - left % right
            text, agrees = f"{multiple}+{said}={multiple + said}", multiple + said == left
    return CHECK_PREFIX + text + (OK if agrees else NO)


def solution(rng: random.Random, expression: Expression, *, restate: bool) -> list[Line]:
    """A solution of a problem whose expression this is.

    `restate`: the problem is in words, so the operands of sums and products may be written in any order.
    """
    stated = reworded(rng, expression) if restate else expression
    return [Line(stated.text), *_reduction(rng, stated)]


def _reduction(rng: random.Random, expression: Expression) -> list[Line]:
    """The lines after the expression."""
    lines: list[Line] = []
    remaining = expression
    while remaining.operator:
        done = _choose(rng, ready_operations(remaining))
        lines.append(Line(_operation_line(rng, done)))
        remaining = reduced(remaining, done, done.result)
    lines.append(Line(f"{ANSWER_PREFIX}{remaining.value}"))
    return lines


def thinking(rng: random.Random, expression: Expression, *, restate: bool, slips: float = 0.15) -> list[Line]:
    """A solution with a check after each line; a share of `slips` of the lines are wrong at first."""
    lines: list[Line] = []
    stated = reworded(rng, expression) if restate else expression
    if restate:
        if rng.random() < slips and (wrong := _attempt(rng, stated)):
            lines += [Line(wrong.text, is_target=False), Line(CHECK_PREFIX + stated.text + NO)]
        lines += [Line(stated.text), Line(CHECK_PREFIX + reworded(rng, stated).text + OK)]
    else:
        lines.append(Line(stated.text))
    remaining = stated
    while remaining.operator:
        done = _choose(rng, ready_operations(remaining))
        if rng.random() < slips:
            said = slip(rng, done.result)
            head = operation_text(rng, done.operator, done.left, done.right).rpartition("=")[0]
            rest = done.rest(said)
            lines.append(Line(f"{head}={said}" + (f";{rest}" if rest else ""), is_target=False))
            lines.append(Line(check_text(rng, done, said)))
        lines.append(Line(_operation_line(rng, done)))
        lines.append(Line(check_text(rng, done, done.result)))
        remaining = reduced(remaining, done, done.result)
    lines.append(Line(f"{ANSWER_PREFIX}{remaining.value}"))
    return lines


def _attempt(rng: random.Random, expression: Expression) -> Expression | None:
    """A misreading with another value, or None where a few draws gave none."""
    for _ in range(4):
        try:
            wrong = mistaken(rng, expression)
        except ValueError:
            continue
        if wrong.value != expression.value:
            return wrong
    return None


def draft(rng: random.Random, expression: Expression, *, restate: bool) -> tuple[list[str], int | None]:
    """A solution in which something may be wrong, and the number (from 1) of its first wrong line.

    Four in ten are right. Else one line goes wrong, by a misreading, a slip in a result, or a number that is
    copied wrongly into what remains, and the rest follows from it, as models do it.
    """
    count = operations(expression)
    wrong_line = rng.randrange(count + 1) if rng.random() < 0.6 else -1
    stated = reworded(rng, expression) if restate else expression
    first_wrong: int | None = None
    if wrong_line == 0 and (misread := _attempt(rng, stated)):
        stated, first_wrong = misread, 1
    lines = [stated.text]
    remaining = stated
    while remaining.operator:
        done = _choose(rng, ready_operations(remaining))
        said = done.result
        following = None
        if len(lines) == wrong_line:
            is_copy = bool(done.before or done.after) and rng.random() < 0.3
            following = _spoiled(rng, remaining, done, is_copy=is_copy)
        if following is not None:
            first_wrong = len(lines) + 1
            said, remaining = following
        else:
            remaining = reduced(remaining, done, said)
        head = operation_text(rng, done.operator, done.left, done.right).rpartition("=")[0]
        lines.append(f"{head}={said}" + (f";{remaining.text}" if remaining.operator else ""))
    lines.append(f"{ANSWER_PREFIX}{remaining.value}")
    return lines, first_wrong


def _spoiled(
    rng: random.Random, remaining: Expression, done: Ready, *, is_copy: bool
) -> tuple[int, Expression] | None:
    """What the line then says, and what remains, or None where it cannot be worked out further."""
    try:
        if is_copy:
            rest = _attempt(rng, reduced(remaining, done, done.result))
            return (done.result, rest) if rest is not None and rest.operator else None
        said = slip(rng, done.result)
        return said, reduced(remaining, done, said)
    except ValueError:
        return None


def critique(lines: Sequence[str], first_wrong: int | None) -> list[str]:
    """`1 ok`, `2 ok`, `3 wrong`: a verdict a line, up to the first that is wrong."""
    last = first_wrong or len(lines)
    return [f"{n} wrong" if n == first_wrong else f"{n} ok" for n in range(1, last + 1)]
