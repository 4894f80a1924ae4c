"""All jobs: commands and their answers, order, the event log, shutdown. No I/O, no clock.

Inputs come by the methods, each with `now` (CLOCK_MONOTONIC seconds); what is to be done
collects in order and is fetched by `take`.
"""

from __future__ import annotations

from jobmon import waits
from jobmon.eventlog import EventLog
from jobmon.events import (
    AT_REST,
    AllReady,
    Announce,
    Deliver,
    Finish,
    Happened,
    Hold,
    Impossible,
    JobResult,
    Next,
    Publish,
    Release,
    Remove,
    Removed,
    Reply,
    RequirementLost,
    RestartJob,
    Shutdown,
    SpecChanged,
    Start,
    State,
    Stop,
    Timer,
)
from jobmon.machine import Job
from jobmon.order import Order
from jobmon.spec import Essential
from jobmon.waiters import Waiters
from jobmon.waits import Quorum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from jobmon.events import Action, Input
    from jobmon.plan import Plan
    from jobmon.spec import JobSpec
    from jobmon.waits import Condition, Waiter

ENDED = frozenset((State.EXITED, State.FAILED))
# A job in one of these may yet become ready, and what comes after it waits for that.
COMING = frozenset((State.WAITING, State.STARTING, State.BACKOFF))
# Nothing of it lives, but it would come up by itself.
PENDING = frozenset((State.WAITING, State.BACKOFF))

TOLD_OF_A_BUG = 20  # events of a job that go with the report of a contradiction


