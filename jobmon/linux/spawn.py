"""Start a process exactly as its spec says, without ever blocking the daemon.

The daemon itself opens the streams (nonblocking) and enters the directory, so that each failing
stage is known with its errno, and then uses posix_spawn, which costs the same however big the
daemon is. Where the child must open a FIFO, which waits for its other end, or is to be born in a
cgroup, it is forked, and the outcome of its exec is read later from a pipe (close-on-exec: end of
file means executed). Knows nothing of jobs beyond their spec.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat

from jobmon.errors import SpawnError
from jobmon.linux import lastwords, signals, syscalls
from jobmon.linux.csignal import signal
from jobmon.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobmon.spec import JobSpec

STREAMS = ("stdin", "stdout", "stderr")
SHELL = "/bin/sh"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_READ_FLAGS = os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC
_APPEND_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY | os.O_CLOEXEC
_REPORT_SIZE = 64

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
    that tells what becomes of its exec: see `read_report`. `waits`: that may take long, because it
    opens a FIFO first. `mark` is where in its standard error it begins, as `lastwords` has it."""

    pid: int
    report: int = -1
    waits: bool = False
    mark: int = 0


class Gift(Record):
    """What one run gets beside its spec: variables, and a descriptor under a number of its own."""

    environ: Mapping[bytes, bytes] = {}
    fd: int = -1
    target: int = -1


