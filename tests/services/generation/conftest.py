"""The embedded model and one of another shape, loaded once; and catalogues."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from random_gguf import write_random_model
from scripted_backend import make_core

from services.common.settings import MODELS
from services.generation.backends.llamacpp import LlamaCppBackend
from services.generation.catalog import LlamaCppEntry
from services.generation.core import Generation
from services.generation.engines import open_backends

PARALLEL = 4
"""Samples of a model that run at a time in these tests."""


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model files: copies, because training may write to the originals."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copy(MODELS / "abacus-m.gguf", folder / "abacus.gguf")
    write_random_model(folder / "random.gguf")
    return folder


@pytest.fixture(scope="session")
async def abacus(files: Path) -> AsyncIterator[LlamaCppBackend]:
    """abacus-m in llama.cpp."""
    entry = LlamaCppEntry(
        name="abacus", backend="llamacpp", path=Path("abacus.gguf"), parallel=PARALLEL, context=512
    )
    backend = LlamaCppBackend(entry, files, "USD")
    yield backend
    await backend.close()


@pytest.fixture(scope="session")
async def other(files: Path) -> AsyncIterator[LlamaCppBackend]:
    """A model of another shape, by a catalogue entry alone."""
    catalog = files / "catalog.yaml"
    catalog.write_text("models: [{name: random, backend: llamacpp, path: random.gguf, parallel: 4}]")
    (backend,) = open_backends(catalog)
    assert isinstance(backend, LlamaCppBackend)
    yield backend
    await backend.close()


@pytest.fixture
def core(abacus: LlamaCppBackend, other: LlamaCppBackend) -> Generation:
    """Both, behind one service."""
    return make_core(abacus, other)


@pytest.fixture
def catalogue(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a catalogue."""

    def write(text: str) -> Path:
        path = tmp_path / "catalog.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write
