"""What a reload comes to: which jobs are new, gone, or changed, and by what. No I/O, nothing is done."""

from __future__ import annotations

from jobmon.records import Record
from jobmon.spec import JobSpec


class Change(Record):
    """A job whose configuration differs: in what counts at once, in what the next run has."""

    spec: JobSpec
    hot: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()


class Plan(Record):
    """The way from one configuration to another."""

    added: tuple[JobSpec, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[Change, ...] = ()
