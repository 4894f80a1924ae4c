"""`jobmon wait`, and the verbs that wait: the real program against the real daemon.

What each condition means is in test_waits.py, and very many who wait are in test_many_waiters.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import termios

import e2e
import forbid
import kit
import pytest

from jobmon import JobError, WaitTimeout
from jobmon.cli.commands import VERBS, UsageError, parse
from jobmon.cli.formatting import condition
from jobmon.protocol import CONDITIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Make = Callable[..., kit.Daemon]

WEB = {"command": kit.FOR_EVER}
CODE_7 = {"command": "exit 7"}
JOBMON = (sys.executable, "-m", "jobmon")


def tell(one: kit.Daemon, *words: str) -> tuple[int, str, str]:
    """Run `jobmon WORDS` against a daemon: its code and output, to be compared with a tuple."""
    code, out, err = one.run_cli(*words)
    assert "Traceback" not in err
    return code, out, err


def waiting(one: kit.Daemon, *words: str) -> e2e.Link:
    """`jobmon wait WORDS`, once the daemon knows of it."""
    link = e2e.Relay(one).start_cli("wait", *words)
    link.heard()
    return link


def silent(link: e2e.Link, code: int) -> bool:
    """Whether it ends with `code` and has printed nothing."""
    return tuple(link.end()) == (code, "", "")


def crash(one: kit.Daemon) -> None:
    """Kill a daemon, which has no job running, by SIGKILL, and tidy up what it could not."""
    one.stop(signal.SIGKILL)
    for name in ("control", "event", "control.lock", "event.lock"):
        os.unlink(one.path(name))
    cgroup = re.search(r'a cgroup of its own below="(.*)"', one.log)
    if cgroup is not None:
        with contextlib.suppress(FileNotFoundError):  # another daemon may have cleared it away
            os.rmdir(cgroup[1])


# ---- arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "given", "command"),
    [
        ("a", ["a"], []),
        ("a b -- c -d", ["a", "b"], ["c", "-d"]),
        ("a -- c -- d", ["a"], ["c", "--", "d"]),
        ("-- -a", ["-a"], []),
        ("-- -a -- c -- d", ["-a"], ["c", "--", "d"]),
        ("--any a --", ["a"], []),
    ],
)
def test_a_command_stands_after_the_names(words: str, given: list[str], command: list[str]) -> None:
    """`--` begins the command; with no name before it, it begins names, and a second one the command."""
    arguments = parse(VERBS["wait"], words.split())

    assert (arguments.given, arguments.command) == (given, command)


@pytest.mark.parametrize("name", CONDITIONS)
def test_every_condition_of_the_protocol_can_be_written(name: str) -> None:
    """The command line has no list of its own; stable takes a duration, and only it does."""
    word = f"{name}:500ms" if name == "stable" else name

    assert condition(word) == (name, 0.5 if name == "stable" else 0.0)


@pytest.mark.parametrize("word", ["", "redy", "stable", "stable:", "stable:soon", "ready:5s", "stable:1s:2s"])
def test_what_is_no_condition_is_wrong_usage(word: str) -> None:
    """A misspelt condition is refused before anybody is asked."""
    with pytest.raises(UsageError):
        condition(word)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["wait"], "JOB... [-- CMD...] is missing"),
        (["wait", "--", "--", "true"], "is missing"),
        (["wait", "web", "--for", "redy"], "unknown condition 'redy' (expected one of: changed, running"),
        (["wait", "web", "--since", "yesterday"], "--since must be a number"),
        (["wait", "web", "--since", "-1"], "the number of an event"),
        (["wait", "web", "--timeout", "soon"], "invalid duration"),
        (["wait", "web", "db", "--propagate"], "exactly one job"),
        (["wait", "web", "--propagate", "--for", "ready"], "--for exited"),
        (["start", "web", "--wait", "up"], "unknown condition 'up'"),
        (["restart", "web", "--wait", "ready", "--no-wait"], "are mutually exclusive"),
    ],
)
def test_wrong_usage(daemon: Make, words: list[str], says: str) -> None:
    """2, with words that say what would be right; the daemon is not even asked."""
    one = daemon({"jobs": {"web": WEB, "db": WEB}})
    code, out, err = tell(one, *words)

    assert (code, out) == (2, "")
    assert says in err


# ---- conditions ------------------------------------------------------------------------------


@pytest.mark.parametrize("cond", ["running", "ready", "stable:0", "settled"])
def test_what_holds_already_is_not_waited_for(daemon: Make, cond: str) -> None:
    """Nothing has to happen where it is so."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": True}}})
    one.watch(since=0).until("web", "running")

    assert tell(one, "wait", "web", "--for", cond) == (0, "", "")


