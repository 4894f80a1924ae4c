"""What the next daemon must know of this one's runs if this one dies: the state-dir.

A directory of the daemon's own user, which nobody else may write to, with these files:

    lock        empty; the living daemon has a write lock on it (fcntl(2)), which ends with its process
                and is not inherited by its children
    daemon.ID   one for each daemon that may have left something: the living one, and dead ones. ID is
                what the marker JOBMON_RUN in the environment of its processes begins with
    run.NAME    one for each run that has not ended, made at its birth
    birth.NAME  one for a run that is about to be born, whose marker alone would not tell its first process

The last three are records: one JSON object, whose "v" is the version of its form. This code reads and
writes version 1, with the fields of `Daemon` and `Run`. A file that is no such record is reported and
counts as nothing. Nothing is synced: the state of a machine that was switched off is of no use.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from jobmon.core.spec import KillScope, canonical_signal
from jobmon.errors import StartupError
from jobmon.lean.fastjson import dumps, make_loads
from jobmon.lean.records import Record
from jobmon.linux.kernel import procfs
from jobmon.linux.log import ERROR, INFO, WARNING
from jobmon.linux.processes.spawn import run_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import TypeVar

    from jobmon.core.spec import JobSpec
    from jobmon.linux.log import Log

    One = TypeVar("One", "Daemon", "Run", "Daemon | Run")

VERSION = 1
RECORD_BYTES = 65536  # a name of 4 KiB in the longest form that JSON has for it, and room
OPENINGS = 100  # how often the directory may be removed by its last daemon while it is opened
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_LOCK = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_NOBODY = -1
_SHARED = stat.S_IWGRP | stat.S_IWOTH
_loads = make_loads()


class Garbage(ValueError):
    """This is no record; the text says why."""


class Daemon(Record):
    """One daemon. `boot` is the machine's boot and `pidns` the PID namespace in which `pid` counts,
    `start` its start time in clock ticks. `forks` is how many processes the machine had started by then,
    `file` the device and inode of its configuration at `config`."""

    id: str
    boot: str
    pidns: int
    pid: int
    start: int
    forks: int
    config: str
    file: str
    control: str

    def lives(self, boot: str, pidns: int) -> bool:
        """Whether it does, for an observer in this boot and PID namespace."""
        return (self.boot, self.pidns) == (boot, pidns) and _lives(self.pid, self.start)


class Run(Record):
    """One run, with what its job was told when it was launched. `daemon` is the ID of the daemon, `pid` is 0
    before its birth; `boot` and `pidns` are its own. `cgroup` is as /proc/PID/cgroup has it, or empty."""

    daemon: str
    boot: str
    pidns: int
    job: str
    run: int
    pid: int
    start: int
    cgroup: str
    signal: str
    kill_timeout: float
    kill_scope: str

    @property
    def marker(self) -> bytes:
        """What JOBMON_RUN is in the environment of its processes."""
        return self.daemon.encode() + b":" + run_key(self.job, self.run)


_NUMBERS = ("pidns", "pid", "start", "forks", "run")
_WORDS = {str: "a string", int: "a whole number from 0", float: "a number with a point from 0"}


def _type_of(field: str) -> type:
    return int if field in _NUMBERS else float if field == "kill_timeout" else str


def encode(record: Daemon | Run) -> bytes:
    """A record as it is written."""
    fields = {name: getattr(record, name) for name in type(record)._fields}
    return dumps({"v": VERSION, **fields}).encode()


def decode(kind: type[One], data: bytes) -> One:
    """A record of a kind. Raises Garbage."""
    if not data:
        raise Garbage("it is empty: its daemon died while writing it")
    try:
        value = _loads(data.decode())
    except ValueError as error:
        raise Garbage(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Garbage("not a JSON object")
    version = value.get("v")
    if version != VERSION or isinstance(version, bool):
        raise Garbage(f'its "v" must be {VERSION}, and is {dumps(version)[:40]}')
    for name in kind._fields:
        if name not in value:
            raise Garbage(f'it has no "{name}"')
        if right := _fault(name, value[name]):
            raise Garbage(f'its "{name}" must be {right}, and is {dumps(value[name])[:40]}')
    return kind(**{name: value[name] for name in kind._fields})


def _fault(field: str, value: object) -> str:
    """What a field must be, if it is not."""
    wanted = _type_of(field)
    if type(value) is not wanted or (isinstance(value, (int, float)) and value < 0):
        return _WORDS[wanted]
    if field == "signal" and canonical_signal(str(value)) != value:
        return "the name of a signal"
    if field == "kill_scope" and value not in [scope.value for scope in KillScope]:
        return "job, group or process"
    return ""


class StateDir:
    """The state-dir of this daemon, locked; or none, where `path` is empty.

    `daemons` and `runs` are what dead daemons have left in it.

    Raises:
        OSError: the directory cannot be had; the text says why.
        StartupError: another daemon has it.
    """

    def __init__(self, path: str, log: Log, *, removes: bool = False) -> None:
        self.path = path
        self.id = os.urandom(8).hex()
        self._log = log
        self._removes = removes
        self._failed = False
        self._where = (procfs.boot_id() or "", procfs.pid_namespace())
        self.daemons: dict[str, Daemon] = {}
        self.runs: dict[str, Run] = {}  # by the names of their files
        self._fd = self._lock = -1
        self._me: Daemon | None = None
        if path:
            self._fd, self._lock = self._claim(path)
            self._recall()

    # ---- the directory --------------------------------------------------------------------

    def _claim(self, path: str) -> tuple[int, int]:
        """Make, open and lock it. Its last daemon may remove it meanwhile; then begin anew."""
        for _ in range(OPENINGS):
            fd = lock = -1
            _make(path)
            try:
                fd = open_trusted(path)
                lock = os.open("lock", _LOCK, 0o600, dir_fd=fd)
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.stat(f"{path}/lock", follow_symlinks=False), os.fstat(lock)):
                    _keep_from_cleaners(fd)
                    taken, fd, lock = (fd, lock), -1, -1
                    return taken
            except FileNotFoundError:
                pass
            except (BlockingIOError, PermissionError) as error:
                if lock < 0:
                    raise
                raise StartupError(self._refusal(fd, path), error.errno or 0) from None
            finally:
                for one in (lock, fd):
                    if one >= 0:
                        os.close(one)
        raise FileNotFoundError(errno.ENOENT, "it is removed again and again")

    def _refusal(self, fd: int, path: str) -> str:
        living = [one for one in records_in(fd, Daemon) if one.lives(*self._where)]
        words = [f"{procfs.describe(one.pid)}, which listens on {one.control}" for one in living]
        by = " and ".join(words) or "somebody has its lock"
        return f"a daemon of this configuration runs already: {by} (state-dir {path})"

    def _recall(self) -> None:
        """Read what dead daemons have left. What was before this boot has left nothing."""
        for name in sorted(os.listdir(self._fd)):
            kind = _kind_of(name)
            if kind is None:
                continue
            try:
                record = _read(self._fd, name, kind)
            except (OSError, Garbage) as error:
                what = "unreadable state, which counts as nothing"
                self._log.write(WARNING, what, file=f"{self.path}/{name}", why=_words(error))
                self._unlink(name)
                continue
            if record.boot != self._where[0]:
                self._unlink(name)
            elif isinstance(record, Daemon):
                self.daemons[record.id] = record
            else:
                self.runs[name] = record

    def inherit(self, path: str) -> None:
        """Take over what dead daemons have left in another state-dir.

        Raises:
            StartupError: a daemon that lives has it.
        """
        try:
            fd, lock = self._claim(path)
        except OSError:
            return
        ours = set(_listed(self._fd))
        for name in _listed(fd):
            kind = _kind_of(name)
            if kind is None or (name not in ours and not self._take_over(fd, name, kind)):
                continue
            _remove(name, fd)
        _remove("lock", fd)
        os.close(lock)
        os.close(fd)
        _rmdir(path)
        self._recall()

    def _take_over(self, fd: int, name: str, kind: type[Daemon | Run]) -> bool:
        try:
            return self._write(name, _read(fd, name, kind))
        except (OSError, Garbage):
            return True  # it counts as nothing, here as there

    def counts(self, pidns: int) -> bool:
        """Whether the numbers of a PID namespace are those of ours."""
        return pidns == self._where[1]

    def forget(self, name: str) -> None:
        """Take a run of a dead daemon for gone."""
        del self.runs[name]
        self._unlink(name)

    def begin(self, config: str, control: int | str) -> None:
        """Write down this daemon, before it starts anything that it could leave."""
        self._forget_daemons()
        me = os.getpid()
        fact = procfs.stat(me)
        start = fact.starttime if fact is not None else 0
        self._me = Daemon(
            self.id, *self._where, me, start, procfs.forks(), config, identity(config), str(control)
        )
        self._write(f"daemon.{self.id}", self._me)

    def _forget_daemons(self) -> None:
        """Remove the dead daemons of which nothing is left."""
        for one in self.daemons.keys() - {run.daemon for run in self.runs.values()}:
            self._unlink(f"daemon.{one}")

    def close(self) -> None:
        """Let go of it. Where nothing runs any more, nothing of this daemon stays in it."""
        if self._fd < 0:
            return
        self._forget_daemons()
        left = {name for name in _listed(self._fd) if _kind_of(name) is Run}
        if not left - self.runs.keys():
            self._unlink(f"daemon.{self.id}")
        if not left:
            self._unlink("lock")
            if self._removes:
                _rmdir(self.path)
        os.close(self._lock)
        os.close(self._fd)
        self._fd = -1

    # ---- the runs -------------------------------------------------------------------------

    def expect(self, spec: JobSpec, run: int) -> None:
        """Write down a run that is about to be born, for we may die before `born`. Where all that has its
        marker is of the run, the marker suffices."""
        if spec.kill_scope is not KillScope.JOB:
            name, record = self._named(spec, run, 0, 0, "")
            self._write(_birth_of(name), record)

    def born(self, spec: JobSpec, run: int, pid: int, cgroup: str) -> bool:
        """Write down a run, of which `pid` is the first process. Whether that stands there."""
        fact = procfs.stat(pid) if self._fd >= 0 else None
        if fact is None:
            return False  # it has no state; or nothing of it is left, unless somebody else reaps our children
        name, record = self._named(spec, run, pid, fact.starttime, cgroup)
        written = self._write(name, record)
        if spec.kill_scope is not KillScope.JOB:
            self._unlink(_birth_of(name))
        return written

    def _named(self, spec: JobSpec, run: int, pid: int, start: int, cgroup: str) -> tuple[str, Run]:
        record = Run(
            *(self.id, *self._where, spec.name, run, pid, start, cgroup),
            *(spec.signal, float(spec.kill_timeout), spec.kill_scope.value),
        )
        return self._name(spec.name, run), record

    def renew(self, runs: Iterable[tuple[JobSpec, int, int, str]]) -> None:
        """Make it anew, where somebody has removed it; `runs` are all that live, as `born` has them."""
        if self._fd < 0 or self._me is None or self._is_there():
            return
        try:
            fd, lock = self._claim(self.path)
        except (OSError, StartupError) as error:
            text = "the state-dir is gone, and cannot be made anew"
            self._log.write(ERROR, text, state_dir=self.path, why=_words(error))
            return
        for old in (self._lock, self._fd):
            os.close(old)
        self._fd, self._lock = fd, lock
        records: dict[str, Daemon | Run] = {f"daemon.{self.id}": self._me}
        for spec, run, pid, cgroup in runs:
            fact = procfs.stat(pid)  # the first process may be dead while others live
            name, record = self._named(spec, run, pid, 0 if fact is None else fact.starttime, cgroup)
            records[name] = record
        for name, one in records.items():
            self._unlink(name)
            self._write(name, one)
        self._log.write(WARNING, "state-dir was missing: created again", state_dir=self.path)

    def _is_there(self) -> bool:
        try:
            place, lock = os.stat(self.path), os.stat("lock", dir_fd=self._fd)
        except OSError:
            return False
        return os.path.samestat(place, os.fstat(self._fd)) and os.path.samestat(lock, os.fstat(self._lock))

    def gone(self, job: str, run: int) -> None:
        """Remove a run of which nothing is left."""
        if self._fd >= 0:
            name = self._name(job, run)
            self._unlink(name)
            self._unlink(_birth_of(name))

    def _name(self, job: str, run: int) -> str:
        return f"run.{digest(self.id.encode() + run_key(job, run))}"

    def _write(self, name: str, record: Daemon | Run) -> bool:
        """Write a record down, if there is a state-dir; whether it stands there."""
        if self._fd < 0:
            return False
        try:
            fd = os.open(name, _CREATE, 0o600, dir_fd=self._fd)
            try:
                _write_whole(fd, encode(record))
            except OSError:
                self._unlink(name)
                raise
            finally:
                os.close(fd)
        except OSError as error:
            if not self._failed:  # a full disk fails for each run: once is enough
                text = "no state for a run: the next daemon would not know what this one left"
                self._log.write(WARNING, text, file=f"{self.path}/{name}", error=error.strerror)
            self._failed = True
        else:
            self._failed = False
        return not self._failed

    def _unlink(self, name: str) -> None:
        _remove(name, self._fd)


def _write_whole(fd: int, data: bytes) -> None:
    """Write all at once, for half a record says nothing; a disk may have room for half of it."""
    if os.write(fd, data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _remove(name: str, fd: int) -> None:
    try:
        os.unlink(name, dir_fd=fd)
    except OSError:
        pass  # it was not written; or it stays, and its run is known as dead by its start time


def _rmdir(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError:
        pass  # somebody has put something there


def digest(data: bytes) -> str:
    """A name for something, which may be the name of a file."""
    from jobmon.lean.cpython import blake2s

    return blake2s(data, digest_size=8).hexdigest()


def identity(path: str) -> str:
    """The device and inode of a file, whatever it is called; empty where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return f"{found.st_dev}:{found.st_ino}"


