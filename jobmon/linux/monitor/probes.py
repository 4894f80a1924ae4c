"""How the daemon learns that a run is ready: it is told, or it asks.

Told: by sd_notify(3) (see `runsocket`), by a newline on a descriptor, by a line of the job's own
output. Asked: by a command, a TCP connection, an HTTP request; one at a time, each with
a timeout, never waiting for any of them. What is learnt goes to `ready()`; the start-timeout is
not kept here but by the job's machine.
"""

from __future__ import annotations

import errno
import os
import time
from marshal import dumps, loads

from jobmon.core.spec import (
    ExecReadiness,
    FdReadiness,
    HttpReadiness,
    JobSpec,
    KillScope,
    LogReadiness,
    TcpReadiness,
)
from jobmon.errors import SpawnError
from jobmon.lean.cpython import (
    AF_INET,
    AF_INET6,
    SO_ERROR,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    inet_pton,
    signal,
    socket,
)
from jobmon.linux.kernel import procfs, signals
from jobmon.linux.kernel.loop import COMMAND, EXEC, UNSET, WRITE
from jobmon.linux.monitor.logmatch import Finder, Output
from jobmon.linux.processes.members import GroupCrowd, Leader
from jobmon.linux.processes.spawn import Gift, read_report, why

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from jobmon.core.spec import Readiness
    from jobmon.linux.kernel.loop import Loop
    from jobmon.linux.processes.children import Children
    from jobmon.linux.processes.spawn import Birth, Spawner

ANSWER_BYTES = 16384  # of the heads of an answer: interim ones may come first
SEARCH_SECONDS = 0.01  # that one turn of the loop may look at descriptors
PIPE_BYTES = 65536  # all that a pipe holds, pipe(7)
NOBODYS = Gift({b"JOBMON_RUN": b""})  # for whom no run answers


class Probe:
    """One way for one run. `begin` when its program is being executed, `close` whenever it is over.

    `trouble` is why it is not known to be ready yet, where that is known.
    """

    trouble = ""

    def __init__(
        self,
        loop: Loop,
        children: Children,
        spawner: Spawner,
        spec: JobSpec,
        run: int,
        how: Readiness,
        ready: Callable[[], None],
    ) -> None:
        self.loop = loop
        self.children = children
        self.spawner = spawner
        self.spec = spec
        self.run = run
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

    how: FdReadiness
    _reader = -1
    _writer = -1

    def gift(self) -> Gift:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self._writer, True)
        return Gift({}, self._writer, self.how.fd)

    def begin(self) -> None:
        os.close(self._writer)
        self._writer = -1
        self.loop.add_reader(self._reader, self._read, EXEC)

    def _read(self, _events: int) -> None:
        try:
            data = os.read(self._reader, PIPE_BYTES)
        except BlockingIOError:
            return
        if b"\n" in data:
            self.ready()
        if not data or b"\n" in data:
            self._close_reader()

    def _close_reader(self) -> None:
        if self._reader >= 0:
            self.loop.remove_reader(self._reader)
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

    how: ExecReadiness | TcpReadiness | HttpReadiness | LogReadiness
    _failures = 0
    _next_try = _deadline = UNSET

    def begin(self) -> None:
        self._try()

    def _try(self) -> None:
        self._deadline = self.loop.call_later(self.how.timeout, self._late)
        try:
            self.attempt()
        except OSError as error:  # no descriptor left, perhaps: the next try may have one
            self.failed(error.strerror or str(error))

    def attempt(self) -> None:
        """Begin one try; `passed` or `failed` follows, maybe at once. Raises OSError: failed."""
        raise NotImplementedError

    def abandon(self) -> None:
        """End the try that is under way."""

    def passed(self) -> None:
        """It is ready."""
        self._deadline.cancel()
        self.abandon()
        self.ready()

    def failed(self, why: str) -> None:
        """Not yet."""
        self._deadline.cancel()
        self.abandon()
        self._failures += 1
        self.trouble = f"{why} ({self._failures} {'try' if self._failures == 1 else 'tries'})"
        self._next_try.cancel()
        self._next_try = self.loop.call_later(self.how.interval, self._try)

    def _late(self) -> None:
        self.failed(f"nothing within {self.how.timeout:g} s")

    def close(self) -> None:
        self._deadline.cancel()
        self._next_try.cancel()
        self.abandon()


