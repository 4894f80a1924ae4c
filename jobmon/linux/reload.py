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

NEEDS_A_NEW_DAEMON = "needs a restart of the daemon"


class Outcome(Record):
    """What a reload came to: `body` is what it changes, in the words of the wire. With a `code`, and the
    `problems` that are behind it, nothing was changed."""

    code: str = ""
    problems: tuple[str, ...] = ()
    body: Mapping[str, Any] = {}


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
        from jobmon.plan import plan

        try:
            new = self._source.read()
            spec = new.supervisor
            access = Access.resolve(spec.allow_users, spec.allow_groups)
            changes = plan(self._source.config, new)
            log = -1 if dry_run or "log-file" not in changes.daemon.hot else self._open_log(spec.log_file)
        except ConfigError as error:
            return Outcome("invalid", tuple(map(str, error.problems)))
        except StartupError as error:
            return Outcome("invalid", tuple(str(error).splitlines()))
        body = {"plan": answers.plan(changes), "warnings": list(map(str, new.warnings))}
        if dry_run:
            return Outcome(body=body)
        if log >= 0:
            engine.log.go_on(spec.log_file or self._log_path, log)
        engine.log.keep_to(spec.log_level)
        _log(engine.log, changes, new, by)
        engine.sessions.permit(access)
        engine.sessions.make_room(len(new.jobs))
        self._keep(new, changes)
        engine.supervisor.reload(changes, to, time.monotonic(), restart=restart, by=by)
        stale = [] if restart else [name for name, job in engine.supervisor.jobs.items() if job.stale]
        return Outcome(body={**body, "stale": stale})

    def _keep(self, new: Config, changes: Plan) -> None:
        """Compare the next one with this; but the daemon's own settings with those that it goes by. Without
        what is of no use: warnings, and a second copy of what has not changed."""
        old = self._source.config.jobs
        new.jobs.update({name: old[name] for name, spec in new.jobs.items() if old.get(name) == spec})
        fields = [key.replace("-", "_") for key in changes.daemon.restart]
        ours = {field: getattr(self._source.config.supervisor, field) for field in fields}
        self._source.config = new.replace(supervisor=new.supervisor.replace(**ours), warnings=())

    def _open_log(self, path: str | None) -> int:
        path = path or self._log_path
        try:
            return open_log(path)
        except OSError as error:
            raise StartupError(f"log-file {path}: {error.strerror}") from None


def _log(log: Log, changes: Plan, new: Config, by: str) -> None:
    """A line for each change."""
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
        log.write(WARNING, f"reload: {NEEDS_A_NEW_DAEMON}", supervisor=", ".join(changes.daemon.restart))
    for warning in new.warnings:
        log.write(WARNING, "reload: doubtful", at=str(warning))
