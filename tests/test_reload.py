"""Reload: a real daemon, and configurations that change under it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import deadfs
import e2e
import kit
import pytest
from test_daemon import BY_NAME

from jobmon import CommandPipe, ConfigError, JobError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Factory = Callable[..., kit.Daemon]
    Jobs = dict[str, dict[str, Any]]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")

UP: dict[str, Any] = {"command": kit.FOR_EVER, "autostart": True}
DOWN: dict[str, Any] = {"command": kit.FOR_EVER}


def lives(one: kit.Daemon) -> dict[str, int | None]:
    """The pid of each job."""
    return {job.job: job.pid for job in one.pipe().status()}


def until(watch: kit.Watch, *wanted: tuple[str, str]) -> None:
    """Read events until each of these, a job and what happens to it, has come, in whatever order."""
    missing = set(wanted)
    while missing:
        event = watch.next()
        missing -= {(event.job, event.event), (event.job, event.state)}


def hang_up(one: kit.Daemon) -> None:
    """SIGHUP; returns when the daemon has acted on it: signals are served before commands, and reloads one
    after another."""
    one.process.send_signal(signal.SIGHUP)
    try:
        one.pipe().reload(dry_run=True)
    except ConfigError:
        pass


# ---- what has changed ---------------------------------------------------------------------------


def test_it_says_what_has_changed_and_does_it(daemon: Factory) -> None:
    """A line for each change, in the order of the configuration; the log has them too."""
    one = daemon({"jobs": {"web": UP, "old": UP, "db": UP}})
    before, watch = lives(one), one.watch()
    web = UP | {"command": ["sleep", "1000"], "signal": "SIGINT", "env": {"A": "1"}, "kill-timeout": 5}
    one.configure({"jobs": {"new\n": UP, "web": web, "db": UP, "idle": DOWN}})
    done = one.run_cli("reload")
    assert done.code == 0
    assert done.out.splitlines() == [
        "+ new\\n",
        "+ idle",
        "- old",
        "~ web: signal, kill-timeout (at once); command, env (at its next start)",
    ]
    assert done.err.count("\n") == 1
    assert "still running with old settings: web (apply with: jobmon reload --restart" in done.err

    until(watch, ("old", "removed"), ("new\n", "running"))
    after = lives(one)
    assert list(after) == ["web", "db", "new\n", "idle"]
    assert (after["web"], after["db"], after["idle"]) == (before["web"], before["db"], None)
    assert not [event for event in watch.seen if event.job in ("web", "db", "idle")]
    log = one.log
    assert 'INFO reload: added job="new\\n"\n' in log
    assert 'INFO reload: removed job="old"\n' in log
    assert 'reload: changed job="web" at_once="signal, kill-timeout" next_run="command, env"\n' in log
    assert re.search(r'INFO reload by="reload by uid \d+ pid \d+" added=2 removed=1 changed=1\n', log)


def test_a_dry_run_only_says_it(daemon: Factory) -> None:
    """The same lines, and nothing is done; neither it nor a reload to the same says that anything was."""
    one = daemon({"jobs": {"web": UP, "old": UP}})
    before, watch = lives(one), one.watch()
    config = {"supervisor": {"log-level": "DEBUG", "log-file": "log"}, "jobs": {"web": UP, "new": UP}}
    one.configure(config)
    done = one.run_cli("reload", "--dry-run")
    assert (done.code, done.err) == (0, "")
    assert done.out == "+ new\n- old\nthe daemon: log-file, log-level (at once)\n"
    assert json.loads(one.run_cli("reload", "--dry-run", "--json").out) == {
        "plan": {
            "added": ["new"],
            "removed": ["old"],
            "changed": [],
            "supervisor": {"hot": ["log-file", "log-level"], "restart": []},
        },
        "warnings": [],
    }
    assert lives(one) == before
    assert not os.path.exists(one.path("log"))

    one.configure({"jobs": {"web": UP, "old": UP}})
    assert one.run_cli("reload", "--dry-run").out == "nothing has changed\n"
    assert one.run_cli("reload").out == "nothing has changed\n"
    assert lives(one) == before
    one.pipe().stop("old")
    watch.until("old", "stopping")
    assert len(watch.seen) == 1


@pytest.mark.parametrize("code", [0, 1])
def test_its_token_comes_before_all_that_it_does(daemon: Factory, code: int) -> None:
    """Whoever begins with the event after the token misses nothing; a restart that fails has one too."""
    one = daemon({"jobs": {"old": UP, "web": UP}})
    before = one.pipe().request("graph")["token"]
    one.configure({"jobs": {"web": UP | {"command": ["/nonexistent"] if code else ["sleep", "1000"]}}})
    done = one.run_cli("reload", "--restart", "--json")
    token = json.loads(done.out)["token"]
    watch = one.watch(since=token)
    watch.until("old", "removed")

    assert (done.code, token) == (code, before)
    assert watch.words()[0] == "old state stopping"
    assert "web state stopping" in watch.words()


def test_sighup_does_the_same_and_the_log_tells(daemon: Factory) -> None:
    """What changes, what is wrong, and that nothing was changed then."""
    one = daemon({"jobs": {"web": UP}})
    one.configure({"jobs": {"db": UP}})
    watch = one.watch()
    hang_up(one)
    until(watch, ("web", "removed"), ("db", "running"))
    assert list(lives(one)) == ["db"]
    assert f'WARNING reload by="SIGHUP from pid {os.getpid()}" added=1 removed=1\n' in one.log

    one.configure({"jobs": {"db": {"comand": 1}, "web": {"command": []}}})
    hang_up(one)
    assert list(lives(one)) == ["db"]
    mistakes = re.findall(r'ERROR reload: error at="(.*)"\n', one.log)
    assert [one.config in mistake for mistake in mistakes] == [True] * 3
    assert f'ERROR reload failed: nothing changed by="SIGHUP from pid {os.getpid()}" problems=3' in one.log


def test_sighup_is_answered_at_the_level_that_is_the_default(daemon: Factory) -> None:
    """Whoever sends it sees no reply: the log says what it came to, and who runs on with what he had."""
    one = daemon({"supervisor": {"log-level": "WARNING"}, "jobs": {"web": UP, "db": UP}})
    one.configure(
        {
            "supervisor": {"log-level": "WARNING"},
            "jobs": {"web": UP | {"env": {"A": "1"}}, "db": UP, "x": DOWN},
        }
    )
    hang_up(one)
    hang_up(one)
    by = f'by="SIGHUP from pid {os.getpid()}"'

    assert [line.split(" ", 1)[1] for line in one.log.splitlines()] == [
        f"WARNING reload {by} added=1 changed=1",
        'WARNING reload: jobs running with old settings jobs="web"',
        f"WARNING reload: nothing has changed {by}",
        'WARNING reload: jobs running with old settings jobs="web"',
    ]


def test_what_is_on_its_way_down_is_not_said_to_run_on(daemon: Factory) -> None:
    """`stale` names whom --restart would restart."""
    one = daemon({"jobs": {"web": e2e.STUBBORN | {"autostart": True}, "db": UP}})
    pipe, watch = one.pipe(), one.watch()
    pipe.stop("web", wait=False)
    watch.until("web", "stopping")
    changed = {"env": {"A": "1"}}
    one.configure({"jobs": {"web": e2e.STUBBORN | changed, "db": UP | changed}})

    assert pipe.reload()["stale"] == ["db"]
    assert pipe.status("web")[0].stale == ("env",)


def test_what_is_added_starts_in_order(daemon: Factory) -> None:
    """After what it requires, which is launched with it, though it has no autostart."""
    one = daemon({})
    watch = one.watch()
    db = {"command": "echo >&3; exec sleep 1000000", "ready": {"fd": 3}}
    one.configure({"jobs": {"app": UP | {"requires": ["db"]}, "db": db}})
    assert one.pipe().reload()["plan"]["added"] == ["app", "db"]
    watch.until("app", "running")

    told = [word for word in watch.words() if word.endswith("running")]
    assert told == ["db state running", "app state running"]


def test_what_is_removed_stops_in_order(daemon: Factory) -> None:
    """What requires it is gone before it is told to stop; a status shows what is going."""
    one = daemon({"jobs": {"db": UP, "app": e2e.STUBBORN | {"autostart": True, "requires": ["db"]}}})
    watch = one.watch()
    one.configure({})
    pipe = one.pipe()
    pipe.reload()
    assert [(job.job, job.state) for job in pipe.status()] == [("db", "running"), ("app", "stopping")]
    assert "then removed" in one.run_cli("status", "app").out
    pipe.stop("app", now=True)
    watch.until("db", "removed")

    assert pipe.status() == []
    told = [word for word in watch.words() if "removed" in word or "died" in word]
    assert told == ["app died stopped", "app removed stopped", "db died stopped", "db removed stopped"]


# ---- stale --------------------------------------------------------------------------------------


def test_a_run_that_the_configuration_left_behind_is_stale(daemon: Factory) -> None:
    """Status, its JSON and why say so, until the change is taken back or the job has a new run."""
    one = daemon({"jobs": {"web": UP}})
    pid = lives(one)["web"]
    one.configure({"jobs": {"web": UP | {"command": ["sleep", "1000"], "working-dir": "/"}}})
    pipe = one.pipe()
    assert pipe.reload()["stale"] == ["web"]
    words = "stale: command, working-dir changed since it was started"
    assert words in one.run_cli("status", "web").out
    assert words in one.run_cli("status").out
    assert words.replace("stale", "is stale") in one.run_cli("why", "web").out
    assert json.loads(one.run_cli("status", "--json").out)[0]["stale"] == ["command", "working-dir"]

    one.configure({"jobs": {"web": UP | {"working-dir": "/"}}})
    assert pipe.reload()["stale"] == ["web"]
    assert pipe.status("web")[0].stale == ("working-dir",)
    one.configure({"jobs": {"web": UP}})
    assert pipe.reload()["stale"] == []
    assert pipe.status("web")[0].stale == ()
    assert lives(one)["web"] == pid

    one.configure({"jobs": {"web": UP | {"command": ["sleep", "1000"]}}})
    pipe.reload()
    pipe.restart("web")
    assert "stale" not in one.run_cli("status", "web").out
    (new,) = pipe.status("web", tree=True)
    assert new.tree is not None
    assert new.tree[0][2] == "sleep 1000"


def test_reload_with_restart_gives_the_stale_a_new_run(daemon: Factory) -> None:
    """Those of earlier reloads too, with what requires them; it returns when they are ready, and touches
    neither what is stopped nor what has not changed."""
    jobs: Jobs = {"db": UP, "app": UP | {"requires": ["db"]}, "web": UP, "down": UP, "early": UP}
    one = daemon({"jobs": jobs})
    before, pipe = lives(one), one.pipe()
    pipe.stop("down")
    changed = UP | {"env": {"NEW": "1"}}
    one.configure({"jobs": jobs | {"early": changed}})
    assert pipe.reload()["stale"] == ["early"]
    ready = {"fd": 3}
    told = {"command": "echo >&3; exec sleep 1000000", "ready": ready}
    one.configure({"jobs": jobs | {"early": changed, "db": changed | told, "down": changed}})
    done = one.run_cli("reload", "--restart")
    assert (done.code, done.err) == (0, "")
    *changes, restarted = done.out.splitlines()
    assert changes == ["~ db: command, env, ready (at its next start)", "~ down: env (at its next start)"]
    assert set(restarted.removeprefix("restarted: ").split(", ")) == {"db", "early", "app"}

    after = {job.job: job for job in pipe.status()}
    assert after["db"].state == after["early"].state == "running"
    assert after["web"].pid == before["web"]
    assert after["down"].state == "stopped"
    assert [after[name].run for name in jobs] == [2, 2, 1, 1, 2]
    pid = after["db"].pid
    assert pid is not None
    assert kit.environ_of(pid)["NEW"] == "1"


def test_a_restart_that_fails_is_told(daemon: Factory) -> None:
    """What has changed is said, then what went wrong: exit status 1."""
    one = daemon({"jobs": {"web": UP}})
    one.configure({"jobs": {"web": UP | {"command": ["/nonexistent"]}}})
    done = one.run_cli("reload", "--restart")
    assert (done.code, done.out) == (1, "~ web: command (at its next start)\n")
    assert done.err.startswith("jobmon: web: could not be started: ")

    assert one.pipe().status("web")[0].state == "failed"


def test_what_counts_at_once_counts_for_the_run_that_is_there(daemon: Factory) -> None:
    """Its next stop sends the new signal; a death of it is judged by the new policy."""
    one = daemon({"jobs": {"web": UP, "db": UP | {"restart": False}}})
    watch, pipe = one.watch(), one.pipe()
    one.configure({"jobs": {"web": UP | {"signal": "SIGINT"}, "db": UP | {"restart": True}}})
    assert pipe.reload()["stale"] == []
    pipe.stop("web")
    assert watch.until("web", "died").cause == "SIGINT"
    pipe.signal("KILL", "db")

    watch.until("db", "restarting")
    assert watch.until("db", "running").run == 2


def test_what_somebody_has_stopped_stays_stopped(daemon: Factory) -> None:
    """Whatever changes, also with autostart, and with --restart."""
    one = daemon({"jobs": {"a": UP, "b": UP, "c": DOWN}})
    pipe = one.pipe()
    pipe.stop("a", "b")
    one.configure({"jobs": {"a": UP, "b": UP | {"env": {"A": "1"}}, "c": UP}})
    pipe.reload()
    pipe.reload(restart=True)

    assert lives(one) == {"a": None, "b": None, "c": None}
    pipe.start("b")
    pid = pipe.get_pid("b")
    assert pid is not None
    assert kit.environ_of(pid)["A"] == "1"


# ---- while something goes on ----------------------------------------------------------------------


@pytest.mark.parametrize("autostart", [False, True])
def test_removed_and_added_again_before_it_is_gone(daemon: Factory, autostart: bool) -> None:
    """The run that was to go goes, and has no second life; the job is there all along."""
    stubborn = e2e.STUBBORN | {"autostart": True}
    one = daemon({"jobs": {"web": stubborn}})
    pid, watch, pipe = lives(one)["web"], one.watch(), one.pipe()
    one.configure({})
    pipe.reload()
    watch.until("web", "stopping")
    one.configure({"jobs": {"web": UP | {"autostart": autostart}}})
    assert pipe.reload()["plan"]["added"] == ["web"]
    assert lives(one) == {"web": pid}
    pipe.signal("KILL", "web")
    watch.until("web", "died")
    if autostart:
        assert watch.until("web", "running").run == 2

    assert (pipe.get_pid("web") is None) is not autostart
    assert "web removed stopped" not in watch.words()


def test_who_waits_for_what_is_removed_is_told(daemon: Factory) -> None:
    """At once, not when it is gone; who waits for it to be gone waits on, and that is so then."""
    one = daemon({"jobs": {"web": e2e.STUBBORN | {"autostart": True}}})
    waiting = one.pipe()
    ready = waiting.submit("wait", ("web",), condition="restarted")
    gone = waiting.submit("wait", ("web",), condition="exited")
    waiting.info()
    one.configure({})
    one.pipe().reload()
    with pytest.raises(JobError, match="was removed") as caught:
        waiting.collect(ready)
    assert caught.value.code == "failed"
    assert not waiting.answered(gone)
    one.pipe().signal("KILL", "web")

    assert waiting.collect(gone)["results"] == [{"job": "web", "ok": True, "exit": "SIGKILL"}]


def test_while_it_shuts_down_nothing_is_reloaded(daemon: Factory) -> None:
    """It is refused, and what has gone stays gone."""
    one = daemon({"jobs": {"web": e2e.STUBBORN | {"autostart": True}}})
    pipe, watch = one.pipe(), one.watch()
    pipe.terminate()
    watch.until("web", "stopping")
    one.configure({"jobs": {"new": UP}})
    with pytest.raises(JobError) as caught:
        pipe.reload()

    assert caught.value.code == "terminating"
    assert list(lives(one)) == ["web"]


@pytest.mark.slow
def test_two_hundred_reloads_while_others_work(daemon: Factory) -> None:
    """Clients start and stop jobs all the while; each is answered, each job ends as the last configuration
    has it, no job ever has two runs, and no descriptor is left."""
    stays: Jobs = {f"job{number}": DOWN for number in range(4)}
    one = daemon({"jobs": stays | {"rock": UP}})
    admin, workers, watch = one.pipe(), [one.pipe() for _ in stays], one.watch()
    rock, fds = admin.get_pid("rock"), len(kit.fds_of(one.pid))
    for turn in range(200):
        verb = "restart" if turn % 3 else "stop"
        numbers = [pipe.submit(verb, (name,), wait=False) for pipe, name in zip(workers, stays, strict=True)]
        extra = {f"extra{turn % 5}": UP | {"env": {"TURN": str(turn)}}}
        kept = {name: spec | {"env": {"TURN": str(turn // 7)}} for name, spec in stays.items()}
        one.configure({"jobs": {**kept, **extra, "rock": UP}})
        numbers.append(admin.submit("reload", restart=turn % 10 == 9))
        for pipe, number in zip((*workers, admin), numbers, strict=True):
            answered(pipe, number)
        while kit.readable(watch.stream.fileno(), 0):
            watch.next()
    one.configure({"jobs": stays | {"rock": UP}})
    admin.reload()
    for turn in range(5):
        answered(admin, admin.submit("wait", (f"extra{turn}",), condition="stopped"))
    admin.stop("rock")
    watch.until("rock", "died")

    status = {job.job: job for job in admin.status()}
    assert set(status) == {*stays, "rock"}
    assert [event.pid for event in watch.seen if event.job == "rock"] == [rock] * 2
    assert not [job for job in status.values() if job.stale and not job.alive]
    assert len(kit.fds_of(one.pid)) - fds <= 2 * len(stays)
    assert "internal error (please report)" not in one.log
    alive = dict.fromkeys((event.job for event in watch.seen), 0) | {"rock": 1}
    for event in watch.seen:
        alive[event.job] += (event.event == "launched") - (event.event == "died")
        assert 0 <= alive[event.job] <= 1


def answered(pipe: CommandPipe, number: int) -> None:
    """Take an answer, which may be that there was nothing to do, or that somebody else came in between."""
    try:
        pipe.collect(number, kit.DEADLINE)
    except JobError as error:
        if error.code not in ("already-stopped", "failed", "no-such-job"):
            raise


# ---- what is wrong ----------------------------------------------------------------------------------


def test_a_wrong_configuration_changes_nothing(daemon: Factory) -> None:
    """All mistakes are listed with their places, exit status 1; not even the log-level changes, nor does
    the job that is right start."""
    one = daemon({"supervisor": {"include-dirs": ["jobs/*.json"]}, "jobs": {"web": UP}})
    before = lives(one)
    os.mkdir(one.path("jobs"))
    with open(one.path("jobs/a.json"), "w", encoding="utf-8") as file:
        file.write('{"db": {\n  "command": "true",\n  "sginal": "SIGINT"},\n "web": {"command": "true"}}')
    supervisor = {"include-dirs": ["jobs/*.json"], "log-level": "DEBUG", "log-file": "other"}
    one.configure({"supervisor": supervisor, "jobs": {"web": {"command": 1}, "new": UP}})
    done = one.run_cli("reload")
    lines = done.err.splitlines()
    assert (done.code, done.out, len(lines)) == (1, "", 3)
    assert lines[0].startswith(f"{one.config}:1:")
    assert "jobs.web.command: " in lines[0]
    assert lines[1] == f'{one.path("jobs/a.json")}:3:3: jobs.db.sginal: unknown key; did you mean "signal"?'
    assert "there are two jobs of this name" in lines[2]
    assert json.loads(one.run_cli("reload", "--json").out) == {"problems": lines}
    assert one.run_cli("reload", "--dry-run").err.splitlines() == lines

    assert lives(one) == before
    assert not os.path.exists(one.path("other"))
    with pytest.raises(ConfigError) as caught:
        one.pipe().reload()
    assert list(caught.value.problems) == lines


def put_nothing(_path: str) -> None:
    """The file is gone."""


SPOILT: dict[str, tuple[Callable[[str], object], str]] = {
    "gone": (put_nothing, "cannot be read: No such file or directory"),
    "directory": (os.mkdir, "is a directory"),
    "fifo": (os.mkfifo, "cannot be read: not a regular file"),
    "empty": (lambda path: Path(path).touch(), "empty"),
    "torn": (lambda path: Path(path).write_text('{"jobs": {"web": {"c'), ":1:19: "),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_master_that_cannot_be_read(daemon: Factory, how: str) -> None:
    """It is told at once, and nothing changes."""
    one = daemon({"jobs": {"web": UP}})
    before = lives(one)
    put, words = SPOILT[how]
    os.unlink(one.config)
    put(one.config)
    done = one.run_cli("reload")

    assert done.code == 1
    assert done.err.startswith(one.config)
    assert words in done.err
    assert lives(one) == before


def test_job_files_come_and_go(daemon: Factory) -> None:
    """The globs are looked at anew: a file that has gone takes its jobs with it, a new one brings some; one
    that is a FIFO keeps nobody waiting; and a glob that finds nothing is a warning."""
    one = daemon({"supervisor": {"include-dirs": ["jobs/*.json"]}, "jobs": {"web": UP}})
    os.mkdir(one.path("jobs"))
    pipe, watch = one.pipe(), one.watch()
    with open(one.path("jobs/a.json"), "w", encoding="utf-8") as file:
        json.dump({"a": UP}, file)
    assert pipe.reload()["plan"]["added"] == ["a"]
    os.rename(one.path("jobs/a.json"), one.path("jobs/b.json"))
    assert not any(pipe.reload()["plan"]["supervisor"].values())
    assert list(lives(one)) == ["web", "a"]

    os.mkfifo(one.path("jobs/c.json"))
    assert one.run_cli("reload").err == f"{one.path('jobs/c.json')}: cannot be read: not a regular file\n"
    os.unlink(one.path("jobs/c.json"))
    os.unlink(one.path("jobs/b.json"))
    done = one.run_cli("reload")
    assert (done.code, done.out) == (0, "- a\n")
    assert done.err.endswith(f'matches no file; looked for "{one.path("jobs/*.json")}" (a warning)\n')
    watch.until("a", "removed")
    assert list(lives(one)) == ["web"]


def job_files(one: kit.Daemon, directory: str, *names: str) -> None:
    """A directory with a file for each of some jobs."""
    os.makedirs(one.path(directory), exist_ok=True)
    for name in names:
        with open(one.path(f"{directory}/{name}.json"), "w", encoding="utf-8") as file:
            json.dump({name: UP}, file)


@pytest.mark.parametrize("pattern", ["jobs/*.json", "*/*.json", "**/*.json"])
def test_a_directory_that_cannot_be_looked_into_changes_nothing(daemon: Factory, pattern: str) -> None:
    """Its jobs run on, and the place of the glob is told, also by check."""
    one = daemon({"jobs": {"own": UP}})
    job_files(one, "jobs", "a", "b")
    one.configure({"supervisor": {"include-dirs": [pattern]}, "jobs": {"own": UP}})
    one.pipe().reload()
    before = list(lives(one))
    os.rename(one.path("jobs"), one.path("elsewhere.d"))
    os.symlink("jobs", one.path("jobs"))  # ELOOP is refused to root, too
    words = (
        rf'1:\d+: supervisor.include-dirs\[0\]: cannot look into "{re.escape(one.path("jobs"))}": Too many'
    )

    for verb in (["reload"], ["reload", "--dry-run"], ["check", one.config]):
        done = one.run_cli(*verb)
        assert done.code == 1, verb
        assert re.search(words, done.err), verb
    assert list(lives(one)) == before
    assert before == ["own", "a", "b"]


def test_a_directory_that_has_gone_takes_no_job_with_it(daemon: Factory) -> None:
    """A reload that would remove jobs because the directory of their glob is not there is refused; a start is
    warned. Without the glob they go, and who never came from there goes too."""
    one = daemon({"jobs": {"own": UP}})
    job_files(one, "jobs", "a", "b", "c", "d")
    globs = {"supervisor": {"include-dirs": ["jobs/*.json"]}}
    one.configure({**globs, "jobs": {"own": UP}})
    pipe = one.pipe()
    pipe.reload()
    before = list(lives(one))
    os.rename(one.path("jobs"), one.path("away"))

    one.configure({**globs, "jobs": {}})
    done = one.run_cli("reload")
    assert done.code == 1
    assert done.err.endswith(
        f'supervisor.include-dirs[0]: there is no directory "{one.path("jobs")}"; that would remove "a", "b",'
        ' "c" and 1 more: bring it back, or take this glob away if they shall go\n'
    )
    assert list(lives(one)) == before
    assert one.run_cli("check", one.config).code == 0

    one.configure({**globs, "jobs": dict.fromkeys("abcd", UP)})
    assert pipe.reload()["plan"]["removed"] == ["own"]  # they are known from elsewhere now
    one.configure({**globs, "jobs": {"a": UP}})
    assert pipe.reload()["plan"]["removed"] == ["b", "c", "d"]
    one.configure({"supervisor": {"include-dirs": []}, "jobs": {}})
    assert pipe.reload()["plan"]["removed"] == ["a"]


def test_a_link_to_nothing_takes_no_job_with_it(daemon: Factory) -> None:
    """One of several directories that a glob finds is a link that is being switched: its jobs stay. A
    directory that was removed takes its jobs with it."""
    one = daemon({})
    for name in "abc":
        os.makedirs(one.path(f"releases/{name}"))
        job_files(one, f"releases/{name}", name)
    os.mkdir(one.path("sites"))
    for name in "ab":
        os.symlink(f"../releases/{name}", one.path(f"sites/{name}"))
    os.rename(one.path("releases/c"), one.path("sites/c"))
    one.configure({"supervisor": {"include-dirs": ["sites/*/*.json"]}, "jobs": {}})
    pipe, watch = one.pipe(), one.watch()
    assert pipe.reload()["plan"]["added"] == ["a", "b", "c"]
    assert {watch.find(lambda event: event.state == "running").job for _ in "abc"} == {"a", "b", "c"}
    before = lives(one)
    os.unlink(one.path("sites/b"))
    os.symlink("../releases/none", one.path("sites/b"))
    shutil.rmtree(one.path("sites/c"))

    done = one.run_cli("reload")
    assert done.code == 1
    assert f'nothing is where this link leads: "{one.path("sites/b")}"; that would remove "b"' in done.err
    assert '"c"' not in done.err
    assert lives(one) == before
    os.rename(one.path("releases/b"), one.path("releases/none"))
    assert pipe.reload()["plan"]["removed"] == ["c"]
    os.unlink(one.path("sites/b"))
    assert pipe.reload()["plan"]["removed"] == ["b"]


# Begins in a mount namespace of its own with a file system that has a file of jobs.
MOUNTED = """
mkdir jobs && mount -t tmpfs none jobs && echo '{"a": {"command": "true"}}' > jobs/a.json && exec "$@"
"""


@as_root
def test_a_file_system_that_is_not_mounted_takes_no_job_with_it(daemon: Factory) -> None:
    """Where it was there is an empty directory: the same name on another file system."""
    jobs = {"unmount": {"command": ["umount", "jobs"], "type": "oneshot"}}
    config = {"supervisor": {"include-dirs": ["jobs/*.json"]}, "jobs": jobs}
    one = daemon(config, wrapper=["unshare", "-m", "sh", "-c", MOUNTED, "sh"])
    assert list(lives(one)) == ["unmount", "a"]
    one.pipe().start("unmount")
    done = one.run_cli("reload")

    assert done.code == 1
    words = f'another file system than before is at "{one.path("jobs")}"; that would remove "a"'
    assert words in done.err
    assert list(lives(one)) == ["unmount", "a"]


def test_it_reads_what_the_start_has_read(daemon: Factory, tmp_path: Path) -> None:
    """A relative path is one from where jobmon was called, wherever the daemon has gone; the environment is
    the daemon's own."""
    (tmp_path / "elsewhere").mkdir()
    ports = {"control-port": f"{tmp_path}/control", "event-port": f"{tmp_path}/event"}
    supervisor = {"working-dir": "elsewhere", "include-dirs": ["$WHERE/*.json"], **ports}
    job = UP | {"working-dir": "$WHERE/."}
    one = daemon(
        {"supervisor": supervisor, "jobs": {"web": UP}},
        directory=str(tmp_path),
        wrapper=BY_NAME,
        environ={"WHERE": "sub"},
    )
    (tmp_path / "elsewhere" / "sub").mkdir()
    (tmp_path / "elsewhere" / "sub" / "a.json").write_text(json.dumps({"a": job}))
    (tmp_path / "elsewhere" / "jobmon.json").write_text("this one is not meant")
    pipe = one.pipe()
    plan = pipe.reload()["plan"]
    assert (plan["added"], plan["changed"]) == (["a"], [])
    pipe.wait("a", condition="running")
    pid = pipe.get_pid("a")
    assert pid is not None
    assert os.readlink(f"/proc/{pid}/cwd") == str(tmp_path / "elsewhere" / "sub")


