"""The daemon as a process: how it starts, what it holds, what it logs, how it ends."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys

import kit
import pytest

from jobmon import Event07, JobError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    Factory = Callable[..., kit.Daemon]

WEB: dict[str, Any] = {"web": {"command": kit.FOR_EVER, "autostart": True}}


class Background:
    """`jobmon daemon CONFIG` as people start it: it returns when the daemon is up."""

    def __init__(self, config: dict[str, Any], *, before: str = "", after: str = "", **options: Any) -> None:
        self.nest = kit.Daemon(config)  # for its directory, its configuration and its end
        self.nest.stop()
        line = shlex.join([sys.executable, "-m", "jobmon", "daemon", "--background", self.nest.config])
        options = {"capture_output": True, "text": True, "env": self.nest.environ, **options}
        self.done = subprocess.run(
            ["sh", "-c", f"{before} {line} {after}"],
            cwd=self.nest.directory,
            timeout=kit.DEADLINE,
            check=False,
            **options,
        )

    @property
    def pid(self) -> int:
        pid = self.nest.pipe().info()["pid"]
        assert isinstance(pid, int)
        return pid

    def close(self) -> None:
        self.nest.run_cli("terminate")
        for pid in kit.zombies_of(os.getpid()):  # the daemon itself came to us
            os.waitpid(pid, 0)
        self.nest.close()


@pytest.fixture
def background() -> Iterator[Callable[..., Background]]:
    made: list[Background] = []

    def make(*arguments: Any, **options: Any) -> Background:
        made.append(Background(*arguments, **options))
        return made[-1]

    kit.adopt_orphans(True)
    yield make
    for one in made:
        one.close()
    kit.adopt_orphans(False)


# ---- daemonised -------------------------------------------------------------------------------


def test_it_returns_when_the_daemon_is_up(background: Callable[..., Background]) -> None:
    """The caller gets the two addresses on one line, and at that moment the autostart jobs run."""
    one = background({"jobs": WEB})

    assert tuple(one.done.stdout.splitlines()) == (f"{one.nest.control},{one.nest.event}",)
    assert (one.done.returncode, one.done.stderr) == (0, "")
    assert one.nest.pipe().is_running("web")


def test_it_is_its_own_master(background: Callable[..., Background]) -> None:
    """A session that it does not lead, so it can get no terminal; the working-dir; no parent."""
    one = background({"jobs": WEB})
    pid = one.pid
    fact = kit.processes()[pid]

    assert os.getsid(pid) != os.getsid(0)
    assert fact.session != pid
    assert fact.parent == os.getpid()  # the nearest subreaper
    assert os.readlink(f"/proc/{pid}/cwd") == one.nest.directory


@pytest.mark.parametrize("way", ["--background", "--foreground"])
@pytest.mark.parametrize("umask", [0o077, 0o027, 0o002])
def test_it_keeps_the_umask_of_its_caller(
    background: Callable[..., Background], daemon: Factory, way: str, umask: int
) -> None:
    """In the background as in the foreground: for its log, and for its jobs and what is opened for them."""
    web = {"command": "umask; exec sleep 1000000", "stdout": "out", "autostart": True}
    config = {"supervisor": {"log-file": "log"}, "jobs": {"web": web}}
    if way == "--background":
        made = background(config, before=f"rm -f log out; umask {umask:03o};")
        one, pid = made.nest, made.pid
    else:
        one = daemon(config, umask=umask)
        pid = one.pid

    assert int(kit.status_of(pid)["Umask"], 8) == umask
    for name in ("log", "out"):
        assert stat.S_IMODE(os.stat(one.path(name)).st_mode) == 0o666 & ~umask
    for name in ("control", "event", "control.lock", "event.lock"):
        assert stat.S_IMODE(os.stat(one.path(name)).st_mode) == 0o600


def test_it_holds_nothing_of_its_caller(background: Callable[..., Background]) -> None:
    """Whatever descriptors the caller has, also above the limit, and its streams: the daemon has none."""
    held = [os.open("/etc/passwd", os.O_RDONLY) for _ in range(3)]
    high = os.dup2(held[0], 700)
    one = background({"jobs": WEB}, before="ulimit -n 256;", pass_fds=(*held, high))
    for fd in (*held, high):
        os.close(fd)
    found = kit.fds_of(one.pid)

    assert one.done.returncode == 0
    assert {found[0], found[1], found[2]} == {"/dev/null"}
    assert [what for what in found.values() if what == "/etc/passwd" or what.startswith("pipe:")] == []


def test_its_errors_go_to_its_log(background: Callable[..., Background]) -> None:
    """Standard error is the log file, so that what a library says is not lost."""
    one = background({"supervisor": {"log-file": "log"}, "jobs": WEB})

    assert kit.fds_of(one.pid)[2] == one.nest.path("log")
    assert "running" in one.nest.log


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_it_starts_from_closed_streams(background: Callable[..., Background], closed: str) -> None:
    """With standard streams closed, as cron or a careless script may have them, all is as ever."""
    one = background({"jobs": WEB}, after=closed)

    assert one.done.returncode == 0
    assert {what for fd, what in kit.fds_of(one.pid).items() if fd < 3} == {"/dev/null"}
    assert one.nest.pipe().is_running("web")


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_substitution_returns(background: Callable[..., Background], shell: str) -> None:
    """`export JOBMON_PORT=$(jobmon daemon CONFIG)` ends, under set -e too, and is what a client needs."""
    one = background({"jobs": WEB})
    one.nest.run_cli("terminate")
    command = shlex.join([sys.executable, "-m", "jobmon"])
    script = f"set -e; export JOBMON_PORT=$({command} daemon {one.nest.config}); {command} status web"
    environ = {**one.nest.environ, "JOBMON_PORT": "set by the script"}
    done = subprocess.run(
        [shell, "-c", script],
        capture_output=True,
        text=True,
        cwd=one.nest.directory,
        env=environ,
        timeout=kit.DEADLINE,
        check=False,
    )

    assert done.returncode == 0, done
    assert "running" in done.stdout


def test_a_failure_in_the_background_is_told_in_the_foreground(background: Callable[..., Background]) -> None:
    """What keeps the daemon from coming up is said by the command, with exit code 1, and nothing is left."""
    one = background({"jobs": WEB}, before="mkdir -p control.lock;")
    os.rmdir(one.nest.path("control.lock"))

    assert one.done.returncode == 1
    assert one.done.stdout == ""
    assert one.done.stderr.startswith("jobmon: cannot listen on ")
    for pid in one.nest.orphans():  # what was to be the daemon is about to end
        kit.wait_gone(pid)
        os.waitpid(pid, 0)
    assert one.nest.left() == []


# ---- in the foreground ------------------------------------------------------------------------


def test_an_ignored_sigchld_hides_no_death(daemon: Factory) -> None:
    """A caller that ignores SIGCHLD, and so would make the kernel reap for us, does not cost exit codes."""
    ignore = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
    ignore += "; os.execv(sys.argv[1], sys.argv[1:])"
    one = daemon({"jobs": {"web": {"command": "exit 7"}}}, wrapper=[sys.executable, "-c", ignore])
    watch = one.watch()
    one.pipe().start_job("web")

    assert watch.until("web", "died").cause == "exit 7"


@pytest.mark.parametrize("closed", ["<&-", "<&- 2>&-"])
def test_in_the_foreground_it_starts_from_closed_streams_too(daemon: Factory, closed: str) -> None:
    """A job's streams are what they should be even where the daemon's own are not there."""
    one = daemon(
        {"jobs": {"web": {"command": kit.FOR_EVER, "autostart": True, "stderr": "inherit"}}},
        wrapper=["sh", "-c", f'exec "$@" {closed}', "sh"],
    )
    pid = kit.settled(one.pipe().get_pid("web") or 0)
    found = kit.fds_of(pid)

    assert sorted(found) == [0, 1, 2]
    assert found[0] == "/dev/null"
    assert ("/dev/null" if "2" in closed else "pipe:") in found[2]


def test_an_environment_with_an_empty_name_is_no_obstacle(daemon: Factory) -> None:
    """The kernel passes on "=value" too; such a variable is nobody's, and jobs start."""
    program = (
        "import ctypes, sys\n"
        "words = lambda values: (ctypes.c_char_p * (len(values) + 1))(*values, None)\n"
        "import os\n"
        "environ = [b'=empty'] + [k + b'=' + v for k, v in os.environb.items()]\n"
        "argv = [os.fsencode(word) for word in sys.argv[1:]]\n"
        "ctypes.CDLL(None).execve(argv[0], words(argv), words(environ))\n"
    )
    one = daemon({"jobs": WEB}, wrapper=[sys.executable, "-c", program])

    assert one.pipe().is_running("web")


