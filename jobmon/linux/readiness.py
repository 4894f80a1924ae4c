"""How the daemon learns that a run is ready: it is told, or it asks.

Told: by sd_notify(3) on a socket of the run's own, by a newline on a descriptor, by a line of the
job's own output. Asked: by a command, a TCP connection, an HTTP request; one at a time, each with
a timeout, never waiting for any of them. What is learnt goes to `ready()`; the start-timeout is
not kept here but by the job's machine.
"""

from __future__ import annotations

import errno
import os
import time
from _socket import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    MSG_CTRUNC,
    SCM_CREDENTIALS,
    SCM_RIGHTS,
    SO_ERROR,
    SO_PASSCRED,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)

from jobmon.errors import SpawnError
from jobmon.linux import procfs, reactor
from jobmon.linux.csignal import signal
from jobmon.linux.spawn import Gift
from jobmon.spec import JobSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from jobmon.linux.children import Children
    from jobmon.linux.reactor import Reactor
    from jobmon.linux.spawn import Spawner
    from jobmon.linux.timers import Timers
    from jobmon.spec import Readiness

DATAGRAM_BYTES = 65536
ANCILLARY_BYTES = 4096
LOG_CHUNK = 65536
LONGEST_LINE = 8192  # of output that a pattern is tried on
ANSWER_BYTES = 4096


class Tools:
    """What probes need of the engine."""

    def __init__(self, watch: Reactor, timers: Timers, children: Children, spawner: Spawner) -> None:
        self.reactor = watch
        self.timers = timers
        self.children = children
        self.spawner = spawner

    def after(self, delay: float, then: Callable[[int], None]) -> None:
        """Call `then` after a delay in seconds."""
        self.timers.arm(then, 0, time.monotonic() + delay)


class Probe:
    """One way for one run. `begin` when its program is being executed, `close` whenever it is over."""

    def __init__(self, tools: Tools, spec: JobSpec, how: Readiness, ready: Callable[[], None]) -> None:
        self.tools = tools
        self.spec = spec
        self.how = how
        self.ready = ready

    def gift(self) -> Gift:
        """What the run must be given for it."""
        return Gift()

    def begin(self) -> None:
        """The program is being executed."""

    def close(self) -> None:
        """Nothing more is wanted to be known."""


class FdProbe(Probe):
    """A newline on a descriptor, as s6 has it."""

    _reader = -1
    _writer = -1

    def gift(self) -> Gift:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self._writer, True)
        return Gift({}, self._writer, int(str(self.how.target)))

    def begin(self) -> None:
        os.close(self._writer)
        self._writer = -1
        self.tools.reactor.register(self._reader, self._read, reactor.EXEC)

    def _read(self, _events: int) -> None:
        try:
            data = os.read(self._reader, 4096)
        except BlockingIOError:
            return
        if b"\n" in data:
            self.ready()
        if not data or b"\n" in data:
            self._close_reader()

    def _close_reader(self) -> None:
        if self._reader >= 0:
            self.tools.reactor.unregister(self._reader)
            os.close(self._reader)
            self._reader = -1

    def close(self) -> None:
        if self._reader >= 0 and self._writer < 0:
            self._read(0)  # written before the death, and seen after it
        self._close_reader()
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1


class Poll(Probe):
    """Something that is tried again and again, one try at a time."""

    def begin(self) -> None:
        self._try(0)

    def _try(self, _token: int) -> None:
        self.tools.after(self.how.timeout, self._late)
        self.attempt()

    def attempt(self) -> None:
        """Begin one try; `passed` or `failed` follows, maybe at once."""
        raise NotImplementedError

    def abandon(self) -> None:
        """End the try that is under way."""

    def passed(self) -> None:
        """It is ready."""
        self.tools.timers.disarm(self._late)
        self.abandon()
        self.ready()

    def failed(self) -> None:
        """Not yet."""
        self.tools.timers.disarm(self._late)
        self.abandon()
        self.tools.after(self.how.interval, self._try)

    def _late(self, _token: int) -> None:
        self.failed()

    def close(self) -> None:
        self.tools.timers.disarm(self._late)
        self.tools.timers.disarm(self._try)
        self.abandon()


