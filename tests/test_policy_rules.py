"""Rules of the policy that other scenarios pass by: each was once broken without a test that failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from test_supervisor import READY, Bench, spec_of

from jobmon.core import conditions, events
from jobmon.core.events import State
from jobmon.core.plan import Change, Plan
from jobmon.core.spec import Essential, JobType, Restart

if TYPE_CHECKING:
    from jobmon.core.events import Action


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
        bench.supervisor.stop(["web"], "me", 1.0, by="stop by uid 1")
    getattr(bench.supervisor, command)(["web"], "other", 1.0, by=f"{command} by uid 2")
    bench.end("SIGTERM")
    bench.launch()
    job = bench.supervisor.jobs["web"]

    assert (job.state, job.cause) == (State.STARTING, f"{command} by uid 2")
    assert list(bench.supervisor.log.after(0))[-1][-1] == f"{command} by uid 2"


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
    assert type(bench.supervisor.going("db")) is events.Remove
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
