"""Clients that send and close at once, of whom TCP tells nothing: `allow-unidentified`."""

from __future__ import annotations

import os
import signal

import kit
import pytest
from test_clients import Raw, frame, free_ports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Make = Callable[[dict[str, Any]], kit.Daemon]

NOBODY = 65534
ORDERS = (("one", 3), ("one", 4), (None, 7))
START, STOP, TERMINATE = ({"type": 1, "job": job, "command": number} for job, number in ORDERS)
REQUEST = {"type": "request", "id": 1, "command": "terminate"}
ADVICE = "keep it open until the answer comes, use a UNIX socket, or set allow-unidentified"


@pytest.fixture
def served(daemon: Callable[..., kit.Daemon]) -> Make:
    """A factory of daemons on TCP ports, with further keys of the supervisor."""

    def make(keys: dict[str, Any]) -> kit.Daemon:
        control, event = free_ports(2)
        supervisor = {"control-port": control, "event-port": event, "log-level": "INFO", **keys}
        return daemon({"supervisor": supervisor, "jobs": {"one": {"command": kit.FOR_EVER}}})

    return make


def send_and_close(one: kit.Daemon, address: int | str, *messages: object) -> None:
    """As fast as can be: the daemon is stopped until the connection is closed."""
    os.kill(one.pid, signal.SIGSTOP)
    client = Raw(address)
    client.send(b"".join(map(frame, messages)))
    client.destroy()
    os.kill(one.pid, signal.SIGCONT)


def test_who_closes_before_accept_is_refused_and_told_why(served: Make) -> None:
    """Nobody can say whose it was, so nothing is done; the log says what its sender can do."""
    one = served({})
    send_and_close(one, one.control, START, TERMINATE)

    assert ADVICE in one.wait_log("connection refused")
    assert not one.pipe().is_running("one")


def test_with_allow_unidentified_the_commands_of_07_are_done(served: Make) -> None:
    """A start and a terminate from a connection that was closed at once are done, each time; the log and the
    events say that nobody knows who it was."""
    one = served({"allow-unidentified": True})
    watch = one.watch()
    send_and_close(one, one.control, START)
    watch.until("one", "launched")
    send_and_close(one, one.control, STOP)
    assert watch.until("one", "died").cause == "SIGTERM"
    send_and_close(one, one.control, TERMINATE)

    assert one.wait() == 0
    assert 'by="terminate by uid unknown"' in one.log


@pytest.mark.parametrize("port", ["control", "event"])
def test_with_allow_unidentified_nothing_else_is_done(served: Make, port: str) -> None:
    """No request is done of a connection that was closed before, no subscription, and nothing after it."""
    one = served({"allow-unidentified": True})
    message = REQUEST if port == "control" else {"type": "subscribe"}
    send_and_close(one, getattr(one, port), message, TERMINATE)
    line = one.wait_log("client disconnected" if port == "control" else "connection refused")

    assert ("no command of JobMon 0.7" if port == "control" else ADVICE) in line
    assert one.pipe().list_jobs() == {"one": False}


@pytest.mark.skipif(os.geteuid() != 0, reason="changes user")
def test_who_is_known_is_judged_as_before(served: Make) -> None:
    """allow-unidentified is for those alone of whom nothing is known: a stranger who stays is refused."""
    one = served({"allow-unidentified": True})

    def command() -> None:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        client = Raw(one.control)
        assert client.receive() == {"type": 3, "job": "", "reason": 4}
        client.destroy()

    assert kit.in_child(command) == "None"
    assert 'why="not permitted" uid=65534' in one.wait_log("connection refused")


def test_a_reload_changes_it_at_once(served: Make) -> None:
    """The key counts from the reload on that brings it, in both directions."""
    one = served({})
    watch = one.watch()
    supervisor = {"control-port": one.control, "event-port": one.event, "log-level": "INFO"}
    jobs = {"one": {"command": kit.FOR_EVER}}
    one.configure({"supervisor": {**supervisor, "allow-unidentified": True}, "jobs": jobs})
    assert one.run_cli("reload").code == 0
    send_and_close(one, one.control, START)
    watch.until("one", "launched")
    one.configure({"supervisor": supervisor, "jobs": jobs})
    assert one.run_cli("reload").code == 0
    send_and_close(one, one.control, TERMINATE)

    assert ADVICE in one.wait_log("connection refused")
