"""Listeners and streams against the real kernel: real files, real ports, other processes and users."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import tracemalloc

import pytest

from jobmon.errors import StartupError
from jobmon.linux.kernel import sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")


def open_fds() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"), key=int)


def current_umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Each test closes every descriptor, leaves the umask alone and no child behind."""
    before, umask = open_fds(), current_umask()
    yield

    assert (open_fds(), current_umask()) == (before, umask)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "control.sock")


@pytest.fixture
def opened() -> Iterator[Callable[..., sockets.Listener]]:
    """Listens like `sockets.listen`, and closes at the end."""
    made: list[sockets.Listener] = []

    def listen(address: int | str, *, public: bool = False, backlog: int = 16) -> sockets.Listener:
        made.append(sockets.listen(address, public=public, backlog=backlog))
        return made[-1]

    yield listen
    for one in made:
        one.close()


class Child:
    """A fork that runs `work` with a channel to us, and ends with it."""

    def __init__(self, work: Callable[[socket.socket], None]) -> None:
        self.channel, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                self.channel.close()
                work(theirs)
                code = 0
            except BaseException as error:
                theirs.send(repr(error).encode())
            finally:
                os._exit(code)
        theirs.close()

    def end(self) -> int:
        self.channel.shutdown(socket.SHUT_RDWR)  # another child may have a copy of it: close would not tell
        self.channel.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def run_in_child(work: Callable[[], None]) -> None:
    """Runs `work` in a fork, where limits and user may be changed; fails as it fails."""
    child = Child(lambda _: work())
    said = child.channel.recv(4096).decode()

    assert (child.end(), said) == (0, "")


def daemon(address: int | str) -> Child:
    """Another process that listens there until it is ended."""

    def work(channel: socket.socket) -> None:
        listener = sockets.listen(address, public=False)
        channel.send(b"!")
        channel.recv(1)
        listener.close()

    child = Child(work)
    assert child.channel.recv(4096) == b"!"
    return child


def refusal(address: int | str) -> str:
    with pytest.raises(StartupError) as caught:
        sockets.listen(address, public=False)
    return str(caught.value)


def where(address: int | str) -> str | tuple[str, int]:
    return address if isinstance(address, str) else ("127.0.0.1", address)


def connect(address: int | str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    client.settimeout(20)
    client.connect(where(address))
    return client


def accepted(listener: sockets.Listener) -> sockets.Stream:
    taken = listener.accept()
    assert isinstance(taken, tuple)
    return taken[0]


def stale_file(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(path)
        gone.listen()


def pair() -> tuple[sockets.Stream, socket.socket]:
    """A stream and the blocking socket at its other end."""
    left, right = socket.socketpair()
    right.settimeout(20)
    stream = sockets.Stream(socket._socket.socket(left.family, left.type, left.proto, left.detach()))  # type: ignore[attr-defined]
    return stream, right


# ---- UNIX listeners ------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
@pytest.mark.parametrize(("public", "mode"), [(False, 0o600), (True, 0o666)])
def test_the_mode_does_not_depend_on_the_umask(
    opened: Callable[..., sockets.Listener], path: str, umask: int, public: bool, mode: int
) -> None:
    """A socket file is 0600, or 0666 when public, whatever the umask, and the umask is as it was."""
    before = os.umask(umask)
    try:
        listener = opened(path, public=public)
        after = os.umask(before)
    finally:
        os.umask(before)

    assert stat.S_IMODE(os.lstat(path).st_mode) == mode
    assert after == umask
    assert (listener.address, listener.kind) == (path, "unix")


def test_the_mode_is_there_from_the_first_moment(path: str) -> None:
    """Right after bind, before anybody could chmod, the file has its mode."""
    with socket.socket(socket.AF_UNIX) as unfinished:
        sockets._bind_with(unfinished, path, 0o600)

        assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600


def test_a_stale_file_is_replaced(opened: Callable[..., sockets.Listener], path: str) -> None:
    """The socket and lock files of a daemon that was killed do not keep the next one out."""
    stale_file(path)
    with open(path + ".lock", "w", encoding="ascii") as lock:
        lock.write("1\n")
    listener = opened(path)

    with connect(path):
        accepted(listener).close()


def test_a_killed_daemon_is_succeeded(opened: Callable[..., sockets.Listener], path: str) -> None:
    """SIGKILL leaves both files behind, and the lock goes with the process."""
    child = daemon(path)
    os.kill(child.pid, 9)
    assert child.end() == -9
    assert os.path.exists(path)

    opened(path)


def test_a_live_daemon_is_named(path: str) -> None:
    """The second one is told the pid and the command line of the first, whose socket works on."""
    child = daemon(path)
    try:
        text = refusal(path)

        assert text.startswith(f"cannot listen on {path}: pid {child.pid} (")
        assert "python" in text
        connect(path).close()
    finally:
        assert child.end() == 0
    assert not os.path.exists(path)
    assert not os.path.exists(path + ".lock")


def test_a_foreign_server_is_named_too(path: str) -> None:
    """Who listens without our lock is as alive as any, and keeps the file."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        assert f"pid {os.getpid()} (" in refusal(path)
        connect(path).close()
    assert not os.path.exists(path + ".lock")


def test_a_full_queue_is_alive(path: str) -> None:
    """A server that is too busy to accept is not taken for dead."""
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as waiting:
        server.bind(path)
        server.listen(0)
        waiting.connect(path)

        assert "another daemon listens there already" in refusal(path)
        assert os.path.exists(path)


def test_a_datagram_socket_is_left_alone(path: str) -> None:
    """A socket of another type that somebody uses is an error and stays."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(path)

        assert "another program's socket is there" in refusal(path)
        assert os.path.exists(path)


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "link to a socket", "dangling link"])
def test_what_is_no_socket_is_never_removed(path: str, kind: str) -> None:
    """A file, directory, FIFO or link at the path is an error and still there afterwards."""
    if kind == "file":
        with open(path, "w", encoding="ascii") as file:
            file.write("precious")
    elif kind == "directory":
        os.mkdir(path)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        os.symlink(path + ".target", path)
        if kind == "link to a socket":
            stale_file(path + ".target")
    before = os.lstat(path)

    assert "is not a socket, and it will not be removed" in refusal(path)
    assert os.lstat(path)[:4] == before[:4]


