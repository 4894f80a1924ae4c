"""The messages of JobMon, typed, and the connection that turns bytes into them. No I/O.

docs/protocol.md describes the protocols. A server (the daemon) uses this module so:

    connection = Connection(CONTROL)            # or EVENTS, for a connection on the event port
    connection.feed(data)                       # whatever recv() gave
    while (message := connection.next()) is not None:   # None: more bytes are needed
        ...                                     # Command07, Request, Subscribe: checked, act on it
        ...                                     # BadRequest: send(message.answer()), carry on
        ...                                     # Broken: send(message.answer()), flush, close
    connection.unfinished                       # a frame has begun: the 15 seconds run
    data = connection.send(ReplyMessage(request.id, True, {"token": 7}))
    data = connection.send(failed(request.id, "no-such-job", "there is no job 'x'", job="x"))
    data = connection.send(Failure("", ERR_NOT_PERMITTED))          # refused at accept

`next` raises nothing when something is wrong: after what came before it follows a `Broken`, and then
None. From then on the connection is broken for ever: `feed`, and `send` of anything but an
`ErrorMessage`, raise. A client uses `Connection(CLIENT)` in the same way; `receive` is `feed` and all
that `next` gives. A message is decoded when it is asked for: until then it costs no more than its bytes.
A `Subscribe` whose bytes came along with others says nothing about time: order counts.

`encode(message)` is `send` without a connection: what goes to many is encoded once.
"""

from __future__ import annotations

from jobmon.errors import LocalProtocolError, RemoteProtocolError
from jobmon.lean import fastjson
from jobmon.lean.records import Record
from jobmon.limits import MAX_SECONDS
from jobmon.protocol.framing import MAX_REPLY, MAX_REQUEST, FrameReader, frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Self

    _Parts = tuple[Any, ...]
else:
    _Parts = tuple

# The numbers of JobMon 0.7. They are never used for anything else.
EVENT_STARTJOB, EVENT_STOPJOB, EVENT_RESTARTJOB, EVENT_TERMINATE = range(4)
CMD_START, CMD_STOP, CMD_STATUS, CMD_JOB_LIST, CMD_QUIT = range(3, 8)
MSG_EVENT, MSG_COMMAND, MSG_SUCCESS, MSG_FAILURE, MSG_STATUS, MSG_JOB_LIST = range(6)
ERR_NO_SUCH_JOB, ERR_JOB_STARTED, ERR_JOB_STOPPED = range(3)
ERR_NOT_STARTED, ERR_NOT_PERMITTED, ERR_TERMINATING, ERR_BUSY = range(3, 7)

CLIENT, CONTROL, EVENTS = "client", "control", "events"

MAX_NUMBER = (1 << 63) - 1

CONDITIONS = ("changed", "running", "ready", "restarted", "stable", "stopped", "exited", "settled")


class Message:
    """Something that travels in a frame of its own."""

    __slots__ = ()

    def body(self) -> dict[str, Any]:
        """The JSON object of it."""
        kind, names = _FORMS[type(self)]
        return {"type": kind, **dict(zip(names, self._values(), strict=True))}

    def _values(self) -> tuple[Any, ...]:
        raise NotImplementedError


# ---- JobMon 0.7: tuples whose parts have names, as they were there ---------------------------


def _part(index: int) -> Any:
    return property(lambda message: message[index])


class Message07(_Parts, Message):
    """A message of JobMon 0.7. Unpacks and compares as a tuple."""

    __slots__ = ()
    _parts: tuple[str, ...] = ()

    def __new__(cls, *parts: Any) -> Self:
        """Make one of its parts, in their order."""
        if len(parts) != len(cls._parts):
            raise TypeError(f"{cls.__name__} has {len(cls._parts)} parts: {', '.join(cls._parts)}")
        return super().__new__(cls, parts)

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self)

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={part!r}" for name, part in zip(self._parts, self, strict=True))
        return f"{type(self).__name__}({inner})"

    def _values(self) -> tuple[Any, ...]:
        return tuple(self)


class Event07(Message07):
    """An event as JobMon 0.7 knows it: `event_code` is one of EVENT_*."""

    __slots__ = ()
    _parts = ("job_name", "event_code")
    job_name: str = _part(0)
    event_code: int = _part(1)


