"""One connection of a client: messages over a socket that never blocks; each wait has its deadline.

What has been read and decoded is in `messages` until somebody takes it, and `end` says why nothing more
follows. So no wait is for the descriptor while there is something to look at: `wait` asks these two first.
Deadlines are times of time.monotonic(); None is never.
"""

from __future__ import annotations

import os
import sys
from time import monotonic

from jobmon.errors import (
    BusyError,
    ConnectionLost,
    DaemonUnreachable,
    NotPermittedError,
    RemoteProtocolError,
)
from jobmon.lean.cpython import (
    AF_INET,
    AF_UNIX,
    IPPROTO_TCP,
    SO_PEERCRED,
    SO_SNDTIMEO,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_NODELAY,
    socket,
)
from jobmon.protocol import CLIENT, ERR_BUSY, ERR_NOT_PERMITTED, Broken, Connection, ErrorMessage, Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Protocol

    from jobmon.errors import JobMonError
    from jobmon.protocol import Message

    Port = int | str

    class HasFileno(Protocol):
        """What select(2) takes beside numbers."""

        def fileno(self) -> int:
            """The descriptor."""


DEFAULT_PORTS = "6666,6667"
_READ_SIZE = 1 << 16
_LONGEST = 86400.0  # of one poll(2), whose timeout is an int of milliseconds
_LONG = 8 if sys.maxsize > 1 << 32 else 4  # bytes of a C long


