"""The kernel's word on who connected, with a real second user, by netlink and by /proc."""

from __future__ import annotations

import contextlib
import ctypes
import grp
import os
import platform
import pwd
import socket
import struct
import tempfile

import pytest

from jobmon.errors import StartupError
from jobmon.linux.kernel import peers, procfs, sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOBODY = 65534
OTHER_GROUPS = (4242, 4243)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")


class Client:
    """A process of another user: it connects, does `work` with the connection, and waits to be ended."""

    def __init__(
        self,
        connect: Callable[[], socket.socket],
        work: Callable[[socket.socket], None] = lambda _: None,
        uid: int = NOBODY,
        gid: int = NOBODY,
        groups: tuple[int, ...] = OTHER_GROUPS,
    ) -> None:
        self.channel, theirs = socket.socketpair()
        self.channel.settimeout(20)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.channel.close()
                if uid != os.geteuid():
                    os.setgroups(groups)
                    os.setresgid(gid, gid, gid)
                    os.setresuid(uid, uid, uid)
                connection = connect()
                work(connection)
                theirs.send(b"!")
                theirs.recv(1)
            except BaseException as error:
                theirs.send(repr(error).encode())
            finally:
                os._exit(0)
        theirs.close()
        assert self.channel.recv(4096) == b"!"

    def end(self) -> None:
        if self.pid:
            self.channel.shutdown(socket.SHUT_RDWR)  # a later client has a copy of it: close would not tell
            self.channel.close()
            os.waitpid(self.pid, 0)
            self.pid = 0


@pytest.fixture
def client() -> Iterator[Callable[..., Client]]:
    made: list[Client] = []

    def make(*args: object, **named: object) -> Client:
        made.append(Client(*args, **named))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture(params=["netlink", "proc"])
def found(request: pytest.FixtureRequest) -> Iterator[peers.Peers]:
    made = peers.Peers(netlink=request.param == "netlink")
    yield made
    if request.param == "netlink":
        assert made._netlink, "it fell back"
    made.close()


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = sorted(os.listdir("/proc/self/fd"))
    yield

    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def tcp() -> Iterator[sockets.Listener]:
    listener = sockets.listen(0, public=False)
    yield listener
    listener.close()


@pytest.fixture
def unix() -> Iterator[sockets.Listener]:
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        listener = sockets.listen(f"{directory}/x", public=True)
        yield listener
        listener.close()


def dial(listener: sockets.Listener, host: str = "127.0.0.1") -> Callable[[], socket.socket]:
    def connect() -> socket.socket:
        if isinstance(listener.address, str):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(listener.address)
            return connection
        connection = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        connection.connect((host, listener.address))
        return connection

    return connect


def reset(connection: socket.socket) -> None:
    """Closes with RST, after which the kernel knows nothing of it."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def say_and_leave(connection: socket.socket) -> None:
    connection.send(b"terminate")
    connection.close()


def say_and_reset(connection: socket.socket) -> None:
    connection.send(b"terminate")
    reset(connection)


def accept(listener: sockets.Listener) -> sockets.Stream:
    taken = listener.accept()
    assert isinstance(taken, tuple)
    return taken[0]


def peer(found: peers.Peers, listener: sockets.Listener) -> peers.Peer | None:
    """Who the next connection is from."""
    stream = accept(listener)
    answer = found.peer_of(stream)
    stream.close()
    return answer


# ---- UNIX sockets --------------------------------------------------------------------------


@as_root
def test_a_unix_peer_is_known(client: Callable[..., Client], unix: sockets.Listener) -> None:
    """The uid, all groups and the pid are those of the process that connected."""
    other = client(dial(unix))

    assert peer(peers.Peers(), unix) == peers.Peer(NOBODY, frozenset((NOBODY, *OTHER_GROUPS)), other.pid)


@as_root
def test_a_unix_peer_that_left_is_known(client: Callable[..., Client], unix: sockets.Listener) -> None:
    """Who says something and leaves at once is still that user, never root."""
    other = client(dial(unix), say_and_leave)
    other.end()
    stream = accept(unix)
    answer = peers.Peers().peer_of(stream)

    assert answer is not None
    assert answer.uid == NOBODY
    assert stream.receive() == b"terminate"
    stream.close()


@as_root
def test_a_peer_of_too_many_groups(client: Callable[..., Client], unix: sockets.Listener) -> None:
    """More groups than can be asked for are unknown groups: the user counts, and who is a member by name."""
    client(dial(unix), groups=tuple(range(5000, 5300)))
    answer = peer(peers.Peers(), unix)

    assert answer is not None
    assert (answer.uid, answer.gids) == (NOBODY, None)
    assert not peers.Access(0, gids=frozenset((5000,))).permits(answer)
    assert peers.Access(0, gids=frozenset((5000,)), members=frozenset((NOBODY,))).permits(answer)


@as_root
def test_a_peer_of_many_groups(client: Callable[..., Client], unix: sockets.Listener) -> None:
    """As many groups as fit are all known."""
    client(dial(unix), groups=tuple(range(5000, 5256)))
    answer = peer(peers.Peers(), unix)

    assert answer is not None
    assert answer.gids == frozenset((NOBODY, *range(5000, 5256)))


# ---- TCP -----------------------------------------------------------------------------------


@as_root
@pytest.mark.parametrize("host", ["127.0.0.1", "::ffff:127.0.0.1"])
def test_a_tcp_peer_is_known(
    client: Callable[..., Client], found: peers.Peers, tcp: sockets.Listener, host: str
) -> None:
    """The uid is that of the client's end, also of an IPv6 socket that speaks IPv4."""
    client(dial(tcp, host))

    assert peer(found, tcp) == peers.Peer(NOBODY)


