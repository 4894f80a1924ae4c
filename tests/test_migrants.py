"""With cgroups: processes of a job that have migrated to another cgroup are its own all the same."""

from __future__ import annotations

import os
import signal
import tempfile

import kit
import nasty
import pytest
from test_children import Ward

from jobmon.core.events import Exited, LeaderDied
from jobmon.core.spec import KillScope
from jobmon.linux.kernel import cgroup, procfs, scan
from jobmon.linux.processes import tracker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kit import Daemon

    Make = Callable[..., Daemon]

pytestmark = pytest.mark.slow

# A shell that goes elsewhere, says so with its pid, and stays; as `sh -c GO sh FOLDER FIFO COMMAND...`.
GO = 'echo $$ > "$1/cgroup.procs"; echo "up $$" > "$2"; shift 2; exec "$@"'


class Elsewhere:
    """A cgroup beside those of the daemon, and a FIFO on which everybody says that he is there."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="jobmon-test-", dir=nasty.mount_point())
        self._pipes = tempfile.mkdtemp(prefix="jobmon-", dir="/tmp")
        self.fifo = kit.Fifo(f"{self._pipes}/fifo")

    def go(self, *command: str) -> str:
        """The words of a shell for a process that goes there and executes a command."""
        words = [*command] or kit.FOR_EVER
        return " ".join(f"'{word}'" for word in ("sh", "-c", GO, "sh", self.folder, self.fifo.path, *words))

    def came(self) -> int:
        """Wait until one rests there; its pid."""
        return kit.settled(int(self.fifo.line().split()[1]))

    def pids(self) -> list[int]:
        """Who is there, zombies aside."""
        with open(f"{self.folder}/cgroup.procs", encoding="ascii") as file:
            facts = [procfs.stat(int(line)) for line in file]
        return [fact.pid for fact in facts if fact is not None and fact.state not in procfs.DEAD]

    def close(self) -> None:
        with open(f"{self.folder}/cgroup.kill", "w", encoding="ascii") as file:
            file.write("1")
        with open(f"{self.folder}/cgroup.events", encoding="ascii") as file:
            while "populated 1" in file.read():
                os.sched_yield()
                file.seek(0)
        os.rmdir(self.folder)
        self.fifo.destroy()
        os.unlink(self.fifo.path)
        os.rmdir(self._pipes)


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    """Somewhere to go to."""
    nasty.options(nasty.WITH)
    made = Elsewhere()
    yield made
    made.close()


@pytest.fixture
def ward() -> Iterator[Ward]:
    """Children in cgroups."""
    nasty.options(nasty.WITH)
    made = Ward(cgroup.Hierarchy(os.urandom(8).hex()))
    yield made
    made.close()


def job(command: str, **rest: object) -> dict[str, object]:
    return {"jobs": {"it": {"command": command, "autostart": True, "kill-timeout": 0.1, **rest}}}


# ---- the leader ---------------------------------------------------------------------------------


def test_a_leader_that_migrates_is_killed(daemon: Make, elsewhere: Elsewhere) -> None:
    """A leader in another cgroup gets the stop signal, which it ignores, and then SIGKILL."""
    one = daemon(job("trap '' TERM; exec " + elsewhere.go()))
    assert elsewhere.came() == one.pipe().get_pid("it")
    assert one.pipe().status("it")[0].processes == 1
    assert one.run_cli("stop", "it").code == 0
    assert elsewhere.pids() == []


def test_a_leader_that_migrates_does_not_keep_the_daemon(daemon: Make, elsewhere: Elsewhere) -> None:
    """The daemon ends though a leader in another cgroup ignores SIGTERM."""
    one = daemon(job("trap '' TERM; exec " + elsewhere.go()))
    elsewhere.came()
    assert one.stop() == 0
    assert elsewhere.pids() == []


# ---- the others ---------------------------------------------------------------------------------

CHILDREN = {
    "below the leader": "{go} & exec sleep 1000000",
    "in a session of its own": "setsid {go} & exec sleep 1000000",
    "without a parent": "(setsid {go} &) ; exec sleep 1000000",
    "without an environment": "env -i /usr/bin/setsid {go} & exec sleep 1000000",
}


@pytest.mark.parametrize("deaf", [False, True])
@pytest.mark.parametrize("command", CHILDREN.values(), ids=CHILDREN)
def test_a_child_that_migrates_is_stopped(
    daemon: Make, elsewhere: Elsewhere, command: str, deaf: bool
) -> None:
    """The job is stopped when what has migrated is gone: the signal reaches it, and SIGKILL what is deaf."""
    trap = "trap '' TERM; " if deaf else ""
    one = daemon(job(trap + command.format(go=elsewhere.go()), **({} if deaf else {"kill-timeout": 1000})))
    pid = elsewhere.came()
    assert {pid, one.pipe().get_pid("it")} == tree_of(one)
    assert one.run_cli("stop", "it").code == 0
    assert elsewhere.pids() == []
    assert "unattributed processes found" not in one.log


def tree_of(one: Daemon) -> set[int]:
    (status,) = one.pipe().overview("it", tree=True)[0]
    assert status.processes == len(status.tree or ())
    return {pid for pid, _, _ in status.tree or ()}


def test_a_signal_to_all_reaches_what_has_migrated(daemon: Make, elsewhere: Elsewhere) -> None:
    """`signal --all` is for every process of the job, wherever it is."""
    one = daemon(job(f"{elsewhere.go()} & exec sleep 1000000"))
    pid = elsewhere.came()
    assert one.run_cli("signal", "--all", "KILL", "it").code == 0
    kit.wait_gone(pid)


@pytest.mark.parametrize("command", list(CHILDREN.values())[:3], ids=list(CHILDREN)[:3])
def test_a_leader_that_dies_leaves_what_has_migrated(ward: Ward, elsewhere: Elsewhere, command: str) -> None:
    """The run is not over with its leader and its cgroup, but with what lives in another one."""
    deaf = "trap '' TERM; " + command.format(go=elsewhere.go())
    leader = kit.settled(ward.start("web", deaf, KillScope.JOB))
    pid = elsewhere.came()
    os.kill(leader, signal.SIGKILL)
    assert ward.until("web", LeaderDied) == LeaderDied(1, "SIGKILL")
    ward.turn(block=False)
    assert ward.children.pids("web") == [pid] == ward.children.kin("web")
    assert f"pid {pid} (sleep" in ward.children.left("web")

    ward.children.kill("web", 1)
    assert ward.until("web", Exited) == Exited(1, "SIGKILL")
    assert elsewhere.pids() == []


def test_a_run_is_not_over_before_who_was_left_is_listed(ward: Ward, elsewhere: Elsewhere) -> None:
    """An orphan in another cgroup that dies after orphans were listed, in the same turn, leaves its child to
    the run: nobody says that this is over."""
    go = elsewhere.go("sh", "-c", f"sleep 1000000 & echo up > {elsewhere.fifo.path}; wait")
    leader = kit.settled(ward.start("web", f"(setsid {go} &) ; exec sleep 1000000", KillScope.JOB))
    parent = int(elsewhere.fifo.line().split()[1])
    assert elsewhere.fifo.line() == "up"
    child = ward.children._by_job["web"]
    os.kill(leader, signal.SIGKILL)
    ward.until("web", LeaderDied)
    ward.tree.forget()
    assert child.crowd.others()
    os.kill(parent, signal.SIGKILL)
    kit.wait_gone(parent)
    assert child.crowd.others()  # it is dead, and was not reaped
    assert child.crowd.others()  # now it is
    assert "Exited" not in ward.kinds("web")
    assert len(ward.children.pids("web")) == 1
    ward.children.kill("web", 1)
    ward.until("web", Exited)
    assert elsewhere.pids() == []


def test_in_the_cgroup_of_another_job_it_is_still_its_own(ward: Ward, elsewhere: Elsewhere) -> None:
    """What a job puts into the cgroup of another one is ended with it, and the other lives on."""
    other = ward.start("other", ("sleep", "1000000"), KillScope.JOB)
    host = procfs.cgroup2_path(other)
    elsewhere.folder, own = str(host), elsewhere.folder
    ward.start("web", f"(setsid {elsewhere.go()} &) ; exec sleep 1000000", KillScope.JOB)
    elsewhere.folder = own
    pid = elsewhere.came()
    assert pid in ward.children.pids("web")
    ward.children.kill("web", 1)
    ward.until("web", Exited)
    assert pid not in kit.processes()
    assert ward.children.pids("other") == [other]


def test_who_was_in_the_cgroup_is_known_by_it(ward: Ward, elsewhere: Elsewhere) -> None:
    """An orphan without any mark that was seen in the cgroup of a run stays that run's when it migrates."""
    up = ward.fifo("up")
    bare = f"(env -i /usr/bin/setsid sh -c 'echo $$ > {up.path}; exec sleep 1000000' &)"
    ward.start("web", f"{bare}; exec sleep 1000000", KillScope.JOB)
    pid = int(up.line())
    while os.getpid() != kit.processes()[pid].parent:
        os.sched_yield()
    ward.tree.forget()
    assert ward.children.migrants.strays() == []
    with open(f"{elsewhere.folder}/cgroup.procs", "w", encoding="ascii") as file:
        file.write(str(pid))
    ward.tree.forget()
    assert pid in ward.children.pids("web")
    ward.children.kill("web", 1)
    ward.until("web", Exited)
    assert elsewhere.pids() == []
    up.destroy()


