"""From a catalogue to running backends."""

from __future__ import annotations

from pathlib import Path

from services.common.catalog import CatalogError
from services.generation.backends import Backend
from services.generation.backends.llamacpp import LlamaCppBackend
from services.generation.backends.recorded import RecordedBackend
from services.generation.backends.triton import TritonBackend
from services.generation.catalog import LlamaCppEntry, OpenAIEntry, RecordedEntry, load


def open_backends(path: Path, *, whole: bool = False) -> list[Backend]:
    """A backend for each model of the catalogue at `path`; raises CatalogError.

    `whole`: samples of llama.cpp come when they are complete, for bulk sampling (see LlamaCppBackend).
    """
    catalog, folder = load(path), path.parent
    backends: list[Backend] = []
    for entry in catalog.models:
        if isinstance(entry, LlamaCppEntry):
            backends.append(LlamaCppBackend(entry, folder, catalog.currency, whole=whole))
        elif isinstance(entry, RecordedEntry):
            backends.append(RecordedBackend(entry, folder, catalog.currency))
        elif isinstance(entry, OpenAIEntry):
            backends.append(_openai(entry, folder, catalog.currency))
        else:
            backends.append(TritonBackend(entry, catalog.currency))
        if entry.thinking:
            backends[-1].model.thinking.CopyFrom(entry.thinking.message())
        if entry.revision:
            backends[-1].model.revision.CopyFrom(entry.revision.message())
    return backends


def _openai(entry: OpenAIEntry, folder: Path, currency: str) -> Backend:
    try:
        from services.generation.backends.openai import OpenAIBackend
    except ImportError:
        raise CatalogError(
            f"model {entry.name}: httpx is not installed; pip install 'isoflop-suite[openai]'"
        ) from None
    return OpenAIBackend(entry, folder, currency)
