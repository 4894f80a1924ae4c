"""The notify receiver takes what anybody sends, words and descriptors; the daemon waits for none of it.

Real descriptors that do not close: a file system in user space that never answers (fuse.py), a TCP socket
that lingers. Real processes of another user, real signals to the receiver.
"""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import fuse
import kit
import pytest
from test_readiness import (
    NOTIFY,
    TALK,
    address_of,
    python,
    receiver_of,
    receivers_of,
    shell,
    slow_to_close,
    start,
    state_of,
    until_heard,
)

from jobmon.linux.monitor import notifyreceiver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Make = Callable[..., kit.Daemon]

pytestmark = pytest.mark.slow

NOBODY = 65534
MANY = 1000  # datagrams of an attack
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else, and to mount")
# Says READY=1 in words alone, once a line has come in the FIFO `go`.
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, to let fork fail")
AT_ONCE = shell("systemd-notify --ready --no-block")
READY = shell("read line < go; systemd-notify --ready --no-block")


@pytest.fixture
def run(daemon: Make) -> Callable[..., tuple[kit.Daemon, kit.Watch]]:
    """A daemon with the job `a`, started, and perhaps others; with a FIFO `go`."""

    def make(
        command: Any = READY, /, others: Any = None, options: Any = None, **keys: Any
    ) -> tuple[kit.Daemon, kit.Watch]:
        job = {"command": command, **NOTIFY, **{name.replace("_", "-"): key for name, key in keys.items()}}
        one = daemon({"jobs": {"a": job, **(others or {})}}, **(options or {}))
        os.mkfifo(one.path("go"))
        os.chmod(one.path("go"), 0o666)
        watch = one.watch()
        start(one, watch)
        return one, watch

    return make


@contextlib.contextmanager
def stranger(act: Callable[[], object]) -> Iterator[tuple[int, kit.Lines]]:
    """A process of another user that acts, says "done", and lives on. What it raises is said instead. It may
    hang in the kernel: it is waited for only when the fixtures beneath are gone."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            kept = act()
            os.write(writer, b"done\n")
            signal.pause()
            del kept
        except BaseException as error:
            os.write(writer, f"{error!r}\n".encode())
        finally:
            os._exit(0)
    os.close(writer)
    said = kit.Lines(reader)
    try:
        yield pid, said
    finally:
        os.kill(pid, signal.SIGKILL)
        STRANGERS.append(pid)
        said.destroy()


STRANGERS: list[int] = []


@pytest.fixture(autouse=True)
def _bury() -> Iterator[None]:
    """Reap strangers, and what a daemon could not end because a file system kept it: it came to us."""
    before = kit.children_of(os.getpid())
    yield
    while STRANGERS:
        os.waitpid(STRANGERS.pop(), 0)
    for pid in kit.children_of(os.getpid()) - before:
        kit.end_orphan(pid)


def hand_over(to: socket.socket, fd: int, words: bytes = b"READY=1") -> None:
    """Send a datagram with a descriptor."""
    to.sendmsg([words], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])


def connected(address: str) -> socket.socket:
    """A socket that sends to an address."""
    to = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    to.connect("\0" + address[1:])
    return to


def go(one: kit.Daemon) -> None:
    """Let the job say that it is ready."""
    with open(one.path("go"), "w", encoding="utf-8") as file:
        file.write("go\n")


def answers(one: kit.Daemon) -> float:
    """How long the daemon takes to answer, in seconds."""
    began = time.monotonic()
    assert state_of(one) in ("starting", "running")
    return time.monotonic() - began


@as_root
def test_files_that_hang_when_they_are_closed(run: Any) -> None:
    """A thousand descriptors of a file whose close hangs cost a few processes, and keep nobody waiting."""
    one, watch = run()
    address = address_of(one)
    most = [0]

    def attack() -> None:
        fd = os.open("file", os.O_RDWR, dir_fd=place)
        to = connected(address)
        for _ in range(MANY):
            hand_over(to, fd)

    with fuse.hanging() as place, stranger(attack) as (_, told):
        slowest = 0.0
        while not kit.readable(told.fd, 0):
            most.append(len(kit.descendants_of(one.pid)))
            slowest = max(slowest, answers(one))
        assert told.line() == "done"
        go(one)
        watch.until("a", "running")
        assert one.run_cli("stop", "a").code == 0

    assert slowest < 2
    assert max(most) < 20  # the job's, the receiver, a disposer


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process does nothing meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def fill(to: socket.socket, fds: list[int], words: bytes = b"READY=1") -> int:
    """Hand over descriptors, the last first, until the queue is full; returns how many."""
    to.setblocking(False)
    for count in range(len(fds)):
        try:
            hand_over(to, fds[-1], words)
        except BlockingIOError:
            return count
        os.close(fds.pop())  # the last one is on its way
    return len(fds)


@as_root
def test_sockets_that_linger(run: Any) -> None:
    """A descriptor that takes a minute to close delays the words behind it little, and no other job's."""
    one, watch = run(others={"b": {"command": AT_ONCE, **NOTIFY}})
    address = address_of(one)

    def attack() -> None:
        peers, slow = zip(*(slow_to_close(60) for _ in range(12)), strict=True)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        os.write(ready, b".")
        signal.sigwait([signal.SIGUSR1])
        assert fill(connected(address), [own.detach() for own in slow], b"BARRIER=1") > 1
        assert len(peers) == 12

    "".encode("idna")  # so that the other user need not load it
    waits, ready = os.pipe()
    with stranger(attack) as (pid, told):
        assert kit.readable(waits, 5), told.line()
        with stopped(receiver_of(one)):
            os.kill(pid, signal.SIGUSR1)
            assert told.line() == "done"
        began = time.monotonic()
        start(one, watch, "b")
        go(one)
        assert one.run_cli("wait", "a", "b", "--for", "ready").code == 0

    assert time.monotonic() - began < 10
    assert len(receivers_of(one)) == 1
    os.close(waits)
    os.close(ready)


