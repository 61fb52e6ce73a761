#!/usr/bin/env python3
"""Install a real Triton for the CPU, without Docker, and write a model repository for it.

    python3.11 docker/triton/install.py DIR MODEL.gguf|VERIFIER ...
    DIR/tritonserver --model-repository=DIR/repository

Run it with the Python (3.10 to 3.12) that the models are to run in: Triton's python backend loads
that Python's shared library. A second call returns at once where nothing has changed. Only the
standard library is needed.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

# pytriton's wheel holds the tritonserver binary; pytriton itself, and so what it depends on, is not used.
# Nor is what onnxruntime and tokenizers depend on, but for numpy.
PACKAGES = (
    "nvidia-pytriton==0.7.0",
    "numpy==1.26.4",
    "xllamacpp==2026.10.11549",
    "onnxruntime==1.32.0",
    "tokenizers==0.23.3",
)
TEMPLATES = Path(__file__).parent / "models"
STAMP = "installed.txt"


class InstallError(Exception):
    """One sentence that says what to do."""


def install(folder: Path) -> Path:
    """Make `folder` an environment with Triton in it; return its launcher."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs may want it at once
        return _install(folder)


def _install(folder: Path) -> Path:
    launcher = folder / "tritonserver"
    # The folder is part of the stamp because a virtual environment cannot be moved.
    made_of = f"{Path(__file__).read_text()}\n{sys.base_prefix}\n{sys.version}\n{folder}"
    stamp = hashlib.sha256(made_of.encode()).hexdigest()
    if launcher.is_file() and (folder / STAMP).is_file() and (folder / STAMP).read_text() == stamp:
        return launcher

    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    library = Path(sysconfig.get_config_var("LIBDIR")) / str(sysconfig.get_config_var("INSTSONAME"))
    if library.suffix == ".a" or not library.exists():
        raise InstallError(
            f"this Python has no shared library, which Triton needs: install libpython{version} (Debian), "
            "or use a Python that was built with --enable-shared"
        )
    venv = folder / "venv"
    (folder / STAMP).unlink(missing_ok=True)
    _run(sys.executable, "-m", "venv", "--clear", str(venv))
    _run(
        str(venv / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        *PACKAGES,
    )

    site = venv / "lib" / f"python{version}" / "site-packages"
    triton = site / "pytriton" / "tritonserver"
    stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise InstallError(f"Triton has no python backend for Python {version}: use Python 3.11")
    # Copied, not linked: the stub finds its libraries relative to where the real file lies.
    shutil.copy(stub, triton / "backends" / "python")

    environment = {
        # The stub is linked with this; Triton's own libraries are found relative to its files.
        "LD_LIBRARY_PATH": str(library.parent),
        # The stub's interpreter finds its standard library and packages by the python3 in PATH.
        "PATH": f"{venv / 'bin'}:{os.defpath}",
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    binary, backends = triton / "bin" / "tritonserver", triton / "backends"
    command = f'exec {shlex.quote(str(binary))} --backend-directory={shlex.quote(str(backends))} "$@"'
    launcher.write_text("\n".join(["#!/bin/sh", *lines, "unset PYTHONHOME PYTHONPATH", command, ""]))
    launcher.chmod(0o755)
    (folder / STAMP).write_text(stamp)
    return launcher


def write_repository(repository: Path, models: Iterable[Path]) -> list[str]:
    """Write a repository with one model for each file or folder, replacing an older one; return the names.

    `abacus-s.gguf` becomes the model `abacus_s`; a folder is a verifier: `abacus-prm` becomes `abacus_prm`.
    """
    shutil.rmtree(repository, ignore_errors=True)
    repository.mkdir(parents=True)
    names = []
    for model in models:
        model = model.resolve()
        template, place = ("onnx", "@FOLDER@") if model.is_dir() else ("gguf", "@GGUF@")
        file = model / "model.onnx" if model.is_dir() else model
        if not file.is_file():
            raise InstallError(f"there is no model file {file}")
        name = model.stem.replace("-", "_")
        if name in names:
            raise InstallError(f"two models would have the name {name}: rename one")
        names.append(name)
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(TEMPLATES / template, repository / name, ignore=ignore)
        config = repository / name / "config.pbtxt"
        quoted = str(model).replace("\\", "\\\\").replace('"', '\\"')
        config.write_text(config.read_text().replace(place, quoted))
    return names


def _run(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise InstallError(f"`{' '.join(command)}` failed:\n{done.stdout[-2000:].strip()}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Install a real Triton for the CPU.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to install it")
    parser.add_argument(
        "models", type=Path, nargs="*", metavar="MODEL.gguf|VERIFIER", help="files and folders to serve"
    )
    parser.add_argument("--repository", type=Path, help="where to write the repository (DIR/repository)")
    options = parser.parse_args()
    try:
        launcher = install(options.folder)
        if options.models:
            write_repository(options.repository or options.folder / "repository", options.models)
    except (InstallError, OSError) as error:
        sys.exit(f"install.py: {error}")
    print(launcher)


if __name__ == "__main__":
    main()
