"""The processes of jobs on the real kernel, with pidfds and without: no death unseen, nothing left."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import sys
import tempfile
import time

import forbid
import kit
import pytest

from jobmon.core.events import Exited, Launched, LeaderDied, Spawned, SpawnFailed
from jobmon.core.spec import JobSpec, KillScope
from jobmon.linux.kernel import cgroup
from jobmon.linux.kernel.loop import SIGNAL, UNSET, Loop
from jobmon.linux.kernel.signals import SignalSource, name_of
from jobmon.linux.processes import children
from jobmon.linux.processes.children import Children
from jobmon.linux.processes.spawn import Spawner
from jobmon.linux.processes.tracker import Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from jobmon.core.events import ProcessInput

SLEEP = ("sleep", "1000000")
DEADLY = [
    number
    for number in signal.valid_signals()
    if number not in (signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH)  # ignored by default
    and number not in (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)  # these stop
]


class Ward:
    """Children of this process with all that the engine has around them, and what they fed to it."""

    def __init__(self, hierarchy: cgroup.Hierarchy | None = None) -> None:
        kit.be_single_threaded()
        kit.keep_to_ourselves()
        kit.adopt_orphans(True)
        self.folder = tempfile.mkdtemp(prefix="jobmon-", dir="/tmp")
        self.fed: list[ProcessInput] = []
        self.by_job: dict[str, list[ProcessInput]] = {}
        self._hierarchy = hierarchy
        self._signals = SignalSource((signal.SIGCHLD,))
        self.loop = Loop(self._failed)
        self._deadline = UNSET
        marker = os.urandom(8).hex()
        self.tree = Tree(marker)
        self.children = Children(self.loop, self._take, self.tree)
        self._spawner = Spawner(os.environb, marker, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self.loop.add_reader(self._signals.fileno(), self._on_signal, SIGNAL)
        self.fds = set(kit.fds_of(os.getpid()))

    def _failed(self, _where: str, error: Exception) -> None:
        raise AssertionError("a handler failed") from error

    def _take(self, job: str, what: ProcessInput) -> None:
        self.fed.append(what)
        self.by_job.setdefault(job, []).append(what)

    def _on_signal(self, _events: int) -> None:
        if self._signals.read():
            self.children.sweep()

    def start(
        self, job: str, command: str | tuple[str, ...], scope: KillScope = KillScope.GROUP, **rest: Any
    ) -> int:
        """Start a run of a job; its pid. Relative paths are in the ward's folder."""
        spec = JobSpec(job, command, kill_scope=scope, working_dir=self.folder, **rest)
        its = self._hierarchy.create() if self._hierarchy is not None and scope is KillScope.JOB else None
        place = -1 if its is None else its.open()
        try:
            birth = self._spawner.spawn(spec, 1, place)
        finally:
            if place >= 0:
                os.close(place)
        self.children.add(spec, 1, birth, its)
        return birth.pid

    def fifo(self, name: str) -> kit.Fifo:
        return kit.Fifo(os.path.join(self.folder, name))

    def turn(self, *, block: bool = True) -> None:
        self.children.tree.forget()
        self.loop.run_once(block=block)

    def until(self, job: str, kind: type[ProcessInput]) -> ProcessInput:
        """Turn until a job has been fed an input of a kind."""
        end = time.monotonic() + kit.DEADLINE
        self._deadline.cancel()
        self._deadline = self.loop.call_at(end, lambda: None)  # wakes the loop, so that it can fail
        while True:
            for one in self.by_job.get(job, ()):
                if isinstance(one, kind):
                    return one
            assert time.monotonic() < end, f"waited for {kind.__name__} of {job}: {self.by_job.get(job)}"
            self.turn()

    def kinds(self, job: str) -> list[str]:
        return [type(one).__name__ for one in self.by_job.get(job, ())]

    def close(self) -> None:
        for job in list(self.by_job):
            self.children.kill(job, 1)
        while len(self.children):
            self.turn()
        lost = {fd: what for fd, what in kit.fds_of(os.getpid()).items() if fd not in self.fds}
        self.children.close()
        self.loop.close()
        self._signals.close()
        self._spawner.close()
        if self._hierarchy is not None:
            self._hierarchy.close()
            assert not os.path.exists(self._hierarchy.path)
        shutil.rmtree(self.folder)
        kit.adopt_orphans(False)
        assert lost == {}, "descriptors were lost"