@pytest.mark.parametrize("host", ["127.0.0.1", "::ffff:127.0.0.1"])
def test_we_are_known_ourselves(found: peers.Peers, tcp: sockets.Listener, host: str) -> None:
    """A connection from our own user says our uid."""
    with dial(tcp, host)():
        assert peer(found, tcp) == peers.Peer(os.geteuid())


@as_root
def test_many_peers_are_told_apart(
    client: Callable[..., Client], found: peers.Peers, tcp: sockets.Listener
) -> None:
    """Connections of three users that wait together are each given their own."""
    uids = [NOBODY, os.geteuid(), 1, NOBODY]
    for uid in uids:
        client(dial(tcp), uid=uid)

    assert [peer(found, tcp) for _ in uids] == [peers.Peer(uid) for uid in uids]


def test_an_ipv6_peer_is_known(found: peers.Peers) -> None:
    """An adopted listener on ::1 works as well."""
    try:
        given = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    listener = sockets.adopt(given.detach())
    with dial(listener, "::1")():
        assert peer(found, listener) == peers.Peer(os.geteuid())
    listener.close()


@as_root
@pytest.mark.parametrize("leave", [say_and_leave, say_and_reset])
def test_who_has_gone_is_nobody(
    client: Callable[..., Client],
    found: peers.Peers,
    tcp: sockets.Listener,
    leave: Callable[[socket.socket], None],
) -> None:
    """Who sends a terminate and closes at once is not taken for root, though the kernel says uid 0 now."""
    client(dial(tcp), leave)
    answer = peer(found, tcp)

    assert answer is None
    assert not peers.Access(own=0).permits(answer)


def test_who_leaves_after_we_looked_was_known(found: peers.Peers, tcp: sockets.Listener) -> None:
    """The same connection is known while it is open and nobody's when it is closed."""
    connection = dial(tcp)()
    stream = accept(tcp)

    assert found.peer_of(stream) == peers.Peer(os.geteuid())
    connection.close()
    assert found.peer_of(stream) is None
    stream.close()


def test_half_closing_is_not_closing(found: peers.Peers, tcp: sockets.Listener) -> None:
    """A client that has half closed its end is known while it holds it, and not when it has closed it."""
    connection = dial(tcp)()
    connection.shutdown(socket.SHUT_WR)
    stream = accept(tcp)

    assert found.peer_of(stream) == peers.Peer(os.geteuid())
    connection.close()
    assert found.peer_of(stream) is None
    stream.close()


def test_a_peer_whose_fin_was_not_acknowledged_is_known(found: peers.Peers, tcp: sockets.Listener) -> None:
    """FIN_WAIT1, just before FIN_WAIT2, counts as half-closed too: our full queue keeps a client there."""
    connection = dial(tcp)()
    stream = accept(tcp)
    connection.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            connection.send(b"x" * 65536)
    connection.shutdown(socket.SHUT_WR)

    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 4  # FIN_WAIT1
    assert found.peer_of(stream) == peers.Peer(os.geteuid())
    connection.close()
    stream.close()


