"""All deadlines of the daemon: a heap over one timerfd. Cancelling is exact.

One deadline per key; arming a key anew replaces it. What was cancelled never fires, and the
timerfd is set anew before the loop sleeps, so it wakes nobody for nothing.
"""

from __future__ import annotations

import heapq
import os

from jobmon.linux.kernel import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable


class Timers:
    """Deadlines in CLOCK_MONOTONIC seconds."""

    def __init__(self) -> None:
        self._fd = syscalls.timerfd_create()
        self._heap: list[tuple[float, int]] = []
        self._armed: dict[Hashable, tuple[int, int]] = {}  # key -> (serial, token)
        self._keys: dict[int, Hashable] = {}  # serial -> key
        self._serial = 0
        self._programmed: float | None = None

    def __len__(self) -> int:
        return len(self._armed)

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._fd

    def arm(self, key: Hashable, token: int, at: float) -> None:
        """Let `key` fire with `token` at `at`."""
        self.disarm(key)
        self._serial += 1
        self._armed[key] = (self._serial, token)
        self._keys[self._serial] = key
        heapq.heappush(self._heap, (at, self._serial))

    def disarm(self, key: Hashable) -> None:
        """Forget the deadline of `key`, if it has one."""
        entry = self._armed.pop(key, None)
        if entry is not None:
            del self._keys[entry[0]]
            if len(self._heap) > 64 and len(self._heap) > 2 * len(self._keys):
                self._heap = [item for item in self._heap if item[1] in self._keys]
                heapq.heapify(self._heap)

    def next_due(self, now: float) -> tuple[Hashable, int] | None:
        """Take the earliest (key, token) whose time has come; equal times in the order of arming.

        One at a time, because whoever acts on it may cancel the others.
        """
        head = self._head()
        if head is None or head > now:
            return None
        key = self._keys.pop(heapq.heappop(self._heap)[1])
        return key, self._armed.pop(key)[1]

    def drain(self) -> None:
        """Take the expiry off the descriptor."""
        self._programmed = None
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            pass

    def program(self) -> None:
        """Set the timerfd to the earliest deadline. Call it before every sleep."""
        head = self._head()
        if head != self._programmed:
            syscalls.timerfd_settime(self._fd, head)
            self._programmed = head

    def _head(self) -> float | None:
        heap = self._heap
        while heap and heap[0][1] not in self._keys:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def close(self) -> None:
        """Close the timerfd."""
        os.close(self._fd)
