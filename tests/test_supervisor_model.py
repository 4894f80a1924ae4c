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

from jobmon import events, machine, waits
from jobmon.events import AT_REST, Next, State
from jobmon.machine import TABLE
from jobmon.spec import Essential, JobSpec, Readiness, Restart
from jobmon.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobmon.events import Action, Input, Reply

NAMES = ("a", "b", "c")
PATIENCE = 10.0
READY = Readiness("fd", 3)
LONG = 1000.0  # longer than any chain of timers that ends
SETTINGS = settings(
    max_examples=300,
    stateful_step_count=40,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

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
    )
)


class Request(NamedTuple):
    """A command that is not answered yet."""

    command: str
    names: tuple[str, ...]
    wait: bool
    deadline: float | None
    runs: dict[str, int]
    changes: dict[str, int]


class Story(RuleBasedStateMachine):
    """A supervisor, a simulated kernel, and a witness of all that is said and done."""

    def __init__(self) -> None:
        super().__init__()
        self.open: dict[int, Request] = {}
        self.last_id = 0
        self.asked: dict[tuple[str, int], float] = {}  # when a run got its first stop signal
        self.urgent: set[tuple[str, int]] = set()  # runs that somebody wants gone now
        self.changes = dict.fromkeys(NAMES, 0)
        self.told = dict.fromkeys(NAMES, "")  # the last event of each job
        self.up: set[str] = set()  # by the event log
        self.seen = self.published = 0
        self.finished = False
        self.announced = 0
        self.removing: set[str] = set()
        self.asked_to_end = self.lost = False  # `lost`: an essential job has ended by itself

    @property
    def terminating(self) -> bool:
        """Whether the end has begun: by a command, or by an essential job."""
        return self.supervisor.terminating

    @initialize(drawn=st.tuples(specs, specs, specs), tempers=st.tuples(*[st.sampled_from(Temper)] * 3))
    def begin(self, drawn: tuple[JobSpec, ...], tempers: tuple[Temper, ...]) -> None:
        self.supervisor = Supervisor(spec.replace(name=name) for name, spec in zip(NAMES, drawn, strict=True))
        self.kernel = SimKernel(self.supervisor, self.witness)
        self.kernel.tempers = dict(zip(NAMES, tempers, strict=True))
        self.supervisor.begin(0.0)
        self.kernel.act()

    # ---- the story ------------------------------------------------------------------------

    def ask(self, command: str, names: list[str], wait: bool, timeout: float | None) -> int:
        """Note a request before it is made."""
        self.last_id += 1
        jobs = self.supervisor.jobs
        runs = {name: jobs[name].run for name in names if name in jobs}
        deadline = None if timeout is None else self.kernel.now + timeout
        self.open[self.last_id] = Request(command, tuple(names), wait, deadline, runs, dict(self.changes))
        return self.last_id

    @rule(
        command=st.sampled_from(("start", "restart")),
        names=some_names,
        wait=st.booleans(),
        timeout=timeouts,
        births=st.booleans(),
    )
    def start(self, command: str, names: list[str], wait: bool, timeout: float | None, births: bool) -> None:
        request = self.ask(command, names, wait, timeout)
        getattr(self.supervisor, command)(names, request, self.kernel.now, wait=wait, timeout=timeout)
        if not self.terminating:
            self.heeded(names, (State.STARTING, State.RUNNING), Next.RESTART)
        self.kernel.act(births=births)

    @rule(names=some_names, wait=st.booleans(), timeout=timeouts, at_once=st.booleans())
    def stop(self, names: list[str], wait: bool, timeout: float | None, at_once: bool) -> None:
        request = self.ask("stop", names, wait, timeout)
        if at_once and not set(names) - set(self.supervisor.jobs):
            self.hurry(names)
        self.supervisor.stop(names, request, self.kernel.now, wait=wait, timeout=timeout, at_once=at_once)
        self.heeded(names, (State.STOPPED,), Next.STOP)
        self.kernel.act()

    @rule(names=some_names, timeout=timeouts)
    def wait(self, names: list[str], timeout: float | None) -> None:
        request = self.ask("wait", names, True, timeout)
        self.supervisor.wait(names, request, self.kernel.now, timeout=timeout)
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
        self.asked_to_end = True
        self.supervisor.terminate(self.kernel.now)
        self.kernel.act()

    @rule(seconds=delays, timers_first=st.booleans())
    def advance(self, seconds: float, timers_first: bool) -> None:
        self.kernel.timers_first = timers_first
        self.kernel.advance(seconds)

    @rule(name=st.sampled_from(NAMES), temper=st.sampled_from(Temper), life=delays)
    def temper(self, name: str, temper: Temper, life: float) -> None:
        self.kernel.tempers[name] = temper
        self.kernel.life = life

    @precondition(lambda self: self.kernel.processes)
    @rule(data=st.data(), status=st.sampled_from((0, 1, "SIGKILL")), whole=st.booleans())
    def die(self, data: st.DataObject, status: events.Status, whole: bool) -> None:
        process = self.kernel.processes[data.draw(st.sampled_from(sorted(self.kernel.processes)))]
        (self.kernel.end if whole else self.kernel.lose_leader)(process, status)
        self.kernel.act()

    @precondition(lambda self: self.kernel.processes)
    @rule(data=st.data())
    def get_ready(self, data: st.DataObject) -> None:
        process = self.kernel.processes[data.draw(st.sampled_from(sorted(self.kernel.processes)))]
        if process.executed and process.spec.ready is not None:
            self.feed(process.job, events.Ready(process.run))

    @rule(name=st.sampled_from(NAMES))
    def fall_silent(self, name: str) -> None:
        job = self.supervisor.jobs.get(name)
        if job is not None and job.state is State.RUNNING:
            self.feed(name, events.WatchdogExpired(job.run))

    @precondition(lambda self: not self.finished)
    @rule(name=st.sampled_from(NAMES), spec=specs, removed=st.sampled_from((False, False, False, True)))
    def reload(self, name: str, spec: JobSpec, removed: bool) -> None:
        if removed:
            self.removing.add(name)
        else:
            self.removing.discard(name)
        self.feed(name, events.Remove() if removed else events.SpecChanged(spec.replace(name=name)))

    def heeded(self, names: list[str], states: tuple[State, ...], following: Next) -> None:
        """Right after a command each job is where it should be, or on its way; unless it is being removed."""
        if set(names) <= set(self.supervisor.jobs):
            for job in (self.supervisor.jobs[name] for name in set(names) - self.removing):
                assert job.state in states or job.next is following, "the last command counts"

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
        assert not self.finished or isinstance(action, events.Reply), "after the end there are only refusals"
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
        if change.after in fatal[essential]:
            assert self.terminating, "the end of an essential job is the daemon's"
            self.lost = True

    def sees_spawn(self, spawn: events.Spawn) -> None:
        assert not self.terminating, "nothing is started after shutdown"
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
        if reply.code == "no-such-job":
            assert {result.job for result in reply.results} == set(request.names) - set(self.supervisor.jobs)
            return
        assert sorted(result.job for result in reply.results) == sorted(set(request.names))
        assert reply.ok == (not any(result.code for result in reply.results))
        for result in reply.results:
            self.check_result(request, result, single=len(reply.results) == 1)

    def check_result(self, request: Request, result: events.JobResult, *, single: bool) -> None:
        """An answer says what is so at this moment."""
        job, run = self.supervisor.jobs.get(result.job), request.runs[result.job]
        if result.code == "timeout":
            assert request.deadline is not None
            assert self.kernel.now >= request.deadline
        elif result.code == "terminating":
            assert self.terminating
        elif not result.code and request.command == "stop" and request.wait:
            process = self.kernel.processes.get(result.job)
            assert process is None or process.run > run, "stopped means gone"
        elif not result.code and request.command in ("start", "restart") and request.wait and single:
            assert job is not None
            assert job.state is State.RUNNING and job.run > run, "started means running"
        elif not result.code and request.command == "wait":
            assert self.changes[result.job] + self.unread(result.job) > request.changes[result.job]

    def unread(self, name: str) -> int:
        """How many changes of a job stand in the log that the witness has not read yet."""
        unread = self.supervisor.log.after(self.seen)
        return sum(event[2] == name and event[3] in ("launched", "died") for event in unread)

    def sees_impossible(self, action: events.Impossible) -> None:
        raise AssertionError(f"a contradiction: {action}")

    def sees_publish(self, _: events.Publish) -> None:
        self.published = self.supervisor.log.last

    def sees_announce(self, _: events.Announce) -> None:
        self.announced += 1
        assert self.announced == 1

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
            assert (name in self.removing) == (job.next is Next.REMOVE), (
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
            assert self.told.get(name) != "restarting" or kind in ("launched", "state")
            self.told[name] = kind
            if name and kind in ("launched", "died"):
                self.changes[name] += 1
        assert self.up == set(self.kernel.processes)
        assert self.published == self.supervisor.log.last, "listeners are served"

    @invariant()
    def nobody_waits_in_vain(self) -> None:
        """Whoever could be answered has been."""
        keys = {key for key in self.kernel.timers if isinstance(key, int)}
        assert keys <= set(self.supervisor._waiters)
        assert len(self.supervisor._waiters) == len(self.open)
        for request in self.open.values():
            assert request.deadline is None or request.deadline >= self.kernel.now
            assert not all(self.is_settled(request, name) for name in request.names)
        assert not self.finished or not self.open

    def is_settled(self, request: Request, name: str) -> bool:
        """Whether there is nothing left to wait for on this job."""
        job, run = self.supervisor.jobs.get(name), request.runs[name]
        if job is None:
            return True
        if request.command == "wait":
            return self.changes[name] > request.changes[name]
        if request.command == "stop":
            return not request.wait or not job.alive or job.run > run
        return job.state in AT_REST or (job.run > run and job.state is State.RUNNING)

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
        assert not self.open and not self.supervisor._waiters and not self.supervisor._watching
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
            self.asked_to_end = True
            self.supervisor.terminate(self.kernel.now)
            self.kernel.act()
            self.check()

    def check(self) -> None:
        """All invariants."""
        self.jobs_and_kernel_agree()
        self.the_log_is_a_story()
        self.nobody_waits_in_vain()


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
)


@pytest.mark.parametrize(
    ("kind", "state", "cell"), BROKEN, ids=lambda value: getattr(value, "__name__", None)
)
def test_a_broken_cell_spoils_a_story(
    kind: type[Input], state: State, cell: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stories are rich enough: with one cell of the table broken one of them fails."""
    monkeypatch.setitem(TABLE[kind], state, cell)

    with pytest.raises((AssertionError, LookupError)):
        run_state_machine_as_test(Story, settings=settings(SETTINGS, phases=[Phase.generate]))


def answers_at_once(job: machine.Job, _since: waits.Mark) -> events.JobResult:
    """A condition that always holds."""
    return events.JobResult(job.spec.name)


@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [
        (waits, "gone", answers_at_once),
        (waits, "up", waits.launched),
        (waits, "changed", answers_at_once),
        (Supervisor, "_give_up", lambda *_: None),
        (Supervisor, "_look", lambda *_: None),
        (Supervisor, "_dismiss", lambda *_: None),
        (Supervisor, "_refuse_start", lambda *_: None),
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
        run_state_machine_as_test(Story, settings=settings(SETTINGS, phases=[Phase.generate]))
