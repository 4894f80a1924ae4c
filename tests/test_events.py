"""What the daemon tells, in which order and in which bytes: over real sockets, of real processes."""

from __future__ import annotations

import json
import os
import socket
import struct

import e2e
import kit
import pytest

import jobmon
from jobmon.protocol import EventMessage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Make = Callable[..., kit.Daemon]

WEB = {"command": kit.FOR_EVER}
STARTED, STOPPED, RESTARTED, TERMINATES = range(4)
KEPT = 10_000  # events that the daemon keeps


def frame(text: str) -> bytes:
    """A message as it goes over the wire."""
    data = text.encode()
    return struct.pack(">I", len(data)) + data


def event07(job: str, code: int) -> bytes:
    """An event as JobMon 0.7 has it."""
    return frame(json.dumps({"type": 0, "job": job, "event": code}))


class Raw:
    """A connection that knows nothing of any protocol: bytes out, bytes in."""

    def __init__(self, port: int | str) -> None:
        if isinstance(port, int):
            self.socket = socket.create_connection(("127.0.0.1", port))
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(port)
        self.socket.settimeout(kit.DEADLINE)

    def take(self, size: int) -> bytes:
        """Exactly so many bytes."""
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            assert more, f"the connection ended after {data!r}"
            data += more
        return data

    def rest(self) -> bytes:
        """All that comes until the daemon closes."""
        data = b""
        while more := self.socket.recv(1 << 16):
            data += more
        return data

    def message(self) -> Any:
        """The next message."""
        (size,) = struct.unpack(">I", self.take(4))
        return json.loads(self.take(size))

    def ask(self, text: str) -> bytes:
        """Send a message; the whole frame that is answered, but for its length."""
        self.socket.sendall(frame(text))
        (size,) = struct.unpack(">I", self.take(4))
        return self.take(size)


@pytest.fixture
def connect() -> Iterator[Callable[[int | str], Raw]]:
    """Opens raw connections, and closes them after the test."""
    made: list[Raw] = []

    def make(port: int | str) -> Raw:
        made.append(Raw(port))
        return made[-1]

    yield make
    for one in made:
        one.socket.close()


@pytest.fixture(params=["tcp", "unix"])
def addresses(request: pytest.FixtureRequest) -> dict[str, int | str]:
    """Where a daemon listens: on TCP ports, on UNIX sockets."""
    if request.param == "unix":
        return {"control-port": "control", "event-port": "event"}
    control, event = e2e.free_ports(2)
    return {"control-port": control, "event-port": event}


# ---- JobMon 0.7 ---------------------------------------------------------------------------------


def test_the_events_of_07_byte_for_byte(
    daemon: Make, addresses: dict[str, int | str], connect: Callable[[int | str], Raw]
) -> None:
    """A client that says nothing gets exactly these bytes, on TCP and on UNIX sockets, to the last."""
    one = daemon({"supervisor": addresses, "jobs": {"wéb": {**WEB, "restart": True}, "db\n": WEB}})
    raw, pipe, watch = connect(one.event), one.pipe(), one.watch()
    pipe.start("wéb")
    pipe.signal("KILL", "wéb")
    watch.until("wéb", "restarting")
    watch.until("wéb", "running")
    pipe.start("db\n")
    pipe.restart("db\n")
    pipe.stop("db\n")
    pipe.terminate(wait=True)

    web, db = "wéb", "db\n"
    assert raw.rest() == b"".join(
        event07(job, code)
        for job, code in (
            (web, STARTED),
            (web, STOPPED),  # a death that is restarted
            (web, RESTARTED),
            (web, STARTED),
            (db, STARTED),
            (db, STOPPED),  # a restart by an operator
            (db, STARTED),
            (db, STOPPED),
            (web, STOPPED),
            ("", TERMINATES),
        )
    )
    assert event07(web, STARTED) == b'\0\0\0\x2a{"type": 0, "job": "w\\u00e9b", "event": 0}'


