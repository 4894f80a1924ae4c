"""What is printed with --json: docs/json.md and docs/json.schema.json against the real program.

Every document has to match the schema twice: as it is published, and with everything closed that it
leaves open for later versions, so that a member or a word that it does not describe fails.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile

import e2e
import kit
import nasty
import pytest
from jsonschema import Draft202012Validator

from jobmon import errors, protocol
from jobmon.cli.commands import VERBS
from jobmon.core.causes import Kind
from jobmon.core.events import HAPPENINGS, Next, State
from jobmon.lean.fastjson import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Make = Callable[..., kit.Daemon]

TOP = os.path.dirname(kit.HERE)
WEB = {"command": kit.FOR_EVER}
AUTO = {**WEB, "autostart": True}
STRING = {"type": "string"}


def read(name: str) -> str:
    """The text of a document."""
    with open(os.path.join(TOP, "docs", name), encoding="utf-8") as file:
        return file.read()


SCHEMA = json.loads(read("json.schema.json"))
DEFS = SCHEMA["$defs"]
PAGE = read("json.md")
JSON_VERBS = [verb.name for verb in VERBS.values() if any(names == "--json" for names, _, _ in verb.options)]


def closed(schema: Any) -> Any:
    """The schema without room for later versions: no further members, no further words."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if STRING in schema.get("anyOf", ()):
        (words,) = (each for each in schema["anyOf"] if each != STRING)
        return words
    found = {key: closed(value) for key, value in schema.items()}
    if found.get("type") == "object" and "properties" in found:
        found["additionalProperties"] = False
    if "prefixItems" in found:
        found["items"] = False
    return found


CLOSED = closed(SCHEMA)


def faults(document: Any, name: str, schema: Any = SCHEMA) -> list[str]:
    """What a document has against a definition of the schema."""
    whole = {"$ref": f"#/$defs/{name}", "$defs": schema["$defs"]}
    return [f"{one.json_path}: {one.message}" for one in Draft202012Validator(whole).iter_errors(document)]


def checked(verb: str, line: str) -> Any:
    """The document of a line, once it is known to be just what the page says."""
    assert line.isascii()
    document = json.loads(line, parse_constant=pytest.fail)
    for schema in (SCHEMA, CLOSED):
        assert faults(document, verb, schema) == [], line
    assert faults(document, verb + "-or-all", ALL_TOO) == []
    return document


# The root of the file is any of the documents.
ALL_TOO = {"$defs": {**DEFS, **{f"{verb}-or-all": {"anyOf": SCHEMA["anyOf"]} for verb in DEFS}}}


def ask(one: kit.Daemon, *words: str) -> Any:
    """What `jobmon WORDS` prints (of `listen` a list), its exit code, and what it complains of."""
    given = [*words[:1], "--json", *words[1:]]
    code, out, err = one.run_cli(*given, env={**one.environ, "PYTHONPATH": kit.SOURCES})
    assert "Traceback" not in err
    if not out:
        return None, code, err
    assert out.endswith("\n")
    documents = [checked(words[0], line) for line in out[:-1].split("\n")]
    if words[0] == "listen":
        return documents, code, err
    (document,) = documents
    return document, code, err


def all_verbs(one: kit.Daemon, names: list[str], latest: int) -> dict[str, Any]:
    """Ask everything about a daemon whose last event is number `latest`; what the `why` and `status --tree`
    of each job say, by name."""
    found = {}
    for verb in (["list-jobs"], ["status"], ["status", "--tree"], ["graph"]):
        document, code, err = ask(one, *verb)
        assert (code, err) == (0, "")
        listed = [job["job"] for job in document] if isinstance(document, list) else list(document)
        assert listed == names
    first = one.watch(since=0).next().seq
    told, code, err = ask(one, "listen", "--since=0", str(latest - first + 1))
    assert (code, err) == (0, "")
    assert [event["seq"] for event in told] == list(range(first, latest + 1))
    for name in names:
        status, code, err = ask(one, "status", "--tree", "--", name)
        assert (code, err) == (0 if status["alive"] else 1, "")
        why, code, err = ask(one, "why", "--", name)
        assert (code, err) == (0, "")
        assert status["job"] == why["job"] == name
        found[name] = (why, status)
    return found


# ---- every state --------------------------------------------------------------------------------