def test_a_job_gets_nothing_of_the_daemons(daemon: Factory) -> None:
    """What a real daemon's real job has: three descriptors, no blocked signal, the limit, its own session."""
    held = os.open("/etc/passwd", os.O_RDONLY)
    one = daemon(
        {"jobs": WEB},
        environ={"WATCHDOG_USEC": "1", "LISTEN_FDS": "1", "JOBMON_RUN": "other:x:1"},
        pass_fds=(held,),
        wrapper=["sh", "-c", 'ulimit -Sn 123; exec "$@"', "sh"],
    )
    os.close(held)
    pid = kit.settled(one.pipe().get_pid("web") or 0)
    facts, environ = kit.status_of(pid), kit.environ_of(pid)
    with open(f"/proc/{pid}/limits", encoding="utf-8") as file:
        limits = file.read()

    assert kit.fds_of(pid) == dict.fromkeys(range(3), "/dev/null")
    assert int(facts["SigBlk"], 16) == 0
    assert os.getsid(pid) == pid
    assert re.search(r"Max open files +123 ", limits)
    assert not {"WATCHDOG_USEC", "LISTEN_FDS"} & set(environ)
    assert re.fullmatch(r"[0-9a-f]{16}:web:1", environ["JOBMON_RUN"])
    assert environ["JOBMON_JOB"] == "web"


