"""Any commands to any jobs whose processes do anything: the promises of the supervisor hold.

Hypothesis writes the story; the kernel is simulated, and time moves only where the story says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from simkernel import SimKernel, Temper

from jobmon.core import conditions as waits
from jobmon.core import events, machine
from jobmon.core.events import AT_REST, LEAVING, Next, State
from jobmon.core.machine import TABLE, Job
from jobmon.core.ordering import Turns
from jobmon.core.plan import Change, Plan
from jobmon.core.spec import Essential, FdReadiness, JobSpec, JobType, Restart
from jobmon.core.supervisor import Supervisor
from jobmon.core.waiters import Waiters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jobmon.core.events import Action, Input, Reply

NAMES = ("a", "b", "c")
PATIENCE = 10.0
READY = FdReadiness(3)
LONG = 1000.0  # longer than any chain of timers that ends
SETTINGS = settings(
    max_examples=300,
    stateful_step_count=40,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
# What is broken shows in one of many stories; the first one will do.
CONTROL = settings(SETTINGS, phases=[Phase.generate], max_examples=3000)

some_names = st.lists(st.sampled_from((*NAMES * 6, "nobody")), min_size=1, max_size=3)
timeouts = st.sampled_from((None, None, 0.0, 1.0, 5.0, 10.0, 15.0))
# Delays that collide: with each other, with the window, the penalty and the patience.
delays = st.sampled_from((0.0, 1.0, 2.0, 4.999, 5.0, 5.001, 10.0, 15.0, 60.0))


def spec_of(restart: Restart, **settings_: object) -> JobSpec:
    """A job; its name comes later."""
    return JobSpec(name="", command="true", restart=restart, kill_timeout=PATIENCE, **settings_)  # type: ignore[arg-type]


specs = st.sampled_from(
    (
        spec_of(Restart.NEVER),
        spec_of(Restart.ALWAYS, autostart=True),
        spec_of(Restart.ALWAYS, ready=READY, start_timeout=10.0, autostart=True),
        spec_of(Restart.ALWAYS, max_restarts=2),
        spec_of(Restart.ON_FAILURE, autostart=True, max_restarts=0),
        spec_of(Restart.ON_FAILURE, ready=READY),
        spec_of(Restart.NEVER, autostart=True, essential=Essential.ON_FAILURE),
        spec_of(Restart.ON_FAILURE, essential=Essential.YES),
        spec_of(Restart.NEVER, type=JobType.ONESHOT),
        spec_of(Restart.ON_FAILURE, type=JobType.ONESHOT, autostart=True),
    )
)


def some_of(*names: str) -> st.SearchStrategy[tuple[str, ...]]:
    """Any of the names, in their order."""
    return st.sets(st.sampled_from(names)).map(lambda drawn: tuple(sorted(drawn)))


# What b, and what c, requires and comes after: so the graph has no cycle.
edges = st.tuples(some_of("a"), some_of("a"), some_of("a", "b"), some_of("a", "b"))
# Most processes do as they are told, so that there is often something that others can wait for.
tempers = st.sampled_from((*[Temper.OBEYS] * len(Temper), *Temper))
conditions = st.sampled_from(("changed", *waits.CONDITIONS, waits.STABLE))
untils = st.one_of(st.none(), st.none(), conditions)
STEADY = 5.0  # seconds of being ready that are stable
COMING = (State.WAITING, State.STARTING, State.BACKOFF)
ENDED = (State.EXITED, State.FAILED)


def until_of(name: str | None) -> tuple[str, waits.Condition] | None:
    """A condition as the daemon passes it."""
    return None if name is None else (name, waits.condition(name, STEADY))


class Request(NamedTuple):
    """A command that is not answered yet. `seq` is the event number of its baseline."""

    command: str
    names: tuple[str, ...]
    wait: bool
    deadline: float | None
    runs: dict[str, int]
    seq: int
    until: str | None = None
    any_of: bool = False
    fresh: bool = False
    at: float = 0.0


class Watched(Supervisor):
    """A supervisor whose answers are judged at the moment at which they are given."""

    def __init__(self, specs: Iterable[JobSpec], story: Story) -> None:
        self.story = story
        self.kind = type("WatchedJob", (Job,), {"__slots__": (), "step": self._watched_step()})
        super().__init__(specs)

    def _know(self, spec: JobSpec, now: float) -> None:
        self.jobs[spec.name] = self.kind(spec, now, self._past_runs)

    def _do(self, action: Action) -> None:
        if isinstance(action, events.Reply):
            self.story.judge_answer(action)
        super()._do(action)

    def _watched_step(self) -> Callable[[Job, Input, float], list[Action]]:
        def step(job: Job, what: Input, now: float) -> list[Action]:
            stayed = job.alive and job.next is None
            actions = Job.step(job, what, now)
            self.story.judge_step(job, what, actions, stayed=stayed)
            return actions

        return step


class Story(RuleBasedStateMachine):
    """A supervisor, a simulated kernel, and a witness of all that is said and done."""

    def __init__(self) -> None:
        super().__init__()
        self.open: dict[int, Request] = {}
        self.last_id = 0
        self.asked: dict[tuple[str, int], float] = {}  # when a run got its first stop signal
        self.urgent: set[tuple[str, int]] = set()  # runs that somebody wants gone now
        self.told = dict.fromkeys(NAMES, "")  # the last event of each job
        self.up: set[str] = set()  # by the event log
        self.seen = self.published = 0
        self.finished = False
        self.announced = 0
        self.removing: set[str] = set()
        self.rewired: dict[str, int] = {}  # runs that a reload gave other requirements
        self.asked_to_end = self.lost = False  # `lost`: an essential job has ended by itself
        self.in_order = True  # until a second terminate
        self.all_ready = 0

    @property
    def terminating(self) -> bool:
        """Whether the end has begun: by a command, or by an essential job."""
        return self.supervisor.terminating

    @initialize(
        drawn=st.tuples(specs, specs, specs),
        order=edges,
        tempers=st.tuples(tempers, tempers, tempers),
        readiness=st.tuples(*[st.sampled_from((None, 0.0, 0.0, 1.0))] * 3),
    )
    def begin(
        self,
        drawn: tuple[JobSpec, ...],
        order: tuple[tuple[str, ...], ...],
        tempers: tuple[Temper, ...],
        readiness: tuple[float | None, ...],
    ) -> None:
        self.order = dict(zip(NAMES, (((), ()), order[:2], order[2:]), strict=True))
        named = zip(NAMES, drawn, strict=True)
        self.configured = {name: self.placed(name, spec) for name, spec in named}
        self.supervisor = Watched(self.configured.values(), self)
        self.kernel = SimKernel(self.supervisor, self.witness)
        self.kernel.tempers = dict(zip(NAMES, tempers, strict=True))
        self.kernel.readiness = dict(zip(NAMES, readiness, strict=True))
        self.supervisor.begin(0.0)
        self.kernel.act()

    def placed(self, name: str, spec: JobSpec) -> JobSpec:
        """A spec at its place in the order."""
        requires, after = self.order[name]
        return spec.replace(name=name, requires=requires, after=after)

    # ---- the story ------------------------------------------------------------------------

    def ask(
        self, command: str, names: list[str], wait: bool, timeout: float | None, until: str | None = None
    ) -> int:
        """Note a request before it is made."""
        self.last_id += 1
        jobs = self.supervisor.jobs
        runs = {name: jobs[name].run for name in names if name in jobs}
        deadline = None if timeout is None else self.kernel.now + timeout
        seq = self.supervisor.log.last
        self.open[self.last_id] = Request(command, tuple(names), wait, deadline, runs, seq, until)
        return self.last_id

    @rule(
        command=st.sampled_from(("start", "restart")),
        names=some_names,
        wait=st.booleans(),
        until=untils,
        timeout=timeouts,
        births=st.booleans(),
    )
    def start(
        self,
        command: str,
        names: list[str],
        wait: bool,
        until: str | None,
        timeout: float | None,
        births: bool,
    ) -> None:
        request = self.ask(command, names, wait, timeout, until)
        act = getattr(self.supervisor, command)
        act(names, request, self.kernel.now, wait=wait, until=until_of(until), timeout=timeout)
        if not self.terminating:
            self.heeded(names, (State.WAITING, State.STARTING, State.RUNNING), Next.RESTART)
            self.has_what_it_requires(names)
        self.kernel.act(births=births)

    @rule(names=some_names, wait=st.booleans(), until=untils, timeout=timeouts, at_once=st.booleans())
    def stop(
        self, names: list[str], wait: bool, until: str | None, timeout: float | None, at_once: bool
    ) -> None:
        request = self.ask("stop", names, wait, timeout, until)
        if at_once and not set(names) - set(self.supervisor.jobs):
            self.hurry([other for name in names for other in (name, *self.supervisor.order.needed_by(name))])
        self.supervisor.stop(
            names,
            request,
            self.kernel.now,
            wait=wait,
            until=until_of(until),
            timeout=timeout,
            at_once=at_once,
        )
        self.heeded(names, (State.STOPPED,), Next.STOP)
        self.kernel.act()

    @rule(
        names=some_names,
        until=conditions,
        any_of=st.booleans(),
        since=st.integers(0, 20),
        fresh=st.booleans(),
        timeout=timeouts,
    )
    def wait(
        self, names: list[str], until: str, any_of: bool, since: int, fresh: bool, timeout: float | None
    ) -> None:
        """Wait, in half of the cases from now on, else from one of the last events."""
        request = self.ask("wait", names, True, timeout, until)
        token = self.supervisor.log.last - since if 0 <= since <= min(self.supervisor.log.last, 10) else None
        found = self.open[request]._replace(any_of=any_of, fresh=fresh and token is None, at=self.kernel.now)
        if token is not None:
            at = next((event[1] for event in self.supervisor.log.after(token - 1)), 0.0) if token else 0.0
            found = found._replace(seq=token, runs={}, at=at)
        self.open[request] = found
        self.supervisor.wait(
            names,
            request,
            self.kernel.now,
            until=(until, waits.condition(until, STEADY)),
            any_of=any_of,
            since=token,
            fresh=fresh,
            timeout=timeout,
        )
        self.kernel.act()

    @rule(names=some_names, every=st.booleans())
    def signal(self, names: list[str], every: bool) -> None:
        self.supervisor.signal(names, "SIGHUP", self.ask("signal", names, False, None), every=every)
        self.kernel.act()

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.open)))
        del self.open[request]
        self.supervisor.drop(request)
        self.kernel.act()

    @precondition(lambda self: self.last_id > 5)
    @rule(really=st.integers(0, 3))
    def terminate(self, really: int) -> None:
        if really:  # not in every story, and not too early
            return
        if self.terminating:
            self.hurry(NAMES)
            self.in_order = False
        self.asked_to_end = True
        self.supervisor.terminate(self.kernel.now)
        self.kernel.act()

    @rule(seconds=delays, timers_first=st.booleans())
    def advance(self, seconds: float, timers_first: bool) -> None:
        self.kernel.timers_first = timers_first
        self.kernel.advance(seconds)

    @rule(
        name=st.sampled_from(NAMES),
        temper=tempers,
        life=delays,
        readiness=st.sampled_from((None, 0.0, 0.0, 1.0, 5.0)),
    )
    def temper(self, name: str, temper: Temper, life: float, readiness: float | None) -> None:
        self.kernel.tempers[name] = temper
        self.kernel.life = life
        self.kernel.readiness[name] = readiness

    @precondition(lambda self: self.kernel.processes)
    @rule(data=st.data(), status=st.sampled_from((0, 1, "SIGKILL")), whole=st.booleans())
    def die(self, data: st.DataObject, status: events.Status, whole: bool) -> None:
        process = self.kernel.processes[data.draw(st.sampled_from(sorted(self.kernel.processes)))]
        (self.kernel.end if whole else self.kernel.lose_leader)(process, status)
        self.kernel.act()

    @precondition(lambda self: self.kernel.processes)
    @rule(data=st.data())
    def get_ready(self, data: st.DataObject) -> None:
        self.kernel.get_ready(
            self.kernel.processes[data.draw(st.sampled_from(sorted(self.kernel.processes)))]
        )
        self.kernel.act()

    @rule(name=st.sampled_from(NAMES))
    def fall_silent(self, name: str) -> None:
        job = self.supervisor.jobs.get(name)
        if job is not None and job.state is State.RUNNING:
            self.feed(name, events.WatchdogExpired(job.run))

    @rule(
        drawn=st.dictionaries(st.sampled_from(NAMES), specs, max_size=3),
        order=edges,
        gone=st.sets(st.sampled_from(NAMES), max_size=2),
        restart=st.booleans(),
        really=st.integers(0, 2),
    )
    def reload(
        self,
        drawn: dict[str, JobSpec],
        order: tuple[tuple[str, ...], ...],
        gone: set[str],
        restart: bool,
        really: int,
    ) -> None:
        """Some jobs are other ones, some are gone, some that were gone are there again."""
        if really:  # not too often
            return
        before, after = self.configured, self.drawn_anew(drawn, order, gone)
        plan = Plan(
            added=tuple(spec for name, spec in after.items() if name not in before),
            removed=tuple(name for name in before if name not in after),
            changed=tuple(Change(s) for name, s in after.items() if before.get(name, s) != s),
        )
        jobs, leaving = self.supervisor.jobs, self.supervisor.turns.leaving
        request = self.ask("reload", [], restart, None)
        apart = [job for job in jobs.values() if not restart and not self.is_entangled(job.spec.name, plan)]
        untouched = [(job, job.state, job.run, job.next, job.armed) for job in apart]
        hurried = [other for other, what in leaving.items() if what.next is Next.STOP and what.now]
        if not self.terminating:
            self.reconfigure(after)
        self.supervisor.reload(plan, request, self.kernel.now, restart=restart)
        for other in hurried:
            self.hurry(self.supervisor.order.needed_by(other))
        self.removing &= set(jobs)
        assert untouched == [(job, job.state, job.run, job.next, job.armed) for job in apart], (
            "what did not change is not touched"
        )
        self.kernel.act()

    def drawn_anew(
        self, drawn: dict[str, JobSpec], order: tuple[tuple[str, ...], ...], gone: set[str]
    ) -> dict[str, JobSpec]:
        """What is configured after a reload: nothing requires what is not there."""
        found = {name: spec for name, spec in {**self.configured, **drawn}.items() if name not in gone}
        edges_of = dict(zip(NAMES, (((), ()), order[:2], order[2:]), strict=True))
        for name, spec in found.items():
            requires, after = (tuple(other for other in names if other in found) for names in edges_of[name])
            found[name] = spec.replace(name=name, requires=requires, after=after)
        return found

    def reconfigure(self, after: dict[str, JobSpec]) -> None:
        """Note what a reload is about to change."""
        for name, job in self.supervisor.jobs.items():
            if name in after and after[name].requires != job.spec.requires:
                self.rewired[name] = job.run
        self.removing = (self.removing | (set(self.configured) - set(after))) - set(after)
        self.configured = after

    def is_entangled(self, name: str, plan: Plan) -> bool:
        """Whether a reload may mean something to a job: it speaks of it, or of what it is in order with."""
        new = [*plan.added, *(change.spec for change in plan.changed)]
        ordered = [*new, *(job.spec for job in self.supervisor.jobs.values())]
        edges = {spec.name: {*spec.requires, *spec.after} for spec in ordered if spec.requires or spec.after}
        return name in {
            *plan.removed,
            *(s.name for s in new),
            *edges,
            *(o for names in edges.values() for o in names),
        }

    def heeded(self, names: list[str], states: tuple[State, ...], following: Next) -> None:
        """Right after a command each job is where it should be, or on its way; unless it is being removed.

        On its way is one, too, that waits for others to be gone first.
        """
        if set(names) <= set(self.supervisor.jobs):
            for job in (self.supervisor.jobs[name] for name in set(names) - self.removing):
                waits_for_turn = self.supervisor.turns.follows(job.spec.name) is following
                assert job.state in states or job.next is following or waits_for_turn, (
                    "the last command counts"
                )

    def has_what_it_requires(self, names: list[str]) -> None:
        """Right after a start neither it nor what it requires is down, or goes down to stay there."""
        jobs = self.supervisor.jobs
        if not set(names) <= set(jobs):
            return
        for name in set(names) - self.removing:
            needs = [jobs[other] for other in self.supervisor.order.needs(name) if other in jobs]
            for need in (*needs, jobs[name]):
                assert self.is_ready(need) or need.state not in AT_REST, "what is required comes up"
                stays_down = Next.STOP in (need.next, self.supervisor.turns.follows(need.spec.name))
                assert not stays_down, "what is required stays up, or comes back"

    def feed(self, name: str, what: Input) -> None:
        """Something happens to a job."""
        self.supervisor.feed(name, what, self.kernel.now)
        self.kernel.act()

    def hurry(self, names: list[str] | tuple[str, ...]) -> None:
        """From now on these runs may be killed without patience."""
        self.urgent |= {
            (name, self.supervisor.jobs[name].run) for name in names if name in self.supervisor.jobs
        }

    # ---- the witness ----------------------------------------------------------------------

    def witness(self, action: Action) -> None:
        """What holds for each thing that is done, at the moment it is done."""
        after_the_end = (events.Reply, events.Arm, events.Disarm)
        assert not self.finished or isinstance(action, after_the_end), "after the end there are only answers"
        judges: dict[type[Action], Callable[[Any], None]] = {
            events.Changed: self.sees_change,
            events.Spawn: self.sees_spawn,
            events.SendSignal: self.sees_stop,
            events.Kill: self.sees_kill,
            events.Deliver: self.sees_delivery,
            events.Reply: self.sees_reply,
            events.Impossible: self.sees_impossible,
            events.Publish: self.sees_publish,
            events.Announce: self.sees_announce,
            events.AllReady: self.sees_all_ready,
            events.Finish: self.sees_finish,
        }
        judges.get(type(action), lambda _: None)(action)

    def sees_change(self, change: events.Changed) -> None:
        job = self.supervisor.jobs.get(change.job)
        essential = Essential.NO if job is None else job.spec.essential
        fatal = {
            Essential.NO: (),
            Essential.YES: (State.EXITED, State.FAILED),
            Essential.ON_FAILURE: (State.FAILED,),
        }
        if change.after in fatal[essential] and change.job not in self.removing:
            assert self.terminating, "the end of an essential job is the daemon's"
            self.lost = True

    def sees_spawn(self, spawn: events.Spawn) -> None:
        assert spawn.job not in self.kernel.processes, "never two"
        assert spawn.job not in self.kernel.births, "never two"

    def sees_stop(self, stop: events.SendSignal) -> None:
        assert (stop.job, stop.run) not in self.asked, "a run is asked to end once"
        self.asked[stop.job, stop.run] = self.kernel.now

    def sees_kill(self, kill: events.Kill) -> None:
        run = (kill.job, kill.run)
        patient = run in self.asked and self.kernel.now >= self.asked[run] + PATIENCE
        assert patient or run in self.urgent, "patience lasts for kill-timeout"

    def sees_delivery(self, deliver: events.Deliver) -> None:
        process = self.kernel.processes[deliver.job]
        assert process.run == deliver.run
        assert deliver.every or process.leader_status is None, "a dead leader is not signalled"

    def sees_reply(self, reply: Reply) -> None:
        assert isinstance(reply.to, int)
        request = self.open.pop(reply.to)  # KeyError: answered twice, or after it had gone
        if request.command == "reload":
            return
        if reply.code == "no-such-job":
            assert {result.job for result in reply.results} == set(request.names) - set(self.supervisor.jobs)
            return
        told = {result.job for result in reply.results}
        assert len(reply.results) == len(told)
        # With a condition one job for which it can hold no more is an answer: of the others nothing is known.
        partly = request.command == "wait" or (request.until is not None and not reply.ok)
        assert told == set(request.names) or (partly and told <= set(request.names))
        if not request.any_of:
            assert reply.ok == (not any(result.code for result in reply.results))

    # ---- what is judged in the very moment ------------------------------------------------

    def judge_step(self, job: Job, what: Input, actions: list[Action], *, stayed: bool) -> None:
        """Nothing starts before what it requires is ready; nothing goes before what requires it is gone."""
        jobs, name = self.supervisor.jobs, job.spec.name
        done = {type(action) for action in actions}
        if events.Spawn in done:
            assert not self.terminating, "nothing is started after shutdown"
            needs = [jobs[other] for other in job.spec.requires if other in jobs]
            assert all(self.is_ready(need) for need in needs), "what is launched has what it requires"
        ordered = isinstance(what, (events.Stop, events.Shutdown, events.RestartJob, events.Remove))
        if ordered and self.in_order and stayed and done & {events.SendSignal, events.Kill}:
            edges = self.supervisor.order.before if self.terminating else self.supervisor.order.required_by
            others = [jobs[other] for other in edges.get(name, ()) if other in jobs]
            assert not any(other.alive for other in others), "what requires it is gone first"

    def is_ready(self, job: Job) -> bool:
        """A service that serves; a oneshot that has succeeded."""
        return job.state is (State.EXITED if job.ran.type is JobType.ONESHOT else State.RUNNING)

    def judge_answer(self, reply: Reply) -> None:
        """An answer says what is so at this moment."""
        assert isinstance(reply.to, int)
        request = self.open[reply.to]
        for result in reply.results:
            if result.code == "timeout":
                assert request.deadline is not None
                assert self.kernel.now >= request.deadline
            elif result.code == "terminating":
                assert self.terminating
            elif request.command not in ("wait", "reload") and request.until is None and not result.code:
                self.judge_done(request, result, single=len(set(request.names)) == 1)
        if request.command == "wait" and reply.code != "terminating":
            self.judge_wait(request, reply)

    def judge_done(self, request: Request, result: events.JobResult, *, single: bool) -> None:
        """What a command without a condition promises when it is done. (Of several, others were earlier.)"""
        run = request.runs[result.job]
        if request.command == "stop" and request.wait:
            process = self.kernel.processes.get(result.job)
            assert process is None or process.run > run, "stopped means gone"
        elif request.command in ("start", "restart") and request.wait and single:
            job = self.supervisor.jobs[result.job]
            assert self.is_ready(job) and job.run > run, "started means ready"

    def judge_wait(self, request: Request, reply: Reply) -> None:
        names = tuple(dict.fromkeys(request.names))
        held = [name for name in names if self.holds(request, name)]
        if reply.ok:
            assert set(held) == set(names) or (request.any_of and held), "what was waited for is so"
            assert request.any_of or {result.job for result in reply.results} == set(names)
            return
        lost = {result.job for result in reply.results}  # one that failed, by its removal, may be there again
        assert not (held == list(names) or (request.any_of and set(held) - lost)), (
            "who could be told of a success is"
        )
        if reply.code == "failed" and not request.any_of:
            failed = [result.job for result in reply.results if result.code == "failed"]
            assert all(self.fails(request, name) for name in failed), "what can yet be so has not failed"

    def later(self, request: Request, name: str) -> list[tuple[str, State, int, float]]:
        """What has happened to a job since the baseline: kind, state, run, time."""
        log = self.supervisor.log.after(request.seq)
        return [(event[3], event[4], event[5], event[1]) for event in log if event[2] == name]

    def holds(self, request: Request, name: str) -> bool:
        """The conditions of `wait`, by the words of the design and by the event log."""
        job = self.supervisor.jobs.get(name)
        if job is None:
            return request.until == "stopped"
        later = self.later(request, name)
        launched = [run for kind, _, run, _ in later if kind == "launched"]
        died = any(kind == "died" for kind, _, _, _ in later)
        ready = self.is_ready(job)
        return {
            "changed": bool(launched) or died,
            "running": job.leader is not None and job.state not in LEAVING,
            "ready": ready,
            "restarted": ready and any(run > request.runs.get(name, 0) for run in launched),
            "stable": ready
            and not self.was_lost(job, later, fresh=request.fresh)
            and self.kernel.now >= self.steady_from(request, name) + STEADY,
            "stopped": job.state in AT_REST,
            "exited": died or (job.deaths > 0 and job.pid is None and job.state is not State.STARTING),
            "settled": job.state in (*AT_REST, State.RUNNING),
        }[request.until or "changed"]

    def was_lost(self, job: Job, later: list[tuple[str, State, int, float]], *, fresh: bool) -> bool:
        """Whether it has died, other than by the success of a oneshot; if not `fresh`, by itself or twice."""
        deaths = [state for kind, state, _, _ in later if kind == "died"]
        if fresh:
            return len(deaths) > (self.is_ready(job) and not job.alive)
        oneshot = job.ran.type is JobType.ONESHOT
        mishaps = {State.BACKOFF, *ENDED} - ({State.EXITED} if oneshot else set())
        by_itself = [state for state in deaths if state in mishaps]
        asked_for = [s for s in deaths if s not in (State.BACKOFF, *ENDED)]
        return bool(by_itself) or len(asked_for) > 1

    def steady_from(self, request: Request, name: str) -> float:
        """From when the time of `stable` counts."""
        return self.since(name) if request.fresh else max(self.since(name), request.at)

    def since(self, name: str) -> float:
        """When a job that is ready became so."""
        kinds = ("state", "died")
        return max(e[1] for e in self.supervisor.log.after(0) if e[2] == name and e[3] in kinds)

    def fails(self, request: Request, name: str) -> bool:
        """When a condition can hold no more."""
        job, until = self.supervisor.jobs.get(name), request.until
        if job is None or name in self.removing:
            return until != "stopped"
        later = self.later(request, name)
        at_rest = job.state in AT_REST
        given_up = at_rest and any(
            state in ENDED and kind in ("state", "died") for kind, state, _, _ in later
        )
        if until in ("running", "ready", "stable"):
            died = until == "stable" and self.was_lost(job, later, fresh=request.fresh)
            gone = at_rest and not (until == "stable" and self.is_ready(job))
            return died or (gone and (given_up or request.fresh))
        if until == "restarted":
            return given_up
        idle = job.pid is None and job.state is not State.STARTING
        return until == "exited" and idle and not job.deaths

    def sees_impossible(self, action: events.Impossible) -> None:
        raise AssertionError(f"a contradiction: {action}")

    def sees_publish(self, _: events.Publish) -> None:
        self.published = self.supervisor.log.last

    def sees_announce(self, _: events.Announce) -> None:
        self.announced += 1
        assert self.announced == 1

    def sees_all_ready(self, _: events.AllReady) -> None:
        self.all_ready += 1
        assert self.announced == self.all_ready == 1

    def sees_finish(self, finish: events.Finish) -> None:
        assert self.asked_to_end or self.lost, "the end has a reason"
        assert finish.code == 0 or self.lost
        assert not self.kernel.processes and not self.kernel.births, "the end comes when all are gone"
        assert self.published == self.supervisor.log.last, "listeners have the last event before the end"
        self.finished = True

    # ---- what always holds ----------------------------------------------------------------

    @invariant()
    def jobs_and_kernel_agree(self) -> None:
        """What lives is in a live state; timers are armed as the jobs believe."""
        kernel = self.kernel
        for name, job in self.supervisor.jobs.items():
            process = kernel.processes.get(name)
            assert job.alive == (process is not None or name in kernel.births)
            assert job.pid == (process.pid if process is not None else None)
            assert (job.leader is not None) == (process is not None and process.leader_status is None)
            assert kernel.timers.get(name) == (None if job.armed is None else (job.token, job.armed))
            leaves = self.supervisor.turns.follows(name) is Next.REMOVE
            assert (name in self.removing) == (leaves or job.next is Next.REMOVE), (
                "removed, and nothing else, whatever comes"
            )
            assert not (self.terminating and job.state is State.BACKOFF), "nothing comes back after shutdown"
        assert {*kernel.processes, *kernel.births} <= set(self.supervisor.jobs), "never forgotten while alive"

    @invariant()
    def the_log_is_a_story(self) -> None:
        """Launched and died alternate; a restart is told before its launch; the end is the last event."""
        for seq, _, name, kind, _, _, _, _ in self.supervisor.log.after(self.seen):
            assert seq == self.seen + 1
            assert self.told.get("") != "terminated", "nothing is told after the end"
            self.seen = seq
            if kind == "launched":
                assert name not in self.up
                self.up.add(name)
            elif kind == "died":
                self.up.remove(name)
            elif kind == "restarting":
                assert name not in self.up
            assert (self.told.get(name) == "restarting") <= (kind == "launched"), "2, then 0, never 2 alone"
            self.told[name] = kind
        assert self.up == set(self.kernel.processes)
        assert self.published == self.supervisor.log.last, "listeners are served"

    @invariant()
    def nobody_waits_in_vain(self) -> None:
        """Whoever could be answered has been."""
        keys = {key for key in self.kernel.timers if isinstance(key, int)}
        waiters = self.supervisor.waiters
        assert keys <= set(waiters._by_key)
        assert len(waiters) == len(waiters._by_asker) == len(self.open)
        for to, request in self.open.items():
            assert request.deadline is None or request.deadline >= self.kernel.now
            if request.command == "reload":
                assert waiters._by_asker[to].marks
            elif request.command == "wait":
                self.waits_rightly(request, waiters._by_asker[to].marks)
            else:
                assert not all(self.is_settled(request, name) for name in request.names)
        assert not self.finished or not self.open

    def waits_rightly(self, request: Request, names: Iterable[str]) -> None:
        """Whoever waits could not have been answered."""
        names = list(names)
        held = [name for name in names if self.holds(request, name)]
        failed = [name for name in names if self.fails(request, name) and name not in held]
        assert not set(failed) - self.removing
        assert not held if request.any_of else len(held) < len(set(request.names))

    def is_settled(self, request: Request, name: str) -> bool:
        """Whether there is nothing left to wait for on this job."""
        job, run = self.supervisor.jobs.get(name), request.runs[name]
        if self.supervisor.turns.follows(name) is Next.RESTART:
            return False
        if job is not None and request.until == waits.STABLE and self.is_ready(job):
            return False
        if job is None or job.state in AT_REST:
            return True
        if request.until is not None:
            return False
        if request.command == "stop":
            return not request.wait or not job.alive or job.run > run
        return job.run > run and self.is_ready(job)

    @invariant()
    def nobody_waits_for_what_does_not_come(self) -> None:
        """What waits, waits for something on its way; what is down has taken down what requires it."""
        jobs, leaving = self.supervisor.jobs, self.supervisor.turns.leaving
        for name, job in jobs.items():
            earlier = [jobs[other] for other in self.supervisor.order.after.get(name, ()) if other in jobs]
            coming = [j for j in earlier if j.state in (*COMING, *LEAVING) or j.spec.name in leaving]
            assert job.state is not State.WAITING or coming, "somebody is waited for"
            if self.terminating:
                continue
            unasked = job.state in (State.WAITING, State.BACKOFF, *LEAVING)  # launched without more ado
            if unasked and name not in leaving:
                waits_for = self.supervisor.turns._waits_for(job)
                assert bool(job.held) == bool(waits_for), "held is what has to wait"
            if self.rewired.get(name) == job.run:  # what a reload made it require counts from its next start
                continue
            lost = [j for j in earlier if j.spec.name in job.spec.requires and j.state in AT_REST]
            if any(not self.is_ready(j) for j in lost):
                down = job.state in (*AT_REST, *LEAVING) or name in leaving
                assert down, "what requires what is down is down, or goes down"

    @invariant()
    def every_turn_comes(self) -> None:
        """What waits for its turn to be stopped waits for something that goes; what is to return, too."""
        jobs, leaving, order = self.supervisor.jobs, self.supervisor.turns.leaving, self.supervisor.order
        edges = order.before if self.terminating else order.required_by
        for name in leaving:
            others = [jobs[other] for other in edges.get(name, ()) if other in jobs]
            going = [j for j in others if j.state in LEAVING or (j.alive and j.spec.name in leaving)]
            job = jobs[name]
            assert going and job.next is None and (job.alive or self.is_ready(job))

    # ---- the end --------------------------------------------------------------------------

    def teardown(self) -> None:
        """All can be brought down, and then nothing is left: no process, no timer, nobody who waits."""
        if not hasattr(self, "kernel"):
            return
        for name in NAMES:
            self.kernel.tempers[name] = Temper.OBEYS
        if not self.finished:
            self.bring_down()
        assert self.finished
        assert not self.open and not self.supervisor.waiters
        assert not self.supervisor.waiters._by_job and not self.supervisor.waiters._by_asker
        assert not self.kernel.timers and not self.kernel.processes
        assert all(job.state in AT_REST for job in self.supervisor.jobs.values())

    def bring_down(self) -> None:
        """Stop everything, then end."""
        names = list(self.supervisor.jobs)
        self.supervisor.stop(names, self.ask("stop", names, True, None), self.kernel.now, wait=True)
        self.kernel.act()
        self.kernel.advance(LONG)
        self.check()
        if not self.finished:
            assert not self.kernel.timers and not self.kernel.processes
            assert all(request.command == "wait" for request in self.open.values())
            assert self.announced == self.all_ready == 1
            self.asked_to_end = True
            self.supervisor.terminate(self.kernel.now)
            self.kernel.act()
            self.check()

    def check(self) -> None:
        """All invariants."""
        self.jobs_and_kernel_agree()
        self.the_log_is_a_story()
        self.nobody_waits_in_vain()
        self.nobody_waits_for_what_does_not_come()
        self.every_turn_comes()


def test_every_story_keeps_the_promises() -> None:
    """However commands, deaths and time interleave, what was promised is kept and everybody is answered."""
    run_state_machine_as_test(Story, settings=SETTINGS)


BROKEN = (
    (events.Stop, State.STOPPING, machine.keep),
    (events.Stop, State.BACKOFF, machine.keep),
    (events.Start, State.STOPPING, machine.keep),
    (events.Shutdown, State.STOPPING, machine.keep),
    (events.Timer, State.STOPPING, machine.keep),
    (events.Timer, State.KILLING, machine.keep),
    (events.LeaderDied, State.RUNNING, machine.keep),
    (events.Exited, State.STOPPING, machine.decide),
    (events.Remove, State.STOPPING, machine.keep),
    (events.RestartJob, State.RUNNING, machine.spawn),
    (events.Hold, State.STOPPED, machine.keep),
    (events.Hold, State.BACKOFF, machine.keep),
    (events.Release, State.WAITING, machine.release),
    (events.Release, State.BACKOFF, machine.keep),
    (events.RequirementLost, State.WAITING, machine.keep),
    (events.Stop, State.WAITING, machine.keep),
    (events.Launched, State.STARTING, machine.lose_leader),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "state", "cell"), BROKEN, ids=lambda value: getattr(value, "__name__", None)
)
def test_a_broken_cell_spoils_a_story(
    kind: type[Input], state: State, cell: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stories are rich enough: with one cell of the table broken one of them fails."""
    monkeypatch.setitem(TABLE[kind], state, cell)

    with pytest.raises((AssertionError, LookupError)):
        run_state_machine_as_test(Story, settings=CONTROL)


