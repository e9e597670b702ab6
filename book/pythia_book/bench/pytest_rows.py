"""A pytest plugin that appends a row to a file for every test, as soon as it ends.

    python -m pytest -p pythia_book.bench.pytest_rows --rows FILE ...

So the results survive if the run is stopped. Works with pytest-xdist.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from pythia_book.bench.rows import write_rows

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --rows; and accept the project's `timeout` setting where pytest-timeout is missing."""
    parser.addoption("--rows", metavar="FILE", help="append one JSON object per test")
    if importlib.util.find_spec("pytest_timeout") is None:
        parser.addini("timeout", "seconds per test; has no effect without pytest-timeout")


def pytest_configure(config: pytest.Config) -> None:
    """Write in the process that collects the results, not in xdist's workers."""
    if config.option.rows and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Writer(Path(config.option.rows)))


class _Writer:
    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self._write(report, report.duration)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(report, 0.0)

    def _write(self, report: pytest.TestReport | pytest.CollectReport, seconds: float) -> None:
        row = {"kind": "test", "name": report.nodeid, "outcome": report.outcome, "seconds": seconds}
        if isinstance(report.longrepr, tuple):  # file, line and why it was skipped
            row["why"] = report.longrepr[2]
        elif report.longrepr is not None:
            crash = getattr(report.longrepr, "reprcrash", None)
            lines = str(crash.message if crash else report.longrepr).strip().splitlines()
            row["why"] = (lines[0] if crash else lines[-1])[:300]
        write_rows([row], self._path, lambda _: None)