TALKER = """
import os, socket, time
there = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
there.sendto(b"STATUS=3 customers\\nREADY=1", "\\0" + os.environ["NOTIFY_SOCKET"][1:])
time.sleep(1000000)
"""
NEVER_READY = {**WEB, "ready": {"fd": 3}}
JOBS: dict[str, Any] = {  # each is called for the state that it comes to, and what is special about it
    "stopped": WEB,
    "stopped by hand": WEB,
    "waiting": {**AUTO, "requires": ["starting"], "after": ["stopped", "running"]},
    "starting": {**NEVER_READY, "autostart": True},
    "running": {**AUTO, "description": "the\nsh\u00f6p", "after": ["exited"]},
    "running and talking": {"command": [sys.executable, "-c", TALKER], "ready": {"notify": True}},
    "stopping": e2e.STUBBORN,
    "killing": {**e2e.STUBBORN, "kill-timeout": 0},
    "backoff": {"command": "exit 3", "restart": True, "restart-penalty": 1000, "autostart": True},
    "exited": {"command": "true", "type": "oneshot", "autostart": True},
    "failed": {"command": "exit 7", "autostart": True},
    "failed of a signal": {"command": "kill -34 $$", "autostart": True},
    "failed for no program": {"command": ["/no/such/program"], "autostart": True},
    "failed to be ready": {**NEVER_READY, "start-timeout": 0.05, "autostart": True},
    "failed for another": {**WEB, "requires": ["failed to be ready"], "autostart": True},
}
# A daemon that cannot kill one of its jobs.
SPARES_ONE = (
    "from jobmon.linux.daemon.engine import Engine",
    "kill = Engine._kill",
    "Engine._kill = lambda self, action: None if action.job == 'killing' else kill(self, action)",
)


@pytest.fixture
def every_state(daemon: Make) -> Iterator[kit.Daemon]:
    """A daemon whose jobs are in every state that there is."""
    folder = tempfile.mkdtemp(prefix="jobmon-", dir="/tmp")
    one = daemon({"jobs": JOBS}, directory=folder, environ=nasty.broken(folder, *SPARES_ONE))
    pipe, watch = one.pipe(), one.watch(since=0)
    pipe.start("stopped by hand", "running and talking", "stopping", "killing")
    pipe.signal("WINCH", "stopping")
    pipe.stop("stopped by hand", reason="a\nreason")
    pipe.stop("stopping", wait=False)
    pipe.stop("killing", now=True, wait=False)
    expected = {name: name.split(" ", 1)[0] for name in JOBS}
    while {job.job: job.state for job in pipe.status()} != expected or _first_backoff(pipe):
        watch.next()
    yield one
    os.kill(pipe.get_pid("killing") or 0, signal.SIGKILL)
    pipe.stop("stopping", now=True)


def _first_backoff(pipe: Any) -> bool:
    """Whether its restart does not wait yet."""
    return bool(pipe.status("backoff")[0].run < 2)


def test_every_state(every_state: kit.Daemon) -> None:
    """Whatever state jobs are in, each verb says what the page says, and nothing more."""
    last = every_state.pipe().request("graph")["token"]
    found = all_verbs(every_state, list(JOBS), last)

    assert {status["state"] for _, status in found.values()} == {state.value for state in State}
    statuses = {name: status for name, (_, status) in found.items()}
    assert statuses["running and talking"]["says"] == "3 customers"
    assert statuses["stopping"]["next"] == "stop"
    assert statuses["stopping"]["until"] > statuses["stopping"]["since"] + 900
    assert statuses["running"]["description"] == "the\nsh\u00f6p"
    assert [command for _, _, command in statuses["running"]["tree"]] == [" ".join(kit.FOR_EVER)]
    reasons = {name: [cause["text"] for cause in why["causes"]] for name, (why, _) in found.items()}
    assert any("a\nreason" in text for text in reasons["stopped by hand"])
    assert [cause["job"] for cause in found["waiting"][0]["causes"]][-1] == "starting"


def test_the_processes_of_one_that_does_not_die(every_state: kit.Daemon) -> None:
    """Without --tree, too, a status tells who is left of a job that is being killed, and of no other."""
    statuses, _, _ = ask(every_state, "status")

    told = {status["job"]: status["tree"] for status in statuses}
    assert [len(tree) for tree in told.values() if tree is not None] == [1]
    assert told["killing"] is not None


# ---- every name -----------------------------------------------------------------------------------

NAMES = (
    *("", " ", "-", "--json", "-1", "__proto__", "a, b", "new\nline", "\r\n", "\t", "back\\slash"),
    *(
        '"quoted"',
        "\x1b[31mred\x7f",
        "\x01\x85\u2028\u202e\ufeff\uffff",
        "na\u00efve \u65e5\u672c \U0001f41d",
    ),
    "x" * 4000,
)


def test_every_name(daemon: Make) -> None:
    """Names are exact, in whatever place they stand: as members, in lists, in causes, in errors."""
    jobs: dict[str, Any] = {name: {**WEB, "requires": [NAMES[0]], "after": [NAMES[0]]} for name in NAMES[1:]}
    one = daemon({"jobs": {NAMES[0]: {**NEVER_READY, "start-timeout": 1000}, **jobs}})
    one.pipe().start(*NAMES, wait=False, reason="".join(NAMES)[:200])
    token = one.pipe().request("graph")["token"]
    found = all_verbs(one, list(NAMES), token)
    graph, _, _ = ask(one, "graph")
    wait, code, _ = ask(one, "wait", "--timeout=0", "--", *NAMES)

    assert {name: (job["requires"], job["after"]) for name, job in graph.items()} == {
        name: ([NAMES[0]], [NAMES[0]]) if name else ([], []) for name in NAMES
    }
    for name in NAMES[1:]:
        why, _ = found[name]
        assert [cause["job"] for cause in why["causes"] if cause["since"] is not None] == [name, NAMES[0]]
        assert why["events"][-1]["state"] == "waiting"
    assert code == 124
    assert [result["job"] for result in wait["results"]] == list(NAMES)


