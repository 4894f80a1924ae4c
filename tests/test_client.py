"""The client against a scripted server: whatever comes together, in whatever pieces, nothing is overlooked.

A `Server` is one end of a connection, in a thread of its own: it reads requests and sends bytes in pieces,
each when the client has taken the one before, so that a piece is what one read gives.
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import socket
import struct
import termios
import threading
import time
from contextlib import contextmanager

import e2e
import kit
import pytest

import jobmon
from jobmon.cli import control
from jobmon.cli.main import main
from jobmon.protocol import (
    CONTROL,
    ERR_NOT_PERMITTED,
    EVENTS,
    Connection,
    Event07,
    EventMessage,
    Failure,
    JobStatus,
    Message,
    ReplyMessage,
    Snapshot,
    encode,
    failed,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from typing import Any

    Use = Callable[[jobmon.CommandPipe], object]

SOON = 10.0  # seconds after which whoever still waits waits for ever
OK = {"results": [{"job": "x", "ok": True}], "token": 7}


@contextmanager
def deadline(seconds: float = SOON) -> Iterator[None]:
    """Fail where it is, instead of hanging."""

    def fail(number: int, frame: object) -> None:
        raise AssertionError(f"hangs: not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Server:
    """A listening socket, and whoever connects to it first. `heard` are the messages that came."""

    def __init__(self, path: str, role: str = CONTROL) -> None:
        self.path = path
        self.heard: list[Any] = []
        self._role = role
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._client: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def accept(self) -> socket.socket:
        self._listener.settimeout(SOON)
        self._client, _ = self._listener.accept()
        self._client.settimeout(SOON)
        self._connection = Connection(self._role)
        return self._client

    def hear(self, count: int) -> None:
        """Read until so many messages have come in all."""
        assert self._client is not None
        while len(self.heard) < count:
            data = self._client.recv(1 << 16)
            assert data, f"the client has gone; heard: {self.heard}"
            self.heard += self._connection.receive(data)

    def send(self, pieces: Iterable[bytes]) -> None:
        """Send each when the one before has been taken."""
        assert self._client is not None
        for piece in pieces:
            self._client.sendall(piece)
            while self._untaken():
                os.sched_yield()

    def _untaken(self) -> int:
        """Bytes that the client has not read, unix(7): SIOCOUTQ."""
        assert self._client is not None
        try:
            return int(struct.unpack("i", fcntl.ioctl(self._client, termios.TIOCOUTQ, b"\0" * 4))[0])
        except OSError:
            return 0

    def play(self, script: Callable[[Server], None]) -> None:
        """Do this beside the client."""

        def act() -> None:
            try:
                self.accept()
                script(self)
            except (AssertionError, OSError):
                pass  # the client has gone: what it said shows what was wrong

        self.finish()
        self.heard.clear()
        self._thread = threading.Thread(target=act, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """The script ends, and with it the connection."""
        if self._thread is not None:
            self._thread.join(SOON)
            assert not self._thread.is_alive(), "the script has not ended"
        if self._client is not None:
            self._client.close()

    def close(self) -> None:
        self.finish()
        self._listener.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """A factory of servers."""
    made: list[Server] = []

    def make(role: str = CONTROL) -> Server:
        made.append(Server(f"{tmp_path}/{len(made)}", role))
        return made[-1]

    yield make
    for one in made:
        one.close()


def splits(*messages: Message) -> Iterator[list[bytes]]:
    """The bytes of messages: together, each for itself, single bytes, and cut in two at every place."""
    whole = [encode(message) for message in messages]
    data = b"".join(whole)
    yield [data]
    yield whole
    yield [bytes((byte,)) for byte in data]
    yield from ([data[:cut], data[cut:]] for cut in range(1, len(data)))


def reply(number: int, **rest: Any) -> ReplyMessage:
    return ReplyMessage(number, True, rest or OK)


# ---- CommandPipe ----------------------------------------------------------------------------------


def collected(*order: int) -> Use:
    return lambda pipe: [pipe.collect(number)["token"] for number in order]


def looked_for(pipe: jobmon.CommandPipe) -> object:
    """As a program with an event loop of its own does it."""
    while not (pipe.answered(1) and pipe.answered(2)):
        select.select([pipe], [], [])
        pipe.receive()
    return [pipe.collect(number)["token"] for number in (1, 2)]


def awaited(pipe: jobmon.CommandPipe) -> object:
    assert pipe.await_reply(1, 2)
    assert pipe.await_reply(1)
    assert pipe.await_reply(2)
    assert not pipe.refused(1) and not pipe.refused(2)
    return [pipe.collect(number)["token"] for number in (1, 2)]


USES: dict[str, Use] = {
    "collect": collected(1, 2),
    "collect the last first": collected(2, 1),
    "answered": looked_for,
    "await_reply": awaited,
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_two_replies_in_any_pieces(serve: Callable[..., Server], use: str, order: tuple[int, int]) -> None:
    """However the replies to two requests come, each is found, and no wait is for what was read already."""
    server = serve()
    for pieces in splits(*(reply(number, token=number) for number in order)):
        with deadline(), jobmon.CommandPipe(server.path) as pipe:
            assert (pipe.submit("wait", ("x",)), pipe.submit("start", ("x",))) == (1, 2)
            server.play(lambda server, pieces=pieces: server.send(pieces))  # type: ignore[misc]
            assert sorted(USES[use](pipe)) == [1, 2]  # type: ignore[call-overload]
        server.finish()


METHODS: dict[str, tuple[Use, dict[str, Any], object]] = {
    "start": (lambda pipe: pipe.start("x"), OK, 7),
    "stop": (lambda pipe: pipe.stop("x", timeout=SOON), OK, 7),
    "restart": (lambda pipe: pipe.restart("x"), OK, 7),
    "start_job": (lambda pipe: pipe.start_job("x"), OK, None),
    "stop_job": (lambda pipe: pipe.stop_job("x"), OK, None),
    "is_running": (
        lambda pipe: pipe.is_running("x"),
        {"jobs": [JobStatus("x", "running", True, 9).body()]},
        True,
    ),
    "get_pid": (lambda pipe: pipe.get_pid("x"), {"jobs": [JobStatus("x", "running", True, 9).body()]}, 9),
    "pid": (lambda pipe: pipe.pid("x"), {"jobs": [JobStatus("x", "running", True, 9).body()]}, 9),
    "status": (lambda pipe: pipe.status(), {"jobs": []}, []),
    "overview": (lambda pipe: pipe.overview(), {"jobs": [], "strays": [3]}, ([], [3])),
    "get_jobs": (lambda pipe: pipe.get_jobs(), {"jobs": {"x": True}}, {"x": True}),
    "list_jobs": (lambda pipe: pipe.list_jobs(), {"jobs": {"x": True}}, {"x": True}),
    "wait": (lambda pipe: pipe.wait("x"), OK, {"x": None}),
    "signal": (lambda pipe: pipe.signal("HUP", "x"), OK, None),
    "reload": (lambda pipe: pipe.reload(), {"plan": {}}, {"plan": {}}),
    "graph": (lambda pipe: pipe.graph(), {"jobs": {"x": {}}}, {"x": {}}),
    "why": (lambda pipe: pipe.why("x"), {"jobs": [{"job": "x"}]}, {"job": "x"}),
    "info": (lambda pipe: pipe.info(), {"pid": 3}, {"pid": 3}),
    "terminate": (lambda pipe: pipe.terminate(), {"pid": 3}, None),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("first", [False, True])
def test_every_method_beside_another_request(serve: Callable[..., Server], method: str, first: bool) -> None:
    """Each returns when its reply has come together with, before or after that to an earlier request."""
    use, body, result = METHODS[method]
    server = serve()
    replies = [reply(1), ReplyMessage(2, True, body)]
    data = b"".join(encode(one) for one in (replies if first else replies[::-1]))
    for size in (len(data), 1, 7):
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        with deadline(), jobmon.CommandPipe(server.path) as pipe:
            pipe.submit("wait", ("y",))

            def script(server: Server, pieces: list[bytes] = pieces) -> None:
                server.hear(2)
                server.send(pieces)

            server.play(script)
            assert use(pipe) == result
            assert pipe.collect(1) == OK
        server.finish()


# What comes when so many requests have been heard: the wait is request 1, the questions are 2 and 3.
TURNS: dict[str, dict[int, tuple[int, ...]]] = {
    "at the first question": {2: (1, 2)},
    "behind its answer": {2: (2, 1)},
    "at the second question": {2: (2,), 3: (1, 3)},
    "behind that answer": {2: (2,), 3: (3, 1)},
}


def turns(name: str) -> Iterator[Callable[[Server], None]]:
    """Scripts that answer so, the last answers in all pieces."""
    *early, (count, last) = TURNS[name].items()

    def script(server: Server, pieces: list[bytes]) -> None:
        for heard, numbers in early:
            server.hear(heard)
            server.send([encode(reply(number)) for number in numbers])
        server.hear(count)
        server.send(pieces)

    for pieces in splits(*(reply(number) for number in last)):
        yield lambda server, pieces=pieces: script(server, pieces)  # type: ignore[misc]


@pytest.mark.parametrize("turn", TURNS)
def test_a_question_beside_a_wait(serve: Callable[..., Server], turn: str) -> None:
    """`catch_up` sees the answer of the wait among those to its questions; a later one is seen after it."""
    server = serve()
    for script in turns(turn):
        with deadline(), jobmon.CommandPipe(server.path) as pipe:
            pipe.submit("wait", ("x",))
            server.play(script)
            assert pipe.catch_up(1) or turn.startswith("behind")
            assert pipe.collect(1) == OK
        server.finish()


LAST_WORDS: dict[str, tuple[bytes, type[Exception]]] = {
    "the end": (b"", jobmon.ConnectionLost),
    "half a reply": (encode(reply(2))[:-1], jobmon.ConnectionLost),
    "not permitted": (encode(Failure("", ERR_NOT_PERMITTED)), jobmon.NotPermittedError),
    "no JobMon": (b"HTTP/1.1 400 Bad Request\r\n", jobmon.ProtocolError),
    "an event": (encode(Event07("x", 0)), jobmon.ProtocolError),
}


@pytest.mark.parametrize("end", LAST_WORDS)
@pytest.mark.parametrize("together", [False, True])
def test_what_ends_a_connection_ends_every_wait(
    serve: Callable[..., Server], end: str, together: bool
) -> None:
    """What was answered before is told, whatever else was asked for fails at once, by each method."""
    data, kind = LAST_WORDS[end]
    server = serve()

    def script(server: Server) -> None:
        server.send([encode(reply(1)) + data] if together else [encode(reply(1)), data])
        assert server._client is not None
        server._client.shutdown(socket.SHUT_WR)

    with deadline(), jobmon.CommandPipe(server.path) as pipe:
        pipe.submit("wait", ("x",))
        pipe.submit("wait", ("y",))
        server.play(script)
        assert pipe.collect(1) == OK
        assert pipe.await_reply(2)
        assert pipe.refused(2)
        for _ in range(2):
            with pytest.raises(kind):
                pipe.collect(2)


def test_a_late_answer_is_not_that_of_another(serve: Callable[..., Server]) -> None:
    """What has been given up is answered after all: that is dropped, and the next gets its own."""
    server = serve()
    with deadline(), jobmon.CommandPipe(server.path) as pipe:
        with pytest.raises(jobmon.WaitTimeout, match=r"^timed out: the daemon at .* does not answer$"):
            pipe.wait("x", timeout=0.0)

        def script(server: Server) -> None:
            server.hear(2)
            server.send([encode(reply(1, pid=1)) + encode(reply(2, pid=2))])

        server.play(script)
        assert pipe.info() == {"pid": 2}
        assert pipe._replies == {}


def test_pipelined_requests_do_not_lock_up(serve: Callable[..., Server]) -> None:
    """A server that reads no more before its own output is read gets it read, also by one who sends."""
    server = serve()
    big = "x" * 200_000
    with deadline(), jobmon.CommandPipe(server.path) as pipe:

        def script(server: Server) -> None:
            assert server._client is not None
            for number in range(1, 11):
                server.hear(number)
                server._client.sendall(encode(reply(number, token=number, words=big)))

        server.play(script)
        numbers = [pipe.submit("why", (big,)) for _ in range(10)]
        assert [pipe.collect(number)["token"] for number in numbers] == list(range(1, 11))


def test_a_command_is_not_sent_twice(serve: Callable[..., Server]) -> None:
    """What was sent over a connection that ended may have been done: it is lost, and not repeated."""
    server = serve()
    with deadline(), jobmon.CommandPipe(server.path) as pipe:

        def script(server: Server) -> None:
            server.hear(1)
            assert server._client is not None
            server._client.close()

        server.play(script)
        with pytest.raises(jobmon.ConnectionLost):
            pipe.start("x")
        assert [(one.command, one.jobs) for one in server.heard] == [("start", ("x",))]
        assert select.select([server._listener], [], [], 0)[0] == [], "it has connected again"

        server.close()
        os.unlink(server.path)
        other = Server(server.path)
        other.play(lambda other: (other.hear(1), other.send([encode(reply(2))]))[0])  # type: ignore[func-returns-value]
        pipe.start("y")
        other.close()
    assert [one.jobs for one in other.heard] == [("y",)]


# ---- EventStream ----------------------------------------------------------------------------------

FIRST = EventMessage(8, 1.0, "x", "launched", "running", 1, 9, "start")
SECOND = EventMessage(9, 2.0, "x", "died", "backoff", 1, 9, "exit 1")
LAST = EventMessage(10, 3.0, "", "terminated", "", 0, None, "")


def pending(stream: jobmon.EventStream) -> list[object]:
    """As a program with an event loop of its own does it."""
    events: list[object] = []
    while len(events) < 3:
        event = stream.pending_event()
        if event is None:
            select.select([stream], [], [])
        else:
            events.append(event)
    return events


READERS: dict[str, Callable[[jobmon.EventStream], list[object]]] = {
    "iterating": list,
    "next_event": lambda stream: [stream.next_event() for _ in range(3)],
    "pending_event": pending,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("rich", [False, True])
def test_events_in_any_pieces(serve: Callable[..., Server], reader: str, rich: bool) -> None:
    """Snapshot and events are found in whatever pieces they come; old events before them are passed by."""
    server = serve(EVENTS)
    early, snapshot = Event07("y", 1), Snapshot(7, ())
    plain: list[Message] = [Event07("x", 0), Event07("x", 1), Event07("", 3)]
    events: list[Message] = [FIRST, SECOND, LAST] if rich else plain
    for pieces in splits(*([early, snapshot] if rich else ()), *events):
        server.play(lambda server, pieces=pieces: server.send(pieces))  # type: ignore[misc]
        with deadline(), jobmon.EventStream(server.path, rich=rich) as stream:
            assert stream.snapshot == (snapshot if rich else None)
            assert READERS[reader](stream) == events
        server.finish()


# ---- the command line -----------------------------------------------------------------------------


@pytest.fixture
def ports(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> tuple[Server, Server]:
    """A control and an event port, which the command line finds."""
    both = serve(CONTROL), serve(EVENTS)
    monkeypatch.setenv("JOBMON_PORT", ",".join(one.path for one in both))
    return both


GRAPH: dict[str, Any] = {"jobs": {"x": {"requires": [], "after": []}}}


@pytest.mark.parametrize("verb", ["start", "restart"])
@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_start_and_the_answer_to_its_question(
    ports: tuple[Server, Server], verb: str, order: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The awaited reply may come together with that to the question for the graph: it is seen."""
    monkeypatch.setattr(control, "QUIET", 0.0)
    server, _ = ports
    told = {1: reply(1), 2: ReplyMessage(2, True, GRAPH)}
    for pieces in splits(*(told[number] for number in order)):

        def script(server: Server, pieces: list[bytes] = pieces) -> None:
            server.hear(2)
            server.send(pieces)

        server.play(script)
        with deadline():
            assert main([verb, "x"]) == 0
        server.finish()
        assert [one.command for one in server.heard] == [verb, "graph"]