@as_root
def test_a_port_that_changed_hands(
    client: Callable[..., Client], found: peers.Peers, tcp: sockets.Listener
) -> None:
    """One who leaves by RST and whose port root then connects from must not pass for root."""

    def leave_the_port(connection: socket.socket) -> None:
        connection.send(b"terminate")
        ports.send(struct.pack("H", connection.getsockname()[1]))
        reset(connection)

    ports, ours = socket.socketpair()
    with ports, ours, socket.socket() as root:
        root.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        while not root.getsockname()[1]:
            client(dial(tcp), leave_the_port)
            try:
                root.bind(("127.0.0.1", struct.unpack("H", ours.recv(2))[0]))
            except OSError:  # whoever else is on this machine was quicker
                accept(tcp).close()
        root.connect(("127.0.0.1", int(tcp.address)))
        first, second = accept(tcp), accept(tcp)

        assert first.receive() == b"terminate"
        assert found.peer_of(first) is None
        assert found.peer_of(second) == peers.Peer(0)
        first.close()
        second.close()


@as_root
def test_our_own_end_is_looked_at_last(found: peers.Peers, tcp: sockets.Listener) -> None:
    """That the client was found does not suffice when our end of it has died meanwhile."""
    connection = dial(tcp)()
    stream = accept(tcp)

    class Slow(peers.Peers):
        """The port changes hands between the two questions to the kernel."""

        def _find(self, client: peers.End, server: peers.End) -> procfs.TcpSocket | None:
            entry = found._find(client, server)
            reset(connection)
            return entry

    assert found.peer_of(stream) == peers.Peer(0)
    assert Slow().peer_of(stream) is None
    stream.close()


@as_root
def test_an_answer_that_is_not_the_kernels_counts_for_nothing(tcp: sockets.Listener) -> None:
    """An answer with the right numbers that another process has sent before we ask is skipped."""
    connection = dial(tcp)()
    stream = accept(tcp)
    here = peers._end(socket.AF_INET, connection.getsockname())
    server = peers._end(socket.AF_INET, ("127.0.0.1", int(tcp.address)))
    diag = peers.SockDiag()
    ends = (end[1].to_bytes(2, "big") for end in (here, server))
    addresses = (end[0].ljust(16, b"\0") for end in (here, server))
    body = diag._ANSWER.pack(socket.AF_INET, procfs.TCP_ESTABLISHED, *ends, *addresses, 12_345, 99)
    size = diag._HEADER.size + len(body)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, peers.NETLINK_SOCK_DIAG) as forger:
        head = diag._HEADER.pack(size, peers.SOCK_DIAG_BY_FAMILY, 0, diag._sequence + 1, diag._port)
        forger.sendto(head + body, (diag._port, 0))

    found = diag.find(here, server)
    assert found is not None
    assert (found.uid, found.state) == (os.geteuid(), procfs.TCP_ESTABLISHED)
    diag.close()
    connection.close()
    stream.close()


