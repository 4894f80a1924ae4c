"""Who is at the other end of a connection, by the kernel's word alone, and whether that one may be there.

It reads no byte of the connection, never waits, and asks no name service but in `Access.resolve`: at the
start, and when a reload brings other names.

A UNIX socket remembers who connected (SO_PEERCRED, SO_PEERGROUPS: unix(7)), even when that process has gone.
A TCP connection on loopback has two sockets in this kernel; the one at the client's end knows the uid that
made it. It is asked for through sock_diag(7), or in /proc/net/tcp and tcp6 where that is not to be had.
"""

from __future__ import annotations

import os
from errno import EAGAIN, EMFILE, ENFILE, ENOBUFS, ENOENT, ENOMEM
from struct import Struct, unpack

from jobmon.errors import StartupError
from jobmon.lean.cpython import (
    AF_INET,
    AF_INET6,
    AF_NETLINK,
    AF_UNIX,
    IPPROTO_TCP,
    MSG_DONTWAIT,
    SO_PEERCRED,
    SOCK_RAW,
    SOL_SOCKET,
    TCP_INFO,
    inet_pton,
    socket,
)
from jobmon.lean.records import Record
from jobmon.linux.kernel import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobmon.linux.kernel.sockets import Stream

    End = tuple[bytes, int]  # packed address, port
    Unknown = tuple[str, str, str]

SO_PEERGROUPS = 59  # asm-generic/socket.h, kernel 4.13
_GROUPS_BYTES = 1024  # the most that getsockopt of _socket takes: 256 groups

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20  # linux/sock_diag.h
NLMSG_ERROR = 2
NLM_F_REQUEST = 1

_FIN_WAIT1, _FIN_WAIT2, _CLOSE_WAIT = 4, 5, 8  # net/tcp_states.h
# The client's end while somebody holds it: as it was made, or half-closed. A closed one has no inode.
_HELD = (procfs.TCP_ESTABLISHED, _FIN_WAIT1, _FIN_WAIT2)
_MAPPED = b"\0" * 10 + b"\xff\xff"  # ::ffff:a.b.c.d
_PASSING = frozenset((EAGAIN, EMFILE, ENFILE, ENOBUFS, ENOMEM))


class Peer(Record):
    """Who connected. `gids` is None where the kernel tells none (TCP), `pid` likewise."""

    uid: int
    gids: frozenset[int] | None = None
    pid: int | None = None

    @property
    def name(self) -> str:
        """For causes and the log."""
        who = f"uid {self.uid}" if self.uid >= 0 else "uid unknown"
        return who if self.pid is None else f"{who} pid {self.pid}"


# Of a TCP connection that was closed before it was accepted the kernel names nobody.
UNIDENTIFIED = Peer(-1)


class Access(Record):
    """Who may control and listen besides root and the daemon's own user.

    `gids` judges a peer whose groups the kernel tells, `members` (uids) one whose groups it does not.
    `unidentified`: anybody on this machine may give the commands of 0.7 over TCP, if he closes at once.
    """

    own: int
    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()
    members: frozenset[int] = frozenset()
    unidentified: bool = False

    @staticmethod
    def resolve(
        users: Sequence[str | int], groups: Sequence[str | int], *, unidentified: bool = False
    ) -> Access:
        """Turns the names of the configuration into numbers. Asks the name service, which may take its time.

        Raises:
            StartupError: names that this machine does not know, all of them.
        """
        access, unknown = Access.look_up(users, groups, unidentified=unidentified)
        if unknown:
            raise StartupError("\n".join(f"{key}: {message}" for key, _, message in unknown))
        return access

    @staticmethod
    def look_up(
        users: Sequence[str | int], groups: Sequence[str | int], *, unidentified: bool = False
    ) -> tuple[Access, list[Unknown]]:
        """The same, but with the names that this machine does not know: key, name, message."""
        unknown: list[Unknown] = []
        uids = _numbers(users, "user", unknown)
        gids = _numbers(groups, "group", unknown)
        return Access(os.geteuid(), uids, gids, _members(gids), unidentified), unknown

    @property
    def is_shared(self) -> bool:
        """Whether there is anybody else at all."""
        return bool(self.uids or self.gids)

    def permits(self, peer: Peer | None) -> bool:
        """Whether this peer may; nobody (None) may not."""
        if peer is None:
            return False
        if peer is UNIDENTIFIED:
            return self.unidentified
        if peer.uid in (0, self.own) or peer.uid in self.uids:
            return True
        if peer.gids is None:
            return peer.uid in self.members
        return not self.gids.isdisjoint(peer.gids)


