"""What systemd is told of the daemon, by the protocol of sd_notify(3), and what it gives it.

Datagrams to $NOTIFY_SOCKET, sent without ever blocking. The queue at the other end is the whole
system's and may be full, at boot above all: what does not fit is kept and sent when there is room,
because a lost READY=1 would be a failed start. Also the sockets that systemd hands over,
sd_listen_fds(3).
"""

from __future__ import annotations

import errno
import time

from jobmon.core.events import State
from jobmon.lean.cpython import (
    AF_UNIX,
    MSG_NOSIGNAL,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    socket,
)
from jobmon.linux.kernel.loop import COMMAND, UNSET, WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from jobmon.core.machine import Job
    from jobmon.core.supervisor import Supervisor
    from jobmon.linux.kernel.loop import Loop

FIRST_PASSED_FD = 3
SHOWN_NAMES = 3
SHOWN_CHARACTERS = 60  # of a job's name: systemd drops a datagram of more than 4096 bytes
SHOWN_TROUBLE = 500  # characters of why a start failed
STATUS_SECONDS = 0.5  # between two tellings of what is not urgent: each makes systemd tell its own clients
SLACK_SECONDS = 10.0  # beyond the jobs' own deadlines, for what comes after them
_ROLES = ("control", "event")


class Notifier:
    """A way to tell the service manager something; false, and mute, where nobody asked.

    Words that cannot be sent at once wait, at most four datagrams: `unsent`, `flush`.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket | None = None
        self._connected = False
        self._waiting: list[dict[str, object]] = []
        if address.startswith(("/", "@")):
            self._socket = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK)

    def __bool__(self) -> bool:
        return self._socket is not None

    def fileno(self) -> int:
        """The descriptor: writable when `flush` may have more luck."""
        return self._socket.fileno() if self._socket is not None else -1

    @property
    def unsent(self) -> bool:
        """Whether words wait for room."""
        return bool(self._waiting)

    def tell(self, **words: object) -> None:
        """Send words as NAME=value lines, after those that wait already."""
        if self._socket is None:
            return
        self._wait(words)
        self.flush()

    def _wait(self, words: dict[str, object]) -> None:
        """Words join those that wait already. But of READY, RELOADING and STOPPING systemd reads one in a
        datagram, so what changes that begins another; of two reloads that wait the later counts."""
        if "RELOADING" in words:
            others = [each for each in self._waiting if "RELOADING" not in each]
            self._waiting = [{name: each[name] for each in others for name in each}] if others else []
        begins = words.keys() & {"RELOADING", "STOPPING"}
        if begins or not self._waiting or "RELOADING" in self._waiting[-1]:
            self._waiting.append(words)
        else:
            self._waiting[-1].update(words)

    def flush(self) -> None:
        """Send what waits, as far as there is room."""
        try:
            while self._waiting:
                self._send("\n".join(f"{name}={value}" for name, value in self._waiting[0].items()))
                del self._waiting[0]
        except BlockingIOError:
            return
        except OSError:
            self._waiting.clear()  # whoever listened has gone, and nobody else is meant

    def _send(self, text: str) -> None:
        assert self._socket is not None
        data = text.encode(errors="replace")
        for attempt in (1, 2):
            if not self._connected:  # connected, epoll can tell when the other end has room
                self._socket.connect(self._address)
                self._connected = True
            try:
                self._socket.send(data, MSG_NOSIGNAL)
            except OSError as error:
                if error.errno not in _GONE or attempt == 2:
                    raise
                self._connected = False  # it may listen anew, at the same place
            else:
                return

    def waits(self, what: str, names: Sequence[str], seconds: float) -> None:
        """The start goes on, and takes up to so many seconds more."""
        usec = int((seconds + SLACK_SECONDS) * 1_000_000)
        self.tell(STATUS=f"{what}: {_listed(names)}", EXTEND_TIMEOUT_USEC=usec)

    def failed(self, error: Exception, number: int) -> None:
        """The start has failed: why, and as errno."""
        self.tell(STATUS=_first(str(error).splitlines() or [repr(error)]), ERRNO=number)

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


_GONE = (errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN)


class Herald:
    """Keeps the service manager informed of one daemon: ready, status, stopping, alive."""

    def __init__(self, notifier: Notifier, supervisor: Supervisor, loop: Loop, watchdog: float) -> None:
        self._notifier = notifier
        self._supervisor = supervisor
        self._loop = loop
        self._half = watchdog / 2
        self._is_ready = False
        self._is_stopping = False
        self._dirty = True
        self._pet_due = False
        self._told_at = 0.0
        self._told = ""
        self._watched = False
        self._next_status = UNSET

    def begin(self) -> None:
        """The loop begins to turn."""
        if self._half:
            self._loop.call_later(self._half, self._pet)

    def ready(self) -> None:
        """The autostart jobs are up. Too late when the end has begun: STOPPING=1 was the last word."""
        if not self._is_stopping:
            self._is_ready = True
            self._tell(time.monotonic(), READY=1)

    def reloading(self) -> None:
        """The configuration is about to be read again. With Type=notify-reload systemd, which has asked
        for that, waits for `reloaded`, and by the time knows that this is the one that it has asked for."""
        if self._is_ready and not self._is_stopping:
            self._send({"RELOADING": 1, "MONOTONIC_USEC": int(time.monotonic() * 1_000_000)})

    def reloaded(self, problems: Sequence[str]) -> None:
        """It is gone by, or nothing was changed because of problems."""
        if self._is_stopping or not self._is_ready:
            return
        if problems:
            self._told = f"cannot reload: {_first(problems)}"
            self._send({"READY": 1, "STATUS": self._told})
        else:
            self._tell(time.monotonic(), READY=1)

    def stopping(self) -> None:
        """The shutdown has begun."""
        if not self._is_stopping:
            self._is_stopping = True
            self._tell(time.monotonic(), STOPPING=1)

    def changed(self) -> None:
        """A job went from one state to another."""
        self._dirty = True

    def turn(self) -> None:
        """The end of a full turn of the loop, and only of one: it lives. Tell what has changed."""
        if self._pet_due:
            self._pet_due = False
            self._send({"WATCHDOG": 1})
        if self._dirty:
            now = time.monotonic()
            if now - self._told_at < STATUS_SECONDS:
                self._dirty = False
                self._tell_at(self._told_at + STATUS_SECONDS)
            else:
                self._tell(now)

    def _tell_at(self, when: float) -> None:
        """Let the status be told at `when`, or before: a time that is sooner stays."""
        if not self._next_status.active or when < self._next_status.when:
            self._next_status.cancel()
            self._next_status = self._loop.call_at(when, self.changed)

    def _pet(self) -> None:
        self._pet_due = True
        self._loop.call_later(self._half, self._pet)

    def _tell(self, now: float, **words: object) -> None:
        self._dirty = False
        self._told_at = now
        jobs = self._supervisor.jobs.values()
        moving = self._moving(jobs)
        status = _status(jobs, moving)
        if status != self._told:
            self._told = words["STATUS"] = status
        if self._is_stopping or not self._is_ready:
            words["EXTEND_TIMEOUT_USEC"] = self._patience(moving, now)
        if words:
            self._send(words)

    def _send(self, words: dict[str, object]) -> None:
        self._notifier.tell(**words)
        self._watch()

    def _watch(self) -> None:
        """Words that wait want to know of room; else nothing is to wake us."""
        if self._notifier.unsent == self._watched:
            return
        self._watched = self._notifier.unsent
        if self._watched:
            self._loop.add_reader(self._notifier.fileno(), self._room, COMMAND, WRITE)
        else:
            self._loop.remove_reader(self._notifier.fileno())

    def _room(self, _events: int) -> None:
        self._notifier.flush()
        self._watch()

    def _moving(self, jobs: Iterable[Job]) -> list[Job]:
        """The jobs that are being waited for."""
        going, coming = (State.STOPPING, State.KILLING), (State.STARTING, State.WAITING)
        states: tuple[State, ...] = going if self._is_stopping else coming
        if not self._is_ready and not self._is_stopping:
            # What takes too long to be ready is on its way down before it has failed.
            states = (*coming, *going)
        return [job for job in jobs if job.state in states]

    def _patience(self, moving: Iterable[Job], now: float) -> int:
        """How many microseconds the start, or the stop, may still legitimately take.

        Up to the deadlines that are running, which are the jobs' own; nothing extends them in turn,
        so what SIGKILL does not end is systemd's to judge. Who starts without a deadline, a oneshot,
        may take any time: for that one systemd is told again, before it has waited in vain.
        """
        if any(job.state is State.STARTING and job.armed is None for job in moving):
            self._tell_at(now + SLACK_SECONDS / 2)
        deadlines = [job.armed for job in moving if job.armed is not None]
        return int((max(deadlines, default=now) - now + SLACK_SECONDS) * 1_000_000)

    def close(self) -> None:
        """Nobody is told anything more."""
        if self._watched:
            self._loop.remove_reader(self._notifier.fileno())
        self._notifier.close()


def _status(jobs: Iterable[Job], moving: Sequence[Job]) -> str:
    """Counts, and what is being waited for."""
    counts = dict.fromkeys(State, 0)
    for job in jobs:
        counts[job.state] += 1
    parts = [f"{count} {state.value}" for state, count in counts.items() if count]
    total = sum(counts.values())
    text = f"{total} job{'' if total == 1 else 's'}"
    if parts:
        text += f": {', '.join(parts)}"
    if moving:
        text += f"; waiting for {_listed([job.spec.name for job in moving])}"
    return text


def _first(problems: Sequence[str]) -> str:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return _clean(problems[0], SHOWN_TROUBLE) + more


def _listed(names: Sequence[str]) -> str:
    more = len(names) - SHOWN_NAMES
    shown = ", ".join(_clean(name, SHOWN_CHARACTERS) for name in names[:SHOWN_NAMES])
    return shown + (f" and {more} more" if more > 0 else "")


def _clean(text: str, most: int) -> str:
    """One line, and no longer than `most` characters."""
    shown = text if len(text) <= most else text[: most - 3] + "..."
    return "".join(char if char.isprintable() else "?" for char in shown)


def watchdog_seconds(environ: Mapping[str, str], pid: int) -> float:
    """How often the manager wants to hear from process `pid`; 0 for never. sd_watchdog_enabled(3)."""
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return 0.0
    usec = environ.get("WATCHDOG_USEC", "")
    return int(usec) / 1_000_000 if usec.isascii() and usec.isdecimal() else 0.0


def passed_sockets(environ: Mapping[str, str], pid: int) -> dict[int, str]:
    """The sockets that were handed over to process `pid`: descriptor -> "control", "event", or "" for
    one that nobody asked for.

    By their names ($LISTEN_FDNAMES); where none has one of ours, the first is control, the second event.
    """
    count = environ.get("LISTEN_FDS", "")
    is_number = count.isascii() and count.isdecimal() and len(count) < 6
    if environ.get("LISTEN_PID") != str(pid) or not is_number:
        return {}
    fds = range(FIRST_PASSED_FD, FIRST_PASSED_FD + int(count))
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    if not any(name in _ROLES for name in names):
        names = list(_ROLES)
    roles = dict.fromkeys(fds, "")
    for fd, name in zip(fds, names, strict=False):
        if name in _ROLES and name not in roles.values():
            roles[fd] = name
    return roles
