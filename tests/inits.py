"""What the tests of `jobmon init` share: a command under an init, a terminal, a shell on it."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import termios
import time

import kit
import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

JOBMON = [sys.executable, "-m", "jobmon", "init", "--"]
INITS = {
    "jobmon": JOBMON,
    "tini": ["tini", "-s", "--"],
    "dumb-init": ["dumb-init", "--"],
    "none": [],
}
THREE = ("jobmon", "tini", "dumb-init")
SPARE_ROOT = [] if os.geteuid() == 0 else ["--map-root-user"]
PLACES = {
    "child": [],
    "pid 1 of unshare": ["unshare", *SPARE_ROOT, "--fork", "--pid", "--mount-proc", "--kill-child"],
    "pid 1 of bwrap": "bwrap --unshare-pid --as-pid-1 --dev-bind / / --proc /proc --die-with-parent".split(),
}
CAP_SYS_ADMIN = 21  # capability.h
PACKAGES = {"bwrap": "bubblewrap", **dict.fromkeys(("unshare", "nsenter", "setsid", "setpriv"), "util-linux")}

CATCHABLE = sorted(set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP})
# A CMD that tells each signal that it gets, and ends with 42 on SIGTERM.
PROBE = """
import _signal, os
every = _signal.valid_signals()
_signal.pthread_sigmask(_signal.SIG_BLOCK, every)
os.write(1, b"pid %d\\n" % os.getpid())
got = 0
while got != _signal.SIGTERM:
    got = _signal.sigwaitinfo(every).si_signo
    os.write(1, b"got %d\\n" % got)
os._exit(42)
"""


# A process that says when it is ready, and says goodbye before it ends with 7 on SIGTERM.
POLITE = """
import os, signal
def leave(*_):
    os.write(1, b"bye\\n")
    os._exit(7)
signal.signal(signal.SIGTERM, leave)
os.write(1, b"up\\n")
while True:
    signal.pause()
"""

# A CMD that ends with 3 and leaves such a one in a session of its own.
LEAVES = """
import os
reader, writer = os.pipe()
if os.fork():
    os.close(writer)
    os.read(reader, 1)
    os._exit(3)
os.setsid()
""" + POLITE.replace('os.write(1, b"up', 'os.close(writer)\nos.write(1, b"up')


def python(program: str) -> list[str]:
    """The words that run a program text quickly."""
    return [sys.executable, "-I", "-S", "-c", program]


def need(*programs: str) -> None:
    """Skip where a program is not installed."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: apt-get install {PACKAGES.get(program, program)}")


def may_mount() -> bool:
    """Whether this is a root that may make namespaces: in a container it often may not."""
    capabilities = int(kit.status_of(os.getpid())["CapEff"], 16)
    return os.geteuid() == 0 and bool(capabilities >> CAP_SYS_ADMIN & 1)


_namespaces: dict[str, str] = {}


def need_place(place: str) -> None:
    """Skip where a user may make no namespaces; a true root may, so for one that is a failure."""
    if not PLACES[place]:
        return
    need(PLACES[place][0])
    if place not in _namespaces:
        done = subprocess.run([*PLACES[place], "true"], capture_output=True, text=True, check=False)
        _namespaces[place] = "" if done.returncode == 0 else done.stderr or "it fails"
    if _namespaces[place]:
        because = f"{' '.join(PLACES[place])}: {_namespaces[place]}"
        (pytest.fail if may_mount() else pytest.skip)(because)


