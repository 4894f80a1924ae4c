"""Every verb of the command line, through the real program, against the real daemon."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys

import e2e
import kit
import pytest

import jobmon
from jobmon.cli.commands import VERBS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    Make = Callable[..., kit.Daemon]

WEB = {"command": kit.FOR_EVER}
STUBBORN = e2e.STUBBORN

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")


def run(*words: str, directory: Path, **environ: str | None) -> kit.Done:
    """Run `jobmon WORDS` in a directory, with no daemon meant; None removes a variable."""
    ours: dict[str, str | None] = {**os.environ, "PYTHONPATH": kit.SOURCES, "JOBMON_PORT": None, **environ}
    done = subprocess.run(
        [sys.executable, "-m", "jobmon", *words],
        env={name: value for name, value in ours.items() if value is not None},
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=kit.DEADLINE,
        check=False,
    )
    return kit.Done(done.returncode, done.stdout, done.stderr)


def tell(one: kit.Daemon, *words: str, **options: Any) -> tuple[int, str, str]:
    """Run `jobmon WORDS` against a daemon: its code and output, to be compared with a tuple."""
    code, out, err = one.run_cli(*words, **options)
    assert "Traceback" not in err
    return code, out, err


def bash(script: str, environ: dict[str, str], shell: str = "bash") -> tuple[int, str, str]:
    """Run a script of the shell."""
    done = subprocess.run(
        [shell, "-c", script],
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=kit.DEADLINE,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


# ---- help ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["help", "--help", "-h"])
def test_help_names_every_verb(word: str, tmp_path: Path) -> None:
    """Help is no error, goes to standard output and lists all that there is."""
    code, out, err = run(word, directory=tmp_path)

    assert (code, err) == (0, "")
    assert all(re.search(rf"^  {verb}\b", out, re.MULTILINE) for verb in VERBS)


def test_version(tmp_path: Path) -> None:
    """The version is that of the package."""
    assert tuple(run("--version", directory=tmp_path)) == (0, f"jobmon {jobmon.__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "usage: jobmon COMMAND"),
        (["strat", "web"], 2, "jobmon: unknown command 'strat' (did you mean 'start'?); see jobmon help\n"),
        (["start"], 2, "jobmon: start: JOB... is missing; see jobmon help start\n"),
        (["start", "--nowait", "web"], 2, "unknown option --nowait (did you mean '--no-wait'?)"),
        (["stop", "--timeout", "soon", "web"], 2, "invalid duration 'soon'"),
        (["stop", "--timeout=1", "--no-wait", "web"], 2, "--timeout cannot be used with --no-wait"),
        (["signal", "HUP"], 2, "SIG JOB... is missing"),
        (["listen", "many"], 2, "NUM_EVENTS must be a number"),
        (["list-jobs", "web"], 2, "unexpected argument 'web'"),
        (["check"], 2, "CONFIG is missing"),
        (["daemon"], 2, "CONFIG is missing"),
        (["daemon", "-f", "--background", "x"], 2, "are mutually exclusive"),
        (["status", "web", "db"], 255, "unexpected argument 'db'; quote names that contain spaces"),
        (["pid"], 255, "JOB is missing"),
    ],
    ids=str,
)
def test_wrong_usage(words: list[str], code: int, says: str, tmp_path: Path) -> None:
    """What makes no sense is refused before any daemon is looked for."""
    done = run(*words, directory=tmp_path)

    assert (done.code, done.out) == (code, "")
    assert says in done.err


# ---- start, stop, restart -----------------------------------------------------------------------


def test_start_and_stop(daemon: Make) -> None:
    """Both print nothing, and when they return it is so: running; nothing left."""
    one = daemon({"jobs": {"web": WEB}})

    assert tell(one, "start", "web") == (0, "", "")
    code, pid, _ = one.run_cli("pid", "web")
    assert (code, kit.processes()[int(pid)].name) == (0, "sleep")
    assert tell(one, "stop", "web") == (0, "", "")
    assert int(pid) not in kit.processes()


def test_what_is_so_already_is_a_failure(daemon: Make) -> None:
    """Starting what runs and stopping what is stopped ends with 1 and says so."""
    one = daemon({"jobs": {"web": WEB}})

    assert tell(one, "stop", "web") == (1, "", "jobmon: web: is already stopped\n")
    assert tell(one, "start", "web") == (0, "", "")
    assert tell(one, "start", "web") == (1, "", "jobmon: web: is already running\n")


def test_several_jobs(daemon: Make) -> None:
    """Each is tried, those that fail are told, and the worst counts."""
    one = daemon({"jobs": {"a": WEB, "b": {**WEB, "autostart": True}, "c": WEB, "no": {"command": ["/no"]}}})

    assert tell(one, "start", "a", "b", "c", "no") == (
        1,
        "",
        (
            "jobmon: b: is already running\n"
            "jobmon: no: could not be started: exec /no: ENOENT (No such file or directory)\n"
        ),
    )
    assert tell(one, "list-jobs") == (0, "RUNNING a\nRUNNING b\nRUNNING c\nSTOPPED no\n", "")
    assert tell(one, "stop", "a", "c") == (0, "", "")
    assert tell(one, "list-jobs") == (0, "STOPPED a\nRUNNING b\nSTOPPED c\nSTOPPED no\n", "")


@pytest.mark.parametrize("verb", ["start", "stop", "restart", "wait", "signal"])
def test_one_unknown_name_and_nothing_is_done(daemon: Make, verb: str) -> None:
    """The exit code is 4, and a name much like one that there is brings that one to mind."""
    one = daemon({"jobs": {"webserver": {**WEB, "autostart": True}, "database": WEB}})
    pid = one.pipe().pid("webserver")
    words = ["signal", "KILL"] if verb == "signal" else [verb]

    assert tell(one, *words, "webserver", "database", "websever", "queue") == (
        4,
        "",
        "jobmon: websever: no such job (did you mean 'webserver'?)\njobmon: queue: no such job\n",
    )
    assert tell(one, "list-jobs") == (0, "RUNNING webserver\nSTOPPED database\n", "")
    assert one.pipe().pid("webserver") == pid


def test_no_wait_returns_when_it_is_under_way(daemon: Make) -> None:
    """With --no-wait a token is printed, and `listen --since TOKEN` has all that the command did."""
    one = daemon({"jobs": {"stubborn": STUBBORN}})
    code, token, err = one.run_cli("start", "--no-wait", "stubborn")

    assert (code, err, token) == (0, "", f"{int(token)}\n")
    assert tell(one, "listen", "--since", "0", "1") == (0, "RUNNING stubborn\n", "")
    code, token, err = one.run_cli("stop", "stubborn", "--no-wait")
    assert (code, err) == (0, "")
    assert one.pipe().status("stubborn")[0].state == "stopping"
    assert tell(one, "stop", "--now", "stubborn") == (0, "", "")
    assert tell(one, "listen", "--since", token.strip(), "1") == (0, "STOPPED stubborn\n", "")


def test_a_timeout_gives_up_waiting_only(daemon: Make) -> None:
    """The exit code is 124 and the message says how things are; what was ordered goes on."""
    one = daemon({"jobs": {"stubborn": {**STUBBORN, "autostart": True}}})
    pid = one.pipe().pid("stubborn")

    code, out, err = tell(one, "stop", "--timeout", "1ms", "stubborn")
    assert (code, out) == (124, "")
    assert err.startswith(f"jobmon: stubborn: timed out: it is still stopping: pid {pid} (sleep)")
    assert one.pipe().status("stubborn")[0].state == "stopping"
    one.pipe().stop("stubborn", now=True)


def test_a_start_that_waits_for_a_fifo_times_out(daemon: Make) -> None:
    """A job whose FIFO nobody opens is starting; start waits, and gives up when told."""
    one = daemon({"jobs": {"piped": {**WEB, "stdin": "nobody-writes"}}})
    os.mkfifo(one.path("nobody-writes"))
    done = one.run_cli("start", "--timeout=10ms", "piped")

    assert done.code == 124
    assert re.fullmatch(r"jobmon: piped: timed out: it is starting \(pid \d+\)\n", done.err)
    assert tell(one, "stop", "piped") == (0, "", "")


@pytest.mark.parametrize(
    ("job", "says"),
    [
        ({"command": ["/no/such"]}, "exec /no/such: ENOENT (No such file or directory)"),
        ({"command": ["/etc/passwd"]}, "exec /etc/passwd: EACCES (Permission denied)"),
        ({**WEB, "working-dir": "/no/such"}, "directory /no/such: ENOENT (No such file or directory)"),
        ({**WEB, "stdin": "/no/such"}, "stdin /no/such: ENOENT (No such file or directory)"),
        ({**WEB, "stdout": "/tmp"}, "stdout /tmp: EISDIR (Is a directory)"),
        ({**WEB, "stderr": "/tmp/"}, "stderr /tmp/: EISDIR (Is a directory)"),
    ],
    ids=str,
)
def test_what_cannot_be_started_says_why(daemon: Make, job: dict[str, Any], says: str) -> None:
    """The stage that failed, what it was about and the kernel's reason come with exit code 1."""
    one = daemon({"jobs": {"job": job}})

    assert tell(one, "start", "job") == (1, "", f"jobmon: job: could not be started: {says}\n")
    assert tell(one, "status", "job")[:2] == (1, f"job: failed, 0 s ago, {says}\n")


