r"""Reading an answer out of a text, and the form in which equal answers are equal texts.

Where an answer is looked for, first to last (number, expression, choice):

1. the last `\boxed{...}`;
2. the last `#### ...`;
3. the last `answer: ...` or `answer is ...`, to the end of its line;
4. with nothing of that, the last line that is not empty:
   - number: all of it; or its last number, where it is the only line, or has words. (A line of bare
     arithmetic below others is a derivation that was cut short, and what it ends with is no answer.)
   - expression: its last mathematics between dollar signs; or all of it, where it is the only line
     and has at most MAX_WORDS words; or as for a number.
   - choice: a lone letter, as in B, (B), B. or **B**, or one that starts the line, as in "(B) 42".

An answer that is found in 1 to 3 but is not of the asked type is no answer.

Everything here is linear in the length of the text, or works on at most MAX_ANSWER_CHARS of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from isoflop.v1 import common_pb2 as common

from services.aggregation.numbers import canonical_number

MAX_ANSWER_CHARS = 2000
"""Longest answer of a number, expression or choice, in characters."""
MAX_LINE_CHARS = 300
"""Longest last line that is read as an answer where nothing says that it is one."""
MAX_WORDS = 5
"""Most words of a line that is taken for an expression as it is."""
TRIES = 16
"""How many places that look like an answer are tried, from the last one back."""

_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_BARE = re.compile(r"\s{0,9}([^\s{}$.,]{1,100})")
_STATED = re.compile(
    r"[aA](?:nswer|NSWER)[*_`\s]{0,9}(?:(?:is|are|IS|ARE)\b|[:=：])[*_`\s:=：]{0,9}(?:(?:is|are)\b[*_`\s:]{0,9})?"
)
_NUMBER = re.compile(
    r"(?:(?<![\w)}\]])[-+−–])?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?(?: ?/ ?[0-9]+)?"
)
_FIRST = re.compile(rf"[\s*_$£€~≈]*({_NUMBER.pattern})")
_AFTER = re.compile(
    r"[*_$\s]*(?:$|[.,;:!?](?:[*_\s]|$)|[%°)]|\s+(?!(?:sin|cos|tan|log|ln|exp|sqrt|pi|or|and|mod)\b)(?:[A-Za-z]{2,}|[mgshLJNWV]\b)|\s*\\(?:text|mbox|mathrm))"
)
_STOPS = re.compile(r"(?<![\\.,;:])[.,;:]+$")
_DIGIT = re.compile(r"[0-9]")
_WORD = re.compile(r"[A-Za-z]{2,}")
_SPAN = re.compile(r"(?<!\\)\$\$?([^$]+)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_CONSTANTS = re.compile(
    r"\\(?:sqrt|pi|[dtc]?frac|cdot|times|div|log|ln|sin|cos|tan|exp|left|right)(?![A-Za-z])|sqrt|pi|π|√"
)
_CLOSED = re.compile(r"[-+*/^_(){}\[\]|!.0-9\s\\π√]+")
_LETTER_ALONE = re.compile(r"[\s*_(\[{$\"'`]*([A-Za-z])[\s*_)\]}.:,$\"'`]*")
_LETTER_FIRST = re.compile(
    r"[\s*_\[{$\"'`]*(?:[Oo]ption|[Cc]hoice)?[\s*_]*(?:\(([A-Za-z])\)|([A-Z])(?![A-Za-z0-9_'^+=]))"
)
_LETTER_LINE = re.compile(r"[\s*_]*(?:\(([A-Z])\)|([A-Z])[.):])(?:[\s*_]|$)")
_WRAPPER = re.compile(r"\\(?:text|textbf|textrm|mbox|mathrm|mathbf)\s*\{([^{}]*)\}")
_THOUSANDS = re.compile(r"(?<=[0-9])(?:\\[!,]|\{,\})\s*(?=[0-9]{3}(?![0-9]))")
_SPACE = re.compile(r"\\[,;:]|\\ |\\q?quad(?![A-Za-z])|~")
_HABIT = re.compile(r"\\!|\\(?:left|right|displaystyle)(?![A-Za-z])|\\?[$%]|\^\s*\{?\\circ\}?|°")
_BASES = {
    name: str(base)
    for base, name in enumerate(
        ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"), 2
    )
}
_BASE = re.compile(rf"\(?(-?[0-9][0-9A-Fa-f]*)\)?_(?:\{{\s*)?([0-9]{{1,2}}|{'|'.join(_BASES)})\s*\}}?")
_EQUALS = re.compile(r"(?<![<>=!:])=(?!=)")
_SEVERAL = re.compile(
    r"[,;<>&]|\\(?:le|ge|l?eq|geq|ne|neq|lt|gt|text|mbox|quad|qquad|or|and|in|to|pm|mp|\\)(?![A-Za-z])"
)
_MACRO = re.compile(r"\\[A-Za-z]+")
_LETTER = re.compile(r"[A-Za-z]")
_FRACTION = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_FRACTION_DIGITS = re.compile(r"\\frac\s*([0-9])\s*([0-9])")
_ROOT_DIGIT = re.compile(r"\\sqrt\s*([0-9A-Za-z])")
_LOOSE_SPACE = re.compile(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})(.*)$", re.MULTILINE)


def extract(text: str, kind: common.AnswerType.ValueType) -> str | None:
    """The answer of type `kind` in `text`, made canonical, or None where there is none.

    Knows all types but ANSWER_TYPE_PATTERN, which is not for this process: see `worker.py`.
    """
    match kind:
        case common.ANSWER_TYPE_EXPRESSION:
            return _expression(text)
        case common.ANSWER_TYPE_CHOICE:
            return _choice(text)
        case common.ANSWER_TYPE_TEXT:
            return " ".join(text.casefold().split()) or None
        case common.ANSWER_TYPE_CODE:
            return _code(text)
        case _:
            return _number(text)


@lru_cache(maxsize=10_000)
def expression_key(answer: str) -> str:
    r"""A text that is the same for expressions that are written the same but for LaTeX habits.

    Spaces, \left and \right, \dfrac, wrappers of text, degrees and percent are habits. Where two keys
    differ the expressions may still be equal: that is for mathematics to say.
    """
    number = canonical_number(answer)
    if number is not None:
        return number
    answer = value(answer)
    number = canonical_number(answer)
    if number is not None:
        return number
    text = _THOUSANDS.sub("", _WRAPPER.sub(r" \1 ", answer))
    text = _FRACTION.sub(r"\\frac", _HABIT.sub("", _SPACE.sub(" ", text)))
    text = _FRACTION_DIGITS.sub(r"\\frac{\1}{\2}", text)
    text = _ROOT_DIGIT.sub(r"\\sqrt{\1}", text)
    text = _LOOSE_SPACE.sub("", " ".join(text.split())).rstrip(".")
    if base := _BASE.fullmatch(text):
        return f"{base[1]}_{_BASES.get(base[2], base[2])}"
    return text


def based(key: str) -> tuple[str, str] | None:
    """Digits and base of a number that says to what base it is written, by its key: 52_8."""
    match = _BASE.fullmatch(key)
    return (match[1], match[2]) if match else None


def value(answer: str) -> str:
    """What a derivation ends with: 850 of 1/2 * 1700 = 850, or of s = 1/2 * 1700 = 850.

    An equation of two sides with an unknown is left as it is: it may be the answer.
    """
    sides = _EQUALS.split(answer)
    if len(sides) < 2 or _SEVERAL.search(answer) or not all(side.strip() for side in sides):
        return answer
    if len(sides) == 2 and _LETTER.search(_MACRO.sub("", answer)):
        return answer
    return sides[-1].strip()


def _places(text: str) -> Iterator[str]:
    """What is marked as an answer, best mark first; the last of each mark."""
    box = _boxed(text)
    if box is not None:
        yield box
    hashes = text.rfind("####")
    if hashes >= 0:
        rest = _line(text, hashes + 4).strip(" #")
        if rest:
            yield rest
    stated = _stated(text)
    if stated is not None:
        yield stated


def _boxed(text: str) -> str | None:
    end = len(text)
    for _ in range(TRIES):
        start = max(text.rfind("\\boxed", 0, end), text.rfind("\\fbox", 0, end))
        if start < 0:
            return None
        content = _group(text, start + (6 if text.startswith("\\boxed", start) else 5))
        if content:
            return content
        # Empty, or cut short: an earlier one counts.
        end = start
    return None


def _group(text: str, at: int) -> str:
    """What is between the brace at `at` and its partner; a word where there is no brace; or nothing."""
    while at < len(text) and text[at] == " ":
        at += 1
    if not text.startswith("{", at):
        bare = _BARE.match(text, at)
        return bare[1] if bare else ""
    depth = 0
    for brace in _BRACES.finditer(text, at, at + MAX_ANSWER_CHARS):
        if brace[0] == "{":
            depth += 1
        elif brace[0] == "}":
            depth -= 1
            if not depth:
                return text[at + 1 : brace.start()].strip()
    return ""


def _stated(text: str) -> str | None:
    end = len(text)
    for _ in range(TRIES):
        at = max(text.rfind("nswer", 0, end), text.rfind("NSWER", 0, end))
        if at < 1:
            return None
        match = _STATED.match(text, at - 1)
        rest = _line(text, match.end()).strip(" *_`\r") if match else ""
        if rest:
            return rest
        end = at
    return None


def _line(text: str, at: int) -> str:
    """The rest of the line at `at`; at most MAX_ANSWER_CHARS of it."""
    end = text.find("\n", at, at + MAX_ANSWER_CHARS)
    return text[at:end] if end >= 0 else text[at : at + MAX_ANSWER_CHARS]


def _last_line(text: str) -> tuple[str, bool]:
    """The last line that is not empty, and whether it is the only one; nothing where it is no answer."""
    text = text.rstrip()
    start = text.rfind("\n") + 1
    if len(text) - start > MAX_LINE_CHARS:
        return "", False
    line = text[start:].strip()
    if "\\boxed" in line or line.endswith(":"):
        # The answer was about to come when the text was cut short.
        return "", False
    return line, not start or not text[:start].strip()


def _number(text: str) -> str | None:
    marked = False
    for place in _places(text):
        marked = True
        number = _read_number(place)
        if number is not None:
            return number
    return None if marked else _unmarked_number(text)


def _read_number(text: str) -> str | None:
    """The number that a marked place tells of."""
    number = canonical_number(text)
    if number is not None:
        return number
    if span := _SPAN.search(text):
        number = canonical_number(span[1] or span[2] or span[3])
        if number is not None:
            return number
    first = _FIRST.match(text)
    if first and _AFTER.match(text, first.end()):
        return canonical_number(first[1])
    if "=" in text:
        return _read_number(text.rpartition("=")[2].strip())
    if closed := _closed_form(text):
        return closed
    if _WORD.search(_CONSTANTS.sub("", text)):
        return _last_number(text)
    return None


def _closed_form(text: str) -> str | None:
    r"""A number that is not rational, or not worked out, such as 7\pi: compared as it is written."""
    text = text.strip(" *`").rstrip(".,;:!")
    bare = _CONSTANTS.sub("π", text)
    if bare and len(bare) <= MAX_LINE_CHARS and _CLOSED.fullmatch(bare) and re.search(r"[0-9π]", bare):
        return expression_key(text) or None
    return None


def _unmarked_number(text: str) -> str | None:
    line, alone = _last_line(text)
    if not line:
        return None
    if alone:
        return _read_number(line) or _last_number(line)
    number = canonical_number(line)
    if number is None and _WORD.search(line):
        number = _last_number(line)
    return number


def _last_number(line: str) -> str | None:
    last = None
    for last in _NUMBER.finditer(line):  # noqa: B007 - the last one counts
        pass
    return canonical_number(last[0]) if last else None


def _expression(text: str) -> str | None:
    for place in _places(text):
        if expression := _read_expression(place):
            return expression
    line, alone = _last_line(text)
    if not line:
        return None
    spans = list(_SPAN.finditer(line))
    if spans:
        return _tidy(next(filter(None, spans[-1].groups())))
    if alone and len(line.split()) <= MAX_WORDS:
        return _tidy(line)
    return _unmarked_number(text)


def _read_expression(place: str) -> str | None:
    number = canonical_number(place)
    if number is not None:
        return number
    if span := _SPAN.search(place):
        return _tidy(next(filter(None, span.groups())))
    first = _FIRST.match(place)
    if first and _AFTER.match(place, first.end()) and not _DIGIT.search(place, first.end()):
        # A unit, or the beginning of a sentence. What commas do not part by thousands is a list.
        number = canonical_number(first[1])
    return number or _tidy(place)


def _tidy(text: str) -> str | None:
    text = " ".join(text.split()).strip(" *`$").removeprefix("\\(").removesuffix("\\)")
    text = _STOPS.sub("", text.strip())
    return canonical_number(text) or text or None


def _choice(text: str) -> str | None:
    for place in _places(text):
        plain = _WRAPPER.sub(r"\1", place)
        letter = _LETTER_ALONE.fullmatch(plain) or _LETTER_FIRST.match(plain)
        if letter:
            return (letter[1] or letter[2]).upper()
    line = _WRAPPER.sub(r"\1", _last_line(text)[0])
    letter = _LETTER_ALONE.fullmatch(line) or _LETTER_LINE.match(line)
    return (letter[1] or letter[2]).upper() if letter else None


def _code(text: str) -> str | None:
    """The last fenced block. One that never ends counts: stop texts take the closing fence away."""
    block: str | None = None
    begin, mark = -1, ""
    for fence in _FENCE.finditer(text):
        if begin < 0:
            begin, mark = fence.end(), fence[1]
        elif fence[1].startswith(mark) and not fence[2].strip():
            block, begin = text[begin : fence.start()], -1
    if begin >= 0 and text[begin:].strip():
        block = text[begin:]
    if block is None:
        return None
    return "\n".join(line.rstrip() for line in block.split("\n")).strip("\n") or None
