"""What the tests of the running daemon share: the daemon in a directory of its own, its clients, waiting.

Nothing in here sleeps: each wait is for a descriptor (a pipe, a pidfd, a connection), and has a deadline
after which it fails with the daemon's log and the processes that were there.

    def test_it(daemon):                       # the fixture of conftest.py: a factory
        one = daemon({"jobs": {"web": {"command": ["sleep", "1000"]}}})
        watch = one.watch()                    # the rich events, from now on
        assert one.run_cli("start", "web").code == 0
        assert watch.until("web", "running").pid == one.pipe().get_pid("web")
        assert one.stop() == 0                 # or leave that, and all checks, to the fixture
"""

from __future__ import annotations

import ctypes
import faulthandler
import fcntl
import json
import os
import pwd
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import uuid

import jobmon
from jobmon.protocol import EventMessage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any, NoReturn

DEADLINE = 20.0  # seconds after which a wait has failed: far more than anything here should take
HERE = os.path.dirname(os.path.abspath(__file__))
# where `python -m jobmon` finds it from any directory
SOURCES = os.path.dirname(os.path.dirname(os.path.abspath(jobmon.__file__)))
FOR_EVER = ["sleep", "1000000"]  # a command that ends only when it is told to
STUBBORN = ["sh", "-c", "trap '' TERM; while :; do sleep 1000000; done"]  # one that only SIGKILL ends

_PIPE_BYTES = 1 << 20
_ENVIRON_BYTES = 1 << 20  # of another process: it may claim any length, and somebody may be testing that
_PR_SET_CHILD_SUBREAPER = 36


# ---- waiting --------------------------------------------------------------------------------


# posix_spawn(3) of glibc leaves its own two signals, 32 and 33, ignored in whoever it starts; the kernel
# passes that on, and nobody can change it through glibc.
GLIBCS_OWN = 1 << 31 | 1 << 32


def ignored_by(sigign: str) -> int:
    """What the line SigIgn of /proc/PID/status says, glibc's own signals aside."""
    return int(sigign, 16) & ~GLIBCS_OWN


def readable(fd: int, seconds: float = DEADLINE) -> bool:
    """Wait until a descriptor is readable (or at its end); False when `seconds` have passed."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(max(seconds, 0.0) * 1000))


def wait_gone(pid: int, seconds: float = DEADLINE) -> None:
    """Wait until a process is dead (a zombie is)."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert readable(fd, seconds), f"pid {pid} still lives after {seconds} s"
    finally:
        os.close(fd)


class Lines:
    """What comes out of a pipe, a FIFO or a socket, line by line, without ever blocking for good."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.text = ""  # all that ever came
        self.ended = False
        self._read = 0
        os.set_blocking(fd, False)

    def drain(self) -> str:
        """Take what is there now; returns all that ever came."""
        while not self.ended and readable(self.fd, 0):
            self._take()
        return self.text

    def until(self, what: str, seconds: float = DEADLINE) -> str:
        """Wait until `what` has come; returns the line (so far) that it is in."""
        end = time.monotonic() + seconds
        while what not in self.text and not self.ended and readable(self.fd, end - time.monotonic()):
            self._take()
        assert what in self.text, f"waited for {what!r} and got {self.text!r}"
        start = self.text.rfind("\n", 0, self.text.index(what)) + 1
        return self.text[start:].partition("\n")[0]

    def line(self, seconds: float = DEADLINE) -> str:
        """The next line, without its end; "" at the end of it all."""
        end = time.monotonic() + seconds
        while "\n" not in self.text[self._read :] and not self.ended:
            assert readable(self.fd, end - time.monotonic()), f"no line came: {self.text[self._read :]!r}"
            self._take()
        line, _, _ = self.text[self._read :].partition("\n")
        self._read = min(self._read + len(line) + 1, len(self.text))
        return line

    def destroy(self) -> None:
        """Close it; `text` stays."""
        self.ended = True
        os.close(self.fd)

    def _take(self) -> None:
        try:
            data = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return
        self.ended = not data
        self.text += data.decode(errors="surrogateescape")


class Fifo(Lines):
    """A FIFO that jobs write lines to (`echo ready > PATH`): how a test learns what a job does.

    Both ends are held here, so that neither it nor the job ever waits for the other.
    """

    def __init__(self, path: str) -> None:
        os.mkfifo(path)
        self.path = path
        super().__init__(os.open(path, os.O_RDWR))


# ---- what the kernel says ---------------------------------------------------------------------


class Process:
    """What /proc/PID/stat says: `state` is a letter, "Z" for a zombie."""

    def __init__(self, text: str) -> None:
        head, _, tail = text.rpartition(") ")
        fields = tail.split()
        self.name = head.partition(" (")[2]
        self.state = fields[0]
        self.parent, self.group, self.session = (int(field) for field in fields[1:4])


def processes() -> dict[int, Process]:
    """Every process, by its pid."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            one = process_of(int(name))
            if one is not None:
                found[int(name)] = one
    return found