@pytest.mark.parametrize("cond", ["stopped", "settled"])
def test_what_was_never_started_is_stopped(daemon: Make, cond: str) -> None:
    """Nothing is there, and nothing comes by itself."""
    assert tell(daemon({"jobs": {"web": WEB}}), "wait", "web", "--for", cond) == (0, "", "")


@pytest.mark.parametrize("cond", ["running", "ready", "stable:1s"])
def test_what_is_down_fails_at_once(daemon: Make, cond: str) -> None:
    """Nobody waits for a job that nobody starts: 1, and why."""
    one = daemon({"jobs": {"web": WEB}})

    assert tell(one, "wait", "web", "--for", cond) == (1, "", "jobmon: web: is stopped\n")


def test_what_is_given_up_meanwhile_fails_at_once(daemon: Make) -> None:
    """The end of the job is the end of the wait."""
    one = daemon({"jobs": {"web": {"command": "read line; exit 3", "stdin": "fifo"}}})
    fifo = one.fifo("fifo")
    one.pipe().start("web")
    link = waiting(one, "web", "--for", "stable:1h")
    os.write(fifo.fd, b"end\n")
    code, out, err = link.end()

    assert (code, out) == (1, "")
    assert err == "jobmon: web: has died meanwhile (exit 3)\n"


@pytest.mark.parametrize("cond", ["ready", "restarted"])
def test_who_waits_for_a_job_that_gives_up_hears_of_it(daemon: Make, cond: str) -> None:
    """A program that ends before it is ready, and is not started again: 1, at once, and how it ended."""
    job = {"command": "read line; exit 3", "stdin": "fifo", "ready": {"fd": 3}, "restart": "never"}
    one = daemon({"jobs": {"web": job}})
    fifo = one.fifo("fifo")
    one.pipe().start("web", wait=False)
    link = waiting(one, "web", "--for", cond)
    assert not link.answered()
    os.write(fifo.fd, b"end\n")

    assert tuple(link.end()) == (1, "", "jobmon: web: is failed: exit 3\n")


def test_who_waits_for_a_job_that_is_removed_hears_of_it(daemon: Make) -> None:
    """A reload leaves it out: what can hold no more has failed, and what its end has brought holds."""
    one = daemon({"jobs": {"down": WEB, "up": {**WEB, "autostart": True}}})
    one.watch(since=0).until("up", "running")
    links = {
        words: waiting(one, *words.split())
        for words in ("down", "up --for restarted", "up", "up --for stopped", "up --for exited --propagate")
    }
    one.configure({"jobs": {}})
    assert one.run_cli("reload").code == 0

    ends = {words: tuple(link.end()) for words, link in links.items()}
    assert ends == {
        "down": (1, "", "jobmon: down: was removed\n"),
        "up --for restarted": (1, "", "jobmon: up: was removed\n"),
        "up": (0, "", ""),
        "up --for stopped": (0, "", ""),
        "up --for exited --propagate": (128 + signal.SIGTERM, "", ""),
    }


def test_ready_is_more_than_running(daemon: Make) -> None:
    """A job that says when it serves is waited for until then."""
    ready = {"command": "read line; echo >&3; exec sleep 1000000", "stdin": "fifo", "ready": {"fd": 3}}
    one = daemon({"jobs": {"web": ready}})
    fifo = one.fifo("fifo")
    one.pipe().start("web", wait=False)
    assert tell(one, "wait", "web", "--for", "running") == (0, "", "")
    link = waiting(one, "web", "--for", "ready")
    assert not link.answered()
    os.write(fifo.fd, b"serve\n")

    assert silent(link, 0)


