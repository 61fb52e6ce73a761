"""Problems in plain English: stories, shopping, comparisons and journeys, each in many wordings.

A story is built together with the expression that answers it. Its difficulty is no one visible number: some
sentences say nothing that matters, amounts are given as products, a story may be told from its end (what was
there at first?), so that the word `gives` asks for a sum. Everything here is pure.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from training.expressions import Expression, combine, divisors, number, operations, within_limits

HE: Final = ("Tom", "Ben", "Max", "Leo", "Sam", "Paul", "Finn", "Jack")
SHE: Final = ("Ann", "Eva", "Mia", "Zoe", "Lily", "Rosa", "Nora", "Kate")
ITEMS: Final = (
    "apples", "marbles", "books", "stamps", "coins", "cards", "pens", "shells", "beads", "stickers", "eggs",
    "plums", "candles", "buttons",
)  # fmt: skip
BOXES: Final = ("boxes", "bags", "packs", "baskets", "jars", "trays")
GOODS: Final = ("pens", "books", "cakes", "tickets", "cups", "lamps", "shirts", "chairs", "plants", "toys")
_PARTS: Final = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth"}
IDLE: Final = (
    "The shop opens at {n} in the morning.",
    "It is {n} degrees outside.",
    "{other} is {n} years old.",
    "The road is {n} meters long.",
    "There are {n} people in the room.",
    "{other} has {n} chairs at home.",
    "It is day {n} of the school year.",
)


class Unfit(Exception):
    """The draw does not fit (too large, not exact, wrong number of operations): draw again."""


@dataclass(frozen=True)
class Story:
    """A problem in words and the expression that answers it."""

    text: str
    expression: Expression


@dataclass(frozen=True)
class _Cast:
    """Who a story is about."""

    name: str
    he: str
    him: str
    other: str
    third: str
    items: str

    def write(self, rng: random.Random, wordings: tuple[str, ...], **amounts: str | int) -> str:
        """One of the wordings, with names and amounts in it."""
        return rng.choice(wordings).format(
            name=self.name, he=self.he, He=self.he.capitalize(), him=self.him, other=self.other,
            third=self.third, items=self.items, **amounts,
        )  # fmt: skip


def _cast(rng: random.Random) -> _Cast:
    is_he = rng.random() < 0.5
    name = rng.choice(HE if is_he else SHE)
    other, third = rng.sample([n for n in (*HE, *SHE) if n != name], 2)
    he, him = ("he", "him") if is_he else ("she", "her")
    return _Cast(name, he, him, other, third, rng.choice(ITEMS))


def _combine(operator: str, left: Expression, right: Expression) -> Expression:
    """`combine` for amounts, which are whole numbers above zero."""
    try:
        result = combine(operator, left, right)
    except ValueError:
        raise Unfit from None
    if result.value <= 0 or not within_limits(result):
        raise Unfit
    return result


def _operand(rng: random.Random) -> Expression:
    return number(rng.randint(2, 9) if rng.random() < 0.3 else rng.randint(10, 99))


def _amount(rng: random.Random, cast: _Cast, size: int) -> tuple[Expression, str]:
    """An amount of the cast's items, of 0 or 1 operations, and how it is said."""
    if size == 0:
        value = _operand(rng)
        return value, f"{value.text} {cast.items}"
    if rng.random() < 0.7:
        count, each = number(rng.randint(2, 9)), number(rng.randint(2, 25))
        said = rng.choice(("{c} {boxes} of {e} {items}", "{c} {boxes} with {e} {items} each"))
        text = said.format(c=count.text, e=each.text, boxes=rng.choice(BOXES), items=cast.items)
        return _combine("*", count, each), text
    one, two = _operand(rng), _operand(rng)
    colours = rng.sample(("red", "blue", "green", "old", "new"), 2)
    text = f"{one.text} {colours[0]} and {two.text} {colours[1]} {cast.items}"
    return _combine("+", one, two), text


_BEGIN = ("{name} has {a}.", "At first {name} has {a}.", "{name} starts with {a}.", "{name} owns {a}.")
_GAIN = (
    "{other} gives {him} {a}.", "Then {he} buys {a}.", "{He} finds {a}.", "{He} gets {a} from {other}.",
    "{He} wins {a}.", "{third} brings {him} {a}.",
)  # fmt: skip
_LOSE = (
    "{He} gives {a} to {other}.", "{He} loses {a}.", "Then {he} sells {a}.", "{other} takes {a} away.",
    "{He} gives away {a}.", "{third} borrows {a}.",
)  # fmt: skip
_TIMES = (
    "Then {he} has {k} times as many.", "{third} makes that {k} times as many.",
    "The number of {items} grows to {k} times what it was.",
)  # fmt: skip
_DOUBLE = ("Then the number of {items} doubles.", "{other} doubles what {he} has.")
_SHARE = (
    "{He} shares them equally among {k} friends and keeps one share.",
    "Only one part in {k} is left.",
    "They are put into {k} equal piles and {he} takes one pile.",
)
_LEFT_OVER = (
    "{He} packs them in boxes of {k} and keeps only those that are left over.",
    "{He} deals them out in rounds of {k} and keeps the rest.",
)
_END = (
    "How many {items} does {name} have now?", "How many {items} are there in the end?",
    "How many does {he} have at the end?", "How many {items} has {name} now?",
)  # fmt: skip
_KNOWN_END = (
    "In the end {he} has {a}.", "Now {name} has {a}.", "That leaves {him} with {a}.",
)  # fmt: skip
_FIRST = (
    "How many {items} did {name} have at first?", "How many did {he} have before all this?",
    "With how many {items} did {name} start?",
)  # fmt: skip


