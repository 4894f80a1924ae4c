"""The commands and options of the command line, as data: parsing and help texts come from it.

Pure: arguments in, arguments out. A command's `module` is the part of `jobmon.cli` that does it,
with a function `run(verb, arguments) -> exit code`; it is loaded for that verb only.
"""

from __future__ import annotations

from jobmon.lean.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MANY = 1 << 30
_FAR = 2  # so many mistakes in a word, and it may be another; a shorter word is like too many

_TIMEOUT = ("--timeout", "DUR", "give up after DUR (500ms, 20s, 2m, 1h or bare seconds): exit 124")
_NO_WAIT = ("--no-wait", "", "return once the change is under way; print the number of the latest event")
_REASON = ("--reason", "TEXT", "reason to record in the log and in events; jobmon why shows it")
_WAIT = ("--wait", "COND", "wait for COND instead, one of the conditions of jobmon wait --for")
_CONDITIONS = """\
  changed     the job goes from running to stopped or back
  running     a process of the job is up
  ready       the job is ready (a oneshot: it has succeeded)
  restarted   a later run than the current one is ready
  stable:DUR  the job has been ready for DUR without an exit
  stopped     no process is left, and the job will not be restarted
  exited      the current run has ended, or there is none
  settled     no transition is under way"""


class UsageError(Exception):
    """The command line makes no sense; the text is for the person who wrote it."""


class Verb(Record):
    """One verb. `takes` is for the usage line, `least` to `most` arguments are taken.

    An option is (its names, what stands for its value or nothing, what it does).
    """

    name: str
    module: str
    takes: str
    least: int
    most: int
    summary: str
    options: tuple[tuple[str, str, str], ...] = ()
    details: str = ""


class Arguments:
    """A parsed command line: what was given in order, and the options by their long names.

    `each` has all values of an option that was given several times. `command` is what stands after
    `--`, for a verb that takes a command there.
    """

    __slots__ = ("command", "each", "given", "options")

    def __init__(self) -> None:
        self.command: list[str] = []
        self.each: dict[str, list[str]] = {}
        self.given: list[str] = []
        self.options: dict[str, str] = {}


VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            "daemon",
            "local",
            "CONFIG",
            1,
            1,
            "run the supervisor with CONFIG and print its JOBMON_PORT",
            (
                ("-f --foreground", "", "stay in the foreground, log to standard error"),
                ("--background", "", "go to the background even under systemd or as PID 1"),
            ),
            "Returns once both ports listen and the autostart jobs have been launched:\n"
            "    export JOBMON_PORT=$(jobmon daemon CONFIG)\n"
            "Stays in the foreground as PID 1 and where $NOTIFY_SOCKET is set. A daemon in the foreground\n"
            "shuts down in order when its terminal is closed, unless it runs under nohup.",
        ),
        Verb(
            "check",
            "local",
            "CONFIG",
            0,
            1,
            "validate CONFIG; report every error with file, line and column",
            (("--schema", "", "print the JSON Schema of a configuration instead"),),
            "Exits 0 if the daemon would accept CONFIG, otherwise 1.",
        ),
        Verb(
            "start",
            "control",
            "JOB...",
            1,
            MANY,
            "start jobs and their requirements, and wait until they are ready",
            (_WAIT, _NO_WAIT, _TIMEOUT, _REASON),
            "A job that already runs is an error (exit 1). For a job that fails, the last lines of its\n"
            "standard error are shown if that is a file. A job that exits and is restarted is still waited\n"
            "for, and named on standard error after two seconds: limit the wait with --timeout.",
        ),
        Verb(
            "stop",
            "control",
            "JOB...",
            1,
            MANY,
            "stop jobs and wait until none of their processes is left",
            (
                ("--now", "", "send SIGKILL immediately instead of waiting for kill-timeout"),
                _WAIT,
                _NO_WAIT,
                _TIMEOUT,
                _REASON,
            ),
            "Jobs that require them are stopped first, and named on standard error. A job that is already\n"
            "stopped is an error (exit 1).",
        ),
        Verb(
            "restart",
            "control",
            "JOB...",
            1,
            MANY,
            "stop jobs, start them again and wait until they are ready",
            (_WAIT, _NO_WAIT, _TIMEOUT, _REASON),
            "A stopped job is started. Jobs that require a restarted job are restarted too, in order.\n\n"
            "    jobmon restart web --wait stable:20s --timeout 90s",
        ),
        Verb(
            "status",
            "query",
            "[JOB]",
            0,
            1,
            "show one job's status, or a table of all jobs",
            (
                ("--tree", "", "show the processes too, each with its command line"),
                ("--json", "", "print JSON, for programs"),
            ),
            "With JOB, the exit code is 0 if a process of the job is alive, 1 if none is, 255 on an error.",
        ),
        Verb(
            "why",
            "explain",
            "JOB",
            1,
            1,
            "explain a job's current state and show its last 10 events",
            (("--json", "", "print JSON, for programs"),),
            "The nearest cause comes first, then the causes in other jobs. Times are UTC, as in the log.",
        ),
        Verb(
            "graph",
            "explain",
            "",
            0,
            0,
            "show the start order: the jobs of one step start together",
            (
                ("--dot", "", "print a graph for graphviz: jobmon graph --dot | dot -Tsvg"),
                ("--json", "", "print JSON, for programs"),
            ),
            "Jobs are stopped in the reverse order.",
        ),
        Verb(
            "pid",
            "query",
            "JOB",
            1,
            1,
            "print the pid of a job's main process",
            (),
            "Prints nothing and exits 1 if there is none; exits 255 on an error.",
        ),
        Verb(
            "list-jobs",
            "query",
            "",
            0,
            0,
            "list all jobs as RUNNING or STOPPED, one per line",
            (("--json", "", "print a JSON object: for each name, whether a process is alive"),),
            "Unprintable characters and backslashes in names are escaped, as in \\n, \\x1b, \\\\.\n"
            "The names in the JSON output are exact.",
        ),
        Verb(
            "listen",
            "listen",
            "[NUM_EVENTS]",
            0,
            1,
            "print events: RUNNING, STOPPED, RESTARTING JOB, TERMINATE",
            (
                ("--since", "SEQ", "start with the event after number SEQ; 0: with the first event"),
                ("--json", "", "print every change as a line of JSON"),
            ),
            "Ends after NUM_EVENTS (0 or less: never), when the daemon exits, or when its output is closed.",
        ),
        Verb(
            "wait",
            "wait",
            "JOB... [-- CMD...]",
            1,
            MANY,
            "wait until jobs start or stop running, or until COND holds",
            (
                ("--for", "COND", "condition to wait for, see below"),
                ("--any", "", "succeed when COND holds for one of the jobs, even if others fail"),
                _TIMEOUT,
                ("--since", "TOKEN", "count changes from event TOKEN on, as printed by --no-wait"),
                ("--propagate", "", "with exited and one job: exit with its code, 128+n for signal n"),
                ("--json", "", "print the result as JSON; the output of CMD goes to standard error"),
            ),
            "COND is one of\n" + _CONDITIONS + "\n\n"
            "The condition must hold for all jobs at the same time. `stable` fails on any exit. With\n"
            "--since, with CMD, and with --wait of another command, one requested stop or restart is\n"
            "allowed, and DUR counts from it.\n\n"
            "Prints nothing on success. Exits 1 with a message as soon as the condition can no longer hold,\n"
            "124 on timeout. The daemon watches the jobs: no change after the call is missed, and CMD is\n"
            "started only then. If CMD fails, the wait fails (exit 1); it does not end before CMD does.\n"
            "--timeout limits the wait, not CMD: on timeout, or if the daemon is lost, CMD keeps running\n"
            "and its pid is printed. SIGINT, SIGTERM and SIGHUP are sent to CMD; the wait ends with it\n"
            "(128+n).",
        ),
        Verb(
            "signal",
            "control",
            "SIG JOB...",
            2,
            MANY,
            "send a signal to jobs; SIG is HUP, SIGHUP or 1",
            (("--all", "", "signal every process of the job, not only its main process"), _REASON),
        ),
        Verb(
            "reload",
            "reload",
            "",
            0,
            0,
            "reload the configuration and apply the changes",
            (
                ("--dry-run", "", "show what would change without changing it"),
                ("--restart", "", "restart jobs that run with old settings, and wait until they are ready"),
                ("--json", "", "print JSON, for programs"),
            ),
            "Prints the changes: + JOB is new, - JOB is stopped and removed, ~ JOB has changed settings,\n"
            "which take effect at once or at its next start. Unchanged jobs are not affected, and stopped\n"
            "jobs stay stopped. A configuration with errors changes nothing: every error is listed with its\n"
            "place (exit 1). SIGHUP to the daemon does the same and reports in the log.",
        ),
        Verb(
            "terminate",
            "control",
            "",
            0,
            0,
            "stop all jobs and the daemon, and wait until the daemon has exited",
            (
                ("--no-wait", "", "return at once"),
                _TIMEOUT,
                ("--reason", "TEXT", "reason to record in the log and in events"),
            ),
            "The shutdown continues after --timeout: jobmon status shows the remaining jobs, and a second\n"
            "jobmon terminate kills them.",
        ),
        Verb(
            "init",
            "init",
            "[CONFIG] [-- CMD...]",
            0,
            1,
            "run a command, and jobs beside it, as the first process of a container",
            (
                ("-g --group", "", "send signals to CMD's whole process group, not to CMD alone"),
                ("-r --rewrite", "SIG=SIG", "replace a signal before it is sent to CMD: TERM=QUIT"),
                ("-e --map-exit", "CODE=CODE", "replace an exit code of CMD: 143=0"),
                ("--leftovers", "DUR", "stop what CMD leaves: SIGTERM, after DUR SIGKILL (PID 1: always)"),
                ("-p --parent-death-signal", "SIG", "receive SIG when the parent of init exits"),
            ),
            'ENTRYPOINT ["jobmon", "init", "--"]\n\n'
            "CMD gets the terminal, the standard streams and every signal. init exits with the exit code of\n"
            "CMD: 128+n for signal n, 127 not found, 126 not executable. Orphans are reaped. init need not\n"
            "be PID 1. --rewrite and --map-exit can be given several times; SIG=0 drops a signal. CMD\n"
            "starts with the ignored and blocked signals that init was started with, except SIGPIPE and\n"
            "SIGXFSZ. With CONFIG, its jobs run beside CMD, which finds the daemon by $JOBMON_PORT.\n"
            "SIGTERM, SIGINT, SIGPWR and SIGRTMIN+3 start the shutdown and are sent to CMD too; when CMD\n"
            "exits, the jobs are stopped. CONFIG alone is `daemon --foreground CONFIG`, which does not\n"
            "print its JOBMON_PORT.",
        ),
        Verb("help", "help", "[COMMAND]", 0, 1, "show help for JobMon, or for a command"),
    )
}


