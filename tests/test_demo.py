"""`make demo`: the main job on real input, as a newcomer runs it. It insists on each of its steps itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DEMO = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "contrib", "demo")
PATIENCE = 60

pytestmark = pytest.mark.slow

# What a reader must be able to follow, in this order.
STORY = (
    "supervisor.json: ok, 4 jobs",
    "$ export JOBMON_PORT=$(jobmon daemon supervisor.json)",
    "$ jobmon list-jobs",
    "STOPPED worker",
    "[listen] RUNNING web",
    "Hello from a web server",
    "$ kill -KILL $(jobmon pid web)",
    "[listen] STOPPED web",
    "[listen] RESTARTING web",
    "[listen] RUNNING web",
    "Hello from a web server",
    "$ jobmon start worker",
    "[listen] RESTARTING worker",
    "worker: backoff",
    "$ jobmon wait report",
    "[listen] STOPPED report",
    "$ jobmon stop patient",
    "[listen] STOPPED patient",
    "all clean",
    "$ jobmon terminate",
    "[listen] TERMINATE",
    "(exit status 69)",
)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The demo, running with its temporary files under `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, DEMO],
        env=dict(os.environ, TMPDIR=str(tmp_path), COLUMNS="50"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def processes_in(directory: Path) -> list[str]:
    """The command lines of processes whose environment names a directory."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                environment = file.read()
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                command = file.read()
        except OSError:
            continue
        if f"DEMO={directory}".encode() in environment:
            found.append(command.replace(b"\0", b" ").decode())
    return found


def test_the_demo_tells_its_story(demo: subprocess.Popen[str], tmp_path: Path) -> None:
    """Each step does what it says, in order, in plain lines of the terminal's width; nothing is left."""
    output, _ = demo.communicate(timeout=PATIENCE)

    assert demo.returncode == 0, output
    place = 0
    for line in STORY:
        place = output.find(line, place)
        assert place >= 0, f"{line!r} is missing, or not in its place:\n{output}"
    assert "\x1b" not in output
    told = [line for line in output.splitlines() if line.startswith(("First", "Start the", "Kill the"))]
    assert told
    assert all(len(line) <= 50 for line in told)
    assert os.listdir(tmp_path) == []
    assert processes_in(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupted_demo_leaves_nothing(
    demo: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
) -> None:
    """A person who has seen enough presses Ctrl-C: daemon, jobs and files are gone all the same."""
    assert demo.stdout is not None
    for line in demo.stdout:
        if "[listen] RUNNING worker" in line:
            break
    running = processes_in(tmp_path)
    demo.send_signal(number)
    output, _ = demo.communicate(timeout=PATIENCE)

    assert len(running) >= 4  # the daemon, the listener, three jobs: there was something to leave behind
    assert demo.returncode == 128 + number, output
    assert os.listdir(tmp_path) == []
    assert processes_in(tmp_path) == []
