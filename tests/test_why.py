"""`jobmon why`: the chain of causes for every state, over the real supervisor, then by the real program."""

from __future__ import annotations

import datetime as dt
import errno
import json
import os
import re
import signal
import socket
from itertools import pairwise

import e2e
import kit
import pytest

from jobmon.core import causes, events
from jobmon.core.causes import Actor, Cause, Kind
from jobmon.core.events import Next, State
from jobmon.core.explain import MAX_JOBS, asked, why
from jobmon.core.plan import Change, Plan
from jobmon.core.spec import JobSpec, JobType, Restart, TcpReadiness
from jobmon.core.supervisor import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from jobmon.core.events import Input, Status

    Make = Callable[..., kit.Daemon]

OPERATOR = Actor(1000, 4711)
THEY = "by uid 1000, pid 4711"
WALL = 1_700_000_000.0
PROBED = TcpReadiness((("127.0.0.1", 80),))


def spec(name: str = "web", **settings: Any) -> JobSpec:
    """A job; by default one that is not restarted."""
    return JobSpec(**({"name": name, "command": "true"} | settings))


class Life:
    """A supervisor and what happens to its jobs, one thing after the other."""

    def __init__(self, *specs: JobSpec) -> None:
        self.supervisor = Supervisor(specs or (spec(),), wall=WALL)
        self.now = 0.0
        self.trouble: dict[str, str] = {}
        self.supervisor.begin(self.now)

    def job(self, name: str = "web") -> Any:
        return self.supervisor.jobs[name]

    def feed(self, name: str, what: Input) -> None:
        self.supervisor.feed(name, what, self.now)

    def order(self, verb: str, *names: str, reason: str = "", **details: Any) -> None:
        """A command of the operator's."""
        by = Cause(Kind(verb), actor=OPERATOR, reason=reason)
        getattr(self.supervisor, verb)(names or ("web",), object(), self.now, by=by, **details)

    def start(self, *names: str, **details: Any) -> None:
        self.order("start", *names, **details)

    def stop(self, *names: str, **details: Any) -> None:
        self.order("stop", *names, **details)

    def restart(self, *names: str, **details: Any) -> None:
        self.order("restart", *names, **details)

    def up(self, *names: str) -> None:
        """The processes that are to come do, and are ready."""
        for name in names or ("web",):
            self.born(name)
            self.feed(name, events.Spawned(self.job(name).run))
            self.feed(name, events.Ready(self.job(name).run))

    def born(self, name: str = "web") -> None:
        self.feed(name, events.Launched(self.job(name).run, 100 + self.job(name).run))

    def unborn(
        self, name: str = "web", number: int = errno.ENOENT, reason: str = "exec ./web: ENOENT"
    ) -> None:
        self.feed(name, events.SpawnFailed(self.job(name).run, "exec", number, reason))

    def die(self, status: Status, name: str = "web") -> None:
        self.feed(name, events.Exited(self.job(name).run, status))

    def lose_leader(self, status: Status, name: str = "web") -> None:
        self.feed(name, events.LeaderDied(self.job(name).run, status))

    def go(self, seconds: float) -> None:
        """Let time pass, and nothing happen."""
        self.now += seconds

    def fire(self, name: str = "web") -> None:
        """The timer of a job."""
        self.now = max(self.now, self.job(name).armed)
        self.feed(name, events.Timer(self.job(name).token))

    def live(self, name: str, status: Status) -> None:
        """The whole life of a run that is about to be launched."""
        self.up(name)
        self.die(status, name)

    def why(self, name: str = "web") -> list[str]:
        """The chain; what is said of others begins with their names."""
        told = why(self.supervisor, name, self.now, lambda job: self.trouble.get(job, ""))
        assert self.supervisor.take() is not None
        return [each.text if each.job == name else f"{each.job}: {each.text}" for each in told]

    def state(self, name: str = "web") -> State:
        return State(self.job(name).state)


DB = spec("db", ready=PROBED, start_timeout=60.0)
QUICKLY = "in quick succession (restart-window 5 s)"
STOPS = "gets SIGKILL in 10 s (kill-timeout)"


# ---- down -----------------------------------------------------------------------------------------


def test_never_started() -> None:
    """A job that nobody has started yet has no other cause."""
    assert Life().why() == ["was never started"]


@pytest.mark.parametrize("reason", ["", "too old", "see: 3, by uid 7 pid 8", "new\nline"])
def test_stopped_by_somebody(reason: str) -> None:
    """Who, with what, for what reason; and how it went."""
    life = Life()
    life.start()
    life.up()
    life.stop(reason=reason)
    life.die("SIGTERM")
    why_so = f": {reason}" if reason else ""

    assert life.why() == [f"stopped {THEY}, `jobmon stop`{why_so}", "ended with SIGTERM"]


def test_stopped_by_a_client_of_whom_nobody_knows_the_pid() -> None:
    """Over TCP the kernel tells the user only."""
    life = Life()
    life.start()
    life.up()
    life.supervisor.stop(("web",), object(), life.now, by=Cause(Kind.STOP, actor=Actor(0), reason="why"))
    life.die(0)

    assert life.why() == ["stopped by uid 0, `jobmon stop`: why", "ended with exit 0"]


def test_stopped_without_patience() -> None:
    """What was killed at once, and what did not end in time, and what somebody did not wait for."""
    life = Life()
    for at_once, late, told in (
        (True, False, []),
        (False, True, ["did not end within 10 s (kill-timeout)"]),
        (False, False, [f"killed {THEY}, `jobmon stop`"]),
    ):
        life.start()
        life.up()
        life.stop(at_once=at_once)
        if late:
            life.fire()
        elif not at_once:
            life.stop(at_once=True)
        life.die("SIGKILL")
        assert life.why() == [f"stopped {THEY}, `jobmon stop`", *told, "ended with SIGKILL"]


def test_stopped_while_it_waited_for_a_restart() -> None:
    """Nothing had to be stopped; how it had ended before is not forgotten."""
    life = Life(spec(restart=Restart.ALWAYS))
    life.start()
    life.live("web", 4)
    life.stop()

    assert life.why() == [f"stopped {THEY}, `jobmon stop`", "its last run had ended with exit 4"]


