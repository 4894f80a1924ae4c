"""Commands and their answers: one scenario each, over the real supervisor and no kernel."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from jobmon.core import events
from jobmon.core.causes import READY as SERVES
from jobmon.core.causes import Actor, Cause, Kind
from jobmon.core.eventlog import EventLog
from jobmon.core.events import JobResult, Reply, State
from jobmon.core.plan import Change, Plan
from jobmon.core.spec import Essential, FdReadiness, JobSpec, Restart
from jobmon.core.supervisor import TOLD_OF_A_BUG, Supervisor

if TYPE_CHECKING:
    from typing import Self

    from jobmon.core.events import Action, Input

READY = FdReadiness(3)


def spec_of(name: str = "web", **settings: object) -> JobSpec:
    """A job, by default one that is not restarted."""
    return JobSpec(**({"name": name, "command": "true"} | settings))  # type: ignore[arg-type]


class Bench:
    """A supervisor, its clock, and what it asked for so far."""

    def __init__(self, *specs: JobSpec) -> None:
        self.supervisor = Supervisor(specs or (spec_of(),))
        self.now = 0.0
        self.done: list[Action] = []

    def take(self) -> list[Action]:
        """What is asked for since the last time."""
        actions = self.supervisor.take()
        self.done += actions
        return actions

    def replies(self, to: object = "me") -> list[Reply]:
        """All answers to somebody so far."""
        self.take()
        return [action for action in self.done if isinstance(action, Reply) and action.to == to]

    def code(self, to: object = "me") -> str | None:
        """The code of the one answer; None when there is none yet, "" when it went well."""
        found = self.replies(to)
        assert len(found) <= 1
        return found[0].code if found else None

    def feed(self, what: Input, name: str = "web") -> None:
        """Something happens to a job."""
        self.supervisor.feed(name, what, self.now)

    def launch(self, name: str = "web") -> None:
        """There is a process of the job."""
        self.feed(events.Launched(self.run(name), 100 + self.run(name)), name)

    def execute(self, name: str = "web") -> None:
        """Its program runs."""
        self.feed(events.Spawned(self.run(name)), name)

    def fail(self, number: int = errno.ENOENT, name: str = "web") -> None:
        """There is none: it could not be started."""
        self.feed(events.SpawnFailed(self.run(name), "exec", number, "exec: ENOENT (no such file)"), name)

    def end(self, status: events.Status = "SIGTERM", name: str = "web") -> None:
        """Nothing is left of the run."""
        self.feed(events.Exited(self.run(name), status), name)

    def up(self, *names: str) -> Self:
        """Bring jobs up, without a trace in the answers."""
        for name in names or ("web",):
            self.supervisor.start([name], "bench", self.now)
            self.launch(name)
            self.execute(name)
        return self

    def fire(self, key: object) -> None:
        """What is armed for `key` fires."""
        self.take()
        arm = next(a for a in reversed(self.done) if isinstance(a, events.Arm) and a.key == key)
        self.now = max(self.now, arm.at)
        self.supervisor.timer(key, arm.token, self.now)

    def run(self, name: str) -> int:
        """The number of its run."""
        return self.supervisor.jobs[name].run

    def state(self, name: str = "web") -> State:
        """Where it is."""
        return self.supervisor.jobs[name].state

    def told(self) -> list[str]:
        """The event log in short."""
        return [f"{event[2]} {event[3]}".strip() for event in self.supervisor.log.after(0)]

    def idle(self) -> bool:
        """Whether nobody waits and no waiter's timer is left."""
        waiters = self.supervisor.waiters
        return not (waiters._by_key or waiters._by_asker or waiters._by_job)


# ---- names --------------------------------------------------------------------------------------


def test_an_unknown_name_and_nothing_is_done() -> None:
    """One unknown name among several: it is named, and no job is touched."""
    bench = Bench(spec_of("a"), spec_of("b"))
    bench.supervisor.start(["a", "x", "b", "y", "x"], "me", 0.0)
    reply = bench.replies()[0]

    assert reply.code == "no-such-job"
    assert [result.job for result in reply.results] == ["x", "y"]
    assert (bench.state("a"), bench.state("b")) == (State.STOPPED, State.STOPPED)
    assert bench.idle()


@pytest.mark.parametrize("command", ["start", "stop", "restart", "wait", "signal"])
def test_every_command_knows_its_jobs(command: str) -> None:
    """No command takes an unknown name."""
    bench = Bench()
    arguments = ("HUP", "me") if command == "signal" else ("me", 0.0)
    getattr(bench.supervisor, command)(["nobody"], *arguments)

    assert bench.code() == "no-such-job"


def test_a_name_twice_is_one_job() -> None:
    """A name that is given twice is started once and answered once."""
    bench = Bench()
    bench.supervisor.start(["web", "web"], "me", 0.0)
    bench.launch()

    assert bench.replies()[0].results == (JobResult("web"),)


def test_no_names_is_done_at_once() -> None:
    """An empty list waits for nobody."""
    bench = Bench()
    bench.supervisor.start([], "me", 0.0, wait=True, timeout=5.0)

    assert bench.code() == ""
    assert bench.idle()


def test_several_jobs_one_answer() -> None:
    """A command for several jobs is answered when the last of them is done."""
    bench = Bench(spec_of("a"), spec_of("b"))
    bench.supervisor.start(["a", "b"], "me", 0.0)
    bench.launch("a")
    assert bench.code() is None

    bench.launch("b")
    assert bench.replies()[0].results == (JobResult("a"), JobResult("b"))