def has_passrights() -> bool:
    """Whether the kernel can keep descriptors out."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
        try:
            own.setsockopt(socket.SOL_SOCKET, notifyreceiver.SO_PASSRIGHTS, 1)
        except OSError:
            return False
    return True


def is_shut(address: str) -> bool:
    """Whether an address takes descriptors no more after some time, but words."""
    end = time.monotonic() + kit.DEADLINE
    with connected(address) as to:
        while time.monotonic() < end:
            try:
                hand_over(to, to.fileno(), b"BARRIER=1")
            except PermissionError:
                return to.send(b"STATUS=x") > 0
    return False


@as_root
def test_descriptors_that_never_close(run: Any) -> None:
    """Where even SIGKILL does not end a close, the number of processes that hang in it is bounded. Words are
    heard, the daemon answers and ends, and says who has sent that; no more descriptors are let in."""
    one, watch = run(others={"b": {"command": AT_ONCE, **NOTIFY}, "c": {"command": kit.FOR_EVER, **NOTIFY}})
    start(one, watch, "c")
    addresses = [address_of(one, "a"), address_of(one, "c")]
    hanging: set[int] = set()

    def attack() -> object:
        fds = [os.open("file", os.O_RDWR, dir_fd=place) for _ in range(2 * notifyreceiver.MOST_STUCK)]
        assert sum(fill(connected(address), fds) for address in addresses) > notifyreceiver.MOST_STUCK
        kept = mmap.mmap(fds[0], 4096)
        kept[0] = 1  # dirty for good, because WRITE is not answered
        return kept

    with fuse.hanging(writes_back=True) as place:
        with stopped(receiver_of(one)), stranger(attack) as (_, told):
            assert told.line() == "done"
        assert f"uid={NOBODY}" in one.wait_log("cannot be closed")
        start(one, watch, "b")
        go(one)
        watch.until("b", "running")
        assert answers(one) < 2
        assert not has_passrights() or is_shut(address_of(one, "b"))
        assert one.run_cli("stop", "a", "b").code == 0
        hanging = kit.descendants_of(one.pid)
        assert one.stop() == 0
    for pid in hanging:
        kit.wait_gone(pid)

    assert notifyreceiver.MANY_STUCK < len(hanging) < notifyreceiver.MOST_STUCK + 4


def cpu_seconds(pid: int) -> float:
    """The processor time that a process has used."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        fields = file.read().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@as_root
def test_a_flood_of_a_stranger(run: Any) -> None:
    """Words of another user cost the daemon little, however many they are, and are counted."""
    one, watch = run()
    address = address_of(one)
    before = cpu_seconds(one.pid)

    def flood() -> None:
        to = connected(address)
        for _ in range(20 * MANY):
            to.send(b"READY=1")

    with stranger(flood) as (pid, told):
        assert told.line() == "done"
        until_heard(address)
        assert cpu_seconds(one.pid) - before < 0.4
        assert state_of(one) == "starting"
        assert f"messages refused, last of pid {pid}, uid {NOBODY}" in one.run_cli("why", "a").out
        go(one)
        watch.until("a", "running")


