"""The protocol: golden frames, round trips, every split, and garbage that gets one clear answer."""

from __future__ import annotations

import copy
import json
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobmon import errors, protocol
from jobmon.errors import LocalProtocolError, RemoteProtocolError
from jobmon.lean import fastjson
from jobmon.limits import MAX_SECONDS
from jobmon.protocol import (
    CLIENT,
    COMMANDS,
    CONTROL,
    EVENTS,
    BadRequest,
    Broken,
    Command07,
    Connection,
    ErrorMessage,
    Event07,
    EventMessage,
    Failure,
    JobList,
    JobStatus,
    Message,
    ReplyMessage,
    Request,
    Snapshot,
    Status,
    Subscribe,
    Success,
    encode,
    failed,
)
from jobmon.protocol.framing import MAX_REPLY, MAX_REQUEST, frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAMES = st.text(st.characters(codec="utf-8"), max_size=12)
COUNTS = st.integers(0, protocol.MAX_NUMBER)
PIDS = st.none() | st.integers(1, 1 << 22)
TIMES = st.floats(0, 1e10)
JOBS = st.lists(NAMES, min_size=1, max_size=3, unique=True).map(tuple)

STATUSES = st.builds(
    JobStatus,
    NAMES,
    st.sampled_from(("running", "backoff")),
    st.booleans(),
    PIDS,
    COUNTS,
    TIMES,
    COUNTS,
    NAMES,
    st.none() | NAMES,
    st.none() | TIMES,
    st.none() | COUNTS,
    NAMES,
)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """A request with arguments that its command takes."""
    command = draw(st.sampled_from(sorted(COMMANDS)))
    drawn: dict[str, Any] = {
        "jobs": JOBS,
        "wait": st.booleans(),
        "timeout": st.none() | st.floats(0, MAX_SECONDS),
        "reason": NAMES,
        "now": st.booleans(),
        "signal": NAMES.filter(bool),
        "all": st.booleans(),
    }
    given = {key: draw(drawn[key]) for key in COMMANDS[command] if key in drawn}
    return Request(draw(COUNTS), command, **given)


FROM_CLIENT = {
    CONTROL: requests() | st.builds(Command07, NAMES, st.sampled_from((3, 4, 5))),
    EVENTS: st.builds(Subscribe, st.none() | COUNTS, st.none() | JOBS),
}
FROM_DAEMON = {
    CONTROL: st.one_of(
        st.builds(Success, NAMES),
        st.builds(Failure, NAMES, st.integers(0, 5)),
        st.builds(Status, NAMES, st.booleans(), PIDS),
        st.builds(JobList, st.dictionaries(NAMES, st.booleans(), max_size=3)),
        st.builds(ReplyMessage, COUNTS, st.just(True), st.just({"token": 7})),
        st.builds(failed, COUNTS, st.sampled_from(errors.CODES), NAMES, job=NAMES),
        st.builds(ErrorMessage, NAMES, NAMES),
    ),
    EVENTS: st.one_of(
        st.builds(Event07, NAMES, st.integers(0, 3)),
        st.builds(EventMessage, COUNTS, TIMES, NAMES, NAMES, NAMES, COUNTS, PIDS, NAMES),
        st.builds(Snapshot, COUNTS, st.none() | st.lists(STATUSES, max_size=2).map(tuple), st.booleans()),
    ),
}


def received(role: str, *pieces: bytes) -> list[Any]:
    """What a connection makes of some bytes."""
    connection = Connection(role)
    return [message for piece in pieces for message in connection.receive(piece)]


def broken(role: str, payload: bytes) -> Broken:
    """The one thing that comes of a payload that is no message."""
    (only,) = received(role, frame(payload))
    assert isinstance(only, Broken), only
    return only


# ---- bounds ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("0", True),
        ("9223372036854775807", True),
        ("9223372036854775808", False),
        ("-1", False),
        ("1.0", False),
        ("true", False),
        ('"1"', False),
        ("null", False),
    ],
)
def test_a_number_is_whole_and_has_63_bits(text: str, right: bool) -> None:
    """An id, and so every count, is a whole number from 0 to 2**63-1; anything else is no message."""
    payload = b'{"type":"request","command":"list","id":%s}' % text.encode()

    (only,) = received(CONTROL, frame(payload))
    assert isinstance(only, Request) == right
    assert isinstance(only, Request | Broken)
    if isinstance(only, Request):
        assert only.id == int(text)