class Run:
    """CMD under an init, in a place; what it writes is `out`."""

    def __init__(self, init: str, command: Sequence[str], place: str = "child", **options: Any) -> None:
        words = [*PLACES[place], *INITS[init], *command]
        need(*([] if init in ("jobmon", "none") else [init]))
        need_place(place)
        defaults = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(words, **{**defaults, "env": environment(), **options})
        self.init = init
        self.place = place
        if self.process.stdout is not None:
            self.out = kit.Lines(self.process.stdout.fileno())

    @property
    def pid(self) -> int:
        """The init's pid, as seen from here, once it is there."""
        if self.place == "child":
            return self.process.pid
        (pid,) = kit.children_of(self.process.pid)
        return pid

    @property
    def command(self) -> int:
        """The pid of CMD, as seen from here."""
        (pid,) = kit.children_of(self.pid)
        return pid

    def send(self, number: int) -> None:
        """Signal the init."""
        os.kill(self.pid, number)

    def close_stdin(self) -> None:
        """Let CMD come to the end of its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def wait(self) -> int:
        """Wait for the end; the exit code (-n for signal n)."""
        try:
            return self.process.wait(kit.DEADLINE)
        except subprocess.TimeoutExpired:
            said = self.out.drain() if hasattr(self, "out") else ""
            pytest.fail(f"{self.init} ({self.place}) did not end; it said {said!r}")


class Screen(kit.Lines):
    """The master's side of a terminal, and what happens on it."""

    def __init__(self) -> None:
        master, self.slave = os.openpty()
        super().__init__(master)

    def type(self, keys: str) -> None:
        """Type."""
        os.write(self.fd, keys.encode())

    @property
    def foreground(self) -> int:
        """The process group in the foreground."""
        return os.tcgetpgrp(self.fd)

    def options(self) -> dict[str, Any]:
        """The options of Popen with which a process leads a session on this terminal."""
        return {
            "stdin": self.slave,
            "stdout": self.slave,
            "stderr": self.slave,
            "start_new_session": True,
            "preexec_fn": lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        }

    def _take(self) -> None:
        try:
            super()._take()
        except OSError:  # EIO: nobody has the terminal open any more
            self.ended = True

    def close(self) -> None:
        """Hang up."""
        for fd in (self.fd, self.slave):
            os.close(fd)


def environment() -> dict[str, str]:
    """What an init of ours needs to be found."""
    return {**os.environ, "PYTHONPATH": kit.SOURCES, "PYTHONDONTWRITEBYTECODE": "1"}


def spin(holds: Callable[[], object]) -> None:
    """Wait for what no descriptor tells: look again and again."""
    end = time.monotonic() + kit.DEADLINE
    while not holds():
        assert time.monotonic() < end, "it did not come to that"
        os.sched_yield()


def state(pid: int) -> str:
    """The state letter of a process; "" when it is gone."""
    try:
        return kit.status_of(pid)["State"][0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


# ---- a shell with job control ---------------------------------------------------------------

SCRIPTS = {
    "talk": "echo up; exec cat\n",
    "nap": "echo up; exec sleep 1000\n",
    "later": "echo up; read go <gate; exec cat\n",
    "after": '$INIT true; echo next; read line; echo "heard $line"\n',
}


class Shell:
    """An interactive bash on a terminal, in a directory with the scripts. $INIT is how an init begins."""

    def __init__(
        self, launch: Callable[..., Run], screen: Screen, directory: Any, init: str = "jobmon"
    ) -> None:
        need("bash")
        for title, text in SCRIPTS.items():
            (directory / title).write_text(text)
        env = {**environment(), "PS1": "ready> ", "TERM": "dumb", "INIT": " ".join(INITS[init])}
        words = ["bash", "--norc", "--noprofile", "-i"]
        self.bash = launch("none", words, env=env, cwd=directory, **screen.options()).pid
        self.screen = screen
        self.asked = 0
        self.typed = 0

    def type(self, line: str) -> None:
        """Type a line when the shell asks for one."""
        spin(lambda: "ready> " in self.screen.drain()[self.typed :])
        self.typed = len(self.screen.text)
        self.screen.type(line + "\n")

    def answer(self) -> str:
        """The exit code of what was typed before, when the shell is there again."""
        self.asked += 1
        self.type(f"echo \"<$?\"'>'{self.asked}")
        self.screen.until(f">{self.asked}\r")
        return self.screen.text.rpartition(f">{self.asked}\r")[0].rpartition("<")[2]

    def run(self, line: str) -> tuple[int, int]:
        """Type a line that runs `talk`, `nap` or `later` under an init; the pids of both, when it is up."""
        self.screen.drain()
        said = self.screen.text.count("up\r\n")
        self.type(line)
        spin(lambda: self.screen.drain().count("up\r\n") > said)
        inits = [pid for pid in kit.children_of(self.bash) if kit.children_of(pid)]
        (command,) = kit.children_of(inits[-1])
        return inits[-1], command

    def converse(self, word: str) -> None:
        """Say a word to `talk`, and hear it."""
        self.screen.type(f"{word}\n")
        self.screen.until(f"{word}\r\n{word}\r\n")
