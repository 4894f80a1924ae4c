"""Rules of the policy that other scenarios pass by: each was once broken without a test that failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from test_supervisor import READY, Bench, spec_of

from jobmon.core import conditions, events
from jobmon.core.causes import Actor, Cause, Kind
from jobmon.core.events import Next, State
from jobmon.core.plan import Change, Plan
from jobmon.core.spec import Essential, JobSpec, JobType, Restart

if TYPE_CHECKING:
    from jobmon.core.events import Action, Input


def sent(bench: Bench, kind: type[Action]) -> list[str]:
    """The jobs to which actions of a kind were addressed, in order."""
    bench.take()
    return [action.job for action in bench.done if isinstance(action, kind)]  # type: ignore[attr-defined]


def remove(bench: Bench, *names: str) -> None:
    """A reload without these jobs."""
    bench.supervisor.reload(Plan(removed=names), "reload", bench.now)


# ---- one job ------------------------------------------------------------------------------------


def test_a_run_is_judged_as_what_it_was_launched_as() -> None:
    """A service whose configuration says oneshot by now is restarted after a success, as a service is."""
    bench = Bench(spec_of(restart=Restart.ALWAYS)).up()
    other = spec_of(restart=Restart.ALWAYS, type=JobType.ONESHOT)
    bench.supervisor.reload(Plan(changed=(Change(other, restart=("type",)),)), "reload", 1.0)
    bench.end(0)

    assert bench.state() is State.BACKOFF


def test_a_oneshot_is_judged_as_one_to_its_end() -> None:
    """A oneshot that is configured as a service by now has done its work when it succeeds."""
    bench = Bench(spec_of(restart=Restart.ALWAYS, type=JobType.ONESHOT)).up()
    bench.supervisor.reload(Plan(changed=(Change(spec_of(restart=Restart.ALWAYS)),)), "reload", 1.0)
    bench.end(0)

    assert bench.state() is State.EXITED


@pytest.mark.parametrize("command", ["restart", "start"])
def test_a_run_after_a_stop_has_the_cause_of_its_launch(command: str) -> None:
    """The cause of a run that follows a stop is what asked for it, not how the run before ended."""
    bench = Bench().up()
    if command == "start":
        bench.supervisor.stop(["web"], "me", 1.0, by=Cause(Kind.STOP, actor=Actor(1)))
    by = Cause(Kind(command), actor=Actor(2))
    getattr(bench.supervisor, command)(["web"], "other", 1.0, by=by)
    bench.end("SIGTERM")
    bench.launch()
    job = bench.supervisor.jobs["web"]

    assert (job.state, job.cause) == (State.STARTING, by)
    assert list(bench.supervisor.log.after(0))[-1][-1] == by


def test_numbers_of_runs_never_come_again() -> None:
    """A new job counts from above all runs of removed ones, whichever of them was removed last."""
    bench = Bench(spec_of("long"), spec_of("short"))
    for _ in range(4):
        bench.up("long").end(0, "long")
    bench.up("short").end(0, "short")
    remove(bench, "long")
    remove(bench, "short")
    bench.supervisor.reload(Plan(added=(spec_of("new"),)), "reload", 1.0)
    bench.up("new")

    assert bench.run("new") == 5


# ---- the end of the daemon ------------------------------------------------------------------------


def test_an_essential_job_that_ends_in_the_shutdown_does_not_give_the_exit_code() -> None:
    """Once the shutdown has begun for another reason, the end of an essential job changes nothing."""
    bench = Bench(spec_of("db", essential=Essential.YES), spec_of("web", requires=("db",))).up("db", "web")
    bench.supervisor.terminate(1.0)
    bench.end(3, "db")  # by itself: its turn has not come, web is stopping
    bench.end("SIGTERM", "web")

    assert bench.state("db") is not State.BACKOFF
    assert [action for action in bench.take() if isinstance(action, events.Finish)] == [events.Finish(0)]


def ordered_removal() -> Bench:
    """`db` is removed by a reload and waits for `web`, which requires it, to be gone."""
    bench = Bench(spec_of("db"), spec_of("web", requires=("db",))).up("db", "web")
    bench.supervisor.reload(Plan(removed=("db",)), "reload", 1.0)
    assert bench.supervisor.turns.follows("db") is Next.REMOVE
    return bench


def test_what_is_removed_stays_so_in_a_shutdown() -> None:
    """A job that waits to be removed when the shutdown comes is removed by it, not only stopped."""
    bench = ordered_removal()
    bench.supervisor.terminate(2.0)
    bench.end("SIGTERM", "web")
    bench.end("SIGTERM", "db")

    assert "db removed" in bench.told()
    assert "web removed" not in bench.told()


def test_what_is_removed_stays_so_in_a_second_shutdown() -> None:
    """The second shutdown kills at once, and what waited to be removed is still removed."""
    bench = ordered_removal()
    bench.supervisor.terminate(2.0)
    bench.supervisor.terminate(3.0)

    assert set(sent(bench, events.Kill)) == {"db", "web"}
    bench.end("SIGKILL", "web")
    bench.end("SIGKILL", "db")
    assert "db removed" in bench.told()
    assert "web removed" not in bench.told()


def test_the_end_of_an_essential_job_that_is_removed_is_its_own() -> None:
    """An essential job that a reload has removed ends before its turn: it is gone, and the daemon stays."""
    bench = Bench(spec_of("db", essential=Essential.YES), spec_of("web", requires=("db",))).up("db", "web")
    bench.supervisor.reload(Plan(removed=("db",)), "reload", 1.0)
    bench.end(0, "db")

    assert not bench.supervisor.terminating
    assert "db" not in bench.supervisor.jobs


def test_what_died_before_it_was_removed_is_removed_by_a_shutdown() -> None:
    """A job that waits to be removed ends in the very moment of the shutdown: it is still removed."""
    bench = Bench(
        spec_of("db"),
        spec_of("web", requires=("db",)),
        spec_of("main", essential=Essential.YES, after=("db",)),
    ).up("db", "web", "main")
    bench.supervisor.reload(Plan(removed=("db",)), "reload", 1.0)
    bench.supervisor.jobs["db"].step(events.Exited(bench.run("db"), 0), 1.0)  # not passed on yet
    bench.supervisor.terminate(1.0)

    assert "db" not in bench.supervisor.jobs


# ---- order --------------------------------------------------------------------------------------


def test_a_start_of_what_waits_is_answered_at_once_without_wait() -> None:
    """`start --no-wait` returns when the start is queued: for requirements that are not ready yet, too."""
    bench = Bench(spec_of("db", ready=READY), spec_of("web", requires=("db",)))
    bench.supervisor.start(["web"], "me", 0.0, wait=False)

    assert bench.state("web") is State.WAITING
    assert bench.code() == ""


def test_a_restart_that_waits_for_its_turn_is_answered_at_once_without_wait() -> None:
    """`restart --no-wait` returns when the restart is queued behind the stop of what requires the job."""
    bench = Bench(spec_of("db"), spec_of("web", requires=("db",))).up("db", "web")
    bench.supervisor.restart(["db"], "me", 1.0, wait=False)

    assert bench.state("db") is State.RUNNING
    assert bench.code() == ""


def test_a_finished_oneshot_is_undone_after_what_requires_it() -> None:
    """A stop of a oneshot that has succeeded waits until what requires it is gone."""
    bench = Bench(spec_of("migrate", type=JobType.ONESHOT), spec_of("web", requires=("migrate",)))
    bench.up("migrate").end(0, "migrate")
    bench.up("web")
    bench.supervisor.stop(["migrate"], "me", 1.0, wait=True)

    assert (bench.state("migrate"), bench.state("web")) == (State.EXITED, State.STOPPING)
    bench.end("SIGTERM", "web")
    assert bench.state("migrate") is State.STOPPED


def waiting_for_db() -> Bench:
    """`web` waits for `db`, which is starting."""
    bench = Bench(spec_of("db", ready=READY), spec_of("web", requires=("db",)))
    bench.supervisor.start(["web"], "me", 0.0, wait=True)
    bench.launch("db")
    assert bench.state("web") is State.WAITING
    return bench


def test_a_requirement_that_is_stopped_stops_what_waits_for_it() -> None:
    """Somebody stops the requirement: what waits for it is stopped too, it has not failed."""
    bench = waiting_for_db()
    bench.supervisor.stop(["db"], "other", 1.0)
    bench.end("SIGTERM", "db")

    assert bench.state("web") is State.STOPPED


def test_a_requirement_that_ends_fails_what_waits_for_it() -> None:
    """The requirement is given up by itself: what waits for it has failed."""
    bench = waiting_for_db()
    bench.end(1, "db")

    assert bench.state("web") is State.FAILED


# ---- waiting ------------------------------------------------------------------------------------


def test_a_timeout_of_zero_is_one() -> None:
    """`timeout: 0` asks for the answer of this moment: it is armed, for now, and not taken for "none"."""
    bench = Bench(spec_of(ready=READY))
    bench.now = 5.0
    bench.supervisor.start(["web"], "me", 5.0, wait=True, timeout=0.0)
    (armed,) = (a for a in bench.take() if isinstance(a, events.Arm) and not isinstance(a.key, str))

    assert armed.at == 5.0
    bench.fire(armed.key)
    assert bench.code() == "timeout"


def test_what_holds_at_once_needs_no_time() -> None:
    """With `timeout: 0`, too, a condition that holds is a success."""
    bench = Bench().up()
    bench.supervisor.wait(["web"], "me", 0.0, until=("ready", conditions.ready), timeout=0.0)

    assert bench.code() == ""


# ---- order: what only a changed expression shows --------------------------------------------------

DEPLOY = Cause(Kind.STOP, reason="deploy 17")
RESTART_OF_DB = Cause(Kind.RESTART_OF, jobs=("db",))


def chain(*extra: JobSpec) -> Bench:
    """`app` requires `web`, which requires `db`; all are up."""
    bench = Bench(spec_of("db"), spec_of("web", requires=("db",)), spec_of("app", requires=("web",)), *extra)
    return bench.up("db", "web", "app")


def queued(bench: Bench, name: str) -> Input | None:
    """What a job is told, once its turn to go has come."""
    pending = bench.supervisor.going(name)
    return None if pending is None else pending.input()


def test_what_comes_after_a_job_waits_for_a_restart_that_is_queued() -> None:
    """A job that is up, and is to be restarted after another has stopped, is waited for already."""
    bench = chain(spec_of("late", after=("db",)))
    bench.supervisor.restart(["db"], "me", 1.0)
    assert bench.state("db") is State.RUNNING

    bench.supervisor.start(["late"], "me", 1.0)
    assert (bench.state("late"), bench.supervisor.jobs["late"].held) == (State.WAITING, ("db",))


def test_a_stop_that_is_queued_keeps_its_cause() -> None:
    """A requirement that fails changes nothing for a job that somebody has told to stop already."""
    bench = chain()
    bench.supervisor.stop(["web"], "me", 1.0, by=DEPLOY)
    bench.end(1, "db")

    assert queued(bench, "web") == events.Stop(by=DEPLOY)


def test_a_stop_at_once_is_at_once_for_what_has_to_go_before() -> None:
    """`stop --now` of a requirement kills what requires it, the outermost first, and then itself."""
    bench = chain()
    bench.supervisor.stop(["db"], "me", 1.0, at_once=True)
    assert sent(bench, events.Kill) == ["app"]

    bench.end("SIGKILL", "app")
    assert sent(bench, events.Kill) == ["app", "web"]
    assert str(bench.supervisor.jobs["web"].cause) == "requires db, which is to be stopped"
    bench.end("SIGKILL", "web")
    assert sent(bench, events.Kill) == ["app", "web", "db"]


@pytest.mark.parametrize("at_once", [False, True])
def test_a_removal_that_is_queued_stays_one(at_once: bool) -> None:
    """A stop of its requirement leaves it a removal, but takes its time away if that is to be at once."""
    bench = chain()
    remove(bench, "web")
    bench.supervisor.stop(["db"], "me", 1.0, at_once=at_once)

    assert queued(bench, "web") == events.Remove(at_once)


def test_a_restart_does_not_bring_back_what_is_being_stopped() -> None:
    """A job whose stop is under way stays down, though what it requires is restarted."""
    bench = Bench(spec_of("db"), spec_of("web", requires=("db",))).up("db", "web")
    bench.supervisor.stop(["web"], "me", 1.0)
    bench.supervisor.restart(["db"], "me", 1.0)
    bench.end("SIGTERM", "web")

    assert (bench.state("web"), bench.state("db")) == (State.STOPPED, State.STOPPING)


def test_a_restart_does_not_bring_back_what_is_to_be_stopped() -> None:
    """Nor does it a job whose stop waits for its turn."""
    bench = chain()
    bench.supervisor.stop(["web"], "me", 1.0, by=DEPLOY)
    bench.supervisor.restart(["db"], "me", 1.0)

    assert queued(bench, "web") == events.Stop(by=DEPLOY)


def test_a_second_shutdown_is_the_cause_of_the_kill() -> None:
    """What is killed by a second shutdown says that it was the shutdown."""
    bench = chain()
    bench.supervisor.terminate(1.0)
    bench.supervisor.terminate(2.0)

    assert {str(job.cause) for job in bench.supervisor.jobs.values()} == {"shutdown"}
    assert {job.state for job in bench.supervisor.jobs.values()} == {State.KILLING}


def test_what_goes_before_is_told_under_the_nearest_name() -> None:
    """Each job that a stop takes along is listed once, in the order of going, under what it requires of the
    names; what is down is not listed."""
    bench = chain(spec_of("idle", requires=("db",)), spec_of("tool", requires=("db",))).up("tool")
    going_before = bench.supervisor.turns.going_before

    assert going_before(["db"]) == {"db": ["app", "web", "tool"]}
    assert going_before(["db", "web"]) == {"db": ["tool"], "web": ["app"]}
    assert going_before(["app"]) == {}


def test_a_stop_does_not_wait_for_what_only_comes_after() -> None:
    """`after` is an order for starts and for the shutdown; a stop of one job leaves the others alone."""
    bench = Bench(spec_of("db"), spec_of("late", after=("db",))).up("db", "late")
    bench.supervisor.stop(["db"], "me", 1.0)

    assert (bench.state("db"), bench.state("late")) == (State.STOPPING, State.RUNNING)


def test_a_requirement_that_ends_takes_down_whatever_is_up() -> None:
    """That one of those that require it is down, or goes already, saves none of the others."""
    others = [spec_of(name, requires=("db",)) for name in ("idle", "going", "web")]
    bench = Bench(spec_of("db"), *others).up("db", "going", "web")
    bench.supervisor.stop(["going"], "me", 1.0, by=DEPLOY)
    bench.end(1, "db")

    assert bench.state("idle") is State.STOPPED
    assert [str(bench.supervisor.jobs[name].cause) for name in ("going", "web")] == [
        "deploy 17",
        "requires db, which is failed: exit 1",
    ]


def test_a_restart_of_what_is_down_starts_what_it_requires_in_order() -> None:
    """Named jobs and requirements alternate: each is asked for once, after what it requires."""
    bench = Bench(spec_of("db"), spec_of("web", requires=("db",)), spec_of("app", requires=("web",)))
    bench.supervisor.restart(["db", "app"], "me", 1.0, by=DEPLOY)
    db, web, app = (bench.supervisor.jobs[name] for name in ("db", "web", "app"))

    assert (db.state, db.run, db.cause) == (State.STARTING, 1, DEPLOY)
    assert (web.state, str(web.cause)) == (State.WAITING, "waiting for db; required by app")
    assert (app.state, str(app.cause)) == (State.WAITING, "waiting for web; deploy 17")
    assert {job.since for job in (db, web, app)} == {1.0}
    assert {job.asked for job in (db, web, app)} == {True}


def test_a_restart_calls_off_the_stop_of_what_it_needs() -> None:
    """A requirement whose stop waits for its turn stays up; the client that asked for the stop is told."""
    bench = chain()
    bench.supervisor.stop(["web"], "other", 1.0, wait=True)
    bench.supervisor.restart(["app"], "me", 1.0)

    assert queued(bench, "web") is None
    assert bench.replies("other")[0].message == "was started meanwhile"
    bench.end("SIGTERM", "app")
    assert (bench.state("web"), bench.state("app")) == (State.RUNNING, State.STARTING)


def test_a_restart_turns_the_stop_of_what_it_needs_into_a_restart() -> None:
    """What it requires is restarted too: the requirement goes all the same, and comes back."""
    bench = chain()
    bench.supervisor.stop(["web"], "other", 1.0, wait=True)
    bench.supervisor.restart(["db", "app"], "me", 1.0)

    assert queued(bench, "web") == events.RestartJob(RESTART_OF_DB)
    assert bench.replies("other")[0].message == "was started meanwhile"


def test_a_stop_becomes_a_restart_through_a_oneshot_too() -> None:
    """What is restarted may be required through a oneshot, which has succeeded and is left alone."""
    migrate = spec_of("migrate", requires=("db",), type=JobType.ONESHOT)
    web, app = spec_of("web", requires=("migrate",)), spec_of("app", requires=("web",))
    bench = Bench(spec_of("db"), migrate, web, app, spec_of("tool", requires=("db",))).up("db", "migrate")
    bench.end(0, "migrate")
    bench.up("web", "app", "tool")
    bench.supervisor.stop(["web"], "other", 1.0)
    bench.supervisor.restart(["db", "app"], "me", 1.0)

    assert queued(bench, "web") == events.RestartJob(RESTART_OF_DB)


def test_a_restart_that_becomes_a_stop_keeps_nothing_waiting() -> None:
    """What comes after a job that was to be restarted is launched when somebody stops that job for good."""
    bench = chain(spec_of("late", after=("db",)))
    bench.supervisor.restart(["db"], "me", 1.0)
    bench.supervisor.start(["late"], "me", 1.0)
    assert bench.state("late") is State.WAITING

    bench.supervisor.stop(["db"], "other", 2.0)
    assert (bench.state("late"), bench.supervisor.jobs["late"].since) == (State.STARTING, 2.0)


def test_a_restart_under_way_that_becomes_a_stop_keeps_nothing_waiting() -> None:
    """The same where the stop of the restart is under way already."""
    bench = Bench(spec_of("db"), spec_of("late", after=("db",))).up("db")
    bench.supervisor.restart(["db"], "me", 1.0)
    bench.supervisor.start(["late"], "me", 1.0)
    assert (bench.state("db"), bench.state("late")) == (State.STOPPING, State.WAITING)

    bench.supervisor.stop(["db"], "other", 2.0)
    assert (bench.state("late"), bench.supervisor.jobs["late"].since) == (State.STARTING, 2.0)


def test_in_the_shutdown_nothing_is_held() -> None:
    """Nothing is launched any more, so nothing waits for a requirement that has ended before its turn."""
    bench = Bench(spec_of("db"), spec_of("web", requires=("db",))).up("db", "web")
    bench.supervisor.terminate(1.0)
    bench.end(0, "db")

    assert (bench.state("web"), bench.supervisor.jobs["web"].held) == (State.STOPPING, ())


# ---- order: a reload ------------------------------------------------------------------------------


def change(bench: Bench, *specs: JobSpec, now: float = 5.0) -> None:
    """A reload that changes these jobs."""
    plan = Plan(changed=tuple(Change(spec, hot=("requires",)) for spec in specs))
    bench.supervisor.reload(plan, "reload", now)


def test_a_requirement_that_a_reload_takes_away_is_not_waited_for() -> None:
    """A job that waits for it is launched in the turn of the reload."""
    bench = waiting_for_db()
    change(bench, spec_of("web"))

    assert (bench.state("web"), bench.supervisor.jobs["web"].since) == (State.STARTING, 5.0)


def test_a_requirement_that_a_reload_brings_is_started() -> None:
    """A job that waits is given what it requires by now: what was never started is started."""
    bench = Bench(spec_of("db", ready=READY), spec_of("cache"), spec_of("web", requires=("db",)))
    bench.supervisor.start(["web"], "me", 0.0)
    change(bench, spec_of("web", requires=("db", "cache")))
    cache = bench.supervisor.jobs["cache"]

    assert (cache.state, str(cache.cause), cache.since) == (State.STARTING, "required by web", 5.0)
    assert bench.supervisor.jobs["web"].held == ("db", "cache")


def test_a_stop_that_is_queued_takes_along_what_requires_the_job_since_a_reload() -> None:
    """A job that waits for its turn to stop waits for what requires it by now, too, which is stopped."""
    bench = chain(spec_of("tool")).up("tool")
    bench.supervisor.stop(["web"], "me", 1.0, by=DEPLOY)
    change(bench, spec_of("tool", requires=("web",)))

    assert (bench.state("tool"), bench.supervisor.jobs["tool"].since) == (State.STOPPING, 5.0)
    bench.end("SIGTERM", "app")
    assert bench.state("web") is State.RUNNING
    bench.end("SIGTERM", "tool")
    assert (bench.state("web"), bench.supervisor.jobs["web"].cause) == (State.STOPPING, DEPLOY)