def test_each_is_tried_and_the_worst_counts() -> None:
    """A job that cannot be started stops no other; the answer names the worst of what happened."""
    bench = Bench(spec_of("a"), spec_of("b"), spec_of("c")).up("a")
    bench.supervisor.start(["a", "b", "c"], "me", 0.0)
    bench.fail(name="b")
    bench.launch("c")
    reply = bench.replies()[0]

    assert (reply.ok, reply.code) == (False, "could-not-start")
    assert {r.job: r.code for r in reply.results} == {"a": "already-started", "b": "could-not-start", "c": ""}


# ---- start --------------------------------------------------------------------------------------


def test_start_answers_when_launched() -> None:
    """A plain start is done as soon as there is a process."""
    bench = Bench()
    bench.supervisor.start(["web"], "me", 0.0)
    assert bench.code() is None

    bench.launch()
    assert bench.code() == ""


def test_start_that_waits_answers_when_running() -> None:
    """A start that waits is done when the job is ready, not before."""
    bench = Bench(spec_of(ready=READY))
    bench.supervisor.start(["web"], "me", 0.0, wait=True)
    bench.launch()
    bench.execute()
    assert bench.code() is None

    bench.feed(events.Ready(1))
    assert bench.code() == ""


@pytest.mark.parametrize("wait", [False, True])
def test_start_says_why_not(wait: bool) -> None:
    """A program that cannot be executed is named with its reason in the answer."""
    bench = Bench()
    bench.supervisor.start(["web"], "me", 0.0, wait=wait)
    bench.fail()
    reply = bench.replies()[0]

    assert reply.code == "could-not-start"
    assert reply.message == "could not be started: exec: ENOENT (no such file)"


def test_start_that_will_be_tried_again_says_so() -> None:
    """A job that policy will start again has failed for whoever asked, who hears of the next try."""
    bench = Bench(spec_of(restart=Restart.ALWAYS))
    bench.supervisor.start(["web"], "me", 0.0)
    bench.fail()

    assert bench.state() is State.BACKOFF
    assert bench.replies()[0].message.endswith("(no such file) (it will be tried again)")


def test_start_that_waits_sees_an_early_end() -> None:
    """A job that ends before it is ready has failed to start, with its status."""
    bench = Bench(spec_of(ready=READY))
    bench.supervisor.start(["web"], "me", 0.0, wait=True)
    bench.launch()
    bench.execute()
    bench.end(3)

    assert bench.replies()[0].message == "is failed: exit 3"


@pytest.mark.parametrize("whole", [True, False])
def test_start_that_waits_bears_a_crash_that_is_restarted(whole: bool) -> None:
    """While policy starts it again a start waits on, whether the job dies whole or its leader first."""
    bench = Bench(spec_of(ready=READY, restart=Restart.ALWAYS))
    bench.supervisor.start(["web"], "me", 0.0, wait=True)
    bench.launch()
    bench.execute()
    if not whole:
        bench.feed(events.LeaderDied(1, 1))
    bench.end(1)
    bench.fire("web")
    bench.launch()
    bench.execute()
    assert bench.code() is None

    bench.feed(events.Ready(2))
    assert bench.code() == ""


def test_start_of_what_is_up_is_refused() -> None:
    """A job that is up, or coming up, is not started a second time."""
    bench = Bench()
    bench.supervisor.start(["web"], "other", 0.0)
    bench.supervisor.start(["web"], "early", 0.0)
    bench.launch()
    bench.execute()
    bench.supervisor.start(["web"], "late", 0.0, wait=True)

    assert (bench.code("other"), bench.code("early"), bench.code("late")) == ("", *["already-started"] * 2)


def test_start_behind_a_stop_is_queued() -> None:
    """A start while the job stops is accepted at once, and comes true when it is gone."""
    bench = Bench().up()
    bench.supervisor.stop(["web"], "other", 0.0, wait=True)
    bench.supervisor.start(["web"], "me", 0.0)
    bench.supervisor.start(["web"], "patient", 0.0, wait=True)
    assert (bench.code(), bench.code("patient"), bench.code("other")) == ("", None, None)

    bench.end()
    assert (bench.run("web"), bench.code("other")) == (2, "")
    bench.launch()
    bench.execute()
    assert bench.code("patient") == ""


def test_start_of_what_is_being_removed_fails() -> None:
    """A start cannot save a job that is being removed, and says so at once."""
    bench = Bench().up()
    bench.feed(events.Remove())
    bench.supervisor.start(["web"], "me", 0.0)
    bench.supervisor.restart(["web"], "patient", 0.0, wait=True)

    told = [*bench.replies("me"), *bench.replies("patient")]
    assert [(reply.code, reply.message) for reply in told] == [("failed", "is being removed")] * 2


def test_start_that_is_overtaken_by_a_stop() -> None:
    """Who waits for a job that somebody stops meanwhile is told at once."""
    bench = Bench(spec_of(ready=READY))
    bench.supervisor.start(["web"], "me", 0.0, wait=True)
    bench.launch()
    bench.supervisor.stop(["web"], "other", 0.0, by=Cause(Kind.STOP, actor=Actor(1000), reason="mine"))
    reply = bench.replies()[0]

    assert (reply.code, reply.message) == ("failed", "was stopped meanwhile (stop by uid 1000: mine)")


