"""The verbs daemon and check, through the real program: how a daemon comes to be, or says why not."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid

import e2e
import kit
import pytest

import jobmon

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

WEB = {"command": kit.FOR_EVER, "autostart": True}

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")


class Place:
    """A directory with `jobmon` on its PATH, for daemons in the background. Nothing may be left of them."""

    def __init__(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="jobmon-", dir="/tmp")
        self.mark = f"JOBMON_TEST={uuid.uuid4().hex}"
        commands = self.path("bin")
        os.mkdir(commands)
        with open(f"{commands}/jobmon", "w", encoding="utf-8") as file:
            file.write(f'#!/bin/sh\nexec {sys.executable} -m jobmon "$@"\n')
        os.chmod(f"{commands}/jobmon", 0o755)
        self.environ = {
            **os.environ,
            "PATH": f"{commands}:{os.environ.get('PATH', os.defpath)}",
            "PYTHONPATH": kit.SOURCES,
            "JOBMON_TEST": self.mark.partition("=")[2],
        }
        self.environ.pop("JOBMON_PORT", None)

    def path(self, name: str) -> str:
        """A path in it."""
        return os.path.join(self.directory, name)

    def config(self, jobs: dict[str, Any] | None = None, name: str = "jobmon.json", **supervisor: Any) -> str:
        """Write a configuration; its sockets are `control` and `event` unless told otherwise."""
        ports = {"control-port": "control", "event-port": "event"}
        supervisor = {**ports, **{key.replace("_", "-"): value for key, value in supervisor.items()}}
        with open(self.path(name), "w", encoding="utf-8") as file:
            json.dump({"supervisor": supervisor, "jobs": jobs or {}}, file)
        return self.path(name)

    def write(self, text: bytes, name: str = "jobmon.json") -> str:
        """Write a file of any content."""
        with open(self.path(name), "wb") as file:
            file.write(text)
        return self.path(name)

    def run(self, *words: str, **options: Any) -> tuple[int, str, str]:
        """Run a command to its end. It must not leave a traceback, whatever it is."""
        done = subprocess.run(
            words,
            **{"cwd": self.directory, "env": self.environ, "stdin": subprocess.DEVNULL, **options},
            capture_output=True,
            text=True,
            timeout=kit.DEADLINE,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    def shell(self, script: str, shell: str = "bash", **options: Any) -> tuple[int, str, str]:
        """Run a script."""
        return self.run(shell, "-c", script, **options)

    def living(self) -> dict[int, str]:
        """What lives of all that was started here."""
        return kit.marked(self.mark)

    def lasting(self) -> dict[int, str]:
        """What lives and is not just about to end: who has told of its failure may take a moment to go."""
        for pid in self.living():
            try:
                kit.wait_gone(pid, 2.0)
            except AssertionError:
                continue
        return {pid: name for pid, name in self.living().items() if "(Z)" not in name}

    def end(self) -> dict[int, str]:
        """Remove everything; returns what still lived, and should not have."""
        left = self.lasting()
        while orphans := self.living():
            for pid in orphans:
                kit.end_orphan(pid)
        shutil.rmtree(self.directory)
        return left


@pytest.fixture
def place() -> Iterator[Place]:
    """A place for daemons, empty of processes when the test is over."""
    kit.adopt_orphans(True)
    one = Place()
    yield one
    left = one.end()
    reap()
    kit.adopt_orphans(False)
    assert not left


def reap() -> None:
    """Daemons in the background have become children of ours; they are dead by now."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def daemon_pid(control: int | str) -> int:
    """The pid of the daemon that answers there."""
    with jobmon.CommandPipe(control) as pipe:
        pid: int = pipe.info()["pid"]
        return pid


def terminate(control: int | str) -> None:
    """End a daemon in order, and wait until it is gone."""
    with jobmon.CommandPipe(control) as pipe:
        pipe.terminate(wait=True)


# ---- export JOBMON_PORT=$(jobmon daemon CONFIG) -------------------------------------------------

TOUR = """
export JOBMON_PORT=$(jobmon daemon jobmon.json)
echo "$JOBMON_PORT"
jobmon list-jobs
jobmon start db
jobmon status db >/dev/null
jobmon terminate
echo over
"""


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize("strict", ["", "set -e", "set -euo pipefail"])
def test_the_documented_line(place: Place, shell: str, strict: str) -> None:
    """`export JOBMON_PORT=$(jobmon daemon CONFIG)` returns with a daemon that the next commands find."""
    place.config({"web": WEB, "db": {"command": kit.FOR_EVER}})
    strict = strict if shell == "bash" else strict.replace("set -euo pipefail", "set -eu")

    assert place.shell(strict + TOUR, shell) == (
        0,
        f"{place.path('control')},{place.path('event')}\nRUNNING web\nSTOPPED db\nover\n",
        "",
    )