class Command07(Message07):
    """A command as JobMon 0.7 sends it: one of CMD_*, `job_name` where the command needs one."""

    __slots__ = ()
    _parts = ("job_name", "command_code")
    job: str | None = _part(0)
    command: int = _part(1)
    job_name, command_code = job, command


class Success(Message07):
    """A 0.7 command was done."""

    __slots__ = ()
    _parts = ("job_name",)
    job_name: str = _part(0)


class Failure(Message07):
    """A 0.7 command was not done; `reason` is one of ERR_*. Also how anybody is turned away."""

    __slots__ = ()
    _parts = ("job_name", "reason")
    job_name: str = _part(0)
    reason: int = _part(1)


class Status(Message07):
    """The answer to CMD_STATUS."""

    __slots__ = ()
    _parts = ("job_name", "is_running", "pid")
    job_name: str = _part(0)
    is_running: bool = _part(1)
    pid: int | None = _part(2)


class JobList(Message07):
    """The answer to CMD_JOB_LIST: names, and whether a process lives."""

    __slots__ = ()
    _parts = ("all_jobs",)
    all_jobs: Mapping[str, bool] = _part(0)


# What they were called there.
Event, Command = Event07, Command07
SuccessResponse, FailureResponse, StatusResponse, JobListResponse = Success, Failure, Status, JobList

_REASONS = {
    ERR_NO_SUCH_JOB: "there is no such job",
    ERR_JOB_STARTED: "the job is already running",
    ERR_JOB_STOPPED: "the job is already stopped",
    ERR_NOT_STARTED: "the job could not be started",
    ERR_NOT_PERMITTED: "this user is not permitted to do that",
    ERR_TERMINATING: "the daemon is terminating",
    ERR_BUSY: "the daemon is busy: try again",
}


def reason_to_str(reason: int) -> str:
    """The `reason` of a failure in words."""
    return _REASONS.get(reason, f"unknown reason {reason}")


# ---- from the client ----------------------------------------------------------------------


class Request(Record, Message):
    """A request. `jobs` is None where all are meant, `timeout` is seconds, None for ever.

    `condition` travels as "for". `signal` is a name or a number in digits, unchecked.
    """

    id: int
    command: str
    jobs: tuple[str, ...] | None = None
    wait: bool = True
    timeout: float | None = None
    reason: str = ""
    now: bool = False
    condition: str = ""
    duration: float = 0.0
    any: bool = False
    since: int | None = None
    acts: bool = False
    signal: str = ""
    all: bool = False
    tree: bool = False
    dry_run: bool = False
    restart: bool = False

    def body(self) -> dict[str, Any]:
        """The JSON object of it: what its command takes and what is not the default."""
        body: dict[str, Any] = {"type": "request", "id": self.id, "command": self.command}
        for key in COMMANDS.get(self.command, ()):
            field = _FIELDS.get(key, key)
            value = getattr(self, field)
            if value != self._defaults[field]:
                body[key] = value
        return body


class Subscribe(Record, Message):
    """Asks for rich events: those after `since` (None: from now), of `jobs` (None: of all)."""

    since: int | None = None
    jobs: tuple[str, ...] | None = None


# ---- from the daemon ----------------------------------------------------------------------


class ReplyMessage(Record, Message):
    """The answer to the request `id`; `rest` is what else it says."""

    id: int
    ok: bool
    rest: Mapping[str, Any] = {}

    def body(self) -> dict[str, Any]:
        """The JSON object of it."""
        return {"type": "reply", "id": self.id, "ok": self.ok, **self.rest}


class JobStatus(Record):
    """What is known of one job. Times are UNIX times, in seconds.

    `until` is when the present state ends by itself: a backoff, the patience of a stop.
    `next` is what follows the present stop. `processes` is None where nobody has counted. `tree` is
    there when it was asked for: pid, parent's pid and command line of each process, its leader first.
    `says` is what it has said of itself (STATUS= of sd_notify(3)). `stale` are the keys of its
    configuration that were changed under its run, which does not heed them.
    """

    job: str
    state: str
    alive: bool
    pid: int | None = None
    run: int = 0
    since: float = 0.0
    restarts: int = 0
    result: str = ""
    next: str | None = None
    until: float | None = None
    processes: int | None = None
    description: str = ""
    tree: tuple[tuple[int, int, str], ...] | None = None
    says: str = ""
    stale: tuple[str, ...] = ()

    def body(self) -> dict[str, Any]:
        """The JSON object of it."""
        return dict(zip(self._fields, self._values(), strict=True))