def test_the_commands_of_07_byte_for_byte(
    daemon: Make, addresses: dict[str, int | str], connect: Callable[[int | str], Raw]
) -> None:
    """Each of the old commands is answered in the old bytes, several over one connection."""
    jobs = {"a": WEB, "b": WEB, "no": {"command": ["/no"]}}
    one = daemon({"supervisor": addresses, "jobs": jobs})
    raw = connect(one.control)

    def ask(job: str, command: int) -> bytes:
        return raw.ask(f'{{"type": 1, "job": {job}, "command": {command}}}')

    assert ask('"a"', 3) == b'{"type": 2, "job": "a"}'
    assert ask('"a"', 3) == b'{"type": 3, "job": "a", "reason": 1}'
    pid = one.pipe().pid("a")
    assert ask('"a"', 5) == b'{"type": 4, "job": "a", "is_running": true, "pid": %d}' % (pid or 0)
    assert ask('"b"', 5) == b'{"type": 4, "job": "b", "is_running": false, "pid": null}'
    assert ask("null", 6) == b'{"type": 5, "all_jobs": {"a": true, "b": false, "no": false}}'
    assert ask('"b"', 4) == b'{"type": 3, "job": "b", "reason": 2}'
    assert ask('"c"', 3) == b'{"type": 3, "job": "c", "reason": 0}'
    assert ask('"c"', 4) == b'{"type": 3, "job": "c", "reason": 0}'
    assert ask('"c"', 5) == b'{"type": 3, "job": "c", "reason": 0}'
    assert ask('"no"', 3) == b'{"type": 3, "job": "no", "reason": 3}'
    assert ask('"a"', 4) == b'{"type": 2, "job": "a"}'
    raw.socket.sendall(frame('{"type":1,"job":null,"command":7}'))
    assert raw.rest() == b""  # terminate is answered with nothing but the end
    assert one.wait() == 0


def test_a_start_while_terminating_is_refused_to_07_too(
    daemon: Make, connect: Callable[[int | str], Raw]
) -> None:
    """Reason 5 says that the daemon ends and starts nothing more."""
    stubborn = {**e2e.STUBBORN, "autostart": True}
    one = daemon({"jobs": {"a": WEB, "stubborn": stubborn}})
    raw, other = connect(one.control), connect(one.control)
    raw.socket.sendall(frame('{"type":1,"job":null,"command":7}'))
    one.wait_log("shutdown")

    assert other.ask('{"type":1,"job":"a","command":3}') == b'{"type": 3, "job": "a", "reason": 5}'
    one.pipe().terminate(wait=True)


def test_a_penalised_death_is_told_at_once_and_its_restart_later(
    daemon: Make, connect: Callable[[int | str], Raw]
) -> None:
    """STOPPED comes when it dies, the rest when the penalty is over; a stop in between is silent."""
    job = {"command": "exit 1", "restart": True, "restart-penalty": 0.02, "max-restarts": 1}
    one = daemon({"jobs": {"job": job, "long": {**job, "restart-penalty": 1000}, "web": WEB}})
    raw, pipe, watch = connect(one.event), one.pipe(), one.watch()
    pipe.start("job", wait=False)
    watch.until("job", "failed")
    run = [(STARTED, STOPPED), (RESTARTED, STARTED, STOPPED), (RESTARTED, STARTED, STOPPED)]
    for code in (code for part in run for code in part):
        assert raw.message() == {"type": 0, "job": "job", "event": code}
    pipe.start("long", wait=False)
    watch.find(lambda event: event.job == "long" and event.state == "backoff" and event.run == 2)
    pipe.stop("long")
    pipe.start("web")
    told: list[Any] = []
    while not told or told[-1]["job"] != "web":
        told.append(raw.message())

    assert [message["event"] for message in told] == [0, 1, 2, 0, 1, 0]


def test_what_never_had_a_process_is_no_news_to_07(daemon: Make, connect: Callable[[int | str], Raw]) -> None:
    """A job that cannot be started neither started nor stopped."""
    one = daemon({"jobs": {"no": {"command": ["/no"]}, "web": WEB}})
    raw, pipe = connect(one.event), one.pipe()
    with pytest.raises(jobmon.JobError):
        pipe.start("no")
    pipe.start("web")

    assert raw.message() == {"type": 0, "job": "web", "event": 0}


# ---- rich events --------------------------------------------------------------------------------


