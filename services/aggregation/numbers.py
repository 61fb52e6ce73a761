"""One canonical form for each rational number, however it is written.

Exact, without floats: a decimal is kept as digits and a power of ten, so that 1e999999999 costs
nothing, and a fraction is reduced. The canonical form of a decimal is the shortest plain one (-42,
0.5), or digits and exponent beyond 40 places; other fractions are `p/q`.

A percent sign, a currency and a unit after the number say nothing here: 50% and 50 are one answer, as
graders of mathematics have it, for a model that is asked the same question twice writes both.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_CHARS = 2000
"""A longer text is not read as a number."""
MAX_FRACTION_DIGITS = 500
"""Digits of a numerator or denominator; a fraction with more is not read as a number."""
MAX_EXPONENT_DIGITS = 12
"""Digits of an exponent; one with more is not read as a number."""
PLAIN_PLACES = 40
"""Zeros before or places after the point beyond which a decimal is written with an exponent."""

SURROUNDINGS = ' *_`"“”'
"""Marks around an answer that say nothing of it."""

_PLAIN = re.compile(r"-?[1-9][0-9]*|0")
_LOOKALIKES = str.maketrans(dict.fromkeys("−–‒﹣－", "-") | dict.fromkeys("\u00a0\u2009\u202f\t\n", " "))
_NOISE = re.compile(
    r"\\!\s*|\\[,;:]|\\ |\\q?quad(?![A-Za-z])|~|\\(?:left|right|displaystyle)(?![A-Za-z])"
    r"|\\?\$|[£€]|\\[()\[\]]"
)
_WRAPPED = r"\\(?:text|textbf|textrm|mbox|mathrm|mathbf|boldsymbol)\s*\{([^{}]*)\}"
_WRAPPER = re.compile(_WRAPPED)
_UNIT = re.compile(
    rf"(?:\s*(?:{_WRAPPED}(?:\s*\^\s*\{{?[0-9]\}}?)?|\^\s*\{{?\\circ\}}?|°|\\degrees?|\\?%))+\s*"
)
_UNIT_STARTS = re.compile(r"\\(?:text|mbox|math|bold|deg|%)|\^|°|%")
_DECIMAL = re.compile(
    r"([-+]?) ?([0-9]{1,3}(?:(?:,[0-9]{3})+|(?: [0-9]{3})+)|[0-9]*)(?:\.([0-9]*))?"
    r"(?:[eE]([-+]?[0-9]+)| ?(?:\\times|\\cdot|×|\*|x) ?10 ?(?:\^|\*\*) ?\{? ?([-+]?[0-9]+) ?\}?)?"
)
_POWER_OF_TEN = re.compile(r"([-+]?) ?10 ?(?:\^|\*\*) ?(?:\{ ?([-+]?[0-9]+) ?\}|([-+]?[0-9]+))")
_LATEX_FRACTION = re.compile(
    r"([-+]?) ?([0-9]+)? ?\\[dtc]?frac ?(?:\{([^{}]*)\}|([0-9])) ?(?:\{([^{}]*)\}|([0-9]))"
)
_MIXED = re.compile(r"([-+]?) ?([0-9]+) ([0-9]+)")


def canonical_number(text: str) -> str | None:
    """The canonical form of the number that `text` is, or None where it is not a rational number."""
    if len(text) > MAX_CHARS:
        return None
    if _PLAIN.fullmatch(text):
        return text
    text = _NOISE.sub("", text.translate(_LOOKALIKES)).replace("{,}", ",")
    text = _without_units(text.strip(SURROUNDINGS).rstrip(".,;:!").strip(SURROUNDINGS)).strip()
    while len(text) > 1 and text[0] + text[-1] in ("{}", "()"):
        text = text[1:-1].strip()
    if not text:
        return None
    decimal = _decimal(text)
    if decimal is not None:
        return _written(*decimal)
    value = _fraction(" ".join(text.split()))
    return None if value is None else _written_fraction(value)


def _without_units(text: str) -> str:
    start = _UNIT_STARTS.search(text)
    if start is None:
        return text
    wrapped = _WRAPPER.fullmatch(text)
    if wrapped:
        return wrapped[1]
    # Units end the text: what starts at the first of them has to reach its end.
    begin = len(text[: start.start()].rstrip())
    return text[:begin] if begin and _UNIT.fullmatch(text, begin) else text


def _decimal(text: str) -> tuple[bool, str, int] | None:
    """Sign (True: negative), digits and power of ten."""
    power = _POWER_OF_TEN.fullmatch(text)
    if power:
        exponent = _exponent(power[2] or power[3])
        return None if exponent is None else (power[1] == "-", "1", exponent)
    match = _DECIMAL.fullmatch(text)
    if match is None:
        return None
    sign, whole, places, *exponents = match.groups()
    digits = whole.replace(",", "").replace(" ", "") + (places or "")
    exponent = _exponent(exponents[0] or exponents[1] or "0")
    if not digits or exponent is None:
        return None
    return sign == "-", digits, exponent - len(places or "")


def _exponent(text: str) -> int | None:
    return int(text) if len(text.lstrip("+-0")) <= MAX_EXPONENT_DIGITS else None


def _fraction(text: str) -> Fraction | None:
    latex = _LATEX_FRACTION.fullmatch(text)
    if latex:
        sign, whole = latex[1], latex[2] or ""
        above, below = latex[3] or latex[4] or "", latex[5] or latex[6] or ""
    else:
        above, slash, below = text.partition("/")
        if not slash:
            return None
        mixed = None if _decimal(above.strip()) else _MIXED.fullmatch(above.strip())
        sign, whole, above = mixed.groups() if mixed else ("", "", above)
    numerator, denominator = _exact(above), _exact(below)
    if numerator is None or not denominator or len(whole) > MAX_FRACTION_DIGITS:
        return None
    value = (int(whole) if whole else 0) + numerator / denominator
    return -value if sign == "-" else value


def _exact(text: str) -> Fraction | None:
    decimal = _decimal(text.strip())
    if decimal is None:
        return None
    negative, digits, exponent = decimal
    if len(digits) + abs(exponent) > MAX_FRACTION_DIGITS:
        return None
    value = int(digits) * Fraction(10) ** exponent
    return -value if negative else value


def _written(negative: bool, digits: str, exponent: int) -> str:
    digits = digits.lstrip("0")
    significant = digits.rstrip("0")
    if not significant:
        return "0"
    exponent += len(digits) - len(significant)
    if abs(exponent) > PLAIN_PLACES:
        text = f"{significant}e{exponent}"
    elif exponent >= 0:
        text = significant + "0" * exponent
    else:
        padded = significant.rjust(1 - exponent, "0")
        text = f"{padded[:exponent]}.{padded[exponent:]}"
    return "-" + text if negative else text


def _written_fraction(value: Fraction) -> str:
    twos = (value.denominator & -value.denominator).bit_length() - 1
    rest, fives = value.denominator >> twos, 0
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    # A terminating decimal.
    places = max(twos, fives)
    return _written(value < 0, str(abs(value.numerator) * 10**places // value.denominator), -places)
