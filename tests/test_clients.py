"""Bad clients, and how little of them the others notice."""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import socket
import struct
import sys
import time

import kit
import pytest

from jobmon.core import eventlog
from jobmon.linux.control import server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Factory = Callable[..., kit.Daemon]

JOBS: dict[str, Any] = {"web": {"command": kit.FOR_EVER, "autostart": True}, "one": {"command": ["true"]}}
STATUS = {"type": "request", "id": 1, "command": "status"}
INBOUND = 1 << 20  # the longest frame that a client may send


def frame(message: object) -> bytes:
    """A message as it goes over the wire."""
    body = json.dumps(message).encode()
    return struct.pack(">I", len(body)) + body


class Raw:
    """A client that sends and reads bytes, whatever they are."""

    def __init__(self, address: int | str) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.socket = socket.socket(family)
        self.socket.settimeout(kit.DEADLINE)
        self.socket.connect(address if isinstance(address, str) else ("127.0.0.1", address))

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self) -> Any:
        """The next message; None at the end."""
        head = self._exactly(4)
        return None if head is None else json.loads(self._exactly(struct.unpack(">I", head)[0]) or b"")

    def ends(self) -> bool:
        """Whether nothing more comes but the end."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:  # we had sent more than was read
            return True

    def _exactly(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                assert not data, "it ended within a message"
                return None
            data += more
        return data

    def destroy(self) -> None:
        self.socket.close()


@pytest.fixture(params=["unix", "tcp"])
def served(request: pytest.FixtureRequest, daemon: Factory) -> kit.Daemon:
    """A daemon on UNIX sockets, and one on TCP ports."""
    if request.param == "unix":
        return daemon({"jobs": JOBS})
    control, event = free_ports(2)
    return daemon({"supervisor": {"control-port": control, "event-port": event}, "jobs": JOBS})


def free_ports(count: int) -> list[int]:
    made = [socket.socket() for _ in range(count)]
    for one in made:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in made]
    for one in made:
        one.close()
    return ports


@pytest.fixture
def client(served: kit.Daemon) -> Iterator[Callable[..., Raw]]:
    """A factory of raw clients of the daemon's control port, or of another of its addresses."""
    made: list[Raw] = []

    def make(address: int | str = served.control) -> Raw:
        made.append(Raw(address))
        return made[-1]

    yield make
    for one in made:
        one.destroy()


def memory_of(pid: int) -> int:
    """Anonymous memory in bytes."""
    return int(kit.status_of(pid)["RssAnon"].split()[0]) * 1024


def connections_of(pid: int) -> int:
    return sum(what.startswith("socket:") for what in kit.fds_of(pid).values())


# ---- what is no message -----------------------------------------------------------------------

GARBAGE = {
    "a length of 4 GiB": (b"\xff\xff\xff\xff", "bad-frame"),
    "a length just too long": (struct.pack(">I", INBOUND + 1), "bad-frame"),
    "another protocol": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "bad-frame"),
    "an empty frame": (struct.pack(">I", 0), "bad-json"),
    "no JSON": (struct.pack(">I", 5) + b"hello", "bad-json"),
    "no UTF-8": (struct.pack(">I", 4) + b'"\xff\xfe"', "bad-json"),
    "JSON that is cut off": (struct.pack(">I", 9) + b'{"type":1', "bad-json"),
    "JSON a million deep": (struct.pack(">I", 100_000) + b"[" * 100_000, "bad-json"),
    "not a number": (struct.pack(">I", 3) + b"NaN", "bad-json"),
    "no object": (frame([1, 2]), "bad-json"),
    "no type": (frame({}), "bad-message"),
    "an unknown type": (frame({"type": 99}), "bad-message"),
    "a type that is none": (frame({"type": {"a": 1}}), "bad-message"),
    "a job that is none": (frame({"type": 1, "job": 7, "command": 3}), "bad-message"),
    "an unknown command of 0.7": (frame({"type": 1, "job": "web", "command": 77}), "bad-message"),
    "a request without an id": (frame({"type": "request", "command": "list"}), "bad-message"),
}