def test_the_whole_story_of_a_job(daemon: Make) -> None:
    """Every change of state comes once, in order, numbered without a gap, with run, pid and cause."""
    one = daemon({"jobs": {"web": {**WEB, "restart": True}}})
    watch, pipe = one.watch(), one.pipe()
    pipe.start("web", reason="by hand")
    first = pipe.pid("web")
    pipe.signal("KILL", "web")
    watch.find(lambda event: event.run == 2 and event.state == "running")
    second = pipe.pid("web")
    pipe.restart("web")
    third = pipe.pid("web")
    pipe.stop("web")
    pipe.terminate()
    watch.find(lambda event: event.event == "terminated")

    who = f"by uid {os.getuid()} pid {os.getpid()}"
    restart = f"restart {who}"
    before = watch.seen[0].seq - 1
    assert [(e.seq - before, e.event, e.state, e.run, e.pid, e.cause) for e in watch.seen] == [
        (1, "launched", "starting", 1, first, f"start {who}: by hand"),
        (2, "state", "running", 1, first, "launched"),
        (3, "signalled", "running", 1, first, f"SIGKILL, signal {who}"),
        (4, "died", "backoff", 1, first, "SIGKILL"),
        (5, "restarting", "starting", 2, second, "restart"),
        (6, "launched", "starting", 2, second, "restart"),
        (7, "state", "running", 2, second, "launched"),
        (8, "state", "stopping", 2, second, restart),
        (9, "died", "starting", 2, second, "SIGTERM"),
        (10, "launched", "starting", 3, third, restart),
        (11, "state", "running", 3, third, "launched"),
        (12, "state", "stopping", 3, third, f"stop {who}"),
        (13, "died", "stopped", 3, third, "SIGTERM"),
        (14, "terminated", "stopped", 0, None, f"terminate {who}"),
    ]
    assert {event.job for event in watch.seen} == {"web", ""}
    times = [event.time for event in watch.seen]
    assert times == sorted(times)


