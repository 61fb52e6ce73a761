"""Keys of servers: where they come from, when they change, and that nobody sees them; and Retry-After."""

from __future__ import annotations

import email.utils
import os
import time
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.http import Key, KeyAuth, KeyUnusable, make_client, read_some, retry_after


def test_a_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", " sk-1\n")
    assert Key(env="SOME_KEY").value == "sk-1"


def test_without_a_place_there_is_no_key() -> None:
    key = Key()
    assert key.value == ""
    assert key.hide("abc") == "abc"


def test_a_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("one")
    key = Key(file=file)
    assert key.value == "one"
    # As Kubernetes does it: another file takes its place.
    (tmp_path / "new").write_text("two")
    os.replace(tmp_path / "new", file)
    assert key.value == "two"


@pytest.mark.parametrize("after", [None, "", "   ", "two words", "no\x00key"])
def test_while_a_file_holds_no_key_the_last_one_is_kept(after: str | None, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("one")
    key = Key(file=file)
    file.unlink() if after is None else file.write_text(after)
    assert key.value == "one"
    file.write_text("three")
    assert key.value == "three"


@pytest.mark.parametrize(
    "content", [b"", b" \n", b"two words", b"a\nb", b"\xff\xfe", "schlüssel".encode(), b"a\x00b"]
)
def test_what_is_no_key_is_refused_and_not_shown(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(KeyUnusable, match=f"key file {file}: ") as caught:
        Key(file=file)
    assert not content.strip() or content.decode("latin-1").strip() not in str(caught.value)


def test_a_missing_file_or_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyUnusable, match=f"key file {tmp_path}/none: No such file"):
        Key(file=tmp_path / "none")
    with pytest.raises(KeyUnusable, match="environment variable NO_SUCH_KEY: there is no key"):
        Key(env="NO_SUCH_KEY")


async def test_requests_carry_the_key_and_nothing_shows_it(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-secret")
    key = Key(file=file)
    async with make_client("http://localhost/v1", key, 2, 1.0) as client:
        request = next(KeyAuth(key).auth_flow(client.build_request("POST", "/x")))
        shown = repr([key, client, request, request.headers])
    assert request.url == "http://localhost/v1/x"
    assert request.headers["Authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in shown
    assert key.hide("your key sk-secret is bad") == "your key [key] is bad"


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("0", 0),
        ("2.5", 2.5),
        (" 7 ", 7),
        ("-3", 0),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("1e300", 86400),
    ],
)
def test_retry_after_in_seconds(said: str, seconds: float | None) -> None:
    assert retry_after(httpx.Response(429, headers={"Retry-After": said})) == seconds


def test_retry_after_as_a_date() -> None:
    def after(offset: float) -> float | None:
        date = email.utils.formatdate(time.time() + offset, usegmt=True)
        return retry_after(httpx.Response(429, headers={"Retry-After": date}))

    later = after(1000)
    assert later is not None
    assert 900 < later <= 1000
    assert after(-1000) == 0
    assert retry_after(httpx.Response(429)) is None


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=40))
def test_no_retry_after_is_a_crash(said: str) -> None:
    seconds = retry_after(httpx.Response(429, headers={"Retry-After": said}))
    assert seconds is None or seconds >= 0


async def test_only_the_beginning_of_an_error_is_read() -> None:
    async def endless():  # type: ignore[no-untyped-def]
        while True:
            yield b"x" * 1000

    assert len(await read_some(httpx.Response(500, content=endless()), most=2500)) == 2500
