"""The pure parts of the command line: arguments, durations, escaping, and the words for people."""

from __future__ import annotations

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobmon import errors
from jobmon.cli import formatting, output
from jobmon.cli.commands import VERBS, UsageError, did_you_mean, parse
from jobmon.cli.help import overview, page
from jobmon.cli.listen import plain
from jobmon.cli.main import main
from jobmon.client import parse_port, patience_for, ports_from, refusal
from jobmon.protocol import Event07, EventMessage, JobStatus
from jobmon.suggest import distance

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# ---- arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "given_", "options"),
    [
        ("start a b", ["a", "b"], {}),
        ("start --no-wait a", ["a"], {"--no-wait": ""}),
        ("start a --no-wait", ["a"], {"--no-wait": ""}),
        ("start a --timeout 2m b", ["a", "b"], {"--timeout": "2m"}),
        ("start a --timeout=2m", ["a"], {"--timeout": "2m"}),
        ("start -- --no-wait -x", ["--no-wait", "-x"], {}),
        ("start a -- -- b", ["a", "--", "b"], {}),
        ("start -", ["-"], {}),
        ("daemon -f c", ["c"], {"--foreground": ""}),
        ("listen -1", ["-1"], {}),
        ("signal -9 a", ["-9", "a"], {}),
        ("check --schema", [], {"--schema": ""}),
        ("start -h", [], {"--help": ""}),
        ("help", [], {}),
    ],
)
def test_options_may_stand_anywhere(words: str, given_: list[str], options: dict[str, str]) -> None:
    """Options come before or after names, `--` ends them, and numbers below zero are none."""
    verb, *rest = words.split()

    arguments = parse(VERBS[verb], rest)

    assert arguments.given == given_
    assert arguments.options == options


def test_any_name_can_be_given() -> None:
    """Empty names, spaces, newlines and quotes arrive as they are."""
    names = ["", "a b", "a\nb", "'\"", "/etc", "\u00fc"]

    assert parse(VERBS["start"], names).given == names


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["start"], "JOB... is missing"),
        (["signal", "HUP"], "SIG JOB... is missing"),
        (["check"], "CONFIG is missing"),
        (["daemon"], "CONFIG is missing"),
        (["pid", "a", "b"], "unexpected argument"),
        (["terminate", "a"], "unexpected argument"),
        (["start", "--tiemout", "2", "a"], "(did you mean '--timeout'?)"),
        (["start", "--zzzzzz", "a"], "unknown option --zzzzzz"),
        (["start", "-x"], "after --"),
        (["start", "a", "--timeout"], "--timeout needs a value"),
        (["start", "--no-wait=1", "a"], "--no-wait takes no value"),
        (["start", "--no-wait", "--timeout", "2", "a"], "cannot be used with"),
        (["daemon", "-f", "--background", "c"], "are mutually exclusive"),
        (["start", "caf\udce9"], "names are Unicode"),
        (["start", "a", "--reason", "\udce9"], "names are Unicode"),
    ],
)
def test_usage_errors_say_what_is_wrong(words: list[str], says: str) -> None:
    """A command line that makes no sense is refused with what would be right."""
    with pytest.raises(UsageError) as caught:
        parse(VERBS[words[0]], words[1:])
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 2),
        (["frobnicate"], 2),
        (["start"], 2),
        (["pid"], 255),
        (["status", "--bogus"], 255),
        (["start", "a", "--timeout", "soon"], 2),
        (["start", "a"], 69),
        (["status", "a"], 255),
        (["status"], 69),
        (["pid", "a"], 255),
        (["list-jobs"], 69),
        (["listen"], 69),
        (["listen", "some"], 2),
        (["listen", "--since", "-1"], 2),
        (["help", "frobnicate"], 2),
    ],
    ids=str,
)
def test_errors_have_their_exit_codes(
    words: list[str],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Any,
) -> None:
    """Each error ends with its own code and words on standard error, and prints nothing else."""
    monkeypatch.setenv("JOBMON_PORT", f"{tmp_path}/control,{tmp_path}/event")

    assert main(words) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "jobmon" in printed.err
    assert "Traceback" not in printed.err


