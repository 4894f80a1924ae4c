"""Stopped means gone: whatever a job has started, `stop` answers when nothing of it is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import kit
import nasty
import pytest
from nasty import WITH, WITHOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from kit import Daemon

    from jobmon.protocol import JobStatus

    Make = Callable[..., Daemon]

pytestmark = pytest.mark.slow

PATIENCE = 0.2  # a kill-timeout for those who ignore the stop signal
LONG = 1000.0  # one that never runs out
ALONE = {
    "group": ("group",),
    "setsid": ("setsid",),
    "daemon": ("daemon",),
    "deaf leader": ("DEAF",),
    "deaf all": ("DEAF", "group", "setsid", "daemon"),
    "deaf child": ("deaf",),
    "hop": ("hop",),
    "hop-setsid": ("hop-setsid",),
    "deaf hop": ("DEAF", "hop-setsid"),
    "herd": ("DEAF", *["hop-setsid"] * 8, *["setsid-hop"] * 8),
    "bomb": ("bomb",),
    "bare": ("bare",),
    "bare-setsid": ("bare-setsid",),
    "headless": ("headless",),
    "deaf headless": ("DEAF", "headless"),
    "stopped": ("stopped",),
    "stopped leader": ("STOPPED",),
    "all": ("DEAF", *nasty.ATTRIBUTABLE, "bomb"),
}
# Where there is a cgroup there are no strays: they end with their job.
CASES = [
    *((way, modes, f"{name}, {way}") for way in nasty.WAYS for name, modes in ALONE.items()),
    *((WITH, modes, f"{name}, {WITH}") for name, modes in nasty.STRAYS.items()),
    (WITH, ("DEAF", *nasty.ATTRIBUTABLE, "bomb", "stray", "stray-deaf", "stray-hop"), "all and the strays"),
]


class Job:
    """A daemon with one nasty job, "it", which is up with all of its processes."""

    def __init__(
        self,
        make: Make,
        way: str,
        modes: tuple[str, ...],
        *,
        options: dict[str, Any] | None = None,
        hold: bool = False,
        program: str = "",
        spec: dict[str, Any] | None = None,
    ) -> None:
        self.folder = tempfile.mkdtemp(prefix="jobmon-", dir="/tmp")
        os.chmod(self.folder, 0o777)
        self.line = nasty.Lifeline(os.path.join(self.folder, "lifeline"))
        if hold:
            self.line.hold()
        command = self.line.command(*modes)
        command[0] = program or command[0]
        jobs = {"it": {"command": command, "kill-timeout": PATIENCE, **(spec or {})}}
        options = {**nasty.options(way), **(options or {})}
        self.daemon = make({"jobs": jobs}, directory=self.folder, **options)
        self.daemon._clients.append(self.line)
        self.watch = self.daemon.watch()
        self.pipe = self.daemon.pipe()
        self.pipe.start("it")
        if "STOPPED" in modes:
            self.line.until("STOPPED ")
        elif "END" in modes:
            self.line.until("END ")
        else:
            self.line.wait_for(*modes)

    @property
    def leader(self) -> int:
        pid = self.pipe.pid("it")
        assert pid is not None
        return pid

    def status(self) -> JobStatus:
        return self.pipe.status("it")[0]

    def tell(self, *words: str) -> tuple[int, str, str]:
        done = self.daemon.run_cli(*words)
        return done.code, done.out, done.err

    def states(self) -> list[str]:
        return [event.state for event in self.watch.seen if event.job == "it"]

    def assert_gone(self) -> None:
        assert self.line.survivors() == {}, self.daemon.report()


# ---- stopped means gone -----------------------------------------------------------------------


@pytest.mark.parametrize(("way", "modes"), [case[:2] for case in CASES], ids=[case[2] for case in CASES])
def test_stopped_means_gone(daemon: Make, way: str, modes: tuple[str, ...]) -> None:
    """When `stop` returns, and when `wait` and an event say so, no process of the job is left."""
    it = Job(daemon, way, modes)
    waiter = it.daemon.pipe()
    waiting = waiter.submit("wait", ("it",))
    waiter.info()  # answered in order: by now the daemon waits
    with it.daemon.start_cli("stop", "it") as stop:
        it.watch.until("it", "stopped")
        it.assert_gone()
        waiter.collect(waiting)
        assert stop.wait(kit.DEADLINE) == 0
    assert it.tell("status", "it")[0] == 1
    assert it.watch.words().count("it died stopped") == 1


@pytest.mark.parametrize("way", nasty.WAYS)
def test_now_ends_patience(daemon: Make, way: str) -> None:
    """`stop --now` kills everybody at once, also when a stop is under way already."""
    it = Job(daemon, way, ("DEAF", "group", "setsid", "daemon"), spec={"kill-timeout": LONG})
    assert it.tell("stop", "--no-wait", "it")[0] == 0
    it.watch.until("it", "stopping")
    assert it.tell("stop", "--now", "it") == (0, "", "")
    it.assert_gone()


@pytest.mark.parametrize("way", nasty.WAYS)
def test_the_end_of_the_daemon_is_the_end_of_all(daemon: Make, way: str) -> None:
    """A daemon that is told to end does so when nothing of its jobs is left."""
    it = Job(daemon, way, ALONE["all"])
    assert it.daemon.stop() == 0
    it.assert_gone()


# ---- which way, and what it cannot see --------------------------------------------------------

NO_CGROUPS = {
    "not mounted": 'umount "$1"',
    "read-only": 'mount -o remount,bind,ro "$1"',
    "something else over it": 'mount -t tmpfs none "$1"',
}


def ways_told(log: str) -> list[str]:
    return [
        line
        for line in log.splitlines()
        if "process tracking: cgroups" in line or "process tracking: /proc" in line
    ]


def test_the_log_says_that_there_are_cgroups(daemon: Make) -> None:
    """It says once that every run gets a cgroup, and where; a job's processes are in one then."""
    it = Job(daemon, WITH, ("group",))
    assert [line.count("process tracking: cgroups") for line in ways_told(it.daemon.log)] == [1]
    with open(f"/proc/{it.leader}/cgroup", encoding="ascii") as file:
        assert "/jobmon." in file.read()


