"""A kernel that is not there: fake processes, timers and a clock that only a test moves.

It does what the engine does with a supervisor's actions, and in the same order: births come after
everything else that is to be done, and one that is stopped before it is born never is.
"""

from __future__ import annotations

import errno
from enum import Enum
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from jobmon.core import events

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from jobmon.core.events import Action, Input, Status
    from jobmon.core.supervisor import Supervisor

REACTION = 1.0  # seconds from a stop signal to a death
KILLS_IN_VAIN = 3  # to a process that hangs in the kernel


class Temper(Enum):
    """How a process behaves."""

    OBEYS = "obeys"
    DEAF = "deaf"  # to its stop signal
    FORKS = "forks"  # at its stop signal the first process dies, others somewhat later
    LINGERS = "lingers"  # the first process dies by itself, others only of SIGKILL
    CRASHES = "crashes"
    SUCCEEDS = "succeeds"
    HANGS = "hangs"  # it survives the first SIGKILLs
    NEVER_EXECS = "never execs"
    NO_PROGRAM = "no program"
    NO_MEMORY = "no memory"


class Process:
    """One run of a job."""

    def __init__(self, spawn: events.Spawn, pid: int, temper: Temper) -> None:
        self.job = spawn.job
        self.run = spawn.run
        self.spec = spawn.spec
        self.pid = pid
        self.temper = temper
        self.executed = False
        self.leader_status: tuple[Status] | None = None  # once it is dead
        self.kills = 0


class SimKernel:
    """What the supervisor believes to be the machine. `see` is shown every action before it is done."""

    def __init__(self, supervisor: Supervisor, see: Callable[[Action], None]) -> None:
        self.supervisor = supervisor
        self.now = 0.0
        self.timers: dict[Hashable, tuple[int, float]] = {}
        self.births: dict[str, events.Spawn] = {}
        self.processes: dict[str, Process] = {}
        self.tempers: dict[str, Temper] = {}
        self.life = 0.0  # seconds after which what dies by itself does
        self.readiness: dict[
            str, float | None
        ] = {}  # seconds after which a job says it is ready; None: never
        self.timers_first = True
        self._see = see
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    # ---- time -----------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Let time pass; what falls due happens in its order."""
        until = self.now + seconds
        while (due := self._next_due(until)) is not None:
            self.now = max(self.now, due[0])
            due[1]()
            self.act()
        self.now = until

    def _next_due(self, until: float) -> tuple[float, Callable[[], None]] | None:
        timer = min(self.timers.items(), key=lambda item: item[1][1], default=None)
        timer_at = timer[1][1] if timer is not None else until + 1
        event_at = self._agenda[0][0] if self._agenda else until + 1
        if min(timer_at, event_at) > until:
            return None
        if timer is not None and (timer_at < event_at or (timer_at == event_at and self.timers_first)):
            key, (token, _) = timer
            return timer_at, lambda: self._fire(key, token)
        return event_at, heappop(self._agenda)[2]

    def _fire(self, key: Hashable, token: int) -> None:
        del self.timers[key]
        self.supervisor.timer(key, token, self.now)

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        self._count += 1
        heappush(self._agenda, (self.now + seconds, self._count, what))

    # ---- what the supervisor wants --------------------------------------------------------

    def act(self, *, births: bool = True) -> None:
        """Do everything that is asked for, then give birth; without `births` those wait for the next time."""
        while True:
            while actions := self.supervisor.take():
                for action in actions:
                    self._see(action)
                    self._do(action)
            if not (births and self.births):
                return
            self._give_birth(self.births.pop(next(iter(self.births))))

    def _do(self, action: Action) -> None:
        if isinstance(action, events.Spawn):
            self.births[action.job] = action
        elif isinstance(action, events.Arm):
            self.timers[action.key] = (action.token, action.at)
        elif isinstance(action, events.Disarm):
            self.timers.pop(action.key, None)
        elif isinstance(action, (events.SendSignal, events.Kill)) and not self._call_off(action):
            process = self.processes[action.job]
            (self._killed if isinstance(action, events.Kill) else self._asked)(process)

    def _call_off(self, action: events.SendSignal | events.Kill) -> bool:
        if action.job not in self.births:
            return False
        del self.births[action.job]
        self._feed(action.job, events.SpawnFailed(action.run, "", 0, "called off"))
        return True

    def _feed(self, job: str, what: Input) -> None:
        self.supervisor.feed(job, what, self.now)

    # ---- what processes do ----------------------------------------------------------------

    def _give_birth(self, spawn: events.Spawn) -> None:
        temper = self.tempers.get(spawn.job, Temper.OBEYS)
        if temper in (Temper.NO_PROGRAM, Temper.NO_MEMORY):
            number = errno.ENOENT if temper is Temper.NO_PROGRAM else errno.ENOMEM
            self._feed(spawn.job, events.SpawnFailed(spawn.run, "exec", number, errno.errorcode[number]))
            return
        self._count += 1
        process = self.processes[spawn.job] = Process(spawn, self._count, temper)
        self._feed(spawn.job, events.Launched(spawn.run, process.pid))
        if temper is Temper.NEVER_EXECS:
            return
        process.executed = True
        self._feed(spawn.job, events.Spawned(spawn.run))
        self._plan(process)

    def _plan(self, process: Process) -> None:
        after = self.readiness.get(process.job)
        if after is not None:
            self._later(after, lambda: self.get_ready(process))
        if process.temper in (Temper.CRASHES, Temper.SUCCEEDS):
            status = int(process.temper is Temper.CRASHES)
            self._later(self.life, lambda: self.end(process, status))
        elif process.temper is Temper.LINGERS:
            self._later(self.life, lambda: self.lose_leader(process, 0))

    def _asked(self, process: Process) -> None:
        if process.temper in (Temper.DEAF, Temper.HANGS, Temper.LINGERS):
            return
        if process.temper is Temper.FORKS:
            self._later(REACTION, lambda: self.lose_leader(process, "SIGTERM"))
            self._later(REACTION * 3, lambda: self.end(process, "SIGTERM"))
        else:
            self._later(REACTION, lambda: self.end(process, "SIGTERM"))

    def _killed(self, process: Process) -> None:
        process.kills += 1
        if process.temper is not Temper.HANGS or process.kills > KILLS_IN_VAIN:
            self._later(0.0, lambda: self.end(process, "SIGKILL"))

    def get_ready(self, process: Process) -> None:
        """A process says, or a probe finds, that it serves; one that is not asked to says nothing."""
        asked = process.spec.ready is not None and process.executed
        if asked and self._lives(process) and process.leader_status is None:
            self._feed(process.job, events.Ready(process.run))

    def lose_leader(self, process: Process, status: Status) -> None:
        """The first process of a run dies, others live."""
        if self._lives(process) and process.leader_status is None:
            process.leader_status = (status,)
            self._feed(process.job, events.LeaderDied(process.run, status))

    def end(self, process: Process, status: Status) -> None:
        """Nothing is left of a run."""
        if self._lives(process):
            del self.processes[process.job]
            status = status if process.leader_status is None else process.leader_status[0]
            self._feed(process.job, events.Exited(process.run, status))

    def _lives(self, process: Process) -> bool:
        return self.processes.get(process.job) is process