def test_restarted_needs_a_later_run(daemon: Make) -> None:
    """The run that is ready now is not meant."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": True}}})
    link = waiting(one, "web", "--for", "restarted")
    assert not link.answered()
    one.pipe().restart("web")

    assert silent(link, 0)


def test_stable_waits_for_the_time(daemon: Make) -> None:
    """It ends when the run has been ready for so long; it takes just that: this test needs 300 ms."""
    one = daemon({"jobs": {"web": WEB}})
    one.pipe().start("web")
    watch = one.watch()

    assert tell(one, "wait", "web", "--for", "stable:300ms") == (0, "", "")
    assert watch.seen == []
    (web,) = one.pipe().status("web")
    assert web.state == "running"


def test_all_at_the_same_moment(daemon: Make) -> None:
    """Two jobs that are up one after the other are not both up."""
    one = daemon({"jobs": {"a": {**WEB, "autostart": True}, "b": {**WEB, "autostart": True}}})
    one.watch(since=0).until("b", "running")
    pipe = one.pipe()
    pipe.stop("b")
    link = waiting(one, "a", "b", "--for", "stopped")
    pipe.start("b")
    pipe.stop("a")
    assert not link.answered()
    pipe.stop("b")

    assert silent(link, 0)


def test_any_ends_with_the_first(daemon: Make) -> None:
    """--any is content with one of them."""
    one = daemon({"jobs": {"a": {**WEB, "autostart": True}, "b": {**WEB, "autostart": True}}})
    link = waiting(one, "a", "b", "--any", "--for", "stopped")
    one.pipe().stop("b")

    assert silent(link, 0)


def test_in_vain_for_several_is_one_line(daemon: Make) -> None:
    """However many jobs it was in vain for, one line says why."""
    one = daemon({"jobs": {"a": WEB, "b": WEB}})

    assert tell(one, "wait", "a", "b", "--for", "ready") == (
        1,
        "",
        "jobmon: a: is stopped; b: is stopped\n",
    )


def test_since_sees_what_is_past(daemon: Make) -> None:
    """A token that --no-wait has printed makes a change count that came before the wait."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": True}}})
    watch = one.watch(since=0)
    watch.until("web", "running")
    code, token, _ = tell(one, "restart", "web", "--no-wait")
    watch.until("web", "died")
    watch.until("web", "running")

    assert code == 0
    assert tell(one, "wait", "web", "--for", "restarted", "--since", token.strip()) == (0, "", "")
    assert tell(one, "wait", "web", "--since", token.strip()) == (0, "", "")
    assert tell(one, "wait", "web", "--for", "restarted", "--timeout", "0")[0] == 124


def test_since_of_what_is_not_known(daemon: Make) -> None:
    """A token of an earlier daemon, or none, is wrong usage."""
    one = daemon({"jobs": {"web": WEB}})
    future = 1 << 53

    for event, why in ((4711, "is not known any more"), (future, "has not happened yet")):
        told = f"jobmon: event {event} {why}\n"
        assert tell(one, "wait", "web", "--since", str(event)) == (2, "", told)


def test_unknown_names(daemon: Make) -> None:
    """4, and what was probably meant."""
    one = daemon({"jobs": {"web": WEB}})

    assert tell(one, "wait", "wbe", "--for", "stopped", "--json")[0] == 4
    assert tell(one, "wait", "wbe") == (4, "", "jobmon: wbe: no such job (did you mean 'web'?)\n")


# ---- turns of the loop --------------------------------------------------------------------------


def stop_daemon(one: kit.Daemon) -> None:
    """Keep the daemon from its next turn, until SIGCONT."""
    one.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, one.pid, os.WSTOPPED | os.WNOWAIT)


def kill_job(pid: int) -> None:
    """Let a job die while the daemon is stopped."""
    os.kill(pid, signal.SIGKILL)
    kit.wait_gone(pid)