def test_a_start_overtaken_before_there_is_a_process() -> None:
    """Stop right behind start, before anything was launched: the start has failed, the stop is done."""
    bench = Bench()
    bench.supervisor.start(["web"], "me", 0.0)
    bench.supervisor.stop(["web"], "other", 0.0, wait=True)
    bench.feed(events.SpawnFailed(1, "", 0, "called off"))

    assert (bench.code(), bench.code("other")) == ("failed", "")
    assert bench.state() is State.STOPPED


def test_start_ends_a_penalty() -> None:
    """Start of a job in backoff is a launch now."""
    bench = Bench(spec_of(restart=Restart.ALWAYS)).up()
    bench.end(1)
    assert bench.state() is State.BACKOFF

    bench.supervisor.start(["web"], "me", 0.0)
    bench.launch()
    assert bench.code() == ""


# ---- stop ---------------------------------------------------------------------------------------


def test_stop_answers_when_the_signal_is_sent() -> None:
    """A plain stop does not wait for the end; the signal is asked for before the answer goes out."""
    bench = Bench().up()
    bench.take()
    bench.supervisor.stop(["web"], "me", 0.0)
    actions = bench.take()
    kinds = [type(action) for action in actions]

    assert kinds.index(events.SendSignal) < kinds.index(Reply)
    assert bench.code() == ""


def test_stop_that_waits_answers_when_gone() -> None:
    """Stopped means gone: a dead leader is not enough."""
    bench = Bench().up()
    bench.supervisor.stop(["web"], "me", 0.0, wait=True)
    bench.feed(events.LeaderDied(1, "SIGTERM"))
    assert bench.code() is None

    bench.end()
    assert bench.code() == ""


def test_stop_in_backoff_cancels_the_restart() -> None:
    """Stop of a job that waits for its penalty is done at once, and nothing starts it."""
    bench = Bench(spec_of(restart=Restart.ALWAYS)).up()
    bench.end(1)
    bench.supervisor.stop(["web"], "me", 0.0, wait=True)
    bench.fire("web")

    assert (bench.code(), bench.state()) == ("", State.STOPPED)


@pytest.mark.parametrize("status", [0, 1])
def test_stop_of_what_is_down_is_refused_and_makes_it_stopped(status: int) -> None:
    """A job that ended by itself is already stopped for whoever asks, and stopped from then on."""
    bench = Bench().up()
    bench.end(status)
    assert bench.state() is (State.FAILED if status else State.EXITED)

    bench.supervisor.stop(["web"], "me", 0.0)
    assert (bench.code(), bench.state()) == ("already-stopped", State.STOPPED)


def test_stop_twice_is_two_answers() -> None:
    """Everybody who waits for the same end is answered."""
    bench = Bench().up()
    bench.supervisor.stop(["web"], "me", 0.0, wait=True)
    bench.supervisor.stop(["web"], "you", 0.0, wait=True)
    bench.end()

    assert (bench.code("me"), bench.code("you")) == ("", "")


def test_stop_now_sends_sigkill() -> None:
    """`at_once` leaves no patience."""
    bench = Bench().up()
    bench.supervisor.stop(["web"], "me", 0.0, at_once=True)

    assert events.Kill("web", 1) in bench.take()


def test_stop_of_a_job_that_is_being_removed_is_done_when_it_is_gone() -> None:
    """The end that was waited for has come, even if the job is forgotten with it."""
    bench = Bench().up()
    bench.feed(events.Remove())
    bench.supervisor.stop(["web"], "me", 0.0, wait=True)
    bench.supervisor.wait(["web"], "you", 0.0)
    bench.end()

    assert (bench.code("me"), bench.code("you")) == ("", "")
    assert bench.idle()


# ---- restart ------------------------------------------------------------------------------------


def test_restart_is_a_new_run() -> None:
    """Restart stops, waits for the end, and starts; who waits hears of the new run."""
    bench = Bench().up()
    bench.supervisor.restart(["web"], "me", 0.0, wait=True)
    bench.end()
    bench.launch()
    assert bench.code() is None

    bench.execute()
    assert (bench.code(), bench.run("web")) == ("", 2)


def test_restart_of_what_is_down_starts_it() -> None:
    """Restart of a stopped job is a start."""
    bench = Bench()
    bench.supervisor.restart(["web"], "me", 0.0)
    bench.launch()

    assert bench.code() == ""


def test_restart_without_waiting_is_accepted_when_queued() -> None:
    """A plain restart of a running job is done when the wish is noted."""
    bench = Bench().up()
    bench.supervisor.restart(["web"], "me", 0.0)

    assert bench.code() == ""


# ---- wait ---------------------------------------------------------------------------------------


def test_wait_sees_a_launch() -> None:
    """From STOPPED to RUNNING is a change, and the process counts, not its readiness."""
    bench = Bench(spec_of(ready=READY))
    bench.supervisor.wait(["web"], "me", 0.0)
    bench.supervisor.start(["web"], "other", 0.0)
    assert bench.code() is None

    bench.launch()
    assert bench.code() == ""


def test_wait_sees_a_death_that_is_restarted_in_the_same_breath() -> None:
    """A restart by an operator leaves no moment without a wish, but the death is a change."""
    bench = Bench().up()
    bench.supervisor.wait(["web"], "me", 0.0)
    bench.supervisor.restart(["web"], "other", 0.0)
    assert bench.code() is None

    bench.end()
    assert bench.code() == ""


