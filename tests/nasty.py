"""Jobs that do not want to end, and whether anything of them is left: nasty.c, compiled once.

No list of processes has to be believed: everything that a nasty job starts holds its Lifeline open, so
the kernel itself says when nothing is left, however quickly they fork. /proc is asked as well, for names.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import uuid

import kit
import pytest

from jobmon.linux.kernel import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SOURCE = os.path.join(kit.HERE, "nasty.c")
# What a job may start that a scan of /proc can attribute, and what it cannot.
ATTRIBUTABLE = (
    "group",
    "setsid",
    "daemon",
    "deaf",
    "hop",
    "hop-setsid",
    "bare",
    "bare-setsid",
    "headless",
    "stopped",
)
STRAYS = {"stray": ("stray",), "deaf stray": ("stray-deaf",)}

_built: dict[str, str] = {}


def build(source: str = SOURCE) -> str:
    """The path of a program, compiled once. Skips where there is no C compiler."""
    if source not in _built:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("needs a C compiler: apt-get install gcc libc6-dev")
        folder = tempfile.mkdtemp(prefix="jobmon-nasty-", dir="/tmp")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.chmod(folder, 0o755)
        path = os.path.join(folder, os.path.basename(source).removesuffix(".c"))
        subprocess.run(
            [compiler, "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", path, source], check=True
        )
        _built[source] = path
    return _built[source]


class Lifeline(kit.Lines):
    """A FIFO that all processes of a job hold open: its end is theirs. They tell on it what they have become.

    It ends when the last one does, so it is for one run, or for several that overlap.
    """

    def __init__(self, path: str) -> None:
        os.mkfifo(path)
        os.chmod(path, 0o666)
        self.path = path
        self.tag = f"tag-{uuid.uuid4().hex}"
        self._held = -1
        super().__init__(os.open(path, os.O_RDONLY | os.O_NONBLOCK))

    def command(self, *modes: str) -> list[str]:
        """The command of a job whose processes hold this."""
        return [build(), self.path, self.tag, *modes]

    def wait_for(self, *modes: str) -> None:
        """Wait until each of the modes, and the leader, is what it is to be."""
        for mode in (*modes, "leader"):
            self.until(f"{mode} ")
        assert "unknown-mode" not in self.text
        assert "two " not in self.text, "two runs at a time"

    def pids(self, mode: str) -> list[int]:
        """Who said to be `mode`."""
        said = [line.split() for line in self.drain().splitlines()]
        return [int(words[1]) for words in said if len(words) == 2 and words[0] == mode]

    def hold(self) -> None:
        """Keep it from ending, for a job with several runs."""
        self._held = os.open(self.path, os.O_WRONLY)

    def release(self) -> None:
        """It ends with the last of the processes again."""
        os.close(self._held)

    def wait_times(self, mode: str, times: int) -> int:
        """Wait until so many have said to be `mode`; returns the pid of the last one."""
        while len(pids := self.pids(mode)) < times:
            assert kit.readable(self.fd), f"waited for {times} of {mode} and got {self.text!r}"
        assert "two " not in self.text, "two runs at a time"
        return pids[times - 1]

    def survivors(self) -> dict[int, str]:
        """Who is left: by the tag in the command lines, and -1 if /proc shows nobody and yet somebody is."""
        found = {pid: f"{one.name} ({one.state})" for pid, one in tagged(self.tag).items()}
        self.drain()
        if not found and not self.ended:
            found[-1] = "somebody holds the lifeline"
        return found


def tagged(tag: str) -> dict[int, kit.Process]:
    """The processes with `tag` in their command line. A zombie has none."""
    return {pid: one for pid, one in kit.processes().items() if tag in (procfs.cmdline(pid) or ())}


def broken(folder: str, *lines: str) -> dict[str, str]:
    """The environment for a daemon of which a part is taken out first, to show that a test can fail."""
    with open(os.path.join(folder, "sitecustomize.py"), "w", encoding="utf-8") as file:
        file.write("\n".join((f"import sys; sys.path.append({kit.SOURCES!r})", *lines, "")))
    return {"PYTHONPATH": f"{folder}:{kit.SOURCES}"}


# ---- with cgroups, and without ----------------------------------------------------------------

WITH, WITHOUT = "with cgroups", "without cgroups"
WAYS = (WITH, WITHOUT)
_SPARE_ROOT = [] if os.geteuid() == 0 else ["--map-root-user"]


def mount_point() -> str:
    """Where cgroup v2 is. Skips where it is not."""
    mount = procfs.cgroup2_mount()
    if mount is None:
        pytest.skip("no cgroup v2 hierarchy is mounted")
    return mount.point


def in_namespace(script: str) -> list[str]:
    """A wrapper that runs `script`, with $1 for the mount point, in a mount namespace of its own first."""
    place = mount_point()
    do = f'{script} && shift && exec "$@"'
    return ["unshare", *_SPARE_ROOT, "--mount", "sh", "-c", do, "sh", place]


def without_cgroups() -> list[str]:
    """A wrapper for a daemon that is to find no cgroups: nothing in it is changed, the mount is gone."""
    if procfs.cgroup2_mount() is None:
        return []
    return in_namespace('umount "$1"')


def options(way: str) -> dict[str, Any]:
    """The arguments for kit.Daemon."""
    if way == WITHOUT:
        return {"wrapper": without_cgroups()}
    mount_point()
    if not _may_make_cgroups():
        pytest.skip("no cgroups for this user here: systemd-run --user -p Delegate=yes would give some")
    return {}


def _may_make_cgroups() -> bool:
    if WITH not in _known:
        script = "from jobmon.linux.kernel.cgroup import Hierarchy as H; H('tested-for').close()"
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, cwd=kit.SOURCES, check=False, capture_output=True)
        _known[WITH] = done.returncode == 0
    return _known[WITH]


_known: dict[str, bool] = {}