def _lives(pid: int, start: int) -> bool:
    fact = procfs.stat(pid)
    return fact is not None and fact.starttime == start and fact.state not in procfs.DEAD


def _kind_of(name: str) -> type[Daemon | Run] | None:
    return Daemon if name.startswith("daemon.") else Run if name.startswith(("run.", "birth.")) else None


def _birth_of(name: str) -> str:
    """The name of the file of a run that is about to be born; `name` is for later."""
    return name.replace("run.", "birth.", 1)


def _words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _read(fd: int, name: str, kind: type[One]) -> One:
    """A record. Raises OSError, Garbage."""
    file = os.open(name, _READ, dir_fd=fd)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise Garbage("not a regular file")
        data = os.read(file, RECORD_BYTES + 1)
    finally:
        os.close(file)
    if len(data) > RECORD_BYTES:
        raise Garbage(f"it has more than {RECORD_BYTES} bytes")
    return decode(kind, data)


def records_in(fd: int, kind: type[One]) -> Iterator[One]:
    """The records of a kind in an open state-dir; what is none is left out."""
    for name in os.listdir(fd):
        if _kind_of(name) is kind:
            try:
                yield _read(fd, name, kind)
            except (OSError, Garbage):
                continue


# ---- where it is ------------------------------------------------------------------------------


