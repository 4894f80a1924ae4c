"""The verbs and options of the command line, as data: parsing and help texts come from it.

Pure: arguments in, arguments out. A verb's `module` is the part of `jobmon.cli` that does it,
with a function `run(verb, arguments) -> exit code`; it is loaded for that verb only.
"""

from __future__ import annotations

from jobmon.lean.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MANY = 1 << 30
_FAR = 2  # so many mistakes in a word, and it may be another; a shorter word is like too many

_TIMEOUT = ("--timeout", "DUR", "give up after 500ms, 20s, 2m, 1h or bare seconds: exit 124")
_NO_WAIT = ("--no-wait", "", "return when it is under way, and print the number of the latest event")
_REASON = ("--reason", "TEXT", "why, for the log, for those who listen and for jobmon why")
_WAIT = ("--wait", "COND", "return when that is so: the conditions of jobmon wait --for")
_CONDITIONS = """\
  changed     it went from running to stopped or back
  running     a process is up
  ready       it is ready (a oneshot: it has succeeded)
  restarted   a later run than the present one is ready
  stable:DUR  it is ready, and has been for so long without a death
  stopped     it is gone, and does not come back by itself
  exited      the present run has ended, or none lives
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
            "run the supervisor on CONFIG and print its JOBMON_PORT",
            (
                ("-f --foreground", "", "stay in the foreground, log to standard error"),
                ("--background", "", "go to the background also under systemd or as PID 1"),
            ),
            "Returns when both ports listen and the autostart jobs are launched:\n"
            "    export JOBMON_PORT=$(jobmon daemon CONFIG)\n"
            "It stays in the foreground by itself as PID 1 and where $NOTIFY_SOCKET is set. There it ends\n"
            "in order when its terminal is closed, but not under nohup.",
        ),
        Verb(
            "check",
            "local",
            "CONFIG",
            0,
            1,
            "say what is wrong with CONFIG, all of it, each with its place",
            (("--schema", "", "print the JSON Schema of a configuration instead"),),
            "Exits 0 when the daemon would take it, else 1.",
        ),
        Verb(
            "start",
            "control",
            "JOB...",
            1,
            MANY,
            "start jobs, and what they require, and wait until they are ready",
            (_WAIT, _NO_WAIT, _TIMEOUT, _REASON),
            "A job that runs already is a failure (exit 1). One that fails is told with the last lines of\n"
            "its standard error, where that is a file. One that ends and is tried again is waited for, and\n"
            "named on standard error after two seconds: --timeout is for that.",
        ),
        Verb(
            "stop",
            "control",
            "JOB...",
            1,
            MANY,
            "stop jobs and wait until nothing of them is left",
            (("--now", "", "kill at once, without patience"), _WAIT, _NO_WAIT, _TIMEOUT, _REASON),
            "What requires them is stopped first, and named on standard error. A job that is stopped\n"
            "already is a failure (exit 1).",
        ),
        Verb(
            "restart",
            "control",
            "JOB...",
            1,
            MANY,
            "stop jobs, start them again and wait until they are ready",
            (_WAIT, _NO_WAIT, _TIMEOUT, _REASON),
            "A job that is stopped is just started. What requires them is restarted too, in order.\n\n"
            "    jobmon restart web --wait stable:20s --timeout 90s",
        ),
        Verb(
            "status",
            "query",
            "[JOB]",
            0,
            1,
            "say how a job is, in a line, or all jobs, in a table",
            (
                ("--tree", "", "its processes too, each with its command line"),
                ("--json", "", "as JSON, for programs"),
            ),
            "With JOB the exit code is the answer: 0 a process of it lives, 1 none does, 255 error.",
        ),
        Verb(
            "why",
            "explain",
            "JOB",
            1,
            1,
            "say why a job is as it is, and the last ten things that happened to it",
            (("--json", "", "as JSON, for programs"),),
            "The nearest cause first, then those of the jobs that it is due to. Times are the log's, UTC.",
        ),
        Verb(
            "graph",
            "explain",
            "",
            0,
            0,
            "show in which order jobs start: what stands in one step starts together",
            (
                ("--dot", "", "for graphviz: jobmon graph --dot | dot -Tsvg"),
                ("--json", "", "as JSON, for programs"),
            ),
            "They are stopped in the reverse order.",
        ),
        Verb(
            "pid",
            "query",
            "JOB",
            1,
            1,
            "print the pid of a job's process",
            (),
            "Exits 1 and prints nothing when there is none, 255 on an error.",
        ),
        Verb(
            "list-jobs",
            "query",
            "",
            0,
            0,
            "list all jobs as RUNNING or STOPPED, a line each",
            (("--json", "", "as a JSON object: names, and whether a process lives"),),
            "Control characters, other unprintable ones and backslashes in names are escaped as in \\n, "
            "\\x1b, \\\\;\n--json is exact.",
        ),
        Verb(
            "listen",
            "listen",
            "[NUM_EVENTS]",
            0,
            1,
            "print events as they come: RUNNING, STOPPED, RESTARTING JOB, TERMINATE",
            (
                ("--since", "SEQ", "begin with the event after number SEQ; 0: with the first of all"),
                ("--json", "", "every change as a line of JSON"),
            ),
            "Ends after NUM_EVENTS (0 or less: never), when the daemon ends, or when nobody reads on.",
        ),
        Verb(
            "wait",
            "wait",
            "JOB... [-- CMD...]",
            1,
            MANY,
            "wait until jobs change between running and stopped, or for COND",
            (
                ("--for", "COND", "what to wait for, see below"),
                ("--any", "", "until it is so for one of the jobs, even if others were given up"),
                _TIMEOUT,
                ("--since", "TOKEN", "count changes from event TOKEN on, which --no-wait has printed"),
                ("--propagate", "", "with exited and one job: exit as it has, 128+n for signal n"),
                ("--json", "", "say as JSON what it came to; what CMD prints goes to standard error"),
            ),
            "COND is one of\n" + _CONDITIONS + "\n\n"
            "It is to be so for all of the jobs at the same moment. Any death ends `stable`; after --since,\n"
            "with CMD, and with --wait of another verb, one that somebody asks for is pardoned, and DUR\n"
            "counts from there.\n\n"
            "Prints nothing, and why on standard error when it can be so no more (exit 1, at once) or the\n"
            "time is over (124). The daemon watches: no change after the call is missed. CMD is started\n"
            "once that is sure; when CMD fails so does the wait (exit 1), and it ends no sooner than CMD.\n"
            "--timeout bounds the wait, not CMD: when that is over, or the daemon is lost, CMD goes on and\n"
            "its pid is told. SIGINT, SIGTERM and SIGHUP go to CMD, and end the wait with it (128+n).",
        ),
        Verb(
            "signal",
            "control",
            "SIG JOB...",
            2,
            MANY,
            "send a signal to jobs: SIG as HUP, SIGHUP or 1",
            (("--all", "", "to every process of the job, not just its first"), _REASON),
        ),
        Verb(
            "reload",
            "reload",
            "",
            0,
            0,
            "let the daemon read its configuration again and go by it",
            (
                ("--dry-run", "", "show what would change, and change nothing"),
                ("--restart", "", "restart what runs on with old settings; returns when that is ready"),
                ("--json", "", "as JSON, for programs"),
            ),
            "Prints what changes: + JOB is new, - JOB is stopped and forgotten, ~ JOB has other settings,\n"
            "which count at once or at its next start. What has not changed is not touched, and what\n"
            "somebody has stopped stays so. A configuration with mistakes changes nothing: they are\n"
            "listed with their places (exit 1). SIGHUP to the daemon does the same; its log tells.",
        ),
        Verb(
            "terminate",
            "control",
            "",
            0,
            0,
            "stop all jobs and end the daemon; returns when it is gone",
            (
                ("--no-wait", "", "return at once"),
                _TIMEOUT,
                ("--reason", "TEXT", "why, for the log and for those who listen"),
            ),
            "After --timeout the daemon goes on ending: jobmon status shows what is left, and a second\n"
            "jobmon terminate kills that.",
        ),
        Verb(
            "init",
            "init",
            "[CONFIG] [-- CMD...]",
            0,
            1,
            "be the first process of a container, for a command and jobs beside it",
            (
                ("-g --group", "", "send signals to CMD's whole process group, not to CMD alone"),
                ("-r --rewrite", "SIG=SIG", "send CMD another signal than the one that came: TERM=QUIT"),
                ("-e --map-exit", "CODE=CODE", "exit with another code than CMD's: 143=0"),
                ("--leftovers", "DUR", "stop CMD's leftovers: SIGTERM, after DUR SIGKILL (PID 1: always)"),
                ("-p --parent-death-signal", "SIG", "get SIG when the parent of init ends"),
            ),
            'ENTRYPOINT ["jobmon", "init", "--"]\n\n'
            "CMD has the terminal and the streams, gets every signal, and gives its exit code: 128+n for\n"
            "signal n, 127 not found, 126 not executable. Orphans are reaped. It need not be PID 1.\n"
            "--rewrite and --map-exit may be given several times; SIG=0 drops a signal. CMD starts with the\n"
            "signals ignored and blocked that init was started with, but for SIGPIPE and SIGXFSZ.\n"
            "With CONFIG its jobs run beside CMD, which knows them by $JOBMON_PORT. SIGTERM, SIGINT, SIGPWR\n"
            "and SIGRTMIN+3 begin the shutdown and go to CMD too; when CMD ends, the jobs are stopped.\n"
            "CONFIG alone is `daemon --foreground CONFIG`, which does not print its JOBMON_PORT.",
        ),
        Verb("help", "help", "[VERB]", 0, 1, "explain JobMon, or a verb"),
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
        raise UsageError(f"{extra!r} is one argument too many; quote a name that has spaces")
    if "--timeout" in options and "--no-wait" in options:
        raise UsageError("--timeout means nothing with --no-wait")
    if "--wait" in options and "--no-wait" in options:
        raise UsageError("--wait and --no-wait exclude each other")
    if "--dry-run" in options and "--restart" in options:
        raise UsageError("--dry-run and --restart exclude each other")
    if "--dot" in options and "--json" in options:
        raise UsageError("--dot and --json exclude each other")
    if "--foreground" in options and "--background" in options:
        raise UsageError("--foreground and --background exclude each other")
    for word in (*given, *options.values()):
        if verb.module != "local" and any("\ud800" <= character <= "\udfff" for character in word):
            raise UsageError(f"{word!a} is not valid in this locale's encoding; names are Unicode")


def _unknown_option(verb: Verb, name: str) -> str:
    known = [one for names, _, _ in (*verb.options, ("--help", "", "")) for one in names.split()]
    return f"unknown option {name}{did_you_mean(name, known)}; a name that begins with a dash goes after --"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` where one of the known words is near, else nothing."""
    if len(word) <= _FAR:
        return ""
    near = [one for one in known if abs(len(one) - len(word)) <= _FAR]
    best = min(near, key=lambda one: distance(word, one), default="")
    return f"; did you mean {best}?" if near and distance(word, best) <= _FAR else ""


def distance(one: str, other: str) -> int:
    """How many insertions, deletions and replacements lead from one word to the other."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, right in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return row[-1]
