"""The configuration is read again while the daemon runs, and applied.

All is read, checked and prepared before anything is changed, and that by a child (`Reloader`): the loop goes
on, whatever the size of the files and whatever file system they are on. What was prepared is then applied
(`Reloads`): the supervisor decides about the jobs, changes of the daemon itself are made here.
"""

from __future__ import annotations

import errno
import os
import time

from jobmon.core import spec
from jobmon.core.plan import Change, Keys, Plan, plan
from jobmon.core.spec import OF_ACCESS
from jobmon.errors import ConfigError
from jobmon.lean.cpython import deque
from jobmon.lean.records import Record
from jobmon.linux import log as logfile
from jobmon.linux.control import replies
from jobmon.linux.control.port import ReloadOutcome
from jobmon.linux.kernel.peers import Access
from jobmon.linux.log import ERROR, INFO, WARNING, open_log
from jobmon.linux.processes.worker import Errand, Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from jobmon.config.loader import KeyProblem
    from jobmon.core.causes import Cause
    from jobmon.core.events import Reply
    from jobmon.linux.control.port import Daemon
    from jobmon.linux.control.server import Sessions
    from jobmon.linux.daemon.configsource import Source
    from jobmon.linux.kernel.loop import Loop
    from jobmon.linux.log import Log
    from jobmon.linux.processes.children import Children

READ_SECONDS = 60.0  # how long a reading may take: a file system that does not answer never ends it
_INTERNAL = "internal error (please report): the daemon's log has its place"
MAX_WAITING = 100  # reloads that wait for one that is under way


class Request:
    """A reload that was asked for; the supervisor answers to it. `done` is told the outcome, once. With
    `dry_run` nothing is applied; `is_signal` says that nobody hears the answer, so the log must give it."""

    __slots__ = ("_applied", "_done", "by", "dry_run", "is_signal", "restart")

    def __init__(
        self,
        by: Cause,
        done: Callable[[ReloadOutcome], None],
        *,
        restart: bool = False,
        dry_run: bool = False,
        is_signal: bool = False,
    ) -> None:
        self.by = by
        self.restart = restart
        self.dry_run = dry_run
        self.is_signal = is_signal
        self._done = done
        self._applied = ReloadOutcome()

    def ended(self, outcome: ReloadOutcome) -> None:
        """All is done but what the supervisor was asked for: if it was, `answered` follows, since actions are
        carried out only after it has returned."""
        if outcome.code or self.dry_run:
            self._done(outcome)
        else:
            self._applied = outcome

    def answered(self, reply: Reply) -> None:
        """The supervisor has answered."""
        self._done(self._applied.replace(reply=reply))


class Draft(Record):
    """A configuration that can be applied at once: the names of its jobs in their order, and the differences
    from the one in force. `access` is None where who may is as before."""

    names: tuple[str, ...]
    supervisor: spec.SupervisorSpec
    included: Mapping[tuple[str, str], tuple[int, tuple[str, ...]]]
    warnings: tuple[str, ...]
    plan: Plan
    access: Access | None


_TRAVEL = (Draft, Plan, Keys, Change, Access, spec.SupervisorSpec, spec.JobSpec, *spec.READINESS)
_ENUMS = (spec.Restart, spec.KillScope, spec.Essential, spec.JobType)
_KINDS: dict[str, Callable[..., Any]] = {kind.__name__: kind for kind in (*_TRAVEL, *_ENUMS)}


class _Check:
    """What the form of the supervisor's settings does not tell: whether they can be gone by here and now.
    Changes nothing. `access` is who may from now on, if that is not as before."""

    def __init__(self, old: spec.SupervisorSpec, log_path: str | None) -> None:
        self._old = old
        self._log_path = log_path
        self.access: Access | None = None

    def __call__(self, new: spec.SupervisorSpec) -> list[KeyProblem]:
        """What is wrong: key, element of its list, message."""
        old, found = self._old, []
        if new.working_dir != old.working_dir and (trouble := _why_not_there(new.working_dir)):
            found.append(("working-dir", "", f"{new.working_dir}: {trouble}"))
        path = new.log_file or self._log_path
        if path is not None and new.log_file != old.log_file and (trouble := _why_no_log(path)):
            found.append(("log-file", "", f"{path}: {trouble}"))
        if any(getattr(new, key) != getattr(old, key) for key in OF_ACCESS):
            users, groups = new.allow_users, new.allow_groups
            self.access, unknown = Access.look_up(users, groups, unidentified=new.allow_unidentified)
            found += unknown
        return found