def test_stopped_while_it_waited_for_another() -> None:
    """The stop that counts is the last one, not that of the run before."""
    life = Life(DB, spec(requires=("db",)))
    life.start()
    life.up("db", "web")
    life.stop(reason="first")
    life.die("SIGTERM")
    life.restart("db")
    life.start()
    assert life.state() is State.WAITING

    life.stop(reason="second")
    assert life.why() == [f"stopped {THEY}, `jobmon stop`: second", "its last run had ended with SIGTERM"]


def test_stopped_before_it_was_born() -> None:
    """A launch that was called off is no run."""
    life = Life()
    life.start()
    life.stop()
    life.unborn(number=0, reason="called off")

    assert life.why() == [f"stopped {THEY}, `jobmon stop`", "was not launched: called off"]


def test_stopped_while_something_else_was_under_way() -> None:
    """A stop that comes while a job goes already: the log has what it went by, not who had the last word."""
    life = Life()
    life.start()
    life.up()
    life.restart()
    life.stop()
    life.die("SIGTERM")
    assert life.why() == [
        f"was stopped while it was being restarted {THEY}, `jobmon restart`",
        "ended with SIGTERM",
    ]

    life.start()
    life.up()
    life.lose_leader(3)
    life.stop()
    life.die(3)
    assert life.why() == ["exit 3, and was stopped"]


def test_stopped_and_signalled_ever_after() -> None:
    """Ten signals to a job that is being stopped push the stop out of what is remembered of it."""
    life = Life()
    life.start()
    life.up()
    life.stop()
    for _ in range(10):
        life.supervisor.signal(("web",), "SIGHUP", object(), life.now, by=Cause(Kind.SIGNAL, actor=OPERATOR))
    life.die("SIGTERM")

    assert life.why() == ["was stopped"]


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (7, "exit 7"),
        (255, "exit 255"),
        ("SIGKILL", "killed by SIGKILL from outside, possibly out of memory"),
        ("SIGTERM", "killed by SIGTERM from outside"),
        ("SIGHUP", "killed by SIGHUP from outside"),
        ("SIGRTMIN+3", "killed by SIGRTMIN+3 from outside"),
        ("SIGSEGV", "died of SIGSEGV"),
        ("SIGABRT", "died of SIGABRT"),
        ("SIGPIPE", "died of SIGPIPE"),
        ("SIGALRM", "died of SIGALRM"),
        (None, "ended, and nobody knows how"),
    ],
)
def test_ended_by_itself(status: Status, told: str) -> None:
    """A code reads `exit 7`, a signal by its name, with what is to be thought of it."""
    life = Life()
    life.start()
    life.live("web", status)

    assert life.why() == [told, "is not restarted: restart is off"]


@pytest.mark.parametrize("restart", Restart)
def test_succeeded(restart: Restart) -> None:
    """Success is all there is to say, unless it comes again."""
    life = Life(spec(restart=restart))
    life.start()
    life.live("web", 0)

    assert life.why()[0] == "exit 0"
    assert len(life.why()) == 1 + (restart is Restart.ALWAYS)


def test_killed_by_our_own_signal() -> None:
    """`jobmon signal` is not "from outside"; that to an earlier run, or another signal, does not count."""
    life = Life()

    def send(name: str) -> None:
        life.supervisor.signal(("web",), name, object(), life.now, by=Cause(Kind.SIGNAL, actor=OPERATOR))

    life.start()
    life.up()
    send("SIGKILL")
    life.die("SIGKILL")
    assert life.why()[0] == f"died of SIGKILL, sent {THEY}, `jobmon signal`"

    life.start()
    life.born()
    life.die("SIGKILL")
    assert life.why()[0] == "killed by SIGKILL from outside, possibly out of memory"

    life.start()
    life.up()
    send("SIGHUP")
    send("SIGKIL")
    life.die("SIGKILL")
    assert life.why()[0] == "killed by SIGKILL from outside, possibly out of memory"


def test_not_started_at_all() -> None:
    """What cannot be executed says so, with the reason."""
    life = Life()
    life.start()
    life.unborn()

    assert life.why() == ["could not be started: exec ./web: ENOENT", "is not restarted: restart is off"]


def test_gave_up() -> None:
    """max-restarts is named with its number; the deaths are counted, the last one too."""
    life = Life(spec(restart=Restart.ALWAYS, max_restarts=1))
    life.start()
    for _ in range(2):
        life.live("web", 1)
        life.fire()
    life.live("web", 1)

    assert life.state() is State.FAILED
    assert life.why() == [
        "exit 1, 3 times in quick succession (restart-window 5 s)",
        "gave up after 1 penalised restart (max-restarts)",
    ]


def test_a_launch_that_was_given_up() -> None:
    """The tries are counted as well."""
    life = Life(spec(restart=Restart.ALWAYS, max_restarts=2))
    life.start()
    life.unborn()
    life.fire()
    life.unborn()
    assert life.why()[0] == "could not be started: exec ./web: ENOENT, twice in a row"

    life.fire()
    life.unborn()
    assert life.why() == [
        "could not be started: exec ./web: ENOENT, 3 times in a row",
        "gave up after 2 penalised restarts (max-restarts)",
    ]


# ---- the penalty ----------------------------------------------------------------------------------


def test_the_first_death_is_not_penalised() -> None:
    """It comes again at once, in the next turn of the loop."""
    life = Life(spec(restart=Restart.ALWAYS))
    life.start()
    life.live("web", 1)

    assert life.why() == ["exit 1", "is about to be restarted"]


def test_the_penalty_counts_down() -> None:
    """Twice in quick succession, and what is left of the penalty."""
    life = Life(spec(restart=Restart.ALWAYS))
    life.start()
    life.live("web", 1)
    life.fire()
    life.go(2)
    life.live("web", 1)
    life.go(6)

    assert life.why() == ["exit 1, twice in quick succession (restart-window 5 s)", "9 s of the penalty left"]


def test_other_causes_are_not_counted_together() -> None:
    """Two ends of two kinds are not the same thing twice."""
    life = Life(spec(restart=Restart.ALWAYS))
    life.start()
    life.live("web", 1)
    life.fire()
    life.live("web", "SIGSEGV")

    assert life.why()[0] == "died of SIGSEGV; 2 ends in quick succession (restart-window 5 s)"


