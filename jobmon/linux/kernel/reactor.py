"""The one epoll of JobMon: register, priority, dispatch. Knows nothing of what it watches.

The kernel bounds the watches of a user (ENOSPC, epoll(7)). A descriptor that gets none is watched by
poll(2), beside the epoll itself, until there is room for it.

A source that raises is disabled and reported, the loop lives. Sources are unregistered before
they are closed: a forked child that has not yet executed its program may hold the same open
file, and epoll would go on reporting it for ever (epoll(7), Q6).
"""

from __future__ import annotations

import errno
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Handler = Callable[[int], None]

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
HANGUP = select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP

# In this order what is ready together is dispatched: a dead process is seen before a command
# about it, a listener before a command that it wants to see the events of, and a success before
# the time-out of the same turn.
EXEC, CHILD, SIGNAL, ACCEPT, COMMAND, TIMER = range(6)

_BATCH = 256
_SHORT = (errno.ENOSPC, errno.ENOMEM)


class Reactor:
    """Descriptors and who handles them. `failed` is told of a handler that raised. `turns` counts."""

    def __init__(self, failed: Callable[[int, Exception], None]) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, tuple[int, Handler]] = {}
        self._unwatched: dict[int, int] = {}  # descriptors without a place in the epoll: their events
        self._failed = failed
        self.turns = 0

    def register(self, fd: int, handler: Handler, priority: int, events: int = READ) -> None:
        """Call `handler(events)` whenever `fd` is ready. Raises OSError, of a shortage only where `events`
        ask for edges, which poll(2) does not know."""
        try:
            self._epoll.register(fd, events)
        except OSError as error:
            if error.errno not in _SHORT or events & select.EPOLLET:
                raise
            self._unwatched[fd] = events
        self._handlers[fd] = (priority, handler)

    def modify(self, fd: int, events: int) -> None:
        """Wait for other events of a registered `fd`."""
        if fd in self._unwatched:
            self._unwatched[fd] = events
        else:
            self._epoll.modify(fd, events)

    def unregister(self, fd: int) -> None:
        """Forget `fd`; harmless when it is not registered. Call it before closing."""
        if self._handlers.pop(fd, None) is not None and self._unwatched.pop(fd, None) is None:
            self._epoll.unregister(fd)

    def turn(self, *, block: bool) -> None:
        """Wait until something is ready (with `block`) and dispatch all of it."""
        ready = self._poll(block=block) if self._unwatched else self._epoll.poll(None if block else 0, _BATCH)
        self.turns += 1
        if len(ready) > 1:
            ready.sort(key=self._priority)
        for fd, events in ready:
            entry = self._handlers.get(fd)
            if entry is not None:  # else: a handler of this turn unregistered it
                self._dispatch(fd, events, entry[1])

    def _poll(self, *, block: bool) -> list[tuple[int, int]]:
        """The same where some have no place in the epoll: poll(2) names events by the same bits."""
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
        entry = self._handlers.get(item[0])
        return entry[0] if entry is not None else TIMER

    def _dispatch(self, fd: int, events: int, handler: Handler) -> None:
        try:
            handler(events)
        except Exception as error:  # noqa: BLE001 - the source is disabled, the loop lives
            self.unregister(fd)
            self._failed(fd, error)

    def close(self) -> None:
        """Close the epoll instance."""
        self._handlers.clear()
        self._unwatched.clear()
        self._epoll.close()