class Link:
    """A connected socket that speaks messages. `expected` are the types of message that belong here.

    `exact`: read no more than the message that is under way, so that the descriptor stays readable while
    there is another.

    Raises:
        DaemonUnreachable: nobody answers there.
        NotPermittedError: this user may not connect.
        TimeoutError: the connection was not taken before `until`.
    """

    def __init__(self, port: Port, expected: tuple[type, ...], until: float, *, exact: bool = False) -> None:
        self.where = place_of(port)
        self.messages: list[Any] = []
        self.end: JobMonError | None = None
        self._expected = expected
        self._exact = exact
        self._connection = Connection(CLIENT)
        self._socket = _connect(port, self.where, until)

    def fileno(self) -> int:
        """The descriptor, -1 when closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Leave the connection; what has been read stays."""
        self._socket.close()
        self.end = self.end or ConnectionLost(f"the connection to {self.where} is closed")

    def send(self, message: Message, until: float | None) -> bool:
        """Send all of a message. False: the peer has hung up, and reading tells whether it said why.

        Raises:
            TimeoutError: it was not taken before `until`; the connection is closed, for half a message may
                have been sent.
        """
        rest = memoryview(self._connection.send(message))
        while rest and self.end is None:
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                self._wait_for_room(until)
            except (BrokenPipeError, ConnectionResetError):
                return False
            except OSError as error:
                self.end = ConnectionLost(f"the connection to {self.where} broke: {error.strerror}")
        return not rest

    def _wait_for_room(self, until: float | None) -> None:
        """Read meanwhile: a peer that waits for its output to be read may read nothing before."""
        from select import POLLIN, POLLOUT

        if not _poll(until, (self.fileno(),), POLLIN | POLLOUT):
            self.close()
            raise TimeoutError
        self.read()

    def read(self) -> None:
        """Take what has arrived, without waiting."""
        if self.end is not None:
            return
        try:
            data = self._socket.recv(self._connection.wanted if self._exact else _READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            self.end = ConnectionLost(f"the connection to {self.where} broke: {error.strerror}")
            return
        if not data:
            self.end = ConnectionLost(f"the daemon at {self.where} closed the connection")
            return
        for message in self._connection.receive(data):
            self._take(message)

    def _take(self, message: object) -> None:
        if self.end is not None:
            return
        if isinstance(message, self._expected):
            self.messages.append(message)
        elif isinstance(message, Failure) and message.reason == ERR_NOT_PERMITTED:
            text = f"the daemon at {self.where} does not serve this user"
            self.end = NotPermittedError(text, "not-permitted")
        elif isinstance(message, Failure) and message.reason == ERR_BUSY:
            text = f"the daemon at {self.where} has too many connections: try again"
            self.end = BusyError(text, "busy")
        elif isinstance(message, Broken):
            self.end = RemoteProtocolError(
                f"the program at {self.where} is not a JobMon daemon: {message.message}"
            )
        elif isinstance(message, ErrorMessage):
            self.end = RemoteProtocolError(f"the daemon at {self.where} says: {message.message}")
        else:
            kind = type(message).__name__
            self.end = RemoteProtocolError(f"the daemon at {self.where} sent an unexpected {kind}")

    def wait(self, until: float | None) -> bool:
        """Wait until there is something to look at, in `messages` or in `end`; False at `until`."""
        while not self.messages and self.end is None:
            if not readable(until, self):
                return False
            self.read()
        return True

    def next(self) -> Any:
        """The first of `messages`; where there is none, what `end` is is raised."""
        if self.messages:
            return self.messages.pop(0)
        assert self.end is not None
        raise self.end

    def drain(self, until: float | None) -> bool:
        """Wait for the end of the connection, whatever comes before it; False at `until`."""
        while self.end is None:
            if not readable(until, self):
                return False
            self.read()
        return True

    def seen_from_here(self, pid: object) -> object:
        """The daemon's pid in our PID namespace, where it may be another than it has in its own: that of
        who listens on the UNIX socket, unless that is a manager who has handed it over (unix(7)); 0 for
        none."""
        if self._socket.family != AF_UNIX:
            return pid
        credentials = self._socket.getsockopt(SOL_SOCKET, SO_PEERCRED, 12)
        listener = int.from_bytes(credentials[:4], sys.byteorder)
        try:
            with open(f"/proc/{listener}/status", encoding="utf-8", errors="replace") as file:
                inner = [line.split()[-1] for line in file if line.startswith("NSpid:")]
        except OSError:
            inner = []
        return listener if listener == 0 or inner == [str(pid)] else pid


def place_of(port: Port) -> str:
    """A port as people read it."""
    return port if isinstance(port, str) else f"127.0.0.1:{port}"


def readable(until: float | None, *sources: HasFileno | int) -> list[int]:
    """Wait until some of these are readable (or at their end); their descriptors, none at `until`.

    Ask first whether what has been read already says something: the kernel does not know of that.
    """
    from select import POLLIN

    return _poll(until, (one if isinstance(one, int) else one.fileno() for one in sources), POLLIN)


def _poll(until: float | None, fds: Iterable[int], events: int) -> list[int]:
    from select import poll

    poller = poll()
    for fd in fds:
        poller.register(fd, events)
    while True:
        left = _LONGEST if until is None else max(0.0, until - monotonic())
        found = [fd for fd, _ in poller.poll(min(left, _LONGEST) * 1000)]
        if found or left < _LONGEST:
            return found


def _connect(port: Port, where: str, until: float) -> socket:
    """A connected socket that does not block.

    connect(2) to a UNIX socket whose queue is full waits, or fails at once where the socket does not
    block, and poll(2) does not tell when there is room. So it blocks, for as long as SO_SNDTIMEO says.
    """
    family = AF_UNIX if isinstance(port, str) else AF_INET
    connected = socket(family, SOCK_STREAM)
    try:
        connected.setsockopt(SOL_SOCKET, SO_SNDTIMEO, _timeval(until - monotonic()))
        connected.connect(bytes_of(port) if isinstance(port, str) else ("127.0.0.1", port))
        connected.setblocking(False)
        if family == AF_INET:
            connected.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    except BlockingIOError:  # EAGAIN, of TCP EINPROGRESS: the time is over
        connected.close()
        raise TimeoutError from None
    except OSError as error:
        connected.close()
        raise _unreachable(where, error) from None
    except BaseException:
        connected.close()
        raise
    return connected


def bytes_of(path: str) -> bytes:
    """What a path is to the kernel. In the encoding of this Python if that knows it: so came what it has from
    the environment; else a program has it in its text, and means what a UTF-8 configuration does."""
    try:
        return os.fsencode(path)
    except UnicodeEncodeError:
        return path.encode(errors="surrogateescape")


def _timeval(seconds: float) -> bytes:
    """A struct timeval; one of zero would mean no limit."""
    whole, micros = divmod(int(min(max(seconds, 0.001), _LONGEST) * 1_000_000), 1_000_000)
    return whole.to_bytes(_LONG, sys.byteorder) + micros.to_bytes(_LONG, sys.byteorder)


def _unreachable(where: str, error: OSError) -> DaemonUnreachable | NotPermittedError:
    if isinstance(error, PermissionError):
        return NotPermittedError(f"this user may not connect to {where}", "not-permitted")
    port = os.environ.get("JOBMON_PORT")
    told = "is not set, which means " + DEFAULT_PORTS if port is None else f"is {port}"
    text = f"no daemon answers at {where} ({error.strerror}); JOBMON_PORT {told}"
    return DaemonUnreachable(text, error.errno)