@pytest.mark.parametrize("script", NO_CGROUPS.values(), ids=NO_CGROUPS)
def test_the_log_says_that_there_are_none(daemon: Make, script: str) -> None:
    """Where no cgroup can be made it says so once, and why; jobs end all the same."""
    it = Job(daemon, WITHOUT, ("setsid",), options={"wrapper": nasty.in_namespace(script)})
    (line,) = ways_told(it.daemon.log)
    assert "process tracking: /proc" in line
    assert 'why="' in line
    it.pipe.stop("it")
    it.assert_gone()


@pytest.mark.parametrize("modes", nasty.STRAYS.values(), ids=nasty.STRAYS)
def test_strays_are_told_and_end_with_the_daemon(daemon: Make, modes: tuple[str, ...]) -> None:
    """Without cgroups, who has a session of his own, no environment and no parent is nobody's: `stop`
    does not wait for him; the log and `status` name his pid, and the end of the daemon is his.

    Takes two real seconds where he is deaf: the moment that he is given.
    """
    it = Job(daemon, WITHOUT, modes)
    assert it.tell("stop", "it") == (0, "", "")
    (stray,) = nasty.tagged(it.line.tag)
    assert [stray] == it.line.pids(*modes)
    assert it.daemon.wait_log("unattributed processes found").endswith(f'pids="{stray}"')
    assert it.tell("status")[1].splitlines()[-1].startswith(f"unattributed processes: pid {stray} ")
    assert it.pipe.overview()[1] == [stray]
    assert it.daemon.log.count("unattributed processes found") == 1
    assert it.daemon.stop() == 0
    it.assert_gone()