class TcpProbe(Poll):
    """Somebody accepts connections; with `owned`, a process of the run does."""

    how: TcpReadiness | HttpReadiness
    _socket: socket | None = None
    _next_search = UNSET

    def attempt(self) -> None:
        self._places = list(self.how.addresses)  # the first that accepts counts
        self._refusal = 0
        if isinstance(self.how, TcpReadiness) and self.how.owned:
            self._search = self._owned()
            self._search_on()
        else:
            self._connect()

    def _search_on(self) -> None:
        """Look for a process of the job that listens, a little in each turn of the loop."""
        until = time.monotonic() + SEARCH_SECONDS
        try:
            for owned in self._search:
                if owned:
                    self._places = owned
                    self._connect()
                    return
                if time.monotonic() > until:
                    self._next_search = self.loop.call_later(0, self._search_on)
                    return
            self.failed(f"no process of the job listens on port {self._places[0][1]}")
        except OSError as error:
            self.failed(error.strerror or str(error))

    def _owned(self) -> Iterator[list[tuple[str, int]]]:
        """Of each descriptor of the job's processes, at which of the places it listens."""
        at: dict[int, list[tuple[str, int]]] = {}
        for host, port in self._places:
            for inode in procfs.listeners(inet_pton(_family(host), host), port):
                at.setdefault(inode, []).append((host, port))
        for pid in self.children.kin(self.spec.name) if at else ():
            for inode in procfs.inodes(pid):
                yield at.get(inode, [])

    def _connect(self) -> None:
        host, port = self._places.pop(0)
        try:
            self._socket = socket(_family(host), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC)
            self._socket.setblocking(False)
            code = self._socket.connect_ex((host, port))
        except OSError as error:  # EAFNOSUPPORT: a kernel without IPv6
            code = error.errno or 0
        if self._socket is not None and code in (0, errno.EINPROGRESS):
            fd = self._socket.fileno()
            self.loop.add_reader(fd, self._connected, COMMAND, WRITE)
        else:
            self._refused(code)

    def _connected(self, _events: int) -> None:
        assert self._socket is not None
        code = self._socket.getsockopt(SOL_SOCKET, SO_ERROR)
        if not code and _is_itself(self._socket):
            code = errno.ECONNREFUSED
        if code:
            self._refused(code)
        else:
            self.talk(self._socket)

    def _refused(self, code: int) -> None:
        """Nobody accepts at one of the places. What is wrong at the first of them is told."""
        self._refusal = self._refusal or code
        self._close()
        if self._places:
            self._connect()
        else:
            self.failed(os.strerror(self._refusal))

    def talk(self, connected: socket) -> None:  # noqa: ARG002 - for those who say something there
        """There is a connection."""
        self.passed()

    def abandon(self) -> None:
        self._next_search.cancel()
        self._close()

    def _close(self) -> None:
        if self._socket is not None:
            self.loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None


def _family(host: str) -> int:
    return AF_INET6 if ":" in host else AF_INET


def _is_itself(connected: socket) -> bool:
    """Whether nobody listens, but the kernel has chosen the very port to connect from: then a TCP
    socket is its own peer."""
    try:
        return bool(connected.getsockname() == connected.getpeername())
    except OSError:
        return False  # it has been reset: somebody was there


class HttpProbe(TcpProbe):
    """A GET is answered with a final status of 200 to 399."""

    how: HttpReadiness

    def attempt(self) -> None:
        self._answer = b""
        super().attempt()

    def talk(self, connected: socket) -> None:
        how = self.how
        head = f"GET {how.path} HTTP/1.1\r\nHost: {how.host}\r\nUser-Agent: jobmon\r\nAccept: */*\r\n"
        try:
            connected.send(f"{head}Connection: close\r\n\r\n".encode())
        except OSError as error:
            self.failed(error.strerror or "")
            return
        self.loop.remove_reader(connected.fileno())
        self.loop.add_reader(connected.fileno(), self._read, COMMAND)

    def _read(self, _events: int) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(ANSWER_BYTES - len(self._answer))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._answer += data
        try:
            status = http_status(self._answer)
        except ValueError:
            data, status = b"", None
        if status is not None:
            self._judge(status)
        elif not data or len(self._answer) >= ANSWER_BYTES:
            self.failed("no answer in HTTP")

    def _judge(self, status: int) -> None:
        if 200 <= status < 400:
            self.passed()
        else:
            self.failed(f"HTTP status {status}")


