"""What the end-to-end tests share beside kit.py: ports, another user, a crash, and a relay.

A relay stands between a client and the daemon, so that a test knows what the daemon has heard already:

    relay = Relay(one)                              # one: a kit.Daemon
    waiting = relay.start_cli("wait", "web")        # connects to the relay instead
    waiting.heard()                                 # the daemon has its request, and waits with it
    one.pipe().start("web")
    assert waiting.end().code == 0

It neither guesses nor sleeps: behind the client's own request it sends another, whose reply tells that
the daemon has been there.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import socket
import sys
import tempfile

import kit

from jobmon.protocol import CLIENT, Connection, ReplyMessage, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from typing import Any

NOBODY = 65534
# A job that only SIGKILL ends, from its first moment on: what it is stopped by is ignored by default.
STUBBORN = {"command": kit.FOR_EVER, "signal": "SIGWINCH", "kill-timeout": 1000}

_PROBE = 1 << 40  # a number that no client gets to

# Becomes nobody when all that it may need is loaded: nobody may not be allowed to read this tree.
_AS_NOBODY = f"""
import os, sys
import jobmon.cli.main, jobmon.cli.query
import jobmon.cli.control, jobmon.cli.explain, jobmon.cli.listen, jobmon.cli.local
import jobmon.cli.reload, jobmon.cli.formatting, jobmon.cli.commands, jobmon.cli.wait
import jobmon.client, jobmon.config
import jobmon.linux.daemon.main
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
sys.exit(jobmon.cli.main.main(sys.argv[1:]))
"""


def as_nobody(*words: str) -> list[str]:
    """The command that is `jobmon WORDS` of the user nobody."""
    return [sys.executable, "-c", _AS_NOBODY, *words]


def free_ports(count: int) -> list[int]:
    """TCP ports that nobody uses at this moment."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def crash(one: kit.Daemon) -> None:
    """Kill a daemon, which has no job running, by SIGKILL, and tidy up what it could not."""
    one.process.kill()
    one.wait()
    for name in ("control", "event"):
        os.unlink(one.path(name))
        os.unlink(one.path(f"{name}.lock"))
    remove_cgroup(one.log)


def remove_cgroup(log: str) -> None:
    """Remove what a killed daemon, whose log (INFO) this is, had made for the cgroups of its jobs."""
    cgroup = re.search(r'a cgroup of its own below="(.*)"', log)
    if cgroup is not None:
        for path, _, _ in os.walk(cgroup[1], topdown=False):
            os.rmdir(path)


class Relay:
    """Both ports of a daemon once more, in a directory of its own. Closed with the daemon."""

    def __init__(self, daemon: kit.Daemon) -> None:
        self._daemon = daemon
        self._directory = tempfile.mkdtemp(prefix="relay-", dir="/tmp")
        self._listeners = [_listen(f"{self._directory}/{port}") for port in ("control", "event")]
        self.environ = {
            **daemon.environ,
            "JOBMON_PORT": ",".join(one.getsockname() for one in self._listeners),
        }
        self._links: list[Link] = []
        daemon._clients.append(self)

    def start_cli(self, *arguments: str, **options: Any) -> Link:
        """Start `jobmon ARGUMENTS`; returns when it is connected, through here, to the daemon."""
        process = self._daemon.start_cli(*arguments, env=self.environ, **options)
        assert process.stderr is not None
        ports = {listener.fileno(): listener for listener in self._listeners}
        ready, _, _ = select.select([*ports, process.stderr.fileno()], [], [], kit.DEADLINE)
        assert ready, f"jobmon {arguments} did not connect"
        assert ready[0] in ports, f"it ended: {process.communicate()}"
        client, _ = ports[ready[0]].accept()
        is_control = ports[ready[0]] is self._listeners[0]
        link = Link(process, client, _connect(self._daemon.control if is_control else self._daemon.event))
        self._links.append(link)
        return link

    def destroy(self) -> None:
        """Close everything, and end what still runs."""
        for link in self._links:
            link.destroy()
        for listener in self._listeners:
            listener.close()
        shutil.rmtree(self._directory)


class Link:
    """One client and its connection."""

    def __init__(self, process: subprocess.Popen[str], client: socket.socket, daemon: socket.socket) -> None:
        self.process = process
        self._client = client
        self._daemon = daemon

    def heard(self) -> None:
        """Pass the client's next request on; returns when the daemon has acted on it."""
        assert kit.readable(self._client.fileno()), "the client says nothing"
        connection = Connection(CLIENT)
        self._daemon.sendall(self._client.recv(1 << 20) + connection.send(Request(_PROBE, "info")))
        while True:
            assert kit.readable(self._daemon.fileno()), "the daemon says nothing"
            data = self._daemon.recv(1 << 20)
            messages = connection.receive(data)
            if any(isinstance(one, ReplyMessage) and one.id == _PROBE for one in messages):
                assert len(messages) == 1, f"it has its answer already: {messages}"
                return

    def heard_subscription(self) -> None:
        """Pass a subscription on, and the snapshot back: events are after it from now on."""
        for source, target in ((self._client, self._daemon), (self._daemon, self._client)):
            assert kit.readable(source.fileno()), "nothing was said"
            assert _pass_on(source.fileno(), target)

    def answered(self) -> bool:
        """Whether the daemon has said anything that was not passed on yet."""
        return kit.readable(self._daemon.fileno(), 0)

    def carry(self) -> None:
        """Pass everything on until one side has closed."""
        ways = {self._client.fileno(): self._daemon, self._daemon.fileno(): self._client}
        while True:
            ready, _, _ = select.select([*ways], [], [], kit.DEADLINE)
            assert ready, "nothing came, neither from the client nor from the daemon"
            if not all(_pass_on(fd, ways[fd]) for fd in ready):
                return

    def end(self) -> kit.Done:
        """Pass everything on until the client has ended; how it did."""
        self.carry()
        self._daemon.close()
        self._client.close()
        out, err = self.process.communicate(timeout=kit.DEADLINE)
        return kit.Done(self.process.returncode, out or "", err or "")

    def destroy(self) -> None:
        """Close it, and end the client if it still runs."""
        self._daemon.close()
        self._client.close()
        if self.process.poll() is None:
            self.process.kill()
        with self.process:
            pass


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    return listener


def _connect(port: int | str) -> socket.socket:
    if isinstance(port, int):
        return socket.create_connection(("127.0.0.1", port))
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(port)
    return connection


def _pass_on(source: int, target: socket.socket) -> bool:
    try:
        data = os.read(source, 1 << 20)
        target.sendall(data)
    except OSError:
        return False
    return bool(data)
