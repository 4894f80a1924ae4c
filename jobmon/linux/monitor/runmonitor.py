"""Who attends a run from its launch to its end: readiness, what it says of itself, its watchdog.

Knows when to begin and when to stop asking; how each way works is said in `readiness`.
"""

from __future__ import annotations

from jobmon.core.events import Exited, LeaderDied, Ready, Spawned, SpawnFailed, WatchdogExpired
from jobmon.core.spec import NotifyReadiness
from jobmon.errors import SpawnError
from jobmon.linux.kernel.loop import UNSET
from jobmon.linux.monitor.notifysocket import Receiver, RunSocket
from jobmon.linux.monitor.probes import PROBES, Probe
from jobmon.linux.processes.spawn import Gift

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from jobmon.core.events import ProcessInput
    from jobmon.core.spec import JobSpec
    from jobmon.linux.kernel.loop import Loop
    from jobmon.linux.log import Log
    from jobmon.linux.processes.children import Children
    from jobmon.linux.processes.spawn import Spawner

SHOWN_STATUS = 200  # characters of a STATUS= that are kept
HOLD_SECONDS = 3.0  # that a death, or the watchdog's verdict, waits for what was said before, at most


class Attendant:
    """One run that is told or asked about."""

    def __init__(
        self, owner: Attendants, spec: JobSpec, run: int, feed: Callable[[ProcessInput], None]
    ) -> None:
        self._loop = owner.loop
        self._spec = spec
        self.run = run
        self._feed = feed
        self._begun = False  # its program is being executed
        self._early = False  # READY=1 was heard before we knew that
        self._up = False
        self._over = False
        self._phase = ""
        self._status = ""
        self._notify: RunSocket | None = None
        self._probe: Probe | None = None
        self._held: list[ProcessInput] = []
        self._let_pass: ProcessInput | None = None
        self._is_doubtful = False  # the watchdog's time is over, and something may have been said in it
        self._hold_until = self._watchdog = self._verdict = UNSET
        how = spec.ready
        if spec.watchdog is not None or isinstance(how, NotifyReadiness):
            self._notify = RunSocket(owner.receiver, spec.name, self._heard)
        if how is not None and type(how) in PROBES:
            tools = owner.loop, owner.children, owner.spawner
            self._probe = PROBES[type(how)](*tools, spec, run, how, self._ready)

    @property
    def text(self) -> str:
        """What it said of itself last."""
        return ": ".join(filter(None, (self._phase, self._status)))

    def why_not(self) -> str:
        """Why it is not known to be ready: what was wrong with the last try, where there are tries."""
        speaker = self._notify if isinstance(self._spec.ready, NotifyReadiness) else None
        asked = self._probe or speaker
        return asked.trouble if asked is not None else ""

    def gift(self) -> Gift:
        """What the run gets. Raises OSError."""
        gift = self._probe.gift() if self._probe is not None else Gift()
        if self._notify is None:
            return gift
        environ = {b"NOTIFY_SOCKET": self._notify.address.encode()}
        if self._spec.watchdog is not None:
            environ[b"WATCHDOG_USEC"] = str(int(self._spec.watchdog * 1_000_000)).encode()
        return Gift(environ, gift.fd, gift.target)

    def began(self) -> None:
        """Its program is being executed."""
        self._begun = True
        if self._spec.ready is None:
            self._up = True
            self._alive()
        elif self._early:
            self._ready()
        elif self._probe is not None:
            self._probe.begin()

    def holds(self, death: ProcessInput) -> bool:
        """Whether a death must wait, because something was said before it that was not heard yet. It is fed
        again when that was heard."""
        self.end_probe()
        if self._notify is None or death is self._let_pass:
            return False
        if not self._held:
            if self._notify.has_heard_all():
                return False
            self._notify.flush(self._release)
            self._hold_until = self._loop.call_later(HOLD_SECONDS, self._release)
        self._held.append(death)
        return True

    def _release(self) -> None:
        self._hold_until.cancel()
        held, self._held = self._held, []
        for self._let_pass in held:
            self._feed(self._let_pass)

    def leaving(self) -> None:
        """It is being stopped: nobody asks whether it is ready any more, nor waits for its words."""
        self.end_probe()
        self._watchdog.cancel()
        self._verdict.cancel()

    def close(self) -> None:
        """The run is over."""
        self._over = True
        self._hold_until.cancel()
        self.leaving()
        if self._notify is not None:
            self._notify.close()

    def end_probe(self) -> None:
        """Ask for readiness no more."""
        probe, self._probe = self._probe, None
        if probe is not None:
            probe.close()

    def _ready(self) -> None:
        if not self._begun:
            self._early = True  # epoll tells of both in any order
            return
        self.end_probe()
        if not self._over and not self._up:
            self._up = True
            self._alive()
            self._feed(Ready(self.run))

    def _heard(self, words: dict[str, str]) -> None:
        if "STATUS" in words:
            self._status = words["STATUS"][:SHOWN_STATUS]
        for word in ("READY", "RELOADING", "STOPPING"):
            if words.get(word) == "1":
                self._phase = "" if word == "READY" else word.lower()
        how = self._spec.ready
        if words.get("READY") == "1" and isinstance(how, NotifyReadiness):
            self._ready()
        if words.get("WATCHDOG") == "1":
            self._alive()
        elif words.get("WATCHDOG") == "trigger":
            self._fail()

    def _alive(self) -> None:
        """The watchdog's time begins anew. It counts for a job that is up."""
        self._is_doubtful = False
        if self._spec.watchdog is not None and self._up and not self._over:
            self._watchdog.cancel()
            self._watchdog = self._loop.call_later(self._spec.watchdog, self._silent)

    def _silent(self) -> None:
        """Nothing was heard in time. What was said in time counts."""
        self._is_doubtful = True
        if self._notify is None or self._notify.has_heard_all():
            self._judge()
        else:
            self._notify.flush(self._judge)
            self._verdict.cancel()
            self._verdict = self._loop.call_later(HOLD_SECONDS, self._judge)

    def _judge(self) -> None:
        self._verdict.cancel()
        if self._is_doubtful:
            self._is_doubtful = False
            self._fail()

    def _fail(self) -> None:
        if self._up and not self._over:
            self._feed(WatchdogExpired(self.run))


