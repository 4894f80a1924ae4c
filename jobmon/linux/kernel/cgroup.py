"""A cgroup for each run, where the daemon may make one (cgroup v2, cgroups(7)).

Membership is the kernel's word then: whoever is born in a run's cgroup stays in it, however often
it forks or makes a session of its own, and cgroup.kill (Linux 5.14) reaches all of it at once.
The daemon makes one directory below its own cgroup, and a cgroup in it for each run. No
controller is enabled, so nothing of the cgroup that the daemon lives in is written to.

The directory is locked as long as its daemon lives, and open to its own user alone, so that nobody else
can lock it: what a killed daemon left is known by that, and removed where it is empty. Its name begins
with the families of the daemon and ends with the daemon's ID, so that a successor finds what still lives of
its own predecessors, and touches nobody else's. Knows nothing of jobs.
"""

from __future__ import annotations

import errno
import fcntl
import os

from jobmon.lean.cpython import signal
from jobmon.linux.kernel import procfs, syscalls
from jobmon.linux.kernel.signals import send_checked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from collections.abc import Set as AbstractSet
    from typing import NoReturn

PREFIX = "jobmon."
CLAIMS = 1000  # how often a new directory may be in somebody else's hands
_MODE = 0o700
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Unavailable(Exception):
    """No cgroups may be made here; the text says why."""


class Hierarchy:
    """The directory of one daemon. Raises Unavailable."""

    def __init__(self, name: str) -> None:
        own = procfs.cgroup2_path(os.getpid())
        if own is None:
            raise Unavailable("no cgroup v2 hierarchy is mounted")
        self.path = os.path.join(own, PREFIX + name)
        self.name = f"{procfs.cgroup2_name(os.getpid()).rstrip('/')}/{PREFIX}{name}"
        _clear_away(own)
        try:
            # Also what all is reached by: a mount that is taken away or covered takes nothing with it.
            self.fd = _claim(self.path)
        except OSError as error:
            raise Unavailable(f"{self.path}: {error.strerror}") from None
        self._serial = 0
        try:
            self._probe()
        except OSError as error:
            self.close()
            raise Unavailable(f"{self.path}: {error.strerror}") from None

    def create(self) -> Cgroup:
        """A new, empty cgroup. Raises OSError."""
        self._serial += 1
        made = Cgroup(self, self._serial)
        os.mkdir(str(self._serial), _MODE, dir_fd=self.fd)
        return made

    def close(self) -> None:
        """Remove the directory, unless something still lives in it."""
        _remove_tree(self.path)
        os.close(self.fd)

    def _probe(self) -> None:
        """Check that a process can be born into a cgroup of ours. Raises OSError."""
        trial = self.create()
        try:
            fd = trial.open()
            try:
                pid, is_there = syscalls.fork_into(fd)
                if pid == 0:
                    _be_on_trial(-1 if is_there else fd)
            finally:
                os.close(fd)
            if os.waitpid(pid, 0)[1] != 0:
                raise PermissionError(errno.EACCES, "a process may not go into it")
        finally:
            trial.remove()


def _be_on_trial(cgroup: int) -> NoReturn:
    """The child's side: exit with 0 from within the cgroup, which it must enter where it is none."""
    code = 1
    try:
        if cgroup >= 0:
            syscalls.enter(cgroup)
        code = 0
    finally:
        os._exit(code)


class _Ruin:
    """The directory of a daemon that is dead."""

    def __init__(self, path: str, name: str) -> None:
        self.path = path
        self.name = name
        self.fd = None


