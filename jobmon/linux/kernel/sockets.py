"""Listeners and streams: nonblocking, close-on-exec, bounded.

Nothing in here waits, logs, watches (that is the loop's) or knows a message. Who is at the other end
is asked in `peers`. It uses `_socket`, of which `socket` is a wrapper that would cost selectors, enum tables
and half a megabyte.

The lock of a UNIX socket: the right to a PATH is an flock on PATH.lock, held from before the first look at
PATH until the socket is closed. Lock files are removed, and that is safe because of two rules that everybody
here keeps: only the holder of the lock unlinks the file, and whoever gets a lock then checks that the file
it locked is still the one at that path, and begins again if it is not.
"""

from __future__ import annotations

import os
from errno import (
    EACCES,
    EADDRINUSE,
    EADDRNOTAVAIL,
    ECONNREFUSED,
    EINVAL,
    EIO,
    EISDIR,
    ELOOP,
    EMFILE,
    ENFILE,
    ENOBUFS,
    ENOENT,
    ENOMEM,
    ENOSPC,
    ENOTDIR,
    ENOTSOCK,
    EPERM,
    EROFS,
    EWOULDBLOCK,
)
from fcntl import LOCK_EX, LOCK_NB, flock
from stat import S_ISREG, S_ISSOCK
from struct import unpack

from jobmon.errors import StartupError
from jobmon.lean.cpython import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    IPPROTO_TCP,
    MSG_NOSIGNAL,
    SO_ACCEPTCONN,
    SO_KEEPALIVE,
    SO_PEERCRED,
    SO_REUSEADDR,
    SO_TYPE,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_KEEPCNT,
    TCP_KEEPIDLE,
    TCP_KEEPINTVL,
    TCP_NODELAY,
    socket,
)
from jobmon.lean.records import Record
from jobmon.limits import SOCKET_PATH_BYTES
from jobmon.linux.kernel import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BACKLOG = 1024  # connections that may wait for one turn of the loop; the kernel caps it by net.core.somaxconn
RECEIVE_BYTES = 16384
KEEPALIVE_SECONDS = 60  # how long a TCP peer that has half-closed is silent before it is asked for
SO_PASSRIGHTS = 83  # Linux 6.16, asm-generic/socket.h; not in Python
HIGH_WATER = 262144  # a stream with this much unsent is `full`: whoever produces should wait until it drains

PRIVATE_MODE = 0o600
PUBLIC_MODE = 0o666

_SHORT = frozenset((EMFILE, ENFILE, ENOMEM, ENOBUFS))


