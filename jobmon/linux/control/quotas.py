"""How much clients may take of the daemon: connections, and memory that is kept for them.

There is a bound for each connection, for each user, and for all users together. Root and the daemon's own
user, who can do without asking what the daemon does, have room of their own that no other user can take.
The last descriptors are for nobody's connection: by them signals are sent, deaths are seen and processes
started, however many clients there are.
"""

from __future__ import annotations

import resource

MAX_CONNECTIONS = 4096
MAX_CONNECTIONS_PER_UID = 1024
MIN_CONNECTIONS = 32  # where the jobs alone may need all descriptors that there are
RESERVED_FDS = 64  # for streams while spawning, cgroups, the log, /proc, refusing politely
# The part of the connections, and of the reserve, that is for the daemon's user and root, and for root alone.
FOR_OWN, FOR_ROOT = 16, 8
ROOTS_FDS = 24  # of the reserve root leaves so many

# Bytes kept: input that is no whole message yet, output that was not taken, requests that wait.
MAX_KEPT_PER_CONNECTION = 8 << 20
MAX_KEPT_PER_UID = 64 << 20
MAX_KEPT = 128 << 20  # by all but root and the daemon's user
# Requests that wait, of one user and of all but root and the daemon's user: the change of a job costs a look
# at each that waits for it, all in one turn.
MAX_WAITING_PER_UID, MAX_WAITING = 4096, 8192
# What they cost, generously: a request that waits, and beside that each name in it; how one job is.
WAIT_BYTES, NAME_BYTES, STATUS_BYTES = 1024, 320, 1024


class Quotas:
    """Counts what each user has. `own` is the daemon's user."""

    __slots__ = (
        "_connections",
        "_highest",
        "_kept",
        "_kept_by_others",
        "_own",
        "_room",
        "_total",
        "_waiting",
    )

    def __init__(self, own: int, jobs: int) -> None:
        self._own = own
        self._connections: dict[int, int] = {}
        self._total = 0
        self._kept: dict[int, int] = {}
        self._kept_by_others = 0
        self._waiting: dict[int, int] = {}
        self.make_room(jobs)

    def make_room(self, jobs: int) -> None:
        """Leave descriptors for so many jobs."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._highest = limit - RESERVED_FDS
        self._room = max(MIN_CONNECTIONS, min(MAX_CONNECTIONS, self._highest - 2 * jobs))

    # ---- connections ----------------------------------------------------------------------

    def refusal(self, uid: int, fd: int) -> str:
        """Why a user may have no further connection, or nothing. `fd` is its descriptor: the kernel gives
        the lowest, so all below are in use."""
        per_uid = min(MAX_CONNECTIONS_PER_UID, self._room // 2)
        if self._connections.get(uid, 0) >= per_uid:
            return f"too many connections: {per_uid} of this user"
        if self._total >= self._room - self._left_to_others(uid) or fd >= self._ceiling(uid):
            return f"too many connections: {self._total} of all users"
        return ""

    def _left_to_others(self, uid: int) -> int:
        """How many of all connections this user leaves to those who count more."""
        if uid == 0:
            return 0
        return FOR_ROOT if uid == self._own else FOR_OWN

    def _ceiling(self, uid: int) -> int:
        """The lowest descriptor that is not for this user's connections."""
        if uid == 0:
            return self._highest + RESERVED_FDS - ROOTS_FDS
        return self._highest + (FOR_OWN if uid == self._own else 0)

    def connect(self, uid: int) -> None:
        """A connection is served."""
        self._total += 1
        self._connections[uid] = self._connections.get(uid, 0) + 1

    def disconnect(self, uid: int) -> None:
        """It has ended."""
        self._total -= 1
        self._connections[uid] -= 1
        if not self._connections[uid]:
            del self._connections[uid]

    # ---- memory ---------------------------------------------------------------------------

    def keep(self, uid: int, change: int) -> None:
        """So many bytes more (or less) are kept for a user."""
        kept = self._kept.get(uid, 0) + change
        if kept:
            self._kept[uid] = kept
        else:
            self._kept.pop(uid, None)
        if uid not in (0, self._own):
            self._kept_by_others += change

    def excess(self, uid: int, by_connection: int) -> str:
        """Why nothing more is kept for a connection, or nothing. Who is below his bound may go beyond it
        once: by one message, one answer."""
        if by_connection >= MAX_KEPT_PER_CONNECTION:
            return "too much is kept for this connection: requests that wait, answers that are not read"
        if self._kept.get(uid, 0) >= MAX_KEPT_PER_UID:
            return "too much is kept for this user: requests that wait, answers that are not read"
        if uid not in (0, self._own) and self._kept_by_others >= MAX_KEPT:
            return "too much is kept for all users: requests that wait, answers that are not read"
        return ""

    # ---- requests that wait ---------------------------------------------------------------

    def wait(self, uid: int, change: int) -> None:
        """So many requests more (or fewer) of a user wait for their answers."""
        waiting = self._waiting.get(uid, 0) + change
        if waiting:
            self._waiting[uid] = waiting
        else:
            self._waiting.pop(uid, None)

    def too_many_wait(self, uid: int) -> str:
        """Why no further request of a user may wait, or nothing."""
        if self._waiting.get(uid, 0) >= MAX_WAITING_PER_UID:
            return f"{MAX_WAITING_PER_UID} requests of this user wait already"
        others = sum(count for user, count in self._waiting.items() if user not in (0, self._own))
        if uid not in (0, self._own) and others >= MAX_WAITING:
            return f"{MAX_WAITING} requests of all users wait already"
        return ""