@as_root
def test_a_flood_of_a_stranger_to_two_runs(run: Any) -> None:
    """Who was refused for one run is looked at for another one by the receiver itself, which lives on."""
    one, watch = run(others={"b": {"command": READY, **NOTIFY}})
    start(one, watch, "b")
    addresses = [address_of(one), address_of(one, "b")]
    first = receiver_of(one)

    def flood() -> None:
        to = [connected(address) for address in addresses]
        for _ in range(MANY):
            for each in to:
                each.send(b"READY=1")

    with stranger(flood) as (_, told):
        assert told.line() == "done"
        for address in addresses:
            until_heard(address)
    assert receiver_of(one) == first
    assert "internal error" not in one.log


def test_a_receiver_that_dies(run: Any) -> None:
    """A receiver that was killed is replaced, and what was said meanwhile is heard."""
    one, watch = run()
    address = address_of(one)
    first = receiver_of(one)
    os.kill(first, signal.SIGSTOP)
    go(one)
    with connected(address) as to:
        to.send(b"STATUS=lost?")

    os.kill(first, signal.SIGKILL)

    watch.until("a", "running")
    until_heard(address)
    assert receiver_of(one) != first
    assert "the notify receiver has died" in one.log


def test_a_receiver_that_hangs(run: Any) -> None:
    """A receiver that does not answer is replaced, and a death waits for that: the words come before it."""
    one, watch = run(["sh", "-c", "read line < go; systemd-notify --ready --no-block"])
    pid = one.pipe().get_pid("a") or 0
    first = receiver_of(one)
    os.kill(first, signal.SIGSTOP)

    go(one)
    kit.wait_gone(pid)
    assert answers(one) < 2
    watch.until("a", "exited")

    assert watch.words()[-2:] == ["a state running", "a died exited"]
    assert "the notify receiver does not answer" in one.log
    kit.wait_gone(first)


def test_a_death_waits_for_the_words_before_it(run: Any) -> None:
    """What a run said before its death is heard before it, however late the receiver is."""
    one, watch = run(["sh", "-c", "read line < go; systemd-notify --ready --no-block"])
    pid = one.pipe().get_pid("a") or 0
    os.kill(receiver_of(one), signal.SIGSTOP)
    go(one)
    kit.wait_gone(pid)
    state_of(one)  # the daemon has had a turn in which it saw the death

    os.kill(receiver_of(one), signal.SIGCONT)
    watch.until("a", "exited")

    assert watch.words()[-2:] == ["a state running", "a died exited"]


def test_the_watchdog_waits_for_the_words_before_it(run: Any) -> None:
    """A sign of life that was sent in time counts, though it is read later."""
    say = "systemd-notify --no-block"
    words = f"{say} --ready; read line < go; {say} WATCHDOG=1; echo said > out"
    one, watch = run(shell(f"read line < go; {words}"), watchdog=1.5)
    out = one.fifo("out")
    go(one)
    watch.until("a", "running")
    os.kill(receiver_of(one), signal.SIGSTOP)
    go(one)
    assert out.line() == "said"
    began = time.monotonic()

    watch.until("a", "stopping")  # what is heard after 2 s, by another receiver, has 1.5 s more

    assert time.monotonic() - began > 2.5


def test_a_receiver_that_hangs_after_it_has_answered(run: Any) -> None:
    """Nobody waits for a receiver that is stopped while nobody speaks: the next words show it."""
    one, watch = run()
    until_heard(address_of(one))  # so it has answered everything
    first = receiver_of(one)
    os.kill(first, signal.SIGSTOP)
    go(one)
    watch.until("a", "running")
    assert "the notify receiver does not answer" in one.log
    kit.wait_gone(first)


def test_a_receiver_that_hangs_at_the_end(run: Any) -> None:
    """A daemon that ends leaves no receiver, though somebody has stopped it."""
    one, _ = run()
    until_heard(address_of(one))
    receiver = receiver_of(one)
    os.kill(receiver, signal.SIGSTOP)
    assert one.stop() == 0
    assert receiver not in kit.processes()


BUSY = """
import os, socket, subprocess, sys
for _ in range({others}):
    subprocess.Popen(["sleep", "1000000"])
open("go").readline()
one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
one.connect("\\0" + os.environ["NOTIFY_SOCKET"][1:])
for _ in range({words}):
    one.send(b"STATUS=busy")
one.send(b"READY=1")
os.execvp("sleep", ["sleep", "1000000"])
"""


def test_many_words_cost_one_look(run: Any) -> None:
    """A job with many processes that says much is looked through once for all that is read together."""
    one, watch = run([sys.executable, "-c", BUSY.format(others=150, words=MANY)])
    before = cpu_seconds(one.pid)
    go(one)
    watch.until("a", "running")
    assert cpu_seconds(one.pid) - before < 0.6


