"""`python3 -m unittest` runs the fast tests: pytest does it, and tells unittest of each.

Discovery finds this module at the top, and asks it for tests; those in tests/ are pytest's.
"""

from __future__ import annotations

import importlib.util
import os
import unittest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
NEEDED = ("hypothesis", "jsonschema", "prctl", "pytest", "pytest_timeout")
ADVICE = (
    "the tests need them: `make check` installs all of it in .venv and runs the fast tests, or use "
    "python3 -m pip install -e '.[test]'"
)


def reported(name: str, says: str = "") -> unittest.TestCase:
    """A test that pytest runs, as unittest is told of it; with `says`, one that fails by that."""

    def run() -> None:
        raise AssertionError(says)

    run.__name__ = name
    return unittest.FunctionTestCase(run)


class Reporter:
    """A plugin of pytest that passes on what becomes of each test."""

    def __init__(self, result: unittest.TestResult) -> None:
        self._result = result
        self._test: unittest.TestCase | None = None
        self._told = False

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self._test, self._told = reported(nodeid), False
        self._result.startTest(self._test)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A part of it has ended: its set-up, itself, its tear-down."""
        assert self._test is not None
        if report.failed:
            tell = self._result.addFailure if report.when == "call" else self._result.addError
            tell(self._test, _error(report.longreprtext))
        elif report.skipped:
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
            self._result.addSkip(self._test, str(why))
        else:
            return
        self._told = True

    def pytest_runtest_logfinish(self) -> None:
        """It has ended."""
        assert self._test is not None
        if not self._told:
            self._result.addSuccess(self._test)
        self._result.stopTest(self._test)

    def pytest_collectreport(self, report: Any) -> None:
        """A module was read: one that cannot be is an error, not nothing."""
        if report.failed:
            self._result.addError(reported(report.nodeid), _error(report.longreprtext))

    def pytest_runtest_protocol(self, item: Any) -> None:
        """Heed `python3 -m unittest --failfast`."""
        if self._result.shouldStop:
            item.session.shouldstop = "unittest has been told to stop"


class Fast(unittest.TestSuite):
    """All that `pytest -m 'not slow'` runs."""

    def run(self, result: unittest.TestResult, debug: bool = False) -> unittest.TestResult:
        """Let pytest run them. What it says of itself would stand between the lines of unittest."""
        del debug
        import pytest

        where = os.path.join(HERE, "tests")
        words = ["-p", "no:terminal", "-o", "addopts=--strict-markers --strict-config", "--rootdir", HERE]
        code = pytest.main([*words, "-m", "not slow", where], plugins=[Reporter(result)])
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and result.wasSuccessful():
            result.addError(reported("tests"), _error(f"pytest has ended with {code!r}"))
        return result


def _error(text: str) -> Any:
    return AssertionError, AssertionError(text), None


def load_tests(
    loader: unittest.TestLoader, tests: unittest.TestSuite, pattern: str | None
) -> unittest.TestSuite:
    """What unittest asks a module for."""
    del loader, tests, pattern
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return unittest.TestSuite([reported("tests", f"{', '.join(missing)}: not installed; {ADVICE}")])
    return Fast()