def test_no_jobs(daemon: Make) -> None:
    """Nothing is an empty object or list."""
    one = daemon({})

    assert [ask(one, verb)[0] for verb in ("list-jobs", "status", "graph")] == [{}, [], {}]


# ---- listen ---------------------------------------------------------------------------------------


def test_listen_tells_the_life_of_a_job(daemon: Make) -> None:
    """Every event to the last one is a line, and the numbers have no gap."""
    one = daemon({"jobs": {"job": {"command": kit.FOR_EVER, "restart": True}}})
    link = e2e.Relay(one).start_cli("listen", "--json")
    link.heard_subscription()
    watch, pipe = one.watch(), one.pipe()
    pipe.start("job")
    pipe.signal("KILL", "job")
    watch.until("job", "restarting")
    watch.until("job", "running")
    pipe.restart("job", reason="because")
    pipe.terminate()
    code, out, err = link.end()
    events = [checked("listen", line) for line in out.splitlines()]

    assert (code, err) == (0, "")
    assert {event["event"] for event in events} == set(HAPPENINGS) - {"removed"}
    assert [event["seq"] - events[0]["seq"] for event in events] == list(range(len(events)))
    assert (events[-1]["event"], events[-1]["job"]) == ("terminated", "")
    assert [event["cause"] for event in events if event["cause"].endswith(": because")]


def test_what_is_lost_shows_in_the_numbers(daemon: Make) -> None:
    """A number that is not kept leaves a gap; standard error says so at once."""
    one = daemon({"jobs": {"job": WEB}})
    token = one.pipe().start("job")
    told, code, err = ask(one, "listen", "--since=0", "1")
    assert (told[0]["seq"], code, err) == (token + 1, 0, "")

    link = e2e.Relay(one).start_cli("listen", "--json", "--since=5000", "1")
    link.heard_subscription()
    one.pipe().stop("job")
    code, out, err = link.end()
    assert (code, checked("listen", out)["seq"]) == (0, token + 3)
    assert err == f"jobmon: events after 5000 are lost; continuing after {token + 2}\n"


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("happening", HAPPENINGS)
def test_every_event_there_can_be(happening: str, state: State) -> None:
    """Those that no daemon can be brought to tell here have the same form."""
    why = {"kind": "exited", "status": 0}
    event = protocol.EventMessage(1 << 50, 0.0, "job", happening, state.value, 1, None, "", why)

    assert checked("listen", dumps(event.body()))["state"] == state.value


@pytest.mark.parametrize("state", State)
def test_every_status_there_can_be(state: State) -> None:
    """A status has all members, whatever is known of the job."""
    for following in (None, *(each.value for each in Next)):
        bare = protocol.JobStatus("job", state.value, False, next=following)
        tree = ((2, 0, "a"), (3, 2, ""))
        full = bare.replace(pid=1, since=0.5, until=1.5, tree=tree, stale=("env",), says="x")
        assert checked("status", dumps([bare.body(), full.body()]))[0]["next"] == following


# ---- wait -----------------------------------------------------------------------------------------

TASK = {"command": "exit 7", "autostart": True}
SIGNALLED = {"command": "kill -KILL $$", "autostart": True}
WAITS: dict[str, tuple[list[str], int, str]] = {  # what is asked, the exit code, the code of the error
    "it holds": (["web", "--for", "running"], 0, ""),
    "it holds for all": (["web", "other", "--for", "ready"], 0, ""),
    "it holds for one": (["web", "down", "--any", "--for", "stopped"], 0, ""),
    "an exit code": (["task", "--for", "exited"], 0, ""),
    "a signal": (["signalled", "--for", "exited"], 0, ""),
    "the exit code as its own": (["task", "--for", "exited", "--propagate"], 7, ""),
    "the signal as its own": (["signalled", "--propagate"], 137, ""),
    "a time": (["web", "--for", "stable:1ms"], 0, ""),
    "too late": (["web", "--timeout", "0"], 124, "timeout"),
    "too late for several": (["web", "other", "--any", "--timeout", "1ms"], 124, "timeout"),
    "never any more": (["down", "--for", "running"], 1, "failed"),
    "never any more for several": (["web", "down", "task", "--for", "ready"], 1, "failed"),
    "never any more for any": (["down", "task", "--any", "--for", "ready"], 1, "failed"),
    "has never run": (["down", "--propagate"], 1, "failed"),
    "no such job": (["web", "no\nsuch", "job"], 4, "no-such-job"),
    "an event of long ago": (["web", "--since", "4711"], 2, "bad-request"),
    "an event to come": (["web", "--since", str(1 << 53)], 2, "bad-request"),
    "CMD succeeds": (["web", "--for", "ready", "--", "echo", "{"], 0, ""),
    "CMD fails": (["web", "--for", "ready", "--", "false"], 1, "command-failed"),
    "CMD is none": (["web", "--", "/no/such\udce9"], 1, "command-failed"),
}


