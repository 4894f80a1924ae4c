"""The notify receiver: the one process that reads the notify sockets of all runs, in the stead of the daemon.

Any user may send to an abstract socket, descriptors too. A descriptor on its way belongs to its datagram:
the process that takes this datagram out of the queue, or closes the last reference to the socket, closes the
descriptor, even where it does not receive it. To close it may take as long as its sender likes (SO_LINGER,
a terminal that drains), or for ever, beyond SIGKILL (a file system in user space that does not write
back). So:

- The daemon makes and binds the socket of a run and keeps a reference, but never reads it. The reference is
  there for the next receiver, if this one dies, and for poll(2), which says whether the queue is empty.
- The receiver is a fork of the daemon, started for the first run that has a socket. It gets each later one
  by SCM_RIGHTS. It looks at the first datagram (MSG_PEEK: without room for descriptors none is installed,
  and none is closed while the datagram is in the queue), writes its words to the daemon, and only then
  takes it out. So an empty queue means that the words are in the link at least, and a receiver that is
  killed loses nothing: its successor repeats the last datagram at most, and all words may be said twice.
- A datagram with descriptors is taken out by a *disposer*: a fork of the receiver that does only that, and
  exits. It receives none of them: the kernel drops them, which needs no flush of a file. A disposer that
  takes longer than `DISPOSAL_SECONDS` is killed. That does no harm: if the datagram is still there, it is
  looked at again. A disposer that even SIGKILL does not end has taken its datagram, because the kernel
  closes the files after that, on the way out of the system call. It is *stuck*, and the receiver goes on
  without it. While `MOST_STUCK` are, no more datagrams with descriptors are taken out of any queue; while
  `MANY_STUCK` are, the kernel lets no more of them in, where it can (SO_PASSRIGHTS, Linux 6.16): words are
  heard then, and a sender of BARRIER=1 gets EPERM.
- BARRIER=1: the daemon acknowledges the words that were written before a descriptor is disposed of. So a
  sender whose pipe ends knows that the daemon has heard it.
- The socket of a run that is over is shut down for reading, which lets nothing in, then emptied in the same
  way, and closed only when it is empty, here and in the daemon: closing it costs nothing.
- The daemon judges by its books who may speak. A flood must not make it do so all the time: a user that was
  refused is not asked about again for `REFUSAL_SECONDS` for this run, and for the others not where the
  process is not below the daemon. (All processes of runs are: the daemon is a subreaper.)
- A daemon that ends closes its references first, and kills the receiver then. If it was killed itself, the
  kernel does that, after it has closed them: the last one to close is always the receiver. Being killed, it
  ends even if somebody has stopped it.

All that is kept is bounded: by the queues of the sockets, by the send buffer of the link (the receiver waits
while it is full), and by the numbers below. A message is a `HEAD` and some bytes.
"""

from __future__ import annotations

import gc
import os
import select
import time
from struct import Struct

from jobmon.lean.cpython import (
    AF_UNIX,
    CMSG_SPACE,
    MSG_CTRUNC,
    MSG_DONTWAIT,
    MSG_PEEK,
    MSG_TRUNC,
    SCM_CREDENTIALS,
    SCM_RIGHTS,
    SHUT_RD,
    SOCK_DGRAM,
    SOL_SOCKET,
    signal,
    socket,
)
from jobmon.linux.kernel import procfs, syscalls
from jobmon.linux.kernel.execution import keep_only

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn

HEAD = Struct("=cQiII")  # kind, run, pid, uid, how many bytes follow

# To the receiver: a new run (with its socket), all of a run is wanted now, a run is over, a user was refused,
# what was asked for is heard, are you there.
ADD, FLUSH, END, DENY, HEARD, PING = b"A", b"F", b"E", b"D", b"H", b"P"
# From it: words, so many messages were refused here, say HEARD when you have come so far, all was passed on,
# the socket is empty and closed, here I am, a descriptor cannot be closed, it fails.
WORDS, REFUSED, HEAR, FLUSHED, ENDED, PONG, STUCK, BUG = b"W", b"R", b"H", b"F", b"E", b"P", b"S", b"!"

DATAGRAM_BYTES = 65536
CREDENTIALS_BYTES = CMSG_SPACE(12)  # room for a struct ucred, and for no descriptor: unix(7)
ORDERS_BYTES = 4096
BARRIER = b"BARRIER=1"  # says nothing by itself
A_TURN = 16  # datagrams of one run before it is another's turn
A_FLUSH = 10  # that were in a queue when all of it was asked for, where the kernel does not say how many fit
REFUSAL_SECONDS = 0.1
MOST_REFUSED = 1000  # users and runs that are remembered
GENERATIONS = 64  # of ancestors that are looked at
DISPOSAL_SECONDS = 0.01  # for what takes microseconds
LONGEST_SECONDS = 1.0  # the same for a disposer that has not even begun: a machine under load
DYING_SECONDS = 0.2  # who lives so long after SIGKILL is stuck
MANY_STUCK = 4
MOST_STUCK = 16
SO_PASSRIGHTS = 83  # asm-generic/socket.h; it has another number on parisc and sparc only
TICK = 0.01
RETRY_SECONDS = 0.1  # after a fork that failed
FAREWELL_SECONDS = 5.0  # after which a receiver that nobody has killed ends by itself