def test_a_snapshot_comes_first(daemon: Make) -> None:
    """It says how every job stands, and the events after it are those after its number."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": True}, "db": WEB}})
    with one.events(rich=True) as stream:
        assert stream.snapshot is not None
        assert not stream.snapshot.missed
        told = [(job.job, job.state, job.pid) for job in stream.snapshot.jobs or ()]
        assert told == [("web", "running", one.pipe().pid("web")), ("db", "stopped", None)]
        one.pipe().start("db")
        event = stream.next_event()
        assert isinstance(event, EventMessage)
        assert (event.seq, event.job) == (stream.snapshot.seq + 1, "db")


def test_since_tells_what_came_after(daemon: Make) -> None:
    """Who comes back with its last number misses nothing, and gets nothing twice."""
    one = daemon({"jobs": {"web": WEB}})
    pipe = one.pipe()
    begin = pipe.start("web")
    pipe.stop("web")
    token = pipe.start("web")
    pipe.stop("web")

    def numbers(since: int, count: int) -> list[int]:
        watch = one.watch(since=since)
        assert watch.stream.snapshot == jobmon.Snapshot(since, None)
        return [watch.next().seq for _ in range(count)]

    assert token == begin + 4
    assert numbers(begin, 8) == numbers(0, 8) == list(range(begin + 1, begin + 9))
    assert numbers(token, 4) == list(range(begin + 5, begin + 9))
    latest = one.watch(since=begin + 8)
    pipe.start("web")
    assert latest.next().seq == begin + 9


def test_zero_is_where_a_daemon_begins(daemon: Make) -> None:
    """Who asks for all events before there is one gets them as they come, however many have read them."""
    one = daemon({"jobs": {"web": WEB}})
    watches = [one.watch(since=0), one.watch(since=0)]
    token = one.pipe().start("web")

    assert [watch.stream.snapshot for watch in watches] == [jobmon.Snapshot(0, None)] * 2
    assert [watch.next().seq for watch in watches] == [token + 1] * 2


def test_the_numbers_of_an_earlier_daemon_are_lower(daemon: Make) -> None:
    """Nothing that a daemon has told can be taken for an event of the next, and a double holds them all."""
    first = daemon({"jobs": {"web": WEB}})
    watch = first.watch()
    first.pipe().start("web")
    first.stop()
    latest = watch.find(lambda event: event.event == "terminated").seq
    second = daemon({"jobs": {"web": WEB}})
    token = second.pipe().start("web")

    assert latest < token < 2**53
    late = second.watch(since=latest).stream.snapshot
    assert late is not None and late.missed
    with pytest.raises(jobmon.JobError, match=f"event {latest} is not known any more"):
        second.pipe().wait("web", since=latest)


def test_what_is_not_kept_is_admitted(daemon: Make) -> None:
    """The last 10,000 events are kept; who asks for older ones, or the future, gets the state instead."""
    never = {"command": ["true"], "working-dir": "/no/such", "kill-scope": "process"}  # one event per start
    names = [f"job {i}" for i in range(1000)]
    one = daemon({"supervisor": {"log-level": "CRITICAL"}, "jobs": dict.fromkeys(names, never)})
    pipe = one.pipe()
    for _ in range(0, KEPT + 500, 500):
        with pytest.raises(jobmon.JobError, match="could not be started"):
            pipe.start(*names[:500], wait=False)
    last = pipe.request("graph")["token"]
    kept, too_old, future = (one.watch(since=since) for since in (last - KEPT, last - KEPT - 1, last + 1))

    assert kept.stream.snapshot == jobmon.Snapshot(last - KEPT, None)
    assert kept.next().seq == last - KEPT + 1
    kept.stream.destroy()  # or the daemon would give it its time to read, at its end
    for watch in (too_old, future):
        snapshot = watch.stream.snapshot
        assert snapshot is not None
        assert (snapshot.seq, snapshot.missed) == (last, True)
        states = [job.state for job in snapshot.jobs or ()]
        assert states == ["failed"] * 500 + ["stopped"] * 500
    pipe.submit("start", ("job 0",), wait=False)
    assert [watch.next().seq for watch in (too_old, future)] == [last + 1] * 2


def test_two_subscribers_are_told_the_same(daemon: Make) -> None:
    """One leaving early or reading late changes nothing for the other."""
    one = daemon({"jobs": {"web": WEB}})
    first, second, leaver = one.watch(), one.watch(), one.watch()
    pipe = one.pipe()
    pipe.start("web")
    leaver.next()
    leaver.stream.destroy()
    pipe.stop("web")
    for watch in (first, second):
        watch.until("web", "died")

    assert first.seen == second.seen
    assert len(first.seen) == 4


def test_a_filter_on_jobs(daemon: Make) -> None:
    """Only the jobs that were named are told of, in the snapshot and after it; the last event always."""
    one = daemon({"jobs": {"a": WEB, "b": WEB, "c": WEB}})
    stream = one.events(jobs=("b", "nobody"))
    pipe = one.pipe()
    pipe.start("a", "b", "c")
    pipe.stop("a", "b", "c")
    pipe.terminate()

    assert stream.snapshot is not None
    assert [job.job for job in stream.snapshot.jobs or ()] == ["b"]
    told = [event for event in stream if isinstance(event, EventMessage)]
    assert [(event.job, event.event) for event in told] == [
        ("b", "launched"),
        ("b", "state"),
        ("b", "state"),
        ("b", "died"),
        ("", "terminated"),
    ]


def test_a_subscription_may_come_late(daemon: Make, connect: Callable[[int | str], Raw]) -> None:
    """A client that has listened in the old form gets the new one from its subscription on."""
    one = daemon({"jobs": {"web": WEB}})
    raw, pipe = connect(one.event), one.pipe()
    pipe.start("web")
    assert raw.message() == {"type": 0, "job": "web", "event": 0}
    raw.socket.sendall(frame('{"type":"subscribe","since":null,"jobs":null}'))
    assert raw.message()["type"] == "snapshot"
    pipe.stop("web")

    told = [raw.message() for _ in range(2)]
    assert [(one["type"], one["state"]) for one in told] == [("event", "stopping"), ("event", "stopped")]
    assert list(told[0]) == ["type", "seq", "time", "job", "event", "state", "run", "pid", "cause", "why"]


def test_the_answer_to_a_start_follows_its_events(daemon: Make) -> None:
    """Its token is the number before them, so a subscription from there sees all that it did."""
    one = daemon({"jobs": {"web": WEB, "db": WEB}})
    pipe = one.pipe()
    pipe.start("db")
    watch = one.watch(since=pipe.start("web"))

    assert [(event.job, event.event) for event in (watch.next(), watch.next())] == [
        ("web", "launched"),
        ("web", "state"),
    ]
