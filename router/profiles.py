"""The life of profiles: a folder of them, the file that says which are in force, and how both are read.

    profiles/
      rollout.json        which is live, which was before, which is canary or shadow, and what was changed
      VERSION.json        profiles, each named by the version that it says
      replays/*.json      what `isoflop replay` found of them

A path to one profile file is that profile, live, and nothing else. Files are written beside their place and
then renamed, so that a reader sees the old or the new, and never a half.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from isoflop.errors import FailedPrecondition
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from router import profile
from router.following import Mark, mark
from router.profile import Profile, ProfileError, first_fault

SCHEMA = 1
"""Number of the form of rollout.json; another is refused."""
ROLLOUT = "rollout.json"
REPLAYS = "replays"
MOST_CHANGES = 200
"""Changes that rollout.json remembers."""

Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
"""A version that can be the name of a file."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Canary(_Record):
    """A profile that some queries are planned on."""

    version: Version
    share: float = Field(gt=0, le=1)
    """Of queries."""


class Change(_Record):
    """One command that changed what is in force."""

    at: str
    """ISO 8601, UTC."""
    what: str
    """The command: live, rollback, canary or shadow."""
    version: str
    """That it was about; empty: none any more."""
    reason: str = ""
    """Why it was allowed: the replay report, or what was given with --force."""


class Rollout(_Record):
    """What is in force, as rollout.json has it."""

    form: int = Field(default=SCHEMA, alias="schema")
    """Number of this form."""
    live: Version
    """Decides all queries but the canary's."""
    previous: Version | None = None
    """Was live before, and can be rolled back to."""
    canary: Canary | None = None
    shadow: Version | None = None
    """Decides nothing, and is asked what it would have done."""
    changes: tuple[Change, ...] = ()
    """The latest last."""

    def made_live(self, version: str, at: str, reason: str) -> Rollout:
        """With another live profile, which is canary or shadow no more."""
        return self._changed(
            Change(at=at, what="live", version=version, reason=reason),
            live=version,
            previous=self.live,
            canary=None if self.canary and self.canary.version == version else self.canary,
            shadow=None if self.shadow == version else self.shadow,
        )

    def rolled_back(self, at: str) -> Rollout:
        """With the previous one live again, and no canary: it stands for what is being undone.

        Raises FailedPrecondition where there is none: two people who roll back at once go back one step.
        """
        if self.previous is None:
            last = next((c for c in reversed(self.changes) if c.what == "rollback"), None)
            before = f", which was rolled back to at {last.at}" if last and last.version == self.live else ""
            raise FailedPrecondition(f"there is nothing to go back to: {self.live} is live{before}")
        return self._changed(
            Change(at=at, what="rollback", version=self.previous, reason=f"instead of {self.live}"),
            live=self.previous,
            previous=None,
            canary=None,
            shadow=None if self.shadow == self.previous else self.shadow,
        )

    def with_canary(self, canary: Canary | None, at: str) -> Rollout:
        """With another canary, or none. Raises FailedPrecondition where it is the live one."""
        if canary and canary.version == self.live:
            raise FailedPrecondition(f"{canary.version} is live: all queries are planned on it")
        change = Change(at=at, what="canary", version=canary.version if canary else "")
        if canary:
            change = change.model_copy(update={"reason": f"share {canary.share:g}"})
        return self._changed(change, canary=canary)

    def with_shadow(self, version: str | None, at: str) -> Rollout:
        """With another shadow, or none. Raises FailedPrecondition where it is the live one."""
        if version == self.live:
            raise FailedPrecondition(f"{version} is live: it has no other decisions to compare with")
        return self._changed(Change(at=at, what="shadow", version=version or ""), shadow=version)

    def _changed(self, change: Change, **fields: object) -> Rollout:
        changes = (*self.changes, change)[-MOST_CHANGES:]
        return self.model_copy(update={**fields, "changes": changes})


@dataclass(frozen=True, eq=False)
class Loaded:
    """A profile that was read."""

    profile: Profile
    modified: float = field(default_factory=time.time)
    """When its file was last written, in seconds since 1970."""

    @property
    def version(self) -> str:
        """As the profile says it."""
        return self.profile.version

    def unknown(self, models: Collection[str]) -> list[str]:
        """Models of its arms that are not among these."""
        return sorted({arm.model for arm in self.profile.arms} - set(models))

    def fits(self, models: Collection[str]) -> bool:
        """Whether it has measured any of these models."""
        return any(arm.model in models for arm in self.profile.arms)


