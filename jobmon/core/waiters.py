"""All who wait: by whom they ask, by the jobs that they wait for, and with their deadlines.

Each gets exactly one Reply, or goes away. The supervisor says when a job has changed.
"""

from __future__ import annotations

from jobmon.core import conditions
from jobmon.core.conditions import Quorum, Waiter
from jobmon.core.events import LEAVING, Arm, Disarm, JobResult, Reply
from jobmon.core.machine import Job
from jobmon.errors import worst

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping

    from jobmon.core.events import Action


class Waiters:
    """Keys of theirs: an int for the deadline, ("look", int) for looking at a condition again."""

    def __init__(
        self, jobs: Mapping[str, Job], do: Callable[[Action], None], queued: Callable[[str], bool]
    ) -> None:
        self._jobs = jobs
        self._do = do
        self._queued = queued  # whether a job waits for its turn to be restarted
        self._by_key: dict[int, Waiter] = {}
        self._by_asker: dict[Hashable, Waiter] = {}
        self._by_job: dict[str, dict[int, Waiter]] = {}
        self._last_key = 0

    def __len__(self) -> int:
        return len(self._by_key)

    def new(
        self, to: Hashable, name: str, condition: conditions.Condition, quorum: Quorum, token: int
    ) -> Waiter:
        """A waiter that is not registered yet."""
        self._last_key += 1
        waiter = Waiter(self._last_key, to, name, condition, quorum)
        waiter.token = token
        return waiter

    def register(self, waiter: Waiter, timeout: float | None, now: float) -> None:
        """From now on it is looked at; `timeout` is seconds."""
        self._by_key[waiter.key] = self._by_asker[waiter.to] = waiter
        waiter.watched = tuple(waiter.marks)
        for name in waiter.watched:
            self._by_job.setdefault(name, {})[waiter.key] = waiter
        if timeout is not None and waiter.waits:
            waiter.deadline = True
            self._do(Arm(waiter.key, 0, now + timeout))

    def look(self, name: str, now: float) -> None:
        """A job has changed."""
        for waiter in list(self._by_job.get(name, {}).values()):
            self.look_at(waiter, (name,), now)

    def look_at(self, waiter: Waiter, names: Iterable[str], now: float) -> None:
        """See what some jobs mean to a waiter, and answer it if that is all."""
        decided = [n for n in names if n in self._jobs and not (waiter.has_started(n) and self._queued(n))]
        found = [waiter.look(self._jobs[name], now) for name in decided]
        waiter.settle(result for result in found if result is not None)
        self._follow(waiter, names)

    def _follow(self, waiter: Waiter, names: Iterable[str]) -> None:
        """Something is known of some jobs: answer, or wait on for the others."""
        if waiter.key not in self._by_key:
            return
        if not waiter.waits:
            self._answer(waiter)
            return
        later = waiter.later
        if later != waiter.alarm:
            key = ("look", waiter.key)
            self._do(Disarm(key) if later is None else Arm(key, 0, later))
            waiter.alarm = later
        self._unwatch(waiter, names)

    def give_up(self, name: str, code: str, message: str, only: Callable[[Waiter], bool]) -> None:
        """What some wait for on this job can hold no more."""
        for waiter in list(self._by_job.get(name, {}).values()):
            if only(waiter):
                waiter.held.pop(name, None)
                waiter.due.pop(name, None)
                waiter.settle((JobResult(name, code, message),))
                self._follow(waiter, (name,))

    def timer(self, key: object, now: float) -> None:
        """A deadline has come, or a time to look again."""
        number = key[1] if isinstance(key, tuple) else key
        waiter = self._by_key.get(number) if isinstance(number, int) else None
        if waiter is None:
            return
        if number is key:
            waiter.deadline = False
        else:
            waiter.alarm = None
        self.look_at(waiter, [name for name, at in waiter.due.items() if at <= now], now)  # what holds holds
        if number is key and waiter.waits:
            names = [name for name in waiter.marks if name not in waiter.held]
            waiter.close([JobResult(n, "timeout", f"timed out: it is {self._plight(n)}") for n in names])
            self._answer(waiter)

    def drop(self, to: Hashable) -> None:
        """Whoever `to` is has gone."""
        waiter = self._by_asker.get(to)
        if waiter is not None:
            self._dismiss(waiter)

    def reply(self, to: Hashable, results: Iterable[JobResult], token: int) -> None:
        """Answer, the worst of the results naming the whole."""
        results = tuple(results)
        failed = [result for result in results if result.code]
        if not failed:
            self._do(Reply(to, True, results, token=token))
            return
        code = worst([result.code for result in failed])
        message = next(result.message for result in failed if result.code == code)
        self._do(Reply(to, False, results, code, message, token))

    def _answer(self, waiter: Waiter) -> None:
        self._dismiss(waiter)
        self.reply(waiter.to, waiter.results.values(), waiter.token)

    def _dismiss(self, waiter: Waiter) -> None:
        del self._by_key[waiter.key], self._by_asker[waiter.to]
        waiter.marks.clear()
        self._unwatch(waiter, waiter.watched)  # an answer need not speak of each
        if waiter.deadline:
            self._do(Disarm(waiter.key))
        if waiter.alarm is not None:
            self._do(Disarm(("look", waiter.key)))

    def _unwatch(self, waiter: Waiter, names: Iterable[str]) -> None:
        """Leave the lists of those jobs that it waits for no more."""
        for name in names:
            watching = self._by_job.get(name)
            if watching is not None and name not in waiter.marks:
                watching.pop(waiter.key, None)
                if not watching:
                    del self._by_job[name]

    def _plight(self, name: str) -> str:
        job = self._jobs[name]
        whose = f" (pid {job.pid})" if job.pid is not None else ""
        return f"{'still ' if job.state in LEAVING else ''}{job.state.value}{whose}"
