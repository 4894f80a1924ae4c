"""The clients of the daemon: one Session per connection, from accept to close.

Translates between messages and the supervisor's methods; decides nothing about jobs. A session
that misbehaves, or whose reader is too slow, ends alone.
"""

from __future__ import annotations

import resource
import time

from jobmon import protocol, waits
from jobmon.errors import LocalProtocolError
from jobmon.events import LEAVING, State
from jobmon.lean import deque
from jobmon.linux import answers, logfile, reactor, signals
from jobmon.linux.children import NAMED
from jobmon.linux.sockets import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from jobmon.eventlog import Event
    from jobmon.events import JobResult, Reply
    from jobmon.linux.engine import Engine
    from jobmon.linux.peers import Access, Peer
    from jobmon.linux.sockets import Listener, Stream
    from jobmon.protocol import Message

FRAME_SECONDS = 15.0  # a client that starts a frame has this long to finish it
DRAIN_SECONDS = 15.0  # a reader that takes nothing for this long while output waits is dropped
ACCEPTS_PER_TURN = 64
RETRY_ACCEPT_SECONDS = 0.5
EVENT_BATCH_BYTES = 32_768
MIN_CONNECTIONS_PER_UID = 16
MAX_CONNECTIONS_PER_UID = 1024
RESERVED_FDS = 64  # for streams while spawning, the log, /proc, refusing politely
MAX_REASON = 1000  # characters: what is kept 10,000 times is to be short
MAX_UNANSWERED = 1000  # requests of one connection that wait: each costs memory, and a look at every change
MAX_TREE = 2000  # processes of which one request is told what they run: some tens of milliseconds

_CODES_07 = {"launched": 0, "died": 1, "restarting": 2, "terminated": 3}


class Ticket:
    """To whom an answer goes: the session and its request's id (None: a 0.7 command).

    `runs` are the first runs of jobs whose last words belong into the answer, `first` what a command
    stops before what it names, `rest` what else the answer is to say.
    """

    __slots__ = ("first", "id", "job", "rest", "runs", "session")

    def __init__(self, session: Session, request_id: int | None, job: str = "") -> None:
        self.session = session
        self.id = request_id
        self.job = job
        self.runs: dict[str, int] = {}
        self.first: dict[str, list[str]] = {}
        self.rest: Mapping[str, Any] = {}


