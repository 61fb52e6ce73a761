"""Integer expressions with `+ - * / %` and parentheses: reading, writing, drawing, rewording.

Division is exact and `%` is the remainder of two numbers that are not negative; `*`, `/` and `%` bind alike,
from the left. Everything here is pure and imports neither torch nor numpy.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

VALUE_LIMIT: Final = 999
"""No intermediate value is larger than this in magnitude."""

_PRECEDENCE: Final = {"+": 1, "-": 1, "*": 2, "/": 2, "%": 2}
_TOKEN: Final = re.compile(r"\d+|[-+*/%()]")
_COMMUTATIVE: Final = ("+", "*")
_LONGEST: Final = 2000  # characters of an expression that is worth reading
_DEEPEST: Final = 100


class Expression(NamedTuple):
    """A node of an expression tree; a leaf has the operator `""`."""

    operator: str
    operands: tuple[Expression, ...]
    value: int
    text: str


def number(value: int) -> Expression:
    """The leaf that says `value`."""
    return Expression("", (), value, str(value))


def unknown(name: str, value: int) -> Expression:
    """The leaf that is written `name` and stands for `value`."""
    return Expression("", (), value, name)


def needs_parentheses(child: Expression, operator: str, *, is_right: bool) -> bool:
    """Whether `child` must be put in parentheses beside `operator`."""
    if not child.operator:
        return False
    inner, outer = _PRECEDENCE[child.operator], _PRECEDENCE[operator]
    return inner <= outer if is_right else inner < outer


def apply(operator: str, left: int, right: int) -> int:
    """`left operator right`.

    Raises:
        ValueError: no such operator, a division that is not exact, or a remainder of negative numbers.
    """
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "/":
            if right == 0 or left % right:
                raise ValueError(f"{left} cannot be divided by {right}")
            return left // right
        case "%":
            if right <= 0 or left < 0:
                raise ValueError(f"no remainder of {left} by {right}")
            return left % right
    raise ValueError(f"unknown operator {operator!r}")


def combine(operator: str, left: Expression, right: Expression) -> Expression:
    """The node `left operator right`, with the parentheses that it needs; raises ValueError as `apply`."""
    before = f"({left.text})" if needs_parentheses(left, operator, is_right=False) else left.text
    after = f"({right.text})" if needs_parentheses(right, operator, is_right=True) else right.text
    value = apply(operator, left.value, right.value)
    return Expression(operator, (left, right), value, before + operator + after)


def parse(text: str) -> Expression:
    """Read an expression; a `-` where a number is due is that number's sign.

    Raises:
        ValueError: `text` is no expression, or has a division that is not exact.
    """
    if len(text) > _LONGEST:
        raise ValueError("too long for an expression")
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

    def factor(depth: int) -> Expression:
        if depth > _DEEPEST:
            raise ValueError("too many parentheses")
        token = take()
        if token == "(":
            inside = level(1, depth + 1)
            if take() != ")":
                raise ValueError(f"unbalanced parenthesis: {text!r}")
            return inside
        if token == "-" and peek().isdigit():
            return number(-int(take()))
        if token.isdigit():
            return number(int(token))
        raise ValueError(f"not an expression: {text!r}")

    def level(precedence: int, depth: int) -> Expression:
        if precedence > 2:
            return factor(depth)
        node = level(precedence + 1, depth)
        while _PRECEDENCE.get(peek()) == precedence:
            operator = take()
            node = combine(operator, node, level(precedence + 1, depth))
        return node

    expression = level(1, 0)
    if position != len(tokens):
        raise ValueError(f"not an expression: {text!r}")
    return expression


def operations(expression: Expression) -> int:
    """Number of operations."""
    if not expression.operator:
        return 0
    return 1 + sum(operations(operand) for operand in expression.operands)


def values(expression: Expression) -> Iterator[int]:
    """The values of all nodes, leaves included."""
    yield expression.value
    for operand in expression.operands:
        yield from values(operand)


def within_limits(expression: Expression) -> bool:
    """Whether no value in it is larger than VALUE_LIMIT in magnitude."""
    return all(abs(value) <= VALUE_LIMIT for value in values(expression))


def canonical(expression: Expression) -> str:
    """One text for all orders of the operands of `+` and `*`."""
    if not expression.operator:
        return expression.text
    sides = [canonical(operand) for operand in expression.operands]
    if expression.operator in _COMMUTATIVE:
        sides.sort()
    return f"({sides[0]}{expression.operator}{sides[1]})"


def reworded(rng: random.Random, expression: Expression) -> Expression:
    """The same with the operands of half of its `+` and `*` exchanged."""
    if not expression.operator:
        return expression
    left, right = (reworded(rng, operand) for operand in expression.operands)
    if expression.operator in _COMMUTATIVE and rng.random() < 0.5:
        left, right = right, left
    return combine(expression.operator, left, right)


def divisors(value: int) -> list[int]:
    """Those of `value` from 2 to 12."""
    return [divisor for divisor in range(2, 13) if value and value % divisor == 0]


def draw(rng: random.Random, size: int) -> Expression:
    """A random expression of `size` operations within VALUE_LIMIT.

    A quarter of the operands have one digit, the rest one or two. Half of the nodes are chains (their right
    side is a number), half are split anywhere.
    """
    if size == 0:
        return number(rng.randint(1, 9 if rng.random() < 0.25 else 99))
    wish = rng.choices("+-*/%", [30, 25, 25, 12, 8])[0]
    if wish in "/%":
        left = draw(rng, size - 1)
        if wish == "/" and (choices := divisors(left.value)):
            return combine("/", left, number(rng.choice(choices)))
        if wish == "%" and left.value > 0:
            return combine("%", left, number(rng.randint(2, 12)))
        right_size = 0
    else:
        right_size = 0 if rng.random() < 0.5 else size - 1 - rng.randrange(size)
        left = draw(rng, size - 1 - right_size)
    right = draw(rng, right_size)
    for operator in (wish, "+", "-"):
        if operator in "+-*" and abs(apply(operator, left.value, right.value)) <= VALUE_LIMIT:
            return combine(operator, left, right)
    raise AssertionError("a sum or a difference is always within the limit")
