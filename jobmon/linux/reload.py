"""The configuration is read again while the daemon runs, and gone by.

All is read, checked and prepared before anything is changed. What it means to the jobs is decided by
the supervisor; what it means to the daemon itself is done here.
"""

from __future__ import annotations

import time

from jobmon.errors import ConfigError, StartupError
from jobmon.linux import answers
from jobmon.linux.loading import forget
from jobmon.linux.logfile import ERROR, INFO, WARNING, open_log
from jobmon.linux.peers import Access
from jobmon.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping
    from typing import Any

    from jobmon.config import Config
    from jobmon.linux.engine import Engine
    from jobmon.linux.loading import Source
    from jobmon.linux.logfile import Log
    from jobmon.plan import Plan


class Outcome(Record):
    """What a reload came to: `body` is what it changes, in the words of the wire. With a `code`, and the
    `problems` that are behind it, nothing was changed."""

    code: str = ""
    problems: tuple[str, ...] = ()
    body: Mapping[str, Any] = {}


class _Draft(Record):
    """A configuration that can be gone by at once. `log` is the descriptor of another log file, or -1."""

    config: Config
    plan: Plan
    access: Access
    log: int


class Reloader:
    """Reads `source` again. `log_path` is for a configuration without log-file (None: standard error)."""

    def __init__(self, source: Source, log_path: str | None) -> None:
        self._source = source
        self._log_path = log_path

    def reload(self, engine: Engine, to: Hashable, by: str, *, restart: bool, dry_run: bool) -> Outcome:
        """Do it, or with `dry_run` only say what it would do. What is done the supervisor answers to `to`."""
        if engine.supervisor.terminating:
            return Outcome("terminating", ("the supervisor is terminating",))
        try:
            outcome = self._try(engine, to, by, restart, dry_run)
        finally:
            forget()
        if outcome.code and not dry_run:
            for problem in outcome.problems:
                engine.log.write(ERROR, "reload: a mistake", at=problem)
            engine.log.write(ERROR, "reload: nothing was changed", by=by, problems=len(outcome.problems))
        return outcome

    def _try(self, engine: Engine, to: Hashable, by: str, restart: bool, dry_run: bool) -> Outcome:
        try:
            draft = self._prepare(with_log=not dry_run)
        except ConfigError as error:
            return Outcome("invalid", tuple(map(str, error.problems)))
        except StartupError as error:
            return Outcome("invalid", tuple(str(error).splitlines()))
        body = {"plan": answers.plan(draft.plan), "warnings": list(map(str, draft.config.warnings))}
        if dry_run:
            return Outcome(body=body)
        token = engine.supervisor.log.last
        self._change_daemon(engine, draft, by)
        engine.supervisor.reload(draft.plan, to, time.monotonic(), restart=restart, by=by)
        stale = [] if restart else [name for name, job in engine.supervisor.jobs.items() if job.stale]
        return Outcome(body={**body, "stale": stale, "token": token})

    def _prepare(self, *, with_log: bool) -> _Draft:
        """All that may fail. Raises ConfigError, StartupError."""
        from jobmon.plan import plan

        config = self._source.read()
        spec = config.supervisor
        access = Access.resolve(spec.allow_users, spec.allow_groups)
        changes = plan(self._source.config, config)
        moves = with_log and "log-file" in changes.daemon.hot
        return _Draft(config, changes, access, self._open_log(spec.log_file) if moves else -1)

    def _open_log(self, path: str | None) -> int:
        path = path or self._log_path
        try:
            return open_log(path)
        except OSError as error:
            raise StartupError(f"log-file {path}: {error.strerror}") from None

    def _change_daemon(self, engine: Engine, draft: _Draft, by: str) -> None:
        spec = draft.config.supervisor
        if draft.log >= 0:
            engine.log.go_on(spec.log_file or self._log_path, draft.log)
        engine.log.keep_to(spec.log_level)
        _log(engine.log, draft, by)
        engine.sessions.permit(draft.access)
        engine.sessions.make_room(len(draft.config.jobs))
        self._keep(draft.config, draft.plan)

    def _keep(self, new: Config, changes: Plan) -> None:
        """Compare the next one with this; but the daemon's own settings with those that it goes by. Without
        what is of no use: warnings, and a second copy of what has not changed."""
        old = self._source.config.jobs
        new.jobs.update({name: old[name] for name, spec in new.jobs.items() if old.get(name) == spec})
        fields = [key.replace("-", "_") for key in changes.daemon.restart]
        ours = {field: getattr(self._source.config.supervisor, field) for field in fields}
        self._source.config = new.replace(supervisor=new.supervisor.replace(**ours), warnings=())


def _log(log: Log, draft: _Draft, by: str) -> None:
    """A line for each change."""
    changes = draft.plan
    log.write(INFO, "reload" if changes else "reload: nothing has changed", by=by)
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