def forward_story(rng: random.Random, size: int) -> Story:
    """A number of things that changes from sentence to sentence; asked is what is there in the end."""
    cast = _cast(rng)
    left = size
    start = 1 if left > 1 and rng.random() < 0.25 else 0
    total, said = _amount(rng, cast, start)
    left -= start
    sentences = [cast.write(rng, _BEGIN, a=said)]
    while left > 0:
        kind = rng.random()
        if kind < 0.72:
            nested = 1 if left > 1 and rng.random() < 0.35 else 0
            amount, said = _amount(rng, cast, nested)
            gain = rng.random() < 0.5
            total = _combine("+" if gain else "-", total, amount)
            sentences.append(cast.write(rng, _GAIN if gain else _LOSE, a=said))
            left -= 1 + nested
            continue
        left -= 1
        if kind < 0.84:
            factor = rng.randint(2, 5)
            total = _combine("*", total, number(factor))
            sentences.append(cast.write(rng, _DOUBLE if factor == 2 else _TIMES, k=factor))
        elif kind < 0.95:
            if not (choices := divisors(total.value)):
                raise Unfit
            divisor = rng.choice(choices)
            total = _combine("/", total, number(divisor))
            sentences.append(cast.write(rng, _SHARE, k=divisor))
        else:
            divisor = rng.randint(3, 12)
            total = _combine("%", total, number(divisor))
            sentences.append(cast.write(rng, _LEFT_OVER, k=divisor))
    return _story(rng, cast, sentences, cast.write(rng, _END), total)


def backward_story(rng: random.Random, size: int) -> Story:
    """The same told from the end: what was there at first? Each event is undone."""
    cast = _cast(rng)
    left = size
    events: list[str] = []
    final, said = _amount(rng, cast, 0)
    total = final
    while left > 0:
        kind = rng.random()
        left -= 1
        if kind < 0.8:
            nested = 1 if left > 0 and rng.random() < 0.3 else 0
            amount, text = _amount(rng, cast, nested)
            left -= nested
            gained = rng.random() < 0.5
            total = _combine("-" if gained else "+", total, amount)
            events.append(cast.write(rng, _GAIN if gained else _LOSE, a=text))
        elif kind < 0.9:
            divisor = rng.randint(2, 5)
            total = _combine("*", total, number(divisor))
            events.append(cast.write(rng, _SHARE, k=divisor))
        else:
            if not (choices := [d for d in divisors(total.value) if d <= 5]):
                raise Unfit
            factor = rng.choice(choices)
            total = _combine("/", total, number(factor))
            events.append(cast.write(rng, _DOUBLE if factor == 2 else _TIMES, k=factor))
    opening = cast.write(rng, ("{name} has some {items}.", "{name} has a bag of {items}."))
    sentences = [opening, *reversed(events), cast.write(rng, _KNOWN_END, a=said)]
    return _story(rng, cast, sentences, cast.write(rng, _FIRST), total)


def shopping(rng: random.Random, size: int) -> Story:
    """Prices of several kinds of goods; asked is the sum, or the change from a note."""
    cast = _cast(rng)
    left = size
    with_change = left >= 2 and rng.random() < 0.5
    left -= with_change
    goods = rng.sample(GOODS, len(GOODS))
    parts: list[Expression] = []
    said: list[str] = []
    while left > 0 or not parts:
        good = goods.pop() if goods else rng.choice(GOODS)
        join = 1 if parts else 0
        if left - join >= 1 and rng.random() < 0.75:
            count, price = number(rng.randint(2, 12)), number(rng.randint(2, 30))
            parts.append(_combine("*", count, price))
            forms = ("{c} {g} at {p} dollars each", "{c} {g} for {p} dollars each")
            said.append(rng.choice(forms).format(c=count.text, g=good, p=price.text))
            left -= 1 + join
        else:
            price = number(rng.randint(3, 60))
            parts.append(price)
            said.append(f"{good} for {price.text} dollars")
            left -= join
        if len(parts) > 12:
            raise Unfit
    total = parts[0]
    for part in parts[1:]:
        total = _combine("+", total, part)
    listed = said[0] if len(said) == 1 else ", ".join(said[:-1]) + " and " + said[-1]
    sentences = [
        cast.write(rng, ("{name} buys {a}.", "In a shop {name} buys {a}.", "{name} pays for {a}."), a=listed)
    ]
    if not with_change:
        question = cast.write(
            rng, ("How many dollars is that in all?", "What does {he} pay?", "How much is it?")
        )
        return _story(rng, cast, sentences, question, total)
    paid = number(min(999, total.value + rng.randint(1, 60)))
    sentences.append(cast.write(rng, ("{He} pays with {p} dollars.", "{He} had {p} dollars."), p=paid.text))
    question = cast.write(
        rng, ("How much is left?", "How many dollars does {he} have left?", "What is the change?")
    )
    # Taking the parts away one by one or all together is the same number of operations.
    return _story(rng, cast, sentences, question, _combine("-", paid, total))


