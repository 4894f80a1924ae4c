"""What `linux.procfs` says is compared with what the kernel says through other calls."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys

import pytest

from jobmon.linux.kernel import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SLEEPER = "import sys; sys.stdin.read()"


class Sleeper:
    """A process that lives until it is let go."""

    def __init__(self, *arguments: str, name: str = "", env: dict[str, str] | None = None) -> None:
        code = f"open('/proc/self/comm', 'w').write({name!r}); " if name else ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", code + "print(flush=True); " + SLEEPER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
        )
        assert self.process.stdout
        self.process.stdout.readline()  # it has its name now
        self.pid = self.process.pid

    def zombie(self) -> None:
        self.process.kill()
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def sleeper() -> Iterator[Callable[..., Sleeper]]:
    made: list[Sleeper] = []

    def make(*arguments: str, name: str = "", env: dict[str, str] | None = None) -> Sleeper:
        made.append(Sleeper(*arguments, name=name, env=env))
        return made[-1]

    yield make
    for one in made:
        one.end()


def in_child(check: Callable[[], bool]) -> bool:
    """Runs `check` in a fork, whose limits may be lowered."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if check() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_stat_agrees_with_the_kernel() -> None:
    """The line of stat says what getpid, getppid, getpgrp and getsid say."""
    fact = procfs.stat(os.getpid())

    assert fact is not None
    assert (fact.pid, fact.ppid) == (os.getpid(), os.getppid())
    assert (fact.pgrp, fact.session) == (os.getpgrp(), os.getsid(0))
    assert fact.state == "R"


def test_start_times_are_ordered_and_stay(sleeper: Callable[..., Sleeper]) -> None:
    """The start time of a process stays the same, and no child is older than its parent."""
    child = sleeper().pid
    first, second, mine = procfs.stat(child), procfs.stat(child), procfs.stat(os.getpid())

    assert first is not None
    assert second is not None
    assert mine is not None
    assert first.starttime == second.starttime >= mine.starttime > 0


@pytest.mark.parametrize("name", ["a b", ") R 1 1 1 (", "x)", "(((", "a\nb", "é"])
def test_a_name_cannot_forge_the_line(sleeper: Callable[..., Sleeper], name: str) -> None:
    """Whatever a process calls itself, the other fields are its own."""
    child = sleeper(name=name).pid
    fact = procfs.stat(child)

    assert fact is not None
    assert (fact.pid, fact.comm, fact.ppid) == (child, name, os.getpid())


def test_a_zombie_is_still_there(sleeper: Callable[..., Sleeper]) -> None:
    """A process that is dead and not reaped has a stat line with Z, and neither words nor environment."""
    one = sleeper()
    one.zombie()
    fact = procfs.stat(one.pid)

    assert fact is not None
    assert fact.state == "Z"
    assert procfs.cmdline(one.pid) == []
    assert not procfs.environ(one.pid)


def test_who_is_gone_is_none(sleeper: Callable[..., Sleeper]) -> None:
    """Of a process that has been reaped nothing is known, and that is no error."""
    one = sleeper()
    one.end()

    assert procfs.stat(one.pid) is None
    assert procfs.environ(one.pid) is None
    assert procfs.cmdline(one.pid) is None
    assert procfs.cgroup2_path(one.pid) is None
    assert procfs.fd_inodes(one.pid) == {}
    assert procfs.describe(one.pid) == f"pid {one.pid}"
    assert one.pid not in procfs.scan()


def test_could_not_look_is_not_gone() -> None:
    """Without a free descriptor stat and scan raise: nobody may conclude that a process has died."""

    def check() -> bool:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        failures = 0
        for look in (procfs.scan, lambda: procfs.stat(os.getpid()), lambda: procfs.environ(os.getpid())):
            try:
                look()
            except OSError:
                failures += 1
        return failures == 3

    assert in_child(check)