def children_of(pid: int) -> set[int]:
    """The children of a process, zombies too."""
    return {child for child, one in processes().items() if one.parent == pid}


def descendants_of(pid: int) -> set[int]:
    """The whole tree under a process."""
    known = processes()
    found: set[int] = set()
    fresh = {pid}
    while fresh:
        fresh = {child for child, one in known.items() if one.parent in fresh} - found
        found |= fresh
    return found


def zombies_of(pid: int) -> set[int]:
    """The dead children that a process has not reaped."""
    return {child for child, one in processes().items() if one.parent == pid and one.state == "Z"}


def status_of(pid: int) -> dict[str, str]:
    """/proc/PID/status: what the kernel says of a process ("SigBlk", "Groups", "Umask", ...)."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        return {key: value.strip() for key, _, value in (line.partition(":") for line in file)}


def environ_of(pid: int) -> dict[str, str]:
    """The environment that a process was started with."""
    with open(f"/proc/{pid}/environ", "rb") as file:
        pairs = file.read().decode(errors="surrogateescape").split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def fds_of(pid: int) -> dict[int, str]:
    """The descriptors of a process, and what they are."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue
    return found


def marked(mark: str) -> dict[int, str]:
    """The processes with `mark` in their environment, and how they call themselves."""
    found = {}
    for pid, one in processes().items():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if mark.encode() in file.read(_ENVIRON_BYTES):
                    found[pid] = f"{one.name} ({one.state})"
        except OSError:
            continue
    return found


def in_child(check: Callable[[], object]) -> str:
    """What `check` comes to in a fork of this process, whose limits and user it may change for good."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            told = f"{check()}"
        except BaseException as error:
            told = f"raised {error!r}"
        os.write(writer, told.encode())
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    return told


def be_single_threaded() -> None:
    """End the thread of pytest's watchdog, for a test that reads this process's signals from a descriptor.

    It begins with the mask of whoever started it, and would take a signal in its first moments.
    """
    faulthandler.cancel_dump_traceback_later()


def keep_to_ourselves() -> None:
    """Let no descriptor but the standard streams be inherited, as the daemon does when it starts."""
    for fd in fds_of(os.getpid()):
        try:
            os.set_inheritable(fd, fd < 3)
        except OSError:
            continue  # that of the listing


def settled(pid: int, name: str = "sleep") -> int:
    """Wait until a child executes `name` and rests in it; returns its pid.

    The parent learns of an exec before the kernel has finished it: what /proc says changes for a moment
    more, and nothing announces the end of that. So this looks, and looks again.
    """
    for _ in range(1_000_000):
        one = process_of(pid)
        if one is None or (one.name == name and one.state == "S"):
            break
    return pid


def process_of(pid: int) -> Process | None:
    """What /proc says of one process; None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return Process(file.read())
    except OSError:
        return None


def adopt_orphans(wanted: bool) -> None:
    """Let what outlives its parents come to this process (or no more), so that nothing can hide."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


# ---- the daemon -------------------------------------------------------------------------------


class Done:
    """How a command ended: `code`, `out`, `err`. Also unpacks into these three."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    def __iter__(self) -> Any:
        return iter((self.code, self.out, self.err))

    def __repr__(self) -> str:
        return f"Done(code={self.code}, out={self.out!r}, err={self.err!r})"


def daemon_command() -> list[str]:
    """The words before CONFIG that run the daemon in the foreground."""
    return [sys.executable, "-m", "jobmon", "daemon", "-f"]


