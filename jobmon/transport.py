"""Where the programs of JobMon 0.7 find the API."""

from __future__ import annotations

from jobmon.client import CommandPipe, EventStream
from jobmon.errors import JobError

__all__ = ("CommandPipe", "EventStream", "JobError")