@as_root
def test_a_receiver_holds_no_connection(daemon: Make) -> None:
    """Whatever the limit of descriptors is by now, the receiver has none of the daemon's connections."""
    one = daemon({"jobs": {"a": {"command": READY, **NOTIFY}}})
    os.mkfifo(one.path("go"))
    clients = [one.pipe() for _ in range(60)]
    for client in clients:
        assert client.status("a")  # it is accepted
    resource.prlimit(one.pid, resource.RLIMIT_NOFILE, (48, 48))
    for client in clients[:20]:
        client.destroy()
    clients[-1].start("a", wait=False)
    until_heard(kit.environ_of(clients[-1].get_pid("a") or 0)["NOTIFY_SOCKET"])
    assert sum(what.startswith("socket:") for what in kit.fds_of(receiver_of(one)).values()) == 2


@pytest.mark.parametrize("stopped", [False, True], ids=["working", "stopped"])
def test_no_receiver_for_nobody(daemon: Make, stopped: bool) -> None:
    """A daemon whose jobs do not speak has no receiver, and one that was killed leaves none."""
    silent = {"command": kit.FOR_EVER, "autostart": True}
    one = daemon({"jobs": {"a": silent, "b": {"command": READY, **NOTIFY}}})
    os.mkfifo(one.path("go"))
    assert receivers_of(one) == []

    start(one, one.watch(), "b")
    pid = receiver_of(one)
    if stopped:
        until_heard(address_of(one, "b"))
        os.kill(pid, signal.SIGSTOP)
    one.process.kill()

    kit.wait_gone(pid)
    one.process.wait()
    for left in one.orphans():
        kit.end_orphan(left)
    for name in ("control", "event", "control.lock", "event.lock"):
        os.unlink(one.path(name))


def test_a_barrier_waits_for_the_daemon(run: Any) -> None:
    """BARRIER=1 is answered when the daemon has heard what was said before, and not earlier."""
    one, _ = run(python(TALK, "", "told", "STATUS=said"), others={"b": {"command": READY, **NOTIFY}})
    one.process.send_signal(signal.SIGSTOP)
    reader, writer = os.pipe()
    with connected(address_of_stopped(one)) as to:
        to.send(b"STATUS=x")
        hand_over(to, writer, b"BARRIER=1")
    os.close(writer)
    assert not kit.readable(reader, 0.3)

    one.process.send_signal(signal.SIGCONT)

    assert kit.readable(reader)
    os.close(reader)


def address_of_stopped(one: kit.Daemon) -> str:
    """The $NOTIFY_SOCKET of the only job of a daemon that is stopped."""
    receiver_pid = receiver_of(one)
    (job,) = kit.children_of(one.pid) - {receiver_pid}
    return kit.environ_of(job)["NOTIFY_SOCKET"]


@contextlib.contextmanager
def no_fork(pid: int) -> Iterator[None]:
    """A process cannot fork meanwhile."""
    calls = "clone,fork,vfork"
    command = ["strace", "-p", str(pid), "-e", f"trace={calls}", "-e", f"inject={calls}:error=EAGAIN"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as strace:
        assert strace.stderr is not None
        said = kit.Lines(strace.stderr.fileno())
        said.until("attached")
        try:
            yield
        finally:
            strace.send_signal(signal.SIGINT)
            strace.wait()


@needs_strace
def test_no_receiver_can_be_forked(daemon: Make) -> None:
    """A job that speaks is not started without a receiver, and says why; it starts when there can be one."""
    job = {"command": AT_ONCE, "restart": True, "restart-penalty": 0.2, **NOTIFY}
    one = daemon({"jobs": {"a": job}})
    watch = one.watch()

    with no_fork(one.pid):
        assert "fork the notify receiver: EAGAIN" in one.run_cli("start", "a", "--no-wait").err

    watch.until("a", "running")


@needs_strace
def test_no_disposer_can_be_forked(run: Any) -> None:
    """Descriptors wait until they can be disposed of; nobody closes them before, and the run may end."""
    one, watch = run()
    address = address_of(one)
    reader, writer = os.pipe()

    with no_fork(receiver_of(one)):
        with connected(address) as to:
            to.send(b"STATUS=words")
            hand_over(to, writer, b"BARRIER=1")
        os.close(writer)
        assert not kit.readable(reader, 0.5)
        assert one.run_cli("stop", "a").code == 0
        watch.until("a", "stopped")
        assert not kit.readable(reader, 0)

    assert kit.readable(reader)
    os.close(reader)
