"""A terminal that is closed ends `jobmon daemon -f` in order; a SIGHUP that a process sends is a reload."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import kit
import pytest
from inits import Screen, Shell, environment, need, python, spin

from jobmon import CommandPipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from inits import Run

    Launch = Callable[..., Run]

JOBMON = [sys.executable, "-m", "jobmon"]
# A job that says goodbye to the FIFO that it is given, which is seen if it is stopped and not killed.
SAYS_GOODBYE = """
import os, signal, sys
out = os.open(sys.argv[1], os.O_WRONLY)
def leave(*_):
    os.write(out, b"bye\\n")
    os._exit(0)
signal.signal(signal.SIGTERM, leave)
os.write(out, b"up\\n")
while True:
    signal.pause()
"""


class Place:
    """A configuration with one job, on sockets in a directory; `said` is what the job says."""

    def __init__(self, directory: Any) -> None:
        self.directory = directory
        self.said = kit.Fifo(str(directory / "said"))
        self.log = directory / "log"
        self.path = str(directory / "jobs.json")
        self.configure()

    def configure(self, *names: str, **supervisor: Any) -> None:
        """Write the configuration, with some more jobs."""
        command = [*python(SAYS_GOODBYE), self.said.path]
        job = {"command": command, "autostart": True, "stderr": "inherit"}
        settings = {
            "control-port": str(self.directory / "control"),
            "event-port": str(self.directory / "event"),
            "log-file": str(self.log),
            "log-level": "INFO",
        }
        more = {name: {"command": kit.FOR_EVER} for name in names}
        text = {"supervisor": {**settings, **supervisor}, "jobs": {"web": job, **more}}
        with open(self.path, "w", encoding="utf-8") as file:
            json.dump({**text, "supervisor": {k: v for k, v in text["supervisor"].items() if v}}, file)

    def jobs(self) -> list[str]:
        """The names of the jobs, as the daemon has them."""
        with CommandPipe(str(self.directory / "control")) as daemon:
            return sorted(daemon.list_jobs())

    def pid(self) -> int:
        """The pid of the daemon."""
        with CommandPipe(str(self.directory / "control")) as daemon:
            return int(daemon.info()["pid"])

    def reloads(self, pid: int) -> None:
        """See that a SIGHUP of another process is a reload."""
        assert self.jobs() == ["web"]
        self.configure("more")
        subprocess.run(["kill", "-HUP", str(pid)], check=True)
        spin(lambda: self.jobs() == ["more", "web"])


@pytest.fixture
def place(tmp_path: Any) -> Iterator[Place]:
    """A configuration in a directory of its own."""
    one = Place(tmp_path)
    yield one
    one.said.destroy()


def foreground(launch: Launch, place: Place, screen: Screen, *before: str) -> Run:
    """A daemon in the foreground of a terminal, whose job is up."""
    words = [*before, *JOBMON, "daemon", "-f", place.path]
    one = launch("none", words, cwd=place.directory, **screen.options())
    place.said.until("up\n")
    return one


@pytest.mark.parametrize("log_file", ["log", None])
def test_the_end_of_the_terminal_is_the_end(log_file: str | None, launch: Launch, place: Place) -> None:
    """When its terminal is closed, the daemon stops its jobs in order and ends with 0, also where it writes
    its log to that terminal."""
    place.configure(**({} if log_file else {"log-file": ""}))
    screen = Screen()
    one = foreground(launch, place, screen)
    spin(lambda: "/event" in screen.drain())
    screen.close()
    place.said.until("bye\n")

    assert one.wait() == 0
    assert not log_file or 'by="the end of its terminal"' in place.log.read_text()


@pytest.mark.parametrize("words", ["", " &"], ids=["foreground", "background"])
def test_a_shell_passes_the_end_on(words: str, launch: Launch, place: Place, tmp_path: Any) -> None:
    """Below a shell, too, where the SIGHUP is the shell's, the daemon ends with the terminal."""
    screen = Screen()
    shell = Shell(launch, screen, tmp_path)
    shell.type(f"{' '.join(JOBMON)} daemon -f {place.path}{words}")
    place.said.until("up\n")
    (pid,) = kit.children_of(shell.bash)
    screen.close()
    place.said.until("bye\n")
    kit.wait_gone(pid)

    assert 'by="the end of its terminal"' in place.log.read_text()
    assert "again" not in place.log.read_text()  # the second SIGHUP, of the kernel, ends no wait for jobs


