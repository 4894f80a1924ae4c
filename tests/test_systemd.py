"""At home under systemd: the installed daemon and the shipped units under a real user manager.

Each test starts a manager of its own, with nothing of the machine's in it (usermanager.py). No journal
runs there: what the journal would get is tested on a socket of our own in test_notify.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys

import pytest
from kit import DEADLINE, Done, readable, wait_gone
from test_packaging import BUILDERS, build_wheel, copy_project, install, links_to, run
from usermanager import Manager, Unable

from jobmon.client import CommandPipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from kit import Fifo

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
UNITS = os.path.join(TOP, "contrib", "systemd")
SHIPPED = "/opt/jobmon/bin/jobmon"  # where the units expect the command
UNIT = "jobmon.service"

pytestmark = pytest.mark.slow


# ---- what they share --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`jobmon` as its wheel installs it."""
    place = tmp_path_factory.mktemp("installed")
    builders = links_to(tmp_path_factory.mktemp("builders"), *BUILDERS)
    wheel = build_wheel(copy_project(place / "project"), builders)
    venv = place / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=place)
    install(venv, builders, place, wheel)
    (packages,) = venv.glob("lib/*/site-packages")
    (place / "links").mkdir()
    # Copied: where /tmp is confined, a link would lead nowhere.
    shutil.copytree(
        links_to(place / "links", "prctl", "_prctl", "python_prctl"), packages, dirs_exist_ok=True
    )
    return str(venv / "bin" / "jobmon")


@pytest.fixture
def manager() -> Iterator[Manager]:
    """A user manager. Where none can run: a failure on a machine that is there to test, else a skip."""
    try:
        made = Manager()
    except Unable as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"no user manager can run here: {error}")
        pytest.skip(f"no user manager can run here: {error}")
    try:
        yield made
        left = [pid for pid in made.processes() if made.process is None or pid != made.process.pid]
        stopped = made.show(UNIT, "ActiveState") != "active"
        assert not (stopped and left), f"left behind: {left}"
    finally:
        made.close()


