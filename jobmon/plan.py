"""What has changed from one configuration to the next, and what that asks for. No I/O.

Whether a change counts at once or later is a column of the table of keys.
"""

from __future__ import annotations

from jobmon.config_keys import JOB, SUPERVISOR
from jobmon.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobmon.config import Config
    from jobmon.config_keys import Key
    from jobmon.spec import JobSpec


class Keys(Record):
    """Keys that have another value, in the order of the table: `hot` ones count at once, the others
    for the next run of the job, or for the next daemon."""

    hot: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()


class Change(Record):
    """A job that is configured in another way, with the keys as in `Keys`."""

    spec: JobSpec
    hot: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()


class Plan(Record):
    """What is to be done. False when that is nothing. `daemon` are keys of the supervisor."""

    added: tuple[JobSpec, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[Change, ...] = ()
    daemon: Keys = Keys()

    def __bool__(self) -> bool:
        return self != _NOTHING


_NOTHING = Plan()


def plan(old: Config, new: Config) -> Plan:
    """What leads from one configuration to another; jobs in the order in which they are configured."""
    changed = []
    for name, spec in new.jobs.items():
        if name in old.jobs and spec != old.jobs[name]:
            keys = _differing(JOB, old.jobs[name], spec)
            changed.append(Change(spec, keys.hot, keys.restart))
    return Plan(
        tuple(spec for name, spec in new.jobs.items() if name not in old.jobs),
        tuple(name for name in old.jobs if name not in new.jobs),
        tuple(changed),
        _differing(SUPERVISOR, old.supervisor, new.supervisor),
    )


def _differing(rows: tuple[Key, ...], old: object, new: object) -> Keys:
    names = [row for row in rows if getattr(old, row.field) != getattr(new, row.field)]
    return Keys(
        tuple(row.name for row in names if row.hot),
        tuple(row.name for row in names if not row.hot),
    )
