"""The table of one job, cell by cell, against the table of the design."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from jobmon.core import events
from jobmon.core.causes import Actor, Cause, Kind, exited
from jobmon.core.events import LEAVING, LIVE, Next, State
from jobmon.core.machine import MAX_KILL_INTERVAL, TABLE, Job
from jobmon.core.spec import FdReadiness, JobSpec, JobType, Restart

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobmon.core.events import Action, Input

PID, NEW_PID = 4711, 4712
READY = FdReadiness(3)

# The design's table. "down" is stopped, exited and failed; words in brackets of the code are notes.
DOWN = (State.STOPPED, State.EXITED, State.FAILED)
COLUMNS = (
    *(State.WAITING, State.STARTING, State.RUNNING),
    *(State.STOPPING, State.KILLING, State.BACKOFF),
)
DESIGN: dict[type[Input], tuple[str, str, str, str, str, str, str]] = {
    events.Start: ("spawn", "=", "=", "=", "next=RESTART", "next=RESTART", "spawn"),
    events.Stop: (
        *("-> stopped", "-> stopped", "halt(STOP)", "halt(STOP)"),
        *("next=STOP", "next=STOP", "-> stopped"),
    ),
    events.RestartJob: (
        *("spawn", "=", "halt(RESTART)", "halt(RESTART)"),
        *("next=RESTART", "next=RESTART", "spawn"),
    ),
    events.SpecChanged: (
        *("new spec", "new spec", "new spec", "new spec"),  # (and stale, where a run has another)
        *("new spec; REMOVE becomes STOP", "new spec; REMOVE becomes STOP", "new spec"),
    ),
    events.Remove: (
        *("gone", "gone", "halt(REMOVE)", "halt(REMOVE)"),
        *("next=REMOVE", "next=REMOVE", "gone"),
    ),
    events.Shutdown: (
        *("-> stopped", "-> stopped", "halt(STOP)", "halt(STOP)"),
        *("next=STOP", "next=STOP", "-> stopped"),
    ),
    events.Hold: ("=",) * 7,
    events.Release: ("=", "spawn", "=", "=", "=", "=", "="),
    events.RequirementLost: ("BUG", "failed(requirement)", *("BUG",) * 5),
    events.Launched: ("BUG", "BUG", "=", "BUG", "=", "=", "BUG"),
    events.Spawned: ("BUG", "BUG", "ready=none: running", "BUG", "=", "=", "BUG"),
    events.Ready: ("BUG", "BUG", "running", "=", "=", "=", "BUG"),
    events.SpawnFailed: ("BUG", "BUG", "decide", "BUG", "leave", "leave", "BUG"),
    events.LeaderDied: ("BUG", "BUG", "halt(DECIDE)", "halt(DECIDE)", "=", "=", "BUG"),
    events.Exited: ("BUG", "BUG", "decide", "decide", "leave", "leave", "BUG"),
    events.WatchdogExpired: ("BUG", "BUG", "BUG", "halt(DECIDE)", "=", "=", "BUG"),
    events.Timer: (
        *("BUG", "BUG", "halt(DECIDE)", "BUG"),
        *("kill(next)", "SIGKILL again, log, arm x2", "spawn"),
    ),
}
STOP_NOW = ("-> stopped", "-> stopped", "kill(STOP)", "kill(STOP)", "kill(STOP)", "next=STOP", "-> stopped")

# What those words come to for the jobs that `bring` brings: a leaving one has next=DECIDE after a
# watchdog, and a failure is restarted.
SEEN = {
    "ready=none: running": "running",
    "new spec; REMOVE becomes STOP": "new spec",
    "decide": "-> backoff",
    "leave": "-> backoff",
    "kill(next)": "kill(DECIDE)",
    "failed(requirement)": "-> failed",
}


def spec_of(**settings: object) -> JobSpec:
    """A job that is restarted when it fails."""
    return JobSpec(**({"name": "job", "command": "true", "restart": Restart.ON_FAILURE} | settings))  # type: ignore[arg-type]


def up(job: Job, now: float = 0.0) -> Job:
    """Start it, and let its program run."""
    job.step(events.Start(), now)
    job.step(events.Launched(job.run, PID), now)
    job.step(events.Spawned(job.run), now)
    return job


def bring(state: State, **settings: object) -> Job:
    """A job in that state, by the shortest way there."""
    job = Job(spec_of(**settings))
    if state is State.STOPPED:
        return job
    if state is State.WAITING:
        job.step(events.Hold(("db",)), 0.0)
        job.step(events.Start(), 0.0)
        return job
    if state is State.STARTING:
        job.step(events.Start(), 0.0)
        job.step(events.Launched(1, PID), 0.0)
        return job
    up(job)
    if state is State.EXITED:
        job.step(events.Exited(1, 0), 0.0)
    elif state is State.FAILED:
        job.spec = job.spec.replace(restart=Restart.NEVER)
        job.step(events.Exited(1, 1), 0.0)
    elif state is State.BACKOFF:
        job.step(events.Exited(1, 1), 0.0)
    elif state in LEAVING:
        job.step(events.WatchdogExpired(1), 0.0)
    if state is State.KILLING:
        job.step(events.Timer(job.token), 10.0)
    job.spec = spec_of(**settings)
    return job


def an_input(kind: type[Input], job: Job) -> Input:
    """One input of that kind which is not late."""
    makers: dict[type[Input], Callable[[], Input]] = {
        events.Hold: lambda: events.Hold(("db",)),
        events.RequirementLost: lambda: events.RequirementLost(Cause(Kind.REQUIREMENT, "failed", ("db",))),
        events.SpecChanged: lambda: events.SpecChanged(spec_of(command="other")),
        events.Launched: lambda: events.Launched(job.run, PID),
        events.Spawned: lambda: events.Spawned(job.run),
        events.Ready: lambda: events.Ready(job.run),
        events.SpawnFailed: lambda: events.SpawnFailed(job.run, "exec", errno.ENOENT, "no such file"),
        events.LeaderDied: lambda: events.LeaderDied(job.run, 1),
        events.Exited: lambda: events.Exited(job.run, 1),
        events.WatchdogExpired: lambda: events.WatchdogExpired(job.run),
        events.Timer: lambda: events.Timer(job.token),
    }
    return makers.get(kind, kind)()


def kinds(actions: list[Action]) -> list[type[Action]]:
    """Of what kind they are."""
    return [type(action) for action in actions]


def observe(job: Job, what: Input) -> str:
    """Let it happen, and say in the words of the table what it came to."""
    state, following, spec = job.state, job.next, job.spec
    actions = job.step(what, 20.0)
    done = kinds(actions)
    if done == [events.Impossible]:
        return "BUG"
    if events.Removed in done:
        return "gone"
    if job.spec is not spec:
        return "new spec"
    if job.state is not state:
        return _arrival(job, done)
    if events.Kill in done:
        return "SIGKILL again, log, arm x2" if {events.Warn, events.Arm} < set(done) else "killed twice"
    if job.next is not following and job.next is not None:
        return f"next={job.next.name}"
    stays = state is State.STOPPED and isinstance(what, (events.Stop, events.Shutdown))
    return "-> stopped" if stays else "="


def _arrival(job: Job, done: list[type[Action]]) -> str:
    if job.state is State.STARTING and events.Spawn in done:
        return "spawn"
    if job.state in LEAVING and job.next is not None:
        sent = {"halt": events.SendSignal, "kill": events.Kill}
        verb = "halt" if job.state is State.STOPPING else "kill"
        return f"{verb}({job.next.name})" if sent[verb] in done and events.Arm in done else "nothing sent"
    return job.state.value if job.state in LIVE else f"-> {job.state.value}"


def cell_of(row: tuple[str, ...], state: State) -> str:
    """The design's word for a state."""
    return row[0] if state in DOWN else row[1 + COLUMNS.index(state)]