class Spawner:
    """Starts processes from one daemon. `marker` tells its processes from those of another.

    `nofile` is the (soft, hard) RLIMIT_NOFILE that the children get back.
    """

    def __init__(self, environ: Mapping[bytes, bytes], marker: str, nofile: tuple[int, int]) -> None:
        private = {name.encode() for name in PRIVATE}
        # A caller may hand us "=value": an empty name, which Python passes on to nobody.
        self._environ = {name: value for name, value in environ.items() if name and name not in private}
        self._marker = marker.encode()
        self._childrens_nofile = nofile
        self._own_nofile = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._ignored = signals.ignored()
        self._home = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._null = {
            flags: os.open(os.devnull, flags) for flags in (_READ_FLAGS, _APPEND_FLAGS & ~os.O_CREAT)
        }

    def spawn(self, spec: JobSpec, run: int, cgroup: int = -1, gift: Gift | None = None) -> Birth:
        """Start the program of `spec`, in the cgroup whose directory is open as `cgroup`, if any.

        Raises:
            SpawnError: the stage that failed, with its errno.
        """
        program = _Program(*self._command(spec), self._environment(spec, run))
        gift = gift or Gift()
        program.environ.update(gift.environ)
        away = self._enter(spec.working_dir)
        opened: list[int] = []
        try:
            streams = [self._open(spec, index, opened) for index in range(3)]
            mark = lastwords.mark_of(os.fstat(opened[-1])) if streams[2] in opened else 0
            if None in streams or cgroup >= 0:
                pid, report = self._fork(spec, streams, program, cgroup, gift)
                return Birth(pid, report, None in streams, mark)
            return Birth(self._posix_spawn(streams, program, gift), mark=mark)
        finally:
            for fd in opened:
                os.close(fd)
            if away:
                self._return()

    def close(self) -> None:
        """Close what is kept open for spawning."""
        for fd in (self._home, *self._null.values()):
            os.close(fd)

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
        except OSError as error:
            raise SpawnError("directory", error.errno or 0, directory) from None
        return True

    def _return(self) -> None:
        try:
            os.fchdir(self._home)
        except OSError:
            pass  # EACCES since it was opened. All our paths are absolute, so we can stay where we are

    def _open(self, spec: JobSpec, index: int, opened: list[int]) -> int | None:
        """A descriptor for one stream; None when the child must open it (a FIFO)."""
        path: str = getattr(spec, STREAMS[index])
        if path == "inherit":
            return index
        flags = _READ_FLAGS if index == 0 else _APPEND_FLAGS
        if path == os.devnull:
            return self._null[flags & ~os.O_CREAT]
        try:
            if _is_fifo(path):
                return None
            fd = os.open(path, flags | os.O_NONBLOCK, 0o666)
            opened.append(fd)
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                return None
            os.set_blocking(fd, True)
        except OSError as error:
            raise SpawnError(STREAMS[index], error.errno or 0, path) from None
        return fd

    def _posix_spawn(self, streams: list[int | None], program: _Program, gift: Gift) -> int:
        actions = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(streams)]
        if gift.fd >= 0:
            actions.append((os.POSIX_SPAWN_DUP2, gift.fd, gift.target))
        failure = errno.ENOENT
        with_own_limit = self._childrens_nofile == self._own_nofile
        if not with_own_limit:
            resource.setrlimit(resource.RLIMIT_NOFILE, self._childrens_nofile)
        try:
            for place in program.places:
                try:
                    return self._try(place, program, actions)
                except OSError as error:
                    failure = _worse(failure, error.errno or 0)
                    if failure not in _KEEP_LOOKING:
                        break
        finally:
            if not with_own_limit:
                resource.setrlimit(resource.RLIMIT_NOFILE, self._own_nofile)
        stage = "fork" if failure in (errno.EAGAIN, errno.ENOMEM) else "exec"  # of both, but rarely of exec
        raise SpawnError(stage, failure, program.argv[0])

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

    def _fork(
        self, spec: JobSpec, streams: list[int | None], program: _Program, cgroup: int, gift: Gift
    ) -> tuple[int, int]:
        try:
            reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SpawnError("fork", error.errno or 0) from None
        try:
            pid = os.fork() if cgroup < 0 else syscalls.fork_into(cgroup)
        except OSError as error:
            os.close(reader)
            raise SpawnError("fork", error.errno or 0) from None
        else:
            if pid == 0:
                self._be_the_child(spec, streams, program, writer, gift)
        finally:
            os.close(writer)
        return pid, reader

    def _be_the_child(
        self, spec: JobSpec, streams: list[int | None], program: _Program, writer: int, gift: Gift
    ) -> None:
        """The child's side of a fork: never returns, writes the stage that fails on `writer`."""
        stage = "session"
        try:
            for number in (*self._ignored, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.setsid()
            for index, fd in enumerate(streams):
                os.dup2(self._null[_READ_FLAGS] if fd is None else fd, index)
            if gift.fd >= 0:
                writer = self._hand_over(gift, writer)
            if None in streams:
                self._let_go(writer, gift)
            for index, fd in enumerate(streams):
                if fd is None:
                    stage = STREAMS[index]
                    flags = _READ_FLAGS if index == 0 else _APPEND_FLAGS
                    os.dup2(os.open(getattr(spec, stage), flags, 0o666), index)
            stage = "exec"
            resource.setrlimit(resource.RLIMIT_NOFILE, self._childrens_nofile)
            program.execute()
        except OSError as error:
            os.write(writer, f"{stage}:{error.errno}".encode())
        finally:
            os._exit(127)

    def _hand_over(self, gift: Gift, writer: int) -> int:
        """Put the gift where it belongs; the pipe makes room if it stands there."""
        if writer == gift.target:
            writer = fcntl.fcntl(writer, fcntl.F_DUPFD_CLOEXEC, gift.target + 1)
        os.dup2(gift.fd, gift.target)
        os.set_inheritable(gift.target, True)  # dup2 onto itself leaves it close-on-exec
        return writer

    def _let_go(self, writer: int, gift: Gift) -> None:
        """Keep 0-2, the gift and the pipe only: while it waits for a FIFO, the child must hold none of the
        daemon's locks, no connection that the daemon may want to close, and not its streams. (All of
        them are close-on-exec, so a child that executes at once need not.)"""
        edge = 3
        for kept in sorted({writer, gift.target} - {-1}):
            os.closerange(edge, kept)
            edge = kept + 1
        os.closerange(edge, self._own_nofile[0])


_KEEP_LOOKING = (errno.ENOENT, errno.ENOTDIR, errno.EACCES)


def _worse(known: int, new: int) -> int:
    """Of two reasons not to find a program, the one that says more (execvp(3) does the same)."""
    return known if known == errno.EACCES and new in _KEEP_LOOKING else new


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
        failure = errno.ENOENT
        for place in self.places:
            try:
                os.execve(place, self.argv, self.environ)
            except OSError as error:
                failure = _worse(failure, error.errno or 0)
                if failure not in _KEEP_LOOKING:
                    break
        raise OSError(failure, os.strerror(failure))


def run_key(job: str, run: int) -> bytes:
    """What the marker in the environment of a run's processes says of it."""
    return f"{job}:{run}".encode()


def what(spec: JobSpec, stage: str) -> str:
    """What a stage of the child's is about: a path, a program."""
    if stage in STREAMS:
        return str(getattr(spec, stage))
    if stage == "exec":
        return SHELL if isinstance(spec.command, str) else spec.command[0]
    return ""


def read_report(fd: int) -> tuple[str, int] | None:
    """What the descriptor that `spawn` returned says: (stage, errno), or None for "executed".

    Raises:
        BlockingIOError: the child has not come that far yet.
    """
    data = os.read(fd, _REPORT_SIZE)
    if not data:
        return None
    stage, _, number = data.decode().partition(":")
    return stage, int(number)
