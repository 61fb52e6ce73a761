"""A real CPU Triton for tests: installed once, started on free ports, stopped cleanly."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from tests.cluster.processes import ROOT, free_ports

SIZES = ("s", "m", "l")
INSTALL = ROOT / "docker" / "triton" / "install.py"

# The first start installs 350 MB; afterwards Triton is ready within about a second.
INSTALL_TIMEOUT_S = 300.0
READY_TIMEOUT_S = 60.0
# Triton looks once a second whether its models are unloaded.
STOP_TIMEOUT_S = 15.0

_SAMPLE = re.compile(r"^(?P<name>\w+)\{(?P<labels>.*)\} (?P<value>\S+)$", re.MULTILINE)


class TritonServerError(RuntimeError):
    """Triton could not be installed or started; the text says why, with the end of its log."""


class TritonServer:
    """A tritonserver process that serves GGUF files and verifiers; a context manager.

    `abacus-s.gguf` is served as the model `abacus_s`, and a verifier's folder `abacus-prm` as `abacus_prm`;
    `extra` are folders of models that are made already, served by their names. `folder` receives the model
    repository and `triton.log`. Triton itself is kept between runs, in the folder that ISOFLOP_TRITON_HOME
    names or else in `build/triton`.
    """

    def __init__(self, models: Sequence[Path], folder: Path, extra: Sequence[Path] = ()) -> None:
        self._models = models
        self._extra = extra
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.log_path = folder / "triton.log"
        self._ports: list[int] = []
        self.grpc_address = ""
        self.http_address = ""
        self.metrics_address = ""

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Install Triton if need be, start it and return when all models are ready.

        Started again it has the ports that it had.
        """
        home = Path(os.environ.get("ISOFLOP_TRITON_HOME") or ROOT / "build" / "triton")
        repository = self._folder / "repository"
        launcher = _install(home, repository, self._models)
        for made in self._extra:
            shutil.copytree(made, repository / made.name)
        self._ports = self._ports or free_ports(3)
        grpc, http, metrics = self._ports
        self.grpc_address, self.http_address, self.metrics_address = (
            f"127.0.0.1:{port}" for port in (grpc, http, metrics)
        )
        command = [
            str(launcher),
            f"--model-repository={repository}",
            "--disable-auto-complete-config",
            *(f"--{face}-address=127.0.0.1" for face in ("grpc", "http", "metrics")),
            f"--grpc-port={grpc}",
            f"--http-port={http}",
            f"--metrics-port={metrics}",
        ]
        with self.log_path.open("wb") as log:
            # A group of its own, since a killed Triton may leave its models' processes behind.
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop Triton; harmless where it does not run."""
        if self._process is None:
            return
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """End Triton and its models at once, as a crash would."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def pause(self) -> None:
        """SIGSTOP to Triton. Its models' processes go on: Triton would find them dead when it wakes first."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT to it."""
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """Once it has ended: start it again on its ports, and return when all models are ready."""
        assert self._process is None, "it still runs"
        self.start()

    def metrics(self, model: str) -> dict[str, float]:
        """The counters of one model on Triton's metrics page, by name.

        Those that have further labels, as the reasons of failures, are summed.
        """
        totals: dict[str, float] = {}
        for sample in _SAMPLE.finditer(_get(f"http://{self.metrics_address}/metrics")):
            if f'model="{model}"' in sample["labels"].split(","):
                totals[sample["name"]] = totals.get(sample["name"], 0.0) + float(sample["value"])
        return totals

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while True:
            if process.poll() is not None:
                raise TritonServerError(f"Triton ended with status {process.returncode}\n{self._log_end()}")
            try:
                _get(f"http://{self.http_address}/v2/health/ready")
            except (urllib.error.URLError, OSError):
                pass
            else:
                return
            if time.monotonic() > deadline:
                raise TritonServerError(
                    f"Triton was not ready after {READY_TIMEOUT_S:.0f} s\n{self._log_end()}"
                )
            time.sleep(0.05)

    def _log_end(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()
        told = [line for line in lines if not line.startswith(("|", "+"))]  # Triton prints wide tables
        return "\n".join([f"--- the end of {self.log_path}:", *told[-25:]])


def triton_catalog(address: str) -> dict[str, Any]:
    """The embedded models as they are served by Triton: template and shape are said, not read."""
    from services.generation.backends.llamacpp import Header

    embedded = yaml.safe_load((ROOT / "models" / "catalog.yaml").read_text())["models"]
    said = {one["name"]: {key: one[key] for key in ("thinking", "revision")} for one in embedded}
    models = []
    for size in SIZES:
        header = Header.read(ROOT / "models" / f"abacus-{size}.gguf")
        shape = header.shape
        models.append(
            {
                "name": f"abacus-{size}",
                "backend": "triton",
                "address": address,
                "model": f"abacus_{size}",
                "chat_template": header.chat_template,
                **said[f"abacus-{size}"],
                "context": header.context,
                "steps": True,
                "shape": {
                    "active_parameters": shape.active_parameters,
                    "layers": shape.layers,
                    "heads": shape.heads,
                    "head_size": shape.head_size,
                },
                "price": {"per_million_completion_tokens": 0.01},
            }
        )
    return {"currency": "USD", "models": models}


def _install(home: Path, repository: Path, models: Sequence[Path]) -> Path:
    command = [sys.executable, str(INSTALL), str(home), *map(str, models), "--repository", str(repository)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise TritonServerError(
            f"Triton was not installed in {home} after {INSTALL_TIMEOUT_S:.0f} s"
        ) from None
    if done.returncode:
        raise TritonServerError(f"Triton was not installed in {home}: {done.stderr.strip()}")
    return Path(done.stdout.strip())


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as response:
        return str(response.read().decode())