class Cgroup:
    """The cgroup of one run: made of two words, because there is one for each of a thousand jobs."""

    __slots__ = ("_parent", "_serial")

    def __init__(self, parent: Hierarchy | _Ruin, serial: int) -> None:
        self._parent = parent
        self._serial = serial

    @property
    def path(self) -> str:
        """Its directory."""
        return f"{self._parent.path}/{self._serial}"

    @property
    def name(self) -> str:
        """What /proc/PID/cgroup calls it."""
        return f"{self._parent.name}/{self._serial}"

    @property
    def serial(self) -> int:
        """Its number among those of its daemon."""
        return self._serial

    def number_of(self, pid: int) -> int:
        """The number of that cgroup of the same daemon in which, or below which, a process is; 0: in none."""
        head, _, tail = procfs.cgroup2_name(pid).partition(f"{self._parent.name}/")
        number = tail.partition("/")[0]
        return int(number) if not head and number.isdecimal() else 0

    @property
    def _place(self) -> tuple[str, int | None]:
        """Its directory, as a path from that of the daemon if this is open."""
        fd = self._parent.fd
        return (self.path if fd is None else str(self._serial)), fd

    def open(self) -> int:
        """A descriptor of its directory, for clone3(2)."""
        path, at = self._place
        return os.open(path, _DIRECTORY, dir_fd=at)

    def open_events(self) -> int:
        """A descriptor of cgroup.events: EPOLLPRI says that `populated` may have changed."""
        path, at = self._place
        return os.open(f"{path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=at)

    def populated(self) -> bool:
        """Whether a process lives in it or below it; zombies do not count.

        Raises:
            OSError: it could not be looked at, which is not to be taken for an empty one.
        """
        path, at = self._place
        try:
            return b"populated 1" in _content(f"{path}/cgroup.events", at)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):  # it was removed
                return False
            raise

    def pids(self) -> list[int]:
        """The processes in it and below it, as far as this PID namespace sees them."""
        found = []
        path, at = self._place
        for folder in _folders(path, at):
            data = _read(f"{folder}/cgroup.procs", at) or b""
            found += [int(word) for word in data.split() if word != b"0"]
        return found

    def holds(self, pid: int) -> bool:
        """Whether the process is in it or below it, now."""
        name = procfs.cgroup2_name(pid)
        return name == self.name or name.startswith(self.name + "/")

    def kill(self) -> None:
        """SIGKILL to everything in it and below it, at once; forks cannot escape."""
        try:
            self._write("cgroup.kill")
        except FileNotFoundError:  # before Linux 5.14
            self._freeze()
            self._kill_each(lambda _fact: True)
        except OSError:  # ENODEV: it has just been removed; EOPNOTSUPP: somebody has made it threaded
            self._kill_each(lambda _fact: True)
        else:
            # The kernel sends it to each first thread, where it is lost if that has ended before the others.
            self._kill_each(lambda fact: fact.state == procfs.HEADLESS)

    def _freeze(self) -> None:
        """Frozen processes fork no more, and SIGKILL reaches them."""
        try:
            self._write("cgroup.freeze")
        except OSError:
            pass

    def _kill_each(self, wanted: Callable[[procfs.Stat], bool]) -> None:
        for pid in self.pids():
            fact = procfs.stat(pid)
            if fact is not None and wanted(fact):
                send_checked(pid, signal.SIGKILL, self.holds)

    def _write(self, name: str) -> None:
        path, at = self._place
        fd = os.open(f"{path}/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=at)
        try:
            os.write(fd, b"1")
        finally:
            os.close(fd)

    def remove(self) -> bool:
        """Remove it, with the empty cgroups that were made below it; whether it is gone."""
        return _remove_tree(*self._place)

    def remove_all(self) -> None:
        """Remove it, and the directory of its dead daemon if nothing else lives in it."""
        _remove_tree(self._parent.path)


def _folders(path: str, at: int | None = None) -> list[str]:
    """The cgroup and all below it, parents first."""
    found = [path]
    for folder in found:
        try:
            if os.stat(folder, dir_fd=at).st_nlink == 2:  # its own two names: nothing below it, mostly
                continue
            found += [f"{folder}/{name}" for name in _folders_in(folder, at)]
        except OSError:
            continue
    return found


def _folders_in(path: str, at: int | None) -> list[str]:
    fd = os.open(path, _DIRECTORY, dir_fd=at)
    try:
        with os.scandir(fd) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    finally:
        os.close(fd)


def _remove_tree(path: str, at: int | None = None) -> bool:
    try:
        os.rmdir(path, dir_fd=at)  # mostly there is nothing below it
    except FileNotFoundError:
        return True
    except OSError:
        return _remove_from_below(path, at)
    return True


def _remove_from_below(path: str, at: int | None) -> bool:
    for folder in reversed(_folders(path, at)):
        try:
            os.rmdir(folder, dir_fd=at)
        except OSError:
            continue
    try:
        os.stat(path, dir_fd=at)
    except FileNotFoundError:
        return True
    return False


def abandoned(families: AbstractSet[str], dead: Collection[str]) -> list[Cgroup]:
    """The cgroups, below our own, in which something lives that dead daemons of these families started.

    `dead` are the IDs of daemons that are known to be dead, whoever holds their locks.
    """
    own = procfs.cgroup2_path(os.getpid())
    if own is None:
        return []
    base = procfs.cgroup2_name(os.getpid()).rstrip("/")
    names = {name for name in _listed(own) if name.startswith(PREFIX) and name.rpartition(".")[2] in dead}
    names.update(name for name in _dead(own) if not families.isdisjoint(name.split(".")[1:-1]))
    found = []
    for name in sorted(names):
        for serial in _listed(f"{own}/{name}"):
            if serial.isdigit():
                cgroup = Cgroup(_Ruin(f"{own}/{name}", f"{base}/{name}"), int(serial))
                found += [cgroup] if cgroup.populated() else []
    return found


def named(name: str, daemon: str) -> Cgroup | None:
    """The cgroup of a dead daemon's run that /proc/PID/cgroup calls so, wherever it is; None where it is
    gone, not to be seen from here, or not that daemon's."""
    base, _, serial = name.rpartition("/")
    if not serial.isdigit() or not base.endswith(f".{daemon}"):
        return None
    path = procfs.cgroup2_directory(base)
    if path is None or not os.path.isdir(f"{path}/{serial}"):
        return None
    return Cgroup(_Ruin(path, base), int(serial))


def own_pids() -> list[int]:
    """The processes in our own cgroup itself, as far as this PID namespace sees them."""
    own = procfs.cgroup2_path(os.getpid())
    data = _read(f"{own}/cgroup.procs") if own is not None else None
    return [int(word) for word in (data or b"").split() if word != b"0"]


def _claim(path: str) -> int:
    """Make a directory and lock it. Until then another daemon may take it for one that is left over: it
    holds the lock for a moment then, and the directory may be gone."""
    for _ in range(CLAIMS):
        try:
            os.mkdir(path, _MODE)
        except FileExistsError:
            pass
        fd = -1
        try:
            fd = os.open(path, _DIRECTORY)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.stat(path), os.fstat(fd)):
                kept, fd = fd, -1
                return kept
        except (FileNotFoundError, BlockingIOError):
            os.sched_yield()
        finally:
            if fd >= 0:
                os.close(fd)
    raise BlockingIOError(errno.EAGAIN, "another process holds its lock")


def _clear_away(own: str) -> None:
    """Remove what dead daemons left empty."""
    for name in _dead(own):
        _remove_tree(os.path.join(own, name))


def _dead(own: str) -> Iterator[str]:
    """The directories of daemons that are dead: a living one holds the lock of its own. Each is locked
    until the next is asked for, so that nobody makes it his meanwhile."""
    for name in _listed(own):
        if name.startswith(PREFIX):
            try:
                fd = os.open(os.path.join(own, name), _DIRECTORY)
            except OSError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(fd)
                continue
            try:
                yield name
            finally:
                os.close(fd)


def _listed(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _read(path: str, at: int | None = None) -> bytes | None:
    try:
        return _content(path, at)
    except OSError:
        return None


def _content(path: str, at: int | None = None) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=at)
    try:
        pieces = []
        while chunk := os.read(fd, 65536):
            pieces.append(chunk)
        return b"".join(pieces)
    finally:
        os.close(fd)