def test_wait_does_not_see_what_failed_before_there_was_a_process() -> None:
    """A job that was down and could not be started has not changed."""
    bench = Bench()
    bench.supervisor.wait(["web"], "me", 0.0)
    bench.supervisor.start(["web"], "other", 0.0)
    bench.fail()

    assert bench.code() is None


def test_wait_of_a_removed_job_fails() -> None:
    """A job that is forgotten can change no more."""
    bench = Bench()
    bench.supervisor.wait(["web"], "me", 0.0)
    bench.feed(events.Remove())

    assert (bench.code(), bench.replies()[0].message) == ("failed", "was removed")
    assert bench.idle()


def test_wait_for_several_waits_for_each() -> None:
    """Each of the jobs has to change."""
    bench = Bench(spec_of("a"), spec_of("b"))
    bench.supervisor.wait(["a", "b"], "me", 0.0)
    bench.up("a")
    assert bench.code() is None

    bench.up("b")
    assert bench.code() == ""


# ---- timeouts -----------------------------------------------------------------------------------


def timer_of(bench: Bench) -> int:
    """The key of the last waiter's timer."""
    bench.take()
    return next(a.key for a in reversed(bench.done) if isinstance(a, events.Arm) and isinstance(a.key, int))


def test_a_timeout_says_what_it_was_waiting_for() -> None:
    """Who runs out of time is told where the job is."""
    bench = Bench().up()
    bench.supervisor.stop(["web"], "me", 0.0, wait=True, timeout=3.0)
    bench.fire(timer_of(bench))
    reply = bench.replies()[0]

    assert bench.now == 3.0
    assert (reply.code, reply.message) == ("timeout", "timed out: it is still stopping (pid 101)")
    assert bench.idle()


def test_a_success_cancels_its_timeout() -> None:
    """Whoever is answered leaves no timer behind."""
    bench = Bench().up()
    bench.supervisor.stop(["web"], "me", 0.0, wait=True, timeout=3.0)
    key = timer_of(bench)
    bench.end()

    assert events.Disarm(key) in bench.take()
    bench.supervisor.timer(key, 0, 3.0)
    assert bench.code() == ""


def test_a_timeout_keeps_what_is_done() -> None:
    """Of several jobs those that were done are said to be, the others timed out."""
    bench = Bench(spec_of("a"), spec_of("b"))
    bench.supervisor.start(["a", "b"], "me", 0.0, timeout=3.0)
    bench.launch("a")
    bench.fire(timer_of(bench))

    assert {r.job: r.code for r in bench.replies()[0].results} == {"a": "", "b": "timeout"}
    bench.launch("b")
    assert len(bench.replies()) == 1


def test_a_refusal_needs_no_timer() -> None:
    """What is answered at once arms nothing."""
    bench = Bench()
    bench.supervisor.stop(["web"], "me", 0.0, wait=True, timeout=3.0)

    assert not [action for action in bench.take() if isinstance(action, (events.Arm, events.Disarm))]


# ---- signal -------------------------------------------------------------------------------------


def test_signal_goes_to_the_run() -> None:
    """A signal names the run it is for, and is answered at once."""
    bench = Bench().up()
    bench.supervisor.signal(["web"], "SIGHUP", "me")
    bench.supervisor.signal(["web"], "SIGUSR1", "you", every=True)

    assert [action for action in bench.take() if isinstance(action, events.Deliver)] == [
        events.Deliver("web", 1, "SIGHUP", False),
        events.Deliver("web", 1, "SIGUSR1", True),
    ]
    assert (bench.code("me"), bench.code("you")) == ("", "")


def test_signal_needs_a_process() -> None:
    """A job that is down, or not launched yet, gets no signal."""
    bench = Bench()
    bench.supervisor.signal(["web"], "SIGHUP", "down")
    bench.supervisor.start(["web"], "other", 0.0)
    bench.supervisor.signal(["web"], "SIGHUP", "early")

    assert (bench.code("down"), bench.code("early")) == ("not-running", "not-running")


def test_signal_to_a_dead_leader_is_refused() -> None:
    """When the first process is dead only its leftovers can be signalled."""
    bench = Bench().up()
    bench.feed(events.LeaderDied(1, 0))
    bench.supervisor.signal(["web"], "SIGHUP", "leader")
    bench.supervisor.signal(["web"], "SIGHUP", "all", every=True)

    assert (bench.code("leader"), bench.code("all")) == ("not-running", "")


# ---- ready, in order ----------------------------------------------------------------------------


def in_order(**settings: object) -> Bench:
    """`web` requires `db`; both are up."""
    return Bench(spec_of("db"), spec_of("web", requires=("db",), **settings)).up("db", "web")


def all_ready(bench: Bench) -> bool:
    """Whether the daemon counts as ready."""
    bench.take()
    return any(isinstance(action, events.AllReady) for action in bench.done)


def test_a_restart_is_passed_on_as_a_restart() -> None:
    """What requires it goes first, waits while it is replaced, and comes back by itself."""
    bench = in_order()
    bench.supervisor.restart(["db"], "me", 0.0, wait=True)
    assert (bench.state("web"), bench.state("db")) == (State.STOPPING, State.RUNNING)

    bench.end(name="web")
    assert (bench.state("web"), bench.state("db")) == (State.WAITING, State.STOPPING)

    bench.end(name="db")
    bench.launch("db")
    bench.execute("db")
    assert (bench.state("web"), bench.run("web"), bench.run("db")) == (State.STARTING, 2, 2)
    assert bench.code() == ""