class ExecProbe(Poll):
    """A command ends with exit code 0. What it leaves of its process group is killed; what has a session of
    its own is the run's, and ends with that. Where the run is less than all that it starts (kill-scope), it
    is a stray."""

    how: ExecReadiness
    _asked: _Asked | None = None

    def attempt(self) -> None:
        if self._asked is not None:
            self.failed("the last try does not die of SIGKILL")
            return
        try:
            birth = self._spawn()
        except SpawnError as error:
            self.failed(f"{error.what or error.stage}: {why(error)}")
            return
        self._asked = asked = _Asked(birth, self._asks(), self.children)
        self.children.add_guest(birth.pid, lambda info: self._ended(asked, info), self.spec.name)

    def _asks(self) -> JobSpec:
        command = self.how.command
        return self.spec.replace(command=command, stdin=os.devnull, stdout=os.devnull, stderr=os.devnull)

    def _spawn(self) -> Birth:
        spec = self._asks()
        whole = spec.kill_scope is KillScope.JOB
        place = self.children.cgroup(spec.name)
        try:
            return self.spawner.spawn(spec, self.run, place, None if whole else NOBODYS)
        finally:
            if place >= 0:
                os.close(place)

    def _ended(self, asked: _Asked, info: os.waitid_result) -> None:
        self._asked = None
        failed = asked.bury()
        if asked.killed:
            return  # it was too late
        if failed is not None:
            self.failed(f"{failed.what or failed.stage}: {why(failed)}")
        elif info.si_code != os.CLD_EXITED:
            self.failed(signals.name_of(info.si_status))
        elif info.si_status:
            self.failed(f"exit {info.si_status}")
        else:
            self.passed()

    def abandon(self) -> None:
        if self._asked is not None:
            self._asked.kill()


class _Asked:
    """A running command of a probe, with its process group."""

    def __init__(self, birth: Birth, spec: JobSpec, children: Children) -> None:
        self.killed = False
        self._spec = spec
        self._report = birth.report
        self._tree = children.tree
        self._leader = Leader(birth.pid)
        if children.has_pidfd:
            try:
                self._leader.pidfd = os.pidfd_open(birth.pid)
            except OSError:
                pass  # no descriptor left: it is our child, so its number is its own until it is reaped
        self._group = GroupCrowd(self._leader, self._tree, children.has_group_flag)

    def kill(self) -> None:
        """End it now; `bury` follows when it is dead."""
        if not self.killed:
            self.killed = True
            self._group.kill()

    def bury(self) -> SpawnError | None:
        """It is reaped; those whom it left in its group go after it. Returns what failed before its program
        was executed, if anything did."""
        self._leader.dead = True
        if self._tree.orphaned():
            self._tree.forget()
            self._group.kill()
        if self._leader.pidfd >= 0:
            os.close(self._leader.pidfd)
        return self._failure() if self._report >= 0 else None

    def _failure(self) -> SpawnError | None:
        try:
            return read_report(self._report, self._spec)
        except BlockingIOError:
            return None
        finally:
            os.close(self._report)