# ---- what is nobody's -----------------------------------------------------------------------------

NOBODYS = {
    "no mark": "env -i",
    "the mark of a run that is over": 'env JOBMON_RUN="${JOBMON_RUN%:it:*}:gone:1"',
}


@pytest.mark.parametrize("mark", NOBODYS.values(), ids=NOBODYS)
def test_what_cannot_be_attributed_is_told_and_ends_with_the_daemon(
    daemon: Make, elsewhere: Elsewhere, mark: str
) -> None:
    """What has left cgroup, session, parent and marker behind is told by log and status, and is ended."""
    config = job(f"({mark} /usr/bin/setsid {elsewhere.go()} &); exec sleep 1000000")
    config["jobs"]["gone"] = {"command": "true"}  # type: ignore[index]
    config["jobs"]["it"]["autostart"] = False  # type: ignore[index]
    one = daemon(config)
    watch = one.watch()
    one.pipe().start("gone")
    watch.until("gone", "exited")
    one.pipe().start("it")  # and nobody dies any more while it is in the cgroup of its run
    pid = elsewhere.came()
    assert one.pipe().overview()[1] == [pid]
    assert f"pids={pid}" in one.wait_log("unattributed processes found").replace('"', "")
    assert one.run_cli("stop", "it").code == 0
    assert elsewhere.pids() == [pid]
    assert one.stop() == 0
    assert elsewhere.pids() == []