class Stream:
    """A connected socket with an output buffer. No method raises for what the peer or the network does.

    A peer that has gone away shows as b"" from `receive`. Output that can no longer be delivered is dropped,
    while what the peer sent before it went can still be received. `sent` counts the bytes that the kernel
    has taken: whoever watches for a reader that makes no progress compares it.
    """

    __slots__ = ("_broken", "_output", "_socket", "sent")

    def __init__(self, connected: socket) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._output: bytearray | None = None  # most connections never have one
        self._broken = False
        self.sent = 0

    @property
    def raw(self) -> socket:
        """The socket itself, to ask the kernel about it; not to read, write or close it."""
        return self._socket

    def fileno(self) -> int:
        """The descriptor, -1 when closed."""
        return self._socket.fileno()

    @property
    def closed(self) -> bool:
        """`close` has been called."""
        return self._socket.fileno() < 0

    @property
    def pending(self) -> int:
        """Bytes that wait to be sent."""
        return len(self._output) if self._output else 0

    @property
    def full(self) -> bool:
        """So much is unsent that nothing more should be produced before `flush` has made room."""
        return self.pending >= HIGH_WATER

    def receive(self) -> bytes | None:
        """What has arrived, at most RECEIVE_BYTES; None if nothing has; b"" at the end, however it came."""
        try:
            return self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def outlives_its_input(self) -> bool:
        """To be called after b"": lets the kernel find out when the peer closes entirely, which shows as a
        hangup. Of a UNIX socket it knows; TCP has to ask, as nothing comes after a FIN. False: it is gone."""
        if self._socket.family == AF_UNIX:
            return True
        try:
            self._socket.setsockopt(SOL_SOCKET, SO_KEEPALIVE, 1)
            for option, value in ((TCP_KEEPIDLE, KEEPALIVE_SECONDS), (TCP_KEEPINTVL, 15), (TCP_KEEPCNT, 4)):
                self._socket.setsockopt(IPPROTO_TCP, option, value)
        except OSError:
            return False
        return True

    def send(self, data: bytes) -> None:
        """Hands `data` to the kernel as far as it takes it now, and keeps the rest for `flush`, in order."""
        if self._output:
            self._output += data
        elif not self._broken:
            taken = self._push(data)
            if taken < len(data) and not self._broken:
                self._output = bytearray(memoryview(data)[taken:])

    def flush(self) -> bool:
        """Goes on sending what waits; True when nothing waits any more (it was taken, or nobody is there)."""
        if self._output:
            taken = self._push(self._output)
            if taken < len(self._output) and not self._broken:
                del self._output[:taken]
                return False
            self._output = None
        return True

    def _push(self, data: bytes | bytearray) -> int:
        """How many bytes the kernel took. Any error breaks the stream: ENOBUFS too, which would spin."""
        try:
            taken = self._socket.send(data, MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError:
            self._broken = True
            return 0
        self.sent += taken
        return taken

    def close(self) -> None:
        """Closes it, with whatever waits. The loop must have let go of the descriptor before."""
        self._output = None
        _close(self._socket)


class Refused(Record):
    """A connection that could not be taken for want of descriptors or memory.

    `dropped`: it was closed, and the next may be tried. Not dropped: it still waits, and would wake a loop
    for ever: leave the listener alone for a moment.
    """

    errno: int
    dropped: bool


class Listener:
    """A listening socket. `address` is a port on 127.0.0.1 or an absolute path, `kind` "tcp" or "unix".

    `may_be_given`: the kernel cannot keep clients from sending descriptors (before Linux 6.16).
    """

    __slots__ = ("_identity", "_lock", "_protocol", "_reserve", "_socket", "address", "kind", "may_be_given")

    def __init__(
        self,
        listening: socket,
        address: int | str,
        lock: int | None = None,
        identity: tuple[int, int] | None = None,
    ) -> None:
        listening.setblocking(False)
        self._socket = listening
        self._protocol = (listening.family, SOCK_STREAM, listening.proto)
        self.address = address
        self.kind = "unix" if listening.family == AF_UNIX else "tcp"
        self.may_be_given = not _take_no_descriptors(listening)
        self._lock = lock
        self._identity = identity  # (dev, ino) of the socket file that is ours to remove
        self._reserve = _reserve()

    def fileno(self) -> int:
        """The descriptor, -1 when closed."""
        return self._socket.fileno()

    @property
    def closed(self) -> bool:
        """`close` has been called."""
        return self._socket.fileno() < 0

    def accept(self, farewell: bytes = b"") -> tuple[Stream, Any] | Refused | None:
        """The next connection and its address; None when there is none; Refused when it cannot be held.

        One that is refused is sent `farewell`, as far as the kernel takes it at once. Errors that belong to
        a connection which failed before we took it are None too: accept(2) says to try again.
        """
        try:
            fd, address = self._take()
        except OSError as error:
            return self._refuse(error.errno, farewell) if error.errno in _SHORT else None
        try:
            return Stream(self._wrap(fd)), address
        except OSError:  # it was reset meanwhile; the wrapper asks getsockname(2)
            os.close(fd)
            return None

    def _take(self) -> tuple[int, Any]:
        # socket.socket.accept is made of this call, and it alone sets close-on-exec without a race.
        taken: tuple[int, Any] = self._socket._accept()  # type: ignore[attr-defined]  # noqa: SLF001
        return taken

    def _wrap(self, fd: int) -> socket:
        family, kind, protocol = self._protocol
        connected = socket(family, kind, protocol, fd)
        _take_no_descriptors(connected)  # it may have come before its listener was told
        return connected

    def _refuse(self, errno: int | None, farewell: bytes) -> Refused | None:
        """Gives up the spare descriptor to take the connection and close it: left there, it would wake us.
        None when nobody waits: accept(2) looks for a free descriptor before it looks for a connection."""
        self._release()
        try:
            fd, _ = self._take()
            refused = Stream(self._wrap(fd))
            refused.send(farewell)
            refused.close()
        except BlockingIOError:
            return None
        except OSError:
            return Refused(errno or 0, False)
        finally:
            self._reserve = _reserve()
        return Refused(errno or 0, True)

    def _release(self) -> None:
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None

    def share(self, public: bool) -> None:
        """Opens the socket file to everybody, or to its owner alone, if it was made here. Raises OSError."""
        if self._identity is None:
            return
        fd = os.open(str(self.address), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            there = os.fstat(fd)
            if (there.st_dev, there.st_ino) == self._identity:  # by its descriptor: not another in its place
                os.chmod(f"/proc/self/fd/{fd}", PUBLIC_MODE if public else PRIVATE_MODE)
        finally:
            os.close(fd)

    @property
    def lost(self) -> bool:
        """Its file, or that of its lock, was made here and has been removed."""
        if self._identity is None or self._lock is None:
            return False
        path = str(self.address)
        return _identity_of(path) != self._identity or not _same_file(self._lock, path + ".lock")

    def renew(self, public: bool) -> None:
        """Make the lost files anew. It listens on another descriptor then: unregister the old one, and accept
        all clients from it, before.

        Raises:
            StartupError: as `listen` does; nothing is changed.
        """
        path, lock = str(self.address), self._lock
        if lock is None or not _same_file(lock, path + ".lock"):
            lock = _lock(path)
        try:
            if _identity_of(path) != self._identity:
                _clear(path)
                listening, self._identity = _bind(path, PUBLIC_MODE if public else PRIVATE_MODE, BACKLOG)
                listening.setblocking(False)
                _take_no_descriptors(listening)
                _close(self._socket)
                self._socket = listening
        except BaseException:
            if lock != self._lock:
                _unlock(path, lock, unlink=True)
            raise
        if self._lock is not None and lock != self._lock:
            os.close(self._lock)
        self._lock = lock

    def close(self) -> None:
        """Stops listening and lets go of the path: only then may another daemon have it.

        The socket file is removed if it is still the one that was made here; an adopted one never is.
        """
        if self.closed:
            return
        if self._identity is not None:
            _unlink_if_ours(str(self.address), self._identity)
        _close(self._socket)
        self._release()
        if self._lock is not None:
            ours = _same_file(self._lock, str(self.address) + ".lock")
            _unlock(str(self.address), self._lock, unlink=ours)
            self._lock = None


def _take_no_descriptors(one: socket) -> bool:
    """Whoever sends descriptors there gets EPERM. Nobody reads them, but to close them may take as long as
    their sender likes. False: the kernel cannot do that."""
    if one.family == AF_UNIX:
        try:
            one.setsockopt(SOL_SOCKET, SO_PASSRIGHTS, 0)
        except OSError:
            return False  # ENOPROTOOPT: an older kernel
    return True


# --- opening -------------------------------------------------------------------------------------


def listen(address: int | str, *, public: bool, backlog: int = BACKLOG) -> Listener:
    """Listens on a TCP port of 127.0.0.1 (0: any free one) or on a UNIX socket at a path.

    `public` opens a UNIX socket to everybody (0666 instead of 0600), whom `peers` then judges. The umask is
    changed for a moment, so there may be no other thread. Call it after the last fork: the kernel tells
    clients, and a second daemon, the pid of the process that called listen(2).

    Raises:
        StartupError: in words for the person who starts the daemon: which address, why, what to do.
    """
    try:
        if isinstance(address, int):
            return _listen_tcp(address, backlog)
        return _listen_unix(address, PUBLIC_MODE if public else PRIVATE_MODE, backlog)
    except OSError as error:  # what nobody foresaw: no descriptors, no memory
        raise StartupError(f"cannot listen on {address}: {_words(error)}", error.errno or EIO) from None


def adopt(fd: int, backlog: int = BACKLOG) -> Listener:
    """Takes over a stream socket that listens already. Its file, if it has one, is left in place at the end.

    listen(2) is called once more: that changes no connection, and lets the kernel name us as its server.

    Raises:
        StartupError: it is something else; `fd` is still open then, and the caller's.
    """
    try:
        listening = socket(fileno=fd)
    except OSError as error:
        raise StartupError(f"cannot listen on descriptor {fd}: {_words(error)}", error.errno or EIO) from None
    if not _listens(listening):
        listening.detach()
        text = f"cannot listen on descriptor {fd}: it is no listening TCP or UNIX socket"
        raise StartupError(text, ENOTSOCK)
    os.set_inheritable(fd, False)
    if listening.family != AF_UNIX:
        listening.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    listening.listen(backlog)
    name = listening.getsockname()
    return Listener(listening, os.fsdecode(name) if listening.family == AF_UNIX else name[1])


def _listens(candidate: socket) -> bool:
    return (
        candidate.family in (AF_UNIX, AF_INET, AF_INET6)
        and candidate.getsockopt(SOL_SOCKET, SO_TYPE) == SOCK_STREAM
        and candidate.getsockopt(SOL_SOCKET, SO_ACCEPTCONN) == 1
    )


def _listen_tcp(port: int, backlog: int) -> Listener:
    listening = socket(AF_INET, SOCK_STREAM)
    try:
        listening.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)  # or our predecessor's TIME_WAITs keep us out
        listening.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)  # inherited by what is accepted: replies go at once
        listening.bind(("127.0.0.1", port))
        listening.listen(backlog)
    except (OSError, OverflowError) as error:
        _close(listening)
        number = error.errno if isinstance(error, OSError) else None
        text = f"cannot listen on 127.0.0.1:{port}: {_tcp_reason(error, port)}"
        raise StartupError(text, number or EINVAL) from None
    return Listener(listening, listening.getsockname()[1])