def named(values: object) -> str | None:
    """The name of a parameter, for the name of the test."""
    return values.__name__ if isinstance(values, type) else getattr(values, "value", None)


EVERY_CELL = [(kind, state) for kind in DESIGN for state in State]


def leaves(kind: type[Input]) -> set[type[Input]]:
    """The kinds of input below one, those aside that only gather others."""
    below = kind.__subclasses__()
    return {leaf for child in below for leaf in leaves(child)} if below else {kind}


def test_the_table_is_total() -> None:
    """Every input meets a cell in every state, and every kind of input has a row."""
    assert set(TABLE) == leaves(events.Input) == set(DESIGN)
    assert all(set(row) == set(State) for row in TABLE.values())


@pytest.mark.parametrize(("kind", "state"), EVERY_CELL, ids=named)
def test_each_cell_is_the_designs(kind: type[Input], state: State) -> None:
    """The cell says of itself what the design says of its place."""
    words = str(TABLE[kind][state].__doc__)
    note = words.find(" (")

    assert cell_of(DESIGN[kind], state) == (words if note < 0 else words[:note])


@pytest.mark.parametrize(("kind", "state"), EVERY_CELL, ids=named)
def test_each_cell_does_what_it_says(kind: type[Input], state: State) -> None:
    """What can be seen from outside is what the design's word means."""
    word = cell_of(DESIGN[kind], state)
    job = bring(state)

    assert SEEN.get(word, word) == observe(job, an_input(kind, job))


@pytest.mark.parametrize("state", State, ids=named)
def test_each_cell_of_stop_now(state: State) -> None:
    """Stop now is stop, without patience for what lives."""
    assert cell_of(STOP_NOW, state) == observe(bring(state), events.Stop(now=True))


# ---- what a state may hold ----------------------------------------------------------------------


@pytest.mark.parametrize("state", DOWN, ids=named)
def test_nothing_is_armed_at_rest(state: State) -> None:
    """A job that nobody waits for wakes nobody."""
    job = bring(state, start_timeout=60.0)

    assert job.armed is None
    assert (job.pid, job.leader, job.next) == (None, None, None)


@pytest.mark.parametrize("state", [State.STARTING, State.STOPPING, State.KILLING, State.BACKOFF], ids=named)
def test_a_timer_is_armed_where_something_must_end(state: State) -> None:
    """What only time may end has its one timer armed."""
    assert bring(state, ready=READY, start_timeout=60.0).armed is not None


def test_running_disarms_the_start_timeout() -> None:
    """A job that is up in time is not stopped for its start-timeout."""
    job = bring(State.STARTING, start_timeout=60.0)

    actions = job.step(events.Spawned(1), 1.0)

    assert events.Disarm("job") in actions
    assert (job.state, job.armed) == (State.RUNNING, None)


def test_starting_without_start_timeout_arms_nothing() -> None:
    """Without a start-timeout nothing hurries a start."""
    assert bring(State.STARTING, ready=READY).armed is None


@pytest.mark.parametrize("state", State, ids=named)
def test_alive_is_said_of_the_live_states(state: State) -> None:
    """`alive` is true exactly where a process may live."""
    assert bring(state).alive == (state in LIVE)


# ---- what is late is dropped --------------------------------------------------------------------

PROCESS_INPUTS = [kind for kind in DESIGN if issubclass(kind, events.ProcessInput)]


def frozen(job: Job) -> tuple[object, ...]:
    """All that a job knows."""
    return tuple(getattr(job, slot) for slot in Job.__slots__)


@pytest.mark.parametrize("state", State, ids=named)
@pytest.mark.parametrize("kind", PROCESS_INPUTS, ids=named)
def test_news_of_an_earlier_run_is_dropped(kind: type[Input], state: State) -> None:
    """What an earlier process did changes nothing, in no state."""
    job = bring(state)
    late = an_input(kind, job)
    job.run += 1
    before = frozen(job)

    assert job.step(late, 20.0) == []
    assert frozen(job) == before


