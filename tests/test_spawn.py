"""What a child really gets, by the kernel's word, and every way in which it can fail to be born."""

from __future__ import annotations

import errno
import os
import pwd
import resource
import shutil
import signal
import stat
import tempfile
from pathlib import Path

import kit
import pytest

from jobmon.core.spec import JobSpec
from jobmon.errors import SpawnError
from jobmon.linux.kernel import cgroup, signals
from jobmon.linux.processes import spawn
from jobmon.linux.processes.spawn import Birth, Spawner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

WAYS = ("posix_spawn", "fork", "cgroup")  # how a child may come to be: see the text of linux.spawn
NOFILE = (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1])  # what the children are to get


class Nursery:
    """A spawner, and the children that it made; `way` says how."""

    def __init__(self, way: str) -> None:
        kit.keep_to_ourselves()
        self.way = way
        self.folder = Path(tempfile.mkdtemp(prefix="jobmon-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.pids: list[int] = []
        self._cgroups: list[cgroup.Cgroup] = []
        self._hierarchy = cgroup.Hierarchy(os.urandom(8).hex()) if way == "cgroup" else None
        environ = {b"PATH": b"/usr/bin:/bin", b"A": b"ours", b"B": b"ours", b"": b"empty"}
        private = {name.encode(): b"private" for name in spawn.PRIVATE}
        self.spawner = Spawner(environ | private, "marker", NOFILE[0])
        self.fifo = kit.Fifo(str(self.folder / "fifo"))
        os.chmod(self.fifo.path, 0o666)

    def spec(self, command: str | tuple[str, ...] = tuple(kit.FOR_EVER), **rest: Any) -> JobSpec:
        if self.way == "fork":
            rest.setdefault("stdin", self.fifo.path)  # both ends of which are open: nobody waits
        return JobSpec("a job", command, **rest)

    def birth(self, command: str | tuple[str, ...] = tuple(kit.FOR_EVER), run: int = 1, **rest: Any) -> Birth:
        spec = self.spec(command, **rest)
        if self._hierarchy is None:
            born = self.spawner.spawn(spec, run)
        else:
            self._cgroups.append(self._hierarchy.create())
            place = self._cgroups[-1].open()
            try:
                born = self.spawner.spawn(spec, run, place)
            finally:
                os.close(place)
        self.pids.append(born.pid)
        return born

    def outcome(self, born: Birth) -> tuple[str, int] | None:
        """Wait until it executes its program, or has failed to."""
        if born.report < 0:
            return None
        assert kit.readable(born.report)
        try:
            told = spawn.read_report(born.report, self.spec())
        finally:
            os.close(born.report)
        return None if told is None else (told.stage, told.errno)

    def child(self, **rest: Any) -> int:
        """The pid of a child that rests in its program."""
        return kit.settled(self.launched(tuple(kit.FOR_EVER), **rest))

    def launched(self, command: str | tuple[str, ...], **rest: Any) -> int:
        """The pid of a child that executes its program."""
        born = self.birth(command, **rest)
        assert self.outcome(born) is None
        return born.pid

    def failure(self, command: str | tuple[str, ...] = tuple(kit.FOR_EVER), **rest: Any) -> tuple[str, int]:
        """The stage and errno of a child that cannot be made."""
        try:
            told = self.outcome(self.birth(command, **rest))
        except SpawnError as error:
            return error.stage, error.errno
        assert told is not None
        return told

    def output(self, command: str | tuple[str, ...], **rest: Any) -> str:
        """What a command that ends by itself writes."""
        path = self.folder / "output"
        path.unlink(missing_ok=True)
        self.end(self.launched(command, stdout=str(path), **rest))
        return path.read_text()

    def end(self, pid: int) -> int:
        self.pids.remove(pid)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def close(self) -> None:
        for pid in list(self.pids):
            os.kill(pid, signal.SIGKILL)
            self.end(pid)
        for one in self._cgroups:
            assert one.remove()
        if self._hierarchy is not None:
            self._hierarchy.close()
        self.spawner.close()
        self.fifo.destroy()
        shutil.rmtree(self.folder)


@pytest.fixture(params=WAYS)
def nursery(request: pytest.FixtureRequest) -> Iterator[Nursery]:
    try:
        made = Nursery(request.param)
    except cgroup.Unavailable as error:
        pytest.skip(f"no cgroups here: {error}")
    before = len(os.listdir("/proc/self/fd"))
    yield made
    assert len(os.listdir("/proc/self/fd")) == before, "descriptors were lost"
    made.close()


# ---- what a child has -------------------------------------------------------------------------


def test_dispositions_and_mask_are_the_default(nursery: Nursery) -> None:
    """Whatever the daemon blocks, catches or ignores, a child starts with nothing of that."""
    kept = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    source = signals.SignalSource((signal.SIGTERM, signal.SIGCHLD, signal.SIGINT, signal.SIGRTMIN))
    try:
        nursery.spawner._ignored = signals.ignored()
        facts = kit.status_of(nursery.child())
    finally:
        source.close()
        signal.signal(signal.SIGHUP, kept)

    sets = {name: int(facts[name], 16) for name in ("SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd")}
    sets["SigIgn"] = kit.ignored_by(facts["SigIgn"])

    assert set(sets.values()) == {0}


def test_the_mask_would_be_inherited_otherwise() -> None:
    """The control: without the mask given back a child starts deaf."""
    source = signals.SignalSource((signal.SIGTERM,))
    try:
        pid = os.posix_spawn("/bin/sleep", ["sleep", "100"], {})
    finally:
        source.close()
    blocked = int(kit.status_of(pid)["SigBlk"], 16)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

    assert blocked == 1 << (signal.SIGTERM - 1)


def test_a_child_leads_a_session_of_its_own(nursery: Nursery) -> None:
    """It is the leader of its session and of its group, without a terminal, and a child of the daemon."""
    pid = nursery.child()

    assert (os.getsid(pid), os.getpgid(pid)) == (pid, pid)
    assert kit.processes()[pid].parent == os.getpid()
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        assert file.read().rpartition(") ")[2].split()[4] == "0"  # tty_nr


def test_a_child_has_three_descriptors(nursery: Nursery, tmp_path: Path) -> None:
    """Standard input, output and error as its spec says, and not one more, whatever the daemon holds."""
    (tmp_path / "in").write_text("")
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(5)]
    try:
        pid = nursery.child(stdin=str(tmp_path / "in"), stdout=str(tmp_path / "out"))
    finally:
        for fd in held:
            os.close(fd)

    assert kit.fds_of(pid) == {0: str(tmp_path / "in"), 1: str(tmp_path / "out"), 2: "/dev/null"}


def flags_of(pid: int, fd: int) -> int:
    with open(f"/proc/{pid}/fdinfo/{fd}", encoding="utf-8") as file:
        return next(int(line.split()[1], 8) for line in file if line.startswith("flags:"))


def test_streams_block_and_are_appended_to(nursery: Nursery, tmp_path: Path) -> None:
    """Only the daemon opens without waiting: a child's own reads and writes are as usual."""
    (tmp_path / "in").write_text("")
    pid = nursery.child(
        stdin=str(tmp_path / "in"), stdout=str(tmp_path / "out"), stderr=str(tmp_path / "err")
    )
    modes = [flags_of(pid, fd) & (os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK) for fd in range(3)]

    assert modes == [os.O_RDONLY, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_APPEND]


def test_a_new_file_has_0666_without_the_umask(nursery: Nursery, tmp_path: Path) -> None:
    """The umask of the daemon decides on the mode, and is the child's too."""
    before = os.umask(0o027)
    try:
        pid = nursery.child(stdout=str(tmp_path / "out"))
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640
    assert int(kit.status_of(pid)["Umask"], 8) == 0o027


def test_what_a_file_held_stays(nursery: Nursery, tmp_path: Path) -> None:
    """Output is appended, and two streams may share a file."""
    path = tmp_path / "out"
    path.write_text("old\n")
    nursery.end(nursery.launched("echo out; echo err >&2", stdout=str(path), stderr=str(path)))

    assert path.read_text() == "old\nout\nerr\n"


def test_input_comes_from_the_file(nursery: Nursery, tmp_path: Path) -> None:
    """Standard input is read from its beginning."""
    (tmp_path / "in").write_text("hello\n")

    assert nursery.output(("cat",), stdin=str(tmp_path / "in")) == "hello\n"


def test_a_stream_may_be_the_daemons_own(nursery: Nursery, tmp_path: Path) -> None:
    """The word inherit means the daemon's stream of the same number."""
    kept = os.dup(2)
    with open(tmp_path / "err", "wb") as file:
        os.dup2(file.fileno(), 2)
    try:
        pid = nursery.child(stderr="inherit")
    finally:
        os.dup2(kept, 2)
        os.close(kept)

    assert kit.fds_of(pid)[2] == str(tmp_path / "err")


def test_a_child_starts_where_it_is_told_to(nursery: Nursery, tmp_path: Path) -> None:
    """The working directory is the job's, and the daemon has not moved."""
    before = os.getcwd()
    pid = nursery.child(working_dir=str(tmp_path))

    assert os.readlink(f"/proc/{pid}/cwd") == str(tmp_path)
    assert os.getcwd() == before
    assert os.readlink(f"/proc/{nursery.child()}/cwd") == before


def test_a_directory_that_was_replaced_is_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deploy may swap the directory that the daemon itself stands in: its jobs start in the new one."""
    (tmp_path / "app").mkdir()
    monkeypatch.chdir(tmp_path / "app")
    nursery = Nursery("posix_spawn")
    (tmp_path / "app").rename(tmp_path / "old")
    (tmp_path / "app").mkdir()
    pid = nursery.child(working_dir=str(tmp_path / "app"))

    assert os.readlink(f"/proc/{pid}/cwd") == str(tmp_path / "app")
    nursery.close()


def test_the_environment_is_the_daemons_and_the_jobs(nursery: Nursery) -> None:
    """The job's variables win; the run's are added; what was told to the daemon alone is left out."""
    pid = nursery.child(env={"B": "its", "C": "ü\n"}, run=7)

    assert kit.environ_of(pid) == {
        "PATH": "/usr/bin:/bin",
        "A": "ours",
        "B": "its",
        "C": "ü\n",
        "JOBMON_JOB": "a job",
        "JOBMON_RUN": "marker:a job:7",
    }


@pytest.mark.parametrize("name", ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "WATCHDOG_USEC", "FDSTORE"])
def test_a_job_may_be_given_what_is_not_inherited(nursery: Nursery, name: str) -> None:
    """A private variable that the configuration sets is the job's own business."""
    assert kit.environ_of(nursery.child(env={name: "its"}))[name] == "its"


def test_no_job_can_take_anothers_marker(nursery: Nursery) -> None:
    """The marker tells whose a process is: a configuration cannot set it."""
    pid = nursery.child(env={"JOBMON_RUN": "marker:other:1", "JOBMON_JOB": "other"})

    assert kit.environ_of(pid)["JOBMON_RUN"] == "marker:a job:1"


def test_the_limit_on_descriptors_is_given_back(nursery: Nursery) -> None:
    """The daemon raises its own RLIMIT_NOFILE; a child has the one that the daemon was started with."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    pid = nursery.child()

    assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == NOFILE
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


# ---- the command ------------------------------------------------------------------------------


def test_a_string_is_for_the_shell(nursery: Nursery) -> None:
    """Pipes, quotes and variables work; $0 is the shell."""
    assert nursery.output("echo \"$A $0\" | tr a-z A-Z; echo '$A'") == "OURS /BIN/SH\n$A\n"


def test_a_list_is_executed_as_it_is(nursery: Nursery) -> None:
    """No shell looks at arguments; an empty one is one."""
    assert nursery.output(("printf", "<%s>", "$A", "a b", "", "*")) == "<$A><a b><><*>"


def executable(path: Path, text: str = "#!/bin/sh\necho found\n", mode: int = 0o755) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_name_is_looked_for_in_the_jobs_path(nursery: Nursery, tmp_path: Path) -> None:
    """PATH is the job's own if it sets one; the first that can be executed is."""
    executable(tmp_path / "first/tool", mode=0o644)
    executable(tmp_path / "second/tool")
    executable(tmp_path / "third/tool", "#!/bin/sh\necho wrong\n")
    path = ":".join(str(tmp_path / name) for name in ("missing", "first", "second", "third"))

    assert nursery.output(("tool",), env={"PATH": path}) == "found\n"


def test_an_empty_place_in_path_is_the_working_directory(nursery: Nursery, tmp_path: Path) -> None:
    """As execvp(3) has it; and relative commands are relative to the job's directory."""
    executable(tmp_path / "tool")

    assert nursery.output(("tool",), env={"PATH": "/nonexistent:"}, working_dir=str(tmp_path)) == "found\n"
    assert nursery.output(("./tool",), working_dir=str(tmp_path)) == "found\n"


# ---- what can fail ----------------------------------------------------------------------------

FAILURES: dict[str, tuple[dict[str, Any], str, int]] = {
    "directory missing": ({"working_dir": "{}/none"}, "directory", errno.ENOENT),
    "directory is a file": ({"working_dir": "{}/file"}, "directory", errno.ENOTDIR),
    "stdin missing": ({"stdin": "{}/none"}, "stdin", errno.ENOENT),
    "stdin below a file": ({"stdin": "{}/file/x"}, "stdin", errno.ENOTDIR),
    "stdin is a socket": ({"stdin": "{}/socket"}, "stdin", errno.ENXIO),
    "stdout in a missing directory": ({"stdout": "{}/none/out"}, "stdout", errno.ENOENT),
    "stdout is a directory": ({"stdout": "{}"}, "stdout", errno.EISDIR),
    "stderr is a loop of links": ({"stderr": "{}/loop"}, "stderr", errno.ELOOP),
    "stderr has too long a name": ({"stderr": "{}/" + "x" * 300}, "stderr", errno.ENAMETOOLONG),
    "command missing": ({"command": ("{}/none",)}, "exec", errno.ENOENT),
    "command below a file": ({"command": ("{}/file/x",)}, "exec", errno.ENOTDIR),
    "command not executable": ({"command": ("{}/file",)}, "exec", errno.EACCES),
    "command is a directory": ({"command": ("{}",)}, "exec", errno.EACCES),
    "command is no program": ({"command": ("{}/noise",)}, "exec", errno.ENOEXEC),
    "interpreter missing": ({"command": ("{}/script",)}, "exec", errno.ENOENT),
    "nowhere in PATH": ({"command": ("no such program",)}, "exec", errno.ENOENT),
    "forbidden in PATH": ({"command": ("file",), "env": {"PATH": "{}:/nonexistent"}}, "exec", errno.EACCES),
    "arguments too long": ({"command": ("true", "x" * 200_000)}, "exec", errno.E2BIG),
}


def filled(value: Any, folder: str) -> Any:
    """A part of a spec with the test's directory in it."""
    if isinstance(value, str):
        return value.replace("{}", folder)
    if isinstance(value, tuple):
        return tuple(filled(item, folder) for item in value)
    return {key: filled(item, folder) for key, item in value.items()}


@pytest.mark.parametrize("case", FAILURES)
def test_a_stage_that_fails_is_told_with_its_errno(nursery: Nursery, tmp_path: Path, case: str) -> None:
    """Whatever of a job's spec is wrong: the stage and the errno say what, and nothing is lost or left."""
    rest, stage, number = FAILURES[case]
    if nursery.way == "fork" and stage == "stdin":
        pytest.skip("it is forked because its stdin is a FIFO")
    executable(tmp_path / "file", mode=0o644)
    executable(tmp_path / "noise", "\0\1\2")
    executable(tmp_path / "script", "#!/nonexistent/interpreter\n")
    os.symlink("loop", tmp_path / "loop")
    os.mknod(tmp_path / "socket", stat.S_IFSOCK | 0o600)
    here = os.getcwd()

    assert nursery.failure(**filled(rest, str(tmp_path))) == (stage, number)
    assert os.getcwd() == here
    for pid in list(nursery.pids):  # a forked child told of it, and ends
        assert nursery.end(pid) == 127


def test_a_failure_names_what_it_is_about() -> None:
    """The error of the daemon's own stages says which path; `what` says it for those of the child."""
    nursery = Nursery("posix_spawn")
    with pytest.raises(SpawnError) as caught:
        nursery.birth(stdout="/nonexistent/out")
    nursery.close()

    assert caught.value.what == "/nonexistent/out"
    spec = JobSpec("a", ("tool", "x"), stdin="/in")
    assert [spawn.what(spec, stage) for stage in ("stdin", "exec", "fork")] == ["/in", "tool", ""]
    assert spawn.what(JobSpec("a", "tool x"), "exec") == "/bin/sh"


def as_nobody(*limits: tuple[int, int], work: Callable[[], object]) -> str:
    """What `work` comes to in a process of another user, with soft limits lowered."""

    def try_it() -> str:
        for limit, value in limits:
            resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))
        entry = pwd.getpwnam("nobody")
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
        return attempt(work)

    return kit.in_child(try_it)