class Sessions:
    """All connections, and the listeners that they come from."""

    def __init__(self, engine: Engine, access: Access, jobs: int) -> None:
        self.engine = engine
        self._access = access
        self.make_room(jobs)
        self._listeners: dict[Listener, str] = {}
        self._is_open = False
        self._sessions: dict[int, Session] = {}
        self._counts: dict[int, int] = {}
        self.listening: set[Session] = set()

    def __len__(self) -> int:
        return len(self._sessions)

    def listen(self, listener: Listener, role: str) -> None:
        """A listener to serve from `open` on: `role` is protocol.CONTROL or protocol.EVENTS."""
        self._listeners[listener] = role

    def make_room(self, jobs: int) -> None:
        """Let nobody have so many connections that there would be no descriptors for so many jobs."""
        room = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 2 * jobs - RESERVED_FDS
        self._per_uid = max(MIN_CONNECTIONS_PER_UID, min(MAX_CONNECTIONS_PER_UID, room // 2))

    def permit(self, access: Access) -> None:
        """Serve these from now on. Who is here and may be no longer is sent away, once he has his answer."""
        if access == self._access:
            return
        self._access = access
        for listener in self._listeners:
            try:
                listener.share(access.is_shared)
            except OSError as error:
                path, why = str(listener.address), error.strerror
                self.engine.log.write(logfile.ERROR, "cannot change the mode", path=path, error=why)
        self.engine.timers.arm(self._send_away, 0, time.monotonic())

    def open(self) -> None:
        """Serve those who connect; who came earlier has been waiting in the kernel's queue."""
        if not self._is_open:
            self._is_open = True
            for listener in self._listeners:
                self._open(listener)

    def reply(self, reply: Reply) -> None:
        """Hand the supervisor's answer to whoever asked."""
        ticket = reply.to
        if isinstance(ticket, Ticket):
            ticket.session.guard(lambda: ticket.session.answer(ticket, reply))

    def publish(self) -> None:
        """There are new events: bring everybody who listens up to date."""
        for session in list(self.listening):
            session.guard(session.push_events)

    def unsent(self) -> bool:
        """Whether any session still has something to send."""
        return any(session.busy for session in self._sessions.values())

    def stop_listening(self) -> None:
        """Close the listeners and remove their files."""
        for listener in self._listeners:
            self.engine.reactor.unregister(listener.fileno())
            listener.close()
        self._listeners.clear()

    def close(self) -> None:
        """Close everything."""
        self.stop_listening()
        for session in list(self._sessions.values()):
            session.close()

    def forget(self, session: Session, fd: int) -> None:
        """A session has ended."""
        del self._sessions[fd]
        self.listening.discard(session)
        uid = session.peer.uid
        self._counts[uid] -= 1
        if not self._counts[uid]:
            del self._counts[uid]

    # ---- accepting ------------------------------------------------------------------------

    def _open(self, listener: Listener) -> None:
        self.engine.reactor.register(
            listener.fileno(), lambda _events: self._accept(listener), reactor.ACCEPT
        )

    def _accept(self, listener: Listener) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            taken = listener.accept(_TURNED_AWAY)
            if taken is None:
                return
            if isinstance(taken, Refused):
                if not taken.dropped:
                    self._pause(listener)
                    return
                self.engine.log.write(logfile.WARNING, "no descriptor for a connection", errno=taken.errno)
            else:
                self._admit(listener, taken[0])

    def _pause(self, listener: Listener) -> None:
        def resume(_token: int) -> None:
            if not listener.closed:
                self._open(listener)

        self.engine.reactor.unregister(listener.fileno())
        self.engine.timers.arm(resume, 0, time.monotonic() + RETRY_ACCEPT_SECONDS)

    def _admit(self, listener: Listener, stream: Stream) -> None:
        peer = self.engine.peer_of(stream)
        why = self._objection(peer)
        if peer is None or why:
            uid, pid = (peer.uid, peer.pid) if peer is not None else (None, None)
            self.engine.log.write(logfile.WARNING, "refused a connection", why=why, uid=uid, pid=pid)
            stream.send(_TURNED_AWAY)
            stream.close()
            return
        self._counts[peer.uid] = self._counts.get(peer.uid, 0) + 1
        session = Session(self, stream, peer, self._listeners[listener])
        self._sessions[stream.fileno()] = session
        session.guard(session.begin)

    def _send_away(self, _token: int) -> None:
        for session in list(self._sessions.values()):
            if not self._access.permits(session.peer):
                session._drop("is not permitted any more")

    def _objection(self, peer: Peer | None) -> str:
        if peer is None:
            return "nobody knows whose it is"
        if not self._access.permits(peer):
            return "not permitted"
        if self._counts.get(peer.uid, 0) >= self._per_uid:
            return f"more than {self._per_uid} connections of this user"
        return ""


class Session:
    """One connection. What it sends is produced as its reader takes it."""

    __slots__ = (
        "_connection",
        "_cursor",
        "_ending",
        "_inbox",
        "_interest",
        "_jobs",
        "_late",
        "_rich",
        "_role",
        "_sent",
        "_sessions",
        "_stalled",
        "_stream",
        "peer",
        "tickets",
    )

    def __init__(self, sessions: Sessions, stream: Stream, peer: Peer, role: str) -> None:
        self._sessions = sessions
        self._stream = stream
        self._role = role
        self._connection = protocol.Connection(role)
        self._inbox: deque[Any] | None = None
        self._interest = reactor.READ
        self._cursor = sessions.engine.supervisor.log.last
        self._rich = False
        self._jobs: frozenset[str] | None = None
        self._ending = False
        self._sent = 0
        self._late = False  # whether the timer for an unfinished frame runs
        self._stalled = False  # whether the timer for unsent output runs
        self.peer = peer
        self.tickets: set[Ticket] = set()

    @property
    def busy(self) -> bool:
        """Whether output waits."""
        return self._stream.pending > 0

    def begin(self) -> None:
        """Wait for what the client says; on the event port, also tell it what happens."""
        self._sessions.engine.reactor.register(self._stream.fileno(), self._ready, reactor.COMMAND)
        if self._role == protocol.EVENTS:
            self._sessions.listening.add(self)

    def guard(self, work: Callable[[], None]) -> None:
        """Do something for this session; if it fails, the session ends and nobody else notices."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - this client's end is nobody else's
            self._sessions.engine.bug("a connection", error)
            self.close()

    def close(self) -> None:
        """End it: nobody waits here any more."""
        fd = self._stream.fileno()
        if fd < 0:
            return
        engine = self._sessions.engine
        engine.reactor.unregister(fd)
        engine.timers.disarm(self._frame_late)
        engine.timers.disarm(self._output_late)
        for ticket in self.tickets:
            engine.supervisor.drop(ticket)
        self.tickets.clear()
        self._sessions.forget(self, fd)
        self._stream.close()

    # ---- in -------------------------------------------------------------------------------

    def _ready(self, events: int) -> None:
        self.guard(lambda: self._serve(events))

    def _serve(self, events: int) -> None:
        if events & reactor.WRITE:
            self._stream.flush()
            self.push_events()
        if events & ~reactor.WRITE and not self._receive():
            return
        self._work()

    def _receive(self) -> bool:
        data = self._stream.receive()
        if data is None:
            return True
        if not data:
            self.close()
            return False
        if self._ending:
            return True
        messages = self._connection.receive(data)
        if messages:
            if self._inbox is None:
                self._inbox = deque(messages)
            else:
                self._inbox.extend(messages)
        self._mind_frame(anew=bool(messages))
        return True

    def _work(self) -> None:
        """Act on what came, as long as the answers are read."""
        inbox = self._inbox
        while inbox and not self._stream.full and not self._stream.closed:
            self._act(inbox.popleft())
        if not self._stream.closed:
            self._settle()

    def _act(self, message: Any) -> None:
        kind = type(message)
        if kind is protocol.Command07:
            self._command07(message)
        elif kind is protocol.Request:
            self._request(message)
        elif kind is protocol.Subscribe:
            self._subscribe(message)
        elif kind is protocol.BadRequest:
            self.send(message.answer())
        else:
            self._ending = True
            self._sessions.engine.log.write(
                logfile.INFO, "dropped a client", why=message.message, uid=self.peer.uid, pid=self.peer.pid
            )
            self._stream.send(protocol.encode(message.answer()))

    def _command07(self, message: protocol.Command07) -> None:
        supervisor = self._sessions.engine.supervisor
        name = message.job or ""
        command = message.command
        if command == protocol.CMD_STATUS:
            self.send(answers.status07(name, supervisor.jobs.get(name)))
        elif command == protocol.CMD_JOB_LIST:
            self.send(protocol.JobList({n: job.pid is not None for n, job in supervisor.jobs.items()}))
        elif command == protocol.CMD_QUIT:
            self._sessions.engine.terminate(self._by("terminate"))
        else:
            act = supervisor.start if command == protocol.CMD_START else supervisor.stop
            verb = "start" if command == protocol.CMD_START else "stop"
            act((name,), self._ticket(None, name), time.monotonic(), by=self._by(verb))

    def _request(self, request: protocol.Request) -> None:
        act = _VERBS.get(request.command)
        if act is None:
            self.send(protocol.failed(request.id, "unknown-command", f"this daemon cannot {request.command}"))
        elif len(self.tickets) >= MAX_UNANSWERED:
            why = f"{MAX_UNANSWERED} requests of this connection wait already"
            self.send(protocol.failed(request.id, "failed", why))
        else:
            act(self, request)

    def _start(self, request: protocol.Request) -> None:
        supervisor = self._sessions.engine.supervisor
        act = supervisor.start if request.command == "start" else supervisor.restart
        act(
            request.jobs or (),
            self._order_ticket(request),
            time.monotonic(),
            wait=request.wait,
            until=answers.until(request),
            timeout=request.timeout,
            by=self._by(request.command, request.reason),
        )

    def _stop(self, request: protocol.Request) -> None:
        self._sessions.engine.supervisor.stop(
            request.jobs or (),
            self._order_ticket(request),
            time.monotonic(),
            wait=request.wait,
            until=answers.until(request),
            timeout=request.timeout,
            at_once=request.now,
            by=self._by("stop", request.reason),
        )

    def _wait(self, request: protocol.Request) -> None:
        self._sessions.engine.supervisor.wait(
            request.jobs or (),
            self._ticket(request.id),
            time.monotonic(),
            until=answers.until(request) or ("changed", waits.changed),
            any_of=request.any,
            since=request.since,
            fresh=not request.acts,
            timeout=request.timeout,
        )

    def _signal(self, request: protocol.Request) -> None:
        try:
            name = signals.name_of(signals.parse(request.signal))
        except ValueError as error:
            self.send(protocol.failed(request.id, "bad-request", str(error)))
            return
        self._sessions.engine.supervisor.signal(
            request.jobs or (),
            name,
            self._ticket(request.id),
            time.monotonic(),
            every=request.all,
            by=self._by("signal", request.reason),
        )

    def _show(self, request: protocol.Request) -> None:
        supervisor = self._sessions.engine.supervisor
        names = supervisor.jobs if request.jobs is None else request.jobs
        for name in names:
            if name not in supervisor.jobs:
                self.send(protocol.failed(request.id, "no-such-job", "no such job", job=name))
                return
        room = MAX_TREE
        jobs = []
        for name in names:
            shown = self._shown(name)
            status = self._job_status(name, room if request.tree else shown)
            room -= len(status.tree or ())
            jobs.append(status.body())
        rest: dict[str, Any] = {"jobs": jobs, "token": supervisor.log.last}
        if request.jobs is None:
            rest["strays"] = self._sessions.engine.strays()
        self.send(protocol.ReplyMessage(request.id, True, rest))

    def _shown(self, name: str) -> int | None:
        """What does not die of SIGKILL is named without being asked for."""
        engine = self._sessions.engine
        return NAMED if engine.supervisor.jobs[name].state is State.KILLING else None

    def _list(self, request: protocol.Request) -> None:
        jobs = self._sessions.engine.supervisor.jobs
        rest = {"jobs": {name: job.pid is not None for name, job in jobs.items()}}
        self.send(protocol.ReplyMessage(request.id, True, rest))

    def _terminate(self, request: protocol.Request) -> None:
        engine = self._sessions.engine
        self.send(protocol.ReplyMessage(request.id, True, {"pid": engine.pid}))
        engine.terminate(self._by("terminate", request.reason))

    def _reload(self, request: protocol.Request) -> None:
        ticket, by = self._ticket(request.id), self._by("reload")
        restart, dry_run = request.restart, request.dry_run
        outcome = self._sessions.engine.reload(ticket, by, restart=restart, dry_run=dry_run)
        if outcome.code or dry_run:
            self.tickets.discard(ticket)
            self.send(answers.reload(request.id, outcome.code, outcome.problems, outcome.body))
        else:
            ticket.rest = outcome.body

    def _info(self, request: protocol.Request) -> None:
        self.send(protocol.ReplyMessage(request.id, True, self._sessions.engine.info()))

    def _graph(self, request: protocol.Request) -> None:
        supervisor = self._sessions.engine.supervisor
        rest = {"jobs": answers.graph(supervisor), "token": supervisor.log.last}
        self.send(protocol.ReplyMessage(request.id, True, rest))

    def _why(self, request: protocol.Request) -> None:
        engine = self._sessions.engine
        told = []
        for name in request.jobs or ():
            if name not in engine.supervisor.jobs:
                self.send(protocol.failed(request.id, "no-such-job", "no such job", job=name))
                return
            told.append(answers.why(engine.supervisor, name, time.monotonic(), engine.attendants.why_not))
        rest = {"jobs": told, "token": engine.supervisor.log.last}
        self.send(protocol.ReplyMessage(request.id, True, rest))

    def _subscribe(self, message: protocol.Subscribe) -> None:
        supervisor = self._sessions.engine.supervisor
        log = supervisor.log
        self._rich = True
        self._jobs = None if message.jobs is None else frozenset(message.jobs)
        kept = message.since is not None and log.holds(message.since)
        if kept and message.since is not None:
            self._cursor = max(message.since, log.first - 1)  # 0 is from the first on
            self.send(protocol.Snapshot(message.since, None))
        else:
            self._cursor = log.last
            names = [name for name in supervisor.jobs if self._jobs is None or name in self._jobs]
            jobs = tuple(self._job_status(name) for name in names)
            self.send(protocol.Snapshot(log.last, jobs, missed=message.since is not None))
        self.push_events()

    def _job_status(self, name: str, shown: int | None = None) -> protocol.JobStatus:
        """How a job is; `shown` is how many of its processes are to be told apart."""
        engine = self._sessions.engine
        job, pids = engine.supervisor.jobs[name], engine.children.pids(name)
        says, wall = engine.attendants.text(name), engine.supervisor.wall
        if shown is None:
            return answers.status(job, wall, len(pids), says)
        tree, gone = answers.tree(pids, job.leader, shown)
        return answers.status(job, wall, len(pids) - gone, says, tree)

    def _ticket(self, request_id: int | None, job: str = "") -> Ticket:
        ticket = Ticket(self, request_id, job)
        self.tickets.add(ticket)
        return ticket

    def _order_ticket(self, request: protocol.Request) -> Ticket:
        """For a command whose answer tells more than how each job fared."""
        ticket = self._ticket(request.id)
        supervisor = self._sessions.engine.supervisor
        for name in request.jobs or ():
            job = supervisor.jobs.get(name)
            if job is None:
                continue
            ticket.runs[name] = job.run + (request.command != "stop")
            if request.command != "start":
                first = supervisor.turns.going_before(name)
                ticket.first[name] = [other for other in first if other not in (request.jobs or ())]
        return ticket

    def _by(self, verb: str, reason: str = "") -> str:
        reason = reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]}..."
        who = f"{verb} by uid {self.peer.uid}"
        who += f" pid {self.peer.pid}" if self.peer.pid is not None else ""
        return f"{who}: {reason}" if reason else who

    # ---- out ------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Send a message, or say that it cannot be sent."""
        # what came in one piece with the bytes that broke the connection is answered all the same
        encode = protocol.encode if self._connection.broken else self._connection.send
        try:
            data = encode(message)
        except LocalProtocolError as error:
            if not isinstance(message, protocol.ReplyMessage):
                raise
            data = encode(protocol.failed(message.id, "failed", str(error)))
        self._stream.send(data)

    def answer(self, ticket: Ticket, reply: Reply) -> None:
        """The supervisor has answered one of this session's commands."""
        self.tickets.discard(ticket)
        if self._stream.closed or self._connection.broken:
            return
        if ticket.id is None:
            self.guard(lambda: self._send_and_settle(answers.answer07(ticket.job, reply)))
        else:
            request_id = ticket.id
            self.guard(lambda: self._send_and_settle(self._answer(request_id, ticket, reply)))

    def _answer(self, request_id: int, ticket: Ticket, reply: Reply) -> protocol.ReplyMessage:
        message = answers.answer(request_id, self._explained(reply))
        for told in message.rest.get("results", ()):
            self._tell_more(told, ticket)
        return message.replace(rest={**message.rest, **ticket.rest}) if ticket.rest else message

    def _tell_more(self, told: dict[str, Any], ticket: Ticket) -> None:
        name = told["job"]
        if ticket.first.get(name):
            told["first"] = ticket.first[name]
        job = self._sessions.engine.supervisor.jobs.get(name)
        if told["ok"] or job is None or job.run < ticket.runs.get(name, job.run + 1):
            return
        lines = self._sessions.engine.last_words.of(job.ran)
        if lines:
            told["stderr"] = lines

    def _explained(self, reply: Reply) -> Reply:
        """Who has waited in vain for the end of a job is told what of it is left."""
        if reply.code != "timeout":
            return reply
        results = tuple(map(self._with_what_is_left, reply.results))
        message = next(result.message for result in results if result.code == reply.code)
        return reply.replace(results=results, message=message)

    def _with_what_is_left(self, result: JobResult) -> JobResult:
        engine = self._sessions.engine
        job = engine.supervisor.jobs.get(result.job)
        if result.code != "timeout" or job is None or job.state not in LEAVING:
            return result
        left = engine.children.left(result.job)
        return result.replace(message=f"timed out: it is still {job.state.value}: {left}") if left else result

    def _send_and_settle(self, message: Message) -> None:
        self.send(message)
        self._settle()

    def push_events(self) -> None:
        """Send the events that the reader has not seen, as far as it takes them now."""
        if self._role != protocol.EVENTS or self._ending or self._stream.closed:
            return
        log = self._sessions.engine.supervisor.log
        if not log.holds(self._cursor):
            self._drop("has fallen too many events behind")
            return
        while self._cursor < log.last and not self._stream.pending:
            self._stream.send(b"".join(self._batch(log.after(self._cursor))))
        self._settle()

    def _batch(self, events: Iterator[Event]) -> Iterator[bytes]:
        size = 0
        for event in events:
            self._cursor = event[0]
            data = self._event(event)
            if data:
                size += len(data)
                yield data
            if size >= EVENT_BATCH_BYTES:
                return

    def _event(self, event: Event) -> bytes:
        seq, when, job, kind, state, run, pid, cause = event
        if not self._rich:
            code = _CODES_07.get(kind)
            return b"" if code is None else protocol.encode(protocol.Event07(job, code))
        if self._jobs is not None and job not in self._jobs and job:
            return b""
        return protocol.encode(protocol.EventMessage(seq, when, job, kind, state.value, run, pid, cause))

    def _settle(self) -> None:
        """After any work: wait for the right events, let the right timers run."""
        stream = self._stream
        if self._ending and not stream.pending:
            self.close()
            return
        if stream.closed:
            return
        behind = self._role == protocol.EVENTS and self._cursor < self._sessions.engine.supervisor.log.last
        interest = 0 if stream.full or self._inbox else reactor.READ
        if stream.pending or (behind and not self._ending):
            interest |= reactor.WRITE
        if interest != self._interest:
            self._sessions.engine.reactor.modify(stream.fileno(), interest)
            self._interest = interest
            self._mind_frame()
        self._mind_output()

    def _mind_frame(self, *, anew: bool = False) -> None:
        """The clock for a frame runs from its first byte to its last, however many come between, and
        only while we read. `anew`: the frame that has begun is not the one that had begun before."""
        reads = self._interest & reactor.READ and not self._connection.broken
        unfinished = bool(reads and self._connection.unfinished)
        if unfinished == self._late and not (unfinished and anew):
            return
        self._late = unfinished
        timers = self._sessions.engine.timers
        if unfinished:
            timers.arm(self._frame_late, 0, time.monotonic() + FRAME_SECONDS)
        else:
            timers.disarm(self._frame_late)

    def _mind_output(self) -> None:
        waiting = self._stream.pending > 0
        if waiting == self._stalled and (not waiting or self._sent == self._stream.sent):
            return
        self._stalled, self._sent = waiting, self._stream.sent
        timers = self._sessions.engine.timers
        if waiting:
            timers.arm(self._output_late, 0, time.monotonic() + DRAIN_SECONDS)
        else:
            timers.disarm(self._output_late)

    def _frame_late(self, _token: int) -> None:
        self._drop("began a frame and did not finish it")

    def _output_late(self, _token: int) -> None:
        self._drop("does not read what it is sent")

    def _drop(self, why: str) -> None:
        self._sessions.engine.log.write(
            logfile.WARNING, "dropped a client", why=why, uid=self.peer.uid, pid=self.peer.pid
        )
        self.close()


_VERBS: dict[str, Callable[[Session, protocol.Request], None]] = {
    "start": Session._start,
    "restart": Session._start,
    "stop": Session._stop,
    "wait": Session._wait,
    "signal": Session._signal,
    "status": Session._show,
    "list": Session._list,
    "terminate": Session._terminate,
    "reload": Session._reload,
    "info": Session._info,
    "graph": Session._graph,
    "why": Session._why,
}

_TURNED_AWAY = protocol.encode(protocol.Failure("", protocol.ERR_NOT_PERMITTED))