def test_restart_gives_a_new_run(daemon: Make) -> None:
    """When restart returns the old process is gone and a new one runs; what is stopped is just started."""
    one = daemon({"jobs": {"web": WEB}})

    assert tell(one, "restart", "web") == (0, "", "")
    before = int(one.run_cli("pid", "web").out)
    assert tell(one, "restart", "web") == (0, "", "")
    after = int(one.run_cli("pid", "web").out)
    assert after in kit.processes()
    assert before not in kit.processes()


def test_a_reason_is_told(daemon: Make) -> None:
    """What --reason says stands in the log and in the events, next to who did it."""
    one = daemon({"jobs": {"web": WEB}})
    watch = one.watch()
    one.run_cli("start", "--reason", "after the\ndeploy", "web")

    assert watch.until("web", "launched").cause.startswith(f"start by uid {os.getuid()} pid ")
    assert watch.seen[-1].cause.endswith(": after the\ndeploy")
    assert "after the\\ndeploy" in one.wait_log('to="starting"')


# ---- status, pid, list-jobs ---------------------------------------------------------------------


def test_status_and_pid_of_a_job(daemon: Make) -> None:
    """The exit status is the answer: 0 a process lives, 1 none does."""
    one = daemon({"jobs": {"web": WEB}})

    assert tell(one, "status", "web") == (1, "web: stopped, never started\n", "")
    assert tell(one, "pid", "web") == (1, "", "")
    one.run_cli("start", "web")
    pid = one.pipe().pid("web")
    code, line, err = one.run_cli("status", "web")
    assert (code, err) == (0, "")
    assert re.fullmatch(rf"web: running, pid {pid}, (1 process, )?up \d s\n", line)
    assert tell(one, "pid", "web") == (0, f"{pid}\n", "")
    one.run_cli("stop", "web")
    code, line, err = one.run_cli("status", "web")
    assert (code, err) == (1, "")
    assert re.fullmatch(r"web: stopped, \d s ago, SIGTERM\n", line)


