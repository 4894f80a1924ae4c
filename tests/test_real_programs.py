"""Programs that nobody here wrote: redis and nginx, as Debian has them, supervised through their lives.

They start and answer, are killed and come back, and end by their own stop signal with what they do then
done. `.ci/run` installs them; where they are missing these tests are skipped, but in CI they fail.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket

import e2e
import kit
import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Make = Callable[..., kit.Daemon]

pytestmark = pytest.mark.slow

PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def program(name: str, package: str) -> str:
    """Where it is. Without it a test is skipped, in CI it fails."""
    found = shutil.which(name, path=PATH)
    if found is None:
        missing = f"{name} is not installed: apt-get install {package}"
        assert os.environ.get("CI") != "true", missing
        pytest.skip(missing)
    return found


def wait_line(log: kit.Lines, what: str) -> str:
    """The next line of a log that has `what`."""
    while what not in (line := log.line()):
        assert line or not log.ended, f"{what!r} did not come: {log.text}"
    return line


def exchange(port: int, request: bytes) -> bytes:
    """What a server on this machine answers to a request, until it closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=kit.DEADLINE) as connection:
        connection.sendall(request)
        answer = b""
        while more := connection.recv(1 << 16):
            answer += more
        return answer


def listeners(port: int) -> bool:
    """Whether anybody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# ---- redis --------------------------------------------------------------------------------------


class Redis:
    """A redis-server under supervision."""

    def __init__(self, daemon: Make) -> None:
        (self.port,) = e2e.free_ports(1)
        command = [program("redis-server", "redis-server"), "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--save", "3600 1", "--dir", "."]  # save what has changed: each hour, and when it ends
        job = {"command": command, "working-dir": "data", "stdout": "told", "restart": True}
        self.daemon = daemon({"jobs": {"redis": job}})
        os.mkdir(self.daemon.path("data"))
        self.told = self.daemon.fifo("told")
        self.dump = self.daemon.path("data/dump.rdb")

    def ready(self) -> None:
        """Wait until it says that it serves."""
        wait_line(self.told, "eady to accept connections")

    def ask(self, *commands: str) -> list[str]:
        """The lines that it answers to these commands."""
        request = "".join(f"{command}\r\n" for command in (*commands, "QUIT")).encode()
        return exchange(self.port, request).decode().split("\r\n")[:-2]


@pytest.fixture
def redis(daemon: Make) -> Redis:
    """A redis that serves."""
    one = Redis(daemon)
    assert one.daemon.run_cli("start", "redis").code == 0
    one.ready()
    return one


def test_redis_serves_and_comes_back(redis: Redis) -> None:
    """Killed by SIGKILL it is started again at once: another process, on the same port, empty."""
    one, watch = redis.daemon, redis.daemon.watch()
    assert redis.ask("PING", "SET bee honey", "GET bee") == ["+PONG", "+OK", "$5", "honey"]
    before = one.pipe().pid("redis") or 0

    os.kill(before, signal.SIGKILL)
    assert watch.until("redis", "died").cause == "SIGKILL"
    after = watch.until("redis", "running").pid
    redis.ready()

    assert redis.ask("PING", "GET bee") == ["+PONG", "$-1"]  # nothing was saved: SIGKILL leaves no time
    assert after not in (before, None)
    assert one.run_cli("list-jobs").out == "RUNNING redis\n"


def test_redis_saves_when_it_is_stopped(redis: Redis) -> None:
    """SIGTERM gives it the time to write its dump; started again it has everything."""
    one = redis.daemon
    assert redis.ask("SET bee honey") == ["+OK"]
    assert not os.path.exists(redis.dump)

    assert one.run_cli("stop", "redis").code == 0
    assert os.path.exists(redis.dump)  # at once: stop returns when nothing is left of it
    assert not listeners(redis.port)
    assert one.pipe().status("redis")[0].result == "exit 0"
    assert one.run_cli("start", "redis").code == 0
    redis.ready()
    assert redis.ask("GET bee") == ["$5", "honey"]


def test_redis_saves_when_the_daemon_ends(redis: Redis) -> None:
    """SIGTERM to the daemon is patient with its jobs: it ends when the dump is written."""
    assert redis.ask("SET bee honey") == ["+OK"]

    assert redis.daemon.stop() == 0
    assert os.path.exists(redis.dump)
    assert not listeners(redis.port)


# ---- nginx --------------------------------------------------------------------------------------

NGINX = """
pid nginx.pid;
error_log stderr notice;
worker_processes {workers};
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
    server {{
        listen 127.0.0.1:{port};
        location / {{ return 200 "{text}"; }}
    }}
}}
"""


BY_NAME = """
pid nginx.pid;
error_log stderr notice;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
    server {{ listen 127.0.0.1:{port} default_server; return 444; }}
    server {{ listen 127.0.0.1:{port}; server_name localhost; location = /health {{ return 200 "up"; }} }}
}}
"""


def test_a_server_that_goes_by_the_host(daemon: Make) -> None:
    """An nginx that answers to a name only is found ready by a URL with that name, and by its address not."""
    (port,) = e2e.free_ports(1)
    command = [
        program("nginx", "nginx-light"),
        "-p",
        ".",
        "-c",
        "nginx.conf",
        "-e",
        "stderr",
        "-g",
        "daemon off;",
    ]
    job = {"command": command, "signal": "SIGQUIT", "start-timeout": 1}
    ready = {"interval": 0.05}
    one = daemon(
        {
            "jobs": {
                "address": {**job, "ready": {"http": f"http://127.0.0.1:{port}/health", **ready}},
                "name": {
                    **job,
                    "ready": {"http": f"http://localhost:{port}/health", **ready},
                    "start-timeout": 20,
                },
            }
        }
    )
    with open(one.path("nginx.conf"), "w", encoding="utf-8") as file:
        file.write(BY_NAME.format(port=port))

    failed = one.run_cli("start", "address")
    assert failed.code == 1
    assert one.run_cli("start", "name").code == 0
    assert one.run_cli("stop", "name").code == 0


class Nginx:
    """An nginx under supervision, in the foreground."""

    def __init__(self, daemon: Make, workers: int = 2) -> None:
        self.workers = workers
        (self.port,) = e2e.free_ports(1)
        command = [program("nginx", "nginx-light"), "-p", ".", "-c", "nginx.conf", "-e", "stderr"]
        command += ["-g", "daemon off;"]
        job: dict[str, Any] = {"command": command, "signal": "SIGQUIT", "stderr": "told", "restart": True}
        self.daemon = daemon({"jobs": {"nginx": job}})
        self.told = self.daemon.fifo("told")
        self.pid_file = self.daemon.path("nginx.pid")
        self.configure("hello")

    def configure(self, text: str) -> None:
        """Write its configuration: it answers everything with `text`."""
        with open(self.daemon.path("nginx.conf"), "w", encoding="utf-8") as file:
            file.write(NGINX.format(port=self.port, workers=self.workers, text=text))

    def ready(self) -> None:
        """Wait until its workers are there."""
        for _ in range(self.workers):
            wait_line(self.told, "start worker process ")

    def fetch(self) -> str:
        """The page that it serves."""
        answer = exchange(self.port, b"GET / HTTP/1.0\r\n\r\n").decode()
        assert answer.startswith("HTTP/1.1 200 OK\r\n"), answer
        return answer.partition("\r\n\r\n")[2]

    def processes(self) -> set[int]:
        """Master and workers."""
        return kit.descendants_of(self.daemon.pid)


@pytest.fixture
def nginx(daemon: Make) -> Nginx:
    """An nginx that serves."""
    one = Nginx(daemon)
    assert one.daemon.run_cli("start", "nginx").code == 0
    one.ready()
    return one


def test_nginx_serves_and_comes_back_whole(nginx: Nginx) -> None:
    """When only the master is killed, its workers are brought down before there is another: never two."""
    one, watch = nginx.daemon, nginx.daemon.watch()
    assert nginx.fetch() == "hello"
    master = one.pipe().pid("nginx") or 0
    before = nginx.processes()
    assert len(before) == 3

    os.kill(master, signal.SIGKILL)
    watch.until("nginx", "running")
    told = [(event.event, event.state, event.cause) for event in watch.seen]
    nginx.ready()

    assert told == [
        ("state", "stopping", "SIGKILL"),  # the workers, which get the stop signal
        ("died", "backoff", "SIGKILL"),
        ("restarting", "starting", "restart"),
        ("launched", "starting", "restart"),
        ("state", "running", "launched"),
    ]
    after = nginx.processes()
    assert not before & after
    assert len(after) == 3
    assert nginx.fetch() == "hello"


def test_nginx_reloads_on_a_signal(nginx: Nginx) -> None:
    """`jobmon signal HUP` reaches the master: new workers, new answers, the same run."""
    one = nginx.daemon
    master, workers = one.pipe().pid("nginx"), nginx.processes()
    nginx.configure("good evening")

    assert one.run_cli("signal", "HUP", "nginx").code == 0
    for _ in range(2):
        wait_line(nginx.told, " exited with code 0")
    assert nginx.fetch() == "good evening"
    assert nginx.processes() & workers == {master}
    assert one.pipe().status("nginx")[0].run == 1


def test_nginx_tidies_up_when_it_is_stopped(nginx: Nginx) -> None:
    """SIGQUIT is its graceful end: its pid file is gone, nobody listens, and none of its processes lives."""
    one = nginx.daemon
    assert os.path.exists(nginx.pid_file)

    assert one.run_cli("stop", "nginx").code == 0
    assert not os.path.exists(nginx.pid_file)
    assert not listeners(nginx.port)
    assert nginx.processes() == set()
    assert one.pipe().status("nginx")[0].result == "exit 0"


def test_nginx_finishes_what_it_serves(daemon: Make) -> None:
    """A stop waits for the answer that a worker still owes, and only then is the job stopped."""
    nginx = Nginx(daemon, workers=1)
    one, watch = nginx.daemon, nginx.daemon.watch()
    one.pipe().start("nginx")
    nginx.ready()
    with socket.create_connection(("127.0.0.1", nginx.port), timeout=kit.DEADLINE) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n")  # half a request
        nginx.fetch()  # the worker has answered who came later, so it has read this half
        one.pipe().stop("nginx", wait=False)
        watch.until("nginx", "stopping")
        wait_line(nginx.told, "gracefully shutting down")
        connection.sendall(b"\r\n")
        answer = b""
        while more := connection.recv(1 << 16):
            answer += more

    assert watch.until("nginx", "died").cause == "exit 0"
    assert answer.endswith(b"\r\n\r\nhello")
