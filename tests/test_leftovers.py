"""What a killed daemon left running is ended by the next daemon of the same configuration, and by no
other: with cgroups and without, as root and as another user, whatever its processes have done to their
environment. Programs that nobody here wrote are asked in test_leftovers_real.py."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile

import kit
import nasty
import pytest

import jobmon
from jobmon.linux.kernel import cgroup, procfs
from jobmon.linux.processes import statedir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import Any

    MakeDaemon = Callable[..., kit.Daemon]
    MakeDead = Callable[..., "Dead"]

USER = 64998
UNPRIVILEGED = "as another user"
WAYS = (nasty.WITH, nasty.WITHOUT, UNPRIVILEGED)
# A user's own state is in /tmp, without a session.
_AS_USER = ["env", "-u", "RUNTIME_DIRECTORY"]
_AS_USER += ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]


class Dead:
    """A daemon that was killed, and its one job, which lives on as `pid`."""

    def __init__(
        self,
        way: str = nasty.WITH,
        *,
        background: bool = False,
        wrapper: Sequence[str] = (),
        through_a_link: bool = False,
        **job: Any,
    ) -> None:
        self.directory = tempfile.mkdtemp(prefix="jobmon-", dir="/tmp")
        if way == UNPRIVILEGED:
            os.chown(self.directory, USER, USER)
        self.way = way
        self.options = options(way)
        self.wrapper = [*wrapper, *self.options.get("wrapper", ())]
        self.job = {"autostart": True, **job}
        folder = self.directory
        if through_a_link:
            os.mkdir(f"{self.directory}/1")
            folder = f"{self.directory}/current"
            os.symlink("1", folder)
        self.path = os.path.join(folder, "jobmon.json")
        ports = {"control-port": f"{self.directory}/control", "event-port": f"{self.directory}/event"}
        with open(self.path, "w", encoding="utf-8") as file:
            json.dump({"supervisor": ports, "jobs": {"job": self.job}}, file)
        self.pid = self._begin_and_kill("--background" if background else "-f")
        self.cgroup = procfs.cgroup2_path(self.pid) or ""

    def _begin_and_kill(self, mode: str) -> int:
        command = [*self.wrapper, sys.executable, "-m", "jobmon", "daemon", mode, self.path]
        environ = os.environ | {"PYTHONPATH": kit.SOURCES}
        with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert kit.readable(process.stdout.fileno())
            with jobmon.CommandPipe(f"{self.directory}/control") as pipe:
                pid = pipe.pid("job")
            daemon = self.daemon_pid()
            os.kill(daemon, signal.SIGKILL)
            kit.wait_gone(daemon)
        if daemon != process.pid:
            os.waitpid(daemon, 0)  # it came to us
        for name in ("control", "event"):
            os.unlink(f"{self.directory}/{name}")
            os.unlink(f"{self.directory}/{name}.lock")
        assert isinstance(pid, int)
        return pid

    def daemon_pid(self) -> int:
        """The process that listens on its control socket."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(f"{self.directory}/control")
            peer = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid: int = struct.unpack("3i", peer)[0]
        return pid

    def state_dir(self) -> str:
        """Where the state of its configuration is."""
        path = statedir.default(self.path, os.environ)
        return f"/tmp/jobmon-{USER}-{os.path.basename(path)}" if self.way == UNPRIVILEGED else path

    def lives(self, pid: int = 0) -> bool:
        """Whether its job does; a zombie does not."""
        one = kit.process_of(pid or self.pid)
        return one is not None and one.state != "Z"

    def close(self) -> None:
        """Its job, if it lives still, is ended, and its state removed. The directory is its successor's."""
        shutil.rmtree(self.state_dir(), ignore_errors=True)
        if self.lives():
            os.kill(self.pid, signal.SIGKILL)
            kit.wait_gone(self.pid)
        # They have come to us, who are a subreaper while daemons are tested.
        for pid in kit.zombies_of(os.getpid()):
            one = kit.process_of(pid)
            if one is not None and one.session == self.pid:
                os.waitpid(pid, 0)