# Words before the daemon's that call it where the link leads, with the configuration's name alone.
IN_CURRENT = ["sh", "-c", 'cd "$CURRENT" && exec "$1" "$2" "$3" "$4" "$5" jobmon.json', "sh"]


@pytest.mark.parametrize("pwd", [True, False])
def test_a_link_to_the_new_release_is_followed(daemon: Factory, tmp_path: Path, pwd: bool) -> None:
    """Files, directories and streams are looked for by name, anew each time: where $PWD is right, through the
    link that jobmon was called in; where it is not, in the directory that it was."""
    current = tmp_path / "current"
    supervisor = {
        "include-dirs": ["jobs/*.json"],
        "control-port": f"{tmp_path}/c",
        "event-port": f"{tmp_path}/e",
    }
    web = UP | {"command": "echo up; exec sleep 1000000", "stdout": "log"}
    for number in "12":
        jobs = tmp_path / number / "jobs"
        jobs.mkdir(parents=True)
        (jobs / "new.json").write_text(json.dumps({f"new{number}": DOWN}))
        config = {"supervisor": supervisor, "jobs": {"web": web}}
        (tmp_path / number / "jobmon.json").write_text(json.dumps(config))
    current.symlink_to("1")
    wrapper = IN_CURRENT if pwd else [*IN_CURRENT[:2], IN_CURRENT[2].replace("exec", "PWD=/ exec"), "sh"]
    one = daemon({"supervisor": supervisor}, wrapper=wrapper, environ={"CURRENT": str(current)})
    pipe = one.pipe()
    assert list(lives(one)) == ["web", "new1"]
    (tmp_path / "next").symlink_to("2")
    (tmp_path / "next").rename(current)
    changes = pipe.reload()["plan"]
    pipe.restart("web")
    pid = pipe.get_pid("web")

    release = "2" if pwd else "1"
    assert (changes["added"], changes["removed"]) == (([f"new{release}"], ["new1"]) if pwd else ([], []))
    assert os.readlink(f"/proc/{pid}/cwd") == str(tmp_path / release)
    assert os.readlink(f"/proc/{pid}/fd/1") == str(tmp_path / release / "log")