def test_a_stop_after_a_restart_counts_more() -> None:
    """What is stopped while it is down for the restart of another does not come back with it."""
    bench = in_order()
    bench.supervisor.restart(["db"], "me", 0.0)
    bench.end(name="web")
    bench.supervisor.stop(["web"], "me", 0.0)
    bench.end(name="db")
    bench.launch("db")
    bench.execute("db")

    assert (bench.state("web"), bench.state("db")) == (State.STOPPED, State.RUNNING)


def test_a_restart_that_never_has_its_turn_fails() -> None:
    """It waits for others to be gone, and meanwhile the job is stopped, and started: the old run goes on."""
    bench = in_order()
    bench.supervisor.restart(["db"], "me", 0.0, wait=True)
    bench.supervisor.stop(["db"], "other", 0.0)
    assert (bench.code(), bench.replies()[0].message) == ("failed", "was stopped meanwhile")

    bench.supervisor.start(["db"], "third", 0.0)
    bench.end(name="web")
    assert (bench.state("db"), bench.run("db")) == (State.RUNNING, 1)


def test_one_that_dies_before_its_restart_is_not_given_up() -> None:
    """A job that waits for its turn to be restarted dies by itself: the new run follows, nobody is lost."""
    bench = in_order()
    bench.supervisor.restart(["db"], "me", 0.0)
    bench.end("SIGSEGV", "db")
    bench.end(name="web")
    bench.launch("db")
    bench.execute("db")

    assert (bench.run("db"), bench.run("web"), bench.state("web")) == (2, 2, State.STARTING)


def test_what_fails_for_ever_does_not_keep_the_daemon_from_being_ready() -> None:
    """One autostart job is in a crash loop, another waits for it: after the first failure that is no news."""
    crashes = spec_of("db", autostart=True, restart=Restart.ALWAYS)
    bench = Bench(crashes, spec_of("web", autostart=True, requires=("db",)), spec_of("app", autostart=True))
    bench.supervisor.begin(0.0)
    bench.launch("db")
    assert not all_ready(bench)

    bench.end(1, "db")
    assert not all_ready(bench)

    bench.launch("app")
    bench.execute("app")
    assert all_ready(bench)


# ---- reload -------------------------------------------------------------------------------------


def changed(*specs: JobSpec) -> Plan:
    """A reload that brings other specs."""
    return Plan(changed=tuple(Change(spec) for spec in specs))


def test_a_reload_touches_what_is_new_gone_or_changed() -> None:
    """New jobs are begun, old ones are stopped and forgotten, a live run goes on under its new spec."""
    bench = Bench(spec_of("old"), spec_of("web"), spec_of("same")).up("old", "web", "same")
    web = spec_of("web", command="other")
    bench.supervisor.reload(
        Plan(added=(spec_of("new", autostart=True),), removed=("old",), changed=(Change(web),)), "me", 0.0
    )
    assert (bench.state("new"), bench.state("old")) == (State.STARTING, State.STOPPING)
    assert (bench.state(), bench.run("web"), bench.supervisor.jobs["web"].stale) == (
        *(State.RUNNING, 1),
        ("command",),
    )

    bench.end(name="old")
    assert list(bench.supervisor.jobs) == ["web", "same", "new"]
    assert bench.code() == ""


def test_a_reload_restarts_what_is_stale_if_it_is_asked_to() -> None:
    """But not what is stopped, or is to be: and the answer comes when the new run is ready."""
    bench = Bench(spec_of("web"), spec_of("down"), spec_of("same")).up("web", "same")
    new = changed(spec_of("web", command="other"), spec_of("down", command="other"))
    bench.supervisor.reload(new, "me", 0.0, restart=True)
    assert (bench.state(), bench.state("down"), bench.state("same")) == (
        *(State.STOPPING, State.STOPPED),
        State.RUNNING,
    )

    bench.end()
    bench.launch()
    assert bench.code() is None
    bench.execute()
    assert bench.code() == ""


def test_what_is_removed_goes_in_order() -> None:
    """What requires it is gone first, though neither is configured any more."""
    bench = in_order()
    bench.supervisor.reload(Plan(removed=("db", "web")), "me", 0.0)
    assert (bench.state("db"), bench.state("web")) == (State.RUNNING, State.STOPPING)

    bench.end(name="web")
    assert bench.state("db") is State.STOPPING
    bench.end(name="db")
    assert not bench.supervisor.jobs


def test_a_job_that_comes_back_has_no_run_twice() -> None:
    """Removed and there again: what is late from its old runs cannot be taken for news of the new one."""
    bench = Bench().up()
    bench.supervisor.reload(Plan(removed=("web",)), "me", 0.0)
    bench.end()
    bench.supervisor.reload(Plan(added=(spec_of(autostart=True),)), "other", 0.0)

    assert bench.run("web") == 2


