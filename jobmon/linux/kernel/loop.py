"""The event loop of the daemon: descriptors over one epoll, deadlines over one timerfd.

Knows nothing of what it serves. A turn (`run_once`) waits until something is ready and dispatches all of it,
by priority; deadlines come last, one at a time, as the callback of one may cancel the others.

What the rest of the daemon relies on:

- A callback that raises costs its own source and no other: a descriptor is no longer watched, a deadline is
  over. The loop reports the error and lives on.
- Cancelling is exact: a cancelled deadline never fires, even if its time has come in the same turn. The
  timerfd is set to the earliest deadline that is left before every wait, so a cancelled one wakes nobody. In
  the heap it stays until it comes to the top, or until more than half of the heap is cancelled.
- A deadline that is set with no delay while others fire comes in the next turn: work in slices gives way to
  all other sources.
- The kernel bounds the epoll watches of a user (ENOSPC, epoll(7)). A descriptor without a place is watched
  by poll(2), beside the epoll itself, until there is room for it.
- A descriptor must be removed before it is closed: a forked child that has not yet executed its program may
  hold the same open file, and epoll would report it for ever (epoll(7), Q6).
"""

from __future__ import annotations

import errno
import heapq
import os
import select
import time

from jobmon.linux.kernel import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Reader = Callable[[int], None]

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
HANGUP = select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP

# What is ready together is dispatched in this order: a death is seen before a command about the dead, a
# listener before a command whose events it wants to see, and a success before the timeout of the same turn.
EXEC, CHILD, SIGNAL, ACCEPT, COMMAND, TIMER = range(6)

_BATCH = 256
_SHORT = (errno.ENOSPC, errno.ENOMEM)
_SMALL_HEAP = 64  # below this size, cancelled deadlines in the heap do not matter


class Handle:
    """A deadline that was set with `Loop.call_at`; `when` is its time in CLOCK_MONOTONIC seconds."""

    __slots__ = ("_args", "_callback", "_loop", "_serial", "when")

    def __init__(
        self,
        loop: Loop | None,
        when: float,
        serial: int,
        callback: Callable[..., object] | None,
        args: tuple[object, ...],
    ) -> None:
        self._loop = loop
        self.when = when
        self._serial = serial
        self._callback = callback
        self._args = args

    def __lt__(self, other: Handle) -> bool:
        return (self.when, self._serial) < (other.when, other._serial)

    @property
    def active(self) -> bool:
        """Whether it will fire: it has not fired yet and was not cancelled."""
        return self._callback is not None

    def cancel(self) -> None:
        """Forget the deadline; harmless if it has fired or was cancelled."""
        if self._callback is not None and self._loop is not None:
            self._callback, self._args = None, ()
            self._loop.one_cancelled()

    def fire(self) -> None:
        """Call back, once; for the loop only."""
        callback, args = self._callback, self._args
        self._callback, self._args = None, ()
        if callback is not None:
            callback(*args)


# What an owner holds while it has no deadline: it can be cancelled, and never fires.
UNSET = Handle(None, float("inf"), 0, None, ())


class TurnBudget:
    """The time that one kind of work may take of each turn of a loop, until `until` of the present one."""

    __slots__ = ("_loop", "_turn", "until")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._turn = -1
        self.until = 0.0

    def renew(self, seconds: float) -> bool:
        """Begin the time anew if this is the first call in a turn of the loop, and return whether it is."""
        if self._turn == self._loop.turns:
            return False
        self._turn, self.until = self._loop.turns, time.monotonic() + seconds
        return True