def attempt(work: Callable[[], object]) -> str:
    """What a spawn comes to: the stage that fails and its errno, or "done"."""
    try:
        work()
    except SpawnError as error:
        return f"{error.stage} {errno.errorcode[error.errno]}"
    return "done"


@pytest.mark.parametrize(
    ("spare", "told"),
    [(0, "stdout EMFILE"), (1, "stderr EMFILE"), (2, "done"), (3, "done")],
)
def test_without_descriptors_a_spawn_fails_and_nothing_else(spare: int, told: str) -> None:
    """EMFILE, at whatever stage it comes, is a failed spawn that can be tried again; nothing is lost."""
    nursery = Nursery("posix_spawn")

    assert kit.in_child(lambda: with_spare(spare, nursery)) == f"{told}, {told}"
    nursery.close()


@pytest.mark.parametrize(
    ("spare", "told"),
    [(0, "stdout EMFILE"), (2, "fork EMFILE"), (3, "fork EMFILE"), (4, "done")],
)
def test_without_descriptors_a_fork_fails_and_nothing_else(spare: int, told: str) -> None:
    """The pipe that a forked child reports on may be what there is no descriptor for."""
    nursery = Nursery("fork")
    again = "fork EMFILE" if told == "done" else told  # the report of the first start stays open

    assert kit.in_child(lambda: with_spare(spare, nursery)) == f"{told}, {again}"
    nursery.close()


