"""The fixtures that several test files share: a real daemon, and its log in the report of a failure."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile

import inits
import kit
import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

_RUNNING: list[kit.Daemon] = []

# Daemons keep their state in here, also those that a test kills; those of any user may.
os.environ["RUNTIME_DIRECTORY"] = tempfile.mkdtemp(prefix="jobmon-", dir="/tmp")
os.chmod(os.environ["RUNTIME_DIRECTORY"], 0o1777)
os.environ.pop("XDG_RUNTIME_DIR", None)
atexit.register(shutil.rmtree, os.environ["RUNTIME_DIRECTORY"], ignore_errors=True)

# Whoever started the tests in the background has these ignored: they are part of what is tested.
for _number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
    signal.signal(_number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def daemon() -> Iterator[Callable[..., kit.Daemon]]:
    """A factory of running daemons, with the arguments of kit.Daemon.

    After the test each is ended, and the test fails if one left a process, a zombie or a socket file.
    """
    made: list[kit.Daemon] = []

    def make(*arguments: Any, **options: Any) -> kit.Daemon:
        one = kit.Daemon(*arguments, **options)
        made.append(one)
        _RUNNING.append(one)
        return one

    kit.adopt_orphans(True)
    try:
        yield make
    finally:
        close_all(made)


def close_all(made: list[kit.Daemon]) -> None:
    """Close daemons in turn, all of them, and then fail for the first that left something."""
    problems = []
    for one in made:
        _RUNNING.remove(one)
        try:
            one.close()
        except AssertionError as error:
            problems.append(error)
    kit.adopt_orphans(False)
    if problems:
        raise problems[0]


@pytest.fixture
def launch() -> Iterator[Callable[..., inits.Run]]:
    """A factory of commands under an init: see inits.Run. After the test all that they left is ended."""
    made: list[inits.Run] = []

    def make(*arguments: Any, **options: Any) -> inits.Run:
        made.append(inits.Run(*arguments, **options))
        return made[-1]

    before = kit.children_of(os.getpid())
    kit.adopt_orphans(True)
    yield make
    for one in made:
        one.process.kill()
        one.process.wait()
        for pipe in (one.process.stdin, one.process.stdout):
            if pipe is not None:
                pipe.close()
    while left := kit.children_of(os.getpid()) - before:
        for pid in left:
            kit.end_orphan(pid)
    kit.adopt_orphans(False)


@pytest.fixture
def screen() -> Iterator[inits.Screen]:
    """A terminal."""
    one = inits.Screen()
    yield one
    one.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that runs a real daemon can be told from one that does not: `-m 'not daemon'`."""
    for item in items:
        if "daemon" in getattr(item, "fixturenames", ()):
            item.add_marker("daemon")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A test that fails shows what its daemons wrote."""
    report = yield
    if report.failed and report.when == "call":
        for one in _RUNNING:
            report.sections.append((f"daemon {one.pid}", one.report()))
    return report