@pytest.mark.parametrize("verb", ["status", "pid"])
def test_status_and_pid_answer_errors_with_255(daemon: Make, verb: str) -> None:
    """An unknown job, no daemon, a bad address: none of them looks like an answer."""
    one = daemon({"jobs": {"web": WEB}})
    nowhere = {**one.environ, "JOBMON_PORT": one.path("x") + "," + one.path("y")}

    assert tell(one, verb, "wep") == (255, "", "jobmon: wep: no such job (did you mean 'web'?)\n")
    code, out, err = tell(one, verb, "web", env=nowhere)
    assert (code, out) == (255, "")
    assert err.startswith(f"jobmon: no daemon answers at {one.path('x')} ")
    assert tell(one, verb, "web", env={**one.environ, "JOBMON_PORT": ""})[:2] == (255, "")


def test_status_of_what_is_left_of_a_job(daemon: Make) -> None:
    """While the leader is dead and others live: no pid (1), but status says it is alive, and what is left."""
    trouble = "(trap '' TERM; echo up > up; exec sleep 1000000) & read go < go"
    one = daemon({"jobs": {"job": {"command": trouble, "kill-timeout": 1000}}})
    up, go = one.fifo("up"), one.fifo("go")
    watch = one.watch()
    one.run_cli("start", "job")
    up.until("up")
    os.write(go.fd, b"go\n")
    watch.until("job", "stopping")

    assert tell(one, "pid", "job") == (1, "", "")
    code, line, err = one.run_cli("status", "job")
    assert (code, err) == (0, "")
    rest = r"SIGKILL in \d+ min \d+ s, then as its restart policy says, 1 process left"
    assert re.fullmatch(rf"job: stopping, for \d s, {rest}\n", line)
    assert tell(one, "stop", "--now", "job") == (0, "", "")


def test_the_table_of_all_jobs(daemon: Make) -> None:
    """`status` alone shows every job, in the order of the configuration, under headings."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": True}, "a db": WEB}})
    code, out, err = one.run_cli("status")

    assert (code, err) == (0, "")
    heading, *rows = [re.split("  +", line) for line in out.splitlines()]
    shown = [dict(zip(heading, row, strict=False)) for row in rows]  # an empty result takes no room
    picked = [(row["JOB"], row["STATE"], row["PID"], row["SINCE"], row["RESTARTS"]) for row in shown]
    pid = str(one.pipe().pid("web"))
    assert picked == [("web", "running", pid, "0 s ago", "0"), ("a db", "stopped", "-", "-", "0")]


def test_status_as_json(daemon: Make) -> None:
    """With --json come all the facts, one object for a job, a list for all."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": True, "description": "the\nshop"}, "db": WEB}})
    web = json.loads(one.run_cli("status", "--json", "web").out)

    assert web["pid"] == one.pipe().pid("web")
    told = {key: web[key] for key in ("job", "state", "alive", "run", "processes", "description")}
    assert told == {
        "job": "web",
        "state": "running",
        "alive": True,
        "run": 1,
        "processes": 1,
        "description": "the\nshop",
    }
    code, out, _ = one.run_cli("status", "--json")
    assert (code, [job["state"] for job in json.loads(out)]) == (0, ["running", "stopped"])
    assert one.run_cli("status", "--json", "db").code == 1


