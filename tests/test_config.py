"""A configuration is read to specs, or every error in it is said in full, with its place."""

from __future__ import annotations

import errno
import fnmatch
import gc
import json
import os
import re
import sys
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobmon.config import Config, Problem, load, loader, values
from jobmon.config import keys as config_keys
from jobmon.config.docs import DIALECT
from jobmon.config.jsontext import quote
from jobmon.core import spec
from jobmon.core.spec import (
    Essential,
    ExecReadiness,
    FdReadiness,
    HttpReadiness,
    JobSpec,
    JobType,
    KillScope,
    LogReadiness,
    NotifyReadiness,
    Restart,
    SupervisorSpec,
    TcpReadiness,
    canonical_signal,
)
from jobmon.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LOCALHOST = (("127.0.0.1", 80), ("::1", 80))
ENVIRON = {"HOME": "/home/bob", "EMPTY": "", "LATIN": "caf\udce9"}


class Disk:
    """Files that are a dictionary; a value may be text, bytes, or the error of reading it."""

    def __init__(self, content: dict[str, str | bytes | OSError]) -> None:
        self.content = content
        self.was_read: list[str] = []

    def read(self, path: str) -> bytes:
        """As open(path, "rb").read() would."""
        self.was_read.append(path)
        content = self.content.get(path, FileNotFoundError(errno.ENOENT, "No such file or directory", path))
        if isinstance(content, OSError):
            raise content
        return content.encode() if isinstance(content, str) else content

    def glob(self, pattern: str) -> list[str]:
        """In the wrong order, to show that the order is not the disk's affair."""
        if isinstance(trouble := self.content.get(pattern), OSError):
            raise trouble
        return sorted((path for path in self.content if fnmatch.fnmatchcase(path, pattern)), reverse=True)

    def device(self, _directory: str) -> int:
        """All on one file system."""
        return 1

    def lost(self, _pattern: str, _directory: str, _device: int) -> tuple[str, str]:
        """What is not there was removed."""
        return "", ""


def read(master: str | bytes | dict[str, Any], /, **others: Any) -> Config:
    """What load makes of a master and other files, called in /data."""
    text = json.dumps(master) if isinstance(master, dict) else master
    files = {path: json.dumps(c) if isinstance(c, dict) else c for path, c in others.pop("files", {}).items()}
    return load("main.json", Disk({"main.json": text, **files}), ENVIRON, "/data", "/tmp")


def problems(master: str | bytes | dict[str, Any], /, **others: Any) -> list[str]:
    """All that load finds wrong, as it is printed."""
    with pytest.raises(ConfigError) as caught:
        read(master, **others)
    assert str(caught.value).split("\n") == [str(problem) for problem in caught.value.problems]
    return str(caught.value).split("\n")


def job(**settings: object) -> JobSpec:
    """The spec of a job with these settings beside its command."""
    keys = {name.replace("_", "-"): value for name, value in settings.items()}
    return read({"jobs": {"a": {"command": "true", **keys}}}).jobs["a"]


def wrong(key: str, value: object) -> list[str]:
    """What is said about one key of a job, less the place."""
    text = '{"jobs": {"a": {"command": "true",\n' + json.dumps(key) + ":" + json.dumps(value) + "}}}"
    found = problems(text)
    assert all(re.match(r"main\.json:2:\d+: ", line) for line in found)
    return [re.sub(r"^main\.json:2:\d+: ", "", line) for line in found]


def wrong_supervisor(key: str, value: object) -> list[str]:
    """The same for one of the supervisor."""
    found = problems('{"supervisor": {\n' + json.dumps(key) + ":" + json.dumps(value) + "}}")
    return [re.sub(r"^main\.json:2:\d+: supervisor\.", "", line) for line in found]


# ---- what is right -------------------------------------------------------------------------


def test_nothing_is_needed() -> None:
    """Both sections of the master are optional, and every default is the spec's."""
    assert read("{}") == Config("main.json", SupervisorSpec(working_dir="/data"), {}, ())
    assert read('{"supervisor": {}, "jobs": {}}').supervisor == SupervisorSpec(working_dir="/data")


def test_a_job_needs_a_command_only() -> None:
    """All else of a job has a default, and its working-dir is the supervisor's."""
    assert job() == JobSpec("a", "true", working_dir="/data", start_timeout=60.0)


EVERY_SUPERVISOR_KEY = {
    "working-dir": "run",
    "control-port": "$TMP/c.sock",
    "event-port": 65535,
    "include-dirs": [],
    "log-file": "log",
    "log-level": "Debug",
    "allow-users": ["bob", 0],
    "allow-groups": [4294967294],
    "allow-unidentified": True,
    "state-dir": "state",
}
EVERY_JOB_KEY = {
    "command": ["prog", "", "$HOME"],
    "stdin": "/in",
    "stdout": "inherit",
    "stderr": "./inherit",
    "env": {"A": "$HOME", "B": ""},
    "working-dir": "sub/",
    "signal": "sigrtmax-1",
    "autostart": True,
    "restart": "on-failure",
    "restart-window": 0,
    "restart-penalty": 0.5,
    "max-restarts": 3,
    "success-codes": [0, 255, "SigTerm", "SIGCLD"],
    "kill-timeout": 1e2,
    "kill-scope": "group",
    "essential": "on-failure",
    "type": "service",
    "ready": {"tcp": "localhost:80", "owned": True, "interval": 2, "timeout": 3},
    "start-timeout": 7,
    "watchdog": 8,
    "after": ["b"],
    "requires": ["c", "c"],
    "description": "d\xe9",
}


def test_every_key_of_a_job() -> None:
    """Each key of a job reaches its field."""
    expected = JobSpec(
        name="a",
        command=("prog", "", "$HOME"),
        stdin="/in",
        stdout="inherit",
        stderr="/data/run/inherit",
        env={"A": "$HOME", "B": ""},
        working_dir="/data/run/sub/",
        signal="SIGRTMIN+29",
        autostart=True,
        restart=Restart.ON_FAILURE,
        restart_window=0.0,
        restart_penalty=0.5,
        max_restarts=3,
        success_codes=frozenset((0, 255, "SIGTERM", "SIGCHLD")),
        kill_timeout=100.0,
        kill_scope=KillScope.GROUP,
        essential=Essential.ON_FAILURE,
        ready=TcpReadiness(LOCALHOST, interval=2.0, timeout=3.0, owned=True),
        start_timeout=7.0,
        watchdog=8.0,
        after=("b",),
        requires=("c",),
        description="d\xe9",
    )
    others = {name: {"command": "true"} for name in "bc"}
    master = {"supervisor": {"working-dir": "run"}, "jobs": {"a": EVERY_JOB_KEY, **others}}

    assert read(master).jobs["a"] == expected
    assert set(EVERY_JOB_KEY) == {row.name for row in config_keys.JOB}


def test_every_key_of_the_supervisor() -> None:
    """Each key of the supervisor reaches its field."""
    assert read({"supervisor": EVERY_SUPERVISOR_KEY}).supervisor == SupervisorSpec(
        *("/data/run", "/tmp/c.sock", 65535, (), "/data/run/log", "DEBUG"),
        *(("bob", 0), (4294967294,), True, "/data/run/state"),
    )
    assert set(EVERY_SUPERVISOR_KEY) == {row.name for row in config_keys.SUPERVISOR}


def test_numbers_are_of_one_type() -> None:
    """Seconds are floats and counts are ints, however they were written."""
    spec_of = job(kill_timeout=3, max_restarts=0)

    assert type(spec_of.kill_timeout) is float
    assert type(spec_of.max_restarts) is int


def test_the_samples_of_the_documentation() -> None:
    """The master and the job file of 0.7's documentation work, their two mistakes aside."""
    master = """{ "supervisor": { "working-dir": ".", "control-port": 6666, "event-port": 6667,
      "include-dirs": [ "jobs/*.json" ], "log-file": "$TMP/supervisor.log", "log-level": "WARNING" },
      "jobs": { } }"""
    job_file = """{ "true-job": { "command": "/bin/true", "stdin": "$DEVNULL", "stdout": "$DEVNULL",
      "stderr": "$DEVNULL", "env": { "HOME": "/home/bob" }, "working-dir": "/home/bob",
      "signal": "SIGSTOP", "autostart": false, "restart": true } }"""

    result = read(master, files={"/data/jobs/true.json": job_file})

    assert result.jobs == {
        "true-job": JobSpec(
            "true-job",
            "/bin/true",
            env={"HOME": "/home/bob"},
            working_dir="/home/bob",
            signal="SIGSTOP",
            restart=Restart.ALWAYS,
            start_timeout=60.0,
        )
    }
    assert result.supervisor.log_file == "/tmp/supervisor.log"
    assert [str(warning) for warning in result.warnings] == [
        (
            "/data/jobs/true.json:3:17: jobs.true-job.signal: SIGSTOP stops nothing, it only pauses: "
            "the job ends by SIGKILL after kill-timeout"
        )
    ]


def test_the_samples_with_their_mistakes() -> None:
    """Of the two, the comma is taken and the quote is told, and nothing else is said of that file."""
    job_file = """{
  "true-job": {
    "command": "/bin/true",
    "env": {
      "HOME": "/home/bob",
    },
    "restart: true
  }
}
"""

    found = problems({"supervisor": {"include-dirs": ["jobs/*"]}}, files={"/data/jobs/true.json": job_file})

    assert found == [
        '/data/jobs/true.json:7:5: the string that begins here has no closing quote: write "restart"',
    ]


