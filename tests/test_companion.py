"""`jobmon init CONFIG -- CMD`: jobs beside a command. What is promised without is tested in test_init.py."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys

import kit
import pytest
from inits import CATCHABLE, INITS, LEAVES, PLACES, PROBE, Shell, need_place, python, spin, state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from inits import Run, Screen

    Start = Callable[..., Run]

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGPWR, signal.SIGRTMIN + 3)
FOR_EVER = {"command": kit.FOR_EVER, "autostart": True}
JOBMON = [sys.executable, "-m", "jobmon"]
ASK = " ".join(JOBMON)

# A CMD that tells each signal and ends with 42 on SIGUSR2 only.
PATIENT = PROBE.replace("_signal.SIGTERM", "_signal.SIGUSR2")


@pytest.fixture
def start(launch: Start, tmp_path: Any) -> Start:
    """A factory: start(jobs, CMD, place, supervisor keys, options of init and those of Popen by name)."""

    def make(jobs: dict[str, Any], command: list[str], place: str = "child", **options: Any) -> Run:
        config = configure(tmp_path, jobs, **options.pop("supervisor", {}))
        words = [*JOBMON, "init", *options.pop("options", []), config]
        need_place(place)
        return launch("none", [*PLACES[place], *words, *(["--", *command] if command else [])], **options)

    return make


def configure(directory: Any, jobs: dict[str, Any], **supervisor: Any) -> str:
    """Write a configuration; its path."""
    defaults = {"control-port": str(directory / "control"), "event-port": str(directory / "event")}
    path = directory / "jobs.json"
    path.write_text(json.dumps({"supervisor": {**defaults, **supervisor}, "jobs": jobs}))
    return str(path)


def job_pid(one: Run) -> int:
    """The pid of the only `sleep` below a run."""
    known = kit.processes()
    (pid,) = (pid for pid in kit.descendants_of(one.process.pid) if known[pid].name == "sleep")
    return pid


def test_jobs_run_beside_the_command(start: Start) -> None:
    """CMD finds the jobs launched and the daemon by $JOBMON_PORT; its end stops them, its code is ours."""
    one = start({"web": FOR_EVER}, ["sh", "-c", f"{ASK} status web; echo code $?; {ASK} pid web; exit 7"])

    assert one.wait() == 7
    line, code, pid = one.out.drain().splitlines()
    assert line.startswith("web: running")
    assert code == "code 0"
    assert int(pid) not in kit.processes()


def test_standard_output_is_the_commands(start: Start, tmp_path: Any) -> None:
    """Nothing but CMD writes to standard output, and the log goes to standard error."""
    loud = {"log-level": "DEBUG"}
    one = start({"web": FOR_EVER}, ["echo", "hello"], stderr=subprocess.DEVNULL, supervisor=loud)

    assert one.wait() == 0
    assert one.out.drain() == "hello\n"
    assert os.listdir(tmp_path) == ["jobs.json"]


@pytest.mark.parametrize("place", ["child", "pid 1 of unshare"])
@pytest.mark.parametrize("verb", ["init", "daemon"])
def test_standard_output_is_the_jobs(verb: str, place: str, launch: Start, tmp_path: Any) -> None:
    """As the first process of a container the daemon does not write its address among what the jobs print;
    the log has it. One in the foreground that is not PID 1 is asked for it, and prints it."""
    need_place(place)
    job = {"command": "echo hello", "stdout": "inherit", "autostart": True, "essential": True}
    log = tmp_path / "log"
    path = configure(tmp_path, {"web": job}, **{"log-file": str(log), "log-level": "INFO"})
    words = [*PLACES[place], *JOBMON, verb, *(["-f"] if verb == "daemon" else []), path]
    one = launch("none", words, stderr=subprocess.DEVNULL)

    assert one.wait() == 0
    address = f"{tmp_path}/control,{tmp_path}/event"
    asked = verb == "daemon" and place == "child"
    assert sorted(one.out.drain().splitlines()) == sorted(["hello", *([address] if asked else [])])
    assert f'control="{tmp_path}/control" event="{tmp_path}/event"' in log.read_text()


@pytest.mark.parametrize("number", ENDING)
def test_signals_that_end_a_container(number: int, start: Start) -> None:
    """Each begins the shutdown of the jobs and reaches CMD, with which nobody has patience or haste."""
    one = start({"web": FOR_EVER}, python(PATIENT))
    one.out.until("pid ")
    job = job_pid(one)
    one.send(number)
    one.out.until(f"got {number}\n")
    kit.wait_gone(job)
    spin(lambda: job not in kit.processes())

    assert one.process.poll() is None
    one.send(signal.SIGUSR2)
    assert one.wait() == 42


def test_other_signals_are_the_commands_alone(start: Start) -> None:
    """Every other signal reaches CMD and means nothing to the daemon: the jobs run on."""
    one = start({"web": FOR_EVER}, python(PATIENT))
    one.out.until("pid ")
    job = job_pid(one)
    for number in sorted({*CATCHABLE} - {*ENDING, signal.SIGCHLD, signal.SIGUSR2}):
        one.send(number)
        one.out.until(f"got {number}\n")

    assert state(job) == "S"
    one.send(signal.SIGUSR2)
    assert one.wait() == 42


def test_terminate_asks_the_command_to_end(start: Start) -> None:
    """`jobmon terminate` stops the jobs, and CMD gets SIGTERM as it would from outside."""
    one = start({"web": FOR_EVER}, ["sh", "-c", f"({ASK} terminate --no-wait) & exec sleep 1000"])

    assert one.wait() == 128 + signal.SIGTERM


ENDS = [("exit 3", "on-failure", 3), ("kill -9 $$", True, 137), ("exit 0", True, 0)]


@pytest.mark.parametrize(("end", "essential", "code"), ENDS)
def test_an_essential_job_ends_it_all(
    end: str, essential: Any, code: int, start: Start, tmp_path: Any
) -> None:
    """An essential job's end is CMD's too, by SIGTERM, and the code is the job's, whatever CMD says."""
    go = tmp_path / "go"
    os.mkfifo(go)
    vital = {"command": f"read line <{go}; {end}", "autostart": True, "essential": essential}
    told = f"trap 'echo told; exit {0 if code else 9}' TERM; echo >{go}; while :; do sleep 1000 & wait; done"
    one = start({"web": FOR_EVER, "vital": vital}, ["sh", "-c", told])

    assert one.wait() == code
    assert "told" in one.out.drain()