def test_it_announces_itself_when_all_is_launched(place: Place) -> None:
    """When the command returns, both ports listen and every autostart job has its process."""
    config = place.config({f"job {i}": WEB for i in range(20)})

    code, out, err = place.run("jobmon", "daemon", config)
    assert (code, out, err) == (0, f"{place.path('control')},{place.path('event')}\n", "")
    with jobmon.CommandPipe(place.path("control")) as pipe:
        assert set(pipe.list_jobs().values()) == {True}
    jobmon.EventStream(place.path("event")).destroy()
    terminate(place.path("control"))


def test_a_job_that_cannot_start_is_that_jobs_failure(place: Place) -> None:
    """The daemon comes up all the same."""
    config = place.config({"no": {"command": ["/no"], "autostart": True}, "web": WEB})

    assert place.run("jobmon", "daemon", config)[0] == 0
    with jobmon.CommandPipe(place.path("control")) as pipe:
        assert pipe.list_jobs() == {"no": False, "web": True}
        assert pipe.status("no")[0].state == "failed"
    terminate(place.path("control"))


@pytest.mark.parametrize(
    ("control", "event"),
    [("tcp", "tcp"), ("tcp", "unix"), ("unix", "tcp"), ("relative", "absolute"), ("a b", "a $HOME b")],
    ids=str,
)
def test_every_kind_of_address(place: Place, control: str, event: str) -> None:
    """TCP ports and relative or absolute paths, in any mixture: what is printed is found from anywhere."""
    ports = iter(e2e.free_ports(2))
    paths = {"relative": "sub/../r", "absolute": place.path("x"), "a $HOME b": "a $$HOME b"}
    control_port, event_port = (
        next(ports) if kind == "tcp" else paths.get(kind, kind) for kind in (control, event)
    )
    os.mkdir(place.path("sub"))
    place.config({"web": WEB}, control_port=control_port, event_port=event_port)
    code, told, err = place.run("jobmon", "daemon", "jobmon.json")
    assert (code, err) == (0, "")
    assert all(part.isdigit() or part.startswith("/") for part in told.strip().split(","))
    environ = {**place.environ, "JOBMON_PORT": told.strip()}

    assert place.run("jobmon", "list-jobs", env=environ, cwd="/") == (0, "RUNNING web\n", "")
    listened = place.run("jobmon", "listen", "1", "--since", "0", env=environ, cwd="/")
    assert listened == (0, "RUNNING web\n", "")
    assert place.run("jobmon", "terminate", env=environ, cwd="/") == (0, "", "")
    assert place.living() == {}


def test_it_keeps_nothing_of_the_caller(place: Place) -> None:
    """Own session, no terminal, root-proof streams, and of the caller's the umask and no descriptor."""
    config = place.config({"web": WEB}, log_file="log")
    reader, writer = os.pipe()
    high = os.dup2(writer, 200)
    code, _, _ = place.run("jobmon", "daemon", config, pass_fds=(writer, high), umask=0o077)
    os.close(writer)
    os.close(high)

    assert code == 0
    assert kit.readable(reader, 0)  # at its end: nobody holds the other one
    assert os.read(reader, 1) == b""
    os.close(reader)
    pid = daemon_pid(place.path("control"))
    mine = kit.processes()[pid]
    assert mine.session not in (pid, os.getsid(0))  # a session's leader could get a terminal
    assert kit.status_of(pid)["Umask"] == "0077"
    assert os.readlink(f"/proc/{pid}/cwd") == place.directory
    fds = kit.fds_of(pid)
    assert (fds[0], fds[1], fds[2]) == ("/dev/null", "/dev/null", place.path("log"))
    assert not any(name.startswith("pipe:") for name in fds.values())
    terminate(place.path("control"))


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_it_starts_with_closed_streams(place: Place, closed: str) -> None:
    """A caller without standard streams gets a daemon that works."""
    place.config({"web": {**WEB, "stdout": "out", "command": "echo hello; exec sleep 1000000"}})
    code, _, _ = place.shell(f"jobmon daemon jobmon.json {closed}")

    assert code == 0
    with jobmon.CommandPipe(place.path("control")) as pipe:
        assert pipe.list_jobs() == {"web": True}
        fds = kit.fds_of(kit.settled(pipe.pid("web") or 0))
        assert fds == {0: "/dev/null", 1: place.path("out"), 2: "/dev/null"}
    terminate(place.path("control"))