def test_list_jobs(daemon: Make) -> None:
    """One line each, by whether a process lives; as JSON an object."""
    one = daemon({"jobs": {"Job A": {**WEB, "autostart": True}, "Job B": WEB}})

    assert tell(one, "list-jobs") == (0, "RUNNING Job A\nSTOPPED Job B\n", "")
    assert tell(one, "list-jobs", "--json") == (0, '{"Job A":true,"Job B":false}\n', "")


def test_no_jobs_at_all(daemon: Make) -> None:
    """An empty configuration is a daemon without jobs."""
    one = daemon({})

    assert tell(one, "list-jobs") == (0, "", "")
    assert tell(one, "list-jobs", "--json") == (0, "{}\n", "")
    assert tell(one, "status")[1].split()[:3] == ["JOB", "STATE", "PID"]


# ---- listen -------------------------------------------------------------------------------------


def test_listen_prints_events_as_they_come(daemon: Make) -> None:
    """A start, a death that is restarted and a stop are told; after NUM_EVENTS it ends."""
    one = daemon({"jobs": {"Job A": {**WEB, "restart": True}}})
    link = e2e.Relay(one).start_cli("listen", "5")
    watch, pipe = one.watch(), one.pipe()
    pipe.start("Job A")
    pipe.signal("KILL", "Job A")
    watch.until("Job A", "restarting")
    watch.until("Job A", "running")
    pipe.stop("Job A")

    assert tuple(link.end()) == (
        0,
        "RUNNING Job A\nSTOPPED Job A\nRESTARTING Job A\nRUNNING Job A\nSTOPPED Job A\n",
        "",
    )


@pytest.mark.parametrize("words", [[], ["0"], ["-3"]], ids=str)
def test_listen_for_ever_ends_with_the_daemon(daemon: Make, words: list[str]) -> None:
    """Without a number, or with none above zero, TERMINATE is the last line, and the exit code 0."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": True}}})
    link = e2e.Relay(one).start_cli("listen", *words)
    one.pipe().terminate()

    assert tuple(link.end()) == (0, "STOPPED web\nTERMINATE\n", "")


def test_listen_with_json_tells_everything(daemon: Make) -> None:
    """With --json every change of state is an object on a line of its own, exact and with its number."""
    one = daemon({"jobs": {"new\nline": {**WEB}}})
    token = one.pipe().start("new\nline")
    one.run_cli("stop", "new\nline")
    code, out, err = one.run_cli("listen", "--since=0", "--json", "4")

    events = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert [(event["seq"] - token, event["event"], event["state"]) for event in events] == [
        (1, "launched", "starting"),
        (2, "state", "running"),
        (3, "state", "stopping"),
        (4, "died", "stopped"),
    ]
    assert {event["job"] for event in events} == {"new\nline"}
    assert [event["pid"] is None for event in events] == [False] * 4


def test_listen_since_what_is_not_there_says_so(daemon: Make) -> None:
    """A number from another daemon is not taken for one of this: what was missed is admitted."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": True}}})
    link = e2e.Relay(one).start_cli("listen", "--since", "12345", "1")
    link.heard_subscription()
    before = one.pipe().stop("web")

    assert tuple(link.end()) == (
        0,
        "STOPPED web\n",
        f"jobmon: events after 12345 are lost; continuing after {before}\n",
    )


def test_listen_says_when_the_daemon_is_lost(daemon: Make) -> None:
    """A daemon that vanishes without its last event is an error of its own: 75."""
    one = daemon({"jobs": {"web": WEB}})
    link = e2e.Relay(one).start_cli("listen")
    e2e.crash(one)

    code, out, err = link.end()
    assert (code, out) == (75, "")
    assert "closed the connection" in err


def test_listen_ends_when_nobody_reads(daemon: Make) -> None:
    """`jobmon listen | head -1` ends by itself, quietly, without a further event."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": True}}})
    script = f"set -o pipefail; {sys.executable} -m jobmon listen --since 0 | head -n 1"

    assert bash(script, one.environ) == (0, "RUNNING web\n", "")


# ---- wait ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["start", "stop", "restart"])
def test_wait_ends_when_the_job_changes(daemon: Make, verb: str) -> None:
    """From stopped to running and back; it prints nothing and says 0."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": verb != "start"}}})
    link = e2e.Relay(one).start_cli("wait", "web")
    link.heard()
    getattr(one.pipe(), verb)("web")

    assert tuple(link.end()) == (0, "", "")