class Loop:
    """Descriptors and deadlines with their callbacks. `failed(where, error)` is told of a callback that
    raised; `after_timer` is called after each deadline. `turns` counts, `deadlines` says how many are set."""

    def __init__(
        self, failed: Callable[[str, Exception], None], after_timer: Callable[[], None] = lambda: None
    ) -> None:
        self._epoll = select.epoll()
        self._readers: dict[int, tuple[int, Reader]] = {}
        self._unwatched: dict[int, int] = {}  # descriptors without a place in the epoll: their events
        self._failed = failed
        self._after_timer = after_timer
        self.turns = 0
        self._timerfd = syscalls.timerfd_create()
        self._heap: list[Handle] = []
        self._serial = 0
        self._programmed: float | None = None
        self.deadlines = 0
        self.add_reader(self._timerfd, self._on_timer, TIMER)

    def run_once(self, *, block: bool) -> None:
        """Wait until something is ready (with `block`) and dispatch all of it."""
        self._program()
        ready = self._poll(block=block) if self._unwatched else self._epoll.poll(None if block else 0, _BATCH)
        self.turns += 1
        if len(ready) > 1:
            ready.sort(key=self._priority)
        for fd, events in ready:
            entry = self._readers.get(fd)
            if entry is not None:  # else: a callback of this turn has removed it
                self._dispatch(fd, events, entry[1])

    def close(self) -> None:
        """Close the epoll instance and the timerfd."""
        self._readers.clear()
        self._unwatched.clear()
        self._heap.clear()
        self._epoll.close()
        os.close(self._timerfd)

    # ---- descriptors ----------------------------------------------------------------------

    def add_reader(self, fd: int, callback: Reader, priority: int, events: int = READ) -> None:
        """Call `callback(events)` whenever `fd` is ready.

        Raises OSError; of a shortage of watches only where `events` ask for edges, unknown to poll(2).
        """
        try:
            self._epoll.register(fd, events)
        except OSError as error:
            if error.errno not in _SHORT or events & select.EPOLLET:
                raise
            self._unwatched[fd] = events
        self._readers[fd] = (priority, callback)

    def modify_reader(self, fd: int, events: int) -> None:
        """Wait for other events of an `fd` that was added."""
        if fd in self._unwatched:
            self._unwatched[fd] = events
        else:
            self._epoll.modify(fd, events)

    def remove_reader(self, fd: int) -> None:
        """Forget `fd`; harmless if it was not added. Call it before closing."""
        if self._readers.pop(fd, None) is not None and self._unwatched.pop(fd, None) is None:
            self._epoll.unregister(fd)

    def _poll(self, *, block: bool) -> list[tuple[int, int]]:
        """Wait where some have no place in the epoll: poll(2) names events by the same bits."""
        self._move_in()
        poller, own = select.poll(), self._epoll.fileno()
        poller.register(own, select.POLLIN)
        for fd, events in self._unwatched.items():
            poller.register(fd, events)
        ready = [item for item in poller.poll(None if block else 0) if item[0] != own]
        return ready + self._epoll.poll(0, _BATCH)

    def _move_in(self) -> None:
        """Give those without a place one, as long as there is room."""
        for fd, events in list(self._unwatched.items()):
            try:
                self._epoll.register(fd, events)
            except OSError:
                return
            del self._unwatched[fd]

    def _priority(self, item: tuple[int, int]) -> int:
        entry = self._readers.get(item[0])
        return entry[0] if entry is not None else TIMER

    def _dispatch(self, fd: int, events: int, callback: Reader) -> None:
        try:
            callback(events)
        except Exception as error:  # noqa: BLE001 - the source is disabled, the loop lives
            self.remove_reader(fd)
            self._failed(f"descriptor {fd}", error)

    # ---- deadlines ------------------------------------------------------------------------

    def call_at(self, when: float, callback: Callable[..., object], *args: object) -> Handle:
        """Call `callback(*args)` once, at `when` (CLOCK_MONOTONIC seconds); equal times in this order."""
        self._serial += 1
        handle = Handle(self, when, self._serial, callback, args)
        heapq.heappush(self._heap, handle)
        self.deadlines += 1
        return handle

    def call_later(self, delay: float, callback: Callable[..., object], *args: object) -> Handle:
        """Call `callback(*args)` once, after `delay` seconds; 0 means in the next turn."""
        return self.call_at(time.monotonic() + delay, callback, *args)

    def run_due(self, now: float) -> None:
        """Fire every deadline whose time has come at `now`, earliest first."""
        while (first := self._first()) is not None and first.when <= now:
            heapq.heappop(self._heap)
            self.deadlines -= 1
            try:
                first.fire()
                self._after_timer()
            except Exception as error:  # noqa: BLE001 - or no deadline would ever fire again
                self._failed("a timer", error)

    def _on_timer(self, _events: int) -> None:
        self._programmed = None
        try:
            os.read(self._timerfd, 8)
        except BlockingIOError:
            pass
        self.run_due(time.monotonic())

    def _program(self) -> None:
        """Set the timerfd to the earliest deadline, if that is another one than before."""
        first = self._first()
        when = first.when if first is not None else None
        if when != self._programmed:
            syscalls.timerfd_settime(self._timerfd, when)
            self._programmed = when

    def _first(self) -> Handle | None:
        heap = self._heap
        while heap and not heap[0].active:
            heapq.heappop(heap)
        return heap[0] if heap else None

    def one_cancelled(self) -> None:
        """A deadline in the heap was cancelled; for handles only."""
        self.deadlines -= 1
        if len(self._heap) > _SMALL_HEAP and len(self._heap) > 2 * self.deadlines:
            self._heap = [handle for handle in self._heap if handle.active]
            heapq.heapify(self._heap)