def test_nobody_waits_for_what_a_reload_made_it_require() -> None:
    """A run goes on without what it requires since a reload; its next one is given up if that is down."""
    bench = Bench(spec_of("db"), spec_of("web", restart=Restart.ALWAYS)).up("web", "db")
    bench.supervisor.stop(["db"], "me first", 0.0)
    bench.end(name="db")
    bench.supervisor.reload(changed(spec_of("web", restart=Restart.ALWAYS, requires=("db",))), "me", 0.0)
    assert bench.state() is State.RUNNING

    bench.end(1)
    bench.fire("web")
    assert bench.state() is State.FAILED
    assert str(bench.supervisor.jobs["web"].result) == "requires db, which is stopped: SIGTERM"


def test_what_is_required_since_a_reload_is_started_with_the_next_run() -> None:
    """Nobody has stopped it: it was never started, so it comes up when it is needed."""
    bench = Bench(spec_of("db"), spec_of("web", restart=Restart.ALWAYS)).up("web")
    bench.supervisor.reload(changed(spec_of("web", restart=Restart.ALWAYS, requires=("db",))), "me", 0.0)
    bench.end(1)
    bench.fire("web")

    assert (bench.state("web"), bench.state("db")) == (State.WAITING, State.STARTING)


def test_stop_of_what_is_down_stops_nothing_else() -> None:
    """Not what requires it since a reload, either: the answer was that nothing is to be done."""
    bench = Bench(spec_of("db"), spec_of("web")).up("web")
    bench.supervisor.reload(changed(spec_of("web", requires=("db",))), "first", 0.0)
    bench.supervisor.stop(["db"], "me", 0.0)

    assert (bench.code(), bench.state("web")) == ("already-stopped", State.RUNNING)


def test_a_reload_waits_for_all_that_it_restarts() -> None:
    """What requires a stale job is restarted with it, named in the answer, and waited for."""
    bench = in_order()
    bench.supervisor.reload(changed(spec_of("db", command="other")), "me", 0.0, restart=True)
    for name in ("web", "db"):
        bench.end(name=name)
    for name in ("db", "web"):
        assert bench.code() is None
        bench.launch(name)
        bench.execute(name)

    assert {result.job for result in bench.replies()[0].results} == {"db", "web"}


def test_the_reload_that_takes_an_edge_away_lets_go() -> None:
    """Who waited for what it does not come after any more is launched."""
    bench = Bench(spec_of("db", ready=READY), spec_of("web", requires=("db",)))
    bench.supervisor.start(["web"], "me", 0.0)
    assert bench.state() is State.WAITING

    bench.supervisor.reload(changed(spec_of("web")), "me too", 0.0)
    assert bench.state() is State.STARTING


# ---- the whole ----------------------------------------------------------------------------------


def test_the_daemon_is_up_when_autostart_is_launched() -> None:
    """Announce comes once, when each autostart job has a process or has failed to get one."""
    bench = Bench(spec_of("a", autostart=True), spec_of("b", autostart=True), spec_of("c"))
    bench.supervisor.begin(0.0)
    bench.launch("a")
    assert events.Announce() not in bench.take()

    bench.fail(name="b")
    assert events.Announce() in bench.take()
    assert bench.state("c") is State.STOPPED
    bench.up("c")
    assert bench.done.count(events.Announce()) == 1


def test_nothing_to_start_is_up_at_once() -> None:
    """Without autostart jobs the daemon is up, and all is ready, as soon as it begins."""
    bench = Bench()
    assert bench.take() == []

    bench.supervisor.begin(0.0)
    assert bench.take() == [events.Announce(), events.AllReady()]


def test_a_removed_job_is_not_waited_for() -> None:
    """An autostart job that goes away does not keep the daemon from being up."""
    bench = Bench(spec_of(autostart=True))
    bench.supervisor.begin(0.0)
    bench.feed(events.Remove())
    bench.feed(events.SpawnFailed(1, "", 0, "called off"))

    assert events.Announce() in bench.take()
    assert "web" not in bench.supervisor.jobs


def test_terminate_stops_all_and_ends_when_they_are_gone() -> None:
    """Everything is stopped at once; the end comes with the last death, and is the last event."""
    bench = Bench(spec_of("a"), spec_of("b")).up("a", "b")
    bench.supervisor.terminate(1.0)
    assert {a.job for a in bench.take() if isinstance(a, events.SendSignal)} == {"a", "b"}

    bench.end(name="a")
    assert events.Finish() not in bench.take()
    bench.end(name="b")
    assert bench.take()[-2:] == [events.Publish(), events.Finish()]
    assert bench.told()[-2:] == ["b died", "terminated"]


def test_terminate_with_nothing_up_ends_at_once() -> None:
    """Nobody is waited for where nobody is; what waits for a penalty is settled first."""
    bench = Bench(spec_of("a"), spec_of("b", restart=Restart.ALWAYS)).up("b")
    bench.end(1, "b")
    bench.supervisor.terminate(1.0)

    assert bench.take()[-1] == events.Finish()
    assert bench.told()[-2:] == ["b state", "terminated"]
    assert bench.state("b") is State.STOPPED


def test_terminate_twice_ends_patience() -> None:
    """The second terminate kills what lives, once, and touches nothing else."""
    bench = Bench(spec_of("a"), spec_of("b")).up("a", "b")
    bench.supervisor.terminate(1.0)
    bench.end(name="b")
    bench.take()
    bench.supervisor.terminate(2.0)
    assert [a for a in bench.take() if isinstance(a, events.Kill)] == [events.Kill("a", 1)]

    bench.supervisor.terminate(3.0)
    assert bench.take() == []


