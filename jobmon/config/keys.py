"""The keys of a configuration: one table, which validation, JSON Schema and reference all read.

A new key is one row in `SUPERVISOR` or `JOB`, and one field of the same name in `spec`.
Data only: how values are read is said in `values` and `readiness`, and where they come from in `loader`.
"""

from __future__ import annotations

from jobmon import limits
from jobmon.config.jsontext import quote
from jobmon.config.readiness import Ready
from jobmon.config.values import (
    PATH,
    TEXT,
    Choice,
    Codes,
    Command,
    Environment,
    Flag,
    Globs,
    JobNames,
    Names,
    Number,
    Port,
    Signal,
    Stream,
    ValueType,
    nearest,
)
from jobmon.core import spec
from jobmon.lean.records import Record

STREAM = Stream()
FLAG = Flag()
PORT = Port()
STOP_SIGNAL = Signal(stops=True)
SECONDS = Number(0, limits.MAX_SECONDS, "a number of seconds")
RESTARTS = Number(0, spec.MAX_RESTARTS, "a count", whole=True, null="no limit")
RESTART = Choice(
    {
        False: spec.Restart.NEVER,
        True: spec.Restart.ALWAYS,
        "always": spec.Restart.ALWAYS,
        "on-failure": spec.Restart.ON_FAILURE,
        "never": spec.Restart.NEVER,
    }
)
ESSENTIAL = Choice(
    {False: spec.Essential.NO, True: spec.Essential.YES, "on-failure": spec.Essential.ON_FAILURE}
)
PATIENCE = Number(0, limits.MAX_SECONDS, "a number of seconds", null="for ever")
JOB_NAMES = JobNames()
JOB_TYPE = Choice({kind.value: kind for kind in spec.JobType})
SCOPE = Choice({scope.value: scope for scope in spec.KillScope})
LOG_LEVEL = Choice(
    {
        "DEBUG": "DEBUG",
        "INFO": "INFO",
        "WARN": "WARNING",
        "WARNING": "WARNING",
        "ERROR": "ERROR",
        "CRITICAL": "CRITICAL",
    },
    any_case=True,
)


class Key(Record):
    """A row of the table: what may be written, what it means, and what is so when it is not.

    `default` is as it would stand in the file. `also` are words that people try instead.
    """

    name: str
    type: ValueType
    default: object
    meaning: str
    required: bool = False
    also: tuple[str, ...] = ()

    @property
    def field(self) -> str:
        """The field of the spec that holds it."""
        return self.name.replace("-", "_")

    @property
    def hot(self) -> bool:
        """Whether a change counts at once when it is read again; else for the next run, or daemon."""
        return self.field not in (*spec.OF_A_RUN, *spec.OF_A_DAEMON)


SUPERVISOR = (
    Key(
        "working-dir",
        PATH,
        ".",
        "The daemon's working directory; relative to where `jobmon` was called. All other relative "
        "paths of the configuration start here.",
        also=("cwd", "directory", "chdir"),
    ),
    Key(
        "control-port",
        PORT,
        spec.DEFAULT_CONTROL_PORT,
        "Where commands are accepted: a TCP port on 127.0.0.1, or the path of a UNIX socket (at most "
        f"{limits.SOCKET_PATH_BYTES} bytes, no comma).",
        also=("port",),
    ),
    Key(
        "event-port",
        PORT,
        spec.DEFAULT_EVENT_PORT,
        "Where events are dispatched: the same. The two must differ.",
    ),
    Key(
        "include-dirs",
        Globs(),
        [],
        "Globs of job files. The files of one glob are read sorted by name; one that matches nothing "
        "is a warning.",
        also=("include", "includes"),
    ),
    Key(
        "log-file",
        PATH,
        "/dev/null",
        "Where the daemon logs to: appended to, opened anew on SIGUSR1. In the foreground the default "
        "is standard error.",
        also=("log", "logfile"),
    ),
    Key(
        "log-level",
        LOG_LEVEL,
        "WARNING",
        "The least serious message that is logged.",
    ),
    Key(
        "allow-users",
        Names("user", "alice"),
        [],
        "Who may send commands and listen to events, besides root and the daemon's own user.",
        also=("users",),
    ),
    Key(
        "allow-groups",
        Names("group", "deploy"),
        [],
        "The same by group, primary or supplementary. Over a UNIX socket the groups of the process count; "
        "over a TCP port only its user can be seen, and the group's listed members count.",
        also=("groups",),
    ),
    Key(
        "allow-unidentified",
        FLAG,
        False,
        "Over TCP the kernel names nobody whose connection was closed before the daemon accepted it, and "
        "some programs written for JobMon 0.7 send a command and close at once. True takes the commands of "
        "0.7 (no requests, no subscriptions) from such connections: the level of 0.7, where any local user "
        "may start, stop and terminate.",
    ),
    Key(
        "state-dir",
        PATH,
        "/run/jobmon/HASH",
        "Where the next daemon finds what it must know of this one's jobs if this one is killed: a "
        "directory of the daemon's own user, one for each daemon, made if it is missing. The default is "
        "below `$RUNTIME_DIRECTORY`, else (but for root, whose jobs outlive a login) "
        "`$XDG_RUNTIME_DIR/jobmon` if that is the user's own, else `/run/jobmon` if that is, else "
        "`/tmp/jobmon-UID-HASH`; HASH is made of the configuration's real path.",
        also=("state-directory", "state"),
    ),
)

