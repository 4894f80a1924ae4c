"""A start that cannot be is its job's failure: the daemon lives, with all others, and says why."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import forbid
import kit
import nasty
import pytest

from jobmon import ConfigError, JobError, WaitTimeout
from jobmon.core.events import Spawn
from jobmon.core.spec import JobSpec
from jobmon.linux.processes import spawn
from jobmon.linux.processes.spawn import Spawner
from jobmon.linux.processes.spawnqueue import TURNS, Births

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Factory = Callable[..., kit.Daemon]

REST = {"command": kit.FOR_EVER, "autostart": True}
POSIX = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
with_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
ways = pytest.mark.parametrize("way", [nasty.WITH, nasty.WITHOUT])


# ---- text for the kernel -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def latin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of somebody whose locale is French in ISO-8859-1."""
    folder = tmp_path_factory.mktemp("locales")
    command = ["localedef", "-i", "fr_FR", "-f", "ISO-8859-1", str(folder / "fr_FR.ISO-8859-1")]
    if shutil.which(command[0]) is None or subprocess.run(command, check=False).returncode > 1:
        pytest.skip("no locales can be made here")
    return {"LOCPATH": str(folder), "LC_ALL": "fr_FR.ISO-8859-1", "PYTHONUTF8": "0"}


@pytest.fixture(params=["POSIX", "ISO-8859-1"])
def locale(request: pytest.FixtureRequest) -> dict[str, str]:
    found: dict[str, str] = POSIX if request.param == "POSIX" else request.getfixturevalue("latin")
    return found


EVERYWHERE = {
    "supervisor": {"log-file": "log-ü€", "control-port": "control-ü€", "include-dirs": ["jobs-ü€/*.json"]},
    "jobs": {
        "web": REST,
        "stream": {"command": "echo hi", "stdout": "out-ü€", "stderr": "err-ü€", "stdin": "in-ü€"},
        "directory": {"command": "pwd > $PWD/here", "working-dir": "dir-ü€"},
        "words": {"command": ["sh", "-c", "echo $0 $WORD", "ü€"], "env": {"WORD": "wörd€"}, "stdout": "told"},
        "variable": {"command": "echo hi", "stdout": "$PLACE/out"},
        "program": {"command": ["./tool-ü€"], "stdout": "tool"},
    },
}


@pytest.mark.slow
def test_text_for_the_kernel_is_utf_8_in_every_locale(daemon: Factory, locale: dict[str, str]) -> None:
    """Streams, directories, words, variables, programs, sockets, the log and included files have the bytes
    that the configuration has, in locales that lack their letters; a variable's bytes stay as they are."""
    directory = Path(tempfile.mkdtemp(prefix="jobmon-", dir="/tmp"))
    for name in ("dir-ü€", "jobs-ü€", "place-ü€"):
        (directory / name).mkdir()
    (directory / "in-ü€").write_text("")
    (directory / "tool-ü€").write_text("#!/bin/sh\necho tool\n")
    (directory / "tool-ü€").chmod(0o755)
    (directory / "jobs-ü€/more.json").write_text('{"möre€": {"command": "echo more", "stdout": "möre€"}}')
    environ = {**locale, "PLACE": str(directory / "place-ü€"), "PYTHONIOENCODING": None}
    one = daemon(EVERYWHERE, directory=str(directory), environ=environ)
    assert one.announcement.split(",")[0] == one.path("control-ü€")
    watch = one.watch()
    with one.pipe() as pipe:
        for job in ("stream", "directory", "words", "variable", "program", "möre€"):
            pipe.start(job, wait=False)
            assert watch.until(job, "died").state == "exited", watch.words()
        assert pipe.list_jobs()["web"]

    assert (directory / "out-ü€").read_text() == "hi\n"
    assert (directory / "dir-ü€/here").read_text() == f"{directory}/dir-ü€\n"
    assert (directory / "told").read_text() == "ü€ wörd€\n"
    assert (directory / "place-ü€/out").read_text() == "hi\n"
    assert (directory / "möre€").read_text() == "more\n"
    assert (directory / "tool").read_text() == "tool\n"
    assert 'job="web"' in (directory / "log-ü€").read_text()


