"""JobMon supervises jobs on one Linux machine. This is its Python API, and nothing else.

Names are loaded when they are first used: importing a part of JobMon costs that part only.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobmon.client import CommandPipe, EventStream
    from jobmon.errors import (
        BusyError,
        ConfigError,
        ConnectionLost,
        DaemonUnreachable,
        JobError,
        JobMonError,
        NoSuchJobError,
        NotPermittedError,
        ProtocolError,
        WaitTimeout,
    )
    from jobmon.protocol import Event07, EventMessage, JobStatus, Snapshot

__version__ = "1.0.0"

__all__ = (
    "BusyError",
    "CommandPipe",
    "ConfigError",
    "ConnectionLost",
    "DaemonUnreachable",
    "Event07",
    "EventMessage",
    "EventStream",
    "JobError",
    "JobMonError",
    "JobStatus",
    "NoSuchJobError",
    "NotPermittedError",
    "ProtocolError",
    "Snapshot",
    "WaitTimeout",
    "__version__",
)

_ELSEWHERE = {
    "CommandPipe": "client",
    "EventStream": "client",
    "Event07": "protocol",
    "EventMessage": "protocol",
    "JobStatus": "protocol",
    "Snapshot": "protocol",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'jobmon' has no attribute {name!r}")
    module = __import__(f"jobmon.{_ELSEWHERE.get(name, 'errors')}", fromlist=(name,))
    value: object = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