def _numbers(entries: Sequence[str | int], kind: str, unknown: list[Unknown]) -> frozenset[int]:
    found = set()
    for entry in entries:
        number = entry if isinstance(entry, int) else _number_of(entry, kind)
        if number is None:
            message = f"there is no {kind} {entry!r} on this machine: correct the name"
            unknown.append((f"allow-{kind}s", str(entry), message))
        else:
            found.add(number)
    return frozenset(found)


def _number_of(name: str, kind: str) -> int | None:
    """A name first: a user may be called "1000"."""
    import grp
    import pwd

    try:
        return pwd.getpwnam(name).pw_uid if kind == "user" else grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        return int(name) if name.isascii() and name.isdigit() else None


def _members(gids: frozenset[int]) -> frozenset[int]:
    """The uids of all whose primary or supplementary group is one of these, as far as they can be listed."""
    if not gids:
        return frozenset()
    import grp
    import pwd

    names = {name for entry in grp.getgrall() if entry.gr_gid in gids for name in entry.gr_mem}
    for gid in gids:  # a directory service may know a group that it does not list
        try:
            names.update(grp.getgrgid(gid).gr_mem)
        except KeyError:
            continue
    found = {entry.pw_uid for entry in pwd.getpwall() if entry.pw_gid in gids}
    for name in names:
        number = _number_of(name, "user")
        if number is not None:
            found.add(number)
    return frozenset(found)


# --- asking the kernel ---------------------------------------------------------------------------


class Peers:
    """Answers who is at the other end. Keeps one netlink socket from the first TCP connection on.

    `netlink` false reads /proc instead, as it is done where netlink is forbidden.
    """

    __slots__ = ("_diag", "_netlink")

    def __init__(self, *, netlink: bool = True) -> None:
        self._netlink = netlink
        self._diag: SockDiag | None = None

    def peer_of(self, stream: Stream) -> Peer | None:
        """Who connected; None when nobody can say, as of one who has gone before we looked."""
        try:
            if stream.raw.family == AF_UNIX:
                return unix_peer(stream.raw)
            return self._tcp_peer(stream.raw)
        except OSError:
            return None

    def close(self) -> None:
        """Closes the netlink socket; the next question opens another."""
        if self._diag is not None:
            self._diag.close()
            self._diag = None

    def _tcp_peer(self, accepted: socket) -> Peer | None:
        """The uid that made the client's socket.

        The last look is at our own end. Had the client reset the connection, then another one could have
        come from the same port since, and it is that one's uid that we were told. It could only after
        our end had gone to CLOSE: while ours is alive, its twin is the one that was found.
        """
        client = _end(accepted.family, accepted.getpeername())
        server = _end(accepted.family, accepted.getsockname())
        entry = self._find(client, server)
        if entry is None or entry.state not in _HELD or not entry.inode:
            return None
        if accepted.getsockopt(IPPROTO_TCP, TCP_INFO, 1)[0] not in (procfs.TCP_ESTABLISHED, _CLOSE_WAIT):
            return None
        return Peer(entry.uid)

    def _find(self, client: End, server: End) -> procfs.TcpSocket | None:
        if self._netlink:
            try:
                return self._ask(client, server)
            except OSError as error:
                self.close()
                self._netlink = error.errno in _PASSING  # forbidden or missing stays so, and /proc it is
        return _look(client, server)

    def _ask(self, client: End, server: End) -> procfs.TcpSocket | None:
        if self._diag is None:
            self._diag = SockDiag()
        entry = self._diag.find(client, server)
        if entry is None and not self._diag.proven:
            self._diag.find(server, client)  # our own end, or at least our listener: those must be known
            if not self._diag.proven:
                raise OSError(ENOENT, "there is no inet_diag in this kernel")
        return entry