@pytest.fixture
def waited_for(daemon: Make) -> kit.Daemon:
    """A daemon with jobs to wait for."""
    one = daemon({"jobs": {"web": AUTO, "other": AUTO, "down": WEB, "task": TASK, "signalled": SIGNALLED}})
    watch = one.watch(since=0)
    watched = {"web": "running", "other": "running", "task": "failed", "signalled": "failed"}
    while watched.items() - {job.job: job.state for job in one.pipe().status()}.items():
        watch.next()
    return one


def test_every_outcome_of_a_wait(waited_for: kit.Daemon) -> None:
    """One object for each, and neither the exit code nor standard error is another than without --json."""
    for what, (words, code, error) in WAITS.items():
        plain = waited_for.run_cli("wait", *words)
        document, ended, err = ask(waited_for, "wait", *words)

        assert (ended, plain.code) == (code, code), what
        assert err == (plain.err if error else plain.out), what
        assert document["ok"] is not bool(error), what
        assert document.get("error", {}).get("code", "") == error, what


def test_how_runs_ended(waited_for: kit.Daemon) -> None:
    """With exited, and only then, a result says how: a number, or the name of a signal."""
    words = ["web", "task", "signalled", "--any", "--for"]
    exited, _, _ = ask(waited_for, "wait", *words, "exited")
    stopped, _, _ = ask(waited_for, "wait", *words, "stopped")

    assert {one["job"]: one["exit"] for one in exited["results"]} == {"task": 7, "signalled": "SIGKILL"}
    assert [sorted(one) for one in stopped["results"]] == [["job", "ok"]] * 2


def test_a_wait_that_fails_names_each_job(waited_for: kit.Daemon) -> None:
    """The results are for programs what the one line is for people."""
    document, _, err = ask(waited_for, "wait", "down", "task", "--for", "ready")

    assert err == "jobmon: down: is stopped; task: is failed: exit 7\n"
    assert document["error"]["message"] == err.removeprefix("jobmon: ").rstrip("\n")
    assert [(one["job"], one["error"]["message"]) for one in document["results"]] == [
        ("down", "is stopped"),
        ("task", "is failed: exit 7"),
    ]


def test_what_the_command_prints_is_apart(waited_for: kit.Daemon) -> None:
    """With --json the object stands alone on standard output, also where standard error is closed."""
    script = "jobmon() { " + f'{sys.executable} -m jobmon "$@"; }}; jobmon wait web --json --for ready -- '
    words = ["wait", "web", "--for", "ready", "--", "sh", "-c", "echo a; echo b >&2"]
    document, _, err = ask(waited_for, *words)
    assert (document["ok"], err) == (True, "a\nb\n")

    for redirection in ("2>&-", "<&- 2>&-"):
        done = subprocess.run(
            ["bash", "-c", f"{script} echo a {redirection}"],
            env=waited_for.environ,
            capture_output=True,
            text=True,
            check=True,
        )
        assert checked("wait", done.stdout)["ok"] is True


def test_the_daemon_is_gone_meanwhile(daemon: Make) -> None:
    """75 has an object too."""
    one = daemon({"jobs": {"web": WEB}})
    link = e2e.Relay(one).start_cli("wait", "web", "--json")
    link.heard()
    e2e.crash(one)
    code, out, err = link.end()
    document = checked("wait", out)

    assert (code, document["error"]["code"], document["results"]) == (75, "connection-lost", [])
    assert err == f"jobmon: {document['error']['message']}\n"


def test_the_daemon_ends_meanwhile(daemon: Make) -> None:
    """What can be so no more when the daemon terminates says that."""
    one = daemon({"jobs": {"web": AUTO}})
    link = e2e.Relay(one).start_cli("wait", "web", "--json", "--for", "restarted")
    link.heard()
    one.pipe().terminate()
    code, out, _ = link.end()

    assert (code, checked("wait", out)["error"]["code"]) == (1, "terminating")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("words", [["wait", "web"], ["reload"]], ids=" ".join)
def test_another_user_may_not(daemon: Make, words: list[str]) -> None:
    """5 has an object too, but of `wait` alone."""
    one = daemon({"jobs": {"web": WEB}})
    os.chmod(one.directory, 0o755)
    command = e2e.as_nobody(*words, "--json")
    done = subprocess.run(command, env=one.environ, capture_output=True, text=True, check=False)

    assert done.returncode == 5
    if words == ["reload"]:
        assert done.stdout == ""
    else:
        assert checked("wait", done.stdout)["error"]["code"] == "not-permitted"