class Attendants:
    """All of them, by job: a job has one run."""

    def __init__(
        self,
        loop: Loop,
        children: Children,
        spawner: Spawner,
        log: Log,
        feed: Callable[[str, ProcessInput], None],
    ) -> None:
        self.loop = loop
        self.children = children
        self.spawner = spawner
        self.receiver = Receiver(loop, children, log)
        self._feed = feed
        self._by_job: dict[str, Attendant] = {}
        self._late: dict[str, str] = {}  # the trouble of runs that were given up for it

    def prepare(self, spec: JobSpec, run: int) -> Gift | None:
        """Before a run is started: what it gets. Raises SpawnError."""
        if spec.ready is None and spec.watchdog is None:
            return None
        self._late.pop(spec.name, None)
        try:
            attendant = Attendant(self, spec, run, lambda what: self._feed(spec.name, what))
            self._by_job[spec.name] = attendant
            return attendant.gift()
        except OSError as error:
            raise SpawnError("readiness", error.errno or 0) from None

    def holds(self, job: str, what: ProcessInput) -> bool:
        """Something is about to be fed to a job. Whether that must wait: what was said before it comes before
        it, and it is fed again after that."""
        attendant = self._by_job.get(job)
        if attendant is None or attendant.run != what.run or not isinstance(what, (LeaderDied, Exited)):
            return False
        return attendant.holds(what)

    def after(self, job: str, what: ProcessInput) -> None:
        """Something was fed to a job."""
        attendant = self._by_job.get(job)
        if attendant is None or attendant.run != what.run:
            return
        if isinstance(what, Spawned):
            attendant.began()
        elif isinstance(what, (Exited, SpawnFailed)):
            self.dismiss(job)

    def leaving(self, job: str, *, late: bool = False) -> None:
        """The run is being stopped: nobody asks whether it is ready any more. `late`: for that reason."""
        attendant = self._by_job.get(job)
        if attendant is not None:
            if late:
                self._late[job] = attendant.why_not()
            attendant.leaving()

    def text(self, job: str) -> str:
        """What the run of a job said of itself."""
        attendant = self._by_job.get(job)
        return attendant.text if attendant is not None else ""

    def why_not(self, job: str) -> str:
        """Why the run of a job is not known to be ready, or was not in time, as far as that can be said."""
        if job in self._late:
            return self._late[job]
        attendant = self._by_job.get(job)
        return attendant.why_not() if attendant is not None else ""

    def keep(self, jobs: Container[str]) -> None:
        """Forget the trouble of all others. (Their runs are over.)"""
        for job in [job for job in self._late if job not in jobs]:
            del self._late[job]

    def dismiss(self, job: str) -> None:
        """Attend a job no more."""
        attendant = self._by_job.pop(job, None)
        if attendant is not None:
            attendant.close()

    def close(self) -> None:
        """Attend nobody any more."""
        for job in list(self._by_job):
            self.dismiss(job)
        self.receiver.close()