def _listen_unix(path: str, mode: int, backlog: int) -> Listener:
    path = _checked_path(path)
    lock = _lock(path)
    try:
        _clear(path)
        listening, identity = _bind(path, mode, backlog)
        return Listener(listening, path, lock, identity)
    except BaseException:
        _unlock(path, lock, unlink=True)
        raise


def _checked_path(path: str) -> str:
    # An empty path or one that begins with NUL would listen somewhere outside the file system, see unix(7).
    if not path or "\0" in path:
        raise StartupError(f"cannot listen on {path!r}: this is not a path")
    path = os.path.abspath(path)
    size = len(os.fsencode(path))
    if size > SOCKET_PATH_BYTES:
        raise StartupError(
            f"cannot listen on {path}: the path is too long for a UNIX socket: {size} bytes,"
            f" at most {SOCKET_PATH_BYTES}: choose a shorter one"
        )
    return path


def _bind(path: str, mode: int, backlog: int) -> tuple[socket, tuple[int, int]]:
    """Makes the socket and its file; gives also the (dev, ino) of that file."""
    listening = socket(AF_UNIX, SOCK_STREAM)
    try:
        _bind_with(listening, path, mode)
    except OSError as error:
        _close(listening)
        raise _cannot(path, error) from None
    made = os.lstat(path)
    listening.listen(backlog)
    return listening, (made.st_dev, made.st_ino)