def test_comments_and_last_commas() -> None:
    """In the master and in a job file neither is a mistake, nor worth a warning, and places stay exact."""
    master = """// the master
{"supervisor": {"include-dirs": ["j",],}, /* the
jobs: */ "jobs": {"a": {"command": "x", "requires": ["b"],}, }, } // the end"""
    result = read(master, files={"/data/j": '{"b": {"command": ["x",],},} // "c"'})

    assert (list(result.jobs), result.warnings) == (["a", "b"], ())
    assert result.jobs["b"].command == ("x",)
    assert problems(master.replace('"b"', '"a"')) == [
        'main.json:3:54: jobs.a.requires[0]: comes after itself: "a" -> "a"'
    ]


def test_a_comment_that_does_not_end() -> None:
    """It is said where it begins, in whatever file, and no brackets are missed because of it."""
    master = {"supervisor": {"include-dirs": ["j"]}}

    assert problems(master, files={"/data/j": '{"b": {"command": "x"},\n  /* "c": {} }'}) == [
        "/data/j:2:3: the comment that begins here has no end: add */"
    ]


# ---- names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", " ", "Job A", "a\nb", '"', "a/../b", "\u65e5\u672c\U0001f600", "jobs", "x" * 4096]
)
def test_any_name(name: str) -> None:
    """A job may be called anything."""
    assert list(read({"jobs": {name: {"command": "true"}}}).jobs) == [name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a\0b", r'jobs."a\u0000b": the name of a job must not hold the character NUL (\u0000)'),
        ("x" * 4097, f"jobs.{'x' * 4097}: the name of this job is too long: 4097 bytes, 4096 are the limit"),
    ],
)
def test_no_such_name(name: str, expected: str) -> None:
    """But what the kernel and the wire cannot carry."""
    assert problems({"jobs": {name: {"command": "true"}}}) == ["main.json:1:11: " + expected]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("", '""'),
        ("a.b", '"a.b"'),
        ("a\nb", '"a\\nb"'),
        ("a b", "a b"),
        (" a", '" a"'),
        ("\x1b", '"\\u001b"'),
    ],
)
def test_names_in_messages(name: str, shown: str) -> None:
    """A name cannot forge a message, nor hide in it."""
    assert problems({"jobs": {name: {"command": 1}}})[0].split(": ")[1] == f"jobs.{shown}.command"


def test_lone_surrogate() -> None:
    """Half a character is an error wherever it stands."""
    message = "stands for no character: a backslash itself is written \\\\"

    assert problems('{"jobs": {"a\\ud800": {"command": "\\udc00"}}}') == [
        f"main.json:1:13: \\ud800 {message}",
        f"main.json:1:35: \\udc00 {message}",
    ]


# ---- one error each ------------------------------------------------------------------------

SECONDS = "must be a number of seconds from 0 to 315360000, not "
STRING = 'must be a string in quotes, as "text", not '
NUL = "must not hold the character NUL (\\u0000)"
PATH = 'must be a path in quotes, as "$TMP/file", '
RESTART = 'must be false, true, "always", "on-failure" or "never", not '
COUNT = "must be a count from 0 to 1000000, or null (no limit), not "
CODES = 'must be a list of exit codes (0-255) and signal names, as [0, 3, "SIGTERM"], not '
LEVELS = 'must be "DEBUG", "INFO", "WARN", "WARNING", "ERROR" or "CRITICAL", not '
USER = 'must be the name of a user in quotes, as "alice", or a number, as 1000, not '
KEYS = ", ".join(row.name for row in config_keys.JOB)
PATIENCE = "must be a number of seconds from 0 to 315360000, or null (for ever), not "
READY = 'must be an object that names one way, as {"tcp": "127.0.0.1:8080"}, or null, not '
ONE_WAY = "must name just one of notify, fd, exec, tcp, http, log"
ADDRESS = 'must be an address and a port, as "127.0.0.1:8080", "[::1]:8080" or "localhost:8080", not '
URL = 'must be a URL without a name to look up, as "http://127.0.0.1:8080/health", not '
FILE = "needs a stdout or stderr that is a file, to look for the line in"
PATTERN = 'must be a regular expression, as "ready to accept", not '

JOB_ERRORS: list[tuple[str, object, list[str]]] = [
    ("stdin", 1, [f'jobs.a.stdin: {PATH}or "inherit", not 1']),
    ("stdout", "", ["jobs.a.stdout: is empty: a path is wanted"]),
    ("stdout", "$EMPTY", ['jobs.a.stdout: is empty once "$EMPTY" is expanded']),
    ("stderr", "a\0", [f"jobs.a.stderr: {NUL}"]),
    ("stderr", "$NOPE/x", ["jobs.a.stderr: the variable $NOPE is not set (a $ itself is written $$)"]),
    ("stderr", "${NOPE}", ["jobs.a.stderr: the variable $NOPE is not set (a $ itself is written $$)"]),
    ("stderr", "${HOME:-x}", [
        "jobs.a.stderr: ${HOME has no closing } after its name (a $ itself is written $$)"
    ]),
    ("stderr", "$LATIN", ["jobs.a.stderr: the value of the variable $LATIN is not UTF-8"]),
    ("working-dir", ["x"], [f"jobs.a.working-dir: {PATH}not a list"]),
    ("env", ["A=b"], ['jobs.a.env: must be an object of strings, as {"NAME": "value"}, not a list']),
    ("env", {"A": 1, "B": None, "C": True}, [
        f'jobs.a.env.A: {STRING}1: write "1"',
        f"jobs.a.env.B: {STRING}null",
        f'jobs.a.env.C: {STRING}true: write "true"',
    ]),
    ("env", {"": "x", "A=B": "x", "C\0": "x", "D": "x\0"}, [
        'jobs.a.env."": the name of a variable must not be empty',
        "jobs.a.env.A=B: the name of a variable must not hold =",
        f'jobs.a.env."C\\u0000": the name of a variable {NUL}',
        f"jobs.a.env.D: {NUL}",
    ]),
    ("signal", 15, ['jobs.a.signal: must be the name of a signal, as "SIGTERM", not 15']),
    ("signal", "term", ['jobs.a.signal: the name of a signal begins with SIG: write "SIGTERM"']),
    ("signal", "SIGTREM", ['jobs.a.signal: "SIGTREM" is not the name of a signal; did you mean "SIGTERM"?']),
    ("signal", "bye", ['jobs.a.signal: "bye" is not the name of a signal; `kill -l` lists them']),
    ("signal", "SIGRTMIN+31", [
        'jobs.a.signal: "SIGRTMIN+31" is not the name of a signal; `kill -l` lists them'
    ]),
    ("autostart", 1, ["jobs.a.autostart: must be true or false, not 1"]),
    ("autostart", "true", ['jobs.a.autostart: must be true or false, not "true": remove the quotes']),
    ("restart", "false", [
        f'jobs.a.restart: {RESTART}"false": remove the quotes'
    ]),
    ("restart", "on_failure", [
        (f'jobs.a.restart: {RESTART}"on_failure"; '
        'did you mean "on-failure"?')
    ]),
    ("restart", 1, [f'jobs.a.restart: {RESTART}1']),
    ("restart-window", -0.001, [f"jobs.a.restart-window: {SECONDS}-0.001"]),
    ("restart-penalty", None, [f"jobs.a.restart-penalty: {SECONDS}null"]),
    ("kill-timeout", True, [f"jobs.a.kill-timeout: {SECONDS}true"]),
    ("kill-timeout", "10s", [f'jobs.a.kill-timeout: {SECONDS}"10s": write 10']),
    ("kill-timeout", 315360000.5, [f"jobs.a.kill-timeout: {SECONDS}315360000.5"]),
    ("kill-timeout", 10**400, [f"jobs.a.kill-timeout: {SECONDS}1" + "0" * 26 + "..."]),
    ("max-restarts", -1, [f"jobs.a.max-restarts: {COUNT}-1"]),
    ("max-restarts", 1.5, [f"jobs.a.max-restarts: {COUNT}1.5"]),
    ("success-codes", 0, [
        f'jobs.a.success-codes: {CODES}0'
    ]),
    ("success-codes", [0, 256, -1, True, "0", "HUP", None], [
        "jobs.a.success-codes[1]: must be an exit code from 0 to 255, not 256",
        "jobs.a.success-codes[2]: must be an exit code from 0 to 255, not -1",
        "jobs.a.success-codes[3]: must be an exit code from 0 to 255, not true",
        'jobs.a.success-codes[4]: must be an exit code from 0 to 255, not "0": write 0',
        'jobs.a.success-codes[5]: the name of a signal begins with SIG: write "SIGHUP"',
        "jobs.a.success-codes[6]: must be an exit code from 0 to 255, not null",
    ]),
    ("kill-scope", "all", ['jobs.a.kill-scope: must be "job", "group" or "process", not "all"']),
    ("type", "one-shot", [
        'jobs.a.type: must be "service" or "oneshot", not "one-shot"; did you mean "oneshot"?'
    ]),
    ("ready", True, [f"jobs.a.ready: {READY}true"]),
    ("ready", {}, [f"jobs.a.ready: names no way: {ONE_WAY}"]),
    ("ready", {"interval": 1}, [f"jobs.a.ready: names no way: {ONE_WAY}"]),
    ("ready", {"fd": 3, "notify": True}, [f"jobs.a.ready: names notify and fd: {ONE_WAY}"]),
    ("ready", {"tpc": "x"}, [
        ("jobs.a.ready.tpc: unknown key; a way to be ready can have notify, fd, exec, tcp, http, log, "
        "interval, timeout, owned")
    ]),
    ("ready", {"notify": False}, ["jobs.a.ready.notify: must be true, not false"]),
    ("ready", {"fd": 2}, ["jobs.a.ready.fd: must be a number of a descriptor from 3 to 255, not 2"]),
    ("ready", {"exec": []}, ["jobs.a.ready.exec: is empty: its first element must be the program to run"]),
    ("ready", {"tcp": 80}, [f"jobs.a.ready.tcp: {ADDRESS}80"]),
    ("ready", {"tcp": "80"}, [f'jobs.a.ready.tcp: {ADDRESS}"80"']),
    ("ready", {"tcp": "example.org:80"}, [f'jobs.a.ready.tcp: {ADDRESS}"example.org:80"']),
    ("ready", {"tcp": "127.0.0.1:65536"}, [f'jobs.a.ready.tcp: {ADDRESS}"127.0.0.1:65536"']),
    ("ready", {"tcp": "127.0.0.1:0"}, [f'jobs.a.ready.tcp: {ADDRESS}"127.0.0.1:0"']),
    ("ready", {"tcp": "127.0.0.256:1"}, [f'jobs.a.ready.tcp: {ADDRESS}"127.0.0.256:1"']),
    ("ready", {"tcp": "127.0.0.01:1"}, [f'jobs.a.ready.tcp: {ADDRESS}"127.0.0.01:1"']),
    ("ready", {"tcp": "[abc:def]:1"}, [f'jobs.a.ready.tcp: {ADDRESS}"[abc:def]:1"']),
    ("ready", {"tcp": "::1:80"}, [f'jobs.a.ready.tcp: {ADDRESS}"::1:80"']),
    ("ready", {"http": "https://127.0.0.1/"}, [f'jobs.a.ready.http: {URL}"https://127.0.0.1/"']),
    ("ready", {"http": "http://web/"}, [f'jobs.a.ready.http: {URL}"http://web/"']),
    ("ready", {"http": "http://127.0.0.1/a b"}, [f'jobs.a.ready.http: {URL}"http://127.0.0.1/a b"']),
    ("ready", {"log": ""}, [f'jobs.a.ready.log: {PATTERN}""']),
    ("ready", {"log": "("}, [
        "jobs.a.ready.log: is not a regular expression: missing ), unterminated subpattern at position 0"
    ]),
    ("ready", {"log": "a{99999999999}"}, [
        "jobs.a.ready.log: is not a regular expression: the repetition number is too large"
    ]),
    ("ready", {"log": "up"}, [
        f"jobs.a.ready.log: {FILE}"
    ]),
    ("ready", {"http": "http://127.0.0.1/", "owned": True}, ["jobs.a.ready.owned: can only be said of tcp"]),
    ("ready", {"fd": 3, "interval": 0}, [
        "jobs.a.ready.interval: must be a number of seconds from 0.01 to 315360000, not 0"
    ]),
    ("start-timeout", "x", [f'jobs.a.start-timeout: {PATIENCE}"x"']),
    ("watchdog", 0, [
        "jobs.a.watchdog: must be a number of seconds from 0.01 to 315360000, or null (none), not 0"
    ]),
    ("after", "b", ['jobs.a.after: must be a list of names of jobs, as ["db"], not "b"']),
    ("after", [1], [f"jobs.a.after[0]: {STRING}1"]),
    ("after", ["b"], ['jobs.a.after[0]: there is no job "b"']),
    ("depends_on", ["a"], ['jobs.a.depends_on: unknown key; did you mean "requires"?']),
    ("description", 5, [f"jobs.a.description: {STRING}5"]),
    ("description", "a\0", [f"jobs.a.description: {NUL}"]),
    ("autostrat", True, ['jobs.a.autostrat: unknown key; did you mean "autostart"?']),
    ("Working_Dir", "/", ['jobs.a.Working_Dir: unknown key; did you mean "working-dir"?']),
    ("cwd", "/", ['jobs.a.cwd: unknown key; did you mean "working-dir"?']),
    ("colour", "red", [f"jobs.a.colour: unknown key; a job can have {KEYS}"]),
    ("state-dir", "/", [f"jobs.a.state-dir: unknown key; a job can have {KEYS}"]),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "expected"), JOB_ERRORS)
