"""The clients of the daemon: one Session per connection, from accept to close.

Translates between messages and the supervisor's methods; decides nothing about jobs. A session
that misbehaves, or whose reader is too slow, ends alone.

What clients ask for, their answers, and what they are sent of the events, is done in slices of a few
milliseconds. Sessions that have more to do wait for their next slice while the loop goes on turning: no
number of requests in one write, no question about ten thousand jobs and no number of listeners holds up a
death, a timer or another client. The slices go to the users in turn, and of each user to the sessions in
turn: a thousand connections get no more than one. Those who listen have turns of their own: they keep
nobody's command waiting. What a job's change means to those who wait for it is decided at once, so their
number is bounded.
"""

from __future__ import annotations

import time

from jobmon import protocol
from jobmon.core import causes, conditions
from jobmon.core.causes import Actor, Cause, Kind
from jobmon.core.events import LEAVING, State
from jobmon.errors import LocalProtocolError, StartupError
from jobmon.linux import log as logfile
from jobmon.linux.control import replies
from jobmon.linux.control.quotas import NAME_BYTES, STATUS_BYTES, WAIT_BYTES, Quotas
from jobmon.linux.kernel import signals
from jobmon.linux.kernel.loop import ACCEPT, COMMAND, HANGUP, READ, UNSET, WRITE, TurnBudget
from jobmon.linux.kernel.peers import UNIDENTIFIED, Peers
from jobmon.linux.kernel.sockets import RECEIVE_BYTES, Refused
from jobmon.linux.processes.children import NAMED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
    from typing import Any

    from jobmon.core.eventlog import Event
    from jobmon.core.events import JobResult, Reply
    from jobmon.linux.control.port import Daemon, ReloadOutcome
    from jobmon.linux.kernel.peers import Access, Peer
    from jobmon.linux.kernel.sockets import Listener, Stream
    from jobmon.protocol import Message

FRAME_SECONDS = 15.0  # a client that starts a frame has this long to finish it
DRAIN_SECONDS = 15.0  # a reader that takes nothing for this long while output waits is dropped
ACCEPTS_PER_TURN = 64
IDLE_SECONDS = 1.0  # a connection that was silent for so long may have to go for one of an operator
RETRY_ACCEPT_SECONDS = 0.5
EVENT_BATCH_BYTES = 32_768
SLICE_SECONDS = 0.002  # of one session before the others have their turn
TURN_SECONDS = 0.005  # of all sessions in one turn of the loop: then deaths, signals and timers have theirs
MAX_FRAMES = 1000  # of events, while they are being told
MAX_REASON = 1000  # characters: what is kept 10,000 times is to be short
MAX_UNANSWERED = 1000  # requests of one connection that wait: each costs memory, and a look at every change
MAX_TREE = 2000  # processes of which one request is told what they run: some tens of milliseconds

_CODES_07 = {"launched": 0, "died": 1, "restarting": 2, "terminated": 3}


class Ticket:
    """To whom an answer goes: the session and its request's id (None: a 0.7 command).

    `runs` are the first runs of jobs whose last words belong into the answer, `first` what a command
    stops before what it names, `bytes` what it costs to keep, `key` what the supervisor knows it by.
    """

    __slots__ = ("bytes", "first", "id", "job", "key", "runs", "session")

    def __init__(self, session: Session, request_id: int | None, job: str = "", names: int = 1) -> None:
        self.session = session
        self.id = request_id
        self.job = job
        self.bytes = WAIT_BYTES + NAME_BYTES * names
        self.runs: dict[str, int] = {}
        self.first: dict[str, list[str]] = {}
        self.key: Hashable = None  # itself