def test_fifty_starts_leave_the_daemon_as_it_was(daemon: Factory) -> None:
    """Starts, failures to start, deaths and clients: afterwards the daemon holds what it held before."""
    jobs = {"web": {"command": ["true"]}, "bad": {"command": ["/nonexistent"]}}
    one = daemon({"jobs": jobs})
    watch, pipe = one.watch(), one.pipe()
    pipe.info()
    before = kit.fds_of(one.pid)
    for _ in range(25):
        pipe.start_job("web")
        watch.until("web", "exited")
        with pytest.raises(JobError, match="ENOENT"):
            pipe.start("bad")

    assert kit.fds_of(one.pid) == before
    assert kit.children_of(one.pid) == set()


# ---- FIFOs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_a_fifo_without_its_other_end_holds_up_one_job(daemon: Factory, stream: str) -> None:
    """The job is starting, everybody else is served; it runs once the other end is opened."""
    jobs = {"web": {"command": kit.FOR_EVER, stream: "fifo"}, "other": {"command": kit.FOR_EVER}}
    one = daemon({"jobs": jobs})
    os.mkfifo(one.path("fifo"))
    watch, pipe = one.watch(), one.pipe()
    pipe.start_job("web")
    assert watch.until("web", "launched").state == "starting"
    pipe.start("other")
    assert pipe.status("web")[0].state == "starting"

    end = os.open(one.path("fifo"), os.O_WRONLY if stream == "stdin" else os.O_RDONLY)

    assert watch.until("web", "running").state == "running"
    os.close(end)


def test_while_it_waits_for_a_fifo_a_job_can_be_stopped(daemon: Factory) -> None:
    """Before its exec, at once, by the configured signal; and it holds nothing of the daemon's meanwhile."""
    one = daemon({"jobs": {"web": {"command": kit.FOR_EVER, "stdin": "fifo"}}})
    os.mkfifo(one.path("fifo"))
    watch, pipe = one.watch(), one.pipe()
    pipe.start_job("web")
    pid = watch.until("web", "launched").pid or 0
    while any(what.startswith(("socket:", "anon_inode:")) for what in kit.fds_of(pid).values()):
        assert kit.processes()[pid].state != "Z"  # it has not come to letting go yet
    pipe.stop("web")

    assert watch.until("web", "died").cause == "SIGTERM"
    assert [one for one in watch.words() if "killing" in one] == []


# ---- idle -------------------------------------------------------------------------------------


def switches_of(pid: int) -> int:
    facts = kit.status_of(pid)
    return int(facts["voluntary_ctxt_switches"]) + int(facts["nonvoluntary_ctxt_switches"])