def test_job_error(key: str, value: object, expected: list[str]) -> None:
    """What is wrong with a key of a job is said in these words."""
    assert wrong(key, value) == expected


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("", "command: is empty: a job needs the command that it runs"),
        (" \t", "command: is empty: a job needs the command that it runs"),
        ([], "command: is empty: its first element must be the program to run"),
        (["", "x"], "command: is empty: its first element must be the program to run"),
        (["a", 1], f"command[1]: {STRING}1"),
        ("a\0", f"command: {NUL}"),
        (["a", "b\0"], f"command[1]: {NUL}"),
        (
            None,
            'command: must be a string for /bin/sh, or a list of strings, as ["prog", "argument"], not null',
        ),
    ],
)
def test_command_error(command: object, expected: str) -> None:
    """What is wrong with a command is said in these words."""
    found = problems({"jobs": {"a": {"command": command}}})

    assert [line.split(": jobs.a.", 1)[1] for line in found] == [expected]


def test_command_missing() -> None:
    """A job without a command is shown by its name."""
    assert problems('{"jobs": {"a": {}}}') == [
        'main.json:1:11: jobs.a: has no "command", and every job needs one'
    ]


PORT = 'must be a TCP port from 1 to 65535, or the path of a UNIX socket, as "$TMP/jobmon.sock", not '