@pytest.mark.parametrize("state", State, ids=named)
def test_a_timer_that_was_cancelled_is_dropped(state: State) -> None:
    """A timer that fired while it was being cancelled changes nothing."""
    job = bring(state)
    before = frozen(job)

    assert job.step(events.Timer(job.token - 1), 20.0) == []
    assert frozen(job) == before


def test_the_penalty_of_an_earlier_wait_starts_nothing() -> None:
    """Stop in backoff, start, die again: the first wait's timer does not end the second wait."""
    job = bring(State.BACKOFF)
    first = job.token
    job.step(events.Stop(), 0.0)
    up(job)
    job.step(events.Exited(2, 1), 0.0)

    assert job.state is State.BACKOFF
    assert job.step(events.Timer(first), 0.0) == []


# ---- stop ---------------------------------------------------------------------------------------


def test_stop_sends_the_stop_signal_and_has_patience() -> None:
    """Stop of a running job sends its signal to its run and arms kill-timeout."""
    job = bring(State.RUNNING, signal="SIGQUIT", kill_timeout=3.0)
    actions = job.step(events.Stop(), 100.0)

    assert events.SendSignal("job", 1, "SIGQUIT") in actions
    assert job.armed == 103.0


def test_stop_while_stopping_does_not_rearm() -> None:
    """A second stop sends no signal and does not begin the patience again."""
    job = bring(State.RUNNING)
    job.step(events.Stop(), 100.0)
    armed = job.armed

    assert job.step(events.Stop(), 105.0) == []
    assert job.armed == armed


def test_stop_cancels_a_queued_restart() -> None:
    """Restart, then stop: it stays down."""
    job = bring(State.RUNNING)
    job.step(events.RestartJob(), 0.0)
    job.step(events.Stop(), 0.0)
    actions = job.step(events.Exited(1, "SIGTERM"), 0.0)

    assert job.state is State.STOPPED
    assert events.Spawn not in kinds(actions)


def test_stop_cancels_what_policy_would_do() -> None:
    """A job whose leader died, and is being brought down for it, stays down after a stop."""
    job = bring(State.RUNNING, restart=Restart.ALWAYS)
    job.step(events.LeaderDied(1, 1), 0.0)
    job.step(events.Stop(), 0.0)
    job.step(events.Exited(1, 1), 0.0)

    assert job.state is State.STOPPED


def test_stop_now_while_stopping_kills() -> None:
    """Stop now ends the patience of a stop under way."""
    job = bring(State.RUNNING)
    job.step(events.Stop(), 0.0)
    actions = job.step(events.Stop(now=True), 1.0)

    assert (job.state, job.next) == (State.KILLING, Next.STOP)
    assert events.Kill("job", 1) in actions


def test_stop_now_while_killing_does_not_kill_again() -> None:
    """SIGKILL is sent again by time, not by impatience."""
    assert bring(State.KILLING).step(events.Stop(now=True), 1.0) == []


def test_stop_in_backoff_cancels_the_restart() -> None:
    """Stop in backoff: stopped, and the timer is gone."""
    job = bring(State.BACKOFF)

    assert events.Disarm("job") in job.step(events.Stop(), 0.0)
    assert (job.state, job.armed) == (State.STOPPED, None)


def test_stop_of_a_stopped_job_says_nothing() -> None:
    """A stopped job is stopped without an event."""
    assert bring(State.STOPPED).step(events.Stop(), 0.0) == []


@pytest.mark.parametrize("state", [State.EXITED, State.FAILED], ids=named)
def test_stop_of_an_ended_job_makes_it_stopped(state: State) -> None:
    """After a stop a job is stopped, whatever it was before."""
    job = bring(state)
    job.step(events.Stop(), 0.0)

    assert job.state is State.STOPPED


# ---- start and restart --------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.STOPPING, State.KILLING], ids=named)
def test_start_while_leaving_is_queued(state: State) -> None:
    """Start of a leaving job waits for its end, then it is a new run."""
    job = bring(state)

    assert job.step(events.Start(), 20.0) == []
    actions = job.step(events.Exited(1, "SIGTERM"), 21.0)
    assert events.Spawn("job", 2, job.spec) in actions


def test_start_after_stop_wins() -> None:
    """The last command counts: stop, then start, is a new run."""
    job = bring(State.RUNNING)
    job.step(events.Stop(), 0.0)
    job.step(events.Start(), 0.0)
    job.step(events.Exited(1, "SIGTERM"), 0.0)

    assert (job.state, job.run) == (State.STARTING, 2)


def test_start_in_backoff_is_at_once_and_begins_anew() -> None:
    """Start ends the penalty now and counts no failure any more."""
    job = up(Job(spec_of(max_restarts=1)))
    job.step(events.Exited(1, 1), 0.0)
    job.step(events.Timer(job.token), 0.0)
    job.step(events.Exited(2, 1), 1.0)
    assert (job.state, job.past.failures) == (State.BACKOFF, 1)

    actions = job.step(events.Start(), 2.0)
    assert events.Spawn("job", 3, job.spec) in actions
    assert job.past.failures == 0


@pytest.mark.parametrize("state", [State.STARTING, State.RUNNING, State.STOPPING, State.BACKOFF], ids=named)
def test_restart_begins_anew(state: State) -> None:
    """An operator's restart counts as an operator's start: failures before it are forgotten."""
    job = bring(state)
    job.past = job.past.replace(failures=3)
    job.step(events.RestartJob(), 20.0)

    assert job.past.failures == 0


def test_each_run_has_a_number_of_its_own() -> None:
    """Runs are numbered from 1 without a gap."""
    job = bring(State.STOPPED)
    runs = []
    for _ in range(3):
        runs += [action.run for action in job.step(events.Start(), 0.0) if isinstance(action, events.Spawn)]
        job.step(events.SpawnFailed(job.run, "exec", errno.ENOENT, "no"), 0.0)

    assert runs == [1, 2, 3]


# ---- waiting for others -------------------------------------------------------------------------