# ---- reload ---------------------------------------------------------------------------------------

NOTHING = {"added": [], "removed": [], "changed": [], "supervisor": {"hot": [], "restart": []}}
# What the tests change: one job is new, one is gone, two have other settings, one of them for its next start.
BEFORE: dict[str, Any] = {"web": AUTO, "db": AUTO, "old": AUTO}
AFTER: dict[str, Any] = {
    "web": {**AUTO, "env": {"A": "1"}, "signal": "SIGINT"},
    "db": {**AUTO, "kill-timeout": 5},
    "new": WEB,
}
CHANGES = {
    **NOTHING,
    "added": ["new"],
    "removed": ["old"],
    "changed": [
        {"job": "web", "hot": ["signal"], "restart": ["env"]},
        {"job": "db", "hot": ["kill-timeout"], "restart": []},
    ],
}
RUNS_ON = "jobmon: still running with old settings: web (apply with: jobmon reload --restart)\n"


@pytest.fixture
def changed(daemon: Make) -> kit.Daemon:
    """A daemon whose configuration has changed since it was read."""
    one = daemon({"jobs": BEFORE})
    one.configure({"jobs": AFTER})
    return one


def states(one: kit.Daemon) -> list[tuple[str, int, list[str]]]:
    """Each job with its run and what is stale of it, by `status`."""
    found, _, _ = ask(one, "status")
    return [(job["job"], job["run"], job["stale"]) for job in found]


def test_a_reload_that_is_only_shown(changed: kit.Daemon) -> None:
    """A dry run says the plan and what is doubtful, and nothing else; nothing is done."""
    changed.configure({"supervisor": {"include-dirs": ["none/*"], "control-port": "other"}, "jobs": AFTER})
    plain = changed.run_cli("reload", "--dry-run")
    document, code, err = ask(changed, "reload", "--dry-run")
    (warning,) = document.pop("warnings")

    assert (code, err) == (plain.code, plain.err) == (0, plain.err)
    daemons = {"hot": ["include-dirs"], "restart": ["control-port"]}
    assert document == {"plan": {**CHANGES, "supervisor": daemons}}
    assert err == f"{warning} (a warning)\njobmon: takes effect when the daemon is restarted: control-port\n"
    assert states(changed) == [(name, 1, []) for name in BEFORE]


def test_a_reload_that_is_done(changed: kit.Daemon) -> None:
    """What is stale is named, by standard error too; with the token no event of it is missed."""
    before, _, _ = ask(changed, "listen", "--since=0", "6")  # three jobs start
    document, code, err = ask(changed, "reload")
    told, _, _ = ask(changed, "listen", f"--since={document['token']}", "1")

    assert (code, err) == (0, RUNS_ON)
    assert document.pop("token") == before[-1]["seq"]
    assert document == {"plan": CHANGES, "warnings": [], "stale": ["web"], "results": []}
    assert (told[0]["job"], told[0]["state"]) == ("old", "stopping")
    changed.pipe().wait("web", condition="running")
    assert ("web", 1, ["env"]) in states(changed)


@pytest.mark.parametrize("words", [[], ["--restart"]], ids=str)
def test_a_reload_that_has_nothing_to_do(daemon: Make, words: list[str]) -> None:
    """The plan is there and empty."""
    document, code, err = ask(daemon({"jobs": BEFORE}), "reload", *words)
    del document["token"]

    assert (code, err) == (0, "")
    assert document == {"plan": NOTHING, "warnings": [], "stale": [], "results": []}


def test_a_reload_that_restarts(changed: kit.Daemon) -> None:
    """With --restart nothing is stale afterwards, and the results are what was: of this or an earlier one."""
    document, code, err = ask(changed, "reload")
    assert (document["stale"], err) == (["web"], RUNS_ON)
    document, code, err = ask(changed, "reload", "--restart")

    assert (code, err) == (0, "")
    assert (document["plan"], document["stale"]) == (NOTHING, [])
    assert document["results"] == [{"job": "web", "ok": True}]
    assert ("web", 2, []) in states(changed)


# What web is to run, the code and the message of what becomes of it.
RESTARTS = {
    "no program": (["/no/such"], "could-not-start", "could not be started: exec /no/such: ENOENT"),
    "dies": ("exit 3", "failed", "is failed: exit 3"),
}


@pytest.mark.parametrize(("command", "error", "says"), RESTARTS.values(), ids=RESTARTS)
def test_a_reload_whose_restart_fails(changed: kit.Daemon, command: Any, error: str, says: str) -> None:
    """1, with the whole object: what has changed has changed. Each of the results says how it went."""
    web = {**AUTO, "command": command, "ready": {"fd": 3}}
    changed.configure({"jobs": {**AFTER, "web": web, "db": {**AUTO, "env": {"B": "2"}}}})
    document, code, err = ask(changed, "reload", "--restart")
    results = {one["job"]: one for one in document["results"]}

    assert code == 1
    assert document["plan"]["added"] == ["new"]
    assert isinstance(document["token"], int)
    assert (results["db"], results["web"]["error"]["code"]) == ({"job": "db", "ok": True}, error)
    assert results["web"]["error"]["message"].startswith(says)
    assert err == f"jobmon: web: {results['web']['error']['message']}\n"
    assert [run for name, run, _ in states(changed) if name == "db"] == [2]


