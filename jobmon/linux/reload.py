"""The configuration is read again while the daemon runs, and gone by.

All is read, checked and prepared before anything is changed. What it means to the jobs is decided by
the supervisor; what it means to the daemon itself is done here.
"""

from __future__ import annotations

import errno
import os
import time

from jobmon.errors import ConfigError
from jobmon.linux import answers
from jobmon.linux.loading import forget
from jobmon.linux.logfile import ERROR, INFO, WARNING, open_log
from jobmon.linux.peers import Access
from jobmon.records import Record
from jobmon.spec import OF_ACCESS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping
    from typing import Any

    from jobmon.config import Complaint, Config
    from jobmon.linux.engine import Engine
    from jobmon.linux.loading import Source
    from jobmon.linux.logfile import Log
    from jobmon.plan import Plan
    from jobmon.spec import SupervisorSpec


class Outcome(Record):
    """What a reload came to: `body` is what it changes, in the words of the wire. With a `code`, and the
    `problems` that are behind it, nothing was changed."""

    code: str = ""
    problems: tuple[str, ...] = ()
    body: Mapping[str, Any] = {}


class _Draft(Record):
    """A configuration that can be gone by at once. `access` is None where who may is as before."""

    config: Config
    plan: Plan
    access: Access | None


class _Check:
    """What the form of the supervisor's settings does not tell: whether they can be gone by here and now.
    Changes nothing. `access` is who may from now on, if that is not as before."""

    def __init__(self, old: SupervisorSpec, log_path: str | None) -> None:
        self._old = old
        self._log_path = log_path
        self.access: Access | None = None

    def __call__(self, new: SupervisorSpec) -> list[Complaint]:
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

    def reload(self, engine: Engine, to: Hashable, by: str, *, restart: bool, dry_run: bool) -> Outcome:
        """Do it, or with `dry_run` only say what it would do. What is done the supervisor answers to `to`."""
        if engine.supervisor.terminating:
            return Outcome("terminating", ("the supervisor is terminating",))
        try:
            outcome = self._try(engine, to, by, restart, dry_run)
        finally:
            forget()
        if outcome.code and not dry_run:
            # Who has asked by a request has them in the answer, and may ask for ever.
            write = engine.log.write if to is None else engine.log.limited
            for problem in outcome.problems:
                write(ERROR, "reload: a mistake", at=problem)
            write(ERROR, "reload: nothing was changed", by=by, problems=len(outcome.problems))
        return outcome

    def _try(self, engine: Engine, to: Hashable, by: str, restart: bool, dry_run: bool) -> Outcome:
        try:
            draft = self._prepare()
        except ConfigError as error:
            return Outcome("invalid", tuple(map(str, error.problems)))
        body = {"plan": answers.plan(draft.plan), "warnings": list(map(str, draft.config.warnings))}
        if dry_run:
            return Outcome(body=body)
        try:
            self._change_log(engine.log, draft)
        except OSError as error:  # it could be opened a moment ago
            return Outcome("invalid", (f"log-file {error.filename}: {error.strerror}",))
        token = engine.supervisor.log.last
        # Who has sent a signal sees no reply: the log answers, at the level that it has by default.
        level = WARNING if to is None else INFO
        _log(engine.log, draft, level, by)
        self._change_daemon(engine, draft)
        engine.supervisor.reload(draft.plan, to, time.monotonic(), restart=restart, by=by)
        stale = [] if restart else engine.supervisor.stale()
        if stale:
            engine.log.write(level, "reload: run on as they were started", jobs=", ".join(stale))
        return Outcome(body={**body, "stale": stale, "token": token})

    def _prepare(self) -> _Draft:
        """All that may fail. Changes nothing. Raises ConfigError."""
        from jobmon.plan import plan

        check = _Check(self._source.config.supervisor, self._log_path)
        config = self._source.read(check)
        changes = plan(self._source.config, config)
        keys = changes.daemon
        used = keys.replace(restart=tuple(key for key in keys.restart if key not in self._unused))
        return _Draft(config, changes.replace(daemon=used), check.access)

    def _change_log(self, log: Log, draft: _Draft) -> None:
        """The only change that may fail, so the first one. Raises OSError."""
        spec = draft.config.supervisor
        if "log-file" in draft.plan.daemon.hot:
            path = spec.log_file or self._log_path
            log.go_on(path, open_log(path))
        log.keep_to(spec.log_level)

    def _change_daemon(self, engine: Engine, draft: _Draft) -> None:
        if draft.access is not None:
            engine.sessions.permit(draft.access)
        engine.sessions.make_room(len(draft.config.jobs))
        self._keep(draft.config, draft.plan)

    def _keep(self, new: Config, changes: Plan) -> None:
        """Compare the next one with this; but the daemon's own settings with those that it goes by. Without
        what is of no use: warnings, and a second copy of what has not changed."""
        old = self._source.config
        others = {spec.name for spec in (*changes.added, *(change.spec for change in changes.changed))}
        jobs = {name: spec if name in others else old.jobs[name] for name, spec in new.jobs.items()}
        fields = [key.replace("-", "_") for key in changes.daemon.restart]
        ours = {field: getattr(old.supervisor, field) for field in fields}
        self._source.config = new.replace(jobs=jobs, supervisor=new.supervisor.replace(**ours), warnings=())


def _log(log: Log, draft: _Draft, level: str, by: str) -> None:
    """A line that it is done, at `level`, and one for each change."""
    changes = draft.plan
    counts = {"added": changes.added, "removed": changes.removed, "changed": changes.changed}
    facts = {what: len(jobs) or None for what, jobs in counts.items()}
    log.write(level, "reload" if changes else "reload: nothing has changed", by=by, **facts)
    for name in changes.removed:
        log.write(INFO, "reload: removed", job=name)
    for spec in changes.added:
        log.write(INFO, "reload: added", job=spec.name)
    for change in changes.changed:
        at_once, next_run = ", ".join(change.hot) or None, ", ".join(change.restart) or None
        log.write(INFO, "reload: changed", job=change.spec.name, at_once=at_once, next_run=next_run)
    if changes.daemon.hot:
        log.write(INFO, "reload: changed", supervisor=", ".join(changes.daemon.hot))
    if changes.daemon.restart:
        keys = ", ".join(changes.daemon.restart)
        log.write(WARNING, "reload: needs a restart of the daemon", supervisor=keys)
    for warning in draft.config.warnings:
        log.write(WARNING, "reload: doubtful", at=str(warning))