def be_the_receiver(daemon: int, link: socket, runs: Iterable[tuple[int, socket, bool]]) -> NoReturn:
    """Be the receiver, in a fork of `daemon`. `runs`: number, socket, whether it is over."""
    try:
        syscalls.die_with(daemon)
        gc.disable()  # it would touch, and so copy, what is shared with the daemon
        runs = list(runs)
        kept = (link.fileno(), *procfs.pinned(), *(own.fileno() for _, own, _ in runs))
        keep_only(*kept, listing=procfs.own_fds())  # who hangs must hold nothing of the daemon's
        _rename()
        link.setblocking(True)
        one = _Receiver(link)
        for number, own, is_over in runs:
            one.add(number, own)
            if is_over:
                one.end(number)
        one.serve()
    except Exception as error:  # noqa: BLE001 - the daemon says it, and starts another
        _complain(link, error)
    finally:
        os._exit(0)


def _complain(link: socket, error: Exception) -> None:
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    text = f"{error!r}, line {at.tb_lineno if at is not None else 0}".encode(errors="replace")
    try:
        link.sendall(HEAD.pack(BUG, 0, 0, 0, len(text)) + text)
    except OSError:
        pass  # the daemon has gone


def _rename() -> None:
    try:
        with open("/proc/self/comm", "wb") as file:
            file.write(b"jobmon-notify")
    except OSError:
        pass  # a name for people only


class _Run:
    """The socket of one run, as the receiver has it."""

    __slots__ = (
        "flush",
        "is_over",
        "limit",
        "number",
        "refused",
        "sender",
        "socket",
        "tell_at",
        "unheard",
        "watched",
    )

    def __init__(self, number: int, own: socket) -> None:
        self.number = number
        self.socket = own
        self.is_over = False
        self.unheard = False  # whether words were passed on that the daemon has not acknowledged
        self.flush = -1  # how many datagrams more until "all" is said; -1: nobody asks
        self.limit = DISPOSAL_SECONDS
        self.sender = (0, 0)  # of the datagram that was looked at last
        self.watched = False
        self.refused = 0  # messages that the daemon was not told of yet
        self.tell_at = 0.0


class _Disposal:
    """A disposer at work. `reader`: of a pipe that says when it begins, and ends with it."""

    __slots__ = ("begun", "killed", "pid", "reader", "run", "sender", "stuck", "until")

    def __init__(self, run: _Run, pid: int, reader: int) -> None:
        self.run = run
        self.sender = run.sender
        self.pid = pid
        self.reader = reader
        self.until = time.monotonic() + run.limit
        self.begun = self.killed = self.stuck = False


