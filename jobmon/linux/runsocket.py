"""The socket on which one run speaks of itself by sd_notify(3): who may, and what was said.

Each run has its own, so the socket says whose the words are. What they come to is the attendant's.
"""

from __future__ import annotations

import os
import resource
import select
import time
from _socket import (
    AF_UNIX,
    CMSG_SPACE,
    MSG_CTRUNC,
    MSG_PEEK,
    MSG_TRUNC,
    SCM_CREDENTIALS,
    SHUT_RD,
    SO_PASSCRED,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOL_SOCKET,
    socket,
)

from jobmon.linux import procfs, reactor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from jobmon.linux.children import Children
    from jobmon.linux.reactor import Reactor

DATAGRAM_BYTES = 65536
CREDENTIALS_BYTES = CMSG_SPACE(12)  # room for a struct ucred, and for no descriptor: unix(7)
ANCILLARY_BYTES = 4096  # the kernel lets at most 253 descriptors come along
A_TURN = 64  # datagrams that are read in one turn of the loop: who floods it delays nobody
AT_THE_END = 1024  # that are read when the run is over, after which there are no turns
PORTERS_AT_THE_END = 16  # children that are forked then, a millisecond each
BARRIER = b"BARRIER=1"  # says nothing by itself
REFUSAL_SECONDS = 0.1  # for so long nobody looks again who speaks as a user whose process was refused
MOST_REFUSED = 100  # users
PORTER_MS = 1000  # that one has for its first step


