"""Without cgroups: who belongs to a run, by evidence that nobody else can have, and who is looked at."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
import time

import kit
import nasty
import pytest
from test_children import Ward

from jobmon.core.events import Exited, LeaderDied, Spawned
from jobmon.core.spec import KillScope
from jobmon.linux.kernel import cgroup, procfs, scan
from jobmon.linux.processes import members as crowds
from jobmon.linux.processes.tracker import Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")


@pytest.fixture
def ward() -> Iterator[Ward]:
    """Children without cgroups."""
    made = Ward()
    yield made
    made.close()


# ---- numbers that are given out again -----------------------------------------------------------

RECYCLED = """
import os, signal, sys
from jobmon.linux.kernel import procfs
from jobmon.linux.processes.members import GroupCrowd, Leader, TreeCrowd
from jobmon.linux.processes.tracker import Tree
import prctl

def start(mark, then="exec sleep 1000"):
    ours, its = os.pipe()
    os.set_inheritable(its, True)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        words = ["sh", "-c", f"echo up >&{its}; {then}"]
        os.execve("/bin/sh", words, {"JOBMON_RUN": mark} if mark else {})
    os.close(its)
    assert os.read(ours, 3) == b"up\\n"
    return pid

def end(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

mark, pidfd = sys.argv[1], sys.argv[2] == "pidfd"
prctl.set_child_subreaper(1)
tree = Tree("us")
leader = Leader(start("us:it:1"))
if pidfd:
    leader.pidfd = os.pidfd_open(leader.pid)
crowds = TreeCrowd(leader, tree, b"it:1"), GroupCrowd(leader, tree, False)
other = TreeCrowd(Leader(start("us:other:1")), tree, b"other:1")
member = start("us:it:1")
end(leader.pid)
leader.dead = True
now = procfs.ticks()
while procfs.ticks() == now:
    pass
with open("/proc/sys/kernel/ns_last_pid", "w") as file:
    file.write(str(leader.pid - 1))
stranger = start(mark, "sleep 1000 & exit")
assert stranger == leader.pid, (stranger, leader.pid)
os.waitpid(stranger, 0)
(orphan,) = [pid for pid in procfs.children(1) if procfs.stat(pid).session == leader.pid]
for _ in range(3):
    tree.forget()
    assert [crowd.pids() for crowd in crowds] == [[member], []]
assert (orphan in other.pids()) == bool(mark)
assert (orphan in [fact.pid for fact in tree.strays()]) == (not mark)
print("right")
"""


@pytest.mark.parametrize("pidfd", ["pidfd", "none"])
@pytest.mark.parametrize("mark", ["", "us:other:1"], ids=["unmarked", "of another run"])
def test_the_session_of_a_recycled_number_is_another(mark: str, pidfd: str) -> None:
    """When a session has the number of a dead leader again, nobody in it is a member, whether its first
    process lives or not; the marker of another run counts for that one."""
    spare_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = ["unshare", *spare_root, "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable]
    done = subprocess.run(
        [*command, "-c", RECYCLED, mark, pidfd],
        cwd=kit.SOURCES,
        capture_output=True,
        text=True,
        check=False,
        timeout=kit.DEADLINE,
    )
    if "ns_last_pid" in done.stderr:
        pytest.skip("this kernel does not let us choose a number: CONFIG_CHECKPOINT_RESTORE")
    assert done.stdout == "right\n", done.stderr


def test_who_was_born_in_the_session_of_a_dead_leader_is_a_member(ward: Ward) -> None:
    """An orphan without a marker is the run's for its session, which it got while its leader lived."""
    ward.start("web", "trap '' TERM; env -i sleep 1000000 & echo $! > pid; exit 3", KillScope.JOB)
    assert ward.until("web", LeaderDied) == LeaderDied(1, 3)
    with open(os.path.join(ward.folder, "pid"), encoding="ascii") as file:
        assert ward.children.pids("web") == [int(file.read())]


def test_a_group_of_that_number_in_another_session_is_another(ward: Ward) -> None:
    """A member of a group counts only in the session in which the leader made it."""
    pid = kit.settled(ward.start("web", ("sleep", "1000000"), KillScope.GROUP))
    fact = procfs.stat(pid)
    assert fact is not None
    crowd = ward.children._by_job["web"].crowd
    ward.tree.forget()
    assert crowd.pids() == [pid]
    fact.session += 1
    ward.tree._looked().table[pid] = fact
    assert crowd.pids() == []


# ---- markers that anybody can write ---------------------------------------------------------------


FORGE = """export JOBMON_RUN="${JOBMON_RUN%:other:*}:web:1"
setsid sh -c 'echo $$ > up; exec sleep 1000000' &
"""


@ROOT_ONLY
@pytest.mark.parametrize("user", [0, 65534])
def test_a_marker_alone_speaks_for_its_own_user_only(ward: Ward, user: int) -> None:
    """Whoever has the marker of a run by forgery, and a user that nobody of the run has, is not of its kin;
    it ends with it."""
    up = ward.fifo("up")
    os.chmod(up.path, 0o666)
    web = kit.settled(ward.start("web", ("sleep", "1000000"), KillScope.JOB))
    os.chmod(ward.folder, 0o755)
    with open(os.path.join(ward.folder, "forge"), "w", encoding="ascii") as file:
        file.write(FORGE)
    become = ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "sh", "forge")
    ward.start("other", become, KillScope.JOB)
    forger = kit.settled(int(up.line()))
    ward.until("other", Exited)

    assert set(ward.children.pids("web")) == {web, forger}
    assert set(ward.children.kin("web")) == ({web} if user else {web, forger})

    ward.children.kill("web", 1)
    ward.until("web", Exited)
    assert forger not in kit.processes()
    up.destroy()


