"""Generate the stubs in `client/` from the protos, or check that those checked in are current.

python protos/generate.py [--check]
"""

from __future__ import annotations

import argparse
import filecmp
import os
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).parent
STUBS = PROTOS.parent / "client" / "src"
PACKAGE = "isoflop/v1"
WELL_KNOWN = Path(protoc.__file__).parent / "_proto"
PLUGINS = [("python", ""), ("mypy", "quiet:"), ("grpc_python", ""), ("mypy_grpc", "quiet:")]


def generate(out: Path) -> None:
    """Write `*_pb2.py`, `*_pb2_grpc.py` and their `.pyi` below `out`."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # protoc-gen-mypy
    names = sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / PACKAGE).glob("*.proto"))
    plugins = [f"--{kind}_out={option}{out}" for kind, option in PLUGINS]
    if protoc.main(["protoc", f"-I{PROTOS}", f"-I{WELL_KNOWN}", *plugins, *names]) != 0:
        raise SystemExit("protoc failed")


def main() -> int:
    """Entry point; the exit status is 1 where `--check` finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    if not parser.parse_args().check:
        generate(STUBS)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        comparison = filecmp.dircmp(
            Path(folder) / PACKAGE, STUBS / PACKAGE, ignore=["__init__.py", "__pycache__"]
        )
        stale = sorted({*comparison.left_only, *comparison.right_only, *comparison.diff_files})
    if stale:
        print(f"not current, run `make proto`: {', '.join(stale)}", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