def unix_peer(connected: socket) -> Peer:
    """Who connected, as it was when it did.

    Raises:
        OSError: not a connected UNIX socket.
    """
    pid, uid, gid = unpack("iII", connected.getsockopt(SOL_SOCKET, SO_PEERCRED, 12))
    try:
        groups = connected.getsockopt(SOL_SOCKET, SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError:  # ERANGE: in more than 256 groups; ENOPROTOOPT: not in this kernel
        return Peer(uid, None, pid)
    return Peer(uid, frozenset((gid, *unpack(f"{len(groups) // 4}I", groups))), pid)


def _end(family: int, name: tuple[str, int]) -> End:
    """An address that is IPv4 in IPv6 clothes is IPv4."""
    packed = inet_pton(family, name[0].partition("%")[0])
    return packed.removeprefix(_MAPPED), name[1]


def _look(client: End, server: End) -> procfs.TcpSocket | None:
    """The same from /proc, where a socket stands in the table of the family that it was made with."""
    found = procfs.tcp_socket(client, server)
    if found is None and len(client[0]) == 4:
        found = procfs.tcp_socket((_MAPPED + client[0], client[1]), (_MAPPED + server[0], server[1]))
    return found


class SockDiag:
    """sock_diag(7): one exact question, answered by the kernel within the send.

    ENOENT says both "no such socket" and "no inet_diag here": `proven` is true once any socket was found.
    Raises (all methods): OSError where netlink or this family of it is forbidden or missing.
    """

    __slots__ = ("_port", "_sequence", "_socket", "proven")

    # nlmsghdr; inet_diag_req_v2: family, protocol, extensions, states, ports, addresses, interface, cookie
    _REQUEST = Struct("=IHHIIBBBxI2s2s16s16sIQ")
    _HEADER = Struct("=IHHII")
    # inet_diag_msg: family, state, ports, addresses, (interface, cookie, expires, queues,) uid, inode
    _ANSWER = Struct("=BBxx2s2s16s16s24xII")
    _ERROR = Struct("=i")  # nlmsgerr
    _ANY_COOKIE = 0xFFFFFFFFFFFFFFFF

    def __init__(self) -> None:
        self._socket = socket(AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG)
        self._socket.setblocking(False)
        self._socket.bind((0, 0))
        self._port = self._socket.getsockname()[0]
        self._sequence = 0
        self.proven = False

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def find(self, local: End, remote: End) -> procfs.TcpSocket | None:
        """The socket with just these ends; one that nobody holds any more has inode 0."""
        entry = self._query(AF_INET if len(local[0]) == 4 else AF_INET6, local, remote)
        if entry is None and len(local[0]) == 4:
            entry = self._query(AF_INET6, (_MAPPED + local[0], local[1]), (_MAPPED + remote[0], remote[1]))
        return entry

    def _query(self, family: int, local: End, remote: End) -> procfs.TcpSocket | None:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        ends = (
            local[1].to_bytes(2, "big"),
            remote[1].to_bytes(2, "big"),
            local[0].ljust(16, b"\0"),
            remote[0].ljust(16, b"\0"),
        )
        kind = SOCK_DIAG_BY_FAMILY
        header = (self._REQUEST.size, kind, NLM_F_REQUEST, self._sequence, 0)
        request = self._REQUEST.pack(*header, family, IPPROTO_TCP, 0, 0xFFFFFFFF, *ends, 0, self._ANY_COOKIE)
        self._socket.sendto(request, MSG_DONTWAIT, (0, 0))
        return self._answer(local, remote)

    def _answer(self, local: End, remote: End) -> procfs.TcpSocket | None:
        """Reads up to the answer to the last question: what is older, or not from the kernel, is skipped."""
        while True:
            data, sender = self._socket.recvfrom(8192, MSG_DONTWAIT)
            size, kind, _, sequence, port = self._HEADER.unpack_from(data)
            if sender[0] != 0 or (sequence, port) != (self._sequence, self._port) or size > len(data):
                continue
            if kind == SOCK_DIAG_BY_FAMILY:
                return self._entry(data, local, remote)
            if kind == NLMSG_ERROR:
                self._check_error(data)
                return None

    def _check_error(self, data: bytes) -> None:
        errno = -self._ERROR.unpack_from(data, self._HEADER.size)[0]
        if errno != ENOENT:
            raise OSError(errno, os.strerror(errno))

    def _entry(self, data: bytes, local: End, remote: End) -> procfs.TcpSocket | None:
        """A listener is what the kernel gives when no connection fits: the ends in the answer tell."""
        self.proven = True
        family, state, sport, dport, source, destination, uid, inode = self._ANSWER.unpack_from(
            data, self._HEADER.size
        )
        found = (_plain(family, source, sport), _plain(family, destination, dport))
        asked = tuple((address.removeprefix(_MAPPED), port) for address, port in (local, remote))
        return procfs.TcpSocket(state, uid, inode) if found == asked else None


def _plain(family: int, address: bytes, port: bytes) -> End:
    return address[: 4 if family == AF_INET else 16].removeprefix(_MAPPED), int.from_bytes(port, "big")
