"""What people see who start the suite and use the command: answers, or one line that says what to do."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from isoflop import AsyncClient
from isoflop.errors import Unavailable

from tests.cluster.conftest import Suite, distributed, triton_catalog
from tests.cluster.processes import ROOT, Process, free_ports, run

pytestmark = pytest.mark.cluster

SERVICES = (
    "services.generation",
    "services.verification",
    "services.difficulty",
    "services.aggregation",
    "router",
)


def one_line(text: str) -> str:
    """The only line of it; no traceback."""
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    return lines[0]


def test_the_command_answers_with_plan_usage_and_flops(embedded_suite: Suite) -> None:
    done = run(
        "isoflop", "solve", "17+24*3", "--json", "--effort", "high", ISOFLOP_ADDRESS=embedded_suite.address
    )
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert answer["answer"] == "89"
    assert answer["rounds"][0]["reason"]
    assert answer["bill"]["flops"] > 0
    assert answer["bill"]["lines"][0]["flops"] >= 0


def test_the_command_prints_for_people(embedded_suite: Suite) -> None:
    for command in (["solve", "17+24*3"], ["plan", "17+24*3"], ["models"], ["frontier"]):
        done = run("isoflop", *command, "--address", embedded_suite.address)
        assert done.returncode in (0, 3), done.stderr
        assert done.stdout.strip()
        assert not done.stderr


def test_errors_of_the_command_are_one_sentence(embedded_suite: Suite) -> None:
    (port,) = free_ports(1)
    cases = (
        (["solve", "1+1", "--address", f"127.0.0.1:{port}"], 1, "isoflop up"),
        (["solve", "", "--address", embedded_suite.address], 1, "prompt"),
        (["solve", "1+1", "--model", "nobody", "--address", embedded_suite.address], 1, "abacus-s"),
    )
    for command, status, says in cases:
        done = run("isoflop", *command)
        assert done.returncode == status
        assert says in one_line(done.stderr)


@pytest.mark.parametrize("module", SERVICES)
def test_a_port_in_use_is_one_line(module: str, embedded_suite: Suite) -> None:
    done = run(module, "--address", embedded_suite.address, "--log-level", "error")
    assert done.returncode == 1
    assert embedded_suite.address in one_line(done.stderr)


@pytest.mark.parametrize("module", SERVICES)
def test_a_wrong_setting_is_one_line(module: str) -> None:
    done = run(module, "--drain-seconds", "soon")
    assert done.returncode == 2
    assert "drain_seconds" in one_line(done.stderr)


def test_a_setting_in_the_environment_is_checked() -> None:
    done = run("router", ISOFLOP_ROUTER_MAX_SAMPLES="many")
    assert done.returncode == 2
    assert "max_samples" in one_line(done.stderr)


def test_a_missing_or_damaged_model_is_one_line(tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.yaml"
    model = {"name": "m", "backend": "llamacpp", "path": "m.gguf"}
    catalog.write_text(yaml.safe_dump({"models": [model]}))
    for content in (None, b"", b"GGUF and then nothing", (ROOT / "models/abacus-s.gguf").read_bytes()[:9000]):
        if content is not None:
            (tmp_path / "m.gguf").write_bytes(content)
        for command in (("isoflop", "up"), ("services.generation",)):
            done = run(*command, "--catalog", str(catalog), "--address", "127.0.0.1:0")
            assert done.returncode == 1
            assert "m.gguf" in one_line(done.stderr)


@pytest.mark.parametrize(
    ("option", "content"),
    [
        ("--catalog", "models: 7"),
        ("--catalog", "models: [{name: m, backend: magic}]"),
        ("--profile", '{"schema": 99}'),
        ("--profile", '{"schema":'),
        ("--estimator", "[]"),
    ],
)
def test_a_wrong_file_is_one_line(option: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    done = run("isoflop", "up", option, str(path), "--address", "127.0.0.1:0")
    assert done.returncode == 1
    assert str(path) in one_line(done.stderr)


def test_sigterm_ends_a_service_cleanly(tmp_path: Path) -> None:
    process = Process(["isoflop", "up"], tmp_path)
    assert process.stop() == 0
    assert "Traceback" not in process.log()


def test_another_gguf_works_by_a_catalogue_entry(tmp_path: Path) -> None:
    """One's own model: a copy under another name stands for a file that nobody has calibrated."""
    shutil.copy(ROOT / "models/abacus-m.gguf", tmp_path / "own.gguf")
    (tmp_path / "catalog.yaml").write_text("models: [{name: own, backend: llamacpp, path: own.gguf}]")
    process = Process(["isoflop", "up", "--catalog", str(tmp_path / "catalog.yaml")], tmp_path)
    try:
        done = run("isoflop", "solve", "17+24*3", "--json", "--samples", "8", "--address", process.address)
        assert json.loads(done.stdout)["answer"] == "89"
        done = run("isoflop", "solve", "17+24*3", "--json", "--address", process.address)
        assert json.loads(done.stdout)["rounds"][0]["action"]["model"] == "own"
    finally:
        process.stop()


async def test_a_triton_that_is_down_is_unavailable(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(yaml.safe_dump(triton_catalog(f"127.0.0.1:{port}")))
    with ExitStack() as stack:
        suite = distributed(stack, tmp_path, catalog)
        async with AsyncClient(suite.address) as client:
            with pytest.raises(Unavailable, match=r"Triton at .* does not answer"):
                await client.solve("17+24*3", samples=2)


async def test_services_that_are_down_are_unavailable(tmp_path: Path) -> None:
    ports = free_ports(4)
    names = ("generation", "verification", "difficulty", "aggregation")
    where = [w for name, port in zip(names, ports, strict=True) for w in (f"--{name}", f"127.0.0.1:{port}")]
    router = Process(["router", *where], tmp_path)
    try:
        async with AsyncClient(router.address) as client:
            with pytest.raises(Unavailable, match="the generation service at"):
                await client.solve("17+24*3")
    finally:
        router.stop()