HOLD = events.Hold(("db",))


@pytest.mark.parametrize("what", [events.Start(), events.RestartJob()], ids=repr)
@pytest.mark.parametrize("state", [*DOWN, State.BACKOFF], ids=named)
def test_what_is_held_waits_instead_of_starting(state: State, what: Input) -> None:
    """A start of what must not be launched now is noted, says for what, and launches nothing."""
    job = bring(state)
    assert job.step(HOLD, 20.0) == []
    actions = job.step(what, 20.0)

    by = what.by if isinstance(what, (events.Start, events.RestartJob)) else ""
    assert (job.state, str(job.cause), job.armed) == (State.WAITING, f"waiting for db; {by}", None)
    assert events.Spawn not in kinds(actions)


def test_a_restart_that_is_held_when_its_run_is_gone_waits() -> None:
    """Held in the middle of a restart: the death is told, and no new run begins."""
    job = bring(State.RUNNING)
    job.step(events.RestartJob(), 20.0)
    job.step(HOLD, 20.0)
    actions = job.step(events.Exited(1, "SIGTERM"), 21.0)

    assert (job.state, job.run) == (State.WAITING, 1)
    assert [a.kind for a in actions if isinstance(a, events.Happened)] == ["died"]


def test_a_penalty_that_ends_while_it_is_held_waits() -> None:
    """Policy starts what is held no earlier than people do; once it does, it is a restart."""
    job = bring(State.BACKOFF)
    job.step(HOLD, 0.0)
    job.step(events.Timer(job.token), 0.0)
    assert job.state is State.WAITING

    job.step(events.Release(), 1.0)
    actions = job.step(events.Launched(2, NEW_PID), 1.0)
    assert [a.kind for a in actions if isinstance(a, events.Happened)] == ["restarting", "launched"]


@pytest.mark.parametrize("state", [state for state in State if state is not State.WAITING], ids=named)
def test_hold_and_release_do_nothing_but_be_remembered(state: State) -> None:
    """What is up stays up while it is held, what is down stays down when it is released."""
    job = bring(state)
    assert job.step(HOLD, 20.0) == []
    assert (job.held, job.state) == (("db",), state)

    assert job.step(events.Release(), 20.0) == []
    assert (job.held, job.state) == ((), state)


def test_release_begins_a_run_with_its_start_timeout() -> None:
    """The time to get ready is measured from the launch, not from the wish."""
    job = bring(State.WAITING, ready=READY, start_timeout=60.0)
    assert job.armed is None

    actions = job.step(events.Release(), 100.0)
    assert events.Spawn("job", 1, job.spec) in actions
    assert events.Arm("job", job.token, 160.0) in actions
    assert job.state.value == "starting"


def test_a_lost_requirement_is_the_end_of_waiting() -> None:
    """The job has failed, for the reason that it is given, and failed for the daemon too."""
    job = bring(State.WAITING)
    job.step(events.RequirementLost(Cause(Kind.REQUIREMENT, "failed", ("db",), because=exited(3))), 20.0)

    assert (job.state, str(job.result)) == (State.FAILED, "requires db, which is failed: exit 3")
    assert (job.cause, job.exit_code, job.endings) == (job.result, 1, 1)


# ---- oneshots -----------------------------------------------------------------------------------


def oneshot(**settings: object) -> Job:
    """A oneshot whose program runs."""
    return up(Job(spec_of(type=JobType.ONESHOT, **settings)))


def test_a_oneshot_is_ready_when_it_has_succeeded() -> None:
    """While it works it is starting; its success is what others wait for, and is kept."""
    job = oneshot()
    assert (job.state, job.ready) == (State.STARTING, False)

    job.step(events.Exited(1, 0), 1.0)
    assert (job.state, job.ready) == (State.EXITED, True)


@pytest.mark.parametrize("restart", Restart, ids=named)
def test_a_oneshot_that_succeeded_is_not_run_again_by_itself(restart: Restart) -> None:
    """Whatever the policy, work that is done is done."""
    job = oneshot(restart=restart)
    job.step(events.Exited(1, 0), 100.0)

    assert (job.state, job.armed) == (State.EXITED, None)


@pytest.mark.parametrize(
    ("restart", "state"),
    [
        (Restart.NEVER, State.FAILED),
        (Restart.ON_FAILURE, State.BACKOFF),
        (Restart.ALWAYS, State.BACKOFF),
    ],
    ids=named,
)
def test_a_oneshot_that_failed_is_tried_again_as_policy_has_it(restart: Restart, state: State) -> None:
    """A failed piece of work is a death like others, and ready for nobody."""
    job = oneshot(restart=restart)
    job.step(events.Exited(1, 1), 100.0)

    assert (job.state, job.ready) == (state, False)


def test_a_oneshot_that_is_run_again_is_not_ready_meanwhile() -> None:
    """Readiness ends where the new run begins, and comes back with its success."""
    job = oneshot()
    job.step(events.Exited(1, 0), 1.0)
    job.step(events.Start(), 2.0)
    assert not job.ready

    job.step(events.Exited(2, 0), 3.0)
    assert job.ready


def test_a_oneshot_that_is_stopped_is_ready_for_nobody() -> None:
    """After a stop nothing can be said of its work."""
    job = oneshot()
    job.step(events.Exited(1, 0), 1.0)
    job.step(events.Stop(), 2.0)

    assert (job.state, job.ready) == (State.STOPPED, False)


def test_a_oneshot_has_its_start_timeout_to_succeed() -> None:
    """Work that takes longer is brought down and has failed."""
    job = oneshot(restart=Restart.NEVER, start_timeout=60.0)
    job.step(events.Timer(job.token), 60.0)
    job.step(events.Exited(1, 0), 61.0)

    assert (job.state, str(job.result)) == (State.FAILED, "start-timeout")


# ---- what is counted ----------------------------------------------------------------------------


def counts(job: Job) -> tuple[int, int, int]:
    """Launches, deaths, endings."""
    return job.launches, job.deaths, job.endings


