"""The last events, numbered, for everybody who listens at his own pace. No I/O.

Of each job the last few are kept for longer, however much happens to others: packed, as there may
be thousands of jobs to which nothing has happened for a month.
"""

from __future__ import annotations

from itertools import islice

from jobmon.core.causes import SHUTDOWN, Cause, pack, unpack
from jobmon.core.events import HAPPENINGS, State
from jobmon.lean.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    # seq, unix time, job, kind (events.HAPPENINGS), state, run, pid, cause
    Event = tuple[int, float, str, str, State, int, int | None, Cause]

KEPT_EVENTS = 10_000
KEPT_OF_EACH = 10

_STATES = tuple(State)
_NOTHING: Event = (0, 0.0, "", "", State.STOPPED, 0, None, SHUTDOWN)


class EventLog:
    """A ring of KEPT_EVENTS events. Numbers begin after `begin` and have no gaps.

    0 stands for `begin`, whatever that is. A daemon takes the microsecond of its start, which is beyond all
    that an earlier one has told: no daemon has a million events in each second of its life. So a number of
    an earlier daemon is never taken for one of this; and a double holds it until the year 2255.

    Of the events that leave the ring, the last KEPT_OF_EACH of every one of `jobs` stay.

    An event is found by its number, and those of a job from the latest back, whatever happens to others.
    """

    __slots__ = ("_before", "_begin", "_jobs", "_latest", "_old", "_ring", "_size", "last")

    def __init__(self, jobs: Container[str] = (), begin: int = 0) -> None:
        self._jobs = jobs
        self._size = KEPT_EVENTS
        self._ring: list[Event] = []  # event number n at the index of `_index`
        self._before: list[int] = []  # for each its job's event before it, or an older number
        self._latest: dict[str, int] = {}  # of each job that has events in the ring
        self._old: dict[str, bytes] = {}
        self.last = self._begin = begin

    @property
    def first(self) -> int:
        """The number of the oldest event still kept (`last` + 1 when there is none)."""
        return self.last - len(self._ring) + 1

    def add(
        self, time: float, job: str, kind: str, state: State, run: int, pid: int | None, cause: Cause
    ) -> None:
        """Append one event at the unix `time` (seconds)."""
        if len(self._ring) == self._size:
            self._let_go(self._at(self.first))
        else:
            self._ring.append(_NOTHING)
            self._before.append(0)
        self.last += 1
        index = self._index(self.last)
        self._ring[index] = (self.last, time, job, kind, state, run, pid, cause)
        self._before[index] = self._latest.get(job, self._begin)
        self._latest[job] = self.last

    def forget(self, job: str) -> None:
        """Nobody will ask for the old events of a job any more."""
        self._old.pop(job, None)

    def holds(self, seq: int) -> bool:
        """Whether somebody who has seen everything up to `seq` has missed nothing."""
        return self.first - 1 <= (seq or self._begin) <= self.last

    def time(self, seq: int) -> float:
        """The unix time of event number `seq`; of one that is not kept any more, or was never, 0."""
        return self._at(seq)[1] if self.first <= seq <= self.last else 0.0

    def history(self, job: str, length: int) -> tuple[str, ...]:
        """The last `length` events of a job in words, oldest first: for a bug report."""
        events = list(islice(self.back(job), length))
        return tuple(f"{e[1]:.3f} {e[3]}: {e[4].value}, run {e[5]}, {e[7]}" for e in reversed(events))

    def back(self, job: str, since: int = 0) -> Iterator[Event]:
        """The events of a job after `since` as far as they are in the ring, the latest first."""
        seq = self._latest.get(job, self._begin)
        while seq >= self.first and seq > since:
            yield self._at(seq)
            seq = self._before[self._index(seq)]

    def of(self, job: str) -> list[Event]:
        """The last KEPT_OF_EACH events of a job, oldest first. What is old has the number 0, its time in
        milliseconds, and may have lost the end of its cause."""
        recent = list(islice(self.back(job), KEPT_OF_EACH))
        old = [_unpacked(job, line) for line in self._old.get(job, b"").split(b"\n") if line]
        return [*old, *reversed(recent)][-KEPT_OF_EACH:]

    def after(self, seq: int) -> Iterator[Event]:
        """The events after `seq`, oldest first. Read it before the next `add`."""
        for number in range(max(seq + 1, self.first), self.last + 1):
            yield self._at(number)

    def _index(self, seq: int) -> int:
        return (seq - self._begin - 1) % self._size

    def _at(self, seq: int) -> Event:
        return self._ring[self._index(seq)]

    def _let_go(self, event: Event) -> None:
        """An event leaves the ring."""
        job = event[2]
        if job in self._jobs:
            self._keep(event)
        if self._latest[job] == event[0]:
            del self._latest[job]

    def _keep(self, event: Event) -> None:
        lines = [line for line in self._old.get(event[2], b"").split(b"\n") if line]
        lines.append(_packed(event))
        self._old[event[2]] = b"\n".join(lines[-KEPT_OF_EACH:])


def _packed(event: Event) -> bytes:
    _, time, _, kind, state, run, pid, cause = event
    place = f"{HAPPENINGS.index(kind)}{_STATES.index(state)}"
    return f"{place} {int(time * 1000):x} {run:x} {pid or 0:x} {dumps(pack(cause))}".encode()


def _unpacked(job: str, line: bytes) -> Event:
    place, time, run, pid, cause = line.decode().split(" ", 4)
    kind, state = HAPPENINGS[int(place[0])], _STATES[int(place[1])]
    whose = int(run, 16), int(pid, 16) or None
    return 0, int(time, 16) / 1000, job, kind, state, *whose, unpack(loads(cause))
