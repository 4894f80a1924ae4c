"""What differs between two configurations, and what the supervisor makes of it: pure, no kernel."""

from __future__ import annotations

import pytest
from test_config import EVERY_JOB_KEY, EVERY_SUPERVISOR_KEY, read
from test_supervisor import Bench, spec_of

from jobmon.config import keys as config_keys
from jobmon.core import conditions, events
from jobmon.core.events import State
from jobmon.core.plan import Change, Keys, Plan, plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from jobmon.config import Config
    from jobmon.core.spec import JobSpec

NEXT_RUN = "command stdin stdout stderr env working-dir kill-scope type ready start-timeout watchdog".split()
NEW_DAEMON = {"working-dir", "control-port", "event-port", "state-dir"}


def jobs(**settings: dict[str, Any]) -> Config:
    """A configuration of some jobs, each a command and these settings."""
    return read({"jobs": {name: {"command": "true", **keys} for name, keys in settings.items()}})


# ---- the plan ---------------------------------------------------------------------------------


def test_between_equals_there_is_nothing_to_do() -> None:
    """However often the same is read, and in whatever order and file its jobs stand, it is the same."""
    one = jobs(a={}, b={"env": {"X": "1", "Y": "2"}})
    other = read(
        {"supervisor": {"include-dirs": []}, "jobs": {"b": {"env": {"Y": "2", "X": "1"}, "command": "true"}}},
    )
    other.jobs["a"] = one.jobs["a"].replace()

    assert plan(one, one) == plan(one, other) == Plan()
    assert not plan(one, other)


def test_added_removed_and_changed_are_told_apart() -> None:
    """By name; each in the order in which it is configured."""
    old = jobs(z={}, a={}, b={}, c={})
    new = jobs(n={}, c={"signal": "SIGINT"}, a={}, m={}, b={"env": {"A": "1"}})
    found = plan(old, new)

    assert found.added == (new.jobs["n"], new.jobs["m"])
    assert found.removed == ("z",)
    assert found.changed == (
        Change(new.jobs["c"], ("signal",), ()),
        Change(new.jobs["b"], (), ("env",)),
    )
    assert found


@pytest.mark.parametrize("key", [row.name for row in config_keys.JOB])
def test_every_key_of_a_job_counts_at_once_or_later(key: str) -> None:
    """The keys that a process is launched with count for the next run, all others at once."""
    others = {"b": {"command": "x"}, "c": {"command": "x"}}
    changed = {"command": "true", key: EVERY_JOB_KEY[key]}
    if key == "type":
        changed["type"] = "oneshot"
    old = read({"jobs": {"a": {"command": "true"}, **others}})
    (change,) = plan(old, read({"jobs": {"a": changed, **others}})).changed
    expected = [key, "start-timeout"] if key == "type" else [key]

    assert list(change.restart) == [name for name in expected if name in NEXT_RUN]
    assert list(change.hot) == [name for name in expected if name not in NEXT_RUN]


@pytest.mark.parametrize("key", [row.name for row in config_keys.SUPERVISOR])
def test_every_key_of_the_supervisor_counts_at_once_or_later(key: str) -> None:
    """What the daemon has gone to and opened for good waits for the next daemon."""
    value = ["none/*.json"] if key == "include-dirs" else EVERY_SUPERVISOR_KEY[key]
    found = plan(read({}), read({"supervisor": {key: value}})).daemon

    assert found == (Keys((), (key,)) if key in NEW_DAEMON else Keys((key,), ()))


# ---- the supervisor -----------------------------------------------------------------------------


class Site(Bench):
    """A bench whose configuration changes."""

    def __init__(self, *specs: JobSpec) -> None:
        super().__init__(*specs)
        self.specs = {spec.name: spec for spec in specs}

    def reload(self, *specs: JobSpec, to: object = "me", restart: bool = False) -> None:
        """Go by these specs from now on."""
        new = {spec.name: spec for spec in specs}
        changes = plan(_config(self.specs), _config(new))
        self.specs = new
        self.supervisor.reload(changes, to, self.now, restart=restart)

    def without(self, *names: str) -> list[JobSpec]:
        """The present specs less some."""
        return [spec for name, spec in self.specs.items() if name not in names]

    def states(self) -> dict[str, str]:
        """Where each job is."""
        return {name: job.state.value for name, job in self.supervisor.jobs.items()}


def _config(specs: dict[str, JobSpec]) -> Config:
    return read("{}").replace(jobs=specs)


def test_what_is_added_is_known_and_started_in_order() -> None:
    """With autostart it is started after what it requires, which is started for it; else it is there."""
    site = Site(spec_of("web"))
    db, app = spec_of("db"), spec_of("app", autostart=True, requires=("db",))
    site.reload(*site.without(), app, db, spec_of("tool"))

    assert site.states() == {"web": "stopped", "app": "waiting", "db": "starting", "tool": "stopped"}
    site.launch("db")
    site.execute("db")
    assert site.state("app") is State.STARTING
    assert site.code() == ""


