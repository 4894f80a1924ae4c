"""The socket on which one run speaks of itself by sd_notify(3): who may, and what was said.

Each run has its own, so the socket says whose the words are. What they come to is the attendant's.
"""

from __future__ import annotations

import os
from _socket import (
    AF_UNIX,
    MSG_TRUNC,
    SCM_CREDENTIALS,
    SCM_RIGHTS,
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
ANCILLARY_BYTES = 4096  # the kernel lets at most 253 descriptors come along
A_TURN = 64  # datagrams that are read in one turn of the loop: who floods it delays nobody
AT_THE_END = 1024  # that are read when the run is over, after which there are no turns


class RunSocket:
    """A run's own $NOTIFY_SOCKET. `heard(words)` gets what somebody who may has said.

    Whoever lives must be of the run, under whatever user; whoever has died by now (systemd-notify
    is short-lived) must have had the daemon's user, a user of the run, or root. Descriptors that
    come along are closed after the datagrams before them were heard, which answers BARRIER=1.
    """

    def __init__(
        self, watch: Reactor, children: Children, job: str, heard: Callable[[dict[str, str]], None]
    ) -> None:
        self._reactor = watch
        self._children = children
        self._job = job
        self._heard = heard
        self._looked_anew = False
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
        for _ in range(most):
            if self._socket.fileno() < 0:
                return  # what was heard was the end of it
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(DATAGRAM_BYTES, ANCILLARY_BYTES)
            except OSError:  # EAGAIN: that was all
                return
            fds, sender = _unpack(ancillary)
            try:
                if sender is not None and not flags & MSG_TRUNC and self._may(*sender):
                    self._heard(_words(data))
            finally:
                for fd in fds:
                    os.close(fd)

    def close(self) -> None:
        """Nobody listens any more."""
        if self._socket.fileno() >= 0:
            self._reactor.unregister(self._socket.fileno())
            self._socket.close()

    def _may(self, pid: int, uid: int) -> bool:
        if pid == 0:
            return False  # of a PID namespace that is not below ours
        fact = procfs.stat(pid)
        if fact is not None and fact.state not in procfs.DEAD and pid != os.getpid():
            return self._is_of_the_run(pid)
        # systemd-notify speaks in its parent's name where it may. When that has ended, its parent is who
        # adopts orphans: we. Nobody without CAP_SYS_ADMIN can take our pid, unix(7).
        return uid in (os.getuid(), 0) or uid in self._uids()

    def _is_of_the_run(self, pid: int) -> bool:
        if pid in self._children.pids(self._job):
            return True
        if self._looked_anew:
            return False
        self._looked_anew = True
        self._children.tree.forget()  # it may have been born after this turn's look
        return pid in self._children.pids(self._job)

    def _uids(self) -> set[int]:
        found = set()
        for pid in self._children.pids(self._job):
            try:
                found.add(os.stat(f"/proc/{pid}").st_uid)
            except OSError:
                continue  # it is gone
        return found


def _unpack(ancillary: list[tuple[int, int, bytes]]) -> tuple[list[int], tuple[int, int] | None]:
    """The descriptors and the (pid, uid) of a datagram."""
    fds: list[int] = []
    sender = None
    for level, kind, data in ancillary:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            fds += memoryview(data[: len(data) // 4 * 4]).cast("i")
        elif level == SOL_SOCKET and kind == SCM_CREDENTIALS:
            pid, uid, _gid = memoryview(data[:12]).cast("I")
            sender = (pid, uid)
    return fds, sender


def _words(data: bytes) -> dict[str, str]:
    lines = data.decode(errors="replace").split("\n")
    return dict(line.split("=", 1) for line in lines if "=" in line)