def answers_at_once(job: machine.Job, _since: waits.Mark, _now: float) -> events.JobResult:
    """A condition that always holds."""
    return events.JobResult(job.spec.name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [
        (waits, "gone", answers_at_once),
        (waits, "up", waits.launched),
        (waits, "stable", lambda _: waits.ready),
        (waits, "_given_up", lambda *_: None),
        (waits, "_in_vain", lambda *_: None),
        (waits, "_ended", lambda *_: None),
        (Waiters, "give_up", lambda *_: None),
        (Waiters, "look", lambda *_: None),
        (Waiters, "_dismiss", lambda *_: None),
        (Supervisor, "_look", lambda *_: None),
        (Turns, "_take_down", lambda *_: None),
        (Turns, "_refresh", lambda *_: None),
        (Turns, "_is_needed", lambda *_: False),
        (Turns, "_waits_for", lambda *_: ()),
        (Turns, "_with_requirements", lambda self, names, _: [(n, "") for n in self.order.sort(names)]),
        (Turns, "_stay", lambda *_: None),
        (Turns, "_let_go_first", lambda *_: None),
        (Supervisor, "_adopt", lambda *_: None),
        (Waiters, "timer", lambda *_: None),
        (Supervisor, "_refuse_up", lambda *_: None),
        (Supervisor, "_mind_essential", lambda *_: None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_supervisor_spoils_a_story(
    owner: object, name: str, broken: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where not the table but the supervisor is broken."""
    monkeypatch.setattr(owner, name, broken)

    with pytest.raises((AssertionError, LookupError)):
        run_state_machine_as_test(Story, settings=CONTROL)
