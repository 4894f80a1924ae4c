"""The configuration is read again while the daemon runs, and applied.

All is read, checked and prepared before anything is changed, and that by a child: the loop goes on, whatever
the size of the files and whatever file system they are on. The supervisor decides about the jobs; changes of
the daemon itself are made here.
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
from jobmon.linux.kernel.peers import Access
from jobmon.linux.log import ERROR, INFO, WARNING, open_log
from jobmon.linux.processes.worker import Errand, Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping
    from typing import Any

    from jobmon.config.loader import KeyProblem
    from jobmon.core.causes import Cause
    from jobmon.linux.daemon.configsource import Source
    from jobmon.linux.daemon.engine import Engine
    from jobmon.linux.log import Log

READ_SECONDS = 60.0  # how long a reading may take: a file system that does not answer never ends it
MAX_WAITING = 100  # reloads that wait for one that is under way


class Outcome(Record):
    """What a reload came to: `body` is what it changes, in the words of the wire. With a `code`, and the
    `problems` that are behind it, nothing was changed."""

    code: str = ""
    problems: tuple[str, ...] = ()
    body: Mapping[str, Any] = {}


class Wish(Record):
    """A reload that somebody asked for. `done` is told the outcome; once it is applied the supervisor answers
    `to`. With `dry_run` nothing is applied."""

    to: Hashable
    by: Cause
    done: Callable[[Outcome], None]
    restart: bool = False
    dry_run: bool = False


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
    """Reads `source` again, one reload after another. `log_path` is for a configuration without log-file
    (None: standard error), `unused` are keys that do not count because systemd has given the sockets."""

    def __init__(self, source: Source, log_path: str | None, unused: frozenset[str] = frozenset()) -> None:
        self._source = source
        self._log_path = log_path
        self._unused = unused
        self._waiting: deque[Wish] = deque()
        self._errand: Errand | None = None

    def reload(self, engine: Engine, wish: Wish) -> None:
        """Do it, or say why not, once those are done that were asked for before."""
        if wish.to is None and any(other.to is None for other in self._waiting):
            return  # one that has not begun reads what this one would
        if len(self._waiting) >= MAX_WAITING:
            wish.done(Outcome("failed", (f"{MAX_WAITING} reloads wait already",)))
            return
        self._waiting.append(wish)
        self._next(engine)

    def stop(self) -> None:
        """End the reading: the daemon is about to end."""
        if self._errand is not None:
            self._errand.stop()

    def _next(self, engine: Engine) -> None:
        while self._waiting and self._errand is None:
            wish = self._waiting.popleft()
            if engine.supervisor.terminating:
                self._end(engine, wish, Outcome("terminating", ("the supervisor is terminating",)))
                continue
            engine.reloading(dry_run=wish.dry_run)
            try:
                self._begin(engine, wish)
            except OSError as error:
                why = f"the configuration cannot be read: no process for it: {error.strerror}"
                self._end(engine, wish, Outcome("failed", (why,)))

    def _begin(self, engine: Engine, wish: Wish) -> None:
        self._errand = Errand(
            engine.reactor,
            engine.timers,
            engine.children,
            self._read,
            lambda result: self._arrived(engine, wish, result),
            kinds=_KINDS,
            seconds=READ_SECONDS,
        )

    def _arrived(self, engine: Engine, wish: Wish, result: Result) -> None:
        self._errand = None
        if result.place:
            text = "a bug in jobmon"
            engine.log.write(logfile.CRITICAL, text, where="reload", error=result.trouble, place=result.place)
        outcome = Outcome("failed", ("reload: a bug in jobmon: the daemon's log has its place",))
        try:
            outcome = self._outcome(engine, wish, result)
        except Exception as error:  # noqa: BLE001 - the client is answered, and the next one gets its turn
            engine.bug("a reload", error)
        self._end(engine, wish, outcome)
        self._next(engine)

    def _outcome(self, engine: Engine, wish: Wish, result: Result) -> Outcome:
        if engine.supervisor.terminating:
            return Outcome("terminating", ("the supervisor is terminating",))
        if result.trouble:
            why = "a bug in jobmon: the daemon's log has its place" if result.place else result.trouble
            return Outcome("failed", (f"the configuration cannot be read: {why}",))
        code, *told = result.pieces
        return Outcome(code, tuple(told)) if code else self._go_by(engine, wish, _together(*told))

    def _end(self, engine: Engine, wish: Wish, outcome: Outcome) -> None:
        if outcome.code and not wish.dry_run:
            # A client that asked by a request has them in its answer, and may ask for ever.
            write = engine.log.write if wish.to is None else engine.log.limited
            for problem in outcome.problems:
                write(ERROR, "reload: a mistake", at=problem)
            write(ERROR, "reload: nothing was changed", by=str(wish.by), problems=len(outcome.problems))
        engine.reloaded(outcome.problems, dry_run=wish.dry_run)
        wish.done(outcome)

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

    # ---- in the daemon --------------------------------------------------------------------------

    def _go_by(self, engine: Engine, wish: Wish, draft: Draft) -> Outcome:
        body = {"plan": replies.plan(draft.plan), "warnings": list(draft.warnings)}
        if wish.dry_run:
            return Outcome(body=body)
        try:
            self._change_log(engine.log, draft)
        except OSError as error:  # it could be opened a moment ago
            return Outcome("invalid", (f"log-file {error.filename}: {error.strerror}",))
        token = engine.supervisor.log.last
        # Who has sent a signal sees no reply: the log answers, at the level that it has by default.
        level = WARNING if wish.to is None else INFO
        _log(engine.log, draft, level, wish.by)
        self._change_daemon(engine, draft)
        now = time.monotonic()
        engine.supervisor.reload(draft.plan, wish.to, now, restart=wish.restart, by=wish.by)
        stale = [] if wish.restart else engine.supervisor.stale()
        if stale:
            engine.log.write(level, "reload: run on as they were started", jobs=", ".join(stale))
        return Outcome(body={**body, "stale": stale, "token": token})

    def _change_log(self, log: Log, draft: Draft) -> None:
        """The only change that may fail, so the first one. Raises OSError."""
        new = draft.supervisor
        if "log-file" in draft.plan.daemon.hot:
            path = new.log_file or self._log_path
            log.go_on(path, open_log(path))
        log.keep_to(new.log_level)

    def _change_daemon(self, engine: Engine, draft: Draft) -> None:
        if draft.access is not None:
            engine.sessions.permit(draft.access)
        engine.sessions.make_room(len(draft.names))
        self._keep(draft)

    def _keep(self, draft: Draft) -> None:
        """Compare the next one with this; but the daemon's own settings with those that it goes by."""
        old, changes = self._source.config, draft.plan
        others = {job.name: job for job in (*changes.added, *(change.spec for change in changes.changed))}
        jobs = {name: others[name] if name in others else old.jobs[name] for name in draft.names}
        fields = [key.replace("-", "_") for key in changes.daemon.restart]
        ours = {field: getattr(old.supervisor, field) for field in fields}
        supervisor = draft.supervisor.replace(**ours)
        self._source.config = old.replace(jobs=jobs, supervisor=supervisor, included=draft.included)


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
        log.write(WARNING, "reload: doubtful", at=warning)