class Admin:
    """Who installs and uses the user unit, with a few lines more in a drop-in: where the command is, and
    what of the unit's life goes to the FIFO `told`."""

    def __init__(self, manager: Manager, command: str) -> None:
        self.manager = manager
        self.command = command
        self.told: Fifo = manager.fifo("told")
        self.log = manager.path("jobmon.log")
        self.environ = manager.environ | {
            "JOBMON_PORT": ",".join(manager.path("run", "jobmon", name) for name in ("control", "event"))
        }

    def install(self, jobs: dict[str, Any], service: str = "", **supervisor: Any) -> None:
        """Write the configuration and link the unit. `service`: more lines of the drop-in."""
        self.configure(jobs, **supervisor)
        self.manager.unit(f"{UNIT}.d/test.conf", self.drop_in(service))
        self.manager.ctl("link", os.path.join(UNITS, "user", UNIT))

    def configure(self, jobs: dict[str, Any], **supervisor: Any) -> None:
        """Write the configuration."""
        runtime = "$XDG_RUNTIME_DIR/jobmon"
        ports = {"control-port": f"{runtime}/control", "event-port": f"{runtime}/event"}
        settings = {**ports, "log-file": self.log, "log-level": "INFO", **supervisor}
        with open(self.manager.path("config", "jobmon.json"), "w", encoding="utf-8") as file:
            json.dump({"supervisor": settings, "jobs": jobs}, file)

    def drop_in(self, service: str) -> str:
        """What a test changes in a unit."""
        reload = settings(os.path.join(UNITS, "user", UNIT))["ExecReload"].replace(SHIPPED, self.command)
        return (
            "[Service]\n"
            f"ExecStart=\nExecStart={self.command} daemon %E/jobmon.json\n"
            f"ExecReload=\nExecReload={reload}\n"
            f"ExecStartPost=/bin/sh -c 'echo up $MAINPID > {self.told.path}'\n"
            "ExecStopPost=/bin/sh -c "
            f"'echo down $SERVICE_RESULT $EXIT_CODE $EXIT_STATUS > {self.told.path}'\n"
            f"{service}\n"
        )

    def says(self, name: str, *, on: str = "TERM", then: str = "kill $!; exit 0") -> str:
        """A command that tells when it is up and when it is told to end."""
        told = self.told.path
        return (
            f"trap 'echo {name} {on} $$ > {told}; {then}' {on}; echo {name} up $$ > {told}; "
            "while :; do sleep 1000000 & wait; done"
        )

    def run(self, *words: str) -> Done:
        """Run `jobmon WORDS`."""
        done = subprocess.run(
            [self.command, *words],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def until(self, what: str) -> str:
        """Wait for a line that begins so; returns what follows on it."""
        while not (line := self.told.line()).startswith(what):
            pass
        return line[len(what) :].strip()

    def logged(self) -> str:
        """The daemon's log."""
        with open(self.log, encoding="utf-8") as file:
            return file.read()


@pytest.fixture
def admin(manager: Manager, command: str) -> Admin:
    """An admin with JobMon installed."""
    return Admin(manager, command)


def cgroup_of(pid: int) -> str:
    """The unified cgroup of a process."""
    with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
        return next(line[3:].strip() for line in file if line.startswith("0::"))


# ---- as installed -----------------------------------------------------------------------------


def test_an_admin_installs_starts_asks_reloads_restarts_and_stops(admin: Admin) -> None:
    """Link, start, status, commands through the socket, reload, restart, stop: each does what it says, the
    jobs are in cgroups below the unit's, and it is the daemon that stops them."""
    manager = admin.manager
    web = {"command": admin.says("web", on="INT"), "signal": "SIGINT", "autostart": True}
    spare = {"command": ["sleep", "1000000"]}
    admin.install({"web": web, "spare": spare})

    manager.ctl("start", UNIT)
    first = int(admin.until("web up"))
    daemon = manager.pid(UNIT)
    assert manager.show(UNIT, "StatusText") == "2 jobs: 1 stopped, 1 running"
    assert 'Status: "2 jobs: 1 stopped, 1 running"' in manager.ctl("status", UNIT)
    assert admin.run("list-jobs").out == "RUNNING web\nSTOPPED spare\n"
    assert admin.run("start", "spare").code == 0
    assert cgroup_of(daemon) == manager.show(UNIT, "ControlGroup")
    assert cgroup_of(first).startswith(f"{cgroup_of(daemon)}/jobmon.")

    admin.configure({"web": web, "added": spare | {"autostart": True}})
    manager.ctl("reload", UNIT)
    assert sorted(admin.run("list-jobs").out.splitlines()) == ["RUNNING added", "RUNNING web"]
    assert (manager.pid(UNIT), admin.run("pid", "web").out) == (daemon, f"{first}\n")

    manager.ctl("restart", UNIT)
    second = int(admin.until("web up"))
    assert manager.pid(UNIT) not in (0, daemon)
    assert second != first
    assert 'by="SIGQUIT from' in admin.logged()

    folder = manager.folder(UNIT)
    manager.ctl("stop", UNIT)
    assert admin.until("web INT") == str(second)
    assert admin.until("down") == "success exited 0"
    assert 'by="SIGTERM from' in admin.logged()
    assert manager.show(UNIT, "Result") == "success"
    assert not os.path.exists(folder)
    assert admin.run("list-jobs").code == 69


def test_a_reload_that_fails_says_why_and_changes_nothing(admin: Admin) -> None:
    """`systemctl reload` fails, the status line has the mistake, and the service goes on with its jobs."""
    manager = admin.manager
    admin.install({"web": {"command": admin.says("web"), "autostart": True}})
    manager.ctl("start", UNIT)
    job = admin.until("web up")
    daemon = manager.pid(UNIT)
    admin.configure({"web": {"comand": "true"}, "new": {"command": "true", "autostart": True}})
    manager.ctl("reload", UNIT, code=1)

    path = manager.path("config", "jobmon.json")
    assert manager.show(UNIT, "StatusText").startswith(f"cannot reload: {path}:1:")
    assert (manager.show(UNIT, "ActiveState"), manager.pid(UNIT)) == ("active", daemon)
    assert admin.run("list-jobs").out == "RUNNING web\n"
    assert admin.run("pid", "web").out.strip() == job
    assert f'error at="{path}:1:' in admin.logged()
    manager.ctl("stop", UNIT)


def test_a_reload_by_signal_is_seen_by_systemd(admin: Admin) -> None:
    """SIGHUP to the daemon: the service is reloading, then active again with the new jobs in its status."""
    manager = admin.manager
    web = {"command": admin.says("web"), "autostart": True}
    admin.install({"web": web})
    manager.ctl("start", UNIT)
    admin.until("web up")
    before = manager.show(UNIT, "StateChangeTimestampMonotonic")
    admin.configure({"web": web, "new": {"command": admin.says("new"), "autostart": True}})
    manager.ctl("kill", "-s", "HUP", "--kill-whom=main", UNIT)
    admin.until("new up")

    assert manager.show(UNIT, "ActiveState") == "active"
    assert manager.show(UNIT, "StateChangeTimestampMonotonic") != before
    assert admin.run("list-jobs").out == "RUNNING web\nRUNNING new\n"
    manager.ctl("stop", UNIT)


def test_what_keeps_a_stop_busy_is_in_the_status(admin: Admin) -> None:
    """A stop that takes longer than TimeoutStopSec, but no longer than the jobs' own patience, is waited
    for; the status names whom for. (Two real seconds: it has to be longer than systemd's.)"""
    manager = admin.manager
    slow = {"command": admin.says("slow", then=":"), "kill-timeout": 2, "autostart": True}
    admin.install({"slow": slow}, "TimeoutStopSec=1")
    manager.ctl("start", UNIT)
    admin.until("slow up")
    with manager.start_ctl("stop", UNIT) as stop:
        admin.until("slow TERM")
        assert manager.show(UNIT, "StatusText") == "1 job: 1 stopping; waiting for slow"
        stop.communicate(timeout=DEADLINE)

    assert stop.returncode == 0
    assert admin.until("down") == "success exited 0"
    assert 'to="killing"' in admin.logged()


def test_a_failed_start_says_why(admin: Admin) -> None:
    """`systemctl status` shows what is wrong with the configuration, and the errno."""
    admin.install({"web": {"comand": "true"}}, "Restart=no")
    admin.manager.ctl("start", UNIT, code=1)

    assert "jobs.web: has no" in admin.manager.show(UNIT, "StatusText")
    assert admin.manager.show(UNIT, "StatusErrno") == "22"
    assert admin.until("down") == "exit-code exited 1"


def test_an_essential_job_that_ends_well_is_a_good_end(admin: Admin) -> None:
    """Even one that is over before anybody could look at it: started, ended, not restarted, no failure."""
    admin.install({"quick": {"command": ["true"], "autostart": True, "essential": True}})
    admin.manager.ctl("start", UNIT)

    assert admin.until("down") == "success exited 0"
    assert admin.manager.show(UNIT, "Result") == "success"


# ---- crash and hang ---------------------------------------------------------------------------


def test_a_killed_daemon_comes_back_and_no_job_runs_twice(admin: Admin) -> None:
    """After SIGKILL the next daemon first stops what the dead one left, politely, then by force where
    patience ends, and only then starts the jobs; its socket works."""
    manager = admin.manager
    jobs = {
        "good": {"command": admin.says("good"), "autostart": True},
        "bad": {"command": admin.says("bad", then=":"), "kill-timeout": 0.2, "autostart": True},
        "free": {"command": ["sleep", "1000000"], "kill-scope": "group", "autostart": True},
    }
    admin.install(jobs)
    manager.ctl("start", UNIT)
    admin.until("up")
    first = {name: int(admin.run("pid", name).out) for name in jobs}

    os.kill(manager.pid(UNIT), signal.SIGKILL)
    assert admin.until("down") == "signal killed KILL"
    told = [admin.told.line() for _ in range(5)]
    assert sorted(told[:2]) == [f"bad TERM {first['bad']}", f"good TERM {first['good']}"]
    assert not alive(first["good"])
    assert not alive(first["bad"])
    assert not alive(first["free"])
    assert [line.split()[0] for line in sorted(told[2:])] == ["bad", "good", "up"]
    assert admin.run("list-jobs").out == "RUNNING good\nRUNNING bad\nRUNNING free\n"
    log = admin.logged()
    assert f'of a previous daemon job="good" signal="SIGTERM" pids="{first["good"]}' in log
    assert 'killing left-over processes of a previous daemon job="bad"' in log
    assert f'of a previous daemon job="free" signal="SIGTERM" pids="{first["free"]}"' in log
    manager.ctl("stop", UNIT)


def test_what_lives_in_the_unit_is_named_when_the_state_is_lost(admin: Admin) -> None:
    """Without its state-dir a daemon knows no run that has no cgroup: it names those in its unit."""
    manager = admin.manager
    admin.install({"free": {"command": ["sleep", "1000000"], "kill-scope": "group", "autostart": True}})
    manager.ctl("start", UNIT)
    admin.until("up")
    free = int(admin.run("pid", "free").out)
    folder = os.path.join(manager.runtime, "jobmon")
    (state,) = [name for name in os.listdir(folder) if os.path.isdir(os.path.join(folder, name))]
    shutil.rmtree(os.path.join(folder, state))

    os.kill(manager.pid(UNIT), signal.SIGKILL)
    assert admin.until("down") == "signal killed KILL"
    admin.until("up")
    assert f'left-over process not stopped job="free" pid={free}' in admin.logged()
    os.kill(free, signal.SIGKILL)
    wait_gone(free)
    manager.ctl("stop", UNIT)


def alive(pid: int) -> bool:
    """Whether a process lives, which may not have been reaped yet."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        return not readable(fd, 0)
    finally:
        os.close(fd)


def test_a_stop_while_the_dead_daemons_jobs_end_ends_them_now(admin: Admin) -> None:
    """A daemon that is told to stop before it began leaves nothing of its predecessor either."""
    manager = admin.manager
    admin.install({"bad": {"command": admin.says("bad", then=":"), "kill-timeout": 1000, "autostart": True}})
    manager.ctl("start", UNIT)
    admin.until("bad up")
    folder = manager.folder(UNIT)
    os.kill(manager.pid(UNIT), signal.SIGKILL)
    admin.until("bad TERM")
    assert manager.show(UNIT, "StatusText") == "stopping left-over processes of a previous daemon: bad"
    manager.ctl("stop", UNIT)

    assert not os.path.exists(folder)
    assert "shutdown requested during start-up" in admin.logged()


def test_a_daemon_that_hangs_is_killed_and_restarted(admin: Admin) -> None:
    """A daemon that is stopped by SIGSTOP says nothing more: systemd ends it and starts the next.
    (Real seconds: the watchdog's.)"""
    manager = admin.manager
    admin.install({"web": {"command": admin.says("web"), "autostart": True}}, "WatchdogSec=1")
    manager.ctl("start", UNIT)
    first = int(admin.until("up"))
    os.kill(first, signal.SIGSTOP)

    assert admin.until("down").startswith("watchdog ")
    assert int(admin.until("up")) != first
    assert admin.run("list-jobs").out == "RUNNING web\n"
    manager.ctl("stop", UNIT)


# ---- sockets ----------------------------------------------------------------------------------


def install_sockets(admin: Admin) -> None:
    """Link the socket units too."""
    for name in ("jobmon.socket", "jobmon-event.socket"):
        admin.manager.ctl("link", os.path.join(UNITS, "user", name))


def test_a_client_starts_the_daemon(admin: Admin) -> None:
    """With jobmon.socket up, the first client brings the service up, and is answered; the event socket
    came with it."""
    manager = admin.manager
    admin.install({"web": {"command": admin.says("web"), "autostart": True}})
    install_sockets(admin)
    manager.ctl("enable", "jobmon.socket")
    manager.ctl("start", "jobmon.socket", "jobmon-event.socket")
    assert manager.show(UNIT, "ActiveState") == "inactive"

    assert admin.run("list-jobs").out == "RUNNING web\n"
    assert admin.run("listen", "--since", "0", "1").out == "RUNNING web\n"
    manager.ctl("stop", "jobmon.socket", UNIT)
    assert os.listdir(manager.path("run", "jobmon")) == []


def test_who_comes_while_the_daemon_restarts_is_served_by_the_next(admin: Admin) -> None:
    """Between two daemons the sockets stay, the very files, through restart and stop; clients wait in them
    and nothing is lost."""
    manager = admin.manager
    gate = manager.fifo("gate")
    admin.install(
        {"web": {"command": ["sleep", "1000000"], "autostart": True}},
        f"ExecStartPre=/bin/sh -c 'echo starting > {admin.told.path}; read x < {gate.path}'",
    )
    install_sockets(admin)
    os.write(gate.fd, b"\n")
    manager.ctl("start", "jobmon.socket", "jobmon-event.socket", UNIT)
    first = admin.until("up")
    files = [os.stat(path) for path in admin.environ["JOBMON_PORT"].split(",")]

    with manager.start_ctl("restart", UNIT) as restart:
        admin.until("down")
        admin.until("starting")
        waiting = [CommandPipe(manager.path("run", "jobmon", "control")) for _ in range(5)]
        for pipe in waiting:
            pipe.reconnect()  # now, while nobody takes it
        listener = subprocess.Popen(
            [admin.command, "listen", "1"], env=admin.environ, stdout=subprocess.PIPE, text=True
        )
        os.write(gate.fd, b"\n")
        assert [pipe.is_running("web") for pipe in waiting] == [True] * 5
        restart.communicate(timeout=DEADLINE)
    assert admin.until("up") != first
    assert admin.run("stop", "web").code == 0
    assert listener.communicate(timeout=DEADLINE)[0] in ("RUNNING web\n", "STOPPED web\n")
    for pipe in waiting:
        pipe.destroy()

    manager.ctl("stop", UNIT)
    os.write(gate.fd, b"\n")
    assert admin.run("list-jobs").out == "RUNNING web\n"
    now = [os.stat(path) for path in admin.environ["JOBMON_PORT"].split(",")]
    assert [(one.st_dev, one.st_ino) for one in files] == [(one.st_dev, one.st_ino) for one in now]
    manager.ctl("stop", "jobmon.socket", UNIT)


def test_tcp_sockets_are_taken_too(admin: Admin) -> None:
    """A socket unit may listen on TCP ports: who connects is judged by the kernel's word there as well."""
    manager = admin.manager
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(str(probe.getsockname()[1]))
    admin.install({"web": {"command": ["sleep", "1000000"], "autostart": True}})
    install_sockets(admin)
    for name, port in zip(("jobmon.socket", "jobmon-event.socket"), ports, strict=True):
        manager.unit(f"{name}.d/tcp.conf", f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{port}\n")
    manager.ctl("daemon-reload")
    manager.ctl("start", "jobmon.socket", "jobmon-event.socket")
    admin.environ["JOBMON_PORT"] = ",".join(ports)

    assert admin.run("list-jobs").out == "RUNNING web\n"
    assert admin.run("listen", "--since", "0", "1").out == "RUNNING web\n"
    manager.ctl("stop", "jobmon.socket", UNIT)


# ---- the units of the system --------------------------------------------------------------------


def shipped(*below: str) -> list[str]:
    """The shipped units in a directory."""
    folder = os.path.join(UNITS, *below)
    return sorted(
        os.path.join(folder, name) for name in os.listdir(folder) if name.endswith((".service", ".socket"))
    )


def with_command(paths: list[str], to: Path, command: str) -> list[str]:
    """Copies of units that name a command which is there."""
    made = []
    for path in paths:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        copy = to / os.path.basename(path)
        copy.write_text(text.replace(SHIPPED, command))
        made.append(str(copy))
    return made


def analyze(*words: str) -> str:
    """Run systemd-analyze; what it printed. It has to find nothing wrong."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    trace = "/run/systemd/systemd-units-load"
    was_there = os.path.exists(trace)
    done = subprocess.run(
        ["systemd-analyze", *words],
        env=os.environ | {"LC_ALL": "C.UTF-8", "XDG_RUNTIME_DIR": "/run"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if os.path.exists(trace) and not was_there:
        os.unlink(trace)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("below", ["", "user"], ids=["system", "user"])
def test_systemd_finds_nothing_wrong_with_the_units(below: str, tmp_path: Path) -> None:
    """`systemd-analyze verify` is silent."""
    units = with_command(shipped(below), tmp_path, "/bin/true")
    mode = ["--user"] if below else []

    assert analyze(*mode, "verify", "--man=no", *units) == ""


def version() -> int:
    """The systemd that is here."""
    said = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, check=True).stdout
    return int(said.split()[1].partition(".")[0])


@pytest.mark.parametrize("drop_in", ["strict.conf", "timeouts.conf", "reload.conf"])
def test_systemd_finds_nothing_wrong_with_the_drop_ins(drop_in: str, tmp_path: Path) -> None:
    """`systemd-analyze verify` is silent; reload.conf is for 253 and later."""
    if drop_in == "reload.conf" and shutil.which("systemctl") and version() < 253:
        pytest.skip("this systemd does not know notify-reload")
    units = with_command(shipped(), tmp_path, "/bin/true")
    add_drop_in(tmp_path, drop_in)

    assert analyze("verify", "--man=no", *units) == ""


def add_drop_in(folder: Path, name: str) -> None:
    """Put a shipped drop-in beside a unit."""
    (folder / f"{UNIT}.d").mkdir()
    shutil.copy(os.path.join(UNITS, "drop-ins", name), folder / f"{UNIT}.d")


@pytest.mark.parametrize(
    ("name", "drop_in", "most"),
    [(UNIT, "", 5.0), ("jobmon@.service", "", 5.0), (UNIT, "strict.conf", 3.0)],
)
def test_the_exposure_is_what_the_comments_say(name: str, drop_in: str, most: float, tmp_path: Path) -> None:
    """`systemd-analyze security` scores the unit at most 5.0, the strict profile at most 3.0."""
    with_command(shipped(), tmp_path, "/bin/true")
    if drop_in:
        add_drop_in(tmp_path, drop_in)
    said = analyze("security", "--offline=yes", str(tmp_path / name))
    score = re.search(r"Overall exposure level for .*: ([0-9.]+)", said)

    assert score
    assert float(score.group(1)) <= most


def test_an_instance_without_a_configuration_fails(manager: Manager, command: str) -> None:
    """`systemctl start jobmon@typo` fails and says so, and leaves no directories; an instance that has its
    configuration starts."""
    with open(os.path.join(UNITS, "jobmon@.service"), encoding="utf-8") as file:
        head = file.read().partition("[Service]")[0].replace("/etc/jobmon/", manager.path(""))
    program = f"{command} daemon {manager.path('%i.json')}"
    service = f"Type=notify\nExecStart={program}\nStateDirectory=instance-%i\n"
    manager.unit("jobmon@.service", f"{head}[Service]\n{service}")
    ports = {f"{name}-port": manager.path(name) for name in ("control", "event")}
    with open(manager.path("shop.json"), "w", encoding="utf-8") as configuration:
        json.dump({"supervisor": ports}, configuration)
    told = manager.ctl("start", "jobmon@typo.service", code=1)

    assert "jobmon@typo.service" in told
    assert manager.show("jobmon@typo.service", "ActiveState") != "active"
    manager.ctl("start", "jobmon@shop.service")
    assert manager.show("jobmon@shop.service", "ActiveState") == "active"
    made = [name for _, folders, _ in os.walk(manager.base) for name in folders if "instance-" in name]
    assert made == ["instance-shop"]
    manager.ctl("stop", "jobmon@shop.service")


def test_both_services_are_confined_alike() -> None:
    """jobmon@.service repeats the settings of jobmon.service; none is forgotten when one changes."""
    one, many = (settings(os.path.join(UNITS, name)) for name in (UNIT, "jobmon@.service"))
    own = "ExecStart RuntimeDirectory RuntimeDirectoryPreserve StateDirectory LogsDirectory WorkingDirectory"
    own += " ExecReload"

    assert {key: one[key] for key in one if key not in own.split()} == {
        key: many[key] for key in many if key not in own.split()
    }


def settings(path: str) -> dict[str, str]:
    """The section [Service] of a unit."""
    with open(path, encoding="utf-8") as file:
        section = file.read().partition("[Service]\n")[2].partition("\n[")[0]
    lines = (line for line in section.splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


@pytest.fixture
def inaccessible() -> Iterator[None]:
    """What systemd mounts over that which it hides. The system's manager makes it; where there is none,
    root's user manager looks for it in the same place in vain."""
    folder = "/run/systemd/inaccessible"
    if os.geteuid() != 0:
        pytest.skip("only root's manager can apply the confinement")
    if os.path.exists(folder):
        yield
        return
    kinds = {"reg": stat.S_IFREG, "fifo": stat.S_IFIFO, "sock": stat.S_IFSOCK}
    kinds |= {"chr": stat.S_IFCHR, "blk": stat.S_IFBLK}
    os.makedirs(f"{folder}/dir", 0o755)
    try:
        for name, kind in kinds.items():
            os.mknod(f"{folder}/{name}", kind)
        yield
    finally:
        shutil.rmtree(folder)


@pytest.mark.usefixtures("inaccessible")
@pytest.mark.parametrize("profile", ["", "strict.conf"], ids=["shipped", "strict"])
def test_daemon_and_jobs_work_in_the_confinement(admin: Admin, profile: str, command: str) -> None:
    """The system unit with all of its confinement in force: cgroups per run, sockets of both kinds, a
    stop that leaves nothing. Run as root, because a user's manager may not confine."""
    manager = admin.manager
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    admin.install({"web": {"command": admin.says("web"), "autostart": True}}, **{"control-port": port})
    manager.ctl("disable", UNIT)
    with open(os.path.join(UNITS, UNIT), encoding="utf-8") as file:
        manager.unit(UNIT, file.read())
    if profile:
        with open(os.path.join(UNITS, "drop-ins", profile), encoding="utf-8") as file:
            manager.unit(f"{UNIT}.d/a.conf", file.read())
    # What the test needs: its own files, which are in /tmp, Python's, wherever it is, and root's rights
    # to them by ownership.
    needs = f"BindPaths={manager.base}\nBindReadOnlyPaths={os.path.dirname(os.path.dirname(command))}"
    python = f"BindReadOnlyPaths={sys.base_prefix}\nProtectHome=read-only\nReadWritePaths={manager.base}"
    owner = "User=\nGroup=\nWorkingDirectory=/\nOOMScoreAdjust=0"
    manager.unit(f"{UNIT}.d/test.conf", admin.drop_in(f"{needs}\n{python}\n{owner}"))
    manager.ctl("daemon-reload")
    manager.ctl("start", UNIT)
    job = int(admin.until("web up"))
    daemon = manager.pid(UNIT)
    admin.environ["JOBMON_PORT"] = f"{port},{manager.path('run', 'jobmon', 'event')}"

    with open(f"/proc/{job}/status", encoding="utf-8") as file:
        status = file.read()
    assert re.search(r"^NoNewPrivs:\s*1$", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\s*2$", status, re.MULTILINE)
    assert re.search(r"^CapBnd:\s*0+$", status, re.MULTILINE)
    assert cgroup_of(job).startswith(f"{cgroup_of(daemon)}/jobmon.")
    assert admin.run("list-jobs").out == "RUNNING web\n"
    assert admin.run("restart", "web").code == 0
    assert "internal error" not in admin.logged()
    manager.ctl("stop", UNIT)
    assert admin.until("down") == "success exited 0"
