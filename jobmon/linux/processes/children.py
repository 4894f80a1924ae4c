"""The processes of the jobs: known from their birth until nothing of the run is left.

Turns kernel events into process inputs; decides nothing. A run has a leader, its first process, and a crowd
(see `members`), which answers for all processes of the run and never trusts a number alone.

Of each run the policy is told, in this order:

    Launched      it is forked: told with the next input, or earlier if its exec may take long
    Spawned       its program is being executed: the exec has closed the report pipe
    LeaderDied    the leader is dead and others of the run live; not told if nobody else does
    Exited        nothing of the run is left; SpawnFailed instead if the report said why there was no exec

Why the kernel's events cannot change that order:

- Report before death. A report and a death that are ready in the same turn are dispatched in this order, by
  priority. They may also be seen in different turns, or the death by SIGCHLD alone; so every way to a death
  leads through `_leader_dead`, which reads the report to its end before it tells anything.
- Death before the next look. The leader is reaped as soon as it is dead, whatever it has left: a zombie that
  is kept would be reported by waitid(P_ALL) again and again, and hide the orphans behind it. Both its pidfd
  (pidfd_open(2), Linux 5.3; some containers forbid it) and SIGCHLD tell of a death. The first one reaps; the
  second one finds nothing, as `_bury` removes the pidfd from the loop. From then on the leader's number may
  be given to somebody else.
- Survivors before the end. The daemon is the subreaper of the jobs: the children of a process belong to the
  daemon before the death of the process can be seen, so a look after the death can find them. Zombies may
  count as members of a group or a cgroup; therefore the dead orphans are reaped and the question is asked
  again. A look that cannot be made, for want of a descriptor, counts as if somebody lived: the opposite would
  start the next run beside this one.

The end of the survivors is told by `cgroup.events` where the run has a cgroup. Elsewhere only looking tells:
at each SIGCHLD, and after 10 ms, 20 ms, and so on up to every second. After such a look the daemon rests for
three times as long as the look took, so that a storm of deaths cannot occupy it. If the run was sent SIGKILL,
the look sends it again to what is left.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import time

from jobmon.core.events import Exited, Launched, LeaderDied, Spawned, SpawnFailed
from jobmon.core.spec import KillScope
from jobmon.lean.cpython import signal
from jobmon.linux.kernel import procfs, syscalls
from jobmon.linux.kernel.loop import CHILD, EXEC, UNSET
from jobmon.linux.kernel.signals import name_of
from jobmon.linux.processes import spawn
from jobmon.linux.processes.members import CgroupCrowd, Crowd, GroupCrowd, Leader, TreeCrowd
from jobmon.linux.processes.migrants import Migrants

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from jobmon.core.events import ProcessInput, Status
    from jobmon.core.spec import JobSpec
    from jobmon.errors import SpawnError
    from jobmon.linux.kernel.cgroup import Cgroup
    from jobmon.linux.kernel.loop import Loop
    from jobmon.linux.processes.tracker import Tree

    Feed = Callable[[str, ProcessInput], None]

# Where only looking tells whether the rest is gone: look soon, then ever more rarely (seconds).
FIRST_LOOK = 0.01
LAST_LOOK = 1.0
NEXT_LOOK = 0.001  # where a look goes on in the next turn of the loop
REST = 3  # and after each look rest for so many times as long as it took, whoever dies meanwhile
REAPS_PER_SWEEP = 1000
SPARE_FDS = 32  # no pidfd takes these: without them nobody could be started, looked at or signalled
END_SECONDS = 5.0  # for a daemon whose loop cannot go on to kill what it has launched
NAMED = 10  # processes of a job in a message


class Child(Leader):
    """The leader of one run, and through its crowd all of the run. `hunted`: SIGKILL was sent."""

    __slots__ = (
        "_keeper",
        "crowd",
        "failure",
        "hunted",
        "job",
        "known",
        "marks",
        "report",
        "run",
        "spec",
        "status",
        "watch",
    )

    def __init__(self, keeper: Children, spec: JobSpec, run: int, pid: int) -> None:
        super().__init__(pid)
        self._keeper = keeper
        self.job = spec.name
        self.spec = spec
        self.run = run
        self.crowd = Crowd(self)
        self.known = False  # whether Launched was fed
        self.report = -1
        self.watch = -1
        self.hunted = False
        self.status: Status = None
        self.failure: SpawnError | None = None
        self.marks: dict[str, int] = {}  # where its streams begin, as far as it has opened them itself

    @property
    def key(self) -> bytes:
        """What the marker of its processes says."""
        return spawn.run_key(self.job, self.run)

    @property
    def leader(self) -> Leader:
        """Its first process: itself."""
        return self

    def on_death(self, _events: int) -> None:
        """Its pidfd is readable."""
        self._keeper.reap(self)

    def on_report(self, _events: int) -> None:
        """It has said, or shown by its exec, what became of it."""
        self._keeper.read_report(self)


class Children:
    """All processes of all jobs. What happens to them is fed to `feed(job, input)`."""

    def __init__(self, loop: Loop, feed: Feed, tree: Tree) -> None:
        self._loop = loop
        self._feed = feed
        self._next_look = UNSET
        self._by_job: dict[str, Child] = {}
        self._by_pid: dict[int, Child] = {}
        self._draining: dict[str, Child] = {}
        self._hunting: dict[str, Child] = {}
        self._owing: dict[str, Child] = {}  # a signal to everybody has not reached all yet
        self._unclosed: list[Crowd] = []
        self._guests: dict[int, Callable[[os.waitid_result], None]] = {}
        self._hosts: dict[int, str] = {}  # guests that are there for a job
        self._interval = FIRST_LOOK
        self._rest_until = 0.0
        self.tree = tree
        self.migrants = Migrants(tree)
        self.has_pidfd = _probe_pidfd()
        self.has_group_flag = self.has_pidfd and _probe_group_flag()
        self._fds = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_FDS

    def __len__(self) -> int:
        return len(self._by_job)

    def add(self, spec: JobSpec, run: int, birth: spawn.Birth, its: Cgroup | None = None) -> None:
        """A process was started for `run` of a job, in a cgroup of its own if there is one."""
        child = Child(self, spec, run, birth.pid)
        self._by_job[spec.name] = self._by_pid[birth.pid] = child
        self.tree.add_leader(birth.pid)
        self._watch_death(child)
        child.crowd = self._crowd(child, spec.kill_scope, its)
        if birth.waits:
            self._launched(child)
        if birth.report < 0:
            self._executed(child)
            return
        child.report = birth.report
        self._loop.add_reader(birth.report, child.on_report, EXEC)

    def show(self, job: str, run: int) -> None:
        """The exec of a run takes long: from now on its process is known to all."""
        child = self._find(job, run)
        if child is not None and child.report >= 0:
            self._launched(child)

    def add_guest(self, pid: int, ended: Callable[[os.waitid_result], None], job: str = "") -> None:
        """A child that leads no run: `ended` is told when it has been reaped. If it is there for a `job`, the
        run of that one is not gone before, for what it leaves may be the run's."""
        self._guests[pid] = ended
        if job:
            self._hosts[pid] = job
        self.tree.add_leader(pid)

    @property
    def guests(self) -> int:
        """How many of those there are."""
        return len(self._guests)

    def pids(self, job: str) -> list[int]:
        """All living processes of a job's run, as far as they can be known."""
        child = self._by_job.get(job)
        if child is None:
            return []
        try:
            return child.crowd.pids()
        except OSError:  # no descriptor is left to look with
            return [] if child.dead else [child.pid]

    def kin(self, job: str) -> list[int]:
        """All living processes that a job's run has started, whomever a stop of it reaches. Not those of
        another user for whom their marker alone speaks: anybody may have written it there."""
        child = self._by_job.get(job)
        if child is None:
            return []
        if child.spec.kill_scope is KillScope.JOB:
            return child.crowd.kin()
        return self.tree.trusted(self.tree.members(child))

    def runs(self) -> Iterator[tuple[JobSpec, int, int, str]]:
        """All runs: as they were launched, their number, their first process, the name of their cgroup."""
        for child in self._by_job.values():
            yield child.spec, child.run, child.pid, child.crowd.place

    def marks(self, job: str) -> Mapping[str, int]:
        """Where the streams begin that its run has opened by itself."""
        child = self._by_job.get(job)
        return {} if child is None else child.marks

    def cgroup(self, job: str) -> int:
        """A descriptor of the directory of its run's cgroup; -1: it has none. Raises OSError."""
        child = self._by_job.get(job)
        return -1 if child is None else child.crowd.open()

    def left(self, job: str) -> str:
        """The same in words, and why one is not killed: "pid 12 (nfsd, hangs in the kernel)"."""
        pids = self.pids(job)
        facts = [fact for fact in map(procfs.stat, pids[:NAMED]) if fact is not None]
        words = [f"pid {fact.pid} ({fact.comm}{_why_alive(fact)})" for fact in facts]
        return ", ".join(words) + (f" and {len(pids) - NAMED} more" if len(pids) > NAMED else "")

    def stop(self, job: str, run: int, number: int) -> None:
        """Send a run its stop signal, then SIGCONT (a stopped process would never act on it)."""
        child = self._find(job, run)
        if child is None:
            return
        self._signal(child, number)
        if number not in (signal.SIGSTOP, signal.SIGTSTP):
            self._signal(child, signal.SIGCONT)
        self._signal_rest(child)

    def kill(self, job: str, run: int) -> None:
        """SIGKILL to a run, and again to what is left of it whenever that is looked at."""
        child = self._find(job, run)
        if child is None:
            return
        child.hunted = True
        self._hunt(child)
        if child.dead:
            self._interval = FIRST_LOOK
            self.look_within(FIRST_LOOK)

    def deliver(self, job: str, run: int, number: int, *, every: bool) -> None:
        """Send a signal to the leader of a run, or to every process of it."""
        child = self._find(job, run)
        if child is not None and every:
            self._signal(child, number)
            self._signal_rest(child)
        elif child is not None:
            child.send(number)

    def look_within(self, seconds: float) -> None:
        """Let `sweep` be called after so many seconds, or before: a look that is due sooner stays."""
        when = time.monotonic() + seconds
        if not self._next_look.active or when < self._next_look.when:
            self._next_look.cancel()
            self._next_look = self._loop.call_at(when, self.sweep)

    def _signal(self, child: Child, number: int) -> None:
        """To every process of a run; where nobody can be looked for (no descriptor left), to the first."""
        try:
            child.crowd.signal(number)
        except OSError:
            child.send(number)

    def sweep(self) -> None:
        """Reap whatever is dead: one SIGCHLD may stand for many deaths (signal(7)). Then look at
        the runs whose leader has gone before the rest."""
        self._next_look.cancel()  # this is that look; it says when the next one is due
        dead: list[Child] = []
        for _ in range(REAPS_PER_SWEEP):
            info = _reap_any()
            if info is None:
                break
            child = self._by_pid.get(info.si_pid)
            if child is not None:
                self._bury(child, _status(info))
                dead.append(child)
            elif (ended := self._guests.pop(info.si_pid, None)) is not None:
                self.tree.remove_leader(info.si_pid)
                self.tree.list_anew()
                self._hosts.pop(info.si_pid, None)
                ended(info)
            else:
                self._orphan_dead(info.si_pid)
        else:
            self.look_within(0.0)
        if dead:
            self.tree.list_anew()  # once for all of them: their children have come to us
        for child in dead:
            self._leader_dead(child)
        self._look()

    def end(self) -> None:
        """SIGKILL to all that was started, again and again, until nothing of it is left. Blocks, for a while
        at most: it is the last that a daemon does whose loop cannot go on."""
        until = time.monotonic() + END_SECONDS
        while time.monotonic() < until:
            self.tree.forget()
            for child in list(self._by_job.values()):
                try:
                    child.crowd.kill()
                except OSError:
                    pass  # the same is tried again
            for pid in procfs.children(os.getpid()):
                Leader(pid).send(signal.SIGKILL)  # not reaped, so the number is still its own
            try:
                while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG) is not None:
                    pass
            except ChildProcessError:
                return
            signal.sigtimedwait((signal.SIGCHLD,), FIRST_LOOK)

    def close(self) -> None:
        """Remove what could not be removed before."""
        self._unclosed = [crowd for crowd in self._unclosed if not crowd.close()]

    # ---- deaths ---------------------------------------------------------------------------

    def _crowd(self, child: Child, scope: KillScope, its: Cgroup | None) -> Crowd:
        if its is not None:
            return CgroupCrowd(child, its, self.tree, self.migrants, child.key)
        if scope is KillScope.JOB:
            return TreeCrowd(child, self.tree, child.key)
        self.tree.add(child)
        self.tree.let_go(child.job)
        if scope is KillScope.GROUP:
            return GroupCrowd(child, self.tree, self.has_group_flag)
        return child.crowd

    def _watch_death(self, child: Child) -> None:
        if not self.has_pidfd:
            return
        try:
            child.pidfd = os.pidfd_open(child.pid)
            if child.pidfd < self._fds:
                self._loop.add_reader(child.pidfd, child.on_death, CHILD)
                return
        except OSError:
            pass
        self._close_pidfd(child)  # too few descriptors are left: SIGCHLD tells of this one

    def reap(self, child: Child) -> None:
        """The leader is dead: take its status. It was dead before this turn, so whatever it left has been
        among the orphans since."""
        try:
            info = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            status: Status = None
        else:
            if info is None:
                return
            status = _status(info)
        self._bury(child, status)
        self._leader_dead(child)

    def _bury(self, child: Child, status: Status) -> None:
        """The leader is reaped: its number means it no more."""
        if child.pidfd >= 0:
            self._loop.remove_reader(child.pidfd)
        del self._by_pid[child.pid]
        self.tree.remove_leader(child.pid)
        child.dead = True
        child.status = status

    def _leader_dead(self, child: Child) -> None:
        """First what the leader reported, then its death, then what it left."""
        self.read_report(child, final=True)
        if not self._has_survivors(child):
            self._gone(child)
            return
        self._draining[child.job] = child
        self._wait_for_the_rest(child)
        self._feed(child.job, LeaderDied(child.run, child.status))

    def _orphan_dead(self, pid: int) -> None:
        self.tree.reaped(pid)

    def _has_survivors(self, child: Child) -> bool:
        if not self._others(child):
            return False
        self._reap_orphans()  # zombies may count as members until they are reaped
        return self._others(child)

    def _others(self, child: Child) -> bool:
        """Whether anybody else of its run lives. Who cannot look (no descriptor left) says yes, and looks
        again later: to say no would be to start the next run beside this one."""
        if child.job in self._hosts.values():
            return True
        try:
            return child.crowd.others()
        except OSError:
            self.look_within(LAST_LOOK)
            return True

    def _reap_orphans(self) -> None:
        """Reap dead orphans; deaths of leaders are left to their own events."""
        for _ in range(REAPS_PER_SWEEP):  # a storm of them may go on for ever
            info = _peek_any()
            if info is None or info.si_pid in self._by_pid or info.si_pid in self._guests:
                return
            os.waitid(os.P_PID, info.si_pid, os.WEXITED | os.WNOHANG)
            self._orphan_dead(info.si_pid)

    def _wait_for_the_rest(self, child: Child) -> None:
        self._interval = FIRST_LOOK
        child.watch = child.crowd.watch()
        if child.watch >= 0 and not self._watch_rest(child):
            os.close(child.watch)
            child.watch = -1
        if child.watch >= 0:
            self.look_within(0.0)  # it may have ended between the last look and now
        else:
            self.look_within(FIRST_LOOK)

    def _watch_rest(self, child: Child) -> bool:
        # By edges: the file stays ready until it is read, which `others` does through another descriptor.
        edges = select.EPOLLPRI | select.EPOLLET
        try:
            self._loop.add_reader(child.watch, lambda _events: self._look_at(child), CHILD, edges)
        except OSError:
            return False  # no watch is left: only looking tells
        return True

    def _hunt(self, child: Child) -> None:
        try:
            done = child.crowd.kill()
        except OSError:  # nobody could be looked for: not the moment to go on at once
            child.send(signal.SIGKILL)  # its death brings the next look
            self.look_within(LAST_LOOK)
            done = True
        if done:
            self._hunting.pop(child.job, None)
        else:
            self._hunting[child.job] = child
            self.look_within(0.0)

    def _signal_rest(self, child: Child) -> None:
        if child.crowd.signal_rest():
            self._owing.pop(child.job, None)
        else:
            self._owing[child.job] = child
            self.look_within(NEXT_LOOK)

    def _look(self) -> None:
        for child in list(self._owing.values()):
            self._signal_rest(child)
        for child in [child for child in self._hunting.values() if not child.dead]:
            self._hunt(child)
        begin = time.monotonic()
        polled = self._polled()
        if polled and begin < self._rest_until and not self._hunting and not self._owing:
            self.look_within(self._rest_until - begin)
            return
        for child in list(self._draining.values()):
            self._look_at(child)
        end = time.monotonic()
        self._rest_until = end + REST * (end - begin)
        if self._hunting:
            self.look_within(0.0)
        elif self._owing:
            self.look_within(NEXT_LOOK)
        elif self._polled():
            self.look_within(FIRST_LOOK if self.tree.is_looking else self._interval)
            self._interval = min(self._interval * 2, LAST_LOOK)

    def _polled(self) -> bool:
        return any(child.watch < 0 or child.crowd.polls for child in self._draining.values())

    def _look_at(self, child: Child) -> None:
        if not self._others(child):
            self._gone(child)
            return
        if child.crowd.polls:
            self.look_within(self._interval)
        if child.hunted and (child.crowd.polls or child.watch < 0 or child.job in self._hunting):
            self._hunt(child)

    def _gone(self, child: Child) -> None:
        self._draining.pop(child.job, None)
        self._hunting.pop(child.job, None)
        self._owing.pop(child.job, None)
        del self._by_job[child.job]
        self._reap_orphans()  # no zombie of it either
        if child.watch >= 0:
            self._loop.remove_reader(child.watch)
            os.close(child.watch)
        self._close_pidfd(child)
        if child.spec.kill_scope is not KillScope.JOB:
            self.tree.remove(child)
        if not child.crowd.close():
            self._unclosed.append(child.crowd)
        if child.failure is not None:
            self._feed(child.job, spawn_failed(child.run, child.failure))
        else:
            self._feed(child.job, Exited(child.run, child.status))

    def _close_pidfd(self, child: Child) -> None:
        if child.pidfd >= 0:
            self._loop.remove_reader(child.pidfd)
            os.close(child.pidfd)
            child.pidfd = -1

    def read_report(self, child: Child, *, final: bool = False) -> None:
        """What became of the exec, if that is known; `final`: nothing more will come."""
        if child.report < 0:
            return
        try:
            child.failure = spawn.read_report(child.report, child.spec, child.marks)
        except BlockingIOError:
            if not final:
                return
        self._loop.remove_reader(child.report)
        os.close(child.report)
        child.report = -1
        if child.failure is None:
            self._executed(child)

    def _launched(self, child: Child) -> None:
        if not child.known:
            child.known = True
            self._feed(child.job, Launched(child.run, child.pid))

    def _executed(self, child: Child) -> None:
        self._launched(child)
        self._feed(child.job, Spawned(child.run))

    def _find(self, job: str, run: int) -> Child | None:
        child = self._by_job.get(job)
        return child if child is not None and child.run == run else None


def spawn_failed(run: int, error: SpawnError) -> SpawnFailed:
    """The input for a failed spawn, with a reason for people."""
    where = f" {error.what}" if error.what else ""
    number = error.errno
    why = error.text or f"{errno.errorcode.get(number, number)} ({os.strerror(number)})"
    return SpawnFailed(run, error.stage, number, spawn.told(f"{error.stage}{where}: {why}"))


def _why_alive(fact: procfs.Stat) -> str:
    """Why SIGKILL may not have ended it."""
    if fact.state == "D":
        return ", hangs in the kernel"
    try:
        os.kill(fact.pid, 0)
    except PermissionError:
        return ", belongs to another user"
    except OSError:
        pass
    return ""


def _status(info: os.waitid_result) -> Status:
    return info.si_status if info.si_code == os.CLD_EXITED else name_of(info.si_status)


def _reap_any() -> os.waitid_result | None:
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None


def _peek_any() -> os.waitid_result | None:
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None


def _probe_pidfd() -> bool:
    """Whether they can be opened, and signalled: a filter may know the one and not the other."""
    try:
        fd = os.pidfd_open(os.getpid())
    except OSError:
        return False
    try:
        signal.pidfd_send_signal(fd, 0)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _probe_group_flag() -> bool:
    fd = os.pidfd_open(os.getpid())
    try:
        signal.pidfd_send_signal(fd, 0, None, syscalls.PIDFD_SIGNAL_PROCESS_GROUP)
    except ProcessLookupError:
        return True  # we lead no group, but the flag was understood
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