def test_processes_deaths_and_endings_are_counted() -> None:
    """A launch counts when there is a process, a death when nothing is left, an ending when it is final."""
    job = Job(spec_of())
    job.step(events.Start(), 0.0)
    assert counts(job) == (0, 0, 0)

    job.step(events.Launched(1, PID), 0.0)
    job.step(events.Spawned(1), 0.0)
    job.step(events.LeaderDied(1, 1), 0.0)
    assert counts(job) == (1, 0, 0)

    job.step(events.Exited(1, 1), 0.0)
    assert (job.state, *counts(job)) == (State.BACKOFF, 1, 1, 0)

    job.step(events.Timer(job.token), 0.0)
    job.step(events.Launched(2, PID), 0.0)
    job.step(events.Exited(2, 0), 60.0)
    assert (job.state, *counts(job)) == (State.EXITED, 2, 2, 1)


def test_a_stop_is_a_death_and_no_ending() -> None:
    """Only what ends by itself is given up; what people stop is stopped."""
    job = bring(State.RUNNING)
    job.step(events.Stop(), 0.0)
    job.step(events.Exited(1, "SIGTERM"), 0.0)

    assert counts(job) == (1, 1, 0)
    assert job.status == "SIGTERM"


def test_a_spawn_that_fails_for_good_is_an_ending_without_a_death() -> None:
    """Nothing was launched, nothing died, but it is given up."""
    job = Job(spec_of(restart=Restart.NEVER))
    job.step(events.Start(), 0.0)
    job.step(events.SpawnFailed(1, "exec", errno.ENOENT, "no such file"), 0.0)

    assert counts(job) == (0, 0, 1)


# ---- remove and changed specs -------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.STOPPING, State.KILLING], ids=named)
@pytest.mark.parametrize(
    "what",
    [events.Start(), events.Stop(), events.Stop(now=True), events.RestartJob(), events.Shutdown()],
    ids=repr,
)
def test_remove_is_never_overwritten(what: Input, state: State) -> None:
    """No command saves a job that is being removed, and it is forgotten when it is gone."""
    job = bring(state)
    job.step(events.Remove(), 20.0)
    job.step(what, 20.0)

    assert job.next is Next.REMOVE
    assert events.Removed("job") in job.step(events.Exited(1, "SIGTERM"), 21.0)
    assert job.state is State.STOPPED


@pytest.mark.parametrize("state", [State.STOPPING, State.KILLING], ids=named)
def test_a_spec_that_comes_back_ends_the_removal(state: State) -> None:
    """Removed by one reload and there again in the next: the job stays, stopped."""
    job = bring(state)
    job.step(events.Remove(), 20.0)
    job.step(events.SpecChanged(spec_of(description="again")), 20.0)
    actions = job.step(events.Exited(1, "SIGTERM"), 21.0)

    assert (job.state, job.next) == (State.STOPPED, None)
    assert events.Removed not in kinds(actions)


def test_remove_comes_after_its_last_event() -> None:
    """Listeners hear that a job stopped, then that it is removed, before it is forgotten."""
    actions = bring(State.FAILED).step(events.Remove(), 0.0)
    told = [action.kind for action in actions if isinstance(action, events.Happened)]

    assert told == ["state", "removed"]
    assert kinds(actions)[-1] is events.Removed


def test_a_run_keeps_the_readiness_it_was_launched_with() -> None:
    """A spec that changes before the exec is known does not change what the run is waited for."""
    without, with_ready = spec_of(), spec_of(ready=READY, start_timeout=60.0)
    for first, then, state in ((without, with_ready, State.RUNNING), (with_ready, without, State.STARTING)):
        job = Job(first)
        job.step(events.Start(), 0.0)
        job.step(events.Launched(1, PID), 0.0)
        job.step(events.SpecChanged(then), 0.0)
        job.step(events.Spawned(1), 0.0)

        assert job.state is state


def test_stale_ends_with_the_process() -> None:
    """A process whose command is another by now is stale; the next one, or none, is not."""
    job = bring(State.RUNNING)
    job.step(events.SpecChanged(spec_of(command="other")), 0.0)
    assert job.stale

    job.step(events.Exited(1, 0), 0.0)
    assert not job.stale


def test_what_counts_at_once_makes_nothing_stale() -> None:
    """Policy is read live, and a configuration that is as it was again makes the run as good as new."""
    job = bring(State.RUNNING)
    job.step(events.SpecChanged(spec_of(description="new", kill_timeout=1.0, restart=Restart.NEVER)), 0.0)
    assert not job.stale

    job.step(events.SpecChanged(spec_of(command="other")), 0.0)
    job.step(events.SpecChanged(spec_of()), 0.0)
    assert not job.stale


# ---- deaths -------------------------------------------------------------------------------------


def test_the_leaders_status_decides() -> None:
    """A leader that fails first is what policy decides about, not the status that comes with the end."""
    job = bring(State.RUNNING)
    job.step(events.LeaderDied(1, 1), 0.0)
    job.step(events.Exited(1, 0), 0.0)

    assert (job.state, str(job.result)) == (State.BACKOFF, "exit 1")


def test_a_leader_that_succeeds_first_has_succeeded() -> None:
    """What it left behind is brought down, and the end is a good one."""
    job = bring(State.RUNNING)
    job.step(events.LeaderDied(1, 0), 0.0)
    job.step(events.Timer(job.token), 10.0)
    job.step(events.Exited(1, "SIGKILL"), 10.0)

    assert (job.state, str(job.result)) == (State.EXITED, "exit 0")


@pytest.mark.parametrize("state", [State.RUNNING, State.STOPPING, State.KILLING], ids=named)
def test_a_dead_leader_has_no_pid_to_signal(state: State) -> None:
    """While leftovers live there is a run, but its first process is nobody to name."""
    job = bring(state)
    job.step(events.LeaderDied(1, 0), 20.0)

    assert (job.pid, job.leader, job.alive) == (PID, None, True)