class Daemon:
    """A real daemon in the foreground, on UNIX sockets in a directory of its own.

    `config` is a master configuration as a dict; "control-port", "event-port" and "log-level" (INFO) are
    filled in where it does not give them, and relative paths are relative to `directory`. Without "log-file"
    the log comes by standard error, and `log` and `wait_log` read it there.

    The constructor returns once the daemon has announced itself, that is, once its autostart jobs are
    launched; if it ends before that, it raises AssertionError with what was said.

    Args:
        environ: variables on top of this process's; a value of None removes one.
        wrapper: words before the command: a program that prepares something and executes the rest.
        options: keyword arguments of subprocess.Popen, for instance user=, preexec_fn=, pass_fds=.
        announced: False: do not wait for the announcement.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        directory: str | None = None,
        environ: Mapping[str, str | None] | None = None,
        wrapper: Sequence[str] = (),
        announced: bool = True,
        **options: Any,
    ) -> None:
        self.directory = directory or tempfile.mkdtemp(prefix="jobmon-", dir="/tmp")
        self._mark = f"JOBMON_TEST={uuid.uuid4().hex}"
        self._clients: list[Any] = []
        self._before = children_of(os.getpid())
        self.config = self._write(config or {})
        self.environ = self._environment(environ or {})
        command = [*wrapper, *daemon_command(), self.config]
        reader, writer = os.pipe2(os.O_CLOEXEC)
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=writer,
            env=self.environ,
            cwd=self.directory,
            **options,
        )
        os.close(writer)
        self._stderr = Lines(reader)
        assert self.process.stdout is not None
        self.stdout = Lines(self.process.stdout.fileno())
        self.announcement = self._hear() if announced else ""

    def _write(self, config: Mapping[str, Any]) -> str:
        defaults = {"control-port": "control", "event-port": "event", "log-level": "INFO"}
        supervisor = {**defaults, **config.get("supervisor", {})}
        self.control = self._address(supervisor["control-port"])
        self.event = self._address(supervisor["event-port"])
        self._log_file = supervisor.get("log-file")
        path = self.path("jobmon.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump({**config, "supervisor": supervisor}, file)
        return path

    def _address(self, port: int | str) -> int | str:
        return port if isinstance(port, int) else self.path(port)

    def _environment(self, changes: Mapping[str, str | None]) -> dict[str, str]:
        ours = {
            "JOBMON_PORT": f"{self.control},{self.event}",
            "PYTHONPATH": SOURCES,
            "PYTHONDONTWRITEBYTECODE": "1",
            "JOBMON_TEST": self._mark.partition("=")[2],
        }
        return {name: value for name, value in {**os.environ, **ours, **changes}.items() if value is not None}

    def _hear(self) -> str:
        line = self.stdout.line()
        if not line:
            self.process.wait()
            self._fail(f"the daemon ended before it was up, with {self.process.returncode}")
        return line

    # ---- what is asked of it

    @property
    def pid(self) -> int:
        """The daemon's pid."""
        return self.process.pid

    @property
    def log(self) -> str:
        """The daemon's log so far (and what else it or jobs that inherit it wrote to standard error)."""
        told = self._stderr.drain()
        if self._log_file is not None and os.path.isfile(self.path(self._log_file)):
            with open(self.path(self._log_file), encoding="utf-8", errors="replace") as file:
                told += file.read()
        return told

    def wait_log(self, what: str, seconds: float = DEADLINE) -> str:
        """Wait until the log (on standard error) has `what`; returns that line."""
        return self._stderr.until(what, seconds)

    def path(self, name: str) -> str:
        """A path in the daemon's directory."""
        return os.path.join(self.directory, name)

    def configure(self, config: Mapping[str, Any]) -> None:
        """Write another configuration, for the daemon to read when it is told to."""
        listens = self.control, self.event
        self._write(config)
        self.control, self.event = listens

    def fifo(self, name: str) -> Fifo:
        """A new FIFO in the daemon's directory, for jobs to write lines to."""
        fifo = Fifo(self.path(name))
        self._clients.append(fifo)
        return fifo

    def pipe(self) -> jobmon.CommandPipe:
        """A CommandPipe to it; closed with the daemon."""
        pipe = jobmon.CommandPipe(self.control)
        self._clients.append(pipe)
        return pipe

    def events(self, **arguments: Any) -> jobmon.EventStream:
        """An EventStream (arguments as there: rich=, since=, jobs=); closed with the daemon."""
        stream = jobmon.EventStream(self.event, **arguments)
        self._clients.append(stream)
        return stream

    def watch(self, *, since: int | None = None) -> Watch:
        """The rich events from now on, or after `since` (0: all), to wait in: see Watch."""
        return Watch(self, self.events(rich=True, since=since))

    def start_cli(self, *arguments: str, user: str | None = None, **options: Any) -> subprocess.Popen[str]:
        """Start `jobmon ARGUMENTS` against this daemon, its streams on pipes."""
        if user is not None:
            entry = pwd.getpwnam(user)
            options |= {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        options = {"env": self.environ, "cwd": self.directory, "text": True, **streams, **options}
        command = [sys.executable, "-m", "jobmon", *arguments]
        process: subprocess.Popen[str] = subprocess.Popen(command, **options)
        return process

    def run_cli(self, *arguments: str, user: str | None = None, **options: Any) -> Done:
        """Run `jobmon ARGUMENTS` against this daemon to its end, as `user` where one is named."""
        with self.start_cli(*arguments, user=user, **options) as process:
            try:
                out, err = process.communicate(timeout=DEADLINE)
            except subprocess.TimeoutExpired:
                process.kill()
                self._fail(f"jobmon {' '.join(arguments)} did not end")
        return Done(process.returncode, out or "", err or "")

    # ---- its end

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it, wait until it is gone; returns its exit code (-n for a signal)."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait(self, seconds: float = DEADLINE) -> int:
        """Wait until the daemon is gone; returns its exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._fail(f"the daemon still lives after {seconds} s")

    def close(self) -> None:
        """End the daemon if it lives, and whatever is left; fails if anything was."""
        try:
            if self.process.poll() is None:
                self._end_in_order()
        finally:
            left, log = self.left(), self.log
            self._clean()
        assert not left, f"the daemon left behind: {left}\n{log}"

    def _end_in_order(self) -> None:
        # A test may end with jobs that would take their time: the second signal ends the daemon's patience.
        self.process.send_signal(signal.SIGCONT)
        for number in (signal.SIGTERM, signal.SIGTERM):
            self.process.send_signal(number)
            try:
                self.process.wait(2)
            except subprocess.TimeoutExpired:
                continue
            return
        self.wait()

    def left(self) -> list[str]:
        """What a daemon that has ended must not leave: processes, zombies, socket files and their locks."""
        return [
            *(f"pid {pid}: {name}" for pid, name in self.orphans().items()),
            *(f"file {name}" for name in os.listdir(self.directory) if self._is_ours(name)),
        ]

    def _is_ours(self, name: str) -> bool:
        return stat.S_ISSOCK(os.lstat(self.path(name)).st_mode) or name.endswith(".lock")

    def orphans(self) -> dict[int, str]:
        """The daemon's jobs that live without it: they have come to us, or have its mark."""
        known = processes()
        adopted = {
            pid: f"{one.name} ({one.state})"
            for pid, one in known.items()
            if one.parent == os.getpid() and one.session != os.getsid(0) and pid not in self._before
        }
        return adopted | marked(self._mark)

    def _clean(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        while orphans := self.orphans():  # each may leave others
            for pid in orphans:
                end_orphan(pid)
        for client in self._clients:
            client.destroy()
        self._stderr.destroy()
        assert self.process.stdout is not None
        self.process.stdout.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    # ---- when something is wrong

    def _fail(self, what: str) -> NoReturn:
        raise AssertionError(f"{what}\n{self.report()}")

    def report(self) -> str:
        """The log, and every process of this daemon, for people who look for what went wrong."""
        tree = [f"  {pid} {name}" for pid, name in marked(self._mark).items()]
        return "\n".join(("the log:", self.log or "  (nothing)", "its processes:", *tree))


def end_orphan(pid: int) -> None:
    """SIGKILL to a process, and reap it if it came to us."""
    try:
        os.kill(pid, signal.SIGKILL)
        wait_gone(pid)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


class Watch:
    """The rich events of a daemon. `seen` are all that were read, in order."""

    def __init__(self, daemon: Daemon, stream: jobmon.EventStream) -> None:
        self._daemon = daemon
        self.stream = stream
        self.seen: list[EventMessage] = []

    def next(self, seconds: float = DEADLINE) -> EventMessage:
        """The next event."""
        if not readable(self.stream.fileno(), seconds):
            self._daemon._fail(f"no event came within {seconds} s; seen: {self.words()}")
        event = self.stream.next_event()
        assert isinstance(event, EventMessage)
        self.seen.append(event)
        return event

    def until(self, job: str, what: str, seconds: float = DEADLINE) -> EventMessage:
        """Read on until an event of `job` is of the kind `what` or comes to the state `what`."""
        return self.find(lambda event: event.job == job and what in (event.event, event.state), seconds)

    def find(self, wanted: Callable[[EventMessage], bool], seconds: float = DEADLINE) -> EventMessage:
        """Read on until an event is `wanted`."""
        end = time.monotonic() + seconds
        while True:
            event = self.next(end - time.monotonic())
            if wanted(event):
                return event

    def words(self, jobs: Iterable[str] | None = None) -> list[str]:
        """What was seen, in short: "JOB EVENT STATE", of all jobs or of some."""
        names = {one.job for one in self.seen} if jobs is None else set(jobs)
        return [f"{one.job} {one.event} {one.state}" for one in self.seen if one.job in names]