def test_the_command_that_is_not_there(start: Start) -> None:
    """A CMD that is not found is 127, and the jobs are stopped."""
    one = start({"web": FOR_EVER}, ["nowhere-to-be-found"])

    assert one.wait() == 127
    assert "jobmon: nowhere-to-be-found: No such file" in one.out.drain()


def test_a_wrong_configuration_starts_nothing(start: Start) -> None:
    """With a mistake in CONFIG nothing is started, CMD neither: 1, and the mistake is told."""
    one = start({"web": {"comand": "x"}}, ["echo", "started"])

    assert one.wait() == 1
    assert "comand" in one.out.drain()
    assert "started" not in one.out.text


def test_configuration_alone_is_the_daemon(start: Start) -> None:
    """`init CONFIG` is the daemon in the foreground: it logs to standard error, SIGTERM ends it with 0."""
    one = start({"web": FOR_EVER}, [], supervisor={"log-level": "INFO"})
    one.out.until("ready for clients")
    one.send(signal.SIGTERM)

    assert one.wait() == 0


def test_the_command_gets_what_init_was_given(start: Start, tmp_path: Any) -> None:
    """What the daemon changes for itself is not CMD's: directory, descriptors, limits, signals."""
    (tmp_path / "elsewhere").mkdir()
    program = """
import os, resource
print(os.getcwd(), resource.getrlimit(resource.RLIMIT_NOFILE)[0], os.environ.get("WATCHDOG_USEC"), sep="\\n")
print(open("/proc/self/status").read(), *os.listdir("/proc/self/fd"), sep="\\n")
"""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    def change() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1,))

    environ = {**os.environ, "PYTHONPATH": kit.SOURCES, "WATCHDOG_USEC": "1000000000"}
    one = start(
        {"web": FOR_EVER},
        python(program),
        cwd="/usr",
        env=environ,
        supervisor={"working-dir": str(tmp_path / "elsewhere")},
        preexec_fn=change,
    )

    assert one.wait() == 0
    said = one.out.drain().splitlines()
    assert said[:3] == ["/usr", "200", "None"]
    masks = [line.split()[1] for line in said if line.startswith(("SigBlk", "SigIgn"))]
    # the last two by the Python that CMD is
    ignored = sum(1 << getattr(signal, f"SIG{name}") - 1 for name in "HUP CHLD PIPE XFSZ".split())
    assert [kit.ignored_by(mask) for mask in masks] == [1 << signal.SIGUSR1 - 1, ignored]
    assert said[-4:] == ["0", "1", "2", "3"]  # 3 is the directory that is read