def options(way: str) -> dict[str, Any]:
    """The arguments for kit.Daemon."""
    if way != UNPRIVILEGED:
        return nasty.options(way)
    if os.geteuid() != 0:
        pytest.skip("needs root, to be another user")
    command = [*_AS_USER, sys.executable, "-c", "import jobmon.linux.daemon.main"]
    if subprocess.run(command, cwd=kit.SOURCES, check=False).returncode:
        pytest.skip("another user may not read this tree")
    return {"wrapper": _AS_USER}


class Told(kit.Fifo):
    """The FIFO that particular.c writes to."""

    def __init__(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="jobmon-", dir="/tmp")
        os.chmod(self.directory, 0o777)
        super().__init__(f"{self.directory}/told")
        os.chmod(self.path, 0o666)

    def destroy(self) -> None:
        """Close and remove it."""
        super().destroy()
        shutil.rmtree(self.directory)

    def command(self, *words: str) -> list[str]:
        """The command of a job."""
        return [nasty.build(os.path.join(kit.HERE, "particular.c")), self.path, *words]


@pytest.fixture
def told() -> Iterator[Told]:
    """What a job of particular.c tells."""
    one = Told()
    yield one
    one.destroy()


@pytest.fixture
def dead() -> Iterator[MakeDead]:
    """A factory of dead daemons, with the arguments of Dead."""
    made: list[Dead] = []

    def make(way: str = nasty.WITH, **job: Any) -> Dead:
        made.append(Dead(way, **job))
        return made[-1]

    kit.adopt_orphans(True)
    yield make
    for one in made:
        one.close()


def need_cgroups() -> None:
    """Skip where no cgroups may be made."""
    try:
        cgroup.Hierarchy(f"test.{os.urandom(8).hex()}").close()
    except cgroup.Unavailable as error:
        pytest.skip(f"no cgroups here: {error}")


@pytest.mark.parametrize("background", [False, True], ids=["foreground", "background"])
@pytest.mark.parametrize("way", WAYS)
def test_the_next_run_starts_when_the_last_is_gone(
    daemon: MakeDaemon, dead: MakeDead, told: Told, way: str, background: bool
) -> None:
    """A job of a killed daemon gets its own stop signal, though its environment says nothing any more, and
    there are never two runs."""
    gone = dead(way, background=background, command=told.command(), signal="SIGINT")
    assert told.line() == "up"
    assert "JOBMON_RUN" not in kit.environ_of(gone.pid)

    heir = daemon({"jobs": {"job": gone.job}}, directory=gone.directory, **gone.options)
    assert not gone.lives()
    assert told.line() == "SIGINT"
    assert told.line() == "up"
    assert heir.pipe().pid("job") not in (None, gone.pid)
    assert f'of a previous daemon job="job" signal="SIGINT" pids="{gone.pid}"' in heir.log
    assert "killing" not in heir.log
    assert heir.stop() == 0
    assert told.drain() == "up\nSIGINT\nup\nSIGINT\n"
    assert not os.path.exists(gone.state_dir())


@pytest.mark.parametrize("way", WAYS)
def test_a_run_is_stopped_as_it_was_launched(
    daemon: MakeDaemon, dead: MakeDead, told: Told, way: str
) -> None:
    """Signal and kill-timeout are those that the run was launched with, whatever is configured now."""
    gone = dead(way, **{"command": told.command(), "signal": "SIGHUP", "kill-timeout": 0.1})
    assert told.line() == "up"

    now = {**gone.job, "autostart": False, "signal": "SIGINT", "kill-timeout": 1000}
    heir = daemon({"jobs": {"job": now}}, directory=gone.directory, **gone.options)
    assert not gone.lives()
    assert told.drain() == "up\nSIGHUP\n"
    assert 'killing left-over processes of a previous daemon job="job"' in heir.log


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scope", ["job", "group", "process"])
def test_the_children_of_a_left_run(
    daemon: MakeDaemon, dead: MakeDead, told: Told, way: str, scope: str
) -> None:
    """What the kill-scope reaches is stopped, though the first process is dead by then; a child beyond it
    lives on, and is named."""
    gone = dead(way, **{"command": told.command("child"), "signal": "SIGINT", "kill-scope": scope})
    assert [told.line(), told.line()] == ["up", "up"]
    (child,) = kit.children_of(gone.pid)
    if scope != "process":
        os.kill(gone.pid, signal.SIGKILL)
        kit.wait_gone(gone.pid)

    now = {**gone.job, "autostart": False}
    heir = daemon({"jobs": {"job": now}}, directory=gone.directory, **gone.options)
    assert not gone.lives()
    if scope == "process":
        assert gone.lives(child)
        assert f'possible left-over process not stopped job="job" pid={child}' in heir.log
        kit.end_orphan(child)
    assert not gone.lives(child)
    assert told.drain() == "up\nup\nSIGINT\n"


