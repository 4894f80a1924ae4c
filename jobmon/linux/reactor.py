"""The one epoll of JobMon: register, priority, dispatch. Knows nothing of what it watches.

A source that raises is disabled and reported, the loop lives. Sources are unregistered before
they are closed: a forked child that has not yet executed its program may hold the same open
file, and epoll would go on reporting it for ever (epoll(7), Q6).
"""

from __future__ import annotations

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


class Reactor:
    """Descriptors and who handles them. `failed` is told of a handler that raised. `turns` counts."""

    def __init__(self, failed: Callable[[int, Exception], None]) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, tuple[int, Handler]] = {}
        self._failed = failed
        self.turns = 0

    def register(self, fd: int, handler: Handler, priority: int, events: int = READ) -> None:
        """Call `handler(events)` whenever `fd` is ready. Raises OSError (ENOSPC: too many watches)."""
        self._epoll.register(fd, events)
        self._handlers[fd] = (priority, handler)

    def modify(self, fd: int, events: int) -> None:
        """Wait for other events of a registered `fd`."""
        self._epoll.modify(fd, events)

    def unregister(self, fd: int) -> None:
        """Forget `fd`; harmless when it is not registered. Call it before closing."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def turn(self, *, block: bool) -> None:
        """Wait until something is ready (with `block`) and dispatch all of it."""
        ready = self._epoll.poll(None if block else 0, _BATCH)
        self.turns += 1
        if len(ready) > 1:
            ready.sort(key=self._priority)
        for fd, events in ready:
            entry = self._handlers.get(fd)
            if entry is not None:  # else: a handler of this turn unregistered it
                self._dispatch(fd, events, entry[1])

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
        self._epoll.close()
