"""What has changed from one configuration to the next, and what that asks for. No I/O.

A change counts at once unless a run, or a daemon, keeps what it was started with.
"""

from __future__ import annotations

from jobmon.core import spec
from jobmon.lean.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Protocol

    class Settings(Protocol):
        """What is compared: a configuration, wherever it comes from."""

        @property
        def jobs(self) -> Mapping[str, spec.JobSpec]: ...  # noqa: D102
        @property
        def supervisor(self) -> spec.SupervisorSpec: ...  # noqa: D102


class Keys(Record):
    """Keys that have another value, in the order of the spec: `hot` ones count at once, the others
    for the next run of the job, or for the next daemon."""

    hot: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()


class Change(Record):
    """A job that is configured in another way, with the keys as in `Keys`."""

    spec: spec.JobSpec
    hot: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()


class Plan(Record):
    """What is to be done. False when that is nothing. `daemon` are keys of the supervisor."""

    added: tuple[spec.JobSpec, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[Change, ...] = ()
    daemon: Keys = Keys()

    def __bool__(self) -> bool:
        return self != _NOTHING


_NOTHING = Plan()


def plan(old: Settings, new: Settings) -> Plan:
    """What leads from one configuration to another; jobs in the order in which they are configured."""
    changed = []
    for name, job in new.jobs.items():
        if name in old.jobs and job != old.jobs[name]:
            keys = _differing(old.jobs[name], job, spec.OF_A_RUN)
            changed.append(Change(job, keys.hot, keys.restart))
    return Plan(
        tuple(job for name, job in new.jobs.items() if name not in old.jobs),
        tuple(name for name in old.jobs if name not in new.jobs),
        tuple(changed),
        _differing(old.supervisor, new.supervisor, spec.OF_A_DAEMON),
    )


def _differing(old: Record, new: Record, kept: tuple[str, ...]) -> Keys:
    fields = [field for field in new._fields if getattr(old, field) != getattr(new, field)]
    return Keys(
        tuple(field.replace("_", "-") for field in fields if field not in kept),
        tuple(field.replace("_", "-") for field in fields if field in kept),
    )