@pytest.mark.parametrize("asked_first", [True, False])
@pytest.mark.parametrize(
    ("restart", "brings"),
    [
        (False, ["changed", "stopped", "exited", "settled"]),
        (True, ["changed", "running", "ready", "restarted", "exited", "settled"]),
    ],
)
def test_a_change_and_its_waiters_in_one_turn(
    daemon: Make, restart: bool, brings: list[str], asked_first: bool
) -> None:
    """The daemon wakes up to find both, a death and who waits for what it brings: that is not missed."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": True, "restart": restart}}})
    one.watch(since=0).until("web", "running")
    pipe = one.pipe()
    pid = pipe.get_pid("web") or 0
    token = pipe.request("status")["token"]
    stop_daemon(one)
    if not asked_first:
        kill_job(pid)
    numbers = [pipe.submit("wait", ("web",), condition=cond, since=token) for cond in brings]
    if asked_first:
        kill_job(pid)
    one.process.send_signal(signal.SIGCONT)

    for cond, number in zip(brings, numbers, strict=True):
        (result,) = pipe.collect(number, kit.DEADLINE)["results"]
        assert result == {"job": "web", "ok": True} | ({"exit": "SIGKILL"} if cond == "exited" else {})


@pytest.mark.parametrize("dies", [True, False])
def test_success_and_timeout_in_one_turn(daemon: Make, dies: bool) -> None:
    """The time is up and the job has gone: the daemon, which sees both at once, says that it has gone.

    That the time is up takes real time: 100 ms of which the daemon sees nothing.
    """
    one = daemon({"jobs": {"web": {**WEB, "autostart": True}}})
    pipe = one.pipe()
    pid = pipe.get_pid("web") or 0
    number = pipe.submit("wait", ("web",), condition="exited", timeout=0.1)
    pipe.info()
    stop_daemon(one)
    if dies:
        kill_job(pid)
    assert not kit.readable(pipe.fileno(), 0.15)
    one.process.send_signal(signal.SIGCONT)

    if dies:
        assert pipe.collect(number, kit.DEADLINE)["results"] == [
            {"job": "web", "ok": True, "exit": "SIGKILL"}
        ]
    else:
        with pytest.raises(WaitTimeout):
            pipe.collect(number, kit.DEADLINE)


# ---- propagate --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137), ("kill -37 $$", 165)]
)
def test_propagate_gives_the_code_of_the_job(daemon: Make, command: str, code: int) -> None:
    """The exit code, or 128+n as a shell says it, for real-time signals too."""
    one = daemon({"jobs": {"job": {"command": command}}})
    watch = one.watch()
    one.pipe().start("job", wait=False)
    watch.until("job", "died")

    assert tell(one, "wait", "job", "--propagate") == (code, "", "")


def test_propagate_while_it_runs(daemon: Make) -> None:
    """It waits for the end of the present run."""
    one = daemon({"jobs": {"job": {"command": "read line; exit 9", "stdin": "fifo"}}})
    fifo = one.fifo("fifo")
    one.pipe().start("job")
    link = waiting(one, "job", "--for", "exited", "--propagate")
    os.write(fifo.fd, b"end\n")

    assert silent(link, 9)


def test_what_never_ran_has_no_end(daemon: Make) -> None:
    """There is nothing to propagate."""
    one = daemon({"jobs": {"job": CODE_7}})

    assert tell(one, "wait", "job", "--propagate") == (1, "", "jobmon: job: has never run\n")


# ---- with a command ---------------------------------------------------------------------------


def test_the_command_starts_when_the_wait_is_armed(daemon: Make) -> None:
    """A restart that is faster than any client is not missed."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": True}}})
    words = ("wait", "web", "--for", "restarted", "--", *JOBMON, "restart", "web")

    assert tell(one, *words) == (0, "", "")


def test_a_job_that_is_down_before_the_command_starts_it(daemon: Make) -> None:
    """Being down is no failure where something is about to bring it up."""
    one = daemon({"jobs": {"web": WEB}})
    words = ("wait", "web", "--for", "ready", "--", *JOBMON, "start", "--no-wait", "web")
    code, out, err = tell(one, *words)

    assert (code, err) == (0, "")
    assert out.strip().isdigit()


def test_the_failure_of_the_command_is_that_of_the_wait(daemon: Make) -> None:
    """1, though nothing has happened that one could wait for."""
    one = daemon({"jobs": {"web": WEB}})

    assert tell(one, "wait", "web", "--", "sh", "-c", "exit 3") == (
        1,
        "",
        "jobmon: the command sh failed (exit 3)\n",
    )
    assert tell(one, "wait", "web", "--", "sh", "-c", "kill -TERM $$") == (
        1,
        "",
        "jobmon: the command sh failed (signal 15)\n",
    )


def test_the_failure_of_the_command_counts_after_the_condition_has_held(daemon: Make) -> None:
    """Ready and a failed deployment is a failed deployment."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": True}}})
    one.watch(since=0).until("web", "running")

    assert tell(one, "wait", "web", "--for", "ready", "--", "false")[0] == 1


def test_a_command_that_cannot_be_run(daemon: Make) -> None:
    """It is named, with the reason."""
    one = daemon({"jobs": {"web": WEB}})

    assert tell(one, "wait", "web", "--", "./nothing") == (
        1,
        "",
        "jobmon: ./nothing: cannot be run: No such file or directory\n",
    )


@pytest.mark.parametrize(("job", "code"), [("wbe", 4), ("web", 1)])
def test_no_command_is_started_for_what_cannot_be(daemon: Make, job: str, code: int) -> None:
    """Where the wait is in vain from the beginning, nothing is done at all."""
    one = daemon({"jobs": {"web": WEB}})

    assert tell(one, "wait", job, "--for", "exited", "--", "touch", one.path("started"))[0] == code
    assert not os.path.exists(one.path("started"))


def test_a_wait_that_fails_does_not_wait_for_its_command(daemon: Make) -> None:
    """At once means at once; the command is left alone, and named."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": True}}})
    fifo = one.fifo("fifo")
    script = f"exec >{one.path('pid')} 2>&1; echo $$; read line <{fifo.path}"
    code, out, err = tell(one, "wait", "web", "--timeout", "50ms", "--", "sh", "-c", script)
    with open(one.path("pid"), encoding="ascii") as file:
        pid = int(file.read())

    assert (code, out) == (124, "")
    assert err.splitlines()[0] == f"jobmon: the command is still running (pid {pid})"
    os.write(fifo.fd, b"end\n")
    kit.wait_gone(pid)