@pytest.mark.parametrize("ways", [(WITH, WITH), (WITHOUT, WITHOUT), (WITH, WITHOUT)], ids=str)
def test_two_daemons_never_meet(daemon: Make, ways: tuple[str, str]) -> None:
    """A stop reaches the job of the one daemon, and nobody in the job of that name of the other."""
    modes = ("group", "setsid", "daemon", "bare")
    one, other = (Job(daemon, way, modes) for way in ways)
    there = set(nasty.tagged(other.line.tag))
    one.pipe.stop("it", now=True)
    one.assert_gone()
    assert set(nasty.tagged(other.line.tag)) == there
    assert len(there) == len(modes) + 1
    assert one.daemon.stop() == 0
    assert set(nasty.tagged(other.line.tag)) == there


@pytest.mark.parametrize("way", nasty.WAYS)
def test_status_counts_all_processes(daemon: Make, way: str) -> None:
    """`status` knows how many there are, whatever they have done to hide; zombies do not count."""
    modes = ("group", "setsid", "daemon", "bare", "headless", "stopped", "zombie")
    it = Job(daemon, way, modes)
    assert it.status().processes == len(modes) + 1
    assert f"{len(modes) + 1} processes" in it.tell("status", "it")[1]
    it.pipe.stop("it", now=True)
    assert it.status().processes == 0


# ---- patience -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", nasty.WAYS)
def test_patience_belongs_to_the_run(daemon: Make, way: str) -> None:
    """When the leader obeys and another does not, the clock goes on. Meanwhile a second stop changes
    nothing, there is no pid, and `status` says what is left."""
    it = Job(daemon, way, ("counter",), spec={"kill-timeout": LONG})
    leader = it.leader
    assert it.tell("stop", "--no-wait", "it")[0] == 0
    it.line.until("term ")
    kit.wait_gone(leader)
    before = it.status()
    assert (before.state, before.pid, before.alive, before.processes) == ("stopping", None, True, 1)
    assert before.until is not None
    assert before.until > time.time() + LONG / 2
    assert it.tell("pid", "it") == (1, "", "")
    code, text, _ = it.tell("status", "it")
    assert (code, text.count("1 process left")) == (0, 1)

    assert it.tell("stop", "--no-wait", "it")[0] == 0
    assert it.status().until == pytest.approx(before.until, abs=0.01)
    assert it.tell("stop", "--now", "it") == (0, "", "")
    it.assert_gone()
    assert len(it.line.pids("term")) == 1


@pytest.mark.parametrize("way", nasty.WAYS)
def test_patience_ends_for_who_is_left(daemon: Make, way: str) -> None:
    """Who is left when the patience of the run ends is killed then, not earlier, not later."""
    it = Job(daemon, way, ("deaf",))
    it.pipe.stop("it")
    it.assert_gone()
    it.watch.until("it", "stopped")
    assert it.states()[-3:] == ["stopping", "killing", "stopped"]
    begin, end = it.watch.seen[-3:-1]
    assert end.cause == "kill-timeout"
    assert PATIENCE - 0.01 < end.time - begin.time < PATIENCE + 1


# ---- the death of a leader ----------------------------------------------------------------------


@pytest.mark.parametrize("way", nasty.WAYS)
def test_the_rest_goes_before_the_next_run_comes(daemon: Make, way: str) -> None:
    """A killed leader's others are brought down with the stop signal and patience, then the policy
    decides: two runs never live at a time, which the job itself would see by a lock."""
    modes = ("group", "setsid", "daemon", "counter")
    it = Job(daemon, way, modes, hold=True, spec={"restart": "on-failure"})
    first = set(nasty.tagged(it.line.tag))
    os.kill(it.leader, signal.SIGKILL)
    it.watch.until("it", "stopping")
    assert it.status().pid is None
    it.watch.until("it", "launched")
    second = it.line.wait_times("leader", 2)
    assert not first & set(nasty.tagged(it.line.tag))
    assert len(it.line.pids("term")) == 1
    assert it.leader == second
    told = [(event.event, event.state) for event in it.watch.seen if event.job == "it"]
    assert told[-5:] == [
        ("state", "stopping"),
        ("state", "killing"),
        ("died", "backoff"),
        ("restarting", "starting"),
        ("launched", "starting"),
    ]
    it.pipe.stop("it", now=True)
    it.line.release()
    it.assert_gone()


