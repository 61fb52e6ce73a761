"""The life of profiles: which are in force, what a canary gets, what becomes of files that are no good."""

from __future__ import annotations

import asyncio
import json
import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isoflop.errors import FailedPrecondition
from synthetic import make_profile, record, relaxed

from router import profiles
from router.following import following
from router.profile import ProfileError
from router.profiles import Canary, Files, InForce, Loaded, Rollout, read_rollout


def put(path: Path, data: dict[str, Any] | str) -> Path:
    """As an editor would: not at once."""
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    # A file system may count time in steps that are longer than a test.
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + put.count * 1_000_000))
    put.count += 1
    return path


put.count = 1  # type: ignore[attr-defined]


def folder_of(path: Path, rollout: dict[str, Any], *versions: str) -> Path:
    for version in versions:
        put(path / f"{version}.json", record(version=version))
    put(path / "rollout.json", {"schema": 1, **rollout})
    return path


def loaded(version: str, *models: str) -> Loaded:
    return Loaded(make_profile(models or ("s", "m", "l"), version=version), modified=0.0)


def of(found: InForce | None) -> dict[str, str]:
    assert found
    return {role: one.version for role, one in found.roles.items()}


# What is in force.


def test_one_file_is_live_and_nothing_else(tmp_path: Path) -> None:
    found = Files(put(tmp_path / "any-name.json", record(version="v1"))).read()
    assert of(found) == {"live": "v1"}
    assert not found.faults
    assert {found.chosen(str(i)).version for i in range(50)} == {"v1"}


def test_a_folder_says_who_is_what(tmp_path: Path) -> None:
    rollout = {"live": "v2", "previous": "v1", "canary": {"version": "v3", "share": 0.25}, "shadow": "v4"}
    found = Files(folder_of(tmp_path, rollout, "v1", "v2", "v3", "v4")).read()
    assert of(found) == {"live": "v2", "canary": "v3", "shadow": "v4"}
    assert found.share == 0.25
    assert found.live.modified == pytest.approx((tmp_path / "v2.json").stat().st_mtime)


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99))
@relaxed
def test_a_canary_gets_its_share_and_a_larger_share_takes_nothing_away(one: float, other: float) -> None:
    low, high = sorted((one, other))
    keys = [f"query-{i}" for i in range(2000)]

    def taken(share: float) -> set[str]:
        both = InForce(LIVE, CANARY, share)
        return {key for key in keys if both.chosen(key) is CANARY}

    assert abs(len(taken(low)) / len(keys) - low) < 5 * math.sqrt(0.25 / len(keys))
    assert taken(low) <= taken(high)


LIVE, CANARY = loaded("v1"), loaded("v2")


def test_two_canaries_are_not_tried_on_the_same_queries() -> None:
    keys = [f"query-{i}" for i in range(2000)]
    first, second = (
        {key for key in keys if InForce(LIVE, one, 0.5).chosen(key) is one} for one in (CANARY, loaded("v3"))
    )
    assert len(first & second) < 0.6 * len(first)


# Files that change.


def test_what_has_not_changed_is_not_read_again(tmp_path: Path) -> None:
    files = Files(put(tmp_path / "profile.json", record(version="v1")))
    first = files.read()
    assert files.look() is None
    put(tmp_path / "profile.json", record(version="v2"))
    assert of(files.look()) == {"live": "v2"}
    assert files.look() is None
    assert first.live.version == "v1"


def test_another_role_does_not_read_the_profiles_again(tmp_path: Path) -> None:
    files = Files(folder_of(tmp_path, {"live": "v1"}, "v1", "v2"))
    live = files.read().live
    put(tmp_path / "rollout.json", {"schema": 1, "live": "v1", "canary": {"version": "v2", "share": 0.5}})
    found = files.look()
    assert of(found) == {"live": "v1", "canary": "v2"}
    assert found
    assert found.live is live


NOT_GOOD: dict[str, Callable[[], dict[str, Any] | str]] = {
    "truncated": lambda: json.dumps(record(version="v1"))[:-50],
    "empty": lambda: "",
    "another schema": lambda: record(version="v1", schema=99),
    "NaN": lambda: json.dumps(record(version="v1")).replace("0.8", "NaN", 1),
    "inconsistent": lambda: record(version="v1", prior=[1.0]),
    "nested without end": lambda: "[" * 100_000,
}


