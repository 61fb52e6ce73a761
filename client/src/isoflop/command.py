"""What the commands of `isoflop` share: exit codes, the way to the router, and how results are shown."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import Message

from isoflop.jsonform import to_dict
from isoflop.text import Style

if TYPE_CHECKING:
    from isoflop.client import Client

_M = TypeVar("_M", bound=Message)

Run = Callable[[argparse.Namespace], int]
"""What a command does: returns the exit code."""

ANSWERED, FAILED, USAGE, ABANDONED, INTERRUPTED = 0, 1, 2, 3, 130

READABLE = 100
"""Columns that prose is written in at most."""


def connect(arguments: argparse.Namespace) -> Client:
    """A client for the router that the command line names."""
    # grpc reads this when it is imported, here: users get one sentence, and not its log.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from isoflop.client import Client

    return Client(arguments.address, arguments.tenant)


def show(response: _M, as_text: Callable[[_M, Style], str], as_json: bool) -> int:
    """Print a message for people, or for machines; the exit code."""
    print(json.dumps(to_dict(response), indent=2) if as_json else as_text(response, style()))
    return ANSWERED


def style() -> Style:
    """That of standard output: colours where it is a terminal and NO_COLOR is not set."""
    return Style(colour=sys.stdout.isatty() and not os.environ.get("NO_COLOR"))


def width() -> float:
    """Columns of the terminal; infinite where standard output is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else math.inf


def can_encode(text: str) -> bool:
    """Whether standard output takes these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