def test_the_background_can_be_told_and_the_foreground_too(place: Place) -> None:
    """Under $NOTIFY_SOCKET it stays in the foreground, unless --background; -f says so always."""
    config = place.config()
    environ = {**place.environ, "NOTIFY_SOCKET": "@jobmon-test-nobody-reads"}

    assert place.run("jobmon", "daemon", "--background", config, env=environ)[0] == 0
    terminate(place.path("control"))
    for words in (["-f"], ["--foreground"]):
        process = subprocess.Popen(
            ["jobmon", "daemon", *words, config],
            cwd=place.directory,
            env=place.environ,
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == f"{place.path('control')},{place.path('event')}\n"
            assert daemon_pid(place.path("control")) == process.pid
            process.terminate()
            assert process.wait(kit.DEADLINE) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(place: Place, number: signal.Signals) -> None:
    """SIGTERM and SIGINT stop the jobs; then the last event is sent, and the sockets are removed."""
    config = place.config({"web": WEB})
    place.run("jobmon", "daemon", config)
    pid = daemon_pid(place.path("control"))
    with jobmon.EventStream(place.path("event")) as events:
        os.kill(pid, number)
        told = [event for event in events if isinstance(event, jobmon.Event07)]
    assert told == [jobmon.Event07("web", 1), jobmon.Event07("", 3)]
    kit.wait_gone(pid)
    assert sorted(os.listdir(place.directory)) == ["bin", "jobmon.json"]


def test_a_signal_while_it_begins(place: Place) -> None:
    """From its first socket on it can be ended in order: exit code 0, and no socket file stays."""
    words = ["jobmon", "daemon", "-f", place.config({"web": WEB})]
    with subprocess.Popen(words, cwd=place.directory, env=place.environ, stdout=subprocess.PIPE) as process:
        while not os.path.exists(place.path("control")) and process.poll() is None:
            pass  # any way to wait for a file that is kinder would also be later
        process.terminate()

        assert process.wait(kit.DEADLINE) == 0
    assert sorted(os.listdir(place.directory)) == ["bin", "jobmon.json"]


# ---- it says why not ----------------------------------------------------------------------------


def test_a_second_daemon_says_who_is_there(place: Place) -> None:
    """Whoever holds the socket or the port is named; the second one leaves with 1 and takes nothing down."""
    port, event = e2e.free_ports(2)
    for name, control in (("unix", "control"), ("tcp", port)):
        config = place.config({"web": WEB}, name, control_port=control, event_port=event)
        place.run("jobmon", "daemon", config)
        where = control if isinstance(control, int) else place.path(control)
        pid = daemon_pid(where)

        code, out, err = place.run("jobmon", "daemon", config)
        assert (code, out) == (1, "")
        assert f"pid {pid}" in err
        assert str(control) in err
        assert daemon_pid(where) == pid
        terminate(where)


def test_a_stale_socket_is_replaced(place: Place) -> None:
    """After a daemon was killed, the next one of the same configuration just starts."""
    config = place.config(log_file="log", log_level="INFO")
    place.run("jobmon", "daemon", config)
    first = daemon_pid(place.path("control"))
    os.kill(first, signal.SIGKILL)
    kit.wait_gone(first)
    with open(place.path("log"), encoding="utf-8") as log:
        e2e.remove_cgroup(log.read())

    assert place.run("jobmon", "daemon", config)[0] == 0
    assert daemon_pid(place.path("control")) != first
    terminate(place.path("control"))


@pytest.mark.parametrize(
    ("supervisor", "says"),
    [
        ({"working_dir": "/no/such"}, "working-dir /no/such: No such file or directory"),
        ({"log_file": "/no/such/log"}, "log-file /no/such/log: No such file or directory"),
        ({"log_file": "/tmp"}, "log-file /tmp: Is a directory"),
        ({"control_port": "/no/such/socket"}, "cannot listen on /no/such/socket: "),
        ({"control_port": "jobmon.json"}, "something is there that is not a socket"),
        ({"allow_users": ["nobody-of-that-name"]}, "nobody-of-that-name"),
    ],
    ids=str,
)
def test_what_cannot_be_is_said_at_once(place: Place, supervisor: dict[str, Any], says: str) -> None:
    """The reason is on standard error, the exit code is 1, nothing on standard output, nothing left."""
    config = place.config({"web": WEB}, **supervisor)
    before = sorted(os.listdir(place.directory))
    code, out, err = place.run("jobmon", "daemon", config)

    assert (code, out) == (1, "")
    assert err.startswith("jobmon: ")
    assert says in err
    assert place.lasting() == {}
    assert sorted(os.listdir(place.directory)) == before


STRANGE = {
    "empty": b"",
    "nul": b"\0" * 5000,
    "comments": b"{\n" + b"# none of this is JSON\n" * 5000 + b"}",
    "latin-1": '{"jobs":{"é":1}}'.encode("latin-1"),
    "utf-16": '{"jobs":{}}'.encode("utf-16"),
    "bom": b"\xef\xbb\xbf{}x",
    "list": b"[]",
    "number": b"17",
    "deep": b"[" * 100_000,
    "deep jobs": b'{"jobs":{"a":' + b"[" * 100_000,
    "huge number": b'{"supervisor":{"control-port":' + b"9" * 5000 + b"}}",
    "nan": b'{"jobs":{"a":{"command":"x","kill-timeout":NaN}}}',
    "surrogate": b'{"jobs":{"\\ud800":{"command":"x"}}}',
    "nul in a name": b'{"jobs":{"a\\u0000b":{"command":"x"}}}',
    "nul in a command": b'{"jobs":{"a":{"command":"a\\u0000b"}}}',
    "wrong types": b'{"supervisor":[],"jobs":{"a":{"command":{}},"b":null,"c":{"command":[1]}}}',
    "an empty argv": b'{"jobs":{"a":{"command":[]}}}',
    "unset": b'{"supervisor":{"log-file":"$NO_SUCH_VARIABLE_HERE"}}',
    "long path": b'{"supervisor":{"control-port":"' + b"x" * 200 + b'"}}',
    "comma": b'{"supervisor":{"control-port":"a,b"}}',
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_configuration_that_makes_no_sense(place: Place, kind: str) -> None:
    """Both check and daemon say the same, with file, line and column, end with 1, and nothing happens."""
    path = place.write(STRANGE[kind])
    checked = place.run("jobmon", "check", path)
    started = place.run("jobmon", "daemon", path)

    assert checked[:2] == started[:2] == (1, "")
    assert re.match(rf"{re.escape(path)}:\d+:\d+: ", checked[2])
    assert started[2].replace("jobmon: ", "") == checked[2]


def test_files_that_cannot_be_read(place: Place) -> None:
    """A directory, a file that is not there and one below a file are told in words."""
    place.write(b"{}")
    for path, says in (
        (place.directory, "is a directory; the files in it are"),
        (place.path("none.json"), "No such file or directory"),
        (place.path("jobmon.json/x"), "Not a directory"),
        ("", "No such file or directory"),
        ("x" * 5000, "File name too long"),
        ("/dev/zero", "it has more than 16 MiB"),
    ):
        for verb in ("check", "daemon"):
            code, out, err = place.run("jobmon", verb, path)
            assert (code, out) == (1, ""), path
            assert says in err


@pytest.mark.parametrize("verb", ["check", "daemon"])
def test_a_directory_that_is_gone(place: Place, verb: str) -> None:
    """Who stands in a directory that has been removed is told so, and not that some file is missing."""
    config = place.config()
    code, out, err = place.shell(f"mkdir gone && cd gone && rmdir ../gone && jobmon {verb} {config}")

    assert (code, out) == (1, "")
    *_, last = err.splitlines()  # the shell has something to say before
    assert last == "jobmon: the current directory: No such file or directory: go to one that exists"


@as_root
@pytest.mark.parametrize("verb", ["check", "daemon"])
def test_a_file_that_one_may_not_read(place: Place, verb: str) -> None:
    """A configuration of another user, or in a directory of another, is told in words."""
    config = place.config()
    os.chmod(config, 0o600)
    for mode in (0o755, 0o700):
        os.chmod(place.directory, mode)
        code, out, err = place.run(*e2e.as_nobody(verb, config), cwd="/")

        assert (code, out) == (1, "")
        assert "Permission denied" in err


# ---- check --------------------------------------------------------------------------------------


def test_check_of_what_is_fine(place: Place) -> None:
    """It says so on standard output, and how many jobs there are."""
    config = place.config({"web": WEB, "db": WEB})

    assert place.run("jobmon", "check", config) == (0, f"{config}: ok, 2 jobs\n", "")
    assert place.run("jobmon", "check", "jobmon.json") == (0, "jobmon.json: ok, 2 jobs\n", "")


def test_check_lists_all_mistakes_at_once(place: Place) -> None:
    """Each with its place, what is wrong and what would be right; nothing is started."""
    place.write(
        b'{"supervisor": {"control-port": 0},\n "jobs": {"web": {"comand": "x",\n  "signal": "TERM"}}}\n'
    )
    code, out, err = place.run("jobmon", "check", "jobmon.json")

    assert (code, out) == (1, "")
    lines = err.splitlines()
    assert [line.split(" ")[0] for line in lines] == [
        "jobmon.json:1:33:",
        "jobmon.json:2:11:",
        "jobmon.json:2:19:",
        "jobmon.json:3:13:",
    ]
    assert "comand" in err
    assert "did you mean" in err


def test_check_prints_the_schema(place: Place) -> None:
    """`check --schema` needs no configuration and prints JSON."""
    code, out, err = place.run("jobmon", "check", "--schema")

    assert (code, err) == (0, "")
    schema = json.loads(out)
    assert "jobs" in schema["properties"]
