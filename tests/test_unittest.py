"""`python3 -m unittest` in a checkout, as JobMon 0.7 documented it, runs the fast tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import kit
import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

TOP = os.path.dirname(kit.HERE)

SAMPLE = """
import pytest

def test_good(): pass
def test_bad(): assert [1] == [2]
@pytest.mark.slow
def test_slow(): assert False
@pytest.mark.skip("no need")
def test_skipped(): assert False
@pytest.fixture
def broken(): raise OSError("no setup")
def test_unprepared(broken): pass
@pytest.mark.parametrize("n", range(3))
def test_many(n): pass
"""


def run(directory: Path | str, *words: str, **environ: str) -> tuple[int, str]:
    """Run `python -m unittest` there; its exit status, and what it says."""
    done = subprocess.run(
        [sys.executable, *words, "-m", "unittest"],
        cwd=directory,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=4 * kit.DEADLINE,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with few tests."""
    for name in ("test_fast.py", "pyproject.toml"):
        shutil.copy(os.path.join(TOP, name), tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "jobmon").mkdir()
    (tmp_path / "tests" / "test_sample.py").write_text(SAMPLE)
    return tmp_path


@pytest.mark.slow
def test_each_test_counts(checkout: Path) -> None:
    """Their number, failures, errors and skips are unittest's, slow ones are left out, and the end is 1."""
    code, told = run(checkout)

    assert code == 1
    assert "\nRan 7 tests in " in told
    assert told.endswith("\nFAILED (failures=1, errors=1, skipped=1)\n")
    assert re.search(r"^FAIL: .*tests/test_sample.py::test_bad", told, re.MULTILINE)
    assert "assert [1] == [2]" in told
    assert re.search(r"^ERROR: .*::test_unprepared", told, re.MULTILINE)


@pytest.mark.slow
def test_a_module_that_cannot_be_read_is_an_error(checkout: Path) -> None:
    """Nothing that was not run counts as good; where all is good the end is 0."""
    sample = checkout / "tests" / "test_sample.py"
    sample.write_text("def test_good(): pass\n")
    code, told = run(checkout)
    assert (code, told.count("Ran 1 test "), told.endswith("\nOK\n")) == (0, 1, True)
    sample.write_text("import nothing_of_that_name\n")
    code, told = run(checkout)

    assert code != 0
    assert "nothing_of_that_name" in told


@pytest.mark.slow
def test_what_is_missing_is_said(checkout: Path) -> None:
    """A Python without pytest is told what to install, and the end is not 0."""
    code, told = run(checkout, "-S")

    assert code == 1
    assert "pytest_timeout: not installed" in told
    assert "python3 -m pip install -e '.[test]'" in told


@pytest.mark.slow
def test_this_checkout_is_found() -> None:
    """Discovery finds the real tests, from the top and with nothing else said."""
    code, told = run(TOP, PYTEST_ADDOPTS='-k "test_numbers_of_07 or test_reasons_are_told"')

    assert (code, told.count("Ran 2 tests")) == (0, 1)