def _why_not_there(path: str) -> str:
    """Why a directory cannot be the working directory, or nothing."""
    try:
        os.close(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as error:
        return error.strerror or "cannot be entered"
    return "" if os.access(path, os.X_OK, effective_ids=True) else os.strerror(errno.EACCES)


def _why_no_log(path: str) -> str:
    """Why a log cannot be opened, or nothing. None is made: where there is none, its directory must do."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK))
    except FileNotFoundError:
        directory = os.path.dirname(os.path.realpath(path))
        if trouble := _why_not_there(directory):
            return trouble
        return "" if os.access(directory, os.W_OK, effective_ids=True) else os.strerror(errno.EACCES)
    except OSError as error:
        return error.strerror or "cannot be opened"
    return ""


class Reloader:
    """Reads `source` again. `log_path` is for a configuration without log-file (None: standard error),
    `unused` are keys that do not count because systemd has given the sockets."""

    def __init__(self, source: Source, log_path: str | None, unused: frozenset[str] = frozenset()) -> None:
        self._source = source
        self._log_path = log_path
        self._unused = unused
        self._errand: Errand | None = None

    @property
    def is_busy(self) -> bool:
        """Whether it is preparing a draft."""
        return self._errand is not None

    def prepare(self, loop: Loop, children: Children, done: Callable[[Result], None]) -> None:
        """Read, check and compare in a child; `done` gets what `_read` gives. Raises OSError."""

        def arrived(result: Result) -> None:
            self._errand = None
            done(result)

        self._errand = Errand(loop, children, self._read, arrived, kinds=_KINDS, seconds=READ_SECONDS)

    def stop(self) -> None:
        """End the reading: the daemon is about to end."""
        if self._errand is not None:
            self._errand.stop()

    def change_log(self, log: Log, draft: Draft) -> None:
        """The only change that may fail, so the first one. Raises OSError."""
        new = draft.supervisor
        if "log-file" in draft.plan.daemon.hot:
            path = new.log_file or self._log_path
            log.go_on(path, open_log(path))
        log.keep_to(new.log_level)

    def keep(self, draft: Draft) -> None:
        """Compare the next one with this; but the daemon's own settings with those that it goes by."""
        old, changes = self._source.config, draft.plan
        others = {job.name: job for job in (*changes.added, *(change.spec for change in changes.changed))}
        jobs = {name: others[name] if name in others else old.jobs[name] for name in draft.names}
        fields = [key.replace("-", "_") for key in changes.daemon.restart]
        ours = {field: getattr(old.supervisor, field) for field in fields}
        supervisor = draft.supervisor.replace(**ours)
        self._source.config = old.replace(jobs=jobs, supervisor=supervisor, included=draft.included)

    # ---- in the child ---------------------------------------------------------------------------

    def _read(self) -> Iterator[object]:
        """Give a code and problems, or no code and a draft, its specs one by one."""
        try:
            draft = self._prepare()
        except ConfigError as error:
            yield from ("invalid", *map(str, error.problems))
        except ImportError as error:
            yield "failed"
            yield f"the configuration cannot be read: {error}: was Python replaced? restart the daemon"
        else:
            changes = draft.plan
            yield from ("", draft.replace(plan=changes.replace(added=(), changed=())))
            yield from (*changes.added, *changes.changed)

    def _prepare(self) -> Draft:
        """All that may fail. Changes nothing. Raises ConfigError."""
        old = self._source.config
        check = _Check(old.supervisor, self._log_path)
        new = self._source.read(check)
        changes = plan(old, new)
        keys = changes.daemon
        used = keys.replace(restart=tuple(key for key in keys.restart if key not in self._unused))
        warnings = tuple(map(str, new.warnings))
        changes = changes.replace(daemon=used)
        return Draft(tuple(new.jobs), new.supervisor, new.included, warnings, changes, check.access)


class Reloads:
    """Carries out one reload after another. `begun()` and `ended(problems)` are called around each that is
    to change something."""

    def __init__(
        self,
        reloader: Reloader,
        daemon: Daemon,
        children: Children,
        sessions: Sessions,
        begun: Callable[[], None],
        ended: Callable[[tuple[str, ...]], None],
    ) -> None:
        self._reloader = reloader
        self._daemon = daemon
        self._log = daemon.log
        self._children = children
        self._sessions = sessions
        self._begun = begun
        self._ended = ended
        self._waiting: deque[Request] = deque()

    def add(self, request: Request) -> None:
        """Do it, or say why not, once those are done that were asked for before."""
        if request.is_signal and any(other.is_signal for other in self._waiting):
            return  # one that has not begun reads what this one would
        if len(self._waiting) >= MAX_WAITING:
            request.ended(ReloadOutcome("failed", (f"{MAX_WAITING} reloads wait already",)))
            return
        self._waiting.append(request)
        self._next()

    def stop(self) -> None:
        """The daemon is about to end."""
        self._reloader.stop()

    def _next(self) -> None:
        while self._waiting and not self._reloader.is_busy:
            self._begin(self._waiting.popleft())

    def _begin(self, request: Request) -> None:
        if self._daemon.supervisor.terminating:
            self._end(request, _TERMINATING)
            return
        if not request.dry_run:
            self._begun()
        try:
            self._reloader.prepare(
                self._daemon.loop, self._children, lambda result: self._prepared(request, result)
            )
        except OSError as error:
            why = f"the configuration cannot be read: no process for it: {error.strerror}"
            self._end(request, ReloadOutcome("failed", (why,)))

    def _prepared(self, request: Request, result: Result) -> None:
        if result.place:
            text = "internal error (please report)"
            self._log.write(logfile.CRITICAL, text, where="reload", error=result.trouble, place=result.place)
        outcome = ReloadOutcome("failed", (f"reload: {_INTERNAL}",))
        try:
            outcome = self._outcome(request, result)
        except Exception as error:  # noqa: BLE001 - the client is answered, and the next one gets its turn
            self._daemon.bug("a reload", error)
        self._end(request, outcome)
        self._next()

    def _outcome(self, request: Request, result: Result) -> ReloadOutcome:
        if self._daemon.supervisor.terminating:
            return _TERMINATING
        if result.trouble:
            why = _INTERNAL if result.place else result.trouble
            return ReloadOutcome("failed", (f"the configuration cannot be read: {why}",))
        code, *told = result.pieces
        return ReloadOutcome(code, tuple(told)) if code else self._apply(request, _together(*told))

    def _apply(self, request: Request, draft: Draft) -> ReloadOutcome:
        body = {"plan": replies.plan(draft.plan), "warnings": list(draft.warnings)}
        if request.dry_run:
            return ReloadOutcome(body=body)
        try:
            self._reloader.change_log(self._log, draft)
        except OSError as error:  # it could be opened a moment ago
            return ReloadOutcome("invalid", (f"log-file {error.filename}: {error.strerror}",))
        supervisor = self._daemon.supervisor
        token = supervisor.log.last
        # A sender of a signal sees no reply: the log answers, at the level that it has by default.
        level = WARNING if request.is_signal else INFO
        _log(self._log, draft, level, request.by)
        if draft.access is not None:
            self._sessions.permit(draft.access)
        self._sessions.make_room(len(draft.names))
        self._reloader.keep(draft)
        now = time.monotonic()
        supervisor.reload(draft.plan, request, now, restart=request.restart, by=request.by)
        stale = [] if request.restart else supervisor.stale()
        if stale:
            self._log.write(level, "reload: jobs running with old settings", jobs=", ".join(stale))
        return ReloadOutcome(body={**body, "stale": stale, "token": token})

    def _end(self, request: Request, outcome: ReloadOutcome) -> None:
        if not request.dry_run:
            if outcome.code:
                # A client that asked by a request has them in its answer, and may ask for ever.
                write = self._log.write if request.is_signal else self._log.limited
                for problem in outcome.problems:
                    write(ERROR, "reload: error", at=problem)
                by, count = str(request.by), len(outcome.problems)
                write(ERROR, "reload failed: nothing changed", by=by, problems=count)
            self._ended(outcome.problems)
        request.ended(outcome)


_TERMINATING = ReloadOutcome("terminating", ("the supervisor is terminating",))


def _together(draft: Draft, *parts: spec.JobSpec | Change) -> Draft:
    """A draft with the specs that have travelled behind it."""
    added = tuple(part for part in parts if isinstance(part, spec.JobSpec))
    changed = tuple(part for part in parts if isinstance(part, Change))
    return draft.replace(plan=draft.plan.replace(added=added, changed=changed))


def _log(log: Log, draft: Draft, level: str, by: Cause) -> None:
    """A line that it is done, at `level`, and one for each change."""
    changes = draft.plan
    counts = {"added": changes.added, "removed": changes.removed, "changed": changes.changed}
    facts = {what: len(jobs) or None for what, jobs in counts.items()}
    log.write(level, "reload" if changes else "reload: nothing has changed", by=str(by), **facts)
    for name in changes.removed:
        log.write(INFO, "reload: removed", job=name)
    for job in changes.added:
        log.write(INFO, "reload: added", job=job.name)
    for change in changes.changed:
        at_once, next_run = ", ".join(change.hot) or None, ", ".join(change.restart) or None
        log.write(INFO, "reload: changed", job=change.spec.name, at_once=at_once, next_run=next_run)
    if changes.daemon.hot:
        log.write(INFO, "reload: changed", supervisor=", ".join(changes.daemon.hot))
    if changes.daemon.restart:
        keys = ", ".join(changes.daemon.restart)
        log.write(WARNING, "reload: needs a restart of the daemon", supervisor=keys)
    for warning in draft.warnings:
        log.write(WARNING, "reload: warning", at=warning)