def test_a_limit_of_no_restarts() -> None:
    """With max-restarts 0 it is not said to have been tried again after a penalty."""
    life = Life(spec(restart=Restart.ALWAYS, max_restarts=0))
    life.start()
    life.live("web", 1)
    life.fire()
    life.live("web", 1)

    assert life.why() == [
        "exit 1, twice in quick succession (restart-window 5 s)",
        "gave up without a penalised restart (max-restarts)",
    ]
    assert life.job().restarts == 1


def test_the_numbers_add_up() -> None:
    """Of a crash loop that is given up the ends are one more than the restarts that status counts, and those
    one more than the penalised ones: the first restart comes at once."""
    life = Life(spec(restart=Restart.ALWAYS, max_restarts=3))
    life.start()
    for _ in range(4):
        life.live("web", "SIGKILL")
        life.fire()
    life.live("web", "SIGKILL")

    assert (life.job().restarts, life.job().deaths) == (4, 5)
    assert life.why() == [
        f"killed by SIGKILL from outside, possibly out of memory, 5 times {QUICKLY}",
        "gave up after 3 penalised restarts (max-restarts)",
    ]


def test_a_start_by_hand_counts_anew() -> None:
    """An end within restart-window of a penalty's end, but the first since somebody started it, is one."""
    life = Life(spec(restart=Restart.ALWAYS))
    life.start()
    for _ in range(2):
        life.live("web", 1)
        life.fire()
    life.up()
    life.restart()
    life.die("SIGTERM")
    life.live("web", 1)

    assert life.why() == [
        "exit 1",
        "15 s of the penalty left: it had ended, or been penalised, within 5 s before (restart-window)",
    ]
    life.fire()
    life.live("web", 1)
    assert life.why()[0] == "exit 1, twice in quick succession (restart-window 5 s)"


def test_a_launch_that_failed_among_deaths() -> None:
    """A launch that fails after deaths is not said to have failed as often as the job ended."""
    life = Life(spec(restart=Restart.ALWAYS))
    life.start()
    life.unborn()
    assert life.why()[0] == "could not be started: exec ./web: ENOENT"
    life.fire()
    life.live("web", 1)
    assert life.why()[0] == "exit 1; 2 ends in quick succession (restart-window 5 s)"
    life.fire()
    life.unborn()
    assert life.why()[0] == f"could not be started: exec ./web: ENOENT; 3 ends {QUICKLY}"


def test_an_end_that_is_not_restarted_counts_too() -> None:
    """A good end among bad ones is the last of them."""
    life = Life(spec(restart=Restart.ON_FAILURE))
    life.start()
    for _ in range(2):
        life.live("web", 1)
        life.fire()
    life.live("web", 0)

    assert life.why() == ["exit 0; 3 ends in quick succession (restart-window 5 s)"]


def test_ends_beyond_the_log_are_counted() -> None:
    """The ten events that are kept hold three deaths; the count is right all the same."""
    life = Life(spec(restart=Restart.ALWAYS))
    life.start()
    for _ in range(50):
        life.live("web", 1)
        life.fire()
    life.live("web", 1)

    assert life.why()[0] == "exit 1, 51 times in quick succession (restart-window 5 s)"


def test_a_death_after_a_good_while_counts_anew() -> None:
    """Long after the last one it is a first one again."""
    life = Life(spec(restart=Restart.ALWAYS))
    life.start()
    for _ in range(3):
        life.live("web", 1)
        life.fire()
    life.up()
    life.go(1000)
    life.die(1)

    assert life.why()[0] == "exit 1"


# ---- up, or on the way ------------------------------------------------------------------------------


def test_on_its_way_up() -> None:
    """From the order to the program: who wants it, and what is not so yet."""
    life = Life(spec(ready=PROBED, start_timeout=60.0))
    life.start(reason="release 7")
    by = f"started {THEY}, `jobmon start`: release 7"
    assert life.why() == ["is being launched", "is given up in 60 s (start-timeout)", by]

    life.born()
    life.go(3)
    assert life.why() == ["is not ready", "is given up in 57 s (start-timeout)", by]

    life.trouble["web"] = "Connection refused (3 tries)"
    assert life.why()[0] == "is not ready: Connection refused (3 tries)"

    life.up()
    assert life.why() == ["is ready", by]


def test_a_program_that_is_not_executed_yet() -> None:
    """Between the process and its program there may be a FIFO that nobody opens."""
    life = Life()
    life.start()
    life.born()

    assert life.why() == ["its program is not being executed yet", f"started {THEY}, `jobmon start`"]


def test_a_oneshot_on_its_way() -> None:
    """It is ready when it has ended well."""
    life = Life(spec(type=JobType.ONESHOT))
    life.start()
    life.born()
    assert life.why()[0] == "has not ended yet, and is ready when it has succeeded"

    life.die(0)
    assert life.why() == ["exit 0"]


def test_who_has_started_it() -> None:
    """Somebody, the daemon itself at its beginning or after a death, another job, a restart of it."""
    life = Life(spec(autostart=True, restart=Restart.ALWAYS))
    life.up()
    assert life.why() == ["its program runs", "started by autostart"]

    life.die(3)
    life.fire()
    assert life.why() == ["is being launched", "restarted by itself after exit 3"]
    life.up()
    assert life.why() == ["its program runs", "restarted by itself after exit 3"]

    life.restart(reason="one")
    life.die("SIGTERM")
    assert life.why() == ["is being launched", f"restarted {THEY}, `jobmon restart`: one"]
    life.up()
    life.restart(reason="two")
    life.die("SIGTERM")
    life.up()
    assert life.why() == ["its program runs", f"restarted {THEY}, `jobmon restart`: two"]

    life.stop()
    life.die("SIGTERM")
    life.restart(reason="three")
    life.up()
    assert life.why() == ["its program runs", f"restarted {THEY}, `jobmon restart`: three"]