# ---- the daemon itself --------------------------------------------------------------------------------


def test_the_log_changes_at_once(daemon: Factory) -> None:
    """Level and file; a file that cannot be opened is a mistake like any other, and nothing changes."""
    one = daemon({"supervisor": {"log-level": "ERROR"}, "jobs": {"web": UP}})
    pipe = one.pipe()
    one.configure({"supervisor": {"log-level": "INFO", "log-file": "/nonexistent/log"}})
    said = one.run_cli("reload").err
    assert said.startswith(f"{one.config}:1:")
    assert said.endswith(": supervisor.log-file: /nonexistent/log: No such file or directory\n")
    pipe.restart("web")
    assert "job=" not in one.log

    one.configure({"supervisor": {"log-level": "INFO", "log-file": "new"}, "jobs": {"web": UP}})
    pipe.reload()
    pipe.restart("web")
    with open(one.path("new"), encoding="utf-8") as file:
        told = file.read()
    assert 'reload: changed supervisor="log-file, log-level"' in told
    assert 'job="web" run=3' in told
    assert "job=" not in one._stderr.drain()
    one.configure({"supervisor": {"log-level": "INFO"}, "jobs": {"web": UP}})
    pipe.reload()
    pipe.stop("web")
    assert 'to="stopped"' in one._stderr.drain()