def with_spare(spare: int, nursery: Nursery) -> str:
    """What two starts come to when so many descriptors are free."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, NOFILE[1]))
    held: list[int] = []
    while not held or held[-1] < 63:
        held.append(os.open("/dev/null", os.O_RDONLY))
    for fd in held[len(held) - spare :]:
        os.close(fd)
    streams: dict[str, Any] = {name: str(nursery.folder / name) for name in ("stdout", "stderr")}
    return ", ".join(attempt(lambda: nursery.birth(("true",), **streams)) for _ in range(2))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
@pytest.mark.parametrize("way", ["posix_spawn", "fork"])
def test_without_processes_a_spawn_fails_and_nothing_else(way: str) -> None:
    """EAGAIN is the fork's: it is not the program's fault, and is tried again."""
    nursery = Nursery(way)
    told = as_nobody((resource.RLIMIT_NPROC, 0), work=lambda: nursery.birth(working_dir="/"))

    assert told == "fork EAGAIN"
    nursery.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_what_permissions_forbid_is_told() -> None:
    """EACCES of a directory, a stream and a program, for a user whom permissions bind."""
    nursery = Nursery("posix_spawn")
    secret = nursery.folder / "secret"
    secret.mkdir(mode=0o700)
    executable(nursery.folder / "tool", mode=0o744)

    def told(**rest: Any) -> str:
        return as_nobody(work=lambda: nursery.birth(**rest))

    assert told(working_dir=str(secret)) == "directory EACCES"
    assert told(stdin=str(secret / "in")) == "stdin EACCES"
    assert told(stdout=str(nursery.folder / "out")) == "stdout EACCES"
    assert told(command=(str(nursery.folder / "tool"),)) == "exec EACCES"
    nursery.close()


def test_fifty_starts_lose_no_descriptor(nursery: Nursery) -> None:
    """Starts that succeed and starts that fail, at each stage, leave the daemon with what it had."""
    before = kit.fds_of(os.getpid())
    for _ in range(25):
        nursery.end(nursery.launched(("true",)))
        nursery.failure(("/nonexistent",))
        for pid in list(nursery.pids):
            nursery.end(pid)
    with pytest.raises(SpawnError):
        nursery.birth(stderr="/nonexistent/err")

    assert kit.fds_of(os.getpid()) == before


# ---- FIFOs ------------------------------------------------------------------------------------


@pytest.fixture
def waiting() -> Iterator[Nursery]:
    made = Nursery("posix_spawn")
    for name in spawn.STREAMS:
        os.mkfifo(made.folder / name)
    yield made
    made.close()


def other_end(path: str, stream: str) -> int:
    """Open the end that a job's stream waits for; its own end is open then, or soon."""
    return os.open(path, os.O_WRONLY if stream == "stdin" else os.O_RDONLY)


