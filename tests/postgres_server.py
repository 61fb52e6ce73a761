"""A PostgreSQL server of the tests' own, on a free port, that may be killed, stopped and started again."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psycopg

from tests.cluster.processes import free_ports

START_TIMEOUT_S = 60.0

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    # What is committed outlives the server's end, if not the machine's.
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "100",
}


class NoPostgres(Exception):
    """There is no PostgreSQL on this machine."""


class PostgresServer:
    """A server and its data, in a temporary folder."""

    def __init__(self) -> None:
        """Make an empty one; raises NoPostgres."""
        self._programs = _programs()
        # The server refuses to be root, and whoever it is instead has to get into its folder.
        self._user = _unprivileged() if os.geteuid() == 0 else None
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        if self._user:
            shutil.chown(self._folder, self._user)
        (self.port,) = free_ports(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        options = ("--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C")
        self._spawn("initdb", *options, "-D", str(self._data)).wait()
        assert (self._data / "PG_VERSION").exists(), self.log()

    @property
    def pid(self) -> int:
        """Of the first of its processes."""
        assert self._process
        return self._process.pid

    def url(self, database: str = "postgres") -> str:
        """Of one of its databases."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it, also after its end; returns when it answers."""
        settings = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
        self._process = self._spawn("postgres", "-D", str(self._data), "-p", str(self.port), *settings)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self.execute("select 1")
            except psycopg.OperationalError:
                assert self._process.poll() is None, self.log()
                assert time.monotonic() < deadline, self.log()
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """End it in order, whoever is connected."""
        self.signal(signal.SIGCONT)
        os.kill(self.pid, signal.SIGINT)
        self._process.wait(START_TIMEOUT_S)  # type: ignore[union-attr]

    def kill(self) -> None:
        """kill -9 all of it."""
        self.signal(signal.SIGKILL)
        self._process.wait(START_TIMEOUT_S)  # type: ignore[union-attr]

    def signal(self, number: signal.Signals) -> None:
        """Send all of its processes a signal: SIGSTOP, say, and SIGCONT."""
        # The first is stopped before: it would begin others.
        os.kill(self.pid, signal.SIGSTOP)
        for process in (*_children(self.pid), self.pid):
            with suppress(ProcessLookupError):
                os.kill(process, number)
        if number != signal.SIGSTOP:
            os.kill(self.pid, signal.SIGCONT)

    def remove(self) -> None:
        """Kill it, and delete its data."""
        if self._process and self._process.poll() is None:
            self.kill()
        shutil.rmtree(self._folder)

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement outside of a transaction; its rows."""
        with psycopg.connect(self.url(database), autocommit=True, connect_timeout=2) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def new_database(self, like: str = "template1") -> str:
        """URL of a new database, a copy of another one that nobody is connected to."""
        self._databases += 1
        name = f"test_{self._databases}"
        self.execute(f"create database {name} template {like}")
        return self.url(name)

    def log(self) -> str:
        """What it has said."""
        return self._log.read_text(errors="replace")

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [str(self._programs / program), *arguments],
                cwd=self._folder,
                stdout=log,
                stderr=log,
                user=self._user,
                group=pwd.getpwnam(self._user).pw_gid if self._user else None,
                extra_groups=[] if self._user else None,
                env={"PATH": os.defpath, "LC_ALL": "C"},
            )


def _programs() -> Path:
    """Where initdb and postgres are."""
    found = [Path(path).resolve().parent for path in [shutil.which("postgres")] if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in found:
        if (folder / "postgres").exists() and (folder / "initdb").exists():
            return folder
    raise NoPostgres("there is no PostgreSQL here: install Debian's package `postgresql`")


def _unprivileged() -> str:
    """Somebody who is not root."""
    names = {user.pw_name for user in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