@pytest.mark.parametrize("name", NOT_GOOD)
def test_of_a_file_that_is_damaged_the_last_good_one_stays(tmp_path: Path, name: str) -> None:
    path = put(tmp_path / "profile.json", record(version="v1"))
    files = Files(path)
    good = files.read().live
    put(path, NOT_GOOD[name]())
    found = files.look()
    assert found
    assert found.live is good
    (fault,) = found.faults
    assert str(path) in fault
    assert "\n" not in fault
    assert files.look() is None  # Said once for each change.
    put(path, record(version="v2"))
    found = files.look()
    assert of(found) == {"live": "v2"}
    assert found
    assert not found.faults


@pytest.mark.parametrize("name", NOT_GOOD)
def test_at_the_start_a_bad_live_profile_is_an_error(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path, {"live": "v1"})
    put(folder / "v1.json", NOT_GOOD[name]())
    with pytest.raises(ProfileError, match=r"v1\.json"):
        Files(folder).read()


def test_a_new_live_one_that_is_bad_changes_nothing(tmp_path: Path) -> None:
    canary = {"version": "v2", "share": 0.5}
    files = Files(folder_of(tmp_path, {"live": "v1", "canary": canary}, "v1", "v2"))
    files.read()
    put(tmp_path / "v3.json", "{")
    put(tmp_path / "rollout.json", {"schema": 1, "live": "v3", "shadow": "v2"})
    found = files.look()
    assert of(found) == {"live": "v1", "canary": "v2"}
    assert found
    assert "v3.json" in found.faults[0]
    put(tmp_path / "v3.json", record(version="v3"))
    assert of(files.look()) == {"live": "v3", "shadow": "v2"}


def test_a_canary_or_shadow_that_is_bad_is_left_out_also_at_the_start(tmp_path: Path) -> None:
    rollout = {"live": "v1", "canary": {"version": "v2", "share": 1.0}, "shadow": "v3"}
    files = Files(folder_of(tmp_path, rollout, "v1"))
    put(tmp_path / "v2.json", "{")
    found = files.read()
    assert of(found) == {"live": "v1"}
    assert ["v2.json" in found.faults[0], "v3.json" in found.faults[1]] == [True, True]
    assert found.chosen("any") is found.live


@pytest.mark.parametrize(
    ("rollout", "text"),
    [
        ("{", "rollout.json"),
        ('{"schema": 1}', "live"),
        ('{"schema": 2, "live": "v1"}', "schema 2, but this router reads 1"),
        ('{"schema": 1, "live": "../v1"}', "live"),
        ('{"schema": 1, "live": "v1", "canary": {"version": "v1", "share": 1.5}}', "canary.share"),
        ('{"schema": 1, "live": "v1", "colour": "red"}', "colour"),
    ],
)
def test_a_rollout_that_cannot_be_read(tmp_path: Path, rollout: str, text: str) -> None:
    folder = folder_of(tmp_path, {"live": "v1"}, "v1")
    files = Files(folder)
    files.read()
    put(folder / "rollout.json", rollout)
    with pytest.raises(ProfileError, match=text):
        read_rollout(folder)
    found = files.look()
    assert of(found) == {"live": "v1"}
    assert found
    assert text in found.faults[0]
    with pytest.raises(ProfileError, match=text):
        Files(folder).read()


def test_a_file_that_says_another_version_is_not_that_version(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"live": "v1"})
    put(folder / "v1.json", record(version="v2"))
    with pytest.raises(ProfileError, match="it says that its version is 'v2'"):
        Files(folder).read()


def test_a_folder_that_vanishes_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "profiles"
    folder.mkdir()
    files = Files(folder_of(folder, {"live": "v1"}, "v1"))
    files.read()
    folder.rename(tmp_path / "elsewhere")
    found = files.look()
    assert of(found) == {"live": "v1"}
    assert found
    assert found.faults