def test_wait_sees_a_death_that_is_restarted_at_once(daemon: Make) -> None:
    """However short the job was down, it was: the daemon watches, not the client."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": True, "restart": True}}})
    link = e2e.Relay(one).start_cli("wait", "web")
    link.heard()
    one.pipe().signal("KILL", "web")

    assert tuple(link.end()) == (0, "", "")


def test_wait_for_several_waits_for_each(daemon: Make) -> None:
    """One change is not enough: it ends with the last of the jobs."""
    one = daemon({"jobs": {"a": WEB, "b": WEB}})
    link = e2e.Relay(one).start_cli("wait", "a", "b")
    link.heard()
    one.pipe().start("a")
    one.pipe().stop("a")
    assert link.process.poll() is None
    assert not link.answered()
    one.pipe().start("b")

    assert tuple(link.end()) == (0, "", "")


def test_wait_times_out(daemon: Make) -> None:
    """124 says that nothing changed within the time, and standard error what the job is."""
    one = daemon({"jobs": {"web": WEB}})

    assert tell(one, "wait", "--timeout", "20ms", "web") == (
        124,
        "",
        "jobmon: web: timed out: it is stopped\n",
    )


def test_wait_says_when_the_daemon_is_lost(daemon: Make) -> None:
    """75: the daemon was there when the wait began, and is no more."""
    one = daemon({"jobs": {"web": WEB}})
    link = e2e.Relay(one).start_cli("wait", "web")
    link.heard()
    e2e.crash(one)

    code, out, err = link.end()
    assert (code, out) == (75, "")
    assert "closed the connection" in err


def test_wait_for_what_is_down_fails_when_the_daemon_ends(daemon: Make) -> None:
    """What can happen no more is not waited for: 1, and why."""
    one = daemon({"jobs": {"web": WEB, "stubborn": {**STUBBORN, "autostart": True}}})
    link = e2e.Relay(one).start_cli("wait", "web")
    link.heard()
    one.pipe().terminate()

    assert tuple(link.end()) == (1, "", "jobmon: web: is down, and the supervisor is terminating\n")


# ---- signal -------------------------------------------------------------------------------------

# Tells of every signal but those that nobody catches; its child does the same, under another name.
TELLER = """
import os, signal
name = b"leader" if os.fork() else b"child"
def tell(number, frame):
    os.write(1, b"%s %d\\n" % (name, number))
for number in {*range(1, 32)} - {signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGCHLD}:
    signal.signal(number, tell)
os.write(1, name + b" is there\\n")
while True:
    signal.pause()
"""


@pytest.fixture
def teller(daemon: Make) -> Iterator[tuple[kit.Daemon, kit.Fifo]]:
    """A daemon whose job `job` writes the signals that it gets, and so does its child, on a FIFO."""
    one = daemon({"jobs": {"job": {"command": [sys.executable, "-c", TELLER], "stdout": "told"}}})
    told = one.fifo("told")
    one.run_cli("start", "job")
    told.until("leader is there")
    told.until("child is there")
    yield one, told
    told.drain()


@pytest.mark.parametrize("name", ["HUP", "SIGHUP", "sighup", "1", "-1", "-HUP"])
def test_signal_by_name_and_number(teller: tuple[kit.Daemon, kit.Fifo], name: str) -> None:
    """SIG may be HUP, SIGHUP or 1; it goes to the job's first process and to no other."""
    one, told = teller
    words = ["--", name, "job"] if name == "-HUP" else [name, "job"]

    assert tell(one, "signal", *words) == (0, "", "")
    told.until("leader 1\n")
    assert tell(one, "signal", "USR2", "job", "--all") == (0, "", "")
    told.until("child 12\n")  # signals of lower numbers come first, so HUP would have come before
    assert "child 1\n" not in told.text


def test_signal_all_reaches_every_process(teller: tuple[kit.Daemon, kit.Fifo]) -> None:
    """With --all the job's child gets it too."""
    one, told = teller

    assert tell(one, "signal", "--all", "USR1", "job") == (0, "", "")
    told.until("leader 10\n")
    told.until("child 10\n")


@pytest.mark.parametrize("name", ["FOO", "99", "0", "SIG"])
def test_what_is_no_signal_is_wrong_usage(daemon: Make, name: str) -> None:
    """A signal that there is not is refused with 2, and nothing is signalled."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": True}}})
    code, out, err = tell(one, "signal", name, "web")

    assert (code, out) == (2, "")
    assert "signal" in err
    assert one.run_cli("status", "web").code == 0


def test_signal_needs_a_process(daemon: Make) -> None:
    """A job that is stopped gets none: 1; the others do."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": True}, "db": WEB}})
    watch = one.watch()

    assert tell(one, "signal", "KILL", "db", "web") == (1, "", "jobmon: db: is not running\n")
    assert watch.until("web", "died").cause == "SIGKILL"


# ---- terminate ----------------------------------------------------------------------------------