class Supervisor:
    """The set of jobs. `wall` is what to add to `now` for unix time; the engine keeps it right."""

    def __init__(self, specs: Iterable[JobSpec], now: float = 0.0, wall: float = 0.0) -> None:
        self.jobs = {spec.name: Job(spec, now) for spec in specs}
        self.order = Order(job.spec for job in self.jobs.values())
        self.log = EventLog(self.jobs)
        self.wall = wall
        self.terminating = False
        self.waiters = Waiters(self.jobs, self._do)
        self._actions: list[Action] = []
        self._published = 0
        self._live = 0
        self._all_told = False
        self._finished = False
        self._exit_code: int | str = 0
        self._unannounced: set[str] | None = None
        self._unready: set[str] | None = None
        self._changed: list[tuple[Job, State]] = []  # what others do not know yet
        self._passing_on = False
        self._leaving: dict[str, Input] = {}  # what is to be stopped once nothing needs it any more
        self._bring_back: dict[str, list[str]] = {}  # what a restart of it took down

    def take(self) -> list[Action]:
        """What is to be done, in order; each action is handed out once."""
        actions, self._actions = self._actions, []
        if self._published != self.log.last:
            self._published = self.log.last
            actions.append(Publish())
        return actions

    # ---- what happens ---------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """Start the autostart jobs and what they require. Announce follows when each is launched,
        waiting or given up; AllReady when each is ready or given up."""
        for name in self.order.after:
            self._refresh(name, now)
        names = [name for name, job in self.jobs.items() if job.spec.autostart]
        self._unannounced, self._unready = set(names), set(names)
        for name in self.order.sort(names):
            self._start_requirements(name, now)
            self._start(name, "autostart", now)
        self._announce()

    def feed(self, name: str, what: Input, now: float) -> None:
        """Something happened to a job."""
        job = self.jobs.get(name)
        if job is None:
            return
        was_alive, before, following = job.alive, job.state, job.next
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
        if actions or job.next is not following:
            self._look(job, now)  # before its end becomes everybody's: who waits hears how it ended
            if job.state is not before or job.next is not following or name not in self.jobs:
                self._changed.append((job, job.state))
                self._pass_all_on(now)

    def timer(self, key: object, token: int, now: float) -> None:
        """What was armed for `key` fired."""
        if isinstance(key, str):
            self.feed(key, Timer(token), now)
        else:
            self.waiters.timer(key, now)

    def drop(self, to: Hashable) -> None:
        """Whoever `to` is has gone: nobody waits there any more."""
        self.waiters.drop(to)

    # ---- commands: each is answered exactly once ------------------------------------------

    def start(
        self,
        names: Sequence[str],
        to: Hashable,
        now: float,
        *,
        wait: bool = False,
        until: tuple[str, Condition] | None = None,
        timeout: float | None = None,
        by: str = "start",
    ) -> None:
        """Start jobs, after what they require. Answered when they are launched (or queued), with
        `wait` when they are ready, with `until` when that condition holds."""
        if self._unknown(names, to):
            return
        waiter = self._waiter(to, until or _up_or_launched(wait))
        wanted = []
        for name in self.order.sort(names):
            refused = self._refuse_start(self.jobs[name])
            self._expect(waiter, name, refused, waits.START)
            if refused is None or refused.code != "terminating":
                wanted.append(name)  # "already": the table knows what that comes to
        self.waiters.register(waiter, timeout, now)
        for name in wanted:
            self._start_requirements(name, now)
            self._stay(name, now)
            self._start(name, by, now)
        self._see(waiter, now)

    def restart(
        self,
        names: Sequence[str],
        to: Hashable,
        now: float,
        *,
        wait: bool = False,
        until: tuple[str, Condition] | None = None,
        timeout: float | None = None,
        by: str = "restart",
    ) -> None:
        """Give jobs a new run, and what requires them too; answered as `start` is."""
        if self._unknown(names, to):
            return
        waiter = self._waiter(to, until or _up_or_launched(wait))
        for name in dict.fromkeys(names):
            self._expect(waiter, name, self._refuse_restart(self.jobs[name]), waits.START)
        self.waiters.register(waiter, timeout, now)
        if not self.terminating:
            for name in self.order.sort(names):
                self._restart(name, by, now)
        if not wait and until is None:
            for name in self._leaving:  # it waits for its turn: that is queued too
                waiter.settle(JobResult(name))
        self._see(waiter, now)

    def stop(
        self,
        names: Sequence[str],
        to: Hashable,
        now: float,
        *,
        wait: bool = False,
        until: tuple[str, Condition] | None = None,
        timeout: float | None = None,
        at_once: bool = False,
        by: str = "stop",
    ) -> None:
        """Stop jobs, after what requires them. Answered when the signal is sent (or queued), with
        `wait` when nothing of the run is left, with `until` when that condition holds."""
        if self._unknown(names, to):
            return
        waiter = self._waiter(to, until or (("stop", waits.gone) if wait else ("stop", waits.at_once)))
        for name in dict.fromkeys(names):
            self._expect(waiter, name, self._refuse_stop(self.jobs[name]), waits.STOP)
        self.waiters.register(waiter, timeout, now)
        for name in reversed(self.order.sort(names)):  # else the end of one could be the start of the next
            self._stay_down(name)
            self._stop_in_order(name, Stop(at_once, by), now)
        self._see(waiter, now)

    def wait(
        self,
        names: Sequence[str],
        to: Hashable,
        now: float,
        *,
        until: tuple[str, Condition] = ("changed", waits.changed),
        any_of: bool = False,
        since: int | None = None,
        fresh: bool = True,
        timeout: float | None = None,
    ) -> None:
        """Answer when a condition holds for all jobs at the same moment, or for one with `any_of`.

        Edges count from now, or from the event number `since`. `fresh`: the client starts nothing
        after this that could bring up what is down now.
        """
        if self._unknown(names, to):
            return
        if since is not None and not self.log.holds(since):
            why = "is not known any more" if since < self.log.last else "has not happened yet"
            message = f"event {since} {why}"
            self._actions.append(Reply(to, False, (), "bad-request", message, self.log.last))
            return
        waiter = self._waiter(to, until, Quorum.ANY if any_of else Quorum.ALL)
        for name in dict.fromkeys(names):
            waiter.marks[name] = self._mark(name, since, fresh=fresh and since is None)
        self.waiters.register(waiter, timeout, now)
        for name in dict.fromkeys(names):
            if self.terminating:
                self._fail_at_the_end(name)
        self._see(waiter, now)

    def signal(
        self,
        names: Sequence[str],
        signal: str,
        to: Hashable,
        now: float = 0.0,
        *,
        every: bool = False,
        by: str = "signal",
    ) -> None:
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
                cause = f"{signal}, {by}"
                self._record(Happened(name, "signalled", job.state, job.run, job.pid, cause), now)
                results.append(JobResult(name))
        self.waiters.reply(to, results, self.log.last)

    def terminate(self, now: float) -> None:
        """Stop everything, what comes after others before them, and end. A second time: without
        patience and order."""
        if self.terminating:
            self._leaving.clear()
            for name, job in list(self.jobs.items()):
                if job.alive:
                    self.feed(name, Stop(True, "shutdown"), now)
            return
        self.terminating = True
        self._bring_back.clear()
        up = [name for name, job in self.jobs.items() if job.alive and job.next is None]
        self._leaving = dict.fromkeys(up, Shutdown())
        for name in list(self.jobs):
            if name not in self._leaving:  # down, or going down: nothing of it is to come again
                self.feed(name, Shutdown(), now)
        self._let_leave(up, now)
        for name in self.jobs:
            self._fail_at_the_end(name)
        self._all_told = True
        self._finish(now)

    # ---- reload: another configuration ------------------------------------------------------

    def reload(
        self, plan: Plan, to: Hashable, now: float, *, restart: bool = False, by: str = "reload"
    ) -> None:
        """Go by another configuration: what is removed is stopped and forgotten, what is added is known
        and, with autostart, started; all else runs on, by the new rules where those count at once.
        Answered when that is ordered; with `restart`, when all that was stale has a new run and is ready."""
        if self.terminating:
            why = "the supervisor is terminating"
            self._actions.append(Reply(to, False, (), "terminating", why, self.log.last))
            return
        waiter = self._waiter(to, _up_or_launched(True))
        returned = self._take_in(plan, now)
        self._put_out(plan.removed, now)
        for name in self.order.sort(spec.name for spec in plan.added if spec.autostart):
            self._start_requirements(name, now)
            (self._restart if name in returned else self._start)(name, by, now)
        stale = [name for name, job in self.jobs.items() if job.stale and self._comes_back(name)]
        stale = self.order.sort(stale) if restart else []
        for name in stale:
            self._expect(waiter, name, None, waits.START)
        self.waiters.register(waiter, None, now)
        for name in stale:
            self._restart(name, by, now)
        for name in list(self.jobs):  # who waits for whom may be another by now
            self._refresh(name, now)
        self._let_leave(list(self._leaving), now)
        self._see(waiter, now)

    def _take_in(self, plan: Plan, now: float) -> set[str]:
        """Know what is added, and in which order all comes. Returns what an earlier reload has removed and
        is not gone yet: it stays, but that run of it ends."""
        returned = set()
        for change in plan.changed:
            self.feed(change.spec.name, SpecChanged(change.spec, change.restart), now)
        for spec in plan.added:
            if spec.name in self.jobs:
                returned.add(spec.name)
                self.feed(spec.name, SpecChanged(spec), now)
                if type(self._leaving.get(spec.name)) is Remove:
                    self._leaving[spec.name] = Stop(by="removed, and added again")
            else:
                self.jobs[spec.name] = Job(spec, now)
        # Those that are being removed keep their place in it until they are gone.
        self.order = Order(job.spec for job in self.jobs.values())
        return returned

    def _put_out(self, names: Sequence[str], now: float) -> None:
        """Remove jobs, after what requires them: that is removed too. In the order of the starts, as each
        orders the stop of those that require it, which a removal of theirs then replaces."""
        hopeless = (*waits.FAIL_AT_THE_END, waits.START)
        for name in self.order.sort(names):
            back = [other for other in self._bring_back.pop(name, ()) if other not in names]
            self._stay_down(name)
            self.waiters.give_up(name, "failed", "was removed", lambda w: w.name in hopeless)
            self._stop_in_order(name, Remove(), now)
            for other in back:
                if other in self.jobs:
                    self._stay(other, now)
                    self._start(other, f"restart of {name}", now)

    # ---- what one job's change means to others ----------------------------------------------

    def _pass_all_on(self, now: float) -> None:
        """Tell of the changes one after the other, those too that come of it: a chain may be long."""
        if self._passing_on:
            return
        self._passing_on = True
        try:
            while self._changed:
                self._pass_on(*self._changed.pop(0), now)
        finally:
            self._passing_on = False

    def _pass_on(self, job: Job, state: State, now: float) -> None:
        """A job is in another state: what comes after it, what requires it, the daemon."""
        name = job.spec.name
        if state in ENDED:
            self._mind_essential(job, state, now)
        if self.terminating and job.state in PENDING:
            self.feed(name, Shutdown(), now)  # it ended before its turn, and will not come back
        if job.state in AT_REST and not self._is_ready(name) and not self.terminating:
            self._take_down(job, now)
        self._refresh_after(name, now)
        if self._leaving and not job.alive:
            self._let_leave((name, *self.order.after.get(name, ())), now)

    def _take_down(self, job: Job, now: float) -> None:
        """A requirement is stopped or given up: so is what requires it, outermost first."""
        name = job.spec.name
        why = f"requires {name}, which is {job.state.value}" + (f": {job.cause}" if job.cause else "")
        for other in self.order.required_by.get(name, ()):
            if not self._is_wanted(other):
                continue
            if self.jobs[other].state is State.WAITING and job.state in ENDED:
                self.feed(other, RequirementLost(why), now)
            else:
                self._stop_in_order(other, Stop(by=why), now)

    def _refresh(self, name: str, now: float) -> None:
        """See whether a job has to wait for what it comes after."""
        job = self.jobs.get(name)
        if job is None or self.terminating:  # nothing is launched any more
            return
        reason = self._reason_to_wait(job)
        if reason and reason != job.held:
            self.feed(name, Hold(reason), now)
        elif not reason and job.held:
            self.feed(name, Release(), now)

    def _refresh_after(self, name: str, now: float) -> None:
        for other in self.order.before.get(name, ()):
            self._refresh(other, now)

    def _reason_to_wait(self, job: Job) -> str:
        names = []
        for other in self.order.after.get(job.spec.name, ()):
            earlier = self.jobs.get(other)
            if earlier is None or self._is_ready(other):
                continue
            if other in job.spec.requires or earlier.state in COMING or self._is_to_return(earlier):
                names.append(other)
        return f"waiting for {', '.join(names)}" if names else ""

    def _is_ready(self, name: str) -> bool:
        """Whether what requires it may be launched: not if its own end waits for theirs."""
        job = self.jobs.get(name)
        return job is not None and job.ready and name not in self._leaving

    def _is_to_return(self, job: Job) -> bool:
        """Whether it goes, or will go, only to come again."""
        to_restart = type(self._leaving.get(job.spec.name)) is RestartJob
        return to_restart or job.next in (Next.RESTART, Next.DECIDE)

    def _start(self, name: str, by: str, now: float) -> None:
        self._refresh(name, now)
        self.feed(name, Start(by), now)

    def _start_requirements(self, name: str, now: float) -> None:
        for need in self.order.needs(name):
            job = self.jobs.get(need)
            if job is not None:
                self._stay(need, now)
                if (job.state in AT_REST and not job.ready) or job.next is Next.STOP:
                    self._start(need, f"required by {name}", now)

    def _stay(self, name: str, now: float) -> None:
        """A stop that waits for its turn is called off: it is wanted up again."""
        if type(self._leaving.get(name)) is not Stop:
            return
        for need in self.order.needs(name):
            if type(self._leaving.get(need)) is RestartJob:  # it has to go for that, and comes back with it
                back = self._bring_back.setdefault(need, [])
                back[:] = [name, *(other for other in back if other != name)]
                return
        del self._leaving[name]
        why = "was started meanwhile"
        self.waiters.give_up(
            name, "failed", why, lambda w: name in w.marks and w.marks[name].command == waits.STOP
        )
        self._refresh_after(name, now)

    def _restart(self, name: str, by: str, now: float) -> None:
        """Take down what requires it, give it a new run, bring the others back."""
        back = [other for other in self.order.needed_by(name, self._is_wanted) if self._comes_back(other)]
        self._start_requirements(name, now)
        if back:
            before = self._bring_back.get(name, ())
            self._bring_back[name] = [*back, *(other for other in before if other not in back)]
        self._stop_in_order(name, RestartJob(by), now)

    def _stop_in_order(self, name: str, what: Input, now: float) -> None:
        """Stop a job once nothing that requires it lives; those first, what is asked for last."""
        by = f"requires {name}, which is to be {'restarted' if isinstance(what, RestartJob) else 'stopped'}"
        at_once = isinstance(what, Stop) and what.now
        names = self.order.needed_by(name, self._is_wanted)
        for other in names:
            waits_for = type(self._leaving.get(other))
            if waits_for is not Remove and (at_once or waits_for not in (Stop, Shutdown)):
                self._leaving[other] = Stop(at_once, by)
                self._bring_back.pop(other, None)  # that is now the business of `name`
        if type(self._leaving.get(name)) is not Remove:  # whoever comes later cannot keep it
            self._leaving[name] = what
        for other in (*names, name):
            self._refresh_after(other, now)
        self._let_leave((*names, name), now)

    def _let_leave(self, names: Iterable[str], now: float) -> None:
        """Stop those of them that are to be stopped and are needed by nothing that lives."""
        for name in names:
            if name in self._leaving and not self._is_needed(name):
                what = self._leaving.pop(name)
                self.feed(name, what, now)
                self._return(name, now)
                self._refresh_after(name, now)

    def _is_needed(self, name: str) -> bool:
        """Whether it lives, and something else that leaves too has to be gone before it."""
        job = self.jobs.get(name)
        edges = self.order.before if self.terminating else self.order.required_by
        others = edges.get(name, ()) if job is not None and job.alive else ()
        return any(other in self.jobs and self.jobs[other].alive for other in others)

    def _is_wanted(self, name: str) -> bool:
        job = self.jobs.get(name)
        return job is not None and (job.alive or job.state in PENDING)

    def _comes_back(self, name: str) -> bool:
        """Whether it would be up after what goes on now: nobody has asked for its end."""
        if any(name in back for back in self._bring_back.values()):
            return True
        leaves = type(self._leaving.get(name)) in (Stop, Remove)
        return not leaves and self.jobs[name].next not in (Next.STOP, Next.REMOVE)

    def _return(self, name: str, now: float) -> None:
        """A restart is on its way: what it took down may come up again after it."""
        for other in reversed(self._bring_back.pop(name, ())):
            job = self.jobs.get(other)
            if job is not None and other not in self._leaving and self._may_come(job):
                self._start(other, f"restart of {name}", now)

    def _may_come(self, job: Job) -> bool:
        """Whether all that it requires is ready, or on its way to be."""
        needs = [self.jobs[need] for need in job.spec.requires if need in self.jobs]
        return all(need.ready or need.state in COMING or self._is_to_return(need) for need in needs)

    def _stay_down(self, name: str) -> None:
        """No restart brings it back: neither it nor what requires it."""
        self._bring_back.pop(name, None)
        if self._bring_back:
            down = {name, *self.order.needed_by(name)}
            for back in self._bring_back.values():
                back[:] = [other for other in back if other not in down]

    def _mind_essential(self, job: Job, state: State, now: float) -> None:
        """A job has ended by itself. If the daemon lives for it, that is the daemon's end too."""
        essential = job.spec.essential
        failed = state is State.FAILED
        counts = essential is Essential.YES or (essential is Essential.ON_FAILURE and failed)
        if counts and not self.terminating:
            self._exit_code = job.exit_code
            self.terminate(now)

    # ---- inside ---------------------------------------------------------------------------

    def _do(self, action: Action) -> None:
        self._actions.append(action)

    def _waiter(self, to: Hashable, until: tuple[str, Condition], quorum: Quorum = Quorum.EACH) -> Waiter:
        return self.waiters.new(to, *until, quorum, self.log.last)

    def _expect(self, waiter: Waiter, name: str, refused: JobResult | None, command: str) -> None:
        if refused is not None:
            waiter.results[name] = refused
        else:
            waiter.marks[name] = waits.mark(self.jobs[name], command=command)

    def _see(self, waiter: Waiter, now: float) -> None:
        """The command is carried out: it may be answered already."""
        for name in list(waiter.marks):
            self.waiters.look_at(waiter, name, now)
        self.waiters.answer_if_known(waiter)

    def _mark(self, name: str, since: int | None, *, fresh: bool) -> waits.Mark:
        """The mark of now, or of the event number `since`: less what has happened after it."""
        mark = waits.mark(self.jobs[name], fresh=fresh)
        if since is None:
            return mark
        later = [event for event in self.log.after(since) if event[2] == name]
        launches = sum(event[3] == "launched" for event in later)
        deaths = sum(event[3] == "died" for event in later)
        endings = sum(event[4] in ENDED and event[3] in ("state", "died") for event in later)
        return mark.replace(
            run=0,  # the launches tell
            launches=mark.launches - launches,
            deaths=mark.deaths - deaths,
            endings=mark.endings - endings,
        )

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
        if job.state is State.WAITING:
            return JobResult(job.spec.name, "already-started", f"is already {job.cause}")
        return None

    def _refuse_restart(self, job: Job) -> JobResult | None:
        if self.terminating:
            return JobResult(job.spec.name, "terminating", "the supervisor is terminating")
        return None

    def _refuse_stop(self, job: Job) -> JobResult | None:
        if not job.alive and job.state not in PENDING:
            return JobResult(job.spec.name, "already-stopped", "is already stopped")
        return None

    def _record(self, event: Happened, now: float) -> None:
        self.log.add(now + self.wall, event.job, event.kind, event.state, event.run, event.pid, event.cause)

    def _forget(self, job: Job, now: float) -> None:
        self._look(job, now)  # its end may be what somebody waits for
        del self.jobs[job.spec.name]
        self.log.forget(job.spec.name)
        self.waiters.give_up(job.spec.name, "failed", "was removed", lambda _: True)

    def _look(self, job: Job, now: float) -> None:
        self.waiters.look(job.spec.name, now)
        if self.terminating:
            self._fail_at_the_end(job.spec.name)
        if self._unannounced and (job.pid is not None or job.state is not State.STARTING):
            self._unannounced.discard(job.spec.name)
        if self._unready and (job.ready or job.state in AT_REST):
            self._unready.discard(job.spec.name)
        self._announce()
        if self._all_told:
            self._finish(now)

    def _fail_at_the_end(self, name: str) -> None:
        """After the shutdown has begun nothing comes up any more."""
        job = self.jobs.get(name)
        if job is None:
            return
        message = "the supervisor is terminating"
        self.waiters.give_up(name, "terminating", message, lambda w: w.name in waits.FAIL_AT_THE_END)
        if not job.alive:
            message = f"is down, and {message}"
            self.waiters.give_up(name, "terminating", message, lambda w: w.name == "changed")

    def _announce(self) -> None:
        if self._unannounced is not None and not self._unannounced:
            self._unannounced = None
            self._actions.append(Announce())
        if self._unready is not None and not self._unready and self._unannounced is None:
            self._unready = None
            self._actions.append(AllReady())

    def _finish(self, now: float) -> None:
        if self._finished or self._live:
            return
        self._finished = True
        self.log.add(now + self.wall, "", "terminated", State.STOPPED, 0, None, "shutdown")
        self._published = self.log.last
        self._actions += (Publish(), Finish(self._exit_code))


def _up_or_launched(wait: bool) -> tuple[str, Condition]:
    return ("start", waits.up) if wait else ("start", waits.launched)