async def test_changes_are_followed_and_a_bug_does_not_end_that(tmp_path: Path) -> None:
    files = Files(put(tmp_path / "profile.json", record(version="v1")))
    files.read()
    seen: asyncio.Queue[str] = asyncio.Queue()

    def adopt(found: InForce) -> None:
        seen.put_nowait(found.live.version)
        assert found.live.version != "v2"

    async with following(files, 0.01, adopt):
        for version in ("v2", "v3"):
            put(tmp_path / "profile.json", record(version=version))
            assert await asyncio.wait_for(seen.get(), 10) == version
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("following")]


# Over a catalogue.


def test_a_profile_that_measured_none_of_the_models_is_refused() -> None:
    last = InForce(loaded("v1", "s"))
    found = InForce(loaded("v2", "m"), loaded("v3", "l"), 0.5, loaded("v4", "m", "s")).among({"s"}, last)
    assert of(found) == {"live": "v1", "shadow": "v4"}
    assert found.chosen("any") is last.live
    assert found.faults == (
        "profile v2: none of its models (m) is in the catalogue",
        "profile v3: none of its models (l) is in the catalogue",
    )


def test_one_that_measured_some_of_them_is_taken() -> None:
    found = InForce(loaded("v2", "s", "m")).among({"s", "x"}, InForce(loaded("v1", "s")))
    assert of(found) == {"live": "v2"}
    assert not found.faults
    assert found.live.unknown({"s", "x"}) == ["m"]


def test_without_another_it_stays_and_that_is_told() -> None:
    found = InForce(loaded("v1", "m")).among({"s"}, None)
    assert of(found) == {"live": "v1"}
    assert len(found.faults) == 1


# What commands change.

NOW = "2026-11-24T00:00:00+00:00"


def test_who_goes_live_is_no_canary_any_more_and_can_be_undone_once() -> None:
    rollout = Rollout(live="v1", canary=Canary(version="v2", share=0.1), shadow="v3")
    live = rollout.made_live("v2", NOW, "no worse")
    assert (live.live, live.previous, live.canary, live.shadow) == ("v2", "v1", None, "v3")
    back = live.rolled_back(NOW)
    assert (back.live, back.previous) == ("v1", None)
    with pytest.raises(FailedPrecondition, match="v1 is live, which was rolled back to at 2026-11-24"):
        back.rolled_back(NOW)
    assert [change.what for change in back.changes] == ["live", "rollback"]


def test_a_rollback_ends_the_canary() -> None:
    rollout = Rollout(live="v2", previous="v1", canary=Canary(version="v3", share=0.1), shadow="v1")
    back = rollout.rolled_back(NOW)
    assert (back.live, back.canary, back.shadow) == ("v1", None, None)


def test_the_live_one_is_no_canary_and_no_shadow() -> None:
    rollout = Rollout(live="v1")
    with pytest.raises(FailedPrecondition, match="v1 is live"):
        rollout.with_canary(Canary(version="v1", share=0.1), NOW)
    with pytest.raises(FailedPrecondition, match="v1 is live"):
        rollout.with_shadow("v1", NOW)
    assert rollout.with_shadow("v2", NOW).with_shadow(None, NOW).shadow is None


def test_a_rollout_reads_as_it_was_written_and_forgets_what_is_long_ago(tmp_path: Path) -> None:
    rollout = Rollout(live="v1")
    for number in range(profiles.MOST_CHANGES + 5):
        rollout = rollout.with_shadow(f"w{number}", NOW)
    with profiles.changing(tmp_path) as write:
        write(rollout)
    assert read_rollout(tmp_path) == rollout
    assert len(rollout.changes) == profiles.MOST_CHANGES
    assert rollout.changes[-1].version == rollout.shadow


def test_a_write_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rollout.json"
    profiles.write(path, b"old")

    def fail(handle: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        profiles.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_changes_at_once_are_both_kept(tmp_path: Path) -> None:
    with profiles.changing(tmp_path) as write:
        write(Rollout(live="v0"))

    def change(number: int) -> None:
        with profiles.changing(tmp_path) as write:
            before = read_rollout(tmp_path)
            write(before.with_shadow(f"v{number}", NOW))

    threads = [threading.Thread(target=change, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = {change.version for change in read_rollout(tmp_path).changes}
    assert kept == {f"v{number}" for number in range(1, 9)}