@pytest.mark.parametrize("rule", ["pidfd_open=EPERM", "pidfd_open=ENOSYS"])
def test_time_is_kept_beside_a_command_where_pidfds_are_forbidden(daemon: Make, rule: str) -> None:
    """The daemon is stopped and the command goes on: the wait ends all the same, by its own clock."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": True}}})
    one.watch(since=0).until("web", "running")
    fifo = one.fifo("fifo")
    script = f"echo $$; read line <{fifo.path}"
    words = ("wait", "web", "--timeout", "1s", "--", "sh", "-c", script)
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [*forbid.forbidding(rule), *JOBMON, *words]
    with subprocess.Popen(command, env=one.environ, text=True, **streams) as process:
        assert process.stdout is not None and process.stderr is not None
        pid = int(process.stdout.readline())
        stop_daemon(one)
        try:
            kit.wait_gone(process.pid)
        finally:
            one.process.send_signal(signal.SIGCONT)
            os.write(fifo.fd, b"end\n")
        assert process.stderr.readline() == f"jobmon: the command is still running (pid {pid})\n"
        kit.wait_gone(pid)

    assert process.returncode == 124


def test_an_ignored_sigchld_hides_no_end(daemon: Make) -> None:
    """A caller that ignores SIGCHLD, which programs inherit, gets the exit code of the command."""
    one = daemon({"jobs": {"web": WEB}})
    command = [*JOBMON, "wait", "web", "--", "sh", "-c", "exit 3"]
    streams: dict[str, Any] = {"stderr": subprocess.PIPE}
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        process = subprocess.Popen(command, env=one.environ, text=True, restore_signals=False, **streams)
    finally:
        signal.signal(signal.SIGCHLD, before)
    with process:
        _, err = process.communicate(timeout=kit.DEADLINE)

    assert (process.returncode, err) == (1, "jobmon: the command sh failed (exit 3)\n")


@pytest.mark.parametrize(("name", "words"), [("HUP", "hangup"), ("INT", "interrupt"), ("TERM", "terminated")])
def test_a_signal_goes_to_the_command(daemon: Make, name: str, words: str) -> None:
    """It is passed on, and when the command has ended of it so does the wait: 128 and its number."""
    one = daemon({"jobs": {"web": WEB}})
    process = one.start_cli("wait", "web", "--", *kit.FOR_EVER, start_new_session=True)
    (pid,) = _children(process.pid)
    number = getattr(signal, f"SIG{name}")
    process.send_signal(number)
    out, err = process.communicate(timeout=kit.DEADLINE)

    assert (process.returncode, out) == (128 + number, "")
    assert err == f"jobmon: {words}: the command {kit.FOR_EVER[0]} ended (signal {int(number)})\n"
    assert pid not in kit.processes()


def test_a_command_may_take_its_time_to_end(daemon: Make) -> None:
    """What it does about the signal is its own affair, and is waited for; so with one that was answered."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": True}}})
    one.watch(since=0).until("web", "running")
    fifo = one.fifo("fifo")
    script = f"trap 'echo cleaned up; exit 0' TERM; echo up; while read line <{fifo.path}; do :; done"
    words = ("wait", "web", "--for", "ready", "--", "sh", "-c", script)
    process = one.start_cli(*words, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.terminate()
    out, err = process.communicate(timeout=kit.DEADLINE)

    assert (process.returncode, out) == (143, "cleaned up\n")
    assert err == "jobmon: terminated: the command sh ended (exit 0)\n"


def test_what_is_ignored_is_not_passed_on(daemon: Make) -> None:
    """Under nohup(1) a hang-up is nobody's end."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": True}}})
    one.watch(since=0).until("web", "running")
    fifo = one.fifo("fifo")
    command = ("sh", "-c", f"echo up; read line <{fifo.path}")
    words = (*JOBMON, "wait", "web", "--for", "ready", "--", *command)
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    with subprocess.Popen(("nohup", *words), env=one.environ, text=True, **streams) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGHUP)
        os.write(fifo.fd, b"end\n")

    assert process.returncode == 0


def test_the_terminal_tells_the_command_itself(daemon: Make) -> None:
    """Ctrl-C comes to both by the terminal, and the command gets it once."""
    one = daemon({"jobs": {"web": WEB}})
    script = (
        "import signal, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [2, 15])\n"
        "print('up', flush=True)\n"
        "print(signal.sigwait([2, 15]), flush=True)\n"
        "print(signal.sigwait([2, 15]), flush=True)\n"
    )
    ours, theirs = os.openpty()
    has_terminal: dict[str, Any] = {
        "stdin": theirs,
        "start_new_session": True,
        "preexec_fn": lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    }
    process = one.start_cli("wait", "web", "--", sys.executable, "-c", script, **has_terminal)
    os.close(theirs)
    with process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGSTOP)  # or two at once might be one for the command
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        os.write(ours, b"\x03")
        assert process.stdout.readline() == "2\n"
        process.terminate()
        process.send_signal(signal.SIGCONT)
        assert process.stdout.readline() == "15\n"
        assert process.stderr.read().endswith(" ended (exit 0)\n")
    os.close(ours)

    assert process.returncode == 130


def test_the_command_gets_its_streams_and_default_signals(daemon: Make) -> None:
    """It is as if it had been typed: output, input, and SIGPIPE, which Python ignores."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": True}}})
    one.watch(since=0).until("web", "running")
    script = "grep SigIgn /proc/self/status; echo told >&2"
    code, out, err = tell(one, "wait", "web", "--for", "ready", "--", "sh", "-c", script)

    assert (code, err) == (0, "told\n")
    assert int(out.split()[1], 16) & 1 << (signal.SIGPIPE - 1) == 0