def default(config: str, environ: Mapping[str, str]) -> str:
    """The state-dir of a configuration that names none."""
    return _bases(environ)[0] + digest(os.fsencode(os.path.realpath(config)))


def _bases(environ: Mapping[str, str]) -> list[str]:
    """How the path of a state-dir that is not configured may begin, the best first."""
    me = os.geteuid()
    found = []
    if given := environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]:
        found.append(f"{given}/")
    session = environ.get("XDG_RUNTIME_DIR", "")
    if me != 0 and session and _owner(session) == me:  # that of root, too, is gone when root logs out
        found.append(f"{session}/jobmon/")
    if _owner("/run/jobmon") in ((me, _NOBODY) if me == 0 else (me,)):
        found.append("/run/jobmon/")  # it may be that of a service with a user of its own
    return [*found, f"/tmp/jobmon-{me}-"]


def _owner(path: str) -> int:
    try:
        return os.stat(path).st_uid
    except OSError:
        return _NOBODY


def _make(path: str) -> None:
    """Make a state-dir, and the directory that it is in, where they are missing."""
    for folder, mode in ((os.path.dirname(path), 0o755), (path, 0o700)):
        try:
            os.mkdir(folder, mode)
        except FileExistsError:
            pass


def _keep_from_cleaners(fd: int) -> None:
    """systemd-tmpfiles removes what is old, also from under a daemon; but not what has this lock, see "Age"
    in tmpfiles.d(5)."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        pass  # it looks at this very moment, when nothing in there is old


def open_trusted(path: str) -> int:
    """A descriptor of a directory that only its own user, who is ours, can have written to.

    Raises:
        OSError: it cannot be opened, or it is another's; the text says what would be right.
    """
    above = os.path.dirname(path)
    found = os.stat(above)
    if not {found.st_uid, os.lstat(above).st_uid} <= {0, os.geteuid()}:  # a link may lead to our own
        raise PermissionError(errno.EPERM, f"{above} belongs to another user")
    if found.st_mode & _SHARED and not found.st_mode & stat.S_ISVTX:
        raise PermissionError(errno.EPERM, f"others may write to {above}")
    fd = os.open(path, _DIRECTORY)
    found = os.fstat(fd)
    trouble = ""
    if found.st_uid != os.geteuid():
        trouble = "it belongs to another user"
    elif found.st_mode & _SHARED:
        trouble = "others may write to it: chmod go-w it"
    if trouble:
        os.close(fd)
        raise PermissionError(errno.EPERM, trouble)
    return fd


def acquire(configured: str | None, config: str, environ: Mapping[str, str], log: Log) -> StateDir:
    """The state of a daemon. Without a directory that can be trusted there is none, which is said.

    Raises:
        StartupError: another daemon has it, or it is configured and cannot be had.
    """
    path = configured or default(config, environ)
    try:
        state = StateDir(path, log, removes=configured is None)
    except OSError as error:
        if configured is not None:
            raise StartupError(f"state-dir {path}: {_words(error)}", error.errno or 0) from None
        # As PID 1 it leaves nothing: when it dies, the kernel ends all that lives in its namespace.
        level = INFO if os.getpid() == 1 else WARNING
        text = "no state is kept: should this daemon be killed, the next one cannot know all of its jobs"
        log.write(level, text, state_dir=path, why=_words(error))
        return StateDir("", log)
    try:
        for other in _of_the_same_name(state, config, environ):
            state.inherit(other)
    except StartupError:
        state.close()
        raise
    return state


# ---- other daemons ------------------------------------------------------------------------------


def others(state: StateDir, config: str, control: int | str, environ: Mapping[str, str]) -> Iterator[Other]:
    """The daemons in other state-dirs that have this very configuration, under another path, or that
    have the address of this one's: those that live, and those that died and left something."""
    here = identity(config)
    for path in _other_dirs(state, environ):
        yield from _others_in(path, here, str(control))