def test_nothing_is_started_after_terminate() -> None:
    """Shutdown is a latch: no start, no restart, no queued wish and no policy comes through."""
    bench = Bench(spec_of("a", restart=Restart.ALWAYS), spec_of("b")).up("a", "b")
    bench.supervisor.restart(["b"], "before", 0.0, wait=True)
    bench.supervisor.terminate(1.0)
    bench.take()
    for command in ("start", "restart"):
        getattr(bench.supervisor, command)(["a"], command, 1.0)
    bench.end(1, "a")
    bench.end(name="b")

    assert (bench.code("start"), bench.code("restart")) == ("terminating", "terminating")
    assert bench.code("before") == "failed"
    assert not [a for a in bench.take() if isinstance(a, events.Spawn)]
    assert bench.idle()


def test_stop_is_answered_while_terminating() -> None:
    """What goes down anyway may be waited for."""
    bench = Bench().up()
    bench.supervisor.terminate(1.0)
    bench.supervisor.stop(["web"], "me", 1.0, wait=True)
    bench.end()

    assert bench.code() == ""


def test_waits_end_with_the_daemon() -> None:
    """A wait on what is down fails as soon as nothing can start it, one on what lives sees its death."""
    bench = Bench(spec_of("a"), spec_of("b")).up("b")
    bench.supervisor.wait(["a"], "a", 0.0)
    bench.supervisor.wait(["b"], "b", 0.0)
    bench.supervisor.terminate(1.0)
    bench.supervisor.wait(["a"], "late", 1.0)
    assert (bench.code("a"), bench.code("late"), bench.code("b")) == ("terminating", "terminating", None)

    bench.end(name="b")
    assert bench.code("b") == ""


def test_a_wait_on_a_launch_that_is_called_off_ends() -> None:
    """A job that never was a process when the daemon ended leaves nobody waiting."""
    bench = Bench()
    bench.supervisor.start(["web"], "other", 0.0)
    bench.supervisor.wait(["web"], "me", 0.0)
    bench.supervisor.terminate(1.0)
    bench.feed(events.SpawnFailed(1, "", 0, "called off"))

    assert bench.code() == "terminating"
    assert bench.idle()


@pytest.mark.parametrize(
    ("essential", "status", "code"),
    [
        (Essential.YES, 0, 0),
        (Essential.YES, 3, 3),
        (Essential.YES, "SIGSEGV", "SIGSEGV"),
        (Essential.ON_FAILURE, 3, 3),
        (Essential.YES, None, 1),
    ],
)
def test_the_end_of_an_essential_job_is_the_daemons(
    essential: Essential, status: events.Status, code: int | str
) -> None:
    """What the daemon lives for ends it, with its code, after the others are gone."""
    bench = Bench(spec_of("a", essential=essential), spec_of("b")).up("a", "b")
    bench.end(status, "a")
    assert bench.state("b") is State.STOPPING

    bench.end(name="b")
    assert bench.take()[-1] == events.Finish(code)


def test_an_essential_job_that_is_stopped_ends_nothing() -> None:
    """An operator's stop, a restart by policy, and a good end under on-failure leave the daemon alone."""
    bench = Bench(
        spec_of("a", essential=Essential.YES),
        spec_of("b", essential=Essential.YES, restart=Restart.ALWAYS),
        spec_of("c", essential=Essential.ON_FAILURE),
    ).up("a", "b", "c")
    bench.supervisor.stop(["a"], "me", 0.0)
    bench.end(name="a")
    bench.end(1, "b")
    bench.end(0, "c")

    assert not bench.supervisor.terminating


@pytest.mark.parametrize(("number", "code"), [(errno.ENOENT, 127), (errno.EACCES, 126)])
def test_an_essential_job_that_cannot_be_executed(number: int, code: int) -> None:
    """The daemon's exit code says as a shell does why the job could not be executed."""
    bench = Bench(spec_of(essential=Essential.YES))
    bench.supervisor.start(["web"], "me", 0.0)
    bench.fail(number)

    assert bench.take()[-1] == events.Finish(code)


def test_who_waits_for_an_essential_job_hears_how_it_ended() -> None:
    """The answer tells of the job's own end, not of the shutdown that it set off."""
    bench = Bench(spec_of(essential=Essential.YES, ready=READY))
    bench.supervisor.start(["web"], "me", 0.0, wait=True)
    bench.launch()
    bench.execute()
    bench.end(3)

    assert bench.replies()[0].message == "is failed: exit 3"


def test_who_has_gone_is_not_answered() -> None:
    """After drop nobody is answered there, and nothing of the wait is left; others are."""
    bench = Bench().up()
    for to in ("me", "you"):
        bench.supervisor.stop(["web"], to, 0.0, wait=True, timeout=3.0)
    bench.supervisor.drop("me")
    bench.end()

    assert (bench.replies("me"), bench.code("you")) == ([], "")
    assert bench.idle()
    armed = [a for a in bench.done if isinstance(a, events.Arm) and isinstance(a.key, int)]
    assert len([a for a in bench.done if isinstance(a, events.Disarm) and isinstance(a.key, int)]) == len(
        armed
    )