CLAIMS = """import ctypes, os, signal, sys
class Map(ctypes.Structure):  # struct prctl_mm_map
    _fields_ = [(name, ctypes.c_uint64) for name in (
        "start_code", "end_code", "start_data", "end_data", "start_brk", "brk", "start_stack",
        "arg_start", "arg_end", "env_start", "env_end", "auxv")]
    _fields_ += [("auxv_size", ctypes.c_uint32), ("exe_fd", ctypes.c_uint32)]
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.sbrk.restype = ctypes.c_void_p
size = int(sys.argv[1])
NORESERVE, PRIVATE_ANONYMOUS = 0x4000, 0x22
start = libc.mmap(None, ctypes.c_size_t(size), 3, PRIVATE_ANONYMOUS | NORESERVE, -1, ctypes.c_long(0))
field = [0, 0, 0] + open("/proc/self/stat").read().rpartition(")")[2].split()
field = [int(word) if str(word).isdigit() else 0 for word in field]
claim = Map(field[26], field[27], field[45], field[46], field[47], libc.sbrk(0), field[28],
            start, start + size, start, start + size, 0, 0, 0xFFFFFFFF)
PR_SET_MM, PR_SET_MM_MAP = 35, 14
if libc.prctl(PR_SET_MM, PR_SET_MM_MAP, ctypes.byref(claim), ctypes.c_ulong(ctypes.sizeof(claim)), 0):
    sys.exit(os.strerror(ctypes.get_errno()))
if os.fork() == 0:  # an orphan in a session of its own: nothing but its environment can tell whose it is
    os.setsid()
    if os.fork() == 0:
        print("up", os.getpid(), file=open(sys.argv[2], "w"), flush=True)
        signal.pause()
    os._exit(0)
signal.pause()
"""


def claimer(size: int, fifo: kit.Fifo) -> tuple[str, ...]:
    """A program of which a descendant claims arguments and an environment of so many bytes."""
    return sys.executable, "-c", CLAIMS, str(size), fifo.path


def test_of_a_claimed_environment_a_beginning_is_read(ward: Ward) -> None:
    """However long a process says that its environment and its arguments are, a read is bounded."""
    up = ward.fifo("up")
    ward.start("web", claimer(1 << 24, up), KillScope.JOB)
    pid = int(up.line().split()[1])
    assert len(procfs.environ(pid) or b"") == 1 << 17
    assert len(procfs.cmdline(pid) or []) <= 1 << 17
    assert procfs.describe(pid).startswith(f"pid {pid} (")
    ward.children.kill("web", 1)
    ward.until("web", Exited)
    kit.end_orphan(pid)
    up.destroy()