@pytest.mark.parametrize("way", [nasty.WITHOUT, UNPRIVILEGED])
def test_the_marker_suffices(daemon: MakeDaemon, dead: MakeDead, way: str) -> None:
    """A run whose daemon died before it could write down its birth is known by its marker."""
    gone = dead(way, command=kit.FOR_EVER)
    (record,) = [name for name in os.listdir(gone.state_dir()) if name.startswith("run.")]
    os.unlink(f"{gone.state_dir()}/{record}")

    heir = daemon({"jobs": {"job": gone.job}}, directory=gone.directory, **gone.options)
    assert not gone.lives()
    assert f'of a previous daemon job="job" signal="SIGTERM" pids="{gone.pid}"' in heir.log


@pytest.mark.parametrize("scope", ["job", "group", "process"])
@pytest.mark.parametrize("way", [nasty.WITH, nasty.WITHOUT])
def test_a_run_that_was_being_born_is_ended(
    daemon: MakeDaemon, told: Told, tmp_path: Path, way: str, scope: str
) -> None:
    """A daemon that is killed after a birth and before it could write that down leaves nothing that runs a
    second time, whatever the kill-scope."""
    directory = tempfile.mkdtemp(prefix="jobmon-", dir="/tmp")
    command = f"echo $$ > {told.path}; exec sleep 1000000"
    jobs = {"job": {"command": command, "autostart": True, "kill-scope": scope}}
    ports = {"control-port": f"{directory}/control", "event-port": f"{directory}/event"}
    path = f"{directory}/jobmon.json"
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"supervisor": ports, "jobs": jobs}, file)
    kill = "statedir.StateDir.born = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
    broken = nasty.broken(
        str(tmp_path), "import os, signal", "from jobmon.linux.processes import statedir", kill
    )
    wrapper = nasty.options(way).get("wrapper", ())
    kit.adopt_orphans(True)
    with subprocess.Popen([*wrapper, *kit.daemon_command(), path], env=os.environ | broken) as process:
        assert process.wait(kit.DEADLINE) == -signal.SIGKILL
    first = int(told.line())
    for name in os.listdir(directory):
        if name != "jobmon.json":
            os.unlink(f"{directory}/{name}")

    heir = daemon({"jobs": jobs}, directory=directory, **nasty.options(way))
    one = kit.process_of(first)
    assert one is None or one.state == "Z"
    os.waitpid(first, 0)
    assert int(told.line()) == heir.pipe().get_pid("job")
    assert "unreadable state" not in heir.log


@pytest.mark.parametrize("way", WAYS)
def test_garbage_counts_as_nothing(daemon: MakeDaemon, dead: MakeDead, way: str) -> None:
    """A record that cannot be read is named in the log, with what is wrong, and the daemon comes up."""
    gone = dead(way, command=kit.FOR_EVER)
    folder = gone.state_dir()
    (record,) = [name for name in os.listdir(folder) if name.startswith("run.")]
    with open(f"{folder}/{record}", "w", encoding="utf-8") as file:
        file.write('{"v": 1, "daemon": [')
    with open(f"{folder}/daemon.x", "wb") as file:
        file.write(b"\xff\0")

    heir = daemon({"jobs": {"job": gone.job}}, directory=gone.directory, **gone.options)
    assert not gone.lives()  # its cgroup, or its marker, tells of it
    assert heir.log.count("unreadable state, which counts as nothing") == 2
    assert f'file="{folder}/{record}" why="not JSON' in heir.log