@pytest.mark.parametrize("kind", ["directory", "fifo", "link"])
def test_a_strange_lock_file_is_an_error(path: str, kind: str) -> None:
    """Something else in the lock's place is reported, not followed, not waited for."""
    lock = path + ".lock"
    if kind == "directory":
        os.mkdir(lock)
    elif kind == "fifo":
        os.mkfifo(lock)
    else:
        os.symlink(path + ".elsewhere", lock)

    assert lock in refusal(path)
    assert not os.path.exists(path + ".elsewhere")


@pytest.mark.parametrize("kind", ["hard link", "link"])
def test_another_file_in_the_locks_place_is_not_written(path: str, kind: str) -> None:
    """Whoever makes PATH.lock a name of another of our files does not get that one truncated."""
    precious = path + ".precious"
    with open(precious, "w", encoding="ascii") as file:
        file.write("precious")
    (os.link if kind == "hard link" else os.symlink)(precious, path + ".lock")
    before = os.stat(precious)

    told = refusal(path)
    assert f"{path}.lock" in told and "move it away" in told
    with open(precious, encoding="ascii") as file:
        assert file.read() == "precious"
    assert os.stat(precious).st_mtime_ns == before.st_mtime_ns
    assert os.path.lexists(path + ".lock")


@as_root
def test_a_lock_file_that_another_user_has_made(path: str) -> None:
    """Who owns it could hold the lock, or read and write there: it is named, and not written."""
    lock = path + ".lock"
    with open(lock, "w", encoding="ascii") as file:
        file.write("his")
    os.chown(lock, NOBODY, NOBODY)

    assert f"{lock} should be this user's own file, and belongs to user {NOBODY}" in refusal(path)
    with open(lock, encoding="ascii") as file:
        assert file.read() == "his"


