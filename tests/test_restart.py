"""What becomes of a job that dies, and what a job gets from its configuration: the real daemon, real jobs."""

from __future__ import annotations

import os
import signal
import sys

import e2e
import kit
import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from jobmon.protocol import EventMessage

    Make = Callable[..., kit.Daemon]

ON_REQUEST = "read code < die; exit $code"  # ends with the code that is written into the FIFO `die`


def die(fifo: kit.Fifo, code: int = 1) -> None:
    """Let the job ON_REQUEST end."""
    os.write(fifo.fd, f"{code}\n".encode())


def story(watch: kit.Watch, last: Callable[[EventMessage], bool]) -> list[tuple[str, str, str]]:
    """(event, state, cause) of all that comes until `last`."""
    start = len(watch.seen)
    watch.find(last)
    return [(event.event, event.state, event.cause) for event in watch.seen[start:]]


def launches(count: int) -> Callable[[EventMessage], bool]:
    """Whether this event is the launch number `count` from now on."""
    runs: list[int] = []

    def is_last(event: EventMessage) -> bool:
        if event.event == "launched":
            runs.append(event.run)
        return len(runs) == count

    return is_last


# ---- window and penalty -------------------------------------------------------------------------


@pytest.mark.slow
def test_the_documented_penalty_in_real_time(daemon: Make) -> None:
    """A job that dies is started at once; dying again within 5 seconds it waits 15 seconds, by the clock.

    This is the one test that waits the documented time: about 15 seconds. All edges are tested in virtual
    time, but that the daemon's timer and the kernel's clock agree with it is seen only here.
    """
    one = daemon({"jobs": {"job": {"command": ON_REQUEST, "restart": True}}})
    fifo, watch = one.fifo("die"), one.watch()
    one.pipe().start("job")
    watch.until("job", "running")
    die(fifo)
    first = watch.until("job", "died")
    again = watch.until("job", "launched")
    die(fifo)
    second = watch.until("job", "died")
    until = one.pipe().status("job")[0].until
    back = watch.until("job", "restarting", seconds=25)

    assert again.time - first.time < 1
    assert second.time - first.time < 5
    assert until == pytest.approx(second.time + 15, abs=0.01)
    waited = back.time - second.time
    assert waited == pytest.approx(15.5, abs=0.51)
    assert back.cause == "penalty over"
    assert watch.until("job", "running").run == 3


def test_a_crash_loop_stays_penalised(daemon: Make) -> None:
    """The first death is free, every later one waits: also the first after a penalty."""
    one = daemon({"jobs": {"job": {"command": "exit 7", "restart": True, "restart-penalty": 0.01}}})
    watch = one.watch()
    one.pipe().start("job", wait=False)
    watch.find(launches(5))

    causes = [event.cause for event in watch.seen if event.event == "restarting"]
    assert causes == ["restart", "penalty over", "penalty over", "penalty over"]
    died = [event for event in watch.seen if event.event == "died"]
    assert {(event.state, event.cause) for event in died} == {("backoff", "exit 7")}
    back = [event.time for event in watch.seen if event.event == "restarting"][1:]
    assert min(end - event.time for event, end in zip(died[1:], back, strict=True)) > 0.0099


def test_without_a_window_no_death_is_penalised(daemon: Make) -> None:
    """A restart-window of 0 means: start again at once, for ever."""
    job = {"command": "exit 7", "restart": True, "restart-window": 0, "restart-penalty": 1000}
    one = daemon({"jobs": {"job": job}})
    watch = one.watch()
    one.pipe().start("job", wait=False)
    watch.find(launches(4))

    assert {event.cause for event in watch.seen if event.event == "restarting"} == {"restart"}


@pytest.fixture
def waiting(daemon: Make) -> tuple[kit.Daemon, kit.Fifo, kit.Watch]:
    """A daemon whose job has died twice and waits the documented 15 seconds."""
    one = daemon({"jobs": {"job": {"command": ON_REQUEST, "restart": True}}})
    fifo, watch = one.fifo("die"), one.watch()
    one.pipe().start("job")
    for _ in range(2):
        watch.until("job", "running")
        die(fifo)
        watch.until("job", "died")
    return one, fifo, watch


def test_stop_in_the_wait_cancels_it(waiting: tuple[kit.Daemon, kit.Fifo, kit.Watch]) -> None:
    """The job is stopped, no timer is left that could bring it back, and a later start is a plain one."""
    one, _, watch = waiting
    pipe = one.pipe()
    assert pipe.status("job")[0].until is not None

    assert one.run_cli("stop", "job").code == 0
    status = pipe.status("job")[0]
    assert (status.state, status.until, status.alive) == ("stopped", None, False)
    pipe.start("job")
    assert watch.until("job", "running").run == 3
    assert [word for word in watch.words() if "restarting" in word] == [
        "job restarting starting"
    ]  # the first