SUPERVISOR_ERRORS: list[tuple[str, object, list[str]]] = [
    ("control-port", 0, [f"control-port: {PORT}0"]),
    ("control-port", 65536, [f"control-port: {PORT}65536"]),
    ("control-port", -1, [f"control-port: {PORT}-1"]),
    ("control-port", True, [f"control-port: {PORT}true"]),
    ("control-port", 80.0, [f"control-port: {PORT}80.0"]),
    ("control-port", None, [f"control-port: {PORT}null"]),
    ("event-port", "6667", [
        ('event-port: a TCP port is a number without quotes: write 6667 '
        '(for a socket file of that name, "./6667")')
    ]),
    ("event-port", "a,b", [
        'event-port: must not hold a comma, which separates the two in $JOBMON_PORT: "/data/a,b"'
    ]),
    ("event-port", "a\0b", [f"event-port: {NUL}"]),
    ("event-port", "", ["event-port: is empty: a path is wanted"]),
    ("event-port", 6666, ["event-port: must differ from control-port, which is 6666 by default too"]),
    ("control-port", 6667, ["control-port: must differ from event-port, which is 6667 by default too"]),
    ("include-dirs", "jobs/*", ['include-dirs: must be a list of globs, as ["jobs/*.json"], not "jobs/*"']),
    ("include-dirs", [1, "", "$NOPE"], [
        'include-dirs[0]: must be a glob in quotes, as "jobs/*.json", not 1',
        "include-dirs[1]: is empty: a path is wanted",
        "include-dirs[2]: the variable $NOPE is not set (a $ itself is written $$)",
    ]),
    ("log-level", "LOUD", [
        f'log-level: {LEVELS}"LOUD"'
    ]),
    ("log-level", "WARNNG", [
        (f'log-level: {LEVELS}"WARNNG"; '
        'did you mean "WARNING"?')
    ]),
    ("log-level", 10, [f'log-level: {LEVELS}10']),
    ("allow-users", "bob", [
        'allow-users: must be a list of names or numbers of users, as ["alice", 1000], not "bob"'
    ]),
    ("allow-users", ["1000", -1, "", True, 4294967295, "a\0"], [
        "allow-users[0]: a number stands without quotes: write 1000",
        f'allow-users[1]: {USER}-1',
        f'allow-users[2]: {USER}""',
        f'allow-users[3]: {USER}true',
        f'allow-users[4]: {USER}4294967295',
        f"allow-users[5]: {NUL}",
    ]),
    ("allow-groups", {}, [
        'allow-groups: must be a list of names or numbers of groups, as ["deploy", 1000], not an object'
    ]),
    ("control_port", 1, ['control_port: unknown key; did you mean "control-port"?']),
    ("state-dir", 1, ['state-dir: must be a path in quotes, as "$TMP/file", not 1']),
    ("state-directory", "/", ['state-directory: unknown key; did you mean "state-dir"?']),
    ("zzz", "/", [
        "zzz: unknown key; the supervisor can have " + ", ".join(row.name for row in config_keys.SUPERVISOR)
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "expected"), SUPERVISOR_ERRORS)
def test_supervisor_error(key: str, value: object, expected: list[str]) -> None:
    """What is wrong with a key of the supervisor is said in these words."""
    assert wrong_supervisor(key, value) == expected


def test_ports_that_are_the_same_file() -> None:
    """Two ports that come to the same path are one too few."""
    master = {"supervisor": {"control-port": "./a", "event-port": "$TMP/../data/a"}}

    assert read(master).supervisor.event_port == "/tmp/../data/a"
    master["supervisor"]["event-port"] = "a"
    assert problems(master) == [
        'main.json:1:54: supervisor.event-port: must differ from control-port, which is "/data/a" too'
    ]


@pytest.mark.parametrize("tail", ["x" * 101, "\xe9" * 50 + "x"])
def test_socket_path_of_107_bytes(tail: str) -> None:
    """A path fits a UNIX socket up to 107 bytes of UTF-8, expanded and absolute."""
    fits = read({"supervisor": {"control-port": tail}}).supervisor.control_port

    assert isinstance(fits, str)
    assert len(fits.encode()) == 107
    assert wrong_supervisor("control-port", tail + "y") == [
        f'control-port: the path of a UNIX socket can have 107 bytes, this one has 108: "{fits}y"'
    ]


SECTION_ERRORS: list[tuple[str, list[str]]] = [
    ("[]", ['1:1: must be an object, as {"supervisor": ..., "jobs": ...}, not a list']),
    ("", ["1:1: the file is empty: the least that it can hold is {}"]),
    ('{"supervisor": 1}', ["1:16: supervisor: must be an object of settings, not 1"]),
    ('{"supervisor": null}', ["1:16: supervisor: must be an object of settings, not null"]),
    ('{"jobs": []}', ["1:10: jobs: must be an object of jobs, not a list"]),
    (
        '{"jobs": {"a": "true"}}',
        ['1:16: jobs.a: must be an object of settings, as {"command": ...}, not "true"'],
    ),
    ('{"job": {}}', ['1:2: job: unknown key; did you mean "jobs"?']),
    ('{"log-file": "x"}', ['1:2: log-file: unknown key; log-file belongs inside "supervisor"']),
    (
        '{"a": {"command": "x"}}',
        ['1:2: a: unknown key; in the main configuration, a job belongs inside "jobs"'],
    ),
    ('{"whatever": 1}', ["1:2: whatever: unknown key; the main configuration can have supervisor, jobs"]),
]


@pytest.mark.parametrize(("text", "expected"), SECTION_ERRORS)
def test_section_error(text: str, expected: list[str]) -> None:
    """What is wrong with the outline of a master is said in these words."""
    assert problems(text) == ["main.json:" + line for line in expected]


# ---- duplicates ----------------------------------------------------------------------------


def test_duplicates_within_a_file() -> None:
    """A job or a key that stands twice in one file is an error that names both places."""
    text = """{"jobs": {
  "a": {"command": "x", "env": {"A": "1", "A": "2"}, "command": "y"},
  "a": {"command": "z"}
}, "jobs": {
  "b": {"command": "x", "command": "y"}
}}"""

    assert problems(text) == [
        'main.json:2:43: jobs.a.env.A: this key is here twice; the first is at main.json:2:33',
        'main.json:2:54: jobs.a.command: this key is here twice; the first is at main.json:2:9',
        'main.json:3:3: jobs.a: there are two jobs of this name; the first is at main.json:2:3',
        'main.json:4:4: jobs: this key is here twice; the first is at main.json:1:2',
        'main.json:5:25: jobs.b.command: this key is here twice; the first is at main.json:5:9',
    ]  # fmt: skip


def test_duplicates_across_files() -> None:
    """A job that stands in two files is an error that names both places, and one within a job file too."""
    found = problems(
        '{"supervisor": {"include-dirs": ["*.d/*"]},\n "jobs": {"a": {"command": "x"}}}',
        files={
            "/data/1.d/one": '{"b": {"command": "x"}, "b": {"command": "y"}}',
            "/data/2.d/two": '{"jobs": {"a": {"command": "x"},\n "b": {"command": "x"}}}',
        },
    )

    assert found == [
        "/data/1.d/one:1:25: jobs.b: there are two jobs of this name; the first is at /data/1.d/one:1:2",
        "/data/2.d/two:1:11: jobs.a: there are two jobs of this name; the first is at main.json:2:11",
        "/data/2.d/two:2:2: jobs.b: there are two jobs of this name; the first is at /data/1.d/one:1:25",
    ]


# ---- files ---------------------------------------------------------------------------------


def test_files_that_cannot_be_read() -> None:
    """A file that cannot be read is an error of that file, and the others are looked at."""
    assert problems(b"\xff") == ["main.json:1:1: the byte 0xff is not UTF-8: save the file as UTF-8"]
    with pytest.raises(ConfigError) as caught:
        load("no/such", Disk({}), {}, "/data", "/tmp")
    assert str(caught.value) == "no/such: cannot be read: No such file or directory"

    found = problems(
        {"supervisor": {"include-dirs": ["jobs/*"]}},
        files={
            "/data/jobs/1": PermissionError(errno.EACCES, "Permission denied"),
            "/data/jobs/2": IsADirectoryError(errno.EISDIR, "Is a directory"),
            "/data/jobs/3": "[]",
            "/data/jobs/4": FileNotFoundError(errno.ENOENT, "No such file or directory"),  # it was there
        },
    )

    assert found == [
        "/data/jobs/1: cannot be read: Permission denied",
        '/data/jobs/2: is a directory; the files in it are "/data/jobs/2/*.json"',
        '/data/jobs/3:1:1: must be an object of jobs, as {"NAME": {"command": ...}}, not a list',
        "/data/jobs/4: cannot be read: No such file or directory",
    ]


def test_all_errors_in_one_go() -> None:
    """After a syntax error in one file the others are still checked, sorted by file and place."""
    found = problems(
        '{"jobs": {"a": {"signal": "x",,}, "b": 1},\n'
        ' "supervisor": {"event-port": 0, "include-dirs": ["*/?"]}}',
        files={"/data/j/1": '{"c": {"command": "x}}', "/data/j/2": '{"d": {"cmd": "x"}}'},
    )

    assert found == [
        'main.json:1:11: jobs.a: has no "command", and every job needs one',
        'main.json:1:27: jobs.a.signal: "x" is not the name of a signal; `kill -l` lists them',
        "main.json:1:31: a comma too many: remove it",
        'main.json:1:40: jobs.b: must be an object of settings, as {"command": ...}, not 1',
        f"main.json:2:31: supervisor.event-port: {PORT}0",
        '/data/j/1:1:19: the string that begins here has no closing quote: write "x"',
        '/data/j/2:1:2: jobs.d: has no "command", and every job needs one',
        '/data/j/2:1:8: jobs.d.cmd: unknown key; did you mean "command"?',
    ]


@pytest.mark.parametrize("command", ['"comand": "x"', '"command": 1', '"description": "x"'])
def test_a_command_that_is_wrong_hides_nothing_of_its_job(command: str) -> None:
    """A job without a usable command is checked like any other: names, cycles, and its way to be ready."""
    found = problems(
        f'{{"jobs": {{"web": {{{command},\n"requires": ["nosuch", 5, "nosuch"],\n"ready": {{"log": "x"}},\n'
        '"after": ["web"]}}}'
    )

    assert found[0].startswith("main.json:1:")
    assert [line for line in found if ":1:" not in line] == [
        'main.json:2:14: jobs.web.requires[0]: there is no job "nosuch"',
        f"main.json:2:24: jobs.web.requires[1]: {STRING}5",
        f"main.json:3:18: jobs.web.ready.log: {FILE}",
        'main.json:4:11: jobs.web.after[0]: comes after itself: "web" -> "web"',
    ]


@pytest.mark.parametrize("settings", ['"stdout": "$NOPE"', '"type": "on", "stdout": "x"'])
def test_nothing_follows_from_what_cannot_be_read(settings: str) -> None:
    """A stream, or a type, that is wrong is told, and no other mistake is guessed from its absence."""
    text = f'{{"jobs": {{"web": {{"command": "x", "ready": {{"log": "x"}}, {settings}}}}}}}'

    assert len(problems(text)) == 1


def test_all_copies_of_a_job_are_checked() -> None:
    """What is wrong with the first of two jobs of one name is said too, each at its place."""
    text = """{"jobs": {
  "a": {"comand": "x", "requires": ["b"]},
  "a": 5,
  "a": {"command": "z", "after": ["c"]}
}}"""

    assert problems(text) == [
        'main.json:2:3: jobs.a: has no "command", and every job needs one',
        'main.json:2:9: jobs.a.comand: unknown key; did you mean "command"?',
        'main.json:2:37: jobs.a.requires[0]: there is no job "b"',
        "main.json:3:3: jobs.a: there are two jobs of this name; the first is at main.json:2:3",
        'main.json:3:8: jobs.a: must be an object of settings, as {"command": ...}, not 5',
        "main.json:4:3: jobs.a: there are two jobs of this name; the first is at main.json:3:3",
        'main.json:4:35: jobs.a.after[0]: there is no job "c"',
    ]


def test_all_copies_of_the_jobs_are_checked() -> None:
    """The same where the whole object of jobs stands twice, and in a job file; its names are known."""
    job_file = """{"b": {"command": "x", "stdin": 1},
"b": {"command": "x"}}"""
    found = problems(
        '{"supervisor": {"include-dirs": ["j"]}, "jobs": {"a": {"command": 1}},\n'
        '"jobs": {"c": {"command": "x", "after": ["a", "b"]}}}',
        files={"/data/j": job_file},
    )

    assert [line.partition(": must")[0] for line in found] == [
        "main.json:1:67: jobs.a.command",
        "main.json:2:1: jobs: this key is here twice; the first is at main.json:1:41",
        "/data/j:1:33: jobs.b.stdin",
        "/data/j:2:1: jobs.b: there are two jobs of this name; the first is at /data/j:1:2",
    ]


def test_a_section_that_stands_twice_is_no_job() -> None:
    """What belongs in the main configuration is not checked as a job, however often it is there."""
    job_file = '{"supervisor": {}, "supervisor": {},\n"a": {"command": "x"}}'

    assert problems({"supervisor": {"include-dirs": ["j"]}}, files={"/data/j": job_file}) == [
        "/data/j:1:20: jobs.supervisor: there are two jobs of this name; the first is at /data/j:1:2",
        "/data/j:1:20: jobs.supervisor: belongs in the main configuration: a job file holds only jobs",
    ]


def test_a_file_that_cannot_be_read_may_hold_any_job() -> None:
    """No job is called unknown while a file with jobs is broken, or missing."""
    master = {"supervisor": {"include-dirs": ["j?"]}, "jobs": {"a": {"command": "x", "requires": ["b"]}}}
    gone = PermissionError(errno.EACCES, "Permission denied")

    for job_file, line in (('{"b": {"command": x}}', 'j1:1:19: a string needs double quotes: write "x"'),
                           (gone, "j1: cannot be read: Permission denied")):  # fmt: skip
        assert problems(master, files={"/data/j1": job_file}) == [f"/data/{line}"]


def test_no_mistake_hides_another_in_whatever_file() -> None:
    """A text that cannot be read is read on behind the mistake, and so are the other files."""
    found = problems(
        '{"supervisor": {"include-dirs": ["j/*"]},\n"jobs": {"a": {"command": @},\n"b": {"command": &}}}',
        files={
            "/data/j/1": '{"c": {"command": ["x"},\n"d": {"command": #\n}}',
            "/data/j/2": b'{"\xff": {}, "e": @}',
        },
    )

    assert found == [
        "main.json:2:27: a value belongs here, not @",
        "main.json:3:18: a value belongs here, not &",
        "/data/j/1:1:23: a } where the [ of 1:19 wants its ]",
        "/data/j/1:2:18: a comment begins with //, not #",
        '/data/j/1:3:1: the value of "command" is missing',
        "/data/j/2:1:3: the byte 0xff is not UTF-8: save the file as UTF-8",
        "/data/j/2:1:16: a value belongs here, not @",
    ]


def test_a_broken_master_still_leads_to_its_job_files() -> None:
    """What stands before the break is enough to find and check the included files."""
    found = problems(
        '{"supervisor": {"include-dirs": ["j/*"], "log-level": 5}, "jobs": {"a": {"command": ',
        files={"/data/j/1": '{"b": {}}'},
    )

    assert found == [
        'main.json:1:85: the text ends here: the value of "command" is missing',
        '/data/j/1:1:2: jobs.b: has no "command", and every job needs one',
    ]


def test_a_directory_that_cannot_be_looked_into_is_an_error() -> None:
    """With the place of its glob, also behind a bad one; that it is not there is a warning."""
    master = '{"supervisor": {"include-dirs": [1,\n"j/*",\n"k/*"]}}'
    no = OSError(errno.ESTALE, "Stale file handle", "/data/j")
    gone = FileNotFoundError(errno.ENOENT, "No such file or directory", "/data/k")
    files = {"/data/j/*": no, "/data/k/*": gone}
    found = problems(master, files=files)
    result = read({"supervisor": {"include-dirs": ["k/*"]}}, files=files)

    assert found[1:] == [
        'main.json:2:1: supervisor.include-dirs[1]: cannot look into "/data/j": Stale file handle'
    ]
    assert [warning.message for warning in result.warnings] == [
        'matches no file; looked for "/data/k/*", but there is no directory "/data/k"'
    ]


@pytest.mark.parametrize(
    ("name", "glob", "other", "words"),
    [
        ("main.json", "j/*", "/data/j/1", '"/data/j/*" would match, from where jobmon was called'),
        (
            "conf/main.json",
            "j/*",
            "/data/conf/j/1",
            '"/data/conf/j/*" would match, from where the configuration is',
        ),
        ("main.json", "j/*", "/elsewhere/1", ""),
        ("main.json", "/j/*", "/data/j/1", ""),
    ],
)
def test_a_relative_glob_is_told_where_it_would_match(name: str, glob: str, other: str, words: str) -> None:
    """From where jobmon was called, as in JobMon 0.7, or from the configuration's directory."""
    master = json.dumps({"supervisor": {"working-dir": "/srv", "include-dirs": [glob]}})
    (warning,) = load(name, Disk({name: master, other: "{}"}), {}, "/data", "/tmp").warnings
    words = f"; {words}: write that, or set working-dir" if words else ""

    assert warning.message == f'matches no file; looked for "{os.path.join("/srv", glob)}"{words}'


def test_one_bad_glob_does_not_hide_the_others() -> None:
    """The files of the good globs are checked though another one is bad."""
    found = problems({"supervisor": {"include-dirs": ["$NOPE", "j/*"]}}, files={"/data/j/1": '{"b": {}}'})

    assert len(found) == 2
    assert found[1] == '/data/j/1:1:2: jobs.b: has no "command", and every job needs one'


def test_a_bad_working_dir_does_not_lead_to_the_wrong_files() -> None:
    """Nothing is included when it is not known from where."""
    found = problems(
        {"supervisor": {"working-dir": "$NOPE", "include-dirs": ["j/*"]}}, files={"/data/j/1": "["}
    )

    assert found == [
        "main.json:1:32: supervisor.working-dir: the variable $NOPE is not set (a $ itself is written $$)"
    ]


def test_includes() -> None:
    """Globs are relative to the working-dir; each file is read once, sorted by name, the master never."""
    disk = Disk(
        {
            "conf/main.json": '{"supervisor": {"working-dir": "conf", "include-dirs": ["b*", "*", "no/*"]}}',
            "/data/conf/main.json": "the same",
            "/data/conf/a": "{}",
            "/data/conf/b2": '{"2": {"command": "x"}}',
            "/data/conf/b1": '{"jobs": {"1": {"command": "x"}}}',
        }
    )

    result = load("conf/main.json", disk, {}, "/data", "/tmp")

    assert disk.was_read == ["conf/main.json", "/data/conf/b1", "/data/conf/b2", "/data/conf/a"]
    assert list(result.jobs) == ["1", "2"]
    assert result.supervisor.include_dirs == ("/data/conf/b*", "/data/conf/*", "/data/conf/no/*")
    assert [str(warning) for warning in result.warnings] == [
        'conf/main.json:1:68: supervisor.include-dirs[2]: matches no file; looked for "/data/conf/no/*"'
    ]


def test_glob_characters_in_the_working_dir_are_plain() -> None:
    """A directory called [x] is that directory, not a pattern."""
    master = {"supervisor": {"working-dir": "[x]*", "include-dirs": ["j?"]}}

    result = read(
        master, files={"/data/[x]*/j1": '{"a": {"command": "x", "stdout": "o"}}', "/data/xx/j1": "["}
    )

    assert result.jobs["a"].stdout == "/data/[x]*/o"


WRAPPERS: list[tuple[str, object]] = [
    ("{}", []),
    ('{"jobs": {}}', []),
    ('{"jobs": {"a": {"command": "x"}}}', ["a"]),
    ('{"jobs": {"command": "x"}}', ["jobs"]),
    ('{"jobs": {"command": ["x"]}}', ["jobs"]),
    ('{"jobs": {"command": {"command": "x"}}}', ["command"]),
    ('{"jobs": {"command": "x"}, "a": {"command": "x"}}', ["jobs", "a"]),
    ('{"jobs": {"jobs": {"command": "x"}}}', ["jobs"]),
    ('{"supervisor": {"command": "x"}}', ["supervisor"]),
    ('{"supervisor": {"log-level": "INFO"}, "jobs": {"a": {"command": "x"}}}', [
        "/data/j:1:2: supervisor: belongs in the main configuration: a job file holds only jobs"
    ]),
    ('{"supervisor": {"log-level": "INFO"}, "a": {"command": "x"}}', [
        "/data/j:1:2: jobs.supervisor: belongs in the main configuration: a job file holds only jobs"
    ]),
    ('{"b": {"command": "x"}, "jobs": {"a": {"command": "x"}}}', [
        ("/data/j:1:25: jobs.jobs: must be the only key of the file when the jobs stand in it; "
        'as a job it has no "command"')
    ]),
    ('{"jobs": 5}', ["/data/j:1:10: jobs: must be an object of jobs, not 5"]),
    ('{"jobs": {"a": {}}}', ['/data/j:1:11: jobs.a: has no "command", and every job needs one']),
    ('{"jobs": {"comand": "x"}}', [
        '/data/j:1:21: jobs.comand: must be an object of settings, as {"command": ...}, not "x"'
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), WRAPPERS)
def test_wrapper(text: str, expected: list[str]) -> None:
    """A job file is wrapped when its only key is "jobs" and that is no job; else it is the jobs."""
    master = {"supervisor": {"include-dirs": ["j"]}}
    try:
        found = list(read(master, files={"/data/j": text}).jobs)
    except ConfigError as error:
        found = str(error).split("\n")

    assert found == expected


def test_too_many_jobs() -> None:
    """The number of jobs is bounded, and the bound is said."""
    jobs = {str(number): {"command": "true"} for number in range(spec.MAX_JOBS)}

    assert len(read({"jobs": jobs}).jobs) == spec.MAX_JOBS
    assert problems({"jobs": jobs | {"x": {"command": "true"}}}) == [
        "main.json:1:1: 10001 jobs: 10000 are the limit"
    ]


MORE = "main.json: ... and more: the rest is not looked at"
COUNTLESS: dict[str, Callable[[], dict[str, Any]]] = {
    "keys": lambda: {f"job{n}": {"command": "true", f"sginal{n}": "INT"} for n in range(9_000)},
    "elements": lambda: {"job": {"command": ["true", *range(200_000)]}},
    "variables": lambda: {"job": {"command": "true", "env": {f"A{n}": n for n in range(50_000)}}},
}


@pytest.mark.parametrize("what", COUNTLESS)
def test_mistakes_without_number(what: str) -> None:
    """A thousand are told, and that there are more: the rest costs no time. Nobody reads them, and a daemon
    that is to read this anew stands still meanwhile."""
    text = json.dumps({"jobs": COUNTLESS[what]()})
    start = time.process_time()
    found = problems(text)
    took = time.process_time() - start

    assert (len(found), found[-1]) == (1001, MORE)
    assert found[0].startswith("main.json:1:") and found[999].startswith("main.json:1:")
    assert took < 1.5


def test_far_too_many_jobs() -> None:
    """They are counted, in all files, and not read."""
    jobs = {str(number): {"comand": "true"} for number in range(spec.MAX_JOBS)}
    master = {"supervisor": {"include-dirs": ["j"]}, "jobs": {"x": {"command": "true", "after": ["1"]}}}
    with pytest.raises(ConfigError) as caught:
        read(master, files={"/data/j": json.dumps(jobs)})

    assert str(caught.value) == "main.json:1:1: 10001 jobs: 10000 are the limit"


@pytest.mark.parametrize(
    ("ports", "warned"),
    [
        ({}, True),
        ({"control-port": 7000, "event-port": "/run/e"}, True),
        ({"control-port": "/run/c", "event-port": 7001}, True),
        ({"control-port": "/run/c", "event-port": "/run/e"}, False),
    ],
)
def test_groups_over_tcp_are_warned_of(ports: dict[str, int | str], warned: bool) -> None:
    """Of a TCP peer only the user is known: who lists groups is told what that cannot see."""
    found = read({"supervisor": {**ports, "allow-groups": [0]}}).warnings

    assert [warning.key for warning in found] == ["supervisor.allow-groups"] * warned
    assert all("over a TCP port only the user of a peer can be seen" in str(warning) for warning in found)
    assert read({"supervisor": {**ports, "allow-users": [0]}}).warnings == ()


def test_warnings_without_number() -> None:
    """A thousand and that there are more."""
    found = read({"jobs": {f"job{n}": {"command": "true", "stdout": "~/x"} for n in range(1_500)}}).warnings

    assert (len(found), str(found[-1])) == (1001, MORE)


def test_a_broken_master_with_mistakes_without_number() -> None:
    """What is only guessed of it does not count: its own faults are told."""
    globs = ", ".join("1" for _ in range(1_500))

    assert problems(f'{{"supervisor": {{"include-dirs": [{globs}]}}, "jobs": {{"x":}}}}') == [
        'main.json:1:4549: the value of "x" is missing'
    ]


# ---- values --------------------------------------------------------------------------------

PATHS = [
    ("x", "/data/x"),
    ("./x", "/data/x"),
    (".//x", "/data/x"),
    (".", "/data"),
    ("./", "/data"),
    ("../x", "/data/../x"),
    ("/x", "/x"),
    ("inherit", "/data/inherit"),
    ("$HOME/x", "/home/bob/x"),
    ("${HOME}x", "/home/bobx"),
    ("$TMP", "/tmp"),
    ("$DEVNULL", "/dev/null"),
    ("a$$b", "/data/a$b"),
    ("$$HOME", "/data/$HOME"),
    ("$$$HOME", "/data/$/home/bob"),
    ("a$", "/data/a$"),
    ("a$ b$1$-", "/data/a$ b$1$-"),
    ("a${", "/data/a${"),
    ("a${}", "/data/a${}"),
    ("a${1}", "/data/a${1}"),
    ("$HOME\xe9", "/home/bob\xe9"),
    ("x$EMPTY", "/data/x"),
]


@pytest.mark.parametrize(("text", "expected"), PATHS)
def test_path(text: str, expected: str) -> None:
    """Paths are expanded and made absolute, and otherwise left alone."""
    assert job(working_dir=text).working_dir == expected
    if text != "inherit":
        assert job(stdout=text).stdout == expected


def test_environment_overrides_tmp() -> None:
    """$TMP and $DEVNULL are only what they are where the environment has none."""
    text = '{"jobs": {"a": {"command": "$TMP", "stdout": "$TMP", "stderr": "$DEVNULL"}}}'

    result = load("m", Disk({"m": text}), {"TMP": "/t", "DEVNULL": "/n"}, "/", "/tmp").jobs["a"]

    assert (result.command, result.stdout, result.stderr) == ("$TMP", "/t", "/n")


def test_root_as_working_dir() -> None:
    """Relative to / there is one slash."""
    assert load("m", Disk({"m": '{"jobs": {"a": {"command": "x", "stdin": "y"}}}'}), {}, "/", "/").jobs[
        "a"
    ].stdin == "/y"  # fmt: skip


def test_tilde_is_doubted() -> None:
    """A ~ is a name like others, with a warning each time that it stands first."""
    result = read({"jobs": {"a": {"command": "x", "stdout": "~/o", "stderr": "~/o"}}})

    assert result.jobs["a"].stdout == "/data/~/o"
    assert [str(warning).split(": ", 1)[1] for warning in result.warnings] == [
        "jobs.a.stdout: a ~ is not expanded: write $HOME",
        "jobs.a.stderr: a ~ is not expanded: write $HOME",
    ]


def test_every_signal_of_kill() -> None:
    """Every name that the shell's `kill -l` lists is a signal, in any case, and comes out canonical."""
    with os.popen("bash -c 'kill -l'") as listing:
        names = re.findall(r"SIG\S+", listing.read())

    assert len(names) > 60
    assert all(job(signal=name.lower()).signal == canonical_signal(name) is not None for name in names)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SIGIOT", "SIGABRT"),
        ("SIGPOLL", "SIGIO"),
        ("SIGCLD", "SIGCHLD"),
        ("SIGRTMIN", "SIGRTMIN"),
        ("SIGRTMIN+0", "SIGRTMIN"),
        ("SIGRTMIN+30", "SIGRTMIN+30"),
        ("SIGRTMAX", "SIGRTMIN+30"),
        ("SIGRTMAX-30", "SIGRTMIN"),
        ("SIGRTMAX-31", None),
        ("SIGRTMAX+1", None),
        ("SIGRTMIN-1", None),
        ("SIGRTMIN+", None),
        ("SIGRTMIN+ 1", None),
        ("SIGRTMIN1", None),
        ("\u017figterm", None),
        ("SIG", None),
        ("SIG_IGN", None),
        ("", None),
    ],
)
def test_canonical_signal(name: str, expected: str | None) -> None:
    """Aliases have one name, real-time signals are counted from SIGRTMIN."""
    assert canonical_signal(name) == expected


