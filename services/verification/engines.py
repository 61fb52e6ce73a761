"""From a catalogue to running backends."""

from __future__ import annotations

from pathlib import Path

from services.verification.backends import Backend
from services.verification.backends.critic import CriticBackend, Generation
from services.verification.backends.logprob import LogprobBackend
from services.verification.backends.onnx import OnnxBackend
from services.verification.backends.pooling import PoolingBackend
from services.verification.backends.triton import TritonBackend
from services.verification.catalog import LogprobEntry, OnnxEntry, PoolingEntry, TritonEntry, load


def open_backends(path: Path, generation: Generation | None = None) -> list[Backend]:
    """A backend for each verifier of the catalogue at `path`; raises CatalogError.

    `generation` is the generation service of the same process, where there is one: critics ask it.
    """
    catalog, folder = load(path), path.parent
    backends: list[Backend] = []
    for entry in catalog.verifiers:
        if isinstance(entry, LogprobEntry):
            backends.append(LogprobBackend(entry))
        elif isinstance(entry, OnnxEntry):
            backends.append(OnnxBackend(entry, folder, catalog.currency))
        elif isinstance(entry, TritonEntry):
            backends.append(TritonBackend(entry, catalog.currency))
        elif isinstance(entry, PoolingEntry):
            backends.append(PoolingBackend(entry, folder, catalog.currency))
        else:
            backends.append(CriticBackend(entry, generation))
    return backends
