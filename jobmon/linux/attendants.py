"""Who attends a run from its launch to its end: readiness, what it says of itself, its watchdog.

Knows when to begin and when to stop asking; how each way works is said in `readiness`.
"""

from __future__ import annotations

import time

from jobmon.events import Exited, LeaderDied, Ready, Spawned, SpawnFailed, WatchdogExpired
from jobmon.linux.readiness import PROBES, NotifySocket, Probe
from jobmon.linux.spawn import Gift

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from jobmon.events import ProcessInput
    from jobmon.linux.readiness import Tools
    from jobmon.spec import JobSpec

SHOWN_STATUS = 200  # characters of a STATUS= that are kept


class Attendant:
    """One run that is told or asked about. `text` is what it said of itself last."""

    def __init__(
        self, tools: Tools, spec: JobSpec, run: int, uid: int, feed: Callable[[ProcessInput], None]
    ) -> None:
        self._tools = tools
        self._spec = spec
        self._run = run
        self._feed = feed
        self._over = False
        self.text = ""
        self._notify: NotifySocket | None = None
        self._probe: Probe | None = None
        how = spec.ready
        if spec.watchdog is not None or (how is not None and how.kind == "notify"):
            self._notify = NotifySocket(tools, spec.name, uid, self._heard)
        if how is not None and how.kind in PROBES:
            self._probe = PROBES[how.kind](tools, spec, how, self._ready)

    def gift(self) -> Gift:
        """What the run gets."""
        gift = self._probe.gift() if self._probe is not None else Gift()
        if self._notify is None:
            return gift
        environ = {b"NOTIFY_SOCKET": self._notify.address.encode()}
        if self._spec.watchdog is not None:
            environ[b"WATCHDOG_USEC"] = str(int(self._spec.watchdog * 1_000_000)).encode()
        return Gift(environ, gift.fd, gift.target)

    def began(self) -> None:
        """Its program is being executed."""
        if self._probe is not None:
            self._probe.begin()
        if self._spec.ready is None:
            self._alive()

    def drain(self) -> None:
        """Hear all that was said before a death is told."""
        if self._notify is not None:
            self._notify.drain()
        if self._probe is not None:
            self.end_probe()

    def close(self) -> None:
        """The run is over, or leaving."""
        self._over = True
        self.end_probe()
        self._tools.timers.disarm(self._silent)
        if self._notify is not None:
            self._notify.close()

    def end_probe(self) -> None:
        """Ask and listen for readiness no more."""
        probe, self._probe = self._probe, None
        if probe is not None:
            probe.close()

    def _ready(self) -> None:
        self.end_probe()
        if not self._over:
            self._alive()
            self._feed(Ready(self._run))

    def _heard(self, words: dict[str, str]) -> None:
        if "STATUS" in words:
            self.text = words["STATUS"][:SHOWN_STATUS]
        elif "RELOADING" in words or "STOPPING" in words:
            self.text = "reloading" if "RELOADING" in words else "stopping"
        if words.get("WATCHDOG") == "1":
            self._alive()
        elif words.get("WATCHDOG") == "trigger":
            self._silent(0)
        how = self._spec.ready
        if words.get("READY") == "1" and how is not None and how.kind == "notify":
            self._ready()

    def _alive(self) -> None:
        """The watchdog's time begins anew."""
        if self._spec.watchdog is not None and not self._over:
            self._tools.timers.arm(self._silent, 0, time.monotonic() + self._spec.watchdog)

    def _silent(self, _token: int) -> None:
        if not self._over:
            self._feed(WatchdogExpired(self._run))


class Attendants:
    """All of them, by job: a job has one run."""

    def __init__(self, tools: Tools, uid: int, feed: Callable[[str, ProcessInput], None]) -> None:
        self._tools = tools
        self._uid = uid
        self._feed = feed
        self._by_job: dict[str, tuple[int, Attendant]] = {}

    def prepare(self, spec: JobSpec, run: int) -> Gift | None:
        """Before a run is started: what it gets. Raises OSError."""
        if spec.ready is None and spec.watchdog is None:
            return None
        attendant = Attendant(self._tools, spec, run, self._uid, lambda what: self._feed(spec.name, what))
        self._by_job[spec.name] = (run, attendant)
        return attendant.gift()

    def before(self, job: str, what: ProcessInput) -> None:
        """Something is about to be fed to a job: what was said before it comes before it."""
        run, attendant = self._by_job.get(job, (0, None))
        if attendant is not None and run == what.run and isinstance(what, (LeaderDied, Exited)):
            attendant.drain()

    def after(self, job: str, what: ProcessInput) -> None:
        """Something was fed to a job."""
        run, attendant = self._by_job.get(job, (0, None))
        if attendant is None or run != what.run:
            return
        if isinstance(what, Spawned):
            attendant.began()
        elif isinstance(what, (Exited, SpawnFailed)):
            self.dismiss(job)

    def leaving(self, job: str) -> None:
        """The run is being stopped: nobody asks whether it is ready any more."""
        _, attendant = self._by_job.get(job, (0, None))
        if attendant is not None:
            attendant.end_probe()

    def text(self, job: str) -> str:
        """What the run of a job said of itself."""
        _, attendant = self._by_job.get(job, (0, None))
        return attendant.text if attendant is not None else ""

    def dismiss(self, job: str) -> None:
        """Attend a job no more."""
        _, attendant = self._by_job.pop(job, (0, None))
        if attendant is not None:
            attendant.close()

    def close(self) -> None:
        """Attend nobody any more."""
        for job in list(self._by_job):
            self.dismiss(job)