def test_the_lock_alone_keeps_others_out(path: str) -> None:
    """A daemon that holds the lock and does not listen yet is named from what it wrote there."""
    with open(path + ".lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f"{os.getppid()}\n")
        lock.flush()

        assert f"pid {os.getppid()} (" in refusal(path)
    assert os.path.exists(path + ".lock")


def test_only_one_at_a_time(path: str) -> None:
    """Four processes that take and release the path for all they are worth never have it together."""

    def contend(channel: socket.socket) -> None:
        won = 0
        channel.recv(1)
        while won < 60:
            try:
                listener = sockets.listen(path, public=False, backlog=1)
            except StartupError:
                continue
            os.mkdir(path + ".inside")  # fails if somebody else is
            os.rmdir(path + ".inside")
            won += 1
            listener.close()

    children = [Child(contend) for _ in range(4)]
    for child in children:
        child.channel.send(b"!")
    said = [child.channel.recv(4096).decode() for child in children]

    assert said == [""] * 4
    assert [child.end() for child in children] == [0] * 4
    assert os.listdir(os.path.dirname(path)) == []


def test_closing_removes_both_files(path: str) -> None:
    """After close nothing is left, and closing again does nothing."""
    listener = sockets.listen(path, public=False)
    assert sorted(os.listdir(os.path.dirname(path))) == ["control.sock", "control.sock.lock"]

    listener.close()
    listener.close()

    assert os.listdir(os.path.dirname(path)) == []
    assert (listener.closed, listener.fileno()) == (True, -1)


def test_closing_leaves_the_file_of_another(path: str) -> None:
    """If somebody put another socket in our place, it is not ours to remove."""
    listener = sockets.listen(path, public=False)
    os.rename(path, path + ".ours")
    stale_file(path)
    listener.close()

    assert os.path.exists(path)
    assert not os.path.exists(path + ".lock")


@pytest.mark.parametrize(
    ("tail", "text"),
    [
        ("/none/x", "the directory {dir}/none does not exist: create it or choose another path"),
        ("/file/x", "{dir}/file is not a directory: choose another path"),
        ("/" + "x" * 300, "the path is too long for a UNIX socket"),
    ],
)
def test_errors_of_paths(tmp_path: Path, tail: str, text: str) -> None:
    """A path that cannot be says which, why, and what to do."""
    (tmp_path / "file").touch()

    said = refusal(f"{tmp_path}{tail}")

    assert said.startswith(f"cannot listen on {tmp_path}{tail}: " + text.format(dir=tmp_path))


def test_a_path_is_measured_in_bytes(tmp_path: Path, opened: Callable[..., sockets.Listener]) -> None:
    """107 bytes fit, 108 do not, however few characters they are."""
    room = 107 - len(os.fsencode(str(tmp_path))) - 1
    fits = f"{tmp_path}/" + "é" * (room // 2) + "x" * (room % 2)

    opened(fits)
    assert "108 bytes, at most 107" in refusal(fits + "x")


@pytest.mark.parametrize("path", ["", "\0abstract"])
def test_what_is_no_path(path: str) -> None:
    """Names outside the file system, where any user could connect, are refused."""
    assert "this is not a path" in refusal(path)


@as_root
def test_a_forbidden_directory() -> None:
    """Who may not write in the directory reads so, not a traceback."""

    def work() -> None:
        os.setuid(NOBODY)
        assert "this user may not write there: change the rights of /root" in refusal("/root/x.sock")

    run_in_child(work)


@as_root
def test_the_lock_of_another_user() -> None:
    """A lock file that may not be opened is named: removing it is the cure."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o777)
        os.close(os.open(f"{directory}/x.lock", os.O_CREAT | os.O_WRONLY, 0o600))

        def work() -> None:
            os.setuid(NOBODY)
            assert f"its lock file {directory}/x.lock cannot be opened" in refusal(f"{directory}/x")

        run_in_child(work)


@as_root
def test_a_live_socket_that_may_not_be_asked_is_left_alone() -> None:
    """That one may not connect to a socket does not say that nobody listens: it stays, and is named."""
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as other:
        os.chmod(directory, 0o777)
        path = f"{directory}/x"
        other.bind(path)
        os.chmod(path, 0o600)
        other.listen()

        def work() -> None:
            os.setuid(NOBODY)
            assert "another program's socket is there" in refusal(path)

        run_in_child(work)
        with connect(path):  # it listens as before
            pass


@pytest.mark.parametrize("replaced", [False, True])
def test_a_lock_file_that_was_removed_is_no_lock(
    path: str, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    """The last holder removes the lock file between our open and our lock: what is locked is the file that is
    at the path in the end, or two daemons would have it."""
    flock, removed = fcntl.flock, list[int]()

    def remove_it_first(fd: int, operation: int) -> None:
        if not removed:
            removed.append(os.fstat(fd).st_ino)
            os.unlink(f"{path}.lock")
            if replaced:  # by that of the next one, who has not locked it yet
                os.close(os.open(f"{path}.lock", os.O_CREAT | os.O_WRONLY, 0o600))
        flock(fd, operation)

    monkeypatch.setattr(sockets, "flock", remove_it_first)
    listener = sockets.listen(path, public=False)

    assert removed
    with open(f"{path}.lock", "rb") as there, pytest.raises(BlockingIOError):
        fcntl.flock(there, fcntl.LOCK_EX | fcntl.LOCK_NB)
    listener.close()


@pytest.mark.parametrize("kind", ["file", "socket", "link"])
def test_the_mode_of_another_is_not_changed(path: str, kind: str) -> None:
    """What somebody else has put in the place of the socket keeps its mode when ours is opened to all."""
    listener = sockets.listen(path, public=False)
    os.rename(path, f"{path}.moved")
    with socket.socket(socket.AF_UNIX) as other:
        if kind == "socket":
            other.bind(path)
        else:
            os.close(os.open(f"{path}.target", os.O_CREAT | os.O_WRONLY, 0o600))
            (os.symlink if kind == "link" else os.rename)(f"{path}.target", path)
        os.chmod(path, 0o600)
        listener.share(True)

        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        os.unlink(path)
        os.rename(f"{path}.moved", path)
        listener.share(True)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o666
    listener.close()


# ---- TCP listeners -------------------------------------------------------------------------


def test_tcp_listens_on_loopback_only(opened: Callable[..., sockets.Listener]) -> None:
    """Port 0 takes a free one, says which, and no other interface has it."""
    listener = opened(0)
    with socket.socket(fileno=os.dup(listener.fileno())) as same:
        assert same.getsockname() == ("127.0.0.1", listener.address)
    assert listener.kind == "tcp"


def test_the_holder_of_a_port_is_named() -> None:
    """The second daemon reads the pid and the command line of the one that has the port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    child = daemon(port)
    try:
        said = refusal(port)
    finally:
        assert child.end() == 0

    assert said.startswith(f"cannot listen on 127.0.0.1:{port}: the port is in use by pid {child.pid} (")
    assert said.endswith("stop it or choose another port")


@as_root
def test_the_holder_may_be_hidden() -> None:
    """Whose descriptors we may not read is named by his uid."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]

        def work() -> None:
            busy.close()
            os.setuid(NOBODY)
            assert "in use by a process of user 0: stop it" in refusal(port)

        run_in_child(work)


@as_root
def test_low_ports_need_a_right() -> None:
    """EACCES on a port says so."""
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", encoding="ascii") as file:
        if int(file.read()) <= 1:
            pytest.skip("any user may use any port here")

    def work() -> None:
        os.setuid(NOBODY)
        assert "this user may not use so low a port" in refusal(1)

    run_in_child(work)


def test_impossible_ports() -> None:
    """A number that is no port is an error in words."""
    assert "a port is a number from 1 to 65535" in refusal(65536)
    assert "a port is a number from 1 to 65535" in refusal(-1)


def test_a_restart_gets_its_port_back(opened: Callable[..., sockets.Listener]) -> None:
    """Connections of the predecessor in TIME_WAIT do not keep the port."""
    first = sockets.listen(0, public=False)
    with connect(int(first.address)) as client:
        stream = accepted(first)
        stream.close()
        assert client.recv(1) == b""
    first.close()

    assert opened(first.address).address == first.address


def test_no_descriptors_to_start_with(path: str) -> None:
    """Even for want of descriptors the error is a StartupError."""

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        for address in (0, path):
            assert "Too many open files" in refusal(address)

    run_in_child(work)


# ---- accepting -----------------------------------------------------------------------------


@pytest.fixture(params=["tcp", "unix"])
def listener(
    request: pytest.FixtureRequest, opened: Callable[..., sockets.Listener], path: str
) -> sockets.Listener:
    return opened(0 if request.param == "tcp" else path)


def test_accepting_never_waits(listener: sockets.Listener) -> None:
    """Without a connection accept gives None, with one a stream that does not wait either."""
    assert listener.accept() is None

    with connect(listener.address) as client:
        stream = accepted(listener)
        assert listener.accept() is None
        assert stream.receive() is None
        client.send(b"hello")
        assert stream.receive() == b"hello"
        stream.close()


def test_nothing_is_inherited(listener: sockets.Listener) -> None:
    """Every descriptor of a listener and its connections is closed by exec."""
    with connect(listener.address):
        stream = accepted(listener)
        fds = [stream.fileno(), listener.fileno(), listener._reserve, listener._lock]
        flags = [fcntl.fcntl(fd, fcntl.F_GETFD) for fd in fds if fd is not None]
        stream.close()

    assert flags == [fcntl.FD_CLOEXEC] * (4 if listener.kind == "unix" else 3)


def test_no_descriptors_are_taken(opened: Callable[..., sockets.Listener], path: str) -> None:
    """Nobody can hand over descriptors, which the daemon would have to close, if the kernel can forbid it."""
    listener = opened(path)
    with connect(path) as client:
        stream = accepted(listener)
        try:
            stream.raw.getsockopt(socket.SOL_SOCKET, sockets.SO_PASSRIGHTS)
        except OSError:
            pytest.skip("needs SO_PASSRIGHTS, Linux 6.16")
        with pytest.raises(PermissionError):
            socket.send_fds(client, [b"x"], [0])
        stream.close()


def test_small_replies_go_at_once(opened: Callable[..., sockets.Listener]) -> None:
    """Accepted TCP connections do not wait for more to send (TCP_NODELAY), without a call for each."""
    listener = opened(0)
    with connect(int(listener.address)):
        stream = accepted(listener)
        assert stream.raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        stream.close()


def test_who_is_gone_before_accept(listener: sockets.Listener) -> None:
    """A connection that was closed before we took it gives what it sent and then its end."""
    with connect(listener.address) as client:
        client.send(b"terminate")
    stream = accepted(listener)

    assert stream.receive() == b"terminate"
    assert stream.receive() == b""
    stream.close()


def test_who_was_reset_before_accept(opened: Callable[..., sockets.Listener]) -> None:
    """A connection that was reset before we took it is no error: it ends, or never was."""
    listener = opened(0)
    client = connect(int(listener.address))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    taken = listener.accept()

    if isinstance(taken, tuple):
        assert taken[0].receive() == b""
        taken[0].close()
    assert listener.accept() is None


def test_no_descriptor_left(listener: sockets.Listener) -> None:
    """At the limit the connection is told and closed instead of waking the loop for ever; later ones work."""

    def work() -> None:
        clients = [connect(listener.address) for _ in range(2)]
        late = socket.socket(clients[0].family)
        limit = max(int(fd) for fd in open_fds()) + 10
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        blockers = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        while True:
            try:
                blockers.append(os.dup(0))
            except OSError:
                break
        for client in clients:
            assert listener.accept(b"full") == sockets.Refused(errno.EMFILE, dropped=True)
            assert client.recv(100) == b"full"
            assert client.recv(100) == b""
        assert listener._reserve is not None
        assert listener.accept() is None  # nobody waits, so nobody is refused
        assert listener._reserve is not None
        os.close(blockers.pop())
        late.connect(where(listener.address))
        accepted(listener).close()

    run_in_child(work)


def test_no_reserve_left(listener: sockets.Listener) -> None:
    """When even the reserve is gone the caller is told that the connection still waits."""

    def work() -> None:
        client = connect(listener.address)
        listener._release()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        assert listener.accept() == sockets.Refused(errno.EMFILE, dropped=False)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        client.send(b"!")
        stream = accepted(listener)
        assert stream.receive() == b"!"

    run_in_child(work)


# ---- adopting ------------------------------------------------------------------------------


def test_a_tcp_listener_is_adopted() -> None:
    """A listening descriptor from elsewhere works like our own."""
    given = socket.create_server(("127.0.0.1", 0))
    os.set_inheritable(given.fileno(), True)
    listener = sockets.adopt(given.detach())

    assert listener.kind == "tcp"
    assert not os.get_inheritable(listener.fileno())
    assert listener.accept() is None
    with connect(int(listener.address)):
        stream = accepted(listener)
        assert stream.raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        stream.close()
    listener.close()


def test_an_adopted_file_is_left_in_place(path: str) -> None:
    """Its file belongs to whoever made it; clients are told our pid, not the maker's."""
    given = socket.socket(socket.AF_UNIX)

    def make(channel: socket.socket) -> None:
        given.bind(path)
        given.listen()

    assert Child(make).end() == 0
    listener = sockets.adopt(given.detach())
    with connect(path) as client:
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        accepted(listener).close()
    listener.close()

    assert (listener.address, listener.kind) == (path, "unix")
    assert struct.unpack("iII", credentials)[0] == os.getpid()
    assert os.path.exists(path)


@pytest.mark.parametrize("kind", ["file", "not listening", "connected", "datagram", "closed"])
def test_what_cannot_be_adopted(kind: str) -> None:
    """Anything but a listening stream socket is a StartupError, and stays the caller's."""
    left, right = socket.socketpair()
    udp, tcp = socket.socket(type=socket.SOCK_DGRAM), socket.socket()
    with left, right, udp, tcp, open(os.devnull, "rb") as file:
        fds = {"file": file.fileno(), "not listening": tcp.fileno(), "connected": left.fileno()}
        fd = (fds | {"datagram": udp.fileno(), "closed": 10**6})[kind]
        with pytest.raises(StartupError, match=f"cannot listen on descriptor {fd}: "):
            sockets.adopt(fd)

        assert kind == "closed" or os.fstat(fd)


# ---- streams -------------------------------------------------------------------------------


def test_bytes_go_both_ways() -> None:
    """What is sent arrives, what arrives is received, and nothing is pending in between."""
    stream, peer = pair()
    with peer:
        stream.send(b"to you")
        peer.send(b"to me")

        assert peer.recv(100) == b"to you"
        assert stream.receive() == b"to me"
        assert stream.receive() is None
        assert (stream.pending, stream.sent, stream.full) == (0, 6, False)
        assert stream.flush()
        stream.close()


def test_what_does_not_fit_waits_in_order() -> None:
    """A slow reader gets every byte in order, while the sender never waits."""
    stream, peer = pair()
    chunks = [bytes([n]) * 300_000 for n in range(10)]
    with peer:
        for chunk in chunks:
            stream.send(chunk)
        assert stream.full
        assert stream.pending + stream.sent == 3_000_000
        assert not stream.flush()
        received = bytearray()
        while len(received) < 3_000_000:
            received += peer.recv(1 << 20)
            stream.flush()

        assert received == b"".join(chunks)
        assert stream.flush()
        assert (stream.pending, stream.sent, stream.full) == (0, 3_000_000, False)
        stream.close()


def test_receiving_is_bounded() -> None:
    """One call takes no more than RECEIVE_BYTES, and the rest is there for the next."""
    stream, peer = pair()
    with peer:
        peer.send(b"x" * (sockets.RECEIVE_BYTES + 5))
        first, second = stream.receive(), stream.receive()

        assert first is not None
        assert second is not None
        assert (len(first), len(first) + len(second)) == (sockets.RECEIVE_BYTES, sockets.RECEIVE_BYTES + 5)
        stream.close()


def test_sending_to_nobody() -> None:
    """A peer that is gone makes no exception and no SIGPIPE, and nothing is kept for it."""
    stream, peer = pair()
    stream.send(b"x" * 5_000_000)
    assert stream.pending
    peer.close()

    assert stream.flush()
    stream.send(b"more")
    assert stream.pending == 0
    assert stream.receive() == b""
    stream.close()


def test_last_words_are_heard() -> None:
    """What the peer sent before it went is still received after a send to it has failed."""
    stream, peer = pair()
    peer.send(b"terminate")
    peer.close()
    stream.send(b"reply")

    assert stream.receive() == b"terminate"
    assert stream.receive() == b""
    stream.close()


def test_a_reset_is_an_end(opened: Callable[..., sockets.Listener]) -> None:
    """ECONNRESET is b"", and sending afterwards is nothing."""
    listener = opened(0)
    client = connect(int(listener.address))
    stream = accepted(listener)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()

    assert stream.receive() == b""
    stream.send(b"x")
    assert stream.flush()
    stream.close()


def test_a_closed_stream_is_harmless() -> None:
    """Closing twice, and using it afterwards, does nothing."""
    stream, peer = pair()
    with peer:
        stream.send(b"x" * 5_000_000)
        stream.close()
        stream.close()
        stream.send(b"y")

        assert (stream.closed, stream.fileno(), stream.pending) == (True, -1, 0)
        assert stream.receive() == b""
        assert stream.flush()


def test_idle_connections_are_small() -> None:
    """Five hundred of them cost less than 100 KiB."""
    pairs = [socket.socketpair() for _ in range(100)]
    raw = [socket._socket.socket(a.family, a.type, a.proto, a.detach()) for a, _ in pairs]  # type: ignore[attr-defined]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        streams = [sockets.Stream(one) for one in raw]
        for stream in streams:
            stream.send(b"hello")
            stream.receive()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    for stream, (_, peer) in zip(streams, pairs, strict=True):
        stream.close()
        peer.close()

    assert grown < 100 * 200


def test_the_wrappers_are_not_loaded() -> None:
    """Nothing in here loads `socket` or `selectors`: half a megabyte in every daemon."""
    code = (
        "import jobmon.linux.kernel.sockets, jobmon.linux.kernel.peers, jobmon.linux.kernel.procfs, sys;"
        " print({'socket', 'selectors', 're', 'typing'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-Sc", code], capture_output=True, text=True, check=True).stdout

    assert said == "set()\n"