def test_on_a_terminal_sighup_is_a_reload(launch: Launch, place: Place, screen: Screen) -> None:
    """A SIGHUP that a process sends is a reload, while the terminal is there."""
    one = foreground(launch, place, screen)
    place.reloads(one.pid)
    os.kill(one.pid, 15)

    assert one.wait() == 0


def test_below_a_shell_kill_is_a_reload(launch: Launch, place: Place, screen: Screen, tmp_path: Any) -> None:
    """A SIGHUP that the shell itself sends, by its builtin kill, is a reload, while the terminal is there."""
    shell = Shell(launch, screen, tmp_path)
    shell.type(f"{' '.join(JOBMON)} daemon -f {place.path} &")
    place.said.until("up\n")
    place.configure("more")
    shell.type("kill -HUP %1")
    spin(lambda: place.jobs() == ["more", "web"])
    shell.type("kill %1; wait %1")

    assert shell.answer() == "0"


def test_nohup_outlives_the_terminal(launch: Launch, place: Place) -> None:
    """`nohup jobmon daemon -f` lives on when its terminal is closed, and a SIGHUP that a process sends is a
    reload then, as it was before."""
    need("nohup")
    screen = Screen()
    one = foreground(launch, place, screen, "nohup")
    screen.close()
    spin(lambda: "the terminal was closed" in place.log.read_text())
    place.reloads(one.pid)
    os.kill(one.pid, 15)

    assert one.wait() == 0


def test_a_daemon_of_its_own_session_has_no_terminal(launch: Launch, place: Place) -> None:
    """A daemon in the background does not notice the end of the terminal that it was started from."""
    screen = Screen()
    one = launch("none", [*JOBMON, "daemon", place.path], **screen.options())
    assert one.wait() == 0
    place.said.until("up\n")
    screen.close()
    pid = place.pid()
    place.reloads(pid)
    with CommandPipe(str(place.directory / "control")) as daemon:
        daemon.terminate()
    kit.wait_gone(pid)


TRAPS = [("", 129), ("signal.signal(signal.SIGHUP, lambda *_: os._exit(5))", 5)]


@pytest.mark.parametrize(("trap", "code"), TRAPS)
def test_a_command_beside_the_jobs_learns_it(trap: str, code: int, launch: Launch, place: Place) -> None:
    """With `init CONFIG -- CMD` the hangup is CMD's: its end is that of the jobs, its code ours."""
    screen = Screen()
    tell = f"open({place.said.path!r}, 'w').write('go\\n')"
    program = f"import os, signal\n{trap}\n{tell}\nsignal.pause()"
    words = [*JOBMON, "init", place.path, "--", *python(program)]
    one = launch("none", words, env=environment(), **screen.options())
    place.said.until("go\n")
    spin(lambda: "the command is started" in place.log.read_text())
    screen.close()

    assert one.wait() == code
    place.said.until("bye\n")


def test_a_standard_error_that_nobody_reads_prevents_no_start(launch: Launch, place: Place) -> None:
    """A warning of the configuration that cannot be written, because the other end of standard error is
    closed, does not keep the daemon from starting."""
    place.configure(**{"include-dirs": [str(place.directory / "none" / "*")]})
    reader, writer = os.pipe()
    os.close(reader)
    one = launch("none", [*JOBMON, "daemon", "-f", place.path], stderr=writer)
    os.close(writer)
    place.said.until("up\n")
    os.kill(one.pid, 15)

    assert one.wait() == 0
