"""The clients' side over a daemon that is no more than its port: no engine, no process."""

from __future__ import annotations

import os
import socket
import time

import kit
import pytest

from jobmon import protocol
from jobmon.core.causes import Cause, Kind
from jobmon.core.events import State
from jobmon.core.spec import JobSpec
from jobmon.core.supervisor import Supervisor
from jobmon.linux.control.port import ReloadOutcome
from jobmon.linux.control.server import Sessions
from jobmon.linux.kernel import sockets
from jobmon.linux.kernel.loop import Loop
from jobmon.linux.kernel.peers import Access
from jobmon.linux.log import Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator
    from pathlib import Path
    from typing import Any

    from jobmon.linux.control.port import RunFacts


class Port:
    """A daemon with one job that never runs, its clients, and what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.supervisor = Supervisor([JobSpec("web", "true")])
        self.log = Log(str(folder / "log"), "INFO")
        self.loop = Loop(self.bug)
        self.reloads: list[Callable[[ReloadOutcome], None]] = []
        self.sessions = Sessions(self, Access(os.geteuid()), 1)
        self._folder = folder
        self._clients: list[socket.socket] = []
        for role in (protocol.CONTROL, protocol.EVENTS):
            self.sessions.listen(sockets.listen(str(folder / role), public=False), role)
        self.sessions.open()

    def facts(self, job: str) -> RunFacts:
        return NoRun()

    def unattributed(self) -> list[int]:
        return []

    def info(self) -> dict[str, Any]:
        return {"pid": os.getpid()}

    def terminate(self, by: Cause) -> None:
        raise AssertionError(str(by))

    def reload(
        self, by: Cause, done: Callable[[ReloadOutcome], None], *, restart: bool, dry_run: bool
    ) -> Hashable:
        self.reloads.append(done)
        return ("reload", len(self.reloads))

    def bug(self, where: str, error: Exception) -> None:
        raise AssertionError(where) from error

    def connect(self, role: str, *messages: protocol.Message) -> socket.socket:
        """A client that has said something."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(str(self._folder / role))
        client.sendall(b"".join(map(protocol.encode, messages)))
        self._clients.append(client)
        return client

    def turn_until(self, what: Callable[[], bool]) -> None:
        """Let the loop turn until something holds."""
        end = time.monotonic() + kit.DEADLINE
        wake = self.loop.call_at(end, lambda: None)
        while not what():
            assert time.monotonic() < end
            self.loop.run_once(block=True)
        wake.cancel()

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.sessions.close()
        self.loop.close()
        os.close(self.log.fileno())


class NoRun:
    """What is known of a run that there is not."""

    def pids(self) -> list[int]:
        return []

    def left(self) -> str:
        return ""

    def says(self) -> str:
        return ""

    def why_not_ready(self) -> str:
        return ""

    def stderr_tail(self) -> list[str]:
        return []


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Port]:
    """A port that leaves no descriptor open."""
    before = kit.fds_of(os.getpid())
    made = Port(tmp_path)
    yield made
    made.close()
    assert kit.fds_of(os.getpid()) == before


def count_encodings(monkeypatch: pytest.MonkeyPatch) -> list[protocol.Message]:
    """All messages that are encoded from now on."""
    encoded: list[protocol.Message] = []
    encode = protocol.encode

    def counting(message: protocol.Message, *rest: Any) -> bytes:
        encoded.append(message)
        return encode(message, *rest)

    monkeypatch.setattr(protocol, "encode", counting)
    return encoded


def readable(clients: list[socket.socket]) -> bool:
    return all(kit.readable(client.fileno(), 0) for client in clients)


@pytest.mark.parametrize("rich", [True, False])
def test_an_event_is_encoded_once_for_all_who_listen(
    port: Port, monkeypatch: pytest.MonkeyPatch, rich: bool
) -> None:
    """A hundred listeners cost one encoding of each event, and all of them get the same bytes."""
    wishes = [protocol.Subscribe(None, None)] if rich else []
    clients = [port.connect(protocol.EVENTS, *wishes) for _ in range(100)]
    port.turn_until(lambda: len(port.sessions.listening) == 100 and (not rich or readable(clients)))
    for client in clients:
        client.setblocking(False)
        if rich:
            client.recv(1 << 16)  # how things stand
    encoded = count_encodings(monkeypatch)
    for run in range(1, 4):
        port.supervisor.log.add(1.0, "web", "died", State.EXITED, run, None, Cause(Kind.EXITED, 0))
    port.sessions.publish()
    monkeypatch.undo()

    assert len(encoded) == 3
    expected = b"".join(map(protocol.encode, encoded))
    assert [client.recv(1 << 16) for client in clients] == [expected] * 100


def test_a_client_that_leaves_waits_for_its_reload_no_more(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor drops the request by the name that the daemon gave it; its end is told to nobody."""
    dropped: list[Hashable] = []
    monkeypatch.setattr(port.supervisor, "drop", dropped.append)
    client = port.connect(protocol.CONTROL, protocol.Request(1, "reload", restart=True))
    port.turn_until(lambda: len(port.reloads) == 1)
    client.shutdown(socket.SHUT_RDWR)
    client.close()
    port.turn_until(lambda: len(port.sessions) == 0)

    assert dropped == [("reload", 1)]
    port.reloads[0](ReloadOutcome("failed", ("too late",)))