def test_a_reload_while_the_daemon_ends(changed: kit.Daemon) -> None:
    """Cut short in its restart it says what has changed, begun too late nothing: 1 both times."""
    stubborn = {**e2e.STUBBORN, "autostart": True}
    changed.configure({"jobs": {**AFTER, "web": {**NEVER_READY, "autostart": True}, "rock": stubborn}})
    cut_short = changed.start_cli("reload", "--restart", "--json")
    watch = changed.watch(since=0)
    watch.find(lambda event: (event.job, event.run, event.event) == ("web", 2, "launched"))
    changed.pipe().terminate()
    out, err = cut_short.communicate(timeout=kit.DEADLINE)
    document = checked("reload", out)

    (result,) = document["results"]
    assert (cut_short.returncode, err) == (1, f"jobmon: web: {result['error']['message']}\n")
    assert (result["error"]["code"], document["plan"]["added"]) == ("failed", ["new", "rock"])
    assert ask(changed, "reload") == (None, 1, "jobmon: the supervisor is terminating\n")


@pytest.mark.parametrize("words", [[], ["--restart"], ["--dry-run"]], ids=str)
def test_a_configuration_with_mistakes(changed: kit.Daemon, words: list[str]) -> None:
    """1, with the problems alone, those of standard error and of `jobmon check`; nothing is done."""
    changed.configure({"jobs": {"new\n": {"comand": "true"}, "\ud800": WEB}})
    document, code, err = ask(changed, "reload", *words)

    assert code == 1
    assert document == {"problems": err.splitlines()}
    assert err == changed.run_cli("check", changed.config).err
    assert states(changed) == [(name, 1, []) for name in BEFORE]


def test_every_name_in_a_plan(daemon: Make) -> None:
    """Names are exact there too, whatever happens to them, and in what is stale."""
    one = daemon({})
    names = list(NAMES)
    one.configure({"jobs": dict.fromkeys(names, AUTO)})
    added, _, _ = ask(one, "reload")
    one.configure({"jobs": {name: {**AUTO, "env": {"A": "1"}} for name in names}})
    others, _, _ = ask(one, "reload")
    restarted, code, _ = ask(one, "reload", "--restart")
    one.configure({})
    removed, _, _ = ask(one, "reload")

    assert added["plan"]["added"] == removed["plan"]["removed"] == others["stale"] == names
    assert [change["job"] for change in others["plan"]["changed"]] == names
    assert (code, {result["job"] for result in restarted["results"]}) == (0, set(names))


# ---- when something is wrong ----------------------------------------------------------------------

QUESTIONS = {
    "list-jobs": ["list-jobs"],
    "status": ["status"],
    "status JOB": ["status", "no such"],
    "listen": ["listen"],
    "why": ["why", "no such"],
    "graph": ["graph"],
    "wait": ["wait", "no such"],
    "reload": ["reload"],
    "reload --dry-run": ["reload", "--dry-run"],
}


@pytest.mark.parametrize("words", QUESTIONS.values(), ids=QUESTIONS)
def test_no_daemon_there(daemon: Make, words: list[str]) -> None:
    """69 (255 of `status JOB`) is told by words, and by an object of `wait` alone."""
    one = daemon({})
    plain = one.run_cli(*words, env={**one.environ, "JOBMON_PORT": "/no/control,/no/event"})
    one.environ["JOBMON_PORT"] = "/no/control,/no/event"
    document, code, err = ask(one, *words)

    assert (code, err) == (plain.code, plain.err)
    assert code == (255 if words == ["status", "no such"] else 69)
    assert document == (unreachable(err) if "wait" in words else None)


def unreachable(err: str) -> dict[str, Any]:
    """What `wait --json` says where no daemon is."""
    message = err.removeprefix("jobmon: ").rstrip("\n")
    return {"ok": False, "error": {"code": "unreachable", "message": message}, "results": []}


@pytest.mark.parametrize("port", ["", "1,2,3", "/" + "x" * 200 + ",1"])
def test_no_address(daemon: Make, port: str) -> None:
    """A JOBMON_PORT that is none is 2, and so it is of `wait`, with its object."""
    one = daemon({})
    one.environ["JOBMON_PORT"] = port

    assert ask(one, "graph")[:2] == (None, 2)
    document, code, err = ask(one, "wait", "x")
    assert (document, code) == (unreachable(err), 2)