def test_restart_words() -> None:
    """The words for restart, and the truth values that stand for two of them."""
    meanings = [(each, job(restart=each).restart.value) for each in (True, False, "always", "never")]

    assert meanings == [(True, "always"), (False, "never"), ("always", "always"), ("never", "never")]


def test_problem_as_a_line() -> None:
    """A problem is one line, whatever the file is called."""
    assert str(Problem("f", 1, 2, "jobs.a", "m")) == "f:1:2: jobs.a: m"
    assert str(Problem("f", 1, 2, "", "m")) == "f:1:2: m"
    assert str(Problem("f\n", 0, 0, "", "m")) == "f\\n: m"


# ---- cost ----------------------------------------------------------------------------------


def thousand() -> str:
    """A master with a thousand jobs that are much alike."""
    settings = {
        "autostart": True,
        "restart": True,
        "stdout": "$TMP/out",
        "env": {"A": "b"},
        "signal": "SIGINT",
    }
    return json.dumps({"jobs": {f"job-{n}": {"command": f"exec prog {n}", **settings} for n in range(1000)}})


def test_a_thousand_jobs_load_quickly() -> None:
    """A thousand jobs take well under 100 ms, and strings that are equal are one."""
    text = thousand()
    took = []
    for _ in range(3):
        start = time.perf_counter()
        result = read(text)
        took.append(time.perf_counter() - start)

    assert len(result.jobs) == 1000
    assert len({id(each.stdout) for each in result.jobs.values()}) == 1
    assert len({id(each.working_dir) for each in result.jobs.values()}) == 1
    assert len({id(value) for each in result.jobs.values() for value in each.env.values()}) == 1
    assert min(took) < 0.1