def comparison(rng: random.Random, size: int) -> Story:
    """People whose numbers are given by each other's; asked is one of them, a sum or a difference."""
    cast = _cast(rng)
    names = rng.sample([*HE, *SHE], 6)
    first = _operand(rng)
    known = [first]
    sentences = [f"{names[0]} has {first.text} {cast.items}."]
    left = size
    asks = rng.choice(("last", "sum", "difference")) if left >= 2 else "last"
    left -= asks != "last"
    while left > 0 and len(known) < len(names):
        before = known[-1] if rng.random() < 0.7 else rng.choice(known)
        if operations(before) + 1 > left and len(known) > 1:
            before = first
        other = names[known.index(before)]
        name = names[len(known)]
        kind = rng.random()
        if kind < 0.6:
            amount = _operand(rng)
            more = rng.random() < 0.5
            known.append(_combine("+" if more else "-", before, amount))
            word = "more" if more else "fewer"
            sentences.append(f"{name} has {amount.text} {word} than {other}.")
        elif kind < 0.85:
            factor = rng.randint(2, 5)
            known.append(_combine("*", number(factor), before))
            said = "twice as many" if factor == 2 else f"{factor} times as many"
            sentences.append(f"{name} has {said} as {other}.")
        else:
            choices = [d for d in divisors(before.value) if d <= 5]
            if not choices:
                raise Unfit
            divisor = rng.choice(choices)
            known.append(_combine("/", before, number(divisor)))
            sentences.append(f"{name} has {_PARTS[divisor]} as many as {other}.")
        left -= 1
    if len(known) < 2:
        raise Unfit
    if asks == "last":
        return _story(rng, cast, sentences, f"How many does {names[len(known) - 1]} have?", known[-1])
    one, two = rng.sample(range(len(known)), 2)
    if asks == "sum":
        question = f"How many do {names[one]} and {names[two]} have together?"
        return _story(rng, cast, sentences, question, _combine("+", known[one], known[two]))
    if known[one].value < known[two].value:
        one, two = two, one
    question = f"How many more does {names[one]} have than {names[two]}?"
    return _story(rng, cast, sentences, question, _combine("-", known[one], known[two]))


def journey(rng: random.Random, size: int) -> Story:
    """Stretches at different speeds; asked is the whole way, or what is still to go."""
    cast = _cast(rng)
    vehicle = rng.choice(("train", "bus", "ship", "car"))
    left = size
    remaining_way = left >= 2 and rng.random() < 0.4
    left -= remaining_way
    sentences: list[str] = []
    total: Expression | None = None
    while left > 0 or total is None:
        join = 0 if total is None else 1
        if left - join >= 1:
            hours, speed = number(rng.randint(2, 9)), number(rng.randint(4, 60))
            part = _combine("*", speed, hours)
            forms = (
                "{t} goes {s} miles an hour for {h} hours.", "For {h} hours {t} goes {s} miles an hour.",
            )  # fmt: skip
            sentences.append(rng.choice(forms).format(t=f"the {vehicle}", s=speed.text, h=hours.text))
            left -= 1 + join
        else:
            part = _operand(rng)
            sentences.append(f"The {vehicle} goes {part.text} miles.")
            left -= join
        total = part if total is None else _combine("+", total, part)
    sentences = [sentence[0].upper() + sentence[1:] for sentence in sentences]
    if not remaining_way:
        return _story(rng, cast, sentences, "How many miles is that in all?", total)
    whole = number(min(999, total.value + rng.randint(1, 90)))
    sentences.insert(0, f"A {vehicle} has {whole.text} miles to go.")
    return _story(rng, cast, sentences, "How many miles are left?", _combine("-", whole, total))


def _story(
    rng: random.Random, cast: _Cast, sentences: list[str], question: str, expression: Expression
) -> Story:
    """Put together, one time in three with a sentence that says nothing that matters."""
    if rng.random() < 1 / 3:
        idle = cast.write(rng, IDLE, n=rng.randint(5, 60))
        sentences = [*sentences]
        sentences.insert(rng.randint(1, len(sentences)), idle)
    return Story(" ".join([*sentences, question]), expression)


_KINDS: Final[tuple[tuple[Callable[[random.Random, int], Story], int], ...]] = (
    (forward_story, 35), (backward_story, 20), (shopping, 20), (comparison, 15), (journey, 10),
)  # fmt: skip


def draw_story(rng: random.Random, size: int) -> Story:
    """A story of `size` operations."""
    makers, weights = zip(*_KINDS, strict=True)
    while True:
        try:
            story: Story = rng.choices(makers, weights)[0](rng, size)
        except Unfit:
            continue
        if operations(story.expression) == size:
            return story