@pytest.mark.slow
def test_a_daemon_in_the_background_has_the_same_text(daemon: Factory, locale: dict[str, str]) -> None:
    """What `jobmon daemon` prints are the bytes of the addresses, and its jobs find no variable for it."""
    job = {"command": "env > out-ü€", "autostart": True}
    one = daemon({"supervisor": {"control-port": "c-ü€"}, "jobs": {"x": job}})
    one.stop()
    foreign = ("LC_", "LANG", "PYTHON")
    ours = {name: value for name, value in one.environ.items() if not name.startswith(foreign)}
    environ = {**ours, **locale, "PYTHONPATH": kit.SOURCES}
    command = [*kit.daemon_command()[:-1], "--background", one.config]
    done = subprocess.run(command, env=environ, cwd=one.directory, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == f"{one.control},{one.event}\n"
    one.pipe().wait("x", condition="exited", since=0)
    one.run_cli("terminate")
    for pid in kit.zombies_of(os.getpid()):
        os.waitpid(pid, 0)
    lines = Path(one.path("out-ü€")).read_bytes().decode().splitlines()
    assert {line for line in lines if line.startswith(("PYTHON", "LC_ALL"))} == {
        f"{name}={value}" for name, value in environ.items() if name.startswith(("PYTHON", "LC_ALL"))
    }


@pytest.mark.slow
def test_a_program_finds_the_daemon_in_every_locale(daemon: Factory, locale: dict[str, str]) -> None:
    """A program may name a socket by letters that its locale lacks, or has its bytes from the environment."""
    one = daemon({"supervisor": {"control-port": "control-ü€"}, "jobs": {"web": REST}})
    script = """
import jobmon, sys
assert sys.getfilesystemencoding() != "utf-8"
print(jobmon.CommandPipe(sys.argv[1].encode("ascii").decode("unicode_escape")).list_jobs())
print(jobmon.CommandPipe().list_jobs())
"""
    escaped = str(one.control).encode("unicode_escape").decode()
    command = [sys.executable, "-c", script, escaped]
    done = subprocess.run(
        command, env={**one.environ, **locale}, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("{'web': True}\n" * 2, "")


@pytest.mark.slow
def test_a_directory_that_is_not_utf_8_ends_no_answer(daemon: Factory, tmp_path: Path) -> None:
    """A configuration lies where bytes are that no text has: a start fails with a reason, which is told to
    who asks and to who listens, as a mistake in a reload is; and files are made there."""
    directory = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    os.mkdir(directory)
    sockets = {"control-port": f"{tmp_path}/c", "event-port": f"{tmp_path}/e"}
    jobs = {"a": {"command": "true", "stdout": "none/out"}, "b": {"command": "echo hi", "stdout": "out"}}
    one = daemon({"supervisor": sockets, "jobs": jobs}, directory=directory)
    pipe, watch = one.pipe(), one.watch()
    with pytest.raises(JobError, match=r"\\udcff/none/out: ENOENT"):
        pipe.start("a")
    pipe.start("b", condition="exited")

    assert Path(one.path("out")).read_text() == "hi\n"
    assert "\\udcff/none/out" in watch.until("a", "failed").cause
    assert "\\udcff/none/out" in pipe.status("a")[0].result
    assert pipe.info()["config"].endswith("\\udcff/jobmon.json")
    Path(one.config).write_text("{")
    with pytest.raises(ConfigError, match=r"\\udcff/jobmon\.json"):
        pipe.reload()


@pytest.mark.slow
def test_a_message_has_the_encoding_of_the_locale(latin: dict[str, str], tmp_path: Path) -> None:
    """A mistake is told in the caller's own encoding, though the configuration is read as UTF-8."""
    (tmp_path / "m.json").write_text('{"jobs": {"é€": {"command": 1}}}')
    command = [*kit.daemon_command()[:-2], "check", "m.json"]
    environ = {**os.environ, **latin, "PYTHONPATH": kit.SOURCES}
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, check=False)

    assert done.returncode == 1
    assert "é\\u20ac" in done.stderr.decode("iso-8859-1")


# ---- limits and shortages ------------------------------------------------------------------------


@pytest.mark.slow
@ways
def test_a_hard_limit_lowered_under_the_daemon_is_survived(daemon: Factory, way: str) -> None:
    """prlimit(1) lowers the daemon's hard RLIMIT_NOFILE, as far as to take its privilege to raise it: jobs
    start, with as much as is left."""
    options = nasty.options(way)
    unprivileged = ["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource"]
    limited = [*(unprivileged if os.geteuid() == 0 else []), "prlimit", "--nofile=150:"]
    options["wrapper"] = [*options.get("wrapper", []), *limited]
    job = {"command": "ulimit -Hn; ulimit -Sn", "stdout": "out"}
    one = daemon({"jobs": {"fine": REST, "x": job}}, **options)
    watch = one.watch()
    resource.prlimit(one.pid, resource.RLIMIT_NOFILE, (200, 200))
    one.pipe().start("x", wait=False)

    assert watch.until("x", "died").state == "exited"
    assert Path(one.path("out")).read_text() == "200\n150\n"
    assert one.pipe().is_running("fine")
    assert resource.prlimit(one.pid, resource.RLIMIT_NOFILE) == (200, 200)
    assert "internal error" not in one.log


@pytest.mark.slow
@ways
def test_a_limit_below_what_is_open_is_a_failure_with_its_reason(daemon: Factory, way: str) -> None:
    """With no descriptor left to take, a start fails by EMFILE, and succeeds when there are some again."""
    job = {"command": kit.FOR_EVER, "stdout": "out"}
    one = daemon({"jobs": {"fine": REST, "x": job}}, **nasty.options(way))
    pipe, watch = one.pipe(), one.watch()
    assert pipe.is_running("fine")  # it is connected by that: no connection can be taken any more
    resource.prlimit(one.pid, resource.RLIMIT_NOFILE, (3, 1000))
    with pytest.raises(JobError, match="EMFILE"):
        pipe.start("x", wait=False)
    assert "EMFILE" in watch.until("x", "backoff").cause
    pid = pipe.get_pid("fine")
    assert pid is not None
    with pytest.raises(WaitTimeout, match=r"still stopping"):
        pipe.stop("fine", timeout=0.5)  # the first process needs none; whether others live is not known
    assert kit.process_of(pid) is None
    resource.prlimit(one.pid, resource.RLIMIT_NOFILE, (1000, 1000))
    assert watch.until("fine", "died").cause == "SIGTERM"
    pipe.start("x")

    assert "internal error" not in one.log


@pytest.mark.slow
@ways
def test_a_daemon_without_any_watch_does_all_that_others_do(daemon: Factory, way: str) -> None:
    """epoll_ctl fails with ENOSPC for whatever is to be watched, from the beginning: jobs start, are seen to
    be ready and to die, are stopped, and nothing is a bug."""
    options = nasty.options(way)
    options["wrapper"] = [*options.get("wrapper", []), *forbid.forbidding("epoll_ctl+1:1=ENOSPC")]
    ready = {"command": "echo >&3; exec sleep 1000000", "ready": {"fd": 3}}
    others = {"command": "(trap '' TERM; exec sleep 1000000) & exec sleep 1000000", "kill-timeout": 0.1}
    one = daemon({"jobs": {"fine": REST, "ready": ready, "others": others}}, **options)
    pipe, watch = one.pipe(), one.watch()
    pipe.start("ready", "others")
    pid = pipe.get_pid("fine")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert watch.until("fine", "died").cause == "SIGKILL"
    pipe.stop("others")
    pipe.stop("ready")

    assert pipe.list_jobs() == dict.fromkeys(("fine", "ready", "others"), False)
    assert "internal error" not in one.log


@with_strace
@pytest.mark.slow
@ways
def test_a_daemon_whose_loop_is_broken_leaves_nothing(daemon: Factory, way: str) -> None:
    """When every turn fails, the daemon kills what it has launched, and what that has started, and ends."""
    stubborn = {"command": "trap '' TERM; setsid sleep 1000000 & wait", "autostart": True}
    one = daemon({"jobs": {"a": stubborn, "b": REST}}, **nasty.options(way))
    inject = ["strace", "-qq", "-o", "/dev/null", "-p", str(one.pid), "-e", "trace=epoll_wait,epoll_pwait"]
    calls = "epoll_wait,epoll_pwait"
    with subprocess.Popen([*inject, "-e", f"inject={calls}:error=EBADF"]) as tracer:
        assert one.wait() == 1
        tracer.wait(kit.DEADLINE)

    assert one.left() == [] or all(name.startswith("file") for name in one.left())
    assert "the daemon gives up" in one.log


# ---- what jobs are told of their daemon ----------------------------------------------------------


def test_jobs_know_the_daemon_that_has_started_them(daemon: Factory) -> None:
    """$JOBMON_PORT is their own daemon's address, whatever the daemon was started with, for a job and for the
    command that asks whether it is ready; unless the job's own env says otherwise."""
    ready = {"exec": "echo $JOBMON_PORT > asked"}
    jobs = {
        "job": {"command": "echo $JOBMON_PORT > told; exec sleep 1000000", "ready": ready},
        "own": {"command": "echo $JOBMON_PORT > own", "env": {"JOBMON_PORT": "1,2"}},
    }
    one = daemon({"jobs": jobs}, environ={"JOBMON_PORT": "6666,6667"})
    one.pipe().start("job")
    one.pipe().start("own", condition="exited")
    address = f"{one.control},{one.event}"

    assert one.announcement == address
    assert Path(one.path("told")).read_text() == Path(one.path("asked")).read_text() == f"{address}\n"
    assert Path(one.path("own")).read_text() == "1,2\n"


@pytest.mark.slow
def test_a_hook_stops_the_job_of_its_own_daemon(daemon: Factory) -> None:
    """Of two daemons with a job of the same name, `jobmon stop` in a job reaches the one that runs it."""
    first = daemon({"jobs": {"web": REST}})
    command = [*kit.daemon_command()[:-2], "stop", "web"]
    address = {"JOBMON_PORT": f"{first.control},{first.event}"}
    second = daemon({"jobs": {"web": REST, "hook": {"command": command}}}, environ=address)
    second.pipe().start("hook", condition="exited")

    assert first.pipe().is_running("web")
    assert not second.pipe().is_running("web")


# ---- what a child cannot do ----------------------------------------------------------------------


def test_a_child_tells_whatever_exception_comes() -> None:
    """Not only errors of the kernel: what is raised before the exec is told with its stage and its text."""
    spawner = Spawner({b"PATH": b"/bin"}, "marker", 100)
    spec = JobSpec("a", ("/bin/true", "a\0b"), stdin=fifo_path())
    with open(os.open(spec.stdin, os.O_RDWR), "rb"):
        born = spawner.spawn(spec, 1)
        assert kit.readable(born.report)
        told = spawn.read_report(born.report, spec)
    os.waitpid(born.pid, 0)
    os.close(born.report)
    shutil.rmtree(os.path.dirname(spec.stdin))
    spawner.close()

    assert told is not None
    assert (told.stage, told.what) == ("exec", "/bin/true")
    assert spawn.why(told) == "ValueError: embedded null byte"


def fifo_path() -> str:
    path = tempfile.mkdtemp(prefix="jobmon-", dir="/tmp") + "/fifo"
    os.mkfifo(path)
    return path


def test_a_child_that_may_not_enter_its_cgroup_says_so(tmp_path: Path) -> None:
    """Where clone3 is forbidden the child goes to its cgroup by itself; what is in its way is told."""

    def attempt() -> str:
        forbid.install("clone3=EPERM")
        spawner = Spawner({b"PATH": b"/bin"}, "marker", 100)
        spec = JobSpec("a", ("true",))
        born = spawner.spawn(spec, 1, os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY))
        os.waitpid(born.pid, 0)
        told = spawn.read_report(born.report, spec)
        return "nothing" if told is None else f"{told.stage}: {spawn.why(told)}"

    assert kit.in_child(attempt) == "cgroup: No such file or directory"


