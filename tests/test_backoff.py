"""Which deaths restart a job, and when: the arithmetic alone, then a job's life in virtual time."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from jobmon.core import events
from jobmon.core.backoff import SHORTAGES, Death, Past, Verdict, begin_anew, judge
from jobmon.core.causes import exited
from jobmon.core.events import State
from jobmon.core.machine import Job
from jobmon.core.spec import JobSpec, Restart

if TYPE_CHECKING:
    from jobmon.core.events import Status

BAD, GOOD = Death(False), Death(True)
UNSPAWNED = Death(False, unspawned=True)
SHORTAGE = Death(False, unspawned=True, shortage=True)


def spec_of(restart: Restart = Restart.ALWAYS, **settings: object) -> JobSpec:
    """A job with window 5 s and penalty 15 s."""
    return JobSpec(**({"name": "job", "command": "true", "restart": restart} | settings))  # type: ignore[arg-type]


# ---- one death ----------------------------------------------------------------------------------


def test_the_first_death_restarts_at_once() -> None:
    """A job that never died before is started again without delay, and its death is remembered."""
    assert judge(spec_of(), BAD, Past(), 100.0) == Verdict(0.0, Past(last_death=100.0, ends=1, alike=1))


EDGES = [(0.0, 15.0), (4.999, 15.0), (5.0, 15.0), (5.001, 0.0), (3600.0, 0.0)]


@pytest.mark.parametrize(("later", "delay"), EDGES)
def test_the_edge_of_the_window_after_a_death(later: float, delay: float) -> None:
    """A death within 5.000 s of the one before waits the penalty, a thousandth later it does not."""
    verdict = judge(spec_of(), BAD, Past(last_death=1000.0), 1000.0 + later)

    assert verdict.delay == delay


@pytest.mark.parametrize(("later", "delay"), EDGES)
def test_the_edge_of_the_window_after_a_penalty(later: float, delay: float) -> None:
    """The end of a penalty counts like a death: a crash loop stays penalised."""
    past = Past(last_death=985.0, penalty_end=1000.0, failures=1)
    verdict = judge(spec_of(), BAD, past, 1000.0 + later)

    assert verdict.delay == delay


@pytest.mark.parametrize(
    ("window", "later", "delay"), [(0.0, 0.0, 15.0), (0.0, 0.001, 0.0), (60.0, 60.0, 15.0)]
)
def test_the_window_is_the_configured_one(window: float, later: float, delay: float) -> None:
    """restart-window moves the edge."""
    verdict = judge(spec_of(restart_window=window), BAD, Past(last_death=0.0), later)

    assert verdict.delay == delay


def test_the_penalty_is_the_configured_one() -> None:
    """restart-penalty is how long a penalised job waits."""
    assert judge(spec_of(restart_penalty=0.25), BAD, Past(last_death=0.0), 1.0).delay == 0.25


POLICY = [
    (Restart.ALWAYS, GOOD, 0.0),
    (Restart.ALWAYS, BAD, 0.0),
    (Restart.ALWAYS, UNSPAWNED, 15.0),
    (Restart.ON_FAILURE, GOOD, None),
    (Restart.ON_FAILURE, BAD, 0.0),
    (Restart.ON_FAILURE, UNSPAWNED, 15.0),
    (Restart.NEVER, GOOD, None),
    (Restart.NEVER, BAD, None),
    (Restart.NEVER, UNSPAWNED, None),
    (Restart.ALWAYS, SHORTAGE, 15.0),
    (Restart.ON_FAILURE, SHORTAGE, 15.0),
    (Restart.NEVER, SHORTAGE, 15.0),
]


@pytest.mark.parametrize(("restart", "death", "delay"), POLICY, ids=str)
def test_policy(restart: Restart, death: Death, delay: float | None) -> None:
    """Each policy with each kind of first death; only what the daemon itself lacks is outside of policy."""
    verdict = judge(spec_of(restart), death, Past(), 100.0)

    assert (verdict.delay, verdict.gave_up) == (delay, False)
    assert verdict.past.last_death == 100.0


def test_the_shortages_are_the_daemons() -> None:
    """Processes, descriptors and memory are what the daemon may lack; a missing program is not its."""
    assert {errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM} == SHORTAGES


def test_penalised_restarts_are_counted_up_to_the_limit() -> None:
    """max-restarts penalised restarts are made, the next death is the last."""
    past, spec = Past(last_death=0.0), spec_of(max_restarts=2)
    first = judge(spec, BAD, past, 1.0)
    second = judge(spec, BAD, first.past, 2.0)
    third = judge(spec, BAD, second.past, 3.0)

    assert [v.past.failures for v in (first, second, third)] == [1, 2, 2]
    assert [v.delay for v in (first, second, third)] == [15.0, 15.0, None]
    assert [v.gave_up for v in (first, second, third)] == [False, False, True]


def test_no_limit_means_no_limit() -> None:
    """Without max-restarts a job is never given up."""
    assert judge(spec_of(), BAD, Past(last_death=0.0, failures=10_000), 1.0).delay == 15.0


def test_a_limit_of_none_still_restarts_at_once() -> None:
    """max-restarts 0 forbids penalised restarts only: a death out of the window is restarted."""
    spec = spec_of(max_restarts=0)

    assert judge(spec, BAD, Past(), 0.0).delay == 0.0
    assert judge(spec, BAD, Past(last_death=0.0), 1.0).gave_up


def test_a_death_that_is_no_restart_is_remembered_too() -> None:
    """A good end under on-failure is the previous death of the next one."""
    past = judge(spec_of(Restart.ON_FAILURE), GOOD, Past(), 10.0).past

    assert judge(spec_of(Restart.ON_FAILURE), BAD, past, 14.0).delay == 15.0


# ---- a life -------------------------------------------------------------------------------------


class Life:
    """A job whose processes live as long as they are told to, in virtual time."""

    def __init__(self, spec: JobSpec) -> None:
        self.job = Job(spec)
        self.now = 1000.0
        self.feed(events.Start())

    def feed(self, what: events.Input) -> None:
        """Something happens now."""
        self.job.step(what, self.now)

    def runs(self, seconds: float, status: Status = 1) -> float | None:
        """The program runs so long, then ends; for how long does the job wait then? (It then waits.)"""
        self.feed(events.Launched(self.job.run, 7))
        self.feed(events.Spawned(self.job.run))
        self.now += seconds
        self.feed(events.Exited(self.job.run, status))
        return self.waits()

    def cannot_run(self, number: int = errno.ENOENT) -> float | None:
        """The program cannot be executed; for how long does the job wait then? (It then waits.)"""
        self.feed(events.SpawnFailed(self.job.run, "exec", number, "no"))
        return self.waits()

    def waits(self) -> float | None:
        """Let the penalty pass, if there is one."""
        if self.job.state is not State.BACKOFF or self.job.armed is None:
            return None
        waited = self.job.armed - self.now
        self.now = self.job.armed
        self.feed(events.Timer(self.job.token))
        return waited


def test_a_crash_loop_stays_penalised() -> None:
    """At once after the first crash, 15 s after every later one, for as long as it crashes."""
    life = Life(spec_of())

    assert [life.runs(0.125) for _ in range(6)] == [0.0, 15.0, 15.0, 15.0, 15.0, 15.0]


@pytest.mark.parametrize(("lived", "delay"), [(4.999, 15.0), (5.0, 15.0), (5.001, 0.0)])
def test_the_edge_in_a_life(lived: float, delay: float) -> None:
    """The second run, and the one after a penalty, are measured by the same edge."""
    life = Life(spec_of())
    life.runs(100.0)
    assert life.runs(lived) == delay

    life = Life(spec_of())
    life.runs(1.0)
    assert life.runs(1.0) == 15.0
    assert life.runs(lived) == delay


def test_a_run_longer_than_the_window_begins_anew() -> None:
    """What was counted before a long run is forgotten, so it is not given up for old failures."""
    life = Life(spec_of(max_restarts=2))
    assert [life.runs(1.0) for _ in range(3)] == [0.0, 15.0, 15.0]

    assert life.runs(5.001) == 0.0
    assert [life.runs(1.0) for _ in range(3)] == [15.0, 15.0, None]
    assert life.job.state is State.FAILED


def test_an_operators_start_begins_anew() -> None:
    """A job that was given up gets all of its restarts again when somebody starts it."""
    life = Life(spec_of(max_restarts=1))
    assert [life.runs(1.0) for _ in range(3)] == [0.0, 15.0, None]

    life.feed(events.Start())
    assert [life.runs(1.0) for _ in range(2)] == [15.0, None]


def test_an_operators_stop_is_no_death() -> None:
    """A stop and a start between two crashes an hour apart penalise nothing."""
    life = Life(spec_of())
    life.runs(1.0)
    life.now += 3600.0
    life.feed(events.Launched(life.job.run, 7))
    life.feed(events.Stop())
    life.feed(events.Exited(life.job.run, "SIGTERM"))
    life.feed(events.Start())

    assert life.runs(1.0) == 0.0


def test_what_cannot_be_executed_waits_each_time() -> None:
    """A program that is missing is looked for every 15 s, the first time too."""
    life = Life(spec_of())

    assert [life.cannot_run() for _ in range(3)] == [15.0, 15.0, 15.0]
    assert life.runs(0.1) == 15.0


def test_what_cannot_be_executed_is_given_up_in_the_end() -> None:
    """max-restarts counts failed spawns too."""
    life = Life(spec_of(max_restarts=2))

    assert [life.cannot_run() for _ in range(3)] == [15.0, 15.0, None]
    assert (life.job.state, str(life.job.result)) == (State.FAILED, "no, gave up after 2 penalised restarts")


def test_a_shortage_ends_by_itself() -> None:
    """A job that is never restarted is still started once the daemon can."""
    life = Life(spec_of(Restart.NEVER))

    assert [life.cannot_run(errno.EAGAIN) for _ in range(3)] == [15.0, 15.0, 15.0]
    assert life.runs(100.0, 0) is None
    assert life.job.state is State.EXITED


SUCCESS = frozenset((0, 3, "SIGTERM", "SIGRTMIN+1"))


@pytest.mark.parametrize(
    ("status", "ok"),
    [
        (0, True),
        (3, True),
        ("SIGTERM", True),
        ("SIGRTMIN+1", True),
        (1, False),
        ("SIGKILL", False),
        (None, False),
    ],
    ids=str,
)
def test_success_codes(status: Status, ok: bool) -> None:
    """Exit codes and signals that are configured as success are one, all others and the unknown are not."""
    life = Life(spec_of(Restart.ON_FAILURE, success_codes=SUCCESS))
    waited = life.runs(100.0, status)

    assert waited == (None if ok else 0.0)
    assert life.job.state is (State.EXITED if ok else State.STARTING)


def test_zero_is_a_failure_where_it_is_not_listed() -> None:
    """success-codes replaces the default, it does not add to it."""
    life = Life(spec_of(Restart.NEVER, success_codes=frozenset((1,))))
    life.runs(100.0, 0)

    assert life.job.state is State.FAILED


def test_a_start_forgets_the_counts_and_makes_nothing_anew_without_them() -> None:
    """Who starts a job gives it all its restarts back; a job without a past shares that with all others."""
    past = Past(last_death=100.0, penalty_end=90.0, failures=2, ends=3, alike=2, cause=exited(1))
    calm = Past(last_death=100.0)

    assert begin_anew(past) == past.replace(failures=0, ends=0)
    assert begin_anew(calm) is calm