class Snapshot(Record, Message):
    """How things stood at event `seq`. `jobs` None: as they stood at the `since` asked for.

    `missed`: events after that `since` are lost, and the jobs are told in full instead.
    """

    seq: int
    jobs: tuple[JobStatus, ...] | None
    missed: bool = False

    def body(self) -> dict[str, Any]:
        """The JSON object of it."""
        jobs = None if self.jobs is None else [job.body() for job in self.jobs]
        return {"type": "snapshot", "seq": self.seq, "jobs": jobs, "missed": self.missed}


class EventMessage(Record, Message):
    """A rich event: number `seq`, at the UNIX time `time`; `event` is what happened to `job`. `cause` says
    why in words; `why` says it for programs: a `kind`, and what belongs to that kind."""

    seq: int
    time: float
    job: str
    event: str
    state: str
    run: int
    pid: int | None
    cause: str
    why: Mapping[str, Any] = {}


class ErrorMessage(Record, Message):
    """The last words to a peer who broke the protocol: code bad-frame, bad-json, bad-message."""

    code: str
    message: str

    def body(self) -> dict[str, Any]:
        """The JSON object of it."""
        return {"type": "error", "error": {"code": self.code, "message": self.message}}


# The messages that are flat: their type on the wire, and the names of their fields there.
_FORMS: dict[type[Message], tuple[int | str, tuple[str, ...]]] = {
    Event07: (MSG_EVENT, ("job", "event")),
    Command07: (MSG_COMMAND, ("job", "command")),
    Success: (MSG_SUCCESS, ("job",)),
    Failure: (MSG_FAILURE, ("job", "reason")),
    Status: (MSG_STATUS, ("job", "is_running", "pid")),
    JobList: (MSG_JOB_LIST, ("all_jobs",)),
    Subscribe: ("subscribe", ("since", "jobs")),
    EventMessage: ("event", ("seq", "time", "job", "event", "state", "run", "pid", "cause", "why")),
}


# ---- what a connection says of the bytes --------------------------------------------------


class BadRequest(Record):
    """A request that can be answered, though not done. The connection goes on."""

    id: int
    code: str
    message: str

    def answer(self) -> ReplyMessage:
        """What to send."""
        return failed(self.id, self.code, self.message)


class Broken(Record):
    """The peer broke the protocol; nothing comes after this."""

    code: str
    message: str

    def answer(self) -> ErrorMessage:
        """What a server sends before it closes."""
        return ErrorMessage(self.code, self.message)


def failed(
    request_id: int,
    code: str,
    message: str,
    *,
    job: str | None = None,
    results: tuple[tuple[str, str, str], ...] = (),
) -> ReplyMessage:
    """The reply that says no. `results` are (job, code, message), code empty where it was done."""
    error = {"code": code, "message": message}
    if job is not None:
        error["job"] = job
    rest: dict[str, Any] = {"error": error}
    if results:
        rest["results"] = [result(*one) for one in results]
    return ReplyMessage(request_id, False, rest)


def result(
    job: str, code: str = "", message: str = "", exit_status: int | str | None = None
) -> dict[str, Any]:
    """One entry of a reply's "results"; `exit_status` is how the run ended, if that was asked for."""
    if code:
        return {"job": job, "ok": False, "error": {"code": code, "message": message}}
    if exit_status is not None:
        return {"job": job, "ok": True, "exit": exit_status}
    return {"job": job, "ok": True}


def encode(message: Message, limit: int = MAX_REPLY) -> bytes:
    """The frame of a message.

    Raises:
        LocalProtocolError: it holds half a surrogate pair, NaN or Infinity, or is too long.
    """
    try:
        payload = fastjson.encode(message.body(), spaced=isinstance(message, Message07))
    except ValueError as error:
        raise LocalProtocolError(f"cannot be sent: {error}") from None
    return frame(payload, limit)