def test_loading_leaves_no_garbage() -> None:
    """No cycle is left for the collector to find."""
    text = thousand()
    read(text)
    gc.collect()
    gc.disable()
    try:
        read(text)
        left = gc.collect()
    finally:
        gc.enable()

    assert left == 0


# ---- readiness and order -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ready", "expected"),
    [
        (None, None),
        ({"notify": True}, NotifyReadiness()),
        ({"fd": 3}, FdReadiness(3)),
        ({"fd": 3, "interval": 9}, FdReadiness(3)),
        ({"exec": "true", "timeout": 0.5}, ExecReadiness("true", timeout=0.5)),
        ({"exec": ["a", "b"]}, ExecReadiness(("a", "b"))),
        ({"tcp": ":80"}, TcpReadiness(LOCALHOST)),
        ({"tcp": "127.0.0.1:65535"}, TcpReadiness((("127.0.0.1", 65535),))),
        ({"tcp": "[::1]:80"}, TcpReadiness((("::1", 80),))),
        ({"tcp": "[::]:80"}, TcpReadiness((("::", 80),))),
        ({"tcp": "[1:2:3:4:5:6:7:8]:80"}, TcpReadiness((("1:2:3:4:5:6:7:8", 80),))),
        ({"tcp": "[::ffff:127.0.0.1]:80"}, TcpReadiness((("::ffff:127.0.0.1", 80),))),
        ({"log": "up", "interval": 9}, LogReadiness("up", interval=9.0)),
        ({"http": "http://[::1]:8080/a?b#c"}, HttpReadiness("[::1]:8080", "/a?b", (("::1", 8080),))),
        ({"http": "http://localhost"}, HttpReadiness("localhost", "/", LOCALHOST)),
        ({"http": "http://[::1]/", "timeout": 9}, HttpReadiness("[::1]", "/", (("::1", 80),), timeout=9.0)),
    ],
)
def test_a_way_to_be_ready(ready: object, expected: spec.Readiness | None) -> None:
    """Each way is read as it is meant, its addresses taken apart, and the schema takes it."""
    assert job(ready=ready, stdout="/log").ready == expected
    assert agrees({"jobs": {"a": {"command": "true", "ready": ready}}})