def _bind_with(listening: socket, path: str, mode: int) -> None:
    """The file has just this mode from its first moment on: bind(2) makes it with 0777 & ~umask."""
    before = os.umask(0o777 & ~mode)
    try:
        listening.bind(path)
    finally:
        os.umask(before)


def _clear(path: str) -> None:
    """Removes the socket file of a dead daemon. To be called with the lock held.

    Raises:
        StartupError: somebody is there, or it is not a socket, or nobody can tell.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _cannot(path, error) from None
    if not S_ISSOCK(found.st_mode):
        raise StartupError(
            f"cannot listen on {path}: something is there that is not a socket, and it will not be removed:"
            " move it away or choose another path"
        )
    _probe(path)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _cannot(path, error, "the socket file of a daemon that is gone cannot be removed") from None


def _probe(path: str) -> None:
    """Connects to see whether somebody listens: only ECONNREFUSED says that nobody does."""
    probe = socket(AF_UNIX, SOCK_STREAM)
    try:
        probe.setblocking(False)
        probe.connect(path)
        raise _taken(path, _server_of(probe))
    except BlockingIOError:  # it lives, and its queue is full
        raise _taken(path, None) from None
    except OSError as error:
        if error.errno not in (ECONNREFUSED, ENOENT):
            raise _cannot(path, error, "another program's socket is there") from None
    finally:
        _close(probe)


def _server_of(connected: socket) -> int:
    pid, _, _ = unpack("iII", connected.getsockopt(SOL_SOCKET, SO_PEERCRED, 12))
    return int(pid)


# --- the lock ------------------------------------------------------------------------------------


def _lock(path: str) -> int:
    """A descriptor that holds the lock on PATH.lock."""
    while True:
        fd = _open_lock(path, path + ".lock")
        try:
            flock(fd, LOCK_EX | LOCK_NB)
        except OSError as error:
            problem = _refusal(path, fd, error)
            os.close(fd)
            raise problem from None
        if _same_file(fd, path + ".lock"):
            _sign(fd)
            return fd
        os.close(fd)  # its last holder removed it between our open and our lock


def _refusal(path: str, lock: int, error: OSError) -> StartupError:
    if error.errno != EWOULDBLOCK:
        return _cannot(path, error, f"its lock file {path}.lock cannot be locked")
    return _taken(path, _holder(path, lock))


def _open_lock(path: str, lock: str) -> int:
    # O_NOFOLLOW, O_NONBLOCK: in a directory for everybody a link or a FIFO may lie in wait there.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(lock, flags, PRIVATE_MODE)
    except OSError as error:
        why = f"its lock file {lock} cannot be opened" if os.path.lexists(lock) else ""
        raise _cannot(path, error, why) from None
    wrong = _unfit(os.fstat(fd))
    if wrong:
        os.close(fd)
        raise StartupError(f"cannot listen on {path}: {lock} should be {wrong}: move it away")
    return fd


def _unfit(lock: os.stat_result) -> str:
    """What a lock file is not and should be, before it is locked or written: in a directory for everybody
    somebody may have put a file of his there, or linked one of ours."""
    if not S_ISREG(lock.st_mode):
        return "a regular file, and is not"
    if lock.st_uid != os.geteuid():
        return f"this user's own file, and belongs to user {lock.st_uid}"
    if lock.st_nlink > 1:
        return "a file of its own, and has other names too (hard links)"
    return ""


def _same_file(fd: int, path: str) -> bool:
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return False
    ours = os.fstat(fd)
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)


def _sign(fd: int) -> None:
    """Leaves our pid for those who find the lock taken; a full disk makes that message poorer, no more."""
    try:
        os.truncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    except OSError:
        pass


def _holder(path: str, lock: int) -> int | None:
    """Who holds it: the server behind the socket, or, before it listens, the one who signed the lock."""
    probe = socket(AF_UNIX, SOCK_STREAM)
    try:
        probe.setblocking(False)
        probe.connect(path)
        return _server_of(probe)
    except OSError:
        signed = os.pread(lock, 16, 0).strip()
        return int(signed) if signed.isdigit() else None
    finally:
        _close(probe)


def _unlock(path: str, lock: int, unlink: bool) -> None:
    """Removes the lock file while the lock is still held (see the module's text), then lets go."""
    if unlink:
        try:  # noqa: SIM105 (contextlib costs memory)
            os.unlink(path + ".lock")
        except OSError:
            pass
    os.close(lock)


# --- words for errors ----------------------------------------------------------------------------


def _taken(path: str, pid: int | None) -> StartupError:
    who = procfs.describe(pid) if pid else "another daemon"
    return StartupError(
        f"cannot listen on {path}: {who} listens there already: stop it or choose another path", EADDRINUSE
    )


def _cannot(path: str, error: OSError, why: str = "") -> StartupError:
    directory = os.path.dirname(path)
    known = {
        ENOENT: f"the directory {directory} does not exist: create it or choose another path",
        ENOTDIR: f"{directory} is not a directory: choose another path",
        EACCES: f"this user may not write there: change the rights of {directory} or choose another path",
        EPERM: f"this user may not write there: change the rights of {directory} or choose another path",
        EROFS: "the file system is read-only: choose a path on another one, for instance below /run",
        ENOSPC: "no space left on the device",
        EADDRINUSE: "something appeared there at this very moment: try again",
        ELOOP: "a symbolic link is there, and it will not be followed: move it away",
        EISDIR: "a directory is there: choose another path",
    }
    reason = known.get(error.errno or 0) or _words(error)
    return StartupError(f"cannot listen on {path}: {why + ': ' if why else ''}{reason}", error.errno or EIO)


def _tcp_reason(error: OSError | OverflowError, port: int) -> str:
    if isinstance(error, OverflowError):
        return "a port is a number from 1 to 65535"
    if error.errno == EADDRINUSE:
        return f"the port is in use by {_port_holder(port)}: stop it or choose another port"
    if error.errno == EACCES:
        return "this user may not use so low a port: choose one from 1024 on"
    if error.errno == EADDRNOTAVAIL:
        return "there is no loopback address here: is the interface lo up?"
    return _words(error)


def _port_holder(port: int) -> str:
    """Best effort: another user's descriptors are not ours to read."""
    entry = procfs.tcp_port_holder(port)
    pid = procfs.holder_of(entry.inode) if entry is not None and entry.inode else None
    if pid is not None:
        return procfs.describe(pid)
    return f"a process of user {entry.uid}" if entry is not None and entry.inode else "another program"


def _words(error: OSError) -> str:
    return os.strerror(error.errno or 0)


# --- small parts ---------------------------------------------------------------------------------


def _reserve() -> int | None:
    try:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _identity_of(path: str) -> tuple[int, int] | None:
    try:
        there = os.lstat(path)
    except OSError:
        return None
    return there.st_dev, there.st_ino


def _unlink_if_ours(path: str, identity: tuple[int, int]) -> None:
    try:
        if _identity_of(path) == identity:
            os.unlink(path)
    except OSError:
        pass


def _close(opened: socket) -> None:
    """Closes it once. What close(2) reports, say an unsent byte, changes nothing: the descriptor is gone."""
    try:  # noqa: SIM105 (contextlib costs memory)
        opened.close()
    except OSError:
        pass