@pytest.mark.parametrize(("what", "result"), [("timer", "start-timeout"), ("watchdog", "watchdog")])
def test_a_silent_job_has_failed_however_it_ends(what: str, result: str) -> None:
    """Not ready in time, or silent for too long, is a failure even when it then exits with 0."""
    job = bring(State.STARTING if what == "timer" else State.RUNNING, start_timeout=60.0)
    job.step(events.Timer(job.token) if what == "timer" else events.WatchdogExpired(1), 60.0)
    job.step(events.Exited(1, 0), 61.0)

    assert (job.state, str(job.result)) == (State.BACKOFF, result)


def test_even_a_restart_at_once_goes_through_backoff() -> None:
    """A delay of nothing is a timer too, so that every death is seen."""
    job = bring(State.RUNNING, restart=Restart.ALWAYS)
    actions = job.step(events.Exited(1, 0), 7.0)

    assert (job.state, job.armed) == (State.BACKOFF, 7.0)
    assert events.Spawn not in kinds(actions)


def test_a_failed_spawn_waits_the_penalty_first() -> None:
    """The first retry of what could not be executed is not at once."""
    job = bring(State.STARTING)
    job.step(events.SpawnFailed(1, "exec", errno.ENOENT, "no such file"), 7.0)

    assert (job.state, job.armed, job.spawn_error) == (State.BACKOFF, 22.0, "no such file")


def test_a_lack_of_the_daemon_is_tried_again_under_any_policy() -> None:
    """EMFILE says nothing about the job, so even one that is never restarted is tried again."""
    job = bring(State.STARTING, restart=Restart.NEVER)
    job.step(events.SpawnFailed(1, "fork", errno.EMFILE, "no descriptors"), 7.0)

    assert (job.state, job.armed) == (State.BACKOFF, 22.0)


def test_a_start_that_was_called_off_is_stopped() -> None:
    """Stop before there is a process: it is down, and nothing of a failure is said."""
    job = Job(spec_of())
    job.step(events.Start(), 0.0)
    job.step(events.Stop(), 0.0)
    job.step(events.SpawnFailed(1, "", 0, "called off"), 0.0)

    assert (job.state, job.spawn_error) == (State.STOPPED, "")


def test_a_process_that_appears_after_its_stop_is_known() -> None:
    """A stop that overtakes the launch does not lose the process."""
    job = Job(spec_of())
    job.step(events.Start(), 0.0)
    job.step(events.Stop(), 0.0)
    actions = job.step(events.Launched(1, PID), 0.0)

    assert (job.state, job.pid) == (State.STOPPING, PID)
    assert [action.kind for action in actions if isinstance(action, events.Happened)] == ["launched"]


def test_deaths_that_were_asked_for_are_no_deaths_before() -> None:
    """An operator's stop does not make the next death a second one."""
    job = bring(State.RUNNING)
    job.step(events.Stop(), 0.0)
    job.step(events.Exited(1, "SIGTERM"), 0.0)
    up(job, 1.0)
    job.step(events.Exited(2, 1), 2.0)

    assert (job.state, job.armed) == (State.BACKOFF, 2.0)


def test_restarts_are_those_by_itself() -> None:
    """`restarts` counts what policy started, not what people did."""
    job = bring(State.BACKOFF)
    job.step(events.Timer(job.token), 0.0)
    assert job.restarts == 1

    job.step(events.RestartJob(), 0.0)
    job.step(events.Exited(2, "SIGTERM"), 0.0)
    assert (job.restarts, job.run) == (1, 3)


def test_giving_up_says_after_how_many() -> None:
    """A job that is given up says so, and is failed even when its last end was a good one."""
    job = up(Job(spec_of(restart=Restart.ALWAYS, max_restarts=0)))
    job.step(events.Exited(1, 0), 0.0)
    job.step(events.Timer(job.token), 0.0)
    job.step(events.Exited(2, 0), 1.0)

    assert (job.state, str(job.result)) == (State.FAILED, "exit 0, gave up without a penalised restart")


# ---- killing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patience", "intervals"),
    [(10.0, [10, 20, 40, 60, 60]), (0.0, [1, 2, 4, 8, 16, 32, 60, 60]), (300.0, [60, 60])],
)
def test_sigkill_is_sent_again_ever_more_rarely(patience: float, intervals: list[float]) -> None:
    """Each SIGKILL waits twice as long for the next, a second at least and a minute at most."""
    job = bring(State.RUNNING, kill_timeout=patience)
    now = 0.0
    job.step(events.Stop(now=True), now)
    for interval in intervals:
        assert interval <= MAX_KILL_INTERVAL
        assert job.armed == now + interval
        now += interval
        actions = job.step(events.Timer(job.token), now)
        assert events.Kill("job", 1) in actions
        assert events.Warn("job", 1, PID, "does not die of SIGKILL") in actions


@pytest.mark.parametrize(
    "what", [events.Stop(), events.RestartJob(), events.Remove(), events.Shutdown()], ids=repr
)
def test_the_end_of_patience_keeps_the_wish(what: Input) -> None:
    """SIGKILL changes how a job leaves, not what follows."""
    job = bring(State.RUNNING)
    job.step(what, 0.0)
    following = job.next
    job.step(events.Timer(job.token), 10.0)

    assert (job.state, job.next) == (State.KILLING, following)


# ---- what is told -------------------------------------------------------------------------------


def test_a_restart_by_policy_is_told_in_order() -> None:
    """Death, restart, launch: and the state with each."""
    job = bring(State.RUNNING)
    actions = job.step(events.Exited(1, 1), 0.0)
    actions += job.step(events.Timer(job.token), 0.0)
    actions += job.step(events.Launched(2, NEW_PID), 0.0)
    told = [(a.kind, a.state, a.run, a.pid) for a in actions if isinstance(a, events.Happened)]

    assert told == [
        ("died", State.BACKOFF, 1, PID),
        ("restarting", State.STARTING, 2, NEW_PID),
        ("launched", State.STARTING, 2, NEW_PID),
    ]