@pytest.mark.parametrize(
    ("key", "text", "right"),
    [
        ("timeout", "0", True),
        ("timeout", "315360000", True),
        ("timeout", "315360000.5", False),
        ("timeout", "-0.001", False),
        ("timeout", "true", False),
        ("since", "9223372036854775807", True),
        ("since", "9223372036854775808", False),
        ("signal", "1000", True),
        ("signal", "1001", False),
        ("signal", "-1", False),
    ],
)
def test_the_bounds_of_arguments(key: str, text: str, right: bool) -> None:
    """The last value that is allowed is, and the first beyond it is refused by a word about the key."""
    command = b"signal" if key == "signal" else b"wait"
    payload = b'{"type":"request","id":1,"command":"%s","jobs":["a"],"%s":%s}'

    (only,) = received(CONTROL, frame(payload % (command, key.encode(), text.encode())))
    assert isinstance(only, Request) == right
    if not right:
        assert isinstance(only, BadRequest)
        assert f'"{key}" must be' in only.message


@pytest.mark.parametrize(("text", "right"), [(str(2**63 - 1), True), ("-9.3e18", False), ("9.3e18", False)])
def test_a_time_has_bounds(text: str, right: bool) -> None:
    """The time of an event is a number that a clock can show, before or after 1970."""
    event = b'{"type":"event","seq":1,"time":%s,"job":"a",' % text.encode()
    event += b'"event":"died","state":"failed","run":1,"pid":1,"cause":""}'

    (only,) = received(CLIENT, frame(event))
    assert isinstance(only, EventMessage if right else Broken)


# ---- golden frames ---------------------------------------------------------------------------

GOLDEN: list[tuple[Message, bytes]] = [
    (Event07("Job A", 0), b'{"type": 0, "job": "Job A", "event": 0}'),
    (Event07("Job A", 1), b'{"type": 0, "job": "Job A", "event": 1}'),
    (Event07("Job A", 2), b'{"type": 0, "job": "Job A", "event": 2}'),
    (Event07("", 3), b'{"type": 0, "job": "", "event": 3}'),
    (Command07("web", 3), b'{"type": 1, "job": "web", "command": 3}'),
    (Command07("web", 4), b'{"type": 1, "job": "web", "command": 4}'),
    (Command07("web", 5), b'{"type": 1, "job": "web", "command": 5}'),
    (Command07(None, 6), b'{"type": 1, "job": null, "command": 6}'),
    (Command07(None, 7), b'{"type": 1, "job": null, "command": 7}'),
    (Success("web"), b'{"type": 2, "job": "web"}'),
    (Failure("web", 0), b'{"type": 3, "job": "web", "reason": 0}'),
    (Failure("", 4), b'{"type": 3, "job": "", "reason": 4}'),
    (Status("web", True, 12), b'{"type": 4, "job": "web", "is_running": true, "pid": 12}'),
    (Status("web", False, None), b'{"type": 4, "job": "web", "is_running": false, "pid": null}'),
    (JobList({"a": True, "b": False}), b'{"type": 5, "all_jobs": {"a": true, "b": false}}'),
    (Success('\xfc"\\\n\U0001f600'), b'{"type": 2, "job": "\\u00fc\\"\\\\\\n\\ud83d\\ude00"}'),
    (Subscribe(), b'{"type":"subscribe","since":null,"jobs":null}'),
    (
        Request(1, "wait", ("a",), timeout=2.0),
        b'{"type":"request","id":1,"command":"wait","jobs":["a"],"timeout":2.0}',
    ),
    (
        failed(7, "no-such-job", "no"),
        b'{"type":"reply","id":7,"ok":false,"error":{"code":"no-such-job","message":"no"}}',
    ),
    (ErrorMessage("bad-json", "no"), b'{"type":"error","error":{"code":"bad-json","message":"no"}}'),
    (
        EventMessage(4, 1.5, "w", "died", "", 2, None, "", {"kind": "exited", "status": 0}),
        (
            b'{"type":"event","seq":4,"time":1.5,"job":"w","event":"died","state":"","run":2,"pid":null,'
            b'"cause":"","why":{"kind":"exited","status":0}}'
        ),
    ),
]


