"""The socket on which one run speaks of itself by sd_notify(3): who may, and what was said.

Each run has its own, so the socket says whose the words are. What they come to is the attendant's. The daemon
reads none of these sockets: see `receiver`, whose other end is here.
"""

from __future__ import annotations

import errno
import os
import select
import sys
import time

from jobmon.errors import SpawnError
from jobmon.lean.cpython import (
    AF_UNIX,
    MSG_NOSIGNAL,
    SCM_RIGHTS,
    SO_PASSCRED,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    signal,
    socket,
    socketpair,
)
from jobmon.linux import log as logfile
from jobmon.linux.kernel import procfs
from jobmon.linux.kernel.loop import COMMAND, EXEC, READ, UNSET, WRITE
from jobmon.linux.monitor import notifyreceiver as wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from jobmon.linux.kernel.loop import Loop
    from jobmon.linux.log import Log
    from jobmon.linux.processes.children import Children

LINK_BYTES = 4096  # of the receiver's that are acted on in one turn of the loop
ANSWER_SECONDS = 2.0  # after which a receiver that does not answer is replaced
CALM_SECONDS = 5.0  # between two questions whether it works, of a run that speaks
BREATH_SECONDS = 1.0  # between two starts of a receiver
MOST_DYING = 2  # receivers that SIGKILL has not ended yet, beside the one that works
IDLE_SECONDS = 60.0  # that a receiver is kept without a run
STUCK_PAUSE = 60.0  # seconds between two lines about descriptors that cannot be closed