def test_terminate_returns_when_the_daemon_is_gone(daemon: Make) -> None:
    """All jobs are stopped, and the process of the daemon is dead, when the command ends with 0."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": True}}})

    assert tell(one, "terminate") == (0, "", "")
    assert kit.processes()[one.pid].state == "Z"  # ours to reap, and dead
    assert one.wait() == 0


def test_terminate_without_waiting(daemon: Make) -> None:
    """With --no-wait it returns while the jobs are still being stopped; nothing is started any more."""
    one = daemon({"jobs": {"stubborn": {**STUBBORN, "autostart": True}, "web": WEB}})

    assert tell(one, "terminate", "--no-wait") == (0, "", "")
    assert one.pipe().status("stubborn")[0].state == "stopping"
    assert tell(one, "start", "web") == (1, "", "jobmon: web: the supervisor is terminating\n")
    assert tell(one, "terminate") == (0, "", "")  # a second one ends the patience
    assert one.wait() == 0


def test_terminate_does_not_wait_for_ever(daemon: Make) -> None:
    """124 when the time is over; the daemon goes on ending, and takes commands for as long as it does."""
    one = daemon({"jobs": {"stubborn": {**STUBBORN, "autostart": True}}})
    told = f"jobmon: timed out: the daemon (pid {one.pid}) is still shutting down\n"

    assert tell(one, "terminate", "--timeout", "50ms") == (124, "", told)
    assert one.pipe().status("stubborn")[0].state == "stopping"
    assert tell(one, "terminate", "--timeout", "1m") == (0, "", "")
    assert one.wait() == 0


def test_the_reason_of_the_end_is_told(daemon: Make) -> None:
    """What --reason says is in the log and in the cause of the last event; of a second one, in the log."""
    one = daemon({"jobs": {"stubborn": {**STUBBORN, "autostart": True}}})
    watch = one.watch()
    tell(one, "terminate", "--no-wait", "--reason", "new\nkernel")
    assert "new\\nkernel" in one.wait_log("shutdown")
    tell(one, "terminate", "--reason", "in a hurry")
    cause = watch.find(lambda event: event.event == "terminated").cause

    assert cause.startswith(f"terminate by uid {os.getuid()} pid ")
    assert cause.endswith(": new\nkernel")
    assert "in a hurry" in one.log


def test_the_reason_of_a_signal_is_told(daemon: Make) -> None:
    """What --reason of signal says is the end of the event's cause, and in what why tells."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": True}}})
    watch = one.watch()
    tell(one, "signal", "--reason", "new certificate", "CONT", "web")
    cause = watch.find(lambda event: event.event == "signalled").cause

    assert cause.startswith(f"SIGCONT, signal by uid {os.getuid()} pid ")
    assert cause.endswith(": new certificate")
    assert "new certificate" in tell(one, "why", "web")[1]


# ---- names --------------------------------------------------------------------------------------

NAMES = {  # each with how a line shows it
    "two words": "two words",
    "new\nline": r"new\nline",
    "\n": r"\n",
    'it\'s "quoted"': 'it\'s "quoted"',
    "a/../b/": "a/../b/",
    "..": "..",
    "naïve 日本 🐝": "naïve 日本 🐝",
    "--help": "--help",
    "-": "-",
    "-1": "-1",
    "back\\slash\t": r"back\\slash\t",
    "\x1b[31mred\x7f\u202e": r"\x1b[31mred\x7f\u202e",
    "$HOME *": "$HOME *",
    "": "",
    " ": " ",
    "x" * 4000: "x" * 4000,
}


@pytest.fixture
def named(daemon: Make) -> kit.Daemon:
    """A daemon with a job of every strange name."""
    one = daemon({"jobs": dict.fromkeys(NAMES, WEB)})
    assert isinstance(one, kit.Daemon)
    return one


def test_strange_names_are_listed_on_a_line_each(named: kit.Daemon) -> None:
    """What could be mistaken is escaped in lines, and exact in JSON."""
    lines = "".join(f"STOPPED {shown}\n" for shown in NAMES.values())

    assert tell(named, "list-jobs") == (0, lines, "")
    assert list(json.loads(named.run_cli("list-jobs", "--json").out)) == list(NAMES)
    shown = named.run_cli("status").out.splitlines()
    assert len(shown) == len(NAMES) + 1


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:20]))
def test_strange_names_work_everywhere(daemon: Make, name: str) -> None:
    """Any name can be started, awaited, signalled, heard of and stopped: after -- even one with a dash."""
    one = daemon({"jobs": {name: {**WEB, "restart": True}}})
    shown, quotes = NAMES[name], "''"
    link = e2e.Relay(one).start_cli("wait", "--", name)
    link.heard()

    assert tell(one, "start", "--", name) == (0, "", "")
    assert tuple(link.end()) == (0, "", "")
    pid = one.pipe().pid(name)
    assert tell(one, "pid", "--", name) == (0, f"{pid}\n", "")
    assert tell(one, "status", "--", name)[1].startswith(f"{shown}: running, pid {pid}, ")
    assert tell(one, "signal", "CONT", "--", name) == (0, "", "")
    assert tell(one, "start", "--", name) == (1, "", f"jobmon: {shown or quotes}: is already running\n")
    assert tell(one, "stop", "--", name) == (0, "", "")
    assert tell(one, "listen", "--since=0", "2") == (0, f"RUNNING {shown}\nSTOPPED {shown}\n", "")