@pytest.mark.parametrize(("message", "payload"), GOLDEN)
def test_golden_frames(message: Message, payload: bytes) -> None:
    """Each message is on the wire, byte for byte, what the protocol says."""
    assert encode(message) == len(payload).to_bytes(4, "big") + payload


def test_numbers_of_07() -> None:
    """The numbers of JobMon 0.7 have the names and the values that its users know."""
    p = protocol

    assert (p.EVENT_STARTJOB, p.EVENT_STOPJOB, p.EVENT_RESTARTJOB, p.EVENT_TERMINATE) == (0, 1, 2, 3)
    assert (p.CMD_START, p.CMD_STOP, p.CMD_STATUS, p.CMD_JOB_LIST, p.CMD_QUIT) == (3, 4, 5, 6, 7)
    assert (p.MSG_EVENT, p.MSG_COMMAND, p.MSG_SUCCESS) == (0, 1, 2)
    assert (p.MSG_FAILURE, p.MSG_STATUS, p.MSG_JOB_LIST) == (3, 4, 5)
    assert (p.ERR_NO_SUCH_JOB, p.ERR_JOB_STARTED, p.ERR_JOB_STOPPED) == (0, 1, 2)
    assert (p.ERR_NOT_STARTED, p.ERR_NOT_PERMITTED, p.ERR_TERMINATING) == (3, 4, 5)


def test_messages_of_07_are_its_bytes() -> None:
    """Any of them is what json.dumps makes of it when nothing is said about separators, as 0.7 did."""
    names = ("web", "", "a, b: c", '"quoted", \\', "d\u00e9j\u00e0\n", "\U0001f600", "\0")
    for name in names:
        messages = (
            Event07(name, 1),
            Command07(name, 5),
            Success(name),
            Failure(name, 2),
            Status(name, True, 4711),
            Status(name, False, None),
            JobList({name: True, "other": False}),
        )
        for message in messages:
            text = json.dumps(message.body()).encode()
            assert encode(message) == len(text).to_bytes(4, "big") + text


def test_messages_of_07_are_its_tuples() -> None:
    """They unpack, compare and hash as the pairs that they were, under the names that they had."""
    event = Event07("web", protocol.EVENT_STARTJOB)
    job_name, event_code = event
    assert event == (job_name, event_code) == ("web", 0)
    assert (event[0], event[1], len(event), hash(event)) == ("web", 0, 2, hash(("web", 0)))
    assert repr(event) == "Event07(job_name='web', event_code=0)"
    assert copy.copy(event) == copy.deepcopy(event) == event
    assert isinstance(event, protocol.Event) and isinstance(copy.deepcopy(event), Event07)
    with pytest.raises(TypeError, match="has 2 parts: job_name, event_code"):
        Event07("web")
    p = protocol
    assert p.Command("web", p.CMD_START) == ("web", 3)
    assert (p.Command("web", 3).job_name, p.Command("web", 3).command_code) == ("web", 3)
    assert p.SuccessResponse("web").job_name == "web"
    assert (p.FailureResponse("web", 1).job_name, p.FailureResponse("web", 1).reason) == ("web", 1)
    assert p.StatusResponse("web", True, 9).is_running and p.StatusResponse("web", True, 9).pid == 9
    assert p.JobListResponse({"web": True}).all_jobs == {"web": True}


def test_reasons_are_told_in_words() -> None:
    """Each reason of a failure has its words, and one that nobody knows is told as a number."""
    reasons = sorted(getattr(protocol, name) for name in dir(protocol) if name.startswith("ERR_"))
    words = {protocol.reason_to_str(reason) for reason in reasons}

    assert reasons == list(range(7))
    assert len(words) == 7
    assert not any(word.startswith("unknown") for word in words)
    assert protocol.reason_to_str(protocol.ERR_NO_SUCH_JOB) == "there is no such job"
    assert protocol.reason_to_str(99) == "unknown reason 99"


# ---- round trips -----------------------------------------------------------------------------