@pytest.mark.parametrize("stream", spawn.STREAMS)
def test_a_fifo_makes_the_child_wait_and_not_the_daemon(waiting: Nursery, stream: str) -> None:
    """Spawning returns at once; the child executes its program when somebody opens the other end."""
    path = str(waiting.folder / stream)
    streams: dict[str, Any] = {stream: path}
    born = waiting.birth(**streams)
    assert born.waits
    with pytest.raises(BlockingIOError):
        spawn.read_report(born.report, waiting.spec())

    end = other_end(path, stream)

    assert waiting.outcome(born) is None
    assert kit.fds_of(born.pid)[spawn.STREAMS.index(stream)] == path
    assert sorted(kit.fds_of(kit.settled(born.pid))) == [0, 1, 2]
    os.close(end)


def test_while_it_waits_a_child_holds_nothing_of_the_daemons(waiting: Nursery) -> None:
    """Until its FIFO opens a child has its streams and the pipe for its report, and nothing of ours."""
    held = os.open(waiting.folder, os.O_RDONLY)
    born = waiting.birth(stdin=str(waiting.folder / "stdin"), stderr=str(waiting.folder / "stderr"))
    end = wait_until_it_opens(born.pid, str(waiting.folder / "stdin"))
    found = kit.fds_of(born.pid)

    assert [found.pop(fd) for fd in range(3)] == ["/dev/null"] * 3
    (report,) = found.values()
    assert report.startswith("pipe:")
    for fd in (end, held, born.report):
        os.close(fd)