def test_a_listener_on_that_port_is_not_the_peer(tcp: sockets.Listener) -> None:
    """The kernel offers a listener where no connection fits; it is no answer, but a sign of life."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        here = socket.inet_aton("127.0.0.1")
        diag = peers.SockDiag()

        assert diag.find((here, other.getsockname()[1]), (here, int(tcp.address))) is None
        assert diag.proven
        diag.close()


def test_no_such_socket_proves_nothing(tcp: sockets.Listener) -> None:
    """ENOENT is None, and could as well mean that there is no inet_diag."""
    diag = peers.SockDiag()

    assert diag.find((b"\x7f\0\0\1", 1), (b"\x7f\0\0\1", 2)) is None
    assert not diag.proven
    diag.close()


# ---- falling back --------------------------------------------------------------------------


SOCKET_CALL = {"x86_64": 41, "aarch64": 198}  # asm/unistd.h

with_seccomp = pytest.mark.skipif(
    platform.machine() not in SOCKET_CALL, reason="socket(2) has which number here?"
)


def forbid_netlink(errno: int) -> None:
    """A seccomp filter, seccomp(2): socket(AF_NETLINK, ...) fails with `errno`, in this process for ever."""
    load, equal, answer = 0x20, 0x15, 0x06
    program = [
        (load, 0, 0, 0),  # the call's number
        (equal, 0, 3, SOCKET_CALL[platform.machine()]),
        (load, 0, 0, 16),  # its first argument
        (equal, 0, 1, socket.AF_NETLINK),
        (answer, 0, 0, 0x00050000 | errno),
        (answer, 0, 0, 0x7FFF0000),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, header) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


@with_seccomp
@pytest.mark.parametrize("errno", [1, 13, 93, 97])
def test_where_netlink_is_forbidden(tcp: sockets.Listener, errno: int) -> None:
    """EPERM, EACCES, EPROTONOSUPPORT, EAFNOSUPPORT: /proc is read from then on, and says the same."""

    def work(connection: socket.socket) -> None:
        forbid_netlink(errno)
        found = peers.Peers()
        assert peer(found, tcp) == peers.Peer(os.geteuid())
        assert (found._netlink, found._diag) == (False, None)

    Client(dial(tcp), work, uid=os.geteuid()).end()


@with_seccomp
@pytest.mark.parametrize("errno", [23, 24, 12])
def test_where_netlink_is_short(tcp: sockets.Listener, errno: int) -> None:
    """ENFILE, EMFILE, ENOMEM: /proc is read this once, and netlink is tried again."""

    def work(connection: socket.socket) -> None:
        forbid_netlink(errno)
        found = peers.Peers()
        assert peer(found, tcp) == peers.Peer(os.geteuid())
        assert found._netlink

    Client(dial(tcp), work, uid=os.geteuid()).end()


def test_closing_is_not_the_end(tcp: sockets.Listener) -> None:
    """After close the next question opens another netlink socket."""
    found = peers.Peers()
    with dial(tcp)():
        stream = accept(tcp)
        for _ in range(2):
            assert found.peer_of(stream) == peers.Peer(os.geteuid())
            found.close()
        stream.close()


def test_a_closed_stream_is_nobody(tcp: sockets.Listener) -> None:
    """No question about a closed stream raises."""
    with dial(tcp)():
        stream = accept(tcp)
        stream.close()

        assert peers.Peers().peer_of(stream) is None


# ---- who may -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "may"),
    [
        (None, False),
        (peers.Peer(0), True),
        (peers.Peer(100), True),
        (peers.Peer(200), True),
        (peers.Peer(201), False),
        (peers.Peer(NOBODY), False),
        (peers.Peer(201, frozenset((300,))), True),
        (peers.Peer(201, frozenset((7, 300, 8))), True),
        (peers.Peer(201, frozenset((200, 100, 0))), False),
        (peers.Peer(201, frozenset()), False),
        (peers.Peer(400), True),
        (peers.Peer(400, frozenset((7,))), False),
    ],
)
def test_who_may(one: peers.Peer | None, may: bool) -> None:
    """Root, the daemon's own, those allowed; groups as the kernel says, by name only where it does not."""
    access = peers.Access(100, frozenset((200,)), frozenset((300,)), frozenset((400,)))

    assert access.permits(one) is may


def test_nobody_else_by_default() -> None:
    """Without allow lists it is root and our own user alone."""
    access = peers.Access.resolve((), ())

    assert access == peers.Access(os.geteuid())
    assert not access.permits(peers.Peer(os.geteuid() + 1, frozenset((os.getegid(),))))


def test_names_become_numbers() -> None:
    """Names are looked up, numbers are taken as they are, whether this machine knows them or not."""
    user, group = pwd.getpwall()[-1], grp.getgrall()[-1]
    access = peers.Access.resolve((user.pw_name, 4_000_000, "4000001"), (group.gr_name, 5_000_000))

    assert access.uids == {user.pw_uid, 4_000_000, 4_000_001}
    assert access.gids == {group.gr_gid, 5_000_000}


def test_members_are_found_at_load() -> None:
    """For TCP the users of a group are those whose primary group it is, and those it lists."""
    user = pwd.getpwall()[-1]
    expected = {one.pw_uid for one in pwd.getpwall() if one.pw_gid == user.pw_gid}
    try:
        names = grp.getgrgid(user.pw_gid).gr_mem
    except KeyError:
        names = []
    expected |= {pwd.getpwnam(name).pw_uid for name in names}

    assert peers.Access.resolve((), (user.pw_gid,)).members == expected


def test_listed_members_count() -> None:
    """A group that lists users gives their uids."""
    listed = [one for one in grp.getgrall() if one.gr_mem]
    if not listed:
        pytest.skip("no group of this machine lists a member")

    assert pwd.getpwnam(listed[0].gr_mem[0]).pw_uid in peers.Access.resolve((), (listed[0].gr_name,)).members


def test_unknown_names_are_all_told() -> None:
    """Every name that this machine does not know is in the one error."""
    with pytest.raises(StartupError) as caught:
        peers.Access.resolve(("no such user", "root"), ("no such group", "nor this"))

    assert str(caught.value).splitlines() == [
        "allow-users: there is no user 'no such user' on this machine: correct the name",
        "allow-groups: there is no group 'no such group' on this machine: correct the name",
        "allow-groups: there is no group 'nor this' on this machine: correct the name",
    ]