def test_started_again_while_it_was_being_stopped() -> None:
    """Who has stopped it, and who wants it again: each is told of his own."""
    life = Life()
    life.start()
    life.up()
    life.stop(reason="one")
    life.start(reason="two")
    again = f"started {THEY}, `jobmon start`: two"
    assert life.why() == [f"is being stopped {THEY}, `jobmon stop`: one", f"then is to be {again}", STOPS]

    life.die("SIGTERM")
    life.up()
    assert life.why() == ["its program runs", again]


# ---- on its way down --------------------------------------------------------------------------------


def test_being_stopped() -> None:
    """By whom, and when patience ends; then that it has ended."""
    life = Life(spec(kill_timeout=90.0))
    life.start()
    life.up()
    life.stop(reason="bye")
    life.go(30)
    assert life.why() == [
        f"is being stopped {THEY}, `jobmon stop`: bye",
        "gets SIGKILL in 60 s (kill-timeout)",
    ]

    life.fire()
    assert life.why() == [
        f"is being stopped {THEY}, `jobmon stop`: bye",
        "did not end within 90 s (kill-timeout)",
        "has got SIGKILL, and is not gone yet",
    ]


def test_being_restarted() -> None:
    """And what becomes of it when a stop comes meanwhile."""
    life = Life()
    life.start()
    life.up()
    life.restart(reason="new")
    assert life.why() == [f"is being restarted {THEY}, `jobmon restart`: new", STOPS]

    life.stop()
    assert life.why()[:2] == [f"is being restarted {THEY}, `jobmon restart`: new", "is to stay down"]


def test_the_first_process_is_dead() -> None:
    """Its end is the cause; what is left of the job goes after it."""
    life = Life()
    life.start()
    life.up()
    life.lose_leader("SIGKILL")
    killed = "killed by SIGKILL from outside, possibly out of memory"
    assert life.why() == [f"{killed}; the rest of it is being stopped", STOPS]

    life.stop()
    assert life.why()[1] == "is to stay down"
    life.restart()
    assert life.why()[1] == f"then is to be restarted {THEY}, `jobmon restart`"

    life.die("SIGKILL")
    assert life.why()[1] == f"restarted {THEY}, `jobmon restart`"


def test_not_ready_in_time() -> None:
    """start-timeout, and what the last probe came to: while it goes, when it is gone, and in its penalty."""
    life = Life(spec(ready=PROBED, start_timeout=60.0, restart=Restart.ON_FAILURE))
    life.trouble["web"] = "HTTP status 503 (61 tries)"
    life.start()
    life.born()
    life.fire()
    late = "was not ready within 60 s (start-timeout): HTTP status 503 (61 tries)"
    assert life.why() == [f"{late}; it is being stopped", STOPS]

    life.die("SIGTERM")
    assert life.why() == [late, "is about to be restarted"]


def test_the_watchdog() -> None:
    """What said nothing for so long was stopped for it."""
    life = Life(spec(watchdog=2.5))
    life.start()
    life.up()
    life.feed("web", events.WatchdogExpired(1))
    assert life.why() == ["said nothing for 2.5 s (watchdog); it is being stopped", STOPS]

    life.die("SIGTERM")
    assert life.why() == ["said nothing for 2.5 s (watchdog)", "is not restarted: restart is off"]


def test_the_end_of_the_daemon() -> None:
    """Nobody's stop but the shutdown's; in order, so who waits for whom is told."""
    life = Life(spec("db"), spec(after=("db",)))
    life.start("web", "db")
    life.up("db", "web")
    life.supervisor.terminate(life.now)
    shutdown = "by the shutdown of the daemon"
    assert life.why() == [f"is being stopped {shutdown}", STOPS]
    assert life.why("db")[2:] == [
        f"is to be stopped {shutdown}, once these are gone: web",
        f"web: is being stopped {shutdown}",
        f"web: {STOPS}",
    ]

    life.die(0)
    assert life.why() == [f"stopped {shutdown}", "ended with exit 0"]


# ---- due to others ----------------------------------------------------------------------------------

CACHE = spec("cache")


def test_waiting() -> None:
    """For what, for whom, and why that is not ready."""
    life = Life(DB, spec(requires=("db",), after=("cache",)), CACHE)
    life.start(reason="release 7")
    life.trouble["db"] = "Connection refused (3 tries)"
    life.born("db")

    assert life.why() == [
        "waiting for db",
        f"is to be started {THEY}, `jobmon start`: release 7",
        "db: is not ready: Connection refused (3 tries)",
        "db: is given up in 60 s (start-timeout)",
        "db: started because web requires it",
    ]


def test_what_is_down_is_not_waited_for() -> None:
    """What comes only after a job that nobody starts is not held up by it, and does not blame it."""
    life = Life(DB, CACHE, spec(after=("cache", "db")))
    life.start("web", "db")

    assert [line.partition(":")[0] for line in life.why() if ": " in line][-1] == "db"
    assert not any(line.startswith("cache: ") for line in life.why())


def test_waiting_after_a_death() -> None:
    """A job whose penalty is over comes by itself, once what it comes after is ready."""
    task = spec("task", type=JobType.ONESHOT)
    life = Life(task, spec(after=("task",), restart=Restart.ALWAYS))
    life.start()
    life.live("web", 1)
    life.start("task")
    life.fire()
    assert life.why()[:2] == ["waiting for task", "is to be restarted by itself after exit 1"]

    life.live("task", 0)
    life.up()
    assert life.why() == ["its program runs", "restarted by itself after exit 1"]


def test_a_requirement_is_given_up() -> None:
    """failed, because of what failed; and why that did."""
    life = Life(DB, spec(requires=("db",)))
    life.trouble["db"] = "Connection refused (60 tries)"
    life.start()
    life.born("db")
    life.fire("db")
    life.die("SIGTERM", "db")

    assert life.state() is State.FAILED
    assert life.why() == [
        "requires db, which is failed: start-timeout",
        "db: was not ready within 60 s (start-timeout): Connection refused (60 tries)",
        "db: is not restarted: restart is off",
    ]