class Connection:
    """One end of a connection: bytes in, messages out, and the other way round."""

    def __init__(self, role: str) -> None:
        self._role = role
        self._decoders = _RECEIVED_BY[role]
        self._sends = _SENT_BY[role]
        self._limit = MAX_REQUEST if role == CLIENT else MAX_REPLY
        self._frames = FrameReader(MAX_REPLY if role == CLIENT else MAX_REQUEST)
        self._broken: Broken | None = None

    @property
    def unfinished(self) -> bool:
        """Whether a frame has begun and not ended."""
        return self._frames.unfinished

    @property
    def wanted(self) -> int:
        """How many bytes to read so that no more than the present message is taken."""
        return self._frames.wanted

    @property
    def held(self) -> int:
        """How many bytes have come and were not asked for."""
        return self._frames.held

    @property
    def broken(self) -> bool:
        """Whether the peer broke the protocol."""
        return self._broken is not None

    def receive(self, data: bytes) -> list[Message | BadRequest | Broken]:
        """The messages that these bytes complete, in order.

        Raises:
            RemoteProtocolError: the connection was broken before; a `Broken` has said so.
        """
        self.feed(data)
        messages: list[Message | BadRequest | Broken] = []
        while (message := self.next()) is not None:
            messages.append(message)
        return messages

    def feed(self, data: bytes) -> None:
        """Take bytes as they came.

        Raises:
            RemoteProtocolError: the connection was broken before; a `Broken` has said so.
        """
        self._refuse_if_broken()
        self._frames.feed(data)

    def next(self) -> Message | BadRequest | Broken | None:
        """The next message; None when more bytes are needed, or nothing comes any more."""
        if self._broken is not None:
            return None
        try:
            payload = self._frames.next()
            return None if payload is None else self._decode(payload)
        except RemoteProtocolError as error:
            return self._break("bad-frame", str(error))
        except _Unreadable as error:
            return self._break(error.code, str(error))

    def end(self, code: str, message: str) -> Broken:
        """Take nothing more; as if the peer had broken the protocol."""
        return self._break(code, message)

    def send(self, message: Message) -> bytes:
        """The bytes of a message.

        Raises:
            LocalProtocolError: this end may not send it, or it cannot be sent.
            RemoteProtocolError: the connection is broken, and this is no ErrorMessage.
        """
        if not isinstance(message, self._sends):
            raise LocalProtocolError(f"a {type(message).__name__} is not for the {self._role} end to send")
        if not isinstance(message, ErrorMessage):
            self._refuse_if_broken()
        return encode(message, self._limit)

    def _decode(self, payload: bytes) -> Message | BadRequest:
        try:
            body = fastjson.decode(payload)
        except ValueError as error:
            raise _Unreadable("bad-json", f"a message cannot be read: {error}") from None
        kind: Any = body.get("type")
        decode = self._decoders.get(kind) if type(kind) in (int, str) else None
        if decode is None:
            raise _Unreadable("bad-message", _unknown_type(body, self._role))
        try:
            return decode(body)
        except ValueError as error:
            raise _Unreadable("bad-message", f"a message of type {kind!r}: {error}") from None

    def _break(self, code: str, message: str) -> Broken:
        self._frames.clear()
        self._broken = Broken(code, message)
        return self._broken

    def _refuse_if_broken(self) -> None:
        if self._broken is not None:
            raise RemoteProtocolError(self._broken.message)