def parse(verb: Verb, argv: Sequence[str]) -> Arguments:
    """What `argv`, the words after the verb, say. Options may stand anywhere before a `--`.

    Raises:
        UsageError: they make no sense.
    """
    arguments = Arguments()
    words = iter(argv)
    for word in words:
        if word == "--":
            _take_rest(verb, arguments, list(words))
        elif is_option(word):
            _take_option(verb, arguments, word, words)
        else:
            arguments.given.append(word)
    if "--help" not in arguments.options:
        _check(verb, arguments)
    return arguments


def _take_rest(verb: Verb, arguments: Arguments, words: list[str]) -> None:
    """What stands after `--`: a command, where the verb takes one, but names where none was given yet."""
    split = 0
    if "-- CMD" not in verb.takes:
        split = len(words)
    elif len(arguments.given) < verb.least:
        split = words.index("--") if "--" in words else len(words)
    arguments.given += words[:split]
    rest = words[split:]
    arguments.command += rest[1:] if split and rest else rest


def is_option(word: str) -> bool:
    """Whether it begins with a dash and is not just a dash or a number below zero."""
    return len(word) > 1 and word[0] == "-" and not word[1:].isdigit()


def _take_option(verb: Verb, arguments: Arguments, word: str, words: Iterator[str]) -> None:
    name, assigned, value = word.partition("=")
    for names, stands_for, _ in (*verb.options, ("-h --help", "", "")):
        known = names.split()
        if name not in known:
            continue
        if assigned and not stands_for:
            raise UsageError(f"{name} takes no value")
        if stands_for and not assigned:
            value = next(words, "")
            if not value:
                raise UsageError(f"{name} needs a value: {name} {stands_for}")
        arguments.options[known[-1]] = value
        arguments.each.setdefault(known[-1], []).append(value)
        return
    raise UsageError(_unknown_option(verb, name))


def _check(verb: Verb, arguments: Arguments) -> None:
    given, options = arguments.given, arguments.options
    least = 0 if "--schema" in options else verb.least + (verb.name == "check")
    if len(given) < least:
        raise UsageError(f"{verb.takes} is missing")
    if verb.name == "init" and (len(given) > 1 or not (given or arguments.command)):
        raise UsageError("the command goes after --: jobmon init [CONFIG] -- CMD ARG...")
    if len(given) > verb.most:
        extra = given[verb.most]
        raise UsageError(f"unexpected argument {extra!r}; quote names that contain spaces")
    if "--timeout" in options and "--no-wait" in options:
        raise UsageError("--timeout cannot be used with --no-wait")
    if "--wait" in options and "--no-wait" in options:
        raise UsageError("--wait and --no-wait are mutually exclusive")
    if "--dry-run" in options and "--restart" in options:
        raise UsageError("--dry-run and --restart are mutually exclusive")
    if "--dot" in options and "--json" in options:
        raise UsageError("--dot and --json are mutually exclusive")
    if "--foreground" in options and "--background" in options:
        raise UsageError("--foreground and --background are mutually exclusive")
    for word in (*given, *options.values()):
        if verb.module != "local" and any("\ud800" <= character <= "\udfff" for character in word):
            raise UsageError(f"{word!a} is not valid in this locale's encoding; names are Unicode")


def _unknown_option(verb: Verb, name: str) -> str:
    known = [one for names, _, _ in (*verb.options, ("--help", "", "")) for one in names.split()]
    return f"unknown option {name}{did_you_mean(name, known)}; put names that begin with a dash after --"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'X'?)` if one of the known words is near, otherwise nothing."""
    if len(word) <= _FAR:
        return ""
    from jobmon.suggest import distance

    near = [one for one in known if abs(len(one) - len(word)) <= _FAR]
    best = min(near, key=lambda one: distance(word, one), default="")
    return f" (did you mean '{best}'?)" if near and distance(word, best) <= _FAR else ""
