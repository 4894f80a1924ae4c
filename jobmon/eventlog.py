"""The last events, numbered, for everybody who listens at his own pace. No I/O."""

from __future__ import annotations

from jobmon.lean import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobmon.events import State

    # seq, unix time, job, kind (events.HAPPENINGS), state, run, pid, cause
    Event = tuple[int, float, str, str, State, int, int | None, str]

KEPT_EVENTS = 10_000


class EventLog:
    """A ring of KEPT_EVENTS events. Numbers begin at 1 and have no gaps."""

    __slots__ = ("_ring", "last")

    def __init__(self) -> None:
        self._ring: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self.last = 0

    @property
    def first(self) -> int:
        """The number of the oldest event still kept (`last` + 1 when there is none)."""
        return self.last - len(self._ring) + 1

    def add(
        self, time: float, job: str, kind: str, state: State, run: int, pid: int | None, cause: str
    ) -> None:
        """Append one event at the unix `time` (seconds)."""
        self.last += 1
        self._ring.append((self.last, time, job, kind, state, run, pid, cause))

    def holds(self, seq: int) -> bool:
        """Whether somebody who has seen everything up to `seq` has missed nothing."""
        return self.first - 1 <= seq <= self.last

    def history(self, job: str, length: int) -> tuple[str, ...]:
        """The last `length` events of a job in words, oldest first: for a bug report."""
        told = [f"{e[1]:.3f} {e[3]}: {e[4].value}, run {e[5]}, {e[7]}" for e in self._ring if e[2] == job]
        return tuple(told[-length:])

    def after(self, seq: int) -> Iterator[Event]:
        """The events after `seq`, oldest first. Read it before the next `add`."""
        ring = self._ring
        for index in range(max(seq - self.first + 1, 0), len(ring)):
            yield ring[index]