# ---- JSON -------------------------------------------------------------------------------------


def test_json_says_what_it_came_to(daemon: Make) -> None:
    """On success and on failure, with the exit codes of always."""
    one = daemon({"jobs": {"job": CODE_7}})
    watch = one.watch()
    one.pipe().start("job", wait=False)
    watch.until("job", "died")
    code, out, err = tell(one, "wait", "job", "--for", "exited", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"ok": True, "results": [{"job": "job", "ok": True, "exit": 7}]}

    code, out, err = tell(one, "wait", "job", "--for", "running", "--json")
    assert code == 1
    failure = {"code": "failed", "message": "is failed: exit 7"}
    assert json.loads(out) == {
        "ok": False,
        "error": {"code": "failed", "message": "job: is failed: exit 7"},
        "results": [{"job": "job", "ok": False, "error": failure}],
    }


# ---- the verbs that wait ------------------------------------------------------------------------


def test_restart_waits_for_a_condition(daemon: Make) -> None:
    """`jobmon restart web --wait stable:100ms`: up, and still up a moment later."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": True}}})
    one.watch(since=0).until("web", "running")

    assert tell(one, "restart", "web", "--wait", "stable:100ms", "--timeout", "20s") == (0, "", "")
    assert one.pipe().status("web")[0].run == 2


def test_a_restart_that_does_not_stay_up_fails(daemon: Make) -> None:
    """A first good moment is not enough."""
    one = daemon({"jobs": {"web": {"command": "sleep 0.05; exit 4"}}})
    code, out, err = tell(one, "restart", "web", "--wait", "stable:1h")

    assert (code, out) == (1, "")
    assert err == "jobmon: web: has died meanwhile (exit 4)\n"


def test_a_restart_of_two_ends_with_the_first_that_cannot_stay_up(daemon: Make) -> None:
    """One that dies ends the command at once, however long the other would have to stay up."""
    dies = {"command": "read line <go; exit 4", "restart": True, "restart-penalty": 1000}
    one = daemon({"jobs": {"web": WEB, "db": dies}})
    go, watch = one.fifo("go"), one.watch()
    process = one.start_cli("restart", "db", "web", "--wait", "stable:1h")
    up: set[str] = set()
    while len(up) < 2:
        up.add(watch.find(lambda event: event.state == "running").job)
    os.write(go.fd, b"go\n")
    out, err = process.communicate(timeout=kit.DEADLINE)

    assert (process.returncode, out, err) == (1, "", "jobmon: db: has died meanwhile (exit 4)\n")
    assert one.pipe().is_running("web")


@pytest.mark.parametrize(
    ("words", "state", "run"),
    [
        ("start down --wait running", "starting", 1),
        ("start down --wait changed", "starting", 1),
        ("restart down --wait running --timeout 1h", "starting", 1),
        ("restart up --wait running --timeout 2m", "starting", 2),
        ("restart up --wait restarted --reason why", "running", 2),
        ("restart up --wait stable:1ms", "running", 2),
        ("stop up --wait stopped", "stopped", 1),
        ("stop up --wait exited --timeout 20s", "stopped", 1),
        ("stop up --wait settled --timeout 7", "stopped", 1),
    ],
)
def test_a_condition_replaces_what_a_verb_waits_for(daemon: Make, words: str, state: str, run: int) -> None:
    """Not for ready, nor for gone, but for what it was told; and it prints nothing."""
    ready_when_told = {"command": "read line <go; echo >&3; exec sleep 1000000", "ready": {"fd": 3}}
    one = daemon({"jobs": {"up": ready_when_told, "down": ready_when_told}})
    go = one.fifo("go")
    os.write(go.fd, b"go\n")
    pipe = one.pipe()
    pipe.start("up")
    if state == "running":
        os.write(go.fd, b"go\n")

    assert tell(one, *words.split()) == (0, "", "")
    (job,) = pipe.status(words.split()[1])
    assert (job.state, job.run) == (state, run)


@pytest.mark.parametrize(
    ("verb", "conditions"),
    [
        ("start", "changed running ready restarted stable:1ms settled"),
        ("stop", "changed stopped exited settled"),
        ("restart", "changed ready restarted exited settled"),
    ],
)
def test_a_token_is_where_a_wait_begins(daemon: Make, verb: str, conditions: str) -> None:
    """What --no-wait has begun, and what is over by then, `wait --since` finds; later news is not needed."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": verb != "start"}}})
    watch = one.watch(since=0)
    if verb != "start":
        watch.until("web", "running")
    code, token, err = tell(one, verb, "web", "--no-wait")
    assert (code, token, err) == (0, f"{int(token)}\n", "")

    watch.find(lambda event: event.seq > int(token) and event.state in ("running", "stopped"))
    for cond in conditions.split():
        assert tell(one, "wait", "web", "--for", cond, "--since", token.strip()) == (0, "", ""), cond


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("start web --timeout soon", "invalid duration 'soon' (examples: 500ms, 20s, 2m, 1h)"),
        ("start web --wait stable:1d", "invalid duration '1d' (examples: 500ms, 20s, 2m, 1h)"),
        ("stop up --timeout -1s", "invalid duration '-1s' (examples: 500ms, 20s, 2m, 1h)"),
        ("restart up --timeout 1e3", "invalid duration '1e3' (examples: 500ms, 20s, 2m, 1h)"),
        ("restart up --wait stable:1h30m", "invalid duration '1h30m' (examples: 500ms, 20s, 2m, 1h)"),
        ("restart up --wait stable", "unknown condition 'stable' (expected one of:"),
        ("wait up --for stable:", "invalid duration '' (examples: 500ms, 20s, 2m, 1h)"),
        ("wait up --timeout 99999h", "duration '99999h' is more than ten years"),
    ],
)
def test_a_bad_duration_does_nothing(daemon: Make, words: str, says: str) -> None:
    """2, with the words that would be right, and no job has noticed."""
    one = daemon({"jobs": {"up": {**WEB, "autostart": True}, "web": WEB}})
    one.watch(since=0).until("up", "running")
    before = one.pipe().request("status")["token"]
    code, out, err = tell(one, *words.split())

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
    assert one.pipe().request("status")["token"] == before