@pytest.mark.parametrize("verb", ["start", "restart"])
def test_start_in_the_wait_ends_it_at_once(
    waiting: tuple[kit.Daemon, kit.Fifo, kit.Watch], verb: str
) -> None:
    """An operator need not wait, and the end of the penalty does not come a second time."""
    one, _, watch = waiting
    died = watch.seen[-1]

    assert one.run_cli(verb, "job").code == 0
    running = watch.until("job", "running")
    assert running.time - died.time < 10
    status = one.pipe().status("job")[0]
    assert (status.state, status.until, status.run) == ("running", None, 3)
    assert watch.words().count("job restarting starting") == 1


def test_max_restarts(daemon: Make) -> None:
    """After so many penalised restarts in a row it is failed and says so; an operator's start begins anew."""
    job = {"command": "exit 7", "restart": True, "restart-penalty": 0.001, "max-restarts": 2}
    one = daemon({"jobs": {"job": job}})
    watch, pipe = one.watch(), one.pipe()
    for _ in range(2):
        pipe.start("job", wait=False)
        watch.until("job", "failed")

        assert pipe.status("job")[0].result == "exit 7, gave up after 2 penalised restarts"
    runs = [event.run for event in watch.seen if event.event == "launched"]
    assert runs in ([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7, 8])  # the first death of all was free


# ---- which deaths count -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("restart", "ending", "state", "result"),
    [
        (False, "exit 0", "exited", "exit 0"),
        ("never", "exit 0", "exited", "exit 0"),
        (False, "exit 3", "failed", "exit 3"),
        (False, "kill -KILL $$", "failed", "SIGKILL"),
        ("on-failure", "exit 0", "exited", "exit 0"),
        ("on-failure", "exit 3", "backoff", "exit 3"),
        ("on-failure", "kill -SEGV $$", "backoff", "SIGSEGV"),
        (True, "exit 0", "backoff", "exit 0"),
        ("always", "exit 0", "backoff", "exit 0"),
        (True, "kill -TERM $$", "backoff", "SIGTERM"),
    ],
    ids=str,
)
def test_what_follows_a_death(
    daemon: Make, restart: bool | str, ending: str, state: str, result: str
) -> None:
    """By the policy and by how it died: exited, failed, or on its way back."""
    one = daemon({"jobs": {"job": {"command": ending, "restart": restart}}})
    watch, pipe = one.watch(), one.pipe()
    pipe.start("job", wait=False)
    died = watch.until("job", "died")

    assert (died.state, died.cause) == (state, result)
    if state == "backoff":
        watch.until("job", "restarting")
    else:
        assert (pipe.status("job")[0].state, pipe.status("job")[0].result) == (state, result)


@pytest.mark.parametrize(
    ("ending", "state"),
    [("exit 0", "failed"), ("exit 3", "exited"), ("exit 4", "failed"), ("kill -INT $$", "exited")],
)
def test_success_codes(daemon: Make, ending: str, state: str) -> None:
    """What counts as success is what the list says: exit codes and signals, and no others."""
    one = daemon({"jobs": {"job": {"command": ending, "success-codes": [3, "SIGINT"]}}})
    watch = one.watch()
    one.pipe().start("job", wait=False)

    assert watch.until("job", "died").state == state


def test_a_stop_is_no_death(daemon: Make) -> None:
    """A job that an operator stopped stays stopped, whatever its policy."""
    one = daemon({"jobs": {"job": {"command": kit.FOR_EVER, "restart": True, "autostart": True}}})
    watch = one.watch()
    one.run_cli("stop", "job")

    assert [word for word in watch.words() if "restarting" in word] == []
    assert one.pipe().status("job")[0].state == "stopped"
    assert watch.until("job", "died").state == "stopped"


@pytest.mark.parametrize("restart", [True, "on-failure"])
def test_what_cannot_start_is_tried_again_after_the_penalty(daemon: Make, restart: bool | str) -> None:
    """A directory that is missing for a while heals by itself; even the first retry waits the penalty."""
    job = {"command": kit.FOR_EVER, "restart": restart, "restart-penalty": 0.02, "working-dir": "later"}
    one = daemon({"jobs": {"job": job}})
    watch = one.watch()
    done = one.run_cli("start", "job")

    assert done.code == 1
    assert done.err.endswith("ENOENT (No such file or directory) (it will be tried again)\n")
    watch.find(lambda event: event.run == 2 and event.state == "backoff")
    os.mkdir(one.path("later"))
    pid = watch.until("job", "running").pid
    assert os.readlink(f"/proc/{pid}/cwd") == one.path("later")