def test_a_name_cannot_forge_a_line_of_the_log(daemon: Make) -> None:
    """However a job is called, the log has one line for each of its transitions."""
    one = daemon({"jobs": {'x\nERROR job="y" \x1b[2J" to="failed': WEB}})
    one.run_cli("start", 'x\nERROR job="y" \x1b[2J" to="failed')
    one.wait_log('to="running"')

    lines = [line for line in one.log.splitlines() if " state changed job=" in line]
    assert len(lines) == 2
    assert "\x1b" not in one.log


# ---- environments -------------------------------------------------------------------------------

ASCII_ONLY = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("locale", [{"LC_ALL": "C", "LANG": "C"}, {"LC_ALL": None, "LANG": None}], ids=str)
def test_a_plain_locale_still_speaks_utf_8(daemon: Make, locale: dict[str, str | None]) -> None:
    """Without a locale Python takes UTF-8, and so does jobmon: names are what they are."""
    one = daemon({"jobs": {"日本": WEB}}, environ=locale)

    assert tell(one, "start", "日本") == (0, "", "")
    assert tell(one, "list-jobs", encoding="utf-8") == (0, "RUNNING 日本\n", "")


def test_a_locale_that_lacks_the_letters(daemon: Make) -> None:
    """Where the output can be ASCII only, letters are escaped, and a name that cannot be read is refused."""
    one = daemon({"jobs": {"日本": WEB, "web": WEB}})
    poor = {**one.environ, **ASCII_ONLY}

    assert tell(one, "list-jobs", env=poor) == (0, "STOPPED \\u65e5\\u672c\nSTOPPED web\n", "")
    assert tell(one, "start", "web", env=poor) == (0, "", "")
    code, out, err = tell(one, "start", "日本", env=poor)
    assert (code, out) == (2, "")
    assert "is not valid in this locale's encoding" in err


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("verb", ["list-jobs", "status web", "help", "--version", "listen --since 0 1"])
def test_output_that_goes_nowhere(daemon: Make, verb: str, unbuffered: str) -> None:
    """Closed streams change nothing about the answer, and a full disk is told in words."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": True}}})
    full = "jobmon: cannot write the output: No space left on device\n"
    for redirection, code, says in (
        (">&-", 0, ""),
        ("<&-", 0, ""),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        ("| true", 0, ""),
        (">/dev/full", 1, full),
    ):
        script = f"{sys.executable} -m jobmon {verb} {redirection}; exit ${{PIPESTATUS[0]}}"
        assert bash(script, {**one.environ, "PYTHONUNBUFFERED": unbuffered})[::2] == (code, says), redirection


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_an_answer_that_nobody_reads_is_one(daemon: Make, unbuffered: str) -> None:
    """The exit status of `status JOB` is that of the job, whatever becomes of its line."""
    one = daemon({"jobs": {"web": WEB}})
    environ = {**one.environ, "PYTHONUNBUFFERED": unbuffered}

    for redirection in (">&-", "| true", ">/dev/full"):
        script = f"{sys.executable} -m jobmon status web {redirection}; exit ${{PIPESTATUS[0]}}"
        assert bash(script, environ)[0] == 1, redirection


def test_interrupting_a_wait(daemon: Make) -> None:
    """Ctrl-C ends a command with 130 and without a word."""
    one = daemon({"jobs": {"web": WEB}})
    link = e2e.Relay(one).start_cli("wait", "web")
    link.heard()
    link.process.send_signal(signal.SIGINT)

    assert tuple(link.end()) == (130, "", "")


# ---- no daemon there, and not for you -----------------------------------------------------------

CLIENT_VERBS = (
    ["start", "x"],
    ["stop", "x"],
    ["restart", "x"],
    ["status"],
    ["list-jobs"],
    ["listen"],
    ["wait", "x"],
    ["signal", "HUP", "x"],
    ["terminate"],
)


@pytest.mark.parametrize("words", CLIENT_VERBS, ids=" ".join)
def test_no_daemon_there(words: list[str], tmp_path: Path) -> None:
    """69, with the place where it was looked for and what JOBMON_PORT is."""
    told = f"{tmp_path}/c,{tmp_path}/e"
    where = f"{tmp_path}/{'e' if words[0] == 'listen' else 'c'}"

    assert tuple(run(*words, directory=tmp_path, JOBMON_PORT=told)) == (
        69,
        "",
        f"jobmon: no daemon answers at {where} (No such file or directory); JOBMON_PORT is {told}\n",
    )


def test_no_daemon_at_a_tcp_port(tmp_path: Path) -> None:
    """A TCP port is named with its address."""
    control, event = e2e.free_ports(2)

    assert tuple(run("list-jobs", directory=tmp_path, JOBMON_PORT=f"{control},{event}")) == (
        69,
        "",
        (
            f"jobmon: no daemon answers at 127.0.0.1:{control} (Connection refused); "
            f"JOBMON_PORT is {control},{event}\n"
        ),
    )


def test_without_jobmon_port_it_is_the_documented_one(tmp_path: Path) -> None:
    """Unset means 6666,6667, and the message says so."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 6666)) == 0:
            pytest.skip("somebody listens on port 6666 of this machine")

    assert tuple(run("list-jobs", directory=tmp_path)) == (
        69,
        "",
        (
            "jobmon: no daemon answers at 127.0.0.1:6666 (Connection refused); "
            "JOBMON_PORT is not set, which means 6666,6667\n"
        ),
    )