def test_a_requirement_is_given_up_after_a_first_run() -> None:
    """How the run before was stopped has nothing to do with it."""
    life = Life(DB, spec(requires=("db",)))
    life.start()
    life.up("db", "web")
    life.stop("db")
    life.die("SIGTERM")
    life.die("SIGTERM", "db")
    life.start()
    life.born("db")
    life.fire("db")
    life.die("SIGTERM", "db")

    assert life.why() == [
        "requires db, which is failed: start-timeout",
        "db: was not ready within 60 s (start-timeout)",
        "db: is not restarted: restart is off",
    ]


def test_a_requirement_is_stopped() -> None:
    """Stopped with what it requires: while it goes, and when it is gone."""
    life = Life(DB, spec(requires=("db",)))
    life.start()
    life.up("db", "web")
    life.stop("db", reason="backup")
    theirs = f"{THEY}, `jobmon stop`: backup"
    assert life.why()[:2] == ["is being stopped because it requires db, which is to be stopped", STOPS]
    assert life.why()[-1] == f"db: is to be stopped {theirs}, once these are gone: web"
    assert life.why("db")[2] == f"is to be stopped {theirs}, once these are gone: web"

    life.die("SIGTERM")
    life.die("SIGTERM", "db")
    assert life.why() == [
        "stopped because it requires db, which was to be stopped",
        "ended with SIGTERM",
        f"db: stopped {theirs}",
        "db: ended with SIGTERM",
    ]
    assert life.why("db") == [f"stopped {theirs}", "ended with SIGTERM"]


def test_a_requirement_ends_meanwhile() -> None:
    """Stopped because what it requires was given up."""
    life = Life(DB, spec(requires=("db",)))
    life.start()
    life.up("db", "web")
    life.die(5, "db")
    life.die("SIGTERM")

    assert life.why() == [
        "stopped because it requires db, which is failed: exit 5",
        "ended with SIGTERM",
        "db: exit 5",
        "db: is not restarted: restart is off",
    ]


def test_the_restart_of_a_requirement() -> None:
    """What it takes down waits for it, and comes back."""
    life = Life(DB, spec(requires=("db",)))
    life.start()
    life.up("db", "web")
    life.restart("db", reason="new")
    theirs = f"{THEY}, `jobmon restart`: new"
    assert life.why()[:2] == ["is being restarted with db", STOPS]
    assert life.why()[-1] == f"db: is to be restarted {theirs}, once these are gone: web"
    assert life.why("db")[2] == f"is to be restarted {theirs}, once these are gone: web"

    life.die("SIGTERM")
    assert life.why() == [
        "waiting for db",
        "is to be restarted with db",
        f"db: is being restarted {theirs}",
        f"db: {STOPS}",
    ]

    life.die("SIGTERM", "db")
    life.up("db", "web")
    assert life.why() == ["its program runs", "restarted with db"]
    assert life.why("db") == ["is ready", f"restarted {theirs}"]


def test_a_requirement_that_is_not_the_next() -> None:
    """A stop that is passed on through others: each names the next, and the chain where it comes from."""
    life = Life(spec("a"), spec("b", requires=("a",)), spec("c", requires=("b",)))
    life.start("c")
    life.up("a", "b", "c")
    life.stop("a", reason="bye")

    stop = f"is to be stopped {THEY}, `jobmon stop`: bye"
    assert life.why("c")[0] == "is being stopped because it requires b, which is to be stopped"
    assert [line for line in life.why("c") if line.startswith("a: ")][
        -1
    ] == f"a: {stop}, once these are gone: b"
    assert [line for line in life.why("c") if line.startswith("b: ")][-1].endswith("once these are gone: c")


def test_a_oneshot_that_is_to_be_undone() -> None:
    """What has succeeded may have to wait too until what requires it is gone."""
    life = Life(spec("task", type=JobType.ONESHOT), spec(requires=("task",)))
    life.start()
    life.live("task", 0)
    life.up()
    life.stop("task")

    assert life.why("task")[:2] == [
        "exit 0",
        f"is to be stopped {THEY}, `jobmon stop`, once these are gone: web",
    ]


def test_removed_by_a_reload() -> None:
    """A job that is configured no more goes, and what requires it before it."""
    life = Life(spec("db"), spec(requires=("db",)))
    life.start()
    life.up("db", "web")
    life.supervisor.reload(Plan(removed=("db", "web")), object(), life.now)
    removal = "by its removal from the configuration"
    assert life.why() == [f"is being stopped {removal}", STOPS]
    assert life.why("db")[2] == f"is to be stopped {removal}, once these are gone: web"


def test_restarted_by_a_reload() -> None:
    """A new configuration gives new runs where that is asked for."""
    life = Life()
    life.start()
    life.up()
    change = Change(spec(command="other"), restart=("command",))
    by = Cause(Kind.RELOAD, actor=OPERATOR)
    life.supervisor.reload(Plan(changed=(change,)), object(), life.now, restart=True, by=by)
    assert life.why()[0] == f"is being restarted {THEY}, `jobmon reload --restart`"

    life.die("SIGTERM")
    life.up()
    assert life.why() == ["its program runs", f"restarted {THEY}, `jobmon reload --restart`"]


def test_the_chain_goes_on() -> None:
    """Through all that a job is due to, each once, the nearest first."""
    life = Life(
        spec("a", ready=PROBED),
        spec("b", requires=("a",)),
        spec("c", requires=("a", "b")),
        spec("d", requires=("c", "b")),
    )
    life.start("d")

    whose = [line.partition(":")[0] for line in life.why("d")]
    assert whose[0] == "waiting for c, b"
    assert list(dict.fromkeys(whose[2:])) == ["c", "b", "a"]


def test_a_chain_has_an_end() -> None:
    """A thousand jobs one after the other explain nothing; the nearest do."""
    names = [f"job {number}" for number in range(1000)]
    chain = (spec(b, requires=(a,)) for a, b in pairwise(names))
    life = Life(spec(names[0], ready=PROBED), *chain)
    life.start(names[-1])
    told = why(life.supervisor, names[-1], life.now, lambda _: "")

    assert [each.job for each in told if each.since is not None] == names[: -MAX_JOBS - 1 : -1]


# ---- times, names -----------------------------------------------------------------------------------