@pytest.mark.parametrize(
    ("at", "host"),
    [
        ("http://localhost:8080/x", "localhost:8080"),
        ("http://localhost", "localhost"),
        ("http://localhost:80/", "localhost"),
        ("http://127.0.0.1:8080", "127.0.0.1:8080"),
        ("http://[::1]:8080/", "[::1]:8080"),
        ("http://[::1]/", "[::1]"),
        ("http://:8080/", "localhost:8080"),
        ("http:///", "localhost"),
    ],
)
def test_the_host_of_a_url(at: str, host: str) -> None:
    """A server is told the host as the URL has it, with the port where that is not 80."""
    way = job(ready={"http": at}).ready

    assert isinstance(way, HttpReadiness)
    assert way.host == host


NO_IPV6 = [":::", "1::2::3", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "12345::", "::1.2.3", "::1\0", "::1%lo"]


@pytest.mark.parametrize("host", NO_IPV6)
def test_no_ipv6_address(host: str) -> None:
    """What the kernel would not take for an address is refused: it would be looked up as a name."""
    assert wrong("ready", {"tcp": f"[{host}]:80"}) == [f"jobs.a.ready.tcp: {ADDRESS}{quote(f'[{host}]:80')}"]


def test_a_line_to_look_for_is_in_a_file() -> None:
    """One of the two streams has to be a file when a line of the output is waited for."""
    assert job(ready={"log": "up"}, stderr="/log").ready == LogReadiness("up")
    assert len(problems({"jobs": {"a": {"command": "x", "stdout": "inherit", "ready": {"log": "up"}}}})) == 1


def test_a_oneshot_is_ready_when_it_has_succeeded() -> None:
    """It has no other way, no watchdog, and no start-timeout unless one is given."""
    oneshot = {"command": "x", "type": "oneshot", "ready": {"notify": True}, "watchdog": 1}

    assert job(type="oneshot").start_timeout is None
    assert job(type="oneshot").type is JobType.ONESHOT
    assert job(type="oneshot", start_timeout=3).start_timeout == 3.0
    assert job(start_timeout=None).start_timeout is None
    assert problems({"jobs": {"a": oneshot}}) == [
        "main.json:1:61: jobs.a.ready: a oneshot is ready when it has succeeded, and can have no other way",
        "main.json:1:91: jobs.a.watchdog: is for services; a oneshot has its start-timeout",
    ]


def test_an_unknown_requirement() -> None:
    """A name that is no job is said with the one that was meant, for each of the two keys."""
    jobs = {"web": {"command": "x", "after": ["postgers"], "requires": ["x"]}, "postgres": {"command": "x"}}

    assert problems({"jobs": jobs}) == [
        'main.json:1:45: jobs.web.after[0]: there is no job "postgers"; did you mean "postgres"?',
        'main.json:1:71: jobs.web.requires[0]: there is no job "x"',
    ]


def compared(monkeypatch: pytest.MonkeyPatch, master: dict[str, Any]) -> int:
    """How many pairs of letters are compared to guess what was meant in a master."""
    cost = []

    def alike(word: str, names: list[str], count: int) -> tuple[str, ...]:
        cost.append(len(word) * sum(map(len, names)))
        return known(word, names, count)

    known = values._alike
    monkeypatch.setattr(values, "_alike", alike)
    problems(master)
    monkeypatch.setattr(values, "_alike", known)
    return sum(cost)


def test_what_many_require_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six hundred jobs that require one which was renamed cost one search among all names, and each is told
    the name that was meant."""
    needs = {"command": "x", "requires": ["database"]}
    jobs = {"databases": {"command": "x"}, **{f"worker{number:02}": needs for number in range(600)}}
    found = problems({"jobs": jobs})

    assert len(found) == 600
    assert all(line.endswith('there is no job "database"; did you mean "databases"?') for line in found)
    assert compared(monkeypatch, {"jobs": jobs}) <= sum(len("database") * len(name) for name in jobs)


def test_guesses_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many names are unknown among however many that are known. No job is told to require itself."""
    jobs = {
        f"worker-{number:04}": {"command": "x", "requires": [f"wrker-{number:04}"]} for number in range(900)
    }

    assert compared(monkeypatch, {"jobs": jobs}) <= values.LETTERS
    assert problems({"jobs": {"web": {"command": "x", "requires": ["wep"]}}})[0].endswith('no job "wep"')


def calls(master: dict[str, Any]) -> int:
    """How many functions are called to find what is wrong in a master."""
    count = 0

    def profile(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    text = json.dumps(master)
    sys.setprofile(profile)
    try:
        load("main.json", Disk({"main.json": text}), ENVIRON, "/data", "/tmp")
    except ConfigError:
        pass
    finally:
        sys.setprofile(None)
    return count


RULES: list[tuple[str, Callable[[int], dict[str, Any]]]] = [
    ("right", lambda n: {"after": [f"j{n - 1}"] if n else []}),
    ("require one that is not there", lambda _: {"requires": ["nobody at all"]}),
    ("require each another", lambda n: {"requires": [f"x{n}"]}),
    ("in a circle", lambda n: {"after": [f"j{n ^ 1}"]}),
    ("one log for all", lambda _: {"stdout": "log", "ready": {"log": "x"}}),
    ("an unknown key", lambda n: {f"kee{n}": 1}),
]


@pytest.mark.parametrize(("what", "rule"), RULES, ids=[what for what, _ in RULES])
def test_work_is_in_proportion_to_the_text(what: str, rule: Callable[[int], dict[str, Any]]) -> None:
    """Twice the jobs, right or wrong, are twice the work."""
    few, many = (
        calls({"jobs": {f"j{n}": {"command": "x", **rule(n)} for n in range(count)}}) for count in (200, 400)
    )

    assert many < 2.3 * few, what


@pytest.mark.parametrize("key", ["after", "requires"])
def test_a_job_that_comes_after_itself(key: str) -> None:
    """The shortest cycle is one, too."""
    assert problems({"jobs": {"a": {"command": "x", key: ["a"]}}}) == [
        f'main.json:1:{38 + len(key)}: jobs.a.{key}[0]: comes after itself: "a" -> "a"'
    ]


def test_a_cycle_across_files() -> None:
    """A cycle is shown as the way around it, through whatever files, at the entry that closes it."""
    files = {
        "/data/j1": {"b": {"command": "x", "after": ["c"]}, "d": {"command": "x", "requires": ["a"]}},
        "/data/j2": {"c": {"command": "x", "requires": ["a"]}},
    }
    master = {"supervisor": {"include-dirs": ["j?"]}, "jobs": {"a": {"command": "x", "requires": ["b"]}}}

    assert problems(master, files=files) == [
        '/data/j2:1:37: jobs.c.requires[0]: comes after itself: "c" -> "a" -> "b" -> "c"'
    ]


def test_several_cycles() -> None:
    """Each is reported, at its own place: a list may name others before the one that is wrong."""
    jobs = {
        "a": {"command": "x", "after": ["b"]},
        "b": {"command": "x", "requires": ["c", "a", "a"]},
        "c": {"command": "x", "after": ["d"]},
        "d": {"command": "x", "requires": ["c"], "after": ["c"]},
    }

    assert problems({"jobs": jobs}) == [
        'main.json:1:90: jobs.b.requires[1]: comes after itself: "b" -> "a" -> "b"',
        'main.json:1:192: jobs.d.after[0]: comes after itself: "d" -> "c" -> "d"',
    ]


def test_an_unknown_requirement_of_a_job_that_is_there_twice() -> None:
    """The place is in the file that the job was read from, not in one that has just its name."""
    files = {"/data/j1": {"a": 5}, "/data/j2": {"a": {"command": "x", "after": ["zz"]}}}

    assert problems({"supervisor": {"include-dirs": ["j?"]}}, files=files)[1:] == [
        "/data/j2:1:2: jobs.a: there are two jobs of this name; the first is at /data/j1:1:2",
        '/data/j2:1:34: jobs.a.after[0]: there is no job "zz"',
    ]


def test_an_order_across_files() -> None:
    """Jobs may come after those of other files, whichever is read first."""
    files = {"/data/j1": {"b": {"command": "x", "requires": ["c"]}}, "/data/j2": {"c": {"command": "x"}}}
    master = {"supervisor": {"include-dirs": ["j?"]}, "jobs": {"a": {"command": "x", "after": ["b"]}}}

    assert read(master, files=files).jobs["b"].requires == ("c",)


# ---- schema and reference ------------------------------------------------------------------


def validate(schema: dict[str, Any], value: object, root: dict[str, Any]) -> bool:
    """As much of JSON Schema 2020-12 as json_schema() uses; an unknown keyword is an error."""
    known = {"$ref", "$schema", "$defs", "title", "description", "default"}
    return all(CHECKS[word](schema, value, root) for word in schema if word not in known) and (
        "$ref" not in schema or validate(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], value, root)
    )


TYPES: dict[str, Any] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
}


def check_type(schema: dict[str, Any], value: object, root: dict[str, Any]) -> bool:
    """The keyword type."""
    names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return any(TYPES[name](value) for name in names)


def check_items(schema: dict[str, Any], value: object, root: dict[str, Any]) -> bool:
    """The keywords prefixItems and items."""
    if not isinstance(value, list):
        return True
    first = schema.get("prefixItems", [])
    return all(validate(sub, each, root) for sub, each in zip(first, value, strict=False)) and all(
        validate(schema["items"], each, root) for each in value[len(first) :]
    )