@pytest.mark.parametrize("way", nasty.WAYS)
def test_a_leader_that_ends_takes_the_others_along(daemon: Make, way: str) -> None:
    """A grandchild that holds the job's output open keeps nobody waiting: the leader's success is the
    job's, once the rest is gone."""
    it = Job(daemon, way, ("setsid", "daemon", "END"))
    os.kill(it.leader, signal.SIGUSR1)
    it.watch.until("it", "exited")
    it.assert_gone()
    assert it.states()[-2:] == ["stopping", "exited"]
    assert it.status().result == "exit 0"


# ---- kill-scope ---------------------------------------------------------------------------------


def test_scope_group_ends_the_group(daemon: Make) -> None:
    """Under "group" the group is brought down, all of it; who left it stays, and holds nothing up."""
    it = Job(daemon, WITHOUT, ("group", "deaf", "setsid", "hop"), spec={"kill-scope": "group"})
    (stays,) = it.line.pids("setsid")
    it.pipe.stop("it")
    assert set(nasty.tagged(it.line.tag)) == {stays}
    assert it.status().processes == 0
    kit.end_orphan(stays)
    it.assert_gone()


def test_a_zombie_is_no_member(daemon: Make) -> None:
    """A zombie in the group, whose parent lives elsewhere and never reaps it, does not keep a job alive."""
    it = Job(daemon, WITHOUT, ("zombie",), spec={"kill-scope": "group"})
    it.pipe.stop("it", timeout=kit.DEADLINE)
    for pid in it.line.pids("zombie"):
        kit.end_orphan(pid)
    it.assert_gone()


def test_scope_process_ends_the_process(daemon: Make) -> None:
    """Under "process" only the first process counts, at its own end too."""
    it = Job(daemon, WITHOUT, ("group", "setsid"), spec={"kill-scope": "process"})
    others = {*it.line.pids("group"), *it.line.pids("setsid")}
    it.pipe.stop("it")
    assert set(nasty.tagged(it.line.tag)) == others
    for pid in others:
        kit.end_orphan(pid)
    it.assert_gone()


# ---- what cannot be killed ------------------------------------------------------------------------

FREEZER = "/sys/fs/cgroup/freezer"


@pytest.fixture
def freezer() -> Iterator[str]:
    """A cgroup of the old kind: who is frozen in it is in state D, and SIGKILL has no effect."""
    path = f"{FREEZER}/jobmon-test-{os.getpid()}"
    try:
        os.mkdir(path)
    except OSError as error:
        pytest.skip(f"no process can be made unkillable here: {error}")
    try:
        yield path
    finally:
        put(path, "freezer.state", "THAWED")
        while True:
            try:
                os.rmdir(path)
                break
            except OSError:
                for pid in map(int, get(path, "cgroup.procs").split()):
                    kit.end_orphan(pid)


def freeze(path: str, pid: int) -> None:
    put(path, "cgroup.procs", str(pid))
    put(path, "freezer.state", "FROZEN")
    end = time.monotonic() + kit.DEADLINE
    while get(path, "freezer.state") != "FROZEN\n" or kit.processes()[pid].state != "D":
        assert time.monotonic() < end
        os.sched_yield()  # nothing can be waited for here


def put(path: str, name: str, text: str) -> None:
    with open(os.path.join(path, name), "w", encoding="ascii") as file:
        file.write(text)


def get(path: str, name: str) -> str:
    with open(os.path.join(path, name), encoding="ascii") as file:
        return file.read()


@pytest.mark.parametrize("way", nasty.WAYS)
def test_what_hangs_in_the_kernel_is_named(daemon: Make, freezer: str, way: str) -> None:
    """A job of which one process hangs in state D stays killing; log, status and the stop that timed out
    name it. It is never called stopped, until it is.

    Takes one real second: the daemon says it after the second SIGKILL.
    """
    it = Job(daemon, way, ("group", "setsid"))
    (hanging,) = it.line.pids("setsid")
    freeze(freezer, hanging)

    who = f"pid {hanging} (nasty, hangs in the kernel)"
    wanted = f"jobmon: it: timed out: it is still killing: {who}\n"
    assert it.tell("stop", "--timeout", "600ms", "it") == (124, "", wanted)
    assert f"1 process left: pid {hanging} ([nasty])" in it.tell("status", "it")[1]
    assert who in it.daemon.wait_log("does not die of SIGKILL")
    assert it.tell("stop", "--now", "--timeout", "1ms", "it") == (124, "", wanted)
    assert it.status().state == "killing"
    assert "stopped" not in it.states()

    put(freezer, "freezer.state", "THAWED")
    it.watch.until("it", "stopped")
    it.assert_gone()