@pytest.mark.slow
def test_a_claimed_environment_keeps_nobody_waiting(daemon: Callable[..., kit.Daemon]) -> None:
    """A daemon without cgroups answers while a stray claims an environment of a gigabyte."""
    one = daemon({"jobs": {"quick": {"command": "exit 0"}}}, wrapper=nasty.without_cgroups())
    up = one.fifo("up")
    one.configure({"jobs": {"quick": {"command": "exit 0"}, "it": {"command": list(claimer(1 << 30, up))}}})
    assert one.run_cli("reload").code == 0
    assert one.run_cli("start", "it").code == 0
    pid = int(up.line().split()[1])
    assert one.pipe().overview()[1] == [pid]
    assert one.run_cli("stop", "it").code == 0
    assert one.stop() == 0
    assert pid not in kit.processes()


def test_the_marker_comes_first(ward: Ward) -> None:
    """An environment that begins with the marker says whose it is, however long it is."""
    pid = kit.settled(ward.start("web", ("sleep", "1000000"), KillScope.JOB, env={"LONG": "x" * 100_000}))
    assert (procfs.environ(pid) or b"").startswith(b"JOBMON_RUN=")


EXECS = 10
STRINGS = 200_000  # which the kernel copies for some milliseconds


@pytest.mark.slow
def test_of_an_exec_nothing_is_told_but_its_end(ward: Ward) -> None:
    """While the kernel lays out a program, its arguments are there and its environment is not: that is no
    empty one. One that is empty is known at once."""
    environ = {"JOBMON_RUN": "us:it:1", **{f"{number:x}": "" for number in range(STRINGS)}}
    pid = os.fork()
    if pid == 0:
        try:
            resource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            os.execve("/usr/bin/env", ["env"] * EXECS + ["-i", "sleep", "1000000"], environ)
        finally:
            os._exit(1)
    seen, last = [], procfs.stat(pid)
    while last is not None and last.comm != "sleep":
        tree = Tree("us")
        tree.let_go("it")
        if tree.is_let_go(last):
            seen.append(True)
        elif seen and last.comm == "env":
            seen.append(tree.is_doubtful(last) or "sleep" in (procfs.cmdline(pid) or [])[:1])
        last = procfs.stat(pid)
    assert len(seen) > EXECS
    assert all(seen)
    bare = procfs.stat(kit.settled(pid))
    assert bare is not None
    assert not Tree("us").is_doubtful(bare)
    kit.end_orphan(pid)


# ---- scans that take longer than a turn -------------------------------------------------------------

MANY = "for n in 1 2 3 4 5 6 7 8; do sleep 1000000 & done; echo up > up; exec sleep 1000000"


@pytest.fixture
def slow_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan has time for a few processes in each turn."""
    monkeypatch.setattr(scan, "MOST_SECONDS", 0.0005)


def test_a_slow_scan_kills_whom_it_stopped(ward: Ward, slow_scans: None) -> None:
    """Everybody is killed when the scan takes many turns; nobody is left stopped."""
    up = ward.fifo("up")
    ward.start("web", MANY, KillScope.JOB)
    assert up.line() == "up"
    everybody = kit.descendants_of(os.getpid())
    assert len(everybody) == 9
    ward.children.kill("web", 1)
    assert ward.until("web", Exited) == Exited(1, "SIGKILL")
    assert not everybody & set(kit.processes())
    up.destroy()


HEAR = """import os, signal
signal.signal(signal.SIGTERM, lambda *_: print("heard", file=open("up", "w")))
print("up", file=open("up", "w"))
while True:
    signal.pause()
