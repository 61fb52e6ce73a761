"""For all tests: hypothesis without deadlines, and where nothing may be skipped, a skipped test fails."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

# A machine that is busy is no reason to fail: no test asserts times.
settings.register_profile("isoflop", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("isoflop")

MAY_SKIP = {"shared_data", "gpu", "peer"}
"""Marks of tests that need what a machine may lack."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure where ISOFLOP_NO_SKIPS is set, as in `.ci/run`."""
    report = yield
    marks = {mark.name for mark in item.iter_markers()}
    if report.skipped and os.environ.get("ISOFLOP_NO_SKIPS") and not marks & MAY_SKIP:
        report.outcome = "failed"
        report.longrepr = f"skipped, and nothing may be: {report.longrepr}"
    return report