def test_scan_sees_the_family(sleeper: Callable[..., Sleeper]) -> None:
    """A scan holds ourselves, our parent and our children, and children picks those out."""
    made = {sleeper().pid, sleeper().pid}
    found = procfs.scan()

    assert made | {os.getpid(), os.getppid(), 1} - {0} <= set(found)
    assert made <= set(procfs.children(os.getpid(), found))
    assert made <= set(procfs.children(os.getpid()))
    assert all(pid == fact.pid for pid, fact in found.items())


def test_arguments_come_as_they_were_given(sleeper: Callable[..., Sleeper]) -> None:
    """Empty arguments, spaces, newlines and bytes that are no UTF-8 are kept."""
    odd = ("", "a b", "c\nd", os.fsdecode(b"\xff"), "")
    child = sleeper(*odd).pid

    words = procfs.cmdline(child)

    assert words is not None
    assert tuple(words[3:]) == odd


def test_the_environment_is_that_of_the_exec(sleeper: Callable[..., Sleeper]) -> None:
    """All entries are there, byte for byte."""
    child = sleeper(env={"JOBMON_RUN": "a:b:1", "EMPTY": ""}).pid

    data = procfs.environ(child)

    assert data is not None
    assert set(data.split(b"\0")) >= {b"JOBMON_RUN=a:b:1", b"EMPTY="}


def test_a_long_environment_is_whole(sleeper: Callable[..., Sleeper]) -> None:
    """More than one read is needed for it, and all of it is there."""
    value = "x" * 100_000
    child = sleeper(env={"LONG": value, "LAST": "1"}).pid

    data = procfs.environ(child)

    assert data is not None
    assert f"LONG={value}".encode() in data.split(b"\0")


def test_a_description_is_safe_to_print(sleeper: Callable[..., Sleeper]) -> None:
    """Control characters are replaced, and long command lines are cut."""
    child = sleeper("\x1b[31m\n" + "y" * 200).pid
    text = procfs.describe(child)

    assert text.startswith(f"pid {child} (")
    assert text.isprintable()
    assert len(text) < 100


def test_descriptors_by_inode() -> None:
    """Sockets and pipes are found with the inode that fstat tells; files are not."""
    left, right = socket.socketpair()
    reader, writer = os.pipe()
    file = os.open(os.devnull, os.O_RDONLY)
    try:
        found = procfs.fd_inodes(os.getpid())

        for fd in (left.fileno(), right.fileno(), reader, writer):
            assert found[fd] == os.fstat(fd).st_ino
        assert file not in found
        assert procfs.holder_of(os.fstat(left.fileno()).st_ino) == os.getpid()
    finally:
        left.close()
        right.close()
        for fd in (reader, writer, file):
            os.close(fd)


def test_nobody_holds_what_is_closed() -> None:
    """An inode that no process has open has no holder."""
    left, right = socket.socketpair()
    inode = os.fstat(left.fileno()).st_ino
    left.close()
    right.close()

    assert procfs.holder_of(inode) is None


def test_the_boot_has_a_name() -> None:
    """The boot id is a UUID and does not change."""
    name = procfs.boot_id()

    assert name is not None
    assert len(name) == 36
    assert name == procfs.boot_id()


MOUNTINFO = rb"""22 27 0:21 / /proc rw,relatime - proc proc rw
24 27 0:6 / /mnt/a\040b\011c\012d\134e rw master:1 shared:2 - cgroup2 cgroup2 rw,nsdelegate
25 27 0:7 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw
26 27 0:7 / /old/cgroup2 ro - cgroup cgroup2 rw
"""


def test_mount_points_are_unescaped() -> None:
    """Escapes, optional fields and the part of a hierarchy that is mounted are read; other types are not."""
    mounts = procfs.parse_mountinfo(MOUNTINFO, b"cgroup2")

    assert mounts == [
        procfs.Mount("/mnt/a b\tc\nd\\e", "/"),
        procfs.Mount("/sys/fs/cgroup", "/docker/abc"),
    ]


