"""The blocking API: CommandPipe for commands, EventStream for events.

Needs no more of Python than it must, because every `jobmon status` is paid for by it: the C
module `_socket` instead of `socket`, and nothing of the policy or the engine.
"""

from __future__ import annotations

import _socket
import os
import sys
from time import monotonic

from jobmon.errors import (
    AddressError,
    BusyError,
    ConfigError,
    ConnectionLost,
    DaemonUnreachable,
    JobError,
    NoSuchJobError,
    NotPermittedError,
    RemoteProtocolError,
    WaitTimeout,
)
from jobmon.protocol import (
    CLIENT,
    ERR_BUSY,
    ERR_NOT_PERMITTED,
    EVENT_TERMINATE,
    Broken,
    Connection,
    ErrorMessage,
    Event07,
    EventMessage,
    Failure,
    ReplyMessage,
    Request,
    Snapshot,
    Subscribe,
    job_status,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType
    from typing import Any, Self

    from jobmon.protocol import JobStatus, Message

    Port = int | str

DEFAULT_PORTS = "6666,6667"
# An answer that waits for nothing is there at once; a daemon that is silent so long is stuck.
PATIENCE = 30.0
# From the end of its connections to the end of the daemon's process it is milliseconds.
LAST_BREATH = 10.0
_READ_SIZE = 1 << 16
_SOCKET_PATH_BYTES = 107  # sun_path is 108 bytes with its final NUL, unix(7)


def parse_port(text: Port) -> Port:
    """A TCP port (an int, or digits) or the path of a UNIX socket.

    Raises:
        AddressError: it is neither.
    """
    port: Port = int(text) if isinstance(text, str) and text.isascii() and text.isdigit() else text
    if isinstance(port, int):
        if not 1 <= port <= 65535:
            raise AddressError(f"{port} is no TCP port: those are 1 to 65535")
    elif not port or "\0" in port or "," in port:
        raise AddressError(f"{port!r} is neither a TCP port nor the path of a socket")
    elif len(os.fsencode(port)) > _SOCKET_PATH_BYTES:
        raise AddressError(f"{port!r} is too long for a socket: {_SOCKET_PATH_BYTES} bytes at most")
    return port


def ports_from(environ: Mapping[str, str]) -> tuple[Port, Port]:
    """The control port and the event port that JOBMON_PORT names, or the documented ones.

    Raises:
        AddressError: JOBMON_PORT is not CONTROL,EVENT.
    """
    text = environ.get("JOBMON_PORT", DEFAULT_PORTS)
    parts = text.split(",")
    try:
        if len(parts) != 2:
            raise AddressError("two are needed" if text else "it is empty; did the daemon not start?")
        return parse_port(parts[0]), parse_port(parts[1])
    except AddressError as error:
        raise AddressError(
            f"JOBMON_PORT is {text!r}, but should be CONTROL,EVENT, each a TCP port or the path of a "
            f"socket, for instance {DEFAULT_PORTS}: {error}"
        ) from None


class _Link:
    """A connected socket that speaks messages."""

    def __init__(self, port: Port, *, exact: bool = False) -> None:
        self._where = port if isinstance(port, str) else f"127.0.0.1:{port}"
        self._exact = exact
        self._connection = Connection(CLIENT)
        self._waiting: list[Any] = []
        self._patience: float | None = None
        self._socket = _connect(port, self._where)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def send(self, message: Message) -> None:
        """Send all of it. A peer that has hung up may have said why, so reading tells."""
        data = self._connection.send(message)
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass
        except OSError as error:
            raise ConnectionLost(f"the connection to {self._where} is closed") from error

    def receive(self, patience: float | None = None) -> Message:
        """The next message; `patience` is how many seconds of silence are borne.

        Raises:
            ConnectionLost: it ended, or was silent for too long.
            NotPermittedError, BusyError: the daemon turned us away.
            RemoteProtocolError: what came is not JobMon's protocol.
        """
        while not self._waiting:
            self._waiting = self._connection.receive(self._read(patience))
        message: Message | Broken = self._waiting.pop(0)
        if isinstance(message, Failure) and message.reason == ERR_NOT_PERMITTED:
            raise NotPermittedError(f"the daemon at {self._where} does not serve this user", "not-permitted")
        if isinstance(message, Failure) and message.reason == ERR_BUSY:
            raise BusyError(f"the daemon at {self._where} has too many connections: try again", "busy")
        if isinstance(message, Broken):
            raise RemoteProtocolError(f"what answers at {self._where} is no JobMon daemon: {message.message}")
        if isinstance(message, ErrorMessage):
            raise RemoteProtocolError(f"the daemon at {self._where} says: {message.message}")
        return message

    def drain(self, until: float | None = None) -> bool:
        """Wait for the end of the connection, whatever comes before it; False when time.monotonic() has
        reached `until` and it has not come."""
        try:
            while until is None or _wait_readable(self.fileno(), until - monotonic()):
                self._read(None)
        except ConnectionLost:
            return True
        return False

    def seen_from_here(self, pid: object) -> object:
        """The daemon's pid in our PID namespace, where it may be another than it has in its own: that of
        who listens on the UNIX socket, unless that is a manager who has handed it over (unix(7)); 0 for
        none."""
        if self._socket.family != _socket.AF_UNIX:
            return pid
        credentials = self._socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
        listener = int.from_bytes(credentials[:4], sys.byteorder)
        try:
            with open(f"/proc/{listener}/status", encoding="utf-8", errors="replace") as file:
                inner = [line.split()[-1] for line in file if line.startswith("NSpid:")]
        except OSError:
            inner = []
        return listener if listener == 0 or inner == [str(pid)] else pid

    def _read(self, patience: float | None) -> bytes:
        try:
            if patience != self._patience:
                self._socket.settimeout(patience)
                self._patience = patience
            data = self._socket.recv(self._connection.wanted if self._exact else _READ_SIZE)
        except TimeoutError:
            self.close()  # an answer that came after all would be taken for that of the next request
            raise ConnectionLost(f"the daemon at {self._where} does not answer") from None
        except OSError as error:
            raise ConnectionLost(f"the connection to {self._where} broke: {error.strerror}") from None
        if not data:
            raise ConnectionLost(f"the daemon at {self._where} closed the connection")
        return data


def _connect(port: Port, where: str) -> _socket.socket:
    family = _socket.AF_UNIX if isinstance(port, str) else _socket.AF_INET
    connected = _socket.socket(family, _socket.SOCK_STREAM)
    try:
        connected.connect(port if isinstance(port, str) else ("127.0.0.1", port))
        if family == _socket.AF_INET:
            connected.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    except OSError as error:
        connected.close()
        raise _unreachable(where, error) from None
    except BaseException:
        connected.close()
        raise
    return connected


def _unreachable(where: str, error: OSError) -> DaemonUnreachable | NotPermittedError:
    if isinstance(error, PermissionError):
        return NotPermittedError(f"this user may not connect to {where}", "not-permitted")
    port = os.environ.get("JOBMON_PORT")
    told = "is not set, which means " + DEFAULT_PORTS if port is None else f"is {port}"
    return DaemonUnreachable(f"no daemon answers at {where} ({error.strerror}); JOBMON_PORT {told}")


class CommandPipe:
    """Commands for a daemon, over one connection.

    `port` is the daemon's control port, a TCP port or the path of a socket; None means what
    JOBMON_PORT says. Job names are any strings. Methods that name a job raise NoSuchJobError
    when there is none of that name, and JobError when the command was refused or failed; all
    raise ConnectionLost when the daemon goes away meanwhile.

    Raises:
        DaemonUnreachable: nobody answers there.
        NotPermittedError: this user may not.
        AddressError: `port`, or JOBMON_PORT, is no address.
    """

    def __init__(self, port: Port | None = None) -> None:
        self._port = ports_from(os.environ)[0] if port is None else parse_port(port)
        self._link = _Link(self._port)
        self._last = 0
        self._replies: dict[int, ReplyMessage] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.destroy()

    def reconnect(self) -> None:
        """Leave this connection and make another to the same port."""
        self.destroy()
        self._replies.clear()
        self._link = _Link(self._port)

    def destroy(self) -> None:
        """Close the connection."""
        self._link.close()

    # ---- as in JobMon 0.7

    def start_job(self, job_name: str) -> None:
        """Start a job; returns when it is launched."""
        self.start(job_name, wait=False)

    def stop_job(self, job_name: str) -> None:
        """Stop a job; returns when it has been told to stop."""
        self.stop(job_name, wait=False)

    def is_running(self, job_name: str) -> bool:
        """Whether a process of the job lives."""
        return self.status(job_name)[0].alive

    def get_pid(self, job_name: str) -> int | None:
        """The pid of the job's process; None when there is none."""
        return self.status(job_name)[0].pid

    def get_jobs(self) -> dict[str, bool]:
        """All jobs, and whether a process of each lives."""
        return self.list_jobs()

    def terminate(self, *, wait: bool = False, timeout: float | None = None, reason: str = "") -> None:
        """Stop all jobs and end the daemon; returns at once, or with `wait` when it is gone.

        Raises:
            WaitTimeout: it was not within `timeout` seconds; it goes on ending.
        """
        began = monotonic()
        pid = self.request("terminate", reason=reason).get("pid")
        if wait and not self._see_the_end(pid, None if timeout is None else began + timeout):
            raise WaitTimeout(f"timed out: the daemon, pid {pid}, goes on ending", "timeout")

    def _see_the_end(self, pid: object, until: float | None) -> bool:
        """Whether the daemon is gone; its process is by a moment after its connections."""
        process = _pidfd_of(self._link.seen_from_here(pid))
        try:
            if not self._link.drain(until):
                return False
            if process is None:
                return True
            left = LAST_BREATH if until is None else min(until - monotonic(), LAST_BREATH)
            return _wait_readable(process, left) or left == LAST_BREATH
        finally:
            if process is not None:
                os.close(process)

    # ---- the verbs of the command line

    def start(
        self,
        *jobs: str,
        wait: bool = True,
        timeout: float | None = None,
        reason: str = "",
        condition: str = "",
        duration: float = 0.0,
    ) -> int:
        """Start jobs and wait until all are ready, or until `condition` holds for each (see `wait`).
        Returns the number of the latest event before.

        Raises:
            WaitTimeout: they were not within `timeout` seconds; they are not stopped for it.
        """
        return self._command(
            "start", jobs, wait=wait, condition=condition, duration=duration, timeout=timeout, reason=reason
        )

    def stop(
        self,
        *jobs: str,
        now: bool = False,
        wait: bool = True,
        timeout: float | None = None,
        reason: str = "",
        condition: str = "",
        duration: float = 0.0,
    ) -> int:
        """Stop jobs, and first what requires them, and wait until nothing of them is left (or for
        `condition`); `now`: by SIGKILL, without patience."""
        return self._command(
            "stop",
            jobs,
            now=now,
            wait=wait,
            condition=condition,
            duration=duration,
            timeout=timeout,
            reason=reason,
        )

    def restart(
        self,
        *jobs: str,
        wait: bool = True,
        timeout: float | None = None,
        reason: str = "",
        condition: str = "",
        duration: float = 0.0,
    ) -> int:
        """Give jobs a new run, and wait until all are ready (or for `condition`)."""
        return self._command(
            "restart", jobs, wait=wait, condition=condition, duration=duration, timeout=timeout, reason=reason
        )

    def status(self, *jobs: str, tree: bool = False) -> list[JobStatus]:
        """What is known of these jobs, or of all; with `tree`, also what each of their processes runs."""
        return self.overview(*jobs, tree=tree)[0]

    def overview(self, *jobs: str, tree: bool = False) -> tuple[list[JobStatus], list[int]]:
        """`status`, and the pids of those who live below the daemon and are nobody's (of all jobs only)."""
        reply = self.request("status", jobs=jobs or None, tree=tree)
        try:
            return [job_status(body) for body in reply["jobs"]], [int(pid) for pid in reply.get("strays", ())]
        except (KeyError, TypeError, ValueError) as error:
            raise RemoteProtocolError(f"a reply to status makes no sense: {error!r}") from None

    def pid(self, job: str) -> int | None:
        """The pid of a job's process; None when there is none."""
        return self.get_pid(job)

    def list_jobs(self) -> dict[str, bool]:
        """All jobs, and whether a process of each lives."""
        jobs = self.request("list").get("jobs")
        if type(jobs) is not dict:
            raise RemoteProtocolError('a reply to list has no "jobs"')
        return jobs

    def wait(
        self,
        *jobs: str,
        condition: str = "changed",
        duration: float = 0.0,
        any: bool = False,  # noqa: A002 - the verb's word
        since: int | None = None,
        timeout: float | None = None,
    ) -> dict[str, int | str | None]:
        """Wait until a condition holds for all of these jobs at the same moment, or for `any` of them.

        The conditions are those of docs/protocol.md, `duration` is the seconds of "stable". Changes
        count from now, or from the event number `since`. Returns the jobs that it holds for; with
        "exited" each with how its run ended: an exit code, the name of a signal, or "unknown".

        Raises:
            WaitTimeout: it did not within `timeout` seconds.
            JobError: it cannot any more.
        """
        if not jobs:
            raise TypeError("wait needs the name of a job")
        details = {"any": any, "since": since, "timeout": timeout}
        return ends_of(self.request("wait", jobs, condition=condition, duration=duration, **details))

    def signal(
        self,
        signal: str | int,
        *jobs: str,
        all: bool = False,  # noqa: A002 - the verb's word
        reason: str = "",
    ) -> None:
        """Send a signal, by name or number, to the first process of jobs, or to `all` of theirs."""
        self._command("signal", jobs, signal=str(signal), all=all, reason=reason)

    def reload(self, *, dry_run: bool = False, restart: bool = False) -> dict[str, Any]:
        """Let the daemon read its configuration again and go by it; returns the "plan" (docs/protocol.md).

        With `dry_run` it only says what would change; with `restart` what is stale gets a new run, and this
        returns when that is ready.

        Raises:
            ConfigError: something is wrong with it, and nothing was changed. `problems` are lines.
        """
        return dict(self.request("reload", dry_run=dry_run, restart=restart))

    def graph(self) -> dict[str, dict[str, Any]]:
        """Each job with "state", "ready", and the jobs that it "requires" or comes "after"."""
        jobs = self.request("graph").get("jobs")
        if type(jobs) is not dict or not all(type(job) is dict for job in jobs.values()):
            raise RemoteProtocolError('a reply to graph has no "jobs"')
        return jobs

    def why(self, job: str) -> dict[str, Any]:
        """Why a job is as it is: "causes", the nearest first, and the last "events" of it."""
        try:
            (told,) = self.request("why", (job,))["jobs"]
            return dict(told)
        except (KeyError, TypeError, ValueError):
            raise RemoteProtocolError("a reply to why makes no sense") from None

    def info(self) -> dict[str, Any]:
        """What the daemon says of itself: pid, version, config, control, event, started."""
        return dict(self.request("info"))

    # ---- requests

    def fileno(self) -> int:
        """A descriptor for select and poll: readable when a reply, or the end, may have come."""
        return self._link.fileno()

    def answered(self, number: int) -> bool:
        """Whether the reply to an earlier request has come."""
        return number in self._replies

    def refused(self, number: int) -> bool:
        """Whether it has come and says no."""
        return number in self._replies and not self._replies[number].ok

    def receive(self, patience: float | None = None) -> None:
        """Wait for the next reply, and keep it for `collect`."""
        message = self._link.receive(patience)
        if not isinstance(message, ReplyMessage):
            raise RemoteProtocolError(f"the daemon sent a {type(message).__name__} instead of a reply")
        self._replies[message.id] = message

    def request(
        self, command: str, jobs: tuple[str, ...] | None = None, **arguments: Any
    ) -> Mapping[str, Any]:
        """Send a request as docs/protocol.md has it and return what its reply says.

        Raises:
            JobError: it says no. (ConfigError, when that is what is wrong.)
        """
        return self.collect(self.submit(command, jobs, **arguments), patience_for(command, arguments))

    def submit(self, command: str, jobs: tuple[str, ...] | None = None, **arguments: Any) -> int:
        """Send a request and do not wait for its reply: `collect` the number that this returns."""
        self._last += 1
        self._link.send(Request(self._last, command, jobs, **arguments))
        return self._last

    def collect(self, number: int, patience: float | None = None) -> Mapping[str, Any]:
        """What the reply to an earlier request says; replies may be collected in any order.

        Raises:
            JobError: it says no.
        """
        while number not in self._replies:
            self.receive(patience)
        reply = self._replies.pop(number)
        if not reply.ok:
            raise refusal(reply.rest)
        return reply.rest

    def _command(self, command: str, jobs: tuple[str, ...], **arguments: Any) -> int:
        if not jobs:
            raise TypeError(f"{command} needs the name of a job")
        token = self.request(command, jobs, **arguments).get("token", 0)
        return token if isinstance(token, int) else 0


def patience_for(command: str, arguments: Mapping[str, Any]) -> float | None:
    """How many seconds an answer may take before the daemon counts as stuck; None for ever."""
    waits = command == "wait" or (command in ("start", "stop", "restart") and arguments.get("wait", True))
    waits = waits or (command == "reload" and arguments.get("restart", False))
    if not waits:
        return PATIENCE
    timeout = arguments.get("timeout")
    return None if timeout is None else timeout + PATIENCE


_ERRORS: dict[str, type[JobError]] = {
    "no-such-job": NoSuchJobError,
    "busy": BusyError,
    "not-permitted": NotPermittedError,
    "timeout": WaitTimeout,
}


def refusal(rest: Mapping[str, Any]) -> JobError | ConfigError:
    """The exception that a reply which is not ok stands for."""
    error = rest["error"]
    code, message, job = error["code"], error["message"], error.get("job")
    if code == "invalid":
        return ConfigError(tuple(map(str, rest.get("problems") or (message,))))
    try:
        results = tuple(_result(one) for one in rest.get("results", ()))
        stderr, first = lists_of(rest, "stderr"), lists_of(rest, "first")
    except (KeyError, TypeError):
        raise RemoteProtocolError("the results of a reply make no sense") from None
    if not results and isinstance(job, str):
        results = ((job, code, message),)
    told = "; ".join(f"{job}: {what}" for job, bad, what in results if bad)
    refused = _ERRORS.get(code, JobError)(told or message, code, results)
    refused.stderr, refused.first, refused.reply = stderr, first, rest
    return refused


def lists_of(reply: Mapping[str, Any], key: str) -> dict[str, tuple[str, ...]]:
    """What the results of a reply say under `key`, by job: "first" or "stderr", where they say it."""
    found = {str(one["job"]): one.get(key) for one in reply.get("results", ())}
    return {job: tuple(map(str, value)) for job, value in found.items() if value}


def _result(one: Mapping[str, Any]) -> tuple[str, str, str]:
    if one["ok"]:
        return str(one["job"]), "", ""
    return str(one["job"]), str(one["error"]["code"]), str(one["error"]["message"])


def ends_of(reply: Mapping[str, Any]) -> dict[str, int | str | None]:
    """The jobs of a reply to wait, each with how its run ended, if that was asked for."""
    try:
        return {str(one["job"]): one.get("exit") for one in reply["results"] if one["ok"]}
    except (KeyError, TypeError, AttributeError):
        raise RemoteProtocolError("a reply to wait makes no sense") from None


def _pidfd_of(pid: object) -> int | None:
    """A pidfd, where there is such a process in our PID namespace and the kernel lets us."""
    if not isinstance(pid, int) or pid <= 0:
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _wait_readable(fd: int, seconds: float) -> bool:
    from select import POLLIN, poll

    poller = poll()
    poller.register(fd, POLLIN)
    return bool(poller.poll(max(0.0, seconds * 1000)))


class EventStream:
    """The events of a daemon as they come. Iterates until the daemon ends, closes as a context.

    `port` is the daemon's event port; None means what JOBMON_PORT says. Events are those of
    JobMon 0.7, `Event07`. With `rich`, or with `since` or `jobs`, they are `EventMessage`s of
    all jobs or of `jobs`: after the event number `since` if that is given, else from now on;
    then `snapshot` says how things stood before the first.

    Raises:
        DaemonUnreachable, NotPermittedError, AddressError: as CommandPipe.
        ConnectionLost: the daemon went away (also from next_event and while iterating).
    """

    snapshot: Snapshot | None = None

    def __init__(
        self,
        port: Port | None = None,
        *,
        rich: bool = False,
        since: int | None = None,
        jobs: tuple[str, ...] | None = None,
    ) -> None:
        address = ports_from(os.environ)[1] if port is None else parse_port(port)
        self._link = _Link(address, exact=True)
        if rich or since is not None or jobs is not None:
            try:
                self._subscribe(Subscribe(since, jobs))
            except BaseException:
                self.destroy()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.destroy()

    def __iter__(self) -> Iterator[Event07 | EventMessage]:
        while True:
            event = self.next_event()
            yield event
            if ends(event):
                return

    def next_event(self) -> Event07 | EventMessage:
        """Wait for the next event."""
        message = self._link.receive()
        if not isinstance(message, (Event07, EventMessage)):
            raise RemoteProtocolError(f"the daemon sent a {type(message).__name__} instead of an event")
        return message

    def fileno(self) -> int:
        """A descriptor for select and poll: readable when next_event need not wait (long)."""
        return self._link.fileno()

    def destroy(self) -> None:
        """Close the connection."""
        self._link.close()

    def _subscribe(self, wish: Subscribe) -> None:
        self._link.send(wish)
        message = self._link.receive(PATIENCE)
        while not isinstance(message, Snapshot):
            message = self._link.receive(PATIENCE)
        self.snapshot = message


def ends(event: Event07 | EventMessage) -> bool:
    """Whether this is the last event of all: the daemon ends."""
    if isinstance(event, Event07):
        return event.event_code == EVENT_TERMINATE
    return event.event == "terminated"
