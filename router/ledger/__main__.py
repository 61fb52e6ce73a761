"""Bring a ledger's tables up to date: `python -m router.ledger migrate --ledger URL`.

The URL may be in the environment instead, as the router's is: `ISOFLOP_ROUTER_LEDGER`.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser

from isoflop.errors import IsoflopError

from router.ledger.migrate import prepare
from router.ledger.storage import Storage


def main() -> int:
    """What the command line says; status 1 where it cannot be done."""
    parser = ArgumentParser(prog="python -m router.ledger", description=__doc__)
    commands = parser.add_subparsers(required=True)
    migrate = commands.add_parser("migrate", help="bring the tables up to date; does nothing where they are")
    told = os.environ.get("ISOFLOP_ROUTER_LEDGER")
    said = "postgresql://... or sqlite:///FILE"
    migrate.add_argument("--ledger", default=told, required=not told, metavar="URL", help=said)
    arguments = parser.parse_args()
    try:
        storage = Storage(arguments.ledger, connections=1, timeout_seconds=60.0)
        prepare(storage, migrates=True)
    except IsoflopError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"the ledger in {storage.name} is up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