@pytest.mark.parametrize("port", [CONTROL, EVENTS])
@given(data=st.data())
def test_round_trip(port: str, data: st.DataObject) -> None:
    """What one end sends is what the other receives, in both directions."""
    asked = data.draw(FROM_CLIENT[port])
    told = data.draw(FROM_DAEMON[port])

    assert received(port, Connection(CLIENT).send(asked)) == [asked]
    assert received(CLIENT, Connection(port).send(told)) == [told]


@given(st.lists(FROM_CLIENT[CONTROL], max_size=4), st.lists(st.integers(0, 600), max_size=6))
def test_every_split(messages: list[Message], cuts: list[int]) -> None:
    """Pipelined messages come out the same however their bytes are cut."""
    data = b"".join(map(encode, messages))
    marks = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[a:b] for a, b in pairwise(marks)]

    assert received(CONTROL, *pieces) == messages


def test_a_byte_at_a_time() -> None:
    """A message in single bytes is one message, at its last byte."""
    data = encode(Request(1, "status", ("web",)))
    connection = Connection(CONTROL)

    for index in range(len(data) - 1):
        assert connection.receive(data[index : index + 1]) == []
        assert connection.unfinished
    assert connection.receive(data[-1:]) == [Request(1, "status", ("web",))]
    assert not connection.unfinished


# ---- what is refused -------------------------------------------------------------------------

GARBAGE = [
    (b"", "bad-json"),
    (b"\xff", "bad-json"),
    (b"{", "bad-json"),
    (b"nonsense", "bad-json"),
    (b'{"type":1} x', "bad-json"),
    (b'{"type":01}', "bad-json"),
    (b'{"type":"\x00"}', "bad-json"),
    (b'{"type":NaN}', "bad-json"),
    (b'{"type":1e999}', "bad-json"),
    (b'{"type":1,"job":"\\ud800","command":3}', "bad-json"),
    (b'{"type":' + b"9" * 5000 + b"}", "bad-json"),
    (b"[" * 100_000, "bad-json"),
    (b'{"a":' * 100_000, "bad-json"),
    (b"[]", "bad-json"),
    (b"1", "bad-json"),
    (b"{}", "bad-message"),
    (b'{"type":null}', "bad-message"),
    (b'{"type":[]}', "bad-message"),
    (b'{"type":true,"job":"web","command":3}', "bad-message"),
    (b'{"type":1.0,"job":"web","command":3}', "bad-message"),
    (b'{"type":99}', "bad-message"),
    (b'{"type":2,"job":"web"}', "bad-message"),
    (b'{"type":"subscribe"}', "bad-message"),
    (b'{"type":1}', "bad-message"),
    (b'{"type":1,"job":"web","command":2}', "bad-message"),
    (b'{"type":1,"job":"web","command":true}', "bad-message"),
    (b'{"type":1,"job":null,"command":3}', "bad-message"),
    (b'{"type":1,"job":7,"command":3}', "bad-message"),
    (b'{"type":"request","command":"info"}', "bad-message"),
    (b'{"type":"request","id":"1","command":"info"}', "bad-message"),
    (b'{"type":"request","id":-1,"command":"info"}', "bad-message"),
    (b'{"type":"request","id":true,"command":"info"}', "bad-message"),
]


@pytest.mark.parametrize(("payload", "code"), GARBAGE, ids=[repr(p[:30]) for p, _ in GARBAGE])
def test_garbage_breaks_the_connection(payload: bytes, code: str) -> None:
    """What is no message for this port gets one error with the right code, of at most a few lines."""
    answer = broken(CONTROL, payload)

    assert answer.code == code
    assert 0 < len(answer.message) < 300
    assert received(CLIENT, Connection(CONTROL).send(answer.answer())) == [answer.answer()]