def test_what_answers_is_no_daemon(tmp_path: Path) -> None:
    """Something else that listens there is 69 too, and is called what it is."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with subprocess.Popen(
            [sys.executable, "-m", "jobmon", "list-jobs"],
            env={**os.environ, "PYTHONPATH": kit.SOURCES, "JOBMON_PORT": f"{port},1"},
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            connection, _ = server.accept()
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()
            _, err = process.communicate(timeout=kit.DEADLINE)

    assert process.returncode == 69
    assert err.startswith(f"jobmon: the program at 127.0.0.1:{port} is not a JobMon daemon: ")


@pytest.mark.parametrize("port", ["", "6666", "a,b,c", "6666,", "0,1", "6666,99999", "x" * 108 + ",y"])
def test_a_port_that_makes_no_sense(port: str, tmp_path: Path) -> None:
    """A JOBMON_PORT that cannot be meant is wrong usage, and is quoted."""
    code, out, err = run("list-jobs", directory=tmp_path, JOBMON_PORT=port)

    assert (code, out) == (2, "")
    assert err.startswith(f"jobmon: JOBMON_PORT is '{port}', but must be CONTROL,EVENT")


def as_nobody(one: kit.Daemon, *words: str) -> tuple[int, str, str]:
    """Run `jobmon WORDS` as the user nobody."""
    done = subprocess.run(
        e2e.as_nobody(*words),
        env=one.environ,
        capture_output=True,
        text=True,
        timeout=kit.DEADLINE,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@as_root
@pytest.mark.parametrize("words", CLIENT_VERBS, ids=" ".join)
def test_another_user_may_not(daemon: Make, words: list[str]) -> None:
    """5, on TCP and by a socket file, and nothing happens but a line in the log."""
    ports = e2e.free_ports(2)
    tcp = daemon({"supervisor": dict(zip(("control-port", "event-port"), ports, strict=True))})
    unix = daemon({"jobs": {"x": WEB}})
    os.chmod(unix.directory, 0o755)
    port = ports[words[0] == "listen"]
    path = unix.event if words[0] == "listen" else unix.control

    assert as_nobody(tcp, *words) == (
        5,
        "",
        f"jobmon: the daemon at 127.0.0.1:{port} does not serve this user\n",
    )
    assert as_nobody(unix, *words) == (5, "", f"jobmon: this user may not connect to {path}\n")
    tcp.wait_log(f"uid={e2e.NOBODY}")
    assert tell(unix, "list-jobs") == (0, "STOPPED x\n", "")


@as_root
@pytest.mark.parametrize("tcp", [False, True])
def test_another_user_who_is_allowed(daemon: Make, tcp: bool) -> None:
    """allow-users opens both ports to somebody else; 255 stays the word of status for an error."""
    ports = dict(zip(("control-port", "event-port"), e2e.free_ports(2), strict=True)) if tcp else {}
    one = daemon({"supervisor": {**ports, "allow-users": [e2e.NOBODY]}, "jobs": {"web": WEB}})
    other = daemon({"supervisor": {"allow-users": ["daemon"]}, "jobs": {"web": WEB}})
    for each in (one, other):
        os.chmod(each.directory, 0o755)

    assert as_nobody(one, "start", "web") == (0, "", "")
    assert as_nobody(one, "listen", "--since=0", "1") == (0, "RUNNING web\n", "")
    assert as_nobody(one, "terminate") == (0, "", "")
    assert as_nobody(other, "status", "web") == (
        255,
        "",
        f"jobmon: the daemon at {other.control} does not serve this user\n",
    )