def test_a_restart_by_people_is_told_as_death_and_launch() -> None:
    """Only policy restarts; a person's restart is a death and a launch."""
    job = bring(State.RUNNING)
    actions = job.step(events.RestartJob(Cause(Kind.RESTART, reason="deploy")), 0.0)
    actions += job.step(events.Exited(1, "SIGTERM"), 0.0)
    actions += job.step(events.Launched(2, NEW_PID), 0.0)
    told = [(a.kind, a.state, a.run, a.pid) for a in actions if isinstance(a, events.Happened)]

    assert told == [
        ("state", State.STOPPING, 1, PID),
        ("died", State.STARTING, 1, PID),
        ("launched", State.STARTING, 2, NEW_PID),
    ]


def test_the_lines_of_the_log_name_what_died() -> None:
    """The line that tells of a death has the run and the pid of what died; those after it have not."""
    job = bring(State.RUNNING, restart=Restart.NEVER)
    actions = job.step(events.RestartJob(), 0.0)
    actions += job.step(events.Exited(1, "SIGTERM"), 0.0)
    actions += job.step(events.SpawnFailed(2, "exec", errno.ENOENT, "no such file"), 0.0)
    lines = [(a.after, a.pid) for a in actions if isinstance(a, events.Changed)]

    assert lines == [(State.STOPPING, PID), (State.STARTING, PID), (State.FAILED, None)]


def test_a_restart_by_policy_that_never_is_a_process_is_not_told() -> None:
    """Nobody hears of a restart without a launch behind it: it failed, and its next try has one."""
    job = bring(State.BACKOFF)
    told = []
    for run, what in ((2, events.SpawnFailed(2, "exec", errno.ENOENT, "no")), (3, events.Launched(3, PID))):
        actions = job.step(events.Timer(job.token), 0.0)
        assert job.run == run
        actions += job.step(what, 0.0)
        told += [action.kind for action in actions if isinstance(action, events.Happened)]

    assert told == ["state", "restarting", "launched"]


def test_a_restart_by_people_before_the_process_of_one_by_policy() -> None:
    """Policy's restart is called off before it is a process: what comes then is a person's, and told so."""
    job = bring(State.BACKOFF)
    job.step(events.Timer(job.token), 0.0)
    job.step(events.RestartJob(), 0.0)
    job.step(events.SpawnFailed(2, "", 0, "called off"), 0.0)
    actions = job.step(events.Launched(3, PID), 0.0)

    assert [action.kind for action in actions if isinstance(action, events.Happened)] == ["launched"]


def test_a_spawn_that_failed_before_a_process_is_no_death() -> None:
    """Where nothing was launched nothing died."""
    job = Job(spec_of())
    job.step(events.Start(), 0.0)
    actions = job.step(events.SpawnFailed(1, "fork", errno.ENOMEM, "no memory"), 0.0)

    assert [action.kind for action in actions if isinstance(action, events.Happened)] == ["state"]


def test_the_cause_is_what_was_given() -> None:
    """Who asked stands in the line of the log."""
    job = bring(State.RUNNING)
    by = Cause(Kind.STOP, actor=Actor(0, 7), reason="deploy 17")
    actions = job.step(events.Stop(by=by), 0.0)

    assert [action.cause for action in actions if isinstance(action, events.Changed)] == [by]
    assert job.cause is by


@pytest.mark.parametrize(("status", "words"), [(7, "exit 7"), ("SIGKILL", "SIGKILL"), (None, "unknown")])
def test_a_status_in_words(status: events.Status, words: str) -> None:
    """A status is an exit code, a signal, or honestly unknown."""
    assert str(exited(status)) == words


# ---- what only a changed expression shows ---------------------------------------------------------

REMOVED = Cause(Kind.REMOVED)
DEPLOY = Cause(Kind.RESTART, reason="deploy 17")
LOST = Cause(Kind.REQUIREMENT, "failed", ("db",))


def changes(actions: list[Action]) -> list[events.Changed]:
    """The lines of the log about another state."""
    return [action for action in actions if isinstance(action, events.Changed)]


def test_a_bug_is_told_whole() -> None:
    """What the table calls impossible is told with the job, the state and the input."""
    what = events.Exited(0, 1)

    assert bring(State.STOPPED).step(what, 20.0) == [events.Impossible("job", State.STOPPED, what, ())]


def test_a_job_that_ended_and_is_removed_is_stopped_by_that() -> None:
    """The log says when it was stopped, and that the removal did it."""
    job = bring(State.EXITED)
    actions = job.step(events.Remove(), 20.0)

    assert changes(actions) == [events.Changed("job", 1, None, State.EXITED, State.STOPPED, REMOVED)]
    assert job.since == 20.0


@pytest.mark.parametrize("state", [State.STARTING, State.RUNNING, State.STOPPING], ids=named)
def test_a_removal_at_once_kills(state: State) -> None:
    """Removed without patience: SIGKILL at that time, for the removal, and then it is gone."""
    job = bring(state)
    actions = job.step(events.Remove(now=True), 20.0)

    assert (job.state, job.next, job.cause, job.since) == (State.KILLING, Next.REMOVE, REMOVED, 20.0)
    assert events.Kill("job", 1) in actions
    assert events.Removed("job") in job.step(events.Exited(1, "SIGKILL"), 21.0)


def test_a_removal_at_once_of_what_is_being_killed_waits() -> None:
    """SIGKILL is sent again by time, and not for a removal."""
    job = bring(State.KILLING)

    assert job.step(events.Remove(now=True), 20.0) == []
    assert job.next is Next.REMOVE


@pytest.mark.parametrize("state", [State.STOPPING, State.KILLING], ids=named)
def test_what_is_wanted_again_while_it_is_removed_is_only_stopped(state: State) -> None:
    """The removal under way becomes a stop when the configuration has the job again."""
    job = bring(state)
    job.step(events.Remove(), 20.0)
    job.step(events.SpecChanged(job.spec), 20.0)

    assert job.next is Next.STOP