def test_what_a_smaller_scope_lets_go_is_no_stray(daemon: Make, elsewhere: Elsewhere) -> None:
    """What a job of kill-scope "process" leaves behind is nobody's business, wherever it lives."""
    one = daemon(job(f"(setsid {elsewhere.go()} &); exec sleep 1000000", **{"kill-scope": "process"}))
    pid = elsewhere.came()
    assert one.run_cli("stop", "it").code == 0
    assert one.pipe().overview()[1] == []
    assert one.stop() == 0
    assert elsewhere.pids() == [pid]
    kit.end_orphan(pid)


# ---- what it costs --------------------------------------------------------------------------------


class Counted:
    """How often a function was called, which does what it did."""

    def __init__(self, patch: pytest.MonkeyPatch, place: object, name: str) -> None:
        self.calls = 0
        does = getattr(place, name)

        def call(*arguments: object, **more: object) -> object:
            self.calls += 1
            return does(*arguments, **more)

        patch.setattr(place, name, call)


@pytest.mark.parametrize("orphans", [0, 1])
def test_deaths_share_one_look(ward: Ward, monkeypatch: pytest.MonkeyPatch, orphans: int) -> None:
    """Fifty deaths of one moment list the orphans a few times, judge each once, and scan for nobody."""
    up = ward.fifo("up")
    bare = f"(env -i /usr/bin/setsid sh -c 'echo up > {up.path}; exec sleep 1000000' &);"
    ward.start("keeper", f"{bare * orphans} echo up > {up.path}; exec sleep 1000000", KillScope.JOB)
    names = [f"job {number}" for number in range(50)]
    pids = [ward.start(name, ("sleep", "1000000"), KillScope.JOB) for name in names]
    for _ in range(orphans + 1):
        assert up.line() == "up"
    for pid in pids:
        kit.settled(pid)
    listed, scans = Counted(monkeypatch, tracker.Tree, "_listed"), Counted(monkeypatch, scan.Scan, "_list")
    judged = Counted(monkeypatch, tracker.Tree, "owner")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        kit.wait_gone(pid)
    turns = 0
    while any("Exited" not in ward.kinds(name) for name in names):
        ward.turn()
        turns += 1
    assert turns < 10
    assert listed.calls <= 4 * turns
    assert scans.calls == 0
    assert judged.calls <= orphans
    assert all("LeaderDied" not in ward.kinds(name) for name in names)
    monkeypatch.undo()
    up.destroy()