# ---- whose turn it is ----------------------------------------------------------------------------


def births(*, others: int, asked: int) -> Births:
    made = Births()
    for number in range(others):
        made.add(Spawn(f"other {number}", 1, JobSpec(f"other {number}", "x")))
    for number in range(asked):
        made.add(Spawn(f"asked {number}", 1, JobSpec(f"asked {number}", "x"), True))
    return made


def test_what_an_operator_waits_for_is_launched_first() -> None:
    """However many runs are to be launched by themselves, the one that was asked for is next."""
    made = births(others=1000, asked=1)

    assert made.take().job == "asked 0"
    assert [made.take().job for _ in range(3)] == ["other 0", "other 1", "other 2"]


def test_operators_do_not_keep_the_others_down() -> None:
    """Of a few turns in a row one is the others', each in the order in which they came."""
    made = births(others=2, asked=2 * TURNS)
    order = [made.take().job for _ in range(2 * TURNS)]

    assert [order.index(f"other {number}") for number in range(2)] == [TURNS - 1, 2 * TURNS - 1]
    assert [job for job in order if job.startswith("asked")] == [f"asked {n}" for n in range(2 * TURNS - 2)]


@pytest.mark.slow
@ways
def test_an_operator_does_not_wait_for_jobs_that_crash(daemon: Factory, way: str) -> None:
    """Of two hundred jobs that crash and are started again at once, few are launched between an operator's
    command and his own job."""
    crash = {"command": ["false"], "restart": True, "restart-penalty": 0, "autostart": True}
    jobs = {f"crash {number}": crash for number in range(200)}
    one = daemon({"supervisor": {"log-file": "log"}, "jobs": {**jobs, "mine": REST}}, **nasty.options(way))
    pipe = one.pipe()
    for _ in range(5):
        pipe.restart("mine")
    one.stop()
    lines = one.log.splitlines()
    asked = [at for at, line in enumerate(lines) if 'job="mine"' in line and 'to="starting"' in line][1:]
    begun = [at for at, line in enumerate(lines) if 'job="mine"' in line and 'to="running"' in line][1:]
    between = [sum('to="running"' in line for line in lines[a:b]) for a, b in zip(asked, begun, strict=True)]

    assert len(between) == 5
    assert max(between) < 100, between


def test_a_run_that_is_called_off_is_not_launched() -> None:
    """Of either kind, and only the very run."""
    made = births(others=1, asked=1)

    assert not made.call_off("asked 0", 2)
    assert made.call_off("asked 0", 1)
    assert made.call_off("other 0", 1)
    assert not made