def test_what_needs_a_new_daemon_is_said_until_there_is_one(daemon: Factory) -> None:
    """At each reload, while all else is done; it goes on to listen where it does."""
    one = daemon({"jobs": {"web": UP}})
    jobs: Jobs = {"web": UP | {"working-dir": "/"}, "db": DOWN | {"working-dir": "/"}}
    pipe = one.pipe()
    ports = {"control-port": one.path("other"), "event-port": one.path("another")}
    one.configure({"supervisor": {**ports, "working-dir": "/"}, "jobs": jobs})
    for added in (["db"], []):
        told = pipe.reload()["plan"]
        assert told["added"] == added
        assert told["supervisor"] == {"hot": [], "restart": ["working-dir", "control-port", "event-port"]}
    done = one.run_cli("reload")
    assert done.out == "the daemon: working-dir, control-port, event-port (at its next start)\n"
    keys = "working-dir, control-port, event-port"
    assert f"jobmon: takes effect when the daemon is restarted: {keys}\n" in done.err
    assert 'WARNING reload: needs a restart of the daemon supervisor="working-dir, control' in one.log
    assert pipe.info()["control"] == one.control

    one.configure({"jobs": jobs})
    assert one.run_cli("reload").out == "nothing has changed\n"


def test_another_working_dir_is_for_the_next_daemon_altogether(daemon: Factory, tmp_path: Path) -> None:
    """Until then nothing is looked for there: no job file, no directory or stream of a job, no socket."""
    jobs: Jobs = {"web": UP | {"stdout": "out", "working-dir": "sub"}}
    before = {"include-dirs": ["jobs/*.json"], "control-port": "control", "event-port": "event"}
    one = daemon({"supervisor": before, "jobs": jobs}, directory=str(tmp_path))
    for directory in ("sub", "jobs", "other", "other/jobs"):
        (tmp_path / directory).mkdir()
    (tmp_path / "jobs" / "a.json").write_text(json.dumps({"a": DOWN}))
    (tmp_path / "other" / "jobs" / "b.json").write_text(json.dumps({"b": DOWN}))
    one.configure({"supervisor": {**before, "working-dir": "other"}, "jobs": jobs})
    for added in (["a"], []):
        assert one.pipe().reload()["plan"] == {
            "added": added,
            "removed": [],
            "changed": [],
            "supervisor": {"hot": [], "restart": ["working-dir"]},
        }


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_all_that_it_cannot_go_by_is_told_at_once(daemon: Factory, options: tuple[str, ...]) -> None:
    """A working-dir that is none, a log that cannot be opened, nobody's name, and whatever else is wrong:
    each with its place, and by a dry run too; no file is made."""
    one = daemon({"jobs": {"web": UP}})
    before = lives(one)
    settings = [
        '"log-file": "/nonexistent/log"',
        f'"working-dir": "{one.config}"',
        '"allow-users": [0, "no such user"]',
        '"allow-groups": ["no such group"]',
    ]
    text = '{"supervisor": {\n' + ",\n".join(settings) + '},\n"jobs": {"web": {"comand": 1}}}'
    Path(one.config).write_text(text, encoding="utf-8")
    done = one.run_cli("reload", *options)

    name = "on this machine: correct the name"
    assert done.code == 1
    assert [line.removeprefix(one.config) for line in done.err.splitlines()] == [
        ":2:13: supervisor.log-file: /nonexistent/log: No such file or directory",
        f":3:16: supervisor.working-dir: {one.config}: Not a directory",
        f":4:20: supervisor.allow-users[1]: there is no user 'no such user' {name}",
        f":5:18: supervisor.allow-groups[0]: there is no group 'no such group' {name}",
        ':6:10: jobs.web: has no "command", and every job needs one',
        ':6:18: jobs.web.comand: unknown key; did you mean "command"?',
    ]
    assert lives(one) == before


