"""Start a process exactly as its spec says, without ever blocking the daemon.

The daemon itself opens the streams (nonblocking) and enters the directory, so that each failing
stage is known with its errno, and then uses posix_spawn, which costs the same however big the
daemon is. Where the child must open a FIFO, which waits for its other end, or is to be born in a
cgroup, it is forked, and the outcome of its exec is read later from a pipe (close-on-exec: end of
file means executed). So it is where a path leads to a file system that may not answer: then the
child, which alone waits, does all of it. Knows nothing of jobs beyond their spec.

No exception but SpawnError comes out of here, and none once there is a process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat

from jobmon.errors import SpawnError
from jobmon.lean.cpython import signal
from jobmon.lean.records import Record
from jobmon.limits import NOT_FOUND
from jobmon.linux.kernel import procfs, signals, syscalls
from jobmon.linux.kernel.execution import close, keep_only, try_places
from jobmon.linux.kernel.mounts import Mounts
from jobmon.linux.processes import stderrtail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import NoReturn

    from jobmon.core.spec import JobSpec

STREAMS = ("stdin", "stdout", "stderr")
SHELL = "/bin/sh"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_READ_FLAGS = os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC
_APPEND_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY | os.O_CLOEXEC
_MARK = "in "  # how a line of a report begins that is a mark
_LIMIT_TRIES = 3
_REPORT_SIZE = 4096  # PIPE_BUF: what is written at once and whole, pipe(7)

# What the daemon was told about itself (sd_notify(3), sd_listen_fds(3)) is not for its jobs.
PRIVATE = (
    "NOTIFY_SOCKET",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PIDFDID",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "FDSTORE",
    "JOURNAL_STREAM",
    "JOBMON_RUN",
    "JOBMON_JOB",
)


class Birth(Record):
    """A new process. `report` (or -1, when it is executing its program already) is a descriptor
    that tells what becomes of its exec: see `read_report`. `waits`: that takes as long as nobody opens the
    other end of a FIFO; `far`: it may take long, if a file system does not answer. `mark` is where in its
    standard error it begins, as `lastwords` has it."""

    pid: int
    report: int = -1
    waits: bool = False
    far: bool = False
    mark: int = 0


class Gift(Record):
    """What one run gets beside its spec: variables, and a descriptor under a number of its own."""

    environ: Mapping[bytes, bytes] = {}
    fd: int = -1
    target: int = -1


class Spawner:
    """Starts processes from one daemon. `marker` tells its processes from those of another.

    `nofile` is the soft RLIMIT_NOFILE that the children get back, as far as the hard one allows it;
    `ports` is the daemon's address, in the form of $JOBMON_PORT.
    """

    def __init__(
        self, environ: Mapping[bytes, bytes], marker: str, nofile: int, ports: str = ""
    ) -> None:
        private = {name.encode() for name in PRIVATE}
        # A caller may hand us "=value": an empty name, which Python passes on to nobody.
        self._environ = {name: value for name, value in environ.items() if name and name not in private}
        if ports:
            self._environ[b"JOBMON_PORT"] = os.fsencode(ports.replace("\0", "@"))  # an abstract socket's
        self._marker = marker.encode()
        self._childrens_nofile = nofile
        self._ignored = signals.ignored()
        self._mounts = Mounts()
        self._here = os.getcwd()
        self._home = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._null = {
            flags: os.open(os.devnull, flags) for flags in (_READ_FLAGS, _APPEND_FLAGS & ~os.O_CREAT)
        }

    def spawn(self, spec: JobSpec, run: int, cgroup: int = -1, gift: Gift | None = None) -> Birth:
        """Start the program of `spec`, in the cgroup whose directory is open as `cgroup`, if any.

        Raises:
            SpawnError: the stage that failed, with its errno or its reason.
        """
        try:
            program = _Program(*self._command(spec), self._environment(spec, run))
            gift = gift or Gift()
            program.environ.update(gift.environ)
            return self._start(_Task(spec, program, cgroup, gift, *self._who_waits(spec, program)))
        except SpawnError:
            raise
        except Exception as error:  # noqa: BLE001 - what nobody foresaw is this job's failure alone
            raise failed("start", error) from error

    def _start(self, task: _Task) -> Birth:
        away = not task.apart and self._enter(task.spec.working_dir)
        opened: list[int] = []
        try:
            streams = [self._open(task, index, opened) for index in range(3)]
            mark = stderrtail.mark_of(os.fstat(opened[-1])) if streams[2] in opened else 0
            if None in streams or task.waits or task.cgroup >= 0:
                pid, report = self._fork(task, streams)
                return Birth(pid, report, None in streams and not task.apart, task.waits, mark)
            return Birth(self._posix_spawn(streams, task.program, task.gift), mark=mark)
        finally:
            for fd in opened:
                close(fd)
            if away:
                self._return()

    def close(self) -> None:
        """Close what is kept open for spawning."""
        self._mounts.close()
        for fd in (self._home, *self._null.values()):
            os.close(fd)

    def helper(self, work: Callable[[], bytes]) -> tuple[int, int]:
        """Let a child do something that may take long: its pid, and a descriptor of what `work` returns,
        nothing where it fails. Raises OSError."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reader, False)
        daemon = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            os.close(reader)
            raise
        else:
            if pid == 0:
                self._help(work, writer, daemon)
        finally:
            os.close(writer)
        return pid, reader

    def _help(self, work: Callable[[], bytes], writer: int, daemon: int) -> NoReturn:
        try:
            syscalls.die_with(daemon)
            self._be_nobodys()
            for index in range(3):
                os.dup2(self._null[_READ_FLAGS], index)
            keep_only(0, 1, 2, writer, listing=procfs.own_fds())
            with open(writer, "wb") as pipe:
                pipe.write(work())
        finally:
            os._exit(0)

    def _be_nobodys(self) -> None:
        """What the daemon ignores, blocks and leads is not for its children."""
        for number in (*self._ignored, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.setsid()

    def may_hang(self, path: str) -> bool:
        """Whether to touch a path may take as long as somebody else likes."""
        return self._mounts.may_hang(path)

    def _who_waits(self, spec: JobSpec, program: _Program) -> tuple[bool, bool]:
        """Whether the directory or a stream may take long, and whether anything may."""
        home = self._here if spec.working_dir == "." else spec.working_dir
        paths = {home, *(getattr(spec, name) for name in STREAMS)} - {"inherit", os.devnull}
        apart = any(map(self._mounts.may_hang, paths))
        # `join` keeps what is absolute
        places = (os.path.join(home, place) for place in program.places)
        return apart, apart or any(map(self._mounts.program_may_hang, places))

    def _command(self, spec: JobSpec) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The places where the program may be, and its arguments."""
        if isinstance(spec.command, str):
            return (SHELL,), (SHELL, "-c", spec.command)
        name = spec.command[0]
        if "/" in name:
            return (name,), spec.command
        path = spec.env.get("PATH")
        if path is None:
            path = os.fsdecode(self._environ.get(b"PATH", DEFAULT_PATH.encode()))
        return tuple(os.path.join(folder or ".", name) for folder in path.split(":")), spec.command

    def _environment(self, spec: JobSpec, run: int) -> dict[bytes, bytes]:
        # They come first: of an environment that is very long only the beginning is read.
        own = {
            b"JOBMON_RUN": b"%s:%s" % (self._marker, run_key(spec.name, run)),
            b"JOBMON_JOB": spec.name.encode(),
        }
        environ = own | self._environ
        for name, value in spec.env.items():
            environ[name.encode()] = value.encode()
        return environ | own

    def _enter(self, directory: str) -> bool:
        if directory == ".":
            return False  # any other may be a new directory of the same name by now
        try:
            os.chdir(directory)
        except (OSError, ValueError) as error:
            raise failed("directory", error, directory) from None
        return True

    def _return(self) -> None:
        try:
            os.fchdir(self._home)
        except OSError:
            pass  # EACCES since it was opened. All our paths are absolute, so we can stay where we are

    def _open(self, task: _Task, index: int, opened: list[int]) -> int | None:
        """A descriptor for one stream; None when the child must open it (a FIFO, or all apart)."""
        path: str = getattr(task.spec, STREAMS[index])
        if path == "inherit":
            return index
        flags = _READ_FLAGS if index == 0 else _APPEND_FLAGS
        if path == os.devnull:
            return self._null[flags & ~os.O_CREAT]
        if task.apart:
            return None
        try:
            if _is_fifo(path):
                return None
            fd = os.open(path, flags | os.O_NONBLOCK, 0o666)
            opened.append(fd)
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                return None
            os.set_blocking(fd, True)
        except (OSError, ValueError) as error:
            raise failed(STREAMS[index], error, path) from None
        return fd

    def _posix_spawn(self, streams: list[int | None], program: _Program, gift: Gift) -> int:
        actions = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(streams)]
        if gift.fd >= 0:
            actions.append((os.POSIX_SPAWN_DUP2, gift.fd, gift.target))
        own = _limit_descriptors(self._childrens_nofile)
        try:
            return try_places(program.places, lambda place: self._try(place, program, actions))
        except OSError as error:
            # of both, but rarely of exec
            stage = "fork" if error.errno in (errno.EAGAIN, errno.ENOMEM) else "exec"
            raise SpawnError(stage, error.errno or 0, program.argv[0]) from None
        except ValueError as error:
            raise failed("exec", error, program.argv[0]) from None
        finally:
            _limit_descriptors(own)

    def _try(self, place: str, program: _Program, actions: list[tuple[int, int | None, int]]) -> int:
        return os.posix_spawn(
            place,
            program.argv,
            program.environ,
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=self._ignored,
        )

    def _fork(self, task: _Task, streams: list[int | None]) -> tuple[int, int]:
        try:
            reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SpawnError("fork", error.errno or 0) from None
        try:
            pid, is_there = (os.fork(), True) if task.cgroup < 0 else syscalls.fork_into(task.cgroup)
        except OSError as error:
            os.close(reader)
            raise SpawnError("fork", error.errno or 0) from None
        else:
            if pid == 0:
                self._be_the_child(task, streams, writer, is_there=is_there)
        finally:
            os.close(writer)
        return pid, reader

    def _be_the_child(
        self, task: _Task, streams: list[int | None], writer: int, *, is_there: bool
    ) -> NoReturn:
        """The child's side of a fork: never returns, writes the stage that fails on `writer`."""
        spec, gift, stage = task.spec, task.gift, "cgroup"
        try:
            if not is_there:
                syscalls.enter(task.cgroup)
            stage = "session"
            self._be_nobodys()
            for index, fd in enumerate(streams):
                os.dup2(self._null[_READ_FLAGS] if fd is None else fd, index)
            if gift.fd >= 0:
                writer = self._hand_over(gift, writer)
            if task.waits or None in streams:
                # While it waits it must hold none of the daemon's locks, no connection that the daemon may
                # want to close, and not its streams. (All are close-on-exec, for a child that need not wait.)
                keep_only(0, 1, 2, writer, gift.target, listing=procfs.own_fds())
            if task.apart:
                stage = "directory"
                os.chdir(spec.working_dir)
            for index, fd in enumerate(streams):
                if fd is None:
                    stage = STREAMS[index]
                    flags = _READ_FLAGS if index == 0 else _APPEND_FLAGS
                    os.dup2(os.open(getattr(spec, stage), flags, 0o666), index)
            if task.apart:
                _tell_marks(writer, streams)
            stage = "limits"
            _limit_descriptors(self._childrens_nofile)
            stage = "exec"
            task.program.execute()
        except BaseException as error:  # noqa: BLE001 - without a word from here, nobody knows why it is dead
            _report(writer, failed(stage, error))
        finally:
            os._exit(NOT_FOUND)

    def _hand_over(self, gift: Gift, writer: int) -> int:
        """Put the gift where it belongs; the pipe makes room if it stands there."""
        if writer == gift.target:
            writer = fcntl.fcntl(writer, fcntl.F_DUPFD_CLOEXEC, gift.target + 1)
        os.dup2(gift.fd, gift.target)
        os.set_inheritable(gift.target, True)  # dup2 onto itself leaves it close-on-exec
        return writer


def _limit_descriptors(soft: int) -> int:
    """Set the soft RLIMIT_NOFILE, to no more than the hard one; returns what it was. The hard one stays: to
    raise it is a privilege, to lower it is for good, and prlimit(1) may change it at any moment. Where the
    kernel refuses all the same (fs.nr_open is below it by now), the limit stays as it is."""
    before = soft
    for _ in range(_LIMIT_TRIES):
        before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        bound = hard if soft == resource.RLIM_INFINITY else soft
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (bound if hard < 0 else min(bound, hard), hard))
        except ValueError:
            continue  # the hard one was lowered meanwhile
        break
    return before