def test_what_belongs_to_another_user_is_named(daemon: Make) -> None:
    """A daemon that may not kill its job's process says so, and does not call the job stopped.

    Takes one real second, as above.
    """
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root, and setpriv of util-linux, for a daemon without the capability to kill")
    folder = tempfile.mkdtemp(prefix="jobmon-", dir="/tmp")
    try:
        program = shutil.copy(nasty.build(), os.path.join(folder, "nasty"))
        os.chmod(folder, 0o755)
        os.chown(program, 54321, 54321)
        os.chmod(program, 0o4755)
        check_foreign(daemon, program)
    finally:
        shutil.rmtree(folder)


def check_foreign(daemon: Make, program: str) -> None:
    wrapper = [*nasty.without_cgroups(), "setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    it = Job(daemon, WITHOUT, ("FOREIGN", "group"), program=program, options={"wrapper": wrapper})
    leader = it.leader
    code, _, err = it.tell("stop", "--timeout", "600ms", "it")
    assert code == 124
    assert f"pid {leader} (nasty, belongs to another user)" in err
    assert "belongs to another user" in it.daemon.wait_log("does not die of SIGKILL")
    assert it.status().state == "killing"
    for pid in nasty.tagged(it.line.tag):
        os.kill(pid, signal.SIGKILL)
    it.watch.until("it", "stopped")
    it.assert_gone()


# ---- numbers that are somebody else's by now -------------------------------------------------------

RECYCLED = """
import os, signal
from jobmon.linux.processes.members import GroupCrowd, Leader, TreeCrowd
from jobmon.linux.processes.tracker import Tree

def start(mark):
    ours, its = os.pipe()
    os.set_inheritable(its, True)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        words = ["sh", "-c", f"echo up >&{its}; exec sleep 1000"]
        os.execve("/bin/sh", words, {"JOBMON_RUN": mark} if mark else {})
    os.close(its)
    assert os.read(ours, 3) == b"up\\n"
    return pid

def end(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

tree = Tree("us")
leader = Leader(start("us:it:1"))
crowds = TreeCrowd(leader, tree, b"it:1"), GroupCrowd(leader, tree, False)
member = start("us:it:1")
end(leader.pid)
leader.dead = True
with open("/proc/sys/kernel/ns_last_pid", "w") as file:
    file.write(str(leader.pid - 1))
stranger = start("")
assert stranger == leader.pid, (stranger, leader.pid)
tree.forget()
assert [crowd.pids() for crowd in crowds] == [[member], []]
for crowd in crowds:
    crowd.signal(signal.SIGTERM)
    while not crowd.kill():
        pass
try:
    os.waitpid(member, 0)
except ChildProcessError:
    pass  # reaped by the hunt
assert os.waitid(os.P_PID, stranger, os.WEXITED | os.WSTOPPED | os.WNOHANG) is None
tree.forget()
print(leader.pid, [crowd.others() for crowd in crowds])
end(stranger)
"""


def test_a_recycled_number_is_never_signalled() -> None:
    """When the number of a dead leader is a stranger's, session and group too, he is no member and gets
    no signal."""
    spare_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = ["unshare", *spare_root, "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable]
    done = subprocess.run(
        [*command, "-c", RECYCLED], cwd=kit.SOURCES, capture_output=True, text=True, check=False
    )
    if "ns_last_pid" in done.stderr:
        pytest.skip("this kernel does not let us choose a number: CONFIG_CHECKPOINT_RESTORE")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("[False, False]\n")
