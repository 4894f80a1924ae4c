"""A job is ready when it has said so or a probe has found it so, never by what somebody else says or does.

Real processes, the real systemd-notify, real sockets. What is not to happen is checked after the daemon
has answered something that came later, or at the end of a start-timeout, which is real time (0.3 s).
"""

from __future__ import annotations

import array
import os
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
import time

import kit
import nasty
import pytest

from jobmon.linux.monitor.logmatch import Finder, Output
from jobmon.linux.monitor.notifysocket import RunSocket
from jobmon.linux.monitor.probes import http_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    Make = Callable[..., kit.Daemon]

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")

NOTIFY = {"ready": {"notify": True}}
# Says words to an address (or to its own), waits until the daemon has heard them, writes "heard" to a file.
TALK = """
import array, os, socket, sys
address, out, *words = sys.argv[1:]
one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
one.connect("\\0" + (address or os.environ["NOTIFY_SOCKET"])[1:])
one.send("\\n".join(words).encode())
reader, writer = os.pipe()
one.sendmsg([b"BARRIER=1"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [writer]))])
os.close(writer)
os.read(reader, 1)
os.write(os.open(out, os.O_WRONLY), b"heard\\n")
"""
# Listens at HOST and PORT once a line has come in the FIFO `go`, and never accepts.
LISTEN = """
import signal, socket, sys
host, port = sys.argv[1:]
open("go").readline()
one = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
one.bind((host, int(port)))
one.listen()
signal.pause()
"""
HOSTS = ["127.0.0.1", "::1"]


def python(program: str, *arguments: object) -> list[str]:
    """A command that runs a small program."""
    return [sys.executable, "-S", "-c", program, *map(str, arguments)]


def shell(script: str) -> list[str]:
    """A job that does this and then lives on."""
    return ["sh", "-c", f"{script}\nexec sleep 1000000"]


def state_of(one: kit.Daemon, job: str = "a") -> str:
    """The state of a job, now."""
    return one.pipe().status(job)[0].state


def address_of(one: kit.Daemon, job: str = "a") -> str:
    """The $NOTIFY_SOCKET of a job that runs."""
    return kit.environ_of(one.pipe().get_pid(job) or 0)["NOTIFY_SOCKET"]