def wait_until_it_opens(pid: int, path: str) -> int:
    """Wait until a process sleeps in open(2) of a FIFO. Returns a descriptor that keeps it there.

    The kernel tells nobody of an open that waits, so this looks at what the process is doing.
    """
    for _ in range(1_000_000):
        with open(f"/proc/{pid}/wchan", encoding="utf-8") as file:
            if "fifo" in file.read() or kit.processes()[pid].state == "S":
                break
    else:
        pytest.fail(f"{pid} does not wait for {path}")
    return os.open(os.path.dirname(path), os.O_RDONLY)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP])
def test_a_child_that_waits_can_be_stopped_at_once(waiting: Nursery, number: int) -> None:
    """Before its exec a child has the default dispositions already: any stop signal ends it."""
    source = signals.SignalSource((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    try:
        born = waiting.birth(stdin=str(waiting.folder / "stdin"))
    finally:
        source.close()
    os.kill(born.pid, number)

    assert waiting.end(born.pid) == -number
    assert spawn.read_report(born.report, waiting.spec()) is None
    os.close(born.report)


def test_a_fifo_that_vanishes_is_told_by_the_child(waiting: Nursery) -> None:
    """What fails in the child is told with its stage: here the second FIFO is gone when its turn comes."""
    path = str(waiting.folder / "stdin")
    born = waiting.birth(stdin=path, stdout=str(waiting.folder / "stdout"))
    os.unlink(waiting.folder / "stdout")
    (waiting.folder / "stdout").mkdir()
    end = other_end(path, "stdin")

    assert waiting.outcome(born) == ("stdout", errno.EISDIR)
    assert waiting.end(born.pid) == 127
    os.close(end)


def test_looking_at_a_fifo_wakes_nobody_at_its_other_end(waiting: Nursery) -> None:
    """The daemon never opens a FIFO itself: who waits at the other end meets the job, and nobody else."""
    path = str(waiting.folder / "stdout")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    waiting.end(waiting.launched("echo hello", stdout=path))

    assert os.read(reader, 100) == b"hello\n"
    assert os.read(reader, 100) == b""
    os.close(reader)
