"""The suite's own processes for tests: started on free ports, found by what they print, stopped or killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parents[2]

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0


class Process:
    """One process of the suite: `python -m <module>`, or `isoflop up`."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        """Start it, and return when it serves; `folder` receives its log."""
        (metrics,) = free_ports(1)
        name = "-".join(command).replace("/", "_")[:60]
        self.log_path = folder / f"{name}-{metrics}.log"
        self.metrics_port = metrics
        self._command = [*launch(command[0]), *command[1:], "--metrics-port", str(metrics)]
        if "--address" in command:
            self._process, self.address = self._start(self._command)
        else:
            self._process, self.address = self._start([*self._command, "--address", "127.0.0.1:0"])
            self._command += ["--address", self.address]

    @property
    def pid(self) -> int:
        """For signals."""
        return self._process.pid

    def stop(self) -> int:
        """SIGTERM, and the exit status; one that is paused goes on first."""
        self._process.send_signal(signal.SIGTERM)
        self.resume()
        try:
            return self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise AssertionError(f"it did not stop\n{self.log()}") from None

    def kill(self) -> None:
        """SIGKILL: it ends at once, as in a crash."""
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """SIGSTOP: its connections stay, and nobody answers."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Once it has ended: start it again on its ports, and return when it serves."""
        assert self._process.poll() is not None, "it still runs"
        self._process, _ = self._start(self._command)

    def log(self) -> str:
        """What it has printed, in all its lives."""
        return self.log_path.read_text(errors="replace")

    def metrics(self, name: str, **labels: str) -> float:
        """Sum of the samples of that name that have these labels, on its metrics page."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self._page())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def series(self) -> int:
        """How many samples its metrics page has."""
        return sum(not line.startswith("#") for line in self._page().splitlines())

    def _page(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as page:
            return str(page.read().decode())

    def _start(self, command: Sequence[str]) -> tuple[subprocess.Popen[bytes], str]:
        """The process, and where it serves."""
        before = self.log_path.stat().st_size if self.log_path.exists() else 0
        with self.log_path.open("ab") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            for line in self.log_path.read_bytes()[before:].decode(errors="replace").splitlines():
                if "serving on " in line:
                    return process, line.rpartition(" ")[2]
            if process.poll() is not None:
                raise AssertionError(f"it ended with status {process.returncode}\n{self.log()}")
            time.sleep(0.02)
        process.kill()
        raise AssertionError(f"it does not serve\n{self.log()}")


def launch(module: str) -> list[str]:
    """The command line that starts a module, or the `isoflop` command."""
    binary = Path(sys.executable).parent / "isoflop"
    return [str(binary)] if module == "isoflop" else [sys.executable, "-m", module]


def run(*command: str, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a module or `isoflop` to its end."""
    return subprocess.run(
        [*launch(command[0]), *command[1:]],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def free_ports(count: int) -> list[int]:
    """Ports that were free just now; all are held until the last is found, so that they differ."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