def test_a_log_is_made_only_once_nothing_is_wrong(daemon: Factory) -> None:
    """Neither a dry run nor a reload that fails makes the file."""
    one = daemon({"jobs": {"web": UP}})
    supervisor = {"log-file": one.path("new")}
    one.configure({"supervisor": supervisor, "jobs": {"web": UP}})
    assert one.run_cli("reload", "--dry-run").code == 0
    one.configure({"supervisor": supervisor, "jobs": {"web": {}}})
    assert one.run_cli("reload").code == 1
    assert not os.path.exists(one.path("new"))
    one.configure({"supervisor": supervisor, "jobs": {"web": UP}})
    assert one.run_cli("reload").code == 0

    assert os.path.exists(one.path("new"))


# Reads another address than the one at the start, whose socket systemd has given; the events' it has not.
GIVEN = """
import json
from jobmon.linux.daemon.configsource import Source
from jobmon.linux.daemon.reload import Reloader
source = Source("jobmon.json")
json.dump({"supervisor": {"control-port": 1, "event-port": 2}}, open("jobmon.json", "w"))
print(*Reloader(source, None, frozenset(["control-port"]))._prepare().plan.daemon.restart)
"""


def test_an_address_that_is_not_used_needs_no_restart(tmp_path: Path) -> None:
    """Where systemd holds the socket, what the configuration says of it means nothing."""
    (tmp_path / "jobmon.json").write_text("{}")
    environ = {**os.environ, "PYTHONPATH": kit.SOURCES}
    command = [sys.executable, "-c", GIVEN]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)

    assert done.stdout == "event-port\n"