def check_members(schema: dict[str, Any], value: object, root: dict[str, Any]) -> bool:
    """The keywords properties and additionalProperties."""
    if not isinstance(value, dict):
        return True
    named = schema.get("properties", {})
    other = schema.get("additionalProperties", {})
    for name, each in value.items():
        sub = named.get(name, other)
        if sub is False or not validate(sub, each, root):
            return False
    return True


def is_a(kind: type | tuple[type, ...], value: object) -> bool:
    """isinstance, but for a bool, which is no number."""
    return isinstance(value, kind) and not isinstance(value, bool)


CHECKS: dict[str, Any] = {
    "type": check_type,
    "enum": lambda s, v, _: any(type(each) is type(v) and each == v for each in s["enum"]),
    "pattern": lambda s, v, _: not isinstance(v, str) or bool(re.search(s["pattern"].replace("$", r"\Z"), v)),
    "minimum": lambda s, v, _: not is_a((int, float), v) or v >= s["minimum"],
    "maximum": lambda s, v, _: not is_a((int, float), v) or v <= s["maximum"],
    "maxLength": lambda s, v, _: not isinstance(v, str) or len(v) <= s["maxLength"],
    "minItems": lambda s, v, _: not isinstance(v, list) or len(v) >= s["minItems"],
    "prefixItems": check_items,
    "items": check_items,
    "oneOf": lambda s, v, r: sum(validate(sub, v, r) for sub in s["oneOf"]) == 1,
    "anyOf": lambda s, v, r: any(validate(sub, v, r) for sub in s["anyOf"]),
    "required": lambda s, v, _: not isinstance(v, dict) or all(name in v for name in s["required"]),
    "properties": check_members,
    "additionalProperties": check_members,
    "propertyNames": lambda s, v, r: (
        not isinstance(v, dict) or all(validate(s["propertyNames"], name, r) for name in v)
    ),
    "maxProperties": lambda s, v, _: not isinstance(v, dict) or len(v) <= s["maxProperties"],
}

# What the schema cannot know: the environment, and what the rest of the file says.
BEYOND_THE_SCHEMA = (
    "is not set",
    "is not UTF-8",
    "must differ",
    "once",
    "no closing }",
    "a comma",
    "107 bytes",
    "regular expression",
    "an address and a port",
    "a URL",
    "said of tcp",
    "needs a stdout",
    "no job",
    "after itself",
)


def agrees(master: dict[str, Any]) -> bool:
    """Whether the schema and load are of one mind about a master."""
    schema = loader.json_schema()
    try:
        read(master)
    except ConfigError as error:
        lines = str(error).split("\n")
        if all(any(word in line for word in BEYOND_THE_SCHEMA) for line in lines):
            return True
        return not validate(schema, master, schema)
    return validate(schema, master, schema)


@pytest.mark.parametrize(("key", "value", "_"), JOB_ERRORS)
def test_schema_refuses_what_load_refuses_in_a_job(key: str, value: object, _: object) -> None:
    """Whatever is an error of a key is one by the schema too."""
    assert agrees({"jobs": {"a": {"command": "true", key: value}}})


@pytest.mark.parametrize("command", ["", " ", [], [""], ["a", 1], "a\0", ["a\0"], ["a", "b\0"], None])
def test_schema_refuses_what_load_refuses_as_a_command(command: object) -> None:
    """The same for commands."""
    assert agrees({"jobs": {"a": {"command": command}}})


@pytest.mark.parametrize(("key", "value", "_"), SUPERVISOR_ERRORS)
def test_schema_refuses_what_load_refuses_in_the_supervisor(key: str, value: object, _: object) -> None:
    """The same for the supervisor."""
    assert agrees({"supervisor": {key: value}})


SOME = (
    st.none() | st.booleans() | st.integers(-2, 70000) | st.sampled_from([0.5, 5.0, 315360000, 315360001])
    | st.sampled_from(["", " ", "x", "inherit", "true", "0", "a\0", "SIGTERM", "sigrtmin+3", "HUP", "always"])
    | st.sampled_from(["group", "warn", "a,b", "10s", "job"])
)  # fmt: skip
ANY = (
    SOME
    | st.lists(SOME, max_size=3)
    | st.dictionaries(st.sampled_from(["", "A", "A=", "a\0"]), SOME, max_size=2)
)


@settings(max_examples=400)
@given(st.sampled_from(config_keys.JOB), ANY)
def test_schema_agrees_about_jobs(row: config_keys.Key, value: object) -> None:
    """For any value of any key, the schema says what load says."""
    assert agrees({"jobs": {"a": {"command": "true", row.name: value}}})


@settings(max_examples=200)
@given(st.sampled_from(config_keys.SUPERVISOR), ANY)
def test_schema_agrees_about_the_supervisor(row: config_keys.Key, value: object) -> None:
    """The same for the supervisor."""
    assert agrees({"supervisor": {row.name: value}})


def test_schema_has_every_key() -> None:
    """The schema has the keys of the table with their defaults and meanings, and no others."""
    schema = loader.json_schema()
    parts = (
        (schema["properties"]["supervisor"], config_keys.SUPERVISOR),
        (schema["$defs"]["job"], config_keys.JOB),
    )

    assert schema["$schema"] == DIALECT
    assert json.loads(json.dumps(schema)) == schema
    for part, rows in parts:
        assert list(part["properties"]) == [row.name for row in rows]
        for row in rows:
            assert part["properties"][row.name]["description"] == row.meaning
            assert part["properties"][row.name].get("default") == row.default
        assert part.get("required", []) == [row.name for row in rows if row.required]
        assert part["additionalProperties"] is False


def test_schema_of_job_files() -> None:
    """$defs has the schema of a job file, wrapped or not."""
    schema = loader.json_schema()
    job_file = schema["$defs"]["job-file"]

    assert validate(job_file, {"a": {"command": "x"}}, schema)
    assert validate(job_file, {"jobs": {"a": {"command": "x"}}}, schema)
    assert not validate(job_file, {"a": {}}, schema)
    assert not validate(job_file, [], schema)


def test_defaults_are_the_specs() -> None:
    """What the table says is the default, read as if it stood there, is what the spec has."""
    names = {row.name: row.default for row in config_keys.JOB if not row.required}
    supervisor = {row.name: row.default for row in config_keys.SUPERVISOR}

    result = read({"supervisor": supervisor, "jobs": {"a": {"command": "true", **names}}})

    assert result.jobs["a"] == JobSpec("a", "true", working_dir="/data", start_timeout=60.0)
    assert result.supervisor == SupervisorSpec(
        working_dir="/data", log_file="/dev/null", state_dir="/run/jobmon/HASH"
    )


def test_reference_is_what_the_table_says() -> None:
    """docs/configuration.md is generated."""
    with open(os.path.join(TOP, "docs", "configuration.md"), encoding="utf-8") as file:
        on_disk = file.read()

    assert on_disk == loader.reference(), (
        "write it anew: python3 -c 'from jobmon.config import reference; print(reference(), end=\"\")'"
        " > docs/configuration.md"
    )


def test_examples_of_the_reference_work() -> None:
    """The JSON that stands in the reference is right."""
    master, cleanup, backup = re.findall(r"```json\n(.*?)```", loader.reference(), re.DOTALL)

    result = read(master, files={"/data/jobs/cleanup.json": cleanup, "/data/jobs/d.json": backup})

    assert list(result.jobs) == ["web", "cleanup", "backup"]
    assert result.warnings == ()


# ---- anything ------------------------------------------------------------------------------

WORDS = [row.name for row in (*config_keys.JOB, *config_keys.SUPERVISOR)] + [
    "supervisor",
    "jobs",
    "a",
    "",
    "\0",
]
TREES = st.recursive(
    SOME | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=15,
)


def check_anything(text: bytes) -> None:
    """A configuration or a ConfigError, as a master and as a job file; every problem is one line."""
    for files in ({"m": text}, {"m": b'{"supervisor": {"include-dirs": ["/j"]}}', "/j": text}):
        try:
            found = load("m", Disk(dict(files)), ENVIRON, "/data", "/tmp")
        except ConfigError as error:
            lines = [str(problem) for problem in error.problems]
            assert lines
        else:
            lines = [str(warning) for warning in found.warnings]
        assert all(line.isprintable() and line.startswith(("m", "/j")) for line in lines)


@settings(max_examples=300)
@given(TREES)
@example({"jobs": {"a": {"command": "\ud800"}}})
def test_any_json_is_a_configuration_or_an_error(tree: object) -> None:
    """Whatever JSON says: a configuration or a ConfigError, nothing else."""
    check_anything(json.dumps(tree).encode())
    check_anything(json.dumps({"jobs": {"a": tree}, "supervisor": tree}).encode())


@given(st.binary(max_size=30) | st.text('{}[]":,\\ax1 \n', max_size=15).map(str.encode))
def test_any_bytes_are_a_configuration_or_an_error(data: bytes) -> None:
    """Whatever is in the file: the same."""
    check_anything(data)


def test_a_log_of_two_jobs() -> None:
    """Who waits for a line in a file that another job writes to as well is warned; others are not."""
    job = {"command": "x", "stdout": "/log"}
    asks = {**job, "ready": {"log": "up"}}

    found = read({"jobs": {"a": asks, "b": job, "c": {**asks, "stdout": "/c"}, "d": {"command": "x"}}})

    assert [warning.key for warning in found.warnings] == ["jobs.a.ready"]
    assert 'a line of job "b" counts too: both write to "/log"' in str(found.warnings[0])
