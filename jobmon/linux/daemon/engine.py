"""The loop: turns kernel events into inputs and actions into system calls. Decides nothing.

One thread, one epoll. A turn dispatches what is ready, carries out what the supervisor wants,
and starts processes for a few milliseconds at most, so that a thousand starts do not keep a
client waiting. While nothing happens it sleeps in epoll_wait without a timeout.
"""

from __future__ import annotations

import os
import time

from jobmon import __version__
from jobmon.core import events
from jobmon.core.causes import START_TIMEOUT, Actor, Cause, Kind
from jobmon.core.events import State
from jobmon.core.spec import KillScope
from jobmon.errors import SpawnError
from jobmon.lean.cpython import deque, signal
from jobmon.limits import DIED
from jobmon.linux import log as logfile
from jobmon.linux.control.server import Sessions
from jobmon.linux.daemon.reload import Reloads, Request
from jobmon.linux.daemon.runfacts import RunFacts
from jobmon.linux.daemon.systemd import Herald
from jobmon.linux.kernel import procfs, signals
from jobmon.linux.kernel.loop import SIGNAL, UNSET, Loop, TurnBudget
from jobmon.linux.monitor.runmonitor import Attendants
from jobmon.linux.processes import spawn
from jobmon.linux.processes.children import Children, spawn_failed
from jobmon.linux.processes.finalsweep import Remnants
from jobmon.linux.processes.spawnqueue import Births
from jobmon.linux.processes.stderrtail import LastWords
from jobmon.linux.processes.worker import place_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from typing import Any

    from jobmon.core.spec import JobSpec
    from jobmon.core.supervisor import Supervisor
    from jobmon.linux.control.port import ReloadOutcome
    from jobmon.linux.daemon.reload import Reloader
    from jobmon.linux.daemon.systemd import Notifier
    from jobmon.linux.kernel.cgroup import Cgroup, Hierarchy
    from jobmon.linux.kernel.loop import Handle
    from jobmon.linux.kernel.peers import Access
    from jobmon.linux.kernel.signals import Terminal
    from jobmon.linux.log import Log
    from jobmon.linux.processes.maincommand import Companion
    from jobmon.linux.processes.spawn import Spawner
    from jobmon.linux.processes.statedir import StateDir
    from jobmon.linux.processes.tracker import Tree

# SIGPWR and SIGRTMIN+3 are how container managers ask an init to shut down.
SHUTDOWN = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGPWR, signal.SIGRTMIN + 3)
# Sent by mistake, each of these would end a process that does not heed it.
HARMLESS = (signal.SIGUSR2, signal.SIGALRM, signal.SIGPROF, signal.SIGIO)
SIGNALS = (signal.SIGCHLD, signal.SIGHUP, signal.SIGUSR1, *SHUTDOWN, *HARMLESS)
BIRTH_SECONDS = 0.005  # how long one turn may spend on starting processes
ACT_SECONDS = 0.005  # how long one turn may spend on carrying out what the supervisor wants
FAILING_TURNS = 100  # so many in a row, and the loop is given up
SHOWN_SECONDS = 0.2  # after which a process that waits for a file system is known to be there
OPENING_SECONDS = 1.0  # how long clients wait for the autostart jobs to be launched, at most
FAREWELL_SECONDS = 2.0  # how long the end waits for readers of the last event, and for strays
REMNANTS_LOOK_SECONDS = 0.02
WALL_SLACK = 0.001  # seconds that unix time may drift before it is set right