def without_pidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "_probe_pidfd", lambda: False)


WAYS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "pidfd": lambda _: None,
    "no group flag": lambda patch: patch.setattr(children, "_probe_group_flag", lambda: False),
    "no pidfd": without_pidfd,
}


@pytest.fixture(params=WAYS)
def ward(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ward]:
    """A ward without cgroups, for each way in which the kernel may be short of pidfds."""
    WAYS[request.param](monkeypatch)
    made = Ward()
    monkeypatch.undo()
    yield made
    made.close()


# ---- deaths -----------------------------------------------------------------------------------


def test_every_exit_code_is_told_as_it_is(ward: Ward) -> None:
    """256 children end with 256 codes at once: each is known, launched before executed before ended."""
    for code in range(256):
        ward.start(f"job {code}", f"exit {code}")
    for code in range(256):
        assert ward.until(f"job {code}", Exited) == Exited(1, code)
        assert ward.kinds(f"job {code}") == ["Launched", "Spawned", "Exited"]

    assert kit.zombies_of(os.getpid()) == set()


def test_every_deadly_signal_is_told_by_its_name(ward: Ward) -> None:
    """Who is killed is told with the signal's name, with a core dump or without."""
    for number in DEADLY:
        ward.start(f"job {number}", f"ulimit -c 0; kill -{number} $$; exec sleep 1000000")
    for number in DEADLY:
        assert ward.until(f"job {number}", Exited) == Exited(1, name_of(number))