BAD_REQUESTS = [
    ({"command": "frobnicate"}, "unknown-command"),
    ({"command": None}, "unknown-command"),
    ({"command": ["start"]}, "unknown-command"),
    ({}, "unknown-command"),
    ({"command": "start"}, "bad-request"),
    ({"command": "start", "jobs": None}, "bad-request"),
    ({"command": "start", "jobs": []}, "bad-request"),
    ({"command": "start", "jobs": "web"}, "bad-request"),
    ({"command": "start", "jobs": ["web", 1]}, "bad-request"),
    ({"command": "start", "jobs": ["web"], "wait": 1}, "bad-request"),
    ({"command": "start", "jobs": ["web"], "timeout": -1}, "bad-request"),
    ({"command": "start", "jobs": ["web"], "timeout": True}, "bad-request"),
    ({"command": "start", "jobs": ["web"], "timeout": 1e300}, "bad-request"),
    ({"command": "start", "jobs": ["web"], "reason": 1}, "bad-request"),
    ({"command": "start", "jobs": ["web"], "now": True}, "bad-request"),
    ({"command": "wait", "jobs": ["web"], "for": "redy"}, "bad-request"),
    ({"command": "wait", "jobs": ["web"], "any": 1}, "bad-request"),
    ({"command": "wait", "jobs": ["web"], "since": -1}, "bad-request"),
    ({"command": "signal", "jobs": ["web"]}, "bad-request"),
    ({"command": "signal", "jobs": ["web"], "signal": 1.5}, "bad-request"),
    ({"command": "signal", "jobs": ["web"], "signal": -1}, "bad-request"),
    ({"command": "list", "jobs": ["web"]}, "bad-request"),
]


@pytest.mark.parametrize(("rest", "code"), BAD_REQUESTS, ids=str)
def test_a_bad_request_is_answered_and_the_next_one_done(rest: dict[str, Any], code: str) -> None:
    """A request with an id that cannot be done gets a reply with that id; the connection goes on."""
    bad = frame(fastjson.encode({"type": "request", "id": 5, **rest}))
    good = Request(6, "info")

    first, second = received(CONTROL, bad + encode(good))

    assert isinstance(first, BadRequest)
    assert (first.id, first.code) == (5, code)
    assert first.answer().rest["error"]["code"] == code
    assert second == good


def test_an_argument_that_is_null_counts_as_left_out() -> None:
    """A client may spell out what it does not want."""
    body = {"type": "request", "id": 1, "command": "start", "jobs": ["web"], "timeout": None, "reason": None}

    assert received(CONTROL, frame(fastjson.encode(body))) == [Request(1, "start", ("web",))]


def test_a_name_given_twice_counts_once() -> None:
    """The jobs of a request are a set in the order given."""
    body = {"type": "request", "id": 1, "command": "start", "jobs": ["b", "a", "b"]}

    assert received(CONTROL, frame(fastjson.encode(body))) == [Request(1, "start", ("b", "a"))]


def test_a_signal_may_be_a_number() -> None:
    """The number of a signal arrives as its digits."""
    body = {"type": "request", "id": 1, "command": "signal", "jobs": ["a"], "signal": 9}

    assert received(CONTROL, frame(fastjson.encode(body))) == [Request(1, "signal", ("a",), signal="9")]


def test_what_came_before_the_bad_message_is_not_lost() -> None:
    """The good messages of the same bytes come first, `Broken` last, and what follows is not read."""
    good = Request(1, "info")
    data = encode(good) + frame(b"nonsense") + encode(good)

    first, last = received(CONTROL, data)

    assert first == good
    assert isinstance(last, Broken)


def test_a_broken_connection_keeps_nothing() -> None:
    """What came after the bad message is let go at once."""
    connection = Connection(CONTROL)
    connection.receive(frame(b"nonsense") + b"\0\0\0\x7frest")

    assert connection.broken
    assert not connection.unfinished


def test_broken_is_for_ever() -> None:
    """A broken connection receives and sends nothing more but the error itself."""
    connection = Connection(CONTROL)
    (end,) = connection.receive(b"\xff\xff\xff\xff")
    assert isinstance(end, Broken)

    assert end.code == "bad-frame"
    assert connection.broken
    assert connection.send(end.answer())
    with pytest.raises(RemoteProtocolError):
        connection.receive(encode(Request(1, "info")))
    with pytest.raises(RemoteProtocolError):
        connection.send(Success("web"))


@pytest.mark.parametrize(
    ("role", "message"),
    [
        (CLIENT, Success("a")),
        (CONTROL, Request(1, "info")),
        (CONTROL, Event07("a", 1)),
        (EVENTS, Success("a")),
    ],
)
def test_each_end_sends_what_is_its_to_send(role: str, message: Message) -> None:
    """Sending what belongs to the other end is our own mistake, and breaks nothing."""
    connection = Connection(role)

    with pytest.raises(LocalProtocolError):
        connection.send(message)
    assert not connection.broken