@pytest.mark.parametrize("before", [0, 1, 2])
def test_the_line_that_it_is_tried_again(
    ports: tuple[Server, Server],
    before: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It is said where the daemon still has no answer; an answer that is under way keeps it unsaid."""
    monkeypatch.setattr(control, "QUIET", 0.0)
    server, events = ports
    answer = failed(1, "failed", "has died", job="x")

    def script(server: Server) -> None:
        server.hear(2)
        server.send([encode(ReplyMessage(2, True, GRAPH))])
        for number in (0, 1):
            server.hear(3 + number)
            if before == number:
                server.send([encode(answer) + encode(reply(3 + number))])
                return
            server.send([encode(reply(3 + number))])
        server.send([encode(answer)])

    def news(events: Server) -> None:
        events.hear(1)
        events.send([encode(Snapshot(8, ()))])
        events.send([encode(SECOND)])

    server.play(script)
    events.play(news)
    with deadline():
        assert main(["start", "x"]) == 1
    line = "jobmon: x: exit 1; it will be restarted, still waiting\n"
    assert capfd.readouterr().err == (line if before == 2 else "") + "jobmon: x: has died\n"


@pytest.mark.parametrize("turn", TURNS)
def test_wait_beside_a_command(ports: tuple[Server, Server], turn: str) -> None:
    """`wait -- CMD` sees the reply wherever it comes among those that tell it that the daemon watches."""
    server, _ = ports
    for script in turns(turn):
        server.play(script)
        with deadline():
            assert main(["wait", "x", "--", "true"]) == 0
        server.finish()


# ---- a daemon that does not keep a timeout --------------------------------------------------------

TIMED = {
    "start": ["start", "web"],
    "stop": ["stop", "web"],
    "restart": ["restart", "web"],
    "start --wait": ["start", "web", "--wait", "stable:1h"],
    "wait": ["wait", "web"],
    "wait --json": ["wait", "web", "--json"],
    "wait -- CMD": ["wait", "web", "--", "true"],
    "terminate": ["terminate"],
}


def timed(words: list[str], seconds: float) -> list[str]:
    """The words with --timeout, before the command if there is one."""
    at = words.index("--") if "--" in words else len(words)
    return [*words[:at], "--timeout", f"{seconds}s", *words[at:]]


def told(words: list[str], seconds: float, capfd: pytest.CaptureFixture[str]) -> None:
    """Give up in time, not before the timeout, at most a second after it, with 124 and a line on it."""
    began = time.monotonic()
    with deadline():
        assert main(timed(words, seconds)) == 124
    assert seconds <= time.monotonic() - began < seconds + 1
    line = "jobmon: timed out: the daemon at .* does not answer\n"
    assert re.fullmatch(line, capfd.readouterr().err)


@pytest.mark.parametrize("verb", TIMED)
@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_a_silent_daemon(
    ports: tuple[Server, Server], verb: str, seconds: float, capfd: pytest.CaptureFixture[str]
) -> None:
    """A daemon that takes a request and says nothing does not keep whoever has set a timeout."""
    told(TIMED[verb], seconds, capfd)


@pytest.mark.parametrize("verb", TIMED)
def test_a_daemon_that_takes_no_connection(
    ports: tuple[Server, Server], verb: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where its queue is full connect(2) waits: for no longer than the timeout."""
    waiting = []
    for _ in range(1 << 12):
        one = socket.socket(socket.AF_UNIX)
        one.setblocking(False)
        waiting.append(one)
        try:
            one.connect(ports[0].path)
        except BlockingIOError:
            break
    try:
        told(TIMED[verb], 0.2, capfd)
    finally:
        for one in waiting:
            one.close()


def test_a_daemon_that_reads_nothing(serve: Callable[..., Server]) -> None:
    """A request that finds no room is given up in time; what follows does not go on in its middle."""
    server = serve()
    many = tuple(f"{number:01000}" for number in range(900))
    with deadline(), jobmon.CommandPipe(server.path) as pipe:
        for use in (pipe.start, pipe.stop, pipe.wait):
            began = time.monotonic()
            with pytest.raises(jobmon.WaitTimeout, match="timed out"):
                use(*many, timeout=0.1)
            assert time.monotonic() - began < 1.1


def test_a_question_is_given_up_with_what_it_stands_beside(
    ports: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A daemon or an event port that falls silent later costs no time beyond the timeout."""
    monkeypatch.setattr(control, "QUIET", 0.0)
    server, _ = ports
    for answers in ([], [encode(ReplyMessage(2, True, GRAPH))]):
        server.play(lambda server, answers=answers: (server.hear(2), server.send(answers))[1])  # type: ignore[misc]
        told(["start", "x"], 0.3, capfd)
        server.finish()


def test_a_command_goes_on_when_the_daemon_falls_silent(
    ports: tuple[Server, Server], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """`wait --timeout -- CMD` ends by the timeout, and says which process goes on."""
    server, _ = ports

    def script(server: Server) -> None:
        for number in (2, 3):
            server.hear(number)
            server.send([encode(reply(number))])

    server.play(script)
    end = kit.Fifo(f"{tmp_path}/end")
    began = time.monotonic()
    with deadline():
        assert main(["wait", "x", "--timeout", "300ms", "--", "cat", end.path]) == 124
    assert time.monotonic() - began < 1.3
    told = re.fullmatch(
        r"jobmon: the command is still running \(pid ([0-9]+)\)\njobmon: timed out: .* does not answer\n",
        capfd.readouterr().err,
    )
    assert told is not None
    os.kill(int(told[1]), signal.SIGKILL)
    os.waitpid(int(told[1]), 0)
    end.destroy()


@pytest.mark.slow
@pytest.mark.parametrize("tcp", [False, True])
def test_a_stopped_daemon(daemon: Callable[..., kit.Daemon], tcp: bool) -> None:
    """SIGSTOP for the daemon: every command with a timeout ends within a second after it, with 124."""
    ports = dict(zip(("control-port", "event-port"), e2e.free_ports(2), strict=True)) if tcp else {}
    one = daemon({"supervisor": ports, "jobs": {"web": {"command": kit.FOR_EVER}}})
    one.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, one.pid, os.WSTOPPED | os.WNOWAIT)
    running = {verb: one.start_cli(*timed(words, 0.5)) for verb, words in TIMED.items()}
    began = time.monotonic()
    for verb, process in running.items():
        _, err = process.communicate(timeout=kit.DEADLINE)
        assert process.returncode == 124, (verb, err)
        assert re.fullmatch("jobmon: timed out: the daemon at .* does not answer\n", err), verb
    assert time.monotonic() - began < kit.DEADLINE / 2
    one.process.send_signal(signal.SIGCONT)