@pytest.mark.parametrize("port", ["control", "event"])
def test_garbage_gets_an_error_and_the_end(served: kit.Daemon, client: Callable[..., Raw], port: str) -> None:
    """What is no message is answered with one error that says what it is, then the connection is closed."""
    for case, (data, code) in GARBAGE.items():
        bad = client(getattr(served, port))
        bad.send(data)
        told = bad.receive()

        assert told["type"] == "error", case
        assert told["error"]["code"] == code, case
        assert told["error"]["message"], case
        assert bad.ends(), case
    assert served.pipe().is_running("web")
    assert "internal error (please report)" not in served.log


def test_what_came_before_the_garbage_is_done(served: kit.Daemon, client: Callable[..., Raw]) -> None:
    """Requests in the same bytes as a bad frame are answered first, what comes after it is not looked at."""
    bad = client()
    bad.send(frame(STATUS) + b"\xff\xff\xff\xff" + frame({**STATUS, "id": 2}))

    assert bad.receive()["id"] == 1
    assert bad.receive()["error"]["code"] == "bad-frame"
    assert bad.ends()


def test_a_request_that_makes_no_sense_is_refused_and_the_connection_lives(
    served: kit.Daemon, client: Callable[..., Raw]
) -> None:
    """A request with an id can be answered: it is told what is wrong, and the next is served."""
    one = client()
    for wrong in ({"command": "dance"}, {"command": "start"}, {"command": "stop", "jobs": "web"}):
        one.send(frame({"type": "request", "id": 5, **wrong}))
        told = one.receive()
        assert (told["id"], told["ok"]) == (5, False)
        assert told["error"]["code"] in {"unknown-command", "bad-request"}
    one.send(frame(STATUS))

    assert one.receive()["ok"]


def test_a_command_in_single_bytes_is_a_command(served: kit.Daemon, client: Callable[..., Raw]) -> None:
    """However the bytes arrive, they make the same message."""
    slow = client()
    for byte in frame({"type": 1, "job": "web", "command": 5}):
        slow.send(bytes([byte]))

    assert slow.receive() == {
        "type": 4,
        "job": "web",
        "is_running": True,
        "pid": served.pipe().get_pid("web"),
    }


def test_connections_closed_at_every_byte_are_forgotten(served: kit.Daemon) -> None:
    """A client may go away wherever it is in a message, orderly or with a reset; nothing is kept of it."""
    pipe = served.pipe()
    pipe.info()
    before = kit.fds_of(served.pid)
    for message in (frame(STATUS), frame({"type": 1, "job": "one", "command": 3})):
        for size in range(len(message)):
            for linger in (None, struct.pack("ii", 1, 0)):
                one = Raw(served.control)
                if linger is not None:
                    one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                one.send(message[:size])
                one.destroy()
    settle(served, before)

    assert pipe.is_running("web")
    assert "internal error (please report)" not in served.log


def settle(served: kit.Daemon, before: dict[int, str]) -> None:
    """Ask until the daemon has noticed that everybody has gone: each question is a turn of its loop."""
    pipe = served.pipe()
    end = time.monotonic() + kit.DEADLINE
    while connections_of(served.pid) > sum(what.startswith("socket:") for what in before.values()) + 1:
        pipe.info()
        assert time.monotonic() < end, kit.fds_of(served.pid)


def test_who_leaves_while_waiting_is_not_waited_for(served: kit.Daemon, client: Callable[..., Raw]) -> None:
    """A client that waits and goes leaves no waiter: what it waited for happens, and nothing breaks."""
    watch, pipe = served.watch(), served.pipe()
    pipe.info()
    before = kit.fds_of(served.pid)
    for _ in range(20):
        gone = client()
        gone.send(frame({"type": "request", "id": 1, "command": "wait", "jobs": ["web"], "timeout": 60}))
        gone.destroy()
    pipe.restart("web")
    watch.until("web", "running")
    settle(served, before)

    assert "internal error (please report)" not in served.log


def test_one_connection_cannot_wait_a_million_times(served: kit.Daemon, client: Callable[..., Raw]) -> None:
    """What waits costs memory and a look at every change: past a bound more is refused, not kept."""
    one = client()
    wait = {"type": "request", "command": "wait", "jobs": ["web"]}
    one.send(b"".join(frame({**wait, "id": n}) for n in range(server.MAX_UNANSWERED + 2)))
    refused = [one.receive() for _ in range(2)]

    assert [(reply["id"], reply["error"]["code"]) for reply in refused] == [
        (server.MAX_UNANSWERED, "failed"),
        (server.MAX_UNANSWERED + 1, "failed"),
    ]
    assert "wait already" in refused[0]["error"]["message"]

    served.pipe().restart("web")

    assert {one.receive()["id"] for _ in range(server.MAX_UNANSWERED)} == set(
        range(server.MAX_UNANSWERED)
    )
    one.send(frame(STATUS))
    assert one.receive()["ok"]


# ---- who closes, and who half-closes ------------------------------------------------------------


def test_who_half_closes_is_answered(served: kit.Daemon, client: Callable[..., Raw]) -> None:
    """A client that sends all and half-closes at once gets every answer, late ones too, and then the end."""
    one = client()
    one.send(
        frame({"type": "request", "id": 1, "command": "restart", "jobs": ["web"]})
        + frame({**STATUS, "id": 2})
        + frame({"type": "request", "id": 3, "command": "stop", "jobs": ["web"]})
    )
    one.socket.shutdown(socket.SHUT_WR)
    told = [one.receive() for _ in range(3)]

    assert [each["id"] for each in told] == [2, 1, 3]
    assert (told[0]["ok"], told[2]["ok"]) == (True, True)
    assert one.ends()


def test_a_listener_that_half_closes_hears_on(served: kit.Daemon, client: Callable[..., Raw]) -> None:
    """A subscriber that has said all is told what happens until it closes, and is then forgotten."""
    one = client(served.event)
    one.send(frame({"type": "subscribe"}))
    one.socket.shutdown(socket.SHUT_WR)
    assert one.receive()["type"] == "snapshot"
    before = connections_of(served.pid) + 1
    pipe = served.pipe()
    for _ in range(2):
        pipe.restart("one")
        while one.receive()["event"] != "died":
            pass
    one.destroy()
    limit = time.monotonic() + kit.DEADLINE
    while connections_of(served.pid) >= before:  # the pipe came, the listener has gone
        assert time.monotonic() < limit, "it is still listened for"
        pipe.restart("one")  # over TCP the next events find that nobody is there


def test_half_closed_costs_nothing(served: kit.Daemon, client: Callable[..., Raw]) -> None:
    """While a client that has half-closed waits, the daemon sleeps."""
    one = client()
    one.send(frame({"type": "request", "id": 1, "command": "wait", "jobs": ["web"], "timeout": 1}))
    one.socket.shutdown(socket.SHUT_WR)
    pipe = served.pipe()
    assert pipe.is_running("web")
    before = wake_ups(served.pid)
    told = one.receive()

    assert told["error"]["code"] == "timeout"
    assert wake_ups(served.pid) - before < 20
    assert one.ends()


def wake_ups(pid: int) -> int:
    facts = kit.status_of(pid)
    return int(facts["voluntary_ctxt_switches"]) + int(facts["nonvoluntary_ctxt_switches"])


def test_who_half_closes_and_then_closes_is_forgotten(daemon: Factory) -> None:
    """That a half-closed UNIX connection is closed is seen at once, and nobody waits there any more."""
    served = daemon({"jobs": JOBS})
    pipe = served.pipe()
    assert pipe.is_running("web")
    before = kit.fds_of(served.pid)
    one = Raw(served.control)
    one.send(frame({"type": "request", "id": 1, "command": "wait", "jobs": ["web"]}))
    one.socket.shutdown(socket.SHUT_WR)
    assert pipe.is_running("web")
    assert len(kit.fds_of(served.pid)) == len(before) + 1
    one.destroy()

    settle(served, before)


def test_who_half_closes_over_tcp_and_vanishes_is_asked_for(daemon: Factory) -> None:
    """Over TCP nothing tells that a half-closed client closes: the kernel asks, and then it is forgotten."""
    control, event = free_ports(2)
    supervisor = {"control-port": control, "event-port": event}
    served = daemon({"supervisor": supervisor, "jobs": JOBS}, wrapper=[sys.executable, "-c", CURIOUS])
    pipe = served.pipe()
    assert pipe.is_running("web")
    before = kit.fds_of(served.pid)
    one = Raw(control)
    one.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, 1)  # seconds that the kernel keeps its end
    one.send(frame(STATUS))
    assert one.receive()["ok"]
    one.send(frame({"type": "request", "id": 2, "command": "wait", "jobs": ["web"]}))
    one.socket.shutdown(socket.SHUT_WR)
    assert pipe.is_running("web")
    assert len(kit.fds_of(served.pid)) == len(before) + 1
    one.destroy()

    settle(served, before)


CURIOUS = (
    "import sys\n"
    "from jobmon.linux.kernel import sockets\n"
    "sockets.KEEPALIVE_SECONDS = 1\n"
    "del sys.argv[1:4]\n"  # python -m jobmon: that is us
    "from jobmon.cli.main import main\n"
    "sys.exit(main())\n"
)


@pytest.mark.parametrize("half", [False, True], ids=["closed", "half-closed"])
def test_07_terminates_and_leaves(daemon: Factory, half: bool) -> None:
    """The terminate of 0.7 is connect, send, close: it is done each time, whatever else waits."""
    for _ in range(3):
        served = daemon({"jobs": JOBS})
        one = Raw(served.control)
        start, terminate = {"type": 1, "job": "one", "command": 3}, {"type": 1, "job": None, "command": 7}
        one.send(frame(start) * 100 + frame(terminate))
        if half:
            one.socket.shutdown(socket.SHUT_WR)
        else:
            one.destroy()
        assert served.wait() == 0
        one.destroy()


# ---- half a frame, and silence ------------------------------------------------------------------


def test_fifteen_seconds_are_what_the_contract_says() -> None:
    """The constants that the tests below shorten are those of the protocol's description."""
    assert (server.FRAME_SECONDS, server.DRAIN_SECONDS) == (15.0, 15.0)
    assert eventlog.KEPT_EVENTS == 10_000


IMPATIENT = (
    "import sys\n"
    "from jobmon.core import eventlog\n"
    "from jobmon.linux.control import server as sessions\n"
    "eventlog.KEPT_EVENTS = 500\n"
    "sessions.FRAME_SECONDS = sessions.DRAIN_SECONDS = float(sys.argv.pop(1))\n"
    "del sys.argv[1:4]\n"  # python -m jobmon: that is us
    "from jobmon.cli.main import main\n"
    "sys.exit(main())\n"
)


def impatient(daemon: Factory, seconds: float, **config: Any) -> kit.Daemon:
    """A daemon whose fifteen seconds are fewer, so that nobody has to wait for them."""
    return daemon({"jobs": JOBS, **config}, wrapper=[sys.executable, "-c", IMPATIENT, str(seconds)])