def test_times() -> None:
    """The first link of each job has the unix time of its state; the others have none."""
    life = Life(DB, spec(requires=("db",)))
    life.go(10)
    life.start()
    life.go(5)
    life.born("db")
    told = why(life.supervisor, "web", life.now + 1, lambda _: "")

    assert [(each.job, each.since) for each in told] == [
        ("web", WALL + 10),
        ("web", None),
        ("db", WALL + 10),
        ("db", None),
        ("db", None),
    ]


ODD = ["", "a, b", "a", "b", " by uid 5", "db, which is failed", "requires a, which is stopped", "x\ny: z"]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_are_not_misread(name: str) -> None:
    """Names are free: what looks like a list, a sentence or an order in one is none."""
    life = Life(*(spec(one, ready=PROBED) for one in ODD), spec(requires=tuple(ODD)))
    life.start(*ODD)
    life.up(*(one for one in ODD if one != name))
    life.start()
    assert life.why()[:2] == [f"waiting for {name}", f"is to be started {THEY}, `jobmon start`"]
    assert {line for line in life.why() if line.startswith(f"{name}: ")} == set(life.why()[2:])

    life.up(name, "web")
    life.stop(name)
    assert life.why()[0] == f"is being stopped because it requires {name}, which is to be stopped"
    life.die("SIGTERM")
    assert [each.job for each in why(life.supervisor, "web", 0.0, lambda _: "")][2:] == [name, name]


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        (Cause(Kind.STOP, actor=OPERATOR), "by uid 1000, pid 4711, `jobmon stop`"),
        (Cause(Kind.STOP, actor=OPERATOR, reason="a pid 7: b"), f"{THEY}, `jobmon stop`: a pid 7: b"),
        (Cause(Kind.STOP, actor=Actor()), "by uid unknown, `jobmon stop`"),
        (Cause(Kind.RELOAD, actor=OPERATOR), f"{THEY}, `jobmon reload`"),
        (Cause(Kind.RELOAD, "SIGHUP", actor=Actor(pid=7)), "by SIGHUP from pid 7"),
        (causes.AUTOSTART, "by autostart"),
        (causes.SHUTDOWN, "by the shutdown of the daemon"),
        (causes.REMOVED, "by its removal from the configuration"),
        (Cause(Kind.RESTART_OF, jobs=("a by uid 3",)), "with a by uid 3"),
        (Cause(Kind.REQUIRED, jobs=("a by uid 3",)), "because a by uid 3 requires it"),
        (
            Cause(Kind.REQUIREMENT, "failed", ("a by uid 3",), because=causes.exited(1)),
            "because it requires a by uid 3, which is failed: exit 1",
        ),
        (
            Cause(Kind.REQUIREMENT, "stopped", ("a",), because=Cause(Kind.STOP, actor=Actor(0))),
            "because it requires a, which is stopped: stop by uid 0",
        ),
    ],
)
def test_who_is_behind_it(cause: Cause, told: str) -> None:
    """Every cause that the log can have reads as an answer to the question who."""
    assert asked(cause) == told


@pytest.mark.parametrize("state", State)
def test_every_state_can_be_explained(state: State) -> None:
    """Nothing is known of any job that could not be told, whatever its log has: not even nothing."""
    logged: list[list[tuple[str, State, Cause]]] = [
        [],
        [("state", State.STOPPING, causes.exited(1))],
        [("launched", State.STARTING, causes.exited("SIGTERM"))],
        [("state", State.WAITING, Cause(Kind.WAITING, jobs=("db",)))],
    ]
    for following in (None, *Next):
        for happenings in logged:
            life = Life(spec(ready=PROBED))
            job = life.job()
            job.state, job.next, job.cause, job.result = state, following, causes.exited(1), causes.exited(1)
            job.wanted = causes.START
            for kind, to, cause in happenings:
                life.supervisor.log.add(0.0, "web", kind, to, 1, None, cause)
            assert all(life.why())


# ---- by the real program ------------------------------------------------------------------------------

WEB = {"command": kit.FOR_EVER}
WHEN = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def told_by(one: kit.Daemon, name: str) -> tuple[list[str], list[list[str]]]:
    """What `jobmon why` prints: the heading and the causes, without times; the table of events."""
    code, out, err = one.run_cli("why", "--", name)
    assert (code, err) == (0, "")
    chain, _, table = out.partition("\n\n")
    lines = [re.sub(rf" \({WHEN}\)$", "", line) for line in chain.splitlines()]
    assert all(line.startswith("  ") for line in lines[1:])
    return [line.strip() for line in lines], [re.split("  +", line) for line in table.splitlines()]


def by(verb: str, pid: int) -> str:
    return f"by uid {os.getuid()}, pid {pid}, `jobmon {verb}`"


def command(one: kit.Daemon, *words: str) -> int:
    """Run a command to its end; returns its pid."""
    process = one.start_cli(*words)
    process.communicate(timeout=kit.DEADLINE)
    return process.pid


def test_the_text(daemon: Make) -> None:
    """A heading, the causes with the time of the state, and the last ten things with theirs."""
    one = daemon({"jobs": {"web": {**WEB, "restart": True}}})
    started = command(one, "start", "web", "--reason", "release 7")
    killed = one.pipe().get_pid("web")
    watch = one.watch()
    one.pipe().signal("HUP", "web")
    watch.find(lambda event: event.run == 2 and event.state == "running")
    stopped = command(one, "stop", "web", "--reason", "a\nmistake")
    lines, events = told_by(one, "web")

    assert lines == ["web is stopped", f"stopped {by('stop', stopped)}: a\\nmistake", "ended with SIGTERM"]
    times = [row[0] for row in events]
    assert all(re.fullmatch(WHEN, when) for when in times)
    assert sorted(times) == times
    uid, ours = os.getuid(), os.getpid()
    assert [row[1:3] + row[4:] for row in events] == [
        ["launched", "run 1", f"start by uid {uid} pid {started}: release 7"],
        ["running", "run 1", "launched"],
        ["signalled", "run 1", f"SIGHUP, signal by uid {uid} pid {ours}"],
        ["died, backoff", "run 1", "SIGHUP"],
        ["restarting", "run 2", "restart"],
        ["launched", "run 2", "restart"],
        ["running", "run 2", "launched"],
        ["stopping", "run 2", f"stop by uid {uid} pid {stopped}: a\\nmistake"],
        ["died, stopped", "run 2", "SIGTERM"],
    ]
    assert [row[3] for row in events[:4]] == [f"pid {killed}"] * 4