def test_a_verb_that_fails_says_why_and_what_was_written(daemon: Make) -> None:
    """Start and restart wait for ready: what comes instead is told with the last lines of its stderr."""
    script = "if test -e up; then echo >&3; exec sleep 1000000; fi; echo 'where is up?' >&2; exit 3"
    one = daemon({"jobs": {"web": {"command": script, "stderr": "errors", "ready": {"fd": 3}}}})
    told = (1, "", "jobmon: web: is failed: exit 3; last lines of stderr:\n  | where is up?\n")

    assert tell(one, "start", "web") == told
    os.mkdir(one.path("up"))
    assert tell(one, "start", "web") == (0, "", "")
    os.rmdir(one.path("up"))
    assert tell(one, "restart", "web") == told
    assert tell(one, "restart", "web", "--no-wait")[0] == 0


def test_who_waits_for_what_does_not_stay_up_is_told(daemon: Make) -> None:
    """Once for each job, those too that it requires; the answer is what it comes to."""
    flaps = {"command": "exit 7", "restart": True, "restart-penalty": 0.1, "ready": {"fd": 3}}
    one = daemon({"jobs": {"db": {**flaps, "command": "exit 3"}, "web": {**flaps, "requires": ["db"]}}})
    process = one.start_cli("start", "web")
    assert process.stderr is not None
    assert process.stderr.readline() == "jobmon: db: exit 3; it will be restarted, still waiting\n"
    one.watch().find(lambda event: event.state == "backoff")
    one.watch().find(lambda event: event.state == "backoff")
    one.pipe().stop("web")
    one.pipe().stop("db")
    out, err = process.communicate(timeout=kit.DEADLINE)

    assert (process.returncode, out) == (1, "")
    assert err.startswith("jobmon: web: ") and err.count("\n") == 1