@pytest.mark.parametrize("name", ["caf\udce9", "\ud83d"])
def test_half_pairs_are_not_sent(name: str) -> None:
    """A name that is not Unicode (an undecodable argument) never reaches the wire."""
    with pytest.raises(LocalProtocolError, match="surrogate"):
        Connection(CLIENT).send(Request(1, "status", (name,)))


def test_a_request_is_bounded_and_a_reply_is_larger() -> None:
    """A client cannot send more than a daemon takes; it takes a status of ten thousand jobs."""
    long = "x" * MAX_REQUEST

    with pytest.raises(LocalProtocolError):
        Connection(CLIENT).send(Request(1, "status", (long,)))
    (jobs,) = received(
        CLIENT, Connection(CONTROL).send(JobList({f"{n}{long[:120]}": True for n in range(10_000)}))
    )
    assert isinstance(jobs, JobList)
    assert len(jobs.all_jobs) == 10_000
    assert MAX_REPLY > MAX_REQUEST


def test_a_client_ignores_what_it_does_not_know() -> None:
    """Fields that a later daemon adds disturb no client."""
    event = EventMessage(1, 2.0, "a", "died", "exited", 1, None, "exit 0")
    status = JobStatus("a", "running", True)
    snapshot = {
        "type": "snapshot",
        "seq": 1,
        "jobs": [{**status.body(), "new": []}],
        "missed": False,
        "more": 1,
    }

    assert received(CLIENT, frame(fastjson.encode({**event.body(), "new": {}}))) == [event]
    assert received(CLIENT, frame(fastjson.encode(snapshot))) == [Snapshot(1, (status,))]


def test_the_worst_code_counts() -> None:
    """Among several results the one that is furthest down the list of codes names the whole."""
    assert errors.worst(["timeout", "failed"]) == "failed"
    assert errors.worst(["already-started", "no-such-job", "failed"]) == "no-such-job"
    assert errors.worst([]) == ""


# ---- fuzz ------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 10)
    | st.floats(allow_nan=False, allow_infinity=False)
    | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
KEYS = "type job command id jobs wait timeout reason now for signal all since error ok pid seq event".split()
KINDS = (
    st.integers(0, 6)
    | st.sampled_from(("request", "reply", "event", "snapshot", "subscribe", "error"))
    | JSON
)


@st.composite
def near_messages(draw: st.DrawFn) -> bytes:
    """A frame that is nearly a message: the right keys, any values."""
    body = {key: draw(JSON) for key in draw(st.lists(st.sampled_from(KEYS), max_size=6, unique=True))}
    body["type"] = draw(KINDS)
    if draw(st.booleans()):
        body["command"] = draw(st.sampled_from(sorted(COMMANDS)) | st.integers(2, 8))
        body["id"] = draw(st.integers(0, 3))
    return frame(fastjson.encode(body))


@pytest.mark.parametrize("role", [CLIENT, CONTROL, EVENTS])
@given(
    pieces=st.lists(st.binary(max_size=40) | near_messages() | st.binary(max_size=40).map(frame), max_size=5)
)
def test_fuzz(role: str, pieces: list[bytes]) -> None:
    """Whatever comes is parsed, or is one RemoteProtocolError after the end; nothing else is raised."""
    connection = Connection(role)
    for index, piece in enumerate(pieces):
        try:
            messages = connection.receive(piece)
        except RemoteProtocolError:
            assert index > 0
            assert connection.broken
            return
        assert all(isinstance(message, (Message, BadRequest)) for message in messages[:-1])
        if messages and isinstance(messages[-1], Broken):
            assert connection.broken
            assert encode(messages[-1].answer())


def test_memory_is_bounded() -> None:
    """A client that sends a megabyte and never an end costs the daemon little more than that."""
    chunk = b"x" * 65_536
    connection = Connection(CONTROL)
    tracemalloc.start()
    try:
        connection.receive(MAX_REQUEST.to_bytes(4, "big"))
        for _ in range(MAX_REQUEST // len(chunk) - 1):
            connection.receive(chunk)
        assert connection.unfinished
        waiting, peak = tracemalloc.get_traced_memory()
        connection.receive(chunk)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert connection.broken
    assert peak < 3 * MAX_REQUEST
    assert waiting < 1.5 * MAX_REQUEST
    assert after < 65_536