def test_times_are_those_of_the_log(daemon: Make) -> None:
    """Wherever the reader is, the times are UTC and say so: a line of the log is found by them."""
    one = daemon({"jobs": {"web": WEB}})
    one.pipe().start("web")
    far = one.run_cli("why", "web", env={**one.environ, "TZ": "Pacific/Kiritimati"})
    here = one.run_cli("why", "web", env={**one.environ, "TZ": "UTC"})
    since = one.pipe().status("web")[0].since
    told = dt.datetime.fromtimestamp(int(since), dt.UTC)

    assert far.out == here.out
    assert f"({told:%Y-%m-%dT%H:%M:%S}." in here.out.splitlines()[1]
    assert here.out.splitlines()[1].endswith("Z)")


def test_the_description_is_shown(daemon: Make) -> None:
    """The description of a job is shown by `why`, `status JOB` and `status`."""
    one = daemon({"jobs": {"web": {**WEB, "description": "the shop"}}})

    assert one.run_cli("why", "web").out.splitlines()[0] == "web is stopped (the shop)"
    assert one.run_cli("status", "web").out == "web: stopped, never started (the shop)\n"
    assert [line.split()[-1] for line in one.run_cli("status").out.splitlines()] == ["DESCRIPTION", "shop"]


def test_only_the_last_ten(daemon: Make) -> None:
    """However much happens to a job, the last ten things are shown."""
    one = daemon({"jobs": {"web": WEB}})
    for _ in range(5):
        one.pipe().start("web")
        one.pipe().stop("web")
    _, events = told_by(one, "web")

    assert [row[1] for row in events[-4:]] == ["launched", "running", "stopping", "died, stopped"]
    assert len(events) == 10


def test_a_crash_loop(daemon: Make) -> None:
    """The same exit twice, and what is left of the penalty."""
    one = daemon({"jobs": {"web": {"command": "exit 1", "restart": True, "autostart": True}}})
    one.watch(since=0).find(lambda event: event.run == 2 and event.event == "died")
    lines, _ = told_by(one, "web")

    assert lines[:2] == ["web is backoff", "exit 1, twice in quick succession (restart-window 5 s)"]
    assert re.fullmatch(r"1[0-5](\.\d)? s of the penalty left", lines[2])


def test_killed_from_outside(daemon: Make) -> None:
    """What no client has sent came from elsewhere; the kernel does not say from where."""
    one = daemon({"jobs": {"web": {**WEB, "autostart": True}}})
    watch = one.watch(since=0)
    watch.until("web", "running")
    os.kill(one.pipe().get_pid("web") or 0, signal.SIGKILL)
    watch.until("web", "failed")

    assert told_by(one, "web")[0][1] == "killed by SIGKILL from outside, possibly out of memory"


