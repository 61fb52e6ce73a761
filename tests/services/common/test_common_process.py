"""A service as a process: what it says and how it ends, whatever it is told."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from service_process import Service

from services.common.settings import MODELS

VERIFICATION = "services.verification"
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Its exit status and the lines of its standard error."""
    _, errors = process.communicate(timeout=30)
    assert "Traceback" not in errors
    return process.returncode, errors.splitlines()


def serving(process: subprocess.Popen[str], module: str = VERIFICATION) -> str:
    """Wait until it serves; the address."""
    assert process.stdout is not None
    before, _, address = process.stdout.readline().rstrip("\n").partition(f"{module}: serving on ")
    assert (before, address) != ("", "")
    return address


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_ends_it_with_status_0(service: Service, number: signal.Signals) -> None:
    process = service(VERIFICATION, "--address", "127.0.0.1:0")
    assert serving(process).startswith("127.0.0.1:")
    process.send_signal(number)
    assert ended(process) == (0, [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_second_signal_ends_it_at_once(service: Service, number: signal.Signals) -> None:
    process = service(VERIFICATION, "--address", "127.0.0.1:0", "--drain-notice-seconds", "100")
    address = serving(process)
    process.send_signal(number)
    stub = health_pb2_grpc.HealthStub(channel := grpc.insecure_channel(address))
    deadline = time.monotonic() + 20
    while stub.Check(health_pb2.HealthCheckRequest()).status != NOT_SERVING:
        assert time.monotonic() < deadline
    channel.close()
    assert process.poll() is None
    process.send_signal(number)
    assert ended(process) == (-number, [])


def test_a_second_server_on_the_same_port_is_refused_in_one_line(service: Service) -> None:
    first = service(VERIFICATION, "--address", "127.0.0.1:0")
    address = serving(first)
    status, lines = ended(service(VERIFICATION, "--address", address))
    assert status == 1
    assert lines == [
        f"services.verification: cannot listen on {address}: port in use, or not ours; "
        "choose another with --address"
    ]
    first.terminate()
    assert ended(first) == (0, [])


def test_a_metrics_port_in_use_is_refused_in_one_line(service: Service, taken_port: int) -> None:
    process = service(VERIFICATION, "--address", "127.0.0.1:0", "--metrics-port", str(taken_port))
    status, (line,) = ended(process)
    assert status == 1
    assert line.startswith(f"services.verification: cannot serve metrics on port {taken_port} ")


def test_a_port_in_use_ends_generation_although_its_models_are_loaded(
    service: Service, taken_port: int, tmp_path: Path
) -> None:
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(f"models: [{{name: m, backend: llamacpp, path: {MODELS / 'abacus-m.gguf'}}}]")
    process = service(
        "services.generation", "--address", f"127.0.0.1:{taken_port}", "--catalog", str(catalog)
    )
    status, (line,) = ended(process)
    assert status == 1
    assert "cannot listen on" in line


def test_a_missing_model_file_is_one_line_although_another_is_loaded(
    service: Service, tmp_path: Path
) -> None:
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(
        f"models: [{{name: m, backend: llamacpp, path: {MODELS / 'abacus-m.gguf'}}},"
        " {name: lost, backend: llamacpp, path: lost.gguf}]"
    )
    process = service("services.generation", "--address", "127.0.0.1:0", "--catalog", str(catalog))
    status, (line,) = ended(process)
    assert status == 1
    assert line == f"services.generation: model lost: there is no file {tmp_path / 'lost.gguf'}"


def test_a_broken_estimator_is_one_line(service: Service, tmp_path: Path) -> None:
    (tmp_path / "difficulty.json").write_text("{}")
    process = service("services.difficulty", "--estimator", str(tmp_path / "difficulty.json"))
    status, (line,) = ended(process)
    assert status == 1
    assert line.startswith(f"services.difficulty: estimator {tmp_path / 'difficulty.json'}: not an estimator")


def test_a_wrong_setting_on_the_command_line_is_one_line_and_status_2(service: Service) -> None:
    status, (line,) = ended(service(VERIFICATION, "--metrics-port", "many"))
    assert status == 2
    assert line.startswith("setting metrics_port: ")
    assert line.endswith("(given: 'many')")


def test_a_wrong_setting_in_the_environment_is_one_line_and_status_2(service: Service) -> None:
    status, (line,) = ended(service(VERIFICATION, ISOFLOP_VERIFICATION_MAX_CHAINS="0"))
    assert status == 2
    assert line.startswith("setting max_chains: ")


def test_the_environment_is_heard_and_the_command_line_wins(service: Service, taken_port: int) -> None:
    taken = f"127.0.0.1:{taken_port}"
    status, (line,) = ended(service(VERIFICATION, ISOFLOP_VERIFICATION_ADDRESS=taken))
    assert status == 1
    assert f"cannot listen on {taken}" in line
    process = service(VERIFICATION, "--address", "127.0.0.1:0", ISOFLOP_VERIFICATION_ADDRESS=taken)
    assert serving(process) != taken
    process.terminate()
    assert ended(process) == (0, [])
