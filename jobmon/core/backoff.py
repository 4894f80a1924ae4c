"""Does this death restart the job, and when. Arithmetic only: time is given, nothing is kept.

A death is penalised when it comes within *window* of the previous death that nobody asked for,
or of the end of the last penalty: so a crash loop stays penalised after its first penalty.
"""

from __future__ import annotations

import errno

from jobmon.core.causes import Cause
from jobmon.core.spec import JobSpec, JobType, Restart
from jobmon.lean.records import Record

# What the daemon itself lacks when a spawn fails; it says nothing about the job.
SHORTAGES = frozenset((errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM))


class Past(Record):
    """What a job remembers of its deaths, in CLOCK_MONOTONIC seconds."""

    last_death: float | None = None
    penalty_end: float | None = None
    failures: int = 0  # penalised restarts in a row
    ends: int = 0  # ends in quick succession: the last one, and those before it
    alike: int = 0  # those of them, the last ones, that had the same cause
    cause: Cause | None = None  # of the last one


class Death(Record):
    """A death that nobody asked for. `shortage`: the daemon could not start it for its own lack."""

    ok: bool
    unspawned: bool = False
    shortage: bool = False


class Verdict(Record):
    """What follows: a new start after `delay` seconds, or (None) nothing."""

    delay: float | None
    past: Past
    gave_up: bool = False


def judge(spec: JobSpec, death: Death, past: Past, now: float, cause: Cause | None = None) -> Verdict:
    """Decide what follows a death at `now`."""
    penalised = death.unspawned or _within(spec.restart_window, past, now)
    failures, ends = (past.failures, past.ends) if penalised else (0, 0)
    alike = past.alike if ends and past.cause == cause else 0
    after = past.replace(last_death=now, failures=failures, ends=ends + 1, alike=alike + 1, cause=cause)
    if not _wanted(spec, death):
        return Verdict(None, after)
    if not penalised:
        return Verdict(0.0, after)
    if spec.max_restarts is not None and failures >= spec.max_restarts:
        return Verdict(None, after, gave_up=True)
    return Verdict(spec.restart_penalty, after.replace(failures=failures + 1))


def begin_anew(past: Past) -> Past:
    """Forget the counts, because somebody starts the job; keep the times."""
    return past.replace(failures=0, ends=0) if past.failures or past.ends else past


def _wanted(spec: JobSpec, death: Death) -> bool:
    if death.shortage:
        return True
    if spec.type is JobType.ONESHOT and death.ok:
        return False
    if spec.restart is Restart.ALWAYS:
        return True
    return spec.restart is Restart.ON_FAILURE and not death.ok


def _within(window: float, past: Past, now: float) -> bool:
    marks = (past.last_death, past.penalty_end)
    return any(mark is not None and now - mark <= window for mark in marks)