class TcpProbe(Poll):
    """Somebody accepts connections; with `owned`, a process of the run does."""

    _socket: socket | None = None

    def place(self) -> tuple[str, int]:
        """Where to connect to."""
        return address(str(self.how.target))

    def attempt(self) -> None:
        host, port = self.place()
        if self.how.owned and not self._is_owned(port):
            self.failed()
            return
        family = AF_INET6 if ":" in host else AF_INET
        try:
            self._socket = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC)
            self._socket.setblocking(False)
            code = self._socket.connect_ex((host, port))
        except OSError:
            self.failed()
            return
        if code in (0, errno.EINPROGRESS):
            self.tools.reactor.register(
                self._socket.fileno(), self._connected, reactor.COMMAND, reactor.WRITE
            )
        else:
            self.failed()

    def _connected(self, _events: int) -> None:
        assert self._socket is not None
        if self._socket.getsockopt(SOL_SOCKET, SO_ERROR):
            self.failed()
        else:
            self.talk(self._socket)

    def talk(self, connected: socket) -> None:  # noqa: ARG002 - for those who say something there
        """There is a connection."""
        self.passed()

    def _is_owned(self, port: int) -> bool:
        inodes = procfs.listeners(port)
        pids = self.tools.children.pids(self.spec.name)
        return any(inodes & set(procfs.fd_inodes(pid).values()) for pid in pids)

    def abandon(self) -> None:
        if self._socket is not None:
            self.tools.reactor.unregister(self._socket.fileno())
            self._socket.close()
            self._socket = None