class Receiver:
    """The daemon's end of the notify receiver: starts it when it is needed, replaces it when it has died or
    does not answer."""

    def __init__(self, loop: Loop, children: Children, log: Log) -> None:
        self._loop = loop
        self._answer_due = self._retirement = self._next_start = UNSET
        self.children = children
        self._log = log
        self._runs: dict[int, RunSocket] = {}
        self._last = 0
        self._link: socket | None = None
        self._pid = 0
        self._dying: set[int] = set()
        self._inbox = bytearray()
        self._outbox: list[tuple[bytes, socket | None]] = []
        self._asked = self._answered = 0
        self._stirred: list[RunSocket] = []  # that speak, and are not watched for a while
        self._start_from = 0.0
        self._tell_stuck_from = 0.0
        self.turn = 0  # counts the times that it was read from

    def add(self, run: RunSocket) -> int:
        """Let a run's socket be read; returns its number. Raises SpawnError: there is no receiver."""
        if self._link is None:
            try:
                self._start()
            except OSError as error:
                raise SpawnError("fork", error.errno or 0, "the notify receiver") from None
        self._retirement.cancel()
        self._last += 1
        self._runs[self._last] = run
        self._send(wire.ADD, self._last, own=run.socket)
        self._ask()
        self._watch(run)
        return self._last

    def flush(self, number: int) -> None:
        """Let `flushed` of a run be called when all was passed on that was in its socket."""
        self._send(wire.FLUSH, number)
        self._ask()

    def end(self, number: int) -> None:
        """Let a run's socket be emptied, and then closed."""
        self._send(wire.END, number)

    def has_passed_all(self, own: socket) -> bool:
        """Whether everything that came to a run's socket has been heard. In this order: a datagram leaves the
        socket after its words are in the link."""
        if _is_readable(own) or self._inbox:
            return False
        return self._link is None or not _is_readable(self._link)

    def close(self) -> None:
        """End it. Our references go first, so that the last ones, which cost, are the receiver's."""
        for run in self._runs.values():
            self._close(run)
        self._runs.clear()
        self._retire()

    # ---- the process -----------------------------------------------------------------------

    def _start(self) -> None:
        """Fork it. Raises OSError."""
        if len(self._dying) >= MOST_DYING:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        mine, its = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
        try:
            mine.setblocking(False)
            self._loop.add_reader(mine.fileno(), self._on_link, EXEC)
            daemon, pid = os.getpid(), os.fork()
        except OSError:
            self._loop.remove_reader(mine.fileno())
            mine.close()
            its.close()
            raise
        if pid == 0:
            runs = self._runs.items()
            wire.be_the_receiver(daemon, its, [(number, run.socket, run.is_over) for number, run in runs])
        its.close()
        self._link, self._pid = mine, pid
        self._start_from = time.monotonic() + BREATH_SECONDS
        self.children.add_guest(pid, lambda _info: self._ended(pid))
        for number, run in self._runs.items():
            if run.waits:
                self.flush(number)

    def _ended(self, pid: int) -> None:
        """One of them was reaped."""
        self._dying.discard(pid)
        if pid == self._pid:
            self._pid = 0
            self._lose("the notify receiver has died")
        if self._link is None:
            self._start_later(self._start_from)

    def _lose(self, why: str) -> None:
        """It is no use any more: end it, hear what it has passed on, start another when it has ended."""
        link, self._link = self._link, None
        if link is None:
            return
        self._log.write(logfile.WARNING, why, pid=self._pid or None)
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)  # not reaped yet, so the number is its own
            self._dying.add(self._pid)
            self._pid = 0
        self._answer_due.cancel()
        self._loop.remove_reader(link.fileno())
        try:
            while data := link.recv(LINK_BYTES):
                self._inbox += data
        except OSError:
            pass  # EAGAIN: that was all
        link.close()
        self._outbox.clear()
        self._act()
        self._inbox.clear()
        self._start_later(time.monotonic() + BREATH_SECONDS)

    def _start_later(self, at: float) -> None:
        if self._runs:
            self._next_start.cancel()
            self._next_start = self._loop.call_at(at, self._start_again)

    def _start_again(self) -> None:
        if self._link is not None or not self._runs:
            return
        try:
            self._start()
        except OSError as error:
            self._log.write(logfile.WARNING, "cannot start the notify receiver", error=error.strerror)
            self._start_later(time.monotonic() + BREATH_SECONDS)

    def _retire(self) -> None:
        """There is no run for it: let it exit."""
        link = self._link
        if link is None or self._runs:
            return
        self._answer_due.cancel()
        self._retirement.cancel()
        self._loop.remove_reader(link.fileno())
        link.close()
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)  # not reaped yet, so the number is its own
        self._link, self._pid = None, 0
        self._inbox.clear()
        self._outbox.clear()

    # ---- the link --------------------------------------------------------------------------

    def _send(self, kind: bytes, number: int, uid: int = 0, own: socket | None = None) -> None:
        if self._link is not None:  # else the next one begins with all that there is
            self._outbox.append((_order(kind, number, uid), own))
            self._write(self._link)

    def _write(self, link: socket) -> None:
        """Write what there is room for. Messages so small are taken whole, or not at all."""
        sent = 0
        try:
            for data, own in self._outbox:
                fds = b"" if own is None else own.fileno().to_bytes(4, sys.byteorder)
                link.sendmsg([data], [(SOL_SOCKET, SCM_RIGHTS, fds)] if fds else [], MSG_NOSIGNAL)
                sent += 1
        except OSError:
            pass  # EAGAIN: later. EPIPE: its end is read soon
        del self._outbox[:sent]
        self._loop.modify_reader(link.fileno(), READ | (WRITE if self._outbox else 0))

    def _ask(self) -> None:
        """It must show that it works."""
        self._asked += 1
        self._send(wire.PING, self._asked)
        if self._asked == self._answered + 1:
            self._expect_answer()

    def _expect_answer(self) -> None:
        self._answer_due.cancel()
        self._answer_due = self._loop.call_later(ANSWER_SECONDS, self._late)

    def _watch(self, run: RunSocket) -> None:
        """Somebody must notice that a receiver which was stopped leaves words where they are."""
        self._loop.add_reader(run.socket.fileno(), lambda _events: self._stir(run), COMMAND)

    def _stir(self, run: RunSocket) -> None:
        self._loop.remove_reader(run.socket.fileno())
        self._stirred.append(run)
        if self._asked == self._answered:
            self._ask()
        if len(self._stirred) == 1:
            self._loop.call_later(CALM_SECONDS, self._calm_down)

    def _calm_down(self) -> None:
        stirred, self._stirred = self._stirred, []
        for run in stirred:
            if run.socket.fileno() >= 0:
                self._watch(run)

    def _close(self, run: RunSocket) -> None:
        self._loop.remove_reader(run.socket.fileno())
        run.socket.close()

    def _late(self) -> None:
        self._lose("the notify receiver does not answer: it is replaced")

    def _on_link(self, events: int) -> None:
        link = self._link
        assert link is not None
        if events & WRITE:
            self._write(link)
        try:
            data = link.recv(LINK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lose("the notify receiver has died")
            return
        self.turn += 1
        self._inbox += data
        self._act()

    def _act(self) -> None:
        """Act on the messages that are complete."""
        while len(self._inbox) >= wire.HEAD.size:
            kind, number, pid, uid, length = wire.HEAD.unpack_from(self._inbox)
            end = wire.HEAD.size + length
            if len(self._inbox) < end:
                return
            data = bytes(self._inbox[wire.HEAD.size : end])
            del self._inbox[:end]
            if kind == wire.PONG:
                self._pong(number)
            elif kind == wire.BUG:
                text = "internal error (please report)"
                self._log.write(logfile.CRITICAL, text, where="receiver", error=data.decode())
            elif (run := self._runs.get(number)) is not None:
                self._tell(run, kind, number, (pid, uid), data)

    def _tell(self, run: RunSocket, kind: bytes, number: int, sender: tuple[int, int], data: bytes) -> None:
        if kind == wire.WORDS:
            if not run.hear(*sender, data):
                self._send(wire.DENY, number, sender[1])
        elif kind == wire.HEAR:
            self._send(wire.HEARD, number)
        elif kind == wire.REFUSED:
            run.note_refused(*sender, int(data))
        elif kind == wire.FLUSHED:
            run.flushed()
        elif kind == wire.STUCK:
            self._tell_stuck(run, *sender)
        elif kind == wire.ENDED:
            del self._runs[number]
            self._close(run)  # it is empty, so this is for nothing
            if not self._runs:
                self._retirement.cancel()
                self._retirement = self._loop.call_later(IDLE_SECONDS, self._retire)

    def _pong(self, number: int) -> None:
        self._answered = number
        if self._answered == self._asked:
            self._answer_due.cancel()
        else:
            self._expect_answer()

    def _tell_stuck(self, run: RunSocket, pid: int, uid: int) -> None:
        now = time.monotonic()
        if now >= self._tell_stuck_from:
            self._tell_stuck_from = now + STUCK_PAUSE
            text = "a descriptor that was sent to a notify socket cannot be closed"
            self._log.write(logfile.WARNING, text, job=run.job, sender=pid, uid=uid)


class RunSocket:
    """A run's own $NOTIFY_SOCKET. `heard(words)` gets what somebody who may has said.

    Whoever lives must be of the run, under whatever user; whoever has died by now (systemd-notify
    is short-lived) must have had the daemon's user, a user of the run, or root.
    """

    def __init__(self, receiver: Receiver, job: str, heard: Callable[[dict[str, str]], None]) -> None:
        self._receiver = receiver
        self._children = receiver.children
        self.job = job
        self._heard = heard
        self._looked_in = -1  # the turn of the last look
        self._is_fresh = False  # whether that was taken anew
        self._kin: frozenset[int] = frozenset()
        self._users: frozenset[int] | None = None
        self._refusals = 0
        self._waiting: list[Callable[[], None]] = []
        self.is_over = False
        self.trouble = ""  # who was not heard
        self.socket = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC)
        self.socket.setsockopt(SOL_SOCKET, SO_PASSCRED, 1)
        try:
            self._number = receiver.add(self)
        except SpawnError:
            self.socket.close()  # it has no name yet, so it is empty
            raise
        self.socket.bind("")  # the kernel chooses an abstract name that nobody has, unix(7)
        name = self.socket.getsockname()
        self.address = "@" + bytes(name)[1:].decode("ascii")

    @property
    def waits(self) -> bool:
        """Whether somebody waits until all was heard."""
        return bool(self._waiting)

    def has_heard_all(self) -> bool:
        """Whether everything was heard that was said so far."""
        return self._receiver.has_passed_all(self.socket)

    def flush(self, then: Callable[[], None]) -> None:
        """Call `then` when all was heard that was said so far."""
        self._waiting.append(then)
        if len(self._waiting) == 1:
            self._receiver.flush(self._number)

    def flushed(self) -> None:
        """All was heard."""
        waiting, self._waiting = self._waiting, []
        for then in waiting:
            then()

    def close(self) -> None:
        """Nobody listens any more."""
        if not self.is_over:
            self.is_over = True
            self._waiting.clear()
            self._receiver.end(self._number)

    def hear(self, pid: int, uid: int, data: bytes) -> bool:
        """Judge what was said. False: this user need not be asked about again at once."""
        if self.is_over:
            return True
        if self._may(pid, uid):
            self._heard(_words(data))
            return True
        self.note_refused(pid, uid, 1)
        return uid in (os.getuid(), 0)

    def note_refused(self, pid: int, uid: int, count: int) -> None:
        """So many messages were refused, the last of this sender."""
        self._refusals += count
        messages = "a message" if self._refusals == 1 else f"{self._refusals} messages"
        self.trouble = f"{messages} refused, last of pid {pid}, uid {uid}: no process of the job"

    def _may(self, pid: int, uid: int) -> bool:
        if _lives(pid) and self._is_of_the_run(pid):
            return True
        # Whoever has died by now, be it during that look, cannot be found. systemd-notify speaks in its
        # parent's name where it may. When that has ended, its parent is who adopts orphans: we. Nobody
        # without CAP_SYS_ADMIN can take our pid, unix(7).
        return not _lives(pid) and (uid in (os.getuid(), 0) or self._is_of_a_user(uid))

    def _is_of_the_run(self, pid: int) -> bool:
        """Looked at anew once for all that was read in one turn, so that many words cost no more than one."""
        if self._looked_in != self._receiver.turn:
            self._looked_in, self._is_fresh = self._receiver.turn, False
            self._look()
        if pid not in self._kin and not self._is_fresh:
            self._is_fresh = True
            self._children.tree.forget()  # it may have been born after this turn's look
            self._look()
        return pid in self._kin

    def _look(self) -> None:
        self._kin = frozenset(self._children.kin(self.job))
        self._users = None

    def _is_of_a_user(self, uid: int) -> bool:
        self._is_of_the_run(0)
        if self._users is None:
            self._users = frozenset().union(*map(procfs.users, self._kin))
        return uid in self._users


def _lives(pid: int) -> bool:
    """Whether another process of this number lives."""
    fact = procfs.stat(pid)
    return fact is not None and fact.state not in procfs.DEAD and pid != os.getpid()


def _is_readable(own: socket) -> bool:
    poller = select.poll()
    poller.register(own.fileno(), select.POLLIN)
    return bool(poller.poll(0))


def _order(kind: bytes, number: int, uid: int = 0) -> bytes:
    return wire.HEAD.pack(kind, number, 0, uid, 0)


def _words(data: bytes) -> dict[str, str]:
    lines = data.decode(errors="replace").split("\n")
    return dict(line.split("=", 1) for line in lines if "=" in line)