def test_start_waits_for_the_end_of_a_run(daemon: Make) -> None:
    """`start --wait exited` is how a task is run to its end."""
    one = daemon({"jobs": {"task": CODE_7}})

    assert tell(one, "start", "task", "--wait", "exited") == (0, "", "")
    assert tell(one, "wait", "task", "--propagate")[0] == 7


# ---- the API ------------------------------------------------------------------------------------


def test_the_api_waits_too(daemon: Make) -> None:
    """CommandPipe.wait takes what the command takes, and tells how runs ended."""
    one = daemon({"jobs": {"job": CODE_7, "web": WEB}})
    pipe = one.pipe()
    pipe.start("job", condition="exited")

    assert pipe.wait("job", condition="exited") == {"job": 7}
    assert pipe.wait("job", "web", condition="stopped", any=True) == {"web": None, "job": None}
    with pytest.raises(WaitTimeout):
        pipe.wait("web", timeout=0)
    with pytest.raises(JobError, match="is stopped"):
        pipe.wait("web", condition="stable", duration=3)


# ---- what may go wrong --------------------------------------------------------------------------


def test_the_daemon_is_killed_meanwhile(daemon: Make) -> None:
    """75: it was there when the wait began."""
    one = daemon({"jobs": {"web": WEB}})
    link = waiting(one, "web")
    crash(one)
    code, out, err = link.end()

    assert (code, out) == (75, "")
    assert "closed the connection" in err


def test_the_daemon_is_killed_while_the_command_runs(daemon: Make) -> None:
    """75 at once: the command is not waited for."""
    one = daemon({"jobs": {"web": WEB}})
    process = one.start_cli("wait", "web", "--", *kit.FOR_EVER)
    (pid,) = _children(process.pid)
    crash(one)
    kit.wait_gone(process.pid)
    kit.end_orphan(pid)
    out, err = process.communicate(timeout=kit.DEADLINE)

    assert (process.returncode, out) == (75, "")
    assert err.startswith(f"jobmon: the command is still running (pid {pid})\njobmon: the daemon at ")


def _children(pid: int) -> set[int]:
    """Wait until a process has children; nothing announces that, so this looks again and again."""
    while True:
        if found := kit.children_of(pid):
            return found


def test_a_waiter_that_was_stopped_for_a_while_has_missed_nothing(daemon: Make) -> None:
    """What happened meanwhile was decided in the daemon, and is there when the client goes on.

    A minute would be no other test: the answer leaves the daemon in the turn in which it is known, and lies
    in the client's socket from then on, where no clock of the daemon's runs.
    """
    one = daemon({"jobs": {"web": {**WEB, "autostart": True, "restart": True}}})
    link = waiting(one, "web", "--for", "restarted")
    link.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, link.process.pid, os.WSTOPPED | os.WNOWAIT)
    watch = one.watch()
    one.pipe().signal("KILL", "web")
    watch.find(lambda event: event.run == 2 and event.state == "running")
    one.pipe().stop("web")  # and it is over again
    assert link.answered()
    link.process.send_signal(signal.SIGCONT)

    assert silent(link, 0)


def test_a_waiter_that_dies_costs_nothing(daemon: Make) -> None:
    """Its place in the daemon is free again: connection and all."""
    one = daemon({"jobs": {"web": WEB}})
    pipe = one.pipe()
    pipe.info()
    before = len(kit.fds_of(one.pid))
    process = one.start_cli("wait", "web", "--", *kit.FOR_EVER)
    (pid,) = _children(process.pid)
    assert len(kit.fds_of(one.pid)) == before + 1
    process.kill()
    kit.wait_gone(process.pid)
    kit.end_orphan(pid)
    process.communicate()
    pipe.info()  # a turn after the hang-up, at the latest

    assert len(kit.fds_of(one.pid)) == before
    pipe.start("web")