class Sessions:
    """All connections, and the listeners that they come from."""

    def __init__(self, daemon: Daemon, access: Access, jobs: int) -> None:
        self.daemon = daemon
        self.peers = Peers()
        self._access = access
        self.quotas = Quotas(access.own, jobs)
        self._listeners: dict[Listener, str] = {}
        self._is_open = False
        self._sessions: dict[int, Session] = {}  # by descriptor, those first that were silent for longest
        # Sessions that have more to do, by user and role, in the order of their turns.
        self._queue: dict[tuple[int, str], dict[Session, None]] = {}
        self._next_round = UNSET
        self._budget = TurnBudget(daemon.loop)  # for all sessions
        self.listening: set[Session] = set()
        self._frames: dict[tuple[int, bool], bytes] = {}  # of the events that are being told

    def __len__(self) -> int:
        return len(self._sessions)

    def listen(self, listener: Listener, role: str) -> None:
        """A listener to serve from `open` on: `role` is protocol.CONTROL or protocol.EVENTS."""
        self._listeners[listener] = role
        self._warn_of(listener)

    def _warn_of(self, listener: Listener) -> None:
        """What somebody who is let in could do there, where the kernel cannot forbid it."""
        if listener.may_be_given and self._access.is_shared:
            text = "others may connect here and send descriptors, whose close may hang: Linux 6.16 forbids it"
            self.daemon.log.write(logfile.WARNING, text, path=str(listener.address))

    def make_room(self, jobs: int) -> None:
        """Let nobody have so many connections that there would be no descriptors for so many jobs."""
        self.quotas.make_room(jobs)

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
                self.daemon.log.write(logfile.ERROR, "cannot change the mode", path=path, error=why)
            self._warn_of(listener)
        self.daemon.loop.call_later(0, self._send_away)

    def renew(self) -> None:
        """Make the files of sockets anew that somebody has removed; connections are not disturbed."""
        for listener in [listener for listener in self._listeners if listener.lost]:
            if self._is_open:
                self.daemon.loop.remove_reader(listener.fileno())
                while self._accept(listener):  # clients that came before it was removed
                    pass
            path = str(listener.address)
            try:
                listener.renew(self._access.is_shared)
                self.daemon.log.write(logfile.WARNING, "socket file was missing: created again", path=path)
            except StartupError as error:
                self.daemon.log.write(logfile.ERROR, "cannot create the socket file again", error=str(error))
            if self._is_open:
                self._open(listener)

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
            ticket.session.owe(ticket, reply)
            self.schedule(ticket.session)

    def serve(self, session: Session) -> None:
        """Something has come for a session."""
        fd = session.fileno()
        if fd in self._sessions:
            self._sessions[fd] = self._sessions.pop(fd)  # the idlest come first
        self.schedule(session)

    def schedule(self, session: Session) -> None:
        """Let a session work: at once, or after those that wait for their turn already."""
        if self._queue or not self._has_time():
            self._enqueue(session)
        else:
            self._give_slice(session)

    def publish(self) -> None:
        """There are new events: bring everybody who listens up to date."""
        for session in list(self.listening):
            if session.has_work():
                self.schedule(session)
        self._let_frames_go()

    def frame_of(self, event: Event, *, rich: bool) -> bytes:
        """An event as it is sent, or (not `rich`) as JobMon 0.7 knows it. It is encoded once for all who are
        told in one go; nothing is kept for those who take it later."""
        key = (event[0], rich)
        data = self._frames.get(key)
        if data is None:
            if len(self._frames) >= MAX_FRAMES:
                self._frames.clear()
            data = self._frames[key] = _encoded(event) if rich else _encoded07(event)
        return data

    def _let_frames_go(self) -> None:
        if not self._queue:
            self._frames.clear()

    def unsent(self) -> bool:
        """Whether any session still has something to send."""
        return any(session.busy for session in self._sessions.values())

    def stop_listening(self) -> None:
        """Close the listeners and remove their files."""
        for listener in self._listeners:
            self.daemon.loop.remove_reader(listener.fileno())
            listener.close()
        self._listeners.clear()

    def close(self) -> None:
        """Close everything."""
        self.stop_listening()
        for session in list(self._sessions.values()):
            session.close()
        self.peers.close()

    def forget(self, session: Session, fd: int) -> None:
        """A session has ended."""
        del self._sessions[fd]
        self.listening.discard(session)
        self._leave_queue(session)
        self.quotas.disconnect(session.peer.uid)

    # ---- turns ----------------------------------------------------------------------------

    def _has_time(self) -> bool:
        """Whether sessions may still work in this turn of the loop."""
        self._budget.renew(TURN_SECONDS)
        return time.monotonic() < self._budget.until

    def _give_slice(self, session: Session) -> None:
        until = min(self._budget.until, time.monotonic() + SLICE_SECONDS)
        session.guard(lambda: session.work(until))
        if session.has_work():
            self._enqueue(session)

    def _enqueue(self, session: Session) -> None:
        if not self._queue:
            self._go_round_later()
        self._queue.setdefault(session.party, {}).setdefault(session)

    def _go_round_later(self) -> None:
        """In the next turn of the loop."""
        if not self._next_round.active:
            self._next_round = self.daemon.loop.call_later(0, self._go_round)

    def _leave_queue(self, session: Session) -> None:
        sessions = self._queue.get(session.party)
        if sessions is not None:
            sessions.pop(session, None)
            if not sessions:
                del self._queue[session.party]

    def _go_round(self) -> None:
        """A slice for one session of each user after the other, as far as the time of this turn goes, and
        one at least."""
        while self._queue:
            party = next(iter(self._queue))
            sessions = self._queue.pop(party)
            session = next(iter(sessions))
            del sessions[session]
            if sessions:
                self._queue[party] = sessions  # now the last of all
            self._give_slice(session)
            if not self._has_time():
                break
        if self._queue:
            self._go_round_later()
        self._let_frames_go()

    # ---- accepting ------------------------------------------------------------------------

    def _open(self, listener: Listener) -> None:
        def accept(_events: int) -> None:
            self._accept(listener)

        self.daemon.loop.remove_reader(listener.fileno())  # a pause may have ended meanwhile
        self.daemon.loop.add_reader(listener.fileno(), accept, ACCEPT)

    def _accept(self, listener: Listener) -> bool:
        """Accept waiting clients, some in a turn. Return True if there may be more."""
        for _ in range(ACCEPTS_PER_TURN):
            taken = listener.accept(_BUSY)
            if taken is None:
                return False
            if isinstance(taken, Refused):
                if not taken.dropped:
                    self._pause(listener)
                    return False
                text = "connection refused: no descriptor left"
                self.daemon.log.limited(logfile.WARNING, text, errno=taken.errno)
            else:
                self._admit(listener, taken[0])
        return True

    def _pause(self, listener: Listener) -> None:
        def resume() -> None:
            if not listener.closed:
                self._open(listener)

        self.daemon.loop.remove_reader(listener.fileno())
        self.daemon.loop.call_later(RETRY_ACCEPT_SECONDS, resume)

    def _admit(self, listener: Listener, stream: Stream) -> None:
        peer = self.peers.peer_of(stream)
        if peer is None and self._may_be_unidentified(listener):
            peer = UNIDENTIFIED
        why, farewell = self._objection(peer), _TURNED_AWAY
        if peer is not None and not why:
            why, farewell = self._refusal(peer, stream), _BUSY
        if peer is None or why:
            uid, pid = (peer.uid, peer.pid) if peer is not None else (None, None)
            self.daemon.log.limited(logfile.WARNING, "connection refused", why=why, uid=uid, pid=pid)
            stream.send(farewell)
            stream.close()
            return
        self.quotas.connect(peer.uid)
        session = Session(self, stream, peer, self._listeners[listener])
        self._sessions[stream.fileno()] = session
        session.guard(session.begin)

    def _may_be_unidentified(self, listener: Listener) -> bool:
        """A UNIX socket knows everybody, and events are of no use to who has closed."""
        return listener.kind == "tcp" and self._listeners[listener] == protocol.CONTROL

    def _refusal(self, peer: Peer, stream: Stream) -> str:
        """Why there is no room for a connection. For root and our own user there is, as long as one of
        theirs is idle: that one goes, so nobody can lock them out, be it in their own name."""
        why = self.quotas.refusal(peer.uid, stream.fileno())
        if why and peer.uid in (0, self._access.own):
            before = time.monotonic() - IDLE_SECONDS
            idle = next((one for one in self._sessions.values() if one.is_idle(peer.uid, before)), None)
            if idle is not None:
                idle.turn_away("is idle, and its user has too many connections")
                return ""
        return why

    def _send_away(self) -> None:
        for session in list(self._sessions.values()):
            if not self._access.permits(session.peer):
                session._drop("is not permitted any more")

    def _objection(self, peer: Peer | None) -> str:
        if peer is None or (peer is UNIDENTIFIED and not self._access.unidentified):
            return _NOBODY
        return "" if self._access.permits(peer) else "not permitted"