@pytest.mark.parametrize(
    ("mount", "path", "directory"),
    [
        (("/sys/fs/cgroup", "/"), "/", "/sys/fs/cgroup"),
        (("/sys/fs/cgroup", "/"), "/a/b", "/sys/fs/cgroup/a/b"),
        (("/sys/fs/cgroup", "/docker/abc"), "/docker/abc", "/sys/fs/cgroup"),
        (("/sys/fs/cgroup", "/docker/abc"), "/docker/abc/x", "/sys/fs/cgroup/x"),
        (("/sys/fs/cgroup", "/docker/abc"), "/docker/abcd", None),
        (("/sys/fs/cgroup", "/docker/abc"), "/", None),
    ],
)
def test_a_cgroup_is_where_its_mount_shows_it(
    mount: tuple[str, str], path: str, directory: str | None
) -> None:
    """The directory is the mount point and the rest of the path; outside of the mount there is none."""
    assert procfs._below(procfs.Mount(*mount), path) == directory


def test_our_cgroup_knows_us() -> None:
    """The directory that cgroup2_path names lists our pid."""
    directory = procfs.cgroup2_path(os.getpid())
    if directory is None:
        pytest.skip("no unified cgroup hierarchy is mounted here")

    with open(f"{directory}/cgroup.procs", encoding="ascii") as file:
        assert str(os.getpid()) in file.read().split()


@pytest.mark.parametrize(
    ("family", "address"),
    [
        (socket.AF_INET, "127.0.0.1"),
        (socket.AF_INET, "0.0.0.0"),
        (socket.AF_INET6, "::"),
        (socket.AF_INET6, "::ffff:127.0.0.1"),
    ],
)
def test_who_keeps_a_port(family: int, address: str) -> None:
    """Every socket that keeps others from 127.0.0.1:PORT is found, with its uid and inode."""
    with socket.socket(family) as listening:
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listening.bind((address, 0))
        listening.listen()
        entry = procfs.tcp_port_holder(listening.getsockname()[1])

        assert entry == procfs.TcpSocket(procfs.TCP_LISTEN, os.geteuid(), os.fstat(listening.fileno()).st_ino)


def test_both_ends_of_a_connection() -> None:
    """Each end of a TCP connection is found by its addresses, and neither is taken for the other."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with socket.create_connection(listening.getsockname()) as client, listening.accept()[0] as server:
            here = (socket.inet_aton("127.0.0.1"), client.getsockname()[1])
            there = (socket.inet_aton("127.0.0.1"), server.getsockname()[1])
            inodes = [os.fstat(one.fileno()).st_ino for one in (client, server)]

            assert procfs.tcp_socket(here, there) == procfs.TcpSocket(1, os.geteuid(), inodes[0])
            assert procfs.tcp_socket(there, here) == procfs.TcpSocket(1, os.geteuid(), inodes[1])
            assert procfs.tcp_socket(here, (here[0], 1)) is None


def test_no_descriptor_is_left(tmp_path: Path, sleeper: Callable[..., Sleeper]) -> None:
    """None of the functions leaves a file open, whether there is something to read or not."""
    gone = sleeper()
    gone.end()
    before = sorted(os.listdir("/proc/self/fd"))
    for pid in (os.getpid(), gone.pid):
        procfs.stat(pid)
        procfs.environ(pid)
        procfs.describe(pid)
        procfs.fd_inodes(pid)
        procfs.cgroup2_path(pid)
    procfs.scan()
    procfs.boot_id()
    procfs.tcp_port_holder(1)

    assert sorted(os.listdir("/proc/self/fd")) == before


def test_pids_come_and_go(sleeper: Callable[..., Sleeper]) -> None:
    """A process that ends during a scan makes no error: forks all the while do not disturb it."""
    forker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os\nwhile 1:\n p = os.fork()\n if not p: os._exit(0)\n os.waitpid(p, 0)",
        ]
    )
    try:
        for _ in range(50):
            assert forker.pid in procfs.scan()
    finally:
        forker.send_signal(signal.SIGKILL)
        forker.wait()