def say(address: str, *words: str) -> None:
    """Say something to an address, from this process or a fork of it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.connect("\0" + address[1:])
        one.send("\n".join(words).encode())


def until_heard(address: str) -> None:
    """Wait until the daemon has read all that was said to an address before."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.connect("\0" + address[1:])
        reader, writer = os.pipe()
        fds = array.array("i", [writer])
        one.sendmsg([b"BARRIER=1"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        os.close(writer)
        assert kit.readable(reader), "the barrier is not answered"
        os.close(reader)


def until_closed(address: str) -> None:
    """Wait until nobody has the socket of an address any more. (Nothing tells of that, so it is tried.)"""
    end = time.monotonic() + kit.DEADLINE
    while time.monotonic() < end:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
            try:
                one.connect("\0" + address[1:])
            except ConnectionRefusedError:
                return
    pytest.fail("the socket is not closed")


def receivers_of(one: kit.Daemon) -> list[int]:
    """The processes that read the notify sockets of a daemon's runs."""
    known = kit.processes()
    return [pid for pid in kit.children_of(one.pid) if known[pid].name == "jobmon-notify"]


def receiver_of(one: kit.Daemon) -> int:
    """The one that there is."""
    (pid,) = receivers_of(one)
    return pid


def free_port(host: str) -> int:
    """A TCP port that nobody uses at this moment."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port


def place(host: str, port: int) -> str:
    """An address as it is written."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def let_go(one: kit.Daemon, line: str = "go", name: str = "go") -> None:
    """Give a line to the job that reads a FIFO."""
    fd = os.open(one.path(name), os.O_WRONLY)
    os.write(fd, f"{line}\n".encode())
    os.close(fd)


@pytest.fixture
def single(daemon: Make) -> Callable[..., tuple[kit.Daemon, kit.Watch]]:
    """A daemon with one job `a` (and others), which is not started yet, and a FIFO `go` in its directory."""

    def make(command: Any, /, others: Any = None, **keys: Any) -> tuple[kit.Daemon, kit.Watch]:
        settings = {name.replace("_", "-"): value for name, value in keys.items()}
        one = daemon({"jobs": {"a": {"command": command, **settings}, **(others or {})}})
        os.mkfifo(one.path("go"))
        return one, one.watch()

    return make


def start(one: kit.Daemon, watch: kit.Watch, job: str = "a") -> int:
    """Start a job, and wait until its process is there; returns its pid."""
    assert one.run_cli("start", job, "--no-wait").code == 0
    pid = watch.until(job, "launched").pid
    assert pid is not None
    return pid


def ends_late(watch: kit.Watch, job: str = "a") -> None:
    """Wait until a job is failed for having taken too long."""
    assert watch.until(job, "failed").cause == "start-timeout"


# ---- sd_notify -----------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["job", "group"])
def test_systemd_notify(single: Any, scope: str) -> None:
    """systemd-notify makes its job ready, and is answered, however the run is kept together."""
    script = "systemd-notify --ready --status='on port 80' && echo told > told"
    one, watch = single(shell(script), kill_scope=scope, **NOTIFY)
    told = one.fifo("told")

    start(one, watch)

    assert watch.until("a", "running").cause == "ready"
    assert told.line() == "told"  # it fails when its barrier is not answered within 5 seconds
    assert '"on port 80"' in one.run_cli("status", "a").out


def test_not_ready_is_starting(single: Any) -> None:
    """A job that is not ready is RUNNING to a client of 0.7, and starting in `status`."""
    one, watch = single(shell("read line < go; systemd-notify --ready"), **NOTIFY)
    pid = start(one, watch)

    assert one.pipe().is_running("a")
    assert one.run_cli("list-jobs").out == "RUNNING a\n"
    assert one.run_cli("status", "a").out.startswith(f"a: starting, pid {pid}")
    let_go(one)
    watch.until("a", "running")


@pytest.mark.parametrize(
    "script",
    [
        "(systemd-notify --ready; exec sleep 1000000) & wait",
        "(systemd-notify --ready &)",
        "systemd-notify --ready --no-block",
        "setsid -f systemd-notify --ready",
    ],
    ids=["a child", "an orphan", "one that is gone", "another session"],
)
def test_who_may_say_so(single: Any, script: str) -> None:
    """Whatever the run has started may say that it is ready, and need not live on."""
    one, watch = single(shell(script), **NOTIFY)

    start(one, watch)

    watch.until("a", "running")


def test_a_sender_that_dies_while_it_is_looked_for_is_heard() -> None:
    """A sender that lived when its words were read, and was gone before its run was searched, is as one that
    has died before. A living stranger is not heard."""
    heard: list[dict[str, str]] = []
    for dies in (True, False):
        search = Search()
        own = RunSocket(search, "job", heard.append)  # type: ignore[arg-type]
        with subprocess.Popen(["sleep", "1000000"]) as sender:
            search.sender = sender if dies else None
            own.hear(sender.pid, os.getuid(), b"READY=1")
            sender.kill()
        own.close()
        own.socket.close()

    assert heard == [{"READY": "1"}]


class Search:
    """Looks for the processes of a run, and finds none; the sender that it looks for may die of it."""

    turn = 0

    def __init__(self) -> None:
        self.sender: subprocess.Popen[bytes] | None = None
        self.tree = self.children = self

    def add(self, _run: RunSocket) -> int:
        """The number of a run."""
        return 1

    def end(self, _number: int) -> None:
        """It is over."""

    def forget(self) -> None:
        """What was found."""

    def kin(self, _job: str) -> list[int]:
        """Nobody."""
        if self.sender is not None:
            self.sender.kill()
            self.sender.wait()
        return []


@pytest.mark.parametrize("scope", ["process", "group"])
@pytest.mark.parametrize("user", [None, pytest.param(NOBODY, marks=as_root)])
def test_whose_process_it_is_counts(single: Any, scope: str, user: int | None) -> None:
    """Who may speak is not decided by whom a stop reaches: a living child in a session of its own may."""
    talk = shlex.join(["setsid", *python(TALK, "", "told", "READY=1")])
    command = shell(f"{talk} & wait; echo over > told")
    if user is not None:
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        command = [*become, *shell("setsid systemd-notify --ready & wait; echo over > told")]
    one, watch = single(command, kill_scope=scope, **NOTIFY)
    told = one.fifo("told")
    os.chmod(one.directory, 0o755)
    os.chmod(one.path("told"), 0o666)

    start(one, watch)

    watch.until("a", "running")
    told.until("over")


def test_who_was_refused_is_named(single: Any) -> None:
    """`why` says that somebody has spoken who may not, and who."""
    one, watch = single(kit.FOR_EVER, **NOTIFY)
    start(one, watch)
    address = address_of(one)

    say(address, "READY=1")
    until_heard(address)

    why = one.run_cli("why", "a").out
    assert f"a message refused, last of pid {os.getpid()}, uid {os.getuid()}: no process of the job" in why


@as_root
def test_a_job_that_drops_its_privileges(single: Any) -> None:
    """A process of the run may have become another user, and so may one that has died by now."""
    words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    one, watch = single([*words, *shell("systemd-notify --ready --no-block")], **NOTIFY)

    start(one, watch)

    watch.until("a", "running")


def test_another_job_cannot_say_so(single: Any) -> None:
    """A living process of another job is not heard, nor one of no job; what it hands over is closed."""
    program = "import sys\nsys.argv[1] = open('go').readline().strip()\n" + TALK
    other = {"command": python(program, "", "told", "READY=1")}
    one, watch = single(kit.FOR_EVER, others={"b": other}, **NOTIFY)
    told = one.fifo("told")
    start(one, watch)
    address = address_of(one)

    start(one, watch, "b")
    let_go(one, address)
    assert told.line() == "heard"
    say(address, "READY=1")
    until_heard(address)

    assert state_of(one) == "starting"


def say_and_die(one: kit.Daemon, address: str, uid: int, *words: str) -> None:
    """Let a process of some user, which is no job's, say something and be dead before the daemon reads it."""

    def speak() -> None:
        os.setuid(uid)
        say(address, *words)

    one.process.send_signal(signal.SIGSTOP)
    assert kit.in_child(speak) == "None"
    one.process.send_signal(signal.SIGCONT)


def test_who_has_died_is_believed(single: Any) -> None:
    """Nobody can know any more whose process it was that has died: its user must do."""
    one, watch = single(kit.FOR_EVER, **NOTIFY)
    start(one, watch)

    say_and_die(one, address_of(one), os.getuid(), "READY=1")

    watch.until("a", "running")


@as_root
@pytest.mark.parametrize("lives", [True, False])
def test_another_user_cannot_say_so(single: Any, lives: bool) -> None:
    """Another user's process is not heard, whether it lives or not."""
    one, watch = single(kit.FOR_EVER, **NOTIFY)
    start(one, watch)
    address = address_of(one)

    def speak() -> None:
        os.setuid(NOBODY)
        say(address, "READY=1")
        until_heard(address)

    if lives:
        assert kit.in_child(speak) == "None"
    else:
        say_and_die(one, address, NOBODY, "READY=1")
    until_heard(address)

    assert state_of(one) == "starting"


@pytest.mark.parametrize(
    ("script", "ready"),
    [("systemd-notify --ready --no-block", {"notify": True}), ("echo >&3", {"fd": 3})],
    ids=["notify", "fd"],
)
def test_ready_and_dead_in_one_turn(single: Any, script: str, ready: Any) -> None:
    """What a job said before its death comes before it, though the daemon sees both at once."""
    one, watch = single(["sh", "-c", f"read line < go; {script}"], ready=ready)
    pid = start(one, watch)

    one.process.send_signal(signal.SIGSTOP)
    let_go(one)
    kit.wait_gone(pid)
    one.process.send_signal(signal.SIGCONT)
    watch.until("a", "exited")

    assert watch.words()[-2:] == ["a state running", "a died exited"]


def test_a_flood_of_words(single: Any) -> None:
    """Who floods the daemon with words delays nobody else."""
    flood = "import os, socket\none = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
    flood += 'one.connect("\\0" + os.environ["NOTIFY_SOCKET"][1:])\nwhile True: one.send(b"STATUS=x")'
    one, watch = single(python(flood), **NOTIFY)
    start(one, watch)

    assert one.run_cli("list-jobs").out == "RUNNING a\n"
    assert one.run_cli("stop", "a").code == 0


def test_odd_datagrams(single: Any) -> None:
    """Words without sense, ones that are too long and many descriptors harm nobody, and stay nowhere."""
    program = (
        "import array, os, socket, sys\n"
        "one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        'one.connect("\\0" + os.environ["NOTIFY_SOCKET"][1:])\n'
        "fds = array.array('i', [0] * 253)\n"
        "for data in (b'', b'\\xff\\n=\\n==', b'READY=0', b'READY=1\\n' + b'x' * 70000):\n"
        "    one.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])\n"
    )
    program += TALK + "import signal; signal.pause()"
    one, watch = single(python(program, "", "told", "STATUS=\x1b[1m\u00e9"), **NOTIFY)
    told, pipe = one.fifo("told"), one.pipe()
    open_then = []

    for _ in range(2):
        start(one, watch)
        assert told.line() == "heard"
        status = pipe.status("a")[0]
        assert (status.state, status.says) == ("starting", "\x1b[1m\u00e9")
        address = kit.environ_of(pipe.get_pid("a") or 0)["NOTIFY_SOCKET"]
        pipe.stop("a")
        until_closed(address)
        pipe.status()  # by now it has seen that start's client has hung up
        open_then.append((len(kit.fds_of(one.pid)), len(kit.fds_of(receiver_of(one)))))

    assert open_then[0] == open_then[1]


def slow_to_close(seconds: int) -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection: to close the second takes so long, as nothing is read at the first."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        slow = socket.create_connection(listener.getsockname())
        peer, _ = listener.accept()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
    slow.setblocking(False)
    try:
        while True:
            slow.send(b"x" * 65536)
    except BlockingIOError:
        return peer, slow


@as_root
@pytest.mark.parametrize("over", [False, True], ids=["while it runs", "at its end"])
def test_descriptors_that_are_slow_to_close(single: Any, over: bool) -> None:
    """To close what a stranger hands over is not left to the daemon: it may take as long as he likes."""
    one, watch = single(["sh", "-c", "read line < go"], **NOTIFY)
    pid = start(one, watch)
    address = address_of(one)
    one.process.send_signal(signal.SIGSTOP)
    if over:
        let_go(one)
        kit.wait_gone(pid)
    peer, slow = slow_to_close(8)

    def hand_over() -> None:
        os.setuid(NOBODY)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            to.connect("\0" + address[1:])
            fds = array.array("i", [slow.fileno()])
            for words in (b"READY=1", b"BARRIER=1"):
                to.sendmsg([words], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])

    assert kit.in_child(hand_over) == "None"
    slow.close()  # the last are those on their way
    began = time.monotonic()
    one.process.send_signal(signal.SIGCONT)
    state = state_of(one)
    if over:
        watch.until("a", "exited")
    else:
        until_heard(address)

    assert time.monotonic() - began < 4
    assert over or state == "starting"
    peer.close()


def test_what_it_is_doing(single: Any) -> None:
    """RELOADING and STOPPING are shown until READY comes, beside STATUS."""
    one, watch = single(kit.FOR_EVER, **NOTIFY)
    start(one, watch)
    address = address_of(one)

    shown = []
    for words in (["READY=1", "STATUS=up"], ["RELOADING=1"], ["READY=1"], ["STOPPING=1", "STATUS="]):
        say_and_die(one, address, os.getuid(), *words)
        until_heard(address)
        shown.append(one.pipe().status("a")[0].says)

    assert shown == ["up", "reloading: up", "up", "stopping"]


def test_the_daemons_own_socket_is_its_own(daemon: Make) -> None:
    """A job that nothing is expected of has no $NOTIFY_SOCKET, though the daemon has one."""
    job = {"command": kit.FOR_EVER, "autostart": True}
    one = daemon({"jobs": {"a": job, "b": {**job, **NOTIFY}}}, environ={"NOTIFY_SOCKET": "@nobody"})
    pipe = one.pipe()

    assert "NOTIFY_SOCKET" not in kit.environ_of(pipe.get_pid("a") or 0)
    assert kit.environ_of(pipe.get_pid("b") or 0)["NOTIFY_SOCKET"] != "@nobody"


# ---- a newline on a descriptor -------------------------------------------------------------


@pytest.mark.parametrize("scope", ["job", "group"])
def test_a_newline(daemon: Make, scope: str) -> None:
    """Whatever number a job wants its descriptor under, a newline on it is enough."""
    jobs: dict[str, Any] = {
        str(fd): {"command": ["bash", "-c", f"echo >&{fd}; exec sleep 1000000"], "kill-scope": scope}
        for fd in (*range(3, 21), 255)
    }
    for name, settings in jobs.items():
        settings["ready"] = {"fd": int(name)}
    one = daemon({"jobs": jobs})

    assert one.run_cli("start", *jobs).code == 0
    assert {status.state for status in one.pipe().status()} == {"running"}


def test_a_newline_that_takes_its_time(single: Any) -> None:
    """Only the newline counts, not what comes before it."""
    script = "printf up >&3; echo > told; read line < go; echo >&3"
    one, watch = single(shell(script), ready={"fd": 3})
    told = one.fifo("told")
    start(one, watch)

    told.line()
    assert state_of(one) == "starting"
    let_go(one)

    watch.until("a", "running")


def test_a_descriptor_that_is_closed(single: Any) -> None:
    """A job that closes its descriptor without a word is not ready."""
    one, watch = single(shell("exec 3>&-"), ready={"fd": 3}, start_timeout=0.3)

    start(one, watch)

    ends_late(watch)


# ---- a command -----------------------------------------------------------------------------


def test_a_command(single: Any) -> None:
    """A job is ready when the command ends with 0, after however many tries."""
    probe = "test -e up || { echo no > told; false; }"
    one, watch = single(kit.FOR_EVER, ready={"exec": probe, "interval": 0.01})
    told = one.fifo("told")
    start(one, watch)
    for _ in range(3):
        assert told.line() == "no"

    os.mkdir(one.path("up"))

    watch.until("a", "running")


def test_a_command_that_hangs(single: Any) -> None:
    """A try that takes too long is killed with its group, and there are never two at a time."""
    probe = "flock -n lock sh -c 'sleep 1000000 & echo $! > told; wait' || echo two > told"
    one, watch = single(kit.FOR_EVER, ready={"exec": probe, "interval": 0.01, "timeout": 0.2})
    told = one.fifo("told")
    start(one, watch)

    for _ in range(3):
        kit.wait_gone(int(told.line()))

    assert one.run_cli("stop", "a").code == 0


def test_what_a_command_leaves(single: Any) -> None:
    """What a try leaves in its group goes with it."""
    one, watch = single(kit.FOR_EVER, ready={"exec": "sleep 1000000 & echo $! > told"})
    told = one.fifo("told")

    start(one, watch)
    watch.until("a", "running")

    kit.wait_gone(int(told.line()))


def test_probes_end_with_the_run(single: Any) -> None:
    """A probe that is under way when its job is stopped, or the daemon, is ended, and leaves nothing."""
    one, watch = single(kit.FOR_EVER, ready={"exec": "echo $$ > told; exec sleep 1000000", "timeout": 1000})
    told, pipe = one.fifo("told"), one.pipe()
    pipe.status()
    before = len(kit.fds_of(one.pid))

    for now in (False, True):
        start(one, watch)
        probe = int(told.line())
        pipe.stop("a", now=now)
        kit.wait_gone(probe)
    turns = 0
    while len(kit.fds_of(one.pid)) > before:  # it closes them in the turns that follow
        turns += 1
        assert turns < 1000
        pipe.status()
    start(one, watch)
    probe = int(told.line())
    assert one.stop() == 0
    kit.wait_gone(probe)


# A probe that leaves a process in a session of its own.
LEAVES = "setsid -f sh -c 'echo $$ > told; exec sleep 1000000'; read line < go; exit 1"


@pytest.mark.parametrize("way", [nasty.WITH, nasty.WITHOUT])
def test_what_a_command_leaves_elsewhere(daemon: Make, way: str) -> None:
    """What a try leaves in a session of its own is the run's, and a stop ends it."""
    job = {"command": kit.FOR_EVER, "ready": {"exec": LEAVES, "interval": 1000}}
    one = daemon({"jobs": {"a": job}}, **nasty.options(way))
    os.mkfifo(one.path("go"))
    told, watch = one.fifo("told"), one.watch()
    start(one, watch)
    left = int(told.line())
    let_go(one)

    assert one.run_cli("stop", "a").code == 0

    assert left not in kit.processes()


@pytest.mark.parametrize("way", [nasty.WITH, nasty.WITHOUT])
def test_what_is_left_when_a_run_dies(daemon: Make, way: str) -> None:
    """A run that dies while a try is under way is not gone before that, nor before what that leaves."""
    probe = "setsid sh -c 'echo $$ > told; exec sleep 1000000'"
    job = {"command": ["sh", "-c", "read line < go"], "ready": {"exec": probe, "timeout": 1000}}
    one = daemon({"jobs": {"a": job}}, **nasty.options(way))
    os.mkfifo(one.path("go"))
    told, watch = one.fifo("told"), one.watch()
    start(one, watch)
    left = int(told.line())

    let_go(one)
    watch.until("a", "died")

    assert left not in kit.processes()


def test_what_a_command_leaves_to_nobody(single: Any) -> None:
    """Where a stop reaches less than the whole run, that is a stray, which ends with the daemon."""
    ready = {"exec": LEAVES, "interval": 1000}
    one, watch = single(kit.FOR_EVER, kill_scope="group", ready=ready)
    told = one.fifo("told")
    start(one, watch)
    left = int(told.line())
    let_go(one)

    assert one.stop() == 0

    kit.wait_gone(left)


def test_a_command_that_is_not_there(single: Any) -> None:
    """Why a job was not ready in time is in the log."""
    one, watch = single(kit.FOR_EVER, ready={"exec": ["./no"], "interval": 0.1}, start_timeout=0.3)

    start(one, watch)
    ends_late(watch)

    assert "./no: No such file or directory" in one.wait_log("readiness=")


# ---- tcp -----------------------------------------------------------------------------------


@pytest.mark.parametrize("owned", [False, True])
@pytest.mark.parametrize(
    ("host", "listens"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("127.0.0.1", "0.0.0.0"), ("127.0.0.1", "::")],
)
def test_a_port(single: Any, host: str, listens: str, owned: bool) -> None:
    """Refused connections are no harm; ready is who accepts them at last, wherever he listens."""
    port = free_port(listens)
    ready = {"tcp": place(host, port), "interval": 0.02, "timeout": 1, "owned": owned}
    one, watch = single(python(LISTEN, listens, port), ready=ready)
    start(one, watch)
    assert state_of(one) == "starting"

    let_go(one)

    watch.until("a", "running")


def test_a_port_of_another_session(single: Any) -> None:
    """With `owned`, who listens need not be whom a stop reaches."""
    port = free_port("127.0.0.1")
    ready = {"tcp": place("127.0.0.1", port), "interval": 0.02, "owned": True}
    command = ["sh", "-c", shlex.join(["setsid", *python(LISTEN, "127.0.0.1", port)]) + " & wait"]
    one, watch = single(command, kill_scope="process", ready=ready)
    pid = start(one, watch)
    let_go(one)

    watch.until("a", "running")
    for child in kit.children_of(pid):
        os.kill(child, signal.SIGKILL)
    watch.until("a", "died")


@pytest.mark.parametrize("host", HOSTS)
def test_an_old_copy(single: Any, host: str) -> None:
    """With `owned`, another who listens there does not count, though the job has that port elsewhere."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    elsewhere = "127.0.0.2" if family == socket.AF_INET else "127.0.0.1"
    with socket.create_server((host, 0), family=family) as old:
        port = old.getsockname()[1]
        ready = {"tcp": place(host, port), "interval": 0.05, "owned": True}
        one, watch = single(python(LISTEN, elsewhere, port), ready=ready, start_timeout=0.6)
        start(one, watch)
        let_go(one)

        ends_late(watch)

    assert f"no process of the job listens on port {port}" in one.wait_log("readiness=")


# ---- http ----------------------------------------------------------------------------------

BAD_ANSWERS = [
    b"HTTP/1.1 404 Not Found\r\n",
    b"",
    b"SSH-2.0-x\r\n",
    b"HTTP/1.1 2xx\r\n",
    b"x" * 9000,
    b"\n",
    b"HTTP\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\nX: HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Service Unavailable\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\nHTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 200",
]
GOOD_ANSWERS = [
    b"HTTP/1.0 204\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 100 Continue\n\nHTTP/1.1 200 OK\n\n",
]
# A web server at HOST and PORT.
SERVE = """
import http.server, socket, sys
host, port = sys.argv[1:]
class Server(http.server.HTTPServer):
    address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
    def server_bind(self):
        if ":" in host:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = host, int(port)
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(204)
        self.end_headers()
Server((host, int(port)), Answer).serve_forever()
"""


class Server:
    """Answers by hand: each connection is one try."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        self._listener.settimeout(kit.DEADLINE)
        self.url = f"http://{place(host, self._listener.getsockname()[1])}/health?x=1"

    def answer(self, *pieces: bytes, end: bool = True) -> bytes:
        """Take a try, answer it, wait until it is over; returns what was asked."""
        peer, _ = self._listener.accept()
        with peer:
            peer.settimeout(kit.DEADLINE)
            asked = peer.recv(4096)
            assert not select.select([self._listener], [], [], 0)[0], "two tries at a time"
            try:
                for piece in pieces:
                    peer.sendall(piece)
                if end:
                    peer.shutdown(socket.SHUT_WR)
                while peer.recv(4096):
                    pass
            except OSError:
                pass  # it has heard enough
        return asked

    def close(self) -> None:
        """Listen no more."""
        self._listener.close()


@pytest.mark.parametrize("host", HOSTS)
def test_an_http_server(single: Any, host: str) -> None:
    """Ready is who answers with a status of 200 to 399; until then it is tried again, one at a time."""
    server = Server(host)
    one, watch = single(kit.FOR_EVER, ready={"http": server.url, "interval": 0.01, "timeout": 0.5})
    start(one, watch)

    asked = server.answer(b"HTTP/1.1 500 Internal Server Error\r\n\r\n")
    assert asked.startswith(b"GET /health?x=1 HTTP/1.1\r\nHost: ")
    assert b"\r\nConnection: close\r\n" in asked
    assert asked.endswith(b"\r\n\r\n")
    for answer in BAD_ANSWERS:
        server.answer(answer)
    server.answer(end=False)  # never answers
    server.answer(b"HTTP/1.1 2", end=False)  # nor does this
    assert state_of(one) == "starting"
    server.answer(b"HTT", b"P/1.1 200", b" OK\r\n", end=False)

    watch.until("a", "running")
    server.close()


@pytest.mark.parametrize("answer", GOOD_ANSWERS)
@pytest.mark.parametrize("piece", [1, 4096])
def test_a_good_answer(single: Any, answer: bytes, piece: int) -> None:
    """A redirection is an answer, and is not followed; interim answers come before it; however it is cut."""
    server = Server()
    one, watch = single(kit.FOR_EVER, ready={"http": server.url})
    start(one, watch)

    server.answer(*(answer[at : at + piece] for at in range(0, len(answer), piece)), end=False)

    watch.until("a", "running")
    server.close()


@pytest.mark.parametrize("answer", [*GOOD_ANSWERS, *BAD_ANSWERS])
def test_an_answer_in_pieces(answer: bytes) -> None:
    """A status is the same wherever an answer is cut, and is never found before it has come."""

    def status(part: bytes) -> int | None:
        try:
            return http_status(part)
        except ValueError:
            return 0

    whole = status(answer)
    parts = [status(answer[:end]) for end in range(len(answer) + 1)]

    assert parts == sorted(parts, key=lambda part: part is not None)  # once known it stays
    assert set(parts) <= {None, whole}
    assert (200 <= (whole or 0) < 400) is (answer in GOOD_ANSWERS)


def test_the_request_names_the_host(single: Any) -> None:
    """What the URL calls localhost is asked for as localhost, without the fragment, which is the client's."""
    server = Server()
    at = server.url.replace("127.0.0.1", "localhost")
    one, watch = single(kit.FOR_EVER, ready={"http": f"{at}#top"})
    start(one, watch)

    asked = server.answer(b"HTTP/1.1 200 OK\r\n\r\n")

    host = at.removeprefix("http://").partition("/")[0]
    assert asked.startswith(f"GET /health?x=1 HTTP/1.1\r\nHost: {host}\r\n".encode())
    watch.until("a", "running")
    server.close()


@pytest.mark.parametrize("way", ["http", "tcp", "owned"])
@pytest.mark.parametrize("host", HOSTS)
def test_localhost_is_both(single: Any, host: str, way: str) -> None:
    """A job that listens at only one of the addresses of localhost is found there."""
    port = free_port(host)
    how = {"http": f"http://localhost:{port}/"} if way == "http" else {"tcp": f"localhost:{port}"}
    ready = {**how, "interval": 0.05, **({"owned": True} if way == "owned" else {})}
    one, watch = single(python(SERVE, host, port), ready=ready)

    start(one, watch)

    watch.until("a", "running")


def test_localhost_is_nobody(single: Any) -> None:
    """Where nobody listens at either address, what the first said is told."""
    ready = {"http": f"http://localhost:{free_port('127.0.0.1')}/", "interval": 1000}
    one, watch = single(kit.FOR_EVER, ready=ready, start_timeout=0.3)
    start(one, watch)

    ends_late(watch)

    assert "Connection refused (1 try)" in one.wait_log("readiness=")


def test_why_an_http_server_is_not_ready(single: Any) -> None:
    """The log of a start-timeout has the last answer."""
    server = Server()
    one, watch = single(kit.FOR_EVER, ready={"http": server.url, "interval": 1000}, start_timeout=1)
    start(one, watch)

    server.answer(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")
    ends_late(watch)

    assert "HTTP status 503 (1 try)" in one.wait_log("readiness=")
    server.close()


# ---- the job's output ----------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_line_of_its_output(single: Any, stream: str) -> None:
    """A line counts when it is finished, however many writes it takes; what stood there before does not."""
    to = "1" if stream == "stdout" else "2"
    script = f"printf 'now re' >&{to}; echo > told; read line < go; printf 'ady\\r\\n' >&{to}"
    one, watch = single(shell(script), ready={"log": "^now ready$", "interval": 0.01}, **{stream: "log"})
    told = one.fifo("told")
    with open(one.path("log"), "w", encoding="utf-8") as file:
        file.write("now ready\n")

    start(one, watch)
    told.line()
    assert state_of(one) == "starting"
    let_go(one)

    watch.until("a", "running")


@pytest.mark.parametrize("how", ["moved", "truncated"])
def test_a_log_that_is_rotated(single: Any, how: str) -> None:
    """A file that is moved away, or begun anew, is followed."""
    script = "echo a long first line; echo > told; read line < go; echo ready"
    one, watch = single(shell(script), ready={"log": "^ready$", "interval": 0.01}, stdout="log")
    told = one.fifo("told")
    start(one, watch)
    told.line()

    if how == "moved":
        os.rename(one.path("log"), one.path("log.1"))
    else:
        os.truncate(one.path("log"), 0)
    let_go(one)

    watch.until("a", "running")


def test_a_pattern_that_never_ends(single: Any) -> None:
    """A pattern that would take for ever on a line is given up there, and the daemon goes on."""
    ready = {"log": "^((a+)+|ready)$", "interval": 0.01}
    one, watch = single(shell(f"echo {'a' * 60}b; echo ready"), ready=ready, stdout="log")

    start(one, watch)

    watch.until("a", "running")


def test_a_pattern_has_a_budget() -> None:
    """A slow line costs the budget and is not looked at again; the others are; nothing of it stays behind."""
    finder = Finder("^((a+)+|ready)$")
    before = signal.getsignal(signal.SIGVTALRM), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finder.add([b"a" * 60 + b"b", b"x", b"ready"])

    assert not finder.found()
    assert finder.trouble == "the pattern took more than 20 ms"
    assert finder.found()
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    assert (signal.getsignal(signal.SIGVTALRM), signal.pthread_sigmask(signal.SIG_BLOCK, ())) == before


def test_many_lines_are_no_slow_pattern() -> None:
    """What is too much for one look is looked at in the next, and the pattern is not to blame."""
    finder = Finder("^ready$")
    finder.add([b"x"] * 1_000_000 + [b"ready"])

    looks = 1
    while not finder.found():
        assert finder.behind
        looks += 1

    assert looks > 1
    assert not finder.trouble


def test_a_flood_of_lines(tmp_path: Path) -> None:
    """One look takes little of a long file, and none of it is skipped."""
    path = tmp_path / "log"
    output = Output(str(path))
    path.write_bytes(b"y\n" * 500_000)

    lines = output.lines()
    assert 0 < len(lines) < 100_000
    while output.behind:
        lines += output.lines()

    assert len(lines) == 500_000
    output.close()


def test_a_log_that_has_grown_again(tmp_path: Path) -> None:
    """A file that was truncated and is as long as before is read anew."""
    path = tmp_path / "log"
    output = Output(str(path))
    path.write_bytes(b"before\n")
    assert output.lines() == [b"before"]

    path.write_bytes(b"ready and more\n")

    assert output.lines() == [b"ready and more"]
    output.close()


def test_a_fifo_is_not_read(tmp_path: Path) -> None:
    """Output that goes to a FIFO is somebody else's: it is not even opened, which its writer would notice."""
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    output = Output(path)

    assert output.lines() == []
    with pytest.raises(OSError, match="No such device or address"):
        os.open(path, os.O_WRONLY | os.O_NONBLOCK)  # nobody reads there


def test_lines_without_end(tmp_path: Path) -> None:
    """Of a line without an end only so much is kept."""
    path = tmp_path / "log"
    output = Output(str(path))
    path.write_bytes(b"x" * 300_000)
    assert output.lines() == []
    while output.behind:
        assert output.lines() == []
    with path.open("ab") as file:
        file.write(b"\ny\n")

    assert output.lines() == [b"x" * 8192, b"y"]
    output.close()


# ---- too late ------------------------------------------------------------------------------


def test_too_late(single: Any) -> None:
    """After start-timeout come the stop signal, patience, SIGKILL, and what the restart policy says."""
    script = "trap 'echo asked > told' TERM; while :; do sleep 1000000 & wait; done"
    settings = {"kill_timeout": 0.3, "restart": "on-failure", "restart_penalty": 0, "max_restarts": 1}
    one, watch = single(["sh", "-c", script], start_timeout=0.3, **settings, **NOTIFY)
    told = one.fifo("told")

    start(one, watch)
    watch.until("a", "failed")

    assert told.line() == "asked"
    once = ["a launched starting", "a state stopping", "a state killing"]
    words = [word for word in watch.words() if word != "a restarting starting"]
    assert words[:4] == [*once, "a died backoff"]
    assert words[-4:] == [*once, "a died failed"]