@pytest.mark.slow  # a job is given a second before it is killed
def test_the_end_of_the_command_is_patient_with_jobs(start: Start) -> None:
    """When CMD ends, jobs get their stop signal and their kill-timeout; the code stays CMD's."""
    rock = {"command": kit.STUBBORN, "autostart": True, "kill-timeout": 1}
    one = start({"rock": rock}, ["sh", "-c", "exit 9"])

    assert one.wait() == 9
    assert "killing" in one.out.drain()


@pytest.mark.parametrize("place", list(PLACES)[1:])
def test_as_pid_1_the_rest_takes_its_leave(place: str, start: Start) -> None:
    """As PID 1, too, what CMD leaves behind gets SIGTERM when the jobs are down, and the code is CMD's."""
    one = start({"web": FOR_EVER}, python(LEAVES), place)

    assert one.wait() == 3
    assert "bye" in one.out.drain()


def test_orphans_of_the_command_are_reaped(start: Start) -> None:
    """What CMD leaves behind and dies is reaped while CMD lives on."""
    leaves = "for i in 1 2 3; do (true & true); done; echo up; exec sleep 1000000"
    one = start({"web": FOR_EVER}, ["sh", "-c", leaves])
    one.out.until("up")
    spin(lambda: len(kit.children_of(one.pid)) == 2)


def test_ctrl_z_and_fg_with_jobs(
    launch: Start, screen: Screen, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With jobs, too, Ctrl-Z gives the shell back and `fg` gives CMD the terminal again."""
    config = configure(tmp_path, {"web": FOR_EVER})
    monkeypatch.setitem(INITS, "jobs", [*JOBMON, "init", config, "--"])
    shell = Shell(launch, screen, tmp_path, "jobs")
    shell.type("$INIT sh talk")
    screen.until("up\r\n")
    shell.converse("first")
    command = screen.foreground
    screen.type("\x1a")
    screen.until("Stopped")
    assert shell.answer() == str(128 + signal.SIGTSTP)
    shell.type("fg")
    spin(lambda: screen.foreground == command)
    shell.converse("second")
    screen.type("\x03")

    assert shell.answer() == "130"


def test_the_commands_directory_is_not_held(start: Start, tmp_path: Any) -> None:
    """While CMD runs the daemon holds its own working-dir and / alone, not where it was started."""
    for title in ("here", "there"):
        (tmp_path / title).mkdir()
    one = start(
        {},
        ["sh", "-c", "echo up; read line; exit 0"],
        cwd=tmp_path / "here",
        supervisor={"working-dir": str(tmp_path / "there")},
        stdin=subprocess.PIPE,
    )
    one.out.until("up")
    held = [os.readlink(f"/proc/{one.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{one.pid}/fd")]

    assert str(tmp_path / "here") not in held
    assert os.readlink(f"/proc/{one.pid}/cwd") == str(tmp_path / "there")
    one.close_stdin()
    assert one.wait() == 0


def test_signals_and_exit_codes_are_changed_beside_jobs_too(start: Start) -> None:
    """SIGTERM begins the shutdown, CMD gets what --rewrite says, and --map-exit judges its code."""
    options = ["--rewrite", "TERM=USR1", "--rewrite", "HUP=0", "--map-exit", "138=0"]
    one = start({"web": FOR_EVER}, ["sh", "-c", "echo up; exec sleep 1000"], options=options)
    one.out.until("up")
    one.send(signal.SIGHUP)
    one.send(signal.SIGTERM)

    assert one.wait() == 0


@pytest.mark.parametrize("option", ["--rewrite=HUP=0", "--map-exit=1=0", "--leftovers=1", "--group"])
def test_options_of_a_command_want_one(option: str, tmp_path: Any) -> None:
    """An option that is for CMD is refused where there is none, before anything is started."""
    words = [*JOBMON, "init", option, configure(tmp_path, {})]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=kit.DEADLINE)

    assert done.returncode == 2
    assert f"{option.partition('=')[0]} needs a CMD" in done.stderr