class _Receiver:
    def __init__(self, link: socket) -> None:
        self._link = link
        self._daemon = os.getppid()
        self._trusted = (os.getuid(), 0)
        self._queue = _queue_length() + 1  # what came later need not be waited for: a flood has no end
        self._epoll = select.epoll()
        self._epoll.register(link.fileno(), select.EPOLLIN)
        self._orders = bytearray()
        self._gifts: list[int] = []  # sockets that have come before what is said of them was read
        self._runs: dict[int, _Run] = {}
        self._by_fd: dict[int, _Run] = {}
        self._refused: dict[tuple[int, int], float] = {}  # (run, or 0 for any; uid): until when
        self._disposals: dict[int, _Disposal] = {}  # by the descriptor of the pipe
        self._put_off: dict[_Run, None] = {}  # whose disposer cannot be started
        self._unreaped: set[int] = set()
        self._admits = True  # whether descriptors may come in

    def serve(self) -> NoReturn:
        """Work until the daemon closes the link, or is dead."""
        while True:
            for fd, _events in self._epoll.poll(self._pause()):
                if fd == self._link.fileno():
                    self._obey()
                elif (disposal := self._disposals.get(fd)) is not None:
                    self._look_at(disposal)
                elif (run := self._by_fd.get(fd)) is not None:
                    self._listen(run)
            self._hurry()

    def _pause(self) -> float | None:
        """How long nothing needs to be done: for ever, where nobody disposes of anything."""
        if self._unreaped or any(not one.stuck for one in self._disposals.values()):
            return TICK
        return RETRY_SECONDS if self._put_off and not self._is_full() else None

    def _say(self, kind: bytes, number: int, pid: int = 0, uid: int = 0, data: bytes = b"") -> None:
        """Write to the daemon. Waits while the link is full: the queues fill up then, not the memory."""
        try:
            self._link.sendall(HEAD.pack(kind, number, pid, uid, len(data)) + data)
        except OSError:  # the daemon is dead
            self._outlive()

    # ---- orders ----------------------------------------------------------------------------

    def _obey(self) -> None:
        try:
            data, ancillary, _, _ = self._link.recvmsg(ORDERS_BYTES, CMSG_SPACE(4), MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        for level, kind, what in ancillary:
            if level == SOL_SOCKET and kind == SCM_RIGHTS:
                self._gifts += memoryview(what).cast("i")
        if not data:
            self._outlive()
        self._orders += data
        while len(self._orders) >= HEAD.size:
            order, number, _, uid, _ = HEAD.unpack_from(self._orders)
            del self._orders[: HEAD.size]
            self._do(order, number, uid)

    def _do(self, order: bytes, number: int, uid: int) -> None:
        run = self._runs.get(number)
        if order == ADD:
            self.add(number, socket(AF_UNIX, SOCK_DGRAM, 0, self._gifts.pop(0)))
        elif order == PING:
            self._say(PONG, number)
        elif order == END:
            self.end(number)
        elif run is None:
            pass
        elif order == FLUSH:
            self._flush(run)
        elif order == DENY:
            self._deny(number, uid)
        elif order == HEARD:
            run.unheard = False
            self._dispose(run)

    def add(self, number: int, own: socket) -> None:
        """Receive for a run."""
        run = _Run(number, own)
        self._runs[number] = self._by_fd[own.fileno()] = run
        self._admit(run)
        self._watch(run)

    def end(self, number: int) -> None:
        """A run is over: let nothing in any more; what is in comes out."""
        run = self._runs[number]
        run.is_over = True
        run.socket.shutdown(SHUT_RD)  # which makes it readable

    def _flush(self, run: _Run) -> None:
        run.flush = self._queue
        if run in self._put_off:
            self._flushed(run)
        elif run.watched:
            self._listen(run)

    def _flushed(self, run: _Run) -> None:
        if run.flush >= 0:
            run.flush = -1
            self._tell_refusals(run)
            self._say(FLUSHED, run.number)

    def _outlive(self) -> NoReturn:
        """The daemon is dead, or about to be, or needs us no more."""
        time.sleep(FAREWELL_SECONDS)  # SIGKILL comes before
        os._exit(0)

    # ---- datagrams -------------------------------------------------------------------------

    def _watch(self, run: _Run) -> None:
        if not run.watched:
            run.watched = True
            self._epoll.register(run.socket.fileno(), select.EPOLLIN)

    def _unwatch(self, run: _Run) -> None:
        if run.watched:
            run.watched = False
            self._epoll.unregister(run.socket.fileno())

    def _listen(self, run: _Run) -> None:
        for _ in range(A_TURN):
            if not self._take(run):
                return
        self._watch(run)

    def _take(self, run: _Run) -> bool:
        """Deal with the first datagram; whether to go on with the next."""
        try:
            data, ancillary, flags, _ = run.socket.recvmsg(DATAGRAM_BYTES, CREDENTIALS_BYTES, MSG_PEEK)
        except OSError:  # EAGAIN: that was all
            self._emptied(run)
            return False
        run.sender = _sender(ancillary)
        if not run.is_over and not flags & MSG_TRUNC and data not in (b"", BARRIER):
            self._pass_on(run, data, *run.sender)
        if flags & MSG_CTRUNC:
            self._unwatch(run)
            if run.unheard:
                self._say(HEAR, run.number)
            else:
                self._dispose(run)
            return False
        run.socket.recv(1)
        self._taken(run)
        return True

    def _taken(self, run: _Run) -> None:
        """A datagram has left the queue."""
        if run.flush > 0:
            run.flush -= 1
        elif run.flush == 0:
            self._flushed(run)

    def _emptied(self, run: _Run) -> None:
        if not run.is_over:
            self._watch(run)
            self._flushed(run)
            return
        self._unwatch(run)
        del self._runs[run.number], self._by_fd[run.socket.fileno()]
        run.socket.close()
        self._say(ENDED, run.number)

    def _pass_on(self, run: _Run, data: bytes, pid: int, uid: int) -> None:
        if self._may_ask(run, pid, uid):
            run.unheard = True
            self._say(WORDS, run.number, pid, uid, data)
            return
        run.refused += 1
        if time.monotonic() >= run.tell_at:
            self._tell_refusals(run)

    def _tell_refusals(self, run: _Run) -> None:
        if run.refused:
            run.tell_at = time.monotonic() + REFUSAL_SECONDS
            self._say(REFUSED, run.number, *run.sender, b"%d" % run.refused)
            run.refused = 0

    def _may_ask(self, run: _Run, pid: int, uid: int) -> bool:
        """Whether the daemon must look who that is."""
        if pid == 0:
            return False  # of a PID namespace that is not below ours
        if uid in self._trusted:
            return True
        now = time.monotonic()
        if now < self._refused.get((run.number, uid), 0.0):
            return False
        return now >= self._refused.get((0, uid), 0.0) or not self._is_foreign(pid)

    def _deny(self, number: int, uid: int) -> None:
        if len(self._refused) >= MOST_REFUSED:
            self._refused.clear()
        until = time.monotonic() + REFUSAL_SECONDS
        self._refused[number, uid] = self._refused[0, uid] = until

    def _is_foreign(self, pid: int) -> bool:
        """Whether a process lives and is not below the daemon."""
        for _ in range(GENERATIONS):
            fact = procfs.stat(pid)
            if pid == self._daemon or fact is None or fact.state in procfs.DEAD:
                return False
            if fact.ppid == 0:
                return True
            pid = fact.ppid
        return False

    # ---- descriptors -----------------------------------------------------------------------

    def _stuck(self) -> int:
        return sum(one.stuck for one in self._disposals.values())

    def _is_full(self) -> bool:
        return self._stuck() >= MOST_STUCK

    def _guard(self) -> None:
        """Let descriptors in, or not, as the number of those stuck demands."""
        admits = self._stuck() < MANY_STUCK
        if admits != self._admits:
            self._admits = admits
            for run in self._runs.values():
                self._admit(run)

    def _admit(self, run: _Run) -> None:
        try:
            run.socket.setsockopt(SOL_SOCKET, SO_PASSRIGHTS, self._admits)
        except OSError:
            pass  # ENOPROTOOPT: an older kernel

    def _dispose(self, run: _Run) -> None:
        """Let the first datagram of a run be taken out, with its descriptors. Its socket rests meanwhile."""
        self._put_off.pop(run, None)
        try:
            if self._is_full():
                raise BlockingIOError
            self._start_disposer(run)
        except OSError:
            self._put_off[run] = None
            self._flushed(run)  # as far as can be

    def _start_disposer(self, run: _Run) -> None:
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            pid = os.fork()
            if pid == 0:
                _be_the_disposer(run.socket, writer)
        except OSError:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        self._disposals[reader] = _Disposal(run, pid, reader)
        self._epoll.register(reader, select.EPOLLIN)

    def _look_at(self, one: _Disposal) -> None:
        """A disposer has said that it begins, or has ended."""
        if os.read(one.reader, 1):
            one.begun = True
            return
        self._epoll.unregister(one.reader)
        os.close(one.reader)
        del self._disposals[one.reader]
        self._unreaped.add(one.pid)
        if one.stuck:
            self._guard()
            return
        # A disposer that was killed before it began had too little time. It may be tried again at once.
        self._taken(one.run)
        late = one.killed and not one.begun
        one.run.limit = min(one.run.limit * 2, LONGEST_SECONDS) if late else DISPOSAL_SECONDS
        self._listen(one.run)

    def _hurry(self) -> None:
        """Reap disposers, kill those that take too long, start those that were put off."""
        self._unreaped = {pid for pid in self._unreaped if os.waitpid(pid, os.WNOHANG)[0] == 0}
        now = time.monotonic()
        for one in [one for one in self._disposals.values() if not one.stuck and now >= one.until]:
            if not one.killed:
                os.kill(one.pid, signal.SIGKILL)
                one.killed = True
                one.until = now + DYING_SECONDS
            else:
                one.stuck = True
                self._say(STUCK, one.run.number, *one.sender)
                self._guard()
                self._taken(one.run)
                self._listen(one.run)
        if self._put_off and not self._is_full():
            for run in list(self._put_off):
                self._dispose(run)


def _queue_length() -> int:
    """How many datagrams a socket holds, unix(7)."""
    try:
        with open("/proc/sys/net/unix/max_dgram_qlen", "rb") as file:
            return int(file.read(64))
    except (OSError, ValueError):
        return A_FLUSH


def _be_the_disposer(own: socket, writer: int) -> NoReturn:
    try:
        keep_only(own.fileno(), writer, listing=procfs.own_fds())
        os.write(writer, b".")
        own.recv(1)
    finally:
        os._exit(0)


def _sender(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, int]:
    """The (pid, uid) of a datagram; a pid of 0 is nobody's."""
    for level, kind, data in ancillary:
        if level == SOL_SOCKET and kind == SCM_CREDENTIALS:
            pid, uid, _gid = memoryview(data[:12]).cast("I")
            return pid, uid
    return 0, 0