# Reads a configuration anew as a daemon does, where nobody may ask for a name.
NO_NAMES = """
import json, sys
from jobmon.linux.daemon.configsource import Source
from jobmon.linux.daemon.reload import Reloader
source = Source("jobmon.json")
sys.modules["pwd"] = sys.modules["grp"] = None  # to import one now fails
config = json.load(open("jobmon.json"))
config["jobs"] = {"web": {"command": "true"}}
json.dump(config, open("jobmon.json", "w"))
print(Reloader(source, None)._prepare().access)
"""


def test_names_are_asked_for_only_if_others_are_named(tmp_path: Path) -> None:
    """A name service may be slow, and the daemon does nothing meanwhile."""
    config = {"supervisor": {"allow-users": ["root"], "allow-groups": ["root"]}}
    (tmp_path / "jobmon.json").write_text(json.dumps(config))
    environ = {**os.environ, "PYTHONPATH": kit.SOURCES}
    command = [sys.executable, "-c", NO_NAMES]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)

    assert done.stdout == "None\n"


# Reads a configuration anew where a module of the standard library has gone.
NO_LIBRARY = """
import json, sys
from jobmon.linux.daemon.configsource import Source
from jobmon.linux.daemon.reload import Reloader
source = Source("jobmon.json")
sys.modules["re"] = None  # to import it now fails
job = {"command": "true", "stdout": "log", "ready": {"log": "up"}}
json.dump({"jobs": {"web": job}}, open("jobmon.json", "w"))
print(*Reloader(source, None)._read(), sep="\\n")
"""


def test_a_python_that_has_gone_is_told(tmp_path: Path) -> None:
    """A module of the standard library that is missing by now fails the reload, with advice."""
    (tmp_path / "jobmon.json").write_text("{}")
    environ = {**os.environ, "PYTHONPATH": kit.SOURCES}
    command = [sys.executable, "-c", NO_LIBRARY]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
    code, why = done.stdout.splitlines()

    assert code == "failed"
    assert why.startswith("the configuration cannot be read: import of re halted")
    assert why.endswith("was Python replaced? restart the daemon")