class LogProbe(Poll):
    """A line of the run's output matches. Only what is written from its launch on counts."""

    how: LogReadiness
    _outputs: tuple[Output, ...] = ()
    _far: tuple[Output, ...] = ()  # of them, those on file systems that may not answer
    _reader: _Reader | None = None
    _next_look = UNSET

    def gift(self) -> Gift:
        self._finder = Finder(self.how.pattern)
        paths = dict.fromkeys((self.spec.stdout, self.spec.stderr))
        may_hang = self.spawner.may_hang
        files = [path for path in paths if path not in ("inherit", os.devnull)]
        self._outputs = tuple(Output(path, 0 if may_hang(path) else None) for path in files)
        return Gift()

    def begin(self) -> None:
        marks = self.children.marks(self.spec.name)
        for output in self._outputs:
            for stream in ("stderr", "stdout"):
                if stream in marks and getattr(self.spec, stream) == output.path:
                    output.begin_at(marks[stream])
        super().begin()

    def attempt(self) -> None:
        if self._reader is not None:
            self.failed("the last look does not die of SIGKILL")
            return
        may_hang = self.spawner.may_hang
        self._far = tuple(one for one in self._outputs if not one.is_open and may_hang(one.path))
        if self._far:
            self._reader = _Reader(self, lambda: _look_at(self._far), self._heard)
        else:
            self._go_on()

    def _heard(self, told: bytes) -> None:
        """The child that looks at what is far has ended: killed, because it was too late, or with a word."""
        killed, self._reader = self._reader is None or self._reader.killed, None
        if killed:
            return
        if not told:
            self.failed("its output cannot be read")
            return
        for output, look in zip(self._far, loads(told), strict=True):  # noqa: S302 - a child of ours said it
            self._finder.add(output.take(look))
        self._go_on()

    def _go_on(self) -> None:
        """Look at a little in each turn of the loop until all was looked at."""
        try:
            self._look()
        except OSError as error:
            self.failed(error.strerror or str(error))

    def _look(self) -> None:
        near = [output for output in self._outputs if output not in self._far]
        if not self._finder.behind:
            for output in near:
                self._finder.add(output.lines())
        if self._finder.found():
            self.passed()
        elif self._finder.behind or any(output.behind for output in near):
            self._next_look = self.loop.call_later(0, self._go_on)
        elif any(output.behind for output in self._far):
            self.attempt()
        else:
            self.failed(self._finder.trouble or "no line matches")

    def abandon(self) -> None:
        self._next_look.cancel()
        if self._reader is not None:
            self._reader.kill()

    def close(self) -> None:
        super().close()
        for output in self._outputs:
            output.close()


def _look_at(outputs: Iterable[Output]) -> bytes:
    return dumps([output.look() for output in outputs])


class _Reader:
    """A child that does what may take long. `done` is told what it says, once it has been reaped."""

    def __init__(self, probe: Probe, work: Callable[[], bytes], done: Callable[[bytes], None]) -> None:
        self.killed = False
        self._loop = probe.loop
        self._done = done
        self._told = b""
        self._pid, self._fd = probe.spawner.helper(work)
        probe.children.add_guest(self._pid, self._ended)
        self._loop.add_reader(self._fd, self._read, EXEC)

    def kill(self) -> None:
        """End it now."""
        self.killed = True
        Leader(self._pid).send(signal.SIGKILL)  # not reaped, so the number is still its own

    def _read(self, _events: int) -> None:
        try:
            while data := os.read(self._fd, PIPE_BYTES):
                self._told += data
        except BlockingIOError:
            return
        self._loop.remove_reader(self._fd)

    def _ended(self, _info: os.waitid_result) -> None:
        self._read(0)
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._done(self._told)


PROBES: dict[type[Readiness], type[Probe]] = {
    FdReadiness: FdProbe,
    ExecReadiness: ExecProbe,
    TcpReadiness: TcpProbe,
    HttpReadiness: HttpProbe,
    LogReadiness: LogProbe,
}


def http_status(answer: bytes) -> int | None:
    """The final status in what has come of an answer; None: it has not come yet. Its line suffices: the
    end of the body is not waited for. Raises ValueError: this is no HTTP."""
    rest = answer
    while True:
        line, newline, rest = rest.partition(b"\n")
        if line[:5] != b"HTTP/"[: len(line)]:
            raise ValueError(line)
        if not newline:
            return None
        words = [*line.split(), b"", b""]
        if len(words[1]) != 3 or not words[1].isdigit():
            raise ValueError(line)
        status = int(words[1])
        if status >= 200 or status == 101:  # 101: what follows would be another protocol
            return status
        while line not in (b"", b"\r"):  # the head of an interim answer: 100 Continue, 103 Early Hints
            line, newline, rest = rest.partition(b"\n")
            if not newline:
                return None