def _of_the_same_name(state: StateDir, config: str, environ: Mapping[str, str]) -> Iterator[str]:
    """The other state-dirs in which a daemon is written down whose configuration has this name. Its links
    (`current`) may have led to another file, and so to another state-dir."""
    name = os.path.normpath(config)
    for path in _other_dirs(state, environ):
        if any(os.path.normpath(one.config) == name for one in _trusted_records(path)):
            yield path


def _trusted_records(path: str) -> list[Daemon]:
    """The daemons in a state-dir; none where others may have written them."""
    try:
        fd = open_trusted(path)
    except OSError:
        return []
    try:
        return list(records_in(fd, Daemon))
    finally:
        os.close(fd)


def _other_dirs(state: StateDir, environ: Mapping[str, str]) -> Iterator[str]:
    ours = identity(state.path)
    for base, begin in map(os.path.split, _bases(environ)):
        for name in _listed(base):
            path = os.path.join(base, name)
            if name.startswith(begin) and identity(path) != ours:
                yield path


class Other(Record):
    """Another daemon; `left` are the jobs that live though it is dead."""

    daemon: Daemon
    lives: bool
    left: tuple[str, ...]


def _others_in(path: str, file: str, control: str) -> Iterator[Other]:
    where = (procfs.boot_id() or "", procfs.pid_namespace())
    try:
        fd = open_trusted(path)
    except OSError:
        return
    try:
        for one in records_in(fd, Daemon):
            lives = one.lives(*where)
            left = () if lives else tuple(sorted(_left_in(fd, one, where[0])))
            # The address of one that lives is told by the kernel: to listen on it fails.
            if (lives and one.file == file) or (left and (one.file == file or one.control == control)):
                yield Other(one, lives, left)
    finally:
        os.close(fd)


def _left_in(fd: int, daemon: Daemon, boot: str) -> set[str]:
    """The jobs of a dead daemon of which the first process lives."""
    if daemon.boot != boot:
        return set()
    runs = [run for run in records_in(fd, Run) if run.daemon == daemon.id]
    return {run.job for run in runs if _lives(run.pid, run.start)}


def _listed(path: str | int) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []
