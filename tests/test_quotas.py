"""What clients may take: connections, descriptors, memory; and what is left for those who need it."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import sys

import kit
import pytest
from test_clients import Raw, frame, memory_of

from jobmon.linux.control import quotas
from jobmon.linux.control.quotas import Quotas

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Make = Callable[..., kit.Daemon]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")

BUSY = {"type": 3, "job": "", "reason": 6}
STRANGERS = range(20_001, 20_007)
DESCRIPTORS = 160
# The leader and its child do not heed SIGTERM, and the child is in a session of its own.
IN_VAIN = "trap '' TERM; while :; do sleep 1000; done"
STUBBORN = f'setsid sh -c "{IN_VAIN}" & {IN_VAIN}'
STATUS = {"type": "request", "id": 1, "command": "status"}


def few_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))


def smaller(**limits: float) -> list[str]:
    """A daemon with other limits than those of the constants in quotas, or in server."""
    lines = ["import sys", "from jobmon.linux.control import quotas, server"]
    for name, value in limits.items():
        lines.append(f"{'quotas' if hasattr(quotas, name) else 'server'}.{name} = {value}")
    lines += ["del sys.argv[1:4]", "from jobmon.cli.main import main", "sys.exit(main())"]
    return [sys.executable, "-c", "\n".join(lines)]


class Crowd:
    """A process of another user that connects until it is refused, and holds all its connections."""

    def __init__(self, address: str, uid: int, count: int) -> None:
        self._channel, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            with contextlib.suppress(BaseException):
                self._channel.close()
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                held = [Raw(address) for _ in range(count)]
                theirs.send(self._ask(held))
                theirs.recv(1)
            os._exit(0)
        theirs.close()
        self._channel.settimeout(kit.DEADLINE)
        #: how many were served, and what the others were told
        self.served, self.told = json.loads(self._channel.recv(1 << 20))

    @staticmethod
    def _ask(held: list[Raw]) -> bytes:
        told = []
        for each in held:
            with contextlib.suppress(BrokenPipeError):
                each.send(frame({"type": "request", "id": 1, "command": "list"}))
            try:
                answer = each.receive()
            except ConnectionResetError:  # we had sent more than was read
                answer = BUSY
            if answer.get("type") != "reply":
                told.append(answer)
        return json.dumps((len(held) - len(told), told)).encode()

    def end(self) -> None:
        self._channel.close()
        os.kill(self.pid, signal.SIGKILL)  # later ones hold its channel too
        os.waitpid(self.pid, 0)


@pytest.fixture
def crowd() -> Iterator[Callable[..., Crowd]]:
    """A factory of crowds."""
    made: list[Crowd] = []

    def make(address: int | str, uid: int, count: int = 60) -> Crowd:
        made.append(Crowd(str(address), uid, count))
        return made[-1]

    yield make
    for one in made:
        one.end()


@as_root
@pytest.mark.slow
def test_users_together_cannot_take_what_the_daemon_needs(daemon: Make, crowd: Callable[..., Crowd]) -> None:
    """Six users take all connections that they get. A stop reaches every process of a job and kills it, jobs
    are started, deaths are seen, and the operator is served."""
    jobs = {
        "stubborn": {"command": STUBBORN, "autostart": True, "kill-timeout": 0.2},
        "mortal": {"command": kit.FOR_EVER, "autostart": True},
        "one": {"command": ["true"]},
    }
    config = {"supervisor": {"allow-users": list(STRANGERS)}, "jobs": jobs}
    one = daemon(config, preexec_fn=few_descriptors)
    watch = one.watch()
    os.chmod(one.directory, 0o711)
    all_of_them = [crowd(one.control, uid) for uid in STRANGERS]

    assert sum(each.served for each in all_of_them) <= DESCRIPTORS - quotas.RESERVED_FDS
    assert {json.dumps(told) for each in all_of_them for told in each.told} == {json.dumps(BUSY)}
    members = {pid for pid in kit.descendants_of(one.pid) if kit.process_of(pid)}
    assert one.run_cli("stop", "stubborn").code == 0
    assert watch.until("stubborn", "died").cause == "SIGKILL"
    os.kill(one.pipe().get_pid("mortal") or 0, signal.SIGKILL)
    assert watch.until("mortal", "died").cause == "SIGKILL"
    assert one.run_cli("start", "one").code == 0
    watch.until("one", "died")
    for pid in members:
        kit.wait_gone(pid)
    assert "internal error (please report)" not in one.log


def test_an_operator_finds_room_among_idle_connections_of_his_own(daemon: Make) -> None:
    """Root has as many connections as one user may have: of those that are idle the one that was silent for
    longest is told that there are too many, and the operator is served. Nobody goes who waits."""
    one = daemon(
        {"jobs": {"web": {"command": kit.FOR_EVER}}},
        wrapper=smaller(MAX_CONNECTIONS_PER_UID=4, IDLE_SECONDS=0.0),
    )
    waiting, silent, later, last = (Raw(one.control) for _ in range(4))
    waiting.send(frame({"type": "request", "id": 1, "command": "wait", "jobs": ["web"]}))
    for each in (silent, later, last):
        each.send(frame(STATUS))
        assert each.receive()["ok"]
    operator = Raw(one.control)
    operator.send(frame(STATUS))

    assert operator.receive()["ok"]
    assert silent.receive() == BUSY
    assert silent.ends()
    assert "is idle, and its user has too many connections" in one.wait_log("client disconnected")
    for each in (later, last):
        each.send(frame({"type": "request", "id": 2, "command": "wait", "jobs": ["web"]}))
    operator.send(frame({"type": "request", "id": 2, "command": "start", "jobs": ["web"]}))
    assert [each.receive()["ok"] for each in (waiting, later, last, operator)] == [True] * 4
    for each in (waiting, silent, later, last, operator):
        each.destroy()


def test_one_too_many_is_told_so(daemon: Make) -> None:
    """Where nobody is idle, the command line says that there are too many connections, and exits with 75: it
    may be tried again."""
    one = daemon({"jobs": {"web": {"command": kit.FOR_EVER}}}, wrapper=smaller(MAX_CONNECTIONS_PER_UID=2))
    crowd = [Raw(one.control) for _ in range(2)]
    for each in crowd:
        each.send(frame({"type": "request", "id": 1, "command": "wait", "jobs": ["web"]}) + frame(STATUS))
        assert each.receive()["ok"]
    done = one.run_cli("status")

    assert done.code == 75
    assert "has too many connections: try again" in done.err
    assert "not permitted" not in one.log
    for each in crowd:
        each.destroy()


def limited(jobs: int, limit: int, own: int = 500) -> Quotas:
    """Quotas under another RLIMIT_NOFILE."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        return Quotas(own, jobs)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def served(quota: Quotas, *uids: int, fd: int = 0) -> int:
    """How many connections these users get, one after the other."""
    count = 0
    for uid in uids:
        while not quota.refusal(uid, fd):
            quota.connect(uid)
            count += 1
    return count


@pytest.mark.parametrize("jobs", [0, 10, 1000])
def test_all_users_together_have_a_bound(jobs: int) -> None:
    """However many users there are, their connections leave room for jobs, the daemon's user, and root."""
    quota, limit = limited(jobs, 512), max(512 - 64 - 2 * jobs, 32)

    assert served(quota, *range(1000, 1100)) == limit - 16
    assert "of all users" in quota.refusal(2000, 0)
    assert served(quota, 500) == 8
    assert served(quota, 0) == 8
    quota.disconnect(1000)
    assert served(quota, 1001) == 0  # root and the daemon's user have taken more than that since
    assert served(quota, 0) == 1


def test_one_user_has_half() -> None:
    """A user gets half of all connections at most, and never more than the bound for one."""
    assert served(limited(0, 512), 1000) == (512 - 64) // 2
    assert served(limited(0, 4096), 1000) == 1024


def test_the_last_descriptors_are_nobodys() -> None:
    """Whoever would get one of the last descriptors is refused, wherever the others have gone."""
    quota = limited(0, 512)

    def first_refused(uid: int) -> int:
        return next(fd for fd in range(512) if quota.refusal(uid, fd))

    assert first_refused(1000) == 512 - 64
    assert first_refused(500) == 512 - 64 + 16
    assert first_refused(0) == 512 - 24


def test_what_is_kept_is_bounded_by_connection_by_user_and_in_all() -> None:
    """Who has reached a bound gets no more; others, and root and the daemon's user for certain, do."""
    quota = limited(0, 512)
    assert "this connection" in quota.excess(1000, quotas.MAX_KEPT_PER_CONNECTION)
    quota.keep(1000, quotas.MAX_KEPT_PER_UID)
    assert "this user" in quota.excess(1000, 0)
    assert quota.excess(1001, 0) == ""
    quota.keep(1001, quotas.MAX_KEPT - quotas.MAX_KEPT_PER_UID)
    assert "all users" in quota.excess(1002, 0)
    for uid in (0, 500):
        assert quota.excess(uid, 0) == ""
        quota.keep(uid, quotas.MAX_KEPT_PER_UID)
        assert "this user" in quota.excess(uid, 0)
    quota.keep(1000, -1)
    assert [quota.excess(uid, 0) for uid in (1000, 1002)] == ["", ""]


# ---- memory -----------------------------------------------------------------------------------

KEPT = {"MAX_KEPT_PER_CONNECTION": 2 << 20, "MAX_KEPT_PER_UID": 8 << 20}
NAMES = [f"job{number}" for number in range(1000)]
JOBS: dict[str, Any] = {name: {"command": kit.FOR_EVER} for name in NAMES}


def test_waits_that_name_many_jobs_are_bounded(daemon: Make) -> None:
    """A thousand waits for a thousand jobs: those beyond the bound are refused with a word for it, the memory
    stays below it, and what the connection has waited for is given back with its end."""
    one = daemon({"jobs": JOBS}, wrapper=smaller(**KEPT))
    before = memory_of(one.pid)
    for _ in range(2):
        client = Raw(one.control)
        refused = []
        for number in range(100):
            client.send(frame({"type": "request", "id": number, "command": "wait", "jobs": NAMES}))
            client.send(frame({"type": "request", "id": 1000, "command": "info"}))
            while (told := client.receive())["id"] != 1000:
                refused.append((told["id"], told["error"]["code"], told["error"]["message"]))
        assert [each[0] for each in refused] == list(range(7, 100))
        assert {each[1] for each in refused} == {"busy"}
        assert "requests that wait" in refused[0][2]
        assert memory_of(one.pid) - before < 8 << 20
        client.destroy()


def test_what_waits_costs_no_more_than_it_is_reckoned(daemon: Make) -> None:
    """The bytes that a waiting request is reckoned at are not fewer than it takes."""
    one = daemon({"jobs": JOBS})
    before, count = memory_of(one.pid), 20
    client = Raw(one.control)
    for number in range(count):
        client.send(frame({"type": "request", "id": number, "command": "wait", "jobs": NAMES}))
    client.send(frame({"type": "request", "id": 1000, "command": "info"}))
    assert client.receive()["id"] == 1000

    assert memory_of(one.pid) - before <= count * (quotas.WAIT_BYTES + quotas.NAME_BYTES * len(NAMES))
    client.destroy()


def test_unfinished_frames_are_bounded(daemon: Make) -> None:
    """Sixty frames of almost a MiB each, and the ends of none: beyond the bound of their user a connection is
    told why it is closed; who sends small requests is served all the while."""
    one = daemon({"jobs": {"web": {"command": kit.FOR_EVER}}}, wrapper=smaller(**KEPT))
    before = memory_of(one.pid)
    crowd = [Raw(one.control) for _ in range(60)]
    small = Raw(one.control)
    for each in crowd:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            each.send(b"\0\x0f\xff\xff" + b" " * 1_000_000)
        small.send(frame({"type": "request", "id": 1, "command": "info"}))
        assert small.receive()["ok"]
    over = [each for each in crowd if kit.readable(each.socket.fileno(), 0)]

    assert memory_of(one.pid) - before < 12 << 20
    assert len(over) >= 60 - 9
    assert one.log.count("too much is kept for this user") >= 1
    for each in (*crowd, small):
        each.destroy()


def test_answers_that_nobody_reads_are_bounded(daemon: Make) -> None:
    """Many connections ask for much and read nothing: beyond their user's bound they are refused."""
    one = daemon({"jobs": JOBS}, wrapper=smaller(**KEPT))
    before = memory_of(one.pid)
    crowd = [Raw(one.control) for _ in range(60)]
    for each in crowd:
        each.send(frame(STATUS) * 10)
    operator = Raw(one.control)
    operator.send(frame({"type": "request", "id": 1, "command": "info"}))
    assert operator.receive()["ok"]
    last = crowd[-1]
    answers = [last.receive() for _ in range(10)]

    assert {each["error"]["code"] for each in answers if not each["ok"]} == {"busy"}
    assert memory_of(one.pid) - before < 24 << 20
    for each in (*crowd, operator):
        each.destroy()


def test_requests_that_wait_are_bounded_for_a_user_and_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The change of a job costs a look at each. Root and the daemon's user have room of their own."""
    monkeypatch.setattr(quotas, "MAX_WAITING_PER_UID", 3)
    monkeypatch.setattr(quotas, "MAX_WAITING", 5)
    own, users = 1000, (1001, 1002)
    kept = Quotas(own, 1)
    for uid in (0, own, users[0]):
        assert kept.too_many_wait(uid) == ""
        kept.wait(uid, 3)
        assert kept.too_many_wait(uid) == "3 requests of this user wait already"
    assert kept.too_many_wait(users[1]) == ""
    kept.wait(users[1], 2)
    assert kept.too_many_wait(users[1]) == "5 requests of all users wait already"
    kept.wait(0, -1)
    assert kept.too_many_wait(0) == ""
    kept.wait(users[0], -3)
    assert kept.too_many_wait(users[0]) == kept.too_many_wait(users[1]) == ""


def test_what_waits_is_counted_until_it_is_answered(daemon: Make) -> None:
    """One user's connections share a bound; an answer makes room, and so does the end of a connection."""
    one = daemon({"jobs": {"web": {"command": kit.FOR_EVER}}}, wrapper=smaller(MAX_WAITING_PER_UID=4))
    clients = [Raw(one.control) for _ in range(3)]
    wait = {"type": "request", "command": "wait", "jobs": ["web"], "for": "running", "since": 0}
    for client in clients[:2]:
        client.send(frame({**wait, "id": 1}) + frame({**wait, "id": 2}) + frame({**STATUS, "id": 3}))
    assert [client.receive()["id"] for client in clients[:2]] == [3, 3]
    clients[2].send(frame({**wait, "id": 1}))
    assert clients[2].receive()["error"]["code"] == "busy"

    clients[0].destroy()
    while True:  # its end is seen in a turn of its own
        clients[2].send(frame({**wait, "id": 2, "timeout": 0}))
        told = clients[2].receive()["error"]["code"]
        if told == "timeout":
            break
        assert told == "busy"
    for client in clients[1:]:
        client.destroy()