class Engine:
    """The daemon at work. `announce` is called once the autostart jobs are launched."""

    def __init__(
        self,
        supervisor: Supervisor,
        spawner: Spawner,
        log: Log,
        access: Access,
        *,
        reloader: Reloader,
        tree: Tree,
        hierarchy: Hierarchy | None,
        state: StateDir,
        announce: Callable[[], None],
        notifier: Notifier,
        watchdog: float,
        terminal: Terminal,
        companion: Companion | None = None,
        about: dict[str, Any],
    ) -> None:
        self.supervisor = supervisor
        self.log = log
        procfs.pin()
        self.loop = Loop(self.bug, self._act)
        self._deadlines: dict[Hashable, Handle] = {}  # of the supervisor, by the keys that it gave them
        self.sessions = Sessions(self, access, len(supervisor.jobs))
        log.call_later = self._tell_left_out_later
        self._next_summary = UNSET
        self._spawner = spawner
        self._announce = announce
        self._about = about
        self._herald = Herald(notifier, supervisor, self.loop, watchdog) if notifier else None
        self._terminal = terminal
        self._companion = companion
        self._signals = signals.SignalSource(companion.signals if companion is not None else SIGNALS)
        self._hierarchy = hierarchy
        self._state = state
        self.children = Children(self.loop, self._feed, tree)
        self._membership = tree if hierarchy is None else self.children.migrants
        self.attendants = Attendants(self.loop, self.children, spawner, log, self._feed)
        self.last_words = LastWords(spawner.may_hang)
        self._reloads = Reloads(
            reloader, self, self.children, self.sessions, self._reload_begun, self._reload_ended
        )
        self._births = Births()
        self._actions: deque[events.Action] = deque()  # not carried out yet
        self._budget = TurnBudget(self.loop)  # for them
        self._opening = UNSET
        self._exit_code = 0
        self._ordered = False  # whether somebody asked for the shutdown
        self._withheld: events.Finish | None = None  # until the companion has ended
        self._remnants: Remnants | None = None
        self._over = False
        self._do: dict[type[events.Action], Callable[[Any], None]] = {
            events.Spawn: self._births.add,
            events.SendSignal: self._stop,
            events.Kill: self._kill,
            events.Deliver: self._deliver,
            events.Arm: self._arm,
            events.Disarm: self._disarm,
            events.Changed: self._log_change,
            events.Impossible: self._log_impossible,
            events.Warn: self._log_warning,
            events.Publish: lambda _: self.sessions.publish(),
            events.Reply: self._reply,
            events.Announce: self._up,
            events.AllReady: self._all_ready,
            events.Finish: self._finish,
        }

    def run(self) -> int:
        """Work until everything is down; returns the daemon's exit code."""
        self.loop.add_reader(self._signals.fileno(), self._on_signal, SIGNAL)
        self._set_wall()
        if self._herald is not None:
            self._herald.begin()
        now = time.monotonic()
        # Who connects to a socket of systemd's, or while we begin, is not told that all is down.
        self._opening = self.loop.call_at(now + OPENING_SECONDS, self.sessions.open)
        self.supervisor.begin(now)
        self._act()
        failing = 0
        while not self._over:
            try:
                self._turn()
                failing = 0
            except Exception as error:  # noqa: BLE001 - the jobs depend on the loop
                self.bug("the loop", error)
                failing += 1
                if failing >= FAILING_TURNS:
                    raise
        self.children.sweep()  # who left a cgroup by dying may not have been reaped yet
        return self._exit_code

    def _turn(self) -> None:
        self._give_birth()
        self.children.tree.forget()
        self.loop.run_once(block=not (self._births or self._actions))
        self._act()
        self._tell_strays()
        if self._herald is not None:
            self._herald.turn()
        self._over = self._over or self._may_leave()

    def give_up(self) -> None:
        """The loop cannot go on: kill what was launched, so that nothing is left without a daemon."""
        self.log.write(logfile.CRITICAL, "the daemon gives up: killing what it has launched")
        self.children.end()

    def close(self) -> None:
        """Let go of everything."""
        self.sessions.close()
        self.attendants.close()
        self.loop.remove_reader(self._signals.fileno())
        if self._herald is not None:
            self._herald.close()
        self._signals.close()
        self.loop.close()
        self.children.close()
        if self._hierarchy is not None:
            self._hierarchy.close()

    def terminate(self, by: Cause) -> None:
        """Begin the ordered shutdown; again: without patience."""
        self.log.limited(logfile.INFO, "shutdown", by=str(by), again=self.supervisor.terminating or None)
        self._ordered = self._ordered or not self.supervisor.terminating
        self.supervisor.terminate(time.monotonic(), by)

    def reload(
        self,
        by: Cause,
        done: Callable[[ReloadOutcome], None] = lambda _outcome: None,
        *,
        restart: bool = False,
        dry_run: bool = False,
        is_signal: bool = False,
    ) -> Hashable:
        """Read the configuration again and apply it, or (`dry_run`) find out what that would change.
        `done` is told what it came to; the request that is returned is what the supervisor answers to."""
        if not dry_run:
            self.sessions.renew()
            self._state.renew(self.children.runs())
        request = Request(by, done, restart=restart, dry_run=dry_run, is_signal=is_signal)
        self._reloads.add(request)
        return request

    def facts(self, job: str) -> RunFacts:
        """What is known of the run of a job."""
        known = self.supervisor.jobs.get(job)
        ran = None if known is None else known.ran
        return RunFacts(job, ran, self.children, self.attendants, self.last_words)

    def info(self) -> dict[str, Any]:
        """What a client may know of this daemon."""
        about = {**self._about, "config": spawn.told(self._about["config"])}
        return {"pid": os.getpid(), "version": __version__, **about}

    def unattributed(self) -> list[int]:
        """The processes below the daemon that no job owns, as far as can be known."""
        return [fact.pid for fact in self._membership.strays()] if self.children.tree.orphaned() else []

    def bug(self, where: str, error: Exception) -> None:
        """Something failed that must not: say so with its place, and live on."""
        text = "internal error (please report)"
        self.log.write(logfile.CRITICAL, text, where=where, error=repr(error), place=place_of(error))

    # ---- what the kernel says -------------------------------------------------------------

    def _feed(self, job: str, what: events.ProcessInput) -> None:
        try:
            if self.attendants.holds(job, what):
                return
            if isinstance(what, (events.Exited, events.SpawnFailed)):
                self._state.gone(job, what.run)
            self.supervisor.feed(job, what, time.monotonic())
            self.attendants.after(job, what)
        except Exception as error:  # noqa: BLE001 - or the source would be disabled, for all jobs
            self.bug(f"{type(what).__name__} of {job}", error)

    def _on_signal(self, _events: int) -> None:
        for number, sender, from_kernel in self._signals.read():
            try:
                self._heed(number, sender, from_kernel=from_kernel)
            except Exception as error:  # noqa: BLE001 - or nobody would hear a signal again
                self.bug(signals.name_of(number), error)

    def _heed(self, number: int, sender: int, *, from_kernel: bool) -> None:
        if number == signal.SIGHUP and self._terminal.is_over(sender, from_kernel=from_kernel):
            self._hang_up()
            return
        if self._companion is not None and self._companion.heed(number):
            return
        if number == signal.SIGCHLD:
            self.children.sweep()
        elif number in SHUTDOWN:
            self.terminate(Cause(Kind.TERMINATE, signals.name_of(number), actor=Actor(pid=sender)))
        elif number == signal.SIGUSR1:
            self.log.reopen()
        elif number == signal.SIGHUP:
            self.reload(Cause(Kind.RELOAD, "SIGHUP", actor=Actor(pid=sender)), is_signal=True)
        elif number in HARMLESS:
            name = signals.name_of(number)
            self.log.limited(logfile.WARNING, "ignoring signal", signal=name, sender=sender)

    def _hang_up(self) -> None:
        """Our terminal was closed. The companion decides whether it ends; without one, the daemon ends."""
        if self._companion is not None and self._companion.lives:
            self._companion.heed(signal.SIGHUP)
        elif self._terminal.ignored:
            self.log.write(logfile.INFO, "the terminal was closed, and SIGHUP is ignored since the start")
        elif not self.supervisor.terminating:  # a second time would kill the jobs that are stopping
            self.terminate(Cause(Kind.TERMINATE, reason="the end of its terminal"))

    def _tell_left_out_later(self, seconds: float) -> None:
        self._next_summary.cancel()
        self._next_summary = self.loop.call_later(seconds, self._tell_left_out)

    def _tell_left_out(self) -> None:
        self.log.tell_left_out(now=time.monotonic())

    # ---- what the supervisor wants --------------------------------------------------------

    def _act(self) -> None:
        """Carry out what the supervisor wants, in its order, as far as the time of this turn goes.

        One command may name thousands of jobs; each signal, each line of the log takes its time.
        """
        self._take_actions()
        while self._actions and self._has_time():
            action = self._actions.popleft()
            try:
                self._do[type(action)](action)
            except Exception as error:  # noqa: BLE001 - a supervisor lives on
                self.bug(type(action).__name__, error)
            if not self._actions:
                self._take_actions()
        # After the actions: a job whose end is the daemon's may end in the very turn that brings it
        # up, and without READY=1 before it, systemd takes a good end for a failed start.
        if self.supervisor.terminating and not self._actions and self._herald is not None:
            self._herald.stopping()

    def _take_actions(self) -> None:
        actions = self.supervisor.take()
        if actions:
            self._set_wall()
            if self.supervisor.terminating and self._companion is not None:
                self._companion.end()
            self._actions.extend(actions)

    def _has_time(self) -> bool:
        """Whether this turn of the loop has time for one more action; the first one always has."""
        return self._budget.renew(ACT_SECONDS) or time.monotonic() < self._budget.until

    def _arm(self, action: events.Arm) -> None:
        self._disarm(action)
        self._deadlines[action.key] = self.loop.call_at(action.at, self._due, action.key, action.token)

    def _disarm(self, action: events.Arm | events.Disarm) -> None:
        deadline = self._deadlines.pop(action.key, None)
        if deadline is not None:
            deadline.cancel()

    def _due(self, key: Hashable, token: int) -> None:
        del self._deadlines[key]
        self.supervisor.timer(key, token, time.monotonic())

    def _reply(self, reply: events.Reply) -> None:
        if isinstance(reply.to, Request):
            reply.to.answered(reply)
        else:
            self.sessions.reply(reply)

    def _reload_begun(self) -> None:
        if self._herald is not None:
            self._herald.reloading()

    def _reload_ended(self, problems: tuple[str, ...]) -> None:
        if self._herald is not None:
            self._herald.reloaded(problems)
        self.last_words.keep(self.supervisor.jobs)
        self.attendants.keep(self.supervisor.jobs)

    def _set_wall(self) -> None:
        wall = time.time() - time.monotonic()
        if abs(wall - self.supervisor.wall) > WALL_SLACK:
            self.supervisor.wall = wall

    def _up(self, _action: events.Announce) -> None:
        self._opening.cancel()
        self.sessions.open()
        self._announce()

    def _all_ready(self, _action: events.AllReady) -> None:
        if self._herald is not None:
            self._herald.ready()
        if self._companion is not None and not self.supervisor.terminating:
            self._accompany(self._companion)

    def _accompany(self, companion: Companion) -> None:
        def ended(info: os.waitid_result) -> None:
            code = companion.ended(info)
            self.log.write(logfile.INFO, "the command has ended", pid=info.si_pid, code=code)
            if not self.supervisor.terminating:
                self.terminate(Cause(Kind.TERMINATE, reason="the end of the command"))
            if self._withheld is not None:
                self._finish(self._withheld)

        try:
            pid = companion.start(f"{self._about['control']},{self._about['event']}")
        except OSError as error:
            self.log.write(logfile.CRITICAL, "cannot start the command", error=error.strerror)
            self.terminate(Cause(Kind.TERMINATE, reason="the command, which cannot be started"))
            return
        self.children.add_guest(pid, ended)
        self.log.write(logfile.INFO, "the command is started", pid=pid)

    def _give_birth(self) -> None:
        until = time.monotonic() + BIRTH_SECONDS
        while self._births and time.monotonic() < until:
            self._spawn(self._births.take())
            self._act()

    def _spawn(self, action: events.Spawn) -> None:
        spec, its = action.spec, self._cgroup_for(action.spec)
        try:
            self._state.expect(spec, action.run)
            birth = self._launch(spec, action.run, its)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this job's failure alone
            if its is not None:
                its.remove()
            failure = error if isinstance(error, SpawnError) else spawn.failed("start", error)
            if not failure.errno:
                self.bug(f"a start of {spec.name}", error)
            self._feed(action.job, spawn_failed(action.run, failure))
            return
        self.last_words.began(spec.name, birth.mark)
        try:
            self.children.add(spec, action.run, birth, its)
            if not self._state.born(spec, action.run, birth.pid, "" if its is None else its.name):
                self._state.renew(self.children.runs())
        except Exception as error:  # noqa: BLE001 - it lives, so it is known and can be ended
            self.bug(f"a start of {spec.name}", error)
            self.children.kill(spec.name, action.run)
        if birth.far:
            self.loop.call_later(SHOWN_SECONDS, self.children.show, spec.name, action.run)

    def _launch(self, spec: JobSpec, run: int, its: Cgroup | None) -> spawn.Birth:
        place = -1
        try:
            if its is not None:
                place = its.open()
            return self._spawner.spawn(spec, run, place, self.attendants.prepare(spec, run))
        except OSError as error:
            raise spawn.failed("cgroup", error) from None
        finally:
            if place >= 0:
                os.close(place)

    def _cgroup_for(self, spec: JobSpec) -> Cgroup | None:
        if self._hierarchy is None or spec.kill_scope is not KillScope.JOB:
            return None
        try:
            return self._hierarchy.create()
        except OSError as error:
            self.log.write(logfile.WARNING, "no cgroup for a run", job=spec.name, error=error.strerror)
            return None

    def _call_off(self, action: events.SendSignal | events.Kill) -> bool:
        """Whether the run was not born yet: then it never is."""
        if not self._births.call_off(action.job, action.run):
            return False
        self._feed(action.job, events.SpawnFailed(action.run, "", 0, "called off"))
        return True

    def _stop(self, action: events.SendSignal) -> None:
        if not self._call_off(action):
            self.children.stop(action.job, action.run, signals.number_of(action.signal))

    def _kill(self, action: events.Kill) -> None:
        if not self._call_off(action):
            self.children.kill(action.job, action.run)

    def _deliver(self, action: events.Deliver) -> None:
        number = signals.number_of(action.signal)
        self.children.deliver(action.job, action.run, number, every=action.every)

    def _finish(self, action: events.Finish) -> None:
        """The jobs are down. Who listens gets the last event, if he takes it soon; meanwhile what
        no job owned is ended too."""
        if self._companion is not None and self._companion.lives:
            self._withheld = action
            return
        self._exit_code = self._code(action.code)
        self._reloads.stop()
        self.attendants.close()
        self.sessions.publish()
        self.sessions.stop_listening()
        self.loop.call_later(FAREWELL_SECONDS, self._leave)
        self._remnants = Remnants(self.children.tree, self.log)

    def _code(self, code: int | str) -> int:
        """The daemon's exit code: the companion's, if it was not an essential job that ended it all."""
        if self._companion is not None and self._ordered:
            return self._companion.exit_code()
        return DIED + signals.number_of(code) if isinstance(code, str) else code

    def _leave(self) -> None:
        """Whoever has not taken the last event by now has had his time; what lives on is killed."""
        remnants = self._remnants
        if remnants is None or remnants.gone() or remnants.give_up():
            self._over = True
        else:
            self.loop.call_later(FAREWELL_SECONDS if remnants.kill() else 0.0, self._leave)

    def _may_leave(self) -> bool:
        if self._remnants is None or self.sessions.unsent() or self.children.guests:
            return False
        if self._remnants.gone():
            return True
        self.children.look_within(REMNANTS_LOOK_SECONDS)
        return False

    # ---- the log --------------------------------------------------------------------------

    def _log_change(self, change: events.Changed) -> None:
        late = change.cause is START_TIMEOUT
        if change.after in events.LEAVING:
            self.attendants.leaving(change.job, late=late)
        if self._herald is not None:
            self._herald.changed()
        level = _LEVEL_OF.get(change.after, logfile.INFO)
        if change.after is State.BACKOFF and not self._waits(change.job):
            level = logfile.INFO
        self.log.write(
            level,
            "state changed",
            job=change.job,
            run=change.run,
            pid=change.pid,
            **{"from": change.before.value, "to": change.after.value},
            cause=str(change.cause),
            readiness=self.facts(change.job).why_not_ready() or None if late else None,
        )

    def _waits(self, name: str) -> bool:
        job = self.supervisor.jobs.get(name)
        return job is not None and job.armed is not None and job.armed > job.since

    def _log_impossible(self, action: events.Impossible) -> None:
        self.log.write(
            logfile.CRITICAL,
            "internal error (please report)",
            job=action.job,
            state=action.state.value,
            input=repr(action.input),
            history="; ".join(action.history),
        )

    def _log_warning(self, action: events.Warn) -> None:
        left = self.facts(action.job).left()
        self.log.write(logfile.WARNING, action.text, job=action.job, run=action.run, left=left)

    def _tell_strays(self) -> None:
        """Who was found in this turn to be nobody's."""
        if strays := self._membership.new_strays():
            pids = ",".join(str(fact.pid) for fact in strays)
            text = "unattributed processes found: they will be stopped at shutdown"
            self.log.write(logfile.WARNING, text, pids=pids)


_LEVEL_OF = {State.FAILED: logfile.ERROR, State.BACKOFF: logfile.WARNING, State.KILLING: logfile.WARNING}