def test_half_a_frame_and_silence_is_dropped(daemon: Factory) -> None:
    """Who begins a frame and does not finish it is dropped, which is logged; who is merely silent is not."""
    served = impatient(daemon, 0.3)
    half, silent, slow = Raw(served.control), Raw(served.control), Raw(served.event)
    message = frame(STATUS)
    start = time.monotonic()
    half.send(message[:10])
    slow.send(frame({"type": "subscribe", "since": None, "jobs": None})[:1])

    assert half.ends()
    assert slow.ends()
    assert time.monotonic() - start >= 0.3
    assert served.log.count("began a frame and did not finish it") == 2
    silent.send(message)
    assert silent.receive()["ok"]
    for one in (half, silent, slow):
        one.destroy()


def test_a_byte_now_and_then_buys_no_time(daemon: Factory) -> None:
    """The clock of a frame runs from its first byte: a trickle does not keep a connection."""
    served = impatient(daemon, 0.4)
    one = Raw(served.control)
    message = frame({**STATUS, "reason": "x" * 1000})
    sent = 0
    one.send(message[:1])
    while not kit.readable(one.socket.fileno(), 0.05):
        sent += 1
        one.send(message[sent : sent + 1])

    assert one.ends()
    assert sent < 100
    one.destroy()


def test_the_clock_of_a_frame_stops_with_its_last_byte(daemon: Factory) -> None:
    """Frame after frame, each begun before the last was answered: nobody who finishes them is dropped."""
    served = impatient(daemon, 0.3)
    one = Raw(served.control)
    message = frame(STATUS)
    one.send(message[:-1])
    for _ in range(10):
        one.send(message[-1:] + message[:-1])
        assert one.receive()["ok"]
        assert not kit.readable(one.socket.fileno(), 0.05)
    one.send(message[-1:])

    assert one.receive()["ok"]
    one.destroy()


# ---- who does not read ------------------------------------------------------------------------


def flood(one: Raw, data: bytes) -> int:
    """Send until nobody takes any more; how much that was."""
    one.socket.setblocking(False)
    total, quiet = 0, 0
    while quiet < 3:
        try:
            total += one.socket.send(data[total % len(data) :])
            quiet = 0
        except BlockingIOError:
            _, writable, _ = select.select([], [one.socket], [], 0.05)
            quiet += not writable
    one.socket.settimeout(kit.DEADLINE)
    return total


def test_a_client_that_never_reads_costs_bounded_memory(
    served: kit.Daemon, client: Callable[..., Raw]
) -> None:
    """Answers that nobody takes stop the questions: the daemon keeps little, serves others, goes on later."""
    deaf = client()
    for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):  # or the kernel's would hide the daemon's for long
        deaf.socket.setsockopt(socket.SOL_SOCKET, buffer, 131072)
    before = memory_of(served.pid)
    message = frame(STATUS)
    asked = flood(deaf, message * 1000) // len(message)
    assert served.pipe().is_running("web")

    assert memory_of(served.pid) - before < 8 << 20
    for _ in range(asked):
        assert deaf.receive()["ok"]


def test_a_client_that_never_reads_is_dropped(daemon: Factory) -> None:
    """Output that waits for so long without progress ends the connection, with a log line."""
    served = impatient(daemon, 0.3)
    deaf = Raw(served.control)
    flood(deaf, frame(STATUS) * 1000)

    assert "uid=" in served.wait_log("does not read what it is sent")
    assert served.pipe().is_running("web")
    deaf.destroy()


def test_a_listener_that_never_reads_holds_up_nobody(served: kit.Daemon) -> None:
    """Events for who does not read are kept once for all, not for each; the others get theirs at once."""
    deaf = [Raw(served.event) for _ in range(50)]
    for one in deaf:
        one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.send(frame({"type": "subscribe", "since": None, "jobs": None}))
    watch, pipe = served.watch(), served.pipe()
    before = memory_of(served.pid)
    for _ in range(100):
        pipe.start_job("one")
        watch.until("one", "exited")

    assert memory_of(served.pid) - before < 8 << 20
    for one in deaf:
        one.destroy()