"""


def test_a_slow_scan_signals_everybody_once(ward: Ward, slow_scans: None) -> None:
    """A stop signal reaches those to whom the scan comes in a later turn, and everybody once."""
    up = ward.fifo("up")
    with open(os.path.join(ward.folder, "hear"), "w", encoding="ascii") as file:
        file.write(HEAR)
    ward.start(
        "web", "trap '' TERM; " + f"{sys.executable} hear & " * 4 + "exec sleep 1000000", KillScope.JOB
    )
    for _ in range(4):
        assert up.line() == "up"
    ward.children.stop("web", 1, signal.SIGTERM)
    while ward.children._owing:
        ward.turn()
    assert [up.line() for _ in range(4)] == ["heard"] * 4
    ward.children.kill("web", 1)
    ward.until("web", Exited)
    assert up.drain().count("heard") == 4
    up.destroy()


def test_whoever_was_stopped_is_killed(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hunt that runs out of its turns kills all that it has stopped, found again or not."""
    up = ward.fifo("up")
    leader = ward.start("web", MANY, KillScope.JOB)
    assert up.line() == "up"
    everybody = kit.descendants_of(os.getpid())
    prey = ward.tree.members(ward.children._by_job["web"].crowd)  # type: ignore[arg-type]
    shown = [list(prey), []]
    hunt = crowds.Hunt(ward.tree, lambda: shown.pop(0) if shown else [])
    monkeypatch.setattr(crowds, "HUNT_GOES", 1)
    assert hunt.go_on()
    for pid in everybody:
        kit.wait_gone(pid)
    assert leader in everybody
    up.destroy()


# ---- what is taken away under the daemon ------------------------------------------------------------

TAKEN = {
    "/proc unmounted": (nasty.WITHOUT, "umount -l /proc"),
    "/proc covered": (nasty.WITHOUT, "mount -t tmpfs none /proc"),
    "cgroups unmounted": (nasty.WITH, 'umount -l "$1"'),
    "cgroups covered": (nasty.WITH, 'mount -t tmpfs none "$1"'),
    "both unmounted": (nasty.WITH, 'umount -l "$1" && umount -l /proc'),
}


@pytest.mark.slow
@pytest.mark.parametrize(("way", "script"), TAKEN.values(), ids=TAKEN)
def test_what_is_unmounted_is_not_taken_for_empty(
    daemon: Callable[..., kit.Daemon], way: str, script: str
) -> None:
    """A stop still means gone, and the next run gets its cgroup, when /proc or the cgroups are taken away."""
    nasty.options(way)
    wrapper = nasty.without_cgroups() if way == nasty.WITHOUT else nasty.in_namespace("true")
    deaf = "trap '' TERM; setsid sleep 1000000 & echo $! > up; exec sleep 1000000"
    one = daemon({"jobs": {"it": {"command": deaf, "kill-timeout": 0.1}}}, wrapper=wrapper)
    up = one.fifo("up")
    for round_ in range(2):
        assert one.run_cli("start", "it").code == 0
        others = {int(up.line()), one.pipe().get_pid("it")}
        if round_ == 0:
            enter = ["nsenter", "--mount", f"--target={one.pid}"]
            command = [*enter, "sh", "-c", script, "sh", nasty.mount_point()]
            subprocess.run(command, check=True, timeout=kit.DEADLINE)
        assert one.pipe().status("it")[0].processes == 2
        assert one.run_cli("stop", "it").code == 0
        assert not others & set(kit.processes())
    assert "internal error" not in one.log


@pytest.mark.slow
def test_who_opens_a_fifo_needs_no_proc(daemon: Callable[..., kit.Daemon]) -> None:
    """A job whose child opens its streams is started when /proc is covered, and holds nothing else."""
    nasty.options(nasty.WITH)
    job = {"command": kit.FOR_EVER, "stdin": "in"}
    one = daemon({"jobs": {"it": job}}, wrapper=nasty.in_namespace("true"))
    os.mkfifo(one.path("in"))
    enter = ["nsenter", "--mount", f"--target={one.pid}", "mount", "-t", "tmpfs", "none", "/proc"]
    subprocess.run(enter, check=True, timeout=kit.DEADLINE)
    watch = one.watch()
    one.pipe().start("it", wait=False)
    watch.until("it", "launched")
    with open(one.path("in"), "wb"):
        assert watch.until("it", "running").pid
        assert len(kit.fds_of(one.pipe().get_pid("it") or 0)) == 3


# ---- the order of things ------------------------------------------------------------------------------


@pytest.fixture(params=[nasty.WITH, nasty.WITHOUT])
def either(request: pytest.FixtureRequest) -> Iterator[Ward]:
    """Children with cgroups, and without."""
    if request.param == nasty.WITH:
        nasty.options(nasty.WITH)
    made = Ward(cgroup.Hierarchy(os.urandom(8).hex()) if request.param == nasty.WITH else None)
    yield made
    made.close()