def test_autostart_that_is_turned_on_starts_nothing() -> None:
    """What is down was stopped by somebody, or was never asked for: it stays so."""
    site = Site(spec_of("web"))
    site.reload(spec_of("web", autostart=True))

    assert site.states() == {"web": "stopped"}


def test_what_is_removed_goes_in_order_and_is_forgotten() -> None:
    """First what requires it, which is removed too; what was down is forgotten at once."""
    idle, app, top = spec_of("idle"), spec_of("app", requires=("db",)), spec_of("top", requires=("app",))
    site = Site(idle, spec_of("db"), app, top).up("db", "app", "top")
    site.reload()
    assert site.states() == {"db": "running", "app": "running", "top": "stopping"}

    for name in ("top", "app", "db"):
        assert site.state(name) is State.STOPPING
        site.end(name=name)
    assert site.states() == {}
    removed = [word for word in site.told() if word.endswith("removed")]
    assert removed == ["idle removed", "top removed", "app removed", "db removed"]
    assert site.supervisor.order.after == {"app": ("db",), "top": ("app",)}
    site.reload(spec_of("new"))
    assert site.supervisor.order.after == {}


def test_what_does_not_change_is_not_touched() -> None:
    """Neither its run nor its timers nor its events: nothing at all is asked for."""
    site = Site(spec_of("web", kill_timeout=5.0), spec_of("db")).up("web", "db")
    site.supervisor.stop(["web"], "somebody", 0.0)
    site.take()
    before = len(site.done), site.told()
    site.reload(*site.without(), to="me")
    site.take()

    assert [type(action) for action in site.done[before[0] :]] == [events.Reply]
    assert site.told() == before[1]


def test_what_counts_at_once_is_gone_by_at_once() -> None:
    """The next stop of the run sends the new signal and has the new patience; nothing is stale."""
    site = Site(spec_of("web")).up("web")
    site.reload(spec_of("web", signal="SIGINT", kill_timeout=3.0, description="x"))
    assert not site.supervisor.jobs["web"].stale
    site.supervisor.stop(["web"], "me2", site.now)
    site.take()

    assert events.SendSignal("web", 1, "SIGINT") in site.done
    assert any(isinstance(one, events.Arm) and one.at == site.now + 3.0 for one in site.done)


def test_what_counts_for_the_next_run_makes_a_run_stale() -> None:
    """It runs on; the next run has the new spec; what is down is never stale."""
    site = Site(spec_of("web"), spec_of("db")).up("web")
    site.reload(spec_of("web", command="new"), spec_of("db", command="new"))
    jobs = site.supervisor.jobs
    assert (jobs["web"].stale, jobs["db"].stale) == (("command",), ())
    assert site.state("web") is State.RUNNING

    site.supervisor.restart(["web"], "me2", site.now)
    site.end()
    site.take()
    spawn = [action for action in site.done if isinstance(action, events.Spawn)][-1]
    assert spawn.spec.command == "new"
    assert not jobs["web"].stale


def test_with_restart_what_is_stale_has_a_new_run() -> None:
    """In order, and what requires it with it; answered when all is ready. What was stopped stays so, and
    what became stale by an earlier reload counts too."""
    site = Site(
        *(spec_of("db"), spec_of("app", requires=("db",)), spec_of("web"), spec_of("down"), spec_of("old"))
    )
    site.up("db", "app", "web", "down", "old")
    site.supervisor.stop(["down"], "somebody", site.now)
    site.end(name="down")
    site.reload(*site.without("old"), spec_of("old", command="new"), to="first")
    assert site.code("first") == ""
    new = [spec_of(name, command="new") for name in ("db", "down", "old")]
    site.reload(*new, *site.without("db", "down", "old"), restart=True)
    assert " ".join(site.states().values()) == "running stopping running stopped stopping"

    for name in ("app", "db", "old"):
        site.end(name=name)
    for name in ("db", "app", "old"):
        assert site.code() is None
        site.launch(name)
        site.execute(name)
    assert " ".join(site.states().values()) == "running running running stopped running"
    assert {result.job for result in site.replies()[0].results} == {"db", "app", "old"}
    assert site.code() == ""


def test_with_restart_and_nothing_stale_it_is_answered_at_once() -> None:
    """Also where nothing has changed at all."""
    site = Site(spec_of("web")).up("web")
    site.reload(spec_of("web", signal="SIGINT"), restart=True)

    assert site.code() == ""
    assert site.state("web") is State.RUNNING
    assert site.idle()


