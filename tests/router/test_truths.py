"""What is kept of finished queries and of truths, and that it outlives what it should."""

from __future__ import annotations

import math
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from isoflop.errors import FailedPrecondition, Unavailable
from isoflop.v1.common_pb2 import ANSWER_TYPE_PATTERN, AnswerFormat, Message
from isoflop.v1.router_pb2 import Budget, Filters, SolveRequest
from kept import kept

from router.truths import DAY, SqliteTruths, Truth, read, without_text

MakeTruths = Callable[..., SqliteTruths]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "feedback.db"


@pytest.fixture
async def make_truths(path: Path) -> AsyncIterator[MakeTruths]:
    made: list[SqliteTruths] = []

    def make(clock: Callable[[], float] = lambda: 2000.0, days: float = 90.0) -> SqliteTruths:
        made.append(SqliteTruths(path, days, clock))
        return made[-1]

    yield make
    for truths in made:
        await truths.close()


async def test_a_query_comes_back_as_it_was(make_truths: MakeTruths, path: Path) -> None:
    truths = make_truths()
    asked = SolveRequest(
        answer_format=AnswerFormat(type=ANSWER_TYPE_PATTERN, pattern="x=(.*)"),
        budget=Budget(flops=2e9),
        filters=Filters(models=["s"], seed=1 << 60),
    )
    first, second = kept("q1", asked=asked, seconds=1.5), kept("q2", ended=1001.0)
    await truths.add(second)
    await truths.add(first)
    assert await truths.get("q1") == first
    assert await truths.get("q3") is None
    assert read(path) == [first, second]
    # Another process does not have the same catalogue object.
    await make_truths().add(kept("q4", catalog=replace(first.catalog)))
    assert [answered.catalog for answered in read(path)] == [first.catalog] * 3
    with sqlite3.connect(path) as connection:
        assert connection.execute("select count(*) from catalogs").fetchone()[0] == 1


async def test_a_truth_replaces_the_one_before(make_truths: MakeTruths) -> None:
    truths = make_truths()
    await truths.add(kept())
    assert await truths.tell("q1", Truth(True, "421"))
    assert not await truths.tell("q1", Truth(True, "421"))
    assert not await truths.tell("q1", Truth(False, "7"))
    assert not await truths.tell("unknown", Truth(True, None))
    found = await truths.get("q1")
    assert found == replace(kept(), truth=Truth(False, "7"))


async def test_drift_is_of_the_truths_told_last(make_truths: MakeTruths) -> None:
    now = iter(range(1000, 2000))
    truths = make_truths(lambda: next(now))
    assert math.isnan(await truths.drift(10))
    for number, right in enumerate([True, True, True, False]):
        await truths.add(kept(f"q{number}"))
        await truths.tell(f"q{number}", Truth(right, None))
    assert await truths.drift(10) == pytest.approx(0.75 - 0.75)
    assert await truths.drift(2) == pytest.approx(0.5 - 0.75)
    await truths.tell("q3", Truth(True, None))
    assert await truths.drift(2) == pytest.approx(1 - 0.75)


async def test_a_new_file_is_its_owner_s_alone(make_truths: MakeTruths, path: Path) -> None:
    await make_truths().add(kept())
    assert {file.stat().st_mode & 0o077 for file in path.parent.iterdir()} == {0}


async def test_what_is_too_old_is_deleted(make_truths: MakeTruths, path: Path) -> None:
    now = 1000.0
    truths = make_truths(lambda: now, days=2)
    await truths.add(kept("old"))
    now += DAY
    await truths.add(kept("newer", ended=now))
    assert [answered.query_id for answered in read(path)] == ["old", "newer"]
    now += DAY + 1
    await truths.add(kept("newest", ended=now))
    assert [answered.query_id for answered in read(path)] == ["newer", "newest"]


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from kept import kept
from router.truths import SqliteTruths, Truth

async def main():
    truths = SqliteTruths(Path(sys.argv[1]), 90.0, lambda: 2000.0)
    await truths.add(kept("q1"))
    await truths.add(kept("q2"))
    await truths.tell("q1", Truth(True, "421"))
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_what_was_kept_outlives_a_killed_process(path: Path) -> None:
    here = Path(__file__).parent
    places = [str(here), str(here.parents[1]), *sys.path]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], env={"PYTHONPATH": ":".join(places)}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert read(path) == [replace(kept("q1"), truth=Truth(True, "421")), kept("q2")]


async def test_two_routers_share_a_file(make_truths: MakeTruths) -> None:
    one, other = make_truths(), make_truths()
    await one.add(kept("q1"))
    await other.add(kept("q2"))
    assert await other.tell("q1", Truth(True, None))
    found = await one.get("q1")
    assert found
    assert found.truth == Truth(True, None)


async def test_a_failing_file_is_told(make_truths: MakeTruths, path: Path) -> None:
    truths = make_truths()
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("begin immediate")
        with pytest.raises(Unavailable, match="locked"):
            await truths.add(kept())
        other.execute("rollback")
    await truths.add(kept())
    assert await truths.get("q1") == kept()


@pytest.mark.parametrize("content", ["not a database, but longer than its header would be" * 4, None])
def test_a_file_that_cannot_be_used_is_refused(path: Path, content: str | None) -> None:
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)
    with pytest.raises(FailedPrecondition, match=str(path)):
        SqliteTruths(path, 90.0)
    with pytest.raises(FailedPrecondition, match=str(path)):
        read(path)
    assert content is None or path.read_text() == content


def test_a_file_of_another_version_is_refused_and_left(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("pragma user_version = 7")
    for use in (lambda: SqliteTruths(path, 90.0), lambda: read(path)):
        with pytest.raises(FailedPrecondition, match="its form is 7"):
            use()


def test_to_read_makes_no_file(path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="there is no file"):
        read(path)
    assert not path.exists()


def test_no_text_of_the_query_is_kept() -> None:
    request = SolveRequest(request_id="r", prompt="secret", messages=[Message(role="user", content="secret")])
    assert without_text(request) == SolveRequest()
    assert request.prompt == "secret"