def test_a_job_whose_requirements_are_ready_is_free() -> None:
    """Nothing holds it any more, and the cause of its run names who wanted it."""
    job = bring(State.WAITING)
    job.step(events.Release(), 20.0)

    assert (job.state, job.held, str(job.cause)) == (State.STARTING, (), "start; its requirements are ready")


def test_each_loss_of_a_requirement_is_an_ending() -> None:
    """A job that waits in vain twice has been given up twice."""
    job = bring(State.WAITING)
    job.step(events.RequirementLost(LOST), 0.0)
    job.step(events.Start(), 0.0)
    job.step(events.RequirementLost(LOST), 0.0)

    assert job.endings == 2


@pytest.mark.parametrize(("penalty", "cause"), [(15.0, "penalty over"), (0.0, "restart")])
def test_a_restart_by_policy_says_whether_it_waited(penalty: float, cause: str) -> None:
    """After a penalty the cause of the run says so; without one it is a restart."""
    job = up(Job(spec_of(restart_penalty=penalty)))
    job.step(events.Exited(1, 1), 0.0)
    job.step(events.Timer(job.token), 0.0)  # the first death is never penalised
    job.step(events.Launched(2, PID), 0.0)
    job.step(events.Exited(2, 1), 0.0)
    job.step(events.Timer(job.token), penalty)

    assert (job.run, job.state, str(job.cause), str(job.wanted)) == (3, State.STARTING, cause, cause)


def test_a_leader_that_dies_first_gives_the_exit_code() -> None:
    """The status of the leader counts for the daemon, not how the rest of the run ended."""
    job = bring(State.RUNNING, restart=Restart.NEVER)
    job.step(events.LeaderDied(1, 7), 0.0)
    job.step(events.Exited(1, "SIGTERM"), 0.0)

    assert (job.state, job.exit_code, job.cause) == (State.FAILED, 7, exited(7))


def test_a_silent_job_gives_the_exit_code_of_a_failure() -> None:
    """A job that its watchdog ended has failed with 1, whatever its own status was."""
    job = bring(State.RUNNING, restart=Restart.NEVER)
    job.step(events.WatchdogExpired(1), 0.0)
    job.step(events.Exited(1, 0), 0.0)

    assert (job.state, job.exit_code) == (State.FAILED, 1)


def test_a_removal_ends_with_the_death() -> None:
    """The log says when the last process died and how, and then that the job is removed."""
    job = bring(State.RUNNING)
    job.step(events.Remove(), 20.0)
    actions = job.step(events.Exited(1, "SIGTERM"), 25.0)
    (line,) = changes(actions)

    assert line == events.Changed("job", 1, PID, State.STOPPING, State.STOPPED, exited("SIGTERM"))
    assert [each.kind for each in actions if isinstance(each, events.Happened)] == ["died", "removed"]
    assert (job.since, job.cause) == (25.0, exited("SIGTERM"))


def test_a_new_run_after_a_stop_is_logged_with_the_end_of_the_run_before() -> None:
    """The line of the log says how the run before ended; the job itself, who wanted the new one."""
    job = bring(State.RUNNING)
    job.step(events.RestartJob(DEPLOY), 20.0)
    actions = job.step(events.Exited(1, "SIGTERM"), 25.0)
    (line,) = changes(actions)

    assert line == events.Changed("job", 1, PID, State.STOPPING, State.STARTING, exited("SIGTERM"))
    assert job.cause == DEPLOY


def test_a_restart_that_is_held_says_for_what_it_waits() -> None:
    """What the job comes after is not ready once its old run is gone: the cause names it."""
    job = bring(State.RUNNING)
    job.step(events.RestartJob(DEPLOY), 20.0)
    job.step(events.Hold(("db",)), 20.0)
    job.step(events.Exited(1, "SIGTERM"), 25.0)

    assert (job.state, str(job.cause)) == (State.WAITING, "waiting for db; deploy 17")


def test_what_waits_for_something_else_says_so() -> None:
    """The cause of a job that waits follows what it waits for; that of any other stays."""
    waiting, running = bring(State.WAITING), bring(State.RUNNING)
    for job in (waiting, running):
        job.step(events.Hold(("cache",)), 20.0)

    assert (str(waiting.cause), str(running.cause)) == ("waiting for cache; start", "launched")


def test_a_timer_of_the_state_before_is_dropped() -> None:
    """The start-timeout that fires while its job is being stopped does not end the time to stop."""
    job = bring(State.STARTING, start_timeout=60.0)
    start_timeout = job.token
    job.step(events.Stop(), 20.0)

    assert job.step(events.Timer(start_timeout), 60.0) == []
    assert job.state is State.STOPPING


def test_a_job_that_is_ready_says_so() -> None:
    """The cause of running is what was waited for."""
    job = bring(State.STARTING, ready=READY)
    job.step(events.Ready(1), 20.0)

    assert (job.state, str(job.cause)) == (State.RUNNING, "ready")


@pytest.mark.parametrize(
    ("kind", "status", "losses"),
    [
        (JobType.SERVICE, 0, 2),
        (JobType.SERVICE, 1, 2),
        (JobType.ONESHOT, 0, 0),
        (JobType.ONESHOT, 1, 2),
    ],
)
def test_what_nobody_asked_for_is_a_loss(kind: JobType, status: int, losses: int) -> None:
    """Each end by itself is counted, but for the success of a oneshot; a stop is none."""
    job = Job(spec_of(type=kind, restart=Restart.NEVER))
    for _ in range(2):
        up(job)
        job.step(events.Exited(job.run, status), 0.0)
    up(job)
    job.step(events.Stop(), 0.0)
    job.step(events.Exited(job.run, "SIGTERM"), 0.0)

    assert (job.losses, job.deaths) == (losses, 3)
