"""What the suite adds to the `isoflop` command."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from router.embedded import suite
from router.settings import SuiteSettings
from services.common.server import run
from services.common.settings import load, options

Command = Callable[[argparse.Namespace], int]


def up(parser: argparse.ArgumentParser) -> Command:
    """start the suite in one process, with the embedded models"""
    source = options(SuiteSettings, parser)
    return lambda arguments: run("isoflop up", load(SuiteSettings, source, arguments), suite)