@dataclass(frozen=True, eq=False)
class InForce:
    """The profiles that queries are planned on."""

    live: Loaded
    canary: Loaded | None = None
    share: float = 0.0
    """Of queries, that are planned on the canary."""
    shadow: Loaded | None = None
    faults: tuple[str, ...] = ()
    """What is wrong with the files, each a sentence; what is in force is in spite of it."""

    @property
    def roles(self) -> dict[str, Loaded]:
        """By role: live and, where there are such, canary and shadow."""
        named = {"live": self.live, "canary": self.canary, "shadow": self.shadow}
        return {role: loaded for role, loaded in named.items() if loaded}

    def chosen(self, key: str) -> Loaded:
        """The one that a query is planned on: the same for the same key, as long as the share does not fall.

        The canary where SHA-256 of its version and the key, read as a number in [0, 1), is below its share.
        """
        if self.canary is None:
            return self.live
        digest = hashlib.sha256(f"{self.canary.version}/{key}".encode()).digest()
        return self.canary if int.from_bytes(digest[:8], "big") / 2**64 < self.share else self.live

    def among(self, models: Collection[str], last: InForce | None) -> InForce:
        """What of it can be in force over a catalogue of these models.

        A profile that has measured none of them is refused: the `last` live one stays, if there is one, and a
        canary or shadow is left out. Where it has measured some, those are planned with; its other arms are
        never offered.
        """
        faults = list(self.faults)

        def fitting(loaded: Loaded | None, otherwise: Loaded | None) -> Loaded | None:
            if loaded is None or loaded.fits(models):
                return loaded
            names = ", ".join(loaded.unknown(models))
            faults.append(f"profile {loaded.version}: none of its models ({names}) is in the catalogue")
            return otherwise

        live = fitting(self.live, last.live if last else None) or self.live
        canary, shadow = fitting(self.canary, None), fitting(self.shadow, None)
        return InForce(live, canary, self.share, shadow, tuple(dict.fromkeys(faults)))


class Files:
    """The profiles at a path. A file that has not changed is not read again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last: InForce | None = None
        self._marks: dict[Path, Mark] = {}
        """Of every file that what is in force depends on, as they were before they were read."""
        self._good: dict[Path, tuple[Mark, Loaded]] = {}

    def read(self) -> InForce:
        """What is in force at the start; raises ProfileError where there is no good live profile.

        A canary or shadow that cannot be read is left out, and `faults` tells.
        """
        self._marks = {}
        self._last = self._read()
        return self._last

    def look(self) -> InForce | None:
        """What is in force now; None where nothing has changed since the last look.

        The last good profile stays: of a file that has been damaged what it held before; where the live one
        never was good, all that was in force.
        """
        if self._last and all(seen == mark(path) for path, seen in self._marks.items()):
            return None
        try:
            return self.read()
        except ProfileError as error:
            if self._last is None:
                raise
            self._last = replace(self._last, faults=(str(error),))
            return self._last

    def _read(self) -> InForce:
        faults: list[str] = []
        if not self.path.is_dir():
            return InForce(self._load(self.path, faults), faults=tuple(faults))
        rollout_path = self.path / ROLLOUT
        self._marks[rollout_path] = mark(rollout_path)
        rollout = read_rollout(self.path)
        live = self._load(file_of(self.path, rollout.live), faults)
        trials: list[Loaded | None] = []
        for version in (rollout.canary and rollout.canary.version, rollout.shadow):
            try:
                trials.append(self._load(file_of(self.path, version), faults) if version else None)
            except ProfileError as error:
                faults.append(str(error))
                trials.append(None)
        canary, shadow = trials
        share = rollout.canary.share if rollout.canary else 0.0
        return InForce(live, canary, share, shadow, tuple(faults))

    def _load(self, path: Path, faults: list[str]) -> Loaded:
        seen = self._marks[path] = mark(path)
        before, loaded = self._good.get(path, (None, None))
        if loaded and seen == before:
            return loaded
        try:
            found = load(path, versioned=path != self.path)
        except ProfileError as error:
            if loaded is None:
                raise
            faults.append(str(error))
            return loaded
        self._good[path] = seen, found
        return found


def load(path: Path, *, versioned: bool = False) -> Loaded:
    """Read a profile; raises ProfileError, also where it is `versioned` and its file has another name."""
    try:
        modified = path.stat().st_mtime
        found = profile.load(path)
    except OSError as error:
        raise ProfileError(f"profile {path}: {error.strerror}") from None
    except RecursionError:
        raise ProfileError(f"profile {path}: not a profile: nested too deep") from None
    if versioned and found.version != path.stem:
        raise ProfileError(f"profile {path}: it says that its version is {found.version[:100]!r}")
    return Loaded(found, modified)


def file_of(folder: Path, version: str) -> Path:
    """Where a version is."""
    return folder / f"{version}.json"


def versions(folder: Path) -> list[Path]:
    """The profile files of a folder, by name."""
    return sorted(path for path in folder.glob("*.json") if path.name != ROLLOUT)


def sha256_of(path: Path) -> str:
    """Of a file's content; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_rollout(folder: Path) -> Rollout:
    """What a folder says is in force; raises ProfileError."""
    path = folder / ROLLOUT
    try:
        rollout = Rollout.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ProfileError(f"{path}: no such file: `isoflop profile live VERSION` makes it") from None
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        raise ProfileError(f"{path}: {first_fault(error)}") from None
    if rollout.form != SCHEMA:
        raise ProfileError(f"{path}: schema {rollout.form}, but this router reads {SCHEMA}")
    return rollout


@contextmanager
def changing(folder: Path) -> Iterator[Callable[[Rollout], None]]:
    """Hold a folder's lock: two commands at once do not undo each other. Yields what writes rollout.json."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield lambda rollout: write(
            folder / ROLLOUT, rollout.model_dump_json(indent=1, by_alias=True).encode() + b"\n"
        )
    finally:
        os.close(handle)


def write(path: Path, data: bytes) -> None:
    """Write a file at once: beside its place, to the disk, and renamed. Raises OSError."""
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # Others may run the router: as readable as any new file.
        umask = os.umask(0)
        os.umask(umask)
        Path(beside).chmod(0o666 & ~umask)
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