def test_a_probe_that_fails(daemon: Make) -> None:
    """One job waits for another, whose probe fails; where that is given up, both say so."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    db = {**WEB, "ready": {"tcp": f"127.0.0.1:{port}", "interval": 0.01}, "start-timeout": 1000}
    jobs = {
        "db": db,
        "web": {**WEB, "requires": ["db"]},
        "hasty db": {**db, "start-timeout": 0.1},
        "hasty": {**WEB, "requires": ["hasty db"]},
    }
    one = daemon({"jobs": jobs})
    watch = one.watch()
    pid = command(one, "start", "--no-wait", "web")
    lines: list[str] = []
    while not any("tries)" in line for line in lines):
        lines, _ = told_by(one, "web")  # nobody says when the second try has failed
    assert lines[:3] == ["web is waiting", "waiting for db", f"is to be started {by('start', pid)}"]
    assert re.fullmatch(r"db: is not ready: Connection refused \(\d+ tries\)", lines[3])

    one.pipe().start("hasty", wait=False)
    watch.until("hasty", "failed")
    lines, _ = told_by(one, "hasty")
    assert lines[:2] == ["hasty is failed", "requires hasty db, which is failed: start-timeout"]
    late = r"hasty db: was not ready within 0.1 s \(start-timeout\): Connection refused \(\d+ tr(y|ies)\)"
    assert re.fullmatch(late, lines[2])


def test_a_stop_that_hangs(daemon: Make) -> None:
    """While `jobmon stop db` waits for what requires db, why says for what."""
    jobs = {"db": {**WEB, "autostart": True}, "web": {**e2e.STUBBORN, "requires": ["db"], "autostart": True}}
    one = daemon({"jobs": jobs})
    watch = one.watch(since=0)
    watch.until("web", "running")
    stop = one.start_cli("stop", "db", "--reason", "backup")
    watch.until("web", "stopping")
    *lines, patience = told_by(one, "db")[0]
    assert lines == [
        "db is running",
        "its program runs",
        "started by autostart",
        f"is to be stopped {by('stop', stop.pid)}: backup, once these are gone: web",
        "web: is being stopped because it requires db, which is to be stopped",
    ]
    assert re.fullmatch(r"web: gets SIGKILL in (1000|9\d\d) s \(kill-timeout\)", patience)

    one.pipe().signal("KILL", "web")
    stop.communicate(timeout=kit.DEADLINE)
    assert told_by(one, "db")[0][1] == f"stopped {by('stop', stop.pid)}: backup"


def test_a_restart_by_a_reload(daemon: Make) -> None:
    """A stale job is restarted by `reload --restart`: why says so while it stops for that, and afterwards."""
    one = daemon({"jobs": {"web": {**e2e.STUBBORN, "autostart": True}}})
    watch = one.watch(since=0)
    watch.until("web", "running")
    one.configure({"jobs": {"web": {**e2e.STUBBORN, "autostart": True, "env": {"RELEASE": "8"}}}})
    reload = one.start_cli("reload", "--restart")
    watch.until("web", "stopping")
    lines, events = told_by(one, "web")
    assert lines[1] == f"is being restarted {by('reload --restart', reload.pid)}"
    assert events[-1][-1] == f"reload by uid {os.getuid()} pid {reload.pid}"

    one.pipe().signal("KILL", "web")
    reload.communicate(timeout=kit.DEADLINE)
    assert told_by(one, "web")[0] == [
        "web is running",
        "its program runs",
        f"restarted {by('reload --restart', reload.pid)}",
    ]


def test_what_a_reload_adds_is_started(daemon: Make) -> None:
    """A job that is new in the configuration is started by the reload, with --restart too."""
    one = daemon({"jobs": {}})
    watch = one.watch()
    one.configure({"jobs": {"web": {**WEB, "autostart": True}}})
    pid = command(one, "reload", "--restart")
    watch.until("web", "running")
    assert told_by(one, "web")[0][-1] == f"started {by('reload', pid)}"

    one.configure({"jobs": {"web": {**WEB, "autostart": True}, "db": {**WEB, "autostart": True}}})
    os.kill(one.pid, signal.SIGHUP)
    watch.until("db", "running")
    assert told_by(one, "db")[0][-1] == f"started by SIGHUP from pid {os.getpid()}"


def test_causes_for_programs(daemon: Make) -> None:
    """Each event says who or what is behind it in words and in members; `why` has the same as listeners."""
    jobs = {
        "db": {"command": "echo >&3; exec sleep 1000", "ready": {"fd": 3}},
        "web": {**WEB, "requires": ["db"]},
        "bad": {"command": "exit 3", "restart": True, "max-restarts": 0, "ready": {"fd": 3}},
        "out": {**WEB, "requires": ["bad"]},
    }
    one = daemon({"jobs": jobs})
    watch, pipe = one.watch(), one.pipe()
    pipe.start("web", wait=True, reason="release 7")
    pipe.signal("CONT", "web", reason="see")
    pipe.restart("db", wait=True)
    pipe.start("out", wait=False)
    watch.until("out", "failed")
    told = json.loads(one.run_cli("why", "out", "--json").out)["events"]
    assert [event["why"] for event in told] == [event.why for event in watch.seen if event.job == "out"]
    pipe.stop("db", wait=True)
    pipe.terminate(reason="bye")
    watch.find(lambda event: event.event == "terminated")
    said = {event.cause: dict(event.why) for event in watch.seen}
    uid, pid = os.getuid(), os.getpid()
    who, ours = f"uid {uid} pid {pid}", {"uid": uid, "pid": pid}

    start = {"kind": "start", **ours, "reason": "release 7"}
    failed = {"kind": "gave-up", "restarts": 0, "because": {"kind": "exited", "status": 3}}
    assert said == {
        "required by web": {"kind": "required", "jobs": ["web"]},
        "launched": {"kind": "launched"},
        "ready": {"kind": "ready"},
        f"waiting for db; start by {who}: release 7": {"kind": "waiting", "jobs": ["db"], "because": start},
        f"start by {who}: release 7; its requirements are ready": {"kind": "released", "because": start},
        f"SIGCONT, signal by {who}: see": {"kind": "signal", "signal": "SIGCONT", **ours, "reason": "see"},
        f"restart by {who}": {"kind": "restart", **ours},
        "restart of db": {"kind": "restart-of", "jobs": ["db"]},
        "SIGTERM": {"kind": "exited", "status": "SIGTERM"},
        "restart of db; its requirements are ready": {
            "kind": "released",
            "because": {"kind": "restart-of", "jobs": ["db"]},
        },
        "required by out": {"kind": "required", "jobs": ["out"]},
        f"waiting for bad; start by {who}": {
            "kind": "waiting",
            "jobs": ["bad"],
            "because": {"kind": "start", **ours},
        },
        "exit 3": {"kind": "exited", "status": 3},
        "restart": {"kind": "auto-restart"},
        "exit 3, gave up without a penalised restart": failed,
        "requires bad, which is failed: exit 3, gave up without a penalised restart": {
            "kind": "requirement",
            "jobs": ["bad"],
            "state": "failed",
            "because": failed,
        },
        "requires db, which is to be stopped": {"kind": "requirement", "jobs": ["db"]},
        f"stop by {who}": {"kind": "stop", **ours},
        "shutdown": {"kind": "shutdown"},
        f"terminate by {who}: bye": {"kind": "terminate", **ours, "reason": "bye"},
    }


def test_a_daemon_that_remembers(daemon: Make) -> None:
    """What has happened to a job is there when ten thousand other things have happened since."""
    one = daemon({"jobs": {"quiet": WEB, "noisy": WEB}})
    pipe = one.pipe()
    pipe.start("quiet", reason="long ago")
    pipe.start("noisy")
    before, _ = told_by(one, "quiet")
    for _ in range(20):
        for number in [pipe.submit("signal", ("noisy",), signal="CONT") for _ in range(501)]:
            pipe.collect(number)
    lines, events = told_by(one, "quiet")

    assert lines == before
    assert lines[2].endswith("`jobmon start`: long ago")
    assert [row[1] for row in events] == ["launched", "running"]
    document = json.loads(one.run_cli("why", "quiet", "--json").out)
    assert [event["seq"] for event in document["events"]] == [None, None]


def test_names_and_reasons_cannot_forge_a_line(daemon: Make) -> None:
    """One line each, whatever they are made of."""
    name, reason = "x\n  is fine\x1b[2J", "r\n\nweb is running\u2028"
    one = daemon({"jobs": {name: WEB, "web": {**WEB, "requires": [name]}}})
    one.pipe().start("web", reason=reason)
    one.pipe().stop(name, reason=reason)
    out = one.run_cli("why", "web").out

    assert out.count("\n\n") == 1
    assert all(line.isprintable() for line in out.splitlines())
    assert "  x\\n  is fine\\x1b[2J: stopped by uid" in out


def test_wrong_questions(daemon: Make) -> None:
    """4 for a job that there is not, with the name that was meant; 2 for none or two."""
    one = daemon({"jobs": {"web": WEB}})

    assert tuple(one.run_cli("why", "wbe")) == (4, "", "jobmon: wbe: no such job (did you mean 'web'?)\n")
    for words in (["why"], ["why", "web", "web"]):
        code, out, err = one.run_cli(*words)
        assert (code, out) == (2, "")
        assert err.startswith("jobmon: why: ")