class HttpProbe(TcpProbe):
    """A GET is answered with a status of 200 to 399."""

    def place(self) -> tuple[str, int]:
        return url(str(self.how.target))[:2]

    def attempt(self) -> None:
        self._answer = b""
        super().attempt()

    def talk(self, connected: socket) -> None:
        host, port, path = url(str(self.how.target))
        shown = f"[{host}]" if ":" in host else host
        head = f"GET {path} HTTP/1.0\r\nHost: {shown}:{port}\r\n"
        try:
            connected.send(f"{head}User-Agent: jobmon\r\nConnection: close\r\n\r\n".encode())
        except OSError:
            self.failed()
            return
        self.tools.reactor.unregister(connected.fileno())
        self.tools.reactor.register(connected.fileno(), self._read, reactor.COMMAND)

    def _read(self, _events: int) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(ANSWER_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._answer += data
        if b"\n" in self._answer or not data or len(self._answer) >= ANSWER_BYTES:
            self._judge()

    def _judge(self) -> None:
        words = self._answer.split(b"\n", 1)[0].split()
        good = len(words) > 1 and words[0].startswith(b"HTTP/") and words[1][:1] in (b"2", b"3")
        if good and len(words[1]) == 3:
            self.passed()
        else:
            self.failed()


class ExecProbe(Poll):
    """A command ends with exit code 0."""

    _pid: int | None = None

    def attempt(self) -> None:
        command = self.how.target
        assert isinstance(command, (str, tuple))
        spec = self.spec.replace(command=command, stdin="/dev/null", stdout="/dev/null", stderr="/dev/null")
        try:
            birth = self.tools.spawner.spawn(spec, 0)
        except SpawnError:
            self.failed()
            return
        pid = self._pid = birth.pid
        self.tools.children.add_guest(pid, lambda info: self._ended(pid, info))

    def _ended(self, pid: int, info: os.waitid_result) -> None:
        if pid != self._pid:
            return  # it was too late
        self._pid = None
        if info.si_code == os.CLD_EXITED and info.si_status == 0:
            self.passed()
        else:
            self.failed()

    def abandon(self) -> None:
        if self._pid is not None:
            try:
                os.killpg(self._pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
            except OSError:
                pass
            self._pid = None


class _Tail:
    """A file of output, and how far it has been looked at."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._offset = _size(path)
        self._rest = b""

    def lines(self) -> list[bytes]:
        """The lines that were finished since the last time."""
        data = _read_at(self._path, self._offset)
        self._offset += len(data)
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-LONGEST_LINE:]
        return [line[:LONGEST_LINE] for line in lines]


class LogProbe(Poll):
    """A line of the run's output matches. Only what is written from its launch on counts."""

    def gift(self) -> Gift:
        import re

        self._pattern = re.compile(str(self.how.target).encode())
        paths = {self.spec.stdout, self.spec.stderr} - {"inherit", os.devnull}
        self._tails = [_Tail(path) for path in paths]
        return Gift()

    def attempt(self) -> None:
        lines = [line for tail in self._tails for line in tail.lines()]
        if any(self._pattern.search(line) for line in lines):
            self.passed()
        else:
            self.failed()


PROBES: dict[str, type[Probe]] = {
    "fd": FdProbe,
    "exec": ExecProbe,
    "tcp": TcpProbe,
    "http": HttpProbe,
    "log": LogProbe,
}


class NotifySocket:
    """The run's own $NOTIFY_SOCKET. `heard(words)` gets what a process of the run has said.

    Whoever has died may have said it; whoever lives must be of the run. Descriptors that come along
    are closed after the datagrams before them have been read, which answers BARRIER=1.
    """

    def __init__(
        self, tools: Tools, job: str, uid: int, heard: Callable[[dict[str, str]], None]
    ) -> None:
        self._tools = tools
        self._job = job
        self._uid = uid
        self._heard = heard
        self._socket = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._socket.setsockopt(SOL_SOCKET, SO_PASSCRED, 1)
        self._socket.bind("")  # the kernel chooses an abstract name that nobody has, unix(7)
        name = self._socket.getsockname()
        self.address = "@" + bytes(name)[1:].decode("ascii")
        tools.reactor.register(self._socket.fileno(), self._read, reactor.EXEC)

    def _read(self, _events: int) -> None:
        self.drain()

    def drain(self) -> None:
        """Read all that has come."""
        while self._socket.fileno() >= 0:
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(DATAGRAM_BYTES, ANCILLARY_BYTES)
            except OSError:  # EAGAIN: that was all
                return
            fds, sender = _unpack(ancillary)
            if sender is not None and not flags & MSG_CTRUNC and self._may(*sender):
                self._heard(_words(data))
            for fd in fds:
                os.close(fd)

    def _may(self, pid: int, uid: int) -> bool:
        if uid not in (self._uid, 0):
            return False
        fact = procfs.stat(pid)
        return fact is None or fact.state in procfs.DEAD or pid in self._tools.children.pids(self._job)

    def close(self) -> None:
        """Nobody listens any more."""
        if self._socket.fileno() >= 0:
            self._tools.reactor.unregister(self._socket.fileno())
            self._socket.close()


def address(target: str) -> tuple[str, int]:
    """HOST:PORT or [HOST]:PORT, numbers only: name services may block. Raises ValueError."""
    host, _, port = target.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    return ("127.0.0.1" if host in ("", "localhost") else host), int(port)


def url(target: str) -> tuple[str, int, str]:
    """http://HOST[:PORT]/PATH in its parts. Raises ValueError."""
    rest = target.removeprefix("http://")
    place, slash, path = rest.partition("/")
    has_port = place.rpartition("]")[2].count(":") == 1 or (place.count(":") == 1)
    host, port = address(place if has_port else place + ":80")
    return host, port, slash + path if slash else "/"


def _unpack(ancillary: list[tuple[int, int, bytes]]) -> tuple[list[int], tuple[int, int] | None]:
    fds: list[int] = []
    sender = None
    for level, kind, data in ancillary:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            fds += memoryview(data[: len(data) // 4 * 4]).cast("i")
        elif level == SOL_SOCKET and kind == SCM_CREDENTIALS:
            pid, uid, _gid = memoryview(data[:12]).cast("i")
            sender = (pid, uid)
    return fds, sender


def _words(data: bytes) -> dict[str, str]:
    lines = data.decode(errors="replace").split("\n")
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _read_at(path: str, offset: int) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.pread(fd, LOG_CHUNK, offset)
    except OSError:
        return b""
    finally:
        os.close(fd)
