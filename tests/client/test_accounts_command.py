"""The commands that tell what was spent."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import pty
import sys
import time
from pathlib import Path

import pytest
from isoflop.errors import InvalidArgument, NotFound
from isoflop.jsonform import to_dict
from isoflop.v1.router_pb2 import GetBillRequest, GetBillResponse, GetBudgetRequest, GetQueryRequest
from ran import Run, words
from scripted_answers import ALL_TOGETHER, BILL, KEPT, STANDING
from scripted_router import ScriptedRouter

COMMAND = Path(sys.executable).with_name("isoflop")

BY = ["--by", "tenant,model,day"]


async def on_a_terminal(*arguments: str, columns: int, **environment: str) -> str:
    """What the command shows there."""
    ours, theirs = pty.openpty()
    child = await asyncio.create_subprocess_exec(
        COMMAND, *arguments, stdout=theirs, env={**os.environ, "COLUMNS": str(columns), **environment}
    )
    os.close(theirs)

    def read() -> bytes:
        shown = b""
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:  # How Linux says that the other end is closed.
            os.close(ours)
        return shown

    shown = await asyncio.to_thread(read)
    assert await child.wait() == 0
    return shown.decode()


# Budgets.


async def test_budget(router: ScriptedRouter, run: Run) -> None:
    for _ in range(3):
        router.expect("GetBudget", STANDING)
    ended = await run("budget")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("acme/month  2026-11-01 to 2026-12-01 UTC, ")
    assert "one more TFLOP would buy 180 right answers" in ended.out
    assert "\x1b" not in ended.out
    await run("budget", "--tenant", "acme")
    assert router.requests == [GetBudgetRequest(), GetBudgetRequest(tenant="acme")]
    assert json.loads((await run("budget", "--json")).out) == to_dict(STANDING)


async def test_a_bar_where_the_terminal_has_no_blocks(router: ScriptedRouter, address: str) -> None:
    for _ in range(2):
        router.expect("GetBudget", STANDING)
    for encoding, bar in (("ascii", "###+...."), ("utf-8", "███▒░░░░")):
        shown = await on_a_terminal(
            *("budget", "--address", address),
            columns=100,
            NO_COLOR="1",
            PYTHONUTF8="0",
            PYTHONIOENCODING=encoding,
        )
        assert bar in shown
        assert shown.isascii() == (encoding == "ascii")


# Bills.


async def test_bill(router: ScriptedRouter, run: Run) -> None:
    router.expect("GetBill", BILL)
    router.expect("GetBill", ALL_TOGETHER)
    ended = await run("bill", *BY, "--since", "2026-11-01", "--until", "2026-11-03T12:00Z")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert words(lines[1]).startswith("globex, inc abacus-s 2026-11-01 30 ")
    # 1,200 and 30, of which 15 are in both.
    assert words(lines[3]).startswith("total 1,215 120,300 80,000 1,238,567 3,210 4.20 T ")
    by, together = router.requests
    assert list(by.by) == ["tenant", "model", "day"]
    assert not together.by
    for asked in (by, together):
        assert (asked.since.seconds, asked.until.seconds) == (1793491200, 1793707200)


async def test_a_bill_of_all_is_asked_for_once(router: ScriptedRouter, run: Run) -> None:
    router.expect("GetBill", ALL_TOGETHER)
    ended = await run("bill")
    assert words(ended.out.splitlines()[1]).startswith("1,215 120,000 ")
    assert router.requests == [GetBillRequest()]


async def test_a_bill_for_machines(router: ScriptedRouter, run: Run) -> None:
    for _ in range(2):
        router.expect("GetBill", BILL)
    assert json.loads((await run("bill", *BY, "--json")).out) == to_dict(BILL)
    ended = await run("bill", *BY, "--csv")
    assert (ended.code, ended.err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(ended.out, newline="")))
    assert [row["tenant"] for row in rows] == ["globex, inc", "acme"]
    assert float(rows[1]["flops"]) == BILL.rows[0].usage.flops
    assert [list(request.by) for request in router.requests] == [["tenant", "model", "day"]] * 2


async def test_since_some_time_ago(router: ScriptedRouter, run: Run) -> None:
    for _ in range(2):
        router.expect("GetBill", GetBillResponse())
    before = time.time()
    assert (await run("bill", "--since", "7d")).out == "nothing was charged\n"
    await run("bill", "--since", "month")
    after = time.time()
    week, month = (request.since.ToNanoseconds() / 1e9 for request in router.requests)
    assert before - 1e-3 <= week + 7 * 86400 <= after + 1e-3
    assert time.gmtime(month)[2:6] == (1, 0, 0, 0)
    assert month <= after


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--by", "colour"], "'colour' is none of tenant, tier, stage, model, strategy, day"),
        (["--by", ""], "'' is none of tenant, tier, stage, model, strategy, day"),
        (["--by", "model,tenant,model"], "model is there twice: give it once"),
        (["--since", "yesterday"], "'yesterday' is no time: write a date as 2026-11-01"),
        (["--until", "2026-02-30"], "'2026-02-30' is no time"),
        (["--since", "9999999d"], "'9999999d' is too long ago"),
        (["--csv", "--json"], "--csv and --json exclude each other"),
    ],
    ids=" ".join,
)
async def test_a_wrong_command_line(run: Run, arguments: list[str], complaint: str) -> None:
    ended = await run("bill", *arguments)
    assert ended.code == 2
    assert complaint in words(ended.err)
    assert ended.out == ""


async def test_what_the_router_refuses(router: ScriptedRouter, run: Run) -> None:
    router.expect("GetBill", InvalidArgument("until", "is before since"))
    ended = await run("bill", "--since", "1d", "--until", "2d")
    assert (ended.code, ended.out, ended.err) == (1, "", "isoflop: until: is before since\n")


async def test_a_bill_fits_the_terminal(router: ScriptedRouter, address: str) -> None:
    for _ in range(3):
        router.expect("GetBill", BILL)
        router.expect("GetBill", ALL_TOGETHER)
    wide = await on_a_terminal("bill", *BY, "--address", address, columns=140)
    narrow = await on_a_terminal("bill", *BY, "--address", address, columns=100)
    plain = await on_a_terminal("bill", *BY, "--address", address, columns=100, NO_COLOR="1")
    assert "completion" in wide
    assert "completion" not in narrow
    assert words(plain.splitlines()[0]).startswith("tenant model day queries tokens FLOPs")
    assert all(len(line) <= 100 for line in plain.splitlines())
    assert "\x1b[1mtotal " in narrow
    assert "\x1b" not in plain


# A query.


async def test_explain(router: ScriptedRouter, run: Run) -> None:
    for _ in range(2):
        router.expect("GetQuery", KEPT)
    router.expect("GetQuery", NotFound("there is no query 'q9', or it is too long ago"))
    ended = await run("explain", "q1")
    assert (ended.code, ended.err) == (0, "")
    assert "asked by    acme, tier gold\n" in ended.out
    assert "  came      lost: its router died" in ended.out
    assert "\x1b" not in ended.out
    assert max(map(len, ended.out.splitlines())) <= 100
    assert json.loads((await run("explain", "q1", "--json")).out) == to_dict(KEPT)
    ended = await run("explain", "q9")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == "isoflop: there is no query 'q9', or it is too long ago\n"
    assert router.requests[0] == GetQueryRequest(query_id="q1")


async def test_explain_on_terminals(router: ScriptedRouter, address: str) -> None:
    for _ in range(3):
        router.expect("GetQuery", KEPT)
    wide = await on_a_terminal("explain", "q1", "--address", address, columns=200, NO_COLOR="1")
    narrow = await on_a_terminal("explain", "q1", "--address", address, columns=60, NO_COLOR="1")
    colours = await on_a_terminal("explain", "q1", "--address", address, columns=200)
    assert max(map(len, wide.splitlines())) <= 100
    story = narrow.partition("stage ")[0].splitlines()
    assert max(map(len, story)) <= 60
    assert words(narrow) == words(wide)
    assert "\x1b[32manswered\x1b[0m" in colours
    assert "\x1b" not in wide