def test_deaths_that_share_one_sigchld_are_all_seen(ward: Ward) -> None:
    """Five children die before the loop turns: SIGCHLD is pending once, five deaths are told."""
    pids = [ward.start(f"job {number}", SLEEP) for number in range(5)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    ward.turn(block=False)

    assert [ward.by_job[f"job {number}"][-1] for number in range(5)] == [Exited(1, "SIGKILL")] * 5


def test_a_child_that_only_stops_is_not_dead(ward: Ward) -> None:
    """SIGCHLD for a child that was stopped or goes on is no death."""
    pid = ward.start("web", SLEEP)
    for number, flag in ((signal.SIGSTOP, os.WSTOPPED), (signal.SIGCONT, os.WCONTINUED)):
        os.kill(pid, number)
        os.waitid(os.P_PID, pid, flag)
        ward.turn(block=False)

    assert ward.kinds("web") == ["Launched", "Spawned"]


def test_a_death_before_the_report_is_read_comes_after_it(ward: Ward) -> None:
    """A program that was executed and has ended already was executed first."""
    fifo = ward.fifo("in")
    pid = ward.start("web", ("true",), stdin=fifo.path)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    ward.until("web", Exited)
    fifo.destroy()

    assert ward.by_job["web"] == [Launched(1, pid), Spawned(1), Exited(1, 0)]


def test_a_program_that_cannot_be_executed_is_no_death(ward: Ward) -> None:
    """What a forked child reports is a failed spawn, with stage, path and errno, and no exit code."""
    fifo = ward.fifo("in")
    pid = ward.start("web", ("/nonexistent/tool",), stdin=fifo.path)
    failed = ward.until("web", SpawnFailed)
    fifo.destroy()

    assert failed == SpawnFailed(
        1, "exec", errno.ENOENT, "exec /nonexistent/tool: ENOENT (No such file or directory)"
    )
    assert ward.kinds("web") == ["Launched", "SpawnFailed"]
    assert pid not in kit.processes()


def test_a_grandchild_does_not_hold_the_report(ward: Ward) -> None:
    """The report's pipe ends with the exec, whatever the program starts and leaves."""
    fifo, said = ward.fifo("in"), ward.fifo("said")
    ward.start("web", "sleep 1000000 & echo $! > said; wait", stdin=fifo.path)
    said.line()
    ward.until("web", Spawned)
    for one in (fifo, said):
        one.destroy()


def test_without_a_descriptor_for_it_a_death_is_seen_all_the_same(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When pidfd_open finds the table full, SIGCHLD tells of that child."""

    def full(_pid: int) -> int:
        raise OSError(errno.EMFILE, "full")

    monkeypatch.setattr(os, "pidfd_open", full)
    ward.start("web", "exit 7")
    monkeypatch.undo()

    assert ward.until("web", Exited) == Exited(1, 7)


def test_pidfds_leave_descriptors_for_everything_else(ward: Ward) -> None:
    """However many jobs there are: what is left is enough to start, to look at and to end processes."""
    ward.children._fds = max(kit.fds_of(os.getpid())) + 3
    for number in range(20):
        ward.start(f"web{number}", SLEEP, KillScope.JOB)

    assert max(kit.fds_of(os.getpid())) < ward.children._fds
    for number in range(20):
        ward.children.kill(f"web{number}", 1)
        assert ward.until(f"web{number}", Exited) == Exited(1, "SIGKILL")


# ---- orphans ----------------------------------------------------------------------------------


def test_orphans_are_reaped(ward: Ward) -> None:
    """What a job leaves behind comes to us when its parent ends, and is reaped when it ends."""
    gate = ward.fifo("gate")
    ward.start("web", "(exec setsid sh -c 'read x < gate') & echo $! > pid; exit 0", KillScope.PROCESS)
    ward.until("web", Exited)
    with open(os.path.join(ward.folder, "pid"), encoding="utf-8") as file:
        orphan = int(file.read())
    assert kit.processes()[orphan].parent == os.getpid()

    os.write(gate.fd, b"\n")
    while orphan in kit.processes():
        ward.turn()
    gate.destroy()


def test_without_a_subreaper_no_orphan_would_come() -> None:
    """The control: the test above would not pass if orphans went elsewhere by themselves."""

    def orphans_come(wanted: bool) -> bool:
        kit.adopt_orphans(wanted)
        first = os.fork()
        if first == 0:
            if os.fork() == 0:
                signal.pause()
            os._exit(0)
        os.waitpid(first, 0)
        mine = kit.children_of(os.getpid())
        for pid in mine:
            kit.end_orphan(pid)
        return bool(mine)

    assert kit.in_child(lambda: orphans_come(True)) == "True"


# ---- stopping ---------------------------------------------------------------------------------


def test_stop_sends_the_signal_and_wakes_who_was_stopped(ward: Ward) -> None:
    """A process in SIGSTOP acts on its stop signal because SIGCONT follows."""
    pid = ward.start("web", SLEEP)
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    ward.children.stop("web", 1, signal.SIGTERM)

    assert ward.until("web", Exited) == Exited(1, "SIGTERM")


def test_a_stop_signal_that_stops_is_not_undone(ward: Ward) -> None:
    """SIGCONT does not follow SIGSTOP: who configures that wants it."""
    pid = ward.start("web", SLEEP)
    ward.children.stop("web", 1, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)

    assert kit.processes()[pid].state == "T"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_child_before_its_exec_is_stopped_at_once(ward: Ward, number: int) -> None:
    """A job that waits for a FIFO can be stopped and killed as if it were there already."""
    os.mkfifo(os.path.join(ward.folder, "in"))
    pid = ward.start("web", SLEEP, stdin=os.path.join(ward.folder, "in"))
    assert ward.by_job["web"] == [Launched(1, pid)]

    ward.children.stop("web", 1, number)

    assert ward.until("web", Exited) == Exited(1, name_of(number))


def test_a_late_command_reaches_nobody(ward: Ward) -> None:
    """A signal for a run that is over, or was never there, goes nowhere."""
    pid = ward.start("web", SLEEP)
    for run in (0, 2):
        ward.children.kill("web", run)
        ward.children.stop("web", run, signal.SIGTERM)
        ward.children.deliver("web", run, signal.SIGKILL, every=True)
    ward.children.kill("nobody", 1)

    assert kit.processes()[pid].state != "Z"


# Says on FIFOs that it is up, and then each SIGUSR1 that it gets.
TELLER = """
import os, signal, sys
def tell(path):
    os.write(os.open(path, os.O_WRONLY), (sys.argv[1] + chr(10)).encode())
signal.signal(signal.SIGUSR1, lambda *_: tell("said"))
tell("up")
while True:
    signal.pause()
"""


@pytest.mark.parametrize("scope", KillScope)
@pytest.mark.parametrize("every", [False, True])
def test_a_signal_goes_to_the_leader_or_to_every_process(ward: Ward, scope: KillScope, every: bool) -> None:
    """Without `every` the first process alone gets it; with it all that kill-scope counts get it, once."""
    up, said = ward.fifo("up"), ward.fifo("said")
    with open(os.path.join(ward.folder, "tell"), "w", encoding="utf-8") as file:
        file.write(TELLER)
    tell = f"{sys.executable} -I -S tell"
    ward.start("web", f"{tell} child & exec {tell} leader", scope)
    assert sorted((up.line(), up.line())) == ["child", "leader"]
    expected = ["child", "leader"] if every and scope is not KillScope.PROCESS else ["leader"]

    ward.children.deliver("web", 1, signal.SIGUSR1, every=every)

    assert sorted(said.line() for _ in expected) == expected
    ward.children.deliver("web", 1, signal.SIGUSR1, every=False)
    assert said.line() == "leader"  # and nothing came before it
    for one in (up, said):
        one.destroy()
    if scope is KillScope.PROCESS:
        for pid in kit.descendants_of(ward.children.pids("web")[0]):
            os.kill(pid, signal.SIGKILL)


# ---- stopped means gone -----------------------------------------------------------------------


LEAVES_ONE = "trap '' TERM; sleep 1000000 & echo $! > pid; exit 3"  # the sleep ignores SIGTERM too


def left_by(ward: Ward) -> int:
    with open(os.path.join(ward.folder, "pid"), encoding="utf-8") as file:
        return int(file.read())


@pytest.mark.parametrize("scope", [KillScope.GROUP, KillScope.JOB])
def test_a_run_is_over_when_the_last_of_it_is(ward: Ward, scope: KillScope) -> None:
    """The leader's death is told when it comes; the end, with the leader's status, when nobody is left."""
    ward.start("web", LEAVES_ONE, scope)
    assert ward.until("web", LeaderDied) == LeaderDied(1, 3)
    survivor = left_by(ward)

    ward.children.stop("web", 1, signal.SIGTERM)
    ward.turn(block=False)
    assert "Exited" not in ward.kinds("web")

    ward.children.kill("web", 1)
    assert ward.until("web", Exited) == Exited(1, 3)
    assert survivor not in kit.processes()


def assert_blind_is_patient(ward: Ward, scope: KillScope) -> None:
    """The leader dies while no descriptor is left to look with; later there is one again."""
    pid = ward.start("web", LEAVES_ONE, scope)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        ward.until("web", LeaderDied)
        ward.children.kill("web", 1)
        ward.children.sweep()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    # A pidfd reaches a group without another descriptor, and may prove it empty: only then it is gone.
    assert "Exited" not in ward.kinds("web") or left_by(ward) not in kit.processes()

    ward.children.kill("web", 1)
    assert ward.until("web", Exited) == Exited(1, 3)
    assert left_by(ward) not in kit.processes()


@pytest.mark.parametrize("scope", [KillScope.GROUP, KillScope.JOB])
def test_who_cannot_look_does_not_say_gone(ward: Ward, scope: KillScope) -> None:
    """Or the next run would be started beside what is left of this one."""
    assert_blind_is_patient(ward, scope)


def test_with_kill_scope_process_the_leader_is_all(ward: Ward) -> None:
    """The run is over with its first process; what else lives is let go."""
    ward.start("web", LEAVES_ONE, KillScope.PROCESS)

    assert ward.until("web", Exited) == Exited(1, 3)
    survivor = left_by(ward)
    assert kit.processes()[survivor].parent == os.getpid()
    kit.end_orphan(survivor)


@pytest.mark.parametrize("scope", [KillScope.GROUP, KillScope.JOB])
def test_a_zombie_does_not_keep_a_run_alive(ward: Ward, scope: KillScope) -> None:
    """Leader and child die in the same moment: once reaped, they are gone, and nobody is a survivor."""
    pid = ward.start("web", "sleep 1000000 & echo $! > pid; exec sleep 1000000", scope)
    kit.settled(pid)
    other = left_by(ward)
    for each in (other, pid):
        os.kill(each, signal.SIGKILL)
        kit.wait_gone(each)
    ward.until("web", Exited)

    assert "LeaderDied" not in ward.kinds("web") or ward.kinds("web")[-1] == "Exited"
    assert kit.zombies_of(os.getpid()) == set()


def test_one_that_left_the_session_is_found_by_kill_scope_job(ward: Ward) -> None:
    """A session of its own is no way out: who descends from the leader, or has its marker, belongs to it."""
    ward.start("web", "trap '' TERM; setsid sleep 1000000 & echo $! > pid; exit 0", KillScope.JOB)
    ward.until("web", LeaderDied)
    ward.children.kill("web", 1)
    ward.until("web", Exited)

    assert left_by(ward) not in kit.processes()


# ---- in a cgroup ------------------------------------------------------------------------------


@pytest.fixture
def cgroup_ward(request: pytest.FixtureRequest) -> Iterator[Ward]:
    try:
        hierarchy = cgroup.Hierarchy(os.urandom(8).hex())
    except cgroup.Unavailable as error:
        pytest.skip(f"no cgroups here: {error}")
    made = Ward(hierarchy)
    yield made
    made.close()


def test_in_a_cgroup_a_run_is_over_when_the_cgroup_is_empty(cgroup_ward: Ward) -> None:
    """Nobody escapes: a session of its own and a cleared environment do not hide a process."""
    ward = cgroup_ward
    ward.start("web", "trap '' TERM; env -i setsid sleep 1000000 & exit 4", KillScope.JOB)
    assert ward.until("web", LeaderDied) == LeaderDied(1, 4)

    ward.children.kill("web", 1)

    assert ward.until("web", Exited) == Exited(1, 4)
    assert ward.kinds("web") == ["Launched", "Spawned", "LeaderDied", "Exited"]


def test_who_cannot_look_into_a_cgroup_does_not_say_gone(cgroup_ward: Ward) -> None:
    """What cannot be read is not empty."""
    assert_blind_is_patient(cgroup_ward, KillScope.JOB)


def test_while_the_rest_of_a_cgroup_lives_the_loop_sleeps(cgroup_ward: Ward) -> None:
    """What does not die on its signal costs no processor time: its end wakes the loop, nothing before."""
    ward = cgroup_ward
    ward.start("web", LEAVES_ONE, KillScope.JOB)
    ward.until("web", LeaderDied)
    for _ in range(10):
        ward.turn(block=False)
    used = time.process_time()
    soon = ward.loop.call_later(0.1, lambda: None)
    turns = 0
    while soon.active:
        ward.turn()
        turns += 1

    assert turns <= 3
    assert time.process_time() - used < 0.05


def test_a_failed_exec_in_a_cgroup_leaves_no_cgroup(cgroup_ward: Ward) -> None:
    """A run that never was leaves nothing in /sys either."""
    ward = cgroup_ward
    ward.start("web", ("/nonexistent/tool",), KillScope.JOB)
    ward.until("web", SpawnFailed)
    assert ward._hierarchy is not None

    assert [name for name in os.listdir(ward._hierarchy.path) if name.isdigit()] == []


# ---- a whole daemon under a real filter ---------------------------------------------------------

RULES = [
    "",
    "pidfd_open=ENOSYS",
    "pidfd_open=EPERM",
    "pidfd_send_signal+3=EINVAL",
    "pidfd_send_signal=EPERM",
    "clone3=ENOSYS",
]
LIFE: dict[str, dict[str, Any]] = {
    "plain": {"command": kit.FOR_EVER},
    "code": {"command": "exit 7"},
    "stubborn": {"command": "trap '' TERM; echo > up; while :; do read x < gate; done", "kill-timeout": 0.1},
    "group": {"command": LEAVES_ONE, "kill-scope": "group", "kill-timeout": 0.1},
    "tree": {"command": f'setsid sh -c "{LEAVES_ONE}" & wait', "kill-timeout": 0.1},
    "process": {"command": kit.FOR_EVER, "kill-scope": "process"},
}


@pytest.mark.parametrize("rule", RULES)
def test_a_daemon_lives_without(daemon: Callable[..., kit.Daemon], rule: str) -> None:
    """Start, death, kill, stop, patience, what a leader leaves: the same under every filter."""
    one = daemon({"jobs": LIFE}, wrapper=forbid.forbidding(rule))
    up, gate = one.fifo("up"), one.fifo("gate")
    watch, pipe = one.watch(), one.pipe()
    pipe.start("plain", "stubborn", "process")
    up.line()
    plain = pipe.get_pid("plain")
    assert plain
    os.kill(plain, signal.SIGKILL)
    assert watch.until("plain", "died").cause == "SIGKILL"
    pipe.stop("process")
    assert watch.until("process", "died").cause == "SIGTERM"
    pipe.stop("stubborn")
    assert watch.until("stubborn", "died").cause == "SIGKILL"
    pipe.start_job("code")
    assert watch.until("code", "died").cause == "exit 7"
    pipe.start_job("group")
    assert watch.until("group", "failed").cause == "exit 3"
    pipe.start("tree")
    pipe.stop("tree")

    assert kit.descendants_of(one.pid) == set()
    assert "internal error (please report)" not in one.log
    assert one.stop() == 0
    assert gate.text == ""


@pytest.mark.parametrize("rule", ["pidfd_open=ENOSYS", "pidfd_open=EPERM"])
def test_the_filter_is_real(daemon: Callable[..., kit.Daemon], rule: str) -> None:
    """The control: under the filter the daemon has no pidfd, without it one for each child."""
    config = {"jobs": {"web": {"command": kit.FOR_EVER, "autostart": True}}}
    filtered = daemon(config, wrapper=forbid.forbidding(rule))
    plain = daemon(config)

    assert pidfds_of(filtered.pid) == 0
    assert pidfds_of(plain.pid) == 1


def pidfds_of(pid: int) -> int:
    return sum("pidfd" in what for what in kit.fds_of(pid).values())


def test_a_look_that_is_due_sooner_is_not_put_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later look replaces no sooner one: the death that only a look can find is found by the first."""
    without_pidfd(monkeypatch)
    ward = Ward()
    ward.loop.remove_reader(ward._signals.fileno())  # nobody hears SIGCHLD
    pid = ward.start("web", "exit 7")
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    ward.children.look_within(0.01)
    ward.children.look_within(1000.0)

    assert ward.until("web", Exited) == Exited(1, 7)
    ward.close()