def test_what_answers_is_no_daemon(daemon: Make) -> None:
    """Something else on that port is unreachable as well."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = daemon({})
        one.environ["JOBMON_PORT"] = f"{server.getsockname()[1]},1"
        process = one.start_cli("wait", "--json", "x")
        connection, _ = server.accept()
        connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
        connection.close()
        out, err = process.communicate(timeout=kit.DEADLINE)

    assert (checked("wait", out), process.returncode) == (unreachable(err), 69)


@pytest.mark.parametrize(("verb", "code"), [("why", 4), ("status", 255), ("wait", 4)])
def test_no_such_job(daemon: Make, verb: str, code: int) -> None:
    """The words are those of always, with the name that was probably meant."""
    one = daemon({"jobs": {"web": WEB}})
    document, ended, err = ask(one, verb, "wbe")

    assert (ended, err) == (code, "jobmon: wbe: no such job (did you mean 'web'?)\n")
    assert (document is None) == (verb != "wait")


@pytest.mark.parametrize(
    "words",
    [
        ["list-jobs", "x"],
        ["status", "x", "y"],
        ["listen", "many"],
        ["listen", "--since=-1"],
        ["why"],
        ["why", "x", "y"],
        ["graph", "--dot"],
        ["wait"],
        ["wait", "x", "--for", "redy"],
        ["wait", "x", "--timeout", "soon"],
        ["wait", "x", "--propagate", "--for", "ready"],
        ["reload", "x"],
        ["reload", "--dry-run", "--restart"],
    ],
    ids=" ".join,
)
def test_wrong_usage(daemon: Make, words: list[str]) -> None:
    """A command line that makes no sense prints nothing, `wait` included."""
    document, code, err = ask(daemon({}), *words)

    assert document is None
    assert code == (255 if words[0] == "status" else 2)
    assert err.startswith(f"jobmon: {words[0]}: ")


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    ("verb", "code"),
    [
        ("list-jobs", 0),
        ("status", 0),
        ("status web", 1),
        ("listen --since 0", 0),
        ("why web", 0),
        ("graph", 0),
        ("wait web --for stopped", 0),
        ("wait web --for ready", 1),
        ("reload", 0),
        ("reload --dry-run", 0),
    ],
)
def test_nobody_reads(daemon: Make, verb: str, code: int, unbuffered: str) -> None:
    """A pipe that is closed changes nothing and is not spoken of; a full disk is 1, and said."""
    one = daemon({"jobs": {"web": WEB, "x" * 4000: WEB, "y" * 4000: WEB, "z" * 4000: WEB}})
    one.pipe().start("x" * 4000)
    in_vain = "jobmon: web: is stopped\n" if "ready" in verb else ""
    full = "jobmon: cannot write the output: No space left on device\n"
    for redirection, ended, says in (("| true", code, ""), (">/dev/full", 1, full)):
        script = f"{sys.executable} -m jobmon {verb} --json {redirection}; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(
            ["bash", "-c", script],
            env={**one.environ, "PYTHONUNBUFFERED": unbuffered},
            capture_output=True,
            text=True,
            timeout=kit.DEADLINE,
            check=False,
        )
        assert (done.returncode, done.stdout) == (ended, ""), redirection
        assert sorted(done.stderr.splitlines()) == sorted((in_vain + says).splitlines())


# ---- the schema and the page ------------------------------------------------------------------------


def test_the_schema_is_one() -> None:
    """It is a schema of its dialect, as published and closed."""
    assert SCHEMA["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    Draft202012Validator.check_schema(SCHEMA)
    Draft202012Validator.check_schema(CLOSED)


def test_every_verb_with_json_is_described() -> None:
    """The verbs that take --json, the definitions, the root's alternatives and the page name the same."""
    assert set(JSON_VERBS) == {"list-jobs", "status", "listen", "why", "graph", "wait", "reload"}
    assert SCHEMA["anyOf"] == [{"$ref": f"#/$defs/{verb}"} for verb in DEFS if verb in JSON_VERBS]
    assert len(SCHEMA["anyOf"]) == len(JSON_VERBS)
    for verb in JSON_VERBS:
        assert re.search(rf"^\| `jobmon {verb}[^`]* --json` \|", PAGE, re.MULTILINE)


def test_the_words_are_those_of_the_daemon() -> None:
    """No state, event or code that can be printed is missing from the schema, and none is too many."""
    assert CLOSED["$defs"]["state"]["enum"] == [state.value for state in State]
    assert CLOSED["$defs"]["happening"]["enum"] == list(HAPPENINGS)
    assert CLOSED["$defs"]["typed-cause"]["properties"]["kind"]["enum"] == [kind.value for kind in Kind]
    following = CLOSED["$defs"]["job-status"]["properties"]["next"]["enum"]
    assert following == [*(each.value for each in Next), None]
    codes = set(CLOSED["$defs"]["error"]["properties"]["code"]["enum"])
    of_commands = {"already-started", "already-stopped", "not-running", "invalid"}
    assert codes == {*errors.CODES, "command-failed", "unreachable", "connection-lost"} - of_commands