@pytest.mark.parametrize("way", [nasty.WITHOUT, UNPRIVILEGED])
def test_a_daemon_does_not_stop_itself(daemon: MakeDaemon, dead: MakeDead, way: str) -> None:
    """A daemon that a left run has started refuses to start: it would have to stop itself first."""
    gone = dead(way, command=kit.FOR_EVER)
    marker = kit.environ_of(gone.pid)["JOBMON_RUN"]
    config = {"jobs": {"job": gone.job}}
    heir = daemon(
        config, directory=gone.directory, announced=False, environ={"JOBMON_RUN": marker}, **gone.options
    )

    assert heir.wait() == 1
    assert "this daemon was started by job" in heir.log
    assert gone.lives()


def test_a_lock_of_a_stranger_hides_nothing(daemon: MakeDaemon, dead: MakeDead, told: Told) -> None:
    """Another user cannot open the directory of a daemon's cgroups, and a lock on it, whoever has it, does
    not make a dead daemon's runs look alive."""
    need_cgroups()
    gone = dead(command=told.command(), signal="SIGINT")
    folder = os.path.dirname(gone.cgroup)
    assert kit.in_child(lambda: _open_as_user(folder)) == "PermissionError"

    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    daemon({"jobs": {"job": gone.job}}, directory=gone.directory)
    os.close(lock)
    assert not gone.lives()
    assert told.line() == "up"
    assert told.line() == "SIGINT"
    assert told.line() == "up"


def _open_as_user(folder: str) -> str:
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    try:
        os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        return type(error).__name__
    return "opened"


def test_a_run_in_a_cgroup_elsewhere_is_found(daemon: MakeDaemon, dead: MakeDead, told: Told) -> None:
    """A daemon that runs in another cgroup than the one that died ends what that one left, all the same."""
    need_cgroups()
    elsewhere = f"{procfs.cgroup2_path(os.getpid())}/jobmon-test-{os.urandom(4).hex()}"
    os.mkdir(elsewhere)
    enter = ["sh", "-c", f'echo $$ > {elsewhere}/cgroup.procs && exec "$@"', "sh"]
    gone = dead(command=told.command(), signal="SIGINT", wrapper=enter)
    assert gone.cgroup.startswith(elsewhere)
    assert told.line() == "up"

    daemon({"jobs": {"job": {**gone.job, "autostart": False}}}, directory=gone.directory)
    assert not gone.lives()
    assert told.drain() == "up\nSIGINT\n"
    os.rmdir(elsewhere)  # nothing of it is left in there


def test_a_run_that_left_its_cgroup_is_found(daemon: MakeDaemon, dead: MakeDead, told: Told) -> None:
    """What has gone into another cgroup, as by `su -l` or systemd-run, is known by the state."""
    need_cgroups()
    gone = dead(command=told.command("child"), signal="SIGINT")
    assert [told.line(), told.line()] == ["up", "up"]
    (child,) = kit.children_of(gone.pid)
    with open(f"{procfs.cgroup2_path(os.getpid())}/cgroup.procs", "w", encoding="ascii") as file:
        file.write(str(gone.pid))

    daemon({"jobs": {"job": {**gone.job, "autostart": False}}}, directory=gone.directory)
    assert not gone.lives()
    assert not gone.lives(child)
    assert told.drain() == "up\nup\nSIGINT\nSIGINT\n"


@pytest.mark.slow
@pytest.mark.parametrize("mode", [mode for mode in nasty.ATTRIBUTABLE if not mode.startswith("hop")])
@pytest.mark.parametrize("way", [nasty.WITHOUT, UNPRIVILEGED])
def test_what_does_not_want_to_end_ends(
    daemon: MakeDaemon, dead: MakeDead, told: Told, way: str, mode: str
) -> None:
    """Processes that hide or ignore their signal are found by what they cannot change, and killed: nothing
    holds the lifeline any more."""
    lifeline = nasty.Lifeline(f"{told.directory}/lifeline")
    gone = dead(way, **{"command": lifeline.command(mode), "kill-timeout": 0.2})
    lifeline.wait_for(mode)

    jobs = {"job": {**gone.job, "autostart": False}}
    daemon({"jobs": jobs}, directory=gone.directory, **gone.options)
    assert lifeline.survivors() == {}
    lifeline.destroy()
    for pid in kit.zombies_of(os.getpid()):  # they came to us
        one = kit.process_of(pid)
        if one is not None and one.name in ("nasty", "exe"):
            os.waitpid(pid, 0)


