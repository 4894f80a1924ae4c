"""Who waits for what. A condition looks at one job and the mark taken when the waiter came:
it holds, it can hold no more, or (None) not yet. Decided in the daemon, so nothing is missed.
"""

from __future__ import annotations

from jobmon.events import AT_REST, LEAVING, JobResult, Next, State
from jobmon.machine import Job
from jobmon.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    Condition = Callable[[Job, "Mark"], JobResult | None]


class Mark(Record):
    """What a job was when somebody began to wait."""

    run: int
    alive: bool


def mark(job: Job) -> Mark:
    """The mark of this moment."""
    return Mark(job.run, job.pid is not None)


def launched(job: Job, since: Mark) -> JobResult | None:
    """A new process exists, or the wish for one is queued behind a stop."""
    if job.state in LEAVING and job.next is Next.RESTART:
        return JobResult(job.spec.name)
    if job.run == since.run:
        return None if job.state in LEAVING else _ended(job)
    return JobResult(job.spec.name) if job.pid is not None else _ended(job)


def up(job: Job, since: Mark) -> JobResult | None:
    """A later run is running."""
    if job.run > since.run and job.state is State.RUNNING:
        return JobResult(job.spec.name)
    if job.state in LEAVING and job.next in (Next.STOP, Next.REMOVE):
        return JobResult(job.spec.name, "failed", f"was stopped meanwhile ({job.cause})")
    return _ended(job)


def gone(job: Job, since: Mark) -> JobResult | None:
    """The run of the mark is gone."""
    if job.run > since.run or not job.alive:
        return JobResult(job.spec.name)
    return None


def changed(job: Job, since: Mark) -> JobResult | None:
    """It went from RUNNING to STOPPED or back."""
    alive = job.pid is not None
    if alive != since.alive or (alive and job.run != since.run):
        return JobResult(job.spec.name)
    return None


def _ended(job: Job) -> JobResult | None:
    if job.spawn_error:
        again = " (it will be tried again)" if job.state is State.BACKOFF else ""
        return JobResult(job.spec.name, "could-not-start", f"could not be started: {job.spawn_error}{again}")
    if job.state in AT_REST:
        return JobResult(job.spec.name, "failed", f"is {job.state.value}: {job.cause}")
    return None


class Waiter:
    """Somebody who waits for a condition on some jobs; `to` gets one answer."""

    __slots__ = ("condition", "key", "pending", "results", "timed", "to", "token")

    def __init__(self, key: int, to: Hashable, condition: Condition, token: int) -> None:
        self.key = key
        self.to = to
        self.condition = condition
        self.token = token
        self.pending: dict[str, Mark] = {}
        self.results: list[JobResult] = []
        self.timed = False

    def look(self, job: Job) -> bool:
        """Look at a job that may have changed; whether nothing is left to wait for."""
        since = self.pending.get(job.spec.name)
        if since is not None and (result := self.condition(job, since)) is not None:
            self.settle(result)
        return not self.pending

    def settle(self, result: JobResult) -> None:
        """This job's part of the answer is known."""
        self.pending.pop(result.job, None)
        self.results.append(result)
