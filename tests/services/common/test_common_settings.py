"""Settings: from the command line before the environment before the defaults; what is wrong is named."""

from __future__ import annotations

from argparse import ArgumentParser

import pytest

from services.common.settings import ServiceSettings, load, options
from services.difficulty.settings import DifficultySettings
from services.generation.settings import GenerationSettings
from services.verification.settings import VerificationSettings


def told(*arguments: str, kind: type[ServiceSettings] = VerificationSettings) -> ServiceSettings:
    """What `python -m` of a service would make of its command line."""
    parser = ArgumentParser()
    source = options(kind, parser)
    return load(kind, source, parser.parse_args(arguments))


def test_the_command_line_wins_over_the_environment_and_that_over_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert told().drain_seconds == 5.0
    monkeypatch.setenv("ISOFLOP_VERIFICATION_DRAIN_SECONDS", "2")
    assert told().drain_seconds == 2.0
    assert told("--drain-seconds", "1").drain_seconds == 1.0


def test_each_service_has_an_environment_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOFLOP_DIFFICULTY_LOG_LEVEL", "debug")
    assert told(kind=DifficultySettings).log_level == "debug"
    assert told(kind=GenerationSettings).log_level == "info"


def test_the_services_have_ports_of_their_own() -> None:
    kinds = (GenerationSettings, VerificationSettings, DifficultySettings)
    assert len({told(kind=kind).address for kind in kinds}) == 3


@pytest.mark.parametrize(
    ("option", "value", "name"),
    [
        ("--metrics-port", "70000", "metrics_port"),
        ("--metrics-port", "-1", "metrics_port"),
        ("--log-level", "loud", "log_level"),
        ("--log-format", "xml", "log_format"),
        ("--drain-seconds", "nan", "drain_seconds"),
        ("--address", "nonsense", "address"),
        ("--address", "127.0.0.1", "address"),
        ("--address", "127.0.0.1:", "address"),
        ("--address", "127.0.0.1:99999", "address"),
        ("--address", ":50051", "address"),
        ("--address", "127.0.0.1:http", "address"),
    ],
)
def test_a_wrong_value_is_one_line_and_status_2(
    option: str, value: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        told(f"{option}={value}")
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"setting {name}: ")
    assert repr(value) in line


def test_each_wrong_value_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        told("--metrics-port", "many", "--log-level", "loud")
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_long_wrong_value_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        told("--log-level", "x" * 100_000)
    assert len(capsys.readouterr().err) < 400


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:50051", "localhost:65535", "0.0.0.0:1"])
def test_right_addresses_are_taken(address: str) -> None:
    assert told("--address", address).address == address


def test_an_unknown_option_is_status_2_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        told("--colour", "red")
    assert caught.value.code == 2
    assert "--colour" in capsys.readouterr().err


def test_help_says_what_each_setting_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        told("--help")
    assert caught.value.code == 0
    help_text = " ".join(capsys.readouterr().out.split())
    for name, field in VerificationSettings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in help_text
        assert field.description
        assert field.description.split(";")[0] in help_text