def test_a_missing_daemon_is_named_with_where_it_was_looked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    """The message has the address, the reason, and what JOBMON_PORT is."""
    where = f"{tmp_path}/control"
    monkeypatch.setenv("JOBMON_PORT", f"{where},{tmp_path}/event")
    main(["list-jobs"])

    said = capsys.readouterr().err
    assert said == (
        f"jobmon: no daemon answers at {where} (No such file or directory); "
        f"JOBMON_PORT is {where},{tmp_path}/event\n"
    )


@pytest.mark.parametrize(
    "words", [["--help"], ["help"], ["-h"], ["--version"], ["help", "start"], ["start", "--help"]]
)
def test_help_is_no_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Who asks for help gets it on standard output."""
    assert main(words) == 0
    printed = capsys.readouterr()
    assert printed.out
    assert printed.err == ""


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_help_tells_all(verb: Any) -> None:
    """Every verb is in the overview, and every option of it in its page, all within 100 columns."""
    assert f"  {verb.name} " in overview()
    for names, _, does in verb.options:
        assert names.split()[-1] in page(verb)
        assert does in page(verb)
    assert max(map(len, f"{overview()}\n{page(verb)}".splitlines())) <= 100


def test_a_near_word_is_suggested() -> None:
    """Two mistakes are near, three are not, and a very short word is like nothing."""
    assert did_you_mean("strat", VERBS) == " (did you mean 'start'?)"
    assert did_you_mean("xxxxx", VERBS) == ""
    assert did_you_mean("pd", VERBS) == ""
    assert did_you_mean("start", ()) == ""


@given(st.text(max_size=6), st.text(max_size=6))
def test_distance(one: str, other: str) -> None:
    """The distance is symmetric, zero for the same word only, and no longer than the longer word."""
    far = distance(one, other)

    assert far == distance(other, one)
    assert (far == 0) == (one == other)
    assert abs(len(one) - len(other)) <= far <= max(len(one), len(other))


# ---- durations -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ("500ms", 0.5),
        ("20s", 20),
        ("2m", 120),
        ("1h", 3600),
        ("7", 7),
        ("0", 0),
        ("1.5s", 1.5),
        ("0.25", 0.25),
    ],
)
def test_durations(words: str, seconds: float) -> None:
    """The documented units, and bare seconds."""
    assert formatting.seconds(words) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "words", ["", "s", "ms", ".", "-1", "-1s", "1d", "1e3", "inf", "nan", "1 s", "1_0", "\u00b2s", "1.2.3"]
)
def test_what_is_no_duration(words: str) -> None:
    """Anything else is refused with the forms there are."""
    with pytest.raises(UsageError, match=r"invalid duration .*500ms, 20s, 2m, 1h"):
        formatting.seconds(words)


def test_a_duration_has_a_limit() -> None:
    """Nobody waits longer than ten years, and no number is too long to say so."""
    for words in ("999999h", "9" * 400):
        with pytest.raises(UsageError, match="ten years"):
            formatting.seconds(words)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-3, "0 s"),
        (0, "0 s"),
        (0.9, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (3605, "1 h"),
        (7385, "2 h 3 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_spans(seconds: float, words: str) -> None:
    """A time that has passed is told in its two largest units."""
    assert formatting.span(seconds) == words


# ---- escaping --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("", ""),
        ("Job A", "Job A"),
        ("\u00fc \u65e5\u672c", "\u00fc \u65e5\u672c"),
        ("a\nb", "a\\nb"),
        ("\t\r", "\\t\\r"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\x7f\x85", "\\x7f\\x85"),
        ("a\\nb", "a\\\\nb"),
        ("\u2028\u2029", "\\u2028\\u2029"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\U000e0001", "\\U000e0001"),
        ("\udce9", "\\udce9"),
    ],
)
def test_escaping(name: str, line: str) -> None:
    """Control characters, line separators, what turns the direction, and backslashes are escaped."""
    assert formatting.escape(name) == line


@given(st.text())
def test_escaping_can_be_undone(name: str) -> None:
    """An escaped name is one printable line, and no two names have the same."""
    line = formatting.escape(name)

    assert line.isprintable()
    assert "".join(unescaped(line)) == name


def unescaped(line: str) -> Any:
    """The characters that an escaped line stands for."""
    rest = iter(line)
    for character in rest:
        if character != "\\":
            yield character
            continue
        kind = next(rest)
        size = {"x": 2, "u": 4, "U": 8}.get(kind)
        if size is None:
            yield {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}[kind]
        else:
            yield chr(int("".join(next(rest) for _ in range(size)), 16))


def test_a_poor_terminal_gets_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the encoding of standard output lacks is escaped, never a traceback."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    output.say("RUNNING \u00fc")
    sys.stdout.flush()

    assert raw.getvalue() == b"RUNNING \\xfc\n"


def test_no_standard_output_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller who has closed standard output still gets the exit code."""
    monkeypatch.setattr(sys, "stdout", None)

    assert main(["--version"]) == 0