class _Unreadable(Exception):
    """A frame that is no message; the text is for the peer."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def _unknown_type(body: Mapping[str, Any], role: str) -> str:
    if "type" not in body:
        return 'a message has no "type"'
    where = "by a client" if role == CLIENT else f"on the {role[:7].rstrip('s')} port"
    return f"a message of type {_shown(body['type'])} is not accepted {where}"


def _shown(value: object) -> str:
    """A peer's value in an error, in JSON's words and never longer than a line."""
    words = {"NoneType": "null", "bool": str(value).lower(), "list": "a list", "dict": "an object"}
    text = words.get(type(value).__name__) or repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ---- reading: ValueError says what is wrong -----------------------------------------------


def _need(body: Mapping[str, Any], key: str, check: Callable[[Any], Any]) -> Any:
    if key not in body:
        raise ValueError(f'"{key}" is missing')
    return _checked(body[key], key, check)


def _checked(value: Any, key: str, check: Callable[[Any], Any]) -> Any:
    try:
        return check(value)
    except ValueError as error:
        raise ValueError(f'"{key}" {error}, not {_shown(value)}') from None


def _string(value: Any) -> Any:
    if type(value) is not str:
        raise ValueError("must be a string")
    return value


def _flag(value: Any) -> Any:
    if type(value) is not bool:
        raise ValueError("must be true or false")
    return value


def _count(value: Any) -> Any:
    if type(value) is not int or not 0 <= value <= MAX_NUMBER:
        raise ValueError("must be a whole number from 0 to 2**63-1")
    return value


def _moment(value: Any) -> Any:
    if type(value) not in (int, float) or not -MAX_NUMBER <= value <= MAX_NUMBER:
        raise ValueError("must be a time in seconds")
    return value


def _timeout(value: Any) -> Any:
    if type(value) not in (int, float) or not 0 <= value <= MAX_SECONDS:
        raise ValueError("must be a number of seconds up to ten years")
    return float(value)


def _names(value: Any) -> Any:
    if type(value) is not list or not value or not all(type(name) is str for name in value):
        raise ValueError("must be a non-empty list of names")
    return tuple(dict.fromkeys(value))


def _signal(value: Any) -> Any:
    if type(value) is int and 0 <= value <= 1000:
        return str(value)
    if type(value) is not str:
        raise ValueError("must be the name or the number of a signal")
    return value


def _condition(value: Any) -> Any:
    if value not in CONDITIONS:
        raise ValueError(f"must be one of {', '.join(CONDITIONS)}")
    return value


def _object(value: Any) -> Any:
    if type(value) is not dict:
        raise ValueError("must be an object")
    return value


def _or_null(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


def _command07(body: Mapping[str, Any]) -> Command07:
    command = _need(body, "command", _count)
    if not CMD_START <= command <= CMD_QUIT:
        raise ValueError(f"unknown command {_shown(command)}")
    takes_job = command in (CMD_START, CMD_STOP, CMD_STATUS)
    return Command07(_need(body, "job", _string) if takes_job else None, command)


# What each command takes, in the order of the wire, and which of that it cannot do without.
COMMANDS: dict[str, tuple[str, ...]] = {
    "start": ("jobs", "wait", "for", "duration", "timeout", "reason"),
    "stop": ("jobs", "wait", "for", "duration", "timeout", "reason", "now"),
    "restart": ("jobs", "wait", "for", "duration", "timeout", "reason"),
    "status": ("jobs", "tree"),
    "list": (),
    "wait": ("jobs", "for", "duration", "any", "since", "acts", "timeout"),
    "signal": ("jobs", "signal", "all", "reason"),
    "terminate": ("reason",),
    "reload": ("dry-run", "restart"),
    "info": (),
    "graph": (),
    "why": ("jobs",),
}
_REQUIRED = {"why": 1, "start": 1, "stop": 1, "restart": 1, "wait": 1, "signal": 2}
_FIELDS = {"for": "condition", "dry-run": "dry_run"}
_CHECKS: dict[str, Callable[[Any], Any]] = {
    "jobs": _names,
    "wait": _flag,
    "timeout": _timeout,
    "reason": _string,
    "now": _flag,
    "for": _condition,
    "duration": _timeout,
    "any": _flag,
    "since": _count,
    "acts": _flag,
    "signal": _signal,
    "all": _flag,
    "tree": _flag,
    "dry-run": _flag,
    "restart": _flag,
}
_ENVELOPE = frozenset(("type", "id", "command"))


def _request(body: Mapping[str, Any]) -> Request | BadRequest:
    number = _need(body, "id", _count)
    command = body.get("command")
    if type(command) is not str or command not in COMMANDS:
        return BadRequest(number, "unknown-command", f"unknown command {_shown(command)}")
    try:
        return Request(number, command, **_arguments(body, command))
    except ValueError as error:
        return BadRequest(number, "bad-request", f"{command}: {error}")


def _arguments(body: Mapping[str, Any], command: str) -> dict[str, Any]:
    """An argument that is null counts as left out; one that nobody knows is refused, not ignored."""
    takes = COMMANDS[command]
    given = {}
    for key, value in body.items():
        if key in _ENVELOPE:
            continue
        if key not in takes:
            raise ValueError(f"unknown argument {_shown(key)}")
        if value is not None:
            given[_FIELDS.get(key, key)] = _checked(value, key, _CHECKS[key])
    for key in takes[: _REQUIRED.get(command, 0)]:
        if key not in given:
            raise ValueError(f'"{key}" is missing')
    return given


def _subscribe(body: Mapping[str, Any]) -> Subscribe:
    since = _checked(body.get("since"), "since", _or_null(_count))
    return Subscribe(since, _checked(body.get("jobs"), "jobs", _or_null(_names)))


def _event07(body: Mapping[str, Any]) -> Event07:
    return Event07(_need(body, "job", _string), _need(body, "event", _count))


def _success(body: Mapping[str, Any]) -> Success:
    return Success(_need(body, "job", _string))


def _failure(body: Mapping[str, Any]) -> Failure:
    return Failure(_need(body, "job", _string), _need(body, "reason", _count))


def _status(body: Mapping[str, Any]) -> Status:
    pid = _checked(body.get("pid"), "pid", _or_null(_count))
    return Status(_need(body, "job", _string), _need(body, "is_running", _flag), pid)


def _job_list(body: Mapping[str, Any]) -> JobList:
    jobs = _need(body, "all_jobs", _object)
    for name, alive in jobs.items():
        _checked(alive, name, _flag)
    return JobList(jobs)


def _reply(body: dict[str, Any]) -> ReplyMessage:
    number, ok = _need(body, "id", _count), _need(body, "ok", _flag)
    del body["type"], body["id"], body["ok"]
    if not ok:
        error = _need(body, "error", _object)
        _need(error, "code", _string)
        _need(error, "message", _string)
    return ReplyMessage(number, ok, body)


def _tree(value: Any) -> Any:
    if type(value) is not list or not all(map(_is_process, value)):
        raise ValueError("must be a list of processes, each a pid, its parent's and a command line")
    return tuple(map(tuple, value))


def _is_process(value: Any) -> bool:
    return type(value) is list and list(map(type, value)) == [int, int, str]


def _keys(value: Any) -> Any:
    if type(value) is not list or not all(type(key) is str for key in value):
        raise ValueError("must be a list of keys")
    return tuple(value)


_STATUS_CHECKS: dict[str, Callable[[Any], Any]] = {
    "job": _string,
    "state": _string,
    "alive": _flag,
    "pid": _or_null(_count),
    "run": _count,
    "since": _moment,
    "restarts": _count,
    "result": _string,
    "next": _or_null(_string),
    "until": _or_null(_moment),
    "processes": _or_null(_count),
    "description": _string,
    "tree": _or_null(_tree),
    "says": _string,
    "stale": _keys,
}


def job_status(body: Any) -> JobStatus:
    """The JobStatus of a JSON object; what is not known of is left out.

    Raises:
        ValueError: it is no status.
    """
    _object(body)
    given = {key: check(body[key]) for key, check in _STATUS_CHECKS.items() if key in body}
    if "job" not in given or "state" not in given or "alive" not in given:
        raise ValueError("must have job, state and alive")
    return JobStatus(**given)


def _statuses(value: Any) -> Any:
    if type(value) is not list:
        raise ValueError("must be a list")
    return tuple(map(job_status, value))


def _snapshot(body: Mapping[str, Any]) -> Snapshot:
    jobs = _checked(body.get("jobs"), "jobs", _or_null(_statuses))
    return Snapshot(_need(body, "seq", _count), jobs, _checked(body.get("missed", False), "missed", _flag))


def _event(body: Mapping[str, Any]) -> EventMessage:
    return EventMessage(
        _need(body, "seq", _count),
        _need(body, "time", _moment),
        _need(body, "job", _string),
        _need(body, "event", _string),
        _need(body, "state", _string),
        _need(body, "run", _count),
        _checked(body.get("pid"), "pid", _or_null(_count)),
        _need(body, "cause", _string),
        _checked(body.get("why", {}), "why", _object),
    )


def _error(body: Mapping[str, Any]) -> ErrorMessage:
    error = _need(body, "error", _object)
    return ErrorMessage(_need(error, "code", _string), _need(error, "message", _string))


_RECEIVED_BY: dict[str, dict[int | str, Callable[[Any], Message | BadRequest]]] = {
    CONTROL: {MSG_COMMAND: _command07, "request": _request},
    EVENTS: {"subscribe": _subscribe},
    CLIENT: {
        MSG_EVENT: _event07,
        MSG_SUCCESS: _success,
        MSG_FAILURE: _failure,
        MSG_STATUS: _status,
        MSG_JOB_LIST: _job_list,
        "reply": _reply,
        "event": _event,
        "snapshot": _snapshot,
        "error": _error,
    },
}
_SENT_BY: dict[str, tuple[type[Message], ...]] = {
    CONTROL: (Success, Failure, Status, JobList, ReplyMessage, ErrorMessage),
    EVENTS: (Event07, EventMessage, Snapshot, Failure, ErrorMessage),
    CLIENT: (Command07, Request, Subscribe),
}