def test_never_two(daemon: Make) -> None:
    """When the first process dies and others live, those are brought down before the next run begins."""
    family = "(echo $$ > kid; exec sleep 1000000) & read code < die; exit 1"
    one = daemon({"jobs": {"job": {"command": ["sh", "-c", family], "restart": True}}})
    kid, fifo = one.fifo("kid"), one.fifo("die")
    watch = one.watch()
    one.pipe().start("job")
    kid.line()
    first = kit.descendants_of(one.pid)
    die(fifo)
    told = story(watch, launches(2))
    kid.line()

    assert len(first) == 2
    assert not first & set(kit.processes())
    assert told == [
        ("launched", "starting", told[0][2]),
        ("state", "running", "launched"),
        ("state", "stopping", "exit 1"),
        ("died", "backoff", "exit 1"),
        ("restarting", "starting", "restart"),
        ("launched", "starting", "restart"),
    ]


# ---- stopping -----------------------------------------------------------------------------------


def test_kill_timeout(daemon: Make) -> None:
    """Who does not heed the stop signal is killed when the time is over, and it is told in the events."""
    one = daemon({"jobs": {"job": {**e2e.STUBBORN, "kill-timeout": 0.05, "autostart": True}}})
    watch = one.watch()

    assert one.run_cli("stop", "job").code == 0
    told = story(watch, lambda event: event.event == "died")
    assert [(event, state) for event, state, _ in told] == [
        ("state", "stopping"),
        ("state", "killing"),
        ("died", "stopped"),
    ]
    assert [cause for _, _, cause in told[1:]] == ["kill-timeout", "SIGKILL"]
    assert watch.seen[-2].time - watch.seen[-3].time > 0.0499


@pytest.mark.parametrize("name", ["SIGINT", "sigusr2", "SIGKILL", "SIGRTMIN+2"])
def test_the_stop_signal(daemon: Make, name: str) -> None:
    """A job is stopped by the signal that its configuration names, in any case."""
    one = daemon({"jobs": {"job": {"command": kit.FOR_EVER, "signal": name, "autostart": True}}})
    one.run_cli("stop", "job")

    assert one.pipe().status("job")[0].result == name.upper()


# ---- what a job gets ----------------------------------------------------------------------------


def test_a_fifo_makes_only_its_own_job_wait(daemon: Make) -> None:
    """The job is starting until the other end is opened; meanwhile the daemon serves everybody else."""
    one = daemon(
        {
            "jobs": {
                "piped": {"command": "cat", "stdin": "in", "stdout": "out", "autostart": True},
                "web": {"command": kit.FOR_EVER},
            }
        },
        announced=False,
    )
    for name in ("in", "out"):
        os.mkfifo(one.path(name))
    one._hear()
    watch, pipe = one.watch(), one.pipe()
    status = pipe.status("piped")[0]

    assert (status.state, status.alive) == ("starting", True)
    pipe.start("web")
    write = os.open(one.path("in"), os.O_RDWR)
    read = os.open(one.path("out"), os.O_RDWR)
    watch.until("piped", "running")
    os.write(write, b"through\n")
    assert kit.readable(read)
    assert os.read(read, 100) == b"through\n"
    os.close(write)
    os.close(read)


def test_who_waits_for_a_fifo_can_be_stopped(daemon: Make) -> None:
    """A job that is still before its program is stopped at once."""
    one = daemon({"jobs": {"piped": {"command": "cat", "stdout": "out", "kill-timeout": 1000}}})
    os.mkfifo(one.path("out"))
    pipe = one.pipe()
    pipe.start("piped", wait=False)
    pid = pipe.pid("piped")

    assert one.run_cli("stop", "piped").code == 0
    assert pid not in kit.processes()


def environment(one: kit.Daemon, job: str) -> dict[str, str]:
    """What the job's process was given."""
    return kit.environ_of(one.pipe().pid(job) or 0)