class Session:
    """One connection. What it sends is produced as its reader takes it."""

    __slots__ = (
        "_answers",
        "_connection",
        "_cursor",
        "_daemon",
        "_drain_due",
        "_ended",
        "_ending",
        "_frame_due",
        "_gone",
        "_heard",
        "_interest",
        "_jobs",
        "_kept",
        "_reserved",
        "_rich",
        "_role",
        "_sent",
        "_sessions",
        "_stream",
        "_task",
        "_telling",
        "_unread",
        "peer",
        "tickets",
    )

    def __init__(self, sessions: Sessions, stream: Stream, peer: Peer, role: str) -> None:
        self._sessions = sessions
        self._daemon = sessions.daemon
        self._stream = stream
        self._role = role
        self._connection = protocol.Connection(role)
        self._task: Iterator[None] | None = None  # a request that is being answered, step by step
        self._telling = 0  # bytes that this is reckoned to cost
        self._reserved = 0  # bytes that its tickets and its task cost
        self._kept = 0  # bytes of it that its user's quota knows of
        self._answers: list[tuple[Ticket, Reply]] = []  # that it has not been sent
        self._unread = False  # whether what has come may hold more messages
        self._interest = READ
        self._cursor = sessions.daemon.supervisor.log.last
        self._rich = False
        self._jobs: frozenset[str] | None = None
        self._ending = False  # it broke the protocol: only our last words go out
        self._ended = False  # it has said all that it will say
        self._gone = False  # it has closed, and hears nothing any more
        self._heard = time.monotonic()
        self._sent = 0
        self._frame_due = UNSET  # set while a frame is unfinished
        self._drain_due = UNSET  # set while output waits
        self.peer = peer
        self.tickets: set[Ticket] = set()

    @property
    def party(self) -> tuple[int, str]:
        """With whom it shares its turns: the sessions of its user on the same port."""
        return self.peer.uid, self._role

    @property
    def busy(self) -> bool:
        """Whether output waits, or is to be made of what has happened."""
        return self._stream.pending > 0 or bool(self._answers) or self._behind()

    def has_work(self) -> bool:
        """Whether there is something to do for it that waits for nothing but its turn."""
        return self._has_requests() or self._has_news()

    def _has_requests(self) -> bool:
        if self._stream.closed or self._stream.full:
            return False
        return bool(self._answers) or self._unread or self._task is not None

    def fileno(self) -> int:
        """The descriptor, -1 when closed."""
        return self._stream.fileno()

    def is_idle(self, uid: int, before: float) -> bool:
        """Whether it is this user's, has been silent since a moment, and waits for nothing."""
        if self.peer.uid != uid or self._role != protocol.CONTROL or self._heard > before:
            return False
        conditions = self.tickets or self._unread or self._task is not None or self._connection.unfinished
        return not (conditions or self._stream.pending)

    def turn_away(self, why: str) -> None:
        """Make room for another."""
        self._stream.send(_BUSY)
        self._drop(why)

    def begin(self) -> None:
        """Wait for what the client says; on the event port, also tell it what happens."""
        self._daemon.loop.add_reader(self._stream.fileno(), self._ready, COMMAND)
        if self._role == protocol.EVENTS:
            self._sessions.listening.add(self)

    def guard(self, work: Callable[[], None]) -> None:
        """Do something for this session; if it fails, the session ends and nobody else notices."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - this client's end is nobody else's
            self._daemon.bug("a connection", error)
            self.close()

    def close(self) -> None:
        """End it: nobody waits here any more."""
        fd = self._stream.fileno()
        if fd < 0:
            return
        self._daemon.loop.remove_reader(fd)
        self._frame_due.cancel()
        self._drain_due.cancel()
        for ticket in self.tickets:
            self._daemon.supervisor.drop(ticket if ticket.key is None else ticket.key)
        self._sessions.quotas.wait(self.peer.uid, -len(self.tickets))
        self.tickets.clear()
        self._answers.clear()
        self._sessions.quotas.keep(self.peer.uid, -self._kept)
        self._kept = 0
        self._sessions.forget(self, fd)
        self._stream.close()

    # ---- in -------------------------------------------------------------------------------

    def _ready(self, events: int) -> None:
        self.guard(lambda: self._serve(events))

    def _serve(self, events: int) -> None:
        self._heard = time.monotonic()
        self._gone = self._gone or bool(events & HANGUP)
        if events & ~READ:
            self._stream.flush()
        if events & ~WRITE and not self._unread and self._task is None:
            self._receive()
        self._sessions.serve(self)

    def _receive(self) -> None:
        data = self._stream.receive()
        if data == b"":
            self._ended = True
            self._gone = self._gone or not self._is_half_closed()
        elif data is not None and not self._ending:
            self._connection.feed(data)
            self._unread = True
            if self._connection.held > RECEIVE_BYTES and (why := self._excess()):
                self._act(self._connection.end("busy", why))

    def _is_half_closed(self) -> bool:
        """It will say no more. Whether it may still listen: that a UNIX socket was closed comes as a hangup,
        of TCP only the kernel's table tells whether somebody still holds the other end."""
        if not (self.tickets or self._stream.pending or self._role == protocol.EVENTS):
            return True  # and nothing is left to be said
        return self._stream.outlives_its_input() and self._sessions.peers.peer_of(self._stream) is not None

    def work(self, until: float) -> None:
        """Act on what came, as long as the answers are read and the time has not come."""
        acted = False
        while self._has_requests():
            if self._answers:
                self._answer(*self._answers.pop(0))
            elif self._task is not None:
                self._go_on(self._task)
            elif (message := self._connection.next()) is None:
                self._unread = False
            else:
                acted = True
                self._act(message)
            self._account()
            if time.monotonic() >= until:
                break
        self._push()
        self._settle(anew=acted)

    def _go_on(self, task: Iterator[None]) -> None:
        for _ in task:
            return
        self._end_task()

    def _begin_task(self, task: Iterator[None] | None, jobs: int) -> None:
        """A request that is answered step by step: until then it costs what it tells of so many jobs."""
        if task is not None:
            self._task, self._telling = task, jobs * STATUS_BYTES
            self._reserved += self._telling

    def _end_task(self) -> None:
        self._task = None
        self._reserved -= self._telling
        self._telling = 0

    def _excess(self) -> str:
        """Why nothing more is kept for it, or nothing."""
        self._account()
        return self._sessions.quotas.excess(self.peer.uid, self._kept)

    def _account(self) -> None:
        """Tell its user's quota what is kept for it. A message that fits into one read is free."""
        held = max(0, self._connection.held - RECEIVE_BYTES)
        kept = held + self._stream.pending + self._reserved if not self._stream.closed else 0
        if kept != self._kept:
            self._sessions.quotas.keep(self.peer.uid, kept - self._kept)
            self._kept = kept

    def _act(self, message: Any) -> None:
        kind = type(message)
        if self.peer is UNIDENTIFIED and kind is not protocol.Command07:
            self._drop("the kernel does not say whose it is, and it is no command of JobMon 0.7")
        elif kind is protocol.Command07:
            self._command07(message)
        elif kind is protocol.Request:
            self._request(message)
        elif kind is protocol.Subscribe:
            self._take_subscription(message)
        elif kind is protocol.BadRequest:
            self.send(message.answer())
        else:
            self._ending = True
            self._daemon.log.limited(
                logfile.INFO, "client disconnected", why=message.message, uid=self.peer.uid, pid=self.peer.pid
            )
            self._stream.send(protocol.encode(message.answer()))

    def _command07(self, message: protocol.Command07) -> None:
        supervisor = self._daemon.supervisor
        name = message.job or ""
        command = message.command
        waits = command in (protocol.CMD_START, protocol.CMD_STOP)
        too_many = waits and self._sessions.quotas.too_many_wait(self.peer.uid)
        if command != protocol.CMD_QUIT and (too_many or self._excess()):
            self.send(protocol.Failure(name, protocol.ERR_BUSY))
        elif command == protocol.CMD_STATUS:
            self.send(replies.status07(name, supervisor.jobs.get(name)))
        elif command == protocol.CMD_JOB_LIST:
            self.send(protocol.JobList({n: job.pid is not None for n, job in supervisor.jobs.items()}))
        elif command == protocol.CMD_QUIT:
            self._daemon.terminate(self._by(Kind.TERMINATE))
        else:
            act = supervisor.start if command == protocol.CMD_START else supervisor.stop
            kind = Kind.START if command == protocol.CMD_START else Kind.STOP
            act((name,), self._ticket(None, name), time.monotonic(), by=self._by(kind))

    def _request(self, request: protocol.Request) -> None:
        act = _VERBS.get(request.command)
        if act is None:
            self.send(protocol.failed(request.id, "unknown-command", f"this daemon cannot {request.command}"))
        elif len(self.tickets) >= MAX_UNANSWERED:
            why = f"{MAX_UNANSWERED} requests of this connection wait already"
            self.send(protocol.failed(request.id, "failed", why))
        elif why := self._is_too_much(request):
            self.send(protocol.failed(request.id, "busy", why))
        else:
            jobs = self._daemon.supervisor.jobs
            names = request.jobs
            if names is not None:  # theirs are kept already
                names = tuple(jobs[name].spec.name if name in jobs else name for name in names)
                request = request.replace(jobs=names)
            self._begin_task(act(self, request), len(jobs if names is None else names))

    def _is_too_much(self, request: protocol.Request) -> str:
        """Why its user has to do without it for now, or nothing."""
        if request.command in _LATE and (why := self._sessions.quotas.too_many_wait(self.peer.uid)):
            return why
        return "" if request.command in _SMALL else self._excess()

    def _start(self, request: protocol.Request) -> None:
        supervisor = self._daemon.supervisor
        act = supervisor.start if request.command == "start" else supervisor.restart
        act(
            request.jobs or (),
            self._order_ticket(request),
            time.monotonic(),
            wait=request.wait,
            until=replies.until(request),
            timeout=request.timeout,
            by=self._by(Kind(request.command), request.reason),
        )

    def _stop(self, request: protocol.Request) -> None:
        self._daemon.supervisor.stop(
            request.jobs or (),
            self._order_ticket(request),
            time.monotonic(),
            wait=request.wait,
            until=replies.until(request),
            timeout=request.timeout,
            at_once=request.now,
            by=self._by(Kind.STOP, request.reason),
        )

    def _wait(self, request: protocol.Request) -> None:
        self._daemon.supervisor.wait(
            request.jobs or (),
            self._ticket(request.id, names=len(request.jobs or ())),
            time.monotonic(),
            until=replies.until(request) or ("changed", conditions.changed),
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
        self._daemon.supervisor.signal(
            request.jobs or (),
            name,
            self._ticket(request.id),
            time.monotonic(),
            every=request.all,
            by=self._by(Kind.SIGNAL, request.reason),
        )

    def _show(self, request: protocol.Request) -> Iterator[None]:
        supervisor = self._daemon.supervisor
        room = MAX_TREE

        def look(name: str) -> protocol.JobStatus:
            nonlocal room
            status = self._job_status(name, room if request.tree else self._shown(name))
            room -= len(status.tree or ())
            return status

        if self._knows_all(request):
            found = yield from self._statuses(request.jobs, look)
            rest: dict[str, Any] = {"jobs": [one.body() for one in found], "token": supervisor.log.last}
            if request.jobs is None:
                rest["strays"] = self._daemon.unattributed()
            if self._knows_all(request):
                self.send(protocol.ReplyMessage(request.id, True, rest))

    def _knows_all(self, request: protocol.Request) -> bool:
        """Whether there are all jobs that a request names; else that is its answer."""
        jobs = self._daemon.supervisor.jobs
        unknown = next((name for name in request.jobs or () if name not in jobs), None)
        if unknown is not None:
            self.send(protocol.failed(request.id, "no-such-job", "no such job", job=unknown))
        return unknown is None

    def _statuses(
        self, names: Sequence[str] | None, look: Callable[[str], protocol.JobStatus]
    ) -> Generator[None, None, list[protocol.JobStatus]]:
        """How jobs (None: all) are, job by job, and yet all at the moment in which it ends: those to which
        something has happened meanwhile are looked at again."""
        supervisor = self._daemon.supervisor
        log, jobs = supervisor.log, supervisor.jobs
        found: dict[str, protocol.JobStatus] = {}
        todo = list(jobs if names is None else names)
        while todo:
            seen = log.last
            for name in todo:
                if name in jobs:
                    found[name] = look(name)
                    yield
            news = {event[2] for event in log.after(seen)}
            complete = log.holds(seen)
            wanted = [name for name in (jobs if names is None else names) if name in jobs]
            todo = [name for name in wanted if name not in found or name in news or not complete]
        return [status for name, status in found.items() if name in jobs]

    def _shown(self, name: str) -> int | None:
        """What does not die of SIGKILL is named without being asked for."""
        return NAMED if self._daemon.supervisor.jobs[name].state is State.KILLING else None

    def _list(self, request: protocol.Request) -> None:
        jobs = self._daemon.supervisor.jobs
        rest = {"jobs": {name: job.pid is not None for name, job in jobs.items()}}
        self.send(protocol.ReplyMessage(request.id, True, rest))

    def _terminate(self, request: protocol.Request) -> None:
        self.send(protocol.ReplyMessage(request.id, True, {"pid": self._daemon.info()["pid"]}))
        self._daemon.terminate(self._by(Kind.TERMINATE, request.reason))

    def _reload(self, request: protocol.Request) -> None:
        ticket, by = self._ticket(request.id), self._by(Kind.RELOAD)

        def done(outcome: ReloadOutcome) -> None:
            self._discard(ticket)
            self._late_answer(replies.reload(request.id, outcome))

        ticket.key = self._daemon.reload(by, done, restart=request.restart, dry_run=request.dry_run)

    def _info(self, request: protocol.Request) -> None:
        self.send(protocol.ReplyMessage(request.id, True, self._daemon.info()))

    def _graph(self, request: protocol.Request) -> Iterator[None]:
        supervisor = self._daemon.supervisor
        token = supervisor.log.last
        told = {}
        for name, job in list(supervisor.jobs.items()):
            told[name] = replies.place(job, supervisor.jobs)
            yield
        self.send(protocol.ReplyMessage(request.id, True, {"jobs": told, "token": token}))

    def _why(self, request: protocol.Request) -> Iterator[None]:
        daemon = self._daemon
        token = daemon.supervisor.log.last
        told = []
        for name in request.jobs or ():
            if not self._knows_all(request.replace(jobs=(name,))):
                return
            now = time.monotonic()
            told.append(
                replies.why(daemon.supervisor, name, now, lambda job: daemon.facts(job).why_not_ready())
            )
            yield
        self.send(protocol.ReplyMessage(request.id, True, {"jobs": told, "token": token}))

    def _take_subscription(self, message: protocol.Subscribe) -> None:
        if why := self._excess():
            self._act(self._connection.end("busy", why))
        else:
            jobs = self._daemon.supervisor.jobs if message.jobs is None else message.jobs
            self._begin_task(self._subscribe(message), len(jobs))

    def _subscribe(self, message: protocol.Subscribe) -> Iterator[None]:
        supervisor = self._daemon.supervisor
        log = supervisor.log
        if message.since is not None and log.holds(message.since):
            self._cursor = max(message.since, log.first - 1)  # 0 is from the first on
            self.send(protocol.Snapshot(message.since, None))
        else:
            asked = None if message.jobs is None else frozenset(message.jobs)
            names = None if asked is None else [name for name in supervisor.jobs if name in asked]
            jobs = yield from self._statuses(names, self._job_status)
            self._cursor = log.last
            self.send(protocol.Snapshot(log.last, tuple(jobs), missed=message.since is not None))
        self._rich = True
        self._jobs = None if message.jobs is None else frozenset(message.jobs)

    def _job_status(self, name: str, shown: int | None = None) -> protocol.JobStatus:
        """How a job is; `shown` is how many of its processes are to be told apart."""
        job, facts = self._daemon.supervisor.jobs[name], self._daemon.facts(name)
        pids, says, wall = facts.pids(), facts.says(), self._daemon.supervisor.wall
        if shown is None:
            return replies.status(job, wall, len(pids), says)
        tree, gone = replies.tree(pids, job.leader, shown)
        return replies.status(job, wall, len(pids) - gone, says, tree)

    def _ticket(self, request_id: int | None, job: str = "", names: int = 1) -> Ticket:
        ticket = Ticket(self, request_id, job, names)
        self.tickets.add(ticket)
        self._reserved += ticket.bytes
        self._sessions.quotas.wait(self.peer.uid, 1)
        return ticket

    def _discard(self, ticket: Ticket) -> None:
        if ticket in self.tickets:
            self.tickets.remove(ticket)
            self._reserved -= ticket.bytes
            self._sessions.quotas.wait(self.peer.uid, -1)

    def _order_ticket(self, request: protocol.Request) -> Ticket:
        """For a command whose answer tells more than how each job fared."""
        ticket = self._ticket(request.id, names=len(request.jobs or ()))
        supervisor = self._daemon.supervisor
        names = [name for name in request.jobs or () if name in supervisor.jobs]
        for name in names:
            ticket.runs[name] = supervisor.jobs[name].run + (request.command != "stop")
        if request.command != "start":
            ticket.first = supervisor.turns.going_before(names)
        return ticket

    def _by(self, kind: Kind, reason: str = "") -> Cause:
        reason = reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]}..."
        uid = self.peer.uid if self.peer.uid >= 0 else None
        return Cause(kind, actor=Actor(uid, self.peer.pid), reason=reason)

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

    def owe(self, ticket: Ticket, reply: Reply) -> None:
        """The supervisor has answered one of this session's commands: it is sent when it is its turn."""
        if not self._stream.closed:
            self._answers.append((ticket, reply))

    def _answer(self, ticket: Ticket, reply: Reply) -> None:
        self._discard(ticket)
        if self._connection.broken:
            return
        if ticket.id is None:
            self.send(replies.answer07(ticket.job, reply))
        else:
            self.send(self._reply_message(ticket.id, ticket, reply))

    def _late_answer(self, message: Message) -> None:
        """Answer a client that may have left."""
        if not (self._stream.closed or self._connection.broken):
            self.guard(lambda: self._send_and_settle(message))

    def _reply_message(self, request_id: int, ticket: Ticket, reply: Reply) -> protocol.ReplyMessage:
        message = replies.answer(request_id, self._explained(reply))
        for told in message.rest.get("results", ()):
            self._tell_more(told, ticket)
        return message

    def _tell_more(self, told: dict[str, Any], ticket: Ticket) -> None:
        name = told["job"]
        if ticket.first.get(name):
            told["first"] = ticket.first[name]
        job = self._daemon.supervisor.jobs.get(name)
        if told["ok"] or job is None or job.run < ticket.runs.get(name, job.run + 1):
            return
        lines = self._daemon.facts(name).stderr_tail()
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
        job = self._daemon.supervisor.jobs.get(result.job)
        if result.code != "timeout" or job is None or job.state not in LEAVING:
            return result
        left = self._daemon.facts(result.job).left()
        return result.replace(message=f"timed out: it is still {job.state.value}: {left}") if left else result

    def _send_and_settle(self, message: Message) -> None:
        self.send(message)
        self._settle()

    def _push(self) -> None:
        """Send a batch of the events that the reader has not seen, if it takes them now; the next when it
        takes more."""
        if not self._behind():
            return
        log = self._daemon.supervisor.log
        if not log.holds(self._cursor):
            self._drop("has fallen too many events behind")
        elif not self._stream.pending:
            self._stream.send(b"".join(self._batch(log.after(self._cursor))))

    def _has_news(self) -> bool:
        """Whether there is something to do about the events: a batch to send, or to part with a reader that
        has fallen too far behind."""
        if not self._behind():
            return False
        return not self._stream.pending or not self._daemon.supervisor.log.holds(self._cursor)

    def _behind(self) -> bool:
        """Whether there are events for it. (While it is told how things stand, the events are not due.)"""
        if self._role != protocol.EVENTS or self._ending or self._stream.closed or self._task is not None:
            return False
        return self._cursor < self._daemon.supervisor.log.last

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
        job = event[2]
        if self._rich and self._jobs is not None and job not in self._jobs and job:
            return b""
        return self._sessions.frame_of(event, rich=self._rich)

    def _settle(self, *, anew: bool = False) -> None:
        """After any work: wait for the right events, let the right timers run. `anew`: messages were
        taken, so a frame that has begun is not the one that had begun before."""
        stream = self._stream
        self._account()
        if stream.closed:
            return
        if self._is_over():
            self.close()
            return
        busy = stream.full or self._unread or self._task is not None
        interest = 0 if busy or self._ended else READ  # at its end it would be ready for ever
        if stream.pending or self._behind():
            interest |= WRITE
        if interest != self._interest:
            self._daemon.loop.modify_reader(stream.fileno(), interest)
            self._interest = interest
        self._mind_frame(anew=anew)
        self._mind_output()

    def _is_over(self) -> bool:
        """Whether all is said. Who has half-closed is answered first; a listener hears what happens until
        it closes."""
        if self._ending and not self._stream.pending:
            return True
        if not self._ended or self._unread or self._task is not None:
            return False
        return self._gone or not (self.tickets or self._stream.pending or self._role == protocol.EVENTS)

    def _mind_frame(self, *, anew: bool) -> None:
        """The clock for a frame runs from its first byte to its last, however many come between, and
        only while we read."""
        reads = self._interest & READ and not self._connection.broken
        unfinished = bool(reads and self._connection.unfinished)
        if unfinished == self._frame_due.active and not (unfinished and anew):
            return
        self._frame_due.cancel()
        if unfinished:
            self._frame_due = self._daemon.loop.call_later(FRAME_SECONDS, self._frame_late)

    def _mind_output(self) -> None:
        waiting = self._stream.pending > 0
        if waiting == self._drain_due.active and (not waiting or self._sent == self._stream.sent):
            return
        self._sent = self._stream.sent
        self._drain_due.cancel()
        if waiting:
            self._drain_due = self._daemon.loop.call_later(DRAIN_SECONDS, self._output_late)

    def _frame_late(self) -> None:
        self._drop("began a frame and did not finish it")

    def _output_late(self) -> None:
        self._drop("does not read what it is sent")

    def _drop(self, why: str) -> None:
        self._daemon.log.limited(
            logfile.WARNING, "client disconnected", why=why, uid=self.peer.uid, pid=self.peer.pid
        )
        self.close()


def _encoded(event: Event) -> bytes:
    seq, when, job, kind, state, run, pid, cause = event
    told = (seq, when, job, kind, state.value, run, pid, str(cause), causes.body(cause))
    return protocol.encode(protocol.EventMessage(*told))


def _encoded07(event: Event) -> bytes:
    code = _CODES_07.get(event[3])
    return b"" if code is None else protocol.encode(protocol.Event07(event[2], code))


# Answered at once, and shortly: however much is kept for somebody, he may.
_SMALL = frozenset(("terminate", "reload", "info", "signal"))
# These may be answered late.
_LATE = frozenset(("start", "restart", "stop", "wait"))
# Those that tell of many jobs do it step by step.
_VERBS: dict[str, Callable[[Session, protocol.Request], Iterator[None] | None]] = {
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

_NOBODY = (
    "it was closed before it was accepted, and over TCP the kernel does not say any more whose it was: keep "
    "it open until the answer comes, use a UNIX socket, or set allow-unidentified"
)
_TURNED_AWAY = protocol.encode(protocol.Failure("", protocol.ERR_NOT_PERMITTED))
_BUSY = protocol.encode(protocol.Failure("", protocol.ERR_BUSY))
