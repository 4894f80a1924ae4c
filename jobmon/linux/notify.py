"""What systemd is told of the daemon, by the protocol of sd_notify(3), and what it gives it.

Datagrams to $NOTIFY_SOCKET, sent without ever blocking; a word that does not fit is lost and the
next one says more. Also the sockets that it hands over, sd_listen_fds(3).
"""

from __future__ import annotations

import time
from _socket import AF_UNIX, MSG_DONTWAIT, MSG_NOSIGNAL, SOCK_CLOEXEC, SOCK_DGRAM, socket

from jobmon.events import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobmon.events import Changed
    from jobmon.linux.timers import Timers
    from jobmon.supervisor import Supervisor

FIRST_PASSED_FD = 3
SHOWN_NAMES = 3
STOP_SLACK = 10.0  # seconds that a stop may take beyond the longest patience
_TRANSIENT = (State.STARTING, State.STOPPING, State.KILLING, State.BACKOFF)


class Notifier:
    """A way to tell the service manager something; None of it where nobody asked."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC) if address else None

    def __bool__(self) -> bool:
        return self._socket is not None

    def tell(self, **words: object) -> None:
        """Send words as NAME=value lines."""
        if self._socket is None:
            return
        text = "\n".join(f"{name}={value}" for name, value in words.items())
        try:
            self._socket.sendto(text.encode(errors="replace"), MSG_DONTWAIT | MSG_NOSIGNAL, self._address)
        except OSError:
            pass  # it has gone, or its queue is full: nothing that a supervisor may wait for

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()


class Herald:
    """Keeps the service manager informed of one daemon: ready, status, stopping, alive."""

    def __init__(self, notifier: Notifier, supervisor: Supervisor, timers: Timers, watchdog: float) -> None:
        self._notifier = notifier
        self._supervisor = supervisor
        self._timers = timers
        self._half = watchdog / 2
        self._ready = False
        self._stopping = False
        self._told = ""
        self._dirty = True
        self._counts = dict.fromkeys(State, 0) | {State.STOPPED: len(supervisor.jobs)}
        self._moving: dict[State, dict[str, None]] = {state: {} for state in _TRANSIENT}

    def begin(self) -> None:
        """The loop begins to turn."""
        if self._half:
            self._pet(0)

    def ready(self) -> None:
        """The autostart jobs are up."""
        self._ready = True
        self._told = self._status()
        self._notifier.tell(READY=1, STATUS=self._told)

    def stopping(self) -> None:
        """The shutdown has begun."""
        if not self._stopping:
            self._stopping = True
            self._told = self._status()
            self._notifier.tell(STOPPING=1, STATUS=self._told, EXTEND_TIMEOUT_USEC=self._patience())

    def changed(self, change: Changed) -> None:
        """A job went from one state to another."""
        self._counts[change.before] -= 1
        self._counts[change.after] += 1
        if change.before in self._moving:
            self._moving[change.before].pop(change.job, None)
        if change.after in self._moving:
            self._moving[change.after][change.job] = None
        self._dirty = True

    def turn(self) -> None:
        """The end of a turn of the loop: tell what has changed, once."""
        if not self._dirty:
            return
        self._dirty = False
        status = self._status()
        if status == self._told:
            return
        self._told = status
        if self._stopping:
            self._notifier.tell(STATUS=status, EXTEND_TIMEOUT_USEC=self._patience())
        else:
            self._notifier.tell(STATUS=status)

    def _pet(self, _token: int) -> None:
        self._notifier.tell(WATCHDOG=1)
        self._timers.arm(self._pet, 0, time.monotonic() + self._half)

    def _patience(self) -> int:
        """How long the stop may legitimately still take, in microseconds."""
        jobs = self._supervisor.jobs.values()
        longest = max((job.spec.kill_timeout for job in jobs if job.alive), default=0.0)
        return int((longest + STOP_SLACK) * 1_000_000)

    def _status(self) -> str:
        parts = [f"{count} {state.value}" for state, count in self._counts.items() if count]
        text = f"{len(self._supervisor.jobs)} jobs: {', '.join(parts) or 'none'}"
        waited = self._waited_for()
        if waited:
            text += f"; waiting for {waited}"
        return text

    def _waited_for(self) -> str:
        if self._stopping:
            names = [*self._moving[State.STOPPING], *self._moving[State.KILLING]]
        else:
            names = list(self._moving[State.STARTING])
        shown = [_clean(name) for name in names[:SHOWN_NAMES]]
        more = len(names) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more else "")


def watchdog_seconds(environ: Mapping[str, str], pid: int) -> float:
    """How often the manager wants to hear from process `pid`; 0 for never. sd_watchdog_enabled(3)."""
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return 0.0
    usec = environ.get("WATCHDOG_USEC", "")
    return int(usec) / 1_000_000 if usec.isascii() and usec.isdecimal() else 0.0


def passed_sockets(environ: Mapping[str, str], pid: int) -> dict[str, int]:
    """The listening sockets that were handed over: {"control": fd, "event": fd}, each if there.

    By their names ($LISTEN_FDNAMES); where none is named so, the first is control, the second event.
    """
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(pid) or not (count.isascii() and count.isdecimal()):
        return {}
    fds = range(FIRST_PASSED_FD, FIRST_PASSED_FD + int(count))
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    named = {name: fd for name, fd in zip(names, fds, strict=False) if name in ("control", "event")}
    return named or dict(zip(("control", "event"), fds, strict=False))


def _clean(name: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in name)