# ---- words -----------------------------------------------------------------------------------

NOW = 1_000_000.0


@pytest.mark.parametrize(
    ("job", "line"),
    [
        (
            JobStatus("web", "running", True, 4711, 2, NOW - 7385, 1),
            "web: running, pid 4711, up 2 h 3 min, 1 restart",
        ),
        (JobStatus("web", "running", True, 1, 1, NOW), "web: running, pid 1, up 0 s"),
        (
            JobStatus("web", "running", True, 1, 1, NOW, processes=1),
            "web: running, pid 1, 1 process, up 0 s",
        ),
        (
            JobStatus("web", "starting", True, 1, 1, NOW, processes=12),
            "web: starting, pid 1, 12 processes, for 0 s",
        ),
        (JobStatus("web", "stopped", False, None, 0, NOW - 9), "web: stopped, never started"),
        (
            JobStatus("web", "stopped", False, None, 0, NOW - 9, processes=0),
            "web: stopped, never started",
        ),
        (JobStatus("web", "exited", False, None, 1, NOW - 9, 0, "exit 0"), "web: exited, 9 s ago, exit 0"),
        (
            JobStatus("web", "backoff", False, None, 2, NOW - 3, 2, "exit 3", None, NOW + 12),
            "web: backoff, for 3 s, starts again in 12 s, 2 restarts, exit 3",
        ),
        (
            JobStatus("web", "stopping", True, 7, 1, NOW - 3, 0, "", "restart", NOW + 7),
            "web: stopping, pid 7, for 3 s, SIGKILL in 7 s, then started again",
        ),
        (
            JobStatus("web", "killing", True, None, 1, NOW - 3, 0, "", "stop", None, 2),
            "web: killing, for 3 s, 2 processes left",
        ),
        (
            JobStatus("web", "running", True, 7, 2, NOW - 3, 1, "exit 1"),
            "web: running, pid 7, up 3 s, 1 restart, last run: exit 1",
        ),
        (
            JobStatus("web", "stopping", True, 7, 2, NOW - 3, 0, "exit 1", "stop", NOW + 7),
            "web: stopping, pid 7, for 3 s, SIGKILL in 7 s, last run: exit 1",
        ),
        (
            JobStatus("web", "waiting", False, None, 2, NOW - 3, 0, "SIGTERM"),
            "web: waiting, 3 s ago, last run: SIGTERM",
        ),
        (
            JobStatus("web", "running", True, 1, 1, NOW, description="the shop\x1b"),
            "web: running, pid 1, up 0 s (the shop\\x1b)",
        ),
        (JobStatus("a\nb", "failed", False, None, 1, NOW, 0, "x\ny"), "a\\nb: failed, 0 s ago, x\\ny"),
    ],
)
def test_status_lines(job: JobStatus, line: str) -> None:
    """How a job is, in one line for people."""
    assert formatting.status_line(job, NOW) == line


def test_the_table_is_aligned() -> None:
    """All jobs stand in columns under a heading, wide characters counted as the terminal does."""
    jobs = [
        JobStatus("web", "running", True, 4711, 1, NOW - 60, 3, "exit 1", None, None, 12),
        JobStatus("\u65e5\u672c", "stopped", False, None, 0, NOW, processes=0),
    ]

    assert formatting.table(jobs, NOW) == [
        "JOB   STATE    PID   PROCESSES  SINCE      RESTARTS  RESULT",
        "web   running  4711  12         1 min ago  3         last run: exit 1",
        "\u65e5\u672c  stopped  -     -          -          0",
    ]