def members() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every member that the schema describes: whose, its name, and how."""
    for name, definition in DEFS.items():
        for each in (definition, *definition.get("anyOf", ())):
            for member, what in each.get("properties", {}).items():
                yield name, member, what


def test_every_member_is_explained() -> None:
    """Each has a description in the schema, and stands in the tables of the page; so does each word."""
    for name, member, what in members():
        assert what.get("description"), (name, member)
        assert re.search(rf"^\| (`[^`]+`, )*`([a-z]+(\[\])?\.)*{member}`", PAGE, re.MULTILINE), (name, member)
    for name, definition in DEFS.items():
        assert definition.get("description"), name
    for schema in _within(DEFS):
        for word in schema.get("enum", ()):
            assert word is None or f"`{word}`" in PAGE, word


def _within(schema: Any) -> Iterator[dict[str, Any]]:
    """Every object of a schema."""
    if isinstance(schema, dict):
        yield schema
    for each in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from _within(each)


def examples() -> list[tuple[str, Any]]:
    """The documents on the page, with the verb under whose heading they stand."""
    sections = re.findall(r"^## ([a-z-]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    fenced = re.compile(r"```json\n(.*?)```", re.DOTALL)
    return [(verb, json.loads(text)) for verb, body in sections for text in fenced.findall(body)]


def test_the_examples_are_documents() -> None:
    """What the page shows is what the schema allows, every member included."""
    shown = examples()

    verbs = [verb for verb, _ in shown]
    assert verbs == ["status", "listen", "why", "graph", "wait", "wait", "reload", "reload"]
    for verb, document in shown:
        assert faults(document, verb, CLOSED) == [], verb
        assert faults(document, verb) == []


# ---- room for later versions ----------------------------------------------------------------------


def grown(document: Any, *, names: bool) -> Any:
    """A document of a later version: every object has a member more. `names`: its members are names."""
    if isinstance(document, list):
        return [grown(each, names=False) for each in document]
    if not isinstance(document, dict):
        return document
    more = {} if names else {"later": {"a": [1]}}
    return {key: grown(value, names=False) for key, value in document.items()} | more


@pytest.mark.parametrize(("verb", "document"), examples())
def test_further_members_are_no_fault(verb: str, document: Any) -> None:
    """Who validates with the published schema is not broken by what may be added; closed, it is a fault."""
    later = grown(document, names=verb == "graph")

    assert faults(later, verb) == []
    assert faults(later, verb, CLOSED) != []


@pytest.mark.parametrize(("verb", "document"), examples())
def test_further_words_are_no_fault(verb: str, document: Any) -> None:
    """Nor by a word that nobody knows today."""
    text = json.dumps(document)
    words = {word for schema in _within(DEFS) for word in schema.get("enum", ()) if word}
    later, changed = re.subn(rf'("(?:state|next|event|code)": )"(?:{"|".join(words)})"', r'\1"later"', text)

    assert faults(json.loads(later), verb) == []
    assert not changed or faults(json.loads(later), verb, CLOSED) != []


def test_a_line_of_another_kind_is_no_fault() -> None:
    """`listen` may tell more than events one day; an event that lacks something is a fault all the same."""
    assert faults({"type": "heartbeat", "more": 1}, "listen") == []
    assert faults({"type": "heartbeat", "more": 1}, "listen", CLOSED) != []
    assert faults({"type": "event", "seq": 1}, "listen") != []


DONE = {"plan": NOTHING, "warnings": [], "stale": [], "results": [], "token": 1}


def test_the_schema_can_agree() -> None:
    """What the next test spoils is right as it is."""
    assert faults(DONE, "reload", CLOSED) == []


@pytest.mark.parametrize(
    ("verb", "document"),
    [
        ("list-jobs", {"web": "yes"}),
        ("status", {"job": "web"}),
        ("status", [1]),
        ("why", {"job": "web", "state": "running", "causes": [{}], "events": []}),
        ("graph", {"web": {"state": "running"}}),
        ("wait", {"ok": False, "results": []}),
        ("wait", {"ok": True, "error": {"code": "failed", "message": ""}, "results": []}),
        ("wait", {"ok": True, "results": [{"job": "web", "ok": False}]}),
        ("wait", {"ok": True, "results": [{"job": "web", "ok": True, "exit": "exit 7"}]}),
        ("reload", {}),
        ("reload", {"problems": []}),
        ("reload", {"plan": NOTHING}),
        ("reload", {"plan": NOTHING, "problems": ["no"]}),
        ("reload", {"plan": {}, "warnings": []}),
        ("reload", {"plan": NOTHING, "warnings": [], "stale": []}),
        ("reload", {**DONE, "results": [{"job": "web", "ok": False}]}),
        ("reload", {**DONE, "results": [{"job": "web", "ok": True, "error": {"code": "x", "message": ""}}]}),
    ],
)
def test_the_schema_can_refuse(verb: str, document: Any) -> None:
    """What a verb never prints does not match."""
    assert faults(document, verb) != []
