"""All jobs: commands and their answers, waiters, the event log, shutdown. No I/O, no clock.

Inputs come by the methods, each with `now` (CLOCK_MONOTONIC seconds); what is to be done
collects in order and is fetched by `take`.
"""

from __future__ import annotations

from jobmon import waits
from jobmon.eventlog import EventLog
from jobmon.events import (
    LEAVING,
    Announce,
    Arm,
    Deliver,
    Disarm,
    Finish,
    Happened,
    Impossible,
    JobResult,
    Publish,
    Removed,
    Reply,
    RestartJob,
    Shutdown,
    Start,
    State,
    Stop,
    Timer,
)
from jobmon.machine import Job
from jobmon.spec import Essential

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from jobmon.events import Action, Input
    from jobmon.spec import JobSpec
    from jobmon.waits import Condition, Waiter

ENDED = frozenset((State.EXITED, State.FAILED))

# Which failure names the whole, when a command failed for several jobs: the last of these.
SEVERITY = (
    "already-started",
    "already-stopped",
    "not-running",
    "timeout",
    "failed",
    "could-not-start",
    "terminating",
)

TOLD_OF_A_BUG = 20  # events of a job that go with the report of a contradiction


class Supervisor:
    """The set of jobs. `wall` is what to add to `now` for unix time; the engine keeps it right."""

    def __init__(self, specs: Iterable[JobSpec], now: float = 0.0, wall: float = 0.0) -> None:
        self.jobs = {spec.name: Job(spec, now) for spec in specs}
        self.log = EventLog()
        self.wall = wall
        self.terminating = False
        self._actions: list[Action] = []
        self._published = 0
        self._live = 0
        self._all_told = False
        self._finished = False
        self._exit_code: int | str = 0
        self._unannounced: set[str] | None = None
        self._waiters: dict[int, Waiter] = {}
        self._waiting: dict[Hashable, Waiter] = {}
        self._watching: dict[str, dict[int, Waiter]] = {}
        self._last_key = 0

    def take(self) -> list[Action]:
        """What is to be done, in order; each action is handed out once."""
        actions, self._actions = self._actions, []
        if self._published != self.log.last:
            self._published = self.log.last
            actions.append(Publish())
        return actions

    # ---- what happens ---------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """Start the autostart jobs; Announce follows when each is launched or has failed."""
        names = [name for name, job in self.jobs.items() if job.spec.autostart]
        self._unannounced = set(names)
        for name in names:
            self.feed(name, Start("autostart"), now)
        self._announce()

    def feed(self, name: str, what: Input, now: float) -> None:
        """Something happened to a job."""
        job = self.jobs.get(name)
        if job is None:
            return
        was_alive, was_ended = job.alive, job.state in ENDED
        actions = job.step(what, now)
        self._live += job.alive - was_alive
        for action in actions:
            if type(action) is Happened:
                self._record(action, now)
            elif type(action) is Removed:
                self._forget(job, now)
            elif type(action) is Impossible:
                self._actions.append(action.replace(history=self.log.history(name, TOLD_OF_A_BUG)))
            else:
                self._actions.append(action)
        self._look(job, now)  # before its end becomes everybody's: who waits hears how it ended
        if job.state in ENDED and not was_ended:
            self._mind_essential(job, now)

    def timer(self, key: object, token: int, now: float) -> None:
        """What was armed for `key` fired."""
        if isinstance(key, str):
            self.feed(key, Timer(token), now)
        elif isinstance(key, int) and (waiter := self._waiters.get(key)) is not None:
            waiter.timed = False
            for name in list(waiter.pending):
                waiter.settle(JobResult(name, "timeout", f"timed out: it is {self._plight(name)}"))
            self._answer(waiter)

    def drop(self, to: Hashable) -> None:
        """Whoever `to` is has gone: nobody waits there any more."""
        waiter = self._waiting.get(to)
        if waiter is not None:
            self._dismiss(waiter)

    # ---- commands: each is answered exactly once ------------------------------------------

    def start(
        self,
        names: Sequence[str],
        to: Hashable,
        now: float,
        *,
        wait: bool = False,
        timeout: float | None = None,
        by: str = "start",
    ) -> None:
        """Start jobs; answered when launched (or queued behind a stop), with `wait` when running."""
        condition = waits.up if wait else waits.launched
        self._command(names, to, now, Start(by), condition, timeout, self._refuse_start)

    def restart(
        self,
        names: Sequence[str],
        to: Hashable,
        now: float,
        *,
        wait: bool = False,
        timeout: float | None = None,
        by: str = "restart",
    ) -> None:
        """Give jobs a new run; answered as `start` is."""
        condition = waits.up if wait else waits.launched
        self._command(names, to, now, RestartJob(by), condition, timeout, self._refuse_restart)

    def stop(
        self,
        names: Sequence[str],
        to: Hashable,
        now: float,
        *,
        wait: bool = False,
        timeout: float | None = None,
        at_once: bool = False,
        by: str = "stop",
    ) -> None:
        """Stop jobs; answered when the signal is sent, with `wait` when the run is gone."""
        condition = waits.gone if wait else _at_once
        self._command(names, to, now, Stop(at_once, by), condition, timeout, self._refuse_stop)

    def wait(self, names: Sequence[str], to: Hashable, now: float, *, timeout: float | None = None) -> None:
        """Answer when each job has changed between RUNNING and STOPPED."""
        self._command(names, to, now, None, waits.changed, timeout, self._refuse_wait)

    def signal(self, names: Sequence[str], signal: str, to: Hashable, *, every: bool = False) -> None:
        """Send a signal to the leaders of jobs, or to every process of theirs."""
        if self._unknown(names, to):
            return
        results = []
        for name in dict.fromkeys(names):
            job = self.jobs[name]
            if (job.pid if every else job.leader) is None:
                results.append(JobResult(name, "not-running", "is not running"))
            else:
                self._actions.append(Deliver(name, job.run, signal, every))
                results.append(JobResult(name))
        self._reply(to, results, self.log.last)

    def terminate(self, now: float) -> None:
        """Stop everything and end. A second time: without patience."""
        if self.terminating:
            self._each(Stop(True, "shutdown"), now, live_only=True)
            return
        self.terminating = True
        self._each(Shutdown(), now)
        self._all_told = True
        self._finish(now)

    # ---- inside ---------------------------------------------------------------------------

    def _each(self, what: Input, now: float, *, live_only: bool = False) -> None:
        for name, job in list(self.jobs.items()):
            if job.alive or not live_only:
                self.feed(name, what, now)

    def _command(
        self,
        names: Sequence[str],
        to: Hashable,
        now: float,
        what: Input | None,
        condition: Condition,
        timeout: float | None,
        refusal: Callable[[Job], JobResult | None],
    ) -> None:
        if self._unknown(names, to):
            return
        self._last_key += 1
        waiter = waits.Waiter(self._last_key, to, condition, self.log.last)
        wanted = []
        for name in dict.fromkeys(names):
            job = self.jobs[name]
            refused = refusal(job)
            if refused is not None:
                waiter.settle(refused)
            else:
                waiter.pending[name] = waits.mark(job)
            if refused is None or refused.code != "terminating":
                wanted.append(name)  # "already": the table knows what that comes to
        self._register(waiter, timeout, now)
        for name in wanted:
            if what is not None:
                self.feed(name, what, now)
            else:
                waiter.look(self.jobs[name])
        if not waiter.pending and waiter.key in self._waiters:
            self._answer(waiter)

    def _unknown(self, names: Sequence[str], to: Hashable) -> bool:
        unknown = [name for name in dict.fromkeys(names) if name not in self.jobs]
        if unknown:
            results = tuple(JobResult(name, "no-such-job", "no such job") for name in unknown)
            self._actions.append(Reply(to, False, results, "no-such-job", "no such job", self.log.last))
        return bool(unknown)

    def _refuse_start(self, job: Job) -> JobResult | None:
        if self.terminating:
            return JobResult(job.spec.name, "terminating", "the supervisor is terminating")
        if job.state in (State.STARTING, State.RUNNING):
            return JobResult(job.spec.name, "already-started", "is already running")
        return None

    def _refuse_restart(self, job: Job) -> JobResult | None:
        if self.terminating:
            return JobResult(job.spec.name, "terminating", "the supervisor is terminating")
        return None

    def _refuse_stop(self, job: Job) -> JobResult | None:
        if not job.alive and job.state is not State.BACKOFF:
            return JobResult(job.spec.name, "already-stopped", "is already stopped")
        return None

    def _refuse_wait(self, job: Job) -> JobResult | None:
        if self.terminating and not job.alive:
            return JobResult(job.spec.name, "terminating", "is down, and the supervisor is terminating")
        return None

    def _mind_essential(self, job: Job, now: float) -> None:
        """A job has ended by itself. If the daemon lives for it, that is the daemon's end too."""
        essential = job.spec.essential
        failed = job.state is State.FAILED
        counts = essential is Essential.YES or (essential is Essential.ON_FAILURE and failed)
        if counts and not self.terminating:
            self._exit_code = job.exit_code
            self.terminate(now)

    def _record(self, event: Happened, now: float) -> None:
        self.log.add(now + self.wall, event.job, event.kind, event.state, event.run, event.pid, event.cause)

    def _forget(self, job: Job, now: float) -> None:
        self._look(job, now)  # its end may be what somebody waits for
        del self.jobs[job.spec.name]
        self._give_up(job, "failed", "was removed")

    def _look(self, job: Job, now: float) -> None:
        watching = self._watching.get(job.spec.name)
        if watching:
            for waiter in list(watching.values()):
                if waiter.look(job):
                    self._answer(waiter)
                elif job.spec.name not in waiter.pending:
                    self._unwatch(job.spec.name, waiter)
        if self.terminating and not job.alive:
            self._give_up(job, "terminating", "is down, and the supervisor is terminating")
        if self._unannounced:
            if job.pid is not None or job.state is not State.STARTING:
                self._unannounced.discard(job.spec.name)
            self._announce()
        if self._all_told:
            self._finish(now)

    def _announce(self) -> None:
        if self._unannounced is not None and not self._unannounced:
            self._unannounced = None
            self._actions.append(Announce())

    def _finish(self, now: float) -> None:
        if self._finished or self._live:
            return
        self._finished = True
        self.log.add(now + self.wall, "", "terminated", State.STOPPED, 0, None, "shutdown")
        self._published = self.log.last
        self._actions += (Publish(), Finish(self._exit_code))

    def _plight(self, name: str) -> str:
        job = self.jobs[name]
        whose = f" (pid {job.pid})" if job.pid is not None else ""
        return f"{'still ' if job.state in LEAVING else ''}{job.state.value}{whose}"

    # ---- waiters --------------------------------------------------------------------------

    def _register(self, waiter: Waiter, timeout: float | None, now: float) -> None:
        self._waiters[waiter.key] = self._waiting[waiter.to] = waiter
        for name in waiter.pending:
            self._watching.setdefault(name, {})[waiter.key] = waiter
        if timeout is not None and waiter.pending:
            waiter.timed = True
            self._actions.append(Arm(waiter.key, 0, now + timeout))

    def _unwatch(self, name: str, waiter: Waiter) -> None:
        watching = self._watching.get(name)
        if watching is not None:
            watching.pop(waiter.key, None)
            if not watching:
                del self._watching[name]

    def _dismiss(self, waiter: Waiter) -> None:
        del self._waiters[waiter.key], self._waiting[waiter.to]
        for name in (*waiter.pending, *(result.job for result in waiter.results)):
            self._unwatch(name, waiter)
        if waiter.timed:
            self._actions.append(Disarm(waiter.key))

    def _answer(self, waiter: Waiter) -> None:
        self._dismiss(waiter)
        self._reply(waiter.to, waiter.results, waiter.token)

    def _reply(self, to: Hashable, results: Sequence[JobResult], token: int) -> None:
        failed = [result for result in results if result.code]
        if not failed:
            self._actions.append(Reply(to, True, tuple(results), token=token))
            return
        worst = max(failed, key=lambda result: SEVERITY.index(result.code))
        self._actions.append(Reply(to, False, tuple(results), worst.code, worst.message, token))

    def _give_up(self, job: Job, code: str, message: str) -> None:
        """What anybody still waits for on this job can hold no more."""
        for waiter in list(self._watching.get(job.spec.name, {}).values()):
            waiter.settle(JobResult(job.spec.name, code, message))
            self._unwatch(job.spec.name, waiter)
            if not waiter.pending:
                self._answer(waiter)


def _at_once(job: Job, _since: waits.Mark) -> JobResult | None:
    return JobResult(job.spec.name)