@pytest.fixture
def idle(daemon: Factory) -> tuple[kit.Daemon, int]:
    """A daemon with jobs and clients that has done all that there was to do, and one client's descriptor."""
    jobs = {f"job {number}": {"command": kit.FOR_EVER, "autostart": True} for number in range(20)}
    one = daemon({"jobs": jobs})
    one.events()
    watch = one.watch()
    one.pipe().list_jobs()  # answered after all that came before
    kit.settled(one.pid, kit.processes()[one.pid].name)
    return one, watch.stream.fileno()


@pytest.mark.slow
def test_while_nothing_happens_nothing_wakes_it(idle: tuple[kit.Daemon, int]) -> None:
    """With jobs running and clients connected there is no context switch. Needs real seconds: the nothing."""
    one, silent = idle
    before = switches_of(one.pid)
    assert not kit.readable(silent, 1.5)

    assert switches_of(one.pid) == before


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_while_nothing_happens_it_waits_in_one_call(idle: tuple[kit.Daemon, int]) -> None:
    """One epoll_wait without a time-out, and no other system call. Needs real seconds: what strace sees."""
    one, _ = idle
    traced = subprocess.run(
        ["timeout", "-s", "INT", "1.5", "strace", "-f", "-p", str(one.pid)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "not permitted" in traced.stderr:
        pytest.skip("ptrace is forbidden here")
    calls = [line for line in traced.stderr.splitlines() if "(" in line and "attached" not in line]
    with open(f"/proc/{one.pid}/syscall", encoding="utf-8") as file:
        timeout = int(file.read().split()[4], 16)  # the fourth argument

    assert len(calls) == 1, traced.stderr
    assert re.match(r"epoll_p?wait\(", calls[0]), traced.stderr
    assert timeout & 0xFFFFFFFF == 0xFFFFFFFF


# ---- the log ----------------------------------------------------------------------------------


def test_every_transition_is_a_line(daemon: Factory) -> None:
    """At INFO: the job, from where, to where, its pid, and why; who asked for it is in the why."""
    one = daemon({"jobs": {"web": {"command": kit.FOR_EVER}}})
    pipe = one.pipe()
    pipe.start("web", reason="release 7")
    pid = pipe.get_pid("web")
    pipe.stop("web")
    told = [re.sub(r"^\S+ ", "", line) for line in one.log.splitlines() if 'job="web"' in line]
    who = f"by uid {os.getuid()} pid {os.getpid()}"

    assert told == [
        f'INFO state changed job="web" run=1 from="stopped" to="starting" cause="start {who}: release 7"',
        f'INFO state changed job="web" run=1 pid={pid} from="starting" to="running" cause="launched"',
        f'INFO state changed job="web" run=1 pid={pid} from="running" to="stopping" cause="stop {who}"',
        f'INFO state changed job="web" run=1 pid={pid} from="stopping" to="stopped" cause="SIGTERM"',
    ]


def test_failures_are_logged_at_the_default_level(daemon: Factory) -> None:
    """What an operator has to know is there without any setting; what works is not."""
    jobs = {
        "bad": {"command": ["/nonexistent/tool"]},
        "dir": {"command": "true", "working-dir": "/nonexistent"},
        "out": {"command": "true", "stdout": "/nonexistent/out"},
        "good": {"command": ["true"]},
        "dies": {"command": "exit 3"},
    }
    one = daemon({"supervisor": {"log-level": "WARNING"}, "jobs": jobs})
    watch, pipe = one.watch(), one.pipe()
    for name in ("good", "dies"):
        pipe.start_job(name)
    for name in ("bad", "dir", "out"):
        with pytest.raises(JobError):
            pipe.start(name)
    watch.until("dies", "failed")
    told = {name: [line for line in one.log.splitlines() if f'job="{name}"' in line] for name in jobs}

    assert [len(lines) for lines in told.values()] == [1, 1, 1, 0, 1]
    assert "exec /nonexistent/tool: ENOENT (No such file or directory)" in told["bad"][0]
    assert "directory /nonexistent: ENOENT" in told["dir"][0]
    assert "stdout /nonexistent/out: ENOENT" in told["out"][0]
    assert " ERROR " in told["dies"][0]
    assert "exit 3" in told["dies"][0]


def test_no_job_can_forge_a_line(daemon: Factory) -> None:
    """A name with line ends and quotes is one line, escaped, whatever happens to the job."""
    name = 'x" to="running"\n2026-01-01T00:00:00.000Z INFO state changed job="web\r\x1b[31m'
    one = daemon({"jobs": {name: {"command": ["/nonexistent"]}, "web": {"command": "true"}}})
    with pytest.raises(JobError):
        one.pipe().start(name, reason="because\nof this")
    lines = one.log.splitlines()

    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z [A-Z]+ \S", line) for line in lines)
    assert [line for line in lines if 'job="web' in line.replace('\\"', "")] == []
    assert all(line.isprintable() for line in lines)


def test_the_log_is_reopened_on_sigusr1(daemon: Factory) -> None:
    """After the file was moved away the next lines go to a new one, and nothing is lost in between."""
    one = daemon({"supervisor": {"log-file": "log"}, "jobs": WEB})
    os.rename(one.path("log"), one.path("old"))
    pipe = one.pipe()
    pipe.stop("web")
    assert not os.path.exists(one.path("log"))

    one.process.send_signal(signal.SIGUSR1)
    pipe.info()  # signals are served before commands
    pipe.start("web")

    with open(one.path("old"), encoding="utf-8") as file:
        assert 'to="stopped"' in file.read()
    assert 'to="running"' in one.log
    assert 'to="stopped"' not in one.log


def test_a_full_log_stops_nobody(daemon: Factory) -> None:
    """On a full disk the daemon goes on, without its log."""
    one = daemon({"supervisor": {"log-file": "/dev/full"}, "jobs": WEB})
    pipe = one.pipe()
    pipe.restart("web")

    assert pipe.is_running("web")


# ---- its end ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(daemon: Factory, number: int) -> None:
    """All jobs are stopped and gone, the last event of all is dispatched to everybody, exit code 0."""
    jobs = {f"job {n}": {"command": kit.FOR_EVER, "autostart": True} for n in range(3)}
    one = daemon({"jobs": jobs})
    watch, plain = one.watch(), one.events()
    pids = kit.descendants_of(one.pid)
    assert len(pids) == 3

    assert one.stop(number) == 0
    assert watch.find(lambda event: event.event == "terminated").job == ""
    assert [event.event_code for event in plain if isinstance(event, Event07)] == [1, 1, 1, 3]
    assert pids & set(kit.processes()) == set()
    assert watch.words()[-4:-1] == [f"job {n} died stopped" for n in range(3)] or len(watch.seen) == 7
    assert one.left() == []


def test_patience_is_kept_unless_it_is_asked_again(daemon: Factory) -> None:
    """A job that does not heed its signal has its kill-timeout; a second SIGTERM ends that at once."""
    one = daemon(
        {"jobs": {"web": {"command": "trap '' TERM; echo up > up; while :; do read x < gate; done"}}}
    )
    up, gate = one.fifo("up"), one.fifo("gate")
    watch = one.watch()
    one.pipe().start_job("web")
    up.line()
    one.process.send_signal(signal.SIGTERM)
    watch.until("web", "stopping")
    one.process.send_signal(signal.SIGTERM)

    assert watch.until("web", "killing").state == "killing"
    assert watch.until("web", "died").cause == "SIGKILL"
    assert one.wait() == 0
    assert gate.text == ""


def test_sighup_does_not_end_it(daemon: Factory) -> None:
    """A closed terminal costs a look at the configuration and a line of the log."""
    one = daemon({"jobs": WEB})
    one.process.send_signal(signal.SIGHUP)

    one.wait_log("reload: nothing has changed")
    assert one.pipe().is_running("web")


def test_a_listener_that_does_not_read_does_not_keep_it(daemon: Factory) -> None:
    """The end waits a moment for who is slow to take the last event, not for ever."""
    one = daemon({"jobs": WEB})
    deaf = one.events()
    assert one.stop() == 0
    deaf.destroy()


# ---- its configuration --------------------------------------------------------------------------

# Words before the daemon's that let it have its configuration by a relative path.
BY_NAME = ["sh", "-c", 'exec "$1" "$2" "$3" "$4" "$5" jobmon.json', "sh"]


def test_it_knows_its_configuration_by_an_absolute_path(daemon: Factory, tmp_path: Path) -> None:
    """However it was named, and wherever the daemon went from there."""
    (tmp_path / "elsewhere").mkdir()
    ports = {"control-port": f"{tmp_path}/control", "event-port": f"{tmp_path}/event"}
    supervisor = {"working-dir": "elsewhere", **ports}
    one = daemon({"supervisor": supervisor}, directory=str(tmp_path), wrapper=BY_NAME)

    assert one.pipe().info()["config"] == f"{tmp_path}/jobmon.json"


# ---- when it cannot start -----------------------------------------------------------------------


def refused(daemon: Factory, config: dict[str, Any], **options: Any) -> str:
    """What a daemon says that does not come up; it must exit with 1 and leave nothing."""
    one = daemon(config, announced=False, **options)
    assert one.wait() == 1
    assert one.left() == []
    assert one.stdout.drain() == ""
    told = one.log
    assert "Traceback" not in told
    assert all(line.startswith("jobmon: ") for line in told.splitlines())
    return told


def test_a_port_that_is_taken_is_told_with_its_holder(daemon: Factory) -> None:
    """The second daemon on a TCP port says who listens there."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        told = refused(daemon, {"supervisor": {"control-port": port}, "jobs": WEB})

    assert f"127.0.0.1:{port}" in told
    assert str(os.getpid()) in told


def test_a_socket_that_is_taken_is_told_with_its_holder(daemon: Factory) -> None:
    """The second daemon on a UNIX socket says which process is there, and does not disturb it."""
    first = daemon({"jobs": WEB})
    told = refused(daemon, {"supervisor": {"control-port": first.control}})

    assert str(first.control) in told
    assert str(first.pid) in told
    assert first.pipe().is_running("web")


def test_when_the_second_port_is_taken_the_first_is_given_back(daemon: Factory) -> None:
    """A start that fails halfway leaves no socket."""
    first = daemon({"jobs": WEB})

    assert str(first.event) in refused(daemon, {"supervisor": {"event-port": first.event}})


@pytest.mark.parametrize(
    ("supervisor", "words"),
    [
        ({"log-file": "/nonexistent/log"}, "log-file /nonexistent/log: No such file or directory"),
        ({"log-file": "/"}, "log-file /: Is a directory"),
        ({"working-dir": "/nonexistent"}, "working-dir /nonexistent: No such file or directory"),
        ({"working-dir": "/etc/passwd"}, "working-dir /etc/passwd: Not a directory"),
        ({"control-port": "/nonexistent/control"}, "cannot listen on /nonexistent/control: "),
        ({"allow-users": ["no such user"]}, "no such user"),
        ({"control-port": "none", "log-level": "LOUD"}, "supervisor.log-level: "),
    ],
)
def test_what_is_wrong_is_said_in_a_line(daemon: Factory, supervisor: dict[str, Any], words: str) -> None:
    """A person who starts the daemon is told what is wrong and where; nothing runs, nothing is left."""
    assert words in refused(daemon, {"supervisor": supervisor, "jobs": WEB})


def test_a_fifo_among_the_job_files_is_told(daemon: Factory, tmp_path: Path) -> None:
    """Nobody waits for a job file that is a FIFO: it is no regular file, and that is said."""
    os.mkfifo(tmp_path / "jobs.json")
    told = refused(daemon, {"supervisor": {"include-dirs": ["jobs.json"]}}, directory=str(tmp_path))

    assert f"{tmp_path}/jobs.json: cannot be read: not a regular file" in told


def test_a_job_that_cannot_start_is_not_the_daemons_failure(daemon: Factory) -> None:
    """The daemon comes up and says so, the job has failed."""
    one = daemon({"jobs": {"bad": {"command": ["/nonexistent"], "autostart": True}, **WEB}})

    assert one.pipe().status("bad")[0].state == "failed"
    assert one.pipe().is_running("web")


@pytest.mark.parametrize("name", ["SIGUSR2", "SIGALRM", "SIGPROF", "SIGIO"])
def test_a_stray_signal_does_not_end_the_daemon(daemon: Factory, name: str) -> None:
    """Signals that mean nothing are logged with their sender, and jobs do not get them blocked."""
    one = daemon({"jobs": {"web": {"command": kit.FOR_EVER}}})
    os.kill(one.pid, signal.Signals[name])
    assert f'signal="{name}" sender={os.getpid()}' in one.wait_log("ignoring signal")
    pipe = one.pipe()
    pipe.start("web")
    pid = pipe.get_pid("web")
    assert pid
    assert int(kit.status_of(pid)["SigBlk"], 16) == 0