def failed(stage: str, error: BaseException, what: str = "") -> SpawnError:
    """What an exception means at a stage. The kernel's has a number, for others their own text must do."""
    if isinstance(error, MemoryError):
        return SpawnError(stage, errno.ENOMEM, what)
    if isinstance(error, OSError) and error.errno:
        return SpawnError(stage, error.errno, what)
    return SpawnError(stage, 0, what, f"{type(error).__name__}: {error}")


class _Task(Record):
    """What is to be started, and how. `apart`: the child itself goes to its directory and opens all files,
    for that may take long. `waits`: that, or the program is where it may take long."""

    spec: JobSpec
    program: _Program
    cgroup: int
    gift: Gift
    apart: bool
    waits: bool


def _is_fifo(path: str) -> bool:
    # Asked before opening: to open a FIFO even for a moment would wake whoever waits at its other end.
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except FileNotFoundError:
        return False


class _Program(Record):
    """What is to be executed: the places to look in, arguments, environment."""

    places: tuple[str, ...]
    argv: tuple[str, ...]
    environ: dict[bytes, bytes]

    def execute(self) -> None:
        """execve(2) the first that is there. Raises OSError."""
        try_places(self.places, lambda place: os.execve(place, self.argv, self.environ))


def run_key(job: str, run: int) -> bytes:
    """What the marker in the environment of a run's processes says of it."""
    return f"{job}:{run}".encode()