@pytest.mark.parametrize("way", [nasty.WITH, nasty.WITHOUT])
def test_a_configuration_under_another_path_is_named(daemon: MakeDaemon, dead: MakeDead, way: str) -> None:
    """The same file under another name is another configuration; that a daemon of it has died and left jobs,
    or lives, is said in the log. A symbolic link is no other name."""
    gone = dead(way, command=kit.FOR_EVER)
    folder = tempfile.mkdtemp(prefix="jobmon-", dir="/tmp")
    other, link = f"{folder}/other.json", f"{folder}/link.json"
    os.link(gone.path, other)
    one = Started(other, gone.wrapper)
    line = one.log.until("left jobs")
    assert gone.path in line
    assert 'jobs="job"' in line
    assert gone.lives()
    one.end()

    os.symlink(gone.path, link)
    one = Started(link, gone.wrapper)
    assert not gone.lives()
    two = Started(other, gone.wrapper)
    assert f'path="{link}"' in two.log.until("runs this configuration under another path")
    assert two.wait() == 1  # for the address is taken
    one.end()
    for path in (link, other):
        os.unlink(path)
    os.rmdir(folder)
    daemon({}, directory=gone.directory)  # tidies up


@pytest.mark.parametrize(("way", "known"), [*((way, "by its state") for way in WAYS), (nasty.WITH, "else")])
def test_a_former_release_under_the_same_name_is_succeeded(dead: MakeDead, way: str, known: str) -> None:
    """Where `current` leads to another release by now, the jobs of the one before are ended all the same;
    without its state they are known by their cgroup."""
    gone = dead(way, through_a_link=True, command=kit.FOR_EVER)
    if known != "by its state":
        shutil.rmtree(gone.state_dir())
    release = f"{gone.directory}/2"
    os.mkdir(release)
    shutil.copy(gone.path, release)
    os.symlink(release, f"{gone.directory}/next")
    os.rename(f"{gone.directory}/next", f"{gone.directory}/current")

    one = Started(gone.path, gone.wrapper)
    assert not gone.lives()
    assert "stopping left-over processes of a previous daemon" in one.log.drain()
    one.end()
    shutil.rmtree(gone.directory)