JOB = (
    Key(
        "command",
        Command(),
        None,
        "What to run: a string is handed to `/bin/sh -c`, a list is a program and its arguments, "
        "without a shell. JobMon expands no variables in it.",
        required=True,
        also=("cmd", "exec", "run"),
    ),
    Key(
        "stdin",
        STREAM,
        "/dev/null",
        "What standard input reads from.",
    ),
    Key(
        "stdout",
        STREAM,
        "/dev/null",
        'What standard output is appended to; made when it is missing. `"inherit"` is the daemon\'s '
        "own stream (a file of that name is `./inherit`).",
    ),
    Key(
        "stderr",
        STREAM,
        "/dev/null",
        "The same for standard error. One file may serve both.",
    ),
    Key(
        "env",
        Environment(),
        {},
        "Variables on top of the daemon's environment, which they override. Their values are not expanded.",
        also=("environment", "environ"),
    ),
    Key(
        "working-dir",
        PATH,
        ".",
        "The directory that the command starts in; relative to the supervisor's.",
        also=("cwd", "directory", "chdir"),
    ),
    Key(
        "signal",
        STOP_SIGNAL,
        "SIGTERM",
        "The signal that stops the job. SIGCONT follows it.",
        also=("stop-signal", "stopsignal", "kill-signal"),
    ),
    Key(
        "autostart",
        FLAG,
        False,
        "Is it started with the daemon, or when a reload has brought it?",
        also=("auto-start", "enabled"),
    ),
    Key(
        "restart",
        RESTART,
        False,
        'Is it started again after a death that nobody asked for? `true` is `"always"`, `false` is '
        '`"never"`; `"on-failure"` leaves it be after an end by one of `success-codes`.',
        also=("autorestart", "auto-restart"),
    ),
    Key(
        "restart-window",
        SECONDS,
        5,
        "If it dies within this time (the bound included) of its previous death, or of the end of its "
        "last penalty, it waits `restart-penalty` before it is started again; otherwise it is started "
        "at once.",
    ),
    Key(
        "restart-penalty",
        SECONDS,
        15,
        "How long it then waits.",
    ),
    Key(
        "max-restarts",
        RESTARTS,
        None,
        "How many penalised restarts in a row are tried before the job is failed; a run longer than "
        "`restart-window`, or a start by hand, begins the count anew.",
    ),
    Key(
        "success-codes",
        Codes(),
        [0],
        "Ends that are a success: exit codes, and signals that killed it.",
    ),
    Key(
        "kill-timeout",
        SECONDS,
        10,
        "How long a stopped job has to end, before SIGKILL.",
        also=("stop-timeout", "timeout"),
    ),
    Key(
        "kill-scope",
        SCOPE,
        "job",
        "Whom stop and kill reach: the job with every descendant, its process group, or its first "
        "process alone. The job is stopped when nothing of that is left.",
    ),
    Key(
        "essential",
        ESSENTIAL,
        False,
        "Does its end end the daemon? With `true` any end that it reaches by itself (after its restarts), "
        'with `"on-failure"` only a failure; a stop that somebody asked for never does. The other jobs are '
        "stopped, and the daemon's exit code is the job's: 0 for a success, 128+n for signal n, "
        "126 or 127 if it could not be executed.",
    ),
    Key(
        "type",
        JOB_TYPE,
        "service",
        "A service serves until it is stopped. A oneshot does a piece of work: it is ready when it has "
        "succeeded and stays so until it is run again; `restart` applies to its failures only, and it "
        "has no start-timeout unless one is given.",
    ),
    Key(
        "ready",
        Ready(Number(0.01, limits.MAX_SECONDS, "a number of seconds")),
        None,
        'How it shows that it is ready (without it, being launched is enough): `{"notify": true}` by '
        'sd_notify(3); `{"fd": N}` by a newline on descriptor N; `{"exec": CMD}`, '
        '`{"tcp": "HOST:PORT"}`, `{"http": URL}` when that succeeds, tried every `interval` (1) seconds '
        'with a `timeout` (5) for each; `{"log": REGEX}` by a line of its own stdout or stderr, where those '
        'are files. With tcp, `"owned": true` asks that a process of the job itself listens there. Hosts '
        "are numbers or localhost.",
        also=("readiness",),
    ),
    Key(
        "start-timeout",
        PATIENCE,
        60,
        "How long it may take to become ready. After that it is stopped, and `restart` decides.",
    ),
    Key(
        "watchdog",
        Number(0.01, limits.MAX_SECONDS, "a number of seconds", null="none"),
        None,
        "Once it is ready, `WATCHDOG=1` is expected from it (sd_notify(3)) at least this often. Silence is "
        "a failure: it is stopped, and `restart` decides.",
    ),
    Key(
        "after",
        JOB_NAMES,
        [],
        "Jobs that it comes after: if one of them is on its way up, this one waits for it to be ready. At "
        "a shutdown it is stopped before them.",
    ),
    Key(
        "requires",
        JOB_NAMES,
        [],
        "Jobs that it needs: as `after`; they are started with it, and it is stopped when one of them is "
        "stopped or given up (not when one dies and is started again).",
        also=("depends", "depends-on", "dependencies"),
    ),
    Key(
        "description",
        TEXT,
        "",
        "For people; `jobmon status` and `jobmon why` show it.",
    ),
)


def table(rows: tuple[Key, ...]) -> dict[str, Key]:
    """The rows by name."""
    return {row.name: row for row in rows}


def unknown(word: str, rows: tuple[Key, ...], whose: str) -> str:
    """The message about a key that is not in the table."""
    for row in rows:
        if word.lower().replace("_", "-") in row.also:
            return f"unknown key; did you mean {quote(row.name)}?"
    meant = nearest(word, [row.name for row in rows])
    if meant:
        return f"unknown key; did you mean {quote(meant)}?"
    return f"unknown key; {whose} can have " + ", ".join(row.name for row in rows)