class RunSocket:
    """A run's own $NOTIFY_SOCKET. `heard(words)` gets what somebody who may has said.

    Whoever lives must be of the run, under whatever user; whoever has died by now (systemd-notify
    is short-lived) must have had the daemon's user, a user of the run, or root.

    Descriptors that come along are never ours: to close one may take as long as who sent it likes
    (SO_LINGER, a file system in user space). So a datagram is looked at while it stays in the queue, and
    one with descriptors is taken out by a child that does nothing but exit. That closes them, after the
    datagrams before them were heard, which answers BARRIER=1.
    """

    def __init__(
        self, watch: Reactor, children: Children, job: str, heard: Callable[[dict[str, str]], None]
    ) -> None:
        self._reactor = watch
        self._children = children
        self._job = job
        self._heard = heard
        self._looked_anew = False
        self._refused_until: dict[int, float] = {}  # by uid
        self._refusals = 0
        self.trouble = ""  # who was not heard
        self._socket = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._socket.setsockopt(SOL_SOCKET, SO_PASSCRED, 1)
        self._socket.bind("")  # the kernel chooses an abstract name that nobody has, unix(7)
        name = self._socket.getsockname()
        self.address = "@" + bytes(name)[1:].decode("ascii")
        watch.register(self._socket.fileno(), lambda _events: self.drain(A_TURN), reactor.EXEC)

    def drain(self, most: int = AT_THE_END) -> None:
        """Read what has come."""
        self._looked_anew = False
        porters = PORTERS_AT_THE_END if most == AT_THE_END else 1
        for _ in range(most):
            if not porters or (seen := self._peek()) is None:
                return
            data, sender, flags = seen
            if sender is not None and not flags & MSG_TRUNC and data != BARRIER:
                if self._may(*sender):
                    self._heard(_words(data))
                else:
                    self._mark_refused(*sender)
            if self._socket.fileno() < 0:
                return  # what was heard was the end of it
            if flags & MSG_CTRUNC:
                porters -= 1
                self._carry_out()
            else:
                self._socket.recv(1)

    def _mark_refused(self, pid: int, uid: int) -> None:
        self._refusals += 1
        messages = "a message" if self._refusals == 1 else f"{self._refusals} messages"
        self.trouble = f"{messages} refused, last of pid {pid}, uid {uid}: no process of the job"

    def close(self) -> None:
        """Nobody listens any more."""
        if self._socket.fileno() < 0:
            return
        self._reactor.unregister(self._socket.fileno())
        self._socket.shutdown(SHUT_RD)  # nothing comes in from now on
        while (seen := self._peek()) is not None and not seen[2] & MSG_CTRUNC:
            self._socket.recv(1)
        if seen is None:
            self._socket.close()
        else:
            self._close_by_a_porter()

    def _peek(self) -> tuple[bytes, tuple[int, int] | None, int] | None:
        """The first datagram: its words, who has sent it, flags. MSG_CTRUNC: with descriptors."""
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(DATAGRAM_BYTES, CREDENTIALS_BYTES, MSG_PEEK)
        except OSError:  # EAGAIN: that was all
            return None
        return data, _sender(ancillary), flags

    def _carry_out(self) -> None:
        """Let a child take the first datagram; returns when it has."""

        def carry(writer: int) -> None:
            self._socket.recvmsg(1, ANCILLARY_BYTES)
            os.write(writer, b".")

        try:
            pipe = _Pipe()
            with pipe:
                self._fork(carry, pipe.writer)
                pipe.until_written()
        except OSError:  # no descriptor or process is left; who has brought that about may keep us waiting
            self._socket.recv(1)

    def _close_by_a_porter(self) -> None:
        """Close the socket, but let a child be the last that does."""
        try:
            pipe = _Pipe()
            with pipe:
                self._fork(lambda reader: os.read(reader, 1), pipe.reader)
                self._socket.close()
        except OSError:
            self._socket.close()

    def _fork(self, act: Callable[[int], object], end: int) -> None:
        """Fork a child that has the socket and one end of a pipe, acts and exits. Raises OSError."""
        pid = os.fork()
        if pid == 0:
            try:
                _keep_only(self._socket.fileno(), end)
                act(end)
            finally:
                os._exit(0)
        self._children.add_guest(pid, lambda _info: None)

    def _may(self, pid: int, uid: int) -> bool:
        if pid == 0:
            return False  # of a PID namespace that is not below ours
        is_ours = uid in (os.getuid(), 0)
        if not is_ours and time.monotonic() < self._refused_until.get(uid, 0.0):
            return False  # to look who it is costs far more than to send
        if _lives(pid) and self._is_of_the_run(pid):
            return True
        # Whoever has died by now, be it during that look, cannot be found. systemd-notify speaks in its
        # parent's name where it may. When that has ended, its parent is who adopts orphans: we. Nobody
        # without CAP_SYS_ADMIN can take our pid, unix(7).
        may = not _lives(pid) and (is_ours or uid in self._uids())
        if not may:
            self._refuse(uid)
        return may

    def _refuse(self, uid: int) -> None:
        if len(self._refused_until) >= MOST_REFUSED:
            self._refused_until.clear()
        self._refused_until[uid] = time.monotonic() + REFUSAL_SECONDS

    def _is_of_the_run(self, pid: int) -> bool:
        if pid in self._children.kin(self._job):
            return True
        if self._looked_anew:
            return False
        self._looked_anew = True
        self._children.tree.forget()  # it may have been born after this turn's look
        return pid in self._children.kin(self._job)

    def _uids(self) -> set[int]:
        found = set()
        for pid in self._children.kin(self._job):
            try:
                found.add(os.stat(f"/proc/{pid}").st_uid)
            except OSError:
                continue  # it is gone
        return found


def _lives(pid: int) -> bool:
    """Whether another process of this number lives."""
    fact = procfs.stat(pid)
    return fact is not None and fact.state not in procfs.DEAD and pid != os.getpid()


class _Pipe:
    """A pipe for the time of a `with`."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def __enter__(self) -> None:
        pass

    def until_written(self) -> None:
        """Wait, but not for ever, until the other side has written, or has gone."""
        os.close(self.writer)
        self.writer = -1
        poller = select.poll()
        poller.register(self.reader, select.POLLIN)
        poller.poll(PORTER_MS)

    def __exit__(self, *_error: object) -> None:
        os.close(self.reader)
        if self.writer >= 0:
            os.close(self.writer)


def _keep_only(*fds: int) -> None:
    """Close all others: who waits in his exit for a stranger must hold nothing of ours."""
    edge = 0
    for fd in sorted(fds):
        os.closerange(edge, fd)
        edge = fd + 1
    os.closerange(edge, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _sender(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, int] | None:
    """The (pid, uid) of a datagram."""
    for level, kind, data in ancillary:
        if level == SOL_SOCKET and kind == SCM_CREDENTIALS:
            pid, uid, _gid = memoryview(data[:12]).cast("I")
            return pid, uid
    return None


def _words(data: bytes) -> dict[str, str]:
    lines = data.decode(errors="replace").split("\n")
    return dict(line.split("=", 1) for line in lines if "=" in line)