class Started:
    """A daemon of a configuration that is there already."""

    def __init__(self, path: str, wrapper: Sequence[str] = (), **environ: str) -> None:
        self.process = subprocess.Popen(
            [*wrapper, *kit.daemon_command(), path],
            env={**os.environ, "PYTHONPATH": kit.SOURCES, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.log = kit.Lines(self.process.stderr.fileno())
        kit.Lines(self.process.stdout.fileno()).line()

    def end(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        assert self.wait() == 0

    def wait(self) -> int:
        """Its exit status."""
        code = self.process.wait(kit.DEADLINE)
        self.log.drain()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return code


@pytest.mark.parametrize("way", WAYS)
def test_one_daemon_per_configuration(daemon: MakeDaemon, way: str) -> None:
    """A second daemon of a configuration does not come up, on other sockets neither, and names the first."""
    directory = tempfile.mkdtemp(prefix="jobmon-", dir="/tmp")
    if way == UNPRIVILEGED:
        os.chown(directory, USER, USER)
    config = {"supervisor": {"control-port": "$WHERE/control", "event-port": "$WHERE/event"}}
    first = daemon(config, directory=directory, environ={"WHERE": directory}, **options(way))
    second = Started(first.config, options(way).get("wrapper", ()), WHERE="/nowhere")

    assert second.wait() == 1
    assert "a daemon of this configuration runs already: " in second.log.text
    assert f"pid {first.pid} (" in second.log.text
    assert first.process.poll() is None


@pytest.mark.parametrize("way", WAYS)
def test_a_daemon_of_another_configuration_leaves_it_alone(
    daemon: MakeDaemon, dead: MakeDead, way: str
) -> None:
    """A stranger in the same cgroup, of the same user, touches nothing of a dead daemon."""
    gone = dead(way, command=kit.FOR_EVER)
    daemon({}, **options(nasty.WITH if way == nasty.WITH else nasty.WITHOUT))
    assert gone.lives()
    daemon({}, directory=gone.directory, **gone.options)
    assert not gone.lives()


@pytest.mark.parametrize("way", WAYS)
def test_patience_ends(daemon: MakeDaemon, dead: MakeDead, way: str) -> None:
    """What ignores its stop signal is killed, with all that it started, when its kill-timeout is over."""
    gone = dead(way, **{"command": kit.STUBBORN, "kill-timeout": 0.1})
    jobs = {"job": {**gone.job, "autostart": False}}
    heir = daemon({"jobs": jobs}, directory=gone.directory, **gone.options)

    assert not gone.lives()
    assert way != nasty.WITH or not os.path.exists(os.path.dirname(gone.cgroup))
    assert 'killing left-over processes of a previous daemon job="job"' in heir.log


@pytest.mark.parametrize("way", WAYS)
def test_a_patience_of_months_is_waited_for(dead: MakeDead, told: Told, way: str) -> None:
    """A kill-timeout that is longer than one poll(2) can take keeps no daemon from starting."""
    trap = f"trap 'echo asked > {told.path}' TERM; echo up > {told.path}; while :; do sleep 0.1; done"
    gone = dead(way, **{"command": ["sh", "-c", trap], "kill-timeout": 1e7})
    told.until("up")

    command = [*gone.wrapper, *kit.daemon_command(), gone.path]
    environ = os.environ | {"PYTHONPATH": kit.SOURCES}
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as heir:
        told.until("asked")
        os.kill(gone.pid, signal.SIGKILL)
        heir.send_signal(signal.SIGTERM)
        _, err = heir.communicate(timeout=kit.DEADLINE)
    assert "mistake" not in err
    assert heir.returncode == 0
    shutil.rmtree(gone.directory)


@pytest.mark.parametrize("way", WAYS)
def test_a_job_that_is_no_more_in_the_configuration_is_ended_too(
    daemon: MakeDaemon, dead: MakeDead, way: str
) -> None:
    """By the signal that it was launched with."""
    gone = dead(way, command=kit.FOR_EVER, signal="SIGINT")
    heir = daemon({}, directory=gone.directory, **gone.options)

    assert not gone.lives()
    assert 'job="job" signal="SIGINT"' in heir.log


@pytest.mark.parametrize("way", WAYS)
def test_a_signal_to_end_ends_the_patience(daemon: MakeDaemon, dead: MakeDead, way: str) -> None:
    """A daemon that is told to end while it waits kills what is left, starts nothing and exits 0."""
    gone = dead(way, **{"command": kit.STUBBORN, "kill-timeout": 1000})
    jobs = {"job": gone.job}
    heir = daemon({"jobs": jobs}, directory=gone.directory, announced=False, **gone.options)
    heir.wait_log("stopping left-over processes of a previous daemon")

    assert heir.stop() == 0
    assert not gone.lives()
    assert "shutdown requested during start-up" in heir.log
    assert 'to="starting"' not in heir.log


def test_the_living_are_not_taken_for_dead(daemon: MakeDaemon, dead: MakeDead) -> None:
    """The directory of a dead daemon goes when the next of any configuration finds it empty; that of a
    living one stays, with all that is in it."""
    gone = dead(command=kit.FOR_EVER)
    living = daemon({"jobs": {"job": gone.job}})
    os.kill(gone.pid, signal.SIGKILL)
    kit.wait_gone(gone.pid)
    daemon({}, directory=gone.directory)

    assert not os.path.exists(os.path.dirname(gone.cgroup))
    assert living.pipe().is_running("job")
    assert living.run_cli("restart", "job").code == 0


def test_who_makes_a_directory_and_who_clears_away_do_not_meet() -> None:
    """Making a directory while others clear away what looks dead comes to a locked directory all the same."""
    need_cgroups()
    pids = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for _ in range(25):
                    cgroup.Hierarchy(f"test.{os.urandom(8).hex()}").close()
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)

    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
