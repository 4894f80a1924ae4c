"""What loses its parent comes to the daemon and is reaped, in storms too; cgroups are not left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time

import kit
import nasty
import pytest
from nasty import WITH, WITHOUT

from jobmon.linux.kernel import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from kit import Daemon

    Make = Callable[..., Daemon]

pytestmark = pytest.mark.slow

PATIENT = 2.0  # seconds within which a daemon in a storm is to answer; it takes some hundredths
CODES = range(1, 21)


class Nasty:
    """A daemon with one nasty job, "it", and others."""

    def __init__(
        self, make: Make, way: str, *modes: str, jobs: Any = None, breaks: tuple[str, ...] = ()
    ) -> None:
        self.folder = tempfile.mkdtemp(prefix="jobmon-", dir="/tmp")
        self.line = nasty.Lifeline(os.path.join(self.folder, "lifeline"))
        its = {"command": self.line.command(*modes), "kill-timeout": 0.1}
        environ = nasty.broken(self.folder, *breaks) if breaks else {}
        self.daemon = make(
            {"jobs": {"it": its, **(jobs or {})}},
            directory=self.folder,
            environ=environ,
            **nasty.options(way),
        )
        self.daemon._clients.append(self.line)
        self.pipe = self.daemon.pipe()
        self.pipe.start("it")

    def end_all(self) -> None:
        """End what a broken daemon does not."""
        while found := nasty.tagged(self.line.tag):
            for pid in found:
                kit.end_orphan(pid)

    def bury(self) -> None:
        """Remove all that a broken daemon, or a killed one, leaves behind."""
        self.daemon.process.kill()
        self.daemon.wait()
        while orphans := self.daemon.orphans():
            for pid in orphans:
                kit.end_orphan(pid)
        for name in ("control", "event", "control.lock", "event.lock"):
            os.unlink(self.daemon.path(name))


# ---- reaping --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", nasty.WAYS)
def test_a_storm_of_orphans(daemon: Make, way: str) -> None:
    """10,000 orphans in a few seconds: no zombie is left one second after the last of them has died, the
    daemon answers all the while, and every job that ends meanwhile ends with its own status."""
    others = {f"job {code}": {"command": f"exit {code}"} for code in CODES}
    it = Nasty(daemon, way, "storm", jobs=others)
    it.line.until("storm-begins ")
    slowest = 0.0
    for name in others:
        begin = time.monotonic()
        it.pipe.start(name, wait=False)
        slowest = max(slowest, time.monotonic() - begin)
    while "storm " not in it.line.drain():
        begin = time.monotonic()
        it.pipe.status()
        slowest = max(slowest, time.monotonic() - begin)
        kit.readable(it.line.fd, 0.05)
    over = time.monotonic()
    while kit.zombies_of(it.daemon.pid):
        assert time.monotonic() < over + 1
        os.sched_yield()
    assert slowest < PATIENT
    results = {status.job: status.result for status in it.pipe.status() if status.job != "it"}
    assert results == {f"job {code}": f"exit {code}" for code in CODES}
    assert it.pipe.status("it")[0].processes == 2
    bad = ("internal error", "unattributed processes")
    assert not [line for line in it.daemon.log.splitlines() if any(words in line for words in bad)]


def test_without_reaping_zombies_stay(daemon: Make) -> None:
    """The control: with a daemon that reaps no orphans, there are zombies to be seen."""
    breaks = (
        "from jobmon.linux.processes import children",
        "children._reap_any = lambda: None",
        "children._peek_any = lambda: None",
    )
    it = Nasty(daemon, WITH, "daemon", breaks=breaks)
    it.line.wait_for("daemon")
    assert kit.zombies_of(it.daemon.pid)
    it.bury()


def test_orphans_of_a_job_are_reaped_before_it_is_stopped(daemon: Make) -> None:
    """When a job is stopped, no zombie of it is left either."""
    it = Nasty(daemon, WITHOUT, "group", "setsid", "daemon", "bare")
    it.line.wait_for("group", "setsid", "daemon", "bare")
    it.pipe.stop("it")
    assert kit.zombies_of(it.daemon.pid) == set()


# ---- controls: what finds and kills the rest --------------------------------------------------------

BROKEN = {
    "no subreaper": ("import prctl", "prctl.set_child_subreaper = lambda _on: None"),
    "no marker": (
        "from jobmon.linux.processes import tracker",
        "tracker._marker_in = lambda _environ, _prefix: b''",
    ),
}


@pytest.mark.parametrize("breaks", BROKEN.values(), ids=BROKEN)
def test_without_the_means_something_survives(daemon: Make, breaks: tuple[str, ...]) -> None:
    """The control: with a daemon that is no subreaper, or reads no marker, a stop leaves a process behind."""
    it = Nasty(daemon, WITHOUT, "daemon", breaks=breaks)
    it.line.wait_for("daemon")
    try:
        it.pipe.stop("it")
        assert list(it.line.survivors()) == it.line.pids("daemon")
    finally:
        it.bury()


def test_without_a_kill_nothing_is_stopped(daemon: Make) -> None:
    """The control: with a daemon that cannot kill, a deaf job is not called stopped."""
    breaks = ("from jobmon.linux.kernel import cgroup", "cgroup.Cgroup.kill = lambda _self: None")
    it = Nasty(daemon, WITH, "DEAF", "setsid", breaks=breaks)
    it.line.wait_for("setsid")
    assert it.daemon.run_cli("stop", "--timeout", "300ms", "it").code == 124
    assert it.pipe.status("it")[0].state == "killing"
    it.end_all()


# ---- cgroups ----------------------------------------------------------------------------------------


def below() -> Iterator[str]:
    """The cgroups of daemons, beside ours."""
    own = procfs.cgroup2_path(os.getpid())
    assert own is not None
    return (os.path.join(own, name) for name in os.listdir(own) if name.startswith("jobmon."))


def cgroup_of(one: Daemon) -> str:
    """The directory that a daemon has made for its runs."""
    line = one.wait_log("process tracking: cgroups")
    return line.partition('below="')[2].rstrip('"')


def test_cgroups_end_with_their_runs(daemon: Make) -> None:
    """There is one for each run that lives, none for one that has ended, and none when the daemon has."""
    it = Nasty(daemon, WITH, "setsid")
    it.line.wait_for("setsid")
    path = cgroup_of(it.daemon)
    folders = [name for name in os.listdir(path) if os.path.isdir(os.path.join(path, name))]
    assert len(folders) == 1
    it.pipe.stop("it")
    assert not [name for name in os.listdir(path) if os.path.isdir(os.path.join(path, name))]
    assert it.daemon.stop() == 0
    assert not os.path.exists(path)


def test_cgroups_that_a_job_makes_go_too(daemon: Make) -> None:
    """A job may make cgroups below its own: who is in them is its own, and they are removed with it."""
    it = Nasty(daemon, WITH, "setsid")
    it.line.wait_for("setsid")
    (pid,) = it.line.pids("setsid")
    mine = procfs.cgroup2_path(pid)
    assert mine is not None
    os.makedirs(f"{mine}/deep/er")
    with open(f"{mine}/deep/er/cgroup.procs", "w", encoding="ascii") as file:
        file.write(str(pid))
    assert it.pipe.status("it")[0].processes == 2
    it.pipe.stop("it")
    assert it.line.survivors() == {}
    assert not os.path.exists(mine)


def test_a_killed_daemons_cgroups_are_removed(daemon: Make) -> None:
    """What a killed daemon left is removed by the next one once it is empty, and not before; what a living
    daemon has is never touched."""
    it = Nasty(daemon, WITH, "setsid")
    it.line.wait_for("setsid")
    left = cgroup_of(it.daemon)
    it.daemon.process.send_signal(signal.SIGKILL)
    it.daemon.wait()

    living = daemon()
    kept = cgroup_of(living)
    assert os.path.exists(left)
    assert len(nasty.tagged(it.line.tag)) == 2
    it.bury()
    cgroup_of(daemon())
    assert not os.path.exists(left)
    assert kept in below()


BEGINNERS = """
import sys
from jobmon.linux.kernel.cgroup import Hierarchy
for count in range(40):
    Hierarchy(f"{sys.argv[1]}-{count}").close()
"""


def test_daemons_that_begin_together_all_get_cgroups() -> None:
    """Daemons that start at the same moment do not clear each other's cgroups away before they are locked."""
    nasty.options(WITH)
    commands = [[sys.executable, "-c", BEGINNERS, f"test{number}"] for number in range(4)]
    running = [subprocess.Popen(command, cwd=kit.SOURCES) for command in commands]
    assert [one.wait(kit.DEADLINE) for one in running] == [0, 0, 0, 0]