@as_root
def test_who_may_changes_at_once(daemon: Factory) -> None:
    """The modes of the sockets follow; who is here and may be no longer is sent away; an unknown name is a
    mistake."""
    one = daemon({"jobs": {"web": UP}})
    os.chmod(one.directory, 0o755)
    pipe = one.pipe()
    ask = e2e.as_nobody("listen")

    def modes() -> set[int]:
        return {stat.S_IMODE(os.stat(path).st_mode) for path in (str(one.control), str(one.event))}

    assert modes() == {0o600}
    one.configure({"supervisor": {"allow-users": ["no such user"]}})
    assert "supervisor.allow-users[0]: there is no user 'no such user'" in one.run_cli("reload").err
    one.configure({"supervisor": {"allow-users": [e2e.NOBODY]}, "jobs": {"web": UP}})
    pipe.reload()
    assert modes() == {0o666}
    with subprocess.Popen(ask, env=one.environ, stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout is not None
        lines = kit.Lines(listener.stdout.fileno())
        while "web" not in lines.drain():
            pipe.restart("web")
        one.configure({"jobs": {"web": UP}})
        pipe.reload()
        assert listener.wait(kit.DEADLINE) == 75
    assert modes() == {0o600}
    assert "is not permitted any more" in one.log
    assert pipe.is_running("web")


def files_of(one: kit.Daemon) -> list[str]:
    """The files of its sockets, and of their locks."""
    return [f"{port}{tail}" for port in (one.control, one.event) for tail in ("", ".lock")]


@pytest.mark.parametrize("how", ["SIGHUP", "reload", "a reload that fails"])
def test_sockets_whose_files_are_gone_are_made_anew(daemon: Factory, how: str) -> None:
    """With their modes and locks; connections, listeners and jobs are not disturbed."""
    one = daemon({"jobs": {"web": UP, "idle": DOWN}})
    before, pipe, watch = lives(one), one.pipe(), one.watch()
    assert pipe.is_running("web")
    for path in files_of(one):
        os.unlink(path)
    if how == "a reload that fails":
        one.configure({"jobs": {"web": {}}})
    if how == "SIGHUP":
        one.process.send_signal(signal.SIGHUP)
        pipe.info()
    else:
        try:
            pipe.reload()
        except ConfigError:
            pass

    assert [stat.S_IMODE(os.stat(path).st_mode) for path in files_of(one)] == [0o600] * 4
    assert one.run_cli("start", "idle").code == 0
    assert watch.until("idle", "running").job == "idle"
    fresh = one.watch()
    pipe.stop("idle")
    fresh.until("idle", "died")
    assert lives(one) == before
    assert one.log.count("socket file was missing: created again") == 2
    other = one.path("other.json")
    with open(other, "w", encoding="utf-8") as file:
        json.dump({"supervisor": {"control-port": one.control, "event-port": one.event}, "jobs": {}}, file)
    second = one.run_cli("daemon", "-f", other)
    assert second.code == 1
    assert "listens there already" in second.err
    assert one.stop() == 0


def test_sockets_that_are_there_are_left_alone(daemon: Factory) -> None:
    """A reload touches no file; one of the locks alone is made anew."""
    one = daemon({})
    before = [os.lstat(path).st_ino for path in files_of(one)]
    one.pipe().reload()
    assert [os.lstat(path).st_ino for path in files_of(one)] == before

    os.unlink(f"{one.control}.lock")
    one.pipe().reload()
    assert os.lstat(str(one.control)).st_ino == before[0]
    assert os.path.exists(f"{one.control}.lock")


def test_a_socket_that_another_has_by_now_is_left_to_it(daemon: Factory) -> None:
    """It is an error in the log, at each reload, and all else is done."""
    one = daemon({"jobs": {"web": UP}})
    pipe = one.pipe()
    for path in files_of(one)[2:]:
        os.unlink(path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(one.event))
        other.listen()
        one.configure({"jobs": {"web": UP, "new": DOWN}})
        assert pipe.reload()["plan"]["added"] == ["new"]
        assert f'cannot create the socket file again error="cannot listen on {one.event}: ' in one.log
    os.unlink(str(one.event))
    pipe.reload()
    one.watch()


# ---- memory -------------------------------------------------------------------------------------------

# Reads a configuration again and again as the daemon does, and says how many objects more there are.
AGAIN = """
import sys
from jobmon.linux.daemon.configsource import Source, forget
from jobmon.core.plan import plan
source = Source("jobmon.json")
def again():
    new = source.read()
    plan(source.config, new)
    source.config = new.replace(warnings=())
def count(times):
    for _ in range(times):
        again()
        forget()
    return sys.getallocatedblocks()
before = count(20)
print(count(50) - before, [name for name in sys.modules if name.startswith(("jobmon.conf", "jobmon.json"))])
"""


def test_reading_again_leaves_nothing_behind(tmp_path: Path) -> None:
    """What reads is loaded for that alone, and after any number of times no more is there than before."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "a.json").write_text(json.dumps({"a": UP, "b": UP | {"requires": ["a"]}}))
    supervisor = {"include-dirs": ["jobs/*.json", "none/*"]}
    (tmp_path / "jobmon.json").write_text(json.dumps({"supervisor": supervisor, "jobs": {"web": UP}}))
    environ = {**os.environ, "PYTHONPATH": kit.SOURCES}
    done = subprocess.run(
        [sys.executable, "-c", AGAIN],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    more, loaded = done.stdout.split(" ", 1)

    assert int(more) < 300  # one that stayed would be some three thousand each time
    assert loaded == "[]\n"


# ---- while it is read ---------------------------------------------------------------------------------

# Mounts a FUSE file system that nobody serves at the directory "hang", and executes the rest.
NO_ANSWER = """
import ctypes, os, sys
os.mkdir("hang")
fd = os.open("/dev/fuse", os.O_RDWR)
os.set_inheritable(fd, True)
options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
if ctypes.CDLL(None, use_errno=True).mount(b"none", b"hang", b"fuse", 6, options):
    sys.exit(f"cannot mount: {os.strerror(ctypes.get_errno())}")
os.execvp(sys.argv[1], sys.argv[1:])
"""
HANGS: dict[str, Any] = {"supervisor": {"include-dirs": ["hang/*.json"]}, "jobs": {"web": UP, "idle": DOWN}}


@pytest.fixture
def hanging(daemon: Factory) -> kit.Daemon:
    """A daemon whose new configuration includes a directory that does not answer."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("needs root and /dev/fuse, for a file system that does not answer")
    one = daemon(
        {"jobs": {"web": UP, "idle": DOWN}},
        wrapper=["unshare", "-m", sys.executable, "-c", NO_ANSWER],
    )
    one.configure(HANGS)
    return one


def reader_of(one: kit.Daemon) -> int:
    """The pid of the child that reads, the one that runs no other program, once it waits for the file system
    that does not answer: until then another configuration would still be read."""
    end = time.monotonic() + kit.DEADLINE
    while time.monotonic() < end:
        for pid in kit.children_of(one.pid):
            if program_of(pid) == program_of(one.pid) and "fuse" in sleeps_in(pid):
                return pid
    raise AssertionError("nothing reads\n" + one.report())


def sleeps_in(pid: int) -> str:
    """The function of the kernel in which a process waits, proc(5); nothing once it is gone."""
    try:
        with open(f"/proc/{pid}/wchan", encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""


def program_of(pid: int) -> str:
    """The program that a process runs; nothing once it is gone."""
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


@pytest.mark.slow
def test_the_daemon_works_on_while_it_is_read(hanging: kit.Daemon) -> None:
    """A file system that does not answer keeps nobody waiting but those who asked for a reload; the death of
    the child is told, nothing has changed, and the next one gets its turn."""
    one, pipe = hanging, hanging.pipe()
    with one.start_cli("reload") as first, one.start_cli("reload", "--dry-run") as second:
        reader = reader_of(one)
        for _ in range(3):
            pipe.start("idle")
            pipe.stop("idle")
        assert (first.poll(), second.poll()) == (None, None)
        one.configure({"jobs": {"web": UP, "new": DOWN}})
        os.kill(reader, signal.SIGKILL)
        said = {"".join(process.communicate(timeout=kit.DEADLINE)) for process in (first, second)}
        told = {first.returncode, second.returncode}

    why = "the configuration cannot be read: the process that does it was killed by SIGKILL"
    assert told == {0, 1}
    assert any(why in text for text in said)
    assert any(text.startswith("+ new\n- idle\n") for text in said)


@pytest.mark.slow
def test_reloads_that_wait_have_a_bound(hanging: kit.Daemon) -> None:
    """Signals that come meanwhile are one, and too many requests are refused."""
    one = hanging
    one.process.send_signal(signal.SIGHUP)
    reader = reader_of(one)
    for _ in range(3):
        one.process.send_signal(signal.SIGHUP)
        one.pipe().info()
    one.configure({"jobs": {"web": UP}})
    waiting = [one.start_cli("reload") for _ in range(2)]
    os.kill(reader, signal.SIGKILL)
    for process in waiting:
        process.communicate(timeout=kit.DEADLINE)
        assert process.returncode == 0

    results = re.findall(r'reload( failed: nothing changed|: nothing has changed|) by="SIGHUP', one.log)
    assert results == [" failed: nothing changed", ""]


@pytest.mark.slow
def test_a_reload_too_many_is_refused(hanging: kit.Daemon) -> None:
    """While one reads, a hundred wait; the next is told so at once, and those that wait are done later."""
    one, pipe = hanging, hanging.pipe()
    reading = pipe.submit("reload", dry_run=True)
    reader = reader_of(one)
    waiting = [pipe.submit("reload", dry_run=True) for _ in range(100)]
    with pytest.raises(JobError, match="100 reloads wait already"):
        pipe.reload(dry_run=True)
    one.configure({"jobs": {"web": UP, "new": DOWN}})
    os.kill(reader, signal.SIGKILL)

    with pytest.raises(JobError, match="was killed by SIGKILL"):
        pipe.collect(reading)
    assert [list(pipe.collect(number)["plan"]["added"]) for number in waiting] == [["new"]] * 100
    assert pipe.list_jobs() == {"web": True, "idle": False}


@pytest.mark.slow
def test_a_reader_ends_with_its_daemon(daemon: Factory) -> None:
    """A daemon that is killed leaves no child that waits for a file system for ever."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("needs root and /dev/fuse, for a file system that does not answer")
    directory = tempfile.mkdtemp(prefix="jobmon-", dir="/tmp")
    silent = deadfs.DeadFs(f"{directory}/hang")
    one = daemon({}, directory=directory, wrapper=silent.wrapper, pass_fds=(silent.fd,))
    one.configure(HANGS)
    one.process.send_signal(signal.SIGHUP)
    reader = reader_of(one)
    one.stop(signal.SIGKILL)
    kit.wait_gone(reader)
    silent.close()
    for path in files_of(one):
        os.unlink(path)
    os.waitpid(reader, 0)  # it came to us


@pytest.mark.slow
def test_it_ends_while_it_is_read(hanging: kit.Daemon) -> None:
    """A shutdown waits for no reading; the client that asked is told."""
    one = hanging
    with one.start_cli("reload") as client:
        reader = reader_of(one)
        assert one.stop() == 0
        kit.wait_gone(reader)
        assert client.wait(kit.DEADLINE) == 1
        assert client.stderr is not None
        assert "terminating" in client.stderr.read()


# ---- another JobMon is installed ----------------------------------------------------------------------


@pytest.mark.parametrize("what", ["replaced", "removed"])
def test_it_reads_with_the_code_that_it_was_started_with(daemon: Factory, tmp_path: Path, what: str) -> None:
    """Whatever becomes of the package below it: a reload, its mistakes and all answers stay as they were."""
    shutil.copytree(os.path.join(kit.SOURCES, "jobmon"), tmp_path / "jobmon")
    supervisor = {"include-dirs": ["jobs/*.json"], "allow-users": ["root"]}
    config = {"supervisor": supervisor, "jobs": {"web": UP, "db": DOWN}}
    one = daemon(config, environ={"PYTHONPATH": str(tmp_path)})
    one.environ["PYTHONPATH"] = kit.SOURCES  # of the clients
    shutil.rmtree(tmp_path / "jobmon")
    if what == "replaced":
        for name in ("__init__", "config", "jsontext", "spec", "plan", "linux/__init__"):
            (tmp_path / "jobmon" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "jobmon" / f"{name}.py").write_text("raise ImportError('another JobMon')")

    one.configure({"jobs": {"web": {"comand": 1}}})
    assert 'jobs.web.comand: unknown key; did you mean "command"?' in one.run_cli("reload").err
    job_files(one, "jobs", "new")
    supervisor["allow-groups"] = ["root"]
    ready = {"log": "up"}
    one.configure(
        {"supervisor": supervisor, "jobs": {"web": UP, "db": DOWN | {"ready": ready, "stdout": "out"}}}
    )
    done = one.run_cli("reload")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("+ new\n~ db: stdout, ready (at its next start)\n")
    for verb in (
        ["status", "--tree"],
        ["why", "web"],
        ["graph"],
        ["restart", "web"],
        ["wait", "web", "--for", "ready"],
    ):
        assert one.run_cli(*verb).code == 0, verb
    hang_up(one)
    assert "reload: nothing has changed by=" in one.log
    assert "internal error" not in one.log
    assert one.stop() == 0