def test_news_of_an_unknown_job_is_dropped() -> None:
    """What a forgotten job's timer or process says reaches nobody."""
    bench = Bench()
    bench.supervisor.feed("nobody", events.Exited(1, 0), 0.0)
    bench.supervisor.timer("nobody", 1, 0.0)
    bench.supervisor.timer(17, 0, 0.0)
    bench.supervisor.timer(None, 0, 0.0)

    assert bench.take() == []


# ---- what is told -------------------------------------------------------------------------------


def test_events_are_published_once_after_what_is_to_be_done() -> None:
    """However much happened, listeners are served once, and a launch does not wait for them."""
    bench = Bench().up()
    actions = bench.take()

    assert actions[-1] == events.Publish()
    assert actions.count(events.Publish()) == 1
    assert bench.take() == []


def test_the_token_is_the_event_number_before_the_command() -> None:
    """Whoever asks for events since the token misses nothing that the command did."""
    bench = Bench().up()
    before = bench.supervisor.log.last
    bench.supervisor.stop(["web"], "me", 0.0, wait=True)
    bench.end()

    assert bench.replies()[0].token == before
    assert [event[3] for event in bench.supervisor.log.after(before)] == ["state", "died"]


def test_events_carry_the_time_of_day() -> None:
    """The log's clock is the wall's, given by the engine."""
    bench = Bench()
    bench.supervisor.wall = 1_000_000.0
    bench.now = 5.0
    bench.up()

    assert [event[1] for event in bench.supervisor.log.after(0)] == [1_000_005.0] * 2


def test_a_contradiction_is_reported_with_its_history() -> None:
    """What cannot be is passed on with the way there, and changes nothing."""
    bench = Bench().up()
    bench.end(0)
    bench.take()
    bench.end(0)
    (action,) = bench.take()

    assert isinstance(action, events.Impossible)
    assert [line.split(" ", 1)[1] for line in action.history] == [
        "launched: starting, run 1, start",
        "state: running, run 1, launched",
        "died: exited, run 1, exit 0",
    ]
    assert bench.state() is State.EXITED


def test_the_history_of_a_contradiction_is_short_and_of_one_job() -> None:
    """Only the last events of the job in question go with the report."""
    log = EventLog()
    for number in range(TOLD_OF_A_BUG * 3):
        log.add(0.0, "ab"[number % 2], "state", State.RUNNING, number, None, SERVES)
    told = log.history("b", TOLD_OF_A_BUG)

    assert len(told) == TOLD_OF_A_BUG
    assert told[-1] == f"0.000 state: running, run {TOLD_OF_A_BUG * 3 - 1}, ready"


def test_the_log_says_who_missed_something(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events are numbered without a gap; only so many are kept, and the log knows which."""
    monkeypatch.setattr("jobmon.core.eventlog.KEPT_EVENTS", 3)
    begun = EventLog(begin=7)
    log = EventLog()
    assert (log.first, log.holds(0), list(log.after(0))) == (1, True, [])

    for number in range(5):
        log.add(0.0, "a", "state", State.RUNNING, number, None, SERVES)
        begun.add(0.0, "a", "state", State.RUNNING, number, None, SERVES)
        assert begun.holds(0) == begun.holds(7) == log.holds(0)
    assert [begun.holds(seq) for seq in (5, 8, 9, 12, 13)] == [False, False, True, True, False]
    assert (log.first, log.last) == (3, 5)
    assert [log.holds(seq) for seq in (0, 1, 2, 3, 4, 5, 6)] == [False, False, True, True, True, True, False]
    assert [event[0] for event in log.after(2)] == [3, 4, 5]
    assert [event[0] for event in log.after(4)] == [5]
    assert list(log.after(5)) == list(log.after(99)) == []


# ---- who waits for a launch ---------------------------------------------------------------------


def asked(bench: Bench) -> dict[str, bool]:
    """Of the launches since the last look, whether an operator waits for them."""
    return {action.job: action.asked for action in bench.take() if isinstance(action, events.Spawn)}


def test_a_launch_knows_whether_an_operator_waits_for_it() -> None:
    """By start and restart, with what is required for that; not one at the begin, nor one that follows a
    death, also of a job that an operator had started before."""
    again = spec_of("again", restart=Restart.ALWAYS, autostart=True)
    bench = Bench(again, spec_of("base"), spec_of("top", requires=("base",)), spec_of("stopped"))
    bench.supervisor.begin(0.0)
    assert asked(bench) == {"again": False}
    bench.launch("again")
    bench.execute("again")
    bench.supervisor.start(["top"], "me", 0.0)
    assert asked(bench) == {"base": True}
    bench.launch("base")
    bench.execute("base")
    assert asked(bench) == {"top": True}
    bench.supervisor.restart(["again"], "me", 0.0)
    bench.take()
    bench.end(name="again")
    assert asked(bench) == {"again": True}
    bench.launch("again")
    bench.execute("again")
    bench.now = 100.0
    bench.end(1, name="again")
    bench.fire("again")
    assert asked(bench) == {"again": False}


def test_what_is_restarted_with_what_it_requires_is_waited_for_too() -> None:
    """A restart of a requirement gives what requires it a new run, and the operator waits for both."""
    bench = Bench(spec_of("base"), spec_of("top", requires=("base",))).up("base", "top")
    bench.take()
    bench.supervisor.restart(["base"], "me", 0.0)
    bench.end(name="top")
    bench.end(name="base")
    bench.launch("base")
    bench.execute("base")

    assert asked(bench) == {"base": True, "top": True}