def test_env_comes_on_top_of_the_daemons_own(daemon: Make) -> None:
    """A job gets the daemon's variables, its own, which win, and its name; not what is the daemon's."""
    ours = {"KEPT": "é$x", "REPLACED": "old", "NOTIFY_SOCKET": None, "LISTEN_FDS": "3", "WATCHDOG_USEC": "1"}
    env = {"REPLACED": "new $KEPT", "EMPTY": "", "with space": "\n"}
    one = daemon({"jobs": {"a job": {"command": kit.FOR_EVER, "env": env, "autostart": True}}}, environ=ours)
    got = environment(one, "a job")

    assert {name: got[name] for name in ("KEPT", *env)} == {"KEPT": "é$x", **env}
    assert got["JOBMON_JOB"] == "a job"
    assert not {"LISTEN_FDS", "WATCHDOG_USEC", "NOTIFY_SOCKET"} & set(got)


def test_working_directories(daemon: Make) -> None:
    """They are relative to the supervisor's, with variables expanded; the supervisor's is the default."""
    jobs: dict[str, Any] = {
        "default": {},
        "relative": {"working-dir": "sub"},
        "absolute": {"working-dir": "/"},
        "expanded": {"working-dir": "${WHERE}/$$x"},
    }
    config = {"jobs": {name: {"command": kit.FOR_EVER, **job} for name, job in jobs.items()}}
    one = daemon(config, environ={"WHERE": "sub"})
    os.makedirs(one.path("sub/$x"))
    pipe = one.pipe()
    pipe.start(*jobs)

    found = {name: os.readlink(f"/proc/{pipe.pid(name)}/cwd") for name in jobs}
    assert found == {
        "default": one.directory,
        "relative": one.path("sub"),
        "absolute": "/",
        "expanded": one.path("sub/$x"),
    }


def test_output_is_appended(daemon: Make) -> None:
    """Nothing that was in the file is lost, whatever the number of runs; both streams may share one."""
    job = {"command": "echo out; echo err >&2", "stdout": "$LOGS/log", "stderr": "./logs/log"}
    one = daemon({"jobs": {"job": job}}, environ={"LOGS": "logs"})
    os.mkdir(one.path("logs"))
    with open(one.path("logs/log"), "w", encoding="utf-8") as file:
        file.write("before\n")
    watch, pipe = one.watch(), one.pipe()
    for _ in range(3):
        pipe.start("job", wait=False)
        watch.until("job", "died")

    with open(one.path("logs/log"), encoding="utf-8") as file:
        assert file.read() == "before\n" + "out\nerr\n" * 3


def test_what_a_process_begins_with(daemon: Make) -> None:
    """A session of its own, and three descriptors with nothing beside them."""
    open_ones = "(os.path.exists(f'/proc/self/fd/{n}') for n in range(99))"
    program = f"import os; print(os.getsid(0) == os.getpid(), *{open_ones})"
    job = {"command": [sys.executable, "-c", program], "stdin": "jobmon.json", "stdout": "out"}
    one = daemon({"jobs": {"job": job}})
    watch = one.watch()
    one.pipe().start("job", wait=False)
    watch.until("job", "died")

    with open(one.path("out"), encoding="utf-8") as file:
        assert file.read().split() == ["True"] * 4 + ["False"] * 96


@pytest.mark.parametrize("ignored", [signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE])
def test_what_the_daemon_was_told_to_ignore_jobs_do_not(daemon: Make, ignored: signal.Signals) -> None:
    """Odd dispositions of the caller (nohup, trap '') have no effect on jobs, and no signal is blocked."""
    wrapper = ["sh", "-c", f'trap "" {ignored.name[3:]}; exec "$@"', "sh"]
    one = daemon({"jobs": {"job": {"command": kit.FOR_EVER, "autostart": True}}}, wrapper=wrapper)
    pid = one.pipe().pid("job") or 0

    status = kit.status_of(pid)
    assert (kit.ignored_by(status["SigIgn"]), kit.ignored_by(status["SigBlk"])) == (0, 0)
    assert one.run_cli("stop", "job").code == 0
    assert one.pipe().status("job")[0].result == "SIGTERM"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("echo $((1+1)) '*' $HOME_OF", "2 * me\n"),
        (["echo", "$((1+1))", "*", "$HOME_OF", ""], "$((1+1)) * $HOME_OF \n"),
    ],
    ids=["shell", "argv"],
)
def test_a_string_is_for_the_shell_a_list_is_not(daemon: Make, command: Any, told: str) -> None:
    """A string is run by /bin/sh; the words of a list reach the program as they are."""
    job = {"command": command, "stdout": "out", "env": {"HOME_OF": "me"}}
    one = daemon({"jobs": {"job": job}})
    watch = one.watch()
    one.pipe().start("job", wait=False)
    watch.until("job", "died")

    with open(one.path("out"), encoding="utf-8") as file:
        assert file.read() == told
