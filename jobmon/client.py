"""The blocking API: CommandPipe for commands, EventStream for events.

Needs no more of Python than it must, because every `jobmon status` is paid for by it: the
C part of `socket`, and nothing of the policy or the engine.
"""

from __future__ import annotations

import os
from time import monotonic

from jobmon.errors import (
    AddressError,
    BusyError,
    ConfigError,
    ConnectionLost,
    JobError,
    NoSuchJobError,
    NotPermittedError,
    RemoteProtocolError,
    WaitTimeout,
)
from jobmon.limits import SOCKET_PATH_BYTES
from jobmon.link import DEFAULT_PORTS, Link, bytes_of, place_of, readable
from jobmon.protocol import (
    EVENT_TERMINATE,
    Event07,
    EventMessage,
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

    from jobmon.errors import JobMonError
    from jobmon.link import HasFileno, Port
    from jobmon.protocol import JobStatus

# An answer that waits for nothing is there at once; a daemon that is silent so long is stuck.
PATIENCE = 30.0
# The daemon keeps a timeout itself, and says what is missing. One that does not is given up so much later.
GRACE = 0.5
# From the end of its connections to the end of the daemon's process it is milliseconds.
LAST_BREATH = 10.0


def parse_port(text: Port) -> Port:
    """A TCP port (an int, or digits) or the path of a UNIX socket.

    Raises:
        AddressError: it is neither.
    """
    port: Port = int(text) if isinstance(text, str) and text.isascii() and text.isdigit() else text
    if isinstance(port, int):
        if not 1 <= port <= 65535:
            raise AddressError(f"invalid port {port} (expected 1-65535)")
    elif not port or "\0" in port or "," in port:
        raise AddressError(f"invalid address {port!r} (expected a TCP port or the path of a socket)")
    elif len(_bytes_of(port)) > SOCKET_PATH_BYTES:
        raise AddressError(f"{port!r} is too long for a socket: {SOCKET_PATH_BYTES} bytes at most")
    return port


def _bytes_of(path: str) -> bytes:
    try:
        return bytes_of(path)
    except UnicodeEncodeError:
        raise AddressError(f"{path!r} is not the path of a socket: it is not text") from None


def ports_from(environ: Mapping[str, str]) -> tuple[Port, Port]:
    """The control port and the event port that JOBMON_PORT names, or the documented ones.

    Raises:
        AddressError: JOBMON_PORT is not CONTROL,EVENT.
    """
    text = environ.get("JOBMON_PORT", DEFAULT_PORTS)
    parts = text.split(",")
    try:
        if len(parts) != 2:
            raise AddressError("two are needed" if text else "it is empty (did the daemon fail to start?)")
        return parse_port(parts[0]), parse_port(parts[1])
    except AddressError as error:
        raise AddressError(
            f"JOBMON_PORT is {text!r}, but must be CONTROL,EVENT, each a TCP port or the path of a "
            f"socket, for example {DEFAULT_PORTS}: {error}"
        ) from None


class CommandPipe:
    """Commands for a daemon, over one connection.

    `port` is the daemon's control port, a TCP port or the path of a socket; None means what
    JOBMON_PORT says. It connects when it is used, and again when the daemon has been started anew since;
    a command that may have been done is never sent twice. Job names are any strings. Methods that name
    a job raise NoSuchJobError when there is none of that name, and JobError when the command was refused
    or failed; all raise DaemonUnreachable when nobody answers there, NotPermittedError when this user may
    not, and ConnectionLost when the daemon goes away meanwhile.

    Raises:
        AddressError: `port`, or JOBMON_PORT, is no address.
    """

    def __init__(self, port: Port | None = None) -> None:
        self._port = ports_from(os.environ)[0] if port is None else parse_port(port)
        self._where = place_of(self._port)
        self._link: Link | None = None
        self._destroyed = False
        self._last = 0
        # Of each request that is not answered: when it is given up, and whether a timeout was asked for.
        self._asked: dict[int, tuple[float | None, bool]] = {}
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
        self._asked.clear()
        self._replies.clear()
        self._link, self._destroyed = None, False
        self._be_connected()

    def destroy(self) -> None:
        """Close the connection."""
        self._destroyed = True
        if self._link is not None:
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
        until = None if timeout is None else monotonic() + timeout
        keeps_time = timeout is not None and timeout + GRACE < PATIENCE
        patience = timeout + GRACE if timeout is not None and keeps_time else PATIENCE
        number = self._submit(patience, keeps_time, "terminate", None, {"reason": reason})
        pid = self.collect(number).get("pid")
        if wait and not self._see_the_end(pid, until):
            raise WaitTimeout(f"timed out: the daemon (pid {pid}) is still shutting down", "timeout")

    def _see_the_end(self, pid: object, until: float | None) -> bool:
        """Whether the daemon is gone; its process is by a moment after its connections."""
        assert self._link is not None
        process = _pidfd_of(self._link.seen_from_here(pid))
        try:
            if not self._link.drain(until):
                return False
            if process is None:
                return True
            soon = monotonic() + LAST_BREATH
            cut_short = until is not None and until < soon
            return bool(readable(until if cut_short else soon, process)) or not cut_short
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
            raise unexpected_reply("status", error) from None

    def pid(self, job: str) -> int | None:
        """The pid of a job's process; None when there is none."""
        return self.get_pid(job)

    def list_jobs(self) -> dict[str, bool]:
        """All jobs, and whether a process of each lives."""
        jobs = self.request("list").get("jobs")
        if type(jobs) is not dict:
            raise unexpected_reply("list", KeyError("jobs"))
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
        return graph_of(self.request("graph"))

    def why(self, job: str) -> dict[str, Any]:
        """Why a job is as it is: "causes", the nearest first, and the last "events" of it."""
        try:
            (told,) = self.request("why", (job,))["jobs"]
            return dict(told)
        except (KeyError, TypeError, ValueError) as error:
            raise unexpected_reply("why", error) from None

    def info(self) -> dict[str, Any]:
        """What the daemon says of itself: pid, version, config, control, event, started."""
        return dict(self.request("info"))

    # ---- requests

    def fileno(self) -> int:
        """A descriptor for select and poll: readable when more of a reply, or the end, may have come. Look
        at `answered` before you wait for it, and `receive` then: a reply may have been read already."""
        return self._be_connected().fileno()

    def request(
        self, command: str, jobs: tuple[str, ...] | None = None, **arguments: Any
    ) -> Mapping[str, Any]:
        """Send a request as docs/protocol.md has it and return what its reply says.

        Raises:
            JobError: it says no. (ConfigError, when that is what is wrong.)
            WaitTimeout: the daemon has not kept the `timeout` that was asked for.
        """
        return self.collect(self.submit(command, jobs, **arguments))

    def submit(self, command: str, jobs: tuple[str, ...] | None = None, **arguments: Any) -> int:
        """Send a request and do not wait for its reply: `collect` the number that this returns."""
        timed = arguments.get("timeout") is not None
        return self._submit(patience_for(command, arguments), timed, command, jobs, arguments)

    def deadline(self, number: int) -> float | None:
        """When an earlier request is given up if it is not answered, by time.monotonic(); None for never."""
        return self._asked[number][0] if number in self._asked else None

    def receive(self) -> None:
        """Take the replies that have arrived, without waiting. Then look at `answered` before you wait."""
        if self._link is None:
            return
        self._link.read()
        for message in self._link.messages:
            if self._asked.pop(message.id, None) is not None:  # else it answers what was given up
                self._replies[message.id] = message
        self._link.messages.clear()

    def answered(self, number: int) -> bool:
        """Whether `collect` need not wait: the reply to an earlier request was read, or can come no more."""
        ended = self._link is None or self._link.end is not None
        return ended or number in self._replies or number not in self._asked

    def refused(self, number: int) -> bool:
        """Whether `collect` would raise at once: the reply has come and says no, or can come no more."""
        return self.answered(number) and not (number in self._replies and self._replies[number].ok)

    def await_reply(
        self, *numbers: int, until: float | None = None, beside: tuple[HasFileno | int, ...] = ()
    ) -> bool:
        """Wait until one of these requests is answered, one of `beside` is readable, or time.monotonic()
        has reached `until`. Whether one is answered."""
        self.receive()
        while not any(map(self.answered, numbers)):
            found = readable(until, self, *beside)
            if not found or found != [self.fileno()]:
                return False
            self.receive()
        return True

    def ask_beside(
        self, number: int, command: str, jobs: tuple[str, ...] | None = None
    ) -> Mapping[str, Any] | None:
        """Ask something while an earlier request waits for its reply: the answer; None when the earlier one
        was answered first.

        Raises:
            ConnectionLost, WaitTimeout: as `collect` would of the one whose time is over first.
        """
        question = self.submit(command, jobs)
        both = self.deadline(number), self.deadline(question)
        until = min(time for time in both if time is not None)
        if not self.await_reply(number, question, until=until):
            raise self._give_up(number if until == both[0] else question)
        if self.answered(number):
            self._asked.pop(question, None)
            self._replies.pop(question, None)
            return None
        return self.collect(question)

    def catch_up(self, number: int) -> bool:
        """Whether an earlier request is answered by now: what the daemon could say at once it has said when
        this returns. A reply leaves after the turn in which it was decided, and each question takes a turn.
        """
        return self.ask_beside(number, "info") is None or self.ask_beside(number, "info") is None

    def collect(self, number: int, patience: float | None = None) -> Mapping[str, Any]:
        """What the reply to an earlier request says; replies may be collected in any order. It is given up
        after `patience` seconds, or at its own deadline.

        Raises:
            JobError: it says no.
            ConnectionLost: it does not come.
        """
        until = self.deadline(number)
        if patience is not None:
            soon = monotonic() + patience
            until = soon if until is None else min(until, soon)
        if not self.await_reply(number, until=until):
            error = self._give_up(number)
            del self._asked[number]
            raise error
        reply = self._replies.pop(number, None)
        if reply is None:
            raise self._lost()
        if not reply.ok:
            raise refusal(reply.rest)
        return reply.rest

    def _submit(
        self,
        patience: float | None,
        timed: bool,
        command: str,
        jobs: tuple[str, ...] | None,
        arguments: Mapping[str, Any],
    ) -> int:
        until = None if patience is None else monotonic() + patience
        self._last += 1
        try:
            self._send(Request(self._last, command, jobs, **arguments), until)
        except TimeoutError:
            raise _late(self._where, timed) from None
        self._asked[self._last] = until, timed
        return self._last

    def _send(self, request: Request, until: float | None) -> None:
        """Send it over the connection that there is, or, if that has ended before all of it was taken, over
        a new one: what the daemon has not got whole it cannot have done."""
        if self._destroyed:
            raise self._lost()
        if self._link is not None:
            self.receive()
            if self._link.end is None and self._link.send(request, until):
                return
            self.receive()
        self._connect(until)
        assert self._link is not None
        self._link.send(request, until)  # one who has hung up already may have said why: reading tells

    def _be_connected(self) -> Link:
        try:
            if self._link is None:
                self._connect()
        except TimeoutError:
            raise _late(self._where, timed=False) from None
        assert self._link is not None
        return self._link

    def _connect(self, until: float | None = None) -> None:
        """Connect anew; what was asked before can be answered no more."""
        self._asked.clear()
        if self._link is not None:
            self._link.close()
        self._link = Link(self._port, (ReplyMessage,), monotonic() + PATIENCE if until is None else until)

    def _give_up(self, number: int) -> JobMonError:
        """The error of a request whose time is over. A daemon that owes what it can say at once is lost."""
        _, timed = self._asked[number]
        if not timed and self._link is not None:
            self._link.close()
        return _late(self._where, timed)

    def _lost(self) -> JobMonError:
        end = None if self._link is None else self._link.end
        return end or ConnectionLost(f"the connection to {self._where} is closed")

    def _command(self, command: str, jobs: tuple[str, ...], **arguments: Any) -> int:
        if not jobs:
            raise TypeError(f"{command} needs the name of a job")
        token = self.request(command, jobs, **arguments).get("token", 0)
        return token if isinstance(token, int) else 0


def patience_for(command: str, arguments: Mapping[str, Any]) -> float | None:
    """How many seconds an answer may take before the daemon counts as stuck; None for ever."""
    timeout: float | None = arguments.get("timeout")
    if timeout is not None:
        return timeout + GRACE
    waits = command == "wait" or (command in ("start", "stop", "restart") and arguments.get("wait", True))
    waits = waits or (command == "reload" and arguments.get("restart", False))
    return None if waits else PATIENCE


def _late(where: str, timed: bool) -> JobMonError:
    """The error of what has not come in time."""
    text = f"the daemon at {where} does not answer"
    return WaitTimeout(f"timed out: {text}", "timeout") if timed else ConnectionLost(text)


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
        raise RemoteProtocolError("unexpected results in a reply from the daemon") from None
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


def graph_of(reply: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The jobs of a reply to graph."""
    jobs = reply.get("jobs")
    if type(jobs) is not dict or not all(type(job) is dict for job in jobs.values()):
        raise unexpected_reply("graph", KeyError("jobs"))
    return jobs


def ends_of(reply: Mapping[str, Any]) -> dict[str, int | str | None]:
    """The jobs of a reply to wait, each with how its run ended, if that was asked for."""
    try:
        return {str(one["job"]): one.get("exit") for one in reply["results"] if one["ok"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise unexpected_reply("wait", error) from None


def unexpected_reply(command: str, error: Exception) -> RemoteProtocolError:
    """Return the exception for a reply to `command` that could not be read because of `error`."""
    what = f"missing {error}" if isinstance(error, KeyError) else str(error)
    return RemoteProtocolError(f"unexpected reply from the daemon to `{command}`: {what}")


def _pidfd_of(pid: object) -> int | None:
    """A pidfd, where there is such a process in our PID namespace and the kernel lets us."""
    if not isinstance(pid, int) or pid <= 0:
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


class EventStream:
    """The events of a daemon as they come. Iterates until the daemon ends, closes as a context.

    `port` is the daemon's event port; None means what JOBMON_PORT says. Events are those of
    JobMon 0.7, `Event07`. With `rich`, or with `since` or `jobs`, they are `EventMessage`s of
    all jobs or of `jobs`: after the event number `since` if that is given, else from now on;
    then `snapshot` says how things stood before the first. `timeout` is how many seconds it may take to
    connect and to subscribe; without `wait` the snapshot comes later, when `pending_event` finds it.

    Raises:
        DaemonUnreachable, NotPermittedError, AddressError: as CommandPipe.
        WaitTimeout: the daemon has not answered within `timeout`.
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
        timeout: float | None = None,
        wait: bool = True,
    ) -> None:
        address = ports_from(os.environ)[1] if port is None else parse_port(port)
        self._subscribed = rich or since is not None or jobs is not None
        until = monotonic() + (PATIENCE if timeout is None else timeout)
        try:
            self._link = Link(address, (Event07, EventMessage, Snapshot), until, exact=True)
            if self._subscribed:
                self._subscribe(Subscribe(since, jobs), until, wait=wait)
        except TimeoutError:
            raise _late(place_of(address), timed=timeout is not None) from None

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
        while True:
            self._link.wait(None)
            event = self.pending_event()
            if event is not None:
                return event

    def pending_event(self) -> Event07 | EventMessage | None:
        """The next event, or None if it has not come: nothing is waited for."""
        if not self._link.messages:
            self._link.read()
            if not self._link.messages and self._link.end is None:
                return None
        message = self._link.next()
        if isinstance(message, Snapshot):
            self.snapshot = message
            return None
        if self._subscribed and self.snapshot is None:
            return None  # an event of JobMon 0.7, from before the daemon has read the wish
        event: Event07 | EventMessage = message
        return event

    def fileno(self) -> int:
        """A descriptor for select and poll: readable when an event, a part of one, or the end has come."""
        return self._link.fileno()

    def destroy(self) -> None:
        """Close the connection."""
        self._link.close()

    def _subscribe(self, wish: Subscribe, until: float, *, wait: bool) -> None:
        try:
            self._link.send(wish, until)
            while wait and self.snapshot is None:
                if not self._link.wait(until):
                    raise TimeoutError
                self.pending_event()
        except BaseException:
            self.destroy()
            raise


def ends(event: Event07 | EventMessage) -> bool:
    """Whether this is the last event of all: the daemon ends."""
    if isinstance(event, Event07):
        return event.event_code == EVENT_TERMINATE
    return event.event == "terminated"