TIDIES = """import os, signal
def tidy(*_):
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        print("tidying", os.getpid(), file=open("up", "w"), flush=True)
        signal.pause()
signal.signal(signal.SIGTERM, tidy)
print("up", file=open("up", "w"), flush=True)
while True:
    signal.pause()
"""


def test_whom_the_leader_starts_when_it_hears_is_not_signalled(
    either: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who gets a signal is listed before the leader hears of it: a helper that it starts then lives on."""
    up = either.fifo("up")
    with open(os.path.join(either.folder, "tidy"), "w", encoding="ascii") as file:
        file.write(TIDIES)
    leader = either.start("web", (sys.executable, "tidy"), KillScope.JOB)
    either.until("web", Spawned)
    assert up.line() == "up"
    helpers: list[int] = []
    sends = crowds.Leader.send

    def send(self: crowds.Leader, number: int) -> None:
        sends(self, number)
        if number == signal.SIGTERM:
            helpers.append(int(up.line().split()[1]))

    monkeypatch.setattr(crowds.Leader, "send", send)
    either.tree.forget()
    either.children.deliver("web", 1, signal.SIGTERM, every=True)
    monkeypatch.undo()
    (helper,) = helpers
    os.kill(helper, 0)
    assert status_bits(helper, "SigPnd") == status_bits(helper, "ShdPnd") == 0
    either.tree.forget()
    assert {leader, helper} == set(either.children.pids("web"))
    up.destroy()


def status_bits(pid: int, name: str) -> int:
    return int(kit.status_of(pid)[name], 16)


def test_the_group_is_stopped_before_anybody_is_looked_for(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL begins with one SIGSTOP for the leader's group, which nobody can fork away from."""
    up = ward.fifo("up")
    ward.start("web", MANY, KillScope.JOB)
    assert up.line() == "up"
    everybody = kit.descendants_of(os.getpid())
    monkeypatch.setattr(crowds.Hunt, "go_on", lambda _hunt: True)
    ward.children.kill("web", 1)
    monkeypatch.undo()
    end = time.monotonic() + kit.DEADLINE
    while {kit.processes()[pid].state for pid in everybody} != {"T"}:
        assert time.monotonic() < end
        os.sched_yield()
    up.destroy()


def test_a_hunt_looks_twice_for_newcomers(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two looks in a row at the children that came must find nobody before all processes are looked at."""
    pid = kit.settled(ward.start("web", ("sleep", "1000000"), KillScope.JOB))
    fact = procfs.stat(pid)
    assert fact is not None
    listed: list[bool] = []
    lists = scan.Scan._list

    def listing(self: scan.Scan) -> bool:
        listed.append(bool(hunt._stopped))
        return lists(self)

    monkeypatch.setattr(scan.Scan, "_list", listing)
    shown = [[], [fact]]

    def prey() -> list[procfs.Stat]:
        ward.tree.strays()  # as all do, it goes by the present scan
        return shown.pop(0) if shown else []

    hunt = crowds.Hunt(ward.tree, prey)
    end = time.monotonic() + kit.DEADLINE
    while not hunt.go_on():
        assert time.monotonic() < end
    assert listed
    assert all(listed)
    kit.wait_gone(pid)


def test_an_end_just_before_the_watch_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends after the look and before its cgroup is watched wakes nobody, and is seen all the same."""
    nasty.options(nasty.WITH)
    ward = Ward(cgroup.Hierarchy(os.urandom(8).hex()))
    watches = crowds.CgroupCrowd.watch

    def watch(self: crowds.CgroupCrowd) -> int:
        news = self._cgroup.open_events()
        assert self._cgroup.populated()
        for pid in self._cgroup.pids():
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED)
        poller = select.poll()
        poller.register(news, select.POLLPRI)
        while self._cgroup.populated():
            assert poller.poll(kit.DEADLINE * 1000)
            os.pread(news, 4096, 0)
        os.close(news)
        signal.sigtimedwait([signal.SIGCHLD], 0)
        return watches(self)

    monkeypatch.setattr(crowds.CgroupCrowd, "watch", watch)
    ward.start("web", "trap '' TERM; sleep 1000000 & exit 3", KillScope.JOB)
    assert ward.until("web", LeaderDied) == LeaderDied(1, 3)
    assert ward.until("web", Exited) == Exited(1, 3)
    monkeypatch.undo()
    ward.close()