def what(spec: JobSpec, stage: str) -> str:
    """What a stage of the child's is about: a path, a program."""
    if stage in STREAMS:
        return str(getattr(spec, stage))
    if stage == "directory":
        return spec.working_dir
    if stage == "exec":
        return SHELL if isinstance(spec.command, str) else spec.command[0]
    return ""


def told(text: str) -> str:
    """Escape in a text of the kernel's what people, and the wire, cannot read: bytes that are no UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def why(error: SpawnError) -> str:
    """The reason of a failed start, for people."""
    return error.text or os.strerror(error.errno)


def _tell_marks(writer: int, streams: list[int | None]) -> None:
    """Where in its files the run begins, as the daemon cannot look there."""
    for index, fd in enumerate(streams):
        if fd is None:
            mark = stderrtail.mark_of(os.fstat(index))
            os.write(writer, f"{_MARK}{STREAMS[index]}:{mark}\n".encode())


def _report(writer: int, error: SpawnError) -> None:
    data = f"{error.stage}:{error.errno}:{error.text}".encode(errors="backslashreplace")
    os.write(writer, data[:_REPORT_SIZE])


def read_report(fd: int, spec: JobSpec, marks: dict[str, int] | None = None) -> SpawnError | None:
    """What the descriptor that `spawn` returned for `spec` says: what failed, or None for "executed". Where
    the child itself has opened its streams, `marks` of them are added (see `lastwords`).

    Raises:
        BlockingIOError: the child has not come that far yet.
    """
    while data := os.read(fd, _REPORT_SIZE):
        lines = data.decode(errors="replace").split("\n")
        while lines[0].startswith(_MARK):
            stream, mark = lines.pop(0)[len(_MARK) :].split(":")
            if marks is not None:
                marks[stream] = int(mark)
        if lines != [""]:
            stage, number, text = "\n".join(lines).split(":", 2)
            return SpawnError(stage, int(number), what(spec, stage), text)
    return None