def test_a_restart_that_comes_to_nothing_is_told() -> None:
    """A new run that fails is the answer of the reload that asked for it."""
    site = Site(spec_of("web")).up("web")
    site.reload(spec_of("web", command="new"), restart=True)
    site.end()
    site.fail()

    assert site.code() == "could-not-start"
    assert site.supervisor.jobs["web"].spec.command == "new"


def test_who_waits_for_what_is_removed_is_told_at_once() -> None:
    """Who waits for it to come up need not wait for its end; who waits for its end does."""
    site = Site(spec_of("web"), spec_of("db", requires=("web",)), spec_of("app", requires=("db",)))
    site.up("web", "db")
    supervisor = site.supervisor
    for condition in (conditions.restarted, conditions.exited):
        name = condition.__name__
        supervisor.wait(["web"], name, 0.0, until=(name, condition))
    supervisor.stop(["web"], "stop", 0.0, wait=True)
    site.reload()
    assert (site.code("restarted"), site.code("exited"), site.code("stop")) == ("failed", None, None)

    site.end(name="db")
    site.end(name="web")
    assert (site.code("exited"), site.code("stop")) == ("", "")
    assert site.idle()


def test_what_is_added_again_before_it_is_gone_stays() -> None:
    """The run that was being removed ends; with autostart there is a new one, of the new spec, else none."""
    for autostart, state in ((False, State.STOPPED), (True, State.STARTING)):
        site = Site(spec_of("web")).up("web")
        site.reload()
        assert site.state() is State.STOPPING
        site.reload(spec_of("web", command="new", autostart=autostart))
        site.end()

        assert site.state() is state
        assert site.supervisor.jobs["web"].spec.command == "new"
        assert "web removed" not in site.told()


def test_what_waits_for_its_turn_to_go_and_is_added_again_runs_on() -> None:
    """Nothing has been done to it yet, because what requires it goes first: it is stale, and that is all."""
    for autostart in (False, True):
        site = Site(spec_of("db"), spec_of("app", requires=("db",))).up("db", "app")
        site.reload()
        assert site.states() == {"db": "running", "app": "stopping"}
        site.reload(spec_of("db", command="new", autostart=autostart))
        site.end(name="app")

        assert site.states() == {"db": "running"}
        assert site.supervisor.jobs["db"].stale == ("command",)


@pytest.mark.parametrize("command", ["start", "stop", "restart", "reload"])
def test_a_removal_that_waits_for_its_turn_is_not_called_off(command: str) -> None:
    """Whoever comes with another order for it meanwhile, also by restarting what is stale, it goes."""
    site = Site(spec_of("db"), spec_of("app", requires=("db",))).up("db", "app")
    site.reload(spec_of("db", command="new"), spec_of("app", requires=("db",)), to="first")
    site.reload(to="second")
    if command == "reload":
        site.reload(restart=True)
    else:
        getattr(site.supervisor, command)(["db"], "me", site.now, wait=True)
    site.end(name="app")
    assert site.states() == {"db": "stopping"}
    site.end(name="db")

    assert site.states() == {}
    assert site.code() == {"start": "failed", "restart": "failed"}.get(command, "")
    assert site.idle()


def test_a_new_order_is_gone_by_at_once() -> None:
    """Who waited for what it need not wait for any more is launched; who has come to require what stops
    stops with it."""
    site = Site(spec_of("db", ready=None), spec_of("app", requires=("db",)), spec_of("web"))
    site.supervisor.start(["app"], "somebody", 0.0)
    assert site.states() == {"db": "starting", "app": "waiting", "web": "stopped"}
    site.reload(spec_of("db"), spec_of("app"), spec_of("web", requires=("db",)))
    assert site.state("app") is State.STARTING

    site.launch("db")
    site.execute("db")
    site.up("web")
    site.supervisor.stop(["db"], "somebody else", 0.0)
    assert site.states() == {"db": "running", "app": "starting", "web": "stopping"}


def test_what_no_longer_requires_what_is_removed_runs_on() -> None:
    """Also when it had just been taken down by a restart of that."""
    site = Site(spec_of("db"), spec_of("app", requires=("db",)), spec_of("web", requires=("db",)))
    site.up("db", "app", "web")
    site.supervisor.restart(["db"], "somebody", 0.0)
    site.end(name="web")
    assert site.states() == {"db": "running", "app": "stopping", "web": "waiting"}
    site.reload(spec_of("app"), spec_of("web"))
    site.end(name="app")
    site.end(name="db")

    assert site.states() == {"app": "starting", "web": "starting"}


def test_after_the_shutdown_has_begun_nothing_is_reloaded() -> None:
    """It is refused, and changes nothing."""
    site = Site(spec_of("web")).up("web")
    site.supervisor.terminate(0.0)
    site.reload(spec_of("db", autostart=True))

    assert site.code() == "terminating"
    assert site.states() == {"web": "stopping"}