def test_the_table_has_descriptions_where_there_are_any() -> None:
    """One job with a description gives the table a last column for them."""
    jobs = [
        JobStatus("web", "failed", False, None, 1, NOW - 60, 3, "exit 1", description="the\nshop"),
        JobStatus("db", "stopped", False, None, 0, NOW, processes=0),
    ]

    assert formatting.table(jobs, NOW) == [
        "JOB  STATE    PID  PROCESSES  SINCE      RESTARTS  RESULT  DESCRIPTION",
        "web  failed   -    -          1 min ago  3         exit 1  the\\nshop",
        "db   stopped  -    -          -          0",
    ]


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Event07("Job A", 0), "RUNNING Job A"),
        (Event07("a\nb", 1), "STOPPED a\\nb"),
        (Event07("", 2), "RESTARTING "),
        (Event07("", 3), "TERMINATE"),
        (EventMessage(1, 0.0, "web", "launched", "starting", 1, 7, ""), "RUNNING web"),
        (EventMessage(1, 0.0, "web", "state", "running", 1, 7, ""), None),
        (EventMessage(1, 0.0, "", "terminated", "stopped", 0, None, ""), "TERMINATE"),
    ],
)
def test_event_lines(event: Event07 | EventMessage, line: str | None) -> None:
    """Events are told in the words of list-jobs; mere changes of state have none."""
    assert plain(event) == line


# ---- where the daemon is ---------------------------------------------------------------------


def test_ports() -> None:
    """JOBMON_PORT is CONTROL,EVENT; unset it is the documented default."""
    assert ports_from({}) == (6666, 6667)
    assert ports_from({"JOBMON_PORT": "1,65535"}) == (1, 65535)
    assert ports_from({"JOBMON_PORT": "/run/c,7"}) == ("/run/c", 7)
    assert parse_port("x" * 107) == "x" * 107


@pytest.mark.parametrize(
    "value", ["", ",", "6666", "1,2,3", "0,1", "1,65536", "/a,", "/a,/" + "x" * 107, "/a\0,1"]
)
def test_bad_ports(value: str) -> None:
    """What is no pair of addresses is refused with what JOBMON_PORT is and should be."""
    with pytest.raises(errors.AddressError, match=r"JOBMON_PORT is .* must be CONTROL,EVENT"):
        ports_from({"JOBMON_PORT": value})


def test_an_empty_port_is_not_the_default() -> None:
    """`export JOBMON_PORT=$(jobmon daemon BAD)` does not lead to somebody else's daemon."""
    with pytest.raises(errors.AddressError, match="did the daemon fail to start"):
        ports_from({"JOBMON_PORT": ""})


# ---- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("no-such-job", errors.NoSuchJobError),
        ("not-permitted", errors.NotPermittedError),
        ("timeout", errors.WaitTimeout),
        ("already-started", errors.JobError),
        ("something-new", errors.JobError),
    ],
)
def test_refusals_are_exceptions(code: str, kind: type[errors.JobError]) -> None:
    """Each code has its exception, whose text names the job."""
    error = refusal({"error": {"code": code, "message": "no", "job": "web"}})

    assert type(error) is kind
    assert (str(error), error.code, error.results) == ("web: no", code, (("web", code, "no"),))


def test_an_unknown_job_is_both_errors() -> None:
    """JobMon 0.7's users catch a NameError, the others a JobError."""
    error = refusal({"error": {"code": "no-such-job", "message": "no"}})

    assert isinstance(error, NameError)
    assert isinstance(error, errors.JobError)


def test_patience() -> None:
    """Only what waits for jobs may wait for ever; a stuck daemon is noticed in everything else. A timeout
    that the daemon does not keep is kept half a second later."""
    assert patience_for("status", {}) == 30
    assert patience_for("start", {"wait": False}) == 30
    assert patience_for("start", {}) is None
    assert patience_for("wait", {"timeout": 5.0}) == 5.5
    assert patience_for("start", {"timeout": 0.0, "wait": False}) == 0.5