def test_a_listener_that_falls_too_far_behind_is_dropped(daemon: Factory) -> None:
    """Who has not taken what is no longer kept is dropped, with a log line, and nobody else is."""
    served = impatient(daemon, 60)
    deaf = Raw(served.event)
    deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    deaf.send(frame({"type": "subscribe", "since": None, "jobs": None}))
    watch, pipe = served.watch(), served.pipe()
    for _ in range(1000):
        pipe.start("one", wait=False, reason="r" * 2000)
        watch.until("one", "exited")
        if "too many events behind" in served.log:
            break

    assert served.log.count("too many events behind") == 1
    deaf.destroy()


# ---- many -------------------------------------------------------------------------------------


def test_five_hundred_connections_at_once(served: kit.Daemon) -> None:
    """All are accepted and answered, a well-behaved client too; when they go the daemon is as before."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    pipe = served.pipe()
    pipe.info()
    before = kit.fds_of(served.pid)
    crowd = [Raw(served.control) for _ in range(500)]
    for one in crowd:
        one.send(frame(STATUS))

    assert pipe.is_running("web")
    for one in crowd:
        assert one.receive()["ok"]
    for one in crowd:
        one.destroy()
    settle(served, before)


def test_one_user_cannot_take_all_descriptors(daemon: Factory) -> None:
    """With few descriptors connections are refused in words, and jobs are still started."""
    served = daemon({"jobs": JOBS}, preexec_fn=few_descriptors)
    crowd = [Raw(served.control) for _ in range(200)]
    answers = []
    for one in crowd:
        try:
            one.send(frame(STATUS))
            answers.append(one.receive())
        except (BrokenPipeError, ConnectionResetError):
            answers.append(None)
    refused = [told for told in answers if told != answers[0]]

    assert answers[0]["ok"]
    assert refused
    assert {json.dumps(told) for told in refused} <= {'{"type": 3, "job": "", "reason": 6}', "null"}
    crowd[0].send(frame({"type": "request", "id": 2, "command": "start", "jobs": ["one"], "wait": False}))
    assert crowd[0].receive()["ok"]
    assert "too many connections: 30 of this user" in served.log
    for one in crowd:
        one.destroy()


def few_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))


def test_a_flood_of_connections_holds_up_no_command(served: kit.Daemon) -> None:
    """Clients that come and go as fast as they can: a command is answered meanwhile, each within its turn."""
    pipe = served.pipe()
    for _ in range(20):
        crowd = [Raw(served.control) for _ in range(50)]
        start = time.monotonic()
        assert pipe.is_running("web")
        assert time.monotonic() - start < 2
        for one in crowd:
            one.destroy()


def test_pipelined_requests_are_answered_as_they_finish(
    served: kit.Daemon, client: Callable[..., Raw]
) -> None:
    """What waits does not hold up what does not."""
    one = client()
    one.send(
        frame({"type": "request", "id": 1, "command": "wait", "jobs": ["web"], "timeout": 60})
        + frame({**STATUS, "id": 2})
        + frame({"type": "request", "id": 3, "command": "restart", "jobs": ["web"]})
    )
    order = [one.receive()["id"] for _ in range(3)]

    assert order[0] == 2
    assert sorted(order) == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, to let a call fail")
@pytest.mark.parametrize("shared", [True, False])
def test_where_descriptors_cannot_be_refused_it_is_said(
    daemon: Factory, shared: bool
) -> None:
    """On a kernel without SO_PASSRIGHTS the log names the sockets that others may send descriptors to."""
    inject = ["strace", "-D", "-qq", "-o", os.devnull, "-e", "inject=setsockopt:error=ENOPROTOOPT"]
    access = {"allow-users": ["root"]} if shared else {}
    one = daemon({"supervisor": access}, wrapper=inject)
    told = [one.path(name) for name in ("control", "event")] if shared else []
    text = "others may connect here and send descriptors"
    lines = [line for line in one.log.splitlines() if text in line]
    assert [path for line in lines for path in told if f'path="{path}"' in line] == told
    assert len(lines) == len(told)
